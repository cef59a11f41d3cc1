//! The product as its users start it: `egressctl run`, owned by a test.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{sys::signal::Signal, unistd::Pid};
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};

use crate::{
    child::OwnedChild,
    probe::{self, Answer},
    workspace,
};

/// How long `run` may take until it is ready: the first start of a fresh machine compiles the wasm
/// module, and other builds may be running beside it.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long a clean end may take.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How often the access log is read while something is expected in it. It is a file that another
/// process appends to, which gives no sign that could be awaited.
const LOG_INTERVAL: Duration = Duration::from_millis(20);

/// Finds the `egressctl` to test: the variable `EGRESSCTL`, else what `make build` left in the
/// workspace's `target/release`, else `target/debug`.
///
/// # Errors
///
/// When there is none; the message says what to type.
pub fn binary() -> Result<PathBuf> {
    find(workspace::root(), std::env::var_os("EGRESSCTL"))
}

/// How to run `egressctl`.
pub struct Egressctl;

impl Egressctl {
    /// A run with no rules, ports or variables yet.
    pub fn builder() -> Builder {
        Builder {
            binary: None,
            rules: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            ready_limit: READY_LIMIT,
        }
    }
}

/// A run of `egressctl` to be.
#[derive(Clone, Debug)]
pub struct Builder {
    binary: Option<PathBuf>,
    rules: Vec<Rules>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    ready_limit: Duration,
}

#[derive(Clone, Debug)]
enum Rules {
    Path(PathBuf),
    Text(String),
    Stdin(String),
}

impl Builder {
    /// Runs this program and not the one that [`binary`] finds.
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Adds `-f` with a file or folder.
    #[must_use]
    pub fn rules(mut self, path: impl Into<PathBuf>) -> Self {
        self.rules.push(Rules::Path(path.into()));
        self
    }

    /// Adds `-f` with a file that holds this text.
    #[must_use]
    pub fn rules_text(mut self, text: impl Into<String>) -> Self {
        self.rules.push(Rules::Text(text.into()));
        self
    }

    /// Adds `-f -` and gives it this text to read.
    #[must_use]
    pub fn rules_on_stdin(mut self, text: impl Into<String>) -> Self {
        self.rules.push(Rules::Stdin(text.into()));
        self
    }

    /// Adds `--port SERVICE=LISTEN`, where a `listen` of 0 lets the kernel choose.
    #[must_use]
    pub fn port(self, service: u16, listen: u16) -> Self {
        self.arg("--port").arg(format!("{service}={listen}"))
    }

    /// Adds `--connect-to`, for example `edition.cnn.com:443:127.0.0.1:41235`.
    #[must_use]
    pub fn connect_to(self, route: &str) -> Self {
        self.arg("--connect-to").arg(route)
    }

    /// Adds one more argument as it is.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// How long to wait until it is ready; a minute unless told.
    #[must_use]
    pub fn ready_limit(mut self, limit: Duration) -> Self {
        self.ready_limit = limit;
        self
    }

    /// Starts it with `--admin 127.0.0.1:0` and an access log of its own, and waits for its line
    /// `ready`.
    ///
    /// # Errors
    ///
    /// [`EndedEarly`] when it ends before it is ready. Otherwise when there is no program to run,
    /// when the time is over, or when the line makes no sense.
    pub async fn start(self) -> Result<Running> {
        let binary = match self.binary {
            Some(path) => path,
            None => binary()?,
        };
        let folder = tempfile::tempdir()?;
        let access_log = folder.path().join("access.log");

        let mut command = Command::new(binary);
        command.arg("run");
        let mut stdin = Stdio::null();
        for (index, rules) in self.rules.into_iter().enumerate() {
            let path = match rules {
                Rules::Path(path) => path,
                Rules::Text(text) => {
                    let path = folder.path().join(format!("rules-{index}.yaml"));
                    std::fs::write(&path, text)?;
                    path
                }
                Rules::Stdin(text) => {
                    let path = folder.path().join(format!("stdin-{index}"));
                    std::fs::write(&path, text)?;
                    stdin = File::open(path)?.into();
                    "-".into()
                }
            };
            command.arg("-f").arg(path);
        }
        command.args(["--admin", "127.0.0.1:0", "--access-log"]);
        command.arg(&access_log).args(self.args).envs(self.env);
        // The form of the filter for whole runs of the tests; a test that is about one form names it, or asks for what
        // one form has.
        const NAMES: [&str; 4] = ["--filter", "--wasm", "--module", "--labels-from-node"];
        let args = command.as_std();
        let named = NAMES
            .iter()
            .any(|flag| args.get_args().any(|arg| arg == *flag));
        if let (Some(form), false) = (std::env::var_os("EGRESS_FILTER"), named) {
            command.arg("--filter").arg(form);
        }

        let mut child = OwnedChild::spawn_reading(command, stdin)?;
        let stdout = child.stdout().clone();
        let ready = tokio::select! {
            // A program that was ready and then ended was ready.
            biased;
            line = stdout.wait_for(is_ready) => line,
            status = child.exited() => {
                let (status, stderr) = (status?, child.stderr().all().join("\n"));
                return Err(EndedEarly { status, stderr }.into());
            }
            () = tokio::time::sleep(self.ready_limit) => bail!(
                "`egressctl run` was not ready within {:?}; its stderr:\n{}",
                self.ready_limit,
                child.stderr().tail()
            ),
        };
        Ok(Running {
            ready: parse_ready(&ready)?,
            child,
            access_log,
            _folder: folder,
        })
    }
}

