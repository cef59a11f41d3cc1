//! What holds of every table, whatever the resources: decisions and clusters agree, nothing depends on
//! order or spelling, and what asks for TLS gets TLS.
#![cfg(not(target_arch = "wasm32"))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop"
)]

use egress_policy::{
    Action, AllowPlaintext, Authority, CompileOptions, Connection, Decision, DownstreamProtocol,
    Endpoints, HostPattern, OutboundMode, Parser, PolicySource, PolicyTable, PortNumber, Problems,
    Proxy, Query, Spoken, Trust, Tunnel,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

const DOWNSTREAMS: [DownstreamProtocol; 3] = [
    DownstreamProtocol::Http,
    DownstreamProtocol::Tls,
    DownstreamProtocol::Tcp,
];
const NUMBERS: [u16; 4] = [80, 81, 443, 6379];
const NAMESPACES: [&str; 3] = ["default", "one", "istio-system"];
const HOSTS: [&str; 10] = [
    "a.com",
    "b.a.com",
    "c.b.a.com",
    "y-x.a.com",
    "x.org",
    "xn--bcher-kva.org",
    "*.a.com",
    "*.b.a.com",
    "*.com",
    "*-x.a.com",
];

/// Compiles documents, for a caller in namespace `default` with the label `app: sleep`.
fn compile(documents: &[Value], outbound: OutboundMode) -> Result<PolicyTable, Problems> {
    let mut parser = Parser::new();
    documents
        .iter()
        .for_each(|document| parser.document(document));
    let (resources, problems) = parser.finish();
    if problems.has_errors() {
        return Err(problems);
    }
    let proxy = Proxy {
        labels: [("app".to_owned(), "sleep".to_owned())].into(),
        ..Proxy::default()
    };
    let options = CompileOptions {
        proxy,
        outbound,
        // Else most of what is made up would be refused for TCP services that cannot be told apart.
        loopback_vips: true,
        // One half of what is drawn is judged by the gate.
        allow_plaintext: match documents.len() % 2 {
            0 => Vec::new(),
            _ => vec![AllowPlaintext::everywhere()],
        },
        ..CompileOptions::default()
    };
    PolicyTable::compile(&resources, &options).map(|(table, _)| table)
}

fn document(kind: &str, namespace: &str, name: &str, created: u8, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "creationTimestamp": format!("2024-01-01T00:00:0{}Z", created % 10),
        },
        "spec": spec,
    })
}

/// The settings of TLS, some of them chosen to be mistaken for others.
fn tls() -> impl Strategy<Value = Value> {
    // Mostly neither, so that hosts share clusters.
    let sni = proptest::option::weighted(0.2, select(vec!["s.com", "a.com"]));
    let names = select(vec![
        vec![],
        vec![],
        vec![],
        vec!["n.com"],
        vec!["n.com", "m.com"],
    ]);
    let file = select(vec!["/ca", "/ca+/crl", "insecureSkipVerify", "system"]);
    let word = file.clone();
    (0..8_u8, sni, names, file, word).prop_map(|(kind, sni, names, file, word)| {
        let mut block = json!({"mode": "SIMPLE", "subjectAltNames": names});
        if let Some(sni) = sni {
            block["sni"] = json!(sni);
        }
        let more = match kind {
            0 => return json!({"mode": "DISABLE"}),
            1 => json!({"caCertificates": file}),
            2 => json!({"caCertificates": file, "caCrl": "/crl"}),
            3 => json!({"mode": "MUTUAL", "clientCertificate": file, "privateKey": word}),
            4 => json!({"credentialName": word}),
            5 => json!({"mode": "MUTUAL", "credentialName": word}),
            6 => return json!({"mode": "SIMPLE", "insecureSkipVerify": true}),
            _ => json!({}),
        };
        merged(block, more)
    })
}

fn merged(mut into: Value, from: Value) -> Value {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
    into
}

