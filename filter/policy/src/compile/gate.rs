//! The gate: plaintext leaves only where somebody asked for it.
//!
//! It looks at what the table would forward, never at the text of the rules. Forwarding is intended in two cases. A
//! rule says `mode: DISABLE`, or the service dials no TLS port and no rule asks for TLS to it. The rest falls into
//! three classes:
//!
//! - A *mistake* is an error: no caller can ever be served as the rule asks, or plaintext would go to a TLS port.
//! - *Left out* refuses the service for this caller: a rule asks for TLS, but it is for other callers.
//! - *Not read* refuses it too: a resource that is not carried out may decide about it.
//!
//! [`AllowPlaintext`] turns each of them into a warning.

use crate::cluster::Cluster;
use crate::compile::compiler::{Compiler, Plain};
use crate::compile::owners::{Entry, Leads, Owner, is_looked_up};
use crate::host::HostPattern;
use crate::indexed::Indexed;
use crate::merge::{ByHost, Merged, Rule, Settings, for_port};
use crate::options::{AllowPlaintext, CompileOptions, OutboundMode};
use crate::order::{sort_by, sorted};
use crate::policy_source::PolicySource;
use crate::port::{PortNumber, Protocol};
use crate::problem::{FieldPath, ProblemKind, Segment, Severity, edits};
use crate::proxy::Proxy;
use crate::query::DownstreamProtocol;
use crate::reason::Reason;
use crate::resource::{
    Asked, ClientTls, DestinationRule, Meta, Resources, ServiceEntry, ServicePort, TlsMode,
    TrafficPolicy, Unread,
};
use crate::source::problem_of;
use crate::table::hosts::Port;
use crate::table::verdict::Verdict;

/// A `tls` block that asks for TLS.
#[derive(Clone, Copy)]
struct Block<'r> {
    rule: Rule<'r>,
    source: PolicySource,
    /// It is for a port that the host has not got.
    stray: bool,
}

/// A service that is plaintext, though rules ask for TLS to it.
struct Suspect<'p, 'r> {
    host: HostPattern,
    service: &'p Plain<'r>,
    /// Where they ask, the most specific host first.
    naming: Vec<Block<'r>>,
}

/// Whether nobody sees what is exported so.
fn is_for_nobody(export_to: &[String]) -> bool {
    !export_to.is_empty() && export_to.iter().all(|to| to == "~")
}

fn asks(tls: Option<&ClientTls>) -> bool {
    tls.is_some_and(|tls| tls.mode != TlsMode::Disable)
}

fn disables(tls: Option<&ClientTls>) -> bool {
    tls.is_some_and(|tls| tls.mode == TlsMode::Disable)
}

/// Whether any part of a rule asks for TLS.
fn asks_anywhere(rule: &DestinationRule, modes: impl Fn(TlsMode) -> bool) -> bool {
    let block = |policy: &TrafficPolicy| {
        let asks = |tls: Option<&ClientTls>| tls.is_some_and(|tls| modes(tls.mode));
        asks(policy.tls.as_deref())
            || policy
                .port_level
                .iter()
                .any(|entry| asks(entry.policy.tls.as_deref()))
    };
    let subsets = rule.subsets.iter();
    rule.policy.as_deref().is_some_and(block)
        || subsets
            .filter_map(|subset| subset.policy.as_ref())
            .any(block)
}

/// Returns the blocks of a rule that ask for TLS on a port; `has` tells the ports that the host has.
fn blocks<'r>(
    rule: Rule<'r>,
    port: PortNumber,
    has: impl Fn(PortNumber) -> bool,
) -> Vec<Block<'r>> {
    let mut found = Vec::new();
    let mut look = |policy: &'r TrafficPolicy, subset: Option<usize>| {
        let whole = subset.map_or(PolicySource::Rule, PolicySource::Subset);
        let part = |index| match subset {
            Some(subset) => PolicySource::SubsetPort(subset, index),
            None => PolicySource::Port(index),
        };
        let own = policy.port_level.iter().find(|entry| entry.port == port);
        let own_tls = own.and_then(|entry| entry.policy.tls.as_deref());
        if asks(policy.tls.as_deref()) && own_tls.is_none() {
            found.push((whole, false));
        }
        for entry in &policy.port_level {
            let stray = !has(entry.port);
            if asks(entry.policy.tls.as_deref()) && (entry.port == port || stray) {
                found.push((part(entry.index), stray));
            }
        }
        // A port that is told to be plaintext is not meant by what stands elsewhere.
        if disables(own_tls) {
            found.clear();
        }
    };
    if let Some(policy) = rule.item.policy.as_deref() {
        look(policy, None);
    }
    for subset in &rule.item.subsets {
        if let Some(policy) = &subset.policy {
            look(policy, Some(subset.index));
        }
    }
    let block = |(source, stray)| Block {
        rule,
        source,
        stray,
    };
    found.into_iter().map(block).collect()
}

