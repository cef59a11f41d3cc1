//! Finds the most specific pattern for a host: the exact name, then endings from longest to shortest.

use crate::host::HostPattern;

/// Values by host pattern.
#[derive(Debug, Clone)]
pub(crate) struct HostIndex<T> {
    exact: TextMap<T>,
    endings: TextMap<T>,
    /// The lengths that endings have, longest first, so that a look-up tries each length once.
    lengths: Vec<usize>,
    any: Option<T>,
}

impl<T> Default for HostIndex<T> {
    fn default() -> Self {
        HostIndex {
            exact: TextMap::default(),
            endings: TextMap::default(),
            lengths: Vec::new(),
            any: None,
        }
    }
}

impl<T> HostIndex<T> {
    /// Returns the values of all patterns that have `host`, the most specific first.
    pub(crate) fn find_all(&self, host: &str) -> impl Iterator<Item = &T> {
        let exact = self.exact.get(host);
        exact
            .into_iter()
            .chain(self.endings(host, host.len().saturating_sub(1)))
            .chain(&self.any)
    }

    /// Returns the value of the most specific pattern that has every name of `pattern`.
    pub(crate) fn find_pattern(&self, pattern: &HostPattern) -> Option<&T> {
        match pattern {
            HostPattern::Exact(name) => self.find_all(name.as_str()).next(),
            HostPattern::Suffix(suffix) => self
                .endings(suffix, suffix.len())
                .next()
                .or(self.any.as_ref()),
            HostPattern::Any => self.any.as_ref(),
        }
    }

    /// Returns the value of exactly this pattern, after putting `make()` there if there was none.
    pub(crate) fn entry(
        &mut self,
        pattern: &HostPattern,
        make: impl FnOnce() -> T,
    ) -> Option<&mut T> {
        match pattern {
            HostPattern::Exact(name) => self.exact.entry(name.as_str(), make),
            HostPattern::Suffix(suffix) => {
                if let Err(at) = self
                    .lengths
                    .binary_search_by(|length| suffix.len().cmp(length))
                {
                    self.lengths.insert(at, suffix.len());
                }
                self.endings.entry(suffix, make)
            }
            HostPattern::Any => Some(self.any.get_or_insert_with(make)),
        }
    }

    /// Returns the values of the endings of `host` that are no longer than `longest`, the longest first.
    fn endings(&self, host: &str, longest: usize) -> impl Iterator<Item = &T> {
        self.lengths
            .iter()
            .filter(move |length| **length <= longest)
            .filter_map(move |length| {
                let ending = host.get(host.len() - length..)?;
                // An ending begins with one of these, which spares most look-ups.
                if !ending.starts_with(['.', '-']) {
                    None
                } else {
                    self.endings.get(ending)
                }
            })
    }
}

/// Values by text, in the order they were put in.
///
/// Our own because `std`'s map draws its order by lot, and a sorted map compares a long name seventeen
/// times at 100,000 hosts. Keys come from the configuration, never from a request, so nobody can fill
/// one slot.
#[derive(Debug, Clone)]
struct TextMap<T> {
    entries: Vec<(Box<str>, T)>,
    /// Places in `entries`, by hash; at most half of them are taken. A power of two, or empty.
    slots: Vec<u32>,
}

const FREE: u32 = u32::MAX;

impl<T> Default for TextMap<T> {
    fn default() -> Self {
        TextMap {
            entries: Vec::new(),
            slots: Vec::new(),
        }
    }
}

impl<T> TextMap<T> {
    fn get(&self, key: &str) -> Option<&T> {
        self.place(key)
            .ok()
            .and_then(|at| self.entries.get(at))
            .map(|(_, value)| value)
    }

