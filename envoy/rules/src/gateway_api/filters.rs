//! What rules and their destinations change: `filters`.

use egress_policy::fields::{Field, Fields};
use egress_policy::{ProblemKind, ResourceId};
use serde_json::{Map, Value, json};

use super::kind::Kind;
use super::reference::read_reference;

/// What filters say.
#[derive(Default)]
pub(super) struct Filters {
    /// As `headers` of a VirtualService has it.
    pub(super) headers: Map<String, Value>,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrite: Option<Rewrite>,
}

/// An answer that sends the application elsewhere.
pub(super) struct Redirect {
    /// As `redirect` of a VirtualService has it, but for the path.
    pub(super) value: Map<String, Value>,
    pub(super) path: Option<PathChange>,
}

/// Another host, and another path.
pub(super) struct Rewrite {
    pub(super) hostname: Option<String>,
    pub(super) path: Option<PathChange>,
}

/// Another path.
pub(super) enum PathChange {
    Full(String),
    /// In place of the path that a rule is for, without a slash at the end.
    Prefix(String),
}

/// What filters are of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Rule,
    Backend,
}

/// Reads `filters`. Istio drops the whole route where one of them is not known to it.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `convertHTTPRoute`.
pub(super) fn read(fields: &Fields<'_>, kind: Kind, of: Place, route: &ResourceId) -> Filters {
    let mut filters = Filters::default();
    let mut seen: Vec<String> = Vec::new();
    fields.read("filters", |list| {
        list.items(|item| {
            let read = read_one(item, kind, of, route, &mut filters);
            let Some(word) = read else { return };
            if seen.contains(&word) && word != "RequestMirror" {
                let text = format!("a second `{word}`");
                item.error_with_hint(ProblemKind::Conflict(text), "say all of it in one filter");
            }
            seen.push(word);
        });
        Some(())
    });
    if filters.redirect.is_some() && filters.rewrite.is_some() {
        let text = "a rule cannot both redirect and rewrite requests".to_owned();
        let hint = "one rule answers or leads somewhere: make two of it";
        fields.error_at("filters", ProblemKind::Conflict(text), Some(hint));
    }
    filters
}

/// Reads one filter, and returns its type.
fn read_one(
    field: Field<'_>,
    kind: Kind,
    of: Place,
    route: &ResourceId,
    filters: &mut Filters,
) -> Option<String> {
    const HTTP: [&str; 6] = [
        "RequestHeaderModifier",
        "ResponseHeaderModifier",
        "RequestRedirect",
        "URLRewrite",
        "RequestMirror",
        "CORS",
    ];
    const GRPC: [&str; 3] = [
        "RequestHeaderModifier",
        "ResponseHeaderModifier",
        "RequestMirror",
    ];
    let fields = field.fields()?;
    let words: &[&'static str] = match (of, kind) {
        (Place::Backend, _) => HTTP.get(..2).unwrap_or_default(),
        (Place::Rule, Kind::Grpc) => &GRPC,
        (Place::Rule, _) => &HTTP,
    };
    let word = fields.require("type", |field| {
        let text = field.text()?;
        if HTTP.contains(&text) && !words.contains(&text) || text == "ExtensionRef" {
            let kind = ProblemKind::NotSupported(format!("a filter `{text}` here"));
            let hint = "Istio drops the whole route for it; say it in another way";
            field.error_with_hint(kind, hint);
            return None;
        }
        field.word("type of filter", words, |word| {
            words.contains(&word).then(|| word.to_owned())
        })
    });
    let Some(word) = word else {
        fields.allow_unknown();
        return None;
    };
    match word.as_str() {
        "RequestHeaderModifier" => {
            let changes = fields.require("requestHeaderModifier", read_changes);
            filters
                .headers
                .extend(changes.map(|it| ("request".to_owned(), it)));
        }
        "ResponseHeaderModifier" => {
            let changes = fields.require("responseHeaderModifier", read_changes);
            filters
                .headers
                .extend(changes.map(|it| ("response".to_owned(), it)));
        }
        "RequestRedirect" => filters.redirect = fields.require("requestRedirect", read_redirect),
        "URLRewrite" => filters.rewrite = fields.require("urlRewrite", read_rewrite),
        "RequestMirror" => {
            let kind = ProblemKind::NotSupported("`requestMirror`".to_owned());
            let hint = "no copy of a request is sent; the request itself is";
            fields.warning_at("requestMirror", kind, hint);
            fields.require("requestMirror", |field| read_mirror(field, route));
        }
        _ => {
            let kind = ProblemKind::NotSupported("`cors`".to_owned());
            let hint = "it concerns browsers; the server's own answers are passed on";
            fields.warning_at("cors", kind, hint);
            fields.require("cors", read_cors);
        }
    }
    Some(word)
}

