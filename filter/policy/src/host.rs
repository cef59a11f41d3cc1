//! Host names and patterns, normalised once, and the one order "more specific than".

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::port::PortNumber;

/// The longest host name that DNS allows, in bytes.
pub const MAX_HOST_BYTES: usize = 255;

/// Why a text is not a host name or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHost {
    /// Nothing stands there.
    #[error("empty domain name not allowed")]
    Empty,
    /// More than [`MAX_HOST_BYTES`].
    #[error("domain name of {0} bytes is too long (max 255)")]
    TooLong(usize),
    /// One part between dots is not a DNS label.
    #[error("domain name `{host}` invalid (label `{label}` invalid)")]
    Label {
        /// The whole name.
        host: String,
        /// The part that is wrong.
        label: String,
    },
    /// The last part is a number, as in an address that lost a part.
    #[error("domain name `{0}` invalid (top level domain cannot be all-numeric)")]
    NumericTopLevel(String),
    /// `*` alone where a service must be named.
    #[error("invalid host `*`")]
    Everything,
}

/// A host that a request named: lower case, without the dot at the end, never empty.
///
/// It may be an IP address; then it is that address in its shortest form, without brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Box<str>);

impl HostName {
    /// Returns the name as it is compared and sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a DNS name.
    ///
    /// # Errors
    /// When `text` is empty, too long, or has a label that is not letters, digits, `-` and `_`.
    pub fn dns(text: &str) -> Result<Self, InvalidHost> {
        let name = normal(text)?;
        check_labels(text, &name)?;
        Ok(HostName(name.into()))
    }

    /// Returns the name that an address is, as [`Authority::host`] has it.
    pub fn address(address: IpAddr) -> Self {
        HostName(address.to_string().into_boxed_str())
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host as a ServiceEntry or DestinationRule gives it: one name, all names with an ending, or all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// One name.
    Exact(HostName),
    /// Every longer name with this ending; `*.example.com` is kept as `.example.com`.
    Suffix(Box<str>),
    /// Every name: `*`.
    Any,
}

impl HostPattern {
    /// Reads a pattern as Istio's `ValidateWildcardDomain` does: a name, `*.suffix`, `*-suffix` or `*`.
    ///
    /// A dot at the end is dropped, letters are lowered.
    ///
    /// Source: istio/istio `pkg/config/validation/agent/validation.go`, `ValidateWildcardDomain`.
    ///
    /// # Errors
    /// As [`HostName::dns`].
    pub fn parse(text: &str) -> Result<Self, InvalidHost> {
        let name = normal(text)?;
        if name == "*" {
            return Ok(HostPattern::Any);
        }
        match name.strip_prefix('*') {
            Some(rest) => {
                // `*.` and `*-` alone are a star with nothing behind it.
                let labels = rest.strip_prefix(['.', '-']).unwrap_or("");
                check_labels(text, labels)?;
                Ok(HostPattern::Suffix(rest.into()))
            }
            None => {
                check_labels(text, &name)?;
                Ok(HostPattern::Exact(HostName(name.into())))
            }
        }
    }

