//! The clusters that decisions borrow: TLS intent, endpoints and limits, under one name.

use std::fmt;

use crate::digest::Digest;
use crate::host::{HostName, HostPattern};
use crate::port::PortNumber;
use crate::resource::{
    ConnectionPool, LoadBalancer, Notes, OutlierDetection, ProxyProtocol, RetryBudget, Tunnel,
};
use crate::tls::TlsIntent;

/// The name of a cluster, in the filter, in Envoy and in its statistics. Only this module makes one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Box<str>);

impl ClusterName {
    /// The name of a host's own cluster, as Istio writes it: `outbound|80||edition.cnn.com`, with the name of
    /// the subset between the two bars.
    ///
    /// Source: istio/istio `pilot/pkg/model/service.go`, `BuildSubsetKey`.
    pub(crate) fn own(port: PortNumber, subset: &str, host: &HostPattern) -> Self {
        ClusterName(format!("outbound|{port}|{subset}|{host}").into_boxed_str())
    }

    /// The name of a cluster that hosts share: what they have in common, `shared|SIMPLE|system|auto`.
    pub(crate) fn shared(
        tls: Option<&TlsIntent>,
        upstream: UpstreamProtocol,
        any_name: bool,
        public_only: bool,
    ) -> Self {
        let (mode, common) = match tls {
            None => ("DISABLE", String::new()),
            Some(tls) => (tls.mode.as_str(), tls.common()),
        };
        let whose = match (any_name, public_only) {
            (_, true) => "|public",
            (true, false) => "|internal",
            (false, false) => "",
        };
        ClusterName(format!("shared|{mode}|{common}|{}{whose}", upstream.as_str()).into_boxed_str())
    }

    /// Returns another name, for a cluster beside the one that has this name.
    pub(crate) fn other(&self) -> Self {
        ClusterName(format!("{}~", self.0).into_boxed_str())
    }

    /// Returns the name as it is written everywhere.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is spoken to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum UpstreamProtocol {
    /// HTTP/2 or HTTP/1.1, as ALPN settles it.
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// What the application speaks.
    AsReceived,
    /// The application's own bytes.
    Bytes,
    /// PostgreSQL's protocol in TLS from the first byte, which servers from 17 on take.
    PostgreSql,
}

impl UpstreamProtocol {
    /// Returns a word for names and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            UpstreamProtocol::Auto => "auto",
            UpstreamProtocol::Http1 => "http1",
            UpstreamProtocol::Http2 => "http2",
            UpstreamProtocol::AsReceived => "as-received",
            UpstreamProtocol::Bytes => "bytes",
            UpstreamProtocol::PostgreSql => "postgresql",
        }
    }
}

/// Where a cluster's connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoints {
    /// To the host and port of each request, looked up when one is first needed.
    OfTheRequest,
    /// To these names or addresses.
    Listed {
        /// All of them.
        endpoints: Vec<LbEndpoint>,
        /// They are all addresses, so nothing needs to be looked up.
        fixed: bool,
        /// One address at a time: `DNS_ROUND_ROBIN`.
        one_at_a_time: bool,
    },
}

/// One place that a cluster's connections go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LbEndpoint {
    /// Host or address, or `unix://` and a path.
    pub address: String,
    /// The port; without meaning for a path.
    pub port: PortNumber,
    /// Its share of the load.
    pub weight: u32,
    /// `region/zone/subzone`, or empty.
    pub locality: String,
}

impl LbEndpoint {
    /// Returns the path, where it is a socket of this machine.
    pub fn path(&self) -> Option<&str> {
        self.address.strip_prefix("unix://")
    }
}

impl fmt::Display for LbEndpoint {
    /// Writes `address:port`, without brackets around IPv6, or the path of a socket.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path() {
            Some(path) => f.write_str(path),
            None => write!(f, "{}:{}", self.address, self.port),
        }
    }
}

