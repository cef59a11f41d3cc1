//! A stand-in for a web site that redirects HTTP to HTTPS, and remembers what reached it.
//!
//! It is the witness of the tests. What arrived here says whether a request came over TLS, with which SNI and for which
//! host. What the proxy says does not count.

use std::{
    convert::Infallible,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    header::{CONTENT_TYPE, HOST, LOCATION},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::CertificateDer,
    server::{
        Acceptor, ClientHello, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::LazyConfigAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{pki::Issued, tls};

/// What the stand-in offers.
#[derive(Clone, Debug)]
pub struct StandInConfig {
    /// Presented when no other certificate fits, and to clients without SNI.
    pub certificate: Issued,
    /// Presented to clients whose SNI is one of their names, letter for letter but for case.
    pub by_sni: Vec<Issued>,
    /// The HTTP versions of the TLS listener, offered by ALPN.
    pub http: HttpVersions,
    /// The TLS versions of the TLS listener.
    pub tls: TlsVersions,
    /// Whether clients have to say who they are.
    pub clients: Clients,
}

/// What the TLS listener wants of its clients.
#[derive(Clone, Debug)]
pub enum Clients {
    /// No certificate is asked for.
    Ignored,
    /// A certificate of one of these authorities is asked for; none at all is good too.
    Requested(Vec<CertificateDer<'static>>),
    /// A certificate of one of these authorities is required.
    Required(Vec<CertificateDer<'static>>),
}

impl StandInConfig {
    /// A site as most are today: one certificate, HTTP/1.1 and HTTP/2, TLS 1.2 and 1.3.
    pub fn new(certificate: Issued) -> Self {
        Self {
            certificate,
            by_sni: Vec::new(),
            http: HttpVersions::Both,
            tls: TlsVersions::Both,
            clients: Clients::Ignored,
        }
    }

    /// The same site with one more certificate, for the SNIs that are its names.
    #[must_use]
    pub fn with_certificate(mut self, certificate: Issued) -> Self {
        self.by_sni.push(certificate);
        self
    }

    /// The same site with other HTTP versions.
    #[must_use]
    pub fn http(self, http: HttpVersions) -> Self {
        Self { http, ..self }
    }

    /// The same site with other TLS versions.
    #[must_use]
    pub fn tls(self, tls: TlsVersions) -> Self {
        Self { tls, ..self }
    }

    /// The same site with other wants of its clients.
    #[must_use]
    pub fn clients(self, clients: Clients) -> Self {
        Self { clients, ..self }
    }
}

/// HTTP versions that a TLS listener offers and speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersions {
    /// HTTP/2, then HTTP/1.1.
    Both,
    /// HTTP/1.1 only.
    OnlyHttp1,
    /// HTTP/2 only.
    OnlyHttp2,
}

impl HttpVersions {
    fn alpn(self) -> Vec<Vec<u8>> {
        let protocols: &[&[u8]] = match self {
            Self::Both => &[tls::H2, tls::HTTP_1_1],
            Self::OnlyHttp1 => &[tls::HTTP_1_1],
            Self::OnlyHttp2 => &[tls::H2],
        };
        protocols.iter().map(|name| name.to_vec()).collect()
    }

    fn server(self) -> auto::Builder<TokioExecutor> {
        let builder = auto::Builder::new(TokioExecutor::new());
        match self {
            Self::Both => builder,
            Self::OnlyHttp1 => builder.http1_only(),
            Self::OnlyHttp2 => builder.http2_only(),
        }
    }
}

/// TLS versions that a TLS listener accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersions {
    /// TLS 1.2 and TLS 1.3.
    Both,
    /// TLS 1.2 only.
    OnlyTls12,
    /// TLS 1.3 only.
    OnlyTls13,
}

impl TlsVersions {
    fn supported(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            Self::Both => vec![&TLS13, &TLS12],
            Self::OnlyTls12 => vec![&TLS12],
            Self::OnlyTls13 => vec![&TLS13],
        }
    }
}

impl Clients {
    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>> {
        let roots = match self {
            Self::Ignored => return Ok(WebPkiClientVerifier::no_client_auth()),
            Self::Requested(roots) | Self::Required(roots) => roots,
        };
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone())?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(store), tls::provider());
        Ok(match self {
            Self::Required(_) => verifier.build()?,
            _ => verifier.allow_unauthenticated().build()?,
        })
    }
}

