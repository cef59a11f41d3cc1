//! What lives longer than one answer: WebSocket, gRPC, events, and bodies of a hundred megabytes.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect should stop"
)]

mod common;

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::ServerConfig;
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, handshake::derive_accept_key, protocol::Role},
};

use egress_integration::{
    egressctl::Running, pki::Leaf, probe, silent_port::SilentPort, tinyproxy::Tinyproxy,
};

use common::{
    HOST, SIMPLE, SOON, Trusted, entry, entry_with, eventually, log_of, originated, route, rule,
    tunnel,
};

const MEGABYTE: usize = 1 << 20;
/// What is sent in each direction.
const LARGE: usize = 100 * MEGABYTE;
/// What Envoy may take more for it.
const ROOM: u64 = 32 * MEGABYTE as u64;

/// Header lines, of which 100 would be Envoy's default; with 150 bytes each, beyond its 60 kB as well.
const MANY: usize = 450;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// What a server was asked.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    alpn: String,
    http_version: String,
    host: String,
    path: String,
}

/// A server over TLS that upgrades, streams and has trailers, which the stand-in does not.
struct Server {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Lets the next event go.
    next: Arc<Notify>,
    _running: JoinSet<()>,
}

impl Server {
    async fn start(trusted: &Trusted, alpn: &[&str]) -> Result<Self> {
        let issued = trusted.ca.issue(&Leaf::for_names([HOST]))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(issued.chain().to_vec(), issued.key().clone_key())?;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let (asked, next) = (Arc::<Mutex<Vec<Asked>>>::default(), Arc::new(Notify::new()));
        let mut running = JoinSet::new();
        let (record, release) = (Arc::clone(&asked), Arc::clone(&next));
        running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (acceptor, record, release) =
                    (acceptor.clone(), Arc::clone(&record), Arc::clone(&release));
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let alpn = stream.get_ref().1.alpn_protocol().unwrap_or_default();
                    let alpn = String::from_utf8_lossy(alpn).into_owned();
                    let service = service_fn(|request: Request<Incoming>| {
                        let (alpn, record) = (alpn.clone(), Arc::clone(&record));
                        let release = Arc::clone(&release);
                        async move {
                            record.lock().unwrap().push(Asked {
                                alpn,
                                http_version: format!("{:?}", request.version()),
                                host: host_of(&request),
                                path: request.uri().path().to_owned(),
                            });
                            Ok::<_, Infallible>(answer(request, &release).await)
                        }
                    });
                    let mut builder = auto::Builder::new(TokioExecutor::new());
                    builder.http1().max_headers(1000);
                    builder.http2().max_header_list_size(1 << 20);
                    let _ended = builder
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self {
            addr,
            asked,
            next,
            _running: running,
        })
    }

    fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn host_of(request: &Request<Incoming>) -> String {
    let header = request.headers().get("host");
    match (request.uri().authority(), header) {
        (Some(authority), _) => authority.to_string(),
        (None, Some(host)) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
        (None, None) => String::new(),
    }
}

async fn answer(request: Request<Incoming>, release: &Arc<Notify>) -> Answer {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/socket" => upgrade(request),
        "/many" => {
            let (head, _) = request.into_parts();
            let mut response = whole(String::new());
            *response.headers_mut() = head.headers;
            response.headers_mut().remove("host");
            let method = head.method.as_str().parse().unwrap();
            response.headers_mut().insert("method", method);
            response
        }
        "/upload" => {
            let mut body = request.into_body();
            let mut length = 0;
            while let Some(Ok(frame)) = body.frame().await {
                length += frame.data_ref().map_or(0, Bytes::len);
            }
            whole(length.to_string())
        }
        "/download" => {
            let chunk = Bytes::from(vec![b'x'; MEGABYTE]);
            let chunks = stream::iter((0..LARGE / MEGABYTE).map(move |_| data(chunk.clone())));
            Response::new(BodyExt::boxed(StreamBody::new(chunks)))
        }
        "/events" => {
            let release = Arc::clone(release);
            let events = stream::unfold(0, move |at| {
                let release = Arc::clone(&release);
                async move {
                    if at > 0 {
                        release.notified().await;
                    }
                    (at < 3).then(|| (data(format!("data: {at}\n\n").into()), at + 1))
                }
            });
            let mut response = Response::new(BodyExt::boxed(StreamBody::new(events)));
            let kind = "text/event-stream".parse().unwrap();
            response.headers_mut().insert("content-type", kind);
            response
        }
        // gRPC as a service would answer it: what came is sent back, message by message, then the status.
        "/echo.Echo/Say" => {
            let messages = stream::unfold(Some(request.into_body()), |body| async move {
                let mut body = body?;
                match body.frame().await {
                    Some(Ok(frame)) => Some((Ok(frame), Some(body))),
                    _ => {
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        trailers.insert("grpc-message", "well%20said".parse().unwrap());
                        Some((Ok(Frame::trailers(trailers)), None))
                    }
                }
            });
            let mut response = Response::new(BodyExt::boxed(StreamBody::new(messages)));
            let kind = "application/grpc".parse().unwrap();
            response.headers_mut().insert("content-type", kind);
            response
        }
        _ => whole(path),
    }
}

