//! Addresses that end with a colon, in lists of one line: `[2001:db8::]`.
//!
//! By YAML 1.2 a colon before `,`, `]` or `}` ends a key; for `kubectl` it is part of the text. So such a colon is
//! replaced by a character of the same width that means nothing. After the text is read, the colon is put back.

use std::borrow::Cow;

/// A character for private use: no rule has it.
const STAND_IN: char = '\u{e0fe}';

/// Replaces the last colon of each address that ends with `::` before a bracket, a brace or a comma.
///
/// Where that is in a quoted string, nothing changes: see [`released`].
pub(super) fn held(text: &str) -> Cow<'_, str> {
    let mut held = String::new();
    let mut done = 0;
    for (at, _) in text.match_indices("::") {
        let last = at + 1;
        let ends = text
            .as_bytes()
            .get(last + 1)
            .is_some_and(|byte| b",]}".contains(byte));
        let before = text.get(..at).unwrap_or_default();
        let address = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '.';
        let begins = before
            .trim_end_matches(address)
            .ends_with([' ', '\t', '\n', ',', '[', '{']);
        if ends && begins {
            if text.contains(STAND_IN) {
                return text.into();
            }
            held.push_str(text.get(done..last).unwrap_or_default());
            held.push(STAND_IN);
            done = last + 1;
        }
    }
    if done == 0 {
        return text.into();
    }
    held.push_str(text.get(done..).unwrap_or_default());
    held.into()
}

/// Puts the colons back into what was read.
pub(super) fn released(text: Cow<'_, str>) -> Cow<'_, str> {
    match text.contains(STAND_IN) {
        true => text.replace(STAND_IN, ":").into(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use crate::document::is_ours;
    use crate::yaml::{Document, InvalidYaml};

    fn read(text: &str) -> Result<Vec<Document>, InvalidYaml> {
        crate::yaml::read(text, is_ours)
    }

    use serde_json::json;

    #[test]
    fn an_address_in_a_list_of_one_line_is_a_string() {
        for (text, value) in [
            (
                "[2001:db8::, 2001:db8::1]",
                json!(["2001:db8::", "2001:db8::1"]),
            ),
            ("[2001:db8::]", json!(["2001:db8::"])),
            ("[::]", json!(["::"])),
            ("[::, ::1, ::/0]", json!(["::", "::1", "::/0"])),
            ("[ 2001:db8:: ]", json!([{"2001:db8:": null}])),
            (
                "{a: 2001:db8::, b: 2001:db8::}",
                json!({"a": "2001:db8::", "b": "2001:db8::"}),
            ),
            (
                "['2001:db8::', \"2001:db8::\", 1]",
                json!(["2001:db8::", "2001:db8::", 1]),
            ),
            ("[a, [2001:db8::]]", json!(["a", ["2001:db8::"]])),
            ("[2001:DB8::,1]", json!(["2001:DB8::", 1])),
            ("\"[2001:db8::]\"", json!("[2001:db8::]")),
            ("|\n  [2001:db8::, 1]\n", json!("[2001:db8::, 1]\n")),
        ] {
            let read = read(&format!("x: {text}")).unwrap();
            assert_eq!(read[0].value, json!({"x": value}), "{text}");
        }
    }
}
