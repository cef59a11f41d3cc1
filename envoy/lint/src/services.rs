//! Rules about hosts and ports, of ServiceEntries and in DestinationRules.

use std::collections::BTreeMap;

use egress_policy::{
    DestinationRule, HostPattern, PortNumber, PortPolicy, ProtocolClass, Resolution, ServiceEntry,
    TrafficPolicy,
};
use serde_json::Value;

use crate::catalogue::{
    DUPLICATE_PORT_SETTINGS, EXPORTED_TO_NOBODY, HOST_NEVER_MATCHES, NO_HTTPS_PASSTHROUGH,
    PLAINTEXT_TO_443, PORT_NEVER_MATCHES, WILDCARD_NEEDS_DYNAMIC_DNS,
};
use crate::edit::Change;
use crate::findings::Findings;
use crate::input::Subject;
use crate::severity::Severity;
use crate::world::{World, originates};

pub(crate) fn lint(world: &World<'_>, findings: &mut Findings<'_>) {
    for (at, entry) in world.entries().iter().enumerate() {
        let hidden = exported_to_nobody(world, entry, findings);
        // Of what nobody sees it is said already.
        if !world.input.partial && !hidden {
            plaintext_to_443(world, at, entry, findings);
        }
        no_https_passthrough(world, at, entry, findings);
        wildcard(world, at, entry, findings);
    }
    refused_wildcard(world, findings);
    for (at, rule) in world.rules().iter().enumerate() {
        for (path, policy) in policies(rule) {
            duplicate_port_settings(rule, &path, policy, findings);
        }
        let refused = world.input.may_be_refused("ServiceEntry", &rule.host);
        if !world.input.partial && !refused {
            host_never_matches(world, at, rule, findings);
            port_never_matches(world, rule, findings);
        }
    }
}

fn policies(rule: &DestinationRule) -> impl Iterator<Item = (String, &TrafficPolicy)> {
    let whole = rule
        .policy
        .as_deref()
        .map(|policy| ("spec.trafficPolicy".to_owned(), policy));
    whole
        .into_iter()
        .chain(rule.subsets.iter().filter_map(|subset| {
            let path = format!("spec.subsets[{}].trafficPolicy", subset.index);
            Some((path, subset.policy.as_ref()?))
        }))
}

fn plaintext_to_443(
    world: &World<'_>,
    at: usize,
    entry: &ServiceEntry,
    findings: &mut Findings<'_>,
) {
    for port in entry.ports.iter() {
        let mapped = entry
            .endpoints
            .iter()
            .any(|endpoint| !endpoint.ports.is_empty());
        if port.target.get() != 443 || port.protocol.class() != ProtocolClass::Http || mapped {
            continue;
        }
        let plain = entry.hosts.iter().enumerate().find(|(host_at, host)| {
            !world.originated((at, *host_at), port.number).0
                && !world.input.may_be_refused("DestinationRule", host)
        });
        let Some((_, host)) = plain else { continue };
        let subject = Subject::of(&entry.meta);
        let target = format!("spec.ports[{}].targetPort", port.index);
        let explicit = world.input.value(&subject, &target).is_some();
        let path = if explicit {
            target
        } else {
            format!("spec.ports[{}].number", port.index)
        };
        let message = format!(
            "plain HTTP for port {} of `{host}` goes to port 443 of the server, and no DestinationRule given here originates TLS for it",
            port.number
        );
        findings.add(&PLAINTEXT_TO_443, &subject, &path, message).hint(format!(
            "add a DestinationRule for `{host}` with `tls: {{mode: SIMPLE}}` for port {}; if it is in another file, give that one too",
            port.number
        ));
    }
}

/// Whether no namespace sees an entry.
fn is_hidden(entry: &ServiceEntry) -> bool {
    !entry.export_to.is_empty() && entry.export_to.iter().all(|to| to == "~")
}

/// Finds a host that no namespace sees and that a rule asks TLS for.
fn hidden_from_all<'w>(
    world: &'w World<'_>,
    entry: &'w ServiceEntry,
) -> Option<(&'w HostPattern, &'w DestinationRule)> {
    // Another entry may have the host or a wildcard for it, and be seen.
    let seen = |host: &HostPattern| {
        let mut entries = world.entries().iter().filter(|other| !is_hidden(other));
        entries.any(|other| other.hosts.iter().any(|known| known.covers(host)))
    };
    let asks = |policy: &TrafficPolicy| {
        let ports = policy.port_level.iter().map(|port| &port.policy.tls);
        let mut all = ports.chain([&policy.tls]).flatten();
        all.any(|tls| originates(tls))
    };
    let mut hosts = entry
        .hosts
        .iter()
        .filter(|host| is_hidden(entry) && !seen(host));
    hosts.find_map(|host| {
        let mut rules = world.rules().iter().filter(|rule| rule.host.covers(host));
        let rule = rules.find(|rule| policies(rule).any(|(_, policy)| asks(policy)))?;
        Some((host, rule))
    })
}

