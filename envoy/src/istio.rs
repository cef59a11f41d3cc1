//! Render what a cluster with Istio needs so that our filter originates, in sidecars or at an egress gateway.
//!
//! ```text
//! DestinationRules, their `tls` closed ┐
//! EnvoyFilter: clusters and routes     ├─ istiod ──► Envoy: our filter ──header──► our route ──► our cluster, TLS
//! WasmPlugin: the rules as they were   │
//! ServiceEntries as they were          ┘
//! ```
//!
//! Istio makes a plain cluster of a ServiceEntry's port unless a DestinationRule says `tls`. Were that left so, whatever
//! keeps our filter or our patches from a proxy would send requests in plaintext. So the rules that the filter
//! carries out stay in the cluster, asking for a certificate that nobody can have: see `closed`. What Istio leads
//! requests to without us ends in 503; what we lead them to has a cluster with a name that Istio gives to none.
//!
//! | missing or not matching | what becomes of a request |
//! |---|---|
//! | nothing | originated |
//! | the WasmPlugin, or its labels | 503: Istio's own cluster is closed |
//! | the module, which the agent cannot fetch | 403 by the agent (`FAIL_CLOSE`) |
//! | the filter, which crashed | 503 (`FAIL_CLOSE`) |
//! | the filter, whose configuration Envoy refuses | as before it came; a proxy that starts with it does not serve |
//! | the EnvoyFilter's routes | 503: as without the WasmPlugin |
//! | the EnvoyFilter's clusters | 503: no such cluster |
//! | a secret, or the right to it | 503: the transport socket is not ready |
//! | the closed DestinationRules | Istio's plaintext, where the filter does not lead the request elsewhere |
//! | the ServiceEntries | as Istio lets out hosts that it does not know |
//!
//! So the DestinationRules come first in what is rendered, and the ServiceEntries last. The WasmPlugin comes before the
//! EnvoyFilter: it takes the headers that lead to a route away from clients. Without it such a header leads to one
//! of our clusters, with its TLS and its verified names, and nowhere else.
//!
//! Nothing here decides about requests. Other hosts of a port are left to Istio, whatever answers them.

use std::collections::{BTreeMap, BTreeSet};

use egress_filter::contract;
use egress_policy::{Arrival, Cluster, PortNumber, ResourceId, Service};
use serde_json::{Map, Value, json};

use crate::rules::Rules;
use crate::xds::{self, Options};

mod closed;
mod envoy_filter;
mod folder;
mod rbac;
mod wasm_plugin;

pub use folder::{MARK, difference, file_name, is_ours};
pub use wasm_plugin::{Api, Module, PullPolicy, Url};

/// How large a resource may be, in bytes of JSON: etcd takes 1.5 MiB, and the API server adds to it.
const MAX_BYTES: usize = 1_400_000;

/// Which proxies get the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Sidecars.
    Sidecar,
    /// Egress gateways, behind Gateways and VirtualServices of the user's.
    Gateway,
}

/// What rendering takes besides the rules.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What our resources are called.
    pub name: String,
    /// The proxies.
    pub place: Place,
    /// The Gateway of the Kubernetes Gateway API whose proxies they are; without one the labels tell.
    pub gateway: Option<String>,
    /// Where Istio gets the filter.
    pub module: Module,
    /// The kind of resource that names it.
    pub api: Api,
    /// `AUTHN`, `AUTHZ` or `STATS`; Istio's own place is before the router.
    pub phase: Option<&'static str>,
    /// The service accounts that may read credentials.
    pub service_accounts: Vec<String>,
}

/// One resource of a cluster.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// For example `WasmPlugin`.
    pub kind: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// All of it.
    pub value: Value,
}

/// Why Istio cannot be told to do what the rules ask for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// There is nothing for the filter to do.
    #[error(
        "no rule asks for TLS on a port that speaks HTTP, so there is nothing for the filter to do"
    )]
    Nothing,
    /// The network filter is not rendered for Istio.
    #[error(
        "`{host}` has the TCP port {port} with `tls`, and in Istio the filter originates HTTP only"
    )]
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: PortNumber,
    },
    /// The guard is not rendered for Istio.
    #[error(
        "`{0}` is a wildcard: whoever answers for a name in DNS chooses the address, and in Istio nothing here keeps it from private ones"
    )]
    Wildcard(String),
    /// A gateway does not tell the filter which service port was meant.
    #[error(
        "the rules have the HTTP ports {0}, and at a gateway the filter cannot tell them apart"
    )]
    Ports(String),
    /// Istio would read a name otherwise than we do.
    #[error("Istio has no name for the secret `{0}`")]
    Secret(String),
    /// istiod would not give the secrets.
    #[error(
        "the rules name credentials, and Istio gives them only to service accounts that may list Secrets"
    )]
    ServiceAccount,
    /// Kubernetes would keep only one of two.
    #[error("{0} would be rendered twice, and the later would take the place of the earlier")]
    Twice(String),
    /// Kubernetes would not take it.
    #[error(
        "{0} would have {1} bytes, and Kubernetes keeps no resource of more than about {MAX_BYTES}"
    )]
    TooLarge(String, usize),
}

impl Unsupported {
    /// Returns how to mend it.
    pub fn hint(&self) -> &'static str {
        match self {
            Unsupported::Nothing => {
                "give the host a DestinationRule with `tls`, and its port the protocol HTTP"
            }
            Unsupported::Tcp { .. } => {
                "give these rules to Istio as they are, with `sni` and `subjectAltNames`, and leave them out here"
            }
            Unsupported::Wildcard(_) => {
                "name each host, or say `location: MESH_INTERNAL` where private addresses are meant"
            }
            Unsupported::Ports(_) => {
                "render the rules of one port, and those of another for another gateway"
            }
            Unsupported::Secret(_) => {
                "let the name and path be of letters, digits, `/`, `.`, `-` and `_`, and let no credential end with `-cacert`"
            }
            Unsupported::ServiceAccount => {
                "name the workload's with `--service-account`, for example `--service-account sleep`"
            }
            Unsupported::Twice(_) => {
                "give the rules other names, or what is rendered another with `--name`"
            }
            Unsupported::TooLarge(..) => "render the rules in parts, with `--name` for each",
        }
    }
}

