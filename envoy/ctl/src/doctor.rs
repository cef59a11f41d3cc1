//! `egressctl doctor`: does this machine have all that `run` needs, and what to do if not.
//!
//! It tries what it can: Envoy reads a bootstrap of ours and loads the filter, and sockets are opened. What nobody can
//! know yet, such as the number of connections, is a warning.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anstyle::{AnsiColor, Style};
use clap::Parser;
use egress_policy::Severity;
use serde_json::{Value, json};

use super::args::{Doctor, Report as Format, Rules};
use super::locate;
use super::output::{Done, Output, Text};
use super::settings;
use super::sources::STDIN;
use egress_credentials::{self as credentials, Store};
use egress_render::pinned_envoy;
use egress_render::xds::{self, OLDEST, OLDEST_WITH_PROXY, SecretRequest, Version};
use egress_rules::Complaint;
use egress_rules::Source;
use egress_rules::{self as rules, How, Report};
use egress_run::{trial, version_of};

/// The inotify instances that have to be left: `run` has one, and the Envoy that it starts has none.
const INOTIFY_NEEDED: usize = 1;

/// The open files below which a proxy for many connections runs short: each has one on either side.
const MANY_FILES: u64 = 4096;

/// A port that needs a right, and that hardly anything listens on.
const LOW_PORT: u16 = 1023;

/// What Envoys do not do that are older than a version.
const LACKS: [(Version, &str); 2] = [
    (
        OLDEST_WITH_PROXY,
        "does not do `--upstream-proxy`, and does not keep apart connections with a login by NTLM or Negotiate",
    ),
    (
        Version {
            major: 1,
            minor: 37,
        },
        "does not tell why a certificate is refused (`reason=reset` in the log)",
    ),
];

/// Rules for Envoy to load; nothing is asked for.
const SAMPLE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: doctor}
spec:
  hosts: [doctor.invalid]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: doctor}
spec: {host: doctor.invalid, trafficPolicy: {tls: {mode: SIMPLE}}}
";

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    about: &'static str,
    verdict: Verdict,
    what: String,
    hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warning,
    Error,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Error => "error",
        }
    }

    fn style(self) -> Style {
        let colour = match self {
            Verdict::Ok => AnsiColor::Green,
            Verdict::Warning => AnsiColor::Yellow,
            Verdict::Error => AnsiColor::Red,
        };
        colour.on_default()
    }
}

impl Found {
    fn ok(about: &'static str, what: impl Into<String>) -> Found {
        Found {
            about,
            verdict: Verdict::Ok,
            what: what.into(),
            hint: None,
        }
    }

