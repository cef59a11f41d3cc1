//! Envoy as a process: started, waited for, and stopped.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::event::{Drain, Event, Events, send};
use super::reload::{DRAIN, Reloader};
use super::{admin, envoy_log};
use egress_render::xds::{self, Options};

/// How long Envoy may take to stop once asked.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long an Envoy whose place is taken stays at least: its `egressctl` is to hear of it before.
const SHORTEST_PARENT: Duration = Duration::from_secs(3);

/// How long Envoy may take to start. Loading a module takes a second or two on a slow machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Asks an Envoy for its version, such as `1.40.0`.
pub fn version_of(envoy: &Path) -> Result<String, String> {
    let output = std::process::Command::new(envoy)
        .arg("--version")
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `/opt/envoy-1.36/envoy  version: 9e55…/1.40.0/Clean/RELEASE/BoringSSL`: where it is says nothing.
    let told = text.rsplit_once("version: ").map_or("", |(_, told)| told);
    told.split(['/', ' ', '\n'])
        .find(|word| xds::Version::find(word).is_some())
        .map(str::to_owned)
        .ok_or_else(|| {
            let said = text
                .lines()
                .chain(std::str::from_utf8(&output.stderr).unwrap_or("").lines())
                .next();
            format!("`--version` printed `{}`", said.unwrap_or("nothing"))
        })
}

/// What is said at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What fails.
    Error,
    /// What may be wrong, too.
    Warning,
    /// What Envoy does.
    Info,
    /// How it does it.
    Debug,
    /// All of it.
    Trace,
}

impl LogLevel {
    /// As Envoy calls it. Its warnings are always needed: they say why it refuses something.
    fn of_envoy(self) -> &'static str {
        match self {
            LogLevel::Error | LogLevel::Warning => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// What Envoy is started with, and how it ends.
pub(super) struct Process<'p> {
    pub(super) envoy: &'p Path,
    pub(super) bootstrap: &'p Path,
    /// Where Envoy writes the address of its admin interface.
    pub(super) admin_address: &'p Path,
    pub(super) options: &'p Options,
    pub(super) concurrency: Option<u32>,
    pub(super) log_level: LogLevel,
    pub(super) status: Option<SocketAddr>,
    pub(super) drain: Drain,
    /// What hot restart is told.
    pub(super) generation: Vec<OsString>,
}

pub(super) fn start(process: &Process<'_>) -> io::Result<Child> {
    let mut command = std::process::Command::new(process.envoy);
    command
        .arg("--config-path")
        .arg(process.bootstrap)
        .arg("--admin-address-path")
        .arg(process.admin_address);
    command.args(&process.generation);
    // How long the Envoy whose place is taken may still finish what it has begun.
    let parent = process.drain.limit.max(SHORTEST_PARENT).as_secs();
    command
        .arg("--parent-shutdown-time-s")
        .arg(parent.to_string());
    command.args([
        "--log-level",
        process.log_level.of_envoy(),
        "--file-flush-interval-msec",
        "200",
    ]);
    // Who asks again on a connection of before is told to close it, from the first answer on.
    command.args(["--drain-strategy", "immediate", "--drain-time-s"]);
    command.arg(DRAIN.as_secs().to_string());
    if let Some(workers) = process.concurrency {
        command.arg("--concurrency").arg(workers.to_string());
    }
    // It is ours to tell whoever started us.
    command.env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    // Ctrl-C reaches every process of a terminal's group; ours is the one that decides how Envoy stops.
    command.process_group(0);
    die_with_us(&mut command);
    Command::from(command).kill_on_drop(true).spawn()
}

/// Lets the kernel stop Envoy when this process is killed without a chance to do so itself.
fn die_with_us(command: &mut std::process::Command) {
    #[cfg(target_os = "linux")]
    #[expect(
        unsafe_code,
        reason = "code between fork and exec is unsafe to run in general"
    )]
    // SAFETY: the closure makes one system call and allocates nothing, so it may run between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
            Ok(())
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Waits until everything listens; returns where.
pub(super) async fn ready(
    child: &mut Child,
    lines: &mut mpsc::UnboundedReceiver<String>,
    options: &Options,
    admin_address: &Path,
    reloader: Option<&Reloader>,
    events: &Events,
) -> Result<admin::Addresses, String> {
    let mut said = VecDeque::new();
    let deadline = Instant::now() + START_LIMIT;
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            line = lines.recv(), if !told => match line {
                Some(line) => {
                    said.push_back(line);
                    if said.len() > 200 {
                        said.pop_front();
                    }
                }
                None => told = true,
            },
            status = child.wait(), if told => {
                let status = status.map(|status| status.to_string()).unwrap_or_default();
                return Err(envoy_log::reason(said.iter().map(String::as_str), &status));
            }
            () = sleep(Duration::from_millis(20)), if !told => {
                let refused = said.iter().any(|line| envoy_log::refusal(line).is_some());
                let started = match reloader {
                    Some(_) if refused => Err(()),
                    Some(reloader) => reloader.has_started(),
                    None => Ok(true),
                };
                if started.is_err() {
                    while let Ok(line) = lines.try_recv() {
                        said.push_back(line);
                    }
                    return Err(envoy_log::reason(said.iter().map(String::as_str), "it is stopped"));
                }
                if started == Ok(true) && let Some(mut addresses) = admin::listening(&options.admin, admin_address).await {
                    said.drain(..).for_each(|line| send(events, Event::EnvoySaid(line)));
                    addresses.filter = options.filter.form();
                    return Ok(addresses);
                }
                if Instant::now() > deadline {
                    return Err(format!("Envoy did not become ready within {} s", START_LIMIT.as_secs()));
                }
            }
        }
    }
}

/// Asks Envoy to end, and makes it if it does not.
pub(super) async fn stop(child: &mut Child, events: &Events) {
    if let Some(pid) = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(rustix::process::Pid::from_raw)
    {
        // It may have ended in this very moment; then there is nothing to ask.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if timeout(STOP_LIMIT, child.wait()).await.is_err() {
        let text = "Envoy did not stop when asked; it was killed";
        send(events, Event::Warning(text.to_owned()));
        let _ = child.kill().await;
    }
}
