//! Gives ServiceEntries with a `workloadSelector` the endpoints that they select, once all documents are read.
//!
//! In Istio these are WorkloadEntries and pods of the entry's namespace. Pods are known to a cluster only.
//!
//! Source: istio/istio `pilot/pkg/serviceregistry/serviceentry/conversion.go`, `convertWorkloadEntryToWorkloadInstance`.

use std::collections::BTreeMap;

use crate::order::sort_by;
use crate::problem::{FieldPath, Problem, ProblemKind, Severity};
use crate::resource::{Resolution, ServiceEntry, WorkloadEntry};

/// Adds endpoints to the entries, and returns what is to be said of the workloads.
pub(crate) fn select(
    mut workloads: Vec<WorkloadEntry>,
    entries: &mut [ServiceEntry],
) -> Vec<Problem> {
    if workloads.is_empty() {
        return Vec::new();
    }
    sort_by(&mut workloads, |one, other| {
        one.meta.order().cmp(&other.meta.order())
    });
    let mut of: BTreeMap<&str, Vec<&WorkloadEntry>> = BTreeMap::new();
    for workload in &workloads {
        let namespace = &*workload.meta.id.namespace;
        of.entry(namespace).or_default().push(workload);
    }
    let mut problems = Vec::new();
    for entry in entries {
        let Some(labels) = &entry.workload_selector else {
            continue;
        };
        // There are no endpoints where the address is the one that was dialled, or the one that DNS gives for the name.
        if matches!(entry.resolution, Resolution::None | Resolution::DynamicDns) {
            continue;
        }
        let of = of.get(&*entry.meta.id.namespace).into_iter().flatten();
        for workload in of {
            let Some(endpoint) = &workload.endpoint else {
                continue;
            };
            if !labels.iter().all(|label| endpoint.labels.contains(label)) {
                continue;
            }
            let is_name = endpoint.address.parse::<std::net::IpAddr>().is_err()
                && !endpoint.address.starts_with("unix://");
            if is_name && entry.resolution == Resolution::Static {
                problems.push(name_for_static(workload, entry));
                continue;
            }
            // Envoy goes to the addresses of one name one at a time, and Istio takes the oldest.
            let one = entry.resolution == Resolution::DnsRoundRobin;
            if !one || entry.endpoints.is_empty() {
                entry.endpoints.push(endpoint.clone());
            }
        }
    }
    problems
}

fn name_for_static(workload: &WorkloadEntry, entry: &ServiceEntry) -> Problem {
    let text = format!(
        "{} selects it and has `resolution: STATIC`, which takes addresses and no names: it is left out there",
        entry.meta.id
    );
    let hint = "give the address, or set `resolution: DNS` in the ServiceEntry".to_owned();
    let kind = ProblemKind::Conflict(text);
    let path = FieldPath::keys("spec.address");
    workload
        .meta
        .problem(Severity::Warning, path, kind, Some(hint))
}
