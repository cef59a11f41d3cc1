//! Which part of a DestinationRule speaks.

use crate::problem::{FieldPath, Segment};
use crate::resource::{ResourceId, as_policy};

/// Which part of a rule speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicySource {
    /// `spec.trafficPolicy`.
    Rule,
    /// An item of `spec.trafficPolicy.portLevelSettings`.
    Port(usize),
    /// `trafficPolicy` of an item of `spec.subsets`.
    Subset(usize),
    /// An item of `portLevelSettings` of an item of `spec.subsets`.
    SubsetPort(usize, usize),
}

impl PolicySource {
    /// Returns the way to what it names in a rule, which may have been made of a `BackendTLSPolicy`.
    pub fn path_in(self, rule: &ResourceId) -> FieldPath {
        match rule.is_backend_tls_policy() {
            true => as_policy(self.path()),
            false => self.path(),
        }
    }

    /// Returns the way to what it names.
    pub fn path(self) -> FieldPath {
        let key = |key: &str| Segment::Key(key.to_owned());
        let mut path = FieldPath::keys("spec");
        if let PolicySource::Subset(subset) | PolicySource::SubsetPort(subset, _) = self {
            path.0.extend([key("subsets"), Segment::Index(subset)]);
        }
        path.0.push(key("trafficPolicy"));
        if let PolicySource::Port(port) | PolicySource::SubsetPort(_, port) = self {
            path.0
                .extend([key("portLevelSettings"), Segment::Index(port)]);
        }
        path
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::PolicySource;

    #[test]
    fn a_source_says_which_field_it_is() {
        for (source, path) in [
            (PolicySource::Rule, "spec.trafficPolicy"),
            (
                PolicySource::Port(1),
                "spec.trafficPolicy.portLevelSettings[1]",
            ),
            (PolicySource::Subset(2), "spec.subsets[2].trafficPolicy"),
            (
                PolicySource::SubsetPort(2, 1),
                "spec.subsets[2].trafficPolicy.portLevelSettings[1]",
            ),
        ] {
            assert_eq!(source.path().to_string(), path);
        }
    }
}
