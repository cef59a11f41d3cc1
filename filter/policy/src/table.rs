//! What a table answers.

use std::net::{IpAddr, Ipv4Addr};

use crate::cluster::Cluster;
use crate::decision::{Action, Decision, Target};
use crate::digest::{Digest, Lines};
use crate::host::{HostName, HostPattern};
use crate::options::{AllowPlaintext, ConnectTo, OutboundMode};
use crate::port::PortNumber;
use crate::query::{Connection, DownstreamProtocol, Query, Spoken};
use crate::reason::Reason;
use crate::resource::{Address, ResourceId};
use crate::table::connections::Connections;
use crate::table::hosts::{Host, Hosts, Port};

pub(crate) mod branching;
pub(crate) mod connections;
pub(crate) mod hosts;
pub(crate) mod reach;
pub(crate) mod routed;
pub(crate) mod verdict;

/// What the gate counts, for the summary of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GateSummary {
    /// Hosts of which a port is forwarded in plaintext, because the rules say so.
    pub forwarded: usize,
    /// Rules that ask for TLS to hosts that no ServiceEntry names.
    pub elsewhere: usize,
}

/// The compiled, validated resources: what to do with each host and port, and the clusters for it.
#[derive(Debug, Clone, Default)]
pub struct PolicyTable {
    pub(crate) hosts: Hosts,
    pub(crate) clusters: Vec<Cluster>,
    pub(crate) resources: Vec<ResourceId>,
    pub(crate) outbound: OutboundMode,
    /// It is a router's: what no Gateway serves is answered 404, whatever becomes of other hosts elsewhere.
    pub(crate) router: bool,
    pub(crate) connect_to: Vec<ConnectTo>,
    /// What connections without a host are told apart by.
    pub(crate) connections: Connections,
    pub(crate) allow_plaintext: Vec<AllowPlaintext>,
    pub(crate) summary: GateSummary,
}

/// A host and port of the table that are refused, though the rules name them.
#[derive(Debug, Clone, Copy)]
pub struct Refused<'t> {
    /// The host or hosts.
    pub host: &'t HostPattern,
    /// The service port.
    pub port: PortNumber,
    /// What comes in on it.
    pub downstream: DownstreamProtocol,
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
    pub downstream: DownstreamProtocol,
    /// The subset, if it is one.
    pub subset: Option<&'t str>,
    /// Its place among the destinations of the port, where connections are divided among several.
    pub share: Option<usize>,
    /// The address that was dialled chooses among these.
    pub by_address: bool,
    /// Where it goes.
    pub cluster: &'t Cluster,
    /// An address to dial in place of the target.
    pub connect_to: Option<(&'t str, PortNumber)>,
    /// The addresses that applications dial, where its connections are bytes; none for all that no other
    /// service of the port has.
    pub addresses: &'t [Address],
    /// The loopback address that is its own: [`CompileOptions::loopback_vips`](crate::CompileOptions::loopback_vips).
    pub vip: Option<Ipv4Addr>,
    /// Connections without a host can be led to it: see [`PolicyTable::decide_connection`].
    pub connectable: bool,
    /// The ServiceEntry that has the host.
    pub service_entry: Option<&'t ResourceId>,
    /// The DestinationRule that decided.
    pub rule: Option<&'t ResourceId>,
}

/// Whether connections are divided among several destinations, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Divided {
    /// Some are.
    pub any: bool,
    /// Those of TLS are, which are told apart by their names.
    pub names: bool,
    /// By the address that was dialled.
    pub addresses: bool,
}

/// What is known of a connection that its destination may depend on.
#[derive(Clone, Copy, Default)]
struct Dialled {
    /// The address that the application dialled.
    address: Option<IpAddr>,
    /// A number by which one of several shares is drawn.
    drawn: Option<u64>,
}

impl PolicyTable {
    /// Returns what the gate counted.
    pub fn gate(&self) -> GateSummary {
        self.summary
    }

