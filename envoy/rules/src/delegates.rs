//! VirtualServices that delegate: their routes become those of the VirtualServices that they name, before anybody reads
//! them.
//!
//! ```text
//! root      http[0]: match /v1, delegate team-a/v1 ─┐
//! delegate  http[0]: match /v1/users, route …       ├─► root  http[0]: match /v1/users, route …
//!           http[1]: match /v2, route …             ┘   (http[1] is left out: /v2 is not within /v1)
//! ```
//!
//! A delegate has no hosts. What it leaves open comes from the route that delegates to it. Where something is wrong with
//! a merged route, it is told at the line that says it: [`Delegated::tell`].
//!
//! Source: istio/istio `pilot/pkg/model/virtualservice.go`, `MergeHTTPRoutes`, and
//! `pilot/pkg/model/virtualservice_controller.go`, `mergeVirtualServices`.

use std::collections::BTreeMap;

use egress_policy::{
    DEFAULT_NAMESPACE, FieldPath, HostPattern, Mesh, Origin, Problem, ProblemKind, ResourceId,
    Segment, Severity,
};
use serde_json::{Map, Value};

use crate::document;
use crate::virtual_service::{KIND, VirtualService, full};

mod matches;

use matches::Joined;

/// What a route takes from the one that delegates to it, where it says nothing itself.
const INHERITED: [&str; 11] = [
    "rewrite",
    "directResponse",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrorPercent",
    "mirrorPercentage",
    "corsPolicy",
    "mirrors",
    "headers",
];

/// The VirtualServices that delegated, and where their routes were written.
#[derive(Debug, Default)]
pub(crate) struct Delegated {
    roots: BTreeMap<Origin, (ResourceId, Vec<Merged>)>,
    /// The roots as they were given, with what is wrong with them.
    read: Vec<(VirtualService, Vec<Problem>)>,
    /// The hosts that delegates are for: those of their roots.
    hosts: BTreeMap<Origin, Vec<HostPattern>>,
}

/// Where a route was written.
#[derive(Debug)]
struct Merged {
    /// Its place in the root.
    root: usize,
    /// The route of the delegate, if it is one.
    of: Option<Piece>,
}

/// A route of a delegate.
#[derive(Debug)]
struct Piece {
    id: ResourceId,
    origin: Origin,
    route: usize,
    /// What the root says for it.
    inherited: Vec<&'static str>,
    /// Of each match the place in the root and in the delegate, and what the delegate says of it.
    matches: Vec<Joined>,
}

/// A VirtualService that others delegate to.
struct Delegate {
    id: ResourceId,
    origin: Origin,
    export_to: Vec<String>,
    http: Vec<Map<String, Value>>,
}

/// Merges all that delegates among documents, in its place.
pub(crate) fn merge(documents: &mut [&mut Value], mesh: &Mesh) -> Delegated {
    let mut delegated = Delegated::default();
    let mut roots = Vec::new();
    let mut delegates = Vec::new();
    for (document, value) in documents.iter().enumerate() {
        for (item, resource) in document::resources(value) {
            if !VirtualService::is(resource) {
                continue;
            }
            let origin = Origin { document, item };
            if list(resource, "/spec/hosts").is_empty() {
                delegates.push(Delegate::of(resource, origin));
            } else if objects(resource, "/spec/http").any(|route| has(route, "delegate")) {
                roots.push((origin, VirtualService::read(resource, origin)));
            }
        }
    }
    for (origin, (read, problems)) in roots {
        let (Some(read), Some(resource)) = (read, at(documents, origin)) else {
            continue;
        };
        let mut merge = Merge {
            root: &read,
            delegates: &delegates,
            mesh,
            told: problems,
            hosts: &mut delegated.hosts,
        };
        let (http, places): (Vec<Value>, Vec<Merged>) = merge.all(resource).into_iter().unzip();
        let told = merge.told;
        if let Some(Value::Object(spec)) = resource.get_mut("spec") {
            spec.insert("http".to_owned(), Value::Array(http));
        }
        delegated.roots.insert(origin, (read.id.clone(), places));
        delegated.read.push((read, told));
    }
    delegated
}

/// One root, as it is merged.
struct Merge<'m> {
    root: &'m VirtualService,
    delegates: &'m [Delegate],
    mesh: &'m Mesh,
    told: Vec<Problem>,
    hosts: &'m mut BTreeMap<Origin, Vec<HostPattern>>,
}

impl<'m> Merge<'m> {
    /// Returns the routes of the root and of its delegates, and where each was written.
    fn all(&mut self, resource: &Value) -> Vec<(Value, Merged)> {
        let mut made = Vec::new();
        for (index, route) in list(resource, "/spec/http").iter().enumerate() {
            match route.as_object().filter(|route| has(route, "delegate")) {
                Some(route) => self.delegated(index, route, &mut made),
                None => made.push((
                    route.clone(),
                    Merged {
                        root: index,
                        of: None,
                    },
                )),
            }
        }
        made
    }

