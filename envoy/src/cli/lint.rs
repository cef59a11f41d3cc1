//! `egressctl lint`: what Istio does with rules that their author did not mean.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::args::{Lint, LintOutput};
use super::{ExitStatus, fail, print, print_as_it_is, refuse, tell};
use crate::fs::{self, STDIN, Source};
use crate::lint::{self, Report, Rule, Severity};

/// Lints, mends if told to, and prints what was found.
pub(super) fn main(args: &Lint) -> ExitStatus {
    if let Some(rule) = args.explain.as_deref().and_then(Rule::find) {
        return print(rule.page);
    }
    let mut sources: Vec<Source> = Vec::new();
    let mut names = BTreeSet::new();
    for name in &args.files {
        match fs::sources(name) {
            Ok(read) => sources.extend(
                read.into_iter()
                    .filter(|source| names.insert(source.name.clone())),
            ),
            Err(error) => return refuse(&error.to_string()),
        }
    }
    // With the text of the standard input mended, the standard output is for it.
    let mut text_out = None;
    if args.fix {
        match mend(&sources) {
            Ok(mended) => sources = mended,
            Err(status) => return status,
        }
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
    let text = match text {
        Ok(text) => text,
        Err(error) => return fail(&format!("cannot write the report: {error}")),
    };
    let printed = match text_out {
        None => print(&text),
        Some(mended) => {
            tell(text.trim_end());
            print_as_it_is(&mended)
        }
    };
    match printed {
        ExitStatus::Success if matters(&report) => ExitStatus::Input,
        status => status,
    }
}

fn matters(report: &Report) -> bool {
    report
        .findings
        .iter()
        .any(|finding| finding.severity > Severity::Info)
}

fn pretty(value: &Value) -> serde_json::Result<String> {
    serde_json::to_string_pretty(value).map(|text| format!("{text}\n"))
}

/// Mends what can be mended, writes the files, and tells what was done.
fn mend(sources: &[Source]) -> Result<Vec<Source>, ExitStatus> {
    let fixed = lint::fix(sources);
    for (before, after) in sources.iter().zip(&fixed.sources) {
        if before.text == after.text || after.name == STDIN {
            continue;
        }
        fs::replace(Path::new(&after.name), &after.text)
            .map_err(|error| fail(&format!("cannot write `{}`: {error}", after.name)))?;
    }
    for finding in &fixed.findings {
        let resource = finding.resource.as_deref().unwrap_or_default();
        tell(&format!(
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
        tell("nothing to fix");
    }
    Ok(fixed.sources)
}
