//! The way out through a proxy: CONNECT to the proxy, then TLS to the server inside.
//!
//! Every cluster leads to one listener within Envoy, `upstream-proxy`. It asks the proxy for a tunnel to the host and
//! port that the filter named, and carries bytes. So the TLS of a cluster is the server's: its SNI, its names, its
//! client certificate. The proxy sees the host, the port and what is encrypted. Names are not looked up here; the proxy
//! does that.
//!
//! ```text
//! cluster ── TLS ──► internal listener ── CONNECT host:port ──► proxy ──► server
//! ```
//!
//! Nothing goes around the proxy, requests without TLS included: they take CONNECT too, which many proxies allow
//! to port 443 only.
//!
//! With TLS to the proxy itself, the proxy's name is sent and verified there, by the system's authorities. This is
//! independent of the server's name.
//!
//! Source: envoyproxy/envoy `docs/root/configuration/other_features/internal_listener.rst`, and
//! `api/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto`, `TunnelingConfig`.

use std::net::IpAddr;

use egress_filter::contract;
use serde_json::{Map, Value, json};

use super::access_log::{Metadata, access_log_of};
use super::chain::{Chain, Listener, tcp_proxy};
use super::message::extension;
use super::options::{Options, Version};
use super::proxy_url::UpstreamProxy;
use super::{dns, limits};

/// The name of the listener, of the proxy's cluster and of statistics.
pub const NAME: &str = "upstream-proxy";

/// The version from which connections can be told apart by what the filter named, so that no host gets the tunnel
/// of another: before it, there is no `envoy.hashable_string`.
pub const OLDEST_WITH_PROXY: Version = Version {
    major: 1,
    minor: 38,
};

/// Renders what lets Envoy have listeners within itself.
pub(super) fn bootstrap_extension(options: &Options) -> Option<Value> {
    if options.upstream_proxy.is_none() && options.forward_proxy.is_none() {
        return None;
    }
    Some(extension(
        "envoy.bootstrap.internal_listener",
        "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
        json!({}),
    ))
}

/// Renders the endpoint that every cluster has: the listener within.
pub(super) fn endpoints(name: &str) -> Map<String, Value> {
    endpoints_within(name, NAME)
}

/// Renders the endpoint of a cluster that leads to a listener within.
pub(super) fn endpoints_within(name: &str, listener: &str) -> Map<String, Value> {
    let address =
        json!({"envoy_internal_address": {"server_listener_name": listener, "endpoint_id": name}});
    let endpoint = json!({"endpoint": {"address": address}});
    let mut fields = Map::new();
    fields.insert("type".to_owned(), json!("STATIC"));
    fields.insert(
        "load_assignment".to_owned(),
        json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}),
    );
    fields
}

/// Renders a transport socket that tells the listener within what the filter named.
pub(super) fn through(socket: Value) -> Value {
    extension(
        "envoy.transport_sockets.internal_upstream",
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        json!({"transport_socket": socket}),
    )
}

/// Renders the HTTP filter that lets upstream connections see the target, and be one target's alone.
pub(super) fn http_filter() -> Value {
    extension(
        "envoy.filters.http.set_filter_state",
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        json!({"on_request_headers": [target(&named_by_the_filter())]}),
    )
}

/// Renders the same for connections that the filter leads.
pub(super) fn tcp_filter() -> Value {
    on_connection(&named_by_the_filter())
}

/// Renders the same for a connection that is passed through by its SNI, or to an address given by hand.
pub(super) fn network_filter(port: u16, pinned: Option<(&str, u16)>) -> Value {
    let text = match pinned {
        None => format!("%REQUESTED_SERVER_NAME%:{port}"),
        Some((address, port)) if address.contains(':') => format!("[{address}]:{port}"),
        Some((address, port)) => format!("{address}:{port}"),
    };
    on_connection(&text)
}

fn named_by_the_filter() -> String {
    format!("%FILTER_STATE({}:PLAIN)%", contract::TUNNEL_STATE)
}

fn on_connection(format: &str) -> Value {
    extension(
        "envoy.filters.network.set_filter_state",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        json!({"on_new_connection": [target(format)]}),
    )
}

