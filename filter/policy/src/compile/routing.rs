//! Which routes count for a host and port: those of VirtualServices, as a sidecar or a router sees them.
//!
//! Nothing here looks at destinations. [`leads`](crate::compile::leads) follows the routes.

use crate::host::HostPattern;
use crate::indexed::Indexed;
use crate::mesh::{Mesh, Visibility};
use crate::order::{sort_by, sorted};
use crate::port::PortNumber;
use crate::proxy::Proxy;
use crate::resource::{
    Address, Ends, Gateway, GatewayName, Match, Reads, Resources, Route, Server, Sidecar,
    VirtualService, exported,
};

/// A VirtualService, and its index among all.
pub(super) type Routes<'r> = Indexed<'r, VirtualService>;

/// A route that counts for a caller and port.
#[derive(Clone)]
pub(super) struct Chosen<'r> {
    pub(super) service: Routes<'r>,
    pub(super) route: &'r Route,
    /// Its place in the list that it is of.
    pub(super) index: usize,
    /// The places of its matches that can hold; empty where everything matches.
    pub(super) matches: Vec<usize>,
    /// It takes every request, or every connection.
    pub(super) all: bool,
}

impl Chosen<'_> {
    /// Whether it leads all requests to one place, and says no more.
    pub(super) fn is_plain(&self) -> bool {
        let route = self.route;
        self.all
            && route.answer.is_none()
            && !route.settings
            && !route.delegates
            && route.shares().len() == 1
    }

    /// Returns the addresses of the connections that it takes; none where it takes all.
    pub(super) fn ranges(&self) -> Vec<Address> {
        let mut ranges = Vec::new();
        for at in &self.matches {
            if let Some(found) = self.route.matches.get(*at)
                && let Some(subnets) = &found.subnets
                && !self.all
            {
                ranges.extend_from_slice(subnets);
            }
        }
        ranges
    }
}

/// The VirtualServices that sidecars of a caller carry out.
#[derive(Default)]
pub(super) struct Routing<'r> {
    /// In their order.
    services: Vec<Routes<'r>>,
    /// The places in `services`, in the order of the hosts and then of the places.
    by_host: Vec<(&'r HostPattern, usize)>,
    /// The hosts of `by_host` that are wildcards, the most specific first.
    wild: Vec<&'r HostPattern>,
    /// Where any VirtualService leads plaintext, whoever sees it.
    led: Vec<(HostPattern, Option<PortNumber>)>,
}

/// A name that connections of TLS ask for, and the routes that they take: as [`Routing::tcp`] returns them.
pub(super) struct Named<'r> {
    pub(super) name: &'r HostPattern,
    pub(super) routes: Vec<Chosen<'r>>,
}

impl<'r> Routing<'r> {
    pub(super) fn of(
        resources: &'r Resources,
        proxy: &Proxy,
        mesh: &Mesh,
        sidecar: Option<&Sidecar>,
    ) -> Self {
        let mut services = visible(resources, &proxy.namespace, mesh, &GatewayName::Mesh);
        services.retain(|service| {
            let owner = &*service.meta.id.namespace;
            let taken = |host: &HostPattern| {
                sidecar.is_none_or(|sidecar| sidecar.takes_in_routes(&proxy.namespace, owner, host))
            };
            service.hosts.iter().any(taken)
        });
        let mut by_host: Vec<(&HostPattern, usize)> = Vec::new();
        for (at, service) in services.iter().enumerate() {
            by_host.extend(service.item.hosts.iter().map(|host| (host, at)));
        }
        sort_by(&mut by_host, |one, other| one.cmp(other));
        let mut wild: Vec<&HostPattern> = by_host.iter().map(|(host, _)| *host).collect();
        wild.retain(|host| host.exact().is_none());
        wild.dedup();
        sort_by(&mut wild, |one, other| {
            other.specificity().cmp(&one.specificity())
        });
        let plain = resources.virtual_services.iter().flat_map(|service| {
            let routes = service.http.iter().chain(&service.tcp);
            routes.flat_map(|route| &route.destinations)
        });
        let led = plain.filter_map(|to| Some((HostPattern::parse(&to.host).ok()?, to.port)));
        let mut led: Vec<(HostPattern, Option<PortNumber>)> = led.collect();
        sort_by(&mut led, |one, other| one.cmp(other));
        Routing {
            led,
            services,
            by_host,
            wild,
        }
    }

