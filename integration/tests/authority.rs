//! Whatever a client writes for a host, it reaches the server of that host or none.

mod common;

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use egress_integration::{
    dns::{DnsServer, Zone},
    egressctl::Running,
    netns,
    pki::Leaf,
    probe,
    silent_port::SilentPort,
    stand_in::{Listener, Seen, StandIn, StandInConfig},
};

use common::{
    HOST, SHARED, SOON, Stage, Trusted, assert_no_leak, assert_originated, entry, log_of, only,
    originated, route, rule,
};

/// Ways to name the page's host and port.
const VARIANTS: [&str; 6] = [
    "edition.cnn.com",
    "EDITION.CNN.COM",
    "edition.cnn.com:80",
    "edition.cnn.com.",
    "Edition.CNN.com.:80",
    "edition.cnn.com:443",
];

#[tokio::test]
async fn all_ways_to_write_a_host_reach_the_same_server() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| builder).await?;
    for (at, written) in VARIANTS.into_iter().enumerate() {
        let path = format!("/{at}");
        assert_eq!(stage.get(written, &path).await?.status, 200, "{written}");
        assert_originated(&only(&stage.site)?, HOST, HOST);
        let log = stage.log(&path).await?;
        assert_eq!(log.egress("cluster"), SHARED, "{written}");
        assert_eq!(log.egress("target"), "edition.cnn.com:443", "{written}");
        assert_eq!(log.egress("authority"), written);
    }
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn the_clients_authority_is_kept_where_that_is_asked_for() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| {
        builder.arg("--authority").arg("PRESERVE")
    })
    .await?;
    for (at, written) in VARIANTS.into_iter().enumerate() {
        let path = format!("/{at}");
        assert_eq!(stage.get(written, &path).await?.status, 200, "{written}");
        // Names on the connection are the host's, however the request spells it.
        assert_originated(&only(&stage.site)?, written, HOST);
        let log = stage.log(&path).await?;
        assert_eq!(log.egress("sni"), HOST, "{written}");
        assert_eq!(log.egress("verify"), HOST, "{written}");
    }
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn a_kept_authority_does_not_say_where_to_connect_or_what_to_verify() -> Result<()> {
    let trusted = Trusted::new()?;
    // By DNS and without `--connect-to`: the server is on a port that no client names.
    let (site, dns) = (trusted.site([HOST]).await?, common::dns().await?);
    let port = site.tls_addr().port();
    let proxy = trusted
        .egressctl(&originated(HOST, port))
        .port(80, 0)
        .arg("--resolver")
        .arg(dns.addr().to_string())
        .arg("--authority")
        .arg("PRESERVE")
        .start()
        .await?;
    let http = proxy.listener(80)?;
    for written in VARIANTS {
        assert_eq!(
            probe::get(http, written, "/").await?.status,
            200,
            "{written}"
        );
        assert_originated(&only(&site)?, written, HOST);
    }
    ensure!(site.counts(Listener::Tls).failed_handshakes.is_empty());

    let wrong = common::site(&trusted.ca, &Leaf::for_names(["www.cnn.com"])).await?;
    let proxy = trusted
        .egressctl(&originated(HOST, wrong.tls_addr().port()))
        .port(80, 0)
        .arg("--resolver")
        .arg(dns.addr().to_string())
        .arg("--authority")
        .arg("PRESERVE")
        .start()
        .await?;
    for written in VARIANTS {
        let answer = probe::get(proxy.listener(80)?, written, "/").await?;
        assert_eq!(answer.status, 503, "{written}");
    }
    ensure!(wrong.seen().is_empty(), "{:?}", wrong.seen());
    Ok(())
}

