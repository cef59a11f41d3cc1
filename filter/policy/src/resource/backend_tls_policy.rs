//! `BackendTLSPolicy` of the Gateway API: TLS towards the hosts of a ServiceEntry.
//!
//! Istio makes a DestinationRule of it, and so does this file, once all documents are read. Its rule then counts as
//! others do. Istio skips a policy that it cannot carry out and sends plaintext; here such a policy is an error.
//!
//! Source: istio/istio `pilot/pkg/config/kube/gateway/backend_policies.go`.

use crate::fields::{Field, Fields, listed};
use crate::host::{HostName, HostPattern};
use crate::node::Node;
use crate::problem::{FieldPath, Origin, Problem, ProblemKind, Segment, Severity, did_you_mean};
use crate::resource::client_tls::{ClientTls, TlsMode};
use crate::resource::id::BACKEND_TLS_POLICY;
use crate::resource::meta::{Meta, read_meta, text_of};

/// A policy for TLS towards the hosts of ServiceEntries.
#[derive(Debug, Clone)]
pub(crate) struct BackendTlsPolicy {
    /// Name, namespace, origin.
    pub(crate) meta: Meta,
    pub(crate) targets: Vec<Target>,
    /// What it says; `None` when that cannot be carried out.
    pub(crate) tls: Option<ClientTls>,
    /// Its annotation says that it is not to be applied.
    pub(crate) ignored: bool,
    /// What is wrong with it. That matters only where it is for a host of the rules.
    pub(crate) problems: Vec<Problem>,
}

/// One of `targetRefs`.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Its index.
    pub(crate) index: usize,
    pub(crate) at: At,
    /// The name of one port; `None` is for all ports.
    pub(crate) section: Option<String>,
}

/// What a policy is attached to, in its own namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum At {
    /// The ServiceEntry of this name.
    Entry(String),
    /// The Service with this host.
    Service(HostPattern),
    /// Something of Istio's that no policy can be attached to, which is an error.
    Slip(String),
    /// Something of others.
    Foreign(String),
}

impl BackendTlsPolicy {
    pub(crate) const KIND: &'static str = BACKEND_TLS_POLICY.0;

    /// Whether a document is one, of whatever version.
    pub(crate) fn is(api_version: &str, kind: &str) -> bool {
        kind == Self::KIND && api_version.split('/').next() == Some(BACKEND_TLS_POLICY.1)
    }

    /// Reads it. What is wrong is in the report, and belongs into `problems`.
    pub(crate) fn read(
        root: &Fields<'_>,
        api_version: &str,
        origin: Origin,
    ) -> Option<BackendTlsPolicy> {
        let meta = read_meta(root, Self::KIND, origin, false);
        root.ignore(&["status"]);
        if api_version != "gateway.networking.k8s.io/v1" {
            let kind = ProblemKind::UnknownValue {
                what: "version",
                found: api_version.chars().take(60).collect(),
            };
            let hint = "write `gateway.networking.k8s.io/v1`: Istio reads no other";
            root.error_at("apiVersion", kind, Some(hint));
        }
        let ignored = root.peek("metadata").is_some_and(is_ignored);
        let namespace = &*meta.id.namespace;
        let (targets, tls) = root.require("spec", |field| {
            let fields = field.fields()?;
            let hint = "Istio does not read it either";
            fields.not_supported(Severity::Warning, &["options"], hint);
            let targets = read_targets(&fields, namespace);
            let tls = fields.require("validation", |field| read_validation(field, namespace));
            Some((targets, tls))
        })?;
        Some(BackendTlsPolicy {
            meta,
            targets,
            tls,
            ignored,
            problems: Vec::new(),
        })
    }
}

fn is_ignored(metadata: &Node<'_>) -> bool {
    let field = |node: &Node<'_>, key: &str, is: &dyn Fn(&Node<'_>) -> bool| match node {
        Node::Object(fields) => fields.get(key).is_some_and(is),
        _ => false,
    };
    field(metadata, "annotations", &|notes| {
        field(
            notes,
            "istio.io/ignore-policy-attachment",
            &|word| matches!(word, Node::Text(word) if word == "true"),
        )
    })
}

fn read_targets(fields: &Fields<'_>, namespace: &str) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    fields.require("targetRefs", |list| {
        if matches!(list.value, Node::List(items) if items.is_empty()) {
            list.error(ProblemKind::Missing);
        }
        let mut index = 0;
        list.items(|item| {
            let target = read_target(item, index, namespace);
            index += 1;
            let Some(target) = target else { return };
            let mut before = targets.iter();
            if before.any(|other| other.at == target.at && other.section == target.section) {
                let text = "a target before it is the same".to_owned();
                item.error_with_hint(ProblemKind::Conflict(text), "remove one of the two");
            } else {
                targets.push(target);
            }
        });
        Some(())
    });
    targets
}

/// Reads a target. One of a kind that Istio does not know is for others, unless it is of Istio's own group.
fn read_target(field: Field<'_>, index: usize, namespace: &str) -> Option<Target> {
    let fields = field.fields()?;
    let group = fields.require("group", |field| field.text().map(str::to_owned));
    let kind = fields.require("kind", |field| field.text().map(str::to_owned));
    let name = fields.require("name", text_of);
    let section = fields.read("sectionName", |field| field.text().map(str::to_owned));
    let (group, kind, name) = (group?, kind?, name?);
    let at = match (&*group, &*kind) {
        ("networking.istio.io", "ServiceEntry") => At::Entry(name),
        ("networking.istio.io", _) => {
            fields.error_at(
                "kind",
                ProblemKind::UnknownValue {
                    what: "kind",
                    found: kind.chars().take(60).collect(),
                },
                Some("a policy is attached to a `ServiceEntry`"),
            );
            At::Slip(name)
        }
        ("" | "core", "Service") => {
            let host = format!("{name}.{namespace}.svc.cluster.local");
            At::Service(HostPattern::parse(&host).ok()?)
        }
        _ => At::Foreign(name),
    };
    Some(Target {
        index,
        at,
        section: section.filter(|section| !section.is_empty()),
    })
}

