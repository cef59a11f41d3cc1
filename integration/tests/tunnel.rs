//! `tunnel` of a DestinationRule: connections go out through the proxy of the rule, and none around it.

mod common;

use std::{net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use egress_integration::{
    connect_proxy::ConnectProxy,
    egressctl::{Egressctl, Running},
    pki::{Leaf, Name},
    probe,
    silent_port::SilentPort,
    stand_in::Listener,
    tinyproxy::Tinyproxy,
    tls_server::{TlsServer, TlsServerConfig},
};

use common::{HOST, LogLine, SOON, Trusted, entry_with, eventually, only, rule};

const PROXY: &str = "proxy.example.com";
const TARGET: &str = "db.example.com:5432";

/// A host whose one port leads to a proxy.
fn behind(host: &str, port: u16, protocol: &str, proxy: SocketAddr) -> String {
    let (ip, to) = (proxy.ip(), proxy.port());
    let spec = format!(
        "resolution: STATIC, endpoints: [{{address: {ip}, ports: {{p: {to}}}}}], \
         ports: [{{number: {port}, name: p, protocol: {protocol}}}]"
    );
    entry_with(host, &spec)
}

/// A policy with a tunnel, and more in YAML's flow style.
fn tunnel(target: &str, more: &str) -> String {
    let (host, port) = target.rsplit_once(':').unwrap_or_default();
    format!("{{tunnel: {{targetHost: {host}, targetPort: {port}}}{more}}}")
}

/// Sends a text and reads the answer; nothing when the connection is closed.
async fn said(to: SocketAddr, words: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(words).await?;
    let mut room = vec![0; words.len()];
    match timeout(SOON, stream.read_exact(&mut room))
        .await
        .context("it was left open")?
    {
        Ok(_) => Ok(room),
        Err(_) => Ok(Vec::new()),
    }
}

async fn logged(proxy: &Running, word: &str) -> Result<LogLine> {
    let line = proxy.wait_for_log(|line| line.contains(word), SOON).await?;
    LogLine::parse(&line)
}

/// A server that repeats what it hears, without TLS.
async fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    Ok(addr)
}

async fn own_tls(trusted: &Trusted, proxy: &Running, path: &str) -> Result<u16> {
    let ca = trusted.ca.pem();
    let answer = probe::get_tls(proxy.listener(443)?, HOST, HOST, path, &ca).await?;
    Ok(answer.answer.status)
}

#[tokio::test]
async fn a_real_proxy_carries_the_applications_own_tls() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let target = site.tls_addr().to_string();
    let tinyproxy = Tinyproxy::start(&[format!("ConnectPort {}", site.tls_addr().port())]).await?;
    let rules = behind(HOST, 443, "TLS", tinyproxy.addr()) + &rule(HOST, &tunnel(&target, ""));
    let proxy = trusted.egressctl(&rules).port(443, 0).start().await?;

    assert_eq!(own_tls(&trusted, &proxy, "/own").await?, 200);
    let seen = only(&site)?;
    assert_eq!(
        (seen.listener, seen.sni.as_deref()),
        (Listener::Tls, Some(HOST))
    );
    assert_eq!(site.counts(Listener::Plain).connections, 0);
    assert_eq!(tinyproxy.asked(), [target.as_str()]);
    let log = logged(&proxy, "action=passthrough").await?;
    log.assert_egress([
        ("action", "passthrough"),
        ("rule", "default/edition-cnn-com"),
        ("service_entry", "default/edition-cnn-com"),
        ("cluster", "outbound|443||edition.cnn.com"),
        ("transport_socket", "envoy.transport_sockets.raw_buffer"),
        ("sni", HOST),
        ("target", &target),
    ]);
    assert_eq!(log.istio("upstream_host"), tinyproxy.addr().to_string());
    Ok(())
}

