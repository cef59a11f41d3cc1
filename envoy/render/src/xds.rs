//! Renders a policy table as an Envoy bootstrap. It translates intent and judges nothing.
//!
//! The shape is meant for speed and for ten thousand hosts:
//!
//! - one listener for each service port, one HTTP connection manager in it, one filter;
//! - hosts with identical rules apart from the name share one dynamic forward proxy cluster, which takes
//!   SNI and verified name from the authority; only a host whose rules ask for something of its own has
//!   a cluster of its own;
//! - the request's route is fixed for what most hosts need, so that the filter has nothing to change;
//! - TLS of the application is matched by SNI in the listener and never opened;
//! - captured connections are handed to listeners that are not bound, with the same chains;
//! - a TCP service has a chain of its own, with the same filter as a network filter. If it has a loopback address, it
//!   has a listener of its own.

mod access_log;
mod bootstrap;
mod branches;
mod capture;
mod chain;
mod cluster;
mod conflict;
mod dns;
mod dynamic;
mod foreign;
mod forward_proxy;
mod guard;
mod http;
mod limits;
mod listener;
mod login;
mod merged;
mod message;
mod names;
mod no_proxy;
mod old_clients;
mod options;
mod overload;
mod passthrough;
mod plugin;
mod proxy_url;
mod refusals;
mod rendering;
mod request_urls;
mod route_action;
mod secret;
mod secrets;
mod server_name;
mod service_ports;
mod stats;
mod tcp;
mod transport_socket;
mod tunnel;
mod upgrade;
mod upstream_proxy;
mod variants;

pub use bootstrap::{bootstrap, reloading};
pub use capture::{NAME as CAPTURE, SERVICE_PREFIX as CAPTURED};
pub use conflict::Conflict;
pub use dynamic::{Dynamic, discovered, dynamic};
pub use egress_filter::contract::WITHIN as FORWARD_PROXY_WITHIN;
pub use foreign::{Additions, foreign};
pub use forward_proxy::NAME as FORWARD_PROXY;
pub use guard::{DROPS_ADDRESSES, is_refused, looks_at_one_address, refused};
pub use merged::{NotMerged, sockets};
pub use no_proxy::{InvalidNoProxy, NoProxy};
pub use options::{
    AccessLog, Admin, Capture, ExpectContinue, FilterFile, HeaderCase, Limits, MODULE_IS_TOLD_ALL,
    OLDEST, OLDEST_WITH_MODULE, Options, Version,
};
pub use plugin::{Plugin, WASM_RUNTIME};
pub use proxy_url::{InvalidProxy, UpstreamProxy};
pub use secret::{SecretFiles, SecretRequest, Secrets};
pub use secrets::{file_name, watched_documents};
pub use service_ports::service_ports;
pub use tcp::{Vip, vips};
pub use upstream_proxy::{NAME as UPSTREAM_PROXY, OLDEST_WITH_EXCEPTIONS, OLDEST_WITH_PROXY};
