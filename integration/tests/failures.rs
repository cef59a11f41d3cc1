//! Why a connection failed is told to the application, counted and logged; each reason by a real failure.

mod common;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Version, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use egress_integration::{
    dns::{DnsServer, Zone},
    egressctl::{Builder, Running},
    envoy::{self, EnvoyProcess},
    pki::{Ca, Issued, Leaf, Limit, Usage, Validity},
    probe::{self, Answer},
    stand_in::{StandIn, StandInConfig},
};

use common::{
    HOST, MANAGER, SIMPLE, SOON, Trusted, dns, entry, entry_with, log_of, originated, rendered,
    route, rule, site,
};

/// What the application is told, word for word.
const TOLD: [(&str, &str); 25] = [
    ("expired", "a certificate in the server's chain has expired"),
    (
        "not_yet_valid",
        "a certificate in the server's chain is not valid yet",
    ),
    (
        "unknown_ca",
        "no authority that the proxy trusts vouches for the server",
    ),
    (
        "name_mismatch",
        "the server's certificate is for another name",
    ),
    (
        "revoked",
        "the server did not pass the check against the list of revoked certificates",
    ),
    (
        "not_verified",
        "the server's certificate could not be verified",
    ),
    (
        "client_certificate_required",
        "the server asks for a client certificate and there is none",
    ),
    (
        "client_certificate_rejected",
        "the server does not accept the client certificate",
    ),
    (
        "protocol_version",
        "the server does not speak a version of TLS that the proxy speaks",
    ),
    (
        "no_shared_cipher",
        "the server accepts none of the TLS settings that the proxy offers",
    ),
    ("not_tls", "the server does not speak TLS"),
    (
        "timeout",
        "the connection to the server was not ready in time",
    ),
    (
        "refused",
        "the server refused the connection or cannot be reached",
    ),
    (
        "reset",
        "the connection to the server failed before there was an answer",
    ),
    ("dns", "the server's name could not be resolved"),
    (
        "private_address",
        "the name leads to a private, loopback or metadata address",
    ),
    (
        "dns_overflow",
        "the proxy remembers as many names as it can, and takes no new one yet",
    ),
    (
        "secret_missing",
        "the proxy lacks a certificate that the connection needs",
    ),
    (
        "tunnel_refused",
        "the proxy on the way to the server refused the tunnel",
    ),
    (
        "bad_answer",
        "the server's answer is not valid HTTP, or its headers are too large",
    ),
    (
        "overflow",
        "as much as is allowed is under way to the server already",
    ),
    (
        "proxy_auth_required",
        "the proxy on the way out wants a user and a password, or others",
    ),
    (
        "proxy_refused",
        "the proxy on the way out refused the way to the server",
    ),
    (
        "proxy_timeout",
        "the proxy on the way out did not answer in time",
    ),
    (
        "proxy_unreachable",
        "there is no connection through the proxy on the way out",
    ),
];

fn message(reason: &str) -> Result<String> {
    let told = TOLD.iter().find(|(told, _)| *told == reason);
    let (reason, sentence) = told.with_context(|| format!("no such reason: {reason}"))?;
    Ok(format!("egress_{reason}: {sentence}"))
}

/// A server on a port of 127.0.0.1 that does one thing with each connection. Dropping it closes it.
struct Server {
    addr: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Server {
    async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        connections.spawn(serve(stream));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { addr, accepting })
    }

    /// Answers the first bytes with these, then waits for the other side to go.
    async fn says(bytes: &'static [u8]) -> Result<Self> {
        Self::start(move |mut stream| async move {
            let mut heard = [0; 4096];
            let _heard = stream.read(&mut heard).await;
            let _said = stream.write_all(bytes).await;
            while matches!(stream.read(&mut heard).await, Ok(1..)) {}
        })
        .await
    }

    /// Shakes hands as `config` says, and answers each request with these bytes.
    async fn tls(config: ServerConfig, answer: &'static [u8]) -> Result<Self> {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::start(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut heard = [0; 4096];
                while matches!(stream.read(&mut heard).await, Ok(1..)) {
                    let _said = stream.write_all(answer).await;
                }
            }
        })
        .await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A TLS server's settings, with client certificates of `clients` demanded if there is one.
fn tls(
    issued: &Issued,
    versions: &[&'static SupportedProtocolVersion],
    clients: Option<&Ca>,
) -> Result<ServerConfig> {
    tls_by(ring::default_provider(), issued, versions, clients)
}

fn tls_by(
    provider: rustls::crypto::CryptoProvider,
    issued: &Issued,
    versions: &[&'static SupportedProtocolVersion],
    clients: Option<&Ca>,
) -> Result<ServerConfig> {
    let provider = Arc::new(provider);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes())?)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    Ok(builder.with_single_cert(issued.chain().to_vec(), issued.key().clone_key())?)
}

