//! Regular expressions as Envoy reads them: RE2's, which differ from those of Rust in a few places.
//!
//! What RE2 takes as a plain character and Rust as syntax is written as a plain character: `[` and `&&` in a class, `{`
//! that begins no repetition, `\<`, and what stands between `\Q` and `\E`. What RE2 refuses and Rust takes is refused.
//!
//! Source: google/re2 `re2/parse.cc`, and its page "Syntax".

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

/// The most bytes that Istio allows.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateStringRegexp`.
const LONGEST: usize = 1024;

/// The most repetitions that RE2 allows.
const MOST_REPETITIONS: u32 = 1000;

/// A regular expression that a text must match as a whole.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Reads one.
    ///
    /// # Errors
    /// When Istio or Envoy would refuse it, with the reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("regex string match should not be empty".to_owned());
        }
        if text.len() > LONGEST {
            return Err(format!(
                "regex is too large, max length allowed is {LONGEST}"
            ));
        }
        let translated = Translation::of(text)?;
        let regex = compile(&format!("^(?:{translated})$"))?;
        Ok(Pattern {
            text: text.to_owned(),
            regex,
        })
    }

    /// Returns it as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a text matches as a whole.
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text.as_bytes())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `\d`, `\w` and `\b` mean ASCII in RE2. Classes of Unicode are there too, so both are tried.
fn compile(text: &str) -> Result<Regex, String> {
    let with = |unicode: bool| RegexBuilder::new(text).unicode(unicode).build();
    let plain = text.is_ascii().then(|| with(false).ok()).flatten();
    match plain {
        Some(regex) => Ok(regex),
        None => with(true).map_err(|error| {
            let lines = error.to_string();
            let last = lines.lines().last().unwrap_or_default();
            let why = last.trim_start_matches("error: ").trim();
            format!("{why}; it must be a regular expression of RE2")
        }),
    }
}

/// Goes through a regular expression and writes it for Rust.
struct Translation<'t> {
    rest: &'t str,
    out: String,
    /// What stands before can be repeated, and is not yet.
    repeatable: bool,
}

