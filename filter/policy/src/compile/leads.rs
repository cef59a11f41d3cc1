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
use crate::compile::routing::{Chosen, Domain, domains, gateways};
use crate::compile::scope::{Found, Scope};
use crate::compile::services::{alt_names, downstream};
use crate::host::HostPattern;
use crate::merge::{for_port, for_subset};
use crate::port::PortNumber;
use crate::problem::{FieldPath, Segment, Severity};
use crate::proxy::{Proxy, Role};
use crate::query::DownstreamProtocol;
use crate::reason::Reason;
use crate::resource::{
    ClientTls, Destination, Ends, Gateway, GatewayName, Meta, Reads, ServicePort, TlsMode,
};
use crate::table::hosts::Port;
use crate::table::routed::{Branch, Routed, Share};
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
struct Hop<'r> {
    domain: Domain<'r>,
    side: Side<'r>,
}

/// Where requests go on, or why nowhere.
type Followed<T> = Result<T, Reason>;

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
        if !first.is_plain() {
            return self.branches(called, side, routes, None);
        }
        let by = Some(self.service_index(first));
        let Some(to) = first.route.shares().first().copied() else {
            return Err(Reason::NoRoute);
        };
        let told = first.route.authority.as_ref().or(to.authority.as_ref());
        if let Some(share) = self.follow(called, side, first, to)? {
            let routed = Routed {
                name: share.name.clone(),
                dial: share.dial.clone(),
                ..Routed::by(by)
            };
            return Ok((share, routed));
        }
        let asked = told.map(|name| HostPattern::Exact(name.clone()));
        let Hop { domain, side } = self.hop(
            called,
            side,
            first,
            to,
            asked.as_ref().unwrap_or(called.host),
        )?;
        let asked = asked.unwrap_or_else(|| called.host.clone());
        let routes = self.of_hop(called, &domain, &side, &asked)?;
        match routes.first() {
            Some(chosen) if chosen.is_plain() => {
                let mut share = self.last(called, &side, chosen)?;
                share.name = share.name.or_else(|| told.cloned());
                let routed = Routed {
                    gateway_service: narrow(self.service_index(chosen)),
                    name: share.name.clone(),
                    dial: share.dial.clone(),
                    ..Routed::by(by)
                };
                Ok((share, routed))
            }
            _ => self.branches(called, &side, &routes, by),
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

    /// Makes a branch of each route.
    fn branches(
        &mut self,
        called: Called<'_>,
        side: &Side<'r>,
        routes: &[Chosen<'r>],
        mesh_service: Option<usize>,
    ) -> Followed<(Share, Routed)> {
        if called.downstream != DownstreamProtocol::Http {
            let what = "divides connections among several destinations";
            return Err(self.not_carried_out(called, routes.first(), what));
        }
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
                for to in chosen.route.shares() {
                    let mut share = match self.share(called, &side, chosen, to) {
                        Ok(share) => share,
                        Err(Reason::InvalidRule) => return Err(Reason::InvalidRule),
                        Err(reason) => Share::refused(reason),
                    };
                    share.weight = to.weight;
                    shares.push(share);
                }
            }
            let id = &chosen.service.meta.id;
            let (host, port, index) = (called.host, called.port, chosen.index);
            let name = format!("{}/{}/http[{index}]/{host}:{port}", id.namespace, id.name);
            branches.push(Branch {
                name: name.into_boxed_str(),
                service: narrow(self.service_index(chosen)),
                route: index,
                matches: chosen.matches.clone(),
                answer: chosen.route.answer,
                shares,
            });
        }
        let first = routes.first().map(|chosen| self.service_index(chosen));
        let gateway = mesh_service.and(first).map_or(u32::MAX, narrow);
        let routed = Routed {
            gateway_service: gateway,
            branches,
            ..Routed::by(mesh_service.or(first))
        };
        Ok((Share::refused(Reason::NoRoute), routed))
    }

    /// Follows one destination of a branch, through a hop whose routes say nothing themselves.
    fn share(
        &mut self,
        called: Called<'_>,
        side: &Side<'r>,
        chosen: &Chosen<'r>,
        to: &'r Destination,
    ) -> Followed<Share> {
        if let Some(share) = self.follow(called, side, chosen, to)? {
            return Ok(share);
        }
        let told = chosen.route.authority.as_ref().or(to.authority.as_ref());
        let asked = told.map_or(called.host.clone(), |name| HostPattern::Exact(name.clone()));
        let Hop { domain, side } = self.hop(called, side, chosen, to, &asked)?;
        let side = Side {
            alone: true,
            ..side
        };
        let routes = self.of_hop(called, &domain, &side, &asked)?;
        match routes.first() {
            Some(first) if first.is_plain() => {
                let mut share = self.last(called, &side, first)?;
                share.name = share.name.or_else(|| told.cloned());
                Ok(share)
            }
            found => {
                let what = "matches requests a second time, behind an egress gateway";
                Err(self.not_carried_out(called, found.or(Some(chosen)), what))
            }
        }
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
    fn unknown_destination(
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
            let hint = "lead to one destination, or leave the VirtualService out";
            self.tell_routed(Severity::Warning, "not-read", chosen, text, hint);
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
        let list = match chosen.service.item {
            service if service.http.iter().any(|it| std::ptr::eq(it, chosen.route)) => "http",
            service if service.tls.iter().any(|it| std::ptr::eq(it, chosen.route)) => "tls",
            _ => "tcp",
        };
        path.0.push(Segment::Key(list.to_owned()));
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

    /// Follows a destination that is no service to the egress gateway that it may be.
    fn hop(
        &mut self,
        called: Called<'_>,
        side: &Side<'r>,
        chosen: &Chosen<'r>,
        to: &'r Destination,
        asked: &HostPattern,
    ) -> Followed<Hop<'r>> {
        let namespace = namespace_of(&to.host).filter(|_| side.proxy.role == Role::Sidecar);
        let (Some(namespace), Some(number)) = (namespace, to.port.or(Some(side.port))) else {
            return Err(self.unknown_destination(called, chosen, to));
        };
        let resources = self.resources;
        let serves = |gateway: &&Gateway| {
            gateway.servers.iter().any(|server| {
                let mut hosts = server.hosts.iter();
                server.port == number && hosts.any(|(_, host)| host.overlaps(asked))
            })
        };
        let mut hidden = false;
        for gateway in gateways(resources).filter(serves) {
            let router = Proxy {
                namespace: namespace.to_owned(),
                labels: gateway.selector.iter().cloned().collect(),
                role: Role::Gateway,
            };
            let all = domains(resources, &router, &self.options.mesh, Some(number));
            let all = all.into_iter().map(|(_, domain)| domain);
            let mut fit: Vec<Domain<'r>> = all.filter(|domain| domain.host.covers(asked)).collect();
            crate::order::sort_by(&mut fit, |one, other| {
                other.host.specificity().cmp(&one.host.specificity())
            });
            let Some(domain) = fit.into_iter().next() else {
                hidden |= self.is_bound(gateway, asked);
                continue;
            };
            self.check_hop(called, chosen, to, number)?;
            if domain.ends == Ends::Clients || domain.redirects {
                let text = format!(
                    "it leads port {} of `{}` through {}, whose server on port {number} {}: this process is sidecar and gateway in one, and does not do that",
                    called.port,
                    called.host,
                    gateway.meta.id,
                    match domain.redirects {
                        true => "answers that TLS is wanted (`httpsRedirect`)",
                        false => "asks clients for TLS (SIMPLE, MUTUAL)",
                    }
                );
                let hint = "let the server speak HTTP or ISTIO_MUTUAL, or run a gateway of its own with `--proxy-type router`";
                self.tell_routed(Severity::Error, "gateway-server-tls", chosen, text, hint);
                return Err(Reason::InvalidRule);
            }
            let scope = self.router_scope(&router);
            let side = Side {
                proxy: Rc::new(router),
                scope: Some(scope),
                port: number,
                alone: side.alone,
            };
            return Ok(Hop { domain, side });
        }
        if hidden {
            let text = format!(
                "it leads port {} of `{}` to the egress gateway `{}`, and no VirtualService that binds the Gateway is exported to its namespace `{namespace}`: in Istio the gateway answers 404",
                called.port, called.host, to.host
            );
            let hint = format!(
                "add `{namespace}` to `exportTo` of the VirtualService, or leave `exportTo` out"
            );
            self.tell_routed(Severity::Error, "gateway-half-hidden", chosen, text, &hint);
            return Err(Reason::InvalidRule);
        }
        if gateways(resources).any(|gateway| serves(&gateway)) {
            return Err(Reason::NoRoute);
        }
        let text = format!(
            "it leads port {} of `{}` to `{}:{number}`, which no ServiceEntry describes and no Gateway here serves: requests are refused (`unknown_destination`)",
            called.port, called.host, to.host
        );
        let hint = "give the ServiceEntry of the destination, or the Gateway that serves it";
        self.tell_routed(Severity::Warning, "unknown-destination", chosen, text, hint);
        Err(Reason::UnknownDestination)
    }

    /// Whether any VirtualService binds a gateway for a host, whoever sees it.
    fn is_bound(&self, gateway: &Gateway, asked: &HostPattern) -> bool {
        let id = &gateway.meta.id;
        let name = GatewayName::Named {
            namespace: id.namespace.to_string(),
            name: id.name.to_string(),
        };
        let mut services = self.resources.virtual_services.iter();
        services.any(|service| {
            let mut hosts = service.hosts.iter();
            service.gateways.contains(&name) && hosts.any(|host| host.covers(asked))
        })
    }

    /// Checks what the caller's rules say of the connection to a gateway, which is never made.
    fn check_hop(
        &mut self,
        called: Called<'_>,
        chosen: &Chosen<'r>,
        to: &Destination,
        number: PortNumber,
    ) -> Followed<()> {
        let Ok(host) = HostPattern::parse(&to.host) else {
            return Ok(());
        };
        let namespace = namespace_of(&to.host).unwrap_or_default().to_owned();
        let merged = self.rules.rule(&self.options.proxy, &namespace, &host);
        let mut settings = merged.as_ref().map(|merged| for_port(merged, number));
        if let Some(wanted) = &to.subset {
            let mut subsets = merged.iter().flat_map(|merged| &merged.subsets);
            let known = subsets.find(|(_, subset)| subset.name == *wanted);
            let (Some(parent), Some((rule, subset))) = (settings, known) else {
                let text = format!(
                    "no DestinationRule has subset `{wanted}` of `{}`: port {} of `{}` is refused (`unknown_subset`)",
                    to.host, called.port, called.host
                );
                let hint = "add the subset to the DestinationRule of the gateway's Service";
                self.tell_routed(Severity::Warning, "unknown-subset", chosen, text, hint);
                return Err(Reason::UnknownSubset);
            };
            settings = Some(for_subset(parent, *rule, subset, number));
        }
        if let Some(settings) = settings
            && let Some(tls) = settings.tls
            && tls.mode == TlsMode::IstioMutual
            && tls.sni.is_none()
        {
            let text = format!(
                "no `sni` is given for the connection to `{}`: in Istio the gateway would close it. Here it is not made",
                to.host
            );
            let hint = format!("write `sni: {}`", called.host);
            let mut path = settings.source.path();
            path.0.push(Segment::Key("tls".to_owned()));
            self.tell_about(
                Severity::Warning,
                "hop-without-sni",
                &settings.rule.item.meta,
                path,
                text,
                &hint,
            );
        }
        Ok(())
    }

    /// Returns the routes of a host at a gateway.
    fn of_hop(
        &mut self,
        called: Called<'_>,
        domain: &Domain<'r>,
        side: &Side<'r>,
        asked: &HostPattern,
    ) -> Followed<Vec<Chosen<'r>>> {
        let http = called.downstream == DownstreamProtocol::Http;
        let routes = match domain.reads {
            Reads::Http if http => domain.http(side.port, &side.proxy),
            Reads::Sni if called.downstream == DownstreamProtocol::Tls => {
                let named = domain.tls(side.port, &side.proxy).into_iter();
                let fits = named.filter(|named| named.name.covers(asked));
                let best = fits.max_by_key(|named| named.name.specificity());
                best.into_iter().map(|named| named.chosen).collect()
            }
            Reads::Bytes if !http => {
                let found = domain.tcp(side.port, &side.proxy);
                found.into_iter().map(|(chosen, _)| chosen).collect()
            }
            _ => Vec::new(),
        };
        match routes.is_empty() {
            true => Err(Reason::NoRoute),
            false => Ok(routes),
        }
    }

    /// Returns what a router sees.
    pub(super) fn router_scope(&mut self, router: &Proxy) -> Rc<Scope<'r>> {
        let known = self.routers.iter().find(|(proxy, _)| proxy == router);
        if let Some((_, scope)) = known {
            return Rc::clone(scope);
        }
        let mesh = &self.options.mesh;
        let scope = Scope::of(self.resources, router, mesh, None, &mut |_| {});
        let scope = Rc::new(scope);
        self.routers.push((router.clone(), Rc::clone(&scope)));
        scope
    }
}

/// Returns the namespace in the full name of a Service.
fn namespace_of(host: &str) -> Option<&str> {
    let (service, rest) = host.split_once('.')?;
    let (namespace, domain) = rest.split_once('.')?;
    (!service.is_empty() && domain.starts_with("svc")).then_some(namespace)
}
