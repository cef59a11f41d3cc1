//! What the filter chains of several listeners share.

use egress_policy::{Cluster, PortNumber, Reason};
use serde_json::{Value, json};

use super::access_log::{Metadata, access_log};
use super::message::{duration, extension};
use super::options::Options;

/// What `tcp_proxy` leads to when the filter has named nothing: no such cluster, so the connection is closed.
pub(super) const UNDECIDED: &str = "egress|undecided";

/// The name of a service port's listener.
pub(crate) fn listener_name(port: PortNumber) -> String {
    format!("outbound_{port}")
}

/// Says why no chain took a connection: it has an SNI that nobody has, or none at all; or it has an address that
/// nobody has.
pub(super) fn no_chain_reason(by_address: bool) -> &'static str {
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
            "cluster": UNDECIDED,
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
