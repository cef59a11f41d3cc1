//! Plaintext leaves only where somebody asked for it: each form of rules that would let it out, and those that may.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop"
)]

use egress_policy::{
    Action, AllowPlaintext, CompileOptions, Compiled, ConnectTo, DownstreamProtocol, HostName,
    HostPattern, OutboundMode, Parser, PolicyTable, PortNumber, Proxy, Query, Reason, Severity,
};
use serde_json::{Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

const HOST: &str = "api.example.com";

fn document(kind: &str, name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let group = match kind {
        "HTTPRoute" | "TLSRoute" => "gateway.networking.k8s.io",
        _ => "networking.istio.io",
    };
    json!({"apiVersion": format!("{group}/v1"), "kind": kind,
           "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn entry(name: &str, host: &str, ports: Value) -> Value {
    let spec = json!({"hosts": [host], "ports": ports, "resolution": "DNS"});
    document("ServiceEntry", name, spec)
}

fn http(target: u16) -> Value {
    json!([{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": target}])
}

fn rule(name: &str, spec: Value) -> Value {
    document("DestinationRule", name, spec)
}

fn simple(host: &str) -> Value {
    json!({"host": host, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}})
}

fn on_port(host: &str, port: u16, policy: Value) -> Value {
    let mut policy = policy;
    policy["port"] = json!({"number": port});
    json!({"host": host, "trafficPolicy": {"portLevelSettings": [policy]}})
}

fn with(mut spec: Value, field: &str, value: Value) -> Value {
    spec[field] = value;
    spec
}

fn caller(namespace: &str, labels: &[(&str, &str)]) -> CompileOptions {
    let labels = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    CompileOptions {
        proxy: Proxy {
            namespace: namespace.to_owned(),
            labels: labels.collect(),
            ..Proxy::default()
        },
        ..CompileOptions::default()
    }
}

fn compile(documents: &[Value], options: &CompileOptions) -> Compiled {
    let mut parser = Parser::new();
    documents.iter().for_each(|it| parser.document(it));
    let (resources, problems) = parser.finish();
    assert!(!problems.has_errors(), "{problems}");
    PolicyTable::compile_with_errors(&resources, options)
}

fn decide(compiled: &Compiled, host: &str, port: u16, downstream: DownstreamProtocol) -> String {
    let decision = compiled.table.decide(&Query {
        host,
        port: PortNumber::new(port).unwrap(),
        downstream,
        branch: None,
        subset: None,
    });
    let allowed = if decision.plaintext_allowed {
        " allowed"
    } else {
        ""
    };
    match decision.action {
        Action::Reject(reason) => reason.to_string(),
        action => format!("{}{allowed}", action.as_str()),
    }
}

/// Returns the ids of what was found, by severity.
fn ids(compiled: &Compiled, severity: Severity) -> Vec<&'static str> {
    let problems = compiled.problems.0.iter();
    let found = problems.filter(|problem| problem.severity == severity);
    found.filter_map(|problem| problem.id).collect()
}

fn allowing(host: &str) -> CompileOptions {
    CompileOptions {
        allow_plaintext: vec![AllowPlaintext {
            host: HostPattern::parse(host).unwrap(),
            port: None,
            reason: Some("until the end of the year".to_owned()),
            date: None,
        }],
        ..CompileOptions::default()
    }
}

/// Holds that the rules are a mistake of this kind, that the request is refused, and that a flag turns it into a warning.
fn is_mistake(id: &str, documents: &[Value]) {
    is_mistake_of(id, documents, HOST, 80, DownstreamProtocol::Http);
}

fn is_mistake_of(
    id: &str,
    documents: &[Value],
    host: &str,
    port: u16,
    downstream: DownstreamProtocol,
) {
    let compiled = compile(documents, &CompileOptions::default());
    assert_eq!(
        ids(&compiled, Severity::Error),
        [id],
        "{}",
        compiled.problems
    );
    assert_eq!(decide(&compiled, host, port, downstream), "invalid_rule");
    assert!(
        !compiled
            .errors_of(&compiled.table, host, PortNumber::new(port).unwrap())
            .is_empty()
    );
    let allowed = compile(documents, &allowing(host));
    assert_eq!(
        ids(&allowed, Severity::Error),
        [""; 0],
        "{}",
        allowed.problems
    );
    assert_eq!(decide(&allowed, host, port, downstream), "forward allowed");
    assert!(ids(&allowed, Severity::Warning).contains(&"plaintext-allowed"));
    let all = compile(documents, &allowing("*"));
    assert_eq!(decide(&all, host, port, downstream), "forward allowed");
}

#[test]
fn a_host_with_a_slip_is_a_mistake() {
    for (named, meant) in [
        ("editon.cnn.com", "edition.cnn.com"),
        ("edition.cnn.co", "edition.cnn.com"),
        ("cnn.com", "edition.cnn.com"),
        ("www.edition.cnn.com", "edition.cnn.com"),
        ("*.edition.cnn.com", "edition.cnn.com"),
    ] {
        for target in [80, 443] {
            let documents = [entry("a", meant, http(target)), rule("b", simple(named))];
            is_mistake_of(
                "host-never-matches",
                &documents,
                meant,
                80,
                DownstreamProtocol::Http,
            );
        }
    }
    // Names of resources tell as much.
    let documents = [
        entry("api", HOST, http(80)),
        rule("api", simple("old.example.org")),
    ];
    is_mistake("host-never-matches", &documents);
}

#[test]
fn a_rule_for_a_host_that_goes_by_a_wildcard_is_a_mistake() {
    let spec = json!({"hosts": ["*.example.com"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                      "resolution": "DYNAMIC_DNS"});
    let documents = [document("ServiceEntry", "a", spec), rule("r", simple(HOST))];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(ids(&compiled, Severity::Error), ["host-never-matches"]);
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "invalid_rule"
    );
    // With TLS of its own for all of them, nobody is plaintext.
    let mut secure = documents.to_vec();
    secure.push(rule("all", simple("*.example.com")));
    let compiled = compile(&secure, &CompileOptions::default());
    assert_eq!(ids(&compiled, Severity::Error), [""; 0]);
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "originate"
    );
}

#[test]
fn what_goes_by_a_plaintext_wildcard_though_a_rule_asks_for_tls_is_refused() {
    let wild = |port: u16| {
        let ports = json!([{"number": port, "name": "http", "protocol": "HTTP"}]);
        let spec = json!({"hosts": ["*.example.com"], "ports": ports, "resolution": "DYNAMIC_DNS"});
        document("ServiceEntry", "wild", spec)
    };
    // The host has an entry, but not for this port.
    let documents = [
        wild(8080),
        entry("a", HOST, http(443)),
        rule("r", simple(HOST)),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(
        ids(&compiled, Severity::Error),
        [""; 0],
        "{}",
        compiled.problems
    );
    assert_eq!(ids(&compiled, Severity::Warning), ["host-never-matches"]);
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "originate"
    );
    assert_eq!(
        decide(&compiled, HOST, 8080, DownstreamProtocol::Http),
        "left_out"
    );
    assert_eq!(
        decide(&compiled, "b.example.com", 8080, DownstreamProtocol::Http),
        "forward"
    );
    // The rule is for other hosts below it, too.
    let documents = [
        wild(80),
        entry("a", "a.sub.example.com", http(443)),
        rule("r", simple("*.sub.example.com")),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(
        decide(&compiled, "a.sub.example.com", 80, DownstreamProtocol::Http),
        "originate"
    );
    assert_eq!(
        decide(&compiled, "b.sub.example.com", 80, DownstreamProtocol::Http),
        "left_out"
    );
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "forward"
    );
    let allowed = compile(&documents, &allowing("*"));
    assert_eq!(
        decide(&allowed, "b.sub.example.com", 80, DownstreamProtocol::Http),
        "forward"
    );
}

/// Of two hosts below a wildcard that lie in each other, the rule of each refuses its own, whichever comes first.
#[test]
fn the_order_of_rules_below_a_plaintext_wildcard_changes_nothing() {
    let ports = json!([{"number": 8080, "name": "http", "protocol": "HTTP"}]);
    let wildcard = json!({"hosts": ["*.a.example"], "ports": ports, "resolution": "DYNAMIC_DNS"});
    let mut documents = vec![
        document("ServiceEntry", "wild", wildcard),
        rule("one", simple("c.b.a.example")),
        rule("other", simple("*.b.a.example")),
        entry("a", "c.b.a.example", http(443)),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    let query = |host| decide(&compiled, host, 8080, DownstreamProtocol::Http);
    assert_eq!(query("c.b.a.example"), "left_out");
    assert_eq!(query("d.b.a.example"), "left_out");
    assert_eq!(query("d.a.example"), "forward");
    documents.swap(1, 2);
    let swapped = compile(&documents, &CompileOptions::default());
    assert_eq!(compiled.table.digest(), swapped.table.digest());
}

#[test]
fn a_short_name_is_the_namespaces() {
    for host in ["intranet", "intranet.corp.example"] {
        let documents = [entry("a", host, http(80)), rule("r", simple("intranet"))];
        let compiled = compile(&documents, &CompileOptions::default());
        assert_eq!(
            ids(&compiled, Severity::Error),
            ["host-never-matches"],
            "{host}"
        );
        let text = compiled.problems.to_string();
        assert!(
            text.contains("`intranet` is read as `intranet.default.svc.cluster.local`"),
            "{text}"
        );
    }
    // A dot at the end makes it the name itself, in Istio too.
    let documents = [
        entry("a", "intranet", http(80)),
        rule("r", simple("intranet.")),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(
        decide(&compiled, "intranet", 80, DownstreamProtocol::Http),
        "originate"
    );
    // The rules of a mesh's own services are not for ServiceEntries.
    let documents = [entry("a", HOST, http(80)), rule("r", simple("reviews"))];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(compiled.problems.0, []);
    assert_eq!(compiled.table.gate().elsewhere, 1);
}

#[test]
fn a_port_that_no_entry_has_is_a_mistake() {
    let tls = || json!({"tls": {"mode": "SIMPLE"}});
    is_mistake(
        "port-never-matches",
        &[
            entry("a", HOST, http(80)),
            rule("r", on_port(HOST, 8443, tls())),
        ],
    );
    is_mistake(
        "port-never-matches",
        &[
            entry("a", HOST, http(443)),
            rule("r", on_port(HOST, 443, tls())),
        ],
    );
    // With TLS where the application calls, the rest does not matter.
    let mut spec = simple(HOST);
    spec["trafficPolicy"]["portLevelSettings"] =
        json!([{"port": {"number": 9}, "tls": {"mode": "SIMPLE"}}]);
    let compiled = compile(
        &[entry("a", HOST, http(443)), rule("r", spec)],
        &CompileOptions::default(),
    );
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "originate"
    );
    assert_eq!(ids(&compiled, Severity::Error), [""; 0]);
}

#[test]
fn settings_of_a_port_that_drop_tls_are_a_mistake() {
    let pool = json!({"connectionPool": {"tcp": {"maxConnections": 5}}});
    for target in [80, 443] {
        let mut spec = on_port(HOST, 80, pool.clone());
        spec["trafficPolicy"]["tls"] = json!({"mode": "SIMPLE"});
        is_mistake(
            "port-settings-drop-tls",
            &[entry("a", HOST, http(target)), rule("r", spec)],
        );
    }
    // Who writes it down means it.
    let mut spec = on_port(HOST, 80, json!({"tls": {"mode": "DISABLE"}}));
    spec["trafficPolicy"]["tls"] = json!({"mode": "SIMPLE"});
    let compiled = compile(
        &[entry("a", HOST, http(80)), rule("r", spec)],
        &CompileOptions::default(),
    );
    assert_eq!(compiled.problems.0, []);
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "forward"
    );
    assert_eq!(compiled.table.gate().forwarded, 1);
}

#[test]
fn tls_of_a_subset_that_nothing_leads_to_is_a_mistake() {
    let subsets = json!([{"name": "v1", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}]);
    let spec = json!({"host": HOST, "subsets": subsets});
    is_mistake(
        "tls-in-unused-subset",
        &[entry("a", HOST, http(80)), rule("r", spec.clone())],
    );
    is_mistake(
        "tls-in-unused-subset",
        &[entry("a", HOST, http(443)), rule("r", spec.clone())],
    );
    let mut both = spec;
    both["trafficPolicy"] = json!({"tls": {"mode": "SIMPLE"}});
    let compiled = compile(
        &[entry("a", HOST, http(443)), rule("r", both)],
        &CompileOptions::default(),
    );
    assert_eq!(compiled.problems.0, []);
}

#[test]
fn a_rule_that_another_shadows_for_everybody_is_a_mistake() {
    let pool =
        json!({"host": HOST, "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 5}}}});
    // Of one host, the first has a policy, so the second has no say.
    is_mistake(
        "shadowed-rule",
        &[
            entry("a", HOST, http(80)),
            rule("r1", pool.clone()),
            rule("r2", simple(HOST)),
        ],
    );
    // The more exact one counts alone.
    is_mistake(
        "shadowed-rule",
        &[
            entry("a", HOST, http(80)),
            rule("r1", pool),
            rule("r2", simple("*.example.com")),
        ],
    );
}

#[test]
fn plaintext_to_a_tls_port_is_a_mistake() {
    is_mistake("plaintext-to-443", &[entry("a", HOST, http(443))]);
    let beside = json!([
        {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8443},
        {"number": 8443, "name": "https", "protocol": "HTTPS"},
    ]);
    is_mistake("plaintext-to-443", &[entry("a", HOST, beside)]);
    let own = json!([{"number": 443, "name": "http", "protocol": "HTTP"}]);
    is_mistake_of(
        "plaintext-to-443",
        &[entry("a", HOST, own)],
        HOST,
        443,
        DownstreamProtocol::Http,
    );
    let bytes = json!([{"number": 5432, "name": "db", "protocol": "TCP", "targetPort": 443}]);
    is_mistake_of(
        "plaintext-to-443",
        &[entry("a", HOST, bytes)],
        HOST,
        5432,
        DownstreamProtocol::Tcp,
    );
    let endpoints = json!([{"address": "server.example.com", "ports": {"http": 443}}]);
    let spec =
        json!({"hosts": [HOST], "ports": http(80), "resolution": "DNS", "endpoints": endpoints});
    is_mistake("plaintext-to-443", &[document("ServiceEntry", "a", spec)]);
    // Endpoints that are elsewhere are what is dialled.
    let endpoints = json!([{"address": "server.example.com", "ports": {"http": 8080}}]);
    let spec =
        json!({"hosts": [HOST], "ports": http(443), "resolution": "DNS", "endpoints": endpoints});
    let compiled = compile(
        &[document("ServiceEntry", "a", spec)],
        &CompileOptions::default(),
    );
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "forward"
    );
}

#[test]
fn an_entry_that_nobody_sees_is_a_mistake() {
    let spec = json!({"hosts": [HOST], "ports": http(443), "resolution": "DNS", "exportTo": ["~"]});
    let compiled = compile(
        &[document("ServiceEntry", "a", spec), rule("r", simple(HOST))],
        &CompileOptions::default(),
    );
    assert_eq!(ids(&compiled, Severity::Error), ["exported-to-nobody"]);
    // Neither of the two is seen where the other is.
    let spec = json!({"hosts": [HOST], "ports": http(443), "resolution": "DNS", "exportTo": ["a"]});
    let documents = [
        document("ServiceEntry", "shared/a", spec),
        rule("shared/r", with(simple(HOST), "exportTo", json!(["b"]))),
    ];
    let compiled = compile(&documents, &caller("a", &[]));
    assert_eq!(ids(&compiled, Severity::Error), ["shadowed-rule"]);
}

#[test]
fn a_caller_that_the_rule_is_not_for_is_refused() {
    let selected = with(
        simple(HOST),
        "workloadSelector",
        json!({"matchLabels": {"app": "sleep"}}),
    );
    for target in [80, 443] {
        let documents = [entry("a", HOST, http(target)), rule("r", selected.clone())];
        let compiled = compile(&documents, &CompileOptions::default());
        assert_eq!(ids(&compiled, Severity::Error), [""; 0]);
        assert_eq!(ids(&compiled, Severity::Warning), ["tls-for-other-callers"]);
        assert_eq!(
            decide(&compiled, HOST, 80, DownstreamProtocol::Http),
            "left_out"
        );
        let served = compile(&documents, &caller("default", &[("app", "sleep")]));
        assert_eq!(
            decide(&served, HOST, 80, DownstreamProtocol::Http),
            "originate"
        );
        assert_eq!(served.problems.0, []);
        let allowed = compile(&documents, &allowing(HOST));
        assert_eq!(
            decide(&allowed, HOST, 80, DownstreamProtocol::Http),
            "forward allowed"
        );
    }
}

#[test]
fn a_rule_that_is_hidden_from_the_caller_refuses_it() {
    let hidden = |spec: Value, owner: &str| {
        let documents = [entry("egress/a", HOST, http(443)), rule(owner, spec)];
        let compiled = compile(&documents, &caller("shop", &[]));
        assert_eq!(
            ids(&compiled, Severity::Error),
            [""; 0],
            "{}",
            compiled.problems
        );
        assert_eq!(ids(&compiled, Severity::Warning), ["tls-for-other-callers"]);
        assert_eq!(
            decide(&compiled, HOST, 80, DownstreamProtocol::Http),
            "left_out"
        );
        compiled.problems.to_string()
    };
    let text = hidden(with(simple(HOST), "exportTo", json!(["."])), "egress/r");
    assert!(
        text.contains("`exportTo` does not name the caller's namespace `shop`"),
        "{text}"
    );
    let text = hidden(simple(HOST), "third/r");
    assert!(text.contains("it stands in namespace `third`"), "{text}");
}

#[test]
fn other_peoples_rules_are_no_mistake() {
    let documents = [
        entry("a", HOST, http(443)),
        rule("r", simple(HOST)),
        rule("theirs/r", simple(HOST)),
        rule(
            "theirs/s",
            with(
                simple(HOST),
                "workloadSelector",
                json!({"matchLabels": {"a": "b"}}),
            ),
        ),
        rule("theirs/elsewhere", simple("other.example.net")),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(compiled.problems.0, []);
    assert_eq!(compiled.table.gate().elsewhere, 1);
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "originate"
    );
}

/// Holds that a resource refuses the host, by HTTP on port 80, and that a flag decides it as if it were not there.
fn is_not_read(with: &Value) {
    for target in [80, 443] {
        let documents = [
            entry("a", HOST, http(target)),
            rule("r", simple(HOST)),
            with.clone(),
        ];
        let compiled = compile(&documents, &CompileOptions::default());
        assert_eq!(
            ids(&compiled, Severity::Error),
            [""; 0],
            "{}",
            compiled.problems
        );
        assert_eq!(ids(&compiled, Severity::Warning), ["not-read"], "{with}");
        assert_eq!(
            decide(&compiled, HOST, 80, DownstreamProtocol::Http),
            "not_read"
        );
        let refused: Vec<_> = compiled.table.refused().map(|it| it.reason).collect();
        assert_eq!(refused, [Reason::NotRead]);
        let allowed = compile(&documents, &allowing("*"));
        assert_eq!(
            decide(&allowed, HOST, 80, DownstreamProtocol::Http),
            "originate"
        );
    }
}

/// Holds that a resource changes nothing, and that nothing is said of it.
fn is_silent(with: &Value) {
    let documents = [
        entry("a", HOST, http(443)),
        rule("r", simple(HOST)),
        with.clone(),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(compiled.problems.0, [], "{with}");
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "originate",
        "{with}"
    );
}

#[test]
fn other_kinds_that_may_change_the_way_refuse_the_host() {
    let target = |kind: &str, name: &str| json!([{"group": "networking.istio.io", "kind": kind, "name": name}]);
    let backend = |host: &str, port: u16| json!([{"group": "networking.istio.io", "kind": "Hostname", "name": host, "port": port}]);
    let route = |host: &str, port: u16| {
        document(
            "HTTPRoute",
            "h",
            json!({"parentRefs": target("ServiceEntry", "a"), "rules": [{"backendRefs": backend(host, port)}]}),
        )
    };
    is_not_read(&route("b.example.com", 443));
    is_silent(&route(HOST, 80));
    let ingress = json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}]);
    is_silent(&document(
        "HTTPRoute",
        "h",
        json!({"parentRefs": ingress, "rules": [{"backendRefs": backend(HOST, 443)}]}),
    ));

    let patch = |apply_to: &str, found: Value, patch: Value| {
        let patches = json!([{"applyTo": apply_to, "match": found, "patch": patch}]);
        document("EnvoyFilter", "f", json!({"configPatches": patches}))
    };
    let socket = json!({"operation": "MERGE", "value": {"transport_socket": {"name": "raw"}}});
    let cluster = |host: &str| json!({"context": "SIDECAR_OUTBOUND", "cluster": {"service": host}});
    is_not_read(&patch("CLUSTER", cluster(HOST), socket.clone()));
    is_not_read(&patch("CLUSTER", json!({}), socket.clone()));
    is_silent(&patch("CLUSTER", cluster("b.example.com"), socket.clone()));
    is_silent(&patch(
        "CLUSTER",
        json!({"context": "SIDECAR_INBOUND"}),
        socket,
    ));
    let timeout = json!({"operation": "MERGE", "value": {"connect_timeout": "5s"}});
    is_silent(&patch("CLUSTER", cluster(HOST), timeout));
    let led = json!({"operation": "MERGE", "value": {"route": {"cluster": "x"}}});
    is_not_read(&patch(
        "HTTP_ROUTE",
        json!({"context": "SIDECAR_OUTBOUND"}),
        led,
    ));
}

#[test]
fn unknown_hosts_that_a_rule_names_are_not_left_alone() {
    let documents = [
        entry("a", "b.example.org", http(80)),
        rule("r", simple("api.example.net")),
    ];
    let options = CompileOptions {
        outbound: OutboundMode::AllowAny,
        ..CompileOptions::default()
    };
    let compiled = compile(&documents, &options);
    assert_eq!(
        decide(&compiled, "api.example.net", 80, DownstreamProtocol::Http),
        "left_out"
    );
    assert_eq!(
        decide(&compiled, "api.example.net", 443, DownstreamProtocol::Tls),
        "forward"
    );
    assert_eq!(
        decide(&compiled, "nobody.example", 80, DownstreamProtocol::Http),
        "forward"
    );
    let secure = [entry("a", HOST, http(443)), rule("r", simple(HOST))];
    let compiled = compile(&secure, &options);
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "originate"
    );
    assert_eq!(
        decide(&compiled, HOST, 8080, DownstreamProtocol::Http),
        "left_out"
    );
}

