//! The forward proxy: a listener for programs that know `http_proxy` and `https_proxy` and nothing else.
//!
//! A request with a URL in its first line goes where the same request to the URL's host and port would go. CONNECT
//! carries the application's own TLS to hosts and ports of the table that are passed through. Everything else is
//! refused. No route and no cluster leads anywhere unless the filter says so, or to a host that the table does not
//! have.
//!
//! If the URL and `Host` differ, the URL wins: it replaces the header before anything is decided (RFC 9112, 3.2.2). A
//! request without a URL, as a server would get it, is decided by its `Host`.
//!
//! Only HTTP/1 is spoken: no client asks a plaintext proxy for anything else.
//!
//! Source: envoyproxy/envoy `source/common/http/http1/codec_impl.cc`, `ServerConnectionImpl::handlePath`.

use std::collections::BTreeSet;

use egress_filter::contract;
use egress_policy::DownstreamProtocol;
use serde_json::{Map, Value, json};

use super::chain::{Chain, Filter, Listener};
use super::guard;
use super::http::{self, HttpSettings};
use super::message::set;
use super::rendering::Rendering;

/// The name of the listener, and what `ready` calls it.
pub const NAME: &str = "forward-proxy";

/// Renders the listener, if there is to be one.
pub(super) fn listener(rendering: &Rendering<'_>) -> Option<Listener> {
    let address = rendering.options.forward_proxy?;
    let guarded = guarded(rendering);
    let settings = HttpSettings {
        port: None,
        name: NAME.to_owned(),
        routes_name: NAME.to_owned(),
        codec: Some("HTTP1"),
        upgrades: &["CONNECT"],
        routes_first: tunnels(&guarded),
        // They are for us (RFC 9110, 11.7.2), and would tell the server a password.
        headers_removed: &["proxy-authorization", "proxy-connection"],
        guarded,
    };
    let manager = http::connection_manager(settings, rendering);
    let address = json!({"socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    }});
    Some(Listener {
        name: NAME.to_owned(),
        fields: Map::from_iter([
            ("address".to_owned(), address),
            ("traffic_direction".to_owned(), json!("OUTBOUND")),
        ]),
        chains: vec![Chain {
            name: Some("http".to_owned()),
            matches: None,
            filters: vec![Filter::Http(manager)],
        }],
    })
}

/// Returns the names of the clusters that CONNECT leads to and whose addresses filters must look at.
fn guarded(rendering: &Rendering<'_>) -> BTreeSet<String> {
    let passed_through = rendering
        .table
        .services()
        .filter(|service| service.downstream == DownstreamProtocol::Tls && service.subset.is_none())
        .map(|service| service.cluster);
    passed_through
        .filter(|cluster| guard::by_filters(cluster, rendering.options))
        .map(|cluster| cluster.name.to_string())
        .collect()
}

/// Renders the routes of CONNECT: to the clusters that the filter names, and else nowhere.
fn tunnels(guarded: &BTreeSet<String>) -> Vec<Value> {
    let header = contract::FORWARD_HEADER;
    let tunnel = |matches: Value| {
        let route = json!({
            "cluster_header": header,
            "timeout": "0s",
            // As long as a connection that is passed through by its SNI may be: Envoy's default for those.
            "idle_timeout": "3600s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        });
        Map::from_iter([
            ("name".to_owned(), json!("connect")),
            ("stat_prefix".to_owned(), json!("connect")),
            (
                "match".to_owned(),
                json!({"connect_matcher": {}, "headers": [matches]}),
            ),
            ("route".to_owned(), route),
        ])
    };
    let guarded = guarded.iter().map(|cluster| {
        let mut route = tunnel(json!({"name": header, "string_match": {"exact": cluster}}));
        let filters = Map::from_iter([guard::on_route()]);
        set(&mut route, "typed_per_filter_config", json!(filters));
        Value::Object(route)
    });
    let mut routes: Vec<Value> = guarded.collect();
    let rest = tunnel(json!({"name": header, "present_match": true}));
    routes.push(Value::Object(rest));
    routes.push(json!({
        "name": "block_all",
        "match": {"connect_matcher": {}},
        "direct_response": {"status": 403},
    }));
    routes
}
