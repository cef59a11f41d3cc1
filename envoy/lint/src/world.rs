//! Blocks of TLS settings, and which ports of which hosts they reach.

use std::collections::BTreeMap;

use egress_policy::{
    ClientTls, DestinationRule, HostPattern, PolicySource, PortNumber, ServiceEntry, ServicePort,
    TlsMode, TrafficPolicy,
};

use crate::input::Input;
use crate::leads::{Leads, Way};
use crate::scope::{Scope, Service};

/// All that rules ask.
pub(crate) struct World<'i> {
    pub(crate) input: &'i Input,
    pub(crate) scope: Scope,
    /// For each rule, the hosts for which some workload uses its policy.
    used: Vec<Vec<Service>>,
    hosts: BTreeMap<&'i HostPattern, Vec<Service>>,
}

/// A block of TLS settings.
pub(crate) struct Block<'i> {
    /// The place of its rule.
    pub(crate) at: usize,
    pub(crate) rule: &'i DestinationRule,
    pub(crate) tls: &'i ClientTls,
    pub(crate) source: PolicySource,
    port: Option<PortNumber>,
    policy: &'i TrafficPolicy,
}

impl Block<'_> {
    /// Returns the path of the block.
    pub(crate) fn path(&self) -> String {
        format!("{}.tls", self.source.path())
    }

    /// Whether its connections go through a `tunnel`, which no entry for a port has.
    pub(crate) fn tunnelled(&self) -> bool {
        self.port.is_none() && self.policy.tunnel.is_some()
    }

    /// Whether the block settles TLS for a port.
    fn settles(&self, port: PortNumber) -> bool {
        match self.port {
            Some(own) => own == port,
            None => !self
                .policy
                .port_level
                .iter()
                .any(|entry| entry.port == port),
        }
    }
}

/// A port of a host that a block reaches.
#[derive(Clone, Copy)]
pub(crate) struct Reach<'i> {
    pub(crate) service: Service,
    pub(crate) entry: &'i ServiceEntry,
    pub(crate) host: &'i HostPattern,
    pub(crate) port: &'i ServicePort,
}

/// Whether TLS is originated at all.
pub(crate) fn originates(tls: &ClientTls) -> bool {
    tls.mode != TlsMode::Disable
}

impl<'i> World<'i> {
    pub(crate) fn of(input: &'i Input) -> Self {
        let scope = Scope::of(&input.resources);
        let mut used = vec![Vec::new(); input.resources.destination_rules.len()];
        for (service, policies) in &scope.policies {
            for rule in policies.iter().flatten() {
                if let Some(used) = used.get_mut(*rule) {
                    used.push(*service);
                }
            }
        }
        let mut hosts: BTreeMap<&HostPattern, Vec<Service>> = BTreeMap::new();
        for (at, entry) in input.resources.service_entries.iter().enumerate() {
            for (host_at, host) in entry.hosts.iter().enumerate() {
                hosts.entry(host).or_default().push((at, host_at));
            }
        }
        World {
            input,
            scope,
            used,
            hosts,
        }
    }

