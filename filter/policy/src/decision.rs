//! What the table says about one host and port.

use std::fmt;

use crate::cluster::{Cluster, Endpoints, LbEndpoint};
use crate::merge::PolicySource;
use crate::port::PortNumber;
use crate::resource::{Answer, ResourceId};
use crate::table::routed::Branch;

/// What becomes of a request or connection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action<'t> {
    /// Plain in, TLS out.
    Originate(&'t Cluster),
    /// Plain in, plain out, because the rules say so.
    Forward(&'t Cluster),
    /// The application's own TLS, untouched.
    Passthrough(&'t Cluster),
    /// One of several destinations, by their weights: [`Decision::branch`].
    Weighted,
    /// Answered by Envoy's route: [`Decision::branch`].
    Respond(Answer),
    /// Refused.
    Reject(Reason),
    /// Not ours to decide: `outboundTrafficPolicy` is `ALLOW_ANY` and no rule speaks of the host.
    LeaveAlone(Reason),
}

impl Action<'_> {
    /// Returns the word for logs and for `explain`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Action::Originate(_) => "originate",
            Action::Forward(_) | Action::LeaveAlone(_) => "forward",
            Action::Passthrough(_) => "passthrough",
            Action::Weighted => "weighted",
            Action::Respond(Answer::Status(_)) => "respond",
            Action::Respond(Answer::Redirect(_)) => "redirect",
            Action::Reject(_) => "reject",
        }
    }
}

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

/// The host and port that are really dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'q> {
    /// The name that is looked up and, with TLS, sent and verified where the intent says so.
    pub host: &'q str,
    /// The port of the server.
    pub port: PortNumber,
}

/// The answer to a [`Query`](crate::Query), with all that led to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision<'t, 'q> {
    /// What becomes of it.
    pub action: Action<'t>,
    /// The server; `None` where nothing is dialled by us.
    pub target: Option<Target<'q>>,
    /// An address to dial in place of the target, names unchanged: `--connect-to`.
    pub connect_to: Option<(&'t str, PortNumber)>,
    /// The ServiceEntry that has the host.
    pub service_entry: Option<&'t ResourceId>,
    /// The DestinationRule that decided.
    pub rule: Option<&'t ResourceId>,
    /// Which part of the rule.
    pub policy_source: Option<PolicySource>,
    /// The VirtualService that led it.
    pub virtual_service: Option<&'t ResourceId>,
    /// The one that led it on behind an egress gateway, which we are as well.
    pub gateway_service: Option<&'t ResourceId>,
    /// The branch that Envoy's route chose, where the host and port have branches.
    pub branch: Option<&'t Branch>,
    /// It is plaintext only because somebody allowed it: [`AllowPlaintext`](crate::AllowPlaintext).
    pub plaintext_allowed: bool,
}

impl<'t> Decision<'t, '_> {
    /// Returns the way out, where there is one of ours.
    pub fn cluster(&self) -> Option<&'t Cluster> {
        match self.action {
            Action::Originate(cluster)
            | Action::Forward(cluster)
            | Action::Passthrough(cluster) => Some(cluster),
            Action::Weighted | Action::Respond(_) | Action::Reject(_) | Action::LeaveAlone(_) => {
                None
            }
        }
    }

    /// Returns the endpoints that are dialled in place of the target, where the entries list any.
    pub fn endpoints(&self) -> Option<&'t [LbEndpoint]> {
        match &self.cluster()?.endpoints {
            Endpoints::Listed { endpoints, .. } if self.connect_to.is_none() => Some(endpoints),
            _ => None,
        }
    }

    /// Returns why there is no way, where there is none.
    pub fn reason(&self) -> Option<Reason> {
        match self.action {
            Action::Reject(reason) | Action::LeaveAlone(reason) => Some(reason),
            _ => None,
        }
    }
}
