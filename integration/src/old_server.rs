//! A server that is old: `openssl s_server`, which speaks what modern servers no longer speak.
//!
//! Its messages, in hexadecimal digits on its standard output, are what it saw.

use std::{
    io::{PipeWriter, Write as _},
    net::SocketAddr,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};

use crate::{
    child::OwnedChild,
    pki::{Ca, Issued},
};

/// How long it may take until it listens, or until something comes that is on its way.
const LIMIT: Duration = Duration::from_secs(20);

/// The server. Dropping it ends it.
pub struct OldServer {
    addr: SocketAddr,
    child: OwnedChild,
    keyboard: PipeWriter,
    /// How many lines of its output were looked through by [`OldServer::serve`].
    seen: usize,
    _folder: TempDir,
}

/// What became of a request that [`OldServer::serve`] took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its first line and its headers.
    pub head: Vec<String>,
    /// It was answered: the connection lived on until then.
    pub answered: bool,
}

/// A ClientHello, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// All of it, without the header of its record.
    pub bytes: Vec<u8>,
}

impl Hello {
    /// Whether it has this text somewhere, such as the name of a host.
    pub fn has(&self, text: &str) -> bool {
        let mut windows = self.bytes.windows(text.len());
        windows.any(|window| window == text.as_bytes())
    }
}

impl OldServer {
    /// Starts one that answers each request with a page about its connection, and then ends that. `args` are more of
    /// `s_server`'s, with spaces between them.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub async fn pages(certificate: &Issued, args: &str) -> Result<Self> {
        Self::start(certificate, None, &format!("-www {args}")).await
    }

    /// Starts one that does what [`OldServer::serve`] says. It may ask for certificates of `clients`.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub async fn by_hand(certificate: &Issued, clients: Option<&Ca>, args: &str) -> Result<Self> {
        Self::start(certificate, clients, &format!("-crlf {args}")).await
    }

    async fn start(certificate: &Issued, clients: Option<&Ca>, args: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (chain, key) = certificate.write(folder.path(), "server")?;
        let (hands, keyboard) = std::io::pipe()?;
        let mut command = Command::new("openssl");
        command
            .args(["s_server", "-accept", "127.0.0.1:0", "-msg"])
            .arg("-cert")
            .arg(&chain)
            .arg("-cert_chain")
            .arg(&chain)
            .arg("-key")
            .arg(key)
            .args(args.split_ascii_whitespace())
            .env_remove("OPENSSL_CONF");
        if let Some(ca) = clients {
            let path = folder.path().join("clients.crt");
            ca.write_pem(&path)?;
            command.arg("-CAfile").arg(path);
        }
        let mut child = OwnedChild::spawn_reading(command, Stdio::from(hands))?;
        let stdout = child.stdout().clone();
        let listens = stdout.wait_for(|line| line.starts_with("ACCEPT "));
        let line = tokio::select! {
            line = timeout(LIMIT, listens) => line.context("`openssl s_server` does not listen")?,
            status = child.exited() => {
                bail!("`openssl s_server {args}` ended, {}: {}", status?, child.stderr().tail())
            }
        };
        let addr = line.trim_start_matches("ACCEPT ").parse()?;
        Ok(Self {
            addr,
            child,
            keyboard,
            seen: 0,
            _folder: folder,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it printed so far: its messages, and what came inside of TLS.
    pub fn output(&self) -> Vec<String> {
        self.child.stdout().all()
    }

    /// The ClientHellos so far, those of renegotiations too.
    pub fn hellos(&self) -> Vec<Hello> {
        let mut hellos: Vec<Hello> = Vec::new();
        let mut within = false;
        for line in self.output() {
            match line.strip_prefix("    ") {
                Some(digits) if within => {
                    let bytes = digits.split_ascii_whitespace();
                    let bytes = bytes.filter_map(|byte| u8::from_str_radix(byte, 16).ok());
                    hellos
                        .last_mut()
                        .into_iter()
                        .for_each(|hello| hello.bytes.extend(bytes.clone()));
                }
                _ => {
                    within = line.starts_with("<<< ") && line.ends_with(", ClientHello");
                    if within {
                        hellos.push(Hello { bytes: Vec::new() });
                    }
                }
            }
        }
        hellos
    }

    /// What it wrote besides: what it found of certificates.
    pub fn remarks(&self) -> Vec<String> {
        self.child.stderr().all()
    }

    /// Waits for the next request, gives the server a command behind it (`r` renegotiates, `R` asks for a certificate
    /// as well), and once that is done answers with status 200.
    ///
    /// # Errors
    ///
    /// When no request comes, or neither a handshake nor the end of the connection follows the command.
    pub async fn serve(&mut self, command: &str) -> Result<Served> {
        let (head, seen) = self
            .until(self.seen, |lines| {
                let begins = lines.iter().position(|line| line.ends_with(" HTTP/1.1"))?;
                let head = lines.get(begins..)?;
                let length = head.iter().position(String::is_empty)?;
                Some((head.get(..length)?.to_vec(), begins + length))
            })
            .await
            .context("no request came")?;
        self.seen += seen;
        let mut answered = true;
        if !command.is_empty() {
            // At once: what the server reads in pieces, it takes for text behind the command.
            self.keyboard.write_all(format!("{command}\n").as_bytes())?;
            let over = |lines: &[String]| {
                let finished = lines.iter().filter(|line| line.ends_with(", Finished"));
                let broken = lines.iter().position(|line| line.contains(", Alert"));
                match broken {
                    Some(at) => Some((false, at + 1)),
                    None => (finished.count() == 2).then_some((true, lines.len())),
                }
            };
            let ended = self.until(self.seen, over).await;
            let (good, seen) = ended.context("nothing came of the command")?;
            self.seen += seen;
            answered = good;
        }
        if answered {
            let answer = "HTTP/1.1 200 OK\nContent-Length: 0\nConnection: close\n\n";
            self.keyboard.write_all(answer.as_bytes())?;
        }
        Ok(Served { head, answered })
    }

    /// Waits until what was printed behind the first lines has what is looked for.
    async fn until<T>(&self, before: usize, found: impl Fn(&[String]) -> Option<T>) -> Result<T> {
        let waiting = async {
            loop {
                let lines = self.output();
                if let Some(found) = lines.get(before..).and_then(&found) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = timeout(LIMIT, waiting).await;
        waited.with_context(|| format!("not in time; it said\n{}", self.output().join("\n")))
    }
}
