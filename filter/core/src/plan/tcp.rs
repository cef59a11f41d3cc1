//! A connection's facts become effects, as in [`crate::plan_http`] but for bytes that are not HTTP.

use egress_policy::{
    Action, Authority, Cluster, Connection, Decision, Endpoints, InvalidAuthority, Reason, Spoken,
};

use crate::config::FilterKind;
use crate::contract;
use crate::effect::{Act, Effect, HostError};
use crate::facts::{ConnectionEnd, ConnectionFacts, Wanted};
use crate::failure::Failure;
use crate::load::Loaded;
use crate::plan::{
    Scratch, found_by_name, push_names, push_tunnel, refused, tunnel, write_metadata, write_names,
    write_tunnel,
};
use crate::text::itoa;

/// Returns which facts [`plan_tcp`] needs: as few as tell services apart, for each is a call.
pub fn wanted(config: &Loaded) -> Wanted {
    if config.filter == FilterKind::Tunnel {
        return Wanted {
            tunnel: true,
            ..Wanted::default()
        };
    }
    let needs_address = |port| config.table.needs_address(port);
    let divided = config.divided;
    Wanted {
        destination: divided.addresses || config.listener_port.is_none_or(needs_address),
        // A listener of one port leads TLS by SNI itself, where it leads a name to one place, and the rest is bytes.
        server_name: divided.names || config.listener_port.is_none(),
        time: divided.any,
        tunnel: false,
    }
}

/// Plans what should happen to a connection.
///
/// The effects name a cluster, or close the connection; there is no third way, for the `tcp_proxy` behind the
/// filter knows no cluster of its own. The cluster is named last: nothing is dialled before all else is said.
///
/// # Errors
/// That of `act`, which is called no more after it.
pub fn plan_tcp(
    config: &Loaded,
    facts: &ConnectionFacts<'_>,
    scratch: &mut Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
    let name = facts.server_name.map(Authority::parse);
    let decision = decide(config, facts, name.as_ref());
    write_metadata(
        config,
        ["", facts.server_name.unwrap_or_default()],
        &decision,
        None,
        scratch,
    );
    let (Some(cluster), Some(target)) = (cluster_of(&decision), decision.target) else {
        act(Effect::Metadata(&scratch.metadata))?;
        return act(Effect::Close);
    };
    let (pinned, port) = match decision.connect_to {
        Some((address, port)) => (Some(address), port),
        None => (None, target.port),
    };
    scratch.authority.clear();
    scratch.authority.push_str(target.host);
    scratch.dial_port.clear();
    scratch.dial_port.push_str(itoa(port.get(), &mut [0; 5]));
    write_tunnel(config, &decision, &mut scratch.tunnel);
    write_names(cluster, &mut scratch.names);
    if cluster.endpoints == Endpoints::OfTheRequest {
        let host = pinned.unwrap_or(&scratch.authority);
        act(Effect::FilterState(contract::DYNAMIC_HOST_STATE, host))?;
        let port = &scratch.dial_port;
        act(Effect::FilterState(contract::DYNAMIC_PORT_STATE, port))?;
    }
    push_names(cluster, true, scratch, act)?;
    if let Some(socket) = config.transport_socket(cluster) {
        act(Effect::TransportSocket(socket))?;
    }
    push_tunnel(config, scratch, act)?;
    if decision.plaintext_allowed {
        act(Effect::CountAllowed)?;
    }
    act(Effect::Metadata(&scratch.metadata))?;
    let name = config.cluster_name(cluster);
    act(Effect::FilterState(contract::TCP_CLUSTER_STATE, name))
}

/// Returns why Envoy could not connect to the server; `None` if it could, as far as Envoy tells.
///
/// `facts` are those that the connection was planned by.
pub fn connection_failed(
    config: &Loaded,
    facts: &ConnectionFacts<'_>,
    end: &ConnectionEnd<'_>,
) -> Option<Failure> {
    let name = facts.server_name.map(Authority::parse);
    let cluster = cluster_of(&decide(config, facts, name.as_ref()))?;
    let tls = cluster.tls.as_ref();
    let shows_certificate = tls.is_some_and(|tls| tls.identity.is_some());
    let tunnelled = cluster.tunnel.is_some();
    Failure::of_connection(end, shows_certificate, found_by_name(cluster), tunnelled)
}

/// Returns what the upstream proxy was asked for on behalf of a connection; `None` where no proxy is asked.
pub(crate) fn asked_for(config: &Loaded, facts: &ConnectionFacts<'_>) -> Option<String> {
    let name = facts.server_name.map(Authority::parse);
    tunnel(config, &decide(config, facts, name.as_ref()))
}

/// Plans what should happen when a connection whose server was not reached is closed: it is counted and logged.
///
/// # Errors
/// As [`plan_tcp`].
pub fn plan_connection_failure(
    config: &Loaded,
    facts: &ConnectionFacts<'_>,
    failure: Failure,
    scratch: &mut Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
    let name = facts.server_name.map(Authority::parse);
    let decision = decide(config, facts, name.as_ref());
    write_metadata(
        config,
        ["", facts.server_name.unwrap_or_default()],
        &decision,
        Some(failure),
        scratch,
    );
    act(Effect::Count(failure))?;
    act(Effect::Metadata(&scratch.metadata))
}

fn cluster_of<'t>(decision: &Decision<'t, '_>) -> Option<&'t Cluster> {
    match decision.action {
        Action::Originate(cluster) | Action::Forward(cluster) | Action::Passthrough(cluster) => {
            Some(cluster)
        }
        Action::Weighted | Action::Respond(_) | Action::Reject(_) | Action::LeaveAlone(_) => None,
    }
}

fn decide<'t: 'q, 'q>(
    config: &'t Loaded,
    facts: &ConnectionFacts<'_>,
    name: Option<&'q Result<Authority<'_>, InvalidAuthority>>,
) -> Decision<'t, 'q> {
    let Some(port) = config.listener_port.or(facts.port) else {
        return refused(Reason::UnknownPort);
    };
    let spoken = match name {
        None => Spoken::Bytes,
        Some(Ok(name)) if name.port.is_none() => Spoken::Tls {
            server_name: Some(&name.host),
        },
        Some(_) => return refused(Reason::InvalidHost),
    };
    config.table.decide_connection(&Connection {
        port,
        address: facts.address,
        spoken,
        drawn: facts.drawn,
    })
}
