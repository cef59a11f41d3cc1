//! The native module that Envoy loads: the same filter as the wasm module, without a VM.
//!
//! ```text
//! Envoy ──hooks──► abi.rs ──► http.rs, network.rs ──facts──► egress_filter ──effects──► host.rs ──► Envoy
//! ```
//!
//! [`abi`] holds what Envoy calls, and [`host`] what we call in Envoy. Only these two have `unsafe`. `config` loads a
//! configuration once for all workers. `http` handles one request and `network` one connection that is not HTTP; `apply`
//! is what they have in common.
//! Nothing is decided here: an `if` about policy belongs in `egress-policy`.
//!
//! No SDK is used. The one on crates.io (`envoy-dynamic-modules-rust-sdk` 0.1) is of a prototype before Envoy had the
//! interface; the one in Envoy's own tree is built with Envoy, and its version must be that of Envoy. The few functions
//! that we need are declared here, so one library runs in several versions of Envoy. Look again when Envoy publishes an
//! SDK.
//!
//! A panic refuses the one request or connection and is counted; it never reaches Envoy.

pub mod abi;
mod apply;
mod config;
#[cfg(test)]
mod fake;
pub mod host;
mod http;
mod network;
