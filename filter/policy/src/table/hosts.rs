//! The hosts of a table and their ports, packed: a decision reads few places, wherever in a large table they are.

use std::collections::BTreeSet;

use crate::host::{HostName, HostPattern};
use crate::host_index::HostIndex;
use crate::port::PortNumber;
use crate::query::DownstreamProtocol;
use crate::reason::Reason;
use crate::table::routed::{Branch, Routed, Share, nowhere};
use crate::table::verdict::{NONE, Verdict, narrow};

/// All hosts, found by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hosts {
    index: HostIndex,
    hosts: Vec<Host>,
    /// The ports behind the first of each host.
    more: Vec<Port>,
    /// The subsets of the few ports that have any.
    subsets: Vec<Subsets>,
    /// How VirtualServices lead the few ports that they lead.
    routed: Vec<Routed>,
    /// Addresses that stand for a host.
    aliases: Vec<(HostName, usize)>,
}

/// A host or pattern.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) pattern: HostPattern,
    /// The index of its ServiceEntry among all resources.
    pub(crate) entry: u32,
    /// A rule asks for TLS to the host, so its other ports are not left alone either.
    pub(crate) named: bool,
    first: Option<Port>,
}

/// A port of a host.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) number: PortNumber,
    pub(crate) target: PortNumber,
    pub(crate) downstream: DownstreamProtocol,
    /// Plaintext would be refused, and somebody allowed it.
    pub(crate) allowed: bool,
    pub(crate) verdict: Verdict,
    /// The index of its subsets, if it has any.
    subsets: u32,
    /// The index of how it is led, if it is.
    routed: u32,
    /// The index of the next one of its host.
    next: u32,
}

/// The verdicts about subsets, by their names.
pub(crate) type Subsets = Vec<(Box<str>, Verdict)>;

/// Indexes of aliases are counted from here.
const ALIASES: usize = 1 << 31;

impl Port {
    pub(crate) fn new(
        number: PortNumber,
        target: PortNumber,
        downstream: DownstreamProtocol,
        verdict: Verdict,
    ) -> Self {
        Port {
            number,
            target,
            downstream,
            allowed: false,
            verdict,
            subsets: NONE,
            routed: NONE,
            next: NONE,
        }
    }
}

impl Hosts {
    /// Tries the hosts that have the name or address, the most specific first, until one gives something.
    pub(crate) fn find_map<'h, T>(
        &'h self,
        name: &str,
        mut give: impl FnMut(&'h Host) -> Option<T>,
    ) -> Option<T> {
        let mut given = None;
        self.until(name, &mut |host| {
            given = give(host);
            given.is_some()
        });
        given
    }

    /// The same without a type of its own for each caller: what looks names up is large, and a module is small.
    fn until<'h>(&'h self, name: &str, enough: &mut dyn FnMut(&'h Host) -> bool) {
        let text = |index| text(&self.hosts, &self.aliases, index);
        self.index.find_map(name, text, |index| {
            enough(self.hosts.get(self.host_at(index))?).then_some(())
        });
    }

    /// Returns the index of a pattern's host, and whether it has been made just now.
    pub(crate) fn entry(&mut self, pattern: &HostPattern, entry: usize) -> (usize, bool) {
        let next = self.hosts.len();
        let index = self.index_of(pattern, next);
        if index != next {
            return (self.host_at(index), false);
        }
        self.hosts.push(Host {
            pattern: pattern.clone(),
            entry: narrow(entry),
            named: false,
            first: None,
        });
        (index, true)
    }

    /// Returns the index of a pattern's own host.
    pub(crate) fn index(&self, pattern: &HostPattern) -> Option<usize> {
        let text = |index| text(&self.hosts, &self.aliases, index);
        let index = self.host_at(self.index.find_pattern(pattern, text)?);
        let host = self.hosts.get(index)?;
        (host.pattern == *pattern).then_some(index)
    }

    /// Notes that a rule asks for TLS to a pattern, and to all hosts that it has.
    pub(crate) fn name(&mut self, pattern: &HostPattern, rule: usize) {
        let (index, _) = self.entry(pattern, rule);
        for (at, host) in self.hosts.iter_mut().enumerate() {
            host.named |= at == index || pattern.covers(&host.pattern);
        }
    }

