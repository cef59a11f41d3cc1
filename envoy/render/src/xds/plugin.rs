//! Our filter in a listener: what it is told, and how Envoy loads it.

use egress_filter::config::SCHEMA;
use egress_filter::{FilterKind, PluginConfig, contract};
use egress_policy::PortNumber;
use serde_json::{Value, json};

use super::message::extension;
use super::options::{FilterFile, Options};
use super::rendering::Rendering;

/// What Envoy runs the module with.
pub const WASM_RUNTIME: &str = "envoy.wasm.runtime.v8";

/// Our filter, as one listener has it. It stays a value until a configuration is written, which either holds it or
/// refers to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// Whether it reads requests or connections.
    pub kind: FilterKind,
    /// The file of the filter.
    pub file: FilterFile,
    /// What the filter is told, as it reads it.
    pub config: String,
}

impl Plugin {
    pub(super) fn new(config: &PluginConfig<'_>, options: &Options) -> Self {
        Plugin {
            kind: config.filter,
            file: options.filter.clone(),
            config: config.to_json(),
        }
    }

    /// Makes the filter of connections that ask the upstream proxy. It needs no rules.
    pub(super) fn of_tunnels(options: &Options) -> Self {
        let kind = FilterKind::Tunnel;
        let config = json!({"schema": SCHEMA, "filter": kind.as_str(), "proxy": {"labels": {}}, "resources": []});
        Plugin {
            kind,
            file: options.filter.clone(),
            config: config.to_string(),
        }
    }

    /// Returns the message that Envoy reads it as.
    pub fn message(&self) -> &'static str {
        match (&self.file, self.kind) {
            (FilterFile::Wasm(_), FilterKind::Http) => "envoy.extensions.filters.http.wasm.v3.Wasm",
            (FilterFile::Wasm(_), FilterKind::Network | FilterKind::Tunnel) => {
                "envoy.extensions.filters.network.wasm.v3.Wasm"
            }
            (FilterFile::Module(_), FilterKind::Http) => {
                "envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter"
            }
            (FilterFile::Module(_), FilterKind::Network | FilterKind::Tunnel) => {
                "envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter"
            }
        }
    }

    /// Renders the filter with all that it is told.
    pub fn inline(&self) -> Value {
        let told = json!({
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": self.config,
        });
        let config = match &self.file {
            FilterFile::Wasm(path) => json!({"config": {
                "name": contract::FILTER_NAME,
                "root_id": contract::FILTER_NAME,
                // A filter that crashed refuses requests until it is back; it never lets one through.
                "failure_policy": "FAIL_RELOAD",
                "vm_config": {
                    "vm_id": contract::FILTER_NAME,
                    "runtime": WASM_RUNTIME,
                    "code": {"local": {"filename": path}},
                },
                "configuration": told,
            }}),
            FilterFile::Module(path) => json!({
                "dynamic_module_config": {
                    "module": {"local": {"filename": path}},
                    // What workers keep of it would be left without its code.
                    "do_not_close": true,
                    "metrics_namespace": contract::METRICS_NAMESPACE,
                },
                "filter_name": contract::FILTER_NAME,
                "filter_config": told,
            }),
        };
        extension(contract::FILTER_NAME, self.message(), config)
    }

    /// Renders the filter without what it is told: what it has in common with every other of its kind.
    pub(super) fn bare(&self) -> Value {
        extension(contract::FILTER_NAME, self.message(), json!({}))
    }
}

/// Returns what the filter is told on every listener of rules.
pub(super) fn config<'r>(
    port: Option<PortNumber>,
    filter: FilterKind,
    rendering: &Rendering<'r>,
) -> PluginConfig<'r> {
    let (table, options) = (rendering.table, rendering.options);
    PluginConfig {
        digest: rendering.digest.clone(),
        namespace: &options.proxy.namespace,
        labels: options
            .workloads
            .is_empty()
            .then_some(&options.proxy.labels),
        role: options.proxy.role,
        variants: rendering.variants,
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
        repair: options.repair,
        listen_ports: options.mapped_ports(),
        metadata: options.format,
        resources: rendering.resources,
    }
}
