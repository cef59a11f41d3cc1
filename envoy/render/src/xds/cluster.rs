//! Clusters, shared and own.

use std::collections::BTreeMap;
use std::time::Duration;

use egress_filter::contract;
use egress_policy::{
    Cluster, Endpoints, HashRing, LbEndpoint, Note, SimpleBalancer, UpstreamProtocol,
};
use serde_json::{Map, Value, json};

use super::dns::{self, Cached};
use super::limits::{
    CONNECT_TIMEOUT, HEADERS, HEADERS_KB, circuit_breakers, connection_options, keepalive,
    outlier_detection, own_connection_options,
};
use super::message::{duration, extension, set, set_some};
use super::names::{HostCheck, Names};
use super::options::Options;
use super::rendering::Rendering;
use super::transport_socket::transport_socket;
use super::{old_clients, overload, request_urls, upstream_proxy, variants};

/// How long a connection with TLS lives at most, about: what is revoked or replaced is out of use after it.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

const LIFETIME_JITTER: Duration = Duration::from_secs(360);

/// How long a connection takes requests whose cluster looks names up by itself, one for each host. There Envoy gives a
/// new address to new connections only, and lets the old ones be: they must end for a name that moves to be followed.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(30);

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Renders a cluster of the table, under its name or another. If there is more than one, they differ in their
/// transport sockets alone, and the filter chooses.
pub(super) fn cluster(
    clusters: &[&Cluster],
    name: Option<String>,
    rendering: &Rendering<'_>,
) -> Value {
    with_filters(clusters, name, None, rendering)
}

/// Renders a cluster under a name, with HTTP filters between it and its servers.
pub(super) fn filtered(
    cluster: &Cluster,
    name: String,
    filters: Vec<Value>,
    rendering: &Rendering<'_>,
) -> Value {
    with_filters(&[cluster], Some(name), Some(filters), rendering)
}

fn with_filters(
    clusters: &[&Cluster],
    name: Option<String>,
    filters: Option<Vec<Value>>,
    rendering: &Rendering<'_>,
) -> Value {
    let [cluster, ..] = clusters else {
        return Value::Null;
    };
    let options = rendering.options;
    let name = name.unwrap_or_else(|| cluster.name.to_string());
    let mut fields = match &cluster.endpoints {
        _ if upstream_proxy::carries(cluster, options) => upstream_proxy::endpoints(&name),
        Endpoints::OfTheRequest => dynamic(Cached::of(cluster), rendering),
        Endpoints::Listed {
            endpoints,
            fixed,
            one_at_a_time,
        } => {
            let mut fields = listed(&name, endpoints);
            if *fixed {
                set(&mut fields, "type", json!("STATIC"));
            } else {
                set(
                    &mut fields,
                    "cluster_type",
                    dns::cluster(*one_at_a_time, options),
                );
            }
            load_balancer(cluster, &mut fields);
            fields
        }
    };
    let pool = cluster.connection_pool.as_deref();
    set(&mut fields, "name", json!(name));
    let defaults = &options.mesh.clusters;
    let connect_timeout = pool.and_then(|pool| pool.tcp.connect_timeout);
    let connect_timeout = connect_timeout.or(defaults.connect_timeout).map(duration);
    set(
        &mut fields,
        "connect_timeout",
        json!(connect_timeout.as_deref().unwrap_or(CONNECT_TIMEOUT)),
    );
    set(
        &mut fields,
        "circuit_breakers",
        circuit_breakers(pool, Some(cluster), options),
    );
    if !upstream_proxy::carries(cluster, options) && !has_paths(cluster) {
        let keepalive = connection_options(&keepalive(pool, defaults));
        set(&mut fields, "upstream_connection_options", keepalive);
    }
    if cluster.notes.say(Note::PerClient) {
        set(
            &mut fields,
            "connection_pool_per_downstream_connection",
            json!(true),
        );
    }
    if let Some(detection) = &cluster.outlier_detection {
        set(
            &mut fields,
            "outlier_detection",
            outlier_detection(detection),
        );
        let threshold = json!({"healthy_panic_threshold": {"value": detection.min_health_percent}});
        set(&mut fields, "common_lb_config", threshold);
    }
    set_some(
        &mut fields,
        "typed_extension_protocol_options",
        protocol_options(cluster, filters, rendering),
    );
    if let [_] = clusters {
        set_some(
            &mut fields,
            "transport_socket",
            transport_socket(cluster, rendering),
        );
    } else {
        let sockets: Vec<(String, Value)> = clusters
            .iter()
            .filter_map(|it| Some((contract::variant(it), transport_socket(it, rendering)?)))
            .collect();
        set(
            &mut fields,
            "transport_socket_matcher",
            variants::matcher(&sockets),
        );
        let matches: Vec<Value> = sockets
            .into_iter()
            .map(|(name, socket)| json!({"name": name, "match": {}, "transport_socket": socket}))
            .collect();
        set(&mut fields, "transport_socket_matches", json!(matches));
        set(&mut fields, "transport_socket", variants::closed(options));
    }
    Value::Object(fields)
}

