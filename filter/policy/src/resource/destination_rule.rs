//! `DestinationRule`: how to reach the services of a host.

use std::sync::Arc;

use crate::fields::{Field, Fields};
use crate::host::HostPattern;
use crate::policy_source::PolicySource;
use crate::port::PortNumber;
use crate::problem::{Origin, ProblemKind};
use crate::resource::client_tls::ClientTls;
use crate::resource::meta::{Meta, is_label, read_export_to, read_labels, read_meta};
use crate::resource::traffic_policy::{TrafficPolicy, read_policy};

/// How to reach the services of one host.
///
/// Source: istio/api `networking/v1alpha3/destination_rule.proto`, `DestinationRule`.
#[derive(Debug, Clone, PartialEq)]
pub struct DestinationRule {
    /// Name, namespace, origin.
    pub meta: Meta,
    /// The host or hosts it is for.
    pub host: HostPattern,
    /// What it says, for all ports and for single ones. Most rules say what the one before them says, and share it.
    pub policy: Option<Arc<TrafficPolicy>>,
    /// Named variants of the host.
    pub subsets: Vec<Subset>,
    /// The namespaces that see it; empty means all.
    pub export_to: Vec<String>,
    /// The labels of the workloads it is for; `None` means all.
    pub selector: Option<Vec<(String, String)>>,
}

/// A named variant of a host.
#[derive(Debug, Clone, PartialEq)]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// Its index in `subsets`.
    pub index: usize,
    /// The labels of its endpoints; empty means all.
    pub labels: Vec<(String, String)>,
    /// What it says, over what the rule says.
    pub policy: Option<TrafficPolicy>,
}

impl DestinationRule {
    pub(crate) const KIND: &'static str = "DestinationRule";

    pub(crate) fn read(root: &Fields<'_>, origin: Origin) -> Option<DestinationRule> {
        let meta = read_meta(root, Self::KIND, origin, false);
        root.ignore(&["status"]);
        root.require("spec", |field| read_spec(field, meta))
    }
}

/// Source: istio/istio `pkg/config/validation/validation.go`, `ValidateDestinationRule`.
fn read_spec(field: Field<'_>, meta: Meta) -> Option<DestinationRule> {
    let namespace = &*meta.id.namespace;
    let fields = field.fields()?;
    let host = fields.require("host", |field| {
        let text = field.text()?;
        // Istio completes a short name with the rule's own namespace.
        // Source: istio/istio `pilot/pkg/model/config.go`, `ResolveShortnameToFQDN`.
        if !text.is_empty() && !text.contains('.') && !text.starts_with('*') {
            let long = format!("{text}.{namespace}.svc.cluster.local");
            return HostPattern::parse(&long).ok().or_else(|| field.host());
        }
        field.host()
    });
    let policy = fields
        .read("trafficPolicy", |field| read_policy(field, namespace))
        .map(Arc::new);
    let mut subsets: Vec<Subset> = Vec::new();
    fields.read("subsets", |list| {
        let mut index = 0;
        list.items(|item| {
            if let Some(subset) = read_subset(item, index, namespace) {
                if subsets.iter().any(|other| other.name == subset.name) {
                    item.error(ProblemKind::Conflict(format!(
                        "duplicate subset names: {}",
                        subset.name
                    )));
                } else {
                    subsets.push(subset);
                }
            }
            index += 1;
        });
        Some(())
    });
    let selector = fields.read("workloadSelector", |field| {
        let fields = field.fields()?;
        let labels = fields
            .read("matchLabels", |field| Some(read_labels(field)))
            .unwrap_or_default();
        if labels.is_empty() && !fields.given("matchLabels") {
            let text = "workload selector specified without labels".to_owned();
            field.warning(
                ProblemKind::Invalid(text),
                "every workload of the namespace is selected; give `matchLabels`",
            );
        }
        Some(labels)
    });
    let export_to = read_export_to(&fields, namespace, false);
    if selector.is_some() && !export_to.is_empty() {
        let own = |to: &String| to == "." || to == namespace;
        let text = match (export_to.len(), export_to.iter().all(own)) {
            (1, true) => None,
            (1, false) => Some(
                "destination rule with workload selector cannot have exportTo beyond current namespace",
            ),
            _ => Some(
                "destination rule with workload selector cannot have multiple entries in exportTo",
            ),
        };
        if let Some(text) = text {
            fields.error_at(
                "exportTo",
                ProblemKind::Conflict(text.to_owned()),
                Some("remove `exportTo`"),
            );
        }
    }
    Some(DestinationRule {
        host: host?,
        policy,
        subsets,
        export_to,
        selector,
        meta,
    })
}

impl DestinationRule {
    /// Returns the `tls` that a part of the rule gives a port.
    pub(crate) fn tls_at(&self, source: PolicySource, port: PortNumber) -> Option<&ClientTls> {
        let subset = |at: usize| {
            let mut subsets = self.subsets.iter();
            subsets.find(|subset| subset.index == at)?.policy.as_ref()
        };
        let policy = match source {
            PolicySource::Rule | PolicySource::Port(_) => self.policy.as_deref()?,
            PolicySource::Subset(at) | PolicySource::SubsetPort(at, _) => subset(at)?,
        };
        match source {
            PolicySource::Rule | PolicySource::Subset(_) => policy.tls.as_deref(),
            PolicySource::Port(_) | PolicySource::SubsetPort(..) => {
                let mut all = policy.port_level.iter();
                all.find(|own| own.port == port)?.policy.tls.as_deref()
            }
        }
    }
}

fn read_subset(field: Field<'_>, index: usize, namespace: &str) -> Option<Subset> {
    let fields = field.fields()?;
    let name = fields.require("name", |field| {
        let text = field.text()?;
        let problem = if text.is_empty() {
            Some("subset name cannot be empty".to_owned())
        } else {
            (!is_label(text)).then(|| format!("subset name is invalid: {text}"))
        };
        if let Some(text) = problem {
            field.error_with_hint(
                ProblemKind::Invalid(text),
                "letters, digits and `-`, at most 63",
            );
            return None;
        }
        Some(text.to_owned())
    });
    let labels = fields
        .read("labels", |field| Some(read_labels(field)))
        .unwrap_or_default();
    let policy = fields.read("trafficPolicy", |field| read_policy(field, namespace));
    Some(Subset {
        name: name?,
        index,
        labels,
        policy,
    })
}
