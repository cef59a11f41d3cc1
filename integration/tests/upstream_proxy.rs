//! `egressctl run --upstream-proxy`: CONNECT to a company's proxy, then TLS to the server inside.

mod common;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use egress_integration::{
    connect_proxy::ConnectProxy,
    dns::{DnsServer, Zone},
    egressctl::{Builder, Running},
    pki::{Leaf, Name},
    probe,
    redis::{self, Redis},
    silent_port::SilentPort,
    stand_in::{HttpVersions, Listener, StandIn, StandInConfig},
    tinyproxy::Tinyproxy,
    tls_server::{TlsServer, TlsServerConfig},
};

use common::{
    HOST, SHARED, SIMPLE, SOON, Trusted, assert_originated, egressctl, entry, entry_with,
    eventually, head, log_of, only, originated, route, rule,
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
    ensure!(
        answer.body.starts_with("egress_proxy_auth_required: "),
        "{answer:?}"
    );
    let own = probe::get_tls(proxy.listener(443)?, HOST, HOST, "/own", &trusted.ca.pem()).await;
    ensure!(own.is_err(), "{own:?}");
    assert_eq!(site.counts(Listener::Tls).connections, 0);
    silent.assert_silent().await?;
    // The log tells of the proxy, and what it said.
    let told = async |proxy: &Running, reason: &str, status: u16, target: &str, at: SocketAddr| {
        let (reason, target) = (format!("reason={reason} "), format!("target={target}"));
        let line = proxy.wait_for_log(
            |line| line.contains(&reason) && line.contains(&target),
            SOON,
        );
        let line = line.await?;
        ensure!(line.contains("cluster=upstream-proxy"), "{line}");
        ensure!(
            line.contains(&format!("tunnel_response:{status}")),
            "{line}"
        );
        ensure!(line.contains(&format!("\"{at}\"")), "{line}");
        Ok(())
    };
    let there = site.tls_addr().to_string();
    told(&proxy, "proxy_auth_required", 407, &there, tinyproxy.addr()).await?;

    // It has no way.
    let upstream = ConnectProxy::start([], None).await?;
    let url = format!("http://{}", upstream.addr());
    let proxy = through(&trusted, &originated(HOST, 443), &url)
        .start()
        .await?;
    assert_eq!(get(&proxy, HOST, "/refused").await?.status, 503);
    told(
        &proxy,
        "proxy_refused",
        403,
        "edition.cnn.com:443",
        upstream.addr(),
    )
    .await?;
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
        let upstream = ConnectProxy::start(ways, None).await?;
        // Nobody here knows a name: looking them up is the proxy's business.
        let dns = DnsServer::start(Zone::new()).await?;
        let rules = originated(HOST, 443) + &originated(OTHER, 443) + &plain(HOST) + &plain(OTHER);
        let proxy = through(&trusted, &rules, &format!("http://{}", upstream.addr()))
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
        let upstream = ConnectProxy::start(ways, Some(certificate)).await?;
        let url = format!("https://{PROXY}:{}", upstream.addr().port());
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
async fn a_server_behind_the_proxy_is_not_known_by_a_name_of_another_type() -> Result<()> {
    let trusted = Trusted::new()?;
    let own = "{tls: {mode: SIMPLE}, loadBalancer: {simple: ROUND_ROBIN}}";
    for rules in [originated(HOST, 443), entry(HOST, 443) + &rule(HOST, own)] {
        let leaf = Leaf::for_names(["www.example"]).and(Name::Uri(HOST.to_owned()));
        let site = common::site(&trusted.ca, &leaf).await?;
        let ways = [(format!("{HOST}:443"), site.tls_addr())];
        let upstream = ConnectProxy::start(ways, None).await?;
        let url = format!("http://{}", upstream.addr());
        let proxy = through(&trusted, &rules, &url).start().await?;
        let answer = get(&proxy, HOST, "/uri").await?;
        ensure!(answer.body.contains("egress_name_mismatch"), "{answer:?}");
        ensure!(site.seen().is_empty(), "{:?}", site.seen());
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

/// A TCP service whose server is dialled on another port.
fn redis_rules(host: &str, more: &str) -> String {
    let spec = format!(
        "resolution: DNS, ports: [{{number: 6379, name: redis, protocol: REDIS, targetPort: 6380}}]{more}"
    );
    entry_with(host, &spec) + &rule(host, SIMPLE)
}

#[tokio::test]
async fn redis_that_speaks_tls_only_is_reached_through_a_real_proxy() -> Result<()> {
    const CACHE: &str = "cache.example";
    let trusted = Trusted::new()?;
    let right = trusted.ca.issue(&Leaf::for_names([CACHE]))?;
    let server = Redis::start(&right, None).await?;
    let wrong = trusted.ca.issue(&Leaf::for_names(["other.example"]))?;
    let wrong = TlsServer::start(&wrong, TlsServerConfig::default()).await?;
    let ports = [server.addr(), wrong.addr()].map(|addr| format!("ConnectPort {}", addr.port()));
    let tinyproxy = Tinyproxy::start(&ports).await?;
    let rules = redis_rules(CACHE, ", addresses: [127.9.9.1]")
        + &redis_rules("wrong.example", ", addresses: [127.9.9.2]");
    for vips in [false, true] {
        let silent = SilentPort::start().await?;
        let mut builder = trusted
            .egressctl(&rules)
            .port(6379, 0)
            .arg("--upstream-proxy")
            .arg(format!("http://{}", tinyproxy.addr()))
            .connect_to(&route(CACHE, 6380, server.addr()))
            .connect_to(&route("wrong.example", 6380, wrong.addr()))
            .connect_to(&route(CACHE, 6379, silent.addr()));
        builder = match vips {
            true => builder.arg("--loopback-vips"),
            false => builder.arg("--listen").arg("0.0.0.0"),
        };
        let proxy = builder.start().await?;
        let at = async |host: &str, ip: &str| {
            if !vips {
                return Ok(SocketAddr::new(ip.parse()?, proxy.listener(6379)?.port()));
            }
            let start = format!("vip {host}:6379=");
            eventually("the addresses are printed", async || {
                Ok(proxy.stdout().iter().any(|line| line.starts_with(&start)))
            })
            .await?;
            let lines = proxy.stdout();
            let line = lines.iter().find_map(|line| line.strip_prefix(&start));
            anyhow::Ok(line.context("no line")?.parse()?)
        };
        let listener = at(CACHE, "127.9.9.1").await?;
        assert_eq!(redis::cli(listener, &["SET", "key", "value"]).await?, "OK");
        assert_eq!(redis::cli(listener, &["GET", "key"]).await?, "value");
        let mut stream = TcpStream::connect(at("wrong.example", "127.9.9.2").await?).await?;
        let mut heard = Vec::new();
        stream.write_all(b"secret").await?;
        let _ended = timeout(SOON, stream.read_to_end(&mut heard)).await?;
        assert_eq!(heard, b"");
        assert_eq!(wrong.heard(), []);
        silent.assert_silent().await?;
        let wanted = format!("sni={CACHE} verify={CACHE}");
        let line = proxy.wait_for_log(|line| line.contains(&wanted), SOON);
        ensure!(line.await?.contains("target=cache.example:6380"));
        let line = proxy.wait_for_log(|line| line.contains("reason=name_mismatch"), SOON);
        ensure!(line.await?.contains("target=wrong.example:6380"));
    }
    let asked = tinyproxy.asked();
    let both = [server.addr(), wrong.addr()].map(|addr| addr.to_string());
    ensure!(both.iter().all(|it| asked.contains(it)), "{asked:?}");
    ensure!(asked.iter().all(|it| both.contains(it)), "{asked:?}");
    Ok(())
}

#[tokio::test]
async fn bytes_without_tls_take_connect_too() -> Result<()> {
    let trusted = Trusted::new()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let ways = [("plain.example:7001".to_owned(), listener.local_addr()?)];
    let upstream = ConnectProxy::start(ways, None).await?;
    let rules = entry_with(
        "plain.example",
        "resolution: DNS, ports: [{number: 7001, name: p, protocol: TCP}]",
    );
    let proxy = trusted
        .egressctl(&rules)
        .port(7001, 0)
        .arg("--upstream-proxy")
        .arg(format!("http://{}", upstream.addr()))
        .start()
        .await?;
    // The server speaks first.
    let greeting = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(b"220 ready").await?;
        anyhow::Ok(stream)
    });
    let mut stream = TcpStream::connect(proxy.listener(7001)?).await?;
    let mut heard = [0; 9];
    timeout(SOON, stream.read_exact(&mut heard)).await??;
    assert_eq!(&heard, b"220 ready");
    let _server = greeting.await??;
    assert_eq!(upstream.asked(), ["plain.example:7001"]);
    Ok(())
}

/// A name within the company.
const INTRANET: &str = "wiki.intranet.example";

/// A run behind a real proxy, which looks names up where the test says.
fn excepting(
    trusted: &Trusted,
    rules: &str,
    proxy: &Tinyproxy,
    dns: &DnsServer,
    except: &str,
) -> Builder {
    let url = format!("http://{}", proxy.addr());
    through(trusted, rules, &url)
        .arg("--resolver")
        .arg(dns.addr().to_string())
        .arg("--no-proxy")
        .arg(except)
}

#[tokio::test]
async fn hosts_of_no_proxy_are_reached_without_the_proxy_and_no_others() -> Result<()> {
    const LISTED: &str = "listed.intranet.example";
    let trusted = Trusted::new()?;
    let (site, silent) = (
        trusted.site([HOST, INTRANET, LISTED]).await?,
        SilentPort::start().await?,
    );
    let port = site.tls_addr().port();
    let tinyproxy = Tinyproxy::start(&[format!("ConnectPort {port}")]).await?;
    let dns = DnsServer::start(Zone::new().name(INTRANET, [Ipv4Addr::LOCALHOST])).await?;
    // One that shares a cluster with those behind the proxy, and one whose endpoints no proxy could be told.
    let spec = format!(
        "resolution: STATIC, endpoints: [{{address: 127.0.0.1}}], \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]"
    );
    let rules = originated(HOST, 443)
        + &originated(INTRANET, port)
        + &entry_with(LISTED, &spec)
        + &rule(LISTED, SIMPLE);
    let proxy = excepting(&trusted, &rules, &tinyproxy, &dns, ".intranet.example")
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route(INTRANET, 80, silent.addr()))
        .start()
        .await?;
    for host in [HOST, INTRANET, LISTED] {
        let answer = get(&proxy, host, "/").await?;
        assert_eq!(answer.status, 200, "{host}: {}", answer.body);
        let seen = only(&site)?;
        assert_eq!(seen.listener, Listener::Tls, "{seen}");
        assert_eq!(seen.sni.as_deref(), Some(host), "{seen}");
    }
    assert_eq!(tinyproxy.asked(), [site.tls_addr().to_string()]);
    silent.assert_silent().await?;
    let listed = log_of(&proxy, "/").await?;
    assert_eq!(listed.egress("action"), "originate");
    Ok(())
}

