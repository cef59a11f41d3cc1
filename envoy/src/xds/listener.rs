//! Listeners: one for each service port, requests to the filter, the application's TLS by its SNI.

use std::collections::{BTreeMap, BTreeSet};

use egress_filter::{FilterKind, PluginConfig, Variants, contract};
use egress_policy::{
    Arrival, Cluster, HostPattern, OutboundMode, PolicyTable, PortNumber, Reason, Service,
};
use serde_json::{Map, Value, json};

use super::access_log::{Metadata, access_log};
use super::{
    Capture, Options, capture, cluster, duration, extension, forward_proxy, guard, server_name,
    service_ports, tcp, tunnel, upgrade, upstream_proxy,
};

/// Renders all listeners, in the order of their ports.
pub(super) fn listeners(
    table: &PolicyTable,
    resources: &[Value],
    variants: Variants,
    options: &Options,
) -> Vec<Value> {
    // Once for all ports: it reads the whole table.
    let digest = table.digest().to_string();
    let plugins = tcp::Plugins::new(table, &digest, resources, variants, options);
    let forward_proxy = forward_proxy::listener(table, &digest, resources, variants, options);
    let mut listeners = Vec::new();
    for (port, arrivals) in service_ports(table) {
        let manager = arrivals
            .contains(&Arrival::Http)
            .then(|| connection_manager(Some(port), table, &digest, resources, variants, options));
        let service = Port {
            port,
            arrivals,
            manager,
            variants,
        };
        if options.listens_on(port) {
            listeners.push(service.listener(None, table, &plugins, options));
        }
        if let Some(capture) = &options.capture {
            listeners.push(service.listener(Some(capture), table, &plugins, options));
        }
    }
    listeners.extend(capture::listener(table, options));
    listeners.extend(forward_proxy);
    listeners.extend(upstream_proxy::listener(options));
    listeners.extend(tcp::vip_listeners(&plugins));
    listeners
}

/// A service port, and what its listeners have in common.
struct Port {
    port: PortNumber,
    arrivals: Vec<Arrival>,
    /// What reads requests, where any come.
    manager: Option<Value>,
    variants: Variants,
}

impl Port {
    /// Renders a listener: the one that applications connect to, or the one that captured connections are handed to.
    fn listener(
        &self,
        capture: Option<&Capture>,
        table: &PolicyTable,
        plugins: &tcp::Plugins<'_>,
        options: &Options,
    ) -> Value {
        let (port, arrivals) = (self.port, &self.arrivals);
        let has_tls = arrivals.contains(&Arrival::Tls);
        let mut chains = if has_tls {
            tls_chains(port, table, self.variants, options)
        } else {
            Vec::new()
        };
        if let Some(manager) = &self.manager {
            let matches = if has_tls {
                json!({"transport_protocol": "raw_buffer"})
            } else {
                json!({})
            };
            chains
                .push(json!({"name": "http", "filter_chain_match": matches, "filters": [manager]}));
        }
        if arrivals.contains(&Arrival::Tcp) {
            chains.extend(tcp::chains(port, arrivals, capture.is_some(), plugins));
        }
        // Chains that match addresses too have one way of matching.
        let by_name = capture.is_none() && !arrivals.contains(&Arrival::Tcp);
        let matcher = by_name.then(|| server_name::matcher(&mut chains)).flatten();
        let mut fields = match capture {
            Some(capture) => {
                capture::add_rest(&mut chains, table, options);
                capture::place(port, capture)
            }
            None => place(port, options),
        };
        fields.extend([
            ("traffic_direction".to_owned(), json!("OUTBOUND")),
            ("filter_chains".to_owned(), json!(chains)),
            // Who sends what no chain takes is closed; this is where that is written down.
            (
                "access_log".to_owned(),
                json!([refused_log(unled(capture.is_some() && !has_tls), options)]),
            ),
        ]);
        fields.extend(matcher.map(|matcher| ("filter_chain_matcher".to_owned(), matcher)));
        if has_tls {
            let inspector = extension(
                "envoy.filters.listener.tls_inspector",
                "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
                json!({}),
            );
            fields.insert("listener_filters".to_owned(), json!([inspector]));
        }
        Value::Object(fields)
    }
}

