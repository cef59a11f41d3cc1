//! Where connections go, packed.

use crate::policy_source::PolicySource;
use crate::reason::Reason;

/// Where connections to a port or subset go: a cluster, or why nowhere; and which rule said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The index of the cluster.
    pub(crate) cluster: u32,
    /// The index of the rule among all resources.
    rule: u32,
    subset: u32,
    port_level: u32,
}

/// No index. So many do not fit into memory.
pub(crate) const NONE: u32 = u32::MAX;

/// Verdicts that lead nowhere have the index of their reason, counted from here, for that of a cluster.
const REFUSED: u32 = NONE - Reason::OF_THE_TABLE.len() as u32;

pub(crate) fn narrow(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(NONE)
}

impl Verdict {
    pub(crate) fn new(cluster: usize, rule: Option<(usize, PolicySource)>) -> Self {
        let (subset, port_level) = match rule.map(|(_, source)| source) {
            None | Some(PolicySource::Rule) => (NONE, NONE),
            Some(PolicySource::Port(port)) => (NONE, narrow(port)),
            Some(PolicySource::Subset(subset)) => (narrow(subset), NONE),
            Some(PolicySource::SubsetPort(subset, port)) => (narrow(subset), narrow(port)),
        };
        Verdict {
            cluster: narrow(cluster),
            rule: rule.map_or(NONE, |(rule, _)| narrow(rule)),
            subset,
            port_level,
        }
    }

    /// Makes a way that leads nowhere, for this reason.
    pub(crate) fn refused(reason: Reason, rule: Option<(usize, PolicySource)>) -> Self {
        let known = Reason::OF_THE_TABLE.iter().position(|&one| one == reason);
        let mut verdict = Verdict::new(0, rule);
        verdict.cluster = known.map_or(NONE, |at| REFUSED + narrow(at));
        verdict
    }

    /// Returns why the way leads nowhere, if it does not.
    pub(crate) fn refusal(&self) -> Option<Reason> {
        let at = self.cluster.checked_sub(REFUSED)?;
        Reason::OF_THE_TABLE.get(at as usize).copied()
    }

    /// Returns the index of the rule among all resources, and which part of it counts.
    pub(crate) fn rule(&self) -> Option<(usize, PolicySource)> {
        let index = |index: u32| (index != NONE).then_some(index as usize);
        let source = match (index(self.subset), index(self.port_level)) {
            (None, None) => PolicySource::Rule,
            (None, Some(port)) => PolicySource::Port(port),
            (Some(subset), None) => PolicySource::Subset(subset),
            (Some(subset), Some(port)) => PolicySource::SubsetPort(subset, port),
        };
        Some((index(self.rule)?, source))
    }
}