fn data(bytes: Bytes) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(bytes))
}

fn whole(text: String) -> Answer {
    Response::new(http_body_util::Full::new(Bytes::from(text)).boxed())
}

/// Takes up a WebSocket and sends back each message in capitals.
fn upgrade(request: Request<Incoming>) -> Answer {
    let mut response = whole(String::new());
    let Some(key) = request.headers().get("sec-websocket-key") else {
        // Such as an upgrade over HTTP/2, which this server does not know.
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let accept = derive_accept_key(key.as_bytes());
    let protocol = request.headers().get("sec-websocket-protocol").cloned();
    tokio::spawn(async move {
        let stream = TokioIo::new(hyper::upgrade::on(request).await?);
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Text(text) => {
                    let text = text.as_str().to_uppercase();
                    socket.send(Message::text(text)).await?;
                }
                Message::Close(_) => break,
                other => socket.send(other).await?,
            }
        }
        anyhow::Ok(())
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("connection", "upgrade".parse().unwrap());
    headers.insert("upgrade", "websocket".parse().unwrap());
    headers.insert("sec-websocket-accept", accept.parse().unwrap());
    if let Some(protocol) = protocol {
        headers.insert("sec-websocket-protocol", protocol);
    }
    response
}

async fn proxy(trusted: &Trusted, rules: &str, server: &Server) -> Result<Running> {
    trusted
        .egressctl(rules)
        .port(80, 0)
        .connect_to(&route(HOST, 443, server.addr))
        .start()
        .await
}

/// Opens a WebSocket to the path `/socket` and says something twice.
async fn talk(proxy: SocketAddr, host: &str) -> Result<()> {
    let stream = TcpStream::connect(proxy).await?;
    let request = tungstenite::http::Request::get(format!("ws://{host}/socket"))
        .header("host", host)
        .header("connection", "Upgrade")
        .header("upgrade", "WebSocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", "chat")
        .body(())?;
    let (mut socket, response) = timeout(SOON, client_async(request, stream)).await??;
    assert_eq!(response.status(), 101);
    let protocol = response.headers().get("sec-websocket-protocol");
    assert_eq!(protocol.context("no protocol")?, "chat");
    for word in ["hello", "again"] {
        socket.send(Message::text(word)).await?;
        let said = timeout(SOON, socket.next())
            .await?
            .context("nothing said")??;
        assert_eq!(said.into_text()?.as_str(), word.to_uppercase());
    }
    // And bytes that are more than a buffer.
    let bytes = Bytes::from(vec![7; 300_000]);
    socket.send(Message::binary(bytes.clone())).await?;
    let said = timeout(SOON, socket.next()).await?.context("nothing")??;
    assert_eq!(said.into_data(), bytes);
    socket.close(None).await?;
    Ok(())
}

#[tokio::test]
async fn a_websocket_goes_over_http1_where_requests_go_over_http2() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = Server::start(&trusted, &["h2", "http/1.1"]).await?;
    let proxy = proxy(&trusted, &originated(HOST, 443), &server).await?;
    // Requests before, between and after; each in the HTTP that it had before.
    for _ in 0..2 {
        let answer = probe::get(proxy.listener(80)?, HOST, "/plain").await?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        talk(proxy.listener(80)?, HOST).await?;
    }
    probe::get(proxy.listener(80)?, HOST, "/plain").await?;
    let seen: Vec<_> = server
        .take_asked()
        .into_iter()
        .map(|asked| (asked.path, asked.alpn, asked.http_version, asked.host))
        .collect();
    let over = |path: &str, alpn: &str, http: &str| {
        (
            path.to_owned(),
            alpn.to_owned(),
            http.to_owned(),
            HOST.to_owned(),
        )
    };
    let plain = over("/plain", "h2", "HTTP/2.0");
    let socket = over("/socket", "http/1.1", "HTTP/1.1");
    assert_eq!(
        seen,
        [plain.clone(), socket.clone(), plain.clone(), socket, plain]
    );
    let log = log_of(&proxy, "/socket").await?;
    assert_eq!(log.istio("response_code"), "101");
    assert_eq!(log.egress("action"), "originate");
    assert_eq!(log.egress("target"), "edition.cnn.com:443");
    Ok(())
}