impl<'r> Compiler<'r> {
    /// Notes a service that is forwarded in plaintext.
    pub(super) fn note_plain(
        &mut self,
        host: usize,
        (entry, port): (Entry<'r>, &'r ServicePort),
        leads: &Leads<'r>,
        found: &Port,
        merged: Option<&Merged<'r>>,
    ) {
        let cluster = self.clusters.get(found.verdict.cluster as usize);
        let plain = cluster.is_some_and(|cluster: &Cluster| cluster.tls.is_none());
        let exact = self
            .hosts
            .get(host)
            .is_some_and(|host| host.pattern.exact().is_some());
        let listens = match found.downstream {
            DownstreamProtocol::Http => true,
            DownstreamProtocol::Tls => false,
            DownstreamProtocol::Tcp => exact && port.protocol != Protocol::Unset,
        };
        if plain && listens {
            let settings = merged.map(|merged| for_port(merged, port.number));
            let Some(named) = self.pattern(host) else {
                return;
            };
            self.plain.push(Plain {
                host,
                called: port.number,
                to: host,
                named,
                entry,
                port,
                downstream: found.downstream,
                dialled: dialled(leads, port),
                disabled: disables(settings.and_then(|settings: Settings<'_>| settings.tls)),
            });
        }
    }

    /// Judges everything that would be forwarded, and refuses what must not be.
    pub(super) fn gate(&mut self) {
        self.refuse_unread();
        let plain = std::mem::take(&mut self.plain);
        // Services that a rule is said to miss need no second sentence.
        let told = self.check_unused(&plain);
        let entries = &self.resources.service_entries;
        let hidden = entries.iter().any(|entry| is_for_nobody(&entry.export_to));
        let is_wild = |service: &Plain<'r>| {
            let host = self.hosts.get(service.host);
            host.is_some_and(|host| host.pattern.exact().is_none())
        };
        let meant = plain
            .iter()
            .all(|service| service.disabled && !is_wild(service));
        let mut asking = ByHost::default();
        if !meant || hidden || self.options.outbound == OutboundMode::AllowAny {
            // In their order, so that the order of the documents says nothing.
            let rules = &self.resources.destination_rules;
            let order = sorted(&rules.iter().map(|rule| &rule.meta).collect::<Vec<_>>());
            for rule in order
                .into_iter()
                .filter_map(|index| Indexed::at(rules, index))
            {
                if asks_anywhere(&rule, |mode| mode != TlsMode::Disable) {
                    asking.add(rule);
                }
            }
        }
        let mut suspects = Vec::new();
        let mut counted = None;
        for (service, &told) in plain.iter().zip(&told) {
            let host = service.named.clone();
            if told || !self.hosts.is_served(service.host, service.called) {
                continue;
            }
            if service.disabled || self.passes(&host, service, &asking, &mut suspects) {
                if counted != Some(service.host) {
                    self.summary.forwarded += 1;
                }
                counted = Some(service.host);
            }
        }
        for (service, told) in plain.iter().zip(told) {
            if !told {
                self.refuse_below(service, &asking);
            }
        }
        let served = self.served(&suspects);
        for (suspect, served) in suspects.iter().zip(served) {
            match served {
                true => self.left_out(suspect),
                false => self.never_served(suspect),
            }
        }
        self.check_exports(&asking);
        self.name_for_everybody(&asking);
    }

    fn pattern(&self, host: usize) -> Option<HostPattern> {
        self.hosts.get(host).map(|host| host.pattern.clone())
    }

    /// Whether a service may go on as plaintext. One for which a rule asks for TLS becomes a suspect.
    fn passes<'p>(
        &mut self,
        host: &HostPattern,
        service: &'p Plain<'r>,
        asking: &ByHost<'r>,
        suspects: &mut Vec<Suspect<'p, 'r>>,
    ) -> bool {
        let number = service.port.number;
        let has = |other| {
            let host = self.hosts.get(service.to);
            host.is_some_and(|host| self.hosts.port(host, other).is_some())
        };
        let mut naming = Vec::new();
        for rule in asking.covering(host) {
            naming.extend(blocks(rule, number, has));
        }
        let tls_port = self.tls_port(service);
        if naming.is_empty() && tls_port.is_none() {
            return true;
        }
        if self.allow(host, service, naming.first()) {
            return true;
        }
        match tls_port.filter(|_| naming.is_empty()) {
            Some(tls_port) => self.plaintext_to_tls(host, service, tls_port),
            None => suspects.push(Suspect {
                host: host.clone(),
                service,
                naming,
            }),
        }
        false
    }