/// Renders the name and the place of the listener that applications connect to.
fn place(port: PortNumber, options: &Options) -> Map<String, Value> {
    let address = json!({"socket_address": {
        "address": options.listen,
        "port_value": options.listening_port(port),
    }});
    Map::from_iter([
        ("name".to_owned(), json!(listener_name(port))),
        ("address".to_owned(), address),
    ])
}

/// The name of a service port's listener.
pub(crate) fn listener_name(port: PortNumber) -> String {
    format!("outbound_{port}")
}

/// Says why no chain took a connection: it has an SNI that nobody has, or none at all; or it has an address that
/// nobody has.
pub(super) fn unled(by_address: bool) -> &'static str {
    if by_address {
        "unknown_host"
    } else {
        "%CEL(connection.requested_server_name == '' ? 'no_host' : 'unknown_host')%"
    }
}

pub(super) fn refused_log(reason: &str, options: &Options) -> Value {
    let entries = [
        ("action", "reject".to_owned()),
        ("reason", reason.to_owned()),
        ("authority", "%REQUESTED_SERVER_NAME%".to_owned()),
    ];
    let mut log = access_log(&Metadata::Known(&entries), options);
    if let Some(fields) = log.as_object_mut() {
        fields.insert(
            "filter".to_owned(),
            json!({"response_flag_filter": {"flags": ["NR"]}}),
        );
    }
    log
}

