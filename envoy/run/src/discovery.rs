//! The discovery server that hands secrets, and our filter's configuration, to the Envoy we run, on a private socket.
//!
//! Envoy can read secrets from files and watch them by itself. But each file takes one of the user's inotify instances.
//! Linux allows 128 by default, and Envoy aborts when they run out. One connection carries any number of secrets, and
//! we check each before we send it. This is not the aggregated service: Envoy 1.40 crashes when a cluster of the
//! bootstrap asks that service for a secret. The filter's configuration comes the same way, because a file for each
//! listener would take an instance too. Envoy then says at once whether the filter took it. Clusters and listeners are
//! JSON, for which the service has another form: see [`rest`].

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

mod proto;
mod rest;
mod subscription;

use super::event::{Event, Events, send};
use proto::{DiscoveryRequest, DiscoveryResponse};
pub(super) use rest::{List, Offered};
pub(super) use subscription::Resource;
use subscription::{Kind, Subscription};

/// Streams of one connection: Envoy opens one for each resource.
const STREAMS: u32 = 1_000_000;

/// How many answers may wait for Envoy to read them.
const QUEUE: usize = 4;

/// All of one kind that there are, by name.
pub(super) type Resources = Arc<BTreeMap<String, Resource>>;

/// What Envoy said last of each plugin: the version, and why it did not take it if it did not.
pub(super) type Acks = BTreeMap<String, (u64, Result<(), String>)>;

/// What the server hands out, and where it says what became of it.
#[derive(Clone)]
pub(super) struct Served {
    /// The secrets.
    pub(super) secrets: watch::Receiver<Resources>,
    /// Our filter's configuration.
    pub(super) plugins: watch::Receiver<Resources>,
    /// The clusters.
    pub(super) clusters: Offered,
    /// The listeners.
    pub(super) listeners: Offered,
    /// What Envoy says of it.
    pub(super) acks: Arc<watch::Sender<Acks>>,
    /// Where people are told of secrets that Envoy refuses.
    pub(super) events: Events,
}

/// Serves what is offered, now and whenever it changes, until the runtime ends.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn serve(socket: &Path, served: Served) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // No file descriptors are left, say: they come back, or they do not.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let served = served.clone();
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let served = served.clone();
                async move { Ok::<_, Infallible>(answer(request, served).await) }
            });
            let connection = http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(STREAMS)
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    Ok(())
}

/// Answers one request of Envoy's, whatever it is for.
async fn answer(
    request: hyper::Request<hyper::body::Incoming>,
    served: Served,
) -> hyper::Response<Body> {
    let list = match request.uri().path() {
        "/v3/discovery:clusters" => served.clusters,
        "/v3/discovery:listeners" => served.listeners,
        path => {
            return match Kind::of(path) {
                Some(kind) => {
                    let mut grpc = Grpc::new(ProstCodec::default());
                    grpc.streaming(Discovery(kind, served), request).await
                }
                None => Status::unimplemented("there is no such service").into_http(),
            };
        }
    };
    let question = request.into_body().collect().await;
    let question = question.map(|body| body.to_bytes()).unwrap_or_default();
    hyper::Response::new(Body::new(Full::new(list.answer(&question).await)))
}

struct Discovery(Kind, Served);

impl StreamingService<DiscoveryRequest> for Discovery {
    type Response = DiscoveryResponse;
    type ResponseStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let (sender, answers) = mpsc::channel(QUEUE);
        let subscription = Subscription::new(self.0);
        tokio::spawn(converse(
            subscription,
            request.into_inner(),
            sender,
            self.1.clone(),
        ));
        Box::pin(async move { Ok(Response::new(ReceiverStream::new(answers))) })
    }
}

/// Answers Envoy until either side ends.
async fn converse(
    mut subscription: Subscription,
    mut requests: Streaming<DiscoveryRequest>,
    answers: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    served: Served,
) {
    let mut resources = match subscription.kind {
        Kind::Secrets => served.secrets,
        Kind::Plugins => served.plugins,
    };
    loop {
        tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => {
                    match (subscription.on_request(request), subscription.kind) {
                        (Some((name, _, Err(why))), Kind::Secrets) => {
                            let text = format!("Envoy did not take the secret `{name}`: {why}");
                            send(&served.events, Event::Warning(text));
                        }
                        (Some((name, version, taken)), Kind::Plugins) => {
                            served.acks.send_modify(|all| {
                                all.insert(name, (version, taken));
                            });
                        }
                        _ => {}
                    }
                }
                Ok(None) | Err(_) => return,
            },
            changed = resources.changed() => if changed.is_err() {
                return;
            },
        }
        let now = resources.borrow_and_update().clone();
        for answer in subscription.answers(&now) {
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    }
}
