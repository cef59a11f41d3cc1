//! Our filter in a listener: what it is told, and how Envoy loads it.

use egress_filter::{FilterKind, PluginConfig, Variants, contract};
use egress_policy::{PolicyTable, PortNumber};
use serde_json::{Value, json};

use super::options::Options;

/// Returns what the filter is told on every listener of rules.
pub(super) fn plugin<'c>(
    port: Option<PortNumber>,
    filter: FilterKind,
    table: &'c PolicyTable,
    digest: &str,
    resources: &'c [Value],
    variants: Variants,
    options: &'c Options,
) -> PluginConfig<'c> {
    PluginConfig {
        digest: digest.to_owned(),
        namespace: &options.proxy.namespace,
        labels: options
            .workloads
            .is_empty()
            .then_some(&options.proxy.labels),
        role: options.proxy.role,
        variants,
        outbound: table.outbound(),
        authority: options.authority,
        listener_port: port,
        forward_proxy: false,
        upstream_proxy: false,
        default_cluster: None,
        headers_stripped: true,
        connect_to: table.connect_tos(),
        loopback_vips: options.loopback_vips,
        allow_plaintext: table.allow_plaintext(),
        mesh: options.mesh.told.as_ref(),
        filter,
        metadata: options.format,
        resources,
    }
}

/// Renders how Envoy loads the filter, as an HTTP filter or as a network filter.
pub(super) fn plugin_config(plugin: &PluginConfig<'_>, options: &Options) -> Value {
    json!({"config": {
        "name": contract::FILTER_NAME,
        "root_id": contract::FILTER_NAME,
        // A filter that crashed refuses requests until it is back; it never lets one through.
        "failure_policy": "FAIL_RELOAD",
        "vm_config": {
            "vm_id": contract::FILTER_NAME,
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": options.wasm}},
        },
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": plugin.to_json(),
        },
    }})
}
