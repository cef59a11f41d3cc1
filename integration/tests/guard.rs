//! Where DNS chooses the address, nothing private is dialled.

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use egress_integration::{
    dns::{DnsServer, Zone},
    egressctl::Running,
    netns, probe,
    silent_port::SilentPort,
    stand_in::Listener,
};

use common::{SOON, Trusted, by_dns, dns, entry_with, head, log_of, request, rule};

const NAME: &str = "sub.example.com";

/// A wildcard entry with one port that leads to `target`.
fn wildcard(port: u16, protocol: &str, target: u16, more: &str) -> String {
    let spec = format!(
        "resolution: DYNAMIC_DNS, {more}\
         ports: [{{number: {port}, name: only, protocol: {protocol}, targetPort: {target}}}]"
    );
    entry_with("*.example.com", &spec)
}

#[tokio::test]
async fn an_originated_request_below_a_wildcard_reaches_nothing_private() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, dns) = (trusted.site(["*.example.com"]).await?, dns().await?);
    let port = site.tls_addr().port();
    let rules = wildcard(80, "HTTP", port, "") + &rule("*.example.com", "{tls: {mode: SIMPLE}}");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let answer = probe::get(proxy.listener(80)?, NAME, "/private").await?;
    assert_eq!(answer.status, 403, "{}", answer.body);
    let log = log_of(&proxy, "/private").await?;
    assert_eq!(log.egress("reason"), "private_address");
    ensure!(
        answer.body.starts_with("egress_private_address: "),
        "{}",
        answer.body
    );
    assert_eq!(log.egress("cluster"), "shared|SIMPLE|system|auto|public");
    assert_eq!(site.counts(Listener::Tls).connections, 0);
    ensure!(dns.queries(NAME) > 0);
    Ok(())
}

#[tokio::test]
async fn an_address_given_by_hand_is_not_chosen_by_dns() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site(["*.example.com"]).await?;
    let rules = wildcard(80, "HTTP", 443, "") + &rule("*.example.com", "{tls: {mode: SIMPLE}}");
    let to = common::route(NAME, 443, site.tls_addr());
    let proxy = trusted
        .egressctl(&rules)
        .port(80, 0)
        .connect_to(&to)
        .start()
        .await?;
    let answer = probe::get(proxy.listener(80)?, NAME, "/").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    Ok(())
}

