//! `trafficPolicy` of a DestinationRule, of a port, and of a subset.

use std::time::Duration;

use crate::fields::{Decimal, Field, Fields};
use crate::host::HostName;
use crate::port::PortNumber;
use crate::problem::{ProblemKind, Severity};
use crate::resource::client_tls::{ClientTls, read_tls};

/// The settings of a rule, and those of single ports that replace them.
///
/// Most rules have one or two of them, so those that are large stand behind a pointer: ten thousand rules are read at
/// once, and each list of them grows by copying.
///
/// Source: istio/api `networking/v1alpha3/destination_rule.proto`, `TrafficPolicy`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrafficPolicy {
    /// How to spread the load.
    pub load_balancer: Option<Box<LoadBalancer>>,
    /// Limits and times.
    pub connection_pool: Option<Box<ConnectionPool>>,
    /// When to leave an address alone.
    pub outlier_detection: Option<Box<OutlierDetection>>,
    /// TLS towards the server.
    pub tls: Option<Box<ClientTls>>,
    /// Settings of single service ports. An entry replaces all the others as a whole.
    pub port_level: Vec<PortPolicy>,
    /// A proxy to go through.
    pub tunnel: Option<Box<Tunnel>>,
    /// The header that tells the server who is calling.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How many retries there may be at once.
    pub retry_budget: Option<RetryBudget>,
}

/// The settings of one service port.
#[derive(Debug, Clone, PartialEq)]
pub struct PortPolicy {
    /// The service port, never the target port.
    pub port: PortNumber,
    /// Its index in `portLevelSettings`.
    pub index: usize,
    /// Its settings: load balancer, connection pool, outlier detection and TLS.
    pub policy: TrafficPolicy,
}

/// `loadBalancer.simple`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SimpleBalancer {
    /// The address with fewer open requests of two drawn by lot.
    #[default]
    LeastRequest,
    /// Drawn by lot.
    Random,
    /// In turn.
    RoundRobin,
    /// The address that the application dialled.
    Passthrough,
}

/// `loadBalancer`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoadBalancer {
    /// `simple`.
    pub simple: SimpleBalancer,
    /// `consistentHash`, which wins over `simple`.
    pub consistent_hash: Option<ConsistentHash>,
    /// `warmup`.
    pub warmup: Option<Warmup>,
}

/// `loadBalancer.consistentHash`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsistentHash {
    /// What of a request is hashed; `None` leaves it to chance.
    pub key: Option<HashKey>,
    /// How addresses are found.
    pub ring: HashRing,
}

/// What of a request is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// A request header.
    Header(String),
    /// A cookie, made where there is none and a time to live is given.
    Cookie {
        /// Its name.
        name: String,
        /// Its path.
        path: String,
        /// Its time to live; zero is a session's.
        ttl: Option<Duration>,
        /// Its attributes.
        attributes: Vec<(String, String)>,
    },
    /// The address of the caller.
    SourceIp,
    /// A query parameter.
    QueryParameter(String),
}

/// How a hash finds an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashRing {
    /// A ring with at least so many places.
    Ring(u64),
    /// Maglev with a table of so many places.
    Maglev(u64),
}

/// `loadBalancer.warmup`.
#[derive(Debug, Clone, PartialEq)]
pub struct Warmup {
    /// How long a new address is spared.
    pub duration: Duration,
    /// The share it begins with, in percent.
    pub minimum_percent: Decimal,
    /// How the share grows: 1 is linear.
    pub aggression: Decimal,
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
    /// Speak what the application speaks.
    pub use_client_protocol: bool,
    /// Requests at once on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// Pings on HTTP/2 connections: how often, and how long to wait.
    pub http2_keepalive: Option<(Duration, Duration)>,
}

