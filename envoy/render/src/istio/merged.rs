//! The EnvoyFilter that merges our verification into the clusters that istiod makes.
//!
//! Each patch is for one cluster by its name, `outbound|PORT|SUBSET|HOST`. A match by service and port without a subset
//! would take those of all subsets too. Istio's name of a host is what its ServiceEntry says, to the letter; a patch for
//! a cluster that is not there does nothing.
//!
//! Source: istio/istio `pilot/pkg/networking/core/envoyfilter/cluster_patch.go`, `clusterMatch`.

use std::collections::{BTreeMap, BTreeSet};

use egress_filter::{Repair, Repairs};
use egress_policy::{HostPattern, Note, Notes, Service, Trust};
use egress_rules::Rules;
use serde_json::{Value, json};

use super::envoy_filter::{context, of_patches};
use super::manifest::{Manifest, given};
use super::selector::ProxySelector;
use super::services::originated;
use super::unsupported::Unsupported;
use super::wanted::Wanted;
use crate::xds::{NotMerged, Options, sockets};

/// The clusters that one EnvoyFilter patches, at most: Kubernetes limits the size of a resource.
const MAX_CLUSTERS: usize = 400;

/// Renders one EnvoyFilter, or several if there are many clusters.
pub(super) fn envoy_filters(
    rules: &Rules,
    services: &[Service<'_>],
    selector: &ProxySelector,
    options: &Options,
    wanted: &Wanted,
) -> Result<Vec<Manifest>, Unsupported> {
    let unverified = services.iter().find(|service| {
        let tls = service.cluster.tls.as_ref();
        tls.is_some_and(|tls| {
            tls.trust == Trust::InsecureSkipVerify && tls.legacy != Notes::default()
        })
    });
    if let Some(service) = unverified {
        return Err(Unsupported::LegacyUnverified(service.host.to_string()));
    }
    let written = as_written(rules);
    let mut clusters = BTreeMap::new();
    for (service, tls) in originated(services, &wanted.way) {
        let host = || service.host.to_string();
        let sockets = sockets(service, tls, options).map_err(|why| match why {
            NotMerged::TwoNames => Unsupported::TwoNames { host: host() },
            NotMerged::Groups => Unsupported::Groups(host()),
        })?;
        let notes = service.cluster.notes;
        if notes.say(Note::HidesClients) {
            return Err(Unsupported::ForwardedFor(host()));
        }
        if notes.say(Note::RequestUrls) {
            return Err(Unsupported::RequestUrls(service.host.to_string()));
        }
        if Repairs::of(Repair::None, notes).any() {
            return Err(Unsupported::Repairs(service.host.to_string()));
        }
        let subset = service.subset.unwrap_or_default();
        let host = service.host.to_string();
        for host in written.get(&host).into_iter().flatten().chain([&host]) {
            let name = format!("outbound|{}|{subset}|{host}", service.port);
            let values = || values(&sockets, notes.say(Note::PerClient));
            clusters.entry(name).or_insert_with(values);
        }
    }
    let clusters: Vec<(String, Vec<Value>)> = clusters.into_iter().collect();
    let parts = clusters.chunks(MAX_CLUSTERS).enumerate();
    let filters = parts.map(|(part, clusters)| {
        let name = match part {
            0 => wanted.name.clone(),
            part => format!("{}-{}", wanted.name, part + 1),
        };
        let patches = patches(clusters, context(wanted.proxies));
        of_patches(patches, &name, selector, options).described(PURPOSE)
    });
    Ok(filters.collect())
}

/// Returns what is merged into a cluster, one after the other.
fn values(sockets: &[Value], per_client: bool) -> Vec<Value> {
    let of_socket = |socket: &Value| match per_client {
        true => json!({
            "connection_pool_per_downstream_connection": true,
            "transport_socket": socket,
        }),
        false => json!({"transport_socket": socket}),
    };
    sockets.iter().map(of_socket).collect()
}

fn patches(clusters: &[(String, Vec<Value>)], context: &str) -> Vec<Value> {
    let of_cluster = |(name, values): &(String, Vec<Value>)| {
        let patch = |value: &Value| {
            json!({
                "applyTo": "CLUSTER",
                "match": {"context": context, "cluster": {"name": name}},
                "patch": {"operation": "MERGE", "value": value},
            })
        };
        values.iter().map(patch).collect::<Vec<Value>>()
    };
    clusters.iter().flat_map(of_cluster).collect()
}

/// Returns the hosts of ServiceEntries as they are written, by what they are.
fn as_written(rules: &Rules) -> BTreeMap<String, BTreeSet<String>> {
    let mut written = BTreeMap::<String, BTreeSet<String>>::new();
    for entry in given(rules, "ServiceEntry") {
        let hosts = entry.value.pointer("/spec/hosts").and_then(Value::as_array);
        for text in hosts.into_iter().flatten().filter_map(Value::as_str) {
            if let Ok(host) = HostPattern::parse(text) {
                let texts = written.entry(host.to_string()).or_default();
                texts.insert(text.to_owned());
            }
        }
    }
    written
}

/// What the patches are for, and when they come and go.
const PURPOSE: &str = "Tells Istio's own clusters whom to verify; its routes stay. Apply it before the \
    DestinationRules that are rendered with it, which refuse every server without it, and delete it after them.";
