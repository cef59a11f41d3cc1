//! What a route changes in headers: `http[].headers`, and those of a destination.

use egress_filter::contract;
use egress_policy::ProblemKind;
use egress_policy::fields::{Field, Fields};

use super::matches::is_token;

/// What is changed in the headers of requests and of responses.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `Headers`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers {
    /// In those of requests.
    pub request: HeaderChanges,
    /// In those of responses.
    pub response: HeaderChanges,
}

/// What is changed in headers. What is removed is removed first, then headers are set and added.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderChanges {
    /// `set`: in place of what was there, by name.
    pub set: Vec<(String, String)>,
    /// `add`: beside what was there, by name.
    pub add: Vec<(String, String)>,
    /// `remove`.
    pub remove: Vec<String>,
    /// What `Host` is set to; it is among none of the others.
    pub authority: Option<String>,
}

impl HeaderChanges {
    /// Whether it changes nothing, `Host` aside.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

impl Headers {
    /// Whether it changes nothing, `Host` aside.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// Reads what is changed in headers.
///
/// Source: istio/istio `pkg/config/validation/virtualservice.go`, `validateHTTPRoute`.
pub(super) fn read_headers(field: Field<'_>) -> Option<Headers> {
    let fields = field.fields()?;
    let request = fields.read("request", |field| read_changes(field, true));
    let response = fields.read("response", |field| read_changes(field, false));
    Some(Headers {
        request: request.unwrap_or_default(),
        response: response.unwrap_or_default(),
    })
}

fn read_changes(field: Field<'_>, request: bool) -> Option<HeaderChanges> {
    let fields = field.fields()?;
    let mut authority = None;
    let set = read_values(&fields, "set", request, &mut authority);
    let add = read_values(&fields, "add", request, &mut authority);
    let mut remove = Vec::new();
    fields.read("remove", |list| {
        list.items(|item| {
            let Some(name) = item.text() else { return };
            match wrong_name(name, false) {
                Some(text) => item.error_with_hint(ProblemKind::Invalid(text), NAMES),
                None => remove.push(name.to_ascii_lowercase()),
            }
        });
        Some(())
    });
    Some(HeaderChanges {
        set,
        add,
        remove,
        authority,
    })
}

const NAMES: &str = "name a header of the application's, in letters, digits and `-`";

fn read_values(
    fields: &Fields<'_>,
    name: &'static str,
    request: bool,
    authority: &mut Option<String>,
) -> Vec<(String, String)> {
    let mut values = Vec::new();
    fields.read(name, |field| {
        field.entries(|name, field| {
            let Some(value) = field.text() else { return };
            let host = request && is_authority(name);
            let wrong = wrong_name(name, host).or_else(|| wrong_value(value));
            if let Some(text) = wrong {
                field.error_with_hint(ProblemKind::Invalid(text), NAMES);
            } else if !host {
                values.push((name.to_ascii_lowercase(), value.to_owned()));
            } else if let Some(before) = authority.replace(value.to_owned()) {
                let text = format!(
                    "authority header cannot be set multiple times: have \"{before}\", attempting to set \"{value}\""
                );
                field.error_with_hint(ProblemKind::Conflict(text), "keep one of them");
            }
        });
        Some(())
    });
    values.sort();
    values
}

/// Whether a header is the one that names the host.
pub(super) fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn wrong_name(name: &str, host: bool) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if host {
        None
    } else if name.is_empty() {
        Some("header name cannot be empty".to_owned())
    } else if lower == "host" {
        Some(format!("invalid header \"{name}\": cannot set Host header"))
    } else if lower.starts_with(':') {
        Some(format!(
            "invalid header \"{name}\": header cannot have \":\" prefix"
        ))
    } else if !is_token(name) {
        Some(format!("header name `{name}` is not a valid header name"))
    } else if lower.starts_with(contract::HEADER_PREFIX) {
        // They say which way a request takes.
        Some(format!("header `{name}` is one of this proxy's own"))
    } else {
        None
    }
}

/// What stands between two `%` is a word of Envoy's; a single one would be an error of its.
fn wrong_value(value: &str) -> Option<String> {
    let control = |byte: u8| (byte < 0x20 && byte != b'\t') || byte == 0x7f;
    if value.bytes().any(control) {
        return Some("header value has a control character".to_owned());
    }
    (!value.matches('%').count().is_multiple_of(2))
        .then(|| "single % not allowed; write `%%`, or a word of Envoy's between two".to_owned())
}