    /// Whether any VirtualService leads plaintext to a port of a host.
    pub(super) fn leads_to(&self, host: &HostPattern, port: PortNumber) -> bool {
        let begin = self.led.partition_point(|(other, _)| other < host);
        let all = self.led.get(begin..).unwrap_or_default().iter();
        let mut of_host = all.take_while(|(other, _)| other == host);
        of_host.any(|(_, own)| own.is_none_or(|own| own == port))
    }

    /// Returns the hosts that any VirtualService is for.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &'r HostPattern> {
        let mut last = None;
        let hosts = self.by_host.iter().map(|(host, _)| *host);
        hosts.filter(move |host| last.replace(*host) != Some(*host))
    }

    /// Returns the places of the VirtualServices that name a host, and the host as they have it.
    fn named(&self, host: &HostPattern) -> &[(&'r HostPattern, usize)] {
        let begin = self.by_host.partition_point(|(other, _)| *other < host);
        let rest = self.by_host.get(begin..).unwrap_or_default();
        let count = rest.iter().take_while(|(other, _)| *other == host).count();
        rest.get(..count).unwrap_or_default()
    }

    /// Returns the host of VirtualServices that a service goes by: its own, or the most specific wildcard.
    pub(super) fn goes_by(&self, host: &HostPattern) -> Option<&'r HostPattern> {
        let own = self.named(host).first().map(|(host, _)| *host);
        own.or_else(|| self.wild.iter().copied().find(|wild| wild.covers(host)))
    }

    /// Returns the routes of requests to a host and port; nothing where the service's own way counts.
    ///
    /// The first VirtualService that has a route for the port has the host. Of wildcards, one alone is asked. `owner` is
    /// the namespace of the host's service: routes of the Gateway API count in theirs, and for callers of their own.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `BuildSidecarVirtualHostWrapper` and
    /// `buildSidecarVirtualHostsForVirtualService`, and
    /// `pilot/pkg/model/sidecar.go`, `computeWildcardHostVirtualServiceIndex`.
    pub(super) fn http(
        &self,
        host: &HostPattern,
        port: PortNumber,
        proxy: &Proxy,
        owner: Option<&str>,
    ) -> Option<Vec<Chosen<'r>>> {
        let by = self.goes_by(host)?;
        let places = self.named(by);
        let asked = match by.exact() {
            Some(_) => places,
            None => places.get(..1)?,
        };
        let routes = |(_, at): &(&HostPattern, usize)| {
            let service = *self.services.get(*at)?;
            if service.is_of_gateway_api() {
                let namespace = &*service.meta.id.namespace;
                let own = |owner| owner == namespace || *proxy.namespace == *namespace;
                owner.filter(|owner| own(*owner))?;
            }
            let routes = requests(service, port, proxy, &GatewayName::Mesh);
            (!routes.is_empty()).then_some(routes)
        };
        asked.iter().find_map(routes)
    }

    /// Returns all VirtualServices that have a name of a host.
    fn overlapping(&self, host: &HostPattern) -> impl Iterator<Item = Routes<'r>> {
        let overlaps = move |service: &&Routes<'r>| {
            let mut hosts = service.item.hosts.iter();
            hosts.any(|other| other.overlaps(host))
        };
        let any = self.goes_by(host).is_some() || host.exact().is_none();
        let services = if any { &self.services[..] } else { &[] };
        services.iter().filter(overlaps).copied()
    }

    /// Returns the names that connections of TLS to a service may ask for; nothing where its own way counts.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/tls.go`, `buildSidecarOutboundTLSFilterChainOpts`.
    pub(super) fn tls(
        &self,
        host: &HostPattern,
        port: PortNumber,
        proxy: &Proxy,
    ) -> Vec<Named<'r>> {
        let mut named = Vec::new();
        for service in self.overlapping(host) {
            names(service, port, proxy, &GatewayName::Mesh, &mut named);
        }
        named
    }

    /// Returns the routes of connections to a service, up to the first that takes all; those before it are for some
    /// addresses each.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/tls.go`, `buildSidecarOutboundTCPFilterChainOpts`.
    pub(super) fn tcp(
        &self,
        host: &HostPattern,
        port: PortNumber,
        proxy: &Proxy,
    ) -> Vec<Chosen<'r>> {
        let mut all = Vec::new();
        for service in self.overlapping(host) {
            connections(service, port, proxy, &GatewayName::Mesh, &mut all);
        }
        all
    }
}

