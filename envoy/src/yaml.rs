//! YAML for people: text becomes JSON values, each with the line and column it stands at.
//!
//! JSON is YAML, so one reader serves both. The meaning of what is read is the engine's business.

use std::collections::BTreeMap;
use std::fmt;

use egress_policy::{FieldPath, Segment};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};
use serde_json::{Map, Number, Value};

/// How deep lists and objects may lie in each other.
const MAX_DEPTH: usize = 64;

/// How many values the aliases of one file may stand for, so that a small file cannot fill the memory.
const MAX_ALIASED: usize = 100_000;

/// A place in a text: both counted from one, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl From<Marker> for Place {
    fn from(mark: Marker) -> Self {
        Place {
            line: mark.line(),
            column: mark.col() + 1,
        }
    }
}

impl From<Marker> for At {
    fn from(mark: Marker) -> Self {
        let short = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        At {
            line: short(mark.line()),
            column: short(mark.col() + 1),
        }
    }
}

impl From<At> for Place {
    fn from(at: At) -> Self {
        Place {
            line: at.line as usize,
            column: at.column as usize,
        }
    }
}

/// One document of a text.
#[derive(Clone)]
pub struct Document {
    /// What it says.
    pub value: Value,
    marks: Mark,
}

/// Where the parts of a document stand. There are as many as values, so each is small.
#[derive(Debug, Clone)]
struct Mark {
    at: At,
    /// Where its key stands, for the value of an object.
    key: Option<At>,
    children: Children,
}

/// A [`Place`], of which no text that is read has more than four billion.
#[derive(Debug, Clone, Copy)]
struct At {
    line: u32,
    column: u32,
}

#[derive(Debug, Clone)]
enum Children {
    None,
    List(Box<[Mark]>),
    Object(Box<[(Box<str>, Mark)]>),
}

/// The fields of an object, and where they stand.
type Object = (Map<String, Value>, Vec<(Box<str>, Mark)>);

/// Why a text is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct InvalidYaml {
    /// What is wrong, as a phrase.
    pub what: String,
    /// Where.
    pub at: Place,
    /// How to mend it.
    pub hint: Option<String>,
}

impl fmt::Debug for Document {
    /// Leaves out what it says: it may be a Secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document")
            .field("at", &Place::from(self.marks.at))
            .finish_non_exhaustive()
    }
}

impl Document {
    /// Returns the place of a field; of the nearest thing around it when it is not there.
    ///
    /// With `key`, the place of the field's name rather than of its value.
    pub fn place(&self, path: &FieldPath, key: bool) -> Place {
        let mut mark = &self.marks;
        for segment in &path.0 {
            let next = match (&mark.children, segment) {
                (Children::List(list), Segment::Index(index)) => list.get(*index),
                (Children::Object(object), Segment::Key(key)) => mark_of(object, key),
                _ => None,
            };
            match next {
                Some(next) => mark = next,
                // The field is missing: point at the object that should have it, by its name.
                None => return mark.key.unwrap_or(mark.at).into(),
            }
        }
        let at = if key {
            mark.key.unwrap_or(mark.at)
        } else {
            mark.at
        };
        at.into()
    }
}

/// Reads all documents of a text. Empty documents are left out.
///
/// # Errors
/// At the first thing that is not YAML, or that no JSON could say.
pub fn read(text: &str) -> Result<Vec<Document>, InvalidYaml> {
    // Editors on some systems put a mark at the beginning; it is no content.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader {
        events: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
        aliased: 0,
    };
    let mut documents = Vec::new();
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            event => {
                let (value, marks) = reader.value(event, span, 0)?;
                reader.anchors.clear();
                if !value.is_null() {
                    documents.push(Document { value, marks });
                }
            }
        }
    }
    Ok(documents)
}

