//! BackendTLSPolicies on ServiceEntries: TLS as Istio makes it, and an error where Istio would send plaintext.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets what it did not expect should stop"
)]

use egress_policy::{
    Action, Cluster, CompileOptions, DownstreamProtocol, Outcome, Parser, PolicyTable, PortNumber,
    Proxy, Query, ResourceId, Resources, Sni, Trust, candidates,
};
use serde_json::{Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

const HOST: &str = "api.example.com";

fn document(kind: &str, name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let group = match kind {
        "BackendTLSPolicy" => "gateway.networking.k8s.io",
        _ => "networking.istio.io",
    };
    json!({"apiVersion": format!("{group}/v1"), "kind": kind,
           "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn entry(name: &str) -> Value {
    let ports = json!([
        {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
        {"number": 8080, "name": "other", "protocol": "HTTP", "targetPort": 8443},
    ]);
    document(
        "ServiceEntry",
        name,
        json!({"hosts": [HOST], "ports": ports, "resolution": "DNS"}),
    )
}

fn target(name: &str, section: &str) -> Value {
    let mut target = json!({"group": "networking.istio.io", "kind": "ServiceEntry", "name": name});
    if !section.is_empty() {
        target["sectionName"] = json!(section);
    }
    target
}

fn validation(hostname: &str) -> Value {
    json!({"hostname": hostname, "wellKnownCACertificates": "System"})
}

fn policy(name: &str, section: &str) -> Value {
    let spec = json!({"targetRefs": [target("api", section)], "validation": validation(HOST)});
    document("BackendTLSPolicy", name, spec)
}

fn rule(name: &str, policy: Value) -> Value {
    let spec = json!({"host": HOST, "trafficPolicy": policy});
    document("DestinationRule", name, spec)
}

fn on_80(settings: Value) -> Value {
    let mut settings = settings;
    settings["port"] = json!({"number": 80});
    json!({"portLevelSettings": [settings]})
}

fn dated(mut document: Value, day: u8) -> Value {
    document["metadata"]["creationTimestamp"] = json!(format!("2026-01-{day:02}T00:00:00Z"));
    document
}

fn read(documents: &[Value]) -> (Resources, Vec<String>) {
    let mut parser = Parser::new();
    documents.iter().for_each(|it| parser.document(it));
    let (resources, problems) = parser.finish();
    (
        resources,
        problems.0.iter().map(ToString::to_string).collect(),
    )
}

/// What is said of documents, as they are read and as they are compiled.
fn said(documents: &[Value]) -> Vec<String> {
    let (resources, mut said) = read(documents);
    let compiled = PolicyTable::compile_with_errors(&resources, &CompileOptions::default());
    said.extend(compiled.problems.0.iter().map(ToString::to_string));
    said
}

/// Compiles documents with which nothing is wrong, and asks for a port.
fn ask<T>(
    documents: &[Value],
    port: u16,
    answer: impl Fn(Action<'_>, Option<&ResourceId>) -> T,
) -> T {
    let (resources, problems) = read(documents);
    assert!(
        !problems.iter().any(|it| it.starts_with("error")),
        "{problems:?}"
    );
    let compiled = PolicyTable::compile_with_errors(&resources, &CompileOptions::default());
    let decision = compiled.table.decide(&query(port));
    answer(decision.action, decision.rule)
}

fn query(port: u16) -> Query<'static> {
    Query {
        host: HOST,
        port: PortNumber::new(port).unwrap(),
        downstream: DownstreamProtocol::Http,
        subset: None,
        branch: None,
    }
}

fn action(documents: &[Value], port: u16) -> String {
    ask(documents, port, |action, _| action.as_str().to_owned())
}

fn cluster<T>(documents: &[Value], answer: impl Fn(&Cluster) -> T) -> T {
    ask(documents, 80, |action, _| match action {
        Action::Originate(cluster) => answer(cluster),
        other => panic!("{other:?}"),
    })
}

#[test]
fn a_policy_for_a_section_is_tls_for_the_port_of_that_name() {
    let documents = [entry("api"), policy("p", "other")];
    assert_eq!(action(&documents, 8080), "originate");
    assert_eq!(
        action(&documents, 80),
        "reject",
        "it dials 443 in plaintext"
    );
    let documents = [entry("api"), policy("p", "")];
    assert_eq!(action(&documents, 8080), "originate");
    assert_eq!(action(&documents, 80), "originate");
    let decided = ask(&documents, 80, |_, rule| rule.unwrap().to_string());
    assert_eq!(decided, "BackendTLSPolicy default/p");
}

#[test]
fn the_hostname_is_sent_and_verified() {
    let mut with = policy("p", "http");
    with["spec"]["validation"]["hostname"] = json!("Server.Example.net");
    let documents = [entry("api"), with.clone()];
    let (sni, names, trust) = cluster(&documents, |cluster| {
        let tls = cluster.tls.clone().unwrap();
        (tls.sni, tls.names, tls.trust)
    });
    assert_eq!(sni, Sni::Rule("server.example.net".to_owned()));
    // Istio verifies no name here.
    assert_eq!(names.any_of, ["server.example.net"]);
    assert_eq!(trust, Trust::System);
    with["spec"]["validation"]["subjectAltNames"] = json!([
        {"type": "Hostname", "hostname": "x.example.net"},
        {"type": "URI", "uri": "spiffe://example.net/x"},
    ]);
    let names = cluster(&[entry("api"), with], |it| it.tls.clone().unwrap().names);
    assert_eq!(names.any_of, ["x.example.net", "spiffe://example.net/x"]);
}

#[test]
fn authorities_come_from_a_config_map_of_the_policys_namespace() {
    let mut with = policy("p", "http");
    let map = |name: &str| json!({"group": "", "kind": "ConfigMap", "name": name});
    with["spec"]["validation"] =
        json!({"hostname": HOST, "caCertificateRefs": [map("ca"), map("more")]});
    let documents = [entry("api"), with.clone()];
    let trust = cluster(&documents, |cluster| cluster.tls.clone().unwrap().trust);
    assert_eq!(
        trust,
        Trust::Credential("configmap://default/ca".to_owned())
    );
    assert_eq!(
        said(&documents),
        [
            "warning: spec.validation.caCertificateRefs[1]: Istio reads the first authority alone (BackendTLSPolicy default/p, document 2); put all certificates into one ConfigMap, under `ca.crt`"
        ]
    );
}

#[test]
fn what_istio_would_skip_is_an_error() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut policy = policy("p", "http");
        change(&mut policy);
        let found = said(&[entry("api"), policy]);
        found[0].clone()
    };
    for (found, begins) in [
        (
            with(&|it| it["spec"]["targetRefs"][0]["sectionName"] = json!("htpp")),
            "error: spec.targetRefs[0].sectionName: no port of ServiceEntry default/api is called `htpp`: Istio would skip the policy and send plaintext (BackendTLSPolicy default/p, document 2); did you mean `http`?",
        ),
        (
            with(&|it| it["spec"]["targetRefs"][0]["name"] = json!("apo")),
            "error: spec.targetRefs[0].name: no ServiceEntry `default/apo` is among the rules: Istio would skip the policy and send plaintext (BackendTLSPolicy default/p, document 2); did you mean `api`?",
        ),
        (
            with(&|it| it["metadata"]["namespace"] = json!("other")),
            "error: spec.targetRefs[0].name: no ServiceEntry `other/api` is among the rules: Istio would skip the policy and send plaintext (BackendTLSPolicy other/p, document 2); it is in namespace `default`: a policy and its target must be in one namespace",
        ),
        (
            with(&|it| it["spec"]["targetRefs"][0]["kind"] = json!("ServiceEntri")),
            "error: spec.targetRefs[0].kind: unknown kind `ServiceEntri`",
        ),
        (
            with(&|it| {
                let secret = json!([{"group": "", "kind": "Secret", "name": "ca"}]);
                it["spec"]["validation"] = json!({"hostname": HOST, "caCertificateRefs": secret});
            }),
            "error: spec.validation.caCertificateRefs[0].kind: authorities are read from a ConfigMap, not from a `Secret`",
        ),
        (
            with(&|it| it["spec"]["validation"]["wellKnownCACertificates"] = json!("Sytem")),
            "error: spec.validation.wellKnownCACertificates: unknown authorities `Sytem`",
        ),
        (
            with(&|it| it["spec"]["validation"] = json!({"hostname": HOST})),
            "error: spec.validation.caCertificateRefs: is required",
        ),
        (
            with(&|it| it["spec"]["validation"]["hostname"] = json!("*.example.com")),
            "error: spec.validation.hostname: ",
        ),
        (
            with(&|it| it["spec"]["validation"]["hostnam"] = json!("x")),
            "error: spec.validation.hostnam: unknown field",
        ),
        (
            with(&|it| it["spec"]["validation"] = json!("System")),
            "error: spec.validation: expected an object",
        ),
        (
            with(&|it| it["spec"] = json!({})),
            "error: spec.targetRefs: is required",
        ),
        (
            with(&|it| it["apiVersion"] = json!("gateway.networking.k8s.io/v1alpha3")),
            "error: apiVersion: unknown version",
        ),
    ] {
        assert!(found.starts_with(begins), "{found}\n{begins}");
    }
}

#[test]
fn a_rule_beside_a_policy_counts_field_by_field() {
    let pool = json!({"connectionPool": {"tcp": {"maxConnections": 5}}});
    // The rule's pool, and the policy's TLS.
    for (section, rule_says) in [("http", on_80(pool.clone())), ("", pool.clone())] {
        for day in [1, 9] {
            let documents = [
                entry("api"),
                dated(policy("p", section), 5),
                dated(rule("r", rule_says.clone()), day),
            ];
            let (tls, connections) = cluster(&documents, |cluster| {
                let pool = cluster.connection_pool.as_ref();
                (
                    cluster.tls.is_some(),
                    pool.and_then(|pool| pool.tcp.max_connections),
                )
            });
            assert!(tls);
            assert_eq!(connections, Some(5));
        }
    }
    // A port of the policy is a port of the rule's from then on, and has none of what the rule says for all.
    let documents = [entry("api"), policy("p", "http"), rule("r", pool)];
    assert!(cluster(&documents, |cluster| cluster
        .connection_pool
        .is_none()));
}

#[test]
fn a_rule_that_says_tls_itself_overrules_the_policy() {
    let documents = [
        entry("api"),
        policy("p", "http"),
        rule("r", on_80(json!({"tls": {"mode": "DISABLE"}}))),
    ];
    assert_eq!(action(&documents, 80), "forward");
    let found = said(&documents);
    assert!(
        found[0].starts_with("warning: spec.validation: DestinationRule default/r says `tls` with mode DISABLE for `api.example.com` on port 80 itself, so this policy does not count there"),
        "{found:?}"
    );
    // For another port it counts.
    let documents = [
        entry("api"),
        policy("p", ""),
        rule(
            "r",
            on_80(json!({"tls": {"mode": "SIMPLE", "sni": "b.example.com"}})),
        ),
    ];
    let rule_of = |port| ask(&documents, port, |_, rule| rule.unwrap().to_string());
    assert_eq!(rule_of(80), "DestinationRule default/r");
    assert_eq!(rule_of(8080), "BackendTLSPolicy default/p");
}

#[test]
fn a_rule_that_is_exported_otherwise_stands_alone() {
    // Istio would send plaintext.
    let mut other = rule(
        "r",
        on_80(json!({"connectionPool": {"tcp": {"maxConnections": 5}}})),
    );
    other["spec"]["exportTo"] = json!(["*"]);
    let found = said(&[entry("api"), policy("p", "http"), other]);
    assert!(
        found.iter().any(|it| it.starts_with("error: spec.validation: no caller gets this `tls`: DestinationRule default/r decides instead")),
        "{found:?}"
    );
    // So it is for those whom a selector names.
    let mut selected = rule(
        "r",
        json!({"connectionPool": {"tcp": {"maxConnections": 5}}}),
    );
    selected["spec"]["workloadSelector"] = json!({"matchLabels": {"app": "x"}});
    let (resources, _) = read(&[entry("api"), policy("p", "http"), selected]);
    let of = |label: &str| {
        let proxy = Proxy {
            namespace: "default".to_owned(),
            labels: [("app".to_owned(), label.to_owned())].into(),
            ..Proxy::default()
        };
        let options = CompileOptions {
            proxy,
            ..CompileOptions::default()
        };
        let compiled = PolicyTable::compile_with_errors(&resources, &options);
        compiled.table.decide(&query(80)).action.as_str().to_owned()
    };
    assert_eq!(of("y"), "originate");
    assert_eq!(of("x"), "reject");
}

#[test]
fn of_policies_for_one_place_the_oldest_counts() {
    let other = |name: &str, day, section| {
        let mut policy = dated(policy(name, section), day);
        policy["spec"]["validation"] = validation("b.example.com");
        policy
    };
    let sni = |documents: &[Value]| {
        cluster(documents, |cluster| {
            let sni = cluster.tls.as_ref().unwrap().sni.clone();
            sni.fixed().unwrap_or_default().to_owned()
        })
    };
    let documents = [
        entry("api"),
        other("a", 2, "http"),
        dated(policy("p", "http"), 1),
    ];
    assert_eq!(sni(&documents), HOST);
    let found = said(&documents);
    assert!(
        found[0].starts_with("warning: spec.targetRefs[0]: BackendTLSPolicy default/p comes first and says the same port's TLS: it counts alone (BackendTLSPolicy default/a, document 2)"),
        "{found:?}"
    );
    let documents = [
        entry("api"),
        other("a", 1, "http"),
        dated(policy("p", "http"), 1),
    ];
    assert_eq!(sni(&documents), "b.example.com");
    // One for a port and one for all are no conflict, and the port's counts.
    let documents = [
        entry("api"),
        other("a", 1, ""),
        dated(policy("p", "http"), 2),
    ];
    assert_eq!(sni(&documents), HOST);
    assert_eq!(action(&documents, 8080), "originate");
    assert_eq!(said(&documents), [""; 0]);
}

#[test]
fn a_policy_may_be_for_a_service_that_an_entry_stands_for() {
    let mut service = entry("api");
    service["spec"]["hosts"] = json!(["my.default.svc.cluster.local"]);
    let mut with = policy("p", "");
    with["spec"]["targetRefs"] = json!([{"group": "", "kind": "Service", "name": "my"}]);
    let (resources, problems) = read(&[service, with.clone()]);
    assert_eq!(problems, [""; 0]);
    assert_eq!(resources.destination_rules.len(), 1);
    // Others are for what comes in.
    let (resources, problems) = read(&[entry("api"), with]);
    assert!(resources.destination_rules.is_empty());
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("warning: kind: `BackendTLSPolicy` is not read"),
        "{problems:?}"
    );
}

#[test]
fn a_policy_that_says_that_it_is_not_to_be_applied_is_not() {
    let mut ignored = policy("p", "http");
    ignored["metadata"]["annotations"] = json!({"istio.io/ignore-policy-attachment": "true"});
    let documents = [entry("api"), ignored];
    assert_eq!(action(&documents, 80), "reject");
    let found = said(&documents);
    assert!(
        found[0].starts_with("warning: metadata.annotations: "),
        "{found:?}"
    );
}

#[test]
fn tls_inside_tls_is_told_of_the_policy() {
    let mut both = entry("api");
    both["spec"]["ports"] = json!([
        {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
        {"number": 443, "name": "https", "protocol": "HTTPS"},
    ]);
    let found = said(&[both, policy("p", "")]);
    assert_eq!(
        found,
        [
            "error: spec.validation: TLS inside TLS: applications already speak TLS on port 443 of `api.example.com` (BackendTLSPolicy default/p, document 2); give the name of the HTTP port in `sectionName`"
        ]
    );
}

#[test]
fn explain_names_the_policy_and_the_rule_beside_it() {
    let pool = json!({"connectionPool": {"tcp": {"maxConnections": 5}}});
    let documents = [entry("api"), policy("p", "http"), rule("r", on_80(pool))];
    let (resources, _) = read(&documents);
    let options = CompileOptions::default();
    let compiled = PolicyTable::compile_with_errors(&resources, &options);
    let found = candidates(&resources, &options, &compiled.table, &query(80));
    let told: Vec<(String, Outcome)> = found
        .iter()
        .map(|it| (it.id.to_string(), it.outcome))
        .collect();
    assert_eq!(
        told,
        [
            ("ServiceEntry default/api".to_owned(), Outcome::Chosen),
            ("BackendTLSPolicy default/p".to_owned(), Outcome::Chosen),
            ("DestinationRule default/r".to_owned(), Outcome::Merged),
        ]
    );
}

#[test]
fn the_order_of_documents_decides_nothing() {
    let documents = [policy("b", ""), policy("a", "http"), entry("api")];
    let mut turned = documents.clone();
    turned.reverse();
    let digest = |documents: &[Value]| {
        let (resources, _) = read(documents);
        let compiled = PolicyTable::compile_with_errors(&resources, &CompileOptions::default());
        compiled.table.digest().to_string()
    };
    assert_eq!(digest(&documents), digest(&turned));
}
