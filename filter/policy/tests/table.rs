//! What the table says about the rules of the task page, and about those people write around it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop"
)]

use egress_policy::{
    Action, Authority, CompileOptions, ConnectTo, Connection, Decision, DownstreamProtocol,
    Endpoints, HostName, LbEndpoint, NameSource, Note, Notes, OutboundMode, Parser, PolicyTable,
    PortNumber, Problem, Proxy, Query, Reason, Role, Sni, Spoken, TlsIntent, Trust,
    UpstreamProtocol,
};
use serde_json::{Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn document(kind: &str, name: &str, spec: Value) -> Value {
    let meta = match name.split_once('/') {
        Some((namespace, name)) => json!({"name": name, "namespace": namespace}),
        None => json!({"name": name}),
    };
    json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": meta, "spec": spec})
}

fn entry(name: &str, spec: Value) -> Value {
    document("ServiceEntry", name, spec)
}

fn rule(name: &str, spec: Value) -> Value {
    document("DestinationRule", name, spec)
}

fn ports() -> Value {
    json!([
        {"number": 80, "name": "http-port", "protocol": "HTTP", "targetPort": 443},
        {"number": 443, "name": "https-port", "protocol": "HTTPS"},
    ])
}

/// The entry of a host that is plaintext, as its author means it.
fn plain_cnn() -> Value {
    let ports = json!([
        {"number": 80, "name": "http-port", "protocol": "HTTP"},
        {"number": 443, "name": "https-port", "protocol": "HTTPS"},
    ]);
    entry(
        "cnn",
        json!({"hosts": ["edition.cnn.com"], "ports": ports, "resolution": "DNS"}),
    )
}

fn cnn() -> Value {
    entry(
        "cnn",
        json!({"hosts": ["edition.cnn.com"], "ports": ports(), "resolution": "DNS"}),
    )
}

fn on_port_80(host: &str, policy: Value) -> Value {
    let mut settings = policy;
    settings["port"] = json!({"number": 80});
    json!({"host": host, "trafficPolicy": {"portLevelSettings": [settings]}})
}

fn simple(host: &str) -> Value {
    on_port_80(host, json!({"tls": {"mode": "SIMPLE"}}))
}

fn compile(
    documents: &[Value],
    options: &CompileOptions,
) -> Result<(PolicyTable, Vec<String>), Vec<String>> {
    let mut parser = Parser::new();
    documents
        .iter()
        .for_each(|document| parser.document(document));
    let (resources, problems) = parser.finish();
    let lines =
        |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    if problems.has_errors() {
        return Err(lines(problems.0));
    }
    match PolicyTable::compile(&resources, options) {
        Ok((table, warnings)) => Ok((
            table,
            lines(problems.0.into_iter().chain(warnings.0).collect()),
        )),
        Err(problems) => Err(lines(problems.0)),
    }
}

fn table(documents: &[Value]) -> PolicyTable {
    let (table, warnings) = compile(documents, &CompileOptions::default()).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    table
}

fn decide<'t>(table: &'t PolicyTable, authority: &str, port: u16) -> Decision<'t, 't> {
    // A decision borrows the host that was asked for; a test may keep it for good.
    let host = Authority::parse(authority)
        .unwrap()
        .host
        .into_owned()
        .leak();
    let port = PortNumber::new(port).unwrap();
    table.decide(&Query {
        host,
        port,
        downstream: DownstreamProtocol::Http,
        branch: None,
        subset: None,
    })
}

fn intent(table: &PolicyTable, host: &str) -> TlsIntent {
    match decide(table, host, 80).action {
        Action::Originate(cluster) => cluster.tls.clone().unwrap(),
        action => panic!("{host} is not originated: {action:?}"),
    }
}

/// A rule that says what its server needs of TLS.
fn legacy(name: &str, words: &str, spec: Value) -> Value {
    let mut rule = rule(name, spec);
    rule["metadata"]["annotations"] = json!({"egressctl/tls-legacy": words});
    rule
}

