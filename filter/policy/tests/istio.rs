//! What Istio does with resources, told in `istio/*.json`, against what the engine does.
//!
//! A story says what *Istio* does, even where we differ on purpose. `istio/divergences.txt` lists where we
//! do; a difference that is not in it fails, and so does a line of it that has become untrue.
//!
//! A case gives resources (and those that its story shares), the caller's namespace and labels, and what
//! Istio's web hook says: `accepts`, `warns` or `refuses`, with a part of its message in `says`. Parts of
//! our own messages are in `weSay`. Then it asks: `scheme://host:port`, where the scheme is how the
//! application speaks (`http`, `tls`, `tcp`). Of the answer, only the fields under `is` are compared.
//!
//! Istio makes a cluster for each service; here hosts share one where only the name would differ. What
//! is compared as `cluster` is the name that Istio's would have.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets what it did not expect should stop"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use egress_policy::{
    Action, AllowPlaintext, Authority, Cluster, CompileOptions, Decision, DownstreamProtocol,
    Endpoints, HashRing, Identity, LoadBalancer, Parser, PolicyTable, PortNumber, Proxy,
    ProxyProtocol, Query, Service, SimpleBalancer, Trust, UpstreamProtocol,
};
use serde_json::{Map, Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

macro_rules! stories {
    ($($name:literal),* $(,)?) => {
        /// The name and text of every story.
        const STORIES: &[(&str, &str)] = &[$(($name, include_str!(concat!("istio/", $name)))),*];
    };
}

stories![
    "endpoints.json",
    "hosts.json",
    "merging.json",
    "namespaces.json",
    "ports-and-subsets.json",
    "protocols.json",
    "root-namespace.json",
    "settings.json",
    "tls.json",
    "validation-destination-rule.json",
    "validation-service-entry.json",
];

/// One difference a line: `story | case | question | field | reason`.
const LEDGER: &str = include_str!("istio/divergences.txt");

/// One value of one field a line: `kind | field | accepts or refuses | value`.
const FIELDS: &str = include_str!("istio/fields.txt");

/// One number of section 8.2 a line, and a reason.
const OUT_OF_SCOPE: &str = include_str!("istio/out-of-scope.txt");

/// The numbers of section 8.2.
const NUMBERS: std::ops::RangeInclusive<u64> = 1..=73;

/// What stands for the host that a request names.
const AUTHORITY: &str = "{authority}";

/// Where we differ: story, case, question, field.
type LbEndpoint = [String; 4];

#[test]
fn we_do_as_istio_does_but_for_what_the_ledger_lists() {
    let listed = ledger();
    let mut found = BTreeMap::new();
    for (story, text) in STORIES {
        let story_value: Value = serde_json::from_str(text).unwrap();
        for case in list(&story_value, "cases") {
            run(story, &story_value, case, &mut found);
        }
    }
    run_fields(&mut found);
    let mut report = String::new();
    for (place, difference) in &found {
        if !listed.contains_key(place) {
            writeln!(
                report,
                "not in the ledger: {}\n    {difference}",
                place.join(" | ")
            )
            .unwrap();
        }
    }
    for place in listed.keys() {
        if !found.contains_key(place) {
            let line = place.join(" | ");
            writeln!(
                report,
                "in the ledger, but there is no such difference: {line}"
            )
            .unwrap();
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn every_numbered_case_is_told_or_out_of_scope() {
    let mut told = BTreeSet::new();
    for (_, text) in STORIES {
        let story: Value = serde_json::from_str(text).unwrap();
        for case in list(&story, "cases") {
            told.extend(
                list(case, "numbers")
                    .iter()
                    .map(|number| number.as_u64().unwrap()),
            );
        }
    }
    let mut left_out = BTreeSet::new();
    for line in lines(OUT_OF_SCOPE) {
        let (number, reason) = line.split_once(' ').unwrap();
        assert!(!reason.trim().is_empty(), "a reason is missing: {line}");
        assert!(
            left_out.insert(number.parse::<u64>().unwrap()),
            "twice: {line}"
        );
    }
    let both: Vec<_> = told.intersection(&left_out).collect();
    assert_eq!(
        both,
        Vec::<&u64>::new(),
        "told, and said to be out of scope"
    );
    let all: BTreeSet<u64> = told.union(&left_out).copied().collect();
    assert_eq!(all, NUMBERS.collect::<BTreeSet<u64>>());
}

#[test]
fn every_case_has_a_name_of_its_own_and_asks_only_what_is_compared() {
    let known = [
        "case",
        "numbers",
        "source",
        "resources",
        "namespace",
        "labels",
        "istio",
        "says",
        "weSay",
        "queries",
    ];
    for (story, text) in STORIES {
        let value: Value = serde_json::from_str(text).unwrap();
        let mut names = BTreeSet::new();
        for case in list(&value, "cases") {
            let name = text_of(case, "case").unwrap();
            assert!(names.insert(name), "{story}: {name} twice");
            for key in case.as_object().unwrap().keys() {
                assert!(known.contains(&key.as_str()), "{story}: {name}: {key}");
            }
            assert!(
                !name.contains('|'),
                "{story}: {name}: the ledger parts fields with it"
            );
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test reads a folder; the engine does not"
)]
fn no_story_lies_beside_the_list() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/istio");
    let mut there: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();
    there.sort_unstable();
    assert_eq!(
        there,
        STORIES.iter().map(|(name, _)| *name).collect::<Vec<_>>()
    );
}

/// Runs one case and adds what differs.
fn run(story: &str, whole: &Value, case: &Value, found: &mut BTreeMap<LbEndpoint, String>) {
    let name = text_of(case, "case").unwrap();
    let mut differs = |question: &str, field: &str, istio: &Value, ours: &Value| {
        if istio != ours {
            let place = [story, name, question, field].map(str::to_owned);
            found.insert(place, format!("Istio: {istio}, we: {ours}"));
        }
    };
    let documents: Vec<Value> = [list(whole, "shared"), list(case, "resources")]
        .concat()
        .iter()
        .map(document)
        .collect();
    let proxy = Proxy {
        namespace: text_of(case, "namespace").unwrap_or("default").to_owned(),
        labels: case
            .get("labels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
            .collect(),
        ..Proxy::default()
    };
    let options = CompileOptions {
        proxy,
        // Istio has no gate against plaintext.
        allow_plaintext: vec![AllowPlaintext::everywhere()],
        ..CompileOptions::default()
    };
    let mut parser = Parser::new();
    documents
        .iter()
        .for_each(|document| parser.document(document));
    let (resources, mut problems) = parser.finish();
    let mut table = None;
    if !problems.has_errors() {
        match PolicyTable::compile(&resources, &options) {
            Ok((compiled, warnings)) => {
                table = Some(compiled);
                problems.0.extend(warnings.0);
            }
            Err(errors) => problems.0.extend(errors.0),
        }
    }
    let errors: Vec<String> = problems.errors().map(ToString::to_string).collect();
    let messages: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
    // Istio says nothing of much that we warn of, so a warning too many is no difference.
    let istio = text_of(case, "istio").unwrap();
    let ours = match (&table, istio) {
        (None, _) => "refuses",
        (Some(_), "warns") if has_all(&messages, list(case, "says")) => "warns",
        (Some(_), _) => "accepts",
    };
    assert!(
        ["accepts", "warns", "refuses"].contains(&istio),
        "{story}: {name}: {istio}"
    );
    let heard = if ours == "refuses" {
        &errors
    } else {
        &messages
    };
    if istio != ours {
        differs("-", "outcome", &json!(istio), &json!([ours, messages]));
    } else if !has_all(heard, list(case, "says")) {
        differs("-", "message", &json!(list(case, "says")), &json!(heard));
    }
    assert!(
        has_all(&messages, list(case, "weSay")),
        "{story}: {name}: {messages:?}"
    );
    let Some(table) = table else { return };
    for query in list(case, "queries") {
        let ask = text_of(query, "ask").unwrap();
        let subset = text_of(query, "subset");
        let question = match subset {
            Some(subset) => format!("{ask} {subset}"),
            None => ask.to_owned(),
        };
        let answer = answer(&table, ask, subset);
        for (field, istio) in query.get("is").unwrap().as_object().unwrap() {
            let missing = Value::Null;
            match (field.as_str(), istio.as_object()) {
                ("settings", Some(wanted)) => {
                    let settings = answer.get("settings").unwrap_or(&missing);
                    for (setting, istio) in wanted {
                        let ours = settings.get(setting).unwrap_or(&missing);
                        differs(&question, setting, istio, &narrowed(ours, istio));
                    }
                }
                _ => differs(
                    &question,
                    field,
                    istio,
                    answer.get(field).unwrap_or(&missing),
                ),
            }
        }
    }
}

/// Puts each value in its field of a good document, and adds where our word is not Istio's.
fn run_fields(found: &mut BTreeMap<LbEndpoint, String>) {
    let good = [
        (
            "ServiceEntry",
            json!({"hosts": ["a.com"], "resolution": "DNS", "ports": [{"number": 80, "name": "p", "protocol": "HTTP"}]}),
        ),
        (
            "DestinationRule",
            json!({"host": "a.com", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
        ),
    ];
    let taken = |document: &Value| {
        let mut parser = Parser::new();
        parser.document(document);
        let (resources, problems) = parser.finish();
        if problems.has_errors() {
            return Err(problems.to_string());
        }
        // A selector needs a caller that it may select, and a rule a service to be looked at.
        let compiled = PolicyTable::compile_with_errors(&resources, &CompileOptions::default());
        match compiled.problems.has_errors() {
            true => Err(compiled.problems.to_string()),
            false => Ok(()),
        }
    };
    let mut asked = BTreeSet::new();
    for line in lines(FIELDS) {
        let parts: Vec<&str> = line.splitn(4, " | ").collect();
        let [kind, field, istio, value] = parts[..] else {
            panic!("not four parts: {line}");
        };
        assert!(asked.insert((kind, field, value)), "twice: {line}");
        let (_, spec) = good.iter().find(|(known, _)| *known == kind).unwrap();
        let mut document = json!({"apiVersion": "networking.istio.io/v1", "kind": kind,
            "metadata": {"name": "a"}, "spec": spec});
        assert_eq!(taken(&document), Ok(()), "{kind} is good as it is");
        match value {
            "-" => remove(&mut document, field),
            text => {
                *at(&mut document, field) =
                    serde_json::from_str(text).unwrap_or_else(|error| panic!("{line}: {error}"))
            }
        }
        let ours = taken(&document);
        let word = if ours.is_ok() { "accepts" } else { "refuses" };
        assert!(["accepts", "refuses"].contains(&istio), "{line}");
        if istio != word {
            let place = ["fields.txt", &format!("{kind} {field}"), value, "outcome"];
            found.insert(
                place.map(str::to_owned),
                format!("Istio {istio}, we: {ours:?}"),
            );
        }
    }
}

/// Returns the place of a field such as `spec.ports[0].name`, which is made where it is not there.
fn at<'v>(value: &'v mut Value, field: &str) -> &'v mut Value {
    let mut place = value;
    for part in field.split('.') {
        let (key, index) = match part.strip_suffix(']') {
            Some(part) => part.split_once('[').unwrap(),
            None => (part, ""),
        };
        place = place
            .as_object_mut()
            .unwrap()
            .entry(key)
            .or_insert_with(|| match index {
                "" => json!({}),
                _ => json!([{}]),
            });
        if !index.is_empty() {
            place = place.get_mut(index.parse::<usize>().unwrap()).unwrap();
        }
    }
    place
}

fn remove(value: &mut Value, field: &str) {
    let (before, last) = field.rsplit_once('.').unwrap_or(("", field));
    let around = match before {
        "" => value,
        before => at(value, before),
    };
    around.as_object_mut().unwrap().remove(last);
}

/// Leaves of an object the keys that are wanted of it.
fn narrowed(ours: &Value, wanted: &Value) -> Value {
    match (ours, wanted) {
        (Value::Object(ours), Value::Object(wanted)) if !wanted.is_empty() => ours
            .iter()
            .filter(|(key, _)| wanted.contains_key(*key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect::<Map<String, Value>>()
            .into(),
        _ => ours.clone(),
    }
}

/// Decides, and writes the decision as stories do.
fn answer(table: &PolicyTable, ask: &str, subset: Option<&str>) -> Value {
    let (scheme, rest) = ask.split_once("://").unwrap();
    let authority = Authority::parse(rest).unwrap();
    let downstream = match scheme {
        "http" => DownstreamProtocol::Http,
        "tls" => DownstreamProtocol::Tls,
        "tcp" => DownstreamProtocol::Tcp,
        _ => panic!("{ask}"),
    };
    let port = authority.port.unwrap();
    let query = Query {
        host: &authority.host,
        port,
        downstream,
        branch: None,
        subset,
    };
    let decision = table.decide(&query);
    let mut answer = json!({
        "action": decision.action.as_str(),
        "entry": decision.service_entry.map(|entry| entry.qualified()),
        "rule": decision.rule.map(|rule| rule.qualified()),
        "policy": decision.rule.and(decision.policy_source).map(|source| source.path().to_string()),
        "target": decision.target.map(|target| format!("{}:{}", target.host, target.port)),
    });
    let cluster = match decision.action {
        Action::Originate(cluster) | Action::Forward(cluster) | Action::Passthrough(cluster) => {
            cluster
        }
        Action::Weighted | Action::Respond(_) | Action::Reject(_) | Action::LeaveAlone(_) => {
            return answer;
        }
    };
    let more = json!({
        "cluster": istio_name(table, &decision, cluster, port),
        "http": match cluster.upstream {
            UpstreamProtocol::Auto => "negotiated",
            UpstreamProtocol::Http1 => "http/1.1",
            UpstreamProtocol::Http2 => "h2",
            UpstreamProtocol::AsReceived => "as received",
            UpstreamProtocol::Bytes | UpstreamProtocol::PostgreSql => "bytes",
        },
        "endpoints": endpoints(cluster),
        "settings": settings(cluster),
    });
    let fields = answer.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    if let Some(tls) = &cluster.tls {
        let authority = tls.names.authority.then(|| AUTHORITY.to_owned());
        let verify: Vec<String> = authority
            .into_iter()
            .chain(tls.names.any_of.clone())
            .collect();
        let trust = match &tls.trust {
            Trust::System => "system".to_owned(),
            Trust::File(path) => format!("file {path}"),
            Trust::Credential(name) => format!("credential {name}"),
            Trust::InsecureSkipVerify => "nothing".to_owned(),
        };
        let certificate = tls.identity.as_ref().map(|identity| match identity {
            Identity::Files { certificate, key } => format!("{certificate}~{key}"),
            Identity::Credential(name) => name.clone(),
        });
        let tls = json!({
            "mode": tls.mode.as_str(),
            "sni": tls.sni.fixed().unwrap_or(AUTHORITY),
            "verify": verify,
            "trust": trust,
            "crl": tls.crl,
            "clientCertificate": certificate,
        });
        fields.extend(tls.as_object().unwrap().clone());
    }
    answer
}

/// Returns what Istio would call the cluster.
fn istio_name(
    table: &PolicyTable,
    decision: &Decision<'_, '_>,
    cluster: &Cluster,
    port: PortNumber,
) -> String {
    if cluster.own.is_some() {
        return cluster.name.as_str().to_owned();
    }
    let host = decision.target.unwrap().host;
    let serves = |service: &Service<'_>| {
        service.port == port
            && service.subset.is_none()
            && std::ptr::eq(service.cluster, cluster)
            && service.service_entry == decision.service_entry
            && service.host.matches(host)
    };
    let service = table
        .services()
        .filter(serves)
        .max_by_key(|service| service.host.specificity())
        .unwrap();
    format!("outbound|{port}||{}", service.host)
}

fn endpoints(cluster: &Cluster) -> Value {
    let Endpoints::Listed { endpoints, .. } = &cluster.endpoints else {
        return json!("of the request");
    };
    endpoints
        .iter()
        .map(|place| match place.address.starts_with("unix://") {
            true => place.address.clone(),
            false => format!("{}:{}", place.address, place.port),
        })
        .collect()
}

fn settings(cluster: &Cluster) -> Value {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap();
    let pool = cluster.connection_pool.as_deref();
    let tcp = pool.map(|pool| &pool.tcp);
    let http = pool.map(|pool| &pool.http);
    let idle = http.and_then(|http| http.idle_timeout);
    let idle = idle.or(tcp.and_then(|tcp| tcp.idle_timeout));
    let keepalive = tcp.and_then(|tcp| tcp.keepalive.as_ref()).map(|keepalive| {
        let mut fields = Map::new();
        for (name, value) in [
            ("probes", keepalive.probes.map(u64::from)),
            ("time", keepalive.time.map(|time| time.as_secs())),
            ("interval", keepalive.interval.map(|time| time.as_secs())),
        ] {
            fields.extend(value.map(|value| (name.to_owned(), value.into())));
        }
        fields
    });
    let outlier = cluster.outlier_detection.as_ref().map(|outlier| {
        json!({
            "consecutive5xx": outlier.consecutive_5xx,
            "consecutiveGateway": outlier.consecutive_gateway,
            "consecutiveLocal": outlier.consecutive_local,
            "split": outlier.split,
            "minHealthPercent": outlier.min_health_percent,
        })
    });
    let balancer = |balancer: &LoadBalancer| {
        match balancer.consistent_hash.as_ref().map(|hash| hash.ring) {
            Some(HashRing::Ring(size)) => return format!("ring {size}"),
            Some(HashRing::Maglev(size)) => return format!("maglev {size}"),
            None => {}
        }
        match balancer.simple {
            SimpleBalancer::LeastRequest => "least request",
            SimpleBalancer::Random => "random",
            SimpleBalancer::RoundRobin => "round robin",
            SimpleBalancer::Passthrough => "passthrough",
        }
        .to_owned()
    };
    let warmup = cluster
        .load_balancer
        .as_ref()
        .and_then(|balancer| balancer.warmup.as_ref());
    json!({
        "connectionPool": pool.map(|_| "set"),
        "maxConnections": tcp.and_then(|tcp| tcp.max_connections),
        "connectTimeoutMs": tcp.and_then(|tcp| tcp.connect_timeout).map(millis),
        "maxConnectionDurationMs": tcp.and_then(|tcp| tcp.max_connection_duration).map(millis),
        "idleTimeoutMs": idle.map(millis),
        "keepalive": keepalive,
        "maxPendingRequests": http.and_then(|http| http.max_pending_requests),
        "maxRequests": http.and_then(|http| http.max_requests),
        "maxRequestsPerConnection": http.and_then(|http| http.max_requests_per_connection),
        "maxRetries": http.and_then(|http| http.max_retries),
        "outlierDetection": outlier,
        "loadBalancer": cluster.load_balancer.as_deref().map(balancer),
        "warmup": warmup.map(|warmup| {
            json!([millis(warmup.duration), warmup.minimum_percent.0, warmup.aggression.0])
        }),
        "proxyProtocol": cluster.proxy_protocol.map(|version| match version {
            ProxyProtocol::V1 => "V1",
            ProxyProtocol::V2 => "V2",
        }),
        "tunnel": cluster.tunnel.as_ref().map(|tunnel| {
            format!("{} {}", tunnel.method(), tunnel.authority())
        }),
        "retryBudget": cluster.retry_budget.as_ref().map(|budget| {
            json!([budget.percent.0, budget.min_concurrency])
        }),
    })
}

/// Writes out a resource: `{"ServiceEntry": "namespace/name", "spec": {…}}`.
fn document(short: &Value) -> Value {
    let (kind, full_name) = ["ServiceEntry", "DestinationRule"]
        .into_iter()
        .find_map(|kind| Some((kind, text_of(short, kind)?)))
        .unwrap();
    let (namespace, name) = full_name.split_once('/').unwrap();
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": text_of(short, "created").unwrap_or("2024-01-01T00:00:00Z"),
        },
        "spec": short.get("spec").unwrap(),
    })
}

fn ledger() -> BTreeMap<LbEndpoint, String> {
    let mut places = BTreeMap::new();
    for line in lines(LEDGER) {
        let parts: Vec<String> = line
            .split(" | ")
            .map(|part| part.trim().to_owned())
            .collect();
        let [story, case, question, field, reason] = <[String; 5]>::try_from(parts)
            .unwrap_or_else(|_| panic!("story | case | question | field | reason: {line}"));
        assert!(!reason.is_empty(), "a reason is missing: {line}");
        let before = places.insert([story, case, question, field], reason);
        assert!(before.is_none(), "twice: {line}");
    }
    places
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value.get(key).map_or(&[], |list| list.as_array().unwrap())
}

fn text_of<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key).map(|text| text.as_str().unwrap())
}

/// Whether each part stands in one of the messages.
fn has_all(messages: &[String], parts: &[Value]) -> bool {
    parts.iter().all(|part| {
        let part = part.as_str().unwrap();
        messages.iter().any(|message| message.contains(part))
    })
}
