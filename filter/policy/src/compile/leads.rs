//! Follows routes to what they lead to: a destination's host, port and subset, whose own rules then decide.
//!
//! ```text
//! host, port ──routing──► routes ──here──► destination D:N, subset S ──► the DestinationRule of D, its port N, subset S
//! ```
//!
//! A destination that is the Service of an egress gateway is a hop. We are sidecar and gateway in one, so its routes are
//! followed as that gateway would, and the connection between the two is never made.

use std::rc::Rc;

use crate::compile::compiler::{Compiler, Plain, Wanted};
use crate::compile::gate::dialled;
use crate::compile::owners::{Entry, Leads};
use crate::compile::routing::{Chosen, Domain};
use crate::compile::scope::{Found, Scope};
use crate::compile::services::{alt_names, downstream};
use crate::host::HostPattern;
use crate::merge::{for_port, for_subset};
use crate::port::PortNumber;
use crate::problem::{FieldPath, Segment, Severity};
use crate::proxy::{Proxy, Role};
use crate::query::DownstreamProtocol;
use crate::reason::Reason;
use crate::resource::{Both, ClientTls, Destination, Match, Meta, Route, ServicePort, TlsMode};
use crate::table::hosts::Port;
use crate::table::routed::{Before, Branch, Routed, Share, nowhere};
use crate::table::verdict::{Verdict, narrow};

/// A host and port of the table that routes are followed for.
#[derive(Clone, Copy)]
pub(super) struct Called<'c> {
    /// Its place in the table.
    pub(super) index: usize,
    pub(super) host: &'c HostPattern,
    pub(super) port: PortNumber,
    pub(super) downstream: DownstreamProtocol,
}

/// Who follows: the caller's sidecar, or a router.
#[derive(Clone)]
pub(super) struct Side<'r> {
    pub(super) proxy: Rc<Proxy>,
    /// What it sees; `None` is what the caller sees.
    pub(super) scope: Option<Rc<Scope<'r>>>,
    /// The port that it listens on, which destinations without one may have.
    pub(super) port: PortNumber,
    /// Each destination has a cluster of its own, so that Envoy can choose among them.
    pub(super) alone: bool,
}

/// Routes that go on at a gateway.
pub(super) struct Hop<'r> {
    pub(super) domain: Domain<'r>,
    pub(super) side: Side<'r>,
}

/// What a destination comes to.
enum Onward<'r> {
    /// A service, and the VirtualService that leads there behind an egress gateway.
    Ends(Share, Option<usize>),
    /// The routes of an egress gateway, which choose once more.
    Routes(Side<'r>, Vec<Chosen<'r>>),
}

/// Where requests go on, or why nowhere.
pub(super) type Followed<T> = Result<T, Reason>;

