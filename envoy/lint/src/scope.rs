//! Which rule Istio uses for which host. This includes Istio's merging, and the rules that merging loses.
//!
//! The engine avoids some of these losses, see `egress-policy`. A linter of Istio's own behaviour must not. It asks
//! every question once for each namespace that can make a difference, and once for all others.

use std::collections::{BTreeMap, BTreeSet};

use egress_policy::{DestinationRule, HostPattern, ROOT_NAMESPACE, Resources, ServiceEntry};

/// A host of a ServiceEntry, by their places.
pub(crate) type Service = (usize, usize);

/// What becomes of the rules.
pub(crate) struct Scope {
    /// The rules whose policy some workload uses for a host; `None` where some workload has no rule.
    pub(crate) policies: BTreeMap<Service, BTreeSet<Option<usize>>>,
    /// What becomes of each rule.
    pub(crate) fates: Vec<Fate>,
}

/// What becomes of a rule.
#[derive(Default)]
pub(crate) struct Fate {
    /// Whether it is for any host that is known.
    pub(crate) covers: bool,
    /// Whether any namespace sees both.
    pub(crate) seen: bool,
    /// Whether any workload uses its policy.
    pub(crate) policy_used: bool,
    /// The subsets that any workload could use.
    pub(crate) subsets_used: BTreeSet<usize>,
    /// A rule that is used where this one might have been.
    pub(crate) winner: Option<Winner>,
    /// The namespaces whose workloads should use it and do not.
    pub(crate) lost: BTreeMap<String, Lost>,
}

/// How a rule is lost.
pub(crate) struct Lost {
    /// What is used instead.
    pub(crate) winner: Option<usize>,
    /// The rule that it was merged into.
    pub(crate) into: Option<usize>,
}

/// A rule that is used in place of another one.
pub(crate) struct Winner {
    pub(crate) rule: usize,
    pub(crate) host: String,
}

/// Rules made one.
struct Merged {
    first: usize,
    policy: Option<usize>,
    subsets: Vec<(usize, usize)>,
    members: Vec<usize>,
}

/// The rules of one host in one namespace: all, and what is left of them after merging.
#[derive(Default)]
struct Filed {
    all: Vec<usize>,
    merged: Vec<Merged>,
}

impl Filed {
    /// Returns the rule that another one was merged into.
    fn into(&self, at: usize) -> Option<usize> {
        let holds = |rule: &&Merged| rule.first != at && rule.members.contains(&at);
        self.merged.iter().find(holds).map(|rule| rule.first)
    }
}

type Index<'r> = BTreeMap<&'r str, BTreeMap<&'r HostPattern, Filed>>;

/// Whether a ServiceEntry is seen from a namespace.
pub(crate) fn entry_seen(entry: &ServiceEntry, namespace: &str) -> bool {
    exported(&entry.export_to, &entry.meta.id.namespace, namespace)
}

fn rule_seen(rule: &DestinationRule, namespace: &str) -> bool {
    let owner = &*rule.meta.id.namespace;
    match rule.selector {
        Some(_) => owner == namespace,
        None => exported(&rule.export_to, owner, namespace),
    }
}

fn exported(export_to: &[String], owner: &str, namespace: &str) -> bool {
    export_to.is_empty()
        || export_to
            .iter()
            .any(|to| to == "*" || to == namespace || (to == "." && owner == namespace))
}

/// Returns the namespaces that can make a difference. The empty one stands for all others.
pub(crate) fn clients(resources: &Resources) -> BTreeSet<String> {
    let entries = resources.service_entries.iter();
    let rules = resources.destination_rules.iter();
    let metas = entries
        .map(|entry| (&entry.meta, &entry.export_to))
        .chain(rules.map(|rule| (&rule.meta, &rule.export_to)));
    let mut clients = BTreeSet::from([String::new()]);
    for (meta, export_to) in metas {
        clients.insert(meta.id.namespace.to_string());
        let named = export_to
            .iter()
            .filter(|to| !matches!(to.as_str(), "." | "*" | "~"));
        clients.extend(named.cloned());
    }
    clients
}

/// Returns the hosts that a rule could be for to speak for `host`, the most specific first.
fn covering(host: &HostPattern) -> Vec<HostPattern> {
    let mut patterns = vec![host.clone()];
    let text = host.to_string();
    let text = text.trim_start_matches('*');
    for (at, byte) in text.bytes().enumerate() {
        let tail = text.get(at..).unwrap_or("");
        let own = matches!(host, HostPattern::Suffix(_)) && at == 0;
        if matches!(byte, b'.' | b'-') && tail.len() > 1 && !own {
            patterns.push(HostPattern::Suffix(tail.into()));
        }
    }
    patterns.push(HostPattern::Any);
    patterns
}

