//! The shapes that rules give to an Envoy: shared and own clusters, and TLS that is passed through.

mod common;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use egress_integration::{
    dns::{DnsServer, Zone},
    egressctl::Running,
    pki::Leaf,
    probe,
    silent_port::SilentPort,
    stand_in::{HttpVersions, Listener, StandIn, StandInConfig},
};

use common::{
    HOST, LogLine, SHARED, SOON, Stage, Trusted, assert_no_leak, assert_originated, by_dns, crowd,
    dns, entry, entry_with, log_of, only, originated, route, rule,
};

async fn site_of(trusted: &Trusted, http: HttpVersions) -> Result<StandIn> {
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    StandIn::start(StandInConfig::new(certificate).http(http)).await
}

/// The names of Envoy's clusters.
async fn clusters(proxy: &Running) -> Result<Vec<String>> {
    let answer = proxy.admin_get("/clusters?format=json").await?;
    let body: Value = serde_json::from_str(&answer.body)?;
    let clusters = body.get("cluster_statuses").and_then(Value::as_array);
    let names = clusters
        .into_iter()
        .flatten()
        .filter_map(|cluster| cluster.get("name")?.as_str());
    // The way to egressctl itself is always there.
    let names = names.filter(|name| *name != "egressctl");
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

#[tokio::test]
async fn hosts_share_a_cluster_and_nothing_else() -> Result<()> {
    const OTHER: &str = "money.cnn.com";
    let trusted = Trusted::new()?;
    let first = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let second = trusted.ca.issue(&Leaf::for_names([OTHER]))?;
    let site = StandIn::start(StandInConfig::new(first).with_certificate(second)).await?;
    let dns = dns().await?;
    let port = site.tls_addr().port();
    let rules = originated(HOST, port) + &originated(OTHER, port);
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    assert_eq!(clusters(&proxy).await?, [SHARED]);
    ensure!(
        dns.asked().is_empty(),
        "asked before anybody called: {:?}",
        dns.asked()
    );

    for host in [HOST, OTHER] {
        let answer = probe::get(proxy.listener(80)?, host, "/").await?;
        assert_eq!(answer.status, 200, "{host}: {}", answer.body);
        // The server is not on 443, so its authority says where it is.
        assert_originated(&only(&site)?, &format!("{host}:{port}"), host);
    }
    let asked = dns.asked();
    for host in [HOST, OTHER] {
        ensure!(
            asked.get(host).is_some_and(|queries| *queries > 0),
            "{host}: {asked:?}"
        );
    }
    assert_eq!(asked.len(), 2, "{asked:?}");

    // What was looked up is kept for the next request: the name's time to live is a second, and
    // Envoy looks again by itself at most once in that time.
    let before = dns.queries(HOST);
    for _ in 0..50 {
        assert_eq!(
            probe::get(proxy.listener(80)?, HOST, "/again")
                .await?
                .status,
            200
        );
    }
    let asked = dns.queries(HOST) - before;
    ensure!(asked < 25, "50 requests asked {asked} times");
    ensure!(site.counts(Listener::Plain).connections == 0);
    ensure!(site.counts(Listener::Tls).failed_handshakes.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_host_that_dns_does_not_know_is_an_error_and_not_another_way() -> Result<()> {
    let trusted = Trusted::new()?;
    let dns = DnsServer::start(Zone::new()).await?;
    let proxy = by_dns(&trusted, &originated(HOST, 443), &dns).await?;
    let answer = probe::get(proxy.listener(80)?, HOST, "/nowhere").await?;
    assert_eq!(answer.status, 503, "{}", answer.body);
    let log = log_of(&proxy, "/nowhere").await?;
    assert_eq!(log.egress("action"), "originate");
    ensure!(dns.queries(HOST) > 0);
    Ok(())
}

#[tokio::test]
async fn a_wildcard_has_all_names_below_it_and_not_its_own() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted
        .site(["*.example.com", "*.sub.example.com", "example.com"])
        .await?;
    let dns = dns().await?;
    let port = site.tls_addr().port();
    let spec = format!(
        "resolution: DYNAMIC_DNS, location: MESH_INTERNAL, \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]"
    );
    let rules = entry_with("*.example.com", &spec) + &rule("*.example.com", common::SIMPLE);
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let http = proxy.listener(80)?;

    for (written, host) in [
        ("sub.example.com", "sub.example.com"),
        ("deep.sub.example.com", "deep.sub.example.com"),
        ("SUB.example.COM.:80", "sub.example.com"),
    ] {
        let answer = probe::get(http, written, "/sub").await?;
        assert_eq!(answer.status, 200, "{written}: {}", answer.body);
        assert_originated(&only(&site)?, &format!("{host}:{port}"), host);
    }
    let log = log_of(&proxy, "/sub").await?;
    log.assert_egress([
        ("action", "originate"),
        ("rule", "default/any-example-com"),
        ("service_entry", "default/any-example-com"),
        ("cluster", &format!("{SHARED}|internal")),
        ("transport_socket", "envoy.transport_sockets.tls"),
        ("tls_mode", "SIMPLE"),
        ("sni", "sub.example.com"),
        ("verify", "sub.example.com"),
        ("target", &format!("sub.example.com:{port}")),
        ("authority", "sub.example.com"),
    ]);

    for host in [
        "example.com",
        "badexample.com",
        ".example.com",
        "example.com.evil.example",
    ] {
        let answer = probe::get(http, host, "/apex").await?;
        ensure!(matches!(answer.status, 400 | 502), "{host}: {answer:?}");
    }
    ensure!(site.seen().is_empty(), "{:?}", site.seen());
    // A certificate's star stands for one label: this name is below the pattern, but not certified.
    let answer = probe::get(http, "a.b.c.example.com", "/uncertified").await?;
    assert_eq!(answer.status, 503);
    Ok(())
}

/// A wildcard cannot share what its rule fixes, and still goes where each request says.
#[tokio::test]
async fn a_wildcard_can_have_names_and_trust_of_its_own() -> Result<()> {
    for (tls, sni) in [
        ("mode: SIMPLE, sni: front.example", "front.example"),
        (
            "mode: SIMPLE, subjectAltNames: [front.example]",
            "sub.example.com",
        ),
        ("mode: SIMPLE, insecureSkipVerify: true", "sub.example.com"),
    ] {
        let trusted = Trusted::new()?;
        // Below a wildcard the requested host is verified too.
        let names = ["front.example", "sub.example.com"];
        let (site, dns) = (trusted.site(names).await?, dns().await?);
        let port = site.tls_addr().port();
        let spec = format!(
            "resolution: DYNAMIC_DNS, location: MESH_INTERNAL, \
             ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]"
        );
        let policy = format!("{{tls: {{{tls}}}}}");
        let rules = entry_with("*.example.com", &spec) + &rule("*.example.com", &policy);
        let proxy = by_dns(&trusted, &rules, &dns).await.context(tls)?;
        let answer = probe::get(proxy.listener(80)?, "sub.example.com", "/").await?;
        assert_eq!(answer.status, 200, "{tls}: {}", answer.body);
        assert_originated(&only(&site)?, &format!("sub.example.com:{port}"), sni);
    }
    Ok(())
}

#[tokio::test]
async fn tls_below_a_wildcard_is_passed_through() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site(["*.example.com", "example.com"]).await?;
    let dns = dns().await?;
    let spec = format!(
        "resolution: DYNAMIC_DNS, location: MESH_INTERNAL, \
         ports: [{{number: 443, name: tls, protocol: TLS, targetPort: {}}}]",
        site.tls_addr().port()
    );
    let proxy = by_dns(&trusted, &entry_with("*.example.com", &spec), &dns).await?;
    let https = proxy.listener(443)?;
    let (name, ca) = ("sub.example.com", trusted.ca.pem());
    assert_eq!(
        probe::get_tls(https, name, name, "/", &ca)
            .await?
            .answer
            .status,
        200
    );
    assert_eq!(only(&site)?.sni.as_deref(), Some(name));
    let apex = probe::get_tls(https, "example.com", "example.com", "/", &ca).await;
    ensure!(apex.is_err(), "{apex:?}");
    ensure!(site.seen().is_empty(), "{:?}", site.seen());
    Ok(())
}

/// [`HOST`] by a policy that needs a cluster of its own, at an address that is listed.
async fn assert_own_cluster(policy: &str, sni: &str) -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST, "front.example"]).await?;
    let spec = format!(
        "resolution: STATIC, endpoints: [{{address: 127.0.0.1}}], \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {}}}]",
        site.tls_addr().port()
    );
    let rules = entry_with(HOST, &spec) + &rule(HOST, policy);
    let proxy = trusted.egressctl(&rules).port(80, 0).start().await?;
    assert_eq!(clusters(&proxy).await?, ["outbound|80||edition.cnn.com"]);

    let answer = probe::get(proxy.listener(80)?, "EDITION.cnn.com:80", "/own").await?;
    assert_eq!(answer.status, 200, "{policy}: {}", answer.body);
    let port = site.tls_addr().port();
    assert_originated(&only(&site)?, &format!("{HOST}:{port}"), sni);
    let log = log_of(&proxy, "/own").await?;
    assert_eq!(
        log.istio("upstream_cluster"),
        "outbound|80||edition.cnn.com"
    );
    assert_eq!(log.egress("cluster"), "outbound|80||edition.cnn.com");
    assert_eq!(log.egress("sni"), sni);
    ensure!(site.counts(Listener::Plain).connections == 0);
    ensure!(site.counts(Listener::Tls).failed_handshakes.is_empty());
    Ok(())
}

