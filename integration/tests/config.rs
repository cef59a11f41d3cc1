//! A filter that cannot honour its configuration says all that is wrong, and lets nothing through.

mod common;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use egress_integration::{envoy::EnvoyProcess, probe, stand_in::Listener};

use common::{
    HOST, MANAGER, SOON, assert_originated, only,
    watched::{ADDED, Watched, applied},
};

/// Puts an unknown mode and a port that is none into a plugin configuration.
fn spoil(plugin: &mut Value) -> Result<()> {
    let resources = plugin.get_mut("resources").and_then(Value::as_array_mut);
    for resource in resources.context("no resources")? {
        for (path, bad) in [
            ("/spec/trafficPolicy/tls/mode", json!("SIMPEL")),
            ("/spec/ports/0/number", json!(70000)),
        ] {
            if let Some(place) = resource.pointer_mut(path) {
                *place = bad;
            }
        }
    }
    Ok(())
}

/// Both of what [`spoil`] did, each with its field, in one log.
async fn assert_both_are_named(envoy: &EnvoyProcess) -> Result<()> {
    for problem in [
        "spec.trafficPolicy.tls.mode: unknown mode `SIMPEL`",
        "spec.ports[0].number: 70000 is out of range",
    ] {
        envoy
            .wait_for_stderr(|line| line.contains(problem), SOON)
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_update_is_refused_with_every_problem_and_a_good_one_is_applied() -> Result<()> {
    let mut watched = Watched::new().await?;
    let good = watched.plugin(&[]).await?;
    watched.write(&good)?;
    let envoy = watched.start().await?;
    let http = envoy.listener("outbound_80")?;
    watched.assert_originates(&envoy).await?;
    assert_eq!(probe::get(http, ADDED, "/").await?.status, 502);

    let mut bad = watched.plugin(&[ADDED]).await?;
    spoil(&mut bad)?;
    watched.write(&bad)?;
    assert_both_are_named(&envoy).await?;
    let refused = |line: &str| line.contains("gRPC config") || line.contains("rejected");
    envoy.wait_for_stderr(refused, SOON).await?;
    for _ in 0..3 {
        watched.assert_originates(&envoy).await?;
        assert_eq!(probe::get(http, ADDED, "/").await?.status, 502);
    }
    ensure!(watched.site.seen().is_empty(), "{:?}", watched.site.seen());

    let better = watched.plugin(&[ADDED]).await?;
    watched.write(&better)?;
    applied(http, ADDED).await?;
    let host = format!("{ADDED}:{}", watched.site.tls_addr().port());
    assert_originated(&only(&watched.site)?, &host, ADDED);
    watched.assert_originates(&envoy).await?;
    assert_eq!(watched.site.counts(Listener::Plain).connections, 0);
    Ok(())
}

#[tokio::test]
async fn rules_of_another_version_are_refused() -> Result<()> {
    let mut watched = Watched::new().await?;
    let good = watched.plugin(&[]).await?;
    watched.write(&good)?;
    let envoy = watched.start().await?;
    watched.assert_originates(&envoy).await?;

    let mut skewed = watched.plugin(&[ADDED]).await?;
    let digest = skewed.get_mut("digest").context("no digest")?;
    *digest = json!("0123456789abcdef");
    watched.write(&skewed)?;
    let named = |line: &str| line.contains("the configuration was made for 0123456789abcdef");
    envoy.wait_for_stderr(named, SOON).await?;
    watched.assert_originates(&envoy).await?;
    let answer = probe::get(envoy.listener("outbound_80")?, ADDED, "/").await?;
    assert_eq!(answer.status, 502);
    Ok(())
}

#[tokio::test]
async fn what_is_not_json_is_refused() -> Result<()> {
    let mut watched = Watched::new().await?;
    let good = watched.plugin(&[]).await?;
    watched.write(&good)?;
    let envoy = watched.start().await?;
    watched.assert_originates(&envoy).await?;
    // A string's text is written with its quotes: JSON, and no object.
    watched.write(&json!("resources"))?;
    let named = |line: &str| line.contains("the plugin configuration is not JSON");
    envoy.wait_for_stderr(named, SOON).await?;
    watched.assert_originates(&envoy).await
}

#[tokio::test]
async fn envoy_does_not_start_with_a_bad_configuration() -> Result<()> {
    let mut watched = Watched::new().await?;
    let mut bad = watched.plugin(&[]).await?;
    spoil(&mut bad)?;
    // Back into the bootstrap, where a static configuration stands.
    watched.write(&bad)?;
    let text = std::fs::read_to_string(&watched.file)?;
    let update: Value = serde_json::from_str(&text)?;
    let wasm = update
        .pointer("/resources/0/typed_config")
        .context("no filter")?;
    let filter = format!("{MANAGER}/http_filters/0");
    let place = watched
        .bootstrap
        .pointer_mut(&filter)
        .context("no filter")?;
    *place = json!({"name": "egress", "typed_config": wasm});

    let Err(error) = watched.start().await else {
        bail!("Envoy started");
    };
    let error = error.to_string();
    ensure!(error.contains("ended before it was live"), "{error}");
    ensure!(error.contains("unknown mode `SIMPEL`"), "{error}");
    ensure!(error.contains("70000 is out of range"), "{error}");
    watched.assert_untouched();
    Ok(())
}

#[tokio::test]
async fn requests_before_the_first_good_configuration_are_refused() -> Result<()> {
    let mut watched = Watched::new().await?;
    let mut bad = watched.plugin(&[]).await?;
    spoil(&mut bad)?;
    watched.write(&bad)?;
    let envoy = watched.start().await?;
    assert_both_are_named(&envoy).await?;
    for headers in [&[][..], &[("x-egress-originate", common::SHARED)]] {
        let http = envoy.listener("outbound_80")?;
        let answer = probe::get_with(http, HOST, "/", headers).await?;
        assert_eq!(answer.status, 500, "{}", answer.body);
    }
    watched.assert_untouched();

    // And it is not too late.
    let good = watched.plugin(&[]).await?;
    watched.write(&good)?;
    applied(envoy.listener("outbound_80")?, HOST).await?;
    assert_eq!(watched.site.counts(Listener::Plain).connections, 0);
    Ok(())
}
