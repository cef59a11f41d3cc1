//! The harness proven against itself, without a proxy: what it reports is what happened, and what
//! must fail does.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use egress_integration::{
    dns::{DnsServer, Trouble, Zone},
    pki::{self, Ca, Key, Leaf, Usage, Validity},
    probe,
    silent_port::SilentPort,
    stand_in::{
        Client, Clients, HttpVersions, Listener, Seen, StandIn, StandInConfig, TlsVersions,
    },
};

const HOST: &str = "edition.cnn.com";
const SOON: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn error_of<T>(result: Result<T>) -> Result<String> {
    match result {
        Ok(_) => bail!("this should have failed"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

async fn site(ca: &Ca, leaf: &Leaf) -> Result<StandIn> {
    StandIn::start(StandInConfig::new(ca.issue(leaf)?)).await
}

fn only(seen: Vec<Seen>) -> Result<Seen> {
    let [seen] = <[Seen; 1]>::try_from(seen)
        .map_err(|seen| anyhow::anyhow!("one request was expected: {seen:#?}"))?;
    Ok(seen)
}

#[tokio::test]
async fn plain_http_is_redirected_and_recorded() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let site = site(&ca, &Leaf::for_names([HOST])).await?;
    let headers = [("x-forwarded-proto", "http"), ("x-more", "1")];
    let addr = site.plain_addr();
    let answer = probe::get_with(addr, "edition.cnn.com:80", "/politics?a=b", &headers).await?;
    ensure!(answer.status == 301);
    ensure!(answer.http_version == "HTTP/1.1");
    ensure!(answer.header("location") == Some("https://edition.cnn.com/politics?a=b"));

    let seen = only(site.seen())?;
    ensure!(seen.listener == Listener::Plain);
    ensure!(seen.tls_version.is_none() && seen.sni.is_none() && seen.alpn.is_none());
    ensure!(seen.host == "edition.cnn.com:80");
    ensure!(seen.path == "/politics?a=b");
    ensure!(seen.method == "GET");
    ensure!(seen.http_version == "HTTP/1.1");
    ensure!(seen.scheme.is_none());
    ensure!(seen.x_forwarded_proto.as_deref() == Some("http"));
    ensure!(seen.header("x-more") == Some("1"));

    let counts = site.counts(Listener::Plain);
    ensure!(counts.connections == 1 && counts.requests == 1);
    ensure!(site.counts(Listener::Tls).connections == 0);
    Ok(())
}

#[tokio::test]
async fn https_is_answered_and_recorded_over_h2() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let certificate = ca.issue(&Leaf::for_names([HOST]))?;
    let site = StandIn::start(StandInConfig::new(certificate.clone())).await?;
    let addr = site.tls_addr();
    let tls = probe::get_tls(addr, HOST, HOST, "/politics", &ca.pem()).await?;
    ensure!(tls.answer.status == 200);
    ensure!(tls.answer.http_version == "HTTP/2.0");
    ensure!(tls.answer.body == "/politics at edition.cnn.com over TLSv1.3\n");
    ensure!(tls.tls_version == "TLSv1.3");
    ensure!(tls.alpn.as_deref() == Some("h2"));
    ensure!(certificate.chain().first() == Some(&tls.peer_certificate));

    let seen = only(site.seen())?;
    ensure!(seen.listener == Listener::Tls);
    ensure!(seen.tls_version.as_deref() == Some("TLSv1.3"));
    ensure!(seen.sni.as_deref() == Some(HOST));
    ensure!(seen.alpn.as_deref() == Some("h2"));
    ensure!(seen.http_version == "HTTP/2.0");
    ensure!(seen.scheme.as_deref() == Some("https"));
    ensure!(seen.host == HOST);
    ensure!(seen.path == "/politics");

    let counts = site.counts(Listener::Tls);
    ensure!(counts.connections == 1 && counts.requests == 1);
    ensure!(counts.failed_handshakes.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_site_of_older_versions_is_recorded_as_such() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let config = StandInConfig::new(ca.issue(&Leaf::for_names([HOST]))?)
        .http(HttpVersions::OnlyHttp1)
        .tls(TlsVersions::OnlyTls12);
    let site = StandIn::start(config).await?;
    let tls = probe::get_tls(site.tls_addr(), HOST, HOST, "/", &ca.pem()).await?;
    ensure!(tls.tls_version == "TLSv1.2");
    ensure!(tls.alpn.as_deref() == Some("http/1.1"));

    let seen = only(site.seen())?;
    ensure!(seen.tls_version.as_deref() == Some("TLSv1.2"));
    ensure!(seen.alpn.as_deref() == Some("http/1.1"));
    ensure!(seen.http_version == "HTTP/1.1");
    ensure!(seen.scheme.is_none());
    ensure!(seen.host == HOST);
    Ok(())
}

#[tokio::test]
async fn a_site_can_insist_on_the_newest_versions() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let config = StandInConfig::new(ca.issue(&Leaf::for_names([HOST]))?)
        .http(HttpVersions::OnlyHttp2)
        .tls(TlsVersions::OnlyTls13);
    let site = StandIn::start(config).await?;
    let tls = probe::get_tls(site.tls_addr(), HOST, HOST, "/", &ca.pem()).await?;
    ensure!(tls.tls_version == "TLSv1.3");
    ensure!(tls.alpn.as_deref() == Some("h2"));
    Ok(())
}

#[tokio::test]
async fn the_certificate_follows_the_sni() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let other = ca.issue(&Leaf::for_names(["Other.example"]))?;
    let config =
        StandInConfig::new(ca.issue(&Leaf::for_names([HOST]))?).with_certificate(other.clone());
    let site = StandIn::start(config).await?;
    let addr = site.tls_addr();
    let tls = probe::get_tls(addr, "OTHER.example", HOST, "/", &ca.pem()).await?;
    ensure!(other.chain().first() == Some(&tls.peer_certificate));
    probe::get_tls(addr, HOST, HOST, "/", &ca.pem()).await?;

    // Host and SNI are recorded apart.
    let seen = site.seen();
    let pairs: Vec<_> = seen
        .iter()
        .map(|seen| (seen.sni.as_deref(), seen.host.as_str()))
        .collect();
    ensure!(
        pairs == [(Some("other.example"), HOST), (Some(HOST), HOST)],
        "{pairs:?}"
    );
    Ok(())
}

