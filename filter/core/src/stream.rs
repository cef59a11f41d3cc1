//! One life of a stream: a request or a connection, from its beginning to its end.
//!
//! A host makes one for each stream. It reads the facts that the stream asks for, hands them over, applies each effect,
//! and does what [`Next`] says. The stream keeps the facts, so that a failure is explained by the same facts as the
//! plan. A rarely needed fact is a function, because reading it costs the host a call.

use std::rc::Rc;

use crate::answer::Lines;
use crate::client_hello::{TELLING, begins_tls};
use crate::contract;
use crate::effect::{Act, Effect, HostError};
use crate::facts::{ConnectionEnd, Dialled, HttpRequest, HttpWanted, Wanted};
use crate::plan::answer::plan_answer;
use crate::plan::http::{asked_for, failed, http_wanted, plan_failure, plan_plaintext};
use crate::plan::tcp::{self, connection_failed, plan_connection_failure, plan_tcp, wanted};
use crate::response::Response;
use crate::tunnels::{Tunnel, refusal};
use crate::worker::Worker;

/// What a host does with a stream once the effects are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It lets it go on.
    Continue,
    /// It holds what it has until there is more.
    Wait,
    /// It lets nothing go on: the stream was answered or closed.
    Stop,
}

/// What a host does with a request when it could not apply an effect: it refuses the request, which must not go on with
/// half of a plan.
pub const ON_HOST_ERROR: Effect<'static> = Effect::Answer {
    status: 500,
    details: "egress_host_error",
    body: "egress: host_error: the proxy could not apply the decision\n",
};

/// A request, and the configuration it began with.
pub struct HttpStream {
    worker: Rc<Worker>,
    /// What it was planned by, once it was let go.
    sent: Option<HttpRequest>,
    /// The bytes behind CONNECT have not been seen to be TLS yet.
    unread: bool,
    /// An answer is on its way to the application.
    answered: bool,
}

impl HttpStream {
    /// Begins with nothing known.
    pub fn new(worker: Rc<Worker>) -> Self {
        HttpStream {
            worker,
            sent: None,
            unread: false,
            answered: false,
        }
    }

    /// Returns which facts of the request must be read, beside the authority.
    pub fn wanted(&self) -> HttpWanted {
        http_wanted(self.worker.config())
    }

    /// Decides about the request, before any of it goes on.
    ///
    /// # Errors
    /// That of `act`. The request must not go on then: see [`ON_HOST_ERROR`].
    pub fn on_request(&mut self, request: HttpRequest, act: Act<'_>) -> Result<Next, HostError> {
        let (mut ends, mut read) = (false, false);
        if request.login {
            act(Effect::Login)?;
        }
        self.worker.plan_http(&request.facts(), &mut |effect| {
            ends |= effect.ends();
            read |= matches!(effect, Effect::Within(_));
            act(effect)
        })?;
        if ends {
            return Ok(Next::Stop);
        }
        // What is read as requests is looked at there.
        self.unread = request.connect && !read;
        self.sent = Some(request);
        Ok(Next::Continue)
    }

    /// Looks at the first bytes behind CONNECT, and at no others. What is not TLS is closed, and nothing of it is sent.
    ///
    /// `bytes` reads as many as it is asked for of those that are held, or fewer where there are fewer.
    ///
    /// # Errors
    /// Those of `bytes` and `act`. The bytes must not go on then.
    pub fn on_body(
        &mut self,
        end_of_stream: bool,
        bytes: impl FnOnce(usize) -> Result<Vec<u8>, HostError>,
        act: Act<'_>,
    ) -> Result<Next, HostError> {
        let Some(sent) = self.sent.as_ref().filter(|_| self.unread) else {
            return Ok(Next::Continue);
        };
        let bytes = bytes(TELLING)?;
        match begins_tls(&bytes) {
            Some(true) => {
                self.unread = false;
                return Ok(Next::Continue);
            }
            None if !end_of_stream => return Ok(Next::Wait),
            // Nothing was said.
            None if bytes.is_empty() => return Ok(Next::Continue),
            None | Some(false) => {}
        }
        let (config, facts, answered) = (self.worker.config(), sent.facts(), self.answered);
        self.worker
            .with_scratch(|scratch| plan_plaintext(config, &facts, answered, scratch, act))?;
        Ok(Next::Stop)
    }

