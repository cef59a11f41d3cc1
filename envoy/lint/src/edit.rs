//! Small edits of a text that keep its comments and its looks.
//!
//! A [`Change`] describes new values, and the edit changes text. Afterwards the text is read again. If it does not have
//! these values, the edit is dropped. So a fix is either right or not made.

use std::ops::Range;

use egress_policy::Segment;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle};
use serde_json::{Map, Value, json};

use egress_rules::is_ours;
use egress_rules::yaml;

/// A change of one document.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    /// Adds a field to an object, behind another one.
    Add {
        object: Vec<Segment>,
        behind: &'static str,
        key: &'static str,
        value: Added,
    },
    /// Removes an item of a list. It is not the first.
    Remove { list: Vec<Segment>, index: usize },
    /// Moves `tls` of a traffic policy to `portLevelSettings`, for one port.
    MoveToPort { policy: Vec<Segment>, port: u16 },
}

/// What can be added.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Added {
    Number(u16),
    Names(Vec<String>),
}

impl Change {
    /// Reports what was done, as a phrase.
    pub(crate) fn done(&self) -> String {
        match self {
            Change::Add {
                key,
                value: Added::Number(number),
                ..
            } => format!("added `{key}: {number}`"),
            Change::Add {
                key,
                value: Added::Names(names),
                ..
            } => format!("added `{key}: [{}]`", names.join(", ")),
            Change::Remove { index, .. } => format!("removed entry {index}, which did not count"),
            Change::MoveToPort { port, .. } => {
                format!("moved `tls` to an entry of `portLevelSettings` for port {port}")
            }
        }
    }
}

/// Makes changes, given with the number of their document, and returns the new text and which were made.
///
/// Changes of one call must not touch the same lines; the second of two that do is not made.
pub(crate) fn apply(text: &str, changes: &[(usize, &Change)]) -> (String, Vec<bool>) {
    let mut made = vec![false; changes.len()];
    if let Some(new) = attempt(text, changes) {
        made.fill(true);
        return (new, made);
    }
    // One of them cannot be made; find out which.
    let mut new = text.to_owned();
    for (change, made) in changes.iter().zip(&mut made) {
        if let Some(next) = attempt(&new, &[*change]) {
            new = next;
            *made = true;
        }
    }
    (new, made)
}

/// Makes all changes, or none.
fn attempt(text: &str, changes: &[(usize, &Change)]) -> Option<String> {
    let (mark, body) = match text.strip_prefix('\u{feff}') {
        Some(body) => ("\u{feff}", body),
        None => ("", text),
    };
    let mut wanted: Vec<Value> = values(body)?;
    let documents = Reader::read(body)?;
    let writer = Writer {
        text: body,
        line_end: if body.contains("\r\n") { "\r\n" } else { "\n" },
    };
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for (document, change) in changes {
        alter(wanted.get_mut(*document)?, change)?;
        edits.extend(writer.edits(documents.get(*document)?, change)?);
    }
    edits.sort_by_key(|(range, _)| (range.start, range.end));
    let mut new = String::from(mark);
    let mut at = 0;
    for (range, insert) in &edits {
        new.push_str(body.get(at..range.start)?);
        new.push_str(insert);
        at = range.end;
    }
    new.push_str(body.get(at..)?);
    (values(&new)? == wanted).then_some(new)
}

fn values(text: &str) -> Option<Vec<Value>> {
    let read = yaml::read(text, is_ours).ok()?;
    Some(read.into_iter().map(|document| document.value).collect())
}

