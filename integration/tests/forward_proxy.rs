//! `egressctl run --forward-proxy`: what `http_proxy` and `https_proxy` ask for, and everything else refused.

mod common;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use egress_integration::{
    egressctl::{Builder, Running},
    probe,
    silent_port::SilentPort,
    stand_in::{Listener, StandIn},
};

use common::{
    HOST, LogLine, SHARED, SIMPLE, SOON, Trusted, assert_originated, dns, egressctl, entry_with,
    eventually, head, log_of, only, request, route, rule, tunnel,
};

/// The page's entry: originated on port 80, passed through on port 443.
fn rules() -> String {
    let ports = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}, \
                 {number: 443, name: https, protocol: HTTPS}]";
    let policy = "{portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}";
    entry_with(HOST, &format!("resolution: DNS, {ports}")) + &rule(HOST, policy)
}

fn builder(trusted: &Trusted, rules: &str) -> Builder {
    trusted
        .egressctl(rules)
        .arg("--forward-proxy")
        .arg("127.0.0.1:0")
}

/// A site of [`HOST`] and a forward proxy that leads there.
async fn started(trusted: &Trusted) -> Result<(StandIn, Running)> {
    let site = trusted.site([HOST]).await?;
    let proxy = builder(trusted, &rules())
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    Ok((site, proxy))
}

/// Sends these lines; returns the answer's status line and all of the rest.
async fn ask(proxy: &Running, lines: &[&str]) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(proxy.forward_proxy()?).await?;
    stream.write_all(request(lines).as_bytes()).await?;
    let head = head(&mut stream).await?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let named = name.eq_ignore_ascii_case("content-length");
        named.then(|| value.parse::<usize>().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    timeout(SOON, stream.read_exact(&mut body)).await??;
    let status = head.lines().next().unwrap_or_default().to_owned();
    Ok((status, head + &String::from_utf8(body)?))
}

/// The log line of a CONNECT.
async fn log_of_connect(proxy: &Running, authority: &str) -> Result<LogLine> {
    let wanted = format!(" authority={authority} ");
    let line = proxy.wait_for_log(
        |line| line.contains("\"CONNECT ") && line.contains(&wanted),
        SOON,
    );
    LogLine::parse(&line.await?)
}

#[tokio::test]
async fn a_url_is_originated_as_if_its_host_had_been_called() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, proxy) = started(&trusted).await?;
    for (line, host, path) in [
        (
            "GET http://edition.cnn.com/a HTTP/1.1",
            "edition.cnn.com",
            "/a",
        ),
        (
            "GET http://edition.cnn.com:80/b HTTP/1.1",
            "edition.cnn.com:80",
            "/b",
        ),
        (
            "GET HTTP://EDITION.cnn.com./c HTTP/1.1",
            "edition.cnn.com",
            "/c",
        ),
        (
            "GET http://edition.cnn.com/d HTTP/1.0",
            "edition.cnn.com",
            "/d",
        ),
        (
            "GET http://edition.cnn.com HTTP/1.1",
            "edition.cnn.com",
            "/",
        ),
        // Some programs ask so for what they would speak TLS to. Nothing of theirs is TLS, so it is originated.
        (
            "GET https://edition.cnn.com/g HTTP/1.1",
            "edition.cnn.com",
            "/g",
        ),
        (
            "GET https://edition.cnn.com:443/h HTTP/1.0",
            "edition.cnn.com",
            "/h",
        ),
        // As a server would get it; it is decided by its host.
        ("GET /f HTTP/1.1", "edition.cnn.com", "/f"),
    ] {
        let host = format!("Host: {host}");
        let (status, answer) = ask(&proxy, &[line, &host]).await?;
        ensure!(status.ends_with(" 200 OK"), "{line}: {answer}");
        let seen = only(&site)?;
        assert_originated(&seen, HOST, HOST);
        assert_eq!(seen.path, path, "{line}");
    }
    log_of(&proxy, "/a").await?.assert_egress([
        ("action", "originate"),
        ("rule", "default/edition-cnn-com"),
        ("service_entry", "default/edition-cnn-com"),
        ("cluster", SHARED),
        ("transport_socket", "envoy.transport_sockets.tls"),
        ("tls_mode", "SIMPLE"),
        ("sni", HOST),
        ("verify", HOST),
        ("target", "edition.cnn.com:443"),
        ("authority", HOST),
    ]);
    // The log tells it from one of plain HTTP.
    log_of(&proxy, "/g").await?.assert_egress([
        ("action", "originate"),
        ("rule", "default/edition-cnn-com"),
        ("service_entry", "default/edition-cnn-com"),
        ("cluster", SHARED),
        ("transport_socket", "envoy.transport_sockets.tls"),
        ("tls_mode", "SIMPLE"),
        ("sni", HOST),
        ("verify", HOST),
        ("target", "edition.cnn.com:443"),
        ("authority", "https://edition.cnn.com"),
    ]);
    assert_eq!(site.counts(Listener::Plain).connections, 0);
    Ok(())
}

