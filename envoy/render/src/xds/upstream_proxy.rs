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
//! Nothing goes around the proxy but what `--no-proxy` names, requests without TLS included: they take CONNECT too,
//! which many proxies allow to port 443 only. A host that has a cluster of its own needs no listener within then. Hosts
//! that share one do: there it looks the target up, and connects to it in place of the proxy.
//!
//! If the proxy gives no tunnel, the connection within Envoy is closed, which says nothing of the proxy. So our filter
//! stands in the listener too, and tells those that wait for the connection: see `tunnels` in `egress-filter`.
//!
//! With TLS to the proxy itself, the proxy's name is sent and verified there, by the system's authorities. This is
//! independent of the server's name.
//!
//! Source: envoyproxy/envoy `docs/root/configuration/other_features/internal_listener.rst`, and
//! `api/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto`, `TunnelingConfig`.

use std::net::IpAddr;
use std::sync::Arc;

use egress_filter::contract;
use egress_policy::{Cluster, Endpoints, HostName};
use serde_json::{Map, Value, json};

use super::access_log::{Metadata, access_log_of};
use super::chain::{Chain, Filter, Listener, tcp_proxy};
use super::dns::{self, Cached};
use super::guard::DROPS_ADDRESSES;
use super::message::extension;
use super::options::{Options, Version};
use super::plugin::Plugin;
use super::proxy_url::UpstreamProxy;
use super::rendering::Rendering;
use super::{limits, tunnel};

/// The name of the listener, of the proxy's cluster and of statistics.
pub const NAME: &str = "upstream-proxy";

/// The version from which connections can be told apart by what the filter named, so that no host gets the tunnel
/// of another: before it, there is no `envoy.hashable_string`.
pub const OLDEST_WITH_PROXY: Version = Version {
    major: 1,
    minor: 38,
};

/// The version from which hosts may be excepted: Envoy's DNS cache refuses private addresses for names that clients
/// choose, and nothing else here does.
pub const OLDEST_WITH_EXCEPTIONS: Version = DROPS_ADDRESSES;

/// The chains of the listener within: to the proxy, and around it to hosts of the rules and to those that clients choose.
const CHAINS: [&str; 3] = [NAME, "no-proxy", "no-proxy-public"];

/// Whether a cluster's connections go to the listener within, which leads to the proxy, or around it where hosts share
/// the cluster.
pub(super) fn carries(cluster: &Cluster, options: &Options) -> bool {
    let Endpoints::Listed { endpoints, .. } = &cluster.endpoints else {
        return options.upstream_proxy.is_some();
    };
    let host = cluster.own.as_ref().and_then(|(host, _)| host.exact());
    let excepted = host.is_some_and(|host| {
        let mut endpoints = endpoints.iter();
        endpoints.all(|endpoint| options.no_proxy.excepts(host.as_str(), endpoint.port))
    });
    options.upstream_proxy.is_some() && !excepted
}

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
        // What keeps connections apart stands beside it: see `login`.
        json!({"on_request_headers": [target(&named_by_the_filter(), "envoy.string")]}),
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

/// The word for the target that our filter named.
pub(super) fn named_by_the_filter() -> String {
    format!("%FILTER_STATE({}:PLAIN)%", contract::TUNNEL_STATE)
}

fn on_connection(format: &str) -> Value {
    extension(
        "envoy.filters.network.set_filter_state",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        json!({"on_new_connection": [target(format, "envoy.hashable_string")]}),
    )
}