/// Makes a change of a value.
fn alter(value: &mut Value, change: &Change) -> Option<()> {
    match change {
        Change::Add {
            object,
            key,
            value: new,
            ..
        } => {
            let object = find(value, object)?.as_object_mut()?;
            let new = match new {
                Added::Number(number) => json!(number),
                Added::Names(names) => json!(names),
            };
            object
                .insert((*key).to_owned(), new)
                .is_none()
                .then_some(())
        }
        Change::Remove { list, index } => {
            let list = find(value, list)?.as_array_mut()?;
            (*index > 0 && *index < list.len()).then(|| drop(list.remove(*index)))
        }
        Change::MoveToPort { policy, port } => {
            let policy = find(value, policy)?.as_object_mut()?;
            let mut entry = Map::new();
            entry.insert("port".to_owned(), json!({"number": port}));
            entry.insert("tls".to_owned(), policy.remove("tls")?);
            let list = json!([entry]);
            policy
                .insert("portLevelSettings".to_owned(), list)
                .is_none()
                .then_some(())
        }
    }
}

fn find<'v>(mut value: &'v mut Value, path: &[Segment]) -> Option<&'v mut Value> {
    for segment in path {
        value = match segment {
            Segment::Key(key) => value.get_mut(key)?,
            Segment::Index(index) => value.get_mut(index)?,
        };
    }
    Some(value)
}

/// A value of a text, and which bytes it takes.
#[derive(Debug)]
struct Node {
    start: usize,
    end: usize,
    /// Where its key begins, for the value of an object.
    key: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Scalar,
    /// The flag says that it stands in brackets.
    List(Vec<Node>, bool),
    /// The flag says that it stands in braces.
    Object(Vec<(String, Node)>, bool),
    /// Something that stands elsewhere too, and is better not edited.
    Shared,
}

impl Node {
    fn at(&self, path: &[Segment]) -> Option<&Node> {
        let mut node = self;
        for segment in path {
            node = match (&node.kind, segment) {
                (Kind::List(items, _), Segment::Index(index)) => items.get(*index)?,
                (Kind::Object(..), Segment::Key(key)) => node.field(key)?,
                _ => return None,
            };
        }
        Some(node)
    }

    fn field(&self, name: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Object(fields, _) => fields
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, node)| node),
            _ => None,
        }
    }
}

struct Reader<'t> {
    events: Parser<'t, saphyr_parser::StrInput<'t>>,
    text: &'t str,
    /// The byte at which each character begins; empty where a character is a byte.
    bytes: Vec<usize>,
}

impl<'t> Reader<'t> {
    /// Returns the documents that [`yaml::read`] returns.
    fn read(text: &'t str) -> Option<Vec<Node>> {
        let bytes = if text.is_ascii() {
            Vec::new()
        } else {
            text.char_indices().map(|(byte, _)| byte).collect()
        };
        let mut reader = Reader {
            events: Parser::new_from_str(text),
            text,
            bytes,
        };
        let mut documents = Vec::new();
        while let Some((event, span)) = reader.next() {
            match event {
                Event::StreamEnd => return Some(documents),
                Event::StreamStart
                | Event::DocumentStart(_)
                | Event::DocumentEnd
                | Event::Nothing => {}
                event => {
                    let empty = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None)
                        if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"));
                    let node = reader.node(event, span)?;
                    if !empty {
                        documents.push(node);
                    }
                }
            }
        }
        Some(documents)
    }

    fn next(&mut self) -> Option<(Event<'t>, Range<usize>)> {
        let (event, span) = self.events.next()?.ok()?;
        Some((event, self.byte(span.start)..self.byte(span.end)))
    }

    fn byte(&self, mark: Marker) -> usize {
        if self.bytes.is_empty() {
            mark.index().min(self.text.len())
        } else {
            self.bytes
                .get(mark.index())
                .copied()
                .unwrap_or(self.text.len())
        }
    }

    fn node(&mut self, event: Event<'t>, span: Range<usize>) -> Option<Node> {
        let Range { start, mut end } = span;
        let opens = |bracket| self.text.as_bytes().get(start) == Some(&bracket);
        let kind = match event {
            Event::Alias(_) => Kind::Shared,
            Event::Scalar(_, _, anchor, _) if anchor != 0 => Kind::Shared,
            Event::Scalar(..) => Kind::Scalar,
            Event::SequenceStart(anchor, _) => {
                let flow = opens(b'[');
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if event == Event::SequenceEnd {
                        end = if flow {
                            span.end
                        } else {
                            last(end, items.last())
                        };
                        break;
                    }
                    items.push(self.node(event, span)?);
                }
                if anchor == 0 {
                    Kind::List(items, flow)
                } else {
                    Kind::Shared
                }
            }
            Event::MappingStart(anchor, _) => {
                let flow = opens(b'{');
                let mut fields: Vec<(String, Node)> = Vec::new();
                loop {
                    let (event, at) = self.next()?;
                    let key = match event {
                        Event::MappingEnd => {
                            let latest = fields.last().map(|(_, node)| node);
                            end = if flow { at.end } else { last(end, latest) };
                            break;
                        }
                        Event::Scalar(text, ..) => text.into_owned(),
                        _ => return None,
                    };
                    let (event, span) = self.next()?;
                    let mut value = self.node(event, span)?;
                    value.key = at.start;
                    fields.push((key, value));
                }
                if anchor == 0 && !fields.iter().any(|(key, _)| key == "<<") {
                    Kind::Object(fields, flow)
                } else {
                    Kind::Shared
                }
            }
            _ => return None,
        };
        Some(Node {
            start,
            end,
            key: start,
            kind,
        })
    }
}