/// A URL of TLS is never sent on in plaintext.
#[tokio::test]
async fn a_url_of_tls_gets_tls_or_nothing() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, silent) = (
        trusted.site(["api.example.com"]).await?,
        SilentPort::start().await?,
    );
    let rules = entry_with(
        "plain.example.com",
        "resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: odd, protocol: HTTP, targetPort: 8080}]",
    ) + &rule("plain.example.com", "{tls: {mode: DISABLE}}")
        + &entry_with(
            "tls.example.com",
            "resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]",
        )
        + &entry_with(
            "api.example.com",
            "resolution: DNS, ports: [{number: 8000, name: http, protocol: HTTP, targetPort: 8443}]",
        )
        + &rule("api.example.com", SIMPLE);
    let mut builder = builder(&trusted, &rules);
    for (host, port) in [
        ("plain.example.com", 80),
        ("plain.example.com", 8080),
        ("tls.example.com", 443),
    ] {
        builder = builder.connect_to(&route(host, port, silent.addr()));
    }
    let proxy = builder
        .connect_to(&route("api.example.com", 8443, site.tls_addr()))
        .start()
        .await?;
    for (url, reason) in [
        ("https://plain.example.com/", "other_protocol"),
        ("https://plain.example.com:80/", "other_protocol"),
        ("https://plain.example.com:8080/", "unknown_port"),
        ("https://tls.example.com/", "other_protocol"),
        ("https://api.example.com/", "unknown_port"),
        ("https://unknown.example.com/", "unknown_host"),
    ] {
        let line = format!("GET {url} HTTP/1.1");
        let (status, answer) = ask(&proxy, &[&line, "Host: api.example.com"]).await?;
        assert_eq!(status, "HTTP/1.1 403 Forbidden", "{url}: {answer}");
        let wanted = format!("\r\n\r\negress_{reason}: ");
        ensure!(answer.contains(&wanted), "{url}: {answer}");
    }
    silent.assert_silent().await?;
    ensure!(site.seen().is_empty());
    let lines = [
        "GET https://api.example.com:8443/ HTTP/1.1",
        "Host: api.example.com",
    ];
    let (status, answer) = ask(&proxy, &lines).await?;
    assert_eq!(status, "HTTP/1.1 200 OK", "{answer}");
    assert_originated(&only(&site)?, "api.example.com:8443", "api.example.com");
    Ok(())
}

