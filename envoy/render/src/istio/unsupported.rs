//! Rules that cannot be carried out in Istio.

use egress_policy::PortNumber;

/// How large a resource may be, in bytes of JSON: etcd takes 1.5 MiB, and the API server adds to it.
pub(super) const MAX_BYTES: usize = 1_400_000;

/// Why Istio cannot be told to do what the rules ask for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// There is nothing for the filter to do.
    #[error(
        "no rule asks for TLS on a port that speaks HTTP, so there is nothing for the filter to do"
    )]
    Nothing,
    /// No rule has anything for a cluster of Istio's to do.
    #[error("no rule asks for verified TLS on a port, so there is nothing to merge")]
    NothingToMerge,
    /// Something that decides about requests would be undone.
    #[error(
        "{route} decides about requests to `{host}`, and the filter's routes would stand before its own"
    )]
    Routed {
        /// What decides, as `kind namespace/name`.
        route: String,
        /// The host.
        host: String,
    },
    /// A cluster of Istio's cannot be told so.
    #[error(
        "the certificate of `{host}` must have the host's name and another one, and one cluster of Istio's cannot ask for both"
    )]
    TwoNames {
        /// The host.
        host: String,
    },
    /// Istio's cluster verifies a name of its own there.
    #[error(
        "`{0}` is a wildcard with `resolution: DYNAMIC_DNS`: whoever answers for a name in DNS chooses the address, and nothing keeps Istio's cluster from private ones"
    )]
    Dynamic(String),
    /// A cluster of Istio's cannot be told so.
    #[error(
        "the DestinationRule of `{0}` has `egressctl/x-forwarded-for`, and nothing that is merged into Istio's cluster removes a header"
    )]
    ForwardedFor(String),
    /// Istio's cluster has a list already, and the word would need another.
    #[error(
        "the DestinationRule of `{0}` says `small-hello`, and the mesh's `tlsDefaults.ecdhCurves` stand in Istio's cluster whatever is merged into it"
    )]
    Groups(String),
    /// Istio carries such a rule out alone.
    #[error(
        "the DestinationRule of `{0}` says `insecureSkipVerify`, so Istio's own cluster carries it out, without `egressctl/tls-legacy`"
    )]
    LegacyUnverified(String),
    /// A cluster of Istio's cannot be told so.
    #[error(
        "the DestinationRule of `{0}` has `egressctl/request-urls`, and nothing that is merged into Istio's cluster rewrites a header"
    )]
    RequestUrls(String),
    /// Istio's own cluster repairs no answers.
    #[error(
        "the DestinationRule of `{0}` asks for answers to be repaired, and Istio's own cluster changes none"
    )]
    Repairs(String),
    /// The network filter is not rendered for Istio.
    #[error(
        "`{host}` has the TCP port {port} with `tls`, and in Istio the filter originates HTTP only"
    )]
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: PortNumber,
    },
    /// The guard is not rendered for Istio.
    #[error(
        "`{0}` is a wildcard: whoever answers for a name in DNS chooses the address, and in Istio nothing here keeps it from private ones"
    )]
    Wildcard(String),
    /// A gateway does not tell the filter which service port was meant.
    #[error(
        "the rules have the HTTP ports {0}, and at a gateway the filter cannot tell them apart"
    )]
    Ports(String),
    /// Istio would read a name otherwise than we do.
    #[error("Istio has no name for the secret `{0}`")]
    Secret(String),
    /// istiod would not give the secrets.
    #[error(
        "the rules name credentials, and Istio gives them only to service accounts that may list Secrets"
    )]
    ServiceAccount,
    /// Kubernetes would keep only one of two.
    #[error("{0} would be rendered twice, and the later would take the place of the earlier")]
    Twice(String),
    /// Kubernetes would not take it.
    #[error(
        "{0} would have {1} bytes, and Kubernetes keeps no resource of more than about {MAX_BYTES}"
    )]
    TooLarge(String, usize),
}

impl Unsupported {
    /// Returns how to fix it.
    pub fn hint(&self) -> &'static str {
        match self {
            Unsupported::Nothing => {
                "give the host a DestinationRule with `tls`, and its port the protocol HTTP"
            }
            Unsupported::NothingToMerge => {
                "give the host a DestinationRule with `tls`, and its port the protocol HTTP or TCP"
            }
            Unsupported::Routed { .. } => {
                "leave out `--way filter`: then Istio's routes stay, and its clusters verify"
            }
            Unsupported::TwoNames { .. } => {
                "give the names that are enough in `tls.subjectAltNames` of the DestinationRule, or render this host with `--way filter`"
            }
            Unsupported::ForwardedFor(_) => {
                "remove the annotation, and the header by a VirtualService: `headers.request.remove: [x-forwarded-for]`"
            }
            Unsupported::Groups(_) => {
                "leave `X25519MLKEM768` out of `tlsDefaults.ecdhCurves` and remove the word, or render this host with `--way filter`"
            }
            Unsupported::LegacyUnverified(_) => {
                "give the server's authority in `caCertificates` in place of `insecureSkipVerify`, or render this host with `--way filter`"
            }
            Unsupported::Repairs(_) | Unsupported::RequestUrls(_) => {
                "remove the annotation, or render this host with `--way filter`"
            }
            Unsupported::Dynamic(_) => "name each host",
            Unsupported::Tcp { .. } => {
                "leave out `--way filter`: Istio's own cluster verifies this port too"
            }
            Unsupported::Wildcard(_) => {
                "name each host, or say `location: MESH_INTERNAL` where private addresses are meant"
            }
            Unsupported::Ports(_) => {
                "render the rules of one port, and those of another for another gateway"
            }
            Unsupported::Secret(_) => {
                "let the name and path be of letters, digits, `/`, `.`, `-` and `_`, and let no credential end with `-cacert`"
            }
            Unsupported::ServiceAccount => {
                "name the workload's with `--service-account`, for example `--service-account sleep`"
            }
            Unsupported::Twice(_) => {
                "give the rules other names, or what is rendered another with `--name`"
            }
            Unsupported::TooLarge(..) => "render the rules in parts, with `--name` for each",
        }
    }
}