/// What hosts that share a chain have in common: target port, cluster, and the address dialled in its place.
type Alike<'t> = (u16, &'t str, Option<(&'t str, u16)>);

/// Renders the application's own TLS: a chain for all hosts that differ in nothing but their name.
fn tls_chains(
    port: PortNumber,
    table: &PolicyTable,
    variants: Variants,
    options: &Options,
) -> Vec<Value> {
    let mut groups = BTreeMap::<Alike<'_>, Vec<Service<'_>>>::new();
    for service in table.services().filter(|service| {
        service.port == port && service.arrival == Arrival::Tls && service.subset.is_none()
    }) {
        let pinned = service
            .connect_to
            .map(|(address, port)| (address, port.get()));
        let key = (service.target.get(), service.cluster.name.as_str(), pinned);
        groups.entry(key).or_default().push(service);
    }
    let mut chains = Vec::new();
    for (at, ((target, cluster, pinned), services)) in groups.into_iter().enumerate() {
        let tunnelled = services.first().map(|service| service.cluster);
        let tunnelled = tunnelled.filter(|cluster| cluster.tunnel.is_some());
        let variant = tunnelled.and_then(|cluster| super::variants::named(variants, cluster));
        let cluster = variant.as_deref().unwrap_or(cluster);
        let dynamic = services
            .iter()
            .all(|service| service.cluster.endpoints == egress_policy::Endpoints::OfTheRequest);
        let mut filters = Vec::new();
        let guarded = services
            .iter()
            .any(|service| guard::by_filters(service.cluster, options));
        // They share a cluster, and so its DNS cache.
        let names = services
            .first()
            .map(|service| cluster::Cached::of(service.cluster));
        if options.upstream_proxy.is_some() {
            filters.push(upstream_proxy::network_filter(target, pinned));
        } else if let Some(names) = names.filter(|_| dynamic) {
            // Before the forward proxy, which looks up the address that is pinned and not the SNI.
            filters.extend(pinned.map(|(address, port)| pin(address, port)));
            filters.push(extension(
                "envoy.filters.network.sni_dynamic_forward_proxy",
                "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
                json!({
                    "port_value": target,
                    "dns_cache_config": cluster::dns_cache(names, table, options),
                    "save_upstream_address": guarded,
                }),
            ));
        }
        if guarded {
            filters.push(guard::network_filter());
        }
        let log = access_log(
            &Metadata::Known(&passthrough_entries(&services, target, cluster)),
            options,
        );
        let mut proxy =
            json!({"stat_prefix": listener_name(port), "cluster": cluster, "access_log": [log]});
        if let Some(service) = services.first() {
            limit(&mut proxy, service.cluster);
            tunnel::through(&mut proxy, service.cluster);
        }
        if guarded {
            guard::connect_later(&mut proxy, options);
        }
        filters.push(extension(
            "envoy.filters.network.tcp_proxy",
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            proxy,
        ));
        let names: Vec<String> = services
            .iter()
            .filter_map(|service| server_name(service.host))
            .collect();
        chains.push(json!({
            "name": format!("tls_{at}"),
            "filter_chain_match": {"transport_protocol": "tls", "server_names": names},
            "filters": filters,
        }));
    }
    let refused = table
        .refused()
        .filter(|refused| refused.port == port && refused.arrival == Arrival::Tls);
    let mut by_reason = BTreeMap::<Reason, Vec<String>>::new();
    for refused in refused {
        let names = by_reason.entry(refused.reason).or_default();
        names.extend(server_name(refused.host));
    }
    for (reason, names) in by_reason {
        chains.push(json!({
            "name": format!("tls_{reason}"),
            "filter_chain_match": {"transport_protocol": "tls", "server_names": names},
            "filters": [refused_connection(port, reason, options)],
        }));
    }
    chains
}

/// Renders what closes a connection to a host that the table refuses, and writes down why.
pub(super) fn refused_connection(port: PortNumber, reason: Reason, options: &Options) -> Value {
    let entries = [
        ("action", "reject".to_owned()),
        ("reason", reason.to_string()),
        ("authority", "%REQUESTED_SERVER_NAME%".to_owned()),
    ];
    extension(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({
            "stat_prefix": listener_name(port),
            "cluster": tcp::UNDECIDED,
            "access_log": [access_log(&Metadata::Known(&entries), options)],
        }),
    )
}

/// Adds to a `tcp_proxy` how long its connections may be idle, and live.
pub(super) fn limit(proxy: &mut Value, cluster: &Cluster) {
    let pool = cluster.connection_pool.as_deref();
    let (Some(pool), Some(fields)) = (pool, proxy.as_object_mut()) else {
        return;
    };
    // Zero is never, for Envoy as for Istio.
    let limits = [
        ("idle_timeout", pool.tcp.idle_timeout),
        (
            "max_downstream_connection_duration",
            pool.tcp.max_connection_duration,
        ),
    ];
    for (name, time) in limits {
        fields.extend(time.map(|time| (name.to_owned(), json!(duration(time)))));
    }
}

/// Renders a pattern as Envoy's `server_names` take it.
fn server_name(host: &HostPattern) -> Option<String> {
    match host {
        HostPattern::Exact(name) => Some(name.as_str().to_owned()),
        HostPattern::Suffix(suffix) if suffix.starts_with('.') => Some(format!("*{suffix}")),
        // The engine refuses these for TLS ports: the listener could not tell them apart.
        HostPattern::Suffix(_) | HostPattern::Any => None,
    }
}

/// Renders a detour to an address, for a chain whose cluster goes where the connection says.
fn pin(address: &str, port: u16) -> Value {
    let state = |key: &str, value: String| json!({"object_key": key, "format_string": {"text_format_source": {"inline_string": value}}});
    extension(
        "envoy.filters.network.set_filter_state",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        json!({"on_new_connection": [
            state(contract::DYNAMIC_HOST_STATE, address.to_owned()),
            state(contract::DYNAMIC_PORT_STATE, port.to_string()),
        ]}),
    )
}

/// Says what the log says of a connection that is passed through. Names are those of the ClientHello; the transport
/// socket and its mode are those towards the proxy, where a tunnel leads through one.
fn passthrough_entries(
    services: &[Service<'_>],
    target: u16,
    cluster: &str,
) -> Vec<(&'static str, String)> {
    let first = services.first().map(|service| service.cluster);
    let socket = first.map_or("-", contract::transport_socket);
    let tunnel = first.and_then(|cluster| cluster.tunnel.as_ref());
    let mut entries = vec![
        ("action", "passthrough".to_owned()),
        ("cluster", cluster.to_owned()),
        ("transport_socket", socket.to_owned()),
        ("sni", "%REQUESTED_SERVER_NAME%".to_owned()),
        (
            "target",
            match tunnel {
                Some(tunnel) => tunnel.authority(),
                None => format!("%REQUESTED_SERVER_NAME%:{target}"),
            },
        ),
    ];
    entries.extend(tunnel.map(|_| ("reason", tunnel::reason())));
    let mode = first.and_then(|cluster| Some(cluster.tls.as_ref()?.mode.as_str().to_owned()));
    entries.extend(mode.map(|mode| ("tls_mode", mode)));
    // A chain that serves one entry alone can name it; one that serves many cannot tell which.
    let one = |name: fn(&Service<'_>) -> Option<String>| {
        let first = services.first().and_then(name)?;
        services
            .iter()
            .all(|service| name(service).as_ref() == Some(&first))
            .then_some(first)
    };
    entries
        .extend(one(|s| Some(s.service_entry?.qualified())).map(|entry| ("service_entry", entry)));
    entries.extend(one(|s| Some(s.rule?.qualified())).map(|rule| ("rule", rule)));
    entries
}

/// Renders a route for each cluster whose requests are hashed, or whose addresses are guarded: both are for a
/// route to say. With `every` each cluster has one.
fn particular(
    port: Option<PortNumber>,
    table: &PolicyTable,
    outbound: OutboundMode,
    every: bool,
    variants: Variants,
    options: &Options,
) -> Vec<Value> {
    let mut routes = BTreeMap::new();
    let mut add = |cluster: &str, tls: bool, hash: Option<Value>, guarded: bool| {
        let (name, header) = match tls {
            true => ("originate", contract::ORIGINATE_HEADER),
            false => ("forward", contract::FORWARD_HEADER),
        };
        let mut route = by_header(name, header);
        if let Some(matches) = route.pointer_mut("/match/headers") {
            *matches = json!([{"name": header, "string_match": {"exact": cluster}}]);
        }
        if let (Some(hash), Some(Value::Object(fields))) = (hash, route.pointer_mut("/route")) {
            fields.insert("hash_policy".to_owned(), hash);
        }
        if guarded {
            guard_route(&mut route);
        }
        routes.insert(
            cluster.to_owned(),
            if tls { with_https(route) } else { route },
        );
    };
    for service in all_http_services(port, table, options) {
        let (cluster, hash) = (service.cluster, cluster::hash_policy(service.cluster));
        let guarded = guard::by_filters(cluster, options);
        if every || hash.is_some() || guarded {
            let name = super::variants::named(variants, cluster);
            add(
                name.as_deref().unwrap_or(cluster.name.as_str()),
                cluster.tls.is_some(),
                hash,
                guarded,
            );
        }
    }
    if outbound == OutboundMode::AllowAny {
        let guarded = !guard::drops_addresses(options);
        add(contract::PASSTHROUGH_CLUSTER, false, None, guarded);
    }
    routes.into_values().collect()
}

/// As [`http_services`], for all workloads that there may be.
fn all_http_services<'t>(
    port: Option<PortNumber>,
    table: &'t PolicyTable,
    options: &'t Options,
) -> impl Iterator<Item = Service<'t>> {
    super::variants::tables(table, options).flat_map(move |table| http_services(port, table))
}

