//! Where what a document says stands in its text.

use egress_policy::{FieldPath, Segment};
use saphyr_parser::Marker;

/// A place in a text: both counted from one, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl From<Marker> for Place {
    fn from(mark: Marker) -> Self {
        Place {
            line: mark.line(),
            column: mark.col() + 1,
        }
    }
}

impl From<Marker> for At {
    fn from(mark: Marker) -> Self {
        let short = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        At {
            line: short(mark.line()),
            column: short(mark.col() + 1),
        }
    }
}

impl From<At> for Place {
    fn from(at: At) -> Self {
        Place {
            line: at.line as usize,
            column: at.column as usize,
        }
    }
}

/// Where the parts of a document stand. There are as many as values, so each is small.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) at: At,
    /// Where its key stands, for the value of an object.
    pub(super) key: Option<At>,
    pub(super) children: Children,
}

/// A [`Place`], of which no text that is read has more than four billion.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    pub(super) line: u32,
    pub(super) column: u32,
}

#[derive(Debug, Clone)]
pub(super) enum Children {
    None,
    /// A value that is no string, as it was written, where JSON would write it otherwise.
    Written(Box<str>),
    List(Box<[Mark]>),
    Object(Box<[(Box<str>, Mark)]>),
}

impl Mark {
    fn child(&self, segment: &Segment) -> Option<&Mark> {
        match (&self.children, segment) {
            (Children::List(list), Segment::Index(index)) => list.get(*index),
            (Children::Object(object), Segment::Key(key)) => mark_of(object, key),
            _ => None,
        }
    }

    pub(super) fn exact(&self, path: &FieldPath) -> Option<&Mark> {
        path.0.iter().try_fold(self, Mark::child)
    }

    pub(super) fn find(&self, path: &FieldPath, key: bool) -> At {
        let mut mark = self;
        for segment in &path.0 {
            match mark.child(segment) {
                Some(next) => mark = next,
                // The field is missing: point at the object that should have it, by its name.
                None => return mark.key.unwrap_or(mark.at),
            }
        }
        if key {
            mark.key.unwrap_or(mark.at)
        } else {
            mark.at
        }
    }
}

/// Finds a field's mark among those of an object, which are few.
pub(super) fn mark_of<'m>(marks: &'m [(Box<str>, Mark)], key: &str) -> Option<&'m Mark> {
    let found = marks.iter().find(|(name, _)| **name == *key);
    found.map(|(_, mark)| mark)
}
