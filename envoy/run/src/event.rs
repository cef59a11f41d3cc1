//! What happens in a run, for whoever shows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use egress_policy::PortNumber;
use egress_rules::Refusal;
use tokio::sync::mpsc;

use super::admin::Addresses;

/// The way of events to whoever shows them, in the order in which they happen. When nobody takes them any more, the
/// run ends.
#[derive(Debug, Clone)]
pub struct Events {
    sender: mpsc::UnboundedSender<Event>,
    seen: Arc<Seen>,
}

impl Events {
    /// Returns the way, and its other end.
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let seen = Arc::default();
        (Events { sender, seen }, receiver)
    }

    /// Waits until nobody takes them any more.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }

    /// What has happened so far.
    pub(super) fn seen(&self) -> &Seen {
        &self.seen
    }
}

/// What has happened so far, in numbers.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Envoy takes requests.
    pub(super) ready: AtomicBool,
    /// Requests finish, and no more should come.
    pub(super) draining: AtomicBool,
    /// How often other rules were applied.
    pub(super) applied: AtomicU64,
    /// How often they were not.
    pub(super) refused: AtomicU64,
    /// The rules in the files are not those in use.
    pub(super) stale: AtomicBool,
    /// When the rules in use were applied, in seconds since 1970.
    pub(super) applied_at: AtomicU64,
    /// How often a secret could not be given to Envoy.
    pub(super) secrets_missing: AtomicU64,
    /// How many other warnings there were.
    pub(super) warnings: AtomicU64,
}

impl Seen {
    fn note(&self, event: &Event) {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let now = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let seconds = since.map_or(0, |since| since.as_secs());
            self.applied_at.store(seconds, Ordering::Relaxed);
        };
        match event {
            Event::Ready(_) => {
                now();
                self.ready.store(true, Ordering::Relaxed);
            }
            Event::Reloaded(_) => {
                now();
                count(&self.applied);
                self.stale.store(false, Ordering::Relaxed);
            }
            Event::Refused(_) => {
                count(&self.refused);
                self.stale.store(true, Ordering::Relaxed);
            }
            Event::Draining(_) | Event::Replaced(_) => self.draining.store(true, Ordering::Relaxed),
            Event::SecretMissing { .. } => drop(count(&self.secrets_missing)),
            Event::Warning(_) => drop(count(&self.warnings)),
            Event::Reloading
            | Event::Note(_)
            | Event::SecretBack(_)
            | Event::EnvoySaid(_)
            | Event::Reopened => {}
        }
    }
}

/// Something that people or programs may want to know.
#[derive(Debug)]
pub enum Event {
    /// Envoy takes requests.
    Ready(Addresses),
    /// Rules are read and compiled that may come in place of those in use.
    Reloading,
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
    /// The run of this process has taken the place of ours; what was begun here finishes.
    Replaced(u32),
    /// Envoy is asked to open its access log again.
    Reopened,
    /// Something else that is not as it should be.
    Warning(String),
}

/// How a run ends that is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// How long requests are served as before, once health checks fail.
    pub delay: Duration,
    /// How long requests may take after that.
    pub limit: Duration,
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
    events.seen.note(&event);
    let _ = events.sender.send(event);
}