#[tokio::test]
async fn the_own_tls_of_an_application_goes_around_the_proxy_too() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([INTRANET]).await?;
    let port = site.tls_addr().port();
    let tinyproxy = Tinyproxy::start(&["ConnectPort 1".to_owned()]).await?;
    let dns = DnsServer::start(Zone::new().name(INTRANET, [Ipv4Addr::LOCALHOST])).await?;
    let spec = format!(
        "resolution: DNS, ports: [{{number: 443, name: tls, protocol: TLS, targetPort: {port}}}]"
    );
    let rules = entry_with(INTRANET, &spec);
    // The port is the one that is dialled.
    for (except, good) in [(port, true), (443, false)] {
        let except = format!("{INTRANET}:{except}");
        let proxy = excepting(&trusted, &rules, &tinyproxy, &dns, &except)
            .start()
            .await?;
        let pem = trusted.ca.pem();
        let own = probe::get_tls(proxy.listener(443)?, INTRANET, INTRANET, "/own", &pem).await;
        assert_eq!(own.is_ok(), good, "{own:?}");
        assert_eq!(site.take_seen().len(), usize::from(good));
    }
    Ok(())
}

#[tokio::test]
async fn names_that_clients_choose_have_no_private_address_around_the_proxy() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site(["a.wild.example"]).await?;
    let port = site.tls_addr().port();
    let tinyproxy = Tinyproxy::start(&["ConnectPort 1".to_owned()]).await?;
    let dns = DnsServer::start(Zone::new().every_name([Ipv4Addr::LOCALHOST])).await?;
    for (location, status) in [("MESH_EXTERNAL", 503), ("MESH_INTERNAL", 200)] {
        let spec = format!(
            "location: {location}, resolution: DYNAMIC_DNS, \
             ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]"
        );
        let rules = entry_with("*.wild.example", &spec) + &rule("*.wild.example", SIMPLE);
        let proxy = excepting(&trusted, &rules, &tinyproxy, &dns, "wild.example")
            .start()
            .await?;
        let answer = get(&proxy, "a.wild.example", "/").await?;
        assert_eq!(answer.status, status, "{location}: {}", answer.body);
        assert_eq!(site.seen().len(), usize::from(status == 200), "{location}");
    }
    assert_eq!(tinyproxy.asked(), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_new_password_in_the_file_is_used_for_new_tunnels() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let lines = [
        "BasicAuth user pass.word".to_owned(),
        format!("ConnectPort {}", site.tls_addr().port()),
    ];
    let tinyproxy = Tinyproxy::start(&lines).await?;
    let file = trusted.file("login", "user:wrong\n")?;
    let url = format!("http://{}", tinyproxy.addr());
    let proxy = through(&trusted, &originated(HOST, 443), &url)
        .arg("--upstream-proxy-auth")
        .arg(&file)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    assert_eq!(get(&proxy, HOST, "/").await?.status, 503);
    // A mistake changes nothing, and does not show what the file says.
    trusted.file("login", "secret without a user\n")?;
    let told = |line: &str| line.contains("write one line, USER:PASSWORD");
    proxy.wait_for_stderr(told, SOON).await?;
    trusted.file("login", "user:pass.word\n")?;
    eventually("the new password is used", async || {
        Ok(get(&proxy, HOST, "/").await?.status == 200)
    })
    .await?;
    assert_originated(&only(&site)?, HOST, HOST);
    let said = proxy.stderr().join("\n");
    ensure!(
        !said.contains("wrong") && !said.contains("secret"),
        "{said}"
    );
    Ok(())
}

