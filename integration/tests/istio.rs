//! What `render istio` prints, on an Envoy that is configured as istiod would do it.
//!
//! There is no istiod here. [`Mesh`] makes what it makes of a ServiceEntry and a DestinationRule, and applies the
//! EnvoyFilter's patches in its way; the filter gets `pluginConfig` as JSON in a `StringValue`, and secrets come from files
//! in place of istiod and its agent.
//!
//! Source: istio/istio `pilot/pkg/networking/core/envoyfilter/rc_patch.go` and `cluster_patch.go`,
//! `pilot/pkg/networking/core/httproute.go`, `pilot/pkg/model/extensions.go`.

#![expect(
    clippy::indexing_slicing,
    reason = "what was rendered and is not there is null, which no test takes for what it wants"
)]

mod common;
#[path = "common/supplied.rs"]
mod supplied;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use egress_integration::{
    envoy::{self, EnvoyProcess},
    istiod::{Configuration, Proxy},
    pki::{Ca, Leaf, Name},
    probe::{self, Answer},
    stand_in::{Clients, Listener, StandIn, StandInConfig},
};

use common::{
    HOST, MANAGER, SOON, Trusted, assert_no_leak, assert_originated, by_credential, egressctl,
    entry, only, originated, route, rule,
};

use supplied::supply;

/// A host of the mesh, which no rule of ours names.
const REVIEWS: &str = "reviews.default.svc.cluster.local";
/// One that nobody answers for.
const GONE: &str = "gone.default.svc.cluster.local";

const TLS: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

/// What is left out of a cluster that should have it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    Plugin,
    Routes,
    Clusters,
    Closed,
}

/// A proxy of a mesh, before and after Istio reads what was rendered.
struct Mesh {
    trusted: Trusted,
    /// The server outside.
    site: StandIn,
    /// A workload in the mesh.
    reviews: StandIn,
    documents: Vec<Value>,
    /// The key and certificates that istiod would hand out, by name.
    secrets: Vec<(String, Value)>,
    /// The port that istiod calls the listener and its routes by.
    listener_port: u16,
    proxy: Proxy,
}

impl Mesh {
    async fn new(rules: &str, args: &[&str]) -> Result<Self> {
        let trusted = Trusted::new()?;
        let site = trusted.site([HOST]).await?;
        Self::with(trusted, site, rules, args).await
    }

    async fn with(trusted: Trusted, site: StandIn, rules: &str, args: &[&str]) -> Result<Self> {
        let reviews = trusted.site([REVIEWS]).await?;
        let rules = trusted.file("rules.yaml", rules)?.display().to_string();
        let to = route(HOST, 443, site.tls_addr());
        let url = "oci://registry.example.com/egress:1.0";
        let mut all = vec!["render", "istio", "-o", "json", "-f", &rules];
        all.extend(["--way", "filter", "--url", url, "--connect-to", &to]);
        all.extend(args);
        let output = egressctl(&trusted, all).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
        let list: Value = serde_json::from_slice(&output.stdout)?;
        let documents = list["items"].as_array().context("no items")?.clone();
        let bundle = json!({"trusted_ca": {"filename": trusted.bundle()}});
        Ok(Self {
            secrets: vec![(
                "file-root:system".to_owned(),
                json!({"validation_context": bundle}),
            )],
            trusted,
            site,
            reviews,
            documents,
            listener_port: 80,
            proxy: match args.contains(&"gateway") {
                true => Proxy {
                    context: "GATEWAY",
                    labels: vec![("istio".to_owned(), "egressgateway".to_owned())],
                },
                false => Proxy {
                    context: "SIDECAR_OUTBOUND",
                    labels: vec![("app".to_owned(), "sleep".to_owned())],
                },
            },
        })
    }

    fn of_kind<'m>(&'m self, kind: &'m str) -> impl Iterator<Item = &'m Value> {
        self.documents.iter().filter(move |it| it["kind"] == kind)
    }