fn last(end: usize, node: Option<&Node>) -> usize {
    node.map_or(end, |node| node.end)
}

struct Writer<'t> {
    text: &'t str,
    line_end: &'static str,
}

type Edits = Vec<(Range<usize>, String)>;

impl Writer<'_> {
    fn edits(&self, document: &Node, change: &Change) -> Option<Edits> {
        match change {
            Change::Add {
                object,
                behind,
                key,
                value,
            } => self.add(document.at(object)?, behind, key, value),
            Change::Remove { list, index } => self.remove(document.at(list)?, *index),
            Change::MoveToPort { policy, port } => self.move_to_port(document.at(policy)?, *port),
        }
    }

    fn add(&self, object: &Node, behind: &str, key: &str, value: &Added) -> Option<Edits> {
        let Kind::Object(_, flow) = object.kind else {
            return None;
        };
        let before = object.field(behind)?;
        if flow {
            let quoted = self.is_quoted(before.key);
            let name = |text: &str| {
                if quoted {
                    json!(text).to_string()
                } else {
                    plain(text)
                }
            };
            let written = match value {
                Added::Number(number) => number.to_string(),
                Added::Names(names) => {
                    let names: Vec<String> = names.iter().map(|text| name(text)).collect();
                    format!("[{}]", names.join(", "))
                }
            };
            // Where each field has a line, so has the new one.
            let gap = match self.indent(before.key) {
                Some(indent) => format!(",{}{indent}", self.line_end),
                None => ", ".to_owned(),
            };
            return Some(vec![(
                before.end..before.end,
                format!("{gap}{}: {written}", name(key)),
            )]);
        }
        let indent = " ".repeat(self.column(before.key));
        let end = self.line_end;
        let lines = match value {
            Added::Number(number) => format!("{indent}{key}: {number}{end}"),
            Added::Names(names) => {
                let items = names
                    .iter()
                    .map(|text| format!("{indent}- {}{end}", plain(text)));
                format!("{indent}{key}:{end}{}", items.collect::<String>())
            }
        };
        Some(vec![self.lines_behind(before.end, lines)?])
    }

    fn remove(&self, list: &Node, index: usize) -> Option<Edits> {
        let Kind::List(items, flow) = &list.kind else {
            return None;
        };
        let (before, item) = (items.get(index.checked_sub(1)?)?, items.get(index)?);
        if *flow {
            return Some(vec![(before.end..item.end, String::new())]);
        }
        let start = self.line_start(item.start);
        let dash = self.text.get(start..item.start)?.trim();
        let end = self.line_after(item.end)?;
        (dash == "-").then(|| vec![(start..end, String::new())])
    }

    fn move_to_port(&self, policy: &Node, port: u16) -> Option<Edits> {
        let Kind::Object(_, flow) = policy.kind else {
            return None;
        };
        let tls = policy.field("tls")?;
        if flow {
            let head = if self.is_quoted(tls.key) {
                format!("\"portLevelSettings\": [{{\"port\": {{\"number\": {port}}}, ")
            } else {
                format!("portLevelSettings: [{{port: {{number: {port}}}, ")
            };
            return Some(vec![
                (tls.key..tls.key, head),
                (tls.end..tls.end, "}]".to_owned()),
            ]);
        }
        let indent = self.indent(tls.key)?;
        let (start, end) = (self.line_start(tls.key), self.line_after(tls.end)?);
        let line_end = self.line_end;
        let mut lines = format!(
            "{indent}portLevelSettings:{line_end}{indent}- port:{line_end}{indent}    number: {port}{line_end}"
        );
        for line in self.text.get(start..end)?.split_inclusive('\n') {
            if !line.trim().is_empty() {
                lines.push_str("  ");
            }
            lines.push_str(line);
        }
        Some(vec![(start..end, lines)])
    }

    /// Returns the edit that puts lines behind the one that ends a value.
    fn lines_behind(&self, value_end: usize, lines: String) -> Option<(Range<usize>, String)> {
        let at = self.line_after(value_end)?;
        let missing = at > 0 && !self.text.get(..at)?.ends_with('\n');
        let lines = if missing {
            format!("{}{}", self.line_end, lines.trim_end_matches(['\r', '\n']))
        } else {
            lines
        };
        Some((at..at, lines))
    }

    /// Returns where the next line begins, if nothing but a comment follows.
    fn line_after(&self, at: usize) -> Option<usize> {
        let rest = self.text.get(at..)?;
        let line = rest.split_inclusive('\n').next().unwrap_or("");
        let tail = line.trim();
        (tail.is_empty() || tail.starts_with('#')).then_some(at + line.len())
    }

    fn line_start(&self, at: usize) -> usize {
        self.text
            .get(..at)
            .and_then(|before| before.rfind('\n'))
            .map_or(0, |line_end| line_end + 1)
    }

    /// Returns the blanks before `at`, if nothing else stands before it on its line.
    fn indent(&self, at: usize) -> Option<&str> {
        let before = self.text.get(self.line_start(at)..at)?;
        before.chars().all(|c| c == ' ').then_some(before)
    }

    fn column(&self, at: usize) -> usize {
        let before = self.text.get(self.line_start(at)..at).unwrap_or("");
        before.chars().count()
    }

    fn is_quoted(&self, at: usize) -> bool {
        self.text.as_bytes().get(at) == Some(&b'"')
    }
}

