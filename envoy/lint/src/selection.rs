//! Rules about resources that have no effect because of another one.

use std::collections::BTreeSet;

use egress_policy::{DestinationRule, HostPattern, ServiceEntry};
use serde_json::Value;

use crate::catalogue::{MERGED_RULE_LOST, SHADOWED_RULE};
use crate::findings::Findings;
use crate::input::Subject;
use crate::scope::{self, Fate, Service};
use crate::severity::Severity;
use crate::world::World;

const OLDEST: &str = "of several rules for a host the oldest counts, by creationTimestamp and then by name; make one rule of them";

pub(crate) fn lint(world: &World<'_>, findings: &mut Findings<'_>) {
    for (rule, fate) in world.rules().iter().zip(&world.scope.fates) {
        let says = rule.policy.is_some() || !rule.subsets.is_empty();
        if fate.seen && says {
            of_rule(world, rule, fate, findings);
        }
    }
    let clients = scope::clients(&world.input.resources);
    for (host, services) in world.same_hosts() {
        of_host(world, host, services, &clients, findings);
    }
}

fn of_rule(world: &World<'_>, rule: &DestinationRule, fate: &Fate, findings: &mut Findings<'_>) {
    let subject = Subject::of(&rule.meta);
    let host = &rule.host;
    let dropped = fate.lost.values().find(|lost| lost.winner.is_none());
    if let Some(lost) = dropped {
        let into = lost
            .into
            .map_or_else(|| "another rule".to_owned(), |at| world.rule_name(at));
        let from = namespaces(
            fate.lost
                .iter()
                .filter(|(_, lost)| lost.winner.is_none())
                .map(|(name, _)| name),
        );
        let selects = lost
            .into
            .and_then(|at| world.rules().get(at))
            .is_some_and(|other| other.selector.is_some());
        let (who, hint) = if selects {
            (
                format!("workloads {from} that its selector does not fit"),
                "leave `exportTo` out of this rule, so that the two are not merged, or make one rule of them",
            )
        } else {
            (
                format!("workloads {from}"),
                "make one rule of the two, exported to all that need it",
            )
        };
        let message = format!(
            "Istio merges this rule into {into} and drops it: {who} get no rule for `{host}`, so no TLS either"
        );
        findings
            .add(&MERGED_RULE_LOST, &subject, "spec.host", message)
            .hint(hint);
        return;
    }
    if let Some(lost) = fate
        .lost
        .values()
        .next()
        .filter(|_| fate.policy_used || rule.policy.is_none())
    {
        let winner = lost
            .winner
            .map(|at| world.rule_name(at))
            .unwrap_or_default();
        let from = namespaces(fate.lost.keys());
        let message = format!(
            "workloads {from} get {winner} for `{host}` and nothing of this rule: the two are not merged, as their `exportTo` differ"
        );
        findings
            .add(&MERGED_RULE_LOST, &subject, "spec.host", message)
            .hint("give both the same `exportTo`, or make one rule of them");
        return;
    }
    if rule.policy.is_some() && !fate.policy_used {
        let (by, at) = match &fate.winner {
            Some(winner) => (world.rule_name(winner.rule), format!("`{}`", winner.host)),
            None => (
                "the rules of the caller's own namespace".to_owned(),
                format!("`{host}`"),
            ),
        };
        let message = format!("`trafficPolicy` of this rule never applies: for {at} {by} counts");
        let added = findings
            .add(&SHADOWED_RULE, &subject, "spec.trafficPolicy", message)
            .hint(OLDEST);
        if host.exact().is_none() {
            // It may well be for hosts that are not given here.
            added
                .severity(Severity::Info)
                .hint("the more specific host wins; nothing is taken from the other");
        }
        return;
    }
    for subset in rule
        .subsets
        .iter()
        .filter(|subset| !fate.subsets_used.contains(&subset.index))
    {
        let message = format!(
            "subset `{}` never applies: an older rule for `{host}` has one of this name",
            subset.name
        );
        let path = format!("spec.subsets[{}].name", subset.index);
        findings
            .add(&SHADOWED_RULE, &subject, &path, message)
            .hint(OLDEST);
    }
}

