//! A finding, and how it is printed.

use std::fmt;

use egress_policy::{FieldPath, Origin};
use egress_rules::Notice;
use egress_rules::yaml::Location;
use serde_json::{Value, json};

use crate::catalogue::Rule;
use crate::edit::Change;
use crate::severity::Severity;

/// One thing that was found.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The rule that found it.
    pub rule: &'static Rule,
    /// How much it matters, here: a rule may find lesser cases of its own.
    pub severity: Severity,
    /// The file.
    pub file: String,
    /// The place in it.
    pub place: Location,
    /// The field, from the root of the document.
    pub path: FieldPath,
    /// What happens.
    pub message: String,
    /// The resource, as far as that could be read.
    pub resource: Option<String>,
    /// How to fix it, as a sentence without a full stop.
    pub hint: Option<String>,
    pub(crate) origin: Origin,
    pub(crate) fix: Option<Change>,
    /// Fields whose problems this finding tells in better words.
    pub(crate) covers: Vec<FieldPath>,
}

impl Finding {
    /// Whether `--fix` fixes it.
    pub fn fixable(&self) -> bool {
        self.fix.is_some()
    }

    /// Reports what `--fix` does about it, as if it were done.
    pub fn done(&self) -> Option<String> {
        self.fix.as_ref().map(Change::done)
    }

    /// Returns the finding for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "rule": self.rule.id,
            "severity": self.severity.as_str(),
            "message": self.message,
            "file": self.file,
            "line": self.place.line,
            "column": self.place.column,
            "resource": self.resource,
            "path": self.path.to_string(),
            "hint": self.hint,
            "docs": format!("egressctl lint --explain {}", self.rule.id),
            "istioVersions": self.rule.versions,
            "fixable": self.fixable(),
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let notice = Notice {
            label: format!("{}: [{}]", self.severity.as_str(), self.rule.id),
            path: &self.path.to_string(),
            what: &self.message,
            file: &self.file,
            place: self.place,
            resource: self.resource.as_deref(),
            hint: self.hint.as_deref(),
        };
        notice.fmt(f)
    }
}

/// All that was found, in the order of the files.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What was found.
    pub findings: Vec<Finding>,
    /// The ServiceEntries that could be read.
    pub service_entries: usize,
    /// The DestinationRules that could be read.
    pub destination_rules: usize,
}

impl Report {
    /// Counts the findings of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        let same = |finding: &&Finding| finding.severity == severity;
        self.findings.iter().filter(same).count()
    }

    /// Returns the findings for programs.
    pub fn to_json(&self) -> Value {
        self.findings.iter().map(Finding::to_json).collect()
    }
}

impl fmt::Display for Report {
    /// Writes the findings with an empty line between them, and a line that sums them up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        if self.findings.is_empty() {
            f.write_str("no findings; ")?;
        } else {
            write!(
                f,
                "{}, {}, {} info; ",
                many(self.count(Severity::Error), "error", "errors"),
                many(self.count(Severity::Warning), "warning", "warnings"),
                self.count(Severity::Info)
            )?;
        }
        writeln!(
            f,
            "{}, {}",
            many(self.service_entries, "ServiceEntry", "ServiceEntries"),
            many(
                self.destination_rules,
                "DestinationRule",
                "DestinationRules"
            )
        )?;
        if let Some(first) = self.findings.first() {
            let fixable = self.findings.iter().filter(|finding| finding.fixable());
            match fixable.count() {
                0 => {}
                1 => writeln!(f, "1 of them is fixed by --fix")?,
                count => writeln!(f, "{count} of them are fixed by --fix")?,
            }
            writeln!(
                f,
                "more about a rule: egressctl lint --explain {}",
                first.rule.id
            )?;
        }
        Ok(())
    }
}

fn many(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}
