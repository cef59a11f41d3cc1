//! Which DestinationRule applies to a service, and which part of it to a port, as in Istio.
//!
//! Three questions in turn. *Whose rules?* The caller's namespace is asked first, then the service's,
//! then the root; the first that has any rule for the host settles it. *Which of them?* Those for the
//! most specific host; among them the one that selects the caller by its labels, else the one for all.
//! *What of those for the same host?* They are merged, oldest first.

use std::collections::BTreeMap;

use crate::host::HostPattern;
use crate::host_index::HostIndex;
use crate::indexed::Indexed;
use crate::mesh::{Mesh, Visibility};
use crate::order::sorted;
use crate::policy_source::PolicySource;
use crate::port::PortNumber;
use crate::proxy::Proxy;
use crate::resource::{
    ClientTls, ConnectionPool, DestinationRule, LoadBalancer, Notes, OutlierDetection,
    ProxyProtocol, RetryBudget, Subset, TrafficPolicy, Tunnel, exported,
};

impl DestinationRule {
    /// Whether the rule is for workloads like `proxy`: it has no selector, or one that fits.
    pub(crate) fn selects(&self, proxy: &Proxy) -> bool {
        match &self.selector {
            None => true,
            Some(labels) => {
                *self.meta.id.namespace == *proxy.namespace
                    && labels
                        .iter()
                        .all(|(key, value)| proxy.labels.get(key) == Some(value))
            }
        }
    }

    /// Whether the rule is seen from `namespace`. One with a selector is for its own namespace alone.
    pub(crate) fn seen_from(&self, namespace: &str, mesh: &Mesh) -> bool {
        let owner = &*self.meta.id.namespace;
        match (&self.selector, &self.export_to[..]) {
            (Some(_), _) => owner == namespace,
            (None, []) => mesh.rules.has(owner, namespace),
            (None, to) => exported(to, owner, namespace),
        }
    }

    /// Returns `exportTo` as Istio counts it: a selector makes it the rule's own namespace.
    fn exports(&self) -> Vec<&str> {
        if self.selector.is_some() {
            vec!["."]
        } else {
            self.export_to.iter().map(String::as_str).collect()
        }
    }

    /// Whether other namespaces may see the rule.
    fn is_offered(&self, mesh: &Mesh) -> bool {
        let own = |to: &String| to == "." || **to == *self.meta.id.namespace;
        self.selector.is_none()
            && match &self.export_to[..] {
                [] => mesh.rules == Visibility::Everybody,
                [to] => !own(to),
                _ => true,
            }
    }
}

/// A rule, and its index among all rules.
pub(crate) type Rule<'r> = Indexed<'r, DestinationRule>;

/// Rules of one host in one namespace, made one.
#[derive(Clone)]
pub(crate) struct Merged<'r> {
    /// The oldest of them, which gives the policy if it has one.
    pub(crate) first: Rule<'r>,
    /// The rule whose policy counts.
    pub(crate) policy: Option<(Rule<'r>, &'r TrafficPolicy)>,
    /// The subsets of all, by name the first.
    pub(crate) subsets: Vec<(Rule<'r>, &'r Subset)>,
    /// The others.
    pub(crate) others: Vec<Rule<'r>>,
    /// Those that were made of a `BackendTLSPolicy`: they give `tls` where the policy gives none.
    attached: Vec<Rule<'r>>,
    /// The indexes of earlier ones of which this one is part too.
    part_of: Vec<usize>,
    /// Istio would drop it: it counts only for callers who do not see what it is part of.
    dropped: bool,
}

impl<'r> Merged<'r> {
    fn of(rule: Rule<'r>, part_of: Vec<usize>, dropped: bool) -> Self {
        let policy = rule.item.policy.as_deref().map(|policy| (rule, policy));
        let subsets = rule
            .item
            .subsets
            .iter()
            .map(|subset| (rule, subset))
            .collect();
        Merged {
            first: rule,
            policy,
            subsets,
            others: Vec::new(),
            attached: Vec::new(),
            part_of,
            dropped,
        }
    }

    /// Returns what annotations say. They are for the host, so each rule of it that counts has a say.
    fn notes(&self) -> Notes {
        let rules = self.others.iter().chain([&self.first]);
        rules.fold(Notes::default(), |all, rule| all.and(rule.item.meta.notes))
    }

    fn add(&mut self, rule: Rule<'r>) {
        self.policy = self
            .policy
            .or(rule.item.policy.as_deref().map(|policy| (rule, policy)));
        for subset in &rule.item.subsets {
            if !self
                .subsets
                .iter()
                .any(|(_, other)| other.name == subset.name)
            {
                self.subsets.push((rule, subset));
            }
        }
        self.others.push(rule);
    }
}

