//! `ServiceEntry`: a service outside, with its hosts and ports.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::fields::{Field, Fields};
use crate::host::{HostName, HostPattern, InvalidHost};
use crate::node::Node;
use crate::port::{PortNumber, Protocol, ProtocolClass};
use crate::problem::{Origin, ProblemKind, Segment};
use crate::resource::meta::{Meta, is_label, read_export_to, read_labels, read_meta, text_of};

/// A service outside, with its hosts and ports.
///
/// Source: istio/api `networking/v1alpha3/service_entry.proto`, `ServiceEntry`.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceEntry {
    /// Name, namespace, origin.
    pub meta: Meta,
    /// The names that applications use; each is a service of its own.
    pub hosts: Vec<HostPattern>,
    /// The addresses by which connections are told apart.
    pub addresses: Vec<Address>,
    /// The ports that applications use. Most entries have those of the one before them, and share them.
    pub ports: Arc<Vec<ServicePort>>,
    /// How an address is found.
    pub resolution: Resolution,
    /// Where the service really is, when that is not its host.
    pub endpoints: Vec<Endpoint>,
    /// The labels of the workloads that are its endpoints; `None` where `endpoints` says it.
    pub workload_selector: Option<Vec<(String, String)>>,
    /// Whether it is part of the mesh: `location: MESH_INTERNAL`.
    pub internal: bool,
    /// The namespaces that see it; empty means all.
    pub export_to: Vec<String>,
    /// The names that the server's certificate may have, when the DestinationRule gives none.
    pub subject_alt_names: Vec<String>,
}

/// An address or a range of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address, or the first of the range.
    pub ip: IpAddr,
    /// The number of leading bits that all have in common, where it is a range.
    pub prefix: Option<u8>,
}

impl Address {
    /// Reads `192.0.2.1` or `192.0.2.0/24`.
    ///
    /// # Errors
    /// When it is neither; the message repeats it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            None => text
                .parse()
                .map(|ip| Address { ip, prefix: None })
                .map_err(|_| format!("{text} is not a valid IP")),
            Some((ip, prefix)) => {
                let wrong = || format!("{text} is not a valid CIDR block");
                let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
                let prefix: u8 = Some(prefix)
                    .filter(|prefix| prefix.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|prefix| prefix.parse().ok())
                    .ok_or_else(wrong)?;
                let longest = if ip.is_ipv4() { 32 } else { 128 };
                if prefix > longest {
                    Err(wrong())
                } else {
                    Ok(Address {
                        ip,
                        prefix: Some(prefix),
                    })
                }
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            Some(prefix) => write!(f, "{}/{prefix}", self.ip),
            None => self.ip.fmt(f),
        }
    }
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The port that applications dial, and that `portLevelSettings` speak of.
    pub number: PortNumber,
    /// Its name, to which endpoints refer.
    pub name: String,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// The port really dialled: `targetPort`, or the number.
    pub target: PortNumber,
    /// Its index in `ports`.
    pub index: usize,
}

/// How the addresses of a service are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resolution {
    /// The address that the application dialled.
    #[default]
    None,
    /// The addresses of `endpoints`.
    Static,
    /// DNS, all addresses.
    Dns,
    /// DNS, one address at a time.
    DnsRoundRobin,
    /// DNS for the host that the request names, behind a wildcard.
    DynamicDns,
}

crate::words! {
    /// The words that the configuration uses.
    Resolution {
        None "NONE",
        Static "STATIC",
        Dns "DNS",
        DnsRoundRobin "DNS_ROUND_ROBIN",
        DynamicDns "DYNAMIC_DNS",
    }
}

/// One address of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// An IP address, with DNS resolution a name, or `unix://` and a path.
    pub address: String,
    /// Ports by the name of the service's port; others keep the service's target port.
    pub ports: Vec<(String, PortNumber)>,
    /// Its labels, by which subsets choose.
    pub labels: Vec<(String, String)>,
    /// `region/zone/subzone`, or empty.
    pub locality: String,
    /// Its share of the load, against the others; 1 when not given.
    pub weight: u32,
    /// The Kubernetes account that it runs as, whose name its certificate may have.
    pub service_account: Option<String>,
}