#[test]
fn what_an_old_server_needs_is_for_its_host_alone() {
    let host = |name: &str| {
        entry(
            name,
            json!({"hosts": [format!("{name}.example.com")], "resolution": "DNS", "ports": [
                {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
                {"number": 8080, "name": "plain", "protocol": "HTTP"},
            ]}),
        )
    };
    let table = table(&[
        host("modern"),
        rule("modern", simple("modern.example.com")),
        host("old"),
        legacy("old", "small-hello, cbc", simple("old.example.com")),
        host("iis"),
        legacy("iis", "renegotiation", simple("iis.example.com")),
    ]);
    let cluster = |host: &str, port: u16| {
        let decision = decide(&table, host, port);
        decision.cluster().unwrap().clone()
    };
    let (modern, old) = (
        cluster("modern.example.com", 80),
        cluster("old.example.com", 80),
    );
    let said: Notes = [Note::Cbc, Note::SmallHello].into_iter().collect();
    assert_eq!(old.tls.as_ref().unwrap().legacy, said);
    assert_eq!(modern.tls.as_ref().unwrap().legacy, Notes::default());
    assert_eq!(
        (&modern.own, modern.upstream),
        (&None, UpstreamProtocol::Auto)
    );
    assert_eq!(old.name.as_str(), "outbound|80||old.example.com");
    assert_eq!(old.upstream, UpstreamProtocol::Auto);
    // What is verified is the same.
    let verified = |host: &str| {
        let tls = intent(&table, host);
        (tls.sni, tls.names, tls.trust)
    };
    assert_eq!(verified("modern.example.com"), verified("old.example.com"));
    // HTTP/2 has no handshakes in between.
    assert_eq!(
        cluster("iis.example.com", 80).upstream,
        UpstreamProtocol::Http1
    );
    // A port without TLS shares as before.
    let plain = ["modern.example.com", "old.example.com"].map(|host| cluster(host, 8080));
    assert_eq!(plain[0], plain[1]);
    assert_eq!(plain[1].own, None);
}

#[test]
fn two_rules_of_a_host_with_other_words_have_other_clusters() {
    let select = |spec: Value, app: &str| {
        let mut spec = spec;
        spec["workloadSelector"] = json!({"matchLabels": {"app": app}});
        spec
    };
    let spec = || simple("edition.cnn.com");
    let documents = [
        cnn(),
        legacy("old", "cbc", select(spec(), "old")),
        legacy("older", "cbc,tls1.0", select(spec(), "older")),
        rule("modern", select(spec(), "modern")),
    ];
    let fingerprints = ["old", "older", "modern"].map(|app| {
        let mut options = CompileOptions::default();
        options.proxy.labels = [("app".to_owned(), app.to_owned())].into();
        let (table, _) = compile(&documents, &options).unwrap();
        let decision = decide(&table, "edition.cnn.com", 80);
        decision.cluster().unwrap().fingerprint()
    });
    let [old, older, modern] = fingerprints;
    assert!(old != older && older != modern && modern != old);
}

#[test]
fn the_entry_alone_forwards() {
    let table = table(&[plain_cnn()]);
    let decision = decide(&table, "edition.cnn.com", 80);
    assert!(matches!(decision.action, Action::Forward(cluster) if cluster.tls.is_none()));
    assert_eq!(decision.rule, None);
}

#[test]
fn the_rule_originates_on_its_port_and_passes_the_other_through() {
    let table = table(&[cnn(), rule("cnn", simple("edition.cnn.com"))]);
    let decision = decide(&table, "edition.cnn.com", 80);
    let Action::Originate(cluster) = decision.action else {
        panic!("{decision:?}")
    };
    let tls = cluster.tls.as_ref().unwrap();
    assert_eq!(
        (&tls.sni, &tls.trust, tls.names.authority),
        (&Sni::Authority, &Trust::System, true)
    );
    let target = decision.target.unwrap();
    assert_eq!((target.host, target.port.get()), ("edition.cnn.com", 443));
    assert_eq!(decision.service_entry.unwrap().qualified(), "default/cnn");
    assert_eq!(decision.rule.unwrap().qualified(), "default/cnn");
    assert_eq!(
        decision.policy_source.unwrap().path().to_string(),
        "spec.trafficPolicy.portLevelSettings[0]"
    );

    let query = Query {
        host: "edition.cnn.com",
        port: PortNumber::HTTPS,
        downstream: DownstreamProtocol::Tls,
        branch: None,
        subset: None,
    };
    let decision = table.decide(&query);
    assert!(matches!(decision.action, Action::Passthrough(cluster) if cluster.tls.is_none()));
}

#[test]
fn every_spelling_of_a_host_is_that_host() {
    let table = table(&[cnn(), rule("cnn", simple("edition.cnn.com"))]);
    let expected = decide(&table, "edition.cnn.com", 80);
    for spelling in [
        "EDITION.CNN.COM",
        "edition.cnn.com:80",
        "edition.cnn.com.",
        "Edition.cnn.com.:8080",
    ] {
        assert_eq!(decide(&table, spelling, 80), expected, "{spelling}");
    }
}

#[test]
fn what_no_entry_names_is_refused_or_left_alone() {
    let documents = [plain_cnn()];
    let closed = table(&documents);
    let open = CompileOptions {
        outbound: OutboundMode::AllowAny,
        ..CompileOptions::default()
    };
    let (open, _) = compile(&documents, &open).unwrap();
    for (host, port, reason) in [
        ("cnn.com", 80, Reason::UnknownHost),
        ("a.edition.cnn.com", 80, Reason::UnknownHost),
        ("[::1]", 80, Reason::UnknownHost),
        ("10.0.0.1", 80, Reason::UnknownHost),
        ("edition.cnn.com", 81, Reason::UnknownPort),
    ] {
        assert_eq!(
            decide(&closed, host, port).action,
            Action::Reject(reason),
            "{host}"
        );
        assert_eq!(
            decide(&open, host, port).action,
            Action::LeaveAlone(reason),
            "{host}"
        );
    }
    // A port that the rules give to TLS is not a way for plaintext, whatever the mode.
    assert_eq!(
        decide(&open, "edition.cnn.com", 443).action,
        Action::Reject(Reason::OtherProtocol)
    );
}

#[test]
fn a_port_level_entry_replaces_the_rule_as_a_whole() {
    let policy = json!({
        "tls": {"mode": "SIMPLE", "sni": "top.example.com"},
        "portLevelSettings": [
            {"port": {"number": 80}, "tls": {"mode": "SIMPLE"}},
            {"port": {"number": 80}, "tls": {"mode": "DISABLE"}},
        ],
    });
    let http = json!([
        {"number": 80, "name": "a", "protocol": "HTTP"},
        {"number": 81, "name": "b", "protocol": "HTTP"},
    ]);
    let table = table(&[
        entry(
            "a",
            json!({"hosts": ["a.com"], "ports": http, "resolution": "DNS"}),
        ),
        rule("a", json!({"host": "a.com", "trafficPolicy": policy})),
    ]);
    assert_eq!(
        intent(&table, "a.com").sni,
        Sni::Authority,
        "the entry does not inherit, and the first one wins"
    );
    let Action::Originate(cluster) = decide(&table, "a.com", 81).action else {
        panic!()
    };
    assert_eq!(
        cluster.tls.as_ref().unwrap().sni,
        Sni::Rule("top.example.com".into())
    );
    assert_eq!(cluster.name.as_str(), "outbound|81||a.com");
}

#[test]
fn names_are_always_verified() {
    let cases: [(Value, Value, bool, &[&str], NameSource); 6] = [
        (json!({}), json!([]), true, &[], NameSource::Host),
        (
            json!({"sni": "s.com"}),
            json!([]),
            false,
            &["s.com"],
            NameSource::Sni,
        ),
        (
            json!({"sni": "s.com"}),
            json!(["e.com"]),
            false,
            &["e.com"],
            NameSource::ServiceEntry,
        ),
        (
            json!({}),
            json!(["e.com"]),
            true,
            &["e.com"],
            NameSource::ServiceEntry,
        ),
        (
            json!({"subjectAltNames": ["r.com"]}),
            json!(["e.com"]),
            false,
            &["r.com"],
            NameSource::DestinationRule,
        ),
        (
            json!({"sni": "s.com", "subjectAltNames": ["r.com"]}),
            json!([]),
            false,
            &["r.com"],
            NameSource::DestinationRule,
        ),
    ];
    for (mut tls, entry_names, authority, any_of, source) in cases {
        tls["mode"] = json!("SIMPLE");
        let http = json!([{"number": 80, "name": "a", "protocol": "HTTP"}]);
        let spec = json!({"hosts": ["a.com"], "ports": http, "resolution": "DNS", "subjectAltNames": entry_names});
        let policy = json!({"host": "a.com", "trafficPolicy": {"tls": tls}});
        let names = intent(&table(&[entry("a", spec), rule("a", policy)]), "a.com").names;
        let any_of: Vec<String> = any_of.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(
            (names.authority, names.any_of, names.source),
            (authority, any_of, source),
            "{tls}"
        );
    }
}

#[test]
fn hosts_share_a_cluster_unless_their_rules_need_one() {
    let hosts: Vec<String> = (0..50).map(|n| format!("h{n}.example.com")).collect();
    let mut documents = vec![entry(
        "all",
        json!({"hosts": hosts, "ports": ports(), "resolution": "DNS"}),
    )];
    documents.push(rule("all", simple("*.example.com")));
    for (name, policy) in [
        (
            "h1",
            json!({"tls": {"mode": "SIMPLE"}, "loadBalancer": {"simple": "ROUND_ROBIN"}}),
        ),
        (
            "h2",
            json!({"tls": {"mode": "SIMPLE", "sni": "x.example.com"}}),
        ),
        (
            "h3",
            json!({"tls": {"mode": "SIMPLE", "subjectAltNames": ["y.example.com"]}}),
        ),
        (
            "h4",
            json!({"tls": {"mode": "SIMPLE"}, "connectionPool": {"tcp": {"maxConnections": 1}}}),
        ),
        (
            "h5",
            json!({"tls": {"mode": "SIMPLE"}, "outlierDetection": {"consecutive5xxErrors": 1}}),
        ),
        (
            "h6",
            json!({"tls": {"mode": "SIMPLE", "caCertificates": "/ca.pem"}}),
        ),
    ] {
        documents.push(rule(
            name,
            on_port_80(&format!("{name}.example.com"), policy),
        ));
    }
    let table = table(&documents);
    let names: Vec<&str> = table
        .clusters()
        .map(|cluster| cluster.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "outbound|80||h1.example.com",
            "outbound|80||h2.example.com",
            "outbound|80||h3.example.com",
            "outbound|80||h4.example.com",
            "outbound|80||h5.example.com",
            "shared|DISABLE||bytes",
            "shared|SIMPLE|file:/ca.pem|auto",
            "shared|SIMPLE|system|auto",
        ]
    );
}

