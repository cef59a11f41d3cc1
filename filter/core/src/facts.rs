//! What the host has read of a request or connection, borrowed and unjudged.

use std::net::IpAddr;

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
}

/// Which facts of connections must be read, beside those that the configuration knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The address and the port that the application dialled.
    pub destination: bool,
    /// The SNI.
    pub server_name: bool,
}

/// How a connection ended, in Envoy's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionEnd<'f> {
    /// `%RESPONSE_FLAGS%`, as bits.
    pub flags: u64,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`; empty where there is none.
    pub transport: &'f str,
}
