//! Finds rules whose effect in plain Istio differs from what their author meant.
//!
//! ```text
//! texts ──Input──► documents + Resources ──Scope──► who uses what ──rules──► findings ──edit──► texts
//! ```
//!
//! It is for people who run plain Istio, so it asks what *Istio* does, not what our filter would do. The two differ
//! where Istio is unsafe. It works on parsed resources, including those that the engine would refuse to compile. If a
//! resource cannot be parsed, it works on the bare values.
//!
//! Each [`Rule`] has a page, `envoy/lint/pages/ID.md`, with an example that a test lints.
//!
//! ```
//! use egress_rules::Source;
//!
//! let text = "
//! apiVersion: networking.istio.io/v1
//! kind: DestinationRule
//! metadata: {name: api}
//! spec:
//!   host: api.example.com
//!   trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}
//! ";
//! let source = Source { name: "rules.yaml".to_owned(), text: text.to_owned(), mesh: false };
//! let report = egress_lint::lint(&[source]);
//! let ids: Vec<&str> = report.findings.iter().map(|finding| finding.rule.id).collect();
//! assert!(ids.contains(&"insecure-skip-verify"), "{report}");
//! ```
//!
//! What it does not do: it opens no file. It compiles only to learn where VirtualServices lead; `egress_rules::compile` says
//! whether our own filter would carry a rule out.
#![forbid(unsafe_code)]

use egress_rules::Source;

mod catalogue;
mod edit;
mod finding;
mod findings;
mod gateways;
mod input;
mod leads;
mod path;
mod plaintext;
mod policy;
mod routing;
mod sarif;
mod scope;
mod selection;
mod servers;
mod services;
mod severity;
mod shadowed;
mod tls;
mod world;

pub use catalogue::{RULES, Rule};
pub use finding::{Finding, Report};
pub use sarif::sarif;
pub use severity::Severity;

use findings::Findings;
use input::Input;
use world::World;

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
    routing::lint(&world, &mut findings);
    gateways::lint(&world, &mut findings);
    plaintext::lint(&world, &mut findings);
    shadowed::lint(&world, &mut findings);
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
        destination_rules: input
            .resources
            .destination_rules
            .iter()
            .filter(|rule| !rule.meta.id.is_backend_tls_policy())
            .count(),
    }
}

/// What was fixed.
#[derive(Debug)]
pub struct Fixed {
    /// The texts as they are now.
    pub sources: Vec<Source>,
    /// What was fixed, with the places before.
    pub findings: Vec<Finding>,
}

/// How often texts are fixed and linted again: one fix may uncover another finding.
const MAX_ROUNDS: usize = 20;

/// Fixes all that can be fixed safely.
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
