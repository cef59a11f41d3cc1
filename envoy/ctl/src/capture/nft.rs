//! What nftables is told.

use std::fmt::Write as _;

use super::redirect::{Ip, Redirect, Who, listed};

/// The table of nftables that is ours.
pub(super) const TABLE: &str = "egressctl";

/// Writes what `nft -f` takes. That the table is made before it is deleted is how nftables deletes what may not
/// be there.
pub(super) fn ruleset(redirect: &Redirect) -> String {
    let mut text = format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n\tchain output {{\n\t\ttype nat hook output priority -100; policy accept;\n"
    );
    text += "\t\tip daddr 127.0.0.0/8 return\n\t\tip6 daddr ::1 return\n";
    for range in &redirect.excluded {
        let family = if range.ip.is_ipv4() { "ip" } else { "ip6" };
        let _ = writeln!(text, "\t\t{family} daddr {range} return");
    }
    let who = match &redirect.who {
        Who::Users(users) => format!("meta skuid {{ {} }}", listed(users)),
        Who::Cgroup(path) => {
            format!(
                "socket cgroupv2 level {} \"{path}\"",
                path.split('/').count()
            )
        }
    };
    let ports = match redirect.ports.is_empty() {
        true => "meta l4proto tcp".to_owned(),
        false => format!("tcp dport {{ {} }}", listed(&redirect.ports)),
    };
    let heard = match redirect.unheard {
        None => "",
        Some(Ip::V6) => "meta nfproto ipv4 ",
        Some(Ip::V4) => "meta nfproto ipv6 ",
    };
    let _ = writeln!(
        text,
        "\t\t{heard}{who} {ports} redirect to :{}",
        redirect.to
    );
    if redirect.unheard.is_some() {
        let _ = writeln!(text, "\t\t{who} {ports} reject with tcp reset");
    }
    text + "\t}\n}\n"
}
