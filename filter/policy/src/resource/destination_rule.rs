//! `DestinationRule`, of which [`DestinationRule`] keeps what the engine honours.

use std::fmt;
use std::time::Duration;

use crate::fields::{Field, Fields};
use crate::host::HostPattern;
use crate::port::PortNumber;
use crate::problem::{Origin, ProblemKind, Severity};
use crate::resource::{Meta, ResourceId, read_meta, text_of};

/// How to reach the services of one host.
///
/// Source: istio/api `networking/v1alpha3/destination_rule.proto`, `DestinationRule`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationRule {
    /// Name, namespace, origin.
    pub meta: Meta,
    /// The host or hosts it is for.
    pub host: HostPattern,
    /// What it says, for all ports and for single ones.
    pub policy: TrafficPolicy,
    /// The namespaces that see it; empty means all.
    pub export_to: Vec<String>,
    /// The labels of the workloads it is for; `None` means all.
    pub selector: Option<Vec<(String, String)>>,
}

/// The settings of a rule, and those of single ports that replace them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrafficPolicy {
    /// How to spread the load.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits and times.
    pub connection_pool: Option<ConnectionPool>,
    /// When to leave an address alone.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the server.
    pub tls: Option<ClientTls>,
    /// Settings of single service ports. An entry replaces the four above as a whole.
    pub port_level: Vec<PortPolicy>,
}

/// The settings of one service port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPolicy {
    /// The service port, never the target port.
    pub port: PortNumber,
    /// Its place in `portLevelSettings`.
    pub index: usize,
    /// Its settings; `port_level` is empty.
    pub policy: TrafficPolicy,
}

/// `tls.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// The server proves who it is.
    Simple,
}

impl TlsMode {
    /// Returns the word that the configuration uses.
    pub fn as_str(self) -> &'static str {
        match self {
            TlsMode::Disable => "DISABLE",
            TlsMode::Simple => "SIMPLE",
        }
    }
}

/// TLS settings towards a server.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// Whether there is TLS.
    pub mode: TlsMode,
    /// The name sent in the ClientHello, when it is not the host's.
    pub sni: Option<String>,
    /// The names of which the certificate must have one.
    pub subject_alt_names: Vec<String>,
    /// The file with the trusted authorities; `None` is the system's.
    pub ca_certificates: Option<String>,
    /// Takes any certificate. Unsafe, and named so.
    pub insecure_skip_verify: bool,
}

impl fmt::Debug for ClientTls {
    /// Leaves out where files are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("mode", &self.mode)
            .field("sni", &self.sni)
            .field("subject_alt_names", &self.subject_alt_names)
            .field(
                "ca_certificates",
                &self.ca_certificates.as_ref().map(|_| ".."),
            )
            .field("insecure_skip_verify", &self.insecure_skip_verify)
            .finish()
    }
}

/// `loadBalancer.simple`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadBalancer {
    /// The address with fewer open requests of two drawn by lot.
    LeastRequest,
    /// Drawn by lot.
    Random,
    /// In turn.
    RoundRobin,
}

/// `connectionPool`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionPool {
    /// For connections.
    pub tcp: TcpPool,
    /// For requests.
    pub http: HttpPool,
}

/// `connectionPool.tcp`. Zero is "not set" in every number, as in Istio.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TcpPool {
    /// Connections at once.
    pub max_connections: Option<u32>,
    /// The time that opening one may take.
    pub connect_timeout: Option<Duration>,
    /// Probes for the other side's life.
    pub keepalive: Option<TcpKeepalive>,
    /// The age at which a connection is closed.
    pub max_connection_duration: Option<Duration>,
    /// The time without traffic after which one is closed; zero is never.
    pub idle_timeout: Option<Duration>,
}

/// `connectionPool.tcp.tcpKeepalive`; what is not set is the system's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TcpKeepalive {
    /// Probes before giving up.
    pub probes: Option<u32>,
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// `h2UpgradePolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum H2UpgradePolicy {
    /// What the two sides agree on.
    #[default]
    Default,
    /// HTTP/1.1 only.
    DoNotUpgrade,
    /// HTTP/2 only.
    Upgrade,
}

/// `connectionPool.http`. Zero is "not set" in every number, as in Istio.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpPool {
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests at once.
    pub max_requests: Option<u32>,
    /// Requests after which a connection is closed.
    pub max_requests_per_connection: Option<u32>,
    /// Retries at once.
    pub max_retries: Option<u32>,
    /// The time without requests after which a connection is closed.
    pub idle_timeout: Option<Duration>,
    /// Which HTTP to speak.
    pub h2_upgrade: H2UpgradePolicy,
}