    /// Looks at a response. Of one that could be Envoy's own it says why the connection failed if it did; [`Next::Stop`]
    /// when another answer has taken its place. One of a server is repaired.
    ///
    /// `headers` is how many the response has.
    ///
    /// # Errors
    /// Those of `response` and `act`. The response may go on then: a failure is not told whole, or it is not repaired.
    pub fn on_response(
        &mut self,
        headers: usize,
        response: &dyn Response,
        act: Act<'_>,
    ) -> Result<Next, HostError> {
        let again = std::mem::replace(&mut self.answered, true);
        let Some(sent) = self.sent.as_ref().filter(|_| !again) else {
            return Ok(Next::Continue);
        };
        let (config, facts) = (self.worker.config(), sent.facts());
        let repair = |act: Act<'_>| {
            let lines = match config.looks_at_answers {
                true => response.lines()?,
                false => Lines::new(),
            };
            if !lines.is_empty() {
                self.worker
                    .with_scratch(|scratch| plan_answer(config, &facts, &lines, scratch, act))?;
            }
            Ok(Next::Continue)
        };
        // Of the answers that may have failed, those of servers have more headers: they cost no call.
        if headers > contract::LOCAL_REPLY_HEADERS {
            return repair(act);
        }
        let details = response.details()?;
        let details = std::str::from_utf8(&details).unwrap_or_default();
        let Some(failure) = failed(config, &facts, details) else {
            return repair(act);
        };
        let proxy = asked_for(config, &facts)
            .and_then(|target| refusal(&target, failure, details, response.has_tunnel()));
        let (failure, details) = match &proxy {
            Some(refusal) => (refusal.failure, refusal.details.as_str()),
            None => (failure, details),
        };
        let grpc = response.content_type()?.starts_with(b"application/grpc");
        let mut next = Next::Continue;
        let act: Act<'_> = &mut |effect| {
            if let Effect::AnswerInstead { .. } = effect {
                next = Next::Stop;
            }
            act(effect)
        };
        self.worker.with_scratch(|scratch| {
            plan_failure(config, &facts, (failure, details), grpc, scratch, act)
        })?;
        Ok(next)
    }
}

/// A connection that is not HTTP, and the configuration it began with.
pub struct Connection {
    worker: Rc<Worker>,
    /// What it was planned by, once it was let go.
    sent: Option<Dialled>,
    /// Where it asks the upstream proxy, and no plan is needed.
    tunnel: Option<Tunnel>,
}

impl Connection {
    /// Begins with nothing known.
    pub fn new(worker: Rc<Worker>) -> Self {
        Connection {
            worker,
            sent: None,
            tunnel: None,
        }
    }

    /// Returns which facts of the connection must be read.
    pub fn wanted(&self) -> Wanted {
        wanted(self.worker.config())
    }

