//! A rule, whatever kind of route has it.

use egress_policy::FieldPath;
use serde_json::{Map, Value};

use super::matches::Precedence;

/// A rule of a route for one of its matches, as a VirtualService has it.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// What it is called in Envoy and in logs.
    pub(super) name: String,
    /// All but `match`.
    pub(super) value: Map<String, Value>,
    /// What it takes, where that is not everything.
    pub(super) matched: Map<String, Value>,
    pub(super) precedence: Precedence,
    pub(super) rule: FieldPath,
    pub(super) match_path: Option<FieldPath>,
    pub(super) backends: Vec<FieldPath>,
    /// The Services of other namespaces among them.
    pub(super) foreign: Vec<((String, String), FieldPath)>,
}