#[tokio::test]
async fn a_kept_authority_is_right_in_a_cluster_of_ones_own_too() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let policy = "{tls: {mode: SIMPLE}, loadBalancer: {simple: ROUND_ROBIN}}";
    let rules = entry(HOST, 443) + &rule(HOST, policy);
    let builder = trusted.egressctl(&rules).arg("--authority").arg("PRESERVE");
    let stage = Stage::start(builder, site, [HOST]).await?;
    for written in VARIANTS {
        assert_eq!(stage.get(written, "/").await?.status, 200, "{written}");
        assert_originated(&only(&stage.site)?, written, HOST);
    }
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn the_request_target_wins_over_the_host_header() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| builder).await?;
    let request = |target: &str, host: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    };
    for target in [
        "http://edition.cnn.com/absolute",
        "http://EDITION.cnn.com:80/absolute",
    ] {
        for host in [HOST, "other.example"] {
            let answer = stage.raw(request(target, host)).await?;
            ensure!(
                answer.starts_with("HTTP/1.1 200 "),
                "{target}, {host}: {answer}"
            );
            let seen = only(&stage.site)?;
            assert_originated(&seen, HOST, HOST);
            assert_eq!(seen.path, "/absolute");
        }
    }
    let answer = stage
        .raw(request("http://other.example/absolute", HOST))
        .await?;
    ensure!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    ensure!(stage.site.seen().is_empty(), "{:?}", stage.site.seen());
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn an_unknown_host_is_refused_with_a_reason() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| builder).await?;
    for (path, host) in [
        ("/other", "other.example"),
        ("/parent", "cnn.com"),
        ("/child", "www.edition.cnn.com"),
        ("/prefix", "xedition.cnn.com"),
        ("/address", "127.0.0.1"),
        ("/six", "[::1]"),
        ("/six-and-port", "[::1]:80"),
    ] {
        let answer = stage.get(host, path).await?;
        assert_eq!(answer.status, 502, "{host}");
        ensure!(
            answer.body.contains("unknown_host"),
            "{host}: {}",
            answer.body
        );
        let log = stage.log(path).await?;
        assert_eq!(log.istio("response_code_details"), "egress_unknown_host");
        log.assert_egress([
            ("action", "reject"),
            ("reason", "unknown_host"),
            ("authority", host),
        ]);
    }
    stage.nothing_at_all().await
}

#[tokio::test]
async fn a_request_without_a_host_that_could_be_one_is_refused() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| builder).await?;
    let requests = [
        "GET /x HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.0\r\n\r\n",
        "GET /x HTTP/1.0\r\nHost:\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: user@edition.cnn.com\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: edition.cnn.com@evil.example\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: edition.cnn.com:\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: edition.cnn.com:80:80\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: edition.cnn.com:99999\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: edition.cnn.com/\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: edition.cnn.com evil.example\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: edition..cnn.com\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: edition.cnn.com\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: evil.example\r\nHost: edition.cnn.com\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: edition.cnn.com\r\nHost: edition.cnn.com\r\nConnection: close\r\n\r\n",
        "CONNECT edition.cnn.com:443 HTTP/1.1\r\nHost: edition.cnn.com\r\nConnection: close\r\n\r\n",
    ];
    // Envoy waits a second behind each refusal for the client to go, so all are sent at once.
    let mut answers = JoinSet::new();
    for request in requests {
        let http = stage.proxy.listener(80)?;
        answers.spawn(async move { (request, probe::raw(http, request.as_bytes(), SOON).await) });
    }
    while let Some(answered) = answers.join_next().await {
        let (request, answer) = answered?;
        let answer = String::from_utf8(answer?)?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(
            matches!(status, "400" | "403" | "404" | "502"),
            "{request:?}: {answer}"
        );
    }
    stage.nothing_at_all().await
}

/// An old client is served when it names its host.
#[tokio::test]
async fn http_1_0_with_a_host_is_originated() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| builder).await?;
    let answer = stage
        .raw("GET /old HTTP/1.0\r\nHost: edition.cnn.com\r\n\r\n")
        .await?;
    ensure!(answer.contains(" 200 OK"), "{answer}");
    assert_originated(&only(&stage.site)?, HOST, HOST);
    Ok(())
}

