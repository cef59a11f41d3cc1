//! What is wrong with a configuration: which document, which field, what kind, and how to fix it.

use std::fmt;

use crate::resource::ResourceId;
use crate::visible::visible;

/// Where a resource was read from.
///
/// The engine has no files, so an origin is two counters that the caller can turn into a file and a
/// line: the number of the document among those given to [`parse`](crate::Parser::document), and,
/// where that document is a Kubernetes `List`, the item in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Origin {
    /// The document, counted from zero in the order they were parsed.
    pub document: usize,
    /// The item of a `List` document, counted from zero.
    pub item: Option<usize>,
}

/// One step of a [`FieldPath`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// A key of an object.
    Key(String),
    /// A place in a list, counted from zero.
    Index(usize),
}

/// The way from the root of a document to a field, such as `spec.ports[0].targetPort`.
///
/// The items of a `List` document are part of the way: `items[2].spec.host`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct FieldPath(pub Vec<Segment>);

impl FieldPath {
    /// Makes a path from keys joined by dots, for fields that no list stands before.
    pub fn keys(dotted: &str) -> Self {
        FieldPath(
            dotted
                .split('.')
                .map(|key| Segment::Key(key.to_owned()))
                .collect(),
        )
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if at == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Whether a problem stops a configuration from loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration loads; something in it does less than its author may think.
    Warning,
    /// The configuration does not load.
    Error,
}

impl Severity {
    /// Returns the word that messages begin with.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// What is wrong, as something a program can match on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    /// A field that is neither Istio's nor ours.
    #[error("unknown field `{0}`")]
    UnknownField(String),
    /// A field or value of Istio's that this version does not honour.
    #[error("{0} is not supported yet")]
    NotSupported(String),
    /// A required field is absent or empty.
    #[error("is required")]
    Missing,
    /// A value has another JSON type than the field.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// What the field takes, with its article.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A word that is not one of the field's values.
    #[error("unknown {what} `{found}`")]
    UnknownValue {
        /// What the values are called.
        what: &'static str,
        /// What stands there.
        found: String,
    },
    /// A number outside its range.
    #[error("{found} is out of range {min}..{max}")]
    OutOfRange {
        /// What stands there.
        found: String,
        /// The least that is allowed.
        min: u64,
        /// The greatest that is allowed.
        max: u64,
    },
    /// A value that its own syntax does not allow.
    #[error("{0}")]
    Invalid(String),
    /// An object of a version that is not Istio's.
    #[error("`{found}` of `{api_version}` is not a known resource")]
    UnknownResource {
        /// The document's `apiVersion`.
        api_version: String,
        /// The document's `kind`.
        found: String,
    },
    /// A kind that this engine leaves out of account.
    #[error("`{0}` is not read")]
    IgnoredKind(String),
    /// A second resource with the kind, namespace and name of another.
    #[error("{id} is defined twice, first in document {first}")]
    Duplicate {
        /// Which resource it is.
        id: ResourceId,
        /// The document of the first, counted from one.
        first: usize,
    },
    /// Two fields, or two resources, that cannot stand together.
    #[error("{0}")]
    Conflict(String),
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether it stops the configuration from loading.
    pub severity: Severity,
    /// The document it stands in.
    pub origin: Origin,
    /// The resource it belongs to, as far as that could be read.
    pub resource: Option<ResourceId>,
    /// The field, from the root of the document.
    pub path: FieldPath,
    /// What is wrong.
    pub kind: ProblemKind,
    /// How to fix it, as a sentence without a full stop.
    pub hint: Option<String>,
    /// The id of the finding, where it has one: that of the linter's rule for the same finding.
    pub id: Option<&'static str>,
}

impl fmt::Display for Problem {
    /// Writes one line that names the resource, the field, what is wrong and the hint, each as [`visible`] shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.severity.as_str())?;
        if !self.path.0.is_empty() {
            write!(f, "{}: ", visible(&self.path.to_string()))?;
        }
        f.write_str(&visible(&self.kind.to_string()))?;
        match &self.resource {
            Some(resource) => write!(
                f,
                " ({}, document {})",
                visible(&resource.to_string()),
                self.origin.document + 1
            )?,
            None => write!(f, " (document {})", self.origin.document + 1)?,
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {}", visible(hint))?;
        }
        Ok(())
    }
}

/// All that is wrong with a configuration, in the order it was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Whether any of them stops the configuration from loading.
    pub fn has_errors(&self) -> bool {
        self.0
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    }

    /// Returns those that stop the configuration from loading.
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.0
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// Returns the candidate that was most likely meant by `found`, if any is close enough.
///
/// Case and the characters `_` and `-` are ignored, then up to two edits are forgiven, fewer in short
/// words.
pub fn did_you_mean<'c>(found: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let plain = |word: &str| -> Vec<char> {
        word.chars()
            .filter(|c| !matches!(c, '_' | '-'))
            .flat_map(char::to_lowercase)
            .take(64)
            .collect()
    };
    let wanted = plain(found);
    let allowed = (wanted.len() / 3).clamp(1, 2);
    candidates
        .iter()
        .map(|candidate| (edits(&wanted, &plain(candidate)), *candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Counts insertions, deletions, replacements and swaps of neighbours between two words.
pub(crate) fn edits(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replace = last.get(j).copied().unwrap_or(0) + usize::from(x != y);
            let delete = last.get(j + 1).copied().unwrap_or(0) + 1;
            let insert = row.get(j).copied().unwrap_or(0) + 1;
            let mut least = replace.min(delete).min(insert);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                least = least.min(before.get(j - 1).copied().unwrap_or(0) + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        let modes = ["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"];
        assert_eq!(did_you_mean("SIMPEL", &modes), Some("SIMPLE"));
        assert_eq!(did_you_mean("simple", &modes), Some("SIMPLE"));
        assert_eq!(
            did_you_mean("target_port", &["targetPort", "number"]),
            Some("targetPort")
        );
        assert_eq!(did_you_mean("TLS", &modes), None);
    }

    #[test]
    fn a_path_reads_as_people_write_it() {
        let path = FieldPath(vec![
            Segment::Key("spec".into()),
            Segment::Key("ports".into()),
            Segment::Index(0),
            Segment::Key("number".into()),
        ]);
        assert_eq!(path.to_string(), "spec.ports[0].number");
    }
}
