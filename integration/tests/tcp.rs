//! What is not HTTP: plain bytes in, verified TLS out, by the same rules.

mod common;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{self, UnboundedReceiver},
    time::timeout,
};

use egress_integration::{
    egressctl::Running,
    pki::{Ca, Leaf, Validity},
    redis::{self, Redis},
    silent_port::SilentPort,
    tls_server::{Heard, TlsServer, TlsServerConfig},
};

use common::{LogLine, SIMPLE, SOON, Trusted, entry_with, eventually, route, rule, selected};

const CACHE: &str = "cache.example";
/// How many bytes go each way where many go.
const MANY: usize = 50 << 20;

/// A TCP service, its servers on another port than applications dial.
fn tcp(host: &str, port: u16, protocol: &str) -> String {
    let spec = format!(
        "resolution: DNS, ports: [{{number: {port}, name: p, protocol: {protocol}, targetPort: {}}}]",
        port + 1
    );
    entry_with(host, &spec)
}

/// The same, originated.
fn originated(host: &str, port: u16) -> String {
    tcp(host, port, "TCP") + &rule(host, SIMPLE)
}

/// A server for one name, with a certificate of the trusted authority.
async fn server(trusted: &Trusted, name: &str, config: TlsServerConfig) -> Result<TlsServer> {
    TlsServer::start(&trusted.ca.issue(&Leaf::for_names([name]))?, config).await
}

/// The log line of the connection to a cluster or with an SNI; of the only one that fits.
async fn logged(proxy: &Running, word: &str) -> Result<LogLine> {
    let line = proxy.wait_for_log(|line| line.contains(word), SOON).await?;
    LogLine::parse(&line)
}

async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads to the end; a connection that is torn down has ended too.
async fn rest(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    match timeout(SOON, read).await.context("it was left open")? {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(all),
    }
}

async fn exactly(stream: &mut TcpStream, len: usize) -> Result<Vec<u8>> {
    let mut room = vec![0; len];
    timeout(SOON, stream.read_exact(&mut room)).await??;
    Ok(room)
}

