//! A stable fingerprint of a table, by which the renderer and the filter find out that they disagree.

use std::fmt;

/// A fingerprint of 64 bits. It tells versions apart; it does not protect against forgery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Takes the fingerprint of a text.
    pub fn of_text(text: &str) -> Self {
        Digest::of(std::iter::once(text))
    }

    /// Takes the fingerprint of lines, by FNV-1a.
    pub(crate) fn of<'l>(lines: impl Iterator<Item = &'l str>) -> Self {
        let mut state = 0xcbf2_9ce4_8422_2325_u64;
        for line in lines {
            for byte in line.bytes().chain([b'\n']) {
                state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        Digest(state)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