/// Returns what HTTP requests of a port may reach, or of all ports. Subsets are not among it: no request can
/// name one.
fn http_services(
    port: Option<PortNumber>,
    table: &PolicyTable,
) -> impl Iterator<Item = Service<'_>> {
    let http = move |service: &Service<'_>| {
        port.is_none_or(|port| service.port == port) && service.arrival == Arrival::Http
    };
    table
        .services()
        .filter(move |service| http(service) && service.subset.is_none())
}

pub(super) fn guard_route(route: &mut Value) {
    if let Some(fields) = route.as_object_mut() {
        fields.insert("typed_per_filter_config".to_owned(), guard::route());
    }
}

/// Returns the names of the clusters whose addresses filters must look at.
fn guarded(
    port: Option<PortNumber>,
    table: &PolicyTable,
    variants: Variants,
    options: &Options,
) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    if guard::drops_addresses(options) {
        return all;
    }
    for service in all_http_services(port, table, options) {
        if guard::is_on(service.cluster, options) {
            let name = super::variants::named(variants, service.cluster);
            all.insert(name.unwrap_or_else(|| service.cluster.name.to_string()));
        }
    }
    if port.is_none() {
        all.extend(forward_proxy::guarded(table, options).map(|it| it.name.to_string()));
    }
    if table.outbound() == OutboundMode::AllowAny {
        all.insert(contract::PASSTHROUGH_CLUSTER.to_owned());
    }
    all
}