    /// Decides about the connection, before any of its bytes go on.
    ///
    /// # Errors
    /// That of `act`. The connection must be closed then.
    pub fn on_new(&mut self, dialled: Dialled, act: Act<'_>) -> Result<Next, HostError> {
        if self.wanted().tunnel {
            let tunnel = dialled.tunnel;
            self.tunnel = tunnel.map(|(number, target)| Tunnel::new(number, &target));
            return Ok(Next::Continue);
        }
        let mut ends = false;
        let act: Act<'_> = &mut |effect| {
            ends |= effect.ends();
            act(effect)
        };
        let (config, facts) = (self.worker.config(), dialled.facts());
        self.worker
            .with_scratch(|scratch| plan_tcp(config, &facts, scratch, act))?;
        if ends {
            return Ok(Next::Stop);
        }
        self.sent = Some(dialled);
        Ok(Next::Continue)
    }

    /// Returns why the server was not reached, if it was not. Only the first call says so.
    ///
    /// `flags` reads [`ConnectionEnd::flags`], `transport` reads [`ConnectionEnd::transport`], `server` the address that
    /// was tried. `has_tunnel` is as in [`Response::has_tunnel`].
    ///
    /// # Errors
    /// Those of `flags`, `transport`, `server` and `act`: a failure is not told whole.
    pub fn on_close(
        &mut self,
        flags: impl FnOnce() -> Result<u64, HostError>,
        transport: impl FnOnce() -> Result<Vec<u8>, HostError>,
        server: impl FnOnce() -> Result<Vec<u8>, HostError>,
        has_tunnel: fn(usize) -> bool,
        act: Act<'_>,
    ) -> Result<(), HostError> {
        let (sent, tunnel) = (self.sent.take(), self.tunnel.take());
        if sent.is_none() && tunnel.is_none() {
            return Ok(());
        }
        let flags = flags()?;
        if flags == 0 {
            return Ok(());
        }
        let transport = transport()?;
        let end = ConnectionEnd {
            flags,
            transport: std::str::from_utf8(&transport).unwrap_or_default(),
        };
        if let Some(tunnel) = tunnel {
            tunnel.close(&end, &server()?);
        }
        let Some(sent) = sent else {
            return Ok(());
        };
        let (config, facts) = (self.worker.config(), sent.facts());
        let Some(failure) = connection_failed(config, &facts, &end) else {
            return Ok(());
        };
        let proxy = tcp::asked_for(config, &facts)
            .and_then(|target| refusal(&target, failure, "", has_tunnel));
        let failure = proxy.map_or(failure, |refusal| refusal.failure);
        self.worker
            .with_scratch(|scratch| plan_connection_failure(config, &facts, failure, scratch, act))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::answer::Repairable;
    use crate::load::load;

    const REFUSED: &[u8] = b"upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}";
    const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03random";

    fn worker(settings: serde_json::Value) -> Rc<Worker> {
        let entry = |name: &str, port: serde_json::Value| {
            json!({
                "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": name},
                "spec": {"hosts": [format!("{name}.example")], "resolution": "DNS", "ports": [port]},
            })
        };
        let mut config = json!({"resources": [
            entry("web", json!({"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443})),
            entry("tls", json!({"number": 443, "name": "tls", "protocol": "TLS"})),
            entry("cache", json!({"number": 6379, "name": "redis", "protocol": "REDIS"})),
            {
                "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "web"},
                "spec": {"host": "web.example", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}},
            },
        ]});
        let fields = config.as_object_mut().unwrap();
        fields.extend(settings.as_object().unwrap().clone());
        let loaded = load(config.to_string().as_bytes()).unwrap();
        Rc::new(Worker::new(Arc::new(loaded)))
    }

    fn port_80() -> HttpStream {
        HttpStream::new(worker(json!({"listener": {"port": 80}})))
    }

    fn forward_proxy() -> HttpStream {
        let listener = json!({"listener": {"mode": "FORWARD_PROXY"}, "controlHeaders": "STRIPPED"});
        HttpStream::new(worker(listener))
    }

    fn request(authority: &str, connect: bool) -> HttpRequest {
        HttpRequest {
            authority: authority.into(),
            port: None,
            connect,
            within: None,
            route: None,
            login: false,
        }
    }

    /// A response of which only what is there may be read.
    #[derive(Default)]
    struct Said {
        details: Option<&'static [u8]>,
        content_type: Option<&'static [u8]>,
        lines: Lines,
    }

    impl Response for Said {
        fn details(&self) -> Result<Vec<u8>, HostError> {
            self.details.map_or_else(unread, |it| Ok(it.into()))
        }
        fn content_type(&self) -> Result<Vec<u8>, HostError> {
            self.content_type.map_or_else(unread, |it| Ok(it.into()))
        }
        fn lines(&self) -> Result<Lines, HostError> {
            Ok(self.lines.clone())
        }
        fn has_tunnel(&self) -> fn(usize) -> bool {
            |_| true
        }
    }

    /// A fact that must not be read.
    fn unread<T>() -> Result<T, HostError> {
        unreachable!("the fact is not needed")
    }

    /// Returns what comes next, and the effects but for the metadata.
    fn seen<N>(step: impl FnOnce(Act<'_>) -> Result<N, HostError>) -> (N, Vec<String>) {
        let mut effects = Vec::new();
        let next = step(&mut |effect| {
            effects.push(match effect {
                Effect::Metadata(_) => return Ok(()),
                Effect::Answer { details, .. } => format!("answer {details}"),
                Effect::AnswerInstead { details, body, .. } => {
                    format!("answer {details} with {body}")
                }
                other => format!("{other:?}"),
            });
            Ok(())
        })
        .unwrap();
        (next, effects)
    }

    fn connected() -> HttpStream {
        let mut stream = forward_proxy();
        let (next, _) = seen(|act| stream.on_request(request("tls.example:443", true), act));
        assert_eq!(next, Next::Continue);
        stream
    }

    #[test]
    fn a_listener_says_which_facts_are_read() {
        let wanted = |settings| {
            let wanted = HttpStream::new(worker(settings)).wanted();
            (wanted.dialled_port, wanted.proxy_request, wanted.login)
        };
        let port = json!({"listener": {"port": 80}});
        assert_eq!(wanted(port), (false, false, false));
        assert_eq!(wanted(json!({})), (true, false, false));
        let proxy = json!({"listener": {"mode": "FORWARD_PROXY"}});
        assert_eq!(wanted(proxy), (false, true, false));
        let ours = json!({"listener": {"port": 80}, "controlHeaders": "STRIPPED"});
        assert_eq!(wanted(ours), (false, false, true));
    }

    #[test]
    fn a_login_is_noted_before_the_request_is_decided_about() {
        let login = HttpRequest {
            login: true,
            ..request("web.example", false)
        };
        let (_, effects) = seen(|act| port_80().on_request(login.clone(), act));
        assert_eq!(effects.first().map(String::as_str), Some("Login"));
        // A host that cannot note it lets the request go no further.
        let refused = port_80().on_request(login, &mut |effect| match effect {
            Effect::Login => Err(HostError),
            _ => Ok(()),
        });
        assert_eq!(refused, Err(HostError));
    }

    #[test]
    fn a_failure_is_told_once_in_place_of_envoys_answer() {
        let mut stream = port_80();
        let (next, _) = seen(|act| stream.on_request(request("web.example", false), act));
        assert_eq!(next, Next::Continue);
        let said = Said {
            details: Some(REFUSED),
            content_type: Some(b"text/plain"),
            ..Said::default()
        };
        let (next, effects) = seen(|act| stream.on_response(4, &said, act));
        assert_eq!(next, Next::Stop);
        let [answer, count] = &effects[..] else {
            unreachable!("{effects:?}")
        };
        let details = std::str::from_utf8(REFUSED).unwrap();
        assert!(
            answer.starts_with(&format!("answer {details} with egress_refused: ")),
            "{answer}"
        );
        assert_eq!(count, "Count(Refused)");
        // The answer that took its place is none to look at.
        let (next, effects) = seen(|act| stream.on_response(4, &Said::default(), act));
        assert_eq!((next, effects), (Next::Continue, vec![]));
    }

    #[test]
    fn a_failure_is_told_to_grpc_in_the_answer_that_is_there() {
        let mut stream = port_80();
        seen(|act| stream.on_request(request("web.example", false), act));
        let (next, effects) = seen(|act| {
            let said = Said {
                details: Some(REFUSED),
                content_type: Some(b"application/grpc+proto"),
                ..Said::default()
            };
            stream.on_response(4, &said, act)
        });
        assert_eq!(next, Next::Continue);
        assert!(
            effects[0].starts_with("ResponseHeader(\"grpc-message\", \"egress_refused: "),
            "{effects:?}"
        );
    }

    #[test]
    fn what_a_server_answers_goes_on() {
        for (headers, details) in [(5, None), (4, Some(&b"via_upstream"[..]))] {
            let mut stream = port_80();
            seen(|act| stream.on_request(request("web.example", false), act));
            let said = Said {
                details,
                ..Said::default()
            };
            let (next, effects) = seen(|act| stream.on_response(headers, &said, act));
            assert_eq!((next, effects), (Next::Continue, vec![]));
        }
    }

    #[test]
    fn an_answer_of_a_server_is_repaired_once_however_few_headers_it_has() {
        for (headers, details) in [(9, None), (3, Some(&b"via_upstream"[..]))] {
            let mut stream = port_80();
            seen(|act| stream.on_request(request("web.example", false), act));
            let url = b"https://web.example/there".to_vec();
            let leaving = b"https://elsewhere.example/".to_vec();
            let said = Said {
                details,
                lines: vec![
                    (Repairable::Location, url),
                    (Repairable::ContentLocation, leaving),
                ],
                ..Said::default()
            };
            let (next, effects) = seen(|act| stream.on_response(headers, &said, act));
            assert_eq!(next, Next::Continue);
            let [lines, count] = &effects[..] else {
                unreachable!("{effects:?}")
            };
            let url = b"http://web.example/there".as_slice();
            assert_eq!(*lines, format!("ResponseLines(\"location\", [{url:?}])"));
            assert_eq!(count, "CountLeaving");
            let (_, effects) = seen(|act| stream.on_response(headers, &said, act));
            assert_eq!(effects, Vec::<String>::new());
        }
    }

    #[test]
    fn what_was_refused_has_no_failure() {
        let mut stream = port_80();
        let (next, effects) = seen(|act| stream.on_request(request("no.example", false), act));
        assert_eq!(
            (next, effects),
            (Next::Stop, vec!["answer egress_unknown_host".to_owned()])
        );
        let (next, effects) = seen(|act| stream.on_response(3, &Said::default(), act));
        assert_eq!((next, effects), (Next::Continue, vec![]));
    }

    #[test]
    fn what_the_host_could_not_apply_has_no_failure() {
        let mut stream = port_80();
        let refused = stream.on_request(request("web.example", false), &mut |_| Err(HostError));
        assert_eq!(refused, Err(HostError));
        let (next, effects) = seen(|act| stream.on_response(3, &Said::default(), act));
        assert_eq!((next, effects), (Next::Continue, vec![]));
    }

    #[test]
    fn an_authority_that_is_not_text_is_refused() {
        let mut stream = port_80();
        let request = HttpRequest {
            authority: b"web.example\xff".into(),
            ..HttpRequest::default()
        };
        let (next, _) = seen(|act| stream.on_request(request, act));
        assert_eq!(next, Next::Stop);
    }

    #[test]
    fn tls_behind_connect_is_read_once() {
        let mut stream = connected();
        let (next, _) = seen(|act| stream.on_body(false, |_| Ok(HELLO[..3].into()), act));
        assert_eq!(next, Next::Wait);
        let read = |most: usize| Ok(HELLO[..most].into());
        let (next, effects) = seen(|act| stream.on_body(false, read, act));
        assert_eq!((next, effects), (Next::Continue, vec![]));
        let (next, _) = seen(|act| stream.on_body(false, |_| unread(), act));
        assert_eq!(next, Next::Continue);
    }

    #[test]
    fn anything_else_behind_connect_goes_no_further() {
        for (bytes, end_of_stream) in [(&b"GET / HTTP/1.1"[..], false), (&HELLO[..3], true)] {
            let mut stream = connected();
            let answer = |stream: &mut HttpStream| {
                seen(|act| stream.on_body(end_of_stream, |_| Ok(bytes.into()), act))
            };
            assert_eq!(
                answer(&mut stream),
                (Next::Stop, vec!["answer egress_other_protocol".to_owned()])
            );
            // Once Envoy has said that there is a connection, there is no other answer.
            let mut stream = connected();
            let said = Said {
                details: Some(b"via_upstream"),
                ..Said::default()
            };
            seen(|act| stream.on_response(2, &said, act));
            assert_eq!(
                answer(&mut stream),
                (Next::Stop, vec!["CloseRequest".to_owned()])
            );
        }
    }

    #[test]
    fn nothing_behind_connect_is_no_reason_to_close() {
        let mut stream = connected();
        let (next, effects) = seen(|act| stream.on_body(true, |_| Ok(vec![]), act));
        assert_eq!((next, effects), (Next::Continue, vec![]));
    }

    #[test]
    fn the_body_of_a_request_is_not_read() {
        let mut stream = port_80();
        seen(|act| stream.on_request(request("web.example", false), act));
        let (next, _) = seen(|act| stream.on_body(true, |_| unread(), act));
        assert_eq!(next, Next::Continue);
    }

    #[test]
    fn a_connection_that_failed_is_counted_when_it_is_closed() {
        const UF: u64 = 0x20;
        let begun = || {
            let settings = json!({"filter": "NETWORK", "listener": {"port": 6379}});
            let mut stream = Connection::new(worker(settings));
            let (next, _) = seen(|act| stream.on_new(Dialled::default(), act));
            assert_eq!(next, Next::Continue);
            stream
        };
        let mut stream = begun();
        let refused = || Ok(b"delayed connect error: Connection refused".into());
        let ((), effects) = seen(|act| stream.on_close(|| Ok(UF), refused, unread, |_| true, act));
        assert_eq!(effects, ["Count(Refused)"]);
        let ((), effects) = seen(|act| stream.on_close(unread, unread, unread, |_| true, act));
        assert!(effects.is_empty(), "{effects:?}");
        let ((), effects) = seen(|act| begun().on_close(|| Ok(0), unread, unread, |_| true, act));
        assert!(effects.is_empty(), "{effects:?}");
    }

    #[test]
    fn a_connection_that_was_refused_has_no_failure() {
        let settings = json!({"filter": "NETWORK", "listener": {"port": 1}});
        let mut stream = Connection::new(worker(settings));
        let (next, effects) = seen(|act| stream.on_new(Dialled::default(), act));
        assert_eq!((next, effects), (Next::Stop, vec!["Close".to_owned()]));
        let ((), effects) = seen(|act| stream.on_close(unread, unread, unread, |_| true, act));
        assert!(effects.is_empty(), "{effects:?}");
    }
}