/// Asks `site` for [`HOST`], and proves that the refusal is the client's and that the site noted it.
async fn refused(site: &StandIn, ca: &Ca, reason: &str, alert: &str) -> Result<()> {
    let answer = probe::get_tls(site.tls_addr(), HOST, HOST, "/", &ca.pem()).await;
    let error = error_of(answer)?;
    ensure!(error.contains(reason), "{error}");

    let failures = site.wait_for_failed_handshakes(1, SOON).await?;
    let failure = failures.first().context("no failure")?;
    ensure!(failure.error.contains(alert), "{failure:?}");
    ensure!(failure.sni.as_deref() == Some(HOST), "{failure:?}");
    let counts = site.counts(Listener::Tls);
    ensure!(counts.connections == 1, "{counts:?}");
    ensure!(counts.requests == 0, "{counts:?}");
    ensure!(site.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_rejected() -> Result<()> {
    let (ca, stranger) = (Ca::new("test CA")?, Ca::new("test CA")?);
    let site = site(&stranger, &Leaf::for_names([HOST])).await?;
    // The authorities share a name, so that the signature is what tells them apart.
    refused(
        &site,
        &ca,
        "invalid peer certificate: BadSignature",
        "fatal alert",
    )
    .await
}

#[tokio::test]
async fn a_certificate_of_an_unknown_ca_is_rejected() -> Result<()> {
    let (ca, stranger) = (Ca::new("test CA")?, Ca::new("stranger")?);
    let site = site(&stranger, &Leaf::for_names([HOST])).await?;
    refused(&site, &ca, "UnknownIssuer", "UnknownCA").await
}

#[tokio::test]
async fn an_expired_certificate_is_rejected() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let leaf = Leaf::for_names([HOST]).validity(Validity::Expired);
    let site = site(&ca, &leaf).await?;
    refused(&site, &ca, "certificate expired", "CertificateExpired").await
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_rejected() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let leaf = Leaf::for_names([HOST]).validity(Validity::NotYetValid);
    let site = site(&ca, &leaf).await?;
    refused(&site, &ca, "not valid yet", "fatal alert").await
}

#[tokio::test]
async fn a_certificate_for_another_name_is_rejected() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let site = site(&ca, &Leaf::for_names(["www.cnn.com"])).await?;
    refused(&site, &ca, "not valid for name", "fatal alert").await
}