/// Renders what changes the headers of requests last of all, where annotations ask for it.
fn telling_filters(cluster: &Cluster, rendering: &Rendering<'_>) -> Option<Vec<Value>> {
    let notes = cluster.notes;
    let mut mutations = Vec::new();
    if notes.say(Note::RequestUrls) {
        mutations.extend(request_urls::mutations(cluster, rendering));
    }
    if notes.say(Note::HidesClients) {
        mutations.push(json!({"remove": "x-forwarded-for"}));
    }
    if notes.say(Note::ForwardedHttp) {
        mutations.push(json!({"append": {
            "header": {"key": "x-forwarded-proto", "value": "http"},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }}));
    }
    let filter = |mutations: Vec<Value>| {
        extension(
            "envoy.filters.http.header_mutation",
            "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
            json!({"mutations": {"request_mutations": mutations}}),
        )
    };
    (!mutations.is_empty()).then(|| vec![filter(mutations)])
}

/// Renders the last of the filters between a cluster and its servers.
pub(super) fn upstream_codec() -> Value {
    extension(
        "envoy.filters.http.upstream_codec",
        "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
        json!({}),
    )
}

/// Whether some of a cluster's servers are sockets of this machine, which know nothing of TCP.
fn has_paths(cluster: &Cluster) -> bool {
    match &cluster.endpoints {
        Endpoints::OfTheRequest => false,
        Endpoints::Listed { endpoints, .. } => endpoints.iter().any(|it| it.path().is_some()),
    }
}

/// Renders the cluster for hosts that are left alone: plain, to wherever the request says.
pub(super) fn passthrough(rendering: &Rendering<'_>) -> Value {
    let mut fields = dynamic(Cached::Public, rendering);
    set(&mut fields, "name", json!(contract::PASSTHROUGH_CLUSTER));
    set(&mut fields, "connect_timeout", json!(CONNECT_TIMEOUT));
    set(
        &mut fields,
        "circuit_breakers",
        circuit_breakers(None, None, rendering.options),
    );
    set(
        &mut fields,
        "upstream_connection_options",
        own_connection_options(),
    );
    let kind = format!("type.googleapis.com/{HTTP_OPTIONS}");
    let http = json!({
        "@type": kind,
        "explicit_http_config": {"http_protocol_options": old_clients::upstream_http1(rendering.options)},
        "common_http_protocol_options": {
            "max_connection_duration": duration(FOLLOWS_WITHIN),
            "max_headers_count": HEADERS,
            "max_response_headers_kb": HEADERS_KB,
        },
    });
    set(
        &mut fields,
        "typed_extension_protocol_options",
        json!({HTTP_OPTIONS: http}),
    );
    Value::Object(fields)
}

/// Renders the cluster of connections that go around the upstream proxy to where they say.
pub(super) fn around(name: &str, names: Cached, rendering: &Rendering<'_>) -> Value {
    let mut fields = dynamic(names, rendering);
    set(&mut fields, "name", json!(name));
    set(&mut fields, "connect_timeout", json!(CONNECT_TIMEOUT));
    let limits = circuit_breakers(None, None, rendering.options);
    set(&mut fields, "circuit_breakers", limits);
    set(
        &mut fields,
        "upstream_connection_options",
        own_connection_options(),
    );
    Value::Object(fields)
}

/// Renders the cluster of captured connections that go where they were meant to go.
pub(super) fn original_destination(name: &str, options: &Options) -> Value {
    json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": CONNECT_TIMEOUT,
        "circuit_breakers": circuit_breakers(None, None, options),
        "upstream_connection_options": own_connection_options(),
    })
}

fn dynamic(names: Cached, rendering: &Rendering<'_>) -> Map<String, Value> {
    let mut config = Map::new();
    let cache = dns::cache(names, rendering);
    set(&mut config, "dns_cache_config", cache);
    // Envoy asks for `auto_sni` and `auto_san_validation`, or for this word. Names are verified all the same, and by
    // type, unless the rule says `insecureSkipVerify`: see `names`.
    set(&mut config, "allow_insecure_cluster_options", json!(true));
    let mut fields = Map::new();
    set(&mut fields, "lb_policy", json!("CLUSTER_PROVIDED"));
    let kind = "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig";
    let config = extension(
        "envoy.clusters.dynamic_forward_proxy",
        kind,
        Value::Object(config),
    );
    set(&mut fields, "cluster_type", config);
    fields
}

