//! An Envoy that is run with what was rendered, from the first secret to its end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::ports::{check_ports, reserve};
use super::process::{ready, start, stop, version_of};
use super::reload::{self, Reloader};
use super::{admin, atomic, discovery, envoy_log, folder, resolver, secrets};
use crate::cli::args::Run;
use crate::cli::locate;
use crate::cli::settings::{self, Settled};
use crate::cli::threads::at_once;
use crate::cli::{ExitStatus, print, refuse, tell};
use egress_render::pinned_envoy;
use egress_render::xds::{self, Admin, Options};
use egress_rules::Source;
use egress_rules::yaml::AlreadyRead;
use egress_rules::{Complaint, Refusal};
use egress_rules::{How, Nothing};

/// `egressctl run`.
pub(crate) fn main(args: &Run) -> ExitStatus {
    match run(args) {
        Ok(()) => ExitStatus::Success,
        Err(refusal) => refuse(&refusal),
    }
}

fn run(args: &Run) -> Result<(), Refusal> {
    let envoy = locate::envoy(args.envoy.as_deref(), pinned_envoy()).map_err(Complaint::input)?;
    // Envoy takes a moment to say it, in which the rules are read.
    let asked = std::thread::spawn({
        let envoy = envoy.clone();
        move || version_of(&envoy)
    });
    let version = || supported(&envoy, asked);
    let (sources, settling) = settings::read(&args.rules.input)?;
    let mut known = AlreadyRead::default();
    let worth_knowing = (!args.once).then_some(&mut known);
    let nothing = Nothing::Refused;
    let mut settled = settle(args, version, &sources, settling, worth_knowing, nothing)?;
    settled.rules.warned().iter().for_each(|note| tell(note));
    check_ports(&settled, None)?;
    // Private to this user: the bootstrap names files, and whoever reaches the admin socket rules Envoy.
    let folder = folder::run_folder()
        .map_err(|error| Complaint::us(format!("cannot make a folder for this run: {error}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Complaint::us(format!("cannot start: {error}")))?;
    // In place of what this Envoy's DNS cache cannot do. It listens at once: rules that need it may come later.
    let mut guarded_dns = None;
    if settled.options.version < xds::DROPS_ADDRESSES {
        let servers = resolver::servers(&settled.options.dns);
        let address = runtime
            .block_on(resolver::serve(servers))
            .map_err(|error| Complaint::us(format!("cannot serve DNS to Envoy: {error}")))?;
        guarded_dns = Some(address);
    }
    place(&mut settled.options, folder.path(), !args.once, guarded_dns);
    let resources = settled.rules.take_resources();
    let bootstrap = if args.once {
        xds::bootstrap(&settled.rules.table, &resources, &settled.options)
    } else {
        let (listeners, clusters) = reload::files(folder.path());
        let path = |path: &Path| path.display().to_string();
        xds::reloading(&settled.options, &path(&listeners), &path(&clusters))
    };
    let file = folder.path().join("bootstrap.json");
    atomic::write_private(&file, &bootstrap.to_string())
        .map_err(|error| Complaint::us(format!("cannot write the bootstrap: {error}")))?;
    let ended = runtime.block_on(async {
        let (refused, refusals) = tokio::sync::watch::channel(String::new());
        // Before Envoy, which asks for its secrets first of all.
        let (secrets, kept) = secrets::keep(settled.store.clone(), settled.needs());
        let (plugins, offered) = tokio::sync::watch::channel(discovery::Resources::default());
        let (acks, said) = tokio::sync::watch::channel(discovery::Acks::new());
        let served = discovery::Served {
            secrets: kept,
            plugins: offered,
            acks: Arc::new(acks),
        };
        discovery::serve(&folder.path().join(DISCOVERY_SOCKET), served)
            .map_err(|error| Complaint::us(format!("cannot serve secrets to Envoy: {error}")))?;
        let mut chosen = BTreeMap::new();
        let mut reserved = Vec::new();
        let reloading = if args.once {
            None
        } else {
            reserved = reserve(&mut settled, &mut chosen)
                .map_err(|error| Complaint::us(format!("cannot choose a port: {error}")))?;
            let ways = reload::Ways {
                folder: folder.path().to_owned(),
                plugins,
                acks: said,
                refusals,
                secrets,
                ports: chosen,
                known,
            };
            let reloader = Reloader::new(ways, &settled, &resources).map_err(|error| {
                Complaint::us(format!("cannot write what Envoy reads: {error}"))
            })?;
            Some(Reloading {
                reloader,
                args: args.clone(),
                version: settled.version.clone(),
                sources,
            })
        };
        // The rules as they were read are large; nobody asks for them again, and nobody waits until they are gone.
        let options = settled.options.clone();
        std::thread::spawn(move || drop((settled, resources)));
        supervise(
            reserved,
            &envoy,
            &file,
            &options,
            args.concurrency,
            reloading,
            &refused,
        )
        .await
    });
    // What reads files at this moment is not waited for.
    runtime.shutdown_background();
    ended.map_err(Refusal::from)
}

/// The socket of the discovery server in the folder of a run.
const DISCOVERY_SOCKET: &str = "discovery.sock";

/// Settles what was read, for an Envoy on this machine.
pub(super) fn settle(
    args: &Run,
    version: impl FnOnce() -> Result<String, Complaint>,
    sources: &[Source],
    settling: egress_policy::Settling,
    known: Option<&mut AlreadyRead>,
    nothing: Nothing,
) -> Result<Settled, Refusal> {
    let how = How {
        known,
        each: at_once,
        nothing,
    };
    let mut settled = settings::settle_read(&args.rules, version, sources, settling, how)?;
    if let Some(capture) = &mut settled.options.capture
        && args.rules.capture.is_some_and(|at| at.address.is_none())
        && TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err()
    {
        // Without IPv6 there is nothing of it to capture, and Envoy would not start.
        capture.addresses.retain(IpAddr::is_ipv4);
    }
    Ok(settled)
}

/// Says where in the folder of a run things are, and what of it listens.
pub(super) fn place(
    options: &mut Options,
    folder: &Path,
    reloads: bool,
    guarded_dns: Option<SocketAddr>,
) {
    options.guarded_dns = guarded_dns;
    if let Admin::Pipe(path) = &mut options.admin {
        *path = folder.join(folder::ADMIN_SOCKET).display().to_string();
    }
    let socket = folder.join(DISCOVERY_SOCKET);
    options.secrets = xds::Secrets::Served(socket.display().to_string());
    options.reloads = reloads;
}

/// What watching the rules takes.
struct Reloading {
    reloader: Reloader,
    args: Run,
    version: String,
    sources: Vec<Source>,
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

/// Runs Envoy until it ends or we are told to.
async fn supervise(
    reserved: Vec<TcpSocket>,
    envoy: &Path,
    bootstrap: &Path,
    options: &Options,
    concurrency: Option<u32>,
    reloading: Option<Reloading>,
    refused: &tokio::sync::watch::Sender<String>,
) -> Result<(), Complaint> {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return Err(Complaint::us("cannot listen for signals"));
    };
    let mut hangup = match &reloading {
        Some(_) => signal(SignalKind::hangup()).ok(),
        None => None,
    };
    let in_terminal = io::stderr().is_terminal();
    let admin_address = bootstrap.with_file_name(folder::ADMIN_ADDRESS);
    let drain = reloading.is_some().then_some(reload::DRAIN);
    let mut child = match start(envoy, bootstrap, &admin_address, concurrency, drain) {
        Ok(child) => child,
        Err(error) => {
            let text = format!("cannot start `{}`: {error}", envoy.display());
            return Err(Complaint::us(text));
        }
    };
    let (sender, mut lines) = mpsc::unbounded_channel();
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(async move {
            let mut reader = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    let started = tokio::select! {
        started = ready(&mut child, &mut lines, options, &admin_address, reloading.as_ref().map(|all| &all.reloader)) => started,
        _ = interrupt.recv() => return Ok(stop(&mut child).await),
        _ = terminate.recv() => return Ok(stop(&mut child).await),
    };
    match started {
        Ok(line) => {
            if let Err(complaint) = print(&line) {
                stop(&mut child).await;
                return Err(complaint);
            }
        }
        Err(message) => {
            stop(&mut child).await;
            return Err(Complaint::us(message));
        }
    }
    drop(reserved);
    let (forced, at_once) = mpsc::channel(1);
    if let Some(all) = reloading {
        tokio::spawn(
            all.reloader
                .follow(all.args, all.version, all.sources, at_once),
        );
    }
    loop {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => return Ok(stop(&mut child).await),
            _ = terminate.recv() => return Ok(stop(&mut child).await),
            _ = hung_up => {
                // The signal is also how a terminal says that it goes.
                if in_terminal && !io::stderr().is_terminal() {
                    return Ok(stop(&mut child).await);
                }
                // One that waits is enough.
                let _ = forced.try_send(());
            }
            line = lines.recv() => match line {
                Some(line) => {
                    match envoy_log::refusal(&line) {
                        // It is told with what was not applied.
                        Some(reason) => { refused.send_replace(reason); }
                        None => repeat(&line),
                    }
                }
                None => {
                    let status = child.wait().await;
                    return Err(Complaint::us(match status {
                        Ok(status) => format!("Envoy ended by itself: {status}"),
                        Err(error) => format!("Envoy ended by itself: {error}"),
                    }));
                }
            },
        }
    }
}

/// Writes `ready 80=127.0.0.1:10080 443=127.0.0.1:10443 admin=127.0.0.1:9901`; and for each service that has an
/// address of its own a line `vip HOST:PORT=ADDRESS:PORT`, then for each such host one `hosts ADDRESS HOST`, whose
/// last two words are a line for `/etc/hosts`.
pub(super) fn ready_line(addresses: &admin::Addresses) -> String {
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

/// Writes the loopback addresses that TCP services have, and what would stand in /etc/hosts for them.
pub(super) fn vip_lines(addresses: &admin::Addresses) -> String {
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

/// Tells what Envoy tells, but for what we told already: the filter finds the same warnings in the rules, once
/// in each of its VMs, and of secrets that do not come we know why. That Envoy may change how a range of addresses is
/// written is known too; it says so of each.
pub(super) fn repeat(line: &str) {
    let told = line.contains(": egress: warning: ")
        || line.contains("message 'xds.core.v3.CidrRange' is contained in proto file")
        || line.contains("initial fetch timed out for type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret");
    if !told {
        tell(envoy_log::shortened(line).trim_end());
    }
}
