//! One HTTP request: read facts, hand them to its stream, apply effects.

use egress_filter::{
    Effect, HostError, HttpRequest, HttpStream, Next, ON_HOST_ERROR, contract, protobuf,
};
use egress_policy::PortNumber;
use log::error;
use proxy_wasm::traits::HttpContext;
use proxy_wasm::types::Action;

use crate::host;
use crate::{Shared, counters, routes};

/// A request.
pub struct Request {
    /// `None` where the plugin has no configuration.
    stream: Option<HttpStream>,
}

impl Request {
    pub(crate) fn new(worker: Option<Shared>) -> Self {
        let stream = worker.map(HttpStream::new);
        Request { stream }
    }

    fn handle(&mut self) -> Result<Next, HostError> {
        let stream = self.stream.as_mut().ok_or(HostError)?;
        let wanted = stream.wanted();
        let mut request = HttpRequest {
            authority: host::request_header(":authority")?.unwrap_or_default(),
            ..HttpRequest::default()
        };
        if wanted.dialled_port {
            request.port = destination_port()?;
        }
        if wanted.proxy_request {
            let method = host::request_header(":method")?;
            request.connect = method.is_some_and(|method| method == b"CONNECT");
            // CONNECT has neither scheme nor URL.
            if !request.connect {
                let scheme = host::request_header(":scheme")?.unwrap_or_default();
                request.port = Some(HttpRequest::port_of_scheme(&scheme));
            }
        }
        stream.on_request(request, &mut apply)
    }
}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _count: usize, _end_of_stream: bool) -> Action {
        match self.handle() {
            Ok(next) => action(next),
            Err(HostError) => {
                error!("egress: the host refused a call; the request is refused");
                // Whatever this returns, the request is not let go.
                let _ = apply(ON_HOST_ERROR);
                Action::Pause
            }
        }
    }

    fn on_http_request_body(&mut self, _size: usize, end_of_stream: bool) -> Action {
        let Some(stream) = &mut self.stream else {
            return Action::Continue;
        };
        match stream.on_body(end_of_stream, host::request_body, &mut apply) {
            Ok(next) => action(next),
            Err(HostError) => {
                error!("egress: the host refused a call; the connection is closed");
                // Whatever this returns, the bytes are not let go.
                let _ = host::close_request();
                Action::Pause
            }
        }
    }

    fn on_http_response_headers(&mut self, count: usize, _end_of_stream: bool) -> Action {
        let Some(stream) = &mut self.stream else {
            return Action::Continue;
        };
        let details = || Ok(host::property(&contract::RESPONSE_DETAILS)?.unwrap_or_default());
        let content_type = || Ok(host::response_header("content-type")?.unwrap_or_default());
        match stream.on_response(count, details, content_type, &mut apply) {
            Ok(next) => action(next),
            Err(HostError) => {
                error!("egress: the host refused a call; a failure is not told whole");
                Action::Continue
            }
        }
    }
}

/// Says in the SDK's words what comes next.
pub(crate) fn action(next: Next) -> Action {
    match next {
        Next::Continue => Action::Continue,
        Next::Wait | Next::Stop => Action::Pause,
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
