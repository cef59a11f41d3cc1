//! Reads JSON objects field by field and reports every mistake in them, not only the first.
//!
//! Serde's derive stops at the first error and knows no place. People who fix a file want all errors, each with its
//! path. So this file reads the wire format by hand, from one [`Node`] for each document.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::time::Duration;

use serde_json::Number;

use crate::host::{HostPattern, InvalidHost};
use crate::node::{Node, Object};
use crate::port::PortNumber;
use crate::problem::{FieldPath, Origin, Problem, ProblemKind, Segment, Severity, did_you_mean};
use crate::resource::ResourceId;

/// Collects the problems of one resource.
pub struct Report {
    origin: Origin,
    resource: RefCell<Option<ResourceId>>,
    problems: RefCell<Vec<Problem>>,
}

impl Report {
    /// Returns a report on a document, or on an item of one.
    pub fn new(origin: Origin) -> Self {
        Report {
            origin,
            resource: RefCell::new(None),
            problems: RefCell::new(Vec::new()),
        }
    }

    /// Names the resource in all problems, also in those already reported.
    pub fn name(&self, resource: &ResourceId) {
        for problem in self.problems.borrow_mut().iter_mut() {
            problem.resource = Some(resource.clone());
        }
        *self.resource.borrow_mut() = Some(resource.clone());
    }

    /// Whether anything in it stops the configuration from loading.
    pub fn has_errors(&self) -> bool {
        self.problems
            .borrow()
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    }

    /// Returns the problems in the order they were found.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// Adds a problem.
    #[inline(never)]
    pub fn add(
        &self,
        severity: Severity,
        path: FieldPath,
        kind: ProblemKind,
        hint: Option<String>,
    ) {
        let resource = self.resource.borrow().clone();
        let kind = match kind {
            ProblemKind::Invalid(text) => ProblemKind::Invalid(shortened(text)),
            ProblemKind::Conflict(text) => ProblemKind::Conflict(shortened(text)),
            kind => kind,
        };
        let problem = Problem {
            severity,
            origin: self.origin,
            resource,
            path,
            kind,
            hint,
            id: None,
        };
        self.problems.borrow_mut().push(problem);
    }
}

/// The path to a value, as a list that lives on the stack.
#[derive(Clone, Copy)]
pub enum Cursor<'a> {
    /// The document itself.
    Root,
    /// A key of what the cursor leads to.
    Key(&'a Cursor<'a>, &'a str),
    /// An index of the list that the cursor leads to.
    Index(&'a Cursor<'a>, usize),
}

impl Cursor<'_> {
    /// Returns it as a path.
    pub fn path(&self) -> FieldPath {
        let mut segments = Vec::new();
        let mut cursor = *self;
        loop {
            match cursor {
                Cursor::Root => break,
                Cursor::Key(before, key) => {
                    segments.push(Segment::Key(key.to_owned()));
                    cursor = *before;
                }
                Cursor::Index(before, index) => {
                    segments.push(Segment::Index(index));
                    cursor = *before;
                }
            }
        }
        segments.reverse();
        FieldPath(segments)
    }
}

/// One value and the path to it.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    /// Where problems go.
    pub report: &'a Report,
    /// How to get there.
    pub cursor: Cursor<'a>,
    /// What stands there.
    pub value: &'a Node<'a>,
}

impl<'a> Field<'a> {
    /// Reports an error here.
    #[inline(never)]
    pub fn error(&self, kind: ProblemKind) {
        self.report
            .add(Severity::Error, self.cursor.path(), kind, None);
    }

    /// Reports an error here, and how to fix it.
    #[inline(never)]
    pub fn error_with_hint(&self, kind: ProblemKind, hint: impl Into<String>) {
        self.report
            .add(Severity::Error, self.cursor.path(), kind, Some(hint.into()));
    }

