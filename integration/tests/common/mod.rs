//! What the tests on a real Envoy have in common: a trusted authority, a stage, rules, log lines.

#![allow(
    dead_code,
    reason = "each test program is compiled with this file and uses a part of it"
)]

pub(crate) mod load;
pub(crate) mod states;
pub(crate) mod watched;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinSet,
    time::timeout,
};

use egress_integration::{
    dns::{DnsServer, Zone},
    egressctl::{self, Builder, Egressctl, Running},
    envoy,
    pki::{Ca, Issued, Leaf},
    probe::{self, Answer},
    silent_port::SilentPort,
    stand_in::{Listener, Seen, StandIn, StandInConfig},
};

/// The host of the task page.
pub(crate) const HOST: &str = "edition.cnn.com";
/// Where the HTTP connection manager of the first listener stands in a bootstrap.
pub(crate) const MANAGER: &str =
    "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
/// How long something may take that is on its way.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// How long a command may take that starts nothing, or an Envoy that does not start.
const END_LIMIT: Duration = Duration::from_secs(60);
/// The cluster of all hosts whose rules ask for nothing but TLS.
pub(crate) const SHARED: &str = "shared|SIMPLE|system|auto";
/// The traffic policy that asks for nothing but TLS.
pub(crate) const SIMPLE: &str = "{tls: {mode: SIMPLE}}";

/// The authority that `system` stands for in a test, and a folder for its files.
pub(crate) struct Trusted {
    pub(crate) ca: Ca,
    folder: TempDir,
}

impl Trusted {
    pub(crate) fn new() -> Result<Self> {
        let trusted = Self {
            ca: Ca::new("the system's CA")?,
            folder: tempfile::tempdir()?,
        };
        trusted.ca.write_pem(&trusted.bundle())?;
        Ok(trusted)
    }

    /// What `SSL_CERT_FILE` names.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.path("system.pem")
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// A site with one certificate for these names.
    pub(crate) async fn site<const N: usize>(&self, names: [&str; N]) -> Result<StandIn> {
        site(&self.ca, &Leaf::for_names(names)).await
    }

    /// The same for a workload with the label of the page, with a folder of credentials.
    pub(crate) fn sleeping(&self, rules: &str, credentials: &Path) -> Builder {
        self.egressctl(rules)
            .arg("--label")
            .arg("app=sleep")
            .arg("--credentials")
            .arg(credentials)
    }

    /// A run of `egressctl` that trusts this authority, with one worker, so that whatever requests
    /// could share is shared.
    pub(crate) fn egressctl(&self, rules: &str) -> Builder {
        Egressctl::builder()
            .rules_text(rules)
            .env("SSL_CERT_FILE", self.bundle())
            .arg("--concurrency")
            .arg("1")
    }
}

/// A site with one certificate of any authority.
pub(crate) async fn site(ca: &Ca, leaf: &Leaf) -> Result<StandIn> {
    StandIn::start(StandInConfig::new(ca.issue(leaf)?)).await
}

/// A DNS server that leads every name here.
pub(crate) async fn dns() -> Result<DnsServer> {
    DnsServer::start(Zone::new().every_name([Ipv4Addr::LOCALHOST])).await
}

/// A run whose names are all looked up.
pub(crate) async fn by_dns(trusted: &Trusted, rules: &str, dns: &DnsServer) -> Result<Running> {
    let builder = trusted.egressctl(rules).port(80, 0).port(443, 0);
    builder
        .arg("--resolver")
        .arg(dns.addr().to_string())
        .start()
        .await
}

/// `--connect-to` for a host and port.
pub(crate) fn route(host: &str, port: u16, to: SocketAddr) -> String {
    format!("{host}:{port}:{}:{}", to.ip(), to.port())
}

/// A site behind a running `egressctl`, and a silent port where the host's port 80 would be.
pub(crate) struct Stage {
    pub(crate) site: StandIn,
    pub(crate) silent: SilentPort,
    pub(crate) proxy: Running,
}

impl Stage {
    /// Leads port 443 of `hosts` to the site, and port 80 to where nobody may go.
    pub(crate) async fn start<const N: usize>(
        builder: Builder,
        site: StandIn,
        hosts: [&str; N],
    ) -> Result<Self> {
        let silent = SilentPort::start().await?;
        let mut builder = builder.port(80, 0).port(443, 0);
        for host in hosts {
            builder = builder
                .connect_to(&route(host, 443, site.tls_addr()))
                .connect_to(&route(host, 80, silent.addr()));
        }
        Ok(Self {
            proxy: builder.start().await?,
            silent,
            site,
        })
    }

    /// The page's second step: [`HOST`] originated by the shared cluster.
    pub(crate) async fn page(
        trusted: &Trusted,
        more: impl FnOnce(Builder) -> Builder,
    ) -> Result<Self> {
        let site = trusted.site([HOST]).await?;
        let builder = more(trusted.egressctl(&originated(HOST, 443)));
        Self::start(builder, site, [HOST]).await
    }

