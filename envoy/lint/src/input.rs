//! What there is to lint: documents with their places, and the resources in them.

use std::collections::{BTreeMap, BTreeSet};

use egress_policy::{
    FieldPath, HostPattern, Meta, Origin, Parser, Problem, ProblemKind, Resources, Segment,
};
use serde_json::{Map, Value};

use crate::catalogue::{DUPLICATE_RESOURCE, INVALID};
use crate::finding::Finding;
use crate::leads::{self, Leads};
use crate::path::way;
use crate::policy;
use crate::servers::{self, Gateway};
use crate::severity::Severity;
use egress_rules::yaml::{self, Document, Location};
use egress_rules::{Derived, Source, is_ours, resources, told};

/// The kinds that have findings. All others may rely on what these say.
const LINTED: [&str; 2] = ["ServiceEntry", "DestinationRule"];

/// The kinds that lead nothing, or where it is known what they lead: see [`leads`].
const UNDERSTOOD: [&str; 5] = [
    "VirtualService",
    "Gateway",
    "Sidecar",
    "WorkloadEntry",
    "BackendTLSPolicy",
];

/// Files, documents and resources.
pub(crate) struct Input {
    documents: Vec<Read>,
    /// What routes of the Gateway API and delegates come to. Its documents stand behind the others.
    derived: Derived,
    /// What could be read. Of a resource that is given twice, the later.
    pub(crate) resources: Resources,
    /// All resources of our kinds, also those that could not be read.
    pub(crate) bare: Vec<Bare>,
    /// The namespaces that have a Gateway, of Istio's kind or of Kubernetes'.
    pub(crate) gateways: BTreeSet<String>,
    /// The Gateways of Istio's kind, with their servers.
    pub(crate) servers: Vec<Gateway>,
    /// The texts in resources of other kinds, in small letters: they may name hosts that they lead requests to.
    elsewhere: BTreeSet<String>,
    /// Those of them in resources that may lead requests in ways that are not understood.
    beyond: BTreeSet<String>,
    /// What VirtualServices lead.
    pub(crate) leads: Vec<Leads>,
    /// Whether anything could not even be looked at, so that nothing follows from what is not there.
    pub(crate) partial: bool,
    found: Vec<Finding>,
    files: BTreeMap<String, usize>,
}

struct Read {
    source: usize,
    file: String,
    /// The number of the document in its file.
    at: usize,
    document: Document,
}

/// A resource as findings speak of it.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) origin: Origin,
    /// For example `DestinationRule default/api`.
    pub(crate) name: String,
}

/// A resource of our kinds, as it was written.
pub(crate) struct Bare {
    pub(crate) subject: Subject,
    pub(crate) namespace: String,
    pub(crate) kind: &'static str,
    pub(crate) spec: Map<String, Value>,
    /// Whether the parser refused it.
    pub(crate) refused: bool,
}

impl Subject {
    pub(crate) fn of(meta: &Meta) -> Self {
        Subject {
            origin: meta.origin,
            name: meta.id.to_string(),
        }
    }

    /// Returns the path of a field from the root of the document.
    ///
    /// What a rule that was made of a BackendTLSPolicy says of TLS stands in `spec.validation`.
    pub(crate) fn path(&self, path: &str) -> FieldPath {
        let made = self.name.starts_with("BackendTLSPolicy ");
        let path = match made && path.starts_with("spec.trafficPolicy") {
            true => "spec.validation",
            false => path,
        };
        let mut segments = Vec::new();
        if let Some(item) = self.origin.item {
            segments.extend([Segment::Key("items".to_owned()), Segment::Index(item)]);
        }
        segments.extend(way(path));
        FieldPath(segments)
    }
}

impl Bare {
    /// Returns the hosts that it is for, as far as they are any.
    pub(crate) fn hosts(&self) -> Vec<HostPattern> {
        let one = self.spec.get("host").into_iter();
        let list = self.spec.get("hosts").and_then(Value::as_array);
        one.chain(list.into_iter().flatten())
            .filter_map(|host| HostPattern::parse(host.as_str()?).ok())
            .collect()
    }
}

