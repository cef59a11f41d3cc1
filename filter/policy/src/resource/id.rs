//! Which resource it is.

use std::fmt;
use std::sync::Arc;

/// The namespace of a resource that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The kind, namespace and name of a resource. Copies of it share its texts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResourceId {
    /// For example `ServiceEntry`.
    pub kind: &'static str,
    /// `metadata.namespace`, or [`DEFAULT_NAMESPACE`].
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

/// The kind of a policy that a DestinationRule is made of, and the group of its `apiVersion`.
pub const BACKEND_TLS_POLICY: (&str, &str) = ("BackendTLSPolicy", "gateway.networking.k8s.io");

impl ResourceId {
    /// Whether it is a `BackendTLSPolicy`, of which a DestinationRule was made.
    pub fn is_backend_tls_policy(&self) -> bool {
        self.kind == BACKEND_TLS_POLICY.0
    }

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
