//! VirtualServices and routes of the Gateway API that never count.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use egress_policy::{HostPattern, Origin, ProtocolClass, VirtualService};
use serde_json::{Value, json};

use crate::catalogue::SHADOWED_VIRTUAL_SERVICE;
use crate::findings::Findings;
use crate::input::Subject;
use crate::leads::Leads;
use crate::world::World;

const KIND: &str = "VirtualService";

/// By namespace and host.
type ByHost<'l> = BTreeMap<(&'l str, &'l HostPattern), Vec<&'l Leads>>;

pub(crate) fn lint(world: &World<'_>, findings: &mut Findings<'_>) {
    let services = world.input.resources.virtual_services.iter();
    let mut order: Vec<&VirtualService> = services.collect();
    order.sort_by(|one, other| one.meta.order().cmp(&other.meta.order()));
    services_of_one_host(world, &order, findings);
    rules_of_one_list(world, &order, findings);
}

/// Of VirtualServices for one host, sidecars take for each port the oldest that has a route for it; but routes of the
/// Gateway API come first in their own namespace, and count elsewhere only if the ServiceEntry is in it too.
///
/// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `BuildSidecarVirtualHostWrapper`, and
/// `pilot/pkg/model/virtualservice.go`, `SelectVirtualServices`.
fn services_of_one_host(world: &World<'_>, order: &[&VirtualService], findings: &mut Findings<'_>) {
    let all = world.input.leads.iter();
    let all: BTreeMap<Origin, &Leads> = all.map(|leads| (leads.origin, leads)).collect();
    let leads = |service: &VirtualService| all.get(&service.meta.origin).copied();
    let mut older: ByHost<'_> = BTreeMap::new();
    let mut of_routes: ByHost<'_> = BTreeMap::new();
    for service in order.iter().filter(|it| it.meta.id.kind != KIND) {
        let namespace = &*service.meta.id.namespace;
        for host in leads(service).iter().flat_map(|leads| &leads.hosts) {
            let routes = of_routes.entry((namespace, host)).or_default();
            routes.extend(leads(service));
        }
    }
    for service in order {
        let namespace = &*service.meta.id.namespace;
        let Some(leads) = leads(service) else {
            continue;
        };
        if service.meta.id.kind != KIND {
            for host in leads
                .hosts
                .iter()
                .filter(|host| has(world, namespace, host))
            {
                older.entry((namespace, host)).or_default().push(leads);
            }
            continue;
        }
        let found = match winner(&older, namespace, leads) {
            Some(winner) => Some((winner, String::new())),
            None => winner(&of_routes, namespace, leads)
                .map(|winner| (winner, format!(" of namespace `{namespace}`"))),
        };
        if let Some((winner, whose)) = found {
            let subject = |leads: &Leads| Subject {
                origin: leads.origin,
                name: leads.name.clone(),
            };
            let (by, _) = world.input.written(&subject(winner), "spec.http[0]");
            let message = format!(
                "{} comes first, and has routes for the same hosts and ports: sidecars{whose} never use the routes of this one",
                by.name
            );
            let hint = match by.name.starts_with(KIND) {
                true => "make one VirtualService of the two".to_owned(),
                false => format!(
                    "write these routes into {}, or remove one of the two",
                    by.name
                ),
            };
            findings
                .add(
                    &SHADOWED_VIRTUAL_SERVICE,
                    &subject(leads),
                    "spec.hosts",
                    message,
                )
                .hint(hint);
        }
        for host in &leads.hosts {
            older.entry((namespace, host)).or_default().push(leads);
        }
    }
}

/// Returns what comes before a VirtualService for all that it has. It has all hosts, so the first too.
fn winner<'l>(of: &ByHost<'l>, namespace: &str, leads: &Leads) -> Option<&'l Leads> {
    let mut winners = of.get(&(namespace, leads.hosts.first()?))?.iter();
    winners.find(|winner| shadows(winner, leads)).copied()
}

/// Whether a ServiceEntry of a namespace has a host.
fn has(world: &World<'_>, namespace: &str, host: &HostPattern) -> bool {
    let mut entries = world.entries().iter();
    entries.any(|entry| *entry.meta.id.namespace == *namespace && entry.hosts.contains(host))
}

/// The rules of routes of the Gateway API for one host are one list. Of two with the same match, the first has all.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/route_collections.go`, `mergeHTTPRoutes`.
fn rules_of_one_list(world: &World<'_>, order: &[&VirtualService], findings: &mut Findings<'_>) {
    let mut first: BTreeMap<String, Subject> = BTreeMap::new();
    for service in order.iter().filter(|it| it.meta.id.kind != KIND) {
        let Some(made) = world.input.made(service.meta.origin) else {
            continue;
        };
        let spec = |key: &str| made.pointer(&format!("/spec/{key}"));
        for list in ["http", "tls", "tcp"] {
            let rules = spec(list).and_then(Value::as_array);
            for (at, rule) in rules.into_iter().flatten().enumerate() {
                let key = json!([
                    &*service.meta.id.namespace,
                    spec("hosts"),
                    spec("gateways"),
                    list,
                    rule.get("match"),
                ]);
                let subject = Subject::of(&service.meta);
                let path = format!("spec.{list}[{at}]");
                let written = world.input.written(&subject, &path);
                match first.entry(key.to_string()) {
                    Entry::Vacant(free) => {
                        free.insert(written.0);
                    }
                    Entry::Occupied(taken) => {
                        let by = &taken.get().name;
                        let by = match *by == written.0.name {
                            true => "an earlier rule",
                            false => by.as_str(),
                        };
                        let message =
                            format!("{by} takes all that this rule matches: it is never used");
                        findings
                            .add(&SHADOWED_VIRTUAL_SERVICE, &subject, &path, message)
                            .hint("remove one of the two, or let it match something else");
                    }
                }
            }
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
