//! The application's own TLS, matched by its SNI and never opened.

use std::collections::BTreeMap;

use egress_filter::contract;
use egress_policy::{DownstreamProtocol, HostPattern, PortNumber, Reason, Service};
use serde_json::{Value, json};

use super::access_log::{Metadata, access_log};
use super::chain::{
    Chain, ChainMatch, Filter, connection_limits, listener_name, refused_connection, tcp_proxy,
};
use super::dns::{self, Cached};
use super::message::extension;
use super::rendering::Rendering;
use super::{guard, tunnel, upstream_proxy, variants};

/// What hosts that share a chain have in common: target port, cluster, and the address dialled in its place.
type Alike<'t> = (u16, &'t str, Option<(&'t str, u16)>);

/// Renders the application's own TLS: one chain for all hosts with identical rules apart from the name.
pub(super) fn chains(port: PortNumber, rendering: &Rendering<'_>) -> Vec<Chain> {
    let (table, options) = (rendering.table, rendering.options);
    let mut groups = BTreeMap::<Alike<'_>, Vec<Service<'_>>>::new();
    for service in table.services().filter(|service| {
        service.port == port
            && service.downstream == DownstreamProtocol::Tls
            && service.subset.is_none()
            && service.share.is_none()
    }) {
        let pinned = service
            .connect_to
            .map(|(address, port)| (address, port.get()));
        let key = (service.target.get(), service.cluster.name.as_str(), pinned);
        groups.entry(key).or_default().push(service);
    }
    let mut chains = Vec::new();
    for (at, ((target, cluster, pinned), services)) in groups.into_iter().enumerate() {
        let tunnelled = services.first().map(|service| service.cluster);
        let tunnelled = tunnelled.filter(|cluster| cluster.tunnel.is_some());
        let variant = tunnelled.and_then(|cluster| variants::named(rendering.variants, cluster));
        let cluster = variant.as_deref().unwrap_or(cluster);
        let dynamic = services
            .iter()
            .all(|service| service.cluster.endpoints == egress_policy::Endpoints::OfTheRequest);
        let mut filters = Vec::<Filter>::new();
        let guarded = services
            .iter()
            .any(|service| guard::by_filters(service.cluster, options));
        // They share a cluster, and so its DNS cache.
        let names = services.first().map(|service| Cached::of(service.cluster));
        if options.upstream_proxy.is_some() {
            filters.push(upstream_proxy::network_filter(target, pinned).into());
        } else if let Some(names) = names.filter(|_| dynamic) {
            // Before the forward proxy, which looks up the address that is pinned and not the SNI.
            filters.extend(pinned.map(|(address, port)| pin(address, port).into()));
            let forward = extension(
                "envoy.filters.network.sni_dynamic_forward_proxy",
                "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
                json!({
                    "port_value": target,
                    "dns_cache_config": dns::cache(names, rendering),
                    "save_upstream_address": guarded,
                }),
            );
            filters.push(forward.into());
        }
        if guarded {
            filters.push(guard::network_filter().into());
        }
        let log = access_log(
            &Metadata::Known(&entries(&services, target, cluster)),
            options,
        );
        let mut more = Vec::new();
        if let Some(service) = services.first() {
            more.extend(connection_limits(service.cluster));
            more.extend(tunnel::field(service.cluster));
        }
        if guarded {
            more.extend(guard::connect_later(options));
        }
        filters.push(tcp_proxy(&listener_name(port), cluster, log, more).into());
        let names: Vec<String> = services
            .iter()
            .filter_map(|service| server_name(service.host))
            .collect();
        chains.push(Chain {
            name: Some(format!("tls_{at}")),
            matches: Some(ChainMatch::tls(names)),
            filters,
        });
    }
    let refused = table
        .refused()
        .filter(|refused| refused.port == port && refused.downstream == DownstreamProtocol::Tls);
    let mut by_reason = BTreeMap::<Reason, Vec<String>>::new();
    for refused in refused {
        let names = by_reason.entry(refused.reason).or_default();
        names.extend(server_name(refused.host));
    }
    for (reason, names) in by_reason {
        chains.push(Chain {
            name: Some(format!("tls_{reason}")),
            matches: Some(ChainMatch::tls(names)),
            filters: vec![refused_connection(port, reason, options).into()],
        });
    }
    chains
}

/// Renders a pattern as Envoy's `server_names` take it.
pub(super) fn server_name(host: &HostPattern) -> Option<String> {
    match host {
        HostPattern::Exact(name) => Some(name.as_str().to_owned()),
        HostPattern::Suffix(suffix) if suffix.starts_with('.') => Some(format!("*{suffix}")),
        // The engine refuses these for TLS ports: the listener could not tell them apart.
        HostPattern::Suffix(_) | HostPattern::Any => None,
    }
}

/// Renders a detour to an address, for a chain whose cluster goes where the connection says.
fn pin(address: &str, port: u16) -> Value {
    let state = |key: &str, value: String| json!({"object_key": key, "format_string": {"text_format_source": {"inline_string": value}}});
    extension(
        "envoy.filters.network.set_filter_state",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        json!({"on_new_connection": [
            state(contract::DYNAMIC_HOST_STATE, address.to_owned()),
            state(contract::DYNAMIC_PORT_STATE, port.to_string()),
        ]}),
    )
}

/// Returns what the log says of a connection that is passed through. Names are those of the ClientHello; the transport
/// socket and its mode are those towards the proxy, where a tunnel leads through one.
fn entries(services: &[Service<'_>], target: u16, cluster: &str) -> Vec<(&'static str, String)> {
    let first = services.first().map(|service| service.cluster);
    let socket = first.map_or("-", contract::transport_socket);
    let tunnel = first.and_then(|cluster| cluster.tunnel.as_ref());
    let mut entries = vec![
        ("action", "passthrough".to_owned()),
        ("cluster", cluster.to_owned()),
        ("transport_socket", socket.to_owned()),
        ("sni", "%REQUESTED_SERVER_NAME%".to_owned()),
        (
            "target",
            match tunnel {
                Some(tunnel) => tunnel.authority(),
                None => format!("%REQUESTED_SERVER_NAME%:{target}"),
            },
        ),
    ];
    entries.extend(tunnel.map(|_| ("reason", tunnel::reason())));
    let mode = first.and_then(|cluster| Some(cluster.tls.as_ref()?.mode.as_str().to_owned()));
    entries.extend(mode.map(|mode| ("tls_mode", mode)));
    // A chain that serves one entry alone can name it; one that serves many cannot tell which.
    let one = |name: fn(&Service<'_>) -> Option<String>| {
        let first = services.first().and_then(name)?;
        services
            .iter()
            .all(|service| name(service).as_ref() == Some(&first))
            .then_some(first)
    };
    entries
        .extend(one(|s| Some(s.service_entry?.qualified())).map(|entry| ("service_entry", entry)));
    entries.extend(one(|s| Some(s.rule?.qualified())).map(|rule| ("rule", rule)));
    entries
}
