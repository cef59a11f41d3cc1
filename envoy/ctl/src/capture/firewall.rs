//! The firewall's programs: what they are asked, and what it means when they refuse.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::iptables::Rules;
use super::nft::{self, TABLE};
use super::redirect::{Ip, Redirect};

/// Who may change the firewall's rules.
pub(super) const NO_RIGHTS: &str = "the firewall's rules are changed by root, or with CAP_NET_ADMIN\nhint: use sudo; `egressctl capture print` needs no rights";

/// Installs the rules in the place of those that are there, in either form.
///
/// # Errors
/// With what went wrong, and what became of the previous rules.
pub(super) fn install(redirect: &Redirect, iptables: bool) -> Result<(), String> {
    // What replaces the others comes first, so that nothing goes around Envoy between the two.
    let others = match iptables {
        true => {
            install_with_iptables(redirect)?;
            remove_with_nft()
        }
        false => {
            run("nft", &["-f", "-"], &nft::ruleset(redirect)).map_err(unchanged)?;
            remove_with_iptables()
        }
    };
    let (form, other) = match iptables {
        true => ("iptables", "nftables"),
        false => ("nftables", "iptables"),
    };
    others.map(|_| ()).map_err(|why| {
        format!("the rules of {form} are installed, and the previous ones of {other} are still there too: {why}")
    })
}

/// Takes away the rules of both forms; returns whether there were any.
///
/// # Errors
/// With all that went wrong; what could be removed was removed.
pub(super) fn remove() -> Result<bool, String> {
    let forms = ["nft", Ip::V4.save()];
    if forms.iter().all(|program| find(program).is_none()) {
        return Err(not_installed("nft"));
    }
    match (remove_with_nft(), remove_with_iptables()) {
        (Ok(one), Ok(other)) => Ok(one || other),
        (one, other) => {
            let reasons: Vec<String> = [one, other].into_iter().filter_map(Result::err).collect();
            Err(format!(
                "not everything could be removed: {}",
                reasons.join("; ")
            ))
        }
    }
}

fn remove_with_nft() -> Result<bool, String> {
    if find("nft").is_none() {
        return Ok(false);
    }
    let output = output("nft", &["delete", "table", "inet", TABLE], "")?;
    if String::from_utf8_lossy(&output.stderr).contains("No such file") {
        return Ok(false);
    }
    succeeded("nft", &output).map(|()| true)
}

fn remove_with_iptables() -> Result<bool, String> {
    let (mut removed, mut reasons) = (false, Vec::new());
    for ip in versions().filter(|ip| find(ip.save()).is_some()) {
        let done = saved(ip).and_then(|now| {
            if now.is_empty() {
                return Ok(false);
            }
            restore(ip, &[], &now.turned_into(&Rules::default())).map(|()| true)
        });
        match done {
            Ok(done) => removed |= done,
            Err(why) => reasons.push(why),
        }
    }
    match reasons.is_empty() {
        true => Ok(removed),
        false => Err(reasons.join("; ")),
    }
}

/// Each table of each version of IP is changed apart, so what was changed is changed back when another refuses.
fn install_with_iptables(redirect: &Redirect) -> Result<(), String> {
    let mut changes = Vec::new();
    for ip in versions() {
        let before = saved(ip).map_err(unchanged)?;
        let rules = before.turned_into(&Rules::of(redirect, ip));
        restore(ip, &["--test"], &rules).map_err(unchanged)?;
        changes.push((ip, before, rules));
    }
    for (at, (ip, _, rules)) in changes.iter().enumerate() {
        let Err(why) = restore(*ip, &[], rules) else {
            continue;
        };
        let undone = changes.iter().take(at + 1).map(|(ip, before, _)| {
            let now = saved(*ip)?;
            match now == *before {
                true => Ok(()),
                false => restore(*ip, &[], &now.turned_into(before)),
            }
        });
        let failed: Vec<String> = undone.filter_map(Result::err).collect();
        return Err(match failed.is_empty() {
            true => unchanged(why),
            false => format!(
                "{why}\nand the previous rules could not all be brought back: {}\nhint: `egressctl capture down` takes away what is there; until then some connections may not be captured",
                failed.join("; ")
            ),
        });
    }
    Ok(())
}

fn unchanged(why: String) -> String {
    match why.split_once('\n') {
        Some((why, hint)) => format!("{why}; the previous rules stay\n{hint}"),
        None => format!("{why}; the previous rules stay"),
    }
}

/// The versions of IP that this machine has.
fn versions() -> impl Iterator<Item = Ip> {
    let has_ipv6 = Path::new("/proc/net/if_inet6").exists();
    [Ip::V4, Ip::V6]
        .into_iter()
        .filter(move |ip| *ip == Ip::V4 || has_ipv6)
}

/// Asks for our rules as they are.
fn saved(ip: Ip) -> Result<Rules, String> {
    let output = output(ip.save(), &[], "")?;
    succeeded(ip.save(), &output)?;
    Ok(Rules::read(&String::from_utf8_lossy(&output.stdout)))
}

fn restore(ip: Ip, more: &[&str], rules: &str) -> Result<(), String> {
    let mut args = vec!["--noflush", "--wait"];
    args.extend(more);
    run(ip.restore(), &args, rules)
}

fn run(program: &str, args: &[&str], input: &str) -> Result<(), String> {
    succeeded(program, &output(program, args, input)?)
}

fn succeeded(program: &str, output: &Output) -> Result<(), String> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Operation not permitted") || said.contains("Permission denied") {
        return Err(NO_RIGHTS.to_owned());
    }
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let first: Vec<&str> = lines.take(2).collect();
    let first = match first.is_empty() {
        true => output.status.to_string(),
        false => first.join(" "),
    };
    let has_no = ["No such file", "not supported", "does not exist"];
    let hint = match has_no.iter().any(|words| said.contains(words)) {
        true => {
            "\nhint: this kernel may have no NAT for it, or its module is not loaded: nft_redir and nft_chain_nat, or xt_REDIRECT and xt_owner"
        }
        false => "",
    };
    Err(format!("`{program}` refused: {first}{hint}"))
}

/// Finds a program. Where Debian has them is not on everybody's PATH.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // What is run as root is never what lies in the current folder.
        .filter(|folder| folder.is_absolute())
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn not_installed(program: &str) -> String {
    let package = if program == "nft" {
        "nftables"
    } else {
        "iptables"
    };
    format!("`{program}` is not installed here\nhint: apt-get install {package}")
}

/// Runs a program of the firewall with this input.
fn output(program: &str, args: &[&str], input: &str) -> Result<Output, String> {
    let found = find(program).ok_or_else(|| not_installed(program))?;
    let failed = |error: io::Error| format!("cannot run `{program}`: {error}");
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
