//! What is repaired in answers, as `explain` says it.

use egress_filter::answer::{Answer, Arrival, REPAIRABLE};
use egress_filter::{Repair, Repairs};
use egress_policy::{Action, Decision, OutboundMode, PolicyTable, PortNumber};
use serde_json::{Map, Value, json};

use crate::complaint::Complaint;

/// What somebody asks about an answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answered<'q> {
    /// What is repaired of hosts whose rules say nothing about it.
    pub repair: Repair,
    /// A header that the server says, and its value.
    pub header: Option<(&'q str, &'q str)>,
}

/// How the request came.
pub(crate) struct Came<'c> {
    pub(crate) host: &'c str,
    pub(crate) port: PortNumber,
    pub(crate) written: Option<PortNumber>,
}

/// Returns the fields of an answer that say what is repaired: none where nothing is originated.
///
/// # Errors
/// When the header that was asked about is none that is ever repaired.
pub(crate) fn repairs(
    answered: &Answered<'_>,
    decision: &Decision<'_, '_>,
    came: &Came<'_>,
    table: &PolicyTable,
) -> Result<Map<String, Value>, Complaint> {
    let mut fields = Map::new();
    let cluster = match decision.action {
        Action::Originate(cluster) => Some(cluster),
        _ => None,
    };
    let repairs = cluster.map(|cluster| Repairs::of(answered.repair, cluster.notes));
    if let Some(repairs) = repairs {
        fields.insert("repairs".to_owned(), json!(words(repairs)));
    }
    let Some((name, value)) = answered.header else {
        return Ok(fields);
    };
    let name = name.to_ascii_lowercase();
    let Some((header, _)) = REPAIRABLE.iter().find(|(_, known)| *known == name) else {
        let known: Vec<&str> = REPAIRABLE.iter().map(|(_, name)| *name).collect();
        let text = format!(
            "`{name}` is never repaired\nhint: ask about one of {}",
            known.join(", ")
        );
        return Err(Complaint::input(text));
    };
    let mut told = Map::new();
    told.insert("header".to_owned(), json!(name));
    told.insert("sent".to_owned(), json!(value));
    let mut received = Some(value.to_owned());
    if let Some(repairs) = repairs {
        let arrival = Arrival {
            host: came.host,
            port: came.port,
            written: came.written,
            mapped: &[],
        };
        let foreign = table.outbound() == OutboundMode::AllowAny;
        let mut answer = Answer::new(table, repairs, arrival, foreign);
        if let Some(lines) = answer.repair(*header, &[value.as_bytes()]) {
            let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
            received = lines.first().map(|line| text(line));
        }
        let noted = answer.noted();
        if let Some(redirect) = noted.redirect {
            told.insert("redirect".to_owned(), json!(redirect.as_str()));
        }
        if let Some(kept) = noted.cookies {
            told.insert("cookies".to_owned(), json!(kept.as_str()));
        }
    }
    told.insert("received".to_owned(), json!(received));
    fields.insert("answer".to_owned(), Value::Object(told));
    Ok(fields)
}

/// Returns what is repaired, in the words of headers.
fn words(repairs: Repairs) -> Vec<&'static str> {
    let all = [
        (repairs.urls, "Location"),
        (repairs.urls, "Content-Location"),
        (repairs.urls, "Refresh"),
        (repairs.links, "Link"),
        (repairs.cookies, "Set-Cookie"),
        (repairs.prefixed, "__Secure- and __Host- cookies"),
        (repairs.hints, "Strict-Transport-Security"),
        (repairs.hints, "Alt-Svc"),
        (repairs.csp, "Content-Security-Policy"),
    ];
    let said = all.into_iter().filter(|(said, _)| *said);
    said.map(|(_, word)| word).collect()
}

/// Returns the lines that say the same to people: each with its name.
pub(crate) fn for_people(answer: &Value) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(words) = answer.get("repairs").and_then(Value::as_array) {
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        let text = match words.as_slice() {
            [] => "as the server says them".to_owned(),
            words => format!("repaired: {}", words.join(", ")),
        };
        lines.push(("answers", text));
    }
    let text = |path: &str| answer.pointer(path).and_then(Value::as_str);
    if let Some((header, sent)) = text("/answer/header").zip(text("/answer/sent")) {
        lines.push(("server says", format!("{header}: {sent}")));
        let why = text("/answer/redirect").or(text("/answer/cookies"));
        let why = why.map(|why| format!("   ({why})")).unwrap_or_default();
        let told = match text("/answer/received") {
            None => "nothing".to_owned(),
            Some(received) if received == sent => format!("the same{why}"),
            Some(received) => format!("{header}: {received}{why}"),
        };
        lines.push(("application gets", told));
    }
    lines
}
