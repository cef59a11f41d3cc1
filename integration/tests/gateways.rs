//! The shapes of VirtualServices, Gateways and policies that people have: what each does on a real Envoy, and what the
//! server saw of it.

mod common;

use anyhow::Result;
use egress_integration::pki::{Ca, Leaf};
use egress_integration::probe;
use egress_integration::stand_in::{Clients, Listener, StandIn, StandInConfig};

use common::{HOST, Stage, Trusted, assert_no_leak, assert_originated, credential, only, route};

const HOP: &str = "istio-egressgateway.istio-system.svc.cluster.local";

/// A document in `default`, with a `spec` in YAML's flow style.
fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

/// The host with HTTP on 80 and TLS on 443.
fn entry() -> String {
    document(
        "ServiceEntry",
        "cnn",
        &format!(
            "hosts: [{HOST}], resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: https, protocol: HTTPS}}]"
        ),
    )
}

/// TLS on 443 alone, for what is led there.
fn rule(tls: &str) -> String {
    document(
        "DestinationRule",
        "cnn",
        &format!(
            "host: {HOST}, trafficPolicy: {{portLevelSettings: [{{port: {{number: 443}}, tls: {{{tls}}}}}]}}"
        ),
    )
}

fn gateway(port: u16, protocol: &str, tls: &str) -> String {
    document(
        "Gateway",
        "egress",
        &format!(
            "selector: {{istio: egressgateway}}, servers: [{{port: {{number: {port}, name: p, protocol: {protocol}}}, hosts: [{HOST}]{tls}}}]"
        ),
    )
}

/// The rule of the hop between sidecar and gateway.
fn hop(port: u16) -> String {
    document(
        "DestinationRule",
        "hop",
        &format!(
            "host: {HOP}, subsets: [{{name: cnn, trafficPolicy: {{portLevelSettings: [{{port: {{number: {port}}}, tls: {{mode: ISTIO_MUTUAL, sni: {HOST}}}}}]}}}}]"
        ),
    )
}

/// Both halves of the way of requests: 80 to the gateway's `port`, and there on to `target`.
fn through_the_gateway(port: u16, subset: &str, target: u16) -> String {
    document(
        "VirtualService",
        "cnn",
        &format!(
            "hosts: [{HOST}], gateways: [egress, mesh], http: [
  {{match: [{{gateways: [mesh], port: 80}}], route: [{{destination: {{host: {HOP}{subset}, port: {{number: {port}}}}}}}]}},
  {{match: [{{gateways: [egress], port: {port}}}], route: [{{destination: {{host: {HOST}, port: {{number: {target}}}}}}}]}}]"
        ),
    )
}

const MESH_MUTUAL: &str = ", tls: {mode: ISTIO_MUTUAL}";

/// Runs rules, asks for a page, and holds that it came over verified TLS and that nothing was plaintext.
async fn originates(trusted: &Trusted, rules: &str) -> Result<()> {
    let stage = Stage::start(
        trusted.egressctl(rules),
        trusted.site([HOST]).await?,
        [HOST],
    )
    .await?;
    stage.originates(trusted).await
}

#[tokio::test]
async fn from_port_80_to_443_of_the_same_host() -> Result<()> {
    let trusted = Trusted::new()?;
    let leads = format!(
        "hosts: [{HOST}], http: [{{match: [{{port: 80}}], route: [{{destination: {{host: {HOST}, port: {{number: 443}}}}}}]}}]"
    );
    let rules = entry() + &rule("mode: SIMPLE") + &document("VirtualService", "cnn", &leads);
    originates(&trusted, &rules).await
}

