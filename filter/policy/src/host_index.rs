//! Finds the most specific pattern for a host: the exact name, then endings from longest to shortest.

use crate::host::{HostPattern, MAX_HOST_BYTES};

/// Places by host pattern. It holds no pattern: those who have them say what text stands at a place, which is
/// [`HostPattern::text`].
#[derive(Debug, Clone, Default)]
pub(crate) struct HostIndex {
    exact: Slots,
    endings: Slots,
    lengths: Lengths,
    any: Option<usize>,
}

impl HostIndex {
    /// Tries the indexes of all patterns that have `host`, the most specific first, until one gives something.
    pub(crate) fn find_map<'i, T>(
        &self,
        host: &str,
        text: impl Fn(usize) -> &'i str,
        mut give: impl FnMut(usize) -> Option<T>,
    ) -> Option<T> {
        let endings = Endings::of(host);
        let exact = self
            .exact
            .find(endings.hash(host.len()), |at| text(at) == host);
        exact
            .and_then(&mut give)
            .or_else(|| self.wider(host, host.len(), &endings, text, &mut give))
            .or_else(|| give(self.any?))
    }

    /// Returns the index of the most specific pattern that has every name of `pattern`.
    pub(crate) fn find_pattern<'i>(
        &self,
        pattern: &HostPattern,
        text: impl Fn(usize) -> &'i str,
    ) -> Option<usize> {
        match pattern {
            HostPattern::Exact(name) => self.find_map(name.as_str(), text, Some),
            HostPattern::Suffix(suffix) => self
                .wider(suffix, suffix.len() + 1, &Endings::of(suffix), text, Some)
                .or(self.any),
            HostPattern::Any => self.any,
        }
    }

    /// Gives the indexes of all patterns that have every name of `pattern`, the most specific first.
    pub(crate) fn covering<'i>(
        &self,
        pattern: &HostPattern,
        text: impl Fn(usize) -> &'i str,
        mut give: impl FnMut(usize),
    ) {
        let mut give = |index| -> Option<()> {
            give(index);
            None
        };
        match pattern {
            HostPattern::Exact(name) => {
                self.find_map(name.as_str(), text, give);
            }
            HostPattern::Suffix(suffix) => {
                let endings = Endings::of(suffix);
                self.wider(suffix, suffix.len() + 1, &endings, text, &mut give);
                self.any.and_then(give);
            }
            HostPattern::Any => {
                self.any.and_then(give);
            }
        }
    }

    /// Returns the index of exactly this pattern, which is `index` from now on if it had none.
    pub(crate) fn entry<'i>(
        &mut self,
        pattern: &HostPattern,
        index: usize,
        text: &dyn Fn(usize) -> &'i str,
    ) -> usize {
        let key = pattern.text();
        let slots = match pattern {
            HostPattern::Exact(_) => &mut self.exact,
            HostPattern::Suffix(_) => {
                self.lengths.add(key.len());
                &mut self.endings
            }
            HostPattern::Any => return *self.any.get_or_insert(index),
        };
        slots.entry(Endings::of(key).hash(key.len()), index, |at| {
            text(at) == key
        })
    }

    /// Tries the indexes of wildcards by the endings of `host` that are shorter than `limit`, the longest first.
    fn wider<'i, T>(
        &self,
        host: &str,
        limit: usize,
        endings: &Endings<'_>,
        text: impl Fn(usize) -> &'i str,
        mut give: impl FnMut(usize) -> Option<T>,
    ) -> Option<T> {
        let mut limit = limit;
        while let Some(length) = self.lengths.longest_common(&endings.begin, limit) {
            limit = length;
            let ending = host.get(host.len().checked_sub(length)?..)?;
            let is = |at: usize| text(at) == ending;
            let index = self.endings.find(endings.hash(length), is);
            if let Some(given) = index.and_then(&mut give) {
                return Some(given);
            }
        }
        None
    }
}