#[tokio::test]
async fn listed_endpoints_make_a_cluster_of_ones_own() -> Result<()> {
    assert_own_cluster(common::SIMPLE, HOST).await
}

#[tokio::test]
async fn a_fixed_sni_makes_a_cluster_of_ones_own() -> Result<()> {
    assert_own_cluster("{tls: {mode: SIMPLE, sni: front.example}}", "front.example").await
}

#[tokio::test]
async fn limits_and_balancing_make_a_cluster_of_ones_own() -> Result<()> {
    let policy = "{
        tls: {mode: SIMPLE},
        loadBalancer: {simple: ROUND_ROBIN},
        connectionPool: {
            tcp: {maxConnections: 7, connectTimeout: 3s, tcpKeepalive: {time: 60s, interval: 10s, probes: 3}},
            http: {http1MaxPendingRequests: 5, http2MaxRequests: 6, maxRequestsPerConnection: 100, idleTimeout: 30s}},
        outlierDetection: {consecutive5xxErrors: 3, interval: 5s, baseEjectionTime: 10s, maxEjectionPercent: 50}}";
    assert_own_cluster(policy, HOST).await
}

/// By DNS, and without endpoints: what makes the cluster its own is the policy alone.
#[tokio::test]
async fn a_cluster_of_ones_own_looks_its_host_up() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let dns = dns().await?;
    let port = site.tls_addr().port();
    let policy = "{loadBalancer: {simple: RANDOM}, tls: {mode: SIMPLE}}";
    let rules = entry(HOST, port) + &rule(HOST, policy);
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let answer = probe::get(proxy.listener(80)?, HOST, "/").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_originated(&only(&site)?, &format!("{HOST}:{port}"), HOST);
    ensure!(dns.queries(HOST) > 0);
    Ok(())
}

