//! A real redis that speaks TLS only, and its own client.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::{net::TcpStream, process::Command, time::timeout};

use crate::{
    child::OwnedChild,
    pki::{Ca, Issued},
    workspace,
};

/// How long it may take until redis listens.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long one command of the client may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Finds redis-server: the variable `REDIS_SERVER`, else what `make redis` unpacked or found.
///
/// # Errors
///
/// When there is none; the message says what to type.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("REDIS_SERVER").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let unpacked = std::fs::read_dir(workspace::root().join(".tools"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("redis-"))
        .map(|entry| entry.path().join("usr/bin/redis-server"));
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path)
        .map(|folder| folder.join("redis-server"))
        .collect::<Vec<_>>();
    let found = unpacked.chain(on_path).find(|path| path.is_file());
    found.context("there is no redis-server; type `make redis`")
}

/// A redis on 127.0.0.1 that has no port without TLS. Dropping it kills it.
pub struct Redis {
    addr: SocketAddr,
    _child: OwnedChild,
    _folder: TempDir,
}

impl Redis {
    /// Starts it with a certificate; with `clients`, it takes those only that this authority vouches for.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub async fn start(certificate: &Issued, clients: Option<&Ca>) -> Result<Self> {
        // Redis cannot be told to let the kernel choose, so a port that is free now is tried.
        let mut last = None;
        for _ in 0..5 {
            match Self::on_free_port(certificate, clients).await {
                Ok(redis) => return Ok(redis),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("redis was not tried")?)
    }

    async fn on_free_port(certificate: &Issued, clients: Option<&Ca>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        certificate.write(folder.path(), "tls")?;
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new(binary()?);
        command
            .args(["--port", "0", "--bind", "127.0.0.1", "--save", ""])
            .arg("--tls-port")
            .arg(free.port().to_string())
            .arg("--dir")
            .arg(folder.path())
            .arg("--tls-cert-file")
            .arg(path("tls.crt"))
            .arg("--tls-key-file")
            .arg(path("tls.key"));
        match clients {
            Some(ca) => {
                ca.write_pem(&path("ca.crt"))?;
                command.args(["--tls-auth-clients", "yes", "--tls-ca-cert-file"]);
                command.arg(path("ca.crt"));
            }
            None => {
                command.args(["--tls-auth-clients", "no"]);
            }
        }
        let mut child = OwnedChild::spawn_reading(command, Stdio::null())?;
        let stdout = child.stdout().clone();
        tokio::select! {
            _ = stdout.wait_for(|line| line.contains("Ready to accept connections")) => {}
            status = child.exited() => bail!("redis ended, {}: {}", status?, stdout.all().join("\n")),
            () = tokio::time::sleep(READY_LIMIT) => bail!("redis is not ready: {}", stdout.tail()),
        }
        TcpStream::connect(free).await?;
        Ok(Self {
            addr: free,
            _child: child,
            _folder: folder,
        })
    }

    /// Where it speaks TLS.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Runs one command of redis' own client, without TLS, and returns what it printed.
///
/// # Errors
///
/// When there is no client, or no answer in time.
pub async fn cli(server: SocketAddr, words: &[&str]) -> Result<String> {
    let mut command = Command::new(binary()?.with_file_name("redis-cli"));
    command
        .arg("-h")
        .arg(server.ip().to_string())
        .arg("-p")
        .arg(server.port().to_string())
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(ANSWER_LIMIT, command.output())
        .await
        .with_context(|| format!("redis-cli {words:?} did not end"))??;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}
