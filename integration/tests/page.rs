//! The three steps of Istio's task page, with its YAML as it stands there.

mod common;

use anyhow::Result;

use egress_integration::{
    egressctl::{Builder, Egressctl},
    pki::Leaf,
    probe,
    stand_in::{Listener, StandIn, StandInConfig},
};

use common::{
    HOST, LogLine, SHARED, SOON, Stage, Trusted, assert_no_leak, assert_originated, log_of, only,
    route, scenario,
};

#[tokio::test]
async fn without_origination_the_answer_is_a_redirect_to_https() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let proxy = Egressctl::builder()
        .rules(scenario("cnn-access.yaml"))
        .env("SSL_CERT_FILE", trusted.bundle())
        .port(80, 0)
        .port(443, 0)
        .connect_to(&route(HOST, 80, site.plain_addr()))
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;

    let answer = probe::get(proxy.listener(80)?, HOST, "/politics").await?;
    assert_eq!(answer.status, 301);
    assert_eq!(
        answer.header("location"),
        Some("https://edition.cnn.com/politics")
    );
    let seen = only(&site)?;
    assert_eq!(seen.listener, Listener::Plain);
    assert_eq!(seen.host, HOST);
    assert_eq!(seen.x_forwarded_proto.as_deref(), Some("http"));
    assert_no_leak(&seen);
    log_of(&proxy, "/politics").await?.assert_egress([
        ("action", "forward"),
        ("service_entry", "default/edition-cnn-com"),
        ("cluster", "shared|DISABLE||http1"),
        ("transport_socket", "envoy.transport_sockets.raw_buffer"),
        ("target", "edition.cnn.com:80"),
        ("authority", HOST),
    ]);

    // What a client that follows redirects does next.
    let https = proxy.listener(443)?;
    let tls = probe::get_tls(https, HOST, HOST, "/politics", &trusted.ca.pem()).await?;
    assert_eq!(tls.answer.status, 200);
    assert_eq!(only(&site)?.listener, Listener::Tls);

    assert!(proxy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn with_origination_200_is_the_first_and_only_answer() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let stage = Stage::start(originating(&trusted), site, [HOST]).await?;

    let answer = stage.get(HOST, "/politics").await?;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, "/politics at edition.cnn.com over TLSv1.3\n");
    assert_eq!(answer.header("location"), None);

    let seen = only(&stage.site)?;
    assert_originated(&seen, HOST, HOST);
    assert_eq!(seen.tls_version.as_deref(), Some("TLSv1.3"));
    assert_eq!(seen.alpn.as_deref(), Some("h2"));
    assert_eq!(seen.method, "GET");
    assert_eq!(seen.path, "/politics");
    stage.nothing_in_plaintext().await?;

    let log = stage.log("/politics").await?;
    assert_eq!(log.istio("response_code"), "200");
    assert_eq!(log.istio("response_code_details"), "via_upstream");
    assert_eq!(log.istio("upstream_cluster"), SHARED);
    log.assert_egress([
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
    assert!(stage.proxy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn the_applications_own_https_is_not_touched() -> Result<()> {
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let site = StandIn::start(StandInConfig::new(certificate.clone())).await?;
    let stage = Stage::start(originating(&trusted), site, [HOST]).await?;

    let https = stage.proxy.listener(443)?;
    let tls = probe::get_tls(https, HOST, HOST, "/politics", &trusted.ca.pem()).await?;
    assert_eq!(tls.answer.status, 200);
    assert_eq!(Some(&tls.peer_certificate), certificate.chain().first());
    assert_eq!(tls.alpn.as_deref(), Some("h2"));
    assert_eq!(tls.answer.http_version, "HTTP/2.0");

    let seen = only(&stage.site)?;
    assert_eq!(seen.sni.as_deref(), Some(HOST));
    assert_eq!(seen.alpn.as_deref(), Some("h2"));
    // Nobody has opened it: a proxy that had would have added its own.
    assert_eq!(seen.x_forwarded_proto, None);
    stage.nothing_in_plaintext().await?;

    let line = stage
        .proxy
        .wait_for_log(|line| line.contains("action=passthrough"), SOON);
    let log = LogLine::parse(&line.await?)?;
    assert_eq!(log.istio("requested_server_name"), HOST);
    log.assert_egress([
        ("action", "passthrough"),
        ("rule", "default/edition-cnn-com"),
        ("service_entry", "default/edition-cnn-com"),
        ("cluster", "shared|DISABLE||bytes"),
        ("transport_socket", "envoy.transport_sockets.raw_buffer"),
        ("sni", HOST),
        ("target", "edition.cnn.com:443"),
    ]);
    Ok(())
}

fn originating(trusted: &Trusted) -> Builder {
    Egressctl::builder()
        .rules(scenario("cnn-origination.yaml"))
        .env("SSL_CERT_FILE", trusted.bundle())
}
