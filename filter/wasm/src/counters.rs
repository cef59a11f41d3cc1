//! The counters of failed connections, one set in each VM.

use std::cell::Cell;

use egress_filter::{Failure, HostError, contract};
use log::error;

use crate::host;

/// A counter's number for each failure; `None` where the host did not give one.
type Counters = [Option<u32>; Failure::ALL.len()];

thread_local! {
    static COUNTERS: Cell<Option<Counters>> = const { Cell::new(None) };
    static ALLOWED: Cell<Option<u32>> = const { Cell::new(None) };
    static LEAVING: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Defines all counters, so that all of them show as zero from the start. Once in each VM: a configuration
/// that comes later counts on.
///
/// A host that does not count takes nothing else from the filter.
pub(crate) fn define() {
    if COUNTERS.get().is_some() {
        return;
    }
    let mut counters: Counters = [None; Failure::ALL.len()];
    // A loop, for `map` is as many calls as there are failures, and takes as much room.
    for (counter, failure) in counters.iter_mut().zip(Failure::ALL) {
        *counter = host::counter(failure.counter()).ok();
    }
    if counters.contains(&None) {
        error!("egress: the host did not define the counters; failures are logged, not counted");
    }
    COUNTERS.set(Some(counters));
    ALLOWED.set(host::counter(contract::PLAINTEXT_ALLOWED).ok());
    LEAVING.set(host::counter(contract::REDIRECTS_LEAVING).ok());
}

/// Counts what is plaintext because somebody allowed it.
pub(crate) fn count_allowed() -> Result<(), HostError> {
    ALLOWED.get().map_or(Ok(()), host::increment)
}

/// Counts an answer that leads to a server that no rule has.
pub(crate) fn count_leaving() -> Result<(), HostError> {
    LEAVING.get().map_or(Ok(()), host::increment)
}

/// Counts a failure.
pub(crate) fn count(failure: Failure) -> Result<(), HostError> {
    let counters = COUNTERS.get();
    match counters.and_then(|counters| counters.get(failure.index()).copied().flatten()) {
        Some(counter) => host::increment(counter),
        None => Ok(()),
    }
}
