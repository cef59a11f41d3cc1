//! The plugin configuration: the rules as they are, and what the filter must know besides.
//!
//! ```json
//! {
//!   "schema": 1,
//!   "proxy": {"namespace": "default", "labels": {"app": "sleep"}},
//!   "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
//!   "listener": {"port": 80},
//!   "resources": [{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry"}]
//! }
//! ```
//!
//! A forward proxy has `"listener": {"mode": "FORWARD_PROXY"}`: the port is that of each request.
//!
//! A list among the resources stands for a resource like the one before it, with another name and for other hosts:
//! `["name", "host"]`.
//!
//! The renderer writes a [`PluginConfig`]; the filter reads it back with [`load`](crate::load()).

use std::collections::BTreeMap;

use egress_policy::{AllowPlaintext, ConnectTo, PortNumber, Role, words};
use serde::Serialize;
use serde_json::Value;

use crate::answer::Repair;

pub mod compact;

/// The version of the format. A filter refuses any other.
pub const SCHEMA: u64 = 1;

/// The word for a listener that is a forward proxy.
pub(crate) const FORWARD_PROXY: &str = "FORWARD_PROXY";

/// The word for a proxy that all upstream connections go through.
pub(crate) const ALWAYS: &str = "ALWAYS";

/// What upstream is told in `:authority` for originated requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuthorityMode {
    /// The origin really dialled: host in lower case, port unless it is 443.
    #[default]
    Rewrite,
    /// What the application wrote.
    Preserve,
}

words! {
    /// The words that the configuration uses.
    AuthorityMode {
        Rewrite "REWRITE",
        Preserve "PRESERVE",
    }
}

/// How the metadata of a request is written for the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetadataFormat {
    /// `key=value`, separated by spaces.
    #[default]
    Text,
    /// An object that a JSON access log shows as one.
    Json,
}

words! {
    /// The words that the configuration uses, as Istio's `accessLogEncoding` has them.
    MetadataFormat {
        Text "TEXT",
        Json "JSON",
    }
}

/// How rules that differ by workload are told apart where one configuration serves all workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Variants {
    /// They need not be.
    #[default]
    None,
    /// By a transport socket each, in one cluster.
    Sockets,
    /// By a cluster each.
    Clusters,
}

words! {
    /// The words that the configuration uses.
    Variants {
        None "NONE",
        Sockets "SOCKETS",
        Clusters "CLUSTERS",
    }
}

/// What Envoy hands to the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilterKind {
    /// Requests: it is an HTTP filter.
    #[default]
    Http,
    /// Connections: it is a network filter.
    Network,
    /// Connections within Envoy for which the upstream proxy is asked: it is a network filter too, and needs no rules.
    Tunnel,
}

words! {
    /// The words that the configuration uses.
    FilterKind {
        Http "HTTP",
        Network "NETWORK",
        Tunnel "TUNNEL",
    }
}

/// The plugin configuration as the renderer writes it.
#[derive(Debug, Clone)]
pub struct PluginConfig<'c> {
    /// The fingerprint of the table that the renderer compiled; the filter refuses to decide by another.
    pub digest: String,
    /// The namespace whose rules are compiled.
    pub namespace: &'c str,
    /// The labels of the workload; `None` takes those of Envoy's node.
    pub labels: Option<&'c BTreeMap<String, String>>,
    /// What the proxy is for.
    pub role: Role,
    /// How rules for several workloads are told apart.
    pub variants: Variants,
    /// `REGISTRY_ONLY` or `ALLOW_ANY`.
    pub outbound: egress_policy::OutboundMode,
    /// What upstream is told.
    pub authority: AuthorityMode,
    /// The service port of the listener; without it, the port that the application dialled.
    pub listener_port: Option<PortNumber>,
    /// The listener is a forward proxy: requests name the port themselves, and CONNECT asks for a way for bytes.
    pub forward_proxy: bool,
    /// All clusters lead through a proxy, which the filter tells where to.
    pub upstream_proxy: bool,
    /// The cluster that requests reach when the filter names none. Only with `headers_stripped`.
    pub default_cluster: Option<&'c str>,
    /// Envoy removes `x-egress-*` from requests before it chooses a route.
    pub headers_stripped: bool,
    /// Addresses to dial in place of others.
    pub connect_to: &'c [ConnectTo],
    /// Each TCP service has a loopback address of its own.
    pub loopback_vips: bool,
    /// Hosts that may be reached in plaintext though the rules ask for TLS, or seem to.
    pub allow_plaintext: &'c [AllowPlaintext],
    /// What the configuration of the mesh says that decides: the fields of [`egress_policy::MESH_FIELDS`].
    pub mesh: Option<&'c Value>,
    /// What Envoy hands to the filter.
    pub filter: FilterKind,
    /// What is repaired in answers of hosts whose rules say nothing about it.
    pub repair: Repair,
    /// The ports that applications dial in place of service ports.
    pub listen_ports: Vec<(PortNumber, u16)>,
    /// How metadata is written.
    pub metadata: MetadataFormat,
    /// The rules, as the user wrote them; those that are like the one before them may be lists.
    pub resources: &'c [Value],
}