/// Renders what reads the requests of a port; without a port, those of a forward proxy, which name theirs.
pub(super) fn connection_manager(
    port: Option<PortNumber>,
    table: &PolicyTable,
    digest: &str,
    resources: &[Value],
    variants: Variants,
    options: &Options,
) -> Value {
    let default = default_cluster(port, table, options);
    let plugin = PluginConfig {
        forward_proxy: port.is_none(),
        upstream_proxy: options.upstream_proxy.is_some(),
        default_cluster: default.map(|cluster| cluster.name.as_str()),
        ..plugin(
            port,
            FilterKind::Http,
            table,
            digest,
            resources,
            variants,
            options,
        )
    };
    let wasm = extension(
        contract::FILTER_NAME,
        "envoy.extensions.filters.http.wasm.v3.Wasm",
        plugin_config(&plugin, options),
    );
    let router = extension(
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
        json!({}),
    );
    let prefix = |prefix: &str| json!({"remove_on_match": {"key_matcher": {"prefix": prefix}}});
    let stripping = extension(
        "envoy.http.early_header_mutation.header_mutation",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        json!({"mutations": [
            prefix(contract::HEADER_PREFIX),
            prefix("x-envoy-"),
            // Comes with an offer to upgrade, which is not taken up, and so ends here (RFC 9110, 7.6.1).
            {"remove": "http2-settings"},
        ]}),
    );
    let mut filters = vec![wasm];
    if variants == Variants::Sockets {
        filters.push(super::variants::http_filter());
    }
    let guarded = guarded(port, table, variants, options);
    let name = port.map_or_else(|| forward_proxy::NAME.to_owned(), listener_name);
    if options.upstream_proxy.is_some() {
        filters.push(upstream_proxy::http_filter());
    }
    if !guarded.is_empty() {
        let cache = cluster::dns_cache(cluster::Cached::Public, table, options);
        filters.extend(guard::http_filters(&guarded, &cache));
    }
    filters.push(upgrade::http_filter());
    filters.push(router);
    extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": name,
            // What clients send to steer us or Envoy is gone before a route is chosen.
            "early_header_mutation_extensions": [stripping],
            "http_filters": filters,
            "route_config": routes(port, default, table, variants, options),
            "access_log": [access_log(&Metadata::Filter, options)],
            // The server is told `https` where TLS is what it gets.
            "scheme_header_transformation": {"match_upstream": true},
            "server_header_transformation": "PASS_THROUGH",
            "preserve_external_request_id": true,
            "stream_idle_timeout": "0s",
            "upgrade_configs": upgrade::configs(),
            "http_protocol_options": {
                // Applications that need us are old; those that speak 1.0 without a host are refused by name.
                "accept_http_10": true,
                "default_host_for_http_10": "no-host.invalid",
                // Java's HTTP client offers `Upgrade: TLS/1.2` with every plain request; that is no error.
                "ignore_http_11_upgrade": [{"prefix": "TLS/"}],
            },
        }),
    )
}

/// Returns what the filter is told on every listener of rules.
pub(super) fn plugin<'c>(
    port: Option<PortNumber>,
    filter: FilterKind,
    table: &'c PolicyTable,
    digest: &str,
    resources: &'c [Value],
    variants: Variants,
    options: &'c Options,
) -> PluginConfig<'c> {
    PluginConfig {
        digest: digest.to_owned(),
        namespace: &options.proxy.namespace,
        labels: options
            .workloads
            .is_empty()
            .then_some(&options.proxy.labels),
        role: options.proxy.role,
        variants,
        outbound: table.outbound(),
        authority: options.authority,
        listener_port: port,
        forward_proxy: false,
        upstream_proxy: false,
        default_cluster: None,
        headers_stripped: true,
        connect_to: table.connect_tos(),
        loopback_vips: options.loopback_vips,
        allow_plaintext: table.allow_plaintext(),
        mesh: options.mesh.told.as_ref(),
        filter,
        metadata: options.format,
        resources,
    }
}

