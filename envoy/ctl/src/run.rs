//! `egressctl run`: what was typed becomes a deployment, and what happens becomes lines.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;

use egress_render::pinned_envoy;
use egress_render::xds;
use egress_rules::yaml::AlreadyRead;
use egress_rules::{Complaint, How, Nothing, Refusal, Source};
use tokio::sync::mpsc;

use super::args::Run;
use super::output::{Done, Output, print, tell};
use super::threads::at_once;
use super::{locate, settings, sources};
use egress_run::admin::Addresses;
use egress_run::{
    Deployment, Drain, Event, Recompile, Reload, Reloaded, Start, envoy_log, supervise, version_of,
};

/// Runs Envoy until it ends or we are told to.
pub(super) fn main(args: &Run) -> Done {
    let envoy = locate::envoy(args.envoy.as_deref(), pinned_envoy()).map_err(Complaint::input)?;
    // Envoy takes a moment to say it, in which the rules are read.
    let asked = std::thread::spawn({
        let envoy = envoy.clone();
        move || version_of(&envoy)
    });
    let version = || supported(&envoy, asked);
    let (sources, compile_options) = settings::read(&args.rules.input)?;
    let mut known = AlreadyRead::default();
    let worth_knowing = (!args.once).then_some(&mut known);
    let nothing = Nothing::Refused;
    let deployment = settle(
        args,
        version,
        &sources,
        compile_options,
        worth_knowing,
        nothing,
    )?;
    deployment.rules.warned().iter().for_each(|note| tell(note));
    let reload = (!args.once).then(|| Reload {
        recompile: Arc::new(Again {
            args: args.clone(),
            version: deployment.version.clone(),
        }),
        sources,
        known,
    });
    let start = Start {
        envoy,
        concurrency: args.concurrency,
        drain: args.drain,
        deployment,
        reload,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Complaint::us(format!("cannot start: {error}")))?;
    let (events, happened) = mpsc::unbounded_channel();
    let ended = runtime.block_on(shown(supervise(start, events), happened));
    // What reads files at this moment is not waited for.
    runtime.shutdown_background();
    ended?;
    Ok(Output::default())
}

/// Settles what was read, for an Envoy on this machine.
fn settle(
    args: &Run,
    version: impl FnOnce() -> Result<String, Complaint>,
    sources: &[Source],
    compile_options: egress_policy::CompileOptions,
    known: Option<&mut AlreadyRead>,
    nothing: Nothing,
) -> Result<Deployment, Refusal> {
    let how = How {
        known,
        each: at_once,
        nothing,
        ..How::default()
    };
    let mut deployment =
        settings::settle_read(&args.rules, version, sources, compile_options, how)?;
    if let Some(capture) = &mut deployment.options.capture
        && args.rules.capture.is_some_and(|at| at.address.is_none())
        && TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err()
    {
        // Without IPv6 there is nothing of it to capture, and Envoy would not start.
        capture.addresses.retain(IpAddr::is_ipv4);
    }
    Ok(deployment)
}

/// The rules of these arguments, whenever they are asked for.
struct Again {
    args: Run,
    /// Envoy's, which does not change while it runs.
    version: String,
}

impl Recompile for Again {
    fn folders(&self) -> BTreeSet<PathBuf> {
        let input = &self.args.rules.input;
        let files = input.files.iter().chain(&input.mesh_config);
        files
            .filter(|name| *name != "-")
            .flat_map(|name| sources::watched_sources(name))
            .collect()
    }

    fn read(&self) -> Result<Vec<Source>, Complaint> {
        settings::sources(&self.args.rules.input).map_err(Complaint::input)
    }

    fn compile(
        &self,
        sources: &[Source],
        nothing: Nothing,
        known: &mut AlreadyRead,
    ) -> Result<Deployment, Refusal> {
        let version = || Ok(self.version.clone());
        let compile_options = settings::compile_options(&self.args.rules.input);
        settle(
            &self.args,
            version,
            sources,
            compile_options,
            Some(known),
            nothing,
        )
    }
}

/// Waits for an Envoy's version; says so when it is none that we can run.
fn supported(envoy: &Path, asked: JoinHandle<Result<String, String>>) -> Result<String, Complaint> {
    let told = asked.join();
    let told = told.unwrap_or_else(|_| Err("its version could not be found out".to_owned()));
    let version = told.map_err(|error| {
        Complaint::us(format!(
            "`{}` is not an Envoy that runs here: {error}",
            envoy.display()
        ))
    })?;
    if xds::Version::find(&version).is_some_and(|version| version < xds::OLDEST) {
        return Err(Complaint::input(format!(
            "`{}` is Envoy {version}; it must be {} or later\nhint: {}",
            envoy.display(),
            xds::OLDEST,
            settings::another_envoy(),
        )));
    }
    Ok(version)
}

