//! Plan: a request's facts become effects. What is decided here is how Envoy is told, never what.

use egress_policy::{
    Action, Arrival, Authority, Cluster, Decision, Endpoints, InvalidAuthority, PortNumber, Query,
    Reason, Sni,
};

use crate::config::AuthorityMode;
use crate::contract;
use crate::effect::{Effect, Effects};
use crate::facts::Facts;
use crate::failure::{Failure, FailureFacts};
use crate::load::Loaded;
use crate::metadata::{Entry, Writer};
use crate::text::itoa;

/// Room for the texts of one request, kept from one to the next so that nothing is allocated.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(crate) authority: String,
    pub(crate) dial_port: String,
    pub(crate) tunnel: String,
    pub(crate) names: String,
    pub(crate) metadata: Vec<u8>,
    secrets: String,
    body: String,
}

/// Returns what should happen to an HTTP request.
///
/// The effects lead an originated request to a cluster with TLS, or to an answer of our own; there is no
/// third way. A typical one costs the host two calls, reading the authority and writing the metadata: see
/// `integration/tests/hostcalls.rs`.
pub fn plan_http<'e>(
    config: &'e Loaded,
    facts: &Facts<'e>,
    scratch: &'e mut Scratch,
) -> Effects<'e> {
    let parsed = Authority::parse(facts.authority);
    let decision = decide(config, facts, &parsed);
    write_metadata(config, facts.authority, &decision, None, scratch);

    match decision.action {
        Action::Originate(cluster) => {
            let sends = upstream_authority(config.authority, facts.authority, &decision, scratch);
            let detour = detour(config, cluster, &decision, sends, &mut scratch.dial_port);
            write_tunnel(config, &decision, &mut scratch.tunnel);
            write_names(cluster, &mut scratch.names);
            let scratch: &'e Scratch = scratch;
            let mut effects = Effects::new();
            route(
                &mut effects,
                config,
                contract::ORIGINATE_HEADER,
                contract::FORWARD_HEADER,
                cluster,
            );
            if sends == Sends::Rewritten {
                effects.push(Effect::Authority(&scratch.authority));
            }
            push_detour(&mut effects, detour, scratch);
            push_tunnel(&mut effects, config, scratch);
            if !config.headers_stripped {
                // The listener is somebody else's, and may not know that the server is told how it is reached.
                effects.push(Effect::Header(":scheme", "https"));
            }
            push_names(
                &mut effects,
                cluster,
                sends == (Sends::AsWritten { canonical: false }),
                scratch,
            );
            if let Some(socket) = config.transport_socket(cluster) {
                effects.push(Effect::TransportSocket(socket));
            }
            effects.push(Effect::Metadata(&scratch.metadata));
            effects
        }
        Action::Forward(cluster) => plain(config, facts, cluster, &decision, scratch),
        // CONNECT is led without the proxy that a tunnel would be asked of.
        Action::Passthrough(cluster) if facts.connect && cluster.tunnel.is_none() => {
            plain(config, facts, cluster, &decision, scratch)
        }
        // A forward proxy for everything is nobody's to have.
        Action::LeaveAlone(reason) if config.forward_proxy => answer(config, reason, scratch),
        Action::LeaveAlone(_) => {
            let scratch: &'e Scratch = scratch;
            let mut effects = Effects::new();
            if config.headers_stripped {
                effects.push(Effect::Header(
                    contract::FORWARD_HEADER,
                    contract::PASSTHROUGH_CLUSTER,
                ));
                effects.push(Effect::ChooseRouteAgain);
            } else {
                effects.push(Effect::RemoveHeader(contract::ORIGINATE_HEADER));
                effects.push(Effect::RemoveHeader(contract::FORWARD_HEADER));
                effects.push(Effect::ChooseRouteAgain);
            }
            effects.push(Effect::Metadata(&scratch.metadata));
            effects
        }
        // TLS does not come in where requests can be read.
        Action::Passthrough(_) => answer(config, Reason::OtherProtocol, scratch),
        Action::Reject(reason) => answer(config, reason, scratch),
    }
}