/// What one host may reach is open to that host and port, on each way in, and to nobody else.
#[tokio::test]
async fn an_address_given_by_hand_is_open_to_one_host_and_port_alone() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, other, dns) = (
        trusted.site(["*.example.com"]).await?,
        SilentPort::start().await?,
        dns().await?,
    );
    let spec = format!(
        "resolution: DYNAMIC_DNS, ports: [\
         {{number: 80, name: http, protocol: HTTP, targetPort: {port}}}, \
         {{number: 81, name: other, protocol: HTTP, targetPort: {silent}}}, \
         {{number: 443, name: tls, protocol: TLS, targetPort: {port}}}]",
        port = site.tls_addr().port(),
        silent = other.addr().port(),
    );
    let tls = "{portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}";
    let rules = entry_with("*.example.com", &spec)
        + &rule("*.example.com", tls)
        + &common::originated(common::HOST, 443);
    let proxy = trusted
        .egressctl(&rules)
        .port(80, 0)
        .port(81, 0)
        .port(443, 0)
        .connect_to(&common::route(
            NAME,
            site.tls_addr().port(),
            site.tls_addr(),
        ))
        .connect_to(&common::route(common::HOST, 443, other.addr()))
        .arg("--resolver")
        .arg(dns.addr().to_string())
        .arg("--outbound-traffic-policy")
        .arg("ALLOW_ANY")
        .start()
        .await?;
    let ca = trusted.ca.pem();
    let answer = probe::get(proxy.listener(80)?, NAME, "/named").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = probe::get_tls(proxy.listener(443)?, NAME, NAME, "/tls", &ca).await?;
    assert_eq!(answer.answer.status, 200);
    assert_eq!(site.counts(Listener::Tls).connections, 2);

    let admin = proxy.admin()?;
    let below = "other.example.com";
    for (port, host, path) in [
        (80, below.to_owned(), "/"),
        (81, NAME.to_owned(), "/"),
        (80, other.addr().to_string(), "/"),
        (80, site.tls_addr().to_string(), "/"),
        (80, admin.to_string(), "/config_dump"),
        (80, format!("localhost:{}", admin.port()), "/quitquitquit"),
    ] {
        let answer = probe::get(proxy.listener(port)?, &host, path).await?;
        assert_eq!(answer.status, 403, "{host}{path}: {}", answer.body);
    }
    let end = format!("POST /quitquitquit HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    let answer = probe::raw(proxy.listener(80)?, end.as_bytes(), common::SOON).await?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 403 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let answer = probe::get_tls(proxy.listener(443)?, below, below, "/", &ca).await;
    ensure!(answer.is_err(), "{answer:?}");
    assert_eq!(site.counts(Listener::Tls).connections, 2);
    other.assert_silent().await?;
    assert_eq!(proxy.admin_get("/ready").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_forwarded_request_below_a_wildcard_reaches_nothing_private() -> Result<()> {
    let trusted = Trusted::new()?;
    let (silent, dns) = (SilentPort::start().await?, dns().await?);
    let rules = wildcard(80, "HTTP", silent.addr().port(), "");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let answer = probe::get(proxy.listener(80)?, NAME, "/private").await?;
    assert_eq!(answer.status, 403, "{}", answer.body);
    silent.assert_silent().await
}

#[tokio::test]
async fn tls_below_a_wildcard_reaches_nothing_private() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, dns) = (trusted.site(["*.example.com"]).await?, dns().await?);
    let rules = wildcard(443, "TLS", site.tls_addr().port(), "");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let answer = probe::get_tls(proxy.listener(443)?, NAME, NAME, "/", &trusted.ca.pem()).await;
    ensure!(answer.is_err(), "{answer:?}");
    assert_eq!(site.counts(Listener::Tls).connections, 0);
    Ok(())
}

#[tokio::test]
async fn a_host_that_is_left_alone_reaches_nothing_private() -> Result<()> {
    let trusted = Trusted::new()?;
    let (silent, dns) = (SilentPort::start().await?, dns().await?);
    let rules = common::originated(common::HOST, 443);
    let builder = trusted
        .egressctl(&rules)
        .port(80, 0)
        .arg("--resolver")
        .arg(dns.addr().to_string());
    let proxy = builder
        .arg("--outbound-traffic-policy")
        .arg("ALLOW_ANY")
        .start()
        .await?;
    let port = silent.addr().port();
    for host in [
        format!("other.example:{port}"),
        format!("127.0.0.1:{port}"),
        "169.254.169.254".to_owned(),
    ] {
        let answer = probe::get(proxy.listener(80)?, &host, "/private").await?;
        assert_eq!(answer.status, 403, "{host}: {}", answer.body);
    }
    silent.assert_silent().await
}

/// A service of the mesh may have a private address: the rule says so.
#[tokio::test]
async fn a_wildcard_of_the_mesh_may_be_private() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, dns) = (trusted.site(["*.example.com"]).await?, dns().await?);
    let port = site.tls_addr().port();
    let rules = wildcard(80, "HTTP", port, "location: MESH_INTERNAL, ")
        + &rule("*.example.com", "{tls: {mode: SIMPLE}}");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    assert_eq!(
        probe::get(proxy.listener(80)?, NAME, "/").await?.status,
        200
    );
    Ok(())
}

/// Addresses that a name below a wildcard may not lead to.
const REFUSED: [&str; 36] = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::a83f:8110",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2002:7f00:1::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::a9fe:a9fe",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "ff0e::1",
];

/// Addresses that it may lead to. Nobody has the last of each, so that another is tried.
const PUBLIC: [&str; 3] = ["203.0.113.1", "2001:db8::1", "64:ff9b::cb00:7101"];
const DEAD: &str = "203.0.113.9";
const DEAD_6: &str = "2001:db8::9";

/// A server on all addresses of the test's network, and where it was reached.
struct Recorder {
    port: u16,
    /// Another of its ports.
    tls_port: u16,
    reached: Arc<Mutex<Vec<IpAddr>>>,
}

