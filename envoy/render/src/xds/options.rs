//! What rendering takes besides the table.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use egress_filter::{AuthorityMode, MetadataFormat, Repair};
use egress_policy::{PolicyTable, PortNumber, Proxy};

use super::no_proxy::NoProxy;
use super::proxy_url::UpstreamProxy;
use super::secret::Secrets;
use egress_rules::{MeshConfig, VirtualService};

/// What rendering takes besides the table.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the listeners listen.
    pub listen: String,
    /// Other ports to listen on, by service port; zero lets the kernel choose.
    pub ports: Vec<(PortNumber, u16)>,
    /// Where the forward proxy listens, if there is one.
    pub forward_proxy: Option<SocketAddr>,
    /// Where redirected connections come in, if they do.
    pub capture: Option<Capture>,
    /// The proxy that all connections to servers go through, if there is one.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// The hosts that are reached without it.
    pub no_proxy: NoProxy,
    /// The filter.
    pub filter: FilterFile,
    /// The bundle that `system` stands for.
    pub trust_store: String,
    /// Where requests are logged.
    pub access_log: AccessLog,
    /// How they are logged.
    pub format: MetadataFormat,
    /// What upstream is told in `:authority`.
    pub authority: AuthorityMode,
    /// How the names of headers are written that HTTP/1 is spoken with.
    pub header_case: HeaderCase,
    /// Who answers `Expect: 100-continue`.
    pub expect_continue: ExpectContinue,
    /// What is repaired in answers of hosts whose rules say nothing about it.
    pub repair: Repair,
    /// For whom the rules were compiled; the filter compiles them again.
    pub proxy: Proxy,
    /// The tables for other labels of the workload. If there is any, the filter takes the labels of Envoy's node.
    pub workloads: Vec<PolicyTable>,
    /// Where Envoy's admin interface listens.
    pub admin: Admin,
    /// DNS servers to ask instead of the system's.
    pub dns: Vec<(String, u16)>,
    /// The DNS server to ask for names that clients choose, where it is ours: it leaves refused addresses out.
    pub guarded_dns: Option<SocketAddr>,
    /// The machine may reach servers over IPv6.
    pub ipv6: bool,
    /// How much it takes on.
    pub limits: Limits,
    /// Each TCP service has a loopback address of its own; so the rules were compiled.
    pub loopback_vips: bool,
    /// The configuration of the mesh; with it the rules were compiled.
    pub mesh: MeshConfig,
    /// The VirtualServices of the rules, read whole: the table says which of their routes count.
    pub virtual_services: Arc<[VirtualService]>,
    /// The Envoy that is to read the bootstrap.
    pub version: Version,
    /// How it comes by certificates and keys.
    pub secrets: Secrets,
    /// Envoy is given other rules while it runs, so what it keeps for all clusters must not change with them.
    pub reloads: bool,
    /// Call each host's own clusters by what they are, too: then no other is ever put in the place of one, and no
    /// decision meets a cluster that was made for another.
    pub by_content: bool,
}

impl Default for Options {
    /// What `egressctl render envoy` has without flags, but for the wasm module, which has no usual place.
    fn default() -> Self {
        Options {
            listen: "127.0.0.1".to_owned(),
            ports: Vec::new(),
            forward_proxy: None,
            capture: None,
            upstream_proxy: None,
            no_proxy: NoProxy::default(),
            filter: FilterFile::Wasm(String::new()),
            trust_store: "/etc/ssl/certs/ca-certificates.crt".to_owned(),
            access_log: AccessLog::Stdout,
            format: MetadataFormat::Text,
            authority: AuthorityMode::Rewrite,
            header_case: HeaderCase::Lower,
            expect_continue: ExpectContinue::Pass,
            repair: Repair::Default,
            proxy: Proxy::default(),
            workloads: Vec::new(),
            admin: Admin::Pipe("admin.sock".to_owned()),
            dns: Vec::new(),
            guarded_dns: None,
            ipv6: true,
            limits: Limits::default(),
            loopback_vips: false,
            mesh: MeshConfig::default(),
            virtual_services: Arc::default(),
            version: OLDEST,
            secrets: Secrets::AtStart(BTreeMap::new()),
            reloads: false,
            by_content: false,
        }
    }
}

impl Options {
    /// Returns the port to listen on for a service port.
    pub fn listening_port(&self, port: PortNumber) -> u16 {
        let mapped = self.ports.iter().find(|(service, _)| *service == port);
        mapped.map_or(port.get(), |(_, listening)| *listening)
    }