/// Reads what is changed in headers. Of two changes of one header the first counts.
fn read_changes(field: Field<'_>) -> Option<Value> {
    let fields = field.fields()?;
    let mut changes = Map::new();
    for name in ["set", "add"] {
        let mut all = Map::new();
        fields.read(name, |list| {
            list.items(|item| {
                let Some(fields) = item.fields() else { return };
                let text = |name| fields.require(name, |field| field.text().map(str::to_owned));
                if let (Some(name), Some(value)) = (text("name"), text("value")) {
                    all.entry(name.to_ascii_lowercase()).or_insert(json!(value));
                }
            });
            Some(())
        });
        if !all.is_empty() {
            changes.insert(name.to_owned(), Value::Object(all));
        }
    }
    let removed = fields.read("remove", |list| Some(list.texts()));
    if let Some(removed) = removed.filter(|names| !names.is_empty()) {
        changes.insert("remove".to_owned(), json!(removed));
    }
    Some(Value::Object(changes))
}

/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `createRedirectFilter`.
fn read_redirect(field: Field<'_>) -> Option<Redirect> {
    let fields = field.fields()?;
    let mut value = Map::new();
    let scheme = fields.read("scheme", |field| {
        let words = ["http", "https"];
        field.word("scheme", &words, |word| {
            words.contains(&word).then(|| word.to_owned())
        })
    });
    let host = fields.read("hostname", read_hostname);
    let port = fields.read("port", |field| field.port());
    let status = fields.read("statusCode", |field| {
        let status = field.number(100, 599)?;
        if ![301, 302, 303, 307, 308].contains(&status) {
            let text = format!("{status} is not a valid redirect code");
            field.error_with_hint(ProblemKind::Invalid(text), "301, 302, 303, 307 or 308");
        }
        Some(status)
    });
    let path = fields.read("path", read_path);
    match (port, &scheme) {
        (Some(port), _) => value.insert("port".to_owned(), json!(port.get())),
        (None, Some(_)) => value.insert("derivePort".to_owned(), json!("FROM_PROTOCOL_DEFAULT")),
        (None, None) => value.insert("derivePort".to_owned(), json!("FROM_REQUEST_PORT")),
    };
    value.extend(host.map(|host| ("authority".to_owned(), json!(host))));
    value.extend(scheme.map(|scheme| ("scheme".to_owned(), json!(scheme))));
    value.insert("redirectCode".to_owned(), json!(status.unwrap_or(302)));
    Some(Redirect { value, path })
}

/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `createRewriteFilter`.
fn read_rewrite(field: Field<'_>) -> Option<Rewrite> {
    let fields = field.fields()?;
    Some(Rewrite {
        hostname: fields.read("hostname", read_hostname),
        path: fields.read("path", read_path),
    })
}

fn read_hostname(field: Field<'_>) -> Option<String> {
    field.host().map(|host| host.to_string())
}

fn read_path(field: Field<'_>) -> Option<PathChange> {
    let fields = field.fields()?;
    let text = |name| {
        fields.require(name, |field| {
            let text = field.text()?;
            // Envoy would take it for a group of what matched.
            if text.contains('\\') {
                let kind = ProblemKind::NotSupported(format!("`\\` in the path `{text}`"));
                field.error_with_hint(kind, "write it as `%5C`");
                return None;
            }
            Some(text.to_owned())
        })
    };
    let words = ["ReplaceFullPath", "ReplacePrefixMatch"];
    let full = fields.require("type", |field| {
        field.word("type", &words, |word| match word {
            "ReplaceFullPath" => Some(true),
            "ReplacePrefixMatch" => Some(false),
            _ => None,
        })
    });
    match full {
        Some(true) => text("replaceFullPath").map(PathChange::Full),
        Some(false) => {
            let prefix = text("replacePrefixMatch")?;
            let prefix = prefix.strip_suffix('/').unwrap_or(&prefix);
            Some(PathChange::Prefix(prefix.to_owned()))
        }
        None => {
            fields.allow_unknown();
            None
        }
    }
}

fn read_mirror(field: Field<'_>, route: &ResourceId) -> Option<()> {
    let fields = field.fields()?;
    fields.require("backendRef", |field| {
        read_reference(&field.fields()?, &route.namespace).map(drop)
    });
    fields.read("percent", |field| field.number(0, 100));
    fields.read("fraction", |field| {
        let fields = field.fields()?;
        fields.require("numerator", |field| {
            field.number(0, i32::MAX.unsigned_abs().into())
        });
        fields.read("denominator", |field| {
            field.number(1, i32::MAX.unsigned_abs().into())
        })
    });
    Some(())
}

fn read_cors(field: Field<'_>) -> Option<()> {
    let fields = field.fields()?;
    for name in [
        "allowOrigins",
        "allowMethods",
        "allowHeaders",
        "exposeHeaders",
    ] {
        fields.read(name, |field| Some(field.texts()));
    }
    fields.read("allowCredentials", |field| field.bool());
    fields.read("maxAge", |field| {
        field.number(0, i32::MAX.unsigned_abs().into())
    });
    Some(())
}
