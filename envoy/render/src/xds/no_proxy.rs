//! The hosts that are reached without the upstream proxy, as `NO_PROXY` has them.
//!
//! `example.com` is the host and all hosts below it, `.example.com` and `*.example.com` only those below, `10.1.2.3` and
//! `10.0.0.0/8` addresses that are asked for as such, `*` everything. A port behind a colon means that port alone.
//! Names are not looked up for it: an address counts only where it is what would be dialled.
//!
//! Source: golang.org/x/net `http/httpproxy`, `Config.NoProxy`; curl's `--noproxy`.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use egress_policy::{HostName, PortNumber};

/// The hosts that are reached without the upstream proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Exception>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    what: What,
    /// The one port that it means.
    port: Option<PortNumber>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    All,
    Host(String),
    Below(String),
    Address(IpAddr),
    Range(Ipv4Addr, u32),
}

/// What of a list names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNoProxy {
    /// It is none of the forms.
    #[error(
        "`{0}` is none of HOST, .SUFFIX, ADDRESS, RANGE/BITS and `*`, each with or without :PORT"
    )]
    Form(String),
    /// It is a range of IPv6.
    #[error(
        "`{0}` is a range of IPv6, which cannot be compared with names; write single addresses"
    )]
    Range6(String),
}

impl FromStr for NoProxy {
    type Err = InvalidNoProxy;

    fn from_str(text: &str) -> Result<Self, InvalidNoProxy> {
        let words = text.split([',', ' ']).filter(|word| !word.is_empty());
        words.map(str::parse).collect::<Result<_, _>>().map(NoProxy)
    }
}

impl FromStr for Exception {
    type Err = InvalidNoProxy;

    fn from_str(text: &str) -> Result<Self, InvalidNoProxy> {
        let invalid = || InvalidNoProxy::Form(text.to_owned());
        let (place, port) = match text.rsplit_once(':') {
            // Without brackets, all of IPv6 is the address.
            Some((place, _)) if place.contains(':') && !place.ends_with(']') => (text, None),
            Some((place, port)) => {
                let number = port.parse().ok().and_then(PortNumber::new);
                (place, Some(number.ok_or_else(invalid)?))
            }
            None => (text, None),
        };
        let bare = place
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let what = match bare.unwrap_or(place) {
            "*" => What::All,
            place if place.parse::<IpAddr>().is_ok() => {
                What::Address(place.parse().map_err(|_| invalid())?)
            }
            place if place.contains('/') => range(place, text)?,
            place => {
                let below = place.strip_prefix('*').unwrap_or(place).strip_prefix('.');
                let name = HostName::dns(below.unwrap_or(place)).map_err(|_| invalid())?;
                let name = name.as_str().to_owned();
                match below {
                    Some(_) => What::Below(name),
                    None => What::Host(name),
                }
            }
        };
        Ok(Exception { what, port })
    }
}

fn range(place: &str, text: &str) -> Result<What, InvalidNoProxy> {
    let invalid = || InvalidNoProxy::Form(text.to_owned());
    let (address, bits) = place.split_once('/').ok_or_else(invalid)?;
    let bits: u32 = bits.parse().map_err(|_| invalid())?;
    match address.parse().map_err(|_| invalid())? {
        IpAddr::V4(address) if bits <= 32 => Ok(What::Range(address, bits)),
        IpAddr::V4(_) => Err(invalid()),
        IpAddr::V6(_) => Err(InvalidNoProxy::Range6(text.to_owned())),
    }
}

impl NoProxy {
    /// Whether nothing is excepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a host and port are excepted. `host` is as [`HostName`] has it, or an address.
    pub fn excepts(&self, host: &str, port: PortNumber) -> bool {
        let address: Option<IpAddr> = host.parse().ok();
        self.0.iter().any(|one| {
            one.port.is_none_or(|only| only == port)
                && match &one.what {
                    What::All => true,
                    What::Host(name) => host == name || is_below(host, name),
                    What::Below(name) => is_below(host, name),
                    What::Address(one) => address == Some(*one),
                    What::Range(range, bits) => match address {
                        Some(IpAddr::V4(address)) => {
                            (address.to_bits() ^ range.to_bits()).leading_zeros() >= *bits
                        }
                        _ => false,
                    },
                }
        })
    }

