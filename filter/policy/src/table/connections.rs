//! Tells connections apart that name no host: by port, and by the address that was dialled.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::digest::Digest;
use crate::host::HostPattern;
use crate::order::{map_of, sort_by};
use crate::port::{PortNumber, Protocol};
use crate::problem::{FieldPath, ProblemKind, Segment, Severity};
use crate::query::Arrival;
use crate::resource::{Address, ServiceEntry};
use crate::table::{Compiler, Port};

/// The TCP services by port, in the order of the hosts.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections(BTreeMap<PortNumber, Vec<Known>>);

/// A TCP service.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) host: usize,
    pub(super) addresses: Vec<Address>,
    pub(super) vip: Option<Ipv4Addr>,
}

/// What a connection was found to be for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) host: usize,
    /// The address is the service's own.
    pub(super) by_address: bool,
}

impl Connections {
    /// Finds the service of a connection of bytes. The narrowest range that has the address wins.
    pub(super) fn find(&self, port: PortNumber, address: Option<IpAddr>) -> Option<Found> {
        let all = self.0.get(&port)?;
        let found = |known: &Known, by_address| Found {
            host: known.host,
            by_address,
        };
        let Some(address) = address else {
            return match &all[..] {
                [only] => Some(found(only, false)),
                _ => None,
            };
        };
        let by_address = all
            .iter()
            .flat_map(|known| known.dialled().map(move |range| (known, range)))
            .filter(|(_, range)| range.has(address))
            .max_by_key(|(_, range)| range.bits());
        match by_address {
            Some((known, _)) => Some(found(known, true)),
            None => all
                .iter()
                .find(|known| known.dialled().next().is_none())
                .map(|known| found(known, false)),
        }
    }

    /// Says whether the port has any TCP service.
    pub(super) fn has(&self, port: PortNumber) -> bool {
        self.0.contains_key(&port)
    }

    /// Says whether the port has so many that the address tells which.
    pub(super) fn needs_address(&self, port: PortNumber) -> bool {
        self.0.get(&port).is_some_and(|all| all.len() > 1)
    }

    /// Returns what is known of a host's port.
    pub(super) fn of(&self, host: usize, port: PortNumber) -> Option<&Known> {
        let all = self.0.get(&port)?;
        let place = all.binary_search_by_key(&host, |known| known.host).ok()?;
        all.get(place)
    }

    /// Returns all that decides, for fingerprints.
    pub(super) fn lines<'s>(
        &'s self,
        pattern: impl Fn(usize) -> Option<&'s HostPattern> + 's,
    ) -> impl Iterator<Item = String> + 's {
        self.0.iter().flat_map(move |(port, all)| {
            let line = |known: &Known| {
                let host = pattern(known.host).map(HostPattern::to_string);
                let ranges = known.dialled().map(|range| range.to_string());
                let ranges = ranges.reduce(|all, range| all + " " + &range);
                let (host, ranges) = (host.unwrap_or_default(), ranges.unwrap_or_default());
                format!("tcp {port} {host} {ranges}")
            };
            all.iter().map(line).collect::<Vec<_>>()
        })
    }
}

impl Known {
    /// Returns all addresses that are its own.
    fn dialled(&self) -> impl Iterator<Item = Address> + '_ {
        let vip = self.vip.map(|vip| Address {
            ip: vip.into(),
            prefix: None,
        });
        self.addresses.iter().copied().chain(vip)
    }
}

impl Address {
    /// Says whether it is the address, or the range has it.
    pub fn has(&self, address: IpAddr) -> bool {
        let other = Address {
            ip: address,
            prefix: self.prefix,
        };
        self.range() == other.range()
    }

    /// Returns the bits that count, and how many: equal for two that have the same addresses.
    fn range(self) -> (bool, u32, u128) {
        let (bits, longest) = match self.ip {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
            IpAddr::V6(ip) => (ip.to_bits(), 128),
        };
        let free = longest - self.bits().min(longest);
        // Shifting all bits away is not defined, and leaves nothing to compare.
        let kept = bits.checked_shr(free).unwrap_or(0);
        (self.ip.is_ipv4(), self.bits(), kept)
    }

    /// Returns the number of leading bits that count.
    pub fn bits(&self) -> u32 {
        let longest = if self.ip.is_ipv4() { 32 } else { 128 };
        self.prefix.map_or(longest, u32::from)
    }
}

/// A TCP service while the table is made.
pub(super) struct Candidate<'r> {
    entry: &'r ServiceEntry,
    /// The port's place in the entry.
    index: usize,
    port: PortNumber,
    known: Known,
}

impl<'r> Compiler<'r> {
    /// Notes a service if its connections are bytes, and of one host.
    pub(super) fn candidate(
        &mut self,
        entry: &'r ServiceEntry,
        host: &HostPattern,
        place: usize,
        index: usize,
        port: &Port,
    ) {
        let protocol = entry.ports.iter().find(|other| other.index == index);
        // What Istio would sniff may be HTTP, where the host is read from the request.
        let sniffed = protocol.is_none_or(|port| port.protocol == Protocol::Unset);
        if port.arrival != Arrival::Tcp || sniffed || host.exact().is_none() {
            return;
        }
        self.connections.push(Candidate {
            entry,
            index,
            port: port.number,
            known: Known {
                host: place,
                addresses: entry.addresses.clone(),
                vip: None,
            },
        });
    }