#[tokio::test]
async fn redis_is_reached_by_tls_and_its_own_client_knows_nothing_of_it() -> Result<()> {
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([CACHE]))?;
    let server = Redis::start(&certificate, None).await?;
    let silent = SilentPort::start().await?;
    let proxy = trusted
        .egressctl(&(tcp(CACHE, 6379, "REDIS") + &rule(CACHE, SIMPLE)))
        .port(6379, 0)
        .connect_to(&route(CACHE, 6380, server.addr()))
        .connect_to(&route(CACHE, 6379, silent.addr()))
        .start()
        .await?;
    let listener = proxy.listener(6379)?;
    // What this would be without the proxy.
    ensure!(redis::cli(server.addr(), &["PING"]).await? != "PONG");
    assert_eq!(redis::cli(listener, &["SET", "key", "value"]).await?, "OK");
    assert_eq!(redis::cli(listener, &["GET", "key"]).await?, "value");
    silent.assert_silent().await?;

    let log = logged(&proxy, "action=originate").await?;
    log.assert_egress([
        ("action", "originate"),
        ("rule", "default/cache-example"),
        ("service_entry", "default/cache-example"),
        ("cluster", "outbound|6379||cache.example"),
        ("transport_socket", "envoy.transport_sockets.tls"),
        ("tls_mode", "SIMPLE"),
        ("sni", CACHE),
        ("verify", CACHE),
        ("target", "cache.example:6380"),
    ]);
    assert_eq!(log.istio("upstream_host"), server.addr().to_string());
    assert_eq!(log.istio("response_flags"), "-");
    assert!(proxy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn redis_that_wants_to_know_its_clients_is_shown_the_credential() -> Result<()> {
    let trusted = Trusted::new()?;
    let clients = Ca::new("the clients' CA")?;
    let certificate = trusted.ca.issue(&Leaf::for_names([CACHE]))?;
    let server = Redis::start(&certificate, Some(&clients)).await?;
    let folder = trusted.path("credentials");
    std::fs::create_dir(&folder)?;
    let client = clients.issue(&Leaf::client("client.example"))?;
    common::credential(&folder, "redis-client", &client, &trusted.ca.pem())?;
    let rules = tcp(CACHE, 6379, "REDIS") + &selected(CACHE, "redis-client");
    let start = |rules: &str| {
        let builder =
            trusted
                .egressctl(rules)
                .port(6379, 0)
                .connect_to(&route(CACHE, 6380, server.addr()));
        builder.arg("--credentials").arg(&folder)
    };
    let proxy = start(&rules)
        .arg("--label")
        .arg("app=sleep")
        .start()
        .await?;
    let listener = proxy.listener(6379)?;
    assert_eq!(redis::cli(listener, &["SET", "key", "value"]).await?, "OK");
    assert_eq!(redis::cli(listener, &["GET", "key"]).await?, "value");
    let log = logged(&proxy, "action=originate").await?;
    assert_eq!(log.egress("tls_mode"), "MUTUAL");
    ensure!(
        log.egress("secrets")
            .starts_with("kubernetes://redis-client"),
        "{log:#?}"
    );

    // Without the credential redis answers nobody.
    let stranger = start(&(tcp(CACHE, 6379, "REDIS") + &rule(CACHE, SIMPLE)));
    let stranger = stranger.start().await?;
    let answer = redis::cli(stranger.listener(6379)?, &["GET", "key"]).await?;
    ensure!(!answer.contains("value"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_the_right_one_hears_nothing_and_the_log_says_why() -> Result<()> {
    let trusted = Trusted::new()?;
    let unknown = Ca::new("nobody's CA")?;
    let leaf = |name: &str| Leaf::for_names([name]);
    let wrong = server(&trusted, "other.example", TlsServerConfig::default()).await?;
    let stranger = unknown.issue(&leaf("stranger.example"))?;
    let stranger = TlsServer::start(&stranger, TlsServerConfig::default()).await?;
    let expired = leaf("expired.example").validity(Validity::Expired);
    let expired = trusted.ca.issue(&expired)?;
    let expired = TlsServer::start(&expired, TlsServerConfig::default()).await?;
    // A server in plaintext, one that says nothing, and one that is not there.
    let plain = TcpListener::bind("127.0.0.1:0").await?;
    let plain_addr = plain.local_addr()?;
    let plain = tokio::spawn(async move {
        let mut heard = Vec::new();
        // Envoy tries three times.
        for _ in 0..3 {
            let (mut stream, _) = plain.accept().await?;
            stream.write_all(b"220 hello\r\n").await?;
            stream.read_to_end(&mut heard).await.ok();
        }
        anyhow::Ok(heard)
    });
    let mute = TcpListener::bind("127.0.0.1:0").await?;
    let gone = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let cases = [
        ("wrong.example", 7001, wrong.addr(), "name_mismatch"),
        ("stranger.example", 7011, stranger.addr(), "unknown_ca"),
        ("expired.example", 7021, expired.addr(), "expired"),
        ("plain.example", 7031, plain_addr, "not_tls"),
        ("mute.example", 7041, mute.local_addr()?, "timeout"),
        ("gone.example", 7051, gone, "refused"),
    ];
    let mut rules = String::new();
    for (host, port, ..) in cases {
        let policy = "{tls: {mode: SIMPLE}, connectionPool: {tcp: {connectTimeout: 2s}}}";
        rules += &(tcp(host, port, "TCP") + &rule(host, policy));
    }
    let mut builder = trusted.egressctl(&rules);
    for (host, port, addr, _) in cases {
        builder = builder
            .port(port, 0)
            .connect_to(&route(host, port + 1, addr));
    }
    let proxy = builder.start().await?;
    for (host, port, _, reason) in cases {
        let mut stream = connect(proxy.listener(port)?).await?;
        stream.write_all(b"a secret command\r\n").await?;
        let heard = rest(&mut stream).await?;
        assert_eq!(heard, b"", "{host}");
        let log = logged(&proxy, &format!("cluster=outbound|{port}||{host} ")).await?;
        assert_eq!(log.egress("action"), "originate", "{log:#?}");
        assert_eq!(log.egress("reason"), reason, "{log:#?}");
        let counted = proxy
            .admin_get("/stats?filter=wasmcustom.egress.failure")
            .await?;
        ensure!(
            counted.body.contains(&format!("{reason}: 1\n")),
            "{reason}: {}",
            counted.body
        );
    }
    for server in [&wrong, &stranger, &expired] {
        assert_eq!(server.heard(), []);
    }
    let heard = plain.await??;
    ensure!(!heard.windows(6).any(|six| six == b"secret"), "{heard:?}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_before_the_client_says_anything() -> Result<()> {
    let trusted = Trusted::new()?;
    let config = TlsServerConfig {
        greeting: b"220 ready\r\n".to_vec(),
        ..TlsServerConfig::default()
    };
    let server = server(&trusted, "mysql.example", config).await?;
    let proxy = trusted
        .egressctl(&(tcp("mysql.example", 3306, "MYSQL") + &rule("mysql.example", SIMPLE)))
        .port(3306, 0)
        .connect_to(&route("mysql.example", 3307, server.addr()))
        .start()
        .await?;
    let mut stream = connect(proxy.listener(3306)?).await?;
    assert_eq!(exactly(&mut stream, 11).await?, b"220 ready\r\n");
    // Nothing was heard when the greeting was sent: the client has said nothing yet.
    assert_eq!(server.heard()[0].bytes, 0);
    stream.write_all(b"hello").await?;
    assert_eq!(exactly(&mut stream, 5).await?, b"hello");
    Ok(())
}

#[tokio::test]
async fn two_services_of_one_port_have_a_loopback_address_each() -> Result<()> {
    let trusted = Trusted::new()?;
    let names = ["one.example", "other.example"];
    let one = server(&trusted, names[0], TlsServerConfig::default()).await?;
    let other = server(&trusted, names[1], TlsServerConfig::default()).await?;
    let proxy = trusted
        .egressctl(&(originated(names[0], 6379) + &originated(names[1], 6379)))
        .arg("--loopback-vips")
        .port(6379, 0)
        .connect_to(&route(names[0], 6380, one.addr()))
        .connect_to(&route(names[1], 6380, other.addr()))
        .start()
        .await?;
    eventually("the addresses are printed", async || {
        Ok(proxy.stdout().len() == 5)
    })
    .await?;
    let printed = proxy.stdout();
    let mut seen = Vec::new();
    for (at, (name, server)) in names.iter().zip([&one, &other]).enumerate() {
        let address = printed[1 + at].strip_prefix(&format!("vip {name}:6379="));
        let address: SocketAddr = address.context(format!("{printed:?}"))?.parse()?;
        assert_eq!(printed[3 + at], format!("hosts {} {name}", address.ip()));
        let mut stream = connect(address).await?;
        stream.write_all(b"hello").await?;
        assert_eq!(exactly(&mut stream, 5).await?, b"hello");
        let heard = server.heard();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!(heard[0].sni.as_deref(), Some(*name));
        seen.push(address.ip());
    }
    assert_ne!(seen[0], seen[1]);
    ensure!(seen.iter().all(|ip| ip.is_loopback()), "{seen:?}");
    // Nothing listens where nothing could tell them apart.
    ensure!(proxy.listener(6379).is_err(), "{printed:?}");
    Ok(())
}

/// A server without TLS of its own that tells the first record it heard, and hangs up.
async fn recorder() -> Result<(SocketAddr, UnboundedReceiver<Vec<u8>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                // Content type and version; then the length of the rest.
                let mut record = vec![0; 3];
                stream.read_exact(&mut record).await?;
                let len = stream.read_u16().await?;
                record.extend(len.to_be_bytes());
                record.resize(5 + usize::from(len), 0);
                stream.read_exact(record.split_at_mut(5).1).await?;
                sender.send(record)?;
                anyhow::Ok(())
            });
        }
    });
    Ok((addr, receiver))
}