/// Whether it was said that nobody sees an entry.
fn exported_to_nobody(
    world: &World<'_>,
    entry: &ServiceEntry,
    findings: &mut Findings<'_>,
) -> bool {
    let Some((host, rule)) = hidden_from_all(world, entry) else {
        return false;
    };
    let message = format!(
        "`~` hides `{host}` from every namespace, so nobody gets the TLS of {}: requests go out as to an unknown host",
        rule.meta.id
    );
    findings
        .add(
            &EXPORTED_TO_NOBODY,
            &Subject::of(&entry.meta),
            "spec.exportTo",
            message,
        )
        .hint("name the namespaces that call the host, or leave `exportTo` out");
    true
}

fn no_https_passthrough(
    world: &World<'_>,
    at: usize,
    entry: &ServiceEntry,
    findings: &mut Findings<'_>,
) {
    let open = |port: &egress_policy::ServicePort| {
        port.number.get() == 443 || port.protocol.class() == ProtocolClass::Tls
    };
    if entry.ports.iter().any(open) {
        return;
    }
    let host = entry.hosts.iter().enumerate().find(|(host_at, _)| {
        entry.ports.iter().any(|port| {
            port.protocol.class() == ProtocolClass::Http
                && world.originated((at, *host_at), port.number).0
        })
    });
    let Some((_, host)) = host else { return };
    let message = format!(
        "`{host}` has no port 443: applications that call https://{host} themselves are cut off where the outbound policy is REGISTRY_ONLY"
    );
    findings
        .add(&NO_HTTPS_PASSTHROUGH, &Subject::of(&entry.meta), "spec.ports", message)
        .hint("if applications may do so, add a port with `number: 443`, `name: https`, `protocol: HTTPS`");
}

fn wildcard(world: &World<'_>, at: usize, entry: &ServiceEntry, findings: &mut Findings<'_>) {
    if entry.resolution == Resolution::DynamicDns {
        return;
    }
    let host = entry.hosts.iter().enumerate().find(|(host_at, host)| {
        let on =
            |port: &egress_policy::ServicePort| world.originated((at, *host_at), port.number).0;
        host.exact().is_none() && entry.ports.iter().any(on)
    });
    let Some((_, host)) = host else { return };
    let what = if entry.resolution == Resolution::None {
        "go to whatever address the application dialled, and at a gateway nowhere"
    } else {
        "all go to the same endpoints"
    };
    let resolution = entry.resolution.as_str();
    let subject = Subject::of(&entry.meta);
    let message = format!(
        "with resolution {resolution} the requests for `{host}` {what}; nobody looks up the host they name"
    );
    let given = world.input.value(&subject, "spec.resolution").is_some();
    let path = if given {
        "spec.resolution"
    } else {
        "spec.hosts"
    };
    findings
        .add(&WILDCARD_NEEDS_DYNAMIC_DNS, &subject, path, message)
        .hint("set `resolution: DYNAMIC_DNS`, without `addresses` and `endpoints`");
}

/// Wildcards that Istio refuses, since it could not look them up.
fn refused_wildcard(world: &World<'_>, findings: &mut Findings<'_>) {
    for bare in world
        .input
        .bare
        .iter()
        .filter(|bare| bare.kind == "ServiceEntry")
    {
        let resolution = bare
            .spec
            .get("resolution")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let given = |name: &str| bare.spec.get(name).is_some_and(|value| !value.is_null());
        let looked_up = matches!(resolution, "DNS" | "DNS_ROUND_ROBIN");
        if !looked_up || given("endpoints") || given("workloadSelector") {
            continue;
        }
        let hosts = bare.hosts();
        let Some(host) = hosts.iter().find(|host| host.exact().is_none()) else {
            continue;
        };
        let message = format!(
            "Istio refuses the wildcard `{host}` with resolution {resolution}: there is no one name to look up"
        );
        findings
            .add(
                &WILDCARD_NEEDS_DYNAMIC_DNS,
                &bare.subject,
                "spec.resolution",
                message,
            )
            .severity(Severity::Error)
            .hint("set `resolution: DYNAMIC_DNS`, or name the hosts one by one")
            .covers(vec![bare.subject.path("spec.hosts")]);
    }
}

