//! Whose a host is, what entries of one namespace make together, and what `explain` says of those that lost.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop"
)]

use egress_policy::fields::{Cursor, Field, Report};
use egress_policy::node::Node;
use egress_policy::{
    Action, CompileOptions, DownstreamProtocol, Mesh, Origin, Parser, PolicyTable, PortNumber,
    Problem, Proxy, Query, Resources, Role, candidates,
};
use serde_json::{Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// An entry `namespace/name` for `api.example.com`, with more fields of `spec`.
fn entry(id: &str, created: u8, more: Value) -> Value {
    let (namespace, name) = id.split_once('/').unwrap();
    let mut spec = json!({
        "hosts": ["api.example.com"], "resolution": "DNS",
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
    });
    let labels = more["labels"].clone();
    for (key, value) in more.as_object().unwrap() {
        if key != "labels" {
            spec[key] = value.clone();
        }
    }
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {
            "name": name, "namespace": namespace, "labels": labels,
            "creationTimestamp": format!("2025-01-{created:02}T00:00:00Z"),
        },
        "spec": spec,
    })
}

fn fixed(address: &str) -> Value {
    json!({"resolution": "STATIC", "endpoints": [{"address": address}]})
}

fn rule(id: &str, created: u8, more: Value) -> Value {
    let (namespace, name) = id.split_once('/').unwrap();
    let mut spec = json!({"host": "api.example.com"});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {
            "name": name, "namespace": namespace,
            "creationTimestamp": format!("2025-01-{created:02}T00:00:00Z"),
        },
        "spec": spec,
    })
}

fn tls(sni: &str) -> Value {
    json!({"trafficPolicy": {"tls": {"mode": "SIMPLE", "sni": sni}}})
}

/// The rules as one caller sees them.
struct World {
    resources: Resources,
    options: CompileOptions,
    table: PolicyTable,
    warnings: Vec<String>,
}

impl World {
    fn seen_from(namespace: &str, documents: &[Value]) -> World {
        let mut parser = Parser::new();
        documents
            .iter()
            .for_each(|document| parser.document(document));
        let (resources, problems) = parser.finish();
        assert!(!problems.has_errors(), "{problems}");
        let proxy = Proxy {
            namespace: namespace.to_owned(),
            ..Proxy::default()
        };
        let options = CompileOptions {
            proxy,
            ..CompileOptions::default()
        };
        let (table, warnings) = PolicyTable::compile(&resources, &options).unwrap();
        let warnings = warnings.0.iter().map(Problem::to_string).collect();
        World {
            resources,
            options,
            table,
            warnings,
        }
    }

    fn query<'q>(host: &'q str, port: u16) -> Query<'q> {
        Query {
            host,
            port: PortNumber::new(port).unwrap(),
            downstream: DownstreamProtocol::Http,
            branch: None,
            subset: None,
        }
    }

    /// Returns what is dialled, or why nothing is.
    fn dials(&self, port: u16) -> Vec<String> {
        let decision = self.table.decide(&Self::query("api.example.com", port));
        if let Some(reason) = decision.reason() {
            return vec![reason.to_string()];
        }
        match decision.endpoints() {
            Some(endpoints) => endpoints.iter().map(ToString::to_string).collect(),
            None => decision
                .target
                .iter()
                .map(|target| format!("{}:{}", target.host, target.port))
                .collect(),
        }
    }

    /// Returns `namespace/name outcome` of each candidate.
    fn outcomes(&self, port: u16) -> Vec<String> {
        let query = Self::query("api.example.com", port);
        let found = candidates(&self.resources, &self.options, &self.table, &query);
        found
            .iter()
            .map(|found| format!("{} {}", found.id.qualified(), found.outcome.as_str()))
            .collect()
    }
}

#[test]
fn the_callers_own_namespace_has_the_host() {
    let documents = [
        entry("other/api", 1, fixed("192.0.2.66")),
        entry("mine/api", 2, fixed("192.0.2.1")),
    ];
    let mine = World::seen_from("mine", &documents);
    assert_eq!(mine.dials(80), ["192.0.2.1:80"]);
    assert_eq!(
        mine.outcomes(80),
        ["mine/api chosen", "other/api own_namespace"]
    );
    assert!(mine.warnings[0].contains("which is in the caller's own namespace"));
    for namespace in ["other", "third"] {
        let other = World::seen_from(namespace, &documents);
        assert_eq!(other.dials(80), ["192.0.2.66:80"]);
    }
}