/// All rules, found by namespace and host.
pub(crate) struct RuleIndex<'r> {
    /// What each namespace uses itself.
    local: BTreeMap<&'r str, ByHost<'r>>,
    /// What each namespace offers to others.
    offered: BTreeMap<&'r str, ByHost<'r>>,
    /// What the root namespace keeps to itself. The rest of its rules are for everyone, and so asked last.
    root: ByHost<'r>,
    mesh: &'r Mesh,
}

/// Rules by host; those of one host in their order.
#[derive(Default)]
pub(crate) struct ByHost<'r> {
    index: HostIndex,
    hosts: Vec<(&'r HostPattern, Vec<Rule<'r>>)>,
}

impl<'r> ByHost<'r> {
    pub(crate) fn add(&mut self, rule: Rule<'r>) {
        let next = self.hosts.len();
        let index = self.index.entry(&rule.item.host, next, &text(&self.hosts));
        if index == next {
            self.hosts.push((&rule.item.host, Vec::with_capacity(1)));
        }
        if let Some((_, rules)) = self.hosts.get_mut(index) {
            rules.push(rule);
        }
    }

    /// Returns the rules of all hosts that have every name of `host`, the most specific first.
    pub(crate) fn covering(&self, host: &HostPattern) -> Vec<Rule<'r>> {
        let mut found = Vec::new();
        self.index.covering(host, text(&self.hosts), |index| {
            found.extend(
                self.hosts
                    .get(index)
                    .into_iter()
                    .flat_map(|(_, rules)| rules),
            );
        });
        found
    }

    /// Returns all hosts with their rules.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (&'r HostPattern, &[Rule<'r>])> {
        self.hosts.iter().map(|(host, rules)| (*host, &rules[..]))
    }

    /// Returns the rules of the most specific host that has every name of `host`.
    fn find(&self, host: &HostPattern) -> Option<&[Rule<'r>]> {
        let index = self.index.find_pattern(host, text(&self.hosts))?;
        self.hosts.get(index).map(|(_, rules)| &rules[..])
    }
}

/// Returns what text stands at a place.
fn text<'h, T>(hosts: &'h [(&HostPattern, T)]) -> impl Fn(usize) -> &'h str {
    |at| hosts.get(at).map_or("", |(host, _)| host.text())
}

impl<'r> RuleIndex<'r> {
    /// Files the rules: with a selector first, then the oldest first.
    ///
    /// Source: istio/istio `pilot/pkg/model/push_context.go`, `setDestinationRules`.
    pub(crate) fn of(rules: &'r [DestinationRule], mesh: &'r Mesh) -> Self {
        let sorted = sorted(&rules.iter().map(|rule| &rule.meta).collect::<Vec<_>>());
        let of = |selected: bool| {
            let rules = sorted.iter().filter_map(|at| Indexed::at(rules, *at));
            rules.filter(move |rule| rule.selector.is_some() == selected)
        };
        // What Istio makes itself has no age, and so comes before what people write.
        let is_made = |rule: &Rule<'_>| rule.meta.id.is_backend_tls_policy();
        let made = of(false).filter(is_made);
        let written = of(false).filter(move |rule| !is_made(rule));
        let mut index = RuleIndex {
            local: BTreeMap::new(),
            offered: BTreeMap::new(),
            root: ByHost::default(),
            mesh,
        };
        for rule in of(true).chain(made).chain(written) {
            let owner = &*rule.item.meta.id.namespace;
            if rule.seen_from(owner, mesh) {
                index.local.entry(owner).or_default().add(rule);
            }
            if rule.is_offered(mesh) {
                index.offered.entry(owner).or_default().add(rule);
            } else if owner == mesh.root_namespace {
                index.root.add(rule);
            }
        }
        index
    }

    /// Returns the rule for calls of `proxy` to `host`, a service of namespace `owner`.
    ///
    /// Only the most specific host of a namespace is looked at; rules of a wider host fill no gaps.
    /// Where the caller's own namespace has rules for the host and none is for this caller, no other
    /// namespace is asked.
    ///
    /// Source: istio/istio `pilot/pkg/model/push_context.go`, `destinationRule`, and
    /// `pilot/pkg/model/sidecar.go`, `DestinationRule`.
    pub(crate) fn rule(
        &self,
        proxy: &Proxy,
        owner: &str,
        host: &HostPattern,
    ) -> Option<Merged<'r>> {
        let namespace = proxy.namespace.as_str();
        let root = self.mesh.root_namespace.as_str();
        let own = match namespace == root {
            true => Some(&self.root),
            false => self.local.get(namespace),
        };
        if let Some(rules) = own.and_then(|rules| rules.find(host)) {
            return applicable(rules, proxy, self.mesh);
        }
        [owner, root].into_iter().find_map(|offering| {
            let rules = self.offered.get(offering)?.find(host)?;
            applicable(rules, proxy, self.mesh)
        })
    }
}

