//! Makes a DestinationRule of each `BackendTLSPolicy`, once all documents are read.
//!
//! A policy says TLS of the hosts of its targets, or of one port of theirs. Istio looks the targets up, and skips a
//! policy whose target or port it does not find: its requests are plaintext. Here that is an error.
//!
//! Source: istio/istio `pilot/pkg/config/kube/gateway/backend_policies.go`, `DestinationRuleCollection`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::host::HostPattern;
use crate::order::sort_by;
use crate::port::PortNumber;
use crate::problem::{FieldPath, Problem, ProblemKind, Severity};
use crate::resource::{
    At, BackendTlsPolicy, ClientTls, DestinationRule, PortPolicy, ResourceId, Resources,
    ServiceEntry, Target, TrafficPolicy, meant,
};

/// What a policy is attached to: a target of a namespace, and a port's name.
type Place = (Arc<str>, At, Option<String>);

/// Adds the rules that the policies make, and returns what is wrong with the policies.
pub(crate) fn attach(
    mut policies: Vec<BackendTlsPolicy>,
    resources: &mut Resources,
) -> Vec<Problem> {
    if policies.is_empty() {
        return Vec::new();
    }
    sort_by(&mut policies, |one, other| {
        one.meta.order().cmp(&other.meta.order())
    });
    let mut attaching = Attaching {
        entries: by_name(&resources.service_entries),
        resources,
        taken: BTreeMap::new(),
        made: Vec::new(),
        problems: Vec::new(),
    };
    for policy in policies {
        attaching.policy(policy);
    }
    attaching.check_overruled();
    let (made, problems) = (attaching.made, attaching.problems);
    resources.destination_rules.extend(made);
    problems
}

/// The index of each entry.
fn by_name(entries: &[ServiceEntry]) -> BTreeMap<(Arc<str>, Arc<str>), usize> {
    let id = |entry: &ServiceEntry| {
        let id = &entry.meta.id;
        (id.namespace.clone(), id.name.clone())
    };
    let names = entries.iter().enumerate();
    crate::order::map_of(names.map(|(at, entry)| (id(entry), at)))
}

struct Attaching<'r> {
    resources: &'r Resources,
    entries: BTreeMap<(Arc<str>, Arc<str>), usize>,
    /// Which policy has each place: the first.
    taken: BTreeMap<Place, ResourceId>,
    made: Vec<DestinationRule>,
    problems: Vec<Problem>,
}

impl<'r> Attaching<'r> {
    fn policy(&mut self, mut policy: BackendTlsPolicy) {
        let targets = std::mem::take(&mut policy.targets).into_iter();
        let found = targets.map(|target| {
            let entries = self.found(&policy, &target.at);
            (target, entries)
        });
        let found: Vec<(Target, Vec<&'r ServiceEntry>)> = found.collect();
        let misses = |(target, entries): &(Target, Vec<_>)| {
            entries.is_empty() && matches!(target.at, At::Service(_) | At::Foreign(_))
        };
        if !found.is_empty() && found.iter().all(misses) {
            // It is for others, such as what comes in.
            let kind = ProblemKind::IgnoredKind(BackendTlsPolicy::KIND.to_owned());
            let path = FieldPath::keys("kind");
            let problem = policy.meta.problem(Severity::Warning, path, kind, None);
            return self.problems.push(problem);
        }
        if policy.ignored {
            let kind = ProblemKind::Invalid(
                "`istio.io/ignore-policy-attachment` is set: as in Istio, the policy does nothing"
                    .to_owned(),
            );
            let path = FieldPath::keys("metadata.annotations");
            let hint = "remove the annotation to get TLS by this policy".to_owned();
            let problem = policy
                .meta
                .problem(Severity::Warning, path, kind, Some(hint));
            return self.problems.push(problem);
        }
        self.problems.append(&mut policy.problems);
        let mut rules: Vec<DestinationRule> = Vec::new();
        for (target, entries) in &found {
            if self.is_taken(&policy, target) {
                continue;
            }
            match (entries.is_empty(), &target.at) {
                (true, At::Entry(name)) => self.missing(&policy, target, name),
                (true, _) => {}
                (false, _) => self.target(&policy, target, entries, &mut rules),
            }
        }
        self.made.append(&mut rules);
    }

    /// Returns the entries that a target leads to.
    fn found(&self, policy: &BackendTlsPolicy, at: &At) -> Vec<&'r ServiceEntry> {
        let entries = &self.resources.service_entries;
        match at {
            At::Entry(name) => {
                let key = (policy.meta.id.namespace.clone(), name.as_str().into());
                let at = self.entries.get(&key);
                at.and_then(|at| entries.get(*at)).into_iter().collect()
            }
            At::Service(host) => entries
                .iter()
                .filter(|entry| entry.hosts.contains(host))
                .collect(),
            At::Slip(_) | At::Foreign(_) => Vec::new(),
        }
    }

