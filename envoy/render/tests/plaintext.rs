//! No rule set leads to plaintext unless somebody allowed it: made-up rule sets, judged by what is rendered for Envoy.
//!
//! What somebody asked for is read from the documents alone, by a few lines of this file, and what becomes of a request
//! from the bootstrap alone: the filter's configuration in it decides, and the cluster it names has TLS or not. The
//! gate's own judgement has no part in it.
//!
//! `FUZZ_SECONDS=600 cargo test --test plaintext -- --nocapture` goes on for ten minutes and says how many sets it tried.

#![expect(
    clippy::disallowed_methods,
    reason = "the test asks for how long it shall run, and looks at the clock; what it tests does not"
)]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop where it is"
)]

use std::time::{Duration, Instant};

use egress_filter::load;
use egress_policy::{
    Action, AllowPlaintext, Branch, Branching, Cluster, CompileOptions, Connection, Decision,
    DownstreamProtocol, OutboundMode, PolicyTable, PortNumber, Proxy, Query, ShareOf, Spoken,
};
use egress_render::xds::{self, FilterFile, Options, Version};
use egress_rules as rules;
use egress_rules::Source;
use serde_json::{Value, json};

/// Numbers that only look random, and are the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of.get(self.below(of.len())).copied().unwrap()
    }

    fn times_in(&mut self, times: usize, limit: usize) -> bool {
        self.below(limit) < times
    }
}

const NAMESPACES: [&str; 4] = ["default", "shop", "third", "istio-system"];
const HOP: &str = "istio-egressgateway.istio-system.svc.cluster.local";
const HOSTS: [&str; 6] = [
    "a.example.com",
    "b.example.com",
    "c.sub.example.com",
    "intranet",
    "*.example.com",
    "*.sub.example.com",
];
/// The names that are asked for: hosts, names below wildcards, and what nobody has.
const NAMES: [&str; 8] = [
    "a.example.com",
    "b.example.com",
    "c.sub.example.com",
    "d.sub.example.com",
    "x.example.com",
    "intranet",
    "nobody.example.org",
    "a.example.con",
];

fn document(draw: &mut Draw, kind: &str, at: usize, spec: Value) -> Value {
    let namespace = match draw.times_in(3, 5) {
        true => "default",
        false => draw.one(&NAMESPACES),
    };
    let group = if kind == "BackendTLSPolicy" {
        "gateway.networking.k8s.io"
    } else {
        "networking.istio.io"
    };
    json!({"apiVersion": format!("{group}/v1"), "kind": kind,
           "metadata": {"name": format!("{}-{at}", kind.to_lowercase()), "namespace": namespace}, "spec": spec})
}

fn export_to(draw: &mut Draw, spec: &mut Value, nobody: bool) {
    if draw.times_in(1, 4) {
        let to = draw.one(&[
            ".",
            "*",
            "shop",
            "default",
            if nobody { "~" } else { "third" },
        ]);
        spec["exportTo"] = json!([to]);
    }
}