impl<'t> Translation<'t> {
    fn of(text: &'t str) -> Result<String, String> {
        let mut translation = Translation {
            rest: text,
            out: String::with_capacity(text.len() + 8),
            repeatable: false,
        };
        while let Some(next) = translation.next() {
            translation.step(next)?;
        }
        Ok(translation.out)
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn take(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn step(&mut self, next: char) -> Result<(), String> {
        match next {
            '\\' => self.escape()?,
            '[' => self.class()?,
            '(' => return self.group(),
            '|' => {
                self.out.push('|');
                self.repeatable = false;
                return Ok(());
            }
            '*' | '+' | '?' => return self.repeat(next.to_string()),
            '{' => match repetition(self.rest) {
                Some((text, most)) => {
                    if most > MOST_REPETITIONS {
                        return Err(format!("invalid repetition size: {{{text}"));
                    }
                    self.rest = self.rest.strip_prefix(text).unwrap_or(self.rest);
                    return self.repeat(format!("{{{text}"));
                }
                None => self.out.push_str("\\{"),
            },
            '}' => self.out.push_str("\\}"),
            plain => self.out.push(plain),
        }
        self.repeatable = true;
        Ok(())
    }

    /// Writes a repetition; a second one on top of it is none of RE2's, but for `?`, which makes it lazy.
    fn repeat(&mut self, mut operator: String) -> Result<(), String> {
        if !std::mem::replace(&mut self.repeatable, false) {
            return Err(format!(
                "missing argument to repetition operator: `{operator}`"
            ));
        }
        if self.take("?") {
            operator.push('?');
        }
        self.out.push_str(&operator);
        Ok(())
    }

    fn group(&mut self) -> Result<(), String> {
        self.out.push('(');
        self.repeatable = false;
        if !self.take("?") {
            return Ok(());
        }
        let end = self.rest.find([':', ')', '<']).unwrap_or(0);
        let flags = self.rest.get(..end).unwrap_or_default();
        let known = |flag: char| matches!(flag, 'i' | 'm' | 's' | 'U' | '-' | 'P');
        if !flags.chars().all(known) {
            return Err(format!("invalid or unsupported Perl syntax: `(?{flags}`"));
        }
        self.out.push('?');
        Ok(())
    }

    fn escape(&mut self) -> Result<(), String> {
        let Some(next) = self.next() else {
            return Err("trailing backslash at the end of the expression".to_owned());
        };
        match next {
            'Q' => {
                let (quoted, rest) = self.rest.split_once("\\E").unwrap_or((self.rest, ""));
                self.out.push_str(&regex::escape(quoted));
                self.rest = rest;
            }
            'C' | 'E' | 'u' | 'U' | 'Z' | 'G' | 'X' | 'R' => {
                return Err(format!("invalid escape sequence: `\\{next}`"));
            }
            punctuation if !punctuation.is_ascii_alphanumeric() => {
                self.out.push_str(&regex::escape(&punctuation.to_string()));
            }
            known => {
                self.out.extend(['\\', known]);
                let named = matches!(known, 'p' | 'P' | 'x') && self.rest.starts_with('{');
                if let Some(end) = self.rest.find('}').filter(|_| named) {
                    let (name, rest) = self.rest.split_at_checked(end + 1).unwrap_or_default();
                    self.out.push_str(name);
                    self.rest = rest;
                }
            }
        }
        Ok(())
    }

    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.take("^") {
            self.out.push('^');
        }
        if self.take("]") {
            self.out.push_str("\\]");
        }
        // Whether a range may begin with what stands before, and whether one ends with what comes.
        let (mut begins, mut ends) = (false, false);
        while let Some(next) = self.next() {
            let atom = !std::mem::replace(&mut ends, false);
            match next {
                ']' => {
                    self.out.push(']');
                    return Ok(());
                }
                '[' if self.rest.starts_with(':') => {
                    let Some((name, rest)) = self.rest.split_once(":]") else {
                        return Err("missing closing `]`".to_owned());
                    };
                    self.out.push_str(&format!("[{name}:]"));
                    self.rest = rest;
                }
                '-' if begins && atom && !self.rest.starts_with(']') => {
                    self.out.push('-');
                    (begins, ends) = (false, true);
                    continue;
                }
                '\\' => self.escape()?,
                '[' | '&' | '~' | '-' => self.out.extend(['\\', next]),
                plain => self.out.push(plain),
            }
            begins = atom;
        }
        Err("missing closing `]`".to_owned())
    }
}

/// Returns what follows `{` where it is a repetition, and the larger of its numbers.
fn repetition(rest: &str) -> Option<(&str, u32)> {
    let end = rest.find('}')?;
    let (least, most) = match rest.get(..end)?.split_once(',') {
        Some((least, "")) => (least, least),
        Some((least, most)) => (least, most),
        None => (rest.get(..end)?, rest.get(..end)?),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(least) || !digits(most) {
        return None;
    }
    let number = |text: &str| text.parse::<u32>().unwrap_or(u32::MAX);
    Some((rest.get(..=end)?, number(least).max(number(most))))
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    fn says(pattern: &str, text: &str) -> bool {
        let parsed = Pattern::parse(pattern);
        parsed
            .unwrap_or_else(|why| unreachable!("{pattern}: {why}"))
            .matches(text)
    }

    #[test]
    fn the_whole_text_must_match() {
        assert!(says("/v[0-9]+/.*", "/v1/a"));
        assert!(!says("/v[0-9]+", "/v1/a"));
        assert!(!says("v1", "/v1"));
        assert!(says("a|b", "b") && !says("a|b", "ab"));
        assert!(!says("a", "a\n"));
    }

    #[test]
    fn what_is_plain_to_re2_is_plain() {
        assert!(says("[a&&b]+", "a&b"));
        assert!(says("[a[b]", "["));
        assert!(says("[]a]", "]") && says("[^]a]", "b"));
        assert!(says("/{id}", "/{id}") && says("a{,3}", "a{,3}"));
        assert!(says("\\<a\\>", "<a>"));
        assert!(says("\\Qa.b\\E", "a.b") && !says("\\Qa.b\\E", "acb"));
        assert!(says("[[:alpha:]]{2,3}", "abc"));
        assert!(says("(?i)ABC", "abc") && says("(?P<n>a)", "a"));
        assert!(says("a--b", "a--b") && says("[+--]", ","));
        assert!(says("a/b", "a/b") && says("a\\/b\\.c", "a/b.c"));
    }

    #[test]
    fn digits_and_letters_are_those_of_ascii() {
        assert!(says("\\d+", "12") && !says("\\d", "\u{0663}"));
        assert!(says("\\p{L}", "\u{e9}"));
    }

    #[test]
    fn what_re2_refuses_is_refused() {
        for bad in [
            "", "*", "a**", "(?x)a", "(?=a)", "(?<!a)b", "\\1", "a{1001}", "[a", "(a", "a)", "\\",
            "\\Z", "a|*",
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        assert!(Pattern::parse(&"a".repeat(1025)).is_err());
    }
}
