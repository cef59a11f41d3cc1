//! Clusters, shared and own, and their transport sockets.

use egress_filter::contract;
use egress_policy::{
    Cluster, ConnectionPool, Endpoints, LoadBalancer, OutlierDetection, PolicyTable, Speaks,
    TlsIntent, Trust,
};
use serde_json::{Map, Value, json};

use super::{Options, Version, duration, extension};

/// The time that opening a connection may take, as in Istio's mesh defaults.
const CONNECT_TIMEOUT: &str = "10s";

/// The version from which sessions are kept apart by SNI, so that one TLS context may keep many.
///
/// Before it, a session made with one server is offered to the next, which fails the request. Source:
/// the runtime guard `envoy.reloadable_features.scope_upstream_tls_session_cache_by_sni`, absent before.
const SESSIONS_BY_NAME: Version = Version {
    major: 1,
    minor: 40,
};

/// The TLS sessions that one context keeps at most; one is about two kilobytes.
const MAX_SESSIONS: usize = 4096;

/// Renders a cluster of the table.
pub(super) fn cluster(cluster: &Cluster, table: &PolicyTable, options: &Options) -> Value {
    let mut fields = match &cluster.endpoints {
        Endpoints::OfTheRequest => dynamic(table, options),
        Endpoints::Listed {
            addresses,
            fixed,
            one_at_a_time,
        } => {
            let endpoints: Vec<Value> = addresses
                .iter()
                .map(|(address, port, weight)| {
                    let address =
                        json!({"socket_address": {"address": address, "port_value": port.get()}});
                    json!({"endpoint": {"address": address}, "load_balancing_weight": weight})
                })
                .collect();
            let mut fields = Map::new();
            let kind = match (fixed, one_at_a_time) {
                (true, _) => "STATIC",
                (false, true) => "LOGICAL_DNS",
                (false, false) => "STRICT_DNS",
            };
            fields.insert("type".to_owned(), json!(kind));
            if !fixed {
                fields.insert("dns_lookup_family".to_owned(), json!(DNS_FAMILY));
                fields.insert("respect_dns_ttl".to_owned(), json!(true));
                fields.extend(resolver(options));
            }
            fields.insert(
                "lb_policy".to_owned(),
                json!(load_balancer(cluster.load_balancer)),
            );
            let name = cluster.name.as_str();
            fields.insert(
                "load_assignment".to_owned(),
                json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}),
            );
            fields
        }
    };
    let pool = cluster.connection_pool.as_ref();
    fields.insert("name".to_owned(), json!(cluster.name.as_str()));
    let connect_timeout = pool.and_then(|pool| pool.tcp.connect_timeout).map(duration);
    fields.insert(
        "connect_timeout".to_owned(),
        json!(connect_timeout.as_deref().unwrap_or(CONNECT_TIMEOUT)),
    );
    fields.insert("circuit_breakers".to_owned(), circuit_breakers(pool));
    if let Some(keepalive) = pool.and_then(|pool| pool.tcp.keepalive.as_ref()) {
        let mut settings = Map::new();
        let times = [
            ("keepalive_time", keepalive.time),
            ("keepalive_interval", keepalive.interval),
        ];
        settings.extend(
            keepalive
                .probes
                .map(|probes| ("keepalive_probes".to_owned(), json!(probes))),
        );
        for (name, time) in times {
            settings.extend(time.map(|time| (name.to_owned(), json!(time.as_secs().max(1)))));
        }
        fields.insert(
            "upstream_connection_options".to_owned(),
            json!({"tcp_keepalive": settings}),
        );
    }
    if let Some(detection) = &cluster.outlier_detection {
        fields.insert("outlier_detection".to_owned(), outlier_detection(detection));
        let threshold = json!({"healthy_panic_threshold": {"value": detection.min_health_percent}});
        fields.insert("common_lb_config".to_owned(), threshold);
    }
    fields.extend(
        protocol_options(cluster)
            .map(|options| ("typed_extension_protocol_options".to_owned(), options)),
    );
    if let Some(tls) = &cluster.tls {
        let socket = transport_socket(tls, cluster.speaks, table, options);
        fields.insert("transport_socket".to_owned(), socket);
    }
    Value::Object(fields)
}

