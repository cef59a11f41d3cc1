//! Plan: facts become effects. The table has decided what happens; this file decides how Envoy is told.

pub(crate) mod answer;
pub(crate) mod cache;
pub(crate) mod http;
pub(crate) mod tcp;

use egress_policy::{Action, Cluster, Decision, Endpoints, Reason, Sni};

use crate::answer::{CookieKept, Noted, Redirect};
use crate::contract;
use crate::effect::{Act, Effect, HostError};
use crate::failure::Failure;
use crate::load::Loaded;
use crate::metadata::{Entry, Writer};
use crate::text::itoa;

/// Room for the texts of one request, kept from one to the next so that nothing is allocated.
#[derive(Debug, Default)]
pub struct Scratch {
    authority: String,
    dial_port: String,
    tunnel: String,
    names: String,
    metadata: Vec<u8>,
    secrets: String,
    body: String,
}

fn refused<'t, 'q>(reason: Reason) -> Decision<'t, 'q> {
    let action = Action::Reject(reason);
    Decision {
        action,
        target: None,
        connect_to: None,
        service_entry: None,
        rule: None,
        policy_source: None,
        virtual_service: None,
        gateway_service: None,
        branch: None,
        renamed: false,
        plaintext_allowed: false,
    }
}

/// Whether a cluster without a healthy host can only be one whose names were not resolved.
fn found_by_name(cluster: &Cluster) -> bool {
    // Hosts can be out of service for what they answered as well, where a rule looks at that.
    matches!(cluster.endpoints, Endpoints::Listed { fixed: false, .. })
        && cluster.outlier_detection.is_none()
}

fn write_metadata(
    config: &Loaded,
    authority: [&str; 2],
    decision: &Decision<'_, '_>,
    failure: Option<Failure>,
    scratch: &mut Scratch,
) {
    let nothing = Noted::default();
    write_metadata_with(config, authority, decision, failure, &nothing, scratch);
}

/// As [`write_metadata`], with what was done to an answer.
fn write_metadata_with(
    config: &Loaded,
    authority: [&str; 2],
    decision: &Decision<'_, '_>,
    failure: Option<Failure>,
    noted: &Noted,
    scratch: &mut Scratch,
) {
    scratch.metadata.clear();
    let mut writer = Writer::new(config.metadata, &mut scratch.metadata);
    let cluster = match decision.action {
        Action::Originate(cluster) | Action::Forward(cluster) | Action::Passthrough(cluster) => {
            Some(cluster)
        }
        Action::Weighted | Action::Respond(_) | Action::Reject(_) | Action::LeaveAlone(_) => None,
    };
    let tls = cluster.and_then(|cluster| cluster.tls.as_ref());
    let target = decision.target.as_ref();
    writer.text(Entry::Action, Some(decision.action.as_str()));
    let reason = failure.map(Failure::as_str);
    writer.text(
        Entry::Reason,
        reason.or_else(|| decision.reason().map(Reason::as_str)),
    );
    writer.resource(Entry::Rule, decision.rule);
    writer.resource(Entry::ServiceEntry, decision.service_entry);
    writer.text(Entry::Cluster, cluster.map(|it| config.cluster_name(it)));
    let socket = |it| {
        config
            .transport_socket(it)
            .unwrap_or_else(|| contract::transport_socket(it))
    };
    writer.text(Entry::TransportSocket, cluster.map(socket));
    writer.text(Entry::TlsMode, tls.map(|tls| tls.mode.as_str()));
    writer.text(
        Entry::Sni,
        tls.and_then(|tls| match &tls.sni {
            Sni::Rule(name) | Sni::Host(name) => Some(name.as_str()),
            Sni::Authority => target.map(|target| target.host),
        }),
    );
    writer.verify(tls, target.map(|target| target.host));
    writer.secrets(tls, &mut scratch.secrets);
    match cluster.and_then(|cluster| cluster.tunnel.as_ref()) {
        // Rare, so it may allocate.
        Some(tunnel) => writer.text(Entry::Target, Some(&tunnel.authority())),
        None => writer.target(decision),
    }
    let [_, host] = authority;
    let parts: &[&str] = if host.is_empty() { &[] } else { &authority };
    writer.parts(Entry::Authority, parts);
    let allowed = decision.plaintext_allowed.then_some("allowed");
    writer.text(Entry::Plaintext, allowed);
    if !noted.is_empty() {
        let repaired = noted.words();
        let repaired = Some(repaired.as_str()).filter(|words| !words.is_empty());
        writer.text(Entry::Repaired, repaired);
        writer.text(Entry::Redirect, noted.redirect.map(Redirect::as_str));
        writer.text(Entry::Cookies, noted.cookies.map(CookieKept::as_str));
    }
}