/// A ClientHello, with an SNI or without.
fn client_hello(name: Option<&str>) -> Result<Vec<u8>> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = name.is_some();
    let name = ServerName::try_from(name.unwrap_or("no.example").to_owned())?;
    let mut hello = Vec::new();
    ClientConnection::new(config.into(), name)?.write_tls(&mut hello)?;
    Ok(hello)
}

/// Puts extensions in front of those of a ClientHello: one of GREASE, one that looks like an encrypted ClientHello.
///
/// Source: RFC 8446, 4.1.2, for the lengths; RFC 8701 and RFC 9849 for the two numbers.
fn greased(hello: &[u8]) -> Result<Vec<u8>> {
    // An outer one with a key and a content of noise, as browsers send where they know no key of the server's.
    let mut ech = vec![0, 0, 1, 0, 1, 42, 0, 32];
    ech.extend([7; 32]);
    ech.extend([0, 144]);
    ech.extend([9; 144]);
    let mut more = vec![0x0a, 0x0a, 0, 0, 0xfe, 0x0d, 0, u8::try_from(ech.len())?];
    more.extend(ech);
    let number = |at: usize, len: usize| {
        let bytes = hello.get(at..at + len).context("cut short")?;
        anyhow::Ok(
            bytes
                .iter()
                .fold(0, |all, byte| all << 8 | usize::from(*byte)),
        )
    };
    // Record, handshake, version, random; then session, suites and compression, each behind its length.
    let mut at = 5 + 4 + 2 + 32;
    for len in [1, 2, 1] {
        at += len + number(at, len)?;
    }
    let mut hello = hello.to_vec();
    let longer = |at: usize, len: usize| anyhow::Ok((at, len, number(at, len)? + more.len()));
    for (at, len, value) in [longer(3, 2)?, longer(6, 3)?, longer(at, 2)?] {
        let bytes = value.to_be_bytes().into_iter();
        hello.splice(at..at + len, bytes.skip(8 - len));
    }
    hello.splice(at + 2..at + 2, more);
    Ok(hello)
}

