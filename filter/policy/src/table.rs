//! Compile resources into a table; decide from it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;

use crate::cluster::{Cluster, ClusterName, Endpoints, Place, Speaks};
use crate::decision::{Action, Decision, Reason, Target};
use crate::digest::{Digest, Lines};
use crate::host::{HostName, HostPattern};
use crate::merge::{Merged, RuleIndex, Settings, for_port, for_subset};
use crate::mesh::Mesh;
use crate::port::{PortNumber, Protocol, ProtocolClass};
use crate::problem::{FieldPath, Problem, ProblemKind, Problems, Segment, Severity};
use crate::proxy::{Proxy, Role};
use crate::query::{Arrival, Connection, Query, Spoken};
use crate::resource::{
    Address, DestinationRule, H2UpgradePolicy, Meta, Resolution, ResourceId, Resources,
    ServiceEntry, ServicePort, SimpleBalancer, Subset,
};
use crate::source::problem_of;
use crate::table::connections::{Candidate, Connections};
use crate::table::gate::Plain;
pub use crate::table::gate::{AllowPlaintext, GateSummary};
use crate::table::hosts::{Host, Hosts, Port, Subsets, Way, narrow};
use crate::table::owners::{Leads, Owner, Siblings, is_looked_up};
use crate::tls::{TlsIntent, Trust};

mod connections;
mod gate;
mod hosts;
pub(crate) mod owners;
mod pinned;
mod tunnels;

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

