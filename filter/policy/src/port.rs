//! Ports and the protocols that a ServiceEntry may give them.

use std::fmt;
use std::num::NonZeroU16;

/// A port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortNumber(NonZeroU16);

impl PortNumber {
    /// The port of plaintext HTTP.
    pub const HTTP: PortNumber = PortNumber(NonZeroU16::MIN.saturating_add(79));
    /// The port of HTTP over TLS, which an authority leaves out.
    pub const HTTPS: PortNumber = PortNumber(NonZeroU16::MIN.saturating_add(442));

    /// Makes a port of a number; zero is none.
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) => Some(PortNumber(number)),
            None => None,
        }
    }

    /// Returns the number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for PortNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The protocol of a ServiceEntry port, read from `protocol` alone, never from the port's name.
///
/// Source: istio/istio `pkg/config/protocol/instance.go`, `Parse`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// Plaintext HTTP/2.
    Http2,
    /// gRPC, which is HTTP/2.
    Grpc,
    /// gRPC-Web.
    GrpcWeb,
    /// HTTP proxy requests.
    HttpProxy,
    /// The application's own TLS, HTTP inside.
    Https,
    /// The application's own TLS.
    Tls,
    /// Bytes.
    Tcp,
    /// MongoDB's wire protocol.
    Mongo,
    /// Redis' wire protocol.
    Redis,
    /// MySQL's wire protocol, in which the server speaks first.
    MySql,
    /// Datagrams, which Istio leaves alone.
    Udp,
    /// None was given: Istio sniffs.
    Unset,
}

/// What a port's protocol means for a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProtocolClass {
    /// Requests can be read.
    Http,
    /// The application speaks TLS itself.
    Tls,
    /// Bytes only.
    Tcp,
    /// Not handled.
    None,
}

impl Protocol {
    /// The words that `protocol` takes, as Istio writes them.
    pub const NAMES: [&'static str; 12] = [
        "HTTP",
        "HTTPS",
        "HTTP2",
        "GRPC",
        "GRPC-Web",
        "HTTP_PROXY",
        "TLS",
        "TCP",
        "MONGO",
        "REDIS",
        "MYSQL",
        "UDP",
    ];

    /// Reads the word, in any case; an empty one is [`Protocol::Unset`].
    pub fn parse(text: &str) -> Option<Self> {
        let word = text.to_ascii_uppercase();
        Some(match word.as_str() {
            "" => Protocol::Unset,
            "HTTP" => Protocol::Http,
            "HTTP2" => Protocol::Http2,
            "GRPC" => Protocol::Grpc,
            "GRPC-WEB" => Protocol::GrpcWeb,
            "HTTP_PROXY" => Protocol::HttpProxy,
            "HTTPS" => Protocol::Https,
            "TLS" => Protocol::Tls,
            "TCP" => Protocol::Tcp,
            "MONGO" => Protocol::Mongo,
            "REDIS" => Protocol::Redis,
            "MYSQL" => Protocol::MySql,
            "UDP" => Protocol::Udp,
            _ => return None,
        })
    }

    /// Returns what a listener can do with it.
    pub fn class(self) -> ProtocolClass {
        match self {
            Protocol::Http
            | Protocol::Http2
            | Protocol::Grpc
            | Protocol::GrpcWeb
            | Protocol::HttpProxy => ProtocolClass::Http,
            Protocol::Https | Protocol::Tls => ProtocolClass::Tls,
            // Istio sniffs a port without a protocol; nothing is known of it beforehand, as of bytes.
            Protocol::Tcp
            | Protocol::Mongo
            | Protocol::Redis
            | Protocol::MySql
            | Protocol::Unset => ProtocolClass::Tcp,
            Protocol::Udp => ProtocolClass::None,
        }
    }

    /// Whether the upstream must speak HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }
}
