//! What probes and Prometheus may see of a run, and nothing else of Envoy's admin interface.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::admin;
use super::event::Events;
use egress_render::xds::Admin;

/// How many connections there may be; whoever comes next waits.
const CONNECTIONS: usize = 64;

/// How many may ask for metrics at once: Envoy writes them in the thread that has other work to do.
const SCRAPES: usize = 2;

/// How long a client may take to send a request, or to send another.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of which run the status is.
pub(super) struct Status {
    /// Envoy's admin interface.
    pub(super) admin: Admin,
    /// The file with its address.
    pub(super) written: PathBuf,
    /// The version of Envoy.
    pub(super) version: String,
    /// What happens.
    pub(super) events: Events,
}

/// Listens where the run before still may, for as long as it takes.
async fn bound(address: SocketAddr, patiently: bool) -> io::Result<TcpListener> {
    loop {
        match TcpListener::bind(address).await {
            Err(error) if patiently && error.kind() == io::ErrorKind::AddrInUse => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            bound => return bound,
        }
    }
}

/// Answers `/ready`, `/live` and `/metrics` until the task is aborted or the runtime ends. Returns where.
///
/// With `patiently`, an address that is taken is waited for meanwhile: the run whose place is taken has it.
///
/// # Errors
/// When the address cannot be listened on.
pub(super) async fn serve(
    address: SocketAddr,
    status: Status,
    patiently: bool,
) -> io::Result<(SocketAddr, AbortHandle)> {
    if patiently && address.port() != 0 {
        let waits = tokio::spawn(async move {
            if let Ok(listener) = bound(address, true).await {
                accept(listener, status).await;
            }
        });
        return Ok((address, waits.abort_handle()));
    }
    let listener = bound(address, false).await?;
    let address = listener.local_addr()?;
    let serves = tokio::spawn(accept(listener, status));
    Ok((address, serves.abort_handle()))
}

async fn accept(listener: TcpListener, status: Status) {
    let status = Arc::new(status);
    let (places, scrapes) = (Semaphore::new(CONNECTIONS), Semaphore::new(SCRAPES));
    let (places, scrapes) = (Arc::new(places), Arc::new(scrapes));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // No file descriptors are left, say: they come back, or they do not.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (status, scrapes) = (status.clone(), scrapes.clone());
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let (status, scrapes) = (status.clone(), scrapes.clone());
            async move {
                let (method, path) = (request.method(), request.uri().path());
                Ok::<_, Infallible>(status.answer(method, path, &scrapes).await)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            let _ = connection.await;
            drop(place);
        });
    }
}

impl Status {
    async fn answer(
        &self,
        method: &Method,
        path: &str,
        scrapes: &Semaphore,
    ) -> Response<Full<Bytes>> {
        if !matches!(path, "/ready" | "/live" | "/metrics") {
            return text(StatusCode::NOT_FOUND, "there is /ready, /live and /metrics");
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "ask with GET");
            let allowed = hyper::header::HeaderValue::from_static("GET, HEAD");
            answer.headers_mut().insert(ALLOW, allowed);
            return answer;
        }
        match path {
            "/ready" => self.ready().await,
            "/live" => self.live().await,
            _ => match scrapes.try_acquire() {
                Ok(_place) => self.metrics().await,
                Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "others ask at this moment"),
            },
        }
    }

    /// Whether requests should come.
    async fn ready(&self) -> Response<Full<Bytes>> {
        let seen = self.events.seen();
        let not = |why| text(StatusCode::SERVICE_UNAVAILABLE, why);
        if seen.draining.load(Ordering::Relaxed) {
            return not("draining");
        }
        if !seen.ready.load(Ordering::Relaxed) {
            return not("starting");
        }
        match admin::asked(&self.admin, &self.written, "/ready").await {
            Some((200, _)) => text(StatusCode::OK, "ready"),
            Some(_) => not("Envoy is not ready"),
            None => not("Envoy does not answer"),
        }
    }

    /// Whether another start would help. Starting takes the time it takes.
    async fn live(&self) -> Response<Full<Bytes>> {
        if !self.events.seen().ready.load(Ordering::Relaxed) {
            return text(StatusCode::OK, "starting");
        }
        match admin::asked(&self.admin, &self.written, "/ready").await {
            Some(_) => text(StatusCode::OK, "live"),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "Envoy does not answer"),
        }
    }

    /// Our numbers, then Envoy's.
    async fn metrics(&self) -> Response<Full<Bytes>> {
        let mut body = self.ours();
        let asked = admin::asked(&self.admin, &self.written, "/stats/prometheus").await;
        let envoys = asked.filter(|(status, _)| *status == 200);
        let _ = write!(
            body,
            "# HELP egressctl_envoy_answers Whether Envoy told its statistics; without them only these are here.\n\
             # TYPE egressctl_envoy_answers gauge\negressctl_envoy_answers {}\n",
            u8::from(envoys.is_some())
        );
        let mut body = body.into_bytes();
        if let Some((_, told)) = envoys {
            body.extend_from_slice(&told);
        }
        let mut answer = Response::new(Full::new(Bytes::from(body)));
        let kind =
            hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        answer.headers_mut().insert(CONTENT_TYPE, kind);
        answer
    }

    fn ours(&self) -> String {
        let seen = self.events.seen();
        let flag = |flag: &std::sync::atomic::AtomicBool| u64::from(flag.load(Ordering::Relaxed));
        let number = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
        let info = format!(
            "{{version=\"{}\",envoy=\"{}\"}}",
            env!("CARGO_PKG_VERSION"),
            self.version
        );
        let applied = r#"{result="applied"}"#.to_owned();
        let refused = r#"{result="refused"}"#.to_owned();
        let none = String::new;
        let mut text = String::new();
        let mut add = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
            let _ = write!(
                text,
                "# HELP egressctl_{name} {help}\n# TYPE egressctl_{name} {kind}\n"
            );
            for (labels, value) in values {
                let _ = writeln!(text, "egressctl_{name}{labels} {value}");
            }
        };
        add(
            "info",
            "gauge",
            "The versions of egressctl and of Envoy.",
            &[(info, 1)],
        );
        add(
            "ready",
            "gauge",
            "Whether Envoy takes requests and does not drain.",
            &[(none(), flag(&seen.ready) & (1 - flag(&seen.draining)))],
        );
        add(
            "reloads_total",
            "counter",
            "How often changed rules were applied or refused.",
            &[
                (applied, number(&seen.applied)),
                (refused, number(&seen.refused)),
            ],
        );
        add(
            "rules_current",
            "gauge",
            "Whether the rules in use are those in the files: 0 after a refused reload.",
            &[(none(), 1 - flag(&seen.stale))],
        );
        add(
            "rules_applied_timestamp_seconds",
            "gauge",
            "When the rules in use were applied.",
            &[(none(), number(&seen.applied_at))],
        );
        add(
            "secrets_missing_total",
            "counter",
            "How often a secret could not be given to Envoy.",
            &[(none(), number(&seen.secrets_missing))],
        );
        add(
            "warnings_total",
            "counter",
            "How many other warnings were written.",
            &[(none(), number(&seen.warnings))],
        );
        text
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *answer.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