#[tokio::test]
async fn tls_is_passed_through_by_its_name_beside_bytes_on_the_same_port() -> Result<()> {
    let trusted = Trusted::new()?;
    let (one, mut at_one) = recorder().await?;
    let (other, mut at_other) = recorder().await?;
    let cache = server(&trusted, CACHE, TlsServerConfig::default()).await?;
    let rules = tcp("one.example", 8443, "TLS")
        + &tcp("other.example", 8443, "HTTPS")
        + &originated(CACHE, 8443);
    let proxy = trusted
        .egressctl(&rules)
        .port(8443, 0)
        .connect_to(&route("one.example", 8444, one))
        .connect_to(&route("other.example", 8444, other))
        .connect_to(&route(CACHE, 8444, cache.addr()))
        .start()
        .await?;
    let listener = proxy.listener(8443)?;

    for (name, heard) in [
        ("one.example", &mut at_one),
        ("other.example", &mut at_other),
    ] {
        let plain = client_hello(Some(name))?;
        for hello in [greased(&plain)?, plain] {
            for step in [hello.len(), 1] {
                let mut stream = connect(listener).await?;
                for part in hello.chunks(step) {
                    stream.write_all(part).await?;
                    // One packet each: without the pause the kernel may join them.
                    tokio::task::yield_now().await;
                }
                let heard = timeout(SOON, heard.recv()).await;
                let heard = heard.with_context(|| format!("{name}, {step}"))?;
                ensure!(heard.as_ref() == Some(&hello), "{name}, {step}: {heard:?}");
            }
        }
    }
    for (name, reason, authority) in [
        (Some("no.example"), "unknown_host", "no.example"),
        (None, "no_host", "-"),
    ] {
        let mut stream = connect(listener).await?;
        stream.write_all(&client_hello(name)?).await?;
        assert_eq!(rest(&mut stream).await?, b"");
        let log = logged(&proxy, &format!("reason={reason} ")).await?;
        log.assert_egress([
            ("action", "reject"),
            ("reason", reason),
            ("authority", authority),
        ]);
    }
    let mut stream = connect(listener).await?;
    stream.write_all(b"hello").await?;
    assert_eq!(exactly(&mut stream, 5).await?, b"hello");
    assert_eq!(cache.heard()[0].sni.as_deref(), Some(CACHE));
    ensure!(at_one.try_recv().is_err() && at_other.try_recv().is_err());
    Ok(())
}

/// A VirtualService for one host.
fn virtual_service(host: &str, routes: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {}}}\nspec: {{hosts: [{host}], {routes}}}\n",
        host.replace('.', "-")
    )
}

/// How often a connection is made where weights decide: that a share of a fifth gets none is one case in 70,000.
const DRAWS: usize = 50;

#[tokio::test]
async fn connections_are_divided_by_weight_and_no_share_is_plaintext() -> Result<()> {
    let trusted = Trusted::new()?;
    let one = server(&trusted, "one.example", TlsServerConfig::default()).await?;
    let other = server(&trusted, "other.example", TlsServerConfig::default()).await?;
    let silent = SilentPort::start().await?;
    let route_of = "tcp: [{route: [
        {destination: {host: one.example}, weight: 2},
        {destination: {host: other.example}, weight: 2},
        {destination: {host: nowhere.example}, weight: 1}]}]";
    let rules = originated("one.example", 7001)
        + &originated("other.example", 7003)
        + &virtual_service("one.example", route_of);
    let proxy = trusted
        .egressctl(&rules)
        .port(7001, 0)
        .port(7003, 0)
        .connect_to(&route("one.example", 7002, one.addr()))
        .connect_to(&route("other.example", 7004, other.addr()))
        .connect_to(&route("other.example", 7003, silent.addr()))
        .start()
        .await?;
    let listener = proxy.listener(7001)?;
    let mut refused = 0;
    for _ in 0..DRAWS {
        let mut stream = connect(listener).await?;
        let mut room = vec![0; 5];
        let heard = async {
            stream.write_all(b"hello").await?;
            stream.read_exact(&mut room).await
        };
        match timeout(SOON, heard).await? {
            Ok(_) => assert_eq!(room, b"hello"),
            Err(_) => refused += 1,
        }
    }
    let names = |server: &TlsServer| -> Vec<String> {
        let heard = server.heard().into_iter();
        heard.filter_map(|heard| heard.sni).collect()
    };
    let (at_one, at_other) = (names(&one), names(&other));
    ensure!(
        at_one.iter().all(|name| name == "one.example"),
        "{at_one:?}"
    );
    ensure!(
        at_other.iter().all(|name| name == "other.example"),
        "{at_other:?}"
    );
    let counts = [at_one.len(), at_other.len(), refused];
    ensure!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert_eq!(counts.iter().sum::<usize>(), DRAWS, "{counts:?}");
    silent.assert_silent().await?;

    let log = logged(&proxy, "cluster=outbound|7003||other.example").await?;
    log.assert_egress([
        ("action", "originate"),
        ("rule", "default/other-example"),
        ("service_entry", "default/one-example"),
        ("cluster", "outbound|7003||other.example"),
        ("transport_socket", "envoy.transport_sockets.tls"),
        ("tls_mode", "SIMPLE"),
        ("sni", "other.example"),
        ("verify", "other.example"),
        ("target", &other.addr().to_string()),
    ]);
    let log = logged(&proxy, "action=reject").await?;
    assert_eq!(log.egress("reason"), "unknown_destination");
    Ok(())
}

