//! The clusters of a table: what is spoken to a service, and where it leads.

use crate::cluster::{Cluster, ClusterName, Endpoints, LbEndpoint, UpstreamProtocol};
use crate::compile::compiler::{Compiler, Wanted};
use crate::compile::owners::{Leads, is_looked_up};
use crate::merge::Settings;
use crate::options::ConnectTo;
use crate::port::{PortNumber, ProtocolClass};
use crate::query::DownstreamProtocol;
use crate::resource::{H2UpgradePolicy, Note, Notes, Resolution, ServicePort, Subset};
use crate::tls::TlsIntent;

impl<'r> Compiler<'r> {
    /// Finds or makes the cluster of a port. Hosts share one unless something in the rules is theirs alone.
    pub(super) fn cluster(
        &mut self,
        service: &Wanted<'_>,
        tls: Option<TlsIntent>,
        settings: Option<Settings<'_>>,
        subset: Option<&Subset>,
    ) -> Option<usize> {
        let &Wanted {
            entry,
            host,
            port,
            leads,
            downstream,
            alone,
            told,
            ..
        } = service;
        let elsewhere = matches!(leads, Leads::To(_));
        let load_balancer = settings
            .and_then(|settings| settings.load_balancer)
            .cloned()
            .map(Box::new);
        let connection_pool = settings
            .and_then(|settings| settings.connection_pool)
            .or(self.options.mesh.connection_pool.as_ref())
            .cloned()
            .map(Box::new);
        let outlier_detection = settings
            .and_then(|settings| settings.outlier_detection)
            .or(self.options.mesh.outlier_detection.as_ref())
            .cloned()
            .map(Box::new);
        let proxy_protocol = settings.and_then(|settings| settings.proxy_protocol);
        let retry_budget = settings.and_then(|settings| settings.retry_budget).cloned();
        // What an old server needs is part of its TLS.
        let notes = settings.map(|settings| settings.notes.without_legacy());
        let notes = notes.unwrap_or_default();
        let tunnel = settings
            .and_then(|settings| settings.tunnel)
            .cloned()
            .map(Box::new);
        let http = connection_pool.as_ref().map(|pool| &pool.http);
        let as_received = http.is_some_and(|http| http.use_client_protocol);
        let upgrade = http.map(|http| http.h2_upgrade).unwrap_or_default();
        let upstream = match &tunnel {
            Some(_) if upgrade == H2UpgradePolicy::Upgrade => UpstreamProtocol::Http2,
            Some(_) => UpstreamProtocol::Http1,
            None => upstream(downstream, port, tls.as_ref(), upgrade, as_received),
        };
        let upstream = match upstream {
            UpstreamProtocol::Bytes | UpstreamProtocol::PostgreSql => upstream,
            _ if notes.say(Note::OnlyHttp1) => UpstreamProtocol::Http1,
            _ => upstream,
        };
        // Nothing in a connection of bytes says where it goes, so its cluster does.
        let own = alone
            || subset.is_some()
            || (downstream == DownstreamProtocol::Tcp && host.exact().is_some())
            || elsewhere
            || load_balancer.is_some()
            || connection_pool.is_some()
            || outlier_detection.is_some()
            || proxy_protocol.is_some()
            || retry_budget.is_some()
            || notes != Notes::default()
            || tunnel.is_some()
            || tls.as_ref().is_some_and(|tls| !tls.follows_the_request());
        // A wildcard lets DNS choose the address; only a service of the mesh may have a private one.
        let any_name = host.exact().is_none() && !elsewhere;
        let public_only = any_name && !entry.internal;
        if !own {
            let alike = |index: &usize| {
                self.clusters.get(*index).is_some_and(|cluster| {
                    cluster.tls == tls
                        && cluster.upstream == upstream
                        && cluster.any_name == any_name
                        && cluster.public_only == public_only
                })
            };
            if let Some(index) = self.shared.iter().copied().find(alike) {
                return Some(index);
            }
            self.shared.push(self.clusters.len());
        }
        let endpoints = if own {
            self.endpoints(service, subset)?
        } else {
            Endpoints::OfTheRequest
        };
        let mut cluster = Cluster {
            name: match own {
                true => {
                    let subset = subset.map_or("", |subset| &subset.name);
                    ClusterName::own(port.number, subset, host)
                }
                false => ClusterName::shared(tls.as_ref(), upstream, any_name, public_only),
            },
            own: own.then(|| (host.clone(), port.number)),
            told: told.filter(|told| own && *told != host).cloned(),
            tls,
            tunnel,
            upstream,
            endpoints,
            any_name,
            public_only,
            load_balancer,
            connection_pool,
            outlier_detection,
            proxy_protocol,
            retry_budget,
            notes,
        };
        // A gateway may reach a service otherwise than a sidecar does, and requests otherwise than bytes.
        while let Some(index) = self.names.get(&cluster.name) {
            if self.clusters.get(*index) == Some(&cluster) {
                return Some(*index);
            }
            cluster.name = cluster.name.other();
        }
        let index = self.clusters.len();
        self.names.insert(cluster.name.clone(), index);
        self.clusters.push(cluster);
        Some(index)
    }

