//! What the host has read of a request, borrowed and unjudged.

use egress_policy::PortNumber;

/// The facts of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts<'f> {
    /// `:authority`, as the client sent it; empty when there was none or when it was not text.
    pub authority: &'f str,
    /// The port that the application dialled, where the listener does not say it.
    pub port: Option<PortNumber>,
}
