//! Where DNS chooses the address, nothing private is dialled.

mod common;

use anyhow::{Result, ensure};

use egress_integration::{
    dns::{DnsServer, Zone},
    probe,
    silent_port::SilentPort,
    stand_in::Listener,
};

use common::{Trusted, by_dns, dns, entry_with, log_of, rule};

const NAME: &str = "sub.example.com";

/// A wildcard entry with one port that leads to `target`.
fn wildcard(port: u16, protocol: &str, target: u16, more: &str) -> String {
    let spec = format!(
        "resolution: DYNAMIC_DNS, {more}\
         ports: [{{number: {port}, name: only, protocol: {protocol}, targetPort: {target}}}]"
    );
    entry_with("*.example.com", &spec)
}

#[tokio::test]
async fn an_originated_request_below_a_wildcard_reaches_nothing_private() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, dns) = (trusted.site(["*.example.com"]).await?, dns().await?);
    let port = site.tls_addr().port();
    let rules = wildcard(80, "HTTP", port, "") + &rule("*.example.com", "{tls: {mode: SIMPLE}}");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let answer = probe::get(proxy.listener(80)?, NAME, "/private").await?;
    assert_eq!(answer.status, 403, "{}", answer.body);
    let log = log_of(&proxy, "/private").await?;
    assert_eq!(
        log.istio("response_code_details"),
        "rbac_access_denied_matched_policy[private_address]"
    );
    assert_eq!(log.egress("cluster"), "shared|SIMPLE|system|auto|public");
    assert_eq!(site.counts(Listener::Tls).connections, 0);
    ensure!(dns.queries(NAME) > 0);
    Ok(())
}

#[tokio::test]
async fn an_address_given_by_hand_is_not_chosen_by_dns() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site(["*.example.com"]).await?;
    let rules = wildcard(80, "HTTP", 443, "") + &rule("*.example.com", "{tls: {mode: SIMPLE}}");
    let to = common::route(NAME, 443, site.tls_addr());
    let proxy = trusted
        .egressctl(&rules)
        .port(80, 0)
        .connect_to(&to)
        .start()
        .await?;
    let answer = probe::get(proxy.listener(80)?, NAME, "/").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    Ok(())
}

/// What one host may reach is open to that host and port, on each way in, and to nobody else.
#[tokio::test]
async fn an_address_given_by_hand_is_open_to_one_host_and_port_alone() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, other, dns) = (
        trusted.site(["*.example.com"]).await?,
        SilentPort::start().await?,
        dns().await?,
    );
    let spec = format!(
        "resolution: DYNAMIC_DNS, ports: [\
         {{number: 80, name: http, protocol: HTTP, targetPort: {port}}}, \
         {{number: 81, name: other, protocol: HTTP, targetPort: {silent}}}, \
         {{number: 443, name: tls, protocol: TLS, targetPort: {port}}}]",
        port = site.tls_addr().port(),
        silent = other.addr().port(),
    );
    let tls = "{portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}";
    let rules = entry_with("*.example.com", &spec)
        + &rule("*.example.com", tls)
        + &common::originated(common::HOST, 443);
    let proxy = trusted
        .egressctl(&rules)
        .port(80, 0)
        .port(81, 0)
        .port(443, 0)
        .connect_to(&common::route(
            NAME,
            site.tls_addr().port(),
            site.tls_addr(),
        ))
        .connect_to(&common::route(common::HOST, 443, other.addr()))
        .arg("--resolver")
        .arg(dns.addr().to_string())
        .arg("--outbound-traffic-policy")
        .arg("ALLOW_ANY")
        .start()
        .await?;
    let ca = trusted.ca.pem();
    let answer = probe::get(proxy.listener(80)?, NAME, "/named").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = probe::get_tls(proxy.listener(443)?, NAME, NAME, "/tls", &ca).await?;
    assert_eq!(answer.answer.status, 200);
    assert_eq!(site.counts(Listener::Tls).connections, 2);

    let admin = proxy.admin()?;
    let below = "other.example.com";
    for (port, host, path) in [
        (80, below.to_owned(), "/"),
        (81, NAME.to_owned(), "/"),
        (80, other.addr().to_string(), "/"),
        (80, site.tls_addr().to_string(), "/"),
        (80, admin.to_string(), "/config_dump"),
        (80, format!("localhost:{}", admin.port()), "/quitquitquit"),
    ] {
        let answer = probe::get(proxy.listener(port)?, &host, path).await?;
        assert_eq!(answer.status, 403, "{host}{path}: {}", answer.body);
    }
    let end = format!("POST /quitquitquit HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    let answer = probe::raw(proxy.listener(80)?, end.as_bytes(), common::SOON).await?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 403 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let answer = probe::get_tls(proxy.listener(443)?, below, below, "/", &ca).await;
    ensure!(answer.is_err(), "{answer:?}");
    assert_eq!(site.counts(Listener::Tls).connections, 2);
    other.assert_silent().await?;
    assert_eq!(proxy.admin_get("/ready").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_forwarded_request_below_a_wildcard_reaches_nothing_private() -> Result<()> {
    let trusted = Trusted::new()?;
    let (silent, dns) = (SilentPort::start().await?, dns().await?);
    let rules = wildcard(80, "HTTP", silent.addr().port(), "");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let answer = probe::get(proxy.listener(80)?, NAME, "/private").await?;
    assert_eq!(answer.status, 403, "{}", answer.body);
    silent.assert_silent().await
}

#[tokio::test]
async fn tls_below_a_wildcard_reaches_nothing_private() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, dns) = (trusted.site(["*.example.com"]).await?, dns().await?);
    let rules = wildcard(443, "TLS", site.tls_addr().port(), "");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let answer = probe::get_tls(proxy.listener(443)?, NAME, NAME, "/", &trusted.ca.pem()).await;
    ensure!(answer.is_err(), "{answer:?}");
    assert_eq!(site.counts(Listener::Tls).connections, 0);
    Ok(())
}