struct Reader<'t> {
    events: Parser<'t, saphyr_parser::StrInput<'t>>,
    anchors: BTreeMap<usize, (Value, Mark)>,
    aliased: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>, InvalidYaml> {
        match self.events.next() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => {
                let info = error.info();
                let hint = if info.contains("tab") {
                    "indent with spaces"
                } else if info.contains("flow") {
                    "close every `[` and `{`, and put a comma between what stands in them"
                } else if info.contains("quoted") {
                    "close every quotation mark"
                } else {
                    "see whether this line, or the one before it, is indented like its neighbours and quoted where it has a `:` or `#`"
                };
                let (what, hint) = (format!("not valid YAML: {info}"), Some(hint.to_owned()));
                Err(InvalidYaml {
                    what,
                    at: (*error.marker()).into(),
                    hint,
                })
            }
        }
    }

    fn value(
        &mut self,
        event: Event<'t>,
        span: Span,
        depth: usize,
    ) -> Result<(Value, Mark), InvalidYaml> {
        let at: At = span.start.into();
        let wrong = |what: &str, hint: Option<&str>| InvalidYaml {
            what: what.to_owned(),
            at: at.into(),
            hint: hint.map(str::to_owned),
        };
        if depth > MAX_DEPTH {
            return Err(wrong(
                "lists and objects lie more than 64 deep in each other",
                None,
            ));
        }
        let (anchor, value, children) = match event {
            Event::Alias(anchor) => {
                let (value, mark) =
                    self.anchors.get(&anchor).cloned().ok_or_else(|| {
                        wrong("an alias stands before its anchor, or in it", None)
                    })?;
                self.aliased += size(&value);
                if self.aliased > MAX_ALIASED {
                    return Err(wrong(
                        "aliases stand for too many values",
                        Some("write the values out"),
                    ));
                }
                // The alias is where people look, not the anchor.
                return Ok((value, Mark { at, ..mark }));
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let number = tag
                    .as_ref()
                    .is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix != "str");
                let value = if plain || number {
                    scalar(&text)
                } else {
                    Value::String(text.into_owned())
                };
                (anchor, value, Children::None)
            }
            Event::SequenceStart(anchor, _) => {
                let (mut items, mut marks) = (Vec::new(), Vec::new());
                loop {
                    match self.next()? {
                        Some((Event::SequenceEnd, _)) => break,
                        Some((event, span)) => {
                            let (value, mark) = self.value(event, span, depth + 1)?;
                            items.push(value);
                            marks.push(mark);
                        }
                        None => return Err(wrong("the list does not end", None)),
                    }
                }
                (anchor, Value::Array(items), Children::List(marks.into()))
            }
            Event::MappingStart(anchor, _) => {
                let (object, marks) = self.object(at.into(), depth)?;
                (
                    anchor,
                    Value::Object(object),
                    Children::Object(marks.into()),
                )
            }
            _ => {
                return Err(wrong(
                    "something that is neither a value, a list nor an object",
                    None,
                ));
            }
        };
        let mark = Mark {
            at,
            key: None,
            children,
        };
        if anchor != 0 {
            self.anchors.insert(anchor, (value.clone(), mark.clone()));
        }
        Ok((value, mark))
    }

    fn object(&mut self, at: Place, depth: usize) -> Result<Object, InvalidYaml> {
        let (mut object, mut marks) = (Map::new(), Vec::new());
        let mut merged = Vec::new();
        loop {
            let Some((event, span)) = self.next()? else {
                return Err(InvalidYaml {
                    what: "the object does not end".to_owned(),
                    at,
                    hint: None,
                });
            };
            let key_at: At = span.start.into();
            let at: Place = key_at.into();
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => {
                    return Err(InvalidYaml {
                        what: "a key is not a string".to_owned(),
                        at,
                        hint: None,
                    });
                }
            };
            let Some((event, span)) = self.next()? else {
                return Err(InvalidYaml {
                    what: format!("`{}` has no value", shown(&key)),
                    at,
                    hint: None,
                });
            };
            let (value, mark) = self.value(event, span, depth + 1)?;
            if key == "<<" {
                merged.push((value, mark));
                continue;
            }
            if object.contains_key(&key)
                && let Some(first) = mark_of(&marks, &key)
            {
                let line = first.key.unwrap_or(first.at).line;
                let what = format!("`{}` is given twice", shown(&key));
                return Err(InvalidYaml {
                    what,
                    at,
                    hint: Some(format!("it stands in line {line} already")),
                });
            }
            let mark = Mark {
                key: Some(key_at),
                ..mark
            };
            marks.push((key.as_str().into(), mark));
            object.insert(key, value);
        }
        for (value, mark) in merged {
            let (Value::Object(more), Children::Object(more_marks)) = (value, mark.children) else {
                return Err(InvalidYaml {
                    what: "`<<` takes an object".to_owned(),
                    at: mark.at.into(),
                    hint: None,
                });
            };
            for (key, mark) in more_marks {
                if !object.contains_key(&*key) {
                    marks.push((key, mark));
                }
            }
            for (key, value) in more {
                object.entry(key).or_insert(value);
            }
        }
        Ok((object, marks))
    }
}

