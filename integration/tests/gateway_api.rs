//! Routes of the Gateway API: what each does on a real Envoy, and what the server saw of it.

mod common;

use anyhow::{Result, ensure};
use egress_integration::{probe, silent_port::SilentPort};

use common::{HOST, Stage, Trusted, assert_originated, only, route};

const TOLD: &str = "told.example.com";

/// Some kinds' group, and the version of it.
fn document(kind: &str, meta: &str, spec: &str) -> String {
    let group = match kind {
        "ServiceEntry" | "DestinationRule" => "networking.istio.io",
        _ => "gateway.networking.k8s.io",
    };
    format!("---\napiVersion: {group}/v1\nkind: {kind}\nmetadata: {{{meta}}}\nspec: {{{spec}}}\n")
}

/// The host with HTTP on 80 and HTTPS on 443.
fn entry() -> String {
    document(
        "ServiceEntry",
        "name: cnn",
        &format!(
            "hosts: [{HOST}], resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: https, protocol: HTTPS}}]"
        ),
    )
}

/// TLS on 443 alone, for what is led there.
fn rule() -> String {
    document(
        "DestinationRule",
        "name: cnn",
        &format!(
            "host: {HOST}, trafficPolicy: {{portLevelSettings: [{{port: {{number: 443}}, tls: {{mode: SIMPLE}}}}]}}"
        ),
    )
}

/// A route of the host, with these rules.
fn attached(kind: &str, rules: &str) -> String {
    let parent = "{group: networking.istio.io, kind: ServiceEntry, name: cnn}";
    document(
        kind,
        "name: routes",
        &format!("parentRefs: [{parent}], {rules}"),
    )
}

/// Port 443 of the host as a destination, with more of its fields.
fn backend(more: &str) -> String {
    format!("{{group: networking.istio.io, kind: Hostname, name: {HOST}, port: 443{more}}}")
}

async fn stage(trusted: &Trusted, rules: &str) -> Result<Stage> {
    let site = trusted.site([HOST, TOLD]).await?;
    Stage::start(trusted.egressctl(rules), site, [HOST]).await
}

#[tokio::test]
async fn from_port_80_to_443_of_the_same_host() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = format!("rules: [{{backendRefs: [{}]}}]", backend(""));
    let rules = entry() + &rule() + &attached("HTTPRoute", &rules);
    let stage = stage(&trusted, &rules).await?;
    stage.originates(&trusted).await
}

/// Rules whose order in the file is not the one in which they count.
fn branches() -> String {
    let rewrite = |more: &str| format!("filters: [{{type: URLRewrite, urlRewrite: {{{more}}}}}]");
    let path = |value: &str| format!("matches: [{{path: {{type: PathPrefix, value: {value}}}}}]");
    let removed = rewrite("path: {type: ReplacePrefixMatch, replacePrefixMatch: /}");
    let replaced = rewrite("path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}");
    let whole = rewrite("path: {type: ReplaceFullPath, replaceFullPath: /whole}");
    let told = rewrite(&format!("hostname: {TOLD}"));
    let header = |value: &str| {
        format!(
            ", filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-share, value: {value}}}]}}}}]"
        )
    };
    let rules = [
        format!("{}, backendRefs: [{}]", path("/foo"), backend(&header("short"))),
        format!("{}, backendRefs: [{}]", path("/foo/long"), backend(&header("long"))),
        format!("{}, {removed}, backendRefs: [{}]", path("/removed"), backend("")),
        format!("{}, {replaced}, backendRefs: [{}]", path("/replaced"), backend("")),
        format!("{}, {whole}, backendRefs: [{}]", path("/any"), backend("")),
        format!("{}, {told}, backendRefs: [{}]", path("/told"), backend("")),
        format!(
            "{}, backendRefs: [{}, {}, {{name: nowhere, port: 80, weight: 0}}]",
            path("/shares"),
            backend(&format!(", weight: 1{}", header("one"))),
            backend(&format!(", weight: 3{}", header("three")))
        ),
        format!("{}, backendRefs: [{{name: nowhere, port: 80}}]", path("/lost")),
        format!("{}, backendRefs: [{}]", path("/none"), backend(", weight: 0")),
        "matches: [{method: DELETE}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]".to_owned(),
    ];
    let rules: Vec<String> = rules.iter().map(|rule| format!("{{{rule}}}")).collect();
    let calls = document(
        "GRPCRoute",
        "name: calls",
        &format!(
            "parentRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: cnn}}], rules: [{{matches: [{{method: {{service: shop.Cart, method: Add}}}}], backendRefs: [{}]}}]",
            backend(&header("call"))
        ),
    );
    entry() + &rule() + &attached("HTTPRoute", &format!("rules: [{}]", rules.join(", "))) + &calls
}

