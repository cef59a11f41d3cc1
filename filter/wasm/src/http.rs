//! One HTTP request: read facts, plan, apply; and when its connection failed, say why.

use std::cell::RefCell;

use egress_filter::{
    Effect, Facts, Scratch, TELLING, begins_tls, contract, failed, plan_failure, plan_plaintext,
    protobuf,
};
use egress_policy::PortNumber;
use log::error;
use proxy_wasm::traits::HttpContext;
use proxy_wasm::types::Action;

use crate::host::{self, HostError};
use crate::{Shared, counters, routes};

thread_local! {
    /// One VM handles one request or connection at a time, so all of them share the room for their texts.
    pub(crate) static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A request and the configuration it began with.
pub struct Request {
    loaded: Option<Shared>,
    /// What it was planned by, once it was let go; its response is looked at then only.
    sent: Option<Sent>,
    /// What CONNECT was planned by, until the bytes behind it have been seen to be TLS.
    unread: Option<Sent>,
    /// An answer is on its way to the application.
    answered: bool,
}

/// The facts of a request, kept for what comes later.
#[derive(Clone)]
struct Sent {
    authority: Vec<u8>,
    port: Option<PortNumber>,
    connect: bool,
}

impl Sent {
    fn facts(&self) -> Facts<'_> {
        Facts {
            // What is not text names no host that could be in the table.
            authority: std::str::from_utf8(&self.authority).unwrap_or("\u{fffd}"),
            port: self.port,
            connect: self.connect,
        }
    }
}

impl Request {
    pub(crate) fn new(loaded: Option<Shared>) -> Self {
        Request {
            loaded,
            sent: None,
            unread: None,
            answered: false,
        }
    }

    /// Says whether the request goes on; `Ok(false)` when it was answered here.
    fn handle(&mut self) -> Result<bool, HostError> {
        let Some(loaded) = &self.loaded else {
            return Err(HostError);
        };
        let authority = host::request_header(":authority")?.unwrap_or_default();
        let (port, connect) = match loaded.config().listener_port {
            Some(_) => (None, false),
            None if loaded.config().forward_proxy => asked_of_a_proxy()?,
            None => (destination_port()?, false),
        };
        let sent = Sent {
            authority,
            port,
            connect,
        };
        let mut goes_on = true;
        loaded.plan_http(&sent.facts(), &mut |effect| {
            goes_on &= !effect.ends();
            apply(effect)
        })?;
        self.unread = (goes_on && connect).then(|| sent.clone());
        self.sent = goes_on.then_some(sent);
        Ok(goes_on)
    }

    /// Looks at the first bytes behind CONNECT; `Ok(true)` when they may go on. What is not TLS is closed, and nothing
    /// of it is sent.
    fn read(&mut self, end_of_stream: bool) -> Result<bool, HostError> {
        let (Some(loaded), Some(unread)) = (self.loaded.as_deref(), &self.unread) else {
            return Ok(true);
        };
        let bytes = host::request_body(TELLING)?;
        match begins_tls(&bytes) {
            Some(true) => {
                self.unread = None;
                return Ok(true);
            }
            None if !end_of_stream => return Ok(false),
            // Nothing was said.
            None if bytes.is_empty() => return Ok(true),
            None | Some(false) => {}
        }
        SCRATCH.with(|scratch| {
            let mut scratch = scratch.try_borrow_mut().map_err(|_| HostError)?;
            let (facts, answered) = (unread.facts(), self.answered);
            plan_plaintext(loaded.config(), &facts, answered, &mut scratch, &mut apply)?;
            Ok(false)
        })
    }

    /// Looks at a response that could be Envoy's own, and says why the connection failed if it did; `Ok(true)` when
    /// another answer has taken its place.
    fn explain(&mut self) -> Result<bool, HostError> {
        let (Some(loaded), Some(sent)) = (self.loaded.as_deref(), self.sent.take()) else {
            return Ok(false);
        };
        let loaded = loaded.config();
        let details = host::property(&contract::RESPONSE_DETAILS)?.unwrap_or_default();
        let details = std::str::from_utf8(&details).unwrap_or_default();
        let facts = sent.facts();
        let Some(failure) = failed(loaded, &facts, details) else {
            return Ok(false);
        };
        let content = host::response_header("content-type")?.unwrap_or_default();
        let grpc = content.starts_with(b"application/grpc");
        SCRATCH.with(|scratch| {
            let mut scratch = scratch.try_borrow_mut().map_err(|_| HostError)?;
            let mut answered = false;
            let failed = (failure, details);
            plan_failure(loaded, &facts, failed, grpc, &mut scratch, &mut |effect| {
                answered |= matches!(effect, Effect::AnswerInstead { .. });
                apply(effect)
            })?;
            Ok(answered)
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

    fn on_http_request_body(&mut self, _size: usize, end_of_stream: bool) -> Action {
        if self.unread.is_none() {
            return Action::Continue;
        }
        match self.read(end_of_stream) {
            Ok(true) => Action::Continue,
            Ok(false) => Action::Pause,
            Err(HostError) => {
                error!("egress: the host refused a call; the connection is closed");
                // Whatever this returns, the bytes are not let go.
                let _ = host::close_request();
                Action::Pause
            }
        }
    }

    fn on_http_response_headers(&mut self, count: usize, _end_of_stream: bool) -> Action {
        self.answered = true;
        // Of the answers that count, those of servers have more headers: they cost no call.
        if count > contract::LOCAL_REPLY_HEADERS {
            return Action::Continue;
        }
        match self.explain() {
            Ok(true) => Action::Pause,
            Ok(false) => Action::Continue,
            Err(HostError) => {
                error!("egress: the host refused a call; a failure is not told whole");
                Action::Continue
            }
        }
    }
}

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
        Effect::ResponseHeader(name, value) => host::set_response_header(name, value),
        Effect::AnswerInstead {
            status,
            details,
            body,
        } => host::answer(status.map_or_else(said_status, Ok)?, details, body),
    }
}

/// Reads the status of the response.
fn said_status() -> Result<u32, HostError> {
    let status = host::response_header(":status")?.unwrap_or_default();
    let status = std::str::from_utf8(&status).ok();
    status.and_then(|text| text.parse().ok()).ok_or(HostError)
}

/// Reads what a forward proxy is asked: the port of the URL's scheme, and whether the method is CONNECT, which has
/// neither scheme nor URL.
fn asked_of_a_proxy() -> Result<(Option<PortNumber>, bool), HostError> {
    if host::request_header(":method")?.is_some_and(|method| method == b"CONNECT") {
        return Ok((None, true));
    }
    let scheme = host::request_header(":scheme")?;
    let port = match scheme.as_deref() {
        Some(b"https") => PortNumber::HTTPS,
        _ => PortNumber::HTTP,
    };
    Ok((Some(port), false))
}

/// Reads the port that the application dialled.
fn destination_port() -> Result<Option<PortNumber>, HostError> {
    let number = host::number(&contract::DESTINATION_PORT)?;
    Ok(number
        .and_then(|number| u16::try_from(number).ok())
        .and_then(PortNumber::new))
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
