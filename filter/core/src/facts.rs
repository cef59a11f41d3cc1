//! What the host has read of a request or connection, borrowed and unjudged.

use std::net::{IpAddr, SocketAddr};

use egress_policy::PortNumber;

/// The facts of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts<'f> {
    /// `:authority`, as the client sent it; empty when there was none or when it was not text.
    pub authority: &'f str,
    /// The port that the application dialled, where the listener does not say it.
    /// For a forward proxy it is that of the URL's scheme, which counts where the authority has none.
    pub port: Option<PortNumber>,
    /// The method is CONNECT: bytes are to be carried, and the authority names where to. Only a forward proxy is
    /// asked this.
    pub connect: bool,
    /// What CONNECT named, where the request came within its tunnel.
    pub within: Option<&'f str>,
    /// The name of the route that Envoy chose, where the listener's hosts have branches.
    pub route: Option<&'f str>,
}

/// The facts of one request as a host hands them over: they live as long as the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpRequest {
    /// `:authority`, as the client sent it; empty when there was none.
    pub authority: Vec<u8>,
    /// As [`Facts::port`].
    pub port: Option<PortNumber>,
    /// As [`Facts::connect`].
    pub connect: bool,
    /// As [`Facts::within`].
    pub within: Option<Vec<u8>>,
    /// As [`Facts::route`].
    pub route: Option<Vec<u8>>,
    /// It logs in by a scheme that binds who is calling to the connection: see [`HttpRequest::logs_in`].
    pub login: bool,
}

impl HttpRequest {
    /// Returns what is planned by.
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            authority: text(&self.authority),
            port: self.port,
            connect: self.connect,
            within: self.within.as_deref().map(text),
            route: self.route.as_deref().map(text),
        }
    }

    /// Whether `Authorization` says NTLM or Negotiate. Servers then take every later request of the connection for one of
    /// the same user. Where the header stands several times, its values are separated by commas.
    ///
    /// Source: RFC 4559, section 6.
    pub fn logs_in(authorization: &[u8]) -> bool {
        let begins = |value: &[u8], scheme: &str| {
            let start = value.get(..scheme.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
        };
        let mut values = authorization.split(|byte| *byte == b',');
        values.any(|value| {
            let value = value.trim_ascii_start();
            begins(value, "ntlm") || begins(value, "negotiate")
        })
    }

    /// Returns the port that a forward proxy is asked for by a URL without one.
    pub fn port_of_scheme(scheme: &[u8]) -> PortNumber {
        match scheme {
            b"https" => PortNumber::HTTPS,
            _ => PortNumber::HTTP,
        }
    }
}

/// What is not text names no host that could be in the table.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("\u{fffd}")
}

/// Which facts of requests must be read, beside the authority and what the configuration knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpWanted {
    /// The port that the application dialled.
    pub dialled_port: bool,
    /// What a forward proxy is asked: whether the method is CONNECT, and otherwise the scheme of the URL. And what
    /// CONNECT named, if the request came within a tunnel.
    pub proxy_request: bool,
    /// The name of the route that Envoy chose.
    pub route: bool,
    /// Whether it logs in: [`HttpRequest::login`].
    pub login: bool,
}

/// The facts of one connection, before any of its bytes are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionFacts<'f> {
    /// The port that the application dialled, where the listener does not say it.
    pub port: Option<PortNumber>,
    /// The address that the application dialled, where it tells services apart.
    pub address: Option<IpAddr>,
    /// The SNI of the application's own TLS, where Envoy has looked for one and found it.
    pub server_name: Option<&'f str>,
    /// By which one of several destinations is chosen.
    pub drawn: u64,
}

/// The facts of one connection as a host hands them over: they live as long as the connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dialled {
    /// The address and the port that the application dialled.
    pub destination: Option<SocketAddr>,
    /// The SNI of the application's own TLS; `None` or empty where there is none.
    pub server_name: Option<Vec<u8>>,
    /// Of a connection within Envoy: what the host knows it by as long as it lives, and what the upstream proxy is asked
    /// for.
    pub tunnel: Option<(usize, Vec<u8>)>,
    /// When it came, in nanoseconds since whenever: one of several destinations is drawn by it. Zero where there are none.
    pub time_ns: u64,
}

impl Dialled {
    /// Returns what is planned by.
    pub fn facts(&self) -> ConnectionFacts<'_> {
        let server_name = self.server_name.as_deref();
        ConnectionFacts {
            port: self.destination.and_then(|to| PortNumber::new(to.port())),
            address: self.destination.map(|to| to.ip()),
            server_name: server_name.filter(|name| !name.is_empty()).map(text),
            drawn: mixed(self.time_ns),
        }
    }
}

/// Spreads numbers evenly that lie close together.
///
/// Source: Sebastiano Vigna, SplitMix64.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Which facts of connections must be read, beside those that the configuration knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The address and the port that the application dialled.
    pub destination: bool,
    /// The SNI.
    pub server_name: bool,
    /// What the upstream proxy is asked for. It is no connection of an application's then.
    pub tunnel: bool,
    /// The time, for what is drawn by it.
    pub time: bool,
}

/// How a connection ended, in Envoy's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionEnd<'f> {
    /// `%RESPONSE_FLAGS%`, as bits.
    pub flags: u64,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`; empty where there is none.
    pub transport: &'f str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_spread_evenly_however_close_connections_come() {
        for apart_ns in [1, 1_000, 1_000_000, 1_000_000_000, 4_000_000_000] {
            let drawn = |at: u64| {
                let dialled = Dialled {
                    time_ns: 1_764_000_000_000_000_000 + at * apart_ns,
                    ..Dialled::default()
                };
                dialled.facts().drawn
            };
            let fourth = (0..10_000).filter(|at| drawn(*at) % 4 == 0).count();
            assert!((2_300..2_700).contains(&fourth), "{apart_ns}: {fourth}");
        }
    }

    #[test]
    fn a_login_that_binds_the_connection_is_known_however_it_is_written() {
        for login in [
            "NTLM TlRMTVNTUAAB",
            "ntlm",
            "Negotiate YII=",
            "NEGOTIATE\tYII=",
            "Basic dXNlcg==, NTLM TlRMTVNTUAAB",
            "Basic dXNlcg==,negotiate YII=",
        ] {
            assert!(HttpRequest::logs_in(login.as_bytes()), "{login}");
        }
        for other in [
            "",
            ",",
            "Basic TlRMTVNTUAAB",
            "Bearer ntlm",
            "Nego",
            "Digest a=negotiate",
        ] {
            assert!(!HttpRequest::logs_in(other.as_bytes()), "{other}");
        }
    }
}
