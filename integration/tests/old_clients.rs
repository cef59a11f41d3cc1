//! What HTTP/1 clients of long ago send, on every listener that takes requests, and real ones among them.

mod common;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use egress_integration::{
    egressctl::Running,
    modern_site::ModernSite,
    netns,
    pki::Leaf,
    probe,
    scripted::{Asked, Reply, Scripted},
    silent_port::SilentPort,
    stand_in::{HttpVersions, StandIn, StandInConfig},
};

use common::{
    HOST, SIMPLE, SOON, Trusted, entry, entry_with, head, log_of, originated, route, rule, tunnel,
};

/// A server over TLS, a proxy with all its listeners, and nobody where the plain server would be.
struct Wire {
    server: Scripted,
    proxy: Running,
    silent: SilentPort,
}

impl Wire {
    async fn start(
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
        flags: &[&str],
    ) -> Result<Self> {
        let trusted = Trusted::new()?;
        let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
        let at = (Ipv4Addr::LOCALHOST, 0).into();
        let server = Scripted::start(&certificate, at, script).await?;
        let (proxy, silent) = proxy(&trusted, server.addr(), flags).await?;
        Ok(Self {
            server,
            proxy,
            silent,
        })
    }

    /// What the server was asked for since, which came over TLS: it hears nothing else.
    fn asked(&self, path: &str) -> Vec<Asked> {
        let asked = self.server.asked().into_iter();
        asked.filter(|asked| asked.path() == path).collect()
    }

    /// The one request for a path.
    fn only(&self, path: &str) -> Result<Asked> {
        let asked = self.asked(path);
        ensure!(asked.len() == 1, "{path}: {asked:?}");
        asked.into_iter().next().context("none")
    }
}

/// A proxy with all its listeners, and nobody where the plain server would be.
async fn proxy(
    trusted: &Trusted,
    server: SocketAddr,
    flags: &[&str],
) -> Result<(Running, SilentPort)> {
    let silent = SilentPort::start().await?;
    let mut builder = trusted
        .egressctl(&originated(HOST, 443))
        .port(80, 0)
        .arg("--forward-proxy")
        .arg("127.0.0.1:0")
        .connect_to(&route(HOST, 443, server))
        .connect_to(&route(HOST, 80, silent.addr()));
    for flag in flags {
        builder = builder.arg(*flag);
    }
    Ok((builder.start().await?, silent))
}

/// By which listener a request comes.
#[derive(Clone, Copy, Debug)]
enum Way {
    Port,
    ForwardProxy,
    Tunnel,
}

impl Way {
    const ALL: [Way; 3] = [Way::Port, Way::ForwardProxy, Way::Tunnel];

    /// The first part of what a request asks for.
    fn begin(self) -> String {
        match self {
            Way::ForwardProxy => format!("http://{HOST}"),
            Way::Port | Way::Tunnel => String::new(),
        }
    }

    /// A connection by which requests may come.
    async fn connect(self, proxy: &Running) -> Result<TcpStream> {
        Ok(match self {
            Way::Port => TcpStream::connect(proxy.listener(80)?).await?,
            Way::ForwardProxy => TcpStream::connect(proxy.forward_proxy()?).await?,
            Way::Tunnel => {
                let connect = format!("CONNECT {HOST}:80 HTTP/1.1");
                let lines = [connect.as_str(), "Host: x"];
                let (end, mut running) = tunnel(proxy.forward_proxy()?, &lines).await?;
                // It lives as long as the test.
                running.detach_all();
                TcpStream::connect(end).await?
            }
        })
    }

