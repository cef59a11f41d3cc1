//! Hosts below a wildcard whose address was given by hand.

use crate::cluster::{Cluster, ClusterName};
use crate::compile::cluster::endpoints_of;
use crate::compile::compiler::Compiler;
use crate::host::HostPattern;
use crate::options::ConnectTo;
use crate::query::DownstreamProtocol;
use crate::table::hosts::{Host, Port, Subsets};
use crate::table::verdict::narrow;

/// What a host takes from the wildcard that it is below.
struct Below {
    entry: usize,
    named: bool,
}

impl Below {
    fn of(host: &Host) -> Self {
        Below {
            entry: host.entry as usize,
            named: host.named,
        }
    }
}

impl Compiler<'_> {
    /// Gives each host of [`connect_to`](crate::CompileOptions::connect_to) that is found below a wildcard a place of its own.
    ///
    /// The clusters of a wildcard refuse private addresses, and such an address may well be private. So the host gets
    /// a cluster that refuses none, for this host and port alone. Everything else below the wildcard stays guarded.
    pub(super) fn pin(&mut self) {
        for to in &self.options.connect_to {
            let mut known = Vec::new();
            let mut below = Vec::new();
            // The most specific host comes first, as in `decide`.
            self.hosts.find_map(to.host.as_str(), |host| {
                for port in self.hosts.ports(host) {
                    if known.contains(&port.number) {
                        continue;
                    }
                    known.push(port.number);
                    let cluster = self.clusters.get(port.verdict.cluster as usize);
                    if port.target == to.port
                        && port.downstream != DownstreamProtocol::Tcp
                        && cluster.is_some_and(|cluster| cluster.any_name)
                    {
                        let subsets = self.hosts.subsets(port).to_vec();
                        below.push((Below::of(host), port.clone(), subsets));
                    }
                }
                None::<()>
            });
            for (host, port, subsets) in below {
                self.pin_port(to, &host, &port, subsets);
            }
        }
    }

    fn pin_port(&mut self, to: &ConnectTo, below: &Below, port: &Port, mut subsets: Subsets) {
        let host = HostPattern::Exact(to.host.clone());
        let mut verdict = port.verdict;
        verdict.cluster = self.pinned_cluster(to, &host, port, "", verdict.cluster);
        for (name, verdict) in &mut subsets {
            verdict.cluster = self.pinned_cluster(to, &host, port, name, verdict.cluster);
        }
        let (index, _) = self.hosts.entry(&host, below.entry);
        if let Some(host) = self.hosts.get_mut(index) {
            // On its other ports the host is treated as the wildcard is.
            host.named |= below.named;
        }
        // A VirtualService has given it the port already.
        if let Some(own) = self.hosts.port_mut(index, port.number) {
            own.verdict = verdict;
            return;
        }
        let mut pinned = Port::new(port.number, port.target, port.downstream, verdict);
        pinned.allowed = port.allowed;
        self.hosts.add_port(index, pinned, subsets);
    }

    /// Finds or makes what a wildcard's cluster is for one host whose address is known.
    fn pinned_cluster(
        &mut self,
        to: &ConnectTo,
        host: &HostPattern,
        port: &Port,
        subset: &str,
        of: u32,
    ) -> u32 {
        let Some(cluster) = self.clusters.get(of as usize) else {
            return of;
        };
        let mut pinned = Cluster {
            any_name: false,
            public_only: false,
            ..cluster.clone()
        };
        pinned.name = match &cluster.own {
            None => ClusterName::shared(cluster.tls.as_ref(), cluster.upstream, false, false),
            Some(_) => {
                pinned.own = Some((host.clone(), port.number));
                pinned.endpoints = endpoints_of(to);
                ClusterName::own(port.number, subset, host)
            }
        };
        let index = self.clusters.len();
        let index = *self.names.entry(pinned.name.clone()).or_insert(index);
        if index == self.clusters.len() {
            self.clusters.push(pinned);
        }
        narrow(index)
    }
}
