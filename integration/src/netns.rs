//! A network of its own for a test: its own addresses, ports, firewall and names, and no way out.
//!
//! The test runs in a thread, and the thread and all that it starts are in the network. Nothing outside of it is
//! changed, and it goes away with the thread. There programs of two users meet: the proxy's, which is root, and the
//! application's, [`APPLICATION`]. A user namespace, which needs no root, would have one user only; so the tests that
//! use this need root.

use std::{fs, future::Future, net::IpAddr, path::Path, process::Command, thread};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// The user that stands for the application; it needs no name.
pub const APPLICATION: u32 = 4321;

/// Runs a test in a network that has these addresses, where `names` are in `/etc/hosts`.
///
/// # Errors
///
/// When this is not root, and when the test fails.
pub fn run<F: Future<Output = Result<()>>>(
    addresses: &[IpAddr],
    names: &[(&str, IpAddr)],
    test: impl FnOnce() -> F + Send,
) -> Result<()> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            leave(addresses, names)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(test())
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Mounts the cgroups of version 2 where programs look for them, for this thread and what it starts.
///
/// # Errors
///
/// When the kernel has none.
pub fn mount_cgroups() -> Result<()> {
    let (none, at) = (None::<&str>, "/sys/fs/cgroup");
    mount(none, at, Some("cgroup2"), MsFlags::empty(), none)
        .with_context(|| format!("cannot mount the cgroups of version 2 at {at}"))
}

/// A program that the application runs.
pub fn as_application(program: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("setpriv");
    let user = APPLICATION.to_string();
    command.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        program,
    ]);
    command.kill_on_drop(true);
    command
}

/// Leaves the network and the mounts of this machine.
fn leave(addresses: &[IpAddr], names: &[(&str, IpAddr)]) -> Result<()> {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS) {
        bail!(
            "cannot make a network for this test: {error}; it needs root, because a proxy and an application of two users meet in it"
        );
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let folder = tempfile::tempdir()?;
    let hosts = folder.path().join("hosts");
    let lines = names.iter().map(|(name, ip)| format!("{ip} {name}\n"));
    fs::write(&hosts, lines.collect::<String>())?;
    mount(Some(&hosts), "/etc/hosts", none, MsFlags::MS_BIND, none)?;
    ip(&["link", "set", "lo", "up"])?;
    for address in addresses {
        let mut args = vec!["address", "add"];
        let address = match address {
            IpAddr::V4(address) => format!("{address}/32"),
            IpAddr::V6(address) => format!("{address}/128"),
        };
        args.extend([&address, "dev", "lo"]);
        if address.contains(':') {
            // It is nobody else's.
            args.push("nodad");
        }
        ip(&args)?;
    }
    Ok(())
}

fn ip(args: &[&str]) -> Result<()> {
    let places = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"];
    let found = places.into_iter().find(|place| Path::new(place).exists());
    let program = found.context("there is no `ip` here; type `make firewall`")?;
    let output = Command::new(program).args(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {}`: {said}", args.join(" "));
    Ok(())
}
