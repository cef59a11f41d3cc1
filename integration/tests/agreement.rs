//! What `explain` says is what the filter does, in a cluster that was rendered, and what the server sees.

mod common;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use egress_integration::{probe, stand_in::Listener};

use common::{HOST, Trusted, dns, entry, entry_with, log_of, originated, rendered, route, rule};

/// One rule of each shape, and a few that lose.
fn rules(site: u16) -> String {
    let dynamic = format!(
        "resolution: DYNAMIC_DNS, location: MESH_INTERNAL, \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {site}}}]"
    );
    originated(HOST, 443)
        + &entry("own.example", 443)
        + &rule("own.example", "{tls: {mode: SIMPLE, sni: front.example}}")
        + &entry("names.example", 8443)
        + &rule(
            "names.example",
            "{tls: {mode: SIMPLE, subjectAltNames: [front.example]}}",
        )
        + &entry("balanced.example", 443)
        + &rule(
            "balanced.example",
            "{loadBalancer: {simple: ROUND_ROBIN}, tls: {mode: SIMPLE}}",
        )
        + &entry("plain.example", 80)
        + &rule("plain.example", "{tls: {mode: DISABLE}}")
        + &entry("alone.example", 80)
        + &entry_with("*.wild.example", &dynamic)
        + &rule("*.wild.example", "{tls: {mode: SIMPLE}}")
        + &rule("*.example", "{tls: {mode: SIMPLE, sni: loses.example}}")
}

/// The answer's field as the access log writes it.
fn word(answer: &Value, pointer: &str) -> String {
    match answer.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            items.join(",")
        }
        Some(other) => other.to_string(),
    }
}

#[tokio::test]
async fn explain_the_filter_and_the_rendered_clusters_agree() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted
        .site([HOST, "front.example", "balanced.example", "a.wild.example"])
        .await?;
    let dns = dns().await?;
    let rules = rules(site.tls_addr().port());
    let file = trusted.file("agreement.yaml", &rules)?;
    let resolver = dns.addr().to_string();

    let bootstrap = rendered(&trusted, &rules, &[]).await?;
    let clusters = bootstrap
        .pointer("/static_resources/clusters")
        .and_then(Value::as_array);
    let names: Vec<&str> = clusters
        .into_iter()
        .flatten()
        .filter_map(|cluster| cluster.get("name")?.as_str())
        .collect();

    let mut builder = trusted
        .egressctl(&rules)
        .port(80, 0)
        .arg("--resolver")
        .arg(&resolver);
    for (host, port, to) in [
        (HOST, 443, site.tls_addr()),
        ("own.example", 443, site.tls_addr()),
        ("names.example", 8443, site.tls_addr()),
        ("balanced.example", 443, site.tls_addr()),
        ("plain.example", 80, site.plain_addr()),
        ("alone.example", 80, site.plain_addr()),
    ] {
        builder = builder.connect_to(&route(host, port, to));
    }
    let proxy = builder.start().await?;

    for (at, (host, status)) in [
        (HOST, 200),
        ("own.example", 200),
        ("names.example", 200),
        ("balanced.example", 200),
        ("plain.example", 301),
        // A rule for a wider host that asks for TLS speaks for it: nothing answers TLS on the plain port.
        ("alone.example", 503),
        ("a.wild.example", 200),
        ("unknown.org", 502),
    ]
    .into_iter()
    .enumerate()
    {
        let url = format!("http://{host}/{at}");
        let args = [
            "explain".as_ref(),
            "-o".as_ref(),
            "json".as_ref(),
            "-f".as_ref(),
            file.as_os_str(),
            url.as_ref(),
        ];
        let output = common::egressctl(&trusted, args).await?;
        let explained: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;

        let path = format!("/{at}");
        let answer = probe::get(proxy.listener(80)?, host, &path).await?;
        assert_eq!(answer.status, status, "{host}: {}", answer.body);
        let log = log_of(&proxy, &path).await?;
        // How a connection fares is for the log alone.
        let reason = match status {
            503 => "not_tls".to_owned(),
            _ => word(&explained, "/reason"),
        };
        assert_eq!(log.egress("reason"), reason, "{host}");
        for (key, pointer) in [
            ("action", "/action"),
            ("rule", "/destinationRule"),
            ("service_entry", "/serviceEntry"),
            ("cluster", "/cluster"),
            ("transport_socket", "/transportSocket"),
            ("tls_mode", "/tls/mode"),
            ("sni", "/tls/sni"),
            ("verify", "/tls/subjectAltNames"),
        ] {
            assert_eq!(
                log.egress(key),
                word(&explained, pointer),
                "{key} of {host}"
            );
        }
        let cluster = log.egress("cluster");
        ensure!(
            cluster == "-" || names.contains(&cluster),
            "{cluster} is not rendered"
        );
        for seen in site.take_seen() {
            let tls = seen.listener == Listener::Tls;
            assert_eq!(tls, log.egress("action") == "originate", "{seen}");
            if tls {
                assert_eq!(seen.sni.as_deref(), Some(log.egress("sni")), "{seen}");
                assert_eq!(seen.host, word(&explained, "/authority"), "{seen}");
            }
        }
    }
    Ok(())
}
