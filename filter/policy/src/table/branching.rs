//! What becomes of ports that VirtualServices lead.

use std::net::IpAddr;

use crate::cluster::Cluster;
use crate::decision::{Action, Decision, Target};
use crate::digest::Lines;
use crate::host::{HostName, HostPattern};
use crate::port::PortNumber;
use crate::query::{DownstreamProtocol, Query};
use crate::reason::Reason;
use crate::resource::{Answer, ResourceId};
use crate::table::hosts::{Host, Port};
use crate::table::routed::{Branch, Routed, Share};
use crate::table::verdict::Verdict;
use crate::table::{Dialled, PolicyTable, refused, way_to};

/// A host and port of which Envoy's routes choose what becomes of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Branching<'t> {
    /// The host or hosts.
    pub host: &'t HostPattern,
    /// The service port.
    pub port: PortNumber,
    /// In the order in which they are tried. Where none matches, the answer is 404.
    pub branches: Vec<BranchOf<'t>>,
}

/// A route that Envoy may choose, for those who render it.
#[derive(Debug, Clone, PartialEq)]
pub struct BranchOf<'t> {
    /// What Envoy's route is called. No other in the table is.
    pub name: &'t str,
    /// The VirtualService that has the route.
    pub virtual_service: Option<&'t ResourceId>,
    /// Its place in `spec.http`.
    pub route: usize,
    /// The places in `spec.http[route].match` that can hold; empty where everything does.
    pub matches: &'t [usize],
    /// What a sidecar asks of the same requests, where the branch is a route behind an egress gateway.
    pub before: Option<BeforeOf<'t>>,
    /// What it answers without any server.
    pub answer: Option<Answer>,
    /// Where it leads; a share with no way is `Err`, and its requests are refused.
    pub shares: Vec<ShareOf<'t>>,
}

/// The route by which a sidecar leads to an egress gateway.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeforeOf<'t> {
    /// The VirtualService that has the route.
    pub virtual_service: Option<&'t ResourceId>,
    /// Its place in `spec.http`.
    pub route: usize,
    /// The ways to be what both routes ask for: the place of a match of this route, and of one of the branch's. Without
    /// one, everything is.
    pub pairs: &'t [(Option<usize>, Option<usize>)],
}

/// One destination of a branch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShareOf<'t> {
    /// Its part of the requests.
    pub weight: u32,
    /// Where it goes, or why nowhere.
    pub leads_to: Result<&'t Cluster, Reason>,
    /// The port really dialled.
    pub target: PortNumber,
    /// The host that servers are told and verified by, where it is not the one that was called.
    pub name: Option<&'t HostName>,
    /// The rule that decided.
    pub rule: Option<&'t ResourceId>,
}

