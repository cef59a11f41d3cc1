//! Faults between us and a server that need not fail a request: DNS that fails for a moment, names that move, addresses
//! that are dead, connections that end just as a request comes.
//!
//! Each is tried on a host that shares a cluster and on one that has its own: they find their servers in different ways.

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UdpSocket},
    time::{Instant, sleep, timeout},
};

use egress_integration::{
    dns::{DnsServer, Trouble, Zone},
    egressctl::Running,
    envoy::{self, EnvoyProcess},
    pki::Leaf,
    probe::{self, Answer},
    scripted::{Asked, Reply, Scripted},
    tls_server::{TlsServer, TlsServerConfig},
};

use common::{
    HOST, LogLine, SOON, Trusted, by_dns, entry, entry_with, log_of, rendered, request, rule,
};

/// The traffic policies of a host that shares a cluster, and of one that has its own.
const KINDS: [&str; 2] = [
    common::SIMPLE,
    "{tls: {mode: SIMPLE, sni: edition.cnn.com}}",
];

/// A loopback address where nobody listens.
const DEAD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

/// Another loopback address.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn zone(addresses: &[IpAddr]) -> Zone {
    Zone::new().name(HOST, addresses.iter().copied())
}

async fn server(
    trusted: &Trusted,
    at: SocketAddr,
    script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> Result<Scripted> {
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    Scripted::start(&certificate, at, script).await
}

fn says(text: &'static str) -> impl Fn(&Asked) -> Reply + Send + Sync {
    move |_| Reply::Answer(200, text.to_owned())
}

fn rules(policy: &str, port: u16) -> String {
    entry(HOST, port) + &rule(HOST, policy)
}

async fn get(proxy: &Running, path: &str) -> Result<Answer> {
    probe::get(proxy.listener(80)?, HOST, path).await
}

/// Sends a request that is nothing but its head, and returns its status.
async fn ask(proxy: &Running, method: &str, path: &str, more: &[&str]) -> Result<u16> {
    let (line, host) = (format!("{method} {path} HTTP/1.1"), format!("Host: {HOST}"));
    let mut lines = vec![line.as_str(), &host, "Connection: close"];
    lines.extend(more);
    let answer = probe::raw(proxy.listener(80)?, request(&lines).as_bytes(), SOON).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).context("no status")?;
    Ok(status.parse()?)
}