#[test]
fn every_decision_borrows_a_cluster_and_every_cluster_is_reached() {
    let wild = json!({"hosts": ["*.example.com"], "resolution": "DYNAMIC_DNS",
        "ports": [{"number": 80, "name": "h", "protocol": "HTTP"}]});
    let fixed = json!({"hosts": ["f.org"], "resolution": "STATIC",
        "ports": [{"number": 8080, "name": "h", "protocol": "GRPC", "targetPort": 9}],
        "endpoints": [{"address": "192.0.2.1", "ports": {"h": 10}}, {"address": "192.0.2.2", "weight": 3}]});
    let table = table(&[
        cnn(),
        rule("cnn", simple("edition.cnn.com")),
        entry("wild", wild),
        entry("fixed", fixed),
        rule(
            "f",
            json!({"host": "f.org", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
        ),
    ]);
    let mut reached = std::collections::BTreeSet::new();
    for service in table.services() {
        let host = service.host.to_string().replace('*', "any");
        let decision = table.decide(&Query {
            host: &host,
            port: service.port,
            downstream: service.downstream,
            branch: None,
            subset: None,
        });
        let (Action::Originate(cluster) | Action::Forward(cluster) | Action::Passthrough(cluster)) =
            decision.action
        else {
            panic!("{host}: {decision:?}")
        };
        assert_eq!(cluster.name, service.cluster.name);
        reached.insert(cluster.name.clone());
    }
    assert!(
        table
            .clusters()
            .all(|cluster| reached.contains(&cluster.name))
    );

    let Action::Originate(cluster) = decide(&table, "f.org", 8080).action else {
        panic!()
    };
    let port = |number| PortNumber::new(number).unwrap();
    let endpoint = |address: &str, port, weight| LbEndpoint {
        address: address.to_owned(),
        port,
        weight,
        locality: String::new(),
    };
    let endpoints = vec![
        endpoint("192.0.2.1", port(10), 1),
        endpoint("192.0.2.2", port(9), 3),
    ];
    assert_eq!(
        cluster.endpoints,
        Endpoints::Listed {
            endpoints,
            fixed: true,
            one_at_a_time: false
        }
    );
}

#[test]
fn tls_inside_tls_is_refused() {
    let policy = json!({"host": "edition.cnn.com", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}});
    let problems = compile(&[cnn(), rule("cnn", policy)], &CompileOptions::default()).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("error: spec.trafficPolicy.tls: TLS inside TLS"),
        "{problems:?}"
    );
    assert!(
        problems[0].contains("DestinationRule default/cnn"),
        "{problems:?}"
    );
}

