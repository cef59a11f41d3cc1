//! One sort and one way to fill a map for all types: each of its own makes the wasm module kilobytes larger.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::mem;

/// Sorts; what compares as equal stays in the order it had.
pub(crate) fn sort_by<T>(items: &mut Vec<T>, order: impl Fn(&T, &T) -> Ordering) {
    let mut places: Vec<usize> = (0..items.len()).collect();
    sort_places(&mut places, &|one, other| {
        items
            .get(one)
            .zip(items.get(other))
            .map_or(Ordering::Equal, |(one, other)| order(one, other))
    });
    let mut taken: Vec<Option<T>> = mem::take(items).into_iter().map(Some).collect();
    items.extend(
        places
            .into_iter()
            .filter_map(|place| taken.get_mut(place)?.take()),
    );
}

#[inline(never)]
fn sort_places(places: &mut [usize], order: &dyn Fn(usize, usize) -> Ordering) {
    places.sort_by(|one, other| order(*one, *other));
}

/// Fills a map one by one, where `collect` would sort first. Of two alike the later counts.
pub fn map_of<K: Ord, V>(pairs: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    map.extend(pairs);
    map
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn what_is_alike_keeps_its_order() {
        let mut items: Vec<(u32, u32)> = (0..100).map(|at| (at * 7 % 5, at)).collect();
        let mut expected = items.clone();
        expected.sort_by_key(|(key, _)| *key);
        sort_by(&mut items, |one, other| one.0.cmp(&other.0));
        assert_eq!(items, expected);
    }

    #[test]
    fn the_later_of_two_counts() {
        assert_eq!(map_of([(1, 'a'), (1, 'b')]), BTreeMap::from([(1, 'b')]));
    }
}
