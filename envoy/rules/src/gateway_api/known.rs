//! What else is among the documents, as far as routes ask for it. Nothing here is checked.

use std::collections::{BTreeMap, BTreeSet};

use egress_policy::{DEFAULT_NAMESPACE, HostPattern, Origin};
use serde_json::Value;

use crate::document::{self, group_of};

use super::kind::{GROUP, ISTIO, Kind};

/// The resources that routes ask for.
pub(super) struct Known<'d> {
    entries: BTreeMap<(String, String), Entry>,
    hosts: Vec<HostPattern>,
    /// The Gateways of the Gateway API, by namespace and name.
    pub(super) gateways: BTreeMap<(String, String), (Origin, &'d Value)>,
    /// The controller of each GatewayClass.
    pub(super) classes: BTreeMap<String, String>,
    /// The names of Istio's own Gateways, which others must not have.
    pub(super) taken: BTreeSet<(String, String)>,
    grants: Vec<Grant>,
}

/// A ServiceEntry.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) hosts: Vec<String>,
    pub(super) ports: Vec<u64>,
}

/// Who may refer to a Service of another namespace.
struct Grant {
    kind: String,
    from: String,
    to: String,
    /// Without one, to all.
    name: Option<String>,
}

impl<'d> Known<'d> {
    pub(super) fn of(resources: impl Iterator<Item = (Origin, &'d Value)>) -> Self {
        let mut known = Known {
            entries: BTreeMap::new(),
            hosts: Vec::new(),
            gateways: BTreeMap::new(),
            classes: BTreeMap::new(),
            taken: BTreeSet::new(),
            grants: Vec::new(),
        };
        for (origin, resource) in resources {
            known.add(origin, resource);
        }
        known
    }

    fn add(&mut self, origin: Origin, resource: &'d Value) {
        let (namespace, name) = name_of(resource);
        let key = (namespace.to_owned(), name.to_owned());
        let kind = document::kind(resource).unwrap_or_default();
        match (group_of(resource).unwrap_or_default(), kind) {
            (ISTIO, "ServiceEntry") => {
                let hosts = list(resource, "/spec/hosts").filter_map(Value::as_str);
                let ports = list(resource, "/spec/ports");
                let entry = Entry {
                    hosts: hosts.map(str::to_owned).collect(),
                    ports: ports
                        .filter_map(|port| port.get("number")?.as_u64())
                        .collect(),
                };
                let parsed = entry.hosts.iter().map(|host| HostPattern::parse(host));
                self.hosts.extend(parsed.filter_map(Result::ok));
                self.entries.insert(key, entry);
            }
            (ISTIO, "Gateway") => {
                self.taken.insert(key);
            }
            (GROUP, "Gateway") => {
                self.gateways.insert(key, (origin, resource));
            }
            (GROUP, "GatewayClass") => {
                let controller = text(resource, "/spec/controllerName").unwrap_or_default();
                self.classes.insert(key.1, controller.to_owned());
            }
            (GROUP, "ReferenceGrant") => self.grant(namespace, resource),
            _ => {}
        }
    }

    fn grant(&mut self, namespace: &str, resource: &Value) {
        for from in list(resource, "/spec/from") {
            if text(from, "/group") != Some(GROUP) {
                continue;
            }
            for to in list(resource, "/spec/to") {
                if text(to, "/group").unwrap_or_default().is_empty()
                    && text(to, "/kind") == Some("Service")
                {
                    self.grants.push(Grant {
                        kind: text(from, "/kind").unwrap_or_default().to_owned(),
                        from: text(from, "/namespace").unwrap_or_default().to_owned(),
                        to: namespace.to_owned(),
                        name: text(to, "/name").map(str::to_owned),
                    });
                }
            }
        }
    }

    /// Whether routes of a kind and namespace may lead to a Service of another.
    pub(super) fn may_lead(&self, kind: Kind, from: &str, (to, name): (&str, &str)) -> bool {
        self.grants.iter().any(|grant| {
            let own = grant.name.as_ref().is_none_or(|own| own == name);
            grant.kind == kind.name() && grant.from == from && grant.to == to && own
        })
    }

    /// Returns a ServiceEntry.
    pub(super) fn entry(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.entries.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Returns the names of a namespace's ServiceEntries.
    pub(super) fn entry_names(&self, namespace: &str) -> Vec<&str> {
        let own = self.entries.keys().filter(|(of, _)| of == namespace);
        own.map(|(_, name)| name.as_str()).collect()
    }

    /// Whether a host is one of a ServiceEntry, or a name below one.
    pub(super) fn has(&self, host: &str) -> bool {
        let host = HostPattern::parse(host);
        host.is_ok_and(|host| self.hosts.iter().any(|own| own.overlaps(&host)))
    }

    /// Whether a route is attached to a host of a ServiceEntry, or leads one through a gateway.
    pub(super) fn concerns(&self, route: &Value) -> bool {
        let (namespace, _) = name_of(route);
        let parents = || list(route, "/spec/parentRefs");
        let attached = parents().any(|parent| match reference(parent, GROUP, "Gateway") {
            (ISTIO, _) | (_, "ServiceEntry") => true,
            (_, "Service") => self.has(&service(parent, namespace)),
            _ => false,
        });
        attached || (parents().any(|parent| self.is_gateway(parent)) && self.leads_to_any(route))
    }

    fn is_gateway(&self, parent: &Value) -> bool {
        reference(parent, GROUP, "Gateway") == (GROUP, "Gateway")
    }

    /// Whether a route of a Gateway leads to a host of a ServiceEntry.
    fn leads_to_any(&self, route: &Value) -> bool {
        let (namespace, _) = name_of(route);
        let backends = list(route, "/spec/rules").flat_map(|rule| list(rule, "/backendRefs"));
        let mut hosts = backends.map(|backend| match reference(backend, "", "Service") {
            (_, "Hostname") => text(backend, "/name").unwrap_or_default().to_owned(),
            _ => service(backend, namespace),
        });
        hosts.any(|host| self.has(&host))
    }

    /// Returns the hosts that a route is attached to.
    pub(super) fn parent_hosts(&self, route: &Value) -> Vec<HostPattern> {
        let (namespace, _) = name_of(route);
        let hosts = list(route, "/spec/parentRefs").flat_map(|parent| {
            let own = text(parent, "/namespace").unwrap_or(namespace);
            let name = text(parent, "/name").unwrap_or_default();
            match reference(parent, GROUP, "Gateway") {
                (_, "ServiceEntry") => match self.entry(own, name) {
                    Some(entry) => entry.hosts.clone(),
                    // Nobody can tell which one was meant.
                    None => vec!["*".to_owned()],
                },
                (_, "Service") => vec![service(parent, namespace)],
                (ISTIO, _) => vec!["*".to_owned()],
                _ => list(route, "/spec/hostnames")
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
            }
        });
        hosts
            .filter_map(|host| HostPattern::parse(&host).ok())
            .collect()
    }
}

/// Returns the namespace and the name of a resource.
pub(super) fn name_of(resource: &Value) -> (&str, &str) {
    let namespace = text(resource, "/metadata/namespace").filter(|it| !it.is_empty());
    let name = text(resource, "/metadata/name").unwrap_or_default();
    (namespace.unwrap_or(DEFAULT_NAMESPACE), name)
}

/// Returns the full name of a Service.
pub(super) fn service_host(namespace: &str, name: &str) -> String {
    format!("{name}.{namespace}.svc.cluster.local")
}

fn service(reference: &Value, namespace: &str) -> String {
    let own = text(reference, "/namespace").unwrap_or(namespace);
    service_host(own, text(reference, "/name").unwrap_or_default())
}

/// Returns the group and the kind of a reference.
fn reference<'v>(value: &'v Value, group: &'v str, kind: &'v str) -> (&'v str, &'v str) {
    (
        text(value, "/group").unwrap_or(group),
        text(value, "/kind").unwrap_or(kind),
    )
}

fn list<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten()
}

fn text<'v>(value: &'v Value, pointer: &str) -> Option<&'v str> {
    value.pointer(pointer).and_then(Value::as_str)
}