#[tokio::test]
async fn a_websocket_reaches_every_kind_of_cluster() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = Server::start(&trusted, &["h2", "http/1.1"]).await?;
    let port = server.addr.port();
    let listed = format!(
        "resolution: STATIC, endpoints: [{{address: 127.0.0.1}}], \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]"
    );
    let hashed = "{tls: {mode: SIMPLE}, loadBalancer: {consistentHash: {httpHeaderName: x-user}}}";
    let http1 = "{tls: {mode: SIMPLE}, connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}}";
    for (what, rules, host) in [
        (
            "listed",
            entry_with(HOST, &listed) + &rule(HOST, SIMPLE),
            HOST,
        ),
        (
            "hashed",
            entry_with(HOST, &listed) + &rule(HOST, hashed),
            HOST,
        ),
        ("HTTP/1.1", entry(HOST, 443) + &rule(HOST, http1), HOST),
        ("rewritten", originated(HOST, 443), "EDITION.cnn.com:80"),
    ] {
        let proxy = proxy(&trusted, &rules, &server).await.context(what)?;
        talk(proxy.listener(80)?, host).await.context(what)?;
        for asked in server.take_asked() {
            assert_eq!(asked.alpn, "http/1.1", "{what}: {asked:?}");
        }
    }
    Ok(())
}

/// The way out through a proxy carries upgrades like anything else, and keeps them apart as well.
#[tokio::test]
async fn a_websocket_goes_through_an_upstream_proxy() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = Server::start(&trusted, &["h2", "http/1.1"]).await?;
    let upstream = Tinyproxy::start(&[]).await?;
    let proxy = trusted
        .egressctl(&originated(HOST, 443))
        .port(80, 0)
        .arg("--upstream-proxy")
        .arg(format!("http://{}", upstream.addr()))
        .connect_to(&route(HOST, 443, server.addr))
        .start()
        .await?;
    for _ in 0..2 {
        let answer = probe::get(proxy.listener(80)?, HOST, "/plain").await?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        talk(proxy.listener(80)?, HOST).await?;
    }
    let alpn: Vec<_> = server.take_asked().into_iter().map(|it| it.alpn).collect();
    assert_eq!(alpn, ["h2", "http/1.1", "h2", "http/1.1"]);
    Ok(())
}

/// What is not in the table has no upgrade either, and other upgrades are passed over.
#[tokio::test]
async fn an_upgrade_is_no_way_around_the_rules() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = Server::start(&trusted, &["h2", "http/1.1"]).await?;
    let proxy = proxy(&trusted, &originated(HOST, 443), &server).await?;
    let headers = |to: &'static str| [("connection", "upgrade"), ("upgrade", to)];
    let http = proxy.listener(80)?;
    let answer = probe::get_with(http, "other.example", "/", &headers("websocket")).await?;
    assert_eq!(answer.status, 502, "{}", answer.body);
    ensure!(answer.body.starts_with("egress_unknown_host"), "{answer:?}");
    ensure!(server.take_asked().is_empty());
    let answer = probe::get_with(http, HOST, "/socket", &headers("irc")).await?;
    assert_eq!(answer.status, 400, "it has no key");
    assert_eq!(server.take_asked()[0].alpn, "h2");
    Ok(())
}

