//! What routes of VirtualServices do beside choosing a cluster: answers, rewrites, headers, retries and faults.
//!
//! Source: istio/istio `pilot/pkg/networking/core/route/route.go`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use egress_policy::{Cluster, HashKey, PortNumber};
use egress_rules::{
    Abort, DirectResponse, Fault, HeaderChanges, Headers, HttpRoute, PathRewrite, Percent,
    Redirect, RedirectPort, Retries,
};
use serde_json::{Map, Value, json};

use super::message::{duration, extension, set, set_some};

/// What tells applications to speak TLS themselves, or to call the server by another way. A server that is reached over
/// plain HTTP says neither.
///
/// Source: RFC 6797, section 7.2; RFC 7838, section 3.
pub(super) const HINTS: [&str; 2] = ["strict-transport-security", "alt-svc"];

/// The name of Envoy's filter for faults.
const FAULT: &str = "envoy.filters.http.fault";

/// Its message.
const FAULT_MESSAGE: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";

/// Renders an answer that sends the application elsewhere; `port` is the one that was called.
pub(super) fn redirect(redirect: &Redirect, port: PortNumber) -> Value {
    let mut fields = Map::new();
    set_some(&mut fields, "host_redirect", redirect.authority.as_deref());
    set_some(&mut fields, "path_redirect", redirect.uri.as_deref());
    set_some(&mut fields, "prefix_rewrite", redirect.prefix.as_deref());
    set_some(&mut fields, "scheme_redirect", redirect.scheme.as_deref());
    let port = match redirect.port {
        RedirectPort::OfTheScheme => None,
        RedirectPort::OfTheRequest => Some(port),
        RedirectPort::Number(number) => Some(number),
    };
    let of_the_scheme = match redirect.scheme.as_deref() {
        Some("https") => PortNumber::HTTPS,
        _ => PortNumber::HTTP,
    };
    let port = port.filter(|port| *port != of_the_scheme);
    set_some(&mut fields, "port_redirect", port.map(PortNumber::get));
    let status = match redirect.status {
        302 => "FOUND",
        303 => "SEE_OTHER",
        307 => "TEMPORARY_REDIRECT",
        308 => "PERMANENT_REDIRECT",
        _ => "MOVED_PERMANENTLY",
    };
    set(&mut fields, "response_code", json!(status));
    Value::Object(fields)
}

/// Renders an answer.
pub(super) fn respond(answer: &DirectResponse) -> Value {
    let mut fields = Map::new();
    set(&mut fields, "status", json!(answer.status));
    let body = answer.body.as_deref();
    let body = body.map(|body| match std::str::from_utf8(body) {
        Ok(text) => json!({"inline_string": text}),
        Err(_) => json!({"inline_bytes": STANDARD.encode(body)}),
    });
    set_some(&mut fields, "body", body);
    Value::Object(fields)
}

/// Renders how long a route waits, how often it tries, and which path it asks for. `tls` is whether it
/// leads to TLS, `repeatable` as in [`default_retries`].
pub(super) fn effort(
    route: &HttpRoute,
    tls: bool,
    repeatable: bool,
    fields: &mut Map<String, Value>,
) {
    let timeout = route.timeout.map_or_else(|| "0s".to_owned(), duration);
    set(fields, "timeout", json!(timeout));
    // Clients of gRPC may ask for less than that, and for no more.
    let grpc = json!({"grpc_timeout_header_max": timeout});
    set(fields, "max_stream_duration", grpc);
    let retries = match &route.retries {
        None => Some(default_retries(tls, repeatable)),
        Some(retries) => retry_policy(retries, tls),
    };
    set_some(fields, "retry_policy", retries);
    match &route.rewrite {
        None => {}
        Some(PathRewrite::Prefix(prefix)) => set(fields, "prefix_rewrite", json!(prefix)),
        Some(PathRewrite::Regex(pattern, substitution)) => {
            let rewrite = json!({
                "pattern": {"regex": pattern.as_str()},
                "substitution": substitution,
            });
            set(fields, "regex_rewrite", rewrite);
        }
    }
}

