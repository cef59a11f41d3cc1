//! ServiceEntries with a `workloadSelector`: their endpoints are the WorkloadEntries with its labels.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect should stop"
)]

use egress_policy::{CompileOptions, DownstreamProtocol, Parser, PolicyTable, PortNumber, Query};
use serde_json::{Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn document(kind: &str, name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    json!({"apiVersion": "networking.istio.io/v1", "kind": kind,
           "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn entry(resolution: &str) -> Value {
    let spec = json!({
        "hosts": ["api.example.com"], "resolution": resolution,
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8000}],
        "workloadSelector": {"labels": {"app": "ext"}},
    });
    document("ServiceEntry", "api", spec)
}

fn workload(name: &str, address: &str) -> Value {
    let spec = json!({"address": address, "labels": {"app": "ext", "version": "1"}});
    document("WorkloadEntry", name, spec)
}

fn with(mut workload: Value, pointer: &str, value: Value) -> Value {
    let (at, field) = pointer.rsplit_once('/').unwrap();
    workload.pointer_mut(at).unwrap()[field] = value;
    workload
}

/// What becomes of a request, and all that is said.
fn ask(documents: &[Value]) -> (String, Vec<String>) {
    let mut parser = Parser::new();
    documents.iter().for_each(|it| parser.document(it));
    let (resources, problems) = parser.finish();
    let compiled = PolicyTable::compile_with_errors(&resources, &CompileOptions::default());
    let said = problems.0.iter().chain(&compiled.problems.0);
    let said = said.map(ToString::to_string).collect();
    let decision = compiled.table.decide(&Query {
        host: "api.example.com",
        port: PortNumber::HTTP,
        downstream: DownstreamProtocol::Http,
        subset: None,
        branch: None,
    });
    let endpoints = decision.endpoints().unwrap_or_default();
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|it| {
            format!("{it} {} {}", it.weight, it.locality)
                .trim_end()
                .to_owned()
        })
        .collect();
    let text = match decision.reason() {
        Some(reason) => reason.as_str().to_owned(),
        None => format!("{} {}", decision.action.as_str(), endpoints.join(", ")),
    };
    (text, said)
}

fn quietly(documents: &[Value]) -> String {
    let (text, said) = ask(documents);
    assert_eq!(said, [""; 0]);
    text
}

#[test]
fn the_workloads_that_are_selected_are_dialled() {
    let ports = json!({"http": 8080, "other": 9});
    let documents = [
        entry("STATIC"),
        with(workload("a", "192.0.2.7"), "/spec/ports", ports),
        workload("b", "192.0.2.8"),
        with(
            workload("c", "192.0.2.9"),
            "/spec/labels",
            json!({"app": "other"}),
        ),
        workload("other/d", "192.0.2.10"),
    ];
    // A port by its name, or the entry's target port.
    assert_eq!(
        quietly(&documents),
        "forward 192.0.2.7:8080 1, 192.0.2.8:8000 1"
    );
}

#[test]
fn weight_and_locality_come_with_the_workload() {
    let mut with_more = workload("a", "192.0.2.7");
    with_more["spec"]["weight"] = json!(5);
    with_more["spec"]["locality"] = json!("eu/west");
    with_more["spec"]["network"] = json!("n");
    let documents = [entry("STATIC"), with_more];
    assert_eq!(quietly(&documents), "forward 192.0.2.7:8000 5 eu/west");
}

#[test]
fn the_labels_of_the_resource_count_first() {
    let labels = |app: &str| json!({"app": app});
    let documents = [
        entry("STATIC"),
        with(
            workload("a", "192.0.2.7"),
            "/metadata/labels",
            labels("other"),
        ),
        with(
            with(workload("b", "192.0.2.8"), "/spec/labels", json!({})),
            "/metadata/labels",
            labels("ext"),
        ),
    ];
    assert_eq!(quietly(&documents), "forward 192.0.2.8:8000 1");
}

#[test]
fn names_are_looked_up_with_dns_only() {
    let name = workload("a", "server.example.net");
    let address = workload("b", "192.0.2.8");
    assert_eq!(
        quietly(&[entry("DNS"), name.clone(), address.clone()]),
        "forward server.example.net:8000 1, 192.0.2.8:8000 1"
    );
    assert_eq!(
        quietly(&[entry("DNS_ROUND_ROBIN"), name.clone(), address.clone()]),
        "forward server.example.net:8000 1"
    );
    let (text, said) = ask(&[entry("STATIC"), name, address]);
    assert_eq!(text, "forward 192.0.2.8:8000 1");
    assert_eq!(
        said,
        [
            "warning: spec.address: ServiceEntry default/api selects it and has `resolution: STATIC`, which takes addresses and no names: it is left out there (WorkloadEntry default/a, document 2); give the address, or set `resolution: DNS` in the ServiceEntry"
        ]
    );
}

