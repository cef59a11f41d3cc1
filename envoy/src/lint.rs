//! `egressctl lint`: what Istio does with rules that their author did not mean.
//!
//! ```text
//! files ──Input──► documents + Resources ──Scope──► who uses what ──rules──► findings ──edit──► files
//! ```
//!
//! It is for people who run plain Istio, so it asks what *Istio* does, not what our filter would: the two
//! differ where Istio is unsafe. It works on resources as they were parsed, also on those that the engine
//! would refuse to compile, and where a resource cannot be parsed at all, on its bare values.
//!
//! Each [`Rule`] has a page, `envoy/lint/ID.md`, with an example that a test lints.

use std::fmt;

use egress_policy::{FieldPath, Origin, Segment};
use serde_json::{Value, json};

use egress_rules::Notice;
use egress_rules::Source;
use egress_rules::yaml::Place;

mod catalogue;
mod edit;
mod input;
mod sarif;
mod scope;
mod selection;
mod services;
mod tls;
mod world;

pub use catalogue::{RULES, Rule};
pub use sarif::sarif;

use edit::Change;
use input::Input;
use world::World;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing has to be done.
    Info,
    /// It does less than, or something else than, its author may think.
    Warning,
    /// It is not safe, or it does not work.
    Error,
}

impl Severity {
    /// Returns the word that messages begin with.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

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
    pub place: Place,
    /// The field, from the root of the document.
    pub path: FieldPath,
    /// What happens.
    pub message: String,
    /// The resource, as far as that could be read.
    pub resource: Option<String>,
    /// How to mend it, as a sentence without a full stop.
    pub hint: Option<String>,
    origin: Origin,
    fix: Option<Change>,
    /// Fields whose problems this finding tells in better words.
    covers: Vec<FieldPath>,
}

impl Finding {
    /// Says whether `--fix` mends it.
    pub fn fixable(&self) -> bool {
        self.fix.is_some()
    }

    /// Tells what `--fix` does about it, as if it were done.
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
                1 => writeln!(f, "1 of them is mended by --fix")?,
                count => writeln!(f, "{count} of them are mended by --fix")?,
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

/// Returns what is to be said about rules.
pub fn lint(sources: &[Source]) -> Report {
    examine(&Input::read(sources))
}

fn examine(input: &Input) -> Report {
    let mut findings = Findings {
        input,
        list: Vec::new(),
    };
    let world = World::of(input);
    tls::lint(&world, &mut findings);
    services::lint(&world, &mut findings);
    selection::lint(&world, &mut findings);
    findings.problems();
    let mut list = findings.list;
    list.sort_by(|a, b| {
        let key = |finding: &Finding| (input.file_of(finding), finding.place, finding.rule.id);
        key(a).cmp(&key(b))
    });
    list.dedup_by(|a, b| {
        (a.rule.id, &a.file, a.place, &a.message) == (b.rule.id, &b.file, b.place, &b.message)
    });
    Report {
        findings: list,
        service_entries: input.resources.service_entries.len(),
        destination_rules: input.resources.destination_rules.len(),
    }
}

/// What was mended.
#[derive(Debug)]
pub struct Fixed {
    /// The texts as they are now.
    pub sources: Vec<Source>,
    /// What was mended, with the places before.
    pub findings: Vec<Finding>,
}

/// How often texts are mended and linted again: a mended thing may uncover another.
const MAX_ROUNDS: usize = 20;

/// Mends all that can be mended safely.
///
/// The texts keep their comments and their looks. A fix that would not make of the text what it should,
/// because of anchors for example, is left out.
pub fn fix(sources: &[Source]) -> Fixed {
    let mut sources = sources.to_vec();
    let mut fixed = Vec::new();
    for _ in 0..MAX_ROUNDS {
        let input = Input::read(&sources);
        let report = examine(&input);
        let mut progress = false;
        for (at, source) in sources.iter_mut().enumerate() {
            let mut resources = Vec::new();
            let mut findings = Vec::new();
            for finding in &report.findings {
                // Of each resource one a round, so that places stay what they are.
                let place = input.document(finding.origin).filter(|place| place.0 == at);
                let (Some((_, document)), Some(change)) = (place, &finding.fix) else {
                    continue;
                };
                if !resources.contains(&finding.origin) {
                    resources.push(finding.origin);
                    findings.push((finding, document, change));
                }
            }
            if findings.is_empty() {
                continue;
            }
            let changes: Vec<_> = findings
                .iter()
                .map(|&(_, document, change)| (document, change))
                .collect();
            let (text, made) = edit::apply(&source.text, &changes);
            source.text = text;
            for ((finding, ..), made) in findings.into_iter().zip(made) {
                if made {
                    progress = true;
                    fixed.push(finding.clone());
                }
            }
        }
        if !progress {
            break;
        }
    }
    Fixed {
        sources,
        findings: fixed,
    }
}

/// Collects what is found.
struct Findings<'i> {
    input: &'i Input,
    list: Vec<Finding>,
}

impl Findings<'_> {
    /// Adds a finding at a field of a resource, written as in `spec.ports[0].number`.
    fn add(
        &mut self,
        rule: &'static Rule,
        at: &input::Subject,
        path: &str,
        message: String,
    ) -> Added<'_> {
        let path = at.path(path);
        let (file, place) = self.input.place(at.origin, &path);
        self.list.push(Finding {
            rule,
            severity: rule.severity,
            file,
            place,
            path,
            message,
            resource: Some(at.name.clone()),
            hint: None,
            origin: at.origin,
            fix: None,
            covers: Vec::new(),
        });
        Added(self.list.last_mut())
    }

    /// Adds what parsing found, but for what a rule tells better.
    fn problems(&mut self) {
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
struct Added<'f>(Option<&'f mut Finding>);

impl Added<'_> {
    fn set(mut self, set: impl FnOnce(&mut Finding)) -> Self {
        if let Some(finding) = &mut self.0 {
            set(finding);
        }
        self
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        self.set(|finding| finding.hint = Some(hint.into()))
    }

    fn severity(self, severity: Severity) -> Self {
        self.set(|finding| finding.severity = severity)
    }

    fn fix(self, fix: Option<Change>) -> Self {
        self.set(|finding| finding.fix = fix)
    }

    fn covers(self, paths: Vec<FieldPath>) -> Self {
        self.set(|finding| finding.covers = paths)
    }
}

/// Reads a path such as `spec.ports[0].number`.
fn way(path: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let mut pieces = part.split('[');
        segments.extend(
            pieces
                .next()
                .filter(|key| !key.is_empty())
                .map(|key| Segment::Key(key.to_owned())),
        );
        let index = |piece: &str| piece.trim_end_matches(']').parse().ok();
        segments.extend(pieces.filter_map(index).map(Segment::Index));
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_as_it_is_written() {
        let path = "spec.trafficPolicy.portLevelSettings[0].port.number";
        assert_eq!(FieldPath(way(path)).to_string(), path);
        assert!(way("").is_empty());
    }
}
