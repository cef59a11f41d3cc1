//! What the kernel is told so that connections of other programs come to Envoy: text for nftables or iptables.
//!
//! All of it is in a table, or in chains, of our own: putting it there again replaces it, and taking it away touches
//! nothing else. Each form is applied as a whole or not at all. Only what programs of this machine send is looked
//! at. What is redirected and finds nobody listening is refused by the kernel, and never goes around Envoy.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use egress_policy::{Address, PortNumber};

pub(crate) mod listening;

/// The table of nftables that is ours.
pub(crate) const TABLE: &str = "egressctl";

/// The chain of iptables that is ours, in its table `nat`.
pub(crate) const CHAIN: &str = "EGRESSCTL";

/// How iptables comes to our chain.
pub(crate) const LINK: [&str; 5] = ["OUTPUT", "-p", "tcp", "-j", CHAIN];

/// How many ports one rule of iptables can name.
///
/// Source: linux `include/uapi/linux/netfilter/xt_multiport.h`, `XT_MULTI_PORTS`.
const MULTIPORT: usize = 15;

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
}

/// Whose connections are redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// Those of users.
    Users(BTreeSet<u32>),
    /// Those of a cgroup of version 2 and of all below it; its path from the root.
    Cgroup(String),
}

/// A version of IP, as far as iptables has a program for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ip {
    /// 4.
    V4,
    /// 6.
    V6,
}

impl Ip {
    /// Returns the program that changes single rules.
    pub(crate) fn iptables(self) -> &'static str {
        match self {
            Ip::V4 => "iptables",
            Ip::V6 => "ip6tables",
        }
    }

    /// Returns the program that changes many rules as one.
    pub(crate) fn restore(self) -> &'static str {
        match self {
            Ip::V4 => "iptables-restore",
            Ip::V6 => "ip6tables-restore",
        }
    }

    fn loopback(self) -> &'static str {
        match self {
            Ip::V4 => "127.0.0.0/8",
            Ip::V6 => "::1/128",
        }
    }

    fn has(self, address: &Address) -> bool {
        address.ip.is_ipv4() == (self == Ip::V4)
    }
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

    /// Writes what `nft -f` takes. That the table is made before it is deleted is how nftables deletes what may not
    /// be there.
    pub(crate) fn nft(&self) -> String {
        let mut text = format!(
            "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n\tchain output {{\n\t\ttype nat hook output priority -100; policy accept;\n"
        );
        text += "\t\tip daddr 127.0.0.0/8 return\n\t\tip6 daddr ::1 return\n";
        for range in &self.excluded {
            let family = if Ip::V4.has(range) { "ip" } else { "ip6" };
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
        let _ = writeln!(text, "\t\t{who} {ports} redirect to :{}\n\t}}\n}}", self.to);
        text
    }

    /// Writes what `iptables-restore --noflush` takes, or `ip6tables-restore`. The rule that leads to our chain is not
    /// made anew, so it is left out where it `is_linked`.
    pub(crate) fn iptables(&self, ip: Ip, is_linked: bool) -> String {
        let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
        let _ = writeln!(text, "-A {CHAIN} -d {} -j RETURN", ip.loopback());
        for range in self.excluded.iter().filter(|range| ip.has(range)) {
            let _ = writeln!(text, "-A {CHAIN} -d {range} -j RETURN");
        }
        let owners: Vec<String> = match &self.who {
            Who::Users(users) => users
                .iter()
                .map(|uid| format!("-m owner --uid-owner {uid}"))
                .collect(),
            Who::Cgroup(path) => vec![format!("-m cgroup --path {path}")],
        };
        let ports: Vec<PortNumber> = self.ports.iter().copied().collect();
        let mut ports: Vec<String> = ports
            .chunks(MULTIPORT)
            .map(|ports| {
                let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                format!(" -m multiport --dports {}", ports.join(","))
            })
            .collect();
        if ports.is_empty() {
            ports.push(String::new());
        }
        for owner in owners {
            for ports in &ports {
                let _ = writeln!(
                    text,
                    "-A {CHAIN} -p tcp {owner}{ports} -j REDIRECT --to-ports {}",
                    self.to
                );
            }
        }
        if !is_linked {
            let [chain, rest @ ..] = LINK;
            let _ = writeln!(text, "-I {chain} 1 {}", rest.join(" "));
        }
        text + "COMMIT\n"
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
                self.iptables(ip, false)
            )
        });
        format!("#!/bin/sh -e\n{head}{}", script.concat())
    }
}

/// Writes what `iptables-restore --noflush` takes so that our chain goes.
pub(crate) fn without_chain(is_linked: bool) -> String {
    let unlink = match is_linked {
        true => format!("-D {}\n", LINK.join(" ")),
        false => String::new(),
    };
    format!("*nat\n{unlink}-F {CHAIN}\n-X {CHAIN}\nCOMMIT\n")
}

fn listed<T: ToString>(all: &BTreeSet<T>) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join(", ")
}