    /// Returns the same as a regular expression for `host:port`, in which an IPv6 address has brackets.
    pub(super) fn pattern(&self) -> String {
        let one = |exception: &Exception| {
            let host = match &exception.what {
                What::All => ".*".to_owned(),
                What::Host(name) => format!("(?:.+\\.)?{}", quoted(name)),
                What::Below(name) => format!(".+\\.{}", quoted(name)),
                What::Address(IpAddr::V6(address)) => format!("\\[{address}\\]"),
                What::Address(address) => quoted(&address.to_string()),
                What::Range(address, bits) => octets(*address, *bits),
            };
            let port = exception.port.map(|port| port.to_string());
            format!("{host}:{}", port.as_deref().unwrap_or("[0-9]+"))
        };
        let all: Vec<String> = self.0.iter().map(one).collect();
        all.join("|")
    }
}

fn is_below(host: &str, name: &str) -> bool {
    let above = host.strip_suffix(name);
    above.is_some_and(|above| above.len() > 1 && above.ends_with('.'))
}

pub(super) fn quoted(text: &str) -> String {
    text.replace('.', "\\.")
}

/// Writes the addresses of a range as an expression: what is fixed of the four numbers, and what is not.
fn octets(address: Ipv4Addr, bits: u32) -> String {
    let octets = (0u32..).zip(address.octets()).map(|(at, octet)| {
        let fixed = bits.saturating_sub(at * 8).min(8);
        let free = u8::MAX.checked_shr(fixed).unwrap_or(0);
        match free {
            0 => octet.to_string(),
            u8::MAX => "[0-9]+".to_owned(),
            free => {
                let first = octet & !free;
                let all: Vec<String> = (first..=first | free).map(|it| it.to_string()).collect();
                format!("(?:{})", all.join("|"))
            }
        }
    });
    octets.collect::<Vec<_>>().join("\\.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excepts(list: &str, host: &str, port: u16) -> bool {
        let list: NoProxy = list.parse().unwrap();
        list.excepts(host, PortNumber::new(port).unwrap())
    }

    #[test]
    fn the_usual_forms_mean_what_they_usually_do() {
        for (list, host, port, wanted) in [
            ("example.com", "example.com", 443, true),
            ("Example.com.", "api.example.com", 443, true),
            ("example.com", "badexample.com", 443, false),
            (".example.com", "example.com", 443, false),
            (".example.com", "api.example.com", 443, true),
            ("*.example.com", "a.b.example.com", 443, true),
            ("example.com:8443", "example.com", 443, false),
            ("example.com:8443", "example.com", 8443, true),
            ("other.com, example.com", "example.com", 443, true),
            ("10.1.2.3", "10.1.2.3", 443, true),
            ("10.1.2.3", "10.1.2.30", 443, false),
            ("10.16.0.0/12", "10.31.255.255", 443, true),
            ("10.16.0.0/12", "10.32.0.0", 443, false),
            ("[2001:db8::1]:443", "2001:db8::1", 443, true),
            ("2001:db8::1", "2001:db8::1", 80, true),
            ("*", "anything.example", 80, true),
            ("", "example.com", 443, false),
        ] {
            assert_eq!(excepts(list, host, port), wanted, "{list}: {host}:{port}");
        }
    }

    #[test]
    fn a_word_that_names_no_host_is_refused_by_name() {
        for word in [
            "http://proxy",
            "a_/b",
            "10.0.0.0/33",
            "host:0",
            "host:port",
            "-",
        ] {
            let error = format!("good.example,{word}")
                .parse::<NoProxy>()
                .unwrap_err();
            assert_eq!(error, InvalidNoProxy::Form(word.to_owned()));
        }
        let error = "2001:db8::/32".parse::<NoProxy>().unwrap_err();
        assert_eq!(error, InvalidNoProxy::Range6("2001:db8::/32".to_owned()));
    }

    #[test]
    fn a_range_is_an_expression() {
        let pattern = |list: &str| list.parse::<NoProxy>().unwrap().pattern();
        assert_eq!(
            pattern("10.0.0.0/8"),
            "10\\.[0-9]+\\.[0-9]+\\.[0-9]+:[0-9]+"
        );
        assert_eq!(
            pattern("192.168.4.9/30:80"),
            "192\\.168\\.4\\.(?:8|9|10|11):80"
        );
        assert_eq!(pattern("example.com"), "(?:.+\\.)?example\\.com:[0-9]+");
        assert_eq!(
            pattern("0.0.0.0/0"),
            "[0-9]+\\.[0-9]+\\.[0-9]+\\.[0-9]+:[0-9]+"
        );
    }
}
