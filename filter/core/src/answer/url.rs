//! URLs as they are read here: strictly, for what two readers could take for two hosts is left alone.

use egress_policy::PortNumber;

/// Longer ones are left alone.
const MOST: usize = 8192;

/// What became of a URL that names a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirect {
    /// It leads to an https server that no rule has: the application leaves us by it.
    Leaves,
    /// The host is reached by the application's own TLS.
    Passthrough,
    /// Rules have the host, but plain HTTP does not reach this port of it.
    OtherPort,
    /// It has user information.
    UserInfo,
    /// Readers of URLs may not agree about its host.
    Malformed,
}

impl Redirect {
    /// The word of the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Redirect::Leaves => "leaves",
            Redirect::Passthrough => "kept:passthrough",
            Redirect::OtherPort => "kept:other_port",
            Redirect::UserInfo => "kept:userinfo",
            Redirect::Malformed => "kept:malformed",
        }
    }
}

/// A URL, as far as it counts.
pub(super) enum Parsed<'u> {
    /// It names no https server.
    Other,
    /// It does, and is left as it is.
    Kept(Redirect),
    /// It does.
    Https(Https<'u>),
}

/// A URL of an https server, or a reference that begins with a host.
pub(super) struct Https<'u> {
    /// It has a scheme of its own.
    pub(super) names_scheme: bool,
    /// The host, as it is written.
    pub(super) host: &'u str,
    /// The port, which is 443 where none is written.
    pub(super) port: PortNumber,
    /// Path, query and fragment.
    pub(super) rest: &'u [u8],
}

/// Reads a URL.
pub(super) fn parse(url: &[u8]) -> Parsed<'_> {
    const SCHEME: &[u8] = b"https:";
    let start = url.get(..SCHEME.len()).unwrap_or_default();
    let names_scheme = start.eq_ignore_ascii_case(SCHEME);
    let after = if names_scheme { SCHEME.len() } else { 0 };
    // Without a scheme it leads to wherever the application would go by itself.
    let kept = |why| match names_scheme {
        true => Parsed::Kept(why),
        false => Parsed::Other,
    };
    let Some(rest) = url.get(after..).and_then(|rest| rest.strip_prefix(b"//")) else {
        return kept(Redirect::Malformed);
    };
    if url.len() > MOST {
        return kept(Redirect::Malformed);
    }
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    let (authority, rest) = rest.split_at(end.unwrap_or(rest.len()));
    if authority.contains(&b'@') {
        return kept(Redirect::UserInfo);
    }
    let unusual = |byte: &u8| !matches!(byte, b'!'..=b'~') || matches!(byte, b'\\' | b'%');
    let text = match std::str::from_utf8(authority) {
        Ok(text) if !authority.iter().any(unusual) => text,
        _ => return kept(Redirect::Malformed),
    };
    // An address of IPv6 has colons of its own.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (text, ""),
    };
    let digits = port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    let number = match port {
        "" => Some(PortNumber::HTTPS),
        port => port.parse().ok().and_then(PortNumber::new),
    };
    match number.filter(|_| digits && !host.is_empty()) {
        None => kept(Redirect::Malformed),
        Some(port) => Parsed::Https(Https {
            names_scheme,
            host,
            port,
            rest,
        }),
    }
}

/// Returns where the URL of a `Refresh` begins and ends: `5; url=https://…`, also in quotes.
pub(super) fn of_refresh(line: &[u8], from: usize) -> Option<(usize, usize)> {
    let skip = |mut at: usize, wanted: fn(&u8) -> bool| {
        while line.get(at).is_some_and(wanted) {
            at += 1;
        }
        at
    };
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let number = skip(0, blank);
    let after = skip(number, |byte| byte.is_ascii_digit() || *byte == b'.');
    let at = skip(after, blank);
    if from > 0 || after == number || !matches!(line.get(at), Some(b';' | b',')) {
        return None;
    }
    let name = skip(at + 1, blank);
    if !line.get(name..name + 3)?.eq_ignore_ascii_case(b"url") {
        return None;
    }
    let equals = skip(name + 3, blank);
    if line.get(equals) != Some(&b'=') {
        return None;
    }
    let start = skip(equals + 1, blank);
    match line.get(start) {
        Some(quote @ (b'"' | b'\'')) => {
            let inside = line.get(start + 1..)?;
            let len = inside.iter().position(|byte| byte == quote)?;
            Some((start + 1, start + 1 + len))
        }
        _ => Some((start, line.len())),
    }
}

/// Returns where the next URL of a `Link` begins and ends: `<https://…>; rel="next"`, outside of quotes.
pub(super) fn next_of_link(line: &[u8], from: usize) -> Option<(usize, usize)> {
    let (mut quoted, mut escaped) = (false, false);
    let mut bytes = line.iter().enumerate().skip(from);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'<' if !quoted => {
                let (end, _) = bytes.find(|(_, byte)| **byte == b'>')?;
                return Some((at + 1, end));
            }
            _ => {}
        }
    }
    None
}
