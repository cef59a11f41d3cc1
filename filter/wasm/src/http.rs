//! One HTTP request: read facts, hand them to its stream, apply effects.

use std::rc::Rc;

use egress_filter::answer::{Lines, Repairable};
use egress_filter::{
    HostError, HttpRequest, HttpStream, Next, ON_HOST_ERROR, Response, Worker, contract,
};
use egress_policy::PortNumber;
use log::error;
use proxy_wasm::traits::HttpContext;
use proxy_wasm::types::Action;

use crate::apply::{action, apply};
use crate::host;
use crate::sdk::{bare_context, nothing};

/// A request.
pub struct Request {
    /// `None` where the plugin has no configuration.
    stream: Option<HttpStream>,
}

impl Request {
    pub(crate) fn new(worker: Option<Rc<Worker>>) -> Self {
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
            request.within = host::property(&contract::TARGET)?;
            // CONNECT has neither scheme nor URL.
            if !request.connect {
                let scheme = host::request_header(":scheme")?.unwrap_or_default();
                request.port = Some(HttpRequest::port_of_scheme(&scheme));
            }
        }
        if wanted.login {
            let authorization = host::request_header("authorization")?;
            request.login = authorization.is_some_and(|it| HttpRequest::logs_in(&it));
        }
        if wanted.route {
            request.route = host::property(&contract::ROUTE_NAME)?;
        }
        stream.on_request(request, &mut apply)
    }
}

bare_context!(Request);

impl HttpContext for Request {
    nothing! {
        get_http_request_headers() -> Vec<(String, String)>;
        get_http_request_headers_bytes() -> Vec<(String, Vec<u8>)>;
        get_http_request_header(&str) -> Option<String>;
        get_http_request_header_bytes(&str) -> Option<Vec<u8>>;
        get_http_request_body(usize, usize) -> Option<Vec<u8>>;
        get_http_request_trailers() -> Vec<(String, String)>;
        get_http_request_trailers_bytes() -> Vec<(String, Vec<u8>)>;
        get_http_request_trailer(&str) -> Option<String>;
        get_http_request_trailer_bytes(&str) -> Option<Vec<u8>>;
        get_http_response_headers() -> Vec<(String, String)>;
        get_http_response_headers_bytes() -> Vec<(String, Vec<u8>)>;
        get_http_response_header(&str) -> Option<String>;
        get_http_response_header_bytes(&str) -> Option<Vec<u8>>;
        get_http_response_body(usize, usize) -> Option<Vec<u8>>;
        get_http_response_trailers() -> Vec<(String, String)>;
        get_http_response_trailers_bytes() -> Vec<(String, Vec<u8>)>;
        get_http_response_trailer(&str) -> Option<String>;
        get_http_response_trailer_bytes(&str) -> Option<Vec<u8>>;
        set_http_request_headers(Vec<(&str, &str)>) -> ();
        set_http_request_headers_bytes(Vec<(&str, &[u8])>) -> ();
        set_http_request_trailers(Vec<(&str, &str)>) -> ();
        set_http_request_trailers_bytes(Vec<(&str, &[u8])>) -> ();
        set_http_response_headers(Vec<(&str, &str)>) -> ();
        set_http_response_headers_bytes(Vec<(&str, &[u8])>) -> ();
        set_http_response_trailers(Vec<(&str, &str)>) -> ();
        set_http_response_trailers_bytes(Vec<(&str, &[u8])>) -> ();
    }

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
        match stream.on_response(count, &Said, &mut apply) {
            Ok(next) => action(next),
            Err(HostError) => {
                error!("egress: the host refused a call; an answer is not told or repaired whole");
                Action::Continue
            }
        }
    }
}

/// The response that the host shows at this moment.
struct Said;

impl Response for Said {
    fn details(&self) -> Result<Vec<u8>, HostError> {
        Ok(host::property(&contract::RESPONSE_DETAILS)?.unwrap_or_default())
    }

    fn content_type(&self) -> Result<Vec<u8>, HostError> {
        Ok(host::response_header("content-type")?.unwrap_or_default())
    }

    fn lines(&self) -> Result<Lines, HostError> {
        let mut lines = Lines::new();
        host::response_headers(|name, value| {
            lines.extend(Repairable::of(name).map(|header| (header, value.to_vec())));
        })?;
        Ok(lines)
    }

    fn has_tunnel(&self) -> fn(usize) -> bool {
        host::has_tunnel
    }
}

/// Reads the port that the application dialled.
fn destination_port() -> Result<Option<PortNumber>, HostError> {
    let number = host::number(&contract::DESTINATION_PORT)?;
    Ok(number
        .and_then(|number| u16::try_from(number).ok())
        .and_then(PortNumber::new))
}