/// The rule with `tls` is carried out: another entry has the host.
#[test]
fn an_entry_for_nobody_beside_one_for_all_is_no_mistake() {
    let hidden = entry("svc/two", 2, json!({"exportTo": ["~"]}));
    let rules = [rule("svc/r", 1, tls("x.com"))];
    let all = [entry("svc/one", 1, json!({})), hidden.clone()];
    let world = World::seen_from("app", &[&all[..], &rules].concat());
    assert_eq!(world.outcomes(80)[1], "svc/r chosen");
    let mut parser = Parser::new();
    [&[hidden][..], &rules]
        .concat()
        .iter()
        .for_each(|one| parser.document(one));
    let alone = PolicyTable::compile(&parser.finish().0, &CompileOptions::default());
    assert!(alone.unwrap_err().to_string().contains("nobody sees"));
}

/// A gateway is asked for others: its own namespace does not come first.
#[test]
fn at_a_gateway_the_oldest_entry_has_the_host() {
    let documents = [
        entry("other/api", 1, fixed("192.0.2.66")),
        entry("mine/api", 2, fixed("192.0.2.1")),
    ];
    let World {
        resources,
        mut options,
        warnings,
        ..
    } = World::seen_from("mine", &documents);
    options.proxy.role = Role::Gateway;
    // Its listeners are another's, so no Gateway is asked for them.
    options.foreign = true;
    let (table, _) = PolicyTable::compile(&resources, &options).unwrap();
    let world = World {
        resources,
        options,
        table,
        warnings,
    };
    assert_eq!(world.dials(80), ["192.0.2.66:80"]);
    assert_eq!(
        world.outcomes(80),
        ["other/api chosen", "mine/api other_namespace"]
    );
}

#[test]
fn an_entry_exported_by_name_comes_before_a_public_one() {
    let named = |to: Value| {
        let mut more = fixed("192.0.2.2");
        more["exportTo"] = to;
        entry("b/api", 2, more)
    };
    let public = entry("a/api", 1, fixed("192.0.2.1"));
    for to in [json!(["c"]), json!(["x", "c"])] {
        let documents = [public.clone(), named(to)];
        assert_eq!(
            World::seen_from("c", &documents).dials(80),
            ["192.0.2.2:80"]
        );
        assert_eq!(
            World::seen_from("d", &documents).dials(80),
            ["192.0.2.1:80"]
        );
    }
    let documents = [public, named(json!(["*"]))];
    let world = World::seen_from("c", &documents);
    assert_eq!(world.dials(80), ["192.0.2.1:80"]);
    assert_eq!(
        world.outcomes(80),
        ["a/api chosen", "b/api other_namespace"]
    );
}

#[test]
fn of_one_age_the_namespace_settles_it_and_not_the_name() {
    let documents = [
        entry("b/aa", 1, fixed("192.0.2.2")),
        entry("a/zz", 1, fixed("192.0.2.1")),
    ];
    assert_eq!(
        World::seen_from("c", &documents).dials(80),
        ["192.0.2.1:80"]
    );
}

#[test]
fn nobody_sees_what_is_exported_to_nobody() {
    let mut more = fixed("192.0.2.1");
    more["exportTo"] = json!(["~"]);
    let documents = [entry("a/api", 1, more)];
    let world = World::seen_from("a", &documents);
    assert_eq!(world.dials(80), ["unknown_host"]);
    assert_eq!(world.outcomes(80), ["a/api not_exported"]);
}

#[test]
fn endpoints_of_one_namespace_and_host_are_united() {
    let documents = [
        entry("a/one", 1, fixed("192.0.2.1")),
        entry("a/two", 2, fixed("192.0.2.2")),
        entry("b/three", 3, fixed("192.0.2.3")),
    ];
    let world = World::seen_from("c", &documents);
    assert_eq!(world.dials(80), ["192.0.2.1:80", "192.0.2.2:80"]);
}