#[test]
fn a_rule_selects_workloads_and_namespaces() {
    let with_sni =
        |host: &str, sni: &str| on_port_80(host, json!({"tls": {"mode": "SIMPLE", "sni": sni}}));
    let mut selected = with_sni("edition.cnn.com", "selected.com");
    selected["workloadSelector"] = json!({"matchLabels": {"app": "sleep"}});
    let mut exported = with_sni("*.cnn.com", "exported.com");
    exported["exportTo"] = json!(["shop"]);
    let documents = [
        entry(
            "infra/cnn",
            json!({"hosts": ["edition.cnn.com"], "ports": ports(), "resolution": "DNS"}),
        ),
        rule("shop/selected", selected),
        rule("infra/exported", exported),
        rule("istio-system/root", with_sni("*", "root.com")),
    ];
    let sni = |namespace: &str, labels: &[(&str, &str)]| {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let proxy = Proxy {
            namespace: namespace.to_owned(),
            labels,
            ..Proxy::default()
        };
        let (table, _) = compile(
            &documents,
            &CompileOptions {
                proxy,
                ..CompileOptions::default()
            },
        )
        .unwrap();
        match decide(&table, "edition.cnn.com", 80).action {
            Action::Originate(cluster) => match cluster.tls.clone().unwrap().sni {
                Sni::Rule(name) => name,
                Sni::Authority | Sni::Host(_) => "host".to_owned(),
            },
            action => action.as_str().to_owned(),
        }
    };
    assert_eq!(sni("shop", &[("app", "sleep"), ("v", "1")]), "selected.com");
    // The namespace has a rule for the host, so no other namespace is asked, though it selects someone else.
    // It would be plaintext, so it is refused.
    assert_eq!(sni("shop", &[("app", "other")]), "reject");
    // The rule is not exported to its own namespace, and the root's is for everyone.
    assert_eq!(sni("infra", &[("app", "sleep")]), "root.com");
    assert_eq!(sni("else", &[]), "root.com");
}

#[test]
fn what_is_not_exported_is_not_there() {
    let mut spec = json!({"hosts": ["edition.cnn.com"], "ports": ports(), "resolution": "DNS"});
    spec["exportTo"] = json!(["."]);
    let table = table(&[entry("infra/cnn", spec)]);
    assert_eq!(
        decide(&table, "edition.cnn.com", 80).action,
        Action::Reject(Reason::UnknownHost)
    );
}

#[test]
fn the_oldest_entry_has_the_host() {
    let with_time = |name: &str, time: &str, number: u16| {
        let http = json!([{"number": number, "name": format!("h{number}"), "protocol": "HTTP"}]);
        let mut entry = entry(
            name,
            json!({"hosts": ["a.com"], "ports": http, "resolution": "DNS"}),
        );
        entry["metadata"]["creationTimestamp"] = json!(time);
        entry
    };
    let documents = [
        with_time("x/young", "2024-01-02T00:00:00Z", 80),
        with_time("y/old", "2023-01-02T00:00:00Z", 81),
        with_time("y/later", "2025-01-02T00:00:00Z", 82),
    ];
    let (table, warnings) = compile(&documents, &CompileOptions::default()).unwrap();
    assert_eq!(
        decide(&table, "a.com", 80).action,
        Action::Reject(Reason::UnknownPort)
    );
    assert!(matches!(
        decide(&table, "a.com", 81).action,
        Action::Forward(_)
    ));
    let joined = decide(&table, "a.com", 82).action;
    assert!(
        matches!(joined, Action::Forward(_)),
        "same namespace and resolution: ports are joined"
    );
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0]
            .contains("the host is that of ServiceEntry y/old, whose namespace is asked first"),
        "{warnings:?}"
    );
}

