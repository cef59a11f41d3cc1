//! The JSON Schema of the plugin configuration and the parser say the same.
//!
//! Two files hold every field once. Each field is spoiled in every way a slip can spoil it, and schema and parser are
//! asked: what one refuses for its shape, the other refuses too. What fields say together is the parser's alone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::{BTreeMap, BTreeSet};

use egress_filter::config::compact::decode;
use egress_filter::{InvalidConfig, load};
use egress_policy::node::Node;
use egress_policy::{Parser, Problem, ProblemKind, Severity};
use jsonschema::Validator;
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../plugin-config.schema.json");
const SETTINGS: &str = include_str!("schema/settings.json");
const RESOURCES: &str = include_str!("schema/resources.json");
const STORIES: [&str; 10] = [
    include_str!("../../policy/tests/istio/endpoints.json"),
    include_str!("../../policy/tests/istio/hosts.json"),
    include_str!("../../policy/tests/istio/merging.json"),
    include_str!("../../policy/tests/istio/namespaces.json"),
    include_str!("../../policy/tests/istio/ports-and-subsets.json"),
    include_str!("../../policy/tests/istio/protocols.json"),
    include_str!("../../policy/tests/istio/root-namespace.json"),
    include_str!("../../policy/tests/istio/settings.json"),
    include_str!("../../policy/tests/istio/tls.json"),
    include_str!("../../policy/tests/istio/validation-destination-rule.json"),
];

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn validator() -> Validator {
    let schema = schema();
    jsonschema::meta::validate(&schema).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

fn examples(text: &str) -> Vec<Value> {
    serde_json::from_str::<Vec<Value>>(text).unwrap()
}

/// What the parser says of a configuration, without what it means for a table.
fn problems(config: &Value) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut parser = Parser::new();
    match config.get("resources") {
        Some(Value::Array(resources)) => {
            let mut resource = Node::Null;
            for next in resources {
                resource = match Node::from(next) {
                    Node::List(list) => decode(resource, list),
                    whole => whole,
                };
                parser.node(&resource);
            }
            found.extend(parser.finish().1.0);
        }
        _ => return vec![problem_of_load(config).unwrap_or_else(|| panic!("{config} loads"))],
    }
    let mut settings = config.clone();
    *settings.get_mut("resources").unwrap() = json!([]);
    // No rules have this fingerprint, which is no matter of shape.
    if settings.get("digest").is_some_and(Value::is_string) {
        settings.as_object_mut().unwrap().remove("digest");
    }
    if let Err(InvalidConfig::Problems(problems)) = load(settings.to_string().as_bytes()) {
        found.extend(problems.0);
    }
    found.retain(|problem| problem.severity == Severity::Error);
    found
}

fn problem_of_load(config: &Value) -> Option<Problem> {
    match load(config.to_string().as_bytes()) {
        Ok(_) => None,
        Err(_) => Some(Problem {
            severity: Severity::Error,
            origin: egress_policy::Origin::default(),
            resource: None,
            path: egress_policy::FieldPath::default(),
            kind: ProblemKind::Missing,
            hint: None,
            id: None,
        }),
    }
}

/// Whether a problem is one of shape: of names, types, words and bounds.
fn is_shape(problem: &Problem) -> bool {
    matches!(
        problem.kind,
        ProblemKind::WrongType { .. }
            | ProblemKind::UnknownField(_)
            | ProblemKind::UnknownValue { .. }
            | ProblemKind::OutOfRange { .. }
            | ProblemKind::Missing
    )
}

fn whole() -> Vec<Value> {
    let resources = examples(RESOURCES);
    let mut configs = examples(SETTINGS);
    configs.extend(
        resources
            .iter()
            .map(|resource| json!({"resources": [resource]})),
    );
    let another = |resource| json!({"resources": [resource, ["another", "another.example.com"]]});
    // Of the other kinds the filter takes what decides, so what is around it is not looked at.
    let read = |resource: &&Value| {
        ["ServiceEntry", "DestinationRule"]
            .iter()
            .any(|kind| resource["kind"] == *kind)
    };
    configs.extend(resources.iter().filter(read).map(another));
    configs
}

