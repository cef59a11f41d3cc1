//! Every name that Envoy and we both spell. The filter and the renderer take them from here.

use std::fmt;

use egress_policy::{Cluster, Identity, TlsIntent, Trust};

/// The request header that names the cluster of an originated request. Always ours, never the client's.
pub const ORIGINATE_HEADER: &str = "x-egress-originate";

/// The request header that names the cluster of a request that the rules forward as it is.
pub const FORWARD_HEADER: &str = "x-egress-forward";

/// What all request headers of ours begin with. Requests from outside lose them before routing.
pub const HEADER_PREFIX: &str = "x-egress-";

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

/// The name of the filter in Envoy's configuration and statistics.
pub const FILTER_NAME: &str = "egress";

/// The cluster for hosts that are left alone, as Istio calls it.
///
/// Source: istio/istio `pilot/pkg/networking/util/util.go`, `PassthroughCluster`.
pub const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";

/// Returns the name of the transport socket that a cluster's connections use.
pub fn transport_socket(cluster: &Cluster) -> &'static str {
    match cluster.tls {
        Some(_) => "envoy.transport_sockets.tls",
        None => "envoy.transport_sockets.raw_buffer",
    }
}

/// Returns the name of a client certificate among Envoy's secrets: `file-cert:CERTIFICATE~KEY`, or
/// `kubernetes://NAME`.
///
/// A credential that says where it is, `kubernetes://` or `configmap://`, keeps that beginning.
///
/// Source: istio/istio `pilot/pkg/security/model/authentication.go`, and `security.SdsCertificateConfig`.
pub fn identity_secret(identity: &Identity) -> impl fmt::Display + '_ {
    match identity {
        Identity::Files { .. } => SecretName::IdentityFiles(identity),
        Identity::Credential(name) => SecretName::Credential { name, suffix: "" },
    }
}

/// Returns the name of a trust store among Envoy's secrets; `None` when nothing is verified.
///
/// It is `file-root:system`, `file-root:PATH` or `kubernetes://NAME-cacert`; see [`identity_secret`] for
/// credentials that say where they are. Where there is a list of revoked certificates, it is part of
/// the name.
///
/// Source: istio/istio `security/pkg/nodeagent/cache/secretcache.go`, `file-root:`, and
/// `pilot/pkg/security/model/authentication.go`.
pub fn trust_secret(tls: &TlsIntent) -> Option<impl fmt::Display + '_> {
    Some(match (&tls.trust, &tls.crl) {
        (Trust::InsecureSkipVerify, _) => return None,
        (Trust::Credential(name), _) => SecretName::Credential {
            name,
            suffix: "-cacert",
        },
        (Trust::File(path), None) if path.starts_with('/') => SecretName::RootFile(path),
        (Trust::System | Trust::File(_), _) => SecretName::Root(tls),
    })
}

/// A name, written where it is needed; that of a credential without taking memory.
enum SecretName<'n> {
    IdentityFiles(&'n Identity),
    Credential { name: &'n str, suffix: &'static str },
    RootFile(&'n str),
    Root(&'n TlsIntent),
}

impl fmt::Display for SecretName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretName::IdentityFiles(identity) => write!(f, "file-cert:{identity}"),
            SecretName::Credential { name, suffix } => {
                if !["kubernetes://", "configmap://"]
                    .iter()
                    .any(|scheme| name.starts_with(scheme))
                {
                    f.write_str("kubernetes://")?;
                }
                f.write_str(name)?;
                f.write_str(suffix)
            }
            SecretName::RootFile(path) => write!(f, "file-root:{path}"),
            SecretName::Root(tls) => write!(f, "file-root:{}", tls.trust_id()),
        }
    }
}