#[tokio::test]
async fn the_url_counts_and_not_the_host_header() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, proxy) = started(&trusted).await?;
    let good = [
        "GET http://edition.cnn.com/url HTTP/1.1",
        "Host: evil.example",
    ];
    let (status, answer) = ask(&proxy, &good).await?;
    assert_eq!(status, "HTTP/1.1 200 OK", "{answer}");
    assert_originated(&only(&site)?, HOST, HOST);
    assert_eq!(log_of(&proxy, "/url").await?.egress("authority"), HOST);

    for line in [
        "GET http://evil.example/ HTTP/1.1",
        "CONNECT evil.example:443 HTTP/1.1",
    ] {
        let (status, answer) = ask(&proxy, &[line, "Host: edition.cnn.com:443"]).await?;
        assert_eq!(status, "HTTP/1.1 403 Forbidden", "{line}: {answer}");
        ensure!(answer.contains("\r\n\r\negress_unknown_host: "), "{answer}");
    }
    ensure!(site.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn what_is_for_the_proxy_does_not_reach_the_server() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, proxy) = started(&trusted).await?;
    let lines = [
        "GET http://edition.cnn.com/ HTTP/1.1",
        "Host: edition.cnn.com",
        "Proxy-Authorization: Basic dXNlcjpwYXNzd29yZA==",
        "Proxy-Connection: keep-alive",
        "x-egress-forward: shared|DISABLE||bytes",
    ];
    let (status, answer) = ask(&proxy, &lines).await?;
    assert_eq!(status, "HTTP/1.1 200 OK", "{answer}");
    let seen = only(&site)?;
    assert_originated(&seen, HOST, HOST);
    for (name, _) in &seen.headers {
        ensure!(!name.starts_with("proxy-"), "{seen}");
    }
    Ok(())
}

#[tokio::test]
async fn connect_carries_the_applications_own_tls() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, proxy) = started(&trusted).await?;
    for lines in [
        &[
            "CONNECT edition.cnn.com:443 HTTP/1.1",
            "Host: edition.cnn.com:443",
        ][..],
        &[
            "CONNECT edition.cnn.com:443 HTTP/1.1",
            "Host: edition.cnn.com:443",
            "User-Agent: curl/8.14.1",
            "Proxy-Connection: Keep-Alive",
            "Proxy-Authorization: Basic dXNlcjpwYXNzd29yZA==",
        ],
        // The line counts and not the header, and old programs write no header.
        &["CONNECT edition.cnn.com:443 HTTP/1.1", "Host: evil.example"],
        &["CONNECT edition.cnn.com:443 HTTP/1.0"],
        &["CONNECT EDITION.cnn.com.:443 HTTP/1.1", "Host: x"],
    ] {
        let (end, _running) = tunnel(proxy.forward_proxy()?, lines)
            .await
            .context(lines[0])?;
        let answer = probe::get_tls(end, HOST, HOST, "/own", &trusted.ca.pem()).await?;
        assert_eq!(answer.answer.status, 200);
        let seen = only(&site)?;
        assert_eq!(seen.listener, Listener::Tls);
        assert_eq!(seen.sni.as_deref(), Some(HOST));
        // Nothing of ours: what was sent is what came.
        assert_eq!(seen.x_forwarded_proto, None);
    }
    let log = log_of_connect(&proxy, "edition.cnn.com:443").await?;
    assert_eq!(log.istio("response_code"), "200");
    log.assert_egress([
        ("action", "passthrough"),
        ("rule", "default/edition-cnn-com"),
        ("service_entry", "default/edition-cnn-com"),
        ("cluster", "shared|DISABLE||bytes"),
        ("transport_socket", "envoy.transport_sockets.raw_buffer"),
        ("target", "edition.cnn.com:443"),
        ("authority", "edition.cnn.com:443"),
    ]);
    Ok(())
}