/// Writes what the upstream proxy is asked for: the target, or the address that is dialled in its place.
fn write_tunnel(config: &Loaded, decision: &Decision<'_, '_>, tunnel: &mut String) {
    tunnel.clear();
    let Some(target) = decision.target.as_ref().filter(|_| config.upstream_proxy) else {
        return;
    };
    let (host, port) = decision.connect_to.unwrap_or((target.host, target.port));
    let brackets = host.contains(':');
    tunnel.push_str(if brackets { "[" } else { "" });
    tunnel.push_str(host);
    tunnel.push_str(if brackets { "]:" } else { ":" });
    tunnel.push_str(itoa(port.get(), &mut [0; 5]));
}

fn tunnel(config: &Loaded, decision: &Decision<'_, '_>) -> Option<String> {
    let mut tunnel = String::new();
    write_tunnel(config, decision, &mut tunnel);
    (!tunnel.is_empty()).then_some(tunnel)
}

fn push_tunnel(config: &Loaded, scratch: &Scratch, act: Act<'_>) -> Result<(), HostError> {
    if config.upstream_proxy {
        act(Effect::Tunnel(&scratch.tunnel))?;
    }
    Ok(())
}

/// Writes the names of which the certificate must have one beside the host's. Where the host is known, the cluster
/// verifies it, and Envoy takes a second list of names from the filter only. The list is compared with names of any
/// type, so it is never the host's.
fn write_names(cluster: &Cluster, names: &mut String) {
    names.clear();
    let Some(tls) = cluster.tls.as_ref().filter(|tls| tls.names.authority) else {
        return;
    };
    if exact(cluster) {
        for (at, name) in tls.names.any_of.iter().enumerate() {
            names.push_str(if at > 0 { "," } else { "" });
            names.push_str(name);
        }
    }
}

/// Keeps SNI and verified name those of the target where the client's authority stays and is `other`: where it spells
/// the target otherwise, or names another host.
fn push_names(
    cluster: &Cluster,
    other: bool,
    scratch: &Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
    let Some(tls) = &cluster.tls else {
        return Ok(());
    };
    let host = host_of(&scratch.authority);
    if other && tls.sni == Sni::Authority {
        // Where nothing but the host is verified, it is verified as the SNI.
        act(Effect::FilterState(
            contract::UPSTREAM_SERVER_NAME_STATE,
            host,
        ))?;
    }
    let beside = !tls.names.any_of.is_empty() && tls.names.authority;
    let names = match exact(cluster) {
        true => Some(scratch.names.as_str()),
        false => other.then_some(host),
    };
    if let (true, Some(names)) = (beside, names) {
        act(Effect::FilterState(contract::UPSTREAM_NAMES_STATE, names))?;
    }
    Ok(())
}

/// Whether a cluster knows by itself where it leads, and all names that its server is asked for and must have.
fn says_all_itself(cluster: &Cluster) -> bool {
    let names = cluster.tls.as_ref().is_none_or(|tls| {
        let beside = tls.names.authority && !tls.names.any_of.is_empty();
        exact(cluster) && !beside
    });
    names && cluster.endpoints != Endpoints::OfTheRequest
}

/// Whether a cluster's server is told one host by all requests, whose name the cluster then has.
fn exact(cluster: &Cluster) -> bool {
    cluster.told_host().is_some()
}

/// Returns the host of an authority that we wrote; its hosts are names, so a colon begins the port.
fn host_of(authority: &str) -> &str {
    authority
        .split_once(':')
        .map_or(authority, |(host, _)| host)
}