    /// Reports a warning here, and how to fix it.
    pub fn warning(&self, kind: ProblemKind, hint: impl Into<String>) {
        self.report.add(
            Severity::Warning,
            self.cursor.path(),
            kind,
            Some(hint.into()),
        );
    }

    #[inline(never)]
    fn wrong_type(&self, expected: &'static str) {
        let (found, hint) = match self.value {
            Node::Null => ("nothing".to_owned(), None),
            Node::Bool(word) => (
                format!("`{word}`"),
                (expected == "a string").then(|| format!("write \"{word}\" in quotes")),
            ),
            Node::Number(number) => (
                format!("`{number}`"),
                (expected == "a string").then(|| format!("write \"{number}\" in quotes")),
            ),
            Node::Text(text) => {
                let short: String = text.chars().take(40).collect();
                let hint = (expected != "an object" && is_number(text))
                    .then(|| format!("write {short} without quotes"));
                (format!("the string `{short}`"), hint)
            }
            Node::List(_) => ("a list".to_owned(), None),
            // An address such as `2001:db8::` before a blank is a key without a value.
            Node::Object(map) => {
                let mut fields = map.iter();
                let alone = fields.next().filter(|_| fields.next().is_none());
                let is_text = |(_, value): &(&str, &Node<'_>)| {
                    **value == Node::Null && expected == "a string"
                };
                let hint = alone.filter(is_text).map(|(key, _)| {
                    let short: String = key.chars().take(40).collect();
                    format!("write \"{short}:\" in quotes")
                });
                ("an object".to_owned(), hint)
            }
        };
        let kind = ProblemKind::WrongType { expected, found };
        self.report
            .add(Severity::Error, self.cursor.path(), kind, hint);
    }

