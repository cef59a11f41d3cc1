//! What compiling takes besides the resources.

use crate::host::{HostName, HostPattern};
use crate::mesh::Mesh;
use crate::port::PortNumber;
use crate::proxy::Proxy;

/// What becomes of hosts that no ServiceEntry has.
///
/// Source: istio/api `mesh/v1alpha1/config.proto`, `MeshConfig.OutboundTrafficPolicy.Mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutboundMode {
    /// They are refused. Ours is the safe default; a mesh's is `ALLOW_ANY`.
    #[default]
    RegistryOnly,
    /// They are left alone.
    AllowAny,
}

crate::words! {
    /// The words that the configuration uses.
    OutboundMode {
        RegistryOnly "REGISTRY_ONLY",
        AllowAny "ALLOW_ANY",
    }
}

/// An address to dial in place of a host and port, names unchanged. As curl's `--connect-to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectTo {
    /// The host that would be dialled.
    pub host: HostName,
    /// The port that would be dialled.
    pub port: PortNumber,
    /// The host or address dialled in its place.
    pub address: String,
    /// The port dialled in its place.
    pub address_port: PortNumber,
}

/// What compiling takes besides the resources.
#[derive(Debug, Clone, Default)]
pub struct CompileOptions {
    /// For whom the table is.
    pub proxy: Proxy,
    /// What becomes of other hosts.
    pub outbound: OutboundMode,
    /// Addresses to dial in place of others.
    pub connect_to: Vec<ConnectTo>,
    /// Each TCP service has a loopback address of its own, by which its connections are told apart.
    pub loopback_vips: bool,
    /// Hosts that may be reached in plaintext though the rules ask for TLS, or seem to.
    pub allow_plaintext: Vec<AllowPlaintext>,
    /// The listener is somebody else's, who decides about hosts that the rules do not name: in Istio.
    pub foreign: bool,
    /// What the configuration of the mesh says.
    pub mesh: Mesh,
}

/// A host whose plaintext somebody allowed, in spite of the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowPlaintext {
    /// The host or hosts, as applications call them.
    pub host: HostPattern,
    /// The service port; `None` is every port.
    pub port: Option<PortNumber>,
    /// Why, for people.
    pub reason: Option<String>,
    /// When it was allowed, for people.
    pub date: Option<String>,
}

impl AllowPlaintext {
    /// Allows every host.
    pub fn everywhere() -> Self {
        AllowPlaintext {
            host: HostPattern::Any,
            port: None,
            reason: None,
            date: None,
        }
    }
}
