//! YAML for people: text becomes JSON values, each with the line and column it stands at.
//!
//! JSON is YAML, so one reader serves both. The meaning of what is read is the engine's business.
//!
//! Large files have many documents, so texts are cut into parts between them, and the parts are read at the same time.
//! A text that might mean something else in parts is read as a whole. So is a text with a mistake, so that the message
//! does not depend on the parts.

use std::fmt;
use std::sync::{Arc, OnceLock};

use egress_policy::{FieldPath, Segment};
use serde_json::Value;

mod cache;
mod colon;
mod invalid;
mod location;
mod reader;
mod scalar;
mod template;

pub use cache::AlreadyRead;
pub use invalid::InvalidYaml;
pub use location::Location;
pub use reader::IsOurs;

use cache::{Known, worth_knowing};
use location::{Children, Mark};
use reader::{MAX_ALIASED, Noting, read_part};

/// How many bytes are read again when somebody asks where something in them stands. Mostly nobody does, and the places
/// of everything take as long to note down as what is said there.
const READ_TWICE: usize = 1 << 16;

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

    /// A document of which it was not noted down where things stand; `part` is its text.
    fn unmarked(value: Value, part: Arc<str>) -> Self {
        Document {
            value,
            above: 0,
            marks: OnceLock::new(),
            part: Some(part),
        }
    }

    /// Returns the place of a field; of the nearest thing around it when it is not there.
    ///
    /// With `key`, the place of the field's name rather than of its value.
    pub fn place(&self, path: &FieldPath, key: bool) -> Location {
        self.marks().find(path, key).below(self.above)
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
                .map(|part| read_part(part, Noting::Places, |_| false));
            let document = read.and_then(|read| read.ok()?.documents.pop());
            let nowhere = || Mark {
                at: Location::START,
                key: None,
                children: Children::None,
            };
            document.map_or_else(nowhere, |(_, marks)| marks)
        })
    }
}

/// Does something with each of `count` parts of so many bytes together: in turn, or at the same time by who has threads.
pub type Each = fn(bytes: usize, count: usize, work: &(dyn Fn(usize) + Sync));

/// Does something with each of many parts in turn.
pub fn in_turn(_bytes: usize, count: usize, work: &(dyn Fn(usize) + Sync)) {
    (0..count).for_each(work);
}

/// Reads all documents of a text. Empty documents are left out.
///
/// # Errors
/// At the first thing that is not YAML, or that no JSON could say.
pub fn read(text: &str, is_ours: IsOurs) -> Result<Vec<Document>, InvalidYaml> {
    let mut read = read_all(&[text], is_ours, in_turn, None);
    read.pop().unwrap_or(Ok(Vec::new()))
}

