//! What an HTTP route asks of a request: `http[].match`.

use egress_policy::fields::{Field, Fields};
use egress_policy::reading::{is_label, read_labels};
use egress_policy::{PortNumber, ProblemKind};

use super::text::{Allowed, StringMatch, read_string};

/// One of the ways in which a request may be what a route takes. All that it says must hold.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `HTTPMatchRequest`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HttpMatch {
    /// The port that was called, or that of the gateway's server.
    pub port: Option<PortNumber>,
    /// The gateways, or `mesh`; none for all of the VirtualService.
    pub gateways: Vec<String>,
    /// The labels of the caller.
    pub source_labels: Vec<(String, String)>,
    /// The namespace of the caller.
    pub source_namespace: Option<String>,
    /// The path without the query.
    pub uri: Option<StringMatch>,
    /// The case of the path's letters does not count.
    pub ignore_uri_case: bool,
    /// The method.
    pub method: Option<StringMatch>,
    /// The host as it was sent, with its port and its case.
    pub authority: Option<StringMatch>,
    /// The scheme.
    pub scheme: Option<StringMatch>,
    /// Headers that must be there, by name.
    pub headers: Vec<(String, StringMatch)>,
    /// Headers that must not be like this, by name; one that is absent is empty.
    pub without_headers: Vec<(String, StringMatch)>,
    /// Parameters of the query, by name.
    pub query: Vec<(String, StringMatch)>,
}

impl HttpMatch {
    /// Reads a prefix of the path as the Gateway API does: by the parts between slashes.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `TranslateRouteMatch`.
    pub(super) fn separate(&mut self) {
        if let Some(StringMatch::Prefix(prefix)) = &self.uri
            && prefix != "/"
        {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            self.uri = Some(StringMatch::PathPrefix(prefix.to_owned()));
        }
    }

    /// Whether it asks something of the request itself, beside who sends it to which port.
    pub fn asks_of_the_request(&self) -> bool {
        let texts = [&self.uri, &self.method, &self.authority, &self.scheme];
        let lists = [&self.headers, &self.without_headers, &self.query];
        texts.iter().any(|text| text.is_some()) || lists.iter().any(|list| !list.is_empty())
    }
}

/// Reads one of a route's matches; `router` says that the VirtualService is for gateways only.
///
/// Source: istio/istio `pkg/config/validation/virtualservice.go`, `validateHTTPRouteMatchRequest`.
pub(super) fn read_match(field: Field<'_>, router: bool) -> Option<HttpMatch> {
    let fields = field.fields()?;
    fields.ignore(&["name", "statPrefix"]);
    let text = |name| fields.read(name, |field| read_string(field, Allowed::default()));
    let uri = Allowed {
        empty_prefix: true,
        ..Allowed::default()
    };
    let star = Allowed {
        star: true,
        ..Allowed::default()
    };
    Some(HttpMatch {
        port: read_port(&fields),
        gateways: read_gateways(&fields),
        source_labels: (fields.read("sourceLabels", |field| Some(read_labels(field))))
            .unwrap_or_default(),
        source_namespace: fields.read("sourceNamespace", read_namespace),
        uri: fields.read("uri", |field| read_string(field, uri)),
        ignore_uri_case: fields
            .read("ignoreUriCase", |field| field.bool())
            .unwrap_or(false),
        method: text("method"),
        authority: text("authority"),
        scheme: text("scheme"),
        headers: read_headers(&fields, "headers", Allowed::default(), router),
        without_headers: read_headers(&fields, "withoutHeaders", star, router),
        query: read_query(&fields),
    })
}

/// Reads the port of a match. Zero is no port.
pub(super) fn read_port(fields: &Fields<'_>) -> Option<PortNumber> {
    let number = fields.read("port", |field| field.number(0, 65535))?;
    u16::try_from(number).ok().and_then(PortNumber::new)
}

/// Reads the namespace of a caller.
pub(super) fn read_namespace(field: Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.is_empty() {
        return None;
    }
    if !is_label(text) {
        let text = format!("sourceNamespace match {text} is invalid");
        field.error_with_hint(ProblemKind::Invalid(text), "letters, digits and `-`");
        return None;
    }
    Some(text.to_owned())
}

/// Reads the names of gateways: `mesh`, `NAME`, `NAMESPACE/NAME`, or the older `NAME.NAMESPACE.svc…`.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateGatewayNames`.
pub(super) fn read_gateways(fields: &Fields<'_>) -> Vec<String> {
    let mut gateways = Vec::new();
    fields.read("gateways", |list| {
        list.items(|item| {
            let Some(text) = item.text() else { return };
            let problem = match text.split_once('/') {
                Some(("", _) | (_, "")) => {
                    Some("config namespace and gateway name cannot be empty".to_owned())
                }
                Some((namespace, _)) if namespace != "." && !is_label(namespace) => {
                    Some(format!("invalid value for namespace: \"{namespace}\""))
                }
                Some((_, name)) if !is_label(name) => {
                    Some(format!("invalid value for gateway name: \"{name}\""))
                }
                None if text.is_empty() || !text.split('.').all(is_label) => {
                    Some(format!("invalid value for gateway name: \"{text}\""))
                }
                _ => None,
            };
            match problem {
                Some(text) => item.error_with_hint(
                    ProblemKind::Invalid(text),
                    "write `mesh`, or the Gateway's namespace and name with `/` between",
                ),
                None => gateways.push(text.to_owned()),
            }
        });
        Some(())
    });
    gateways
}

fn read_headers(
    fields: &Fields<'_>,
    name: &'static str,
    allowed: Allowed,
    router: bool,
) -> Vec<(String, StringMatch)> {
    let mut headers = Vec::new();
    fields.read(name, |field| {
        field.entries(|name, field| {
            if name.starts_with("@request.auth.claims") {
                let claims = match router {
                    true => ProblemKind::NotSupported("routing by the claims of a JWT".to_owned()),
                    false => ProblemKind::Invalid(format!(
                        "JWT claim based routing (key: {name}) is only supported for gateway"
                    )),
                };
                field.error_with_hint(claims, "match another header");
                return;
            }
            if !is_matched_name(name) {
                let text = format!("header name `{name}` is not a valid header name");
                field.error_with_hint(ProblemKind::Invalid(text), "see RFC 9110, 5.6.2");
                return;
            }
            let read = read_string(field, allowed);
            headers.extend(read.map(|value| (name.to_ascii_lowercase(), value)));
        });
        Some(())
    });
    // As Istio sorts them, so that the order in the file means nothing.
    headers.sort_by(|(one, _), (other, _)| one.cmp(other));
    headers
}

fn read_query(fields: &Fields<'_>) -> Vec<(String, StringMatch)> {
    let mut query = Vec::new();
    fields.read("queryParams", |field| {
        field.entries(|name, field| {
            if name.is_empty() {
                let text = "the name of a query parameter is empty".to_owned();
                field.error_with_hint(ProblemKind::Invalid(text), "name the parameter");
                return;
            }
            let read = read_string(field, Allowed::default());
            query.extend(read.map(|value| (name.to_owned(), value)));
        });
        Some(())
    });
    query.sort_by(|(one, _), (other, _)| one.cmp(other));
    query
}

/// Whether a header of this name can be asked for: a token, or one of HTTP/2's.
fn is_matched_name(name: &str) -> bool {
    let pseudo = [":method", ":authority", ":path", ":scheme"];
    pseudo.contains(&name) || is_token(name)
}

/// Whether a text is a token (RFC 9110, 5.6.2).
pub(super) fn is_token(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(token)
}
