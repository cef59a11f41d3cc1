//! The bootstrap as a whole.

use std::collections::BTreeSet;

use egress_policy::{OutboundMode, PolicyTable, Trust};
use serde_json::{Value, json};

use super::{Admin, Options, cluster, extension, listener};

/// Renders the bootstrap of an Envoy that does what `table` says. `resources` are the documents it was
/// compiled from; the filter is given the same.
pub fn bootstrap(table: &PolicyTable, resources: &[Value], options: &Options) -> Value {
    let admin = match &options.admin {
        Admin::Pipe(path) => json!({"pipe": {"path": path, "mode": 0o600}}),
        Admin::Tcp(address, port) => {
            json!({"socket_address": {"address": address, "port_value": port}})
        }
    };
    let trusts: BTreeSet<&Trust> = table
        .clusters()
        .filter_map(|cluster| cluster.tls.as_ref())
        .map(|tls| &tls.trust)
        .collect();
    let secrets: Vec<Value> = trusts
        .into_iter()
        .filter_map(|trust| secret(trust, options))
        .collect();
    let mut clusters: Vec<Value> = table
        .clusters()
        .map(|c| cluster::cluster(c, table, options))
        .collect();
    if table.outbound() == OutboundMode::AllowAny {
        clusters.push(cluster::passthrough(table, options));
    }
    json!({
        "node": {"id": "egress", "cluster": "egress"},
        "admin": {"address": admin},
        // Envoy warns of a missing limit at every start; files run out long before this one.
        "overload_manager": {"resource_monitors": [extension(
            "envoy.resource_monitors.global_downstream_max_connections",
            "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
            json!({"max_active_downstream_connections": 1_000_000}),
        )]},
        "static_resources": {
            "listeners": listener::listeners(table, resources, options),
            "clusters": clusters,
            "secrets": secrets,
        },
    })
}

/// Renders a trust store, once for all clusters that go by it.
fn secret(trust: &Trust, options: &Options) -> Option<Value> {
    let file = match trust {
        Trust::System => &options.trust_store,
        Trust::File(path) => path,
        Trust::InsecureSkipVerify => return None,
    };
    Some(json!({
        "name": cluster::trust_name(trust),
        "validation_context": {"trusted_ca": {"filename": file}},
    }))
}