    /// Lets an address stand for a host, unless it stands for another already.
    pub(crate) fn alias(&mut self, alias: HostName, host: usize) {
        let next = ALIASES + self.aliases.len();
        let index = self.index_of(&HostPattern::Exact(alias.clone()), next);
        if index == next || self.host_at(index) == host {
            self.aliases.push((alias, host));
        }
    }

    /// Adds a port behind the others of a host.
    pub(crate) fn add_port(&mut self, host: usize, mut port: Port, subsets: Subsets) {
        let Some(host) = self.hosts.get_mut(host) else {
            return;
        };
        if !subsets.is_empty() {
            port.subsets = narrow(self.subsets.len());
            self.subsets.push(subsets);
        }
        let Some(first) = &mut host.first else {
            host.first = Some(port);
            return;
        };
        let new = narrow(self.more.len());
        let mut at = first.next;
        if at == NONE {
            first.next = new;
        }
        while let Some(port) = self.more.get_mut(at as usize) {
            at = port.next;
            if at == NONE {
                port.next = new;
            }
        }
        self.more.push(port);
    }

    /// Adds a port that VirtualServices lead.
    pub(crate) fn add_routed(&mut self, host: usize, mut port: Port, routed: Routed) {
        port.routed = narrow(self.routed.len());
        self.routed.push(routed);
        self.add_port(host, port, Subsets::new());
    }

    /// Returns the destinations among which connections to a port are divided; none of requests.
    pub(crate) fn shares<'h>(&'h self, port: &'h Port) -> impl Iterator<Item = &'h Share> {
        let http = port.downstream == DownstreamProtocol::Http;
        let branches = self.branches(port).iter().filter(move |_| !http);
        branches.flat_map(|branch| &branch.shares)
    }

    /// Whether the address that is dialled chooses among the destinations of a port.
    pub(crate) fn looks_at_addresses(&self, port: &Port) -> bool {
        let mut branches = self.branches(port).iter();
        branches.any(|branch| !branch.ranges.is_empty())
    }

    /// Whether VirtualServices lead only some connections of a port, and the others go the service's own way.
    pub(crate) fn leaves_rest(&self, port: &Port) -> bool {
        let last = self.branches(port).last();
        port.downstream == DownstreamProtocol::Tcp
            && last.is_some_and(|branch| !branch.ranges.is_empty())
    }

    /// Adds a branch behind the others of a port, if it has any. Returns why nothing leads anywhere, if nothing does.
    pub(crate) fn add_branch(
        &mut self,
        host: usize,
        port: PortNumber,
        branch: Branch,
    ) -> Option<Reason> {
        let routed = self.port_mut(host, port)?.routed;
        let branches = &mut self.routed.get_mut(routed as usize)?.branches;
        branches.last()?;
        branches.push(branch);
        nowhere(branches)
    }

    /// Returns how VirtualServices lead a port, if they do.
    pub(crate) fn routed(&self, port: &Port) -> Option<&Routed> {
        self.routed.get(port.routed as usize)
    }

    /// Returns the branches of a port that Envoy's routes choose among.
    pub(crate) fn branches(&self, port: &Port) -> &[Branch] {
        self.routed(port).map_or(&[], |routed| &routed.branches)
    }

    /// Whether a port leads anywhere: by itself, or by one of its branches.
    pub(crate) fn serves(&self, port: &Port) -> bool {
        match port.verdict.refusal() {
            None => true,
            // So it is where no branch was chosen.
            Some(Reason::NoRoute) => !self.branches(port).is_empty(),
            Some(_) => false,
        }
    }

    /// As [`Hosts::serves`], for a host and port that there may be.
    pub(crate) fn is_served(&self, host: usize, number: PortNumber) -> bool {
        let host = self.hosts.get(host);
        let port = host.and_then(|host| self.port(host, number));
        port.is_some_and(|port| self.serves(port))
    }

