//! A request's facts become effects, and so do those of its response when the connection failed.

use egress_policy::{
    Action, Arrival, Authority, Cluster, Decision, Endpoints, InvalidAuthority, PortNumber, Query,
    Reason,
};

use crate::config::AuthorityMode;
use crate::contract;
use crate::effect::{Effect, Effects};
use crate::facts::Facts;
use crate::failure::{Failure, FailureFacts};
use crate::load::Loaded;
use crate::plan::{
    Scratch, found_by_name, host_of, push_names, push_tunnel, refused, write_metadata, write_names,
    write_tunnel,
};
use crate::text::itoa;

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
