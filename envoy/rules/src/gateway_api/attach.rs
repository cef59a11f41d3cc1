//! Makes VirtualServices of what routes say and of what they are attached to: one for each host.
//!
//! The rules of all routes of requests that have one host in common are one list, the most specific first. Those of one
//! namespace are merged where the mesh is the parent, and those of one listener where a Gateway is.
//!
//! Source: istio/istio `pilot/pkg/config/kube/gateway/route_collections.go`, `mergeHTTPRoutes`.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use egress_policy::{HostPattern, MADE_OF, PortNumber, ResourceId, Severity};
use serde_json::{Map, Value, json};

use super::gateway::{Listener, Router};
use super::kind::Kind;
use super::known::Known;
use super::made::{Made, problem};
use super::place::{Place, Places};
use super::route::{Parent, Route, Target};
use super::rule::Rule;

/// What routes of requests are merged by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// The namespace of the routes, or the Gateway that they are bound to.
    of: (String, Option<String>),
    port: Option<PortNumber>,
    host: String,
}

/// What routes are bound to.
type Routers = BTreeMap<(String, String), Option<Router>>;

pub(super) fn attach(routes: &[Route], known: &mut Known<'_>, made: &mut Made) {
    let mut routers = routers(routes, known, made);
    for router in routers.values_mut().flatten() {
        router.add(known, made);
    }
    let mut groups: BTreeMap<Key, Vec<&Route>> = BTreeMap::new();
    for route in routes {
        let mut number = 0;
        for parent in &route.parents {
            match &parent.to {
                Target::Hosts(hosts) => {
                    for host in hosts {
                        to_the_mesh(route, parent, host, &mut groups, &mut number, made);
                    }
                }
                Target::Gateway { namespace, name } => {
                    let key = (namespace.clone(), name.clone());
                    if let Some(router) = routers.get(&key).and_then(Option::as_ref) {
                        check_grants(route, known, made);
                        for listener in router.bound(route, parent) {
                            let bound = (listener, &router.listeners[..]);
                            to_a_listener(route, bound, &mut groups, &mut number, made);
                        }
                    }
                }
                Target::Others => {}
            }
        }
    }
    let mut names = BTreeSet::new();
    for (key, merged) in groups {
        add_merged(&key, merged, &mut names, made);
    }
}

/// Finds the Gateways that routes are bound to.
fn routers(routes: &[Route], known: &Known<'_>, made: &mut Made) -> Routers {
    let mut routers = Routers::new();
    for parent in routes.iter().flat_map(|route| &route.parents) {
        if let Target::Gateway { namespace, name } = &parent.to {
            let key = (namespace.clone(), name.clone());
            if let Entry::Vacant(free) = routers.entry(key) {
                let found = Router::find(known, free.key(), made);
                free.insert(found);
            }
        }
    }
    routers
}

/// Reports Services of other namespaces that a route of a Gateway may not lead to. For the mesh nobody asks.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/route_collections.go`, `convertHTTPRoute(…, !mesh)`.
fn check_grants(route: &Route, known: &Known<'_>, made: &mut Made) {
    let id = &route.meta.id;
    for ((namespace, name), path) in route.rules.iter().flat_map(|rule| &rule.foreign) {
        if known.may_lead(route.kind, &id.namespace, (namespace, name)) {
            continue;
        }
        let text = format!(
            "no ReferenceGrant of `{namespace}` lets a {} of `{}` lead to the Service `{name}`: Istio answers 500",
            route.kind.name(),
            id.namespace
        );
        let hint = format!("give a ReferenceGrant in `{namespace}`");
        let at = (id, route.meta.origin);
        let found = problem(Severity::Error, at, path.clone(), text, hint);
        if !made.problems.contains(&found) {
            made.problems.push(found);
        }
    }
}

