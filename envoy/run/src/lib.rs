//! Start Envoy with what was rendered, say when it is ready, and stop it again.
//!
//! ```text
//! Deployment ──supervise──► Envoy     files ──Recompile──► Deployment ──reload──► Envoy
//!                 └──► Events                                            └──► Events
//! ```
//!
//! [`supervise()`] starts an Envoy, hands it its secrets and its filter, and stays with it until it ends. When the
//! rules change, [`Recompile`] reads and compiles them, and Envoy gets the new ones.
//!
//! What it does not do: it prints nothing and knows no arguments. It reports what happens as an [`Event`].

#![deny(unsafe_code)]

pub mod admin;
pub mod atomic;
mod deployment;
mod discovery;
mod drain;
pub mod envoy_log;
mod event;
mod filter_file;
pub mod folder;
mod ports;
mod process;
mod reload;
mod resolver;
mod room;
mod secrets;
mod signals;
mod status;
mod supervise;
pub mod trial;
mod upgrade;
mod watch;

pub use deployment::{Deployment, Recompile};
pub use event::{Drain, Event, Events, Reloaded};
pub use filter_file::sha256;
pub use process::{LogLevel, version_of};
pub use supervise::{Reload, Start, supervise};
