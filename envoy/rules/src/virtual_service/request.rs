//! Whether a request is what a route takes, as Envoy would say of the route that is rendered for it.
//!
//! Nothing is decided by this: Envoy chooses the route. It is for people who ask before they run.
//!
//! Source: envoyproxy/envoy `source/common/router/config_impl.cc`, `RouteEntryImplBase::matchRoute`, and
//! `source/common/http/header_utility.cc`, `HeaderUtility::HeaderData`.

use std::borrow::Cow;

use super::matches::HttpMatch;
use super::text::StringMatch;

/// A request, as far as routes ask about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'r> {
    /// The method.
    pub method: &'r str,
    /// The path, and behind `?` the query.
    pub path: &'r str,
    /// `:authority`, or `Host`, as it was sent.
    pub authority: &'r str,
    /// The scheme.
    pub scheme: &'r str,
    /// The other headers, in the order in which they were sent.
    pub headers: &'r [(String, String)],
}

impl Request<'_> {
    /// Whether all holds that a match asks of the request itself. Port, gateways and caller were settled before.
    pub fn is_taken_by(&self, asked: &HttpMatch) -> bool {
        let is = |text: &Option<StringMatch>, value: &str| {
            text.as_ref().is_none_or(|text| text.matches(value))
        };
        let headers = asked.headers.iter();
        let without = asked.without_headers.iter();
        self.has_path_of(asked)
            && is(&asked.method, self.method)
            && is(&asked.authority, self.authority)
            && is(&asked.scheme, self.scheme)
            && headers.into_iter().all(|(name, text)| {
                let value = self.header(name);
                value.is_some_and(|value| text.matches(&value))
            })
            && without
                .into_iter()
                .all(|(name, text)| self.lacks(name, text))
            && self.has_query_of(asked)
    }

    /// Whether a header is absent or otherwise. One that is absent is compared as if it were empty.
    fn lacks(&self, name: &str, text: &StringMatch) -> bool {
        let value = self.header(name);
        match text {
            StringMatch::Present => value.is_none(),
            text => !text.matches(&value.unwrap_or_default()),
        }
    }

    fn has_path_of(&self, asked: &HttpMatch) -> bool {
        let Some(text) = &asked.uri else {
            return self.path.starts_with('/');
        };
        let end = self.path.find(['?', '#']).unwrap_or(self.path.len());
        let path = self.path.get(..end).unwrap_or_default();
        match (text, asked.ignore_uri_case) {
            (StringMatch::Present, _) => path.starts_with('/'),
            (text, false) => text.matches(path),
            (text, true) => text.matches_in_any_case(path),
        }
    }

    fn has_query_of(&self, asked: &HttpMatch) -> bool {
        if asked.query.is_empty() {
            return true;
        }
        let query = self.path.split_once('?').map_or("", |(_, query)| query);
        let query = query.split('#').next().unwrap_or_default();
        asked.query.iter().all(|(name, text)| {
            let mut parameters = query.split('&').map(|parameter| {
                // Nothing is decoded, and of several only the first counts.
                parameter.split_once('=').unwrap_or((parameter, ""))
            });
            let found = parameters.find(|(given, _)| given == name);
            found.is_some_and(|(_, value)| text.matches(value))
        })
    }

    /// Returns a header's values, joined by commas if there are several.
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":method" => return Some(self.method.into()),
            ":path" => return Some(self.path.into()),
            ":authority" | "host" => return Some(self.authority.into()),
            ":scheme" => return Some(self.scheme.into()),
            _ => {}
        }
        let named = self.headers.iter();
        let mut values = named
            .filter(|(given, _)| given.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str());
        let first = values.next()?;
        Some(values.fold(Cow::Borrowed(first), |all, value| {
            Cow::Owned(format!("{all},{value}"))
        }))
    }
}

/// Returns a path as Envoy has it before it chooses a route: without `.` and `..`, and with letters that need no `%`
/// written plainly. `None` is a path that Envoy answers 400.
///
/// Source: envoyproxy/envoy `source/common/http/path_utility.cc`, `PathUtil::canonicalPath`, which is Chromium's
/// `url::CanonicalizePath`.
pub fn normalized(path: &str) -> Option<String> {
    let end = path.find(['?', '#']).unwrap_or(path.len());
    let (path, rest) = path.split_at_checked(end)?;
    if !path.starts_with('/') {
        return None;
    }
    let plain = unescaped(path);
    let mut parts: Vec<&str> = Vec::new();
    // What stands before the first slash is nothing.
    let mut segments = plain.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => parts.push(""),
            "." => {}
            ".." => {
                parts.pop();
                if last {
                    parts.push("");
                }
            }
            segment => parts.push(segment),
        }
    }
    Some(format!("/{}{rest}", parts.join("/")))
}

/// Writes `%41` as `A`, and leaves what must be escaped; `\` is a slash.
fn unescaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(next) = rest.chars().next() {
        let code = rest.get(1..3).filter(|_| next == '%');
        let byte = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        let plain = byte.filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte));
        match plain {
            Some(byte) => {
                out.push(char::from(byte));
                rest = rest.get(3..).unwrap_or_default();
            }
            None => {
                out.push(if next == '\\' { '/' } else { next });
                rest = rest.get(next.len_utf8()..).unwrap_or_default();
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_as_envoy_has_them() {
        for (path, written) in [
            ("/", "/"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b?c=../d", "/b?c=../d"),
            ("/../..", "/"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a//b", "/a//b"),
            ("/a\\..\\b", "/b"),
            ("/%41%2F", "/A%2F"),
            ("/%zz%4", "/%zz%4"),
        ] {
            assert_eq!(normalized(path).as_deref(), Some(written), "{path}");
        }
        assert_eq!(normalized("*"), None);
    }
}