#[tokio::test]
async fn an_egress_gateway_that_originates() -> Result<()> {
    let trusted = Trusted::new()?;
    for (port, protocol, tls, subset, hop) in [
        (80, "HTTP", "", "", String::new()),
        (80, "HTTPS", MESH_MUTUAL, ", subset: cnn", hop(80)),
        (443, "HTTPS", MESH_MUTUAL, ", subset: cnn", hop(443)),
    ] {
        let rules = entry()
            + &rule("mode: SIMPLE")
            + &gateway(port, protocol, tls)
            + &hop
            + &through_the_gateway(port, subset, 443);
        originates(&trusted, &rules).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_egress_gateway_with_mutual_tls_by_a_credential() -> Result<()> {
    let trusted = Trusted::new()?;
    let clients = Ca::new("the clients' CA")?;
    let client = clients.issue(&Leaf::client("client.example"))?;
    let folder = tempfile::tempdir()?;
    credential(
        folder.path(),
        "client-credential",
        &client,
        &trusted.ca.pem(),
    )?;
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let roots = Clients::Required(vec![clients.certificate().clone()]);
    let config = StandInConfig::new(certificate).clients(roots);
    let rules = entry()
        + &rule("mode: MUTUAL, credentialName: client-credential")
        + &gateway(443, "HTTPS", MESH_MUTUAL)
        + &hop(443)
        + &through_the_gateway(443, ", subset: cnn", 443);
    let builder = trusted
        .egressctl(&rules)
        .arg("--credentials")
        .arg(folder.path());
    let stage = Stage::start(builder, StandIn::start(config).await?, [HOST]).await?;
    let answer = stage.get(HOST, "/politics").await?;
    assert_eq!(answer.status, 200, "{:?}", stage.proxy.stderr());
    let seen = only(&stage.site)?;
    assert_originated(&seen, HOST, HOST);
    let shown = seen.client.map(|client| client.common_name);
    assert_eq!(shown.as_deref(), Some("client.example"));
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn an_egress_gateway_that_leaves_http_as_it_is() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let rules = entry() + &gateway(80, "HTTP", "") + &through_the_gateway(80, "", 80);
    let proxy = trusted
        .egressctl(&rules)
        .port(80, 0)
        .connect_to(&route(HOST, 80, site.plain_addr()))
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    let answer = probe::get(proxy.listener(80)?, HOST, "/politics").await?;
    assert_eq!(answer.status, 301);
    let seen = only(&site)?;
    assert_eq!((seen.listener, &*seen.host), (Listener::Plain, HOST));
    assert_no_leak(&seen);
    Ok(())
}

#[tokio::test]
async fn an_egress_gateway_that_passes_tls_through() -> Result<()> {
    let trusted = Trusted::new()?;
    let tls = format!(
        "hosts: [{HOST}], gateways: [egress, mesh], tls: [
  {{match: [{{gateways: [mesh], port: 443, sniHosts: [{HOST}]}}], route: [{{destination: {{host: {HOP}, port: {{number: 443}}}}}}]}},
  {{match: [{{gateways: [egress], port: 443, sniHosts: [{HOST}]}}], route: [{{destination: {{host: {HOST}, port: {{number: 443}}}}}}]}}]"
    );
    let rules = entry()
        + &gateway(443, "TLS", ", tls: {mode: PASSTHROUGH}")
        + &document("VirtualService", "cnn", &tls);
    let stage = Stage::start(
        trusted.egressctl(&rules),
        trusted.site([HOST]).await?,
        [HOST],
    )
    .await?;
    let https = stage.proxy.listener(443)?;
    let tls = probe::get_tls(https, HOST, HOST, "/politics", &trusted.ca.pem()).await?;
    assert_eq!(tls.answer.status, 200);
    let seen = only(&stage.site)?;
    assert_eq!(seen.sni.as_deref(), Some(HOST));
    // Nobody has opened it.
    assert_eq!(seen.x_forwarded_proto, None);
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn names_below_a_wildcard_by_sni() -> Result<()> {
    let trusted = Trusted::new()?;
    let (one, other) = ("one.example.com", "two.example.com");
    let wildcard = document(
        "ServiceEntry",
        "wild",
        "hosts: [\"*.example.com\"], resolution: DYNAMIC_DNS, ports: [{number: 443, name: tls, protocol: TLS}]",
    );
    let named = document(
        "VirtualService",
        "wild",
        &format!(
            "hosts: [\"*.example.com\"], tls: [{{match: [{{port: 443, sniHosts: [{one}]}}], route: [{{destination: {{host: \"*.example.com\", port: {{number: 443}}}}}}]}}]"
        ),
    );
    let site = trusted.site([one, other]).await?;
    let stage = Stage::start(trusted.egressctl(&(wildcard + &named)), site, [one, other]).await?;
    let https = stage.proxy.listener(443)?;
    let tls = probe::get_tls(https, one, one, "/", &trusted.ca.pem()).await?;
    assert_eq!(tls.answer.status, 200);
    assert_eq!(only(&stage.site)?.sni.as_deref(), Some(one));
    // Where routes speak of a service, a name that none of them has goes nowhere, as in Istio.
    assert!(
        probe::get_tls(https, other, other, "/", &trusted.ca.pem())
            .await
            .is_err()
    );
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn a_backend_tls_policy() -> Result<()> {
    let trusted = Trusted::new()?;
    let ports = format!(
        "hosts: [{HOST}], resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]"
    );
    let policy = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: cnn}}\nspec: {{targetRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: cnn, sectionName: http}}], validation: {{hostname: {HOST}, wellKnownCACertificates: System}}}}\n"
    );
    let rules = document("ServiceEntry", "cnn", &ports) + &policy;
    let stage = Stage::start(
        trusted.egressctl(&rules),
        trusted.site([HOST]).await?,
        [HOST],
    )
    .await?;
    let answer = stage.get(HOST, "/politics").await?;
    assert_eq!(answer.status, 200, "{:?}", stage.proxy.stderr());
    assert_originated(&only(&stage.site)?, HOST, HOST);
    stage.nothing_in_plaintext().await?;

    // A server of another name is refused, though Istio would take it.
    let other = trusted.site(["other.example"]).await?;
    let stage = Stage::start(trusted.egressctl(&rules), other, [HOST]).await?;
    assert_eq!(stage.get(HOST, "/politics").await?.status, 503);
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn what_leads_nowhere_is_refused_and_the_rest_works() -> Result<()> {
    let trusted = Trusted::new()?;
    let nowhere = document(
        "VirtualService",
        "lost",
        "hosts: [lost.example], http: [{route: [{destination: {host: nowhere.example, port: {number: 443}}}]}]",
    );
    let lost = document(
        "ServiceEntry",
        "lost",
        "hosts: [lost.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]",
    );
    let leads = format!(
        "hosts: [{HOST}], http: [{{route: [{{destination: {{host: {HOST}, port: {{number: 443}}}}}}]}}]"
    );
    let rules = entry()
        + &rule("mode: SIMPLE")
        + &lost
        + &nowhere
        + &document("VirtualService", "cnn", &leads);
    let stage = Stage::start(
        trusted.egressctl(&rules),
        trusted.site([HOST]).await?,
        [HOST],
    )
    .await?;
    let answer = stage.get("lost.example", "/").await?;
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("egress_unknown_destination"),
        "{}",
        answer.body
    );
    assert_eq!(stage.get(HOST, "/politics").await?.status, 200);
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn an_egress_gateway_that_matches_requests_a_second_time() -> Result<()> {
    let trusted = Trusted::new()?;
    let to = |host: &str, port: u16| {
        format!("route: [{{destination: {{host: {host}, port: {{number: {port}}}}}}}]")
    };
    let (hop, out) = (to(HOP, 80), to(HOST, 443));
    let mesh = format!(
        "hosts: [{HOST}], gateways: [mesh], http: [
  {{match: [{{uri: {{prefix: /news}}, port: 80}}], {hop}}},
  {{match: [{{port: 80}}], directResponse: {{status: 418}}}}]"
    );
    let behind = format!(
        "hosts: [{HOST}], gateways: [egress], http: [
  {{match: [{{uri: {{prefix: /news/world}}}}, {{uri: {{prefix: /never}}}}], {out}}},
  {{match: [{{headers: {{x-desk: {{exact: closed}}}}}}], directResponse: {{status: 410}}}},
  {{match: [{{headers: {{x-desk: {{prefix: s}}}}}}], headers: {{request: {{set: {{x-by: gateway}}}}}}, {out}}}]"
    );
    let rules = entry()
        + &rule("mode: SIMPLE")
        + &gateway(80, "HTTP", "")
        + &document("VirtualService", "mesh", &mesh)
        + &document("VirtualService", "behind", &behind);
    let site = trusted.site([HOST]).await?;
    let stage = Stage::start(trusted.egressctl(&rules), site, [HOST]).await?;
    let sport = [("x-desk", "sport")];
    for (path, headers, status, arrives) in [
        ("/news/world", &[][..], 200, true),
        // The sidecar's route has it, and none of the gateway's: no other of the sidecar's takes it.
        ("/news/local", &[], 404, false),
        ("/news/local", &sport, 200, true),
        ("/news/local", &[("x-desk", "closed")], 410, false),
        // What both must ask for, the gateway's route alone does not get.
        ("/never", &[], 418, false),
        ("/other", &sport, 418, false),
    ] {
        let answer = stage.get_with(HOST, path, headers).await?;
        assert_eq!(answer.status, status, "{path} {:?}", stage.proxy.stderr());
        let seen = stage.site.take_seen();
        assert_eq!(seen.len(), usize::from(arrives), "{path} {seen:?}");
        for seen in seen {
            assert_originated(&seen, HOST, HOST);
            assert_eq!(seen.path, path);
            let by = (!headers.is_empty()).then_some("gateway");
            assert_eq!(seen.header("x-by"), by);
        }
    }
    stage.nothing_in_plaintext().await
}
