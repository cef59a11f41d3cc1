//! Why a text is not YAML.

use super::location::Location;

/// Why a text is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct InvalidYaml {
    /// What is wrong, as a phrase.
    pub what: String,
    /// Where.
    pub at: Location,
    /// How to fix it.
    pub hint: Option<String>,
}
