//! The EnvoyFilter that merges our verification into the clusters that istiod makes.
//!
//! Each patch is for one cluster by its name, `outbound|PORT|SUBSET|HOST`. A match by service and port without a subset
//! would take those of all subsets too.
//!
//! Source: istio/istio `pilot/pkg/networking/core/envoyfilter/cluster_patch.go`, `clusterMatch`.

use std::collections::BTreeMap;

use egress_policy::Service;
use serde_json::{Value, json};

use super::envoy_filter::{context, of_patches};
use super::manifest::Manifest;
use super::selector::ProxySelector;
use super::services::originated;
use super::unsupported::Unsupported;
use super::wanted::Wanted;
use crate::xds::{Options, sockets};

pub(super) fn envoy_filter(
    services: &[Service<'_>],
    selector: &ProxySelector,
    options: &Options,
    wanted: &Wanted,
) -> Result<Manifest, Unsupported> {
    let mut clusters = BTreeMap::new();
    for (service, tls) in originated(services, &wanted.way) {
        let sockets = sockets(service, tls, options).map_err(|_| Unsupported::TwoNames {
            host: service.host.to_string(),
        })?;
        let subset = service.subset.unwrap_or_default();
        let name = format!("outbound|{}|{subset}|{}", service.port, service.host);
        clusters.entry(name).or_insert(sockets);
    }
    let context = context(wanted.proxies);
    let mut patches: Vec<Value> = Vec::new();
    for (name, sockets) in clusters {
        patches.extend(sockets.into_iter().map(|socket| {
            json!({
                "applyTo": "CLUSTER",
                "match": {"context": context, "cluster": {"name": name}},
                "patch": {"operation": "MERGE", "value": {"transport_socket": socket}},
            })
        }));
    }
    Ok(of_patches(patches, selector, options, wanted).described(PURPOSE))
}

/// What the patches are for, and when they come and go.
const PURPOSE: &str = "Tells Istio's own clusters whom to verify; its routes stay. Apply it before the \
    DestinationRules that are rendered with it, which refuse every server without it, and delete it after them.";