/// A way to servers, as Envoy will have it under [`Cluster::name`].
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// The host and service port it is for; `None` where hosts share it.
    pub own: Option<(HostPattern, PortNumber)>,
    /// The host that its server is told and verified by, where that is another than its own: a VirtualService led
    /// there, and said so or did not.
    pub told: Option<HostPattern>,
    /// TLS towards the server; `None` sends what the application sent.
    pub tls: Option<TlsIntent>,
    /// `tunnel`: the endpoints are a proxy's, which is asked for another host. TLS, HTTP and limits are those
    /// towards the proxy, and what the application sends goes inside.
    pub tunnel: Option<Box<Tunnel>>,
    /// What is spoken.
    pub upstream: UpstreamProtocol,
    /// Where it leads.
    pub endpoints: Endpoints,
    /// Its hosts are whatever requests name below a wildcard, so there may be any number of them.
    pub any_name: bool,
    /// It never connects to loopback, link-local, private or metadata addresses: its hosts are whatever
    /// requests name, so whoever answers for a name in DNS chooses the address.
    pub public_only: bool,
    /// `loadBalancer`.
    pub load_balancer: Option<Box<LoadBalancer>>,
    /// `connectionPool`.
    pub connection_pool: Option<Box<ConnectionPool>>,
    /// `outlierDetection`.
    pub outlier_detection: Option<Box<OutlierDetection>>,
    /// `proxyProtocol`.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// `retryBudget`.
    pub retry_budget: Option<RetryBudget>,
    /// What annotations say.
    pub notes: Notes,
}

impl Cluster {
    /// Whether each request says where its connection goes.
    pub(crate) fn is_of_the_request(&self) -> bool {
        self.endpoints == Endpoints::OfTheRequest
    }

    /// Returns the host that its server is told, if it is one for all requests. Requests say it where this is `None`.
    pub fn told_host(&self) -> Option<&HostName> {
        let own = self.own.as_ref().map(|(host, _)| host);
        self.told.as_ref().or(own)?.exact()
    }

    /// Returns all of it in one line, for fingerprints.
    pub(crate) fn line(&self) -> String {
        let tls = self
            .tls
            .as_ref()
            .map(|tls| (&tls.sni, &tls.names, tls.mode, tls.common()));
        format!("{tls:?} {:?}", Spelled(self))
    }

    /// Returns a fingerprint that tells clusters of one name apart: rules for several workloads may make more than one.
    pub fn fingerprint(&self) -> Digest {
        Digest::of_text(&self.line())
    }
}

/// A value as fingerprints spell it. The names are those of the first version, whatever fields are called today: a
/// rename must not change the digest by which renderer and filter agree.
struct Spelled<'c, T>(&'c T);

/// All but TLS, which [`Cluster::line`] writes without its secrets.
impl fmt::Debug for Spelled<'_, Cluster> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cluster {
            name,
            own,
            told,
            tls: _,
            tunnel,
            upstream,
            endpoints,
            any_name,
            public_only,
            load_balancer,
            connection_pool,
            outlier_detection,
            proxy_protocol,
            retry_budget,
            notes,
        } = self.0;
        let mut fields = f.debug_struct("Cluster");
        fields.field("name", name).field("own", own);
        if let Some(told) = told {
            fields.field("told", told);
        }
        fields
            .field("tls", &None::<()>)
            .field("tunnel", tunnel)
            .field("speaks", upstream)
            .field("endpoints", &Spelled(endpoints))
            .field("any_name", any_name)
            .field("public_only", public_only)
            .field("load_balancer", load_balancer)
            .field("connection_pool", connection_pool)
            .field("outlier_detection", outlier_detection)
            .field("proxy_protocol", proxy_protocol)
            .field("retry_budget", retry_budget);
        if *notes != Notes::default() {
            fields.field("notes", notes);
        }
        fields.finish()
    }
}

impl fmt::Debug for Spelled<'_, Endpoints> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Endpoints::OfTheRequest => f.write_str("OfTheRequest"),
            Endpoints::Listed {
                endpoints,
                fixed,
                one_at_a_time,
            } => {
                let endpoints: Vec<_> = endpoints.iter().map(Spelled).collect();
                f.debug_struct("Listed")
                    .field("places", &endpoints)
                    .field("fixed", fixed)
                    .field("one_at_a_time", one_at_a_time)
                    .finish()
            }
        }
    }
}

impl fmt::Debug for Spelled<'_, LbEndpoint> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LbEndpoint {
            address,
            port,
            weight,
            locality,
        } = self.0;
        f.debug_struct("Place")
            .field("address", address)
            .field("port", port)
            .field("weight", weight)
            .field("locality", locality)
            .finish()
    }
}
