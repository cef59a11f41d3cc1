//! A request's facts become effects, and so do those of its response when the connection failed.

use egress_policy::{
    Action, Authority, Branch, Cluster, Decision, DownstreamProtocol, Endpoints, InvalidAuthority,
    PortNumber, Query, Reason,
};

use crate::config::AuthorityMode;
use crate::contract;
use crate::effect::{Act, Effect, HostError};
use crate::facts::{Facts, HttpWanted};
use crate::failure::{Failure, FailureFacts};
use crate::load::Loaded;
use crate::plan::{
    Scratch, found_by_name, host_of, push_names, push_tunnel, refused, says_all_itself, tunnel,
    write_metadata, write_names, write_tunnel,
};
use crate::text::itoa;

/// Returns which facts [`plan_http`] needs beside the authority: as few as may be, for each is a call.
pub fn http_wanted(config: &Loaded) -> HttpWanted {
    let listener_says = config.listener_port.is_some();
    HttpWanted {
        dialled_port: !listener_says && !config.forward_proxy,
        proxy_request: !listener_says && config.forward_proxy,
        route: config.branches,
        // Only listeners of ours keep upstream connections apart by it.
        login: config.headers_stripped,
    }
}

/// Plans what should happen to an HTTP request.
///
/// The effects lead an originated request to a cluster with TLS, or to an answer of our own; there is no
/// third way. A typical one costs the host three calls, reading two headers and writing the metadata: see
/// `integration/tests/hostcalls.rs`.
///
/// # Errors
/// The first error of `act`, which is not called again after it.
pub fn plan_http(
    config: &Loaded,
    facts: &Facts<'_>,
    scratch: &mut Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
    let parsed = Authority::parse(facts.authority);
    let mut decision = decide(config, facts, &parsed);
    let within = requests_within(config, facts, &parsed, &mut decision);
    write_metadata(config, written(config, facts), &decision, None, scratch);

    if within {
        act(Effect::Header(contract::FORWARD_HEADER, contract::WITHIN))?;
        act(Effect::ChooseRouteAgain)?;
        act(Effect::Within(facts.authority))?;
        return act(Effect::Metadata(&scratch.metadata));
    }
    if let Some(branch) = decision.branch {
        return on_branch(config, facts, branch, &decision, scratch, act);
    }
    match decision.action {
        Action::Originate(cluster) => originate(config, facts, cluster, &decision, scratch, act),
        Action::Forward(cluster) => plain(config, facts, cluster, &decision, scratch, act),
        // CONNECT is led without the proxy that a tunnel would be asked of.
        Action::Passthrough(cluster) if facts.connect && cluster.tunnel.is_none() => {
            plain(config, facts, cluster, &decision, scratch, act)
        }
        // A forward proxy for everything is nobody's to have.
        Action::LeaveAlone(reason) if config.forward_proxy => answer(config, reason, scratch, act),
        Action::LeaveAlone(_) => {
            if config.headers_stripped {
                act(Effect::Header(
                    contract::FORWARD_HEADER,
                    contract::PASSTHROUGH_CLUSTER,
                ))?;
            } else {
                act(Effect::RemoveHeader(contract::ORIGINATE_HEADER))?;
                act(Effect::RemoveHeader(contract::FORWARD_HEADER))?;
            }
            act(Effect::ChooseRouteAgain)?;
            act(Effect::Metadata(&scratch.metadata))
        }
        // TLS does not come in where requests can be read.
        Action::Passthrough(_) => answer(config, Reason::OtherProtocol, scratch, act),
        Action::Reject(reason) => answer(config, reason, scratch, act),
        Action::Weighted | Action::Respond(_) => answer(config, Reason::NoRoute, scratch, act),
    }
}

/// Whether what follows CONNECT is to be read as requests, which is so where the port is one of requests. The decision
/// is then that of a request for the same host and port.
fn requests_within<'t: 'q, 'q>(
    config: &'t Loaded,
    facts: &Facts<'q>,
    parsed: &'q Result<Authority<'_>, InvalidAuthority>,
    decision: &mut Decision<'t, 'q>,
) -> bool {
    if !facts.connect || decision.action != Action::Reject(Reason::OtherProtocol) {
        return false;
    }
    let request = Facts {
        connect: false,
        ..*facts
    };
    let inside = decide(config, &request, parsed);
    let led = matches!(inside.action, Action::Originate(_) | Action::Forward(_));
    if led {
        *decision = inside;
    }
    led
}

