//! Why there is no way for a request.

use std::fmt;

/// Why there is no way for a request, in words that logs, answers and metrics share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The request names no host.
    NoHost,
    /// What the request names is not a host.
    InvalidHost,
    /// No ServiceEntry has the host.
    UnknownHost,
    /// A ServiceEntry has the host, but not this port.
    UnknownPort,
    /// The port exists and speaks something else.
    OtherProtocol,
    /// Within a tunnel, the request is for another host or port than the tunnel.
    OtherHost,
    /// No DestinationRule of the host has the subset, or the subset has no endpoint.
    UnknownSubset,
    /// A rule asks for TLS to the host, but not for this caller, who would get plaintext.
    LeftOut,
    /// The VirtualServices of the host have no route for the request, or the gateway has none.
    NoRoute,
    /// A VirtualService leads to a host or port that no ServiceEntry has.
    UnknownDestination,
    /// The application speaks TLS on a port that VirtualServices lead plaintext to: its TLS would be wrapped in another.
    TlsInTls,
    /// A resource of a kind that is not read here may decide about the host.
    NotRead,
    /// The rules for the host and port have an error. No table that is in use has any.
    InvalidRule,
}

impl Reason {
    /// Those that a compiled table has for a host and port that it knows.
    pub(crate) const OF_THE_TABLE: [Reason; 8] = [
        Reason::LeftOut,
        Reason::NotRead,
        Reason::InvalidRule,
        Reason::UnknownPort,
        Reason::NoRoute,
        Reason::UnknownDestination,
        Reason::TlsInTls,
        Reason::UnknownSubset,
    ];

    /// Returns the stable id.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::NoHost => "no_host",
            Reason::InvalidHost => "invalid_host",
            Reason::UnknownHost => "unknown_host",
            Reason::UnknownPort => "unknown_port",
            Reason::OtherProtocol => "other_protocol",
            Reason::OtherHost => "other_host",
            Reason::UnknownSubset => "unknown_subset",
            Reason::LeftOut => "left_out",
            Reason::NoRoute => "no_route",
            Reason::UnknownDestination => "unknown_destination",
            Reason::TlsInTls => "tls_in_tls",
            Reason::NotRead => "not_read",
            Reason::InvalidRule => "invalid_rule",
        }
    }

    /// Returns a sentence for the one who sent the request.
    pub fn explanation(self) -> &'static str {
        match self {
            Reason::NoHost => "the request names no host",
            Reason::InvalidHost => "the request's host is not a valid host name",
            Reason::UnknownHost => "no ServiceEntry names this host",
            Reason::UnknownPort => "the host's ServiceEntry does not have this port",
            Reason::UnknownSubset => "no DestinationRule has this subset of the host",
            Reason::OtherProtocol => "the port's protocol is not the one that was spoken",
            Reason::OtherHost => "the request is for another host or port than CONNECT named",
            Reason::LeftOut => "a rule asks for TLS to this host, but not for this caller",
            Reason::NoRoute => "no route of the host's VirtualServices matches the request",
            Reason::UnknownDestination => {
                "a VirtualService leads to a host or port that no ServiceEntry has"
            }
            Reason::TlsInTls => "the application's TLS would be wrapped in another",
            Reason::NotRead => "a resource that is not read may decide about this host",
            Reason::InvalidRule => "the rules for this host have an error",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
