//! Identity bound to a connection: a server that takes a login for one of the connection must not take the next caller
//! for the first one.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use egress_integration::{
    connect_proxy::ConnectProxy,
    dns::{DnsServer, Zone},
    egressctl::Builder,
    netns::{self, APPLICATION, as_application},
    pki::Leaf,
    probe,
    scripted::{Asked, Reply, Scripted},
    silent_port::SilentPort,
};

use common::{HOST, SIMPLE, SOON, Trusted, entry, head, only, request, route, rule, tunnel};

/// The traffic policies of a host that shares a cluster, and of one that has its own.
const KINDS: [&str; 2] = [SIMPLE, "{tls: {mode: SIMPLE, sni: edition.cnn.com}}"];

/// A server that lets in whoever has logged in on the connection, by the name behind the scheme, and nobody else.
async fn server(trusted: &Trusted, at: Ipv4Addr) -> Result<Scripted> {
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let users = Mutex::<BTreeMap<usize, String>>::default();
    let script = move |asked: &Asked| {
        let mut users = users.lock().unwrap_or_else(PoisonError::into_inner);
        let scheme = asked
            .header("authorization")
            .and_then(|it| it.rsplit_once(' '));
        if let Some((_, user)) = scheme {
            users.insert(asked.connection, user.to_owned());
        }
        match users.get(&asked.connection) {
            Some(user) => Reply::Answer(200, user.clone()),
            None => Reply::Answer(401, "nobody".to_owned()),
        }
    };
    Scripted::start(&certificate, (at, 0).into(), script).await
}

fn rules(policy: &str, port: u16) -> String {
    entry(HOST, port) + &rule(HOST, policy)
}

/// A client's connection, which stays open.
struct Client {
    stream: TcpStream,
    /// What stands before the path: nothing, or the beginning of a URL.
    origin: &'static str,
}

impl Client {
    async fn connect(to: SocketAddr, origin: &'static str) -> Result<Self> {
        let stream = TcpStream::connect(to).await?;
        Ok(Client { stream, origin })
    }

    /// Asks with this `Authorization`, if any. Returns whom the server takes it for.
    async fn ask(&mut self, authorization: &[&str]) -> Result<String> {
        let line = format!("GET {}/ HTTP/1.1", self.origin);
        let host = format!("Host: {HOST}");
        let credentials = authorization.iter();
        let credentials: Vec<String> = credentials
            .map(|it| format!("Authorization: {it}"))
            .collect();
        let mut lines = vec![line.as_str(), &host];
        lines.extend(credentials.iter().map(String::as_str));
        self.stream.write_all(request(&lines).as_bytes()).await?;
        let head = head(&mut self.stream).await?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let named = name.eq_ignore_ascii_case("content-length");
            named.then(|| value.parse::<usize>().ok())?
        });
        let mut body = vec![0; length.with_context(|| head.clone())?];
        timeout(SOON, self.stream.read_exact(&mut body)).await??;
        let body = String::from_utf8(body)?;
        let refused = head.starts_with("HTTP/1.1 401 ") && body == "nobody";
        ensure!(refused || head.starts_with("HTTP/1.1 200 "), "{head}{body}");
        Ok(body)
    }
}

/// Proves that nobody is taken for somebody else, where `connect` makes a client's connection.
async fn nobody_is_taken_for_another(
    connect: impl AsyncFn() -> Result<Client>,
    server: &Scripted,
) -> Result<()> {
    let (mut alice, mut bob) = (connect().await?, connect().await?);
    assert_eq!(alice.ask(&[]).await?, "nobody");
    assert_eq!(alice.ask(&["nTLM alice"]).await?, "alice");
    // Her connection is free now, and is not his.
    assert_eq!(bob.ask(&[]).await?, "nobody");
    // It is hers, also where she says nothing.
    assert_eq!(alice.ask(&[]).await?, "alice");
    assert_eq!(connect().await?.ask(&[]).await?, "nobody");
    assert_eq!(bob.ask(&["negotiate bob"]).await?, "bob");
    assert_eq!(alice.ask(&[]).await?, "alice");
    assert_eq!(bob.ask(&[]).await?, "bob");
    // When both have gone, nobody inherits what they had.
    drop((alice, bob));
    for _ in 0..5 {
        assert_eq!(connect().await?.ask(&[]).await?, "nobody");
    }
    // Two have logged in, so three connections serve all: those who have not share one.
    let asked = server.asked();
    let with = |name: &str| {
        let asked = asked.iter();
        asked
            .filter(|it| {
                it.header("authorization")
                    .is_some_and(|it| it.ends_with(name))
            })
            .map(|it| it.connection)
            .collect::<BTreeSet<_>>()
    };
    let connections: BTreeSet<usize> = asked.iter().map(|it| it.connection).collect();
    assert_eq!(connections.len(), 3, "{asked:#?}");
    assert_eq!((with("alice").len(), with("bob").len()), (1, 1));
    Ok(())
}

