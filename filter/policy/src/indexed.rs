//! Resources with their positions in the list.

use std::ops::Deref;

/// A resource, and its index among all of its kind.
pub(crate) struct Indexed<'r, T> {
    pub(crate) item: &'r T,
    pub(crate) index: usize,
}

impl<'r, T> Indexed<'r, T> {
    /// Returns all resources of a list with their indices.
    pub(crate) fn all(items: &'r [T]) -> impl Iterator<Item = Self> + Clone {
        let indexed = |(index, item)| Indexed { item, index };
        items.iter().enumerate().map(indexed)
    }

    /// Returns the resource at an index of a list.
    pub(crate) fn at(items: &'r [T], index: usize) -> Option<Self> {
        let item = items.get(index)?;
        Some(Indexed { item, index })
    }
}

impl<T> Clone for Indexed<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Indexed<'_, T> {}

impl<T> Deref for Indexed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.item
    }
}
