//! Ports at which the two halves of a way through a gateway miss each other.

use egress_policy::HostPattern;

use crate::catalogue::GATEWAY_WRONG_PORT;
use crate::findings::Findings;
use crate::input::Subject;
use crate::leads::{Leads, Way};
use crate::servers::Gateway;
use crate::world::World;

pub(crate) fn lint(world: &World<'_>, findings: &mut Findings<'_>) {
    // The server may stand in the file that could not be read.
    if world.input.partial {
        return;
    }
    for leads in &world.input.leads {
        for way in leads.ways.iter().chain(&leads.tls_ways) {
            match way.mesh {
                true => sent_elsewhere(world, leads, way, findings),
                false => asked_elsewhere(world, leads, way, findings),
            }
        }
    }
}

/// Finds routes of a gateway for a port that it does not listen on.
///
/// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `TranslateRoute`, with the port of the server.
fn asked_elsewhere(world: &World<'_>, leads: &Leads, way: &Way, findings: &mut Findings<'_>) {
    let Some(port) = way.from.filter(|_| !way.gateways.is_empty()) else {
        return;
    };
    let find = |name: &String| world.input.servers.iter().find(|it| it.name == *name);
    let Some(named) = way.gateways.iter().map(find).collect::<Option<Vec<_>>>() else {
        return;
    };
    if named.iter().any(|gateway| gateway.ports.contains(&port)) {
        return;
    }
    let message = format!(
        "this route is for port {port} of {}, which {}: the gateway answers 404, or closes the connection",
        listed(&named),
        listens(&named)
    );
    let Some(path) = &way.port_path else { return };
    findings
        .add(&GATEWAY_WRONG_PORT, &subject(leads), path, message)
        .hint("match the `port.number` of the Gateway's server");
}

/// Finds routes of sidecars to a port of a gateway's Service that no server is for.
fn sent_elsewhere(world: &World<'_>, leads: &Leads, way: &Way, findings: &mut Findings<'_>) {
    let Some(port) = way.port else { return };
    let Some((service, _)) = way
        .host
        .split_once('.')
        .filter(|(_, rest)| rest.contains(".svc."))
    else {
        return;
    };
    let known = HostPattern::parse(&way.host);
    if known.is_ok_and(|host| !world.entries_of(&host).is_empty()) {
        return;
    }
    // The other half: whoever leads the same host on, at which Gateways.
    let halves = world.input.leads.iter().filter(|other| {
        let mut hosts = other.hosts.iter();
        hosts.any(|host| leads.hosts.iter().any(|own| host.overlaps(own)))
    });
    let names = halves.flat_map(|other| other.ways.iter().chain(&other.tls_ways));
    let names: Vec<&String> = names.flat_map(|way| &way.gateways).collect();
    let find = |name: &&String| world.input.servers.iter().find(|it| it.name == **name);
    let Some(mut named) = names.iter().map(find).collect::<Option<Vec<_>>>() else {
        return;
    };
    // The Service of another workload may have any port.
    let is_its = |gateway: &&Gateway| {
        gateway
            .selects
            .iter()
            .any(|value| service.contains(&**value))
    };
    named.retain(is_its);
    named.dedup_by(|one, other| one.name == other.name);
    if named.is_empty() || named.iter().any(|gateway| gateway.takes(port)) {
        return;
    }
    let message = format!(
        "this leads to port {port} of the Service of {}, which {}: nothing answers there",
        listed(&named),
        listens(&named)
    );
    findings
        .add(
            &GATEWAY_WRONG_PORT,
            &subject(leads),
            &format!("{}.port", way.path),
            message,
        )
        .hint("lead to a port that a server of the Gateway has, or add a server for this one");
}

fn listed(gateways: &[&Gateway]) -> String {
    let names = gateways
        .iter()
        .map(|gateway| format!("Gateway `{}`", gateway.name));
    names.collect::<Vec<_>>().join(" and ")
}

fn listens(gateways: &[&Gateway]) -> String {
    let mut ports: Vec<u64> = gateways
        .iter()
        .flat_map(|it| it.ports.iter().copied())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    let ports: Vec<String> = ports.iter().map(u64::to_string).collect();
    match ports.len() {
        0 => "has no server".to_owned(),
        _ => format!("has servers for {} only", ports.join(", ")),
    }
}

fn subject(leads: &Leads) -> Subject {
    Subject {
        origin: leads.origin,
        name: leads.name.clone(),
    }
}
