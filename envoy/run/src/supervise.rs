//! An Envoy that is run with what was rendered, from the first secret to its end.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;

use egress_render::xds;
use egress_rules::yaml::AlreadyRead;
use egress_rules::{Complaint, Source};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpSocket;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::deployment::{Deployment, Recompile};
use super::discovery::Offered;
use super::drain::drain;
use super::event::{Drain, Event, Events, send};
use super::folder::DISCOVERY_SOCKET;
use super::ports::{check_ports, reserve};
use super::process::{LogLevel, Process, ready, start, stop};
use super::reload::{self, Reloader};
use super::signals::{Asked, Signals};
use super::status::{self, Status};
use super::watch::Watcher;
use super::{admin, atomic, discovery, envoy_log, folder, resolver, secrets};

/// What is run.
pub struct Start {
    /// The Envoy.
    pub envoy: PathBuf,
    /// Its worker threads; one for each processor when nothing is said.
    pub concurrency: Option<u32>,
    /// The quietest that it logs.
    pub log_level: LogLevel,
    /// Where probes and Prometheus ask, if they may.
    pub status: Option<SocketAddr>,
    /// How it ends when SIGTERM asks it to.
    pub drain: Drain,
    /// The rules that it starts with.
    pub deployment: Deployment,
    /// What it takes to follow the rules when they change; without it, those that it starts with stay.
    pub reload: Option<Reload>,
}

/// What it takes to follow the rules when they change.
pub struct Reload {
    /// How they are read and compiled again.
    pub recompile: Arc<dyn Recompile>,
    /// What was read for the start.
    pub sources: Vec<Source>,
    /// The same, as it was cut into documents.
    pub known: AlreadyRead,
}

/// Runs Envoy until it ends, or we are told to by a signal, or nobody takes events any more.
///
/// Whoever made the runtime should not wait, once this returns, for what it still reads.
///
/// # Errors
/// When it cannot be started, or ends by itself.
pub async fn supervise(start: Start, events: Events) -> Result<(), Complaint> {
    let mut deployment = start.deployment;
    check_ports(&deployment, None)?;
    // Private to this user: the bootstrap names files, and whoever reaches the admin socket rules Envoy.
    let folder = folder::run_folder()
        .map_err(|error| Complaint::us(format!("cannot make a folder for this run: {error}")))?;
    // In place of what this Envoy's DNS cache cannot do. It listens at once: rules that need it may come later.
    let mut guarded_dns = None;
    if deployment.options.version < xds::DROPS_ADDRESSES {
        let servers = resolver::servers(&deployment.options.dns);
        let address = resolver::serve(servers)
            .await
            .map_err(|error| Complaint::us(format!("cannot serve DNS to Envoy: {error}")))?;
        guarded_dns = Some(address);
    }
    deployment.place(folder.path(), start.reload.is_some(), guarded_dns);
    let resources = deployment.rules.take_resources();
    let bootstrap = if start.reload.is_none() {
        xds::bootstrap(&deployment.rules.table, &resources, &deployment.options)
    } else {
        xds::reloading(&deployment.options)
    };
    let file = folder.path().join("bootstrap.json");
    atomic::write_private(&file, &bootstrap.to_string())
        .map_err(|error| Complaint::us(format!("cannot write the bootstrap: {error}")))?;
    let (refused, refusals) = watch::channel(String::new());
    let watcher = Watcher::new();
    // Before Envoy, which asks for its secrets first of all.
    let (secrets, kept) = secrets::keep(
        deployment.store.clone(),
        deployment.needs(),
        watcher.watch("certificates", &events),
        events.clone(),
    );
    let (plugins, offered) = watch::channel(discovery::Resources::default());
    let (acks, said) = watch::channel(discovery::Acks::new());
    let (clusters, offered_clusters) = Offered::channel();
    let (listeners, offered_listeners) = Offered::channel();
    let served = discovery::Served {
        secrets: kept,
        plugins: offered,
        clusters: offered_clusters,
        listeners: offered_listeners,
        acks: Arc::new(acks),
        events: events.clone(),
    };
    discovery::serve(&folder.path().join(DISCOVERY_SOCKET), served)
        .map_err(|error| Complaint::us(format!("cannot serve secrets to Envoy: {error}")))?;
    let mut chosen = BTreeMap::new();
    let mut reserved = Vec::new();
    let reloading = match start.reload {
        None => None,
        Some(reload) => {
            reserved = reserve(&mut deployment, &mut chosen)
                .map_err(|error| Complaint::us(format!("cannot choose a port: {error}")))?;
            let ways = reload::Ways {
                folder: folder.path().to_owned(),
                plugins,
                lists: reload::Lists {
                    clusters,
                    listeners,
                },
                watch: watcher.watch("rules", &events),
                acks: said,
                refusals,
                secrets,
                ports: chosen,
                recompile: reload.recompile,
                known: reload.known,
                events: events.clone(),
            };
            let reloader = Reloader::new(ways, &deployment, &resources);
            Some((reloader, reload.sources))
        }
    };
    let file_of_admin = folder.path().join(folder::ADMIN_ADDRESS);
    let status = match start.status {
        None => None,
        Some(address) => {
            let status = Status {
                admin: deployment.options.admin.clone(),
                written: file_of_admin.clone(),
                version: deployment.version.clone(),
                events: events.clone(),
            };
            let served = status::serve(address, status).await;
            Some(served.map_err(|error| cannot_serve_status(address, &error))?)
        }
    };
    // The rules as they were read are large; nobody asks for them again, and nobody waits until they are gone.
    let options = deployment.options.clone();
    std::thread::spawn(move || drop((deployment, resources)));
    let process = Process {
        envoy: &start.envoy,
        bootstrap: &file,
        admin_address: &file_of_admin,
        options: &options,
        concurrency: start.concurrency,
        log_level: start.log_level,
        status,
        drain: start.drain,
    };
    follow(process, reserved, reloading, refused, &events).await
}

