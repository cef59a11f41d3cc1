//! What the routes of the Gateway API and the delegates among documents come to, for those who do not compile.

use egress_policy::{FieldPath, Mesh, Origin, Problem, ProblemKind, ResourceId, Severity};
use serde_json::Value;

use crate::delegates;
use crate::gateway_api::{self, Made};

/// What was made of routes and delegates.
#[derive(Debug, Default)]
pub struct Derived(Made);

impl Derived {
    /// Makes what the routes among documents say, and merges delegates in their place.
    pub fn of(documents: &mut [&mut Value]) -> Derived {
        let delegated = delegates::merge(documents, &Mesh::default());
        let mut made = gateway_api::convert(documents.iter().map(|value| &**value));
        made.delegated = delegated;
        Derived(made)
    }

    /// Returns the VirtualServices and Gateways that were made. They stand behind the documents that were given.
    pub fn documents(&self) -> &[Value] {
        &self.0.documents
    }

    /// Whether something was made of a resource.
    pub fn has_read(&self, origin: Origin) -> bool {
        self.0.has_read(origin)
    }

    /// Returns where a field of what was made was written: which resource, where it was read, and the field; nothing
    /// where it was made of nothing else.
    pub fn place(
        &self,
        origin: Origin,
        path: &FieldPath,
    ) -> Option<(ResourceId, Origin, FieldPath)> {
        let mut problem = Problem {
            severity: Severity::Warning,
            origin,
            resource: None,
            path: path.clone(),
            kind: ProblemKind::Missing,
            hint: None,
            id: None,
        };
        self.0.tell(&mut problem);
        Some((problem.resource?, problem.origin, problem.path))
    }
}
