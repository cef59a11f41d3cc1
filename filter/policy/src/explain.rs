//! Who spoke for a decision, and who could have: for people who ask why.

use crate::decision::Query;
use crate::host::HostPattern;
use crate::merge::{RuleIndex, exported};
use crate::problem::Origin;
use crate::resource::{DestinationRule, ResourceId, Resources, ServiceEntry};
use crate::table::{PolicyTable, Settling, mergeable};

/// A resource that has the host of a query, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate<'r> {
    /// Which resource it is.
    pub id: &'r ResourceId,
    /// Where it was read.
    pub origin: Origin,
    /// The host in it that matches.
    pub host: &'r HostPattern,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It decided.
    Chosen,
    /// It was merged into the one that decided.
    Merged,
    /// It is not exported to the caller's namespace.
    NotExported,
    /// It selects workloads with other labels.
    OtherWorkload,
    /// Another one names the host more exactly.
    LessSpecific,
    /// A namespace that is asked earlier has a rule for the host.
    OtherNamespace,
    /// An older one has the host.
    Shadowed,
}

impl Outcome {
    /// Returns a word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Chosen => "chosen",
            Outcome::Merged => "merged",
            Outcome::NotExported => "not_exported",
            Outcome::OtherWorkload => "other_workload",
            Outcome::LessSpecific => "less_specific",
            Outcome::OtherNamespace => "other_namespace",
            Outcome::Shadowed => "shadowed",
        }
    }

    /// Returns a phrase for people.
    pub fn explanation(self) -> &'static str {
        match self {
            Outcome::Chosen => "decided",
            Outcome::Merged => "was merged into the one that decided",
            Outcome::NotExported => "is not exported to the caller's namespace",
            Outcome::OtherWorkload => "selects workloads with other labels",
            Outcome::LessSpecific => "names the host less exactly than another",
            Outcome::OtherNamespace => "stands in a namespace that is asked later",
            Outcome::Shadowed => "is younger than another for the same host",
        }
    }
}

/// Returns every resource that has the host of `query`: those that decided first, then the others.
///
/// `table` must have been compiled from `resources` with `settling`. The chosen ones are those that
/// [`PolicyTable::decide`] names.
pub fn candidates<'r>(
    resources: &'r Resources,
    settling: &Settling,
    table: &PolicyTable,
    query: &Query<'_>,
) -> Vec<Candidate<'r>> {
    let decision = table.decide(query);
    let mut found = Vec::new();
    let owner = resources
        .service_entries
        .iter()
        .find(|entry| Some(&entry.meta.id) == decision.service_entry);
    for entry in &resources.service_entries {
        let Some(host) = most_specific(entry, query.host) else {
            continue;
        };
        let outcome = service_entry(entry, host, owner, settling, query.host);
        found.push(Candidate {
            id: &entry.meta.id,
            origin: entry.meta.origin,
            host,
            outcome,
        });
    }
    if let Some((owner, host)) =
        owner.and_then(|owner| Some((owner, most_specific(owner, query.host)?)))
    {
        let rules = RuleIndex::of(&resources.destination_rules);
        let merged = rules.rule(&settling.proxy, &owner.meta.id.namespace, host);
        let others = merged
            .iter()
            .flat_map(|merged| merged.others.iter().copied().chain([merged.first]));
        let others: Vec<&DestinationRule> = others.collect();
        for rule in resources
            .destination_rules
            .iter()
            .filter(|rule| rule.host.covers(host))
        {
            let is = |other: &&DestinationRule| other.meta.id == rule.meta.id;
            let outcome = if Some(&rule.meta.id) == decision.rule {
                Outcome::Chosen
            } else if others.iter().any(is) {
                Outcome::Merged
            } else {
                destination_rule(rule, merged.as_ref().map(|merged| merged.first), settling)
            };
            found.push(Candidate {
                id: &rule.meta.id,
                origin: rule.meta.origin,
                host: &rule.host,
                outcome,
            });
        }
    }
    found.sort_by_key(|candidate| match candidate.outcome {
        Outcome::Chosen => 0,
        Outcome::Merged => 1,
        _ => 2,
    });
    found
}

fn most_specific<'r>(entry: &'r ServiceEntry, host: &str) -> Option<&'r HostPattern> {
    let by_name = entry
        .hosts
        .iter()
        .filter(|pattern| pattern.matches(host))
        .max_by_key(|pattern| pattern.specificity());
    let by_address = || {
        let single = |address: &&crate::resource::Address| {
            address.prefix.is_none() && address.ip.to_string() == host
        };
        entry.addresses.iter().find(single).and(entry.hosts.first())
    };
    by_name.or_else(by_address)
}

fn service_entry(
    entry: &ServiceEntry,
    host: &HostPattern,
    owner: Option<&ServiceEntry>,
    settling: &Settling,
    asked: &str,
) -> Outcome {
    let Some(owner) = owner else {
        return Outcome::NotExported;
    };
    if owner.meta.id == entry.meta.id {
        return Outcome::Chosen;
    }
    if !exported(
        &entry.export_to,
        &entry.meta.id.namespace,
        &settling.proxy.namespace,
    ) {
        return Outcome::NotExported;
    }
    match most_specific(owner, asked) {
        Some(theirs) if theirs.specificity() > host.specificity() => Outcome::LessSpecific,
        _ if mergeable(owner, entry) => Outcome::Merged,
        _ => Outcome::Shadowed,
    }
}

fn destination_rule(
    rule: &DestinationRule,
    chosen: Option<&DestinationRule>,
    settling: &Settling,
) -> Outcome {
    if !rule.seen_from(&settling.proxy.namespace) {
        return Outcome::NotExported;
    }
    if !rule.selects(&settling.proxy) {
        return Outcome::OtherWorkload;
    }
    match chosen {
        Some(chosen) if chosen.meta.id.namespace != rule.meta.id.namespace => {
            Outcome::OtherNamespace
        }
        Some(chosen) if chosen.host.specificity() > rule.host.specificity() => {
            Outcome::LessSpecific
        }
        Some(_) => Outcome::Shadowed,
        // Its namespace has a rule that names the host more exactly, and is for other workloads.
        None => Outcome::LessSpecific,
    }
}
