//! What the kernel is told so that connections of other programs come to Envoy: text for nftables or iptables.
//!
//! All of it is in a table, or in chains, of our own: putting it there again replaces it, and taking it away touches
//! nothing else. Only what programs of this machine send is looked at. What is redirected and finds nobody listening
//! is refused by the kernel, and never goes around Envoy; but whoever may take the port then gets it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use egress_policy::{Address, PortNumber};

pub(crate) mod iptables;
pub(crate) mod listening;

use iptables::{Ip, Rules};

/// The table of nftables that is ours.
pub(crate) const TABLE: &str = "egressctl";

/// What is redirected where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Redirect {
    /// The port that Envoy listens on.
    pub(crate) to: PortNumber,
    /// Whose connections.
    pub(crate) who: Who,
    /// Only those to these ports; all, where there is none.
    pub(crate) ports: BTreeSet<PortNumber>,
    /// None of those to these addresses.
    pub(crate) excluded: Vec<Address>,
    /// The version of IP that nobody listens for. Its connections are rejected: redirected, they would come to
    /// whoever takes the port.
    pub(crate) unheard: Option<Ip>,
}

/// Whose connections are redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// Those of users.
    Users(BTreeSet<u32>),
    /// Those of a cgroup of version 2 and of all below it; its path from the root.
    Cgroup(String),
}

impl Redirect {
    /// Says what is captured, for people.
    pub(crate) fn what(&self) -> String {
        let who = match &self.who {
            Who::Users(users) => format!("uid {}", listed(users)),
            Who::Cgroup(path) => format!("cgroup {path}"),
        };
        match self.ports.is_empty() {
            true => format!("TCP of {who}"),
            false => format!("TCP of {who} to port {}", listed(&self.ports)),
        }
    }

    /// Says whether there is somebody to redirect connections of this version of IP to.
    fn hears(&self, ip: Ip) -> bool {
        self.unheard != Some(ip)
    }

    /// Writes what `nft -f` takes. That the table is made before it is deleted is how nftables deletes what may not
    /// be there.
    pub(crate) fn nft(&self) -> String {
        let mut text = format!(
            "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n\tchain output {{\n\t\ttype nat hook output priority -100; policy accept;\n"
        );
        text += "\t\tip daddr 127.0.0.0/8 return\n\t\tip6 daddr ::1 return\n";
        for range in &self.excluded {
            let family = if range.ip.is_ipv4() { "ip" } else { "ip6" };
            let _ = writeln!(text, "\t\t{family} daddr {range} return");
        }
        let who = match &self.who {
            Who::Users(users) => format!("meta skuid {{ {} }}", listed(users)),
            Who::Cgroup(path) => {
                format!(
                    "socket cgroupv2 level {} \"{path}\"",
                    path.split('/').count()
                )
            }
        };
        let ports = match self.ports.is_empty() {
            true => "meta l4proto tcp".to_owned(),
            false => format!("tcp dport {{ {} }}", listed(&self.ports)),
        };
        let heard = match self.unheard {
            None => "",
            Some(Ip::V6) => "meta nfproto ipv4 ",
            Some(Ip::V4) => "meta nfproto ipv6 ",
        };
        let _ = writeln!(text, "\t\t{heard}{who} {ports} redirect to :{}", self.to);
        if self.unheard.is_some() {
            let _ = writeln!(text, "\t\t{who} {ports} reject with tcp reset");
        }
        text + "\t}\n}\n"
    }

    /// Writes what `up` would apply, for people to read and run.
    pub(crate) fn printed(&self, iptables: bool) -> String {
        let envoy = match &self.who {
            Who::Users(users) => format!("as another user than uid {}", listed(users)),
            Who::Cgroup(path) => format!("outside of the cgroup {path}"),
        };
        let head = format!(
            "# Redirects to port {}: {}.\n# Envoy itself must not be captured: run it {envoy}.\n",
            self.to,
            self.what()
        );
        if !iptables {
            return head + &self.nft();
        }
        let script = [Ip::V4, Ip::V6].map(|ip| {
            format!(
                "{} --noflush --wait <<'RULES'\n{}RULES\n",
                ip.restore(),
                Rules::default().turned_into(&Rules::of(self, ip))
            )
        });
        let once = "# For a machine without these rules: run again, it would lead to the chain twice. `capture up --iptables` replaces them.\n";
        format!("#!/bin/sh -e\n{head}{once}{}", script.concat())
    }
}

fn listed<T: ToString>(all: &BTreeSet<T>) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join(", ")
}
