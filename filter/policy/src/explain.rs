//! Which resources made a decision, and which could have: for people who ask why.

use std::cmp::Ordering;

use crate::compile::owners::{in_order, is_looked_up, joins};
use crate::host::HostPattern;
use crate::merge::RuleIndex;
use crate::mesh::Mesh;
use crate::options::CompileOptions;
use crate::problem::Origin;
use crate::proxy::{Proxy, Role};
use crate::query::Query;
use crate::resource::{
    DestinationRule, Resolution, ResourceId, Resources, ServiceEntry, ServicePort,
};
use crate::table::PolicyTable;

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
    /// Only its endpoints are used.
    Endpoints,
    /// It is not exported to the caller's namespace.
    NotExported,
    /// It selects workloads with other labels.
    OtherWorkload,
    /// Another one names the host more exactly.
    LessSpecific,
    /// It names the host more exactly, and does not have the port.
    OtherPort,
    /// The caller's own namespace has the host.
    OwnNamespace,
    /// A namespace that is asked earlier has the host, or a rule for it.
    OtherNamespace,
    /// It is a rule of a namespace that nobody asks for this caller and host.
    ThirdNamespace,
    /// An earlier entry of its namespace has the host, or a later rule for it counts.
    Shadowed,
}

impl Outcome {
    /// Returns a word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Chosen => "chosen",
            Outcome::Merged => "merged",
            Outcome::Endpoints => "endpoints",
            Outcome::NotExported => "not_exported",
            Outcome::OtherWorkload => "other_workload",
            Outcome::LessSpecific => "less_specific",
            Outcome::OtherPort => "other_port",
            Outcome::OwnNamespace => "own_namespace",
            Outcome::OtherNamespace => "other_namespace",
            Outcome::ThirdNamespace => "third_namespace",
            Outcome::Shadowed => "shadowed",
        }
    }

    /// Returns a phrase for people.
    pub fn explanation(self) -> &'static str {
        match self {
            Outcome::Chosen => "decided",
            Outcome::Merged => "was merged into the one that decided",
            Outcome::Endpoints => {
                "gives its endpoints only: it does not agree with the one that decided"
            }
            Outcome::NotExported => "is not exported to the caller's namespace",
            Outcome::OtherWorkload => "selects workloads with other labels",
            Outcome::LessSpecific => "names the host less exactly than another",
            Outcome::OtherPort => "does not have the port",
            Outcome::OwnNamespace => {
                "stands in another namespace, and the caller's own has the host"
            }
            Outcome::OtherNamespace => "stands in a namespace that is asked later",
            Outcome::ThirdNamespace => {
                "stands in a namespace that is not asked: rules are taken from the caller's, the service's and the root namespace"
            }
            Outcome::Shadowed => "gives way to another one of its namespace for the same host",
        }
    }
}

/// Returns every resource that has the host of `query`: those that decided first, then the others.
///
/// `table` must have been compiled from `resources` with `options`. The chosen ones are those that
/// [`PolicyTable::decide`] names.
pub fn candidates<'r>(
    resources: &'r Resources,
    options: &CompileOptions,
    table: &PolicyTable,
    query: &Query<'_>,
) -> Vec<Candidate<'r>> {
    let decision = table.decide(query);
    let mut found = Vec::new();
    let entries = &resources.service_entries;
    let owner = entries
        .iter()
        .find(|entry| Some(&entry.meta.id) == decision.service_entry);
    let order = in_order(entries, &options.proxy, &options.mesh);
    for entry in entries {
        let Some(host) = most_specific(entry, query.host) else {
            continue;
        };
        let mut seen = order.iter().filter_map(|at| entries.get(*at));
        let first = seen.find(|other| other.hosts.contains(host));
        let asked = Asked {
            owner,
            first,
            proxy: &options.proxy,
            mesh: &options.mesh,
            host: query.host,
        };
        found.push(Candidate {
            id: &entry.meta.id,
            origin: entry.meta.origin,
            host,
            outcome: asked.outcome(entry, host),
        });
    }
    if let Some((owner, host)) =
        owner.and_then(|owner| Some((owner, most_specific(owner, query.host)?)))
    {
        let rules = RuleIndex::of(&resources.destination_rules, &options.mesh);
        let merged = rules.rule(&options.proxy, &owner.meta.id.namespace, host);
        let others = merged.iter().flat_map(|merged| {
            merged
                .others
                .iter()
                .chain([&merged.first])
                .map(|rule| rule.item)
        });
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
                let local = resources.destination_rules.iter().any(|other| {
                    *other.meta.id.namespace == *options.proxy.namespace && other.host.covers(host)
                });
                let chosen = merged.as_ref().map(|merged| merged.first.item);
                destination_rule(rule, chosen, &owner.meta.id.namespace, local, options)
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
        Outcome::Endpoints => 2,
        _ => 3,
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

/// Who has a host, for one question.
struct Asked<'r> {
    /// The entry that decided.
    owner: Option<&'r ServiceEntry>,
    /// The entry that has the candidate's host, which may be less exact, or without the port.
    first: Option<&'r ServiceEntry>,
    proxy: &'r Proxy,
    mesh: &'r Mesh,
    host: &'r str,
}