    /// Whether plaintext to a service is allowed; then it is marked, and told.
    fn allow(
        &mut self,
        host: &HostPattern,
        service: &Plain<'r>,
        block: Option<&Block<'r>>,
    ) -> bool {
        let number = service.called;
        let called = self.pattern(service.host);
        let of_called = called.as_ref().and_then(|host| self.allowed(host, number));
        let Some(allowed) = of_called.or_else(|| self.allowed(host, service.port.number)) else {
            return false;
        };
        let mut text = format!(
            "port {number} of `{host}` is forwarded in plaintext, as `--allow-plaintext` says"
        );
        for note in [&allowed.reason, &allowed.date].into_iter().flatten() {
            text = format!("{text}; {note}");
        }
        if let Some(port) = self.hosts.port_mut(service.host, number) {
            port.allowed = true;
        }
        let (meta, path) = match block {
            Some(block) => (&block.rule.meta, tls_of(block.source)),
            None => (&service.entry.meta, port_of(service.port)),
        };
        self.tell(
            Severity::Warning,
            "plaintext-allowed",
            meta,
            path,
            text,
            "remove the flag once the rules are fixed",
        );
        true
    }

    fn allowed(&self, host: &HostPattern, port: PortNumber) -> Option<&'r AllowPlaintext> {
        let is_it = |allowed: &&AllowPlaintext| {
            allowed.host.covers(host) && allowed.port.is_none_or(|own| own == port)
        };
        self.options.allow_plaintext.iter().find(is_it)
    }

    pub(super) fn tell(
        &mut self,
        severity: Severity,
        id: &'static str,
        meta: &Meta,
        path: FieldPath,
        text: String,
        hint: &str,
    ) {
        let kind = ProblemKind::Conflict(text);
        let mut problem = problem_of(severity, meta, path, kind, Some(hint.to_owned()));
        problem.id = Some(id);
        self.problems.push(problem);
    }

    /// Reports a mistake for which a service is refused.
    fn mistake(
        &mut self,
        service: &Plain<'r>,
        id: &'static str,
        at: (&Meta, FieldPath),
        text: String,
        hint: &str,
    ) {
        let before = self.problems.len();
        self.tell(Severity::Error, id, at.0, at.1, text, hint);
        self.blame(service.host, service.called, before..self.problems.len());
    }

    /// Returns the TLS port that a service dials, if it dials one.
    fn tls_port(&self, service: &Plain<'r>) -> Option<PortNumber> {
        let host = self.hosts.get(service.to)?;
        let is_tls = |dialled: &PortNumber| {
            let mut ports = self.hosts.ports(host);
            *dialled == PortNumber::HTTPS
                || ports.any(|port| {
                    port.downstream == DownstreamProtocol::Tls
                        && (port.number == *dialled || port.target == *dialled)
                })
        };
        service.dialled.iter().copied().find(is_tls)
    }

    fn plaintext_to_tls(&mut self, host: &HostPattern, service: &Plain<'r>, tls_port: PortNumber) {
        let number = service.port.number;
        let spoken = match service.downstream {
            DownstreamProtocol::Http => "HTTP",
            DownstreamProtocol::Tls | DownstreamProtocol::Tcp => "TCP",
        };
        let text = format!(
            "plain {spoken} of port {number} of `{host}` would go to TLS port {tls_port}, and no DestinationRule asks for TLS"
        );
        let own = match service.downstream {
            DownstreamProtocol::Tcp => {
                "; if applications speak TLS themselves, write `protocol: TLS`"
            }
            _ => "",
        };
        let allow = allow_hint(host, number);
        let hint = format!(
            "add a DestinationRule for the host with `trafficPolicy.tls.mode: SIMPLE`{own}; {allow}"
        );
        let at = (&service.entry.meta, port_of(service.port));
        self.mistake(service, "plaintext-to-443", at, text, &hint);
    }

    /// Reports a `tls` that no caller is served by.
    fn never_served(&mut self, suspect: &Suspect<'_, 'r>) {
        let Suspect {
            host,
            service,
            naming,
        } = suspect;
        let number = service.port.number;
        // The rule that decides about the host is the one to mend, where it asks for TLS somewhere.
        let owner = &service.entry.meta.id.namespace;
        let chosen = self.rules.rule(&self.options.proxy, owner, host);
        let decides = |block: &&Block<'r>| {
            let rule = chosen.as_ref().map(|chosen| &chosen.first.meta.id);
            rule == Some(&block.rule.meta.id)
        };
        let Some(block) = naming.iter().find(decides).or(naming.first()).copied() else {
            return;
        };
        let rule = block.rule;
        let so = format!("port {number} of `{host}` would be plaintext");
        let allow = allow_hint(host, number);
        let at = (&rule.meta, tls_of(block.source));
        if block.stray {
            let text = format!("the host has no such port, so this `tls` is never used, and {so}");
            let known = self.hosts.get(service.to);
            let ports = known.map(|known| {
                let ports = self.hosts.ports(known).map(|port| port.number.to_string());
                ports.collect::<Vec<_>>().join(", ")
            });
            let hint = format!(
                "the ServiceEntry has port {}; {allow}",
                ports.unwrap_or_default()
            );
            return self.mistake(service, "port-never-matches", at, text, &hint);
        }
        let (subset, policy) = match block.source {
            PolicySource::Rule | PolicySource::Port(_) => (None, rule.policy.as_deref()),
            PolicySource::Subset(at) | PolicySource::SubsetPort(at, _) => {
                (rule.subsets.iter().find(|subset| subset.index == at), None)
            }
        };
        if let Some(subset) = subset {
            let text = format!(
                "nothing leads to subset `{}`, so this `tls` is never used, and {so}",
                subset.name
            );
            let hint = format!("give `tls` in the rule's own `trafficPolicy`; {allow}");
            return self.mistake(service, "tls-in-unused-subset", at, text, &hint);
        }
        let own =
            policy.and_then(|policy| policy.port_level.iter().find(|entry| entry.port == number));
        if let (PolicySource::Rule, Some(own)) = (block.source, own) {
            let text = format!(
                "`portLevelSettings[{}]` replaces it for port {number}, so {so}",
                own.index
            );
            let hint = "repeat `tls` in that entry; if plaintext is meant, write `tls: {mode: DISABLE}` there";
            return self.mistake(service, "port-settings-drop-tls", at, text, hint);
        }
        let why = self.why_not(host, service, &rule);
        let text = format!("no caller gets this `tls`: {why}; {so}");
        let hint = format!("let one rule say all there is to say about the host; {allow}");
        self.mistake(service, "shadowed-rule", at, text, &hint);
    }

    /// Refuses a service for this caller, since a rule asks for TLS for others.
    fn left_out(&mut self, suspect: &Suspect<'_, 'r>) {
        let Suspect {
            host,
            service,
            naming,
        } = suspect;
        let number = service.port.number;
        if let Some(port) = self.hosts.port_mut(service.host, service.called) {
            port.verdict = Verdict::refused(Reason::LeftOut, port.verdict.rule());
        }
        let Some(block) = naming.first() else { return };
        let why = self.why_not(host, service, &block.rule);
        let text = format!(
            "it asks for TLS to `{host}`, but not for this caller: {why}; port {number} is refused for it (`left_out`)"
        );
        let allow = allow_hint(host, number);
        let hint = format!(
            "say who is calling by `--namespace` and `--label`, or let the rule be for this caller; {allow}"
        );
        self.tell(
            Severity::Warning,
            "tls-for-other-callers",
            &block.rule.meta,
            tls_of(block.source),
            text,
            &hint,
        );
    }

    /// Returns why a rule does not count for this caller.
    fn why_not(&self, host: &HostPattern, service: &Plain<'r>, rule: &DestinationRule) -> String {
        let proxy = &self.options.proxy;
        let (caller, owner) = (proxy.namespace.as_str(), &*service.entry.meta.id.namespace);
        let namespace = &*rule.meta.id.namespace;
        if !rule.seen_from(caller, &self.options.mesh) && rule.selector.is_none() {
            return format!("`exportTo` does not name the caller's namespace `{caller}`");
        }
        let root = self.options.mesh.root_namespace.as_str();
        if ![caller, owner, root].contains(&namespace) {
            return format!(
                "it stands in namespace `{namespace}`, and rules are taken from those of the caller (`{caller}`), of the ServiceEntry (`{owner}`) and the root (`{root}`)"
            );
        }
        if !rule.selects(proxy) {
            return "its `workloadSelector` does not match the caller's labels".to_owned();
        }
        match self.rules.rule(proxy, owner, host) {
            Some(chosen) => format!("{} decides instead", chosen.first.meta.id),
            None => format!(
                "rules of namespace `{caller}` come first, and none of them is for this caller"
            ),
        }
    }

    /// Refuses hosts below a wildcard that is plaintext, where a rule asks for TLS to them: no cluster of theirs has the
    /// port, so their requests would go by the wildcard.
    fn refuse_below(&mut self, service: &Plain<'r>, asking: &ByHost<'r>) {
        let number = service.called;
        let Some(wild) = self
            .pattern(service.host)
            .filter(|host| host.exact().is_none())
        else {
            return;
        };
        let port = self.hosts.port_mut(service.host, number).cloned();
        let Some(port) = port.filter(|port| port.verdict.refusal().is_none()) else {
            return;
        };
        // A host goes by the wildcard until one between them is refused, so the most specific are asked first.
        let mut hosts: Vec<_> = asking.hosts().collect();
        sort_by(&mut hosts, |(one, _), (other, _)| {
            other.text().len().cmp(&one.text().len())
        });
        for (host, rules) in hosts {
            if *host == wild || !wild.covers(host) || self.allowed(host, number).is_some() {
                continue;
            }
            let names = |rule: &&Rule<'r>| !blocks(**rule, number, |_| true).is_empty();
            let Some(&rule) = rules.iter().find(names) else {
                continue;
            };
            let goes_there = match host.exact() {
                Some(name) => self.hosts.find_map(name.as_str(), |found| {
                    self.hosts.port(found, number)?;
                    Some(found.pattern == wild)
                }),
                None => {
                    let own = self.hosts.index(host).and_then(|at| self.hosts.get(at));
                    Some(own.is_none_or(|own| self.hosts.port(own, number).is_none()))
                }
            };
            if goes_there != Some(true) {
                continue;
            }
            let (index, new) = self.hosts.entry(host, service.entry.index);
            if new {
                let entry = service.entry;
                self.owners.push(Some(Owner { entry, host }));
            }
            let verdict = Verdict::refused(
                Reason::LeftOut,
                Some((self.rule_index(rule), PolicySource::Rule)),
            );
            let port = Port::new(number, port.target, port.downstream, verdict);
            self.hosts.add_port(index, port, Vec::new());
            let text = format!(
                "it asks for TLS to `{host}`, but requests on port {number} go by `{wild}`, which is plaintext: they are refused (`left_out`)"
            );
            let allow = allow_hint(host, number);
            let hint = format!(
                "give `{host}` a ServiceEntry with port {number}, or let a rule ask for TLS to `{wild}`; {allow}"
            );
            let path = FieldPath::keys("spec.host");
            self.tell(
                Severity::Warning,
                "host-never-matches",
                &rule.meta,
                path,
                text,
                &hint,
            );
        }
    }

    /// Finds out which services are TLS for any caller: one of each namespace, with the labels of each selector.
    fn served(&self, suspects: &[Suspect<'_, 'r>]) -> Vec<bool> {
        let mut served = vec![false; suspects.len()];
        if suspects.is_empty() {
            return served;
        }
        let rules = &self.resources.destination_rules;
        let entries = &self.resources.service_entries;
        // Nobody's namespace stands for all that no rule names.
        let mut namespaces = vec![""];
        let mut add = |name: &'r str| {
            if !matches!(name, "." | "*" | "~") && !namespaces.contains(&name) {
                namespaces.push(name);
            }
        };
        let entries = entries.iter().map(|entry| (&entry.meta, &entry.export_to));
        let all = entries.chain(rules.iter().map(|rule| (&rule.meta, &rule.export_to)));
        for (meta, export_to) in all {
            add(&meta.id.namespace);
            export_to.iter().for_each(|name| add(name));
        }
        for proxy in namespaces
            .into_iter()
            .flat_map(|name| Proxy::kinds(name, rules))
        {
            let options = CompileOptions {
                proxy,
                ..self.options.clone()
            };
            let mut caller = Compiler::new(self.resources, &options);
            caller.entries();
            for (suspect, served) in suspects.iter().zip(&mut served) {
                let service = suspect.service;
                let called = self.pattern(service.host);
                let called = called.as_ref().unwrap_or(&suspect.host);
                *served |= caller.originates(called, service.called);
            }
        }
        served
    }

    fn originates(&self, host: &HostPattern, port: PortNumber) -> bool {
        let host = self.hosts.index(host).and_then(|at| self.hosts.get(at));
        let port = host.and_then(|host| self.hosts.port(host, port));
        port.is_some_and(|port| {
            self.hosts.verdicts(port).any(|verdict| {
                let cluster = self.clusters.get(verdict.cluster as usize);
                cluster.is_some_and(|cluster| cluster.tls.is_some())
            })
        })
    }

    /// Reports rules that ask for TLS to a host that no ServiceEntry has, where a host that is plaintext may be meant.
    /// Returns for which of these it was told.
    fn check_unused(&mut self, plain: &[Plain<'r>]) -> Vec<bool> {
        let mut told = vec![false; plain.len()];
        for rule in &self.resources.destination_rules {
            // What the mesh speaks inside is not for the hosts of ServiceEntries.
            let asks = asks_anywhere(rule, |mode| {
                !matches!(mode, TlsMode::Disable | TlsMode::IstioMutual)
            });
            if !asks || self.is_known(&rule.host) {
                continue;
            }
            let Some((meant, text, hint)) = self.meant(rule, plain) else {
                self.summary.elsewhere += 1;
                continue;
            };
            let Some(pattern) = self.pattern(meant) else {
                continue;
            };
            let mut problem = None;
            for (service, told) in plain.iter().zip(&mut told) {
                if service.host != meant || service.disabled {
                    continue;
                }
                // Of two such rules the first tells of what is allowed.
                if *told || self.allow(&pattern, service, None) {
                    *told = true;
                    continue;
                }
                *told = true;
                match problem {
                    None => {
                        problem = Some(self.problems.len());
                        let at = (&rule.meta, FieldPath::keys("spec.host"));
                        self.mistake(service, "host-never-matches", at, text.clone(), &hint);
                    }
                    Some(at) => self.blame(meant, service.called, at..at + 1),
                }
            }
        }
        told
    }

    /// Whether any ServiceEntry has a host of a rule, for this caller or another.
    fn is_known(&self, host: &HostPattern) -> bool {
        if self.hosts.index(host).is_some() {
            return true;
        }
        let mut entries = self.resources.service_entries.iter();
        entries.any(|entry| entry.hosts.iter().any(|known| host.covers(known)))
    }

    /// Returns the host that a rule's author most likely meant, among those that are plaintext.
    fn meant(
        &self,
        rule: &DestinationRule,
        plain: &[Plain<'r>],
    ) -> Option<(usize, String, String)> {
        let pattern = |host: usize| self.hosts.get(host).map(|host| &host.pattern);
        let named = &rule.host;
        let written = named.to_string();
        let find = |is: &dyn Fn(&HostPattern, &ServiceEntry) -> bool| {
            let mut services = plain.iter().filter(|service| !service.disabled);
            let is = |service: &&Plain<'r>| {
                pattern(service.host).is_some_and(|host| is(host, &service.entry))
            };
            services.find(is).map(|service| service.host)
        };
        let shown = |host: usize| pattern(host).map(ToString::to_string).unwrap_or_default();
        if let Some(wide) = find(&|host, _| host != named && host.covers(named)) {
            let wide_name = shown(wide);
            return Some((
                wide,
                format!(
                    "no ServiceEntry has `{written}` itself: requests to it go by `{wide_name}`, for which no rule asks for TLS, so they would be plaintext"
                ),
                format!(
                    "give `{written}` a ServiceEntry of its own, or make the rule one for `{wide_name}`"
                ),
            ));
        }
        let suffix = format!(".{}.svc.cluster.local", rule.meta.id.namespace);
        if let Some(short) = written
            .strip_suffix(&suffix)
            .filter(|short| !short.contains('.'))
        {
            let begins = |text: &str| text.split('.').next() == Some(short);
            let found = find(&|host, _| host.exact().is_some_and(|name| begins(name.as_str())));
            if let Some(found) = found {
                let name = shown(found);
                let hint = match name.contains('.') {
                    true => format!("write `{name}`"),
                    false => {
                        format!("write `{short}.`, with a dot at the end; Istio needs it, too")
                    }
                };
                return Some((
                    found,
                    format!(
                        "`{short}` is read as `{written}`, which no ServiceEntry has, so `{name}` would be plaintext"
                    ),
                    hint,
                ));
            }
        }
        let plain = |text: &str| text.chars().take(255).collect::<Vec<char>>();
        let letters = plain(&written);
        let close = |host: &HostPattern, entry: &ServiceEntry| {
            let name = host.to_string();
            let far = name.len().abs_diff(written.len()) > 2;
            let parent = |one: &str, other: &str| {
                one.strip_suffix(other)
                    .is_some_and(|rest| rest.ends_with('.') && !rest.is_empty())
            };
            let (bare, bare_written) = (
                name.trim_start_matches("*."),
                written.trim_start_matches("*."),
            );
            (!far && edits(&plain(&name), &letters) <= 2)
                || (bare_written.contains('.') && parent(bare, bare_written))
                || (bare.contains('.') && parent(bare_written, bare))
                || bare == bare_written
                || (entry.meta.id.namespace == rule.meta.id.namespace
                    && entry.meta.id.name == rule.meta.id.name)
        };
        let found = find(&close)?;
        let name = shown(found);
        Some((
            found,
            format!(
                "no ServiceEntry has `{written}`, so this rule is never used, and `{name}` would be plaintext"
            ),
            format!(
                "did you mean `{name}`? If plaintext to it is meant, give `--allow-plaintext {name}`"
            ),
        ))
    }

    /// Refuses the hosts about which a resource that is not carried out may decide.
    fn refuse_unread(&mut self) {
        let unread = &self.resources.unread;
        if unread.is_empty() {
            return;
        }
        let proxy = &self.options.proxy;
        let mut refused: Vec<(usize, PortNumber, &'r Unread)> = Vec::new();
        for (at, host) in self.hosts.iter().enumerate() {
            let Some(entry) = self.owners.get(at).copied().flatten() else {
                continue;
            };
            let entry = entry.entry;
            for found in self.hosts.ports(host) {
                let port = entries_of(self.resources, entry.item, &host.pattern)
                    .flat_map(|entry| entry.ports.iter())
                    .find(|port| port.number == found.number);
                let Some(port) = port else { continue };
                let asked = Asked {
                    root: &self.options.mesh.root_namespace,
                    host: &host.pattern,
                    port,
                    entry: &entry,
                };
                let changes = unread.iter().find(|unread| unread.changes(asked, proxy));
                if let Some(by) = changes {
                    refused.push((at, found.number, by));
                }
            }
        }
        for (at, number, by) in refused {
            self.refuse_for(at, number, by);
        }
    }

    fn refuse_for(&mut self, host: usize, number: PortNumber, by: &Unread) {
        let Some(pattern) = self.hosts.get(host).map(|host| host.pattern.clone()) else {
            return;
        };
        let allowed = self.allowed(&pattern, number).is_some();
        if let Some(port) = self.hosts.port_mut(host, number) {
            match allowed {
                true => port.allowed = port.downstream != DownstreamProtocol::Tls,
                false => port.verdict = Verdict::refused(Reason::NotRead, port.verdict.rule()),
            }
        }
        let so = match allowed {
            true => "is decided without it, as `--allow-plaintext` says",
            false => "is refused (`not_read`)",
        };
        let text = format!(
            "{} may change where connections to `{pattern}` go, or their TLS, and is not read: port {number} {so}",
            by.id
        );
        let hint = "say the same by `targetPort` of the ServiceEntry and `tls` of the DestinationRule, and leave this resource out";
        let meta = Meta {
            id: by.id.clone(),
            origin: by.origin,
            created: String::new(),
            labels: Default::default(),
            notes: Default::default(),
        };
        self.tell(
            Severity::Warning,
            "not-read",
            &meta,
            FieldPath::keys("spec"),
            text,
            hint,
        );
    }

    /// Reports hosts that nobody sees, though a rule asks for TLS to them.
    fn check_exports(&mut self, asking: &ByHost<'r>) {
        let nobody = |entry: &ServiceEntry| is_for_nobody(&entry.export_to);
        let entries = &self.resources.service_entries;
        for entry in entries.iter().filter(|entry| nobody(entry)) {
            for host in &entry.hosts {
                // Another entry may have the host; this one gives it endpoints at most.
                let has = |other: &ServiceEntry| !nobody(other) && other.hosts.contains(host);
                if entries.iter().any(has) {
                    continue;
                }
                let Some(rule) = asking.covering(host).first().copied() else {
                    continue;
                };
                let text = format!(
                    "nobody sees `{host}`, so no caller can be served by the `tls` of {}",
                    rule.meta.id
                );
                let hint = "name the namespaces that call it, or leave `exportTo` out";
                let path = FieldPath::keys("spec.exportTo");
                self.tell(
                    Severity::Error,
                    "exported-to-nobody",
                    &entry.meta,
                    path,
                    text,
                    hint,
                );
            }
        }
    }

    /// Where unknown hosts are left alone: names those that a rule asks TLS for, so that they are not.
    fn name_for_everybody(&mut self, asking: &ByHost<'r>) {
        if self.options.outbound != OutboundMode::AllowAny || self.options.foreign {
            return;
        }
        for (host, rules) in asking.hosts() {
            let outside = |rule: &&Rule<'r>| {
                asks_anywhere(rule, |mode| {
                    !matches!(mode, TlsMode::Disable | TlsMode::IstioMutual)
                })
            };
            let allowed = |allowed: &AllowPlaintext| allowed.host.covers(host);
            if self.options.allow_plaintext.iter().any(allowed) {
                continue;
            }
            let Some(&rule) = rules.iter().find(outside) else {
                continue;
            };
            let first = self.rule_index(rule);
            self.hosts.name(host, first);
        }
    }
}

