//! The forward proxy: a listener for programs that know `http_proxy` and `https_proxy` and nothing else.
//!
//! A request with a URL in its first line goes where the same request to the URL's host and port would go. CONNECT
//! carries the application's own TLS to hosts and ports of the table that are passed through. For everything else
//! there is no way: the table decides, and neither a route nor a cluster leads anywhere without a word of the
//! filter, or to a host that the table does not have.
//!
//! Of a URL and a `Host` that differ the URL counts, and the header is replaced by it before anything is decided
//! (RFC 9112, 3.2.2). A request without a URL, which a server would get, is decided by its `Host` alike.
//!
//! Only HTTP/1 is spoken: no client asks a proxy in the clear for anything else.
//!
//! Source: envoyproxy/envoy `source/common/http/http1/codec_impl.cc`, `ServerConnectionImpl::handlePath`.

use std::collections::BTreeMap;

use egress_filter::{Variants, contract};
use egress_policy::{Arrival, Cluster, PolicyTable};
use serde_json::{Value, json};

use super::options::Options;
use super::{guard, http};

/// The name of the listener, and what `ready` calls it.
pub const NAME: &str = "forward-proxy";

/// Renders the listener, if there is to be one.
pub(super) fn listener(
    table: &PolicyTable,
    digest: &str,
    resources: &[Value],
    variants: Variants,
    options: &Options,
) -> Option<Value> {
    let address = options.forward_proxy?;
    let mut manager = http::connection_manager(None, table, digest, resources, variants, options);
    let config = manager.get_mut("typed_config")?.as_object_mut()?;
    config.insert("codec_type".to_owned(), json!("HTTP1"));
    config
        .get_mut("upgrade_configs")?
        .as_array_mut()?
        .push(json!({"upgrade_type": "CONNECT"}));
    // They are for us (RFC 9110, 11.7.2), and would tell the server a password.
    config
        .get_mut("early_header_mutation_extensions")?
        .pointer_mut("/0/typed_config/mutations")?
        .as_array_mut()?
        .extend([
            json!({"remove": "proxy-authorization"}),
            json!({"remove": "proxy-connection"}),
        ]);
    let routes = config
        .get_mut("route_config")?
        .pointer_mut("/virtual_hosts/0/routes")?
        .as_array_mut()?;
    routes.splice(0..0, tunnels(table, options));
    Some(json!({
        "name": NAME,
        "address": {"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}},
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{"name": "http", "filters": [manager]}],
    }))
}

/// Returns the clusters that CONNECT leads to and whose addresses filters must look at.
pub(super) fn guarded<'t>(
    table: &'t PolicyTable,
    options: &'t Options,
) -> impl Iterator<Item = &'t Cluster> {
    passed_through(table).filter(|cluster| guard::by_filters(cluster, options))
}

fn passed_through(table: &PolicyTable) -> impl Iterator<Item = &Cluster> {
    table
        .services()
        .filter(|service| service.arrival == Arrival::Tls && service.subset.is_none())
        .map(|service| service.cluster)
}

/// Renders the routes of CONNECT: to the clusters that the filter names, and else nowhere.
fn tunnels(table: &PolicyTable, options: &Options) -> Vec<Value> {
    let header = contract::FORWARD_HEADER;
    let tunnel = |matches: Value| {
        json!({
            "name": "connect",
            "stat_prefix": "connect",
            "match": {"connect_matcher": {}, "headers": [matches]},
            "route": {
                "cluster_header": header,
                "timeout": "0s",
                // As long as a connection that is passed through by its SNI may be: Envoy's default for those.
                "idle_timeout": "3600s",
                "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
            },
        })
    };
    let guarded: BTreeMap<&str, Value> = guarded(table, options)
        .map(|cluster| {
            let name = cluster.name.as_str();
            let mut route = tunnel(json!({"name": header, "string_match": {"exact": name}}));
            http::guard_route(&mut route);
            (name, route)
        })
        .collect();
    let mut routes: Vec<Value> = guarded.into_values().collect();
    routes.push(tunnel(json!({"name": header, "present_match": true})));
    routes.push(json!({
        "name": "block_all",
        "match": {"connect_matcher": {}},
        "direct_response": {"status": 403},
    }));
    routes
}
