//! `egressctl run --upstream-proxy`: CONNECT to a company's proxy, then TLS to the server inside.

mod common;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use egress_integration::{
    dns::{DnsServer, Zone},
    egressctl::{Builder, Running},
    pki::{Issued, Leaf},
    probe,
    silent_port::SilentPort,
    stand_in::{HttpVersions, Listener, StandIn, StandInConfig},
    tinyproxy::Tinyproxy,
};

use common::{
    HOST, SHARED, SOON, Trusted, assert_originated, egressctl, entry, entry_with, eventually,
    log_of, only, originated, route, rule,
};

const PROXY: &str = "proxy.example.com";

/// The page's entry: originated on port 80, passed through on port 443.
fn rules() -> String {
    let ports = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}, \
                 {number: 443, name: https, protocol: HTTPS}]";
    let policy = "{portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}";
    entry_with(HOST, &format!("resolution: DNS, {ports}")) + &rule(HOST, policy)
}

fn through(trusted: &Trusted, rules: &str, url: &str) -> Builder {
    let builder = trusted.egressctl(rules).port(80, 0).port(443, 0);
    builder.arg("--upstream-proxy").arg(url)
}

/// A proxy of ours, which tells what it was asked.
struct Proxy {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _running: JoinSet<()>,
}

impl Proxy {
    /// Leads hosts and ports to addresses, and answers 403 where it knows none; over TLS with a certificate.
    async fn start<const N: usize>(
        ways: [(String, SocketAddr); N],
        tls: Option<Issued>,
    ) -> Result<Self> {
        let acceptor = tls.map(|issued| acceptor(&issued)).transpose()?;
        let ways = Arc::new(BTreeMap::from(ways));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let mut running = JoinSet::new();
        let record = Arc::clone(&asked);
        running.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, ways, record) =
                    (acceptor.clone(), Arc::clone(&ways), Arc::clone(&record));
                connections.spawn(async move {
                    let _ended = match acceptor {
                        None => carry(stream, &ways, &record).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => carry(stream, &ways, &record).await,
                            Err(_) => Ok(()),
                        },
                    };
                });
            }
        });
        Ok(Self {
            addr,
            asked,
            _running: running,
        })
    }

    fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn acceptor(issued: &Issued) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(issued.chain().to_vec(), issued.key().clone_key())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    ways: &BTreeMap<String, SocketAddr>,
    asked: &Mutex<Vec<String>>,
) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let mut words = head.split(' ');
    let target = match (words.next(), words.next()) {
        (Some("CONNECT"), Some(target)) => target.to_owned(),
        _ => head.clone(),
    };
    asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(target.clone());
    let Some(way) = ways.get(&target) else {
        stream
            .write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            .await?;
        return Ok(());
    };
    let mut server = TcpStream::connect(way).await?;
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut stream, &mut server).await?;
    Ok(())
}

async fn get(proxy: &Running, host: &str, path: &str) -> Result<probe::Answer> {
    probe::get(proxy.listener(80)?, host, path).await
}

