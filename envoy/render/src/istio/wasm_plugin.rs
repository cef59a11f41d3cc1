//! The WasmPlugin, or its successor TrafficExtension: the filter, with the rules as they were given.

use serde_json::{Value, json};

use super::manifest::{Manifest, fields, manifest};
use super::module::{Api, PullPolicy};
use super::selector::ProxySelector;
use super::wanted::{Filter, ProxyKind, Wanted};
use crate::xds::{Additions, Options};

pub(super) fn plugin(
    additions: &Additions,
    selector: &ProxySelector,
    options: &Options,
    wanted: &Wanted,
    filter: &Filter,
) -> Manifest {
    let module = &filter.module;
    let pull_policy = module.pull_policy.map(|policy| match policy {
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Always => "Always",
    });
    // We wrote it, so it is JSON.
    let config: Option<Value> = serde_json::from_str(&additions.plugin).ok();
    let code = fields([
        ("url", Some(json!(module.url.to_string()))),
        ("sha256", module.sha256.as_ref().map(|sum| json!(sum))),
        (
            "imagePullSecret",
            module.pull_secret.as_ref().map(|name| json!(name)),
        ),
        ("imagePullPolicy", pull_policy.map(|policy| json!(policy))),
        (
            "pluginName",
            Some(json!(egress_filter::contract::FILTER_NAME)),
        ),
        ("failStrategy", Some(json!("FAIL_CLOSE"))),
        ("pluginConfig", config),
    ]);
    let [selector, target_refs] = selector.named("matchLabels");
    let mut spec = fields([
        ("selector", selector),
        ("targetRefs", target_refs),
        ("phase", filter.phase.map(|phase| json!(phase))),
        ("match", Some(json!([traffic(additions, wanted.proxies)]))),
    ]);
    let kind = match filter.api {
        Api::WasmPlugin => {
            spec.extend(code);
            "WasmPlugin"
        }
        Api::TrafficExtension => {
            spec.insert("wasm".to_owned(), json!(code));
            "TrafficExtension"
        }
    };
    let kind = ("extensions.istio.io/v1alpha1", kind);
    let body = fields([("spec", Some(json!(spec)))]);
    manifest(kind, &wanted.name, options, body).described(PURPOSE)
}

/// What the filter is for, where Istio's own clusters could originate TLS too.
const PURPOSE: &str = "Originates TLS by the rules in pluginConfig, and does what a cluster of Istio's cannot: \
    different rules for callers of one proxy, a reason for each failure, and the log of each decision. Its routes stand \
    before Istio's: a VirtualService that does more than lead to a host of these rules is undone.";

/// Returns which requests pass through the filter: those that go out, on the ports of the rules. A gateway's listener may
/// have another port than its service.
fn traffic(additions: &Additions, proxies: ProxyKind) -> Value {
    let ports: Vec<Value> = additions
        .routes
        .iter()
        .map(|(port, _)| json!({"number": port.get()}))
        .collect();
    match proxies {
        ProxyKind::Sidecar => json!({"mode": "CLIENT", "ports": ports}),
        ProxyKind::Gateway => json!({"mode": "CLIENT"}),
    }
}