#[tokio::test]
async fn connections_are_limited_where_the_rules_say_so() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = site_of(&trusted, HttpVersions::OnlyHttp1).await?;
    let policy = "{tls: {mode: SIMPLE}, connectionPool: {http: {maxRequestsPerConnection: 1}}}";
    let rules = entry(HOST, 443) + &rule(HOST, policy);
    let stage = Stage::start(trusted.egressctl(&rules), site, [HOST]).await?;
    let mut connections = Vec::new();
    for _ in 0..3 {
        assert_eq!(stage.get(HOST, "/").await?.status, 200);
        connections.push(only(&stage.site)?.connection_id);
    }
    let used = connections.len();
    connections.dedup();
    assert_eq!(connections.len(), used, "{connections:?}");
    Ok(())
}

#[tokio::test]
async fn mode_disable_sends_what_the_application_sent() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let dns = dns().await?;
    let port = site.plain_addr().port();
    let rules = entry(HOST, port) + &rule(HOST, "{tls: {mode: DISABLE}}");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    for written in [HOST, "EDITION.cnn.com:80"] {
        let answer = probe::get(proxy.listener(80)?, written, "/plain").await?;
        assert_eq!(answer.status, 301, "{}", answer.body);
        let seen = only(&site)?;
        assert_eq!(seen.listener, Listener::Plain);
        assert_eq!(seen.host, written, "plain requests keep their words");
        assert_eq!(seen.x_forwarded_proto.as_deref(), Some("http"));
        assert_no_leak(&seen);
    }
    log_of(&proxy, "/plain").await?.assert_egress([
        ("action", "forward"),
        ("rule", "default/edition-cnn-com"),
        ("service_entry", "default/edition-cnn-com"),
        ("cluster", "shared|DISABLE||http1"),
        ("transport_socket", "envoy.transport_sockets.raw_buffer"),
        ("target", &format!("{HOST}:{port}")),
        ("authority", HOST),
    ]);
    assert_eq!(site.counts(Listener::Tls).connections, 0);
    Ok(())
}

