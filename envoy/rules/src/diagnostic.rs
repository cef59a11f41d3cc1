//! What is wrong in rules, each with its place, and how it is printed for people.

use std::fmt;
use std::sync::Arc;

use egress_policy::{Problem, ProblemKind, Problems, Severity, visible};
use serde_json::{Value, json};

use crate::yaml::{Document, Location};

/// Problems with the places where they stand.
#[derive(Debug, Default, Clone)]
pub struct Report(pub Vec<Diagnostic>);

impl Report {
    /// Returns what people are told, if there is anything.
    pub fn told(&self) -> Vec<String> {
        let told = self.to_string();
        let told = Some(told.trim_end()).filter(|told| !told.is_empty());
        told.into_iter().map(str::to_owned).collect()
    }

    /// Whether more of the rules may be on the way: nothing is wrong but that something is missing.
    pub fn may_be_incomplete(&self) -> bool {
        let mut errors = self.errors().peekable();
        errors.peek().is_some() && errors.all(|error| error.id.is_some())
    }

    fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        let all = self.0.iter();
        all.filter(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// One problem, ready to be shown.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    /// Which kind of diagnostic it is, where it has an id; the linter has the same for the same.
    pub id: Option<&'static str>,
    /// Whether it prevents anything.
    pub severity: Severity,
    /// The file.
    pub file: String,
    /// The place in it.
    pub place: Location,
    /// The field, or nothing.
    pub path: String,
    /// What is wrong.
    pub what: String,
    /// Which resource it is about.
    pub resource: Option<String>,
    /// How to fix it.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// Returns it for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "severity": self.severity.as_str(),
            "id": self.id,
            "file": self.file,
            "line": self.place.line,
            "column": self.place.column,
            "resource": self.resource,
            "path": self.path,
            "message": self.what,
            "hint": self.hint,
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let notice = Notice {
            label: match self.id {
                Some(id) => format!("{}: [{id}]", self.severity.as_str()),
                None => format!("{}:", self.severity.as_str()),
            },
            path: &self.path,
            what: &self.what,
            file: &self.file,
            place: self.place,
            resource: self.resource.as_deref(),
            hint: self.hint.as_deref(),
        };
        notice.fmt(f)
    }
}

/// The look that every diagnostic has for people, and every finding of the linter.
pub struct Notice<'n> {
    /// What it begins with: the severity, a colon, and from the linter the rule.
    pub label: String,
    /// The field, or nothing.
    pub path: &'n str,
    /// What is wrong.
    pub what: &'n str,
    /// The file.
    pub file: &'n str,
    /// The place in it.
    pub place: Location,
    /// Which resource it is about.
    pub resource: Option<&'n str>,
    /// How to fix it.
    pub hint: Option<&'n str>,
}

impl fmt::Display for Notice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.label)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", visible(self.path))?;
        }
        let Location { line, column } = self.place;
        let (what, file) = (visible(self.what), visible(self.file));
        write!(f, "{what}\n  --> {file}:{line}:{column}")?;
        if let Some(resource) = self.resource {
            write!(f, "   ({})", visible(resource))?;
        }
        if let Some(hint) = self.hint {
            write!(f, "\nhint: {}", visible(hint))?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, diagnostic) in self.0.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

pub(crate) fn located(problems: &Problems, documents: &[(Arc<str>, Document)]) -> Vec<Diagnostic> {
    problems
        .0
        .iter()
        .map(|problem| diagnostic(problem, documents))
        .collect()
}

pub(crate) fn diagnostic(problem: &Problem, documents: &[(Arc<str>, Document)]) -> Diagnostic {
    let by_key = matches!(
        problem.kind,
        ProblemKind::UnknownField(_) | ProblemKind::NotSupported(_)
    );
    let found = documents.get(problem.origin.document);
    let (file, place) = match found {
        Some((file, document)) => (file.to_string(), document.place(&problem.path, by_key)),
        None => (String::new(), Location::START),
    };
    let (what, hint) = told(problem, found.map(|(_, document)| document));
    Diagnostic {
        severity: problem.severity,
        id: problem.id,
        file,
        place,
        path: problem.path.to_string(),
        what,
        resource: problem.resource.as_ref().map(ToString::to_string),
        hint,
    }
}

/// Returns what is wrong and how to fix it. The engine knows values only, and of `host: no` would speak of `false`.
pub fn told(problem: &Problem, document: Option<&Document>) -> (String, Option<String>) {
    let as_it_is = (problem.kind.to_string(), problem.hint.clone());
    let (ProblemKind::WrongType { expected, .. }, Some(document)) = (&problem.kind, document)
    else {
        return as_it_is;
    };
    let read_as = match document.at(&problem.path) {
        Some(Value::Bool(word)) => format!("the boolean `{word}`"),
        Some(Value::Number(number)) => format!("the number `{number}`"),
        _ => return as_it_is,
    };
    let Some(written) = document.written(&problem.path) else {
        return as_it_is;
    };
    let hint = match *expected {
        "a string" => Some(format!("write \"{written}\" in quotes")),
        _ => problem.hint.clone(),
    };
    (
        format!("expected {expected}, found `{written}`, which YAML reads as {read_as}"),
        hint,
    )
}