    /// The bootstrap that Istio's configuration amounts to, patched.
    fn bootstrap(&self, without: Without, listener_filters: Value) -> Result<Value> {
        let clusters = vec![
            self.of_service_entry(without),
            plain("outbound|80||gone", 1),
            plain("outbound|80||reviews", self.reviews.plain_addr().port()),
        ];
        let hosts = json!([
            virtual_host(HOST, &format!("outbound|80||{HOST}")),
            virtual_host(REVIEWS, "outbound|80||reviews"),
            virtual_host(GONE, "outbound|80||gone"),
            {"name": "block_all", "domains": ["*"], "routes": [
                {"name": "block_all", "match": {"prefix": "/"}, "direct_response": {"status": 502}},
            ]},
        ]);
        let mut filters = Vec::new();
        if without != Without::Plugin {
            filters.push(self.plugin()?);
        }
        let kind = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
        filters.push(json!({"name": "envoy.filters.http.router", "typed_config": {"@type": kind}}));
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": format!("outbound_0.0.0.0_{};", self.listener_port),
            "http_filters": filters,
            "upgrade_configs": [{"upgrade_type": "websocket"}],
        });
        let mut made = Configuration {
            clusters,
            listeners: vec![json!({
                "name": "listener",
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.listener_port}},
                "traffic_direction": "OUTBOUND",
                "listener_filters": listener_filters,
                "filter_chains": [{"filters": [
                    {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
                ]}],
            })],
            routes: vec![json!({
                "name": self.listener_port.to_string(),
                "validate_clusters": false,
                "ignore_port_in_host_matching": true,
                "virtual_hosts": hosts,
            })],
        };
        for filter in self.of_kind("EnvoyFilter") {
            made.patch(&kept(filter, without)?, &self.proxy)?;
        }
        let Configuration {
            mut clusters,
            mut listeners,
            routes,
        } = made;
        for cluster in &mut clusters {
            supply(cluster, &self.secrets, &self.trusted)?;
        }
        let listener = listeners.first_mut().context("no listener")?;
        listener["address"]["socket_address"]["port_value"] = json!(0);
        let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        manager["route_config"] = routes.first().context("no routes")?.clone();
        Ok(json!({
            "node": {"id": "sidecar", "cluster": "sleep"},
            "static_resources": {"clusters": clusters, "listeners": listeners},
        }))
    }

    /// The cluster that istiod makes of the ServiceEntry's port 80, which leads to the server's port for TLS; with TLS
    /// where a DestinationRule has it for everybody or for us.
    fn of_service_entry(&self, without: Without) -> Value {
        let mut cluster = plain(&format!("outbound|80||{HOST}"), self.site.tls_addr().port());
        let rule = self.of_kind("DestinationRule").next();
        let settings = rule.map(|rule| &rule["spec"]["trafficPolicy"]);
        let tls = settings.map(|policy| match policy["tls"].is_null() {
            true => &policy["portLevelSettings"][0]["tls"],
            false => &policy["tls"],
        });
        let Some(tls) = tls.filter(|_| without != Without::Closed) else {
            return cluster;
        };
        assert_eq!(tls["mode"], "SIMPLE");
        let names: Vec<Value> = tls["subjectAltNames"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|name| json!({"exact": name}))
            .collect();
        cluster["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": TLS, "common_tls_context": {"validation_context": {
                "trusted_ca": {"filename": self.trusted.bundle()},
                "match_subject_alt_names": names,
            }}},
        });
        let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster["typed_extension_protocol_options"] = json!({kind: {
            "@type": format!("type.googleapis.com/{kind}"),
            "upstream_http_protocol_options": {"auto_sni": true},
            "explicit_http_config": {"http_protocol_options": {}},
        }});
        cluster
    }

    /// The filter as istiod's agent hands it to Envoy.
    fn plugin(&self) -> Result<Value> {
        let plugin = self.of_kind("WasmPlugin").next().context("no WasmPlugin")?;
        let spec = &plugin["spec"];
        assert_eq!(spec["failStrategy"], "FAIL_CLOSE");
        let kind = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
        let module = egress_integration::egressctl::binary()?.with_file_name("egress-filter.wasm");
        Ok(
            json!({"name": "default.egress", "typed_config": {"@type": kind, "config": {
                "name": "default.egress",
                "root_id": spec["pluginName"],
                "failure_policy": "FAIL_CLOSED",
                "vm_config": {
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": module}},
                },
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": spec["pluginConfig"].to_string(),
                },
            }}}),
        )
    }

    async fn start(&self, without: Without) -> Result<EnvoyProcess> {
        let bootstrap = self.bootstrap(without, json!([]))?;
        EnvoyProcess::start(
            &envoy::binary()?,
            &bootstrap.to_string(),
            ["--concurrency", "1"],
        )
        .await
    }

    /// Proves that the server was sent no request, and nothing in plaintext.
    fn nothing_arrived(&self) -> Result<()> {
        let seen = self.site.seen();
        ensure!(seen.is_empty(), "{seen:?}");
        ensure!(self.site.counts(Listener::Plain).connections == 0);
        let failed = self.site.counts(Listener::Tls).failed_handshakes;
        ensure!(
            failed.iter().all(|it| it.sni.is_some()),
            "plaintext arrived: {failed:?}"
        );
        Ok(())
    }
}

