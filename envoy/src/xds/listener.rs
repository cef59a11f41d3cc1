//! Listeners: one for each service port, requests to the filter, the application's TLS by its SNI.

use egress_filter::Variants;
use egress_policy::{Arrival, PolicyTable, PortNumber};
use serde_json::{Map, Value, json};

use super::chain::{listener_name, no_chain_reason, refused_log};
use super::http::connection_manager;
use super::message::extension;
use super::options::{Capture, Options};
use super::service_ports::service_ports;
use super::{capture, forward_proxy, passthrough, server_name, tcp, upstream_proxy};

/// Renders all listeners, in the order of their ports.
pub(super) fn listeners(
    table: &PolicyTable,
    resources: &[Value],
    variants: Variants,
    options: &Options,
) -> Vec<Value> {
    // Once for all ports: it reads the whole table.
    let digest = table.digest().to_string();
    let plugins = tcp::Plugins::new(table, &digest, resources, variants, options);
    let forward_proxy = forward_proxy::listener(table, &digest, resources, variants, options);
    let mut listeners = Vec::new();
    for (port, arrivals) in service_ports(table) {
        let manager = arrivals
            .contains(&Arrival::Http)
            .then(|| connection_manager(Some(port), table, &digest, resources, variants, options));
        let service = Port {
            port,
            arrivals,
            manager,
            variants,
        };
        if options.listens_on(port) {
            listeners.push(service.listener(None, table, &plugins, options));
        }
        if let Some(capture) = &options.capture {
            listeners.push(service.listener(Some(capture), table, &plugins, options));
        }
    }
    listeners.extend(capture::listener(table, options));
    listeners.extend(forward_proxy);
    listeners.extend(upstream_proxy::listener(options));
    listeners.extend(tcp::vip_listeners(&plugins));
    listeners
}

/// A service port, and what its listeners have in common.
struct Port {
    port: PortNumber,
    arrivals: Vec<Arrival>,
    /// What reads requests, where any come.
    manager: Option<Value>,
    variants: Variants,
}

impl Port {
    /// Renders a listener: the one that applications connect to, or the one that captured connections are handed to.
    fn listener(
        &self,
        capture: Option<&Capture>,
        table: &PolicyTable,
        plugins: &tcp::Plugins<'_>,
        options: &Options,
    ) -> Value {
        let (port, arrivals) = (self.port, &self.arrivals);
        let has_tls = arrivals.contains(&Arrival::Tls);
        let mut chains = if has_tls {
            passthrough::chains(port, table, self.variants, options)
        } else {
            Vec::new()
        };
        if let Some(manager) = &self.manager {
            let matches = if has_tls {
                json!({"transport_protocol": "raw_buffer"})
            } else {
                json!({})
            };
            chains
                .push(json!({"name": "http", "filter_chain_match": matches, "filters": [manager]}));
        }
        if arrivals.contains(&Arrival::Tcp) {
            chains.extend(tcp::chains(port, arrivals, capture.is_some(), plugins));
        }
        // Chains that match addresses too have one way of matching.
        let by_name = capture.is_none() && !arrivals.contains(&Arrival::Tcp);
        let matcher = by_name.then(|| server_name::matcher(&mut chains)).flatten();
        let mut fields = match capture {
            Some(capture) => {
                capture::add_rest(&mut chains, table, options);
                capture::place(port, capture)
            }
            None => place(port, options),
        };
        fields.extend([
            ("traffic_direction".to_owned(), json!("OUTBOUND")),
            ("filter_chains".to_owned(), json!(chains)),
            // Who sends what no chain takes is closed; this is where that is written down.
            (
                "access_log".to_owned(),
                json!([refused_log(
                    no_chain_reason(capture.is_some() && !has_tls),
                    options
                )]),
            ),
        ]);
        fields.extend(matcher.map(|matcher| ("filter_chain_matcher".to_owned(), matcher)));
        if has_tls {
            let inspector = extension(
                "envoy.filters.listener.tls_inspector",
                "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
                json!({}),
            );
            fields.insert("listener_filters".to_owned(), json!([inspector]));
        }
        Value::Object(fields)
    }
}

/// Renders the name and the place of the listener that applications connect to.
fn place(port: PortNumber, options: &Options) -> Map<String, Value> {
    let address = json!({"socket_address": {
        "address": options.listen,
        "port_value": options.listening_port(port),
    }});
    Map::from_iter([
        ("name".to_owned(), json!(listener_name(port))),
        ("address".to_owned(), address),
    ])
}
