//! The routes of requests: `http`.

use std::time::Duration;

use egress_policy::fields::{Field, Fields};
use egress_policy::{HostName, ProblemKind};

use super::answer::{DirectResponse, Redirect, read_direct_response, read_redirect};
use super::destination::{Share, read_destination, read_shares, served};
use super::effort::{Fault, Retries, read_fault, read_percent, read_retries, read_time};
use super::headers::{Headers, read_headers};
use super::matches::{HttpMatch, is_token, read_match};
use super::pattern::Pattern;
use super::text::{Allowed, read_pattern, read_string};

/// What becomes of requests that one of its matches takes.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `HTTPRoute`.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRoute {
    /// Its name.
    pub name: Option<String>,
    /// What it takes; everything, where there is none.
    pub matches: Vec<HttpMatch>,
    /// Where the requests go, or what they are answered.
    pub action: RouteAction,
    /// Another path than that of the request.
    pub rewrite: Option<PathRewrite>,
    /// Another host than that of the request: of `rewrite`, or of `headers`.
    pub authority: Option<String>,
    /// How long the answer may take.
    pub timeout: Option<Duration>,
    /// How often it is tried, where that is said.
    pub retries: Option<Retries>,
    /// What goes wrong on purpose.
    pub fault: Fault,
    /// What is changed in headers.
    pub headers: Headers,
}

/// What a route does with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteAction {
    /// It leads it there.
    Forward(Vec<Share>),
    /// It sends the application elsewhere.
    Redirect(Redirect),
    /// It answers.
    Respond(DirectResponse),
}

/// What takes the place of a path, or of a part of it.
#[derive(Debug, Clone, PartialEq)]
pub enum PathRewrite {
    /// This takes the place of the prefix that matched, or of the whole path.
    Prefix(String),
    /// This takes the place of what matches; `\1` is the first group.
    Regex(Pattern, String),
}

impl HttpRoute {
    /// Returns the host that a share's requests have instead of their own: the route's goes before the share's.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `processDestination`.
    pub fn authority_of<'r>(&'r self, share: &'r Share) -> Option<&'r str> {
        let own = self.authority.as_deref();
        own.or(share.headers.request.authority.as_deref())
    }

    /// Returns the shares that get anything; none where it answers by itself.
    pub fn shares(&self) -> Vec<&Share> {
        match &self.action {
            RouteAction::Forward(shares) => served(shares).collect(),
            RouteAction::Redirect(_) | RouteAction::Respond(_) => Vec::new(),
        }
    }
}

/// Reads one route of requests; `router` says that the VirtualService is for gateways only, `delegate` that others
/// delegate to it.
///
/// Source: istio/istio `pkg/config/validation/virtualservice.go`, `validateHTTPRoute`.
pub(super) fn read_http_route(field: Field<'_>, router: bool, delegate: bool) -> Option<HttpRoute> {
    let fields = field.fields()?;
    let name = fields.read("name", |field| field.text().map(str::to_owned));
    let mut matches = Vec::new();
    fields.read("match", |list| {
        list.items(|item| matches.extend(read_match(item, router)));
        Some(())
    });
    let shares = read_shares(&fields, true);
    let redirect = fields.read("redirect", read_redirect);
    let respond = fields.read("directResponse", read_direct_response);
    match fields.has("delegate") {
        true => check_delegate(&fields, delegate),
        false => check_one_action(&fields),
    }
    let headers = fields.read("headers", read_headers).unwrap_or_default();
    let (rewrite, authority) = read_rewrite(&fields, &headers);
    let timeout = fields.read("timeout", read_time);
    let retries = fields.read("retries", read_retries);
    let fault = fields.read("fault", read_fault).unwrap_or_default();
    read_mirrors(&fields);
    read_cors(&fields);
    let action = match (redirect, respond) {
        (Some(redirect), _) => RouteAction::Redirect(redirect),
        (None, Some(response)) => RouteAction::Respond(response),
        (None, None) => RouteAction::Forward(shares),
    };
    Some(HttpRoute {
        name,
        matches,
        action,
        rewrite,
        authority,
        timeout,
        retries,
        fault,
        headers,
    })
}

/// Reads which VirtualService has the routes in place of this one. That is another's business only once.
///
/// Source: istio/istio `pkg/config/validation/virtualservice.go`, `validateHTTPRouteConflict`.
fn check_delegate(fields: &Fields<'_>, delegate: bool) {
    fields.read("delegate", |field| {
        if delegate {
            let text = "delegate HTTP route cannot contain delegate".to_owned();
            let hint = "write the routes of the other VirtualService here";
            field.error_with_hint(ProblemKind::Invalid(text), hint);
        }
        let fields = field.fields()?;
        fields.require("name", |field| {
            let text = field.text()?;
            if text.is_empty() {
                field.error(ProblemKind::Missing);
            }
            Some(())
        });
        fields.read("namespace", |field| field.text().map(drop))
    });
    for other in ["route", "redirect"] {
        if fields.given(other) {
            let text = format!("root HTTP route must not specify {other}");
            let hint = "the VirtualService in `delegate` says where requests go";
            fields.error_at(other, ProblemKind::Conflict(text), Some(hint));
        }
    }
}

/// Reports a route that does two things at once, or none.
///
/// Source: istio/istio `pkg/config/validation/virtualservice.go`, `validateHTTPRouteConflict`.
fn check_one_action(fields: &Fields<'_>) {
    fields.ignore(&["delegate"]);
    let answer = ["redirect", "directResponse"]
        .into_iter()
        .find(|name| fields.has(name));
    let Some(answer) = answer else {
        if !fields.given("route") {
            let text = "HTTP route, redirect or direct_response is required".to_owned();
            fields.error(ProblemKind::Invalid(text), Some("give it a `route`"));
        }
        return;
    };
    for other in ["route", "fault", "rewrite", "directResponse"] {
        if other != answer && fields.given(other) {
            let text = format!("HTTP route cannot contain both {other} and {answer}");
            let hint = "one route answers or leads somewhere: make two of it";
            fields.error_at(other, ProblemKind::Conflict(text), Some(hint));
        }
    }
}