    /// Reads a string.
    #[inline(never)]
    pub fn text(&self) -> Option<&'a str> {
        match self.value {
            Node::Text(text) => Some(text),
            _ => {
                self.wrong_type("a string");
                None
            }
        }
    }

    /// Reads `true` or `false`.
    #[inline(never)]
    pub fn bool(&self) -> Option<bool> {
        match self.value {
            Node::Bool(word) => Some(*word),
            _ => {
                self.wrong_type("`true` or `false`");
                None
            }
        }
    }

    /// Reads a whole number between two bounds, both allowed.
    #[inline(never)]
    pub fn number(&self, min: u64, max: u64) -> Option<u64> {
        let Node::Number(number) = self.value else {
            self.wrong_type("a number");
            return None;
        };
        match number.as_u64() {
            Some(number) if (min..=max).contains(&number) => Some(number),
            _ => {
                self.error(ProblemKind::OutOfRange {
                    found: number.to_string(),
                    min,
                    max,
                });
                None
            }
        }
    }

    /// Reads a whole number of any sign.
    pub fn integer(&self) -> Option<i64> {
        let number = match self.value {
            Node::Number(number) => number.as_i64(),
            _ => None,
        };
        if number.is_none() {
            self.wrong_type("a whole number");
        }
        number
    }

    /// Reads a number that is not negative, and at most so large, if there is a limit.
    #[inline(never)]
    pub fn decimal(&self, max: Option<u32>) -> Option<Decimal> {
        let Node::Number(written) = self.value else {
            self.wrong_type("a number");
            return None;
        };
        let number = written.as_f64().map(Decimal)?;
        if number.0 < 0.0 || max.is_some_and(|max| number.0 > max.into()) {
            let range = max.map_or_else(String::new, |max| max.to_string());
            self.error(ProblemKind::Invalid(format!(
                "{written} is out of range 0..{range}"
            )));
            return None;
        }
        Some(number)
    }

    /// Reads a port, 1 to 65535.
    pub fn port(&self) -> Option<PortNumber> {
        let number = self.number(1, 65535)?;
        u16::try_from(number).ok().and_then(PortNumber::new)
    }

    /// Reads a host name or pattern.
    pub fn host(&self) -> Option<HostPattern> {
        let text = self.text()?;
        match HostPattern::parse(text) {
            Ok(host) => Some(host),
            Err(problem) => {
                let hint = match &problem {
                    InvalidHost::Label { .. }
                        if text
                            .split_once(':')
                            .is_some_and(|(_, rest)| rest.starts_with("//")) =>
                    {
                        Some("give the host alone, without scheme and path")
                    }
                    InvalidHost::Label { .. } if text.contains(':') => {
                        Some("the port stands in `ports`, not here")
                    }
                    InvalidHost::NumericTopLevel(_) => {
                        Some("an address belongs in `addresses` or `endpoints`")
                    }
                    InvalidHost::Label { .. } if !text.is_ascii() => {
                        Some("write the name in punycode (`xn--...`)")
                    }
                    _ => None,
                };
                let kind = ProblemKind::Invalid(problem.to_string());
                self.report.add(
                    Severity::Error,
                    self.cursor.path(),
                    kind,
                    hint.map(str::to_owned),
                );
                None
            }
        }
    }

    /// Reads one word of a closed set.
    pub fn word<T>(
        &self,
        what: &'static str,
        words: &[&'static str],
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text()?;
        let word = read(text);
        if word.is_none() {
            let kind = ProblemKind::UnknownValue {
                what,
                found: text.chars().take(60).collect(),
            };
            let hint = match did_you_mean(text, words) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("it is one of {}", listed(words)),
            };
            self.error_with_hint(kind, hint);
        }
        word
    }

    /// Reads a protobuf duration such as `10s`, `0.5s`, `1h30m` or `100ms`.
    #[inline(never)]
    pub fn duration(&self) -> Option<Duration> {
        let text = self.text()?;
        let duration = parse_duration(text);
        if duration.is_none() {
            let kind = ProblemKind::Invalid(format!(
                "`{}` is not a duration",
                text.chars().take(40).collect::<String>()
            ));
            self.error_with_hint(
                kind,
                "write it with its unit, for example `10s`, `1.5s`, `100ms` or `1h`",
            );
        }
        duration
    }

    /// Reads an object.
    #[inline(never)]
    pub fn fields(&self) -> Option<Fields<'a>> {
        match self.value {
            Node::Object(map) => Some(Fields {
                report: self.report,
                cursor: self.cursor,
                map,
                // As many as most objects are asked for.
                known: RefCell::new(Vec::with_capacity(12)),
                open: Cell::new(false),
            }),
            _ => {
                self.wrong_type("an object");
                None
            }
        }
    }

    /// Returns how many items a list has; none where it is no list.
    pub fn count(&self) -> usize {
        match self.value {
            Node::List(items) => items.len(),
            _ => 0,
        }
    }

    /// Calls `each` for every item of a list.
    pub fn items(&self, mut each: impl FnMut(Field<'_>)) {
        let Node::List(items) = self.value else {
            self.wrong_type("a list");
            return;
        };
        for (index, value) in items.iter().enumerate() {
            each(Field {
                report: self.report,
                cursor: Cursor::Index(&self.cursor, index),
                value,
            });
        }
    }

    /// Calls `each` for every field of an object whose keys are free.
    pub fn entries(&self, mut each: impl FnMut(&str, Field<'_>)) {
        let Node::Object(map) = self.value else {
            self.wrong_type("an object");
            return;
        };
        for (key, value) in map.iter() {
            each(
                key,
                Field {
                    report: self.report,
                    cursor: Cursor::Key(&self.cursor, key),
                    value,
                },
            );
        }
    }

    /// Reads a list of strings; what is not a string is reported and left out.
    #[inline(never)]
    pub fn texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        self.items(|item| texts.extend(item.text().map(str::to_owned)));
        texts
    }

    /// Reads an object whose keys are free and whose values are strings.
    #[inline(never)]
    pub fn labels(&self) -> Vec<(String, String)> {
        let mut labels = Vec::new();
        self.entries(|key, field| {
            labels.extend(field.text().map(|text| (key.to_owned(), text.to_owned())))
        });
        labels
    }
}

