//! A proxy on a real Envoy, configured as a live istiod did it, with rules and patches of ours.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use egress_integration::{
    envoy::{self, EnvoyProcess},
    istiod::{Configuration, Proxy},
    pki::Leaf,
    stand_in::{FailedHandshake, HttpVersions, Listener, StandIn, StandInConfig},
};

use crate::common::{Trusted, egressctl};
use crate::supplied::supply;

/// A configuration of a live istiod, and the resources that it was given.
pub(crate) struct Recorded {
    pub(crate) given: Vec<Value>,
    pub(crate) configuration: Configuration,
}

pub(crate) fn recorded(name: &str) -> Result<Recorded> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/istio-live");
    let text = std::fs::read_to_string(folder.join(format!("{name}.json")))?;
    let value: Value = serde_json::from_str(&text)?;
    Ok(Recorded {
        given: value["given"].as_array().context("nothing given")?.clone(),
        configuration: Configuration::read(&value)?,
    })
}

pub(crate) fn of_kind<'d>(documents: &'d [Value], kind: &str) -> Vec<&'d Value> {
    documents.iter().filter(|it| it["kind"] == kind).collect()
}

pub(crate) fn sidecar() -> Proxy {
    Proxy {
        context: "SIDECAR_OUTBOUND",
        labels: vec![("app".to_owned(), "one".to_owned())],
    }
}

pub(crate) fn gateway() -> Proxy {
    Proxy {
        context: "GATEWAY",
        labels: vec![
            ("app".to_owned(), "one".to_owned()),
            ("istio".to_owned(), "egressgateway".to_owned()),
        ],
    }
}

/// What a set of resources comes to in a proxy: those of `base`, but for the rules and patches, and without the hosts
/// that no ServiceEntry has.
pub(crate) fn assembled(
    base: &Recorded,
    resources: &[Value],
    proxy: &Proxy,
) -> Result<Configuration> {
    let mut made = base.configuration.clone();
    let has = |name: &str| {
        let entries = of_kind(resources, "ServiceEntry");
        let mut hosts = entries
            .iter()
            .filter_map(|it| it["spec"]["hosts"].as_array())
            .flatten();
        hosts.any(|host| *host == name)
    };
    made.clusters.retain(|it| {
        it["name"]
            .as_str()
            .and_then(|it| it.rsplit('|').next())
            .is_some_and(has)
    });
    for routes in &mut made.routes {
        let hosts = routes["virtual_hosts"].as_array_mut().context("no hosts")?;
        hosts.retain(|it| it["domains"][0] == "*" || it["domains"][0].as_str().is_some_and(has));
    }
    made.originate(&of_kind(resources, "DestinationRule"), proxy)?;
    for filter in of_kind(resources, "EnvoyFilter") {
        made.patch(filter, proxy)?;
    }
    Ok(made)
}

/// A proxy on a real Envoy, and the servers of the hosts.
pub(crate) struct Stage {
    pub(crate) trusted: Trusted,
    pub(crate) proxy: Proxy,
    pub(crate) base: Recorded,
    servers: BTreeMap<&'static str, SocketAddr>,
    /// The keys and certificates that istiod and its agent hand out, by name; null is one that the proxy has no right to.
    pub(crate) secrets: Vec<(String, Value)>,
}

impl Stage {
    pub(crate) fn new(trusted: Trusted, recording: &str, proxy: Proxy) -> Result<Self> {
        let bundle = json!({"trusted_ca": {"filename": trusted.bundle()}});
        Ok(Self {
            secrets: vec![(
                "file-root:system".to_owned(),
                json!({"validation_context": bundle}),
            )],
            base: recorded(recording)?,
            servers: BTreeMap::new(),
            trusted,
            proxy,
        })
    }

    pub(crate) fn leading(mut self, host: &'static str, to: SocketAddr) -> Self {
        self.servers.insert(host, to);
        self
    }

