//! What `render istio` merges into istiod's clusters, applied to configurations that a live istiod gave, on a real Envoy.
//!
//! `istio-live` has these configurations, cut down to what a proxy needs to run. Some are of Istio alone (`own-*`), the
//! others of the same rules with patches (`merge-*`, `rendered-*`). That [`istiod`](egress_integration::istiod) makes the
//! second of the first is proven here, so it is trusted with patches that no istiod saw.

#![expect(
    clippy::indexing_slicing,
    reason = "what was recorded or rendered and is not there is null, which no test takes for what it wants"
)]

mod common;
#[path = "common/istio_live.rs"]
mod istio_live;
#[path = "common/supplied.rs"]
mod supplied;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use egress_integration::{
    envoy::EnvoyProcess,
    istiod::{Configuration, Proxy},
    pki::{Ca, Leaf, Name},
    probe,
    stand_in::{Clients, StandIn, StandInConfig},
    tls_server::{TlsServer, TlsServerConfig},
};

use common::{SOON, Trusted, egressctl, only, route};
use istio_live::{
    Stage, assembled, gateway, nothing_in_plaintext, of_kind, recorded, server, sidecar,
};
use supplied::TLS;

const API: &str = "api.example.com";
const OTHER: &str = "b.example.com";
const DB: &str = "db.example.com";
/// A host that a route may put in the place of another.
const ELSEWHERE: &str = "elsewhere.example.com";

const PORT_80: &str = "127.0.0.1_80";

/// What a route does, whoever says so.
#[derive(Debug, PartialEq)]
struct Told {
    status: Option<u64>,
    /// Where requests go: the endpoints of the one cluster, or each cluster with its weight.
    to: Vec<String>,
    timeout: Option<String>,
    /// Attempts, after what, and how long each may take; nothing where it is nobody's word but Istio's.
    retries: Option<String>,
    rewrite: Option<String>,
}