crate::words! {
    /// The words that the configuration uses.
    OutboundMode {
        RegistryOnly "REGISTRY_ONLY",
        AllowAny "ALLOW_ANY",
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
    /// Each TCP service has a loopback address of its own, by which its connections are told apart.
    pub loopback_vips: bool,
    /// Hosts that may be reached in plaintext though the rules ask for TLS, or seem to.
    pub allow_plaintext: Vec<AllowPlaintext>,
    /// The listener is somebody else's, who decides about hosts that the rules do not name: in Istio.
    pub foreign: bool,
    /// What the configuration of the mesh says.
    pub mesh: Mesh,
}

/// The compiled, validated resources: what to do with each host and port, and the clusters for it.
#[derive(Debug, Clone, Default)]
pub struct PolicyTable {
    hosts: Hosts,
    clusters: Vec<Cluster>,
    resources: Vec<ResourceId>,
    outbound: OutboundMode,
    connect_to: Vec<ConnectTo>,
    /// What connections without a host are told apart by.
    connections: Connections,
    allow_plaintext: Vec<AllowPlaintext>,
    summary: GateSummary,
}

/// A table, with everything that is wrong with what it was compiled from.
#[derive(Debug)]
pub struct Compiled {
    /// The table. With errors among the problems it is for answers only.
    pub table: PolicyTable,
    /// Everything that is wrong.
    pub problems: Problems,
    /// The errors, by the host and port that are refused for them.
    faults: Vec<Fault>,
}

/// An error, and what is refused for it.
#[derive(Debug)]
struct Fault {
    host: usize,
    port: PortNumber,
    /// The place of the error among all problems.
    problem: usize,
}

impl Compiled {
    /// Returns the errors for which a host and port of `table`, the one that was compiled, are refused.
    pub fn errors_of(&self, table: &PolicyTable, host: &str, port: PortNumber) -> Vec<&Problem> {
        let found = table.hosts.find_map(host, |found| {
            table.hosts.port(found, port)?;
            Some(&found.pattern)
        });
        let of_it = |fault: &&Fault| {
            let pattern = table.hosts.get(fault.host).map(|host| &host.pattern);
            fault.port == port && pattern == found
        };
        let problem = |fault: &Fault| self.problems.0.get(fault.problem);
        self.faults
            .iter()
            .filter(of_it)
            .filter_map(problem)
            .collect()
    }
}

/// A host and port of the table that are refused, though the rules name them.
#[derive(Debug, Clone, Copy)]
pub struct Refused<'t> {
    /// The host or hosts.
    pub host: &'t HostPattern,
    /// The service port.
    pub port: PortNumber,
    /// What comes in on it.
    pub arrival: Arrival,
    /// Why.
    pub reason: Reason,
    /// The addresses that applications dial, where its connections are bytes.
    pub addresses: &'t [Address],
    /// Connections without a host would be led to it.
    pub connectable: bool,
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
    /// The subset, if it is one.
    pub subset: Option<&'t str>,
    /// Where it goes.
    pub cluster: &'t Cluster,
    /// An address to dial in place of the target.
    pub connect_to: Option<(&'t str, PortNumber)>,
    /// The addresses that applications dial, where its connections are bytes; none for all that no other
    /// service of the port has.
    pub addresses: &'t [Address],
    /// The loopback address that is its own: [`Settling::loopback_vips`].
    pub vip: Option<Ipv4Addr>,
    /// Connections without a host can be led to it: see [`PolicyTable::decide_connection`].
    pub connectable: bool,
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
        let compiled = PolicyTable::compile_with_errors(resources, settling);
        match compiled.problems.has_errors() {
            true => Err(compiled.problems),
            false => Ok((compiled.table, compiled.problems)),
        }
    }

    /// Compiles resources for one proxy, whatever is wrong with them: a host and port whose rules have an error is
    /// refused with [`Reason::InvalidRule`]. For people who ask about another host; such a table decides nothing.
    pub fn compile_with_errors(resources: &Resources, settling: &Settling) -> Compiled {
        let mut compiler = Compiler::new(resources, settling);
        compiler.entries();
        compiler.gate();
        compiler.finish()
    }

    /// Returns what the gate counted.
    pub fn gate(&self) -> GateSummary {
        self.summary
    }

    /// Says what becomes of a host and port. Its cost does not grow with the table, and nothing is allocated.
    pub fn decide<'t: 'q, 'q>(&'t self, query: &Query<'q>) -> Decision<'t, 'q> {
        // Ports are looked for behind the most specific host first. A host without the port hides no wider
        // one that has it, as routes are per port in Istio.
        let mut first = None;
        let found = self.hosts.find_map(query.host, |host| {
            first = first.or(Some(host));
            Some((host, self.hosts.port(host, query.port)?))
        });
        let Some((host, port)) = found else {
            return match first {
                Some(host) if host.named && query.arrival != Arrival::Tls => Decision {
                    rule: self.entry_of(host),
                    ..refused(Reason::LeftOut)
                },
                Some(host) => self.no_way(Reason::UnknownPort, self.entry_of(host)),
                None => self.no_way(Reason::UnknownHost, None),
            };
        };
        self.settle(host, port, query)
    }

    /// Says what becomes of a connection that names no host, or one in its ClientHello only.
    ///
    /// An address that a TCP service of the port has is that service's. Elsewhere TLS is led by its SNI, and
    /// bytes to the one TCP service of the port that has no `addresses`. Without an address, bytes go to the only
    /// TCP service of the port. What is led nowhere is refused, `ALLOW_ANY` or not: nothing says where it
    /// should go.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/tls.go`, `buildSidecarOutboundTCPFilterChainOpts`.
    pub fn decide_connection<'t: 'q, 'q>(
        &'t self,
        connection: &Connection<'q>,
    ) -> Decision<'t, 'q> {
        let &Connection {
            port,
            address,
            spoken,
        } = connection;
        let found = self.connections.find(port, address);
        let name = match (found, spoken) {
            (Some(found), Spoken::Bytes) => self.hosts.get(found.host),
            (Some(found), Spoken::Tls { .. }) if found.by_address => {
                return Decision {
                    action: Action::Reject(Reason::OtherProtocol),
                    ..self.no_way(
                        Reason::OtherProtocol,
                        self.hosts
                            .get(found.host)
                            .and_then(|host| self.entry_of(host)),
                    )
                };
            }
            (_, Spoken::Tls { server_name }) => {
                let Some(name) = server_name else {
                    return refused(Reason::NoHost);
                };
                let decision = self.decide(&Query {
                    host: name,
                    port,
                    arrival: Arrival::Tls,
                    subset: None,
                });
                return match decision.action {
                    Action::LeaveAlone(reason) => Decision {
                        action: Action::Reject(reason),
                        ..decision
                    },
                    _ => decision,
                };
            }
            (None, Spoken::Bytes) => None,
        };
        let Some((host, name, port)) =
            name.and_then(|host| Some((host, host.pattern.exact()?, self.hosts.port(host, port)?)))
        else {
            return refused(match self.connections.has(port) {
                true => Reason::UnknownHost,
                false => Reason::UnknownPort,
            });
        };
        let query = Query {
            host: name.as_str(),
            port: port.number,
            arrival: Arrival::Tcp,
            subset: None,
        };
        self.settle(host, port, &query)
    }

    /// Says whether connections of bytes on a port are told apart by the address that was dialled.
    pub fn needs_address(&self, port: PortNumber) -> bool {
        self.connections.needs_address(port)
    }

    fn entry_of(&self, host: &Host) -> Option<&ResourceId> {
        self.resources.get(host.entry as usize)
    }

    /// Decides, now that host and port are found.
    fn settle<'t: 'q, 'q>(
        &'t self,
        host: &'t Host,
        port: &'t Port,
        query: &Query<'q>,
    ) -> Decision<'t, 'q> {
        let entry = self.entry_of(host);
        let refused = |reason| Decision {
            service_entry: entry,
            ..refused(reason)
        };
        if port.arrival != query.arrival {
            return refused(Reason::OtherProtocol);
        }
        if let Some(reason) = port.way.refusal() {
            return Decision {
                rule: (port.way.rule()).and_then(|(rule, _)| self.resources.get(rule)),
                policy_source: port.way.rule().map(|(_, source)| source),
                ..refused(reason)
            };
        }
        let way = match query.subset {
            None => Some(&port.way),
            Some(wanted) => self
                .hosts
                .subsets(port)
                .iter()
                .find(|(name, _)| **name == *wanted)
                .map(|(_, way)| way),
        };
        let Some((way, cluster)) =
            way.and_then(|way| Some((way, self.clusters.get(way.cluster as usize)?)))
        else {
            return refused(Reason::UnknownSubset);
        };
        let action = match (port.arrival, &cluster.tls) {
            (Arrival::Tls, _) => Action::Passthrough(cluster),
            (Arrival::Http | Arrival::Tcp, Some(_)) => Action::Originate(cluster),
            (Arrival::Http | Arrival::Tcp, None) => Action::Forward(cluster),
        };
        let name = host.pattern.exact().map_or(query.host, HostName::as_str);
        let rule = way.rule();
        Decision {
            action,
            target: Some(Target {
                host: name,
                port: port.target,
            }),
            connect_to: self.connect_to(name, port.target),
            service_entry: entry,
            rule: rule.and_then(|(rule, _)| self.resources.get(rule)),
            policy_source: rule.map(|(_, source)| source),
            plaintext_allowed: port.allowed && matches!(action, Action::Forward(_)),
        }
    }

    /// Returns all clusters, by name. Every decision borrows one of them.
    pub fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.clusters.iter()
    }

    /// Returns all hosts with all their ports and subsets, in the order of the resources.
    pub fn services(&self) -> impl Iterator<Item = Service<'_>> {
        self.hosts
            .iter()
            .enumerate()
            .flat_map(move |(place, host)| {
                let ports = self.hosts.ports(host);
                let served = ports.filter(|port| port.way.refusal().is_none());
                served.flat_map(move |port| {
                    let subsets = self.hosts.subsets(port).iter();
                    let subsets = subsets.map(|(name, way)| (Some(&**name), way));
                    std::iter::once((None, &port.way))
                        .chain(subsets)
                        .filter_map(move |(subset, way)| {
                            let pinned = host.pattern.exact();
                            let candidate = self.connections.of(place, port.number);
                            Some(Service {
                                host: &host.pattern,
                                port: port.number,
                                target: port.target,
                                arrival: port.arrival,
                                subset,
                                cluster: self.clusters.get(way.cluster as usize)?,
                                connect_to: pinned
                                    .and_then(|name| self.connect_to(name.as_str(), port.target)),
                                addresses: candidate.map_or(&[], |candidate| &candidate.addresses),
                                vip: candidate.and_then(|candidate| candidate.vip),
                                connectable: candidate.is_some(),
                                service_entry: self.entry_of(host),
                                rule: way.rule().and_then(|(rule, _)| self.resources.get(rule)),
                            })
                        })
                })
            })
    }

    /// Returns all hosts and ports that are refused though the rules name them, in the order of the resources.
    pub fn refused(&self) -> impl Iterator<Item = Refused<'_>> {
        self.hosts.iter().enumerate().flat_map(move |(at, host)| {
            let ports = self.hosts.ports(host);
            ports.filter_map(move |port| {
                let reason = port.way.refusal()?;
                let candidate = self.connections.of(at, port.number);
                Some(Refused {
                    host: &host.pattern,
                    port: port.number,
                    arrival: port.arrival,
                    reason,
                    addresses: candidate.map_or(&[], |candidate| &candidate.addresses),
                    connectable: candidate.is_some(),
                })
            })
        })
    }

    /// Returns the addresses that are dialled in place of others.
    pub fn connect_tos(&self) -> &[ConnectTo] {
        &self.connect_to
    }

    /// Returns the hosts whose plaintext was allowed.
    pub fn allow_plaintext(&self) -> &[AllowPlaintext] {
        &self.allow_plaintext
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
        self.len() == 0
    }

    /// Returns a fingerprint: equal for two tables that decide alike, whatever order they were read in.
    pub fn digest(&self) -> Digest {
        let mut lines = Lines::default();
        for service in self.services() {
            let Service {
                host,
                port,
                target,
                arrival,
                subset,
                cluster,
                ..
            } = service;
            let subset = subset.unwrap_or("");
            let name = &cluster.name;
            lines.add(format_args!(
                "{host} {port} {target} {arrival:?} {subset} {name}"
            ));
        }
        for Refused {
            host,
            port,
            arrival,
            reason,
            ..
        } in self.refused()
        {
            lines.add(format_args!("{host} {port} {arrival:?} {reason}"));
        }
        for cluster in &self.clusters {
            lines.add(format_args!("{}", cluster.line()));
        }
        for to in &self.connect_to {
            lines.add(format_args!(
                "{} {} {} {}",
                to.host, to.port, to.address, to.address_port
            ));
        }
        // A host without a port refuses; an address stands for its host.
        for host in self.hosts.iter() {
            lines.add(format_args!("{}", host.pattern));
            if host.named {
                lines.add(format_args!("{} is named", host.pattern));
            }
            for port in self.hosts.ports(host).filter(|port| port.allowed) {
                lines.add(format_args!("{} {} is allowed", host.pattern, port.number));
            }
        }
        for (alias, host) in self.hosts.aliases() {
            lines.add(format_args!("{alias} is {host}"));
        }
        let pattern = |place: usize| self.hosts.get(place).map(|host| &host.pattern);
        for line in self.connections.lines(pattern) {
            lines.add(format_args!("{line}"));
        }
        lines.add(format_args!("{}", self.outbound.as_str()));
        lines.digest()
    }

    fn connect_to(&self, host: &str, port: PortNumber) -> Option<(&str, PortNumber)> {
        let to = self
            .connect_to
            .iter()
            .find(|to| to.host.as_str() == host && to.port == port)?;
        Some((&to.address, to.address_port))
    }

    fn no_way<'t, 'q>(
        &self,
        reason: Reason,
        service_entry: Option<&'t ResourceId>,
    ) -> Decision<'t, 'q> {
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
            plaintext_allowed: false,
        }
    }
}

