//! What a command has to say.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use egress_policy::visible_lines;
use egress_rules::{Complaint, Refusal};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How a command ends: with an output, or with why it does nothing.
pub(super) type Done = Result<Output, Refusal>;

/// What a command has to say once it is through.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// What people are told beside the output, in this order and before it.
    pub(super) notes: Vec<String>,
    /// The output itself.
    pub(super) text: Text,
    /// The command did what it should, and found the input wrong or different.
    pub(super) is_bad: bool,
    /// What people are told after the output of a command that found the input wrong.
    pub(super) complaint: Option<Complaint>,
}

/// A text for the standard output.
#[derive(Debug, Default)]
pub(super) enum Text {
    /// There is none.
    #[default]
    Nothing,
    /// Lines for people or programs; control characters in them are escaped.
    Lines(String),
    /// Configuration, of which every byte counts.
    Verbatim(String),
    /// Lines with colours, which only a terminal shows.
    Coloured(String),
}

impl Output {
    /// Lines for people or programs.
    pub(super) fn lines(text: impl Into<String>) -> Self {
        Output {
            text: Text::Lines(text.into()),
            ..Output::default()
        }
    }

    /// Configuration, of which every byte counts.
    pub(super) fn verbatim(text: impl Into<String>) -> Self {
        Output {
            text: Text::Verbatim(text.into()),
            ..Output::default()
        }
    }

    /// The same output after these notes.
    pub(super) fn with_notes(self, notes: Vec<String>) -> Self {
        Output { notes, ..self }
    }

    /// The same output of a command that found the input wrong or different, if so.
    pub(super) fn bad_if(self, is_bad: bool) -> Self {
        Output { is_bad, ..self }
    }
}

/// Prints to the standard output what people or programs read; a reader that has gone is not an error.
///
/// Control characters of texts that others wrote are escaped, as JSON escapes them.
pub(super) fn print(text: &str) -> Result<(), Complaint> {
    print_to(io::stdout().lock(), &visible_lines(text))
}

pub(super) fn print_to(mut out: impl Write, text: &str) -> Result<(), Complaint> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Complaint::us(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

/// Whether notes are for programs.
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// From now on each note is one JSON object on a line.
pub(super) fn tell_as_json() {
    AS_JSON.store(true, Ordering::Relaxed);
}

/// Writes a note for people, beside the output. Control characters of texts that others wrote are escaped.
pub(super) fn tell(text: &str) {
    if AS_JSON.load(Ordering::Relaxed) {
        let level = match text {
            _ if text.starts_with("error: ") => "error",
            _ if text.starts_with("warning: ") => "warning",
            _ => "info",
        };
        return tell_event(level, "message", json!({"message": text}));
    }
    let _ = writeln!(anstream::stderr(), "{}", visible_lines(text));
}

/// Writes something that happened as one JSON object, beside the output.
pub(super) fn tell_event(level: &str, event: &str, fields: Value) {
    let time = OffsetDateTime::now_utc().format(&Rfc3339);
    let mut line = json!({"time": time.unwrap_or_default(), "level": level, "event": event});
    if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
        line.extend(fields);
    }
    let _ = writeln!(io::stderr(), "{line}");
}