/// One length-prefixed message.
fn message(text: &str) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(text.len()).unwrap());
    bytes.put(text.as_bytes());
    bytes.freeze()
}

fn body_of(receiver: mpsc::Receiver<Bytes>) -> impl Body<Data = Bytes, Error = Infallible> {
    let frames = stream::unfold(receiver, |mut receiver| async move {
        let bytes = receiver.recv().await?;
        Some((data(bytes), receiver))
    });
    StreamBody::new(Box::pin(frames))
}

#[tokio::test]
async fn grpc_comes_in_as_h2c_and_goes_out_as_h2_with_its_trailers() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = Server::start(&trusted, &["h2"]).await?;
    let spec =
        "resolution: DNS, ports: [{number: 80, name: grpc, protocol: GRPC, targetPort: 443}]";
    for rules in [
        originated(HOST, 443),
        entry_with(HOST, spec) + &rule(HOST, SIMPLE),
    ] {
        let proxy = proxy(&trusted, &rules, &server).await?;
        let stream = TcpStream::connect(proxy.listener(80)?).await?;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);

        // A stream of three messages, each of which is answered before the next is sent.
        let (messages, receiver) = mpsc::channel(1);
        let request = Request::post(format!("http://{HOST}/echo.Echo/Say"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body_of(receiver))?;
        messages.send(message("0")).await?;
        let response = timeout(SOON, sender.send_request(request)).await??;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let mut body = response.into_body();
        for at in 0..3 {
            if at > 0 {
                messages.send(message(&at.to_string())).await?;
            }
            let frame = timeout(SOON, body.frame()).await?.context("no message")??;
            assert_eq!(frame.into_data().ok(), Some(message(&at.to_string())));
        }
        drop(messages);
        let frame = timeout(SOON, body.frame())
            .await?
            .context("no trailers")??;
        let trailers = frame.into_trailers().ok().context("no trailers")?;
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["grpc-message"], "well%20said");

        // And one call.
        grpc(proxy.listener(80)?, HOST).await?;
        for asked in server.take_asked() {
            assert_eq!(asked.alpn, "h2");
            assert_eq!(asked.host, HOST);
        }
    }
    Ok(())
}

