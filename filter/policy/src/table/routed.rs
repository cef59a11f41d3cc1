//! What VirtualServices add to the ports of a table.

use crate::host::HostName;
use crate::port::PortNumber;
use crate::reason::Reason;
use crate::resource::{Address, Answer};
use crate::table::verdict::Verdict;

/// How routes lead a port on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Routed {
    /// The VirtualService that leads it, among all resources.
    pub(crate) service: u32,
    /// The one that leads it on behind an egress gateway.
    pub(crate) gateway_service: u32,
    /// The host that servers are told, verified by, where it is not the one that was called.
    pub(crate) name: Option<HostName>,
    /// The host that is dialled, where it is not the one that servers are told.
    pub(crate) dial: Option<HostName>,
    /// What Envoy's routes choose among; empty where everything goes one way.
    pub(crate) branches: Vec<Branch>,
}

/// A route that Envoy may choose, and what becomes of its requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    /// What Envoy's route is called. No other in the table is.
    pub(crate) name: Box<str>,
    /// The VirtualService, among all resources.
    pub(crate) service: u32,
    /// Its place in `spec.http`.
    pub(crate) route: usize,
    /// The places of its matches that can hold; empty where everything does.
    pub(crate) matches: Vec<usize>,
    pub(crate) before: Option<Box<Before>>,
    pub(crate) answer: Option<Answer>,
    /// The addresses of the connections that it takes; empty where it takes all, and of requests.
    pub(crate) ranges: Vec<Address>,
    pub(crate) shares: Vec<Share>,
}

/// The route by which a sidecar leads to an egress gateway, where a branch is a route of that gateway: a request must be
/// what both ask for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Before {
    /// The VirtualService, among all resources.
    pub(crate) service: u32,
    /// The place of its route in `spec.http`.
    pub(crate) route: usize,
    /// For each of the ways to be what both ask for, the place of a match of it, and of the branch's route. Without one,
    /// everything is.
    pub(crate) pairs: Vec<(Option<usize>, Option<usize>)>,
}

/// One destination of a route.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Share {
    pub(crate) weight: u32,
    pub(crate) verdict: Verdict,
    pub(crate) target: PortNumber,
    /// As [`Routed::name`].
    pub(crate) name: Option<HostName>,
    /// As [`Routed::dial`].
    pub(crate) dial: Option<HostName>,
}

impl Routed {
    /// What a VirtualService says without a word about names.
    pub(crate) fn by(service: Option<usize>) -> Self {
        Routed {
            service: service.map_or(u32::MAX, crate::table::verdict::narrow),
            gateway_service: u32::MAX,
            name: None,
            dial: None,
            branches: Vec::new(),
        }
    }
}

/// Returns why nothing leads anywhere, if nothing does.
pub(crate) fn nowhere(branches: &[Branch]) -> Option<Reason> {
    let mut reason = None;
    for share in branches.iter().flat_map(|branch| &branch.shares) {
        reason = Some(share.verdict.refusal()?);
    }
    reason
}

impl Share {
    /// A destination to which nothing leads.
    pub(crate) fn refused(reason: Reason) -> Self {
        Share {
            weight: 1,
            verdict: Verdict::refused(reason, None),
            target: PortNumber::HTTP,
            name: None,
            dial: None,
        }
    }
}

impl Branch {
    /// Returns what Envoy's route is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the place of its route in `spec.http`.
    pub fn route(&self) -> usize {
        self.route
    }

    /// Returns the places of its matches that can hold; empty where everything does.
    pub fn matches(&self) -> &[usize] {
        &self.matches
    }

    /// Returns what it answers without any server.
    pub fn answer(&self) -> Option<Answer> {
        self.answer
    }
}
