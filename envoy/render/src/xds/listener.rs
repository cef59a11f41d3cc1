//! Listeners: one for each service port, requests to the filter, the application's TLS by its SNI.

use egress_policy::{DownstreamProtocol, PortNumber};
use serde_json::{Map, Value, json};

use super::chain::{
    Chain, ChainMatch, Filter, HttpManager, Listener, listener_name, no_chain_reason, refused_log,
};
use super::http::{self, HttpSettings};
use super::message::{extension, set, set_some};
use super::options::{Capture, Options};
use super::rendering::Rendering;
use super::service_ports::service_ports;
use super::{capture, forward_proxy, passthrough, server_name, tcp, upstream_proxy};

/// Renders all listeners, in the order of their ports.
pub(super) fn listeners(rendering: &Rendering<'_>) -> Vec<Listener> {
    let options = rendering.options;
    let services = tcp::Services::new(rendering);
    let forward_proxy = forward_proxy::listeners(rendering);
    let mut listeners = Vec::new();
    for (port, downstreams) in service_ports(rendering.table) {
        let manager = downstreams
            .contains(&DownstreamProtocol::Http)
            .then(|| http::connection_manager(HttpSettings::of_port(port), rendering));
        let service = Port {
            port,
            downstreams,
            manager,
        };
        if options.listens_on(port) {
            listeners.push(service.listener(None, &services, rendering));
        }
        if let Some(capture) = &options.capture {
            listeners.push(service.listener(Some(capture), &services, rendering));
        }
    }
    listeners.extend(capture::listener(rendering));
    listeners.extend(forward_proxy);
    listeners.extend(upstream_proxy::listener(rendering));
    listeners.extend(services.vip_listeners());
    listeners
}

/// A service port, and what its listeners have in common.
struct Port {
    port: PortNumber,
    downstreams: Vec<DownstreamProtocol>,
    /// What reads requests, where any come.
    manager: Option<HttpManager>,
}

impl Port {
    /// Renders a listener: the one that applications connect to, or the one that captured connections are handed to.
    fn listener(
        &self,
        capture: Option<&Capture>,
        services: &tcp::Services<'_>,
        rendering: &Rendering<'_>,
    ) -> Listener {
        let (port, downstreams, options) = (self.port, &self.downstreams, rendering.options);
        let has_tls = downstreams.contains(&DownstreamProtocol::Tls);
        let mut chains = if has_tls {
            let mut chains = passthrough::chains(port, rendering);
            chains.extend(services.divided_tls(port, capture.is_some()));
            chains
        } else {
            Vec::new()
        };
        if let Some(manager) = &self.manager {
            chains.push(Chain {
                name: Some("http".to_owned()),
                matches: Some(ChainMatch::beside_tls(has_tls)),
                filters: vec![Filter::Http(manager.clone())],
            });
        }
        if downstreams.contains(&DownstreamProtocol::Tcp) {
            chains.extend(services.chains(port, downstreams, capture.is_some()));
        }
        // Chains that match addresses too have one way of matching.
        let by_name = capture.is_none() && !downstreams.contains(&DownstreamProtocol::Tcp);
        let matcher = by_name.then(|| server_name::matcher(&mut chains)).flatten();
        let (name, mut fields) = match capture {
            Some(capture) => {
                capture::add_rest(&mut chains, rendering);
                (capture::listener_name(port), capture::place(port, capture))
            }
            None => (listener_name(port), place(port, options)),
        };
        set(&mut fields, "traffic_direction", json!("OUTBOUND"));
        // Who sends what no chain takes is closed; this is where that is written down.
        let log = refused_log(no_chain_reason(capture.is_some() && !has_tls), options);
        set(&mut fields, "access_log", json!([log]));
        set_some(&mut fields, "filter_chain_matcher", matcher);
        if has_tls {
            let inspector = extension(
                "envoy.filters.listener.tls_inspector",
                "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
                json!({}),
            );
            set(&mut fields, "listener_filters", json!([inspector]));
        }
        Listener {
            name,
            fields,
            chains,
        }
    }
}

/// Renders the place of the listener that applications connect to.
fn place(port: PortNumber, options: &Options) -> Map<String, Value> {
    let address = json!({"socket_address": {
        "address": options.listen,
        "port_value": options.listening_port(port),
    }});
    Map::from_iter([("address".to_owned(), address)])
}
