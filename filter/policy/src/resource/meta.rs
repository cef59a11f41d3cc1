//! What every resource has: a name, labels, and who sees it.

use crate::fields::{Field, Fields};
use crate::node::{Node, Object};
use crate::problem::{FieldPath, Origin, Problem, ProblemKind, Segment, Severity};
use crate::resource::id::{DEFAULT_NAMESPACE, ResourceId};
use crate::resource::notes::Notes;

/// What every resource has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Which resource it is.
    pub id: ResourceId,
    /// Where it was read.
    pub origin: Origin,
    /// `metadata.creationTimestamp` as it was written; the oldest resource wins a tie.
    pub created: String,
    /// `metadata.labels` of a ServiceEntry, by key: entries with other labels do not join.
    pub labels: Vec<(String, String)>,
    /// What annotations of ours say.
    pub notes: Notes,
}

impl Meta {
    /// The order in which Istio looks at resources: oldest first, then by name and namespace.
    ///
    /// Source: istio/istio `pilot/pkg/model/config.go`, `sortConfigByCreationTime`.
    pub fn order(&self) -> (&str, &str, &str) {
        (&self.created, &self.id.name, &self.id.namespace)
    }

    /// Returns a problem of the resource; for messages about several resources.
    pub(crate) fn problem(
        &self,
        severity: Severity,
        path: FieldPath,
        kind: ProblemKind,
        hint: Option<String>,
    ) -> Problem {
        let mut path = match self.id.is_backend_tls_policy() {
            true => as_policy(path),
            false => path,
        };
        if let Some(item) = self.origin.item {
            let list = [Segment::Key("items".to_owned()), Segment::Index(item)];
            path.0.splice(0..0, list);
        }
        Problem {
            severity,
            origin: self.origin,
            resource: Some(self.id.clone()),
            path,
            kind,
            hint,
            id: None,
        }
    }
}

/// Returns the field of a `BackendTLSPolicy` of which a field of its DestinationRule was made.
pub(crate) fn as_policy(path: FieldPath) -> FieldPath {
    match path.0.get(1) {
        Some(Segment::Key(key)) if key == "trafficPolicy" => FieldPath::keys("spec.validation"),
        Some(Segment::Key(key)) if key == "host" => FieldPath::keys("spec.targetRefs"),
        _ => path,
    }
}

/// Whether a resource of `owner` with this `exportTo` is seen from `namespace`.
pub(crate) fn exported(export_to: &[String], owner: &str, namespace: &str) -> bool {
    export_to.is_empty()
        || export_to
            .iter()
            .any(|to| to == "*" || to == namespace || (to == "." && owner == namespace))
}

/// Reads `metadata`. What Kubernetes adds to it is let pass. Where the name is missing, which is reported,
/// it is empty, so that the rest is read all the same. Labels are kept where `with_labels` says so.
pub fn read_meta(root: &Fields<'_>, kind: &'static str, origin: Origin, with_labels: bool) -> Meta {
    let read = root.require("metadata", |field| {
        let fields = field.fields()?;
        fields.allow_unknown();
        let prefix = fields.read("generateName", |field| field.text().map(str::to_owned));
        let name = match prefix.filter(|prefix| !prefix.is_empty() && !fields.has("name")) {
            // The cluster will choose; until then its place tells it from others.
            Some(prefix) => Some(format!(
                "{prefix}{}-{}",
                origin.document,
                origin.item.unwrap_or(0)
            )),
            None => fields.require("name", |field| name_of(field, 253)),
        };
        // An empty one is none, as for Kubernetes.
        let namespace = match fields.peek("namespace") {
            Some(Node::Text(text)) if text.is_empty() => None,
            _ => fields.read("namespace", |field| name_of(field, 63)),
        };
        let mut notes = Notes::default();
        for texts in ["labels", "annotations"] {
            fields.read(texts, |field| {
                field.entries(|name, text| {
                    if *text.value != Node::Null {
                        text.text();
                    }
                    if texts == "annotations" {
                        notes.read(kind, name, &text);
                    }
                });
                Some(())
            });
        }
        let name = name?;
        let created = match fields.peek("creationTimestamp") {
            Some(Node::Text(text)) => text.clone().into_owned(),
            _ => String::new(),
        };
        let labels = match fields.peek("labels") {
            Some(Node::Object(labels)) if with_labels => labels_of(labels),
            _ => Vec::new(),
        };
        let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        let id = ResourceId {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        };
        field.report.name(&id);
        Some(Meta {
            id,
            origin,
            created,
            labels,
            notes,
        })
    });
    read.unwrap_or_else(|| {
        let id = ResourceId {
            kind,
            namespace: DEFAULT_NAMESPACE.into(),
            name: "".into(),
        };
        Meta {
            id,
            origin,
            created: String::new(),
            labels: Vec::new(),
            notes: Notes::default(),
        }
    })
}

