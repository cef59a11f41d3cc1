//! `VirtualService`, read whole: each field with its type, and all that Istio's validation refuses.
//!
//! The engine reads the same documents for what decides, and leniently, for it is in the filter. What is wrong is told
//! here, before a filter sees it. What Envoy carries out by itself stands only here: paths, headers, retries, faults.
//! So [`HttpRoute`] is what is rendered, and what a person's question is compared with.

use std::net::IpAddr;
use std::sync::Arc;

use egress_policy::fields::{Field, Fields};
use egress_policy::reading::read_export_to;
use egress_policy::{
    HostName, HostPattern, Origin, Problem, ProblemKind, ResourceId, ServiceEntry, Severity,
};
use serde_json::Value;

use crate::document;

mod answer;
mod destination;
mod effort;
mod headers;
mod http;
mod l4;
mod matches;
mod pattern;
mod request;
mod text;

pub use answer::{DEFAULT_BODY, DirectResponse, Redirect, RedirectPort};
pub use destination::{Share, served};
pub use effort::{Abort, Fault, Percent, Retries};
pub use headers::{HeaderChanges, Headers};
pub use http::{HttpRoute, PathRewrite, RouteAction};
pub use l4::{ConnectionMatch, ConnectionRoute};
pub use matches::HttpMatch;
pub use pattern::Pattern;
pub use request::{Request, normalized};
pub use text::StringMatch;

/// The kind.
pub(crate) const KIND: &str = "VirtualService";

/// How requests and connections to hosts are led.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `VirtualService`.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualService {
    /// Which one it is.
    pub id: ResourceId,
    /// Where it was read.
    pub origin: Origin,
    /// The hosts that are called; none where another VirtualService delegates to it.
    pub hosts: Vec<HostPattern>,
    /// All of them could be read.
    hosts_are_whole: bool,
    /// The gateways, or `mesh`; none means `mesh`.
    pub gateways: Vec<String>,
    /// The namespaces that see it; empty means all.
    pub export_to: Vec<String>,
    /// The routes of requests.
    pub http: Vec<HttpRoute>,
    /// The routes of TLS.
    pub tls: Vec<ConnectionRoute>,
    /// The routes of bytes.
    pub tcp: Vec<ConnectionRoute>,
}

impl VirtualService {
    /// Whether a document's resource is one.
    pub(crate) fn is(resource: &Value) -> bool {
        let text = |name: &str| resource.get(name).and_then(Value::as_str);
        let group = text("apiVersion").and_then(|version| version.split('/').next());
        text("kind") == Some(KIND) && group == Some("networking.istio.io")
    }

    /// Reads one, and tells everything that is wrong with it.
    pub fn read(resource: &Value, origin: Origin) -> (Option<VirtualService>, Vec<Problem>) {
        let kind = document::made_of(resource).unwrap_or(KIND);
        let (mut read, problems) = document::read_spec(resource, origin, kind, |field, meta| {
            read_spec(field, meta.id, origin)
        });
        if let Some(read) = read.as_mut().filter(|read| read.id.kind != KIND) {
            let matches = read.http.iter_mut().flat_map(|route| &mut route.matches);
            matches.for_each(HttpMatch::separate);
        }
        (read, problems)
    }

    /// Whether it is for a host of these entries, or leads to one. One whose hosts cannot all be read may be for any.
    pub(crate) fn concerns(&self, entries: &[ServiceEntry]) -> bool {
        let known = || entries.iter().flat_map(|entry| &entry.hosts);
        let overlaps = |host: &HostPattern| {
            let host = HostPattern::parse(&full(&host.to_string(), &self.id.namespace));
            host.is_ok_and(|host| known().any(|known| host.overlaps(known)))
        };
        let leads_to = |host: &str| {
            let host = HostPattern::parse(&full(host, &self.id.namespace)).ok();
            host.is_some_and(|host| known().any(|known| *known == host))
        };
        !self.hosts_are_whole
            || self.hosts.iter().any(overlaps)
            || self.destinations().any(leads_to)
    }

    /// Whether it is for gateways only.
    pub fn is_for_routers(&self) -> bool {
        !self.gateways.is_empty() && !self.gateways.iter().any(|name| name == "mesh")
    }

    /// Returns the hosts that its routes lead to, as they were written.
    pub fn destinations(&self) -> impl Iterator<Item = &str> {
        let http = self.http.iter().flat_map(|route| match &route.action {
            RouteAction::Forward(shares) => &shares[..],
            RouteAction::Redirect(_) | RouteAction::Respond(_) => &[],
        });
        let connections = self.tls.iter().chain(&self.tcp);
        let shares = http.chain(connections.flat_map(|route| &route.shares));
        shares.map(|share| share.host.as_str())
    }
}

