//! The service ports of a table.

use std::collections::BTreeMap;

use egress_policy::{DownstreamProtocol, PolicyTable, PortNumber, Service};

/// Returns the service ports that are listened on, each with what comes in on it.
pub fn service_ports(table: &PolicyTable) -> Vec<(PortNumber, Vec<DownstreamProtocol>)> {
    let mut ports = BTreeMap::<PortNumber, Vec<DownstreamProtocol>>::new();
    let services = table.services().filter(listens_here);
    let services = services.map(|service| (service.port, service.downstream));
    // A host that is refused is told so.
    let refused = table
        .refused()
        .filter(|refused| refused.downstream != DownstreamProtocol::Tcp || refused.connectable);
    let refused = refused.map(|refused| (refused.port, refused.downstream));
    // Of these hosts Envoy's routes choose, so they are no services and are not refused.
    let branching = table
        .branching()
        .map(|it| (it.port, DownstreamProtocol::Http));
    for (port, downstream) in services.chain(refused).chain(branching) {
        let downstreams = ports.entry(port).or_default();
        if !downstreams.contains(&downstream) {
            downstreams.push(downstream);
        }
    }
    ports.into_iter().collect()
}

/// Whether a service is reached at the address of the listeners, and not at one of its own.
fn listens_here(service: &Service<'_>) -> bool {
    service.downstream != DownstreamProtocol::Tcp || (service.connectable && service.vip.is_none())
}
