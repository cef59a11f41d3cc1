//! Resources of kinds that are not carried out here: read as far as it takes to know which hosts they may change.
//!
//! If one of them may change the destination, the TLS or the visibility of a host, that host is refused. Ignoring the
//! resource could send plaintext where the resource leads to TLS.
//!
//! Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `pilot/pkg/model/sidecar.go`,
//! `pilot/pkg/networking/core/envoyfilter`.

use crate::host::HostPattern;
use crate::node::Node;
use crate::problem::Origin;
use crate::proxy::Proxy;
use crate::resource::loose::{at, labels, list, number, pattern, text};
use crate::resource::{DEFAULT_NAMESPACE, ResourceId, ServiceEntry, ServicePort};

/// The kinds, each with the group of its `apiVersion`.
pub const UNREAD_KINDS: [(&str, &str); 5] = [
    ("EnvoyFilter", "networking.istio.io"),
    ("HTTPRoute", "gateway.networking.k8s.io"),
    ("GRPCRoute", "gateway.networking.k8s.io"),
    ("TLSRoute", "gateway.networking.k8s.io"),
    ("TCPRoute", "gateway.networking.k8s.io"),
];

/// A resource that may change what becomes of a host, and is not carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Unread {
    /// Which one it is.
    pub id: ResourceId,
    /// Where it was read.
    pub origin: Origin,
    says: Says,
}

/// What it says, as far as it counts here.
#[derive(Debug, Clone, PartialEq)]
enum Says {
    Patches(Patches),
    Attached(Vec<Target>),
}

/// A host and port of a table, for which the effect of a resource is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) host: &'a HostPattern,
    pub(crate) port: &'a ServicePort,
    pub(crate) entry: &'a ServiceEntry,
    /// The namespace whose resources are for everyone.
    pub(crate) root: &'a str,
}

#[derive(Debug, Clone, PartialEq)]
struct Patches {
    selector: Vec<(String, String)>,
    /// The host and port of each patch that counts; `None` is for all.
    patches: Vec<Option<(HostPattern, Option<u64>)>>,
}

/// What a route of the Gateway API is attached to: it counts for callers in its own namespace, and for services there.
#[derive(Debug, Clone, PartialEq)]
struct Target {
    /// The name and namespace of a ServiceEntry, or a host.
    at: At,
    port: Option<u64>,
    /// The only host and port that a route leads to, where it does nothing else.
    only: Option<(HostPattern, u64)>,
}

#[derive(Debug, Clone, PartialEq)]
enum At {
    Entry { namespace: String, name: String },
    Host(HostPattern),
}

impl Unread {
    /// Reads a resource of a kind in [`UNREAD_KINDS`].
    pub(crate) fn read(
        kind: &'static str,
        origin: Origin,
        metadata: Option<&Node<'_>>,
        spec: Option<&Node<'_>>,
    ) -> Unread {
        let meta = |key| metadata.and_then(|metadata| text(metadata, key));
        let namespace = meta("namespace").unwrap_or(DEFAULT_NAMESPACE);
        let nothing = Node::Null;
        let spec = spec.unwrap_or(&nothing);
        let says = match kind {
            "EnvoyFilter" => Says::Patches(patches(spec)),
            _ => Says::Attached(attached(spec, namespace)),
        };
        Unread {
            id: ResourceId {
                kind,
                namespace: namespace.into(),
                name: meta("name").unwrap_or_default().into(),
            },
            origin,
            says,
        }
    }

    /// Whether it concerns any host of these entries, whoever calls.
    pub fn concerns(&self, entries: &[ServiceEntry]) -> bool {
        let hosts = || {
            let hosts = entries.iter().flat_map(|entry| &entry.hosts);
            hosts.map(move |host| (host, self))
        };
        match &self.says {
            Says::Patches(patches) => hosts().any(|(host, _)| {
                let names = |patch: &Option<(HostPattern, Option<u64>)>| {
                    patch
                        .as_ref()
                        .is_none_or(|(other, _)| other.covers(host) || host.covers(other))
                };
                patches.patches.iter().any(names)
            }),
            Says::Attached(targets) => entries
                .iter()
                .any(|entry| targets.iter().any(|target| target.is_for(entry, None))),
        }
    }

