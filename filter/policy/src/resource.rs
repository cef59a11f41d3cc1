//! The resources as Istio writes them: one file a kind, read from JSON, no meaning yet.

use crate::host::HostPattern;
use crate::order::sort_by;

mod backend_tls_policy;
mod client_tls;
mod destination_rule;
mod gateway;
pub(crate) mod id;
mod loose;
mod meta;
mod notes;
mod service;
mod service_entry;
mod sidecar;
mod traffic_policy;
mod unread;
mod virtual_service;
mod workload_entry;

pub(crate) use backend_tls_policy::{At, BackendTlsPolicy, Target, meant};
pub use client_tls::{ClientTls, TlsMode};
pub use destination_rule::{DestinationRule, Subset};
pub(crate) use gateway::{Ends, Reads, Server};
pub use gateway::{GATEWAY_SERVICES, Gateway};
pub use id::{BACKEND_TLS_POLICY, DEFAULT_NAMESPACE, ResourceId};
pub use meta::{Meta, is_label, read_export_to, read_labels, read_meta, text_of};
pub(crate) use meta::{as_policy, exported};
pub use notes::{Note, Notes};
pub use service::KubernetesService;
pub use service_entry::{Address, Endpoint, Resolution, ServiceEntry, ServicePort};
pub use sidecar::Sidecar;
pub use traffic_policy::read_connection_pool;
pub(crate) use traffic_policy::read_limits;
pub use traffic_policy::{
    ConnectionPool, ConsistentHash, H2UpgradePolicy, HashKey, HashRing, HttpPool, LoadBalancer,
    OutlierDetection, PortPolicy, ProxyProtocol, RetryBudget, SimpleBalancer, TcpKeepalive,
    TcpPool, TrafficPolicy, Tunnel, Warmup,
};
pub(crate) use unread::Asked;
pub use unread::{UNREAD_KINDS, Unread};
pub use virtual_service::{Answer, MADE_OF, ROUTE_KINDS, VirtualService};
pub(crate) use virtual_service::{Both, Destination, GatewayName, Match, Route};
pub(crate) use workload_entry::WorkloadEntry;

/// All resources of a configuration, in the order they were read.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// The services that applications may call.
    pub service_entries: Vec<ServiceEntry>,
    /// How to reach them.
    pub destination_rules: Vec<DestinationRule>,
    /// Where what comes in is led.
    pub virtual_services: Vec<VirtualService>,
    /// What routers listen for.
    pub gateways: Vec<Gateway>,
    /// What workloads see.
    pub sidecars: Vec<Sidecar>,
    /// The Services of Kubernetes that have a host of an entry, or are another name for it.
    pub services: Vec<KubernetesService>,
    /// What may change any of that, and is not carried out.
    pub unread: Vec<Unread>,
}

impl Resources {
    /// Whether any of them is for some workloads only, told by their labels.
    pub fn select_workloads(&self) -> bool {
        let rules = || {
            self.destination_rules
                .iter()
                .any(|rule| rule.selector.is_some())
        };
        let sidecars = || self.sidecars.iter().any(Sidecar::selects_workloads);
        let services = || {
            self.virtual_services
                .iter()
                .any(VirtualService::selects_callers)
        };
        let unread = || self.unread.iter().any(Unread::selects_workloads);
        rules() || sidecars() || services() || unread()
    }

    /// Returns, for each VirtualService, whether it is about a host of the entries, or leads to one.
    ///
    /// The others change nothing, and the filter is not given them.
    pub fn concerned(&self) -> Vec<bool> {
        if self.virtual_services.is_empty() {
            return Vec::new();
        }
        let hosts = self.service_entries.iter().flat_map(|entry| &entry.hosts);
        let mut known: Vec<&HostPattern> = hosts.collect();
        sort_by(&mut known, |one, other| one.cmp(other));
        let has_exactly = |host: &HostPattern| known.binary_search(&host).is_ok();
        let wild = known.iter().copied().filter(|host| host.exact().is_none());
        let wild: Vec<&HostPattern> = wild.collect();
        let has = |host: &HostPattern| match host.exact() {
            Some(_) => has_exactly(host) || wild.iter().any(|wild| wild.covers(host)),
            None => known.iter().any(|other| other.overlaps(host)),
        };
        let concerns = |service: &VirtualService| {
            let mut destinations = service.destinations();
            service.hosts.iter().any(has)
                || destinations
                    .any(|to| HostPattern::parse(&to.host).is_ok_and(|host| has_exactly(&host)))
        };
        self.virtual_services.iter().map(concerns).collect()
    }
}