/// All counters of failures, by reason, as `/stats` has them.
async fn counters(stats: Answer) -> Result<BTreeMap<String, u64>> {
    assert_eq!(stats.status, 200, "{stats:?}");
    let lines = stats.body.lines().map(|line| {
        let (name, value) = line.split_once(": ").with_context(|| line.to_owned())?;
        let reason = name.strip_prefix("wasmcustom.egress.failure.");
        let reason = reason.with_context(|| line.to_owned())?;
        Ok((reason.to_owned(), value.parse()?))
    });
    lines.collect()
}

const COUNTERS: &str = "/stats?filter=wasmcustom.egress.failure";

async fn counted(proxy: &Running) -> Result<BTreeMap<String, u64>> {
    counters(proxy.admin_get(COUNTERS).await?).await
}

fn zeros() -> BTreeMap<String, u64> {
    TOLD.map(|(reason, _)| (reason.to_owned(), 0)).into()
}

/// The reason for a certificate that does not hold, which Envoy 1.36 does not tell: it is `not_verified` there.
async fn told_by(proxy: &Running, reason: &'static str) -> Result<&'static str> {
    let info: Value = serde_json::from_str(&proxy.admin_get("/server_info").await?.body)?;
    let version = info.get("version").and_then(Value::as_str);
    let version = version.context("Envoy has no version")?;
    Ok(match version.contains("/1.36.") {
        true => "not_verified",
        false => reason,
    })
}

/// An answer tells this reason, and nothing besides.
fn assert_told(answer: &Answer, reason: &str) -> Result<()> {
    let body = message(reason)? + "\n";
    assert_eq!((answer.status, &*answer.body), (503, &*body), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(
        answer.header("content-length"),
        Some(&*body.len().to_string())
    );
    assert_nothing_else(answer);
    Ok(())
}

fn assert_nothing_else(answer: &Answer) {
    let allowed = [
        "content-type",
        "content-length",
        "date",
        "grpc-status",
        "grpc-message",
    ];
    for (name, value) in &answer.headers {
        assert!(allowed.contains(&name.as_str()), "{name}: {value}");
    }
}

/// Asks for each host once: the answer, the log and the counters give its reason.
async fn assert_fails(proxy: &Running, action: &str, hosts: &[(&str, &str)]) -> Result<()> {
    let mut expected = counted(proxy).await?;
    assert_eq!(expected.len(), TOLD.len(), "{expected:?}");
    for (host, reason) in hosts {
        let path = format!("/{host}");
        let answer = probe::get(proxy.listener(80)?, host, &path).await?;
        assert_told(&answer, reason).with_context(|| (*host).to_owned())?;
        *expected.entry((*reason).to_owned()).or_default() += 1;
        assert_eq!(counted(proxy).await?, expected, "{host}");

        let log = log_of(proxy, &path).await?;
        assert_eq!(log.egress("reason"), *reason, "{log:#?}");
        assert_eq!(log.egress("action"), action, "{log:#?}");
        assert_eq!(log.egress("authority"), *host, "{log:#?}");
        assert_eq!(log.egress("target"), format!("{host}:443"), "{log:#?}");
        assert_eq!(log.istio("response_code"), "503");
        ensure!(!log.istio("response_code_details").is_empty());
    }
    Ok(())
}

/// A run that leads port 443 of these hosts to these servers.
fn led<const N: usize>(builder: Builder, to: [(&str, SocketAddr); N]) -> Builder {
    let builder = builder.port(80, 0);
    to.into_iter().fold(builder, |builder, (host, addr)| {
        builder.connect_to(&route(host, 443, addr))
    })
}

/// The certificate does not hold.
#[tokio::test]
async fn a_certificate_that_does_not_hold_has_its_reason() -> Result<()> {
    let (trusted, stranger) = (Trusted::new()?, Ca::new("stranger")?);
    let leaf = |host| Leaf::for_names([host]);
    let expired = leaf("expired.example").validity(Validity::Expired);
    let expired = site(&trusted.ca, &expired).await?;
    let early = leaf("early.example").validity(Validity::NotYetValid);
    let early = site(&trusted.ca, &early).await?;
    let strange = site(&stranger, &leaf("strange.example")).await?;
    let other = site(&trusted.ca, &leaf("www.example")).await?;
    let listed = site(&trusted.ca, &leaf("listed.example")).await?;
    let purpose = leaf("purpose.example").usage(Usage::Client);
    let purpose = site(&trusted.ca, &purpose).await?;
    let revoked = trusted.ca.issue(&leaf("revoked.example"))?;
    let crl = trusted.file(
        "list.crl",
        &trusted.ca.crl(&[revoked.serial()], Validity::Valid)?,
    )?;
    let revoked = Server::tls(tls(&revoked, &[&TLS13], None)?, b"").await?;
    let foreign = trusted.file("foreign.crl", &stranger.crl(&[], Validity::Valid)?)?;
    let unlisted = site(&trusted.ca, &leaf("unlisted.example")).await?;

    let by_list = |host, file: &std::path::Path| {
        let policy = format!("{{tls: {{mode: SIMPLE, caCrl: \"{}\"}}}}", file.display());
        entry(host, 443) + &rule(host, &policy)
    };
    let names = "{tls: {mode: SIMPLE, subjectAltNames: [one.example, two.example]}}";
    let rules = originated("expired.example", 443)
        + &originated("early.example", 443)
        + &originated("strange.example", 443)
        + &originated("other.example", 443)
        + &originated("purpose.example", 443)
        + &entry("listed.example", 443)
        + &rule("listed.example", names)
        + &by_list("revoked.example", &crl)
        + &by_list("unlisted.example", &foreign);
    let to = [
        ("expired.example", expired.tls_addr()),
        ("early.example", early.tls_addr()),
        ("strange.example", strange.tls_addr()),
        ("other.example", other.tls_addr()),
        ("listed.example", listed.tls_addr()),
        ("purpose.example", purpose.tls_addr()),
        ("revoked.example", revoked.addr),
        ("unlisted.example", unlisted.tls_addr()),
    ];
    let proxy = led(trusted.egressctl(&rules), to).start().await?;
    assert_eq!(counted(&proxy).await?, zeros());
    let mut reasons = [
        ("expired.example", "expired"),
        ("early.example", "not_yet_valid"),
        ("strange.example", "unknown_ca"),
        ("other.example", "name_mismatch"),
        ("listed.example", "name_mismatch"),
        ("purpose.example", "not_verified"),
        ("revoked.example", "revoked"),
        ("unlisted.example", "revoked"),
    ];
    for (_, reason) in &mut reasons {
        *reason = told_by(&proxy, reason).await?;
    }
    assert_fails(&proxy, "originate", &reasons).await
}

/// Whatever is wrong with a certificate, it is no reset; what has no word of its own is `not_verified`.
#[tokio::test]
async fn every_certificate_that_does_not_hold_is_told_as_one() -> Result<()> {
    let trusted = Trusted::new()?;
    let leaf = |host: &str| Leaf::for_names([host]);
    let ca = |limit| trusted.ca.limited("limited", limit);
    let issued = [
        (
            "client.example",
            trusted
                .ca
                .issue(&leaf("client.example").usage(Usage::Client))?,
        ),
        (
            "code.example",
            trusted.ca.issue(&leaf("code.example").usage(Usage::Code))?,
        ),
        (
            "signing.example",
            trusted
                .ca
                .issue(&leaf("signing.example").usage(Usage::Signing))?,
        ),
        (
            "no-authority.example",
            ca(Limit::NoAuthority)?.issue(&leaf("no-authority.example"))?,
        ),
        (
            "clients-only.example",
            ca(Limit::ClientsOnly)?.issue(&leaf("clients-only.example"))?,
        ),
        (
            "outside.example",
            ca(Limit::OnlyBelow("good.example"))?.issue(&leaf("outside.example"))?,
        ),
        (
            "excluded.example",
            ca(Limit::NotBelow("excluded.example"))?.issue(&leaf("excluded.example"))?,
        ),
        (
            "md5.example",
            trusted.ca.issue_by_md5(&leaf("md5.example"))?,
        ),
    ];
    let mut rules = String::new();
    let mut builder = trusted.egressctl("").port(80, 0);
    let mut sites = Vec::new();
    for (host, certificate) in &issued {
        let site = StandIn::start(StandInConfig::new(certificate.clone())).await?;
        rules += &originated(host, 443);
        builder = builder.connect_to(&route(host, 443, site.tls_addr()));
        sites.push(site);
    }
    let proxy = builder.rules_text(rules).start().await?;
    let reasons = issued.map(|(host, _)| (host, "not_verified"));
    assert_fails(&proxy, "originate", &reasons).await?;
    for site in sites {
        ensure!(site.seen().is_empty(), "{:?}", site.seen());
    }
    Ok(())
}

/// The server wants to know who we are.
#[tokio::test]
async fn a_server_that_asks_for_a_certificate_has_its_reason() -> Result<()> {
    let (trusted, stranger) = (Trusted::new()?, Ca::new("stranger")?);
    let clients = Ca::new("clients")?;
    let files = |name: &str, ca: &Ca, validity| -> Result<String> {
        let leaf = Leaf::for_names(["client.example"]).usage(Usage::Client);
        let issued = ca.issue(&leaf.validity(validity))?;
        let certificate = trusted.file(&format!("{name}.pem"), issued.chain_pem())?;
        let key = trusted.file(&format!("{name}.key"), issued.key_pem())?;
        Ok(format!(
            "{{tls: {{mode: MUTUAL, clientCertificate: \"{}\", privateKey: \"{}\"}}}}",
            certificate.display(),
            key.display()
        ))
    };
    let good = files("good", &clients, Validity::Valid)?;
    let strange = files("strange", &stranger, Validity::Valid)?;
    let expired = files("expired", &clients, Validity::Expired)?;
    let server = async |host, version| {
        let issued = trusted.ca.issue(&Leaf::for_names([host]))?;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        Server::tls(tls(&issued, &[version], Some(&clients))?, answer).await
    };
    let hosts = [
        ("none12.example", &TLS12, SIMPLE),
        ("strange12.example", &TLS12, &strange),
        ("expired12.example", &TLS12, &expired),
        ("good12.example", &TLS12, &good),
        ("none13.example", &TLS13, SIMPLE),
        ("strange13.example", &TLS13, &strange),
        ("good13.example", &TLS13, &good),
    ];
    let mut rules = String::new();
    let mut builder = trusted.egressctl("").port(80, 0);
    let mut servers = Vec::new();
    for (host, version, policy) in hosts {
        rules += &(entry(host, 443) + &rule(host, policy));
        let server = server(host, version).await?;
        builder = builder.connect_to(&route(host, 443, server.addr));
        servers.push(server);
    }
    let proxy = builder.rules_text(rules).start().await?;
    for host in ["good12.example", "good13.example"] {
        let answer = probe::get(proxy.listener(80)?, host, "/").await?;
        assert_eq!(answer.status, 200, "{host}: {}", answer.body);
    }
    assert_eq!(counted(&proxy).await?, zeros());
    let reasons = [
        ("none12.example", "client_certificate_required"),
        ("strange12.example", "client_certificate_rejected"),
        ("expired12.example", "client_certificate_rejected"),
        // By TLS 1.3 the connection is ready before the server looks, and Envoy does not tell what it says then.
        ("none13.example", "reset"),
        ("strange13.example", "reset"),
    ];
    assert_fails(&proxy, "originate", &reasons).await
}

/// There is no TLS session to be had, or no connection.
#[tokio::test]
async fn a_connection_that_does_not_come_about_has_its_reason() -> Result<()> {
    let trusted = Trusted::new()?;
    // As OpenSSL answers where TLS 1.1 is the newest it speaks: the alert `protocol_version`.
    let old = Server::says(b"\x15\x03\x02\x00\x02\x02\x46").await?;
    let mut provider = ring::default_provider();
    provider.kx_groups = vec![ring::kx_group::SECP384R1];
    let issued = trusted.ca.issue(&Leaf::for_names(["group.example"]))?;
    let group = Server::tls(tls_by(provider, &issued, &[&TLS13, &TLS12], None)?, b"").await?;
    let site = trusted.site(["plain.example"]).await?;
    // Bound and not listening: refused, and nobody else's.
    let closed = TcpSocket::new_v4()?;
    closed.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let silent = Server::start(|stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await?;
    let hangs_up = Server::start(|stream| async move { drop(stream) }).await?;
    let issued = trusted.ca.issue(&Leaf::for_names(["breaks.example"]))?;
    let acceptor = TlsAcceptor::from(Arc::new(tls(&issued, &[&TLS13], None)?));
    let breaks = Server::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _heard = stream.read(&mut [0; 4096]).await;
            }
        }
    })
    .await?;

    let impatient = "{connectionPool: {tcp: {connectTimeout: 1s}}, tls: {mode: SIMPLE}}";
    let rules = originated("old.example", 443)
        + &originated("group.example", 443)
        + &originated("plain.example", 443)
        + &originated("closed.example", 443)
        + &entry("silent.example", 443)
        + &rule("silent.example", impatient)
        + &originated("hangs-up.example", 443)
        + &originated("breaks.example", 443);
    let to = [
        ("old.example", old.addr),
        ("group.example", group.addr),
        ("plain.example", site.plain_addr()),
        ("closed.example", closed.local_addr()?),
        ("silent.example", silent.addr),
        ("hangs-up.example", hangs_up.addr),
        ("breaks.example", breaks.addr),
    ];
    let proxy = led(trusted.egressctl(&rules), to).start().await?;
    let reasons = [
        ("old.example", "protocol_version"),
        ("group.example", "no_shared_cipher"),
        ("plain.example", "not_tls"),
        ("closed.example", "refused"),
        ("silent.example", "timeout"),
        ("hangs-up.example", "reset"),
        ("breaks.example", "reset"),
    ];
    assert_fails(&proxy, "originate", &reasons).await
}

