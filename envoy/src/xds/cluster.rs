//! Clusters, shared and own, and their transport sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use egress_filter::contract;
use egress_policy::{
    Cluster, ConnectionPool, Endpoints, HashKey, HashRing, LoadBalancer, OutlierDetection, Place,
    PolicyTable, ProxyProtocol, SimpleBalancer, Speaks, TcpKeepalive, TlsIntent,
};
use serde_json::{Map, Value, json};

use crate::mesh::ClusterDefaults;

use super::names::{HostCheck, Names};
use super::{Options, Version, duration, extension, guard, secrets, upstream_proxy, variants};

/// The time that opening a connection may take, as in Istio's mesh defaults.
pub(super) const CONNECT_TIMEOUT: &str = "10s";

/// The version from which sessions are kept apart by SNI, so that one TLS context may keep many.
///
/// Before it, a session made with one server is offered to the next, which fails the request. Source:
/// the runtime guard `envoy.reloadable_features.scope_upstream_tls_session_cache_by_sni`, absent before.
const SESSIONS_BY_NAME: Version = Version {
    major: 1,
    minor: 40,
};

/// How long a connection with TLS lives at most, about: what is revoked or replaced is out of use after it.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

const LIFETIME_JITTER: Duration = Duration::from_secs(360);

/// The TLS sessions that one context keeps at most; one is about two kilobytes.
const MAX_SESSIONS: usize = 4096;

const DNS_FAMILY: &str = "V4_PREFERRED";

