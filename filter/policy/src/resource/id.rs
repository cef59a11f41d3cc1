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