/// Shows what happens in a run until it ends. It is stopped when the standard output takes no line that says that it is
/// ready: nobody would know.
async fn shown(
    run: impl Future<Output = Result<(), Complaint>>,
    mut events: mpsc::UnboundedReceiver<Event>,
) -> Result<(), Complaint> {
    let mut run = pin!(run);
    let mut printed = Ok(());
    let ended = loop {
        tokio::select! {
            biased;
            Some(event) = events.recv() => {
                if let Err(complaint) = show(event) {
                    printed = Err(complaint);
                    events.close();
                }
            }
            ended = &mut run => break ended,
        }
    };
    // What happened last.
    while let Ok(event) = events.try_recv() {
        printed = printed.and(show(event));
    }
    printed.and(ended)
}

/// Shows one event, in lines that programs and people read.
fn show(event: Event) -> Result<(), Complaint> {
    match event {
        Event::Ready(addresses) => return print(&ready_line(&addresses)),
        Event::Reloaded(reloaded) => {
            // That nobody can read it is no reason to stop.
            if let Err(complaint) = print(&reloaded_line(&reloaded)) {
                tell(&complaint.to_string());
            }
        }
        Event::Refused(refusal) => {
            tell(&format!("{refusal}\nthe rules before them stay in use"));
        }
        Event::Note(note) => tell(&note),
        Event::SecretMissing { why, stays } => {
            let meanwhile = match stays {
                true => "the one before it stays in use",
                false => "requests that need it are answered 503 until it is there",
            };
            tell(&format!("warning: {why}; {meanwhile}"));
        }
        Event::SecretBack(name) => tell(&format!("the secret `{name}` is there now")),
        Event::EnvoySaid(line) => repeat(&line),
        Event::Draining(how) => tell(&draining_line(how)),
        Event::Reopened => tell("the access log is opened again"),
        Event::Warning(text) => tell(&format!("warning: {text}")),
    }
    Ok(())
}

/// Writes `ready 80=127.0.0.1:10080 443=127.0.0.1:10443 admin=127.0.0.1:9901`; and for each service that has an
/// address of its own a line `vip HOST:PORT=ADDRESS:PORT`, then for each such host one `hosts ADDRESS HOST`, whose
/// last two words are a line for `/etc/hosts`.
fn ready_line(addresses: &Addresses) -> String {
    let mut line = String::from("ready");
    for (service, address) in &addresses.listeners {
        let _ = write!(line, " {service}={address}");
    }
    if let Some(address) = &addresses.forward_proxy {
        let _ = write!(line, " {}={address}", xds::FORWARD_PROXY);
    }
    if let Some(address) = &addresses.capture {
        let _ = write!(line, " {}={address}", xds::CAPTURE);
    }
    let _ = writeln!(line, " admin={}", addresses.admin);
    line + &vip_lines(addresses)
}

/// Writes `reloaded 80=127.0.0.1:10080 added=80 removed=443 digest=…`, then the lines on addresses as [`ready_line`].
fn reloaded_line(reloaded: &Reloaded) -> String {
    let mut line = String::from("reloaded");
    let mut vips = String::new();
    if let Some(addresses) = &reloaded.addresses {
        for (service, address) in &addresses.listeners {
            let _ = write!(line, " {service}={address}");
        }
        vips = vip_lines(addresses);
    }
    for (word, ports) in [("added", &reloaded.added), ("removed", &reloaded.removed)] {
        if !ports.is_empty() {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let _ = write!(line, " {word}={}", ports.join(","));
        }
    }
    let _ = writeln!(line, " digest={}", reloaded.digest);
    line + &vips
}

/// Writes what SIGTERM leads to.
fn draining_line(how: Drain) -> String {
    let time = |time| humantime::format_duration(time).to_string();
    let delay = match how.delay.is_zero() {
        true => String::new(),
        false => format!("in {} ", time(how.delay)),
    };
    format!(
        "draining: {delay}open requests get {} to finish; another signal ends them at once",
        time(how.limit)
    )
}

/// Writes the loopback addresses that TCP services have, and what would stand in /etc/hosts for them.
fn vip_lines(addresses: &Addresses) -> String {
    let mut line = String::new();
    for (host, service, address) in &addresses.vips {
        let _ = writeln!(line, "vip {host}:{service}={address}");
    }
    let mut names: Vec<_> = addresses
        .vips
        .iter()
        .map(|(host, _, address)| (address.ip(), host))
        .collect();
    names.dedup();
    for (ip, host) in names {
        let _ = writeln!(line, "hosts {ip} {host}");
    }
    line
}

/// Repeats what Envoy logs, but not what we have said already: the filter finds the same warnings in the rules, once
/// in each of its VMs, and of secrets that do not come we know why. That Envoy may change how a range of addresses is
/// written is known too; it says so of each.
fn repeat(line: &str) {
    let told = line.contains(": egress: warning: ")
        || line.contains("message 'xds.core.v3.CidrRange' is contained in proto file")
        || line.contains("initial fetch timed out for type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret");
    if !told {
        tell(envoy_log::shortened(line).trim_end());
    }
}
