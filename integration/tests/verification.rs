//! A server proves who it is, or nothing is sent to it.

mod common;

use anyhow::{Context, Result, ensure};

use egress_integration::{
    egressctl::Builder,
    pki::{Ca, Leaf, Usage, Validity},
    stand_in::{Listener, StandIn, StandInConfig, TlsVersions},
};

use common::{
    HOST, SOON, Stage, Trusted, assert_originated, entry, entry_with, only, originated, rule, site,
};

/// Asks for [`HOST`], and proves that the handshake failed for this reason and nothing was sent.
async fn assert_refused(stage: &Stage, path: &str, reason: &str) -> Result<()> {
    let answer = stage.get(HOST, path).await?;
    assert_eq!(answer.status, 503, "{}", answer.body);
    let log = stage.log(path).await?;
    assert_eq!(log.istio("response_code"), "503");
    assert_eq!(log.egress("action"), "originate");
    let why = log.istio("upstream_transport_failure_reason");
    ensure!(why.contains(reason), "`{reason}` is not in `{why}`");

    let failures = stage.site.wait_for_failed_handshakes(1, SOON).await?;
    ensure!(
        failures.iter().all(|failure| failure.sni.is_some()),
        "{failures:?}"
    );
    assert_eq!(stage.site.counts(Listener::Tls).requests, 0);
    ensure!(stage.site.seen().is_empty(), "{:?}", stage.site.seen());
    stage.nothing_in_plaintext().await
}

/// A site with this certificate is refused where the page's rules hold.
async fn assert_certificate_refused(
    ca: &Ca,
    trusted: &Trusted,
    leaf: Leaf,
    reason: &str,
) -> Result<()> {
    let builder = trusted.egressctl(&originated(HOST, 443));
    let stage = Stage::start(builder, site(ca, &leaf).await?, [HOST]).await?;
    assert_refused(&stage, "/refused", reason).await
}

/// Asks for [`HOST`], and proves that the site was reached over TLS with this SNI.
async fn assert_reached(stage: &Stage, sni: &str) -> Result<()> {
    let answer = stage.get(HOST, "/reached").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_originated(&only(&stage.site)?, HOST, sni);
    stage.nothing_in_plaintext().await
}