/// Returns the VirtualServices that a namespace sees and that are for a gateway, in the order in which they are asked:
/// private ones, then those that are exported by name, then public ones; each by age. Among each, the namespace's own
/// routes of the Gateway API come first.
///
/// Source: istio/istio `pilot/pkg/model/push_context.go`, `initVirtualServices`, and
/// `pilot/pkg/model/virtualservice.go`, `SelectVirtualServices`.
pub(super) fn visible<'r>(
    resources: &'r Resources,
    namespace: &str,
    mesh: &Mesh,
    gateway: &GatewayName,
) -> Vec<Routes<'r>> {
    let all = &resources.virtual_services;
    let order = sorted(&all.iter().map(|service| &service.meta).collect::<Vec<_>>());
    let concerned = resources.concerned();
    let group = |service: &VirtualService| {
        let owner = &*service.meta.id.namespace;
        let to = &service.export_to[..];
        let (seen, public, private) = match to {
            [] => (
                mesh.routes.has(owner, namespace),
                mesh.routes == Visibility::Everybody,
                mesh.routes == Visibility::Own,
            ),
            to => (
                exported(to, owner, namespace),
                to.iter().any(|to| to == "*"),
                to.iter().all(|to| to == "." || to == owner),
            ),
        };
        let group = match (public, private) {
            (true, _) => 4,
            (_, true) => 0,
            _ => 2,
        };
        let first = service.is_of_gateway_api() && owner == namespace;
        seen.then_some(group + i32::from(!first))
    };
    let mut services: Vec<(i32, Routes<'r>)> = Vec::new();
    for at in order {
        let Some(service) = Indexed::at(all, at) else {
            continue;
        };
        if concerned.get(at) == Some(&true)
            && service.gateways.contains(gateway)
            && let Some(group) = group(&service)
        {
            services.push((group, service));
        }
    }
    sort_by(&mut services, |one, other| one.0.cmp(&other.0));
    services.into_iter().map(|(_, service)| service).collect()
}

/// Returns the routes of requests that can count on a port, up to the first that takes all.
///
/// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `BuildHTTPRoutesForVirtualService`.
fn requests<'r>(
    service: Routes<'r>,
    port: PortNumber,
    proxy: &Proxy,
    gateway: &GatewayName,
) -> Vec<Chosen<'r>> {
    let mut chosen = Vec::new();
    for (index, route) in service.item.http.iter().enumerate() {
        let holds = |found: &Match| found.is_for_requests(port, proxy, gateway);
        let Some((matches, all)) = remaining(route, holds, |found| !found.asks_more) else {
            continue;
        };
        chosen.push(Chosen {
            service,
            route,
            index,
            matches,
            all,
        });
        if all {
            break;
        }
    }
    chosen
}

