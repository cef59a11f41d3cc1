//! Collects findings while the rules run.

use egress_policy::{FieldPath, Origin};

use crate::catalogue::Rule;
use crate::edit::Change;
use crate::finding::Finding;
use crate::input::{Input, Subject};
use crate::severity::Severity;

/// Collects what is found.
pub(crate) struct Findings<'i> {
    pub(crate) input: &'i Input,
    pub(crate) list: Vec<Finding>,
}

impl Findings<'_> {
    /// Adds a finding at a field of a resource, written as in `spec.ports[0].number`.
    pub(crate) fn add(
        &mut self,
        rule: &'static Rule,
        at: &Subject,
        path: &str,
        message: String,
    ) -> Added<'_> {
        let (at, path) = self.input.written(at, path);
        let (file, place) = self.input.place(at.origin, &path);
        self.list.push(Finding {
            rule,
            severity: rule.severity,
            file,
            place,
            path,
            message,
            resource: Some(at.name),
            hint: None,
            origin: at.origin,
            fix: None,
            covers: Vec::new(),
        });
        Added(self.list.last_mut())
    }

    /// Adds what parsing found, but for what a rule tells better.
    pub(crate) fn problems(&mut self) {
        let told: Vec<(Origin, FieldPath)> = self
            .list
            .iter()
            .flat_map(|finding| {
                finding
                    .covers
                    .iter()
                    .map(|path| (finding.origin, path.clone()))
            })
            .collect();
        for finding in self.input.problems() {
            if !told.contains(&(finding.origin, finding.path.clone())) {
                self.list.push(finding);
            }
        }
    }
}

/// A finding that was just added.
pub(crate) struct Added<'f>(Option<&'f mut Finding>);

impl Added<'_> {
    fn set(mut self, set: impl FnOnce(&mut Finding)) -> Self {
        if let Some(finding) = &mut self.0 {
            set(finding);
        }
        self
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        self.set(|finding| finding.hint = Some(hint.into()))
    }

    pub(crate) fn severity(self, severity: Severity) -> Self {
        self.set(|finding| finding.severity = severity)
    }

    pub(crate) fn fix(self, fix: Option<Change>) -> Self {
        self.set(|finding| finding.fix = fix)
    }

    pub(crate) fn covers(self, paths: Vec<FieldPath>) -> Self {
        self.set(|finding| finding.covers = paths)
    }
}