    /// Whether it has a patch that may change the way of a host, or its TLS.
    pub fn patches_any(&self) -> bool {
        matches!(&self.says, Says::Patches(patches) if !patches.patches.is_empty())
    }

    /// Whether it may change what becomes of a host and port for this caller.
    pub(crate) fn changes(&self, asked: Asked<'_>, proxy: &Proxy) -> bool {
        let owner = &*self.id.namespace;
        match &self.says {
            Says::Patches(patches) => {
                (owner == proxy.namespace || owner == asked.root)
                    && selects(&patches.selector, proxy)
                    && patches.patches.iter().any(|patch| {
                        patch.as_ref().is_none_or(|(host, port)| {
                            (host.covers(asked.host) || asked.host.covers(host))
                                && is_port(*port, asked)
                        })
                    })
            }
            Says::Attached(targets) => targets
                .iter()
                .any(|target| target.changes(asked, owner, proxy)),
        }
    }
}

impl Target {
    fn is_for(&self, entry: &ServiceEntry, host: Option<&HostPattern>) -> bool {
        match &self.at {
            At::Entry { namespace, name } => {
                *namespace == *entry.meta.id.namespace && *name == *entry.meta.id.name
            }
            At::Host(named) => match host {
                Some(host) => named == host,
                None => entry.hosts.contains(named),
            },
        }
    }

    fn changes(&self, asked: Asked<'_>, owner: &str, proxy: &Proxy) -> bool {
        let seen = owner == proxy.namespace || owner == &*asked.entry.meta.id.namespace;
        if !seen || !self.is_for(asked.entry, Some(asked.host)) {
            return false;
        }
        let number = u64::from(asked.port.number.get());
        let stays = self
            .only
            .as_ref()
            .is_some_and(|(host, port)| host == asked.host && *port == number);
        !stays && is_port(self.port, asked)
    }
}

fn is_port(port: Option<u64>, asked: Asked<'_>) -> bool {
    port.is_none_or(|port| port == u64::from(asked.port.number.get()))
}

impl Unread {
    /// Whether it is for workloads with certain labels.
    pub(crate) fn selects_workloads(&self) -> bool {
        matches!(&self.says, Says::Patches(patches) if !patches.selector.is_empty())
    }
}

fn selects(labels: &[(String, String)], proxy: &Proxy) -> bool {
    let has = |(key, value): &(String, String)| proxy.labels.get(key) == Some(value);
    labels.iter().all(has)
}

fn patches(spec: &Node<'_>) -> Patches {
    let selector = at(spec, "workloadSelector");
    let patches = list(spec, "configPatches").iter();
    Patches {
        selector: selector.map(|it| labels(it, "labels")).unwrap_or_default(),
        patches: patches.filter_map(patch).collect(),
    }
}

