//! Labels as Envoy hands them over.

use std::collections::BTreeMap;

/// Reads a map of texts as hosts serialise it: the number of pairs, the two lengths of each, and then each key and
/// value with a zero behind it. Nothing at all is a map without pairs.
///
/// Source: proxy-wasm/spec `abi-versions/v0.2.1`, "Serialization of maps"; numbers have four bytes, the least first.
pub fn labels(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    if bytes.is_empty() {
        return Some(labels);
    }
    let number = |at: usize| {
        let four = bytes.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(four.try_into().ok()?)).ok()
    };
    let count = number(0)?;
    let mut sizes = 4_usize;
    let mut texts = sizes.checked_add(count.checked_mul(8)?)?;
    let mut text = |len: usize| {
        let end = texts.checked_add(len)?;
        let found = std::str::from_utf8(bytes.get(texts..end)?).ok()?;
        (bytes.get(end) == Some(&0)).then_some(())?;
        texts = end.checked_add(1)?;
        Some(found.to_owned())
    };
    for _ in 0..count {
        let (key, value) = (number(sizes)?, number(sizes.checked_add(4)?)?);
        sizes = sizes.checked_add(8)?;
        let (key, value) = (text(key)?, text(value)?);
        // Numbers come as bytes, and some of them are text; none is a label.
        if key.is_empty() || !is_label(&key) || !is_label(&value) {
            return None;
        }
        labels.insert(key, value);
    }
    (texts == bytes.len()).then_some(labels)
}

/// Whether a text has the characters of a label's key or value, and no others.
///
/// Source: kubernetes/kubernetes `staging/src/k8s.io/apimachinery/pkg/util/validation/validation.go`,
/// `IsQualifiedName` and `IsValidLabelValue`.
fn is_label(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &[u8] = b"\x02\0\0\0\x03\0\0\0\x05\0\0\0\x01\0\0\0\0\0\0\0app\0sleep\0v\0\0";

    #[test]
    fn pairs_are_read() {
        let expected = [("app", "sleep"), ("v", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(labels(TWO), Some(BTreeMap::from(expected)));
        assert_eq!(labels(b""), Some(BTreeMap::new()));
        assert_eq!(labels(b"\0\0\0\0"), Some(BTreeMap::new()));
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_refused() {
        for end in 1..TWO.len() {
            assert_eq!(labels(&TWO[..end]), None, "{end}");
        }
        let longer = [TWO, b"x"].concat();
        assert_eq!(labels(&longer), None);
        assert_eq!(labels(b"\xff\xff\xff\xff"), None);
    }

    #[test]
    fn what_no_label_can_be_is_refused() {
        let two = [0, 0, 0, 0, 0, 0, 0, 0x40];
        let mut number = b"\x01\0\0\0\x01\0\0\0\x08\0\0\0v\0".to_vec();
        number.extend_from_slice(&two);
        number.push(0);
        assert_eq!(labels(&number), None, "the number 2");
        assert_eq!(labels(b"\x01\0\0\0\x01\0\0\0\x01\0\0\0v\0 \0"), None);
    }
}