#[test]
fn connect_to_changes_where_and_nothing_else() {
    let eight = PortNumber::new(8443).unwrap();
    let to = ConnectTo {
        host: HostName::dns("edition.cnn.com").unwrap(),
        port: PortNumber::HTTPS,
        address: "127.0.0.1".to_owned(),
        address_port: eight,
    };
    let documents = [cnn(), rule("cnn", simple("edition.cnn.com"))];
    let (pinned, _) = compile(
        &documents,
        &CompileOptions {
            connect_to: vec![to],
            ..CompileOptions::default()
        },
    )
    .unwrap();
    let plain = table(&documents);
    let (with, without) = (
        decide(&pinned, "edition.cnn.com", 80),
        decide(&plain, "edition.cnn.com", 80),
    );
    assert_eq!(
        (with.action, &with.target),
        (without.action, &without.target)
    );
    assert_eq!(with.connect_to, Some(("127.0.0.1", eight)));
    assert_ne!(pinned.digest(), plain.digest());
}

/// The wildcard's cluster refuses private addresses, and must go on doing so for everybody else.
#[test]
fn connect_to_below_a_wildcard_is_for_one_host_and_port_alone() {
    let number = |number| PortNumber::new(number).unwrap();
    let wildcard = entry(
        "wild",
        json!({"hosts": ["*.example.com"], "resolution": "DYNAMIC_DNS", "ports": [
            {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
            {"number": 81, "name": "other", "protocol": "HTTP"},
            {"number": 443, "name": "tls", "protocol": "TLS"},
        ]}),
    );
    let tls = json!({"host": "*.example.com", "trafficPolicy": {
        "portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}],
    }});
    let shared = [wildcard.clone(), rule("wild", tls)];
    let pool = json!({"host": "*.example.com", "trafficPolicy": {
        "connectionPool": {"tcp": {"maxConnections": 9}},
        "portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "SIMPLE"},
            "connectionPool": {"tcp": {"maxConnections": 9}}}],
    }});
    let own = [wildcard, rule("wild", pool)];
    for documents in [shared, own] {
        let to = ConnectTo {
            host: HostName::dns("a.example.com").unwrap(),
            port: number(443),
            address: "127.0.0.1".to_owned(),
            address_port: number(8443),
        };
        let options = CompileOptions {
            connect_to: vec![to],
            ..CompileOptions::default()
        };
        let (table, _) = compile(&documents, &options).unwrap();
        let way = |host: &str, port: u16, downstream: DownstreamProtocol| {
            let decision = table.decide(&Query {
                host,
                port: number(port),
                downstream,
                branch: None,
                subset: None,
            });
            let cluster = match decision.action {
                Action::Originate(cluster)
                | Action::Forward(cluster)
                | Action::Passthrough(cluster) => cluster,
                other => panic!("{other:?}"),
            };
            (cluster, decision.connect_to)
        };
        let pinned = Some(("127.0.0.1", number(8443)));
        for (port, downstream) in [
            (80, DownstreamProtocol::Http),
            (443, DownstreamProtocol::Tls),
        ] {
            let (cluster, to) = way("a.example.com", port, downstream);
            assert_eq!(
                (cluster.public_only, cluster.any_name, to),
                (false, false, pinned),
                "{port}"
            );
            let (guarded, to) = way("b.example.com", port, downstream);
            assert_eq!(
                (guarded.public_only, guarded.any_name, to),
                (true, true, None),
                "{port}"
            );
            assert_eq!(cluster.tls, guarded.tls);
            assert_eq!(cluster.connection_pool, guarded.connection_pool);
        }
        let (guarded, to) = way("a.example.com", 81, DownstreamProtocol::Http);
        assert_eq!((guarded.public_only, to), (true, None));
    }
}