impl ServiceEntry {
    pub(crate) const KIND: &'static str = "ServiceEntry";

    pub(crate) fn read(root: &Fields<'_>, origin: Origin) -> Option<ServiceEntry> {
        let meta = read_meta(root, Self::KIND, origin, true);
        root.ignore(&["status"]);
        root.require("spec", |field| read_spec(field, meta))
    }

    /// Returns whether a host alone tells this service from others: nobody else says where it is.
    pub fn has_own_endpoints(&self) -> bool {
        !self.endpoints.is_empty()
            || self.workload_selector.is_some()
            || self.resolution == Resolution::Static
    }
}

/// Source: istio/istio `pkg/config/validation/validation.go`, `ValidateServiceEntry`.
fn read_spec(field: Field<'_>, meta: Meta) -> Option<ServiceEntry> {
    let fields = field.fields()?;
    let hosts = read_hosts(&fields);
    let ports = read_ports(&fields);
    let resolution = fields.read("resolution", |field| {
        field.word("resolution", &Resolution::NAMES, Resolution::parse)
    });
    let unreadable = fields.has("resolution") && resolution.is_none();
    let resolution = resolution.unwrap_or_default();
    let addresses = read_addresses(&fields, resolution, unreadable);
    let workload_selector = fields.read("workloadSelector", |field| {
        let fields = field.fields()?;
        let labels = fields
            .read("labels", |field| Some(read_labels(field)))
            .unwrap_or_default();
        if labels.is_empty() && !fields.given("labels") {
            let text = "service entry: workload selector specified without labels".to_owned();
            field.warning(
                ProblemKind::Invalid(text),
                "it applies to all workloads of the namespace; give `labels`",
            );
        }
        Some(labels)
    });
    if fields.has("workloadSelector") && fields.has("endpoints") {
        let text =
            "only one of WorkloadSelector or Endpoints is allowed in Service Entry".to_owned();
        fields.error_at(
            "endpoints",
            ProblemKind::Conflict(text),
            Some("remove one of the two"),
        );
    }
    let mut endpoints = Vec::new();
    fields.read("endpoints", |list| {
        endpoints.reserve_exact(list.count());
        list.items(|item| endpoints.extend(read_endpoint(item, resolution, &ports)));
        Some(())
    });
    let internal = fields.read("location", |field| {
        field.word(
            "location",
            &["MESH_EXTERNAL", "MESH_INTERNAL"],
            |word| match word {
                "MESH_EXTERNAL" => Some(false),
                "MESH_INTERNAL" => Some(true),
                _ => None,
            },
        )
    });
    let export_to = read_export_to(&fields, &meta.id.namespace, true);
    let mut subject_alt_names = Vec::new();
    fields.read("subjectAltNames", |list| {
        list.items(|item| subject_alt_names.extend(text_of(item)));
        Some(())
    });
    let entry = ServiceEntry {
        meta,
        hosts,
        addresses,
        ports: ports.into(),
        resolution,
        endpoints,
        workload_selector,
        internal: internal.unwrap_or(false),
        export_to,
        subject_alt_names,
    };
    if !unreadable {
        check_resolution(&fields, &entry);
    }
    Some(entry)
}

fn read_hosts(fields: &Fields<'_>) -> Vec<HostPattern> {
    let mut hosts = Vec::new();
    fields.require("hosts", |list| {
        hosts.reserve_exact(list.count());
        list.items(|item| match item.host() {
            Some(HostPattern::Any) => item.error_with_hint(
                ProblemKind::Invalid(InvalidHost::Everything.to_string()),
                "name the hosts, or use outboundTrafficPolicy mode ALLOW_ANY",
            ),
            Some(host) => hosts.push(host),
            None => {}
        });
        if matches!(list.value, Node::List(items) if items.is_empty()) {
            list.error(ProblemKind::Invalid(
                "service entry must have at least one host".to_owned(),
            ));
        }
        Some(())
    });
    hosts
}

