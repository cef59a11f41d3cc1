//! Every name that Envoy and we both spell. The filter and the renderer take them from here.

use std::fmt;

use egress_policy::{Cluster, Escaped, Identity, TlsIntent, Trust};

/// The request header that names the cluster of an originated request. Always ours, never the client's.
pub const ORIGINATE_HEADER: &str = "x-egress-originate";

/// The request header that names the cluster of a request that the rules forward as it is.
pub const FORWARD_HEADER: &str = "x-egress-forward";

/// The request headers that name the cluster of each destination of a route that has several. Envoy draws one of them.
pub const SHARE_HEADERS: [&str; 32] = [
    "x-egress-share-0",
    "x-egress-share-1",
    "x-egress-share-2",
    "x-egress-share-3",
    "x-egress-share-4",
    "x-egress-share-5",
    "x-egress-share-6",
    "x-egress-share-7",
    "x-egress-share-8",
    "x-egress-share-9",
    "x-egress-share-10",
    "x-egress-share-11",
    "x-egress-share-12",
    "x-egress-share-13",
    "x-egress-share-14",
    "x-egress-share-15",
    "x-egress-share-16",
    "x-egress-share-17",
    "x-egress-share-18",
    "x-egress-share-19",
    "x-egress-share-20",
    "x-egress-share-21",
    "x-egress-share-22",
    "x-egress-share-23",
    "x-egress-share-24",
    "x-egress-share-25",
    "x-egress-share-26",
    "x-egress-share-27",
    "x-egress-share-28",
    "x-egress-share-29",
    "x-egress-share-30",
    "x-egress-share-31",
];

/// What all request headers of ours begin with. Requests from outside lose them before routing.
pub const HEADER_PREFIX: &str = "x-egress-";

/// What all headers begin with that Envoy itself says or is told.
pub const ENVOY_PREFIX: &str = "x-envoy-";

/// Whether a response header is only ours or Envoy's to say: a server that said it would steer applications, or claim to
/// be us. The time that a server took is Envoy's own word, in place of whatever the server said.
pub fn is_withheld(response_header: &[u8]) -> bool {
    response_header.starts_with(HEADER_PREFIX.as_bytes())
        || (response_header.starts_with(ENVOY_PREFIX.as_bytes())
            && response_header != b"x-envoy-upstream-service-time")
}

/// The policy by which Envoy's access filter refuses addresses, as its answer's detail names it.
pub const PRIVATE_ADDRESS: &str = "private_address";

/// The property that carries the metadata of a request; Envoy keeps it as [`METADATA_STATE`].
pub const METADATA_PROPERTY: &str = "egress";

/// The filter state that access logs read.
pub const METADATA_STATE: &str = "wasm.egress";

/// The filter state that names the host that a dynamic forward proxy dials.
///
/// Source: envoyproxy/envoy `source/common/stream_info/upstream_address.h` and the dynamic forward
/// proxy filter's `allow_dynamic_host_from_filter_state`.
pub const DYNAMIC_HOST_STATE: &str = "envoy.upstream.dynamic_host";

/// The filter state that names the port that a dynamic forward proxy dials.
pub const DYNAMIC_PORT_STATE: &str = "envoy.upstream.dynamic_port";

/// The filter state that names the SNI of the upstream connection.
pub const UPSTREAM_SERVER_NAME_STATE: &str = "envoy.network.upstream_server_name";

/// The filter state that names what the upstream certificate must be for, separated by commas.
pub const UPSTREAM_NAMES_STATE: &str = "envoy.network.upstream_subject_alt_names";

/// The foreign function that makes Envoy look at the routes again.
pub const CLEAR_ROUTE_CACHE: &str = "clear_route_cache";

/// The foreign function that sets one of Envoy's own filter-state objects.
pub const SET_FILTER_STATE: &str = "set_envoy_filter_state";

/// The foreign function that gives a property a type, once in each VM.
pub const DECLARE_PROPERTY: &str = "declare_property";

