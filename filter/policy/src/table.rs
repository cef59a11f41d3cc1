//! Compile resources into a table; decide from it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::cluster::{Cluster, ClusterName, Endpoints, Speaks};
use crate::decision::{Action, Arrival, Decision, Query, Reason, Target};
use crate::digest::Digest;
use crate::host::{HostName, HostPattern};
use crate::merge::{PolicySource, Proxy, RuleIndex, Settings, exported, for_port};
use crate::port::{PortNumber, ProtocolClass};
use crate::problem::{FieldPath, Problem, ProblemKind, Problems, Segment, Severity};
use crate::resource::{
    DestinationRule, H2UpgradePolicy, Resolution, ResourceId, Resources, ServiceEntry, ServicePort,
};
use crate::source::problem_of;
use crate::table::index::HostIndex;
use crate::tls::TlsIntent;

pub(crate) mod index;

/// What becomes of hosts that no ServiceEntry has.
///
/// Source: istio/api `mesh/v1alpha1/config.proto`, `MeshConfig.OutboundTrafficPolicy.Mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutboundMode {
    /// They are refused. Ours is the safe default; a mesh's is `ALLOW_ANY`.
    #[default]
    RegistryOnly,
    /// They are left alone.
    AllowAny,
}

impl OutboundMode {
    /// The words that the configuration uses.
    pub const NAMES: [&'static str; 2] = ["REGISTRY_ONLY", "ALLOW_ANY"];

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "REGISTRY_ONLY" => Some(OutboundMode::RegistryOnly),
            "ALLOW_ANY" => Some(OutboundMode::AllowAny),
            _ => None,
        }
    }

    /// Returns the word.
    pub fn as_str(self) -> &'static str {
        match self {
            OutboundMode::RegistryOnly => "REGISTRY_ONLY",
            OutboundMode::AllowAny => "ALLOW_ANY",
        }
    }
}

/// An address to dial in place of a host and port, names unchanged. As curl's `--connect-to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectTo {
    /// The host that would be dialled.
    pub host: HostName,
    /// The port that would be dialled.
    pub port: PortNumber,
    /// The host or address dialled in its place.
    pub address: String,
    /// The port dialled in its place.
    pub address_port: PortNumber,
}

/// What compiling takes besides the resources.
#[derive(Debug, Clone, Default)]
pub struct Settling {
    /// For whom the table is.
    pub proxy: Proxy,
    /// What becomes of other hosts.
    pub outbound: OutboundMode,
    /// Addresses to dial in place of others.
    pub connect_to: Vec<ConnectTo>,
}

/// The compiled, validated resources: what to do with each host and port, and the clusters for it.
#[derive(Debug, Clone)]
pub struct PolicyTable {
    index: HostIndex<usize>,
    hosts: Vec<Host>,
    clusters: Vec<Cluster>,
    resources: Vec<ResourceId>,
    outbound: OutboundMode,
    connect_to: Vec<ConnectTo>,
}

#[derive(Debug, Clone)]
struct Host {
    pattern: HostPattern,
    entry: usize,
    ports: Vec<Port>,
}

#[derive(Debug, Clone)]
struct Port {
    number: PortNumber,
    target: PortNumber,
    arrival: Arrival,
    cluster: usize,
    rule: Option<(usize, PolicySource)>,
}

/// A host and port of the table, for those who render it.
#[derive(Debug, Clone, Copy)]
pub struct Service<'t> {
    /// The host or hosts.
    pub host: &'t HostPattern,
    /// The service port.
    pub port: PortNumber,
    /// The port really dialled.
    pub target: PortNumber,
    /// What comes in on it.
    pub arrival: Arrival,
    /// Where it goes.
    pub cluster: &'t Cluster,
    /// An address to dial in place of the target.
    pub connect_to: Option<(&'t str, PortNumber)>,
    /// The ServiceEntry that has the host.
    pub service_entry: Option<&'t ResourceId>,
    /// The DestinationRule that decided.
    pub rule: Option<&'t ResourceId>,
}