    /// Asks the proxy's port 80.
    pub(crate) async fn get(&self, host: &str, path: &str) -> Result<Answer> {
        probe::get(self.proxy.listener(80)?, host, path).await
    }

    /// Asks the proxy's port 80, with more headers.
    pub(crate) async fn get_with(
        &self,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        probe::get_with(self.proxy.listener(80)?, host, path, headers).await
    }

    /// Sends bytes to the proxy's port 80; what comes back is text.
    pub(crate) async fn raw(&self, request: impl AsRef<[u8]>) -> Result<String> {
        let answer = probe::raw(self.proxy.listener(80)?, request.as_ref(), SOON).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// The log line of a request, known by its path.
    pub(crate) async fn log(&self, path: &str) -> Result<LogLine> {
        log_of(&self.proxy, path).await
    }

    /// Asks for a page of [`HOST`], and proves that it came over verified TLS by port 80 alone, and nothing in plaintext.
    pub(crate) async fn originates(&self, trusted: &Trusted) -> Result<()> {
        let answer = self.get(HOST, "/politics").await?;
        assert_eq!(answer.status, 200, "{:?}", self.proxy.stderr());
        let seen = only(&self.site)?;
        assert_originated(&seen, HOST, HOST);
        assert_eq!(seen.path, "/politics");
        // Who speaks TLS to the port that is led to is not wrapped in another.
        let https = self.proxy.listener(443)?;
        let refused = probe::get_tls(https, HOST, HOST, "/", &trusted.ca.pem()).await;
        assert!(refused.is_err());
        self.nothing_in_plaintext().await
    }

    /// Proves that nothing arrived without TLS, and that nothing but TLS arrived where TLS was due.
    pub(crate) async fn nothing_in_plaintext(&self) -> Result<()> {
        self.silent.assert_silent().await?;
        let plain = self.site.counts(Listener::Plain);
        ensure!(plain.connections == 0, "plaintext arrived: {plain:?}");
        let failed = self.site.counts(Listener::Tls).failed_handshakes;
        ensure!(
            failed.iter().all(|failure| failure.sni.is_some()),
            "something other than TLS arrived: {failed:?}"
        );
        Ok(())
    }

    /// Proves that the site was not even called.
    pub(crate) async fn nothing_at_all(&self) -> Result<()> {
        self.nothing_in_plaintext().await?;
        let tls = self.site.counts(Listener::Tls);
        ensure!(tls.connections == 0, "the site was called: {tls:?}");
        Ok(())
    }
}

/// The log line of a request, known by its path.
pub(crate) async fn log_of(proxy: &Running, path: &str) -> Result<LogLine> {
    let wanted = format!(" {path} HTTP/");
    let line = proxy.wait_for_log(|line| line.contains(&wanted), SOON);
    LogLine::parse(&line.await?)
}

/// The one request that a site has seen since it was last asked.
pub(crate) fn only(site: &StandIn) -> Result<Seen> {
    let [seen] = <[Seen; 1]>::try_from(site.take_seen())
        .map_err(|seen| anyhow!("one request was expected: {seen:#?}"))?;
    Ok(seen)
}

/// What holds of every originated request, as the server saw it.
pub(crate) fn assert_originated(seen: &Seen, host: &str, sni: &str) {
    assert_eq!(seen.listener, Listener::Tls, "{seen}");
    assert_eq!(seen.sni.as_deref(), Some(sni), "{seen}");
    assert_eq!(seen.host, host, "{seen}");
    assert_eq!(seen.x_forwarded_proto.as_deref(), Some("https"), "{seen}");
    if seen.http_version == "HTTP/2.0" {
        assert_eq!(seen.scheme.as_deref(), Some("https"), "{seen}");
    }
    assert_no_leak(seen);
}

/// Nothing of what proxies tell themselves may reach a server.
pub(crate) fn assert_no_leak(seen: &Seen) {
    let leaks: Vec<_> = seen
        .headers
        .iter()
        .filter(|(name, _)| name.starts_with("x-egress-") || name.starts_with("x-envoy-"))
        .collect();
    assert!(leaks.is_empty(), "{seen}: {leaks:?}");
}

/// A ServiceEntry with HTTP on port 80, whose server listens on `target`.
pub(crate) fn entry(host: &str, target: u16) -> String {
    entry_with(
        host,
        &format!(
            "resolution: DNS, ports: [{{number: 80, name: http-port, protocol: HTTP, targetPort: {target}}}]"
        ),
    )
}

/// A ServiceEntry for a host, with more of a `spec` in YAML's flow style.
pub(crate) fn entry_with(host: &str, spec: &str) -> String {
    let name = name_of(host);
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec: {{hosts: [\"{host}\"], {spec}}}
"
    )
}

/// A ServiceEntry for so many names on a port that Envoy is given a table of them.
pub(crate) fn crowd(port: u16) -> String {
    let hosts: Vec<String> = (0..1000).map(|at| format!("{at}.crowd.example")).collect();
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: crowd}}
spec: {{hosts: [{}], resolution: DNS, ports: [{{number: {port}, name: tls, protocol: TLS}}]}}
",
        hosts.join(", ")
    )
}

