//! What a host has read of a response, as far as it is asked to.

use crate::answer::Lines;
use crate::effect::HostError;

/// What a host reads of a response once it is asked to: each costs it a call.
pub trait Response {
    /// Reads `%RESPONSE_CODE_DETAILS%`.
    ///
    /// # Errors
    /// When the host refuses the call, as all others.
    fn details(&self) -> Result<Vec<u8>, HostError>;

    /// Reads the header.
    ///
    /// # Errors
    /// As [`Response::details`].
    fn content_type(&self) -> Result<Vec<u8>, HostError>;

    /// Reads the lines that may need repair, in the order in which they came.
    ///
    /// # Errors
    /// As [`Response::details`].
    fn lines(&self) -> Result<Lines, HostError>;

    /// Returns what tells of a connection within Envoy, by its number in [`Dialled::tunnel`](crate::Dialled::tunnel), whether the upstream proxy
    /// has agreed. It is asked only about such as live.
    fn has_tunnel(&self) -> fn(usize) -> bool;
}
