//! Routes of the Gateway API: as in Istio, VirtualServices are made of them, and go the way of all others.
//!
//! ```text
//! HTTPRoute, GRPCRoute, TLSRoute, TCPRoute ─► rules, one for each match ─► merged by host ─► VirtualService
//! Gateway (gateway.networking.k8s.io)      ─► listeners that such routes are bound to     ─► Gateway (networking.istio.io)
//! ```
//!
//! What is made is read by the engine, by the strict readers and by the filter as if it had been written. So none of
//! them knows these kinds. What they say of it is told at the route that it was made of: [`Made::tell`].
//!
//! A route that concerns no host of a ServiceEntry is left alone, whatever stands in it.
//!
//! Source: istio/istio `pilot/pkg/config/kube/gateway/route_collections.go` and `conversion.go`.

use egress_policy::{Origin, Severity};
use serde_json::Value;

use crate::document;

mod attach;
mod backend;
mod connections;
mod effort;
mod filters;
mod gateway;
mod http;
mod kind;
mod known;
mod made;
mod matches;
mod place;
mod reference;
mod route;
mod rule;

pub(crate) use made::Made;

use kind::Kind;
use known::Known;

/// Makes what the routes among documents say.
pub(crate) fn convert<'d>(documents: impl Iterator<Item = &'d Value>) -> Made {
    let documents: Vec<&Value> = documents.collect();
    let resources = || {
        let all = documents.iter().enumerate();
        all.flat_map(|(document, value)| {
            let all = document::resources(value);
            all.map(move |(item, resource)| (Origin { document, item }, resource))
        })
    };
    let mut made = Made::behind(documents.len());
    if !resources().any(|(_, resource)| Kind::of(resource).is_some()) {
        return made;
    }
    let mut known = Known::of(resources());
    let mut routes = Vec::new();
    for (origin, resource) in resources() {
        let Some(kind) = Kind::of(resource).filter(|_| known.concerns(resource)) else {
            continue;
        };
        made.hosts.insert(origin, known.parent_hosts(resource));
        let (route, problems) = route::read(resource, origin, kind, &known);
        let wrong = (problems.iter()).any(|it| it.severity == Severity::Error);
        made.problems.extend(problems);
        routes.extend(route.filter(|_| !wrong));
    }
    attach::attach(&routes, &mut known, &mut made);
    made
}

#[cfg(test)]
mod tests;