#[tokio::test]
async fn a_clients_certificate_is_no_servers() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let leaf = Leaf::for_names([HOST]).usage(Usage::Client);
    let site = site(&ca, &leaf).await?;
    refused(&site, &ca, "invalid peer certificate", "fatal alert").await
}

#[tokio::test]
async fn a_self_signed_certificate_is_rejected() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let certificate = pki::self_signed(&Leaf::for_names([HOST]))?;
    let site = StandIn::start(StandInConfig::new(certificate)).await?;
    refused(&site, &ca, "invalid peer certificate", "fatal alert").await
}

#[tokio::test]
async fn an_intermediate_has_to_be_sent() -> Result<()> {
    let root = Ca::new("root")?;
    let issued = root.intermediate("intermediate")?;
    let issued = issued.issue(&Leaf::for_names([HOST]))?;
    let site = StandIn::start(StandInConfig::new(issued.alone()?)).await?;
    refused(&site, &root, "UnknownIssuer", "UnknownCA").await?;

    let site = StandIn::start(StandInConfig::new(issued)).await?;
    let got = probe::get_tls(site.tls_addr(), HOST, HOST, "/", &root.pem()).await?;
    ensure!(got.answer.status == 200);
    Ok(())
}

#[tokio::test]
async fn keys_of_every_kind_serve() -> Result<()> {
    let ca = Ca::new("test CA")?;
    for key in [Key::EcdsaP384, Key::Ed25519, Key::Rsa(2048)] {
        let site = site(&ca, &Leaf::for_names([HOST]).key(key)).await?;
        let got = probe::get_tls(site.tls_addr(), HOST, HOST, "/", &ca.pem()).await?;
        ensure!(got.answer.status == 200, "{key:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate() -> Result<()> {
    let (ca, stranger) = (Ca::new("clients")?, Ca::new("stranger")?);
    let own = ca.issue(&Leaf::client("client.example.com"))?;
    let wrong = stranger.issue(&Leaf::client("client.example.com"))?;
    let expired = Leaf::client("client.example.com").validity(Validity::Expired);
    let expired = ca.issue(&expired)?;
    let roots = vec![ca.certificate().clone()];
    let server = Ca::new("servers")?;
    let config = StandInConfig::new(server.issue(&Leaf::for_names([HOST]))?);
    let expected = Some(Client {
        common_name: "client.example.com".into(),
        serial: format!("{:X}", own.serial()),
    });

    for (clients, own_is_seen, refuses) in [
        (Clients::Ignored, false, &[][..]),
        (
            Clients::Requested(roots.clone()),
            true,
            &[Some(&wrong), Some(&expired)],
        ),
        (
            Clients::Required(roots),
            true,
            &[Some(&wrong), Some(&expired), None],
        ),
    ] {
        let site = StandIn::start(config.clone().clients(clients.clone())).await?;
        let pem = server.pem();
        for client in [Some(&own), Some(&wrong), Some(&expired), None] {
            let got = probe::get_tls_as(client, site.tls_addr(), HOST, HOST, "/", &pem).await;
            let refused = refuses
                .iter()
                .any(|one| one.map(pki::Issued::serial) == client.map(pki::Issued::serial));
            ensure!(got.is_err() == refused, "{clients:?} {client:?}: {got:?}");
            if !refused {
                let seen = only(site.take_seen())?;
                let shown = own_is_seen && client.is_some();
                let expected = expected.clone().filter(|_| shown);
                ensure!(seen.client == expected, "{seen:?}");
            }
        }
        ensure!(site.seen().is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn plaintext_on_the_tls_port_is_a_failed_handshake() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let site = site(&ca, &Leaf::for_names([HOST])).await?;
    error_of(probe::get(site.tls_addr(), HOST, "/").await)?;
    let failures = site.wait_for_failed_handshakes(1, SOON).await?;
    let failure = failures.first().context("no failure")?;
    ensure!(failure.sni.is_none());
    ensure!(site.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn waiting_for_what_does_not_come_fails() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let site = site(&ca, &Leaf::for_names([HOST])).await?;
    probe::get(site.plain_addr(), HOST, "/first").await?;
    only(site.wait_for(1, SOON).await?)?;

    let error = error_of(site.wait_for(2, SHORT).await)?;
    ensure!(
        error.contains("2 requests") && error.contains("/first"),
        "{error}"
    );
    error_of(site.wait_for_failed_handshakes(1, SHORT).await)?;
    Ok(())
}

#[tokio::test]
async fn what_was_taken_is_not_seen_again_but_counted() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let site = site(&ca, &Leaf::for_names([HOST])).await?;
    probe::get(site.plain_addr(), HOST, "/first").await?;
    ensure!(only(site.take_seen())?.path == "/first");
    ensure!(site.seen().is_empty());
    probe::get(site.plain_addr(), HOST, "/second").await?;
    let seen = only(site.seen())?;
    ensure!(seen.path == "/second" && seen.connection_id == 2);
    ensure!(site.counts(Listener::Plain).requests == 2);
    Ok(())
}

#[tokio::test]
async fn odd_requests_are_sent_and_recorded_as_they_are() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let site = site(&ca, &Leaf::for_names([HOST])).await?;
    let addr = site.plain_addr();
    for (request, http_version, host) in [
        ("GET /a HTTP/1.0\r\n\r\n", "HTTP/1.0", ""),
        (
            "GET /b HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
            "HTTP/1.1",
            "",
        ),
        (
            "GET /c HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n",
            "HTTP/1.1",
            "[::1]:80",
        ),
    ] {
        let answer = probe::raw(addr, request.as_bytes(), SOON).await?;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(answer.contains(" 301 Moved"), "{request:?}: {answer}");
        let seen = only(site.take_seen())?;
        ensure!(seen.http_version == http_version, "{seen}");
        ensure!(seen.host == host, "{seen}");
    }
    Ok(())
}

#[tokio::test]
async fn a_dropped_site_answers_no_more() -> Result<()> {
    let ca = Ca::new("test CA")?;
    let site = site(&ca, &Leaf::for_names([HOST])).await?;
    let addr = site.plain_addr();
    probe::get(addr, HOST, "/").await?;
    drop(site);
    let closed = async { while TcpStream::connect(addr).await.is_ok() {} };
    timeout(SOON, closed).await?;
    Ok(())
}

#[tokio::test]
async fn a_silent_port_is_silent() -> Result<()> {
    let port = SilentPort::start().await?;
    port.assert_silent().await?;
    port.assert_silent().await?;
    ensure!(port.heard().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_silent_port_tells_what_it_heard() -> Result<()> {
    let port = SilentPort::start().await?;
    error_of(probe::get(port.addr(), HOST, "/politics").await)?;
    let error = error_of(port.assert_silent().await)?;
    ensure!(error.contains("GET /politics HTTP/1.1\\r\\n"), "{error}");
    ensure!(port.heard().len() == 1);
    Ok(())
}

#[tokio::test]
async fn a_connection_without_a_word_breaks_the_silence() -> Result<()> {
    let port = SilentPort::start().await?;
    let open = TcpStream::connect(port.addr()).await?;
    let peer = open.local_addr()?.to_string();
    let error = error_of(port.assert_silent().await)?;
    ensure!(error.contains(&peer), "{error}");

    let port = SilentPort::start().await?;
    drop(TcpStream::connect(port.addr()).await?);
    error_of(port.assert_silent().await)?;
    Ok(())
}

fn question(name: &str, asked_for: RecordType) -> Result<Message> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name)?, asked_for));
    Ok(message)
}

async fn ask_udp(addr: SocketAddr, name: &str, asked_for: RecordType) -> Result<Message> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(addr).await?;
    socket.send(&question(name, asked_for)?.to_vec()?).await?;
    let mut answer = Vec::with_capacity(4096);
    timeout(SOON, socket.recv_buf(&mut answer)).await??;
    Ok(Message::from_vec(&answer)?)
}

