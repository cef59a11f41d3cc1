//! WebSocket upgrades: they go over HTTP/1.1, whatever else is spoken to the server.
//!
//! Few servers take upgrades over HTTP/2 (RFC 8441), and one that is asked for HTTP/2 by ALPN will speak it. So
//! the connection of an upgrade offers `http/1.1` alone. Envoy keeps such connections apart from the others: what
//! is offered is part of what it tells connections of a cluster apart by.
//!
//! A request without `Upgrade` costs one comparison of a header for each route that it passes. Envoy does not even
//! create the filter for it.

use serde_json::{Value, json};

use super::message::{extension, off, on};

/// The name of the filter, which routes refer to.
const FILTER: &str = "egress.upgrade";

/// What the upstream connection offers by ALPN instead of what its cluster says.
///
/// Source: envoyproxy/envoy `source/common/network/application_protocol.cc`, `ApplicationProtocols::key`.
const OFFERED: &str = "envoy.network.application_protocols";

/// The upgrade that every listener takes. What else is offered is passed over, as RFC 9110, 7.8, lets servers do: an offer
/// is no demand, and old clients make many.
pub(super) const TAKEN: &str = "websocket";

/// Renders what an offer is compared with that is passed over: all but [`TAKEN`], in any case.
///
/// Envoy compares each part of a list by itself, without the spaces around it.
pub(super) fn passed_over() -> Value {
    json!([{"safe_regex": {"regex": all_but(TAKEN)}}])
}

/// Writes a regular expression that takes each text but a word of small letters, in any case. RE2 has no way to say it:
/// so a text takes leave of the word at one of its letters, or ends within it, or is longer. Envoy lets such an expression
/// have a hundred steps, so there is no room for letters that are written in several bytes; no offer begins with one.
fn all_but(word: &str) -> String {
    let (mut within, mut leaves) = (String::new(), r"\C".to_owned());
    for (behind, letter) in word.bytes().rev().enumerate() {
        let large = letter.to_ascii_uppercase();
        let [before, small, after] = [letter - 1, letter, letter + 1].map(char::from);
        let [up_to, large, from] = [large - 1, large, large + 1].map(char::from);
        if behind > 0 {
            within = format!("(?:[{large}{small}]{within})?");
        }
        leaves = format!(r"(?:[\t-{up_to}{from}-{before}{after}-~]|[{large}{small}]{leaves})");
    }
    format!(r"{within}|{leaves}\C*")
}

/// Renders the filter that changes the offer, where a route asks for it.
pub(super) fn http_filter() -> Value {
    let mut filter = extension(
        FILTER,
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        json!({"on_request_headers": [{
            "object_key": OFFERED,
            "format_string": {"text_format_source": {"inline_string": "http/1.1"}},
        }]}),
    );
    off(&mut filter);
    filter
}

/// Renders what the headers of a route must say, so that it takes upgrades alone.
pub(super) fn header() -> Value {
    json!({"name": "upgrade", "string_match": {"exact": TAKEN, "ignore_case": true}})
}

/// Renders for the `typed_per_filter_config` of such a route that the filter is on there.
pub(super) fn on_route() -> (String, Value) {
    on(FILTER)
}