#[tokio::test]
async fn everything_else_is_refused_with_a_reason() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, silent) = (trusted.site([HOST]).await?, SilentPort::start().await?);
    let proxy = builder(&trusted, &rules())
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    let (admin, here) = (proxy.admin()?, silent.addr());
    let own = proxy.forward_proxy()?;
    let mut refused = vec![
        (format!("GET http://{admin}/quitquitquit"), "unknown_host"),
        (
            format!("GET http://localhost:{}/", admin.port()),
            "unknown_host",
        ),
        (format!("CONNECT {admin}"), "unknown_host"),
        (format!("GET http://{here}/"), "unknown_host"),
        (format!("CONNECT {here}"), "unknown_host"),
        (format!("GET http://{own}/"), "unknown_host"),
        (format!("CONNECT {own}"), "unknown_host"),
        // Where HOST really is.
        (format!("CONNECT {}", site.tls_addr()), "unknown_host"),
        (format!("CONNECT {HOST}:{}", here.port()), "unknown_port"),
        (
            format!("GET http://{HOST}:{}/", here.port()),
            "unknown_port",
        ),
    ];
    refused.extend(
        [
            ("GET http://127.0.0.1/", "unknown_host"),
            ("CONNECT 127.0.0.1:443", "unknown_host"),
            (
                "GET http://169.254.169.254/latest/meta-data/",
                "unknown_host",
            ),
            ("CONNECT 169.254.169.254:80", "unknown_host"),
            ("GET http://[::1]/", "unknown_host"),
            ("CONNECT [::1]:443", "unknown_host"),
            ("GET http://other.example/", "unknown_host"),
            ("CONNECT other.example:443", "unknown_host"),
            ("CONNECT cnn.com:443", "unknown_host"),
            ("CONNECT www.edition.cnn.com:443", "unknown_host"),
            ("CONNECT edition.cnn.com:22", "unknown_port"),
            // Its port 443 is for the application's TLS.
            ("GET http://edition.cnn.com:443/", "other_protocol"),
            ("GET https://other.example/", "unknown_host"),
        ]
        .map(|(line, reason)| (line.to_owned(), reason)),
    );
    for (line, reason) in refused {
        // A header that names a good host changes nothing, nor does one of ours.
        let (line, forged) = (
            format!("{line} HTTP/1.1"),
            "x-egress-forward: shared|DISABLE||bytes",
        );
        let (status, answer) = ask(&proxy, &[&line, "Host: edition.cnn.com:443", forged]).await?;
        assert_eq!(status, "HTTP/1.1 403 Forbidden", "{line}: {answer}");
        let wanted = format!("\r\n\r\negress_{reason}: ");
        ensure!(answer.contains(&wanted), "{line}: {answer}");
    }
    let log = log_of_connect(&proxy, "169.254.169.254:80").await?;
    assert_eq!(log.istio("response_code"), "403");
    assert_eq!(log.istio("response_code_details"), "egress_unknown_host");
    log.assert_egress([
        ("action", "reject"),
        ("reason", "unknown_host"),
        ("authority", "169.254.169.254:80"),
    ]);
    // What is no request of a proxy at all.
    for line in [
        "CONNECT edition.cnn.com HTTP/1.1",
        "CONNECT user@edition.cnn.com:443 HTTP/1.1",
        "CONNECT https://edition.cnn.com/ HTTP/1.1",
        "GET ftp://edition.cnn.com/ HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        let (status, answer) = ask(&proxy, &[line, "Host: edition.cnn.com"]).await?;
        // What is not HTTP/1.1 is answered as HTTP/1.0.
        ensure!(status.ends_with(" 400 Bad Request"), "{line}: {answer}");
    }
    silent.assert_silent().await?;
    let tls = site.counts(Listener::Tls);
    ensure!(tls.connections == 0, "{tls:?}");
    assert_eq!(proxy.admin_get("/ready").await?.status, 200);
    Ok(())
}

/// A plain server that answers nothing, and what it heard of each connection that has ended.
async fn plain_server() -> Result<(SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>, JoinSet<()>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (addr, ended) = (listener.local_addr()?, Arc::default());
    let (heard, mut running) = (Arc::clone(&ended), JoinSet::new());
    running.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::clone(&heard);
            connections.spawn(async move {
                let mut bytes = Vec::new();
                let _ended = stream.read_to_end(&mut bytes).await;
                heard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(bytes);
            });
        }
    });
    Ok((addr, ended, running))
}

