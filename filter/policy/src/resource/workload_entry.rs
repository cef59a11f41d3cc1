//! `WorkloadEntry`: a workload outside of Kubernetes, which ServiceEntries select by its labels.

use crate::fields::{Field, Fields};
use crate::port::PortNumber;
use crate::problem::{Origin, ProblemKind};
use crate::resource::meta::{Meta, is_label, read_meta};
use crate::resource::service_entry::{Endpoint, Resolution, is_elsewhere, read_address};

/// A workload outside of Kubernetes.
///
/// Whether it is healthy is no part of it: its `status` tells of the moment it was written down.
///
/// Source: istio/api `networking/v1alpha3/workload_entry.proto`, `WorkloadEntry`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WorkloadEntry {
    /// Name, namespace, origin.
    pub(crate) meta: Meta,
    /// Where it is; `None` where only another network leads there. Its labels are those by which it is selected.
    pub(crate) endpoint: Option<Endpoint>,
}

impl WorkloadEntry {
    pub(crate) const KIND: &'static str = "WorkloadEntry";

    pub(crate) fn read(root: &Fields<'_>, origin: Origin) -> Option<WorkloadEntry> {
        let mut meta = read_meta(root, Self::KIND, origin, true);
        root.ignore(&["status"]);
        let mut endpoint = root.require("spec", |field| Some(read_spec(field)))?;
        if let Some(endpoint) = &mut endpoint {
            // The resource's own labels count before those of `spec`.
            // Source: istio/istio `pilot/pkg/serviceregistry/serviceentry/conversion.go`, `ConvertWorkloadEntry`.
            let own = std::mem::take(&mut meta.labels);
            endpoint
                .labels
                .retain(|(key, _)| !own.iter().any(|(other, _)| other == key));
            endpoint.labels.extend(own);
        }
        Some(WorkloadEntry { meta, endpoint })
    }
}

/// Source: istio/istio `pkg/config/validation/validation.go`, `validateWorkloadEntry`.
fn read_spec(field: Field<'_>) -> Option<Endpoint> {
    let fields = field.fields()?;
    let address = match is_elsewhere(&fields, Resolution::Static) {
        true => None,
        // A name is taken, and whether it is of use depends on who selects it.
        false => fields.require("address", |field| read_address(field, Resolution::Dns, 1)),
    };
    let unix = address.as_ref().is_some_and(|it| it.starts_with("unix://"));
    let mut ports: Vec<(String, PortNumber)> = Vec::new();
    fields.read("ports", |field| {
        if unix {
            let text = "unix endpoint must not include ports".to_owned();
            field.error_with_hint(ProblemKind::Conflict(text), "remove `ports`");
            return None;
        }
        field.entries(|name, port| {
            if !is_label(name) {
                let text = format!("invalid port name: {name}");
                port.error_with_hint(ProblemKind::Invalid(text), "letters, digits and `-`");
            }
            ports.extend(port.port().map(|port| (name.to_owned(), port)));
        });
        Some(())
    });
    let labels = fields
        .read("labels", |field| Some(field.labels()))
        .unwrap_or_default();
    let weight = fields
        .read("weight", |field| field.number(0, u32::MAX.into()))
        .unwrap_or(0);
    let text = |name| fields.read(name, |field| field.text().map(str::to_owned));
    let locality = text("locality").unwrap_or_default();
    let service_account = text("serviceAccount").filter(|name| !name.is_empty());
    fields.read("network", |field| field.text().map(drop));
    Some(Endpoint {
        address: address?,
        ports,
        labels,
        locality,
        // Zero is "not set", which counts as one.
        weight: u32::try_from(weight).unwrap_or(1).max(1),
        service_account,
    })
}