/// `egressctl run` ended before it was ready.
#[derive(Debug, thiserror::Error)]
#[error("`egressctl run` ended before it was ready, {status}; its stderr:\n{stderr}")]
pub struct EndedEarly {
    /// How it ended.
    pub status: ExitStatus,
    /// All that it said.
    pub stderr: String,
}

/// A running `egressctl run`. Dropping it kills it and the Envoy it started.
pub struct Running {
    ready: BTreeMap<String, String>,
    child: OwnedChild,
    access_log: PathBuf,
    _folder: TempDir,
}

impl Running {
    /// Where the listener of a service port is.
    ///
    /// # Errors
    ///
    /// When the line `ready` did not name it.
    pub fn listener(&self, service_port: u16) -> Result<SocketAddr> {
        self.address(&service_port.to_string())
    }

    /// Where the forward proxy is.
    ///
    /// # Errors
    ///
    /// When the line `ready` did not name it.
    pub fn forward_proxy(&self) -> Result<SocketAddr> {
        self.address("forward-proxy")
    }

    /// Where Envoy's admin interface is.
    ///
    /// # Errors
    ///
    /// When the line `ready` did not name it.
    pub fn admin(&self) -> Result<SocketAddr> {
        self.address("admin")
    }

    /// The form of the filter: `wasm` or `module`.
    ///
    /// # Errors
    ///
    /// When the line `ready` does not say it.
    pub fn filter(&self) -> Result<&str> {
        let form = self.ready.get("filter").map(String::as_str);
        form.with_context(|| format!("`egressctl run` does not say its filter: {:?}", self.ready))
    }

    /// Where probes ask.
    ///
    /// # Errors
    ///
    /// When the line `ready` did not name it.
    pub fn status(&self) -> Result<SocketAddr> {
        self.address("status")
    }

    /// Asks Envoy's admin interface.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn admin_get(&self, path: &str) -> Result<Answer> {
        probe::get(self.admin()?, "admin", path).await
    }

    /// The lines of the access log so far. Envoy writes them with a delay.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub fn access_log(&self) -> Result<Vec<String>> {
        match std::fs::read_to_string(&self.access_log) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).context("cannot read the access log"),
        }
    }

    /// Waits for a line in the access log, and returns the first one that fits.
    ///
    /// # Errors
    ///
    /// When the time is over; the message shows the log, and the end of stderr.
    pub async fn wait_for_log(
        &self,
        wanted: impl Fn(&str) -> bool,
        limit: Duration,
    ) -> Result<String> {
        let found = async {
            loop {
                let log = self.access_log()?;
                if let Some(line) = log.into_iter().find(|line| wanted(line)) {
                    return Ok(line);
                }
                tokio::time::sleep(LOG_INTERVAL).await;
            }
        };
        match timeout(limit, found).await {
            Ok(found) => found,
            Err(_) => bail!(
                "no such line in the access log within {limit:?}; the log:\n{}\nstderr:\n{}",
                self.access_log()?.join("\n"),
                self.child.stderr().tail()
            ),
        }
    }

    /// Waits for a line on stderr, which may have been written already.
    ///
    /// # Errors
    ///
    /// When the time is over; the message shows the end of stderr.
    pub async fn wait_for_stderr(
        &self,
        wanted: impl Fn(&str) -> bool,
        limit: Duration,
    ) -> Result<String> {
        match timeout(limit, self.child.stderr().wait_for(wanted)).await {
            Ok(line) => Ok(line),
            Err(_) => bail!(
                "no such line on stderr within {limit:?}; its end:\n{}",
                self.child.stderr().tail()
            ),
        }
    }

    /// Sends a signal to `egressctl` alone.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.child.signal(signal)
    }

    /// The lines of stdout so far, the line `ready` among them.
    pub fn stdout(&self) -> Vec<String> {
        self.child.stdout().all()
    }

    /// The lines of stderr so far, Envoy's log among them.
    pub fn stderr(&self) -> Vec<String> {
        self.child.stderr().all()
    }

    /// The process of `egressctl`.
    pub fn pid(&self) -> Pid {
        self.child.pid()
    }

    /// Sends SIGINT, as Ctrl-C does, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// When it had ended before, does not end within half a minute, or leaves a process behind.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        let stopped = self.child.stop(Signal::SIGINT, STOP_LIMIT).await;
        stopped.context("cannot stop `egressctl run`")
    }

    /// Waits until it has ended, which it was asked to before.
    ///
    /// # Errors
    ///
    /// When it does not end within half a minute, or leaves a process behind.
    pub async fn ended(mut self) -> Result<ExitStatus> {
        self.child.ended(STOP_LIMIT).await
    }

    /// Where the access log is.
    pub fn access_log_path(&self) -> &Path {
        &self.access_log
    }

    /// Kills it as nobody should, and waits until the Envoy it started has gone too.
    ///
    /// # Errors
    ///
    /// When Envoy stays for half a minute.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill_alone(STOP_LIMIT).await
    }

    fn address(&self, key: &str) -> Result<SocketAddr> {
        let value = self.ready.get(key);
        let value = value.with_context(|| {
            format!("`egressctl run` is ready without `{key}`: {:?}", self.ready)
        })?;
        value
            .parse()
            .with_context(|| format!("no address: `{key}={value}`"))
    }
}

