//! The filter without a host: plugin configuration in, effects out.
//!
//! ```text
//! JSON ──load──► Loaded (PolicyTable) ; Facts ──plan──► effects ──apply──► host
//! ```
//!
//! [`load()`] reads what the renderer wrote with [`PluginConfig`]. Workers share what it returns; each has a [`Worker`]
//! of its own. [`HttpStream`] is one life of a request. It plans what happens to the request, checks that the bytes
//! behind CONNECT are TLS, and says why a connection failed. [`Connection`] is the same for connections that are not
//! HTTP. A host hands facts to them and applies each [`Effect`].
//!
//! They use the plans, which are functions of a configuration and of [`Facts`] or [`ConnectionFacts`]: [`plan_http`],
//! [`failed`] and [`plan_failure`], [`plan_plaintext`]; [`plan_tcp`], [`connection_failed`] and
//! [`plan_connection_failure`]. [`contract`] holds every name that Envoy and we both spell.
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
//! let facts = Facts { authority: "edition.cnn.com:80", port: None, connect: false, within: None, route: None };
//! let (mut authority, mut cluster) = (String::new(), String::new());
//! plan_http(&config, &facts, &mut scratch, &mut |effect| {
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

pub mod answer;
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
mod response;
mod stream;
mod text;
mod tunnels;
mod worker;

pub use answer::{Repair, Repairs};
pub use config::{AuthorityMode, FilterKind, MetadataFormat, PluginConfig, Variants};
pub use effect::{Act, Effect, HostError};
pub use facts::{ConnectionEnd, ConnectionFacts, Dialled, Facts, HttpRequest, HttpWanted, Wanted};
pub use failure::{Failure, FailureFacts};
pub use labels::labels;
pub use load::{InvalidConfig, Loaded, load, load_for};
pub use metadata::{Entry, FIELDS, struct_entries};
pub use plan::Scratch;
pub use plan::http::{failed, http_wanted, plan_failure, plan_http, plan_plaintext};
pub use plan::tcp::{connection_failed, plan_connection_failure, plan_tcp, wanted};
pub use response::Response;
pub use stream::{Connection, HttpStream, Next, ON_HOST_ERROR};
pub use worker::Worker;