#[tokio::test]
async fn a_real_proxy_with_a_password_carries_everything() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let lines = [
        "BasicAuth user pass.word".to_owned(),
        format!("ConnectPort {}", site.tls_addr().port()),
    ];
    let tinyproxy = Tinyproxy::start(&lines).await?;
    let url = format!("http://user:pass%2Eword@{}", tinyproxy.addr());
    let proxy = through(&trusted, &rules(), &url)
        .arg("--forward-proxy")
        .arg("127.0.0.1:0")
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;

    // Originated, on the service's port and by URL.
    for listener in [proxy.listener(80)?, proxy.forward_proxy()?] {
        let answer = probe::get(listener, HOST, "/originated").await?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let seen = only(&site)?;
        assert_originated(&seen, HOST, HOST);
        let password = seen.header("proxy-authorization");
        ensure!(password.is_none(), "{seen}");
    }
    // The application's own TLS.
    let answer =
        probe::get_tls(proxy.listener(443)?, HOST, HOST, "/own", &trusted.ca.pem()).await?;
    assert_eq!(answer.answer.status, 200);
    assert_eq!(only(&site)?.sni.as_deref(), Some(HOST));
    // And a tunnel through a tunnel.
    let mut stream = TcpStream::connect(proxy.forward_proxy()?).await?;
    stream
        .write_all(b"CONNECT edition.cnn.com:443 HTTP/1.1\r\nHost: edition.cnn.com:443\r\n\r\n")
        .await?;
    let mut status = [0; 15];
    timeout(SOON, stream.read_exact(&mut status)).await??;
    assert_eq!(&status, b"HTTP/1.1 200 OK");

    // The first is asked once for both listeners, whose requests share connections.
    eventually("three tunnels", async || Ok(tinyproxy.asked().len() >= 3)).await?;
    let asked = tinyproxy.asked();
    let there = site.tls_addr().to_string();
    ensure!(asked.iter().all(|asked| *asked == there), "{asked:?}");
    let log = log_of(&proxy, "/originated").await?;
    assert_eq!(log.egress("action"), "originate");
    assert_eq!(log.egress("cluster"), SHARED);
    assert_eq!(log.egress("target"), "edition.cnn.com:443");
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_refuses_is_not_gone_around() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, silent) = (trusted.site([HOST]).await?, SilentPort::start().await?);
    let lines = ["BasicAuth user password".to_owned()];
    let tinyproxy = Tinyproxy::start(&lines).await?;
    let proxy = through(&trusted, &rules(), &format!("http://{}", tinyproxy.addr()))
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route(HOST, 80, silent.addr()))
        .start()
        .await?;
    let answer = get(&proxy, HOST, "/refused").await?;
    assert_eq!(answer.status, 503, "{}", answer.body);
    let own = probe::get_tls(proxy.listener(443)?, HOST, HOST, "/own", &trusted.ca.pem()).await;
    ensure!(own.is_err(), "{own:?}");
    assert_eq!(site.counts(Listener::Tls).connections, 0);
    silent.assert_silent().await?;
    // The log tells of the proxy.
    let wanted = format!("target={}", site.tls_addr());
    let line = proxy.wait_for_log(
        |line| line.contains("reason=upstream_proxy") && line.contains(&wanted),
        SOON,
    );
    ensure!(line.await?.contains("cluster=upstream-proxy"));
    Ok(())
}

/// Each host has tunnels of its own, although the hosts share a cluster and its connections.
#[tokio::test]
async fn hosts_that_share_a_cluster_share_no_tunnel() -> Result<()> {
    const OTHER: &str = "money.cnn.com";
    let trusted = Trusted::new()?;
    for http in [HttpVersions::Both, HttpVersions::OnlyHttp1] {
        let mut sites = BTreeMap::new();
        for host in [HOST, OTHER] {
            let certificate = trusted.ca.issue(&Leaf::for_names([host]))?;
            let site = StandIn::start(StandInConfig::new(certificate).http(http)).await?;
            sites.insert(host, site);
        }
        let (first, second) = (&sites[HOST], &sites[OTHER]);
        let plain = |host: &str| entry(&format!("plain.{host}"), 8080);
        let ways = [
            (format!("{HOST}:443"), first.tls_addr()),
            (format!("{OTHER}:443"), second.tls_addr()),
            (format!("plain.{HOST}:8080"), first.plain_addr()),
            (format!("plain.{OTHER}:8080"), second.plain_addr()),
        ];
        let upstream = Proxy::start(ways, None).await?;
        // Nobody here knows a name: looking them up is the proxy's business.
        let dns = DnsServer::start(Zone::new()).await?;
        let rules = originated(HOST, 443) + &originated(OTHER, 443) + &plain(HOST) + &plain(OTHER);
        let proxy = through(&trusted, &rules, &format!("http://{}", upstream.addr))
            .arg("--resolver")
            .arg(dns.addr().to_string())
            .start()
            .await?;
        for _ in 0..3 {
            for (host, site) in &sites {
                let answer = get(&proxy, host, "/").await?;
                assert_eq!(answer.status, 200, "{host}: {}", answer.body);
                assert_originated(&only(site)?, host, host);
                let answer = get(&proxy, &format!("plain.{host}"), "/").await?;
                assert_eq!(answer.status, 301, "{host}: {}", answer.body);
                let seen = only(site)?;
                assert_eq!(seen.host, format!("plain.{host}"));
                assert_eq!(seen.listener, Listener::Plain);
            }
        }
        // One for each, kept from request to request.
        let mut asked = upstream.asked();
        asked.sort();
        let all = [
            "edition.cnn.com:443",
            "money.cnn.com:443",
            "plain.edition.cnn.com:8080",
            "plain.money.cnn.com:8080",
        ];
        assert_eq!(asked, all);
        ensure!(dns.asked().is_empty(), "{:?}", dns.asked());
    }
    Ok(())
}

