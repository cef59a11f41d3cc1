//! TCP services: a chain for each, or a listener for each that has a loopback address of its own.
//!
//! The filter names the cluster, and `tcp_proxy` knows none of its own. Nothing waits for the client's bytes
//! unless another service of the port speaks TLS: a server that speaks first is heard at once.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use egress_filter::{FilterKind, PluginConfig, Variants};
use egress_policy::{
    Address, DownstreamProtocol, PolicyTable, PortNumber, Reason, Refused, Service,
};
use serde_json::{Map, Value, json};

use super::access_log::{Metadata, access_log};
use super::chain::{
    Chain, ChainMatch, Filter, Listener, UNDECIDED, connection_limits, listener_name,
    no_chain_reason, refused_connection, refused_log, tcp_proxy,
};
use super::plugin::{self, Plugin};
use super::rendering::Rendering;
use super::{passthrough, tunnel, upstream_proxy, variants};

/// A TCP service with a loopback address of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vip {
    /// The host.
    pub host: String,
    /// The service port.
    pub port: PortNumber,
    /// The address.
    pub address: Ipv4Addr,
}

impl Vip {
    /// Returns the name of its listener.
    pub(super) fn listener_name(&self) -> String {
        format!("{}_{}", listener_name(self.port), self.host)
    }
}

/// Returns the TCP services that have a loopback address, in the order of hosts and ports.
pub fn vips(table: &PolicyTable) -> Vec<Vip> {
    let mut all: Vec<Vip> = services(table)
        .filter_map(|service| {
            Some(Vip {
                host: service.host.to_string(),
                port: service.port,
                address: service.vip?,
            })
        })
        .collect();
    all.sort();
    all
}

fn services(table: &PolicyTable) -> impl Iterator<Item = Service<'_>> {
    once_each(table, |service| {
        service.connectable && service.subset.is_none()
    })
}

/// Returns the names of TLS whose connections are divided among several destinations.
fn divided_tls(table: &PolicyTable) -> impl Iterator<Item = Service<'_>> {
    once_each(table, |service| {
        service.downstream == DownstreamProtocol::Tls && service.share.is_some()
    })
}

/// Returns some services: of the destinations that connections of one are divided among, the first. As in Istio, its
/// limits are those of all.
fn once_each(
    table: &PolicyTable,
    wanted: impl Fn(&Service<'_>) -> bool,
) -> impl Iterator<Item = Service<'_>> {
    let mut all: Vec<Service<'_>> = table.services().filter(wanted).collect();
    all.dedup_by(|next, first| {
        next.share.is_some() && (next.host, next.port) == (first.host, first.port)
    });
    all.into_iter()
}

/// The TCP services, and the filter of each port, made once: all listeners of a port share one configuration, and Envoy
/// one plugin.
pub(super) struct Services<'r> {
    rendering: &'r Rendering<'r>,
    plugins: BTreeMap<PortNumber, Arc<Plugin>>,
}

impl<'r> Services<'r> {
    pub(super) fn new(rendering: &'r Rendering<'r>) -> Self {
        let options = rendering.options;
        let plugin = |port| {
            let config = PluginConfig {
                upstream_proxy: options.upstream_proxy.is_some(),
                ..plugin::config(Some(port), FilterKind::Network, rendering)
            };
            Arc::new(Plugin::new(&config, options))
        };
        let mut plugins = BTreeMap::new();
        for service in services(rendering.table).chain(divided_tls(rendering.table)) {
            plugins
                .entry(service.port)
                .or_insert_with(|| plugin(service.port));
        }
        Services { rendering, plugins }
    }

    /// Renders the filters of a service's chain.
    fn filters(&self, service: &Service<'_>) -> Vec<Filter> {
        let options = self.rendering.options;
        let plugin = self.plugins.get(&service.port).cloned();
        let mut filters: Vec<Filter> = plugin.map(Filter::Plugin).into_iter().collect();
        if self.rendering.variants == Variants::Sockets {
            filters.push(variants::network_filter().into());
        }
        if options.upstream_proxy.is_some() {
            filters.push(upstream_proxy::tcp_filter().into());
        }
        let more = connection_limits(service.cluster).chain(tunnel::field(service.cluster));
        let log = access_log(&Metadata::Filter, options);
        filters.push(tcp_proxy(&listener_name(service.port), UNDECIDED, log, more).into());
        filters
    }

