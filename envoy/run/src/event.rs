//! What happens in a run, for whoever shows it.

use egress_policy::PortNumber;
use egress_rules::Refusal;
use tokio::sync::mpsc;

use super::admin::Addresses;
use super::drain::Drain;

/// The way of events to whoever shows them, in the order in which they happen. When nobody takes them any more, the
/// run ends.
pub type Events = mpsc::UnboundedSender<Event>;

/// Something that people or programs may want to know.
#[derive(Debug)]
pub enum Event {
    /// Envoy takes requests.
    Ready(Addresses),
    /// Envoy has other rules.
    Reloaded(Reloaded),
    /// Rules are not applied; those before them stay in use.
    Refused(Refusal),
    /// A note on rules that are applied.
    Note(String),
    /// A secret cannot be given to Envoy.
    SecretMissing {
        /// Why.
        why: String,
        /// Envoy has one that was good before.
        stays: bool,
    },
    /// The secret of this name can be given to Envoy again.
    SecretBack(String),
    /// A line of Envoy's log.
    EnvoySaid(String),
    /// Requests finish, then Envoy ends.
    Draining(Drain),
    /// Envoy is asked to open its access log again.
    Reopened,
    /// Something else that is not as it should be.
    Warning(String),
}

/// Rules that Envoy has in place of others.
#[derive(Debug)]
pub struct Reloaded {
    /// Where Envoy listens, if it tells.
    pub addresses: Option<Addresses>,
    /// The service ports that are new.
    pub added: Vec<PortNumber>,
    /// The service ports that are gone.
    pub removed: Vec<PortNumber>,
    /// The digest of the rules.
    pub digest: String,
}

/// Sends an event. Nobody may take it any more; then the run ends, and there is nothing to do here.
pub(super) fn send(events: &Events, event: Event) {
    let _ = events.send(event);
}
