//! What rendering for Istio takes besides the rules and the options.

use super::module::{Api, Module};

/// What rendering takes besides the rules.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What our resources are called.
    pub name: String,
    /// The proxies.
    pub proxies: ProxyKind,
    /// The Gateway of the Kubernetes Gateway API whose proxies they are; without one the labels tell.
    pub gateway: Option<String>,
    /// Who originates TLS there.
    pub way: Way,
    /// The service accounts that may read credentials.
    pub service_accounts: Vec<String>,
}

/// Who originates TLS in a proxy of Istio's.
#[derive(Debug, Clone)]
pub enum Way {
    /// Istio's own clusters, with our verification merged into them. Its routes stay.
    Merge,
    /// Our filter, which leads requests to clusters of ours, before Istio's routes.
    Filter(Filter),
}

/// The filter, as Istio is told of it.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Where Istio gets it.
    pub module: Module,
    /// The kind of resource that names it.
    pub api: Api,
    /// `AUTHN`, `AUTHZ` or `STATS`; Istio's own place is before the router.
    pub phase: Option<&'static str>,
}

/// Which proxies get the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyKind {
    /// Sidecars.
    Sidecar,
    /// Egress gateways, behind Gateways and VirtualServices of the user's.
    Gateway,
}
