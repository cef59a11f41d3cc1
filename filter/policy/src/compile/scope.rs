//! What one proxy sees: the services, each with the entry that it is.

use crate::compile::owners::{Entry, Families, Owner, in_order, joins};
use crate::host::HostPattern;
use crate::indexed::Indexed;
use crate::mesh::Mesh;
use crate::order::sort_by;
use crate::port::PortNumber;
use crate::proxy::Proxy;
use crate::resource::{Resources, ServiceEntry, Sidecar};
use crate::table::hosts::Hosts;

/// The services that a proxy sees.
#[derive(Default)]
pub(super) struct Scope<'r> {
    /// Their hosts, without ports.
    pub(super) hosts: Hosts,
    /// The entry that is each host's service.
    pub(super) owners: Vec<Owner<'r>>,
    pub(super) families: Families<'r>,
    /// What the proxy's Sidecar does not take in. A VirtualService may lead there all the same.
    ///
    /// Source: istio/istio `pilot/pkg/model/sidecar.go`, `collectImportedServices`.
    beyond: Vec<(&'r HostPattern, Entry<'r>)>,
}

/// What is told while a scope is made.
pub(super) enum Seen<'r> {
    /// The proxy sees this entry.
    Entry(Entry<'r>),
    /// The host at this place of the entry is another entry's.
    Shadowed(Entry<'r>, usize, Entry<'r>),
}

/// A service, as a destination finds it.
#[derive(Clone, Copy)]
pub(super) struct Found<'r> {
    pub(super) entry: Entry<'r>,
    pub(super) host: &'r HostPattern,
    /// Its place in the scope; `None` where a Sidecar does not take it in.
    pub(super) index: Option<usize>,
}

impl<'r> Scope<'r> {
    /// Settles whose each host is.
    pub(super) fn of(
        resources: &'r Resources,
        proxy: &Proxy,
        mesh: &Mesh,
        sidecar: Option<&Sidecar>,
        tell: &mut dyn FnMut(Seen<'r>),
    ) -> Self {
        let entries = &resources.service_entries;
        let mut scope = Scope::default();
        for entry in in_order(entries, proxy, mesh)
            .into_iter()
            .filter_map(|index| Indexed::at(entries, index))
        {
            tell(Seen::Entry(entry));
            for (at, host) in entry.item.hosts.iter().enumerate() {
                let owner = &*entry.meta.id.namespace;
                if sidecar
                    .is_some_and(|sidecar| !sidecar.takes_in(&proxy.namespace, owner, host, None))
                {
                    scope.beyond.push((host, entry));
                    continue;
                }
                scope.add(entry, at, host, tell);
            }
        }
        scope.add_endpoints(entries, &proxy.namespace, mesh);
        scope
    }

    fn add(
        &mut self,
        entry: Entry<'r>,
        at: usize,
        host: &'r HostPattern,
        tell: &mut dyn FnMut(Seen<'r>),
    ) {
        let (index, new) = self.hosts.entry(host, entry.index);
        if new {
            self.owners.push(Owner { entry, host });
            return;
        }
        let Some(owner) = self.owners.get(index).map(|owner| owner.entry) else {
            return;
        };
        // It names the host twice.
        if owner.index == entry.index {
            return;
        }
        let joins = joins(&owner, &entry);
        if owner.meta.id.namespace == entry.meta.id.namespace {
            let family = self.families.entry(index).or_default();
            family.all.push(entry);
            let kind = match joins {
                true => &mut family.joined,
                false => &mut family.lost,
            };
            kind.push(entry);
        }
        if !joins {
            tell(Seen::Shadowed(entry, at, owner));
        }
    }

    /// What the caller does not see gives its endpoints all the same.
    fn add_endpoints(&mut self, entries: &'r [ServiceEntry], namespace: &str, mesh: &Mesh) {
        for entry in Indexed::all(entries).filter(|entry| !mesh.shows(entry, namespace)) {
            for host in &entry.item.hosts {
                let Some(index) = self.hosts.index(host) else {
                    continue;
                };
                let owner = self.owners.get(index).map(|owner| owner.entry);
                if owner.is_some_and(|owner| owner.meta.id.namespace == entry.meta.id.namespace) {
                    self.families.entry(index).or_default().all.push(entry);
                }
            }
        }
        for (index, family) in &mut self.families {
            family
                .all
                .extend(self.owners.get(*index).map(|owner| owner.entry));
            sort_by(&mut family.all, |one, other| {
                let key = |entry: &ServiceEntry| {
                    let id = &entry.meta.id;
                    (entry.meta.created.clone(), id.name.clone())
                };
                key(one).cmp(&key(other))
            });
        }
    }

    /// Returns the service of exactly this host; `hosts` are those of the scope, and maybe others behind them.
    pub(super) fn find(&self, hosts: &Hosts, host: &HostPattern) -> Option<Found<'r>> {
        let own = hosts.index(host).and_then(|index| {
            let Owner { entry, host } = *self.owners.get(index)?;
            Some(Found {
                entry,
                host,
                index: Some(index),
            })
        });
        own.or_else(|| {
            let mut beyond = self.beyond.iter();
            let (host, entry) = *beyond.find(|(other, _)| *other == host)?;
            Some(Found {
                entry,
                host,
                index: None,
            })
        })
    }

    /// Returns the ports of a service, each with the entry that has it; of two with one number the first.
    pub(super) fn ports(
        &self,
        found: Found<'r>,
    ) -> impl Iterator<Item = (Entry<'r>, &'r crate::resource::ServicePort)> {
        let siblings = found.index.and_then(|index| self.families.get(&index));
        let joined = siblings.map_or(&[][..], |siblings| &siblings.joined);
        let entries = std::iter::once(found.entry).chain(joined.iter().copied());
        entries.flat_map(|entry| entry.item.ports.iter().map(move |port| (entry, port)))
    }

    /// Returns the port of a service.
    pub(super) fn port(
        &self,
        found: Found<'r>,
        number: PortNumber,
    ) -> Option<(Entry<'r>, &'r crate::resource::ServicePort)> {
        self.ports(found).find(|(_, port)| port.number == number)
    }
}