fn target(format: &str, factory: &str) -> Value {
    json!({
        "object_key": contract::UPSTREAM_TUNNEL_STATE,
        "factory_key": factory,
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
pub(super) fn listener(rendering: &Rendering<'_>) -> Option<Listener> {
    let options = rendering.options;
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
    let chain = |name: &str, filters| Chain {
        name: (!options.no_proxy.is_empty()).then(|| name.to_owned()),
        matches: None,
        filters,
    };
    let log = failures(NAME, REASON.to_owned(), options);
    let ours = Filter::Plugin(Arc::new(Plugin::of_tunnels(options)));
    let ask = tcp_proxy(NAME, NAME, log, more).into();
    let mut chains = vec![chain(NAME, vec![ours, ask])];
    let mut fields = Map::from_iter([("internal_listener".to_owned(), json!({}))]);
    for (name, names) in around(options) {
        let filters = directly(name, names, rendering);
        chains.push(chain(name, filters.into()));
    }
    if !options.no_proxy.is_empty() {
        fields.insert("filter_chain_matcher".to_owned(), chosen(rendering));
    }
    Some(Listener {
        name: NAME.to_owned(),
        fields,
        chains,
    })
}

/// Returns the names of the chains and clusters around the proxy, and whose names each looks up.
pub(super) fn around(options: &Options) -> impl Iterator<Item = (&'static str, Cached)> {
    let [_, listed, public] = CHAINS;
    let both = [(listed, Cached::Listed), (public, Cached::Public)];
    let wanted = options.upstream_proxy.is_some() && !options.no_proxy.is_empty();
    both.into_iter().filter(move |_| wanted)
}

/// Renders the filters of a chain around the proxy: the target is looked up, and connected to.
fn directly(name: &'static str, names: Cached, rendering: &Rendering<'_>) -> [Filter; 3] {
    let options = rendering.options;
    let host = json!({
        "object_key": contract::DYNAMIC_HOST_STATE,
        "format_string": {"text_format_source": {
            "inline_string": format!("%FILTER_STATE({}:PLAIN)%", contract::UPSTREAM_TUNNEL_STATE),
        }},
    });
    let state = extension(
        "envoy.filters.network.set_filter_state",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        json!({"on_new_connection": [host]}),
    );
    let forward = extension(
        "envoy.filters.network.sni_dynamic_forward_proxy",
        "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
        // The port is in what is looked up.
        json!({"port_value": 443, "dns_cache_config": dns::cache(names, rendering)}),
    );
    let log = failures(name, tunnel::reason(), options);
    let idle = ("idle_timeout".to_owned(), json!("0s"));
    [
        state.into(),
        forward.into(),
        tcp_proxy(name, name, log, [idle]).into(),
    ]
}

/// Renders which chain a connection takes, by its target. Names that rules list may have any address; those that clients
/// choose may not, unless their wildcard is of the mesh.
fn chosen(rendering: &Rendering<'_>) -> Value {
    let (table, no_proxy) = (rendering.table, &rendering.options.no_proxy);
    let [proxy, listed, public] = CHAINS;
    let to = |chain: &str| {
        let value =
            json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": chain});
        json!({"action": {"name": chain, "typed_config": value}})
    };
    let input = extension(
        "envoy.matching.inputs.filter_state",
        "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput",
        json!({"key": contract::UPSTREAM_TUNNEL_STATE}),
    );
    let mut exact = Map::new();
    let mut internal = Vec::new();
    for service in table.services() {
        let host = service.host.exact().map(HostName::as_str);
        let dialled = service
            .connect_to
            .or(host.map(|host| (host, service.target)));
        match dialled {
            Some((host, port)) if no_proxy.excepts(host, port) => {
                exact.insert(format!("{}:{port}", bracketed(host)), to(listed));
            }
            Some(_) => {}
            None if Cached::of(service.cluster) == Cached::Internal => {
                let suffix = service.host.to_string().replace('.', "\\.");
                internal.push(format!("{}:{}", suffix.replace('*', ".+"), service.target));
            }
            None => {}
        }
    }
    let is = |pattern: &str| {
        let regex = json!({"safe_regex": {"google_re2": {}, "regex": pattern}});
        json!({"single_predicate": {"input": input, "value_match": regex}})
    };
    let excepted = is(&no_proxy.pattern());
    let mut rest = Vec::new();
    if !internal.is_empty() {
        let both = [excepted.clone(), is(&internal.join("|"))];
        rest.push(
            json!({"predicate": {"and_matcher": {"predicate": both}}, "on_match": to(listed)}),
        );
    }
    rest.push(json!({"predicate": excepted, "on_match": to(public)}));
    let rest = json!({"matcher_list": {"matchers": rest}, "on_no_match": to(proxy)});
    match exact.is_empty() {
        true => rest,
        false => json!({
            "matcher_tree": {"input": input, "exact_match_map": {"map": exact}},
            "on_no_match": {"matcher": rest},
        }),
    }
}

fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

/// Why the proxy gave no tunnel, in the words of `Failure::of_proxy`. The transport's failure reason beside it has the status.
///
/// Source: envoyproxy/envoy `source/common/tcp_proxy/upstream.cc`, `HttpUpstream`.
const REASON: &str = "%CEL(upstream.transport_failure_reason.contains('tunnel_response:407') ? 'proxy_auth_required' : \
    upstream.transport_failure_reason.contains('tunnel_response:') ? 'proxy_refused' : 'proxy_unreachable')%";

/// Renders the log of tunnels that could not be opened: to the connection of a cluster they are all alike.
fn failures(cluster: &str, reason: String, options: &Options) -> Value {
    let state = contract::UPSTREAM_TUNNEL_STATE;
    let entries = [
        ("reason", reason),
        ("cluster", cluster.to_owned()),
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
