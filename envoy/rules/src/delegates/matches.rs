//! What a route and the one that delegates to it both ask for.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// The fields whose names have values of their own; the delegate's count.
const MAPS: [&str; 4] = ["headers", "withoutHeaders", "queryParams", "sourceLabels"];

/// The fields that the delegate may leave open.
const TEXTS: [&str; 4] = ["uri", "scheme", "method", "authority"];

/// Where a match was written.
#[derive(Debug)]
pub(super) struct Joined {
    /// Its place in the route that delegates.
    pub(super) root: Option<usize>,
    /// Its place in the route of the delegate.
    pub(super) own: Option<usize>,
    /// The fields that the delegate has.
    pub(super) keys: Vec<String>,
}

/// Matches, and the namespace that they were written in.
type Asked<'m> = (&'m [Value], &'m str);

/// Returns the matches of a delegate's route within those of the route that delegates to it; nothing where one of them
/// is within none.
///
/// Source: istio/istio `pilot/pkg/model/virtualservice.go`, `mergeHTTPMatchRequests`.
pub(super) fn join(
    (roots, namespace): Asked<'_>,
    (leaves, own): Asked<'_>,
) -> Option<Vec<(Value, Joined)>> {
    let of = |all: &[Value], namespace: &str| -> Vec<Map<String, Value>> {
        let objects = all
            .iter()
            .map(|it| it.as_object().cloned().unwrap_or_default());
        objects.map(|it| with_gateways(it, namespace)).collect()
    };
    let (roots, leaves) = (of(roots, namespace), of(leaves, own));
    let keys = |of: &Map<String, Value>| of.keys().cloned().collect();
    if leaves.is_empty() {
        let all = roots.into_iter().enumerate().map(|(at, root)| {
            let joined = Joined {
                root: Some(at),
                own: None,
                keys: Vec::new(),
            };
            (Value::Object(root), joined)
        });
        return Some(all.collect());
    }
    let mut found = Vec::new();
    for (own, leaf) in leaves.iter().enumerate() {
        let before = found.len();
        let joined = |root| Joined {
            root,
            own: Some(own),
            keys: keys(leaf),
        };
        if roots.is_empty() {
            found.push((Value::Object(leaf.clone()), joined(None)));
        }
        for (at, root) in roots.iter().enumerate() {
            if !conflict(root, leaf) {
                found.push((Value::Object(merged(root, leaf)), joined(Some(at))));
            }
        }
        if found.len() == before {
            return None;
        }
    }
    Some(found)
}

/// Source: istio/istio `pilot/pkg/model/virtualservice.go`, `mergeHTTPMatchRequest`.
fn merged(root: &Map<String, Value>, leaf: &Map<String, Value>) -> Map<String, Value> {
    let mut made = leaf.clone();
    name(&mut made, root);
    let inherited = ["port", "sourceNamespace", "gateways", "statPrefix"];
    for key in TEXTS.into_iter().chain(inherited) {
        if is_empty(made.get(key)) {
            made.extend(root.get(key).map(|value| (key.to_owned(), value.clone())));
        }
    }
    for key in MAPS {
        let Some(Value::Object(of_root)) = root.get(key) else {
            continue;
        };
        let mut all = of_root.clone();
        if let Some(Value::Object(own)) = leaf.get(key) {
            all.extend(own.clone());
        }
        made.insert(key.to_owned(), Value::Object(all));
    }
    made
}

/// Names a route or a match after both.
pub(super) fn name(made: &mut Map<String, Value>, root: &Map<String, Value>) {
    let text = |of: &Map<String, Value>| {
        let name = of.get("name").and_then(Value::as_str).unwrap_or_default();
        name.to_owned()
    };
    let both = [text(root), text(made)];
    let both: Vec<String> = both.into_iter().filter(|name| !name.is_empty()).collect();
    if !both.is_empty() {
        made.insert("name".to_owned(), both.join("-").into());
    }
}

/// Source: istio/istio `pilot/pkg/model/virtualservice.go`, `hasConflict`.
fn conflict(root: &Map<String, Value>, leaf: &Map<String, Value>) -> bool {
    let texts = TEXTS.iter();
    if texts
        .clone()
        .any(|key| apart(root.get(*key), leaf.get(*key)))
    {
        return true;
    }
    for key in ["headers", "withoutHeaders", "queryParams"] {
        let own = leaf.get(key).and_then(Value::as_object);
        let of_root = |name: &str| root.get(key)?.get(name);
        if (own.into_iter().flatten()).any(|(name, value)| apart(of_root(name), Some(value))) {
            return true;
        }
    }
    let any_case = |of: &Map<String, Value>| of.get("ignoreUriCase") == Some(&Value::Bool(true));
    let number = |of: &Map<String, Value>| of.get("port").and_then(Value::as_u64).unwrap_or(0);
    let (port, own) = (number(root), number(leaf));
    if any_case(root) != any_case(leaf) || (port > 0 && own > 0 && port != own) {
        return true;
    }
    let namespace = root.get("sourceNamespace").filter(|it| !is_empty(Some(it)));
    if namespace.is_some_and(|of| leaf.get("sourceNamespace") != Some(of)) {
        return true;
    }
    let labels = leaf.get("sourceLabels").and_then(Value::as_object);
    let other = |(name, value): (&String, &Value)| {
        let of_root = root.get("sourceLabels").and_then(|labels| labels.get(name));
        of_root.is_some_and(|of_root| of_root != value)
    };
    if labels.into_iter().flatten().any(other) {
        return true;
    }
    let (all, own) = (gateways(root), gateways(leaf));
    !all.is_empty() && !own.is_empty() && !own.is_subset(&all)
}

/// Whether what a delegate asks of a text is not within what the root asks. Regular expressions are within nothing.
///
/// Source: istio/istio `pilot/pkg/model/virtualservice.go`, `stringMatchConflict`.
fn apart(root: Option<&Value>, leaf: Option<&Value>) -> bool {
    let given = |asked: Option<&Value>| asked.is_some_and(|asked| !asked.is_null());
    if !given(root) || !given(leaf) {
        return false;
    }
    let text = |asked: Option<&Value>, how: &str| -> Option<String> {
        let text = asked?.get(how)?.as_str()?;
        (!text.is_empty()).then(|| text.to_owned())
    };
    if text(root, "regex").is_some() || text(leaf, "regex").is_some() {
        return true;
    }
    let own = (text(leaf, "exact"), text(leaf, "prefix"));
    match (text(root, "exact"), text(root, "prefix"), own) {
        (Some(exact), _, (own, None)) => own != Some(exact),
        (None, Some(begin), (Some(text), None) | (_, Some(text))) => !text.starts_with(&begin),
        _ => true,
    }
}

/// Returns a match whose Gateways have their namespaces.
fn with_gateways(mut asked: Map<String, Value>, namespace: &str) -> Map<String, Value> {
    if let Some(Value::Array(names)) = asked.get_mut("gateways") {
        for name in names {
            let Some(text) = name.as_str() else { continue };
            let text = text.strip_prefix("./").unwrap_or(text);
            if text != "mesh" && !text.contains(['/', '.']) {
                *name = format!("{namespace}/{text}").into();
            }
        }
    }
    asked
}

fn gateways(asked: &Map<String, Value>) -> BTreeSet<&str> {
    let names = asked.get("gateways").and_then(Value::as_array);
    names
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Number(number)) => number.as_u64() == Some(0),
        Some(_) => false,
    }
}