impl<'r> Compiler<'r> {
    /// Returns who follows routes of the caller.
    pub(super) fn own_side(&self, port: PortNumber) -> Side<'r> {
        Side {
            proxy: Rc::new(self.options.proxy.clone()),
            scope: None,
            port,
            alone: false,
        }
    }

    /// Adds a host's port whose requests go by these routes.
    pub(super) fn add_routed(&mut self, called: Called<'_>, side: Side<'r>, routes: &[Chosen<'r>]) {
        let before = self.problems.len();
        let plain = self.plain.len();
        let found = self.plan(called, &side, routes);
        let first = routes.first().map(|chosen| self.service_index(chosen));
        let (port, routed) = match found {
            Ok((share, routed)) => {
                let port = Port::new(called.port, share.target, called.downstream, share.verdict);
                (port, routed)
            }
            Err(reason) => {
                self.plain.truncate(plain);
                let verdict = Verdict::refused(reason, None);
                let port = Port::new(called.port, called.port, called.downstream, verdict);
                (port, Routed::by(first))
            }
        };
        self.hosts.add_routed(called.index, port, routed);
        self.blame(called.index, called.port, before..self.problems.len());
    }

    fn plan(
        &mut self,
        called: Called<'_>,
        side: &Side<'r>,
        routes: &[Chosen<'r>],
    ) -> Followed<(Share, Routed)> {
        let Some(first) = routes.first() else {
            return Err(Reason::NoRoute);
        };
        if !first.is_plain() || self.gets_a_host_with_routes(called, side, first) {
            return self.branches(called, side, routes, None);
        }
        let by = Some(self.service_index(first));
        let Some(to) = first.route.shares().first().copied() else {
            return Err(Reason::NoRoute);
        };
        match self.onward(called, side, first, to)? {
            Onward::Ends(share, gateway) => {
                let routed = Routed {
                    gateway_service: gateway.map_or(u32::MAX, narrow),
                    name: share.name.clone(),
                    dial: share.dial.clone(),
                    ..Routed::by(by)
                };
                Ok((share, routed))
            }
            Onward::Routes(side, routes) => self.branches(called, &side, &routes, by),
        }
    }

    /// Whether a route gives requests another host, and VirtualServices are for that one too. If our filter wrote it, routes
    /// of theirs would choose for such a request as well; a route of its own writes it when they are done.
    fn gets_a_host_with_routes(
        &self,
        called: Called<'_>,
        side: &Side<'r>,
        chosen: &Chosen<'r>,
    ) -> bool {
        let mut shares = chosen.route.shares().into_iter();
        let of_share = shares.find_map(|to| to.authority.as_ref());
        let Some(name) = chosen.route.authority.as_ref().or(of_share) else {
            return false;
        };
        if called.downstream != DownstreamProtocol::Http || called.host.exact() == Some(name) {
            return false;
        }
        if side.proxy.role == Role::Gateway {
            return true;
        }
        self.routing
            .goes_by(&HostPattern::Exact(name.clone()))
            .is_some()
    }

    /// Follows a destination to its end, or to the routes of an egress gateway that say more than where they lead.
    fn onward(
        &mut self,
        called: Called<'_>,
        side: &Side<'r>,
        chosen: &Chosen<'r>,
        to: &'r Destination,
    ) -> Followed<Onward<'r>> {
        if let Some(share) = self.follow(called, side, chosen, to)? {
            return Ok(Onward::Ends(share, None));
        }
        let told = chosen.route.authority.as_ref().or(to.authority.as_ref());
        let asked = told.map_or(called.host.clone(), |name| HostPattern::Exact(name.clone()));
        let Hop { domain, side } = self.hop(called, side, chosen, to, &asked)?;
        let routes = self.of_hop(called, &domain, &side, &asked)?;
        match routes.first() {
            Some(first) if first.is_plain() => {
                if self.gets_a_host_with_routes(called, &self.own_side(called.port), first) {
                    let what = "gives requests the host of other routes behind an egress gateway";
                    return Err(self.not_carried_out(called, Some(first), what));
                }
                let mut share = self.last(called, &side, first)?;
                share.name = share.name.or_else(|| told.cloned());
                Ok(Onward::Ends(share, Some(self.service_index(first))))
            }
            _ if told.is_some() => {
                let what =
                    "gives requests another host before an egress gateway that matches them again";
                Err(self.not_carried_out(called, Some(chosen), what))
            }
            _ => Ok(Onward::Routes(side, routes)),
        }
    }

    /// Follows the one destination of a route that may lead to no other hop.
    fn last(
        &mut self,
        called: Called<'_>,
        side: &Side<'r>,
        chosen: &Chosen<'r>,
    ) -> Followed<Share> {
        let shares = chosen.route.shares();
        let Some(to) = shares.first() else {
            return Err(Reason::NoRoute);
        };
        match self.follow(called, side, chosen, to)? {
            Some(share) => Ok(share),
            None => Err(self.unknown_destination(called, chosen, to)),
        }
    }

    /// Makes a branch of each route. Of requests, Envoy chooses one; of connections, the table does.
    fn branches(
        &mut self,
        called: Called<'_>,
        side: &Side<'r>,
        routes: &[Chosen<'r>],
        mesh_service: Option<usize>,
    ) -> Followed<(Share, Routed)> {
        let http = called.downstream == DownstreamProtocol::Http;
        let side = Side {
            alone: true,
            ..side.clone()
        };
        let mut branches = Vec::new();
        for chosen in routes {
            if chosen.route.delegates {
                return Err(self.not_carried_out(called, Some(chosen), "delegates its routes"));
            }
            let mut shares = Vec::new();
            if chosen.route.answer.is_none() {
                let all = chosen.route.shares();
                for to in &all {
                    let mut share = match self.onward(called, &side, chosen, to) {
                        Ok(Onward::Ends(share, _)) => share,
                        Ok(Onward::Routes(..)) if !http => {
                            let what = "divides connections, and the egress gateway behind it divides them again";
                            return Err(self.not_carried_out(called, Some(chosen), what));
                        }
                        Ok(Onward::Routes(behind, routes)) => {
                            self.product(called, chosen, &behind, &routes, &mut branches)?;
                            continue;
                        }
                        Err(reason @ (Reason::InvalidRule | Reason::NotRead)) => {
                            return Err(reason);
                        }
                        Err(reason) => Share::refused(reason),
                    };
                    share.weight = to.weight;
                    shares.push(share);
                }
                if shares.is_empty() && !all.is_empty() {
                    continue;
                }
            }
            // A listener has one tunnel for all that it takes.
            if !http && shares.iter().any(|share| self.is_tunnelled(&share.verdict)) {
                let what = "divides connections, some of which go through a `tunnel`";
                return Err(self.not_carried_out(called, Some(chosen), what));
            }
            branches.push(self.branch(called, chosen, shares));
        }
        if let (Some(chosen), false) = (routes.first(), http) {
            self.check_addresses(called, chosen);
        }
        // Where a service's own way takes the rest, it is added later.
        let all = routes.last().is_none_or(|last| last.all);
        if let Some(reason) = nowhere(&branches)
            && (called.downstream == DownstreamProtocol::Tls || (all && !http))
        {
            return Err(reason);
        }
        let first = routes.first().map(|chosen| self.service_index(chosen));
        let gateway = mesh_service.and(first).map_or(u32::MAX, narrow);
        let routed = Routed {
            gateway_service: gateway,
            branches,
            ..Routed::by(mesh_service.or(first))
        };
        let mut unchosen = Share::refused(Reason::NoRoute);
        unchosen.target = called.port;
        Ok((unchosen, routed))
    }

    /// Reports that the address of a connection decides, where it is known only of captured ones.
    fn check_addresses(&mut self, called: Called<'_>, chosen: &Chosen<'r>) {
        let owner = self.owners.get(called.index).copied().flatten();
        let own = owner.is_some_and(|owner| !owner.entry.item.addresses.is_empty());
        let known = own && called.downstream == DownstreamProtocol::Tcp;
        if chosen.all || known || self.options.foreign {
            return;
        }
        let text = format!(
            "`destinationSubnets` asks which address was dialled, and only captured connections tell: others to port {} of `{}` are refused (`not_read`)",
            called.port, called.host
        );
        let hint = "use `--capture`, or for TCP give the ServiceEntry `addresses` and let programs dial them";
        self.tell_routed(Severity::Warning, "not-read", chosen, text, hint);
    }

    fn branch(&self, called: Called<'_>, chosen: &Chosen<'r>, shares: Vec<Share>) -> Branch {
        let (host, port) = (called.host, called.port);
        Branch {
            name: format!("{}/{host}:{port}", place(chosen)).into_boxed_str(),
            service: narrow(self.service_index(chosen)),
            route: chosen.index,
            matches: chosen.matches.clone(),
            before: None,
            answer: chosen.route.answer,
            ranges: chosen.ranges(),
            shares,
        }
    }

    /// Adds the service's own way to a port of which routes take some connections only: it takes the rest.
    pub(super) fn add_rest(&mut self, index: usize, host: &HostPattern, own: &Port) {
        let mut share = Share::refused(Reason::NoRoute);
        (share.verdict, share.target) = (own.verdict, own.target);
        let rest = Branch {
            name: format!("{host}:{}", own.number).into_boxed_str(),
            service: u32::MAX,
            route: 0,
            matches: Vec::new(),
            before: None,
            answer: None,
            ranges: Vec::new(),
            shares: vec![share],
        };
        let tunnelled = (self.is_tunnelled(&own.verdict)).then_some(Reason::NotRead);
        let refusal = tunnelled.or(self.hosts.add_branch(index, own.number, rest));
        if let Some(reason) = refusal
            && let Some(port) = self.hosts.port_mut(index, own.number)
        {
            port.verdict = Verdict::refused(reason, None);
        }
    }

    fn is_tunnelled(&self, verdict: &Verdict) -> bool {
        let cluster = self.clusters.get(verdict.cluster as usize);
        cluster.is_some_and(|cluster| cluster.tunnel.is_some())
    }

    /// Adds the branches of a route to an egress gateway that matches requests once more: one for each of the gateway's
    /// routes, for what both ask for; and one for what no route of the gateway takes, which gets no other route either.
    ///
    /// The route to the gateway must say nothing else. What it changed the gateway would see, and its timeout would stand
    /// around the gateway's.
    fn product(
        &mut self,
        called: Called<'_>,
        chosen: &Chosen<'r>,
        side: &Side<'r>,
        routes: &[Chosen<'r>],
        branches: &mut Vec<Branch>,
    ) -> Followed<()> {
        if chosen.route.settings || chosen.route.shares().len() > 1 {
            let what = "says more than where it leads, before an egress gateway that matches requests again";
            return Err(self.not_carried_out(called, Some(chosen), what));
        }
        let before = |pairs| Before {
            service: narrow(self.service_index(chosen)),
            route: chosen.index,
            pairs,
        };
        let mut made = Vec::new();
        for behind in routes {
            let pairs = match pairs(chosen, behind) {
                None => {
                    let what = "compares paths as the route to its egress gateway does, one of them by a regular expression or without case";
                    return Err(self.not_carried_out(called, Some(behind), what));
                }
                Some(pairs) if pairs.is_empty() => continue,
                Some(pairs) => pairs,
            };
            made.push((behind, before(pairs)));
        }
        let end = routes.last().is_some_and(|behind| behind.all);
        let rest = before(pairs_of(chosen).map(|at| (at, None)).collect());
        let (_, found) = {
            let routes: Vec<Chosen<'r>> =
                made.iter().map(|(behind, _)| (*behind).clone()).collect();
            self.branches(called, side, &routes, None)?
        };
        let of = place(chosen);
        for (mut branch, (_, before)) in found.branches.into_iter().zip(made) {
            branch.name = format!("{of}+{}", branch.name).into_boxed_str();
            branch.before = Some(Box::new(before));
            branches.push(branch);
        }
        if !end {
            let mut branch = self.branch(called, chosen, Vec::new());
            branch.before = Some(Box::new(rest));
            branches.push(branch);
        }
        Ok(())
    }

    /// Returns the service that a destination names.
    fn find(&self, side: &Side<'r>, host: &HostPattern) -> Option<Found<'r>> {
        match &side.scope {
            Some(scope) => scope.find(&scope.hosts, host),
            None => self.scope.find(&self.hosts, host),
        }
    }

    /// Returns where a destination leads, if it is a service.
    fn follow(
        &mut self,
        called: Called<'_>,
        side: &Side<'r>,
        chosen: &Chosen<'r>,
        to: &'r Destination,
    ) -> Followed<Option<Share>> {
        let found = HostPattern::parse(&to.host).ok();
        let Some(found) = found.and_then(|host| self.find(side, &host)) else {
            return Ok(None);
        };
        let scope = Rc::clone(side.scope.as_ref().unwrap_or(&self.scope));
        let number = to.port.unwrap_or_else(|| {
            // A gateway takes the only port that there is, and so do connections.
            let mut numbers = scope.ports(found).map(|(_, port)| port.number);
            let takes =
                side.proxy.role == Role::Gateway || called.downstream != DownstreamProtocol::Http;
            match (numbers.next(), numbers.next()) {
                (Some(only), None) if takes => only,
                _ => side.port,
            }
        });
        let known = scope.port(found, number);
        let known = known.filter(|(_, port)| downstream(port).is_some());
        let Some((from, port)) = known else {
            return Err(self.unknown_destination(called, chosen, to));
        };
        let siblings = found.index.and_then(|index| scope.families.get(&index));
        let owner = &found.entry.item.meta.id.namespace;
        let merged = self.rules.rule(&side.proxy, owner, found.host);
        let names = alt_names(found.entry, siblings, &self.options.mesh.trust_domain);
        let leads = Leads::of(found.entry.item, siblings, (from.item, port));
        let name = chosen.route.authority.as_ref().or(to.authority.as_ref());
        let name = name.map(|name| HostPattern::Exact(name.clone()));
        let told = name.as_ref().unwrap_or(called.host);
        let http = called.downstream == DownstreamProtocol::Http;
        let wanted = Wanted {
            entry: found.entry.item,
            host: found.host,
            port,
            leads: &leads,
            names: &names,
            downstream: called.downstream,
            role: side.proxy.role,
            alone: side.alone,
            told: http.then_some(told),
        };
        let mut settings = merged.as_ref().map(|merged| for_port(merged, number));
        if let (Some(merged), Some(settings)) = (&merged, settings) {
            self.check_dropped_tunnel(&wanted, merged, settings);
        }
        let mut subset = None;
        if let Some(wanted) = &to.subset {
            let mut subsets = merged.iter().flat_map(|merged| &merged.subsets);
            let known = subsets.find(|(_, subset)| subset.name == *wanted);
            let (Some(parent), Some((rule, found))) = (settings, known) else {
                return Err(Reason::UnknownSubset);
            };
            settings = Some(for_subset(parent, *rule, found, number));
            subset = Some(*found);
        }
        let problems = self.problems.len();
        let Some(verdict) = self.verdict(&wanted, settings, subset) else {
            let told = self.problems.len() > problems;
            let double = called.downstream == DownstreamProtocol::Tls;
            return Err(match (told, double) {
                (true, true) => Reason::TlsInTls,
                (true, false) => Reason::InvalidRule,
                (false, _) => Reason::UnknownSubset,
            });
        };
        self.note_routed(called, found, (from, port), &leads, &verdict);
        Ok(Some(self.led(called, chosen, to, found, port, verdict)))
    }

    fn led(
        &self,
        called: Called<'_>,
        chosen: &Chosen<'r>,
        to: &Destination,
        found: Found<'r>,
        port: &ServicePort,
        verdict: Verdict,
    ) -> Share {
        let http = called.downstream == DownstreamProtocol::Http;
        let name = chosen.route.authority.as_ref().or(to.authority.as_ref());
        let name = name.filter(|_| http).cloned();
        let cluster = self.clusters.get(verdict.cluster as usize);
        let by_request = cluster.is_some_and(|cluster| cluster.is_of_the_request());
        let host = found.host.exact();
        let told = name.as_ref().or(called.host.exact());
        let dial = host
            .filter(|host| by_request && Some(*host) != told)
            .cloned();
        Share {
            weight: 1,
            verdict,
            target: port.target,
            name,
            dial,
        }
    }

    /// Notes that requests are led to a service in plaintext.
    fn note_routed(
        &mut self,
        called: Called<'_>,
        found: Found<'r>,
        (entry, port): (Entry<'r>, &'r ServicePort),
        leads: &Leads<'r>,
        verdict: &Verdict,
    ) {
        let cluster = self.clusters.get(verdict.cluster as usize);
        let plain = cluster.is_some_and(|cluster| cluster.tls.is_none());
        if !plain || called.downstream == DownstreamProtocol::Tls {
            return;
        }
        let disabled = verdict.rule().is_some_and(|(rule, source)| {
            let rules = &self.resources.destination_rules;
            let rule = rule.checked_sub(self.resources.service_entries.len());
            let rule = rule.and_then(|rule| rules.get(rule));
            rule.and_then(|rule| rule.tls_at(source, port.number))
                .is_some_and(|tls: &ClientTls| tls.mode == TlsMode::Disable)
        });
        self.plain.push(Plain {
            host: called.index,
            called: called.port,
            to: found.index.unwrap_or(called.index),
            named: found.host.clone(),
            entry,
            port,
            downstream: called.downstream,
            dialled: dialled(leads, port),
            disabled,
        });
    }

    /// Returns the place of a VirtualService among all resources: behind entries and rules.
    pub(super) fn service_index(&self, chosen: &Chosen<'_>) -> usize {
        self.resources.service_entries.len()
            + self.resources.destination_rules.len()
            + chosen.service.index
    }

    /// Reports a destination that nothing describes.
    pub(super) fn unknown_destination(
        &mut self,
        called: Called<'_>,
        chosen: &Chosen<'r>,
        to: &Destination,
    ) -> Reason {
        let port = to.port.unwrap_or(called.port);
        let text = format!(
            "it leads port {} of `{}` to `{}:{port}`, which no document here describes: requests are refused (`unknown_destination`)",
            called.port, called.host, to.host
        );
        let hint = "give a ServiceEntry with this host and port, or lead to one that there is";
        self.tell_routed(Severity::Warning, "unknown-destination", chosen, text, hint);
        Reason::UnknownDestination
    }

    /// Reports routes that are not carried out, and for which a host is refused.
    fn not_carried_out(
        &mut self,
        called: Called<'_>,
        chosen: Option<&Chosen<'r>>,
        what: &str,
    ) -> Reason {
        if let Some(chosen) = chosen {
            let text = format!(
                "it {what}, which is not carried out here: port {} of `{}` is refused (`not_read`)",
                called.port, called.host
            );
            let hint = match chosen.route.delegates {
                true => {
                    "write the routes of the VirtualService in `delegate` into this one".to_owned()
                }
                false => {
                    let kind = chosen.service.meta.id.kind;
                    format!("lead to one destination, or leave the {kind} out")
                }
            };
            self.tell_routed(Severity::Warning, "not-read", chosen, text, &hint);
        }
        Reason::NotRead
    }

    pub(super) fn tell_routed(
        &mut self,
        severity: Severity,
        id: &'static str,
        chosen: &Chosen<'r>,
        text: String,
        hint: &str,
    ) {
        let mut path = FieldPath::keys("spec");
        path.0.push(Segment::Key(list_of(chosen).to_owned()));
        path.0.push(Segment::Index(chosen.index));
        self.tell_about(severity, id, &chosen.service.item.meta, path, text, hint);
    }

    pub(super) fn tell_about(
        &mut self,
        severity: Severity,
        id: &'static str,
        meta: &Meta,
        path: FieldPath,
        text: String,
        hint: &str,
    ) {
        self.tell(severity, id, meta, path, text, hint);
        let Some(problem) = self.problems.pop() else {
            return;
        };
        // Several hosts may go by one route.
        let again = |other: &crate::problem::Problem| {
            other.id == problem.id && other.path == problem.path && other.kind == problem.kind
        };
        if !self.problems.iter().any(again) {
            self.problems.push(problem);
        }
    }
}

/// Returns where a route of requests stands, as names of branches have it.
fn place(chosen: &Chosen<'_>) -> String {
    let id = &chosen.service.meta.id;
    match &chosen.route.name {
        Some(name) => name.to_string(),
        None => format!(
            "{}/{}/{}[{}]",
            id.namespace,
            id.name,
            list_of(chosen),
            chosen.index
        ),
    }
}

/// Returns which list of its VirtualService has a route.
fn list_of(chosen: &Chosen<'_>) -> &'static str {
    match chosen.service.item {
        service if service.http.iter().any(|it| std::ptr::eq(it, chosen.route)) => "http",
        service if service.tls.iter().any(|it| std::ptr::eq(it, chosen.route)) => "tls",
        _ => "tcp",
    }
}

/// Returns the ways to be what two routes ask for; nothing where Envoy cannot be asked for one of them.
fn pairs(one: &Chosen<'_>, other: &Chosen<'_>) -> Option<Vec<(Option<usize>, Option<usize>)>> {
    let mut found = Vec::new();
    for first in pairs_of(one) {
        for second in pairs_of(other) {
            let (Some(asked), Some(again)) = (at(one.route, first), at(other.route, second)) else {
                found.push((first, second));
                continue;
            };
            match asked.and(again) {
                Both::Holds => found.push((first, second)),
                Both::Never => {}
                Both::Unknown => return None,
            }
        }
    }
    Some(found)
}

fn at(route: &Route, place: Option<usize>) -> Option<&Match> {
    route.matches.get(place?)
}

/// Returns the places of a route's matches; none alone where it has none.
fn pairs_of(chosen: &Chosen<'_>) -> impl Iterator<Item = Option<usize>> {
    let none = chosen.matches.is_empty().then_some(None);
    let all = chosen.matches.iter().copied().map(Some);
    none.into_iter().chain(all)
}