    fn warning(about: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Found {
        Found {
            about,
            verdict: Verdict::Warning,
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    /// `text` may have a line `hint: …`, as messages have.
    fn error(about: &'static str, text: &str) -> Found {
        let (what, hint) = match text.split_once("\nhint: ") {
            Some((what, hint)) => (what, Some(hint.to_owned())),
            None => (text, None),
        };
        Found {
            about,
            verdict: Verdict::Error,
            what: what.to_owned(),
            hint,
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "about": self.about,
            "verdict": self.verdict.word(),
            "what": self.what,
            "hint": self.hint,
        })
    }
}

/// Looks at everything, and says what was found.
pub(super) fn main(args: &Doctor) -> Done {
    let found = examine(args);
    let text = match args.output {
        Format::Text => Text::Coloured(for_people(&found)),
        Format::Json => {
            let all: Vec<Value> = found.iter().map(Found::to_json).collect();
            let text = serde_json::to_string_pretty(&all)
                .map_err(|error| Complaint::us(format!("cannot write the report: {error}")))?;
            Text::Lines(text + "\n")
        }
    };
    let is_bad = found.iter().any(|one| one.verdict == Verdict::Error);
    Ok(Output {
        text,
        is_bad,
        ..Output::default()
    })
}

fn examine(args: &Doctor) -> Vec<Found> {
    let mut found = Vec::new();
    let envoy = envoy(args.envoy.as_deref(), &mut found);
    let wasm = filter(args.wasm.as_deref(), &mut found);
    native(args.module.as_deref(), &mut found);
    let trust = trust_store();
    let trusted = trust.verdict != Verdict::Error;
    found.push(trust);
    // Each of them is needed to try, and has been told of where it is missing.
    if let (Some((envoy, version)), Some(_), true) = (envoy, wasm, trusted) {
        found.push(load(&envoy, &version, args));
    }
    found.push(inotify());
    found.push(open_files(soft_and_hard()));
    found.push(low_ports());
    rules_and_credentials(args, &mut found);
    found
}

/// Finds Envoy and its version, and tells of what that version cannot do.
fn envoy(named: Option<&Path>, found: &mut Vec<Found>) -> Option<(PathBuf, String)> {
    let about = "envoy";
    let path = match locate::envoy(named, pinned_envoy()) {
        Ok(path) => path,
        Err(error) => {
            found.push(Found::error(about, &error.to_string()));
            return None;
        }
    };
    let version = match version_of(&path) {
        Ok(version) => version,
        Err(error) => {
            let text = format!(
                "`{}` is not an Envoy that runs here: {error}\nhint: `make envoy` gets {}",
                path.display(),
                pinned_envoy()
            );
            found.push(Found::error(about, &text));
            return None;
        }
    };
    let judged = judged(&path.display().to_string(), &version);
    let usable = judged.verdict != Verdict::Error;
    found.push(judged);
    usable.then_some((path, version))
}

/// Returns what a version is good for.
fn judged(path: &str, version: &str) -> Found {
    let about = "envoy";
    let is = format!("`{path}` is Envoy {version}");
    let parsed = Version::find(version);
    if parsed.is_none_or(|parsed| parsed < OLDEST) {
        let hint = settings::another_envoy();
        return Found::error(
            about,
            &format!("{is}; it must be {OLDEST} or later\nhint: {hint}"),
        );
    }
    let lacks: Vec<&str> = LACKS
        .into_iter()
        .filter(|(since, _)| parsed < Some(*since))
        .map(|(_, lack)| lack)
        .collect();
    if !lacks.is_empty() {
        let what = format!("{is}, which {}", lacks.join(", and "));
        let hint = format!("`make envoy` gets {}, which does", pinned_envoy());
        return Found::warning(about, what, hint);
    }
    if parsed > Version::find(pinned_envoy()) {
        let what = format!("{is}, which is newer than what egressctl was tested with");
        let hint = format!(
            "if it does not work, use {}: `make envoy` gets it",
            pinned_envoy()
        );
        return Found::warning(about, what, hint);
    }
    Found::ok(about, is)
}

/// Finds the wasm module.
fn filter(named: Option<&Path>, found: &mut Vec<Found>) -> Option<PathBuf> {
    let about = "filter";
    match locate::wasm(named) {
        // Source: WebAssembly Core Specification, 5.5.16, "Modules".
        Ok(path) => looked_at(about, path, b"\0asm\x01\0\0\0", found, |path| {
            format!(
                "`{path}` is not a wasm module that can be read\nhint: `make build` makes it, and `--wasm` names another"
            )
        }),
        Err(error) => {
            found.push(Found::error(about, &error.to_string()));
            None
        }
    }
}

/// Finds the native module. Without it `run` takes the wasm module, which does the same and costs more.
fn native(named: Option<&Path>, found: &mut Vec<Found>) {
    let about = "module";
    match locate::module(named) {
        Ok(path) => {
            // Source: System V ABI, "ELF Identification".
            looked_at(about, path, b"\x7fELF", found, |path| {
                format!(
                    "`{path}` is not a library that can be read\nhint: `make module` makes it, and `--module` names another"
                )
            });
        }
        Err(error) if named.is_some() => found.push(Found::error(about, &error.to_string())),
        Err(error) => {
            let hint = "`run` takes the wasm module in its place, which costs more per request";
            found.push(Found::warning(about, error.to_string(), hint.to_owned()));
        }
    }
}

/// Looks at a file of the filter, which must begin with these bytes.
fn looked_at(
    about: &'static str,
    path: PathBuf,
    begins: &[u8],
    found: &mut Vec<Found>,
    wrong: impl Fn(std::path::Display<'_>) -> String,
) -> Option<PathBuf> {
    let bytes = fs::read(&path).unwrap_or_default();
    if !bytes.starts_with(begins) {
        found.push(Found::error(about, &wrong(path.display())));
        return None;
    }
    let (kib, sum) = (bytes.len().div_ceil(1024), egress_run::sha256(&bytes));
    let what = format!("`{}`, {kib} KiB, sha256 {sum}", path.display());
    found.push(Found::ok(about, what));
    Some(path)
}

/// What has the arguments of every command that makes configuration.
#[derive(Debug, Parser)]
struct Defaults {
    #[command(flatten)]
    rules: Rules,
}

/// Returns the arguments that commands have when nothing was said.
fn defaults() -> Option<Rules> {
    let parsed = Defaults::try_parse_from(["egressctl", "--filename", STDIN]);
    parsed.ok().map(|parsed| parsed.rules)
}

/// Lets Envoy load the filter, with rules of ours.
fn load(envoy: &Path, version: &str, named: &Doctor) -> Found {
    let about = "load";
    match tried(envoy, version, named) {
        Ok("module") => Found::ok(
            about,
            "Envoy loads the native filter, which `run` takes, and the filter takes its rules",
        ),
        Ok(_) => Found::ok(
            about,
            "Envoy loads the wasm filter, which `run` takes, and the filter takes its rules",
        ),
        Err(text) => Found::error(about, &text),
    }
}

/// Lets Envoy load the filter that `run` would take; returns its form.
fn tried(envoy: &Path, version: &str, named: &Doctor) -> Result<&'static str, String> {
    let mut args = defaults().ok_or("cannot make settings")?;
    args.wasm.clone_from(&named.wasm);
    args.module.clone_from(&named.module);
    args.cheapest = true;
    let source = Source {
        name: "<doctor>".to_owned(),
        text: SAMPLE.to_owned(),
        mesh: false,
    };
    let compile_options = settings::compile_options(&args.input);
    let deployment = settings::settle_read(
        &args,
        || Ok(version.to_owned()),
        &[source],
        compile_options,
        How::default(),
    )
    .map_err(|_| "cannot render a bootstrap")?;
    let bootstrap = xds::bootstrap(
        &deployment.rules.table,
        &deployment.rules.resources(),
        &deployment.options,
    );
    let folder = tempfile::Builder::new()
        .prefix("egressctl-doctor-")
        .tempdir();
    let folder = folder.map_err(|error| format!("cannot make a folder: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(trial::load(envoy, folder.path(), &bootstrap))?;
    Ok(deployment.options.filter.form())
}

/// Counts what `system` trusts.
fn trust_store() -> Found {
    let about = "authorities";
    let path = match egress_credentials::trust_store() {
        Ok(path) => path,
        Err(error) => return Found::error(about, &error.to_string()),
    };
    let bytes = fs::read(&path).unwrap_or_default();
    let blocks = x509_parser::pem::Pem::iter_from_buffer(&bytes).filter_map(Result::ok);
    let count = blocks.filter(|block| block.label == "CERTIFICATE").count();
    match count {
        0 => Found::error(
            about,
            &format!(
                "`{path}` has no certificate in it\nhint: install ca-certificates, or name the bundle in SSL_CERT_FILE"
            ),
        ),
        _ => Found::ok(about, format!("`{path}` has {count}")),
    }
}

/// Takes as many inotify instances as a run does, and gives them back.
fn inotify() -> Found {
    use rustix::fs::inotify::{CreateFlags, init};
    let about = "inotify";
    let mut taken = Vec::new();
    while taken.len() < INOTIFY_NEEDED {
        match init(CreateFlags::CLOEXEC) {
            Ok(one) => taken.push(one),
            Err(error) => {
                let text = format!(
                    "a run needs {INOTIFY_NEEDED} inotify instance, and {} are left: {error}\nhint: `sysctl fs.inotify.max_user_instances=1024` allows more",
                    taken.len()
                );
                return Found::error(about, &text);
            }
        }
    }
    let limit = |name: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys/fs/inotify").join(name));
        text.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
    };
    Found::ok(
        about,
        format!(
            "{INOTIFY_NEEDED} instance can be had, of {}; {} files can be watched",
            limit("max_user_instances"),
            limit("max_user_watches")
        ),
    )
}

/// How many files a process may open: as it is, and as it may raise it.
fn soft_and_hard() -> (Option<u64>, Option<u64>) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    (limit.current, limit.maximum)
}

/// Judges how many files Envoy may open; it raises the limit to the hard one itself. `None` is no limit.
fn open_files((soft, hard): (Option<u64>, Option<u64>)) -> Found {
    let about = "files";
    let many =
        |limit: Option<u64>| limit.map_or("any number".to_owned(), |limit| limit.to_string());
    match hard {
        Some(limit) if limit < MANY_FILES => Found::warning(
            about,
            format!("Envoy may open {limit} files, and each request under way takes up to two"),
            "`ulimit -Hn 65536` allows more, and `LimitNOFILE=` in a unit of systemd",
        ),
        _ => Found::ok(
            about,
            format!(
                "{} may be open, and Envoy may have {}",
                many(soft),
                many(hard)
            ),
        ),
    }
}

/// Finds out whether ports below 1024 can be listened on.
fn low_ports() -> Found {
    let about = "ports";
    match TcpListener::bind(("127.0.0.1", LOW_PORT)) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Found::warning(
            about,
            "ports below 1024 cannot be listened on",
            "`--port 80=10080` listens elsewhere; `sysctl net.ipv4.ip_unprivileged_port_start=80` allows it",
        ),
        _ => Found::ok(about, "ports below 1024 can be listened on"),
    }
}

/// Looks at what `-f` and `--credentials` name, as `check` does.
fn rules_and_credentials(args: &Doctor, found: &mut Vec<Found>) {
    for folder in &args.credentials.folders {
        if !folder.is_dir() {
            let text = format!("`{}` is not a folder", folder.display());
            found.push(Found::error("credentials", &text));
            return;
        }
    }
    if args.files.is_empty() {
        return;
    }
    let Some(mut defaults) = defaults() else {
        return;
    };
    defaults.input.files.clone_from(&args.files);
    defaults.input.namespace.clone_from(&args.namespace);
    defaults.input.labels.clone_from(&args.labels);
    let sources = match settings::sources(&defaults.input) {
        Ok(sources) => sources,
        Err(error) => return found.push(Found::error("rules", &error.to_string())),
    };
    let compile_options = settings::compile_options(&defaults.input);
    match rules::compile(&sources, &compile_options) {
        Err(report) => found.push(summary("rules", &report, String::new())),
        Ok(mut rules) => {
            let all = rules.table.services().count();
            found.push(summary("rules", &rules.warnings, format!("{all} services")));
            let documents = std::mem::take(&mut rules.credentials);
            let store = Store::new(args.credentials.folders.clone(), documents, &args.namespace);
            let looked = credentials::inspect(&rules, &store, &compile_options, SystemTime::now());
            let all = SecretRequest::of(&rules.table).len();
            let good = format!("{all} needed");
            found.push(summary("credentials", &Report(looked), good));
        }
    }
}

/// Sums up what `check` tells one by one.
fn summary(about: &'static str, report: &Report, good: String) -> Found {
    let count = |severity: Severity| {
        let of_it = report.0.iter().filter(|one| one.severity == severity);
        of_it.count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let found = format!("errors: {errors}, warnings: {warnings}");
    let hint = "`egressctl check` with the same arguments tells each";
    match (errors, warnings) {
        (0, 0) => Found::ok(about, format!("no problems; {good}")),
        (0, _) => Found::warning(about, found, hint),
        _ => Found::error(about, &format!("{found}\nhint: {hint}")),
    }
}

/// Writes one line for each, and the way out below what is not well.
fn for_people(found: &[Found]) -> String {
    let mut text = String::new();
    for one in found {
        let (style, word) = (one.verdict.style(), one.verdict.word());
        let _ = writeln!(
            text,
            "{style}{word:<7}{style:#}  {:<11}  {}",
            one.about, one.what
        );
        if let Some(hint) = &one.hint {
            let _ = writeln!(text, "{:22}hint: {hint}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_judged_by_what_it_can_do() {
        for (version, verdict, says) in [
            ("1.35.9", Verdict::Error, "must be 1.36 or later"),
            ("1.36.4", Verdict::Warning, "--upstream-proxy"),
            ("1.38.2", Verdict::Ok, "Envoy 1.38.2"),
            (pinned_envoy(), Verdict::Ok, "is Envoy"),
            ("1.99.0", Verdict::Warning, "newer"),
        ] {
            let found = judged("/usr/bin/envoy", version);
            assert_eq!(found.verdict, verdict, "{version}: {found:?}");
            assert!(found.what.contains(says), "{version}: {found:?}");
            assert_eq!(found.hint.is_some(), verdict != Verdict::Ok, "{found:?}");
        }
    }

    #[test]
    fn few_open_files_are_warned_of() {
        let few = open_files((Some(256), Some(1024)));
        assert_eq!(few.verdict, Verdict::Warning);
        assert!(few.what.contains("1024 files"), "{few:?}");
        assert_eq!(
            open_files((Some(1024), Some(1_048_576))).verdict,
            Verdict::Ok
        );
        assert_eq!(open_files((None, None)).verdict, Verdict::Ok);
    }

    #[test]
    fn the_list_is_plain_but_for_its_colours() {
        let found = [
            Found::ok("ports", "fine"),
            Found::error("envoy", "gone\nhint: get one"),
        ];
        let text = anstream::adapter::strip_str(&for_people(&found)).to_string();
        assert_eq!(
            text,
            "ok       ports        fine\nerror    envoy        gone\n                      hint: get one\n"
        );
    }
}
