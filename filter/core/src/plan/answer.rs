//! What a server answered becomes effects: the headers that change, and what the log says of it.

use egress_policy::{Action, Authority, PortNumber};

use crate::answer::{Answer, Arrival, Lines, REPAIRABLE, Redirect, Repairs};
use crate::effect::{Act, Effect, HostError};
use crate::facts::Facts;
use crate::load::Loaded;
use crate::plan::http::{asks_for_tls, decide, port_of, written};
use crate::plan::{Scratch, write_metadata_with};

/// Plans what should happen to an answer of a server.
///
/// # Errors
/// As [`plan_http`](crate::plan_http). What was not done by then stays as the server said it.
pub(crate) fn plan_answer(
    config: &Loaded,
    facts: &Facts<'_>,
    lines: &Lines,
    scratch: &mut Scratch,
    act: Act<'_>,
) -> Result<(), HostError> {
    let parsed = Authority::parse(facts.authority);
    let decision = decide(config, facts, &parsed);
    let (Action::Originate(cluster), Ok(authority)) = (decision.action, &parsed) else {
        return Ok(());
    };
    let Some(port) = port_of(config, facts, Some(authority)) else {
        return Ok(());
    };
    let repairs = Repairs::of(config.repair, cluster.notes);
    if !repairs.look() {
        return Ok(());
    }
    let arrival = Arrival {
        host: &authority.host,
        port,
        // A URL of TLS names the port of that.
        written: match asks_for_tls(config, facts) {
            true => Some(port).filter(|port| *port != PortNumber::HTTP),
            false => authority.port,
        },
        mapped: &config.mapped_ports,
    };
    let mut answer = Answer::new(&config.table, repairs, arrival, !config.headers_stripped);
    for (header, name) in REPAIRABLE {
        let own = lines.iter().filter(|(it, _)| *it == header);
        let own: Vec<&[u8]> = own.map(|(_, line)| line.as_slice()).collect();
        if own.is_empty() {
            continue;
        }
        if let Some(repaired) = answer.repair(header, &own) {
            act(Effect::ResponseLines(name, &repaired))?;
        }
    }
    let noted = answer.noted();
    if noted.is_empty() {
        return Ok(());
    }
    if noted.redirect == Some(Redirect::Leaves) {
        act(Effect::CountLeaving)?;
    }
    let authority = written(config, facts);
    write_metadata_with(config, authority, &decision, None, &noted, scratch);
    act(Effect::Metadata(&scratch.metadata))
}
