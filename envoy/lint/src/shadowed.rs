//! VirtualServices that never count.

use std::collections::BTreeMap;

use egress_policy::{HostPattern, Origin, ProtocolClass};

use crate::catalogue::SHADOWED_VIRTUAL_SERVICE;
use crate::findings::Findings;
use crate::input::Subject;
use crate::leads::Leads;
use crate::world::World;

const KIND: &str = "VirtualService";

/// Of VirtualServices for one host, sidecars take for each port the oldest that has a route for it.
///
/// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `BuildSidecarVirtualHostWrapper`.
pub(crate) fn lint(world: &World<'_>, findings: &mut Findings<'_>) {
    let services = world.input.resources.virtual_services.iter();
    // Routes of the Gateway API have an order of their own, and are merged.
    let mut order: Vec<_> = services.filter(|it| it.meta.id.kind == KIND).collect();
    order.sort_by(|one, other| one.meta.order().cmp(&other.meta.order()));
    let all = world.input.leads.iter();
    let all: BTreeMap<Origin, &Leads> = all.map(|leads| (leads.origin, leads)).collect();
    let mut older: BTreeMap<(&str, &HostPattern), Vec<&Leads>> = BTreeMap::new();
    for service in order {
        let Some(leads) = all.get(&service.meta.origin).copied() else {
            continue;
        };
        let namespace = &*service.meta.id.namespace;
        // The winner has all hosts, so the first too.
        let first = leads.hosts.first();
        let winners = first.and_then(|host| older.get(&(namespace, host)));
        let mut winners = winners.into_iter().flatten();
        let winner = winners.find(|winner| shadows(winner, leads));
        if let Some(winner) = winner {
            let message = format!(
                "{} comes first, and has routes for the same hosts and ports: sidecars never use the routes of this one",
                winner.name
            );
            let subject = Subject {
                origin: leads.origin,
                name: leads.name.clone(),
            };
            findings
                .add(&SHADOWED_VIRTUAL_SERVICE, &subject, "spec.hosts", message)
                .hint("make one VirtualService of the two");
        }
        for host in &leads.hosts {
            older.entry((namespace, host)).or_default().push(leads);
        }
    }
}

fn shadows(winner: &Leads, loser: &Leads) -> bool {
    let exact = |host: &HostPattern| host.exact().is_some() && winner.hosts.contains(host);
    let taken = loser.ways.iter().all(|way| {
        let mut others = winner
            .ways
            .iter()
            .filter(|other| other.mesh && other.for_all && other.class == ProtocolClass::Http);
        way.mesh && others.any(|other| other.from.is_none() || other.from == way.from)
    });
    // Who sees only one of the two takes that.
    let seen = winner.public && loser.public;
    seen && loser.only_http
        && !loser.ways.is_empty()
        && !loser.hosts.is_empty()
        && loser.hosts.iter().all(exact)
        && taken
}
