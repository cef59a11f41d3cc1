//! What should happen to a request or connection, as data. An adapter applies each effect, one hostcall apiece.

use std::borrow::Cow;

use crate::failure::Failure;

/// One thing that the host is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect<'e> {
    /// Set `:authority`.
    Authority(&'e str),
    /// Set a request header, in place of all that were there.
    Header(&'static str, &'e str),
    /// Remove a request header.
    RemoveHeader(&'static str),
    /// Choose the route again. A header that was set before names the cluster.
    ChooseRouteAgain,
    /// Set one of Envoy's own filter-state objects.
    FilterState(&'static str, &'e str),
    /// Name the transport socket, if the cluster has several: see [`Variants`](crate::Variants).
    TransportSocket(&'e str),
    /// Name the host and port that the upstream proxy is asked for.
    Tunnel(&'e str),
    /// Read what follows CONNECT as requests for this host and port.
    Within(&'e str),
    /// Keep upstream connections of the client's connection apart from all others, from this request on.
    Login,
    /// Give the access log its metadata.
    Metadata(&'e [u8]),
    /// Answer the request here.
    Answer {
        /// The status.
        status: u32,
        /// What the access log gives as the response's detail.
        details: &'e str,
        /// A sentence for the one who sent the request.
        body: &'e str,
    },
    /// Close the application's connection, where bytes are handled.
    Close,
    /// Break off the request. By HTTP/1 the application's connection is closed with it.
    CloseRequest,
    /// Count a failed connection.
    Count(Failure),
    /// Count a request or connection that is plaintext only because somebody allowed it.
    CountAllowed,
    /// Count an answer that leads to a server that no rule has.
    CountLeaving,
    /// Set a response header, in place of all that were there.
    ResponseHeader(&'static str, &'e str),
    /// Set the lines of a response header, in place of all that were there.
    ResponseLines(&'static str, &'e [Cow<'e, [u8]>]),
    /// Say this to the application in place of what Envoy answers.
    AnswerInstead {
        /// The status; `None` is the one that Envoy chose.
        status: Option<u32>,
        /// The detail that Envoy chose, which the access log keeps.
        details: &'e str,
        /// A sentence for the one who sent the request.
        body: &'static str,
    },
}

impl Effect<'_> {
    /// Whether the request or connection goes no further.
    pub fn ends(&self) -> bool {
        matches!(
            self,
            Effect::Answer { .. } | Effect::Close | Effect::CloseRequest
        )
    }
}

/// The host refused a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostError;

/// What a host does with each effect, in the order in which they are planned. The first that it cannot apply ends the plan.
pub type Act<'a> = &'a mut dyn FnMut(Effect<'_>) -> Result<(), HostError>;