/// Says why the status cannot be served.
fn cannot_serve_status(address: SocketAddr, error: &io::Error) -> Complaint {
    Complaint::input(format!(
        "cannot listen on {address} for the status: {error}\nhint: `--status` takes another address, and port 0 for any free one"
    ))
}

/// Starts Envoy and stays with it.
async fn follow(
    process: Process<'_>,
    reserved: Vec<TcpSocket>,
    reloading: Option<(Reloader, Vec<Source>)>,
    refused: watch::Sender<String>,
    events: &Events,
) -> Result<(), Complaint> {
    let Process {
        options,
        admin_address,
        drain: how,
        ..
    } = process;
    let mut signals = Signals::listen()
        .map_err(|error| Complaint::us(format!("cannot listen for signals: {error}")))?;
    let mut child = start(&process).map_err(|error| {
        let envoy = process.envoy.display();
        Complaint::us(format!("cannot start `{envoy}`: {error}"))
    })?;
    let mut lines = said(&mut child);
    let reloader = reloading.as_ref().map(|(reloader, _)| reloader);
    let started = tokio::select! {
        started = ready(&mut child, &mut lines, options, admin_address, reloader, events) => started,
        () = signals.end() => {
            stop(&mut child, events).await;
            return Ok(());
        }
        () = events.closed() => {
            stop(&mut child, events).await;
            return Ok(());
        }
    };
    match started {
        Ok(mut addresses) => {
            addresses.status = process.status;
            send(events, Event::Ready(addresses));
        }
        Err(message) => {
            stop(&mut child, events).await;
            return Err(Complaint::us(message));
        }
    }
    drop(reserved);
    let log = tokio::spawn(repeat(lines, refused, events.clone()));
    let (forced, at_once) = mpsc::channel(1);
    let follows = reloading.map(|(reloader, sources)| {
        let following = reloader.follow(sources, at_once);
        tokio::spawn(following).abort_handle()
    });
    loop {
        let asked = tokio::select! {
            asked = signals.next() => asked,
            () = events.closed() => Asked::End,
            status = child.wait() => return Err(ended(status, log).await),
        };
        match asked {
            Asked::End => break,
            Asked::Drain => {
                send(events, Event::Draining(how));
                follows.inspect(AbortHandle::abort);
                tokio::select! {
                    () = drain(how, &options.admin, admin_address, events) => {}
                    () = signals.end() => {}
                    () = events.closed() => {}
                    status = child.wait() => return Err(ended(status, log).await),
                }
                break;
            }
            Asked::Reload if follows.is_none() => {
                let text = "SIGHUP: the rules stay those of the start, as was asked for";
                send(events, Event::Warning(text.to_owned()));
            }
            // One that waits is enough.
            Asked::Reload => drop(forced.try_send(())),
            Asked::Reopen => {
                let done = admin::post(&options.admin, admin_address, "/reopen_logs").await;
                let failed = "Envoy does not open its access log again";
                send(
                    events,
                    match done {
                        true => Event::Reopened,
                        false => Event::Warning(failed.to_owned()),
                    },
                );
            }
        }
    }
    stop(&mut child, events).await;
    Ok(())
}

/// Returns what Envoy writes to its standard error, line by line.
fn said(child: &mut Child) -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
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
    lines
}

/// Tells what Envoy says, until it says no more.
async fn repeat(
    mut lines: mpsc::UnboundedReceiver<String>,
    refused: watch::Sender<String>,
    events: Events,
) {
    while let Some(line) = lines.recv().await {
        match envoy_log::refusal(&line) {
            // It is told with what was not applied.
            Some(reason) => drop(refused.send_replace(reason)),
            None => send(&events, Event::EnvoySaid(line)),
        }
    }
}

/// Returns how Envoy ended that nobody asked to, once all that it said is told.
async fn ended(status: io::Result<ExitStatus>, log: JoinHandle<()>) -> Complaint {
    let _ = log.await;
    Complaint::us(match status {
        Ok(status) => format!("Envoy ended by itself: {status}"),
        Err(error) => format!("Envoy ended by itself: {error}"),
    })
}