#[test]
fn the_digest_does_not_depend_on_the_order_of_documents() {
    let (a, b) = (cnn(), rule("cnn", simple("edition.cnn.com")));
    let plain = plain_cnn();
    let other = entry(
        "other",
        json!({"hosts": ["b.com"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "resolution": "DNS"}),
    );
    let digest = |documents: &[Value]| table(documents).digest();
    assert_eq!(
        digest(&[a.clone(), b.clone(), other.clone()]),
        digest(&[other, b.clone(), a.clone()])
    );
    assert_ne!(digest(&[a, b]), digest(&[plain]));
}

#[test]
fn what_is_not_honoured_is_told() {
    let ports = json!([
        {"number": 80, "name": "h", "protocol": "http"},
        {"number": 81, "name": "t", "protocol": "TCP"},
        {"number": 82, "name": "u"},
    ]);
    let spec = json!({"hosts": ["a.com"], "resolution": "NONE", "ports": ports});
    let (_, warnings) = compile(&[entry("a", spec)], &CompileOptions::default()).unwrap();
    let starts = [
        "spec.resolution: `resolution: NONE`",
        "spec.ports[2].protocol:",
    ];
    assert_eq!(warnings.len(), starts.len(), "{warnings:?}");
    for (warning, start) in warnings.iter().zip(starts) {
        assert!(
            warning.starts_with(&format!("warning: {start}")),
            "{warning}"
        );
    }
}

#[test]
fn what_would_be_plaintext_in_istio_is_refused_by_name() {
    for (tls, starts) in [
        (
            json!({"mode": "ISTIO_MUTUAL"}),
            "mode `ISTIO_MUTUAL` needs the certificate of an Istio workload",
        ),
        (
            json!({"mode": "SIMPLE", "credentialName": "c"}),
            "`credentialName` needs a `workloadSelector`",
        ),
        (
            json!({"mode": "MUTUAL", "credentialName": "c"}),
            "`credentialName` needs a `workloadSelector`",
        ),
        (
            json!({"mode": "MUTUAL"}),
            "client certificate required for mutual tls",
        ),
    ] {
        let problems = compile(
            &[
                cnn(),
                rule("cnn", on_port_80("edition.cnn.com", json!({"tls": tls}))),
            ],
            &CompileOptions::default(),
        );
        let problems = problems.unwrap_err();
        assert!(problems[0].contains(starts), "{tls}: {problems:?}");
        assert!(
            problems[0].starts_with("error: spec.trafficPolicy.portLevelSettings[0].tls"),
            "{problems:?}"
        );
    }
}

#[test]
fn a_tcp_port_sends_and_verifies_a_name() {
    let tcp = json!([{"number": 6379, "name": "redis", "protocol": "REDIS"}]);
    let spec = |host: &str| json!({"hosts": [host], "ports": tcp, "resolution": "NONE"});
    let policy = |host: &str| json!({"host": host, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}});
    let (table, _) = compile(
        &[entry("r", spec("r.com")), rule("r", policy("r.com"))],
        &CompileOptions::default(),
    )
    .unwrap();
    let query = Query {
        host: "r.com",
        port: PortNumber::new(6379).unwrap(),
        downstream: DownstreamProtocol::Tcp,
        branch: None,
        subset: None,
    };
    let Action::Originate(cluster) = table.decide(&query).action else {
        panic!()
    };
    let tls = cluster.tls.as_ref().unwrap();
    assert_eq!(
        (&tls.sni, &tls.names.any_of[..]),
        (&Sni::Host("r.com".into()), &["r.com".to_owned()][..])
    );

    let problems = compile(
        &[entry("w", spec("*.r.com")), rule("w", policy("*.r.com"))],
        &CompileOptions::default(),
    )
    .unwrap_err();
    assert!(
        problems
            .iter()
            .any(|line| line.contains("`sni` is required")),
        "{problems:?}"
    );
}

#[test]
fn a_subset_says_over_what_the_rule_says() {
    let endpoints = json!([{"address": "192.0.2.1", "labels": {"v": "1"}}, {"address": "192.0.2.2", "labels": {"v": "2"}}]);
    let http = json!([{"number": 80, "name": "h", "protocol": "HTTP", "targetPort": 443}]);
    let spec =
        json!({"hosts": ["a.com"], "ports": http, "resolution": "STATIC", "endpoints": endpoints});
    let rules = json!({"host": "a.com", "trafficPolicy": {"tls": {"mode": "SIMPLE", "sni": "rule.com"}}, "subsets": [
        {"name": "one", "labels": {"v": "1"}},
        {"name": "two", "labels": {"v": "2"}, "trafficPolicy": {"tls": {"mode": "SIMPLE", "sni": "two.com"}}},
        {"name": "none", "labels": {"v": "3"}},
        {"name": "port", "trafficPolicy": {"portLevelSettings": [{"port": {"number": 80}, "loadBalancer": {"simple": "RANDOM"}}]}},
    ]});
    let table = table(&[entry("a", spec), rule("a", rules)]);
    let ask = |subset| {
        table.decide(&Query {
            host: "a.com",
            port: PortNumber::HTTP,
            downstream: DownstreamProtocol::Http,
            branch: None,
            subset: Some(subset),
        })
    };
    let sni = |subset| match ask(subset).action {
        Action::Originate(cluster) => (
            cluster.name.as_str().to_owned(),
            cluster.tls.clone().unwrap().sni,
        ),
        action => panic!("{subset}: {action:?}"),
    };
    assert_eq!(
        sni("one"),
        ("outbound|80|one|a.com".into(), Sni::Rule("rule.com".into()))
    );
    assert_eq!(
        sni("two"),
        ("outbound|80|two|a.com".into(), Sni::Rule("two.com".into()))
    );
    assert_eq!(
        ask("none").action,
        Action::Reject(Reason::UnknownSubset),
        "no endpoint has the label"
    );
    assert_eq!(ask("three").action, Action::Reject(Reason::UnknownSubset));
    // The subset's entry for the port replaces all four blocks, the one it leaves out too.
    assert!(matches!(ask("port").action, Action::Forward(_)));
}