    /// Returns where a service leads; `None` for a subset whose labels no endpoint has, which then has no
    /// cluster, as in Istio.
    fn endpoints(&self, service: &Wanted<'_>, subset: Option<&Subset>) -> Option<Endpoints> {
        let &Wanted {
            entry,
            host,
            port,
            leads,
            ..
        } = service;
        let at = |address: &str, number: PortNumber, weight: u32, locality: &str| {
            let to = self
                .options
                .connect_to
                .iter()
                .find(|to| to.host.as_str() == address && to.port == number);
            let (address, port) = to.map_or((address, number), |to| (&to.address, to.address_port));
            LbEndpoint {
                address: address.to_owned(),
                port,
                weight,
                locality: locality.to_owned(),
            }
        };
        let elsewhere = matches!(leads, Leads::To(_));
        let labels = subset.map_or(&[][..], |subset| &subset.labels);
        // Envoy can go to the addresses of one name one at a time, not to those of several.
        let by_turns = entry.resolution == Resolution::DnsRoundRobin;
        let listed = |endpoints: Vec<LbEndpoint>| {
            let one_at_a_time = by_turns && endpoints.len() == 1;
            Some(listed(endpoints, one_at_a_time))
        };
        if let Some(name) = host.exact() {
            let whole = at(name.as_str(), port.target, 1, "");
            // What is dialled for the host as a whole may be replaced, whatever its endpoints are.
            if whole.address != name.as_str() || whole.port != port.target {
                return listed(vec![whole]);
            }
            if !elsewhere {
                return if labels.is_empty() {
                    listed(vec![whole])
                } else {
                    None
                };
            }
        } else if !elsewhere {
            return labels.is_empty().then_some(Endpoints::OfTheRequest);
        }
        let Leads::To(led) = leads else { return None };
        let fixed_only = entry.resolution == Resolution::Static;
        let mut endpoints: Vec<LbEndpoint> = Vec::new();
        for (entry, port) in led {
            let chosen = entry
                .endpoints
                .iter()
                .filter(|endpoint| labels.iter().all(|label| endpoint.labels.contains(label)))
                .filter(|endpoint| !fixed_only || is_fixed(&endpoint.address));
            for endpoint in chosen {
                let named = endpoint.ports.iter().find(|(name, _)| *name == port.name);
                let number = named.map_or(port.target, |(_, port)| *port);
                let endpoint = at(
                    &endpoint.address,
                    number,
                    endpoint.weight,
                    &endpoint.locality,
                );
                if !endpoints.contains(&endpoint) {
                    endpoints.push(endpoint);
                }
            }
            let by_name = labels.is_empty() && !fixed_only && is_looked_up(entry);
            if let Some(name) = host.exact().filter(|_| by_name) {
                let endpoint = at(name.as_str(), port.target, 1, "");
                if !endpoints.contains(&endpoint) {
                    endpoints.push(endpoint);
                }
            }
        }
        if endpoints.is_empty() && subset.is_some() {
            return None;
        }
        listed(endpoints)
    }
}

fn listed(endpoints: Vec<LbEndpoint>, one_at_a_time: bool) -> Endpoints {
    let fixed = endpoints.iter().all(|endpoint| is_fixed(&endpoint.address));
    Endpoints::Listed {
        endpoints,
        fixed,
        one_at_a_time,
    }
}

/// Returns the one place that an address given by hand is.
pub(super) fn endpoints_of(to: &ConnectTo) -> Endpoints {
    let endpoint = LbEndpoint {
        address: to.address.clone(),
        port: to.address_port,
        weight: 1,
        locality: String::new(),
    };
    listed(vec![endpoint], false)
}

/// Whether an address needs no lookup: it is an IP address or a path.
fn is_fixed(address: &str) -> bool {
    address.starts_with("unix://") || address.parse::<std::net::IpAddr>().is_ok()
}

/// Whether a port is PostgreSQL's, by its number or its name: `protocol` has no word for it.
pub(super) fn is_postgresql(port: &ServicePort) -> bool {
    let known = [port.number, port.target];
    known.iter().any(|number| number.get() == 5432) || port.name.starts_with("postgres")
}

/// Settles what is spoken to the server.
fn upstream(
    downstream: DownstreamProtocol,
    port: &ServicePort,
    tls: Option<&TlsIntent>,
    upgrade: H2UpgradePolicy,
    as_received: bool,
) -> UpstreamProtocol {
    // RFC 9113, 9.2.1: HTTP/2 has no handshakes in between.
    let renegotiates = tls.is_some_and(|tls| tls.legacy.say(Note::Renegotiation));
    let tls = tls.is_some();
    match (downstream, port.protocol.is_http2(), upgrade) {
        (DownstreamProtocol::Tcp, ..) if tls && is_postgresql(port) => UpstreamProtocol::PostgreSql,
        (DownstreamProtocol::Tls | DownstreamProtocol::Tcp, ..) => UpstreamProtocol::Bytes,
        _ if as_received && !renegotiates => UpstreamProtocol::AsReceived,
        (_, true, _) | (_, _, H2UpgradePolicy::Upgrade) => UpstreamProtocol::Http2,
        // Requests that are led to a port of TLS or bytes: nothing else is offered there.
        _ if port.protocol.class() != ProtocolClass::Http => UpstreamProtocol::Http1,
        (_, _, H2UpgradePolicy::DoNotUpgrade) => UpstreamProtocol::Http1,
        // Without TLS nothing can be agreed on.
        _ if tls && !renegotiates => UpstreamProtocol::Auto,
        _ => UpstreamProtocol::Http1,
    }
}