/// Lengths of endings, up to that of the longest host; one bit each.
#[derive(Debug, Clone, Copy, Default)]
struct Lengths([u64; MAX_HOST_BYTES / 64 + 1]);

impl Lengths {
    fn add(&mut self, length: usize) {
        let at = length.wrapping_sub(1);
        if let Some(word) = self.0.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }

    /// Returns the longest of those in both that is shorter than `limit`.
    fn longest_common(&self, other: &Lengths, limit: usize) -> Option<usize> {
        let bits = limit.saturating_sub(1);
        let mut below = bits / 64 + 1;
        loop {
            below = below.checked_sub(1)?;
            let (Some(one), Some(other)) = (self.0.get(below), other.0.get(below)) else {
                continue;
            };
            let asked = match below == bits / 64 {
                true => (1 << (bits % 64)) - 1,
                false => u64::MAX,
            };
            let both = one & other & asked;
            if both != 0 {
                return Some(below * 64 + 64 - both.leading_zeros() as usize);
            }
        }
    }
}

/// A hash table of places.
///
/// Our own because `std`'s map draws its order by lot, and a sorted map compares a long name seventeen
/// times at 100,000 hosts. Keys come from the configuration, never from a request, so nobody can fill
/// one slot.
#[derive(Debug, Clone, Default)]
struct Slots {
    /// At most half of them are taken. A power of two, or empty.
    slots: Vec<Slot>,
    taken: usize,
}

/// A place, and the hash of what stands there, so that only what is most likely alike is looked at.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u32,
    index: u32,
}

impl Slot {
    const FREE: Slot = Slot {
        hash: 0,
        index: u32::MAX,
    };

    fn is_free(self) -> bool {
        self.index == Slot::FREE.index
    }
}

impl Slots {
    fn find(&self, hash: u32, is: impl Fn(usize) -> bool) -> Option<usize> {
        let mask = self.slots.len().wrapping_sub(1);
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots.get(at).filter(|slot| !slot.is_free())?;
            if slot.hash == hash && is(slot.index as usize) {
                return Some(slot.index as usize);
            }
            at = (at + 1) & mask;
        }
    }

    fn entry(&mut self, hash: u32, index: usize, is: impl Fn(usize) -> bool) -> usize {
        if let Some(known) = self.find(hash, is) {
            return known;
        }
        if (self.taken + 1) * 2 > self.slots.len() {
            let wider = vec![Slot::FREE; (self.slots.len() * 2).max(8)];
            let narrower = std::mem::replace(&mut self.slots, wider);
            for slot in narrower.into_iter().filter(|slot| !slot.is_free()) {
                self.put(slot);
            }
        }
        self.taken += 1;
        // So many places do not fit into memory.
        let narrow = u32::try_from(index).unwrap_or(u32::MAX);
        self.put(Slot {
            hash,
            index: narrow,
        });
        index
    }

    fn put(&mut self, slot: Slot) {
        let mask = self.slots.len().wrapping_sub(1);
        let mut at = slot.hash as usize & mask;
        while let Some(taken) = self.slots.get_mut(at) {
            if taken.is_free() {
                *taken = slot;
                return;
            }
            at = (at + 1) & mask;
        }
    }
}

/// What all endings of a text are looked for by. Eight bytes are taken at a time, from the end, so that a longer
/// ending goes on from where shorter ones are.
struct Endings<'h> {
    bytes: &'h [u8],
    /// What is mixed so far, after so many times eight bytes.
    states: [u64; MAX_HOST_BYTES / 8 + 1],
    /// The lengths of those that begin as the ending of a wildcard does, with a dot or a dash.
    begin: Lengths,
}