fn refused<'t, 'q>(reason: Reason) -> Decision<'t, 'q> {
    Decision {
        action: Action::Reject(reason),
        target: None,
        connect_to: None,
        service_entry: None,
        rule: None,
        policy_source: None,
        plaintext_allowed: false,
    }
}

struct Compiler<'r> {
    settling: &'r Settling,
    rules: RuleIndex<'r>,
    hosts: Hosts,
    /// The entry that is each host's service.
    owners: Vec<Owner<'r>>,
    /// The services whose connections are bytes.
    connections: Vec<Candidate<'r>>,
    clusters: Vec<Cluster>,
    names: BTreeMap<ClusterName, usize>,
    resources: &'r Resources,
    /// The clusters that hosts share: few, and looked for by what they are, so that no name is written to find one.
    shared: Vec<usize>,
    problems: Vec<Problem>,
    faults: Vec<Fault>,
    /// The problems that each entry has by itself, where it has any.
    entry_problems: BTreeMap<usize, Range<usize>>,
    /// What would be forwarded in plaintext.
    plain: Vec<Plain<'r>>,
    summary: GateSummary,
}

impl<'r> Compiler<'r> {
    fn new(resources: &'r Resources, settling: &'r Settling) -> Self {
        Compiler {
            settling,
            rules: RuleIndex::of(&resources.destination_rules, &settling.mesh),
            hosts: Hosts::default(),
            owners: Vec::new(),
            connections: Vec::new(),
            clusters: Vec::new(),
            names: BTreeMap::new(),
            resources,
            shared: Vec::new(),
            problems: Vec::new(),
            faults: Vec::new(),
            entry_problems: BTreeMap::new(),
            plain: Vec::new(),
            summary: GateSummary::default(),
        }
    }

