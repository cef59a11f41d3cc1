//! What HTTP/1 clients of long ago need: HTTP/1.0, offers to upgrade that nobody means, methods that nobody has registered,
//! and names of headers in the case in which they were written.
//!
//! Source: envoyproxy/envoy `source/common/http/http1/codec_impl.cc`, and
//! `source/extensions/http/header_formatters/preserve_case/preserve_case_formatter.cc`.

use serde_json::{Map, Value, json};

use super::message::{extension, set, set_some};
use super::options::{HeaderCase, Options};
use super::upgrade;

/// Renders how HTTP/1 is spoken with applications.
pub(super) fn http1(options: &Options) -> Value {
    let mut fields = Map::new();
    // Without a host, a request of HTTP/1.0 is refused as one of HTTP/1.1 is.
    set(&mut fields, "accept_http_10", json!(true));
    // What the method means is between application and server; only those that are known are tried again.
    set(&mut fields, "allow_custom_methods", json!(true));
    set(
        &mut fields,
        "ignore_http_11_upgrade",
        upgrade::passed_over(),
    );
    set_some(&mut fields, "header_key_format", header_case(options));
    Value::Object(fields)
}

/// Renders how HTTP/1 is spoken with servers.
pub(super) fn upstream_http1(options: &Options) -> Value {
    let mut fields = Map::new();
    set_some(&mut fields, "header_key_format", header_case(options));
    Value::Object(fields)
}

/// Renders how header names are written. Those of a request are kept by the end that reads it, which is the
/// listener's, and those of an answer by the cluster's.
fn header_case(options: &Options) -> Option<Value> {
    if options.header_case == HeaderCase::Lower {
        return None;
    }
    let formatter = extension(
        "envoy.http.stateful_header_formatters.preserve_case",
        "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
        json!({
            // What comes of ours or of Envoy's: who cannot read `content-type` cannot read `transfer-encoding` either.
            "formatter_type_on_envoy_headers": "PROPER_CASE",
            "forward_reason_phrase": true,
        }),
    );
    Some(json!({"stateful_formatter": formatter}))
}