/// Returns the port of the tunnel that a request came in; `None` where the request is for something else.
fn port_within(target: &str, request: &Authority<'_>) -> Option<PortNumber> {
    let target = Authority::parse(target).ok()?;
    let port = target.port?;
    let same = target.host == request.host && request.port.is_none_or(|it| it == port);
    same.then_some(port)
}

/// Leads a request that took one of the host's branches. Its route is chosen and stays: it has the path, the headers and
/// the host that the server is told, and this names only the clusters.
fn on_branch(
    config: &Loaded,
    facts: &Facts<'_>,
    branch: &Branch,
    decision: &Decision<'_, '_>,
    scratch: &mut Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
    match decision.action {
        // Envoy's route or its fault filter answers.
        Action::Respond(_) => {}
        Action::Originate(cluster) | Action::Forward(cluster) => {
            let header = match cluster.tls {
                Some(_) => contract::ORIGINATE_HEADER,
                None => contract::FORWARD_HEADER,
            };
            // The client's words name the host only where the cluster does not know it.
            let told = cluster.told_host().is_some();
            let sends = match cluster.tls {
                Some(_) => {
                    let keep = AuthorityMode::Preserve;
                    upstream_authority(keep, facts.authority, decision, scratch)
                }
                None => forwarded_authority(facts.authority, decision, scratch),
            };
            let detour = detour(config, cluster, decision, sends, &mut scratch.dial_port);
            let other = !told && sends == (Sends::AsWritten { canonical: false });
            write_names(cluster, &mut scratch.names);
            act(Effect::Header(header, config.cluster_name(cluster)))?;
            act(Effect::ChooseRouteAgain)?;
            push_detour(detour, scratch, act)?;
            push_names(cluster, other, scratch, act)?;
        }
        Action::Weighted => {
            let shares = config.table.shares(branch).zip(contract::SHARE_HEADERS);
            for (share, header) in shares {
                // What the filter would have to say of one server, it would say of all.
                if let Ok(cluster) = share.leads_to
                    && says_all_itself(cluster)
                {
                    act(Effect::Header(header, config.cluster_name(cluster)))?;
                }
            }
            act(Effect::ChooseRouteAgain)?;
        }
        Action::Passthrough(_) => return answer(config, Reason::OtherProtocol, scratch, act),
        Action::Reject(reason) | Action::LeaveAlone(reason) => {
            return answer(config, reason, scratch, act);
        }
    }
    if decision.plaintext_allowed {
        act(Effect::CountAllowed)?;
    }
    act(Effect::Metadata(&scratch.metadata))
}

/// Leads a request to a cluster with TLS.
fn originate(
    config: &Loaded,
    facts: &Facts<'_>,
    cluster: &Cluster,
    decision: &Decision<'_, '_>,
    scratch: &mut Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
    let written = given(facts, decision);
    let sends = upstream_authority(config.authority, written, decision, scratch);
    let detour = detour(config, cluster, decision, sends, &mut scratch.dial_port);
    write_tunnel(config, decision, &mut scratch.tunnel);
    write_names(cluster, &mut scratch.names);
    route(
        config,
        contract::ORIGINATE_HEADER,
        contract::FORWARD_HEADER,
        cluster,
        act,
    )?;
    match sends {
        Sends::Rewritten => act(Effect::Authority(&scratch.authority))?,
        Sends::AsWritten { .. } if written != facts.authority => act(Effect::Authority(written))?,
        Sends::AsWritten { .. } => {}
    }
    push_detour(detour, scratch, act)?;
    push_tunnel(config, scratch, act)?;
    if !config.headers_stripped {
        // The listener is somebody else's, and may not know that the server is told how it is reached.
        act(Effect::Header(":scheme", "https"))?;
    }
    let other = sends == (Sends::AsWritten { canonical: false });
    push_names(cluster, other, scratch, act)?;
    if let Some(socket) = config.transport_socket(cluster) {
        act(Effect::TransportSocket(socket))?;
    }
    act(Effect::Metadata(&scratch.metadata))
}

/// Returns the authority that a request has, or the host that a VirtualService gives it in place of that.
fn given<'f>(facts: &Facts<'f>, decision: &Decision<'f, 'f>) -> &'f str {
    match &decision.target {
        Some(target) if decision.renamed => target.host,
        _ => facts.authority,
    }
}