    /// Adds the hosts of all entries that the caller sees.
    fn entries(&mut self) {
        let mut families = self.owners();
        for place in 0..self.owners.len() {
            self.host(place, families.remove(&place).as_ref());
        }
    }

    /// Notes that a host and port are refused for the errors among these problems.
    fn blame(&mut self, host: usize, port: PortNumber, among: Range<usize>) {
        for problem in among {
            let found = self.problems.get(problem);
            if found.is_some_and(|found| found.severity == Severity::Error) {
                self.faults.push(Fault {
                    host,
                    port,
                    problem,
                });
            }
        }
    }

    /// Adds the ports of a host.
    fn host(&mut self, place: usize, siblings: Option<&Siblings<'r>>) {
        let Some(&Owner { entry, host }) = self.owners.get(place) else {
            return;
        };
        let rule = self
            .rules
            .rule(&self.settling.proxy, &entry.meta.id.namespace, host);
        let names = alt_names(entry, siblings, &self.settling.mesh.trust_domain);
        let joined = siblings.map_or(&[][..], |siblings| &siblings.joined);
        for from in [entry].into_iter().chain(joined.iter().copied()) {
            for port in from.ports.iter() {
                let known = self.hosts.get(place);
                if known.is_some_and(|host| self.hosts.port(host, port.number).is_some()) {
                    continue;
                }
                let (number, index) = (port.number, port.index);
                let found = self.problems.len();
                let leads = Leads::of(entry, siblings, (from, port));
                let wanted = (from, port, &leads, &names[..]);
                if let Some((port, subsets)) = self.port(entry, host, wanted, rule.as_ref()) {
                    self.note_plain(place, (from, wanted.1), wanted.2, &port, rule.as_ref());
                    self.candidate(from, host, place, index, &port);
                    self.hosts.add_port(place, port, subsets);
                    for entry in siblings.map_or(&[entry][..], |siblings| &siblings.all) {
                        self.blame(place, number, self.problems_of(entry));
                    }
                    self.blame(place, number, found..self.problems.len());
                }
            }
            // As in Istio, whoever names an address of the service in `Host` names the service.
            if let ([_], Some(_)) = (&from.hosts[..], host.exact()) {
                for address in from
                    .addresses
                    .iter()
                    .filter(|address| address.prefix.is_none())
                {
                    self.hosts.alias(HostName::address(address.ip), place);
                }
            }
        }
        // In Istio the ports of entries that did not join have listeners and no clusters: no wider host has them.
        for lost in siblings.iter().flat_map(|siblings| &siblings.lost) {
            for port in lost.ports.iter() {
                let known = self.hosts.get(place);
                let taken = known.is_some_and(|host| self.hosts.port(host, port.number).is_some());
                if let Some(arrival) = arrival(port).filter(|_| !taken) {
                    let way = Way::refused(Reason::UnknownPort, None);
                    let port = Port::new(port.number, port.target, arrival, way);
                    self.hosts.add_port(place, port, Subsets::new());
                }
            }
        }
    }

    /// Returns the places of the problems that an entry has by itself.
    fn problems_of(&self, entry: &ServiceEntry) -> Range<usize> {
        let place = self.entry_place(entry);
        self.entry_problems.get(&place).cloned().unwrap_or_default()
    }

    fn report(
        &mut self,
        severity: Severity,
        meta: &Meta,
        path: FieldPath,
        kind: ProblemKind,
        hint: &str,
    ) {
        self.problems.push(problem_of(
            severity,
            meta,
            path,
            kind,
            Some(hint.to_owned()),
        ));
    }

