//! What the bytes behind CONNECT begin with. Only enough of it is read to tell TLS from anything else.

/// How many bytes tell, where there are as many.
pub(crate) const TELLING: usize = 11;

/// Whether bytes begin as a client's TLS does: with a record that holds the beginning of a ClientHello. `None`
/// where more bytes must come first.
///
/// Source: RFC 8446, sections 4.1.2 and 5.1; RFC 5246, section 6.2.1.
pub(crate) fn begins_tls(bytes: &[u8]) -> Option<bool> {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    const LARGEST: u16 = 1 << 14;
    // The version in a record's head and in the ClientHello: 3.0, as SSL 3.0 is called, to 3.4.
    let minor = 0..=4;
    let mut length = None;
    for (at, byte) in bytes.iter().take(TELLING).enumerate() {
        let good = match at {
            0 => *byte == HANDSHAKE,
            1 => *byte == 3,
            2 => minor.contains(byte),
            3 => {
                length = Some(*byte);
                u16::from(*byte) << 8 <= LARGEST
            }
            4 => {
                let length = u16::from_be_bytes([length.unwrap_or_default(), *byte]);
                // A ClientHello may be cut into many records; where the rest is, is not looked for.
                if (1..6).contains(&length) {
                    let kind = bytes.get(5)?;
                    return Some(*kind == CLIENT_HELLO);
                }
                length != 0 && length <= LARGEST
            }
            5 => *byte == CLIENT_HELLO,
            // No ClientHello has 65,536 bytes: its parts have lengths of two bytes.
            6 => *byte <= 1,
            9 => *byte == 3,
            10 => minor.contains(byte),
            _ => true,
        };
        if !good {
            return Some(false);
        }
    }
    (bytes.len() >= TELLING).then_some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client of TLS 1.3 begins with.
    const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03random";

    #[test]
    fn a_client_hello_begins_tls_once_enough_of_it_is_there() {
        for end in 0..TELLING {
            assert_eq!(HELLO.get(..end).map(begins_tls), Some(None), "{end}");
        }
        assert_eq!(begins_tls(HELLO), Some(true));
        // Cut into records of five bytes or fewer, as some clients do.
        assert_eq!(begins_tls(b"\x16\x03\x01\x00\x01"), None);
        assert_eq!(begins_tls(b"\x16\x03\x01\x00\x01\x01\x16\x03"), Some(true));
    }

    #[test]
    fn anything_else_is_told_by_its_first_byte_that_differs() {
        for bytes in [
            &b"G"[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"SSH-2.0-x\r\n",
            b"\0",
            b"\x80\x2e\x01\x00\x02",         // SSL 2.0
            b"\x15\x03\x03\x00\x02\x02\x28", // an alert
            b"\x17\x03\x03\x00\x05hello",    // data of an application
            b"\x16G",
            b"\x16\x03/",
            b"\x16\x03\x01GET / HTTP/1.1",
            b"\x16\x03\x01\x00\x00\x01",
            b"\x16\x03\x01\x40\x01\x01",
            b"\x16\x03\x01\x02\x00GET /",
            b"\x16\x03\x01\x02\x00\x02", // a ServerHello
            b"\x16\x03\x01\x02\x00\x01GET /",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfcGET /",
            b"\x16\x03\x01\x00\x05GET /",
        ] {
            assert_eq!(begins_tls(bytes), Some(false), "{bytes:?}");
        }
    }
}