/// `outlierDetection`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutlierDetection {
    /// Answers of 5xx in a row; zero is off.
    pub consecutive_5xx: Option<u32>,
    /// Answers of 502 to 504 in a row; zero is off.
    pub consecutive_gateway: Option<u32>,
    /// Failures on our side in a row, counted apart from the server's answers.
    pub consecutive_local: Option<u32>,
    /// Whether our failures are counted apart.
    pub split: bool,
    /// Time between looks.
    pub interval: Option<Duration>,
    /// Least time that an address is left alone.
    pub base_ejection_time: Option<Duration>,
    /// Share of the addresses that may be left alone, in percent.
    pub max_ejection_percent: Option<u32>,
    /// Share of healthy addresses below which all are used, in percent.
    pub min_health_percent: u32,
    /// The statuses that count as failures; empty are those of 5xx.
    pub error_codes: Vec<u16>,
}

/// `tunnel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// With POST rather than CONNECT.
    pub post: bool,
    /// The host or address that the proxy is asked for.
    pub host: String,
    /// Its port.
    pub port: PortNumber,
}

impl Tunnel {
    /// Returns the word of `protocol`.
    pub fn method(&self) -> &'static str {
        if self.post { "POST" } else { "CONNECT" }
    }

    /// Returns what the proxy is asked for, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// `proxyProtocol.version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// In text.
    V1,
    /// In bytes.
    V2,
}

/// `retryBudget`.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryBudget {
    /// Retries at once, in percent of the requests at once.
    pub percent: Decimal,
    /// So many are always allowed.
    pub min_concurrency: u32,
}

const SETTINGS: [&str; 4] = ["loadBalancer", "connectionPool", "outlierDetection", "tls"];

/// Reads the policy of a rule or of a subset.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateTrafficPolicy`.
pub(super) fn read_policy(field: Field<'_>, namespace: &str) -> Option<TrafficPolicy> {
    let fields = field.fields()?;
    let mut policy = read_settings(&fields, namespace);
    let whole = [
        "portLevelSettings",
        "tunnel",
        "proxyProtocol",
        "retryBudget",
    ];
    if !SETTINGS.iter().chain(&whole).any(|name| fields.has(name)) {
        field.error(ProblemKind::Invalid(
            "traffic policy must have at least one field".to_owned(),
        ));
    }
    fields.read("portLevelSettings", |list| {
        let mut index = 0;
        policy.port_level.reserve_exact(list.count());
        list.items(|item| {
            policy
                .port_level
                .extend(read_port_policy(item, index, namespace));
            index += 1;
        });
        Some(())
    });
    policy.tunnel = fields.read("tunnel", read_tunnel).map(Box::new);
    policy.proxy_protocol = fields.read("proxyProtocol", |field| {
        let fields = field.fields()?;
        let version = fields.read("version", |field| {
            field.word("proxy protocol version", &["V1", "V2"], |word| match word {
                "V1" => Some(ProxyProtocol::V1),
                "V2" => Some(ProxyProtocol::V2),
                _ => None,
            })
        });
        Some(version.unwrap_or(ProxyProtocol::V1))
    });
    if policy.tunnel.is_some() && policy.proxy_protocol.is_some() {
        let text = "tunnel and proxyProtocol must not be set together".to_owned();
        fields.error_at(
            "tunnel",
            ProblemKind::Conflict(text),
            Some("remove one of the two"),
        );
    }
    policy.retry_budget = fields.read("retryBudget", |field| {
        let fields = field.fields()?;
        fields.not_supported(
            Severity::Warning,
            &["budgetInterval"],
            "Envoy counts the requests of the moment",
        );
        Some(RetryBudget {
            percent: fields
                .read("percent", |field| field.decimal(Some(100)))
                .unwrap_or(Decimal(20.0)),
            min_concurrency: fields.read("minRetryConcurrency", unsigned).unwrap_or(3),
        })
    });
    Some(policy)
}