impl PolicyTable {
    /// Returns the hosts and ports of which Envoy's routes choose what becomes of a request.
    pub fn branching(&self) -> impl Iterator<Item = Branching<'_>> {
        self.hosts.iter().flat_map(move |host| {
            let ports = self.hosts.ports(host);
            let ports = ports.filter(|port| {
                port.downstream == DownstreamProtocol::Http && self.hosts.serves(port)
            });
            ports.filter_map(move |port| {
                let branches = self.hosts.branches(port);
                let all = branches.iter().map(|branch| self.branch(branch));
                (!branches.is_empty()).then(|| Branching {
                    host: &host.pattern,
                    port: port.number,
                    branches: all.collect(),
                })
            })
        })
    }

    /// Whether requests of a port have branches; of any port, where none is given.
    pub fn has_branches(&self, port: Option<PortNumber>) -> bool {
        self.branching()
            .any(|branching| port.is_none_or(|port| port == branching.port))
    }

    /// Returns the clusters that branches lead to, each with the host and port that has them; one may come again.
    pub fn branch_clusters(&self) -> impl Iterator<Item = (&HostPattern, PortNumber, &Cluster)> {
        self.branching().flat_map(|branching| {
            let (host, port) = (branching.host, branching.port);
            let shares = branching.branches.into_iter().flat_map(|it| it.shares);
            let led = shares.filter_map(|share| share.leads_to.ok());
            led.map(move |cluster| (host, port, cluster))
        })
    }

    /// Returns a branch of a decision for those who carry it out.
    pub fn branch<'t>(&'t self, branch: &'t Branch) -> BranchOf<'t> {
        let shares = self.shares(branch);
        BranchOf {
            name: &branch.name,
            virtual_service: self.resources.get(branch.service as usize),
            route: branch.route,
            matches: &branch.matches,
            before: branch.before.as_deref().map(|before| BeforeOf {
                virtual_service: self.resources.get(before.service as usize),
                route: before.route,
                pairs: &before.pairs,
            }),
            answer: branch.answer,
            shares: shares.collect(),
        }
    }

    /// Returns the destinations of a branch.
    pub fn shares<'t>(&'t self, branch: &'t Branch) -> impl Iterator<Item = ShareOf<'t>> {
        branch.shares.iter().map(|share| {
            let verdict = &share.verdict;
            let cluster = self.clusters.get(verdict.cluster as usize);
            let reason = verdict.refusal();
            let leads_to = match (reason, cluster) {
                (Some(reason), _) => Err(reason),
                (None, Some(cluster)) => Ok(cluster),
                (None, None) => Err(Reason::UnknownDestination),
            };
            ShareOf {
                weight: share.weight,
                leads_to,
                target: share.target,
                name: share.name.as_ref(),
                rule: verdict
                    .rule()
                    .and_then(|(rule, _)| self.resources.get(rule)),
            }
        })
    }

    /// Returns what is dialled in place of the host that servers are told.
    pub(super) fn dialled<'t>(
        &'t self,
        dial: Option<&'t HostName>,
        told: Option<&'t HostName>,
        port: PortNumber,
    ) -> Option<(&'t str, PortNumber)> {
        match dial {
            Some(dial) => {
                let dial = dial.as_str();
                Some(self.connect_to(dial, port).unwrap_or((dial, port)))
            }
            None => self.connect_to(told?.as_str(), port),
        }
    }

    /// Decides about a port that VirtualServices lead.
    pub(super) fn settle_routed<'t: 'q, 'q>(
        &'t self,
        host: &'t Host,
        port: &'t Port,
        routed: &'t Routed,
        query: &Query<'q>,
        dialled: Dialled,
    ) -> Decision<'t, 'q> {
        let by = Decision {
            service_entry: self.entry_of(host),
            virtual_service: self.resources.get(routed.service as usize),
            gateway_service: self.resources.get(routed.gateway_service as usize),
            ..refused(Reason::NoRoute)
        };
        let called = host.pattern.exact().map_or(query.host, HostName::as_str);
        let way = Way {
            called,
            allowed: port.allowed,
            downstream: port.downstream,
        };
        if !routed.branches.is_empty() && self.hosts.serves(port) {
            return self.settle_branch(by, &way, routed, query, dialled);
        }
        if query.subset.is_some() {
            return Decision {
                action: Action::Reject(Reason::UnknownSubset),
                ..by
            };
        }
        let (name, dial) = (routed.name.as_ref(), routed.dial.as_ref());
        self.go(by, &way, &port.verdict, port.target, name, dial)
    }

    fn settle_branch<'t: 'q, 'q>(
        &'t self,
        by: Decision<'t, 'q>,
        way: &Way<'q>,
        routed: &'t Routed,
        query: &Query<'q>,
        dialled: Dialled,
    ) -> Decision<'t, 'q> {
        let mut branches = routed.branches.iter();
        let branch = match way.downstream {
            DownstreamProtocol::Http => branches.find(|branch| Some(&*branch.name) == query.branch),
            DownstreamProtocol::Tls | DownstreamProtocol::Tcp => {
                narrowest(branches, dialled.address)
            }
        };
        let Some(branch) = branch else {
            return by;
        };
        let own = self.resources.get(branch.service as usize);
        let by = match &branch.before {
            Some(before) => Decision {
                virtual_service: self.resources.get(before.service as usize),
                gateway_service: own,
                branch: Some(branch),
                ..by
            },
            None => Decision {
                virtual_service: own,
                branch: Some(branch),
                ..by
            },
        };
        let share = match (branch.answer, &branch.shares[..], dialled.drawn) {
            (Some(answer), _, _) => Err(Action::Respond(answer)),
            (None, [], _) => return by,
            (None, [share], _) => Ok(share),
            (None, shares, Some(number)) => drawn(shares, number).ok_or(Action::Weighted),
            (None, _, None) => Err(Action::Weighted),
        };
        match share {
            Ok(share) => {
                let (name, dial) = (share.name.as_ref(), share.dial.as_ref());
                self.go(by, way, &share.verdict, share.target, name, dial)
            }
            Err(action) => Decision { action, ..by },
        }
    }

    fn go<'t: 'q, 'q>(
        &'t self,
        by: Decision<'t, 'q>,
        way: &Way<'q>,
        verdict: &Verdict,
        port: PortNumber,
        name: Option<&'t HostName>,
        dial: Option<&'t HostName>,
    ) -> Decision<'t, 'q> {
        let rule = verdict.rule();
        let by = Decision {
            rule: rule.and_then(|(rule, _)| self.resources.get(rule)),
            policy_source: rule.map(|(_, source)| source),
            ..by
        };
        if let Some(reason) = verdict.refusal() {
            return Decision {
                action: Action::Reject(reason),
                ..by
            };
        }
        let Some(cluster) = self.clusters.get(verdict.cluster as usize) else {
            return by;
        };
        let host = name.map_or(way.called, HostName::as_str);
        let action = way_to(way.downstream, cluster);
        let dialled = dial.map(|dial| {
            let dial = dial.as_str();
            self.connect_to(dial, port).unwrap_or((dial, port))
        });
        Decision {
            action,
            target: Some(Target { host, port }),
            connect_to: dialled.or_else(|| self.connect_to(host, port)),
            renamed: name.is_some(),
            plaintext_allowed: way.allowed && matches!(action, Action::Forward(_)),
            ..by
        }
    }

    /// Adds all that decides about ports that are led, for fingerprints.
    pub(super) fn add_routed(&self, lines: &mut Lines) {
        for host in self.hosts.iter() {
            for port in self.hosts.ports(host) {
                let Some(routed) = self.hosts.routed(port) else {
                    continue;
                };
                let (pattern, number) = (&host.pattern, port.number);
                let Routed { name, dial, .. } = routed;
                lines.add(format_args!("{pattern} {number} as {name:?} by {dial:?}"));
                for (at, branch) in routed.branches.iter().enumerate() {
                    let (title, matches, answer) = (&branch.name, &branch.matches, branch.answer);
                    lines.add(format_args!("{title} {at} {matches:?} {answer:?}"));
                    for range in &branch.ranges {
                        lines.add(format_args!("{title} {at} {range}"));
                    }
                    if let Some(before) = &branch.before {
                        lines.add(format_args!(
                            "{title} {at} {} {:?}",
                            before.route, before.pairs
                        ));
                    }
                    for (at, share) in self.shares(branch).enumerate() {
                        let cluster = share.leads_to.map(|cluster| &cluster.name);
                        let (weight, target, name) = (share.weight, share.target, share.name);
                        lines.add(format_args!(
                            "{title} {at} {weight} {cluster:?} {target} {name:?}"
                        ));
                    }
                }
            }
        }
    }
}

