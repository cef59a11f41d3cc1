//! What the dashboard and the alerts are about is there: each metric, each label, each value that is asked for.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use promql_parser::{
    label::{MatchOp, Matcher},
    parser::{self, Expr, LabelModifier},
    util::{ExprVisitor, walk_expr},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use egress_integration::{
    egressctl::{Egressctl, Running},
    pki::{Ca, Leaf, Validity},
    probe,
    silent_port::SilentPort,
    stand_in::{Clients, StandIn, StandInConfig},
};

use common::{
    HOST, SIMPLE, SOON, Trusted, credential, entry, entry_with, eventually, originated, route,
    rule, selected, site,
};

/// Labels that Prometheus itself puts beside those of Envoy, and takes away.
const OF_PROMETHEUS: [&str; 2] = ["instance", "job"];

fn file(name: &str) -> Result<String> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "envoy", "observability"]
        .iter()
        .collect();
    std::fs::read_to_string(folder.join(name)).with_context(|| name.to_owned())
}

/// The expressions of the dashboard, by the panel's title, with what Grafana puts in place of its variables.
fn dashboard() -> Result<Vec<(String, String)>> {
    let dashboard: Value = serde_json::from_str(&file("dashboard.json")?)?;
    let mut found = Vec::new();
    let panels = dashboard.get("panels").and_then(Value::as_array);
    for panel in panels.context("no panels")? {
        let title = panel
            .get("title")
            .and_then(Value::as_str)
            .context("title")?;
        let described = panel.get("description").and_then(Value::as_str);
        ensure!(described.is_some_and(|text| !text.is_empty()), "{title}");
        let targets = panel.get("targets").and_then(Value::as_array);
        for target in targets.context("no targets")? {
            let expr = target.get("expr").and_then(Value::as_str).context("expr")?;
            let expr = expr
                .replace("$__rate_interval", "1m")
                .replace("$instance", ".+");
            ensure!(!expr.contains('$'), "{expr}");
            found.push((title.to_owned(), expr));
        }
    }
    Ok(found)
}

/// The alerts, whole.
fn alerts() -> Result<Vec<Value>> {
    let file: Value = serde_saphyr::from_str(&file("alerts.yaml")?)?;
    let rules = file.pointer("/groups/0/rules").and_then(Value::as_array);
    rules.cloned().context("no rules")
}

/// The expressions of the alerts, by their names.
fn alert_expressions() -> Result<Vec<(String, String)>> {
    let texts = alerts()?.into_iter().map(|alert| {
        let text = |key: &str| alert.get(key)?.as_str().map(str::to_owned);
        Some((text("alert")?, text("expr")?))
    });
    texts
        .map(|pair| pair.context("no name or no expr"))
        .collect()
}

/// What an expression asks for.
#[derive(Default)]
struct Asked {
    /// Metrics, each with the labels and values that are wanted.
    series: Vec<(String, Vec<Matcher>)>,
    /// Labels by which sums are kept apart.
    kept: BTreeSet<String>,
}

impl ExprVisitor for Asked {
    type Error = Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Infallible> {
        let selector = match expr {
            Expr::VectorSelector(selector) => Some(selector),
            Expr::MatrixSelector(matrix) => Some(&matrix.vs),
            Expr::Aggregate(aggregate) => {
                if let Some(LabelModifier::Include(labels)) = &aggregate.modifier {
                    self.kept.extend(labels.labels.iter().cloned());
                }
                None
            }
            _ => None,
        };
        if let Some(selector) = selector {
            let name = selector.name.clone().unwrap_or_default();
            self.series.push((name, selector.matchers.matchers.clone()));
        }
        Ok(true)
    }
}

fn asked(expr: &str) -> Result<Asked> {
    let parsed = parser::parse(expr).map_err(|error| anyhow!("{expr}: {error}"))?;
    let mut asked = Asked::default();
    walk_expr(&mut asked, &parsed)?;
    ensure!(!asked.series.is_empty(), "{expr} asks for nothing");
    Ok(asked)
}

type Labels = BTreeMap<String, String>;

