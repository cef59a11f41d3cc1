//! Joins rules that were made of BackendTLSPolicies with the rules beside them, as Istio does.

use std::sync::Arc;

use egress_policy::{ClientTls, DestinationRule, PortPolicy, TrafficPolicy};

/// Lets each policy fill the gaps of the rule beside it, and leaves out what has become part of another rule.
///
/// Source: istio/istio `pilot/pkg/model/destination_rule.go`, `mergeBackendPolicyTrafficPolicy`.
pub(crate) fn join(rules: &mut Vec<DestinationRule>) {
    let is_made = |rule: &DestinationRule| rule.meta.id.is_backend_tls_policy();
    let (made, mut written): (Vec<_>, Vec<_>) =
        std::mem::take(rules).into_iter().partition(is_made);
    for policy in made {
        let mut beside: Vec<&mut DestinationRule> = written
            .iter_mut()
            .filter(|rule| {
                rule.meta.id.namespace == policy.meta.id.namespace
                    && rule.host == policy.host
                    && rule.selector.is_none()
                    && rule.export_to.is_empty()
            })
            .collect();
        beside.sort_by(|one, other| one.meta.order().cmp(&other.meta.order()));
        let first = beside.iter().position(|rule| rule.policy.is_some());
        let home = beside.into_iter().nth(first.unwrap_or(0));
        match (home, policy.policy.as_deref()) {
            (Some(home), Some(says)) => {
                let own = home.policy.get_or_insert_default();
                fill(Arc::make_mut(own), says);
            }
            _ => rules.push(policy),
        }
    }
    rules.splice(0..0, written);
}

fn fill(own: &mut TrafficPolicy, policy: &TrafficPolicy) {
    if own.tls.is_none() {
        own.tls = policy.tls.as_deref().map(named);
    }
    for port in &policy.port_level {
        let tls = port.policy.tls.as_deref().map(named);
        match own.port_level.iter_mut().find(|it| it.port == port.port) {
            Some(entry) if entry.policy.tls.is_some() => {}
            Some(entry) => entry.policy.tls = tls,
            None => own.port_level.push(PortPolicy {
                port: port.port,
                index: own.port_level.len(),
                policy: TrafficPolicy {
                    tls,
                    ..TrafficPolicy::default()
                },
            }),
        }
    }
}

/// The field that lacks names is the policy's and not the rule's, so nothing is said of it there.
fn named(tls: &ClientTls) -> Box<ClientTls> {
    let mut tls = tls.clone();
    if tls.subject_alt_names.is_empty() {
        tls.subject_alt_names.extend(tls.sni.clone());
    }
    Box::new(tls)
}