    /// Whether an earlier policy has the place. The older one counts, then the one with the lower name.
    fn is_taken(&mut self, policy: &BackendTlsPolicy, target: &Target) -> bool {
        let id = &policy.meta.id;
        let place = (
            id.namespace.clone(),
            target.at.clone(),
            target.section.clone(),
        );
        let Some(before) = self.taken.get(&place) else {
            self.taken.insert(place, id.clone());
            return false;
        };
        let text = format!("{before} comes first and says the same port's TLS: it counts alone");
        let hint = "remove one of the two".to_owned();
        self.problems.push(policy.meta.problem(
            Severity::Warning,
            target.path(None),
            ProblemKind::Conflict(text),
            Some(hint),
        ));
        true
    }

    fn missing(&mut self, policy: &BackendTlsPolicy, target: &Target, name: &str) {
        let namespace = &policy.meta.id.namespace;
        let text = format!(
            "no ServiceEntry `{namespace}/{name}` is among the rules: Istio would skip the policy and send plaintext"
        );
        let entries = self.entries.keys();
        let near: Vec<&str> = entries
            .filter(|(owner, _)| owner == namespace)
            .map(|(_, name)| &**name)
            .collect();
        let elsewhere = self.entries.keys().find(|(_, other)| **other == *name);
        let hint = match elsewhere {
            Some((owner, _)) => format!(
                "it is in namespace `{owner}`: a policy and its target must be in one namespace"
            ),
            None => meant(name, near.get(..8).unwrap_or(&near))
                .unwrap_or_else(|| "give the ServiceEntry with the policy".to_owned()),
        };
        let path = target.path(Some("name"));
        self.error(
            policy,
            path,
            ProblemKind::Invalid(text),
            hint,
            "host-never-matches",
        );
    }

    fn error(
        &mut self,
        policy: &BackendTlsPolicy,
        path: FieldPath,
        kind: ProblemKind,
        hint: String,
        id: &'static str,
    ) {
        let mut problem = policy.meta.problem(Severity::Error, path, kind, Some(hint));
        problem.id = Some(id);
        self.problems.push(problem);
    }