async fn ask_tcp(addr: SocketAddr, name: &str, asked_for: RecordType) -> Result<Message> {
    let mut stream = TcpStream::connect(addr).await?;
    let question = question(name, asked_for)?.to_vec()?;
    stream.write_u16(question.len().try_into()?).await?;
    stream.write_all(&question).await?;
    let length = timeout(SOON, stream.read_u16()).await??;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(Message::from_vec(&answer)?)
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let data = message.answers.iter().map(|record| &record.data);
    data.filter_map(|data| match data {
        RData::A(address) => Some(address.0),
        _ => None,
    })
    .collect()
}

#[tokio::test]
async fn dns_answers_for_its_names_and_counts() -> Result<()> {
    let (one, two) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2));
    let dns = DnsServer::start(Zone::new().name(HOST, [one, two])).await?;
    let addr = dns.addr();

    let found = ask_udp(addr, "Edition.CNN.com.", RecordType::A).await?;
    ensure!(found.metadata.response_code == ResponseCode::NoError);
    ensure!(addresses(&found) == [one, two]);
    let found = ask_tcp(addr, "edition.cnn.com.", RecordType::A).await?;
    ensure!(addresses(&found) == [one, two]);

    let none = ask_udp(addr, "edition.cnn.com.", RecordType::AAAA).await?;
    ensure!(none.metadata.response_code == ResponseCode::NoError);
    ensure!(none.answers.is_empty());

    let unknown = ask_udp(addr, "www.cnn.com.", RecordType::A).await?;
    ensure!(unknown.metadata.response_code == ResponseCode::NXDomain);
    ensure!(unknown.answers.is_empty());

    ensure!(dns.queries(HOST) == 3);
    ensure!(dns.queries("EDITION.cnn.com.") == 3);
    ensure!(dns.queries("www.cnn.com") == 1);
    ensure!(dns.queries("never.asked") == 0);
    ensure!(dns.asked().len() == 2);
    Ok(())
}

