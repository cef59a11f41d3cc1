//! A resource of a cluster, and how one is made.

use egress_policy::ResourceId;
use serde_json::{Map, Value, json};

use crate::xds::Options;
use egress_rules::Rules;

/// One resource of a cluster.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// For example `WasmPlugin`.
    pub kind: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// All of it.
    pub value: Value,
}

/// The annotation in which Kubernetes keeps what a resource is for.
const DESCRIPTION: &str = "kubernetes.io/description";

impl Manifest {
    /// Says what a resource is for.
    pub(super) fn described(mut self, purpose: &str) -> Self {
        let meta = self.value.get_mut("metadata");
        if let Some(meta) = meta.and_then(Value::as_object_mut) {
            meta.insert("annotations".to_owned(), json!({DESCRIPTION: purpose}));
        }
        self
    }
}

/// Makes a resource of ours.
pub(super) fn manifest(
    (api_version, kind): (&str, &str),
    name: &str,
    options: &Options,
    body: Map<String, Value>,
) -> Manifest {
    let namespace = &options.proxy.namespace;
    let mut value = json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
    });
    if let Some(fields) = value.as_object_mut() {
        fields.extend(body);
    }
    Manifest {
        kind: kind.to_owned(),
        namespace: namespace.clone(),
        name: name.to_owned(),
        value,
    }
}

/// Returns fields as an object's.
pub(super) fn fields<const N: usize>(all: [(&str, Option<Value>); N]) -> Map<String, Value> {
    all.into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
}

/// Returns the documents of a kind as they were given.
pub(super) fn given(rules: &Rules, kind: &str) -> Vec<Manifest> {
    let of_kind = |value: &Value| value.get("kind").and_then(Value::as_str) == Some(kind);
    rules
        .given()
        .into_iter()
        .filter(of_kind)
        .map(|mut value| {
            let id = id_of(&value);
            if let Some(Value::Object(meta)) = value.get_mut("metadata") {
                meta.insert("namespace".to_owned(), json!(&*id.namespace));
            }
            Manifest {
                kind: kind.to_owned(),
                namespace: id.namespace.to_string(),
                name: id.name.to_string(),
                value,
            }
        })
        .collect()
}

/// Returns which resource a document is, by its metadata.
pub(super) fn id_of(value: &Value) -> ResourceId {
    let text = |key: &str| {
        let found = value.get("metadata").and_then(|meta| meta.get(key));
        found.and_then(Value::as_str)
    };
    ResourceId {
        kind: "",
        namespace: text("namespace")
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or(egress_policy::DEFAULT_NAMESPACE)
            .into(),
        name: text("name").unwrap_or_default().into(),
    }
}