/// A policy; with `Some`, its `tls` blocks are all this one.
fn policy(fixed: Option<Value>) -> impl Strategy<Value = Value> {
    let block = match fixed.clone() {
        Some(tls) => Just(Some(tls)).boxed(),
        None => proptest::option::of(tls()).boxed(),
    };
    // Most say nothing but TLS, so that hosts share clusters.
    let more = select(vec![
        json!({}),
        json!({}),
        json!({}),
        json!({}),
        json!({"loadBalancer": {"simple": "RANDOM"}}),
        json!({"connectionPool": {"tcp": {"maxConnections": 3}}}),
        json!({"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}}),
        json!({"outlierDetection": {}}),
    ]);
    let ports = proptest::collection::vec((select(NUMBERS.to_vec()), block.clone()), 0..3);
    (block, more, ports).prop_map(|(block, more, ports)| {
        let mut policy = more;
        if let Some(block) = block {
            policy["tls"] = block;
        }
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|(number, block)| {
                let mut entry = json!({"port": {"number": number}});
                match block {
                    Some(block) => entry["tls"] = block,
                    None => entry["loadBalancer"] = json!({"simple": "ROUND_ROBIN"}),
                }
                entry
            })
            .collect();
        policy["portLevelSettings"] = json!(ports);
        policy
    })
}

/// The fields of a rule but its policy.
type RuleParts = (
    &'static str,
    &'static str,
    u8,
    Option<Vec<&'static str>>,
    Option<Value>,
);

/// Who sees a rule. A rule that the caller does not see can hide a wider one of its namespace, as in Istio.
fn export_to() -> Vec<Option<Vec<&'static str>>> {
    vec![
        None,
        Some(vec!["*"]),
        Some(vec!["."]),
        Some(vec!["one"]),
        Some(vec![".", "two"]),
    ]
}

fn rule_parts(
    selectors: Vec<Option<Value>>,
    export_to: Vec<Option<Vec<&'static str>>>,
) -> impl Strategy<Value = RuleParts> {
    let hosts: Vec<&str> = HOSTS.into_iter().chain(["*"]).collect();
    let export_to = select(export_to);
    (
        select(NAMESPACES.to_vec()),
        select(hosts),
        0..4_u8,
        export_to,
        select(selectors),
    )
}

fn rule(
    fixed: Option<Value>,
    selectors: Vec<Option<Value>>,
    export_to: Vec<Option<Vec<&'static str>>>,
) -> impl Strategy<Value = Value> {
    let subset = (
        select(vec!["v1", "v2"]),
        proptest::option::of(policy(fixed.clone())),
    );
    let subset = proptest::option::of(subset);
    let own = match &fixed {
        Some(_) => policy(fixed).prop_map(Some).boxed(),
        None => proptest::option::of(policy(fixed)).boxed(),
    };
    (rule_parts(selectors, export_to), own, subset).prop_map(|(parts, policy, subset)| {
        let (namespace, host, created, export_to, selector) = parts;
        let mut spec = json!({"host": host});
        if let Some(policy) = policy {
            spec["trafficPolicy"] = policy;
        }
        if let Some((name, policy)) = subset {
            let mut subset = json!({"name": name, "labels": {"v": name}});
            if let Some(policy) = policy {
                subset["trafficPolicy"] = policy;
            }
            spec["subsets"] = json!([subset]);
        }
        match (selector, export_to) {
            (Some(selector), _) => spec["workloadSelector"] = selector,
            (None, Some(export_to)) => spec["exportTo"] = json!(export_to),
            (None, None) => {}
        }
        document("DestinationRule", namespace, "", created, spec)
    })
}

fn selectors() -> Vec<Option<Value>> {
    vec![
        None,
        None,
        Some(json!({"matchLabels": {"app": "sleep"}})),
        Some(json!({"matchLabels": {"app": "other"}})),
    ]
}

fn entry(protocols: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let ports = subsequence(NUMBERS.to_vec(), 1..=3)
        .prop_flat_map(move |numbers| {
            let protocols = proptest::collection::vec(select(protocols), numbers.len());
            (Just(numbers), protocols)
        })
        .prop_map(|(numbers, protocols)| {
            let port = |(number, protocol): (u16, &str)| {
                json!({"number": number, "name": format!("p{number}"), "protocol": protocol})
            };
            numbers.into_iter().zip(protocols).map(port).collect::<Vec<_>>()
        });
    let resolution = select(vec!["NONE", "DNS", "STATIC", "DYNAMIC_DNS"]);
    let export_to = select(vec![None, None, Some("*"), Some("."), Some("~")]);
    let addresses = select(vec![None, None, Some("198.51.100.7"), Some("2001:db8::7")]);
    let names = subsequence(vec!["e.com"], 0..=1);
    (
        select(NAMESPACES.to_vec()),
        select(HOSTS.to_vec()),
        ports,
        resolution,
        export_to,
        addresses,
        names,
        0..4_u8,
    )
        .prop_map(|(namespace, host, ports, resolution, export_to, address, names, created)| {
            // A resolution that the host does not allow gives way to one that it does.
            let resolution = match (host.starts_with('*'), resolution) {
                (true, "DNS") | (false, "DYNAMIC_DNS") => "NONE",
                (_, resolution) => resolution,
            };
            let mut spec = json!({
                "hosts": [host], "ports": ports, "resolution": resolution, "subjectAltNames": names,
            });
            if resolution == "STATIC" {
                spec["endpoints"] = json!([{"address": "192.0.2.1", "labels": {"v": "v1"}}]);
            }
            if let Some(to) = export_to {
                spec["exportTo"] = json!([to]);
            }
            if let (Some(address), false) = (address, resolution == "DYNAMIC_DNS") {
                spec["addresses"] = json!([address]);
            }
            document("ServiceEntry", namespace, "", created, spec)
        })
}

