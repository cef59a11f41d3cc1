//! VirtualServices, Gateways and Sidecars: where the table leads what they speak of.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop"
)]

use egress_policy::{
    Action, CompileOptions, Compiled, Connection, DownstreamProtocol, Parser, PolicyTable,
    PortNumber, Proxy, Query, Role, Severity, Spoken,
};
use serde_json::{Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

const HOST: &str = "api.example.com";
const HOP: &str = "istio-egressgateway.istio-system.svc.cluster.local";

fn document(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn within(namespace: &str, mut document: Value) -> Value {
    document["metadata"]["namespace"] = json!(namespace);
    document
}

/// An entry with HTTP on 80 and TLS on 443.
fn entry(host: &str) -> Value {
    let ports = json!([
        {"number": 80, "name": "http", "protocol": "HTTP"},
        {"number": 443, "name": "https", "protocol": "HTTPS"},
    ]);
    let name = host.replace('.', "-").replace('*', "any");
    document(
        "ServiceEntry",
        &name,
        json!({"hosts": [host], "ports": ports, "resolution": "DNS"}),
    )
}

/// A rule that asks for TLS on 443 alone.
fn rule(host: &str) -> Value {
    let settings = json!([{"port": {"number": 443}, "tls": {"mode": "SIMPLE"}}]);
    let name = host.replace('.', "-").replace('*', "any");
    let policy = json!({"portLevelSettings": settings});
    document(
        "DestinationRule",
        &name,
        json!({"host": host, "trafficPolicy": policy}),
    )
}

fn service(http: Value) -> Value {
    document(
        "VirtualService",
        "v",
        json!({"hosts": [HOST], "http": http}),
    )
}

fn to(host: &str, port: u16) -> Value {
    json!([{"destination": {"host": host, "port": {"number": port}}}])
}

fn compile(documents: &[Value], options: &CompileOptions) -> Compiled {
    let mut parser = Parser::new();
    documents
        .iter()
        .for_each(|document| parser.document(document));
    let (resources, problems) = parser.finish();
    assert!(!problems.has_errors(), "{problems}");
    PolicyTable::compile_with_errors(&resources, options)
}

/// What becomes of a request, in a line: `originate api.example.com:443 by outbound|443||…`, or `reject reason`.
fn said(compiled: &Compiled, url: &str, branch: Option<&str>) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (host, port) = rest.split_once(':').unwrap();
    let decision = compiled.table.decide(&Query {
        host,
        port: PortNumber::new(port.parse().unwrap()).unwrap(),
        downstream: match scheme {
            "http" => DownstreamProtocol::Http,
            "https" => DownstreamProtocol::Tls,
            _ => DownstreamProtocol::Tcp,
        },
        branch,
        subset: None,
    });
    let action = decision.action.as_str();
    if let Action::Reject(reason) | Action::LeaveAlone(reason) = decision.action {
        return format!("{action} {reason}");
    }
    let Some(target) = decision.target else {
        return action.to_owned();
    };
    let dialled = decision
        .connect_to
        .map_or(String::new(), |(host, port)| format!(" by {host}:{port}"));
    format!("{action} {}:{}{dialled}", target.host, target.port)
}

fn errors(compiled: &Compiled) -> Vec<&str> {
    let errors = compiled.problems.errors();
    errors
        .map(|problem| problem.id.unwrap_or_default())
        .collect()
}

fn warnings(compiled: &Compiled) -> Vec<&str> {
    let all = compiled.problems.0.iter();
    let warnings = all.filter(|problem| problem.severity == Severity::Warning);
    warnings
        .map(|problem| problem.id.unwrap_or_default())
        .collect()
}

/// Asks for http://api.example.com, with one VirtualService beside entry and rule.
fn asked(service: Value) -> String {
    let documents = [entry(HOST), rule(HOST), entry("b.example.com"), service];
    let compiled = compile(&documents, &CompileOptions::default());
    said(&compiled, "http://api.example.com:80", None)
}

#[test]
fn one_route_for_all_compiles_away() {
    let port_80 = json!([{"port": 80}]);
    let secure = "originate api.example.com:443";
    assert_eq!(
        asked(service(json!([{"match": port_80, "route": to(HOST, 443)}]))),
        secure
    );
    assert_eq!(
        asked(service(
            json!([{"match": [{"uri": {"prefix": "/"}}], "route": to(HOST, 443)}])
        )),
        secure
    );
    assert_eq!(
        asked(service(
            json!([{"route": [{"destination": {"host": HOST, "port": {"number": 443}}, "weight": 100},
                                      {"destination": {"host": "b.example.com"}, "weight": 0}]}])
        )),
        secure
    );
    // What has no route for the port leaves it alone.
    let plain = "forward api.example.com:80";
    for found in [
        json!({"port": 443}),
        json!({"gateways": ["egress"]}),
        json!({"sourceLabels": {"app": "x"}}),
        json!({"sourceNamespace": "x"}),
    ] {
        assert_eq!(
            asked(service(json!([{"match": [found], "route": to(HOST, 443)}]))),
            plain,
            "{found}"
        );
    }
    // Labels are not looked at beside `gateways`.
    assert_eq!(
        asked(service(
            json!([{"match": [{"gateways": ["mesh"], "sourceLabels": {"app": "x"}}], "route": to(HOST, 443)}])
        )),
        secure
    );
}

#[test]
fn another_host_is_dialled_under_the_name_that_was_called() {
    assert_eq!(
        asked(service(json!([{"route": to("b.example.com", 80)}]))),
        "forward api.example.com:80 by b.example.com:80"
    );
    let rewritten =
        json!([{"route": to("b.example.com", 80), "rewrite": {"authority": "b.example.com"}}]);
    assert_eq!(asked(service(rewritten)), "forward b.example.com:80");
    let header = json!([{"route": to(HOST, 443), "headers": {"request": {"set": {"Host": "c.example.com"}}}}]);
    assert_eq!(
        asked(service(header)),
        "originate c.example.com:443 by api.example.com:443"
    );
}

/// If the filter wrote the host of another host's routes, these would choose for the request as well.
#[test]
fn a_host_whose_routes_envoy_chooses_among_is_written_by_a_route() {
    let renamed = |to_host: &str| {
        let mut route = json!({"route": to(HOST, 80)});
        route["rewrite"] = json!({"authority": to_host});
        route
    };
    let branching = |host: &str, http: Value| {
        document(
            "VirtualService",
            "other",
            json!({"hosts": [host], "http": http}),
        )
    };
    let branches = |other: Value| {
        let documents = [
            entry(HOST),
            entry("b.example.com"),
            service(json!([renamed("b.example.com")])),
            other,
        ];
        let compiled = compile(&documents, &CompileOptions::default());
        assert_eq!(errors(&compiled), [""; 0], "{}", compiled.problems);
        let all = compiled.table.branching();
        let hosts = all.map(|branching| branching.host.to_string());
        hosts.collect::<Vec<_>>()
    };
    let answers = json!([{"directResponse": {"status": 403}}]);
    assert_eq!(
        branches(branching("b.example.com", answers.clone())),
        [HOST, "b.example.com"]
    );
    assert_eq!(
        branches(branching("*.example.com", answers)),
        [HOST, "b.example.com"]
    );
    assert_eq!(
        branches(branching("c.example.com", json!([{"route": to(HOST, 80)}]))),
        [""; 0]
    );
}

#[test]
fn a_destination_that_nothing_describes_refuses_its_host_alone() {
    for missing in [
        to("nowhere.example.com", 80),
        to(HOST, 8443),
        json!([{"destination": {"host": HOST, "subset": "v1"}}]),
    ] {
        let documents = [
            entry(HOST),
            entry("b.example.com"),
            service(json!([{"route": missing}])),
        ];
        let compiled = compile(&documents, &CompileOptions::default());
        assert_eq!(errors(&compiled), [""; 0], "{}", compiled.problems);
        let said_of = said(&compiled, "http://api.example.com:80", None);
        assert!(
            ["reject unknown_destination", "reject unknown_subset"].contains(&&*said_of),
            "{said_of}"
        );
        assert_eq!(
            said(&compiled, "http://b.example.com:80", None),
            "forward b.example.com:80"
        );
    }
}

#[test]
fn what_envoy_must_choose_is_a_branch() {
    let routes = json!([
        {"match": [{"uri": {"prefix": "/v1"}}, {"port": 8080}], "route": to(HOST, 443)},
        {"match": [{"uri": {"prefix": "/gone"}}], "directResponse": {"status": 410}},
        {"match": [{"uri": {"prefix": "/moved"}}], "redirect": {"authority": "b.example.com"}},
        {"match": [{"uri": {"prefix": "/half"}}], "route": [
            {"destination": {"host": HOST, "port": {"number": 443}}, "weight": 1},
            {"destination": {"host": "b.example.com"}, "weight": 3}]},
    ]);
    let documents = [
        entry(HOST),
        rule(HOST),
        entry("b.example.com"),
        service(routes),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(errors(&compiled), [""; 0]);
    let all: Vec<_> = compiled.table.branching().collect();
    assert_eq!(all.len(), 1);
    let branches = &all[0].branches;
    assert_eq!(branches.len(), 4);
    assert_eq!((branches[0].matches, branches[0].route), (&[0][..], 0));
    assert_eq!(branches[3].shares.len(), 2);
    let url = "http://api.example.com:80";
    assert_eq!(
        said(&compiled, url, Some(branches[0].name)),
        "originate api.example.com:443"
    );
    assert_eq!(said(&compiled, url, Some(branches[1].name)), "respond");
    assert_eq!(said(&compiled, url, Some(branches[2].name)), "redirect");
    assert_eq!(said(&compiled, url, Some(branches[3].name)), "weighted");
    assert_eq!(said(&compiled, url, None), "reject no_route");
    assert_eq!(said(&compiled, url, Some("another")), "reject no_route");
    // Settings of a route are Envoy's too.
    let timeout = [
        entry(HOST),
        rule(HOST),
        service(json!([{"route": to(HOST, 443), "timeout": "5s"}])),
    ];
    assert!(
        compile(&timeout, &CompileOptions::default())
            .table
            .has_branches(None)
    );
}

#[test]
fn plaintext_of_a_branch_passes_the_gate_like_any_other() {
    let routes = json!([{"match": [{"uri": {"prefix": "/v1"}}], "route": to(HOST, 443)}]);
    let compiled = compile(&[entry(HOST), service(routes)], &CompileOptions::default());
    assert_eq!(
        errors(&compiled),
        ["plaintext-to-443"],
        "{}",
        compiled.problems
    );
    let static_route = json!([{"route": to(HOST, 443)}]);
    let compiled = compile(
        &[entry(HOST), service(static_route)],
        &CompileOptions::default(),
    );
    assert_eq!(
        errors(&compiled),
        ["plaintext-to-443"],
        "{}",
        compiled.problems
    );
}

#[test]
fn a_port_that_is_led_to_and_dialled_is_refused_to_those_who_dial_it() {
    let documents = [
        entry(HOST),
        rule(HOST),
        service(json!([{"match": [{"port": 80}], "route": to(HOST, 443)}])),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(errors(&compiled), [""; 0]);
    assert_eq!(
        said(&compiled, "http://api.example.com:80", None),
        "originate api.example.com:443"
    );
    assert_eq!(
        said(&compiled, "https://api.example.com:443", None),
        "reject tls_in_tls"
    );
    assert!(
        compile(&documents[..2], &CompileOptions::default())
            .problems
            .has_errors()
    );
}

#[test]
fn names_of_tls_connections_lead_them() {
    let tls = |sni: &str, host: &str| json!([{"match": [{"port": 443, "sniHosts": [sni]}], "route": to(host, 443)}]);
    let service =
        |tls: Value| document("VirtualService", "v", json!({"hosts": [HOST], "tls": tls}));
    let ask = |tls: Value, url: &str| {
        let documents = [entry(HOST), entry("b.example.com"), service(tls)];
        let compiled = compile(&documents, &CompileOptions::default());
        assert_eq!(compiled.problems.0, []);
        said(&compiled, url, None)
    };
    let url = "https://api.example.com:443";
    assert_eq!(ask(tls(HOST, HOST), url), "passthrough api.example.com:443");
    assert_eq!(
        ask(tls(HOST, "b.example.com"), url),
        "passthrough api.example.com:443 by b.example.com:443"
    );
    assert_eq!(
        ask(tls(HOST, HOST), "https://b.example.com:443"),
        "passthrough b.example.com:443"
    );
}

/// A service of bytes.
fn bytes(host: &str, port: u16, more: Value) -> Value {
    let mut spec = json!({"hosts": [host], "resolution": "DNS",
        "ports": [{"number": port, "name": "tcp", "protocol": "TCP"}]});
    let fields = spec.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    document("ServiceEntry", &host.replace('.', "-"), spec)
}

/// Where these connections go, by the numbers 0 to 9: each way, and how many go it.
fn divided(compiled: &Compiled, port: u16, address: Option<&str>, spoken: Spoken<'_>) -> String {
    let mut ways: Vec<(String, usize)> = Vec::new();
    for drawn in 0..10 {
        let decision = compiled.table.decide_connection(&Connection {
            port: PortNumber::new(port).unwrap(),
            address: address.map(|address| address.parse().unwrap()),
            spoken,
            drawn,
        });
        let way = match decision.action {
            Action::Reject(reason) => format!("reject {reason}"),
            action => format!("{} {}", action.as_str(), decision.cluster().unwrap().name),
        };
        match ways.last_mut() {
            Some((last, count)) if *last == way => *count += 1,
            _ => ways.push((way, 1)),
        }
    }
    let ways = ways.iter().map(|(way, count)| format!("{count} {way}"));
    ways.collect::<Vec<_>>().join(", ")
}

fn share(host: &str, weight: u64) -> Value {
    json!({"destination": {"host": host}, "weight": weight})
}

fn tls_rule(host: &str) -> Value {
    let policy = json!({"tls": {"mode": "SIMPLE"}});
    document(
        "DestinationRule",
        host,
        json!({"host": host, "trafficPolicy": policy}),
    )
}

#[test]
fn connections_are_divided_by_weight_and_each_share_is_judged_by_itself() {
    let tcp = |shares: Value| {
        document(
            "VirtualService",
            "v",
            json!({"hosts": ["db.example"], "tcp": [{"route": shares}]}),
        )
    };
    let compiled = |shares: Value, more: &[Value]| {
        let mut documents = vec![
            bytes("db.example", 6001, json!({})),
            bytes("old.example", 6432, json!({})),
            tls_rule("db.example"),
            tcp(shares),
        ];
        documents.extend_from_slice(more);
        compile(&documents, &CompileOptions::default())
    };
    let originated = [tls_rule("old.example")];
    let found = compiled(
        json!([share("db.example", 3), share("old.example", 7)]),
        &originated,
    );
    assert_eq!(found.problems.0, []);
    assert_eq!(
        divided(&found, 6001, None, Spoken::Bytes),
        "3 originate outbound|6001||db.example, 7 originate outbound|6432||old.example"
    );
    let named = found.table.services().filter(|it| it.share.is_some());
    let named: Vec<&str> = named.map(|service| service.cluster.name.as_str()).collect();
    assert_eq!(
        named,
        ["outbound|6001||db.example", "outbound|6432||old.example"]
    );
    // A person who asks draws nothing.
    assert_eq!(said(&found, "tcp://db.example:6001", None), "weighted");

    // A share of no weight has none, and one whose destination nothing describes is refused alone.
    let shares = json!([
        share("nowhere.example", 4),
        share("old.example", 0),
        share("db.example", 6)
    ]);
    let found = compiled(shares, &originated);
    assert_eq!(warnings(&found), ["unknown-destination"]);
    assert_eq!(
        divided(&found, 6001, None, Spoken::Bytes),
        "4 reject unknown_destination, 6 originate outbound|6001||db.example"
    );
    // Where all are, nobody listens for nothing.
    let shares = json!([share("nowhere.example", 4), share("nobody.example", 6)]);
    let found = compiled(shares, &[]);
    let refused = found.table.refused().next().unwrap();
    assert_eq!(refused.reason.as_str(), "unknown_destination");

    // A share in plaintext passes the gate like any other way.
    let shares = json!([share("db.example", 5), share("old.example", 5)]);
    assert_eq!(
        divided(&compiled(shares.clone(), &[]), 6001, None, Spoken::Bytes),
        "5 originate outbound|6001||db.example, 5 forward outbound|6432||old.example"
    );
    // One listener cannot have the tunnel of one share.
    let tunnel = document(
        "DestinationRule",
        "old",
        json!({"host": "old.example", "trafficPolicy": {"tunnel": {"targetHost": "t.example", "targetPort": 6001}}}),
    );
    let found = compiled(shares, &[tunnel]);
    assert_eq!(warnings(&found), ["not-read"]);
    assert_eq!(
        divided(&found, 6001, None, Spoken::Bytes),
        "10 reject not_read"
    );
}

/// Of entries whose resolution differs the oldest has the host, and ports of the others have no cluster; but listeners.
#[test]
fn routes_lead_ports_of_entries_that_lost_their_host_too() {
    let of = |name: &str, port: u16, protocol: &str, resolution: &str, created: &str| {
        let ports =
            json!([{"number": port, "name": protocol.to_lowercase(), "protocol": protocol}]);
        let spec = json!({"hosts": [HOST], "ports": ports, "resolution": resolution});
        let mut document = document("ServiceEntry", name, spec);
        document["metadata"]["creationTimestamp"] = json!(created);
        document
    };
    let documents = [
        of("old", 443, "HTTPS", "DNS", "2025-01-01T00:00:00Z"),
        of("young", 80, "HTTP", "NONE", "2025-01-02T00:00:00Z"),
        of("younger", 8080, "HTTP", "NONE", "2025-01-03T00:00:00Z"),
        rule(HOST),
        service(json!([{"match": [{"port": 80}], "route": to(HOST, 443)}])),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(
        said(&compiled, "http://api.example.com:80", None),
        "originate api.example.com:443"
    );
    assert_eq!(
        said(&compiled, "http://api.example.com:8080", None),
        "reject unknown_port"
    );
}

#[test]
fn connections_are_led_by_the_narrowest_range_of_addresses() {
    let of = |subnets: Value, host: &str| json!({"match": [{"destinationSubnets": subnets}], "route": [share(host, 0)]});
    let found = |tcp: Value, addresses: Value| {
        let documents = [
            bytes("db.example", 6001, json!({"addresses": addresses})),
            bytes("one.example", 6432, json!({})),
            bytes("two.example", 7432, json!({})),
            document(
                "VirtualService",
                "v",
                json!({"hosts": ["db.example"], "tcp": tcp}),
            ),
            tls_rule("db.example"),
            tls_rule("one.example"),
            tls_rule("two.example"),
        ];
        compile(&documents, &CompileOptions::default())
    };
    let to = |compiled: &Compiled, address: &str| {
        let all = divided(compiled, 6001, Some(address), Spoken::Bytes);
        all.rsplit_once("||")
            .map_or(all.clone(), |(_, host)| host.to_owned())
    };
    let tcp = json!([
        of(json!(["10.0.0.0/8", "192.0.2.7"]), "one.example"),
        of(json!(["10.1.0.0/16"]), "two.example")
    ]);
    let compiled = found(tcp.clone(), json!([]));
    // Nobody knows what was dialled but of captured connections.
    assert_eq!(warnings(&compiled), ["not-read"]);
    for (address, host) in [
        ("10.2.0.1", "one.example"),
        ("192.0.2.7", "one.example"),
        ("10.1.0.1", "two.example"),
        // The rest goes the service's own way.
        ("192.0.2.8", "db.example"),
    ] {
        assert_eq!(to(&compiled, address), host, "{address}");
    }
    assert!(compiled.table.services().any(|service| service.by_address));
    assert!(compiled.table.divided(PortNumber::new(6001)).addresses);
    assert!(!compiled.table.divided(PortNumber::new(6432)).any);
    // Or that of the next route.
    let mut all = tcp.as_array().unwrap().clone();
    all.push(json!({"route": [share("nowhere.example", 0)]}));
    let compiled = found(json!(all), json!([]));
    assert_eq!(to(&compiled, "10.1.0.1"), "two.example");
    assert_eq!(
        divided(&compiled, 6001, Some("192.0.2.8"), Spoken::Bytes),
        "10 reject unknown_destination"
    );
    // Among the service's own addresses, where it has any.
    let compiled = found(tcp, json!(["10.1.0.1"]));
    assert_eq!(compiled.problems.0, []);
    assert_eq!(to(&compiled, "10.1.0.1"), "two.example");
    assert_eq!(to(&compiled, "10.2.0.1"), "10 reject unknown_host");
    // A match without them takes all, whatever stands beside it.
    let both = json!([{"match": [{"destinationSubnets": ["10.0.0.0/8"]}, {"port": 6001}], "route": [share("one.example", 0)]}]);
    assert_eq!(to(&found(both, json!([])), "192.0.2.8"), "one.example");
}

#[test]
fn names_of_tls_are_divided_by_weight_and_address_too() {
    let tls = json!([
        {"match": [{"sniHosts": [HOST], "destinationSubnets": ["10.0.0.0/8"]}], "route": [share("a.example.com", 0)]},
        {"match": [{"sniHosts": [HOST]}], "route": [share(HOST, 4), share("b.example.com", 6)]},
        {"match": [{"sniHosts": ["only.example.com"], "destinationSubnets": ["10.0.0.0/8"]}], "route": [share(HOST, 0)]},
    ]);
    let hosts = json!([HOST, "only.example.com"]);
    let documents = [
        entry(HOST),
        entry("a.example.com"),
        entry("b.example.com"),
        document("VirtualService", "v", json!({"hosts": hosts, "tls": tls})),
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(warnings(&compiled), ["not-read", "not-read"]);
    assert!(!compiled.problems.has_errors());
    let to = |address: &str, name: &str| {
        let server_name = Some(name);
        divided(&compiled, 443, Some(address), Spoken::Tls { server_name })
    };
    assert_eq!(
        to("192.0.2.1", HOST),
        "4 passthrough outbound|443||api.example.com, 6 passthrough outbound|443||b.example.com"
    );
    assert_eq!(
        to("10.0.0.1", HOST),
        "10 passthrough outbound|443||a.example.com"
    );
    assert_eq!(
        to("10.0.0.1", "only.example.com"),
        "10 passthrough outbound|443||api.example.com"
    );
    assert_eq!(to("192.0.2.1", "only.example.com"), "10 reject no_route");
    assert!(compiled.table.divided(PortNumber::new(443)).names);
}

#[test]
fn a_hop_is_folded() {
    let gateway = |protocol: &str, tls: Value| {
        let mut server =
            json!({"port": {"number": 443, "name": "p", "protocol": protocol}, "hosts": [HOST]});
        if !tls.is_null() {
            server["tls"] = tls;
        }
        document(
            "Gateway",
            "egress",
            json!({"selector": {"istio": "egressgateway"}, "servers": [server]}),
        )
    };
    let both = |export_to: Value| {
        document(
            "VirtualService",
            "v",
            json!({"hosts": [HOST], "gateways": ["egress", "mesh"], "exportTo": export_to, "http": [
            {"match": [{"gateways": ["mesh"], "port": 80}], "route": to(HOP, 443)},
            {"match": [{"gateways": ["egress"], "port": 443}], "route": to(HOST, 443)}]}),
        )
    };
    let compiled = |gateway: Value, export_to: Value| {
        compile(
            &[entry(HOST), rule(HOST), gateway, both(export_to)],
            &CompileOptions::default(),
        )
    };
    let all = json!(["*"]);
    let url = "http://api.example.com:80";
    let mutual = json!({"mode": "ISTIO_MUTUAL"});
    let folded = compiled(gateway("HTTPS", mutual.clone()), all.clone());
    assert_eq!(
        said(&folded, url, None),
        "originate api.example.com:443",
        "{}",
        folded.problems
    );
    assert_eq!(
        said(
            &compiled(gateway("HTTP", json!(null)), all.clone()),
            url,
            None
        ),
        "originate api.example.com:443"
    );
    let hidden = compiled(gateway("HTTPS", mutual), json!(["."]));
    assert_eq!(errors(&hidden), ["gateway-half-hidden"]);
    let asks = compiled(
        gateway("HTTPS", json!({"mode": "MUTUAL", "credentialName": "c"})),
        all,
    );
    assert_eq!(errors(&asks), ["gateway-server-tls"]);
    let nobody = compile(
        &[entry(HOST), rule(HOST), both(json!(["*"]))],
        &CompileOptions::default(),
    );
    assert_eq!(said(&nobody, url, None), "reject unknown_destination");
    assert!(warnings(&nobody).contains(&"unknown-destination"));
    // As the gateway itself, only what its Gateways say is served.
    let router = CompileOptions {
        proxy: Proxy {
            namespace: "istio-system".to_owned(),
            labels: [("istio".to_owned(), "egressgateway".to_owned())].into(),
            role: Role::Gateway,
        },
        ..CompileOptions::default()
    };
    let documents = [
        entry(HOST),
        rule(HOST),
        gateway("HTTP", json!(null)),
        both(json!(["*"])),
    ];
    let router = compile(&documents, &router);
    assert_eq!(
        said(&router, "http://api.example.com:443", None),
        "originate api.example.com:443"
    );
    assert_eq!(said(&router, url, None), "reject no_route");
}

/// Of a port's servers the first one counts, and those that can stand beside it.
#[test]
fn servers_that_cannot_stand_beside_an_earlier_one_are_left_out() {
    let server = |protocol: &str, mode: &str, host: &str| {
        let mut server =
            json!({"port": {"number": 443, "name": "p", "protocol": protocol}, "hosts": [host]});
        if !mode.is_empty() {
            server["tls"] = json!({"mode": mode});
        }
        server
    };
    let gateway = |name: &str, server: &Value| {
        let selector = json!({"istio": "egressgateway"});
        let spec = json!({"selector": selector, "servers": [server]});
        document("Gateway", name, spec)
    };
    let led = |list: &str, more: Value| {
        let mut one = json!({"gateways": ["mesh"], "port": 443});
        let mut two = json!({"gateways": ["second"], "port": 443});
        for found in [&mut one, &mut two] {
            let fields = found.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
        }
        let routes = json!([{"match": [one], "route": to(HOP, 443)}, {"match": [two], "route": to(HOST, 443)}]);
        let spec = json!({"hosts": [HOST], "gateways": ["second", "mesh"], list: routes});
        document("VirtualService", "v", spec)
    };
    let tls = led("tls", json!({"sniHosts": [HOST]}));
    let mut http = led("http", json!({}));
    http["spec"]["http"][0]["match"][0]["port"] = json!(80);
    http["spec"]["http"][1]["route"] = to(HOST, 80);
    let through = |first: &Value, second: &Value, routes: &Value, url: &str| {
        let documents = [
            entry(HOST),
            gateway("first", first),
            gateway("second", second),
            routes.clone(),
        ];
        let compiled = compile(&documents, &CompileOptions::default());
        let left_out = warnings(&compiled).contains(&"gateway-server-left-out");
        assert_eq!(errors(&compiled), [""; 0], "{}", compiled.problems);
        (said(&compiled, url, None), left_out)
    };
    let (plain, secure) = ("http://api.example.com:80", "https://api.example.com:443");
    let passes = |host: &str| server("TLS", "PASSTHROUGH", host);
    let ends = server("HTTPS", "ISTIO_MUTUAL", HOST);
    let http_server = |host: &str| server("HTTP", "", host);
    let (out, no_route) = (true, "reject no_route".to_owned());
    // The same host twice for TLS.
    assert_eq!(
        through(&passes(HOST), &passes(HOST), &tls, secure),
        (no_route.clone(), out)
    );
    assert_eq!(
        through(&passes(HOST), &ends, &http, plain),
        (no_route.clone(), out)
    );
    let other = "other.example.com";
    let led = "passthrough api.example.com:443".to_owned();
    assert_eq!(
        through(&passes(other), &passes(HOST), &tls, secure),
        (led, !out)
    );
    // Plain requests beside plain requests only, whatever the hosts are.
    let led = "forward api.example.com:80".to_owned();
    assert_eq!(
        through(&http_server(HOST), &http_server(HOST), &http, plain),
        (led, !out)
    );
    assert_eq!(
        through(&http_server(other), &passes(HOST), &tls, secure),
        (no_route.clone(), out)
    );
    assert_eq!(
        through(&passes(other), &http_server(HOST), &http, plain),
        (no_route, out)
    );
}

#[test]
fn a_router_does_not_open_what_a_gateway_keeps_shut() {
    for mode in ["ISTIO_MUTUAL", "MUTUAL"] {
        let server = json!({"port": {"number": 443, "name": "p", "protocol": "HTTPS"}, "hosts": [HOST], "tls": {"mode": mode, "credentialName": "c"}});
        let gateway = document(
            "Gateway",
            "egress",
            json!({"selector": {"istio": "egressgateway"}, "servers": [server]}),
        );
        let options = CompileOptions {
            proxy: Proxy {
                labels: [("istio".to_owned(), "egressgateway".to_owned())].into(),
                role: Role::Gateway,
                ..Proxy::default()
            },
            ..CompileOptions::default()
        };
        let documents = [entry(HOST), rule(HOST), gateway];
        assert_eq!(
            errors(&compile(&documents, &options)),
            ["gateway-server-tls"]
        );
        assert_eq!(
            errors(&compile(&documents, &CompileOptions::default())),
            [""]
        );
    }
}

#[test]
fn a_sidecar_says_what_there_is() {
    let sidecar = |hosts: Value| document("Sidecar", "s", json!({"egress": [{"hosts": hosts}]}));
    let ask = |sidecar: Value| {
        let compiled = compile(&[entry(HOST), sidecar], &CompileOptions::default());
        said(&compiled, "http://api.example.com:80", None)
    };
    let (seen, hidden) = ("forward api.example.com:80", "reject unknown_host");
    assert_eq!(ask(sidecar(json!(["./*"]))), seen);
    assert_eq!(ask(sidecar(json!(["*/*"]))), seen);
    assert_eq!(ask(sidecar(json!(["istio-system/*"]))), hidden);
    assert_eq!(
        ask(sidecar(json!(["*/*", "~default/api.example.com"]))),
        hidden
    );
    assert_eq!(
        ask(within("istio-system", sidecar(json!(["istio-system/*"])))),
        hidden
    );
    assert_eq!(
        ask(within("elsewhere", sidecar(json!(["istio-system/*"])))),
        seen
    );
    // A VirtualService leads to what is not taken in.
    let alias = document(
        "VirtualService",
        "v",
        json!({"hosts": ["b.example.com"], "http": [{"route": to(HOST, 443)}]}),
    );
    let only_b = sidecar(json!(["*/b.example.com"]));
    let documents = [
        entry(HOST),
        rule(HOST),
        entry("b.example.com"),
        alias,
        only_b,
    ];
    let compiled = compile(&documents, &CompileOptions::default());
    assert_eq!(
        said(&compiled, "http://b.example.com:80", None),
        "originate b.example.com:443 by api.example.com:443"
    );
}

/// A way of `mesh` routes through an egress gateway with routes of its own.
fn twice(mesh: Value, behind: Value) -> Compiled {
    let server = json!({"port": {"number": 80, "name": "p", "protocol": "HTTP"}, "hosts": [HOST]});
    let gateway = document(
        "Gateway",
        "egress",
        json!({"selector": {"istio": "egressgateway"}, "servers": [server]}),
    );
    let of = |name: &str, gateways: Value, http: Value| {
        let spec = json!({"hosts": [HOST], "gateways": gateways, "http": http});
        document("VirtualService", name, spec)
    };
    let documents = [
        entry(HOST),
        rule(HOST),
        gateway,
        of("a", json!(["mesh"]), mesh),
        of("b", json!(["egress"]), behind),
    ];
    compile(&documents, &CompileOptions::default())
}

#[test]
fn a_gateway_may_match_a_second_time() {
    let uri = |how: &str, text: &str| json!([{"uri": {how: text}}]);
    let compiled = twice(
        json!([
            {"match": [{"uri": {"prefix": "/news"}}, {"method": {"exact": "HEAD"}}], "route": to(HOP, 80)},
            {"match": uri("prefix", "/old"), "route": to(HOST, 443)},
            {"route": to(HOP, 80)},
        ]),
        json!([
            {"match": uri("prefix", "/news/world"), "route": to(HOST, 443)},
            {"match": uri("exact", "/older"), "directResponse": {"status": 410}},
        ]),
    );
    assert_eq!(errors(&compiled), [""; 0], "{}", compiled.problems);
    let found: Vec<String> = compiled
        .table
        .branching()
        .flat_map(|it| it.branches)
        .map(|branch| {
            let pairs = branch.before.map(|before| (before.route, before.pairs));
            let led = branch.shares.iter().filter(|it| it.leads_to.is_ok());
            format!(
                "{} {pairs:?} {:?} {}",
                branch.name,
                branch.answer,
                led.count()
            )
        })
        .collect();
    // Of two paths only those stay together that a request can have. What no route of the gateway takes gets no other.
    assert_eq!(
        found,
        [
            "default/a/http[0]+default/b/http[0]/api.example.com:80 Some((0, [(Some(0), Some(0)), (Some(1), Some(0))])) None 1",
            "default/a/http[0]+default/b/http[1]/api.example.com:80 Some((0, [(Some(1), Some(0))])) Some(Status(410)) 0",
            "default/a/http[0]/api.example.com:80 Some((0, [(Some(0), None), (Some(1), None)])) None 0",
            "default/a/http[1]/api.example.com:80 None None 1",
            "default/a/http[2]+default/b/http[0]/api.example.com:80 Some((2, [(None, Some(0))])) None 1",
            "default/a/http[2]+default/b/http[1]/api.example.com:80 Some((2, [(None, Some(0))])) Some(Status(410)) 0",
            "default/a/http[2]/api.example.com:80 Some((2, [(None, None)])) None 0",
        ]
    );
    let url = "http://api.example.com:80";
    let by = |branch: &str| said(&compiled, url, Some(branch));
    assert_eq!(
        by("default/a/http[0]+default/b/http[0]/api.example.com:80"),
        "originate api.example.com:443"
    );
    assert_eq!(
        by("default/a/http[0]/api.example.com:80"),
        "reject no_route"
    );
}

#[test]
fn what_cannot_be_matched_at_once_is_refused() {
    let url = "http://api.example.com:80";
    let plain = json!([{"match": [{"uri": {"prefix": "/a"}}], "route": to(HOST, 443)}]);
    let led = |route: Value| json!([route, {"route": to(HOST, 443)}]);
    let refused = |mesh: Value, behind: &Value| {
        let compiled = twice(mesh, behind.clone());
        assert_eq!(said(&compiled, url, None), "reject not_read");
        assert!(
            warnings(&compiled).contains(&"not-read"),
            "{}",
            compiled.problems
        );
    };
    let asks = |uri: Value| json!({"match": [uri], "route": to(HOP, 80)});
    refused(led(asks(json!({"uri": {"regex": "/[a-z]"}}))), &plain);
    refused(
        led(asks(
            json!({"uri": {"prefix": "/A"}, "ignoreUriCase": true}),
        )),
        &plain,
    );
    let mut changes = asks(json!({"method": {"exact": "GET"}}));
    changes["rewrite"] = json!({"uri": "/a"});
    refused(led(changes), &plain);
    let mut named = asks(json!({"method": {"exact": "GET"}}));
    named["rewrite"] = json!({"authority": HOST});
    refused(led(named), &plain);
    let shares = json!([
        {"destination": {"host": HOP, "port": {"number": 80}}, "weight": 1},
        {"destination": {"host": HOST, "port": {"number": 443}}, "weight": 1},
    ]);
    refused(json!([{"route": shares}]), &plain);
    // A regular expression is no matter where only one of the two asks for a path.
    let fits = twice(
        led(asks(json!({"uri": {"regex": "/[a-z]"}}))),
        json!([{"match": [{"method": {"exact": "GET"}}], "route": to(HOST, 443)}]),
    );
    assert_eq!(said(&fits, url, None), "reject no_route");
}
