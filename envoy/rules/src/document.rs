//! A document's resources: which are ours, and which of them the filter gets.

use std::collections::BTreeMap;

use egress_policy::fields::{Cursor, Field, Report};
use egress_policy::node::Node;
use egress_policy::reading::read_meta;
use egress_policy::{Meta, Notes, Origin, Problem};
use serde_json::{Map, Value};

/// Returns the resources of a document, those of a `List` each with its index in it.
pub fn resources(document: &Value) -> impl Iterator<Item = (Option<usize>, &Value)> {
    let is_list = kind(document).is_some_and(egress_policy::is_list);
    let items = document.get("items").and_then(Value::as_array);
    let items = items.filter(|_| is_list);
    let alone = items.is_none().then_some((None, document));
    let items = items.into_iter().flatten().enumerate();
    alone
        .into_iter()
        .chain(items.map(|(index, item)| (Some(index), item)))
}

/// Gives resources with a `generateName` a name, for the cluster has not done so yet and the filter tells resources apart
/// by their names. It is the one that the engine would give.
pub(crate) fn name_generated(value: &mut Value, document: usize) {
    let name = |resource: &mut Value, item: usize| {
        let ours = is_ours(resource);
        let Some(Value::Object(meta)) = resource.get_mut("metadata").filter(|_| ours) else {
            return;
        };
        let named = meta.get("name").is_some_and(|name| !name.is_null());
        let prefix = meta.get("generateName").and_then(Value::as_str);
        if let Some(prefix) = prefix.filter(|prefix| !named && !prefix.is_empty()) {
            let name = format!("{prefix}{document}-{item}");
            meta.insert("name".to_owned(), name.into());
        }
    };
    let list = kind(value).is_some_and(egress_policy::is_list);
    match value.get_mut("items") {
        Some(Value::Array(items)) if list => {
            for (item, resource) in items.iter_mut().enumerate() {
                name(resource, item);
            }
        }
        _ => name(value, 0),
    }
}

/// Reads a resource whose `spec` is read strictly, and tells everything that is wrong with it.
pub(crate) fn read_spec<T>(
    resource: &Value,
    origin: Origin,
    kind: &'static str,
    spec: impl FnOnce(Field<'_>, Meta) -> Option<T>,
) -> (Option<T>, Vec<Problem>) {
    let report = Report::new(origin);
    let node = Node::from(resource);
    let list = Cursor::Key(&Cursor::Root, "items");
    let cursor = match origin.item {
        Some(item) => Cursor::Index(&list, item),
        None => Cursor::Root,
    };
    let field = Field {
        report: &report,
        cursor,
        value: &node,
    };
    let read = field.fields().and_then(|root| {
        root.ignore(&["apiVersion", "kind", "status"]);
        let meta = read_meta(&root, kind, origin, false);
        root.require("spec", |field| spec(field, meta))
    });
    (read, report.into_problems())
}

/// Returns the resources of a document that the filter is given: ours, and nothing else that stands in
/// the same files.
pub(crate) fn ours(value: &Value) -> Vec<&Value> {
    let all = resources(value).map(|(_, resource)| resource);
    all.filter(|resource| is_ours(resource)).collect()
}

/// As [`ours`].
pub(crate) fn into_ours(mut value: Value) -> Vec<Value> {
    if kind(&value).is_some_and(egress_policy::is_list)
        && let Some(Value::Array(items)) = value.get_mut("items")
    {
        return std::mem::take(items).into_iter().filter(is_ours).collect();
    }
    Some(value).into_iter().filter(is_ours).collect()
}

pub(crate) fn kind(value: &Value) -> Option<&str> {
    value.get("kind").and_then(Value::as_str)
}

/// Whether a value is a resource of a kind that we read, or of one that may change what those say.
pub fn is_ours(value: &Value) -> bool {
    let version = value.get("apiVersion").and_then(Value::as_str);
    let other = |kind: &str| {
        // There is a Gateway in another group, too.
        kind == "Gateway" && version.is_none_or(|text| !text.starts_with("networking.istio.io/"))
    };
    kind(value).is_some_and(|kind| egress_policy::KINDS.contains(&kind) && !other(kind))
        || is_unread(value)
        || is_backend_tls_policy(value)
        || is_service(value)
}

/// Whether a value is a Service of Kubernetes, which may have a host of an entry or be another name for one.
pub(crate) fn is_service(value: &Value) -> bool {
    let version = value.get("apiVersion").and_then(Value::as_str);
    kind(value) == Some("Service") && version == Some("v1")
}

/// Whether a value is a policy of which the engine makes a DestinationRule.
pub(crate) fn is_backend_tls_policy(value: &Value) -> bool {
    let (known, group) = egress_policy::BACKEND_TLS_POLICY;
    kind(value) == Some(known) && group_of(value) == Some(group)
}

pub(crate) fn group_of(value: &Value) -> Option<&str> {
    let version = value.get("apiVersion").and_then(Value::as_str)?;
    version.split('/').next()
}

/// Whether a value is a resource of a kind that is not carried out, and may refuse hosts.
pub(crate) fn is_unread(value: &Value) -> bool {
    let group = group_of(value);
    let known = |(known, of): &(&str, &str)| kind(value) == Some(known) && group == Some(of);
    egress_policy::UNREAD_KINDS.iter().any(known)
}

/// Returns the kind of the route of the Gateway API that a VirtualService was made of, or that a Gateway was made of one
/// of that API.
pub(crate) fn made_of(value: &Value) -> Option<&'static str> {
    let notes = value.get("metadata")?.get("annotations")?;
    let kind = notes.get(egress_policy::MADE_OF).and_then(Value::as_str);
    let kinds = egress_policy::ROUTE_KINDS.into_iter();
    let known = |kind: &str| kinds.clone().find(|known| *known == kind);
    let gateway = notes
        .get(egress_policy::GATEWAY_SERVICES)
        .map(|_| "Gateway");
    kind.and_then(known).or(gateway)
}

