//! Capture: connections of programs that know nothing of a proxy, redirected here by the kernel.
//!
//! One listener is bound. It finds out where a connection was meant to go, and Envoy hands the connection to the
//! listener of that port. That listener is not bound: it has the wildcard address and the real service port. So each
//! port is read as without capture, and only ports that speak TLS wait for the application's first bytes.
//!
//! The bound listener keeps connections to ports without a rule, and those that came without a redirect. The latter
//! have the listener itself as their destination. They are closed, so that nothing goes round in circles.
//!
//! With `ALLOW_ANY` the rest is passed on to where it was meant to go, but for the addresses of [`guard`]. They are
//! matched as ranges, before anything is dialled. Envoy looks only at the chains with the narrowest range for an
//! address, so the chains of the rules name all ranges.
//!
//! Source: envoyproxy/envoy `source/common/network/filter_chain_manager_impl.cc` and
//! `source/common/listener_manager/connection_handler_impl.cc`, `getBalancedHandlerByAddress`.

use std::net::IpAddr;

use egress_policy::{OutboundMode, PortNumber};
use serde_json::{Map, Value, json};

use super::access_log::{Metadata, access_log};
use super::chain::{Chain, ChainMatch, Listener, UNDECIDED, tcp_proxy};
use super::message::{extension, set};
use super::options::{Capture, Options};
use super::rendering::Rendering;
use super::{cluster, guard};

/// The name of the bound listener, and what `ready` calls it.
pub const NAME: &str = "capture";

/// What the names of the listeners begin with that captured connections are handed to.
pub const SERVICE_PREFIX: &str = "captured_";

/// The cluster that leads to where a connection was meant to go.
const ORIGINAL: &str = "egress|original_destination";

/// Renders the bound listener, if there is to be one.
pub(super) fn listener(rendering: &Rendering<'_>) -> Option<Listener> {
    let options = rendering.options;
    let capture = options.capture.as_ref()?;
    let mut chains = vec![Chain {
        matches: Some(ChainMatch {
            destination_port: Some(capture.port),
            ..ChainMatch::default()
        }),
        ..refusal("itself", "no_host", options)
    }];
    match rendering.table.outbound() {
        OutboundMode::RegistryOnly => chains.push(refusal("unknown", "unknown_port", options)),
        OutboundMode::AllowAny => chains.extend(passed_on("unknown_port", options)),
    }
    let mut fields = addresses(&capture.addresses, capture.port);
    set(&mut fields, "traffic_direction", json!("OUTBOUND"));
    set(&mut fields, "use_original_dst", json!(true));
    let original = extension(
        "envoy.filters.listener.original_dst",
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        json!({}),
    );
    set(&mut fields, "listener_filters", json!([original]));
    Some(Listener {
        name: NAME.to_owned(),
        fields,
        chains,
    })
}

/// The name of a service port's listener that captured connections are handed to.
pub(super) fn listener_name(port: PortNumber) -> String {
    format!("{SERVICE_PREFIX}{port}")
}

/// Renders the place of such a listener.
pub(super) fn place(port: PortNumber, capture: &Capture) -> Map<String, Value> {
    let mut fields = addresses(&capture.wildcards(), port);
    set(&mut fields, "bind_to_port", json!(false));
    fields
}

/// Adds to the chains of a captured service port what becomes of connections that none of them takes.
pub(super) fn add_rest(chains: &mut Vec<Chain>, rendering: &Rendering<'_>) {
    let takes_all = Some(ChainMatch::default());
    let all_taken = chains.iter().any(|chain| chain.matches == takes_all);
    if rendering.table.outbound() == OutboundMode::RegistryOnly || all_taken {
        return;
    }
    for matches in chains.iter_mut().filter_map(|it| it.matches.as_mut()) {
        matches.prefix_ranges.get_or_insert_with(guard::everywhere);
    }
    chains.extend(passed_on("unknown_host", rendering.options));
}

/// Renders the cluster that the rest goes to, if anything does.
pub(super) fn cluster(rendering: &Rendering<'_>) -> Option<Value> {
    rendering.options.capture.as_ref()?;
    (rendering.table.outbound() == OutboundMode::AllowAny)
        .then(|| cluster::original_destination(ORIGINAL, rendering.options))
}

fn addresses(all: &[IpAddr], port: PortNumber) -> Map<String, Value> {
    let mut all = all
        .iter()
        .map(|address| json!({"socket_address": {"address": address, "port_value": port.get()}}));
    let mut fields = Map::new();
    fields.insert("address".to_owned(), json!(all.next()));
    let more: Vec<Value> = all.map(|address| json!({"address": address})).collect();
    if !more.is_empty() {
        fields.insert("additional_addresses".to_owned(), json!(more));
    }
    fields
}

/// Renders two chains: one for the addresses that nobody is led to, one for all others.
fn passed_on(reason: &str, options: &Options) -> [Chain; 2] {
    let ranged = |chain: Chain, ranges: Vec<Value>| Chain {
        matches: Some(ChainMatch {
            prefix_ranges: Some(ranges),
            ..ChainMatch::default()
        }),
        ..chain
    };
    let entries = [
        ("action", "forward".to_owned()),
        ("reason", reason.to_owned()),
        ("cluster", ORIGINAL.to_owned()),
        (
            "transport_socket",
            "envoy.transport_sockets.raw_buffer".to_owned(),
        ),
        ("sni", "%REQUESTED_SERVER_NAME%".to_owned()),
        ("target", "%DOWNSTREAM_LOCAL_ADDRESS%".to_owned()),
    ];
    [
        ranged(refusal("guarded", reason, options), guard::ranges()),
        ranged(
            chain("original", ORIGINAL, &entries, options),
            guard::everything(),
        ),
    ]
}

/// Renders a chain that closes what it is given, and says so.
fn refusal(name: &str, reason: &str, options: &Options) -> Chain {
    let entries = [
        ("action", "reject".to_owned()),
        ("reason", reason.to_owned()),
        ("target", "%DOWNSTREAM_LOCAL_ADDRESS%".to_owned()),
    ];
    chain(name, UNDECIDED, &entries, options)
}

fn chain(name: &str, cluster: &str, entries: &[(&str, String)], options: &Options) -> Chain {
    let log = access_log(&Metadata::Known(entries), options);
    Chain {
        name: Some(name.to_owned()),
        matches: None,
        filters: vec![tcp_proxy(NAME, cluster, log, []).into()],
    }
}