    /// Adds the routes that one route delegates to.
    fn delegated(
        &mut self,
        index: usize,
        route: &Map<String, Value>,
        made: &mut Vec<(Value, Merged)>,
    ) {
        let root = self.root;
        let delegate = match self.find(route) {
            Ok(delegate) => delegate,
            Err((text, hint)) => {
                let path = path_of(root.origin, index, [Segment::Key("delegate".to_owned())]);
                self.tell((&root.id, root.origin), path, text, hint);
                return;
            }
        };
        let hosts = self.hosts.entry(delegate.origin).or_default();
        hosts.extend(root.hosts.iter().cloned());
        for (at, own) in delegate.http.iter().enumerate() {
            let asked = matches::join(
                (matches_of(route), &root.id.namespace),
                (matches_of(own), &delegate.id.namespace),
            );
            let Some(asked) = asked else {
                let text = format!(
                    "its matches are not within those of `spec.http[{index}]` of {}, which delegates to it: Istio leaves this route out, and so it is here",
                    root.id
                );
                let hint = "ask for a part of what the route that delegates to it takes";
                let path = path_of(delegate.origin, at, [Segment::Key("match".to_owned())]);
                self.tell((&delegate.id, delegate.origin), path, text, hint.to_owned());
                continue;
            };
            let (asked, matches): (Vec<Value>, Vec<Joined>) = asked.into_iter().unzip();
            let mut whole = own.clone();
            whole.remove("match");
            if !asked.is_empty() {
                whole.insert("match".to_owned(), Value::Array(asked));
            }
            matches::name(&mut whole, route);
            let left_open = |key: &&str| has(route, key) && !has(own, key);
            let inherited: Vec<&'static str> = INHERITED.into_iter().filter(left_open).collect();
            for key in &inherited {
                whole.extend(
                    route
                        .get(*key)
                        .map(|value| ((*key).to_owned(), value.clone())),
                );
            }
            lengthen(&mut whole, &delegate.id.namespace);
            let piece = Piece {
                id: delegate.id.clone(),
                origin: delegate.origin,
                route: at,
                inherited,
                matches,
            };
            made.push((
                Value::Object(whole),
                Merged {
                    root: index,
                    of: Some(piece),
                },
            ));
        }
    }

    /// Finds the VirtualService that a route delegates to, or says why it does not count.
    fn find(&self, route: &Map<String, Value>) -> Result<&'m Delegate, (String, String)> {
        let root = &*self.root.id.namespace;
        let text = |key: &str| route.get("delegate")?.get(key)?.as_str();
        let namespace = text("namespace")
            .filter(|it| !it.is_empty())
            .unwrap_or(root);
        let name = text("name").unwrap_or_default();
        let mut all = self.delegates.iter();
        let found = all.find(|it| *it.id.namespace == *namespace && *it.id.name == *name);
        let Some(found) = found else {
            let text = format!(
                "no VirtualService {namespace}/{name} without `hosts` is here: Istio leaves this route out, and so it is here"
            );
            let hint = "add the VirtualService that it names, or correct `name` and `namespace`";
            return Err((text, hint.to_owned()));
        };
        let shown = match &found.export_to[..] {
            [] => self.mesh.routes.has(namespace, root),
            to => to
                .iter()
                .any(|to| to == "*" || to == root || (to == "." && namespace == root)),
        };
        if !shown {
            let text = format!(
                "{} is not exported to `{root}`: Istio leaves this route out, and so it is here",
                found.id
            );
            return Err((text, format!("add `{root}` to its `exportTo`")));
        }
        Ok(found)
    }

    fn tell(
        &mut self,
        (id, origin): (&ResourceId, Origin),
        path: FieldPath,
        text: String,
        hint: String,
    ) {
        self.told.push(Problem {
            severity: Severity::Warning,
            origin,
            resource: Some(id.clone()),
            path,
            kind: ProblemKind::Invalid(text),
            hint: Some(hint),
            id: None,
        });
    }
}

impl Delegate {
    fn of(resource: &Value, origin: Origin) -> Delegate {
        let text = |pointer: &str| resource.pointer(pointer).and_then(Value::as_str);
        let namespace = text("/metadata/namespace").filter(|text| !text.is_empty());
        let export_to = list(resource, "/spec/exportTo").iter();
        Delegate {
            id: ResourceId {
                kind: KIND,
                namespace: namespace.unwrap_or(DEFAULT_NAMESPACE).into(),
                name: text("/metadata/name").unwrap_or_default().into(),
            },
            origin,
            export_to: export_to
                .filter_map(|it| it.as_str().map(str::to_owned))
                .collect(),
            http: objects(resource, "/spec/http").cloned().collect(),
        }
    }
}

