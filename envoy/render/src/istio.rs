//! Renders the resources with which TLS is originated in Istio, in sidecars or at an egress gateway: in one of two ways.
//!
//! Istio makes a plain cluster of a ServiceEntry's port unless a DestinationRule says `tls`. So in both ways the rules
//! stay in the cluster, but ask for a certificate that nobody can have: see `closed`. Requests that Istio routes without
//! us end in 503.
//!
//! # Merge
//!
//! ```text
//! EnvoyFilter: what to verify  ┐
//! DestinationRules, closed     ├─ istiod ──► Envoy: Istio's route ──► Istio's cluster, our TLS
//! ServiceEntries as they were  ┘
//! ```
//!
//! Istio's routes lead to its clusters, whatever they say. Two patches for each cluster replace what it verifies, and
//! bring all of the TLS where there is none: see `xds::merged`.
//!
//! | missing or not matching | what becomes of a request |
//! |---|---|
//! | nothing | originated, if Istio's route leads it to the cluster |
//! | the EnvoyFilter, or its labels | 503: Istio's own cluster is closed |
//! | the closed DestinationRules | originated: the patches bring TLS |
//! | the closed DestinationRules, and the user's own are there | originated; 503 if these show a certificate from files |
//! | the ServiceEntries | as Istio lets out hosts that it does not know |
//! | a secret, or the right to it | 503: the transport socket is not ready |
//!
//! So the EnvoyFilter comes first in what is rendered.
//!
//! # Filter
//!
//! ```text
//! DestinationRules, closed             ┐
//! EnvoyFilter: clusters and routes     ├─ istiod ──► Envoy: our filter ──header──► our route ──► our cluster, TLS
//! WasmPlugin: the rules as they were   │
//! ServiceEntries as they were          ┘
//! ```
//!
//! Requests that we route go to a cluster with a name that Istio gives to none. Our routes stand before Istio's, so
//! rules with a VirtualService that they would undo are refused.
//!
//! | missing or not matching | what becomes of a request |
//! |---|---|
//! | nothing | originated |
//! | the WasmPlugin, or its labels | 503: Istio's own cluster is closed |
//! | the module, which the agent cannot fetch | 403 by the agent (`FAIL_CLOSE`) |
//! | the filter, which crashed | 503 (`FAIL_CLOSE`) |
//! | the filter, whose configuration Envoy refuses | as before it came; a proxy that starts with it does not serve |
//! | the EnvoyFilter's routes | 503: as without the WasmPlugin |
//! | the EnvoyFilter's clusters | 503: no such cluster |
//! | a secret, or the right to it | 503: the transport socket is not ready |
//! | the closed DestinationRules | Istio's plaintext, where the filter does not lead the request elsewhere |
//! | the ServiceEntries | as Istio lets out hosts that it does not know |
//!
//! So the DestinationRules come first in what is rendered, and the ServiceEntries last. The WasmPlugin comes before the
//! EnvoyFilter: it takes the headers that lead to a route away from clients. Without it such a header leads to one
//! of our clusters, with its TLS and its verified names, and nowhere else.
//!
//! Nothing here decides about requests. Other hosts of a port are left to Istio, whatever answers them.

mod closed;
mod envoy_filter;
mod folder;
mod manifest;
mod manifests;
mod merged;
mod module;
mod rbac;
mod selector;
mod services;
mod unsupported;
mod wanted;
mod wasm_plugin;

pub use folder::{MARK, difference, file_name, is_ours};
pub use manifest::Manifest;
pub use manifests::manifests;
pub use module::{Api, Module, PullPolicy, Url};
pub use unsupported::Unsupported;
pub use wanted::{Filter, ProxyKind, Wanted, Way};