/// A DestinationRule with a traffic policy in YAML's flow style.
pub(crate) fn rule(host: &str, policy: &str) -> String {
    let name = name_of(host);
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec: {{host: \"{host}\", trafficPolicy: {policy}}}
"
    )
}

/// The two of them, for TLS and nothing else.
pub(crate) fn originated(host: &str, target: u16) -> String {
    entry(host, target) + &rule(host, SIMPLE)
}

/// A traffic policy with a client certificate by files, and more fields of `tls` in YAML's flow style.
pub(crate) fn mutual(chain: &Path, key: &Path, ca: &Path, more: &str) -> String {
    let (chain, key, ca) = (chain.display(), key.display(), ca.display());
    format!(
        "{{tls: {{mode: MUTUAL, clientCertificate: \"{chain}\", privateKey: \"{key}\", \
         caCertificates: \"{ca}\", {more}}}}}"
    )
}

/// A DestinationRule for workloads with the label `app=sleep`, as on the page: mutual TLS by a credential.
pub(crate) fn selected(host: &str, credential: &str) -> String {
    let name = name_of(host);
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec:
  host: \"{host}\"
  workloadSelector: {{matchLabels: {{app: sleep}}}}
  trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: {credential}}}}}
"
    )
}

/// The ServiceEntry for it as well.
pub(crate) fn by_credential(host: &str, target: u16, credential: &str) -> String {
    entry(host, target) + &selected(host, credential)
}

/// Lays out a credential as Kubernetes mounts it.
pub(crate) fn credential(folder: &Path, name: &str, client: &Issued, ca: &str) -> Result<()> {
    let folder = folder.join(name);
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("tls.crt"), client.chain_pem())?;
    std::fs::write(folder.join("tls.key"), client.key_pem())?;
    std::fs::write(folder.join("ca.crt"), ca)?;
    Ok(())
}

/// These lines as the head of a request.
pub(crate) fn request(lines: &[&str]) -> String {
    lines.join("\r\n") + "\r\n\r\n"
}

/// Reads the head of an answer, byte by byte: what follows is not ours.
pub(crate) async fn head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(SOON, stream.read_u8()).await?;
        head.push(byte.with_context(|| String::from_utf8_lossy(&head).into_owned())?);
    }
    Ok(String::from_utf8(head)?)
}

/// A port that is the other end of a tunnel through a proxy: for clients that know nothing of proxies.
pub(crate) async fn tunnel(proxy: SocketAddr, lines: &[&str]) -> Result<(SocketAddr, JoinSet<()>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let mut upstream = TcpStream::connect(proxy).await?;
    upstream.write_all(request(lines).as_bytes()).await?;
    let head = head(&mut upstream).await?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "{head}");
    let mut running = JoinSet::new();
    running.spawn(async move {
        if let Ok((mut stream, _)) = listener.accept().await {
            let _ended = copy_bidirectional(&mut stream, &mut upstream).await;
        }
    });
    Ok((address, running))
}

/// A server that takes its time: a piece of the body each quarter of a second.
pub(crate) async fn slow(pieces: usize) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _read = stream.read(&mut request).await;
                let _sent = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    .await;
                for _ in 0..pieces {
                    let _sent = stream.write_all(b"5\r\npiece\r\n").await;
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                let _sent = stream.write_all(b"0\r\n\r\n").await;
            });
        }
    });
    Ok(address)
}

