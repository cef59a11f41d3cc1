//! Plaintext that a VirtualService leads past the TLS that rules ask for.

use egress_policy::{HostPattern, ProtocolClass, ServicePort, Subset, TlsMode};

use crate::catalogue::PLAINTEXT_AFTER_VIRTUAL_SERVICE;
use crate::findings::Findings;
use crate::input::Subject;
use crate::leads::{Leads, Way};
use crate::scope::Service;
use crate::world::{World, originates};

/// A port of a host of the entries.
#[derive(Clone, Copy)]
struct At<'i> {
    service: Service,
    host: &'i HostPattern,
    port: &'i ServicePort,
}

pub(crate) fn lint(world: &World<'_>, findings: &mut Findings<'_>) {
    // What asks for the TLS may stand in the file that could not be read.
    if world.input.partial {
        return;
    }
    for leads in &world.input.leads {
        for way in &leads.ways {
            examine(world, leads, way, findings);
        }
    }
}

fn examine(world: &World<'_>, leads: &Leads, way: &Way, findings: &mut Findings<'_>) {
    let called: Vec<At<'_>> = match way.mesh {
        true => leads
            .hosts
            .iter()
            .flat_map(|host| ports(world, host))
            .collect(),
        false => Vec::new(),
    };
    let called = called.into_iter().filter(|at| {
        at.port.protocol.class() == way.class && way.is_from(u64::from(at.port.number.get()))
    });
    let called: Vec<At<'_>> = called.collect();
    let Some(to) = destination(world, way, &called) else {
        return;
    };
    let is_it = |at: &&At<'_>| at.host == to.host && at.port.number == to.port.number;
    if called.iter().any(|at| is_it(&at)) || is_settled(world, way, to) {
        return;
    }
    let past = called
        .iter()
        .find(|at| world.originated(at.service, at.port.number).0);
    let speaks_tls = to.port.protocol.class() == ProtocolClass::Tls;
    let (host, port) = (to.host, to.port.number);
    let what = match past {
        Some(at) => format!(
            "a rule originates TLS on port {} of `{}`, but this leads its requests to port {port} of `{host}`, for which no rule does: they go in plaintext",
            at.port.number, at.host
        ),
        None if speaks_tls && way.class == ProtocolClass::Http => format!(
            "plain HTTP is led to port {port} of `{host}`, where servers speak TLS, and no rule originates TLS there: requests go in plaintext"
        ),
        None => return,
    };
    let subject = Subject {
        origin: leads.origin,
        name: leads.name.clone(),
    };
    findings
        .add(&PLAINTEXT_AFTER_VIRTUAL_SERVICE, &subject, &way.path, what)
        .hint(format!(
            "give a DestinationRule for `{host}` with `tls: {{mode: SIMPLE}}` for port {port}; if plaintext is meant, write `tls: {{mode: DISABLE}}` there"
        ));
}

/// Returns the ports of a host that an entry has by this name.
fn ports<'i>(world: &World<'i>, host: &HostPattern) -> Vec<At<'i>> {
    let services = world.entries_of(host).iter();
    let ports = services.filter_map(|service| {
        let service = *service;
        let (entry, host) = world.service(service)?;
        Some(entry.ports.iter().map(move |port| At {
            service,
            host,
            port,
        }))
    });
    ports.flatten().collect()
}

/// Returns the port that a way leads to, if an entry has it.
fn destination<'i>(world: &World<'i>, way: &Way, called: &[At<'i>]) -> Option<At<'i>> {
    let host = HostPattern::parse(&way.host).ok()?;
    let of_host = ports(world, &host);
    let has = |number: u64| {
        let is = |at: &&At<'i>| u64::from(at.port.number.get()) == number;
        of_host.iter().find(is).copied()
    };
    match way.port {
        Some(number) => has(number),
        // A sidecar takes the port that was called, a gateway the only one.
        None if way.mesh => called
            .iter()
            .find_map(|at| has(u64::from(at.port.number.get()))),
        None => of_host.first().copied().filter(|_| of_host.len() == 1),
    }
}

/// Whether a rule says what TLS a destination has, or may say it unseen.
fn is_settled(world: &World<'_>, way: &Way, to: At<'_>) -> bool {
    if world.input.may_be_refused("DestinationRule", to.host) {
        return true;
    }
    if way.subset.is_none() && world.originated(to.service, to.port.number).0 {
        return true;
    }
    let rules = world.rules().iter();
    let rules: Vec<_> = rules.filter(|rule| rule.host.covers(to.host)).collect();
    if let Some(name) = &way.subset {
        // Nothing goes to a subset that there is not.
        let has = |of: &Subset| of.name == *name;
        if !rules.iter().any(|rule| rule.subsets.iter().any(has)) {
            return true;
        }
    }
    rules.into_iter().any(|rule| {
        let subset = way.subset.as_deref();
        let own = rule.subsets.iter().find(|of| Some(&*of.name) == subset);
        let policies = [
            rule.policy.as_deref(),
            own.and_then(|own| own.policy.as_ref()),
        ];
        policies.into_iter().flatten().any(|policy| {
            let port = policy
                .port_level
                .iter()
                .find(|it| it.port == to.port.number);
            let tls = match port {
                Some(own) => &own.policy.tls,
                None => &policy.tls,
            };
            tls.as_deref().is_some_and(|tls| {
                tls.mode == TlsMode::Disable || (subset.is_some() && originates(tls))
            })
        })
    })
}