/// What disagrees adds no port, and what the caller does not see adds none either; both add their endpoints.
#[test]
fn an_entry_that_lost_still_gives_endpoints() {
    let mut hidden = fixed("192.0.2.2");
    hidden["exportTo"] = json!(["~"]);
    hidden["ports"] = json!([
        {"number": 8080, "name": "http", "protocol": "HTTP"},
        {"number": 81, "name": "more", "protocol": "HTTP"},
    ]);
    let mut labelled = fixed("192.0.2.3");
    labelled["labels"] = json!({"app": "x"});
    labelled["ports"] = hidden["ports"].clone();
    let documents = [
        entry("a/one", 1, fixed("192.0.2.1")),
        entry("a/hidden", 2, hidden),
        entry("a/labelled", 3, labelled),
    ];
    let world = World::seen_from("c", &documents);
    // With STATIC the port's name tells which endpoints are meant.
    assert_eq!(
        world.dials(80),
        ["192.0.2.1:80", "192.0.2.2:8080", "192.0.2.3:8080"]
    );
    assert_eq!(world.dials(81), ["unknown_port"]);
    assert_eq!(
        world.outcomes(80),
        ["a/one chosen", "a/hidden endpoints", "a/labelled endpoints"]
    );
}

#[test]
fn with_dns_the_number_tells_which_endpoints_are_meant() {
    let ports = |number: u16, name: &str, target: u16| json!([{"number": number, "name": name, "protocol": "HTTP", "targetPort": target}]);
    let mut fixed = fixed("192.0.2.2");
    fixed["ports"] = ports(80, "other", 81);
    let documents = [
        entry("a/one", 1, json!({"ports": ports(80, "http", 8080)})),
        entry("a/two", 2, json!({"ports": ports(80, "web", 8443)})),
        entry("a/three", 3, fixed),
    ];
    let world = World::seen_from("c", &documents);
    assert_eq!(
        world.dials(80),
        [
            "api.example.com:8080",
            "api.example.com:8443",
            "192.0.2.2:81"
        ]
    );
    // A STATIC service takes addresses only, and none of a port with another name.
    let documents = [documents[2].clone(), documents[0].clone()];
    let mut older = documents[0].clone();
    older["metadata"]["creationTimestamp"] = json!("2024-01-01T00:00:00Z");
    let world = World::seen_from("c", &[older, documents[1].clone()]);
    assert_eq!(world.dials(80), ["192.0.2.2:81"]);
}

