//! Clusters for more than one workload. If rules select workloads by labels that only Envoy's node knows, all
//! candidates are rendered, and the filter chooses among them when it is configured.

use std::collections::{BTreeMap, BTreeSet};

use egress_filter::{Variants, contract};
use egress_policy::{Cluster, DownstreamProtocol, PolicyTable};
use serde_json::{Value, json};

use super::message::extension;
use super::names::{HostCheck, Names};
use super::options::{Options, Version};

/// The version from which a cluster can choose its transport socket by filter state.
const SOCKET_BY_STATE: Version = Version {
    major: 1,
    minor: 37,
};

/// The clusters that listeners lead to.
pub(super) struct Reached<'t> {
    /// How those of one name are told apart.
    pub(super) kind: Variants,
    /// They, those of one name together.
    pub(super) groups: Vec<Vec<&'t Cluster>>,
    /// The names of those that the application's own TLS is led to, by listeners and not by the filter. Where no
    /// tunnel is in between, it makes no difference to a connection which rules one of them was made for.
    passed_through: BTreeSet<&'t str>,
}

impl Reached<'_> {
    /// Returns what Envoy calls a cluster where those of one name are clusters each: the filter names all of its own.
    pub(super) fn name(&self, cluster: &Cluster) -> Option<String> {
        let passed_through = self.passed_through.contains(cluster.name.as_str());
        let left = passed_through && cluster.tunnel.is_none();
        variant(cluster).filter(|_| !left)
    }
}

/// Returns what Envoy calls a host's own cluster that requests are led to, where those of one name are clusters each.
pub(super) fn variant(cluster: &Cluster) -> Option<String> {
    cluster.own.as_ref().map(|_| contract::variant(cluster))
}

/// Returns the same where `kind` makes them clusters each.
pub(super) fn named(kind: Variants, cluster: &Cluster) -> Option<String> {
    match kind {
        Variants::Clusters => variant(cluster),
        Variants::None | Variants::Sockets => None,
    }
}

/// Returns the tables by which requests may be decided: that for the labels that are known, and those for all others.
pub(super) fn tables<'t>(
    table: &'t PolicyTable,
    options: &'t Options,
) -> impl Iterator<Item = &'t PolicyTable> {
    std::iter::once(table).chain(&options.workloads)
}

/// Collects the clusters that are led to: all but those of ports that nothing listens on.
pub(super) fn reached<'t>(table: &'t PolicyTable, options: &'t Options) -> Reached<'t> {
    let mut groups = BTreeMap::<&str, Vec<&Cluster>>::new();
    let passed_through = || {
        table
            .services()
            .filter(|service| service.downstream == DownstreamProtocol::Tls)
    };
    let decided = |table: &'t PolicyTable| {
        table.services().filter(|service| {
            service.downstream == DownstreamProtocol::Http
                || (service.connectable && service.subset.is_none())
        })
    };
    let services = passed_through().chain(tables(table, options).flat_map(decided));
    let branches = tables(table, options).flat_map(PolicyTable::branch_clusters);
    let clusters = services.map(|service| service.cluster);
    for cluster in clusters.chain(branches.map(|(_, _, cluster)| cluster)) {
        let group = groups.entry(cluster.name.as_str()).or_default();
        if !group.contains(&cluster) {
            group.push(cluster);
        }
    }
    let groups: Vec<Vec<&Cluster>> = groups.into_values().collect();
    let kind = if options.by_content {
        Variants::Clusters
    } else if groups.iter().all(|group| group.len() == 1) {
        Variants::None
    } else if options.version >= SOCKET_BY_STATE && groups.iter().all(|group| differ_in_tls(group))
    {
        Variants::Sockets
    } else {
        Variants::Clusters
    };
    let passed_through = passed_through()
        .map(|service| service.cluster.name.as_str())
        .collect();
    Reached {
        kind,
        groups,
        passed_through,
    }
}

/// Whether clusters of one name differ only in the transport socket.
fn differ_in_tls(group: &[&Cluster]) -> bool {
    let rest = |cluster: &Cluster| {
        let tls = cluster.tls.as_ref();
        // The names that follow the request are the cluster's to say.
        let following = tls.map(|tls| {
            let names = Names::of(cluster, tls);
            (names.sni.is_none(), names.host == HostCheck::BesideOthers)
        });
        let rest = Cluster {
            tls: None,
            ..cluster.clone()
        };
        (following, rest)
    };
    let [first, others @ ..] = group else {
        return true;
    };
    let first = rest(first);
    others
        .iter()
        .all(|other| first.0.is_some() && rest(other) == first)
}

/// Renders how a cluster finds the transport socket that the filter named. If it finds none, Envoy uses the cluster's
/// own socket, which must be [`closed`].
pub(super) fn matcher(sockets: &[(String, Value)]) -> Value {
    let action = |name: &str| {
        extension(
            "envoy.matching.action.transport_socket.name",
            "envoy.extensions.matching.common_inputs.transport_socket.v3.TransportSocketNameAction",
            json!({"name": name}),
        )
    };
    let map: serde_json::Map<String, Value> = sockets
        .iter()
        .map(|(name, _)| (name.clone(), json!({"action": action(name)})))
        .collect();
    let input = extension(
        "envoy.matching.inputs.transport_socket_filter_state",
        "envoy.extensions.matching.common_inputs.transport_socket.v3.FilterStateInput",
        json!({"key": contract::UPSTREAM_SOCKET_STATE}),
    );
    json!({"matcher_tree": {"input": input, "exact_match_map": {"map": map}}})
}

/// Renders a transport socket that connects to nobody: no certificate has the name that it asks for.
pub(super) fn closed(options: &Options) -> Value {
    let context = json!({
        "trusted_ca": {"filename": options.trust_store},
        "match_typed_subject_alt_names": [
            {"san_type": "DNS", "matcher": {"exact": "no-transport-socket-was-chosen.invalid"}},
        ],
    });
    extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({"common_tls_context": {"validation_context": context}}),
    )
}

/// Renders the network filter that does what [`http_filter`] does.
pub(super) fn network_filter() -> Value {
    extension(
        "envoy.filters.network.set_filter_state",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        json!({"on_new_connection": [shared_socket()]}),
    )
}

/// Renders the HTTP filter that lets upstream connections see which transport socket our filter named.
pub(super) fn http_filter() -> Value {
    extension(
        "envoy.filters.http.set_filter_state",
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        json!({"on_request_headers": [shared_socket()]}),
    )
}

fn shared_socket() -> Value {
    json!({
        "object_key": contract::UPSTREAM_SOCKET_STATE,
        "factory_key": "envoy.string",
        "format_string": {"text_format_source": {"inline_string": format!("%FILTER_STATE({}:PLAIN)%", contract::SOCKET_STATE)}},
        "shared_with_upstream": "ONCE",
    })
}
