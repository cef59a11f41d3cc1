//! One HTTP request: read facts, plan, apply.

use std::cell::RefCell;

use egress_filter::{Effect, Facts, Scratch, contract, plan_http, varint};
use egress_policy::PortNumber;
use log::error;
use proxy_wasm::traits::HttpContext;
use proxy_wasm::types::Action;

use crate::Shared;
use crate::host::{self, HostError};

thread_local! {
    /// One VM handles one request at a time, so all of them share the room for their texts.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A request and the configuration it began with.
pub struct Request {
    loaded: Option<Shared>,
}

impl Request {
    pub(crate) fn new(loaded: Option<Shared>) -> Self {
        Request { loaded }
    }

    /// Says whether the request goes on; `Ok(false)` when it was answered here.
    fn handle(&self) -> Result<bool, HostError> {
        let Some(loaded) = &self.loaded else {
            return Err(HostError);
        };
        let authority = host::request_header(":authority")?.unwrap_or_default();
        // What is not text names no host that could be in the table.
        let authority = std::str::from_utf8(&authority).unwrap_or("\u{fffd}");
        let port = match loaded.listener_port {
            Some(_) => None,
            None => destination_port()?,
        };
        SCRATCH.with_borrow_mut(|scratch| {
            let mut goes_on = true;
            for effect in plan_http(loaded, &Facts { authority, port }, scratch).iter() {
                goes_on &= !matches!(effect, Effect::Answer { .. });
                apply(effect)?;
            }
            Ok(goes_on)
        })
    }
}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _count: usize, _end_of_stream: bool) -> Action {
        match self.handle() {
            Ok(true) => Action::Continue,
            Ok(false) => Action::Pause,
            Err(HostError) => {
                error!("egress: the host refused a call; the request is refused");
                // Whatever this returns, the request is not let go.
                let _ = host::answer(
                    500,
                    "egress_host_error",
                    "egress: host_error: the proxy could not apply the decision\n",
                );
                Action::Pause
            }
        }
    }
}

fn apply(effect: Effect<'_>) -> Result<(), HostError> {
    match effect {
        Effect::Authority(value) => host::set_request_header(":authority", value),
        Effect::Header(name, value) => host::set_request_header(name, value),
        Effect::RemoveHeader(name) => host::remove_request_header(name),
        Effect::ChooseRouteAgain => host::call(contract::CLEAR_ROUTE_CACHE, &[]),
        Effect::FilterState(key, value) => {
            host::call(contract::SET_FILTER_STATE, &filter_state(key, value))
        }
        Effect::TransportSocket(name) => {
            host::set_property(contract::SOCKET_PROPERTY, name.as_bytes())
        }
        Effect::Metadata(value) => host::set_property(contract::METADATA_PROPERTY, value),
        Effect::Answer {
            status,
            details,
            body,
        } => host::answer(status, details, body),
    }
}

/// Reads the port that the application dialled.
fn destination_port() -> Result<Option<PortNumber>, HostError> {
    let Some(bytes) = host::property(&contract::DESTINATION_PORT)? else {
        return Ok(None);
    };
    // Envoy hands integers over as eight bytes, least first.
    let number = <[u8; 8]>::try_from(bytes.as_slice())
        .map(i64::from_le_bytes)
        .unwrap_or(0);
    Ok(u16::try_from(number).ok().and_then(PortNumber::new))
}

/// Writes the protobuf message `{string path = 1; string value = 2; LifeSpan span = 3}`, span left at
/// its default, the stream.
///
/// Source: envoyproxy/envoy `source/extensions/common/wasm/ext/set_envoy_filter_state.proto`.
fn filter_state(path: &str, value: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(path.len() + value.len() + 8);
    for (tag, text) in [(0x0a, path), (0x12, value)] {
        message.push(tag);
        varint(&mut message, text.len());
        message.extend_from_slice(text.as_bytes());
    }
    message
}