/// `outlierDetection`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutlierDetection {
    /// Answers of 5xx in a row; zero is off.
    pub consecutive_5xx: Option<u32>,
    /// Answers of 502 to 504 in a row; zero is off.
    pub consecutive_gateway: Option<u32>,
    /// Time between looks.
    pub interval: Option<Duration>,
    /// Least time that an address is left alone.
    pub base_ejection_time: Option<Duration>,
    /// Share of the addresses that may be left alone, in percent.
    pub max_ejection_percent: Option<u32>,
    /// Share of healthy addresses below which all are used, in percent.
    pub min_health_percent: u32,
}

impl DestinationRule {
    pub(crate) const KIND: &'static str = "DestinationRule";

    pub(crate) fn read(root: &Fields<'_>, origin: Origin) -> Option<DestinationRule> {
        let meta = read_meta(root, Self::KIND, origin);
        root.ignore(&["status"]);
        let namespace = meta
            .as_ref()
            .map(|meta| meta.id.namespace.clone())
            .unwrap_or_default();
        let spec = root.require("spec", |field| read_spec(field, &namespace));
        let (meta, spec) = (meta?, spec?);
        Some(DestinationRule { meta, ..spec })
    }
}

fn read_spec(field: Field<'_>, namespace: &str) -> Option<DestinationRule> {
    let fields = field.fields()?;
    let host = fields.require("host", |field| {
        let text = field.text()?;
        // Istio completes a short name with the rule's own namespace.
        // Source: istio/istio `pilot/pkg/model/config.go`, `ResolveShortnameToFQDN`.
        if !text.is_empty() && !text.contains('.') && !text.starts_with('*') {
            let long = format!("{text}.{namespace}.svc.cluster.local");
            return HostPattern::parse(&long).ok().or_else(|| field.host());
        }
        field.host()
    });
    let policy = fields.read("trafficPolicy", |field| {
        let fields = field.fields()?;
        let mut policy = read_policy(&fields);
        if ![
            "loadBalancer",
            "connectionPool",
            "outlierDetection",
            "tls",
            "portLevelSettings",
            "tunnel",
            "proxyProtocol",
            "retryBudget",
        ]
        .iter()
        .any(|name| fields.has(name))
        {
            field.error(ProblemKind::Invalid(
                "traffic policy must have at least one field".to_owned(),
            ));
        }
        fields.read("portLevelSettings", |list| {
            let mut index = 0;
            list.items(|item| {
                policy.port_level.extend(read_port_policy(item, index));
                index += 1;
            });
            Some(())
        });
        fields.not_supported(
            Severity::Error,
            &["tunnel", "proxyProtocol"],
            "the connection would not be made as the rule asks; remove it here",
        );
        fields.not_supported(
            Severity::Warning,
            &["retryBudget"],
            "requests are retried without a budget",
        );
        Some(policy)
    });
    let export_to = fields
        .read("exportTo", |list| Some(list.texts()))
        .unwrap_or_default();
    let selector = fields.read("workloadSelector", |field| {
        let fields = field.fields()?;
        Some(
            fields
                .read("matchLabels", |field| Some(field.labels()))
                .unwrap_or_default(),
        )
    });
    fields.not_supported(
        Severity::Warning,
        &["subsets"],
        "only a VirtualService could choose a subset, and none is read",
    );
    let id = ResourceId {
        kind: DestinationRule::KIND,
        namespace: String::new(),
        name: String::new(),
    };
    let meta = Meta {
        id,
        origin: Origin::default(),
        created: String::new(),
    };
    Some(DestinationRule {
        meta,
        host: host?,
        policy: policy.unwrap_or_default(),
        export_to,
        selector,
    })
}

/// Reads the four settings that a port may have too.
fn read_policy(fields: &Fields<'_>) -> TrafficPolicy {
    TrafficPolicy {
        load_balancer: fields.read("loadBalancer", read_load_balancer),
        connection_pool: fields.read("connectionPool", read_connection_pool),
        outlier_detection: fields.read("outlierDetection", read_outlier_detection),
        tls: fields.read("tls", read_tls),
        port_level: Vec::new(),
    }
}

