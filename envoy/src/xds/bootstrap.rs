//! The bootstrap as a whole.

use egress_filter::Variants;
use egress_policy::{OutboundMode, PolicyTable};
use serde_json::{Value, json};

use super::{Admin, Options, cluster, extension, listener, secrets, variants};

/// Renders the bootstrap of an Envoy that does what `table` says. `resources` are the documents it was
/// compiled from; the filter is given the same.
pub fn bootstrap(table: &PolicyTable, resources: &[Value], options: &Options) -> Value {
    let admin = match &options.admin {
        Admin::Pipe(path) => json!({"pipe": {"path": path, "mode": 0o600}}),
        Admin::Tcp(address, port) => {
            json!({"socket_address": {"address": address, "port_value": port}})
        }
    };
    let reached = variants::reached(table, options);
    let all = || reached.groups.iter().flatten();
    let tls = || all().filter_map(|cluster| cluster.tls.as_ref());
    let statics = secrets::statics(tls(), options);
    let mut clusters: Vec<Value> = match reached.kind {
        Variants::Clusters => all()
            .map(|it| cluster::cluster(&[it], variants::name(it, table), table, options))
            .collect(),
        Variants::None | Variants::Sockets => reached
            .groups
            .iter()
            .map(|group| cluster::cluster(group, None, table, options))
            .collect(),
    };
    clusters.extend(secrets::server(tls(), options));
    if table.outbound() == OutboundMode::AllowAny {
        clusters.push(cluster::passthrough(table, options));
    }
    json!({
        // Envoy takes secrets from files or servers only where it has a name.
        "node": {"id": "egress", "cluster": "egress", "metadata": {"LABELS": options.proxy.labels}},
        "admin": {"address": admin},
        // Envoy warns of a missing limit at every start; files run out long before this one.
        "overload_manager": {"resource_monitors": [extension(
            "envoy.resource_monitors.global_downstream_max_connections",
            "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
            json!({"max_active_downstream_connections": 1_000_000}),
        )]},
        "static_resources": {
            "listeners": listener::listeners(table, resources, reached.kind, options),
            "clusters": clusters,
            "secrets": statics,
        },
    })
}
