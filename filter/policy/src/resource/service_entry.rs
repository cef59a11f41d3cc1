//! `ServiceEntry`, of which [`ServiceEntry`] keeps what the engine honours.

use crate::fields::{Field, Fields};
use crate::host::{HostPattern, InvalidHost};
use crate::port::{PortNumber, Protocol};
use crate::problem::{Origin, ProblemKind, Severity};
use crate::resource::{Meta, read_meta, text_of};

/// A service outside, with its hosts and ports.
///
/// Source: istio/api `networking/v1alpha3/service_entry.proto`, `ServiceEntry`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Name, namespace, origin.
    pub meta: Meta,
    /// The names that applications use; each is a service of its own.
    pub hosts: Vec<HostPattern>,
    /// The ports that applications use.
    pub ports: Vec<ServicePort>,
    /// How an address is found.
    pub resolution: Resolution,
    /// Where the service really is, when that is not its host.
    pub endpoints: Vec<Endpoint>,
    /// The namespaces that see it; empty means all.
    pub export_to: Vec<String>,
    /// The names that the server's certificate may have, when the DestinationRule gives none.
    pub subject_alt_names: Vec<String>,
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
}

/// How the addresses of a service are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The address that the application dialled.
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

/// One address of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// An IP address or, with DNS resolution, a name.
    pub address: String,
    /// Ports by the name of the service's port; others keep the service's target port.
    pub ports: Vec<(String, PortNumber)>,
    /// Its share of the load, against the others; 1 when not given.
    pub weight: u32,
}

impl ServiceEntry {
    pub(crate) const KIND: &'static str = "ServiceEntry";

    pub(crate) fn read(root: &Fields<'_>, origin: Origin) -> Option<ServiceEntry> {
        let meta = read_meta(root, Self::KIND, origin);
        root.ignore(&["status"]);
        let spec = root.require("spec", read_spec);
        let (meta, spec) = (meta?, spec?);
        Some(ServiceEntry { meta, ..spec })
    }
}

fn read_spec(field: Field<'_>) -> Option<ServiceEntry> {
    let fields = field.fields()?;
    let mut hosts = Vec::new();
    fields.require("hosts", |list| {
        list.items(|item| match item.host() {
            Some(HostPattern::Any) => item.error_with_hint(
                ProblemKind::Invalid(InvalidHost::Everything.to_string()),
                "name the hosts, or use outboundTrafficPolicy mode ALLOW_ANY",
            ),
            Some(host) => hosts.push(host),
            None => {}
        });
        if matches!(list.value, serde_json::Value::Array(items) if items.is_empty()) {
            list.error(ProblemKind::Invalid(
                "service entry must have at least one host".to_owned(),
            ));
        }
        Some(())
    });
    let mut ports: Vec<ServicePort> = Vec::new();
    fields.require("ports", |list| {
        list.items(|item| {
            if let Some(port) = read_port(item) {
                if ports.iter().any(|other| other.number == port.number) {
                    item.error(ProblemKind::Conflict(format!(
                        "service entry port {} already defined",
                        port.number
                    )));
                } else if ports.iter().any(|other| other.name == port.name) {
                    item.error(ProblemKind::Conflict(format!(
                        "service entry port name `{}` already defined",
                        port.name
                    )));
                } else {
                    ports.push(port);
                }
            }
        });
        Some(())
    });
    const RESOLUTIONS: [&str; 5] = ["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"];
    let resolution = fields.read("resolution", |field| {
        field.word("resolution", &RESOLUTIONS, |word| {
            Some(match word {
                "NONE" => Resolution::None,
                "STATIC" => Resolution::Static,
                "DNS" => Resolution::Dns,
                "DNS_ROUND_ROBIN" => Resolution::DnsRoundRobin,
                "DYNAMIC_DNS" => Resolution::DynamicDns,
                _ => return None,
            })
        })
    });
    let mut endpoints = Vec::new();
    let unreadable = fields.has("resolution") && resolution.is_none();
    let resolution = resolution.unwrap_or(Resolution::None);
    fields.read("endpoints", |list| {
        list.items(|item| endpoints.extend(read_endpoint(item, resolution)));
        for endpoint in &endpoints {
            for (name, _) in &endpoint.ports {
                if !ports.iter().any(|port| port.name == *name) {
                    let kind = ProblemKind::Invalid(format!(
                        "endpoint port {name} is not defined by the service entry"
                    ));
                    list.error(kind);
                }
            }
        }
        Some(())
    });
    check_resolution(&fields, resolution, unreadable, &hosts, &endpoints);
    fields.read("location", |field| {
        field.word("location", &["MESH_EXTERNAL", "MESH_INTERNAL"], |word| {
            matches!(word, "MESH_EXTERNAL" | "MESH_INTERNAL").then_some(())
        })
    });
    let export_to = fields
        .read("exportTo", |list| Some(list.texts()))
        .unwrap_or_default();
    let subject_alt_names = fields
        .read("subjectAltNames", |list| Some(list.texts()))
        .unwrap_or_default();
    fields.not_supported(
        Severity::Warning,
        &["addresses"],
        "services are told apart by host name; addresses are not matched",
    );
    fields.not_supported(
        Severity::Error,
        &["workloadSelector"],
        "workloads are known to a Kubernetes cluster only; list them in `endpoints`",
    );
    let meta = Meta {
        id: super::ResourceId {
            kind: ServiceEntry::KIND,
            namespace: String::new(),
            name: String::new(),
        },
        origin: Origin::default(),
        created: String::new(),
    };
    Some(ServiceEntry {
        meta,
        hosts,
        ports,
        resolution,
        endpoints,
        export_to,
        subject_alt_names,
    })
}