fn read_port_policy(field: Field<'_>, index: usize) -> Option<PortPolicy> {
    let fields = field.fields()?;
    let port = fields.require("port", |field| {
        let fields = field.fields()?;
        fields.require("number", |field| field.port())
    });
    let policy = read_policy(&fields);
    if !["loadBalancer", "connectionPool", "outlierDetection", "tls"]
        .iter()
        .any(|name| fields.has(name))
    {
        fields.error(
            ProblemKind::Invalid("port traffic policy must have at least one field".to_owned()),
            None,
        );
    }
    Some(PortPolicy {
        port: port?,
        index,
        policy,
    })
}

fn read_tls(field: Field<'_>) -> Option<ClientTls> {
    const MODES: [&str; 4] = ["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"];
    let fields = field.fields()?;
    let mode = fields.read("mode", |field| {
        field
            .word("mode", &MODES, |word| {
                MODES.contains(&word).then(|| word.to_owned())
            })
            .and_then(|word| match word.as_str() {
                "DISABLE" => Some(TlsMode::Disable),
                "SIMPLE" => Some(TlsMode::Simple),
                other => {
                    let kind = ProblemKind::NotSupported(format!("mode `{other}`"));
                    let hint = match other {
                        "ISTIO_MUTUAL" => {
                            "the certificate of an Istio workload is not known here; use SIMPLE"
                        }
                        _ => "client certificates are not presented yet",
                    };
                    field.error_with_hint(kind, hint);
                    None
                }
            })
    });
    let sni = fields.read("sni", |field| {
        let text = text_of(field)?;
        match crate::host::HostName::dns(&text) {
            Ok(name) => Some(name.as_str().to_owned()),
            Err(problem) => {
                field.error_with_hint(
                    ProblemKind::Invalid(problem.to_string()),
                    "the SNI is one DNS name, without a wildcard",
                );
                None
            }
        }
    });
    let mut subject_alt_names = Vec::new();
    fields.read("subjectAltNames", |list| {
        list.items(|item| subject_alt_names.extend(text_of(item)));
        Some(())
    });
    let ca_certificates = fields.read("caCertificates", |field| {
        field
            .text()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    });
    let insecure_skip_verify = fields
        .read("insecureSkipVerify", |field| field.bool())
        .unwrap_or(false);
    if insecure_skip_verify {
        for name in ["caCertificates", "subjectAltNames", "credentialName"] {
            if fields.has(name) {
                let text = "cannot specify CaCertificates or CredentialName or SubjectAltNames when InsecureSkipVerify is set true";
                fields.error_at(
                    name,
                    ProblemKind::Conflict(text.to_owned()),
                    Some("remove one of the two"),
                );
            }
        }
        if mode == Some(TlsMode::Simple) {
            fields.read("insecureSkipVerify", |field| {
                let text = "anyone between here and the server can read and change what is sent"
                    .to_owned();
                field.warning(
                    ProblemKind::Invalid(text),
                    "remove it, and give the server's authority in `caCertificates`",
                );
                Some(())
            });
        }
    }
    fields.not_supported(
        Severity::Error,
        &["credentialName", "clientCertificate", "privateKey", "caCrl"],
        "the server would be reached without it; use SIMPLE with `caCertificates` for now",
    );
    if !fields.has("mode") {
        // Istio reads a missing mode as DISABLE: plaintext, though the author wrote a `tls` block.
        fields.error_at(
            "mode",
            ProblemKind::Missing,
            Some("write `mode: SIMPLE`, or `mode: DISABLE` to send plaintext"),
        );
    }
    let mode = mode?;
    let ca_certificates = ca_certificates.filter(|path| path != "system");
    Some(ClientTls {
        mode,
        sni,
        subject_alt_names,
        ca_certificates,
        insecure_skip_verify,
    })
}

fn read_load_balancer(field: Field<'_>) -> Option<LoadBalancer> {
    const SIMPLE: [&str; 6] = [
        "UNSPECIFIED",
        "LEAST_CONN",
        "RANDOM",
        "PASSTHROUGH",
        "ROUND_ROBIN",
        "LEAST_REQUEST",
    ];
    let fields = field.fields()?;
    fields.not_supported(
        Severity::Warning,
        &[
            "consistentHash",
            "localityLbSetting",
            "zoneAwareLbSetting",
            "warmupDurationSecs",
            "warmup",
        ],
        "the load is spread as `simple` says",
    );
    fields.read("simple", |field| {
        let word = field.word("load balancer", &SIMPLE, |word| {
            SIMPLE.contains(&word).then(|| word.to_owned())
        })?;
        match word.as_str() {
            "RANDOM" => Some(LoadBalancer::Random),
            "ROUND_ROBIN" => Some(LoadBalancer::RoundRobin),
            "LEAST_CONN" | "LEAST_REQUEST" => Some(LoadBalancer::LeastRequest),
            "PASSTHROUGH" => {
                field.warning(
                    ProblemKind::NotSupported("`PASSTHROUGH`".to_owned()),
                    "the host is looked up by DNS instead",
                );
                None
            }
            _ => None,
        }
    })
}