const PROTOCOLS: [&str; 8] = ["HTTP", "HTTP2", "GRPC", "TCP", "REDIS", "UDP", "", "HTTP"];
/// With these, a rule for all ports is not TLS inside TLS; the others come with `TLS_TOO`.
const TLS_TOO: [&str; 6] = ["HTTP", "HTTPS", "TLS", "TCP", "", "GRPC-Web"];

/// Entries and rules, each with a name of its own.
fn resources(
    entries: impl Strategy<Value = Vec<Value>>,
    rules: impl Strategy<Value = Vec<Value>>,
) -> impl Strategy<Value = Vec<Value>> {
    (entries, rules).prop_map(|(entries, rules)| {
        let mut documents: Vec<Value> = entries.into_iter().chain(rules).collect();
        for (at, document) in documents.iter_mut().enumerate() {
            document["metadata"]["name"] = json!(format!("r{at}"));
        }
        documents
    })
}

fn anything() -> impl Strategy<Value = Vec<Value>> {
    let entries = prop_oneof![
        4 => proptest::collection::vec(entry(&PROTOCOLS), 1..5),
        1 => proptest::collection::vec(entry(&TLS_TOO), 1..5),
    ];
    resources(
        entries,
        proptest::collection::vec(rule(None, selectors(), export_to()), 0..4),
    )
}

/// Entries without HTTP, and rules with tunnels, some of them by subsets.
fn tunnelled() -> impl Strategy<Value = Vec<Value>> {
    let tunnel = || {
        let target = (select(vec!["one.net", "192.0.2.1"]), select(vec![1, 2]));
        proptest::option::of(target).prop_map(|target| {
            target.map(|(host, port)| json!({"targetHost": host, "targetPort": port}))
        })
    };
    let rules = (rule(None, selectors(), export_to()), tunnel(), tunnel());
    let rules = rules.prop_map(|(mut rule, own, of_subset)| {
        for (policy, tunnel) in [("/spec", own), ("/spec/subsets/0", of_subset)] {
            if let (Some(place), Some(tunnel)) = (rule.pointer_mut(policy), tunnel) {
                place["trafficPolicy"]["tunnel"] = tunnel;
            }
        }
        rule
    });
    resources(
        proptest::collection::vec(entry(&["TCP", "TLS", "REDIS", "HTTPS"]), 1..4),
        proptest::collection::vec(rules, 1..4),
    )
}

fn outbound() -> impl Strategy<Value = OutboundMode> {
    select(vec![OutboundMode::RegistryOnly, OutboundMode::AllowAny])
}

/// A host that the pattern has, and no narrower pattern of [`HOSTS`].
fn example(pattern: &HostPattern) -> String {
    match pattern {
        HostPattern::Exact(name) => name.as_str().to_owned(),
        HostPattern::Suffix(suffix) => format!("zq0{suffix}"),
        HostPattern::Any => "zq0".to_owned(),
    }
}

/// All of a decision that another table can have too.
fn told(decision: &Decision<'_, '_>) -> String {
    let cluster = match decision.action {
        Action::Originate(cluster) | Action::Forward(cluster) | Action::Passthrough(cluster) => {
            format!("{cluster:?} {:?}", cluster.tls)
        }
        Action::Reject(reason) | Action::LeaveAlone(reason) => reason.to_string(),
        Action::Weighted | Action::Respond(_) => format!("{:?}", decision.branch),
    };
    let Decision {
        target,
        connect_to,
        service_entry,
        rule,
        policy_source,
        ..
    } = decision;
    let word = decision.action.as_str();
    format!(
        "{word} {cluster} {target:?} {connect_to:?} {service_entry:?} {rule:?} {policy_source:?}"
    )
}

