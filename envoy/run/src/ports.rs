//! The ports that are listened on: which of them can be, and which the kernel chooses.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use egress_policy::PortNumber;
use tokio::net::TcpSocket;

use super::deployment::Deployment;
use egress_render::xds;
use egress_rules::Complaint;

/// The addresses and service ports that are listened on.
pub(super) type Known = BTreeSet<(String, PortNumber)>;

/// Chooses the ports that the kernel is to choose, and holds them until Envoy listens there as well.
///
/// Envoy would choose too, but it takes two listeners whose port is open for one at the same address: a new one gets
/// the socket of one that was replaced. A port stays the service's for as long as we run.
pub(super) fn reserve(
    deployment: &mut Deployment,
    chosen: &mut BTreeMap<PortNumber, u16>,
) -> io::Result<Vec<TcpSocket>> {
    let options = &mut deployment.options;
    let address: IpAddr = options.listen.parse().map_err(io::Error::other)?;
    let mut reserved = Vec::new();
    for (service, _) in xds::service_ports(&deployment.rules.table) {
        if options.listening_port(service) != 0 {
            continue;
        }
        let port = match chosen.get(&service) {
            Some(port) => *port,
            None => {
                let socket = match address {
                    IpAddr::V4(_) => TcpSocket::new_v4()?,
                    IpAddr::V6(_) => TcpSocket::new_v6()?,
                };
                // As Envoy's own are, so that both may have the port. Nobody connects to this one.
                socket.set_reuseport(true)?;
                socket.bind(SocketAddr::new(address, 0))?;
                let port = socket.local_addr()?.port();
                reserved.push(socket);
                chosen.insert(service, port);
                port
            }
        };
        options.ports.retain(|(mapped, _)| *mapped != service);
        options.ports.push((service, port));
    }
    Ok(reserved)
}

/// Returns where these rules are listened for, but for the forward proxy and capture.
pub(super) fn places(deployment: &Deployment) -> Known {
    let (options, table) = (&deployment.options, &deployment.rules.table);
    let here = xds::service_ports(table)
        .into_iter()
        .filter(|(service, _)| options.listens_on(*service))
        .map(|(service, _)| (options.listen.clone(), service));
    let vips = xds::vips(table);
    let own = vips.iter().map(|vip| (vip.address.to_string(), vip.port));
    here.chain(own).collect()
}

/// Finds out which ports cannot be listened on, before Envoy does and says so less plainly.
/// Those of `known` services are listened on already.
pub(super) fn check_ports(deployment: &Deployment, known: Option<&Known>) -> Result<(), Complaint> {
    let options = &deployment.options;
    // What is listened on already is ours.
    let is_known = |at: &(String, PortNumber)| known.is_some_and(|known| known.contains(at));
    if let Some(address) = options.forward_proxy.filter(|_| known.is_none())
        && let Err(error) = TcpListener::bind(address)
    {
        return Err(Complaint::input(format!(
            "cannot listen on {address} for the forward proxy: {error}\nhint: `--forward-proxy` takes another address, and port 0 for any free one"
        )));
    }
    for (capture, address) in
        options
            .capture
            .iter()
            .filter(|_| known.is_none())
            .flat_map(|capture| {
                capture
                    .addresses
                    .iter()
                    .map(move |address| (capture, address))
            })
    {
        let at = SocketAddr::new(*address, capture.port.get());
        if let Err(error) = TcpListener::bind(at) {
            return Err(Complaint::input(format!(
                "cannot listen on {at} for captured connections: {error}\nhint: `--capture` takes another port"
            )));
        }
    }
    for (listen, service) in places(deployment).into_iter().filter(|at| !is_known(at)) {
        let port = options.listening_port(service);
        if let Err(error) = TcpListener::bind((listen.as_str(), port)) {
            let flag = format!(
                "--port {service}={}",
                if port < 1024 { port + 10_000 } else { 0 }
            );
            let why = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "only root may listen on ports below 1024 here".to_owned()
                }
                io::ErrorKind::AddrInUse => "something else listens there".to_owned(),
                io::ErrorKind::AddrNotAvailable => {
                    "this machine does not have that address; see --listen".to_owned()
                }
                _ => error.to_string(),
            };
            return Err(Complaint::input(format!(
                "cannot listen on {listen} port {port} for service port {service}: {why}\nhint: `{flag}` listens elsewhere"
            )));
        }
    }
    Ok(())
}