#[tokio::test]
async fn a_share_whose_server_is_not_the_right_one_hears_nothing() -> Result<()> {
    let trusted = Trusted::new()?;
    let one = server(&trusted, "one.example", TlsServerConfig::default()).await?;
    let wrong = server(&trusted, "wrong.example", TlsServerConfig::default()).await?;
    let rules = originated("one.example", 7001)
        + &originated("other.example", 7003)
        + &virtual_service(
            "one.example",
            "tcp: [{route: [{destination: {host: one.example}, weight: 1}, {destination: {host: other.example}, weight: 1}]}]",
        );
    let proxy = trusted
        .egressctl(&rules)
        .port(7001, 0)
        .port(7003, 0)
        .connect_to(&route("one.example", 7002, one.addr()))
        .connect_to(&route("other.example", 7004, wrong.addr()))
        .start()
        .await?;
    let mut answered = 0;
    for _ in 0..DRAWS {
        let mut stream = connect(proxy.listener(7001)?).await?;
        let _ = stream.write_all(b"hello").await;
        let mut room = vec![0; 5];
        if timeout(SOON, stream.read_exact(&mut room)).await?.is_ok() {
            answered += 1;
        }
    }
    ensure!(0 < answered && answered < DRAWS, "{answered}");
    assert_eq!(one.heard().len(), answered);
    assert_eq!(wrong.heard(), []);
    let log = logged(&proxy, "reason=name_mismatch").await?;
    assert_eq!(log.egress("cluster"), "outbound|7003||other.example");
    Ok(())
}

#[tokio::test]
async fn tls_of_one_name_is_divided_by_weight_and_never_opened() -> Result<()> {
    let trusted = Trusted::new()?;
    let (one, mut at_one) = recorder().await?;
    let (other, mut at_other) = recorder().await?;
    let rules = tcp("one.example", 8443, "TLS")
        + &tcp("other.example", 8445, "TLS")
        + &virtual_service(
            "one.example",
            "tls: [{match: [{sniHosts: [one.example]}], route: [{destination: {host: one.example}, weight: 1}, {destination: {host: other.example}, weight: 1}]}]",
        );
    let proxy = trusted
        .egressctl(&rules)
        .port(8443, 0)
        .connect_to(&route("one.example", 8444, one))
        .connect_to(&route("other.example", 8446, other))
        .start()
        .await?;
    let listener = proxy.listener(8443)?;
    let hello = client_hello(Some("one.example"))?;
    let mut counts = [0, 0];
    for _ in 0..DRAWS {
        let mut stream = connect(listener).await?;
        stream.write_all(&hello).await?;
        let (at, heard) = tokio::select! {
            heard = at_one.recv() => (0, heard),
            heard = at_other.recv() => (1, heard),
            () = tokio::time::sleep(SOON) => (0, None),
        };
        ensure!(heard.as_ref() == Some(&hello), "{heard:?}");
        counts[at] += 1;
    }
    ensure!(counts.iter().all(|count| *count > 0), "{counts:?}");
    let log = logged(&proxy, "cluster=outbound|8445||other.example").await?;
    log.assert_egress([
        ("action", "passthrough"),
        ("authority", "one.example"),
        ("service_entry", "default/one-example"),
        ("cluster", "outbound|8445||other.example"),
        ("transport_socket", "envoy.transport_sockets.raw_buffer"),
        ("target", &other.to_string()),
    ]);
    // Another name is nobody's, as ever.
    let mut stream = connect(listener).await?;
    stream.write_all(&client_hello(Some("no.example"))?).await?;
    assert_eq!(rest(&mut stream).await?, b"");
    Ok(())
}

