//! Settings that exclude each other: together they would send plaintext, go round in circles, or make an open proxy.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use egress_policy::{
    DownstreamProtocol, Endpoints, HostName, LbEndpoint, OutboundMode, PolicyTable, PortNumber,
    ResourceId, Service,
};

use super::options::Options;
use super::service_ports::service_ports;
use super::upstream_proxy;

/// Two things that were asked for and exclude each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// A forward proxy that leads to unknown hosts, too.
    OpenProxy,
    /// Captured connections are to come in where the kernel does not redirect them to.
    CaptureElsewhere(IpAddr, PortNumber),
    /// Captured connections would reach the forward proxy's listener.
    ForwardProxyCaptured(SocketAddr),
    /// Captured connections would reach the listeners of service ports.
    ListenCaptured(String),
    /// What is captured on its way to our own listeners would go through Envoy again and again.
    CaptureLoop(String),
    /// Unknown hosts would be reached around the upstream proxy.
    AroundTheProxy,
    /// Captured connections come in on a service port.
    CapturePortServed(PortNumber),
    /// The rules lead through a proxy of their own. Names the rule.
    TwoProxies(String),
    /// CONNECT would go around a rule's tunnel.
    AroundTheTunnel {
        /// The host that is asked for.
        host: String,
        /// Its port.
        port: PortNumber,
        /// The rule with the tunnel.
        rule: String,
    },
    /// A rule's tunnel is not the same for all workloads. Names the rule.
    TunnelDiffers(String),
    /// A host has branches, and Envoy could not choose among them.
    Branches {
        /// The flag that stands in the way.
        flag: &'static str,
        /// The host.
        host: String,
        /// Its port.
        port: PortNumber,
    },
    /// A host's endpoints are not the host itself, which a proxy could not be told.
    EndpointsBehindProxy {
        /// The host.
        host: String,
        /// Its ServiceEntry.
        entry: String,
    },
}

impl Conflict {
    /// How to fix it.
    pub fn hint(&self) -> String {
        match self {
            Conflict::OpenProxy | Conflict::AroundTheProxy => {
                "name the hosts in ServiceEntries, and leave `ALLOW_ANY` out".to_owned()
            }
            Conflict::CaptureElsewhere(_, port) => {
                format!("name the port alone: `--capture {port}`")
            }
            Conflict::ForwardProxyCaptured(at) => format!(
                "name one address of this machine, for example `--forward-proxy 127.0.0.1:{}`",
                at.port()
            ),
            Conflict::ListenCaptured(_) => "name one address of this machine, or leave `--listen` or `--port` out: what is captured needs neither".to_owned(),
            Conflict::CaptureLoop(_) => {
                "leave `--listen` or `--port` out: what is captured needs neither".to_owned()
            }
            Conflict::CapturePortServed(_) => {
                "name another port that nothing dials, for example `--capture 15001`".to_owned()
            }
            Conflict::TwoProxies(_) => "remove one of the two".to_owned(),
            Conflict::AroundTheTunnel { .. } => {
                "use `--upstream-proxy` in place of `tunnel`, or leave `--forward-proxy` out"
                    .to_owned()
            }
            Conflict::TunnelDiffers(_) => "leave `--labels-from-node` out".to_owned(),
            Conflict::Branches { flag, .. } => {
                format!("leave `{flag}` out, or lead the host's port to one destination")
            }
            Conflict::EndpointsBehindProxy { .. } => {
                "leave `endpoints` out and use `resolution: DNS`, or name the host in `--no-proxy`"
                    .to_owned()
            }
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conflict::OpenProxy => f.write_str("`--forward-proxy` and `--outbound-traffic-policy ALLOW_ANY` would be an open proxy: whoever reaches it could reach everything"),
            Conflict::CaptureElsewhere(address, port) => write!(
                f,
                "`--capture {}`: the kernel redirects connections of this machine to 127.0.0.1 and ::1, and no others belong there",
                SocketAddr::new(*address, port.get())
            ),
            Conflict::ForwardProxyCaptured(at) => write!(
                f,
                "`--forward-proxy {at}` beside `--capture` would also get what is captured on its way to port {} of any address",
                at.port()
            ),
            Conflict::ListenCaptured(listen) => write!(
                f,
                "`--listen {listen}` with `--port` beside `--capture` would also get what is captured on its way to these ports of any address"
            ),
            Conflict::CaptureLoop(listen) => write!(
                f,
                "with `--outbound-traffic-policy ALLOW_ANY`, what is captured on its way to `--listen {listen}` would go through Envoy again and again"
            ),
            Conflict::AroundTheProxy => f.write_str("with `--outbound-traffic-policy ALLOW_ANY` hosts would be reached around the `--upstream-proxy`"),
            Conflict::CapturePortServed(port) => write!(
                f,
                "port {port} of `--capture` is a service port of the rules too, and its connections could not be told from others"
            ),
            Conflict::TwoProxies(rule) => write!(
                f,
                "`--upstream-proxy` leads everything to one proxy, and DestinationRule {rule} has a `tunnel` through another"
            ),
            Conflict::AroundTheTunnel { host, port, rule } => write!(
                f,
                "CONNECT to `{host}:{port}` of the `--forward-proxy` would go around the `tunnel` of DestinationRule {rule}"
            ),
            Conflict::TunnelDiffers(rule) => write!(
                f,
                "the `tunnel` of DestinationRule {rule} is not the same for all workloads, and with `--labels-from-node` one configuration serves them all"
            ),
            Conflict::Branches { flag, host, port } => write!(
                f,
                "`{host}:{port}` has several routes or destinations by VirtualServices, and with `{flag}` they could not be told apart"
            ),
            Conflict::EndpointsBehindProxy { host, entry } => write!(
                f,
                "`{host}` of ServiceEntry {entry} has endpoints of its own, and `--upstream-proxy` can only be asked for the host"
            ),
        }
    }
}

