//! `Secret` and `ConfigMap` documents that stand among the rules.
//!
//! They are taken out before anything else reads the rules. So their values cannot get into a message, a report or the
//! filter's configuration.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use egress_policy::{DEFAULT_NAMESPACE, FieldPath, Origin, Segment, Severity};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::diagnostic::Diagnostic;
use crate::document::resources;
use crate::yaml::{Document, Location};

/// What a certificate and its key are called in a credential, as in Istio.
///
/// Source: istio/istio `pilot/pkg/credentials/kube/secrets.go`, `GenericScrtCert` and those after it.
pub const PAIR_KEYS: [&str; 4] = ["cert", "key", "tls.crt", "tls.key"];
/// What the authorities are called.
pub const TRUST_KEYS: [&str; 4] = ["cacert", "crl", "ca.crt", "ca.crl"];

/// The Secrets and ConfigMaps among the rules.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    /// The Secrets.
    pub secrets: Vec<SecretDocument>,
    /// The ConfigMaps.
    pub config_maps: Vec<SecretDocument>,
}

/// A Secret or a ConfigMap.
#[derive(Clone)]
pub struct SecretDocument {
    /// `Secret` or `ConfigMap`.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The file that it stands in.
    pub file: String,
    /// Where it begins.
    pub at: Location,
    /// Which document it is.
    pub origin: Origin,
    /// What it holds under the keys that mean something here.
    pub parts: BTreeMap<&'static str, SecretPart>,
    /// The place of `data`, or of what should have it.
    pub data: (String, Location),
}

/// One value of a Secret.
#[derive(Clone)]
pub struct SecretPart {
    /// What it is.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The field, as messages name it.
    pub path: String,
    /// Where it stands.
    pub at: Location,
}

impl SecretDocument {
    /// Returns what messages call it.
    pub fn id(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl fmt::Debug for SecretDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(self.kind).finish_non_exhaustive()
    }
}

/// A document's Secrets and ConfigMaps, and what is wrong with them.
#[derive(Debug, Default)]
pub(crate) struct Extracted {
    pub(crate) documents: Documents,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// All Secrets of version `v1`, broken ones too.
    pub(crate) secrets: Vec<Origin>,
}

impl Extracted {
    /// Takes the Secrets and ConfigMaps out of a document, and leaves in their place what says only that they
    /// were there: every other resource keeps its position.
    pub(crate) fn take(&mut self, index: usize, file: &str, document: &mut Document) {
        let items: Vec<Option<usize>> = resources(&document.value).map(|(item, _)| item).collect();
        for item in items {
            self.one(index, item, file, document);
        }
    }

    fn one(&mut self, index: usize, item: Option<usize>, file: &str, document: &mut Document) {
        let way = match item {
            Some(item) => vec![Segment::Key("items".to_owned()), Segment::Index(item)],
            None => Vec::new(),
        };
        let value = match item {
            Some(item) => document
                .value
                .get_mut("items")
                .and_then(|list| list.get_mut(item)),
            None => Some(&mut document.value),
        };
        let Some(value) = value else { return };
        let kind = match text(value, "kind") {
            Some("Secret") => "Secret",
            Some("ConfigMap") => "ConfigMap",
            _ => return,
        };
        let version = value.get("apiVersion").cloned();
        let mut stub = json!({"kind": kind});
        if let (Some(fields), Some(version @ Value::String(_))) = (stub.as_object_mut(), &version) {
            fields.insert("apiVersion".to_owned(), version.clone());
        }
        let whole = std::mem::replace(value, stub);
        if version.as_ref().and_then(Value::as_str) != Some("v1") {
            return;
        }
        let origin = Origin {
            document: index,
            item,
        };
        if kind == "Secret" {
            self.secrets.push(origin);
        }
        let mut reader = Reader {
            kind,
            way,
            file,
            document,
            resource: None,
            diagnostics: Vec::new(),
        };
        let held = reader.read(&whole, origin);
        let diagnostics = reader.diagnostics;
        if kind == "Secret" {
            // A ConfigMap may be about anything; what is wrong with it is its reader's business.
            self.diagnostics.extend(diagnostics);
            self.documents.secrets.extend(held);
        } else {
            self.documents.config_maps.extend(held);
        }
    }