/// Renders the cluster for hosts that are left alone: plain, to wherever the request says.
pub(super) fn passthrough(table: &PolicyTable, options: &Options) -> Value {
    let mut fields = dynamic(table, options);
    fields.insert("name".to_owned(), json!(contract::PASSTHROUGH_CLUSTER));
    fields.insert("connect_timeout".to_owned(), json!(CONNECT_TIMEOUT));
    fields.insert("circuit_breakers".to_owned(), circuit_breakers(None));
    Value::Object(fields)
}

/// The name of a trust store among Envoy's secrets, as Istio's agent calls it.
///
/// Source: istio/istio `security/pkg/nodeagent/cache/secretcache.go`, `file-root:`.
pub(super) fn trust_name(trust: &Trust) -> String {
    format!("file-root:{}", trust.as_str())
}

const DNS_FAMILY: &str = "V4_PREFERRED";

/// The DNS cache that all dynamic forward proxies share: Envoy wants it said alike everywhere.
pub(super) fn dns_cache(table: &PolicyTable, options: &Options) -> Value {
    // Room for every host twice, as a name may be called on two ports; wildcards take what is left.
    let hosts = (table.len() * 2 + 1024).min(200_000);
    let mut cache = Map::new();
    cache.insert("name".to_owned(), json!("egress"));
    cache.insert("dns_lookup_family".to_owned(), json!(DNS_FAMILY));
    cache.insert("max_hosts".to_owned(), json!(hosts));
    cache.extend(resolver(options));
    Value::Object(cache)
}

fn resolver(options: &Options) -> Option<(String, Value)> {
    if options.dns.is_empty() {
        return None;
    }
    let servers: Vec<Value> = options
        .dns
        .iter()
        .map(|(address, port)| json!({"socket_address": {"address": address, "port_value": port}}))
        .collect();
    let cares = extension(
        "envoy.network.dns_resolver.cares",
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        json!({"resolvers": servers, "dns_resolver_options": {"no_default_search_domain": true}}),
    );
    Some(("typed_dns_resolver_config".to_owned(), cares))
}

fn dynamic(table: &PolicyTable, options: &Options) -> Map<String, Value> {
    let config = extension(
        "envoy.clusters.dynamic_forward_proxy",
        "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
        json!({"dns_cache_config": dns_cache(table, options)}),
    );
    let mut fields = Map::new();
    fields.insert("lb_policy".to_owned(), json!("CLUSTER_PROVIDED"));
    fields.insert("cluster_type".to_owned(), config);
    fields
}

fn load_balancer(wanted: Option<LoadBalancer>) -> &'static str {
    match wanted.unwrap_or(LoadBalancer::LeastRequest) {
        LoadBalancer::LeastRequest => "LEAST_REQUEST",
        LoadBalancer::Random => "RANDOM",
        LoadBalancer::RoundRobin => "ROUND_ROBIN",
    }
}

/// Renders limits; without a rule there are none, as in Istio, for Envoy's default of 1,024 surprises.
fn circuit_breakers(pool: Option<&ConnectionPool>) -> Value {
    let limit = |value: Option<u32>| value.unwrap_or(u32::MAX);
    let http = pool.map(|pool| &pool.http);
    json!({"thresholds": [{
        "max_connections": limit(pool.and_then(|pool| pool.tcp.max_connections)),
        "max_pending_requests": limit(http.and_then(|http| http.max_pending_requests)),
        "max_requests": limit(http.and_then(|http| http.max_requests)),
        "max_retries": limit(http.and_then(|http| http.max_retries)),
    }]})
}

/// Source: istio/istio `pilot/pkg/networking/core/cluster_traffic_policy.go`, `applyOutlierDetection`.
fn outlier_detection(detection: &OutlierDetection) -> Value {
    let mut fields = Map::new();
    fields.insert("enforcing_success_rate".to_owned(), json!(0));
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
            fields.insert(name.to_owned(), json!(count));
            fields.insert(enforcing.to_owned(), json!(if count > 0 { 100 } else { 0 }));
        }
    }
    let times = [
        ("interval", detection.interval),
        ("base_ejection_time", detection.base_ejection_time),
    ];
    for (name, time) in times {
        fields.extend(time.map(|time| (name.to_owned(), json!(duration(time)))));
    }
    let percent = detection
        .max_ejection_percent
        .filter(|percent| *percent > 0);
    fields.extend(percent.map(|percent| ("max_ejection_percent".to_owned(), json!(percent))));
    Value::Object(fields)
}

