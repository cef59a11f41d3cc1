//! The end of a run that was asked to end: nothing new is begun, and what is in flight finishes.
//!
//! ```text
//! health fails ──delay──► answers close their connections ──► nothing new is accepted ──► Envoy ends
//! ```
//!
//! Envoy goes on accepting connections while it drains, because whoever balances load may send some for a while. When
//! nothing is in flight, or two thirds of the limit are over, it stops accepting; the rest is for what is left.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::admin;
use super::event::{Drain, Event, Events, send};
use egress_render::xds::Admin;

/// How often Envoy is asked how much is in flight.
const INTERVAL: Duration = Duration::from_millis(100);

/// Lets requests finish. Envoy is not stopped here: that comes next, whatever came of this.
pub(super) async fn drain(how: Drain, admin: &Admin, written: &Path, events: &Events) {
    let ask = async |path: &str| {
        if !admin::post(admin, written, path).await {
            let text = format!("Envoy does not answer `POST {path}`");
            send(events, Event::Warning(text));
        }
    };
    ask("/healthcheck/fail").await;
    sleep(how.delay).await;
    // `skip_exit`: the listeners stay open.
    ask("/drain_listeners?graceful&skip_exit").await;
    let end = Instant::now() + how.limit;
    let until_idle = async |end: Instant| {
        loop {
            // What was accepted a moment ago has not been counted yet.
            sleep(INTERVAL.min(end - Instant::now())).await;
            let active = admin::active(admin, written).await;
            if active == Some(0) || Instant::now() >= end {
                return active;
            }
        }
    };
    until_idle(end - how.limit / 3).await;
    ask("/drain_listeners").await;
    if let Some(left @ 1..) = until_idle(end).await {
        let text = format!(
            "{left} requests or connections are cut off, for they did not finish within {} s",
            how.limit.as_secs()
        );
        send(events, Event::Warning(text));
    }
}
