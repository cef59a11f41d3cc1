//! Who owns a host: of all ServiceEntries that have it, those of one namespace make up its service.
//!
//! Three questions in turn. *Whose namespace?* The caller's own, if it has an entry for the host; then that of the
//! first entry exported by name, then that of the first public one. *Which entry?* The first of that namespace is the
//! service, and others that agree with it add their ports. *Where does it lead?* To the endpoints of all entries of
//! that namespace and host, even of those that the caller does not see.

use std::collections::BTreeMap;

use crate::host::HostPattern;
use crate::indexed::Indexed;
use crate::mesh::Mesh;
use crate::order::entries_sorted;
use crate::proxy::{Proxy, Role};
use crate::resource::{Resolution, ServiceEntry, ServicePort};

/// An entry, and its index among all entries.
pub(super) type Entry<'r> = Indexed<'r, ServiceEntry>;

/// A host, and the entry that is its service.
#[derive(Clone, Copy)]
pub(super) struct Owner<'r> {
    pub(super) entry: Entry<'r>,
    pub(super) host: &'r HostPattern,
}

/// The entries of one namespace with one host, where there are several.
#[derive(Default)]
pub(super) struct Siblings<'r> {
    /// Those that add their ports to the service, in their order.
    pub(super) joined: Vec<Entry<'r>>,
    /// Those that do not, and that the caller sees.
    pub(super) lost: Vec<Entry<'r>>,
    /// All of them, the oldest first.
    pub(super) all: Vec<Entry<'r>>,
}

/// The siblings of the few hosts that have any, by the host's place.
pub(super) type Families<'r> = BTreeMap<usize, Siblings<'r>>;

/// Returns the indexes of the entries that a namespace sees, in the order in which a host's are asked.
///
/// Source: istio/istio `pilot/pkg/model/push_context.go`, `servicesExportedToNamespace`, and
/// `pilot/pkg/model/sidecar.go`, `selectServices`.
pub(crate) fn in_order(entries: &[ServiceEntry], proxy: &Proxy, mesh: &Mesh) -> Vec<usize> {
    let metas: Vec<_> = entries.iter().map(|entry| &entry.meta).collect();
    let rank = |at: usize| entries.get(at).map_or(u8::MAX, |it| rank(it, proxy, mesh));
    let mut order = entries_sorted(&metas, rank);
    order.retain(|at| {
        let entry = entries.get(*at);
        entry.is_some_and(|entry| mesh.shows(entry, &proxy.namespace))
    });
    order
}

/// Returns when an entry is asked: those of the caller's own namespace first, and of equal ones public ones last. At a
/// gateway its own namespace does not come first.
///
/// Source: istio/istio `pilot/pkg/model/sidecar.go`, `DefaultSidecarScopeForGateway`.
fn rank(entry: &ServiceEntry, proxy: &Proxy, mesh: &Mesh) -> u8 {
    let sidecar = proxy.role == Role::Sidecar;
    let other = sidecar && *entry.meta.id.namespace != *proxy.namespace;
    u8::from(other) * 2 + u8::from(mesh.is_public(entry))
}

/// Whether a later entry of the same namespace adds its ports to the service of an earlier one.
///
/// Source: istio/istio `pilot/pkg/model/sidecar.go`, `canMergeServices`.
pub(crate) fn joins(first: &ServiceEntry, later: &ServiceEntry) -> bool {
    first.meta.id.namespace == later.meta.id.namespace
        && first.resolution == later.resolution
        && first.meta.labels == later.meta.labels
        && same_set(selector(first), selector(later))
        && same_set(&first.export_to, &later.export_to)
}

fn selector(entry: &ServiceEntry) -> &[(String, String)] {
    entry.workload_selector.as_deref().unwrap_or_default()
}

/// Whether two lists hold the same, in whatever order and however often.
pub(crate) fn same_set<T: PartialEq>(one: &[T], other: &[T]) -> bool {
    one.iter().all(|item| other.contains(item)) && other.iter().all(|item| one.contains(item))
}

/// Where the connections of a port go.
pub(super) enum Leads<'r> {
    /// To the host by its name, on the port's target.
    ToTheHost,
    /// To what these ports of these entries say.
    To(Vec<(&'r ServiceEntry, &'r ServicePort)>),
}

impl<'r> Leads<'r> {
    /// Settles where a port of a service leads: to the endpoints of its namespace's entries for the host, with
    /// `STATIC` by the port's name, with DNS by its number.
    ///
    /// Source: istio/istio `pilot/pkg/serviceregistry/serviceentry/conversion.go`,
    /// `mergeServicesInstancesByNamespaceHost`; `pilot/pkg/xds/endpoints/endpoint_builder.go`,
    /// `BuildClusterLoadAssignment`; `pilot/pkg/model/endpointshards.go`, `CopyEndpoints`.
    pub(super) fn of(
        owner: &'r ServiceEntry,
        siblings: Option<&Siblings<'r>>,
        (from, port): (&'r ServiceEntry, &'r ServicePort),
    ) -> Self {
        let by_name = match owner.resolution {
            Resolution::None | Resolution::DynamicDns => return Leads::ToTheHost,
            Resolution::Static => true,
            Resolution::Dns | Resolution::DnsRoundRobin => false,
        };
        // Most hosts have one entry.
        if siblings.is_none() && !by_name && is_looked_up(from) {
            return Leads::ToTheHost;
        }
        let of = |entry: &'r ServiceEntry| {
            let same = move |other: &&ServicePort| match by_name {
                true => other.name == port.name,
                false => other.number == port.number,
            };
            let ports = entry.ports.iter().filter(same);
            ports.map(move |port| (entry, port))
        };
        let led: Vec<_> = match siblings {
            None => vec![(from, port)],
            Some(siblings) => {
                let mut led: Vec<(&ServiceEntry, &ServicePort)> = Vec::new();
                for (entry, port) in siblings.all.iter().map(|entry| entry.item).flat_map(of) {
                    let gives =
                        |entry: &ServiceEntry| is_looked_up(entry) || !entry.endpoints.is_empty();
                    // Of one that goes to one address at a time nothing is added to what older ones give.
                    let one = entry.resolution == Resolution::DnsRoundRobin;
                    if !one || !led.iter().any(|(older, _)| gives(older)) {
                        led.push((entry, port));
                    }
                }
                led
            }
        };
        let plain = |(entry, other): &(&ServiceEntry, &ServicePort)| {
            let nothing = !is_looked_up(entry) && entry.endpoints.is_empty();
            nothing || (is_looked_up(entry) && other.target == port.target)
        };
        match !by_name && led.iter().any(|(entry, _)| is_looked_up(entry)) && led.iter().all(plain)
        {
            true => Leads::ToTheHost,
            false => Leads::To(led),
        }
    }
}

/// Whether an entry's endpoint is its host, looked up by DNS.
pub(crate) fn is_looked_up(entry: &ServiceEntry) -> bool {
    let by_dns = matches!(
        entry.resolution,
        Resolution::Dns | Resolution::DnsRoundRobin
    );
    by_dns && entry.endpoints.is_empty() && entry.workload_selector.is_none()
}