#[tokio::test]
async fn the_address_that_was_dialled_chooses_among_routes() -> Result<()> {
    let trusted = Trusted::new()?;
    let one = server(&trusted, "one.example", TlsServerConfig::default()).await?;
    let other = server(&trusted, "other.example", TlsServerConfig::default()).await?;
    let subnets = |host: &str| {
        let routes = "tcp: [{match: [{destinationSubnets: [127.9.9.128/25]}], route: [{destination: {host: other.example}}]}]";
        virtual_service(host, routes)
    };
    let by_address = entry_with(
        "one.example",
        "resolution: DNS, addresses: [127.9.9.1, 127.9.9.127, 127.9.9.129], ports: [{number: 7001, name: p, protocol: TCP, targetPort: 7002}]",
    );
    let rules = by_address
        + &rule("one.example", SIMPLE)
        + &originated("other.example", 7003)
        + &subnets("one.example")
        + &originated("unknown.example", 7005)
        + &subnets("unknown.example");
    let proxy = trusted
        .egressctl(&rules)
        .arg("--listen")
        .arg("0.0.0.0")
        .port(7001, 0)
        .port(7003, 0)
        .port(7005, 0)
        .connect_to(&route("one.example", 7002, one.addr()))
        .connect_to(&route("other.example", 7004, other.addr()))
        .connect_to(&route("unknown.example", 7006, one.addr()))
        .start()
        .await?;
    let port = proxy.listener(7001)?.port();
    for (ip, counts) in [
        ("127.9.9.1", (1, 0)),
        ("127.9.9.129", (1, 1)),
        ("127.9.9.127", (2, 1)),
    ] {
        let mut stream = connect(SocketAddr::new(ip.parse()?, port)).await?;
        stream.write_all(b"hello").await?;
        assert_eq!(exactly(&mut stream, 5).await?, b"hello");
        assert_eq!((one.heard().len(), other.heard().len()), counts, "{ip}");
    }
    // Of a host that has no addresses it is not known which one was meant.
    let mut stream = connect(proxy.listener(7005)?).await?;
    assert_eq!(rest(&mut stream).await?, b"");
    let log = logged(&proxy, "action=reject").await?;
    assert_eq!(log.egress("reason"), "not_read");
    assert_eq!((one.heard().len(), other.heard().len()), (2, 1));
    Ok(())
}

#[tokio::test]
async fn much_goes_both_ways_and_each_half_ends_by_itself() -> Result<()> {
    let trusted = Trusted::new()?;
    let echo = server(&trusted, "echo.example", TlsServerConfig::default()).await?;
    let config = TlsServerConfig {
        greeting: b"all I have".to_vec(),
        ends_first: true,
        ..TlsServerConfig::default()
    };
    let brief = server(&trusted, "brief.example", config).await?;
    let proxy = trusted
        .egressctl(&(originated("echo.example", 7001) + &originated("brief.example", 7011)))
        .port(7001, 0)
        .port(7011, 0)
        .connect_to(&route("echo.example", 7002, echo.addr()))
        .connect_to(&route("brief.example", 7012, brief.addr()))
        .start()
        .await?;

    let (mut from, mut to) = connect(proxy.listener(7001)?).await?.into_split();
    let writing = tokio::spawn(async move {
        let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
        for _ in 0..MANY >> 20 {
            to.write_all(&block).await?;
        }
        // The application has ended; the server has not.
        to.shutdown().await?;
        anyhow::Ok((to, block))
    });
    let mut all = Vec::with_capacity(MANY + 3);
    timeout(SOON * 6, from.read_to_end(&mut all)).await??;
    let (_to, block) = writing.await??;
    assert_eq!(all.len(), MANY + 3);
    ensure!(
        all.chunks(1 << 20)
            .take(MANY >> 20)
            .all(|part| part == block)
    );
    ensure!(all.ends_with(b"end"));
    let heard = echo.heard();
    assert_eq!((heard[0].bytes, heard[0].ended), (MANY as u64, true));

    let mut stream = connect(proxy.listener(7011)?).await?;
    assert_eq!(rest(&mut stream).await?, b"all I have");
    // The server has ended; the application has not.
    stream.write_all(&[7; 1000]).await?;
    stream.shutdown().await?;
    let expected = Heard {
        sni: Some("brief.example".to_owned()),
        alpn: None,
        bytes: 1000,
        ended: true,
    };
    eventually("the server heard the rest", async || {
        Ok(brief.heard() == std::slice::from_ref(&expected))
    })
    .await
}