impl PolicyTable {
    /// Compiles resources for one proxy, or tells everything that prevents it.
    ///
    /// The problems returned beside a table are warnings.
    ///
    /// # Errors
    /// When any part of any rule cannot be honoured; then nothing of the table exists.
    pub fn compile(
        resources: &Resources,
        settling: &Settling,
    ) -> Result<(PolicyTable, Problems), Problems> {
        let mut compiler = Compiler {
            settling,
            rules: RuleIndex::of(&resources.destination_rules),
            ..Compiler::new(settling)
        };
        let mut entries: Vec<&ServiceEntry> = resources.service_entries.iter().collect();
        entries.sort_by_key(|entry| entry.meta.order());
        for entry in entries {
            let owner = &entry.meta.id.namespace;
            if exported(&entry.export_to, owner, &settling.proxy.namespace) {
                compiler.entry(entry);
            }
        }
        compiler.finish()
    }

    /// Says what becomes of a host and port.
    pub fn decide(&self, query: &Query<'_>) -> Decision<'_> {
        let Some(host) = self
            .index
            .find(query.host)
            .and_then(|at| self.hosts.get(*at))
        else {
            return self.no_way(Reason::UnknownHost, None);
        };
        let entry = self.resources.get(host.entry);
        let Some(port) = host.ports.iter().find(|port| port.number == query.port) else {
            return self.no_way(Reason::UnknownPort, entry);
        };
        let Some(cluster) = self
            .clusters
            .get(port.cluster)
            .filter(|_| port.arrival == query.arrival)
        else {
            return Decision {
                action: Action::Reject(Reason::OtherProtocol),
                ..self.no_way(Reason::OtherProtocol, entry)
            };
        };
        let action = match (port.arrival, &cluster.tls) {
            (Arrival::Tls, _) => Action::Passthrough(cluster),
            (Arrival::Http, Some(_)) => Action::Originate(cluster),
            (Arrival::Http, None) => Action::Forward(cluster),
        };
        let target = match &host.pattern {
            HostPattern::Exact(name) => Target {
                host: Cow::Borrowed(name.as_str()),
                port: port.target,
            },
            _ => Target {
                host: Cow::Owned(query.host.to_owned()),
                port: port.target,
            },
        };
        let connect_to = self.connect_to(&target.host, target.port);
        let rule = port.rule.and_then(|(rule, _)| self.resources.get(rule));
        let policy_source = port.rule.map(|(_, source)| source);
        Decision {
            action,
            target: Some(target),
            connect_to,
            service_entry: entry,
            rule,
            policy_source,
        }
    }

    /// Returns all clusters, by name. Every decision borrows one of them.
    pub fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.clusters.iter()
    }

    /// Returns all hosts with all their ports, in the order of the resources.
    pub fn services(&self) -> impl Iterator<Item = Service<'_>> {
        self.hosts.iter().flat_map(move |host| {
            host.ports.iter().filter_map(move |port| {
                let cluster = self.clusters.get(port.cluster)?;
                let name = host.pattern.exact();
                let connect_to = name.and_then(|name| self.connect_to(name.as_str(), port.target));
                Some(Service {
                    host: &host.pattern,
                    port: port.number,
                    target: port.target,
                    arrival: port.arrival,
                    cluster,
                    connect_to,
                    service_entry: self.resources.get(host.entry),
                    rule: port.rule.and_then(|(rule, _)| self.resources.get(rule)),
                })
            })
        })
    }

    /// Returns the addresses that are dialled in place of others.
    pub fn connect_tos(&self) -> &[ConnectTo] {
        &self.connect_to
    }

    /// Returns what becomes of hosts that are not in the table.
    pub fn outbound(&self) -> OutboundMode {
        self.outbound
    }

    /// Returns the number of hosts and patterns.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Says whether it has no host.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Returns a fingerprint: equal for two tables that decide alike, whatever order they were read in.
    pub fn digest(&self) -> Digest {
        let mut lines: Vec<String> = self
            .services()
            .map(|service| {
                format!(
                    "{} {} {} {:?} {}",
                    service.host,
                    service.port,
                    service.target,
                    service.arrival,
                    service.cluster.name
                )
            })
            .collect();
        lines.extend(self.clusters.iter().map(|cluster| {
            let tls = cluster
                .tls
                .as_ref()
                .map(|tls| (&tls.sni, &tls.names, tls.mode, tls.trust.as_str()));
            format!(
                "{} {:?} {:?} {:?} {:?} {:?} {:?}",
                cluster.name,
                tls,
                cluster.speaks,
                cluster.endpoints,
                cluster.load_balancer,
                cluster.connection_pool,
                cluster.outlier_detection
            )
        }));
        lines.extend(
            self.connect_to
                .iter()
                .map(|to| format!("{} {} {} {}", to.host, to.port, to.address, to.address_port)),
        );
        lines.push(self.outbound.as_str().to_owned());
        lines.sort_unstable();
        Digest::of(lines.iter().map(String::as_str))
    }

    fn connect_to(&self, host: &str, port: PortNumber) -> Option<(&str, PortNumber)> {
        let to = self
            .connect_to
            .iter()
            .find(|to| to.host.as_str() == host && to.port == port)?;
        Some((&to.address, to.address_port))
    }

    fn no_way<'t>(&self, reason: Reason, service_entry: Option<&'t ResourceId>) -> Decision<'t> {
        let action = match self.outbound {
            OutboundMode::RegistryOnly => Action::Reject(reason),
            OutboundMode::AllowAny => Action::LeaveAlone(reason),
        };
        Decision {
            action,
            target: None,
            connect_to: None,
            service_entry,
            rule: None,
            policy_source: None,
        }
    }
}