fn to_the_mesh<'r>(
    route: &'r Route,
    parent: &Parent,
    host: &str,
    groups: &mut BTreeMap<Key, Vec<&'r Route>>,
    number: &mut usize,
    made: &mut Made,
) {
    if route.kind.is_of_requests() {
        let key = Key {
            of: (route.meta.id.namespace.to_string(), None),
            port: parent.port,
            host: host.to_owned(),
        };
        return group(groups, key, route);
    }
    let names = match route.kind {
        Kind::Tls => names_of(&route.hostnames, host),
        _ => Vec::new(),
    };
    if route.kind == Kind::Tls && names.is_empty() {
        return;
    }
    let connections = Connections {
        list: route.kind.list(),
        host,
        names,
        port: parent.port,
        gateway: None,
    };
    connections.add(route, number, made);
}

fn to_a_listener<'r>(
    route: &'r Route,
    (listener, all): (&Listener, &[Listener]),
    groups: &mut BTreeMap<Key, Vec<&'r Route>>,
    number: &mut usize,
    made: &mut Made,
) {
    let (namespace, name) = &listener.name;
    for host in listener.hosts(route, all) {
        if route.kind.is_of_requests() {
            let key = Key {
                of: (namespace.clone(), Some(name.clone())),
                port: None,
                host,
            };
            group(groups, key, route);
            continue;
        }
        // Where the listener ends TLS, what is inside is bytes.
        let by_name = route.kind == Kind::Tls && listener.passes_tls();
        let connections = Connections {
            list: if by_name { "tls" } else { "tcp" },
            host: &host,
            names: by_name.then(|| host.clone()).into_iter().collect(),
            port: None,
            gateway: Some(format!("{namespace}/{name}")),
        };
        connections.add(route, number, made);
    }
}

fn group<'r>(groups: &mut BTreeMap<Key, Vec<&'r Route>>, key: Key, route: &'r Route) {
    let merged = groups.entry(key).or_default();
    let same = |other: &&Route| other.meta.origin == route.meta.origin;
    if !merged.iter().any(same) {
        merged.push(route);
    }
}

/// Returns the names of a TLSRoute that are those of a host of the mesh; its own where the route gives none.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `augmentTLSPortMatch` and
/// `compatibleRoutesForHost`.
fn names_of(names: &[String], host: &str) -> Vec<String> {
    if names.is_empty() {
        return vec![host.to_owned()];
    }
    let Ok(host) = HostPattern::parse(host) else {
        return Vec::new();
    };
    let names = names.iter().filter_map(|name| {
        let name = HostPattern::parse(name).ok()?;
        match (host.covers(&name), name.covers(&host)) {
            (true, _) => Some(name.to_string()),
            (_, true) => Some(host.to_string()),
            _ => None,
        }
    });
    let mut names: Vec<String> = names.collect();
    names.dedup();
    names
}

/// What a route of connections is attached to.
struct Connections<'h> {
    list: &'static str,
    host: &'h str,
    names: Vec<String>,
    port: Option<PortNumber>,
    gateway: Option<String>,
}

impl Connections<'_> {
    fn add(self, route: &Route, number: &mut usize, made: &mut Made) {
        let id = &route.meta.id;
        let name = format!("{}.{}.{number}", id.name, self.list);
        *number += 1;
        let rules = route.rules.iter();
        let items: Vec<(&Route, Rule)> = rules
            .map(|rule| {
                let mut rule = rule.clone();
                rule.matched.clear();
                if !self.names.is_empty() {
                    rule.matched
                        .insert("sniHosts".to_owned(), json!(self.names));
                }
                (route, rule)
            })
            .collect();
        let service = Service {
            list: self.list,
            host: self.host,
            gateway: self.gateway,
            port: self.port,
            name,
        };
        service.add(route, items, made);
    }
}