/// The fields of one object. What nobody asked for by the end is unknown, and so a problem.
pub struct Fields<'a> {
    report: &'a Report,
    cursor: Cursor<'a>,
    map: &'a Object<'a>,
    known: RefCell<Vec<&'static str>>,
    open: Cell<bool>,
}

impl<'a> Fields<'a> {
    /// Calls `read` with the field, if it is there. `null` counts as absent, as it does for Kubernetes.
    pub fn read<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(Field<'_>) -> Option<T>,
    ) -> Option<T> {
        let value = self.find(name)?;
        read(Field {
            report: self.report,
            cursor: Cursor::Key(&self.cursor, name),
            value,
        })
    }

    /// Looks a field up, and knows it from now on. Not inlined: each of a hundred fields would bring it along.
    #[inline(never)]
    fn find(&self, name: &'static str) -> Option<&'a Node<'a>> {
        self.known.borrow_mut().push(name);
        self.map
            .get(name)
            .filter(|value| !matches!(value, Node::Null))
    }

    /// Reads a field that must be there.
    pub fn require<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(Field<'_>) -> Option<T>,
    ) -> Option<T> {
        if !self.has(name) {
            self.error_at(name, ProblemKind::Missing, None);
        }
        self.read(name, read)
    }

    /// Returns a field of an object that is not ours, whatever it is.
    pub fn peek(&self, name: &str) -> Option<&'a Node<'a>> {
        self.map.get(name)
    }

    /// Whether the field is there, without reading it.
    #[inline(never)]
    pub fn has(&self, name: &str) -> bool {
        !matches!(self.map.get(name), None | Some(Node::Null))
    }

    /// Whether the field is there and says something: an empty string or list does not.
    pub fn given(&self, name: &str) -> bool {
        match self.map.get(name) {
            None | Some(Node::Null) => false,
            Some(Node::Text(text)) => !text.is_empty(),
            Some(Node::List(items)) => !items.is_empty(),
            Some(Node::Object(fields)) => fields.iter().next().is_some(),
            Some(_) => true,
        }
    }

    /// Reports a problem with one of the fields.
    #[inline(never)]
    pub fn error_at(&self, name: &str, kind: ProblemKind, hint: Option<&str>) {
        self.report.add(
            Severity::Error,
            Cursor::Key(&self.cursor, name).path(),
            kind,
            hint.map(str::to_owned),
        );
    }

    /// Reports a warning about one of the fields.
    pub fn warning_at(&self, name: &str, kind: ProblemKind, hint: &str) {
        let path = Cursor::Key(&self.cursor, name).path();
        self.report
            .add(Severity::Warning, path, kind, Some(hint.to_owned()));
    }

    /// Reports a problem with something below one of the fields.
    pub fn error_below(
        &self,
        name: &str,
        below: &[Segment],
        kind: ProblemKind,
        hint: Option<String>,
    ) {
        let mut path = Cursor::Key(&self.cursor, name).path();
        path.0.extend_from_slice(below);
        self.report.add(Severity::Error, path, kind, hint);
    }

    /// Reports a problem with the object as a whole.
    pub fn error(&self, kind: ProblemKind, hint: Option<&str>) {
        self.report.add(
            Severity::Error,
            self.cursor.path(),
            kind,
            hint.map(str::to_owned),
        );
    }