/// Envoy takes one name for a cluster that goes to one address at a time.
#[test]
fn a_service_of_one_name_stays_one_and_one_of_several_does_not() {
    let round = |target: u16| {
        json!({"resolution": "DNS_ROUND_ROBIN",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": target}]})
    };
    let pool = json!({"trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 7}}}});
    let one_at_a_time = |documents: &[Value]| {
        let world = World::seen_from("c", documents);
        let query = World::query("api.example.com", 80);
        let decision = world.table.decide(&query);
        match &decision.cluster().unwrap().endpoints {
            egress_policy::Endpoints::Listed { one_at_a_time, .. } => *one_at_a_time,
            egress_policy::Endpoints::OfTheRequest => panic!("{decision:?}"),
        }
    };
    let rule = rule("a/rule", 1, pool);
    let one = entry("a/one", 1, round(80));
    let other = entry("a/other", 2, round(8080));
    assert!(one_at_a_time(&[one.clone(), other.clone(), rule.clone()]));
    let fixed = entry("a/fixed", 3, fixed("192.0.2.1"));
    assert!(!one_at_a_time(&[one.clone(), fixed, rule]));
    // A second one of this kind adds nothing.
    let world = World::seen_from("c", &[one, other]);
    assert_eq!(world.dials(80), ["api.example.com:80"]);
}

#[test]
fn ports_join_where_the_entries_agree() {
    let more = |more: Value| {
        let mut all = json!({"ports": [{"number": 81, "name": "more", "protocol": "HTTP"}]});
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        all
    };
    let joins = |first: Value, later: Value| {
        let documents = [entry("a/one", 1, first), entry("a/two", 2, more(later))];
        let world = World::seen_from("a", &documents);
        assert_eq!(world.dials(80), ["api.example.com:80"]);
        match &world.dials(81)[..] {
            [dialled] if dialled == "api.example.com:81" => {
                assert_eq!(world.outcomes(80)[1], "a/two merged");
                assert_eq!(world.warnings, [""; 0]);
                true
            }
            [reason] if reason == "unknown_port" => {
                assert!(world.warnings[0].contains("the two entries do not agree"));
                false
            }
            other => panic!("{other:?}"),
        }
    };
    let set = |to: &[&str]| json!({"exportTo": to});
    assert!(joins(json!({}), json!({})));
    assert!(joins(set(&["a", "b"]), set(&["b", "a"])));
    assert!(!joins(set(&["a"]), set(&["a", "b"])));
    assert!(!joins(json!({}), set(&["*"])));
    assert!(!joins(json!({}), json!({"resolution": "DNS_ROUND_ROBIN"})));
    let labels = |value: &str| json!({"labels": {"app": value, "team": "x"}});
    assert!(joins(labels("a"), labels("a")));
    assert!(!joins(labels("a"), labels("b")));
    assert!(!joins(json!({}), labels("a")));
}

/// The caller's own entries: those that are its own alone come first.
#[test]
fn a_private_entry_comes_before_an_older_public_one_of_its_namespace() {
    let mut private = fixed("192.0.2.2");
    private["exportTo"] = json!(["."]);
    private["ports"] = json!([{"number": 81, "name": "http", "protocol": "HTTP"}]);
    let documents = [
        entry("a/public", 1, fixed("192.0.2.1")),
        entry("a/private", 2, private),
    ];
    let own = World::seen_from("a", &documents);
    assert_eq!(own.dials(80), ["unknown_port"]);
    assert_eq!(own.dials(81), ["192.0.2.1:80", "192.0.2.2:81"]);
    let other = World::seen_from("b", &documents);
    assert_eq!(other.dials(80), ["192.0.2.1:80", "192.0.2.2:81"]);
    assert_eq!(other.dials(81), ["unknown_port"]);
}

#[test]
fn the_account_of_an_endpoint_is_one_more_name_that_must_be_there() {
    let with = |alt_names: Value| {
        let endpoints = json!([
            {"address": "192.0.2.1", "serviceAccount": "sa"},
            {"address": "192.0.2.2", "serviceAccount": "sa"},
        ]);
        let more =
            json!({"resolution": "STATIC", "endpoints": endpoints, "subjectAltNames": alt_names});
        entry("a/api", 1, more)
    };
    let simple = json!({"trafficPolicy": {"tls": {"mode": "SIMPLE"}}});
    let own = json!({"trafficPolicy": {"tls": {"mode": "SIMPLE", "subjectAltNames": ["x.com"]}}});
    let names = |entry: Value, policy: &Value| {
        let world = World::seen_from("c", &[entry, rule("a/rule", 1, policy.clone())]);
        let query = World::query("api.example.com", 80);
        let Action::Originate(cluster) = world.table.decide(&query).action else {
            panic!("it is not TLS");
        };
        let names = cluster.tls.as_ref().unwrap().names.clone();
        (names.authority, names.any_of)
    };
    let account = "spiffe://cluster.local/ns/a/sa/sa".to_owned();
    assert_eq!(
        names(with(json!([])), &simple),
        (true, vec![account.clone()])
    );
    let both = vec!["y.com".to_owned(), account];
    assert_eq!(names(with(json!(["y.com"])), &simple), (true, both));
    assert_eq!(
        names(with(json!([])), &own),
        (false, vec!["x.com".to_owned()])
    );
}

/// Three rules of the service's namespace: public, for `b` alone, public again. Istio merges the last one into the
/// first, and lets it stand by itself too, since the second is between them.
#[test]
fn of_rules_that_stand_by_themselves_the_last_counts() {
    let documents = [
        entry("svc/api", 1, json!({})),
        rule("svc/r1", 2, tls("r1.x")),
        rule("svc/r2", 3, json!({"exportTo": ["b"]})),
        rule("svc/r4", 4, tls("r4.x")),
    ];
    let rules = |namespace: &str| World::seen_from(namespace, &documents).outcomes(80);
    assert_eq!(
        rules("third"),
        [
            "svc/api chosen",
            "svc/r4 chosen",
            "svc/r1 shadowed",
            "svc/r2 not_exported"
        ]
    );
    assert_eq!(
        rules("svc"),
        [
            "svc/api chosen",
            "svc/r1 chosen",
            "svc/r4 merged",
            "svc/r2 not_exported"
        ]
    );
}

#[test]
fn a_rule_of_a_third_namespace_is_not_asked() {
    let documents = [
        entry("svc/api", 1, json!({})),
        rule("third/r", 2, tls("r.x")),
        rule("istio-system/root", 3, tls("root.x")),
    ];
    let world = World::seen_from("mine", &documents);
    assert_eq!(
        world.outcomes(80),
        [
            "svc/api chosen",
            "istio-system/root chosen",
            "third/r third_namespace"
        ]
    );
}

#[test]
fn a_more_exact_host_without_the_port_says_so() {
    let wide = json!({"hosts": ["*.example.com"], "resolution": "DYNAMIC_DNS",
        "ports": [{"number": 8080, "name": "http", "protocol": "HTTP"}]});
    let documents = [entry("a/exact", 1, json!({})), entry("a/wide", 2, wide)];
    let world = World::seen_from("a", &documents);
    assert_eq!(
        world.outcomes(8080),
        ["a/wide chosen", "a/exact other_port"]
    );
    assert_eq!(
        world.outcomes(80),
        ["a/exact chosen", "a/wide less_specific"]
    );
}

/// In Istio such a port has a listener and no cluster.
#[test]
fn a_port_of_an_entry_that_lost_is_not_that_of_a_wider_host() {
    let wide = json!({"hosts": ["*.example.com"], "resolution": "DYNAMIC_DNS",
        "ports": [{"number": 8080, "name": "http", "protocol": "HTTP"}]});
    let mut lost = fixed("192.0.2.2");
    lost["ports"] = json!([{"number": 8080, "name": "http", "protocol": "HTTP"}]);
    let documents = [
        entry("a/one", 1, json!({})),
        entry("a/lost", 2, lost),
        entry("a/wide", 3, wide),
    ];
    let world = World::seen_from("a", &documents);
    assert_eq!(world.dials(8080), ["unknown_port"]);
    let world = World::seen_from("a", &[documents[0].clone(), documents[2].clone()]);
    assert_eq!(world.dials(8080), ["api.example.com:8080"]);
}

/// A rule that every caller uses for the entry of namespace `svc`, and where it stands.
fn with_mesh(namespace: &str, mesh: &Mesh, documents: &[Value]) -> World {
    let mut parser = Parser::new();
    documents
        .iter()
        .for_each(|document| parser.document(document));
    let options = CompileOptions {
        proxy: Proxy {
            namespace: namespace.to_owned(),
            ..Proxy::default()
        },
        mesh: mesh.clone(),
        ..CompileOptions::default()
    };
    let resources = parser.finish().0;
    let (table, _) = PolicyTable::compile(&resources, &options).unwrap();
    World {
        resources,
        options,
        table,
        warnings: Vec::new(),
    }
}

fn read_mesh(value: &Value) -> (Mesh, Vec<String>) {
    let report = Report::new(Origin::default());
    let mesh = Mesh::read(Field {
        report: &report,
        cursor: Cursor::Root,
        value: &Node::from(value),
    });
    let problems = report.into_problems();
    let problems = problems.iter().map(Problem::to_string).collect();
    (mesh.unwrap(), problems)
}

fn mesh(value: Value) -> Mesh {
    let (mesh, problems) = read_mesh(&value);
    assert_eq!(problems, [""; 0]);
    mesh
}

#[test]
fn the_mesh_names_the_root_namespace() {
    let documents = [
        entry("shared/api", 1, json!({})),
        rule("mesh-root/all", 1, tls("x.com")),
        rule("istio-system/no", 1, tls("y.com")),
    ];
    let root = mesh(json!({"rootNamespace": "mesh-root"}));
    let world = with_mesh("app", &root, &documents);
    assert_eq!(
        world.outcomes(80),
        [
            "shared/api chosen",
            "mesh-root/all chosen",
            "istio-system/no third_namespace"
        ]
    );
    assert_eq!(
        with_mesh("app", &Mesh::default(), &documents).outcomes(80)[1],
        "istio-system/no chosen"
    );
}

#[test]
fn the_mesh_says_who_sees_what_names_nobody() {
    let documents = [
        entry("shared/api", 1, json!({})),
        rule("shared/r", 1, tls("x.com")),
    ];
    let own = mesh(json!({"defaultDestinationRuleExportTo": ["."]}));
    let outcomes =
        |namespace: &str, mesh: &Mesh| with_mesh(namespace, mesh, &documents).outcomes(80);
    assert_eq!(
        outcomes("app", &own),
        ["shared/api chosen", "shared/r not_exported"]
    );
    assert_eq!(
        outcomes("shared", &own),
        ["shared/api chosen", "shared/r chosen"]
    );
    for to in [json!(["."]), json!(["~"])] {
        let hidden = mesh(json!({"defaultServiceExportTo": to}));
        let world = with_mesh("app", &hidden, &documents);
        assert_eq!(world.dials(80), ["unknown_host"]);
        let seen = with_mesh("shared", &hidden, &documents).dials(80);
        assert_eq!(seen == ["unknown_host"], to == json!(["~"]), "{seen:?}");
        // What says for itself who sees it is not concerned.
        let public = [entry("shared/api", 1, json!({"exportTo": ["*"]}))];
        let world = with_mesh("app", &hidden, &public);
        assert_eq!(world.dials(80), ["api.example.com:80"]);
    }
}

#[test]
fn the_mesh_gives_limits_where_a_rule_gives_none() {
    let five = json!({"tcp": {"maxConnections": 5}});
    let limited = mesh(json!({"defaultTrafficPolicy": {"connectionPool": five}}));
    let connections = |documents: &[Value]| {
        let world = with_mesh("a", &limited, documents);
        let query = World::query("api.example.com", 80);
        let cluster = world.table.decide(&query).cluster().unwrap();
        let pool = cluster.connection_pool.as_deref();
        pool.and_then(|pool| pool.tcp.max_connections)
    };
    let api = entry("a/api", 1, json!({}));
    assert_eq!(connections(std::slice::from_ref(&api)), Some(5));
    assert_eq!(
        connections(&[api.clone(), rule("a/r", 1, tls("x.com"))]),
        Some(5)
    );
    let own = json!({"trafficPolicy": {"connectionPool": {"http": {"maxRetries": 1}}}});
    assert_eq!(connections(&[api, rule("a/r", 1, own)]), None);
}

#[test]
fn the_mesh_names_the_trust_domain_of_accounts() {
    let endpoints = json!([{"address": "192.0.2.1", "serviceAccount": "sa"}]);
    let documents = [
        entry(
            "a/api",
            1,
            json!({"resolution": "STATIC", "endpoints": endpoints}),
        ),
        rule(
            "a/r",
            1,
            json!({"trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
        ),
    ];
    let domain = mesh(json!({"trustDomain": "td.example"}));
    let world = with_mesh("a", &domain, &documents);
    let query = World::query("api.example.com", 80);
    let cluster = world.table.decide(&query).cluster().unwrap();
    let names = &cluster.tls.as_ref().unwrap().names.any_of;
    assert_eq!(names[..], ["spiffe://td.example/ns/a/sa/sa"]);
}

#[test]
fn a_slip_in_the_configuration_of_the_mesh_is_told() {
    for slip in [
        json!({"rootNamespce": "x"}),
        json!({"rootNamespace": 1}),
        json!({"defaultServiceExportTo": "."}),
        json!({"defaultTrafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
    ] {
        let (_, problems) = read_mesh(&slip);
        assert_eq!(problems.len(), 1, "{slip}: {problems:?}");
    }
}

/// Istio settles it by chance, so whoever reads the warnings is told.
#[test]
fn two_that_are_as_old_and_do_not_agree_are_told() {
    let other = json!({"resolution": "DNS_ROUND_ROBIN"});
    let documents = [
        entry("a/one", 1, json!({})),
        entry("a/two", 1, other.clone()),
    ];
    let told = |documents: &[Value]| World::seen_from("a", documents).warnings.remove(0);
    assert!(told(&documents).contains("Istio takes either of them"));
    let documents = [entry("a/one", 1, json!({})), entry("a/two", 2, other)];
    assert!(!told(&documents).contains("Istio takes either of them"));
}
