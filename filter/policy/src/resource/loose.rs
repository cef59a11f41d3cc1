//! Reads a few fields of a document, whatever else stands there: for kinds whose whole is checked before, in
//! `egress-rules`, and whose text would be most of the wasm module.

use crate::host::HostPattern;
use crate::node::Node;
use crate::port::PortNumber;
use crate::problem::Origin;
use crate::resource::{DEFAULT_NAMESPACE, Meta, Notes, ResourceId};

/// A reader: what it returns is a resource, given what it has in common with all, and its `spec`.
pub(super) fn meta(kind: &'static str, origin: Origin, metadata: Option<&Node<'_>>) -> Meta {
    let own = |key| metadata.and_then(|metadata| text(metadata, key));
    let namespace = own("namespace").filter(|namespace| !namespace.is_empty());
    Meta {
        id: ResourceId {
            kind,
            namespace: namespace.unwrap_or(DEFAULT_NAMESPACE).into(),
            name: own("name").unwrap_or_default().into(),
        },
        origin,
        created: own("creationTimestamp").unwrap_or_default().to_owned(),
        labels: Vec::new(),
        notes: Notes::default(),
    }
}

/// Completes a short name as Istio does.
///
/// Source: istio/istio `pilot/pkg/model/config.go`, `ResolveShortnameToFQDN`.
pub(super) fn long(name: &str, namespace: &str) -> String {
    match name.is_empty() || name.contains('.') || name.starts_with('*') {
        true => name.to_owned(),
        false => format!("{name}.{namespace}.svc.cluster.local"),
    }
}

pub(super) fn pattern(text: &str) -> Option<HostPattern> {
    HostPattern::parse(text).ok()
}

pub(super) fn at<'n>(node: &'n Node<'_>, key: &str) -> Option<&'n Node<'n>> {
    match node {
        Node::Object(fields) => fields.get(key).filter(|value| **value != Node::Null),
        _ => None,
    }
}

pub(super) fn as_text<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    match node {
        Node::Text(text) => Some(text),
        _ => None,
    }
}

pub(super) fn text<'n>(node: &'n Node<'_>, key: &str) -> Option<&'n str> {
    at(node, key).and_then(as_text)
}

pub(super) fn list<'n>(node: &'n Node<'_>, key: &str) -> &'n [Node<'n>] {
    match at(node, key) {
        Some(Node::List(items)) => items,
        _ => &[],
    }
}

pub(super) fn texts(node: &Node<'_>, key: &str) -> Vec<String> {
    let texts = list(node, key).iter().filter_map(as_text);
    texts.map(str::to_owned).collect()
}

pub(super) fn number(node: &Node<'_>, key: &str) -> Option<u64> {
    match at(node, key) {
        Some(Node::Number(number)) => number.as_u64(),
        _ => None,
    }
}

/// Reads a port that is not 0.
pub(super) fn port(node: &Node<'_>, key: &str) -> Option<PortNumber> {
    let number = u16::try_from(number(node, key)?).ok()?;
    PortNumber::new(number)
}

pub(super) fn labels(node: &Node<'_>, key: &str) -> Vec<(String, String)> {
    match at(node, key) {
        Some(Node::Object(fields)) => {
            let labels = fields
                .iter()
                .filter_map(|(key, value)| Some((key.to_owned(), as_text(value)?.to_owned())));
            labels.collect()
        }
        _ => Vec::new(),
    }
}

/// Whether an object has any field but these.
pub(super) fn has_others(node: &Node<'_>, known: &[&str]) -> bool {
    match node {
        Node::Object(fields) => fields.iter().any(|(key, _)| !known.contains(&key)),
        _ => true,
    }
}