impl Options {
    /// Checks that what these options ask for goes together, whatever the rules are. With `allow_any`, hosts that the
    /// rules do not name are left alone.
    ///
    /// # Errors
    /// With the first two things that exclude each other.
    pub fn check_flags(&self, allow_any: bool) -> Result<(), Conflict> {
        if self.forward_proxy.is_some() && allow_any {
            return Err(Conflict::OpenProxy);
        }
        if let Some(conflict) = self.mistaken_for_captured(allow_any) {
            return Err(conflict);
        }
        match self.upstream_proxy.is_some() && allow_any {
            true => Err(Conflict::AroundTheProxy),
            false => Ok(()),
        }
    }

    /// Checks that what these options ask for goes together, with a table that was compiled for them.
    ///
    /// # Errors
    /// With the first two things that exclude each other.
    pub fn check(&self, table: &PolicyTable) -> Result<(), Conflict> {
        self.check_flags(table.outbound() == OutboundMode::AllowAny)?;
        if let Some(port) = self.capture.as_ref().map(|capture| capture.port)
            && service_ports(table).iter().any(|(own, _)| *own == port)
        {
            return Err(Conflict::CapturePortServed(port));
        }
        if let Some(conflict) = self.around_the_tunnel(table) {
            return Err(conflict);
        }
        if let Some(conflict) = self.branches(table) {
            return Err(conflict);
        }
        match self.upstream_proxy {
            Some(_) => self.listed_elsewhere(table).map_or(Ok(()), Err),
            None => Ok(()),
        }
    }