/// An EnvoyFilter but for the patches that are left out.
fn kept(filter: &Value, without: Without) -> Result<Value> {
    let mut kept = filter.clone();
    let patches = kept["spec"]["configPatches"].as_array_mut();
    let patches = patches.context("no patches")?;
    let left_out = match without {
        Without::Clusters => "CLUSTER",
        Without::Routes => "HTTP_ROUTE",
        _ => "",
    };
    patches.retain(|patch| patch["applyTo"] != left_out);
    for cluster in patches.iter().filter(|it| it["applyTo"] == "CLUSTER") {
        let value = &cluster["patch"]["value"];
        ensure!(value["metadata"]["filter_metadata"]["istio"]["alpn_override"] == "false");
    }
    Ok(kept)
}

/// The cluster of a place on this machine.
fn plain(name: &str, port: u16) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}},
        ]}]},
    })
}

/// A virtual host as istiod makes it of a service's port 80.
fn virtual_host(host: &str, cluster: &str) -> Value {
    json!({
        "name": format!("{host}:80"),
        "domains": [host, format!("{host}.")],
        "include_request_attempt_count": true,
        "routes": [{
            "name": "default",
            "match": {"prefix": "/"},
            "route": {"cluster": cluster, "timeout": "0s"},
            "decorator": {"operation": format!("{host}:80/*")},
        }],
    })
}

async fn get(envoy: &EnvoyProcess, host: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    probe::get_with(envoy.listener("listener")?, host, "/", headers).await
}

#[tokio::test]
async fn a_sidecar_originates_and_the_server_sees_verified_tls() -> Result<()> {
    let mesh = Mesh::new(&originated(HOST, 443), &[]).await?;
    let envoy = mesh.start(Without::Nothing).await?;
    let mine = [
        ("x-envoy-peer-metadata", "mesh"),
        ("x-envoy-decorator-operation", "mine"),
    ];
    for host in [
        HOST,
        "EDITION.cnn.com",
        "edition.cnn.com:80",
        "edition.cnn.com.",
    ] {
        let answer = get(&envoy, host, &mine).await?;
        ensure!(
            answer.status == 200,
            "{host}: {} {}",
            answer.status,
            answer.body
        );
        let seen = only(&mesh.site)?;
        assert_eq!(seen.http_version, "HTTP/2.0", "{seen}");
        assert_originated(&seen, HOST, HOST);
    }
    mesh.nothing_arrived()
}