/// Returns the entries that may have given ports to a host.
fn entries_of<'r>(
    resources: &'r Resources,
    owner: &'r ServiceEntry,
    host: &'r HostPattern,
) -> impl Iterator<Item = &'r ServiceEntry> {
    let others = resources.service_entries.iter().filter(move |entry| {
        entry.meta.id.namespace == owner.meta.id.namespace && entry.hosts.contains(host)
    });
    std::iter::once(owner).chain(others)
}

/// Returns the ports that are dialled for a service port.
pub(super) fn dialled(leads: &Leads<'_>, port: &ServicePort) -> Vec<PortNumber> {
    let Leads::To(led) = leads else {
        return vec![port.target];
    };
    let mut dialled = Vec::new();
    for (entry, port) in led {
        let endpoints = entry.endpoints.iter();
        let endpoints = endpoints.filter(|endpoint| !endpoint.address.starts_with("unix://"));
        dialled.extend(endpoints.map(|endpoint| {
            let own = endpoint.ports.iter().find(|(name, _)| *name == port.name);
            own.map_or(port.target, |(_, port)| *port)
        }));
        if is_looked_up(entry) {
            dialled.push(port.target);
        }
    }
    dialled
}

/// Returns how to allow the plaintext of one service.
fn allow_hint(host: &HostPattern, port: PortNumber) -> String {
    format!("if plaintext is meant, give `--allow-plaintext {host}:{port}`")
}

fn tls_of(source: PolicySource) -> FieldPath {
    let mut path = source.path();
    path.0.push(Segment::Key("tls".to_owned()));
    path
}

fn port_of(port: &ServicePort) -> FieldPath {
    let mut path = FieldPath::keys("spec.ports");
    path.0.push(Segment::Index(port.index));
    path
}
