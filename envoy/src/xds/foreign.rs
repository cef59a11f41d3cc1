//! What the filter leads requests to, for an Envoy whose listeners are somebody else's.

use std::collections::BTreeMap;

use egress_filter::{PluginConfig, Variants, contract};
use egress_policy::{Arrival, PolicyTable, PortNumber};
use serde_json::{Value, json};

use super::message::extension;
use super::options::Options;
use super::plugin::plugin;
use super::{cluster, http, upgrade, variants};

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
    let mut clusters = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for service in table.services() {
        if service.arrival != Arrival::Http || service.subset.is_some() {
            continue;
        }
        ports.insert(service.port, ());
        let own = variants::variant(service.cluster);
        let name = own.unwrap_or_else(|| service.cluster.name.to_string());
        clusters.entry(name).or_insert(service.cluster);
    }
    let clusters = clusters
        .into_iter()
        .map(|(name, it)| unseen(cluster::cluster(&[it], Some(name), table, options)))
        .collect();
    let routes: Vec<(PortNumber, Vec<Value>)> = ports
        .into_keys()
        .map(|port| {
            let routes = http::routes_of_ours(port, table, VARIANTS, options);
            (port, upgrade::routes(routes))
        })
        .collect();
    let port = match &routes[..] {
        [(port, _)] => Some(*port),
        _ => None,
    };
    let digest = table.digest().to_string();
    let kind = egress_filter::FilterKind::Http;
    let plugin = PluginConfig {
        headers_stripped: false,
        ..plugin(port, kind, table, &digest, resources, VARIANTS, options)
    };
    Additions {
        clusters,
        routes,
        upgrade: upgrade::http_filter(),
        plugin: plugin.to_json(),
    }
}

/// Lets the servers of a cluster see nothing of what proxies tell themselves, whoever wrote it.
fn unseen(mut cluster: Value) -> Value {
    let kind = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
    let prefix = |prefix: &str| json!({"remove_on_match": {"key_matcher": {"prefix": prefix}}});
    let mutations =
        json!({"request_mutations": [prefix(contract::HEADER_PREFIX), prefix("x-envoy-")]});
    let filters = json!([
        extension(
            "envoy.filters.http.header_mutation",
            kind,
            json!({"mutations": mutations})
        ),
        extension(
            "envoy.filters.http.upstream_codec",
            "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
            json!({}),
        ),
    ]);
    let options = cluster
        .pointer_mut("/typed_extension_protocol_options")
        .and_then(|all| all.get_mut(cluster::HTTP_OPTIONS))
        .and_then(Value::as_object_mut);
    if let Some(options) = options {
        options.insert("http_filters".to_owned(), filters);
    }
    cluster
}
