//! An Envoy that is run with what was rendered, from the first secret to its end.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use egress_policy::PortNumber;
use egress_render::xds;
use egress_rules::yaml::AlreadyRead;
use egress_rules::{Complaint, Source};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpSocket;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

use super::deployment::{Deployment, Recompile};
use super::discovery::Offered;
use super::drain::drain;
use super::event::{Drain, Event, Events, send};
use super::folder::DISCOVERY_SOCKET;
use super::ports::{check_ports, places, reserve};
use super::process::{LogLevel, Process, ready, start, stop};
use super::reload::{self, Reloader};
use super::signals::{Asked, Signals};
use super::status::{self, Status};
use super::upgrade::{Generation, Predecessor, Successor, hot_restart_version};
use super::watch::Watcher;
use super::{admin, atomic, discovery, envoy_log, filter_file, folder, resolver, room, secrets};

/// What is run.
pub struct Start {
    /// The Envoy.
    pub envoy: PathBuf,
    /// The process of the run whose place this one takes.
    pub replace: Option<u32>,
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
    let before = start
        .replace
        .map(|pid| Predecessor::find(pid, &start.envoy))
        .transpose()?;
    // Whoever takes the place of another run gets its sockets.
    let known = before.as_ref().map(|_| places(&deployment));
    check_ports(&deployment, known.as_ref())?;
    // Private to this user: the bootstrap names files, and whoever reaches the admin socket rules Envoy.
    let folder = room::awaited(&events, folder::run_folder_with_room)
        .await
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
    let filter = deployment.options.filter.clone();
    deployment.options.filter =
        room::awaited(&events, || filter_file::keep(folder.path(), &filter))
            .await
            .map_err(|error| Complaint::us(error.to_string()))?;
    deployment.place(folder.path(), start.reload.is_some(), guarded_dns)?;
    let resources = deployment.rules.take_resources();
    let bootstrap = if start.reload.is_none() {
        xds::bootstrap(&deployment.rules.table, &resources, &deployment.options)
    } else {
        xds::reloading(&deployment.options)
    };
    let file = folder.path().join("bootstrap.json");
    let text = bootstrap.to_string();
    room::awaited(&events, || atomic::write_private(&file, &text))
        .await
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
    let mut chosen = before
        .as_ref()
        .map(|before| before.ports.clone())
        .unwrap_or_default();
    let mut reserved = Vec::new();
    let reloading = match start.reload {
        None => None,
        Some(reload) => {
            reserved = reserve(&mut deployment, &mut chosen)
                .map_err(|error| Complaint::us(format!("cannot choose a port: {error}")))?;
            let ways = reload::Ways {
                folder: folder.path().to_owned(),
                envoy: start.envoy.clone(),
                plugins,
                lists: reload::Lists {
                    clusters,
                    listeners,
                },
                watch: watcher.watch("rules", &events),
                acks: said,
                refusals,
                secrets,
                ports: chosen.clone(),
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
            let served = status::serve(address, status, before.is_some()).await;
            Some(served.map_err(|error| cannot_serve_status(address, &error))?)
        }
    };
    // The rules as they were read are large; nobody asks for them again, and nobody waits until they are gone.
    let options = deployment.options.clone();
    std::thread::spawn(move || drop((deployment, resources)));
    let failed = |error| Complaint::us(format!("cannot prepare to be replaced: {error}"));
    let mut generation = match &before {
        Some(before) => Generation::after(before),
        None => Generation::first(folder.path()).map_err(failed)?,
    };
    // Sockets are handed over one for each worker.
    let inherited = before.as_ref().and_then(|before| before.concurrency);
    let concurrency = start.concurrency.or(inherited);
    let process = Process {
        envoy: &start.envoy,
        bootstrap: &file,
        admin_address: &file_of_admin,
        options: &options,
        concurrency,
        log_level: start.log_level,
        status: status.as_ref().map(|(address, _)| *address),
        drain: start.drain,
        generation: generation.arguments(),
    };
    let row = Row {
        folder: folder.path(),
        before,
        successor: Successor::listen(folder.path()).map_err(failed)?,
        generation: &mut generation,
        ports: chosen,
        status: status.map(|(_, served)| served),
    };
    follow(process, row, reserved, reloading, refused, &events).await
}

/// The runs of which each takes the place of the one before, as far as one of them knows.
struct Row<'r> {
    folder: &'r Path,
    before: Option<Predecessor>,
    successor: Successor,
    generation: &'r mut Generation,
    ports: BTreeMap<PortNumber, u16>,
    /// What answers probes, until the successor does.
    status: Option<AbortHandle>,
}

