//! Does any authority panic the filter, or find another host than the one it names?
#![no_main]

use std::sync::LazyLock;

use egress_policy::{
    Action, Authority, CompileOptions, DownstreamProtocol, OutboundMode, Parser, PolicyTable,
    PortNumber, Query,
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

static TABLES: LazyLock<[PolicyTable; 2]> = LazyLock::new(|| {
    let ports = json!([
        {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
        {"number": 443, "name": "tls", "protocol": "TLS"},
        {"number": 6379, "name": "tcp", "protocol": "TCP"},
    ]);
    let document = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let entry = |name: &str, host: &str| {
        document(
            "ServiceEntry",
            name,
            json!({"hosts": [host], "ports": ports, "resolution": "NONE"}),
        )
    };
    let tls = json!({"mode": "SIMPLE", "sni": "pinned.example.com"});
    let settings: Vec<Value> = [80, 6379]
        .iter()
        .map(|port| json!({"port": {"number": port}, "tls": tls}))
        .collect();
    let mut documents = vec![
        entry("exact", "a.example.com"),
        entry("wild", "*.example.com"),
        entry("wilder", "*.com"),
        entry("idn", "xn--bcher-kva.example"),
        document(
            "DestinationRule",
            "all",
            json!({"host": "*", "trafficPolicy": {"portLevelSettings": settings}}),
        ),
    ];
    documents.extend((0..1000).map(|n| entry(&format!("h{n}"), &format!("h{n}.example.net"))));
    let mut parser = Parser::new();
    documents.iter().for_each(|one| parser.document(one));
    let (resources, problems) = parser.finish();
    assert!(!problems.has_errors(), "{problems}");
    [OutboundMode::RegistryOnly, OutboundMode::AllowAny].map(|outbound| {
        let options = CompileOptions {
            outbound,
            ..CompileOptions::default()
        };
        match PolicyTable::compile(&resources, &options) {
            Ok((table, _)) => table,
            Err(problems) => panic!("{problems}"),
        }
    })
});

/// The ending that says a host is one of the table's.
fn is_ours(host: &str) -> bool {
    let behind_a_dot = |end: &str| host.len() > end.len() && host.ends_with(end);
    let numbered = host
        .strip_prefix('h')
        .and_then(|rest| rest.strip_suffix(".example.net"))
        .is_some_and(|digits| {
            digits
                .parse::<u16>()
                .is_ok_and(|n| n < 1000 && digits == n.to_string())
        });
    behind_a_dot(".com") || host == "xn--bcher-kva.example" || numbered
}

fuzz_target!(|text: &str| {
    let Ok(authority) = Authority::parse(text) else {
        return;
    };
    assert!(!authority.host.is_empty() && authority.host.len() <= 255);
    assert!(authority.host.is_ascii() && !authority.host.ends_with('.'));
    assert!(
        !authority
            .host
            .bytes()
            .any(|byte| byte.is_ascii_uppercase() || byte <= b' ')
    );
    let shown = match authority.address {
        Some(address) if address.is_ipv6() => format!("[{}]", authority.host),
        _ => authority.host.to_ascii_uppercase(),
    };
    let again = Authority::parse(&shown).expect("what was read can be read again");
    assert_eq!(again.host, authority.host);
    for (table, outbound) in TABLES.iter().zip(["closed", "open"]) {
        for port in [80, 443, 6379, 81] {
            for downstream in [
                DownstreamProtocol::Http,
                DownstreamProtocol::Tls,
                DownstreamProtocol::Tcp,
            ] {
                let Some(port) = PortNumber::new(port) else {
                    return;
                };
                let query = Query {
                    host: &authority.host,
                    port,
                    downstream,
                    branch: None,
                    subset: None,
                };
                let ours = is_ours(&authority.host);
                match table.decide(&query).action {
                    Action::Originate(cluster) => {
                        assert!(ours && cluster.tls.is_some());
                        assert_ne!(downstream, DownstreamProtocol::Tls);
                    }
                    Action::Passthrough(_) => {
                        assert!(ours && downstream == DownstreamProtocol::Tls)
                    }
                    Action::Forward(_) | Action::Weighted | Action::Respond(_) => {
                        panic!("no rule says so")
                    }
                    Action::LeaveAlone(_) => {
                        assert!(outbound == "open" && (!ours || port.get() == 81));
                    }
                    Action::Reject(_) => assert!(outbound == "closed" || ours),
                }
            }
        }
    }
});
