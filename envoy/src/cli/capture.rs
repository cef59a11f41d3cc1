//! `egressctl capture`: the firewall's rules that lead connections to `egressctl run --capture`.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::unistd::User;

use super::args::{CaptureCommand, CaptureUp, Redirection};
use super::{ExitStatus, fail, print, refuse, tell};
use crate::capture::{CHAIN, Ip, LINK, Redirect, TABLE, Who, listening, without_chain};
use crate::fs;

/// Where cgroups of version 2 are, for nftables as for us.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The capability to change the firewall's rules, as a bit.
///
/// Source: linux `include/uapi/linux/capability.h`, `CAP_NET_ADMIN`.
const NET_ADMIN: u64 = 1 << 12;

/// Runs the command.
pub(super) fn main(command: &CaptureCommand) -> ExitStatus {
    let done = match command {
        CaptureCommand::Up(up_args) => up(up_args),
        CaptureCommand::Down(down_args) => down(down_args.iptables),
        CaptureCommand::Print(args) => {
            redirect(args).map(|redirect| print(&redirect.printed(args.iptables)))
        }
    };
    done.unwrap_or_else(|status| status)
}

type Done = Result<ExitStatus, ExitStatus>;

fn up(args: &CaptureUp) -> Done {
    let redirect = redirect(&args.redirection)?;
    if let Some(user) = &args.envoy_uid {
        refuse_to_capture(&redirect, uid(user)?)?;
    }
    needs_rights()?;
    if let Who::Cgroup(path) = &redirect.who {
        needs_cgroup(path)?;
    }
    let listening = listening::on(redirect.to);
    if listening.is_empty() && args.envoy_uid.is_none() {
        return Err(refuse(&format!(
            "nothing listens on port {port} of 127.0.0.1 or ::1, so what is captured would be cut off\nhint: start `egressctl run --capture {port}` first; or name the user that will run it: `--envoy-uid USER`",
            port = redirect.to
        )));
    }
    for socket in &listening {
        refuse_to_capture(&redirect, socket.uid)?;
        if let Who::Cgroup(captured) = &redirect.who {
            let Some(own) = listening::cgroup(socket) else {
                return Err(refuse(&format!(
                    "no process can be seen that listens on port {}, so its cgroup is not known, and it must not be captured itself\nhint: run this where its process is, or capture by `--uid`",
                    redirect.to
                )));
            };
            if Path::new(&own).starts_with(captured) {
                return Err(refuse(&format!(
                    "what listens on port {} is in the cgroup /{own}, and would be captured itself: its connections would go round in circles\nhint: run Envoy outside of the cgroup {captured}",
                    redirect.to
                )));
            }
        }
    }
    match args.redirection.iptables {
        true => up_with_iptables(&redirect)?,
        false => {
            run("nft", "nftables", &["-f", "-"], &redirect.nft())?;
        }
    }
    let hears = |wanted: fn(&IpAddr) -> bool| listening.iter().any(|one| wanted(&one.address));
    if has_ipv6() && hears(IpAddr::is_ipv4) && !hears(IpAddr::is_ipv6) {
        tell(&format!(
            "note: nothing listens on ::1 port {}, so connections over IPv6 are refused",
            redirect.to
        ));
    }
    let (what, to) = (redirect.what(), redirect.to);
    Ok(print(&format!("captured by port {to}: {what}\n")))
}

fn down(iptables: bool) -> Done {
    needs_rights()?;
    let removed = match iptables {
        true => {
            let mut removed = false;
            for ip in versions() {
                if has_chain(ip)? {
                    restore(ip, &without_chain(is_linked(ip)?))?;
                    removed = true;
                }
            }
            removed
        }
        false => {
            let output = output("nft", "nftables", &["delete", "table", "inet", TABLE], "")?;
            let is_gone = String::from_utf8_lossy(&output.stderr).contains("No such file");
            if !is_gone {
                succeeded("nft", &output)?;
            }
            !is_gone
        }
    };
    Ok(print(match removed {
        true => "nothing is captured any more\n",
        false => "nothing was captured\n",
    }))
}

/// Says what is meant; users by name become numbers.
fn redirect(args: &Redirection) -> Result<Redirect, ExitStatus> {
    let who = match &args.cgroup {
        Some(path) => Who::Cgroup(cgroup(path)?),
        None => {
            let users: Result<_, _> = args.users.iter().map(|user| uid(user)).collect();
            Who::Users(users?)
        }
    };
    Ok(Redirect {
        to: args.to,
        who,
        ports: args.ports.iter().copied().collect(),
        excluded: args.excluded.clone(),
    })
}

fn uid(user: &str) -> Result<u32, ExitStatus> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    match User::from_name(user) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(refuse(&format!(
            "`--uid {user}`: this machine has no such user\nhint: a number does as well, for example 1001"
        ))),
        Err(error) => Err(fail(&format!("cannot look up the user {user}: {error}"))),
    }
}

