//! Which connections are redirected.

use std::collections::BTreeSet;

use egress_policy::{Address, PortNumber};

/// What is redirected where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Redirect {
    /// The port that Envoy listens on.
    pub(super) to: PortNumber,
    /// Whose connections.
    pub(super) who: Who,
    /// Only those to these ports; all, where there is none.
    pub(super) ports: BTreeSet<PortNumber>,
    /// None of those to these addresses.
    pub(super) excluded: Vec<Address>,
    /// The version of IP that nobody listens for. Its connections are rejected: redirected, they would come to
    /// whoever takes the port.
    pub(super) unheard: Option<Ip>,
}

/// Whose connections are redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// Those of users.
    Users(BTreeSet<u32>),
    /// Those of a cgroup of version 2 and of all below it; its path from the root.
    Cgroup(String),
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ip {
    /// 4.
    V4,
    /// 6.
    V6,
}

impl Redirect {
    /// Returns what is captured, for people.
    pub(super) fn what(&self) -> String {
        let who = match &self.who {
            Who::Users(users) => format!("uid {}", listed(users)),
            Who::Cgroup(path) => format!("cgroup {path}"),
        };
        match self.ports.is_empty() {
            true => format!("TCP of {who}"),
            false => format!("TCP of {who} to port {}", listed(&self.ports)),
        }
    }

    /// Whether there is somebody to redirect connections of this version of IP to.
    pub(super) fn hears(&self, ip: Ip) -> bool {
        self.unheard != Some(ip)
    }
}

/// Writes all of them, for people and for nftables.
pub(super) fn listed<T: ToString>(all: &BTreeSet<T>) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join(", ")
}
