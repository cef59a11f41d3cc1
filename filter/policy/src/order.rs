//! One sort and one way to fill a map for all types: each of its own makes the wasm module kilobytes larger.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::mem;

use crate::host_index::word;
use crate::resource::Meta;

/// Sorts; what compares as equal stays in the order it had.
pub(crate) fn sort_by<T>(items: &mut Vec<T>, order: impl Fn(&T, &T) -> Ordering) {
    let mut indexes: Vec<usize> = (0..items.len()).collect();
    sort_indexes(&mut indexes, &|one, other| {
        items
            .get(one)
            .zip(items.get(other))
            .map_or(Ordering::Equal, |(one, other)| order(one, other))
    });
    let mut taken: Vec<Option<T>> = mem::take(items).into_iter().map(Some).collect();
    items.extend(
        indexes
            .into_iter()
            .filter_map(|index| taken.get_mut(index)?.take()),
    );
}

/// Returns the indexes of resources in the order of [`Meta::order`].
pub(crate) fn sorted(metas: &[&Meta]) -> Vec<usize> {
    sorted_after(metas, |_, meta| (&*meta.created, 0), |meta| meta.order())
}

/// Returns the indexes of resources in the order of a key, and where that is equal, of another.
///
/// Names often begin alike and lie far apart in memory, so what they differ in is laid out between the two: the second
/// key must begin with the name, once what the first one holds is equal.
fn sorted_after<'m, F: Ord, S: Ord>(
    metas: &[&'m Meta],
    first_key: impl Fn(usize, &'m Meta) -> F,
    second_key: impl Fn(&'m Meta) -> S,
) -> Vec<usize> {
    let first = metas.first().map_or("", |meta| &meta.id.name).as_bytes();
    let alike = metas.iter().fold(first.len(), |alike, meta| {
        let pairs = first.iter().zip(meta.id.name.as_bytes()).take(alike);
        pairs.take_while(|(one, other)| one == other).count()
    });
    let head = |meta: &Meta| {
        let rest = meta.id.name.as_bytes().get(alike..).unwrap_or_default();
        word(rest.get(..8).unwrap_or(rest)).swap_bytes()
    };
    let keys: Vec<(F, u64)> = metas
        .iter()
        .enumerate()
        .map(|(at, meta)| (first_key(at, meta), head(meta)))
        .collect();
    let mut indexes: Vec<usize> = (0..metas.len()).collect();
    sort_indexes(&mut indexes, &|one, other| {
        let order = |at: usize| metas.get(at).copied().map(&second_key);
        let heads = keys.get(one).cmp(&keys.get(other));
        heads.then_with(|| order(one).cmp(&order(other)))
    });
    indexes
}

/// Returns the indexes of ServiceEntries in the order in which one host's are asked: of `rank`, the lowest first, then
/// the oldest, then by namespace and name.
///
/// Istio compares the host before the namespace, as that is the name of an entry's service. Of one host it is equal.
///
/// Source: istio/istio `pilot/pkg/model/push_context.go`, `SortServicesByCreationTime`.
pub(crate) fn entries_sorted(metas: &[&Meta], rank: impl Fn(usize) -> u8) -> Vec<usize> {
    let mut namespaces: BTreeMap<&str, usize> = BTreeMap::new();
    for meta in metas {
        namespaces.insert(&meta.id.namespace, 0);
    }
    for (number, index) in namespaces.values_mut().enumerate() {
        *index = number;
    }
    let namespace = |meta: &Meta| namespaces.get(&*meta.id.namespace).copied();
    sorted_after(
        metas,
        |at, meta| (rank(at), &*meta.created, namespace(meta)),
        |meta| &*meta.id.name,
    )
}

#[inline(never)]
fn sort_indexes(indexes: &mut [usize], order: &dyn Fn(usize, usize) -> Ordering) {
    indexes.sort_by(|one, other| order(*one, *other));
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
    use crate::problem::Origin;
    use crate::resource::{Notes, ResourceId};

    #[test]
    fn what_is_alike_keeps_its_order() {
        let mut items: Vec<(u32, u32)> = (0..100).map(|at| (at * 7 % 5, at)).collect();
        let mut expected = items.clone();
        expected.sort_by_key(|(key, _)| *key);
        sort_by(&mut items, |one, other| one.0.cmp(&other.0));
        assert_eq!(items, expected);
    }

    #[test]
    fn resources_come_by_age_then_name_then_namespace() {
        let meta = |created: &str, name: &str, namespace: &str| Meta {
            id: ResourceId {
                kind: "ServiceEntry",
                namespace: namespace.into(),
                name: name.into(),
            },
            origin: Origin::default(),
            created: created.to_owned(),
            labels: Vec::new(),
            notes: Notes::default(),
        };
        let names = [
            "entry-2",
            "entry-10",
            "entry",
            "entry-1",
            "entry-123456789",
            "entry-123456788",
            "f",
        ];
        let mut metas: Vec<Meta> = names.iter().map(|name| meta("", name, "b")).collect();
        metas.push(meta("", "entry-1", "a"));
        metas.push(meta("2026-01-01T00:00:00Z", "a", "a"));
        let mut expected: Vec<&Meta> = metas.iter().collect();
        expected.sort_by(|one, other| one.order().cmp(&other.order()));
        let all: Vec<&Meta> = metas.iter().collect();
        let found: Vec<&Meta> = sorted(&all).into_iter().map(|at| all[at]).collect();
        assert_eq!(found, expected);
        assert!(sorted(&[]).is_empty());
    }

    #[test]
    fn the_later_of_two_counts() {
        assert_eq!(map_of([(1, 'a'), (1, 'b')]), BTreeMap::from([(1, 'b')]));
    }
}