/// A proxy that says this to whoever asks it; hangs up without a word; or holds the connection.
async fn saying(words: Option<&'static str>) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            match words {
                None => held.push(stream),
                Some(words) => {
                    tokio::spawn(async move {
                        head(&mut stream).await?;
                        stream.write_all(words.as_bytes()).await?;
                        anyhow::Ok(stream.shutdown().await?)
                    });
                }
            }
        }
    });
    Ok(addr)
}

/// How often there was this reason, as Envoy's counters have it.
async fn counted(proxy: &Running, reason: &str) -> Result<u64> {
    let name = format!("wasmcustom.egress.failure.{reason}: ");
    let stats = proxy.admin_get("/stats?filter=egress.failure").await?.body;
    let line = stats.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line.with_context(|| stats.clone())?.parse()?)
}

#[tokio::test]
async fn what_a_proxy_answers_is_the_reason_for_every_caller() -> Result<()> {
    const PLAIN: &str = "plain.example";
    const CACHE: &str = "cache.example";
    let trusted = Trusted::new()?;
    let rules = originated(HOST, 443) + &entry(PLAIN, 8080) + &redis_rules(CACHE, "");
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await?
        .local_addr()?;
    let no = |status| match status {
        407 => "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        403 => "HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nForbidden",
        _ => "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
    };
    for (upstream, reason, said) in [
        (
            saying(Some(no(407))).await?,
            "proxy_auth_required",
            "tunnel_response:407",
        ),
        (
            saying(Some(no(403))).await?,
            "proxy_refused",
            "tunnel_response:403",
        ),
        (
            saying(Some(no(502))).await?,
            "proxy_refused",
            "tunnel_response:502",
        ),
        (saying(Some("")).await?, "proxy_unreachable", ""),
        (
            gone,
            "proxy_unreachable",
            "delayed_connect_error:_Connection_refused",
        ),
    ] {
        let proxy = through(&trusted, &rules, &format!("http://{upstream}"))
            .port(6379, 0)
            .start()
            .await?;
        for (host, path) in [(HOST, "/originated"), (PLAIN, "/forwarded")] {
            let answer = get(&proxy, host, path).await?;
            assert_eq!(answer.status, 503, "{said}: {answer:?}");
            let body = format!("egress_{reason}: ");
            ensure!(answer.body.starts_with(&body), "{said}: {answer:?}");
            let log = log_of(&proxy, path).await?;
            assert_eq!(log.egress("reason"), reason, "{log:#?}");
            let details = format!("upstream_proxy{{{said}|{upstream}}}");
            let logged = log.istio("response_code_details");
            // A proxy that was not reached has no address that answered.
            ensure!(
                logged == details || reason == "proxy_unreachable" && logged.contains(said),
                "{logged}"
            );
        }
        let mut stream = TcpStream::connect(proxy.listener(6379)?).await?;
        let _closed = timeout(SOON, stream.read_to_end(&mut Vec::new())).await?;
        let wanted = format!("reason={reason} ");
        let told = |line: &str| line.contains(&wanted) && line.contains("cluster=outbound|6379");
        proxy.wait_for_log(told, SOON).await?;
        assert_eq!(counted(&proxy, reason).await?, 3, "{said}");
        assert_eq!(counted(&proxy, "reset").await?, 0, "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_never_answers_is_told_from_a_server_that_does_not() -> Result<()> {
    let trusted = Trusted::new()?;
    let policy = "{tls: {mode: SIMPLE}, connectionPool: {tcp: {connectTimeout: 1s}}}";
    let rules = entry(HOST, 443) + &rule(HOST, policy);
    let silent = saying(None).await?;
    let through_one = ConnectProxy::start([(format!("{HOST}:443"), silent)], None).await?;
    for (upstream, reason) in [(silent, "proxy_timeout"), (through_one.addr(), "timeout")] {
        let proxy = through(&trusted, &rules, &format!("http://{upstream}"))
            .start()
            .await?;
        let answer = get(&proxy, HOST, "/silent").await?;
        assert_eq!(answer.status, 503);
        ensure!(
            answer.body.starts_with(&format!("egress_{reason}: ")),
            "{answer:?}"
        );
        let log = log_of(&proxy, "/silent").await?;
        assert_eq!(log.egress("reason"), reason, "{log:#?}");
        assert_eq!(counted(&proxy, reason).await?, 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_refusal_is_not_told_of_once_the_proxy_agrees() -> Result<()> {
    let trusted = Trusted::new()?;
    let wrong = trusted.site(["other.example"]).await?;
    let hangs_up = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let broken = hangs_up.local_addr()?;
    tokio::spawn(async move { while hangs_up.accept().await.is_ok() {} });
    // The first is refused; the proxy then leads to a server that hangs up, and to one that is another.
    let (refusing, hanging, leading) = (
        ConnectProxy::start([], None).await?,
        ConnectProxy::start([(format!("{HOST}:443"), broken)], None).await?,
        ConnectProxy::start([(format!("{HOST}:443"), wrong.tls_addr())], None).await?,
    );
    let relay = Relay::start(refusing.addr()).await?;
    let proxy = through(
        &trusted,
        &originated(HOST, 443),
        &format!("http://{}", relay.addr),
    )
    .start()
    .await?;
    for (to, reason) in [
        (refusing.addr(), "proxy_refused"),
        (hanging.addr(), "reset"),
        (refusing.addr(), "proxy_refused"),
        (leading.addr(), "name_mismatch"),
    ] {
        relay.lead(to);
        let answer = get(&proxy, HOST, "/").await?;
        ensure!(
            answer.body.starts_with(&format!("egress_{reason}: ")),
            "{reason}: {answer:?}"
        );
    }
    Ok(())
}

/// What carries connections to where it was last told.
struct Relay {
    addr: SocketAddr,
    to: Arc<Mutex<SocketAddr>>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (addr, to) = (listener.local_addr()?, Arc::new(Mutex::new(to)));
        let now = Arc::clone(&to);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let to = *now.lock().unwrap_or_else(PoisonError::into_inner);
                tokio::spawn(async move {
                    let mut other = TcpStream::connect(to).await?;
                    anyhow::Ok(copy_bidirectional(&mut stream, &mut other).await?)
                });
            }
        });
        Ok(Self { addr, to })
    }

    fn lead(&self, to: SocketAddr) {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

#[tokio::test]
async fn a_host_around_the_proxy_that_refuses_is_told_of() -> Result<()> {
    let trusted = Trusted::new()?;
    let tinyproxy = Tinyproxy::start(&["ConnectPort 1".to_owned()]).await?;
    let dns = DnsServer::start(Zone::new().name(INTRANET, [Ipv4Addr::LOCALHOST])).await?;
    let nobody = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        listener.local_addr()?.port()
    };
    let rules = originated(INTRANET, nobody);
    let proxy = excepting(&trusted, &rules, &tinyproxy, &dns, INTRANET)
        .start()
        .await?;
    assert_eq!(get(&proxy, INTRANET, "/").await?.status, 503);
    let told = |line: &str| line.contains("cluster=no-proxy ") && line.contains("reason=refused ");
    let line = proxy.wait_for_log(told, SOON).await?;
    ensure!(
        line.contains(&format!("target={INTRANET}:{nobody}")),
        "{line}"
    );
    Ok(())
}
