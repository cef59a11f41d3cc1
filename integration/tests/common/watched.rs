//! A filter that Envoy reads from a file of its own, so that it can be replaced while Envoy runs.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::timeout;

use egress_integration::{
    dns::DnsServer,
    envoy::{self, EnvoyProcess},
    probe,
    stand_in::{Listener, StandIn},
};

use super::{HOST, MANAGER, SOON, Trusted, assert_originated, dns, only, originated, rendered};

/// A host that rules get later.
pub(crate) const ADDED: &str = "money.cnn.com";
/// How often to ask whether an update has come through; Envoy tells nobody.
const UPDATE_INTERVAL: Duration = Duration::from_millis(20);

/// A site, the rules for it, and an Envoy whose filter is configured by a file that it watches.
pub(crate) struct Watched {
    pub(crate) site: StandIn,
    pub(crate) dns: DnsServer,
    pub(crate) trusted: Trusted,
    pub(crate) bootstrap: Value,
    pub(crate) wasm: Value,
    form: &'static str,
    pub(crate) file: PathBuf,
    versions: u32,
    has_default: bool,
}

impl Watched {
    /// Everything but the file, which [`Watched::write`] makes.
    pub(crate) async fn new() -> Result<Self> {
        Self::of("wasm").await
    }

    /// The same with this form of the filter.
    pub(crate) async fn of(form: &'static str) -> Result<Self> {
        let trusted = Trusted::new()?;
        let (site, dns) = (trusted.site([HOST, ADDED]).await?, dns().await?);
        let rules = originated(HOST, site.tls_addr().port());
        let resolver = dns.addr().to_string();
        let args = ["--filter", form, "--resolver", &resolver];
        let mut bootstrap = rendered(&trusted, &rules, &args).await?;
        let file = trusted.path("filter.json");
        let wasm = behind_a_file(&mut bootstrap, &file)?;
        Ok(Self {
            site,
            dns,
            trusted,
            bootstrap,
            wasm,
            form,
            file,
            versions: 0,
            has_default: true,
        })
    }

    /// The plugin configuration for [`HOST`] and these hosts besides.
    pub(crate) async fn plugin(&self, more: &[&str]) -> Result<Value> {
        let port = self.site.tls_addr().port();
        let mut rules = originated(HOST, port);
        rules.extend(more.iter().map(|host| originated(host, port)));
        let resolver = self.dns.addr().to_string();
        let args = ["--filter", self.form, "--resolver", &resolver];
        let mut bootstrap = rendered(&self.trusted, &rules, &args).await?;
        let wasm = behind_a_file(&mut bootstrap, Path::new("nowhere"))?;
        let text = wasm.pointer(self.told()).and_then(Value::as_str);
        let mut plugin: Value = serde_json::from_str(text.context("no plugin configuration")?)?;
        if !self.has_default {
            let fields = plugin.as_object_mut().context("no object")?;
            fields
                .remove("defaultCluster")
                .context("no default cluster")?;
        }
        Ok(plugin)
    }