/// What `/stats/prometheus` has: the metrics with their series.
async fn scraped(proxy: &Running) -> Result<BTreeMap<String, Vec<(Labels, f64)>>> {
    let answer = proxy.admin_get("/stats/prometheus").await?;
    let mut metrics = BTreeMap::<String, Vec<_>>::new();
    for line in answer.body.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else {
            continue;
        };
        let (labels, value) = rest.rsplit_once("} ").with_context(|| line.to_owned())?;
        let labels = labels.split("\",").filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (name, value) = label.split_once("=\"").with_context(|| line.to_owned())?;
            Ok((name.to_owned(), value.trim_end_matches('"').to_owned()))
        });
        let series = (labels.collect::<Result<_>>()?, value.parse()?);
        metrics.entry(name.to_owned()).or_default().push(series);
    }
    Ok(metrics)
}

/// Whether an expression's metrics are there, each with a series that is asked for, and its labels with them.
fn check(expr: &str, metrics: &BTreeMap<String, Vec<(Labels, f64)>>) -> Result<()> {
    let asked = asked(expr)?;
    let mut kept = asked.kept;
    for (name, matchers) in asked.series {
        let series = metrics
            .get(&name)
            .with_context(|| format!("no metric `{name}`"))?;
        let matchers: Vec<_> = matchers
            .iter()
            .filter(|matcher| !OF_PROMETHEUS.contains(&matcher.name.as_str()))
            .collect();
        for matcher in &matchers {
            let there = series
                .iter()
                .any(|(labels, _)| labels.contains_key(&matcher.name));
            ensure!(there, "`{name}` has no label `{}`", matcher.name);
            // An alternative that never occurs is a word that was mistyped.
            if let MatchOp::Re(_) = matcher.op {
                let words = matcher.value.split('|');
                for word in
                    words.filter(|word| word.chars().all(|c| c == '_' || c.is_ascii_lowercase()))
                {
                    let known = |(labels, _): &(Labels, f64)| {
                        labels.get(&matcher.name).is_some_and(|value| value == word)
                    };
                    ensure!(series.iter().any(known), "`{name}` is never `{word}`");
                }
            }
        }
        let fits = |(labels, _): &&(Labels, f64)| {
            let value = |matcher: &Matcher| labels.get(&matcher.name).map_or("", String::as_str);
            matchers
                .iter()
                .all(|matcher| matcher.is_match(value(matcher)))
        };
        let found: Vec<_> = series.iter().filter(fits).collect();
        ensure!(!found.is_empty(), "no series of `{name}` is asked for");
        kept.retain(|label| !found.iter().any(|(labels, _)| labels.contains_key(label)));
    }
    kept.retain(|label| !OF_PROMETHEUS.contains(&label.as_str()));
    ensure!(kept.is_empty(), "nothing has the labels {kept:?}");
    Ok(())
}

/// Hosts of the run, each for something to see.
const EXPIRED: &str = "expired.example.com";
const PLAIN: &str = "plain.example.com";
const BUSY: &str = "busy.default.internal.example.com";
const BANK: &str = "bank.example.com";
const CACHE: &str = "cache.example.com";

fn rules() -> String {
    let tcp =
        "resolution: DNS, ports: [{number: 6379, name: redis, protocol: REDIS, targetPort: 443}]";
    originated(HOST, 443)
        + &originated(EXPIRED, 443)
        + &entry(PLAIN, 80)
        + &entry(BUSY, 443)
        + &rule(
            BUSY,
            "{tls: {mode: SIMPLE}, connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}",
        )
        + &entry(BANK, 443)
        + &selected(BANK, "client.v2")
        + &entry_with(CACHE, tcp)
        + &rule(CACHE, SIMPLE)
}

/// The value of a metric's series with these labels, added up.
async fn sum(proxy: &Running, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    let metrics = scraped(proxy).await?;
    let series = metrics.get(name).with_context(|| format!("no `{name}`"))?;
    let wanted = series.iter().filter(|(found, _)| {
        let mut labels = labels.iter();
        labels.all(|(name, value)| found.get(*name).map(String::as_str) == Some(*value))
    });
    Ok(wanted.map(|(_, value)| value).sum())
}

