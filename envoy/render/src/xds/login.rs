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

use egress_filter::contract;
use serde_json::{Value, json};

use super::message::extension;
use super::options::Options;
use super::upstream_proxy::{self, OLDEST_WITH_PROXY};

/// Renders the filter that does it; `None` where Envoy cannot: before 1.38 connections cannot be told apart by a text.
pub(super) fn http_filter(options: &Options) -> Option<Value> {
    if options.version < OLDEST_WITH_PROXY {
        return None;
    }
    let login = format!("%FILTER_STATE({}:PLAIN)%", contract::LOGIN_STATE);
    let apart = match options.upstream_proxy {
        Some(_) => format!("{login} {}", upstream_proxy::named_by_the_filter()),
        None => login,
    };
    Some(extension(
        "envoy.filters.http.set_filter_state",
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
    ))
}