    pub(crate) fn entries(&self) -> &'i [ServiceEntry] {
        &self.input.resources.service_entries
    }

    pub(crate) fn rules(&self) -> &'i [DestinationRule] {
        &self.input.resources.destination_rules
    }

    /// Returns a rule's name, for messages.
    pub(crate) fn rule_name(&self, at: usize) -> String {
        self.rules()
            .get(at)
            .map(|rule| rule.meta.id.to_string())
            .unwrap_or_default()
    }

    /// Whether something that is not read here may rely on what TLS the ports and subsets of a host have.
    pub(crate) fn relied_on(&self, host: &HostPattern) -> bool {
        self.input.may_be_led_to(host) || self.input.may_be_refused("DestinationRule", host)
    }

    /// Returns the hosts with one name.
    pub(crate) fn same_hosts(&self) -> impl Iterator<Item = (&'i HostPattern, &[Service])> {
        self.hosts
            .iter()
            .map(|(host, services)| (*host, services.as_slice()))
    }

    /// Returns the entries that have a host by this name.
    pub(crate) fn entries_of(&self, host: &HostPattern) -> &[Service] {
        self.hosts.get(host).map_or(&[], Vec::as_slice)
    }

    /// Returns every block of every rule.
    pub(crate) fn blocks(&self) -> Vec<Block<'i>> {
        let mut blocks = Vec::new();
        for (at, rule) in self.rules().iter().enumerate() {
            let whole = rule
                .policy
                .as_deref()
                .map(|policy| (PolicySource::Rule, policy));
            let subsets = rule.subsets.iter().filter_map(|subset| {
                Some((PolicySource::Subset(subset.index), subset.policy.as_ref()?))
            });
            for (source, policy) in whole.into_iter().chain(subsets) {
                let block = |tls, source, port| Block {
                    at,
                    rule,
                    tls,
                    source,
                    port,
                    policy,
                };
                blocks.extend(policy.tls.as_ref().map(|tls| block(tls, source, None)));
                for (number, entry) in policy.port_level.iter().enumerate() {
                    let earlier = policy.port_level.iter().take(number);
                    let first = !earlier.clone().any(|other| other.port == entry.port);
                    let source = match source {
                        PolicySource::Subset(subset) => {
                            PolicySource::SubsetPort(subset, entry.index)
                        }
                        _ => PolicySource::Port(entry.index),
                    };
                    let tls = entry.policy.tls.as_ref().filter(|_| first);
                    blocks.extend(tls.map(|tls| block(tls, source, Some(entry.port))));
                }
            }
        }
        blocks
    }

    /// Returns the hosts that a rule is for, whether or not another rule speaks for them.
    pub(crate) fn covered(&self, rule: &DestinationRule) -> Vec<Service> {
        match rule.host {
            HostPattern::Exact(_) => self.hosts.get(&rule.host).cloned().unwrap_or_default(),
            _ => {
                let covered = self.hosts.iter().filter(|(host, _)| rule.host.covers(host));
                covered
                    .flat_map(|(_, services)| services.iter().copied())
                    .collect()
            }
        }
    }

    /// Returns the hosts that a block is used for; where its rule never is, those it was meant for.
    pub(crate) fn services(&self, block: &Block<'i>) -> Vec<Service> {
        let used = self.used.get(block.at).filter(|used| !used.is_empty());
        match (block.source, used) {
            (PolicySource::Rule | PolicySource::Port(_), Some(used)) => used.clone(),
            _ => self.covered(block.rule),
        }
    }

    /// Returns the ports that a block reaches.
    pub(crate) fn reach(&self, block: &Block<'i>) -> Vec<Reach<'i>> {
        let mut reach = Vec::new();
        for service in self.services(block) {
            let Some((entry, host)) = self.service(service) else {
                continue;
            };
            let ports = entry.ports.iter().filter(|port| block.settles(port.number));
            reach.extend(ports.map(|port| Reach {
                service,
                entry,
                host,
                port,
            }));
        }
        reach
    }

    /// Whether a VirtualService leads plain HTTP or TCP to a port that a block reaches, and to the block.
    pub(crate) fn led(&self, block: &Block<'i>, reach: &Reach<'i>) -> bool {
        let used = |subset: Option<&str>| {
            let named = |index: usize| {
                let of = block.rule.subsets.iter().find(|of| of.index == index);
                of.is_some_and(|of| Some(&*of.name) == subset)
            };
            match block.source {
                PolicySource::Subset(index) | PolicySource::SubsetPort(index, _) => named(index),
                // What a subset says of a policy takes the place of the rule's.
                _ => subset.is_none_or(|name| {
                    let mut subsets = block.rule.subsets.iter();
                    subsets.any(|of| &*of.name == name && of.policy.is_none())
                }),
            }
        };
        self.ways_to(reach)
            .any(|(leads, way)| self.is_plain(leads, way) && used(way.subset.as_deref()))
    }

    /// Whether whoever calls this very port is led somewhere else.
    pub(crate) fn led_away(&self, reach: &Reach<'i>) -> bool {
        let (class, port) = (
            reach.port.protocol.class(),
            u64::from(reach.port.number.get()),
        );
        let taken = self.input.leads.iter().any(|leads| {
            let takes = |way: &Way| way.mesh && way.class == class && way.is_from(port);
            leads.public && leads.hosts.contains(reach.host) && leads.ways.iter().any(takes)
        });
        taken && self.ways_to(reach).next().is_none()
    }

    fn ways_to(&self, reach: &Reach<'i>) -> impl Iterator<Item = (&'i Leads, &'i Way)> {
        let host = reach.host.to_string().to_ascii_lowercase();
        let port = u64::from(reach.port.number.get());
        let single = reach.entry.ports.len() == 1;
        let all = self.input.leads.iter();
        all.flat_map(|leads| leads.ways.iter().map(move |way| (leads, way)))
            .filter(move |(_, way)| match way.port {
                Some(to) => to == port,
                // Without a port it is the only one, or the one that was called.
                None => single || way.is_from(port),
            })
            .filter(move |(_, way)| way.host == host)
    }

    /// Whether what goes this way is plaintext when it comes to the VirtualService.
    fn is_plain(&self, leads: &Leads, way: &Way) -> bool {
        // A gateway has taken the TLS off, or there was none: otherwise these routes are not asked.
        if !way.mesh {
            return way.port.is_some();
        }
        leads.hosts.iter().any(|host| {
            let Some(services) = self.hosts.get(host) else {
                return way.port.is_some();
            };
            let entries = services.iter().filter_map(|at| self.service(*at));
            let mut ports = entries.flat_map(|(entry, _)| entry.ports.iter());
            ports.any(|port| {
                port.protocol.class() == way.class && way.is_from(u64::from(port.number.get()))
            })
        }) || leads.hosts.is_empty()
    }

    /// Returns the ServiceEntry and the host of it.
    pub(crate) fn service(&self, service: Service) -> Option<(&'i ServiceEntry, &'i HostPattern)> {
        let entry = self.entries().get(service.0)?;
        Some((entry, entry.hosts.get(service.1)?))
    }

    /// Whether the workloads that use these rules originate TLS on a port.
    ///
    /// Returns whether any does, and whether all do.
    pub(crate) fn originated(&self, service: Service, port: PortNumber) -> (bool, bool) {
        let Some(policies) = self.scope.policies.get(&service) else {
            return (false, false);
        };
        let on = |rule: &Option<usize>| {
            rule.and_then(|at| self.rules().get(at))
                .and_then(|rule| tls_of(rule.policy.as_ref()?, port))
                .is_some_and(originates)
        };
        let any = policies.iter().any(on);
        (any, any && policies.iter().all(on))
    }
}

/// Returns the settings of TLS for a port.
fn tls_of(policy: &TrafficPolicy, port: PortNumber) -> Option<&ClientTls> {
    match policy.port_level.iter().find(|entry| entry.port == port) {
        Some(entry) => entry.policy.tls.as_deref(),
        None => policy.tls.as_deref(),
    }
}
