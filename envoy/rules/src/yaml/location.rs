//! The place in the text of each value of a document.

use egress_policy::{FieldPath, Segment};
use saphyr_parser::Marker;

/// A place in a text: both counted from one, the column in characters. No text that is read has more than four billion
/// of either, and there are as many locations as values, so each is small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Location {
    /// Where a text begins.
    pub const START: Location = Location { line: 1, column: 1 };

    pub(super) fn new(line: usize, column: usize) -> Self {
        let short = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Location {
            line: short(line),
            column: short(column),
        }
    }

    /// The same below so many lines.
    pub(super) fn below(self, lines: usize) -> Self {
        Location {
            column: self.column,
            ..Location::new(self.line as usize + lines, 1)
        }
    }
}

impl From<Marker> for Location {
    fn from(mark: Marker) -> Self {
        Location::new(mark.line(), mark.col() + 1)
    }
}

/// Where the parts of a document stand. There are as many as values, so each is small.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) at: Location,
    /// Where its key stands, for the value of an object.
    pub(super) key: Option<Location>,
    pub(super) children: Children,
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

    pub(super) fn find(&self, path: &FieldPath, key: bool) -> Location {
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
