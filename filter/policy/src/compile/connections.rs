//! Decides how to tell apart connections that name no host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::compile::compiler::{Candidate, Compiler};
use crate::compile::services::downstream;
use crate::digest::Digest;
use crate::host::HostPattern;
use crate::order::{map_of, sort_by};
use crate::port::{PortNumber, Protocol};
use crate::problem::{ProblemKind, Severity};
use crate::query::DownstreamProtocol;
use crate::resource::{Address, ServiceEntry, ServicePort};
use crate::table::connections::{Connections, Known};
use crate::table::hosts::Port;

impl<'r> Compiler<'r> {
    /// Notes a service if its connections are bytes, and of one host.
    pub(super) fn candidate(
        &mut self,
        entry: &'r ServiceEntry,
        host: &HostPattern,
        host_index: usize,
        port: &ServicePort,
    ) {
        // What Istio would sniff may be HTTP, where the host is read from the request.
        let sniffed = port.protocol == Protocol::Unset;
        let bytes = downstream(port) == Some(DownstreamProtocol::Tcp);
        if !bytes || sniffed || host.exact().is_none() {
            return;
        }
        self.connections.push(Candidate {
            entry,
            index: port.index,
            port: port.number,
            known: Known {
                host: host_index,
                addresses: entry.addresses.clone(),
                vip: None,
            },
        });
    }

    /// Settles what connections are told apart by, and tells what cannot be.
    pub(super) fn connections(&mut self) -> Connections {
        let mut candidates = std::mem::take(&mut self.connections);
        if self.options.loopback_vips {
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
            if !self.options.loopback_vips {
                self.check_port(*port, all);
            }
            sort_by(all, |one, other| one.known.host.cmp(&other.known.host));
        }
        let known = |all: Vec<Candidate<'_>>| all.into_iter().map(|it| it.known).collect();
        Connections(map_of(
            ports.into_iter().map(|(port, all)| (port, known(all))),
        ))
    }

    /// Reports services whose connections cannot be told apart.
    fn check_port(&mut self, port: PortNumber, all: &[Candidate<'r>]) {
        let [http, tls] = [DownstreamProtocol::Http, DownstreamProtocol::Tls]
            .map(|downstream| self.neighbour(port, downstream));
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
    fn neighbour(&self, port: PortNumber, downstream: DownstreamProtocol) -> Option<String> {
        let same = |other: &Port| other.downstream == downstream;
        let mut hosts = self.hosts.iter();
        hosts
            .find(|host| self.hosts.port(host, port).is_some_and(same))
            .map(|host| host.pattern.to_string())
    }

    /// Reports services on the same port whose clients speak first.
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
        for index in candidates.iter().map(|candidate| candidate.known.host) {
            let pattern = self.hosts.get(index).map(|host| &host.pattern);
            names.extend(pattern.map(|pattern| (pattern.to_string(), index)));
        }
        let mut taken = BTreeSet::new();
        let mut vips = BTreeMap::new();
        for (name, index) in names {
            let mut number = first_vip(&name);
            while !taken.insert(number) {
                number = (number + 1) % VIPS;
            }
            vips.insert(index, vip(number));
        }
        vips
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
