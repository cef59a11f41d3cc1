//! `egressctl check`: everything that is wrong with rules.

use std::collections::BTreeSet;
use std::time::SystemTime;

use egress_policy::{GateSummary, ResourceId, Resources, Severity};
use serde_json::{Value, json};

use super::args::{Check, Report as Format};
use super::output::{Done, Output};
use super::settings;
use super::threads::at_once;
use egress_credentials as credentials;
use egress_rules::Complaint;
use egress_rules::{Diagnostic, How, Nothing, Report, compile_as};

/// Reads, parses and compiles, and prints what was found.
pub(super) fn main(args: &Check) -> Done {
    let (sources, options) = settings::read(&args.input)?;
    let how = How {
        each: at_once,
        nothing: match args.partial {
            true => Nothing::Part,
            false => Nothing::Refused,
        },
        ..How::default()
    };
    let compiled = compile_as(&sources, &options, how);
    let (report, summary) = match compiled {
        Ok(mut rules) => {
            let namespace = &options.proxy.namespace;
            let store = settings::store(&args.credentials, &mut rules, namespace)?;
            let now = SystemTime::now();
            let mut found = credentials::inspect(&rules, &store, &options, now);
            if args.connect {
                found.extend(credentials::connect(&rules, &store, now));
            }
            rules.warnings.0.extend(found);
            let read = read(&rules.parsed);
            (
                rules.warnings,
                format!("{read}{}", gate(rules.table.gate())),
            )
        }
        Err(report) => (report, "nothing would start".to_owned()),
    };
    let count = |severity: Severity| {
        report
            .0
            .iter()
            .filter(|diagnostic| diagnostic.severity == severity)
            .count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let text = match args.output {
        Format::Json => serde_json::to_string_pretty(&diagnostics(&report))
            .map(|text| format!("{text}\n"))
            .map_err(|error| Complaint::us(format!("cannot write the report: {error}")))?,
        Format::Text => {
            let found = match (errors, warnings) {
                (0, 0) => "no problems".to_owned(),
                _ => format!(
                    "{}, {}",
                    many(errors, "error", "errors"),
                    many(warnings, "warning", "warnings")
                ),
            };
            let gap = if report.0.is_empty() { "" } else { "\n" };
            format!("{report}{gap}{found}; {summary}\n")
        }
    };
    Ok(Output::lines(text).bad_if(errors > 0))
}

fn diagnostics(report: &Report) -> Value {
    json!(report.0.iter().map(Diagnostic::to_json).collect::<Vec<_>>())
}

/// Counts what decides.
fn read(resources: &Resources) -> String {
    let ids = resources.destination_rules.iter().map(|rule| &rule.meta.id);
    let (policies, written): (Vec<&ResourceId>, _) = ids.partition(|id| id.is_backend_tls_policy());
    let policies: BTreeSet<&ResourceId> = policies.into_iter().collect();
    let entries = resources.service_entries.len();
    let mut text = format!(
        "{}, {}",
        many(entries, "ServiceEntry", "ServiceEntries"),
        many(written.len(), "DestinationRule", "DestinationRules"),
    );
    if !policies.is_empty() {
        let count = many(policies.len(), "BackendTLSPolicy", "BackendTLSPolicies");
        text = format!("{text}, {count}");
    }
    text
}

/// Returns what the gate let pass, where it let anything pass.
fn gate(summary: GateSummary) -> String {
    let mut text = String::new();
    match summary.forwarded {
        0 => {}
        1 => text += "; 1 host is forwarded in plaintext",
        hosts => text += &format!("; {hosts} hosts are forwarded in plaintext"),
    }
    match summary.elsewhere {
        0 => {}
        1 => text += "; 1 rule asks for TLS to a host that no ServiceEntry here names",
        rules => {
            text +=
                &format!("; {rules} rules ask for TLS to hosts that no ServiceEntry here names");
        }
    }
    text
}

fn many(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}