    /// Finds listeners beside capture that Envoy could take for those of captured connections, and a place where
    /// captured connections never come in.
    ///
    /// Envoy hands a captured connection to the listener that has its address, or else to one that has the wildcard
    /// address and its port: those that we do not bind, and each bound one beside them, whatever service it is for.
    fn mistaken_for_captured(&self, allow_any: bool) -> Option<Conflict> {
        let capture = self.capture.as_ref()?;
        let redirected = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ];
        let mut addresses = capture.addresses.iter();
        if let Some(address) = addresses.find(|address| !redirected.contains(address)) {
            return Some(Conflict::CaptureElsewhere(*address, capture.port));
        }
        let is_wildcard = |address: IpAddr| address.to_canonical().is_unspecified();
        if let Some(at) = self.forward_proxy.filter(|at| is_wildcard(at.ip())) {
            return Some(Conflict::ForwardProxyCaptured(at));
        }
        if self.ports.is_empty() {
            return None;
        }
        // What is no address may be any.
        let listen = self.listen.parse().ok().filter(|at| !is_wildcard(*at));
        let Some(listen) = listen else {
            return Some(Conflict::ListenCaptured(self.listen.clone()));
        };
        let is_loop = allow_any && !listen.to_canonical().is_loopback();
        is_loop.then(|| Conflict::CaptureLoop(self.listen.clone()))
    }

    /// Finds a host with branches, where they could not be chosen: a forward proxy has one list of routes for all ports, an
    /// upstream proxy is told one destination, and Envoy's routes are the same for all workloads.
    fn branches(&self, table: &PolicyTable) -> Option<Conflict> {
        let flag = if self.forward_proxy.is_some() {
            "--forward-proxy"
        } else if self.upstream_proxy.is_some() {
            "--upstream-proxy"
        } else if !self.workloads.is_empty() {
            "--labels-from-node"
        } else {
            return None;
        };
        let mut tables = std::iter::once(table).chain(&self.workloads);
        // Connections are told apart by the filter. But what a proxy is asked for is the host that was called, and
        // clusters of TLS are those of one workload.
        let divided = |service: &Service<'_>| {
            let tls = service.downstream == DownstreamProtocol::Tls;
            service.share.is_some() && (self.upstream_proxy.is_some() || tls)
        };
        tables.find_map(|table| {
            let branching = table.branching().map(|it| (it.host, it.port)).next();
            let found = branching.or_else(|| {
                let mut services = table.services().filter(|_| self.forward_proxy.is_none());
                let service = services.find(divided)?;
                Some((service.host, service.port))
            });
            let (host, port) = found?;
            Some(Conflict::Branches {
                flag,
                host: host.to_string(),
                port,
            })
        })
    }

    /// Finds a `tunnel` that what was asked for would go around, or go into twice.
    fn around_the_tunnel(&self, table: &PolicyTable) -> Option<Conflict> {
        let all = || std::iter::once(table).chain(&self.workloads);
        let tunnelled = |service: &Service<'_>| service.cluster.tunnel.is_some();
        let rule = |service: &Service<'_>| {
            let rule = service.rule.map(ResourceId::qualified);
            rule.unwrap_or_default()
        };
        let any = |wanted: fn(&Service<'_>) -> bool| {
            let mut services = all().flat_map(PolicyTable::services);
            services.find(|service| tunnelled(service) && wanted(service))
        };
        if self.upstream_proxy.is_some()
            && let Some(service) = any(|_| true)
        {
            return Some(Conflict::TwoProxies(rule(&service)));
        }
        if self.forward_proxy.is_some()
            && let Some(service) = any(|service| service.downstream == DownstreamProtocol::Tls)
        {
            return Some(Conflict::AroundTheTunnel {
                host: service.host.to_string(),
                port: service.port,
                rule: rule(&service),
            });
        }
        // Listeners have the tunnels, and cannot ask which workload they are for. The tables have the same hosts and
        // ports in the same order, and requests choose no subset.
        fn reached(table: &PolicyTable) -> impl Iterator<Item = Service<'_>> {
            // Those that connections are divided among have no tunnel.
            let services = table.services();
            services.filter(|service| service.subset.is_none() && service.share.is_none())
        }
        for other in &self.workloads {
            for (one, other) in reached(table).zip(reached(other)) {
                let same = one.cluster.tunnel == other.cluster.tunnel
                    && (one.downstream != DownstreamProtocol::Tls
                        || !tunnelled(&one)
                        || one.cluster == other.cluster);
                if !same {
                    let service = if tunnelled(&other) { other } else { one };
                    return Some(Conflict::TunnelDiffers(rule(&service)));
                }
            }
        }
        None
    }
}

impl Options {
    /// Finds a host whose endpoints are not the host itself: a proxy could not be told which of them to connect to.
    fn listed_elsewhere(&self, table: &PolicyTable) -> Option<Conflict> {
        let service = table.services().find(|service| {
            let Endpoints::Listed { endpoints, .. } = &service.cluster.endpoints else {
                return false;
            };
            let host = service.host.exact().map(HostName::as_str);
            let dialled = host.map(|host| (host, service.target));
            let dialled = service.connect_to.or(dialled);
            let itself =
                |endpoint: &LbEndpoint| dialled == Some((endpoint.address.as_str(), endpoint.port));
            upstream_proxy::carries(service.cluster, self) && !endpoints.iter().all(itself)
        })?;
        let entry = service.service_entry.map(ResourceId::qualified);
        Some(Conflict::EndpointsBehindProxy {
            host: service.host.to_string(),
            entry: entry.unwrap_or_default(),
        })
    }
}
