//! The renderer and `egressctl`: Istio's rules in, a running Envoy out.
//!
//! ```text
//! files ──rules──► PolicyTable ──xds──► bootstrap ──run──► Envoy
//!                       └──istio──► manifests
//! ```
//!
//! [`rules`] reads YAML and JSON and tells every problem at its line; [`xds`] walks the same table that
//! the filter decides by; [`credentials`] reads the certificates and keys that rules name; [`run`] starts
//! Envoy with what was rendered and stops it again. [`istio`] writes what a cluster with Istio needs instead.
//!
//! What it does not do: it decides nothing. That is `egress-policy`, here as in the filter.
#![deny(unsafe_code)]

pub mod cli;
pub mod run;