    /// Where the filter has its configuration.
    fn told(&self) -> &'static str {
        match self.form {
            "wasm" => "/config/configuration/value",
            _ => "/filter_config/value",
        }
    }

    /// Takes away the routes that want nothing of the filter, so that they are as in the examples.
    pub(crate) fn lose_default(&mut self) -> Result<()> {
        let routes = format!("{MANAGER}/route_config/virtual_hosts/0/routes");
        let routes = self
            .bootstrap
            .pointer_mut(&routes)
            .and_then(Value::as_array_mut);
        let routes = routes.context("no routes")?;
        let before = routes.len();
        routes.retain(|route| route.pointer("/route/cluster_header").is_some());
        ensure!(!routes.is_empty() && routes.len() < before, "{routes:?}");
        self.has_default = false;
        Ok(())
    }

    /// Has Envoy ask a server for the filter, by gRPC, in place of the file, and wait for it so long.
    pub(crate) fn ask(&mut self, server: SocketAddr, patience: Duration) -> Result<()> {
        let filter = format!("{MANAGER}/http_filters/0/config_discovery/config_source");
        let source = self.bootstrap.pointer_mut(&filter);
        let source = source.and_then(Value::as_object_mut);
        let source = source.context("no source")?;
        source.remove("path_config_source").context("no file")?;
        let grpc = json!({
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "discovery"}}],
        });
        source.insert("api_config_source".to_owned(), grpc);
        let patience = format!("{}s", patience.as_secs());
        source.insert("initial_fetch_timeout".to_owned(), json!(patience));
        let mut cluster = static_cluster("discovery", server);
        let http2 = json!({"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}});
        let options = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2});
        let fields = cluster.as_object_mut().context("no cluster")?;
        fields.insert("typed_extension_protocol_options".to_owned(), options);
        self.add_cluster(cluster)
    }

    /// One more cluster.
    pub(crate) fn add_cluster(&mut self, cluster: Value) -> Result<()> {
        let clusters = self.bootstrap.pointer_mut("/static_resources/clusters");
        let clusters = clusters.and_then(Value::as_array_mut);
        clusters.context("no clusters")?.push(cluster);
        Ok(())
    }

    /// The filter with this plugin configuration.
    pub(crate) fn configured(&self, plugin: &Value) -> Result<Value> {
        let mut wasm = self.wasm.clone();
        let place = wasm.pointer_mut(self.told());
        *place.context("no plugin configuration")? = json!(plugin.to_string());
        Ok(wasm)
    }

    /// Gives the filter another plugin configuration, by the rename that Envoy watches for.
    pub(crate) fn write(&mut self, plugin: &Value) -> Result<()> {
        self.write_filter(&self.configured(plugin)?)
    }

    /// Gives Envoy another filter.
    pub(crate) fn write_filter(&mut self, wasm: &Value) -> Result<()> {
        let kind = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
        self.write_resources(&json!([{"@type": kind, "name": "egress", "typed_config": wasm}]))
    }

    /// Gives Envoy what it may take for its filters.
    pub(crate) fn write_resources(&mut self, resources: &Value) -> Result<()> {
        self.versions += 1;
        let update = json!({
            "version_info": self.versions.to_string(),
            "resources": resources,
        });
        let new = self.trusted.file("filter.json.new", &update.to_string())?;
        std::fs::rename(new, &self.file)?;
        Ok(())
    }

    pub(crate) async fn start(&self) -> Result<EnvoyProcess> {
        let bootstrap = self.bootstrap.to_string();
        EnvoyProcess::start(&envoy::binary()?, &bootstrap, ["--concurrency", "1"]).await
    }

    /// Proves that a request for [`HOST`] is originated.
    pub(crate) async fn assert_originates(&self, envoy: &EnvoyProcess) -> Result<()> {
        let answer = probe::get(envoy.listener("outbound_80")?, HOST, "/").await?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let host = format!("{HOST}:{}", self.site.tls_addr().port());
        assert_originated(&only(&self.site)?, &host, HOST);
        Ok(())
    }

    /// Proves that nothing reached the site.
    pub(crate) fn assert_untouched(&self) {
        for listener in [Listener::Plain, Listener::Tls] {
            let counts = self.site.counts(listener);
            assert_eq!(counts.connections, 0, "{listener:?}: {counts:?}");
        }
    }
}

/// A cluster of one server, in plaintext.
pub(crate) fn static_cluster(name: &str, at: SocketAddr) -> Value {
    let address = json!({"address": at.ip().to_string(), "port_value": at.port()});
    json!({
        "name": name,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": address}}},
        ]}]},
    })
}

/// Moves the filter out of the bootstrap, to be read from `file`; returns what it was.
pub(crate) fn behind_a_file(bootstrap: &mut Value, file: &Path) -> Result<Value> {
    let filters = bootstrap
        .pointer_mut(MANAGER)
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
            "type_urls": [
                "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
            ],
        },
    });
    let mut filter = std::mem::replace(filter, discovered);
    filter
        .get_mut("typed_config")
        .map(Value::take)
        .context("no configuration")
}

/// Waits until a host is reached, which an update is to bring about.
pub(crate) async fn applied(http: SocketAddr, host: &str) -> Result<()> {
    let reached = async {
        while probe::get(http, host, "/").await?.status != 200 {
            tokio::time::sleep(UPDATE_INTERVAL).await;
        }
        Ok(())
    };
    let limited = timeout(SOON, reached).await;
    limited.context("the update does not come through")?
}
