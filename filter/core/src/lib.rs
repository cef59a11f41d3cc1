//! The filter without a host: plugin configuration in, effects out.
//!
//! ```text
//! JSON ──load──► Loaded (PolicyTable) ; Facts ──plan──► effects ──apply──► host
//! ```
//!
//! [`load()`] reads what the renderer wrote with [`PluginConfig`]. [`plan_http`] says, for the [`Facts`]
//! of one request, each [`Effect`] that an adapter is to apply; where its connection [`failed`],
//! [`plan_failure`] says what is told of that. Of the bytes behind CONNECT [`begins_tls`] says whether they are TLS, and
//! [`plan_plaintext`] what happens when they are not. [`plan_tcp`], [`connection_failed`] and
//! [`plan_connection_failure`] are the same for connections that are not HTTP. [`contract`] holds every name that Envoy
//! and we both spell.
//!
//! What it does not do: it calls no host and knows no SDK. It decides nothing either: that is
//! [`egress_policy::PolicyTable::decide`].
//!
//! # Example
//!
//! ```
//! use egress_filter::{Effect, Facts, Scratch, load, plan_http};
//!
//! let config = load(br#"{
//!   "listener": {"port": 80},
//!   "resources": [
//!     {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "cnn"},
//!      "spec": {"hosts": ["edition.cnn.com"], "resolution": "DNS",
//!               "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443}]}},
//!     {"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "cnn"},
//!      "spec": {"host": "edition.cnn.com", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}}
//!   ]
//! }"#).unwrap();
//!
//! let mut scratch = Scratch::default();
//! let facts = Facts { authority: "edition.cnn.com:80", port: None, connect: false };
//! let (mut authority, mut cluster) = (String::new(), String::new());
//! plan_http::<()>(&config, &facts, &mut scratch, &mut |effect| {
//!     match effect {
//!         Effect::Authority(value) => authority = value.to_owned(),
//!         Effect::Header("x-egress-originate", value) => cluster = value.to_owned(),
//!         _ => {}
//!     }
//!     Ok(())
//! }).unwrap();
//! assert_eq!((authority.as_str(), cluster.as_str()), ("edition.cnn.com", "shared|SIMPLE|system|auto"));
//! ```
#![forbid(unsafe_code)]

mod client_hello;
pub mod config;
pub mod contract;
mod effect;
mod facts;
mod failure;
mod labels;
mod load;
mod metadata;
mod plan;
pub mod protobuf;
mod text;

pub use client_hello::{TELLING, begins_tls};
pub use config::{AuthorityMode, FilterKind, MetadataFormat, PluginConfig, Variants};
pub use effect::{Act, Effect};
pub use facts::{ConnectionEnd, ConnectionFacts, Facts, Wanted};
pub use failure::{Failure, FailureFacts};
pub use labels::labels;
pub use load::{InvalidConfig, Loaded, load, load_for};
pub use metadata::{Entry, FIELDS};
pub use plan::Scratch;
pub use plan::cache::Remembered;
pub use plan::http::{failed, plan_failure, plan_http, plan_plaintext};
pub use plan::tcp::{connection_failed, plan_connection_failure, plan_tcp, wanted};