/// Merges the rules of one host and picks the one for `proxy`.
///
/// A rule for selected workloads comes before one for all; of several for all that do not merge, the
/// last counts.
fn applicable<'r>(rules: &[Rule<'r>], proxy: &Proxy, mesh: &Mesh) -> Option<Merged<'r>> {
    if let [rule] = rules {
        let is_for_it = rule.seen_from(&proxy.namespace, mesh) && rule.selects(proxy);
        return is_for_it.then(|| Merged::of(*rule, Vec::new(), false));
    }
    let merged = merge(rules);
    let for_all = |at: usize| {
        merged
            .get(at)
            .is_some_and(|rule: &Merged<'_>| rule.first.selector.is_none())
    };
    let seen = |at: usize| {
        merged
            .get(at)
            .is_some_and(|rule| rule.first.seen_from(&proxy.namespace, mesh))
    };
    let mut last = None;
    for (at, rule) in merged.iter().enumerate() {
        // What it says is said already by the rule it was merged into, if the caller sees that one.
        let mut wholes = rule.part_of.iter();
        let said = rule.dropped && wholes.any(|&other| for_all(other) && seen(other));
        if !seen(at) || said || !rule.first.selects(proxy) {
            continue;
        }
        if !for_all(at) {
            return Some(rule.clone());
        }
        last = Some(rule);
    }
    last.cloned()
}

/// Merges rules of one host, in their order.
///
/// As in Istio, a later rule is merged into an earlier one when it is exported to the same namespaces or
/// to more, unless both select different workloads: its subsets are added, and its policy where there is
/// none. Whether it also stands by itself is settled by the last of the earlier ones. Istio then drops the later rule
/// in cases where some callers see it and not the earlier one (istio/istio#58322); here it stays for them.
///
/// Source: istio/istio `pilot/pkg/model/destination_rule.go`, `mergeDestinationRule`.
fn merge<'r>(rules: &[Rule<'r>]) -> Vec<Merged<'r>> {
    let is_made = |rule: &Rule<'r>| rule.meta.id.is_backend_tls_policy();
    let is_beside = |rule: &Rule<'r>| rule.selector.is_none() && rule.export_to.is_empty();
    let (made, written): (Vec<Rule<'r>>, Vec<Rule<'r>>) = rules.iter().partition(|it| is_made(it));
    let mut merged: Vec<Merged<'r>> = Vec::new();
    // A policy joins a rule that is exported like it, and stands before all others where there is none.
    if !written.iter().any(is_beside) {
        merged.extend(
            made.first()
                .map(|rule| Merged::of(*rule, Vec::new(), false)),
        );
    }
    merge_written(&written, &mut merged);
    if let Some(home) = merged.iter_mut().find(|it| is_beside(&it.first)) {
        let others = made.iter().filter(|it| it.index != home.first.index);
        home.others.extend(others);
        home.attached = made;
    }
    merged
}

fn merge_written<'r>(rules: &[Rule<'r>], merged: &mut Vec<Merged<'r>>) {
    for rule in rules {
        let exports = rule.exports();
        let mut part_of = Vec::new();
        let (mut covered, mut stands) = (false, true);
        for (at, earlier) in merged.iter_mut().enumerate() {
            let theirs = earlier.first.exports();
            let wider = theirs.iter().all(|to| exports.contains(to));
            let same = wider && exports.iter().all(|to| theirs.contains(to));
            stands = true;
            if !same && (theirs.is_empty() || !wider) {
                continue;
            }
            match (&earlier.first.selector, &rule.selector) {
                (Some(a), Some(b)) if !same_labels(a, b) => continue,
                (a, b) => {
                    let alike = a.is_some() == b.is_some();
                    covered |= same && alike;
                    stands = !same && !alike;
                }
            }
            earlier.add(*rule);
            part_of.push(at);
        }
        if stands || !covered {
            merged.push(Merged::of(*rule, part_of, !stands));
        }
    }
}

fn same_labels(a: &[(String, String)], b: &[(String, String)]) -> bool {
    a.len() == b.len() && a.iter().all(|label| b.contains(label))
}

/// What a rule says for one port, and which part of which rule says it of TLS.
#[derive(Clone, Copy)]
pub(crate) struct Settings<'r> {
    pub(crate) rule: Rule<'r>,
    pub(crate) source: PolicySource,
    pub(crate) tls: Option<&'r ClientTls>,
    pub(crate) load_balancer: Option<&'r LoadBalancer>,
    pub(crate) connection_pool: Option<&'r ConnectionPool>,
    pub(crate) outlier_detection: Option<&'r OutlierDetection>,
    pub(crate) tunnel: Option<&'r Tunnel>,
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    pub(crate) retry_budget: Option<&'r RetryBudget>,
    /// What annotations say, of the rule and of those that it is merged with.
    pub(crate) notes: Notes,
}

