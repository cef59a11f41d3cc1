//! A real tinyproxy of a test's own: the proxy of a company, through which all has to go.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    process::Command,
    time::{Instant, sleep},
};

use crate::{child::OwnedChild, workspace};

/// How long tinyproxy may take to listen.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How many ports are tried: one that was free may be taken by somebody else a moment later.
const PORTS: usize = 5;
/// How often it is tried whether tinyproxy listens.
const INTERVAL: Duration = Duration::from_millis(20);

/// Finds the tinyproxy to test with: the variable `TINYPROXY`, else what `make tinyproxy` unpacked, else the
/// machine's own. The order is that of `.setup/tinyproxy.sh`.
///
/// # Errors
///
/// When there is none; the message says what to type.
pub fn binary() -> Result<PathBuf> {
    if let Some(chosen) = std::env::var_os("TINYPROXY").filter(|path| !path.is_empty()) {
        let chosen = PathBuf::from(chosen);
        let shown = chosen.display();
        ensure!(chosen.is_file(), "TINYPROXY names no file: `{shown}`");
        return Ok(chosen);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("tinyproxy"));
    let machine = on_path.chain(["/usr/bin/tinyproxy".into()]);
    let mut found = unpacked(workspace::root()).into_iter().chain(machine);
    found
        .find(|path| path.is_file())
        .context("there is no tinyproxy; type `make tinyproxy`")
}

fn unpacked(workspace: &Path) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(workspace.join(".tools"));
    let mut found: Vec<_> = folder
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("tinyproxy-")
        })
        .map(|entry| entry.path().join("usr/bin/tinyproxy"))
        .collect();
    found.sort();
    found
}

/// A running tinyproxy. Dropping it kills it.
pub struct Tinyproxy {
    addr: SocketAddr,
    child: OwnedChild,
    _folder: TempDir,
}

impl Tinyproxy {
    /// Starts it with these lines of configuration besides the address, for example `ConnectPort 443`.
    ///
    /// # Errors
    ///
    /// When there is none, or it does not listen in time.
    pub async fn start(lines: &[String]) -> Result<Self> {
        let binary = binary()?;
        let mut said = String::new();
        for _ in 0..PORTS {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await?
                .local_addr()?
                .port();
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("tinyproxy.conf");
            let own = format!("Listen 127.0.0.1\nPort {port}\nTimeout 60\nLogLevel Connect\n");
            std::fs::write(&path, own + &lines.join("\n") + "\n")?;
            let mut command = Command::new(&binary);
            // In the foreground; without a log file it tells its standard output.
            command.arg("-d").arg("-c").arg(path);
            let child = OwnedChild::spawn(command)?;
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            match Self::ready(addr, child, folder).await? {
                Ok(running) => return Ok(running),
                Err(tail) => said = tail,
            }
        }
        bail!("tinyproxy does not stay; it said:\n{said}")
    }

    /// Waits until it listens, or has ended with some words.
    async fn ready(
        addr: SocketAddr,
        mut child: OwnedChild,
        folder: TempDir,
    ) -> Result<Result<Self, String>> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            tokio::select! {
                status = child.exited() => {
                    let (status, child) = (status?, &child);
                    let (out, error) = (child.stdout().tail(), child.stderr().tail());
                    return Ok(Err(format!("{status}\n{out}\n{error}")));
                }
                () = sleep(INTERVAL) => {}
            }
            if TcpStream::connect(addr).await.is_ok() {
                return Ok(Ok(Self {
                    addr,
                    child,
                    _folder: folder,
                }));
            }
            ensure!(
                Instant::now() < deadline,
                "tinyproxy does not listen: {}",
                child.stdout().tail()
            );
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The hosts and ports it was asked for by CONNECT, in order.
    pub fn asked(&self) -> Vec<String> {
        let lines = self.child.stdout().all();
        let asked = lines.iter().filter_map(|line| {
            let (_, request) = line.split_once("): CONNECT ")?;
            Some(request.split(' ').next()?.to_owned())
        });
        asked.collect()
    }
}
