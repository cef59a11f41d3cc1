//! The load: clients of several kinds, each at a rate of its own.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use egress_integration::pki::Ca;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, client::conn::http1::SendRequest, header::HOST};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::TlsConnector;

use crate::{
    origin::{LARGE, PIECES},
    stage::{MOVES, MUTUAL, Stage, TUNNEL, WEB},
};

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a client is told whose request came as the server closed the connection.
const RACED: &str = "503 egress_reset";

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Get,
    Post,
    Download,
    Upload,
    Stream,
    Mutual,
    Moves,
    Tcp,
    Tunnel,
}

impl Kind {
    /// All kinds, each with its clients and how many requests they make in a second, together.
    const ALL: [(Kind, u32, u32); 9] = [
        (Kind::Get, 12, 400),
        (Kind::Post, 4, 60),
        (Kind::Download, 2, 15),
        (Kind::Upload, 2, 15),
        (Kind::Stream, 8, 6),
        (Kind::Mutual, 2, 30),
        (Kind::Moves, 2, 20),
        (Kind::Tcp, 4, 20),
        (Kind::Tunnel, 4, 10),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Get => "small GET",
            Kind::Post => "small POST",
            Kind::Download => "256 KiB down",
            Kind::Upload => "256 KiB up",
            Kind::Stream => "answer of one second",
            Kind::Mutual => "mutual TLS",
            Kind::Moves => "a name that moves",
            Kind::Tcp => "TCP, TLS by the proxy",
            Kind::Tunnel => "CONNECT, the client's TLS",
        }
    }

    fn asks(self) -> (&'static str, Method, &'static str, usize) {
        match self {
            Kind::Post => (WEB, Method::POST, "/", 20),
            Kind::Download => (WEB, Method::GET, "/large", 0),
            Kind::Upload => (WEB, Method::PUT, "/", LARGE),
            Kind::Stream => (WEB, Method::GET, "/stream", 0),
            Kind::Mutual => (MUTUAL, Method::GET, "/", 0),
            Kind::Moves => (MOVES, Method::GET, "/", 0),
            _ => (WEB, Method::GET, "/", 0),
        }
    }

    /// Whether its server's death may be its end: it is not sent twice, or had begun to be answered.
    fn is_cut_by_death(self) -> bool {
        !matches!(self, Kind::Get | Kind::Moves)
    }

    /// Whether it may have been sent to a server that had just closed the idle connection: it is not sent twice.
    fn is_cut_by_race(self) -> bool {
        matches!(self, Kind::Post | Kind::Upload)
    }
}

/// What became of the requests of a kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count {
    pub(crate) good: u64,
    /// Cut by the server, and not to be sent twice.
    pub(crate) cut: BTreeMap<String, u64>,
    /// All other failures, by cause.
    pub(crate) failed: BTreeMap<String, u64>,
    /// The proxy had closed the connection before the request was on it; the client made another, as all do.
    pub(crate) again: u64,
}

/// By kind.
pub(crate) type Counted = BTreeMap<Kind, Count>;

/// A load that runs.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    counted: Arc<Mutex<Counted>>,
    clients: JoinSet<()>,
}

/// Starts all clients.
pub(crate) fn start(stage: &Arc<Stage>) -> Load {
    let (stop, counted) = (
        Arc::<AtomicBool>::default(),
        Arc::<Mutex<Counted>>::default(),
    );
    let mut clients = JoinSet::new();
    for (kind, count, rate) in Kind::ALL {
        for _ in 0..count {
            let (stage, stop, counted) =
                (Arc::clone(stage), Arc::clone(&stop), Arc::clone(&counted));
            clients.spawn(async move {
                let mut ticks = interval(Duration::from_secs(1) * count / rate);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut client = Client {
                    stage: &stage,
                    kind,
                    kept: None,
                    again: 0,
                };
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let result = match timeout(PATIENCE, client.ask()).await {
                        Ok(result) => result,
                        Err(_) => Err(anyhow::anyhow!("no answer within {PATIENCE:?}")),
                    };
                    if result.is_err() {
                        client.kept = None;
                    }
                    let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
                    let count = counted.entry(kind).or_default();
                    count.again += std::mem::take(&mut client.again);
                    match result {
                        Ok(()) => count.good += 1,
                        Err(error) => {
                            let cause = format!("{error:#}");
                            let raced = cause == RACED && kind.is_cut_by_race() && stage.races();
                            let cut = raced || kind.is_cut_by_death() && stage.has_just_died();
                            let causes = if cut {
                                &mut count.cut
                            } else {
                                &mut count.failed
                            };
                            *causes.entry(cause).or_default() += 1;
                        }
                    }
                }
            });
        }
    }
    Load {
        stop,
        counted,
        clients,
    }
}