/// Leads a request, or the bytes behind CONNECT, to its target as it is.
fn plain<'e>(
    config: &'e Loaded,
    facts: &Facts<'_>,
    cluster: &'e Cluster,
    decision: &Decision<'e, '_>,
    scratch: &'e mut Scratch,
) -> Effects<'e> {
    let sends = forwarded_authority(facts.authority, decision, scratch);
    let detour = detour(config, cluster, decision, sends, &mut scratch.dial_port);
    write_tunnel(config, decision, &mut scratch.tunnel);
    let scratch: &'e Scratch = scratch;
    let mut effects = Effects::new();
    route(
        &mut effects,
        config,
        contract::FORWARD_HEADER,
        contract::ORIGINATE_HEADER,
        cluster,
    );
    push_detour(&mut effects, detour, scratch);
    push_tunnel(&mut effects, config, scratch);
    if decision.plaintext_allowed {
        effects.push(Effect::CountAllowed);
    }
    effects.push(Effect::Metadata(&scratch.metadata));
    effects
}

/// Says why the connection of a request failed; `None` when it did not, as far as Envoy's answer tells.
///
/// `facts` are those that the request was planned by, `details` is `%RESPONSE_CODE_DETAILS%`.
pub fn failed(config: &Loaded, facts: &Facts<'_>, details: &str) -> Option<Failure> {
    let parsed = Authority::parse(facts.authority);
    let cluster = match decide(config, facts, &parsed).action {
        Action::Originate(cluster) | Action::Forward(cluster) => Some(cluster),
        Action::Passthrough(cluster) if facts.connect => Some(cluster),
        // On a listener of somebody else's, so is what becomes of it.
        Action::LeaveAlone(_) if !config.headers_stripped => return None,
        Action::LeaveAlone(_) => None,
        Action::Passthrough(_) | Action::Reject(_) => return None,
    };
    let tls = cluster.and_then(|cluster| cluster.tls.as_ref());
    Failure::of(&FailureFacts {
        details,
        shows_certificate: tls.is_some_and(|tls| tls.identity.is_some()),
        found_by_name: cluster.is_some_and(found_by_name),
    })
}

/// Says whether a cluster without a healthy host can only be one whose names were not resolved.
pub(crate) fn found_by_name(cluster: &Cluster) -> bool {
    // Hosts can be out of service for what they answered as well, where a rule looks at that.
    matches!(cluster.endpoints, Endpoints::Listed { fixed: false, .. })
        && cluster.outlier_detection.is_none()
}

/// Returns what should happen when what follows CONNECT is not TLS: it goes no further.
///
/// `facts` are those that CONNECT was planned by. All that CONNECT leads to are ports of TLS. Where it was `answered`
/// already, nothing can be said but by closing the connection.
pub fn plan_plaintext<'e>(
    config: &'e Loaded,
    facts: &Facts<'_>,
    answered: bool,
    scratch: &'e mut Scratch,
) -> Effects<'e> {
    let parsed = Authority::parse(facts.authority);
    let decision = Decision {
        action: Action::Reject(Reason::OtherProtocol),
        ..decide(config, facts, &parsed)
    };
    write_metadata(config, facts.authority, &decision, None, scratch);
    if !answered {
        return answer(config, Reason::OtherProtocol, scratch);
    }
    let mut effects = Effects::new();
    effects.push(Effect::Metadata(&scratch.metadata));
    effects.push(Effect::Close);
    effects
}

/// Returns what should happen to Envoy's answer to a request whose connection failed: it is counted and
/// logged, and the application is told the reason without Envoy's text.
///
/// `facts` are those that the request was planned by; `grpc` says that the answer is one to gRPC, which
/// has no body.
pub fn plan_failure<'e>(
    config: &'e Loaded,
    facts: &Facts<'_>,
    failure: Failure,
    grpc: bool,
    scratch: &'e mut Scratch,
) -> Effects<'e> {
    let parsed = Authority::parse(facts.authority);
    let decision = decide(config, facts, &parsed);
    write_metadata(config, facts.authority, &decision, Some(failure), scratch);
    let scratch: &'e Scratch = scratch;

    let mut effects = Effects::new();
    // What the application sees comes first: should the host refuse a call, it is the log that lacks.
    let status = failure.status();
    if grpc {
        effects.push(Effect::ResponseHeader("grpc-message", failure.message()));
        if let Some((_, status)) = status {
            effects.push(Effect::ResponseHeader("grpc-status", status));
        }
    } else {
        let status = status.map(|(status, _)| status);
        let body = failure.body();
        effects.push(Effect::AnswerInstead { status, body });
    }
    effects.push(Effect::Count(failure));
    effects.push(Effect::Metadata(&scratch.metadata));
    effects
}

