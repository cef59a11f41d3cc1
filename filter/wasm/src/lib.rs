//! The proxy-wasm module that Envoy loads: it reads facts, hands them to a stream, and applies effects.
//!
//! ```text
//! Envoy ──facts──► egress_filter::HttpStream ──effects──► host.rs ──► Envoy
//! ```
//!
//! [`root`] keeps the configuration. [`http`] handles one request, and [`tcp`] one connection that is not HTTP. `apply`
//! applies effects, and `counters` counts failures. `sdk` leaves out what the SDK offers. `routes` knows when Envoy must
//! be told to choose the route again. Only `host` calls the host. Nothing is decided here: an `if` about policy belongs
//! in `egress-policy`.
//!
//! What it does not do: TLS. The transport socket of the request's cluster does that.

use proxy_wasm::traits::RootContext;
use proxy_wasm::types::LogLevel;

mod apply;
mod counters;
mod host;
pub mod http;
pub mod root;
mod routes;
mod sdk;
pub mod tcp;

/// What Envoy calls first.
#[cfg(target_arch = "wasm32")]
#[expect(
    unsafe_code,
    reason = "the ABI finds the entry point by its unmangled name"
)]
#[unsafe(no_mangle)]
pub extern "C" fn _initialize() {
    start();
}

/// Registers the filter with the SDK.
pub fn start() {
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(root::Root::default()) });
}
