//! A text that somebody has read.

use std::fmt;

/// A text and the name that messages call it by.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// The path as it was given, or `<stdin>`.
    pub name: String,
    /// What it holds.
    pub text: String,
    /// It holds the configuration of the mesh, and no rules.
    pub mesh: bool,
}

impl fmt::Debug for Source {
    /// Leaves out the text: a Secret may stand in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
