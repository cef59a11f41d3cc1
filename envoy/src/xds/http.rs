//! What reads the requests of a listener, and the routes that they may take.

use std::collections::{BTreeMap, BTreeSet};

use egress_filter::{FilterKind, PluginConfig, Variants, contract};
use egress_policy::{Arrival, Cluster, HashKey, OutboundMode, PolicyTable, PortNumber, Service};
use serde_json::{Map, Value, json};

use super::access_log::{Metadata, access_log};
use super::chain::listener_name;
use super::dns::{self, Cached};
use super::message::{duration, extension, set, set_some};
use super::options::Options;
use super::plugin::{plugin, plugin_config};
use super::{forward_proxy, guard, upgrade, upstream_proxy};

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
        let (cluster, hash) = (service.cluster, hash_policy(service.cluster));
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
        let cache = dns::cache(Cached::Public, table, options);
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

/// Returns what a cluster's requests are hashed by, for the routes that lead to it.
fn hash_policy(cluster: &Cluster) -> Option<Value> {
    let hash = cluster.load_balancer.as_ref()?.consistent_hash.as_ref()?;
    let policy = match hash.key.as_ref()? {
        HashKey::Header(name) => json!({"header": {"header_name": name}}),
        HashKey::SourceIp => json!({"connection_properties": {"source_ip": true}}),
        HashKey::QueryParameter(name) => json!({"query_parameter": {"name": name}}),
        HashKey::Cookie {
            name,
            path,
            ttl,
            attributes,
        } => {
            let mut cookie = Map::new();
            set(&mut cookie, "name", json!(name));
            set_some(
                &mut cookie,
                "path",
                Some(path.as_str()).filter(|path| !path.is_empty()),
            );
            set_some(&mut cookie, "ttl", ttl.map(duration));
            let attributes: Vec<Value> = attributes
                .iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
            set_some(
                &mut cookie,
                "attributes",
                Some(attributes).filter(|list| !list.is_empty()),
            );
            json!({"cookie": cookie})
        }
    };
    Some(json!([policy]))
}