/// One of the two listeners of a stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// HTTP, where a real site has port 80.
    Plain,
    /// HTTPS, where a real site has port 443.
    Tls,
}

/// A request as it reached the stand-in. `Display` writes it as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Where it arrived.
    pub listener: Listener,
    /// The connection it arrived on, counted from 1 over both listeners.
    pub connection_id: u64,
    /// `TLSv1.2` or `TLSv1.3`; none on the plain listener.
    pub tls_version: Option<String>,
    /// The server name that the client asked for, in lower case however it was sent.
    pub sni: Option<String>,
    /// The protocol that ALPN settled on, `h2` or `http/1.1`.
    pub alpn: Option<String>,
    /// The client's certificate, when it showed one; it was verified.
    pub client: Option<Client>,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2.0`.
    pub http_version: String,
    /// The request method.
    pub method: String,
    /// `:scheme` of HTTP/2; in HTTP/1 only a request line with an absolute URI has one.
    pub scheme: Option<String>,
    /// `:authority`, or `Host` where there is none; empty when the client sent neither.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// The header `x-forwarded-proto`.
    pub x_forwarded_proto: Option<String>,
    /// All headers in the order of arrival, names in lower case. Pseudo-headers are not among them.
    pub headers: Vec<(String, String)>,
}

/// A client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The common name of its subject, empty without one.
    pub common_name: String,
    /// The serial number, in hexadecimal digits without leading zeros.
    pub serial: String,
}

impl Seen {
    /// The first header of this name, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listener = match self.listener {
            Listener::Plain => "plain",
            Listener::Tls => "tls",
        };
        write!(f, "#{} {listener}", self.connection_id)?;
        if let Some(version) = &self.tls_version {
            write!(f, " {version}")?;
        }
        let client = self
            .client
            .as_ref()
            .map(|client| client.common_name.clone());
        let optional = [
            ("sni", &self.sni),
            ("alpn", &self.alpn),
            ("scheme", &self.scheme),
            ("x-forwarded-proto", &self.x_forwarded_proto),
            ("client", &client),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                write!(f, " {name}={value}")?;
            }
        }
        write!(
            f,
            " host={:?} \"{} {} {}\"",
            self.host, self.method, self.path, self.http_version
        )
    }
}

/// What happened at one listener, requests or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// TCP connections that were accepted.
    pub connections: u64,
    /// Connections on which no TLS session came about, one that closed without a byte included.
    pub failed_handshakes: Vec<FailedHandshake>,
    /// Requests that were answered.
    pub requests: u64,
}

/// A connection to the TLS listener that did not become a TLS session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedHandshake {
    /// The connection, counted as in [`Seen::connection_id`].
    pub connection_id: u64,
    /// The server name asked for, when the client got as far as to ask.
    pub sni: Option<String>,
    /// What rustls says, for example `received fatal alert: UnknownCA`.
    pub error: String,
}

/// A running stand-in. Dropping it closes its ports and connections.
pub struct StandIn {
    plain_addr: SocketAddr,
    tls_addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: [JoinHandle<()>; 2],
}

impl StandIn {
    /// Starts both listeners on ports of 127.0.0.1 that the kernel chooses.
    ///
    /// # Errors
    ///
    /// When a port cannot be bound or a certificate does not suit rustls.
    pub async fn start(config: StandInConfig) -> Result<Self> {
        let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let tls = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Self::start_on(config, plain, tls)
    }

    /// Starts where a real site is, on the ports 80 and 443 of an address; see [`netns`](crate::netns).
    ///
    /// # Errors
    ///
    /// When a port cannot be bound or a certificate does not suit rustls.
    pub async fn start_at(config: StandInConfig, address: Ipv4Addr) -> Result<Self> {
        let plain = TcpListener::bind((address, 80)).await?;
        let tls = TcpListener::bind((address, 443)).await?;
        Self::start_on(config, plain, tls)
    }

    fn start_on(config: StandInConfig, plain: TcpListener, tls: TcpListener) -> Result<Self> {
        let shared = Arc::new(Shared {
            http: config.http,
            tls: Arc::new(server_config(&config)?),
            last_connection_id: AtomicU64::new(0),
            record: watch::Sender::default(),
        });
        Ok(Self {
            plain_addr: plain.local_addr()?,
            tls_addr: tls.local_addr()?,
            accepting: [
                tokio::spawn(accept(plain, Listener::Plain, Arc::clone(&shared))),
                tokio::spawn(accept(tls, Listener::Tls, Arc::clone(&shared))),
            ],
            shared,
        })
    }

    /// The HTTP listener: answers every request with 301 to `https://`, the host and the path.
    pub fn plain_addr(&self) -> SocketAddr {
        self.plain_addr
    }

    /// The HTTPS listener: answers every request with 200 and a line of text.
    pub fn tls_addr(&self) -> SocketAddr {
        self.tls_addr
    }

    /// The requests so far, in the order of arrival, since the last [`StandIn::take_seen`].
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.record.borrow().seen.clone()
    }

    /// As [`StandIn::seen`], and forgets them. The counts go on.
    pub fn take_seen(&self) -> Vec<Seen> {
        let mut taken = Vec::new();
        self.shared
            .record
            .send_modify(|record| taken = std::mem::take(&mut record.seen));
        taken
    }

    /// What happened at one listener since the start.
    pub fn counts(&self, listener: Listener) -> Counts {
        self.shared.record.borrow().counts(listener).clone()
    }

    /// Waits until [`StandIn::seen`] has `requests` of them, and returns it.
    ///
    /// # Errors
    ///
    /// When the time is over; the message tells what did arrive.
    pub async fn wait_for(&self, requests: usize, limit: Duration) -> Result<Vec<Seen>> {
        let what = format!("{requests} requests");
        self.wait_until(&what, limit, |record| record.seen.len() >= requests)
            .await?;
        Ok(self.seen())
    }

    /// Waits until `failures` TLS handshakes have failed since the start, and returns them.
    ///
    /// A client knows of its refusal before the server does, so a test has to wait for this.
    ///
    /// # Errors
    ///
    /// When the time is over; the message tells what did arrive.
    pub async fn wait_for_failed_handshakes(
        &self,
        failures: usize,
        limit: Duration,
    ) -> Result<Vec<FailedHandshake>> {
        let what = format!("{failures} failed handshakes");
        self.wait_until(&what, limit, |record| {
            record.tls.failed_handshakes.len() >= failures
        })
        .await?;
        Ok(self.counts(Listener::Tls).failed_handshakes)
    }

    async fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        reached: impl Fn(&Record) -> bool,
    ) -> Result<()> {
        let mut changes = self.shared.record.subscribe();
        match timeout(limit, changes.wait_for(|record| reached(record))).await {
            Ok(waited) => {
                waited.context("the stand-in has gone")?;
                Ok(())
            }
            Err(_) => Err(anyhow!(
                "the stand-in did not see {what} within {limit:?}; it saw {:#?}",
                self.shared.record.borrow()
            )),
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        for task in &self.accepting {
            task.abort();
        }
    }
}