#[test]
fn what_uses_every_field_is_taken_by_both() {
    let validator = validator();
    for config in whole() {
        let errors: Vec<String> = validator
            .iter_errors(&config)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:?}\n{config}");
        let problems = problems(&config);
        assert!(problems.is_empty(), "{problems:?}\n{config}");
    }
}

#[test]
fn schema_and_parser_agree_about_everything_that_istios_cases_hold() {
    let validator = validator();
    let (mut taken, mut refused) = (0, 0);
    for story in STORIES {
        let story: Value = serde_json::from_str(story).unwrap();
        let shared = story.get("shared").cloned().unwrap_or(json!([]));
        let cases = story["cases"].as_array().unwrap().iter();
        let listed =
            cases.flat_map(|case| case["resources"].as_array().cloned().unwrap_or_default());
        for short in shared.as_array().unwrap().iter().cloned().chain(listed) {
            let config = json!({"resources": [document(&short)]});
            let problems = problems(&config);
            let valid = validator.is_valid(&config);
            if problems.is_empty() {
                assert!(valid, "the parser takes it, the schema does not: {config}");
                taken += 1;
            } else if problems.iter().any(is_shape) {
                assert!(
                    !valid,
                    "the schema takes it, the parser does not: {config}\n{problems:?}"
                );
                refused += 1;
            }
        }
    }
    assert!(
        taken > 200 && refused > 5,
        "{taken} taken, {refused} refused"
    );
}

/// Writes out what the cases shorten.
fn document(short: &Value) -> Value {
    let Some((kind, name)) = ["ServiceEntry", "DestinationRule"]
        .iter()
        .find_map(|kind| Some((*kind, short.get(*kind)?.as_str()?)))
    else {
        return short.clone();
    };
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": short["spec"],
    })
}

