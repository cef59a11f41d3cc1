//! The part of a table that the filter carries out in Istio.

use egress_filter::contract;
use egress_policy::{Cluster, DownstreamProtocol, Service};

/// Returns the services that the filter originates TLS for, subsets included.
pub(super) fn originated<'s, 't>(
    services: &'s [Service<'t>],
) -> impl Iterator<Item = &'s Service<'t>> {
    services.iter().filter(|service| {
        service.downstream == DownstreamProtocol::Http && service.cluster.tls.is_some()
    })
}

/// Returns the names of the secrets that a cluster asks for; what our names mark with `%`, Istio's do not.
pub(super) fn secrets(cluster: &Cluster) -> impl Iterator<Item = String> {
    let tls = cluster.tls.as_ref();
    let identity = tls.and_then(|tls| tls.identity.as_ref());
    let identity = identity.map(|identity| contract::identity_secret(identity).to_string());
    let trust = tls.and_then(|tls| contract::trust_name(&tls.trust, None));
    identity
        .into_iter()
        .chain(trust.map(|name| name.to_string()))
}