#[tokio::test]
async fn bytes_go_by_connect_through_a_real_proxy_and_by_post_where_the_rule_says_so() -> Result<()>
{
    let trusted = Trusted::new()?;
    let server = echo().await?;
    let target = server.to_string();
    let tinyproxy = Tinyproxy::start(&[format!("ConnectPort {}", server.port())]).await?;
    let other = ConnectProxy::start([(TARGET.to_owned(), server)], None).await?;
    let post = tunnel(TARGET, "").replace("targetHost", "protocol: POST, targetHost");
    let rules = behind("one.example", 7001, "TCP", tinyproxy.addr())
        + &rule("one.example", &tunnel(&target, ""))
        + &behind("two.example", 7002, "REDIS", other.addr())
        + &rule("two.example", &post);
    let builder = trusted.egressctl(&rules).port(7001, 0).port(7002, 0);
    let proxy = builder.start().await?;
    for port in [7001, 7002] {
        assert_eq!(
            said(proxy.listener(port)?, b"hello").await?,
            b"hello",
            "{port}"
        );
    }
    assert_eq!(tinyproxy.asked(), [target.as_str()]);
    assert_eq!(other.asked(), [format!("POST {TARGET}")]);
    for (host, target) in [("one.example", &*target), ("two.example", TARGET)] {
        let log = logged(&proxy, &format!("||{host} ")).await?;
        assert_eq!(log.egress("action"), "forward", "{log:#?}");
        assert_eq!(log.egress("target"), target, "{log:#?}");
        assert_eq!(log.egress("reason"), "-", "{log:#?}");
    }
    Ok(())
}