/// Renders endpoints, those of one locality together.
fn listed(name: &str, endpoints: &[LbEndpoint]) -> Map<String, Value> {
    let mut localities = BTreeMap::<&str, Vec<Value>>::new();
    for endpoint in endpoints {
        let address = match endpoint.address.strip_prefix("unix://") {
            Some(path) => json!({"pipe": {"path": path}}),
            None => {
                json!({"socket_address": {"address": endpoint.address, "port_value": endpoint.port.get()}})
            }
        };
        let rendered =
            json!({"endpoint": {"address": address}, "load_balancing_weight": endpoint.weight});
        localities
            .entry(endpoint.locality.as_str())
            .or_default()
            .push(rendered);
    }
    let endpoints: Vec<Value> = localities
        .into_iter()
        .map(|(locality, endpoints)| {
            let mut group = Map::new();
            set(&mut group, "lb_endpoints", json!(endpoints));
            let mut names = locality.splitn(3, '/').filter(|name| !name.is_empty());
            let mut parts = Map::new();
            for level in ["region", "zone", "sub_zone"] {
                set_some(&mut parts, level, names.next());
            }
            set_some(
                &mut group,
                "locality",
                Some(Value::Object(parts)).filter(|_| !locality.is_empty()),
            );
            Value::Object(group)
        })
        .collect();
    let mut fields = Map::new();
    set(
        &mut fields,
        "load_assignment",
        json!({"cluster_name": name, "endpoints": endpoints}),
    );
    fields
}

/// Source: istio/istio `pilot/pkg/networking/core/cluster_traffic_policy.go`, `applyLoadBalancer`.
fn load_balancer(cluster: &Cluster, fields: &mut Map<String, Value>) {
    let wanted = cluster.load_balancer.as_deref();
    // A `tcp_proxy` may try an address again that has just failed, and a dead one has the least to do. In turns the
    // next attempt is on the next address.
    let otherwise = match cluster.upstream {
        UpstreamProtocol::Bytes | UpstreamProtocol::PostgreSql => SimpleBalancer::RoundRobin,
        _ => SimpleBalancer::default(),
    };
    let simple = wanted.map_or(otherwise, |wanted| wanted.simple);
    let hash = wanted.and_then(|wanted| wanted.consistent_hash.as_ref());
    let policy = match (hash.map(|hash| hash.ring), simple) {
        (Some(HashRing::Ring(size)), _) => {
            set(
                fields,
                "ring_hash_lb_config",
                json!({"minimum_ring_size": size}),
            );
            "RING_HASH"
        }
        (Some(HashRing::Maglev(size)), _) => {
            set(fields, "maglev_lb_config", json!({"table_size": size}));
            "MAGLEV"
        }
        (None, SimpleBalancer::Random) => "RANDOM",
        (None, SimpleBalancer::RoundRobin) => "ROUND_ROBIN",
        (None, SimpleBalancer::LeastRequest | SimpleBalancer::Passthrough) => "LEAST_REQUEST",
    };
    set(fields, "lb_policy", json!(policy));
    let config = match policy {
        "ROUND_ROBIN" => "round_robin_lb_config",
        "LEAST_REQUEST" => "least_request_lb_config",
        _ => return,
    };
    if let Some(warmup) = wanted.and_then(|wanted| wanted.warmup.as_ref()) {
        let slow_start = json!({
            "slow_start_window": duration(warmup.duration),
            "aggression": {"default_value": warmup.aggression.0, "runtime_key": "egress.warmup.aggression"},
            "min_weight_percent": {"value": warmup.minimum_percent.0},
        });
        set(fields, config, json!({"slow_start_config": slow_start}));
    }
}

