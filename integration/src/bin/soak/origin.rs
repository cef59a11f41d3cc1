//! The servers: two addresses with the same ports, of which one may die and come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use egress_integration::pki::{Ca, Issued};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, body::Frame, body::Incoming, header::HOST, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

/// What a large body has, in either direction.
pub(crate) const LARGE: usize = 256 << 10;
/// A streamed answer: so many pieces, with a pause between them.
pub(crate) const PIECES: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);
/// How long a connection may be idle while the servers race with those who use it next.
const RACE: Duration = Duration::from_millis(20);

/// The ports that both addresses have.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    /// HTTP in TLS.
    pub(crate) web: u16,
    /// In TLS, every byte comes back.
    pub(crate) echo: u16,
    /// Where requests in plaintext would go.
    pub(crate) plain: u16,
}

/// What the servers saw.
#[derive(Default)]
pub(crate) struct Seen {
    /// Requests by the host that they asked for, and the address that they came to.
    hosts: Mutex<BTreeMap<(String, Ipv4Addr), u64>>,
    /// The serial numbers of the clients' certificates.
    clients: Mutex<BTreeSet<Vec<u8>>>,
    /// Requests whose SNI was not their host, or that had none.
    wrong: Mutex<Vec<String>>,
    /// Connections to the plaintext ports.
    plain: AtomicU64,
    /// Connections that were closed because they were idle for a moment.
    pub(crate) raced: AtomicU64,
    /// Whether they do that.
    pub(crate) races: AtomicBool,
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    /// How many requests for a host came to an address.
    pub(crate) fn requests(&self, host: &str, address: Ipv4Addr) -> u64 {
        let hosts = lock(&self.hosts);
        hosts
            .get(&(host.to_owned(), address))
            .copied()
            .unwrap_or_default()
    }

    /// Whether a client showed a certificate with this serial number.
    pub(crate) fn client(&self, serial: &[u8]) -> bool {
        lock(&self.clients).contains(serial)
    }

    pub(crate) fn plain(&self) -> u64 {
        self.plain.load(Ordering::Relaxed)
    }

    pub(crate) fn wrong(&self) -> Vec<String> {
        lock(&self.wrong).clone()
    }
}

/// What both addresses have in common.
pub(crate) struct Servers {
    pub(crate) ports: Ports,
    pub(crate) seen: Arc<Seen>,
    tls: TlsAcceptor,
    up: Mutex<BTreeMap<Ipv4Addr, JoinHandle<()>>>,
}

impl Servers {
    /// Starts both. Clients may show a certificate of `ca`.
    pub(crate) async fn start(
        addresses: [Ipv4Addr; 2],
        certificate: &Issued,
        ca: &Ca,
    ) -> Result<Arc<Servers>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate().clone())?;
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients.allow_unauthenticated().build()?)
            .with_single_cert(certificate.chain().to_vec(), certificate.key().clone_key())?;
        let servers = Arc::new(Servers {
            ports: Ports {
                web: free(addresses).await?,
                echo: free(addresses).await?,
                plain: free(addresses).await?,
            },
            seen: Arc::default(),
            tls: TlsAcceptor::from(Arc::new(tls)),
            up: Mutex::default(),
        });
        for address in addresses {
            servers.rise(address).await?;
        }
        Ok(servers)
    }

    /// Lets an address serve.
    pub(crate) async fn rise(self: &Arc<Self>, address: Ipv4Addr) -> Result<()> {
        let listen = |port| bind((address, port).into());
        let (web, echo, plain) = (
            listen(self.ports.web)?,
            listen(self.ports.echo)?,
            listen(self.ports.plain)?,
        );
        let servers = Arc::clone(self);
        let serving = tokio::spawn(async move { servers.serve(address, web, echo, plain).await });
        lock(&self.up).insert(address, serving);
        Ok(())
    }

    /// Lets an address die: its ports are closed, and so are all its connections, in the midst of whatever they do.
    pub(crate) async fn die(&self, address: Ipv4Addr) {
        let serving = lock(&self.up).remove(&address);
        if let Some(serving) = serving {
            serving.abort();
            let _aborted = serving.await;
        }
    }

    async fn serve(
        &self,
        address: Ipv4Addr,
        web: TcpListener,
        echo: TcpListener,
        plain: TcpListener,
    ) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Ok((stream, _)) = web.accept() => {
                    connections.spawn(answer(stream, self.tls.clone(), Arc::clone(&self.seen), address));
                }
                Ok((stream, _)) = echo.accept() => {
                    connections.spawn(repeat(stream, self.tls.clone()));
                }
                Ok(_) = plain.accept() => {
                    self.seen.plain.fetch_add(1, Ordering::Relaxed);
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// Returns a port that both addresses have free.
async fn free(addresses: [Ipv4Addr; 2]) -> Result<u16> {
    loop {
        let [one, other] = addresses;
        let first = TcpListener::bind((one, 0)).await?;
        let port = first.local_addr()?.port();
        if TcpListener::bind((other, port)).await.is_ok() {
            return Ok(port);
        }
    }
}

fn bind(at: SocketAddr) -> Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    Ok(socket.listen(1024)?)
}