/// Where TLS is passed through, nothing else is: a plain server behind the port hears nothing.
#[tokio::test]
async fn connect_carries_nothing_but_tls() -> Result<()> {
    let trusted = Trusted::new()?;
    let (plain, heard, _running) = plain_server().await?;
    let tls = "tls.example";
    let ports = "resolution: DNS, ports: [{number: 8443, name: tls, protocol: TLS}]";
    let proxy = builder(&trusted, &(rules() + &entry_with(tls, ports)))
        .connect_to(&route(HOST, 443, plain))
        .connect_to(&route(tls, 8443, plain))
        .start()
        .await?;
    let said: [&[u8]; 8] = [
        b"GET /plaintext HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"\x16GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfcGET / HTTP/1.1\r\n\r\n",
        b"\x17\x03\x03\x00\x05hello",
        b"\x15\x03\x03\x00\x02\x01\x00",
    ];
    let mut connections = 0;
    for authority in ["edition.cnn.com:443", "tls.example:8443"] {
        let connect = request(&[
            &format!("CONNECT {authority} HTTP/1.1"),
            &format!("Host: {authority}"),
        ]);
        let said = if authority.starts_with(HOST) {
            &said[..]
        } else {
            &said[..1]
        };
        for bytes in said.iter().copied() {
            // With the answer awaited, at once and byte by byte; and without awaiting it.
            for way in 0..3 {
                connections += 1;
                let mut stream = TcpStream::connect(proxy.forward_proxy()?).await?;
                stream.set_nodelay(true)?;
                let sent = async {
                    if way == 2 {
                        let all = [connect.as_bytes(), bytes].concat();
                        return Ok(stream.write_all(&all).await?);
                    }
                    stream.write_all(connect.as_bytes()).await?;
                    let head = head(&mut stream).await?;
                    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
                    if way == 0 {
                        return Ok(stream.write_all(bytes).await?);
                    }
                    for byte in bytes {
                        // It may be closed before the last.
                        if stream.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                    }
                    Ok(())
                };
                sent.await.with_context(|| format!("{bytes:?} {way}"))?;
                let mut rest = Vec::new();
                let ended = timeout(SOON, stream.read_to_end(&mut rest)).await;
                ensure!(ended.is_ok(), "{bytes:?} {way}: it is not closed");
                let rest = String::from_utf8_lossy(&rest).into_owned();
                let quiet = rest.is_empty() || way == 2;
                ensure!(quiet, "{bytes:?} {way}: {rest}");
            }
        }
        let log = log_of_connect(&proxy, authority).await?;
        assert_eq!(log.egress("action"), "reject", "{log:#?}");
        assert_eq!(log.egress("reason"), "other_protocol", "{log:#?}");
        assert_eq!(log.egress("target"), authority, "{log:#?}");
    }
    // Who says nothing is waited for, and is heard once it begins TLS.
    let ended = || -> Vec<Vec<u8>> {
        let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.clone()
    };
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03random";
    let (end, _tunnel) = tunnel(
        proxy.forward_proxy()?,
        &["CONNECT edition.cnn.com:443 HTTP/1.1", "Host: x"],
    )
    .await?;
    let mut stream = TcpStream::connect(end).await?;
    for byte in hello {
        stream.write_all(&[*byte]).await?;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    stream.shutdown().await?;
    let whole = async || Ok(ended().iter().any(|bytes| bytes == hello));
    eventually("TLS is carried", whole).await?;
    let all = ended();
    ensure!(all.len() <= connections + 1, "{all:?}");
    let others = all.iter().filter(|bytes| *bytes != hello);
    for bytes in others {
        ensure!(bytes.is_empty(), "the server heard {bytes:?}");
    }
    Ok(())
}

/// Behind a wildcard it is DNS that says where to, and it may not say just anything.
#[tokio::test]
async fn connect_below_a_wildcard_reaches_nothing_private() -> Result<()> {
    const NAME: &str = "sub.example.com";
    let trusted = Trusted::new()?;
    let (site, dns) = (trusted.site(["*.example.com"]).await?, dns().await?);
    let port = site.tls_addr().port();
    let ask = format!("CONNECT {NAME}:443 HTTP/1.1");
    let spec = |location: &str| {
        let ports = format!("{{number: 443, name: tls, protocol: TLS, targetPort: {port}}}");
        let spec = format!("resolution: DYNAMIC_DNS, {location} ports: [{ports}]");
        entry_with("*.example.com", &spec)
    };
    let resolver = dns.addr().to_string();
    let public = builder(&trusted, &spec(""))
        .arg("--resolver")
        .arg(&resolver);
    let proxy = public.start().await?;
    let (status, answer) = self::ask(&proxy, &[&ask, "Host: x"]).await?;
    assert_eq!(status, "HTTP/1.1 403 Forbidden", "{answer}");
    let log = log_of_connect(&proxy, "sub.example.com:443").await?;
    assert_eq!(log.egress("reason"), "private_address");
    ensure!(dns.queries(NAME) > 0);
    assert_eq!(site.counts(Listener::Tls).connections, 0);

    // A service of the mesh may be private, and then the tunnel is there.
    let private = builder(&trusted, &spec("location: MESH_INTERNAL,"));
    let proxy = private.arg("--resolver").arg(&resolver).start().await?;
    let (end, _running) = tunnel(proxy.forward_proxy()?, &[&ask, "Host: x"]).await?;
    let answer = probe::get_tls(end, NAME, NAME, "/", &trusted.ca.pem()).await?;
    assert_eq!(answer.answer.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_tunnel_that_does_not_come_about_has_a_reason() -> Result<()> {
    let trusted = Trusted::new()?;
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await?
        .local_addr()?;
    let proxy = builder(&trusted, &rules())
        .connect_to(&route(HOST, 443, closed))
        .start()
        .await?;
    let lines = ["CONNECT edition.cnn.com:443 HTTP/1.1", "Host: x"];
    let (status, answer) = ask(&proxy, &lines).await?;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable", "{answer}");
    ensure!(answer.contains("egress_refused: "), "{answer}");
    let log = log_of_connect(&proxy, "edition.cnn.com:443").await?;
    assert_eq!(log.egress("action"), "passthrough");
    assert_eq!(log.egress("reason"), "refused");
    Ok(())
}

/// Service ports are listened on beside the proxy where they are named, and not otherwise.
#[tokio::test]
async fn service_ports_are_there_where_they_are_named() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let proxy = builder(&trusted, &rules())
        .port(80, 0)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    ensure!(proxy.listener(443).is_err());
    for address in [proxy.listener(80)?, proxy.forward_proxy()?] {
        assert_eq!(probe::get(address, HOST, "/").await?.status, 200);
        assert_originated(&only(&site)?, HOST, HOST);
    }
    Ok(())
}

#[tokio::test]
async fn an_open_proxy_does_not_start() -> Result<()> {
    let trusted = Trusted::new()?;
    let file = trusted.file("rules.yaml", &rules())?;
    for command in [&["run"][..], &["render", "envoy"]] {
        let mut args: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
        args.extend(["-f".to_owned(), file.display().to_string()]);
        args.extend(["--forward-proxy", "127.0.0.1:0"].map(str::to_owned));
        args.extend(["--outbound-traffic-policy", "ALLOW_ANY"].map(str::to_owned));
        let output = egressctl(&trusted, args).await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        ensure!(stderr.contains("would be an open proxy"), "{stderr}");
        ensure!(output.stdout.is_empty());
    }
    Ok(())
}
