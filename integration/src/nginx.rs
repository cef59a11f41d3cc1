//! A real nginx of a test's own, with the task page's configuration.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    process::Command,
    time::{Instant, sleep},
};

use crate::{child::OwnedChild, workspace};

/// The page's `nginx.conf`.
const PAGE: &str = include_str!("../scenarios/my-nginx.conf");
/// How long nginx may take to listen. It tries a port that is taken for two and a half seconds.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How many ports are tried: one that was free may be taken by somebody else a moment later.
const PORTS: usize = 5;
/// How often files are read that nginx writes, which gives no sign that could be awaited.
const FILE_INTERVAL: Duration = Duration::from_millis(10);

/// What nginx tells of each request, besides the page's own log. Source: nginx.org,
/// `ngx_http_ssl_module`, "Embedded Variables"; `ngx_http_log_module`, `log_format`.
const WITNESS: &str = r#"log_format witness escape=json
  '{"verified":"$ssl_client_verify","subject":"$ssl_client_s_dn","tls_version":"$ssl_protocol",'
  '"sni":"$ssl_server_name","host":"$host","https":"$https",'
  '"x_forwarded_proto":"$http_x_forwarded_proto","status":"$status","request":"$request"}';"#;

/// Finds the nginx to test with: the variable `NGINX`, else what `make nginx` unpacked, else the
/// machine's own. The order is that of `.setup/nginx.sh`.
///
/// # Errors
///
/// When there is none; the message says what to type.
pub fn binary() -> Result<PathBuf> {
    if let Some(chosen) = std::env::var_os("NGINX").filter(|path| !path.is_empty()) {
        let chosen = PathBuf::from(chosen);
        ensure!(
            chosen.is_file(),
            "NGINX names no file: `{}`",
            chosen.display()
        );
        return Ok(chosen);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nginx"));
    let machine = on_path.chain(["/usr/sbin/nginx".into()]);
    let mut found = unpacked(workspace::root())?.into_iter().chain(machine);
    found
        .find(|path| path.is_file() && welcome_folder(path).is_ok())
        .context("there is no nginx; type `make nginx`")
}

/// The nginx to be: the page's configuration, with what a test changes in it.
#[derive(Clone, Debug)]
pub struct NginxConfig {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
    verify_client: VerifyClient,
    directives: Vec<String>,
    http: Vec<String>,
}

/// `ssl_verify_client`. Source: nginx.org, `ngx_http_ssl_module`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyClient {
    /// Answers 400 to whoever shows none, or a wrong one. The page's.
    On,
    /// Answers 400 to whoever shows a wrong one.
    Optional,
    /// Asks for none.
    Off,
}

