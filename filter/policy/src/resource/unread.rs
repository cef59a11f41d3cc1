//! Resources of kinds that are not carried out here: read as far as it takes to know which hosts they may change.
//!
//! If one of them may change the destination, the TLS or the visibility of a host, that host is refused. Ignoring the
//! resource could send plaintext where the resource leads to TLS.
//!
//! Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `pilot/pkg/model/sidecar.go`,
//! `pilot/pkg/config/kube/gateway/backend_policies.go`, `pilot/pkg/networking/core/envoyfilter`.

use crate::host::HostPattern;
use crate::node::Node;
use crate::problem::Origin;
use crate::proxy::{Proxy, Role};
use crate::query::DownstreamProtocol;
use crate::resource::exported;
use crate::resource::{DEFAULT_NAMESPACE, ResourceId, ServiceEntry, ServicePort};

/// The kinds, each with the group of its `apiVersion`.
pub const UNREAD_KINDS: [(&str, &str); 8] = [
    ("VirtualService", "networking.istio.io"),
    ("Sidecar", "networking.istio.io"),
    ("EnvoyFilter", "networking.istio.io"),
    ("BackendTLSPolicy", "gateway.networking.k8s.io"),
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
    /// `metadata.creationTimestamp`, or nothing.
    created: String,
    says: Says,
}

/// What it says, as far as it counts here.
#[derive(Debug, Clone, PartialEq)]
enum Says {
    VirtualService(VirtualService),
    Sidecar(Sidecar),
    Patches(Patches),
    Attached(Vec<Target>),
}

/// A host and port of a table, for which the effect of a resource is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) host: &'a HostPattern,
    pub(crate) port: &'a ServicePort,
    pub(crate) downstream: DownstreamProtocol,
    pub(crate) entry: &'a ServiceEntry,
    /// The namespace whose resources are for everyone.
    pub(crate) root: &'a str,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct VirtualService {
    hosts: Vec<HostPattern>,
    /// It is for sidecars, too.
    mesh: bool,
    export_to: Vec<String>,
    routes: Vec<Route>,
}