/// Renders all that a cluster needs, in the order in which it is to be applied.
///
/// `options` say for whom the rules were compiled, and that secrets come from Istio.
///
/// # Errors
/// When Istio cannot be told to do what the rules ask for; then nothing is rendered.
pub fn manifests(
    rules: &Rules,
    options: &Options,
    wanted: &Wanted,
) -> Result<Vec<Manifest>, Unsupported> {
    let services: Vec<Service<'_>> = rules.table.services().collect();
    check(&services, wanted)?;
    let additions = xds::foreign(&rules.table, &rules.resources(), options);
    let places = envoy_filter::Places::new(options, wanted);

    let mut all = closed::destination_rules(rules, &services, options, wanted);
    all.extend(rbac::manifests(&services, options, wanted)?);
    all.push(wasm_plugin::plugin(&additions, &places, options, wanted));
    all.push(envoy_filter::envoy_filter(
        &additions, &places, options, wanted,
    ));
    all.extend(given(rules, "ServiceEntry"));
    let mut names = BTreeSet::new();
    for manifest in &all {
        let called = format!("{} {}/{}", manifest.kind, manifest.namespace, manifest.name);
        if !names.insert(called.clone()) {
            return Err(Unsupported::Twice(called));
        }
        let bytes = manifest.value.to_string().len();
        if bytes > MAX_BYTES {
            let called = format!("{} {}", manifest.kind, manifest.name);
            return Err(Unsupported::TooLarge(called, bytes));
        }
    }
    Ok(all)
}

/// Refuses what would be rendered and not work.
fn check(services: &[Service<'_>], wanted: &Wanted) -> Result<(), Unsupported> {
    let mut ports = BTreeMap::new();
    for service in services {
        let tls = service.cluster.tls.as_ref();
        match service.arrival {
            Arrival::Tcp if tls.is_some() => {
                return Err(Unsupported::Tcp {
                    host: service.host.to_string(),
                    port: service.port,
                });
            }
            Arrival::Tcp | Arrival::Tls => continue,
            Arrival::Http => {}
        }
        ports.insert(service.port, ());
        if service.cluster.public_only {
            return Err(Unsupported::Wildcard(service.host.to_string()));
        }
        if let Some(name) = secrets(service.cluster).find(|name| name.contains('%')) {
            return Err(Unsupported::Secret(name));
        }
    }
    if originated(services).next().is_none() {
        return Err(Unsupported::Nothing);
    }
    if wanted.place == Place::Gateway && ports.len() > 1 {
        let ports: Vec<String> = ports.keys().map(ToString::to_string).collect();
        return Err(Unsupported::Ports(ports.join(" and ")));
    }
    Ok(())
}

/// Returns the names of the secrets that a cluster asks for; what our names mark with `%`, Istio's do not.
fn secrets(cluster: &Cluster) -> impl Iterator<Item = String> {
    let tls = cluster.tls.as_ref();
    let identity = tls.and_then(|tls| tls.identity.as_ref());
    let identity = identity.map(|identity| contract::identity_secret(identity).to_string());
    let trust = tls.and_then(|tls| contract::trust_name(&tls.trust, None));
    identity
        .into_iter()
        .chain(trust.map(|name| name.to_string()))
}

/// Returns the services that the filter originates TLS for, subsets included.
fn originated<'s, 't>(services: &'s [Service<'t>]) -> impl Iterator<Item = &'s Service<'t>> {
    services
        .iter()
        .filter(|service| service.arrival == Arrival::Http && service.cluster.tls.is_some())
}

/// Returns the documents of a kind as they were given.
fn given(rules: &Rules, kind: &str) -> Vec<Manifest> {
    let of_kind = |value: &Value| value.get("kind").and_then(Value::as_str) == Some(kind);
    rules
        .given()
        .into_iter()
        .filter(of_kind)
        .map(|mut value| {
            let id = id_of(&value);
            if let Some(Value::Object(meta)) = value.get_mut("metadata") {
                meta.insert("namespace".to_owned(), json!(&*id.namespace));
            }
            Manifest {
                kind: kind.to_owned(),
                namespace: id.namespace.to_string(),
                name: id.name.to_string(),
                value,
            }
        })
        .collect()
}

/// Says which resource a document is, by its metadata.
fn id_of(value: &Value) -> ResourceId {
    let text = |key: &str| {
        let found = value.get("metadata").and_then(|meta| meta.get(key));
        found.and_then(Value::as_str)
    };
    ResourceId {
        kind: "",
        namespace: text("namespace")
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or(egress_policy::DEFAULT_NAMESPACE)
            .into(),
        name: text("name").unwrap_or_default().into(),
    }
}

/// Makes a resource of ours.
fn manifest(
    (api_version, kind): (&str, &str),
    name: &str,
    options: &Options,
    body: Map<String, Value>,
) -> Manifest {
    let namespace = &options.proxy.namespace;
    let mut value = json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
    });
    if let Some(fields) = value.as_object_mut() {
        fields.extend(body);
    }
    Manifest {
        kind: kind.to_owned(),
        namespace: namespace.clone(),
        name: name.to_owned(),
        value,
    }
}

/// Returns fields as an object's.
fn fields<const N: usize>(all: [(&str, Option<Value>); N]) -> Map<String, Value> {
    all.into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
}