impl Delegated {
    /// Returns the hosts of those who delegate to a resource.
    pub(crate) fn hosts(&self, origin: Origin) -> Option<&[HostPattern]> {
        self.hosts.get(&origin).map(Vec::as_slice)
    }

    /// Returns what is wrong with those that concern hosts of the rules.
    pub(crate) fn problems(&mut self, concerns: impl Fn(&VirtualService) -> bool) -> Vec<Problem> {
        let read = std::mem::take(&mut self.read).into_iter();
        let concerned = read.filter(|(read, _)| concerns(read));
        concerned.flat_map(|(_, problems)| problems).collect()
    }

    /// Tells a problem of a merged route where it was written.
    pub(crate) fn tell(&self, problem: &mut Problem) -> bool {
        let Some((id, places)) = self.roots.get(&problem.origin) else {
            return false;
        };
        let below_list = match (&problem.path.0[..], problem.origin.item) {
            ([Segment::Key(items), Segment::Index(_), rest @ ..], Some(_)) if items == "items" => {
                rest
            }
            (whole, _) => whole,
        };
        let [
            Segment::Key(spec),
            Segment::Key(http),
            Segment::Index(index),
            below @ ..,
        ] = below_list
        else {
            return false;
        };
        if spec != "spec" || http != "http" {
            return false;
        }
        let Some(merged) = places.get(*index) else {
            return false;
        };
        let (whose, route, below) = merged.place(below);
        let (id, origin) = whose.unwrap_or((id, problem.origin));
        problem.origin = origin;
        problem.resource = Some(id.clone());
        problem.path = path_of(problem.origin, route, below);
        true
    }
}

impl Merged {
    /// Returns whose a field below the route is, if not the root's; and the place of the route there, and the field.
    fn place(&self, below: &[Segment]) -> (Option<(&ResourceId, Origin)>, usize, Vec<Segment>) {
        let of_root = |below: Vec<Segment>| (None, self.root, below);
        let Some(piece) = &self.of else {
            return of_root(below.to_vec());
        };
        let own = |below: Vec<Segment>| (Some((&piece.id, piece.origin)), piece.route, below);
        match below {
            [Segment::Key(key), ..] if piece.inherited.iter().any(|it| it == key) => {
                of_root(below.to_vec())
            }
            [Segment::Key(key), Segment::Index(at), rest @ ..] if key == "match" => {
                let at_match = |at: usize| {
                    let here = [Segment::Key("match".to_owned()), Segment::Index(at)];
                    here.into_iter().chain(rest.iter().cloned()).collect()
                };
                let joined = piece.matches.get(*at);
                let says = |joined: &&Joined| match rest.first() {
                    Some(Segment::Key(field)) => joined.keys.contains(field),
                    _ => true,
                };
                let of_own = joined.filter(says).and_then(|joined| joined.own);
                match (of_own, joined.and_then(|joined| joined.root)) {
                    (Some(at), _) => own(at_match(at)),
                    (None, Some(at)) => of_root(at_match(at)),
                    (None, None) => own(below.to_vec()),
                }
            }
            _ => own(below.to_vec()),
        }
    }
}

/// Completes the hosts that a route leads to, as its own namespace has them.
fn lengthen(route: &mut Map<String, Value>, namespace: &str) {
    let sends = route.get_mut("route").and_then(Value::as_array_mut);
    for to in sends.into_iter().flatten() {
        if let Some(Value::String(host)) = to.pointer_mut("/destination/host") {
            *host = full(host, namespace);
        }
    }
}

fn matches_of(route: &Map<String, Value>) -> &[Value] {
    let list = route.get("match").and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

/// Whether a field is given, and is not null.
fn has(fields: &Map<String, Value>, key: &str) -> bool {
    fields.get(key).is_some_and(|value| !value.is_null())
}

fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

fn objects<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Map<String, Value>> {
    list(value, pointer).iter().filter_map(Value::as_object)
}

/// Returns a resource of a document.
fn at<'v>(documents: &'v mut [&mut Value], origin: Origin) -> Option<&'v mut Value> {
    let document = documents.get_mut(origin.document)?;
    match origin.item {
        Some(item) => document.get_mut("items")?.get_mut(item),
        None => Some(document),
    }
}

/// Returns the path of a field of a route.
fn path_of(origin: Origin, route: usize, below: impl IntoIterator<Item = Segment>) -> FieldPath {
    let mut path = FieldPath::keys("spec.http");
    if let Some(item) = origin.item {
        let list = [Segment::Key("items".to_owned()), Segment::Index(item)];
        path.0.splice(0..0, list);
    }
    path.0.push(Segment::Index(route));
    path.0.extend(below);
    path
}

#[cfg(test)]
mod tests;
