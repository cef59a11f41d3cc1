//! Does any change to resources that are good panic the engine? Bytes are edits, so that most of what is
//! tried still looks like a resource and gets past the first checks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// Everything that the engine reads, in resources that compile.
const GOOD: &str = include_str!("../corpus/parse/everything.json");

/// What is put in the place of something else.
fn words() -> Vec<Value> {
    [
        "",
        "*",
        ".",
        "~",
        "a",
        "a.com",
        "*.a.com",
        "*-a.com",
        "*.com",
        "b.a.com",
        "A.COM.",
        "xn--bcher-kva.example",
        "ü.com",
        "192.0.2.1",
        "192.0.2.0/24",
        "::1",
        "unix:///run/s",
        "HTTP",
        "HTTPS",
        "TCP",
        "TLS",
        "GRPC",
        "UDP",
        "NONE",
        "STATIC",
        "DNS",
        "DYNAMIC_DNS",
        "DNS_ROUND_ROBIN",
        "DISABLE",
        "SIMPLE",
        "MUTUAL",
        "ISTIO_MUTUAL",
        "PASSTHROUGH",
        "RANDOM",
        "UPGRADE",
        "DO_NOT_UPGRADE",
        "default",
        "other",
        "istio-system",
        "system",
        "configmap://default/c",
        "0s",
        "1ms",
        "10s",
        "1h",
        "1.5s",
        "9999999999999h",
        "POST",
        "V2",
        "\0",
        "e1",
        "v1",
    ]
    .map(Value::from)
    .into_iter()
    .chain([
        json!(null),
        json!(true),
        json!(false),
        json!([]),
        json!({}),
        json!(0),
        json!(1),
        json!(-1),
        json!(80),
        json!(443),
        json!(65535),
        json!(65536),
        json!(4294967296_u64),
        json!(u64::MAX),
        json!(1.5),
        json!(-0.1),
        json!(1e308),
        json!([""]),
        json!({"": ""}),
        json!({"number": 80}),
        json!({"mode": "SIMPLE"}),
        json!({"v": "1"}),
    ])
    .collect()
}

/// The values below a value, itself among them.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// Returns the value at a place, counted as [`count`] counts.
fn at(value: &mut Value, place: usize) -> Option<&mut Value> {
    if place == 0 {
        return Some(value);
    }
    let mut left = place - 1;
    let below: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => return None,
    };
    for one in below {
        let size = count(one);
        if left < size {
            return at(one, left);
        }
        left -= size;
    }
    None
}

fuzz_target!(|edits: &[u8]| {
    let Ok(mut value) = serde_json::from_str::<Value>(GOOD) else {
        return;
    };
    let words = words();
    for edit in edits.chunks_exact(4).take(16) {
        let [what, high, low, word] = *edit else {
            return;
        };
        let place = usize::from(u16::from_be_bytes([high, low])) % count(&value);
        let word_at = usize::from(word);
        let Some(target) = at(&mut value, place) else {
            continue;
        };
        match (what % 6, target) {
            (0 | 1, target) => *target = words[word_at % words.len()].clone(),
            (2, Value::Array(items)) if !items.is_empty() => {
                items.remove(word_at % items.len());
            }
            (2, Value::Object(map)) => {
                if let Some(key) = map.keys().nth(word_at % map.len().max(1)).cloned() {
                    map.remove(&key);
                }
            }
            (3, Value::Array(items)) if !items.is_empty() && items.len() < 64 => {
                items.push(items[word_at % items.len()].clone());
            }
            (4, Value::Object(map)) => {
                // A key moves, with its value, to where another stood.
                let keys: Vec<String> = map.keys().cloned().collect();
                if let [first, .., last] = &keys[..]
                    && let Some(value) = map.remove(first)
                {
                    map.insert(last.clone(), value);
                }
            }
            (5, Value::Array(items)) => items.reverse(),
            (_, Value::Number(number)) => {
                *number = (number.as_u64().unwrap_or(0) ^ (1 << (word % 64))).into();
            }
            (_, Value::String(text)) => text.push(char::from(word)),
            _ => {}
        }
    }
    egress_policy_fuzz::run(&value);
});
