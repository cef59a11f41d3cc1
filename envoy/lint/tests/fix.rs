//! `lint --fix` makes nothing less safe: rule sets are made up, mended, and compared before and after.
//!
//! Compared is what becomes of every host, port and subset for every caller, and for what a VirtualService leads to,
//! which the engine does not read, the `tls` that counts there.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop where it is"
)]

use std::collections::BTreeMap;

use egress_lint as lint;
use egress_policy::{
    Action, ClientTls, Cluster, CompileOptions, DestinationRule, DownstreamProtocol, HostPattern,
    Parser, PolicyTable, PortNumber, Proxy, Query, Resources, TlsIntent, Trust,
};
use egress_rules::Source;
use serde_json::{Map, Value, json};

const SETS: usize = 2000;
const HOSTS: [&str; 3] = ["a.com", "b.com", "c.d.com"];
const PORTS: [u16; 5] = [80, 443, 6379, 8080, 8443];
const NAMESPACES: [&str; 3] = ["default", "other", "istio-system"];

/// A row of numbers that is the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.below(sides) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

fn resource(kind: &str, namespace: &str, name: &str, spec: Map<String, Value>) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn entry(dice: &mut Dice, at: usize) -> Value {
    let mut ports = Vec::new();
    for (number, protocol) in [
        (80, "HTTP"),
        (443, "HTTPS"),
        (8080, "HTTP"),
        (8443, "TLS"),
        (6379, "TCP"),
    ] {
        let often = if number == 80 || number == 443 { 2 } else { 8 };
        if dice.one_in(often) || (number == 6379 && ports.is_empty()) {
            let mut port = object(
                json!({"number": number, "name": format!("p{number}"), "protocol": protocol}),
            );
            if dice.one_in(4) {
                port.insert("targetPort".to_owned(), dice.pick(&[json!(80), json!(443)]));
            }
            ports.push(port);
        }
    }
    let mut spec =
        object(json!({"hosts": [dice.pick(&HOSTS)], "ports": ports, "resolution": "DNS"}));
    if dice.one_in(6) {
        spec.insert("subjectAltNames".to_owned(), json!(["entry.com"]));
    }
    if dice.one_in(6) {
        spec.insert("exportTo".to_owned(), json!(["."]));
    }
    let namespace = dice.pick(&NAMESPACES);
    resource("ServiceEntry", namespace, &format!("entry-{at}"), spec)
}

fn tls(dice: &mut Dice) -> Value {
    let mut tls = object(match dice.below(8) {
        0 => json!({"mode": "DISABLE"}),
        1 => json!({"mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k"}),
        2 => json!({"mode": "SIMPLE", "insecureSkipVerify": true}),
        _ => json!({"mode": "SIMPLE"}),
    });
    if dice.one_in(3) {
        tls.insert("sni".to_owned(), json!(dice.pick(&HOSTS)));
    }
    if dice.one_in(5) && !tls.contains_key("insecureSkipVerify") {
        tls.insert("subjectAltNames".to_owned(), json!(["rule.com"]));
    }
    tls.into()
}

fn policy(dice: &mut Dice) -> Value {
    let mut policy = Map::new();
    if !dice.one_in(4) {
        policy.insert("tls".to_owned(), tls(dice));
    }
    if dice.one_in(6) || policy.is_empty() {
        policy.insert("loadBalancer".to_owned(), json!({"simple": "RANDOM"}));
    }
    if dice.one_in(3) {
        let ports = (0..=dice.below(3)).map(|_| {
            let mut port = object(json!({"port": {"number": dice.pick(&PORTS)}}));
            match dice.one_in(3) {
                true => port.insert("loadBalancer".to_owned(), json!({"simple": "RANDOM"})),
                false => port.insert("tls".to_owned(), tls(dice)),
            };
            Value::from(port)
        });
        let ports: Vec<Value> = ports.collect();
        policy.insert("portLevelSettings".to_owned(), ports.into());
    }
    policy.into()
}

fn rule(dice: &mut Dice, at: usize) -> Value {
    let host = dice.pick(&["a.com", "b.com", "c.d.com", "*.com"]);
    let mut spec = object(json!({"host": host}));
    if !dice.one_in(8) {
        spec.insert("trafficPolicy".to_owned(), policy(dice));
    }
    if dice.one_in(4) {
        let mut subset = object(json!({"name": "v1"}));
        if dice.one_in(2) {
            subset.insert("trafficPolicy".to_owned(), policy(dice));
        }
        spec.insert("subsets".to_owned(), json!([subset]));
    }
    match dice.below(6) {
        0 => drop(spec.insert(
            "workloadSelector".to_owned(),
            json!({"matchLabels": {"app": "a"}}),
        )),
        1 => drop(spec.insert("exportTo".to_owned(), json!(["."]))),
        _ => {}
    }
    let namespace = dice.pick(&NAMESPACES);
    resource("DestinationRule", namespace, &format!("rule-{at}"), spec)
}