/// Reads several texts, each as [`read`] does. What is `known` is not read again; afterwards these texts are.
pub fn read_all(
    texts: &[&str],
    is_ours: IsOurs,
    each: Each,
    mut known: Option<&mut AlreadyRead>,
) -> Vec<Result<Vec<Document>, InvalidYaml>> {
    // Editors on some systems put a mark at the beginning; it is no content.
    let texts = texts
        .iter()
        .map(|text| text.strip_prefix('\u{feff}').unwrap_or(text));
    let cut: Vec<(&str, Vec<Part<'_>>)> = texts.map(|text| (text, parts(text))).collect();
    let all: Vec<&Part<'_>> = cut.iter().flat_map(|(_, parts)| parts).collect();
    let before = known.as_deref();
    let bytes = all.iter().map(|part| part.text.len()).sum();
    let done: Vec<OnceLock<Result<PartRead, InvalidYaml>>> =
        all.iter().map(|_| OnceLock::new()).collect();
    each(bytes, all.len(), &|index| {
        if let (Some(part), Some(done)) = (all.get(index), done.get(index)) {
            done.get_or_init(|| read_or_recall(part, is_ours, before));
        }
    });
    let mut readings = (all.iter().zip(done))
        // Whatever was left out is read here.
        .map(|(part, done)| {
            let read = || read_or_recall(part, is_ours, before);
            done.into_inner().unwrap_or_else(read)
        });
    let mut results = Vec::new();
    let mut now = AlreadyRead::default();
    for (text, parts) in &cut {
        let of_text: Vec<_> = readings.by_ref().take(parts.len()).collect();
        let read = joined(text, of_text, is_ours, &mut now);
        results.push(read.map_err(|error| template::find(text).map_or(error, template::mistaken)));
    }
    drop(readings);
    if let Some(known) = &mut known {
        **known = now;
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
struct PartRead {
    documents: Vec<Document>,
    /// How many values its aliases stand for.
    aliased: usize,
    /// What is to be known of it.
    json: Option<Known>,
}

/// Reads a part in full.
fn read_whole(text: &str, is_ours: IsOurs) -> Result<PartRead, InvalidYaml> {
    let read = read_part(text, Noting::Places, is_ours)?;
    let documents = read.documents.into_iter();
    Ok(PartRead {
        documents: documents
            .map(|(value, marks)| Document::new(value, marks))
            .collect(),
        aliased: read.aliased,
        json: None,
    })
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

/// Whether documents mean the same in parts: a directive is for the document after it, and the end of a line or
/// of the text must be for the reader what it is for us.
fn can_be_cut(text: &str) -> bool {
    let is_bare = |(at, _): (usize, &str)| text.as_bytes().get(at + 1) != Some(&b'\n');
    !text.starts_with('%')
        && !text.contains("\n%")
        && !text.contains('\0')
        && !text.match_indices('\r').any(is_bare)
}

/// Puts together what the parts of a text say. Where parts could mean something else, it is read as a whole.
fn joined(
    text: &str,
    parts: Vec<Result<PartRead, InvalidYaml>>,
    is_ours: IsOurs,
    known: &mut AlreadyRead,
) -> Result<Vec<Document>, InvalidYaml> {
    let is_whole = parts.len() == 1;
    let readings = match parts.into_iter().collect::<Result<Vec<PartRead>, _>>() {
        Ok(readings) if is_whole || may_be_apart(&readings) => readings,
        Err(error) if is_whole => return Err(error),
        Ok(_) | Err(_) => return Ok(read_whole(text, is_ours)?.documents),
    };
    let mut documents = Vec::new();
    for reading in readings {
        documents.extend(reading.documents);
        known.0.extend(reading.json);
    }
    Ok(documents)
}

/// Whether parts of a text mean together what the whole does. A text without indentation may go on over what
/// looks like a marker; such a document is no object.
fn may_be_apart(readings: &[PartRead]) -> bool {
    let aliased: usize = readings.iter().map(|reading| reading.aliased).sum();
    let mut documents = readings.iter().flat_map(|reading| &reading.documents);
    aliased <= MAX_ALIASED && documents.all(|document| document.value.is_object())
}

fn read_or_recall(
    part: &Part<'_>,
    is_ours: IsOurs,
    known: Option<&AlreadyRead>,
) -> Result<PartRead, InvalidYaml> {
    let recalled = known.and_then(|known| known.recall(part.text));
    let recalled = recalled.map(|(value, json)| PartRead {
        documents: vec![Document::unmarked(value, json.0.clone())],
        aliased: 0,
        json: Some(json),
    });
    let quick = || recalled.or_else(|| read_quickly(part.text, is_ours));
    let mut reading = match quick() {
        Some(reading) => reading,
        None => read_whole(part.text, is_ours)?,
    };
    if known.is_some() && reading.json.is_none() && reading.aliased == 0 {
        // Only what was read quickly has its text.
        let first = reading.documents.first();
        let known = first.and_then(|first| worth_knowing(first.part.as_ref()?, &first.value));
        reading.json = known;
    }
    for document in &mut reading.documents {
        document.above = part.above;
    }
    Ok(reading)
}

/// Reads a part without noting down where things stand, if it is small and one resource of ours; `None` if it must be
/// read in full, a mistake in it included. The text of a Secret is not kept.
fn read_quickly(text: &str, is_ours: IsOurs) -> Option<PartRead> {
    let is_small = text.len() <= READ_TWICE;
    let mut read = is_small
        .then(|| read_part(text, Noting::Nothing, is_ours))?
        .ok()?;
    let (value, _) = read.documents.pop()?;
    (read.documents.is_empty() && is_ours(&value)).then(|| PartRead {
        documents: vec![Document::unmarked(value, text.into())],
        aliased: read.aliased,
        json: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::document::is_ours;

    fn read(text: &str) -> Result<Vec<Document>, InvalidYaml> {
        super::read(text, is_ours)
    }

    fn read_all(
        texts: &[&str],
        known: Option<&mut AlreadyRead>,
    ) -> Vec<Result<Vec<Document>, InvalidYaml>> {
        super::read_all(texts, is_ours, backwards, known)
    }

    /// The order in which parts are read says nothing.
    fn backwards(_bytes: usize, count: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..count).rev().for_each(work);
    }

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
            Location {
                line: 3,
                column: 13
            }
        );
        assert_eq!(
            document.place(&path("spec.ports.0.number"), true),
            Location { line: 3, column: 5 }
        );
        assert_eq!(document.place(&path("spec.hosts"), false), Location::START);
    }

    /// Every field with its place and that of its name.
    type Places = Vec<(String, Location, Location)>;

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
        read_whole(text, is_ours).map(|reading| reading.documents)
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
            assert_eq!(
                document.place(&path("number"), false).line as usize,
                2 * number + 2
            );
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
            ("`a` is given twice", Location { line: 3, column: 1 })
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
