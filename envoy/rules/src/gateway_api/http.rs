//! The rules of HTTPRoute and GRPCRoute, which lead requests.

use egress_policy::fields::{Field, Fields};
use egress_policy::{FieldPath, ProblemKind, ResourceId};
use serde_json::{Map, Value, json};

use super::backend::{self, Backends};
use super::effort;
use super::filters::{self, Filters, PathChange, Place, Redirect, Rewrite};
use super::kind::Kind;
use super::matches::{self, Match};
use super::rule::Rule;

/// Reads `rules`: each as many times as it has matches, as in Istio.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/route_collections.go`, `HTTPRouteCollection`.
pub(super) fn read_rules(fields: &Fields<'_>, kind: Kind, route: &ResourceId) -> Vec<Rule> {
    let mut rules = Vec::new();
    fields.read("rules", |list| {
        list.items(|item| rules.extend(read_rule(item, kind, route)));
        Some(())
    });
    if !fields.given("rules") {
        let text = "a route without rules answers every request with 500".to_owned();
        fields.error_at("rules", ProblemKind::Invalid(text), Some("give it a rule"));
    }
    rules
}

fn read_rule(field: Field<'_>, kind: Kind, route: &ResourceId) -> Vec<Rule> {
    let Some(fields) = field.fields() else {
        return Vec::new();
    };
    let place = field.cursor.path();
    fields.read("name", |field| field.text().map(drop));
    let hint = "Istio does not read it";
    fields.not_supported(
        egress_policy::Severity::Warning,
        &["sessionPersistence"],
        hint,
    );
    let mut found = Vec::new();
    let mut given = 0;
    fields.read("matches", |list| {
        given = list.count();
        list.items(|item| {
            found.extend(match kind {
                Kind::Grpc => matches::read_grpc(item),
                _ => matches::read_http(item),
            });
        });
        Some(())
    });
    if given == 0 {
        found.push(match kind {
            Kind::Grpc => Match::default(),
            _ => Match::all_paths(),
        });
    }
    let filters = filters::read(&fields, kind, Place::Rule, route);
    let Backends {
        route: led,
        places,
        foreign,
        wrong,
    } = backend::read_all(&fields, kind, route);
    let mut times = Map::new();
    if kind == Kind::Http {
        effort::read(&fields, &mut times);
    }
    if filters.redirect.is_some() && fields.given("backendRefs") {
        let text = "a rule cannot both redirect requests and lead them to a backend".to_owned();
        let hint = "one rule answers or leads somewhere: make two of it";
        fields.error_at("backendRefs", ProblemKind::Conflict(text), Some(hint));
    }
    if led.is_empty() && !wrong && filters.redirect.is_none() {
        let text = "a rule without a backend that has a weight answers 500".to_owned();
        fields.warning_at(
            "backendRefs",
            ProblemKind::Invalid(text),
            "give it a backend",
        );
    }
    let rule = Rule {
        name: String::new(),
        value: Map::new(),
        matched: Map::new(),
        precedence: matches::Precedence::default(),
        rule: place.clone(),
        match_path: None,
        backends: places,
        foreign,
    };
    let several = found.len() > 1;
    let number = index_of(&place);
    let kind = if kind == Kind::Grpc { "/grpc" } else { "" };
    let all = found.into_iter().enumerate().map(|(at, found)| {
        let mut name = format!("{}{kind}/rules[{number}]", route.qualified());
        if several {
            name.push_str(&format!(".matches[{at}]"));
        }
        Rule {
            name,
            value: value_of(&fields, &filters, &found, &led, &times),
            matched: found.value,
            precedence: found.precedence,
            match_path: found.place,
            ..rule.clone()
        }
    });
    all.collect()
}

/// Returns a rule's place among the rules.
fn index_of(path: &FieldPath) -> usize {
    match path.0.last() {
        Some(egress_policy::Segment::Index(index)) => *index,
        _ => 0,
    }
}

