//! Follows what leads to the Service of an egress gateway on to the routes of that gateway.

use std::rc::Rc;

use crate::compile::compiler::Compiler;
use crate::compile::leads::{Called, Followed, Hop, Side};
use crate::compile::routing::{Chosen, Domain, domains, gateways, servers};
use crate::compile::scope::Scope;
use crate::host::HostPattern;
use crate::merge::{for_port, for_subset};
use crate::port::PortNumber;
use crate::problem::{Segment, Severity};
use crate::proxy::{Proxy, Role};
use crate::query::DownstreamProtocol;
use crate::reason::Reason;
use crate::resource::{Destination, Ends, Gateway, GatewayName, Reads, TlsMode};

impl<'r> Compiler<'r> {
    /// Follows a destination that is no service to the egress gateway that it may be.
    pub(super) fn hop(
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
        // A Gateway of the Gateway API has a Service of its own, and others have none that is known.
        let claims = |gateway: &Gateway| gateway.services.contains(&to.host);
        let claimed = resources.gateways.iter().any(claims);
        let serves = |gateway: &&Gateway| {
            let its = gateway.services.is_empty() || claims(gateway);
            its && (!claimed || claims(gateway)) && serves(gateway)
        };
        let mut hidden = false;
        for gateway in gateways(resources).into_iter().filter(serves) {
            let router = Proxy {
                namespace: namespace.to_owned(),
                labels: gateway.selector.iter().cloned().collect(),
                role: Role::Gateway,
            };
            // The gateway listens on the port, and a server of its own is not left out.
            let mut listens = false;
            for one in servers(resources, &router) {
                if one.server.port == number {
                    let left_out = self.tell_left_out(one);
                    listens |= !left_out && one.gateway.meta.id == gateway.meta.id;
                }
            }
            let all = domains(resources, &router, &self.options.mesh, Some(number));
            let all = all.into_iter().map(|(_, domain)| domain);
            let mut fit: Vec<Domain<'r>> = all.filter(|domain| domain.host.covers(asked)).collect();
            crate::order::sort_by(&mut fit, |one, other| {
                other.host.specificity().cmp(&one.host.specificity())
            });
            let Some(domain) = fit.into_iter().next() else {
                hidden |= listens && self.is_bound(gateway, asked);
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
        if resources.gateways.iter().any(|gateway| serves(&gateway)) {
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
    pub(super) fn of_hop(
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
                best.map_or_else(Vec::new, |named| named.routes)
            }
            Reads::Bytes if !http => domain.tcp(side.port, &side.proxy),
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