fn entry(draw: &mut Draw, at: usize) -> Value {
    let host = draw.one(&HOSTS);
    let mut ports = Vec::new();
    for (number, name) in [
        (80, "http"),
        (8080, "other"),
        (443, "https"),
        (6379, "bytes"),
    ] {
        if !draw.times_in(if number == 80 { 4 } else { 1 }, 5) {
            continue;
        }
        let protocol = match number {
            443 => draw.one(&["HTTPS", "TLS", "HTTPS", "HTTP"]),
            6379 => "TCP",
            _ => "HTTP",
        };
        let mut port = json!({"number": number, "name": name, "protocol": protocol});
        if number != 443 && draw.times_in(3, 5) {
            port["targetPort"] = json!(*draw.one(&[&443, &443, &80, &8443, &8000]));
        }
        ports.push(port);
    }
    if ports.is_empty() {
        ports.push(json!({"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443}));
    }
    let wild = host.starts_with('*');
    let mut spec =
        json!({"hosts": [host], "ports": ports, "resolution": if wild { "NONE" } else { "DNS" }});
    if !wild && draw.times_in(1, 5) {
        spec["endpoints"] = json!([{"address": "server.example.net", "ports": {"http": 443}}]);
        if !ports_have(&spec, "http") {
            spec["endpoints"] = json!([{"address": "server.example.net"}]);
        }
    }
    export_to(draw, &mut spec, true);
    document(draw, "ServiceEntry", at, spec)
}

fn ports_have(spec: &Value, name: &str) -> bool {
    spec["ports"]
        .as_array()
        .unwrap()
        .iter()
        .any(|port| port["name"] == name)
}

fn policy(draw: &mut Draw) -> Value {
    let mut policy = json!({});
    if draw.times_in(3, 5) {
        policy["tls"] = json!({"mode": draw.one(&["SIMPLE", "SIMPLE", "SIMPLE", "DISABLE"])});
    }
    if draw.times_in(1, 4) {
        policy["connectionPool"] = json!({"tcp": {"maxConnections": 7}});
    }
    policy
}

fn rule(draw: &mut Draw, at: usize) -> Value {
    let slip = ["a.example.con", "example.com", "*.example.con"];
    let host = match draw.times_in(1, 12) {
        true => draw.one(&slip),
        false => draw.one(&HOSTS),
    };
    let mut spec = json!({"host": host, "trafficPolicy": policy(draw)});
    if draw.times_in(2, 5) {
        let mut level = policy(draw);
        level["port"] = json!({"number": *draw.one(&[&80, &8080, &443, &9999])});
        spec["trafficPolicy"]["portLevelSettings"] = json!([level]);
    }
    if draw.times_in(1, 6) {
        spec["subsets"] = json!([{"name": "v1", "trafficPolicy": policy(draw)}]);
    }
    match draw.times_in(1, 5) {
        true => {
            spec["workloadSelector"] =
                json!({"matchLabels": {"app": draw.one(&["sleep", "other"])}})
        }
        false => export_to(draw, &mut spec, false),
    }
    document(draw, "DestinationRule", at, spec)
}

/// A destination that may be one of the hosts.
fn destination(draw: &mut Draw) -> Value {
    json!({"host": draw.one(&HOSTS[..4]), "port": {"number": *draw.one(&[&80, &443])}})
}

/// What leads requests, or says what there is; of routes a set has one VirtualService at most.
fn others(draw: &mut Draw, at: usize) -> Vec<Value> {
    let host = *draw.one(&[&HOSTS[0], &HOSTS[1], &HOSTS[2], &HOSTS[4]]);
    match draw.below(5) {
        0 => {
            let spec =
                json!({"hosts": [host], "http": [{"route": [{"destination": destination(draw)}]}]});
            vec![document(draw, "VirtualService", at, spec)]
        }
        1 => {
            let target = json!({"group": "networking.istio.io", "kind": "ServiceEntry", "name": "serviceentry-0"});
            let spec = json!({"targetRefs": [target], "validation": {"hostname": "a.example.com", "wellKnownCACertificates": "System"}});
            vec![document(draw, "BackendTLSPolicy", at, spec)]
        }
        2 => {
            let hosts = draw.one(&["*/*", "./*", "shop/*"]);
            let spec = json!({"egress": [{"hosts": [hosts]}]});
            vec![document(draw, "Sidecar", at, spec)]
        }
        3 => {
            let (one, two, three) = (destination(draw), destination(draw), destination(draw));
            let spec = json!({"hosts": [host], "http": [
                {"match": [{"uri": {"prefix": "/v1"}}], "route": [{"destination": one}], "timeout": "3s"},
                {"match": [{"uri": {"exact": "/gone"}}], "directResponse": {"status": 410}},
                {"route": [{"destination": two, "weight": 30}, {"destination": three, "weight": 70}]},
            ]});
            vec![document(draw, "VirtualService", at, spec)]
        }
        _ => {
            let port = *draw.one(&[&80, &443]);
            let server =
                json!({"port": {"number": port, "name": "p", "protocol": "HTTP"}, "hosts": [host]});
            let spec = json!({"selector": {"istio": "egressgateway"}, "servers": [server]});
            let gateway = document(draw, "Gateway", at, spec);
            let (namespace, name) = (
                &gateway["metadata"]["namespace"],
                &gateway["metadata"]["name"],
            );
            let bound = format!("{}/{}", namespace.as_str().unwrap(), name.as_str().unwrap());
            let hop = json!({"host": HOP, "port": {"number": port}});
            let spec = json!({"hosts": [host], "gateways": ["mesh", bound], "http": [
                {"match": [{"gateways": ["mesh"], "port": 80}], "route": [{"destination": hop}]},
                {"match": [{"gateways": [bound], "port": port}], "route": [{"destination": destination(draw)}]},
            ]});
            vec![gateway.clone(), document(draw, "VirtualService", at, spec)]
        }
    }
}

fn set(draw: &mut Draw) -> Vec<Value> {
    let (entries, rules) = (1 + draw.below(2), draw.below(3));
    let mut documents = Vec::new();
    for at in 0..entries {
        let entry = entry(draw, at);
        // Most people give a rule for each host, beside its entry.
        if draw.times_in(4, 5) {
            let level = |port: u16| json!({"port": {"number": port}, "tls": {"mode": "SIMPLE"}});
            let levels = [level(80), level(8080), level(6379)];
            let spec = json!({"host": entry["spec"]["hosts"][0], "trafficPolicy": {"portLevelSettings": levels}});
            let mut rule = document(draw, "DestinationRule", 10 + at, spec);
            rule["metadata"]["namespace"] = entry["metadata"]["namespace"].clone();
            documents.push(rule);
        }
        documents.push(entry);
    }
    documents.extend((0..rules).map(|at| rule(draw, at)));
    if draw.times_in(1, 6) {
        documents.extend(others(draw, 0));
    }
    documents
}

/// Whether a host of a rule has a name, as Istio completes and compares it.
fn has(document: &Value, name: &str) -> bool {
    let host = document["spec"]["host"].as_str().unwrap();
    let namespace = document["metadata"]["namespace"].as_str().unwrap();
    match host.strip_prefix('*') {
        Some(ending) => name.len() > ending.len() && name.ends_with(ending),
        None if host.contains('.') => host == name,
        None => format!("{host}.{namespace}.svc.cluster.local") == name,
    }
}

/// Whether any part of a rule says this of TLS for a port: alone, where nothing for the port itself stands in its place.
fn says(document: &Value, port: u16, mode: impl Fn(&str) -> bool) -> bool {
    let part = |policy: &Value| {
        let tls = |policy: &Value| policy["tls"]["mode"].as_str().is_some_and(&mode);
        let levels = policy["portLevelSettings"].as_array();
        let own = |level: &&Value| level["port"]["number"] == port;
        match levels.and_then(|levels| levels.iter().find(own)) {
            Some(own) if own["tls"].is_object() => tls(own),
            _ => tls(policy),
        }
    };
    let spec = &document["spec"];
    let subsets = spec["subsets"].as_array().into_iter().flatten();
    part(&spec["trafficPolicy"]) || subsets.map(|subset| &subset["trafficPolicy"]).any(part)
}

/// Whether somebody asked for TLS to a name and port, and nobody for plaintext.
fn is_asked(documents: &[Value], name: &str, port: u16) -> bool {
    let rules = || {
        let rules = documents
            .iter()
            .filter(|it| it["kind"] == "DestinationRule");
        rules.filter(|rule| has(rule, name))
    };
    let asked = rules().any(|rule| says(rule, port, |mode| mode != "DISABLE"));
    let disabled = rules().any(|rule| says(rule, port, |mode| mode == "DISABLE"));
    asked && !disabled
}

/// Whether a rule says that plaintext to a name and port is meant.
fn is_meant(documents: &[Value], name: &str, port: u16) -> bool {
    let mut rules = documents
        .iter()
        .filter(|it| it["kind"] == "DestinationRule");
    rules.any(|rule| has(rule, name) && says(rule, port, |mode| mode == "DISABLE"))
}

/// Returns where a share of the one VirtualService of a set leads.
fn led_to<'d>(
    documents: &'d [Value],
    decision: &Decision<'_, '_>,
    share: usize,
) -> Option<(&'d str, u16)> {
    let mut services = documents.iter();
    let service = services.find(|it| it["kind"] == "VirtualService")?;
    let route = match (decision.gateway_service, decision.branch) {
        (Some(_), _) => 1,
        (None, branch) => branch.map_or(0, Branch::route),
    };
    let to = &service["spec"]["http"][route]["route"][share]["destination"];
    let port = to["port"]["number"].as_u64()?;
    Some((to["host"].as_str()?, u16::try_from(port).ok()?))
}

fn options(proxy: Proxy) -> Options {
    Options {
        filter: FilterFile::Wasm("filter.wasm".to_owned()),
        trust_store: "system.pem".to_owned(),
        proxy,
        version: Version::find(egress_render::pinned_envoy()).unwrap(),
        ..Options::default()
    }
}

/// Finds the filter's configurations in a bootstrap.
fn plugins<'b>(value: &'b Value, found: &mut Vec<&'b str>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "value" && text.contains("\"resources\":") => {
                        found.push(text)
                    }
                    _ => plugins(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| plugins(item, found)),
        _ => {}
    }
}