#[tokio::test]
async fn the_most_specific_rule_leads_a_request() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = stage(&trusted, &branches()).await?;
    for (path, seen, share, sni) in [
        ("/foo", "/foo", Some("short"), HOST),
        ("/foo/a", "/foo/a", Some("short"), HOST),
        ("/foo/longer", "/foo/longer", Some("short"), HOST),
        ("/foo/long/a", "/foo/long/a", Some("long"), HOST),
        ("/removed", "/", None, HOST),
        ("/removed/a?b=c", "/a?b=c", None, HOST),
        ("/replaced/a?b=c", "/new/a?b=c", None, HOST),
        ("/any/a?b=c", "/whole?b=c", None, HOST),
        ("/told", "/told", None, TOLD),
        ("/shop.Cart/Add", "/shop.Cart/Add", Some("call"), HOST),
    ] {
        let answer = stage.get(HOST, path).await?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let found = only(&stage.site)?;
        assert_originated(&found, sni, sni);
        assert_eq!(found.path, seen);
        assert_eq!(found.header("x-share"), share, "{path}");
    }
    let line = stage.log("/foo/long/a").await?;
    assert_eq!(
        line.istio("route_name"),
        format!("default/routes/rules[1]/{HOST}:80")
    );
    for _ in 0..60 {
        assert_eq!(stage.get(HOST, "/shares").await?.status, 200);
    }
    let seen = stage.site.take_seen();
    let of = |share: &str| {
        seen.iter()
            .filter(|it| it.header("x-share") == Some(share))
            .count()
    };
    // Three in four: by chance fewer than half once in a million runs.
    ensure!(of("one") > 0 && of("three") > 30 && of("one") + of("three") == 60);
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn what_no_rule_leads_anywhere_stays() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = stage(&trusted, &branches()).await?;
    for (path, status, begins) in [
        ("/", 404, "egress_no_route: "),
        ("/foobar", 404, "egress_no_route: "),
        ("/foo/../bar", 404, "egress_no_route: "),
        ("/lost", 503, "egress_unknown_destination: "),
        ("/none", 500, ""),
    ] {
        let forged = [("x-egress-originate", "outbound|443||edition.cnn.com")];
        let answer = stage.get_with(HOST, path, &forged).await?;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        ensure!(answer.body.starts_with(begins), "{path}: {}", answer.body);
    }
    let request = format!("DELETE /a HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let answer = stage.raw(request).await?.to_ascii_lowercase();
    ensure!(answer.starts_with("http/1.1 302 "), "{answer}");
    ensure!(
        answer.contains(&format!("\r\nlocation: https://{HOST}/a\r\n")),
        "{answer}"
    );
    ensure!(stage.site.seen().is_empty(), "{:?}", stage.site.seen());
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn connections_of_tls_by_their_name() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = format!(
        "hostnames: [{HOST}], rules: [{{backendRefs: [{}]}}]",
        backend("")
    );
    let rules = entry() + &attached("TLSRoute", &rules);
    let stage = stage(&trusted, &rules).await?;
    let https = stage.proxy.listener(443)?;
    let tls = probe::get_tls(https, HOST, HOST, "/politics", &trusted.ca.pem()).await?;
    assert_eq!(tls.answer.status, 200);
    let seen = only(&stage.site)?;
    assert_eq!(seen.sni.as_deref(), Some(HOST));
    // Nobody has opened it.
    assert_eq!(seen.x_forwarded_proto, None);
    ensure!(
        probe::get_tls(https, TOLD, TOLD, "/", &trusted.ca.pem())
            .await
            .is_err()
    );
    let line = stage
        .site
        .counts(egress_integration::stand_in::Listener::Plain);
    ensure!(line.connections == 0);
    Ok(())
}

