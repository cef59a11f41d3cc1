//! What becomes of a rule's `tunnel`: connections go into it, and what cannot is refused.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect should stop"
)]

use egress_policy::{
    CompileOptions, Endpoints, Parser, PolicyTable, PortNumber, Problems, Service, UpstreamProtocol,
};
use serde_json::{Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn document(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec})
}

/// A host with HTTP on 80, TLS on 443 and TCP on 5432, but for the ports that `only` leaves out.
fn compile(
    host: &str,
    only: &[u16],
    more: Value,
    policy: Value,
) -> Result<(PolicyTable, Problems), Problems> {
    let ports = [(80, "HTTP"), (443, "TLS"), (5432, "TCP")].into_iter();
    let ports: Vec<Value> = ports
        .filter(|(port, _)| only.contains(port))
        .map(|(port, protocol)| json!({"number": port, "name": format!("p{port}"), "protocol": protocol}))
        .collect();
    let mut spec = json!({"hosts": [host], "resolution": "DNS", "ports": ports});
    let fields = spec.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    let mut parser = Parser::new();
    parser.document(&document("ServiceEntry", spec));
    parser.document(&document(
        "DestinationRule",
        json!({"host": host, "trafficPolicy": policy}),
    ));
    let (resources, problems) = parser.finish();
    if problems.has_errors() {
        return Err(problems);
    }
    PolicyTable::compile(&resources, &CompileOptions::default())
}

fn tunnel() -> Value {
    json!({"targetHost": "db.example.com", "targetPort": 5432})
}

fn at(table: &PolicyTable, port: u16) -> Service<'_> {
    let port = PortNumber::new(port).unwrap();
    table
        .services()
        .find(|service| service.port == port)
        .unwrap()
}

#[test]
fn the_proxy_is_spoken_to_by_http_1_unless_the_rule_says_2() {
    for (pool, upstream) in [
        (json!({}), UpstreamProtocol::Http1),
        (
            json!({"h2UpgradePolicy": "UPGRADE"}),
            UpstreamProtocol::Http2,
        ),
        // There is no request whose protocol it could be.
        (json!({"useClientProtocol": true}), UpstreamProtocol::Http1),
    ] {
        let policy = json!({"tunnel": tunnel(), "connectionPool": {"http": pool}});
        let (table, _) = compile("a.com", &[443, 5432], json!({}), policy).unwrap();
        for port in [443, 5432] {
            assert_eq!(at(&table, port).cluster.upstream, upstream, "{pool}");
        }
    }
}

#[test]
fn the_proxy_may_be_an_endpoint_below_a_wildcard_too() {
    let proxy = json!({"resolution": "STATIC", "endpoints": [{"address": "192.0.2.1", "ports": {"p443": 3128}}]});
    for host in ["a.com", "*.a.com"] {
        let (table, warnings) =
            compile(host, &[443], proxy.clone(), json!({"tunnel": tunnel()})).unwrap();
        assert_eq!(warnings.to_string(), "");
        let cluster = at(&table, 443).cluster;
        let Endpoints::Listed {
            endpoints,
            fixed: true,
            ..
        } = &cluster.endpoints
        else {
            unreachable!("{cluster:?}")
        };
        assert_eq!(endpoints.len(), 1);
        assert_eq!(
            (endpoints[0].address.as_str(), endpoints[0].port.get()),
            ("192.0.2.1", 3128)
        );
    }
}

#[test]
fn what_would_go_around_the_tunnel_is_refused() {
    let refused = |host, only: &[u16], more: Value, policy: Value| {
        compile(host, only, more, policy).unwrap_err().to_string()
    };
    let own = json!({"tunnel": tunnel()});
    let said = refused("a.com", &[80, 443], json!({}), own.clone());
    assert!(
        said.contains("spec.trafficPolicy.tunnel: port 80 of `a.com` speaks HTTP"),
        "{said}"
    );
    assert!(!said.contains("port 443"), "{said}");
    // An entry of its own keeps the port out of it, by Istio's rules.
    let apart = json!({"tunnel": tunnel(), "portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}]});
    let (table, warnings) = compile("a.com", &[80, 443], json!({}), apart).unwrap();
    assert_eq!(warnings.to_string(), "");
    assert!(at(&table, 80).cluster.tunnel.is_none() && at(&table, 443).cluster.tunnel.is_some());

    let said = refused("*.a.com", &[443], json!({"resolution": "DYNAMIC_DNS"}), own);
    assert!(said.contains("`*.a.com` is no one host"), "{said}");
}

#[test]
fn tls_to_the_proxy_is_told_where_it_is_all_there_is() {
    let policy = json!({"tunnel": tunnel(), "tls": {"mode": "SIMPLE"}});
    let (table, warnings) = compile("proxy.com", &[443, 5432], json!({}), policy).unwrap();
    let warnings = warnings.to_string();
    assert_eq!(
        warnings
            .matches(
                "TLS ends at the proxy: what the application sends goes on to `db.example.com:5432`"
            )
            .count(),
        1,
        "{warnings}"
    );
    for port in [443, 5432] {
        let tls = at(&table, port).cluster.tls.as_ref().unwrap();
        assert_eq!(tls.sni.fixed(), Some("proxy.com"));
        assert_eq!(tls.names.any_of, ["proxy.com"]);
    }
}

#[test]
fn a_target_is_written_as_hosts_are() {
    for (host, authority) in [
        ("DB.Example.com.", "db.example.com:5432"),
        ("192.0.2.1", "192.0.2.1:5432"),
        ("2001:DB8:0::1", "[2001:db8::1]:5432"),
    ] {
        let policy = json!({"tunnel": {"targetHost": host, "targetPort": 5432}});
        let (table, _) = compile("a.com", &[5432], json!({}), policy).unwrap();
        let tunnel = at(&table, 5432).cluster.tunnel.as_ref().unwrap();
        assert_eq!(tunnel.authority(), authority);
    }
}