    /// Reports Secrets of one namespace and name: the order of files must not decide between them.
    pub(crate) fn twice(&mut self) {
        for (at, later) in self.documents.secrets.iter().enumerate() {
            let earlier = self.documents.secrets.iter().take(at);
            let first = earlier
                .rev()
                .find(|held| held.namespace == later.namespace && held.name == later.name);
            if let Some(first) = first {
                self.diagnostics.push(Diagnostic {
                    severity: Severity::Error,
                    id: None,
                    file: later.file.clone(),
                    place: later.at,
                    path: match later.origin.item {
                        Some(item) => format!("items[{item}].metadata.name"),
                        None => "metadata.name".to_owned(),
                    },
                    what: format!(
                        "{} is defined twice, first at {}:{}",
                        later.id(),
                        first.file,
                        first.at.line
                    ),
                    resource: Some(later.id()),
                    hint: Some("remove one of the two, or give it another name".to_owned()),
                });
            }
        }
    }
}

struct Reader<'d> {
    kind: &'static str,
    way: Vec<Segment>,
    file: &'d str,
    document: &'d Document,
    resource: Option<String>,
    diagnostics: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn read(&mut self, value: &Value, origin: Origin) -> Option<SecretDocument> {
        let meta = value.get("metadata").unwrap_or(&Value::Null);
        let namespace = text(meta, "namespace")
            .filter(|text| !text.is_empty())
            .unwrap_or(DEFAULT_NAMESPACE);
        let Some(name) = text(meta, "name").filter(|text| !text.is_empty()) else {
            // Kubernetes will give it a name, and no rule can know which.
            if text(meta, "generateName").is_some() {
                return None;
            }
            self.error(
                &["metadata", "name"],
                "is required",
                "give the name that rules call it by",
            );
            return None;
        };
        self.resource = Some(format!("{} {namespace}/{name}", self.kind));
        let mut parts = BTreeMap::new();
        for (field, plain) in [("data", self.kind == "ConfigMap"), ("stringData", true)] {
            let values = match value.get(field) {
                None | Some(Value::Null) => continue,
                Some(Value::Object(values)) => values,
                Some(_) => {
                    self.error(
                        &[field],
                        "expected an object",
                        "give a key and a value on each line",
                    );
                    continue;
                }
            };
            if field == "stringData" && self.kind == "ConfigMap" {
                continue;
            }
            // What `stringData` has wins, as in Kubernetes.
            parts.extend(self.values(field, values, plain));
        }
        let empty = Location::START;
        let data = if value.get("data").is_none() && value.get("stringData").is_some() {
            "stringData"
        } else {
            "data"
        };
        let (path, place) = self.place(&[data]);
        Some(SecretDocument {
            kind: self.kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            file: self.file.to_owned(),
            at: self.place(&[]).1.max(empty),
            origin,
            parts,
            data: (path, place),
        })
    }

    fn values(
        &mut self,
        field: &str,
        values: &Map<String, Value>,
        plain: bool,
    ) -> Vec<(&'static str, SecretPart)> {
        let mut found = Vec::new();
        for key in PAIR_KEYS.into_iter().chain(TRUST_KEYS) {
            let bytes = match values.get(key) {
                None => continue,
                Some(Value::Null) => Zeroizing::default(),
                Some(Value::String(text)) if plain => Zeroizing::new(text.clone().into_bytes()),
                Some(Value::String(text)) => match decoded(text) {
                    Some(bytes) => bytes,
                    None => {
                        let hint = if text.trim_start().starts_with("-----BEGIN") {
                            "PEM as it is stands under `stringData`; under `data` it is base64 of that"
                        } else {
                            "make it with `base64 -w0 FILE`, or let `kubectl get secret -o yaml` print it"
                        };
                        self.error(&[field, key], "is not base64", hint);
                        continue;
                    }
                },
                Some(_) => {
                    self.error(&[field, key], "expected a string", "put it in quotes");
                    continue;
                }
            };
            let (path, at) = self.place(&[field, key]);
            found.push((key, SecretPart { bytes, path, at }));
        }
        found
    }

    fn place(&self, keys: &[&str]) -> (String, Location) {
        let mut path = FieldPath(self.way.clone());
        path.0
            .extend(keys.iter().map(|key| Segment::Key((*key).to_owned())));
        let place = self.document.place(&path, false);
        (path.to_string(), place)
    }

    fn error(&mut self, keys: &[&str], what: &str, hint: &str) {
        let (path, place) = self.place(keys);
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            id: None,
            file: self.file.to_owned(),
            place,
            path,
            what: what.to_owned(),
            resource: self.resource.clone(),
            hint: Some(hint.to_owned()),
        });
    }
}

/// Reads base64 as Kubernetes does: line breaks in it are nothing.
fn decoded(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text: Zeroizing<String> =
        Zeroizing::new(text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect());
    STANDARD.decode(text.as_bytes()).ok().map(Zeroizing::new)
}

fn text<'v>(value: &'v Value, field: &str) -> Option<&'v str> {
    value.get(field).and_then(Value::as_str)
}
