//! What a rule takes: `matches` of HTTPRoute and of GRPCRoute.

use egress_policy::fields::{Field, Fields};
use egress_policy::{FieldPath, ProblemKind};
use serde_json::{Map, Value, json};

/// One of a rule's matches, as a VirtualService has it.
#[derive(Debug, Clone, Default)]
pub(super) struct Match {
    /// Empty where it takes everything.
    pub(super) value: Map<String, Value>,
    /// The path below which it is, without a slash at the end: nothing for all paths.
    pub(super) below: Option<String>,
    pub(super) precedence: Precedence,
    pub(super) place: Option<FieldPath>,
}

/// How specific a match is; of two that take a request, the greater counts.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `sortHTTPRoutes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Precedence {
    /// Exact, then by its beginning, then by a regular expression, then none.
    rank: u8,
    /// The length of the path in bytes.
    length: usize,
    method: bool,
    headers: usize,
    query: usize,
}

const EXACT: u8 = 3;
const PREFIX: u8 = 2;
const REGEX: u8 = 1;

/// How a text is compared.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Exact,
    Regex,
}

const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

impl Match {
    /// Returns the one that a rule of an HTTPRoute has that gives none: all paths.
    pub(super) fn all_paths() -> Match {
        Match {
            below: Some(String::new()),
            precedence: Precedence {
                rank: PREFIX,
                length: 1,
                ..Precedence::default()
            },
            ..Match::default()
        }
    }
}

/// Reads a match of requests.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `createURIMatch`.
pub(super) fn read_http(field: Field<'_>) -> Option<Match> {
    let fields = field.fields()?;
    let mut found = fields
        .read("path", read_path)
        .unwrap_or_else(Match::all_paths);
    found.place = Some(field.cursor.path());
    let method = fields.read("method", |field| {
        field.word("method", &METHODS, |word| {
            METHODS.contains(&word).then(|| word.to_owned())
        })
    });
    if let Some(method) = method {
        found.precedence.method = true;
        found
            .value
            .insert("method".to_owned(), json!({"exact": method}));
    }
    let headers = read_named(&fields, "headers", "header");
    let query = read_named(&fields, "queryParams", "query parameter");
    found.precedence.headers = headers.len();
    found.precedence.query = query.len();
    for (name, all) in [("headers", headers), ("queryParams", query)] {
        if !all.is_empty() {
            found.value.insert(name.to_owned(), Value::Object(all));
        }
    }
    Some(found)
}

fn read_path(field: Field<'_>) -> Option<Match> {
    let fields = field.fields()?;
    let words = ["Exact", "PathPrefix", "RegularExpression"];
    let rank = fields.read("type", |field| {
        field.word("type", &words, |word| match word {
            "Exact" => Some(EXACT),
            "PathPrefix" => Some(PREFIX),
            "RegularExpression" => Some(REGEX),
            _ => None,
        })
    });
    let rank = rank.unwrap_or(PREFIX);
    let path = fields.read("value", |field| {
        let text = field.text()?;
        if rank != REGEX && !text.starts_with('/') {
            let text = format!("`{text}` is no path");
            field.error_with_hint(ProblemKind::Invalid(text), "a path begins with `/`");
            return None;
        }
        Some(text.to_owned())
    });
    let path = path.unwrap_or_else(|| "/".to_owned());
    let (key, path) = match rank {
        EXACT => ("exact", path),
        REGEX => ("regex", path),
        // A slash at the end says nothing.
        _ => ("prefix", path.strip_suffix('/').unwrap_or(&path).to_owned()),
    };
    let mut value = Map::new();
    if rank != PREFIX || !path.is_empty() {
        value.insert("uri".to_owned(), json!({key: path}));
    }
    Some(Match {
        value,
        precedence: Precedence {
            rank,
            length: path.len().max(1),
            ..Precedence::default()
        },
        below: (rank == PREFIX).then_some(path),
        place: None,
    })
}

/// Reads a match of calls.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `createGRPCURIMatch`.
pub(super) fn read_grpc(field: Field<'_>) -> Option<Match> {
    let fields = field.fields()?;
    let mut found = fields.read("method", read_method).unwrap_or_default();
    found.place = Some(field.cursor.path());
    let headers = read_named(&fields, "headers", "header");
    found.precedence.headers = headers.len();
    if !headers.is_empty() {
        found
            .value
            .insert("headers".to_owned(), Value::Object(headers));
    }
    Some(found)
}

fn read_method(field: Field<'_>) -> Option<Match> {
    let fields = field.fields()?;
    let how = read_how(&fields);
    let text = |name| {
        let text = fields.read(name, |field| {
            let text = field.text()?;
            if text.contains('/') {
                let kind = ProblemKind::Invalid(format!("`{text}` has a `/`"));
                field.error_with_hint(kind, "give `service` and `method` apart");
            }
            Some(text.to_owned())
        });
        text.filter(|text| !text.is_empty())
    };
    let (key, path) = match (how, text("service"), text("method")) {
        (_, None, None) => {
            let text = "a call has a service, a method or both".to_owned();
            fields.error(ProblemKind::Invalid(text), Some("give one of them"));
            return None;
        }
        (How::Exact, Some(service), None) => ("prefix", format!("/{service}/")),
        (How::Exact, Some(service), Some(method)) => ("exact", format!("/{service}/{method}")),
        (How::Exact, None, Some(method)) => ("regex", format!("/[^/]+/{}", regex::escape(&method))),
        (How::Regex, None, Some(method)) => ("regex", format!("/[^/]+/{method}")),
        (How::Regex, Some(service), None) => ("regex", format!("/{service}/.+")),
        (How::Regex, Some(service), Some(method)) => ("regex", format!("/{service}/{method}")),
    };
    let rank = match key {
        "exact" => EXACT,
        "prefix" => PREFIX,
        _ => REGEX,
    };
    let mut value = Map::new();
    let length = path.len();
    value.insert("uri".to_owned(), json!({key: path}));
    Some(Match {
        value,
        precedence: Precedence {
            rank,
            length,
            ..Precedence::default()
        },
        ..Match::default()
    })
}

fn read_how(fields: &Fields<'_>) -> How {
    let words = ["Exact", "RegularExpression"];
    let how = fields.read("type", |field| {
        field.word("type", &words, |word| match word {
            "Exact" => Some(How::Exact),
            "RegularExpression" => Some(How::Regex),
            _ => None,
        })
    });
    how.unwrap_or(How::Exact)
}

/// Reads what headers or parameters must be, by name.
fn read_named(fields: &Fields<'_>, name: &'static str, what: &str) -> Map<String, Value> {
    let mut all = Map::new();
    fields.read(name, |list| {
        list.items(|item| {
            let Some(fields) = item.fields() else { return };
            let how = read_how(&fields);
            let text = |name| fields.require(name, |field| field.text().map(str::to_owned));
            let (Some(name), Some(value)) = (text("name"), text("value")) else {
                return;
            };
            let key = match how {
                How::Exact => "exact",
                How::Regex => "regex",
            };
            if all.insert(name.clone(), json!({key: value})).is_some() {
                let text = format!("{what} `{name}` is asked for twice");
                item.error_with_hint(ProblemKind::Conflict(text), "keep one of them");
            }
        });
        Some(())
    });
    all
}
