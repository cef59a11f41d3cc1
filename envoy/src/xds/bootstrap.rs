//! The bootstrap as a whole.

use std::collections::BTreeMap;

use egress_filter::contract;
use egress_policy::{Arrival, Cluster, Identity, OutboundMode, PolicyTable, TlsIntent, Trust};
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
    let rendered: Vec<&Cluster> = rendered(table);
    let mut secrets = BTreeMap::new();
    for tls in rendered.iter().filter_map(|cluster| cluster.tls.as_ref()) {
        secrets.extend(trust(tls, options));
        secrets.extend(tls.identity.as_ref().and_then(identity));
    }
    let secrets: Vec<Value> = secrets.into_values().collect();
    let mut clusters: Vec<Value> = rendered
        .into_iter()
        .map(|cluster| cluster::cluster(cluster, table, options))
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

/// Returns the clusters that a listener leads to: all but those of ports that nothing listens on yet.
fn rendered(table: &PolicyTable) -> Vec<&Cluster> {
    let reached: BTreeMap<&str, &Cluster> = table
        .services()
        .filter(|service| service.arrival != Arrival::Tcp)
        .map(|service| (service.cluster.name.as_str(), service.cluster))
        .collect();
    reached.into_values().collect()
}

/// Renders a trust store, once for all clusters that go by it, under its name.
fn trust(tls: &TlsIntent, options: &Options) -> Option<(String, Value)> {
    let file = match &tls.trust {
        Trust::System => &options.trust_store,
        Trust::File(path) => path,
        Trust::Credential(_) | Trust::InsecureSkipVerify => return None,
    };
    let mut context = json!({"trusted_ca": {"filename": file}});
    if let (Some(crl), Some(fields)) = (&tls.crl, context.as_object_mut()) {
        fields.insert("crl".to_owned(), json!({"filename": crl}));
    }
    let name = contract::trust_secret(tls)?.to_string();
    Some((
        name.clone(),
        json!({"name": name, "validation_context": context}),
    ))
}

/// Renders a client certificate, once for all clusters that show it, under its name.
fn identity(identity: &Identity) -> Option<(String, Value)> {
    let Identity::Files { certificate, key } = identity else {
        return None;
    };
    let name = contract::identity_secret(identity).to_string();
    let files =
        json!({"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}});
    Some((
        name.clone(),
        json!({"name": name, "tls_certificate": files}),
    ))
}
