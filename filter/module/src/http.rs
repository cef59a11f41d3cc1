//! One HTTP request: read facts, hand them to its stream, apply effects.

use std::cell::RefCell;
use std::sync::Arc;

use egress_filter::answer::{Lines, Repairable};
use egress_filter::{
    Effect, HostError, HttpRequest, HttpStream, Next, ON_HOST_ERROR, Response, contract,
};
use egress_policy::PortNumber;

use crate::apply;
use crate::config::Config;
use crate::host::{Attribute, HttpHost, Level, has_tunnel, log};

/// A request.
///
/// Envoy may call one hook from within another: an answer of ours passes through the filter as a response does.
/// The hook within finds the stream taken, and lets pass what it was called for.
pub(crate) struct Request {
    config: Arc<Config>,
    stream: RefCell<HttpStream>,
}

impl Request {
    pub(crate) fn new(config: Arc<Config>) -> Self {
        let stream = RefCell::new(HttpStream::new(config.worker()));
        Request { config, stream }
    }

    /// Decides about the request.
    pub(crate) fn on_request_headers(&self, host: HttpHost<'_>) -> Next {
        let Ok(mut stream) = self.stream.try_borrow_mut() else {
            return Next::Continue;
        };
        let mut last = Last::Nothing;
        #[cfg(feature = "panics")]
        panics(host, "request");
        let result = read(&stream, host).and_then(|request| {
            stream.on_request(request, &mut |effect| self.apply(host, effect, &mut last))
        });
        // What ends the stream may call other hooks of it.
        drop(stream);
        match result {
            Ok(next) => {
                last.apply(host);
                next
            }
            Err(HostError) => {
                log(
                    Level::Error,
                    "egress: the host refused a call; the request is refused",
                );
                refuse(host);
                Next::Stop
            }
        }
    }

    /// Looks at the first bytes behind CONNECT.
    pub(crate) fn on_request_body(&self, host: HttpHost<'_>, end_of_stream: bool) -> Next {
        let Ok(mut stream) = self.stream.try_borrow_mut() else {
            return Next::Continue;
        };
        let mut last = Last::Nothing;
        #[cfg(feature = "panics")]
        panics(host, "body");
        let bytes = |most| Ok(host.request_body(most));
        let result = stream.on_body(end_of_stream, bytes, &mut |effect| {
            self.apply(host, effect, &mut last)
        });
        drop(stream);
        match result {
            Ok(next) => {
                last.apply(host);
                next
            }
            Err(HostError) => {
                log(
                    Level::Error,
                    "egress: the host refused a call; the connection is closed",
                );
                host.close();
                Next::Stop
            }
        }
    }

    /// Says why the connection failed, if it did.
    pub(crate) fn on_response_headers(&self, host: HttpHost<'_>) -> Next {
        let Ok(mut stream) = self.stream.try_borrow_mut() else {
            return Next::Continue;
        };
        let mut last = Last::Nothing;
        #[cfg(feature = "panics")]
        panics(host, "response");
        // What is left tells Envoy's own answers from those of servers.
        let left = host.remove_response_headers(contract::is_withheld);
        let count = left.unwrap_or_else(|HostError| host.response_headers());
        let result = stream.on_response(count, &Said(host), &mut |effect| {
            self.apply(host, effect, &mut last)
        });
        let result = left.and(result);
        drop(stream);
        // What the application is told does not depend on what could not be logged.
        last.apply(host);
        result.unwrap_or_else(|HostError| {
            log(
                Level::Error,
                "egress: the host refused a call; an answer is not told or repaired whole",
            );
            Next::Continue
        })
    }

    /// Refuses the request after a panic, which may have left anything half done.
    pub(crate) fn on_panic(&self, host: HttpHost<'_>) {
        self.config
            .counters()
            .count_panic(|counter| host.increment(counter));
        refuse(host);
    }

    /// Breaks off the request after a panic, where an answer may be on its way already.
    pub(crate) fn on_late_panic(&self, host: HttpHost<'_>) {
        self.config
            .counters()
            .count_panic(|counter| host.increment(counter));
        host.close();
    }

