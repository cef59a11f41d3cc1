//! Pieces of messages that every part writes.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// Wraps a message in an `Any` under the name of an extension.
pub(super) fn extension(name: &str, kind: &str, mut message: Value) -> Value {
    if let Value::Object(fields) = &mut message {
        fields.insert(
            "@type".to_owned(),
            json!(format!("type.googleapis.com/{kind}")),
        );
    }
    json!({"name": name, "typed_config": message})
}

/// Writes a duration as protobuf's JSON does.
pub(super) fn duration(time: Duration) -> String {
    match time.subsec_nanos() {
        0 => format!("{}s", time.as_secs()),
        nanos => format!("{}.{nanos:09}s", time.as_secs()),
    }
}

pub(super) fn set(fields: &mut Map<String, Value>, name: &str, value: Value) {
    fields.insert(name.to_owned(), value);
}

pub(super) fn set_some<T: Into<Value>>(
    fields: &mut Map<String, Value>,
    name: &str,
    value: Option<T>,
) {
    if let Some(value) = value {
        set(fields, name, value.into());
    }
}

/// Turns an HTTP filter off, but on routes and hosts that have [`on`].
pub(super) fn off(filter: &mut Value) {
    if let Some(fields) = filter.as_object_mut() {
        set(fields, "disabled", json!(true));
    }
}

/// Renders for a `typed_per_filter_config` that a filter is on there, and does what it is configured to do.
pub(super) fn on(filter: &str) -> (String, Value) {
    let kind = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
    (filter.to_owned(), json!({"@type": kind, "config": {}}))
}