struct Shared {
    http: HttpVersions,
    tls: Arc<ServerConfig>,
    last_connection_id: AtomicU64,
    record: watch::Sender<Record>,
}

#[derive(Debug, Default)]
struct Record {
    seen: Vec<Seen>,
    plain: Counts,
    tls: Counts,
}

impl Record {
    fn counts(&self, listener: Listener) -> &Counts {
        match listener {
            Listener::Plain => &self.plain,
            Listener::Tls => &self.tls,
        }
    }

    fn counts_mut(&mut self, listener: Listener) -> &mut Counts {
        match listener {
            Listener::Plain => &mut self.plain,
            Listener::Tls => &mut self.tls,
        }
    }
}

/// What is known of a connection before its first request.
#[derive(Clone)]
struct Connection {
    listener: Listener,
    id: u64,
    tls_version: Option<String>,
    sni: Option<String>,
    alpn: Option<String>,
    client: Option<Client>,
}

fn server_config(config: &StandInConfig) -> Result<ServerConfig> {
    let mut by_name = Vec::new();
    for issued in &config.by_sni {
        let key = issued.certified_key()?;
        for name in issued.names() {
            by_name.push((name.to_ascii_lowercase(), Arc::clone(&key)));
        }
    }
    let resolver = BySni {
        by_name,
        otherwise: config.certificate.certified_key()?,
    };
    let mut server = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&config.tls.supported())?
        .with_client_cert_verifier(config.clients.verifier()?)
        .with_cert_resolver(Arc::new(resolver));
    server.alpn_protocols = config.http.alpn();
    Ok(server)
}