impl NginxConfig {
    /// The page's nginx, with a server certificate, its key, and the authority of its clients.
    pub fn new(
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
        ca: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            certificate: certificate.into(),
            key: key.into(),
            ca: ca.into(),
            verify_client: VerifyClient::On,
            directives: Vec::new(),
            http: Vec::new(),
        }
    }

    /// As [`NginxConfig::new`], with the files that the page's commands leave in `folder`.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read.
    pub fn page(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))
        };
        Ok(Self::new(
            read("my-nginx.mesh-external.svc.cluster.local.crt")?,
            read("my-nginx.mesh-external.svc.cluster.local.key")?,
            read("example.com.crt")?,
        ))
    }

    /// The same nginx with another `ssl_verify_client`.
    #[must_use]
    pub fn verify_client(mut self, verify_client: VerifyClient) -> Self {
        self.verify_client = verify_client;
        self
    }

    /// Adds a directive to the page's server, such as `ssl_protocols TLSv1.2;`.
    #[must_use]
    pub fn directive(mut self, text: impl Into<String>) -> Self {
        self.directives.push(text.into());
        self
    }

    /// Adds a server block, or another block of `http`. In it, the page's paths and `listen 443 ssl`
    /// mean what they mean in the page's server.
    #[must_use]
    pub fn block(mut self, text: impl Into<String>) -> Self {
        self.http.push(text.into());
        self
    }

    /// The page's text with what differs on this machine put in.
    fn text(&self, folder: &Path, html: &Path, addr: SocketAddr) -> Result<String> {
        let (folder, html) = (quotable(folder)?, quotable(html)?);
        let mut more = vec![WITNESS.to_owned()];
        more.push(format!("access_log {folder}/witness.log witness;"));
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            more.push(format!("{kind}_temp_path {folder}/{kind};"));
        }
        more.extend(self.http.iter().cloned());
        let verify = match self.verify_client {
            VerifyClient::On => "ssl_verify_client on;",
            VerifyClient::Optional => "ssl_verify_client optional;",
            VerifyClient::Off => "ssl_verify_client off;",
        };
        let directives = self.directives.join("\n    ");
        let mut text = PAGE.to_owned();
        // The server first: added blocks may say the same.
        for (page, ours) in [
            (
                "ssl_verify_client on;",
                format!("{verify}\n    {directives}"),
            ),
            ("http {\n", format!("http {{\n{}\n", more.join("\n"))),
        ] {
            ensure!(text.contains(page), "the page's nginx.conf has no `{page}`");
            text = text.replacen(page, &ours, 1);
        }
        // Everywhere, so that they mean the same in added blocks.
        Ok(text
            .replace("listen 443 ssl", &format!("listen {addr} ssl"))
            .replace("/usr/share/nginx/html", html)
            .replace("/etc/nginx-", &format!("{folder}/nginx-"))
            .replace("/var/log/nginx/", &format!("{folder}/")))
    }
}

/// A running nginx. Dropping it kills it.
pub struct Nginx {
    addr: SocketAddr,
    child: OwnedChild,
    folder: TempDir,
}

impl Nginx {
    /// Starts nginx on a port of 127.0.0.1, and waits until it listens.
    ///
    /// It is one process of this user, root or not, whose files are all in a folder of its own.
    ///
    /// # Errors
    ///
    /// When there is no nginx, when it refuses the configuration, or when it does not listen in time.
    pub async fn start(config: &NginxConfig) -> Result<Self> {
        let binary = binary()?;
        let html = welcome_folder(&binary)?;
        let mut taken = String::new();
        for _ in 0..PORTS {
            match Self::try_port(&binary, &html, config, free_port().await?).await? {
                Ok(nginx) => return Ok(nginx),
                Err(stderr) => taken = stderr,
            }
        }
        bail!("{PORTS} ports that were free were taken a moment later: {taken}")
    }

    /// Starts it on this port; the inner error is that the port is taken.
    async fn try_port(
        binary: &Path,
        html: &Path,
        config: &NginxConfig,
        addr: SocketAddr,
    ) -> Result<Result<Self, String>> {
        let folder = tempfile::Builder::new().prefix("nginx-").tempdir()?;
        let root = folder.path();
        for (name, content) in [
            ("nginx-server-certs/tls.crt", &config.certificate),
            ("nginx-server-certs/tls.key", &config.key),
            ("nginx-ca-certs/example.com.crt", &config.ca),
        ] {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().context("no folder")?)?;
            std::fs::write(path, content)?;
        }
        std::fs::write(root.join("nginx.conf"), config.text(root, html, addr)?)?;

        let mut command = Command::new(binary);
        let own = quotable(root)?;
        command
            .arg("-p")
            .arg(root)
            .arg("-c")
            .arg(root.join("nginx.conf"))
            .args(["-e", "stderr", "-g"])
            // A master would give its worker to the user `nobody`, who cannot read our files.
            .arg(format!(
                "daemon off; master_process off; pid {own}/pid; lock_file {own}/lock;"
            ))
            // nginx reads it too, as sockets to inherit.
            .env_remove("NGINX");
        let mut child = OwnedChild::spawn(command)?;