/// Reads the four settings that a port may have too.
fn read_settings(fields: &Fields<'_>, namespace: &str) -> TrafficPolicy {
    TrafficPolicy {
        load_balancer: fields
            .read("loadBalancer", read_load_balancer)
            .map(Box::new),
        connection_pool: fields
            .read("connectionPool", read_connection_pool)
            .map(Box::new),
        outlier_detection: fields
            .read("outlierDetection", read_outlier_detection)
            .map(Box::new),
        tls: fields
            .read("tls", |field| read_tls(field, namespace))
            .map(Box::new),
        ..TrafficPolicy::default()
    }
}

/// Reads what a mesh may give to rules that say nothing of it.
pub(crate) fn read_limits(
    fields: &Fields<'_>,
) -> (Option<ConnectionPool>, Option<OutlierDetection>) {
    let pool = fields.read("connectionPool", read_connection_pool);
    (
        pool,
        fields.read("outlierDetection", read_outlier_detection),
    )
}

fn read_port_policy(field: Field<'_>, index: usize, namespace: &str) -> Option<PortPolicy> {
    let fields = field.fields()?;
    let port = fields.require("port", |field| {
        let fields = field.fields()?;
        fields.require("number", |field| field.port())
    });
    let policy = read_settings(&fields, namespace);
    if !SETTINGS.iter().any(|name| fields.has(name)) {
        field.error(ProblemKind::Invalid(
            "port traffic policy must have at least one field".to_owned(),
        ));
    }
    Some(PortPolicy {
        port: port?,
        index,
        policy,
    })
}