#[tokio::test]
async fn servers_are_spoken_to_in_the_http_they_have() -> Result<()> {
    for (http, alpn, version) in [
        (HttpVersions::OnlyHttp1, "http/1.1", "HTTP/1.1"),
        (HttpVersions::OnlyHttp2, "h2", "HTTP/2.0"),
        (HttpVersions::Both, "h2", "HTTP/2.0"),
    ] {
        let trusted = Trusted::new()?;
        let site = site_of(&trusted, http).await?;
        let builder = trusted.egressctl(&originated(HOST, 443));
        let stage = Stage::start(builder, site, [HOST]).await?;
        // A second request, when Envoy knows what the server speaks.
        for _ in 0..2 {
            assert_eq!(stage.get(HOST, "/").await?.status, 200);
            let seen = only(&stage.site)?;
            assert_originated(&seen, HOST, HOST);
            assert_eq!(seen.alpn.as_deref(), Some(alpn));
            assert_eq!(seen.http_version, version);
        }
        stage.nothing_in_plaintext().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_rule_can_choose_the_http() -> Result<()> {
    for (policy, alpn) in [("DO_NOT_UPGRADE", "http/1.1"), ("UPGRADE", "h2")] {
        let trusted = Trusted::new()?;
        let site = site_of(&trusted, HttpVersions::Both).await?;
        let policy = format!(
            "{{tls: {{mode: SIMPLE}}, connectionPool: {{http: {{h2UpgradePolicy: {policy}}}}}}}"
        );
        let rules = entry(HOST, 443) + &rule(HOST, &policy);
        let stage = Stage::start(trusted.egressctl(&rules), site, [HOST]).await?;
        assert_eq!(stage.get(HOST, "/").await?.status, 200);
        let seen = only(&stage.site)?;
        assert_originated(&seen, HOST, HOST);
        assert_eq!(seen.alpn.as_deref(), Some(alpn));
    }
    Ok(())
}

/// HTTPS on port 443 for [`HOST`], its server at `target`.
fn https(target: u16) -> String {
    let spec = format!(
        "resolution: DNS, ports: [{{number: 443, name: https, protocol: HTTPS, targetPort: {target}}}]"
    );
    entry_with(HOST, &spec)
}

#[tokio::test]
async fn tls_of_a_host_is_passed_through_by_dns() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, dns) = (trusted.site([HOST]).await?, dns().await?);
    let proxy = by_dns(&trusted, &https(site.tls_addr().port()), &dns).await?;
    let tls = probe::get_tls(proxy.listener(443)?, HOST, HOST, "/", &trusted.ca.pem()).await?;
    assert_eq!(tls.answer.status, 200);
    let seen = only(&site)?;
    assert_eq!(seen.sni.as_deref(), Some(HOST));
    assert_no_leak(&seen);
    let line = proxy
        .wait_for_log(|line| line.contains("action=passthrough"), SOON)
        .await?;
    LogLine::parse(&line)?.assert_egress([
        ("action", "passthrough"),
        ("service_entry", "default/edition-cnn-com"),
        ("cluster", "shared|DISABLE||bytes"),
        ("transport_socket", "envoy.transport_sockets.raw_buffer"),
        ("sni", HOST),
        ("target", &format!("{HOST}:{}", site.tls_addr().port())),
    ]);
    Ok(())
}