/// Writes namespaces for people. The empty one stands for all that are not named anywhere.
fn namespaces<'n>(names: impl Iterator<Item = &'n String>) -> String {
    let names: Vec<&String> = names.collect();
    let named: Vec<String> = names
        .iter()
        .filter(|name| !name.is_empty())
        .map(|name| format!("`{name}`"))
        .collect();
    let others = named.len() < names.len();
    match (named.as_slice(), others) {
        ([], _) => "of other namespaces".to_owned(),
        ([one], false) => format!("of namespace {one}"),
        (more, false) => format!("of namespaces {}", more.join(", ")),
        (more, true) => format!("of namespaces {} and others", more.join(", ")),
    }
}

/// Source: istio/istio `pilot/pkg/model/sidecar.go`, `appendSidecarServices` and `canMergeServices`.
fn of_host(
    world: &World<'_>,
    host: &HostPattern,
    services: &[Service],
    clients: &BTreeSet<String>,
    findings: &mut Findings<'_>,
) {
    let mut services: Vec<(usize, &ServiceEntry)> = services
        .iter()
        .filter_map(|service| Some((service.1, world.service(*service)?.0)))
        .collect();
    services.sort_by(|a, b| a.1.meta.order().cmp(&b.1.meta.order()));
    let Some((&(_, first), rest)) = services.split_first() else {
        return;
    };
    for &(host_at, later) in rest {
        let subject = Subject::of(&later.meta);
        if later.meta.origin == first.meta.origin {
            continue;
        }
        let both = |client: &&String| {
            let foreign =
                ***client != *first.meta.id.namespace && ***client != *later.meta.id.namespace;
            let same = first.meta.id.namespace == later.meta.id.namespace;
            (same || foreign)
                && scope::entry_seen(first, client)
                && scope::entry_seen(later, client)
        };
        if !clients.iter().any(|client| both(&client)) {
            continue;
        }
        let Some(why) = unlike(world, first, later) else {
            shadowed_ports(host, first, later, findings);
            continue;
        };
        let message = format!(
            "`{host}` of this ServiceEntry never applies where {} is seen, too: that one is older, and the two are not merged, as they differ in {why}",
            first.meta.id
        );
        findings
            .add(&SHADOWED_RULE, &subject, &format!("spec.hosts[{host_at}]"), message)
            .hint("make one ServiceEntry of them; the oldest counts, by creationTimestamp and then by name");
    }
}

/// Returns what keeps Istio from merging two ServiceEntries of one host.
fn unlike(world: &World<'_>, first: &ServiceEntry, later: &ServiceEntry) -> Option<&'static str> {
    let exports = |entry: &ServiceEntry| entry.export_to.iter().cloned().collect::<BTreeSet<_>>();
    let labels = |entry: &ServiceEntry| {
        let labels = world
            .input
            .value(&Subject::of(&entry.meta), "metadata.labels");
        labels
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    let checks = [
        (
            first.meta.id.namespace != later.meta.id.namespace,
            "namespace",
        ),
        (first.resolution != later.resolution, "`resolution`"),
        (exports(first) != exports(later), "`exportTo`"),
        (
            first.workload_selector != later.workload_selector,
            "`workloadSelector`",
        ),
        (labels(first) != labels(later), "labels"),
    ];
    checks
        .into_iter()
        .find(|(differs, _)| *differs)
        .map(|(_, what)| what)
}

fn shadowed_ports(
    host: &HostPattern,
    first: &ServiceEntry,
    later: &ServiceEntry,
    findings: &mut Findings<'_>,
) {
    for port in later.ports.iter() {
        let other = first.ports.iter().find(|other| other.number == port.number);
        let differs = other
            .is_some_and(|other| (other.target, other.protocol) != (port.target, port.protocol));
        if differs {
            let message = format!(
                "port {} of `{host}` is taken from {}, which is older: what stands here never applies",
                port.number, first.meta.id
            );
            let path = format!("spec.ports[{}].number", port.index);
            findings
                .add(&SHADOWED_RULE, &Subject::of(&later.meta), &path, message)
                .hint("give the port in one of the two only");
        }
    }
}