/// Returns how a cluster of a bootstrap is reached: whether by TLS, and on which ports where it has endpoints.
fn cluster(bootstrap: &Value, name: &str) -> (bool, Vec<u64>) {
    let clusters = bootstrap["static_resources"]["clusters"]
        .as_array()
        .unwrap();
    let cluster = clusters
        .iter()
        .find(|cluster| cluster["name"] == name)
        .unwrap();
    let tls = cluster.to_string().contains("UpstreamTlsContext");
    let localities = cluster["load_assignment"]["endpoints"]
        .as_array()
        .into_iter()
        .flatten();
    let endpoints =
        localities.flat_map(|locality| locality["lb_endpoints"].as_array().into_iter().flatten());
    let ports = endpoints
        .filter_map(|it| it["endpoint"]["address"]["socket_address"]["port_value"].as_u64());
    (tls, ports.collect())
}

/// Returns what leaves in plaintext against somebody's word; `None` where the rules are refused.
fn leaks(documents: &[Value], compile_options: &CompileOptions) -> Option<Vec<String>> {
    let source = Source {
        name: "rules.json".to_owned(),
        text: json!({"apiVersion": "v1", "kind": "List", "items": documents}).to_string(),
        mesh: false,
    };
    let rules = rules::compile(&[source], compile_options).ok()?;
    let bootstrap = xds::bootstrap(
        &rules.table,
        &rules.resources(),
        &options(compile_options.proxy.clone()),
    );
    let mut configurations = Vec::new();
    plugins(&bootstrap, &mut configurations);
    let mut leaks = Vec::new();
    for text in configurations {
        let plugin: Value = serde_json::from_str(text).unwrap();
        let port = u16::try_from(plugin["listener"]["port"].as_u64().unwrap()).unwrap();
        let is_network = plugin["filter"] == "NETWORK";
        let loaded = load(text.as_bytes()).unwrap();
        let number = PortNumber::new(port).unwrap();
        for name in NAMES {
            let of_name = |all: &Branching<'_>| all.port == number && all.host.matches(name);
            let branching = loaded.table.branching().filter(of_name);
            let branches = branching.flat_map(|all| all.branches);
            let branches: Vec<&str> = branches.map(|branch| branch.name).collect();
            for branch in std::iter::once(None).chain(branches.into_iter().map(Some)) {
                let decision = match is_network {
                    // Nothing in a connection of bytes says which host it is for.
                    true => loaded.table.decide_connection(&Connection {
                        port: number,
                        address: None,
                        spoken: Spoken::Bytes,
                        drawn: 0,
                    }),
                    false => loaded.table.decide(&Query {
                        host: name,
                        port: number,
                        downstream: DownstreamProtocol::Http,
                        branch,
                        subset: None,
                    }),
                };
                let name = match (is_network, decision.target) {
                    (true, Some(target)) => target.host,
                    _ => name,
                };
                let asked = Asked {
                    documents,
                    bootstrap: &bootstrap,
                    table: &loaded.table,
                    name,
                    port,
                };
                leaks.extend(asked.leaks(&decision));
            }
        }
    }
    Some(leaks)
}