/// The type of the metadata where access logs are JSON.
pub const METADATA_TYPE: &str = "type.googleapis.com/google.protobuf.Struct";

/// The property with the port that the application dialled.
pub const DESTINATION_PORT: [&str; 2] = ["destination", "port"];

/// The property with the address and port that the application dialled, as text.
pub const DESTINATION_ADDRESS: [&str; 2] = ["destination", "address"];

/// The property with the SNI of the application's own TLS.
pub const SERVER_NAME: [&str; 2] = ["connection", "requested_server_name"];

/// The property with the name of the route that Envoy chose.
pub const ROUTE_NAME: [&str; 2] = ["xds", "route_name"];

/// The property that says why Envoy could not connect to a server.
pub const TRANSPORT_FAILURE: [&str; 2] = ["upstream", "transport_failure_reason"];

/// The property with Envoy's response flags, as bits.
pub const RESPONSE_FLAGS: [&str; 2] = ["response", "flags"];

/// The filter state that names the cluster of a connection.
///
/// Source: envoyproxy/envoy `source/common/tcp_proxy/tcp_proxy.cc`, `PerConnectionCluster::key`.
pub const TCP_CLUSTER_STATE: &str = "envoy.tcp_proxy.cluster";

/// The property that names the transport socket of a request, where a cluster has several; Envoy keeps it as
/// [`SOCKET_STATE`].
pub const SOCKET_PROPERTY: &str = "egress_socket";

/// The filter state that [`SOCKET_PROPERTY`] becomes. Upstream connections do not see it.
pub const SOCKET_STATE: &str = "wasm.egress_socket";

/// The filter state that upstream connections see, by which a cluster finds the transport socket.
pub const UPSTREAM_SOCKET_STATE: &str = "egress.transport_socket";

/// The property that names the host and port that the proxy of an upstream is asked for; Envoy keeps it as
/// [`TUNNEL_STATE`].
pub const TUNNEL_PROPERTY: &str = "egress_tunnel";

/// The filter state that [`TUNNEL_PROPERTY`] becomes. Upstream connections do not see it.
pub const TUNNEL_STATE: &str = "wasm.egress_tunnel";

/// The filter state that upstream connections see, and are told apart by.
pub const UPSTREAM_TUNNEL_STATE: &str = "egress.tunnel";

/// The cluster, and the listener within Envoy, for requests that come within a tunnel of the forward proxy.
pub const WITHIN: &str = "forward-proxy-within";

/// The property that names the host and port of such a tunnel; Envoy keeps it as [`WITHIN_STATE`].
pub const WITHIN_PROPERTY: &str = "egress_within";

/// The filter state that [`WITHIN_PROPERTY`] becomes. Upstream connections do not see it.
pub const WITHIN_STATE: &str = "wasm.egress_within";

/// The filter state that the connection within Envoy has, and by which such connections are told apart.
pub const TARGET_STATE: &str = "egress.within";

/// The property with [`UPSTREAM_TUNNEL_STATE`], where a connection within Envoy has it.
pub const TUNNEL_TARGET: [&str; 2] = ["filter_state", UPSTREAM_TUNNEL_STATE];

/// The property with the server's address, or the proxy's.
pub const UPSTREAM_ADDRESS: [&str; 2] = ["upstream", "address"];

/// The property with the address that we have towards a server. A connection that asks a proxy has it once the proxy
/// has agreed.
///
/// Source: envoyproxy/envoy `source/common/tcp_proxy/tcp_proxy.cc`, `Filter::onGenericPoolReady`.
pub const UPSTREAM_LOCAL_ADDRESS: [&str; 2] = ["upstream", "local_address"];

/// The property with [`TARGET_STATE`].
pub const TARGET: [&str; 2] = ["filter_state", TARGET_STATE];

/// The property that a client's connection has once the client has logged in on it; Envoy keeps it as [`LOGIN_STATE`]
/// for as long as the connection lives.
pub const LOGIN_PROPERTY: &str = "egress_login";

