//! Start Envoy with what was rendered, say when it is ready, and stop it again.

pub(crate) mod admin;
pub(crate) mod atomic;
mod discovery;
pub(crate) mod envoy_log;
pub(crate) mod folder;
mod ports;
mod process;
mod reload;
mod resolver;
mod secrets;
mod supervise;
mod watch;

pub(crate) use process::version_of;
pub(crate) use supervise::main;