#[tokio::test]
async fn through_a_gateway_of_the_same_api() -> Result<()> {
    let trusted = Trusted::new()?;
    let gateway = |listener: &str| {
        document(
            "Gateway",
            "name: egress, namespace: gateways",
            &format!(
                "gatewayClassName: istio, listeners: [{{name: l, hostname: {HOST}, allowedRoutes: {{namespaces: {{from: All}}}}, {listener}}}]"
            ),
        )
    };
    let half = |kind: &str| {
        document(
            kind,
            "name: half",
            &format!(
                "parentRefs: [{{name: egress, namespace: gateways}}], hostnames: [{HOST}], rules: [{{backendRefs: [{}]}}]",
                backend("")
            ),
        )
    };
    let to_it = |port: u16| {
        format!(
            "rules: [{{backendRefs: [{{name: egress-istio, namespace: gateways, port: {port}}}]}}]"
        )
    };
    let mutual = "port: 443, protocol: HTTPS, tls: {mode: Terminate, options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}";
    for (listener, port) in [("port: 80, protocol: HTTP", 80), (mutual, 443)] {
        let rules = entry()
            + &rule()
            + &gateway(listener)
            + &attached("HTTPRoute", &to_it(port))
            + &half("HTTPRoute");
        let stage = stage(&trusted, &rules).await?;
        let answer = stage.get(HOST, "/politics").await?;
        assert_eq!(answer.status, 200, "{:?}", stage.proxy.stderr());
        assert_originated(&only(&stage.site)?, HOST, HOST);
        stage.nothing_in_plaintext().await?;
    }
    let passes = "port: 443, protocol: TLS, tls: {mode: Passthrough}";
    let rules = entry()
        + &gateway(passes)
        + &attached("TLSRoute", &format!("hostnames: [{HOST}], {}", to_it(443)))
        + &half("TLSRoute");
    let stage = stage(&trusted, &rules).await?;
    let https = stage.proxy.listener(443)?;
    let tls = probe::get_tls(https, HOST, HOST, "/", &trusted.ca.pem()).await?;
    assert_eq!(tls.answer.status, 200);
    assert_eq!(only(&stage.site)?.sni.as_deref(), Some(HOST));
    stage.silent.assert_silent().await
}

#[tokio::test]
async fn a_router_serves_what_its_gateway_of_kubernetes_says() -> Result<()> {
    let trusted = Trusted::new()?;
    let gateway = document(
        "Gateway",
        "name: egress, namespace: gateways",
        &format!(
            "gatewayClassName: istio, listeners: [{{name: l, hostname: {HOST}, port: 8080, protocol: HTTP, allowedRoutes: {{namespaces: {{from: All}}}}}}]"
        ),
    );
    let rules = format!(
        "parentRefs: [{{name: egress, namespace: gateways}}], hostnames: [{HOST}], rules: [{{matches: [{{path: {{value: /v1}}}}], backendRefs: [{}]}}]",
        backend("")
    );
    // What sidecars do is no business of a router's.
    let mesh = attached(
        "HTTPRoute",
        &format!("rules: [{{backendRefs: [{}]}}]", backend("")),
    );
    let rules = entry() + &rule() + &gateway + &mesh + &document("HTTPRoute", "name: half", &rules);
    let site = trusted.site([HOST]).await?;
    let silent = SilentPort::start().await?;
    let args = [
        "--proxy-type",
        "router",
        "--namespace",
        "gateways",
        "--label",
        "gateway.networking.k8s.io/gateway-name=egress",
    ];
    let builder = trusted.egressctl(&rules).port(8080, 0);
    let builder = args
        .into_iter()
        .fold(builder, |builder, arg| builder.arg(arg));
    let proxy = builder
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route(HOST, 80, silent.addr()))
        .start()
        .await?;
    let listener = proxy.listener(8080)?;
    let answer = probe::get(listener, HOST, "/v1/items").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_originated(&only(&site)?, HOST, HOST);
    for (host, path) in [(HOST, "/other"), ("nobody.example.com", "/v1/items")] {
        let answer = probe::get(listener, host, path).await?;
        assert_eq!(answer.status, 404, "{host}{path}: {}", answer.body);
    }
    ensure!(site.seen().is_empty());
    silent.assert_silent().await
}