/// Serves HTTP/1.1 on one connection.
async fn answer(stream: TcpStream, tls: TlsAcceptor, seen: Arc<Seen>, address: Ipv4Addr) {
    let Ok(stream) = tls.accept(stream).await else {
        return;
    };
    let (_, session) = stream.get_ref();
    let sni = session.server_name().map(str::to_owned);
    if let Some(client) = session.peer_certificates().and_then(|chain| chain.first())
        && let Some(serial) = serial_of(client)
    {
        lock(&seen.clients).insert(serial);
    }
    let closes = Arc::new(tokio::sync::Notify::new());
    let (closing, begun) = (Arc::clone(&closes), Arc::<AtomicU64>::default());
    let noted = Arc::clone(&seen);
    let service = service_fn(move |request: Request<Incoming>| {
        let (sni, seen, closes) = (sni.clone(), Arc::clone(&noted), Arc::clone(&closing));
        let begun = Arc::clone(&begun);
        async move {
            let this = begun.fetch_add(1, Ordering::Relaxed) + 1;
            let short = request.uri().path() == "/";
            let response = respond(request, sni.as_deref(), &seen, address).await;
            if short && seen.races.load(Ordering::Relaxed) {
                tokio::spawn(async move {
                    tokio::time::sleep(RACE).await;
                    if begun.load(Ordering::Relaxed) == this {
                        closes.notify_one();
                    }
                });
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ended = connection => {}
        () = closes.notified() => { seen.raced.fetch_add(1, Ordering::Relaxed); }
    }
}

fn serial_of(certificate: &[u8]) -> Option<Vec<u8>> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.tbs_certificate.serial.to_bytes_be())
}

type Body = BoxBody<Bytes, Infallible>;

async fn respond(
    request: Request<Incoming>,
    sni: Option<&str>,
    seen: &Seen,
    address: Ipv4Addr,
) -> Response<Body> {
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    let host = host.unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default().to_owned();
    if sni != Some(&*host) {
        lock(&seen.wrong).push(format!("host {host:?} by SNI {sni:?}"));
    }
    *lock(&seen.hosts).entry((host, address)).or_default() += 1;
    let path = request.uri().path().to_owned();
    let took = request.into_body().collect().await;
    let took = took.map_or(0, |body| body.to_bytes().len());
    let body = match path.as_str() {
        "/large" => Full::new(Bytes::from(vec![b'x'; LARGE])).boxed(),
        "/stream" => stream(),
        _ => Full::new(Bytes::from(format!("{took}\n"))).boxed(),
    };
    Response::new(body)
}

/// A body whose pieces come one by one.
fn stream() -> Body {
    let (send, mut pieces) = mpsc::channel::<Frame<Bytes>>(1);
    tokio::spawn(async move {
        for _ in 0..PIECES {
            let piece = Frame::data(Bytes::from_static(b"piece\n"));
            if send.send(piece).await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    let pieces = futures_util::stream::poll_fn(move |context| {
        pieces.poll_recv(context).map(|piece| piece.map(Ok))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}

/// Gives back every byte.
async fn repeat(stream: TcpStream, tls: TlsAcceptor) {
    let Ok(mut stream) = tls.accept(stream).await else {
        return;
    };
    let mut bytes = [0; 4096];
    while let Ok(count) = stream.read(&mut bytes).await {
        let Some(read) = bytes.get(..count).filter(|read| !read.is_empty()) else {
            break;
        };
        if stream.write_all(read).await.is_err() {
            return;
        }
    }
    let _ended = stream.shutdown().await;
}