#[tokio::test]
async fn a_host_that_is_left_alone_reaches_nothing_private() -> Result<()> {
    let trusted = Trusted::new()?;
    let (silent, dns) = (SilentPort::start().await?, dns().await?);
    let rules = common::originated(common::HOST, 443);
    let builder = trusted
        .egressctl(&rules)
        .port(80, 0)
        .arg("--resolver")
        .arg(dns.addr().to_string());
    let proxy = builder
        .arg("--outbound-traffic-policy")
        .arg("ALLOW_ANY")
        .start()
        .await?;
    let port = silent.addr().port();
    for host in [
        format!("other.example:{port}"),
        format!("127.0.0.1:{port}"),
        "169.254.169.254".to_owned(),
    ] {
        let answer = probe::get(proxy.listener(80)?, &host, "/private").await?;
        assert_eq!(answer.status, 403, "{host}: {}", answer.body);
    }
    silent.assert_silent().await
}

/// A service of the mesh may have a private address: the rule says so.
#[tokio::test]
async fn a_wildcard_of_the_mesh_may_be_private() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, dns) = (trusted.site(["*.example.com"]).await?, dns().await?);
    let port = site.tls_addr().port();
    let rules = wildcard(80, "HTTP", port, "location: MESH_INTERNAL, ")
        + &rule("*.example.com", "{tls: {mode: SIMPLE}}");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    assert_eq!(
        probe::get(proxy.listener(80)?, NAME, "/").await?.status,
        200
    );
    Ok(())
}

/// Envoy tries a name's further addresses without asking the guard again; then the certificate decides.
#[tokio::test]
async fn a_private_address_behind_a_public_one_gets_no_request() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site(["internal.example"]).await?;
    // Nobody listens at the first address.
    let both = ["192.0.2.1".parse()?, "127.0.0.1".parse()?];
    let dns = DnsServer::start(Zone::new().name(NAME, both)).await?;
    let rules = wildcard(80, "HTTP", site.tls_addr().port(), "")
        + &rule("*.example.com", "{tls: {mode: SIMPLE}}");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let answer = probe::get(proxy.listener(80)?, NAME, "/both").await?;
    assert_eq!(answer.status, 503, "{}", answer.body);
    ensure!(site.seen().is_empty(), "{:?}", site.seen());
    Ok(())
}