#[tokio::test]
async fn a_server_that_is_another_is_sent_nothing() -> Result<()> {
    let other = Leaf::for_names(["other.example.com"]);
    let own = "{tls: {mode: SIMPLE}, loadBalancer: {simple: ROUND_ROBIN}}";
    for rules in [originated(HOST, 443), entry(HOST, 443) + &rule(HOST, own)] {
        for leaf in [
            other.clone(),
            // What reads like the host and is no DNS name.
            other.clone().and(Name::Uri(HOST.to_owned())),
        ] {
            let trusted = Trusted::new()?;
            let site = common::site(&trusted.ca, &leaf).await?;
            let mesh = Mesh::with(trusted, site, &rules, &[]).await?;
            let envoy = mesh.start(Without::Nothing).await?;
            let answer = get(&envoy, HOST, &[]).await?;
            assert_eq!(answer.status, 503);
            assert!(
                answer.body.starts_with("egress_name_mismatch"),
                "{}",
                answer.body
            );
            mesh.nothing_arrived()?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn hosts_of_the_mesh_are_left_to_it() -> Result<()> {
    let mesh = Mesh::new(&originated(HOST, 443), &[]).await?;
    let envoy = mesh.start(Without::Nothing).await?;
    let forged = [
        ("x-egress-originate", "shared|SIMPLE|system|auto"),
        ("x-egress-forward", "outbound|80||gone"),
    ];
    for headers in [&[][..], &forged] {
        get(&envoy, REVIEWS, headers).await?;
        let seen = only(&mesh.reviews)?;
        assert_eq!(
            (seen.listener, seen.host.as_str()),
            (Listener::Plain, REVIEWS)
        );
        assert!(seen.header("x-egress-originate").is_none(), "{seen}");
    }
    // Failures, too, are told in Istio's words and not in ours.
    let gone = get(&envoy, GONE, &[]).await?;
    assert_eq!(gone.status, 503);
    assert!(
        gone.body.starts_with("upstream connect error"),
        "{}",
        gone.body
    );
    let unknown = get(&envoy, "unknown.example.com", &[]).await?;
    assert_eq!((unknown.status, unknown.body.as_str()), (502, ""));
    mesh.nothing_arrived()
}

#[tokio::test]
async fn a_client_cannot_choose_the_cluster() -> Result<()> {
    let mesh = Mesh::new(&originated(HOST, 443), &[]).await?;
    let envoy = mesh.start(Without::Nothing).await?;
    for name in ["x-egress-originate", "x-egress-forward"] {
        let answer = get(&envoy, HOST, &[(name, "outbound|80||reviews")]).await?;
        ensure!(answer.status == 200, "{}", answer.body);
        assert_originated(&only(&mesh.site)?, HOST, HOST);
    }
    ensure!(mesh.reviews.seen().is_empty());
    Ok(())
}

/// Whatever Istio did not get or did not apply: nothing is sent in plaintext, and nothing around the filter.
#[tokio::test]
async fn what_is_missing_closes() -> Result<()> {
    let mesh = Mesh::new(&originated(HOST, 443), &[]).await?;
    for without in [Without::Plugin, Without::Routes, Without::Clusters] {
        let envoy = mesh.start(without).await?;
        let answer = get(&envoy, HOST, &[]).await?;
        assert_eq!(answer.status, 503, "{}", answer.body);
        mesh.nothing_arrived()?;
        // Nobody takes these away without the plugin; then they lead nowhere but to what is ours.
        for name in ["x-egress-originate", "x-egress-forward"] {
            let answer = get(&envoy, HOST, &[(name, "outbound|80||reviews")]).await?;
            assert_eq!(answer.status, 503, "{name}: {}", answer.body);
            mesh.nothing_arrived()?;
            ensure!(mesh.reviews.seen().is_empty(), "{name}");
        }
    }
    Ok(())
}

/// Why the DestinationRule is there: Istio's own cluster would send what the filter does not lead elsewhere.
#[tokio::test]
async fn without_the_closed_rule_istio_would_send_plaintext() -> Result<()> {
    let mesh = Mesh::new(&originated(HOST, 443), &[]).await?;
    let mut bootstrap = mesh.bootstrap(Without::Closed, json!([]))?;
    let filters = format!("{MANAGER}/http_filters");
    let filters = bootstrap
        .pointer_mut(&filters)
        .and_then(Value::as_array_mut);
    filters.context("no filters")?.remove(0);
    let envoy = EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), [""; 0]).await?;
    let _ = get(&envoy, HOST, &[]).await?;
    let failed = mesh.site.wait_for_failed_handshakes(1, SOON).await?;
    assert!(failed.iter().any(|it| it.sni.is_none()), "{failed:?}");
    Ok(())
}

#[tokio::test]
async fn several_ports_are_told_apart_by_the_one_that_was_dialled() -> Result<()> {
    let rules = format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: cnn}}