impl Input {
    /// Reads and parses all there is.
    pub(crate) fn read(sources: &[Source]) -> Self {
        let mut input = Input {
            documents: Vec::new(),
            derived: Derived::default(),
            resources: Resources::default(),
            bare: Vec::new(),
            gateways: BTreeSet::new(),
            servers: Vec::new(),
            elsewhere: BTreeSet::new(),
            beyond: BTreeSet::new(),
            leads: Vec::new(),
            partial: false,
            found: Vec::new(),
            files: BTreeMap::new(),
        };
        for (at, source) in sources.iter().enumerate() {
            input.files.insert(source.name.clone(), at);
            match yaml::read(&source.text, is_ours) {
                Ok(documents) => {
                    let read = documents
                        .into_iter()
                        .enumerate()
                        .map(|(number, document)| Read {
                            source: at,
                            file: source.name.clone(),
                            at: number,
                            document,
                        });
                    input.documents.extend(read);
                }
                Err(error) => {
                    input.partial = true;
                    input.found.push(Finding {
                        file: source.name.clone(),
                        place: error.at,
                        hint: error.hint,
                        ..invalid(Severity::Error, Origin::default(), error.what)
                    });
                }
            }
        }
        let values = input.documents.iter_mut();
        let mut values: Vec<&mut Value> = values.map(|read| &mut read.document.value).collect();
        input.derived = Derived::of(&mut values);
        let mut parser = Parser::new();
        for (document, read) in input.documents.iter().enumerate() {
            parser.document(&read.document.value);
            let gateways = resources(&read.document.value).filter(|(_, value)| is_gateway(value));
            let namespaces = gateways.map(|(_, value)| namespace(value).to_owned());
            input.gateways.extend(namespaces);
            for (item, value) in resources(&read.document.value) {
                let kind = value.get("kind").and_then(Value::as_str);
                let kind = kind.unwrap_or_default();
                if !LINTED.contains(&kind) && !["Secret", "ConfigMap"].contains(&kind) {
                    collect_texts(value, &mut input.elsewhere);
                    let origin = Origin { document, item };
                    if !UNDERSTOOD.contains(&kind) && !input.derived.has_read(origin) {
                        collect_texts(value, &mut input.beyond);
                    }
                }
                input.servers.extend(servers::read(value, namespace(value)));
                input.leads.extend(leads::read(
                    value,
                    namespace(value),
                    Origin { document, item },
                ));
            }
        }
        for (at, value) in input.derived.documents().iter().enumerate() {
            parser.document(value);
            let origin = Origin {
                document: input.documents.len() + at,
                item: None,
            };
            input.servers.extend(servers::read(value, namespace(value)));
            input
                .leads
                .extend(leads::read(value, namespace(value), origin));
        }
        let (resources, problems) = parser.finish();
        input.resources = resources;
        policy::join(&mut input.resources.destination_rules);
        let located = problems
            .0
            .iter()
            .filter_map(|problem| input.located(problem));
        let located: Vec<Finding> = located.collect();
        input.found.extend(located);
        input.bare = input.bare();
        input.once();
        input
    }

    fn located(&self, problem: &Problem) -> Option<Finding> {
        // Other kinds are none of our business, and neither is what our filter does not honour. Duplicates have
        // a rule of their own: see `once`.
        if let ProblemKind::IgnoredKind(_)
        | ProblemKind::NotSupported(_)
        | ProblemKind::Duplicate { .. } = problem.kind
        {
            return None;
        }
        let read = self.documents.get(problem.origin.document)?;
        let by_key = matches!(problem.kind, ProblemKind::UnknownField(_));
        let severity = match problem.severity {
            egress_policy::Severity::Error => Severity::Error,
            egress_policy::Severity::Warning => Severity::Warning,
        };
        let (what, hint) = told(problem, Some(&read.document));
        Some(Finding {
            file: read.file.clone(),
            place: read.document.place(&problem.path, by_key),
            path: problem.path.clone(),
            resource: problem.resource.as_ref().map(ToString::to_string),
            hint,
            ..invalid(severity, problem.origin, what)
        })
    }