impl<'r> Settings<'r> {
    fn of(rule: Rule<'r>, source: PolicySource, policy: Option<&'r TrafficPolicy>) -> Self {
        Settings {
            rule,
            source,
            tls: policy.and_then(|policy| policy.tls.as_deref()),
            load_balancer: policy.and_then(|policy| policy.load_balancer.as_deref()),
            connection_pool: policy.and_then(|policy| policy.connection_pool.as_deref()),
            outlier_detection: policy.and_then(|policy| policy.outlier_detection.as_deref()),
            tunnel: policy.and_then(|policy| policy.tunnel.as_deref()),
            proxy_protocol: policy.and_then(|policy| policy.proxy_protocol),
            retry_budget: policy.and_then(|policy| policy.retry_budget.as_ref()),
            notes: Notes::default(),
        }
    }

    /// Takes TLS from others where there is none.
    fn filled(self, others: Option<Settings<'r>>) -> Self {
        match others.filter(|others| self.tls.is_none() && others.tls.is_some()) {
            Some(others) => Settings {
                rule: others.rule,
                source: others.source,
                tls: others.tls,
                ..self
            },
            None => self,
        }
    }
}

/// Returns the settings for one service port.
///
/// A matching `portLevelSettings` entry replaces the rule's settings as a whole: what it leaves out
/// takes its default and is not inherited, `tunnel`, `proxyProtocol` and `retryBudget` included. The
/// first match wins. `port` is the service port, never the target port. Of what is attached, `tls` for the port fills
/// a gap in such an entry or makes one, and `tls` for all ports fills a gap in the rest.
///
/// Source: istio/istio `pilot/pkg/networking/util/util.go`, `GetPortLevelTrafficPolicy`, and
/// `pilot/pkg/model/destination_rule.go`, `mergeBackendPolicyTrafficPolicy`.
pub(crate) fn for_port<'r>(merged: &Merged<'r>, port: PortNumber) -> Settings<'r> {
    let of_port = |(rule, policy): (Rule<'r>, &'r TrafficPolicy)| {
        let entry = policy.port_level.iter().find(|entry| entry.port == port)?;
        let source = PolicySource::Port(entry.index);
        Some(Settings::of(rule, source, Some(&entry.policy)))
    };
    let whole = |(rule, policy)| Settings::of(rule, PolicySource::Rule, Some(policy));
    let attached = || {
        let made = merged.attached.iter();
        made.filter_map(|rule| Some((*rule, rule.item.policy.as_deref()?)))
    };
    let own = merged.policy.and_then(of_port);
    let added = attached().find_map(of_port);
    let settings = match (own, added) {
        (Some(own), added) => own.filled(added),
        (None, Some(added)) => added,
        (None, None) => {
            let nothing = Settings::of(merged.first, PolicySource::Rule, None);
            let mut all = attached().map(whole);
            let added = all.find(|settings| settings.tls.is_some());
            merged.policy.map_or(nothing, whole).filled(added)
        }
    };
    Settings {
        notes: merged.notes(),
        ..settings
    }
}

/// Returns the settings for one service port of a subset.
///
/// What the subset says replaces what the rule says, block by block. Where the subset has an entry for
/// the port, that entry's four blocks replace the rule's even where it leaves them out.
///
/// Source: istio/istio `pilot/pkg/networking/util/util.go`, `MergeSubsetTrafficPolicy`.
pub(crate) fn for_subset<'r>(
    parent: Settings<'r>,
    rule: Rule<'r>,
    subset: &'r Subset,
    port: PortNumber,
) -> Settings<'r> {
    let Some(policy) = &subset.policy else {
        return parent;
    };
    let whole = Settings::of(rule, PolicySource::Subset(subset.index), Some(policy));
    let tunnel = whole.tunnel.or(parent.tunnel);
    let proxy_protocol = whole.proxy_protocol.or(parent.proxy_protocol);
    let retry_budget = whole.retry_budget.or(parent.retry_budget);
    let own = match policy.port_level.iter().find(|entry| entry.port == port) {
        Some(entry) => {
            let source = PolicySource::SubsetPort(subset.index, entry.index);
            Settings::of(rule, source, Some(&entry.policy))
        }
        None => {
            let (rule, source) = if whole.tls.is_some() {
                (rule, whole.source)
            } else {
                (parent.rule, parent.source)
            };
            Settings {
                rule,
                source,
                tls: whole.tls.or(parent.tls),
                load_balancer: whole.load_balancer.or(parent.load_balancer),
                connection_pool: whole.connection_pool.or(parent.connection_pool),
                outlier_detection: whole.outlier_detection.or(parent.outlier_detection),
                ..whole
            }
        }
    };
    Settings {
        tunnel,
        proxy_protocol,
        retry_budget,
        notes: parent.notes,
        ..own
    }
}