#[test]
fn both_refuse_the_same_slips() {
    let validator = validator();
    let (mut tried, mut differences) = (0, Vec::new());
    for config in whole() {
        for pointer in pointers(&config) {
            for (slip, spoiled) in slips(&config, &pointer) {
                let problems = problems(&spoiled);
                let valid = validator.is_valid(&spoiled);
                let at = format!("{pointer} {slip}\n{spoiled}\n{problems:?}");
                if valid && problems.iter().any(is_shape) {
                    differences.push(format!("only the parser refuses {at}"));
                } else if !valid && problems.is_empty() {
                    differences.push(format!("only the schema refuses {at}"));
                }
                tried += 1;
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    assert!(tried > 500, "{tried}");
}

/// Returns the ways in which one value can be wrong.
fn slips(config: &Value, pointer: &str) -> Vec<(&'static str, Value)> {
    let with = |value: Value| {
        let mut spoiled = config.clone();
        *spoiled.pointer_mut(pointer).unwrap() = value;
        spoiled
    };
    let value = config.pointer(pointer).unwrap();
    let mut slips = vec![
        ("is a number", with(json!(700_000))),
        ("is a negative number", with(json!(-1))),
        ("is a word", with(json!("no-such-word!"))),
        ("is a list", with(json!([]))),
        ("is an object", with(json!({"zzzzzz": 1}))),
        ("is true", with(json!(true))),
    ];
    if value.is_object() {
        let mut more = value.clone();
        more.as_object_mut()
            .unwrap()
            .insert("zzzzzz".to_owned(), json!(1));
        slips.push(("has a field that nobody knows", with(more)));
    }
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    if let Some(Value::Object(_)) = config.pointer(parent) {
        let mut spoiled = config.clone();
        let fields = spoiled.pointer_mut(parent).unwrap();
        fields.as_object_mut().unwrap().remove(name);
        slips.push(("is missing", spoiled));
    }
    slips
}

/// Returns the place of every value below the outermost.
fn pointers(value: &Value) -> Vec<String> {
    fn walk(value: &Value, at: &str, found: &mut Vec<String>) {
        let mut visit = |key: &str, value: &Value| {
            let at = format!("{at}/{key}");
            found.push(at.clone());
            walk(value, &at, found);
        };
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| visit(key, value)),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .for_each(|(at, value)| visit(&at.to_string(), value)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(value, "", &mut found);
    found
}

#[test]
fn every_field_of_one_is_a_field_of_the_other() {
    let schema = schema();
    let mut used = BTreeMap::<String, BTreeSet<String>>::new();
    for config in whole() {
        compare(&schema, &schema, "", &config, &config, &mut used);
    }
    // Each object of the schema was seen, with each of its fields.
    let mut objects = vec![(String::new(), &schema)];
    let defs = schema["$defs"].as_object().unwrap();
    objects.extend(defs.iter().map(|(name, object)| (name.clone(), object)));
    for (name, object) in objects {
        let fields = object.get("properties").and_then(Value::as_object);
        for field in fields.into_iter().flat_map(|fields| fields.keys()) {
            let seen = used.get(&name).is_some_and(|seen| seen.contains(field));
            assert!(seen, "`{name}` has `{field}`, which no example has");
        }
    }
}

/// Walks along an example and the schema, and compares the fields that each knows.
fn compare(
    root: &Value,
    schema: &Value,
    name: &str,
    config: &Value,
    value: &Value,
    used: &mut BTreeMap<String, BTreeSet<String>>,
) {
    let (name, schema) = match schema.get("$ref").and_then(Value::as_str) {
        Some(to) => {
            let to = to.strip_prefix("#/$defs/").unwrap();
            (to, &root["$defs"][to])
        }
        None => (name, schema),
    };
    if name == "resource" {
        let to = match value.get("kind").map(|kind| kind.as_str().unwrap()) {
            Some("ServiceEntry") => "serviceEntry",
            Some("DestinationRule") => "destinationRule",
            Some("VirtualService" | "Sidecar" | "WorkloadEntry") => "route",
            Some(_) => "otherKind",
            None => "another",
        };
        return compare(root, &root["$defs"][to], to, config, value, used);
    }
    if let Value::Array(items) = value {
        for item in items {
            compare(root, &schema["items"], "", config, item, used);
        }
        return;
    }
    let (Value::Object(fields), Some(known)) = (value, schema.get("properties")) else {
        return;
    };
    let known = known.as_object().unwrap();
    if schema.get("additionalProperties") == Some(&json!(false)) {
        let mut names: BTreeSet<String> = known.keys().cloned().collect();
        names.remove("resources"); // read by itself, before the others
        assert_eq!(names, fields_of_the_parser(config, value), "{value}");
    }
    for (key, value) in fields {
        let Some(schema) = known.get(key) else {
            continue;
        };
        used.entry(name.to_owned()).or_default().insert(key.clone());
        compare(root, schema, "", config, value, used);
    }
}

/// Asks the parser what it knows where an object stands: it tells when it finds a field that it does not know.
fn fields_of_the_parser(config: &Value, object: &Value) -> BTreeSet<String> {
    let pointer = pointers(config)
        .into_iter()
        .find(|pointer| std::ptr::eq(config.pointer(pointer).unwrap(), object))
        .unwrap_or_default();
    let mut spoiled = config.clone();
    let fields = spoiled.pointer_mut(&pointer).unwrap();
    fields
        .as_object_mut()
        .unwrap()
        .insert("zzzzzzzzzzzzzzzz".to_owned(), json!(1));
    let told = problems(&spoiled)
        .into_iter()
        .find(|problem| matches!(problem.kind, ProblemKind::UnknownField(_)))
        .unwrap_or_else(|| panic!("the parser takes any field at `{pointer}`"));
    let hint = told.hint.unwrap();
    let names = hint.strip_prefix("known here: ").unwrap();
    names
        .split(", ")
        .map(|name| name.trim_matches('`').to_owned())
        .collect()
}