fn read_tunnel(field: Field<'_>) -> Option<Tunnel> {
    let fields = field.fields()?;
    let post = fields.read("protocol", |field| {
        let text = field.text()?;
        match text {
            "" | "CONNECT" => Some(false),
            "POST" => Some(true),
            _ => {
                field.error(ProblemKind::Invalid(
                    "tunnel protocol must be \"CONNECT\" or \"POST\"".to_owned(),
                ));
                None
            }
        }
    });
    let host = fields.require("targetHost", |field| {
        let text = field.text()?;
        if let Ok(address) = text.parse::<std::net::IpAddr>() {
            return Some(address.to_string());
        }
        match HostName::dns(text) {
            Ok(name) => Some(name.as_str().to_owned()),
            Err(problem) => {
                let text =
                    format!("tunnel target host must be valid FQDN or IP address: {problem}");
                field.error(ProblemKind::Invalid(text));
                None
            }
        }
    });
    let port = fields.require("targetPort", |field| field.port());
    Some(Tunnel {
        post: post.unwrap_or(false),
        host: host?,
        port: port?,
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
    let simple = fields.read("simple", |field| {
        field.word("load balancer", &SIMPLE, |word| {
            Some(match word {
                "RANDOM" => SimpleBalancer::Random,
                "ROUND_ROBIN" => SimpleBalancer::RoundRobin,
                "PASSTHROUGH" => SimpleBalancer::Passthrough,
                "UNSPECIFIED" | "LEAST_CONN" | "LEAST_REQUEST" => SimpleBalancer::LeastRequest,
                _ => return None,
            })
        })
    });
    let consistent_hash = fields.read("consistentHash", read_consistent_hash);
    one_of(&fields, &["simple", "consistentHash", "backendUtilization"]);
    fields.not_supported(
        Severity::Warning,
        &["backendUtilization"],
        "servers tell nothing of their load here, so the one with fewer open requests of two is taken",
    );
    if fields.has("localityLbSetting") && fields.has("zoneAwareLbSetting") {
        let text = "only one of localityLbSetting and zoneAwareLbSetting can be set".to_owned();
        fields.error_at("zoneAwareLbSetting", ProblemKind::Conflict(text), None);
    }
    let hint = "where this proxy runs is not known here, so all localities are alike";
    fields.not_supported(
        Severity::Warning,
        &["localityLbSetting", "zoneAwareLbSetting"],
        hint,
    );
    if fields.has("warmup") && fields.has("warmupDurationSecs") {
        let text = "only one of warmupDurationSecs or warmup can be set".to_owned();
        fields.error_at(
            "warmupDurationSecs",
            ProblemKind::Conflict(text),
            Some("it is deprecated; keep `warmup`"),
        );
    }
    let old = fields.read("warmupDurationSecs", |field| field.duration());
    let old = old.map(|duration| Warmup {
        duration,
        minimum_percent: Decimal(10.0),
        aggression: Decimal(1.0),
    });
    let warmup = fields.read("warmup", |field| {
        let fields = field.fields()?;
        let duration = fields.require("duration", |field| field.duration());
        let minimum_percent = fields.read("minimumPercent", |field| field.decimal(Some(100)));
        let aggression = fields.read("aggression", |field| {
            let number = field.decimal(None)?;
            if number.0 == 0.0 {
                field.error(ProblemKind::Invalid(
                    "aggression should be greater than 0".to_owned(),
                ));
                return None;
            }
            Some(number)
        });
        let (minimum_percent, aggression) = (
            minimum_percent.unwrap_or(Decimal(10.0)),
            aggression.unwrap_or(Decimal(1.0)),
        );
        Some(Warmup {
            duration: duration?,
            minimum_percent,
            aggression,
        })
    });
    Some(LoadBalancer {
        simple: simple.unwrap_or_default(),
        consistent_hash,
        warmup: warmup.or(old),
    })
}

/// Reports fields of which the schema lets one stand.
fn one_of(fields: &Fields<'_>, names: &[&'static str]) {
    let mut given = names.iter().filter(|name| fields.has(name));
    if let (Some(first), Some(second)) = (given.next(), given.next()) {
        let text = format!("only one of `{first}` and `{second}` can be set");
        fields.error_at(
            second,
            ProblemKind::Conflict(text),
            Some("remove one of the two"),
        );
    }
}

fn read_consistent_hash(field: Field<'_>) -> Option<ConsistentHash> {
    let fields = field.fields()?;
    let header = fields.read("httpHeaderName", |field| {
        field.text().map(|text| HashKey::Header(text.to_owned()))
    });
    let cookie = fields.read("httpCookie", |field| {
        let fields = field.fields()?;
        let name = fields.require("name", |field| {
            let text = field.text()?;
            if text.is_empty() {
                field.error(ProblemKind::Invalid(
                    "name required for HttpCookie".to_owned(),
                ));
                return None;
            }
            Some(text.to_owned())
        });
        let path = fields
            .read("path", |field| field.text().map(str::to_owned))
            .unwrap_or_default();
        let ttl = fields.read("ttl", |field| field.duration());
        let mut attributes: Vec<(String, String)> = Vec::new();
        fields.read("attributes", |list| {
            list.items(|item| {
                let Some(fields) = item.fields() else { return };
                let name = fields
                    .read("name", |field| field.text().map(str::to_owned))
                    .unwrap_or_default();
                let value = fields
                    .read("value", |field| field.text().map(str::to_owned))
                    .unwrap_or_default();
                if name.is_empty() {
                    item.error(ProblemKind::Invalid(
                        "cookie attribute name cannot be empty".to_owned(),
                    ));
                } else if attributes.iter().any(|(other, _)| *other == name) {
                    item.error(ProblemKind::Conflict(format!(
                        "duplicate cookie attribute name: {name}"
                    )));
                } else {
                    attributes.push((name, value));
                }
            });
            Some(())
        });
        Some(HashKey::Cookie {
            name: name?,
            path,
            ttl,
            attributes,
        })
    });
    let source = fields
        .read("useSourceIp", |field| field.bool())
        .unwrap_or(false)
        .then_some(HashKey::SourceIp);
    let parameter = fields.read("httpQueryParameterName", |field| {
        field
            .text()
            .map(|text| HashKey::QueryParameter(text.to_owned()))
    });
    let old = fields.read("minimumRingSize", |field| {
        let hint = "use `ringHash.minimumRingSize`";
        field.warning(
            ProblemKind::Invalid("consistent hash MinimumRingSize is deprecated".to_owned()),
            hint,
        );
        field.number(0, 8_388_608)
    });
    let ring = fields.read("ringHash", |field| {
        let fields = field.fields()?;
        Some(
            fields
                .read("minimumRingSize", |field| field.number(0, 8_388_608))
                .unwrap_or(0),
        )
    });
    let maglev = fields.read("maglev", |field| {
        let fields = field.fields()?;
        fields
            .read("tableSize", |field| {
                let size = field.number(0, u64::MAX)?;
                let problem = match size {
                    0 => "tableSize must be set for maglev",
                    5_000_011.. => "tableSize must be less than 5000011",
                    size if !is_prime(size) => "tableSize must be a prime number",
                    _ => return Some(size),
                };
                field.error(ProblemKind::Invalid(problem.to_owned()));
                None
            })
            .or(Some(65_537))
    });
    if old.is_some() && (ring.is_some() || maglev.is_some()) {
        let text = "only one of MinimumRingSize or Maglev/Ringhash can be specified".to_owned();
        fields.error_at(
            "minimumRingSize",
            ProblemKind::Conflict(text),
            Some("it is deprecated; remove it"),
        );
    }
    let key = header.or(cookie).or(source).or(parameter);
    let ring = match (maglev, ring, old) {
        (Some(size), ..) => HashRing::Maglev(size),
        (None, Some(size), _) | (None, None, Some(size)) if size > 0 => HashRing::Ring(size),
        _ => HashRing::Ring(1024),
    };
    Some(ConsistentHash { key, ring })
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

fn unsigned(field: Field<'_>) -> Option<u32> {
    field
        .number(0, u32::MAX.into())
        .and_then(|number| u32::try_from(number).ok())
}

/// Reads a number in which zero stands for "not set".
fn count(field: Field<'_>) -> Option<u32> {
    number(field).filter(|number| *number != 0)
}

fn number(field: Field<'_>) -> Option<u32> {
    field
        .number(0, i32::MAX.unsigned_abs().into())
        .and_then(|number| u32::try_from(number).ok())
}

/// Reads a duration of which the schema asks for a millisecond at least.
fn keepalive(field: Field<'_>) -> Option<Duration> {
    let duration = field.duration()?;
    if duration < Duration::from_millis(1) {
        field.error(ProblemKind::Invalid(
            "must be a valid duration greater than 1ms".to_owned(),
        ));
        return None;
    }
    Some(duration)
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
    if duration.subsec_nanos() % 1_000_000 != 0 {
        field.error(ProblemKind::Invalid(
            "only durations to ms precision are supported".to_owned(),
        ));
        return None;
    }
    Some(duration)
}

/// Reads `connectionPool`.
pub fn read_connection_pool(field: Field<'_>) -> Option<ConnectionPool> {
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
                    probes: fields
                        .read("probes", unsigned)
                        .filter(|probes| *probes != 0),
                    time: fields.read("time", keepalive),
                    interval: fields.read("interval", keepalive),
                })
            }),
            max_connection_duration: fields.read("maxConnectionDuration", time),
            idle_timeout: fields.read("idleTimeout", |field| field.duration()),
        })
    });
    let http = fields.read("http", read_http_pool);
    Some(ConnectionPool {
        tcp: tcp.unwrap_or_default(),
        http: http.unwrap_or_default(),
    })
}