#[tokio::test]
async fn connections_end_when_they_are_idle_or_old_where_a_rule_says_so() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, "*.example", TlsServerConfig::default()).await?;
    let limited =
        |limit: &str| format!("{{tls: {{mode: SIMPLE}}, connectionPool: {{tcp: {{{limit}}}}}}}");
    let rules = tcp("idle.example", 7001, "TCP")
        + &rule("idle.example", &limited("idleTimeout: 2s"))
        + &tcp("old.example", 7011, "TCP")
        + &rule("old.example", &limited("maxConnectionDuration: 3s"))
        + &originated("free.example", 7021);
    let mut builder = trusted.egressctl(&rules);
    for (host, port) in [
        ("idle.example", 7001),
        ("old.example", 7011),
        ("free.example", 7021),
    ] {
        builder = builder
            .port(port, 0)
            .connect_to(&route(host, port + 1, server.addr()));
    }
    let proxy = builder.start().await?;
    let mut free = connect(proxy.listener(7021)?).await?;
    for port in [7001, 7011] {
        let mut stream = connect(proxy.listener(port)?).await?;
        stream.write_all(b"hello").await?;
        assert_eq!(exactly(&mut stream, 5).await?, b"hello");
        ensure!(rest(&mut stream).await?.is_empty(), "{port}");
    }
    // It has been there longer than both.
    free.write_all(b"hello").await?;
    assert_eq!(exactly(&mut free, 5).await?, b"hello");
    Ok(())
}

#[tokio::test]
async fn postgresql_is_offered_what_its_servers_ask_for() -> Result<()> {
    let trusted = Trusted::new()?;
    // As servers from 17 on: no handshake without this.
    let config = TlsServerConfig {
        alpn: Some(b"postgresql".to_vec()),
        ..TlsServerConfig::default()
    };
    let server = server(&trusted, "db.example", config).await?;
    let proxy = trusted
        .egressctl(&originated("db.example", 5432))
        .port(5432, 0)
        .connect_to(&route("db.example", 5433, server.addr()))
        .start()
        .await?;
    let mut stream = connect(proxy.listener(5432)?).await?;
    stream.write_all(b"startup").await?;
    assert_eq!(exactly(&mut stream, 7).await?, b"startup");
    assert_eq!(server.heard()[0].alpn.as_deref(), Some("postgresql"));
    let told = proxy.stderr().join("\n");
    ensure!(
        told.contains("PostgreSQL agrees on TLS inside its protocol"),
        "{told}"
    );
    Ok(())
}

#[tokio::test]
async fn a_json_log_has_the_same_keys() -> Result<()> {
    let trusted = Trusted::new()?;
    let wrong = server(&trusted, "other.example", TlsServerConfig::default()).await?;
    let proxy = trusted
        .egressctl(&originated(CACHE, 6379))
        .arg("--access-log-format")
        .arg("json")
        .port(6379, 0)
        .connect_to(&route(CACHE, 6380, wrong.addr()))
        .start()
        .await?;
    let mut stream = connect(proxy.listener(6379)?).await?;
    assert_eq!(rest(&mut stream).await?, b"");
    let line = proxy
        .wait_for_log(|line| line.contains(CACHE), SOON)
        .await?;
    let line: Value = serde_json::from_str(&line)?;
    for (key, value) in [
        ("action", "originate"),
        ("reason", "name_mismatch"),
        ("sni", CACHE),
        ("target", "cache.example:6380"),
    ] {
        assert_eq!(line["egress"][key], value, "{line:#}");
    }
    Ok(())
}

/// How long a connection that nobody leads anywhere may stay.
const CLOSED: Duration = Duration::from_secs(10);

#[tokio::test]
async fn without_the_filters_word_a_connection_is_closed() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, CACHE, TlsServerConfig::default()).await?;
    let to = route(CACHE, 6380, server.addr());
    let args = ["--port", "6379=0", "--connect-to", &to];
    let mut bootstrap = common::rendered(&trusted, &originated(CACHE, 6379), &args).await?;
    let filters = bootstrap
        .pointer_mut("/static_resources/listeners/0/filter_chains/0/filters")
        .and_then(Value::as_array_mut)
        .context("no filters")?;
    assert_eq!(filters.len(), 2);
    filters.remove(0);
    let binary = egress_integration::envoy::binary()?;
    let envoy =
        egress_integration::envoy::EnvoyProcess::start(&binary, &bootstrap.to_string(), [""; 0])
            .await?;
    let mut stream = connect(envoy.listener("outbound_6379")?).await?;
    stream.write_all(b"hello").await?;
    assert_eq!(timeout(CLOSED, rest(&mut stream)).await??, b"");
    assert_eq!(server.heard(), []);
    Ok(())
}

/// Two services of one port that are told apart by the address that is dialled.
fn by_address(one: &str, other: &str) -> String {
    let service = |host: &str, address: &str| {
        let spec = format!(
            "resolution: DNS, addresses: [\"{address}\"], ports: [{{number: 7001, name: p, protocol: TCP, targetPort: 7002}}]"
        );
        entry_with(host, &spec) + &rule(host, SIMPLE)
    };
    service("one.example", one) + &service("other.example", other)
}