    fn bare(&self) -> Vec<Bare> {
        let entries = self
            .resources
            .service_entries
            .iter()
            .map(|entry| &entry.meta);
        let rules = self
            .resources
            .destination_rules
            .iter()
            .map(|rule| &rule.meta);
        let parsed: BTreeSet<Origin> = entries.chain(rules).map(|meta| meta.origin).collect();
        let mut bare = Vec::new();
        for (document, read) in self.documents.iter().enumerate() {
            for (item, value) in resources(&read.document.value) {
                let origin = Origin { document, item };
                bare.extend(as_bare(value, origin, !parsed.contains(&origin)));
            }
        }
        bare
    }

    /// Keeps the later of two resources with one name, as a cluster does, and tells of it.
    fn once(&mut self) {
        let mut last: BTreeMap<String, Origin> = BTreeMap::new();
        let mut twice = Vec::new();
        for bare in &self.bare {
            let subject = &bare.subject;
            if let Some(before) = last.insert(subject.name.clone(), subject.origin) {
                let path = subject.path("metadata.name");
                let (file, place) = self.place(subject.origin, &path);
                let (other, first) = self.place(before, &FieldPath::default());
                let message = format!(
                    "the same resource stands at {other}:{}: a cluster keeps the one that is applied last",
                    first.line
                );
                twice.push((
                    before,
                    Finding {
                        rule: &DUPLICATE_RESOURCE,
                        severity: DUPLICATE_RESOURCE.severity,
                        file,
                        place,
                        path,
                        resource: Some(subject.name.clone()),
                        hint: Some("remove one of the two, or give it another name".to_owned()),
                        ..invalid(Severity::Error, subject.origin, message)
                    },
                ));
            }
        }
        for (origin, finding) in twice {
            self.resources
                .service_entries
                .retain(|entry| entry.meta.origin != origin);
            self.resources
                .destination_rules
                .retain(|rule| rule.meta.origin != origin);
            self.found.push(finding);
        }
    }

    /// Returns what parsing found.
    pub(crate) fn problems(&self) -> Vec<Finding> {
        self.found.clone()
    }

    /// Returns where a field was written, and in which resource: what routes came to was written in them.
    pub(crate) fn written(&self, at: &Subject, path: &str) -> (Subject, FieldPath) {
        let path = at.path(path);
        match self.derived.place(at.origin, &path) {
            Some((id, origin, path)) => {
                let name = id.to_string();
                (Subject { origin, name }, path)
            }
            None => (at.clone(), path),
        }
    }

    /// Returns the place of a field's name.
    pub(crate) fn place(&self, origin: Origin, path: &FieldPath) -> (String, Location) {
        match self.documents.get(origin.document) {
            Some(read) => (read.file.clone(), read.document.place(path, true)),
            None => (String::new(), Location::START),
        }
    }

    /// Returns the resource as it was written.
    pub(crate) fn spec(&self, origin: Origin) -> Option<&Map<String, Value>> {
        let at = self
            .bare
            .partition_point(|bare| bare.subject.origin < origin);
        let bare = self
            .bare
            .get(at)
            .filter(|bare| bare.subject.origin == origin);
        bare.map(|bare| &bare.spec)
    }

    /// Returns the VirtualService that was made of routes, where that is what was read here.
    pub(crate) fn made(&self, origin: Origin) -> Option<&Value> {
        let at = origin.document.checked_sub(self.documents.len())?;
        self.derived.documents().get(at)
    }

    /// Returns the value of a field, written as in `spec.ports[0].number`.
    pub(crate) fn value(&self, subject: &Subject, path: &str) -> Option<&Value> {
        let mut value = &self.documents.get(subject.origin.document)?.document.value;
        for segment in &subject.path(path).0 {
            value = match segment {
                Segment::Key(key) => value.get(key)?,
                Segment::Index(index) => value.get(index)?,
            };
        }
        Some(value)
    }