/// Renders which HTTP is spoken, and that SNI and verified name are the request's where they are.
fn protocol_options(cluster: &Cluster) -> Option<Value> {
    let mut options = match cluster.speaks {
        Speaks::Bytes => return None,
        Speaks::Auto => {
            json!({"auto_config": {"http_protocol_options": {}, "http2_protocol_options": {}}})
        }
        Speaks::Http1 => json!({"explicit_http_config": {"http_protocol_options": {}}}),
        Speaks::Http2 => json!({"explicit_http_config": {"http2_protocol_options": {}}}),
    };
    let fields = options.as_object_mut()?;
    let kind = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    fields.insert("@type".to_owned(), json!(kind));
    if let Some(tls) = &cluster.tls {
        let mut upstream = Map::new();
        if tls.sni == egress_policy::Sni::Authority {
            upstream.insert("auto_sni".to_owned(), json!(true));
        }
        if tls.names.authority {
            upstream.insert("auto_san_validation".to_owned(), json!(true));
        }
        fields.insert(
            "upstream_http_protocol_options".to_owned(),
            Value::Object(upstream),
        );
    }
    if cluster.tls.is_none() && matches!(cluster.endpoints, Endpoints::OfTheRequest) {
        // Envoy refuses a dynamic forward proxy without these; without TLS they do nothing.
        let upstream = json!({"auto_sni": true, "auto_san_validation": true});
        fields.insert("upstream_http_protocol_options".to_owned(), upstream);
    }
    if let Some(pool) = &cluster.connection_pool {
        let mut common = Map::new();
        let idle = pool.http.idle_timeout.or(pool.tcp.idle_timeout);
        common.extend(idle.map(|time| ("idle_timeout".to_owned(), json!(duration(time)))));
        let lifetime = pool.tcp.max_connection_duration;
        common.extend(
            lifetime.map(|time| ("max_connection_duration".to_owned(), json!(duration(time)))),
        );
        let requests = pool.http.max_requests_per_connection;
        common
            .extend(requests.map(|count| ("max_requests_per_connection".to_owned(), json!(count))));
        fields.insert(
            "common_http_protocol_options".to_owned(),
            Value::Object(common),
        );
    }
    Some(json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}))
}

/// Renders TLS towards a server. Envoy verifies nothing unless told to, and speaks at most TLS 1.2 unless
/// told otherwise; so both are always said.
fn transport_socket(
    tls: &TlsIntent,
    speaks: Speaks,
    table: &PolicyTable,
    options: &Options,
) -> Value {
    let mut common = Map::new();
    let versions = json!({"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"});
    common.insert("tls_params".to_owned(), versions);
    match speaks {
        // `auto_config` offers both itself, and TCP offers none.
        Speaks::Auto | Speaks::Bytes => {}
        Speaks::Http1 => drop(common.insert("alpn_protocols".to_owned(), json!(["http/1.1"]))),
        Speaks::Http2 => drop(common.insert("alpn_protocols".to_owned(), json!(["h2"]))),
    }
    match (&tls.trust, &tls.names.any_of[..]) {
        (Trust::InsecureSkipVerify, _) => {}
        (trust, []) => {
            let name = json!({"name": trust_name(trust)});
            common.insert("validation_context_sds_secret_config".to_owned(), name);
        }
        (trust, names) => {
            let names: Vec<Value> = names.iter().map(|name| san(name)).collect();
            let combined = json!({
                "default_validation_context": {"match_typed_subject_alt_names": names},
                "validation_context_sds_secret_config": {"name": trust_name(trust)},
            });
            common.insert("combined_validation_context".to_owned(), combined);
        }
    }
    let sessions = if options.version < SESSIONS_BY_NAME {
        0
    } else {
        (table.len() * 2).clamp(16, MAX_SESSIONS)
    };
    let mut context = json!({"common_tls_context": common, "max_session_keys": sessions});
    if let (egress_policy::Sni::Fixed(name), Some(fields)) = (&tls.sni, context.as_object_mut()) {
        fields.insert("sni".to_owned(), json!(name));
    }
    let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    extension("envoy.transport_sockets.tls", kind, context)
}

/// Renders one name that a certificate may have. For DNS names Envoy follows the certificate's wildcards.
fn san(name: &str) -> Value {
    let kind = if name.parse::<std::net::IpAddr>().is_ok() {
        "IP_ADDRESS"
    } else if name.contains("://") {
        "URI"
    } else if name.contains('@') {
        "EMAIL"
    } else {
        "DNS"
    };
    json!({"san_type": kind, "matcher": {"exact": name}})
}