/// Returns the places of a route's matches that can hold, and whether one of them takes everything; nothing where none
/// can hold.
fn remaining(
    route: &Route,
    holds: impl Fn(&Match) -> bool,
    takes_all: impl Fn(&Match) -> bool,
) -> Option<(Vec<usize>, bool)> {
    let mut matches = Vec::new();
    let mut all = route.matches.is_empty();
    for (at, found) in route.matches.iter().enumerate() {
        if holds(found) {
            matches.push(at);
            all |= takes_all(found);
        }
    }
    (all || !matches.is_empty()).then_some((matches, all))
}

fn names<'r>(
    service: Routes<'r>,
    port: PortNumber,
    proxy: &Proxy,
    gateway: &GatewayName,
    named: &mut Vec<Named<'r>>,
) {
    let sidecar = *gateway == GatewayName::Mesh;
    for (index, route) in service.item.tls.iter().enumerate() {
        if route.destinations.is_empty() {
            continue;
        }
        for (at, found) in route.matches.iter().enumerate() {
            if !found.is_for_connections(port, proxy, gateway) {
                continue;
            }
            for name in &found.names {
                let chosen = Chosen {
                    service,
                    route,
                    index,
                    matches: vec![at],
                    all: !sidecar || found.subnets.is_none(),
                };
                let known = named.iter_mut().find(|other| other.name == name);
                match known {
                    Some(known) if known.routes.last().is_some_and(|last| last.all) => {}
                    Some(known) => known.routes.push(chosen),
                    None => named.push(Named {
                        name,
                        routes: vec![chosen],
                    }),
                }
            }
        }
    }
}

/// Adds the routes of connections to a port, unless one takes all already. Gateways do not look at addresses.
fn connections<'r>(
    service: Routes<'r>,
    port: PortNumber,
    proxy: &Proxy,
    gateway: &GatewayName,
    chosen: &mut Vec<Chosen<'r>>,
) {
    let sidecar = *gateway == GatewayName::Mesh;
    for (index, route) in service.item.tcp.iter().enumerate() {
        if chosen.last().is_some_and(|last| last.all) {
            return;
        }
        let holds = |found: &Match| found.is_for_connections(port, proxy, gateway);
        let takes_all = |found: &Match| !sidecar || found.subnets.is_none();
        if let Some((matches, all)) = remaining(route, holds, takes_all) {
            chosen.push(Chosen {
                service,
                route,
                index,
                matches,
                all,
            });
        }
    }
}

/// A host that a router serves on a port.
pub(super) struct Domain<'r> {
    pub(super) host: HostPattern,
    pub(super) reads: Reads,
    pub(super) ends: Ends,
    pub(super) redirects: bool,
    /// The Gateway, and the VirtualServices of the host, in their order.
    gateway: GatewayName,
    services: Vec<Routes<'r>>,
}

impl<'r> Domain<'r> {
    /// Returns the routes of requests; those that take all come last.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `SortVHostRoutes`.
    pub(super) fn http(&self, port: PortNumber, router: &Proxy) -> Vec<Chosen<'r>> {
        let mut all: Vec<Chosen<'r>> = Vec::new();
        for service in &self.services {
            all.extend(requests(*service, port, router, &self.gateway));
        }
        sort_by(&mut all, |one, other| one.all.cmp(&other.all));
        let end = all.iter().position(|chosen| chosen.all);
        all.truncate(end.map_or(all.len(), |end| end + 1));
        all
    }

    /// Returns the names that connections of TLS may ask for.
    pub(super) fn tls(&self, port: PortNumber, router: &Proxy) -> Vec<Named<'r>> {
        let mut named = Vec::new();
        for service in &self.services {
            names(*service, port, router, &self.gateway, &mut named);
        }
        named
    }

    /// Returns the route of connections.
    pub(super) fn tcp(&self, port: PortNumber, router: &Proxy) -> Vec<Chosen<'r>> {
        let mut all = Vec::new();
        for service in &self.services {
            connections(*service, port, router, &self.gateway, &mut all);
        }
        all
    }
}

