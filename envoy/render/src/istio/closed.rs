//! DestinationRules that let nothing out by Istio's own clusters.
//!
//! Istio's cluster for a port that we originate begins TLS and then refuses every server. It asks for a name below
//! `.invalid`, which no authority can certify (RFC 2606). It never sends a request. Our clusters do not depend on it, and
//! a patch of ours takes the place of what it verifies. The rules keep everything else, which holds for the ports that
//! Istio serves by itself. A `sni` stays if there are patches: without it, Istio takes the SNI from each request.

use std::collections::BTreeMap;

use egress_policy::{
    DestinationRule, HostPattern, PortNumber, ResourceId, Service, Sni, TlsIntent, fnv,
};
use serde_json::{Value, json};

use super::manifest::{Manifest, fields, given, id_of, manifest};
use super::services::originated;
use super::wanted::{Wanted, Way};
use crate::xds::Options;
use egress_rules::Rules;

/// The name that no certificate has, where the filter leads requests to clusters of ours.
const NOT_HERE: &str = "originated-by-the-egress-filter.invalid";

/// The same, where a patch tells Istio's cluster whom to verify.
const NOT_PATCHED: &str = "verified-by-the-egress-patches.invalid";

/// The closed `tls` of ports.
type Ports = BTreeMap<PortNumber, Value>;

/// Renders the DestinationRules as they were given, but replaces each originated `tls` block with one that always
/// fails. If such a rule is for some workloads only, there is a closed rule for the others too. There also is one beside
/// each BackendTLSPolicy: Istio lets it overrule the policy.
pub(super) fn destination_rules(
    rules: &Rules,
    services: &[Service<'_>],
    options: &Options,
    wanted: &Wanted,
) -> Vec<Manifest> {
    let mut carried_out = BTreeMap::<String, Ports>::new();
    for (service, tls) in originated(services, &wanted.way) {
        let written = service.rule.filter(|id| !id.is_backend_tls_policy());
        let Some(rule) = written else { continue };
        let ports = carried_out.entry(rule.qualified()).or_default();
        // A subset is closed where it stands.
        let closed = service
            .subset
            .is_none()
            .then(|| closed_for(tls, &wanted.way));
        ports.extend(closed.map(|closed| (service.port, closed)));
    }
    let mut all: Vec<Manifest> = given(rules, "DestinationRule")
        .into_iter()
        .map(|mut rule| {
            if let Some(ports) = carried_out.get(&id_of(&rule.value).qualified())
                && let Some(spec) = rule.value.get_mut("spec")
            {
                close(spec, &wanted.way);
                for (port, closed) in ports {
                    close_port(spec, *port, closed);
                }
            }
            rule
        })
        .collect();
    let more = for_others(rules, services, &mut all, options, wanted);
    all.extend(more);
    all
}

/// Closes every `tls` of a policy, of its ports and of its subsets.
fn close(spec: &mut Value, way: &Way) {
    let policies = spec.get_mut("trafficPolicy").into_iter();
    for policy in policies {
        close_policy(policy, way);
    }
    for subset in items(spec, "subsets") {
        if let Some(policy) = subset.get_mut("trafficPolicy") {
            close_policy(policy, way);
        }
    }
}

fn close_policy(policy: &mut Value, way: &Way) {
    close_tls(policy, way);
    for port in items(policy, "portLevelSettings") {
        close_tls(port, way);
    }
}

fn close_tls(policy: &mut Value, way: &Way) {
    let Some(tls) = policy.get_mut("tls") else {
        return;
    };
    if tls.get("mode").and_then(Value::as_str) == Some("DISABLE") {
        return;
    }
    let merge = matches!(way, Way::Merge);
    // Nothing is patched where nothing is verified.
    if merge && tls.get("insecureSkipVerify") == Some(&json!(true)) {
        return;
    }
    let mut closed = closed(way);
    if let (true, Some(sni), Some(fields)) = (merge, tls.get("sni"), closed.as_object_mut()) {
        fields.insert("sni".to_owned(), sni.clone());
    }
    *tls = closed;
}

fn items<'v>(value: &'v mut Value, key: &str) -> impl Iterator<Item = &'v mut Value> {
    let list = value.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten()
}

