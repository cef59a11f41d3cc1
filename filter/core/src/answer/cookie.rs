//! Cookies as clients read them.
//!
//! Source: draft-ietf-httpbis-rfc6265bis, section 5.6, "The Set-Cookie Header Field".

/// Longer lines are left alone: clients drop them.
const MOST: usize = 4096;

/// A cookie that no client uses over plain HTTP.
pub(super) struct Cookie<'c> {
    /// Name and value, and then the attributes, each as it is written.
    parts: Vec<&'c [u8]>,
    /// `Domain`, without its leading dot; the last one counts.
    pub(super) domain: Option<&'c [u8]>,
}

/// Reads a line; `None` if nothing of it would have to go, or if readers may not agree about it.
pub(super) fn parse(line: &[u8]) -> Option<Cookie<'_>> {
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b';').collect();
    let (first, attributes) = parts.split_first()?;
    let mut domain = None;
    let mut secure = false;
    for attribute in attributes {
        let (name, value) = halves(attribute);
        if is(name, b"domain") {
            let value = value.unwrap_or_default();
            domain = Some(value.strip_prefix(b".").unwrap_or(value));
        }
        secure |= is(name, b"secure");
        // Several cookies that somebody has joined to one line.
        let begins = name.get(..6).is_some_and(|start| is(start, b"secure"));
        if begins && attribute.contains(&b',') {
            return None;
        }
    }
    let quotes = line.iter().filter(|byte| **byte == b'"').count();
    let unclear = quotes % 2 == 1 || in_quotes(&parts) || line.len() > MOST;
    let empty = matches!(halves(first), (b"", None | Some(b"")));
    let domain = domain.filter(|domain| !domain.is_empty());
    (secure && !unclear && !empty).then_some(Cookie { parts, domain })
}

impl Cookie<'_> {
    /// Whether its name says that it is for TLS alone: clients that know these names take no such cookie otherwise.
    pub(super) fn is_prefixed(&self) -> bool {
        let (name, _) = halves(self.parts.first().copied().unwrap_or_default());
        let begins = |prefix: &[u8]| {
            let start = name.get(..prefix.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        [&b"__secure-"[..], b"__host-", b"__http-", b"__host-http-"]
            .iter()
            .any(|prefix| begins(prefix))
    }

    /// Returns the line without what makes it useless over plain HTTP.
    pub(super) fn without_secure(&self) -> Vec<u8> {
        let mut line = Vec::new();
        for (at, part) in self.parts.iter().enumerate() {
            if at > 0 && goes(part) {
                continue;
            }
            if at > 0 {
                line.push(b';');
            }
            line.extend_from_slice(part);
        }
        line
    }
}

/// Whether an attribute needs TLS: `Secure`, and what no client takes without that.
fn goes(attribute: &[u8]) -> bool {
    match halves(attribute) {
        (name, value) if is(name, b"samesite") => is(value.unwrap_or_default(), b"none"),
        (name, _) => is(name, b"secure") || is(name, b"partitioned"),
    }
}

/// Whether a quoted value has a semicolon in it, for which clients look whatever the quotes.
fn in_quotes(parts: &[&[u8]]) -> bool {
    let mut open = false;
    parts.iter().any(|part| {
        let quotes = part.iter().filter(|byte| **byte == b'"').count();
        open ^= quotes % 2 == 1;
        open
    })
}

/// Returns what stands before the first `=`, and behind it, without blanks around them.
fn halves(part: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut halves = part.splitn(2, |byte| *byte == b'=');
    let name = halves.next().unwrap_or_default().trim_ascii();
    (name, halves.next().map(<[u8]>::trim_ascii))
}

fn is(name: &[u8], word: &[u8]) -> bool {
    name.eq_ignore_ascii_case(word)
}
