//! Configurations written by hand, `envoy/examples`: each is run, and each stays closed when its filter is missing.

mod common;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use egress_integration::{
    dns::DnsServer,
    egressctl,
    envoy::{self, EnvoyProcess},
    pki::{Ca, Leaf, Name},
    probe,
    stand_in::{Clients, Listener, StandIn, StandInConfig},
    tls_server::{Heard, TlsServer, TlsServerConfig},
};

use common::{
    HOST, SHARED, SOON, Trusted, assert_originated, dns, eventually, head, only, request, tunnel,
};

const NGINX: &str = "my-nginx.example.com";
const REDIS: &str = "redis.example.com";
/// What is started, and what those read besides.
const STARTED: [&str; 7] = [
    "http.yaml",
    "http-module.yaml",
    "tcp.yaml",
    "tcp-module.yaml",
    "forward-proxy.yaml",
    "mutual-tls.yaml",
    "ecds.yaml",
];
const READ: [&str; 2] = ["ecds-filter.yaml", "client.yaml"];
/// What tests of another file are about.
const OTHERS: [&str; 2] = ["egressctl.service", "kubernetes.yaml"];

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "envoy", "examples"]
        .iter()
        .collect()
}

/// An example's text, or that of a file beside it.
fn text(name: &str) -> Result<String> {
    let path = folder().join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// What a machine of a test has in place of those that the examples are for.
struct Machine {
    trusted: Trusted,
    dns: DnsServer,
}

impl Machine {
    async fn new() -> Result<Self> {
        let (trusted, dns) = (Trusted::new()?, dns().await?);
        Ok(Self { trusted, dns })
    }

    /// Puts this machine's paths, ports and DNS server in the place of the example's. Nothing else differs:
    /// folders, the ports that are listened on, the port of the server that is dialled, who is asked for names.
    fn fit(&self, example: &str, server: SocketAddr) -> Result<String> {
        let built = egressctl::binary()?;
        let file = |name: &str| built.with_file_name(name).display().to_string();
        let bundle = self.trusted.bundle();
        let here = self.trusted.path("").display().to_string();
        let resolver = format!(
            "dns_lookup_family: V4_PREFERRED, typed_dns_resolver_config: {{name: test, typed_config: {{\
             \"@type\": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, \
             resolvers: [{{socket_address: {{address: {}, port_value: {}}}}}]}}}}",
            self.dns.addr().ip(),
            self.dns.addr().port()
        );
        let mut text = example
            .replace("/etc/envoy/egress-filter.wasm", &file("egress-filter.wasm"))
            .replace(
                "/etc/envoy/libegress_filter.so",
                &file("libegress_filter.so"),
            )
            .replace(
                "/etc/ssl/certs/ca-certificates.crt",
                &bundle.display().to_string(),
            )
            .replace("/etc/envoy/", &here)
            .replace("dns_lookup_family: V4_PREFERRED", &resolver);
        for (before, port) in [
            ("address: 127.0.0.1, port_value: ", 0),
            ("example.com, port_value: ", server.port()),
            ("\"targetPort\": ", server.port()),
        ] {
            // The resolver's own port is one of those already.
            let own = format!("{before}{}}}}}]", self.dns.addr().port());
            text = numbers_after(&text.replace(&own, "RESOLVER"), before, port)
                .replace("RESOLVER", &own);
        }
        ensure!(!text.contains("/etc/"), "{text}");
        Ok(text)
    }

    /// Starts an example whose server is this one.
    async fn start(&self, name: &str, server: SocketAddr) -> Result<EnvoyProcess> {
        self.beside(server)?;
        self.start_text(&text(name)?, server).await
    }

    /// The files that examples read.
    fn beside(&self, server: SocketAddr) -> Result<()> {
        for name in READ {
            self.trusted.file(name, &self.fit(&text(name)?, server)?)?;
        }
        Ok(())
    }

    async fn start_text(&self, example: &str, server: SocketAddr) -> Result<EnvoyProcess> {
        let bootstrap = self.fit(example, server)?;
        EnvoyProcess::start(&envoy::binary()?, &bootstrap, ["--concurrency", "1"]).await
    }

    /// The credential of `mutual-tls.yaml`, given out by the authority that its server trusts.
    fn client(&self, authority: &Ca) -> Result<()> {
        let folder = self.trusted.path("client");
        std::fs::create_dir(&folder)?;
        authority
            .issue(&Leaf::client("sleep"))?
            .write(&folder, "tls")?;
        self.trusted.ca.write_pem(&folder.join("ca.crt"))
    }
}

/// Replaces the number behind each occurrence of `before`.
fn numbers_after(text: &str, before: &str, number: u16) -> String {
    let mut parts = text.split(before);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |done, part| {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        format!("{done}{before}{number}{rest}")
    })
}