/// Renders how Envoy loads the filter, as an HTTP filter or as a network filter.
pub(super) fn plugin_config(plugin: &PluginConfig<'_>, options: &Options) -> Value {
    json!({"config": {
        "name": contract::FILTER_NAME,
        "root_id": contract::FILTER_NAME,
        // A filter that crashed refuses requests until it is back; it never lets one through.
        "failure_policy": "FAIL_RELOAD",
        "vm_config": {
            "vm_id": contract::FILTER_NAME,
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": options.wasm}},
        },
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": plugin.to_json(),
        },
    }})
}

/// Returns the shared cluster with TLS that most hosts of the port need: the one that needs no header.
///
/// Filters that guard a cluster know it by the header, so it is not one of those.
fn default_cluster<'t>(
    port: Option<PortNumber>,
    table: &'t PolicyTable,
    options: &Options,
) -> Option<&'t Cluster> {
    let mut counts = BTreeMap::<&str, (usize, &Cluster)>::new();
    for service in http_services(port, table) {
        if service.cluster.own.is_none()
            && service.cluster.tls.is_some()
            && !guard::by_filters(service.cluster, options)
        {
            counts
                .entry(service.cluster.name.as_str())
                .or_insert((0, service.cluster))
                .0 += 1;
        }
    }
    counts
        .into_values()
        .max_by_key(|(count, _)| *count)
        .map(|(_, cluster)| cluster)
}

fn routes(
    port: Option<PortNumber>,
    default: Option<&Cluster>,
    table: &PolicyTable,
    variants: Variants,
    options: &Options,
) -> Value {
    let mut routes = particular(port, table, table.outbound(), false, variants, options);
    routes.push(with_https(by_header(
        "originate",
        contract::ORIGINATE_HEADER,
    )));
    routes.push(by_header("forward", contract::FORWARD_HEADER));
    routes.push(match default {
        Some(cluster) => with_https(json!({
            "name": "originate",
            "stat_prefix": "originate",
            "match": {"prefix": "/"},
            "route": {"cluster": cluster.name.as_str(), "timeout": "0s", "retry_policy": retries()},
        })),
        // Nothing is reached without a word of the filter.
        None => json!({
            "name": "block_all",
            "match": {"prefix": "/"},
            "direct_response": {"status": 502},
        }),
    });
    json!({
        "name": port.map_or_else(|| forward_proxy::NAME.to_owned(), |port| port.to_string()),
        "virtual_hosts": [{"name": "egress", "domains": ["*"], "routes": upgrade::routes(routes)}],
    })
}

/// Renders a route for each cluster of a port that is ours, where Envoy may let in headers from clients: none of them
/// leads anywhere else.
pub(super) fn routes_of_ours(
    port: PortNumber,
    table: &PolicyTable,
    variants: Variants,
    options: &Options,
) -> Vec<Value> {
    // Hosts that are left alone are led by the listeners' owner.
    let outbound = OutboundMode::RegistryOnly;
    particular(Some(port), table, outbound, true, variants, options)
}

/// Renders a route to the cluster that a header names.
fn by_header(name: &str, header: &str) -> Value {
    json!({
        "name": name,
        "stat_prefix": name,
        "match": {"prefix": "/", "headers": [{"name": header, "present_match": true}]},
        "route": {"cluster_header": header, "timeout": "0s", "retry_policy": retries()},
        "request_headers_to_remove": [header],
    })
}

/// Only what the server says it has not looked at: trying a refused handshake again would change nothing.
fn retries() -> Value {
    json!({"retry_on": "refused-stream", "num_retries": 2})
}

/// Tells the server that it was TLS.
fn with_https(mut route: Value) -> Value {
    let https = json!([{
        "header": {"key": "x-forwarded-proto", "value": "https"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }]);
    if let Some(fields) = route.as_object_mut() {
        fields.insert("request_headers_to_add".to_owned(), https);
    }
    route
}
