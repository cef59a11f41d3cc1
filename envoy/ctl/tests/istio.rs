//! What `render istio` prints is what Istio's API takes: its published types and, where they lie beside the checkout,
//! its schemas.
//!
//! The golden outputs of `cli/istio-*` are looked at; that they are what is printed, `cli.rs` proves. Rules that schemas
//! state in CEL are not evaluated.
#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect should stop"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use egress_rules::{is_ours, yaml};
use istio_api_rs::extensions::v1alpha1::wasm_plugin::WasmPlugin;
use istio_api_rs::networking::v1::destination_rule::DestinationRule;
use istio_api_rs::networking::v1::service_entry::ServiceEntry;
use istio_api_rs::networking::v1alpha3::envoy_filter::EnvoyFilter;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde_json::{Value, json};

/// The folder with Istio's CustomResourceDefinitions, a file for each kind.
const CRDS: &str = "shared/reference/istio-crds";

fn documents(text: &str) -> Vec<Value> {
    let documents = yaml::read(text, is_ours).unwrap();
    documents
        .into_iter()
        .map(|document| document.value)
        .collect()
}

/// All resources of all golden outputs, each with the file that it stands in.
fn rendered() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut all = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("istio-") || !name.ends_with(".out") || name == "istio-help.out" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        all.extend(
            documents(&text)
                .into_iter()
                .map(|value| (name.clone(), value)),
        );
    }
    all
}

/// Reads a resource as its type and writes it again: what the type does not know is lost on the way.
fn through<T: serde::de::DeserializeOwned + serde::Serialize>(value: &Value) -> Value {
    match serde_json::from_value::<T>(value.clone()) {
        Ok(typed) => serde_json::to_value(typed).unwrap(),
        Err(error) => json!(error.to_string()),
    }
}

fn retyped(value: &Value) -> Value {
    match value["kind"].as_str().unwrap() {
        "WasmPlugin" => through::<WasmPlugin>(value),
        "EnvoyFilter" => through::<EnvoyFilter>(value),
        "DestinationRule" => through::<DestinationRule>(value),
        "ServiceEntry" => through::<ServiceEntry>(value),
        "Role" => through::<Role>(value),
        "RoleBinding" => through::<RoleBinding>(value),
        kind => panic!("no type for {kind}"),
    }
}

/// Writes a TrafficExtension as the WasmPlugin that it takes the place of, for the types are older than it.
fn as_wasm_plugin(extension: &Value) -> Value {
    let mut plugin = extension.clone();
    plugin["kind"] = json!("WasmPlugin");
    let spec = plugin["spec"].as_object_mut().unwrap();
    let wasm = spec.remove("wasm").unwrap();
    spec.extend(wasm.as_object().unwrap().clone());
    plugin
}

#[test]
fn istios_types_know_every_field() {
    let mut kinds = BTreeMap::<String, usize>::new();
    for (file, value) in rendered() {
        let kind = value["kind"].as_str().unwrap().to_owned();
        let value = match kind.as_str() {
            "TrafficExtension" => as_wasm_plugin(&value),
            _ => value,
        };
        assert_eq!(retyped(&value), value, "{file}");
        *kinds.entry(kind).or_default() += 1;
    }
    let kinds: Vec<&str> = kinds.keys().map(String::as_str).collect();
    let all = [
        "DestinationRule",
        "EnvoyFilter",
        "Role",
        "RoleBinding",
        "ServiceEntry",
        "TrafficExtension",
        "WasmPlugin",
    ];
    assert_eq!(kinds, all);
}

#[test]
fn a_slip_does_not_pass() {
    let (_, plugin) = rendered()
        .into_iter()
        .find(|(_, value)| value["kind"] == "WasmPlugin")
        .unwrap();
    for (path, slip) in [
        ("/spec", json!({"failStragety": "FAIL_CLOSE"})),
        ("/spec", json!({"failStrategy": "FAIL_SHUT"})),
        ("/spec/match/0", json!({"port": 80})),
    ] {
        let mut wrong = plugin.clone();
        let fields = wrong.pointer_mut(path).unwrap().as_object_mut().unwrap();
        fields.extend(slip.as_object().unwrap().clone());
        assert_ne!(retyped(&wrong), wrong, "{slip}");
        if let Some(folder) = crds() {
            let errors = against(&folder, &wrong);
            assert!(!errors.is_empty(), "{slip}");
        }
    }
}

/// Where the schemas are: what `EGRESS_ISTIO_CRDS` names, or beside the checkout.
fn crds() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("EGRESS_ISTIO_CRDS") {
        let named = PathBuf::from(named);
        assert!(named.is_dir(), "EGRESS_ISTIO_CRDS names no folder");
        return Some(named);
    }
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    above
        .map(|folder| folder.join(CRDS))
        .find(|folder| folder.is_dir())
}