pub(super) const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Renders a cluster of the table, under its name or another. If there is more than one, they differ in their
/// transport sockets alone, and the filter chooses.
pub(super) fn cluster(
    clusters: &[&Cluster],
    name: Option<String>,
    table: &PolicyTable,
    options: &Options,
) -> Value {
    let [cluster, ..] = clusters else {
        return Value::Null;
    };
    let name = name.unwrap_or_else(|| cluster.name.to_string());
    let mut fields = match &cluster.endpoints {
        _ if options.upstream_proxy.is_some() => upstream_proxy::endpoints(&name),
        Endpoints::OfTheRequest => dynamic(Cached::of(cluster), table, options),
        Endpoints::Listed {
            places,
            fixed,
            one_at_a_time,
        } => {
            let mut fields = listed(&name, places);
            if *fixed {
                set(&mut fields, "type", json!("STATIC"));
            } else {
                set(&mut fields, "cluster_type", dns(*one_at_a_time, options));
            }
            load_balancer(cluster.load_balancer.as_deref(), &mut fields);
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
        circuit_breakers(pool, Some(cluster)),
    );
    if let Some(keepalive) = keepalive(pool, defaults) {
        let mut settings = Map::new();
        set_some(&mut settings, "keepalive_probes", keepalive.probes);
        set_some(
            &mut settings,
            "keepalive_time",
            keepalive.time.map(|time| time.as_secs().max(1)),
        );
        set_some(
            &mut settings,
            "keepalive_interval",
            keepalive.interval.map(|time| time.as_secs().max(1)),
        );
        set(
            &mut fields,
            "upstream_connection_options",
            json!({"tcp_keepalive": settings}),
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
        protocol_options(cluster),
    );
    if let [_] = clusters {
        set_some(
            &mut fields,
            "transport_socket",
            socket(cluster, table, options),
        );
    } else {
        let sockets: Vec<(String, Value)> = clusters
            .iter()
            .filter_map(|it| Some((contract::variant(it), socket(it, table, options)?)))
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

/// Renders the transport socket of a cluster; `None` is Envoy's own, which sends what it is given.
fn socket(cluster: &Cluster, table: &PolicyTable, options: &Options) -> Option<Value> {
    let socket = server_socket(cluster, table, options);
    match options.upstream_proxy {
        None => socket,
        Some(_) => Some(upstream_proxy::through(socket.unwrap_or_else(raw_buffer))),
    }
}

fn raw_buffer() -> Value {
    let kind = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    extension("envoy.transport_sockets.raw_buffer", kind, json!({}))
}

/// Renders the one between us and the server, whatever lies between.
fn server_socket(cluster: &Cluster, table: &PolicyTable, options: &Options) -> Option<Value> {
    let tls = cluster
        .tls
        .as_ref()
        .map(|tls| transport_socket(cluster, tls, table, options));
    let Some(version) = cluster.proxy_protocol else {
        return tls;
    };
    let version = match version {
        ProxyProtocol::V1 => "V1",
        ProxyProtocol::V2 => "V2",
    };
    let wrapped =
        json!({"config": {"version": version}, "transport_socket": tls.unwrap_or_else(raw_buffer)});
    let kind =
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
    Some(extension(
        "envoy.transport_sockets.upstream_proxy_protocol",
        kind,
        wrapped,
    ))
}

/// Returns which versions, curves and ciphers are offered: the mesh's `tlsDefaults`.
fn tls_params(options: &Options) -> Value {
    let defaults = &options.mesh.clusters;
    let lowest = match defaults.tls13 {
        true => "TLSv1_3",
        false => "TLSv1_2",
    };
    let mut params = Map::new();
    set(&mut params, "tls_minimum_protocol_version", json!(lowest));
    set(
        &mut params,
        "tls_maximum_protocol_version",
        json!("TLSv1_3"),
    );
    if !defaults.curves.is_empty() {
        set(&mut params, "ecdh_curves", json!(defaults.curves));
    }
    if !defaults.ciphers.is_empty() {
        set(&mut params, "cipher_suites", json!(defaults.ciphers));
    }
    Value::Object(params)
}

/// Returns the rule's keepalive; what it leaves out is the mesh's.
fn keepalive(pool: Option<&ConnectionPool>, defaults: &ClusterDefaults) -> Option<TcpKeepalive> {
    let own = pool.and_then(|pool| pool.tcp.keepalive.as_ref());
    let (Some(own), Some(mesh)) = (own, &defaults.keepalive) else {
        return own.or(defaults.keepalive.as_ref()).cloned();
    };
    Some(TcpKeepalive {
        probes: own.probes.or(mesh.probes),
        time: own.time.or(mesh.time),
        interval: own.interval.or(mesh.interval),
    })
}

/// Renders the cluster for hosts that are left alone: plain, to wherever the request says.
pub(super) fn passthrough(table: &PolicyTable, options: &Options) -> Value {
    let mut fields = dynamic(Cached::Public, table, options);
    set(&mut fields, "name", json!(contract::PASSTHROUGH_CLUSTER));
    set(&mut fields, "connect_timeout", json!(CONNECT_TIMEOUT));
    set(
        &mut fields,
        "circuit_breakers",
        circuit_breakers(None, None),
    );
    Value::Object(fields)
}

/// Renders the cluster of captured connections that go where they were meant to go.
pub(super) fn original_destination(name: &str) -> Value {
    json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": CONNECT_TIMEOUT,
        "circuit_breakers": circuit_breakers(None, None),
    })
}

/// Returns what a cluster's requests are hashed by, for the routes that lead to it.
pub(super) fn hash_policy(cluster: &Cluster) -> Option<Value> {
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

fn set(fields: &mut Map<String, Value>, name: &str, value: Value) {
    fields.insert(name.to_owned(), value);
}

fn set_some<T: Into<Value>>(fields: &mut Map<String, Value>, name: &str, value: Option<T>) {
    if let Some(value) = value {
        set(fields, name, value.into());
    }
}

/// Who chooses the names that a DNS cache holds. Names that clients choose never take the place of those that rules
/// list: each kind has a cache of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cached {
    /// The rules list them.
    Listed,
    /// Clients, below a wildcard of the mesh.
    Internal,
    /// Clients, below any other wildcard or with `ALLOW_ANY`; they may not have private addresses.
    Public,
}

impl Cached {
    /// Returns whose names a cluster's are.
    pub(super) fn of(cluster: &Cluster) -> Self {
        match (cluster.any_name, cluster.public_only) {
            (_, true) => Cached::Public,
            (true, false) => Cached::Internal,
            (false, false) => Cached::Listed,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Cached::Listed => "listed",
            Cached::Internal => "internal",
            Cached::Public => "public",
        }
    }
}

/// How many names that clients choose are kept. One that nobody asks for is forgotten after five minutes.
const NAMES_OF_CLIENTS: usize = 4096;

/// Renders a DNS cache, which all dynamic forward proxies with names of one kind share.
///
/// Its settings are in its name: Envoy wants a name to mean the same everywhere, and refuses other settings under it.
pub(super) fn dns_cache(names: Cached, table: &PolicyTable, options: &Options) -> Value {
    let hosts = match names {
        Cached::Internal | Cached::Public => NAMES_OF_CLIENTS,
        Cached::Listed => {
            // Room for every host twice, as a name may be called on two ports.
            let hosts = (table.len() * 2 + 1024).min(200_000);
            match options.reloads {
                // Most changes of rules fit into the size that there is.
                true => hosts.next_power_of_two().max(4096),
                false => hosts,
            }
        }
    };
    let mut cache = Map::new();
    set(&mut cache, "dns_lookup_family", json!(DNS_FAMILY));
    set(&mut cache, "max_hosts", json!(hosts));
    if names == Cached::Public && guard::drops_addresses(options) {
        set(&mut cache, "resolved_address_filter", guard::dropped());
    }
    set_some(
        &mut cache,
        "typed_dns_resolver_config",
        resolver(names, options),
    );
    let settings = Value::Object(cache.clone()).to_string();
    let name = format!(
        "egress_{}_{:016x}",
        names.as_str(),
        egress_policy::fnv(settings.bytes())
    );
    set(&mut cache, "name", json!(name));
    Value::Object(cache)
}

fn resolver(names: Cached, options: &Options) -> Option<Value> {
    let ours = options
        .guarded_dns
        .filter(|_| names == Cached::Public)
        .map(|address| (address.ip().to_string(), address.port()));
    if options.dns.is_empty() && ours.is_none() {
        return None;
    }
    let servers: Vec<Value> = match &ours {
        Some(ours) => std::slice::from_ref(ours),
        None => &options.dns[..],
    }
    .iter()
    .map(|(address, port)| json!({"socket_address": {"address": address, "port_value": port}}))
    .collect();
    // Where the servers are the system's, so is the search list.
    let own = !options.dns.is_empty();
    Some(extension(
        "envoy.network.dns_resolver.cares",
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        json!({"resolvers": servers, "dns_resolver_options": {"no_default_search_domain": own}}),
    ))
}

pub(super) fn dns(one_at_a_time: bool, options: &Options) -> Value {
    let mut config = Map::new();
    set(&mut config, "dns_lookup_family", json!(DNS_FAMILY));
    set(&mut config, "respect_dns_ttl", json!(true));
    set(
        &mut config,
        "all_addresses_in_single_endpoint",
        json!(one_at_a_time),
    );
    set_some(
        &mut config,
        "typed_dns_resolver_config",
        resolver(Cached::Listed, options),
    );
    extension(
        "envoy.cluster.dns",
        "envoy.extensions.clusters.dns.v3.DnsCluster",
        Value::Object(config),
    )
}

fn dynamic(names: Cached, table: &PolicyTable, options: &Options) -> Map<String, Value> {
    let mut config = Map::new();
    let cache = dns_cache(names, table, options);
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
fn listed(name: &str, places: &[Place]) -> Map<String, Value> {
    let mut localities = BTreeMap::<&str, Vec<Value>>::new();
    for place in places {
        let address = match place.address.strip_prefix("unix://") {
            Some(path) => json!({"pipe": {"path": path}}),
            None => {
                json!({"socket_address": {"address": place.address, "port_value": place.port.get()}})
            }
        };
        let endpoint =
            json!({"endpoint": {"address": address}, "load_balancing_weight": place.weight});
        localities
            .entry(place.locality.as_str())
            .or_default()
            .push(endpoint);
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
fn load_balancer(wanted: Option<&LoadBalancer>, fields: &mut Map<String, Value>) {
    let simple = wanted.map(|wanted| wanted.simple).unwrap_or_default();
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
            "aggression": {"default_value": warmup.aggression, "runtime_key": "egress.warmup.aggression"},
            "min_weight_percent": {"value": warmup.minimum_percent},
        });
        set(fields, config, json!({"slow_start_config": slow_start}));
    }
}

/// Renders limits; without a rule there are none, as in Istio, for Envoy's default of 1,024 surprises.
pub(super) fn circuit_breakers(pool: Option<&ConnectionPool>, cluster: Option<&Cluster>) -> Value {
    let limit = |value: Option<u32>| value.unwrap_or(u32::MAX);
    let http = pool.map(|pool| &pool.http);
    let mut threshold = json!({
        "max_connections": limit(pool.and_then(|pool| pool.tcp.max_connections)),
        "max_pending_requests": limit(http.and_then(|http| http.max_pending_requests)),
        "max_requests": limit(http.and_then(|http| http.max_requests)),
        "max_retries": limit(http.and_then(|http| http.max_retries)),
    });
    let budget = cluster.and_then(|cluster| cluster.retry_budget.as_ref());
    if let (Some(budget), Some(fields)) = (budget, threshold.as_object_mut()) {
        let budget = json!({
            "budget_percent": {"value": budget.percent},
            "min_retry_concurrency": budget.min_concurrency,
        });
        set(fields, "retry_budget", budget);
    }
    json!({"thresholds": [threshold]})
}

/// Source: istio/istio `pilot/pkg/networking/core/cluster_traffic_policy.go`, `applyOutlierDetection`.
fn outlier_detection(detection: &OutlierDetection) -> Value {
    let mut fields = Map::new();
    set(&mut fields, "enforcing_success_rate", json!(0));
    let counts = [
        (
            "consecutive_5xx",
            "enforcing_consecutive_5xx",
            detection.consecutive_5xx,
        ),
        (
            "consecutive_gateway_failure",
            "enforcing_consecutive_gateway_failure",
            detection.consecutive_gateway,
        ),
    ];
    for (name, enforcing, count) in counts {
        if let Some(count) = count {
            set(&mut fields, name, json!(count));
            set(
                &mut fields,
                enforcing,
                json!(if count > 0 { 100 } else { 0 }),
            );
        }
    }
    if detection.split {
        set(
            &mut fields,
            "split_external_local_origin_errors",
            json!(true),
        );
        set(&mut fields, "enforcing_local_origin_success_rate", json!(0));
        if let Some(count) = detection.consecutive_local {
            set(
                &mut fields,
                "consecutive_local_origin_failure",
                json!(count),
            );
            set(
                &mut fields,
                "enforcing_consecutive_local_origin_failure",
                json!(if count > 0 { 100 } else { 0 }),
            );
        }
    }
    set_some(&mut fields, "interval", detection.interval.map(duration));
    set_some(
        &mut fields,
        "base_ejection_time",
        detection.base_ejection_time.map(duration),
    );
    set_some(
        &mut fields,
        "max_ejection_percent",
        detection
            .max_ejection_percent
            .filter(|percent| *percent > 0),
    );
    Value::Object(fields)
}

/// Renders which HTTP is spoken, and that SNI and verified name are the request's where they are.
fn protocol_options(cluster: &Cluster) -> Option<Value> {
    let pool = cluster.connection_pool.as_deref();
    let http2 = {
        let mut fields = Map::new();
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
    let both = || json!({"http_protocol_options": {}, "http2_protocol_options": http2});
    let mut options = match cluster.speaks {
        Speaks::Bytes | Speaks::PostgreSql => return None,
        Speaks::Auto => json!({"auto_config": both()}),
        Speaks::AsReceived => json!({"use_downstream_protocol_config": both()}),
        Speaks::Http1 => json!({"explicit_http_config": {"http_protocol_options": {}}}),
        Speaks::Http2 => json!({"explicit_http_config": {"http2_protocol_options": http2}}),
    };
    let fields = options.as_object_mut()?;
    set(
        fields,
        "@type",
        json!(format!("type.googleapis.com/{HTTP_OPTIONS}")),
    );
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
    set_some(
        &mut common,
        "idle_timeout",
        pool.and_then(|pool| pool.http.idle_timeout.or(pool.tcp.idle_timeout))
            .map(duration),
    );
    let lifetime = pool.and_then(|pool| pool.tcp.max_connection_duration);
    set_some(
        &mut common,
        "max_connection_duration",
        lifetime
            .or(cluster.tls.as_ref().map(|_| default_lifetime(cluster)))
            .map(duration),
    );
    set_some(
        &mut common,
        "max_requests_per_connection",
        pool.and_then(|pool| pool.http.max_requests_per_connection),
    );
    set_some(
        fields,
        "common_http_protocol_options",
        Some(Value::Object(common)).filter(|common| *common != json!({})),
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
    set(&mut by_name, HTTP_OPTIONS, options);
    Some(Value::Object(by_name))
}

/// Returns how long a connection with TLS lives where no rule says so: an hour, and up to a tenth more or less.
/// Each cluster has a time of its own, so that a proxy does not make all its connections anew at once.
fn default_lifetime(cluster: &Cluster) -> Duration {
    // The same name has the same time in every rendering.
    let hash = egress_policy::fnv(cluster.name.as_str().bytes());
    DEFAULT_LIFETIME - LIFETIME_JITTER
        + Duration::from_secs((hash >> 32) % (2 * LIFETIME_JITTER.as_secs() + 1))
}

/// Renders TLS towards a server. Envoy verifies nothing unless told to, and speaks at most TLS 1.2 unless
/// told otherwise; so both are always said.
fn transport_socket(
    cluster: &Cluster,
    tls: &TlsIntent,
    table: &PolicyTable,
    options: &Options,
) -> Value {
    let mut common = Map::new();
    set(&mut common, "tls_params", tls_params(options));
    match cluster.speaks {
        // Envoy offers what the connection will speak, and TCP offers none.
        Speaks::Auto | Speaks::AsReceived | Speaks::Bytes => {}
        // Source: postgres/postgres `src/include/libpq/pqcomm.h`, `PG_ALPN_PROTOCOL`.
        Speaks::PostgreSql => set(&mut common, "alpn_protocols", json!(["postgresql"])),
        Speaks::Http1 => set(&mut common, "alpn_protocols", json!(["http/1.1"])),
        Speaks::Http2 => set(&mut common, "alpn_protocols", json!(["h2"])),
    }
    if let Some(identity) = &tls.identity {
        let reference = json!([secrets::certificate(identity, options)]);
        set(&mut common, "tls_certificate_sds_secret_configs", reference);
    }
    let mut beside = Map::new();
    let names = Names::of(cluster, tls);
    let typed = Some(names.typed).filter(|typed| !typed.is_empty());
    set_some(&mut beside, "match_typed_subject_alt_names", typed);
    set_some(&mut beside, "crl", secrets::revoked(tls, options));
    match secrets::validation(tls, options) {
        None => {}
        Some(reference) if beside.is_empty() => {
            set(
                &mut common,
                "validation_context_sds_secret_config",
                reference,
            );
        }
        Some(reference) => {
            let combined = json!({
                "default_validation_context": beside,
                "validation_context_sds_secret_config": reference,
            });
            set(&mut common, "combined_validation_context", combined);
        }
    }
    let sessions = if options.version < SESSIONS_BY_NAME {
        0
    } else {
        match options.reloads {
            // A number that follows the table would change every cluster with each host.
            true => MAX_SESSIONS,
            false => (table.len() * 2).clamp(16, MAX_SESSIONS),
        }
    };
    let mut context = Map::new();
    set(&mut context, "common_tls_context", Value::Object(common));
    set(&mut context, "max_session_keys", json!(sessions));
    set_some(&mut context, "sni", names.sni);
    let by_sni = names.host == HostCheck::BySni;
    set_some(
        &mut context,
        "auto_sni_san_validation",
        by_sni.then_some(true),
    );
    let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    extension("envoy.transport_sockets.tls", kind, Value::Object(context))
}