fn started(trusted: &Trusted, rules: &str, server: &Scripted) -> Builder {
    let builder = trusted.egressctl(rules).port(80, 0);
    let port = server.addr().port();
    builder.connect_to(&route(HOST, port, server.addr()))
}

#[tokio::test]
async fn a_login_is_its_clients_alone() -> Result<()> {
    for policy in KINDS {
        let trusted = Trusted::new()?;
        let server = server(&trusted, Ipv4Addr::LOCALHOST).await?;
        let rules = rules(policy, server.addr().port());
        let proxy = started(&trusted, &rules, &server).start().await?;
        let http = proxy.listener(80)?;
        nobody_is_taken_for_another(async || Client::connect(http, "").await, &server).await?;
    }
    Ok(())
}

#[tokio::test]
async fn so_it_is_through_a_forward_proxy() -> Result<()> {
    let trusted = Trusted::new()?;
    let plaintext = SilentPort::start().await?;
    for policy in KINDS {
        let server = server(&trusted, Ipv4Addr::LOCALHOST).await?;
        let rules = rules(policy, server.addr().port());
        let proxy = started(&trusted, &rules, &server)
            .connect_to(&route(HOST, 80, plaintext.addr()))
            .arg("--forward-proxy")
            .arg("127.0.0.1:0")
            .start()
            .await?;
        let to = proxy.forward_proxy()?;
        let by_url = async || Client::connect(to, "http://edition.cnn.com").await;
        nobody_is_taken_for_another(by_url, &server).await?;
    }
    // And within CONNECT.
    let server = server(&trusted, Ipv4Addr::LOCALHOST).await?;
    let rules = rules(SIMPLE, server.addr().port());
    let proxy = started(&trusted, &rules, &server)
        .arg("--forward-proxy")
        .arg("127.0.0.1:0")
        .start()
        .await?;
    let to = proxy.forward_proxy()?;
    let tunnels = Mutex::<Vec<_>>::default();
    let within = async || {
        let (address, running) = tunnel(to, &["CONNECT edition.cnn.com:80 HTTP/1.1"]).await?;
        tunnels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(running);
        Client::connect(address, "").await
    };
    nobody_is_taken_for_another(within, &server).await?;
    plaintext.assert_silent().await
}

#[tokio::test]
async fn so_it_is_through_an_upstream_proxy() -> Result<()> {
    let trusted = Trusted::new()?;
    for policy in KINDS {
        let server = server(&trusted, Ipv4Addr::LOCALHOST).await?;
        let port = server.addr().port();
        let to = [(format!("{HOST}:{port}"), server.addr())];
        let upstream = ConnectProxy::start(to, None).await?;
        let proxy = trusted.egressctl(&rules(policy, port)).port(80, 0);
        let proxy = proxy.arg("--upstream-proxy");
        let proxy = proxy
            .arg(format!("http://{}", upstream.addr()))
            .start()
            .await?;
        let http = proxy.listener(80)?;
        nobody_is_taken_for_another(async || Client::connect(http, "").await, &server).await?;
        assert_eq!(upstream.asked().len(), 3);
    }
    Ok(())
}

