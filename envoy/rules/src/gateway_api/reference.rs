//! What a backend refers to.

use egress_policy::fields::Fields;
use egress_policy::{HostPattern, PortNumber, ProblemKind};

use super::kind::ISTIO;
use super::known::service_host;

/// A host and port.
pub(super) struct Reference {
    pub(super) host: String,
    pub(super) port: PortNumber,
    /// The namespace and name of a Service of another namespace.
    pub(super) foreign: Option<(String, String)>,
}

/// Reads what a backend refers to.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `buildDestination`.
pub(super) fn read_reference(fields: &Fields<'_>, own: &str) -> Option<Reference> {
    let text = |name| fields.read(name, |field| field.text().map(str::to_owned));
    let group = text("group").unwrap_or_default();
    let kind = text("kind").unwrap_or_else(|| "Service".to_owned());
    let namespace = text("namespace");
    let wrong = |name: &str, text: String, hint: &str| {
        fields.error_at(name, ProblemKind::Invalid(text), Some(hint));
    };
    let mut foreign = None;
    let host = fields.require("name", |field| {
        let name = field.text()?;
        match (group.as_str(), kind.as_str()) {
            (ISTIO, "Hostname") => match field.host()? {
                HostPattern::Exact(_) => Some(name.to_owned()),
                _ => {
                    let text = format!("`{name}` is no single host");
                    field.error_with_hint(ProblemKind::Invalid(text), "name the host");
                    None
                }
            },
            ("", "Service") if name.contains('.') => {
                let text = format!("`{name}` is no name of a Service");
                let hint = "for a host, write `group: networking.istio.io` and `kind: Hostname`";
                field.error_with_hint(ProblemKind::Invalid(text), hint);
                None
            }
            ("", "Service") => {
                let namespace = namespace.as_deref().unwrap_or(own);
                if namespace != own {
                    foreign = Some((namespace.to_owned(), name.to_owned()));
                }
                Some(service_host(namespace, name))
            }
            _ => None,
        }
    });
    match (group.as_str(), kind.as_str()) {
        ("", "Service") => {}
        (ISTIO, "Hostname") if namespace.is_some() => {
            let text = "a `Hostname` has no namespace".to_owned();
            wrong("namespace", text, "leave it out");
        }
        (ISTIO, "Hostname") => {}
        (_, "Hostname") => {
            let text = format!("there is no `Hostname` in the group `{group}`");
            wrong("group", text, "write `group: networking.istio.io`");
        }
        _ => {
            let kind = ProblemKind::NotSupported(format!("a backend of kind `{kind}`"));
            let hint = "a Service, or `kind: Hostname` of the group networking.istio.io";
            fields.error_at("kind", kind, Some(hint));
        }
    }
    let port = fields.require("port", |field| field.port());
    Some(Reference {
        host: host?,
        port: port?,
        foreign,
    })
}
