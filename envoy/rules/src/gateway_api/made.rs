//! What was made of routes, and what is told of it.

use std::collections::{BTreeMap, BTreeSet};

use egress_policy::{
    FieldPath, HostPattern, Origin, Problem, ProblemKind, Problems, ResourceId, Segment, Severity,
};
use serde_json::Value;

use super::place::Places;
use crate::delegates::Delegated;

/// What was made of the routes among documents.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// VirtualServices and Gateways of Istio's. They stand behind the documents that were given.
    pub(crate) documents: Vec<Value>,
    /// Which resource each of them is.
    ids: Vec<ResourceId>,
    places: Vec<Places>,
    /// How many documents were given.
    given: usize,
    /// The routes of which something was made.
    pub(super) read: BTreeSet<Origin>,
    /// The hosts that each route is attached to.
    pub(super) hosts: BTreeMap<Origin, Vec<HostPattern>>,
    /// The VirtualServices that delegated, which stand among the documents that were given.
    pub(crate) delegated: Delegated,
    /// What is wrong with the routes.
    pub(crate) problems: Vec<Problem>,
}

impl Made {
    /// Returns nothing, behind so many documents.
    pub(super) fn behind(given: usize) -> Made {
        Made {
            given,
            ..Made::default()
        }
    }

    /// Adds a document, and where what it says was written.
    pub(super) fn add(&mut self, id: ResourceId, document: Value, places: Places) {
        self.documents.push(document);
        self.ids.push(id);
        self.places.push(places);
    }

    /// Whether a resource is carried out, though the engine does not know its kind.
    pub(crate) fn has_read(&self, origin: Origin) -> bool {
        self.read.contains(&origin)
    }

    /// Returns the hosts that a route is attached to, or that those have who delegate to a resource.
    pub(crate) fn hosts_of(&self, origin: Origin) -> Option<&[HostPattern]> {
        let of_route = self.hosts.get(&origin).map(Vec::as_slice);
        of_route.or_else(|| self.delegated.hosts(origin))
    }

    /// Returns the route of which a rule of a VirtualService was made.
    pub(crate) fn route_of(&self, id: &ResourceId, rule: usize) -> Option<&ResourceId> {
        let at = self.ids.iter().position(|other| other == id)?;
        Some(&self.places.get(at)?.at(rule)?.id)
    }

    /// Tells a problem of what was made at the resource of which it was made.
    pub(crate) fn tell(&self, problem: &mut Problem) -> bool {
        if self.delegated.tell(problem) {
            return true;
        }
        let at = problem.origin.document.checked_sub(self.given);
        let Some(places) = at.and_then(|at| self.places.get(at)) else {
            return false;
        };
        let Some((place, path)) = places.find(&problem.path) else {
            return false;
        };
        problem.origin = place.origin;
        problem.resource = Some(place.id.clone());
        problem.path = path;
        true
    }

    /// As [`Made::tell`], of all. What several hosts of one route have is told once, and so is what a delegate says.
    pub(crate) fn tell_all(&self, problems: &mut Problems) {
        let all = std::mem::take(&mut problems.0);
        for mut problem in all {
            let told = self.tell(&mut problem) || self.delegated.hosts(problem.origin).is_some();
            if !told || !problems.0.contains(&problem) {
                problems.0.push(problem);
            }
        }
    }
}

/// Makes a problem of a resource as a whole, at one of its fields.
pub(super) fn problem(
    severity: Severity,
    (id, origin): (&ResourceId, Origin),
    path: FieldPath,
    text: String,
    hint: String,
) -> Problem {
    Problem {
        severity,
        origin,
        resource: Some(id.clone()),
        path,
        kind: ProblemKind::Invalid(text),
        hint: Some(hint),
        id: None,
    }
}

/// Returns the path of a field of a resource, which may be an item of a list.
pub(super) fn path_of(origin: Origin, dotted: &str) -> FieldPath {
    let mut path = FieldPath::keys(dotted);
    if let Some(item) = origin.item {
        let list = [Segment::Key("items".to_owned()), Segment::Index(item)];
        path.0.splice(0..0, list);
    }
    path
}