/// Headers with which a client might steer the filter, a route or Envoy.
fn forged() -> Vec<(&'static str, String)> {
    let mut headers = Vec::new();
    for value in [
        "shared|DISABLE||http1",
        "PassthroughCluster",
        SHARED,
        "",
        "nowhere",
    ] {
        for name in [
            "x-egress-originate",
            "x-egress-forward",
            "X-Egress-Originate",
            "X-EGRESS-FORWARD",
        ] {
            headers.push((name, value.to_owned()));
        }
    }
    for (name, value) in [
        ("x-egress-anything", "1"),
        ("x-envoy-original-dst-host", "127.0.0.1:1"),
        ("X-Envoy-Original-Dst-Host", "127.0.0.1:1"),
        ("x-envoy-original-path", "/forged"),
        ("x-envoy-upstream-alt-stat-name", "forged"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "1"),
        ("x-envoy-decorator-operation", "forged"),
        ("x-envoy-internal", "true"),
        ("x-envoy-expected-rq-timeout-ms", "1"),
        ("x-envoy-max-retries", "9"),
        ("x-forwarded-proto", "http"),
        ("X-Forwarded-Proto", "ftp"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-port", "80"),
    ] {
        headers.push((name, value.to_owned()));
    }
    headers
}

#[tokio::test]
async fn forged_headers_steer_nothing_and_reach_nobody() -> Result<()> {
    let trusted = Trusted::new()?;
    let plain = SilentPort::start().await?;
    // The clusters that the forgeries name exist.
    let rules = originated(HOST, 443) + &entry("plain.example", 80);
    let builder = trusted
        .egressctl(&rules)
        .connect_to(&route("plain.example", 80, plain.addr()))
        .arg("--outbound-traffic-policy")
        .arg("ALLOW_ANY");
    let stage = Stage::start(builder, trusted.site([HOST]).await?, [HOST]).await?;

    let forged = forged();
    let mut all: Vec<(&str, &str)> = Vec::new();
    for (at, (name, value)) in forged.iter().enumerate() {
        let path = format!("/{at}");
        let answer = stage.get_with(HOST, &path, &[(name, value)]).await?;
        assert_eq!(answer.status, 200, "{name}: {value}");
        assert_originated(&only(&stage.site)?, HOST, HOST);
        all.push((name, value));
    }
    for at in 0..forged.len() {
        let log = stage.log(&format!("/{at}")).await?;
        assert_eq!(
            log.istio("upstream_cluster"),
            SHARED,
            "{:?}",
            forged.get(at)
        );
    }
    // Each name many times over.
    let answer = stage.get_with(HOST, "/all", &all).await?;
    assert_eq!(answer.status, 200);
    assert_originated(&only(&stage.site)?, HOST, HOST);
    stage.nothing_in_plaintext().await?;
    plain.assert_silent().await
}

#[tokio::test]
async fn forged_headers_open_no_way_to_an_unknown_host() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| builder).await?;
    for (name, value) in forged() {
        let answer = stage
            .get_with("other.example", "/", &[(name, &value)])
            .await?;
        assert_eq!(answer.status, 502, "{name}: {value}");
    }
    stage.nothing_at_all().await
}

/// An address that everybody may have: names that clients choose lead to no private one.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// A run that leaves unknown hosts alone, and the DNS that it asks for them.
async fn allow_any(trusted: &Trusted, site: &StandIn) -> Result<(Running, DnsServer)> {
    let dns = DnsServer::start(Zone::new().every_name([PUBLIC])).await?;
    // An unknown host goes where its own authority says, so the tests name the plain port in it.
    let proxy = trusted
        .egressctl(&originated(HOST, 443))
        .port(80, 0)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .arg("--resolver")
        .arg(dns.addr().to_string())
        .arg("--outbound-traffic-policy")
        .arg("ALLOW_ANY")
        .start()
        .await?;
    Ok((proxy, dns))
}