/// CONNECT to a port of HTTP: what is said within is read as requests, and goes where the rules lead it.
#[tokio::test]
async fn what_follows_connect_to_a_port_of_http_is_originated() -> Result<()> {
    let trusted = Trusted::new()?;
    let (server, silent) = (
        Server::start(&trusted, &["h2", "http/1.1"]).await?,
        SilentPort::start().await?,
    );
    let upstream = Tinyproxy::start(&[]).await?;
    let url = format!("http://{}", upstream.addr());
    for more in [&[][..], &["--upstream-proxy", url.as_str()]] {
        let mut builder = trusted
            .egressctl(&(originated(HOST, 443) + &originated("other.example", 443)))
            .arg("--forward-proxy")
            .arg("127.0.0.1:0")
            .connect_to(&route(HOST, 443, server.addr))
            .connect_to(&route(HOST, 80, silent.addr()))
            .connect_to(&route("other.example", 443, silent.addr()));
        for word in more {
            builder = builder.arg(*word);
        }
        let proxy = builder.start().await?;
        let address = proxy.forward_proxy()?;
        let connect = format!("CONNECT {HOST}:80 HTTP/1.1");
        let lines = [connect.as_str(), "Host: other.example"];
        let opened = || tunnel(address, &lines);

        let (end, _running) = opened().await?;
        let answer = probe::get(end, HOST, "/plain").await?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let (end, _running) = opened().await?;
        talk(end, HOST).await?;
        let (end, _running) = opened().await?;
        grpc(end, &format!("{HOST}:80")).await?;
        let seen: Vec<_> = server
            .take_asked()
            .into_iter()
            .map(|it| (it.path, it.alpn, it.host))
            .collect();
        let over = |path: &str, alpn: &str| (path.to_owned(), alpn.to_owned(), HOST.to_owned());
        let all = [
            over("/plain", "h2"),
            over("/socket", "http/1.1"),
            over("/echo.Echo/Say", "h2"),
        ];
        assert_eq!(seen, all, "{more:?}");
        let log = log_of(&proxy, "/plain").await?;
        assert_eq!(log.egress("action"), "originate");
        assert_eq!(log.egress("target"), "edition.cnn.com:443");

        // Each of these is for somebody else, or for nobody.
        for (said, answer) in [
            (
                "GET / HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n",
                "egress_other_host",
            ),
            (
                "GET / HTTP/1.1\r\nHost: edition.cnn.com:443\r\nConnection: close\r\n\r\n",
                "egress_other_host",
            ),
            (
                "GET http://other.example/ HTTP/1.1\r\nHost: edition.cnn.com\r\nConnection: close\r\n\r\n",
                "egress_other_host",
            ),
            (
                "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
                "egress_other_host",
            ),
            ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", " 400 "),
            (
                "CONNECT edition.cnn.com:80 HTTP/1.1\r\nHost: edition.cnn.com:80\r\nConnection: close\r\n\r\n",
                " 403 ",
            ),
            ("\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03random", " 400 "),
            ("SSH-2.0-OpenSSH_9.2\r\n", " 400 "),
        ] {
            let (end, _running) = opened().await?;
            let heard = probe::raw(end, said.as_bytes(), SOON).await?;
            let heard = String::from_utf8_lossy(&heard);
            ensure!(heard.contains(answer), "{said:?}: {heard}");
        }
        ensure!(server.take_asked().is_empty());
        let refused = proxy.wait_for_log(|line| line.contains("reason=other_host"), SOON);
        ensure!(refused.await?.contains("action=reject"));
    }
    // One tunnel for each kind of HTTP of the server, and nothing beside them.
    eventually("the proxy is asked", async || {
        Ok(!upstream.asked().is_empty())
    })
    .await?;
    let there = server.addr.to_string();
    ensure!(
        upstream.asked().iter().all(|it| *it == there),
        "{:?}",
        upstream.asked()
    );
    silent.assert_silent().await?;
    Ok(())
}

/// One call by h2c.
async fn grpc(address: SocketAddr, authority: &str) -> Result<()> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let (messages, receiver) = mpsc::channel(1);
    messages.send(message("one")).await?;
    drop(messages);
    let request = Request::post(format!("http://{authority}/echo.Echo/Say"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body_of(receiver))?;
    let response = timeout(SOON, sender.send_request(request)).await??;
    let whole = timeout(SOON, response.into_body().collect()).await??;
    let status = whole.trailers().and_then(|it| it.get("grpc-status"));
    assert_eq!(status.context("no status")?, "0");
    assert_eq!(whole.to_bytes(), message("one"));
    Ok(())
}

/// More headers than Envoy takes by itself, both ways, and a method that nobody has registered.
#[tokio::test]
async fn many_headers_and_any_method_pass() -> Result<()> {
    let trusted = Trusted::new()?;
    for alpn in ["h2", "http/1.1"] {
        let server = Server::start(&trusted, &[alpn]).await?;
        let proxy = proxy(&trusted, &originated(HOST, 443), &server).await?;
        let stream = TcpStream::connect(proxy.listener(80)?).await?;
        let mut builder = http1::Builder::new();
        builder.max_headers(1000).max_buf_size(1 << 20);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let mut request = Request::builder()
            .method("PROPFIND")
            .uri("/many")
            .header("host", HOST);
        for at in 0..MANY {
            request = request.header(format!("x-{at}"), "v".repeat(150));
        }
        let request = request.body(Empty::<Bytes>::new())?;
        let response = timeout(SOON, sender.send_request(request)).await??;
        assert_eq!(response.status(), 200, "{alpn}");
        assert_eq!(response.headers()["method"], "PROPFIND", "{alpn}");
        let came = |headers: &HeaderMap| {
            headers
                .keys()
                .filter(|it| it.as_str().starts_with("x-"))
                .count()
        };
        assert!(came(response.headers()) >= MANY, "{alpn}");
        assert_eq!(server.take_asked()[0].path, "/many");

        // What is more than that has a status that says so.
        let large = format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nx-large: {}\r\n\r\n",
            "v".repeat(100 << 10)
        );
        let heard = probe::raw(proxy.listener(80)?, large.as_bytes(), SOON).await?;
        ensure!(
            heard.starts_with(b"HTTP/1.1 431 "),
            "{}",
            String::from_utf8_lossy(&heard)
        );
        ensure!(server.take_asked().is_empty());
    }
    Ok(())
}