/// Returns labels by key. Those that are no texts say nothing, and Kubernetes refuses them.
fn labels_of(labels: &Object<'_>) -> Vec<(String, String)> {
    let texts = labels.iter().filter_map(|(key, value)| match value {
        Node::Text(text) => Some((key.to_owned(), text.clone().into_owned())),
        _ => None,
    });
    texts.collect()
}

/// Reads `exportTo`. `none_allowed` lets `~` stand, alone.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateExportTo`.
pub fn read_export_to(fields: &Fields<'_>, namespace: &str, none_allowed: bool) -> Vec<String> {
    let mut export_to: Vec<String> = Vec::new();
    fields.read("exportTo", |list| {
        list.items(|item| {
            let Some(to) = item.text() else { return };
            let problem = match to {
                "~" if !none_allowed => Some(
                    "exportTo ~ (none) is not allowed for Istio configuration objects".to_owned(),
                ),
                "*" | "." | "~" => None,
                to if !is_label(to) => Some(
                    "only .,*, or a valid DNS 1123 label is allowed as exportTo entry".to_owned(),
                ),
                _ => None,
            };
            let twice = export_to.iter().any(|other| other == to);
            let both = (to == "." && export_to.iter().any(|other| other == namespace))
                || (to == namespace && export_to.iter().any(|other| other == "."));
            match problem {
                Some(text) => item.error(ProblemKind::Invalid(text)),
                None if twice => {
                    item.error(ProblemKind::Conflict(format!(
                        "duplicate entries in exportTo for entry {to}"
                    )));
                }
                None if both => {
                    let text = format!(
                        "duplicate entries in exportTo: . and current namespace {namespace}"
                    );
                    item.error(ProblemKind::Conflict(text));
                }
                None => export_to.push(to.to_owned()),
            }
        });
        if export_to.len() > 1 {
            if export_to.iter().any(|to| to == "~") {
                let text = "cannot export service entry to no one (~) and someone".to_owned();
                list.error(ProblemKind::Conflict(text));
            } else if export_to.iter().any(|to| to == "*") {
                let text =
                    "cannot have both public (*) and non-public exportTo values for a resource"
                        .to_owned();
                list.error(ProblemKind::Conflict(text));
            }
        }
        Some(())
    });
    export_to
}

/// Reads labels by which workloads or endpoints are chosen.
pub fn read_labels(field: Field<'_>) -> Vec<(String, String)> {
    let labels = field.labels();
    for (key, value) in &labels {
        if key.is_empty() {
            field.error(ProblemKind::Invalid(format!(
                "empty key is not supported in selector: \"{key}={value}\""
            )));
        } else if key.contains('*') || value.contains('*') {
            field.error(ProblemKind::Invalid(format!(
                "wildcard is not supported in selector: \"{key}={value}\""
            )));
        } else if value.len() > 63 {
            field.error(ProblemKind::Invalid(format!(
                "invalid tag value: \"{value}\""
            )));
        }
    }
    labels
}

/// Reads a name that Kubernetes would take; it becomes part of others, and of files.
///
/// Source: kubernetes `staging/src/k8s.io/apimachinery/pkg/util/validation/validation.go`, `IsDNS1123Subdomain` and
/// `IsDNS1123Label`, which has no dots and 63 characters.
fn name_of(field: Field<'_>, longest: usize) -> Option<String> {
    let text = text_of(field)?;
    let dots = longest > 63;
    let label = |label: &str| {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(known)
    };
    let good = match dots {
        true => text.split('.').all(label),
        false => label(&text),
    };
    if text.len() > longest || !good {
        let shown: String = text.chars().take(60).collect();
        field.error_with_hint(
            ProblemKind::Invalid(format!("`{shown}` is no name that Kubernetes takes")),
            match dots {
                true => "small letters, digits, `-` and `.`, at most 253",
                false => "small letters, digits and `-`, at most 63",
            },
        );
        return None;
    }
    Some(text)
}

/// Reads a string that must not be empty.
pub fn text_of(field: Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.is_empty() {
        field.error(ProblemKind::Missing);
        return None;
    }
    Some(text.to_owned())
}

/// Whether a text is a DNS-1123 label, in either case.
pub fn is_label(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}
