//! The application: what sends requests to the proxy, or to the site itself.
//!
//! Each request has a connection of its own. Nothing follows a redirect, and nothing retries.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, Uri,
    body::Incoming,
    client::conn::{http1, http2},
    header::HOST,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{pki::Issued, tls};

/// How long a request may take; longer than any timeout that Envoy has by default.
const LIMIT: Duration = Duration::from_secs(30);

/// An answer, with its body read to the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2.0`.
    pub http_version: String,
    /// All headers in the order of arrival, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body; what is not UTF-8 is replaced.
    pub body: String,
}

impl Answer {
    /// The first header of this name, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// An answer over TLS, and what the connection was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsAnswer {
    /// The answer.
    pub answer: Answer,
    /// The server's own certificate, which was verified.
    pub peer_certificate: CertificateDer<'static>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub tls_version: String,
    /// The protocol that ALPN settled on, `h2` or `http/1.1`, and that the request used.
    pub alpn: Option<String>,
}

/// Sends `GET path` over plain HTTP/1.1 to `addr`, with `host` in the `Host` header.
///
/// # Errors
///
/// When there is no answer within 30 seconds, or `host` or `path` are nothing that a client could
/// send. For those there is [`raw`].
pub async fn get(addr: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    get_with(addr, host, path, &[]).await
}

/// As [`get`], with more headers.
///
/// # Errors
///
/// As [`get`].
pub async fn get_with(
    addr: SocketAddr,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Answer> {
    let exchange = async {
        let stream = TcpStream::connect(addr).await?;
        over_http1(stream, host, path, headers).await
    };
    timed(&format!("GET http://{host}{path} by {addr}"), exchange).await
}

/// Sends `GET path` over HTTPS to `addr`, and trusts nobody but the authorities of `ca_pem`.
///
/// `name` is the server name, which is sent as SNI and verified; `host` is what the request asks
/// for. An IP address as `name` is verified but not sent. HTTP/2 is used where the server has it.
///
/// # Errors
///
/// When the certificate does not hold, there is no answer within 30 seconds, or an argument is
/// malformed. What rustls says of a certificate is in the error's chain.
pub async fn get_tls(
    addr: SocketAddr,
    name: &str,
    host: &str,
    path: &str,
    ca_pem: &str,
) -> Result<TlsAnswer> {
    get_tls_as(None, addr, name, host, path, ca_pem).await
}

/// As [`get_tls`], by a client that shows this certificate where it is asked for one.
///
/// # Errors
///
/// As [`get_tls`], and when the server refuses the certificate.
pub async fn get_tls_as(
    client: Option<&Issued>,
    addr: SocketAddr,
    name: &str,
    host: &str,
    path: &str,
    ca_pem: &str,
) -> Result<TlsAnswer> {
    let server_name = ServerName::try_from(name.to_owned())
        .with_context(|| format!("no server name: `{name}`"))?;
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(trust(ca_pem)?);
    let mut config = match client {
        Some(client) => {
            config.with_client_auth_cert(client.chain().to_vec(), client.key().clone_key())?
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![tls::H2.to_vec(), tls::HTTP_1_1.to_vec()];

    let exchange = async {
        let stream = TcpStream::connect(addr).await?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(server_name, stream).await?;
        let (_, session) = stream.get_ref();
        let tls_version = session.protocol_version().context("no TLS version")?;
        let alpn = session.alpn_protocol().map(tls::alpn_name);
        let certificates = session.peer_certificates().unwrap_or_default();
        let peer_certificate = certificates.first().context("no certificate")?.clone();
        let answer = match alpn.as_deref() {
            Some("h2") => over_http2(stream, host, path).await?,
            _ => over_http1(stream, host, path, &[]).await?,
        };
        Ok(TlsAnswer {
            answer,
            peer_certificate: peer_certificate.into_owned(),
            tls_version: tls::version_name(tls_version),
            alpn,
        })
    };
    timed(&format!("GET https://{host}{path} by {addr}"), exchange).await
}

/// Sends bytes as they are, and returns what comes back until the other side closes or falls silent
/// for `limit`.
///
/// # Errors
///
/// When nobody listens at `addr`, or the connection is reset before a byte came back.
pub async fn raw(addr: SocketAddr, bytes: &[u8], limit: Duration) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr)
        .await
        .with_context(|| format!("cannot connect to {addr}"))?;
    stream.write_all(bytes).await?;
    rest(&mut stream, limit).await
}

/// Returns what comes until the other side closes or falls silent for `limit`.
///
/// # Errors
///
/// When the connection is reset before a byte came.
pub async fn rest(stream: &mut TcpStream, limit: Duration) -> Result<Vec<u8>> {
    let mut answer = Vec::new();
    loop {
        match timeout(limit, stream.read_buf(&mut answer)).await {
            Ok(Ok(0)) | Err(_) => return Ok(answer),
            Ok(Ok(_)) => {}
            // A server that refuses may reset the connection behind its answer.
            Ok(Err(_)) if !answer.is_empty() => return Ok(answer),
            Ok(Err(error)) => return Err(error).context("no answer"),
        }
    }
}

fn trust(ca_pem: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

async fn timed<T>(what: &str, exchange: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout(LIMIT, exchange).await {
        Ok(done) => done.with_context(|| what.to_owned()),
        Err(_) => Err(anyhow!("{what}: no answer within {LIMIT:?}")),
    }
}

async fn over_http1<S>(
    stream: S,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Dropped with this function, and the connection with it.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut request = Request::get(path).header(HOST, host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    collect(sender.send_request(request).await?).await
}

async fn over_http2<S>(stream: S, host: &str, path: &str) -> Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let executor = TokioExecutor::new();
    let (mut sender, connection) = http2::handshake(executor, TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let uri = Uri::builder()
        .scheme("https")
        .authority(host)
        .path_and_query(path)
        .build()?;
    let request = Request::get(uri).body(Empty::<Bytes>::new())?;
    collect(sender.send_request(request).await?).await
}

async fn collect(response: Response<Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer {
        status: head.status.as_u16(),
        http_version: format!("{:?}", head.version),
        headers: head
            .headers
            .iter()
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes());
                (name.to_string(), value.into_owned())
            })
            .collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}