#[tokio::test]
async fn tls_for_an_unknown_name_is_closed_and_logged() -> Result<()> {
    for others in [String::new(), crowd(443)] {
        unknown_names(&others).await?;
    }
    Ok(())
}

async fn unknown_names(others: &str) -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted
        .site([HOST, "other.example", "www.edition.cnn.com"])
        .await?;
    let dns = dns().await?;
    let rules = https(site.tls_addr().port()) + others;
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let https = proxy.listener(443)?;
    for name in ["other.example", "www.edition.cnn.com", "cnn.com"] {
        // Whatever the request inside asks for: nobody can read it, and nobody answers.
        let answer = probe::get_tls(https, name, HOST, "/", &trusted.ca.pem()).await;
        let Err(error) = answer else {
            bail!("{name} was passed through: {answer:?}");
        };
        let error = format!("{error:#}");
        ensure!(error.contains("eof") || error.contains("reset"), "{error}");
        let wanted = format!("authority={name} plaintext=-");
        let line = proxy
            .wait_for_log(|line| line.ends_with(&wanted), SOON)
            .await?;
        let log = LogLine::parse(&line)?;
        assert_eq!(log.istio("response_flags"), "NR");
        assert_eq!(log.istio("requested_server_name"), name);
        log.assert_egress([
            ("action", "reject"),
            ("reason", "unknown_host"),
            ("authority", name),
        ]);
    }
    // No server name at all: an address is verified, but never sent.
    let answer = probe::get_tls(https, "127.0.0.1", HOST, "/", &trusted.ca.pem()).await;
    ensure!(answer.is_err(), "{answer:?}");
    // Nor plaintext where TLS is due.
    let answer = probe::get(https, HOST, "/plain").await;
    ensure!(answer.is_err(), "{answer:?}");

    assert_eq!(site.counts(Listener::Tls).connections, 0);
    ensure!(dns.asked().is_empty(), "{:?}", dns.asked());
    Ok(())
}

/// The SNI is what decides, and is the host that is dialled: one cannot be named and another reached.
#[tokio::test]
async fn passed_through_hosts_have_servers_of_their_own() -> Result<()> {
    let trusted = Trusted::new()?;
    let (first, second) = (
        trusted.site([HOST]).await?,
        trusted.site(["money.cnn.com"]).await?,
    );
    let spec = "resolution: DNS, ports: [{number: 443, name: https, protocol: TLS}]";
    let rules = entry_with(HOST, spec) + &entry_with("money.cnn.com", spec);
    let proxy = trusted
        .egressctl(&rules)
        .port(443, 0)
        .connect_to(&route(HOST, 443, first.tls_addr()))
        .connect_to(&route("money.cnn.com", 443, second.tls_addr()))
        .start()
        .await?;
    let https = proxy.listener(443)?;
    for (name, site) in [(HOST, &first), ("money.cnn.com", &second), (HOST, &first)] {
        // The Host inside is another: it is encrypted, and has no say.
        let tls = probe::get_tls(https, name, "money.cnn.com", "/", &trusted.ca.pem()).await;
        assert_eq!(tls.with_context(|| name.to_owned())?.answer.status, 200);
        assert_eq!(only(site)?.sni.as_deref(), Some(name));
    }
    Ok(())
}

