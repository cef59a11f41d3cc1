//! `Sidecar`: what a workload sees of the mesh.
//!
//! Source: istio/api `networking/v1alpha3/sidecar.proto`.

use crate::fields::Fields;
use crate::host::HostPattern;
use crate::node::Node;
use crate::options::OutboundMode;
use crate::problem::Origin;
use crate::proxy::{Proxy, Role};
use crate::resource::Meta;
use crate::resource::loose::{as_text, at, labels, list, number, pattern, text};
use crate::resource::meta::read_meta;

/// What workloads of a namespace see.
#[derive(Debug, Clone, PartialEq)]
pub struct Sidecar {
    /// Name, namespace, origin.
    pub meta: Meta,
    selector: Option<Vec<(String, String)>>,
    /// `None` takes in everything.
    egress: Option<Vec<Import>>,
    /// `outboundTrafficPolicy`.
    pub(crate) outbound: Option<OutboundMode>,
    /// What it does not know is sent to a proxy of somebody's choice.
    pub(crate) egress_proxy: bool,
}

/// One of `egress.hosts`.
#[derive(Debug, Clone, PartialEq)]
struct Import {
    excluded: bool,
    namespace: String,
    host: HostPattern,
    port: Option<u64>,
}

impl Sidecar {
    /// Whether it is for workloads with certain labels.
    pub(crate) fn selects_workloads(&self) -> bool {
        self.selector.is_some()
    }

    pub(crate) const KIND: &'static str = "Sidecar";

    pub(crate) fn read(root: &Fields<'_>, origin: Origin) -> Sidecar {
        let meta = read_meta(root, Self::KIND, origin, false);
        root.allow_unknown();
        let spec = root.peek("spec");
        let spec = spec.unwrap_or(&Node::Null);
        let selector = at(spec, "workloadSelector").map(|selector| labels(selector, "labels"));
        let egress = match list(spec, "egress") {
            [] => None,
            listeners => Some(listeners),
        };
        let outbound = at(spec, "outboundTrafficPolicy");
        Sidecar {
            meta,
            selector: selector.filter(|labels| !labels.is_empty()),
            egress: egress.map(|all| all.iter().flat_map(imports).collect()),
            // Without a mode it is the first word of the enumeration.
            outbound: outbound.map(|policy| match text(policy, "mode") {
                Some("ALLOW_ANY") => OutboundMode::AllowAny,
                _ => OutboundMode::RegistryOnly,
            }),
            egress_proxy: outbound.is_some_and(|policy| at(policy, "egressProxy").is_some()),
        }
    }

    /// Returns the one that counts for a workload, if any does: those with a selector come first, then the
    /// namespace's own, then the root's; each by age and name.
    ///
    /// Source: istio/istio `pilot/pkg/model/push_context.go`, `initSidecarScopes`.
    pub(crate) fn of<'s>(all: &'s [Sidecar], proxy: &Proxy, root: &str) -> Option<&'s Sidecar> {
        if proxy.role == Role::Gateway {
            return None;
        }
        let rank = |sidecar: &Sidecar| {
            let owner = &*sidecar.meta.id.namespace;
            let own = *owner == *proxy.namespace;
            let has = |(key, value): &(String, String)| proxy.labels.get(key) == Some(value);
            match &sidecar.selector {
                Some(labels) if own && labels.iter().all(has) => Some(0),
                Some(_) => None,
                None if own => Some(1),
                None if owner == root => Some(2),
                None => None,
            }
        };
        let ranked = all.iter().filter_map(|sidecar| {
            let meta = &sidecar.meta;
            Some((rank(sidecar)?, &meta.created, &meta.id.name, sidecar))
        });
        let first =
            ranked.min_by(|one, other| (one.0, one.1, one.2).cmp(&(other.0, other.1, other.2)));
        first.map(|(.., sidecar)| sidecar)
    }

    /// Whether `caller`, a namespace, takes in a host of another; without a port, whether any port of it.
    pub(crate) fn takes_in(
        &self,
        caller: &str,
        owner: &str,
        host: &HostPattern,
        port: Option<u64>,
    ) -> bool {
        let covers = |import: &Import| import.host.covers(host);
        self.is_taken_in((caller, owner), port, &covers, &covers)
    }

    /// Whether a VirtualService's host is taken in: one that is in part is so as a whole.
    pub(crate) fn takes_in_routes(&self, caller: &str, owner: &str, host: &HostPattern) -> bool {
        let overlaps = |import: &Import| import.host.overlaps(host);
        let covers = |import: &Import| import.host.covers(host);
        self.is_taken_in((caller, owner), None, &overlaps, &covers)
    }

    fn is_taken_in(
        &self,
        (caller, owner): (&str, &str),
        port: Option<u64>,
        included: &dyn Fn(&Import) -> bool,
        excluded: &dyn Fn(&Import) -> bool,
    ) -> bool {
        let Some(imports) = &self.egress else {
            return true;
        };
        let of = |import: &&Import| match import.namespace.as_str() {
            "*" => true,
            // That of the caller, in the root namespace's Sidecar too.
            "." => owner == caller,
            "~" => import.excluded,
            other => other == owner,
        };
        let is_port =
            |import: &&Import| import.port.is_none() || port.is_none() || import.port == port;
        let mut taken = false;
        for import in imports.iter().filter(of).filter(is_port) {
            match import.excluded {
                true if excluded(import) => return false,
                true => {}
                false => taken |= included(import),
            }
        }
        taken
    }
}

fn imports<'n>(listener: &'n Node<'n>) -> impl Iterator<Item = Import> + 'n {
    let port = at(listener, "port").and_then(|port| number(port, "number"));
    let hosts = list(listener, "hosts").iter().filter_map(as_text);
    hosts.filter_map(move |given| {
        let (excluded, rest) = match given.strip_prefix('~') {
            Some(rest) if !rest.starts_with('/') => (true, rest),
            _ => (false, given),
        };
        let (namespace, host) = rest.split_once('/')?;
        // A `~` alone stands for every namespace.
        let (excluded, namespace) = match namespace {
            "~" => (true, "*"),
            namespace => (excluded, namespace),
        };
        Some(Import {
            excluded,
            namespace: namespace.to_owned(),
            host: pattern(host)?,
            port,
        })
    })
}