impl Load {
    /// Ends it, and returns what it counted.
    pub(crate) async fn end(mut self) -> Counted {
        self.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.clone()
    }
}

struct Client<'s> {
    stage: &'s Stage,
    kind: Kind,
    /// The connection that it keeps.
    kept: Option<SendRequest<Full<Bytes>>>,
    again: u64,
}

impl Client<'_> {
    async fn ask(&mut self) -> Result<()> {
        let listens = self.stage.listens;
        match self.kind {
            Kind::Tcp => echo(listens.tcp).await,
            Kind::Tunnel => tunnel(listens.forward_proxy, &self.stage.ca).await,
            _ => self.http(listens.http).await,
        }
    }

    async fn http(&mut self, at: SocketAddr) -> Result<()> {
        let (host, method, path, size) = self.kind.asks();
        let mut tries = 0;
        let answer = loop {
            let mut kept = match self.kept.take().filter(|kept| !kept.is_closed()) {
                Some(kept) => kept,
                None => connect(at).await?,
            };
            tries += 1;
            let request = Request::builder()
                .method(method.clone())
                .uri(path)
                .header(HOST, host);
            let request = request.body(Full::new(Bytes::from(vec![b'x'; size])))?;
            match kept.try_send_request(request).await {
                Ok(answer) => {
                    self.kept = Some(kept);
                    break answer;
                }
                Err(mut error) => {
                    let unsent = error.take_message().is_some();
                    if !unsent || tries == 3 {
                        return Err(error.into_error()).context("connection");
                    }
                    self.again += 1;
                }
            }
        };
        let status = answer.status();
        let body = answer
            .into_body()
            .collect()
            .await
            .context("body")?
            .to_bytes();
        if status != 200 {
            let told = String::from_utf8_lossy(&body);
            let told = told.split(':').next().unwrap_or_default();
            bail!("{} {told}", status.as_u16());
        }
        let expected = match self.kind {
            Kind::Download => LARGE,
            Kind::Stream => PIECES * b"piece\n".len(),
            _ => format!("{size}\n").len(),
        };
        ensure!(
            body.len() == expected,
            "{} bytes in place of {expected}",
            body.len()
        );
        Ok(())
    }
}

async fn connect(at: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(at).await.context("connect")?;
    let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(send)
}

async fn echo(at: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(at).await.context("connect")?;
    for word in [&b"one"[..], b"two", b"three"] {
        stream.write_all(word).await.context("write")?;
        let mut back = vec![0; word.len()];
        stream.read_exact(&mut back).await.context("read")?;
        ensure!(back == word, "another word came back");
    }
    Ok(())
}

async fn tunnel(at: SocketAddr, ca: &Ca) -> Result<()> {
    let mut stream = TcpStream::connect(at).await.context("connect")?;
    let ask = format!("CONNECT {TUNNEL}:443 HTTP/1.1\r\nHost: {TUNNEL}:443\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.context("write")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("the answer to CONNECT")?);
    }
    let status = String::from_utf8_lossy(&head);
    let status = status.split(' ').nth(1).unwrap_or_default().to_owned();
    ensure!(status == "200", "CONNECT {status}");
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone())?;
    let tls =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
    let name = ServerName::try_from(TUNNEL)?;
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await
        .context("TLS")?;
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .uri("/")
        .header(HOST, TUNNEL)
        .body(Full::new(Bytes::new()))?;
    let answer = send.send_request(request).await.context("request")?;
    ensure!(answer.status() == 200, "{}", answer.status());
    answer.into_body().collect().await.context("body")?;
    Ok(())
}