/// Asks for every host of [`HOSTS`] and some others, on every port, in every way.
fn survey(table: &PolicyTable) -> Vec<String> {
    let mut answers = Vec::new();
    let others = ["198.51.100.7", "2001:db8::7", "nobody.net"].map(str::to_owned);
    let hosts = HOSTS
        .iter()
        .map(|host| example(&HostPattern::parse(host).unwrap()));
    for host in hosts.chain(others) {
        for number in NUMBERS {
            for downstream in DOWNSTREAMS {
                for subset in [None, Some("v1"), Some("v2")] {
                    let port = PortNumber::new(number).unwrap();
                    let query = Query {
                        host: &host,
                        port,
                        downstream,
                        branch: None,
                        subset,
                    };
                    let answer = told(&table.decide(&query));
                    answers.push(format!(
                        "{host} {number} {downstream:?} {subset:?}: {answer}"
                    ));
                }
            }
        }
    }
    answers
}

/// Returns the block of a rule that a policy source names.
fn block_at(rule: &Value, source: PolicySource) -> &Value {
    let pointer = source
        .path()
        .to_string()
        .replace(['.', '['], "/")
        .replace(']', "");
    rule.pointer(&format!("/{pointer}")).unwrap_or(&Value::Null)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decisions_and_clusters_agree(documents in anything(), outbound in outbound()) {
        let table = match compile(&documents, outbound) {
            Ok(table) => table,
            Err(problems) => {
                prop_assert!(problems.has_errors());
                return Ok(());
            }
        };
        for service in table.services() {
            let host = example(service.host);
            let query = Query {
                host: &host,
                port: service.port,
                downstream: service.downstream,
                branch: None,
                subset: service.subset,
            };
            let decision = table.decide(&query);
            let (Action::Originate(cluster) | Action::Forward(cluster) | Action::Passthrough(cluster)) = decision.action else {
                panic!("{host}: {decision:?}");
            };
            prop_assert!(std::ptr::eq(cluster, service.cluster));
            prop_assert_eq!(matches!(decision.action, Action::Originate(_)), cluster.tls.is_some());
            prop_assert_eq!(decision.rule, service.rule);
            prop_assert_eq!(decision.service_entry, service.service_entry);
            prop_assert_eq!(decision.target.unwrap().port, service.target);
            // Whoever dials the address of a TCP service is led as one who names its host.
            if let (Some(vip), None) = (service.vip, service.subset) {
                let connection = Connection { port: service.port, address: Some(vip.into()), spoken: Spoken::Bytes, drawn: 0 };
                prop_assert_eq!(told(&table.decide_connection(&connection)), told(&decision));
            }
        }
        let mut names = std::collections::BTreeSet::new();
        for cluster in table.clusters() {
            prop_assert!(names.insert(&cluster.name), "{} twice", cluster.name);
            prop_assert!(
                table.services().any(|service| std::ptr::eq(service.cluster, cluster)),
                "nothing leads to {}", cluster.name
            );
        }
    }

    #[test]
    fn a_connection_goes_into_the_tunnel_of_its_rule_and_no_other_does(documents in tunnelled()) {
        let Ok(table) = compile(&documents, OutboundMode::RegistryOnly) else { return Ok(()) };
        for service in table.services().filter(|service| service.subset.is_none()) {
            let host = example(service.host);
            let query = Query { host: &host, port: service.port, downstream: service.downstream, branch: None, subset: None };
            let decision = table.decide(&query);
            let of_rule = |document: &&Value| {
                let name = document["metadata"]["name"].as_str();
                document["kind"] == "DestinationRule" && name == decision.rule.map(|id| &*id.name)
            };
            // An entry for a port has none.
            let rule = documents.iter().find(of_rule).filter(|_| decision.policy_source == Some(PolicySource::Rule));
            let wanted = rule.and_then(|rule| rule.pointer("/spec/trafficPolicy/tunnel"));
            let wanted = wanted.map(|tunnel| format!("{}:{}", tunnel["targetHost"].as_str().unwrap(), tunnel["targetPort"]));
            prop_assert_eq!(service.cluster.tunnel.as_deref().map(Tunnel::authority), wanted);
            if service.cluster.tunnel.is_some() {
                prop_assert_eq!(&service.cluster.own, &Some((service.host.clone(), service.port)));
                let listed = matches!(service.cluster.endpoints, Endpoints::Listed { .. });
                prop_assert!(listed, "{} has no proxy", service.cluster.name);
            } else if service.downstream == DownstreamProtocol::Tls {
                prop_assert!(service.cluster.tls.is_none(), "TLS inside TLS");
            }
        }
    }

    #[test]
    fn a_cluster_has_the_tls_that_its_rule_asks_for(documents in anything()) {
        each_has_its_tls(&documents)?;
    }

    #[test]
    fn hosts_share_a_cluster_only_where_their_rules_ask_for_the_same(documents in neighbours()) {
        each_has_its_tls(&documents)?;
    }

    #[test]
    fn the_order_of_documents_changes_nothing(
        (documents, shuffled) in anything().prop_flat_map(|documents| (Just(documents.clone()), Just(documents).prop_shuffle())),
        outbound in outbound(),
    ) {
        match (compile(&documents, outbound), compile(&shuffled, outbound)) {
            (Ok(one), Ok(other)) => {
                prop_assert_eq!(one.digest(), other.digest());
                prop_assert_eq!(survey(&one), survey(&other));
            }
            (Err(_), Err(_)) => {}
            (one, other) => panic!("{one:?}\n{other:?}"),
        }
    }

    #[test]
    fn tables_that_decide_differently_have_different_digests(documents in anything(), left_out in any::<prop::sample::Index>()) {
        let mut fewer = documents.clone();
        fewer.remove(left_out.index(documents.len()));
        let (Ok(one), Ok(other)) = (compile(&documents, OutboundMode::AllowAny), compile(&fewer, OutboundMode::AllowAny)) else {
            return Ok(());
        };
        // What is done with a request, and not who said so or why not.
        let bare = |table: &PolicyTable| -> Vec<String> {
            let end = |answer: &String| answer.find(" unknown_").or(answer.find(" Some(ResourceId"));
            survey(table).iter().map(|answer| answer[..end(answer).unwrap_or(answer.len())].to_owned()).collect()
        };
        if one.digest() == other.digest() {
            prop_assert_eq!(bare(&one), bare(&other));
        }
    }

    #[test]
    fn any_host_gets_an_answer(documents in anything(), host in prop_oneof!["\\PC{0,300}", "[a-zA-Z0-9.*:_-]{0,300}", Just(String::new()), Just("a".repeat(100_000))], outbound in outbound()) {
        let Ok(table) = compile(&documents, outbound) else { return Ok(()) };
        for downstream in DOWNSTREAMS {
            for host in [host.as_str(), &format!("{host}.a.com"), &format!("{host}-x.a.com")] {
                let query = Query { host, port: PortNumber::HTTP, downstream, branch: None, subset: None };
                let raw = table.decide(&query);
                prop_assert!(outbound == OutboundMode::AllowAny || !matches!(raw.action, Action::LeaveAlone(_)));
                if let Ok(authority) = Authority::parse(host) {
                    let query = Query { host: &authority.host, ..query };
                    let _ = table.decide(&query);
                }
            }
        }
    }

    #[test]
    fn every_spelling_of_a_host_gets_one_answer(documents in anything(), host in select(HOSTS.to_vec()), upper in any::<u64>(), dot in any::<bool>(), port in proptest::option::of(1..=u16::MAX)) {
        let Ok(table) = compile(&documents, OutboundMode::RegistryOnly) else { return Ok(()) };
        let plain = example(&HostPattern::parse(host).unwrap());
        let mut spelled: String = plain
            .chars()
            .enumerate()
            .map(|(at, c)| if upper >> (at % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c })
            .collect();
        if dot {
            spelled.push('.');
        }
        if let Some(port) = port {
            spelled = format!("{spelled}:{port}");
        }
        let authority = Authority::parse(&spelled).unwrap();
        prop_assert_eq!(&*authority.host, &*plain);
        prop_assert_eq!(authority.port.map(PortNumber::get), port);
        for number in NUMBERS {
            for downstream in DOWNSTREAMS {
                let query = Query { host: &plain, port: PortNumber::new(number).unwrap(), downstream, branch: None, subset: None };
                let other = Query { host: &authority.host, ..query };
                prop_assert_eq!(told(&table.decide(&query)), told(&table.decide(&other)));
            }
        }
    }

    /// Every rule asks for TLS on every port, and one is for all, so whatever rule speaks, it asks for TLS.
    #[test]
    fn what_asks_for_tls_is_never_sent_in_the_clear(documents in all_tls(), outbound in outbound()) {
        let Ok(table) = compile(&documents, outbound) else { return Ok(()) };
        for document in documents.iter().filter(|document| document["kind"] == "ServiceEntry") {
            let spec = &document["spec"];
            let hidden = spec["exportTo"] == json!(["~"])
                || (spec["exportTo"] == json!(["."]) && document["metadata"]["namespace"] != "default");
            if hidden {
                continue;
            }
            let host = example(&HostPattern::parse(spec["hosts"][0].as_str().unwrap()).unwrap());
            for host in asked_as(&host) {
                for port in spec["ports"].as_array().unwrap() {
                    let number = u16::try_from(port["number"].as_u64().unwrap()).unwrap();
                    for downstream in DOWNSTREAMS {
                        let query = Query { host: &host, port: PortNumber::new(number).unwrap(), downstream, branch: None, subset: None };
                        let decision = table.decide(&query);
                        prop_assert!(
                            !matches!(decision.action, Action::Forward(_) | Action::LeaveAlone(_)),
                            "{host}:{number} {downstream:?}: {decision:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Compares each service's cluster with the block that its decision names as the source.
fn each_has_its_tls(documents: &[Value]) -> Result<(), TestCaseError> {
    let Ok(table) = compile(documents, OutboundMode::AllowAny) else {
        return Ok(());
    };
    for service in table.services() {
        let host = example(service.host);
        let query = Query {
            host: &host,
            port: service.port,
            downstream: service.downstream,
            branch: None,
            subset: service.subset,
        };
        let decision = table.decide(&query);
        let tls = service.cluster.tls.as_ref();
        let (Some(rule), Some(source)) = (decision.rule, decision.policy_source) else {
            prop_assert_eq!(tls, None);
            continue;
        };
        let document = documents
            .iter()
            .find(|document| document["metadata"]["name"] == *rule.name);
        let block = &block_at(document.unwrap(), source)["tls"];
        let word = |key: &str| block.get(key).and_then(Value::as_str).map(str::to_owned);
        let mode = word("mode").filter(|mode| mode != "DISABLE");
        // Such a rule is a gateway's: what applications encrypt themselves stays as it is.
        let secret = word("credentialName").filter(|name| !name.starts_with("configmap://"));
        let selected = document.unwrap()["spec"].get("workloadSelector").is_some();
        let left = service.downstream == DownstreamProtocol::Tls && secret.is_some() && !selected;
        let mode = mode.filter(|_| !left);
        prop_assert_eq!(tls.map(|tls| tls.mode.as_str().to_owned()), mode);
        let Some(tls) = tls else {
            continue;
        };
        let skip = block.get("insecureSkipVerify") == Some(&json!(true));
        let trust = match (skip, word("credentialName"), word("caCertificates")) {
            (true, ..) => Trust::InsecureSkipVerify,
            (false, Some(name), _) => Trust::Credential(name),
            (false, None, Some(path)) if path != "system" => Trust::File(path),
            _ => Trust::System,
        };
        prop_assert!(
            tls.trust == trust,
            "{:?}: {} for {}",
            service.cluster.name,
            tls.trust,
            trust
        );
        prop_assert_eq!(&tls.crl, &word("caCrl"));
        let identity = tls.identity.as_ref().map(ToString::to_string);
        let wanted = match (
            tls.mode.as_str(),
            word("credentialName"),
            word("clientCertificate"),
            word("privateKey"),
        ) {
            ("MUTUAL", Some(name), ..) => Some(name),
            ("MUTUAL", None, Some(certificate), Some(key)) => Some(format!("{certificate}~{key}")),
            _ => None,
        };
        prop_assert_eq!(identity, wanted);
        prop_assert!(
            skip || tls.names.authority || !tls.names.any_of.is_empty(),
            "no name is verified"
        );
    }
    Ok(())
}

/// Some hosts, each with a rule of its own that differs from the others in TLS alone.
fn neighbours() -> impl Strategy<Value = Vec<Value>> {
    let one = (select(vec!["HTTP", "TCP"]), tls());
    proptest::collection::vec(one, 2..5).prop_map(|blocks| {
        let both = |(at, (protocol, tls)): (usize, (&str, Value))| {
            let host = format!("h{at}.com");
            let ports = json!([{"number": 80, "name": "p80", "protocol": protocol}]);
            let entry = json!({"hosts": [host], "ports": ports, "resolution": "DNS"});
            let selector = json!({"matchLabels": {"app": "sleep"}});
            let policy =
                json!({"host": host, "trafficPolicy": {"tls": tls}, "workloadSelector": selector});
            [
                document("ServiceEntry", "default", &format!("e{at}"), 0, entry),
                document("DestinationRule", "default", &format!("r{at}"), 0, policy),
            ]
        };
        blocks.into_iter().enumerate().flat_map(both).collect()
    })
}

/// A host, and those of [`HOSTS`] that are the same service's if no other has them.
fn asked_as(host: &str) -> Vec<String> {
    let Some(ending) = host.strip_prefix("zq0") else {
        return vec![host.to_owned()];
    };
    let same = HOSTS
        .iter()
        .filter(|known| known.ends_with(ending) && !known.starts_with('*'));
    std::iter::once(host)
        .chain(same.copied())
        .map(str::to_owned)
        .collect()
}

/// Entries with a host each, rules that all ask for TLS, and one rule for everything.
fn all_tls() -> impl Strategy<Value = Vec<Value>> {
    let block = json!({"mode": "SIMPLE", "sni": "s.com"});
    let for_all = json!({"host": "*", "trafficPolicy": {"tls": block}});
    let entries = proptest::collection::vec(entry(&["HTTP", "HTTP2", "TCP", "HTTP"]), 1..5);
    let entries = entries.prop_map(|entries| {
        let mut hosts = Map::new();
        for entry in entries {
            hosts.insert(
                entry["spec"]["hosts"][0].as_str().unwrap().to_owned(),
                entry,
            );
        }
        hosts
            .into_iter()
            .map(|(_, entry)| entry)
            .collect::<Vec<_>>()
    });
    let rules = proptest::collection::vec(
        rule(Some(block), vec![None], export_to()[..3].to_vec()),
        0..4,
    );
    let rules = rules.prop_map(move |mut rules| {
        rules.push(document(
            "DestinationRule",
            "istio-system",
            "",
            0,
            for_all.clone(),
        ));
        rules
    });
    resources(entries, rules)
}

#[test]
fn enough_of_what_is_drawn_compiles() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let good = (0..200)
        .filter(|_| {
            let documents = anything().new_tree(&mut runner).unwrap().current();
            compile(&documents, OutboundMode::RegistryOnly).is_ok_and(|table| !table.is_empty())
        })
        .count();
    assert!(good >= 60, "only {good} of 200 compile");
}

#[test]
fn an_address_of_a_service_is_part_of_the_digest() {
    let table = |addresses: &[&str]| {
        let ports = json!([{"number": 80, "name": "p80", "protocol": "HTTP"}]);
        let spec = json!({"hosts": ["a.com"], "ports": ports, "resolution": "DNS", "addresses": addresses});
        let document = document("ServiceEntry", "default", "e", 0, spec);
        compile(&[document], OutboundMode::RegistryOnly).unwrap()
    };
    let (with, without) = (table(&["198.51.100.7"]), table(&[]));
    assert_ne!(survey(&with), survey(&without));
    assert_ne!(with.digest(), without.digest());
}

#[test]
fn a_port_without_a_protocol_is_not_left_alone_where_its_rule_asks_for_tls() {
    let ports = json!([{"number": 80, "name": "p80"}]);
    let spec = json!({"hosts": ["a.com"], "ports": ports, "resolution": "DNS"});
    let policy = json!({"host": "a.com", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}});
    let documents = [
        document("ServiceEntry", "default", "e", 0, spec),
        document("DestinationRule", "default", "r", 0, policy),
    ];
    let Ok(table) = compile(&documents, OutboundMode::AllowAny) else {
        return;
    };
    let query = Query {
        host: "a.com",
        port: PortNumber::HTTP,
        downstream: DownstreamProtocol::Http,
        branch: None,
        subset: None,
    };
    let action = table.decide(&query).action;
    assert!(
        !matches!(action, Action::Forward(_) | Action::LeaveAlone(_)),
        "{action:?}"
    );
}