impl<'h> Endings<'h> {
    fn of(text: &'h str) -> Self {
        let mut endings = Endings {
            bytes: text.as_bytes(),
            states: [0; MAX_HOST_BYTES / 8 + 1],
            begin: Lengths::default(),
        };
        let mut state = 0;
        let eights = endings.bytes.rchunks_exact(8);
        let (last, odd) = (eights.len(), endings.bytes.len() % 8);
        let first = endings.first(0, odd);
        let mut begin = |at: usize, word: u64| {
            if let Some(lengths) = endings.begin.0.get_mut(at / 8) {
                *lengths |= dots(word) << (at % 8 * 8);
            }
        };
        for (at, eight) in eights.take(MAX_HOST_BYTES / 8).enumerate() {
            let eight = word(eight);
            begin(at, eight);
            state = mix(state, eight);
            if let Some(next) = endings.states.get_mut(at + 1) {
                *next = state;
            }
        }
        // The text's first bytes, moved up to where those of a whole word would be.
        begin(last, first << ((8 - odd) % 8 * 8));
        endings
    }

    /// Returns the `odd` bytes from a place on, fewer than eight.
    fn first(&self, begin: usize, odd: usize) -> u64 {
        match self.bytes.get(begin..begin + 8) {
            Some(eight) => word(eight) & ((1 << (odd * 8)) - 1),
            None => word(self.bytes.get(begin..begin + odd).unwrap_or_default()),
        }
    }