    /// Returns the number of the source and of the document in it.
    pub(crate) fn document(&self, origin: Origin) -> Option<(usize, usize)> {
        let read = self.documents.get(origin.document)?;
        Some((read.source, read.at))
    }

    /// Returns the place of a finding's file among the files.
    pub(crate) fn file_of(&self, finding: &Finding) -> usize {
        self.files.get(&finding.file).copied().unwrap_or(usize::MAX)
    }

    /// Whether requests may be led to a host by what is not read here: a VirtualService, a route, an EnvoyFilter
    /// that names it, or a file that is no YAML.
    ///
    /// Such a resource may lead plain HTTP to any port of the host, and to any subset.
    pub(crate) fn may_be_led_to(&self, host: &HostPattern) -> bool {
        self.partial || names(&self.elsewhere, host)
    }

    /// As [`Input::may_be_led_to`], but for resources of which it is not known what they lead.
    pub(crate) fn may_be_led_unseen(&self, host: &HostPattern) -> bool {
        self.partial || names(&self.beyond, host)
    }

    /// Whether a resource of a kind that could not be read speaks of any host that `host` covers, or
    /// might.
    pub(crate) fn may_be_refused(&self, kind: &str, host: &HostPattern) -> bool {
        let refused = |bare: &&Bare| bare.refused && bare.kind == kind;
        self.bare.iter().filter(refused).any(|bare| {
            let hosts = bare.hosts();
            hosts.is_empty()
                || hosts
                    .iter()
                    .any(|other| host.covers(other) || other.covers(host))
        })
    }
}

fn invalid(severity: Severity, origin: Origin, message: String) -> Finding {
    Finding {
        rule: &INVALID,
        severity,
        file: String::new(),
        place: Location::START,
        path: FieldPath::default(),
        message,
        resource: None,
        hint: None,
        origin,
        fix: None,
        covers: Vec::new(),
    }
}

/// Whether any of these texts may name a host.
fn names(texts: &BTreeSet<String>, host: &HostPattern) -> bool {
    let name = host.to_string().to_ascii_lowercase();
    let name = name.trim_start_matches('*');
    // Of a service of the cluster the first parts of its name are enough.
    let local = name.ends_with(".svc.cluster.local");
    texts.iter().any(|text| {
        text.contains(name)
            || (local
                && name
                    .strip_prefix(text.as_str())
                    .is_some_and(|rest| rest.starts_with('.')))
    })
}

/// Collects all texts of a value but its keys.
fn collect_texts(value: &Value, texts: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => drop(texts.insert(text.to_ascii_lowercase())),
        Value::Array(items) => items.iter().for_each(|item| collect_texts(item, texts)),
        Value::Object(fields) => fields.values().for_each(|item| collect_texts(item, texts)),
        _ => {}
    }
}

fn is_gateway(value: &Value) -> bool {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let group = text("apiVersion").split('/').next().unwrap_or_default();
    let groups = ["networking.istio.io", "gateway.networking.k8s.io"];
    text("kind") == "Gateway" && groups.contains(&group)
}

fn namespace(value: &Value) -> &str {
    let named = value.pointer("/metadata/namespace").and_then(Value::as_str);
    named.unwrap_or(egress_policy::DEFAULT_NAMESPACE)
}

fn as_bare(value: &Value, origin: Origin, refused: bool) -> Option<Bare> {
    let kind = value.get("kind").and_then(Value::as_str)?;
    let kind = LINTED.into_iter().find(|known| *known == kind)?;
    let namespace = namespace(value);
    let name = value.pointer("/metadata/name").and_then(Value::as_str);
    let name = name.unwrap_or_default();
    Some(Bare {
        subject: Subject {
            origin,
            name: format!("{kind} {namespace}/{name}"),
        },
        namespace: namespace.to_owned(),
        kind,
        spec: value
            .get("spec")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default(),
        refused,
    })
}