impl Scope {
    /// Asks for every rule, host and namespace.
    ///
    /// Source: istio/istio `pilot/pkg/model/push_context.go`, `setDestinationRules` and
    /// `destinationRule`; `pilot/pkg/model/sidecar.go`, `DestinationRule`.
    pub(crate) fn of(resources: &Resources) -> Self {
        let rules = &resources.destination_rules;
        let (local, private, offered) = file(rules);
        let mut by_host: BTreeMap<&HostPattern, Vec<usize>> = BTreeMap::new();
        for (at, rule) in rules.iter().enumerate() {
            by_host.entry(&rule.host).or_default().push(at);
        }
        let mut scope = Scope {
            policies: BTreeMap::new(),
            fates: rules.iter().map(|_| Fate::default()).collect(),
        };
        let clients = clients(resources);
        for (at, entry) in resources.service_entries.iter().enumerate() {
            for (host_at, host) in entry.hosts.iter().enumerate() {
                let patterns = covering(host);
                let used = scope.policies.entry((at, host_at)).or_default();
                for client in clients.iter().filter(|client| entry_seen(entry, client)) {
                    let own = if client == ROOT_NAMESPACE {
                        &private
                    } else {
                        &local
                    };
                    let stages = [
                        (own, client.as_str()),
                        (&offered, &*entry.meta.id.namespace),
                        (&offered, ROOT_NAMESPACE),
                    ];
                    let lookup = Lookup {
                        rules,
                        client,
                        host,
                        patterns: &patterns,
                        by_host: &by_host,
                    };
                    used.insert(lookup.run(&stages, &mut scope.fates));
                    let selected = lookup.selected(own, &mut scope.fates);
                    used.extend(selected.into_iter().map(Some));
                }
            }
        }
        scope
    }
}

fn file(rules: &[DestinationRule]) -> (Index<'_>, Index<'_>, Index<'_>) {
    let mut sorted: Vec<usize> = (0..rules.len()).collect();
    sorted.sort_by_key(|&at| {
        rules
            .get(at)
            .map(|rule| (rule.selector.is_none(), rule.meta.order()))
    });
    let (mut local, mut private, mut offered) = (Index::new(), Index::new(), Index::new());
    for at in sorted {
        let Some(rule) = rules.get(at) else { continue };
        let owner = &*rule.meta.id.namespace;
        let own = |to: &String| to == "." || to == owner;
        let is_private = rule.selector.is_some()
            || (rule.export_to.len() == 1 && rule.export_to.iter().all(own));
        if rule_seen(rule, owner) {
            push(&mut local, owner, &rule.host, at);
        }
        if !is_private {
            push(&mut offered, owner, &rule.host, at);
        } else if owner == ROOT_NAMESPACE {
            push(&mut private, owner, &rule.host, at);
        }
    }
    for index in [&mut local, &mut private, &mut offered] {
        for filed in index.values_mut().flat_map(BTreeMap::values_mut) {
            filed.merged = merge(rules, &filed.all);
        }
    }
    (local, private, offered)
}

fn push<'r>(index: &mut Index<'r>, owner: &'r str, host: &'r HostPattern, at: usize) {
    let filed = index.entry(owner).or_default().entry(host).or_default();
    filed.all.push(at);
}

/// Merges rules of one host, in their order, and loses those that Istio loses.
///
/// Source: istio/istio `pilot/pkg/model/destination_rule.go`, `mergeDestinationRule`.
fn merge(rules: &[DestinationRule], all: &[usize]) -> Vec<Merged> {
    let mut merged: Vec<Merged> = Vec::new();
    for &at in all {
        let Some(rule) = rules.get(at) else { continue };
        let exports = exports(rule);
        let mut append = true;
        for earlier in &mut merged {
            let Some(first) = rules.get(earlier.first) else {
                continue;
            };
            let theirs = self::exports(first);
            let wider = exports.is_superset(&theirs);
            let same = exports == theirs;
            append = true;
            if !same && (theirs.is_empty() || !wider) {
                continue;
            }
            append = !same;
            match (&first.selector, &rule.selector) {
                (Some(a), Some(b)) if !same_labels(a, b) => {
                    append = true;
                    continue;
                }
                (Some(_), Some(_)) | (None, None) => append = false,
                _ => {}
            }
            earlier.add(at, rule, rules);
        }
        if append {
            merged.push(Merged {
                first: at,
                policy: rule.policy.as_ref().map(|_| at),
                subsets: rule
                    .subsets
                    .iter()
                    .map(|subset| (at, subset.index))
                    .collect(),
                members: vec![at],
            });
        }
    }
    merged
}