/// Reads the VirtualServices among documents that concern hosts of these entries, and returns what is wrong with them.
/// Others are no concern of ours, whatever is wrong with them.
pub(crate) fn concerning<'d>(
    documents: impl Iterator<Item = &'d Value>,
    entries: &[ServiceEntry],
) -> (Arc<[VirtualService]>, Vec<Problem>) {
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for (document, value) in documents.enumerate() {
        for (item, resource) in document::resources(value) {
            if !VirtualService::is(resource) {
                continue;
            }
            let (read, found) = VirtualService::read(resource, Origin { document, item });
            let wrong = |problem: &Problem| problem.severity == Severity::Error;
            if read.as_ref().is_none_or(|read| read.concerns(entries)) {
                problems.extend(found);
            } else if found.iter().any(wrong) {
                continue;
            }
            all.extend(read);
        }
    }
    all.sort_by(|one, other| one.id.cmp(&other.id));
    (all.into(), problems)
}

/// Finds one among those that a set of rules has, which are in the order of their ids.
pub fn virtual_service<'v>(
    all: &'v [VirtualService],
    id: &ResourceId,
) -> Option<&'v VirtualService> {
    let at = all.binary_search_by(|service| service.id.cmp(id)).ok()?;
    all.get(at)
}

/// Returns the full name of a Service, for which its first part may stand.
///
/// Source: istio/istio `pilot/pkg/model/config.go`, `ResolveShortnameToFQDN`.
pub(crate) fn full(host: &str, namespace: &str) -> String {
    match host.contains(['.', ':', '*']) {
        true => host.to_owned(),
        false => format!("{host}.{namespace}.svc.cluster.local"),
    }
}

/// Source: istio/istio `pkg/config/validation/validation.go`, `ValidateVirtualService`.
fn read_spec(field: Field<'_>, id: ResourceId, origin: Origin) -> Option<VirtualService> {
    let fields = field.fields()?;
    let gateways = matches::read_gateways(&fields);
    let router = !gateways.is_empty() && !gateways.iter().any(|name| name == "mesh");
    let hosts = read_hosts(&fields, router);
    let delegate = !fields.given("hosts");
    for name in ["gateways", "tls", "tcp"] {
        if delegate && fields.given(name) {
            let text = format!("delegate virtual service must have no {name} specified");
            let hint = "name the `hosts` that it is for";
            fields.error_at(name, ProblemKind::Invalid(text), Some(hint));
        }
    }
    if !["http", "tls", "tcp"].iter().any(|name| fields.given(name)) {
        let text = "http, tcp or tls must be provided in virtual service".to_owned();
        fields.error(ProblemKind::Invalid(text), Some("give it a route"));
    }
    let export_to = read_export_to(&fields, &id.namespace, false);
    let mut given = 0;
    fields.read("hosts", |list| {
        given = list.count();
        Some(())
    });
    let (mut http, mut tls, mut tcp) = (Vec::new(), Vec::new(), Vec::new());
    fields.read("http", |list| {
        list.items(|item| http.extend(http::read_http_route(item, router, delegate)));
        Some(())
    });
    fields.read("tls", |list| {
        list.items(|item| tls.extend(l4::read_connection_route(item, Some(&hosts))));
        Some(())
    });
    fields.read("tcp", |list| {
        list.items(|item| tcp.extend(l4::read_connection_route(item, None)));
        Some(())
    });
    Some(VirtualService {
        id,
        origin,
        hosts_are_whole: hosts.len() == given,
        hosts,
        gateways,
        export_to,
        http,
        tls,
        tcp,
    })
}

fn read_hosts(fields: &Fields<'_>, router: bool) -> Vec<HostPattern> {
    let mut hosts: Vec<HostPattern> = Vec::new();
    fields.read("hosts", |list| {
        list.items(|item| {
            let Some(text) = item.text() else { return };
            let address = text.parse::<IpAddr>().ok().map(HostName::address);
            let host = match address {
                Some(address) => HostPattern::Exact(address),
                None => match item.host() {
                    Some(host) => host,
                    None => return,
                },
            };
            if host == HostPattern::Any && !router {
                let text =
                    "wildcard host * is not allowed for virtual services bound to the mesh gateway";
                item.error_with_hint(ProblemKind::Invalid(text.to_owned()), "name the hosts");
                return;
            }
            let same = |other: &&HostPattern| other.covers(&host) || host.covers(other);
            if let Some(other) = hosts.iter().find(same) {
                let text = format!("duplicate hosts in virtual service: {other} & {host}");
                item.error_with_hint(ProblemKind::Conflict(text), "keep the wider one");
                return;
            }
            hosts.push(host);
        });
        Some(())
    });
    hosts
}

#[cfg(test)]
mod tests;
