//! `egressctl lint`: rules whose effect in Istio differs from what the author meant.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::args::{FailOn, Lint, LintOutput};
use super::output::{Done, Output};
use super::sources::{self, STDIN};
use egress_lint::{self as lint, Report, Rule, Severity};
use egress_rules::Complaint;
use egress_rules::Source;
use egress_run::atomic;

/// Lints, fixes if told to, and says what was found.
pub(super) fn main(args: &Lint) -> Done {
    if let Some(rule) = args.explain.as_deref().and_then(Rule::find) {
        return Ok(Output::lines(rule.page));
    }
    let mut sources: Vec<Source> = Vec::new();
    let mut names = BTreeSet::new();
    for name in &args.files {
        let read = sources::sources(name).map_err(Complaint::input)?;
        let mut new = |source: &Source| names.insert(source.name.clone());
        sources.extend(read.into_iter().filter(|source| new(source)));
    }
    // With the text of the standard input fixed, the standard output is for it.
    let mut text_out = None;
    let mut notes = Vec::new();
    if args.fix {
        (sources, notes) = fix(&sources)?;
        text_out = sources
            .iter()
            .find(|source| source.name == STDIN)
            .map(|source| source.text.clone());
    }
    let report = lint::lint(&sources);
    let text = match args.output {
        LintOutput::Text => Ok(report.to_string()),
        LintOutput::Json => pretty(&report.to_json()),
        LintOutput::Sarif => pretty(&lint::sarif(&report)),
    };
    let text = text.map_err(|error| Complaint::us(format!("cannot write the report: {error}")))?;
    let output = match text_out {
        None => Output::lines(text),
        Some(fixed) => {
            notes.push(text.trim_end().to_owned());
            Output::verbatim(fixed)
        }
    };
    Ok(output
        .with_notes(notes)
        .bad_if(fails(&report, args.fail_on)))
}

/// Whether a finding is as severe as was asked for.
fn fails(report: &Report, fail_on: FailOn) -> bool {
    let least = match fail_on {
        FailOn::Info => Severity::Info,
        FailOn::Warning => Severity::Warning,
        FailOn::Error => Severity::Error,
    };
    let mut findings = report.findings.iter();
    findings.any(|finding| finding.severity >= least)
}

fn pretty(value: &Value) -> serde_json::Result<String> {
    serde_json::to_string_pretty(value).map(|text| format!("{text}\n"))
}

/// Fixes what can be fixed and writes the files; returns the texts after it, and what was done.
fn fix(sources: &[Source]) -> Result<(Vec<Source>, Vec<String>), Complaint> {
    let fixed = lint::fix(sources);
    for (before, after) in sources.iter().zip(&fixed.sources) {
        if before.text == after.text || after.name == STDIN {
            continue;
        }
        atomic::replace(Path::new(&after.name), &after.text)
            .map_err(|error| Complaint::us(format!("cannot write `{}`: {error}", after.name)))?;
    }
    let mut notes = Vec::new();
    for finding in &fixed.findings {
        let resource = finding.resource.as_deref().unwrap_or_default();
        notes.push(format!(
            "fixed: [{}] {}: {}\n  --> {}:{}:{}   ({resource})",
            finding.rule.id,
            finding.path,
            finding.done().unwrap_or_default(),
            finding.file,
            finding.place.line,
            finding.place.column,
        ));
    }
    if fixed.findings.is_empty() {
        notes.push("nothing to fix".to_owned());
    }
    Ok((fixed.sources, notes))
}