    /// Returns where a port leads: its own verdict and those of its branches.
    pub(crate) fn verdicts<'h>(&'h self, port: &'h Port) -> impl Iterator<Item = &'h Verdict> {
        let branches = self.branches(port).iter();
        let shares = branches.flat_map(|branch| &branch.shares);
        std::iter::once(&port.verdict).chain(shares.map(|share| &share.verdict))
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Host> {
        self.hosts.get(index)
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Host> {
        self.hosts.get_mut(index)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Returns the ports of a host in the order they were added.
    pub(crate) fn ports<'h>(&'h self, host: &'h Host) -> impl Iterator<Item = &'h Port> {
        let next = |port: &&Port| self.more.get(port.next as usize);
        std::iter::successors(host.first.as_ref(), next)
    }

    /// Returns the subsets of a port by name.
    pub(crate) fn subsets(&self, port: &Port) -> &[(Box<str>, Verdict)] {
        let subsets = self.subsets.get(port.subsets as usize);
        subsets.map_or(&[], Vec::as_slice)
    }

    pub(crate) fn port<'h>(&'h self, host: &'h Host, number: PortNumber) -> Option<&'h Port> {
        self.ports(host).find(|port| port.number == number)
    }

    /// Returns a host's port.
    pub(crate) fn port_mut(&mut self, host: usize, number: PortNumber) -> Option<&mut Port> {
        let first = self.hosts.get_mut(host)?.first.as_mut()?;
        if first.number == number {
            return Some(first);
        }
        let mut at = first.next;
        loop {
            let port = self.more.get(at as usize)?;
            if port.number == number {
                return self.more.get_mut(at as usize);
            }
            at = port.next;
        }
    }

    /// Returns the indexes of the clusters that ports and subsets lead to; those of refused ports lead nowhere.
    pub(crate) fn clusters(&self) -> BTreeSet<u32> {
        let ports = self.hosts.iter().flat_map(|host| self.ports(host));
        let served = ports.filter(|port| self.serves(port));
        let verdicts = served.flat_map(|port| {
            let subsets = self.subsets(port).iter().map(|(_, verdict)| verdict);
            self.verdicts(port).chain(subsets)
        });
        verdicts.map(|verdict| verdict.cluster).collect()
    }

    /// Returns the ways of all ports and subsets.
    pub(crate) fn verdicts_mut(&mut self) -> impl Iterator<Item = &mut Verdict> {
        let first = self.hosts.iter_mut().filter_map(|host| host.first.as_mut());
        let ports = first.chain(&mut self.more).map(|port| &mut port.verdict);
        let subsets = self.subsets.iter_mut().flatten();
        let branches = self
            .routed
            .iter_mut()
            .flat_map(|routed| &mut routed.branches);
        let shares = branches.flat_map(|branch| &mut branch.shares);
        ports
            .chain(subsets.map(|(_, verdict)| verdict))
            .chain(shares.map(|share| &mut share.verdict))
    }

    /// Returns the addresses that stand for hosts.
    pub(crate) fn aliases(&self) -> impl Iterator<Item = (&HostName, &HostPattern)> {
        let named = self.aliases.iter();
        named.filter_map(|(alias, host)| Some((alias, &self.hosts.get(*host)?.pattern)))
    }

    fn index_of(&mut self, pattern: &HostPattern, next: usize) -> usize {
        let text = |index| text(&self.hosts, &self.aliases, index);
        self.index.entry(pattern, next, &text)
    }

    /// Returns the index of the host that an entry of the host index means.
    fn host_at(&self, index: usize) -> usize {
        let alias = index.checked_sub(ALIASES);
        alias.map_or(index, |alias| {
            self.aliases.get(alias).map_or(index, |(_, host)| *host)
        })
    }
}

/// Returns the text of an entry of the host index.
fn text<'h>(hosts: &'h [Host], aliases: &'h [(HostName, usize)], index: usize) -> &'h str {
    match index.checked_sub(ALIASES) {
        Some(alias) => aliases.get(alias).map_or("", |(alias, _)| alias.as_str()),
        None => hosts.get(index).map_or("", |host| host.pattern.text()),
    }
}