/// Reads `rewrite`, and the host that requests are given there or in `headers`.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateHTTPRewrite`, and `validateAuthorityRewrite`.
fn read_rewrite(fields: &Fields<'_>, headers: &Headers) -> (Option<PathRewrite>, Option<String>) {
    let of_headers = headers.request.authority.clone();
    let mut authority = None;
    let rewrite = fields.read("rewrite", |field| {
        let fields = field.fields()?;
        let uri = fields.read("uri", |field| field.text().map(str::to_owned));
        let regex = fields.read("uriRegexRewrite", |field| {
            let fields = field.fields()?;
            let pattern = fields.require("match", read_pattern);
            let rewrite = fields.require("rewrite", |field| {
                let text = field.text()?;
                if text.is_empty() {
                    field.error(ProblemKind::Missing);
                }
                Some(text.to_owned())
            });
            Some(PathRewrite::Regex(pattern?, rewrite?))
        });
        authority = fields.read("authority", |field| field.text().map(str::to_owned));
        authority = authority.take().filter(|text| !text.is_empty());
        let uri = uri.filter(|text| !text.is_empty());
        if uri.is_some() && fields.has("uriRegexRewrite") {
            let text = "rewrite may only contain one of URI or UriRegexRewrite".to_owned();
            fields.error(ProblemKind::Conflict(text), Some("keep one of them"));
        }
        if !["uri", "uriRegexRewrite", "authority"]
            .iter()
            .any(|name| fields.given(name))
        {
            let text = "rewrite must specify at least one of URI, UriRegexRewrite, or authority";
            let kind = ProblemKind::Invalid(text.to_owned());
            fields.error(kind, Some("give one of them, or leave `rewrite` out"));
        }
        uri.map(PathRewrite::Prefix).or(regex)
    });
    if let (Some(one), Some(other)) = (&authority, &of_headers) {
        let text = format!(
            "authority header cannot be set multiple times: have \"{one}\", attempting to set \"{other}\""
        );
        let hint = "keep the one of `rewrite`";
        fields.error_at("headers", ProblemKind::Conflict(text), Some(hint));
    }
    let name = match &authority {
        Some(_) => "rewrite",
        None => "headers",
    };
    let authority = authority.or(of_headers);
    // It becomes the name that is sent and verified.
    if let Some(Err(error)) = authority.as_deref().map(HostName::dns) {
        let text = format!("the host is none: {error}");
        let hint = "write the host alone, without scheme, port and path";
        fields.error_at(name, ProblemKind::Invalid(text), Some(hint));
    }
    (rewrite, authority)
}

/// Reads what is copied to others, which is not done: the copies would need a decision of their own.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateHTTPMirrors`.
fn read_mirrors(fields: &Fields<'_>) {
    let unread = |name: &'static str| {
        if fields.has(name) {
            let kind = ProblemKind::NotSupported(format!("`{name}`"));
            fields.warning_at(
                name,
                kind,
                "no copy of a request is sent; the request itself is",
            );
        }
    };
    unread("mirror");
    unread("mirrors");
    fields.read("mirror", |field| read_destination(field).map(drop));
    fields.read("mirrorPercentage", |field| read_percent(field).map(drop));
    for name in ["mirrorPercent", "mirror_percent"] {
        fields.read(name, |field| field.number(0, 100));
    }
    fields.read("mirrors", |list| {
        list.items(|item| {
            let Some(fields) = item.fields() else { return };
            fields.require("destination", |field| read_destination(field).map(drop));
            fields.read("percentage", |field| read_percent(field).map(drop));
        });
        Some(())
    });
    if fields.has("mirror") && fields.given("mirrors") {
        let text = "HTTP route cannot contain both mirror and mirrors".to_owned();
        fields.error_at(
            "mirrors",
            ProblemKind::Conflict(text),
            Some("keep `mirrors`"),
        );
    }
}

/// Reads what browsers are told, which nobody here is.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateCORSPolicy`.
fn read_cors(fields: &Fields<'_>) {
    fields.read("corsPolicy", |field| {
        let kind = ProblemKind::NotSupported("`corsPolicy`".to_owned());
        field.warning(
            kind,
            "it concerns browsers; the server's own answers are passed on",
        );
        let fields = field.fields()?;
        fields.read("allowOrigins", |list| {
            list.items(|item| drop(read_string(item, Allowed::default())));
            Some(())
        });
        fields.read("allowOrigin", |field| Some(field.texts()));
        for (name, kind) in [
            ("allowMethods", "HTTP method"),
            ("allowHeaders", "header name"),
            ("exposeHeaders", "header name"),
        ] {
            fields.read(name, |list| {
                list.items(|item| {
                    if let Some(text) = item.text()
                        && text != "*"
                        && !is_token(text)
                    {
                        let text = format!("\"{text}\" is not a supported {kind}");
                        item.error(ProblemKind::Invalid(text));
                    }
                });
                Some(())
            });
        }
        fields.read("maxAge", read_time);
        fields.read("allowCredentials", |field| field.bool());
        fields.read("unmatchedPreflights", |field| {
            let words = ["UNSPECIFIED", "FORWARD", "IGNORE"];
            field.word("word", &words, |word| words.contains(&word).then_some(()))
        });
        Some(())
    });
}