fn read_ports(fields: &Fields<'_>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    let mut index = 0;
    fields.read("ports", |list| {
        ports.reserve_exact(list.count());
        list.items(|item| {
            let port = read_port(item, index);
            index += 1;
            let Some(port) = port else { return };
            if ports.iter().any(|other| other.number == port.number) {
                item.error(ProblemKind::Conflict(format!(
                    "service entry port {} already defined",
                    port.number
                )));
            } else if ports.iter().any(|other| other.name == port.name) {
                let text = format!("service entry port name \"{}\" already defined", port.name);
                item.error(ProblemKind::Conflict(text));
            } else {
                ports.push(port);
            }
        });
        Some(())
    });
    ports
}

fn read_addresses(fields: &Fields<'_>, resolution: Resolution, unreadable: bool) -> Vec<Address> {
    let mut addresses = Vec::new();
    fields.read("addresses", |list| {
        list.items(|item| {
            let Some(text) = item.text() else { return };
            match Address::parse(text) {
                Err(problem) => item.error(ProblemKind::Invalid(problem)),
                Ok(address) => {
                    let fits = matches!(resolution, Resolution::None | Resolution::Static);
                    if address.prefix.is_some() && !fits && !unreadable {
                        let text =
                            "CIDR addresses are allowed only for NONE/STATIC resolution types"
                                .to_owned();
                        item.error(ProblemKind::Invalid(text));
                    } else {
                        addresses.push(address);
                    }
                }
            }
        });
        Some(())
    });
    addresses
}

/// Checks what the resolution asks of hosts, endpoints and ports.
fn check_resolution(fields: &Fields<'_>, entry: &ServiceEntry) {
    let invalid = |name: &str, text: String, hint: Option<&str>| {
        fields.error_at(name, ProblemKind::Invalid(text), hint);
    };
    let wildcard = entry.hosts.iter().find(|host| host.exact().is_none());
    let partial = entry
        .hosts
        .iter()
        .find(|host| matches!(host, HostPattern::Suffix(s) if !s.starts_with('.')));
    if let Some(host) = partial.filter(|_| entry.resolution != Resolution::DynamicDns) {
        let text = format!("partial wildcard \"{host}\" not allowed");
        fields.warning_at(
            "hosts",
            ProblemKind::Invalid(text),
            "Istio's web hook warns of it; write `*.` and a domain",
        );
    }
    let mode = entry.resolution.as_str();
    match entry.resolution {
        Resolution::None => {
            if fields.has("endpoints") {
                let hint = "set `resolution: STATIC` for addresses, or `DNS` for names";
                let text = "no endpoints should be provided for resolution type none".to_owned();
                invalid("endpoints", text, Some(hint));
            }
            if fields.has("workloadSelector") {
                let text =
                    "workloadSelector should not be set when resolution mode is NONE".to_owned();
                fields.warning_at(
                    "workloadSelector",
                    ProblemKind::Invalid(text),
                    "set `resolution: STATIC`",
                );
            }
        }
        Resolution::Static => {}
        Resolution::Dns | Resolution::DnsRoundRobin => {
            if let Some(host) =
                wildcard.filter(|_| !fields.has("endpoints") && !fields.has("workloadSelector"))
            {
                let text = format!(
                    "hosts must be FQDN or contain only prefix wildcards if no endpoints are provided for resolution mode {mode}, not `{host}`"
                );
                invalid(
                    "hosts",
                    text,
                    Some("set `resolution: DYNAMIC_DNS` for wildcard hosts"),
                );
            }
            if entry.resolution == Resolution::DnsRoundRobin && entry.endpoints.len() > 1 {
                let text = format!("there must only be 0 or 1 endpoint for resolution mode {mode}");
                invalid("endpoints", text, Some("set `resolution: DNS` for several"));
            }
            let tcp = entry
                .ports
                .iter()
                .any(|port| port.protocol.class() != ProtocolClass::Http);
            if !entry.addresses.is_empty() && tcp && entry.hosts.len() > 1 {
                let text = "service entry can not have more than one host specified simultaneously with address and tcp port";
                let kind = ProblemKind::Invalid(text.to_owned());
                fields.warning_at("hosts", kind, "give each host a ServiceEntry of its own");
            }
        }
        Resolution::DynamicDns => check_dynamic(fields, entry),
    }
    let other = |port: &&ServicePort| {
        !matches!(
            port.protocol.class(),
            ProtocolClass::Http | ProtocolClass::Tls
        )
    };
    if entry.resolution != Resolution::None
        && entry.hosts.len() > 1
        && entry.ports.iter().any(|port| other(&port))
    {
        let text = "multiple hosts provided with non-HTTP, non-TLS ports".to_owned();
        invalid(
            "hosts",
            text,
            Some("their connections could not be told apart; use a ServiceEntry for each"),
        );
    }
}

