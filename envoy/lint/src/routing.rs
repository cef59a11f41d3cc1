//! Rules about VirtualServices that miss what they lead to. The engine finds them when it compiles.

use std::collections::BTreeSet;

use egress_policy::{
    AllowPlaintext, CompileOptions, HostPattern, OutboundMode, PolicyTable, Problem, Proxy,
    Severity as Level,
};

use crate::catalogue::{
    GATEWAY_HALF_HIDDEN, HOP_WITHOUT_SNI, Rule, UNKNOWN_DESTINATION, UNKNOWN_SUBSET,
};
use crate::findings::Findings;
use crate::input::Subject;
use crate::severity::Severity;
use crate::world::World;

/// The rest of what the engine says is about what our filter does, and not Istio.
static RULES: [&Rule; 4] = [
    &GATEWAY_HALF_HIDDEN,
    &HOP_WITHOUT_SNI,
    &UNKNOWN_DESTINATION,
    &UNKNOWN_SUBSET,
];

pub(crate) fn lint(world: &World<'_>, findings: &mut Findings<'_>) {
    // What is missing may stand in the file that could not be read.
    if world.input.partial {
        return;
    }
    unknown_subsets(world, findings);
    let resources = &world.input.resources;
    // Whoever else sees a VirtualService may not see what it leads to, and need not call it.
    let services = resources.virtual_services.iter();
    let callers: BTreeSet<&str> = services.map(|it| &*it.meta.id.namespace).collect();
    for namespace in callers {
        let options = CompileOptions {
            proxy: Proxy {
                namespace: namespace.to_owned(),
                ..Proxy::default()
            },
            outbound: OutboundMode::AllowAny,
            allow_plaintext: vec![AllowPlaintext::everywhere()],
            ..CompileOptions::default()
        };
        let compiled = PolicyTable::compile_with_errors(resources, &options);
        for problem in &compiled.problems.0 {
            let mut rules = RULES.into_iter();
            if let Some(rule) = rules.find(|rule| Some(rule.id) == problem.id) {
                add(rule, problem, findings);
            }
        }
    }
}

/// Finds subsets of hosts of ServiceEntries that no rule has, whoever sees it.
fn unknown_subsets(world: &World<'_>, findings: &mut Findings<'_>) {
    let known: BTreeSet<&HostPattern> = world.same_hosts().map(|(host, _)| host).collect();
    for leads in &world.input.leads {
        for way in &leads.ways {
            let (Some(subset), Ok(host)) = (&way.subset, HostPattern::parse(&way.host)) else {
                continue;
            };
            let mut rules = world.rules().iter().filter(|rule| rule.host.covers(&host));
            let has = rules.any(|rule| rule.subsets.iter().any(|of| of.name == *subset));
            // A rule that was refused may have it.
            let refused = world.input.may_be_refused("DestinationRule", &host);
            if has || refused || subset.is_empty() || !known.contains(&host) {
                continue;
            }
            let subject = Subject {
                origin: leads.origin,
                name: leads.name.clone(),
            };
            let path = format!("{}.subset", way.path);
            let message = format!(
                "no DestinationRule for `{host}` has subset `{subset}`: Istio answers 503 to these requests"
            );
            findings
                .add(&UNKNOWN_SUBSET, &subject, &path, message)
                .hint(format!("add `{subset}` to `subsets` of the DestinationRule for `{host}`, or leave `subset` out"));
        }
    }
}

fn add(rule: &'static Rule, problem: &Problem, findings: &mut Findings<'_>) {
    let message = problem.kind.to_string();
    // Services of the cluster are seldom among the files.
    let of_cluster = rule.id == UNKNOWN_DESTINATION.id && message.contains(".svc.cluster.local");
    let severity = match problem.severity {
        _ if of_cluster => Severity::Info,
        Level::Error => Severity::Error,
        Level::Warning => Severity::Warning,
    };
    let name = problem.resource.as_ref().map(ToString::to_string);
    let subject = Subject {
        origin: problem.origin,
        name: name.unwrap_or_default(),
    };
    // The engine's path begins at the root of the document already.
    let full = problem.path.to_string();
    let path = full.find("spec").and_then(|at| full.get(at..));
    let added = findings
        .add(rule, &subject, path.unwrap_or("spec"), message)
        .severity(severity);
    if let Some(hint) = &problem.hint {
        added.hint(hint.clone());
    }
}