/// Waits until something holds that another process is about to do.
pub(crate) async fn eventually(what: &str, holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let trying = async {
        while !holds().await? {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    timeout(SOON, trying)
        .await
        .with_context(|| format!("not within {SOON:?}: {what}"))?
}

fn name_of(host: &str) -> String {
    host.replace('*', "any").replace('.', "-").to_lowercase()
}

/// `egressctl` with these arguments, run to its end; its system trusts `trusted`. What it renders is for the Envoy
/// at hand.
pub(crate) async fn egressctl<A: AsRef<OsStr>>(
    trusted: &Trusted,
    args: impl IntoIterator<Item = A>,
) -> Result<Output> {
    let mut args: Vec<OsString> = args
        .into_iter()
        .map(|arg| arg.as_ref().to_owned())
        .collect();
    if args.starts_with(&["render".into(), "envoy".into()]) {
        args.extend(["--envoy-version".into(), envoy::version().await?.into()]);
    }
    let mut command = Command::new(egressctl::binary()?);
    command
        .args(args)
        .env("SSL_CERT_FILE", trusted.bundle())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    timeout(END_LIMIT, command.output())
        .await
        .context("`egressctl` does not end")?
        .context("cannot start `egressctl`")
}

/// The bootstrap for these rules, with the ports 80 and 443 on any free ones.
pub(crate) async fn rendered(trusted: &Trusted, rules: &str, args: &[&str]) -> Result<Value> {
    let file = trusted.file("rendered.yaml", rules)?;
    let mut all: Vec<&OsStr> = ["render", "envoy", "-o", "json", "-f"]
        .map(OsStr::new)
        .into();
    all.push(file.as_os_str());
    all.extend(["--port", "80=0", "--port", "443=0"].map(OsStr::new));
    all.extend(args.iter().map(OsStr::new));
    let output = egressctl(trusted, all).await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {stderr}", output.status);
    let mut bootstrap: Value = serde_json::from_slice(&output.stdout)?;
    // `run` puts it on a socket in a private folder, the harness on a port.
    let fields = bootstrap.as_object_mut().context("no object")?;
    fields.remove("admin").context("no admin")?;
    Ok(bootstrap)
}

/// A file that the demo and the tests share.
pub(crate) fn scenario(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scenarios")
        .join(name)
}

/// The words of Istio's default text format, in order; the first of a request's are one.
///
/// Source: istio/istio `pilot/pkg/model/telemetry_logging.go`, `EnvoyTextLogFormat`.
const WORDS: [&str; 22] = [
    "start_time",
    "request",
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "upstream_transport_failure_reason",
    "bytes_received",
    "bytes_sent",
    "duration",
    "upstream_service_time",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "authority",
    "upstream_host",
    "upstream_cluster",
    "upstream_local_address",
    "downstream_local_address",
    "downstream_remote_address",
    "requested_server_name",
    "route_name",
];

/// The metadata keys, in the order in which they follow Istio's words.
pub(crate) const METADATA: [&str; 13] = [
    "action",
    "reason",
    "rule",
    "service_entry",
    "cluster",
    "transport_socket",
    "tls_mode",
    "sni",
    "verify",
    "secrets",
    "target",
    "authority",
    "plaintext",
];

/// A line of the access log in its text format.
#[derive(Debug)]
pub(crate) struct LogLine {
    istio: BTreeMap<&'static str, String>,
    metadata: BTreeMap<&'static str, String>,
}

impl LogLine {
    /// Reads a line of exactly Istio's words and exactly our keys.
    pub(crate) fn parse(line: &str) -> Result<Self> {
        let words = words(line);
        let expected = WORDS.len() + METADATA.len();
        ensure!(
            words.len() == expected,
            "{} words, not {expected}: {line}",
            words.len()
        );
        let (istio, ours) = words.split_at(WORDS.len());
        let mut metadata = BTreeMap::new();
        for (key, word) in METADATA.into_iter().zip(ours) {
            let value = word
                .strip_prefix(key)
                .and_then(|rest| rest.strip_prefix('='));
            let value = value.with_context(|| format!("`{word}` is not `{key}=`: {line}"))?;
            metadata.insert(key, value.to_owned());
        }
        Ok(Self {
            istio: WORDS.into_iter().zip(istio.iter().cloned()).collect(),
            metadata,
        })
    }

    /// One of Istio's words, by the name it has in the JSON format.
    pub(crate) fn istio(&self, key: &str) -> &str {
        self.istio.get(key).map_or("no such word", String::as_str)
    }

    /// One of our keys.
    pub(crate) fn egress(&self, key: &str) -> &str {
        self.metadata.get(key).map_or("no such key", String::as_str)
    }

    /// Compares our keys with what is expected; those left out are `-`.
    pub(crate) fn assert_egress<const N: usize>(&self, expected: [(&str, &str); N]) {
        let expected = BTreeMap::from(expected);
        for key in expected.keys() {
            assert!(METADATA.contains(key), "no such key: {key}");
        }
        for key in METADATA {
            let value = expected.get(key).copied().unwrap_or("-");
            assert_eq!(self.egress(key), value, "{key} in {self:#?}");
        }
    }
}

/// Splits at spaces, but not within quotes and brackets at the beginning of a word.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let quoted = rest
            .strip_prefix('"')
            .and_then(|inner| inner.split_once('"'));
        let (word, after) = match quoted {
            Some(quoted) => quoted,
            None => rest
                .split_once(' ')
                .map_or((rest, ""), |(word, after)| (word, after)),
        };
        words.push(word.to_owned());
        rest = match quoted {
            Some(_) => after.strip_prefix(' ').unwrap_or(after),
            None => after,
        };
    }
    words
}
