//! What a route answers by itself: `http[].redirect` and `http[].directResponse`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use egress_policy::fields::{Field, Fields};
use egress_policy::{PortNumber, ProblemKind};

/// An answer that sends the application elsewhere.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `HTTPRedirect`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Redirect {
    /// The path in place of the request's.
    pub uri: Option<String>,
    /// What takes the place of the prefix that matched.
    pub prefix: Option<String>,
    /// The host in place of the request's.
    pub authority: Option<String>,
    /// The scheme in place of the request's.
    pub scheme: Option<String>,
    /// The port in place of the request's.
    pub port: RedirectPort,
    /// The status: 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// The port that a redirect names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RedirectPort {
    /// Envoy's choice: that of the scheme, if the scheme changes.
    #[default]
    OfTheScheme,
    /// The one that was called.
    OfTheRequest,
    /// This one.
    Number(PortNumber),
}

/// An answer with a status and a body.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `HTTPDirectResponse`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Option<Vec<u8>>,
}

/// The statuses that Envoy has for a redirect; Istio accepts the others and makes a route of them that Envoy refuses.
const STATUSES: [u64; 5] = [301, 302, 303, 307, 308];

/// The largest body that Istio accepts.
const LARGEST_BODY: usize = 1 << 20;

/// The largest body that Envoy accepts, unless it is told otherwise.
///
/// Source: envoyproxy/envoy `api/envoy/config/route/v3/route.proto`, `max_direct_response_body_size_bytes`.
pub const DEFAULT_BODY: usize = 4096;

/// Source: istio/istio `pkg/config/validation/validation.go`, `validateHTTPRedirect`.
pub(super) fn read_redirect(field: Field<'_>) -> Option<Redirect> {
    let fields = field.fields()?;
    let text = |name| {
        let text = fields.read(name, |field| field.text().map(str::to_owned));
        text.filter(|text| !text.is_empty())
    };
    let (uri, prefix, authority) = (text("uri"), text("prefixRewrite"), text("authority"));
    let scheme = fields.read("scheme", |field| {
        let read = |word: &str| matches!(word, "" | "http" | "https").then(|| word.to_owned());
        field.word("scheme", &["http", "https"], read)
    });
    let port = read_redirect_port(&fields);
    let status = fields.read("redirectCode", |field| {
        let status = field.number(0, 399)?;
        if status != 0 && !STATUSES.contains(&status) {
            let text = format!("{status} is not a valid redirect code");
            field.error_with_hint(ProblemKind::Invalid(text), "301, 302, 303, 307 or 308");
        }
        u16::try_from(status).ok().filter(|status| *status != 0)
    });
    if uri.is_some() && prefix.is_some() {
        let text = "redirect may only contain one of `uri` and `prefixRewrite`".to_owned();
        fields.error(ProblemKind::Conflict(text), Some("keep one of them"));
    }
    let says = [
        "uri",
        "prefixRewrite",
        "authority",
        "scheme",
        "port",
        "derivePort",
    ];
    if !says.iter().any(|name| fields.given(name)) {
        let text = "redirect must specify URI, authority, scheme, or port".to_owned();
        fields.error(ProblemKind::Invalid(text), Some("give one of them"));
    }
    Some(Redirect {
        uri,
        prefix,
        authority,
        scheme: scheme.filter(|scheme| !scheme.is_empty()),
        port,
        status: status.unwrap_or(301),
    })
}

fn read_redirect_port(fields: &Fields<'_>) -> RedirectPort {
    if fields.has("port") && fields.has("derivePort") {
        let text = "only one of `port` and `derivePort` may be given".to_owned();
        fields.error(ProblemKind::Conflict(text), Some("keep one of them"));
    }
    let number = fields.read("port", |field| field.number(0, 65535));
    let number = number.and_then(|number| u16::try_from(number).ok());
    let derived = fields.read("derivePort", |field| {
        let words = ["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"];
        field.word("derived port", &words, |word| match word {
            "FROM_PROTOCOL_DEFAULT" => Some(RedirectPort::OfTheScheme),
            "FROM_REQUEST_PORT" => Some(RedirectPort::OfTheRequest),
            _ => None,
        })
    });
    let number = number.and_then(PortNumber::new).map(RedirectPort::Number);
    number.or(derived).unwrap_or_default()
}

/// Source: istio/istio `pkg/config/validation/validation.go`, `validateHTTPDirectResponse`.
pub(super) fn read_direct_response(field: Field<'_>) -> Option<DirectResponse> {
    let fields = field.fields()?;
    let status = fields.require("status", read_status);
    let body = fields.read("body", |field| {
        let fields = field.fields()?;
        if fields.has("string") && fields.has("bytes") {
            let text = "only one of `string` and `bytes` may be given".to_owned();
            fields.error(ProblemKind::Conflict(text), Some("keep one of them"));
        }
        let string = fields.read("string", |field| Some(field.text()?.as_bytes().to_vec()));
        let bytes = fields.read("bytes", |field| {
            let read = STANDARD.decode(field.text()?).ok();
            if read.is_none() {
                let kind = ProblemKind::Invalid("is not base64".to_owned());
                field.error_with_hint(kind, "use `string` for text");
            }
            read
        });
        let body = string.or(bytes)?;
        if body.len() > LARGEST_BODY {
            let text = "large direct_responses must be less than 1MB".to_owned();
            field.error_with_hint(ProblemKind::Invalid(text), "let a server answer");
        }
        Some(body)
    });
    Some(DirectResponse {
        status: status?,
        body,
    })
}

/// Reads the status of an answer.
pub(super) fn read_status(field: Field<'_>) -> Option<u16> {
    u16::try_from(field.number(200, 599)?).ok()
}