#[test]
fn so_it_is_for_captured_connections() -> Result<()> {
    const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
    netns::run(&[SITE.into()], &[(HOST, SITE.into())], async || {
        let trusted = Trusted::new()?;
        let server = server(&trusted, SITE).await?;
        let dns = DnsServer::start(Zone::new().name(HOST, [SITE])).await?;
        let rules = rules(SIMPLE, server.addr().port());
        let builder = trusted.egressctl(&rules).arg("--capture").arg("15001");
        let builder = builder.arg("--resolver").arg(dns.addr().to_string());
        let _proxy = builder.start().await?;
        let up = format!("capture up --to 15001 --uid {APPLICATION}");
        let up = common::egressctl(&trusted, up.split(' ')).await?;
        ensure!(up.status.success(), "{up:?}");
        let curl = async |args: &[&str]| -> Result<String> {
            let mut curl = as_application("curl");
            curl.arg("-sS").args(args);
            let output = timeout(SOON, curl.output()).await??;
            Ok(String::from_utf8(output.stdout)?)
        };
        let (url, alice) = ("http://edition.cnn.com/", "Authorization: NTLM alice");
        let both = curl(&["-H", alice, url, "--next", url]).await?;
        assert_eq!(both, "alicealice");
        assert_eq!(curl(&[url]).await?, "nobody");
        Ok(())
    })
}

#[tokio::test]
async fn however_the_login_is_written() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, Ipv4Addr::LOCALHOST).await?;
    let rules = rules(SIMPLE, server.addr().port());
    let proxy = started(&trusted, &rules, &server).start().await?;
    let http = proxy.listener(80)?;
    let connect = async || Client::connect(http, "").await;
    for login in [
        &["NTLM alice"][..],
        &["ntlm alice"],
        &["Negotiate alice"],
        &["NEGOTIATE\talice alice"],
        &["Basic alice, NTLM alice"],
        &["NTLM alice", "Basic alice"],
    ] {
        assert_eq!(connect().await?.ask(login).await?, "alice", "{login:?}");
        assert_eq!(connect().await?.ask(&[]).await?, "nobody", "{login:?}");
    }
    Ok(())
}

/// Rules whose DestinationRule has annotations.
fn annotated(policy: &str, port: u16, notes: &str) -> String {
    rules(policy, port).replace(
        "kind: DestinationRule\nmetadata: {",
        &format!("kind: DestinationRule\nmetadata: {{annotations: {{{notes}}}, "),
    )
}

#[tokio::test]
async fn an_annotation_gives_every_client_connections_of_its_own() -> Result<()> {
    for policy in KINDS {
        for (notes, expected) in [("", 1), ("egressctl/connections: per-client", 3)] {
            let trusted = Trusted::new()?;
            let server = server(&trusted, Ipv4Addr::LOCALHOST).await?;
            let rules = annotated(policy, server.addr().port(), notes);
            let proxy = started(&trusted, &rules, &server).start().await?;
            let http = proxy.listener(80)?;
            let mut clients = Vec::new();
            for _ in 0..3 {
                clients.push(Client::connect(http, "").await?);
            }
            for _ in 0..2 {
                for client in &mut clients {
                    assert_eq!(client.ask(&[]).await?, "nobody");
                }
            }
            let asked = server.asked();
            let connections: BTreeSet<usize> = asked.iter().map(|it| it.connection).collect();
            assert_eq!(connections.len(), expected, "{policy} {notes}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_annotation_keeps_from_servers_whom_a_request_was_forwarded_for() -> Result<()> {
    for policy in KINDS {
        for (notes, expected) in [
            ("", Some("192.0.2.1, 192.0.2.2")),
            ("egressctl/x-forwarded-for: remove", None),
        ] {
            let trusted = Trusted::new()?;
            let site = trusted.site([HOST]).await?;
            let rules = annotated(policy, site.tls_addr().port(), notes);
            let to = route(HOST, site.tls_addr().port(), site.tls_addr());
            let proxy = trusted.egressctl(&rules).port(80, 0).connect_to(&to);
            let proxy = proxy.start().await?;
            let headers = [
                ("x-forwarded-for", "192.0.2.1, 192.0.2.2"),
                ("x-other", "here"),
            ];
            let http = proxy.listener(80)?;
            let answer = probe::get_with(http, HOST, "/", &headers).await?;
            assert_eq!(answer.status, 200);
            let seen = only(&site)?;
            assert_eq!(seen.header("x-forwarded-for"), expected, "{seen}");
            assert_eq!(seen.header("x-other"), Some("here"));
            // Nobody adds it.
            assert_eq!(probe::get(http, HOST, "/").await?.status, 200);
            assert_eq!(only(&site)?.header("x-forwarded-for"), None);
        }
    }
    Ok(())
}
