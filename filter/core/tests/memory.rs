//! What loading takes at its height, which a VM never gives back, and what stays of it.

#[path = "../../policy/tests/counting/mod.rs"]
mod counting;

use std::collections::BTreeMap;

use egress_filter::load_for;
use serde_json::{Value, json};

/// An entry and a rule for each host.
fn config(hosts: usize) -> Vec<u8> {
    let document = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let resources: Vec<Value> = (0..hosts)
        .flat_map(|n| {
            let host = format!("host-{n}.bench.example.com");
            let ports = json!([
                {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
                {"number": 443, "name": "tls", "protocol": "TLS"},
            ]);
            let entry = json!({"hosts": [host], "ports": ports, "resolution": "DNS"});
            let settings = json!([{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}]);
            let rule = json!({"host": host, "trafficPolicy": {"portLevelSettings": settings}});
            [
                document("ServiceEntry", &host, entry),
                document("DestinationRule", &host, rule),
            ]
        })
        .collect();
    let config = json!({"schema": 1, "listener": {"port": 80}, "resources": resources});
    let mut text = config.to_string().into_bytes();
    // What it has to spare would count as what loading gives back.
    text.shrink_to_fit();
    text
}

#[test]
fn loading_takes_little_more_than_the_text_and_keeps_less() {
    const HOSTS: usize = 10_000;
    let json = config(HOSTS);
    let text = json.len();
    counting::forget_most();
    let before = counting::bytes().0 - text;
    let loaded = load_for(json, Some(BTreeMap::new())).unwrap();
    let (now, most) = counting::bytes();
    assert_eq!(loaded.table.len(), HOSTS);
    let (kept, most) = ((now - before) / HOSTS, (most - before) / HOSTS);
    // In bytes a host. With pointers of eight bytes; a VM has those of four.
    assert!(kept < 600, "{kept} bytes a host stay");
    assert!(
        most < text / HOSTS + 1_300,
        "{most} bytes a host at its height"
    );
}
