//! The routes of connections: `tls`, by the server name that the application asks for, and `tcp`.

use std::net::IpAddr;

use egress_policy::fields::{Field, Fields};
use egress_policy::reading::read_labels;
use egress_policy::{Address, HostPattern, PortNumber, ProblemKind};

use super::destination::{Share, read_shares};
use super::matches::{read_gateways, read_namespace, read_port};

/// Where connections go that one of its matches takes.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `TLSRoute` and `TCPRoute`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectionRoute {
    /// What it takes; everything, where there is none.
    pub matches: Vec<ConnectionMatch>,
    /// Where the connections go.
    pub shares: Vec<Share>,
}

/// What a route asks of a connection. All that it says must hold.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `TLSMatchAttributes` and `L4MatchAttributes`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectionMatch {
    /// The server name; none in `tcp`.
    pub sni_hosts: Vec<String>,
    /// The address that was dialled.
    pub subnets: Vec<Address>,
    /// The port that was called, or that of the gateway's server.
    pub port: Option<PortNumber>,
    /// The gateways, or `mesh`; none for all of the VirtualService.
    pub gateways: Vec<String>,
    /// The labels of the caller.
    pub source_labels: Vec<(String, String)>,
    /// The namespace of the caller.
    pub source_namespace: Option<String>,
}

/// Reads one route of connections; `hosts` are those of the VirtualService where it is one of `tls`.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateTLSRoute` and `validateTCPRoute`.
pub(super) fn read_connection_route(
    field: Field<'_>,
    hosts: Option<&[HostPattern]>,
) -> Option<ConnectionRoute> {
    let fields = field.fields()?;
    let mut matches = Vec::new();
    fields.read("match", |list| {
        list.items(|item| matches.extend(read_match(item, hosts)));
        Some(())
    });
    let (kind, required) = match hosts {
        Some(_) => ("TLS", true),
        None => ("TCP", false),
    };
    if required && !fields.given("match") {
        let text = format!("{kind} route must have at least one match condition");
        fields.error_at("match", ProblemKind::Invalid(text), Some("give `sniHosts`"));
    }
    let shares = read_shares(&fields, false);
    if !fields.given("route") {
        let text = format!("{kind} route is required");
        fields.error_at(
            "route",
            ProblemKind::Invalid(text),
            Some("give it a `route`"),
        );
    }
    Some(ConnectionRoute { matches, shares })
}

fn read_match(field: Field<'_>, hosts: Option<&[HostPattern]>) -> Option<ConnectionMatch> {
    let fields = field.fields()?;
    let sni_hosts = match hosts {
        Some(hosts) => read_sni_hosts(&fields, hosts),
        None => Vec::new(),
    };
    let mut subnets = Vec::new();
    fields.read("destinationSubnets", |list| {
        list.items(|item| {
            let Some(text) = item.text() else { return };
            match Address::parse(text) {
                Ok(address) => subnets.push(address),
                Err(problem) => item.error(ProblemKind::Invalid(problem)),
            }
        });
        Some(())
    });
    if hosts.is_none() {
        fields.read("sourceSubnet", |field| {
            let kind = ProblemKind::NotSupported("`sourceSubnet`".to_owned());
            field.warning(kind, "Istio ignores it too; use `sourceLabels`");
            field.text().map(drop)
        });
    }
    let labels = fields.read("sourceLabels", |field| Some(read_labels(field)));
    Some(ConnectionMatch {
        sni_hosts,
        subnets,
        port: read_port(&fields),
        gateways: read_gateways(&fields),
        source_labels: labels.unwrap_or_default(),
        source_namespace: fields.read("sourceNamespace", read_namespace),
    })
}

/// Source: istio/istio `pkg/config/validation/validation.go`, `validateSniHost`.
fn read_sni_hosts(fields: &Fields<'_>, hosts: &[HostPattern]) -> Vec<String> {
    let mut sni_hosts = Vec::new();
    fields.read("sniHosts", |list| {
        list.items(|item| {
            let Some(text) = item.text() else { return };
            if text.parse::<IpAddr>().is_ok() {
                let shown = format!("using an IP address (\"{text}\") goes against SNI spec");
                item.warning(ProblemKind::Invalid(shown), "name a host");
                return;
            }
            let Some(host) = item.host() else { return };
            if !hosts.iter().any(|of| of.covers(&host)) {
                let listed: Vec<String> = hosts.iter().map(ToString::to_string).collect();
                let shown = format!(
                    "SNI host \"{text}\" is not a compatible subset of any of the virtual service hosts: [{}]",
                    listed.join(", ")
                );
                item.error_with_hint(ProblemKind::Invalid(shown), "add it to `hosts`");
                return;
            }
            sni_hosts.push(text.to_owned());
        });
        Some(())
    });
    if !fields.given("sniHosts") {
        let text = "TLS match must have at least one SNI host".to_owned();
        fields.error_at(
            "sniHosts",
            ProblemKind::Invalid(text),
            Some("name the hosts"),
        );
    }
    sni_hosts
}