/// Reads a number in which zero stands for "not set".
fn count(field: Field<'_>) -> Option<u32> {
    field
        .number(0, i32::MAX.unsigned_abs().into())
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| *number != 0)
}

/// Reads a duration of at least a millisecond.
fn time(field: Field<'_>) -> Option<Duration> {
    let duration = field.duration()?;
    if duration < Duration::from_millis(1) {
        field.error(ProblemKind::Invalid(
            "duration must be greater than 1ms".to_owned(),
        ));
        return None;
    }
    Some(duration)
}

fn read_connection_pool(field: Field<'_>) -> Option<ConnectionPool> {
    let fields = field.fields()?;
    if !fields.has("tcp") && !fields.has("http") {
        field.error(ProblemKind::Invalid(
            "connection pool must have at least one field".to_owned(),
        ));
    }
    let tcp = fields.read("tcp", |field| {
        let fields = field.fields()?;
        Some(TcpPool {
            max_connections: fields.read("maxConnections", count),
            connect_timeout: fields.read("connectTimeout", time),
            keepalive: fields.read("tcpKeepalive", |field| {
                let fields = field.fields()?;
                Some(TcpKeepalive {
                    probes: fields.read("probes", count),
                    time: fields.read("time", time),
                    interval: fields.read("interval", time),
                })
            }),
            max_connection_duration: fields.read("maxConnectionDuration", time),
            idle_timeout: fields.read("idleTimeout", |field| field.duration()),
        })
    });
    let http = fields.read("http", |field| {
        let fields = field.fields()?;
        fields.not_supported(
            Severity::Warning,
            &[
                "useClientProtocol",
                "maxConcurrentStreams",
                "http2KeepAlive",
            ],
            "the default is used",
        );
        Some(HttpPool {
            max_pending_requests: fields.read("http1MaxPendingRequests", count),
            max_requests: fields.read("http2MaxRequests", count),
            max_requests_per_connection: fields.read("maxRequestsPerConnection", count),
            max_retries: fields.read("maxRetries", count),
            idle_timeout: fields.read("idleTimeout", time),
            h2_upgrade: fields
                .read("h2UpgradePolicy", |field| {
                    field.word(
                        "upgrade policy",
                        &["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"],
                        |word| match word {
                            "DEFAULT" => Some(H2UpgradePolicy::Default),
                            "DO_NOT_UPGRADE" => Some(H2UpgradePolicy::DoNotUpgrade),
                            "UPGRADE" => Some(H2UpgradePolicy::Upgrade),
                            _ => None,
                        },
                    )
                })
                .unwrap_or_default(),
        })
    });
    Some(ConnectionPool {
        tcp: tcp.unwrap_or_default(),
        http: http.unwrap_or_default(),
    })
}

fn read_outlier_detection(field: Field<'_>) -> Option<OutlierDetection> {
    let fields = field.fields()?;
    fields.not_supported(
        Severity::Warning,
        &[
            "consecutiveErrors",
            "splitExternalLocalOriginErrors",
            "consecutiveLocalOriginFailures",
            "outlierDetectionHttpErrorCodes",
        ],
        "use `consecutive5xxErrors` or `consecutiveGatewayErrors`",
    );
    let errors = |field: Field<'_>| {
        field
            .number(0, u32::MAX.into())
            .and_then(|number| u32::try_from(number).ok())
    };
    let percent = |field: Field<'_>| {
        field
            .number(0, 100)
            .and_then(|number| u32::try_from(number).ok())
    };
    Some(OutlierDetection {
        consecutive_5xx: fields.read("consecutive5xxErrors", errors),
        consecutive_gateway: fields.read("consecutiveGatewayErrors", errors),
        interval: fields.read("interval", time),
        base_ejection_time: fields.read("baseEjectionTime", time),
        max_ejection_percent: fields.read("maxEjectionPercent", percent),
        min_health_percent: fields.read("minHealthPercent", percent).unwrap_or(0),
    })
}