/// TLS to the proxy: for bytes, and for TLS of the application inside it.
#[tokio::test]
async fn a_proxy_by_tls_is_verified_before_it_is_asked() -> Result<()> {
    let trusted = Trusted::new()?;
    let other = Leaf::for_names(["other.example.com"]);
    for (leaf, right) in [
        (Leaf::for_names([PROXY]), true),
        (other.clone(), false),
        (other.and(Name::Uri(PROXY.to_owned())), false),
    ] {
        let (site, server) = (trusted.site([HOST]).await?, echo().await?);
        let web = format!("{HOST}:443");
        let ways = [(web.clone(), site.tls_addr()), (TARGET.to_owned(), server)];
        let certificate = trusted.ca.issue(&leaf)?;
        let upstream = ConnectProxy::start(ways, Some(certificate)).await?;
        let tls = format!(", tls: {{mode: SIMPLE, sni: {PROXY}}}");
        let rules = behind(HOST, 443, "TLS", upstream.addr())
            + &rule(HOST, &tunnel(&web, &tls))
            + &behind("db.example", 7001, "TCP", upstream.addr())
            + &rule("db.example", &tunnel(TARGET, &tls));
        let builder = trusted.egressctl(&rules).port(443, 0).port(7001, 0);
        let proxy = builder.start().await?;
        ensure!(proxy.stderr().join("\n").contains("TLS ends at the proxy"));

        let answer = own_tls(&trusted, &proxy, "/inside").await;
        let heard = said(proxy.listener(7001)?, b"hello").await?;
        if right {
            assert_eq!(answer?, 200);
            assert_eq!(only(&site)?.sni.as_deref(), Some(HOST));
            assert_eq!(heard, b"hello");
            assert_eq!(upstream.asked(), [web.as_str(), TARGET]);
        } else {
            ensure!(answer.is_err(), "{answer:?}");
            assert_eq!(heard, b"");
            assert_eq!(upstream.asked(), [""; 0]);
            assert_eq!(site.counts(Listener::Tls).connections, 0);
        }
        let reason = if right { "-" } else { "name_mismatch" };
        for action in ["passthrough", "originate"] {
            let log = logged(&proxy, &format!("action={action}")).await?;
            assert_eq!(log.egress("reason"), reason, "{log:#?}");
            assert_eq!(log.egress("tls_mode"), "SIMPLE", "{log:#?}");
            let socket = "envoy.transport_sockets.tls";
            assert_eq!(log.egress("transport_socket"), socket, "{log:#?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_does_not_help_closes_the_connection_and_the_log_says_why() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, silent) = (trusted.site([HOST]).await?, SilentPort::start().await?);
    let refusing = ConnectProxy::start([], None).await?;
    let gone = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let hangs_up = TcpListener::bind("127.0.0.1:0").await?;
    let hanging_up = hangs_up.local_addr()?;
    tokio::spawn(async move { while hangs_up.accept().await.is_ok() {} });
    for (upstream, reason) in [
        (refusing.addr(), "tunnel_refused"),
        (gone, "refused"),
        (hanging_up, "reset"),
    ] {
        let rules = behind(HOST, 443, "TLS", upstream)
            + &rule(HOST, &tunnel(&silent.addr().to_string(), ""))
            + &behind("db.example", 7001, "TCP", upstream)
            + &rule("db.example", &tunnel(TARGET, ""));
        let builder = trusted.egressctl(&rules).port(443, 0).port(7001, 0);
        let proxy = builder.start().await?;
        let own = own_tls(&trusted, &proxy, "/").await;
        ensure!(own.is_err(), "{reason}: {own:?}");
        assert_eq!(
            said(proxy.listener(7001)?, b"hello").await?,
            b"",
            "{reason}"
        );
        for action in ["passthrough", "forward"] {
            let log = logged(&proxy, &format!("action={action}")).await?;
            assert_eq!(log.egress("reason"), reason, "{log:#?}");
        }
    }
    // What has not sent anything is tried three times.
    let mut asked = refusing.asked();
    asked.dedup();
    assert_eq!(asked, [silent.addr().to_string().as_str(), TARGET]);
    assert_eq!(site.counts(Listener::Tls).connections, 0);
    silent.assert_silent().await
}

/// A file of rules in place of another.
fn put(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(new, path)?)
}

#[tokio::test]
async fn a_tunnel_comes_and_goes_while_it_runs() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let server = TlsServer::start(
        &trusted.ca.issue(&Leaf::for_names(["db.example"]))?,
        TlsServerConfig::default(),
    )
    .await?;
    let ways = [
        (format!("{HOST}:443"), site.tls_addr()),
        (TARGET.to_owned(), echo().await?),
    ];
    let upstream = ConnectProxy::start(ways, None).await?;
    let with = behind(HOST, 443, "TLS", upstream.addr())
        + &rule(HOST, &tunnel(&format!("{HOST}:443"), ""))
        + &behind("db.example", 7001, "TCP", upstream.addr())
        + &rule("db.example", &tunnel(TARGET, ""));
    let without = behind(HOST, 443, "TLS", site.tls_addr())
        + &behind("db.example", 7001, "TCP", server.addr())
        + &rule("db.example", common::SIMPLE);
    let file = trusted.file("watched.yaml", &with)?;
    let proxy = Egressctl::builder()
        .rules(&file)
        .env("SSL_CERT_FILE", trusted.bundle())
        .port(443, 0)
        .port(7001, 0)
        .start()
        .await?;
    let mut asked = 0;
    for (times, rules) in [&with, &without, &with].into_iter().enumerate() {
        if times > 0 {
            put(&file, rules)?;
            eventually("the rules are applied", async || {
                let lines = proxy.stdout();
                Ok(lines
                    .iter()
                    .filter(|line| line.starts_with("reloaded"))
                    .count()
                    == times)
            })
            .await
            .with_context(|| proxy.stderr().join("\n"))?;
        }
        assert_eq!(own_tls(&trusted, &proxy, "/").await?, 200, "{times}");
        assert_eq!(only(&site)?.sni.as_deref(), Some(HOST));
        assert_eq!(
            said(proxy.listener(7001)?, b"hello").await?,
            b"hello",
            "{times}"
        );
        asked += if times == 1 { 0 } else { 2 };
        assert_eq!(
            upstream.asked().len(),
            asked,
            "{times}: {:?}",
            upstream.asked()
        );
    }
    let heard = server.heard();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(heard[0].sni.as_deref(), Some("db.example"));
    assert_eq!(site.counts(Listener::Plain).connections, 0);
    Ok(())
}