#[test]
fn a_selector_that_nothing_answers_to_refuses_its_hosts() {
    for documents in [
        vec![entry("STATIC")],
        vec![entry("DNS")],
        vec![entry("STATIC"), workload("other/a", "192.0.2.7")],
    ] {
        let (text, said) = ask(&documents);
        assert_eq!(text, "not_read");
        assert_eq!(
            said,
            [
                "warning: spec.workloadSelector: no WorkloadEntry of namespace `default` is here with labels app=ext, and pods are known to a cluster only: its hosts are refused (`not_read`) (ServiceEntry default/api, document 1); give the WorkloadEntries with the rules, or list the addresses in `endpoints`"
            ]
        );
    }
}

#[test]
fn a_workload_that_nobody_selects_says_nothing() {
    let mut documents = [entry("STATIC"), workload("a", "192.0.2.7")];
    let spec = documents[0]["spec"].as_object_mut().unwrap();
    spec.remove("workloadSelector");
    spec.insert("endpoints".to_owned(), json!([{"address": "192.0.2.1"}]));
    assert_eq!(quietly(&documents), "forward 192.0.2.1:8000 1");
}

#[test]
fn the_order_of_documents_decides_nothing() {
    let documents = [
        workload("b", "192.0.2.8"),
        entry("STATIC"),
        workload("a", "192.0.2.7"),
    ];
    let mut turned = documents.clone();
    turned.reverse();
    assert_eq!(quietly(&documents), quietly(&turned));
}

#[test]
fn every_mistake_in_a_workload_is_told() {
    let of = |pointer: &str, value: Value| {
        let (_, said) = ask(&[
            entry("DNS"),
            with(workload("a", "192.0.2.7"), pointer, value),
        ]);
        said[0].clone()
    };
    for (said, begins) in [
        (
            of("/spec/address", json!("")),
            "error: spec.address: address is required",
        ),
        (
            of("/spec/address", json!("http://a")),
            "error: spec.address: ",
        ),
        (
            of("/spec/address", json!("unix://a")),
            "error: spec.address: a is not an absolute path",
        ),
        (
            of("/spec/address", json!(7)),
            "error: spec.address: expected a string",
        ),
        (
            of("/spec/ports", json!({"http": 0})),
            "error: spec.ports.http: 0 is out of range",
        ),
        (
            of("/spec/ports", json!({"-": 1})),
            "error: spec.ports.-: invalid port name: -",
        ),
        (
            of("/spec/ports", json!([80])),
            "error: spec.ports: expected an object",
        ),
        (of("/spec/weight", json!(-1)), "error: spec.weight: "),
        (
            of("/spec/labels", json!({"a": 1})),
            "error: spec.labels.a: expected a string",
        ),
        (
            of("/spec/adress", json!("a")),
            "error: spec.adress: unknown field `adress`",
        ),
        (of("/metadata/name", json!("A b")), "error: metadata.name: "),
        (
            of("/apiVersion", json!("networking.istio.io/v2")),
            "error: apiVersion: unknown version",
        ),
    ] {
        assert!(said.starts_with(begins), "{said}\n{begins}");
    }
    let mut unix = workload("a", "unix:///run/a");
    unix["spec"]["ports"] = json!({"http": 80});
    let (_, said) = ask(&[entry("STATIC"), unix]);
    assert!(
        said[0].starts_with("error: spec.ports: unix endpoint"),
        "{said:?}"
    );
    let (_, said) = ask(&[
        entry("STATIC"),
        workload("a", "192.0.2.7"),
        workload("a", "192.0.2.8"),
    ]);
    assert!(
        said[0].contains("WorkloadEntry default/a is defined twice"),
        "{said:?}"
    );
    // What another network leads to is left out.
    let mut far = workload("a", "");
    far["spec"]["network"] = json!("n");
    let (text, said) = ask(&[entry("STATIC"), far]);
    assert_eq!(text, "not_read");
    assert!(said[0].starts_with("warning: spec.network: "), "{said:?}");
}