impl Recorder {
    async fn start() -> Result<Self> {
        let reached = Arc::<Mutex<Vec<IpAddr>>>::default();
        let port = Self::listen(reached.clone()).await?;
        let tls_port = Self::listen(reached.clone()).await?;
        Ok(Self {
            port,
            tls_port,
            reached,
        })
    }

    async fn listen(seen: Arc<Mutex<Vec<IpAddr>>>) -> Result<u16> {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let at = stream.local_addr().map(|at| at.ip().to_canonical());
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend(at);
                tokio::spawn(async move {
                    let mut begun = [0; 1024];
                    // A request gets an answer, and a ClientHello is over.
                    if let Ok(length @ 1..) = stream.read(&mut begun).await
                        && begun
                            .get(..length)
                            .is_some_and(|begun| begun.starts_with(b"GET "))
                    {
                        let answer =
                            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                        let _gone = stream.write_all(answer).await;
                    }
                });
            }
        });
        Ok(port)
    }

    fn take(&self) -> Vec<IpAddr> {
        std::mem::take(&mut *self.reached.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The ways in, each with the name that is asked for.
const WAYS: [&str; 6] = [
    "HTTP",
    "HTTP to TLS",
    "SNI",
    "ALLOW_ANY",
    "forward proxy",
    "CONNECT",
];

/// Goes one of the ways; returns the status where there is one.
async fn go(way: &str, label: &str, port: u16, open: &Running, proxy: &Running) -> Result<String> {
    let wild = format!("{label}.w.example");
    let http = async |at: SocketAddr, line: String, host: &str| {
        let lines = [line.as_str(), &format!("Host: {host}"), "Connection: close"];
        let answer = probe::raw(at, request(&lines).as_bytes(), SOON).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        anyhow::Ok(answer.split(' ').nth(1).unwrap_or_default().to_owned())
    };
    let get = || "GET / HTTP/1.1".to_owned();
    match way {
        "HTTP" => http(open.listener(80)?, get(), &wild).await,
        "HTTP to TLS" => http(open.listener(80)?, get(), &format!("{label}.t.example")).await,
        "ALLOW_ANY" => {
            http(
                open.listener(80)?,
                get(),
                &format!("{label}.any.example:{port}"),
            )
            .await
        }
        "forward proxy" => {
            let line = format!("GET http://{wild}/ HTTP/1.1");
            http(proxy.forward_proxy()?, line, "x").await
        }
        "CONNECT" => {
            let mut stream = TcpStream::connect(proxy.forward_proxy()?).await?;
            let line = format!("CONNECT {wild}:443 HTTP/1.1");
            stream
                .write_all(request(&[&line, "Host: x"]).as_bytes())
                .await?;
            let head = head(&mut stream).await?;
            let status = head.split(' ').nth(1).unwrap_or_default();
            if status == "200" {
                // Something that begins as TLS does. The server ends the connection once it has seen it.
                stream.write_all(b"\x16\x03\x01\x00\x05hello").await?;
                let _end = stream.read_to_end(&mut Vec::new()).await;
            }
            Ok(status.to_owned())
        }
        _ => {
            let ca = egress_integration::pki::Ca::new("nobody's")?;
            let answer = probe::get_tls(open.listener(443)?, &wild, &wild, "/", &ca.pem()).await;
            ensure!(answer.is_err(), "{answer:?}");
            Ok(String::new())
        }
    }
}

/// Whoever owns a name may give it any addresses, one beside the other.
#[test]
fn no_refused_address_is_reached_whatever_stands_beside_it() -> Result<()> {
    let parse = |text: &&str| text.parse::<IpAddr>();
    let here: Vec<IpAddr> = REFUSED
        .iter()
        .chain(&PUBLIC)
        .map(parse)
        .collect::<Result<_, _>>()?;
    // Those that every machine has already, or none can have.
    let given = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => {
            !ip.is_loopback() && !ip.is_multicast() && !ip.is_broadcast() && !ip.is_unspecified()
        }
        IpAddr::V6(ip) => {
            !ip.is_loopback()
                && !ip.is_multicast()
                && !ip.is_unspecified()
                && ip.to_ipv4_mapped().is_none()
        }
    };
    let given: Vec<IpAddr> = here.iter().filter(given).copied().collect();
    netns::run(&given, &[], async || {
        let mut names: Vec<(String, Vec<IpAddr>)> = here
            .iter()
            .enumerate()
            .map(|(at, ip)| (format!("n{at}"), vec![*ip]))
            .collect();
        let dead = |ip: &IpAddr| match ip {
            IpAddr::V4(_) => DEAD.parse::<IpAddr>(),
            IpAddr::V6(_) => DEAD_6.parse::<IpAddr>(),
        };
        for (at, ip) in here.iter().take(REFUSED.len()).enumerate() {
            names.push((format!("d{at}"), vec![dead(ip)?, *ip]));
            names.push((format!("b{at}"), vec![*ip, dead(ip)?]));
        }
        let (public, private): (IpAddr, IpAddr) = (PUBLIC[0].parse()?, "127.0.0.1".parse()?);
        for (label, both) in [("pl", [public, private]), ("lp", [private, public])] {
            names.push((label.to_owned(), both.into()));
        }
        let (dead, six): (IpAddr, IpAddr) = (DEAD.parse()?, "::1".parse()?);
        names.push(("mixed".to_owned(), vec![dead, six]));
        let mut zone = Zone::new();
        for (label, addresses) in &names {
            for domain in ["w.example", "t.example", "any.example"] {
                zone = zone.name(&format!("{label}.{domain}"), addresses.clone());
            }
        }
        let dns = DnsServer::start(zone).await?;
        let recorder = Recorder::start().await?;
        let port = recorder.port;
        let ports = |rest: &str| {
            let http = format!("{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}");
            format!("resolution: DYNAMIC_DNS, ports: [{http}{rest}]")
        };
        let tls_port = recorder.tls_port;
        let tls = format!(", {{number: 443, name: tls, protocol: TLS, targetPort: {tls_port}}}");
        let rules = entry_with("*.w.example", &ports(&tls))
            + &entry_with("*.t.example", &ports(""))
            + &rule("*.t.example", common::SIMPLE);
        let trusted = Trusted::new()?;
        let with = |args: &[&str]| {
            let resolver = dns.addr().to_string();
            let builder = trusted.egressctl(&rules).arg("--resolver").arg(resolver);
            args.iter().fold(builder, |builder, arg| builder.arg(*arg))
        };
        let open = with(&["--outbound-traffic-policy", "ALLOW_ANY"])
            .port(80, 0)
            .port(443, 0);
        let open = open.start().await?;
        let proxy = with(&["--forward-proxy", "127.0.0.1:0"]).start().await?;
        let public: Vec<IpAddr> = PUBLIC.iter().map(parse).collect::<Result<_, _>>()?;
        let mut wrong = Vec::new();
        for way in WAYS {
            for (label, addresses) in &names {
                let status = timeout(SOON, go(way, label, port, &open, &proxy)).await;
                let status = status.with_context(|| format!("{way} {addresses:?}"))??;
                let reached = recorder.take();
                let expected = addresses.iter().find(|ip| public.contains(ip));
                if reached.iter().any(|ip| Some(ip) != expected)
                    || reached.is_empty() != expected.is_none()
                {
                    wrong.push(format!(
                        "{way} {addresses:?}: reached {reached:?}, {status}"
                    ));
                }
                let all_refused = !label.starts_with(['d', 'b', 'm']) && expected.is_none();
                if all_refused && way != "SNI" && status != "403" {
                    wrong.push(format!("{way} {addresses:?}: {status}, not 403"));
                }
            }
        }
        // An address in place of a name was chosen by the client.
        for ip in &here {
            let host = SocketAddr::new(*ip, port).to_string();
            let answer = probe::get(open.listener(80)?, &host, "/").await?;
            let (status, reached) = (answer.status, recorder.take());
            let right = match public.contains(ip) {
                true => status == 200 && reached == [*ip],
                false => status == 403 && reached.is_empty(),
            };
            if !right {
                wrong.push(format!("{host}: reached {reached:?}, {status}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        for running in [&open, &proxy] {
            assert_eq!(running.stderr(), Vec::<String>::new());
        }
        Ok(())
    })
}

/// What `render` prints for an Envoy that looks at one address alone.
#[test]
fn the_firewall_that_render_prints_refuses_what_envoy_cannot() -> Result<()> {
    let public: IpAddr = PUBLIC[0].parse()?;
    netns::run(&[public], &[], async || {
        let trusted = Trusted::new()?;
        let rules = trusted.file("rules.yaml", &wildcard(80, "HTTP", 80, ""))?;
        let rules = rules.display().to_string();
        let render = ["render", "envoy", "-f", &rules, "--port", "80=10080"];
        let output = tokio::process::Command::new(egress_integration::egressctl::binary()?)
            .args(render)
            .args(["--envoy-version", "1.38.2"])
            .output()
            .await?;
        let told = String::from_utf8(output.stderr)?;
        ensure!(output.status.success(), "{told}");
        let line = told.lines().find(|line| line.starts_with("nft '"));
        // Everybody here is root.
        let line = line.with_context(|| told.clone())?.replace("ENVOY", "0");
        let recorder = Recorder::start().await?;
        let connects = async |ip: IpAddr| {
            let connecting = TcpStream::connect((ip, recorder.port));
            timeout(SOON, connecting)
                .await
                .is_ok_and(|stream| stream.is_ok())
        };
        let private = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for ip in private {
            ensure!(connects(ip).await, "{ip}");
        }
        let output = tokio::process::Command::new("sh")
            .args(["-c", &line])
            .output()
            .await?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{line}: {told}");
        for ip in private {
            ensure!(!connects(ip).await, "{ip}");
        }
        ensure!(connects(public).await);
        Ok(())
    })
}

/// Names that clients choose may fill their own DNS cache, and no other.
#[tokio::test]
async fn hosts_of_rules_are_served_while_clients_ask_for_ever_more_names() -> Result<()> {
    const NAMES: usize = 4300;
    let trusted = Trusted::new()?;
    let site = trusted.site(["a.example", "b.example"]).await?;
    let zone = Zone::new()
        .name("a.example", [Ipv4Addr::LOCALHOST])
        .name("b.example", [Ipv4Addr::LOCALHOST]);
    let dns = DnsServer::start(zone).await?;
    let port = site.tls_addr().port();
    let rules = common::originated("a.example", port)
        + &common::originated("b.example", port)
        + &wildcard(80, "HTTP", 80, "");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let served = async |host: &str| {
        let answer = probe::get(proxy.listener(80)?, host, "/").await?;
        anyhow::Ok(answer.status)
    };
    assert_eq!(served("a.example").await?, 200);
    let mut stream = TcpStream::connect(proxy.listener(80)?).await?;
    let mut full = 0;
    for at in 0..NAMES {
        let host = format!("Host: r{at}.example.com");
        let ask = request(&["GET / HTTP/1.1", &host]);
        stream.write_all(ask.as_bytes()).await?;
        let head = head(&mut stream).await?;
        ensure!(head.starts_with("HTTP/1.1 503 "), "{at}: {head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.context("no length")?.parse()?];
        stream.read_exact(&mut body).await?;
        let body = String::from_utf8(body)?;
        let word = body.split(':').next().unwrap_or_default();
        ensure!(
            ["egress_dns", "egress_dns_overflow"].contains(&word),
            "{body}"
        );
        full += usize::from(word == "egress_dns_overflow");
        if at % 500 == 0 {
            assert_eq!(served("a.example").await?, 200, "{at}");
        }
    }
    ensure!(full > 0 && full < NAMES, "{full}");
    for host in ["a.example", "b.example"] {
        assert_eq!(served(host).await?, 200, "{host}");
    }
    let metrics = proxy.admin_get("/stats/prometheus").await?.body;
    for metric in [
        format!("egress_failure{{reason=\"dns_overflow\"}} {full}"),
        format!("envoy_dns_cache_host_overflow{{names=\"public\"}} {full}"),
        "envoy_dns_cache_host_overflow{names=\"listed\"} 0".to_owned(),
    ] {
        ensure!(
            metrics.lines().any(|line| line == metric),
            "{metric}: {metrics}"
        );
    }
    Ok(())
}