fn read_validation(field: Field<'_>, namespace: &str) -> Option<ClientTls> {
    let fields = field.fields()?;
    let sni = fields.require("hostname", |field| {
        let text = text_of(field)?;
        match HostName::dns(&text) {
            Ok(name) => Some(name.as_str().to_owned()),
            Err(problem) => {
                let hint = "it is one DNS name, without a wildcard";
                field.error_with_hint(ProblemKind::Invalid(problem.to_string()), hint);
                None
            }
        }
    });
    let mut subject_alt_names = Vec::new();
    fields.read("subjectAltNames", |list| {
        list.items(|item| subject_alt_names.extend(read_name(item)));
        Some(())
    });
    let known = fields.read("wellKnownCACertificates", |field| {
        field.word("authorities", &["System"], |word| {
            (word == "System").then_some(())
        })
    });
    let credential_name = read_authority(&fields, namespace);
    match (
        fields.given("caCertificateRefs"),
        fields.given("wellKnownCACertificates"),
    ) {
        (true, true) => {
            let text = "`caCertificateRefs` and `wellKnownCACertificates` exclude each other";
            fields.error_at(
                "wellKnownCACertificates",
                ProblemKind::Conflict(text.to_owned()),
                Some("remove one of the two"),
            );
        }
        (false, false) => {
            let hint = "write `wellKnownCACertificates: System`, or name a ConfigMap in `caCertificateRefs`";
            fields.error_at("caCertificateRefs", ProblemKind::Missing, Some(hint));
        }
        _ => {}
    }
    // Without a known authority there is no TLS to speak of, and never any other one.
    if known.is_none() && credential_name.is_none() {
        return None;
    }
    Some(ClientTls {
        mode: TlsMode::Simple,
        client_certificate: None,
        private_key: None,
        ca_certificates: None,
        ca_crl: None,
        credential_name,
        subject_alt_names,
        sni: Some(sni?),
        insecure_skip_verify: false,
    })
}

fn read_name(field: Field<'_>) -> Option<String> {
    let fields = field.fields()?;
    let words = ["Hostname", "URI"];
    let known = |word: &str| words.iter().position(|known| *known == word);
    let kind = fields.require("type", |field| field.word("type", &words, known));
    let (name, other) = match kind {
        Some(0) => ("hostname", "uri"),
        Some(_) => ("uri", "hostname"),
        None => {
            fields.ignore(&["hostname", "uri"]);
            return None;
        }
    };
    if fields.given(other) {
        let text = format!("a name of this type has no `{other}`");
        let hint = format!("give `{name}`");
        fields.error_at(other, ProblemKind::Conflict(text), Some(&hint));
    }
    fields.ignore(&["hostname", "uri"]);
    fields.require(name, text_of)
}

/// Reads the first of `caCertificateRefs`, as Istio does.
fn read_authority(fields: &Fields<'_>, namespace: &str) -> Option<String> {
    let mut first = None;
    fields.read("caCertificateRefs", |list| {
        let mut index = 0;
        list.items(|item| {
            index += 1;
            if index == 1 {
                first = read_config_map(item, namespace);
            } else if index == 2 {
                let text = "Istio reads the first authority alone".to_owned();
                let hint = "put all certificates into one ConfigMap, under `ca.crt`";
                item.warning(ProblemKind::Invalid(text), hint);
            }
        });
        Some(())
    });
    first
}

fn read_config_map(field: Field<'_>, namespace: &str) -> Option<String> {
    let fields = field.fields()?;
    let group = fields.require("group", |field| field.text().map(str::to_owned));
    let kind = fields.require("kind", |field| field.text().map(str::to_owned));
    let name = fields.require("name", text_of);
    let (group, kind, name) = (group?, kind?, name?);
    if group.is_empty() && kind == "ConfigMap" {
        return Some(format!("configmap://{namespace}/{name}"));
    }
    let kind: String = kind.chars().take(60).collect();
    fields.error_at(
        "kind",
        ProblemKind::Invalid(format!(
            "authorities are read from a ConfigMap, not from a `{kind}`: Istio's sidecars would send plaintext"
        )),
        Some("put the certificates into a ConfigMap of the same namespace, under `ca.crt`"),
    );
    None
}

impl Target {
    /// Returns the way to it, or to one of its fields.
    pub(crate) fn path(&self, field: Option<&str>) -> FieldPath {
        let mut path = FieldPath::keys("spec.targetRefs");
        path.0.push(Segment::Index(self.index));
        path.0
            .extend(field.map(|field| Segment::Key(field.to_owned())));
        path
    }
}

/// Says which words were meant, or which there are.
pub(crate) fn meant(found: &str, known: &[&str]) -> Option<String> {
    match did_you_mean(found, known) {
        Some(meant) => Some(format!("did you mean `{meant}`?")),
        None => (!known.is_empty()).then(|| format!("there is {}", listed(known))),
    }
}
