//! Identity bound to a connection: whoever logs in by NTLM or Negotiate gets connections of its own to servers.
//!
//! Servers take the login for one of the connection. The next request on it is answered as the same user's, with or
//! without credentials, and so must be of the same client. Our filter notes down that a client has logged in, with the
//! number of the client's connection, and the note stays for as long as that connection lives. This hands the number to
//! upstream connections, and Envoy keeps those with different numbers apart. Clients that have not logged in have no
//! number, and share connections as ever.
//!
//! Envoy tells connections apart by the objects that they are handed, in the order of a hash table, which is not the same
//! for every request. So only one of them may be looked at: with an upstream proxy it names the target too.
//!
//! The filter that does it would cost every request some. So it is off but on the routes of those that log in, or have,
//! and on hosts that have routes of their own.

use egress_filter::contract;
use serde_json::{Value, json};

use super::message::{extension, off, on};
use super::options::Options;
use super::upstream_proxy::{self, OLDEST_WITH_PROXY};

/// The name of the filter, which routes refer to.
const FILTER: &str = "egress.login";

/// What `Authorization` says where a client logs in, as [`egress_filter::HttpRequest::logs_in`] has it.
const LOGS_IN: &str = r"(?i)(?:.*,)?\s*(?:ntlm|negotiate).*";

/// Whether Envoy can do it: before 1.38 connections cannot be told apart by a text.
fn can(options: &Options) -> bool {
    options.version >= OLDEST_WITH_PROXY
}

/// Whether routes turn the filter on. With an upstream proxy it is on for all: what it hands over names the target too.
pub(super) fn by_route(options: &Options) -> bool {
    can(options) && options.upstream_proxy.is_none()
}

/// Renders the filter that does it; `None` where Envoy cannot.
pub(super) fn http_filter(options: &Options) -> Option<Value> {
    if !can(options) {
        return None;
    }
    let login = format!("%FILTER_STATE({}:PLAIN)%", contract::LOGIN_STATE);
    let apart = match options.upstream_proxy {
        Some(_) => format!("{login} {}", upstream_proxy::named_by_the_filter()),
        None => login,
    };
    let mut filter = extension(
        FILTER,
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        json!({"on_request_headers": [{
            "object_key": contract::UPSTREAM_LOGIN_STATE,
            "factory_key": "envoy.hashable_string",
            "format_string": {
                "text_format_source": {
                    "inline_string": apart,
                },
                "omit_empty_values": true,
            },
            "skip_if_empty": true,
            "shared_with_upstream": "ONCE",
        }]}),
    );
    if by_route(options) {
        off(&mut filter);
    }
    Some(filter)
}

/// Renders for the `typed_per_filter_config` of a route, or of a host, that the filter is on there.
pub(super) fn on_route() -> (String, Value) {
    on(FILTER)
}

/// Renders what the headers of a route must say, so that it takes requests alone that log in.
pub(super) fn header() -> Value {
    json!({"name": "authorization", "string_match": {"safe_regex": {"regex": LOGS_IN}}})
}

/// Renders what a client's connection must have, so that a route takes requests alone of clients that have logged in.
pub(super) fn state() -> Value {
    json!({"key": contract::LOGIN_STATE, "string_match": {"safe_regex": {"regex": ".+"}}})
}
