//! While the native filter comes, changes or is missing: what is said of it in `filter/module/roll-out.md`.
//!
//! As in `rollout.rs`, each row of the table there is the test of the same name here.

mod common;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use egress_integration::{egressctl::binary, envoy::EnvoyProcess, probe, stand_in::Listener};

use common::{
    HOST, assert_originated, eventually,
    load::Load,
    only,
    states::States,
    watched::{ADDED, Watched, applied},
};

const STATES: States = States {
    page: include_str!("../../filter/module/roll-out.md"),
    program: include_str!("rollout_native.rs"),
};
const STILL: &str = "the previous rules";

/// Waits for what the row of a state says that tells it, and returns what a request gets.
async fn told(state: &str, envoy: &EnvoyProcess) -> Result<String> {
    let fact = STATES.fact(state)?;
    fact.is_told(envoy).await?;
    Ok(fact.gets)
}

/// Proves what the row of a state says, and that a good filter ends it; nothing but verified TLS has reached the site
/// then.
async fn passes(state: &str, watched: &mut Watched, envoy: &EnvoyProcess) -> Result<()> {
    let gets = told(state, envoy).await?;
    let http = envoy.listener("outbound_80")?;
    for _ in 0..3 {
        if gets == STILL {
            watched.assert_originates(envoy).await?;
            assert_eq!(probe::get(http, ADDED, "/").await?.status, 502);
        } else {
            for headers in [&[][..], &[("x-egress-originate", common::SHARED)]] {
                let answer = probe::get_with(http, HOST, "/", headers).await?;
                assert_eq!(answer.status.to_string(), gets, "{}", answer.body);
            }
            watched.assert_untouched();
        }
    }
    let better = watched.plugin(&[ADDED]).await?;
    watched.write(&better)?;
    applied(http, ADDED).await?;
    let host = format!("{ADDED}:{}", watched.site.tls_addr().port());
    assert_originated(&only(&watched.site)?, &host, ADDED);
    watched.assert_originates(envoy).await?;
    assert_eq!(watched.site.counts(Listener::Plain).connections, 0);
    assert_eq!(watched.site.counts(Listener::Tls).failed_handshakes, []);
    Ok(())
}

/// An Envoy whose filter has come and works.
async fn working() -> Result<(Watched, EnvoyProcess)> {
    let mut watched = Watched::of("module").await?;
    let good = watched.plugin(&[]).await?;
    watched.write(&good)?;
    let envoy = watched.start().await?;
    watched.assert_originates(&envoy).await?;
    Ok((watched, envoy))
}

/// The rules for one more host, made for another filter.
async fn skewed(watched: &Watched) -> Result<Value> {
    let mut plugin = watched.plugin(&[ADDED]).await?;
    let digest = plugin.get_mut("digest").context("no digest")?;
    *digest = json!("0123456789abcdef");
    Ok(plugin)
}

/// The filter for one more host, with another module.
async fn with_module(watched: &Watched, module: &Path) -> Result<Value> {
    let mut filter = watched.configured(&watched.plugin(&[ADDED]).await?)?;
    let place = filter.pointer_mut("/dynamic_module_config/module/local/filename");
    *place.context("no module")? = json!(module);
    Ok(filter)
}

/// Gives a filter that works another module, which changes nothing.
async fn keeps_its_module(state: &str, module: &Path) -> Result<()> {
    let (mut watched, envoy) = working().await?;
    let other = with_module(&watched, module).await?;
    watched.write_filter(&other)?;
    passes(state, &mut watched, &envoy).await
}

#[test]
fn each_row_has_its_test_and_each_test_its_row() {
    STATES.assert_are_tests(5);
}

#[tokio::test]
async fn no_filter_has_come_yet() -> Result<()> {
    let mut watched = Watched::of("module").await?;
    watched.write_resources(&json!([]))?;
    let envoy = watched.start().await?;
    passes("no filter has come yet", &mut watched, &envoy).await
}

#[tokio::test]
async fn the_first_filter_is_refused() -> Result<()> {
    let mut watched = Watched::of("module").await?;
    let bad = skewed(&watched).await?;
    watched.write(&bad)?;
    let envoy = watched.start().await?;
    passes("the first filter is refused", &mut watched, &envoy).await
}

#[tokio::test]
async fn the_module_is_not_there() -> Result<()> {
    keeps_its_module(
        "the module is not there",
        Path::new("/nowhere/libegress_filter.so"),
    )
    .await
}

#[tokio::test]
async fn the_module_is_broken() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let broken = folder.path().join("libbroken.so");
    std::fs::write(&broken, "no library")?;
    keeps_its_module("the module is broken", &broken).await
}

#[tokio::test]
async fn the_module_is_cut_short() -> Result<()> {
    let (mut watched, envoy) = working().await?;
    let folder = tempfile::tempdir()?;
    let whole = std::fs::read(binary()?.with_file_name("libegress_filter.so"))?;
    let (half, _) = whole.split_at(whole.len() / 2);
    let short = folder.path().join("libshort.so");
    std::fs::write(&short, half)?;
    let other = with_module(&watched, &short).await?;
    watched.write_filter(&other)?;
    let gets = told("the module is cut short", &envoy).await?;
    assert_eq!(gets, "nothing: Envoy ends");
    let http = envoy.listener("outbound_80")?;
    eventually("nobody listens", async || {
        Ok(probe::get(http, HOST, "/").await.is_err())
    })
    .await?;
    assert_eq!(watched.site.counts(Listener::Plain).connections, 0);
    Ok(())
}

#[tokio::test]
async fn an_update_that_the_filter_refuses() -> Result<()> {
    let (mut watched, envoy) = working().await?;
    let bad = skewed(&watched).await?;
    watched.write(&bad)?;
    passes("an update that the filter refuses", &mut watched, &envoy).await
}

#[tokio::test]
async fn a_good_update() -> Result<()> {
    let (mut watched, envoy) = working().await?;
    let http = envoy.listener("outbound_80")?;
    let load = Load::start(http, 4);
    load.goes_on().await?;
    let better = watched.plugin(&[ADDED]).await?;
    watched.write(&better)?;
    applied(http, ADDED).await?;
    assert_eq!(told("a good update", &envoy).await?, "200 throughout");
    load.goes_on().await?;
    // Each was answered with 200, or this fails.
    let answered = load.end().await?;
    ensure!(answered > 20, "{answered}");
    let seen = watched.site.take_seen();
    ensure!(seen.iter().all(|seen| seen.listener == Listener::Tls));
    Ok(())
}

#[tokio::test]
async fn an_update_that_takes_the_filter_away() -> Result<()> {
    let (mut watched, envoy) = working().await?;
    watched.write_resources(&json!([]))?;
    passes("an update that takes the filter away", &mut watched, &envoy).await
}
