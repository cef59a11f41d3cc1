//! The whole bootstrap: with everything in it, or with the parts that depend on rules left to files.

use egress_filter::Variants;
use egress_policy::{OutboundMode, PolicyTable};
use serde_json::{Map, Value, json};

use super::chain::Listener;
use super::options::{Admin, FilterFile, Options};
use super::rendering::Rendering;
use super::{
    capture, cluster, dns, forward_proxy, listener, overload, secrets, stats, upstream_proxy,
    variants,
};

/// Renders the bootstrap of an Envoy that does what `table` says. `resources` are the documents it was
/// compiled from; the filter is given the same.
pub fn bootstrap(table: &PolicyTable, resources: &[Value], options: &Options) -> Value {
    let ruled = ruled(table, resources, options);
    let listeners = ruled.listeners.into_iter();
    let listeners: Vec<Value> = listeners
        .map(|listener| listener.written(&mut |plugin| plugin.inline()))
        .collect();
    let mut fields = base(options);
    fields.insert(
        "static_resources".to_owned(),
        json!({
            "listeners": listeners,
            "clusters": ruled.clusters,
            "secrets": ruled.secrets,
        }),
    );
    Value::Object(fields)
}

/// Renders settings of Envoy's runtime: this one, and what the form of the filter asks for.
fn settings(options: &Options, key: &str, value: Value) -> Value {
    let mut layer = Map::from_iter([(key.to_owned(), value)]);
    if let FilterFile::Module(_) = options.filter {
        // Prometheus then gets our counters by the names that they have with the wasm module.
        layer.insert(
            "envoy.reloadable_features.dynamic_modules_strip_custom_stat_prefix".to_owned(),
            json!(true),
        );
    }
    Value::Object(layer)
}

/// Renders a bootstrap in which nothing depends on rules: listeners and clusters come from the discovery server.
pub fn reloading(options: &Options) -> Value {
    let mut fields = base(options);
    fields.insert(
        "dynamic_resources".to_owned(),
        json!({"lds_config": secrets::lists(), "cds_config": secrets::lists()}),
    );
    // What Envoy would hold of an answer: 32 MiB, too little for ten thousand clusters.
    let layer = settings(options, "http.async_response_buffer_limit", json!(u32::MAX));
    fields.insert(
        "layered_runtime".to_owned(),
        json!({"layers": [{"name": "egress", "static_layer": layer}]}),
    );
    fields.insert(
        "static_resources".to_owned(),
        json!({
            "clusters": secrets::server(options).as_slice(),
            "secrets": [secrets::system(options)],
        }),
    );
    Value::Object(fields)
}

/// What rules decide.
pub(super) struct Ruled {
    pub(super) listeners: Vec<Listener>,
    pub(super) clusters: Vec<Value>,
    pub(super) secrets: Vec<Value>,
}

/// Renders all that rules decide.
pub(super) fn ruled(table: &PolicyTable, resources: &[Value], options: &Options) -> Ruled {
    let reached = variants::reached(table, options);
    let rendering = Rendering::new(table, resources, reached.kind, options);
    let all = || reached.groups.iter().flatten();
    let tls = || all().filter_map(|cluster| cluster.tls.as_ref());
    let mut clusters: Vec<Value> = match reached.kind {
        Variants::Clusters => all()
            .map(|it| cluster::cluster(&[it], reached.name(it), &rendering))
            .collect(),
        Variants::None | Variants::Sockets => reached
            .groups
            .iter()
            .map(|group| cluster::cluster(group, None, &rendering))
            .collect(),
    };
    if !options.reloads && secrets::any_served(tls()) {
        clusters.extend(secrets::server(options));
    }
    if table.outbound() == OutboundMode::AllowAny {
        clusters.push(cluster::passthrough(&rendering));
    }
    clusters.extend(capture::cluster(&rendering));
    clusters.extend(forward_proxy::cluster(options));
    clusters.extend(upstream_proxy::cluster(options));
    let around = upstream_proxy::around(options);
    clusters.extend(around.map(|(name, names)| cluster::around(name, names, &rendering)));
    for cluster in clusters.iter_mut().filter_map(Value::as_object_mut) {
        overload::bound(cluster);
    }
    let mut listeners = listener::listeners(&rendering);
    for listener in &mut listeners {
        overload::bound(&mut listener.fields);
    }
    Ruled {
        listeners,
        clusters,
        secrets: secrets::statics(tls(), options),
    }
}

/// Renders what every bootstrap has.
fn base(options: &Options) -> Map<String, Value> {
    let admin = match &options.admin {
        Admin::Pipe(path) => json!({"pipe": {"path": path, "mode": 0o600}}),
        Admin::Tcp(address, port) => {
            json!({"socket_address": {"address": address, "port_value": port}})
        }
    };
    let base = json!({
        // Envoy takes secrets from files or servers only where it has a name.
        "node": {"id": "egress", "cluster": "egress", "metadata": {"LABELS": options.proxy.labels}},
        "admin": {"address": admin},
        "stats_config": stats::config(),
        "layered_runtime": {"layers": [
            {"name": "egress", "static_layer": settings(options, dns::ASK_ANEW, json!(true))},
            // What is changed by the admin interface, as without layers.
            {"name": "admin", "admin_layer": {}},
        ]},
        // What reading rules took for a moment goes back to the system; Envoy's allocator would keep it.
        "memory_allocator_manager": {"bytes_to_release": 64 << 20, "memory_release_interval": "1s"},
        "overload_manager": overload::manager(options.limits),
    });
    let mut fields = match base {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    if let Some(extension) = upstream_proxy::bootstrap_extension(options) {
        fields.insert("bootstrap_extensions".to_owned(), json!([extension]));
    }
    fields
}