#[tokio::test]
async fn the_most_specific_of_many_names_has_a_connection() -> Result<()> {
    let trusted = Trusted::new()?;
    let dns = dns().await?;
    let names = ["a.example.com", "*.a.example.com", "*.example.com"];
    let mut rules = crowd(443);
    let mut sites = Vec::new();
    for name in names {
        let site = trusted.site(names).await?;
        let resolution = match name.starts_with('*') {
            true => "DYNAMIC_DNS",
            false => "DNS",
        };
        let spec = format!(
            "resolution: {resolution}, location: MESH_INTERNAL, \
             ports: [{{number: 443, name: tls, protocol: TLS, targetPort: {}}}]",
            site.tls_addr().port()
        );
        rules += &entry_with(name, &spec);
        sites.push(site);
    }
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let (https, ca) = (proxy.listener(443)?, trusted.ca.pem());
    for (name, site) in [
        ("a.example.com", &sites[0]),
        ("A.Example.com", &sites[0]),
        ("b.a.example.com", &sites[1]),
        ("b.example.com", &sites[2]),
    ] {
        let tls = probe::get_tls(https, name, HOST, "/", &ca).await;
        assert_eq!(tls.with_context(|| name.to_owned())?.answer.status, 200);
        let sni = only(site)?.sni;
        ensure!(
            sni.as_ref()
                .is_some_and(|sni| sni.eq_ignore_ascii_case(name)),
            "{sni:?}"
        );
    }
    let apex = probe::get_tls(https, "example.com", HOST, "/", &ca).await;
    ensure!(apex.is_err(), "{apex:?}");
    Ok(())
}

#[tokio::test]
async fn one_port_takes_http_of_one_host_and_tls_of_another() -> Result<()> {
    for others in [String::new(), crowd(8080)] {
        http_and_tls(&others).await?;
    }
    Ok(())
}

async fn http_and_tls(others: &str) -> Result<()> {
    let trusted = Trusted::new()?;
    let plain = SilentPort::start().await?;
    let site = trusted.site([HOST, "tls.example"]).await?;
    let http = "resolution: DNS, ports: [{number: 8080, name: p, protocol: HTTP, targetPort: 443}]";
    let tls = "resolution: DNS, ports: [{number: 8080, name: p, protocol: TLS, targetPort: 443}]";
    let rules =
        entry_with(HOST, http) + &rule(HOST, common::SIMPLE) + &entry_with("tls.example", tls);
    let rules = rules + others;
    let mut builder = trusted.egressctl(&rules).port(8080, 0);
    for host in [HOST, "tls.example"] {
        builder = builder
            .connect_to(&route(host, 443, site.tls_addr()))
            .connect_to(&route(host, 8080, plain.addr()));
    }
    let proxy = builder.start().await?;
    let port = proxy.listener(8080)?;

    assert_eq!(
        probe::get(port, "edition.cnn.com:8080", "/").await?.status,
        200
    );
    assert_originated(&only(&site)?, HOST, HOST);
    let tls = probe::get_tls(port, "tls.example", "tls.example", "/", &trusted.ca.pem()).await?;
    assert_eq!(tls.answer.status, 200);
    assert_eq!(only(&site)?.sni.as_deref(), Some("tls.example"));

    // Each has its own way of arrival, and no other.
    let answer = probe::get(port, "tls.example", "/wrong").await?;
    assert_eq!(answer.status, 502);
    ensure!(answer.body.contains("other_protocol"), "{}", answer.body);
    let answer = probe::get_tls(port, HOST, HOST, "/wrong", &trusted.ca.pem()).await;
    ensure!(answer.is_err(), "{answer:?}");
    ensure!(site.seen().is_empty(), "{:?}", site.seen());
    plain.assert_silent().await
}