impl Asked<'_> {
    /// Returns what became of an entry with the host.
    fn outcome(&self, entry: &ServiceEntry, host: &HostPattern) -> Outcome {
        let is = |other: Option<&ServiceEntry>| other.is_some_and(|it| it.meta.id == entry.meta.id);
        if is(self.owner) {
            return Outcome::Chosen;
        }
        let Some(first) = self.first else {
            return Outcome::NotExported;
        };
        let theirs = self.owner.and_then(|owner| most_specific(owner, self.host));
        let more = theirs.map(|theirs| theirs.specificity().cmp(&host.specificity()));
        let seen = self.mesh.shows(entry, &self.proxy.namespace);
        if more == Some(Ordering::Greater) && seen {
            return Outcome::LessSpecific;
        }
        if is(self.first) {
            return Outcome::OtherPort;
        }
        if first.meta.id.namespace == entry.meta.id.namespace {
            return if seen && joins(first, entry) {
                Outcome::Merged
            } else if gives_endpoints(first, entry) {
                Outcome::Endpoints
            } else if seen {
                Outcome::Shadowed
            } else {
                Outcome::NotExported
            };
        }
        let own =
            self.proxy.role == Role::Sidecar && *first.meta.id.namespace == *self.proxy.namespace;
        match (seen, own) {
            (false, _) => Outcome::NotExported,
            (true, true) => Outcome::OwnNamespace,
            (true, false) => Outcome::OtherNamespace,
        }
    }
}

/// Whether an entry has endpoints of the kind that the one which has the host uses.
fn gives_endpoints(owner: &ServiceEntry, entry: &ServiceEntry) -> bool {
    let port = |by: fn(&ServicePort, &ServicePort) -> bool| {
        let mut ports = owner.ports.iter();
        ports.any(|port| entry.ports.iter().any(|other| by(port, other)))
    };
    match owner.resolution {
        Resolution::None | Resolution::DynamicDns => false,
        Resolution::Static => {
            !entry.endpoints.is_empty() && port(|port, other| port.name == other.name)
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            (is_looked_up(entry) || !entry.endpoints.is_empty())
                && port(|port, other| port.number == other.number)
        }
    }
}

/// Returns what became of a rule that covers the host; `local` tells whether the caller's namespace has any such.
fn destination_rule(
    rule: &DestinationRule,
    chosen: Option<&DestinationRule>,
    owner: &str,
    local: bool,
    options: &CompileOptions,
) -> Outcome {
    let namespace = &*rule.meta.id.namespace;
    let root = options.mesh.root_namespace.as_str();
    let asked = [options.proxy.namespace.as_str(), owner, root];
    if !asked.contains(&namespace) {
        return Outcome::ThirdNamespace;
    }
    if !rule.seen_from(&options.proxy.namespace, &options.mesh) {
        return Outcome::NotExported;
    }
    if !rule.selects(&options.proxy) {
        return Outcome::OtherWorkload;
    }
    match chosen {
        Some(chosen) if *chosen.meta.id.namespace != *namespace => Outcome::OtherNamespace,
        Some(chosen) if chosen.host.specificity() > rule.host.specificity() => {
            Outcome::LessSpecific
        }
        Some(_) => Outcome::Shadowed,
        // The caller's namespace has rules for the host, for other workloads, and so no other is asked.
        None if local && namespace != options.proxy.namespace => Outcome::OtherNamespace,
        // Its namespace has a rule that names the host more exactly, and is for other workloads.
        None => Outcome::LessSpecific,
    }
}
