//! Which DestinationRule speaks for a service, and which part of it for a port, as Istio has it.

use std::collections::BTreeMap;

use crate::host::HostPattern;
use crate::port::PortNumber;
use crate::resource::{ClientTls, ConnectionPool, DestinationRule, LoadBalancer, OutlierDetection};
use crate::table::index::HostIndex;

/// The namespace whose rules are for everyone.
///
/// Source: istio/istio `pkg/config/constants`, `IstioSystemNamespace`; the mesh's `rootNamespace` default.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// The workload whose traffic is decided: it sees what is exported to its namespace, and rules may
/// select it by its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Default for Proxy {
    fn default() -> Self {
        Proxy {
            namespace: crate::resource::DEFAULT_NAMESPACE.to_owned(),
            labels: BTreeMap::new(),
        }
    }
}

/// Says whether a resource of `owner` with this `exportTo` is seen from `namespace`.
pub(crate) fn exported(export_to: &[String], owner: &str, namespace: &str) -> bool {
    export_to.is_empty()
        || export_to
            .iter()
            .any(|to| to == "*" || to == namespace || (to == "." && owner == namespace))
}

/// All rules, found by namespace and host.
pub(crate) struct RuleIndex<'r> {
    /// What each namespace uses itself.
    local: BTreeMap<&'r str, HostIndex<Vec<&'r DestinationRule>>>,
    /// What each namespace offers to others.
    offered: BTreeMap<&'r str, HostIndex<Vec<&'r DestinationRule>>>,
}

impl<'r> RuleIndex<'r> {
    /// Files the rules: with a selector first, then the oldest first.
    ///
    /// Source: istio/istio `pilot/pkg/model/push_context.go`, `setDestinationRules`.
    pub(crate) fn of(rules: &'r [DestinationRule]) -> Self {
        let mut sorted: Vec<&DestinationRule> = rules.iter().collect();
        sorted.sort_by(|a, b| {
            (a.selector.is_none(), a.meta.order()).cmp(&(b.selector.is_none(), b.meta.order()))
        });
        let mut index = RuleIndex {
            local: BTreeMap::new(),
            offered: BTreeMap::new(),
        };
        for rule in sorted {
            let owner = rule.meta.id.namespace.as_str();
            let own = |to: &String| to == "." || to == owner;
            let private = rule.selector.is_some()
                || (rule.export_to.len() == 1 && rule.export_to.iter().all(own));
            if rule.selector.is_some() || exported(&rule.export_to, owner, owner) {
                let rules = index
                    .local
                    .entry(owner)
                    .or_default()
                    .entry(&rule.host, Vec::new);
                rules.into_iter().for_each(|rules| rules.push(rule));
            }
            if !private {
                let rules = index
                    .offered
                    .entry(owner)
                    .or_default()
                    .entry(&rule.host, Vec::new);
                rules.into_iter().for_each(|rules| rules.push(rule));
            }
        }
        index
    }

    /// Returns the rule for calls of `proxy` to `host`, a service of namespace `owner`.
    ///
    /// The proxy's own namespace is asked first, then the service's, then the root. The first of them
    /// that has any rule for the host settles it, by its most specific host alone; rules of a wider
    /// host fill no gaps. A rule that selects the workload wins over one that selects all.
    ///
    /// Source: istio/istio `pilot/pkg/model/push_context.go`, `destinationRule`, and
    /// `pilot/pkg/model/sidecar.go`, `DestinationRule`.
    pub(crate) fn rule(
        &self,
        proxy: &Proxy,
        owner: &str,
        host: &HostPattern,
    ) -> Option<&'r DestinationRule> {
        let namespace = proxy.namespace.as_str();
        if let Some(rules) = self
            .local
            .get(namespace)
            .and_then(|index| index.find_pattern(host))
        {
            return applicable(rules.iter().copied(), proxy);
        }
        [owner, ROOT_NAMESPACE].into_iter().find_map(|offering| {
            let rules = self.offered.get(offering)?.find_pattern(host)?;
            applicable(
                rules
                    .iter()
                    .copied()
                    .filter(|rule| exported(&rule.export_to, offering, namespace)),
                proxy,
            )
        })
    }
}

fn applicable<'r>(
    rules: impl Iterator<Item = &'r DestinationRule>,
    proxy: &Proxy,
) -> Option<&'r DestinationRule> {
    let mut for_all = None;
    for rule in rules {
        match &rule.selector {
            None => for_all = for_all.or(Some(rule)),
            Some(labels) => {
                let selected = rule.meta.id.namespace == proxy.namespace
                    && labels
                        .iter()
                        .all(|(key, value)| proxy.labels.get(key) == Some(value));
                if selected {
                    return Some(rule);
                }
            }
        }
    }
    for_all
}

/// Which part of a rule speaks for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicySource {
    /// `spec.trafficPolicy`.
    Rule,
    /// An item of `spec.trafficPolicy.portLevelSettings`.
    Port(usize),
}

impl PolicySource {
    /// Returns the field's path.
    pub fn path(self) -> String {
        match self {
            PolicySource::Rule => "spec.trafficPolicy".to_owned(),
            PolicySource::Port(index) => format!("spec.trafficPolicy.portLevelSettings[{index}]"),
        }
    }
}

/// What a rule says for one port.
#[derive(Clone, Copy)]
pub(crate) struct Settings<'r> {
    pub(crate) source: PolicySource,
    pub(crate) tls: Option<&'r ClientTls>,
    pub(crate) load_balancer: Option<LoadBalancer>,
    pub(crate) connection_pool: Option<&'r ConnectionPool>,
    pub(crate) outlier_detection: Option<&'r OutlierDetection>,
}

/// Returns the settings for one service port.
///
/// A matching `portLevelSettings` entry replaces the rule's settings as a whole: what it leaves out
/// takes its default and is not inherited. The first match wins. `port` is the service port, never
/// the target port.
///
/// Source: istio/istio `pilot/pkg/networking/util/util.go`, `GetPortLevelTrafficPolicy`.
pub(crate) fn for_port(rule: &DestinationRule, port: PortNumber) -> Settings<'_> {
    let (source, policy) = match rule
        .policy
        .port_level
        .iter()
        .find(|entry| entry.port == port)
    {
        Some(entry) => (PolicySource::Port(entry.index), &entry.policy),
        None => (PolicySource::Rule, &rule.policy),
    };
    Settings {
        source,
        tls: policy.tls.as_ref(),
        load_balancer: policy.load_balancer,
        connection_pool: policy.connection_pool.as_ref(),
        outlier_detection: policy.outlier_detection.as_ref(),
    }
}