/// Returns the kind by which the engine knows a resource.
pub(crate) fn known_kind(value: &Value) -> Option<&str> {
    made_of(value).or_else(|| kind(value))
}

/// Returns resources without what Kubernetes notes down on them: the filter has no use for it, and with ten
/// thousand resources it is most of the text.
///
/// Labels decide only whether entries with one host join, so they stay where a host has several entries, and by which
/// entries a WorkloadEntry is selected.
pub(crate) fn bare(mut resources: Vec<Value>) -> Vec<Value> {
    let mut entries = BTreeMap::<String, usize>::new();
    for host in resources.iter().flat_map(hosts) {
        *entries.entry(host).or_default() += 1;
    }
    let labelled: Vec<bool> = resources
        .iter()
        .map(|resource| {
            // Those of a WorkloadEntry say who selects it.
            let workload = kind(resource) == Some("WorkloadEntry");
            let mut hosts = hosts(resource);
            workload || hosts.any(|host| entries.get(&host).is_some_and(|count| *count > 1))
        })
        .collect();
    for (resource, labelled) in resources.iter_mut().zip(labelled) {
        // One of them says who sees the Service; of what was made of others they say of what.
        let annotated = is_service(resource) || made_of(resource).is_some();
        keep_notes(resource, annotated);
        let Value::Object(fields) = resource else {
            continue;
        };
        fields.remove("status");
        if let Some(Value::Object(meta)) = fields.get_mut("metadata") {
            meta.retain(|key, _| match key.as_str() {
                "name" | "namespace" | "creationTimestamp" => true,
                "labels" => labelled,
                "annotations" => true,
                _ => false,
            });
        }
    }
    resources
}

/// Leaves out annotations that are not ours, unless `all` stay.
fn keep_notes(resource: &mut Value, all: bool) {
    let Some(Value::Object(meta)) = resource.get_mut("metadata") else {
        return;
    };
    let Some(notes) = meta.get_mut("annotations") else {
        return;
    };
    if let Some(notes) = notes.as_object_mut().filter(|_| !all) {
        notes.retain(|name, _| Notes::ours(name).is_some());
    }
    if !all && notes.as_object().is_none_or(Map::is_empty) {
        meta.remove("annotations");
    }
}

/// Returns the hosts of a ServiceEntry, as they compare.
fn hosts(resource: &Value) -> impl Iterator<Item = String> + '_ {
    let hosts = resource.pointer("/spec/hosts").and_then(Value::as_array);
    let hosts = hosts.into_iter().flatten().filter_map(Value::as_str);
    hosts.map(|host| host.trim_end_matches('.').to_ascii_lowercase())
}

/// Returns a resource without what the API server writes, which it would refuse or ignore when it is applied again.
pub(crate) fn as_given(resource: &Value) -> Value {
    let mut given = resource.clone();
    if let Value::Object(fields) = &mut given {
        fields.remove("status");
        if let Some(Value::Object(meta)) = fields.get_mut("metadata") {
            for key in [
                "creationTimestamp",
                "generation",
                "managedFields",
                "resourceVersion",
                "selfLink",
                "uid",
            ] {
                meta.remove(key);
            }
            if let Some(Value::Object(notes)) = meta.get_mut("annotations") {
                notes.remove("kubectl.kubernetes.io/last-applied-configuration");
                if notes.is_empty() {
                    meta.remove("annotations");
                }
            }
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_stay_where_they_decide() {
        let entry = |name: &str, host: &str| {
            json!({
                "kind": "ServiceEntry",
                "metadata": {"name": name, "labels": {"app": name}, "annotations": {"a": "b"}},
                "spec": {"hosts": [host]},
            })
        };
        let rule =
            json!({"kind": "DestinationRule", "metadata": {"name": "r", "labels": {"a": "b"}}});
        let given = vec![
            entry("one", "a.com"),
            entry("two", "b.com"),
            entry("three", "B.com."),
            rule,
        ];
        let kept = bare(given);
        let meta = |at: usize| kept[at]["metadata"].clone();
        assert_eq!(meta(0), json!({"name": "one"}));
        assert_eq!(meta(1), json!({"name": "two", "labels": {"app": "two"}}));
        assert_eq!(
            meta(2),
            json!({"name": "three", "labels": {"app": "three"}})
        );
        assert_eq!(meta(3), json!({"name": "r"}));
    }
}