/// [`HOST`] by these rules, its certificate from the system's CA for these names.
async fn stage<const N: usize>(trusted: &Trusted, rules: &str, names: [&str; N]) -> Result<Stage> {
    Stage::start(trusted.egressctl(rules), trusted.site(names).await?, [HOST]).await
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() -> Result<()> {
    let (trusted, stranger) = (Trusted::new()?, Ca::new("stranger")?);
    let leaf = Leaf::for_names([HOST]);
    assert_certificate_refused(&stranger, &trusted, leaf, "CERTIFICATE_VERIFY_FAILED").await
}

#[tokio::test]
async fn an_expired_certificate_is_refused() -> Result<()> {
    let trusted = Trusted::new()?;
    let leaf = Leaf::for_names([HOST]).validity(Validity::Expired);
    assert_certificate_refused(&trusted.ca, &trusted, leaf, "certificate_has_expired").await
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_refused() -> Result<()> {
    let trusted = Trusted::new()?;
    let leaf = Leaf::for_names([HOST]).validity(Validity::NotYetValid);
    assert_certificate_refused(&trusted.ca, &trusted, leaf, "certificate_is_not_yet_valid").await
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() -> Result<()> {
    let trusted = Trusted::new()?;
    // A neighbour, a parent, and a wildcard one level too high.
    let leaf = Leaf::for_names(["www.cnn.com", "cnn.com", "*.com"]);
    assert_certificate_refused(&trusted.ca, &trusted, leaf, "SAN_matcher").await
}

#[tokio::test]
async fn a_clients_certificate_is_refused() -> Result<()> {
    let trusted = Trusted::new()?;
    let leaf = Leaf::for_names([HOST]).usage(Usage::Client);
    assert_certificate_refused(&trusted.ca, &trusted, leaf, "CERTIFICATE_VERIFY_FAILED").await
}

#[tokio::test]
async fn a_wildcard_certificate_is_good_for_its_hosts() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = stage(&trusted, &originated(HOST, 443), ["*.cnn.com"]).await?;
    assert_reached(&stage, HOST).await
}

#[tokio::test]
async fn a_server_of_tls_1_2_is_reached_by_tls_1_2() -> Result<()> {
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let site = StandIn::start(StandInConfig::new(certificate).tls(TlsVersions::OnlyTls12)).await?;
    let builder = trusted.egressctl(&originated(HOST, 443));
    let stage = Stage::start(builder, site, [HOST]).await?;
    assert_eq!(stage.get(HOST, "/").await?.status, 200);
    let seen = only(&stage.site)?;
    assert_originated(&seen, HOST, HOST);
    assert_eq!(seen.tls_version.as_deref(), Some("TLSv1.2"));
    Ok(())
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_gets_no_request() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    // The TLS port leads to the plain listener: a handshake reaches it, and must not become a request.
    let plain = common::route(HOST, 443, site.plain_addr());
    let proxy = trusted
        .egressctl(&originated(HOST, 443))
        .port(80, 0)
        .connect_to(&plain)
        .start()
        .await?;
    let answer = egress_integration::probe::get(proxy.listener(80)?, HOST, "/plain").await?;
    assert_eq!(answer.status, 503);
    let log = common::log_of(&proxy, "/plain").await?;
    let why = log.istio("upstream_transport_failure_reason");
    ensure!(why.contains("WRONG_VERSION_NUMBER"), "{why}");
    ensure!(site.seen().is_empty(), "{:?}", site.seen());
    Ok(())
}

#[tokio::test]
async fn the_name_that_is_verified_is_the_sni() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = entry(HOST, 443) + &rule(HOST, "{tls: {mode: SIMPLE, sni: front.example}}");

    let only_host = stage(&trusted, &rules, [HOST]).await?;
    assert_refused(&only_host, "/host", "SAN").await?;
    let failures = only_host.site.counts(Listener::Tls).failed_handshakes;
    let failure = failures.first().context("no failure")?;
    assert_eq!(failure.sni.as_deref(), Some("front.example"));

    let front = stage(&trusted, &rules, ["front.example"]).await?;
    assert_reached(&front, "front.example").await?;
    let log = front.log("/reached").await?;
    assert_eq!(log.egress("sni"), "front.example");
    assert_eq!(log.egress("verify"), "front.example");
    Ok(())
}

#[tokio::test]
async fn names_of_the_rule_take_the_place_of_the_hosts() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = entry(HOST, 443)
        + &rule(
            HOST,
            "{tls: {mode: SIMPLE, subjectAltNames: [one.example, two.example]}}",
        );

    let host = stage(&trusted, &rules, [HOST]).await?;
    assert_refused(&host, "/host", "SAN").await?;
    let second = stage(&trusted, &rules, ["two.example"]).await?;
    assert_reached(&second, HOST).await?;
    let log = second.log("/reached").await?;
    assert_eq!(log.egress("verify"), "one.example,two.example");
    Ok(())
}

#[tokio::test]
async fn names_of_the_entry_come_on_top_of_the_hosts() -> Result<()> {
    let trusted = Trusted::new()?;
    let spec = "resolution: DNS, subjectAltNames: [spare.example], \
                ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]";
    let rules = entry_with(HOST, spec) + &rule(HOST, common::SIMPLE);

    let host = stage(&trusted, &rules, [HOST]).await?;
    assert_refused(&host, "/host", "SAN").await?;
    let spare = stage(&trusted, &rules, ["spare.example"]).await?;
    assert_refused(&spare, "/spare", "SAN").await?;
    let both = stage(&trusted, &rules, [HOST, "spare.example"]).await?;
    assert_reached(&both, HOST).await
}