#[derive(Debug, Clone, PartialEq)]
struct Route {
    downstream: DownstreamProtocol,
    matches: Vec<Match>,
    destinations: Vec<Destination>,
    /// It does more than to lead there.
    changes: bool,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Match {
    port: Option<u64>,
    /// Whether sidecars are among `gateways`; `None` without it.
    mesh: Option<bool>,
    labels: Vec<(String, String)>,
    namespace: Option<String>,
    names: Vec<HostPattern>,
    /// It asks for more than that, of each request or connection.
    more: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Destination {
    host: String,
    port: Option<u64>,
    subset: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Sidecar {
    selector: Option<Vec<(String, String)>>,
    /// `None` takes in everything.
    egress: Option<Vec<Import>>,
}

/// One of `egress.hosts`.
#[derive(Debug, Clone, PartialEq)]
struct Import {
    excluded: bool,
    namespace: String,
    host: HostPattern,
    port: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
struct Patches {
    selector: Vec<(String, String)>,
    /// The host and port of each patch that counts; `None` is for all.
    patches: Vec<Option<(HostPattern, Option<u64>)>>,
}

/// What a policy or route of the Gateway API is attached to.
#[derive(Debug, Clone, PartialEq)]
struct Target {
    /// The name and namespace of a ServiceEntry, or a host.
    at: At,
    /// The name of a port, which a policy gives, or its number, which a route gives.
    section: Option<String>,
    port: Option<u64>,
    /// A route counts for callers in its own namespace, and for services there.
    route: bool,
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
        let ignored = metadata
            .and_then(|metadata| at(metadata, "annotations"))
            .and_then(|notes| text(notes, "istio.io/ignore-policy-attachment"))
            .is_some_and(|word| word == "true");
        let says = match kind {
            "VirtualService" => Says::VirtualService(virtual_service(spec, namespace)),
            "Sidecar" => Says::Sidecar(sidecar(spec)),
            "EnvoyFilter" => Says::Patches(patches(spec)),
            _ if ignored => Says::Attached(Vec::new()),
            kind => Says::Attached(attached(spec, namespace, kind != "BackendTLSPolicy")),
        };
        Unread {
            id: ResourceId {
                kind,
                namespace: namespace.into(),
                name: meta("name").unwrap_or_default().into(),
            },
            origin,
            created: meta("creationTimestamp").unwrap_or_default().to_owned(),
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
            Says::VirtualService(service) => hosts().any(|(host, _)| {
                let overlaps = |other: &HostPattern| other.covers(host) || host.covers(other);
                service.hosts.iter().any(overlaps) || service.leads_to_host(host)
            }),
            Says::Sidecar(sidecar) => sidecar.egress.is_some(),
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

    /// Whether it may change what becomes of a host and port for this caller.
    pub(crate) fn changes(&self, asked: Asked<'_>, proxy: &Proxy) -> bool {
        let owner = &*self.id.namespace;
        match &self.says {
            // A gateway's routes are its owner's: what they choose is theirs.
            Says::VirtualService(_) if proxy.role == Role::Gateway => false,
            Says::VirtualService(service) => {
                exported(&service.export_to, owner, &proxy.namespace)
                    && service.changes(asked, proxy)
            }
            // Which Sidecar counts is settled among all of them.
            Says::Sidecar(_) => false,
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

    /// Returns the hosts below a wildcard that it may change by themselves.
    pub(crate) fn below<'u>(&'u self, wildcard: &HostPattern) -> Vec<&'u HostPattern> {
        let Says::VirtualService(service) = &self.says else {
            return Vec::new();
        };
        let below = |host: &&HostPattern| wildcard != *host && wildcard.covers(host);
        service.hosts.iter().filter(below).collect()
    }

    /// Whether it leads anything to a port of a host, in a sidecar or in a gateway.
    pub(crate) fn leads_to(&self, host: &HostPattern, port: u64) -> bool {
        let Says::VirtualService(service) = &self.says else {
            return false;
        };
        let to =
            |to: &Destination| to.port.is_none_or(|own| own == port) && is_host(&to.host, host);
        let mut routes = service.routes.iter();
        routes.any(|route| route.destinations.iter().any(to))
    }
}

/// Returns the Sidecar of a caller that does not take in a host, if the caller has one.
///
/// Those with a selector come first, then the namespace's own, then the root's; each by age and name.
///
/// Source: istio/istio `pilot/pkg/model/push_context.go`, `initSidecarScopes`.
pub(crate) fn hidden_by<'u>(
    unread: &'u [Unread],
    asked: Asked<'_>,
    proxy: &Proxy,
) -> Option<&'u Unread> {
    if proxy.role == Role::Gateway {
        return None;
    }
    let sidecars = unread.iter().filter_map(|unread| match &unread.says {
        Says::Sidecar(sidecar) => Some((unread, sidecar)),
        _ => None,
    });
    let rank = |unread: &Unread, sidecar: &Sidecar| {
        let own = *unread.id.namespace == *proxy.namespace;
        match &sidecar.selector {
            Some(labels) if own && selects(labels, proxy) => Some(0),
            Some(_) => None,
            None if own => Some(1),
            None if *unread.id.namespace == *asked.root => Some(2),
            None => None,
        }
    };
    let ranked = sidecars.filter_map(|(unread, sidecar)| {
        let order = (&unread.created, &unread.id.name);
        Some(((rank(unread, sidecar)?, order), (unread, sidecar)))
    });
    let (_, (unread, sidecar)) = ranked.min_by(|(one, _), (other, _)| one.cmp(other))?;
    let owner = &*asked.entry.meta.id.namespace;
    let imports = sidecar.egress.as_ref()?;
    let fits = |import: &&Import| {
        let namespace = match import.namespace.as_str() {
            "*" => true,
            "." => owner == &*unread.id.namespace,
            "~" => import.excluded,
            other => other == owner,
        };
        namespace && import.host.covers(asked.host) && is_port(import.port, asked)
    };
    let mut fitting = imports.iter().filter(fits).peekable();
    let taken_in = fitting.peek().is_some() && fitting.all(|import| !import.excluded);
    (!taken_in).then_some(unread)
}

impl VirtualService {
    fn leads_to_host(&self, host: &HostPattern) -> bool {
        let to = |destination: &Destination| is_host(&destination.host, host);
        self.routes
            .iter()
            .any(|route| route.destinations.iter().any(to))
    }

    fn changes(&self, asked: Asked<'_>, proxy: &Proxy) -> bool {
        if !self.mesh || !self.hosts.iter().any(|host| host.covers(asked.host)) {
            return false;
        }
        let number = u64::from(asked.port.number.get());
        let routes = self.routes.iter().filter(|route| {
            route.downstream == asked.downstream && route.is_for(Some(number), proxy)
        });
        let mut any = false;
        let mut takes_all = false;
        for route in routes {
            let stays = |to: &Destination| {
                is_host(&to.host, asked.host)
                    && to.port.is_none_or(|port| port == number)
                    && !to.subset
            };
            if route.changes
                || route.destinations.is_empty()
                || !route.destinations.iter().all(stays)
            {
                return true;
            }
            any = true;
            let takes = |found: &Match| {
                !found.more
                    && (found.names.is_empty()
                        || found.names.iter().any(|name| name.covers(asked.host)))
            };
            takes_all |= route.matches.is_empty()
                || (route.matches.iter()).any(|found| {
                    found.is_for(asked.downstream, Some(number), proxy) && takes(found)
                });
        }
        any && !takes_all
    }
}

impl Route {
    /// Whether it can count for connections to a port; `None` is any.
    fn is_for(&self, port: Option<u64>, proxy: &Proxy) -> bool {
        let fits = |found: &Match| found.is_for(self.downstream, port, proxy);
        self.matches.is_empty() || self.matches.iter().any(fits)
    }
}

impl Match {
    /// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `sourceMatchHTTP`, and
    /// `pilot/pkg/networking/core/tls.go`, `matchTLS`.
    fn is_for(&self, downstream: DownstreamProtocol, port: Option<u64>, proxy: &Proxy) -> bool {
        let is_port = port.is_none_or(|port| self.port.is_none_or(|own| own == port));
        // Requests are not asked for their source where `gateways` is given.
        let source = (downstream == DownstreamProtocol::Http && self.mesh.is_some())
            || (selects(&self.labels, proxy)
                && (self.namespace.as_ref()).is_none_or(|namespace| *namespace == proxy.namespace));
        is_port && self.mesh.unwrap_or(true) && source
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
        let seen =
            !self.route || owner == proxy.namespace || owner == &*asked.entry.meta.id.namespace;
        if !seen || !self.is_for(asked.entry, Some(asked.host)) {
            return false;
        }
        let number = u64::from(asked.port.number.get());
        let stays = self
            .only
            .as_ref()
            .is_some_and(|(host, port)| host == asked.host && *port == number);
        if stays || !is_port(self.port, asked) {
            return false;
        }
        let names = |port: &ServicePort| self.section.as_deref() == Some(&*port.name);
        // A port that is not there may be a slip of the pen: then nobody knows which one was meant.
        self.section.is_none() || names(asked.port) || !asked.entry.ports.iter().any(names)
    }
}

fn is_port(port: Option<u64>, asked: Asked<'_>) -> bool {
    port.is_none_or(|port| port == u64::from(asked.port.number.get()))
}

fn is_host(text: &str, host: &HostPattern) -> bool {
    HostPattern::parse(text).is_ok_and(|other| other == *host)
}

fn selects(labels: &[(String, String)], proxy: &Proxy) -> bool {
    let has = |(key, value): &(String, String)| proxy.labels.get(key) == Some(value);
    labels.iter().all(has)
}

fn virtual_service(spec: &Node<'_>, namespace: &str) -> VirtualService {
    let hosts = list(spec, "hosts").iter();
    let hosts = hosts.filter_map(|host| pattern(&long(as_text(host)?, namespace)));
    let gateways = list(spec, "gateways");
    let mut routes = Vec::new();
    for (key, downstream) in [
        ("http", DownstreamProtocol::Http),
        ("tls", DownstreamProtocol::Tls),
        ("tcp", DownstreamProtocol::Tcp),
    ] {
        routes.extend(
            list(spec, key)
                .iter()
                .map(|it| route(it, downstream, namespace)),
        );
    }
    VirtualService {
        hosts: hosts.collect(),
        mesh: gateways.is_empty() || gateways.iter().any(|it| as_text(it) == Some("mesh")),
        export_to: texts(spec, "exportTo"),
        routes,
    }
}

/// The fields of a route that change neither where requests go nor what is in them.
const HARMLESS: [&str; 9] = [
    "name",
    "match",
    "route",
    "timeout",
    "retries",
    "corsPolicy",
    "statPrefix",
    "fault",
    "headers",
];

fn route(route: &Node<'_>, downstream: DownstreamProtocol, namespace: &str) -> Route {
    let destinations = list(route, "route").iter();
    let destinations = destinations.filter_map(|it| at(it, "destination"));
    let destinations = destinations.map(|to| Destination {
        host: long(text(to, "host").unwrap_or_default(), namespace),
        port: at(to, "port").and_then(|port| number(port, "number")),
        subset: text(to, "subset").is_some_and(|name| !name.is_empty()),
    });
    let others = match route {
        Node::Object(fields) => fields.iter().any(|(key, _)| !HARMLESS.contains(&key)),
        _ => true,
    };
    let sends = |of: &Node<'_>| at(of, "headers").is_some_and(|it| at(it, "request").is_some());
    let aborts = at(route, "fault").is_some_and(|fault| at(fault, "abort").is_some());
    let matches = list(route, "match").iter();
    Route {
        downstream,
        matches: matches.map(|it| matching(it)).collect(),
        destinations: destinations.collect(),
        changes: others || aborts || sends(route) || list(route, "route").iter().any(sends),
    }
}

fn matching(found: &Node<'_>) -> Match {
    let Node::Object(fields) = found else {
        return Match {
            more: true,
            ..Match::default()
        };
    };
    let known = [
        "name",
        "port",
        "gateways",
        "sourceLabels",
        "sourceNamespace",
        "sniHosts",
        "uri",
    ];
    // A plain prefix of every path asks for nothing.
    let uri = at(found, "uri");
    let all = uri.is_none_or(|uri| text(uri, "prefix") == Some("/"));
    let names = list(found, "sniHosts").iter();
    let gateways = at(found, "gateways");
    Match {
        port: number(found, "port"),
        mesh: gateways.map(|_| {
            list(found, "gateways")
                .iter()
                .any(|it| as_text(it) == Some("mesh"))
        }),
        labels: labels(found, "sourceLabels"),
        namespace: text(found, "sourceNamespace").map(str::to_owned),
        names: names.filter_map(|name| pattern(as_text(name)?)).collect(),
        more: !all || fields.iter().any(|(key, _)| !known.contains(&key)),
    }
}

fn sidecar(spec: &Node<'_>) -> Sidecar {
    let selector = at(spec, "workloadSelector").map(|selector| labels(selector, "labels"));
    let egress = match list(spec, "egress") {
        [] => None,
        listeners => Some(listeners),
    };
    let imports = |listener: &Node<'_>| {
        let port = at(listener, "port").and_then(|port| number(port, "number"));
        let hosts = list(listener, "hosts").iter().filter_map(as_text);
        let import = |given: &str| {
            let (excluded, rest) = match given.strip_prefix('~') {
                Some(rest) if !rest.starts_with('/') => (true, rest),
                _ => (false, given),
            };
            let (namespace, host) = rest.split_once('/')?;
            // A `~` alone stands for every namespace.
            let (excluded, namespace) = match namespace {
                "~" => (true, "*"),
                namespace => (excluded, namespace),
            };
            Some(Import {
                excluded,
                namespace: namespace.to_owned(),
                host: pattern(host)?,
                port,
            })
        };
        hosts.filter_map(import).collect::<Vec<_>>()
    };
    Sidecar {
        selector: selector.filter(|labels| !labels.is_empty()),
        egress: egress.map(|all| all.iter().flat_map(imports).collect()),
    }
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

fn attached(spec: &Node<'_>, namespace: &str, route: bool) -> Vec<Target> {
    let refs = list(spec, if route { "parentRefs" } else { "targetRefs" });
    let only = route.then(|| only(spec, namespace)).flatten();
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
        let section = text(it, "sectionName").filter(|_| !route);
        Some(Target {
            at: target(it)?,
            section: section.map(str::to_owned),
            port: number(it, "port"),
            route,
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

/// Completes a short name as Istio does.
fn long(name: &str, namespace: &str) -> String {
    match name.is_empty() || name.contains('.') || name.starts_with('*') {
        true => name.to_owned(),
        false => format!("{name}.{namespace}.svc.cluster.local"),
    }
}

fn pattern(text: &str) -> Option<HostPattern> {
    HostPattern::parse(text).ok()
}

fn at<'n>(node: &'n Node<'_>, key: &str) -> Option<&'n Node<'n>> {
    match node {
        Node::Object(fields) => fields.get(key).filter(|value| **value != Node::Null),
        _ => None,
    }
}

fn as_text<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    match node {
        Node::Text(text) => Some(text),
        _ => None,
    }
}

fn text<'n>(node: &'n Node<'_>, key: &str) -> Option<&'n str> {
    at(node, key).and_then(as_text)
}

fn list<'n>(node: &'n Node<'_>, key: &str) -> &'n [Node<'n>] {
    match at(node, key) {
        Some(Node::List(items)) => items,
        _ => &[],
    }
}

fn texts(node: &Node<'_>, key: &str) -> Vec<String> {
    let texts = list(node, key).iter().filter_map(as_text);
    texts.map(str::to_owned).collect()
}

fn number(node: &Node<'_>, key: &str) -> Option<u64> {
    match at(node, key) {
        Some(Node::Number(number)) => number.as_u64(),
        _ => None,
    }
}

fn labels(node: &Node<'_>, key: &str) -> Vec<(String, String)> {
    match at(node, key) {
        Some(Node::Object(fields)) => {
            let labels = fields
                .iter()
                .filter_map(|(key, value)| Some((key.to_owned(), as_text(value)?.to_owned())));
            labels.collect()
        }
        _ => Vec::new(),
    }
}