    /// Sends a request that is the last of its connection; returns all that comes back.
    async fn ask(self, proxy: &Running, line: &str, more: &[u8]) -> Result<String> {
        let mut stream = self.connect(proxy).await?;
        stream.write_all(&self.request(line, more)?).await?;
        let answer = probe::rest(&mut stream, SOON).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// `METHOD PATH VERSION`, the host, and the rest of the head.
    fn request(self, line: &str, more: &[u8]) -> Result<Vec<u8>> {
        let (method, rest) = line.split_once(' ').context("no method")?;
        let begin = self.begin();
        let head = format!("{method} {begin}{rest}\r\nHost: {HOST}\r\n");
        Ok([head.as_bytes(), more].concat())
    }
}

/// Reads the body of an answer.
async fn body(stream: &mut TcpStream, length: usize) -> Result<String> {
    let mut body = vec![0; length];
    timeout(SOON, stream.read_exact(&mut body)).await??;
    Ok(String::from_utf8(body)?)
}

fn ok(asked: &Asked) -> Reply {
    Reply::Answer(200, format!("{}\n", asked.path()))
}

/// What clients offer to speak instead, and mean nothing by.
const OFFERS: [&str; 11] = [
    "TLS/1.0,SSL/2.0,SSL/3.0",
    "SSL/3.0",
    "tls/1.2",
    "TLS/1.2, HTTP/1.1",
    "HTTP/2.0",
    "h2",
    "h2c",
    "h2,h2c",
    "foo/1",
    "irc",
    "",
];

/// What is nearly the one offer that is meant.
fn near() -> Vec<String> {
    let word = "websocket";
    let mut all = ["websocket2", "websocket/13", "xwebsocket", "web socket"]
        .map(str::to_owned)
        .to_vec();
    for at in 0..word.len() {
        let (before, rest) = word.split_at(at);
        let after = rest.get(1..).unwrap_or_default();
        all.extend(["", "x", "X", "0", "~", "-"].map(|other| format!("{before}{other}{after}")));
        all.push(before.to_owned());
    }
    all
}

#[tokio::test]
async fn an_offer_that_nobody_means_is_passed_over() -> Result<()> {
    let wire = Wire::start(ok, &[]).await?;
    for way in Way::ALL {
        let mut stream = way.connect(&wire.proxy).await?;
        let mut offers = OFFERS.map(str::to_owned).to_vec();
        if matches!(way, Way::Port) {
            offers.extend(near());
        }
        for (at, offer) in offers.iter().enumerate() {
            let path = format!("/{way:?}/{at}");
            let more = format!(
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {offer}\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
            );
            let request = way.request(&format!("GET {path} HTTP/1.1"), more.as_bytes())?;
            stream.write_all(&request).await?;
            let head = head(&mut stream).await?;
            ensure!(
                head.starts_with("HTTP/1.1 200 "),
                "{way:?} {offer:?}: {head}"
            );
            body(&mut stream, path.len() + 1).await?;
            let asked = wire.only(&path)?;
            for header in ["upgrade", "http2-settings", "connection"] {
                assert_eq!(asked.header(header), None, "{way:?} {offer:?}: {asked:?}");
            }
        }
        // Two lines, none at all, and a body.
        for (path, more, body) in [
            (
                "two",
                "Connection: Upgrade\r\nUpgrade: foo\r\nUpgrade: h2c\r\n",
                "",
            ),
            ("none", "Connection: Upgrade\r\n", ""),
            (
                "body",
                "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n",
                "hello",
            ),
        ] {
            let line = format!("POST /{way:?}/{path} HTTP/1.1");
            let more = format!("{more}Connection: close\r\n\r\n{body}");
            let answer = way.ask(&wire.proxy, &line, more.as_bytes()).await?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            let asked = wire.only(&format!("/{way:?}/{path}"))?;
            assert_eq!(asked.header("upgrade"), None, "{asked:?}");
            assert_eq!(asked.body, body.as_bytes(), "{asked:?}");
        }
        // The one that is meant stays, whatever is offered beside it; this server does not take it up.
        for (at, offer) in ["h2c, websocket", "foo/1,WebSocket", "websocket, foo"]
            .into_iter()
            .enumerate()
        {
            let path = format!("/{way:?}/meant/{at}");
            let more =
                format!("Connection: Upgrade\r\nUpgrade: {offer}\r\nConnection: close\r\n\r\n");
            let line = format!("GET {path} HTTP/1.1");
            let answer = way.ask(&wire.proxy, &line, more.as_bytes()).await?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "{offer}: {answer}");
            let asked = wire.only(&path)?;
            let offered = asked.header("upgrade").unwrap_or_default();
            assert_eq!(offered.to_lowercase(), "websocket", "{offer}: {asked:?}");
        }
    }
    wire.silent.assert_silent().await
}

const CASE: &[&str] = &["--header-case", "preserve"];

