//! What every part of one rendering is made from.

use egress_filter::Variants;
use egress_policy::PolicyTable;
use serde_json::Value;

use super::options::Options;

/// The context of a rendering.
pub(super) struct Rendering<'r> {
    pub(super) table: &'r PolicyTable,
    /// The table's digest. It reads the whole table, so it is made once.
    pub(super) digest: String,
    /// The documents that the table was compiled from; the filter is given the same.
    pub(super) resources: &'r [Value],
    /// How clusters of one name are told apart.
    pub(super) variants: Variants,
    pub(super) options: &'r Options,
}

impl<'r> Rendering<'r> {
    pub(super) fn new(
        table: &'r PolicyTable,
        resources: &'r [Value],
        variants: Variants,
        options: &'r Options,
    ) -> Self {
        Rendering {
            table,
            digest: table.digest().to_string(),
            resources,
            variants,
            options,
        }
    }
}
