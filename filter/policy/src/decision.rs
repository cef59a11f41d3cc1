//! What the table says about one host and port.

use crate::cluster::{Cluster, Endpoints, LbEndpoint};
use crate::policy_source::PolicySource;
use crate::port::PortNumber;
use crate::reason::Reason;
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
    /// The server is told the target's host in place of the one that was called: a VirtualService says so.
    pub renamed: bool,
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