impl PluginConfig<'_> {
    /// Writes the JSON that [`load`](crate::load()) reads. Keys come in a fixed order.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'w> {
            schema: u64,
            digest: &'w str,
            proxy: WireProxy<'w>,
            outbound_traffic_policy: Mode<'w>,
            authority: &'w str,
            #[serde(skip_serializing_if = "Option::is_none")]
            listener: Option<Listener>,
            #[serde(skip_serializing_if = "Option::is_none")]
            upstream_proxy: Option<&'static str>,
            control_headers: &'w str,
            #[serde(skip_serializing_if = "Option::is_none")]
            default_cluster: Option<&'w str>,
            #[serde(skip_serializing_if = "<[To<'_>]>::is_empty")]
            connect_to: &'w [To<'w>],
            #[serde(skip_serializing_if = "Option::is_none")]
            loopback_vips: Option<bool>,
            #[serde(skip_serializing_if = "<[Allowed<'_>]>::is_empty")]
            allow_plaintext: &'w [Allowed<'w>],
            #[serde(skip_serializing_if = "Option::is_none")]
            mesh: Option<&'w Value>,
            #[serde(skip_serializing_if = "Option::is_none")]
            filter: Option<&'w str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            repair: Option<&'w str>,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            listen_ports: BTreeMap<u16, u16>,
            metadata: &'w str,
            #[serde(skip_serializing_if = "Option::is_none")]
            workload_variants: Option<&'w str>,
            resources: &'w [Value],
        }
        #[derive(Serialize)]
        struct WireProxy<'w> {
            namespace: &'w str,
            #[serde(skip_serializing_if = "Option::is_none")]
            labels: Option<&'w BTreeMap<String, String>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            role: Option<&'w str>,
        }
        #[derive(Serialize)]
        struct Mode<'w> {
            mode: &'w str,
        }
        #[derive(Serialize)]
        struct Listener {
            #[serde(skip_serializing_if = "Option::is_none")]
            port: Option<u16>,
            #[serde(skip_serializing_if = "Option::is_none")]
            mode: Option<&'static str>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct To<'w> {
            host: &'w str,
            port: u16,
            address: &'w str,
            address_port: u16,
        }
        #[derive(Serialize)]
        struct Allowed<'w> {
            host: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            port: Option<u16>,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'w str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            date: Option<&'w str>,
        }
        let allowed = self.allow_plaintext.iter().map(|allowed| Allowed {
            host: allowed.host.to_string(),
            port: allowed.port.map(PortNumber::get),
            reason: allowed.reason.as_deref(),
            date: allowed.date.as_deref(),
        });
        let allow_plaintext: Vec<Allowed<'_>> = allowed.collect();
        let listen_ports = self
            .listen_ports
            .iter()
            .map(|(port, own)| (port.get(), *own));
        let connect_to: Vec<To<'_>> = self
            .connect_to
            .iter()
            .map(|to| To {
                host: to.host.as_str(),
                port: to.port.get(),
                address: &to.address,
                address_port: to.address_port.get(),
            })
            .collect();
        let wire = Wire {
            schema: SCHEMA,
            digest: &self.digest,
            proxy: WireProxy {
                namespace: self.namespace,
                labels: self.labels,
                role: Some(self.role.as_str()).filter(|_| self.role != Role::Sidecar),
            },
            outbound_traffic_policy: Mode {
                mode: self.outbound.as_str(),
            },
            authority: self.authority.as_str(),
            listener: (self.forward_proxy || self.listener_port.is_some()).then(|| Listener {
                port: self.listener_port.map(PortNumber::get),
                mode: self.forward_proxy.then_some(FORWARD_PROXY),
            }),
            upstream_proxy: self.upstream_proxy.then_some(ALWAYS),
            control_headers: if self.headers_stripped {
                "STRIPPED"
            } else {
                "UNTRUSTED"
            },
            default_cluster: self.default_cluster,
            connect_to: &connect_to,
            loopback_vips: self.loopback_vips.then_some(true),
            allow_plaintext: &allow_plaintext,
            mesh: self.mesh,
            filter: Some(self.filter.as_str()).filter(|_| self.filter != FilterKind::Http),
            repair: Some(self.repair.as_str()).filter(|_| self.repair != Repair::Default),
            listen_ports: listen_ports.collect(),
            metadata: self.metadata.as_str(),
            workload_variants: Some(self.variants.as_str())
                .filter(|_| self.variants != Variants::None),
            resources: self.resources,
        };
        // Only maps with keys that are no strings could fail, and there is none.
        serde_json::to_string(&wire).unwrap_or_default()
    }
}
