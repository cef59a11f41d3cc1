//! Finds the Kubernetes Services that matter for ServiceEntries, and leads routes to an alias to what it stands for.
//!
//! Source: istio/istio `pilot/pkg/model/push_context.go`, `resolveServiceAliases`.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::HostPattern;
use crate::problem::{FieldPath, Problem, ProblemKind, Severity};
use crate::resource::{KubernetesService, Resources};

/// How many aliases may lead to each other.
const MOST: usize = 10;

/// Adds the Services that matter, and returns what is to be said of the others.
pub(crate) fn resolve(services: Vec<KubernetesService>, resources: &mut Resources) -> Vec<Problem> {
    if services.is_empty() {
        return Vec::new();
    }
    let entries = resources.service_entries.iter();
    let hosts: BTreeSet<&HostPattern> = entries.flat_map(|entry| &entry.hosts).collect();
    let leads: BTreeMap<HostPattern, HostPattern> = services
        .iter()
        .filter_map(|service| Some((service.host.clone(), service.external.clone()?)))
        .collect();
    let end = |first: &HostPattern| {
        let mut at = first.clone();
        for _ in 0..MOST {
            match leads.get(&at) {
                Some(next) => at = next.clone(),
                None => break,
            }
        }
        at
    };
    let mut problems = Vec::new();
    let mut known = Vec::new();
    for mut service in services {
        // A ServiceEntry counts before an alias of its host.
        let is_entry = hosts.contains(&service.host);
        service.external = service.external.as_ref().map(end);
        let matters = match &service.external {
            Some(external) => !is_entry && hosts.contains(external),
            None => is_entry,
        };
        if matters {
            known.push(service);
            continue;
        }
        let kind = ProblemKind::IgnoredKind(KubernetesService::KIND.to_owned());
        let path = FieldPath::keys("kind");
        let mut problem = service.meta.problem(Severity::Warning, path, kind, None);
        problem.resource = None;
        problems.push(problem);
    }
    let targets: BTreeMap<String, String> = known
        .iter()
        .filter_map(|service| {
            let external = service.external.as_ref()?;
            Some((service.host.to_string(), external.to_string()))
        })
        .collect();
    if !targets.is_empty() {
        for service in &mut resources.virtual_services {
            service.lead_elsewhere(&targets);
        }
    }
    resources.services = known;
    problems
}