    /// Renders what is merged for these resources, in the order in which it is printed.
    pub(crate) async fn rendered(&self, given: &[Value], more: &[&str]) -> Result<Vec<Value>> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": given});
        let rules = self.trusted.file("rules.json", &list.to_string())?;
        let rules = rules.display().to_string();
        let mut args = vec!["render", "istio", "-o", "json", "-f", &rules];
        let labels: Vec<String> = (self.proxy.labels.iter())
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        for label in &labels {
            args.extend(["--label", label]);
        }
        if self.proxy.context == "GATEWAY" {
            args.extend(["--for", "gateway"]);
        }
        args.extend(more);
        let output = egressctl(&self.trusted, args).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
        let list: Value = serde_json::from_slice(&output.stdout)?;
        Ok(list["items"].as_array().context("no items")?.clone())
    }

    /// What Istio alone makes of what it was given.
    pub(crate) fn alone(&self) -> Result<Configuration> {
        assembled(&self.base, &self.base.given, &self.proxy)
    }

    /// What it makes of what is rendered from that.
    pub(crate) async fn merged(&self) -> Result<Configuration> {
        let rendered = self.rendered(&self.base.given, &[]).await?;
        assembled(&self.base, &rendered, &self.proxy)
    }

    pub(crate) async fn start(&self, configuration: &Configuration) -> Result<EnvoyProcess> {
        let bootstrap = self.bootstrap(configuration)?.to_string();
        EnvoyProcess::start(&envoy::binary()?, &bootstrap, ["--concurrency", "1"]).await
    }

    fn bootstrap(&self, configuration: &Configuration) -> Result<Value> {
        let mut configuration = configuration.clone();
        for cluster in &mut configuration.clusters {
            supply(cluster, &self.secrets, &self.trusted)?;
            let endpoints = cluster.pointer_mut("/load_assignment/endpoints/0/lb_endpoints");
            for endpoint in endpoints
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                let address = &mut endpoint["endpoint"]["address"]["socket_address"];
                let host = address["address"].as_str().context("no address")?;
                let to = self
                    .servers
                    .get(host)
                    .with_context(|| format!("{host} is nowhere"))?;
                *address = json!({"address": to.ip().to_string(), "port_value": to.port()});
            }
        }
        for listener in &mut configuration.listeners {
            listener["address"]["socket_address"] =
                json!({"address": "127.0.0.1", "port_value": 0});
            let chains = listener["filter_chains"].as_array_mut();
            for filter in chains.into_iter().flatten().map(|it| &mut it["filters"][0]) {
                let manager = filter["typed_config"]
                    .as_object_mut()
                    .context("no filter")?;
                let Some(asked) = manager.remove("rds") else {
                    continue;
                };
                let name = &asked["route_config_name"];
                let found = configuration.routes.iter().find(|it| it["name"] == *name);
                let routes = found.with_context(|| format!("no routes {name}"))?;
                manager.insert("route_config".to_owned(), routes.clone());
            }
        }
        Ok(json!({
            "node": {"id": "proxy", "cluster": "one"},
            "static_resources": {
                "clusters": configuration.clusters,
                "listeners": configuration.listeners,
            },
        }))
    }
}

/// A server of the hosts of the recordings, which speaks HTTP/1.1 as Istio's clusters do.
pub(crate) async fn server(trusted: &Trusted, names: &[&str]) -> Result<StandIn> {
    let certificate = trusted.ca.issue(&Leaf::for_names(names.iter().copied()))?;
    StandIn::start(StandInConfig::new(certificate).http(HttpVersions::OnlyHttp1)).await
}

/// Proves that nothing came without TLS.
pub(crate) fn nothing_in_plaintext(site: &StandIn) -> Result<()> {
    ensure!(site.counts(Listener::Plain).connections == 0);
    let failed = site.counts(Listener::Tls).failed_handshakes;
    // Envoy hangs up without a byte where it has no secret yet. Bytes that are no TLS are another error.
    let is_tls = |it: &FailedHandshake| it.sni.is_some() || it.error == "unexpected end of file";
    ensure!(failed.iter().all(is_tls), "plaintext arrived: {failed:?}");
    let seen = site.seen();
    ensure!(
        seen.iter().all(|it| it.listener == Listener::Tls),
        "{seen:?}"
    );
    Ok(())
}