    /// Whether `host` is one of the pattern's names. A wildcard does not match its own apex.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            HostPattern::Exact(name) => name.as_str() == host,
            HostPattern::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
            HostPattern::Any => true,
        }
    }

    /// Whether every name of `other` is one of this pattern's.
    pub fn covers(&self, other: &HostPattern) -> bool {
        match (self, other) {
            (HostPattern::Any, _) => true,
            (_, HostPattern::Exact(name)) => self.matches(name.as_str()),
            (HostPattern::Suffix(mine), HostPattern::Suffix(theirs)) => theirs.ends_with(&**mine),
            _ => false,
        }
    }

    /// Whether any name is one of both.
    pub fn overlaps(&self, other: &HostPattern) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Returns how specific the pattern is: of two that match one host, the greater wins.
    ///
    /// A name beats every wildcard, a longer ending beats a shorter one, and `*` comes last.
    ///
    /// Source: istio/istio `pkg/config/host/name.go`, `MoreSpecific`.
    pub fn specificity(&self) -> usize {
        match self {
            HostPattern::Exact(_) => usize::MAX,
            HostPattern::Suffix(suffix) => suffix.len() + 1,
            HostPattern::Any => 0,
        }
    }

    /// Returns what is compared: the name, or the ending without its star; nothing for `*`.
    pub(crate) fn text(&self) -> &str {
        match self {
            HostPattern::Exact(name) => name.as_str(),
            HostPattern::Suffix(suffix) => suffix,
            HostPattern::Any => "",
        }
    }

    /// Returns the one name the pattern stands for, if it is not a wildcard.
    pub fn exact(&self) -> Option<&HostName> {
        match self {
            HostPattern::Exact(name) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) => name.fmt(f),
            HostPattern::Suffix(suffix) => write!(f, "*{suffix}"),
            HostPattern::Any => f.write_str("*"),
        }
    }
}

/// Why an authority names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAuthority {
    /// No `Host` header, or an empty one.
    #[error("the request names no host")]
    Empty,
    /// Neither a name nor an address, or a port that is none.
    #[error("the request's host is not a valid host")]
    Malformed,
}

/// An authority as a request gave it, split and normalised: `host`, `host:port`, `[v6]:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority<'a> {
    /// The host, normalised as [`HostName`] is; borrowed where the request wrote it so.
    pub host: Cow<'a, str>,
    /// The port, where one was written.
    pub port: Option<PortNumber>,
    /// The address, where the host is one.
    pub address: Option<IpAddr>,
}

impl<'a> Authority<'a> {
    /// Reads the value of `:authority` or `Host`.
    ///
    /// # Errors
    /// When it is empty, or its host or port could not be dialled. User information (`user@host`) is
    /// refused: it has no place in a request and could make two readers see two hosts.
    pub fn parse(text: &'a str) -> Result<Self, InvalidAuthority> {
        if text.is_empty() {
            return Err(InvalidAuthority::Empty);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (inside, after) = rest.split_once(']').ok_or(InvalidAuthority::Malformed)?;
            let address: Ipv6Addr = inside.parse().map_err(|_| InvalidAuthority::Malformed)?;
            let port = match after.strip_prefix(':') {
                Some(digits) => Some(port(digits)?),
                None if after.is_empty() => None,
                None => return Err(InvalidAuthority::Malformed),
            };
            let host = Cow::Owned(address.to_string());
            return Ok(Authority {
                host,
                port,
                address: Some(IpAddr::V6(address)),
            });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, digits)) => (name, Some(port(digits)?)),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(InvalidAuthority::Empty);
        }
        // Only what ends in a digit can be an address, and most names do not.
        if name.ends_with(|c: char| c.is_ascii_digit())
            && let Ok(address) = name.parse::<Ipv4Addr>()
        {
            return Ok(Authority {
                host: Cow::Borrowed(name),
                port,
                address: Some(IpAddr::V4(address)),
            });
        }
        let host = normal(name).map_err(|_| InvalidAuthority::Malformed)?;
        check_labels(name, &host).map_err(|_| InvalidAuthority::Malformed)?;
        Ok(Authority {
            host,
            port,
            address: None,
        })
    }
}

fn port(digits: &str) -> Result<PortNumber, InvalidAuthority> {
    if digits.is_empty() || digits.len() > 5 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidAuthority::Malformed);
    }
    digits
        .parse()
        .ok()
        .and_then(PortNumber::new)
        .ok_or(InvalidAuthority::Malformed)
}

/// Lowers the letters and drops one dot at the end.
fn normal(text: &str) -> Result<Cow<'_, str>, InvalidHost> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() {
        return Err(InvalidHost::Empty);
    }
    if text.len() > MAX_HOST_BYTES {
        return Err(InvalidHost::TooLong(text.len()));
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(Cow::Owned(text.to_ascii_lowercase()));
    }
    Ok(Cow::Borrowed(text))
}