/// A host and port that was asked for.
struct Asked<'a> {
    documents: &'a [Value],
    bootstrap: &'a Value,
    table: &'a PolicyTable,
    name: &'a str,
    port: u16,
}

impl Asked<'_> {
    /// Returns what a decision lets out in plaintext against somebody's word.
    fn leaks(&self, decision: &Decision<'_, '_>) -> Vec<String> {
        let target = decision.target.map(|target| u64::from(target.port.get()));
        let one = |to: &Cluster| self.leak(decision, to.name.as_str(), 0, target);
        match decision.action {
            Action::Reject(_) | Action::Respond(_) => Vec::new(),
            Action::LeaveAlone(_) => {
                let asked = is_asked(self.documents, self.name, self.port);
                let text = format!("{}:{} left alone", self.name, self.port);
                asked.then_some(text).into_iter().collect()
            }
            Action::Originate(to) | Action::Forward(to) | Action::Passthrough(to) => {
                one(to).into_iter().collect()
            }
            Action::Weighted => {
                let branch = self.table.branch(decision.branch.unwrap());
                let shares = branch.shares.into_iter().enumerate();
                let leak = |(at, share): (usize, ShareOf<'_>)| {
                    let target = Some(u64::from(share.target.get()));
                    self.leak(decision, share.leads_to.ok()?.name.as_str(), at, target)
                };
                shares.filter_map(leak).collect()
            }
        }
    }

    fn leak(
        &self,
        decision: &Decision<'_, '_>,
        to: &str,
        share: usize,
        target: Option<u64>,
    ) -> Option<String> {
        let (tls, ports) = cluster(self.bootstrap, to);
        if tls {
            return None;
        }
        let dialled = match ports.is_empty() {
            true => target.into_iter().collect(),
            false => ports,
        };
        // What is led elsewhere is asked about there.
        let led = decision.virtual_service;
        let led = led.and_then(|_| led_to(self.documents, decision, share));
        let (name, port) = led.unwrap_or((self.name, self.port));
        let meant = is_meant(self.documents, name, port);
        let leaks = is_asked(self.documents, name, port) || (!meant && dialled.contains(&443));
        leaks.then(|| format!("{name}:{port} by {to} to {dialled:?}"))
    }
}