    /// Does one thing that was planned, or keeps it as the last one.
    fn apply(
        &self,
        host: HttpHost<'_>,
        effect: Effect<'_>,
        last: &mut Last,
    ) -> Result<(), HostError> {
        match effect {
            Effect::Authority(value) => host.set_request_header(":authority", value),
            Effect::Header(name, value) => host.set_request_header(name, value),
            Effect::RemoveHeader(name) => host.remove_request_header(name),
            Effect::ChooseRouteAgain => {
                host.choose_route_again();
                Ok(())
            }
            Effect::Within(target) => host.set_text(contract::WITHIN_STATE, target.as_bytes()),
            Effect::Login => {
                let connection = host.number(Attribute::ConnectionId).ok_or(HostError)?;
                host.set_text_of_connection(contract::LOGIN_STATE, &connection.to_string())
            }
            Effect::Answer {
                status,
                details,
                body,
            } => {
                *last = Last::answer(status, details, body);
                Ok(())
            }
            Effect::AnswerInstead {
                status,
                details,
                body,
            } => {
                let status = match status {
                    Some(status) => status,
                    None => said_status(host)?,
                };
                *last = Last::answer(status, details, body);
                Ok(())
            }
            Effect::CloseRequest => {
                *last = Last::Close;
                Ok(())
            }
            Effect::ResponseHeader(name, value) => host.set_response_header(name, value),
            Effect::ResponseLines(name, lines) => host.set_response_lines(name, lines),
            other => apply::apply(host, &self.config, other),
        }
    }
}

/// What ends a stream. Envoy may write the access log before the call for it returns, so it comes after all other
/// effects.
enum Last {
    Nothing,
    Answer {
        status: u32,
        details: String,
        body: String,
    },
    Close,
}

impl Last {
    fn answer(status: u32, details: &str, body: &str) -> Self {
        Last::Answer {
            status,
            details: details.to_owned(),
            body: body.to_owned(),
        }
    }

    fn apply(self, host: HttpHost<'_>) {
        match self {
            Last::Nothing => {}
            Last::Answer {
                status,
                details,
                body,
            } => host.answer(status, &details, &body),
            Last::Close => host.close(),
        }
    }
}

/// Answers as where the host refused a call.
fn refuse(host: HttpHost<'_>) {
    if let Effect::Answer {
        status,
        details,
        body,
    } = ON_HOST_ERROR
    {
        host.answer(status, details, body);
    }
}

/// Reads the facts that a stream asks for.
fn read(stream: &HttpStream, host: HttpHost<'_>) -> Result<HttpRequest, HostError> {
    let wanted = stream.wanted();
    let mut request = HttpRequest {
        authority: host.request_header(":authority").unwrap_or_default(),
        ..HttpRequest::default()
    };
    if wanted.dialled_port {
        let number = host.number(Attribute::DestinationPort);
        request.port = number
            .and_then(|number| u16::try_from(number).ok())
            .and_then(PortNumber::new);
    }
    if wanted.proxy_request {
        let method = host.request_header(":method");
        request.connect = method.is_some_and(|method| method == b"CONNECT");
        request.within = host.text(contract::TARGET_STATE);
        // CONNECT has neither scheme nor URL.
        if !request.connect {
            let scheme = host.request_header(":scheme").unwrap_or_default();
            request.port = Some(HttpRequest::port_of_scheme(&scheme));
        }
    }
    if wanted.login {
        request.login = host.has_request_header("authorization", HttpRequest::logs_in);
    }
    if wanted.route {
        request.route = host.attribute(Attribute::RouteName);
    }
    Ok(request)
}

/// The response that the host shows at this moment.
struct Said<'h>(HttpHost<'h>);

impl Response for Said<'_> {
    fn details(&self) -> Result<Vec<u8>, HostError> {
        let details = self.0.attribute(Attribute::ResponseDetails);
        Ok(details.unwrap_or_default())
    }

    fn content_type(&self) -> Result<Vec<u8>, HostError> {
        Ok(self.0.response_header("content-type").unwrap_or_default())
    }

    fn lines(&self) -> Result<Lines, HostError> {
        let mut lines = Lines::new();
        self.0.each_response_header(|name, value| {
            lines.extend(Repairable::of(name).map(|header| (header, value.to_vec())));
        })?;
        Ok(lines)
    }

    fn has_tunnel(&self) -> fn(usize) -> bool {
        has_tunnel
    }
}

/// Reads the status of the response.
fn said_status(host: HttpHost<'_>) -> Result<u32, HostError> {
    let status = host.response_header(":status").unwrap_or_default();
    let status = std::str::from_utf8(&status).ok();
    status.and_then(|text| text.parse().ok()).ok_or(HostError)
}

/// Panics where a request asks for it.
#[cfg(feature = "panics")]
#[expect(clippy::panic, reason = "it is what is tested")]
fn panics(host: HttpHost<'_>, hook: &str) {
    if host.request_header("x-panic").as_deref() == Some(hook.as_bytes()) {
        panic!("as the request asks for");
    }
}