/// Checks `name`, which `whole` is or ends in, label by label.
fn check_labels(whole: &str, name: &str) -> Result<(), InvalidHost> {
    let mut last = "";
    for label in name.split('.') {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        let good = label.len() <= 63
            && label.bytes().all(inner)
            && edge(label.bytes().next())
            && edge(label.bytes().last());
        if !good {
            let label = label.to_owned();
            return Err(InvalidHost::Label {
                host: whole.to_owned(),
                label,
            });
        }
        last = label;
    }
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidHost::NumericTopLevel(whole.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    #[test]
    fn wildcard_does_not_match_its_apex() {
        assert!(pattern("*.example.com").matches("a.example.com"));
        assert!(pattern("*.example.com").matches("a.b.example.com"));
        assert!(!pattern("*.example.com").matches("example.com"));
        assert!(!pattern("*.example.com").matches("badexample.com"));
        assert!(!pattern("*.example.com").matches(".example.com"));
    }

    #[test]
    fn case_and_the_last_dot_do_not_matter() {
        assert_eq!(pattern("Edition.CNN.com."), pattern("edition.cnn.com"));
        let host = Authority::parse("EDITION.cnn.com.:80").unwrap();
        assert_eq!(&*host.host, "edition.cnn.com");
        assert_eq!(host.port, PortNumber::new(80));
    }

    #[test]
    fn a_longer_ending_is_more_specific() {
        assert!(pattern("*.b.com").specificity() > pattern("*.com").specificity());
        assert!(pattern("a.b.com").specificity() > pattern("*.b.com").specificity());
        assert!(pattern("*.com").specificity() > pattern("*").specificity());
    }

    #[test]
    fn covers_is_matches_for_patterns() {
        assert!(pattern("*.com").covers(&pattern("*.b.com")));
        assert!(pattern("*.com").covers(&pattern("*.com")));
        assert!(!pattern("*.b.com").covers(&pattern("*.com")));
        assert!(!pattern("a.com").covers(&pattern("*.com")));
        assert!(pattern("*").covers(&pattern("*.com")));
    }

    #[test]
    fn impossible_names_are_refused() {
        for bad in [
            "", ".", "a..b", "-a.com", "a-.com", "a b.com", "*", "1.2.3.4", "a.123", "*.",
            "a*.com", "*.*.com", "ü.com",
        ] {
            let exact = HostName::dns(bad);
            assert!(exact.is_err(), "{bad}: {exact:?}");
        }
        assert!(HostPattern::parse("*a.com").is_err());
        assert!(HostPattern::parse(&"a".repeat(64)).is_err());
        assert!(HostPattern::parse(&format!("{}.com", "a.".repeat(130))).is_err());
        assert!(HostPattern::parse("*-api.example.com").is_ok());
    }

    #[test]
    fn authorities_that_name_no_host_are_refused() {
        assert_eq!(Authority::parse(""), Err(InvalidAuthority::Empty));
        assert_eq!(Authority::parse(":80"), Err(InvalidAuthority::Empty));
        for bad in [
            "a:",
            "a:0",
            "a:65536",
            "a:+8",
            "user@a.com",
            "[::1",
            "[::1]x",
            "[::1]:",
            "a:80:80",
            "::1",
            "a b",
            "a/b",
        ] {
            assert_eq!(
                Authority::parse(bad),
                Err(InvalidAuthority::Malformed),
                "{bad}"
            );
        }
    }

    #[test]
    fn addresses_are_read_as_addresses() {
        let six = Authority::parse("[2001:DB8::0:1]:8080").unwrap();
        assert_eq!(&*six.host, "2001:db8::1");
        assert_eq!(six.port, PortNumber::new(8080));
        assert!(six.address.is_some());
        assert!(Authority::parse("192.0.2.1").unwrap().address.is_some());
    }
}