/// Returns the branch with the narrowest range that has the address, or else the one without ranges, as Envoy finds a
/// chain of a listener.
fn narrowest<'t>(
    branches: impl Iterator<Item = &'t Branch>,
    address: Option<IpAddr>,
) -> Option<&'t Branch> {
    let bits = |branch: &Branch| {
        let ranges = branch.ranges.iter();
        let has = ranges.filter(|range| address.is_some_and(|address| range.has(address)));
        let bits = has.map(|range| range.bits() + 1).max();
        bits.or(branch.ranges.is_empty().then_some(0))
    };
    let mut best: Option<(u32, &Branch)> = None;
    for branch in branches {
        if let Some(bits) = bits(branch)
            && best.is_none_or(|(most, _)| most < bits)
        {
            best = Some((bits, branch));
        }
    }
    best.map(|(_, branch)| branch)
}

/// Returns the share that has a number, where as many numbers are each share's as its weight says.
fn drawn(shares: &[Share], number: u64) -> Option<&Share> {
    let total: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
    let mut rest = number.checked_rem(total)?;
    shares.iter().find(|share| {
        let weight = u64::from(share.weight);
        let has = rest < weight;
        rest = rest.saturating_sub(weight);
        has
    })
}

/// What a request brings along.
struct Way<'q> {
    called: &'q str,
    allowed: bool,
    downstream: DownstreamProtocol,
}
