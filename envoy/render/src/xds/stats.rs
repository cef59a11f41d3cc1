//! What the labels of Envoy's statistics are: one metric for all clusters, failures or filters, and not one for each.

use serde_json::{Value, json};

/// What stands behind a cluster's name, up to the last dot; the name may have dots itself.
///
/// A host that ends in `.internal` is told from Envoy's own word `internal` but in the counts by status.
const CLUSTER: &str = concat!(
    r"^cluster\.((.+?)\.)(?:",
    r"(?:circuit_breakers\.(?:default|high)|client_ssl_socket_factory|http[123]|ssl)\.[^.]+",
    r"|ssl\.(?:certificate|ciphers|curves|sigalgs|versions)\..+",
    r"|default\.total_match_count",
    r"|(?:canary|external|internal)\.upstream_rq_(?:[0-9]+|[0-9]xx|completed|time)",
    r"|[^.]+)$",
);

/// A certificate's name ends where the name of its only number begins.
const CERTIFICATE: &str = r"\.ssl\.certificate(\.(.+))\.expiration_unix_time_seconds$";

/// The reasons of `failures.md`.
const REASON: &str = r"^wasmcustom\.egress\.failure(\.(.+))$";

/// A DNS cache: whose names it holds, without the rest of its name, which changes with its settings.
const NAMES: &str = r"^dns_cache(\.egress_([a-z]+)_[0-9a-f]{16})\.";

/// A filter that is discovered: its name, without what Envoy puts behind it to tell generations apart.
const FILTER: &str =
    r"^extension_config_discovery\.[a-z_]+(\.(.+?)(?:_[0-9a-f]{16})?(?:_[0-9]+)?)\.";

/// Those of Envoy's own that metrics of ours have.
///
/// Source: envoyproxy/envoy `source/common/config/well_known_names.cc`, `TagNameValues`.
const OWN: [&str; 8] = [
    "envoy.http_conn_manager_prefix",
    "envoy.listener_address",
    "envoy.response_code",
    "envoy.response_code_class",
    "envoy.route",
    "envoy.tcp_prefix",
    "envoy.virtual_host",
    "envoy.worker_id",
];

/// Renders `stats_config`. Envoy's own rules for clusters and certificates end at the first dot, so all of them are
/// replaced.
pub(super) fn config() -> Value {
    let ours = [
        ("envoy.cluster_name", CLUSTER),
        ("envoy.tls_certificate", CERTIFICATE),
        ("reason", REASON),
        ("names", NAMES),
        ("filter", FILTER),
    ];
    let ours = ours.map(|(name, regex)| json!({"tag_name": name, "regex": regex}));
    let own = OWN.map(|name| json!({"tag_name": name}));
    let tags: Vec<Value> = ours.into_iter().chain(own).collect();
    json!({"use_all_default_tags": false, "stats_tags": tags})
}