spec:
  hosts: [{HOST}]
  resolution: DNS
  ports:
  - {{number: 80, name: http, protocol: HTTP, targetPort: 443}}
  - {{number: 8080, name: other, protocol: HTTP, targetPort: 8443}}
{}",
        common::rule(HOST, "{tls: {mode: SIMPLE}}")
    );
    let mesh = Mesh::new(&rules, &[]).await?;
    // As the address before iptables changed it is told to Istio's listener.
    let kind =
        "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
    let told =
        json!([{"name": "envoy.filters.listener.proxy_protocol", "typed_config": {"@type": kind}}]);
    let bootstrap = mesh.bootstrap(Without::Nothing, told)?;
    let envoy = EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), [""; 0]).await?;
    let request = format!(
        "PROXY TCP4 192.0.2.1 192.0.2.2 40000 80\r\nGET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n"
    );
    let answer = probe::raw(envoy.listener("listener")?, request.as_bytes(), SOON).await?;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_originated(&only(&mesh.site)?, HOST, HOST);
    mesh.nothing_arrived()
}

#[tokio::test]
async fn a_gateway_originates_whatever_port_it_listens_on() -> Result<()> {
    let args = ["--for", "gateway", "--label", "istio=egressgateway"];
    for listener_port in [80, 8080] {
        let mut mesh = Mesh::new(&originated(HOST, 443), &args).await?;
        mesh.listener_port = listener_port;
        let envoy = mesh.start(Without::Nothing).await?;
        let answer = get(&envoy, HOST, &[]).await?;
        ensure!(answer.status == 200, "{listener_port}: {}", answer.body);
        assert_originated(&only(&mesh.site)?, HOST, HOST);
        mesh.nothing_arrived()?;
    }
    Ok(())
}

#[tokio::test]
async fn the_certificate_of_a_credential_is_shown() -> Result<()> {
    let trusted = Trusted::new()?;
    let ca = Ca::new("example.com")?;
    let roots = vec![ca.certificate().clone()];
    let server = StandInConfig::new(ca.issue(&Leaf::for_names([HOST]))?);
    let site = StandIn::start(server.clients(Clients::Required(roots))).await?;
    let rules = by_credential(HOST, 443, "client-credential");
    let args = ["--label", "app=sleep", "--service-account", "sleep"];
    let mut mesh = Mesh::with(trusted, site, &rules, &args).await?;
    let client = ca.issue(&Leaf::client("sleep"))?;
    let text = |text: &str| json!({"inline_string": text});
    mesh.secrets.push((
        "kubernetes://client-credential".to_owned(),
        json!({"tls_certificate": {"certificate_chain": text(client.chain_pem()), "private_key": text(client.key_pem())}}),
    ));
    mesh.secrets.push((
        "kubernetes://client-credential-cacert".to_owned(),
        json!({"validation_context": {"trusted_ca": text(&ca.pem())}}),
    ));
    let envoy = mesh.start(Without::Nothing).await?;
    let answer = get(&envoy, HOST, &[]).await?;
    ensure!(answer.status == 200, "{}", answer.body);
    let seen = only(&mesh.site)?;
    assert_originated(&seen, HOST, HOST);
    assert_no_leak(&seen);
    assert_eq!(
        seen.client.map(|client| client.common_name).as_deref(),
        Some("sleep")
    );
    mesh.nothing_arrived()
}