/// Where a VirtualService leads requests.
struct Led {
    host: &'static str,
    port: u16,
    subset: bool,
}

fn virtual_service(dice: &mut Dice) -> (Value, Led) {
    let (host, port, subset) = (dice.pick(&HOSTS), dice.pick(&PORTS), dice.one_in(4));
    let mut destination = object(json!({"host": host, "port": {"number": port}}));
    if subset {
        destination.insert("subset".to_owned(), json!("v1"));
    }
    let hosts = dice.pick(&[json!([host]), json!(["elsewhere.com"])]);
    let spec = json!({"hosts": hosts, "http": [{"route": [{"destination": destination}]}]});
    let service = resource("VirtualService", "default", "led", object(spec));
    (service, Led { host, port, subset })
}

fn parsed(text: &str) -> Option<Resources> {
    let mut parser = Parser::new();
    for document in egress_rules::yaml::read(text, egress_rules::is_ours).unwrap() {
        parser.document(&document.value);
    }
    let (resources, problems) = parser.finish();
    (!problems.has_errors()).then_some(resources)
}

fn originates(tls: Option<&ClientTls>) -> bool {
    tls.is_some_and(|tls| tls.mode != egress_policy::TlsMode::Disable)
}

/// Whether `after` verifies all that `before` does.
fn as_strict(before: &TlsIntent, after: &TlsIntent) -> bool {
    let (had, has) = (&before.names, &after.names);
    let named = had.any_of.is_empty()
        || (!has.any_of.is_empty() && has.any_of.iter().all(|name| had.any_of.contains(name)));
    (before.trust == after.trust && before.identity == after.identity)
        && (before.trust == Trust::InsecureSkipVerify
            || (named && (has.authority || !had.authority)))
}

/// Whether a decision is the same as before, or lets out less.
fn is_safe(before: Action<'_>, after: Action<'_>, downstream: DownstreamProtocol) -> bool {
    let tls = |cluster: &Cluster| cluster.tls.clone();
    match (before, after) {
        (_, Action::Reject(_)) => true,
        (Action::Forward(_), _) => true,
        (_, Action::Forward(_)) => false,
        (Action::Originate(before), Action::Originate(after)) => match (tls(before), tls(after)) {
            (Some(before), Some(after)) => as_strict(&before, &after),
            (before, after) => before == after,
        },
        // What the application encrypts itself.
        (_, Action::Passthrough(_)) => downstream == DownstreamProtocol::Tls,
        // A host that was refused may be served, with TLS.
        (Action::Reject(_), Action::Originate(cluster)) => tls(cluster).is_some(),
        (_, Action::LeaveAlone(_)) => matches!(before, Action::LeaveAlone(_)),
        _ => false,
    }
}

/// Returns what of TLS counts in a rule for a port.
fn counting(rule: &DestinationRule, port: u16, subset: bool) -> Option<ClientTls> {
    let port = PortNumber::new(port).unwrap();
    let of = |policy: &egress_policy::TrafficPolicy| {
        let own = policy.port_level.iter().find(|own| own.port == port);
        own.map_or(&policy.tls, |own| &own.policy.tls)
            .as_deref()
            .cloned()
    };
    let own = rule.subsets.first().filter(|_| subset);
    let own = own.and_then(|subset| subset.policy.as_ref()).and_then(of);
    own.or_else(|| rule.policy.as_deref().and_then(of))
}

fn led(resources: &Resources, to: &Led) -> (BTreeMap<String, Option<ClientTls>>, Vec<u16>) {
    let host = HostPattern::parse(to.host).unwrap();
    let rules = resources.destination_rules.iter();
    let rules = rules.filter(|rule| rule.host.covers(&host));
    let entries = resources.service_entries.iter();
    let entries = entries.filter(|entry| entry.hosts.contains(&host));
    let ports = entries.flat_map(|entry| entry.ports.iter());
    let dialled = ports.filter(|port| port.number.get() == to.port);
    (
        rules
            .map(|rule| (rule.meta.id.to_string(), counting(rule, to.port, to.subset)))
            .collect(),
        dialled.map(|port| port.target.get()).collect(),
    )
}

/// Compares all decisions, and returns the first that is less safe.
fn worse(before: &Resources, after: &Resources) -> Option<String> {
    for namespace in ["default", "other", "third"] {
        for labels in [None, Some(("app".to_owned(), "a".to_owned()))] {
            let options = CompileOptions {
                proxy: Proxy {
                    namespace: namespace.to_owned(),
                    labels: labels.clone().into_iter().collect(),
                    ..Proxy::default()
                },
                loopback_vips: true,
                ..CompileOptions::default()
            };
            let [before, after] = [before, after]
                .map(|resources| PolicyTable::compile_with_errors(resources, &options).table);
            for host in HOSTS {
                for port in PORTS {
                    for downstream in [
                        DownstreamProtocol::Http,
                        DownstreamProtocol::Tls,
                        DownstreamProtocol::Tcp,
                    ] {
                        for subset in [None, Some("v1")] {
                            let query = Query {
                                host,
                                port: PortNumber::new(port).unwrap(),
                                downstream,
                                branch: None,
                                subset,
                            };
                            let [before, after] =
                                [&before, &after].map(|table| table.decide(&query).action);
                            if !is_safe(before, after, downstream) {
                                return Some(format!(
                                    "{host}:{port} {downstream:?} {subset:?} from {namespace} {labels:?}: {} became {}",
                                    before.as_str(),
                                    after.as_str()
                                ));
                            }
                        }
                    }
                }
            }
        }
    }
    None
}