#[tokio::test]
async fn the_names_of_proxy_and_server_are_verified_each_for_itself() -> Result<()> {
    let trusted = Trusted::new()?;
    let dns = DnsServer::start(Zone::new().name(PROXY, [Ipv4Addr::LOCALHOST])).await?;
    for (proxy_name, server_name, status) in [
        (PROXY, HOST, 200),
        // The server's name is no proxy's, nor the other way around.
        (HOST, HOST, 503),
        (PROXY, PROXY, 503),
    ] {
        let site = trusted.site([server_name]).await?;
        let ways = [(format!("{HOST}:443"), site.tls_addr())];
        let certificate = trusted.ca.issue(&Leaf::for_names([proxy_name]))?;
        let upstream = Proxy::start(ways, Some(certificate)).await?;
        let url = format!("https://{PROXY}:{}", upstream.addr.port());
        let proxy = through(&trusted, &originated(HOST, 443), &url)
            .arg("--resolver")
            .arg(dns.addr().to_string())
            .start()
            .await?;
        let answer = get(&proxy, HOST, "/names").await?;
        let what = format!("{proxy_name} {server_name}: {}", answer.body);
        assert_eq!(answer.status, status, "{what}");
        if status == 200 {
            assert_originated(&only(&site)?, HOST, HOST);
        } else {
            ensure!(site.seen().is_empty(), "{what}");
        }
        if proxy_name == PROXY {
            let asked = upstream.asked();
            ensure!(
                asked.iter().all(|it| it == "edition.cnn.com:443"),
                "{asked:?}"
            );
        } else {
            // A proxy that is not the one that was named is not even asked.
            ensure!(upstream.asked().is_empty(), "{what}");
        }
        if server_name != HOST {
            ensure!(answer.body.contains("egress_name_mismatch"), "{what}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_would_go_around_the_proxy_does_not_start() -> Result<()> {
    let trusted = Trusted::new()?;
    let spec = "resolution: STATIC, endpoints: [{address: 192.0.2.1}], \
                ports: [{number: 80, name: http, protocol: HTTP}]";
    let good = "http://user:secret@127.0.0.1:3128";
    for (rules, url, more, says) in [
        (
            rules(),
            good,
            &["--outbound-traffic-policy", "ALLOW_ANY"][..],
            "around",
        ),
        (entry_with(HOST, spec), good, &[], "endpoints of its own"),
        (
            rules(),
            "socks5://user:secret@127.0.0.1:1080",
            &[],
            "write it as",
        ),
        (
            rules(),
            "http://user:secret@127.0.0.1:1080/path",
            &[],
            "no path",
        ),
    ] {
        let file = trusted.file("rules.yaml", &rules)?;
        let file = file.to_str().context("no text")?;
        let mut args = vec!["run", "-f", file, "--upstream-proxy", url];
        args.extend(more);
        let output = egressctl(&trusted, args).await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        ensure!(stderr.contains(says), "{says}: {stderr}");
        ensure!(!stderr.contains("secret"), "{stderr}");
    }
    Ok(())
}
