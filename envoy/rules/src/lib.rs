//! Rules from texts: read, parsed and compiled, with every problem at its line.
//!
//! ```
//! use egress_policy::CompileOptions;
//! use egress_rules::{Source, compile};
//!
//! let text = "
//! apiVersion: networking.istio.io/v1
//! kind: ServiceEntry
//! metadata: {name: api}
//! spec:
//!   hosts: [api.example.com]
//!   ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]
//!   resolution: DNS
//! ";
//! let source = Source { name: "rules.yaml".to_owned(), text: text.to_owned(), mesh: false };
//! let report = compile(&[source], &CompileOptions::default()).unwrap_err();
//! assert!(report.to_string().contains("rules.yaml:7:11"), "{report}");
//! ```
//!
//! What it does not do: it opens no file, asks no clock and starts no thread. So it runs in a browser too. It decides
//! nothing: that is `egress-policy`.
#![forbid(unsafe_code)]

mod annotations;
mod compile;
mod complaint;
mod delegates;
mod derived;
mod diagnostic;
mod document;
mod explain;
mod gateway_api;
mod legacy;
mod mesh;
mod offer;
mod others;
mod policy;
mod reference;
mod repairs;
mod routes;
mod secrets;
mod source;
mod strict;
mod tls_names;
mod virtual_service;
pub mod yaml;

pub use compile::{Answers, How, Nothing, Rules, compile, compile_as};
pub use complaint::{Blame, Complaint, Refusal};
pub use derived::Derived;
pub use diagnostic::{Diagnostic, Notice, Report, told};
pub use document::{is_ours, resources};
pub use explain::{Explanation, Question};
pub use legacy::words as legacy_words;
pub use mesh::{ClusterDefaults, MeshConfig};
pub use offer::{Offer, TlsVersion};
pub use reference::{InvalidReference, Reference, names_of};
pub use repairs::Answered;
pub use routes::Routes;
pub use secrets::{Documents, PAIR_KEYS, SecretDocument, SecretPart, TRUST_KEYS};
pub use source::Source;
pub use virtual_service::{
    Abort, ConnectionMatch, ConnectionRoute, DEFAULT_BODY, DirectResponse, Fault, HeaderChanges,
    Headers, HttpMatch, HttpRoute, PathRewrite, Pattern, Percent, Redirect, RedirectPort, Request,
    Retries, RouteAction, Share, StringMatch, VirtualService, normalized, served, virtual_service,
};