/// Names without an address, for clusters that hosts share and for those that look names up by themselves.
#[tokio::test]
async fn a_name_without_an_address_has_its_reason() -> Result<()> {
    let trusted = Trusted::new()?;
    let nowhere = DnsServer::start(Zone::new()).await?;
    let spec = "resolution: DNS, endpoints: [{address: own.example}], \
                ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]";
    let rules = originated("shared.example", 443)
        + &entry_with("own.example", spec)
        + &rule("own.example", SIMPLE);
    let resolver = nowhere.addr().to_string();
    let builder = trusted.egressctl(&rules).port(80, 0);
    let proxy = builder.arg("--resolver").arg(resolver).start().await?;
    let reasons = [("shared.example", "dns"), ("own.example", "dns")];
    assert_fails(&proxy, "originate", &reasons).await
}

/// Where the rules ask for no TLS, connections fail too.
#[tokio::test]
async fn what_is_forwarded_fails_for_the_same_reasons() -> Result<()> {
    let trusted = Trusted::new()?;
    let closed = TcpSocket::new_v4()?;
    closed.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let hangs_up = Server::start(|stream| async move { drop(stream) }).await?;
    let rules =
        entry("closed.example", 443) + &entry("hangs-up.example", 443) + &entry("no.example", 443);
    let to = [
        ("closed.example", closed.local_addr()?),
        ("hangs-up.example", hangs_up.addr),
    ];
    let nowhere = DnsServer::start(Zone::new()).await?;
    let builder = led(trusted.egressctl(&rules), to);
    let builder = builder.arg("--allow-plaintext").arg("*.example");
    let resolver = nowhere.addr().to_string();
    let proxy = builder.arg("--resolver").arg(resolver).start().await?;
    let reasons = [
        ("closed.example", "refused"),
        ("hangs-up.example", "reset"),
        ("no.example", "dns"),
    ];
    assert_fails(&proxy, "forward", &reasons).await
}

