//! `egressctl run`: what was typed becomes a deployment, and what happens becomes lines.

use std::collections::BTreeSet;
use std::fs;
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

use super::args::{Report as Format, Run};
use super::output::{self, Done, Output, tell};
use super::report::Report;
use super::threads::at_once;
use super::{locate, machine, settings, sources};
use egress_run::{Deployment, Event, Events, Recompile, Reload, Start, supervise, version_of};

/// Runs Envoy until it ends or we are told to.
pub(super) fn main(args: &Run) -> Done {
    let mut args = args.clone();
    args.rules.cheapest = true;
    let args = &args;
    if args.output == Format::Json {
        output::tell_as_json();
    }
    let envoy = locate::envoy(args.envoy.as_deref(), pinned_envoy()).map_err(Complaint::input)?;
    // Envoy takes a moment to say it, in which the rules are read.
    let asked = std::thread::spawn({
        let envoy = envoy.clone();
        move || version_of(&envoy)
    });
    let version = || supported(&envoy, asked);
    let (mut sources, compile_options) = settings::read(&args.rules.input)?;
    sources.extend(login(args)?);
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
    // Another form would be another filter in all listeners.
    let mut args = args.clone();
    args.rules.filter = Some(settings::form(&deployment.options.filter));
    let file = deployment.options.filter.path().to_owned();
    let reload = (!args.once).then(|| Reload {
        recompile: Arc::new(Again {
            args: args.clone(),
            filter: PathBuf::from(file),
            version: deployment.version.clone(),
        }),
        sources,
        known,
    });
    let start = Start {
        envoy,
        replace: args.replace,
        concurrency: args.concurrency,
        log_level: args.log_level.into(),
        status: args.status,
        drain: args.drain,
        deployment,
        reload,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Complaint::us(format!("cannot start: {error}")))?;
    let (events, happened) = Events::channel();
    let report = Report::new(args.output, args.log_level);
    let ended = runtime.block_on(shown(supervise(start, events), happened, &report));
    report.ends();
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
    deployment.options.limits = settings::limits(&args.rules, machine::limits());
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
    /// The file of the filter.
    filter: PathBuf,
    /// Envoy's, which does not change while it runs.
    version: String,
}

impl Recompile for Again {
    fn folders(&self) -> BTreeSet<PathBuf> {
        let input = &self.args.rules.input;
        let files = input.files.iter().chain(&input.mesh_config);
        let files = files.filter(|name| *name != "-").map(Path::new);
        files
            .chain(self.args.rules.upstream_proxy_auth.as_deref())
            .flat_map(sources::watched_sources)
            .chain(self.filter.parent().map(Path::to_owned))
            .collect()
    }

    fn filter(&self) -> String {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(&self.filter).map_or_else(
            |error| error.to_string(),
            |meta| {
                format!(
                    "{} {} {}.{}",
                    meta.ino(),
                    meta.len(),
                    meta.mtime(),
                    meta.mtime_nsec()
                )
            },
        )
    }

    fn read(&self) -> Result<Vec<Source>, Complaint> {
        let mut sources = settings::sources(&self.args.rules.input).map_err(Complaint::input)?;
        sources.extend(login(&self.args)?);
        Ok(sources)
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

/// Returns a source without rules that is another one when the login of the upstream proxy is.
fn login(args: &Run) -> Result<Option<Source>, Complaint> {
    let Some(file) = &args.rules.upstream_proxy_auth else {
        return Ok(None);
    };
    let line = sources::secret_line(file).map_err(Complaint::input)?;
    Ok(Some(Source {
        name: file.display().to_string(),
        text: format!("# {:016x}\n", egress_policy::fnv(line.bytes())),
        mesh: false,
    }))
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
    report: &Report,
) -> Result<(), Complaint> {
    let mut run = pin!(run);
    let mut printed = Ok(());
    let ended = loop {
        tokio::select! {
            biased;
            Some(event) = events.recv() => {
                if let Err(complaint) = report.show(event) {
                    printed = Err(complaint);
                    events.close();
                }
            }
            ended = &mut run => break ended,
        }
    };
    // What happened last.
    while let Ok(event) = events.try_recv() {
        printed = printed.and(report.show(event));
    }
    printed.and(ended)
}