/// Returns the Gateways in their order.
pub(super) fn gateways(resources: &Resources) -> Vec<&Gateway> {
    let all = &resources.gateways;
    let order = sorted(&all.iter().map(|gateway| &gateway.meta).collect::<Vec<_>>());
    order.into_iter().filter_map(|at| all.get(at)).collect()
}

/// A server of a router, and whose it is.
#[derive(Clone, Copy)]
pub(super) struct OfGateway<'r> {
    pub(super) gateway: &'r Gateway,
    /// Its place.
    pub(super) at: usize,
    pub(super) server: &'r Server,
    /// The Gateway that has an earlier one, which it cannot stand behind: Istio leaves it out.
    pub(super) behind: Option<&'r Gateway>,
}

/// Returns the servers of a router, in their order.
pub(super) fn servers<'r>(resources: &'r Resources, router: &Proxy) -> Vec<OfGateway<'r>> {
    let mut all: Vec<OfGateway<'_>> = Vec::new();
    for gateway in gateways(resources) {
        if !gateway.selects(router) {
            continue;
        }
        for (at, server) in gateway.servers.iter().enumerate() {
            let mut earlier = all.iter().filter(|one| one.behind.is_none());
            let first = earlier.find(|earlier| !server.stands_behind(earlier.server));
            let behind = first.map(|first| first.gateway);
            all.push(OfGateway {
                gateway,
                at,
                server,
                behind,
            });
        }
    }
    all
}

/// Returns the hosts that a router serves on a port; without a port, on all of them.
///
/// Source: istio/istio `pilot/pkg/networking/core/gateway.go`, `buildGatewayHTTPRouteConfig`.
pub(super) fn domains<'r>(
    resources: &'r Resources,
    router: &Proxy,
    mesh: &Mesh,
    port: Option<PortNumber>,
) -> Vec<(PortNumber, Domain<'r>)> {
    let mut found: Vec<(PortNumber, Domain<'r>)> = Vec::new();
    let all = servers(resources, router);
    for gateway in gateways(resources) {
        if !all.iter().any(|one| std::ptr::eq(one.gateway, gateway)) {
            continue;
        }
        let id = &gateway.meta.id;
        let name = GatewayName::Named {
            namespace: id.namespace.to_string(),
            name: id.name.to_string(),
        };
        let services = visible(resources, &router.namespace, mesh, &name);
        for one in &all {
            let server = one.server;
            let its = std::ptr::eq(one.gateway, gateway) && one.behind.is_none();
            if !its || port.is_some_and(|port| port != server.port) {
                continue;
            }
            for service in &services {
                for host in shared(server, service) {
                    let is = |(number, domain): &&mut (PortNumber, Domain<'_>)| {
                        *number == server.port && domain.host == host
                    };
                    match found.iter_mut().find(is) {
                        Some((_, domain)) => {
                            let has = |other: &Routes<'_>| other.index == service.index;
                            if domain.gateway == name && !domain.services.iter().any(has) {
                                domain.services.push(*service);
                            }
                        }
                        None => found.push((
                            server.port,
                            Domain {
                                host,
                                reads: server.reads,
                                ends: server.ends,
                                redirects: server.redirects,
                                gateway: name.clone(),
                                services: vec![*service],
                            },
                        )),
                    }
                }
            }
        }
    }
    found
}

/// Returns the hosts that a server and a VirtualService share.
fn shared(server: &Server, service: &VirtualService) -> Vec<HostPattern> {
    let mut hosts = Vec::new();
    for (whose, host) in &server.hosts {
        let namespace = &*service.meta.id.namespace;
        if whose.as_ref().is_some_and(|whose| whose != namespace) {
            continue;
        }
        for other in &service.hosts {
            if host.covers(other) {
                hosts.push(other.clone());
            } else if other.covers(host) {
                hosts.push(host.clone());
            }
        }
    }
    hosts
}