/// One that cannot be connected tells so as gRPC does.
#[tokio::test]
async fn grpc_learns_in_its_own_words_that_nobody_is_there() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = Server::start(&trusted, &["h2"]).await?;
    let rules = originated(HOST, 443);
    let proxy = proxy(&trusted, &rules, &server).await?;
    drop(server);
    let stream = TcpStream::connect(proxy.listener(80)?).await?;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::post(format!("http://{HOST}/echo.Echo/Say"))
        .header("content-type", "application/grpc")
        .body(Empty::<Bytes>::new())?;
    let response = timeout(SOON, sender.send_request(request)).await??;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    let message = response.headers()["grpc-message"].to_str()?;
    ensure!(message.contains("egress_refused"), "{message}");
    Ok(())
}

#[tokio::test]
async fn events_arrive_one_by_one() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = Server::start(&trusted, &["h2", "http/1.1"]).await?;
    let proxy = proxy(&trusted, &originated(HOST, 443), &server).await?;
    let stream = TcpStream::connect(proxy.listener(80)?).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get("/events")
        .header("host", HOST)
        .body(Empty::<Bytes>::new())?;
    let response = timeout(SOON, sender.send_request(request)).await??;
    let mut body = response.into_body();
    for at in 0..3 {
        // The server keeps the next one back until this one is here.
        let frame = timeout(SOON, body.frame()).await?.context("no event")??;
        let event = frame.into_data().ok().context("no data")?;
        assert_eq!(event, format!("data: {at}\n\n"));
        let more = timeout(Duration::from_millis(100), body.frame()).await;
        ensure!(more.is_err(), "too early: {more:?}");
        server.next.notify_one();
    }
    let end = timeout(SOON, body.frame()).await?;
    ensure!(end.is_none(), "{end:?}");
    Ok(())
}

/// The memory that Envoy has taken from the system, in bytes.
async fn heap(proxy: &Running) -> Result<u64> {
    let answer = proxy.admin_get("/memory").await?;
    let memory: Value = serde_json::from_str(&answer.body)?;
    let size = memory.get("heap_size").and_then(Value::as_str);
    Ok(size.context("no heap size")?.parse()?)
}

#[tokio::test]
async fn large_bodies_pass_without_being_kept() -> Result<()> {
    let trusted = Trusted::new()?;
    for alpn in [["h2"], ["http/1.1"]] {
        let server = Server::start(&trusted, &alpn).await?;
        let proxy = proxy(&trusted, &originated(HOST, 443), &server).await?;
        probe::get(proxy.listener(80)?, HOST, "/warm").await?;
        let before = heap(&proxy).await?;
        let stream = TcpStream::connect(proxy.listener(80)?).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);

        let chunk = Bytes::from(vec![b'x'; MEGABYTE]);
        let chunks = stream::iter((0..LARGE / MEGABYTE).map(move |_| data(chunk.clone())));
        let request = Request::post("/upload")
            .header("host", HOST)
            .body(BodyExt::boxed(StreamBody::new(chunks)))?;
        let response = timeout(SOON * 3, sender.send_request(request)).await??;
        let body = response.into_body().collect().await?.to_bytes();
        assert_eq!(body, LARGE.to_string());

        let request = Request::get("/download")
            .header("host", HOST)
            .body(Empty::<Bytes>::new().boxed())?;
        let response = timeout(SOON, sender.send_request(request)).await??;
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(frame) = timeout(SOON * 3, body.frame()).await? {
            length += frame?.data_ref().map_or(0, Bytes::len);
        }
        assert_eq!(length, LARGE);
        let taken = heap(&proxy).await?.saturating_sub(before);
        ensure!(taken < ROOM, "{alpn:?}: Envoy took {taken} bytes more");
    }
    Ok(())
}