impl Told {
    /// Reads what istiod configured for the first route that takes a path.
    fn by_istiod(configuration: &Configuration, path: &str) -> Result<Told> {
        let hosts = configuration.routes.iter().flat_map(|it| {
            let hosts = it["virtual_hosts"].as_array().into_iter();
            hosts.flatten()
        });
        let mut hosts = hosts.filter(|it| it["domains"][0] == API);
        let host = hosts.next().context("no virtual host")?;
        let mut routes = host["routes"].as_array().context("no routes")?.iter();
        let takes = |route: &&Value| {
            let prefix = route["match"]["prefix"].as_str();
            prefix.is_some_and(|prefix| path.starts_with(prefix))
        };
        let nothing = json!({"direct_response": {"status": 404}});
        let found = routes.find(takes).unwrap_or(&nothing);
        let route = &found["route"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let weighted = route["weighted_clusters"]["clusters"].as_array();
        let weighted = weighted.into_iter().flatten();
        let mut to: Vec<String> = weighted
            .map(|it| {
                format!(
                    "{} {}",
                    it["weight"],
                    it["name"].as_str().unwrap_or_default()
                )
            })
            .collect();
        let cluster = configuration.clusters.iter();
        let cluster = cluster.filter(|it| it["name"] == route["cluster"]);
        let endpoints = cluster.flat_map(|it| {
            let all = it.pointer("/load_assignment/endpoints");
            all.and_then(Value::as_array).into_iter().flatten()
        });
        let addresses = endpoints.flat_map(|it| {
            let all = it["lb_endpoints"].as_array().into_iter().flatten();
            all.map(|it| &it["endpoint"]["address"]["socket_address"])
        });
        to.extend(addresses.map(|it| {
            format!(
                "{}:{}",
                it["address"].as_str().unwrap_or_default(),
                it["port_value"]
            )
        }));
        let policy = &route["retry_policy"];
        let retries = (!policy.is_null()).then(|| {
            let on = policy["retry_on"].as_str().unwrap_or_default();
            // Of which statuses it says nothing, so it does nothing.
            let on = match policy.get("retriable_status_codes") {
                None => on.replace(",retriable-status-codes", ""),
                Some(_) => on.to_owned(),
            };
            let each = text(&policy["per_try_timeout"]).unwrap_or_default();
            format!("{} {on} {each}", policy["num_retries"])
        });
        let of_istio = "2 connect-failure,refused-stream,unavailable,cancelled ";
        Ok(Told {
            status: found["direct_response"]["status"].as_u64(),
            to,
            timeout: text(&route["timeout"]).filter(|time| time != "0s"),
            retries: retries.filter(|retries| retries != of_istio),
            rewrite: text(&route["prefix_rewrite"]),
        })
    }

    /// Reads what `explain` says.
    fn by_explain(said: &Value) -> Told {
        let text = |pointer: &str| {
            let text = said.pointer(pointer).and_then(Value::as_str);
            text.map(str::to_owned)
        };
        let list = |key: &str| said[key].as_array().cloned().unwrap_or_default();
        let shares = list("shares").into_iter().map(|share| {
            let cluster = share["cluster"].as_str().unwrap_or_default();
            format!("{} {}", share["weight"], cluster.trim_end_matches('~'))
        });
        let endpoints = list("endpoints").into_iter();
        let endpoints = endpoints.filter_map(|it| it.as_str().map(str::to_owned));
        Told {
            status: said["status"].as_u64(),
            to: shares.chain(endpoints).collect(),
            timeout: text("/timeout"),
            retries: said.get("retries").map(|retries| {
                let text = |key: &str| retries[key].as_str().unwrap_or_default();
                format!(
                    "{} {} {}",
                    retries["attempts"],
                    text("on"),
                    text("perTryTimeout")
                )
            }),
            rewrite: text("/rewrite/prefix"),
        }
    }
}

#[tokio::test]
async fn explain_says_what_istiod_configured() -> Result<()> {
    let trusted = Trusted::new()?;
    let router = ["--proxy-type", "router", "-l", "istio=egressgateway"];
    let mut seen = Vec::new();
    for (name, paths, more) in [
        ("own-weights", &["/w", "/x"][..], &[][..]),
        ("own-virtualservice", &["/v1/a", "/blocked", "/other"], &[]),
        ("own-subset", &["/"], &[]),
        ("own-simple", &["/"], &[]),
        ("own-gateway", &["/"], &router),
    ] {
        let live = recorded(name)?;
        let given: Vec<String> = live.given.iter().map(Value::to_string).collect();
        let rules = trusted.file(&format!("{name}.yaml"), &given.join("\n---\n"))?;
        let rules = rules.to_str().context("a path that is no text")?;
        for path in paths {
            let url = format!("http://{API}{path}");
            let args = ["explain", "-f", rules, "-o", "json", &url];
            let output = egressctl(&trusted, args.iter().chain(more)).await?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{name}{path}: {errors}");
            let said = Told::by_explain(&serde_json::from_slice(&output.stdout)?);
            let istio = Told::by_istiod(&live.configuration, path)?;
            assert_eq!(said, istio, "{name}{path}");
            seen.push(istio);
        }
    }
    // Each fact is there to be compared.
    let some = |is: fn(&Told) -> bool| seen.iter().filter(|told| is(told)).count();
    assert_eq!(some(|told| told.to.len() == 2), 1);
    assert_eq!(some(|told| told.timeout.is_some()), 2);
    assert_eq!(some(|told| told.retries.is_some()), 1);
    assert_eq!(some(|told| told.rewrite.is_some()), 1);
    assert_eq!(some(|told| told.status.is_some()), 2);
    Ok(())
}

#[test]
fn what_istiod_makes_is_made_again() -> Result<()> {
    // The filter of the WasmPlugin is no patch of an EnvoyFilter.
    let without_plugin = |mut made: Configuration| -> Result<Configuration> {
        for listener in &mut made.listeners {
            let filters =
                listener.pointer_mut("/filter_chains/0/filters/0/typed_config/http_filters");
            if let Some(filters) = filters.and_then(Value::as_array_mut) {
                filters.retain(|it| it.get("config_discovery").is_none());
            }
        }
        Ok(made)
    };
    for (own, with, proxy) in [
        (
            "own-virtualservice",
            "merge-cluster-virtualservice",
            sidecar(),
        ),
        (
            "own-virtualservice",
            "merge-route-virtualservice",
            sidecar(),
        ),
        ("own-tcp", "merge-cluster-tcp", sidecar()),
        ("own-simple", "rendered-simple", sidecar()),
        ("own-virtualservice", "rendered-virtualservice", sidecar()),
        ("own-weights", "rendered-weights", sidecar()),
        ("own-gateway", "rendered-gateway", gateway()),
    ] {
        let own = recorded(own)?;
        let with_patches = recorded(with)?;
        let mut resources = with_patches.given.clone();
        resources.extend(of_kind(&own.given, "ServiceEntry").into_iter().cloned());
        let made = assembled(&own, &resources, &proxy)?;
        let wanted = without_plugin(with_patches.configuration)?;
        assert_eq!(made.clusters, wanted.clusters, "{with}");
        assert_eq!(made.listeners, wanted.listeners, "{with}");
        assert_eq!(made.routes, wanted.routes, "{with}");
        // A pair that is equal before it is patched would prove nothing.
        assert_ne!(own.configuration, wanted, "{with}");
    }
    for own in [
        "own-gateway",
        "own-simple",
        "own-subset",
        "own-tcp",
        "own-virtualservice",
        "own-weights",
    ] {
        let proxy = match own {
            "own-gateway" => gateway(),
            _ => sidecar(),
        };
        let recorded = recorded(own)?;
        let made = assembled(&recorded, &recorded.given, &proxy)?;
        assert_eq!(made, recorded.configuration, "{own}");
    }
    Ok(())
}

#[test]
fn what_istiod_is_not_known_to_do_is_an_error() -> Result<()> {
    let base = recorded("own-simple")?;
    for (apply, operation) in [
        ("CLUSTER", "REMOVE"),
        ("LISTENER", "MERGE"),
        ("HTTP_ROUTE", "MERGE"),
    ] {
        let mut made = base.configuration.clone();
        let filter = json!({"kind": "EnvoyFilter", "spec": {"configPatches": [{
            "applyTo": apply, "match": {"context": "SIDECAR_OUTBOUND"},
            "patch": {"operation": operation, "value": {}},
        }]}});
        assert!(
            made.patch(&filter, &sidecar()).is_err(),
            "{apply} {operation}"
        );
    }
    Ok(())
}

/// What came of a request, as the client and the server saw it.
#[derive(Debug, PartialEq)]
struct Outcome {
    status: u16,
    sni: Option<String>,
    host: Option<String>,
    path: Option<String>,
}

async fn outcome(envoy: &EnvoyProcess, site: &StandIn, host: &str, path: &str) -> Result<Outcome> {
    let listener = envoy
        .listener(PORT_80)
        .or_else(|_| envoy.listener("0.0.0.0_80"))?;
    let answer = probe::get(listener, host, path).await?;
    let seen = site.take_seen().pop();
    let of = |part: fn(&egress_integration::stand_in::Seen) -> String| seen.as_ref().map(part);
    Ok(Outcome {
        status: answer.status,
        sni: seen.as_ref().and_then(|seen| seen.sni.clone()),
        host: of(|seen| seen.host.clone()),
        path: of(|seen| seen.path.clone()),
    })
}

#[tokio::test]
async fn requests_get_what_they_get_of_istio_alone() -> Result<()> {
    for (recording, proxy) in [
        ("own-simple", sidecar()),
        ("own-virtualservice", sidecar()),
        ("own-subset", sidecar()),
        ("own-weights", sidecar()),
        ("own-gateway", gateway()),
    ] {
        let trusted = Trusted::new()?;
        let site = server(&trusted, &[API, OTHER]).await?;
        let stage = Stage::new(trusted, recording, proxy)?;
        let stage = stage
            .leading(API, site.tls_addr())
            .leading(OTHER, site.tls_addr());
        let alone = stage.start(&stage.alone()?).await?;
        let merged = stage.start(&stage.merged().await?).await?;
        let mut statuses = Vec::new();
        for host in [
            API,
            "API.example.com",
            "api.example.com:80",
            OTHER,
            "unknown.example.com",
        ] {
            for path in [
                "/",
                "/v1",
                "/v1/x?y=1",
                "/blocked",
                "/blocked/x",
                "/other",
                "/v1/../blocked",
            ] {
                let wanted = outcome(&alone, &site, host, path).await?;
                let found = outcome(&merged, &site, host, path).await?;
                assert_eq!(found, wanted, "{recording}: {host}{path}");
                statuses.push(found.status);
            }
        }
        assert!(statuses.contains(&200), "{recording}: {statuses:?}");
        if recording == "own-virtualservice" {
            assert!(
                statuses.contains(&403) && statuses.contains(&404),
                "{statuses:?}"
            );
            let rewritten = outcome(&merged, &site, API, "/v1/x?y=1").await?;
            assert_eq!(rewritten.path.as_deref(), Some("/rewritten/x?y=1"));
            assert_eq!(rewritten.sni.as_deref(), Some(API));
        }
        nothing_in_plaintext(&site)?;
    }
    Ok(())
}

/// What Istio does not verify by type, or not at all, is verified here.
#[tokio::test]
async fn another_server_is_sent_nothing() -> Result<()> {
    let other = Leaf::for_names([ELSEWHERE]);
    for leaf in [
        other.clone(),
        // What reads like the host and is no DNS name.
        other.clone().and(Name::Uri(API.to_owned())),
    ] {
        let trusted = Trusted::new()?;
        let site = StandIn::start(StandInConfig::new(trusted.ca.issue(&leaf)?)).await?;
        let stage = Stage::new(trusted, "own-simple", sidecar())?.leading(API, site.tls_addr());
        let mut only_sni = stage.base.given.clone();
        for rule in only_sni
            .iter_mut()
            .filter(|it| it["kind"] == "DestinationRule")
        {
            rule["spec"]["trafficPolicy"]["portLevelSettings"][0]["tls"] =
                json!({"mode": "SIMPLE", "sni": API});
        }
        for given in [stage.base.given.clone(), only_sni] {
            let rendered = stage.rendered(&given, &[]).await?;
            let merged = assembled(&stage.base, &rendered, &sidecar())?;
            let envoy = stage.start(&merged).await?;
            let found = outcome(&envoy, &site, API, "/").await?;
            assert_eq!((found.status, found.host), (503, None), "{given:?}");
            nothing_in_plaintext(&site)?;
        }
    }
    Ok(())
}

/// How often each cluster sent a request again.
async fn retries(envoy: &EnvoyProcess) -> Result<Vec<String>> {
    let told = envoy
        .admin_get("/stats?filter=upstream_rq_retry$")
        .await?
        .body;
    Ok(told.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn timeouts_and_retries_of_routes_hold() -> Result<()> {
    let trusted = Trusted::new()?;
    let refused = server(&trusted, &[ELSEWHERE]).await?;
    // It takes connections and answers nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut stage = Stage::new(trusted, "own-weights", sidecar())?;
    for (to, status) in [(refused.tls_addr(), 503), (silent.local_addr()?, 504)] {
        stage = stage.leading(API, to).leading(OTHER, to);
        let alone = stage.start(&stage.alone()?).await?;
        let merged = stage.start(&stage.merged().await?).await?;
        for envoy in [&alone, &merged] {
            let begun = Instant::now();
            let found = outcome(envoy, &refused, API, "/").await?;
            assert_eq!((found.status, found.host), (status, None));
            // `perTryTimeout: 1s`, of `timeout: 2s`; without one the connection has 10 s.
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
        let again = retries(&merged).await?;
        assert_eq!(again, retries(&alone).await?);
        if status == 503 {
            let wanted = format!("cluster.outbound|80||{API};.upstream_rq_retry: 4");
            assert!(again.contains(&wanted), "{again:?}");
        }
    }
    nothing_in_plaintext(&refused)
}

#[tokio::test]
async fn shares_of_routes_hold() -> Result<()> {
    let trusted = Trusted::new()?;
    let (most, few) = (
        server(&trusted, &[API]).await?,
        server(&trusted, &[API]).await?,
    );
    let stage = Stage::new(trusted, "own-weights", sidecar())?;
    let stage = stage
        .leading(API, most.tls_addr())
        .leading(OTHER, few.tls_addr());
    let envoy = stage.start(&stage.merged().await?).await?;
    for _ in 0..200 {
        let answer = probe::get(envoy.listener(PORT_80)?, API, "/w").await?;
        ensure!(answer.status == 200, "{}", answer.body);
    }
    let (most_seen, few_seen) = (most.seen(), few.seen());
    // 150 and 50 are expected; further off than this is less likely than one in a million.
    assert_eq!(most_seen.len() + few_seen.len(), 200);
    assert!((115..185).contains(&most_seen.len()), "{}", most_seen.len());
    for seen in most_seen.iter().chain(&few_seen) {
        assert_eq!(
            (seen.sni.as_deref(), seen.host.as_str()),
            (Some(API), API),
            "{seen}"
        );
    }
    nothing_in_plaintext(&most)?;
    nothing_in_plaintext(&few)
}

/// `rewrite.authority` is a field of istiod's route, which changes what it sends as SNI.
#[tokio::test]
async fn a_host_that_a_route_puts_in_the_place_is_verified() -> Result<()> {
    for (names, status) in [(&[API, ELSEWHERE][..], 200), (&[API], 503)] {
        let trusted = Trusted::new()?;
        let site = server(&trusted, names).await?;
        let stage = Stage::new(trusted, "own-simple", sidecar())?.leading(API, site.tls_addr());
        let mut merged = stage.merged().await?;
        let route = &mut merged.routes[0]["virtual_hosts"][0]["routes"][0]["route"];
        ensure!(route["cluster"].is_string(), "{route}");
        route["host_rewrite_literal"] = json!(ELSEWHERE);
        let envoy = stage.start(&merged).await?;
        let found = outcome(&envoy, &site, API, "/").await?;
        assert_eq!(found.status, status);
        if status == 200 {
            assert_eq!(found.sni.as_deref(), Some(ELSEWHERE));
            assert_eq!(found.host.as_deref(), Some(ELSEWHERE));
        } else {
            assert_eq!(found.host, None);
        }
        nothing_in_plaintext(&site)?;
    }
    Ok(())
}

/// Whatever a proxy has got so far, and whatever was taken away: plaintext leaves it only where no resource that Istio
/// has asks for TLS, and another server is sent nothing.
#[tokio::test]
async fn what_is_missing_closes() -> Result<()> {
    let trusted = Trusted::new()?;
    let right = server(&trusted, &[API]).await?;
    let wrong = server(&trusted, &[ELSEWHERE]).await?;
    let mut stage = Stage::new(trusted, "own-virtualservice", sidecar())?;
    let rendered = stage.rendered(&stage.base.given, &[]).await?;
    let kinds: Vec<&str> = rendered
        .iter()
        .filter_map(|it| it["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["EnvoyFilter", "DestinationRule", "ServiceEntry"]);
    let [patches, closed, entry] = [&rendered[0], &rendered[1], &rendered[2]];
    let own = of_kind(&stage.base.given, "DestinationRule")[0].clone();
    for (what, resources, status) in [
        ("all", vec![patches, closed, entry], 200),
        // While they arrive: the user's own rule is there, and then it is not.
        ("patches before the rule", vec![patches, &own, entry], 200),
        ("without the rule", vec![patches, entry], 200),
        ("the rule before the patches", vec![closed, entry], 503),
        // The rule is deleted first, the entry then, the patches at last.
        ("without the entry", vec![patches, closed], 502),
        ("without rule and entry", vec![patches], 502),
        ("the rule alone", vec![closed], 502),
        ("nothing", vec![], 502),
    ] {
        let resources: Vec<Value> = resources.into_iter().cloned().collect();
        let configuration = assembled(&stage.base, &resources, &stage.proxy)?;
        for (site, wanted) in [(&right, status), (&wrong, status.max(503))] {
            let wanted = if status == 502 { 502 } else { wanted };
            stage = stage.leading(API, site.tls_addr());
            let envoy = stage.start(&configuration).await?;
            let found = outcome(&envoy, site, API, "/v1").await?;
            assert_eq!(found.status, wanted, "{what}");
            assert_eq!(found.host.is_some(), wanted == 200, "{what}");
            nothing_in_plaintext(site)?;
        }
    }
    // So the servers would hear it: Istio's own plaintext, where nothing at all asks for TLS.
    stage = stage.leading(API, right.tls_addr());
    let envoy = stage
        .start(&assembled(
            &stage.base,
            std::slice::from_ref(entry),
            &stage.proxy,
        )?)
        .await?;
    let _ = outcome(&envoy, &right, API, "/v1").await?;
    right.wait_for_failed_handshakes(1, SOON).await?;
    assert!(nothing_in_plaintext(&right).is_err());
    Ok(())
}

#[tokio::test]
async fn a_subset_is_verified_and_nothing_goes_out_beside_it() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = server(&trusted, &[API]).await?;
    let stage = Stage::new(trusted, "own-subset", sidecar())?.leading(API, site.tls_addr());
    let rendered = stage.rendered(&stage.base.given, &[]).await?;
    let without_patches: Vec<Value> = rendered[1..].to_vec();
    assert_eq!(rendered[0]["kind"], "EnvoyFilter");
    for (resources, status) in [(&rendered, 200), (&without_patches, 503)] {
        let mut configuration = assembled(&stage.base, resources, &stage.proxy)?;
        for cluster in [
            format!("outbound|80|strict|{API}"),
            format!("outbound|80||{API}"),
        ] {
            // The second is where requests go once the VirtualService is deleted.
            let route = &mut configuration.routes[0]["virtual_hosts"][0]["routes"][0]["route"];
            ensure!(route["cluster"].is_string(), "{route}");
            route["cluster"] = json!(cluster);
            let envoy = stage.start(&configuration).await?;
            let found = outcome(&envoy, &site, API, "/").await?;
            assert_eq!(found.status, status, "{cluster}");
            nothing_in_plaintext(&site)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn bytes_of_a_tcp_port_go_out_in_verified_tls() -> Result<()> {
    for (name, without, arrives) in [
        (DB, "", true),
        (ELSEWHERE, "", false),
        (DB, "EnvoyFilter", false),
        (DB, "DestinationRule", true),
        (ELSEWHERE, "DestinationRule", false),
    ] {
        let trusted = Trusted::new()?;
        let certificate = trusted.ca.issue(&Leaf::for_names([name]))?;
        let database = TlsServer::start(&certificate, TlsServerConfig::default()).await?;
        let stage = Stage::new(trusted, "own-tcp", sidecar())?.leading(DB, database.addr());
        let mut given = stage.base.given.clone();
        for rule in given
            .iter_mut()
            .filter(|it| it["kind"] == "DestinationRule")
        {
            // Istio would verify no name.
            let tls = &mut rule["spec"]["trafficPolicy"]["portLevelSettings"][0]["tls"];
            *tls = json!({"mode": "SIMPLE"});
        }
        let mut rendered = stage.rendered(&given, &[]).await?;
        rendered.retain(|it| it["kind"] != without);
        let envoy = stage
            .start(&assembled(&stage.base, &rendered, &stage.proxy)?)
            .await?;
        let mut stream = TcpStream::connect(envoy.listener("127.0.0.1_9042")?).await?;
        stream.write_all(b"hello").await?;
        let mut answer = [0; 5];
        let read = timeout(SOON, stream.read_exact(&mut answer)).await?;
        let heard = database.heard();
        match arrives {
            true => {
                read?;
                assert_eq!(answer, *b"hello", "{name} {without}");
                assert_eq!(heard[0].sni.as_deref(), Some(DB));
            }
            false => {
                assert!(read.is_err(), "{name} {without}");
                assert!(heard.iter().all(|it| it.bytes == 0), "{heard:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_client_certificate_comes_with_the_patches() -> Result<()> {
    let trusted = Trusted::new()?;
    let ca = Ca::new("example.com")?;
    let roots = vec![ca.certificate().clone()];
    let server = StandInConfig::new(ca.issue(&Leaf::for_names([API]))?);
    let site = StandIn::start(server.clients(Clients::Required(roots))).await?;
    let mut stage = Stage::new(trusted, "own-simple", sidecar())?.leading(API, site.tls_addr());
    let mut given = stage.base.given.clone();
    for rule in given
        .iter_mut()
        .filter(|it| it["kind"] == "DestinationRule")
    {
        rule["spec"]["workloadSelector"] = json!({"matchLabels": {"app": "one"}});
        rule["spec"]["trafficPolicy"]["portLevelSettings"][0]["tls"] =
            json!({"mode": "MUTUAL", "credentialName": "client"});
    }
    let client = ca.issue(&Leaf::client("one"))?;
    let text = |text: &str| json!({"inline_string": text});
    stage.secrets.push((
        "kubernetes://client".to_owned(),
        json!({"tls_certificate": {"certificate_chain": text(client.chain_pem()), "private_key": text(client.key_pem())}}),
    ));
    stage.secrets.push((
        "kubernetes://client-cacert".to_owned(),
        json!({"validation_context": {"trusted_ca": text(&ca.pem())}}),
    ));
    let rendered = stage
        .rendered(&given, &["--service-account", "one"])
        .await?;
    let without = |kind: &str| -> Vec<Value> {
        rendered
            .iter()
            .filter(|it| it["kind"] != kind)
            .cloned()
            .collect()
    };
    let one = sidecar();
    let two = Proxy {
        labels: vec![("app".to_owned(), "two".to_owned())],
        ..sidecar()
    };
    let certificate = stage.secrets[1].1.clone();
    for (what, resources, proxy, secret, status) in [
        ("all", rendered.clone(), &one, &certificate, 200),
        (
            "no rule",
            without("DestinationRule"),
            &one,
            &certificate,
            200,
        ),
        (
            "no patches",
            without("EnvoyFilter"),
            &one,
            &certificate,
            503,
        ),
        (
            "no Role or RoleBinding",
            rendered.clone(),
            &one,
            &Value::Null,
            503,
        ),
        (
            "another workload",
            rendered.clone(),
            &two,
            &certificate,
            503,
        ),
    ] {
        stage.secrets[1].1 = secret.clone();
        let envoy = stage
            .start(&assembled(&stage.base, &resources, proxy)?)
            .await?;
        let found = probe::get(envoy.listener(PORT_80)?, API, "/").await?;
        assert_eq!(found.status, status, "{what}: {}", found.body);
        if status == 200 {
            let seen = only(&site)?;
            assert_eq!((seen.sni.as_deref(), seen.host.as_str()), (Some(API), API));
            let client = seen.client.map(|client| client.common_name);
            assert_eq!(client.as_deref(), Some("one"), "{what}");
        }
        nothing_in_plaintext(&site)?;
        ensure!(site.take_seen().is_empty(), "{what}");
    }
    Ok(())
}

/// Lists are added by a merge, and a cluster that would show two certificates is none to Envoy.
#[tokio::test]
async fn the_users_own_client_certificate_beside_the_patches_is_refused() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = server(&trusted, &[API]).await?;
    let mut stage = Stage::new(trusted, "own-simple", sidecar())?.leading(API, site.tls_addr());
    let client = stage.trusted.ca.issue(&Leaf::client("one"))?;
    let text = |text: &str| json!({"inline_string": text});
    stage.secrets.push((
        "file-cert:/c.pem~/k.pem".to_owned(),
        json!({"tls_certificate": {"certificate_chain": text(client.chain_pem()), "private_key": text(client.key_pem())}}),
    ));
    let mut given = stage.base.given.clone();
    for rule in given
        .iter_mut()
        .filter(|it| it["kind"] == "DestinationRule")
    {
        rule["spec"]["trafficPolicy"]["portLevelSettings"][0]["tls"] =
            json!({"mode": "MUTUAL", "clientCertificate": "/c.pem", "privateKey": "/k.pem"});
    }
    let rendered = stage.rendered(&given, &[]).await?;
    let merged = assembled(&stage.base, &rendered, &stage.proxy)?;
    let envoy = stage.start(&merged).await?;
    assert_eq!(outcome(&envoy, &site, API, "/").await?.status, 200);
    let mut beside: Vec<Value> = given;
    beside.push(rendered[0].clone());
    let both = assembled(&stage.base, &beside, &stage.proxy)?;
    let certificates =
        &both.clusters[1].pointer(TLS).context("no TLS")?["tls_certificate_sds_secret_configs"];
    assert_eq!(certificates.as_array().map(Vec::len), Some(2));
    assert!(stage.start(&both).await.is_err());
    nothing_in_plaintext(&site)
}

/// The first patch of each cluster takes away what is verified, so alone it must open nothing.
#[tokio::test]
async fn no_patch_alone_opens_a_cluster() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = server(&trusted, &[API]).await?;
    let stage = Stage::new(trusted, "own-simple", sidecar())?.leading(API, site.tls_addr());
    let rendered = stage.rendered(&stage.base.given, &[]).await?;
    let own = of_kind(&stage.base.given, "DestinationRule")[0];
    let patches = rendered[0].pointer("/spec/configPatches");
    let patches = patches.and_then(Value::as_array).context("no patches")?;
    assert_eq!(patches.len(), 2);
    for rule in [own, &rendered[1], &Value::Null] {
        let mut resources = vec![rendered[2].clone(), rendered[0].clone()];
        resources.extend((!rule.is_null()).then(|| rule.clone()));
        resources[1]["spec"]["configPatches"] = json!([patches[0]]);
        let configuration = assembled(&stage.base, &resources, &stage.proxy)?;
        let refused = stage.start(&configuration).await.err();
        let refused = refused.context("Envoy took a cluster that verifies nothing")?;
        assert!(refused.to_string().contains("Envoy ended"), "{refused}");
    }
    nothing_in_plaintext(&site)
}

/// The other way, on what a live istiod made: the filter stands before Istio's routes, and tells the server the port
/// that was dialled, unless it is to keep what the application wrote.
#[tokio::test]
async fn the_filter_tells_the_server_the_port_unless_it_is_to_keep_the_host() -> Result<()> {
    for (authority, host) in [("REWRITE", "api.example.com:8443"), ("KEEP", API)] {
        let trusted = Trusted::new()?;
        let site = server(&trusted, &[API]).await?;
        let stage = Stage::new(trusted, "own-simple", sidecar())?.leading(API, site.tls_addr());
        let to = route(API, 8443, site.tls_addr());
        let url = "oci://registry.example.com/egress:1.0";
        let more = ["--way", "filter", "--url", url, "--connect-to", &to];
        let more = [&more[..], &["--authority", authority]].concat();
        let rendered = stage.rendered(&stage.base.given, &more).await?;
        let mut made = assembled(&stage.base, &rendered, &stage.proxy)?;
        let listener = made.listeners.iter_mut().find(|it| it["name"] == PORT_80);
        let manager = "/filter_chains/0/filters/0/typed_config/http_filters";
        let filters = listener.and_then(|it| it.pointer_mut(manager));
        let filters = filters.and_then(Value::as_array_mut);
        filters.context("no filters")?.insert(0, plugin(&rendered)?);
        let envoy = stage.start(&made).await?;
        let found = outcome(&envoy, &site, API, "/").await?;
        assert_eq!((found.status, found.host.as_deref()), (200, Some(host)));
        assert_eq!(found.sni.as_deref(), Some(API));
        nothing_in_plaintext(&site)?;
    }
    Ok(())
}

/// The filter, as istiod's agent hands it to Envoy.
fn plugin(rendered: &[Value]) -> Result<Value> {
    let plugin = *of_kind(rendered, "WasmPlugin")
        .first()
        .context("no plugin")?;
    let module = egress_integration::egressctl::binary()?.with_file_name("egress-filter.wasm");
    let kind = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
    let config = json!({
        "name": "default.egress",
        "root_id": plugin["spec"]["pluginName"],
        "failure_policy": "FAIL_CLOSED",
        "vm_config": {
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": module}},
        },
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": plugin["spec"]["pluginConfig"].to_string(),
        },
    });
    Ok(json!({"name": "default.egress", "typed_config": {"@type": kind, "config": config}}))
}
