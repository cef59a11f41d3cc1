//! `egressctl capture`: the firewall's rules that lead connections to `egressctl run --capture`.
//!
//! All rules are in a table, or in chains, of our own. Installing them again replaces them, and removing them touches
//! nothing else. They match only what programs of this machine send. If nobody listens on the port, the kernel refuses
//! redirected connections, so none goes around Envoy. But if another program takes the port, it gets them.

use std::collections::BTreeSet;
use std::path::Path;

use egress_policy::PortNumber;
use nix::unistd::User;

use super::args::{CaptureCommand, CaptureUp, Redirection};
use super::output::{Done, Output};
use egress_rules::Complaint;

mod firewall;
mod iptables;
mod listening;
mod nft;
mod redirect;

use iptables::Rules;
use listening::Listening;
use redirect::{Ip, Redirect, Who, listed};

/// Where cgroups of version 2 are, for nftables as for us.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The capability to change the firewall's rules, as a bit.
///
/// Source: linux `include/uapi/linux/capability.h`, `CAP_NET_ADMIN`.
const NET_ADMIN: u64 = 1 << 12;

/// Runs the command.
pub(super) fn main(command: &CaptureCommand) -> Done {
    match command {
        CaptureCommand::Up(up_args) => up(up_args),
        CaptureCommand::Down => down(),
        CaptureCommand::Print(args) => {
            let redirect = redirection(args)?;
            Ok(Output::lines(printed(&redirect, args.iptables)))
        }
    }
}

fn up(args: &CaptureUp) -> Done {
    let mut redirect = redirection(&args.redirection)?;
    let envoy = args.envoy_uid.as_deref();
    let envoy = envoy.map(|user| uid("--envoy-uid", user)).transpose()?;
    if let Some(envoy) = envoy {
        refuse_to_capture(&redirect, envoy)?;
    }
    needs_rights()?;
    if let Who::Cgroup(path) = &redirect.who {
        needs_cgroup(path)?;
    }
    let listening = listening::on(redirect.to);
    if listening.is_empty() && envoy.is_none() {
        return Err(Complaint::input(format!(
            "nothing listens on port {port} of 127.0.0.1 or ::1, so what is captured would be cut off\nhint: start `egressctl run --capture {port}` first; or name the user that will run it: `--envoy-uid USER`",
            port = redirect.to
        )).into());
    }
    needs_one_owner(&listening, envoy, redirect.to)?;
    redirect.unheard = unheard(&listening);
    for socket in &listening {
        refuse_to_capture(&redirect, socket.uid)?;
        if let Who::Cgroup(captured) = &redirect.who {
            let Some(own) = listening::cgroup(socket) else {
                return Err(Complaint::input(format!(
                    "no process can be seen that listens on port {}, so its cgroup is not known, and it must not be captured itself\nhint: run this where its process is, or capture by `--uid`",
                    redirect.to
                )).into());
            };
            if Path::new(&own).starts_with(captured) {
                return Err(Complaint::input(format!(
                    "what listens on port {} is in the cgroup /{own}, and would be captured itself: its connections would go round in circles\nhint: run Envoy outside of the cgroup {captured}",
                    redirect.to
                )).into());
            }
        }
    }
    let mut notes = Vec::new();
    if let Some(ip) = redirect.unheard {
        let at = match ip {
            Ip::V4 => "127.0.0.1",
            Ip::V6 => "::1",
        };
        notes.push(format!(
            "note: nothing listens on {at} port {}, so connections over IPv{} are rejected",
            redirect.to,
            if ip == Ip::V4 { 4 } else { 6 }
        ));
    }
    firewall::install(&redirect, args.redirection.iptables)
        .map_err(|why| Complaint::us(why).behind(notes.clone()))?;
    let (what, to) = (redirect.what(), redirect.to);
    let output = Output::lines(format!("captured by port {to}: {what}\n"));
    Ok(output.with_notes(notes))
}

/// Writes what `up` would apply, for people to read and run.
fn printed(redirect: &Redirect, iptables: bool) -> String {
    let envoy = match &redirect.who {
        Who::Users(users) => format!("as another user than uid {}", listed(users)),
        Who::Cgroup(path) => format!("outside of the cgroup {path}"),
    };
    let head = format!(
        "# Redirects to port {}: {}.\n# Envoy itself must not be captured: run it {envoy}.\n",
        redirect.to,
        redirect.what()
    );
    if !iptables {
        return head + &nft::ruleset(redirect);
    }
    let script = [Ip::V4, Ip::V6].map(|ip| {
        format!(
            "{} --noflush --wait <<'RULES'\n{}RULES\n",
            ip.restore(),
            Rules::default().turned_into(&Rules::of(redirect, ip))
        )
    });
    let once = "# For a machine without these rules: run again, it would lead to the chain twice. `capture up --iptables` replaces them.\n";
    format!("#!/bin/sh -e\n{head}{once}{}", script.concat())
}

fn down() -> Done {
    needs_rights()?;
    let removed = firewall::remove().map_err(Complaint::us)?;
    Ok(Output::lines(match removed {
        true => "nothing is captured any more\n",
        false => "nothing was captured\n",
    }))
}