#[test]
fn a_merged_rule_is_never_lost() {
    let with_sni = |sni: &str, more: Value| {
        let mut spec = on_port_80(
            "edition.cnn.com",
            json!({"tls": {"mode": "SIMPLE", "sni": sni}}),
        );
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        spec
    };
    let sni = |documents: &[Value], namespace: &str, labels: &[(&str, &str)]| {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let proxy = Proxy {
            namespace: namespace.to_owned(),
            labels,
            ..Proxy::default()
        };
        let (table, _) = compile(
            documents,
            &CompileOptions {
                proxy,
                ..CompileOptions::default()
            },
        )
        .unwrap();
        intent(&table, "edition.cnn.com").sni
    };
    // istio/istio#58322: Istio drops the second rule, for it is exported as far as the first.
    let documents = [
        cnn(),
        rule(
            "selected",
            with_sni(
                "selected.com",
                json!({"workloadSelector": {"matchLabels": {"app": "sleep"}}}),
            ),
        ),
        rule("plain", with_sni("plain.com", json!({"exportTo": ["."]}))),
    ];
    assert_eq!(
        sni(&documents, "default", &[("app", "sleep")]),
        Sni::Rule("selected.com".into())
    );
    assert_eq!(
        sni(&documents, "default", &[("app", "other")]),
        Sni::Rule("plain.com".into())
    );
    // A later rule that more namespaces see still speaks to those that do not see the first.
    let documents = [
        cnn(),
        rule("first", with_sni("first.com", json!({"exportTo": ["a"]}))),
        rule(
            "second",
            with_sni("second.com", json!({"exportTo": ["a", "b"]})),
        ),
    ];
    assert_eq!(sni(&documents, "a", &[]), Sni::Rule("first.com".into()));
    assert_eq!(sni(&documents, "b", &[]), Sni::Rule("second.com".into()));
}

/// A TCP service with these addresses.
fn tcp(name: &str, port: u16, protocol: &str, addresses: Value) -> Value {
    entry(
        name,
        json!({"hosts": [format!("{name}.example")], "resolution": "STATIC", "addresses": addresses,
               "endpoints": [{"address": "198.51.100.7"}],
               "ports": [{"number": port, "name": "p", "protocol": protocol}]}),
    )
}

/// Returns the service entry that has a connection, or why there is none.
fn led(table: &PolicyTable, port: u16, address: Option<&str>, spoken: Spoken<'_>) -> String {
    let decision = table.decide_connection(&Connection {
        port: PortNumber::new(port).unwrap(),
        address: address.map(|address| address.parse().unwrap()),
        spoken,
        drawn: 0,
    });
    match decision.action {
        Action::Reject(reason) => reason.as_str().to_owned(),
        action => format!(
            "{} {}",
            action.as_str(),
            decision.service_entry.unwrap().name
        ),
    }
}

#[test]
fn connections_are_told_apart_by_port_then_address_then_sni() {
    let simple = |name: &str| {
        let spec = json!({"host": format!("{name}.example"), "trafficPolicy": {"tls": {"mode": "SIMPLE"}}});
        rule(name, spec)
    };
    let documents = [
        tcp("alone", 6379, "REDIS", json!(["192.0.2.9"])),
        simple("alone"),
        tcp("one", 27017, "MONGO", json!(["192.0.2.1", "2001:db8::1"])),
        simple("one"),
        tcp("range", 27017, "TCP", json!(["192.0.2.0/24"])),
        tcp("rest", 27017, "MYSQL", json!([])),
        tcp("tls", 8443, "TLS", json!([])),
        tcp("beside", 8443, "TCP", json!(["192.0.2.7"])),
    ];
    let (table, warnings) = compile(&documents, &CompileOptions::default()).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("port 8443 speaks TLS for `tls.example`: whoever waits"),
        "{warnings:?}"
    );
    let bytes = |port, address| led(&table, port, address, Spoken::Bytes);
    // The only one of a port needs no address, and has what is dialled by its own.
    assert_eq!(bytes(6379, None), "originate alone");
    assert_eq!(bytes(6379, Some("192.0.2.9")), "originate alone");
    assert_eq!(bytes(6379, Some("192.0.2.8")), "unknown_host");
    assert_eq!(bytes(1, None), "unknown_port");
    assert_eq!(bytes(27017, None), "unknown_host");
    assert_eq!(bytes(27017, Some("192.0.2.1")), "originate one");
    assert_eq!(bytes(27017, Some("2001:db8::1")), "originate one");
    assert_eq!(bytes(27017, Some("192.0.2.2")), "forward range");
    assert_eq!(bytes(27017, Some("::ffff:192.0.2.2")), "forward rest");
    assert_eq!(bytes(27017, Some("198.51.100.1")), "forward rest");
    let tls = |port, address, name| {
        let server_name = Spoken::Tls { server_name: name };
        led(&table, port, address, server_name)
    };
    assert_eq!(tls(8443, None, Some("tls.example")), "passthrough tls");
    assert_eq!(tls(8443, None, Some("no.example")), "unknown_host");
    assert_eq!(tls(8443, None, None), "no_host");
    assert_eq!(
        tls(8443, Some("192.0.2.7"), Some("tls.example")),
        "other_protocol"
    );
    let needed = |port| table.needs_address(PortNumber::new(port).unwrap());
    assert_eq!((needed(6379), needed(27017)), (false, true));
}

