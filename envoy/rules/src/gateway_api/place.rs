//! Where what was made of a route was written.

use egress_policy::{FieldPath, Origin, ResourceId, Segment};

/// The places of the items of one list of a document that was made.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// The list, below `spec`.
    pub(super) list: &'static str,
    /// Of each item.
    pub(super) items: Vec<Place>,
}

/// Where an item of the list was written.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The resource.
    pub(super) id: ResourceId,
    /// Where it was read.
    pub(super) origin: Origin,
    /// The rule, or the listener.
    pub(super) rule: FieldPath,
    /// The match, where the rule has any.
    pub(super) matched: Option<FieldPath>,
    /// Each of the destinations.
    pub(super) backends: Vec<FieldPath>,
}

impl Places {
    /// Returns the place of an item.
    pub(super) fn at(&self, index: usize) -> Option<&Place> {
        self.items.get(index).or(self.items.first())
    }

    /// Returns the place of a field of the document, and the path there.
    pub(super) fn find(&self, path: &FieldPath) -> Option<(&Place, FieldPath)> {
        let (index, below) = match &path.0[..] {
            [_, Segment::Key(list), Segment::Index(index), below @ ..] if list == self.list => {
                (Some(*index), below)
            }
            _ => (None, &[][..]),
        };
        let place = self.at(index.unwrap_or(0))?;
        let path = match index {
            Some(_) => place.path(below),
            None => place.whole(path),
        };
        Some((place, path))
    }
}

impl Place {
    /// Returns the path to what a field below the item was made of.
    fn path(&self, below: &[Segment]) -> FieldPath {
        let key = |key: &str| {
            let mut path = self.rule.clone();
            path.0.push(Segment::Key(key.to_owned()));
            path
        };
        let Some(Segment::Key(name)) = below.first() else {
            return self.rule.clone();
        };
        let backend = match below.get(1) {
            Some(Segment::Index(index)) => self.backends.get(*index),
            _ => None,
        };
        match name.as_str() {
            "match" => self.matched.clone().unwrap_or_else(|| self.rule.clone()),
            "route" => backend.cloned().unwrap_or_else(|| key("backendRefs")),
            "headers" | "rewrite" | "redirect" => key("filters"),
            "timeout" => key("timeouts"),
            "retries" => key("retry"),
            _ => self.rule.clone(),
        }
    }

    /// Returns the path to what a field was made of that is of no item.
    fn whole(&self, path: &FieldPath) -> FieldPath {
        let mut whole = self.rule.clone();
        let spec = |segment: &Segment| *segment == Segment::Key("spec".to_owned());
        let end = whole.0.iter().position(spec).map_or(0, |at| at + 1);
        whole.0.truncate(end);
        if matches!(path.0.get(1), Some(Segment::Key(key)) if key == "hosts") {
            whole.0.push(Segment::Key("parentRefs".to_owned()));
        }
        whole
    }
}
