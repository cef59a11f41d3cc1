//! What messages show of texts that others wrote: no control characters, and nothing that may be a key.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What takes the place of key material.
const HIDDEN: &str = "[hidden]";

/// A run of base64 of so many characters may be a key, or a part of one.
const LONG: usize = 40;

/// Returns a text as messages may show it.
///
/// Control characters, and those that change the direction of what stands around them, are escaped: a terminal would
/// act on them, and a line feed would begin what looks like another message. Private keys as PEM and long runs of
/// base64 are left out: they may stand where they do not belong.
///
/// ```
/// use egress_policy::visible;
///
/// assert_eq!(visible("api.example.com"), "api.example.com");
/// assert_eq!(visible("\u{1b}[31mred\n"), "\\u001b[31mred\\u000a");
/// assert_eq!(visible("`-----BEGIN PRIVATE KEY-----\nMIIE"), "`[hidden]");
/// ```
pub fn visible(text: &str) -> Cow<'_, str> {
    match keyless(text) {
        Cow::Borrowed(text) => escaped(text, false),
        Cow::Owned(text) => escaped(&text, false).into_owned().into(),
    }
}

/// As [`visible`], of a text with several lines: it keeps line feeds and tabs.
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    match keyless(text) {
        Cow::Borrowed(text) => escaped(text, true),
        Cow::Owned(text) => escaped(&text, true).into_owned().into(),
    }
}

fn escaped(text: &str, lines: bool) -> Cow<'_, str> {
    let hidden = |c: char| {
        (c.is_control() && !(lines && matches!(c, '\n' | '\t')))
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(hidden) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hidden(c) {
            // So it is escaped in JSON too.
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// Leaves out what may be a key.
fn keyless(text: &str) -> Cow<'_, str> {
    let mut rest = text;
    let mut shown = String::new();
    while let Some((before, found)) = next_key(rest) {
        shown.push_str(before);
        shown.push_str(HIDDEN);
        rest = found;
    }
    match shown.is_empty() {
        true => text.into(),
        false => (shown + rest).into(),
    }
}

/// Finds the first thing that may be a key; returns what stands before it, and behind it.
fn next_key(text: &str) -> Option<(&str, &str)> {
    let (start, end) = match (block(text), long_run(text)) {
        (Some(block), Some(run)) => block.min(run),
        (block, run) => block.or(run)?,
    };
    Some((text.get(..start)?, text.get(end..)?))
}

/// Finds a private key as PEM, to its end or to that of the text. A first line alone is none.
fn block(text: &str) -> Option<(usize, usize)> {
    const FIRST: &str = "private key-----";
    if !text.contains("-----") {
        return None;
    }
    // Names are written small.
    let text = &*text.to_ascii_lowercase();
    let (first, _) = text.match_indices(FIRST).find(|(at, _)| {
        let behind = text.get(at + FIRST.len()..).unwrap_or_default();
        !behind.is_empty() && !behind.starts_with('`')
    })?;
    let start = text.get(..first)?.rfind("-----").unwrap_or(first);
    let inner = first + FIRST.len();
    let end = text.get(inner..).and_then(|rest| {
        let last = rest.find("-----end ")? + "-----end ".len();
        Some(inner + last + rest.get(last..)?.find("-----")? + "-----".len())
    });
    Some((start, end.unwrap_or(text.len())))
}

/// Finds a long run of base64 characters with letters and digits: names have a dot or a dash before so many, and sums
/// are hexadecimal.
fn long_run(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let in_run = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    let mut start = 0;
    for run in bytes.split(|byte| !in_run(byte)) {
        let end = start + run.len();
        let has = |wanted: fn(&u8) -> bool| run.iter().any(wanted);
        let is_sum = run.iter().all(u8::is_ascii_hexdigit);
        if run.len() >= LONG && has(u8::is_ascii_alphabetic) && has(u8::is_ascii_digit) && !is_sum {
            return Some((start, end));
        }
        start = end + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn nothing_of_a_key_is_shown() {
        let body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7";
        for text in [
            format!("a `-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n` b"),
            format!("a `{body}` b"),
            format!("a `key: {body}==, ` b"),
            format!("a `-----BEGIN EC PRIVATE KEY----- {}", &body[..20]),
            format!(
                "a `-----begin private key-----\n{}",
                body[..20].to_lowercase()
            ),
            format!("a `{}` b", body.to_lowercase()),
        ] {
            let shown = visible(&text);
            assert!(
                shown.starts_with("a `") && shown.contains(HIDDEN),
                "{shown}"
            );
            assert!(!shown.to_lowercase().contains("mii"), "{shown}");
            assert_eq!(shown.ends_with("` b"), text.ends_with("` b"), "{shown}");
        }
        assert_eq!(
            visible(&format!("{body}-{body}.{body}")),
            "[hidden]-[hidden].[hidden]"
        );
    }

    #[test]
    fn names_and_sums_are_shown() {
        let sum = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        for text in [
            "kubectl.kubernetes.io/last-applied-configuration",
            "outlierDetection.consecutiveLocalOriginFailures",
            "a-very-long-name-with-digits-0123456789-and-More.example.com",
            sum,
            "ä ö 日本",
            "a line like `-----BEGIN PRIVATE KEY-----`, not indented",
            "a line like `-----BEGIN CERTIFICATE-----`, not indented",
        ] {
            assert_eq!(visible(text), text);
        }
    }

    #[test]
    fn no_character_moves_the_cursor() {
        for c in [
            '\0', '\u{7}', '\r', '\n', '\t', '\u{1b}', '\u{7f}', '\u{9b}', '\u{202e}',
        ] {
            let shown = visible(&format!("a{c}b")).into_owned();
            assert_eq!(shown, format!("a\\u{:04x}b", u32::from(c)));
        }
        assert_eq!(visible_lines("a\tb\r\nc\u{9b}"), "a\tb\\u000d\nc\\u009b");
    }
}
