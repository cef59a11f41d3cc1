//! How long a rule waits and how often it tries: `timeouts` and `retry`.

use std::time::Duration;

use egress_policy::ProblemKind;
use egress_policy::fields::{Field, Fields};
use serde_json::{Map, Value, json};

/// Reads both into a VirtualService's route.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `convertHTTPRoute`.
pub(super) fn read(fields: &Fields<'_>, value: &mut Map<String, Value>) {
    let mut retries = fields.read("retry", read_retry);
    let times = fields.read("timeouts", |field| {
        let fields = field.fields()?;
        let whole = fields.read("request", read_time);
        let one = fields.read("backendRequest", read_time);
        if let (Some(whole), Some(one)) = (whole, one)
            && one > whole
            && !whole.is_zero()
        {
            let text = "one try may take longer than all of them together".to_owned();
            let hint = "`backendRequest` is at most `request`";
            fields.error_at("backendRequest", ProblemKind::Conflict(text), Some(hint));
        }
        Some((whole, one))
    });
    let (whole, one) = times.unwrap_or_default();
    let written = |time: Option<Duration>| {
        let time = time.filter(|time| !time.is_zero())?;
        Some(json!(format!("{}ms", time.as_millis())))
    };
    let (mut whole, one) = (written(whole), written(one));
    match (&mut retries, one) {
        (Some(retries), Some(one)) if retries.get("retryOn").is_some() => {
            retries.insert("perTryTimeout".to_owned(), one);
        }
        // Without retries there is one try.
        (_, Some(one)) => whole = Some(one),
        _ => {}
    }
    if let Some(whole) = whole {
        value.insert("timeout".to_owned(), whole);
    }
    if let Some(retries) = retries {
        value.insert("retries".to_owned(), Value::Object(retries));
    }
}

fn read_retry(field: Field<'_>) -> Option<Map<String, Value>> {
    let fields = field.fields()?;
    let mut codes = Vec::new();
    fields.read("codes", |list| {
        list.items(|item| codes.extend(item.number(400, 599)));
        Some(())
    });
    let attempts = fields.read("attempts", |field| field.number(0, 100));
    let backoff = fields.read("backoff", read_time);
    let attempts = attempts.unwrap_or(2);
    let mut value = Map::new();
    value.insert("attempts".to_owned(), json!(attempts));
    if attempts > 0 {
        let mut on = "connect-failure,refused-stream,unavailable,cancelled".to_owned();
        for code in codes {
            on.push_str(&format!(",{code}"));
        }
        value.insert("retryOn".to_owned(), json!(on));
    }
    if let Some(backoff) = backoff.filter(|time| !time.is_zero()) {
        let backoff = format!("{}ms", backoff.as_millis());
        value.insert("backoff".to_owned(), json!(backoff));
    }
    Some(value)
}

/// Reads a duration of the Gateway API: whole numbers with units, `1h30m` or `500ms`.
fn read_time(field: Field<'_>) -> Option<Duration> {
    let time = field.duration()?;
    let text = field.text()?;
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b"hms".contains(&byte))
    {
        let text = format!("`{text}` is no duration of the Gateway API");
        let hint = "whole numbers of h, m, s and ms, for example `1s500ms`";
        field.error_with_hint(ProblemKind::Invalid(text), hint);
        return None;
    }
    Some(time)
}
