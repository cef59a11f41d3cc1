//! The little of protobuf's wire format that the filter writes.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

/// Writes a field that has a length: its tag, the length, and the bytes.
///
/// `tag` is the number of the field times eight, plus two for the kind.
pub fn field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    tag_and_len(out, tag, bytes.len());
    out.extend_from_slice(bytes);
}

/// Writes what stands before the bytes of a field.
pub(crate) fn tag_and_len(out: &mut Vec<u8>, tag: u8, len: usize) {
    out.push(tag);
    varint(out, len);
}

/// Writes a length: seven bits a byte, the least first.
fn varint(out: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}

/// Takes a field that has a length off the front: its bytes, and what comes after it.
pub(crate) fn split_field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_tag, mut rest) = bytes.split_first()?;
    let (mut len, mut shift) = (0_usize, 0);
    loop {
        let byte;
        (byte, rest) = rest.split_first()?;
        len |= usize::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            return rest.split_at_checked(len);
        }
    }
}

/// Returns how many bytes a length is written in.
pub(crate) fn varint_len(len: usize) -> usize {
    (usize::BITS - (len | 1).leading_zeros()).div_ceil(7) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_written_in_as_many_bytes_as_are_told() {
        for (len, bytes) in [
            (0, &b"\x00"[..]),
            (127, b"\x7f"),
            (128, b"\x80\x01"),
            (16_383, b"\xff\x7f"),
            (16_384, b"\x80\x80\x01"),
        ] {
            let mut out = Vec::new();
            varint(&mut out, len);
            assert_eq!(out, bytes, "{len}");
            assert_eq!(varint_len(len), bytes.len(), "{len}");
        }
    }

    #[test]
    fn a_field_is_its_tag_its_length_and_its_bytes() {
        let mut out = Vec::new();
        field(&mut out, 0x0a, b"path");
        field(&mut out, 0x12, b"");
        assert_eq!(out, b"\x0a\x04path\x12\x00");
    }
}
