//! The service ports of a table.

use std::collections::BTreeMap;

use egress_policy::{Arrival, PolicyTable, PortNumber, Service};

/// Returns the service ports that are listened on, each with what comes in on it.
pub fn service_ports(table: &PolicyTable) -> Vec<(PortNumber, Vec<Arrival>)> {
    let mut ports = BTreeMap::<PortNumber, Vec<Arrival>>::new();
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
