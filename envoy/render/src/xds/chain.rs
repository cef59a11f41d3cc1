//! Listeners and their filter chains while our filter in them is still a value, and what several of them share.

use std::sync::Arc;

use egress_policy::{Cluster, PortNumber, Reason};
use serde_json::{Map, Value, json};

use super::access_log::{Metadata, access_log, access_log_of};
use super::message::{duration, extension, set, set_some};
use super::options::Options;
use super::plugin::Plugin;

/// What `tcp_proxy` leads to when the filter has named nothing: no such cluster, so the connection is closed.
pub(super) const UNDECIDED: &str = "egress|undecided";

/// How often a `tcp_proxy` tries to connect.
const CONNECT_ATTEMPTS: u32 = 3;

/// How our filter is written.
pub(super) type WritePlugin<'w> = dyn FnMut(Arc<Plugin>) -> Value + 'w;

/// A listener.
#[derive(Clone)]
pub(super) struct Listener {
    pub(super) name: String,
    /// All of it but its name and its chains.
    pub(super) fields: Map<String, Value>,
    pub(super) chains: Vec<Chain>,
}

impl Listener {
    /// Writes the listener; `plugin` is asked for each place of our filter, in the order of chains and filters.
    pub(super) fn written(self, plugin: &mut WritePlugin<'_>) -> Value {
        let mut fields = self.fields;
        let chains = self.chains.into_iter();
        let chains: Vec<Value> = chains.map(|chain| chain.written(plugin)).collect();
        set(&mut fields, "name", json!(self.name));
        set(&mut fields, "filter_chains", Value::Array(chains));
        Value::Object(fields)
    }
}

/// A filter chain.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chain {
    pub(super) name: Option<String>,
    /// Which connections it takes, where it says so.
    pub(super) matches: Option<ChainMatch>,
    pub(super) filters: Vec<Filter>,
}

impl Chain {
    fn written(self, plugin: &mut WritePlugin<'_>) -> Value {
        let mut fields = Map::new();
        set_some(&mut fields, "name", self.name);
        let matches = self.matches.as_ref().map(ChainMatch::written);
        set_some(&mut fields, "filter_chain_match", matches);
        let filters = self.filters.into_iter();
        let filters: Vec<Value> = filters.map(|filter| filter.written(plugin)).collect();
        set(&mut fields, "filters", Value::Array(filters));
        Value::Object(fields)
    }
}

/// Which connections a chain takes: those that have all of this.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct ChainMatch {
    pub(super) destination_port: Option<PortNumber>,
    pub(super) prefix_ranges: Option<Vec<Value>>,
    pub(super) server_names: Option<Vec<String>>,
    pub(super) transport_protocol: Option<&'static str>,
}

impl ChainMatch {
    /// Takes connections with TLS for these names.
    pub(super) fn tls(server_names: Vec<String>) -> Self {
        ChainMatch {
            server_names: Some(server_names),
            transport_protocol: Some("tls"),
            ..ChainMatch::default()
        }
    }

    /// Takes connections without TLS, where `has_tls` says that others have it, or all.
    pub(super) fn beside_tls(has_tls: bool) -> Self {
        ChainMatch {
            transport_protocol: has_tls.then_some("raw_buffer"),
            ..ChainMatch::default()
        }
    }

    pub(super) fn written(&self) -> Value {
        let mut fields = Map::new();
        let port = self.destination_port.map(PortNumber::get);
        set_some(&mut fields, "destination_port", port);
        set_some(&mut fields, "prefix_ranges", self.prefix_ranges.clone());
        set_some(&mut fields, "server_names", self.server_names.clone());
        set_some(&mut fields, "transport_protocol", self.transport_protocol);
        Value::Object(fields)
    }
}

/// A network filter.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Filter {
    /// One of Envoy's own.
    Envoys(Value),
    /// Ours.
    Plugin(Arc<Plugin>),
    /// The HTTP connection manager, which has ours.
    Http(HttpManager),
}

impl Filter {
    fn written(self, plugin: &mut WritePlugin<'_>) -> Value {
        match self {
            Filter::Envoys(filter) => filter,
            Filter::Plugin(ours) => plugin(ours),
            Filter::Http(manager) => manager.written(plugin),
        }
    }
}

impl From<Value> for Filter {
    fn from(filter: Value) -> Self {
        Filter::Envoys(filter)
    }
}

/// An HTTP connection manager.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HttpManager {
    /// All of it but its filters.
    pub(super) fields: Map<String, Value>,
    /// The first of its filters.
    pub(super) plugin: Arc<Plugin>,
    /// The other filters.
    pub(super) filters: Vec<Value>,
}

impl HttpManager {
    fn written(self, plugin: &mut WritePlugin<'_>) -> Value {
        let mut fields = self.fields;
        let mut filters = vec![plugin(self.plugin)];
        filters.extend(self.filters);
        set(&mut fields, "http_filters", Value::Array(filters));
        extension(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            Value::Object(fields),
        )
    }
}

/// The name of a service port's listener.
pub(super) fn listener_name(port: PortNumber) -> String {
    format!("outbound_{port}")
}

/// Returns why no chain took a connection: it has an SNI that nobody has, or none at all; or it has an address that
/// nobody has.
pub(super) fn no_chain_reason(by_address: bool) -> &'static str {
    if by_address {
        "unknown_host"
    } else {
        "%CEL(connection.requested_server_name == '' ? 'no_host' : 'unknown_host')%"
    }
}

/// Renders the log of connections that no chain took.
pub(super) fn refused_log(reason: &str, options: &Options) -> Value {
    let entries = [
        ("action", "reject".to_owned()),
        ("reason", reason.to_owned()),
        ("authority", "%REQUESTED_SERVER_NAME%".to_owned()),
    ];
    access_log_of(&["NR"], &Metadata::Known(&entries), options)
}

/// Renders what closes a connection to a host that the table refuses, and writes down why.
pub(super) fn refused_connection(port: PortNumber, reason: Reason, options: &Options) -> Value {
    let entries = [
        ("action", "reject".to_owned()),
        ("reason", reason.to_string()),
        ("authority", "%REQUESTED_SERVER_NAME%".to_owned()),
    ];
    let log = access_log(&Metadata::Known(&entries), options);
    tcp_proxy(&listener_name(port), UNDECIDED, log, [])
}

/// Renders a `tcp_proxy`, with more fields of it.
pub(super) fn tcp_proxy(
    stat_prefix: &str,
    cluster: &str,
    log: Value,
    more: impl IntoIterator<Item = (String, Value)>,
) -> Value {
    let mut fields = Map::from_iter(more);
    set(&mut fields, "stat_prefix", json!(stat_prefix));
    set(&mut fields, "cluster", json!(cluster));
    set(&mut fields, "access_log", json!([log]));
    // Nothing was sent where no connection was made, so another address may be tried.
    set(&mut fields, "max_connect_attempts", json!(CONNECT_ATTEMPTS));
    extension(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        Value::Object(fields),
    )
}

/// Renders for a `tcp_proxy` how long its connections may be idle, and live.
pub(super) fn connection_limits(cluster: &Cluster) -> impl Iterator<Item = (String, Value)> {
    // Zero is never, for Envoy as for Istio.
    let pool = cluster.connection_pool.as_deref().into_iter();
    let limits = pool.flat_map(|pool| {
        [
            ("idle_timeout", pool.tcp.idle_timeout),
            (
                "max_downstream_connection_duration",
                pool.tcp.max_connection_duration,
            ),
        ]
    });
    limits.filter_map(|(name, time)| Some((name.to_owned(), json!(duration(time?)))))
}