impl Merged {
    fn add(&mut self, at: usize, rule: &DestinationRule, rules: &[DestinationRule]) {
        self.policy = self.policy.or(rule.policy.as_ref().map(|_| at));
        for subset in &rule.subsets {
            let known = self.subsets.iter().any(|(other, index)| {
                rules
                    .get(*other)
                    .and_then(|rule| rule.subsets.iter().find(|subset| subset.index == *index))
                    .is_some_and(|other| other.name == subset.name)
            });
            if !known {
                self.subsets.push((at, subset.index));
            }
        }
        self.members.push(at);
    }
}

fn exports(rule: &DestinationRule) -> BTreeSet<&str> {
    if rule.selector.is_some() {
        BTreeSet::from(["."])
    } else {
        rule.export_to.iter().map(String::as_str).collect()
    }
}

fn same_labels(a: &[(String, String)], b: &[(String, String)]) -> bool {
    a.len() == b.len() && a.iter().all(|label| b.contains(label))
}

/// One question: which rules speak for a host, to the workloads of a namespace.
struct Lookup<'l> {
    rules: &'l [DestinationRule],
    client: &'l str,
    host: &'l HostPattern,
    patterns: &'l [HostPattern],
    by_host: &'l BTreeMap<&'l HostPattern, Vec<usize>>,
}

impl<'l> Lookup<'l> {
    fn find<'i>(&self, index: &'i Index<'_>, owner: &str) -> Option<&'i Filed> {
        let hosts = index.get(owner)?;
        self.patterns.iter().find_map(|pattern| hosts.get(pattern))
    }

    fn has_selector(&self, at: usize) -> bool {
        self.rules
            .get(at)
            .is_some_and(|rule| rule.selector.is_some())
    }

    fn sees(&self, at: usize) -> bool {
        self.rules
            .get(at)
            .is_some_and(|rule| rule_seen(rule, self.client))
    }