/// Finds a field's mark among those of an object, which are few.
fn mark_of<'m>(marks: &'m [(Box<str>, Mark)], key: &str) -> Option<&'m Mark> {
    let found = marks.iter().find(|(name, _)| **name == *key);
    found.map(|(_, mark)| mark)
}

/// Counts the values in a value.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Object(object) => 1 + object.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// Reads a plain scalar by YAML's core schema, which is what Kubernetes goes by.
fn scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Value::String(text.to_owned());
    }
    let whole = text.strip_prefix('+').unwrap_or(text);
    let number = match (whole.strip_prefix("0x"), whole.strip_prefix("0o")) {
        (Some(hex), _) => u64::from_str_radix(hex, 16).ok().map(Number::from),
        (_, Some(octal)) => u64::from_str_radix(octal, 8).ok().map(Number::from),
        _ => whole
            .parse::<u64>()
            .map(Number::from)
            .or_else(|_| whole.parse::<i64>().map(Number::from))
            .ok()
            .or_else(|| whole.parse::<f64>().ok().and_then(Number::from_f64)),
    };
    number.map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

/// Cuts a key to what a message has room for: one that is no field's name may be anything, in a Secret a key of
/// another kind.
fn shown(key: &str) -> String {
    match key.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", key.get(..end).unwrap_or_default()),
        None => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        read(text)
            .unwrap()
            .into_iter()
            .map(|document| document.value)
            .collect()
    }

    fn path(text: &str) -> FieldPath {
        FieldPath(
            text.split('.')
                .map(|part| {
                    part.parse()
                        .map_or_else(|_| Segment::Key(part.to_owned()), Segment::Index)
                })
                .collect(),
        )
    }

    #[test]
    fn documents_are_read_as_kubernetes_reads_them() {
        let text = "a: 1\nb: [x, '2', \"3\", 4.5, true, ~, 1.2.3.4, 10s]\n---\n# nothing\n---\n{\"c\": null}\n";
        assert_eq!(
            values(text),
            [
                json!({"a": 1, "b": ["x", "2", "3", 4.5, true, null, "1.2.3.4", "10s"]}),
                json!({"c": null})
            ]
        );
        assert_eq!(
            values("\u{feff}a: on\r\nb: yes\r\n"),
            [json!({"a": "on", "b": "yes"})]
        );
        assert_eq!(
            values("a: &x {n: 1}\nb: *x\nc:\n  <<: *x\n  m: 2\n"),
            [json!({"a": {"n": 1}, "b": {"n": 1}, "c": {"n": 1, "m": 2}})]
        );
    }

    #[test]
    fn every_field_knows_its_place() {
        let document = &read("spec:\n  ports:\n  - number: 80\n    name: http\n").unwrap()[0];
        assert_eq!(
            document.place(&path("spec.ports.0.number"), false),
            Place {
                line: 3,
                column: 13
            }
        );
        assert_eq!(
            document.place(&path("spec.ports.0.number"), true),
            Place { line: 3, column: 5 }
        );
        assert_eq!(
            document.place(&path("spec.hosts"), false),
            Place { line: 1, column: 1 }
        );
    }

    #[test]
    fn what_is_not_yaml_is_told_with_its_place() {
        let error = read("a: 1\nb: [\n").unwrap_err();
        assert!(error.what.starts_with("not valid YAML"), "{error:?}");
        let error = read("a:\n\tb: 1\n").unwrap_err();
        assert_eq!(error.at.line, 2, "{error:?}");
        let error = read("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(
            (error.what.as_str(), error.at),
            ("`a` is given twice", Place { line: 3, column: 1 })
        );
        assert!(read("a: *b\n").is_err());
    }

    #[test]
    fn a_small_text_cannot_become_a_large_value() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            text += &format!(
                "a{level}: &a{level} [{}]\n",
                [before.as_str(); 10].join(", ")
            );
        }
        assert_eq!(
            read(&text).unwrap_err().what,
            "aliases stand for too many values"
        );
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        assert!(read(&deep).is_err());
    }
}