/// Reads the path of a cgroup, from the file system's root or from that of the cgroups.
fn cgroup(path: &str) -> Result<String, ExitStatus> {
    let inner = path.strip_prefix(CGROUPS).unwrap_or(path).trim_matches('/');
    let is_plain = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.@:".contains(c);
        !["", ".", ".."].contains(&part) && part.chars().all(known)
    };
    if inner.split('/').all(is_plain) {
        return Ok(inner.to_owned());
    }
    Err(refuse(&format!(
        "`--cgroup {path}` is no path of a cgroup below {CGROUPS}\nhint: `/proc/PID/cgroup` has that of a process, behind `0::`; for example `--cgroup system.slice/app.service`"
    )))
}

fn needs_cgroup(path: &str) -> Result<(), ExitStatus> {
    let root = Path::new(CGROUPS);
    if !root.join("cgroup.controllers").exists() {
        return Err(refuse(&format!(
            "there are no cgroups of version 2 at {CGROUPS}\nhint: capture by user, with `--uid`"
        )));
    }
    match root.join(path).is_dir() {
        true => Ok(()),
        false => Err(refuse(&format!(
            "there is no cgroup {path} below {CGROUPS}\nhint: start what is to be captured first, or capture by user, with `--uid`"
        ))),
    }
}

fn refuse_to_capture(redirect: &Redirect, envoy: u32) -> Result<(), ExitStatus> {
    match &redirect.who {
        Who::Users(users) if users.contains(&envoy) => Err(refuse(&format!(
            "uid {envoy} is the user that Envoy runs as, and would be captured itself: its connections would go round in circles\nhint: run `egressctl run --capture {}` as another user than the application",
            redirect.to
        ))),
        _ => Ok(()),
    }
}

fn needs_rights() -> Result<(), ExitStatus> {
    let status = fs::read_text(Path::new("/proc/self/status")).unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    match effective {
        Some(bits) if bits & NET_ADMIN == 0 => Err(no_rights()),
        _ => Ok(()),
    }
}

fn no_rights() -> ExitStatus {
    fail(
        "the firewall's rules are changed by root, or with CAP_NET_ADMIN\nhint: use sudo; `egressctl capture print` needs no rights",
    )
}

fn up_with_iptables(redirect: &Redirect) -> Result<(), ExitStatus> {
    let mut before = Vec::new();
    for ip in versions() {
        let had = has_chain(ip)?;
        if let Err(status) = restore(ip, &redirect.iptables(ip, is_linked(ip)?)) {
            // Half of it would let the other half around Envoy unnoticed.
            for ip in before {
                restore(ip, &without_chain(is_linked(ip)?))?;
            }
            return Err(status);
        }
        if !had {
            before.push(ip);
        }
    }
    Ok(())
}

/// The versions of IP that this machine has.
fn versions() -> impl Iterator<Item = Ip> {
    [Ip::V4, Ip::V6]
        .into_iter()
        .filter(|ip| *ip == Ip::V4 || has_ipv6())
}

fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

fn has_chain(ip: Ip) -> Result<bool, ExitStatus> {
    let asked = ["--wait", "-t", "nat", "-S", CHAIN];
    Ok(output(ip.iptables(), "iptables", &asked, "")?
        .status
        .success())
}

fn is_linked(ip: Ip) -> Result<bool, ExitStatus> {
    let mut asked = vec!["--wait", "-t", "nat", "-C"];
    asked.extend(LINK);
    Ok(output(ip.iptables(), "iptables", &asked, "")?
        .status
        .success())
}

fn restore(ip: Ip, rules: &str) -> Result<(), ExitStatus> {
    run(ip.restore(), "iptables", &["--noflush", "--wait"], rules)
}

fn run(program: &str, package: &str, args: &[&str], input: &str) -> Result<(), ExitStatus> {
    succeeded(program, &output(program, package, args, input)?)
}

fn succeeded(program: &str, output: &Output) -> Result<(), ExitStatus> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Operation not permitted") || said.contains("Permission denied") {
        return Err(no_rights());
    }
    let first = said.lines().find(|line| !line.trim().is_empty());
    let first = first.map_or_else(|| output.status.to_string(), str::to_owned);
    let has_no = ["No such file", "not supported", "does not exist"];
    let hint = match has_no.iter().any(|words| said.contains(words)) {
        true => {
            "\nhint: this kernel may have no NAT for it, or its module is not loaded: nft_redir and nft_chain_nat, or xt_REDIRECT and xt_owner"
        }
        false => "",
    };
    Err(fail(&format!(
        "`{program}` refused the rules, and nothing was changed: {first}{hint}"
    )))
}

/// Runs a program of the firewall with this input.
fn output(program: &str, package: &str, args: &[&str], input: &str) -> Result<Output, ExitStatus> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => fail(&format!(
            "`{program}` is not installed here\nhint: apt-get install {package}"
        )),
        _ => fail(&format!("cannot run `{program}`: {error}")),
    };
    // Only root's PATH has the folder in many places, and what sudo leaves of it.
    let beside = Path::new("/usr/sbin").join(program);
    let found = if beside.exists() {
        beside
    } else {
        program.into()
    };
    let mut child = Command::new(found)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(failed)
}
