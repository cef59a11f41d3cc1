//! One configuration for all workloads: the labels of Envoy's node say which rules are for it.

mod common;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use egress_integration::{
    envoy::{self, EnvoyProcess},
    pki::{Ca, Leaf},
    probe,
    stand_in::{Clients, Listener, StandIn, StandInConfig},
};

use common::{
    HOST, MANAGER, Trusted, assert_originated, credential, egressctl, entry, only, route,
};

/// A rule for the workloads of one app, or for all others, with a policy in YAML's flow style.
fn rule_for(name: &str, app: Option<&str>, policy: &str) -> String {
    let selector = app.map_or(String::new(), |app| {
        format!("workloadSelector: {{matchLabels: {{app: {app}}}}}, ")
    });
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec: {{host: {HOST}, {selector}trafficPolicy: {policy}}}
"
    )
}

/// The site, its authority, and the bootstrap of all workloads' Envoy.
struct World {
    site: StandIn,
    bootstrap: Value,
    _trusted: Trusted,
    _folder: tempfile::TempDir,
}

impl World {
    /// `shop` and `bank` have a certificate each; `rest` is the policy of everybody else.
    async fn new(policies: [&str; 3]) -> Result<Self> {
        let trusted = Trusted::new()?;
        let ca = Ca::new("example.com")?;
        let folder = tempfile::tempdir()?;
        for name in ["shop", "bank"] {
            credential(
                folder.path(),
                name,
                &ca.issue(&Leaf::client(name))?,
                &ca.pem(),
            )?;
        }
        let ca_file = trusted.file("ca.pem", &ca.pem())?;
        let roots = vec![ca.certificate().clone()];
        let site = StandInConfig::new(ca.issue(&Leaf::for_names([HOST]))?);
        let site = StandIn::start(site.clients(Clients::Requested(roots))).await?;

        let [shop, bank, rest] = policies;
        let rest = rest.replace("CA", &ca_file.display().to_string());
        let rules = entry(HOST, 443)
            + &rule_for("shop", Some("shop"), shop)
            + &rule_for("bank", Some("bank"), bank)
            + &rule_for("rest", None, &rest);
        let rules = trusted.file("rules.yaml", &rules)?.display().to_string();
        let credentials = folder.path().display().to_string();
        let to = route(HOST, 443, site.tls_addr());
        let output = egressctl(
            &trusted,
            [
                "render",
                "envoy",
                "-o",
                "json",
                "--labels-from-node",
                "-f",
                &rules,
                "--port",
                "80=0",
                "--credentials",
                &credentials,
                "--connect-to",
                &to,
            ],
        )
        .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
        let mut bootstrap: Value = serde_json::from_slice(&output.stdout)?;
        bootstrap
            .as_object_mut()
            .context("no object")?
            .remove("admin");
        Ok(Self {
            site,
            bootstrap,
            _trusted: trusted,
            _folder: folder,
        })
    }

    /// Starts the one bootstrap as a workload with this label, asks once, and returns the name of the client
    /// that the server knew, and the log line.
    async fn as_app(&self, app: &str) -> Result<(Option<String>, String)> {
        let labels = serde_json::json!({"app": app});
        let mut bootstrap = self.bootstrap.clone();
        *bootstrap
            .pointer_mut("/node/metadata/LABELS")
            .context("no labels")? = labels;
        let envoy = EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), [""; 0]).await?;
        let answer = probe::get(envoy.listener("outbound_80")?, HOST, "/").await?;
        ensure!(answer.status == 200, "{app}: {}", answer.body);
        let seen = only(&self.site)?;
        assert_originated(&seen, HOST, HOST);
        let log = envoy
            .wait_for_stdout(|line| line.contains("action="), common::SOON)
            .await?;
        Ok((seen.client.map(|client| client.common_name), log))
    }
}

/// Three rules that differ in their certificates.
const CERTIFICATES: [&str; 3] = [
    "{loadBalancer: {simple: ROUND_ROBIN}, tls: {mode: MUTUAL, credentialName: shop}}",
    "{loadBalancer: {simple: ROUND_ROBIN}, tls: {mode: MUTUAL, credentialName: bank}}",
    "{loadBalancer: {simple: ROUND_ROBIN}, tls: {mode: SIMPLE, caCertificates: CA}}",
];