fn target(format: &str) -> Value {
    json!({
        "object_key": contract::UPSTREAM_TUNNEL_STATE,
        "factory_key": "envoy.hashable_string",
        // What follows CONNECT to the listener within goes to no proxy, and its connection takes no such word there.
        "format_string": {
            "text_format_source": {"inline_string": format},
            "omit_empty_values": true,
        },
        "skip_if_empty": true,
        "shared_with_upstream": "ONCE",
    })
}

/// Renders the listener within, which asks for the tunnels.
pub(super) fn listener(options: &Options) -> Option<Listener> {
    let proxy = options.upstream_proxy.as_ref()?;
    let headers: Vec<Value> = proxy
        .authorization
        .iter()
        .map(|value| json!({"header": {"key": "proxy-authorization", "value": value}}))
        .collect();
    let config = json!({
        "hostname": format!("%FILTER_STATE({}:PLAIN)%", contract::UPSTREAM_TUNNEL_STATE),
        "headers_to_add": headers,
    });
    let more = [
        // How long a connection may be idle is its cluster's to say.
        ("idle_timeout".to_owned(), json!("0s")),
        ("tunneling_config".to_owned(), config),
    ];
    Some(Listener {
        name: NAME.to_owned(),
        fields: Map::from_iter([("internal_listener".to_owned(), json!({}))]),
        chains: vec![Chain {
            name: None,
            matches: None,
            filters: vec![tcp_proxy(NAME, NAME, failures(options), more).into()],
        }],
    })
}

/// Why the proxy gave no tunnel. The transport's failure reason beside it has the status.
///
/// Source: envoyproxy/envoy `source/common/tcp_proxy/upstream.cc`, `HttpUpstream`.
const REASON: &str = "%CEL(upstream.transport_failure_reason.contains('tunnel_response:407') ? 'proxy_auth_required' : \
    upstream.transport_failure_reason.contains('tunnel_response:') ? 'proxy_refused' : 'upstream_proxy')%";

/// Renders the log of tunnels that could not be opened: to the connection of a cluster they are all alike.
fn failures(options: &Options) -> Value {
    let state = contract::UPSTREAM_TUNNEL_STATE;
    let entries = [
        ("reason", REASON.to_owned()),
        ("cluster", NAME.to_owned()),
        ("target", format!("%FILTER_STATE({state}:PLAIN)%")),
    ];
    let flags = ["UF", "UH", "UC", "URX"];
    access_log_of(&flags, &Metadata::Known(&entries), options)
}

/// Renders the cluster of the proxy.
pub(super) fn cluster(options: &Options) -> Option<Value> {
    let proxy = options.upstream_proxy.as_ref()?;
    let address = json!({"socket_address": {"address": proxy.host, "port_value": proxy.port}});
    let mut fields = json!({
        "name": NAME,
        "connect_timeout": limits::CONNECT_TIMEOUT,
        "upstream_connection_options": limits::own_connection_options(),
        "load_assignment": {
            "cluster_name": NAME,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "circuit_breakers": {"thresholds": [{
            "max_connections": u32::MAX, "max_pending_requests": u32::MAX, "max_requests": u32::MAX,
        }]},
    });
    let map = fields.as_object_mut()?;
    let ip = proxy.host.parse::<IpAddr>().is_ok();
    match ip {
        true => map.insert("type".to_owned(), json!("STATIC")),
        false => map.insert("cluster_type".to_owned(), dns::cluster(false, options)),
    };
    if proxy.tls {
        map.insert("transport_socket".to_owned(), tls(proxy, ip, options));
    }
    Some(fields)
}

fn tls(proxy: &UpstreamProxy, ip: bool, options: &Options) -> Value {
    let kind = if ip { "IP_ADDRESS" } else { "DNS" };
    let mut context = json!({"common_tls_context": {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["http/1.1"],
        "validation_context": {
            "trusted_ca": {"filename": options.trust_store},
            "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": proxy.host}}],
        },
    }});
    if let (false, Some(fields)) = (ip, context.as_object_mut()) {
        fields.insert("sni".to_owned(), json!(proxy.host));
    }
    extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        context,
    )
}