#[tokio::test]
async fn a_host_is_back_within_seconds_after_dns_has_failed() -> Result<()> {
    for policy in KINDS {
        for trouble in [Trouble::NxDomain, Trouble::ServFail, Trouble::Silence] {
            let trusted = Trusted::new()?;
            let site = server(&trusted, (Ipv4Addr::LOCALHOST, 0).into(), says("here")).await?;
            let dns = DnsServer::start(zone(&[Ipv4Addr::LOCALHOST.into()])).await?;
            dns.trouble(HOST, trouble, u64::MAX);
            let proxy = by_dns(&trusted, &rules(policy, site.addr().port()), &dns).await?;
            let answer = get(&proxy, "/early").await?;
            ensure!(answer.status == 503, "{policy} {trouble:?}: {answer:?}");
            assert_eq!(log_of(&proxy, "/early").await?.egress("reason"), "dns");

            ensure!(dns.troubled(HOST) > 0);
            dns.trouble(HOST, trouble, 0);
            let since = Instant::now();
            while get(&proxy, "/again").await?.status != 200 {
                // By Envoy's own timers it would be a minute.
                ensure!(since.elapsed() < SOON, "{policy} {trouble:?}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_name_that_is_not_there_is_asked_for_only_when_somebody_wants_it() -> Result<()> {
    let trusted = Trusted::new()?;
    let dns = DnsServer::start(Zone::new()).await?;
    let spec = "resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]";
    let rules = entry_with("*.example.com", spec) + &rule("*.example.com", common::SIMPLE);
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    for at in 0..5 {
        let host = format!("{at}.example.com");
        let answer = probe::get(proxy.listener(80)?, &host, "/").await?;
        ensure!(answer.status == 503, "{answer:?}");
    }
    let before: u64 = dns.asked().values().sum();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(dns.asked().values().sum::<u64>(), before);
    Ok(())
}

#[tokio::test]
async fn a_dead_dns_server_before_a_living_one_fails_no_request() -> Result<()> {
    for policy in KINDS {
        let trusted = Trusted::new()?;
        let site = server(&trusted, (Ipv4Addr::LOCALHOST, 0).into(), says("here")).await?;
        let dead = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let dns = DnsServer::start(zone(&[Ipv4Addr::LOCALHOST.into()])).await?;
        let rules = rules(policy, site.addr().port());
        let proxy = trusted.egressctl(&rules).port(80, 0).port(443, 0);
        let proxy = proxy
            .arg("--resolver")
            .arg(dead.local_addr()?.to_string())
            .arg("--resolver")
            .arg(dns.addr().to_string());
        let proxy = proxy.start().await?;
        let answer = get(&proxy, "/").await?;
        ensure!(answer.status == 200, "{policy}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_name_that_moves_is_followed_by_a_client_that_never_rests() -> Result<()> {
    // A cluster of its own drops addresses as DNS does. Shared ones do so with their connections, in half a minute.
    for (policy, limit) in KINDS.into_iter().zip([90, 20]) {
        let trusted = Trusted::new()?;
        let old = server(&trusted, (Ipv4Addr::LOCALHOST, 0).into(), says("old")).await?;
        let port = old.addr().port();
        let new = server(&trusted, (OTHER, port).into(), says("new")).await?;
        let dns = DnsServer::start(zone(&[Ipv4Addr::LOCALHOST.into()])).await?;
        let proxy = by_dns(&trusted, &rules(policy, port), &dns).await?;
        assert_eq!(get(&proxy, "/before").await?.body, "old", "{policy}");

        dns.lead(HOST, [OTHER]);
        let since = Instant::now();
        loop {
            let answer = get(&proxy, "/busy").await?;
            ensure!(answer.status == 200, "{policy}: {answer:?}");
            if answer.body == "new" {
                break;
            }
            ensure!(since.elapsed() < Duration::from_secs(limit), "{policy}");
            sleep(Duration::from_millis(200)).await;
        }
        let before = old.asked().len();
        for _ in 0..10 {
            assert_eq!(get(&proxy, "/after").await?.body, "new", "{policy}");
        }
        assert_eq!(old.asked().len(), before, "{policy}");
        ensure!(!new.asked().is_empty(), "{policy}");
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_address_beside_a_living_one_fails_no_request() -> Result<()> {
    let living: IpAddr = Ipv4Addr::LOCALHOST.into();
    for policy in KINDS {
        for (at, addresses) in [
            (living, [DEAD.into(), living]),
            (living, [living, Ipv6Addr::LOCALHOST.into()]),
            (
                Ipv6Addr::LOCALHOST.into(),
                [DEAD.into(), Ipv6Addr::LOCALHOST.into()],
            ),
        ] {
            let trusted = Trusted::new()?;
            let last = |_: &Asked| Reply::Last("here".to_owned());
            let site = server(&trusted, (at, 0).into(), last).await?;
            let dns = DnsServer::start(zone(&addresses)).await?;
            let proxy = by_dns(&trusted, &rules(policy, site.addr().port()), &dns).await?;
            for nth in 0..30 {
                // A request that may change something is none that a dead address has seen.
                let method = if nth % 2 == 0 { "GET" } else { "POST" };
                let status = ask(&proxy, method, "/", &["Content-Length: 0"]).await?;
                ensure!(
                    status == 200,
                    "{policy} {addresses:?} {method} {nth}: {status}"
                );
            }
            assert_eq!(site.asked().len(), 30, "{policy} {addresses:?}");
            let lines = proxy.wait_for_log(|line| line.contains(" / HTTP"), SOON);
            let line = LogLine::parse(&lines.await?)?;
            // Not the first address of the name, which is dead.
            assert_eq!(line.istio("upstream_host"), site.addr().to_string());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_endpoint_beside_a_living_one_fails_no_request() -> Result<()> {
    let trusted = Trusted::new()?;
    let last = |_: &Asked| Reply::Last("here".to_owned());
    let site = server(&trusted, (Ipv4Addr::LOCALHOST, 0).into(), last).await?;
    let spec = format!(
        "resolution: STATIC, endpoints: [{{address: {DEAD}}}, {{address: 127.0.0.1}}], \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {}}}]",
        site.addr().port()
    );
    let rules = entry_with(HOST, &spec) + &rule(HOST, common::SIMPLE);
    let proxy = trusted.egressctl(&rules).port(80, 0).start().await?;
    for nth in 0..30 {
        let answer = get(&proxy, "/").await?;
        ensure!(answer.status == 200, "{nth}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_address_fails_no_connection_of_bytes() -> Result<()> {
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let greeting = TlsServerConfig {
        greeting: b"hello".to_vec(),
        ..TlsServerConfig::default()
    };
    let site = TlsServer::start(&certificate, greeting).await?;
    let dns = DnsServer::start(zone(&[DEAD.into(), Ipv4Addr::LOCALHOST.into()])).await?;
    let port = site.addr().port();
    let spec = format!("resolution: DNS, ports: [{{number: {port}, name: tcp, protocol: TCP}}]");
    let rules = entry_with(HOST, &spec) + &rule(HOST, common::SIMPLE);
    let proxy = trusted.egressctl(&rules).port(port, 0);
    let proxy = proxy.arg("--resolver").arg(dns.addr().to_string());
    let proxy = proxy.start().await?;
    for nth in 0..20 {
        let mut stream = TcpStream::connect(proxy.listener(port)?).await?;
        let mut heard = [0; 5];
        let reading = timeout(SOON, stream.read_exact(&mut heard)).await;
        reading?.with_context(|| format!("connection {nth}"))?;
        assert_eq!(&heard, b"hello", "{nth}");
    }
    Ok(())
}

/// Every second request of a connection is met by its end.
fn ends_at_the_second(asked: &Asked) -> Reply {
    match asked.nth {
        0 => Reply::Answer(200, "here".to_owned()),
        _ => Reply::Reset,
    }
}

#[tokio::test]
async fn a_request_that_meets_the_end_of_its_connection_is_tried_again_if_it_changes_nothing()
-> Result<()> {
    for policy in KINDS {
        let trusted = Trusted::new()?;
        let local = (Ipv4Addr::LOCALHOST, 0).into();
        let site = server(&trusted, local, ends_at_the_second).await?;
        let dns = DnsServer::start(zone(&[Ipv4Addr::LOCALHOST.into()])).await?;
        let proxy = by_dns(&trusted, &rules(policy, site.addr().port()), &dns).await?;
        for method in ["GET", "HEAD", "OPTIONS"] {
            for nth in 0..8 {
                let status = ask(&proxy, method, "/safe", &[]).await?;
                ensure!(status == 200, "{policy} {method} {nth}: {status}");
            }
        }
        let seen = site.asked();
        ensure!(seen.len() > 24, "no connection ended: {}", seen.len());
        let told = seen.iter().find(|asked| asked.head.contains("x-envoy-"));
        ensure!(told.is_none(), "{told:?}");

        // What may change something is sent once, whatever the client says of it.
        let trusting = "x-envoy-retry-on: reset";
        let mut failed = 0;
        for (method, more) in [
            ("POST", &["Content-Length: 0"][..]),
            (
                "POST",
                &["Content-Length: 0", trusting, "x-envoy-max-retries: 5"],
            ),
            ("PUT", &["Content-Length: 0", trusting]),
            ("DELETE", &[trusting]),
            ("GET", &["Content-Length: 0", trusting]),
        ] {
            for nth in 0..6 {
                let path = format!("/{method}-{}-{nth}", more.len());
                let status = ask(&proxy, method, &path, more).await?;
                failed += usize::from(status == 503);
                let line = format!(" {path} ");
                let sent = site.asked();
                let sent = sent.iter().filter(|asked| asked.head.contains(&line));
                assert_eq!(sent.count(), 1, "{policy} {path}: {status}");
            }
        }
        ensure!(failed > 0, "no connection ended");
    }
    Ok(())
}

#[tokio::test]
async fn retries_of_a_virtual_service_count_instead_of_ours() -> Result<()> {
    let trusted = Trusted::new()?;
    let never = |_: &Asked| Reply::Reset;
    let site = server(&trusted, (Ipv4Addr::LOCALHOST, 0).into(), never).await?;
    let dns = DnsServer::start(zone(&[Ipv4Addr::LOCALHOST.into()])).await?;
    let route = format!("route: [{{destination: {{host: {HOST}}}}}]");
    let service = format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: tries}}
spec:
  hosts: [{HOST}]
  http:
  - {{match: [{{uri: {{exact: /never}}}}], retries: {{attempts: 0}}, {route}}}
  - {{match: [{{uri: {{exact: /once}}}}], retries: {{attempts: 1, retryOn: reset}}, {route}}}
  - {{{route}}}
"
    );
    let rules = rules(common::SIMPLE, site.addr().port()) + &service;
    let resolver = dns.addr().to_string();
    let bootstrap = rendered(&trusted, &rules, &["--resolver", &resolver]).await?;
    let envoy = EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), [""; 0]).await?;
    let listener = envoy.listener("outbound_80")?;
    for (path, tries) in [("/never", 1), ("/once", 2), ("/ours", 3)] {
        assert_eq!(probe::get(listener, HOST, path).await?.status, 503);
        let line = format!(" {path} ");
        let sent = site.asked();
        let sent = sent.iter().filter(|asked| asked.head.contains(&line));
        assert_eq!(sent.count(), tries, "{path}");
    }
    Ok(())
}

/// Whether the kernel watches over a connection to this address while nothing is said: the timer of its line is 2.
///
/// Source: Linux `Documentation/networking/proc_net_tcp.rst`.
fn is_watched(to: SocketAddr) -> Result<bool> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let remote = format!("0100007F:{:04X}", to.port());
    let mut lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Address here, address there, state (1 is established), queues, timer.
    Ok(lines.any(|line| {
        line.get(2) == Some(&remote.as_str())
            && line.get(3) == Some(&"01")
            && line.get(5).is_some_and(|timer| timer.starts_with("02:"))
    }))
}

#[tokio::test]
async fn a_machine_that_goes_without_a_word_is_looked_for() -> Result<()> {
    for policy in KINDS {
        let trusted = Trusted::new()?;
        let site = server(&trusted, (Ipv4Addr::LOCALHOST, 0).into(), says("here")).await?;
        let dns = DnsServer::start(zone(&[Ipv4Addr::LOCALHOST.into()])).await?;
        let proxy = by_dns(&trusted, &rules(policy, site.addr().port()), &dns).await?;
        assert_eq!(get(&proxy, "/").await?.status, 200);
        common::eventually(policy, async || is_watched(site.addr())).await?;
    }
    Ok(())
}
