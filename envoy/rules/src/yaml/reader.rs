//! Reads one text, or a part of one that can be read by itself.

use std::borrow::Cow;
use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Value};

use super::colon;
use super::invalid::InvalidYaml;
use super::location::{Children, Location, Mark, mark_of};
use super::scalar::{self, scalar};
use super::template;

/// How deep lists and objects may lie in each other.
const MAX_DEPTH: usize = 64;

/// How many values the aliases of one file may stand for, so that a small file cannot fill the memory.
pub(super) const MAX_ALIASED: usize = 100_000;

/// The fields of an object, and where they stand.
type Object = (Map<String, Value>, Vec<(Box<str>, Mark)>);

/// Whether a value is a resource that is asked where its fields stand; anything else is read in full at once.
pub type IsOurs = fn(&Value) -> bool;

/// What a text or a part of it says.
pub(super) struct Reading {
    /// The documents, each with where it stands.
    pub(super) documents: Vec<(Value, Mark)>,
    /// How many values its aliases stand for.
    pub(super) aliased: usize,
}

/// What a reader notes down beside what is said.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Noting {
    /// Where everything stands.
    Places,
    /// Nothing, and it gives up on what takes places to understand or to tell of.
    Nothing,
}

pub(super) fn read_part(
    text: &str,
    noting: Noting,
    is_ours: IsOurs,
) -> Result<Reading, InvalidYaml> {
    let held = colon::held(text);
    let mut reader = Reader {
        events: Parser::new_from_str(&held),
        noting,
        has_held: matches!(held, Cow::Owned(_)),
        braces: None,
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
                if let Some(at) = reader.braces.take()
                    && has_ours(&value, is_ours)
                {
                    return Err(template::mistaken(at));
                }
                if !value.is_null() {
                    documents.push((value, marks));
                }
            }
        }
    }
    Ok(Reading {
        documents,
        aliased: reader.aliased,
    })
}

struct Reader<'t> {
    events: Parser<'t, saphyr_parser::StrInput<'t>>,
    noting: Noting,
    /// Whether [`colon::held`] changed the text.
    has_held: bool,
    /// Where this document has `{{` in a text without quotes.
    braces: Option<Location>,
    anchors: BTreeMap<usize, (Value, Mark)>,
    aliased: usize,
}

impl<'t> Reader<'t> {
    /// Returns a text as it stands in the file.
    fn released(&self, text: Cow<'t, str>) -> Cow<'t, str> {
        match self.has_held {
            true => colon::released(text),
            false => text,
        }
    }

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
        let at: Location = span.start.into();
        let wrong = |what: &str, hint: Option<&str>| InvalidYaml {
            what: what.to_owned(),
            at,
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
                let text = self.released(text);
                let plain = style == ScalarStyle::Plain && tag.is_none();
                if plain && text.contains("{{") {
                    self.braces.get_or_insert(at);
                }
                let number = tag
                    .as_ref()
                    .is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix != "str");
                if !plain && !number {
                    (anchor, Value::String(text.into_owned()), Children::None)
                } else {
                    let value = scalar(&text);
                    let same = value.is_string() || value.is_null() || value.to_string() == text;
                    let written = match same || self.noting == Noting::Nothing {
                        true => Children::None,
                        false => Children::Written(text.into()),
                    };
                    (anchor, value, written)
                }
            }
            Event::SequenceStart(anchor, _) => {
                let (mut items, mut marks) = (Vec::new(), Vec::new());
                loop {
                    match self.next()? {
                        Some((Event::SequenceEnd, _)) => break,
                        Some((event, span)) => {
                            let (value, mark) = self.value(event, span, depth + 1)?;
                            items.push(value);
                            if self.noting == Noting::Places {
                                marks.push(mark);
                            }
                        }
                        None => return Err(wrong("the list does not end", None)),
                    }
                }
                (anchor, Value::Array(items), Children::List(marks.into()))
            }
            Event::MappingStart(anchor, _) => {
                let (object, marks) = self.object(at, depth)?;
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

    fn object(&mut self, at: Location, depth: usize) -> Result<Object, InvalidYaml> {
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
            let key_at: Location = span.start.into();
            let at = key_at;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, _, tag) => {
                    let text = self.released(text);
                    let plain = style == ScalarStyle::Plain && tag.is_none();
                    if plain && text.contains("{{") {
                        self.braces.get_or_insert(at);
                    }
                    scalar::key(text, plain).ok_or_else(|| InvalidYaml {
                        what: "a key is null, and Kubernetes takes only strings".to_owned(),
                        at,
                        hint: Some("write the key in quotes".to_owned()),
                    })?
                }
                _ => {
                    return Err(InvalidYaml {
                        what: "a key is a list, an object or an alias, and Kubernetes takes only strings"
                            .to_owned(),
                        at,
                        hint: Some("write the key, and a value that has brackets, in quotes".to_owned()),
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
            if self.noting == Noting::Nothing {
                if key == "<<" || object.insert(key, value).is_some() {
                    return Err(InvalidYaml {
                        what: "a key that takes places to understand".to_owned(),
                        at,
                        hint: None,
                    });
                }
                continue;
            }
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
                    at: mark.at,
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

/// Whether a document is a resource that we read, or a list that has one.
fn has_ours(value: &Value, is_ours: IsOurs) -> bool {
    let items = value.get("items").and_then(Value::as_array);
    is_ours(value) || items.is_some_and(|items| items.iter().any(is_ours))
}

/// Counts the values in a value.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Object(object) => 1 + object.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// Cuts a key to what a message has room for: one that is no field's name may be anything, in a Secret a key of
/// another kind.
fn shown(key: &str) -> String {
    match key.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", key.get(..end).unwrap_or_default()),
        None => key.to_owned(),
    }
}
