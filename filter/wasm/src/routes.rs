//! Whether Envoy chooses the route again by itself, which saves each request a call.

use std::cell::Cell;

use egress_filter::{HostError, contract};

use crate::host;

thread_local! {
    static FOLLOW_HEADERS: Cell<bool> = const { Cell::new(false) };
}

/// Finds out which Envoy this is. One that does not say is told each time.
pub(crate) fn learn() {
    let [major, minor] = contract::ENVOY_VERSION.map(|path| host::number(&path).ok().flatten());
    let known = major.is_some_and(|major| major == contract::ROUTES_FOLLOW_HEADERS.0)
        && minor.is_some_and(|minor| minor <= contract::ROUTES_FOLLOW_HEADERS.1);
    FOLLOW_HEADERS.set(known);
}

/// Has Envoy look at the routes again, after a header was written or removed.
pub(crate) fn choose_again() -> Result<(), HostError> {
    if FOLLOW_HEADERS.get() {
        return Ok(());
    }
    host::call(contract::CLEAR_ROUTE_CACHE, &[])
}