        // Written when nginx listens.
        let pid = root.join("pid");
        let listens = async {
            while !std::fs::metadata(&pid).is_ok_and(|file| file.len() > 0) {
                sleep(FILE_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            () = listens => {}
            status = child.exited() => {
                let (status, stderr) = (status?, child.stderr().tail());
                if stderr.contains("Address already in use") {
                    return Ok(Err(stderr));
                }
                bail!("nginx ended before it was ready, {status}; its stderr:\n{stderr}");
            }
            () = sleep(READY_LIMIT) => {
                let stderr = child.stderr().tail();
                bail!("nginx did not listen within {READY_LIMIT:?}; its stderr:\n{stderr}");
            }
        }
        Ok(Ok(Self {
            addr,
            child,
            folder,
        }))
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The page's own access log, line by line.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn access_log(&self) -> Result<Vec<String>> {
        self.lines("access.log")
    }

    /// The page's own error log, line by line.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn error_log(&self) -> Result<Vec<String>> {
        self.lines("error.log")
    }

    /// The requests so far. A client has its answer before nginx writes it down.
    ///
    /// # Errors
    ///
    /// When the log cannot be read or makes no sense.
    pub fn seen(&self) -> Result<Vec<Seen>> {
        let lines = self.lines("witness.log")?;
        let seen = lines.iter().map(|line| {
            serde_json::from_str(line).with_context(|| format!("no request of nginx: {line}"))
        });
        seen.collect()
    }

    /// Waits until [`Nginx::seen`] has `requests` of them, and returns it.
    ///
    /// # Errors
    ///
    /// When the time is over; the message tells what did arrive, and what nginx says.
    pub async fn wait_for(&self, requests: usize, limit: Duration) -> Result<Vec<Seen>> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.seen()?;
            if seen.len() >= requests {
                return Ok(seen);
            }
            if Instant::now() > deadline {
                let (log, stderr) = (self.error_log()?, self.child.stderr().tail());
                return Err(anyhow!(
                    "nginx did not see {requests} requests within {limit:?}; it saw {seen:#?}\n\
                     its error log:\n{}\nits stderr:\n{stderr}",
                    log.join("\n"),
                ));
            }
            sleep(FILE_INTERVAL).await;
        }
    }

    /// Ends it, and returns what its error log says at last.
    ///
    /// # Errors
    ///
    /// When it does not end in time, or leaves a process behind.
    pub async fn stop(mut self) -> Result<Vec<String>> {
        let signal = nix::sys::signal::Signal::SIGTERM;
        self.child.stop(signal, READY_LIMIT).await?;
        self.error_log()
    }

    fn lines(&self, name: &str) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(self.folder.path().join(name))
            .with_context(|| format!("cannot read nginx's {name}"))?;
        // What is behind the last line feed is still being written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        Ok(whole.lines().map(str::to_owned).collect())
    }
}

/// A request as nginx saw it. `Display` writes it as one line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// `SUCCESS`, `FAILED:` and a reason, or `NONE`.
    pub verified: String,
    /// The client certificate's subject as in RFC 2253, empty without one.
    pub subject: String,
    /// Such as `TLSv1.3`.
    pub tls_version: String,
    /// The server name that the client asked for, empty without one.
    pub sni: String,
    /// The host of the request.
    pub host: String,
    /// `on` over TLS, or else empty.
    pub https: String,
    /// The header `x-forwarded-proto`.
    pub x_forwarded_proto: String,
    /// The status that was answered.
    pub status: String,
    /// The request line.
    pub request: String,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} \"{}\" {} SNI {} Host {} \"{}\" {}",
            self.verified,
            self.subject,
            self.tls_version,
            self.sni,
            self.host,
            self.request,
            self.status
        )
    }
}

/// Asks the kernel for a port that nobody listens on.
async fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    Ok(listener.local_addr()?)
}

/// The nginxes that `make nginx` unpacked, newest name last seen first.
fn unpacked(workspace: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(workspace.join(".tools"))
        .into_iter()
        .flatten()
    {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("nginx-") {
            found.push(entry.path().join("usr/sbin/nginx"));
        }
    }
    found.sort();
    Ok(found)
}

