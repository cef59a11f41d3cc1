//! A stable fingerprint of a table. Renderer and filter compare it to find out whether they disagree.

use std::fmt::{self, Write as _};
use std::ops::Range;

use crate::order::sort_by;

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
        let bytes = lines.flat_map(|line| line.bytes().chain([b'\n']));
        Digest(fnv(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Lines whose order does not count, in one text: a string for each of them would be most of what a large table takes.
#[derive(Default)]
pub(crate) struct Lines {
    text: String,
    indexes: Vec<Range<usize>>,
}

impl Lines {
    /// Adds a line.
    pub(crate) fn add(&mut self, line: fmt::Arguments<'_>) {
        let begin = self.text.len();
        // Writing to a string does not fail.
        let _ = self.text.write_fmt(line);
        self.indexes.push(begin..self.text.len());
    }

    /// Takes the fingerprint of the lines in their order as texts.
    pub(crate) fn digest(mut self) -> Digest {
        let line = |index: &Range<usize>| self.text.get(index.clone()).unwrap_or_default();
        sort_by(&mut self.indexes, |one, other| line(one).cmp(line(other)));
        Digest::of(self.indexes.iter().map(line))
    }
}

/// Hashes bytes by FNV-1a, alike on every machine and in every version.
pub fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}