/// A run in which everything has happened that the dashboard and the alerts are about and that can be brought about.
async fn eventful(trusted: &Trusted) -> Result<(Running, Vec<StandIn>, SilentPort)> {
    let good = trusted.site([HOST, BUSY, BANK, CACHE]).await?;
    let expired = Leaf::for_names([EXPIRED]).validity(Validity::Expired);
    let expired = site(&trusted.ca, &expired).await?;
    let clients = Ca::new("clients")?;
    let required = Clients::Required(vec![clients.certificate().clone()]);
    let bank = StandInConfig::new(trusted.ca.issue(&Leaf::for_names([BANK]))?);
    let bank = StandIn::start(bank.clients(required)).await?;
    let credentials = trusted.path("credentials");
    std::fs::create_dir(&credentials)?;
    let client = clients.issue(&Leaf::client("sleep"))?;
    credential(&credentials, "client.v2", &client, &trusted.ca.pem())?;
    // It takes connections and never answers.
    let silent = SilentPort::start().await?;

    let file = trusted.file("rules.yaml", &rules())?;
    let proxy = Egressctl::builder()
        .rules(&file)
        // Of the native form there are no virtual machines to look at; all else is the same.
        .arg("--filter")
        .arg("wasm")
        .env("SSL_CERT_FILE", trusted.bundle())
        .arg("--label")
        .arg("app=sleep")
        .arg("--credentials")
        .arg(&credentials)
        .port(80, 0)
        .port(6379, 0)
        .connect_to(&route(HOST, 443, good.tls_addr()))
        .connect_to(&route(EXPIRED, 443, expired.tls_addr()))
        .connect_to(&route(PLAIN, 80, good.plain_addr()))
        .connect_to(&route(BUSY, 443, silent.addr()))
        .connect_to(&route(BANK, 443, bank.tls_addr()))
        .connect_to(&route(CACHE, 443, good.tls_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;
    for (host, status) in [
        (HOST, 200),
        (EXPIRED, 503),
        (BANK, 200),
        ("unknown.example.com", 502),
    ] {
        let answer = probe::get(http, host, "/").await?;
        assert_eq!(answer.status, status, "{host}: {}", answer.body);
    }
    probe::get(http, PLAIN, "/").await?;
    let mut stream = TcpStream::connect(proxy.listener(6379)?).await?;
    stream.write_all(b"x\r\n\r\n").await?;
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer)).await??;

    // One connection, one request that waits for it, and one too many.
    let busy = (0..3).map(|_| tokio::spawn(probe::get(http, BUSY, "/")));
    let busy: Vec<_> = busy.collect();
    eventually("the circuit breaker has turned one away", async || {
        let labels = [("envoy_cluster_name", &*format!("outbound|80||{BUSY}"))];
        Ok(sum(
            &proxy,
            "envoy_cluster_upstream_rq_pending_overflow",
            &labels,
        )
        .await?
            > 0.0)
    })
    .await?;
    busy.iter().for_each(|request| request.abort());

    let more = rules() + &originated("more.example.com", 443);
    let new = trusted.file("new.yaml", &more)?;
    std::fs::rename(new, file)?;
    let reloaded = async {
        while !proxy
            .stdout()
            .iter()
            .any(|line| line.starts_with("reloaded"))
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, reloaded).await.context("not reloaded")?;
    Ok((proxy, vec![good, expired, bank], silent))
}

/// What a run with the native form has, whose panics have a counter.
async fn of_the_native_form(trusted: &Trusted) -> Result<BTreeMap<String, Vec<(Labels, f64)>>> {
    let builder = trusted.egressctl(&rules()).port(80, 0);
    let builder = builder.arg("--label").arg("app=other");
    let proxy = builder.arg("--filter").arg("module").start().await?;
    scraped(&proxy).await
}