#[test]
fn after_a_fix_everything_is_the_same_or_safer() {
    let mut dice = Dice(1);
    let (mut fixed, mut fixed_beside, mut kept) = (BTreeMap::<&str, usize>::new(), 0, 0);
    for set in 0..SETS {
        let mut documents: Vec<Value> =
            (0..=dice.below(3)).map(|at| entry(&mut dice, at)).collect();
        documents.extend((0..=dice.below(3)).map(|at| rule(&mut dice, at)));
        let way = dice.one_in(2).then(|| virtual_service(&mut dice));
        documents.extend(way.iter().map(|(service, _)| service.clone()));
        let texts = documents.iter().map(|document| match set % 2 {
            0 => serde_saphyr::to_string(document).unwrap(),
            _ => format!("{document}\n"),
        });
        let text = texts.collect::<Vec<_>>().join("---\n");
        let Some(before) = parsed(&text) else {
            continue;
        };
        let source = Source {
            name: "rules.yaml".to_owned(),
            text: text.clone(),
            mesh: false,
        };
        let done = lint::fix(&[source]);
        if done.findings.is_empty() {
            kept += 1;
            continue;
        }
        let new = &done.sources[0].text;
        let after = parsed(new).unwrap();
        for finding in &done.findings {
            *fixed.entry(finding.rule.id).or_default() += 1;
        }
        if let Some((_, to)) = &way {
            fixed_beside += 1;
            let (had, dialled) = led(&before, to);
            let (has, dials) = led(&after, to);
            for (rule, tls) in &had {
                let now = has[rule].as_ref();
                assert_eq!(
                    originates(tls.as_ref()),
                    originates(now),
                    "{rule} is led to {}:{}\n{text}\nbecame\n{new}",
                    to.host,
                    to.port
                );
            }
            assert_eq!(dialled, dials, "{text}\nbecame\n{new}");
        }
        let found = worse(&before, &after);
        assert_eq!(found, None, "{text}\nbecame\n{new}");
    }
    println!(
        "{SETS} sets: mended {fixed:?}, {fixed_beside} beside a VirtualService, {kept} left as they were"
    );
    // What would hold for rules that nothing is done to says nothing.
    for id in [
        "double-tls",
        "duplicate-port-settings",
        "sni-without-san",
        "tls-to-port-80",
    ] {
        assert!(
            fixed.get(id).is_some_and(|count| *count >= 20),
            "{id}: {fixed:?}"
        );
    }
    assert!(fixed_beside >= 50, "{fixed_beside}");
}

/// Where a VirtualService, or anything else, names the host, its ports' `tls` stay where they are.
#[test]
fn what_others_rely_on_is_left_alone() {
    let rules = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: orders}
spec:
  hosts: [orders.example.com]
  ports:
  - {number: 80, name: http, protocol: HTTP}
  - {number: 443, name: https, protocol: HTTPS}
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orders}
spec:
  host: orders.example.com
  trafficPolicy:
    tls: {mode: SIMPLE}
";
    let fixed = |more: &str| {
        let source = |name: &str, text: &str| Source {
            name: name.to_owned(),
            text: text.to_owned(),
            mesh: false,
        };
        let done = lint::fix(&[source("rules.yaml", rules), source("more.yaml", more)]);
        !done.findings.is_empty()
    };
    assert!(fixed(""), "alone it is mended");
    assert!(fixed(
        "kind: VirtualService\nspec: {hosts: [other.example.com]}\n"
    ));
    assert!(fixed("kind: ConfigMap\ndata: {a: orders.example.com}\n"));
    for more in [
        "kind: VirtualService\nspec: {http: [{route: [{destination: {host: Orders.example.com}}]}]}\n",
        "kind: List\nitems:\n- kind: VirtualService\n  spec: {hosts: [orders.example.com]}\n",
        "kind: HTTPRoute\nspec: {rules: [{backendRefs: [{kind: Hostname, name: orders.example.com}]}]}\n",
        "kind: EnvoyFilter\nspec: {match: {cluster: {name: outbound|443||orders.example.com}}}\n",
        "a: [\n",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: orders.example.com, subsets: 1}\n",
    ] {
        assert!(!fixed(more), "{more}");
    }
}
