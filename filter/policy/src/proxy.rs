//! The workload that a table is for.

use std::collections::{BTreeMap, BTreeSet};

use crate::resource::{DEFAULT_NAMESPACE, DestinationRule};

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
    /// What it is for.
    pub role: Role,
}

/// What a proxy is for. Istio gives gateways the secrets that rules name, and sidecars only where a rule selects them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// It serves one application.
    #[default]
    Sidecar,
    /// It serves other proxies.
    Gateway,
}

crate::words! {
    /// The words that the configuration uses.
    Role {
        Sidecar "SIDECAR",
        Gateway "GATEWAY",
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Proxy {
            namespace: DEFAULT_NAMESPACE.to_owned(),
            labels: BTreeMap::new(),
            role: Role::Sidecar,
        }
    }
}

impl Proxy {
    /// Returns proxies of one namespace, unlabelled and with the labels of each selector there: whatever a rule
    /// does for any workload of the namespace, it does for one of them.
    ///
    /// For each host the first rule that selects a workload counts. So if a rule counts for any workload, it
    /// counts for one that has the rule's own labels and no other: that one is selected by no rule before it that
    /// does not select the first workload too.
    pub fn kinds(namespace: &str, rules: &[DestinationRule]) -> Vec<Proxy> {
        let mut labels = BTreeSet::from([BTreeMap::new()]);
        for rule in rules {
            if *rule.meta.id.namespace == *namespace {
                labels.extend(
                    rule.selector
                        .iter()
                        .map(|selector| selector.iter().cloned().collect()),
                );
            }
        }
        let proxy = |labels| Proxy {
            namespace: namespace.to_owned(),
            labels,
            role: Role::Sidecar,
        };
        labels.into_iter().map(proxy).collect()
    }
}