#[derive(Debug)]
struct BySni {
    /// Names in lower case, as rustls hands server names over.
    by_name: Vec<(String, Arc<CertifiedKey>)>,
    otherwise: Arc<CertifiedKey>,
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let sni = hello.server_name().unwrap_or_default();
        let mut keys = self.by_name.iter();
        let key = keys.find(|(name, _)| name == sni);
        Some(Arc::clone(key.map_or(&self.otherwise, |(_, key)| key)))
    }
}

/// Serves a listener until the task is aborted, which ends its connections too.
async fn accept(listener: TcpListener, kind: Listener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // What fails here is the connection, not the listener.
                let Ok((stream, _)) = accepted else { continue };
                let id = shared.last_connection_id.fetch_add(1, Ordering::Relaxed) + 1;
                shared.record.send_modify(|record| record.counts_mut(kind).connections += 1);
                match kind {
                    Listener::Plain => connections.spawn(serve_plain(stream, id, Arc::clone(&shared))),
                    Listener::Tls => connections.spawn(serve_tls(stream, id, Arc::clone(&shared))),
                };
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_plain(stream: TcpStream, id: u64, shared: Arc<Shared>) {
    let connection = Connection {
        listener: Listener::Plain,
        id,
        tls_version: None,
        sni: None,
        alpn: None,
        client: None,
    };
    serve(stream, HttpVersions::Both, connection, shared).await;
}

async fn serve_tls(stream: TcpStream, id: u64, shared: Arc<Shared>) {
    let mut sni = None;
    let stream = match handshake(stream, &shared.tls, &mut sni).await {
        Ok(stream) => stream,
        Err(error) => {
            let failure = FailedHandshake {
                connection_id: id,
                sni,
                error: error.to_string(),
            };
            shared
                .record
                .send_modify(|record| record.tls.failed_handshakes.push(failure));
            return;
        }
    };
    let (_, session) = stream.get_ref();
    let connection = Connection {
        listener: Listener::Tls,
        id,
        tls_version: session.protocol_version().map(tls::version_name),
        sni,
        alpn: session.alpn_protocol().map(tls::alpn_name),
        client: session
            .peer_certificates()
            .and_then(|chain| client(chain.first()?)),
    };
    let http = shared.http;
    serve(stream, http, connection, shared).await;
}

/// Who a certificate says that the client is; rustls has verified it.
fn client(certificate: &CertificateDer<'_>) -> Option<Client> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let common_name = names.next().and_then(|name| name.as_str().ok());
    Some(Client {
        common_name: common_name.unwrap_or_default().to_owned(),
        serial: format!("{:X}", parsed.tbs_certificate.serial),
    })
}

/// Shakes hands, and leaves the server name in `sni` even when that fails later.
async fn handshake(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    sni: &mut Option<String>,
) -> std::io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    *sni = start.client_hello().server_name().map(str::to_owned);
    start.into_stream(Arc::clone(config)).await
}

