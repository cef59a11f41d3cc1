//! What is wrong with Gateways and Sidecars: each field with its type, and all that Istio's validation refuses.
//!
//! The engine reads the same documents for what decides, and leniently, for it is in the filter. What is wrong is told
//! here, before a filter sees it.

use std::collections::BTreeSet;

use egress_policy::fields::Field;
use egress_policy::{DEFAULT_NAMESPACE, Origin, Problem};
use serde_json::Value;

use crate::document;
use crate::virtual_service::VirtualService;

mod gateway;
mod listener;
mod sidecar;

/// Returns what is wrong with the Sidecars, and with the Gateways that routes of these VirtualServices are for. Other
/// Gateways are for what comes in.
pub(crate) fn problems<'d>(
    documents: impl Iterator<Item = &'d Value>,
    services: &[VirtualService],
) -> Vec<Problem> {
    let bound: BTreeSet<String> = services.iter().flat_map(gateways).collect();
    let mut problems = Vec::new();
    for (document, value) in documents.enumerate() {
        for (item, resource) in document::resources(value) {
            let origin = Origin { document, item };
            match kind_of(resource) {
                Some("Sidecar") => {
                    problems.extend(read(resource, origin, "Sidecar", sidecar::check))
                }
                Some("Gateway") if bound.contains(&name_of(resource)) => {
                    problems.extend(read(resource, origin, "Gateway", gateway::check));
                }
                _ => {}
            }
        }
    }
    problems
}

/// Returns the Gateways that a VirtualService is for, as `namespace/name`.
fn gateways(service: &VirtualService) -> impl Iterator<Item = String> {
    let namespace = &service.id.namespace;
    let names = service.gateways.iter().filter(|name| *name != "mesh");
    names.map(move |name| match name.split_once('/') {
        None | Some((".", _)) => {
            let name = name.strip_prefix("./").unwrap_or(name);
            format!("{namespace}/{name}")
        }
        Some(_) => name.clone(),
    })
}

fn name_of(resource: &Value) -> String {
    let text = |pointer: &str| resource.pointer(pointer).and_then(Value::as_str);
    let namespace = text("/metadata/namespace").unwrap_or(DEFAULT_NAMESPACE);
    format!("{namespace}/{}", text("/metadata/name").unwrap_or_default())
}

/// Returns the kind of a resource of Istio's networking API.
fn kind_of(resource: &Value) -> Option<&str> {
    let version = resource.get("apiVersion").and_then(Value::as_str)?;
    let ours = egress_policy::API_VERSIONS.contains(&version);
    document::kind(resource).filter(|_| ours)
}

fn read(
    resource: &Value,
    origin: Origin,
    kind: &'static str,
    check: fn(Field<'_>) -> Option<()>,
) -> Vec<Problem> {
    document::read_spec(resource, origin, kind, |field, _| check(field)).1
}

#[cfg(test)]
mod tests;
