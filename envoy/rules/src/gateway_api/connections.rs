//! The rules of TLSRoute and TCPRoute, which lead connections.

use egress_policy::fields::{Field, Fields};
use egress_policy::{ProblemKind, ResourceId};
use serde_json::{Map, Value, json};

use super::backend::{self, Backends};
use super::kind::Kind;
use super::matches::Precedence;
use super::rule::Rule;

/// The host of no server: what a rule without a backend leads to.
const NOBODY: &str = "a-rule-without-backends.invalid";

/// Reads `rules`; `hostnames` are those of a TLSRoute.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `convertTLSRoute` and `convertTCPRoute`.
pub(super) fn read_rules(
    fields: &Fields<'_>,
    route: &ResourceId,
    hostnames: &[String],
) -> Vec<Rule> {
    let tls = route.kind == Kind::Tls.name();
    let mut rules = Vec::new();
    fields.require("rules", |list| {
        list.items(|item| rules.extend(read_rule(item, tls, route, hostnames)));
        Some(())
    });
    rules
}

fn read_rule(
    field: Field<'_>,
    tls: bool,
    route: &ResourceId,
    hostnames: &[String],
) -> Option<Rule> {
    let fields = field.fields()?;
    fields.read("name", |field| field.text().map(drop));
    if !fields.has("backendRefs") {
        fields.error_at("backendRefs", ProblemKind::Missing, None);
    }
    let kind = if tls { Kind::Tls } else { Kind::Tcp };
    let Backends {
        route: mut led,
        places,
        foreign,
        wrong: _,
    } = backend::read_all(&fields, kind, route);
    if led.is_empty() {
        led.push(json!({"destination": {"host": NOBODY, "port": {"number": 65535}}}));
    }
    let mut value = Map::new();
    value.insert("route".to_owned(), Value::Array(led));
    let mut matched = Map::new();
    if tls {
        matched.insert("sniHosts".to_owned(), json!(hostnames));
    }
    Some(Rule {
        name: String::new(),
        value,
        matched,
        precedence: Precedence::default(),
        rule: field.cursor.path(),
        match_path: None,
        backends: places,
        foreign,
    })
}