async fn serve<S>(stream: S, http: HttpVersions, connection: Connection, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(|request| {
        let (connection, shared) = (connection.clone(), Arc::clone(&shared));
        async move { Ok::<_, Infallible>(answer(request, connection, &shared).await) }
    });
    // Why a connection ended is its client's business; what was asked is on record by then.
    let _ended = http
        .server()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    connection: Connection,
    shared: &Shared,
) -> Response<Full<Bytes>> {
    let listener = connection.listener;
    let (head, body) = request.into_parts();
    // Read to its end, so that the connection can carry the next request.
    let _body = body.collect().await;

    let headers: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), lossy(value.as_bytes())))
        .collect();
    let header = |name: &str| {
        let value = head.headers.get(name)?;
        Some(lossy(value.as_bytes()))
    };
    let authority = match head.version {
        Version::HTTP_2 => head.uri.authority().map(ToString::to_string),
        _ => None,
    };
    let seen = Seen {
        listener,
        connection_id: connection.id,
        tls_version: connection.tls_version,
        sni: connection.sni,
        alpn: connection.alpn,
        client: connection.client,
        http_version: format!("{:?}", head.version),
        method: head.method.to_string(),
        scheme: head.uri.scheme_str().map(str::to_owned),
        host: authority
            .or_else(|| header(HOST.as_str()))
            .unwrap_or_default(),
        path: head
            .uri
            .path_and_query()
            .map_or_else(|| head.uri.path().to_owned(), ToString::to_string),
        x_forwarded_proto: header("x-forwarded-proto"),
        headers,
    };
    let response = match listener {
        Listener::Plain => redirect(&seen),
        Listener::Tls => welcome(&seen),
    };
    // On record before it is answered: whoever has the answer can read the record.
    shared.record.send_modify(|record| {
        record.counts_mut(listener).requests += 1;
        record.seen.push(seen);
    });
    response
}

fn redirect(seen: &Seen) -> Response<Full<Bytes>> {
    let location = format!("https://{}{}", without_port(&seen.host), seen.path);
    respond(
        Response::builder()
            .status(StatusCode::MOVED_PERMANENTLY)
            .header(LOCATION, location),
        String::new(),
    )
}

fn welcome(seen: &Seen) -> Response<Full<Bytes>> {
    let version = seen.tls_version.as_deref().unwrap_or("no TLS");
    respond(
        Response::builder().header(CONTENT_TYPE, "text/plain"),
        format!("{} at {} over {version}\n", seen.path, seen.host),
    )
}

fn respond(builder: hyper::http::response::Builder, body: String) -> Response<Full<Bytes>> {
    // A host with bytes that no header may carry cannot be echoed into `location`.
    builder
        .body(Full::new(body.into()))
        .unwrap_or_else(|error| {
            let mut refused = Response::new(Full::new(error.to_string().into()));
            *refused.status_mut() = StatusCode::BAD_REQUEST;
            refused
        })
}

/// `host` without `:port`; the colons within the brackets of an IPv6 address are not one.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_port_is_cut_from_a_host() {
        assert_eq!(without_port("edition.cnn.com"), "edition.cnn.com");
        assert_eq!(without_port("edition.cnn.com:80"), "edition.cnn.com");
        assert_eq!(without_port("[::1]"), "[::1]");
        assert_eq!(without_port("[::1]:80"), "[::1]");
        assert_eq!(without_port(""), "");
    }

    #[test]
    fn a_seen_request_reads_as_one_line() {
        let seen = Seen {
            listener: Listener::Tls,
            connection_id: 3,
            tls_version: Some("TLSv1.3".into()),
            sni: Some("edition.cnn.com".into()),
            alpn: Some("h2".into()),
            client: Some(Client {
                common_name: "client.example.com".into(),
                serial: "1".into(),
            }),
            http_version: "HTTP/2.0".into(),
            method: "GET".into(),
            scheme: Some("https".into()),
            host: "edition.cnn.com".into(),
            path: "/politics".into(),
            x_forwarded_proto: None,
            headers: Vec::new(),
        };
        assert_eq!(
            seen.to_string(),
            "#3 tls TLSv1.3 sni=edition.cnn.com alpn=h2 scheme=https \
             client=client.example.com host=\"edition.cnn.com\" \"GET /politics HTTP/2.0\""
        );
    }
}