    fn entry(&mut self, key: &str, make: impl FnOnce() -> T) -> Option<&mut T> {
        if (self.entries.len() + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let at = match self.place(key) {
            Ok(at) => at,
            Err(slot) => {
                let at = self.entries.len();
                if let Some(slot) = self.slots.get_mut(slot) {
                    *slot = u32::try_from(at).unwrap_or(FREE);
                }
                self.entries.push((key.into(), make()));
                at
            }
        };
        self.entries.get_mut(at).map(|(_, value)| value)
    }

    /// Returns the entry's place, or the slot where it would stand.
    fn place(&self, key: &str) -> Result<usize, usize> {
        let mask = self.slots.len().wrapping_sub(1);
        let mut slot = hash(key) & mask;
        loop {
            match self.slots.get(slot) {
                None | Some(&FREE) => return Err(slot),
                Some(&at) => {
                    let at = at as usize;
                    if self
                        .entries
                        .get(at)
                        .is_some_and(|(stored, _)| **stored == *key)
                    {
                        return Ok(at);
                    }
                    slot = (slot + 1) & mask;
                }
            }
        }
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(8);
        self.slots = vec![FREE; size];
        for (at, (key, _)) in self.entries.iter().enumerate() {
            let mut slot = hash(key) & (size - 1);
            while self.slots.get(slot).is_some_and(|taken| *taken != FREE) {
                slot = (slot + 1) & (size - 1);
            }
            if let Some(free) = self.slots.get_mut(slot) {
                *free = u32::try_from(at).unwrap_or(FREE);
            }
        }
    }
}

/// Mixes eight bytes at a time, then folds the high half into the low one, which picks the slot.
fn hash(text: &str) -> usize {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |state: u64, word: u64| (state.rotate_left(5) ^ word).wrapping_mul(ODD);
    let mut chunks = text.as_bytes().chunks_exact(8);
    let mut state = text.len() as u64;
    for chunk in &mut chunks {
        state = mix(
            state,
            <[u8; 8]>::try_from(chunk).map_or(0, u64::from_le_bytes),
        );
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(chunks.remainder()) {
        *to = *from;
    }
    state = mix(state, u64::from_le_bytes(last));
    state ^= state >> 32;
    (state.wrapping_mul(ODD) >> 32) as usize
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn index(patterns: &[&str]) -> HostIndex<String> {
        let mut index = HostIndex::default();
        for pattern in patterns {
            index
                .entry(&HostPattern::parse(pattern).unwrap(), || {
                    (*pattern).to_owned()
                })
                .unwrap();
        }
        index
    }

    #[test]
    fn the_most_specific_pattern_wins() {
        let index = index(&["*", "*.com", "*.b.com", "a.b.com", "*-x.b.com"]);
        for (host, found) in [
            ("a.b.com", "a.b.com"),
            ("c.b.com", "*.b.com"),
            ("b.com", "*.com"),
            ("y-x.b.com", "*-x.b.com"),
            ("com", "*"),
            ("a.org", "*"),
        ] {
            assert_eq!(
                index.find_all(host).next().map(String::as_str),
                Some(found),
                "{host}"
            );
        }
    }

    #[test]
    fn a_wildcard_is_found_by_itself_or_a_wider_one() {
        let index = index(&["*.com", "*.b.com", "x.b.com"]);
        let find = |text: &str| {
            index
                .find_pattern(&HostPattern::parse(text).unwrap())
                .cloned()
        };
        assert_eq!(find("*.b.com").as_deref(), Some("*.b.com"));
        assert_eq!(find("*.a.com").as_deref(), Some("*.com"));
        assert_eq!(find("*.org"), None);
    }

    #[test]
    fn ten_thousand_names_are_all_found() {
        let names: Vec<String> = (0..10_000)
            .map(|n| format!("host-{n}.example.com"))
            .collect();
        let mut index = HostIndex::default();
        for (at, name) in names.iter().enumerate() {
            index
                .entry(&HostPattern::parse(name).unwrap(), || at)
                .unwrap();
        }
        for (at, name) in names.iter().enumerate() {
            assert_eq!(index.find_all(name).next(), Some(&at));
        }
        assert_eq!(index.find_all("host-10000.example.com").next(), None);
    }
}