fn read_http_pool(field: Field<'_>) -> Option<HttpPool> {
    const POLICIES: [&str; 3] = ["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"];
    let fields = field.fields()?;
    let h2_upgrade = fields.read("h2UpgradePolicy", |field| {
        field.word("upgrade policy", &POLICIES, |word| match word {
            "DEFAULT" => Some(H2UpgradePolicy::Default),
            "DO_NOT_UPGRADE" => Some(H2UpgradePolicy::DoNotUpgrade),
            "UPGRADE" => Some(H2UpgradePolicy::Upgrade),
            _ => None,
        })
    });
    let h2_upgrade = h2_upgrade.unwrap_or_default();
    let use_client_protocol = fields
        .read("useClientProtocol", |field| field.bool())
        .unwrap_or(false);
    if use_client_protocol && h2_upgrade == H2UpgradePolicy::Upgrade {
        let text =
            "use client protocol must not be true when H2UpgradePolicy is UPGRADE".to_owned();
        fields.error_at(
            "useClientProtocol",
            ProblemKind::Conflict(text),
            Some("remove one of the two"),
        );
    }
    let http2_keepalive = fields.read("http2KeepAlive", |field| {
        let fields = field.fields()?;
        let needed = |name: &'static str, text: &str| {
            if !fields.has(name) {
                fields.error_at(name, ProblemKind::Invalid(text.to_owned()), None);
            }
            fields.read(name, time)
        };
        let interval = needed("interval", "http2 keepalive interval is required");
        let timeout = needed("timeout", "http2 keepalive timeout is required");
        Some((interval?, timeout?))
    });
    Some(HttpPool {
        max_pending_requests: fields.read("http1MaxPendingRequests", count),
        max_requests: fields.read("http2MaxRequests", count),
        max_requests_per_connection: fields.read("maxRequestsPerConnection", count),
        max_retries: fields.read("maxRetries", count),
        idle_timeout: fields.read("idleTimeout", time),
        h2_upgrade,
        use_client_protocol,
        max_concurrent_streams: fields.read("maxConcurrentStreams", count),
        http2_keepalive,
    })
}