impl Row<'_> {
    /// Takes the place of the run before, and leaves word for the next one.
    async fn ready(&mut self, version: Option<String>, concurrency: Option<u32>, events: &Events) {
        if let Some(before) = &self.before {
            self.generation.take_over();
            if let Err(error) = before.tell().await {
                let text = format!("the run before does not hear that its place is taken: {error}");
                send(events, Event::Warning(text));
            }
        }
        let version = version.unwrap_or_else(|| "unknown".to_owned());
        let record = self
            .generation
            .record(self.folder, &version, concurrency, &self.ports);
        if let Err(error) = record {
            let text = format!("no other run can take the place of this one: {error}");
            send(events, Event::Warning(text));
        }
    }

    /// Lets what was begun here finish; the Envoy of the next run ends ours.
    async fn replaced(&mut self, by: u32, child: &mut Child, how: Drain, events: &Events) {
        self.generation.pass_on();
        self.status.take().inspect(AbortHandle::abort);
        send(events, Event::Replaced(by));
        // Until it ends, the other Envoy asks it for its statistics, and would not survive not to be answered.
        if timeout(how.limit + REPLACED_LIMIT, child.wait())
            .await
            .is_err()
        {
            stop(child, events).await;
        }
    }
}

/// How much longer than its limit an Envoy may stay whose place was taken.
const REPLACED_LIMIT: Duration = Duration::from_secs(600);

/// Says why the status cannot be served.
fn cannot_serve_status(address: SocketAddr, error: &io::Error) -> Complaint {
    Complaint::input(format!(
        "cannot listen on {address} for the status: {error}\nhint: `--status` takes another address, and port 0 for any free one"
    ))
}

/// Starts Envoy and stays with it.
async fn follow(
    process: Process<'_>,
    mut row: Row<'_>,
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
    let asked = process.envoy.to_owned();
    let version = tokio::task::spawn_blocking(move || hot_restart_version(&asked));
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
            let version = version.await.ok().flatten();
            row.ready(version, process.concurrency, events).await;
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
    // Dropped, it says that the rules stay as they are. Without a reloader nobody listens.
    let mut forced = reloading.map(|(reloader, sources)| {
        tokio::spawn(reloader.follow(sources, at_once));
        forced
    });
    loop {
        let asked = tokio::select! {
            asked = signals.next() => asked,
            () = events.closed() => Asked::End,
            by = row.successor.came() => {
                forced.take();
                row.replaced(by, &mut child, how, events).await;
                return Ok(());
            }
            status = child.wait() => return Err(ended(status, log).await),
        };
        match asked {
            Asked::End => break,
            Asked::Drain => {
                send(events, Event::Draining(how));
                forced.take();
                tokio::select! {
                    () = drain(how, &options.admin, admin_address, events) => {}
                    () = signals.end() => {}
                    () = events.closed() => {}
                    status = child.wait() => return Err(ended(status, log).await),
                }
                break;
            }
            Asked::Reload => match &forced {
                // One that waits is enough.
                Some(forced) => drop(forced.try_send(())),
                None => {
                    let text = "SIGHUP: the rules stay those of the start, as was asked for";
                    send(events, Event::Warning(text.to_owned()));
                }
            },
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
                if envoy_log::is_meant(&line) {
                    continue;
                }
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