#[test]
fn nothing_is_led_out_that_names_no_service_not_even_if_any_host_may() {
    let open = CompileOptions {
        outbound: OutboundMode::AllowAny,
        ..CompileOptions::default()
    };
    let (table, _) = compile(&[tcp("tls", 8443, "TLS", json!([]))], &open).unwrap();
    let server_name = Some("no.example");
    assert_eq!(
        led(&table, 8443, None, Spoken::Tls { server_name }),
        "unknown_host"
    );
    assert_eq!(led(&table, 8443, None, Spoken::Bytes), "unknown_port");
}

#[test]
fn services_that_cannot_be_told_apart_are_refused_unless_each_has_a_loopback_address() {
    let hint = "give each entry `addresses` of its own, another port `number` with `targetPort`, or use `--loopback-vips`";
    for (one, other, text) in [
        (
            tcp("a", 6379, "REDIS", json!([])),
            tcp("b", 6379, "TCP", json!([])),
            "error: spec.ports[0]: port 6379 of `b.example` is that of `a.example` (ServiceEntry default/a) too: nothing tells their connections apart",
        ),
        (
            tcp("a", 6379, "REDIS", json!(["192.0.2.1", "192.0.2.0/24"])),
            tcp("b", 6379, "TCP", json!(["192.0.2.9/24"])),
            "error: spec.ports[0]: port 6379 of `b.example` is that of `a.example` (ServiceEntry default/a) too: nothing tells their connections apart",
        ),
        (
            tcp("a", 80, "HTTP", json!([])),
            tcp("b", 80, "TCP", json!([])),
            "error: spec.ports[0]: port 80 speaks HTTP for `a.example`: nothing tells connections of TCP from requests",
        ),
    ] {
        let documents = [one, other];
        let problems = compile(&documents, &CompileOptions::default()).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(text), "{problems:?}");
        assert!(problems[0].contains("default/b"), "{problems:?}");
        assert!(problems[0].ends_with(hint), "{problems:?}");

        let vips = CompileOptions {
            loopback_vips: true,
            ..CompileOptions::default()
        };
        let (table, _) = compile(&documents, &vips).unwrap();
        let mut seen = Vec::new();
        for service in table.services().filter(|service| service.connectable) {
            let vip = service.vip.unwrap();
            assert!(vip.is_loopback() && vip.octets()[1] > 0, "{vip}");
            let dialled = led(
                &table,
                service.port.get(),
                Some(&vip.to_string()),
                Spoken::Bytes,
            );
            assert_eq!(
                dialled,
                format!("forward {}", service.service_entry.unwrap().name)
            );
            assert!(!seen.contains(&vip));
            seen.push(vip);
        }
        assert!(!seen.is_empty());
    }
}

#[test]
fn a_loopback_address_follows_from_the_name_alone() {
    let vips = CompileOptions {
        loopback_vips: true,
        ..CompileOptions::default()
    };
    let vip = |documents: &[Value]| {
        let (table, _) = compile(documents, &vips).unwrap();
        let mut services = table.services();
        services
            .find(|it| it.host.to_string() == "a.example")
            .unwrap()
            .vip
    };
    let one = tcp("a", 6379, "TCP", json!([]));
    let alone = vip(std::slice::from_ref(&one));
    assert!(alone.is_some());
    assert_eq!(vip(&[tcp("b", 6379, "TCP", json!([])), one]), alone);
}

#[test]
fn a_wildcard_host_of_tcp_is_told_and_reached_by_no_connection() {
    let spec = json!({"hosts": ["*.example"], "resolution": "STATIC", "endpoints": [{"address": "192.0.2.1"}],
                      "ports": [{"number": 6379, "name": "p", "protocol": "TCP"}]});
    let (table, warnings) = compile(&[entry("w", spec)], &CompileOptions::default()).unwrap();
    assert!(
        warnings[0].contains("a wildcard host on a port"),
        "{warnings:?}"
    );
    assert_eq!(led(&table, 6379, None, Spoken::Bytes), "unknown_port");
}

/// istiod gives a gateway the Secrets of its namespace whichever rule names them.
#[test]
fn a_gateway_takes_a_credential_without_a_selector() {
    let tls = json!({"tls": {"mode": "MUTUAL", "credentialName": "client"}});
    let documents = [cnn(), rule("cnn", on_port_80("edition.cnn.com", tls))];
    let compiled = |role| {
        let proxy = Proxy {
            role,
            ..Proxy::default()
        };
        compile(
            &documents,
            &CompileOptions {
                proxy,
                // Its listeners are another's, so no Gateway is asked for them.
                foreign: role == Role::Gateway,
                ..CompileOptions::default()
            },
        )
    };
    let problems = compiled(Role::Sidecar).unwrap_err();
    assert!(problems[0].contains("`workloadSelector`"), "{problems:?}");
    let (table, _) = compiled(Role::Gateway).unwrap();
    let decision = decide(&table, "edition.cnn.com", 80);
    assert!(matches!(decision.action, Action::Originate(_)));
    assert_eq!(Role::parse("GATEWAY"), Some(Role::Gateway));
    assert_eq!(Role::parse("gateway"), None);
}