    /// Returns what becomes of a host and port. Its cost does not grow with the table, and nothing is allocated.
    pub fn decide<'t: 'q, 'q>(&'t self, query: &Query<'q>) -> Decision<'t, 'q> {
        self.decide_for(query, Dialled::default())
    }

    /// As [`PolicyTable::decide`], for a connection to an address: it may choose among several destinations.
    pub fn decide_at<'t: 'q, 'q>(
        &'t self,
        query: &Query<'q>,
        address: Option<IpAddr>,
    ) -> Decision<'t, 'q> {
        let drawn = None;
        self.decide_for(query, Dialled { address, drawn })
    }

    fn decide_for<'t: 'q, 'q>(&'t self, query: &Query<'q>, dialled: Dialled) -> Decision<'t, 'q> {
        // Ports are looked for behind the most specific host first. A host without the port hides no wider
        // one that has it, as routes are per port in Istio.
        let mut first = None;
        // As in Istio, TLS is led by the names of the host alone, and not by those of Services that stand for it.
        let is_its_own = |host: &Host| {
            query.downstream != DownstreamProtocol::Tls
                || host.pattern.matches(query.host)
                || query.host.parse::<std::net::IpAddr>().is_ok()
        };
        let found = self.hosts.find_map(query.host, |host| {
            if !is_its_own(host) {
                return None;
            }
            first = first.or(Some(host));
            Some((host, self.hosts.port(host, query.port)?))
        });
        let Some((host, port)) = found else {
            return match first {
                Some(host) if host.named && query.downstream != DownstreamProtocol::Tls => {
                    Decision {
                        rule: self.entry_of(host),
                        ..refused(Reason::LeftOut)
                    }
                }
                Some(host) => self.no_way(Reason::UnknownPort, self.entry_of(host)),
                None => self.no_way(Reason::UnknownHost, None),
            };
        };
        self.settle(host, port, query, dialled)
    }

    /// Returns what becomes of a connection that names no host, or one in its ClientHello only.
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
            drawn,
        } = connection;
        let dialled = Dialled {
            address,
            drawn: Some(drawn),
        };
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
                let query = Query {
                    host: name,
                    port,
                    downstream: DownstreamProtocol::Tls,
                    branch: None,
                    subset: None,
                };
                let decision = self.decide_for(&query, dialled);
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
            downstream: DownstreamProtocol::Tcp,
            branch: None,
            subset: None,
        };
        self.settle(host, port, &query, dialled)
    }

    /// Returns what divides connections to a port, or to any, among several destinations.
    pub fn divided(&self, port: Option<PortNumber>) -> Divided {
        let mut divided = Divided::default();
        for host in self.hosts.iter() {
            for own in self.hosts.ports(host) {
                if port.is_none_or(|port| port == own.number)
                    && self.hosts.shares(own).next().is_some()
                {
                    divided.any = true;
                    divided.names |= own.downstream == DownstreamProtocol::Tls;
                    divided.addresses |= self.hosts.looks_at_addresses(own);
                }
            }
        }
        divided
    }

    /// Whether connections of bytes on a port are told apart by the address that was dialled.
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
        dialled: Dialled,
    ) -> Decision<'t, 'q> {
        let entry = self.entry_of(host);
        let refused = |reason| Decision {
            service_entry: entry,
            ..refused(reason)
        };
        if port.downstream != query.downstream {
            return refused(Reason::OtherProtocol);
        }
        if let Some(routed) = self.hosts.routed(port) {
            return self.settle_routed(host, port, routed, query, dialled);
        }
        if let Some(reason) = port.verdict.refusal() {
            return Decision {
                rule: (port.verdict.rule()).and_then(|(rule, _)| self.resources.get(rule)),
                policy_source: port.verdict.rule().map(|(_, source)| source),
                ..refused(reason)
            };
        }
        let verdict = match query.subset {
            None => Some(&port.verdict),
            Some(wanted) => self
                .hosts
                .subsets(port)
                .iter()
                .find(|(name, _)| **name == *wanted)
                .map(|(_, verdict)| verdict),
        };
        let Some((verdict, cluster)) = verdict
            .and_then(|verdict| Some((verdict, self.clusters.get(verdict.cluster as usize)?)))
        else {
            return refused(Reason::UnknownSubset);
        };
        let action = way_to(port.downstream, cluster);
        let name = host.pattern.exact().map_or(query.host, HostName::as_str);
        let rule = verdict.rule();
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
            virtual_service: None,
            gateway_service: None,
            branch: None,
            renamed: false,
            plaintext_allowed: port.allowed && matches!(action, Action::Forward(_)),
        }
    }

    /// Returns all clusters, by name. Every decision borrows one of them.
    pub fn clusters(&self) -> impl Iterator<Item = &Cluster> {
        self.clusters.iter()
    }

    /// Returns all hosts with all their ports and subsets, in the order of the resources; each destination of a port whose
    /// connections are divided is one, and those of requests are [`PolicyTable::branching`].
    pub fn services(&self) -> impl Iterator<Item = Service<'_>> {
        self.hosts.iter().enumerate().flat_map(move |(at, host)| {
            let ports = self.hosts.ports(host);
            let served = ports.filter(|port| self.hosts.serves(port));
            served.flat_map(move |port| {
                let subsets = self.hosts.subsets(port).len();
                let shares = self.hosts.shares(port).count();
                (0..=subsets + shares).filter_map(move |way| self.service(at, host, port, way))
            })
        })
    }

    /// Returns one of the ways of a port, if it leads anywhere: its own, that of a subset, or that of a share.
    fn service<'t>(
        &'t self,
        index: usize,
        host: &'t Host,
        port: &'t Port,
        way: usize,
    ) -> Option<Service<'t>> {
        let routed = self.hosts.routed(port);
        let subsets = self.hosts.subsets(port);
        let mut told = routed.and_then(|routed| routed.name.as_ref());
        let mut dial = routed.and_then(|routed| routed.dial.as_ref());
        let (mut target, mut verdict) = (port.target, &port.verdict);
        let (mut subset, mut share) = (None, None);
        match way.checked_sub(1) {
            None => {}
            Some(at) if at < subsets.len() => {
                let (name, of_subset) = subsets.get(at)?;
                (subset, verdict) = (Some(&**name), of_subset);
            }
            Some(at) => {
                let at = at - subsets.len();
                let found = self.hosts.shares(port).nth(at)?;
                (share, target, verdict) = (Some(at), found.target, &found.verdict);
                (told, dial) = (found.name.as_ref(), found.dial.as_ref());
            }
        }
        if verdict.refusal().is_some() {
            return None;
        }
        let known = self.connections.of(index, port.number);
        let rule = verdict.rule();
        Some(Service {
            host: &host.pattern,
            port: port.number,
            target,
            downstream: port.downstream,
            subset,
            share,
            by_address: self.hosts.looks_at_addresses(port),
            cluster: self.clusters.get(verdict.cluster as usize)?,
            connect_to: self.dialled(dial, told.or(host.pattern.exact()), target),
            addresses: known.map_or(&[], |known| &known.addresses),
            vip: known.and_then(|known| known.vip),
            connectable: known.is_some(),
            service_entry: self.entry_of(host),
            rule: rule.and_then(|(rule, _)| self.resources.get(rule)),
        })
    }

    /// Returns all hosts and ports that are refused though the rules name them, in the order of the resources.
    pub fn refused(&self) -> impl Iterator<Item = Refused<'_>> {
        self.hosts.iter().enumerate().flat_map(move |(at, host)| {
            let ports = self.hosts.ports(host);
            ports.filter_map(move |port| {
                let reason = port
                    .verdict
                    .refusal()
                    .filter(|_| !self.hosts.serves(port))?;
                let candidate = self.connections.of(at, port.number);
                Some(Refused {
                    host: &host.pattern,
                    port: port.number,
                    downstream: port.downstream,
                    reason,
                    addresses: candidate.map_or(&[], |candidate| &candidate.addresses),
                    connectable: candidate.is_some(),
                })
            })
        })
    }

    /// Returns the addresses that stand for hosts, each with its host.
    pub fn aliases(&self) -> impl Iterator<Item = (&HostName, &HostPattern)> {
        self.hosts.aliases()
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

    /// Whether it has no host.
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
                downstream,
                subset,
                cluster,
                ..
            } = service;
            let subset = subset.unwrap_or("");
            let name = &cluster.name;
            lines.add(format_args!(
                "{host} {port} {target} {downstream:?} {subset} {name}"
            ));
        }
        for Refused {
            host,
            port,
            downstream,
            reason,
            ..
        } in self.refused()
        {
            lines.add(format_args!("{host} {port} {downstream:?} {reason}"));
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
        let pattern = |index: usize| self.hosts.get(index).map(|host| &host.pattern);
        for line in self.connections.lines(pattern) {
            lines.add(format_args!("{line}"));
        }
        self.add_routed(&mut lines);
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
            _ if self.router => Action::Reject(Reason::NoRoute),
            OutboundMode::RegistryOnly => Action::Reject(reason),
            OutboundMode::AllowAny => Action::LeaveAlone(reason),
        };
        Decision {
            action,
            service_entry,
            ..refused(reason)
        }
    }
}

/// Returns what becomes of what comes in so and goes to a cluster.
fn way_to(downstream: DownstreamProtocol, cluster: &Cluster) -> Action<'_> {
    match (downstream, &cluster.tls) {
        (DownstreamProtocol::Tls, _) => Action::Passthrough(cluster),
        (DownstreamProtocol::Http | DownstreamProtocol::Tcp, Some(_)) => Action::Originate(cluster),
        (DownstreamProtocol::Http | DownstreamProtocol::Tcp, None) => Action::Forward(cluster),
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
        virtual_service: None,
        gateway_service: None,
        branch: None,
        renamed: false,
        plaintext_allowed: false,
    }
}