#[tokio::test]
async fn dns_can_answer_for_every_name() -> Result<()> {
    let own = Ipv4Addr::new(127, 0, 0, 3);
    let zone = Zone::new()
        .every_name([Ipv4Addr::LOCALHOST])
        .name("own.example", [own]);
    let dns = DnsServer::start(zone).await?;
    let any = ask_udp(dns.addr(), "any.name.example.", RecordType::A).await?;
    ensure!(addresses(&any) == [Ipv4Addr::LOCALHOST]);
    let own_answer = ask_udp(dns.addr(), "own.example.", RecordType::A).await?;
    ensure!(addresses(&own_answer) == [own]);
    Ok(())
}

#[tokio::test]
async fn a_dns_server_fails_as_often_as_it_is_told_to_and_moves_names() -> Result<()> {
    let (before, after) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2));
    let dns = DnsServer::start(Zone::new().name(HOST, [before])).await?;
    let addr = dns.addr();
    for (trouble, code) in [
        (Trouble::ServFail, ResponseCode::ServFail),
        (Trouble::NxDomain, ResponseCode::NXDomain),
    ] {
        dns.trouble(HOST, trouble, 1);
        let failed = ask_udp(addr, "edition.cnn.com.", RecordType::A).await?;
        ensure!(failed.metadata.response_code == code);
    }
    ensure!(dns.troubled(HOST) == 2);
    dns.lead(HOST, [after]);
    let found = ask_udp(addr, "edition.cnn.com.", RecordType::A).await?;
    ensure!(addresses(&found) == [after]);

    dns.trouble(HOST, Trouble::Silence, 1);
    let lost = timeout(SHORT, ask_udp(addr, "edition.cnn.com.", RecordType::A)).await;
    ensure!(lost.is_err(), "{lost:?}");
    let found = ask_udp(addr, "edition.cnn.com.", RecordType::A).await?;
    ensure!(addresses(&found) == [after]);
    ensure!(dns.troubled(HOST) == 3);
    Ok(())
}