/// Decides about a request.
fn decide<'t: 'q, 'q>(
    config: &'t Loaded,
    facts: &Facts<'_>,
    parsed: &'q Result<Authority<'_>, InvalidAuthority>,
) -> Decision<'t, 'q> {
    let port = match parsed {
        Ok(authority) if config.forward_proxy => authority.port.or(facts.port),
        _ => config.listener_port.or(facts.port),
    };
    match (parsed, port) {
        (Ok(authority), Some(port)) => {
            let query = Query {
                host: &authority.host,
                port,
                arrival: match facts.connect {
                    true => Arrival::Tls,
                    false => Arrival::Http,
                },
                subset: None,
            };
            config.table.decide(&query)
        }
        (Ok(_), None) => refused(Reason::UnknownPort),
        (Err(InvalidAuthority::Empty), _) => refused(Reason::NoHost),
        (Err(InvalidAuthority::Malformed), _) => refused(Reason::InvalidHost),
    }
}

/// What upstream is told in `:authority`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sends {
    /// The client's words; canonical when they name the target as we would.
    AsWritten { canonical: bool },
    /// Ours, in the scratch.
    Rewritten,
}

/// Where a dynamic forward proxy is to go instead of where the authority leads.
#[derive(Clone, Copy)]
enum Detour<'e> {
    /// Nowhere else.
    None,
    /// To an address given by hand.
    To(&'e str),
    /// To the target, which the authority does not name.
    Target,
}

pub(crate) fn refused<'t, 'q>(reason: Reason) -> Decision<'t, 'q> {
    let action = Action::Reject(reason);
    Decision {
        action,
        target: None,
        connect_to: None,
        service_entry: None,
        rule: None,
        policy_source: None,
        plaintext_allowed: false,
    }
}

/// Writes the authority of the target into the scratch, and says whether it must be sent.
fn upstream_authority(
    mode: AuthorityMode,
    written: &str,
    decision: &Decision<'_, '_>,
    scratch: &mut Scratch,
) -> Sends {
    let Some(target) = &decision.target else {
        return Sends::AsWritten { canonical: true };
    };
    scratch.authority.clear();
    scratch.authority.push_str(target.host);
    if target.port != PortNumber::HTTPS {
        scratch.authority.push(':');
        scratch
            .authority
            .push_str(itoa(target.port.get(), &mut [0; 5]));
    }
    match mode {
        _ if scratch.authority == written => Sends::AsWritten { canonical: true },
        AuthorityMode::Rewrite => Sends::Rewritten,
        AuthorityMode::Preserve => Sends::AsWritten { canonical: false },
    }
}

/// Says whether the client's own authority leads a plaintext connection to the target, which the scratch then holds.
fn forwarded_authority(written: &str, decision: &Decision<'_, '_>, scratch: &mut Scratch) -> Sends {
    let Some(target) = &decision.target else {
        return Sends::AsWritten { canonical: true };
    };
    scratch.authority.clear();
    scratch.authority.push_str(target.host);
    let bare = target.port == PortNumber::HTTP && scratch.authority == written;
    scratch.authority.push(':');
    scratch
        .authority
        .push_str(itoa(target.port.get(), &mut [0; 5]));
    Sends::AsWritten {
        canonical: bare || scratch.authority == written,
    }
}

/// Says where a shared cluster must be sent to when the authority does not lead to the target.
fn detour<'e>(
    config: &Loaded,
    cluster: &Cluster,
    decision: &Decision<'e, '_>,
    sends: Sends,
    dial_port: &mut String,
) -> Detour<'e> {
    let Some(target) = &decision.target else {
        return Detour::None;
    };
    // A proxy is told the way by name.
    if config.upstream_proxy || cluster.endpoints != Endpoints::OfTheRequest {
        return Detour::None;
    }
    let (detour, port) = match decision.connect_to {
        Some((address, port)) => (Detour::To(address), port),
        None if sends == (Sends::AsWritten { canonical: false }) => (Detour::Target, target.port),
        None => return Detour::None,
    };
    dial_port.clear();
    dial_port.push_str(itoa(port.get(), &mut [0; 5]));
    detour
}

fn push_detour<'e>(effects: &mut Effects<'e>, detour: Detour<'e>, scratch: &'e Scratch) {
    let host = match detour {
        Detour::None => return,
        Detour::To(address) => address,
        Detour::Target => host_of(&scratch.authority),
    };
    effects.push(Effect::FilterState(contract::DYNAMIC_HOST_STATE, host));
    effects.push(Effect::FilterState(
        contract::DYNAMIC_PORT_STATE,
        &scratch.dial_port,
    ));
}