    /// Renders the chains of a port's TCP services. A captured connection tells where it was meant to go, and so each
    /// service with addresses has only what was meant for them.
    pub(super) fn chains(
        &self,
        port: PortNumber,
        downstreams: &[DownstreamProtocol],
        captured: bool,
    ) -> Vec<Chain> {
        let (table, options) = (self.rendering.table, self.rendering.options);
        let here: Vec<Service<'_>> = services(table)
            .filter(|service| service.port == port && service.vip.is_none())
            .collect();
        let refused = table.refused().filter(|refused| {
            refused.port == port
                && refused.downstream == DownstreamProtocol::Tcp
                && refused.connectable
        });
        let refused: Vec<Refused<'_>> = refused.collect();
        let by_address = captured
            || here.len() + refused.len() > 1
            || downstreams.contains(&DownstreamProtocol::Http);
        let matches = |addresses: &[Address]| {
            let ranges = (by_address && !addresses.is_empty())
                .then(|| addresses.iter().map(range).collect());
            Some(ChainMatch {
                prefix_ranges: ranges,
                ..ChainMatch::beside_tls(downstreams.contains(&DownstreamProtocol::Tls))
            })
        };
        let chain = |(at, service): (usize, &Service<'_>)| Chain {
            name: Some(format!("tcp_{at}")),
            matches: matches(service.addresses),
            filters: self.filters_by_address(service, captured || !service.addresses.is_empty()),
        };
        let closed = |(at, refused): (usize, &Refused<'_>)| Chain {
            name: Some(format!("tcp_{}_{at}", refused.reason)),
            matches: matches(refused.addresses),
            filters: vec![refused_connection(port, refused.reason, options).into()],
        };
        let chains = here.iter().enumerate().map(chain);
        chains
            .chain(refused.iter().enumerate().map(closed))
            .collect()
    }

    /// Renders the filters of a service's chain, where it is `known` or not which address was dialled.
    fn filters_by_address(&self, service: &Service<'_>, known: bool) -> Vec<Filter> {
        if service.by_address && !known {
            let options = self.rendering.options;
            return vec![refused_connection(service.port, Reason::NotRead, options).into()];
        }
        self.filters(service)
    }

    /// Renders the chains of the names of TLS whose connections are divided among several destinations: the filter
    /// chooses, as it does for bytes.
    pub(super) fn divided_tls(&self, port: PortNumber, captured: bool) -> Vec<Chain> {
        let here = divided_tls(self.rendering.table).filter(|service| service.port == port);
        let chain = |(at, service): (usize, Service<'_>)| {
            let name = passthrough::server_name(service.host)?;
            Some(Chain {
                name: Some(format!("tls_divided_{at}")),
                matches: Some(ChainMatch::tls(vec![name])),
                filters: self.filters_by_address(&service, captured),
            })
        };
        here.enumerate().filter_map(chain).collect()
    }

    /// Renders the listeners of the services that have an address of their own.
    pub(super) fn vip_listeners(&self) -> Vec<Listener> {
        let options = self.rendering.options;
        let mut services: Vec<Service<'_>> = services(self.rendering.table)
            .filter(|service| service.vip.is_some())
            .collect();
        services.sort_by_key(|service| (service.port, service.host.to_string()));
        let listener = |service: &Service<'_>| {
            let vip = Vip {
                host: service.host.to_string(),
                port: service.port,
                address: service.vip?,
            };
            let address = json!({"socket_address": {
                "address": vip.address,
                "port_value": options.listening_port(service.port),
            }});
            let log = refused_log(no_chain_reason(false), options);
            let fields = [
                ("address".to_owned(), address),
                ("traffic_direction".to_owned(), json!("OUTBOUND")),
                ("access_log".to_owned(), json!([log])),
            ];
            Some(Listener {
                name: vip.listener_name(),
                fields: Map::from_iter(fields),
                chains: vec![Chain {
                    name: Some("tcp".to_owned()),
                    matches: Some(ChainMatch::default()),
                    filters: self.filters_by_address(service, false),
                }],
            })
        };
        services.iter().filter_map(listener).collect()
    }
}

fn range(address: &Address) -> Value {
    json!({"address_prefix": address.ip, "prefix_len": address.bits()})
}