/// Renders for what a route adds that the server is told of TLS.
pub(super) fn https_header() -> Value {
    json!({
        "header": {"key": "x-forwarded-proto", "value": "https"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    })
}

/// The methods whose requests may be answered twice. A `PUT` or `DELETE` may, too (RFC 9110, 9.2.2), but servers exist that
/// answer the second with 404.
const REPEATABLE: [&str; 3] = ["GET", "HEAD", "OPTIONS"];

/// What says that a request has a body, or becomes something else than a request.
const MORE_THAN_A_REQUEST: [&str; 3] = ["content-length", "transfer-encoding", "upgrade"];

/// Renders when a request is tried again that no VirtualService has retries for: when the server has certainly not seen
/// it. Each attempt is on an address that has not failed it, as long as there is one.
///
/// A request that is `repeatable` is also tried again when its connection was reset before an answer came: a server may
/// close an idle connection just as a request comes.
pub(super) fn default_retries(tls: bool, repeatable: bool) -> Value {
    let mut fields = Map::new();
    let retry_on = match repeatable {
        true => "connect-failure,refused-stream,reset",
        false => "connect-failure,refused-stream",
    };
    set(&mut fields, "retry_on", json!(retry_on));
    set(&mut fields, "num_retries", json!(2));
    on_other_hosts(true, &mut fields);
    while_tls_is_ready(tls, &mut fields);
    Value::Object(fields)
}

/// Renders what the headers of a route must say, so that it takes requests alone that are repeatable: nothing that may
/// change something, or that says it has a body.
pub(super) fn repeatable() -> impl Iterator<Item = Value> {
    let methods = json!({"safe_regex": {"regex": REPEATABLE.join("|")}});
    let method = json!({"name": ":method", "string_match": methods});
    let absent = |name: &str| json!({"name": name, "present_match": false});
    std::iter::once(method).chain(MORE_THAN_A_REQUEST.into_iter().map(absent))
}

/// Returns what a cluster's requests are hashed by, for the routes that lead to it.
pub(super) fn hash_policy(cluster: &Cluster) -> Option<Value> {
    let hash = cluster.load_balancer.as_ref()?.consistent_hash.as_ref()?;
    let policy = match hash.key.as_ref()? {
        HashKey::Header(name) => json!({"header": {"header_name": name}}),
        HashKey::SourceIp => json!({"connection_properties": {"source_ip": true}}),
        HashKey::QueryParameter(name) => json!({"query_parameter": {"name": name}}),
        HashKey::Cookie {
            name,
            path,
            ttl,
            attributes,
        } => {
            let mut cookie = Map::new();
            set(&mut cookie, "name", json!(name));
            set_some(
                &mut cookie,
                "path",
                Some(path.as_str()).filter(|path| !path.is_empty()),
            );
            set_some(&mut cookie, "ttl", ttl.map(duration));
            let attributes: Vec<Value> = attributes
                .iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
            set_some(
                &mut cookie,
                "attributes",
                Some(attributes).filter(|list| !list.is_empty()),
            );
            json!({"cookie": cookie})
        }
    };
    Some(json!([policy]))
}

/// Renders how often a request is tried again, if it is.
///
/// Source: istio/istio `pilot/pkg/networking/core/route/retry/retry.go`, `ConvertPolicy`.
fn retry_policy(retries: &Retries, tls: bool) -> Option<Value> {
    if retries.attempts == 0 {
        return None;
    }
    let mut fields = Map::new();
    set(&mut fields, "retry_on", json!(retries.conditions()));
    set(&mut fields, "num_retries", json!(retries.attempts));
    if !retries.statuses.is_empty() {
        set(
            &mut fields,
            "retriable_status_codes",
            json!(retries.statuses),
        );
    }
    let per_try = retries.per_try_timeout.map(duration);
    set_some(&mut fields, "per_try_timeout", per_try);
    if let Some(backoff) = retries.backoff {
        let backoff = json!({"base_interval": duration(backoff)});
        set(&mut fields, "retry_back_off", backoff);
    }
    on_other_hosts(retries.other_hosts.unwrap_or(true), &mut fields);
    while_tls_is_ready(tls, &mut fields);
    Some(Value::Object(fields))
}

/// Renders how an attempt comes by its host: by one that was not tried before, or by any.
fn on_other_hosts(others: bool, fields: &mut Map<String, Value>) {
    if others {
        let predicate = extension(
            "envoy.retry_host_predicates.previous_hosts",
            "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            json!({}),
        );
        set(fields, "retry_host_predicate", json!([predicate]));
    }
    set(fields, "host_selection_retry_max_attempts", json!("5"));
}

/// Renders that a request to TLS is tried again only where TLS was ready when it came. While a secret is missing, Envoy
/// writes `:scheme: http`, and would send that if the secret came between two attempts.
fn while_tls_is_ready(tls: bool, fields: &mut Map<String, Value>) {
    if tls {
        let https = json!([{"name": ":scheme", "string_match": {"exact": "https"}}]);
        set(fields, "retriable_request_headers", https);
    }
}

/// Renders Envoy's filter for faults, which does nothing where no route asks for it.
pub(super) fn fault_filter() -> Value {
    extension(FAULT, FAULT_MESSAGE, json!({}))
}

/// Renders for the `typed_per_filter_config` of a route what goes wrong on it.
pub(super) fn fault(fault: &Fault) -> Option<(String, Value)> {
    let mut fields = Map::new();
    if let Some((abort, percent)) = &fault.abort {
        let mut abort = match abort {
            Abort::Http(status) => Map::from_iter([("http_status".to_owned(), json!(status))]),
            Abort::Grpc(status) => Map::from_iter([("grpc_status".to_owned(), json!(status))]),
        };
        set(&mut abort, "percentage", percentage(*percent));
        set(&mut fields, "abort", Value::Object(abort));
    }
    if let Some((time, percent)) = &fault.delay {
        let delay = json!({"fixed_delay": duration(*time), "percentage": percentage(*percent)});
        set(&mut fields, "delay", delay);
    }
    if fields.is_empty() {
        return None;
    }
    let kind = format!("type.googleapis.com/{FAULT_MESSAGE}");
    set(&mut fields, "@type", json!(kind));
    Some((FAULT.to_owned(), Value::Object(fields)))
}

fn percentage(percent: Percent) -> Value {
    json!({"numerator": percent.0, "denominator": "MILLION"})
}

/// What a route or a share of one changes in headers, as Envoy has it. Within each list the order counts.
#[derive(Default)]
pub(super) struct HeaderFields {
    request_add: Vec<Value>,
    request_remove: Vec<String>,
    response_add: Vec<Value>,
    response_remove: Vec<String>,
}

impl HeaderFields {
    /// Returns what a VirtualService says.
    pub(super) fn of(headers: &Headers) -> Self {
        let mut fields = HeaderFields::default();
        fields.extend(headers);
        fields
    }

    /// Adds what a VirtualService says of a destination, behind what it says of the route.
    pub(super) fn extend(&mut self, headers: &Headers) {
        let Headers { request, response } = headers;
        self.request_add.extend(added(request));
        self.request_remove.extend(request.remove.iter().cloned());
        self.response_add.extend(added(response));
        self.response_remove.extend(response.remove.iter().cloned());
    }

    /// Takes a header of ours away before the server is reached.
    pub(super) fn remove_from_requests(&mut self, header: &str) {
        self.request_remove.push(header.to_owned());
    }

    /// Takes away what tells applications to speak TLS themselves.
    pub(super) fn hide_hints(&mut self) {
        let hints = HINTS.map(str::to_owned);
        self.response_remove.extend(hints);
    }

    /// Adds a header of ours before those of VirtualServices, which may say otherwise.
    pub(super) fn add_to_requests(&mut self, header: Value) {
        self.request_add.insert(0, header);
    }

    /// Writes all of it into a route, or into a share of one.
    pub(super) fn write(self, fields: &mut Map<String, Value>) {
        let mut write = |name: &str, list: Vec<Value>| {
            if !list.is_empty() {
                set(fields, name, Value::Array(list));
            }
        };
        let texts = |list: Vec<String>| list.into_iter().map(Value::String).collect();
        write("request_headers_to_add", self.request_add);
        write("request_headers_to_remove", texts(self.request_remove));
        write("response_headers_to_add", self.response_add);
        write("response_headers_to_remove", texts(self.response_remove));
    }
}

fn added(changes: &HeaderChanges) -> impl Iterator<Item = Value> {
    let option = |(name, value): &(String, String), action: &str| {
        json!({
            "header": {"key": name, "value": value},
            "append_action": action,
        })
    };
    let set = changes.set.iter();
    let set = set.map(move |it| option(it, "OVERWRITE_IF_EXISTS_OR_ADD"));
    let add = changes.add.iter();
    set.chain(add.map(move |it| option(it, "APPEND_IF_EXISTS_OR_ADD")))
}