#[test]
fn where_any_host_is_allowed_an_unknown_one_is_left_alone() -> Result<()> {
    netns::run(&[PUBLIC.into()], &[], left_alone)
}

async fn left_alone() -> Result<()> {
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let site = StandIn::start_at(StandInConfig::new(certificate), PUBLIC).await?;
    let (proxy, _dns) = allow_any(&trusted, &site).await?;
    let http = proxy.listener(80)?;

    let other = format!("Other.example:{}", site.plain_addr().port());
    let answer = probe::get(http, &other, "/other").await?;
    assert_eq!(answer.status, 301, "{}", answer.body);
    let seen = only(&site)?;
    assert_eq!(seen.listener, Listener::Plain);
    assert_eq!(seen.host, other, "left as it is");
    assert_eq!(seen.x_forwarded_proto.as_deref(), Some("http"));
    assert_no_leak(&seen);
    log_of(&proxy, "/other").await?.assert_egress([
        ("action", "forward"),
        ("reason", "unknown_host"),
        ("authority", &other),
    ]);

    // What the rules originate is still originated, and never plain.
    let connections = site.counts(Listener::Plain).connections;
    for written in VARIANTS {
        let answer = probe::get(http, written, "/known").await?;
        assert_eq!(answer.status, 200, "{written}");
        assert_originated(&only(&site)?, HOST, HOST);
    }
    let plain = format!("{HOST}:{}", site.plain_addr().port());
    let answer = probe::get(http, &plain, "/known").await?;
    assert_eq!(answer.status, 200, "{plain}");
    assert_originated(&only(&site)?, HOST, HOST);
    assert_eq!(site.counts(Listener::Plain).connections, connections);
    Ok(())
}

/// What Java's and Apache's HTTP clients say with plain requests.
const OFFERS: [&[(&str, &str)]; 3] = [
    &[("connection", "Upgrade"), ("upgrade", "TLS/1.2")],
    &[
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "TLS/1.2"),
        ("http2-settings", "AAEAAEAA"),
    ],
    &[
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAEAAEAA"),
    ],
];

/// Makes an offer to upgrade with a request, which must be originated all the same.
async fn offer(stage: &Stage, offer: &[(&str, &str)]) -> Result<Seen> {
    let answer = stage.get_with(HOST, "/java", offer).await?;
    assert_eq!(answer.status, 200, "{offer:?}");
    let seen = only(&stage.site)?;
    assert_originated(&seen, HOST, HOST);
    Ok(seen)
}

#[tokio::test]
async fn an_offer_to_upgrade_is_no_error() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| builder).await?;
    for text in OFFERS {
        let seen = offer(&stage, text).await?;
        for name in ["connection", "upgrade"] {
            assert_eq!(seen.header(name), None, "{text:?}");
        }
    }
    Ok(())
}

/// RFC 9110, 7.6.1: what `Connection` names ends at the next hop.
#[tokio::test]
async fn what_comes_with_an_offer_to_upgrade_goes_no_further() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| builder).await?;
    for text in OFFERS {
        let seen = offer(&stage, text).await?;
        assert_eq!(seen.header("http2-settings"), None, "{text:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_rule_without_tls_is_the_only_way_to_plaintext() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = originated(HOST, 443)
        + &entry("plain.example", 80)
        + &rule("plain.example", "{tls: {mode: DISABLE}}");
    let site = trusted.site([HOST]).await?;
    let builder =
        trusted
            .egressctl(&rules)
            .connect_to(&route("plain.example", 80, site.plain_addr()));
    let stage = Stage::start(builder, site, [HOST]).await?;
    assert_eq!(stage.get("plain.example", "/plain").await?.status, 301);
    assert_eq!(only(&stage.site)?.listener, Listener::Plain);
    assert_eq!(stage.get(HOST, "/tls").await?.status, 200);
    assert_originated(&only(&stage.site)?, HOST, HOST);
    stage.silent.assert_silent().await
}
