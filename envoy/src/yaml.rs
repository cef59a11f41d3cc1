//! YAML for people: text becomes JSON values, each with the line and column it stands at.
//!
//! JSON is YAML, so one reader serves both. The meaning of what is read is the engine's business.
//!
//! Large files have many documents, so texts are cut into parts between them, and the parts are read at the same time.
//! A text that might mean something else in parts is read as a whole, and so is one with a mistake in it: what is
//! told of it does not depend on parts.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::thread;

use egress_policy::{FieldPath, Segment};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};
use serde_json::{Map, Value};

use crate::rules::is_ours;

mod colon;
mod scalar;
mod template;

use scalar::scalar;

/// How deep lists and objects may lie in each other.
const MAX_DEPTH: usize = 64;

/// How many values the aliases of one file may stand for, so that a small file cannot fill the memory.
const MAX_ALIASED: usize = 100_000;

/// How many bytes are worth a thread: fewer are read sooner than it is there.
const WORTH_A_THREAD: usize = 1 << 16;

/// How many bytes are read again when somebody asks where something in them stands. Mostly nobody does, and the places
/// of everything take as long to note down as what is said there.
const READ_TWICE: usize = 1 << 16;

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
    /// How many lines of the file stand above the part that it was read from.
    above: usize,
    /// Where what it says stands in that part. If it was not noted down, it is looked for when somebody asks.
    marks: OnceLock<Mark>,
    /// The part, if it was not; it has no other document.
    part: Option<Arc<str>>,
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
    /// A value that is no string, as it was written, where JSON would write it otherwise.
    Written(Box<str>),
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
            .field("at", &self.place(&FieldPath::default(), false))
            .finish_non_exhaustive()
    }
}

impl Document {
    fn new(value: Value, marks: Mark) -> Self {
        Document {
            value,
            above: 0,
            marks: marks.into(),
            part: None,
        }
    }

    /// Returns the place of a field; of the nearest thing around it when it is not there.
    ///
    /// With `key`, the place of the field's name rather than of its value.
    pub fn place(&self, path: &FieldPath, key: bool) -> Place {
        let place = Place::from(self.marks().find(path, key));
        Place {
            line: place.line + self.above,
            ..place
        }
    }