    /// Returns the ports that applications dial in place of others, as far as they are known: the kernel's choice is not.
    pub(super) fn mapped_ports(&self) -> Vec<(PortNumber, u16)> {
        let mut mapped = self.ports.clone();
        mapped.retain(|(service, listening)| *listening != 0 && service.get() != *listening);
        mapped
    }

    /// Whether a service port is listened on. Beside a forward proxy or capture, which lead to all of them, only
    /// those are that were named.
    pub fn listens_on(&self, port: PortNumber) -> bool {
        let led_to = self.forward_proxy.is_some() || self.capture.is_some();
        !led_to || self.ports.iter().any(|(service, _)| *service == port)
    }
}

/// The file of our filter, in one of its forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterFile {
    /// The wasm module, which every worker runs in a VM of its own.
    Wasm(String),
    /// The native module, which Envoy loads into its own process.
    Module(String),
}

impl FilterFile {
    /// Where the file is.
    pub fn path(&self) -> &str {
        let (FilterFile::Wasm(path) | FilterFile::Module(path)) = self;
        path
    }

    /// The word for the form: `wasm` or `module`.
    pub fn form(&self) -> &'static str {
        match self {
            FilterFile::Wasm(_) => "wasm",
            FilterFile::Module(_) => "module",
        }
    }
}

/// The oldest Envoy that loads the native module: 1.38 finds no file of it for connections that are not HTTP.
pub const OLDEST_WITH_MODULE: Version = Version {
    major: 1,
    minor: 39,
};

/// The oldest Envoy in which the native module does all that the wasm module does: 1.39 takes no note of a login that
/// stays with the connection.
pub const MODULE_IS_TOLD_ALL: Version = Version {
    major: 1,
    minor: 40,
};

/// How the names of headers are written where HTTP/1 is spoken. HTTP/2 knows small letters alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderCase {
    /// As they came, both ways, and the reason phrase of an answer with them.
    Preserve,
    /// In small letters.
    Lower,
}

/// Who answers a client that waits for `100 Continue` before it sends a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectContinue {
    /// The server, which may refuse instead. Its other answers before the last, such as `103 Early Hints`, pass too.
    Pass,
    /// Envoy, at once. The server is not told that anybody waits, and none of its answers before the last passes.
    Answer,
}

/// How much an Envoy takes on before it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of applications, all listeners together.
    pub connections: u32,
    /// Bytes of memory that Envoy allocates. Without a limit there is none.
    pub heap: Option<u64>,
}

impl Default for Limits {
    /// What fits a machine of which nothing is known: most let a service open 65,536 files or more, and a connection
    /// takes up to two of them.
    fn default() -> Self {
        Limits {
            connections: 30_000,
            heap: None,
        }
    }
}

/// Where requests are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// To Envoy's standard output.
    Stdout,
    /// To a file.
    File(String),
}

/// Where Envoy's admin interface listens. Whoever reaches it can stop Envoy and read its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admin {
    /// On a socket in a private folder.
    Pipe(String),
    /// On an address.
    Tcp(String, u16),
}

/// Where captured connections come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// The port that the kernel redirects to.
    pub port: PortNumber,
    /// The addresses: one, or one of each version of IP.
    pub addresses: Vec<IpAddr>,
}

impl Capture {
    /// Listens on one address; or where redirected connections of this machine arrive, IPv4 and IPv6.
    pub fn new(address: Option<IpAddr>, port: PortNumber) -> Self {
        let both = || vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Capture {
            port,
            addresses: address.map_or_else(both, |address| vec![address]),
        }
    }

    /// Returns the wildcard address of each version of IP that is captured.
    pub(super) fn wildcards(&self) -> Vec<IpAddr> {
        let wildcard = |address: &IpAddr| match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.addresses.iter().map(wildcard).collect()
    }
}

/// A version of Envoy, as far as rendering depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 1.
    pub major: u32,
    /// For example 40.
    pub minor: u32,
}

/// The oldest Envoy that understands what is rendered: it removes headers by prefix before routing.
pub const OLDEST: Version = Version {
    major: 1,
    minor: 36,
};

/// As `1.40`.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Finds `1.40.0` in a text, such as the answer to `envoy --version`.
    pub fn find(text: &str) -> Option<Version> {
        text.split(|c: char| !c.is_ascii_digit() && c != '.')
            .find_map(|word| {
                let mut parts = word.split('.');
                let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                parts.next()?.parse::<u32>().ok()?;
                Some(Version { major, minor })
            })
    }
}
