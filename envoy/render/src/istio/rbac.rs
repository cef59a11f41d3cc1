//! The right to read credentials, without which istiod keeps them from a sidecar.
//!
//! Source: istio/istio `pilot/pkg/credentials/kube/secrets.go`, `Authorize`: it asks whether the service account may list
//! the Secrets of the namespace, so a right to single ones does not help.

use egress_filter::contract;
use egress_policy::Service;
use serde_json::{Value, json};

use super::manifest::{Manifest, fields, manifest};
use super::services::originated;
use super::unsupported::Unsupported;
use super::wanted::{ProxyKind, Wanted};
use crate::xds::Options;

const GROUP: &str = "rbac.authorization.k8s.io";
const API: &str = "rbac.authorization.k8s.io/v1";

/// Renders the role and who has it, where a client certificate comes from a Secret. A gateway that Istio installed has
/// it already.
pub(super) fn manifests(
    services: &[Service<'_>],
    options: &Options,
    wanted: &Wanted,
) -> Result<Vec<Manifest>, Unsupported> {
    let asks = originated(services, &wanted.way)
        .filter_map(|(_, tls)| tls.identity.as_ref())
        .any(|identity| {
            let name = contract::identity_secret(identity).to_string();
            name.starts_with("kubernetes://")
        });
    match (asks, wanted.service_accounts.is_empty(), wanted.proxies) {
        (false, ..) | (true, true, ProxyKind::Gateway) => return Ok(Vec::new()),
        (true, true, ProxyKind::Sidecar) => return Err(Unsupported::ServiceAccount),
        (true, false, _) => {}
    }
    let name = format!("{}-credentials", wanted.name);
    let namespace = &options.proxy.namespace;
    let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}]);
    let subjects: Vec<Value> = wanted
        .service_accounts
        .iter()
        .map(|account| json!({"kind": "ServiceAccount", "name": account, "namespace": namespace}))
        .collect();
    let role = json!({"apiGroup": GROUP, "kind": "Role", "name": name});
    Ok(vec![
        manifest(
            (API, "Role"),
            &name,
            options,
            fields([("rules", Some(rules))]),
        ),
        manifest(
            (API, "RoleBinding"),
            &name,
            options,
            fields([("roleRef", Some(role)), ("subjects", Some(json!(subjects)))]),
        ),
    ])
}