#[test]
fn what_is_meant_is_counted_and_passes() {
    let documents = [
        entry("a", HOST, http(80)),
        entry("b", "b.example.org", http(8080)),
        rule("r", json!({"host": HOST})),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(compiled.problems.0, []);
    assert_eq!(compiled.table.gate().forwarded, 2);
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "forward"
    );
    // To a TLS port too, where a rule says so.
    let disabled = json!({"host": HOST, "trafficPolicy": {"tls": {"mode": "DISABLE"}}});
    let compiled = compile(
        &[entry("a", HOST, http(443)), rule("r", disabled)],
        &CompileOptions::default(),
    );
    assert_eq!(compiled.problems.0, []);
    assert_eq!(
        decide(&compiled, HOST, 80, DownstreamProtocol::Http),
        "forward"
    );
}

/// A host of `connect_to` below a wildcard has a place of its own, and is no way around the wildcard's verdict.
#[test]
fn an_address_given_by_hand_changes_no_verdict() {
    let ports = json!([
        {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
        {"number": 443, "name": "tls", "protocol": "TLS"},
    ]);
    let spec = json!({"hosts": ["*.example.com"], "ports": ports, "resolution": "DYNAMIC_DNS"});
    let wildcard = document("ServiceEntry", "wild", spec);
    let elsewhere = with(simple("*.example.com"), "exportTo", json!(["other"]));
    let mut verdicts = Vec::new();
    for (documents, options) in [
        (vec![wildcard.clone()], allowing("*.example.com")),
        (
            vec![wildcard.clone(), rule("hidden", elsewhere)],
            caller("default", &[]),
        ),
        (vec![wildcard], caller("default", &[])),
    ] {
        let port = |number| PortNumber::new(number).unwrap();
        let options = CompileOptions {
            outbound: OutboundMode::AllowAny,
            connect_to: vec![ConnectTo {
                host: HostName::dns("x.example.com").unwrap(),
                port: port(443),
                address: "127.0.0.1".to_owned(),
                address_port: port(8443),
            }],
            ..options
        };
        let compiled = compile(&documents, &options);
        for (number, downstream) in [
            (80, DownstreamProtocol::Http),
            (99, DownstreamProtocol::Http),
            (443, DownstreamProtocol::Tls),
            (443, DownstreamProtocol::Http),
        ] {
            let verdict = decide(&compiled, "x.example.com", number, downstream);
            let other = decide(&compiled, "y.example.com", number, downstream);
            assert_eq!(verdict, other, "{number} {downstream:?}");
            verdicts.push(verdict);
        }
    }
    println!("{verdicts:?}");
    assert_eq!(
        verdicts.first().map(String::as_str),
        Some("forward allowed")
    );
}