/// Where the welcome page of an nginx is: `PREFIX/share/nginx/html` of `PREFIX/sbin/nginx`.
fn welcome_folder(binary: &Path) -> Result<PathBuf> {
    let prefix = binary.parent().and_then(Path::parent);
    let html = prefix.unwrap_or(binary).join("share/nginx/html");
    ensure!(
        html.join("index.html").is_file(),
        "there is no welcome page in `{}`; type `make nginx`",
        html.display()
    );
    Ok(html)
}

/// A path that can stand in nginx's configuration without quotes.
fn quotable(path: &Path) -> Result<&str> {
    let text = path.to_str().context("a path that is not UTF-8")?;
    let plain = |c: char| c.is_alphanumeric() || "/._-+~=:,@%".contains(c);
    ensure!(text.chars().all(plain), "nginx cannot be told of `{text}`");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_configuration_stays_but_for_ports_and_paths() -> Result<()> {
        let config = NginxConfig::new("", "", "");
        let addr = SocketAddr::from(([127, 0, 0, 1], 8443));
        let text = config.text(Path::new("/own"), Path::new("/html"), addr)?;
        for line in [
            "    listen 127.0.0.1:8443 ssl;",
            "    root /html;",
            "    ssl_certificate /own/nginx-server-certs/tls.crt;",
            "    ssl_client_certificate /own/nginx-ca-certs/example.com.crt;",
            "    ssl_verify_client on;",
            "  access_log /own/access.log main;",
            "  error_log  /own/error.log;",
        ] {
            assert!(text.lines().any(|l| l.trim_end() == line), "{line}: {text}");
        }
        let kept = PAGE.lines().filter(|line| text.contains(*line)).count();
        // `http`, `ssl_verify_client` and what stands around them are searched as they are.
        assert!(PAGE.lines().count() - kept <= 7, "{text}");
        Ok(())
    }

    #[test]
    fn directives_and_blocks_have_the_pages_paths() -> Result<()> {
        let config = NginxConfig::new("", "", "")
            .verify_client(VerifyClient::Off)
            .directive("ssl_protocols TLSv1.1;")
            .block("server { listen 443 ssl; ssl_certificate /etc/nginx-server-certs/tls.crt; ssl_verify_client on; }");
        let addr = SocketAddr::from(([127, 0, 0, 1], 8443));
        let text = config.text(Path::new("/own"), Path::new("/html"), addr)?;
        assert!(
            text.contains("ssl_verify_client off;\n    ssl_protocols TLSv1.1;"),
            "{text}"
        );
        let block = "server { listen 127.0.0.1:8443 ssl; ssl_certificate /own/nginx-server-certs/tls.crt; ssl_verify_client on; }";
        assert!(text.contains(block), "{text}");
        Ok(())
    }

    #[test]
    fn a_path_that_would_end_a_directive_is_refused() {
        assert!(quotable(Path::new("/a; b")).is_err());
        assert!(quotable(Path::new("/a/nginx-1.22.1-9+deb12u10")).is_ok());
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_apart() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let made = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=a -keyout key -out crt";
        crate::openssl::run(made, folder.path()).await?;
        let read = |name: &str| std::fs::read(folder.path().join(name));
        let config = NginxConfig::new(read("crt")?, read("key")?, read("crt")?);
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (binary, addr) = (binary()?, taken.local_addr()?);
        let tried = Nginx::try_port(&binary, &welcome_folder(&binary)?, &config, addr).await?;
        let said = tried.err().context("it listens on a port that is taken")?;
        assert!(said.contains("Address already in use"), "{said}");
        Ok(())
    }

    #[tokio::test]
    async fn a_configuration_that_makes_no_sense_is_told() -> Result<()> {
        let config = NginxConfig::new("", "", "");
        let started = Nginx::start(&config).await;
        let error = started.err().map(|error| error.to_string());
        assert!(
            error
                .as_ref()
                .is_some_and(|text| text.contains("cannot load certificate")),
            "{error:?}"
        );
        Ok(())
    }
}