#[tokio::test]
async fn everything_that_is_asked_for_is_there_and_counts() -> Result<()> {
    let trusted = Trusted::new()?;
    let (proxy, _sites, _silent) = eventful(&trusted).await?;
    let metrics = scraped(&proxy).await?;
    let native = of_the_native_form(&trusted).await?;
    let mut missing = Vec::new();
    for (name, expr) in dashboard()?.into_iter().chain(alert_expressions()?) {
        let metrics = if expr.contains("egress_panics") {
            &native
        } else {
            &metrics
        };
        if let Err(error) = check(&expr, metrics) {
            missing.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(missing.is_empty(), "{}", missing.join("\n"));

    let busy = format!("outbound|80||{BUSY}");
    for (name, labels) in [
        ("egress_failure", [("reason", "expired")]),
        (
            "envoy_vhost_route_upstream_rq",
            [("envoy_route", "originate")],
        ),
        (
            "envoy_vhost_route_upstream_rq",
            [("envoy_route", "forward")],
        ),
        (
            "envoy_cluster_ssl_fail_verify_error",
            [("envoy_cluster_name", common::SHARED)],
        ),
        (
            "envoy_cluster_ssl_handshake",
            [("envoy_cluster_name", common::SHARED)],
        ),
        (
            "envoy_cluster_upstream_rq_pending_overflow",
            [("envoy_cluster_name", &busy)],
        ),
        (
            "envoy_tcp_downstream_cx_total",
            [("envoy_tcp_prefix", "outbound_6379")],
        ),
        (
            "envoy_cluster_ssl_certificate_expiration_unix_time_seconds",
            [("envoy_tls_certificate", "kubernetes://client.v2")],
        ),
        (
            "envoy_extension_config_discovery_http_filter_config_reload",
            [("filter", "outbound_80")],
        ),
    ] {
        let value = sum(&proxy, name, &labels).await?;
        ensure!(value > 0.0, "{name} {labels:?} is {value}");
    }
    // What was answered here: the unknown host alone.
    let listener = [("envoy_http_conn_manager_prefix", "outbound_80")];
    let all = sum(&proxy, "envoy_http_downstream_rq_total", &listener).await?;
    let sent = sum(&proxy, "envoy_http_rq_total", &listener).await?;
    assert_eq!(all - sent, 1.0);
    Ok(())
}

/// A host's cluster is one label, and none of its dots ends it.
#[tokio::test]
async fn names_with_dots_are_whole() -> Result<()> {
    let trusted = Trusted::new()?;
    let (proxy, _sites, _silent) = eventful(&trusted).await?;
    let metrics = scraped(&proxy).await?;
    let clusters: BTreeSet<_> = metrics
        .values()
        .flatten()
        .filter_map(|(labels, _)| labels.get("envoy_cluster_name"))
        .map(|name| name.split_once('~').map_or(name.as_str(), |(name, _)| name))
        .collect();
    let hosts: BTreeSet<_> = clusters
        .iter()
        .filter_map(|name| name.strip_prefix("outbound|"))
        .collect();
    let (busy, cache) = (format!("80||{BUSY}"), format!("6379||{CACHE}"));
    assert_eq!(hosts, BTreeSet::from([busy.as_str(), cache.as_str()]));
    for name in metrics.keys() {
        ensure!(!name.contains("example"), "{name}");
    }
    Ok(())
}

#[test]
fn every_alert_says_what_to_do_and_knows_its_reasons() -> Result<()> {
    let reasons: BTreeSet<_> = egress_reasons()?;
    let mut covered = BTreeSet::new();
    for alert in alerts()? {
        let text = |pointer: &str| alert.pointer(pointer).and_then(Value::as_str);
        for pointer in [
            "/annotations/summary",
            "/annotations/runbook",
            "/labels/severity",
        ] {
            let told = text(pointer).with_context(|| format!("no {pointer}: {alert}"))?;
            ensure!(!told.is_empty(), "{alert}");
        }
        for (name, matchers) in asked(text("/expr").context("no expr")?)?.series {
            if name == "egress_failure" {
                let words = matchers.iter().flat_map(|matcher| matcher.value.split('|'));
                covered.extend(words.map(str::to_owned));
            }
        }
    }
    // Each reason has an alert, and each alert's reason is one.
    assert_eq!(covered, reasons);
    Ok(())
}

/// The reasons of `failures.md`.
fn egress_reasons() -> Result<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../filter/core/failures.md");
    let text = std::fs::read_to_string(path)?;
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let words = rows.filter_map(|row| row.split_once('`'));
    Ok(words.map(|(word, _)| word.to_owned()).collect())
}

#[test]
fn what_is_not_there_would_be_noticed() -> Result<()> {
    let labels = Labels::from([("reason".to_owned(), "dns".to_owned())]);
    let metrics = BTreeMap::from([("egress_failure".to_owned(), vec![(labels, 0.0)])]);
    for (expr, good) in [
        (
            "sum by (reason) (rate(egress_failure{instance=~\".+\"}[1m]))",
            true,
        ),
        ("egress_failure{reason=~\"dns\"} > 1", true),
        ("egress_failure{reason=~\"dns|dsn\"} > 1", false),
        ("egress_failure{raeson=\"dns\"}", false),
        ("egress_failure{reason=\"expired\"}", false),
        ("sum by (cause) (egress_failure)", false),
        ("egress_failures", false),
        ("rate(egress_failure[1m]", false),
    ] {
        assert_eq!(check(expr, &metrics).is_ok(), good, "{expr}");
    }
    Ok(())
}