struct Compiler<'r> {
    settling: &'r Settling,
    rules: RuleIndex<'r>,
    index: HostIndex<usize>,
    hosts: Vec<Host>,
    /// The entry that each host came from first.
    owners: Vec<&'r ServiceEntry>,
    clusters: Vec<Cluster>,
    names: BTreeMap<ClusterName, usize>,
    resources: Vec<ResourceId>,
    places: BTreeMap<ResourceId, usize>,
    problems: Vec<Problem>,
}

impl<'r> Compiler<'r> {
    fn new(settling: &'r Settling) -> Self {
        Compiler {
            settling,
            rules: RuleIndex::of(&[]),
            index: HostIndex::default(),
            hosts: Vec::new(),
            owners: Vec::new(),
            clusters: Vec::new(),
            names: BTreeMap::new(),
            resources: Vec::new(),
            places: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// Adds the hosts of one ServiceEntry.
    fn entry(&mut self, entry: &'r ServiceEntry) {
        self.check_entry(entry);
        for (at, host) in entry.hosts.iter().enumerate() {
            let next = self.hosts.len();
            let place = self.index.entry(host, || next).map_or(next, |place| *place);
            if place == next {
                let entry_at = self.resource(&entry.meta.id);
                self.hosts.push(Host {
                    pattern: host.clone(),
                    entry: entry_at,
                    ports: Vec::new(),
                });
                self.owners.push(entry);
            } else if !self
                .owners
                .get(place)
                .is_some_and(|owner| mergeable(owner, entry))
            {
                self.shadowed(entry, at, place);
                continue;
            }
            let rule = self
                .rules
                .rule(&self.settling.proxy, &entry.meta.id.namespace, host);
            for port in &entry.ports {
                let taken = self
                    .hosts
                    .get(place)
                    .is_some_and(|host| host.ports.iter().any(|other| other.number == port.number));
                if !taken && let Some(port) = self.port(entry, host, port, rule) {
                    self.hosts
                        .get_mut(place)
                        .into_iter()
                        .for_each(|host| host.ports.push(port.clone()));
                }
            }
        }
    }

    /// Warns of what an entry asks for and does not get.
    fn check_entry(&mut self, entry: &ServiceEntry) {
        let mut warn = |path: FieldPath, text: String, hint: &str| {
            self.problems.push(problem_of(
                Severity::Warning,
                &entry.meta,
                path,
                ProblemKind::NotSupported(text),
                Some(hint.to_owned()),
            ));
        };
        if entry.resolution == Resolution::None {
            let hint = "the host is looked up by DNS instead; set `resolution: DNS` (or `DYNAMIC_DNS` for wildcards) to say so";
            warn(
                FieldPath::keys("spec.resolution"),
                "`resolution: NONE`".to_owned(),
                hint,
            );
        }
        for (at, port) in entry.ports.iter().enumerate() {
            let mut path = FieldPath::keys("spec.ports");
            path.0
                .extend([Segment::Index(at), Segment::Key("protocol".to_owned())]);
            match port.protocol.class() {
                ProtocolClass::Http | ProtocolClass::Tls => {}
                ProtocolClass::Tcp => warn(
                    path,
                    "a port that speaks neither HTTP nor TLS".to_owned(),
                    "nothing listens on it",
                ),
                ProtocolClass::None => {
                    warn(
                        path,
                        "a port without a known protocol".to_owned(),
                        "nothing listens on it; write HTTP, HTTPS, TLS, HTTP2 or GRPC",
                    );
                }
            }
        }
    }

    fn shadowed(&mut self, entry: &ServiceEntry, at: usize, place: usize) {
        let Some(owner) = self.owners.get(place) else {
            return;
        };
        let mut path = FieldPath::keys("spec.hosts");
        path.0.push(Segment::Index(at));
        let text = format!(
            "the host is already that of {}, which is older or comes first by name",
            owner.meta.id
        );
        let hint =
            "only ports of entries with the same namespace and resolution are joined".to_owned();
        self.problems.push(problem_of(
            Severity::Warning,
            &entry.meta,
            path,
            ProblemKind::Conflict(text),
            Some(hint),
        ));
    }

    fn port(
        &mut self,
        entry: &ServiceEntry,
        host: &HostPattern,
        port: &ServicePort,
        rule: Option<&DestinationRule>,
    ) -> Option<Port> {
        let arrival = match port.protocol.class() {
            ProtocolClass::Http => Arrival::Http,
            ProtocolClass::Tls => Arrival::Tls,
            ProtocolClass::Tcp | ProtocolClass::None => return None,
        };
        let settings = rule.map(|rule| for_port(rule, port.number));
        let tls = settings
            .and_then(|settings| settings.tls)
            .and_then(|tls| TlsIntent::of(tls, entry));
        if let (Arrival::Tls, Some(_), Some(rule), Some(settings)) = (arrival, &tls, rule, settings)
        {
            self.double_tls(rule, settings, host, port);
            return None;
        }
        let cluster = self.cluster(entry, host, port, arrival, tls, settings);
        let rule = match (rule, settings) {
            (Some(rule), Some(settings)) => Some((self.resource(&rule.meta.id), settings.source)),
            _ => None,
        };
        Some(Port {
            number: port.number,
            target: port.target,
            arrival,
            cluster,
            rule,
        })
    }

    fn double_tls(
        &mut self,
        rule: &DestinationRule,
        settings: Settings<'_>,
        host: &HostPattern,
        port: &ServicePort,
    ) {
        let mut path = FieldPath::keys("spec.trafficPolicy");
        if let PolicySource::Port(index) = settings.source {
            path.0.extend([
                Segment::Key("portLevelSettings".to_owned()),
                Segment::Index(index),
            ]);
        }
        path.0.push(Segment::Key("tls".to_owned()));
        let text = format!(
            "TLS inside TLS: applications already speak TLS on port {} of `{host}`",
            port.number
        );
        let hint = "give `tls` under `portLevelSettings` for the HTTP port alone".to_owned();
        self.problems.push(problem_of(
            Severity::Error,
            &rule.meta,
            path,
            ProblemKind::Conflict(text),
            Some(hint),
        ));
    }

    /// Finds or makes the cluster of a port. Hosts share one unless something in the rules is theirs alone.
    fn cluster(
        &mut self,
        entry: &ServiceEntry,
        host: &HostPattern,
        port: &ServicePort,
        arrival: Arrival,
        tls: Option<TlsIntent>,
        settings: Option<Settings<'_>>,
    ) -> usize {
        let load_balancer = settings.and_then(|settings| settings.load_balancer);
        let connection_pool = settings
            .and_then(|settings| settings.connection_pool)
            .cloned();
        let outlier_detection = settings
            .and_then(|settings| settings.outlier_detection)
            .cloned();
        let speaks = speaks(
            arrival,
            port,
            tls.is_some(),
            connection_pool.as_ref().map(|pool| pool.http.h2_upgrade),
        );
        let own = !entry.endpoints.is_empty()
            || load_balancer.is_some()
            || connection_pool.is_some()
            || outlier_detection.is_some()
            || tls.as_ref().is_some_and(|tls| !tls.follows_the_request());
        let name = if own {
            ClusterName::own(port.number, host)
        } else {
            ClusterName::shared(tls.as_ref(), speaks)
        };
        if let Some(place) = self.names.get(&name) {
            return *place;
        }
        let endpoints = if own {
            self.endpoints(entry, host, port)
        } else {
            Endpoints::OfTheRequest
        };
        let own = own.then(|| (host.clone(), port.number));
        let place = self.clusters.len();
        self.names.insert(name.clone(), place);
        self.clusters.push(Cluster {
            name,
            own,
            tls,
            speaks,
            endpoints,
            load_balancer,
            connection_pool,
            outlier_detection,
        });
        place
    }

    fn endpoints(&self, entry: &ServiceEntry, host: &HostPattern, port: &ServicePort) -> Endpoints {
        let replaced = |address: &str, port: PortNumber| {
            let to = self
                .settling
                .connect_to
                .iter()
                .find(|to| to.host.as_str() == address && to.port == port);
            to.map_or((address.to_owned(), port), |to| {
                (to.address.clone(), to.address_port)
            })
        };
        let mut addresses: Vec<(String, PortNumber, u32)> = Vec::new();
        // What is dialled for the host as a whole may be replaced, whatever its endpoints are.
        let whole = host
            .exact()
            .map(|name| (name.as_str(), replaced(name.as_str(), port.target)));
        match whole {
            Some((name, (address, to))) if address != name || to != port.target => {
                addresses.push((address, to, 1))
            }
            Some((name, _)) if entry.endpoints.is_empty() => {
                addresses.push((name.to_owned(), port.target, 1))
            }
            None if entry.endpoints.is_empty() => return Endpoints::OfTheRequest,
            _ => {
                for endpoint in &entry.endpoints {
                    let named = endpoint.ports.iter().find(|(name, _)| *name == port.name);
                    let (address, port) = replaced(
                        &endpoint.address,
                        named.map_or(port.target, |(_, port)| *port),
                    );
                    addresses.push((address, port, endpoint.weight));
                }
            }
        }
        let fixed = addresses
            .iter()
            .all(|(address, ..)| address.parse::<std::net::IpAddr>().is_ok());
        Endpoints::Listed {
            addresses,
            fixed,
            one_at_a_time: entry.resolution == Resolution::DnsRoundRobin,
        }
    }

    fn resource(&mut self, id: &ResourceId) -> usize {
        if let Some(place) = self.places.get(id) {
            return *place;
        }
        let place = self.resources.len();
        self.resources.push(id.clone());
        self.places.insert(id.clone(), place);
        place
    }

    fn finish(self) -> Result<(PolicyTable, Problems), Problems> {
        let problems = Problems(self.problems);
        if problems.has_errors() {
            return Err(problems);
        }
        // By name, so that the table does not depend on the order of the documents.
        let mut order: Vec<usize> = self.names.values().copied().collect();
        let mut places = vec![0; order.len()];
        for (to, from) in order.iter().enumerate() {
            places
                .get_mut(*from)
                .into_iter()
                .for_each(|place| *place = to);
        }
        let mut clusters: Vec<Option<Cluster>> = self.clusters.into_iter().map(Some).collect();
        let sorted = order
            .drain(..)
            .filter_map(|from| clusters.get_mut(from).and_then(Option::take))
            .collect();
        let mut hosts = self.hosts;
        for port in hosts.iter_mut().flat_map(|host| host.ports.iter_mut()) {
            port.cluster = places.get(port.cluster).copied().unwrap_or(usize::MAX);
        }
        let table = PolicyTable {
            index: self.index,
            hosts,
            clusters: sorted,
            resources: self.resources,
            outbound: self.settling.outbound,
            connect_to: self.settling.connect_to.clone(),
        };
        Ok((table, problems))
    }
}

/// Says whether a later entry may add ports to a host of an earlier one.
///
/// Source: istio/istio `pilot/pkg/model/sidecar.go`, `canMergeServices`.
fn mergeable(first: &ServiceEntry, later: &ServiceEntry) -> bool {
    first.meta.id.namespace == later.meta.id.namespace
        && first.resolution == later.resolution
        && first.export_to == later.export_to
}

/// Settles what is spoken to the server.
fn speaks(
    arrival: Arrival,
    port: &ServicePort,
    tls: bool,
    upgrade: Option<H2UpgradePolicy>,
) -> Speaks {
    match (
        arrival,
        port.protocol.is_http2(),
        upgrade.unwrap_or_default(),
    ) {
        (Arrival::Tls, ..) => Speaks::Bytes,
        (_, true, _) | (_, _, H2UpgradePolicy::Upgrade) => Speaks::Http2,
        (_, _, H2UpgradePolicy::DoNotUpgrade) => Speaks::Http1,
        // Without TLS nothing can be agreed on.
        _ if tls => Speaks::Auto,
        _ => Speaks::Http1,
    }
}