/// A server that is particular about names, and calls its status what it likes.
fn particular(asked: &Asked) -> Reply {
    let body = asked.path();
    Reply::Whole(format!(
        "HTTP/1.1 200 Fine\r\nX-MyResp: a\r\nx-mYresp: b\r\nETag: \"x\"\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

#[tokio::test]
async fn the_case_of_headers_is_kept_both_ways_where_asked_for() -> Result<()> {
    let wire = Wire::start(particular, CASE).await?;
    let long = format!("X-{}", "Long".repeat(2 << 10));
    let many: String = (0..100)
        .map(|at| format!("X-Many{at}-AbC: y\r\n"))
        .collect();
    for way in Way::ALL {
        let path = format!("/{way:?}");
        let line = format!("GET {path} HTTP/1.1");
        let more = format!(
            "SOAPAction: x\r\nX-MyHeader: a\r\nx-mYheader: b\r\n{long}: z\r\n{many}\
             X-Egress-Originate: forged\r\nX-ENVOY-max-retries: 9\r\nConnection: close\r\n\r\n"
        );
        let answer = way.ask(&wire.proxy, &line, more.as_bytes()).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 Fine\r\n"), "{answer}");
        for written in [
            "\r\nX-MyResp: a\r\nX-MyResp: b\r\n",
            "\r\nETag: \"x\"\r\n",
            "\r\nContent-Length: ",
        ] {
            ensure!(answer.contains(written), "{way:?} {written:?}: {answer}");
        }
        let asked = wire.only(&path)?;
        for written in [
            "\r\nHost: edition.cnn.com\r\n".to_owned(),
            "\r\nSOAPAction: x\r\n".to_owned(),
            "\r\nX-MyHeader: a\r\nX-MyHeader: b\r\n".to_owned(),
            // What Envoy adds has the look of the rest.
            "\r\nX-Forwarded-Proto: https\r\n".to_owned(),
            format!("\r\n{long}: z\r\n"),
            many.clone(),
        ] {
            ensure!(
                asked.head.contains(&written),
                "{way:?} {written:?}: {asked:?}"
            );
        }
        let head = asked.head.to_lowercase();
        ensure!(!head.contains("\r\nx-egress-"), "{asked:?}");
        ensure!(!head.contains("\r\nx-envoy-"), "{asked:?}");
        assert_eq!(
            log_of(&wire.proxy, &path).await?.egress("action"),
            "originate"
        );
    }
    wire.silent.assert_silent().await
}

#[tokio::test]
async fn headers_are_in_small_letters_where_nobody_asked() -> Result<()> {
    let wire = Wire::start(particular, &[]).await?;
    for way in Way::ALL {
        let path = format!("/{way:?}");
        let line = format!("GET {path} HTTP/1.1");
        let more = b"SOAPAction: x\r\nConnection: close\r\n\r\n";
        let answer = way.ask(&wire.proxy, &line, more).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        ensure!(answer.contains("\r\nx-myresp: a\r\n"), "{answer}");
        let asked = wire.only(&path)?;
        ensure!(asked.head.contains("\r\nsoapaction: x\r\n"), "{asked:?}");
    }
    Ok(())
}

/// HTTP/2 has small letters, and nothing breaks by it.
#[tokio::test]
async fn a_server_of_http2_gets_small_letters() -> Result<()> {
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let site = StandInConfig::new(certificate).http(HttpVersions::OnlyHttp2);
    let site = StandIn::start(site).await?;
    let (proxy, _silent) = proxy(&trusted, site.tls_addr(), CASE).await?;
    for way in Way::ALL {
        let more = b"SOAPAction: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
        let answer = way.ask(&proxy, "POST /two HTTP/1.1", more).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let seen = common::only(&site)?;
        assert_eq!(seen.http_version, "HTTP/2.0");
        assert_eq!(seen.header("soapaction"), Some("x"));
        assert_eq!(seen.header("expect"), Some("100-continue"));
    }
    Ok(())
}

/// A server that ends its chunks one by one, which HTTP/1.0 does not know.
fn chunked(asked: &Asked) -> Reply {
    match asked.path().ends_with("/chunked") {
        true => Reply::Whole(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwel\r\n2\r\nl \r\n0\r\n\r\n"
                .to_owned(),
        ),
        false => ok(asked),
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_is_served_whole() -> Result<()> {
    let wire = Wire::start(chunked, &[]).await?;
    for way in Way::ALL {
        // One request, one connection.
        let line = format!("GET /{way:?}/a HTTP/1.0");
        let answer = way.ask(&wire.proxy, &line, b"\r\n").await?;
        ensure!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        ensure!(
            answer.ends_with(&format!("\r\n\r\n/{way:?}/a\n")),
            "{answer}"
        );
        ensure!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert_eq!(
            wire.only(&format!("/{way:?}/a"))?.header("host"),
            Some(HOST)
        );

        // Several on one, where the client asks for it.
        let mut stream = way.connect(&wire.proxy).await?;
        for at in 0..3 {
            let line = format!("GET /{way:?}/kept/{at} HTTP/1.0");
            let request = way.request(&line, b"Connection: keep-alive\r\n\r\n")?;
            stream.write_all(&request).await?;
            let head = head(&mut stream).await?;
            ensure!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
            ensure!(head.contains("\r\nconnection: keep-alive\r\n"), "{head}");
            let path = format!("/{way:?}/kept/{at}\n");
            assert_eq!(body(&mut stream, path.len()).await?, path);
        }

        // No chunks: the end of the connection is the end of the answer.
        for keep in ["", "Connection: keep-alive\r\n"] {
            let line = format!("GET /{way:?}/chunked HTTP/1.0");
            let more = format!("{keep}\r\n");
            let answer = way.ask(&wire.proxy, &line, more.as_bytes()).await?;
            ensure!(answer.ends_with("\r\n\r\nwell "), "{answer}");
            ensure!(!answer.contains("transfer-encoding"), "{answer}");
            ensure!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        }

        // Bodies, and methods that are older than 1.1.
        let more = b"Content-Length: 5\r\n\r\nhello";
        let line = format!("POST /{way:?}/body HTTP/1.0");
        let answer = way.ask(&wire.proxy, &line, more).await?;
        ensure!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        assert_eq!(wire.only(&format!("/{way:?}/body"))?.body, b"hello");
        let line = format!("HEAD /{way:?}/head HTTP/1.0");
        let answer = way.ask(&wire.proxy, &line, b"\r\n").await?;
        ensure!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        ensure!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    wire.silent.assert_silent().await
}

#[tokio::test]
async fn a_client_of_http_1_0_without_a_host_learns_why_it_is_refused() -> Result<()> {
    let wire = Wire::start(ok, &[]).await?;
    let (port, forward) = (wire.proxy.listener(80)?, wire.proxy.forward_proxy()?);
    for (to, path, request) in [
        (port, "/a", "GET /a HTTP/1.0\r\n\r\n"),
        (port, "/b", "GET /b HTTP/1.1\r\nConnection: close\r\n\r\n"),
        (port, "/c", "GET /c HTTP/1.0\r\nHost:\r\n\r\n"),
        (forward, "/d", "GET /d HTTP/1.0\r\n\r\n"),
    ] {
        let answer = probe::raw(to, request.as_bytes(), SOON).await?;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(answer.contains(" 400 Bad Request\r\n"), "{path}: {answer}");
        let told = "\r\n\r\negress_no_host: the request names no host\n";
        ensure!(answer.ends_with(told), "{path}: {answer}");
        let line = log_of(&wire.proxy, path).await?;
        assert_eq!(line.egress("action"), "reject", "{path}");
        assert_eq!(line.egress("reason"), "no_host", "{path}");
    }
    // A URL has a host.
    let request = format!("GET http://{HOST}/url HTTP/1.0\r\n\r\n");
    for to in [port, forward] {
        let answer = probe::raw(to, request.as_bytes(), SOON).await?;
        ensure!(answer.starts_with(b"HTTP/1.0 200 OK\r\n"), "{answer:?}");
    }
    assert_eq!(wire.asked("/url").len(), 2);
    wire.silent.assert_silent().await
}

#[tokio::test]
async fn a_method_that_nobody_has_registered_reaches_the_server_once() -> Result<()> {
    let wire = Wire::start(
        |asked| match asked.path().ends_with("/reset") {
            true => Reply::Reset,
            false => ok(asked),
        },
        &[],
    )
    .await?;
    for way in Way::ALL {
        for method in ["FOO", "PROPFIND", "VERSION-CONTROL", "get", "X!y"] {
            let path = format!("/{way:?}/{method}");
            let line = format!("{method} {path} HTTP/1.1");
            let more = b"Content-Length: 2\r\nConnection: close\r\n\r\nhi";
            let answer = way.ask(&wire.proxy, &line, more).await?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "{line}: {answer}");
            let asked = wire.only(&path)?;
            assert_eq!((asked.method(), &asked.body[..]), (method, &b"hi"[..]));
            let line = log_of(&wire.proxy, &path).await?;
            assert_eq!(line.egress("action"), "originate");
        }
        // What it does nobody knows, so it is not sent again.
        let path = format!("/{way:?}/reset");
        let line = format!("FOO {path} HTTP/1.1");
        let answer = way
            .ask(&wire.proxy, &line, b"Connection: close\r\n\r\n")
            .await?;
        ensure!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        ensure!(answer.contains("egress_reset: "), "{answer}");
        wire.only(&path)?;
        // What is no word is no method.
        for method in ["G@T", "G\u{e9}T", "(GET)"] {
            let line = format!("{method} /{way:?}/bad HTTP/1.1");
            let answer = way
                .ask(&wire.proxy, &line, b"Connection: close\r\n\r\n")
                .await?;
            ensure!(answer.starts_with("HTTP/1.1 400 "), "{method}: {answer}");
        }
    }
    wire.silent.assert_silent().await
}

/// A server that looks at a request before it wants its body.
fn looks_first(asked: &Asked) -> Reply {
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n".to_owned();
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n".to_owned();
    match asked.path().rsplit('/').next().unwrap_or_default() {
        "no" => Reply::Early(
            "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                .to_owned(),
        ),
        "silent" => ok(asked),
        "hint" => Reply::First(hint, Box::new(ok(asked))),
        _ if asked.header("expect").is_some() => Reply::First(go_on, Box::new(ok(asked))),
        _ => ok(asked),
    }
}

const EXPECTS: &[u8] = b"Expect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_client_that_waits_hears_from_the_server() -> Result<()> {
    let wire = Wire::start(looks_first, &[]).await?;
    for way in Way::ALL {
        let begun = async |what: &str| -> Result<TcpStream> {
            let mut stream = way.connect(&wire.proxy).await?;
            let line = format!("POST /{way:?}/{what} HTTP/1.1");
            stream.write_all(&way.request(&line, EXPECTS)?).await?;
            Ok(stream)
        };
        // It refuses, and nothing of the body was sent.
        let mut stream = begun("no").await?;
        let answer = head(&mut stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
        let asked = wire.only(&format!("/{way:?}/no"))?;
        assert_eq!(asked.header("expect"), Some("100-continue"));
        assert_eq!(asked.body, b"");

        // It wants the body.
        let mut stream = begun("yes").await?;
        let answer = head(&mut stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 100 Continue\r\n"), "{answer}");
        stream.write_all(b"hello").await?;
        let answer = head(&mut stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(wire.only(&format!("/{way:?}/yes"))?.body, b"hello");

        // It says nothing, and the client has waited long enough.
        let mut stream = begun("silent").await?;
        let heard = probe::rest(&mut stream, std::time::Duration::from_millis(300)).await?;
        assert_eq!(String::from_utf8_lossy(&heard), "");
        stream.write_all(b"hello").await?;
        let answer = head(&mut stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(wire.only(&format!("/{way:?}/silent"))?.body, b"hello");

        // What it says before its answer passes too.
        let line = format!("GET /{way:?}/hint HTTP/1.1");
        let answer = way
            .ask(&wire.proxy, &line, b"Connection: close\r\n\r\n")
            .await?;
        ensure!(answer.starts_with("HTTP/1.1 103 "), "{answer}");
        ensure!(
            answer.contains("\r\nlink: </style.css>; rel=preload\r\n\r\nHTTP/1.1 200 "),
            "{answer}"
        );
    }
    wire.silent.assert_silent().await
}

#[tokio::test]
async fn a_client_that_waits_is_answered_here_where_asked_for() -> Result<()> {
    let wire = Wire::start(looks_first, &["--expect-continue", "answer"]).await?;
    for way in Way::ALL {
        let mut stream = way.connect(&wire.proxy).await?;
        let line = format!("POST /{way:?}/yes HTTP/1.1");
        stream.write_all(&way.request(&line, EXPECTS)?).await?;
        let answer = head(&mut stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 100 Continue\r\n"), "{answer}");
        stream.write_all(b"hello").await?;
        let answer = head(&mut stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let asked = wire.only(&format!("/{way:?}/yes"))?;
        assert_eq!(asked.header("expect"), None);
        assert_eq!(asked.body, b"hello");
        // A client of HTTP/1.0, which cannot read them, gets no answers before the answer.
        for version in ["1.0", "1.1"] {
            let line = format!("GET /{way:?}/hint HTTP/{version}");
            let answer = way
                .ask(&wire.proxy, &line, b"Connection: close\r\n\r\n")
                .await?;
            let begins = format!("HTTP/{version} 200 ");
            ensure!(answer.starts_with(&begins), "{answer}");
        }
    }
    Ok(())
}

/// What a host is told, and how, is for its DestinationRule to say.
#[tokio::test]
async fn a_rule_says_what_its_host_is_told_and_by_which_http() -> Result<()> {
    const OTHER: &str = "other.example.com";
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST, OTHER]).await?;
    let annotations =
        "metadata: {annotations: {egressctl/forwarded-proto: http, egressctl/http: http1}, ";
    let rule = rule(HOST, SIMPLE).replace("metadata: {", annotations);
    let rules = entry(HOST, 443) + &rule + &originated(OTHER, 443);
    ensure!(rules.contains("http1"), "{rules}");
    let proxy = trusted
        .egressctl(&rules)
        .port(80, 0)
        .arg("--forward-proxy")
        .arg("127.0.0.1:0")
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route(OTHER, 443, site.tls_addr()))
        .start()
        .await?;
    for way in Way::ALL {
        let more = b"X-Forwarded-Proto: ftp\r\nConnection: close\r\n\r\n";
        let answer = way.ask(&proxy, "GET / HTTP/1.1", more).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let seen = common::only(&site)?;
        assert_eq!(seen.x_forwarded_proto.as_deref(), Some("http"), "{seen}");
        assert_eq!(seen.alpn.as_deref(), Some("http/1.1"), "{seen}");
    }
    probe::get(proxy.listener(80)?, OTHER, "/").await?;
    let seen = common::only(&site)?;
    assert_eq!(seen.x_forwarded_proto.as_deref(), Some("https"), "{seen}");
    assert_eq!(seen.alpn.as_deref(), Some("h2"), "{seen}");
    Ok(())
}

/// A server that compares `Origin` with its own name takes what an application of plain HTTP says, where its rule asks
/// for it; and nobody else's.
#[tokio::test]
async fn urls_in_requests_name_the_server_as_it_knows_itself_where_asked_for() -> Result<()> {
    const WILD: &str = "a.wild.example.com";
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST, WILD]))?;
    let server = Scripted::start(&certificate, (Ipv4Addr::LOCALHOST, 0).into(), ok).await?;
    let annotations = "metadata: {annotations: {egressctl/request-urls: rewrite}, ";
    let annotated = |host: &str| rule(host, SIMPLE).replace("metadata: {", annotations);
    let rules = entry(HOST, 8443)
        + &annotated(HOST)
        + &entry_with(
            "*.wild.example.com",
            "resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]",
        )
        + &annotated("*.wild.example.com");
    let proxy = trusted
        .egressctl(&rules)
        .port(80, 0)
        .connect_to(&route(HOST, 8443, server.addr()))
        .connect_to(&route(WILD, 443, server.addr()))
        .start()
        .await?;
    let to = proxy.listener(80)?;
    for (at, (host, sent, seen)) in [
        (
            HOST,
            "http://edition.cnn.com",
            "https://edition.cnn.com:8443",
        ),
        (
            HOST,
            "http://edition.cnn.com:80",
            "https://edition.cnn.com:8443",
        ),
        (
            HOST,
            "HTTP://Edition.cnn.com/a?b=http://edition.cnn.com",
            "https://Edition.cnn.com:8443/a?b=http://edition.cnn.com",
        ),
        (
            WILD,
            "http://a.wild.example.com/x",
            "https://a.wild.example.com/x",
        ),
        // Somebody else's, and what is no URL of plain HTTP.
        (HOST, "http://evil.example", "http://evil.example"),
        (
            HOST,
            "http://edition.cnn.com.evil.example/",
            "http://edition.cnn.com.evil.example/",
        ),
        (
            HOST,
            "http://edition.cnn.com@evil.example/",
            "http://edition.cnn.com@evil.example/",
        ),
        (HOST, "http://editionxcnn.com/", "http://editionxcnn.com/"),
        (
            HOST,
            "http://edition.cnn.com:8080/",
            "http://edition.cnn.com:8080/",
        ),
        (HOST, "https://edition.cnn.com/", "https://edition.cnn.com/"),
        (HOST, "null", "null"),
        (WILD, "http://wild.example.com/", "http://wild.example.com/"),
    ]
    .into_iter()
    .enumerate()
    {
        let request = format!(
            "MOVE /{at} HTTP/1.1\r\nHost: {host}\r\nOrigin: {sent}\r\nReferer: {sent}\r\nDestination: {sent}\r\n\
             X-Other: {sent}\r\nConnection: close\r\n\r\n"
        );
        let answer = probe::raw(to, request.as_bytes(), SOON).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{sent}");
        let asked = server.asked().pop().context("not asked")?;
        assert_eq!(asked.path(), format!("/{at}"));
        for name in ["origin", "referer", "destination"] {
            // Envoy itself takes a `Referer` with a user away.
            if !(name == "referer" && sent.contains('@')) {
                assert_eq!(asked.header(name), Some(seen), "{sent}");
            }
        }
        assert_eq!(asked.header("x-other"), Some(sent));
    }
    let request = format!("GET /none HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    probe::raw(to, request.as_bytes(), SOON).await?;
    let asked = server.asked().pop().context("not asked")?;
    assert_eq!((asked.path(), asked.header("origin")), ("/none", None));
    Ok(())
}

/// Where [`HOST`] is.
const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Where the proxy takes URLs.
const FORWARD_PROXY: &str = "127.0.0.1:3128";

/// A network where the clients take the proxy for [`HOST`], and the site is elsewhere.
fn among_real_clients<F: Future<Output = Result<()>>>(
    test: impl FnOnce(Trusted, Wire) -> F + Send,
) -> Result<()> {
    let names = [(HOST, Ipv4Addr::LOCALHOST.into())];
    netns::run(&[SITE.into()], &names, async || {
        let trusted = Trusted::new()?;
        let folder = trusted.path("site");
        std::fs::create_dir(&folder)?;
        packages(&folder)?;
        repository(&trusted, &folder).await?;
        let site = ModernSite {
            folder: Some(folder),
        };
        let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
        let answer = move |asked: &Asked| site.answer(asked);
        let server = Scripted::start(&certificate, (SITE, 443).into(), answer).await?;
        let silent = SilentPort::start().await?;
        let proxy = trusted
            .egressctl(&originated(HOST, 443))
            .port(80, 80)
            .arg("--forward-proxy")
            .arg(FORWARD_PROXY)
            .connect_to(&route(HOST, 443, server.addr()))
            .connect_to(&route(HOST, 80, silent.addr()))
            .start()
            .await?;
        let wire = Wire {
            server,
            proxy,
            silent,
        };
        test(trusted, wire).await
    })
}

/// A repository of Debian packages with one package, which is none but to those that download it.
fn packages(folder: &Path) -> Result<()> {
    let folder = folder.join("packages");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("old.deb"), "hello")?;
    let package = "Package: old\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.com>\n\
        Filename: ./old.deb\nSize: 5\n\
        SHA256: 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\n\
        Description: old\n";
    Ok(std::fs::write(folder.join("Packages"), package)?)
}

/// A repository of git with one commit.
async fn repository(trusted: &Trusted, folder: &Path) -> Result<()> {
    let (bare, work) = (folder.join("old.git"), trusted.path("work"));
    let script = "git init -q --bare $1 && git init -q $2 && cd $2 && echo old >file && git add file && \
        git -c user.name=a -c user.email=a@example.com commit -qm old && \
        git push -q $1 HEAD:refs/heads/main && cd $1 && git symbolic-ref HEAD refs/heads/main && \
        git update-server-info";
    let mut command = client(trusted, "sh", None);
    command.args(["-c", script, "sh"]).arg(&bare).arg(&work);
    said(command).await?;
    Ok(())
}

/// A program that knows of no proxy, or of one as the environment tells of it, and nothing of who runs the tests.
fn client(trusted: &Trusted, program: &str, proxy: Option<&str>) -> Command {
    let mut command = Command::new(program);
    for name in ["http_proxy", "https_proxy", "no_proxy", "all_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    if let Some(proxy) = proxy {
        command.env("http_proxy", format!("http://{proxy}/"));
    }
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .current_dir(trusted.path(""))
        .kill_on_drop(true);
    command
}

/// What a program says, which must succeed.
async fn said(mut command: Command) -> Result<String> {
    let output = timeout(SOON * 3, command.output()).await;
    let output = output.with_context(|| format!("{command:?} does not end"))?;
    let output = output.with_context(|| format!("{command:?} is not there"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {text}{error}");
    Ok(text)
}

/// Python with Requests: its own, or the copy that pip carries.
async fn python(trusted: &Trusted) -> Result<(&'static str, String)> {
    for python in ["python3", "/usr/bin/python3"] {
        for from in ["import requests", "from pip._vendor import requests"] {
            let mut command = client(trusted, python, None);
            command.args(["-c", from]);
            if said(command).await.is_ok() {
                return Ok((python, from.to_owned()));
            }
        }
    }
    anyhow::bail!("no Python here has Requests, nor pip; type `.setup/apt.sh python3-pip`")
}

/// What Java 1.0 had: it writes the first letters of headers large, and offers nothing but HTTP/1.1.
const JAVA: &str = r#"
import java.io.*;
import java.net.*;

public class Old {
    public static void main(String[] args) throws Exception {
        // It follows redirects of itself, but none from one scheme to another.
        CookieHandler.setDefault(new CookieManager());
        URLConnection login = new URL(args[1]).openConnection();
        System.out.println(new BufferedReader(new InputStreamReader(login.getInputStream())).readLine());
        for (String method : new String[] {"GET", "POST"}) {
            HttpURLConnection to = (HttpURLConnection) new URL(args[0] + method).openConnection();
            to.setRequestMethod(method);
            if (method.equals("POST")) {
                to.setDoOutput(true);
                to.setFixedLengthStreamingMode(5);
                to.getOutputStream().write("hello".getBytes("US-ASCII"));
            }
            BufferedReader in = new BufferedReader(new InputStreamReader(to.getInputStream()));
            System.out.println(to.getResponseCode() + " " + in.readLine());
        }
    }
}
"#;

#[test]
fn real_clients_get_what_they_ask_for() -> Result<()> {
    among_real_clients(async |trusted, wire| {
        let url = format!("http://{HOST}");
        let (python, requests) = python(&trusted).await?;
        for proxy in [None, Some(FORWARD_PROXY)] {
            let way = if proxy.is_some() { "proxy" } else { "port" };
            let client = |program: &str| client(&trusted, program, proxy);
            let host_of = |path: &str| -> Result<String> {
                let asked = wire.only(path)?;
                Ok(asked.header("host").unwrap_or_default().to_owned())
            };

            for (name, args) in [
                ("curl", &["-sS"][..]),
                ("curl-1.0", &["-sS", "--http1.0"]),
                (
                    "curl-post",
                    &["-sS", "-d", "hello", "-H", "Expect: 100-continue"],
                ),
                ("curl-1.0-post", &["-sS", "--http1.0", "-d", "hello"]),
                ("curl-h2c", &["-sS", "--http2"]),
                ("wget", &["-q", "-O", "-", "--no-config", "--tries=1"]),
                (
                    "wget-post",
                    &["-q", "-O", "-", "--no-config", "--post-data=hello"],
                ),
            ] {
                let path = format!("/{way}/{name}");
                let (program, _) = name.split_once('-').unwrap_or((name, ""));
                let mut command = client(program);
                let method = if name.ends_with("post") {
                    "POST"
                } else {
                    "GET"
                };
                command.args(args).arg(format!("{url}{path}"));
                assert_eq!(said(command).await?, format!("{method} {path}\n"), "{name}");
                assert_eq!(host_of(&path)?, HOST, "{name}");
                let body: &[u8] = if method == "POST" { b"hello" } else { b"" };
                assert_eq!(wire.only(&path)?.body, body, "{name}");
            }

            let script = format!(
                "{requests}\nimport sys\ns = requests.Session()\nfor _ in range(2): print(s.get(sys.argv[1]).text, end='')"
            );
            let path = format!("/{way}/requests");
            let mut command = client(python);
            command.arg("-c").arg(script).arg(format!("{url}{path}"));
            assert_eq!(said(command).await?, format!("GET {path}\n").repeat(2));
            assert_eq!(wire.asked(&path).len(), 2);

            let into = trusted.path(&format!("cloned-{way}"));
            let mut command = client("git");
            command
                .args(["clone", "-q", &format!("{url}/old.git")])
                .arg(&into);
            said(command).await?;
            assert_eq!(std::fs::read_to_string(into.join("file"))?, "old\n");

            apt(&trusted, way, &client).await?;
            if Path::new("/usr/bin/java").exists() {
                java(&trusted, way, proxy).await?;
            }
        }
        wire.silent.assert_silent().await
    })
}

/// The site leads them to `https://`, and its session is in cookies for TLS alone. Each ends where it wanted to, and is
/// known there. Java's is in [`java`].
#[test]
fn real_clients_follow_redirects_to_tls_and_keep_their_sessions() -> Result<()> {
    among_real_clients(async |trusted, wire| {
        let (python, requests) = python(&trusted).await?;
        let session = format!(
            "{requests}\nimport sys\ns = requests.Session()\nfor _ in range(2): print(s.get(sys.argv[1]).text, end='')"
        );
        let twice = "welcome\nwelcome\n";
        for proxy in [None, Some(FORWARD_PROXY)] {
            for (program, args, path, expected) in [
                ("curl", &["-sS", "-L", "-b", ""][..], "/login", "welcome\n"),
                (
                    "curl",
                    &["-sS", "-L", "-b", "", "--http1.0"],
                    "/account",
                    "welcome\n",
                ),
                (
                    "wget",
                    &["-q", "-O", "-", "--no-config", "--tries=1"],
                    "/account",
                    "welcome\n",
                ),
                (python, &["-c", &session], "/account", twice),
                ("curl", &["-sS", "-L"], "/moved", "GET /\n"),
            ] {
                let mut command = client(&trusted, program, proxy);
                command.args(args).arg(format!("http://{HOST}{path}"));
                assert_eq!(said(command).await?, expected, "{program} {path} {proxy:?}");
            }
            // What no rule has is left as it is: the client leaves, and finds nobody.
            let mut command = client(&trusted, "curl", proxy);
            let url = format!("http://{HOST}/to?https://elsewhere.invalid/");
            command
                .args(["-sS", "-o", "-", "-w", "%{redirect_url}"])
                .arg(url);
            let told = said(command).await?;
            ensure!(told.ends_with("https://elsewhere.invalid/"), "{told}");
        }
        wire.silent.assert_silent().await
    })
}

/// Updates apt's lists and downloads the package, in folders of its own.
async fn apt(trusted: &Trusted, way: &str, client: &impl Fn(&str) -> Command) -> Result<()> {
    let home = trusted.path(&format!("apt-{way}"));
    for folder in ["lists/partial", "archives/partial"] {
        std::fs::create_dir_all(home.join(folder))?;
    }
    let source = format!("deb [trusted=yes] http://{HOST}/packages ./\n");
    std::fs::write(home.join("sources.list"), source)?;
    std::fs::write(home.join("status"), "")?;
    let home_at = home.display();
    let settings = [
        format!("Dir::Etc::SourceList={home_at}/sources.list"),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        "Dir::Etc::Parts=/dev/null".to_owned(),
        "Dir::Etc::Main=/dev/null".to_owned(),
        format!("Dir::State={home_at}"),
        format!("Dir::State::Status={home_at}/status"),
        format!("Dir::Cache={home_at}"),
        "APT::Sandbox::User=root".to_owned(),
        "APT::Update::Error-Mode=any".to_owned(),
        "Acquire::Languages=none".to_owned(),
    ];
    for args in [&["update"][..], &["download", "old"]] {
        let mut command = client("apt-get");
        command.current_dir(&home).arg("-q");
        for setting in &settings {
            command.arg("-o").arg(setting);
        }
        command.args(args);
        said(command).await?;
    }
    let package = std::fs::read_dir(&home)?.find_map(|it| {
        let path = it.ok()?.path();
        (path.extension()? == "deb").then_some(path)
    });
    assert_eq!(std::fs::read(package.context("no package")?)?, b"hello");
    Ok(())
}

/// Has Java compile and run its client.
async fn java(trusted: &Trusted, way: &str, proxy: Option<&str>) -> Result<()> {
    let source = trusted.file("Old.java", JAVA)?;
    let mut command = client(trusted, "java", None);
    if let Some((host, port)) = proxy.and_then(|proxy| proxy.split_once(':')) {
        command.arg(format!("-Dhttp.proxyHost={host}"));
        command.arg(format!("-Dhttp.proxyPort={port}"));
        // It goes around proxies to what it takes for this machine.
        command.arg("-Dhttp.nonProxyHosts=");
    }
    let path = format!("/{way}/java-");
    let url = format!("http://{HOST}");
    command
        .arg(source)
        .arg(format!("{url}{path}"))
        .arg(format!("{url}/login"));
    let said = said(command).await?;
    let expected = format!("welcome\n200 GET {path}GET\n200 POST {path}POST\n");
    assert_eq!(said, expected);
    Ok(())
}
