//! What Envoy refuses before our filter sees it has a reason in the log and in the answer, and so has an answer that is
//! none.

mod common;

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use egress_integration::{
    egressctl::{Builder, Running},
    frames::{self, FrameServer},
    pki::Leaf,
    probe,
    scripted::{Asked, Reply, Scripted},
    silent_port::SilentPort,
};

use common::{HOST, LogLine, SIMPLE, SOON, Trusted, eventually, log_of, originated, route, rule};

/// Sends bytes, and returns the answer.
async fn send(to: std::net::SocketAddr, bytes: &[u8]) -> Result<String> {
    let answer = probe::raw(to, bytes, SOON).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn get(path: &str, more: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{more}\r\n").into_bytes()
}

/// What is refused, by which status, and with which reason.
fn refused() -> Vec<(Vec<u8>, u16, &'static str)> {
    let many = "x: y\r\n".repeat(1100);
    let large = format!("x: {}\r\n", "y".repeat(97 << 10));
    let mut raw = get("/caf", "");
    raw.splice(8..8, *b"\xc3\xa9");
    vec![
        (raw, 400, "bad_request"),
        (b"hello\r\n\r\n".to_vec(), 400, "bad_request"),
        (get("/a#b", ""), 400, "bad_request"),
        (get("/many", &many), 431, "headers_too_large"),
        (get("/large", &large), 431, "headers_too_large"),
        (
            get(
                "/",
                "Connection: upgrade\r\nUpgrade: websocket, websocket\r\n",
            ),
            403,
            "bad_upgrade",
        ),
        (
            b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_vec(),
            400,
            "no_host",
        ),
        // RFC 9112 would have `/?x=1` and `*` sent on. Envoy's codec takes neither.
        (get(&format!("http://{HOST}?x=1"), ""), 400, "bad_request"),
        (
            [
                b"OPTIONS".as_slice(),
                get("*", "").get(3..).unwrap_or_default(),
            ]
            .concat(),
            400,
            "bad_request",
        ),
    ]
}

async fn started(trusted: &Trusted, format: &str) -> Result<(Running, SilentPort)> {
    let silent = SilentPort::start().await?;
    let proxy = trusted
        .egressctl(&originated(HOST, 443))
        .port(80, 0)
        .connect_to(&route(HOST, 443, silent.addr()))
        .arg("--forward-proxy")
        .arg("127.0.0.1:0")
        .arg("--access-log-format")
        .arg(format)
        .start()
        .await?;
    Ok((proxy, silent))
}

/// Returns action and reason of the last line of the log, when there are so many.
async fn last_line(proxy: &Running, format: &str, lines: usize) -> Result<(String, String)> {
    eventually("the line is there", async || {
        Ok(proxy.access_log()?.len() >= lines)
    })
    .await?;
    let line = proxy.access_log()?.pop().context("no line")?;
    if format == "text" {
        let line = LogLine::parse(&line)?;
        let word = |key| line.egress(key).to_owned();
        return Ok((word("action"), word("reason")));
    }
    let line: Value = serde_json::from_str(&line)?;
    let word = |key: &str| {
        let word = line.pointer(&format!("/egress/{key}"))?.as_str()?;
        Some(word.to_owned())
    };
    let word = |key| word(key).with_context(|| line.to_string());
    Ok((word("action")?, word("reason")?))
}

#[tokio::test]
async fn what_envoy_refuses_has_a_reason() -> Result<()> {
    for format in ["text", "json"] {
        let trusted = Trusted::new()?;
        let (proxy, silent) = started(&trusted, format).await?;
        let mut lines = 0;
        for to in [proxy.listener(80)?, proxy.forward_proxy()?] {
            for (bytes, status, reason) in refused() {
                let answer = send(to, &bytes).await?;
                let shown = bytes.iter().take(60).copied().collect::<Vec<u8>>();
                let shown = shown.escape_ascii();
                ensure!(
                    answer.starts_with(&format!("HTTP/1.1 {status} ")),
                    "{shown}: {answer}"
                );
                let told = format!("egress_{reason}: ");
                ensure!(answer.contains(&told), "{shown}: {answer}");
                lines += 1;
                let line = last_line(&proxy, format, lines).await?;
                assert_eq!(line, ("reject".to_owned(), reason.to_owned()), "{shown}");
            }
        }
        silent.assert_silent().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_has_one_too() -> Result<()> {
    let trusted = Trusted::new()?;
    let (proxy, _silent) = started(&trusted, "text").await?;
    let mut stream = TcpStream::connect(proxy.listener(80)?).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHo").await?;
    drop(stream);
    let line = last_line(&proxy, "text", 1).await?;
    assert_eq!(line, ("reject".to_owned(), "client_gone".to_owned()));
    Ok(())
}

async fn scripted(
    trusted: &Trusted,
    policy: &str,
    script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> Result<(Scripted, Builder)> {
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let server = Scripted::start(&certificate, (Ipv4Addr::LOCALHOST, 0).into(), script).await?;
    let rules = common::entry(HOST, 443) + &rule(HOST, policy);
    let builder = trusted.egressctl(&rules).port(80, 0);
    let builder = builder.connect_to(&route(HOST, 443, server.addr()));
    Ok((server, builder))
}

#[tokio::test]
async fn an_answer_that_is_none_says_so() -> Result<()> {
    let trusted = Trusted::new()?;
    let (_server, builder) = scripted(&trusted, SIMPLE, |asked| {
        let ok = "HTTP/1.1 200 OK\r\n";
        Reply::Whole(match asked.path() {
            "/junk" => "hello\r\n\r\n".to_owned(),
            "/many" => format!("{ok}{}\r\n", "x: y\r\n".repeat(1100)),
            "/large" => format!("{ok}x: {}\r\n\r\n", "y".repeat(97 << 10)),
            "/both" => {
                format!("{ok}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
            }
            _ => format!("{ok}content-length: 0\r\n\r\n"),
        })
    })
    .await?;
    let proxy = builder.start().await?;
    let http = proxy.listener(80)?;
    for path in ["/junk", "/many", "/large", "/both"] {
        let answer = probe::get(http, HOST, path).await?;
        assert_eq!(answer.status, 502, "{path}");
        assert_eq!(
            answer.body,
            "egress_bad_answer: the server's answer is not valid HTTP, or its headers are too large\n"
        );
        assert_eq!(log_of(&proxy, path).await?.egress("reason"), "bad_answer");
    }
    assert_eq!(probe::get(http, HOST, "/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn what_a_limit_of_the_rule_refuses_says_so() -> Result<()> {
    let trusted = Trusted::new()?;
    let policy = "{tls: {mode: SIMPLE}, connectionPool: {http: {http2MaxRequests: 1}}}";
    let silent = |_: &Asked| Reply::Silence;
    let (server, builder) = scripted(&trusted, policy, silent).await?;
    let proxy = builder.start().await?;
    let http = proxy.listener(80)?;
    let mut first = TcpStream::connect(http).await?;
    first.write_all(&get("/first", "")).await?;
    eventually("the first is under way", async || {
        Ok(!server.asked().is_empty())
    })
    .await?;
    let answer = probe::get(http, HOST, "/second").await?;
    assert_eq!(answer.status, 503);
    ensure!(answer.body.starts_with("egress_overflow: "), "{answer:?}");
    assert_eq!(
        log_of(&proxy, "/second").await?.egress("reason"),
        "overflow"
    );
    Ok(())
}

type Headers = Vec<(&'static [u8], &'static [u8])>;

/// What becomes of a request by HTTP/2, beside the line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is answered.
    Answer,
    /// Its stream ends with this error, and others go on.
    Stream(u32),
    /// The connection ends with this error.
    Connection(u32),
}

/// What is refused by HTTP/2, how, and with which reason.
fn refused_by_http2() -> Vec<(&'static str, Headers, End, &'static str)> {
    const PROTOCOL_ERROR: u32 = 1;
    const INTERNAL_ERROR: u32 = 2;
    const COMPRESSION_ERROR: u32 = 9;
    let text = |kilobytes: usize| {
        let text: &'static str = "y".repeat(kilobytes << 10).leak();
        text.as_bytes()
    };
    let get = |path: &'static [u8]| -> Headers {
        vec![
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", HOST.as_bytes()),
            (b":path", path),
        ]
    };
    let with = |more: &[(&'static [u8], &'static [u8])]| [get(b"/x"), more.to_vec()].concat();
    let without = |name: &[u8]| -> Headers {
        let all = get(b"/x").into_iter();
        all.filter(|(other, _)| *other != name).collect()
    };
    let (answer, stream) = (End::Answer, End::Stream(PROTOCOL_ERROR));
    let too_large = End::Stream(INTERNAL_ERROR);
    vec![
        ("fragment", get(b"/a#b"), answer, "bad_request"),
        ("no path", without(b":path"), stream, "bad_request"),
        (
            "no authority",
            without(b":authority"),
            stream,
            "bad_request",
        ),
        ("empty path", get(b""), stream, "bad_request"),
        ("star", get(b"*"), stream, "bad_request"),
        ("capital", with(&[(b"Foo", b"x")]), stream, "bad_request"),
        (
            "connection",
            with(&[(b"connection", b"close")]),
            stream,
            "bad_request",
        ),
        (
            "line break",
            with(&[(b"foo", b"a\r\nb: c")]),
            stream,
            "bad_request",
        ),
        (
            "two methods",
            with(&[(b":method", b"GET")]),
            stream,
            "bad_request",
        ),
        (
            "no body",
            with(&[(b"content-length", b"5")]),
            stream,
            "bad_request",
        ),
        (
            "many",
            with(&[(b"x".as_slice(), b"y".as_slice()); 1100]),
            too_large,
            "headers_too_large",
        ),
        (
            "large",
            with(&[(b"x", text(49)), (b"z", text(50))]),
            too_large,
            "headers_too_large",
        ),
        (
            "one large",
            with(&[(b"x", text(97))]),
            End::Connection(COMPRESSION_ERROR),
            "bad_request",
        ),
    ]
}

#[tokio::test]
async fn what_envoy_refuses_by_http2_has_a_reason_and_other_streams_go_on() -> Result<()> {
    for format in ["text", "json"] {
        let trusted = Trusted::new()?;
        let (proxy, silent) = started(&trusted, format).await?;
        let mut lines = 0;
        for (what, headers, end, reason) in refused_by_http2() {
            let mut stream = TcpStream::connect(proxy.listener(80)?).await?;
            let begin = [
                frames::PREFACE.to_vec(),
                frames::frame(frames::SETTINGS, 0, 0, &[]),
                frames::headers(1, &headers),
            ];
            stream.write_all(&begin.concat()).await?;
            let came = frames::until_end(&mut stream, 1, SOON).await?;
            let last = came.last().with_context(|| what.to_owned())?;
            let told = String::from_utf8_lossy(&last.payload);
            let seen = match (last.kind, last.error()) {
                (frames::RST_STREAM, Some(error)) => End::Stream(error),
                (frames::GOAWAY, Some(error)) => End::Connection(error),
                _ => End::Answer,
            };
            assert_eq!(seen, end, "{what}: {came:?}");
            ensure!(
                end != End::Answer || told.starts_with(&format!("egress_{reason}: ")),
                "{what}: {told}"
            );
            lines += 1;
            let line = last_line(&proxy, format, lines).await?;
            assert_eq!(line, ("reject".to_owned(), reason.to_owned()), "{what}");
            if matches!(end, End::Connection(_)) {
                continue;
            }
            // The next stream of the connection is let through to where nobody speaks TLS.
            let (_, good, ..) = refused_by_http2().swap_remove(0);
            let good: Vec<_> = good
                .into_iter()
                .map(|(name, value)| (name, if name == b":path" { b"/next" } else { value }))
                .collect();
            stream.write_all(&frames::headers(3, &good)).await?;
            let came = frames::until_end(&mut stream, 3, SOON).await?;
            let last = came.last().with_context(|| what.to_owned())?;
            let told = String::from_utf8_lossy(&last.payload);
            ensure!(told.starts_with("egress_reset: "), "{what}: {came:?}");
            lines += 1;
        }
        ensure!(silent.assert_silent().await.is_err(), "it was never called");
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_by_http2_that_is_none_says_so() -> Result<()> {
    type Answer = fn(u32) -> Vec<u8>;
    fn large(stream: u32, sizes: &[usize]) -> Vec<u8> {
        let text = vec![b'y'; 100 << 10];
        let mut all: Vec<(&[u8], &[u8])> = vec![(b":status", b"200")];
        all.extend(
            sizes
                .iter()
                .map(|size| (b"x".as_slice(), text.split_at(*size).0)),
        );
        frames::headers(stream, &all)
    }
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let answers: [(&str, Answer, &str); 10] = [
        (
            "no status",
            |id| frames::headers(id, &[(b"x", b"y")]),
            "bad_answer",
        ),
        (
            "no number",
            |id| frames::headers(id, &[(b":status", b"abc")]),
            "bad_answer",
        ),
        (
            "capital",
            |id| frames::headers(id, &[(b":status", b"200"), (b"Foo", b"y")]),
            "bad_answer",
        ),
        (
            "connection",
            |id| frames::headers(id, &[(b":status", b"200"), (b"connection", b"close")]),
            "bad_answer",
        ),
        (
            "no body",
            |id| frames::headers(id, &[(b":status", b"200"), (b"content-length", b"5")]),
            "bad_answer",
        ),
        (
            "http/1",
            |_| b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(),
            "bad_answer",
        ),
        ("one large", |id| large(id, &[97 << 10]), "bad_answer"),
        // Envoy resets these streams itself, and says no more of it than where the server did.
        ("large", |id| large(id, &[49 << 10, 50 << 10]), "reset"),
        ("many", |id| large(id, &[1; 1100]), "reset"),
        (
            "reset",
            |id| frames::frame(frames::RST_STREAM, 0, id, &[0, 0, 0, 2]),
            "reset",
        ),
    ];
    for (what, answer, reason) in answers {
        let server = FrameServer::start(&certificate, answer).await?;
        let builder = trusted.egressctl(&originated(HOST, 443)).port(80, 0);
        let proxy = builder
            .connect_to(&route(HOST, 443, server.addr()))
            .start()
            .await?;
        let answer = probe::get(proxy.listener(80)?, HOST, "/x").await?;
        let status = if reason == "bad_answer" { 502 } else { 503 };
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        ensure!(
            answer.body.starts_with(&format!("egress_{reason}: ")),
            "{what}: {answer:?}"
        );
        assert_eq!(
            log_of(&proxy, "/x").await?.egress("reason"),
            reason,
            "{what}"
        );
    }
    Ok(())
}