/// Returns what the schema of a resource's kind and version says against it.
fn against(folder: &Path, value: &Value) -> Vec<String> {
    let kind = value["kind"].as_str().unwrap();
    let path = folder.join(format!("{}.yaml", kind.to_lowercase()));
    let crd = documents(&fs::read_to_string(path).unwrap()).remove(0);
    let version = value["apiVersion"]
        .as_str()
        .unwrap()
        .rsplit('/')
        .next()
        .unwrap();
    let versions = crd["spec"]["versions"].as_array().unwrap();
    let of_version = versions.iter().find(|it| it["name"] == version);
    let schema = of_version.unwrap_or_else(|| panic!("{kind} has no {version}"));
    let mut schema = schema["schema"]["openAPIV3Schema"]["properties"]["spec"].clone();
    deny_unknown(&mut schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors = validator.iter_errors(&value["spec"]);
    errors
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

/// The API server drops fields that it does not know; here they are errors.
fn deny_unknown(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    if fields.contains_key("properties")
        && fields.get("x-kubernetes-preserve-unknown-fields") != Some(&json!(true))
    {
        fields.insert("additionalProperties".to_owned(), json!(false));
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(deny_unknown);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(key) {
            deny_unknown(inner);
        }
    }
}

#[test]
fn istios_schemas_have_nothing_against_it() {
    let Some(folder) = crds() else {
        eprintln!(
            "not compared with Istio's schemas: there is no {CRDS} beside the checkout, and EGRESS_ISTIO_CRDS names none"
        );
        return;
    };
    for (file, value) in rendered() {
        let api = value["apiVersion"].as_str().unwrap();
        if api.contains("istio.io/") {
            assert_eq!(
                against(&folder, &value),
                [""; 0],
                "{file} {}",
                value["kind"]
            );
        }
    }
}

#[test]
fn a_name_is_given_to_one_resource() {
    let mut files = BTreeMap::<String, Vec<String>>::new();
    for (file, value) in rendered() {
        let meta = &value["metadata"];
        let id = format!("{} {}/{}", value["kind"], meta["namespace"], meta["name"]);
        files.entry(file).or_default().push(id);
    }
    for (file, mut ids) in files {
        let all = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), all, "{file}: {ids:?}");
    }
}

/// What istiod hands the filter loads there: of `pluginConfig` it makes JSON, with keys in its own order.
#[test]
fn the_filter_loads_what_istio_hands_it() {
    let mut seen = 0;
    for (file, value) in rendered() {
        let spec = &value["spec"];
        let config = match value["kind"].as_str().unwrap() {
            "WasmPlugin" => &spec["pluginConfig"],
            "TrafficExtension" => &spec["wasm"]["pluginConfig"],
            _ => continue,
        };
        let loaded = egress_filter::load(config.to_string().as_bytes());
        let loaded = loaded.unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(!loaded.headers_stripped, "{file}: Istio strips no headers");
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
}

fn egressctl(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_egressctl"))
        .args([
            "render",
            "istio",
            "-f",
            "rules.yaml",
            "--way",
            "filter",
            "--url",
        ])
        .arg("oci://registry.example.com/egress:1.0")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn a_folder_is_written_and_then_compared() {
    let folder = tempfile::tempdir().unwrap();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/page.yaml");
    fs::copy(rules, folder.path().join("rules.yaml")).unwrap();
    let run = |arguments: &[&str]| {
        let output = egressctl(folder.path(), arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (status, absent) = run(&["--diff", "gitops"]);
    assert_eq!(status, 1);
    assert!(
        absent.contains("+++ gitops/wasmplugin.default.egress.yaml"),
        "{absent}"
    );

    let files = [
        "destinationrule.default.edition-cnn-com.yaml",
        "envoyfilter.default.egress.yaml",
        "serviceentry.default.edition-cnn-com.yaml",
        "wasmplugin.default.egress.yaml",
    ];
    let written: String = files
        .iter()
        .map(|name| format!("gitops/{name}\n"))
        .collect();
    assert_eq!(run(&["--output-folder", "gitops"]), (0, written));
    // What others keep there is left alone.
    fs::write(folder.path().join("gitops/other.yaml"), "kind: Namespace\n").unwrap();
    assert_eq!(run(&["--diff", "gitops"]), (0, String::new()));

    let (status, changed) = run(&["--diff", "gitops", "--phase", "STATS"]);
    assert_eq!(status, 1);
    assert!(
        changed.starts_with("--- gitops/wasmplugin.default.egress.yaml\n"),
        "{changed}"
    );
    assert!(changed.contains("\n+  phase: STATS\n"), "{changed}");
    let (status, renamed) = run(&["--diff", "gitops", "--name", "cnn"]);
    assert_eq!(status, 1);
    assert!(renamed.contains("--- gitops/wasmplugin.default.egress.yaml\n+++ /dev/null\n"));
}

#[test]
fn many_hosts_are_patched_by_several_envoy_filters() {
    let folder = tempfile::tempdir().unwrap();
    let hosts: Vec<String> = (0..1000).map(|at| format!("h{at}.example.com")).collect();
    let meta = json!({"name": "many", "namespace": "default"});
    let (version, resolution) = ("networking.istio.io/v1", "DNS");
    let port = json!({"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443});
    let rules = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": version, "kind": "ServiceEntry", "metadata": meta,
            "spec": {"hosts": hosts, "ports": [port], "resolution": resolution}},
        {"apiVersion": version, "kind": "DestinationRule", "metadata": meta,
            "spec": {"host": "*.example.com", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}},
    ]});
    fs::write(folder.path().join("rules.yaml"), rules.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_egressctl"))
        .args(["render", "istio", "-o", "json", "-f", "rules.yaml"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (mut names, mut patches) = (Vec::new(), Vec::new());
    for item in list["items"].as_array().unwrap() {
        if item["kind"] == "EnvoyFilter" {
            names.push(item["metadata"]["name"].as_str().unwrap());
            assert!(item.to_string().len() < 1_000_000);
            patches.extend(item["spec"]["configPatches"].as_array().unwrap());
        }
    }
    assert_eq!(names, ["egress", "egress-2", "egress-3"]);
    for host in hosts {
        let name = format!("outbound|80||{host}");
        let of_host = patches.iter();
        let of_host = of_host.filter(|patch| patch["match"]["cluster"]["name"] == *name);
        assert_eq!(of_host.count(), 2, "{host}");
    }
}