#[tokio::test]
async fn services_with_addresses_are_told_apart_by_what_was_dialled() -> Result<()> {
    let trusted = Trusted::new()?;
    let one = server(&trusted, "one.example", TlsServerConfig::default()).await?;
    let other = server(&trusted, "other.example", TlsServerConfig::default()).await?;
    let proxy = trusted
        .egressctl(&by_address("127.9.9.1", "127.9.9.2"))
        .arg("--listen")
        .arg("0.0.0.0")
        .port(7001, 0)
        .connect_to(&route("one.example", 7002, one.addr()))
        .connect_to(&route("other.example", 7002, other.addr()))
        .start()
        .await?;
    let port = proxy.listener(7001)?.port();
    for (ip, server, name) in [
        ("127.9.9.1", &one, "one.example"),
        ("127.9.9.2", &other, "other.example"),
    ] {
        let mut stream = connect(SocketAddr::new(ip.parse()?, port)).await?;
        stream.write_all(b"hello").await?;
        assert_eq!(exactly(&mut stream, 5).await?, b"hello");
        let heard = server.heard();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!(heard[0].sni.as_deref(), Some(name));
    }
    let mut stream = connect(SocketAddr::new("127.9.9.3".parse()?, port)).await?;
    assert_eq!(rest(&mut stream).await?, b"");
    let log = logged(&proxy, "action=reject").await?;
    assert_eq!(
        log.istio("downstream_local_address"),
        format!("127.9.9.3:{port}")
    );
    assert_eq!((one.heard().len(), other.heard().len()), (1, 1));
    Ok(())
}

#[tokio::test]
async fn the_filter_itself_closes_what_it_does_not_know() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, "one.example", TlsServerConfig::default()).await?;
    let to = route("one.example", 7002, server.addr());
    let args = ["--port", "7001=0", "--connect-to", &to];
    let rules = by_address("192.0.2.1", "192.0.2.2");
    let mut bootstrap = common::rendered(&trusted, &rules, &args).await?;
    let chains = bootstrap
        .pointer_mut("/static_resources/listeners/0/filter_chains")
        .and_then(Value::as_array_mut)
        .context("no chains")?;
    // As if Envoy led here what it should not.
    chains.truncate(1);
    chains[0]["filter_chain_match"] = serde_json::json!({});
    let binary = egress_integration::envoy::binary()?;
    let envoy = egress_integration::envoy::EnvoyProcess::start(
        &binary,
        &bootstrap.to_string(),
        ["--file-flush-interval-msec", "100"],
    )
    .await?;
    let mut stream = connect(envoy.listener("outbound_7001")?).await?;
    stream.write_all(b"hello").await?;
    assert_eq!(timeout(CLOSED, rest(&mut stream)).await??, b"");
    eventually("the refusal is logged", async || {
        let log = envoy.stdout();
        Ok(log
            .iter()
            .any(|line| line.contains("action=reject reason=unknown_host rule=-")))
    })
    .await?;
    assert_eq!(server.heard(), []);
    Ok(())
}

#[tokio::test]
async fn one_configuration_serves_workloads_whose_rules_differ() -> Result<()> {
    let trusted = Trusted::new()?;
    let names = ["sleep.example", "others.example"];
    let certificate = trusted.ca.issue(&Leaf::for_names(names))?;
    let server = TlsServer::start(&certificate, TlsServerConfig::default()).await?;
    let policy = |sni: &str| format!("{{tls: {{mode: SIMPLE, sni: {sni}}}}}");
    let selected = rule(CACHE, &policy(names[0]))
        .replace("name: cache-example", "name: selected")
        .replace(
            "trafficPolicy",
            "workloadSelector: {matchLabels: {app: sleep}}, trafficPolicy",
        );
    ensure!(selected.contains("workloadSelector"));
    let rules = tcp(CACHE, 6379, "REDIS") + &selected + &rule(CACHE, &policy(names[1]));
    for (at, label) in ["app=sleep", "app=other"].into_iter().enumerate() {
        let proxy = trusted
            .egressctl(&rules)
            .arg("--labels-from-node")
            .arg("--label")
            .arg(label)
            .port(6379, 0)
            .connect_to(&route(CACHE, 6380, server.addr()))
            .start()
            .await?;
        let mut stream = connect(proxy.listener(6379)?).await?;
        stream.write_all(b"hello").await?;
        assert_eq!(exactly(&mut stream, 5).await?, b"hello");
        let heard = server.heard();
        assert_eq!(heard.len(), at + 1, "{heard:?}");
        assert_eq!(heard[at].sni.as_deref(), Some(names[at]), "{label}");
    }
    Ok(())
}
