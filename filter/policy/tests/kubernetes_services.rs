//! Services of Kubernetes beside ServiceEntries: other names for their hosts, and owners of them.
use egress_policy::{
    CompileOptions, DownstreamProtocol, Parser, PolicyTable, PortNumber, Proxy, Query,
};
use serde_json::{Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn document(kind: &str, name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let version = match kind {
        "Service" => "v1",
        _ => "networking.istio.io/v1",
    };
    json!({"apiVersion": version, "kind": kind,
           "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn entry(name: &str, host: &str) -> Value {
    let ports = json!([
        {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
        {"number": 443, "name": "tls", "protocol": "TLS"},
    ]);
    let spec = json!({"hosts": [host], "ports": ports, "resolution": "DNS"});
    document("ServiceEntry", name, spec)
}

fn rule(name: &str, host: &str) -> Value {
    let settings = json!([{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}]);
    let spec = json!({"host": host, "trafficPolicy": {"portLevelSettings": settings}});
    document("DestinationRule", name, spec)
}

fn alias(name: &str, of: &str) -> Value {
    document(
        "Service",
        name,
        json!({"type": "ExternalName", "externalName": of}),
    )
}

struct Asked {
    decided: String,
    said: Vec<String>,
}

fn ask_as(documents: &[Value], namespace: &str, host: &str, tls: bool) -> Asked {
    let mut parser = Parser::new();
    documents.iter().for_each(|it| parser.document(it));
    let (resources, problems) = parser.finish();
    let options = CompileOptions {
        proxy: Proxy {
            namespace: namespace.to_owned(),
            ..Proxy::default()
        },
        ..CompileOptions::default()
    };
    let compiled = PolicyTable::compile_with_errors(&resources, &options);
    let said = problems.0.iter().chain(&compiled.problems.0);
    let said = said.map(ToString::to_string).collect();
    let decision = compiled.table.decide(&Query {
        host,
        port: if tls {
            PortNumber::HTTPS
        } else {
            PortNumber::HTTP
        },
        downstream: if tls {
            DownstreamProtocol::Tls
        } else {
            DownstreamProtocol::Http
        },
        subset: None,
        branch: None,
    });
    let decided = match (decision.reason(), decision.target) {
        (Some(reason), _) => reason.as_str().to_owned(),
        (None, target) => format!(
            "{} {}",
            decision.action.as_str(),
            target.map_or("", |target| target.host)
        ),
    };
    Asked { decided, said }
}

fn ask(documents: &[Value], namespace: &str, host: &str) -> Asked {
    ask_as(documents, namespace, host, false)
}

const HOST: &str = "api.example.com";
const REACHED: &str = "originate api.example.com";

#[test]
fn an_external_name_is_another_name_for_its_host() {
    let documents = [
        entry("api", HOST),
        rule("api", HOST),
        alias("shop/pay", HOST),
    ];
    for name in ["pay.shop.svc.cluster.local", "pay.shop.svc", "pay.shop"] {
        let asked = ask(&documents, "default", name);
        assert_eq!(asked.decided, REACHED, "{name}");
        assert_eq!(asked.said, [""; 0]);
    }
    assert_eq!(ask(&documents, "default", "pay").decided, "unknown_host");
    assert_eq!(ask(&documents, "shop", "pay").decided, REACHED);
    // TLS is led by its own names alone.
    let tls = |name| ask_as(&documents, "shop", name, true).decided;
    assert_eq!(tls(HOST), "passthrough api.example.com");
    assert_eq!(tls("pay.shop.svc.cluster.local"), "unknown_host");
}

#[test]
fn one_alias_may_lead_to_another() {
    let documents = [
        entry("api", HOST),
        rule("api", HOST),
        alias("a", "b.default.svc.cluster.local"),
        alias("b", HOST),
        // A circle leads nowhere.
        alias("c", "d.default.svc.cluster.local"),
        alias("d", "c.default.svc.cluster.local"),
    ];
    assert_eq!(ask(&documents, "default", "a").decided, REACHED);
    assert_eq!(ask(&documents, "default", "c").decided, "unknown_host");
}

#[test]
fn who_does_not_see_an_alias_cannot_use_it() {
    let mut own = alias("shop/pay", HOST);
    own["metadata"]["annotations"] = json!({"networking.istio.io/exportTo": "."});
    let documents = [entry("api", HOST), rule("api", HOST), own];
    assert_eq!(
        ask(&documents, "default", "pay.shop").decided,
        "unknown_host"
    );
    assert_eq!(ask(&documents, "shop", "pay.shop").decided, REACHED);
}

#[test]
fn a_virtual_service_may_lead_to_an_alias() {
    let to = json!({"destination": {"host": "pay", "port": {"number": 80}}});
    let spec = json!({"hosts": ["front.example.com"], "http": [{"route": [to]}]});
    let documents = [
        entry("api", HOST),
        rule("api", HOST),
        entry("front", "front.example.com"),
        document("VirtualService", "v", spec),
        alias("pay", HOST),
    ];
    let asked = ask(&documents, "default", "front.example.com");
    assert!(asked.decided.starts_with("originate "), "{}", asked.decided);
}

const OWNED: &str = "my-nginx.mesh-external.svc.cluster.local";

#[test]
fn a_host_that_is_a_services_is_refused() {
    let service = document(
        "Service",
        "mesh-external/my-nginx",
        json!({"ports": [{"port": 80}]}),
    );
    let documents = [
        entry("default/x", OWNED),
        rule("default/x", OWNED),
        service.clone(),
    ];
    // The caller's own namespace comes first.
    let asked = ask(&documents, "default", OWNED);
    assert_eq!(asked.decided, format!("originate {OWNED}"));
    assert_eq!(
        asked.said,
        [
            "warning: metadata.name: `my-nginx.mesh-external.svc.cluster.local` is the host of ServiceEntry default/x too, which counts here (Service mesh-external/my-nginx, document 3); Istio uses the Service and its pods, but for callers in namespace `default`"
        ]
    );
    for namespace in ["third", "mesh-external"] {
        let asked = ask(&documents, namespace, OWNED);
        assert_eq!(asked.decided, "not_read");
        assert!(
            asked.said[0].contains("so the host is refused (`not_read`)"),
            "{:?}",
            asked.said
        );
    }
    // Of one namespace the Service has it.
    let documents = [
        entry("mesh-external/x", OWNED),
        rule("mesh-external/x", OWNED),
        service.clone(),
    ];
    assert_eq!(ask(&documents, "mesh-external", OWNED).decided, "not_read");
    // One that the caller does not see is none.
    let mut own = service;
    own["metadata"]["annotations"] = json!({"networking.istio.io/exportTo": "."});
    let documents = [entry("default/x", OWNED), rule("default/x", OWNED), own];
    assert_eq!(ask(&documents, "third", OWNED).said, [""; 0]);
}

#[test]
fn other_services_are_counted_and_change_nothing() {
    let documents = [
        entry("api", HOST),
        rule("api", HOST),
        document("Service", "web", json!({"ports": [{"port": 80}]})),
        alias("other", "other.example.com"),
    ];
    let asked = ask(&documents, "default", HOST);
    assert_eq!(asked.decided, REACHED);
    assert_eq!(asked.said.len(), 2);
    assert!(
        asked
            .said
            .iter()
            .all(|it| it.starts_with("warning: kind: `Service` is not read"))
    );
}