#[tokio::test]
async fn a_ca_of_the_rules_own_takes_the_place_of_the_systems() -> Result<()> {
    let (trusted, own) = (Trusted::new()?, Ca::new("the rule's own CA")?);
    let file = trusted.file("own.pem", &own.pem())?;
    let tls = format!(
        "{{tls: {{mode: SIMPLE, caCertificates: \"{}\"}}}}",
        file.display()
    );
    let rules = entry(HOST, 443) + &rule(HOST, &tls);

    let good = site(&own, &Leaf::for_names([HOST])).await?;
    let good = Stage::start(trusted.egressctl(&rules), good, [HOST]).await?;
    assert_reached(&good, HOST).await?;
    let log = good.log("/reached").await?;
    assert_eq!(
        log.egress("secrets"),
        format!("file-root:{}", file.display())
    );

    let systems = stage(&trusted, &rules, [HOST]).await?;
    assert_refused(&systems, "/system", "CERTIFICATE_VERIFY_FAILED").await?;

    // And the host's neighbour, which goes by `system`, does not come to trust it.
    let rules = rules + &originated("www.cnn.com", 443);
    let wrong = site(&own, &Leaf::for_names([HOST, "www.cnn.com"])).await?;
    let wrong = Stage::start(trusted.egressctl(&rules), wrong, [HOST, "www.cnn.com"]).await?;
    assert_reached(&wrong, HOST).await?;
    assert_eq!(wrong.get("www.cnn.com", "/www").await?.status, 503);
    ensure!(wrong.site.seen().is_empty(), "{:?}", wrong.site.seen());
    Ok(())
}

#[tokio::test]
async fn skipping_verification_is_still_tls_and_is_warned_of() -> Result<()> {
    let (trusted, stranger) = (Trusted::new()?, Ca::new("stranger")?);
    let rules = entry(HOST, 443) + &rule(HOST, "{tls: {mode: SIMPLE, insecureSkipVerify: true}}");
    let site = site(&stranger, &Leaf::for_names(["www.example"])).await?;
    let stage = Stage::start(trusted.egressctl(&rules), site, [HOST]).await?;
    assert_reached(&stage, HOST).await?;
    let log = stage.log("/reached").await?;
    assert_eq!(log.egress("action"), "originate");
    assert_eq!(log.egress("verify"), "insecureSkipVerify");

    let stderr = stage.proxy.stderr();
    let warned = |line: &&String| {
        line.starts_with("warning: ") && line.contains("trafficPolicy.tls.insecureSkipVerify")
    };
    ensure!(stderr.iter().any(|line| warned(&line)), "{stderr:#?}");
    Ok(())
}

const NEIGHBOUR: &str = "money.cnn.com";

fn two_hosts(trusted: &Trusted) -> Builder {
    trusted.egressctl(&(originated(HOST, 443) + &originated(NEIGHBOUR, 443)))
}

#[tokio::test]
async fn a_connection_verified_for_one_host_does_not_serve_another() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let stage = Stage::start(two_hosts(&trusted), site, [HOST, NEIGHBOUR]).await?;
    // The connections and TLS sessions that these leave behind are at the same address.
    for _ in 0..2 {
        assert_eq!(stage.get(HOST, "/good").await?.status, 200);
        assert_eq!(stage.get(NEIGHBOUR, "/bad").await?.status, 503);
    }
    let seen = stage.site.take_seen();
    assert_eq!(seen.len(), 2, "{seen:#?}");
    for seen in &seen {
        assert_originated(seen, HOST, HOST);
    }
    let log = stage.log("/bad").await?;
    assert_eq!(log.egress("verify"), NEIGHBOUR);
    let why = log.istio("upstream_transport_failure_reason");
    ensure!(why.contains("SAN"), "{why}");
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn hosts_behind_one_address_have_connections_of_their_own() -> Result<()> {
    let trusted = Trusted::new()?;
    let first = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let second = trusted.ca.issue(&Leaf::for_names([NEIGHBOUR]))?;
    let site = StandInConfig::new(first).with_certificate(second);
    let site = StandIn::start(site).await?;
    let stage = Stage::start(two_hosts(&trusted), site, [HOST, NEIGHBOUR]).await?;

    let mut connections = Vec::new();
    for host in [HOST, NEIGHBOUR, HOST, NEIGHBOUR] {
        assert_eq!(stage.get(host, "/").await?.status, 200);
        let seen = only(&stage.site)?;
        assert_originated(&seen, host, host);
        connections.push(seen.connection_id);
    }
    let [first, second, again, still] = connections[..] else {
        unreachable!("four requests")
    };
    assert_ne!(first, second, "the hosts share a connection");
    assert_eq!((first, second), (again, still), "connections are not kept");
    stage.nothing_in_plaintext().await
}