/// Leads a request, or the bytes behind CONNECT, to its target as it is, but for a host that a VirtualService gives it.
fn plain(
    config: &Loaded,
    facts: &Facts<'_>,
    cluster: &Cluster,
    decision: &Decision<'_, '_>,
    scratch: &mut Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
    let written = given(facts, decision);
    let sends = forwarded_authority(written, decision, scratch);
    let detour = detour(config, cluster, decision, sends, &mut scratch.dial_port);
    write_tunnel(config, decision, &mut scratch.tunnel);
    route(
        config,
        contract::FORWARD_HEADER,
        contract::ORIGINATE_HEADER,
        cluster,
        act,
    )?;
    if written != facts.authority {
        act(Effect::Authority(written))?;
    }
    push_detour(detour, scratch, act)?;
    push_tunnel(config, scratch, act)?;
    if decision.plaintext_allowed {
        act(Effect::CountAllowed)?;
    }
    act(Effect::Metadata(&scratch.metadata))
}

/// Returns why the connection of a request failed; `None` when it did not, as far as Envoy's answer tells.
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
        Action::Passthrough(_) | Action::Reject(_) | Action::Respond(_) => return None,
        Action::Weighted => None,
    };
    let tls = cluster.and_then(|cluster| cluster.tls.as_ref());
    Failure::of(&FailureFacts {
        details,
        shows_certificate: tls.is_some_and(|tls| tls.identity.is_some()),
        found_by_name: cluster.is_some_and(found_by_name),
    })
}

/// Returns what the upstream proxy was asked for on behalf of a request; `None` where no proxy is asked.
pub(crate) fn asked_for(config: &Loaded, facts: &Facts<'_>) -> Option<String> {
    let parsed = Authority::parse(facts.authority);
    tunnel(config, &decide(config, facts, &parsed))
}

/// Plans what should happen when what follows CONNECT is not TLS: it goes no further.
///
/// `facts` are those that CONNECT was planned by. All that CONNECT leads to are ports of TLS. Where it was `answered`
/// already, nothing can be said but by closing the connection.
///
/// # Errors
/// As [`plan_http`].
pub fn plan_plaintext(
    config: &Loaded,
    facts: &Facts<'_>,
    answered: bool,
    scratch: &mut Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
    let parsed = Authority::parse(facts.authority);
    let decision = Decision {
        action: Action::Reject(Reason::OtherProtocol),
        ..decide(config, facts, &parsed)
    };
    write_metadata(config, written(config, facts), &decision, None, scratch);
    if !answered {
        return answer(config, Reason::OtherProtocol, scratch, act);
    }
    act(Effect::Metadata(&scratch.metadata))?;
    act(Effect::CloseRequest)
}

/// Plans what should happen to Envoy's answer to a request whose connection failed: it is counted and
/// logged, and the application is told the reason without Envoy's text.
///
/// `facts` are those that the request was planned by; `details` is what [`failed`] read; `grpc` says that the answer is
/// one to gRPC, which has no body.
///
/// # Errors
/// As [`plan_http`].
pub fn plan_failure(
    config: &Loaded,
    facts: &Facts<'_>,
    (failure, details): (Failure, &str),
    grpc: bool,
    scratch: &mut Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
    let parsed = Authority::parse(facts.authority);
    let decision = decide(config, facts, &parsed);
    write_metadata(
        config,
        written(config, facts),
        &decision,
        Some(failure),
        scratch,
    );

    // What the application sees comes first: should the host refuse a call, it is the log that lacks.
    let status = failure.status();
    if grpc {
        act(Effect::ResponseHeader("grpc-message", failure.message()))?;
        if let Some((_, status)) = status {
            act(Effect::ResponseHeader("grpc-status", status))?;
        }
    } else {
        act(Effect::AnswerInstead {
            status: status.map(|(status, _)| status),
            details,
            body: failure.body(),
        })?;
    }
    act(Effect::Count(failure))?;
    act(Effect::Metadata(&scratch.metadata))
}

/// Whether a forward proxy was given a URL of TLS, in a request that it can read.
pub(super) fn asks_for_tls(config: &Loaded, facts: &Facts<'_>) -> bool {
    config.forward_proxy && facts.port == Some(PortNumber::HTTPS) && !facts.connect
}

