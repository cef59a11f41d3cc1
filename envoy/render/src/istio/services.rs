//! The part of a table that is carried out in Istio.

use egress_filter::contract;
use egress_policy::{Cluster, DownstreamProtocol, Service, TlsIntent, Trust};

use super::wanted::Way;

/// Returns the services that TLS is originated for in this way, subsets included, and how.
pub(super) fn originated<'s, 't>(
    services: &'s [Service<'t>],
    way: &'s Way,
) -> impl Iterator<Item = (&'s Service<'t>, &'t TlsIntent)> {
    services.iter().filter_map(move |service| {
        let tls = service.cluster.tls.as_ref()?;
        let ours = match (way, service.downstream) {
            (Way::Filter(_) | Way::Merge, DownstreamProtocol::Http) => true,
            (Way::Merge, DownstreamProtocol::Tcp) => true,
            (Way::Filter(_), DownstreamProtocol::Tcp) | (_, DownstreamProtocol::Tls) => false,
        };
        // Where nothing is to be verified, Istio's own cluster does all that is asked for.
        let verified = tls.trust != Trust::InsecureSkipVerify;
        let merged = verified || matches!(way, Way::Filter(_));
        (ours && merged).then_some((service, tls))
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
