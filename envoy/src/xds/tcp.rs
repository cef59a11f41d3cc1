//! TCP services: a chain for each, or a listener for each that has a loopback address of its own.
//!
//! The filter names the cluster, and `tcp_proxy` knows none of its own. Nothing waits for the client's bytes
//! unless another service of the port speaks TLS: a server that speaks first is heard at once.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use egress_filter::{FilterKind, PluginConfig, Variants, contract};
use egress_policy::{Address, Arrival, PolicyTable, PortNumber, Refused, Service};
use serde_json::{Value, json};

use super::access_log::{Metadata, access_log};
use super::chain::{
    UNDECIDED, limit, listener_name, no_chain_reason, refused_connection, refused_log,
};
use super::message::extension;
use super::options::Options;
use super::plugin::{plugin, plugin_config};
use super::{tunnel, upstream_proxy, variants};

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
    table
        .services()
        .filter(|service| service.connectable && service.subset.is_none())
}

/// The filter for each port, written once: all listeners of a port share one configuration, and Envoy one plugin.
pub(super) struct Plugins<'p> {
    table: &'p PolicyTable,
    variants: Variants,
    options: &'p Options,
    by_port: BTreeMap<PortNumber, Value>,
}

impl<'p> Plugins<'p> {
    pub(super) fn new(
        table: &'p PolicyTable,
        digest: &str,
        resources: &[Value],
        variants: Variants,
        options: &'p Options,
    ) -> Self {
        let filter = |port| {
            let kind = FilterKind::Network;
            let plugin = PluginConfig {
                upstream_proxy: options.upstream_proxy.is_some(),
                ..plugin(
                    Some(port),
                    kind,
                    table,
                    digest,
                    resources,
                    variants,
                    options,
                )
            };
            extension(
                contract::FILTER_NAME,
                "envoy.extensions.filters.network.wasm.v3.Wasm",
                plugin_config(&plugin, options),
            )
        };
        let mut by_port = BTreeMap::new();
        for service in services(table) {
            by_port
                .entry(service.port)
                .or_insert_with(|| filter(service.port));
        }
        Plugins {
            table,
            variants,
            options,
            by_port,
        }
    }

    /// Renders the filters of a service's chain.
    fn filters(&self, service: &Service<'_>, stat_prefix: &str) -> Vec<Value> {
        let mut filters: Vec<Value> = self
            .by_port
            .get(&service.port)
            .cloned()
            .into_iter()
            .collect();
        if self.variants == Variants::Sockets {
            filters.push(variants::network_filter());
        }
        if self.options.upstream_proxy.is_some() {
            filters.push(upstream_proxy::tcp_filter());
        }
        let mut proxy = json!({
            "stat_prefix": stat_prefix,
            "cluster": UNDECIDED,
            "access_log": [access_log(&Metadata::Filter, self.options)],
        });
        limit(&mut proxy, service.cluster);
        tunnel::through(&mut proxy, service.cluster);
        filters.push(extension(
            "envoy.filters.network.tcp_proxy",
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            proxy,
        ));
        filters
    }
}

/// Renders the chains of a port's TCP services. A captured connection tells where it was meant to go, and so each
/// service with addresses has only what was meant for them.
pub(super) fn chains(
    port: PortNumber,
    arrivals: &[Arrival],
    captured: bool,
    plugins: &Plugins<'_>,
) -> Vec<Value> {
    let here: Vec<Service<'_>> = services(plugins.table)
        .filter(|service| service.port == port && service.vip.is_none())
        .collect();
    let refused = plugins.table.refused().filter(|refused| {
        refused.port == port && refused.arrival == Arrival::Tcp && refused.connectable
    });
    let refused: Vec<Refused<'_>> = refused.collect();
    let by_address =
        captured || here.len() + refused.len() > 1 || arrivals.contains(&Arrival::Http);
    let matches = |addresses: &[Address]| {
        let mut matches = serde_json::Map::new();
        if by_address && !addresses.is_empty() {
            let ranges: Vec<Value> = addresses.iter().map(range).collect();
            matches.insert("prefix_ranges".to_owned(), json!(ranges));
        }
        if arrivals.contains(&Arrival::Tls) {
            matches.insert("transport_protocol".to_owned(), json!("raw_buffer"));
        }
        matches
    };
    let chain = |(at, service): (usize, &Service<'_>)| {
        json!({
            "name": format!("tcp_{at}"),
            "filter_chain_match": matches(service.addresses),
            "filters": plugins.filters(service, &listener_name(port)),
        })
    };
    let closed = |(at, refused): (usize, &Refused<'_>)| {
        json!({
            "name": format!("tcp_{}_{at}", refused.reason),
            "filter_chain_match": matches(refused.addresses),
            "filters": [refused_connection(port, refused.reason, plugins.options)],
        })
    };
    let chains = here.iter().enumerate().map(chain);
    chains
        .chain(refused.iter().enumerate().map(closed))
        .collect()
}

fn range(address: &Address) -> Value {
    json!({"address_prefix": address.ip, "prefix_len": address.bits()})
}

/// Renders the listeners of the services that have an address of their own.
pub(super) fn vip_listeners(plugins: &Plugins<'_>) -> Vec<Value> {
    let options = plugins.options;
    let mut services: Vec<Service<'_>> = services(plugins.table)
        .filter(|service| service.vip.is_some())
        .collect();
    services.sort_by_key(|service| (service.port, service.host.to_string()));
    let listener = |service: &Service<'_>| {
        let vip = Vip {
            host: service.host.to_string(),
            port: service.port,
            address: service.vip?,
        };
        let filters = plugins.filters(service, &listener_name(service.port));
        Some(json!({
            "name": vip.listener_name(),
            "address": {"socket_address": {
                "address": vip.address,
                "port_value": options.listening_port(service.port),
            }},
            "traffic_direction": "OUTBOUND",
            "filter_chains": [{"name": "tcp", "filter_chain_match": {}, "filters": filters}],
            "access_log": [refused_log(no_chain_reason(false), options)],
        }))
    };
    services.iter().filter_map(listener).collect()
}
