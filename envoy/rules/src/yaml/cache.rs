//! What was read before, so that on a reload only what changed is read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

/// What the documents of a reading say, by the parts they stood in, for the next reading of nearly the same.
///
/// It has only resources of ours, so no Secret, and as JSON, which takes a tenth of the memory of values.
#[derive(Default)]
pub struct AlreadyRead(pub(super) BTreeMap<Arc<str>, Arc<str>>);

/// A part of a text, and as JSON what it says.
pub(super) type Known = (Arc<str>, Arc<str>);

impl AlreadyRead {
    /// Returns what a part says, if it is known.
    pub(super) fn recall(&self, part: &str) -> Option<(Value, Known)> {
        let (part, json) = self.0.get_key_value(part)?;
        let value = serde_json::from_str(json).ok()?;
        Some((value, (part.clone(), json.clone())))
    }
}

/// Returns what is worth knowing of a part, if JSON holds what it says as it is.
pub(super) fn worth_knowing(part: &Arc<str>, value: &Value) -> Option<Known> {
    is_exact(value).then(|| (part.clone(), value.to_string().into()))
}

/// Whether a value comes back from JSON as it was: fractions may not.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().all(is_exact),
        Value::Object(fields) => fields.values().all(is_exact),
        Value::Number(number) => !number.is_f64(),
        _ => true,
    }
}