    /// Declares fields that are Istio's and not honoured: present, each is a problem by its name.
    pub fn not_supported(&self, severity: Severity, names: &[&'static str], hint: &str) {
        for name in names {
            self.known.borrow_mut().push(name);
            if self.has(name) {
                let kind = ProblemKind::NotSupported(format!("`{name}`"));
                self.report.add(
                    severity,
                    Cursor::Key(&self.cursor, name).path(),
                    kind,
                    Some(hint.to_owned()),
                );
            }
        }
    }

    /// Declares fields that need no reading.
    pub fn ignore(&self, names: &[&'static str]) {
        self.known.borrow_mut().extend(names);
    }

    /// Lets unknown fields pass: for objects that are not ours, such as `metadata`.
    pub fn allow_unknown(&self) {
        self.open.set(true);
    }
}

impl Drop for Fields<'_> {
    /// Reports the fields that nobody asked for.
    #[inline(never)]
    fn drop(&mut self) {
        if self.open.get() {
            return;
        }
        let known = self.known.borrow();
        for (key, _) in self.map.iter() {
            if !known.contains(&key) {
                let hint =
                    did_you_mean(key, &known).map(|meant| format!("did you mean `{meant}`?"));
                let hint = hint.unwrap_or_else(|| format!("known here: {}", listed(&known)));
                let shown: String = key.chars().take(60).collect();
                let path = Cursor::Key(&self.cursor, key).path();
                self.report.add(
                    Severity::Error,
                    path,
                    ProblemKind::UnknownField(shown),
                    Some(hint),
                );
            }
        }
    }
}

/// Cuts a message that quotes more than people read.
fn shortened(text: String) -> String {
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Writes words in backticks with commas between them.
pub fn listed(words: &[&str]) -> String {
    let words = words.iter().map(|word| format!("`{word}`"));
    let listed = words.reduce(|all, word| all + ", " + &word);
    listed.unwrap_or_default()
}

/// A number that may have a part behind the point.
#[derive(Clone, Copy, PartialEq)]
pub struct Decimal(pub f64);

/// As JSON has it: to write numbers in Rust's own way takes more code than any other thing that is written.
impl fmt::Debug for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Number::from_f64(self.0) {
            Some(number) => fmt::Display::fmt(&number, f),
            None => f.write_str("none"),
        }
    }
}

/// Reads numbers with units, `1h2m3.5s`; none may be negative.
fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 8] = [
        ("ms", 1_000_000),
        ("us", 1_000),
        // With the micro sign, and with the Greek letter.
        ("\u{b5}s", 1_000),
        ("\u{3bc}s", 1_000),
        ("ns", 1),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
    ];
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos = 0_u64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(end)?;
        let (unit, scale) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let digits = |text: &str| match text {
            "" => Some(0),
            text => text.parse::<u64>().ok(),
        };
        nanos = nanos.checked_add(digits(whole)?.checked_mul(*scale)?)?;
        // Twelve digits name a nanosecond of an hour; those behind them say nothing.
        let fraction = fraction.get(..12).unwrap_or(fraction);
        let parts = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let part = u128::from(digits(fraction)?) * u128::from(*scale) / parts;
        nanos = nanos.checked_add(u64::try_from(part).ok()?)?;
        rest = after.strip_prefix(unit)?;
    }
    (!text.is_empty()).then(|| Duration::from_nanos(nanos))
}

/// Whether a text would be a number without its quotes.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    [whole, fraction]
        .iter()
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn durations_carry_their_unit() {
        assert_eq!(parse_duration("10s"), Some(Duration::from_secs(10)));
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("0.5s"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("100ms"), Some(Duration::from_millis(100)));
        for micro in ["5us", "5\u{b5}s", "+5\u{3bc}s"] {
            assert_eq!(parse_duration(micro), Some(Duration::from_micros(5)));
        }
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
        assert_eq!(
            parse_duration("1.5h.25s"),
            Some(Duration::from_millis(5_400_250))
        );
        assert_eq!(
            parse_duration("0.1234567899999s"),
            Some(Duration::from_nanos(123_456_789))
        );
        for bad in [
            "",
            "+",
            "++1s",
            "10",
            "s",
            "-1s",
            "1 s",
            "1d",
            "1.2.3s",
            "9e9s",
            ".s",
            "9999999999h",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