/// The filter state that [`LOGIN_PROPERTY`] becomes. Upstream connections do not see it.
pub const LOGIN_STATE: &str = "wasm.egress_login";

/// The filter state that upstream connections see, and are told apart by.
pub const UPSTREAM_LOGIN_STATE: &str = "egress.login";

/// The property with Envoy's number of the client's connection, which no other connection ever gets.
pub const CONNECTION_ID: [&str; 2] = ["connection", "id"];

/// Where Envoy's node has the labels of its workload, as Istio fills it in.
///
/// Source: istio/istio `pkg/model/proxy.go`, `NodeMetadata.Labels`.
pub const NODE_LABELS: [&str; 4] = ["xds", "node", "metadata", "LABELS"];

/// The properties with Envoy's own version, major and minor.
///
/// Source: envoyproxy/data-plane-api `envoy/config/core/v3/base.proto`, `Node.user_agent_build_version`.
pub const ENVOY_VERSION: [[&str; 5]; 2] = [
    [
        "xds",
        "node",
        "user_agent_build_version",
        "version",
        "major_number",
    ],
    [
        "xds",
        "node",
        "user_agent_build_version",
        "version",
        "minor_number",
    ],
];

/// The newest Envoy, major and minor, of which we know that it looks at the routes again when a filter of our ABI
/// writes a header. All before it do so too; those to come are told to, until they were tried.
///
/// Source: envoyproxy/envoy `source/extensions/common/wasm/context.cc`, `Context::onHeadersModified`, and
/// `integration/tests/hostcalls.rs`.
pub const ROUTES_FOLLOW_HEADERS: (u64, u64) = (1, 40);

/// The property with Envoy's word on how a response came about.
pub const RESPONSE_DETAILS: [&str; 2] = ["response", "code_details"];

/// The most headers that an answer of Envoy's own has where a connection failed: the status, the content's
/// type and length; or the status and three of gRPC's. Servers' answers have more, or are looked at.
pub const LOCAL_REPLY_HEADERS: usize = 4;

/// The counter of answers that lead to a server that no rule has; `wasmcustom.` stands before it in Envoy's statistics.
pub const REDIRECTS_LEAVING: &str = "egress.redirects_leaving";

/// The counter of requests and connections that were plaintext only because somebody allowed it; `wasmcustom.` stands
/// before it in Envoy's statistics.
pub const PLAINTEXT_ALLOWED: &str = "egress.plaintext_allowed";

/// The counter of requests and connections that were refused because the native module panicked.
pub const PANICS: &str = "egress.panics";

/// What stands before our counters in Envoy's statistics, whichever form of the filter counts.
pub const METRICS_NAMESPACE: &str = "wasmcustom";

/// The namespace of dynamic metadata in which the native module gives an access log of JSON its entries.
pub const METADATA_NAMESPACE: &str = "egress";

/// The name of the filter in Envoy's configuration and statistics.
pub const FILTER_NAME: &str = "egress";

/// The cluster for hosts that are left alone, as Istio calls it.
///
/// Source: istio/istio `pilot/pkg/networking/util/util.go`, `PassthroughCluster`.
pub const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";

/// Returns a name that is unique even among clusters of the same [`Cluster::name`]. It names a transport socket, or the
/// cluster itself if Envoy cannot choose among transport sockets.
pub fn variant(cluster: &Cluster) -> String {
    format!("{}~{}", cluster.name, cluster.fingerprint())
}

/// Returns Envoy's name for the type of transport socket that a cluster's connections use.
pub fn transport_socket(cluster: &Cluster) -> &'static str {
    match cluster.tls {
        Some(_) => "envoy.transport_sockets.tls",
        None => "envoy.transport_sockets.raw_buffer",
    }
}