    /// Answers for a workload that no selector fits, and returns the rule whose policy it uses.
    fn run(&self, stages: &[(&Index<'_>, &str)], fates: &mut [Fate]) -> Option<usize> {
        let mut answer: Option<&Merged> = None;
        let mut asked: Vec<(usize, Option<usize>)> = Vec::new();
        for (stage, (index, owner)) in stages.iter().enumerate() {
            let Some(filed) = self.find(index, owner) else {
                continue;
            };
            let plain = |at: &&usize| self.sees(**at) && !self.has_selector(**at);
            asked.extend(
                filed
                    .all
                    .iter()
                    .filter(plain)
                    .map(|&at| (at, filed.into(at))),
            );
            let mut visible = filed
                .merged
                .iter()
                .filter(|rule| self.sees(rule.first))
                .peekable();
            // The caller's own namespace settles it, even without a rule for this workload.
            let settled = stage == 0 || visible.peek().is_some();
            answer = visible.rfind(|rule| !self.has_selector(rule.first));
            if settled {
                break;
            }
        }
        if let Some(rule) = answer {
            self.mark(rule, fates);
        }
        let winner = answer.map(|rule| rule.policy.unwrap_or(rule.first));
        for (at, into) in asked {
            let said = answer.is_some_and(|rule| rule.members.contains(&at));
            if let Some(fate) = fates.get_mut(at).filter(|_| !said) {
                fate.lost
                    .insert(self.client.to_owned(), Lost { winner, into });
            }
        }
        for &at in self
            .patterns
            .iter()
            .filter_map(|host| self.by_host.get(host))
            .flatten()
        {
            let seen = self.sees(at);
            let Some(fate) = fates.get_mut(at) else {
                continue;
            };
            fate.covers = true;
            fate.seen |= seen;
            let other = winner.filter(|&winner| winner != at && seen);
            if let (Some(rule), None) = (other, &fate.winner) {
                fate.winner = Some(Winner {
                    rule,
                    host: self.host.to_string(),
                });
            }
        }
        answer.and_then(|rule| rule.policy)
    }

    /// Answers for the workloads that selectors fit, and returns the rules whose policies they use.
    fn selected(&self, own: &Index<'_>, fates: &mut [Fate]) -> Vec<usize> {
        let Some(filed) = self.find(own, self.client) else {
            return Vec::new();
        };
        let mut policies = Vec::new();
        let mut earlier: Vec<(usize, &[(String, String)])> = Vec::new();
        for rule in &filed.merged {
            let Some(labels) = self
                .rules
                .get(rule.first)
                .and_then(|rule| rule.selector.as_ref())
            else {
                continue;
            };
            // An earlier selector that asks for less takes all workloads that this one fits.
            let before = earlier
                .iter()
                .find(|(_, fewer)| fewer.iter().all(|label| labels.contains(label)));
            match before {
                None => {
                    self.mark(rule, fates);
                    policies.extend(rule.policy);
                }
                Some((winner, _)) => {
                    if let Some(fate) = fates.get_mut(rule.first) {
                        fate.winner = Some(Winner {
                            rule: *winner,
                            host: self.host.to_string(),
                        });
                    }
                }
            }
            earlier.push((rule.first, labels.as_slice()));
            for &member in rule.members.iter().skip(1) {
                if let Some(fate) = fates.get_mut(member).filter(|fate| fate.winner.is_none()) {
                    fate.winner = Some(Winner {
                        rule: rule.first,
                        host: self.host.to_string(),
                    });
                }
            }
        }
        policies
    }

    fn mark(&self, rule: &Merged, fates: &mut [Fate]) {
        if let Some(fate) = rule.policy.and_then(|at| fates.get_mut(at)) {
            fate.policy_used = true;
        }
        for (at, subset) in &rule.subsets {
            if let Some(fate) = fates.get_mut(*at) {
                fate.subsets_used.insert(*subset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use egress_policy::Parser;
    use serde_json::{Value, json};

    use super::*;

    fn entry(namespace: &str, export_to: Value) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": "api", "namespace": namespace},
            "spec": {
                "hosts": ["api.example.com"], "exportTo": export_to, "resolution": "DNS",
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            },
        })
    }

    /// A rule as `namespace/name host exportTo,… key=value subset,…`, with `-` for what is not there.
    fn rule(text: &str) -> Value {
        let words: Vec<&str> = text.split(' ').collect();
        let (namespace, name) = words[0].split_once('/').unwrap();
        let list = |word: &str| -> Vec<String> {
            let items = word.split(',').filter(|item| *item != "-");
            items.map(str::to_owned).collect()
        };
        let subsets: Vec<Value> = list(words[4])
            .iter()
            .map(|name| json!({"name": name}))
            .collect();
        let mut spec = json!({"host": words[1], "subsets": subsets});
        if !name.starts_with("subsets") {
            spec["trafficPolicy"] = json!({"tls": {"mode": "SIMPLE"}});
        }
        if words[2] != "-" {
            spec["exportTo"] = json!(list(words[2]));
        }
        if let Some((key, value)) = words[3].split_once('=') {
            spec["workloadSelector"] = json!({"matchLabels": {key: value}});
        }
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        })
    }

    fn read(entry: Value, rules: &[&str]) -> Resources {
        let mut parser = Parser::new();
        parser.document(&entry);
        for text in rules {
            parser.document(&rule(text));
        }
        let (resources, problems) = parser.finish();
        assert!(!problems.has_errors(), "{problems}");
        resources
    }

    /// Returns who is used by whom, and what is lost where.
    fn scope(entry: Value, rules: &[&str]) -> (Vec<String>, Vec<String>) {
        let resources = read(entry, rules);
        let scope = Scope::of(&resources);
        let name = |at: usize| resources.destination_rules[at].meta.id.name.to_string();
        let used = scope.policies[&(0, 0)].iter();
        let used = used
            .map(|at| at.map_or_else(|| "none".to_owned(), name))
            .collect();
        let mut lost = Vec::new();
        for (at, fate) in scope.fates.iter().enumerate() {
            for (namespace, how) in &fate.lost {
                let winner = how.winner.map_or_else(|| "none".to_owned(), name);
                lost.push(format!("{} in {namespace}: {winner}", name(at)));
            }
        }
        (used, lost)
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    const API: &str = "api.example.com";

    #[test]
    fn equal_rules_are_merged_and_the_oldest_policy_counts() {
        let (a, b) = (format!("x/a {API} - - v1"), format!("x/b {API} - - v1,v2"));
        let resources = read(entry("x", json!([])), &[&a, &b]);
        let scope = Scope::of(&resources);
        assert_eq!(scope.policies[&(0, 0)], BTreeSet::from([Some(0)]));
        assert!(scope.fates[1].lost.is_empty() && !scope.fates[1].policy_used);
        assert_eq!(scope.fates[0].subsets_used, BTreeSet::from([0]));
        assert_eq!(scope.fates[1].subsets_used, BTreeSet::from([1]));
    }

    /// istio/istio#58322.
    #[test]
    fn a_rule_for_all_is_lost_beside_one_with_a_selector() {
        let selected = format!("x/selected {API} - app=a -");
        let own = format!("x/own {API} . - -");
        let (used, lost) = scope(entry("x", json!([])), &[&selected, &own]);
        assert_eq!(used, strings(&["none", "selected"]));
        assert_eq!(lost, strings(&["own in x: none"]));
        // Its policy lives on in the one with the selector, if that has none.
        let subsets = format!("x/subsets {API} - app=a v1");
        let (used, lost) = scope(entry("x", json!([])), &[&subsets, &own]);
        assert_eq!(used, strings(&["none", "own"]));
        assert_eq!(lost, strings(&["own in x: none"]));
        // Without `exportTo` the two stay two.
        let all = format!("x/all {API} - - -");
        let (used, lost) = scope(entry("x", json!([])), &[&selected, &all]);
        assert_eq!((used, lost), (strings(&["selected", "all"]), vec![]));
    }

    #[test]
    fn a_wider_rule_is_lost_where_the_narrower_is_not_seen() {
        let (first, second) = (
            format!("x/first {API} a - -"),
            format!("x/second {API} a,b - -"),
        );
        let (used, lost) = scope(entry("x", json!([])), &[&first, &second]);
        assert_eq!(used, strings(&["none", "first"]));
        assert_eq!(lost, strings(&["second in b: none"]));
    }

    #[test]
    fn of_rules_that_are_not_merged_the_last_counts() {
        let (first, second) = (
            format!("x/first {API} - - -"),
            format!("x/second {API} a - -"),
        );
        let (used, lost) = scope(entry("x", json!([])), &[&first, &second]);
        assert_eq!(used, strings(&["first", "second"]));
        assert_eq!(lost, strings(&["first in a: second"]));
    }

    #[test]
    fn the_callers_namespace_comes_first_and_the_root_last() {
        let (own, owner) = (
            format!("a/own {API} . - -"),
            "x/owner *.example.com - - -".to_owned(),
        );
        let root = format!("istio-system/root {API} - - -");
        let (used, lost) = scope(entry("x", json!([])), &[&own, &owner, &root]);
        // In `x`, and for all others, its own wildcard is asked before the root's exact host.
        assert_eq!((used, lost), (strings(&["own", "owner"]), vec![]));
        let (used, _) = scope(entry("x", json!([])), &[&own, &root]);
        assert_eq!(used, strings(&["own", "root"]));
    }

    #[test]
    fn a_selector_that_asks_for_less_takes_all() {
        let (less, more) = (
            format!("x/a {API} - app=a -"),
            format!("x/b {API} - app=b -"),
        );
        let resources = read(entry("x", json!([])), &[&less, &more]);
        let mut narrowed = resources.clone();
        narrowed.destination_rules[1].selector =
            Some(vec![("app".into(), "a".into()), ("v".into(), "1".into())]);
        assert!(Scope::of(&resources).fates[1].policy_used);
        let fates = Scope::of(&narrowed).fates;
        assert!(!fates[1].policy_used);
        assert_eq!(fates[1].winner.as_ref().map(|winner| winner.rule), Some(0));
    }

    #[test]
    fn who_sees_no_service_asks_no_rule() {
        let rule = format!("y/rule {API} . - -");
        let resources = read(entry("x", json!(["."])), &[&rule]);
        let fate = &Scope::of(&resources).fates[0];
        assert!(fate.covers && !fate.seen);
        assert_eq!(
            clients(&resources),
            ["", "x", "y"].map(str::to_owned).into()
        );
    }

    #[test]
    fn hosts_are_asked_for_from_the_most_specific_on() {
        let pattern = |text: &str| HostPattern::parse(text).unwrap();
        let names = |host: &str| -> Vec<String> {
            covering(&pattern(host))
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(
            names("a-b.c.com"),
            ["a-b.c.com", "*-b.c.com", "*.c.com", "*.com", "*"]
        );
        assert_eq!(names("*.c.com"), ["*.c.com", "*.com", "*"]);
    }
}
