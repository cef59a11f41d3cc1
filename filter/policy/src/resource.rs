//! The resources as Istio writes them: one file a kind, read from JSON, no meaning yet.

use std::fmt;

use serde_json::Value;

use crate::fields::{Field, Fields};
use crate::problem::Origin;

mod destination_rule;
mod service_entry;

pub use destination_rule::{
    ClientTls, ConnectionPool, DestinationRule, H2UpgradePolicy, HttpPool, LoadBalancer,
    OutlierDetection, PortPolicy, TcpKeepalive, TcpPool, TlsMode, TrafficPolicy,
};
pub use service_entry::{Endpoint, Resolution, ServiceEntry, ServicePort};

/// The namespace of a resource that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The kind, namespace and name of a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResourceId {
    /// For example `ServiceEntry`.
    pub kind: &'static str,
    /// `metadata.namespace`, or [`DEFAULT_NAMESPACE`].
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ResourceId {
    /// Returns `namespace/name`.
    pub fn qualified(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// What every resource has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Which resource it is.
    pub id: ResourceId,
    /// Where it was read.
    pub origin: Origin,
    /// `metadata.creationTimestamp` as it was written; the oldest resource wins a tie.
    pub created: String,
}

impl Meta {
    /// The order in which Istio looks at resources: oldest first, then by name and namespace.
    ///
    /// Source: istio/istio `pilot/pkg/model/config.go`, `sortConfigByCreationTime`.
    pub fn order(&self) -> (&str, &str, &str) {
        (&self.created, &self.id.name, &self.id.namespace)
    }
}

/// All resources of a configuration, in the order they were read.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// The services that applications may call.
    pub service_entries: Vec<ServiceEntry>,
    /// How to reach them.
    pub destination_rules: Vec<DestinationRule>,
}

impl Resources {
    /// Says whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.service_entries.is_empty() && self.destination_rules.is_empty()
    }
}

/// Reads `metadata`. What Kubernetes adds to it is let pass.
fn read_meta(root: &Fields<'_>, kind: &'static str, origin: Origin) -> Option<Meta> {
    root.require("metadata", |field| {
        let fields = field.fields()?;
        fields.allow_unknown();
        let name = fields.require("name", text_of)?;
        let namespace = fields
            .read("namespace", text_of)
            .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        let created = match field.value.get("creationTimestamp") {
            Some(Value::String(text)) => text.clone(),
            _ => String::new(),
        };
        let id = ResourceId {
            kind,
            namespace,
            name,
        };
        field.report.name(&id);
        Some(Meta {
            id,
            origin,
            created,
        })
    })
}

/// Reads a string that must not be empty.
fn text_of(field: Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.is_empty() {
        field.error(crate::problem::ProblemKind::Missing);
        return None;
    }
    Some(text.to_owned())
}