/// Returns the name of a client certificate among Envoy's secrets: `file-cert:CERTIFICATE~KEY`,
/// `kubernetes://NAME` or `configmap://NAMESPACE/NAME`.
///
/// Things that differ have different names. So characters that separate parts are written as `%` and their
/// code, and a certificate whose credential ends like the name of authorities is written
/// `kubernetes://NAME%2Dcacert`; Istio would answer with authorities there.
///
/// Source: istio/istio `pilot/pkg/security/model/authentication.go`, `ApplyCustomSDSToClientCommonTLSContext`,
/// and `security.SdsCertificateConfig`.
pub fn identity_secret(identity: &Identity) -> impl fmt::Display + '_ {
    match identity {
        Identity::Files { .. } => SecretName::Files(identity),
        Identity::Credential(name) => SecretName::Certificate(name),
    }
}

/// Returns the name of those whom a connection trusts among Envoy's secrets; `None` when nothing is verified.
///
/// See [`trust_name`].
pub fn trust_secret(tls: &TlsIntent) -> Option<impl fmt::Display + '_> {
    trust_name(&tls.trust, tls.crl.as_deref())
}

/// Returns the name of authorities, with what they revoked, among Envoy's secrets: `file-root:system`,
/// `file-root:PATH`, `kubernetes://NAME-cacert` or `configmap://NAMESPACE/NAME-cacert`, and `;crl:PATH` behind it.
///
/// Source: istio/istio `security/pkg/nodeagent/cache/secretcache.go`, `file-root:`, and
/// `pilot/pkg/security/model/authentication.go`, `SdsCaSuffix`.
pub fn trust_name<'t>(
    trust: &'t Trust,
    crl: Option<&'t str>,
) -> Option<impl fmt::Display + use<'t>> {
    (*trust != Trust::InsecureSkipVerify).then_some(SecretName::Authorities(trust, crl))
}

/// What Istio puts behind a credential's name to ask for its authorities.
const CA_SUFFIX: &str = "-cacert";

/// A name, written where it is needed without taking memory.
enum SecretName<'n> {
    Files(&'n Identity),
    Certificate(&'n str),
    Authorities(&'n Trust, Option<&'n str>),
}

impl fmt::Display for SecretName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretName::Files(identity) => write!(f, "file-cert:{identity}"),
            SecretName::Certificate(name) => match name.strip_suffix(CA_SUFFIX) {
                Some(stem) => {
                    credential(stem, f)?;
                    f.write_str("%2Dcacert")
                }
                None => credential(name, f),
            },
            SecretName::Authorities(trust, crl) => {
                match trust {
                    Trust::Credential(name) => {
                        credential(name, f)?;
                        f.write_str(CA_SUFFIX)?;
                    }
                    // A file of that name is not the system's bundle.
                    Trust::File(path) if path == "system" => f.write_str("file-root:./system")?,
                    Trust::File(path) => {
                        f.write_str("file-root:")?;
                        write!(f, "{}", Escaped(path))?;
                    }
                    Trust::System | Trust::InsecureSkipVerify => write!(f, "file-root:{trust}")?,
                }
                if let Some(crl) = crl {
                    f.write_str(";crl:")?;
                    write!(f, "{}", Escaped(crl))?;
                }
                Ok(())
            }
        }
    }
}

/// Writes a credential's name behind what it is of.
fn credential(name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (scheme, rest) = match name.strip_prefix("configmap://") {
        Some(rest) => ("configmap://", rest),
        None => (
            "kubernetes://",
            name.strip_prefix("kubernetes://").unwrap_or(name),
        ),
    };
    f.write_str(scheme)?;
    write!(f, "{}", Escaped(rest))
}

#[cfg(test)]
mod tests {
    use super::is_withheld;

    #[test]
    fn servers_say_nothing_in_our_name_or_envoys() {
        for name in [
            "x-egress-reason",
            "x-egress-",
            "x-envoy-overloaded",
            "x-envoy-upstream-alt",
        ] {
            assert!(is_withheld(name.as_bytes()), "{name}");
        }
        for name in [
            "x-envoy-upstream-service-time",
            "x-egress",
            "x-request-id",
            "server",
            "",
        ] {
            assert!(!is_withheld(name.as_bytes()), "{name}");
        }
    }
}