    /// Tells of what an entry asks for and does not get.
    fn check_entry(&mut self, entry: &ServiceEntry) {
        let mut told = |severity: Severity, path: FieldPath, text: &str, hint: &str| {
            self.report(
                severity,
                &entry.meta,
                path,
                ProblemKind::NotSupported(text.to_owned()),
                hint,
            );
        };
        if entry.resolution == Resolution::None {
            let hint = "the host is looked up by DNS instead; `resolution: DNS` (or `DYNAMIC_DNS` for wildcards) says so";
            told(
                Severity::Warning,
                FieldPath::keys("spec.resolution"),
                "`resolution: NONE`",
                hint,
            );
        }
        if entry.workload_selector.is_some() {
            let hint = "workloads are known to a Kubernetes cluster only, so its hosts are refused; list them in `endpoints`";
            told(
                Severity::Warning,
                FieldPath::keys("spec.workloadSelector"),
                "`workloadSelector`",
                hint,
            );
        }
        if entry.resolution == Resolution::Static
            && entry.endpoints.is_empty()
            && entry.workload_selector.is_none()
        {
            let hint = "`resolution: STATIC` takes its addresses from `endpoints`, so no request could be answered";
            told(
                Severity::Warning,
                FieldPath::keys("spec.resolution"),
                "`STATIC` without endpoints",
                hint,
            );
        }
        let of_bytes = |port: &ServicePort| {
            port.protocol.class() == ProtocolClass::Tcp && port.protocol != Protocol::Unset
        };
        if entry
            .addresses
            .iter()
            .any(|address| address.prefix.is_some())
            && !entry.ports.iter().all(of_bytes)
        {
            let hint = "but for TCP, services are told apart by host name and by single addresses";
            told(
                Severity::Warning,
                FieldPath::keys("spec.addresses"),
                "a range of addresses",
                hint,
            );
        }
        for port in entry.ports.iter() {
            let path = || {
                let mut path = FieldPath::keys("spec.ports");
                path.0.extend([
                    Segment::Index(port.index),
                    Segment::Key("protocol".to_owned()),
                ]);
                path
            };
            match port.protocol.class() {
                ProtocolClass::Http | ProtocolClass::Tls => {}
                ProtocolClass::Tcp if port.protocol != Protocol::Unset => {
                    if entry.hosts.iter().any(|host| host.exact().is_none()) {
                        let text = "a wildcard host on a port that speaks neither HTTP nor TLS";
                        let hint = "nothing listens on it, for no connection says which host it is for; give a ServiceEntry for each host";
                        told(Severity::Warning, path(), text, hint);
                    }
                }
                ProtocolClass::Tcp | ProtocolClass::None => {
                    let hint = "nothing listens on it; write HTTP, HTTPS, TLS, HTTP2, GRPC or TCP";
                    told(
                        Severity::Warning,
                        path(),
                        "a port without a known protocol",
                        hint,
                    );
                }
            }
        }
    }

    /// Tells of a host that is another entry's, and why.
    fn shadowed(&mut self, entry: &ServiceEntry, at: usize, owner: &ServiceEntry) {
        let mut path = FieldPath::keys("spec.hosts");
        path.0.push(Segment::Index(at));
        let id = &owner.meta.id;
        let (text, hint) = if id.namespace != entry.meta.id.namespace {
            let proxy = &self.settling.proxy;
            let own = proxy.role == Role::Sidecar && *id.namespace == *proxy.namespace;
            let why = match own {
                true => "which is in the caller's own namespace",
                false => "whose namespace is asked first",
            };
            (
                format!("the host is that of {id}, {why}"),
                "one namespace has a host: the caller's own, then one that exports it by name, then the oldest entry's; nothing of this entry is used for it",
            )
        } else {
            let hint = "only its endpoints are used; ports are joined where `resolution`, `exportTo`, `workloadSelector` and `metadata.labels` are the same";
            match owner.meta.created == entry.meta.created {
                true => (
                    format!(
                        "the host is already that of {id}, which is as old, and the two entries do not agree: Istio takes either of them"
                    ),
                    "here the first by name has the host; make the two agree, or remove one",
                ),
                false => (
                    format!("the host is already that of {id}, and the two entries do not agree"),
                    hint,
                ),
            }
        };
        let kind = ProblemKind::Conflict(text);
        self.report(Severity::Warning, &entry.meta, path, kind, hint);
    }