/// Returns what a rule does, as `http` of a VirtualService has it.
fn value_of(
    fields: &Fields<'_>,
    filters: &Filters,
    found: &Match,
    led: &[Value],
    times: &Map<String, Value>,
) -> Map<String, Value> {
    let mut value = Map::new();
    if !filters.headers.is_empty() {
        value.insert("headers".to_owned(), Value::Object(filters.headers.clone()));
    }
    match &filters.redirect {
        Some(redirect) => {
            let redirect = redirect_of(fields, redirect, found);
            value.insert("redirect".to_owned(), Value::Object(redirect));
        }
        None if led.is_empty() => {
            value.insert("directResponse".to_owned(), json!({"status": 500}));
        }
        None => {
            let rewrite = filters.rewrite.as_ref();
            let rewrite = rewrite.map(|rewrite| rewrite_of(fields, rewrite, found));
            if let Some(rewrite) = rewrite.filter(|rewrite| !rewrite.is_empty()) {
                value.insert("rewrite".to_owned(), Value::Object(rewrite));
            }
            value.insert("route".to_owned(), json!(led));
            value.extend(times.clone());
        }
    }
    value
}

/// Returns the path below which a rule is, or reports that there is none of which a part could be replaced.
fn below<'m>(fields: &Fields<'_>, found: &'m Match) -> Option<&'m str> {
    if found.below.is_none() {
        let text = "`ReplacePrefixMatch` asks for a match by `PathPrefix`".to_owned();
        let hint = "match the path by `PathPrefix`, or use `ReplaceFullPath`";
        fields.error_at("filters", ProblemKind::Conflict(text), Some(hint));
    }
    found.below.as_deref()
}

/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `createRewriteFilter`, and
/// `pilot/pkg/networking/core/route/route.go`, `applyHTTPRouteDestination`.
fn rewrite_of(fields: &Fields<'_>, rewrite: &Rewrite, found: &Match) -> Map<String, Value> {
    let mut value = Map::new();
    if let Some(hostname) = &rewrite.hostname {
        value.insert("authority".to_owned(), json!(hostname));
    }
    match &rewrite.path {
        None => {}
        Some(PathChange::Full(path)) => {
            let regex = json!({"match": "/.*", "rewrite": path});
            value.insert("uriRegexRewrite".to_owned(), regex);
        }
        Some(PathChange::Prefix(prefix)) => match below(fields, found) {
            // The slash that stays is of the path.
            Some(below) if prefix.is_empty() => {
                let pattern = format!("^{}(/?)(.*)", regex::escape(below));
                let regex = json!({"match": pattern, "rewrite": "/\\2"});
                value.insert("uriRegexRewrite".to_owned(), regex);
            }
            // Here the prefix that Envoy replaces is the slash.
            Some("") => {
                value.insert("uri".to_owned(), json!(format!("{prefix}/")));
            }
            _ => {
                value.insert("uri".to_owned(), json!(prefix));
            }
        },
    }
    value
}

fn redirect_of(fields: &Fields<'_>, redirect: &Redirect, found: &Match) -> Map<String, Value> {
    let mut value = redirect.value.clone();
    match &redirect.path {
        None => {}
        Some(PathChange::Full(path)) => {
            value.insert("uri".to_owned(), json!(path));
        }
        Some(PathChange::Prefix(prefix)) => {
            let prefix = match below(fields, found) {
                Some("") => format!("{prefix}/"),
                Some(_) if prefix.is_empty() => {
                    let text = "a redirect that takes a part of the path away".to_owned();
                    let hint = "give the path that takes its place, or use `ReplaceFullPath`";
                    fields.error_at("filters", ProblemKind::NotSupported(text), Some(hint));
                    return value;
                }
                _ => prefix.clone(),
            };
            value.insert("prefixRewrite".to_owned(), json!(prefix));
        }
    }
    value
}
