//! What a plain scalar is, as `kubectl` reads it: by YAML 1.1, with its words for true and false.
//!
//! Source: go-yaml/yaml v2 `resolve.go`, and kubernetes-sigs/yaml `yaml.go`, `convertToJSONableObject`.

use std::borrow::Cow;

use serde_json::{Number, Value};

/// Reads a plain scalar.
///
/// Dates and numbers to the base of 60 stay strings, as they do for `kubectl`.
pub(super) fn scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Value::String(text.to_owned());
    }
    match number(text) {
        Some(number) => Value::Number(number),
        None => Value::String(text.to_owned()),
    }
}

/// Reads a scalar that is a key: JSON has only strings there, so numbers and truths become some. Null cannot.
pub(super) fn key(text: Cow<'_, str>, plain: bool) -> Option<String> {
    if !plain {
        return Some(text.into_owned());
    }
    match scalar(&text) {
        Value::String(_) => Some(text.into_owned()),
        Value::Bool(word) => Some(word.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn number(text: &str) -> Option<Number> {
    let digits: Cow<'_, str> = match text.contains('_') && !text.starts_with('.') {
        true => text.replace('_', "").into(),
        false => text.into(),
    };
    integer(&digits).or_else(|| float(&digits))
}

fn integer(text: &str) -> Option<Number> {
    let (negative, signed, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, true, digits),
        None => (
            false,
            text.starts_with('+'),
            text.strip_prefix('+').unwrap_or(text),
        ),
    };
    let prefixes = [
        ("0x", 16),
        ("0X", 16),
        ("0o", 8),
        ("0O", 8),
        ("0b", 2),
        ("0B", 2),
    ];
    let found = prefixes
        .iter()
        .find_map(|(prefix, radix)| Some((digits.strip_prefix(prefix)?, *radix)));
    let (digits, radix) = match (found, digits.strip_prefix('0')) {
        (Some(found), _) => found,
        (None, Some(octal)) if !octal.is_empty() => (octal, 8),
        (None, _) => (digits, 10),
    };
    // A second sign is none.
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let size = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        return 0_i64.checked_sub_unsigned(size).map(Number::from);
    }
    (!signed || i64::try_from(size).is_ok()).then(|| Number::from(size))
}

fn float(text: &str) -> Option<Number> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let has_digits = !whole.is_empty() || !fraction.is_empty();
    let good_exponent = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && all_digits(digits)
    });
    if !has_digits || !all_digits(whole) || !all_digits(fraction) || !good_exponent {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    // JSON writes a whole number as one, however it was written.
    if number.fract() == 0.0 && number.abs() < 1e21 {
        let whole = format!("{number:.0}");
        let whole = whole
            .strip_prefix('-')
            .filter(|rest| *rest == "0")
            .unwrap_or(&whole);
        let short = whole.parse::<u64>().map(Number::from);
        let short = short.or_else(|_| whole.parse::<i64>().map(Number::from));
        if let Ok(number) = short {
            return Some(number);
        }
    }
    Number::from_f64(number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Tried with `kubectl annotate --local`.
    #[test]
    fn scalars_are_what_kubectl_takes_them_for() {
        for (text, value) in [
            ("y", json!(true)),
            ("N", json!(false)),
            ("On", json!(true)),
            ("OFF", json!(false)),
            ("yEs", json!("yEs")),
            ("nO", json!("nO")),
            ("1e3", json!(1000)),
            ("1e+3", json!(1000)),
            ("12e03", json!(12_000)),
            ("00e1", json!(0)),
            ("1:30", json!("1:30")),
            ("190:20:30.15", json!("190:20:30.15")),
            ("2024-01-01", json!("2024-01-01")),
            ("2024-01-01T00:00:00Z", json!("2024-01-01T00:00:00Z")),
            ("010", json!(8)),
            ("0o10", json!(8)),
            ("0777", json!(511)),
            ("089", json!(89)),
            ("0b11", json!(3)),
            ("-0b11", json!(-3)),
            ("0b12", json!("0b12")),
            ("1_000", json!(1000)),
            ("1__0", json!(10)),
            ("0x1F", json!(31)),
            ("0x_1F", json!(31)),
            ("+0x1F", json!(31)),
            ("0x+1", json!("0x+1")),
            ("+12", json!(12)),
            ("+-1", json!("+-1")),
            ("5.", json!(5)),
            (".5", json!(0.5)),
            ("-.5", json!(-0.5)),
            (".", json!(".")),
            ("-", json!("-")),
            ("-inf", json!("-inf")),
            ("-0.0", json!(0)),
            ("80.0", json!(80)),
            ("1.2.3.4", json!("1.2.3.4")),
            ("10s", json!("10s")),
            (
                "18446744073709551615",
                json!(18_446_744_073_709_551_615_u64),
            ),
            ("18446744073709551616", json!(18_446_744_073_709_551_616.0)),
            ("NULL", json!(null)),
            ("=", json!("=")),
        ] {
            assert_eq!(scalar(text), value, "{text}");
        }
    }

    #[test]
    fn a_key_is_a_string_as_kubectl_makes_it_one() {
        let plain = |text| key(Cow::Borrowed(text), true);
        assert_eq!(plain("no").as_deref(), Some("false"));
        assert_eq!(plain("1e3").as_deref(), Some("1000"));
        assert_eq!(plain("010").as_deref(), Some("8"));
        assert_eq!(plain("1.5").as_deref(), Some("1.5"));
        assert_eq!(plain("a").as_deref(), Some("a"));
        assert_eq!(plain("~"), None);
        assert_eq!(key(Cow::Borrowed("no"), false).as_deref(), Some("no"));
    }
}
