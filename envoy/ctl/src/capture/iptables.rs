//! What iptables is told: which rules are ours, what they should be, and how to get from one to the other.

use std::fmt::Write as _;

use egress_policy::PortNumber;

use super::redirect::{Ip, Redirect, Who};

/// The chain that is ours, in each table that we need.
pub(super) const CHAIN: &str = "EGRESSCTL";

/// How iptables comes to our chain: before all other rules.
const LINK: (&str, &str) = ("OUTPUT", "-p tcp -j EGRESSCTL");

/// The tables that our chain can be in: where connections are redirected, and where they are rejected.
const TABLES: [&str; 2] = ["nat", "filter"];

/// How many ports one rule of iptables can name.
///
/// Source: linux `include/uapi/linux/netfilter/xt_multiport.h`, `XT_MULTI_PORTS`.
const MULTIPORT: usize = 15;

/// The programs of a version of IP.
impl Ip {
    /// Returns the program that prints the rules.
    pub(super) fn save(self) -> &'static str {
        match self {
            Ip::V4 => "iptables-save",
            Ip::V6 => "ip6tables-save",
        }
    }

    /// Returns the program that changes rules.
    pub(super) fn restore(self) -> &'static str {
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
}

/// What is ours among the rules of one version of IP, table by table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules([Table; 2]);

/// What is ours in one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Table {
    /// What our chain consists of, if it is there.
    chain: Option<Vec<String>>,
    /// What leads to it.
    links: Vec<Link>,
}

/// A rule of another chain that leads to ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    chain: String,
    /// Its place there, from 1.
    at: usize,
    rule: String,
}

impl Rules {
    /// Finds ours in what `iptables-save` prints.
    pub(super) fn read(saved: &str) -> Self {
        Rules(TABLES.map(|name| {
            let head = format!("*{name}");
            let lines = saved.lines().skip_while(|line| *line != head);
            Table::read(lines.take_while(|line| *line != "COMMIT"))
        }))
    }

    /// Returns those that do what is asked for.
    pub(super) fn of(redirect: &Redirect, ip: Ip) -> Self {
        let place = usize::from(!redirect.hears(ip));
        let mut rules = Rules::default();
        if let Some(table) = rules.0.get_mut(place) {
            *table = Table {
                chain: Some(chain(redirect, ip)),
                links: vec![Link {
                    chain: LINK.0.to_owned(),
                    at: 1,
                    rule: LINK.1.to_owned(),
                }],
            };
        }
        rules
    }

    /// Whether nothing is ours.
    pub(super) fn is_empty(&self) -> bool {
        *self == Rules::default()
    }

    /// Writes what `iptables-restore --noflush` takes so that these become the others. Each table is changed as a whole
    /// or not at all; one that has nothing of ours and gets nothing is left out.
    pub(super) fn turned_into(&self, wanted: &Rules) -> String {
        let all = TABLES.iter().zip(self.0.iter().zip(&wanted.0));
        all.map(|(name, (now, wanted))| now.turned_into(name, wanted))
            .collect()
    }
}

impl Table {
    fn read<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut table = Table::default();
        let (mut last, mut at) = ("", 0);
        let declared = format!(":{CHAIN} ");
        for line in lines {
            if line.starts_with(&declared) {
                table.chain.get_or_insert_default();
            }
            let Some((chain, rule)) = line
                .strip_prefix("-A ")
                .and_then(|rule| rule.split_once(' '))
            else {
                continue;
            };
            at = if chain == last { at + 1 } else { 1 };
            last = chain;
            if chain == CHAIN {
                table.chain.get_or_insert_default().push(rule.to_owned());
            } else if leads_to_ours(rule) {
                table.links.push(Link {
                    chain: chain.to_owned(),
                    at,
                    rule: rule.to_owned(),
                });
            }
        }
        table
    }

    fn turned_into(&self, name: &str, wanted: &Table) -> String {
        if [self, wanted]
            .iter()
            .all(|table| **table == Table::default())
        {
            return String::new();
        }
        let mut text = format!("*{name}\n");
        if wanted.chain.is_some() {
            // Made, or emptied.
            let _ = writeln!(text, ":{CHAIN} - [0:0]");
        }
        for link in &self.links {
            let _ = writeln!(text, "-D {} {}", link.chain, link.rule);
        }
        match &wanted.chain {
            Some(rules) => {
                for rule in rules {
                    let _ = writeln!(text, "-A {CHAIN} {rule}");
                }
            }
            None => {
                let _ = writeln!(text, "-F {CHAIN}\n-X {CHAIN}");
            }
        }
        for link in &wanted.links {
            let _ = writeln!(text, "-I {} {} {}", link.chain, link.at, link.rule);
        }
        text + "COMMIT\n"
    }
}

fn leads_to_ours(rule: &str) -> bool {
    let words: Vec<&str> = rule.split_whitespace().collect();
    words
        .windows(2)
        .any(|pair| matches!(pair, ["-j" | "-g", target] if *target == CHAIN))
}

/// What our chain consists of.
fn chain(redirect: &Redirect, ip: Ip) -> Vec<String> {
    let mut rules = vec![format!("-d {} -j RETURN", ip.loopback())];
    let excluded = redirect.excluded.iter();
    rules.extend(
        excluded
            .filter(|range| range.ip.is_ipv4() == (ip == Ip::V4))
            .map(|range| format!("-d {range} -j RETURN")),
    );
    let owners: Vec<String> = match &redirect.who {
        Who::Users(users) => users
            .iter()
            .map(|uid| format!("-m owner --uid-owner {uid}"))
            .collect(),
        Who::Cgroup(path) => vec![format!("-m cgroup --path {path}")],
    };
    let ports: Vec<PortNumber> = redirect.ports.iter().copied().collect();
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
    let verdict = match redirect.hears(ip) {
        true => format!("-j REDIRECT --to-ports {}", redirect.to),
        // Those that are open already stay, as they do where connections are redirected.
        false => "--syn -j REJECT --reject-with tcp-reset".to_owned(),
    };
    for owner in &owners {
        for ports in &ports {
            rules.push(format!("-p tcp {owner}{ports} {verdict}"));
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "# Generated by iptables-save
*filter
:OUTPUT ACCEPT [0:0]
-A OUTPUT -d 192.0.2.9/32 -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:EGRESSCTL - [0:0]
-A PREROUTING -d 192.0.2.8/32 -j RETURN
-A OUTPUT -d 192.0.2.1/32 -j RETURN
-A OUTPUT -p tcp -j EGRESSCTL
-A OUTPUT -m comment --comment EGRESSCTL -j RETURN
-A OUTPUT -p tcp -j EGRESSCTL
-A EGRESSCTL -d 127.0.0.0/8 -j RETURN
COMMIT
";

    #[test]
    fn what_was_there_goes_whole_and_comes_back_where_it_was() {
        let before = Rules::read(SAVED);
        assert_eq!(
            before.turned_into(&Rules::default()),
            "*nat
-D OUTPUT -p tcp -j EGRESSCTL
-D OUTPUT -p tcp -j EGRESSCTL
-F EGRESSCTL
-X EGRESSCTL
COMMIT
"
        );
        assert_eq!(
            Rules::default().turned_into(&before),
            "*nat
:EGRESSCTL - [0:0]
-A EGRESSCTL -d 127.0.0.0/8 -j RETURN
-I OUTPUT 2 -p tcp -j EGRESSCTL
-I OUTPUT 4 -p tcp -j EGRESSCTL
COMMIT
"
        );
        assert_eq!(Rules::default().turned_into(&Rules::default()), "");
    }
}
