//! Applies planned effects. Each takes one call to the host or two.

use std::borrow::Cow;

use egress_filter::{Effect, HostError, Next, contract, protobuf};
use proxy_wasm::types::Action;

use crate::{counters, host, routes};

/// Does one thing that was planned.
pub(crate) fn apply(effect: Effect<'_>) -> Result<(), HostError> {
    match effect {
        Effect::Authority(value) => host::set_request_header(":authority", value),
        Effect::Header(name, value) => host::set_request_header(name, value),
        Effect::RemoveHeader(name) => host::remove_request_header(name),
        Effect::ChooseRouteAgain => routes::choose_again(),
        Effect::FilterState(key, value) => {
            host::call(contract::SET_FILTER_STATE, &filter_state(key, value))
        }
        Effect::TransportSocket(name) => {
            host::set_property(contract::SOCKET_PROPERTY, name.as_bytes())
        }
        Effect::Tunnel(target) => host::set_property(contract::TUNNEL_PROPERTY, target.as_bytes()),
        Effect::Within(target) => host::set_property(contract::WITHIN_PROPERTY, target.as_bytes()),
        Effect::Login => {
            let connection = host::number(&contract::CONNECTION_ID)?.ok_or(HostError)?;
            host::set_property(contract::LOGIN_PROPERTY, connection.to_string().as_bytes())
        }
        Effect::Metadata(value) => host::set_property(contract::METADATA_PROPERTY, value),
        Effect::Answer {
            status,
            details,
            body,
        } => host::answer(status, details, body),
        Effect::Close => host::close_downstream(),
        Effect::CloseRequest => host::close_request(),
        Effect::Count(failure) => counters::count(failure),
        Effect::CountAllowed => counters::count_allowed(),
        Effect::CountLeaving => counters::count_leaving(),
        Effect::ResponseHeader(name, value) => host::set_response_header(name, value.as_bytes()),
        Effect::ResponseLines(name, lines) => set_lines(name, lines),
        Effect::AnswerInstead {
            status,
            details,
            body,
        } => host::answer(status.map_or_else(said_status, Ok)?, details, body),
    }
}

/// Sets the lines of a response header in place of all that were there.
fn set_lines(name: &str, lines: &[Cow<'_, [u8]>]) -> Result<(), HostError> {
    let Some((first, others)) = lines.split_first() else {
        return host::remove_response_header(name);
    };
    host::set_response_header(name, first)?;
    let mut others = others.iter();
    others.try_for_each(|line| host::add_response_header(name, line))
}

/// Returns what comes next, in the SDK's words.
pub(crate) fn action(next: Next) -> Action {
    match next {
        Next::Continue => Action::Continue,
        Next::Wait | Next::Stop => Action::Pause,
    }
}

/// Reads the status of the response.
fn said_status() -> Result<u32, HostError> {
    let status = host::response_header(":status")?.unwrap_or_default();
    let status = std::str::from_utf8(&status).ok();
    status.and_then(|text| text.parse().ok()).ok_or(HostError)
}

/// Writes the protobuf message `{string path = 1; string value = 2; LifeSpan span = 3}`, span left at
/// its default, the stream.
///
/// Source: envoyproxy/envoy `source/extensions/common/wasm/ext/set_envoy_filter_state.proto`.
fn filter_state(path: &str, value: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(path.len() + value.len() + 8);
    for (tag, text) in [(0x0a, path), (0x12, value)] {
        protobuf::field(&mut message, tag, text.as_bytes());
    }
    message
}