/// Returns the authority for the log, behind the scheme where that is not what it seems.
pub(super) fn written<'f>(config: &Loaded, facts: &Facts<'f>) -> [&'f str; 2] {
    let scheme = match asks_for_tls(config, facts) {
        true => "https://",
        false => "",
    };
    [scheme, facts.authority]
}

/// Returns the service port that a request was sent to; within a tunnel, only where it is for what CONNECT named.
pub(super) fn port_of(
    config: &Loaded,
    facts: &Facts<'_>,
    authority: Option<&Authority<'_>>,
) -> Option<PortNumber> {
    match authority {
        Some(authority) if facts.within.is_some() => {
            let target = facts.within.filter(|_| !facts.connect)?;
            port_within(target, authority)
        }
        Some(authority) if config.forward_proxy => {
            let port = authority.port.or(facts.port);
            // What comes in plaintext is no TLS, whatever its URL says: it is led as if the URL were one of plain HTTP
            // that comes to the same port of the server.
            let dialled = port.filter(|_| asks_for_tls(config, facts));
            dialled
                .and_then(|port| config.table.plain_port(&authority.host, port))
                .or(port)
        }
        _ => config.listener_port.or(facts.port),
    }
}

/// Decides about a request.
pub(super) fn decide<'t: 'q, 'q>(
    config: &'t Loaded,
    facts: &Facts<'q>,
    parsed: &'q Result<Authority<'_>, InvalidAuthority>,
) -> Decision<'t, 'q> {
    let port = port_of(config, facts, parsed.as_ref().ok());
    if port.is_none() && facts.within.is_some() && parsed.is_ok() {
        return refused(Reason::OtherHost);
    }
    match (parsed, port) {
        (Ok(authority), Some(port)) => {
            let query = Query {
                host: &authority.host,
                port,
                downstream: match facts.connect {
                    true => DownstreamProtocol::Tls,
                    false => DownstreamProtocol::Http,
                },
                branch: facts.route,
                subset: None,
            };
            let decision = config.table.decide(&query);
            // Who asks for TLS does not get plaintext.
            match decision.action {
                Action::Forward(_) if asks_for_tls(config, facts) => Decision {
                    action: Action::Reject(Reason::OtherProtocol),
                    ..decision
                },
                _ => decision,
            }
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

/// Whether the client's own authority leads a plaintext connection to the target, which the scratch then holds.
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

/// Returns where a shared cluster must be sent to when the authority does not lead to the target.
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

fn push_detour(detour: Detour<'_>, scratch: &Scratch, act: Act<'_>) -> Result<(), HostError> {
    let host = match detour {
        Detour::None => return Ok(()),
        Detour::To(address) => address,
        Detour::Target => host_of(&scratch.authority),
    };
    act(Effect::FilterState(contract::DYNAMIC_HOST_STATE, host))?;
    act(Effect::FilterState(
        contract::DYNAMIC_PORT_STATE,
        &scratch.dial_port,
    ))
}

/// Names the cluster in a header, unless requests reach it without one.
fn route(
    config: &Loaded,
    header: &'static str,
    other: &'static str,
    cluster: &Cluster,
    act: Act<'_>,
) -> Result<(), HostError> {
    let name = config.cluster_name(cluster);
    if config.headers_stripped && config.default_cluster.as_deref() == Some(name) {
        return Ok(());
    }
    if !config.headers_stripped {
        act(Effect::RemoveHeader(other))?;
    }
    act(Effect::Header(header, name))?;
    act(Effect::ChooseRouteAgain)
}

fn answer(
    config: &Loaded,
    reason: Reason,
    scratch: &mut Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
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
        // As where no route matches.
        Reason::NoRoute => 404,
        // As where a route names a cluster that there is not.
        Reason::UnknownDestination => 503,
        // As Istio's `block_all` route answers.
        Reason::UnknownHost
        | Reason::UnknownPort
        | Reason::OtherProtocol
        | Reason::OtherHost
        | Reason::UnknownSubset
        | Reason::LeftOut
        | Reason::NotRead
        | Reason::TlsInTls
        | Reason::InvalidRule => 502,
    };
    act(Effect::Metadata(&scratch.metadata))?;
    act(Effect::Answer {
        status,
        details: scratch.body.get(..details).unwrap_or(""),
        body: &scratch.body,
    })
}
