//! What a text is compared with: exactly, by its beginning, or by a regular expression.

use std::fmt;

use egress_policy::ProblemKind;
use egress_policy::fields::Field;
use egress_policy::node::Node;

use super::pattern::Pattern;

/// What a text must be.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `StringMatch`.
#[derive(Debug, Clone, PartialEq)]
pub enum StringMatch {
    /// This.
    Exact(String),
    /// Something that begins with this.
    Prefix(String),
    /// This path, or one below it.
    PathPrefix(String),
    /// Something that matches this as a whole.
    Regex(Pattern),
    /// Anything, as long as it is there.
    Present,
}

impl StringMatch {
    /// Whether a text is what it must be.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            StringMatch::Exact(exact) => exact == text,
            StringMatch::Prefix(prefix) => text.starts_with(prefix.as_str()),
            StringMatch::PathPrefix(path) => {
                let below = text.strip_prefix(path.as_str());
                below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
            }
            StringMatch::Regex(pattern) => pattern.matches(text),
            StringMatch::Present => true,
        }
    }

    /// As [`StringMatch::matches`], whatever the case of the letters; that counts in a regular expression all the same.
    pub fn matches_in_any_case(&self, text: &str) -> bool {
        match self {
            StringMatch::Exact(exact) => exact.eq_ignore_ascii_case(text),
            StringMatch::Prefix(prefix) => text
                .get(..prefix.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(prefix)),
            StringMatch::PathPrefix(_) | StringMatch::Regex(_) | StringMatch::Present => {
                self.matches(text)
            }
        }
    }
}

impl fmt::Display for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StringMatch::Exact(exact) => f.write_str(exact),
            StringMatch::Prefix(prefix) => write!(f, "{prefix}*"),
            StringMatch::PathPrefix(path) => write!(f, "{path}[/*]"),
            StringMatch::Regex(pattern) => write!(f, "~{pattern}"),
            StringMatch::Present => f.write_str("present"),
        }
    }
}

/// What Istio lets a text be compared with, beside what it always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Allowed {
    /// A prefix that is empty.
    pub(super) empty_prefix: bool,
    /// The regular expression `*`, which is none, and nothing at all: the text must be there.
    pub(super) star: bool,
}

/// Reads what a text must be.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateStringMatch`.
pub(super) fn read_string(field: Field<'_>, allowed: Allowed) -> Option<StringMatch> {
    if *field.value == Node::Null && allowed.star {
        return Some(StringMatch::Present);
    }
    let fields = field.fields()?;
    let given = ["exact", "prefix", "regex"].map(|name| usize::from(fields.has(name)));
    if given.iter().sum::<usize>() > 1 {
        let text = "only one of `exact`, `prefix` and `regex` may be given".to_owned();
        fields.error(ProblemKind::Conflict(text), Some("keep one of them"));
    }
    let exact = fields.read("exact", |field| field.text().map(str::to_owned));
    let prefix = fields.read("prefix", |field| {
        let text = field.text()?;
        if text.is_empty() && !allowed.empty_prefix {
            let kind = ProblemKind::Invalid("prefix string match should not be empty".to_owned());
            field.error_with_hint(kind, "leave it out: an empty object asks for any value");
            return None;
        }
        Some(text.to_owned())
    });
    let regex = fields.read("regex", |field| {
        let text = field.text()?;
        if text == "*" && allowed.star {
            return Some(StringMatch::Present);
        }
        read_pattern(field).map(StringMatch::Regex)
    });
    let empty = given == [0, 0, 0];
    let exact = exact.map(StringMatch::Exact);
    let found = exact.or(prefix.map(StringMatch::Prefix)).or(regex);
    found.or(empty.then_some(StringMatch::Present))
}

/// Reads a regular expression.
pub(super) fn read_pattern(field: Field<'_>) -> Option<Pattern> {
    match Pattern::parse(field.text()?) {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            let hint = "see https://github.com/google/re2/wiki/Syntax; `.*` is anything";
            field.error_with_hint(ProblemKind::Invalid(why), hint);
            None
        }
    }
}