/// Finds the version of IP that is not listened for, where only one is. The wildcard address of IPv6 counts for IPv6
/// alone, because it cannot be seen whether it is more.
fn unheard(listening: &[Listening]) -> Option<Ip> {
    let hears = |ip| {
        let is_v4 = ip == Ip::V4;
        listening.iter().any(|one| one.address.is_ipv4() == is_v4)
    };
    match (hears(Ip::V4), hears(Ip::V6)) {
        (true, false) => Some(Ip::V6),
        (false, true) => Some(Ip::V4),
        _ => None,
    }
}

/// Refuses a port that somebody else has a part of: what is captured would come to them, readable.
fn needs_one_owner(
    listening: &[Listening],
    envoy: Option<u32>,
    port: PortNumber,
) -> Result<(), Complaint> {
    let owners: BTreeSet<u32> = listening.iter().map(|socket| socket.uid).collect();
    let is_good = match envoy {
        Some(envoy) => owners.iter().all(|owner| *owner == envoy),
        None => owners.len() <= 1,
    };
    if is_good {
        return Ok(());
    }
    let sockets = listening
        .iter()
        .map(|socket| format!("{} of uid {}", socket.address, socket.uid));
    let sockets: Vec<String> = sockets.collect();
    let wanted = envoy.map_or_else(
        || "one user".to_owned(),
        |uid| format!("uid {uid} of `--envoy-uid`"),
    );
    Err(Complaint::input(format!(
        "not all that listens on port {port} is of {wanted}: {}; the others would get what is captured\nhint: stop them; a port below 1024 is root's to give",
        sockets.join(", ")
    )))
}

/// Returns what is meant; users by name become numbers.
fn redirection(args: &Redirection) -> Result<Redirect, Complaint> {
    let who = match &args.cgroup {
        Some(path) => Who::Cgroup(cgroup(path)?),
        None => {
            let users: Result<_, _> = args.users.iter().map(|user| uid("--uid", user)).collect();
            Who::Users(users?)
        }
    };
    Ok(Redirect {
        to: args.to,
        who,
        ports: args.ports.iter().copied().collect(),
        excluded: args.excluded.clone(),
        unheard: None,
    })
}

fn uid(flag: &str, user: &str) -> Result<u32, Complaint> {
    match user.parse() {
        // To the kernel that is nobody.
        Ok(u32::MAX) => {
            return Err(Complaint::input(format!(
                "`{flag} {user}`: no user has this number"
            )));
        }
        Ok(uid) => return Ok(uid),
        Err(_) => {}
    }
    match User::from_name(user) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(Complaint::input(format!(
            "`{flag} {user}`: this machine has no such user\nhint: a number does as well, for example 1001"
        ))),
        Err(error) => Err(Complaint::us(format!(
            "cannot look up the user {user}: {error}"
        ))),
    }
}

/// Reads the path of a cgroup, from the file system's root or from that of the cgroups.
fn cgroup(path: &str) -> Result<String, Complaint> {
    let inner = path.strip_prefix(CGROUPS).unwrap_or(path).trim_matches('/');
    let is_plain = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.@:".contains(c);
        !["", ".", ".."].contains(&part) && part.chars().all(known)
    };
    if inner.split('/').all(is_plain) {
        return Ok(inner.to_owned());
    }
    if inner.contains('\\') {
        return Err(Complaint::input(format!(
            "`--cgroup {path}`: names with `\\` are not supported\nhint: capture by user, with `--uid`"
        )));
    }
    Err(Complaint::input(format!(
        "`--cgroup {path}` is no path of a cgroup below {CGROUPS}\nhint: `/proc/PID/cgroup` has that of a process, behind `0::`; for example `--cgroup system.slice/app.service`"
    )))
}

fn needs_cgroup(path: &str) -> Result<(), Complaint> {
    let root = Path::new(CGROUPS);
    if !root.join("cgroup.controllers").exists() {
        return Err(Complaint::input(format!(
            "there are no cgroups of version 2 at {CGROUPS}\nhint: capture by user, with `--uid`"
        )));
    }
    match root.join(path).is_dir() {
        true => Ok(()),
        false => Err(Complaint::input(format!(
            "there is no cgroup {path} below {CGROUPS}\nhint: start what is to be captured first, or capture by user, with `--uid`"
        ))),
    }
}

fn refuse_to_capture(redirect: &Redirect, envoy: u32) -> Result<(), Complaint> {
    match &redirect.who {
        Who::Users(users) if users.contains(&envoy) => Err(Complaint::input(format!(
            "uid {envoy} is the user that Envoy runs as, and would be captured itself: its connections would go round in circles\nhint: run `egressctl run --capture {}` as another user than the application",
            redirect.to
        ))),
        _ => Ok(()),
    }
}

fn needs_rights() -> Result<(), Complaint> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    match effective {
        Some(bits) if bits & NET_ADMIN == 0 => Err(Complaint::us(firewall::NO_RIGHTS)),
        _ => Ok(()),
    }
}