    /// Settles what connections are told apart by, and tells what cannot be.
    pub(super) fn connections(&mut self) -> Connections {
        let mut candidates = std::mem::take(&mut self.connections);
        if self.settling.loopback_vips {
            let vips = self.vips(&candidates);
            for candidate in &mut candidates {
                candidate.known.vip = vips.get(&candidate.known.host).copied();
            }
        }
        let mut ports = BTreeMap::<PortNumber, Vec<Candidate<'r>>>::new();
        for candidate in candidates {
            ports.entry(candidate.port).or_default().push(candidate);
        }
        for (port, all) in &mut ports {
            // Each has an address of its own then.
            if !self.settling.loopback_vips {
                self.check_port(*port, all);
            }
            sort_by(all, |one, other| one.known.host.cmp(&other.known.host));
        }
        let known = |all: Vec<Candidate<'_>>| all.into_iter().map(|it| it.known).collect();
        Connections(map_of(
            ports.into_iter().map(|(port, all)| (port, known(all))),
        ))
    }

    /// Tells of services whose connections cannot be told apart.
    fn check_port(&mut self, port: PortNumber, all: &[Candidate<'r>]) {
        let [http, tls] =
            [Arrival::Http, Arrival::Tls].map(|arrival| self.neighbour(port, arrival));
        let mut taken = BTreeMap::new();
        for candidate in all {
            self.check_neighbours(port, candidate, http.as_deref(), tls.as_deref());
            let addresses = &candidate.known.addresses;
            let ranges = addresses.iter().copied().map(Address::range).map(Some);
            let without = addresses.is_empty().then_some(None);
            for range in ranges.chain(without) {
                match taken.get(&range) {
                    None => {
                        taken.insert(range, candidate);
                    }
                    Some(other) if other.known.host == candidate.known.host => {}
                    // Istio leads the connections of both to one of them. Neither is served here.
                    Some(other) => {
                        let text = self.described(port, candidate, other);
                        let found = self.problems.len();
                        self.conflict(candidate, &text);
                        self.blame(other.known.host, port, found..self.problems.len());
                        break;
                    }
                }
            }
        }
    }

    /// Returns the first host that speaks so on the port.
    fn neighbour(&self, port: PortNumber, arrival: Arrival) -> Option<String> {
        let speaks = |other: &Port| other.arrival == arrival;
        let mut hosts = self.hosts.iter();
        hosts
            .find(|host| self.hosts.port(host, port).is_some_and(speaks))
            .map(|host| host.pattern.to_string())
    }

    /// Tells of services on the same port whose clients speak first.
    fn check_neighbours(
        &mut self,
        port: PortNumber,
        candidate: &Candidate<'r>,
        http: Option<&str>,
        tls: Option<&str>,
    ) {
        if let Some(http) = http
            && candidate.known.addresses.is_empty()
        {
            let text = format!(
                "port {port} speaks HTTP for `{http}`: nothing tells connections of TCP from requests"
            );
            self.conflict(candidate, &text);
        }
        if let Some(tls) = tls {
            let text = format!(
                "port {port} speaks TLS for `{tls}`: whoever waits for the server to speak first waits in vain"
            );
            let hint = "harmless where clients speak first; else use another port `number`, with `targetPort`, or `--loopback-vips`";
            self.report(
                Severity::Warning,
                &candidate.entry.meta,
                candidate.path(),
                ProblemKind::Conflict(text),
                hint,
            );
        }
    }

    fn described(&self, port: PortNumber, one: &Candidate<'_>, other: &Candidate<'_>) -> String {
        let host = |of: &Candidate<'_>| {
            let host = self.hosts.get(of.known.host).map(|host| &host.pattern);
            host.map(HostPattern::to_string).unwrap_or_default()
        };
        let (own, theirs, entry) = (host(one), host(other), &other.entry.meta.id);
        format!(
            "port {port} of `{own}` is that of `{theirs}` ({entry}) too: nothing tells their connections apart"
        )
    }

    fn conflict(&mut self, candidate: &Candidate<'_>, text: &str) {
        let before = self.problems.len();
        let hint = "give each entry `addresses` of its own, another port `number` with `targetPort`, or use `--loopback-vips`";
        self.report(
            Severity::Error,
            &candidate.entry.meta,
            candidate.path(),
            ProblemKind::Conflict(text.to_owned()),
            hint,
        );
        self.blame(
            candidate.known.host,
            candidate.port,
            before..self.problems.len(),
        );
    }

    /// Gives each host a loopback address that follows from its name, so that it stays when others come and go,
    /// but for the rare two names that would have the same.
    fn vips(&self, candidates: &[Candidate<'_>]) -> BTreeMap<usize, Ipv4Addr> {
        let mut names = BTreeMap::new();
        for place in candidates.iter().map(|candidate| candidate.known.host) {
            let pattern = self.hosts.get(place).map(|host| &host.pattern);
            names.extend(pattern.map(|pattern| (pattern.to_string(), place)));
        }
        let mut taken = BTreeSet::new();
        let mut vips = BTreeMap::new();
        for (name, place) in names {
            let mut number = first_vip(&name);
            while !taken.insert(number) {
                number = (number + 1) % VIPS;
            }
            vips.insert(place, vip(number));
        }
        vips
    }
}

impl Candidate<'_> {
    fn path(&self) -> FieldPath {
        let mut path = FieldPath::keys("spec.ports");
        path.0.push(Segment::Index(self.index));
        path
    }
}

/// The loopback addresses that are given away: 127.1.0.1 to 127.254.255.254, but for those that end in 0 or 255.
const VIPS: u32 = 254 * 256 * 254;

fn first_vip(name: &str) -> u32 {
    let print = Digest::of_text(name).to_string();
    let head = print.get(..8).unwrap_or_default();
    u32::from_str_radix(head, 16).unwrap_or(0) % VIPS
}

fn vip(number: u32) -> Ipv4Addr {
    let (rest, last) = (number / 254, number % 254 + 1);
    let (second, third) = (rest / 256 + 1, rest % 256);
    Ipv4Addr::from_bits(127 << 24 | second << 16 | third << 8 | last)
}