    /// Adds what a policy says of a target to the rules that it makes.
    fn target(
        &mut self,
        policy: &BackendTlsPolicy,
        target: &Target,
        entries: &[&ServiceEntry],
        rules: &mut Vec<DestinationRule>,
    ) {
        let port = match &target.section {
            None => None,
            Some(section) => {
                let ports = || entries.iter().flat_map(|entry| entry.ports.iter());
                let Some(port) = ports().find(|port| port.name == *section) else {
                    let names: Vec<&str> = ports().map(|port| port.name.as_str()).collect();
                    let owner = entries.first().map(|entry| entry.meta.id.to_string());
                    let text = format!(
                        "no port of {} is called `{section}`: Istio would skip the policy and send plaintext",
                        owner.unwrap_or_default()
                    );
                    let hint = meant(section, &names)
                        .unwrap_or_else(|| "give the name of a port".to_owned());
                    let path = target.path(Some("sectionName"));
                    let kind = ProblemKind::Invalid(text);
                    return self.error(policy, path, kind, hint, "port-never-matches");
                };
                Some(port.number)
            }
        };
        let Some(tls) = &policy.tls else { return };
        let hosts: Vec<&HostPattern> = match &target.at {
            At::Service(host) => vec![host],
            _ => entries.iter().flat_map(|entry| &entry.hosts).collect(),
        };
        for host in hosts {
            let known = rules.iter().position(|rule| rule.host == *host);
            let index = known.unwrap_or_else(|| {
                rules.push(rule_of(policy, host));
                rules.len() - 1
            });
            let rule = rules.get_mut(index).and_then(|rule| rule.policy.as_mut());
            if let Some(rule) = rule.and_then(Arc::get_mut) {
                say(rule, port, tls, target.index);
            }
        }
    }

    /// Tells of policies that a DestinationRule beside them overrules. It counts field by field, whatever its age.
    fn check_overruled(&mut self) {
        let is_beside = |rule: &&DestinationRule| {
            rule.selector.is_none() && rule.export_to.is_empty() && rule.policy.is_some()
        };
        let mut beside: BTreeMap<(&str, &HostPattern), Vec<&DestinationRule>> = BTreeMap::new();
        for rule in self.resources.destination_rules.iter().filter(is_beside) {
            let place = (&*rule.meta.id.namespace, &rule.host);
            beside.entry(place).or_default().push(rule);
        }
        for made in &self.made {
            let place = (&*made.meta.id.namespace, &made.host);
            let others = beside.get(&place).into_iter().flatten();
            // The first that has a policy gives it.
            let oldest = others.min_by_key(|rule| rule.meta.order());
            let (Some(other), Some(policy)) = (oldest, made.policy.as_deref()) else {
                continue;
            };
            let theirs = other.policy.as_deref();
            let of_port = |port: PortNumber| {
                let entry = theirs?.port_level.iter().find(|entry| entry.port == port)?;
                entry.policy.tls.as_deref()
            };
            let whole = theirs.and_then(|theirs| theirs.tls.as_deref());
            let top = policy.tls.iter().filter_map(|_| Some((None, whole?)));
            let ports = (policy.port_level.iter())
                .filter_map(|entry| Some((Some(entry.port), of_port(entry.port)?)));
            for (port, tls) in top.chain(ports) {
                let of = port.map(|port| format!(" on port {port}"));
                let text = format!(
                    "{} says `tls` with mode {} for `{}`{} itself, so this policy does not count there",
                    other.meta.id,
                    tls.mode.as_str(),
                    made.host,
                    of.unwrap_or_default()
                );
                let hint = "let one of the two say what TLS there is".to_owned();
                self.problems.push(made.meta.problem(
                    Severity::Warning,
                    FieldPath::keys("spec.validation"),
                    ProblemKind::Conflict(text),
                    Some(hint),
                ));
            }
        }
    }
}

/// Returns the rule that a policy makes of a host, which says nothing yet.
fn rule_of(policy: &BackendTlsPolicy, host: &HostPattern) -> DestinationRule {
    DestinationRule {
        meta: policy.meta.clone(),
        host: host.clone(),
        policy: Some(Arc::new(TrafficPolicy::default())),
        subsets: Vec::new(),
        export_to: Vec::new(),
        selector: None,
    }
}

/// Says TLS of one port, or of all ports.
fn say(policy: &mut TrafficPolicy, port: Option<PortNumber>, tls: &ClientTls, index: usize) {
    let tls = Some(Box::new(tls.clone()));
    match port {
        None => policy.tls = tls,
        Some(port) if policy.port_level.iter().any(|entry| entry.port == port) => {}
        Some(port) => policy.port_level.push(PortPolicy {
            port,
            index,
            policy: TrafficPolicy {
                tls,
                ..TrafficPolicy::default()
            },
        }),
    }
}
