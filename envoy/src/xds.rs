//! Render a policy table as an Envoy bootstrap. It translates intent and judges nothing.
//!
//! The shape is meant for speed and for ten thousand hosts:
//!
//! - one listener for each service port, one HTTP connection manager in it, one filter;
//! - hosts that differ in nothing but their name share one dynamic forward proxy cluster, which takes
//!   SNI and verified name from the authority; only a host whose rules ask for something of its own has
//!   a cluster of its own;
//! - the request's route is fixed for what most hosts need, so that the filter has nothing to change;
//! - TLS of the application is matched by SNI in the listener and never opened;
//! - captured connections are handed to listeners that are not bound, with the same chains;
//! - a TCP service has a chain of its own, with the same filter as a network filter, or a listener of its own
//!   where it has a loopback address.

use std::fmt;
use std::net::SocketAddr;

use crate::mesh::MeshConfig;
use egress_filter::{AuthorityMode, MetadataFormat};
use egress_policy::{Arrival, PolicyTable, PortNumber, Proxy, Service};
use serde_json::{Value, json};

mod access_log;
mod bootstrap;
mod capture;
mod cluster;
mod dynamic;
mod forward_proxy;
mod guard;
mod led;
mod listener;
mod names;
mod secret;
mod secrets;
mod server_name;
mod stats;
mod tcp;
mod tunnel;
mod upgrade;
mod upstream_proxy;
mod variants;

pub use bootstrap::{bootstrap, reloading};
pub use capture::{Capture, NAME as CAPTURE, SERVICE_PREFIX as CAPTURED};
pub use dynamic::{Dynamic, discovered, dynamic};
pub use forward_proxy::NAME as FORWARD_PROXY;
pub use guard::{DROPS_ADDRESSES, is_refused, looks_at_one_address, refused};
pub use led::{Led, led};
pub use secret::{SecretFiles, SecretRequest, Secrets};
pub use secrets::{file_name, watched_documents};
pub use tcp::{Vip, vips};
pub use upstream_proxy::{InvalidProxy, NAME as UPSTREAM_PROXY, OLDEST_WITH_PROXY, UpstreamProxy};

/// What rendering takes besides the table.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the listeners listen.
    pub listen: String,
    /// Other ports to listen on, by service port; zero lets the kernel choose.
    pub ports: Vec<(PortNumber, u16)>,
    /// Where the forward proxy listens, if there is one.
    pub forward_proxy: Option<SocketAddr>,
    /// Where redirected connections come in, if they do.
    pub capture: Option<Capture>,
    /// The proxy that all connections to servers go through, if there is one.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// The wasm module.
    pub wasm: String,
    /// The bundle that `system` stands for.
    pub trust_store: String,
    /// Where requests are logged.
    pub access_log: AccessLog,
    /// How they are logged.
    pub format: MetadataFormat,
    /// What upstream is told in `:authority`.
    pub authority: AuthorityMode,
    /// For whom the rules were compiled; the filter compiles them again.
    pub proxy: Proxy,
    /// The tables for other labels of the workload. If there is any, the filter takes the labels of Envoy's node.
    pub workloads: Vec<PolicyTable>,
    /// Where Envoy's admin interface listens.
    pub admin: Admin,
    /// DNS servers to ask instead of the system's.
    pub dns: Vec<(String, u16)>,
    /// The DNS server to ask for names that clients choose, where it is ours: it leaves refused addresses out.
    pub guarded_dns: Option<SocketAddr>,
    /// Each TCP service has a loopback address of its own; so the rules were compiled.
    pub loopback_vips: bool,
    /// The configuration of the mesh; with it the rules were compiled.
    pub mesh: MeshConfig,
    /// The Envoy that is to read the bootstrap.
    pub version: Version,
    /// How it comes by certificates and keys.
    pub secrets: Secrets,
    /// Envoy is given other rules while it runs, so what it keeps for all clusters must not change with them.
    pub reloads: bool,
    /// Call each host's own clusters by what they are, too: then no other is ever put in the place of one, and no
    /// decision meets a cluster that was made for another.
    pub by_content: bool,
}

/// Where requests are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// To Envoy's standard output.
    Stdout,
    /// To a file.
    File(String),
}

/// Where Envoy's admin interface listens. Whoever reaches it can stop Envoy and read its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admin {
    /// On a socket in a private folder.
    Pipe(String),
    /// On an address.
    Tcp(String, u16),
}

/// A version of Envoy, as far as rendering depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 1.
    pub major: u32,
    /// For example 40.
    pub minor: u32,
}

/// The oldest Envoy that understands what is rendered: it removes headers by prefix before routing.
pub const OLDEST: Version = Version {
    major: 1,
    minor: 36,
};

/// As `1.40`.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Finds `1.40.0` in a text, such as the answer to `envoy --version`.
    pub fn find(text: &str) -> Option<Version> {
        text.split(|c: char| !c.is_ascii_digit() && c != '.')
            .find_map(|word| {
                let mut parts = word.split('.');
                let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                parts.next()?.parse::<u32>().ok()?;
                Some(Version { major, minor })
            })
    }
}

impl Options {
    /// Returns the port to listen on for a service port.
    pub fn listening_port(&self, port: PortNumber) -> u16 {
        let mapped = self.ports.iter().find(|(service, _)| *service == port);
        mapped.map_or(port.get(), |(_, listening)| *listening)
    }

    /// Says whether a service port is listened on. Beside a forward proxy or capture, which lead to all of them, only
    /// those are that were named.
    pub fn listens_on(&self, port: PortNumber) -> bool {
        let led_to = self.forward_proxy.is_some() || self.capture.is_some();
        !led_to || self.ports.iter().any(|(service, _)| *service == port)
    }
}

/// Returns the service ports that are listened on, each with what comes in on it.
pub fn service_ports(table: &PolicyTable) -> Vec<(PortNumber, Vec<Arrival>)> {
    let mut ports = std::collections::BTreeMap::<PortNumber, Vec<Arrival>>::new();
    let services = table.services().filter(listens_here);
    let services = services.map(|service| (service.port, service.arrival));
    // A host that is refused is told so.
    let refused = table
        .refused()
        .filter(|refused| refused.arrival != Arrival::Tcp || refused.connectable);
    let refused = refused.map(|refused| (refused.port, refused.arrival));
    for (port, arrival) in services.chain(refused) {
        let arrivals = ports.entry(port).or_default();
        if !arrivals.contains(&arrival) {
            arrivals.push(arrival);
        }
    }
    ports.into_iter().collect()
}

/// Says whether a service is reached at the address of the listeners, and not at one of its own.
fn listens_here(service: &Service<'_>) -> bool {
    service.arrival != Arrival::Tcp || (service.connectable && service.vip.is_none())
}

/// Wraps a message in an `Any` under the name of an extension.
fn extension(name: &str, kind: &str, mut message: Value) -> Value {
    if let Value::Object(fields) = &mut message {
        fields.insert(
            "@type".to_owned(),
            json!(format!("type.googleapis.com/{kind}")),
        );
    }
    json!({"name": name, "typed_config": message})
}

/// Writes a duration as protobuf's JSON does.
fn duration(time: std::time::Duration) -> String {
    match time.subsec_nanos() {
        0 => format!("{}s", time.as_secs()),
        nanos => format!("{}.{nanos:09}s", time.as_secs()),
    }
}
