//! Gives hosts the ports that VirtualServices lead: those of services, names below them, and hosts that no service has.

use std::rc::Rc;

use crate::compile::compiler::Compiler;
use crate::compile::leads::{Called, Side};
use crate::compile::routing::{Chosen, Named, OfGateway, domains, servers};
use crate::compile::services::downstream;
use crate::host::HostPattern;
use crate::port::PortNumber;
use crate::problem::{FieldPath, Segment, Severity};
use crate::query::DownstreamProtocol;
use crate::reason::Reason;
use crate::resource::{Ends, Reads, ServicePort};
use crate::table::hosts::Port;
use crate::table::routed::Routed;
use crate::table::verdict::Verdict;

impl<'r> Compiler<'r> {
    /// Adds a service's port that VirtualServices lead; nothing where its own way counts for all. Where routes take
    /// only some connections, it counts for the rest: [`Compiler::add_rest`].
    pub(super) fn routed(
        &mut self,
        index: usize,
        host: &'r HostPattern,
        port: &ServicePort,
    ) -> Option<Port> {
        let routing = Rc::clone(&self.routing);
        let proxy = &self.options.proxy;
        let called = Called {
            index,
            host,
            port: port.number,
            downstream: downstream(port)?,
        };
        let side = |compiler: &Self| compiler.own_side(port.number);
        match called.downstream {
            DownstreamProtocol::Http => {
                let owner = self.owners.get(index).copied().flatten();
                let owner = owner.map(|owner| &*owner.entry.item.meta.id.namespace);
                let routes = routing.http(host, port.number, proxy, owner)?;
                self.add_routed(called, side(self), &routes);
            }
            DownstreamProtocol::Tls => {
                let named = routing.tls(host, port.number, proxy);
                if named.is_empty() {
                    return None;
                }
                self.add_named(called, side(self), named);
            }
            DownstreamProtocol::Tcp => {
                let routes = routing.tcp(host, port.number, proxy);
                routes.first()?;
                self.add_routed(called, side(self), &routes);
            }
        }
        let added = self.hosts.get(index)?;
        self.hosts.port(added, port.number).cloned()
    }

    /// Adds the port of a service of TLS, for the names among those that are its own. The others are for later: where a
    /// VirtualService speaks of a service, connections that ask for no name of it are refused.
    fn add_named(&mut self, called: Called<'_>, side: Side<'r>, named: Vec<Named<'r>>) {
        let covers = |named: &&Named<'_>| named.name.covers(called.host);
        let best = (named.iter().filter(covers)).max_by_key(|named| named.name.specificity());
        match best {
            Some(named) => self.add_routed(called, side, &named.routes),
            None => {
                let verdict = Verdict::refused(Reason::NoRoute, None);
                let port = Port::new(called.port, called.port, called.downstream, verdict);
                let first = named.first().and_then(|named| named.routes.first());
                let first = first.map(|chosen| self.service_index(chosen));
                self.hosts.add_routed(called.index, port, Routed::by(first));
            }
        }
        let own = |named: &Named<'_>| named.name != called.host;
        let others = named.into_iter().filter(own);
        self.names_to_come
            .extend(others.map(|named| (called.port, named)));
    }

    /// Adds the hosts that are names below services of TLS.
    pub(super) fn add_names(&mut self) {
        for (port, named) in std::mem::take(&mut self.names_to_come) {
            let index = self.lone_host(named.name);
            if self.hosts.port_mut(index, port).is_some() {
                continue;
            }
            let called = Called {
                index,
                host: named.name,
                port,
                downstream: DownstreamProtocol::Tls,
            };
            self.add_routed(called, self.own_side(port), &named.routes);
        }
    }

    /// Adds the hosts of VirtualServices that are no service on port 80, which Istio serves there where any is.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/httproute.go`, `BuildSidecarOutboundVirtualHosts`.
    pub(super) fn add_lone_hosts(&mut self) {
        let routing = Rc::clone(&self.routing);
        let port = PortNumber::HTTP;
        let serves = |host: &HostPattern, compiler: &Self| {
            let found = compiler.hosts.index(host);
            let found = found.and_then(|index| compiler.hosts.get(index));
            found.is_some_and(|host| compiler.hosts.port(host, port).is_some())
        };
        let http = |found: &Port| found.downstream == DownstreamProtocol::Http;
        let listens = |compiler: &Self| {
            let mut hosts = compiler.hosts.iter();
            hosts.any(|host| compiler.hosts.port(host, port).is_some_and(http))
        };
        let hosts: Vec<&HostPattern> = routing.hosts().collect();
        if hosts.is_empty() || !listens(self) {
            return;
        }
        for host in hosts {
            // A wildcard that has services has no name beside them.
            let has_services = |compiler: &Self| {
                let mut known = compiler.hosts.iter();
                host.exact().is_none()
                    && known.any(|known| {
                        host.covers(&known.pattern) && compiler.hosts.port(known, port).is_some()
                    })
            };
            if serves(host, self) || has_services(self) {
                continue;
            }
            let Some(routes) = routing.http(host, port, &self.options.proxy, None) else {
                continue;
            };
            let called = Called {
                index: self.lone_host(host),
                host,
                port,
                downstream: DownstreamProtocol::Http,
            };
            self.add_routed(called, self.own_side(port), &routes);
        }
    }

