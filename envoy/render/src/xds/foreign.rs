//! The clusters and routes that the filter leads requests to, for an Envoy whose listeners are somebody else's.

use std::collections::BTreeMap;

use egress_filter::{FilterKind, PluginConfig, Variants, contract};
use egress_policy::{DownstreamProtocol, PolicyTable, PortNumber};
use serde_json::{Value, json};

use super::message::extension;
use super::options::Options;
use super::rendering::Rendering;
use super::{cluster, http, plugin, upgrade, variants};

/// How clusters of one name are told apart: each has a name of its own, so none is taken for one of the listeners'
/// owner.
const VARIANTS: Variants = Variants::Clusters;

/// What must be in an Envoy so that the filter can lead requests to it.
#[derive(Debug)]
pub struct Additions {
    /// The clusters, in the order of their names.
    pub clusters: Vec<Value>,
    /// For each service port the routes that must come before all others, in this order.
    pub routes: Vec<(PortNumber, Vec<Value>)>,
    /// The HTTP filter that routes refer to; it stands before the router.
    pub upgrade: Value,
    /// The filter's configuration, which is told of one service port where there is only one.
    pub plugin: String,
}

/// Renders what HTTP requests are led to. The filter takes no header for its own that Envoy may have let in.
pub fn foreign(table: &PolicyTable, resources: &[Value], options: &Options) -> Additions {
    let rendering = Rendering::new(table, resources, VARIANTS, options);
    let mut clusters = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for service in table.services() {
        if service.downstream != DownstreamProtocol::Http || service.subset.is_some() {
            continue;
        }
        ports.insert(service.port, ());
        let own = variants::variant(service.cluster);
        let name = own.unwrap_or_else(|| service.cluster.name.to_string());
        clusters.entry(name).or_insert(service.cluster);
    }
    let filters = hiding_filters();
    let clusters = clusters
        .into_iter()
        .map(|(name, it)| cluster::filtered(it, name, filters.clone(), &rendering))
        .collect();
    let routes: Vec<(PortNumber, Vec<Value>)> = ports
        .into_keys()
        .map(|port| (port, http::routes_of_ours(port, &rendering)))
        .collect();
    let port = match &routes[..] {
        [(port, _)] => Some(*port),
        _ => None,
    };
    let config = PluginConfig {
        headers_stripped: false,
        ..plugin::config(port, FilterKind::Http, &rendering)
    };
    Additions {
        clusters,
        routes,
        upgrade: upgrade::http_filter(),
        plugin: config.to_json(),
    }
}

/// Renders the filters that let servers see nothing of what proxies tell themselves, whoever wrote it.
fn hiding_filters() -> Vec<Value> {
    let kind = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
    let prefix = |prefix: &str| json!({"remove_on_match": {"key_matcher": {"prefix": prefix}}});
    let mutations =
        json!({"request_mutations": [prefix(contract::HEADER_PREFIX), prefix("x-envoy-")]});
    let hiding = extension(
        "envoy.filters.http.header_mutation",
        kind,
        json!({"mutations": mutations}),
    );
    vec![hiding, cluster::upstream_codec()]
}