/// Makes one VirtualService of the routes of requests for a host.
fn add_merged(key: &Key, mut merged: Vec<&Route>, names: &mut BTreeSet<String>, made: &mut Made) {
    merged.sort_by(|one, other| {
        let order = |route: &Route| {
            let id = &route.meta.id;
            (
                route.meta.created.clone(),
                id.namespace.clone(),
                id.name.clone(),
            )
        };
        order(one).cmp(&order(other))
    });
    let Some(oldest) = merged.first().copied() else {
        return;
    };
    let all = merged.iter();
    let rules = all.flat_map(|route| route.rules.iter().map(|rule| (*route, rule.clone())));
    let mut rules: Vec<(&Route, Rule)> = rules.collect();
    rules.sort_by_key(|(_, rule)| Reverse(rule.precedence));
    let (namespace, gateway) = &key.of;
    let port = key.port.map(|port| format!("{port}."));
    let of = gateway.as_deref().unwrap_or(namespace);
    let host = key.host.replace('*', "any").replace(':', "-");
    let whole = format!("{of}.{}{host}", port.unwrap_or_default());
    let name = free_name(&whole, names);
    let service = Service {
        list: "http",
        host: &key.host,
        gateway: (gateway.as_ref()).map(|name| format!("{namespace}/{name}")),
        port: key.port,
        name,
    };
    service.add(oldest, rules, made);
}

/// Returns a name that Kubernetes takes and that no other has.
fn free_name(whole: &str, names: &mut BTreeSet<String>) -> String {
    let short: String = whole.to_ascii_lowercase().chars().take(240).collect();
    let short = short.trim_end_matches(['.', '-']);
    let mut all = std::iter::once(short.to_owned())
        .chain((1..).map(|number: usize| format!("{short}.{number}")));
    all.find(|name| names.insert(name.clone()))
        .unwrap_or_default()
}

/// A VirtualService to be made.
struct Service<'h> {
    list: &'static str,
    host: &'h str,
    gateway: Option<String>,
    port: Option<PortNumber>,
    name: String,
}

impl Service<'_> {
    /// Adds it; `of` is the route that it is called by, and whose age it has.
    fn add(self, of: &Route, rules: Vec<(&Route, Rule)>, made: &mut Made) {
        let meta = &of.meta;
        let mut metadata = Map::new();
        metadata.insert("name".to_owned(), json!(self.name));
        metadata.insert("namespace".to_owned(), json!(&*meta.id.namespace));
        if !meta.created.is_empty() {
            metadata.insert("creationTimestamp".to_owned(), json!(meta.created));
        }
        metadata.insert("annotations".to_owned(), json!({MADE_OF: of.kind.name()}));
        let mut spec = Map::new();
        spec.insert("hosts".to_owned(), json!([self.host]));
        if let Some(gateway) = &self.gateway {
            spec.insert("gateways".to_owned(), json!([gateway]));
        }
        let items = rules.iter().map(|(_, rule)| self.item(rule));
        spec.insert(self.list.to_owned(), Value::Array(items.collect()));
        let document = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": metadata,
            "spec": spec,
        });
        let id = ResourceId {
            kind: of.kind.name(),
            namespace: meta.id.namespace.clone(),
            name: self.name.as_str().into(),
        };
        for (route, _) in &rules {
            made.read.insert(route.meta.origin);
        }
        let items = rules.into_iter().map(|(route, rule)| Place {
            id: route.meta.id.clone(),
            origin: route.meta.origin,
            rule: rule.rule,
            matched: rule.match_path,
            backends: rule.backends,
        });
        let places = Places {
            list: self.list,
            items: items.collect(),
        };
        made.add(id, document, places);
    }

    fn item(&self, rule: &Rule) -> Value {
        let mut value = rule.value.clone();
        let mut matched = rule.matched.clone();
        if let Some(port) = self.port {
            matched.insert("port".to_owned(), json!(port.get()));
        }
        if !matched.is_empty() {
            value.insert("match".to_owned(), json!([matched]));
        }
        if !rule.name.is_empty() {
            value.insert("name".to_owned(), json!(rule.name));
        }
        Value::Object(value)
    }
}