    /// Returns how a value was written that is no string, where JSON would write it otherwise: `yes`, `1e3`.
    pub fn written(&self, path: &FieldPath) -> Option<&str> {
        match &self.marks().exact(path)?.children {
            Children::Written(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the value of a field.
    pub fn at(&self, path: &FieldPath) -> Option<&Value> {
        let mut segments = path.0.iter();
        segments.try_fold(&self.value, |value, segment| match segment {
            Segment::Key(key) => value.get(key),
            Segment::Index(index) => value.get(index),
        })
    }

    fn marks(&self) -> &Mark {
        self.marks.get_or_init(|| {
            let read = self
                .part
                .as_deref()
                .map(|part| read_part(part, Noting::Places));
            let document = read.and_then(|read| read.ok()?.documents.pop());
            let marks = document.and_then(|document| document.marks.into_inner());
            marks.unwrap_or(Mark {
                at: At { line: 1, column: 1 },
                key: None,
                children: Children::None,
            })
        })
    }
}

impl Mark {
    fn child(&self, segment: &Segment) -> Option<&Mark> {
        match (&self.children, segment) {
            (Children::List(list), Segment::Index(index)) => list.get(*index),
            (Children::Object(object), Segment::Key(key)) => mark_of(object, key),
            _ => None,
        }
    }

    fn exact(&self, path: &FieldPath) -> Option<&Mark> {
        path.0.iter().try_fold(self, Mark::child)
    }

    fn find(&self, path: &FieldPath, key: bool) -> At {
        let mut mark = self;
        for segment in &path.0 {
            match mark.child(segment) {
                Some(next) => mark = next,
                // The field is missing: point at the object that should have it, by its name.
                None => return mark.key.unwrap_or(mark.at),
            }
        }
        if key {
            mark.key.unwrap_or(mark.at)
        } else {
            mark.at
        }
    }
}

/// What the documents of a reading say, by the parts they stood in, for the next reading of nearly the same.
///
/// It has only resources of ours, so no Secret, and as JSON, which takes a tenth of the memory of values.
#[derive(Default)]
pub struct AlreadyRead(HashMap<Arc<str>, Arc<str>>);

/// Reads all documents of a text. Empty documents are left out.
///
/// # Errors
/// At the first thing that is not YAML, or that no JSON could say.
pub fn read(text: &str) -> Result<Vec<Document>, InvalidYaml> {
    read_all(&[text], None).pop().unwrap_or(Ok(Vec::new()))
}

/// Reads several texts, each as [`read`] does. What is `known` is not read again; afterwards these texts are.
pub fn read_all(
    texts: &[&str],
    mut known: Option<&mut AlreadyRead>,
) -> Vec<Result<Vec<Document>, InvalidYaml>> {
    // Editors on some systems put a mark at the beginning; it is no content.
    let texts = texts
        .iter()
        .map(|text| text.strip_prefix('\u{feff}').unwrap_or(text));
    let cut: Vec<(&str, Vec<Part<'_>>)> = texts.map(|text| (text, parts(text))).collect();
    let all: Vec<&Part<'_>> = cut.iter().flat_map(|(_, parts)| parts).collect();
    let before = known.as_deref();
    let mut readings = at_once(&all, |part| read_or_recall(part, before)).into_iter();
    let mut results = Vec::new();
    let mut now = HashMap::new();
    for (text, parts) in &cut {
        let of_text: Vec<_> = readings.by_ref().take(parts.len()).collect();
        let read = joined(text, of_text, &mut now);
        results.push(read.map_err(|error| template::find(text).map_or(error, template::mistaken)));
    }
    if let Some(known) = &mut known {
        known.0 = now;
    }
    results
}

/// A part of a text that can be read by itself.
struct Part<'t> {
    /// With the marker that ends its last document, so that this reads as it does in the text.
    text: &'t str,
    /// How many lines of the text stand above it.
    above: usize,
}

/// What a part says.
struct Reading {
    documents: Vec<Document>,
    /// How many values its aliases stand for.
    aliased: usize,
    /// What is to be known of it.
    json: Option<(Arc<str>, Arc<str>)>,
}

/// Cuts a text where documents begin.
fn parts(text: &str) -> Vec<Part<'_>> {
    let (mut parts, mut begin, mut above) = (Vec::new(), 0, 0);
    let markers = can_be_cut(text).then(|| text.match_indices("\n---"));
    for (at, marker) in markers.into_iter().flatten() {
        let end = at + marker.len();
        let after = text.as_bytes().get(end);
        if after.is_some_and(|byte| !b" \t\r\n".contains(byte)) {
            continue;
        }
        let part = Part {
            text: text.get(begin..end).unwrap_or_default(),
            above,
        };
        above += part.text.bytes().filter(|byte| *byte == b'\n').count();
        parts.push(part);
        begin = at + 1;
    }
    parts.push(Part {
        text: text.get(begin..).unwrap_or_default(),
        above,
    });
    parts
}

/// Says whether documents mean the same in parts: a directive is for the document after it, and the end of a line or
/// of the text must be for the reader what it is for us.
fn can_be_cut(text: &str) -> bool {
    let is_bare = |(at, _): (usize, &str)| text.as_bytes().get(at + 1) != Some(&b'\n');
    !text.starts_with('%')
        && !text.contains("\n%")
        && !text.contains('\0')
        && !text.match_indices('\r').any(is_bare)
}

/// Does something with each of many parts, on all processors.
fn at_once<R: Send>(parts: &[&Part<'_>], read: impl Fn(&Part<'_>) -> R + Sync) -> Vec<R> {
    let bytes: usize = parts.iter().map(|part| part.text.len()).sum();
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = processors.min(bytes / WORTH_A_THREAD).max(1);
    let share = parts.len().div_ceil(threads).max(1);
    let all = |share: &[&Part<'_>]| share.iter().map(|part| read(part)).collect::<Vec<R>>();
    if threads == 1 {
        return all(parts);
    }
    thread::scope(|scope| {
        let shares = parts.chunks(share);
        let running: Vec<_> = shares.map(|share| scope.spawn(|| all(share))).collect();
        let done = running.into_iter().map(thread::ScopedJoinHandle::join);
        done.flat_map(|share| share.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Puts together what the parts of a text say. Where parts could mean something else, it is read as a whole.
fn joined(
    text: &str,
    parts: Vec<Result<Reading, InvalidYaml>>,
    known: &mut HashMap<Arc<str>, Arc<str>>,
) -> Result<Vec<Document>, InvalidYaml> {
    let is_whole = parts.len() == 1;
    let readings = match parts.into_iter().collect::<Result<Vec<Reading>, _>>() {
        Ok(readings) if is_whole || may_be_apart(&readings) => readings,
        Err(error) if is_whole => return Err(error),
        Ok(_) | Err(_) => return Ok(read_part(text, Noting::Places)?.documents),
    };
    let mut documents = Vec::new();
    for reading in readings {
        documents.extend(reading.documents);
        known.extend(reading.json);
    }
    Ok(documents)
}

/// Says whether parts of a text mean together what the whole does. A text without indentation may go on over what
/// looks like a marker; such a document is no object.
fn may_be_apart(readings: &[Reading]) -> bool {
    let aliased: usize = readings.iter().map(|reading| reading.aliased).sum();
    let mut documents = readings.iter().flat_map(|reading| &reading.documents);
    aliased <= MAX_ALIASED && documents.all(|document| document.value.is_object())
}

fn read_or_recall(part: &Part<'_>, known: Option<&AlreadyRead>) -> Result<Reading, InvalidYaml> {
    let recalled = known.and_then(|known| known.recall(part.text));
    let quick = || recalled.or_else(|| read_quickly(part.text));
    let mut reading = match quick() {
        Some(reading) => reading,
        None => read_part(part.text, Noting::Places)?,
    };
    if known.is_some() && reading.json.is_none() {
        reading.json = worth_knowing(&reading);
    }
    for document in &mut reading.documents {
        document.above = part.above;
    }
    Ok(reading)
}

impl AlreadyRead {
    fn recall(&self, part: &str) -> Option<Reading> {
        let (part, json) = self.0.get_key_value(part)?;
        let document = Document {
            value: serde_json::from_str(json).ok()?,
            above: 0,
            marks: OnceLock::new(),
            part: Some(part.clone()),
        };
        Some(Reading {
            documents: vec![document],
            aliased: 0,
            json: Some((part.clone(), json.clone())),
        })
    }
}

/// Reads a part without noting down where things stand, if it is small and one resource of ours; `None` if it must be
/// read in full, a mistake in it included. The text of a Secret is not kept.
fn read_quickly(text: &str) -> Option<Reading> {
    let is_small = text.len() <= READ_TWICE;
    let mut reading = is_small.then(|| read_part(text, Noting::Nothing))?.ok()?;
    match reading.documents.as_mut_slice() {
        [document] if is_ours(&document.value) => {
            document.marks = OnceLock::new();
            document.part = Some(text.into());
            Some(reading)
        }
        _ => None,
    }
}

/// Returns what a part says, if it was read quickly and JSON holds it as it is.
fn worth_knowing(reading: &Reading) -> Option<(Arc<str>, Arc<str>)> {
    let document = reading.documents.first()?;
    let (part, value) = (document.part.clone()?, &document.value);
    let is_worth_it = reading.aliased == 0 && is_exact(value);
    is_worth_it.then(|| (part, value.to_string().into()))
}

/// Says whether a value comes back from JSON as it was: fractions may not.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().all(is_exact),
        Value::Object(fields) => fields.values().all(is_exact),
        Value::Number(number) => !number.is_f64(),
        _ => true,
    }
}

/// What a reader notes down beside what is said.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noting {
    /// Where everything stands.
    Places,
    /// Nothing, and it gives up on what takes places to understand or to tell of.
    Nothing,
}

fn read_part(text: &str, noting: Noting) -> Result<Reading, InvalidYaml> {
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
                    && has_ours(&value)
                {
                    return Err(template::mistaken(at));
                }
                if !value.is_null() {
                    documents.push(Document::new(value, marks));
                }
            }
        }
    }
    Ok(Reading {
        documents,
        aliased: reader.aliased,
        json: None,
    })
}

struct Reader<'t> {
    events: Parser<'t, saphyr_parser::StrInput<'t>>,
    noting: Noting,
    /// Whether [`colon::held`] changed the text.
    has_held: bool,
    /// Where this document has `{{` in a text without quotes.
    braces: Option<Place>,
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
                let text = self.released(text);
                let plain = style == ScalarStyle::Plain && tag.is_none();
                if plain && text.contains("{{") {
                    self.braces.get_or_insert(at.into());
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

/// Says whether a document is a resource that we read, or a list that has one.
fn has_ours(value: &Value) -> bool {
    let items = value.get("items").and_then(Value::as_array);
    is_ours(value) || items.is_some_and(|items| items.iter().any(is_ours))
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
            [json!({"a": true, "b": true})]
        );
        assert_eq!(
            values("a: &x {k: 1}\nb: *x\nc:\n  <<: *x\n  m: 2\n"),
            [json!({"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "m": 2}})]
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

    /// Every field with its place and that of its name.
    type Places = Vec<(String, Place, Place)>;

    fn places(document: &Document) -> Places {
        fn collect(document: &Document, value: &Value, path: &FieldPath, all: &mut Places) {
            let place = |key| document.place(path, key);
            all.push((path.to_string(), place(false), place(true)));
            let below = |segment| FieldPath(path.0.iter().cloned().chain([segment]).collect());
            match value {
                Value::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        collect(document, item, &below(Segment::Index(index)), all);
                    }
                }
                Value::Object(fields) => {
                    for (key, value) in fields {
                        collect(document, value, &below(Segment::Key(key.clone())), all);
                    }
                }
                _ => {}
            }
        }
        let mut all = Vec::new();
        collect(document, &document.value, &FieldPath::default(), &mut all);
        all
    }

    /// All that a reading tells.
    type Told = Result<Vec<(Value, Places)>, InvalidYaml>;

    fn told(read: Result<Vec<Document>, InvalidYaml>) -> Told {
        let told = |document: Document| (document.value.clone(), places(&document));
        read.map(|documents| documents.into_iter().map(told).collect())
    }

    fn as_a_whole(text: &str) -> Result<Vec<Document>, InvalidYaml> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        read_part(text, Noting::Places).map(|reading| reading.documents)
    }

    /// Pieces of texts of which some are cut wrongly by whoever takes each `---` for a new document.
    const PIECES: [&str; 42] = [
        "---\n",
        "--- \n",
        "---\r\n",
        "---",
        "--- {a: 1}\n",
        "--- |\n",
        "--- >+\n",
        "---x\n",
        "--- # c\n",
        "--- [a,\n",
        "...\n",
        "... \n",
        "%YAML 1.2\n",
        "%TAG ! tag:x,1:\n",
        "\u{feff}",
        "\r",
        "\r\n",
        "\n",
        "\0",
        "\t\n",
        "a: 1\n",
        "b: 'x\n",
        "'\n",
        "c: \"y\n",
        "\"\n",
        "d: |\n",
        "  text\n",
        "text\n",
        "e: [1,\n",
        "]\n",
        "f: {g: 2\n",
        "}\n",
        "h: &x 1\n",
        "i: *x\n",
        "# c\n",
        "- 1\n",
        "é: ü\n",
        "? k\n",
        "j: >+\n\n",
        "!!null |\n",
        "<<: *x\n",
        "kind: ServiceEntry\n",
    ];

    #[test]
    fn texts_say_in_parts_what_they_say_as_a_whole() {
        let agree = |text: &str| {
            assert_eq!(told(read(text)), told(as_a_whole(text)), "{text:?}");
            let mut known = AlreadyRead::default();
            read_all(&[text], Some(&mut known));
            let again = read_all(&[text], Some(&mut known)).remove(0);
            assert_eq!(told(again), told(as_a_whole(text)), "{text:?}, again");
        };
        for one in PIECES {
            for two in PIECES {
                agree(&[one, two].concat());
            }
        }
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize
        };
        for _ in 0..20_000 {
            let length = 3 + next() % 9;
            let text: Vec<&str> = (0..length).map(|_| PIECES[next() % PIECES.len()]).collect();
            agree(&text.concat());
        }
    }

    #[test]
    fn what_is_known_is_at_its_new_place() {
        let rule = "kind: DestinationRule\nspec:\n  host: a\n  weight: 1.1\n";
        let entry = "kind: ServiceEntry\nspec:\n  hosts: [a]\n";
        let secret = "kind: Secret\ndata: {a: b}\n";
        let mut known = AlreadyRead::default();
        read_all(
            &[&[rule, entry, secret, entry].join("---\n")],
            Some(&mut known),
        );
        assert!(
            read(secret).unwrap()[0].part.is_none(),
            "no text of a Secret is kept"
        );
        let texts: Vec<&str> = known.0.values().map(|json| &**json).collect();
        let entry_alone = r#"{"kind":"ServiceEntry","spec":{"hosts":["a"]}}"#;
        assert_eq!(
            texts, [entry_alone; 2],
            "of the two one has no document after it"
        );
        let text = ["# new\n", rule, secret, entry, entry].join("---\n");
        let again = read_all(&[&text], Some(&mut known)).remove(0);
        assert_eq!(told(again), told(as_a_whole(&text)));
        read_all(&["a: 1\n"], Some(&mut known));
        assert!(known.0.is_empty(), "what is not read any more is forgotten");
    }

    #[test]
    fn many_documents_are_read_in_their_order() {
        let text: String = (0..20_000)
            .map(|number| format!("---\nnumber: {number}\n"))
            .collect();
        let documents = read(&text).unwrap();
        assert_eq!(documents.len(), 20_000);
        for (number, document) in documents.iter().enumerate() {
            assert_eq!(document.value, json!({"number": number}));
            assert_eq!(document.place(&path("number"), false).line, 2 * number + 2);
        }
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