    fn port(
        &mut self,
        entry: &'r ServiceEntry,
        host: &HostPattern,
        (from, port, leads, names): (&ServiceEntry, &ServicePort, &Leads<'r>, &[String]),
        merged: Option<&Merged<'r>>,
    ) -> Option<(Port, Subsets)> {
        let arrival = arrival(port)?;
        if arrival == Arrival::Tls
            && matches!(host, HostPattern::Suffix(suffix) if !suffix.starts_with('.'))
        {
            let kind = ProblemKind::NotSupported(format!("`{host}` on a port that speaks TLS"));
            let hint = "a ClientHello is matched by whole labels; use `*.` and a domain";
            self.report(
                Severity::Error,
                &from.meta,
                FieldPath::keys("spec.hosts"),
                kind,
                hint,
            );
            let way = Way::refused(Reason::InvalidRule, None);
            let port = Port::new(port.number, port.target, arrival, way);
            return Some((port, Subsets::new()));
        }
        if entry.workload_selector.is_some() {
            let way = Way::refused(Reason::NotRead, None);
            let port = Port::new(port.number, port.target, arrival, way);
            return Some((port, Subsets::new()));
        }
        let service = Wanted {
            entry,
            host,
            port,
            leads,
            names,
            arrival,
        };
        let settings = merged.map(|merged| for_port(merged, port.number));
        if let (Some(merged), Some(settings)) = (merged, settings) {
            self.check_dropped_tunnel(&service, merged, settings);
        }
        let way = self.way(&service, settings, None).unwrap_or_else(|| {
            let rule = settings.map(|settings| (self.rule_place(settings.rule), settings.source));
            let led = arrival == Arrival::Tls && self.led_to(host, port.number);
            let reason = match led {
                true => Reason::NotRead,
                false => Reason::InvalidRule,
            };
            Way::refused(reason, rule)
        });
        let mut subsets = Vec::new();
        if let (Some(merged), Some(parent)) = (merged, settings) {
            for (rule, subset) in &merged.subsets {
                let settings = for_subset(parent, rule, subset, port.number);
                let found = self.problems.len();
                if let Some(way) = self.way(&service, Some(settings), Some(subset)) {
                    subsets.push((subset.name.as_str().into(), way));
                }
                // No request names a subset, so what is wrong with one refuses no request.
                for problem in self.problems.iter_mut().skip(found) {
                    problem.severity = Severity::Warning;
                }
            }
        }
        let port = Port::new(port.number, port.target, arrival, way);
        Some((port, subsets))
    }

    /// Settles where a service, or a subset of it, goes. `None` when that cannot be honoured, which has been
    /// told, and for a subset that has no endpoint.
    fn way(
        &mut self,
        service: &Wanted<'_>,
        settings: Option<Settings<'r>>,
        subset: Option<&Subset>,
    ) -> Option<Way> {
        let mut tls = None;
        if let Some(settings) = settings {
            let under = |field: &str| {
                let mut path = settings.source.path();
                path.0.push(Segment::Key(field.to_owned()));
                path
            };
            let meta = &settings.rule.meta;
            if let Some(block) = settings.tls {
                match TlsIntent::of(
                    block,
                    settings.rule,
                    service.entry,
                    service.names,
                    service.host,
                    service.arrival,
                    self.settling.proxy.role,
                ) {
                    Ok(intent) => tls = intent,
                    Err(problem) => {
                        let kind = ProblemKind::Conflict(problem.to_string());
                        self.report(Severity::Error, meta, under("tls"), kind, problem.hint());
                        return None;
                    }
                }
            }
            if tls
                .as_ref()
                .is_some_and(|tls| tls.trust == Trust::InsecureSkipVerify)
            {
                let text = "anyone between here and the server can read and change what is sent"
                    .to_owned();
                let hint = "remove it, and give the server's authority in `caCertificates`";
                let mut path = under("tls");
                path.0.push(Segment::Key("insecureSkipVerify".to_owned()));
                self.report(
                    Severity::Warning,
                    meta,
                    path,
                    ProblemKind::Invalid(text),
                    hint,
                );
            }
            if service.arrival == Arrival::Tls && tls.is_some() && settings.tunnel.is_none() {
                let (port, host) = (service.port.number, service.host);
                let text = format!(
                    "TLS inside TLS: applications already speak TLS on port {port} of `{host}`"
                );
                let hint = "give `tls` under `portLevelSettings` for the HTTP port alone";
                // Where something leads requests here, it is they who get TLS, and once.
                let severity = match self.led_to(host, port) {
                    true => Severity::Warning,
                    false => Severity::Error,
                };
                self.report(
                    severity,
                    meta,
                    under("tls"),
                    ProblemKind::Conflict(text),
                    hint,
                );
                return None;
            }
            if service.arrival == Arrival::Tcp
                && tls.is_some()
                && settings.tunnel.is_none()
                && is_postgresql(service.port)
            {
                let text = "PostgreSQL agrees on TLS inside its protocol, by an SSLRequest, and a connection here is TLS from its first byte"
                    .to_owned();
                let hint = "servers from 17 on take it, and clients must say `sslmode=disable`; with older servers remove `tls` and let the application speak TLS (`sslmode=verify-full`)";
                self.report(
                    Severity::Warning,
                    meta,
                    under("tls"),
                    ProblemKind::Conflict(text),
                    hint,
                );
            }
            if let Some(tunnel) = settings.tunnel
                && !self.check_tunnel(service, tunnel, tls.is_some(), &settings, subset)
            {
                return None;
            }
            if settings
                .load_balancer
                .is_some_and(|balancer| balancer.simple == SimpleBalancer::Passthrough)
            {
                let hint = "the host is looked up by DNS instead";
                let kind = ProblemKind::NotSupported("`PASSTHROUGH`".to_owned());
                self.report(Severity::Warning, meta, under("loadBalancer"), kind, hint);
            }
        }
        let cluster = self.cluster(service, tls, settings, subset)?;
        let rule = settings.map(|settings| (self.rule_place(settings.rule), settings.source));
        Some(Way::new(cluster, rule))
    }

    /// Finds or makes the cluster of a port. Hosts share one unless something in the rules is theirs alone.
    fn cluster(
        &mut self,
        service: &Wanted<'_>,
        tls: Option<TlsIntent>,
        settings: Option<Settings<'_>>,
        subset: Option<&Subset>,
    ) -> Option<usize> {
        let &Wanted {
            entry,
            host,
            port,
            leads,
            arrival,
            ..
        } = service;
        let elsewhere = matches!(leads, Leads::To(_));
        let load_balancer = settings
            .and_then(|settings| settings.load_balancer)
            .cloned()
            .map(Box::new);
        let connection_pool = settings
            .and_then(|settings| settings.connection_pool)
            .or(self.settling.mesh.connection_pool.as_ref())
            .cloned()
            .map(Box::new);
        let outlier_detection = settings
            .and_then(|settings| settings.outlier_detection)
            .or(self.settling.mesh.outlier_detection.as_ref())
            .cloned()
            .map(Box::new);
        let proxy_protocol = settings.and_then(|settings| settings.proxy_protocol);
        let retry_budget = settings.and_then(|settings| settings.retry_budget).cloned();
        let tunnel = settings
            .and_then(|settings| settings.tunnel)
            .cloned()
            .map(Box::new);
        let http = connection_pool.as_ref().map(|pool| &pool.http);
        let as_received = http.is_some_and(|http| http.use_client_protocol);
        let upgrade = http.map(|http| http.h2_upgrade).unwrap_or_default();
        let speaks = match &tunnel {
            Some(_) if upgrade == H2UpgradePolicy::Upgrade => Speaks::Http2,
            Some(_) => Speaks::Http1,
            None => speaks(arrival, port, tls.is_some(), upgrade, as_received),
        };
        // Nothing in a connection of bytes says where it goes, so its cluster does.
        let own = subset.is_some()
            || (arrival == Arrival::Tcp && host.exact().is_some())
            || elsewhere
            || load_balancer.is_some()
            || connection_pool.is_some()
            || outlier_detection.is_some()
            || proxy_protocol.is_some()
            || retry_budget.is_some()
            || tunnel.is_some()
            || tls.as_ref().is_some_and(|tls| !tls.follows_the_request());
        // A wildcard lets DNS choose the address; only a service of the mesh may have a private one.
        let any_name = host.exact().is_none() && !elsewhere;
        let public_only = any_name && !entry.internal;
        if !own {
            let alike = |place: &usize| {
                self.clusters.get(*place).is_some_and(|cluster| {
                    cluster.tls == tls
                        && cluster.speaks == speaks
                        && cluster.any_name == any_name
                        && cluster.public_only == public_only
                })
            };
            if let Some(place) = self.shared.iter().copied().find(alike) {
                return Some(place);
            }
            self.shared.push(self.clusters.len());
        }
        let name = match own {
            true => ClusterName::own(port.number, subset.map_or("", |subset| &subset.name), host),
            false => ClusterName::shared(tls.as_ref(), speaks, any_name, public_only),
        };
        if let Some(place) = self.names.get(&name) {
            return Some(*place);
        }
        let endpoints = if own {
            self.endpoints(service, subset)?
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
            tunnel,
            speaks,
            endpoints,
            any_name,
            public_only,
            load_balancer,
            connection_pool,
            outlier_detection,
            proxy_protocol,
            retry_budget,
        });
        Some(place)
    }