/// So do those of hosts that no rule names and that are let out all the same.
#[tokio::test]
async fn what_is_left_alone_fails_for_the_same_reasons() -> Result<()> {
    let trusted = Trusted::new()?;
    let nowhere = DnsServer::start(Zone::new()).await?;
    let builder = trusted.egressctl(&originated(HOST, 443)).port(80, 0);
    let builder = builder.arg("--outbound-traffic-policy").arg("ALLOW_ANY");
    let resolver = nowhere.addr().to_string();
    let proxy = builder.arg("--resolver").arg(resolver).start().await?;
    let answer = probe::get(proxy.listener(80)?, "no.example", "/left-alone").await?;
    assert_told(&answer, "dns")?;
    log_of(&proxy, "/left-alone").await?.assert_egress([
        ("action", "forward"),
        ("reason", "dns"),
        ("authority", "no.example"),
    ]);
    assert_eq!(counted(&proxy).await?.get("dns"), Some(&1));
    Ok(())
}

/// The bootstrap for [`HOST`] at this port, whose trust store is to come from somewhere that has none.
async fn without_secret(trusted: &Trusted, port: u16, resolver: &str) -> Result<Value> {
    let nothing = trusted.file("nothing.json", "{\"resources\": []}")?;
    let rules = originated(HOST, port);
    let mut bootstrap = rendered(trusted, &rules, &["--resolver", resolver]).await?;
    let clusters = bootstrap.pointer_mut("/static_resources/clusters");
    let clusters = clusters.and_then(Value::as_array_mut);
    let secret = "/transport_socket/typed_config/common_tls_context/combined_validation_context\
                  /validation_context_sds_secret_config";
    let mut clusters = clusters.context("no clusters")?.iter_mut();
    let secret = clusters.find_map(|cluster| cluster.pointer_mut(secret));
    let secret = secret.and_then(Value::as_object_mut);
    let secret = secret.context("no trust store in the bootstrap")?;
    let source = json!({
        "path_config_source": {"path": nothing},
        "initial_fetch_timeout": "0.1s",
        "resource_api_version": "V3",
    });
    secret.insert("sds_config".to_owned(), source);
    Ok(bootstrap)
}

