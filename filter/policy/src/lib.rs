//! The engine of egress TLS origination: Istio's rules in, decisions out.
//!
//! ```text
//! text ──parse──► resources ──compile──► PolicyTable ──decide──► Decision
//! ```
//!
//! [`Parser`] reads `ServiceEntry` and `DestinationRule` documents into [`Resources`], makes a DestinationRule of each
//! `BackendTLSPolicy`, and reports every problem with its document and field. [`PolicyTable::compile`] compiles them for one [`Proxy`]. [`PolicyTable::decide`] says what
//! happens to a host and port, and [`PolicyTable::decide_connection`] to a connection that names no host. The filter
//! decides by the same table that the renderer walks, so the two cannot disagree.
//!
//! What it does not do: it opens no file and no socket, reads no clock and no environment, and does not know Envoy. It
//! behaves as Istio 1.32-dev (istio/istio 86c9f01f, istio/api b8f8791d), except for differences on the safe side, which
//! the doc comments name.
//!
//! # Example
//!
//! ```
//! use egress_policy::{Action, DownstreamProtocol, Authority, Parser, PolicyTable, PortNumber, Query, CompileOptions};
//! use serde_json::json;
//!
//! let mut parser = Parser::new();
//! parser.document(&json!({
//!     "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
//!     "metadata": {"name": "edition-cnn-com"},
//!     "spec": {
//!         "hosts": ["edition.cnn.com"],
//!         "ports": [{"number": 80, "name": "http-port", "protocol": "HTTP", "targetPort": 443}],
//!         "resolution": "DNS",
//!     },
//! }));
//! parser.document(&json!({
//!     "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
//!     "metadata": {"name": "edition-cnn-com"},
//!     "spec": {
//!         "host": "edition.cnn.com",
//!         "trafficPolicy": {"portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}]},
//!     },
//! }));
//! let (resources, problems) = parser.finish();
//! assert!(!problems.has_errors());
//!
//! let (table, _) = PolicyTable::compile(&resources, &CompileOptions::default()).unwrap();
//! let authority = Authority::parse("Edition.CNN.com:80").unwrap();
//! let query = Query { host: &authority.host, port: PortNumber::HTTP, downstream: DownstreamProtocol::Http, branch: None, subset: None };
//! let decision = table.decide(&query);
//!
//! let Action::Originate(cluster) = decision.action else { panic!("{decision:?}") };
//! assert_eq!(cluster.name.as_str(), "shared|SIMPLE|system|auto");
//! assert_eq!(decision.target.unwrap().port.get(), 443);
//! ```
#![forbid(unsafe_code)]

mod aliases;
mod attach;
mod cluster;
mod compile;
mod decision;
mod digest;
mod explain;
pub mod fields;
mod host;
mod host_index;
mod indexed;
mod merge;
mod mesh;
pub mod node;
mod options;
mod order;
mod policy_source;
mod port;
mod problem;
mod proxy;
mod query;
pub mod reading;
mod reason;
mod resource;
mod source;
mod table;
mod tls;
mod visible;
mod words;
mod workloads;

pub use cluster::{Cluster, ClusterName, Endpoints, LbEndpoint, UpstreamProtocol};
pub use compile::Compiled;
pub use decision::{Action, Decision, Target};
pub use digest::{Digest, fnv};
pub use explain::{Candidate, Outcome, candidates};
pub use host::{Authority, HostName, HostPattern, InvalidAuthority, InvalidHost, MAX_HOST_BYTES};
pub use mesh::{MESH_FIELDS, Mesh, Visibility};
pub use options::{AllowPlaintext, CompileOptions, ConnectTo, OutboundMode};
pub use order::map_of;
pub use policy_source::PolicySource;
pub use port::{PortNumber, Protocol, ProtocolClass};
pub use problem::{
    FieldPath, Origin, Problem, ProblemKind, Problems, Segment, Severity, did_you_mean,
};
pub use proxy::{Proxy, ROOT_NAMESPACE, Role};
pub use query::{Connection, DownstreamProtocol, Query, Spoken};
pub use reason::Reason;
pub use resource::{
    Address, Answer, BACKEND_TLS_POLICY, ClientTls, ConnectionPool, ConsistentHash,
    DEFAULT_NAMESPACE, DestinationRule, Endpoint, GATEWAY_SERVICES, Gateway, H2UpgradePolicy,
    HashKey, HashRing, HttpPool, KubernetesService, LoadBalancer, MADE_OF, Meta, Note, Notes,
    OutlierDetection, PortPolicy, ProxyProtocol, ROUTE_KINDS, Resolution, ResourceId, Resources,
    RetryBudget, ServiceEntry, ServicePort, Sidecar, SimpleBalancer, Subset, TcpKeepalive, TcpPool,
    TlsMode, TrafficPolicy, Tunnel, UNREAD_KINDS, Unread, VirtualService, Warmup,
};
pub use source::{API_VERSIONS, KINDS, Parser, is_list};
pub use table::branching::{BeforeOf, BranchOf, Branching, ShareOf};
pub use table::reach::Reach;
pub use table::routed::Branch;
pub use table::{Divided, GateSummary, PolicyTable, Refused, Service};
pub use tls::{Escaped, Identity, InvalidTls, NameSource, Sni, TlsIntent, Trust, VerifiedNames};
pub use visible::{visible, visible_lines};