fn read_outlier_detection(field: Field<'_>) -> Option<OutlierDetection> {
    let fields = field.fields()?;
    fields.read("consecutiveErrors", |field| {
        if field.integer()? != 0 {
            let text = "outlier detection consecutive errors is deprecated".to_owned();
            field.warning(
                ProblemKind::Invalid(text),
                "use consecutiveGatewayErrors or consecutive5xxErrors instead",
            );
        }
        Some(())
    });
    let percent = |field: Field<'_>| {
        let number = field.integer()?;
        if !(0..=100).contains(&number) {
            field.error(ProblemKind::Invalid(format!(
                "percentage {number} is not in range 0..100"
            )));
            return None;
        }
        u32::try_from(number).ok()
    };
    let split = fields
        .read("splitExternalLocalOriginErrors", |field| field.bool())
        .unwrap_or(false);
    let consecutive_local = fields.read("consecutiveLocalOriginFailures", unsigned);
    if consecutive_local.is_some_and(|count| count > 0) && !split {
        let text = "outlier detection consecutive local origin failures is specified, but split external local origin errors is set to false";
        let hint = "set `splitExternalLocalOriginErrors: true`";
        fields.error_at(
            "consecutiveLocalOriginFailures",
            ProblemKind::Conflict(text.to_owned()),
            Some(hint),
        );
    }
    let mut error_codes = Vec::new();
    fields.read("outlierDetectionHttpErrorCodes", |list| {
        list.items(|item| {
            error_codes.extend(
                item.number(100, 599)
                    .and_then(|code| u16::try_from(code).ok()),
            )
        });
        Some(())
    });
    Some(OutlierDetection {
        consecutive_5xx: fields.read("consecutive5xxErrors", unsigned),
        consecutive_gateway: fields.read("consecutiveGatewayErrors", unsigned),
        consecutive_local,
        split,
        interval: fields.read("interval", time),
        base_ejection_time: fields.read("baseEjectionTime", time),
        max_ejection_percent: fields.read("maxEjectionPercent", percent),
        min_health_percent: fields.read("minHealthPercent", percent).unwrap_or(0),
        error_codes,
    })
}