#[tokio::test]
async fn each_workload_shows_its_own_certificate() -> Result<()> {
    let world = World::new(CERTIFICATES).await?;
    let clusters = world.bootstrap.pointer("/static_resources/clusters");
    let clusters = clusters.and_then(Value::as_array).context("no clusters")?;
    let [cluster] = &clusters[..] else {
        panic!("one cluster with three transport sockets, not {clusters:#?}")
    };
    let sockets = cluster
        .get("transport_socket_matches")
        .and_then(Value::as_array);
    assert_eq!(sockets.map(Vec::len), Some(3));
    for (app, client) in [
        ("shop", Some("shop")),
        ("bank", Some("bank")),
        ("other", None),
    ] {
        let (known, log) = world.as_app(app).await?;
        assert_eq!(known.as_deref(), client, "{app}: {log}");
        let rule = format!("rule=default/{}", client.unwrap_or("rest"));
        assert!(log.contains(&rule), "{log}");
        let socket = format!("transport_socket=outbound|80||{HOST}~");
        assert!(log.contains(&socket), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn rules_that_differ_in_more_have_clusters_of_their_own() -> Result<()> {
    let [shop, bank, rest] = CERTIFICATES;
    let bank = bank.replace("ROUND_ROBIN", "RANDOM");
    let world = World::new([shop, &bank, rest]).await?;
    for (app, client) in [
        ("shop", Some("shop")),
        ("bank", Some("bank")),
        ("other", None),
    ] {
        let (known, log) = world.as_app(app).await?;
        assert_eq!(known.as_deref(), client, "{app}: {log}");
        assert!(
            log.contains(&format!(" cluster=outbound|80||{HOST}~")),
            "{log}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn hosts_that_could_share_a_cluster_do_and_the_label_still_decides() -> Result<()> {
    let world = World::new([
        "{tls: {mode: MUTUAL, credentialName: shop}}",
        "{tls: {mode: MUTUAL, credentialName: bank}}",
        "{tls: {mode: SIMPLE, caCertificates: CA}}",
    ])
    .await?;
    for (app, client) in [
        ("shop", Some("shop")),
        ("bank", Some("bank")),
        ("other", None),
    ] {
        let (known, log) = world.as_app(app).await?;
        assert_eq!(known.as_deref(), client, "{app}: {log}");
        assert!(log.contains(" cluster=shared|"), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_that_nobody_chose_connects_to_nobody() -> Result<()> {
    let world = World::new(CERTIFICATES).await?;
    // As if the filter's choice had got lost on its way: nothing hands it to the upstream connection.
    let mut bootstrap = world.bootstrap.clone();
    let filters = format!("{MANAGER}/http_filters");
    let filters = bootstrap
        .pointer_mut(&filters)
        .and_then(Value::as_array_mut);
    let filters = filters.context("no filters")?;
    let before = filters.len();
    filters.retain(|filter| !filter.to_string().contains("egress.transport_socket"));
    assert_eq!(filters.len() + 1, before);
    let envoy = EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), [""; 0]).await?;
    let answer = probe::get(envoy.listener("outbound_80")?, HOST, "/").await?;
    assert_eq!(answer.status, 503);
    ensure!(world.site.seen().is_empty(), "{:?}", world.site.seen());
    Ok(())
}

#[tokio::test]
async fn labels_that_are_no_labels_refuse_every_request() -> Result<()> {
    // Without the rule for `shop`, requests would be forwarded as they came.
    let world = World::new([
        "{tls: {mode: MUTUAL, credentialName: shop}}",
        "{loadBalancer: {simple: RANDOM}}",
        "{loadBalancer: {simple: RANDOM}}",
    ])
    .await?;
    for labels in [
        serde_json::json!(["app"]),
        serde_json::json!([{"app": "shop"}]),
        serde_json::json!({"app": 2}),
        serde_json::json!("app=shop"),
        serde_json::json!(true),
    ] {
        let mut bootstrap = world.bootstrap.clone();
        let place = bootstrap.pointer_mut("/node/metadata/LABELS");
        *place.context("no labels")? = labels.clone();
        let started = EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), [""; 0]).await;
        let error = started
            .err()
            .with_context(|| format!("Envoy started with {labels}"))?;
        let said = format!("{error:#}");
        ensure!(said.contains("are not a map of texts"), "{labels}: {said}");
    }
    ensure!(world.site.counts(Listener::Plain).connections == 0);
    ensure!(world.site.counts(Listener::Tls).connections == 0);
    Ok(())
}