fn check_dynamic(fields: &Fields<'_>, entry: &ServiceEntry) {
    let invalid = |name: &str, text: &str, hint: Option<&str>| {
        fields.error_at(name, ProblemKind::Invalid(text.to_owned()), hint);
    };
    if let Some(host) = entry.hosts.iter().find(|host| host.exact().is_some()) {
        let text = format!("host must be wildcarded for resolution mode DYNAMIC_DNS, not `{host}`");
        invalid("hosts", &text, Some("set `resolution: DNS` for this host"));
    }
    if fields.has("addresses") {
        let text = "addresses cannot be set for resolution type DYNAMIC_DNS";
        invalid(
            "addresses",
            text,
            Some("the request's host says where to go"),
        );
    }
    if fields.has("endpoints") {
        let text = "endpoints cannot be set for resolution type DYNAMIC_DNS";
        invalid(
            "endpoints",
            text,
            Some("the request's host says where to go"),
        );
    }
    for port in entry.ports.iter() {
        if !matches!(
            port.protocol,
            Protocol::Http | Protocol::Tls | Protocol::Grpc | Protocol::Http2
        ) {
            let text = "only HTTP, TLS, GRPC, and HTTP2 protocols are supported for resolution type DYNAMIC_DNS";
            let way = [
                Segment::Index(port.index),
                Segment::Key("protocol".to_owned()),
            ];
            let hint = (port.protocol == Protocol::Https).then(|| "write `TLS`".to_owned());
            fields.error_below("ports", &way, ProblemKind::Invalid(text.to_owned()), hint);
        }
    }
}

fn read_port(field: Field<'_>, index: usize) -> Option<ServicePort> {
    let fields = field.fields()?;
    let number = fields.require("number", |field| field.port());
    let name = fields.require("name", |field| {
        let text = text_of(field)?;
        if !is_label(&text) {
            field.error_with_hint(
                ProblemKind::Invalid(format!("invalid port name: {text}")),
                "letters, digits and `-`",
            );
            return None;
        }
        Some(text)
    });
    let protocol = fields.read("protocol", |field| {
        field.word("protocol", &Protocol::NAMES, Protocol::parse)
    });
    let bad_protocol = fields.has("protocol") && protocol.is_none();
    let target = fields.read("targetPort", |field| field.port());
    let bad_target = fields.has("targetPort") && target.is_none();
    if bad_protocol || bad_target {
        return None;
    }
    let number = number?;
    let protocol = protocol.unwrap_or(Protocol::Unset);
    Some(ServicePort {
        number,
        name: name?,
        protocol,
        target: target.unwrap_or(number),
        index,
    })
}

