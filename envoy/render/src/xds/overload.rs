//! What keeps Envoy up when more comes than it can carry: limits of connections, memory, buffers and time.
//!
//! They are those of Envoy's guide for proxies at an edge, with its figures but where a comment says otherwise. What is
//! above a limit is refused or waits; nothing of it goes another way.

use egress_filter::contract;
use serde_json::{Map, Value, json};

use super::message::{extension, set};
use super::options::{FilterFile, Limits, Options};

/// What Envoy holds of one connection's bytes in each direction, before it stops to read.
const BUFFER: u64 = 32 << 10;
/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: &str = "30s";
/// How long a request may go without a byte in either direction. Envoy's guide has five minutes, which cuts streams
/// of events and long polls that are merely quiet; what is limited by default is written down in the README.
const IDLE_TIMEOUT: &str = "3600s";
/// Requests at once on one connection of HTTP/2.
const STREAMS: u32 = 100;
/// What a client may send on HTTP/2 before it is read: on one stream, and on all of a connection.
const CLIENT_WINDOWS: (u32, u32) = (64 << 10, 1 << 20);
/// What a server may. It is far away, so that a window as small as the clients' would be waited for.
const SERVER_WINDOWS: (u32, u32) = (1 << 20, 4 << 20);

/// What a server may not say as Envoy. The time that it took is Envoy's own word, in place of whatever the server said.
///
/// Envoy takes no expression that is exact: its limit for the size of one is 100. So names pass that begin with
/// `x-envoy-up` or `x-envoy-upstream-s` as that word does; the native form removes them too.
const OF_SERVERS: &str = "x-envoy-(?:[^u].*|u[^p].*|upstream-[^s].*)";

/// Renders `overload_manager`.
pub(super) fn manager(limits: Limits) -> Value {
    let mut monitors = vec![extension(
        "envoy.resource_monitors.global_downstream_max_connections",
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        json!({"max_active_downstream_connections": limits.connections}),
    )];
    let Some(heap) = limits.heap else {
        return json!({"resource_monitors": monitors});
    };
    let monitor = "envoy.resource_monitors.fixed_heap";
    monitors.push(extension(
        monitor,
        "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
        json!({"max_heap_size_bytes": heap}),
    ));
    let action = |name: &str, part: f64| json!({"name": name, "triggers": [{"name": monitor, "threshold": {"value": part}}]});
    json!({
        "refresh_interval": "0.25s",
        "resource_monitors": monitors,
        "actions": [
            action("envoy.overload_actions.shrink_heap", 0.90),
            action("envoy.overload_actions.disable_http_keepalive", 0.95),
            action("envoy.overload_actions.stop_accepting_requests", 0.98),
        ],
    })
}

/// Limits what is held of each connection of a listener or a cluster.
pub(super) fn bound(fields: &mut Map<String, Value>) {
    set(fields, "per_connection_buffer_limit_bytes", json!(BUFFER));
}

/// Adds to a connection manager how long clients may take, and how much they may send at once.
pub(super) fn clients(fields: &mut Map<String, Value>) {
    set(fields, "request_headers_timeout", json!(HEAD_TIMEOUT));
    set(fields, "stream_idle_timeout", json!(IDLE_TIMEOUT));
    let mut http2 = windows(CLIENT_WINDOWS);
    set(&mut http2, "max_concurrent_streams", json!(STREAMS));
    // A request that is none ends its stream, and not the connection with all others on it.
    let one_stream = "override_stream_error_on_invalid_http_message";
    set(&mut http2, one_stream, json!(true));
    set(fields, "http2_protocol_options", Value::Object(http2));
}

/// Returns what servers may send on HTTP/2.
pub(super) fn servers() -> Map<String, Value> {
    windows(SERVER_WINDOWS)
}

fn windows((stream, connection): (u32, u32)) -> Map<String, Value> {
    let mut fields = Map::new();
    set(&mut fields, "initial_stream_window_size", json!(stream));
    set(
        &mut fields,
        "initial_connection_window_size",
        json!(connection),
    );
    fields
}

/// Renders the filter that takes away what only we and Envoy may say to applications: a server that said it would steer
/// them, or claim to be us. `None` where our filter does it itself: a native one does so for hardly anything.
pub(super) fn answers_filter(options: &Options) -> Option<Value> {
    if let FilterFile::Module(_) = options.filter {
        return None;
    }
    let removed = |matcher: Value| json!({"remove_on_match": {"key_matcher": matcher}});
    let mutations = [
        removed(json!({"prefix": contract::HEADER_PREFIX})),
        removed(json!({"safe_regex": {"regex": OF_SERVERS}})),
    ];
    Some(extension(
        "envoy.filters.http.header_mutation",
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        json!({"mutations": {"response_mutations": mutations}}),
    ))
}