/// Writes what the upstream proxy is asked for: the target, or the address that is dialled in its place.
pub(crate) fn write_tunnel(config: &Loaded, decision: &Decision<'_, '_>, tunnel: &mut String) {
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

pub(crate) fn push_tunnel<'e>(effects: &mut Effects<'e>, config: &Loaded, scratch: &'e Scratch) {
    if config.upstream_proxy {
        effects.push(Effect::Tunnel(&scratch.tunnel));
    }
}

/// Writes the names of which the certificate must have one beside the host's. Where the host is known, the cluster
/// verifies it, and Envoy takes a second list of names from the filter only. The list is compared with names of any
/// type, so it is never the host's.
pub(crate) fn write_names(cluster: &Cluster, names: &mut String) {
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
pub(crate) fn push_names<'e>(
    effects: &mut Effects<'e>,
    cluster: &Cluster,
    other: bool,
    scratch: &'e Scratch,
) {
    let Some(tls) = &cluster.tls else {
        return;
    };
    let host = host_of(&scratch.authority);
    if other && tls.sni == Sni::Authority {
        // Where nothing but the host is verified, it is verified as the SNI.
        effects.push(Effect::FilterState(
            contract::UPSTREAM_SERVER_NAME_STATE,
            host,
        ));
    }
    let beside = !tls.names.any_of.is_empty() && tls.names.authority;
    let names = match exact(cluster) {
        true => Some(scratch.names.as_str()),
        false => other.then_some(host),
    };
    if let (true, Some(names)) = (beside, names) {
        effects.push(Effect::FilterState(contract::UPSTREAM_NAMES_STATE, names));
    }
}

/// Says whether a cluster is one host's, and so has its name.
fn exact(cluster: &Cluster) -> bool {
    let own = cluster.own.as_ref();
    own.is_some_and(|(host, _)| host.exact().is_some())
}

/// Returns the host of an authority that we wrote; its hosts are names, so a colon begins the port.
fn host_of(authority: &str) -> &str {
    authority
        .split_once(':')
        .map_or(authority, |(host, _)| host)
}

/// Names the cluster, unless requests reach it anyway.
fn route<'e>(
    effects: &mut Effects<'e>,
    config: &'e Loaded,
    header: &'static str,
    other: &'static str,
    cluster: &'e Cluster,
) {
    let name = config.cluster_name(cluster);
    if config.headers_stripped && config.default_cluster.as_deref() == Some(name) {
        return;
    }
    if !config.headers_stripped {
        effects.push(Effect::RemoveHeader(other));
    }
    effects.push(Effect::Header(header, name));
    effects.push(Effect::ChooseRouteAgain);
}

fn answer<'e>(config: &Loaded, reason: Reason, scratch: &'e mut Scratch) -> Effects<'e> {
    scratch.body.clear();
    scratch.body.push_str("egress_");
    scratch.body.push_str(reason.as_str());
    let details = scratch.body.len();
    scratch.body.push_str(": ");
    scratch.body.push_str(reason.explanation());
    scratch.body.push('\n');
    let status = match reason {
        Reason::NoHost | Reason::InvalidHost => 400,
        // As proxies answer where they do not let one through (RFC 9110, 15.5.4).
        _ if config.forward_proxy => 403,
        // As Istio's `block_all` route answers.
        Reason::UnknownHost
        | Reason::UnknownPort
        | Reason::OtherProtocol
        | Reason::UnknownSubset
        | Reason::LeftOut
        | Reason::NotRead
        | Reason::InvalidRule => 502,
    };
    let mut effects = Effects::new();
    effects.push(Effect::Metadata(&scratch.metadata));
    effects.push(Effect::Answer {
        status,
        details: scratch.body.get(..details).unwrap_or(""),
        body: &scratch.body,
    });
    effects
}

pub(crate) fn write_metadata(
    config: &Loaded,
    authority: &str,
    decision: &Decision<'_, '_>,
    failure: Option<Failure>,
    scratch: &mut Scratch,
) {
    scratch.metadata.clear();
    let mut writer = Writer::new(config.metadata, &mut scratch.metadata);
    let cluster = match decision.action {
        Action::Originate(cluster) | Action::Forward(cluster) | Action::Passthrough(cluster) => {
            Some(cluster)
        }
        Action::Reject(_) | Action::LeaveAlone(_) => None,
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
    writer.text(
        Entry::Authority,
        Some(authority).filter(|authority| !authority.is_empty()),
    );
    let allowed = decision.plaintext_allowed.then_some("allowed");
    writer.text(Entry::Plaintext, allowed);
}