#[test]
fn no_rule_set_leads_to_plaintext_unless_allowed() {
    let seconds = std::env::var("FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut draw = Draw(0x5eed_1234_abcd_0001);
    let (mut tried, mut passed) = (0_u64, 0_u64);
    while until.map_or(tried < 1500, |until| Instant::now() < until) {
        let documents = set(&mut draw);
        let labels = match draw.times_in(1, 3) {
            true => [("app".to_owned(), "sleep".to_owned())].into(),
            false => std::collections::BTreeMap::new(),
        };
        let compile_options = CompileOptions {
            proxy: Proxy {
                namespace: draw.one(&["default", "default", "shop"]).to_owned(),
                labels,
                ..Proxy::default()
            },
            outbound: match draw.times_in(1, 4) {
                true => OutboundMode::AllowAny,
                false => OutboundMode::RegistryOnly,
            },
            ..CompileOptions::default()
        };
        tried += 1;
        let Some(leaks) = leaks(&documents, &compile_options) else {
            continue;
        };
        passed += 1;
        let rules = documents
            .iter()
            .map(|it| format!("{it}\n"))
            .collect::<String>();
        assert!(
            leaks.is_empty(),
            "{leaks:#?}\nfor {compile_options:?}\nby\n{rules}"
        );
    }
    println!("{tried} rule sets, {passed} of them pass the gate, and none leaks");
    assert!(
        passed * 100 >= tried * 30,
        "only {passed} of {tried} pass the gate"
    );
}

#[test]
fn without_the_gate_plaintext_is_seen_to_leave() {
    let mut draw = Draw(0x5eed_1234_abcd_0001);
    let compile_options = CompileOptions {
        allow_plaintext: vec![AllowPlaintext::everywhere()],
        ..CompileOptions::default()
    };
    let mut seen = 0;
    for _ in 0..300 {
        let leaks = leaks(&set(&mut draw), &compile_options);
        seen += usize::from(leaks.is_some_and(|leaks| !leaks.is_empty()));
    }
    assert!(seen >= 20, "{seen} of 300 leak");
}