#[tokio::test]
async fn a_secret_that_never_came_has_its_reason() -> Result<()> {
    let (trusted, dns) = (Trusted::new()?, dns().await?);
    let site = trusted.site([HOST]).await?;
    let resolver = dns.addr().to_string();
    let port = site.tls_addr().port();
    let bootstrap = without_secret(&trusted, port, &resolver).await?;
    let binary = envoy::binary()?;
    let envoy = EnvoyProcess::start(&binary, &bootstrap.to_string(), [""; 0]).await?;
    let host = format!("{HOST}:{port}");
    let answer = probe::get(envoy.listener("outbound_80")?, &host, "/secret").await?;
    assert_told(&answer, "secret_missing")?;
    let counted = counters(envoy.admin_get(COUNTERS).await?).await?;
    assert_eq!(counted.get("secret_missing"), Some(&1), "{counted:?}");
    let line = envoy.wait_for_stdout(|line| line.contains(" /secret "), SOON);
    let line = line.await?;
    ensure!(line.contains(" reason=secret_missing "), "{line}");
    assert_eq!(
        site.counts(egress_integration::stand_in::Listener::Tls)
            .requests,
        0
    );
    Ok(())
}

/// An expired certificate behind a run, and the text that Envoy would have given away.
async fn expired(trusted: &Trusted, format: &str) -> Result<(StandIn, Running)> {
    let leaf = Leaf::for_names([HOST]).validity(Validity::Expired);
    let expired = site(&trusted.ca, &leaf).await?;
    let builder = trusted.egressctl(&originated(HOST, 443));
    let builder = led(builder, [(HOST, expired.tls_addr())]);
    let proxy = builder.arg("--access-log-format").arg(format).start();
    Ok((expired, proxy.await?))
}