    /// Returns the place of a host that may have no service.
    fn lone_host(&mut self, host: &HostPattern) -> usize {
        let (index, new) = self.hosts.entry(host, usize::MAX);
        if new {
            self.owners.push(None);
        }
        index
    }

    /// Adds what a router serves.
    pub(super) fn serve_gateways(&mut self) {
        let before = self.problems.len();
        self.check_servers();
        let wrong = before..self.problems.len();
        let proxy = &self.options.proxy;
        let served = domains(self.resources, proxy, &self.options.mesh, None);
        let scope = self.router_scope(proxy);
        let proxy = Rc::new(proxy.clone());
        for (port, domain) in served {
            let side = Side {
                proxy: Rc::clone(&proxy),
                scope: Some(Rc::clone(&scope)),
                port,
                alone: false,
            };
            let downstream = match domain.reads {
                Reads::Http => DownstreamProtocol::Http,
                Reads::Sni => DownstreamProtocol::Tls,
                Reads::Bytes | Reads::Nothing => continue,
            };
            if downstream == DownstreamProtocol::Tls {
                for named in domain.tls(port, &side.proxy) {
                    self.add_served(port, named.name, downstream, &side, &named.routes);
                }
                continue;
            }
            let routes = domain.http(port, &side.proxy);
            self.add_served(port, &domain.host, downstream, &side, &routes);
            if domain.ends != Ends::Nothing
                && let Some(index) = self.hosts.index(&domain.host)
            {
                self.blame(index, port, wrong.clone());
            }
        }
    }

    /// Reports servers that are not carried out: whoever the TLS of one keeps out would be let in.
    fn check_servers(&mut self) {
        for one in servers(self.resources, &self.options.proxy) {
            if self.tell_left_out(one) {
                continue;
            }
            let server = one.server;
            let port = server.port;
            let (severity, text, hint) = match (server.ends, server.reads) {
                (Ends::Mesh | Ends::Clients, _) => (
                    Severity::Error,
                    format!(
                        "the server on port {port} ends the TLS of its clients, and nothing here does: anybody would be let in"
                    ),
                    "let the server speak HTTP or pass TLS through, or leave the gateway to Istio",
                ),
                (Ends::Nothing, Reads::Bytes) => (
                    Severity::Warning,
                    format!("the server on port {port} speaks TCP, and nothing listens on it here"),
                    "let the server speak HTTP or pass TLS through",
                ),
                _ => continue,
            };
            let (meta, path) = (&one.gateway.meta, path_of(one.at));
            let id = "gateway-server-tls";
            self.tell_about(severity, id, meta, path, text, hint);
        }
    }

    /// Reports a server that Istio leaves out, if it does that.
    pub(super) fn tell_left_out(&mut self, one: OfGateway<'_>) -> bool {
        if let Some(earlier) = one.behind {
            let text = format!(
                "the server is left out, as in Istio: an earlier one of {} has the port for another protocol, or the host for TLS",
                earlier.meta.id
            );
            let hint = "give it another port or other hosts";
            let (meta, path) = (&one.gateway.meta, path_of(one.at));
            let id = "gateway-server-left-out";
            self.tell_about(Severity::Warning, id, meta, path, text, hint);
        }
        one.behind.is_some()
    }

    fn add_served(
        &mut self,
        port: PortNumber,
        host: &HostPattern,
        downstream: DownstreamProtocol,
        side: &Side<'r>,
        routes: &[Chosen<'r>],
    ) {
        let index = self.lone_host(host);
        if self.hosts.port_mut(index, port).is_some() {
            return;
        }
        let called = Called {
            index,
            host,
            port,
            downstream,
        };
        self.add_routed(called, side.clone(), routes);
    }
}

/// Returns where a Gateway's server stands.
fn path_of(server: usize) -> FieldPath {
    let mut path = FieldPath::keys("spec.servers");
    path.0.push(Segment::Index(server));
    path
}
