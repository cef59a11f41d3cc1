//! What a `BackendTLSPolicy` needs of other documents.

use std::collections::BTreeSet;

use egress_policy::{
    FieldPath, Problem, ProblemKind, ResourceId, Resources, Segment, Severity, TrafficPolicy,
};

use crate::reference::Reference;
use crate::secrets::{Documents, SecretDocument};

/// Returns the policies of which rules were made.
pub(crate) fn policies(resources: &Resources) -> impl Iterator<Item = &ResourceId> {
    let ids = resources.destination_rules.iter().map(|rule| &rule.meta.id);
    ids.filter(|id| id.is_backend_tls_policy())
}

/// Reports policies whose authority is not among the documents, or holds no certificate.
///
/// Istio's sidecars then send plaintext, and its gateways refuse requests.
pub(crate) fn check_authorities(resources: &Resources, documents: &Documents) -> Vec<Problem> {
    let mut told = BTreeSet::new();
    let mut problems = Vec::new();
    for rule in &resources.destination_rules {
        let id = &rule.meta.id;
        let policy = rule.policy.as_deref();
        let Some((namespace, name)) = policy
            .filter(|_| id.is_backend_tls_policy())
            .and_then(authority)
        else {
            continue;
        };
        let mut held = documents.config_maps.iter();
        let is_it = |held: &&SecretDocument| held.namespace == namespace && held.name == name;
        let text = match held.find(is_it) {
            None => format!(
                "ConfigMap `{namespace}/{name}` is not among the rules: Istio's sidecars would send plaintext"
            ),
            Some(held) if holds(held) => continue,
            Some(_) => format!(
                "ConfigMap `{namespace}/{name}` has no `ca.crt`: Istio's sidecars would send plaintext"
            ),
        };
        // A policy makes a rule for each of its hosts.
        if !told.insert(rule.meta.origin) {
            continue;
        }
        let mut path = FieldPath::keys("spec.validation.caCertificateRefs");
        let item = [Segment::Index(0), Segment::Key("name".to_owned())];
        path.0.extend(item);
        if let Some(item) = rule.meta.origin.item {
            let list = [Segment::Key("items".to_owned()), Segment::Index(item)];
            path.0.splice(0..0, list);
        }
        problems.push(Problem {
            severity: Severity::Error,
            origin: rule.meta.origin,
            resource: Some(id.clone()),
            path,
            kind: ProblemKind::Invalid(text),
            hint: Some(
                "give the ConfigMap with the rules, with the authority's certificates under `ca.crt`"
                    .to_owned(),
            ),
            id: Some("missing-authority"),
        });
    }
    problems
}

/// Returns the ConfigMap that a policy trusts.
fn authority(policy: &TrafficPolicy) -> Option<(String, String)> {
    let ports = policy
        .port_level
        .iter()
        .filter_map(|it| it.policy.tls.as_deref());
    let mut blocks = policy.tls.as_deref().into_iter().chain(ports);
    let credential = blocks.next()?.credential_name.as_deref()?;
    match Reference::parse(credential, "") {
        Ok(Reference::ConfigMap { namespace, name }) => Some((namespace, name)),
        _ => None,
    }
}

fn holds(held: &SecretDocument) -> bool {
    let part = |key: &str| {
        held.parts
            .get(key)
            .is_some_and(|part| !part.bytes.is_empty())
    };
    part("ca.crt") || part("cacert")
}