fn duplicate_port_settings(
    rule: &DestinationRule,
    policy_path: &str,
    policy: &TrafficPolicy,
    findings: &mut Findings<'_>,
) {
    let subject = Subject::of(&rule.meta);
    let mut first: BTreeMap<PortNumber, &PortPolicy> = BTreeMap::new();
    for entry in &policy.port_level {
        let counts = *first.entry(entry.port).or_insert(entry);
        let before = counts.index;
        if before == entry.index {
            continue;
        }
        // A `tls` that does not count is a mistake that only its author can mend: removed, nothing would tell of it.
        let tls = &entry.policy.tls;
        let loses_tls = tls.is_some() && *tls != counts.policy.tls;
        let list = format!("{policy_path}.portLevelSettings");
        let message = format!(
            "port {} has settings in `portLevelSettings[{before}]` already, and the first entry counts: this one is ignored",
            entry.port
        );
        findings
            .add(
                &DUPLICATE_PORT_SETTINGS,
                &subject,
                &format!("{list}[{}].port.number", entry.index),
                message,
            )
            .hint("remove it, or put what it says into the first entry")
            .fix((!loses_tls).then(|| Change::Remove {
                list: subject.path(&list).0,
                index: entry.index,
            }));
    }
}

fn host_never_matches(
    world: &World<'_>,
    at: usize,
    rule: &DestinationRule,
    findings: &mut Findings<'_>,
) {
    let Some(fate) = world.scope.fates.get(at).filter(|fate| !fate.seen) else {
        return;
    };
    let subject = Subject::of(&rule.meta);
    let host = &rule.host;
    let covered = world.covered(rule);
    if fate.covers || !covered.is_empty() {
        // Of an entry that nobody sees it is said there.
        let mut entries = world.entries().iter();
        if entries.any(|entry| hidden_from_all(world, entry).is_some_and(|(_, it)| it == rule)) {
            return;
        }
        let message = format!(
            "no namespace sees both this rule and a ServiceEntry of `{host}`: look at `exportTo` of both"
        );
        findings
            .add(&HOST_NEVER_MATCHES, &subject, "spec.host", message)
            .hint("a rule with `workloadSelector` is seen in its own namespace only");
        return;
    }
    let text = host.to_string();
    let of_cluster = text.ends_with(".svc.cluster.local")
        || matches!(text.as_str(), "*" | "*.local" | "*.cluster.local");
    if of_cluster {
        let message = format!("`{host}` was not checked: a Service of Kubernetes may have it");
        findings
            .add(&HOST_NEVER_MATCHES, &subject, "spec.host", message)
            .severity(Severity::Info);
        return;
    }
    let message =
        format!("no ServiceEntry given here has the host `{host}`, so the rule is for nobody");
    let alike = world.same_hosts().find(|(other, _)| is_alike(host, other));
    let hint = match alike {
        Some((other, _)) => format!("there is one for `{other}`"),
        None => "if its ServiceEntry is in another file, give that one too".to_owned(),
    };
    findings
        .add(&HOST_NEVER_MATCHES, &subject, "spec.host", message)
        .hint(hint);
}

/// Whether one host might have been meant by the other: a domain and its own wildcard or `www`.
fn is_alike(a: &HostPattern, b: &HostPattern) -> bool {
    fn plain(host: &HostPattern) -> String {
        let text = host.to_string();
        let text = text.trim_start_matches("*.");
        text.trim_start_matches("www.").to_owned()
    }
    plain(a) == plain(b)
}

fn port_never_matches(world: &World<'_>, rule: &DestinationRule, findings: &mut Findings<'_>) {
    let covered = world.covered(rule);
    let ports: Vec<_> = covered
        .iter()
        .filter_map(|service| world.service(*service))
        .flat_map(|(entry, _)| entry.ports.iter())
        .collect();
    if ports.is_empty() {
        return;
    }
    for (path, policy) in policies(rule) {
        for entry in &policy.port_level {
            if ports.iter().any(|port| port.number == entry.port) {
                continue;
            }
            let target = ports.iter().find(|port| port.target == entry.port);
            let hint = match target {
                Some(port) => format!(
                    "{} is the target port; write {}, the port that applications call",
                    entry.port, port.number
                ),
                None => {
                    let mut numbers: Vec<PortNumber> =
                        ports.iter().map(|port| port.number).collect();
                    numbers.sort();
                    numbers.dedup();
                    let numbers: Vec<String> =
                        numbers.iter().take(5).map(ToString::to_string).collect();
                    format!("its ports are {}", numbers.join(", "))
                }
            };
            let message = format!(
                "no ServiceEntry of `{}` has port {}, so these settings are for nothing",
                rule.host, entry.port
            );
            let at = format!("{path}.portLevelSettings[{}].port.number", entry.index);
            findings
                .add(&PORT_NEVER_MATCHES, &Subject::of(&rule.meta), &at, message)
                .hint(hint);
        }
    }
}
