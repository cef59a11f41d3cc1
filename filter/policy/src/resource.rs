//! The resources as Istio writes them: one file a kind, read from JSON, no meaning yet.

mod client_tls;
mod destination_rule;
pub(crate) mod id;
mod meta;
mod service_entry;
mod traffic_policy;
mod unread;

pub use client_tls::{ClientTls, TlsMode};
pub use destination_rule::{DestinationRule, Subset};
pub use id::{DEFAULT_NAMESPACE, ResourceId};
pub use meta::Meta;
pub(crate) use meta::exported;
pub use service_entry::{Address, Endpoint, Resolution, ServiceEntry, ServicePort};
pub(crate) use traffic_policy::read_limits;
pub use traffic_policy::{
    ConnectionPool, ConsistentHash, H2UpgradePolicy, HashKey, HashRing, HttpPool, LoadBalancer,
    OutlierDetection, PortPolicy, ProxyProtocol, RetryBudget, SimpleBalancer, TcpKeepalive,
    TcpPool, TrafficPolicy, Tunnel, Warmup,
};
pub(crate) use unread::{Asked, hidden_by};
pub use unread::{UNREAD_KINDS, Unread};

/// All resources of a configuration, in the order they were read.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// The services that applications may call.
    pub service_entries: Vec<ServiceEntry>,
    /// How to reach them.
    pub destination_rules: Vec<DestinationRule>,
    /// What may change any of that, and is not carried out.
    pub unread: Vec<Unread>,
}