/// Renders which HTTP is spoken, and that SNI and verified name are the request's where they are.
fn protocol_options(
    cluster: &Cluster,
    filters: Option<Vec<Value>>,
    rendering: &Rendering<'_>,
) -> Option<Value> {
    let options = rendering.options;
    let pool = cluster.connection_pool.as_deref();
    let http2 = {
        let mut fields = overload::servers();
        set_some(
            &mut fields,
            "max_concurrent_streams",
            pool.and_then(|pool| pool.http.max_concurrent_streams),
        );
        if let Some((interval, timeout)) = pool.and_then(|pool| pool.http.http2_keepalive) {
            let keepalive = json!({"interval": duration(interval), "timeout": duration(timeout)});
            set(&mut fields, "connection_keepalive", keepalive);
        }
        Value::Object(fields)
    };
    let http1 = old_clients::upstream_http1(options);
    let both = || json!({"http_protocol_options": http1, "http2_protocol_options": http2});
    let mut http = match cluster.upstream {
        UpstreamProtocol::Bytes | UpstreamProtocol::PostgreSql => return None,
        UpstreamProtocol::Auto => json!({"auto_config": both()}),
        UpstreamProtocol::AsReceived => json!({"use_downstream_protocol_config": both()}),
        UpstreamProtocol::Http1 => {
            json!({"explicit_http_config": {"http_protocol_options": http1}})
        }
        UpstreamProtocol::Http2 => {
            json!({"explicit_http_config": {"http2_protocol_options": http2}})
        }
    };
    let fields = http.as_object_mut()?;
    let filters = match (telling_filters(cluster, rendering), filters) {
        (Some(mut before), Some(filters)) => {
            before.extend(filters);
            Some(before)
        }
        (Some(mut before), None) => {
            before.push(upstream_codec());
            Some(before)
        }
        (None, filters) => filters,
    };
    set(
        fields,
        "@type",
        json!(format!("type.googleapis.com/{HTTP_OPTIONS}")),
    );
    set_some(fields, "http_filters", filters.map(Value::Array));
    let mut upstream = Map::new();
    if let Some(tls) = &cluster.tls {
        let names = Names::of(cluster, tls);
        let follows = names.sni.is_none();
        set_some(&mut upstream, "auto_sni", follows.then_some(true));
        let beside = names.host == HostCheck::BesideOthers;
        set_some(&mut upstream, "auto_san_validation", beside.then_some(true));
    }
    set_some(
        fields,
        "upstream_http_protocol_options",
        Some(Value::Object(upstream)).filter(|u| *u != json!({})),
    );
    let mut common = Map::new();
    set(&mut common, "max_headers_count", json!(HEADERS));
    set(&mut common, "max_response_headers_kb", json!(HEADERS_KB));
    set_some(
        &mut common,
        "idle_timeout",
        pool.and_then(|pool| pool.http.idle_timeout.or(pool.tcp.idle_timeout))
            .map(duration),
    );
    let lifetime = pool.and_then(|pool| pool.tcp.max_connection_duration);
    let lifetime = lifetime.or_else(|| default_lifetime(cluster, options));
    set_some(
        &mut common,
        "max_connection_duration",
        lifetime.map(duration),
    );
    set_some(
        &mut common,
        "max_requests_per_connection",
        pool.and_then(|pool| pool.http.max_requests_per_connection),
    );
    set_some(
        fields,
        "common_http_protocol_options",
        Some(Value::Object(common)),
    );
    let codes = cluster
        .outlier_detection
        .as_ref()
        .map(|detection| &detection.error_codes[..])
        .unwrap_or_default();
    if !codes.is_empty() {
        let matches = |code: &u16| {
            json!({"http_response_headers_match": {"headers": [
                {"name": ":status", "string_match": {"exact": code.to_string()}},
            ]}})
        };
        let matcher = match codes {
            [code] => matches(code),
            codes => json!({"or_match": {"rules": codes.iter().map(matches).collect::<Vec<_>>()}}),
        };
        set(
            fields,
            "outlier_detection",
            json!({"error_matcher": matcher}),
        );
    }
    let mut by_name = Map::new();
    set(&mut by_name, HTTP_OPTIONS, http);
    Some(Value::Object(by_name))
}

/// Returns how long a connection lives where no rule says so: as long as its address may be old, or with TLS an hour, and
/// up to a tenth more or less. Each cluster has a time of its own, so that a proxy does not make all its connections
/// anew at once.
fn default_lifetime(cluster: &Cluster, options: &Options) -> Option<Duration> {
    let looks_up = options.upstream_proxy.is_none() || !options.no_proxy.is_empty();
    if cluster.endpoints == Endpoints::OfTheRequest && looks_up {
        return Some(FOLLOWS_WITHIN);
    }
    cluster.tls.as_ref()?;
    // The same name has the same time in every rendering.
    let hash = egress_policy::fnv(cluster.name.as_str().bytes());
    let jitter = Duration::from_secs((hash >> 32) % (2 * LIFETIME_JITTER.as_secs() + 1));
    Some(DEFAULT_LIFETIME - LIFETIME_JITTER + jitter)
}
