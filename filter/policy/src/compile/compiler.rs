//! What a table is made with, while it is made.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use crate::cluster::{Cluster, ClusterName};
use crate::compile::owners::{Entry, Leads, Owner};
use crate::compile::routing::{Named, Routing};
use crate::compile::scope::Scope;
use crate::host::HostPattern;
use crate::merge::{Rule, RuleIndex};
use crate::options::CompileOptions;
use crate::port::PortNumber;
use crate::problem::{FieldPath, Problem, ProblemKind, Segment, Severity};
use crate::proxy::{Proxy, Role};
use crate::query::DownstreamProtocol;
use crate::resource::{Meta, Resources, ServiceEntry, ServicePort};
use crate::source::problem_of;
use crate::table::GateSummary;
use crate::table::connections::Known;
use crate::table::hosts::Hosts;

pub(super) struct Compiler<'r> {
    pub(super) options: &'r CompileOptions,
    pub(super) rules: RuleIndex<'r>,
    pub(super) hosts: Hosts,
    /// The entry that is each host's service; a host that routes alone know has none.
    pub(super) owners: Vec<Option<Owner<'r>>>,
    /// What the caller sees; its hosts are those of the table.
    pub(super) scope: Rc<Scope<'r>>,
    /// What routers see, as far as they are asked.
    pub(super) routers: Vec<(Proxy, Rc<Scope<'r>>)>,
    pub(super) routing: Rc<Routing<'r>>,
    /// Names that connections of TLS ask for, with the route of each, for hosts to come.
    pub(super) names_to_come: Vec<(PortNumber, Named<'r>)>,
    /// The services whose connections are bytes.
    pub(super) connections: Vec<Candidate<'r>>,
    pub(super) clusters: Vec<Cluster>,
    pub(super) names: BTreeMap<ClusterName, usize>,
    pub(super) resources: &'r Resources,
    /// The clusters that hosts share: few, and looked for by what they are, so that no name is written to find one.
    pub(super) shared: Vec<usize>,
    pub(super) problems: Vec<Problem>,
    pub(super) faults: Vec<Fault>,
    /// The problems that each entry has by itself, where it has any.
    pub(super) entry_problems: BTreeMap<usize, Range<usize>>,
    /// What would be forwarded in plaintext.
    pub(super) plain: Vec<Plain<'r>>,
    pub(super) summary: GateSummary,
}

/// An error, and what is refused for it.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) host: usize,
    pub(super) port: PortNumber,
    /// The index of the error among all problems.
    pub(super) problem: usize,
}

/// A service that is forwarded in plaintext.
pub(super) struct Plain<'r> {
    /// Where its host is in the table, and the port of that which is plaintext.
    pub(super) host: usize,
    pub(super) called: PortNumber,
    /// The service that it is led to: its host's place in the table, and its host.
    pub(super) to: usize,
    pub(super) named: HostPattern,
    /// The entry that has the port.
    pub(super) entry: Entry<'r>,
    pub(super) port: &'r ServicePort,
    pub(super) downstream: DownstreamProtocol,
    /// The ports that are dialled: those of the endpoints, or the target.
    pub(super) dialled: Vec<PortNumber>,
    /// A rule says `mode: DISABLE`.
    pub(super) disabled: bool,
}

/// A TCP service while the table is made.
pub(super) struct Candidate<'r> {
    pub(super) entry: &'r ServiceEntry,
    /// The port's place in the entry.
    pub(super) index: usize,
    pub(super) port: PortNumber,
    pub(super) known: Known,
}

impl Candidate<'_> {
    pub(super) fn path(&self) -> FieldPath {
        let mut path = FieldPath::keys("spec.ports");
        path.0.push(Segment::Index(self.index));
        path
    }
}

/// A port of a host, as a cluster is wanted for it.
pub(super) struct Wanted<'w> {
    pub(super) entry: &'w ServiceEntry,
    pub(super) host: &'w HostPattern,
    pub(super) port: &'w ServicePort,
    /// Where its connections go.
    pub(super) leads: &'w Leads<'w>,
    /// The names that its certificate may have where the rule gives none.
    pub(super) names: &'w [String],
    pub(super) downstream: DownstreamProtocol,
    /// What the proxy is that goes there.
    pub(super) role: Role,
    /// It has a cluster of its own, whatever others have.
    pub(super) alone: bool,
    /// The host that its server is told by requests that VirtualServices lead there.
    pub(super) told: Option<&'w HostPattern>,
}

impl<'r> Compiler<'r> {
    pub(super) fn new(resources: &'r Resources, options: &'r CompileOptions) -> Self {
        Compiler {
            options,
            rules: RuleIndex::of(&resources.destination_rules, &options.mesh),
            hosts: Hosts::default(),
            owners: Vec::new(),
            scope: Rc::default(),
            routers: Vec::new(),
            routing: Rc::default(),
            names_to_come: Vec::new(),
            connections: Vec::new(),
            clusters: Vec::new(),
            names: BTreeMap::new(),
            resources,
            shared: Vec::new(),
            problems: Vec::new(),
            faults: Vec::new(),
            entry_problems: BTreeMap::new(),
            plain: Vec::new(),
            summary: GateSummary::default(),
        }
    }

    /// Notes that a host and port are refused for the errors among these problems.
    pub(super) fn blame(&mut self, host: usize, port: PortNumber, among: Range<usize>) {
        for problem in among {
            let found = self.problems.get(problem);
            if found.is_some_and(|found| found.severity == Severity::Error) {
                self.faults.push(Fault {
                    host,
                    port,
                    problem,
                });
            }
        }
    }

    pub(super) fn report(
        &mut self,
        severity: Severity,
        meta: &Meta,
        path: FieldPath,
        kind: ProblemKind,
        hint: &str,
    ) {
        self.problems.push(problem_of(
            severity,
            meta,
            path,
            kind,
            Some(hint.to_owned()),
        ));
    }

    /// Returns the indexes of the problems that an entry has by itself.
    pub(super) fn problems_of(&self, entry: Entry<'_>) -> Range<usize> {
        let found = self.entry_problems.get(&entry.index);
        found.cloned().unwrap_or_default()
    }

    /// Returns the index of a rule among all resources: behind the entries.
    pub(super) fn rule_index(&self, rule: Rule<'_>) -> usize {
        self.resources.service_entries.len() + rule.index
    }
}