#[tokio::test]
async fn head_has_the_same_headers_and_no_body() -> Result<()> {
    let trusted = Trusted::new()?;
    let (_site, proxy) = expired(&trusted, "text").await?;
    let reason = told_by(&proxy, "expired").await?;
    // A second request on the connection is answered behind the first, so both are as long as they say.
    let request = format!(
        "HEAD /head HTTP/1.1\r\nHost: {HOST}\r\n\r\n\
         GET /next HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    );
    let answer = probe::raw(proxy.listener(80)?, request.as_bytes(), SOON).await?;
    let answer = String::from_utf8(answer)?;
    let parts: Vec<&str> = answer.split("\r\n\r\n").collect();
    let [head, next, body] = <[&str; 3]>::try_from(parts)
        .map_err(|parts| anyhow!("two answers and one body were expected: {parts:#?}"))?;
    assert_eq!(body, message(reason)? + "\n");
    for line in [
        "HTTP/1.1 503 Service Unavailable".to_owned(),
        format!("content-length: {}", body.len()),
        "content-type: text/plain".to_owned(),
    ] {
        for part in [head, next] {
            ensure!(part.lines().any(|found| found == line), "{line}: {answer}");
        }
    }
    ensure!(!answer.contains("TLS"), "{answer}");
    assert_eq!(log_of(&proxy, "/head").await?.egress("reason"), reason);
    assert_eq!(counted(&proxy).await?.get(reason), Some(&2));
    Ok(())
}

/// A gRPC call over HTTP/2, as its clients make them; the answer has no body and no trailers.
async fn grpc(addr: SocketAddr, host: &str) -> Result<Answer> {
    let stream = TokioIo::new(TcpStream::connect(addr).await?);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::post(format!("http://{host}/a.Service/Method"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(b"\0\0\0\0\0")))?;
    let response = tokio::time::timeout(SOON, sender.send_request(request)).await??;
    let (head, body) = response.into_parts();
    let body = body.collect().await?;
    ensure!(body.trailers().is_none(), "{:?}", body.trailers());
    let headers = head.headers.iter();
    Ok(Answer {
        status: head.status.as_u16(),
        http_version: format!("{:?}", head.version),
        headers: headers
            .map(|(name, value)| Ok((name.to_string(), value.to_str()?.to_owned())))
            .collect::<Result<_>>()?,
        body: String::from_utf8(body.to_bytes().to_vec())?,
    })
}

#[tokio::test]
async fn grpc_has_the_reason_as_its_message() -> Result<()> {
    let trusted = Trusted::new()?;
    let (_site, proxy) = expired(&trusted, "text").await?;
    let reason = told_by(&proxy, "expired").await?;
    let answer = grpc(proxy.listener(80)?, HOST).await?;
    assert_eq!((answer.status, &*answer.body), (200, ""), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/grpc"));
    // UNAVAILABLE, as Envoy has it.
    assert_eq!(answer.header("grpc-status"), Some("14"));
    assert_eq!(answer.header("grpc-message"), Some(&*message(reason)?));
    assert_nothing_else(&answer);
    let log = proxy.wait_for_log(|line| line.contains("/a.Service/Method"), SOON);
    ensure!(log.await?.contains(&format!(" reason={reason} ")));
    assert_eq!(counted(&proxy).await?.get(reason), Some(&1));
    Ok(())
}

#[tokio::test]
async fn a_json_log_has_the_reason_among_the_rest() -> Result<()> {
    let trusted = Trusted::new()?;
    let (_site, proxy) = expired(&trusted, "json").await?;
    let reason = told_by(&proxy, "expired").await?;
    let answer = probe::get(proxy.listener(80)?, "EDITION.cnn.com:80", "/json").await?;
    assert_told(&answer, reason)?;
    let line = proxy.wait_for_log(|line| line.contains("\"/json\""), SOON);
    let line: Value = serde_json::from_str(&line.await?)?;
    let egress = json!({
        "action": "originate", "reason": reason, "rule": "default/edition-cnn-com",
        "service_entry": "default/edition-cnn-com", "cluster": common::SHARED,
        "transport_socket": "envoy.transport_sockets.tls", "tls_mode": "SIMPLE", "sni": HOST,
        "verify": HOST, "target": "edition.cnn.com:443", "authority": "EDITION.cnn.com:80",
    });
    assert_eq!(line.get("egress"), Some(&egress), "{line:#}");
    Ok(())
}

/// A server may say what it likes, in as few headers as it likes.
#[tokio::test]
async fn what_the_server_answers_passes_as_it_is() -> Result<()> {
    let trusted = Trusted::new()?;
    let issued = trusted.ca.issue(&Leaf::for_names([HOST, "grpc.example"]))?;
    let own = "no healthy upstream\n";
    let short = b"HTTP/1.1 503 Busy\r\ncontent-length: 20\r\n\r\nno healthy upstream\n";
    let grpc_answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 14\r\n\
                        grpc-message: busy\r\ncontent-length: 0\r\n\r\n";
    let short = Server::tls(tls(&issued, &[&TLS13], None)?, short).await?;
    let calls = Server::tls(tls(&issued, &[&TLS13], None)?, grpc_answer).await?;
    let rules = originated(HOST, 443) + &originated("grpc.example", 443);
    let to = [(HOST, short.addr), ("grpc.example", calls.addr)];
    let proxy = led(trusted.egressctl(&rules), to).start().await?;

    let answer = probe::get(proxy.listener(80)?, HOST, "/busy").await?;
    assert_eq!((answer.status, &*answer.body), (503, own), "{answer:?}");
    assert_eq!(answer.header("content-type"), None);
    let log = log_of(&proxy, "/busy").await?;
    assert_eq!(log.istio("response_code_details"), "via_upstream");
    assert_eq!(log.egress("reason"), "-");
    let answer = grpc(proxy.listener(80)?, "grpc.example").await?;
    assert_eq!(answer.header("grpc-message"), Some("busy"), "{answer:?}");
    assert_eq!(counted(&proxy).await?, zeros());

    // What we refuse ourselves is as it was.
    let answer = probe::get(proxy.listener(80)?, "no.example", "/no").await?;
    assert_eq!(answer.status, 502);
    assert_eq!(
        answer.body,
        "egress_unknown_host: no ServiceEntry names this host\n"
    );
    assert_eq!(
        log_of(&proxy, "/no").await?.egress("reason"),
        "unknown_host"
    );
    assert_eq!(counted(&proxy).await?, zeros());
    Ok(())
}

#[tokio::test]
async fn prometheus_has_all_counters_from_the_start() -> Result<()> {
    let trusted = Trusted::new()?;
    let proxy = trusted
        .egressctl(&originated(HOST, 443))
        .port(80, 0)
        .start();
    let proxy = proxy.await?;
    assert_eq!(counted(&proxy).await?, zeros());
    let metrics = proxy
        .admin_get("/stats/prometheus?filter=wasmcustom")
        .await?;
    for (reason, _) in TOLD {
        let line = format!("egress_failure{{reason=\"{reason}\"}} 0");
        ensure!(
            metrics.body.lines().any(|found| found == line),
            "{line}: {}",
            metrics.body
        );
    }
    Ok(())
}

/// A configuration that comes later counts on, and what was counted stays.
#[tokio::test]
async fn counters_outlive_a_configuration() -> Result<()> {
    let trusted = Trusted::new()?;
    let nowhere = DnsServer::start(Zone::new()).await?;
    let resolver = nowhere.addr().to_string();
    let rules = originated(HOST, 443);
    let mut bootstrap = rendered(&trusted, &rules, &["--resolver", &resolver]).await?;
    let fields = bootstrap.as_object_mut().context("no object")?;
    let resources = fields
        .get_mut("static_resources")
        .and_then(Value::as_object_mut);
    let listeners = resources.and_then(|r| r.remove("listeners"));
    let mut listeners = listeners.context("no listeners")?;
    let path = trusted.path("listeners.json");
    let write = |listeners: &Value, version: &str| -> Result<()> {
        let mut listeners = listeners.clone();
        for listener in listeners.as_array_mut().context("no list")? {
            let kind = "type.googleapis.com/envoy.config.listener.v3.Listener";
            let fields = listener.as_object_mut().context("no listener")?;
            fields.insert("@type".to_owned(), json!(kind));
        }
        let response = json!({"version_info": version, "resources": listeners});
        // Moved into place, which is what Envoy watches for.
        let new = trusted.file("listeners.new", &response.to_string())?;
        Ok(std::fs::rename(new, &path)?)
    };
    write(&listeners, "1")?;
    let source = json!({"path_config_source": {"path": path}, "resource_api_version": "V3"});
    fields.insert(
        "dynamic_resources".to_owned(),
        json!({"lds_config": source}),
    );
    let binary = envoy::binary()?;
    let one = ["--concurrency", "1"];
    let envoy = EnvoyProcess::start(&binary, &bootstrap.to_string(), one).await?;
    let port = envoy.listener("outbound_80")?;
    let dns = async || {
        let counted = counters(envoy.admin_get(COUNTERS).await?).await?;
        anyhow::Ok(counted.get("dns").copied())
    };
    assert_told(&probe::get(port, HOST, "/").await?, "dns")?;
    assert_eq!(dns().await?, Some(1));

    // The plugin is configured again, by the listener that takes the old one's place.
    let text = listeners.to_string();
    let other = text.replace(
        "\\\"metadata\\\":\\\"TEXT\\\"",
        "\\\"metadata\\\":\\\"JSON\\\"",
    );
    assert_ne!(text, other);
    listeners = serde_json::from_str(&other)?;
    write(&listeners, "2")?;
    let deadline = tokio::time::Instant::now() + SOON;
    let created = "/stats?filter=listener_manager.listener_create_success";
    while !envoy.admin_get(created).await?.body.ends_with(": 2\n") {
        let log = envoy.stderr();
        ensure!(tokio::time::Instant::now() < deadline, "{log:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(dns().await?, Some(1), "what was counted stays");
    assert_told(&probe::get(port, HOST, "/").await?, "dns")?;
    assert_eq!(dns().await?, Some(2));
    Ok(())
}

#[tokio::test]
async fn what_a_route_adds_to_responses_is_added_once() -> Result<()> {
    let trusted = Trusted::new()?;
    let nowhere = DnsServer::start(Zone::new()).await?;
    let resolver = nowhere.addr().to_string();
    let rules = originated(HOST, 443);
    let mut bootstrap = rendered(&trusted, &rules, &["--resolver", &resolver]).await?;
    let host = bootstrap.pointer_mut(&format!("{MANAGER}/route_config/virtual_hosts/0"));
    let host = host.and_then(Value::as_object_mut);
    let added = json!([{"header": {"key": "x-added", "value": "by a route"}}]);
    host.context("no routes")?
        .insert("response_headers_to_add".to_owned(), added);
    let binary = envoy::binary()?;
    let envoy = EnvoyProcess::start(&binary, &bootstrap.to_string(), [""; 0]).await?;
    let answer = probe::get(envoy.listener("outbound_80")?, HOST, "/").await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.body, message("dns")? + "\n");
    assert_eq!(answer.header("x-added"), Some("by a route"), "{answer:?}");
    for once in ["content-type", "content-length", "x-added"] {
        let count = answer
            .headers
            .iter()
            .filter(|(name, _)| name == once)
            .count();
        assert_eq!(count, 1, "{once}: {answer:?}");
    }
    Ok(())
}