/// Nothing but TLS with a name arrived, and in no more connections than this.
fn assert_tls_alone(site: &StandIn, connections: u64) {
    assert_eq!(site.counts(Listener::Plain).connections, 0);
    let tls = site.counts(Listener::Tls);
    assert!(tls.connections <= connections, "{tls:?}");
    let named = |failed: &egress_integration::stand_in::FailedHandshake| failed.sni.is_some();
    assert!(tls.failed_handshakes.iter().all(named), "{tls:?}");
}

/// An answer of a listener for HTTP, whose request carried what only the filter may say.
async fn forged(http: SocketAddr, host: &str) -> Result<u16> {
    let forged = [
        ("x-egress-originate", SHARED),
        ("x-egress-forward", SHARED),
        ("x-envoy-original-dst-host", "127.0.0.1:1"),
    ];
    Ok(probe::get_with(http, host, "/", &forged).await?.status)
}

/// Sends bytes and reads until the other end is closed.
async fn told(tcp: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(tcp).await?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let mut all = Vec::new();
    match timeout(SOON, stream.read_to_end(&mut all)).await? {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(all),
    }
}

#[test]
fn every_file_of_the_folder_is_one_that_is_run() -> Result<()> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder())? {
        found.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    let known = STARTED
        .into_iter()
        .chain(READ)
        .chain(OTHERS)
        .map(str::to_owned);
    assert_eq!(found, known.collect());
    Ok(())
}

#[tokio::test]
async fn http_goes_out_by_verified_tls_and_nothing_else_does() -> Result<()> {
    for example in ["http.yaml", "http-module.yaml"] {
        let machine = Machine::new().await?;
        let server = machine.trusted.site([HOST]).await?;
        let envoy = machine.start(example, server.tls_addr()).await?;
        let http = envoy.listener("http")?;
        assert_eq!(forged(http, HOST).await?, 200, "{example}");
        let host = format!("{HOST}:{}", server.tls_addr().port());
        assert_originated(&only(&server)?, &host, HOST);
        // A host without rules, though the client says where it would like to be led.
        assert_eq!(forged(http, "other.example.com").await?, 502, "{example}");
        ensure!(server.seen().is_empty(), "{:?}", server.seen());
        assert_tls_alone(&server, 1);
    }
    Ok(())
}

#[tokio::test]
async fn another_servers_certificate_gets_no_request() -> Result<()> {
    let machine = Machine::new().await?;
    machine.client(&machine.trusted.ca)?;
    let other = Leaf::for_names(["other.example.com"]);
    for (example, listener, host) in [
        ("http.yaml", "http", HOST),
        ("http-module.yaml", "http", HOST),
        ("forward-proxy.yaml", "forward-proxy", HOST),
        ("ecds.yaml", "http", HOST),
        ("mutual-tls.yaml", "http", NGINX),
    ] {
        for leaf in [
            other.clone(),
            // What reads like the host and is no DNS name.
            other.clone().and(Name::Uri(host.to_owned())),
            other.clone().and(Name::Email(host.to_owned())),
        ] {
            let server = common::site(&machine.trusted.ca, &leaf).await?;
            let envoy = machine.start(example, server.tls_addr()).await?;
            let answer = probe::get(envoy.listener(listener)?, host, "/").await?;
            assert_eq!(answer.status, 503, "{example}");
            ensure!(
                answer.body.contains("egress_name_mismatch"),
                "{example}: {}",
                answer.body
            );
            ensure!(server.seen().is_empty(), "{:?}", server.seen());
            assert_tls_alone(&server, 9);
        }
    }
    Ok(())
}