    /// Returns where a service leads; `None` for a subset whose labels no endpoint has, which then has no
    /// cluster, as in Istio.
    fn endpoints(&self, service: &Wanted<'_>, subset: Option<&Subset>) -> Option<Endpoints> {
        let &Wanted {
            entry,
            host,
            port,
            leads,
            ..
        } = service;
        let place = |address: &str, number: PortNumber, weight: u32, locality: &str| {
            let to = self
                .settling
                .connect_to
                .iter()
                .find(|to| to.host.as_str() == address && to.port == number);
            let (address, port) = to.map_or((address, number), |to| (&to.address, to.address_port));
            Place {
                address: address.to_owned(),
                port,
                weight,
                locality: locality.to_owned(),
            }
        };
        let elsewhere = matches!(leads, Leads::To(_));
        let labels = subset.map_or(&[][..], |subset| &subset.labels);
        // Envoy can go to the addresses of one name one at a time, not to those of several.
        let by_turns = entry.resolution == Resolution::DnsRoundRobin;
        let listed = |places: Vec<Place>| {
            let one_at_a_time = by_turns && places.len() == 1;
            Some(listed(places, one_at_a_time))
        };
        if let Some(name) = host.exact() {
            let whole = place(name.as_str(), port.target, 1, "");
            // What is dialled for the host as a whole may be replaced, whatever its endpoints are.
            if whole.address != name.as_str() || whole.port != port.target {
                return listed(vec![whole]);
            }
            if !elsewhere {
                return if labels.is_empty() {
                    listed(vec![whole])
                } else {
                    None
                };
            }
        } else if !elsewhere {
            return labels.is_empty().then_some(Endpoints::OfTheRequest);
        }
        let Leads::To(led) = leads else { return None };
        let fixed_only = entry.resolution == Resolution::Static;
        let mut places: Vec<Place> = Vec::new();
        for (entry, port) in led {
            let chosen = entry
                .endpoints
                .iter()
                .filter(|endpoint| labels.iter().all(|label| endpoint.labels.contains(label)))
                .filter(|endpoint| !fixed_only || is_fixed(&endpoint.address));
            for endpoint in chosen {
                let named = endpoint.ports.iter().find(|(name, _)| *name == port.name);
                let number = named.map_or(port.target, |(_, port)| *port);
                let place = place(
                    &endpoint.address,
                    number,
                    endpoint.weight,
                    &endpoint.locality,
                );
                if !places.contains(&place) {
                    places.push(place);
                }
            }
            let by_name = labels.is_empty() && !fixed_only && is_looked_up(entry);
            if let Some(name) = host.exact().filter(|_| by_name) {
                let place = place(name.as_str(), port.target, 1, "");
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
        if places.is_empty() && subset.is_some() {
            return None;
        }
        listed(places)
    }

    /// Returns the place of an entry among all resources.
    fn entry_place(&self, entry: &ServiceEntry) -> usize {
        place_in(&self.resources.service_entries, entry)
    }

    /// Returns the place of a rule among all resources: behind the entries.
    fn rule_place(&self, rule: &DestinationRule) -> usize {
        self.resources.service_entries.len() + place_in(&self.resources.destination_rules, rule)
    }

    fn finish(mut self) -> Compiled {
        let connections = self.connections();
        for fault in &self.faults {
            if let Some(port) = self.hosts.port_mut(fault.host, fault.port)
                && port.way.refusal().is_none()
            {
                port.way = Way::refused(Reason::InvalidRule, port.way.rule());
            }
        }
        self.pin();
        // By name, so that the table does not depend on the order of the documents.
        let mut order: Vec<usize> = self.names.values().copied().collect();
        // What only refused services would have used is not there.
        let used = self.hosts.clusters();
        order.retain(|place| used.contains(&narrow(*place)));
        let mut places = vec![usize::MAX; self.clusters.len()];
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
        for way in hosts.ways_mut().filter(|way| way.refusal().is_none()) {
            way.cluster = narrow(
                places
                    .get(way.cluster as usize)
                    .copied()
                    .unwrap_or(usize::MAX),
            );
        }
        let entries = self
            .resources
            .service_entries
            .iter()
            .map(|entry| entry.meta.id.clone());
        let rules = self
            .resources
            .destination_rules
            .iter()
            .map(|rule| rule.meta.id.clone());
        let ids = entries.chain(rules).collect();
        let table = PolicyTable {
            hosts,
            clusters: sorted,
            resources: ids,
            outbound: self.settling.outbound,
            connect_to: self.settling.connect_to.clone(),
            connections,
            allow_plaintext: self.settling.allow_plaintext.clone(),
            summary: self.summary,
        };
        Compiled {
            table,
            problems: Problems(self.problems),
            faults: self.faults,
        }
    }
}

fn listed(places: Vec<Place>, one_at_a_time: bool) -> Endpoints {
    let fixed = places.iter().all(|place| is_fixed(&place.address));
    Endpoints::Listed {
        places,
        fixed,
        one_at_a_time,
    }
}

/// Returns the one place that an address given by hand is.
fn endpoints_of(to: &ConnectTo) -> Endpoints {
    let place = Place {
        address: to.address.clone(),
        port: to.address_port,
        weight: 1,
        locality: String::new(),
    };
    listed(vec![place], false)
}

/// Says whether an address needs no lookup: it is an IP address or a path.
fn is_fixed(address: &str) -> bool {
    address.starts_with("unix://") || address.parse::<std::net::IpAddr>().is_ok()
}

/// Returns the names that the certificate of a service may have where its rule gives none: `subjectAltNames` of its
/// entry, and the accounts that its endpoints run as.
///
/// Of several entries the youngest one's names count, as in Istio. There they count even where it has none, and so
/// take away those of the others; here they do not.
///
/// Source: istio/istio `pilot/pkg/model/push_context.go`, `initServiceAccounts` and `addServiceAccounts`.
fn alt_names(
    entry: &ServiceEntry,
    siblings: Option<&Siblings<'_>>,
    trust_domain: &str,
) -> Vec<String> {
    let alone = [entry];
    let all = siblings.map_or(&alone[..], |siblings| &siblings.all);
    let given = |entry: &&&ServiceEntry| !entry.subject_alt_names.is_empty();
    let mut names = match all.iter().rev().find(given) {
        Some(entry) => entry.subject_alt_names.clone(),
        None => Vec::new(),
    };
    for entry in all {
        let accounts = entry.endpoints.iter();
        for account in accounts.filter_map(|endpoint| endpoint.service_account.as_deref()) {
            let namespace = &entry.meta.id.namespace;
            let name = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}");
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// Returns the place of an item that is part of a slice.
fn place_in<T>(slice: &[T], item: &T) -> usize {
    let from = std::ptr::from_ref(item)
        .addr()
        .wrapping_sub(slice.as_ptr().addr());
    from / size_of::<T>().max(1)
}

/// A port of a host, as a cluster is wanted for it.
struct Wanted<'w> {
    entry: &'w ServiceEntry,
    host: &'w HostPattern,
    port: &'w ServicePort,
    /// Where its connections go.
    leads: &'w Leads<'w>,
    /// The names that its certificate may have where the rule gives none.
    names: &'w [String],
    arrival: Arrival,
}

/// Returns what comes in on a port; nothing does on one of datagrams.
fn arrival(port: &ServicePort) -> Option<Arrival> {
    match port.protocol.class() {
        ProtocolClass::Http => Some(Arrival::Http),
        ProtocolClass::Tls => Some(Arrival::Tls),
        ProtocolClass::Tcp => Some(Arrival::Tcp),
        ProtocolClass::None => None,
    }
}

/// Says whether a port is PostgreSQL's, by its number or its name: `protocol` has no word for it.
fn is_postgresql(port: &ServicePort) -> bool {
    let known = [port.number, port.target];
    known.iter().any(|number| number.get() == 5432) || port.name.starts_with("postgres")
}

/// Settles what is spoken to the server.
fn speaks(
    arrival: Arrival,
    port: &ServicePort,
    tls: bool,
    upgrade: H2UpgradePolicy,
    as_received: bool,
) -> Speaks {
    match (arrival, port.protocol.is_http2(), upgrade) {
        (Arrival::Tcp, ..) if tls && is_postgresql(port) => Speaks::PostgreSql,
        (Arrival::Tls | Arrival::Tcp, ..) => Speaks::Bytes,
        _ if as_received => Speaks::AsReceived,
        (_, true, _) | (_, _, H2UpgradePolicy::Upgrade) => Speaks::Http2,
        (_, _, H2UpgradePolicy::DoNotUpgrade) => Speaks::Http1,
        // Without TLS nothing can be agreed on.
        _ if tls => Speaks::Auto,
        _ => Speaks::Http1,
    }
}
