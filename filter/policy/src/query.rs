//! A question to a table: about a host and port, or about a connection.

use std::net::IpAddr;

use crate::port::PortNumber;

/// How a connection came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownstreamProtocol {
    /// As plaintext HTTP.
    Http,
    /// As the application's own TLS.
    Tls,
    /// As bytes that nothing is known of.
    Tcp,
}

/// What is asked: the normalised host, and the service port it was called on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'q> {
    /// The host, as in [`Authority::host`](crate::Authority::host).
    pub host: &'q str,
    /// The service port: where the application dialled, not where the server listens.
    pub port: PortNumber,
    /// How it came in.
    pub downstream: DownstreamProtocol,
    /// The name of the route that Envoy chose, where the port has branches: [`Branch::name`](crate::Branch::name).
    pub branch: Option<&'q str>,
    /// The subset; no request names one, only a person who asks.
    pub subset: Option<&'q str>,
}

/// What is asked of a connection: what is known before any of its bytes are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection<'q> {
    /// The service port.
    pub port: PortNumber,
    /// The address that the application dialled, where it may tell services apart.
    pub address: Option<IpAddr>,
    /// What its first bytes are.
    pub spoken: Spoken<'q>,
    /// Any number, by which one of several destinations is chosen; numbers that are spread evenly choose by weight.
    pub drawn: u64,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken<'q> {
    /// Anything, or nothing before the server has spoken.
    Bytes,
    /// The application's own TLS.
    Tls {
        /// The name in its ClientHello, normalised as a host.
        server_name: Option<&'q str>,
    },
}