/// Returns what a patch is for, if it may change where requests go, or their TLS.
#[expect(
    clippy::option_option,
    reason = "what is not looked at is not what is for every host"
)]
fn patch(patch: &Node<'_>) -> Option<Option<(HostPattern, Option<u64>)>> {
    let apply_to = text(patch, "applyTo").unwrap_or_default();
    let found = at(patch, "match");
    let context = found.and_then(|found| text(found, "context"));
    if !matches!(context, None | Some("ANY" | "SIDECAR_OUTBOUND")) {
        return None;
    }
    let change = at(patch, "patch");
    let operation = change
        .and_then(|change| text(change, "operation"))
        .unwrap_or_default();
    let value = change.and_then(|change| at(change, "value"));
    let leads = value.is_some_and(leads_elsewhere);
    let counts = match apply_to {
        // A cluster that is added is nobody's until something leads there.
        "CLUSTER" => operation == "REMOVE" || (operation != "ADD" && leads),
        "VIRTUAL_HOST" | "HTTP_ROUTE" | "ROUTE_CONFIGURATION" => operation != "MERGE" || leads,
        "NETWORK_FILTER" | "FILTER_CHAIN" | "LISTENER" => operation == "REMOVE" || leads,
        _ => false,
    };
    if !counts {
        return None;
    }
    let cluster = found.and_then(|found| at(found, "cluster"));
    let vhost = found
        .and_then(|found| at(found, "routeConfiguration"))
        .and_then(|routes| at(routes, "vhost"));
    let parts = |name: &str| {
        let mut parts = name.split('|').skip(1);
        let port = parts.next()?.parse().ok();
        Some((pattern(parts.nth(1)?)?, port))
    };
    let service = cluster.and_then(|cluster| {
        let port = number(cluster, "portNumber");
        let service = text(cluster, "service").and_then(|host| Some((pattern(host)?, port)));
        service.or_else(|| parts(text(cluster, "name")?))
    });
    let virtual_host = vhost.and_then(|vhost| {
        let (host, port) = text(vhost, "name")?.rsplit_once(':')?;
        Some((pattern(host)?, port.parse().ok()))
    });
    Some(service.or(virtual_host))
}

/// Whether there is a field in it that names another way.
fn leads_elsewhere(value: &Node<'_>) -> bool {
    const FIELDS: [&str; 6] = [
        "transport_socket",
        "transport_socket_matches",
        "cluster",
        "cluster_header",
        "weighted_clusters",
        "route",
    ];
    match value {
        Node::Object(fields) => fields
            .iter()
            .any(|(key, value)| FIELDS.contains(&key) || leads_elsewhere(value)),
        Node::List(items) => items.iter().any(leads_elsewhere),
        _ => false,
    }
}

fn attached(spec: &Node<'_>, namespace: &str) -> Vec<Target> {
    let refs = list(spec, "parentRefs");
    let only = only(spec, namespace);
    let target = |it: &Node<'_>| {
        let name = text(it, "name")?;
        let own = text(it, "namespace").unwrap_or(namespace);
        let host = match (text(it, "group").unwrap_or_default(), text(it, "kind")?) {
            ("networking.istio.io", "ServiceEntry") => {
                return Some(At::Entry {
                    namespace: own.to_owned(),
                    name: name.to_owned(),
                });
            }
            ("networking.istio.io", "Hostname") => name.to_owned(),
            ("" | "core", "Service") => format!("{name}.{own}.svc.cluster.local"),
            _ => return None,
        };
        pattern(&host).map(At::Host)
    };
    let targets = refs.iter().filter_map(|it| {
        Some(Target {
            at: target(it)?,
            port: number(it, "port"),
            only: only.clone(),
        })
    });
    targets.collect()
}

/// Returns the only host and port that a route leads to, if it does nothing else.
fn only(spec: &Node<'_>, namespace: &str) -> Option<(HostPattern, u64)> {
    let mut found = None;
    for rule in list(spec, "rules") {
        let all = |it: &Node<'_>| {
            let Node::Object(fields) = it else {
                return false;
            };
            fields.iter().all(|(key, value)| {
                key == "path"
                    && text(value, "value") == Some("/")
                    && text(value, "type").is_none_or(|kind| kind == "PathPrefix")
            })
        };
        let plain = list(rule, "filters").is_empty() && list(rule, "matches").iter().all(all);
        for backend in list(rule, "backendRefs") {
            let name = text(backend, "name")?;
            let host = match text(backend, "kind") {
                Some("Hostname") => name.to_owned(),
                None | Some("Service") => format!("{name}.{namespace}.svc.cluster.local"),
                Some(_) => return None,
            };
            let to = (pattern(&host)?, number(backend, "port")?);
            if !plain
                || !list(backend, "filters").is_empty()
                || found.as_ref().is_some_and(|found| *found != to)
            {
                return None;
            }
            found = Some(to);
        }
    }
    found
}
