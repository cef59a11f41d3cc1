//! The forward proxy: a listener for programs that know `http_proxy` and `https_proxy` and nothing else.
//!
//! A request with a URL in its first line goes where the same request to the URL's host and port would go. CONNECT
//! carries the application's own TLS to hosts and ports of the table that are passed through. To a port of HTTP it
//! carries requests, which are read by a listener within Envoy and go where they would go without CONNECT; they are for
//! the host and port that CONNECT named, or refused. Everything else is refused. No route and no cluster leads anywhere unless the filter says so, or to a host that the table does not
//! have.
//!
//! If the URL and `Host` differ, the URL wins: it replaces the header before anything is decided (RFC 9112, 3.2.2). A
//! request without a URL, as a server would get it, is decided by its `Host`.
//!
//! ```text
//! CONNECT host:80 ──► connection to the listener within, which knows `host:80` ──► TLS ──► server
//! ```
//!
//! Only HTTP/1 is spoken: no client asks a plaintext proxy for anything else. Within a tunnel it may be HTTP/2.
//!
//! Source: envoyproxy/envoy `source/common/http/http1/codec_impl.cc`, `ServerConnectionImpl::handlePath`.

use std::collections::BTreeSet;

use egress_filter::contract;
use egress_policy::DownstreamProtocol;
use serde_json::{Map, Value, json};

use super::chain::{Chain, Filter, Listener};
use super::guard;
use super::http::{self, HttpSettings};
use super::message::{extension, set};
use super::options::Options;
use super::rendering::Rendering;
use super::{limits, upstream_proxy};

/// The name of the listener, and what `ready` calls it.
pub const NAME: &str = "forward-proxy";

/// Renders the listeners, if there is to be a forward proxy.
pub(super) fn listeners(rendering: &Rendering<'_>) -> Vec<Listener> {
    let Some(address) = rendering.options.forward_proxy else {
        return Vec::new();
    };
    let guarded = guarded(rendering);
    let settings = HttpSettings {
        codec: Some("HTTP1"),
        upgrades: &["CONNECT"],
        routes_first: tunnels(&guarded),
        filters_first: vec![tell_target(rendering.options)],
        guarded,
        ..requests(NAME)
    };
    let address = json!({"socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    }});
    vec![
        listener(NAME, ("address", address), settings, rendering),
        listener(
            contract::WITHIN,
            ("internal_listener", json!({})),
            requests(contract::WITHIN),
            rendering,
        ),
    ]
}

fn requests(name: &str) -> HttpSettings {
    HttpSettings {
        port: None,
        name: name.to_owned(),
        routes_name: name.to_owned(),
        codec: None,
        upgrades: &[],
        routes_first: Vec::new(),
        // They are for us (RFC 9110, 11.7.2), and would tell the server a password.
        headers_removed: &["proxy-authorization", "proxy-connection"],
        filters_first: Vec::new(),
        guarded: BTreeSet::new(),
    }
}

fn listener(
    name: &str,
    (kind, place): (&str, Value),
    settings: HttpSettings,
    rendering: &Rendering<'_>,
) -> Listener {
    Listener {
        name: name.to_owned(),
        fields: Map::from_iter([
            (kind.to_owned(), place),
            ("traffic_direction".to_owned(), json!("OUTBOUND")),
        ]),
        chains: vec![Chain {
            name: Some("http".to_owned()),
            matches: None,
            filters: vec![Filter::Http(http::connection_manager(settings, rendering))],
        }],
    }
}

/// Renders what tells the listener within which host and port a tunnel is for.
fn tell_target(options: &Options) -> Value {
    // Before 1.38 connections cannot be told apart by it. One that another tunnel asked for carries nothing then: its
    // requests are for another host.
    let factory = match options.version < upstream_proxy::OLDEST_WITH_PROXY {
        true => "envoy.string",
        false => "envoy.hashable_string",
    };
    extension(
        "envoy.filters.http.set_filter_state",
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        json!({"on_request_headers": [{
            "object_key": contract::TARGET_STATE,
            "factory_key": factory,
            "format_string": {
                "text_format_source": {
                    "inline_string": format!("%FILTER_STATE({}:PLAIN)%", contract::WITHIN_STATE),
                },
                "omit_empty_values": true,
            },
            "skip_if_empty": true,
            "shared_with_upstream": "ONCE",
        }]}),
    )
}

/// Renders the cluster that leads to the listener within.
pub(super) fn cluster(options: &Options) -> Option<Value> {
    options.forward_proxy?;
    let name = contract::WITHIN;
    let mut fields = Map::from_iter([
        ("name".to_owned(), json!(name)),
        (
            "circuit_breakers".to_owned(),
            limits::circuit_breakers(None, None, options),
        ),
    ]);
    fields.extend(upstream_proxy::endpoints_within(name, name));
    let socket = extension(
        "envoy.transport_sockets.raw_buffer",
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
        json!({}),
    );
    fields.insert(
        "transport_socket".to_owned(),
        upstream_proxy::through(socket),
    );
    Some(Value::Object(fields))
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
