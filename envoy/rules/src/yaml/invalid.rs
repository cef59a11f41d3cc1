//! Why a text is not YAML.

use super::location::Place;

/// Why a text is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct InvalidYaml {
    /// What is wrong, as a phrase.
    pub what: String,
    /// Where.
    pub at: Place,
    /// How to mend it.
    pub hint: Option<String>,
}