/// Source: istio/istio `pkg/config/validation/validation.go`, `validateWorkloadEntry`.
fn read_endpoint(
    field: Field<'_>,
    resolution: Resolution,
    ports: &[ServicePort],
) -> Option<Endpoint> {
    let fields = field.fields()?;
    let address = match is_elsewhere(&fields, resolution) {
        true => None,
        false => fields.require("address", |field| {
            read_address(field, resolution, ports.len())
        }),
    };
    let unix = address
        .as_ref()
        .is_some_and(|address| address.starts_with("unix://"));
    let mut own_ports = Vec::new();
    fields.read("ports", |field| {
        if unix {
            let text = format!(
                "unix endpoint {} must not include ports",
                address.as_deref().unwrap_or("")
            );
            field.error(ProblemKind::Invalid(text));
            return None;
        }
        field.entries(|name, port| {
            if !ports.iter().any(|known| known.name == name) {
                let text = format!("endpoint port {name} is not defined by the service entry");
                port.error_with_hint(ProblemKind::Invalid(text), "name one of `ports`");
                return;
            }
            own_ports.extend(port.port().map(|port| (name.to_owned(), port)));
        });
        Some(())
    });
    let weight = fields
        .read("weight", |field| field.number(0, u32::MAX.into()))
        .unwrap_or(0);
    let labels = fields
        .read("labels", |field| Some(field.labels()))
        .unwrap_or_default();
    let locality = fields
        .read("locality", |field| field.text().map(str::to_owned))
        .unwrap_or_default();
    let service_account = fields.read("serviceAccount", |field| {
        let text = field.text().filter(|text| !text.is_empty())?;
        Some(text.to_owned())
    });
    fields.read("network", |field| field.text().map(drop));
    // Zero is "not set", which counts as one.
    let weight = u32::try_from(weight).unwrap_or(1).max(1);
    Some(Endpoint {
        address: address?,
        ports: own_ports,
        labels,
        locality,
        weight,
        service_account,
    })
}

/// Whether an endpoint has no address but a network, through whose gateway Istio would reach it. There is none
/// here, so the endpoint is left out, with a warning.
pub(super) fn is_elsewhere(fields: &Fields<'_>, resolution: Resolution) -> bool {
    let is_empty = match fields.peek("address") {
        None | Some(Node::Null) => true,
        Some(Node::Text(text)) => text.is_empty(),
        Some(_) => false,
    };
    let elsewhere = resolution == Resolution::Static && is_empty && fields.given("network");
    if elsewhere {
        fields.ignore(&["address"]);
        let kind = ProblemKind::NotSupported("an endpoint of another network".to_owned());
        fields.warning_at("network", kind, "it is left out; give it an `address`");
    }
    elsewhere
}

pub(super) fn read_address(
    field: Field<'_>,
    resolution: Resolution,
    ports: usize,
) -> Option<String> {
    let text = field.text()?;
    let invalid =
        |text: String, hint: &str| field.error_with_hint(ProblemKind::Invalid(text), hint);
    if let Some(path) = text.strip_prefix("unix://") {
        if path.is_empty() {
            invalid(
                "unix address must not be empty".to_owned(),
                "write unix:// and the path of the socket",
            );
        } else if !path.starts_with(['/', '@']) {
            invalid(
                format!("{path} is not an absolute path to a file"),
                "begin it with `/`",
            );
        } else if path.ends_with('/') {
            invalid("UDS may not be a dir".to_owned(), "name the socket");
        } else if ports != 1 {
            invalid(
                "exactly 1 service port required for unix endpoints".to_owned(),
                "keep one port",
            );
        } else {
            return Some(text.to_owned());
        }
        return None;
    }
    if text.is_empty() {
        invalid(
            "address is required".to_owned(),
            "give the address of the server",
        );
        return None;
    }
    if text.parse::<IpAddr>().is_ok() {
        return Some(text.to_owned());
    }
    if resolution == Resolution::Static {
        let hint = "set `resolution: DNS` for names";
        invalid(
            format!("endpoint address \"{text}\" is not a valid IP address"),
            hint,
        );
        return None;
    }
    match HostName::dns(text) {
        Ok(host) => Some(host.as_str().to_owned()),
        Err(_) => {
            let hint = "give the host alone, without scheme and port";
            invalid(
                format!("endpoint address \"{text}\" is not a valid FQDN or an IP address"),
                hint,
            );
            None
        }
    }
}
