//! Renders compiled rules as configuration, for an Envoy or for a cluster with Istio.
//!
//! ```
//! use egress_policy::CompileOptions;
//! use egress_render::xds::{self, Options};
//! use egress_rules::{Source, compile};
//!
//! let text = "
//! apiVersion: networking.istio.io/v1
//! kind: ServiceEntry
//! metadata: {name: api}
//! spec:
//!   hosts: [api.example.com]
//!   ports: [{number: 80, name: http, protocol: HTTP}]
//!   resolution: DNS
//! ";
//! let source = Source { name: "rules.yaml".to_owned(), text: text.to_owned(), mesh: false };
//! let rules = compile(&[source], &CompileOptions::default()).unwrap();
//! let bootstrap = xds::bootstrap(&rules.table, &rules.resources(), &Options::default());
//! assert!(bootstrap["static_resources"]["listeners"].is_array());
//! ```
//!
//! [`xds`] walks the same table that the filter decides by. [`istio`] writes what a cluster with Istio needs instead.
//!
//! What it does not do: it decides nothing (`egress-policy` does), and it opens no file. Somebody else supplies what
//! the configuration refers to, such as certificates.
#![forbid(unsafe_code)]

pub mod istio;
mod pinned;
pub mod xds;

pub use pinned::pinned_envoy;
