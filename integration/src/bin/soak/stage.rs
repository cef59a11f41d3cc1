//! The proxy under test, its rules, and all that it talks to.

use std::{
    fmt::Write,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egress_integration::{
    dns::{DnsServer, Zone},
    egressctl::{Egressctl, Running, binary},
    pki::{Ca, Leaf},
};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::origin::Servers;

/// The addresses of the servers. The second is the one that dies.
pub(crate) const ADDRESSES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
/// Most requests; it has both addresses.
pub(crate) const WEB: &str = "web.soak.example.com";
/// It asks for a client certificate.
pub(crate) const MUTUAL: &str = "mutual.soak.example.com";
/// Its address changes.
pub(crate) const MOVES: &str = "moves.soak.example.com";
/// Bytes in TLS.
pub(crate) const ECHO: &str = "echo.soak.example.com";
/// The application's own TLS, through the forward proxy.
pub(crate) const TUNNEL: &str = "tunnel.soak.example.com";
/// It comes and goes with each other set of rules.
pub(crate) const EXTRA: &str = "extra.soak.example.com";

/// How long anything may take that is on its way.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// How many lines of failed requests are kept of a proxy.
const LINES: usize = 20;

/// Where the proxy listens.
#[derive(Clone, Copy)]
pub(crate) struct Listens {
    pub(crate) http: SocketAddr,
    pub(crate) tcp: SocketAddr,
    pub(crate) forward_proxy: SocketAddr,
}

/// All that a soak has.
pub(crate) struct Stage {
    pub(crate) ca: Ca,
    pub(crate) dns: DnsServer,
    pub(crate) servers: Arc<Servers>,
    pub(crate) listens: Listens,
    /// When the second address died last.
    died: Mutex<Option<Instant>>,
    /// When servers last closed idle connections at once.
    raced: Mutex<Option<Instant>>,
    folder: TempDir,
    /// The proxies that run; the last one takes what is new.
    proxies: Mutex<Vec<Arc<Running>>>,
    rules: AtomicU64,
    /// How many files of the filter there were.
    filters: AtomicU64,
    /// What ended proxies logged of requests that failed.
    failures: Mutex<Vec<String>>,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) -> Result<()> {
    until_within(SOON, what, is_so).await
}

/// Waits until something is so, as long as this.
pub(crate) async fn until_within(
    limit: Duration,
    what: &str,
    is_so: impl AsyncFn() -> bool,
) -> Result<()> {
    let waited = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(limit, waited)
        .await
        .with_context(|| format!("{what}: not within {limit:?}"))
}

impl Stage {
    pub(crate) async fn start() -> Result<Stage> {
        let ca = Ca::new("soak")?;
        let certificate = ca.issue(&Leaf::for_names(["*.soak.example.com"]))?;
        let servers = Servers::start(ADDRESSES, &certificate, &ca).await?;
        let mut zone = Zone::new();
        for host in [WEB, MUTUAL, ECHO, TUNNEL, EXTRA] {
            zone = zone.name(host, ADDRESSES);
        }
        let dns = DnsServer::start(zone.name(MOVES, [ADDRESSES[0]])).await?;
        let folder = tempfile::tempdir()?;
        ca.write_pem(&folder.path().join("ca.pem"))?;
        std::fs::create_dir_all(folder.path().join("credentials/client"))?;
        let listens = Listens {
            http: free().await?,
            tcp: free().await?,
            forward_proxy: free().await?,
        };
        let stage = Stage {
            ca,
            dns,
            servers,
            listens,
            died: Mutex::default(),
            raced: Mutex::default(),
            folder,
            proxies: Mutex::default(),
            rules: AtomicU64::new(0),
            filters: AtomicU64::new(0),
            failures: Mutex::default(),
        };
        stage.renew_client().await?;
        stage.write_rules(&stage.rules(false))?;
        stage.write_filter()?;
        stage.run(None).await?;
        Ok(stage)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn run(&self, replaced: Option<Pid>) -> Result<()> {
        let Listens {
            http,
            tcp,
            forward_proxy,
        } = self.listens;
        let builder = Egressctl::builder()
            .rules(self.path("rules.yaml"))
            .env("SSL_CERT_FILE", self.path("ca.pem"))
            .port(80, http.port())
            .port(9000, tcp.port())
            .arg("--forward-proxy")
            .arg(forward_proxy.to_string())
            .arg("--resolver")
            .arg(self.dns.addr().to_string())
            .arg("--credentials")
            .arg(self.path("credentials"))
            .arg("--label")
            .arg("app=soak")
            .arg("--filter=module")
            .arg("--module")
            .arg(self.path("libegress_filter.so"))
            .arg("--drain=0s,10s");
        let builder = match replaced {
            Some(pid) => builder.arg("--replace").arg(pid.to_string()),
            None => builder,
        };
        let running = builder.start().await?;
        lock(&self.proxies).push(Arc::new(running));
        Ok(())
    }

    /// Puts a filter in the place of the one that is there: the same one, and yet another file.
    pub(crate) fn write_filter(&self) -> Result<()> {
        let built = binary()?.with_file_name("libegress_filter.so");
        let mut bytes = std::fs::read(&built).with_context(|| built.display().to_string())?;
        let serial = self.filters.fetch_add(1, Ordering::Relaxed);
        // Whatever stands behind its last section is not loaded.
        bytes.extend(serial.to_be_bytes());
        let (fresh, path) = (self.path("filter.new"), self.path("libegress_filter.so"));
        std::fs::write(&fresh, bytes)?;
        Ok(std::fs::rename(fresh, path)?)
    }

    /// The proxy that takes what is new.
    pub(crate) fn proxy(&self) -> Result<Arc<Running>> {
        let proxies = lock(&self.proxies);
        proxies.last().cloned().context("no proxy runs")
    }

    /// Starts another that takes the place of the one that runs.
    pub(crate) async fn upgrade(&self) -> Result<()> {
        self.run(Some(self.proxy()?.pid())).await?;
        let old = lock(&self.proxies).remove(0);
        let old = Arc::into_inner(old).context("the old one is asked for something")?;
        self.keep_failures(&old)?;
        let status = old.ended().await?;
        ensure!(status.success(), "the old one ended with {status}");
        Ok(())
    }

    /// Keeps what a proxy logged of requests that failed.
    fn keep_failures(&self, proxy: &Running) -> Result<()> {
        let log = proxy.access_log()?;
        let failed = log.into_iter().filter(|line| {
            line.starts_with('[') && line.contains("\"GET ") && line.contains("\" 503 ")
        });
        lock(&self.failures).extend(failed.take(LINES));
        Ok(())
    }

    /// What was logged of requests that failed, by all proxies until now.
    pub(crate) fn failures(&self) -> Result<Vec<String>> {
        self.keep_failures(&*self.proxy()?)?;
        Ok(lock(&self.failures).clone())
    }

    /// The processes of the program that run.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        let proxies = lock(&self.proxies);
        proxies.iter().map(|running| running.pid()).collect()
    }

    /// Returns the rules, with or without one more host.
    pub(crate) fn rules(&self, extra: bool) -> String {
        let ports = self.servers.ports;
        let mut text = String::new();
        let mut hosts = vec![(WEB, ""), (MOVES, ""), (MUTUAL, "mutual")];
        if extra {
            hosts.push((EXTRA, ""));
        }
        for (host, kind) in hosts {
            let name = host.split('.').next().unwrap_or(host);
            let (tls, selector) = match kind {
                "" => ("{tls: {mode: SIMPLE}}", ""),
                _ => (
                    "{connectionPool: {http: {maxRequestsPerConnection: 10}}, tls: {mode: MUTUAL, credentialName: client}}",
                    "workloadSelector: {matchLabels: {app: soak}}, ",
                ),
            };
            let _ = write!(
                text,
                "---\n{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {name}}}, spec: {{hosts: [{host}], \
                 ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {web}}}], resolution: DNS}}}}\n\
                 ---\n{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: {name}}}, spec: {{host: {host}, \
                 {selector}trafficPolicy: {tls}}}}}\n",
                web = ports.web
            );
        }
        let _ = write!(
            text,
            "---\n{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: echo}}, spec: {{hosts: [{ECHO}], \
             ports: [{{number: 9000, name: tcp, protocol: TCP, targetPort: {echo}}}], resolution: DNS}}}}\n\
             ---\n{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: echo}}, spec: {{host: {ECHO}, \
             trafficPolicy: {{tls: {{mode: SIMPLE, sni: {ECHO}}}}}}}}}\n\
             ---\n{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: tunnel}}, spec: {{hosts: [{TUNNEL}], \
             ports: [{{number: 443, name: tls, protocol: TLS, targetPort: {web}}}], resolution: DNS}}}}\n",
            echo = ports.echo,
            web = ports.web
        );
        text
    }

    /// Puts rules in the place of those before them.
    pub(crate) fn write_rules(&self, text: &str) -> Result<()> {
        let round = self.rules.fetch_add(1, Ordering::Relaxed);
        self.replace("rules.yaml", &format!("# {round}\n{text}"))
    }

    fn replace(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        let new = path.with_extension("new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, path)?;
        Ok(())
    }

    /// Gives the client another certificate; returns its serial number.
    pub(crate) async fn renew_client(&self) -> Result<Vec<u8>> {
        let client = self.ca.issue(&Leaf::client("soak"))?;
        self.replace("credentials/client/tls.crt", client.chain_pem())?;
        self.replace("credentials/client/tls.key", client.key_pem())?;
        self.replace("credentials/client/ca.crt", &self.ca.pem())?;
        let bytes = client.serial().to_be_bytes();
        let begin = bytes.iter().position(|byte| *byte != 0).unwrap_or(0);
        Ok(bytes.get(begin..).unwrap_or_default().to_vec())
    }

    /// Lets the second address die, and come back after a while.
    pub(crate) async fn death(&self, meanwhile: impl Future<Output = Result<()>>) -> Result<()> {
        *lock(&self.died) = Some(Instant::now());
        self.servers.die(ADDRESSES[1]).await;
        let result = meanwhile.await;
        self.servers.rise(ADDRESSES[1]).await?;
        result
    }

    /// Lets servers close idle connections for a while, just as requests may come.
    pub(crate) async fn race(&self, length: Duration) {
        let races = &self.servers.seen.races;
        races.store(true, Ordering::Relaxed);
        tokio::time::sleep(length).await;
        races.store(false, Ordering::Relaxed);
        *lock(&self.raced) = Some(Instant::now());
    }

    /// Whether what fails now may have been cut by the server's own death.
    pub(crate) fn has_just_died(&self) -> bool {
        is_recent(*lock(&self.died))
    }

    /// Whether servers close idle connections, or did so a moment ago.
    pub(crate) fn races(&self) -> bool {
        self.servers.seen.races.load(Ordering::Relaxed) || is_recent(*lock(&self.raced))
    }

    pub(crate) fn heard_in_plaintext(&self) -> u64 {
        self.servers.seen.plain()
    }

    /// Requests that came with another name than their host's.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.servers.seen.wrong()
    }
}

fn is_recent(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at.elapsed() < Duration::from_secs(3))
}

/// Returns an address whose port is free now. The proxies get it one after another, so the kernel cannot choose for
/// each.
async fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await?
        .local_addr()?)
}
