//! DestinationRules that let nothing out by Istio's own clusters.
//!
//! Istio's cluster for a port that we originate begins TLS and then refuses every server, because it asks for a name
//! below `.invalid`, which no authority can certify (RFC 2606). It never sends a request. Our clusters do not depend
//! on it. Rules keep all else that they say: it holds for the ports that Istio serves by itself.

use std::collections::{BTreeMap, BTreeSet};

use egress_policy::{PortNumber, ResourceId, Service};
use serde_json::{Value, json};

use super::{Manifest, Wanted, fields, given, id_of, manifest, originated};
use crate::rules::Rules;
use crate::xds::Options;

/// The name that no certificate has.
const NOBODY: &str = "originated-by-the-egress-filter.invalid";

/// Renders the DestinationRules as they were given, those that the filter carries out without a way out, and a closed
/// one for other workloads where such a rule is for some only.
pub(super) fn destination_rules(
    rules: &Rules,
    services: &[Service<'_>],
    options: &Options,
    wanted: &Wanted,
) -> Vec<Manifest> {
    let carried_out: BTreeSet<String> = originated(services)
        .filter_map(|service| service.rule)
        .map(ResourceId::qualified)
        .collect();
    let mut all: Vec<Manifest> = given(rules, "DestinationRule")
        .into_iter()
        .map(|mut rule| {
            if carried_out.contains(&id_of(&rule.value).qualified())
                && let Some(spec) = rule.value.get_mut("spec")
            {
                close(spec);
            }
            rule
        })
        .collect();
    all.extend(for_others(rules, services, options, wanted));
    all
}

/// Closes every `tls` of a policy, of its ports and of its subsets.
fn close(spec: &mut Value) {
    let policies = spec.get_mut("trafficPolicy").into_iter();
    for policy in policies {
        close_policy(policy);
    }
    for subset in items(spec, "subsets") {
        if let Some(policy) = subset.get_mut("trafficPolicy") {
            close_policy(policy);
        }
    }
}

fn close_policy(policy: &mut Value) {
    close_tls(policy);
    for port in items(policy, "portLevelSettings") {
        close_tls(port);
    }
}

fn close_tls(policy: &mut Value) {
    if let Some(tls) = policy.get_mut("tls")
        && tls.get("mode").and_then(Value::as_str) != Some("DISABLE")
    {
        *tls = closed();
    }
}

fn items<'v>(value: &'v mut Value, key: &str) -> impl Iterator<Item = &'v mut Value> {
    let list = value.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten()
}

fn closed() -> Value {
    json!({"mode": "SIMPLE", "subjectAltNames": [NOBODY]})
}

/// Renders a rule for the workloads that a rule with a selector is not for: the server's port speaks TLS for them too.
/// Where the rules have one for all others, that is it.
fn for_others(
    rules: &Rules,
    services: &[Service<'_>],
    options: &Options,
    wanted: &Wanted,
) -> Vec<Manifest> {
    let namespace = &options.proxy.namespace;
    let rule_of = |id: &ResourceId| {
        let mut all = rules.parsed.destination_rules.iter();
        all.find(|rule| rule.meta.id == *id)
    };
    let mut ports = BTreeMap::<String, BTreeSet<PortNumber>>::new();
    for service in originated(services) {
        let selects = service
            .rule
            .and_then(rule_of)
            .is_some_and(|rule| rule.selector.is_some());
        let mut all = rules.parsed.destination_rules.iter();
        let answered = all.any(|rule| {
            rule.selector.is_none()
                && rule.host == *service.host
                && rule.meta.id.namespace == *namespace
        });
        if selects && !answered {
            let host = service.host.to_string();
            ports.entry(host).or_default().insert(service.port);
        }
    }
    ports
        .into_iter()
        .map(|(host, ports)| {
            let settings: Vec<Value> = ports
                .into_iter()
                .map(|port| json!({"port": {"number": port.get()}, "tls": closed()}))
                .collect();
            let spec = json!({"host": host, "trafficPolicy": {"portLevelSettings": settings}});
            let name = format!("{}-closed-{}", wanted.name, slug(&host));
            let kind = ("networking.istio.io/v1", "DestinationRule");
            manifest(kind, &name, options, fields([("spec", Some(spec))]))
        })
        .collect()
}

/// Writes a host as part of a name.
fn slug(host: &str) -> String {
    host.replace('*', "any").replace('.', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tls_is_closed_and_nothing_else_changes() {
        let tls = || json!({"mode": "MUTUAL", "credentialName": "client", "sni": "a.example.com"});
        let policy = |tls: Value| {
            json!({"loadBalancer": {"simple": "RANDOM"}, "tls": tls,
                "portLevelSettings": [
                    {"port": {"number": 80}, "tls": tls},
                    {"port": {"number": 81}, "tls": {"mode": "DISABLE"}},
                    {"port": {"number": 82}}]})
        };
        let spec = |tls: Value| {
            json!({"host": "a.example.com", "trafficPolicy": policy(tls.clone()),
                "subsets": [{"name": "v1"}, {"name": "v2", "trafficPolicy": policy(tls)}]})
        };
        let mut found = spec(tls());
        close(&mut found);
        assert_eq!(found, spec(closed()));
    }
}