/// Writes a string without quotes, where YAML then still reads a string.
fn plain(text: &str) -> String {
    let simple = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    let same = || values(text).is_some_and(|read| read == [Value::String(text.to_owned())]);
    if simple && !text.starts_with('-') && same() {
        text.to_owned()
    } else {
        json!(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::way;

    fn san(object: &str) -> Change {
        Change::Add {
            object: way(object),
            behind: "sni",
            key: "subjectAltNames",
            value: Added::Names(vec!["a.com".to_owned()]),
        }
    }

    fn one(text: &str, change: &Change) -> Option<String> {
        let (new, made) = apply(text, &[(0, change)]);
        made[0].then_some(new)
    }

    #[test]
    fn a_field_is_added_in_the_style_around_it() {
        for (before, after) in [
            (
                "tls:\n  sni: a.com # why\n  mode: SIMPLE\n",
                "tls:\n  sni: a.com # why\n  subjectAltNames:\n  - a.com\n  mode: SIMPLE\n",
            ),
            (
                "tls:\r\n  sni: a.com\r\n",
                "tls:\r\n  sni: a.com\r\n  subjectAltNames:\r\n  - a.com\r\n",
            ),
            (
                "tls:\n  sni: a.com",
                "tls:\n  sni: a.com\n  subjectAltNames:\n  - a.com",
            ),
            (
                "tls: {mode: SIMPLE, sni: a.com}\n",
                "tls: {mode: SIMPLE, sni: a.com, subjectAltNames: [a.com]}\n",
            ),
            (
                "\u{feff}tls: # ü\n  sni: \"a.com\"\n",
                "\u{feff}tls: # ü\n  sni: \"a.com\"\n  subjectAltNames:\n  - a.com\n",
            ),
            (
                "{\n  \"tls\": {\n    \"sni\": \"a.com\"\n  }\n}\n",
                "{\n  \"tls\": {\n    \"sni\": \"a.com\",\n    \"subjectAltNames\": [\"a.com\"]\n  }\n}\n",
            ),
            (
                "{\"tls\":{\"sni\":\"a.com\",\"mode\":\"SIMPLE\"}}",
                "{\"tls\":{\"sni\":\"a.com\", \"subjectAltNames\": [\"a.com\"],\"mode\":\"SIMPLE\"}}",
            ),
        ] {
            assert_eq!(one(before, &san("tls")).as_deref(), Some(after));
        }
    }

    #[test]
    fn what_is_shared_or_there_already_is_left_alone() {
        for text in [
            "tls: &t {sni: a.com}\nother: *t\n",
            "base: &t\n  sni: a.com\ntls:\n  <<: *t\n",
            "tls:\n  sni: a.com\n  subjectAltNames: []\n",
            "tls:\n  mode: SIMPLE\n",
        ] {
            assert_eq!(one(text, &san("tls")), None, "{text}");
        }
    }

    #[test]
    fn an_item_is_removed_with_its_lines() {
        let change = Change::Remove {
            list: way("list"),
            index: 1,
        };
        let text = "list:\n- a: 1\n# stays\n- a: 2\n  b: 3 # goes\n- a: 4\n";
        let new = "list:\n- a: 1\n# stays\n- a: 4\n";
        assert_eq!(one(text, &change).as_deref(), Some(new));
        let new = one("list: [{a: 1}, {a: 2}, {a: 3}]\n", &change);
        assert_eq!(new.as_deref(), Some("list: [{a: 1}, {a: 3}]\n"));
    }

    #[test]
    fn tls_is_moved_to_its_port() {
        let change = Change::MoveToPort {
            policy: way("trafficPolicy"),
            port: 80,
        };
        let text = "trafficPolicy:\n  # before\n  tls:\n    mode: SIMPLE # why\n\n    sni: a.com\nhost: a\n";
        let new = "trafficPolicy:\n  # before\n  portLevelSettings:\n  - port:\n      number: 80\n    tls:\n      mode: SIMPLE # why\n\n      sni: a.com\nhost: a\n";
        assert_eq!(one(text, &change).as_deref(), Some(new));
        let new = one("trafficPolicy: {tls: {mode: SIMPLE}}\n", &change);
        assert_eq!(
            new.as_deref(),
            Some(
                "trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}\n"
            )
        );
        let new = one("trafficPolicy:\n  tls: {mode: SIMPLE}", &change);
        assert_eq!(
            new.as_deref(),
            Some(
                "trafficPolicy:\n  portLevelSettings:\n  - port:\n      number: 80\n    tls: {mode: SIMPLE}"
            )
        );
    }

    #[test]
    fn several_changes_are_made_at_once() {
        let text = "a: {sni: a.com}\n---\n# nothing\n---\nb:\n  sni: a.com\n";
        let (a, b, none) = (san("a"), san("b"), san("c"));
        let (new, made) = apply(text, &[(1, &b), (0, &a), (0, &none)]);
        assert_eq!(made, [true, true, false]);
        assert_eq!(
            new,
            "a: {sni: a.com, subjectAltNames: [a.com]}\n---\n# nothing\n---\nb:\n  sni: a.com\n  subjectAltNames:\n  - a.com\n"
        );
    }

    #[test]
    fn names_are_quoted_where_yaml_needs_it() {
        assert_eq!(plain("a.example.com"), "a.example.com");
        assert_eq!(plain("*.example.com"), "\"*.example.com\"");
        assert_eq!(plain("true"), "\"true\"");
        assert_eq!(plain("1.5"), "\"1.5\"");
    }
}