/// Returns the closed form of what a rule asks for.
fn closed_for(tls: &TlsIntent, way: &Way) -> Value {
    let mut closed = closed(way);
    if let (Way::Merge, Sni::Rule(name), Some(fields)) = (way, &tls.sni, closed.as_object_mut()) {
        fields.insert("sni".to_owned(), json!(name));
    }
    closed
}

fn closed(way: &Way) -> Value {
    let nobody = match way {
        Way::Merge => NOT_PATCHED,
        Way::Filter(_) => NOT_HERE,
    };
    json!({"mode": "SIMPLE", "subjectAltNames": [nobody]})
}

/// Renders a rule for the workloads that a rule with a selector is not for: the server's port speaks TLS for them too.
/// Where the rules have one for all others, it is closed for the port, unless it says what TLS the port has.
fn for_others(
    rules: &Rules,
    services: &[Service<'_>],
    given: &mut [Manifest],
    options: &Options,
    wanted: &Wanted,
) -> Vec<Manifest> {
    let namespace = &options.proxy.namespace;
    let rule_of = |id: &ResourceId| {
        let mut all = rules.parsed.destination_rules.iter();
        all.find(|rule| rule.meta.id == *id)
    };
    let mut ports = BTreeMap::<String, Ports>::new();
    for (service, tls) in originated(services, &wanted.way) {
        let selects = service
            .rule
            .and_then(rule_of)
            .is_some_and(|rule| rule.selector.is_some() || rule.meta.id.is_backend_tls_policy());
        if selects {
            let host = service.host.to_string();
            let ports = ports.entry(host).or_default();
            ports
                .entry(service.port)
                .or_insert_with(|| closed_for(tls, &wanted.way));
        }
    }
    let mut more = Vec::new();
    for (host, ports) in ports {
        let mut all = rules.parsed.destination_rules.iter();
        let for_all = all.find(|rule| {
            rule.selector.is_none()
                && !rule.meta.id.is_backend_tls_policy()
                && rule.host.to_string() == host
                && *rule.meta.id.namespace == **namespace
        });
        let for_all = for_all.map(|rule| rule.meta.id.qualified());
        let given = given.iter_mut();
        let given = given
            .filter(|rule| rule.kind == "DestinationRule")
            .find(|rule| Some(id_of(&rule.value).qualified()) == for_all);
        match given.and_then(|rule| rule.value.get_mut("spec")) {
            Some(spec) => ports
                .iter()
                .for_each(|(port, closed)| close_port(spec, *port, closed)),
            None => {
                let led = led_by_another(rules, namespace, &host, &ports);
                let ports = ports.iter();
                let settings: Vec<Value> = ports
                    .map(|(port, closed)| closed_port(*port, closed))
                    .collect();
                let mut spec =
                    json!({"host": host, "trafficPolicy": {"portLevelSettings": settings}});
                if led && let Some(spec) = spec.as_object_mut() {
                    // By its name, not by `.`: Istio merges rules of one `exportTo`, a rule with a selector has `.`,
                    // and this one would be lost beside it (istio/istio#58322).
                    spec.insert("exportTo".to_owned(), json!([namespace]));
                }
                let name = format!("{}-closed-{}", wanted.name, slug(&host));
                let kind = ("networking.istio.io/v1", "DestinationRule");
                more.push(manifest(
                    kind,
                    &name,
                    options,
                    fields([("spec", Some(spec))]),
                ));
            }
        }
    }
    more
}

/// Whether a rule of the root namespace, or one of ours for more hosts, says what TLS a host has for other
/// namespaces. Istio asks the namespace of the service first, and there for the most specific host alone, so a closed
/// rule that all see would take its place.
fn led_by_another(rules: &Rules, namespace: &str, host: &str, ports: &Ports) -> bool {
    let Ok(host) = HostPattern::parse(host) else {
        return false;
    };
    let root = rules.mesh.decides.root_namespace.as_str();
    let private = |rule: &DestinationRule| {
        let own = |to: &String| to == "." || **to == *rule.meta.id.namespace;
        rule.selector.is_some() || (!rule.export_to.is_empty() && rule.export_to.iter().all(own))
    };
    let mut all = rules.parsed.destination_rules.iter();
    all.any(|rule| {
        let policy = rule.policy.as_deref();
        let settled = |port: &PortNumber| {
            policy.is_some_and(|policy| {
                let own = policy.port_level.iter().find(|own| own.port == *port);
                own.map_or(&policy.tls, |own| &own.policy.tls).is_some()
            })
        };
        [root, namespace].contains(&&*rule.meta.id.namespace)
            && !private(rule)
            && rule.host.covers(&host)
            && ports.keys().any(settled)
    })
}

fn closed_port(port: PortNumber, closed: &Value) -> Value {
    json!({"port": {"number": port.get()}, "tls": closed})
}

/// Closes a port of a rule that says nothing of TLS for it: without our filter its requests would be plaintext.
fn close_port(spec: &mut Value, port: PortNumber, closed: &Value) {
    let Some(spec) = spec.as_object_mut() else {
        return;
    };
    let policy = spec.entry("trafficPolicy").or_insert_with(|| json!({}));
    let number = json!(port.get());
    let own = items(policy, "portLevelSettings")
        .find(|settings| settings.pointer("/port/number") == Some(&number));
    if let Some(own) = own {
        if own.get("tls").is_none()
            && let Some(fields) = own.as_object_mut()
        {
            fields.insert("tls".to_owned(), closed.clone());
        }
        return;
    }
    if policy.get("tls").is_some() {
        return;
    }
    let mut settings = closed_port(port, closed);
    // The settings of a port replace those of all ports.
    for key in ["loadBalancer", "connectionPool", "outlierDetection"] {
        if let (Some(found), Some(fields)) = (policy.get(key), settings.as_object_mut()) {
            fields.insert(key.to_owned(), found.clone());
        }
    }
    let Some(policy) = policy.as_object_mut() else {
        return;
    };
    let list = policy
        .entry("portLevelSettings")
        .or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut() {
        list.push(settings);
    }
}

/// Writes a host as part of a name that no other host has.
fn slug(host: &str) -> String {
    let readable = host.replace('*', "any").replace('.', "-");
    let readable: String = readable.chars().take(63).collect();
    format!("{readable}-{:016x}", fnv(host.bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_hosts_have_one_name() {
        assert_ne!(slug("a-b.example.com"), slug("a.b.example.com"));
        assert!(slug(&"a".repeat(253)).len() < 100);
    }

    #[test]
    fn a_rule_that_says_nothing_of_a_port_is_closed_for_it() {
        let port = PortNumber::new(80).unwrap();
        let with = |policy: Value| {
            let mut spec = json!({"host": "a.example.com", "trafficPolicy": policy});
            close_port(&mut spec, port, &closed(&Way::Merge));
            spec["trafficPolicy"].clone()
        };
        let closed_80 = json!({"port": {"number": 80}, "tls": closed(&Way::Merge)});
        let pool = json!({"tcp": {"maxConnections": 1}});
        let mut pooled = closed_80.clone();
        pooled["connectionPool"] = pool.clone();
        assert_eq!(
            with(json!({"connectionPool": pool})),
            json!({"connectionPool": pool, "portLevelSettings": [pooled]})
        );
        assert_eq!(
            with(json!({"portLevelSettings": [{"port": {"number": 80}}]})),
            json!({"portLevelSettings": [closed_80]})
        );
        let plain = json!({"tls": {"mode": "DISABLE"}});
        assert_eq!(with(plain.clone()), plain);
        let mut bare = json!({"host": "a.example.com"});
        close_port(&mut bare, port, &closed(&Way::Merge));
        assert_eq!(
            bare["trafficPolicy"],
            json!({"portLevelSettings": [closed_80]})
        );
    }

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
        close(&mut found, &Way::Merge);
        let mut named = closed(&Way::Merge);
        named["sni"] = json!("a.example.com");
        assert_eq!(found, spec(named));
        let unverified = json!({"mode": "SIMPLE", "insecureSkipVerify": true});
        let mut found = spec(unverified.clone());
        close(&mut found, &Way::Merge);
        assert_eq!(found, spec(unverified));
    }
}
