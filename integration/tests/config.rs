//! A filter that cannot honour its configuration says all that is wrong, and lets nothing through.

mod common;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::time::timeout;

use egress_integration::{
    dns::DnsServer,
    envoy::{self, EnvoyProcess},
    probe,
    stand_in::{Listener, StandIn},
};

use common::{HOST, SOON, Trusted, assert_originated, dns, only, originated, rendered};

const ADDED: &str = "money.cnn.com";
/// How often to ask whether an update has come through; Envoy tells nobody.
const UPDATE_INTERVAL: Duration = Duration::from_millis(20);

/// A site, the rules for it, and an Envoy whose filter is configured by a file that it watches.
struct Watched {
    site: StandIn,
    dns: DnsServer,
    trusted: Trusted,
    bootstrap: Value,
    wasm: Value,
    file: PathBuf,
    versions: u32,
}

impl Watched {
    /// Everything but the file, which [`Watched::write`] makes.
    async fn new() -> Result<Self> {
        let trusted = Trusted::new()?;
        let (site, dns) = (trusted.site([HOST, ADDED]).await?, dns().await?);
        let rules = originated(HOST, site.tls_addr().port());
        let resolver = dns.addr().to_string();
        let mut bootstrap = rendered(&trusted, &rules, &["--resolver", &resolver]).await?;
        let file = trusted.path("filter.json");
        let wasm = behind_a_file(&mut bootstrap, &file)?;
        Ok(Self {
            site,
            dns,
            trusted,
            bootstrap,
            wasm,
            file,
            versions: 0,
        })
    }

    /// The plugin configuration for [`HOST`] and these hosts besides.
    async fn plugin(&self, more: &[&str]) -> Result<Value> {
        let port = self.site.tls_addr().port();
        let mut rules = originated(HOST, port);
        rules.extend(more.iter().map(|host| originated(host, port)));
        let resolver = self.dns.addr().to_string();
        let mut bootstrap = rendered(&self.trusted, &rules, &["--resolver", &resolver]).await?;
        let wasm = behind_a_file(&mut bootstrap, Path::new("nowhere"))?;
        let text = wasm
            .pointer("/config/configuration/value")
            .and_then(Value::as_str);
        Ok(serde_json::from_str(
            text.context("no plugin configuration")?,
        )?)
    }

    /// Gives the filter another plugin configuration, by the rename that Envoy watches for.
    fn write(&mut self, plugin: &Value) -> Result<()> {
        self.versions += 1;
        let mut wasm = self.wasm.clone();
        let place = wasm.pointer_mut("/config/configuration/value");
        *place.context("no plugin configuration")? = json!(plugin.to_string());
        let kind = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
        let update = json!({
            "version_info": self.versions.to_string(),
            "resources": [{"@type": kind, "name": "egress", "typed_config": wasm}],
        });
        let new = self.trusted.file("filter.json.new", &update.to_string())?;
        std::fs::rename(new, &self.file)?;
        Ok(())
    }

    async fn start(&self) -> Result<EnvoyProcess> {
        let bootstrap = self.bootstrap.to_string();
        EnvoyProcess::start(&envoy::binary()?, &bootstrap, ["--concurrency", "1"]).await
    }

    /// Proves that a request for [`HOST`] is originated.
    async fn assert_originates(&self, envoy: &EnvoyProcess) -> Result<()> {
        let answer = probe::get(envoy.listener("outbound_80")?, HOST, "/").await?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let host = format!("{HOST}:{}", self.site.tls_addr().port());
        assert_originated(&only(&self.site)?, &host, HOST);
        Ok(())
    }

    /// Proves that nothing reached the site.
    fn assert_untouched(&self) {
        for listener in [Listener::Plain, Listener::Tls] {
            let counts = self.site.counts(listener);
            assert_eq!(counts.connections, 0, "{listener:?}: {counts:?}");
        }
    }
}

/// Moves the filter out of the bootstrap, to be read from `file`; returns what it was.
fn behind_a_file(bootstrap: &mut Value, file: &Path) -> Result<Value> {
    let manager = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
    let filters = bootstrap
        .pointer_mut(manager)
        .context("no connection manager")?;
    let filter = filters
        .pointer_mut("/http_filters/0")
        .context("no filter")?;
    ensure!(filter.get("name") == Some(&json!("egress")), "{filter:#}");
    let source = json!({
        "path_config_source": {"path": file},
        "resource_api_version": "V3",
        // For a file that is refused, this is when the listener gives up waiting for a good one.
        "initial_fetch_timeout": "0.5s",
    });
    let discovered = json!({
        "name": "egress",
        "config_discovery": {
            "config_source": source,
            "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
        },
    });
    let mut filter = std::mem::replace(filter, discovered);
    filter
        .get_mut("typed_config")
        .map(Value::take)
        .context("no configuration")
}

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

/// Waits until a host is reached, which an update is to bring about.
async fn applied(http: SocketAddr, host: &str) -> Result<()> {
    let reached = async {
        while probe::get(http, host, "/").await?.status != 200 {
            tokio::time::sleep(UPDATE_INTERVAL).await;
        }
        Ok(())
    };
    let limited = timeout(SOON, reached).await;
    limited.context("the update does not come through")?
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
    let filter =
        "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters/0";
    let place = watched.bootstrap.pointer_mut(filter).context("no filter")?;
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