/// Checks what the resolution asks of hosts and endpoints.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `ValidateServiceEntry`.
fn check_resolution(
    fields: &Fields<'_>,
    resolution: Resolution,
    unreadable: bool,
    hosts: &[HostPattern],
    endpoints: &[Endpoint],
) {
    if unreadable {
        return;
    }
    let wildcard = hosts.iter().find(|host| host.exact().is_none());
    let invalid = |text: String| ProblemKind::Invalid(text);
    match resolution {
        Resolution::None if fields.has("endpoints") => fields.error_at(
            "endpoints",
            invalid("no endpoints should be provided for resolution type none".to_owned()),
            Some("set `resolution: STATIC` for addresses, or `DNS` for names"),
        ),
        Resolution::Static if endpoints.is_empty() && !fields.has("endpoints") => fields.error_at(
            "endpoints",
            ProblemKind::Missing,
            Some("`resolution: STATIC` takes its addresses from `endpoints`"),
        ),
        Resolution::Dns | Resolution::DnsRoundRobin if endpoints.is_empty() => {
            if let Some(host) = wildcard {
                let text = format!(
                    "hosts must be FQDN if no endpoints are provided for resolution mode DNS, not `{host}`"
                );
                fields.error_at(
                    "hosts",
                    invalid(text),
                    Some("set `resolution: DYNAMIC_DNS` for wildcard hosts"),
                );
            }
        }
        Resolution::DnsRoundRobin if endpoints.len() > 1 => fields.error_at(
            "endpoints",
            invalid(
                "there must only be 0 or 1 endpoint for resolution mode DNS_ROUND_ROBIN".to_owned(),
            ),
            None,
        ),
        Resolution::DynamicDns => {
            if let Some(host) = hosts.iter().find(|host| host.exact().is_some()) {
                let text = format!(
                    "host must be wildcarded for resolution mode DYNAMIC_DNS, not `{host}`"
                );
                fields.error_at(
                    "hosts",
                    invalid(text),
                    Some("set `resolution: DNS` for this host"),
                );
            }
            if fields.has("endpoints") {
                let text = "endpoints cannot be set for resolution type DYNAMIC_DNS".to_owned();
                fields.error_at("endpoints", invalid(text), None);
            }
        }
        _ => {}
    }
}

fn read_port(field: Field<'_>) -> Option<ServicePort> {
    let fields = field.fields()?;
    let number = fields.require("number", |field| field.port());
    let name = fields.require("name", text_of);
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
    Some(ServicePort {
        number,
        name: name?,
        protocol: protocol.unwrap_or(Protocol::Unset),
        target: target.unwrap_or(number),
    })
}

fn read_endpoint(field: Field<'_>, resolution: Resolution) -> Option<Endpoint> {
    let fields = field.fields()?;
    let address = fields.require("address", |field| {
        let text = field.text()?;
        let is_ip = text.parse::<std::net::IpAddr>().is_ok();
        if text.starts_with("unix://") {
            field.error(ProblemKind::NotSupported("a unix socket".to_owned()));
            return None;
        }
        if is_ip {
            return Some(text.to_owned());
        }
        if resolution == Resolution::Static {
            let kind = ProblemKind::Invalid(format!(
                "endpoint address `{text}` is not a valid IP address"
            ));
            field.error_with_hint(kind, "set `resolution: DNS` for names");
            return None;
        }
        match crate::host::HostName::dns(text) {
            Ok(host) => Some(host.as_str().to_owned()),
            Err(_) => {
                let text =
                    format!("endpoint address `{text}` is not a valid FQDN or an IP address");
                field.error(ProblemKind::Invalid(text));
                None
            }
        }
    });
    let mut ports = Vec::new();
    fields.read("ports", |field| {
        let map = field.fields()?;
        map.allow_unknown();
        if let serde_json::Value::Object(object) = field.value {
            for (name, value) in object {
                let way = crate::fields::Way::Key(&field.way, name);
                let port = Field {
                    report: field.report,
                    way,
                    value,
                };
                ports.extend(port.port().map(|port| (name.clone(), port)));
            }
        }
        Some(())
    });
    let weight = fields
        .read("weight", |field| field.number(0, u32::MAX.into()))
        .unwrap_or(0);
    fields.ignore(&["labels", "serviceAccount", "network", "locality"]);
    let weight = u32::try_from(weight).unwrap_or(1).max(1);
    Some(Endpoint {
        address: address?,
        ports,
        weight,
    })
}