    /// Returns the hash of the last `length` bytes.
    fn hash(&self, length: usize) -> u32 {
        // What is longer than any host is nobody's.
        let state = self.states.get(length / 8).copied().unwrap_or(0);
        let odd = length % 8;
        let first = self.first(self.bytes.len().saturating_sub(length), odd);
        let state = mix(state, first ^ (length as u64) << 56);
        // The high half has been mixed best; the low bits of what is returned choose the slot.
        ((state ^ state >> 29).wrapping_mul(ODD) >> 32) as u32
    }
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(state: u64, word: u64) -> u64 {
    (state.rotate_left(5) ^ word).wrapping_mul(ODD)
}

/// Reads up to eight bytes, the first as the lowest.
pub(crate) fn word(bytes: &[u8]) -> u64 {
    match <[u8; 8]>::try_from(bytes) {
        Ok(eight) => u64::from_le_bytes(eight),
        Err(_) => bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

/// Returns a bit for each byte of a word that is a dot or a dash, that of the last byte first.
fn dots(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const LOW: u64 = ONES * 0x7f;
    // The highest bit of each byte that is zero; no carry leaves a byte.
    let zero = |word: u64| !(((word & LOW) + LOW) | word | LOW);
    let of = |byte: u8| zero(word ^ (ONES * u64::from(byte)));
    let found = of(b'.') | of(b'-');
    // Gathers them: byte 0 in bit 7.
    (found >> 7).wrapping_mul(0x8040_2010_0804_0201) >> 56
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    struct Patterns {
        index: HostIndex,
        patterns: Vec<HostPattern>,
    }

    impl Patterns {
        fn of<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
            let mut index = HostIndex::default();
            let mut patterns: Vec<HostPattern> = Vec::new();
            for text in texts {
                let pattern = HostPattern::parse(text).unwrap();
                let next = patterns.len();
                assert_eq!(index.entry(&pattern, next, &|at| patterns[at].text()), next);
                patterns.push(pattern);
            }
            Patterns { index, patterns }
        }

        fn find_all(&self, host: &str) -> Vec<String> {
            let text = |at: usize| self.patterns[at].text();
            let mut found = Vec::new();
            self.index.find_map(host, text, |at| {
                found.push(self.patterns[at].to_string());
                None::<()>
            });
            found
        }

        fn find_pattern(&self, text: &str) -> Option<String> {
            let pattern = HostPattern::parse(text).unwrap();
            let text = |at: usize| self.patterns[at].text();
            let index = self.index.find_pattern(&pattern, text)?;
            Some(self.patterns[index].to_string())
        }
    }

    #[test]
    fn the_most_specific_pattern_comes_first() {
        let patterns = Patterns::of(["*", "*.com", "*.b.com", "a.b.com", "*-x.b.com"]);
        for (host, found) in [
            ("a.b.com", &["a.b.com", "*.b.com", "*.com", "*"][..]),
            ("c.b.com", &["*.b.com", "*.com", "*"]),
            ("b.com", &["*.com", "*"]),
            ("y-x.b.com", &["*-x.b.com", "*.b.com", "*.com", "*"]),
            ("com", &["*"]),
            (".com", &["*"]),
            ("a.org", &["*"]),
            ("", &["*"]),
        ] {
            assert_eq!(patterns.find_all(host), found, "{host}");
        }
    }

    #[test]
    fn a_wildcard_is_found_by_itself_or_a_wider_one() {
        let patterns = Patterns::of(["*.com", "*.b.com", "x.b.com"]);
        assert_eq!(patterns.find_pattern("*.b.com").as_deref(), Some("*.b.com"));
        assert_eq!(patterns.find_pattern("*.a.com").as_deref(), Some("*.com"));
        assert_eq!(patterns.find_pattern("*.org"), None);
        assert_eq!(patterns.find_pattern("x.b.com").as_deref(), Some("x.b.com"));
    }

    #[test]
    fn a_pattern_keeps_its_first_place() {
        let mut patterns = Patterns::of(["a.com", "*.com", "*"]);
        for (index, text) in ["a.com", "*.com", "*"].into_iter().enumerate() {
            let pattern = HostPattern::parse(text).unwrap();
            let known = &patterns.patterns;
            let found = patterns.index.entry(&pattern, 7, &|at| known[at].text());
            assert_eq!(found, index, "{text}");
        }
    }

    #[test]
    fn ten_thousand_names_and_endings_are_all_found() {
        let names: Vec<String> = (0..10_000)
            .map(|n| match n % 2 {
                0 => format!("host-{n}.example.com"),
                _ => format!("*.tenant-{n}.example.com"),
            })
            .collect();
        let patterns = Patterns::of(names.iter().map(String::as_str));
        for name in &names {
            let host = name.replace('*', "www");
            assert_eq!(patterns.find_all(&host), [name.as_str()]);
        }
        assert!(patterns.find_all("host-10000.example.com").is_empty());
    }

    #[test]
    fn hosts_of_every_length_are_found_and_longer_ones_by_their_endings() {
        let labels = format!("{}abcdefg", "abcdefg.".repeat(40));
        let host = |length: usize| format!("x{}", &labels[labels.len() - length + 1..]);
        let named: Vec<String> = (2..=MAX_HOST_BYTES)
            .map(host)
            .filter(|name| HostPattern::parse(name).is_ok_and(|it| it.text() == name))
            .collect();
        assert!(named.len() > 200);
        let patterns = Patterns::of(named.iter().map(String::as_str).chain(["*.abcdefg"]));
        for name in &named {
            assert_eq!(patterns.find_all(name).first(), Some(name));
        }
        assert_eq!(patterns.find_all(&labels), ["*.abcdefg"]);
    }

    #[test]
    fn dots_and_dashes_are_seen_wherever_they_stand() {
        for text in [
            "........",
            "-a.b-c.d",
            "/,nop/n-",
            "\u{80}.\u{ad}.",
            "aaaaaaa.",
            ".aaaaaaa",
        ] {
            let bytes = text.as_bytes();
            let expected = bytes.iter().enumerate().fold(0, |bits, (at, byte)| {
                bits | u64::from(matches!(byte, b'.' | b'-')) << (bytes.len() - 1 - at)
            });
            assert_eq!(
                dots(word(bytes) << (64 - bytes.len() * 8)),
                expected,
                "{text}"
            );
        }
    }

    /// What looks alike to the table must not be taken for the same: the texts are compared.
    #[test]
    fn a_slot_with_the_same_hash_is_not_a_match() {
        let mut slots = Slots::default();
        for index in 0..100 {
            assert_eq!(slots.entry(7, index, |at| at == index), index);
        }
        for index in 0..100 {
            assert_eq!(slots.find(7, |at| at == index), Some(index));
        }
        assert_eq!(slots.find(7, |_| false), None);
        assert_eq!(slots.find(8, |_| true), None);
    }
}
