//! WebSocket upgrades: they go over HTTP/1.1, whatever else is spoken to the server.
//!
//! Few servers take upgrades over HTTP/2 (RFC 8441), and one that is asked for HTTP/2 by ALPN will speak it. So
//! the connection of an upgrade offers `http/1.1` alone. Envoy keeps such connections apart from the others: what
//! is offered is part of what it tells connections of a cluster apart by.
//!
//! A request without `Upgrade` pays for one comparison of a header for each route that it passes; the filter is
//! not even made for it.

use serde_json::{Value, json};

use super::message::extension;

/// The name of the filter, which routes refer to.
const FILTER: &str = "egress.upgrade";

/// What the upstream connection offers by ALPN instead of what its cluster says.
///
/// Source: envoyproxy/envoy `source/common/network/application_protocol.cc`, `ApplicationProtocols::key`.
const OFFERED: &str = "envoy.network.application_protocols";

const SET_FILTER_STATE: &str = "envoy.extensions.filters.http.set_filter_state.v3.Config";

/// Renders which upgrades a listener takes; Envoy answers 403 to others.
pub(super) fn configs() -> Value {
    json!([{"upgrade_type": "websocket"}])
}

/// Renders the filter that changes the offer, where a route asks for it.
pub(super) fn http_filter() -> Value {
    let mut filter = extension(FILTER, SET_FILTER_STATE, json!({}));
    if let Some(fields) = filter.as_object_mut() {
        fields.insert("disabled".to_owned(), json!(true));
    }
    filter
}

/// Puts before all routes those for upgrades, which differ in nothing but the offer.
pub(super) fn routes(routes: Vec<Value>) -> Vec<Value> {
    let mut all: Vec<Value> = routes.iter().cloned().filter_map(of_upgrades).collect();
    all.extend(routes);
    all
}

fn of_upgrades(mut route: Value) -> Option<Value> {
    let fields = route.as_object_mut()?;
    let matches = fields.get_mut("match")?.as_object_mut()?;
    let headers = matches
        .entry("headers")
        .or_insert_with(|| json!([]))
        .as_array_mut()?;
    // First of all, so that other requests are done with the route at once.
    let upgrade =
        json!({"name": "upgrade", "string_match": {"exact": "websocket", "ignore_case": true}});
    headers.insert(0, upgrade);
    let value = json!({
        "object_key": OFFERED,
        "format_string": {"text_format_source": {"inline_string": "http/1.1"}},
    });
    let config = json!({
        "@type": format!("type.googleapis.com/{SET_FILTER_STATE}"),
        "on_request_headers": [value],
    });
    fields
        .entry("typed_per_filter_config")
        .or_insert_with(|| json!({}))
        .as_object_mut()?
        .insert(FILTER.to_owned(), config);
    Some(route)
}