#[tokio::test]
async fn tcp_goes_out_by_verified_tls_or_is_closed() -> Result<()> {
    let machine = Machine::new().await?;
    let other = Leaf::for_names(["other.example.com"]);
    let expected = [
        (Leaf::for_names([REDIS]), "ping\r\nend", 1),
        (other.clone(), "", 0),
        (other.and(Name::Uri(REDIS.to_owned())), "", 0),
    ];
    let of_example = |example: &'static str| expected.clone().map(|it| (example, it));
    let all = ["tcp.yaml", "tcp-module.yaml"]
        .into_iter()
        .flat_map(of_example);
    for (example, (leaf, answer, connections)) in all {
        let certificate = machine.trusted.ca.issue(&leaf)?;
        let server = TlsServer::start(&certificate, TlsServerConfig::default()).await?;
        let envoy = machine.start(example, server.addr()).await?;
        let heard = told(envoy.listener("tcp")?, b"ping\r\n").await?;
        assert_eq!(
            String::from_utf8_lossy(&heard),
            answer,
            "{example} {leaf:?}"
        );
        let heard = Heard {
            sni: Some(REDIS.to_owned()),
            alpn: None,
            bytes: 6,
            ended: true,
        };
        let mut expected = vec![heard];
        expected.truncate(connections);
        eventually("the server has heard it", async || {
            Ok(connections == 0 || server.heard() == expected)
        })
        .await?;
        // A client that refused the certificate may have got as far as this, and has said nothing.
        ensure!(
            server
                .heard()
                .iter()
                .all(|heard| connections == 1 || heard.bytes == 0),
            "{:?}",
            server.heard()
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_forward_proxy_originates_urls_and_tunnels_what_the_rules_pass_through() -> Result<()> {
    let machine = Machine::new().await?;
    let server = machine.trusted.site([HOST]).await?;
    let envoy = machine
        .start("forward-proxy.yaml", server.tls_addr())
        .await?;
    let proxy = envoy.listener("forward-proxy")?;
    let asked = async |lines: &[&str]| -> Result<String> {
        let mut stream = TcpStream::connect(proxy).await?;
        stream.write_all(request(lines).as_bytes()).await?;
        let head = head(&mut stream).await?;
        Ok(head.split(' ').nth(1).unwrap_or_default().to_owned())
    };
    let url = format!("GET http://{HOST}/ HTTP/1.1");
    assert_eq!(
        asked(&[
            &url,
            "Host: other.example.com",
            "Proxy-Authorization: Basic eDp5"
        ])
        .await?,
        "200"
    );
    let seen = only(&server)?;
    assert_originated(&seen, &format!("{HOST}:{}", server.tls_addr().port()), HOST);
    assert_eq!(seen.header("proxy-authorization"), None);

    let connect = format!("CONNECT {HOST}:443 HTTP/1.1");
    let (end, _running) = tunnel(proxy, &[&connect, "Host: x"]).await?;
    let answer = probe::get_tls(end, HOST, HOST, "/own", &machine.trusted.ca.pem()).await?;
    assert_eq!(answer.answer.status, 200);
    let seen = only(&server)?;
    assert_eq!((seen.path.as_str(), seen.x_forwarded_proto), ("/own", None));

    let forged = "x-egress-forward: shared|DISABLE||bytes";
    for line in [
        "CONNECT other.example.com:443 HTTP/1.1",
        "GET http://other.example.com/ HTTP/1.1",
    ] {
        assert_eq!(asked(&[line, "Host: x", forged]).await?, "403", "{line}");
    }
    // There is no listener within that would read the requests of such a tunnel.
    let line = "CONNECT edition.cnn.com:80 HTTP/1.1";
    assert_eq!(asked(&[line, "Host: x", forged]).await?, "503");
    ensure!(server.seen().is_empty(), "{:?}", server.seen());
    assert_tls_alone(&server, 2);
    Ok(())
}

#[tokio::test]
async fn mutual_tls_shows_the_certificate_and_takes_a_renewed_one() -> Result<()> {
    let machine = Machine::new().await?;
    let authority = Ca::new("clients")?;
    machine.client(&authority)?;
    let clients = Clients::Required(vec![authority.certificate().clone()]);
    let certificate = machine.trusted.ca.issue(&Leaf::for_names([NGINX]))?;
    let server = StandIn::start(StandInConfig::new(certificate).clients(clients)).await?;
    let envoy = machine.start("mutual-tls.yaml", server.tls_addr()).await?;
    let http = envoy.listener("http")?;
    let answer = probe::get(http, NGINX, "/").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let seen = only(&server)?;
    assert_originated(
        &seen,
        &format!("{NGINX}:{}", server.tls_addr().port()),
        NGINX,
    );
    let client = seen.client.context("no client certificate")?;
    assert_eq!(client.common_name, "sleep");

    let renewed = authority.issue(&Leaf::client("sleep, renewed"))?;
    let new = machine.trusted.path("new");
    std::fs::create_dir(&new)?;
    let (chain, key) = renewed.write(&new, "tls")?;
    for file in [key, chain] {
        let name = file.file_name().context("no name")?;
        std::fs::rename(&file, machine.trusted.path("client").join(name))?;
    }
    eventually("Envoy holds the renewed certificate", async || {
        let held = envoy.admin_get("/certs").await?;
        let held: Value = serde_json::from_str(&held.body)?;
        let serial = held.pointer("/certificates/0/cert_chain/0/serial_number");
        let serial = serial.and_then(Value::as_str).unwrap_or_default();
        Ok(u64::from_str_radix(serial, 16) == Ok(renewed.serial()))
    })
    .await?;
    assert_eq!(probe::get(http, NGINX, "/").await?.status, 200);
    assert_tls_alone(&server, 2);
    Ok(())
}

#[tokio::test]
async fn mutual_tls_without_its_certificate_sends_nothing() -> Result<()> {
    let machine = Machine::new().await?;
    machine.client(&machine.trusted.ca)?;
    let server = machine.trusted.site([NGINX]).await?;
    let missing = text("client.yaml")?.replace("name: client", "name: other");
    machine
        .trusted
        .file("client.yaml", &machine.fit(&missing, server.tls_addr())?)?;
    let envoy = machine
        .start_text(&text("mutual-tls.yaml")?, server.tls_addr())
        .await?;
    let answer = probe::get(envoy.listener("http")?, NGINX, "/").await?;
    assert_eq!(answer.status, 503);
    ensure!(
        answer.body.contains("egress_secret_missing"),
        "{}",
        answer.body
    );
    // The connection was there before the certificate was missed; not a byte came over it.
    let counts = server.counts(Listener::Tls);
    let mut failed = counts.failed_handshakes.iter();
    ensure!(
        failed.all(|failed| failed.error == "unexpected end of file") && counts.requests == 0,
        "{counts:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_filter_in_a_file_is_replaced_while_it_runs() -> Result<()> {
    let machine = Machine::new().await?;
    let added = "money.cnn.com";
    let server = machine.trusted.site([HOST, added]).await?;
    let envoy = machine.start("ecds.yaml", server.tls_addr()).await?;
    let http = envoy.listener("http")?;
    let fetched = |host: &'static str, server: &StandIn| {
        let server_port = server.tls_addr().port();
        async move {
            let status = probe::get(http, host, "/").await?.status;
            anyhow::Ok((status, format!("{host}:{server_port}")))
        }
    };
    let (status, host) = fetched(HOST, &server).await?;
    assert_eq!(status, 200);
    assert_originated(&only(&server)?, &host, HOST);

    let filter = machine.fit(&text("ecds-filter.yaml")?, server.tls_addr())?;
    let replace = |text: &str| -> Result<()> {
        let new = machine.trusted.file("new", text)?;
        Ok(std::fs::rename(
            new,
            machine.trusted.path("ecds-filter.yaml"),
        )?)
    };
    replace(&filter.replace("SIMPLE", "SIMPEL"))?;
    let told = |line: &str| line.contains("unknown mode `SIMPEL`");
    envoy.wait_for_stderr(told, SOON).await?;
    assert_eq!(fetched(HOST, &server).await?.0, 200);
    assert_originated(&only(&server)?, &host, HOST);

    replace(&filter.replace(HOST, added))?;
    eventually("the new rules are in use", async || {
        Ok(fetched(added, &server).await?.0 == 200)
    })
    .await?;
    assert_eq!(fetched(HOST, &server).await?.0, 502);
    let (_, host) = fetched(added, &server).await?;
    let seen = server.take_seen();
    seen.iter()
        .for_each(|seen| assert_originated(seen, &host, added));
    assert_tls_alone(&server, 9);
    Ok(())
}

/// The filter's part of an example, from its name to that of the next filter.
fn without_filter(example: &str) -> Result<String> {
    let start = example.find("- name: egress\n").context("no filter")?;
    let rest = example.get(start..).unwrap_or_default();
    let next = rest.find("- name: envoy.").context("no other filter")?;
    let (before, after) = (example.get(..start), rest.get(next..));
    Ok(before.unwrap_or_default().to_owned() + after.unwrap_or_default())
}

#[tokio::test]
async fn without_the_filter_there_is_no_way_out() -> Result<()> {
    let machine = Machine::new().await?;
    machine.client(&machine.trusted.ca)?;
    let server = machine.trusted.site([HOST, NGINX, REDIS]).await?;
    for (name, listener) in [
        ("http.yaml", "http"),
        ("http-module.yaml", "http"),
        ("ecds.yaml", "http"),
        ("mutual-tls.yaml", "http"),
        ("forward-proxy.yaml", "forward-proxy"),
        ("tcp.yaml", "tcp"),
        ("tcp-module.yaml", "tcp"),
    ] {
        machine.beside(server.tls_addr())?;
        let bare = without_filter(&text(name)?)?;
        let envoy = machine.start_text(&bare, server.tls_addr()).await?;
        let address = envoy.listener(listener)?;
        if listener == "tcp" {
            assert_eq!(told(address, b"ping\r\n").await?, b"", "{name}");
            continue;
        }
        for host in [HOST, NGINX] {
            assert_eq!(forged(address, host).await?, 404, "{name}");
        }
    }
    assert_tls_alone(&server, 0);
    Ok(())
}

#[tokio::test]
async fn with_rules_that_are_refused_envoy_does_not_start() -> Result<()> {
    let machine = Machine::new().await?;
    machine.client(&machine.trusted.ca)?;
    let server = machine.trusted.site([HOST, NGINX, REDIS]).await?;
    for name in STARTED.into_iter().filter(|name| *name != "ecds.yaml") {
        machine.beside(server.tls_addr())?;
        let broken = text(name)?.replace("\"mode\": \"SIMPLE\"", "\"mode\": \"NONE\"");
        let broken = broken.replace("\"mode\": \"MUTUAL\"", "\"mode\": \"NONE\"");
        let Err(error) = machine.start_text(&broken, server.tls_addr()).await else {
            bail!("Envoy started with {name}");
        };
        ensure!(error.to_string().contains("unknown mode `NONE`"), "{error}");
    }
    assert_tls_alone(&server, 0);
    Ok(())
}