fn find(workspace: &Path, chosen: Option<OsString>) -> Result<PathBuf> {
    if let Some(path) = chosen.filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return match path.is_file() {
            true => Ok(path),
            false => Err(anyhow!("EGRESSCTL names no file: `{}`", path.display())),
        };
    }
    let built = ["release", "debug"]
        .map(|profile| workspace.join("target").join(profile).join("egressctl"));
    let found = built.into_iter().find(|path| path.is_file());
    found.context("there is no `egressctl` in target/release; type `make build`")
}

fn is_ready(line: &str) -> bool {
    line == "ready" || line.starts_with("ready ")
}

/// Reads `ready 80=127.0.0.1:41234 filter=module admin=127.0.0.1:9901` as keys and values.
fn parse_ready(line: &str) -> Result<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for word in line.split_ascii_whitespace().skip(1) {
        let (key, value) = word
            .split_once('=')
            .with_context(|| format!("`{word}` is not key=value in `{line}`"))?;
        let twice = pairs.insert(key.to_owned(), value.to_owned()).is_some();
        if twice {
            bail!("`{key}` comes twice in `{line}`");
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_keys_and_values() -> Result<()> {
        let pairs = parse_ready("ready 80=127.0.0.1:41234 admin=127.0.0.1:9901")?;
        assert_eq!(pairs.get("80").map(String::as_str), Some("127.0.0.1:41234"));
        assert_eq!(
            pairs.get("admin").map(String::as_str),
            Some("127.0.0.1:9901")
        );
        assert_eq!(pairs.len(), 2);
        Ok(())
    }

    #[test]
    fn a_ready_line_that_makes_no_sense_is_refused() {
        assert!(parse_ready("ready 80").is_err());
        assert!(parse_ready("ready 80=a 80=b").is_err());
    }

    #[test]
    fn only_the_word_ready_is_ready() {
        assert!(is_ready("ready 80=127.0.0.1:1"));
        assert!(!is_ready("readying"));
        assert!(!is_ready("not ready 80=127.0.0.1:1"));
    }

    #[test]
    fn a_release_build_is_found_before_a_debug_build() -> Result<()> {
        let workspace = tempfile::tempdir()?;
        let missing = find(workspace.path(), None).map_err(|error| error.to_string());
        assert!(
            matches!(&missing, Err(text) if text.contains("make build")),
            "{missing:?}"
        );
        for profile in ["debug", "release"] {
            let folder = workspace.path().join("target").join(profile);
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("egressctl"), "")?;
            assert_eq!(find(workspace.path(), None)?, folder.join("egressctl"));
        }
        Ok(())
    }

    #[test]
    fn the_variable_wins_and_must_name_a_file() -> Result<()> {
        let workspace = tempfile::tempdir()?;
        let chosen = workspace.path().join("mine");
        assert!(find(workspace.path(), Some(chosen.clone().into())).is_err());
        std::fs::write(&chosen, "")?;
        assert_eq!(find(workspace.path(), Some(chosen.clone().into()))?, chosen);
        Ok(())
    }
}
