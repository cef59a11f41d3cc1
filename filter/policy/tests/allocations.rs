//! A request costs no memory: reading its authority and deciding allocate nothing.
#![cfg(not(target_arch = "wasm32"))]
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect should stop"
)]

mod counting;

use egress_policy::{
    Action, Authority, CompileOptions, DownstreamProtocol, OutboundMode, Parser, PolicyTable,
    PortNumber, Query,
};
use serde_json::{Value, json};

/// Returns what `work` returns, and the number of its allocations.
fn counted<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = counting::allocations();
    let result = work();
    (result, counting::allocations() - before)
}

/// 10,000 hosts, every tenth a wildcard.
fn table(outbound: OutboundMode) -> PolicyTable {
    let document = |kind: &str, name: String, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let ports = json!([
        {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
        {"number": 443, "name": "tls", "protocol": "TLS"},
        {"number": 6379, "name": "tcp", "protocol": "TCP"},
    ]);
    let tls = json!({"mode": "SIMPLE", "sni": "s.example.com"});
    let settings: Vec<Value> = [80, 6379]
        .iter()
        .map(|port| json!({"port": {"number": port}, "tls": tls}))
        .collect();
    let subsets = json!([{"name": "v1"}]);
    let rule =
        json!({"host": "*", "trafficPolicy": {"portLevelSettings": settings}, "subsets": subsets});
    let mut parser = Parser::new();
    parser.document(&document("DestinationRule", "all".to_owned(), rule));
    for n in 0..10_000 {
        let host = match n % 10 {
            0 => format!("*.h{n}{}.example.com", ".x".repeat(n / 10 % 9)),
            _ => format!("h{n}.example.com"),
        };
        let spec = json!({"hosts": [host], "ports": ports, "resolution": "NONE"});
        parser.document(&document("ServiceEntry", format!("e{n}"), spec));
    }
    let (resources, problems) = parser.finish();
    assert!(!problems.has_errors(), "{problems}");
    let options = CompileOptions {
        outbound,
        loopback_vips: true,
        ..CompileOptions::default()
    };
    PolicyTable::compile(&resources, &options).unwrap().0
}

#[test]
fn the_counter_counts() {
    let (text, allocations) = counted(|| std::hint::black_box("x").repeat(100));
    assert_eq!((text.len(), allocations), (100, 1));
}

#[test]
fn an_ordinary_request_allocates_nothing() {
    let hosts = [
        ("h1.example.com", true),
        ("h9999.example.com:80", true),
        ("h9999.example.com.", true),
        ("www.h10.x.example.com", true),
        ("a.b.c.h80.x.x.x.x.x.x.x.x.example.com:8080", true),
        ("nobody.example.com", false),
        ("example.com", false),
        ("h10.x.example.com", false),
        ("192.0.2.1:80", false),
        ("xn--bcher-kva.example.com", false),
    ];
    let ports = [80, 443, 6379, 81].map(|port| PortNumber::new(port).unwrap());
    for outbound in [OutboundMode::RegistryOnly, OutboundMode::AllowAny] {
        let table = table(outbound);
        for (host, known) in hosts {
            for port in ports {
                for downstream in [
                    DownstreamProtocol::Http,
                    DownstreamProtocol::Tls,
                    DownstreamProtocol::Tcp,
                ] {
                    for subset in [None, Some("v1"), Some("v2")] {
                        let (found, allocations) = counted(|| {
                            let authority = Authority::parse(host).ok()?;
                            let query = Query {
                                host: &authority.host,
                                port,
                                downstream,
                                branch: None,
                                subset,
                            };
                            let decision = table.decide(&query);
                            let ours = !matches!(
                                decision.action,
                                Action::Reject(_) | Action::LeaveAlone(_)
                            );
                            Some(ours && decision.target.is_some())
                        });
                        assert_eq!(allocations, 0, "{host} {port} {downstream:?} {subset:?}");
                        let reached = found.unwrap();
                        assert!(known || !reached, "{host}");
                        if port == PortNumber::HTTP
                            && downstream == DownstreamProtocol::Http
                            && subset.is_none()
                        {
                            assert_eq!(reached, known, "{host}");
                        }
                    }
                }
            }
        }
    }
}
