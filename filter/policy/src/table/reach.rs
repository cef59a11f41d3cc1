//! How applications reach what servers name in their answers.

use crate::decision::{Action, Target};
use crate::options::OutboundMode;
use crate::port::PortNumber;
use crate::query::{DownstreamProtocol, Query};
use crate::table::PolicyTable;
use crate::table::hosts::Host;

/// How an application of ours reaches an HTTPS origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// By plain HTTP on this service port: requests are originated to that very origin.
    Plain(PortNumber),
    /// By its own TLS alone.
    Passthrough,
    /// Not at this port, or not as this origin, though rules have the host.
    OtherPort,
    /// No rule has the host.
    UnknownHost,
}

impl PolicyTable {
    /// Returns how an application reaches `https://host:dialled`. Of several plain ports `first` counts before 80, and that
    /// before the lowest. `host` is normalised as in [`Query::host`].
    pub fn reach(&self, host: &str, dialled: PortNumber, first: Option<PortNumber>) -> Reach {
        let origin = Target {
            host,
            port: dialled,
        };
        let (mut known, mut passthrough) = (false, false);
        let mut best: Option<(bool, bool, PortNumber)> = None;
        self.hosts.find_map(host, |found| {
            known = true;
            for port in self.hosts.ports(found) {
                match port.downstream {
                    DownstreamProtocol::Tcp => {}
                    DownstreamProtocol::Tls => passthrough |= port.target == dialled,
                    DownstreamProtocol::Http => {
                        let number = port.number;
                        if self.originated(host, number) == Some(origin) {
                            let rank = (Some(number) != first, number != PortNumber::HTTP, number);
                            best = Some(best.map_or(rank, |best| best.min(rank)));
                        }
                    }
                }
            }
            None::<()>
        });
        match best {
            Some((.., number)) => Reach::Plain(number),
            None if passthrough => Reach::Passthrough,
            None if known => Reach::OtherPort,
            None => Reach::UnknownHost,
        }
    }

    /// Returns the port by which plain HTTP to a host becomes TLS to this port of its server; of several 80, or else the
    /// lowest.
    pub fn plain_port(&self, host: &str, dialled: PortNumber) -> Option<PortNumber> {
        let leads = |port: &PortNumber| {
            let target = self.originated(host, *port);
            target.is_some_and(|target| target.port == dialled)
        };
        // What a wider host has counts where the host itself has no such port, as it does for a request.
        self.hosts.find_map(host, |found| {
            let ports = self.hosts.ports(found).map(|port| port.number);
            let ports = ports.filter(leads);
            ports.min_by_key(|port| (*port != PortNumber::HTTP, *port))
        })
    }

    /// Returns the server of plain requests to a host and port, where it gets TLS.
    fn originated<'t: 'q, 'q>(&'t self, host: &'q str, port: PortNumber) -> Option<Target<'q>> {
        let decision = self.decide(&Query {
            host,
            port,
            downstream: DownstreamProtocol::Http,
            branch: None,
            subset: None,
        });
        let originated = matches!(decision.action, Action::Originate(_));
        decision.target.filter(|_| originated)
    }

    /// Whether plain requests to a host may leave as they are, on any of its ports.
    pub fn forwards(&self, host: &str) -> bool {
        let forwarded = self
            .hosts
            .find_map(host, |host| self.is_forwarded(host).then_some(()));
        self.outbound == OutboundMode::AllowAny || forwarded.is_some()
    }

    /// Whether plain requests may leave as they are to a host of this name, or to any whose name ends in it. Its cost
    /// grows with the table.
    pub fn forwards_below(&self, domain: &str) -> bool {
        let below = |text: &str| {
            let before = text.strip_suffix(domain);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let mut hosts = self.hosts.iter();
        // What a pattern has may be above the domain or below it.
        let concerned = |host: &Host| match host.pattern.exact() {
            Some(host) => below(host.as_str()),
            None => below(host.pattern.text()) || host.pattern.matches(domain),
        };
        self.forwards(domain) || hosts.any(|host| concerned(host) && self.is_forwarded(host))
    }

    fn is_forwarded(&self, host: &Host) -> bool {
        let mut http = (self.hosts.ports(host))
            .filter(|port| port.downstream == DownstreamProtocol::Http)
            .flat_map(|port| self.hosts.verdicts(port));
        http.any(|verdict| {
            let cluster = self.clusters.get(verdict.cluster as usize);
            cluster.is_some_and(|cluster| cluster.tls.is_none())
        })
    }
}
