//! How long connections and requests may take, and how many there may be.

use std::time::Duration;

use egress_policy::{Cluster, ConnectionPool, OutlierDetection, TcpKeepalive};
use serde_json::{Map, Value, json};

use super::message::{duration, set, set_some};
use super::options::Options;
use egress_rules::ClusterDefaults;

/// The time that opening a connection may take, as in Istio's mesh defaults.
pub(super) const CONNECT_TIMEOUT: &str = "10s";

/// How many header lines a request or an answer may have. Envoy's default is 100, and some applications have more.
pub(super) const HEADERS: u32 = 1000;

/// How large the headers of a request or an answer may be together, in kilobytes; Envoy's default is 60.
pub(super) const HEADERS_KB: u32 = 96;

/// Requests of one cluster that are under way, unless a rule says otherwise.
const REQUESTS: u32 = 100_000;
/// Retries among them.
const RETRIES: u32 = 1_024;

/// Renders limits. Istio has none unless a rule says so; here they are far above what a proxy carries, so that one host
/// in trouble does not take all that there is.
pub(super) fn circuit_breakers(
    pool: Option<&ConnectionPool>,
    cluster: Option<&Cluster>,
    options: &Options,
) -> Value {
    let limit = |rule: Option<u32>, otherwise: u32| rule.unwrap_or(otherwise);
    let connections = options.limits.connections;
    let http = pool.map(|pool| &pool.http);
    let mut threshold = json!({
        "max_connections": limit(pool.and_then(|pool| pool.tcp.max_connections), connections),
        "max_pending_requests": limit(http.and_then(|http| http.max_pending_requests), REQUESTS),
        "max_requests": limit(http.and_then(|http| http.max_requests), REQUESTS),
        "max_retries": limit(http.and_then(|http| http.max_retries), RETRIES),
    });
    let budget = cluster.and_then(|cluster| cluster.retry_budget.as_ref());
    if let (Some(budget), Some(fields)) = (budget, threshold.as_object_mut()) {
        let budget = json!({
            "budget_percent": {"value": budget.percent.0},
            "min_retry_concurrency": budget.min_concurrency,
        });
        set(fields, "retry_budget", budget);
    }
    json!({"thresholds": [threshold]})
}

/// Source: istio/istio `pilot/pkg/networking/core/cluster_traffic_policy.go`, `applyOutlierDetection`.
pub(super) fn outlier_detection(detection: &OutlierDetection) -> Value {
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

/// The keepalive of connections that neither a rule nor the mesh has one for. A machine that has gone without a word is
/// found out after a minute and a half: Linux would wait for two hours, and Envoy asks for nothing by itself.
const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    probes: Some(3),
    time: Some(Duration::from_secs(60)),
    interval: Some(Duration::from_secs(10)),
};

/// Returns the rule's keepalive; what it leaves out is the mesh's. Without either it is ours.
pub(super) fn keepalive(pool: Option<&ConnectionPool>, defaults: &ClusterDefaults) -> TcpKeepalive {
    let own = pool.and_then(|pool| pool.tcp.keepalive.as_ref());
    let (Some(own), Some(mesh)) = (own, &defaults.keepalive) else {
        let said = own.or(defaults.keepalive.as_ref());
        return said.cloned().unwrap_or(KEEPALIVE);
    };
    TcpKeepalive {
        probes: own.probes.or(mesh.probes),
        time: own.time.or(mesh.time),
        interval: own.interval.or(mesh.interval),
    }
}

/// Renders a keepalive.
pub(super) fn connection_options(keepalive: &TcpKeepalive) -> Value {
    let mut settings = Map::new();
    let seconds = |time: Duration| time.as_secs().max(1);
    set_some(&mut settings, "keepalive_probes", keepalive.probes);
    set_some(&mut settings, "keepalive_time", keepalive.time.map(seconds));
    set_some(
        &mut settings,
        "keepalive_interval",
        keepalive.interval.map(seconds),
    );
    json!({"tcp_keepalive": settings})
}

/// Renders the keepalive of a cluster that no rule is about.
pub(super) fn own_connection_options() -> Value {
    connection_options(&KEEPALIVE)
}
