//! The discovery server that hands secrets to the Envoy we run, on a private socket.
//!
//! Envoy can read secrets from files and watch them by itself, but each file takes one of the user's inotify
//! instances, of which Linux allows 128 unless told otherwise, and Envoy aborts when they run out. One connection
//! carries any number, and what it carries was looked at before. Not the aggregated service: Envoy 1.40 crashes when
//! a cluster of the bootstrap asks that for a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::cli::tell;
use crate::credentials::Material;
use proto::{Any, DiscoveryRequest, DiscoveryResponse};

/// The one method that is served.
const METHOD: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";

/// Streams of one connection: Envoy opens one for each secret.
const STREAMS: u32 = 1_000_000;

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// How many answers may wait for Envoy to read them.
const QUEUE: usize = 4;

/// A secret as Envoy is given it.
#[derive(Clone)]
pub(super) struct Offer {
    version: u64,
    secret: Bytes,
}

impl Offer {
    /// Writes a secret under its name; `version` tells it from those of the same name before it.
    pub(super) fn new(name: &str, material: &Material, version: u64) -> Self {
        let secret = proto::Secret::of(name, material).encode_to_vec();
        Offer {
            version,
            secret: secret.into(),
        }
    }
}

/// All secrets that there are, by name.
pub(super) type Offers = Arc<BTreeMap<String, Offer>>;

/// Serves what `offers` holds, now and whenever it changes, until the runtime ends.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn serve(socket: &Path, offers: watch::Receiver<Offers>) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // No file descriptors are left, say: they come back, or they do not.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let offers = offers.clone();
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let offers = offers.clone();
                async move {
                    Ok::<_, Infallible>(if request.uri().path() == METHOD {
                        let mut grpc = Grpc::new(ProstCodec::default());
                        grpc.streaming(Discovery(offers), request).await
                    } else {
                        Status::unimplemented("only secrets are served").into_http()
                    })
                }
            });
            let connection = http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(STREAMS)
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    Ok(())
}

struct Discovery(watch::Receiver<Offers>);

impl StreamingService<DiscoveryRequest> for Discovery {
    type Response = DiscoveryResponse;
    type ResponseStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let (sender, answers) = mpsc::channel(QUEUE);
        tokio::spawn(converse(request.into_inner(), sender, self.0.clone()));
        Box::pin(async move { Ok(Response::new(ReceiverStream::new(answers))) })
    }
}

/// Answers Envoy until either side ends.
async fn converse(
    mut requests: Streaming<DiscoveryRequest>,
    answers: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    mut offers: watch::Receiver<Offers>,
) {
    let mut talk = Talk::default();
    loop {
        tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => {
                    if let Some(refused) = talk.hear(request) {
                        tell(&refused);
                    }
                }
                Ok(None) | Err(_) => return,
            },
            changed = offers.changed() => if changed.is_err() {
                return;
            },
        }
        let now = offers.borrow_and_update().clone();
        for answer in talk.answers(&now) {
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    }
}

/// What one stream has come to: what Envoy wants, has been sent, and has not confirmed yet.
#[derive(Default)]
struct Talk {
    wanted: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
    unconfirmed: BTreeMap<String, String>,
    nonce: u64,
}

impl Talk {
    /// Takes a request in; returns what to tell people when Envoy refused a secret.
    fn hear(&mut self, request: DiscoveryRequest) -> Option<String> {
        if request.type_url != SECRET {
            return None;
        }
        let answered = self.unconfirmed.remove(&request.response_nonce);
        if answered.is_none() {
            // Neither yes nor no to anything: it asks anew, and must be answered even if nothing changed.
            self.sent.clear();
        }
        self.wanted = request.resource_names.into_iter().collect();
        self.sent.retain(|name, _| self.wanted.contains(name));
        let error = request.error_detail?;
        // Envoy's words name files and libraries, never what they hold.
        let why: String = error.message.chars().take(300).collect();
        Some(format!(
            "warning: Envoy did not take the secret `{}`: {why}",
            answered.as_deref().unwrap_or("?")
        ))
    }

    /// Returns what Envoy wants and has not got, one secret an answer, so that one that Envoy refuses holds
    /// up no other.
    fn answers(&mut self, offers: &BTreeMap<String, Offer>) -> Vec<DiscoveryResponse> {
        let mut answers = Vec::new();
        for name in &self.wanted {
            let Some(offer) = offers.get(name) else {
                continue;
            };
            if self.sent.insert(name.clone(), offer.version) == Some(offer.version) {
                continue;
            }
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            self.unconfirmed.insert(nonce.clone(), name.clone());
            answers.push(DiscoveryResponse {
                version_info: offer.version.to_string(),
                resources: vec![Any {
                    type_url: SECRET.to_owned(),
                    value: offer.secret.clone(),
                }],
                type_url: SECRET.to_owned(),
                nonce,
            });
        }
        answers
    }
}

/// The messages, as far as they are used. Their numbers are Envoy's.
///
/// Source: envoyproxy/envoy `api/envoy/service/discovery/v3/discovery.proto`,
/// `api/envoy/extensions/transport_sockets/tls/v3/{secret,common}.proto`, `api/envoy/config/core/v3/base.proto`.
mod proto {
    use prost::bytes::Bytes;
    use prost::{Message, Oneof};

    use crate::credentials::Material;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct DiscoveryRequest {
        #[prost(string, repeated, tag = "3")]
        pub(super) resource_names: Vec<String>,
        #[prost(string, tag = "4")]
        pub(super) type_url: String,
        #[prost(string, tag = "5")]
        pub(super) response_nonce: String,
        #[prost(message, optional, tag = "6")]
        pub(super) error_detail: Option<ErrorDetail>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ErrorDetail {
        #[prost(string, tag = "2")]
        pub(super) message: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct DiscoveryResponse {
        #[prost(string, tag = "1")]
        pub(super) version_info: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) resources: Vec<Any>,
        #[prost(string, tag = "4")]
        pub(super) type_url: String,
        #[prost(string, tag = "5")]
        pub(super) nonce: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Any {
        #[prost(string, tag = "1")]
        pub(super) type_url: String,
        #[prost(bytes = "bytes", tag = "2")]
        pub(super) value: Bytes,
    }

    // The messages with keys in them have no `Debug`: prost's would print all of it.
    #[derive(Clone, PartialEq, Message)]
    #[prost(skip_debug)]
    pub(super) struct Secret {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(oneof = "Kind", tags = "2, 4")]
        kind: Option<Kind>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    #[prost(skip_debug)]
    enum Kind {
        #[prost(message, tag = "2")]
        TlsCertificate(TlsCertificate),
        #[prost(message, tag = "4")]
        ValidationContext(ValidationContext),
    }

    #[derive(Clone, PartialEq, Message)]
    #[prost(skip_debug)]
    struct TlsCertificate {
        #[prost(message, optional, tag = "1")]
        certificate_chain: Option<DataSource>,
        #[prost(message, optional, tag = "2")]
        private_key: Option<DataSource>,
    }

    #[derive(Clone, PartialEq, Message)]
    #[prost(skip_debug)]
    struct ValidationContext {
        #[prost(message, optional, tag = "1")]
        trusted_ca: Option<DataSource>,
        #[prost(message, optional, tag = "7")]
        crl: Option<DataSource>,
    }

    #[derive(Clone, PartialEq, Message)]
    #[prost(skip_debug)]
    struct DataSource {
        /// In a `oneof` with file names and the like, which is the same on the wire.
        #[prost(bytes = "bytes", tag = "2")]
        inline_bytes: Bytes,
    }

    macro_rules! debug_without_content {
        ($($name:ident),*) => {
            $(impl std::fmt::Debug for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str(concat!(stringify!($name), "(..)"))
                }
            })*
        };
    }
    debug_without_content!(Secret, Kind, TlsCertificate, ValidationContext, DataSource);

    impl Secret {
        pub(super) fn of(name: &str, material: &Material) -> Self {
            let data = |bytes: &[u8]| {
                Some(DataSource {
                    inline_bytes: Bytes::copy_from_slice(bytes),
                })
            };
            let kind = match material {
                Material::Certificate { chain, key } => Kind::TlsCertificate(TlsCertificate {
                    certificate_chain: data(chain),
                    private_key: data(key.pem()),
                }),
                Material::Validation { ca, crl } => Kind::ValidationContext(ValidationContext {
                    trusted_ca: data(ca),
                    crl: crl.as_deref().and_then(data),
                }),
            };
            Secret {
                name: name.to_owned(),
                kind: Some(kind),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(names: &[(&str, u64)]) -> BTreeMap<String, Offer> {
        let material = Material::Validation {
            ca: b"ca".to_vec(),
            crl: None,
        };
        names
            .iter()
            .map(|(name, version)| ((*name).to_owned(), Offer::new(name, &material, *version)))
            .collect()
    }

    fn request(names: &[&str], nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            type_url: SECRET.to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail: None,
        }
    }

    #[test]
    fn each_secret_is_sent_once_and_again_when_it_changes() {
        let mut talk = Talk::default();
        talk.hear(request(&["a", "b", "absent"], ""));
        let answers = talk.answers(&offers(&[("a", 1), ("b", 1), ("unasked", 1)]));
        assert_eq!(answers.len(), 2);
        for answer in &answers {
            assert_eq!(
                answer.resources.len(),
                1,
                "one that is refused holds up no other"
            );
            assert!(
                talk.hear(request(&["a", "b", "absent"], &answer.nonce))
                    .is_none()
            );
        }
        assert!(talk.answers(&offers(&[("a", 1), ("b", 1)])).is_empty());
        assert_eq!(talk.answers(&offers(&[("a", 2), ("b", 1)])).len(), 1);
        let healed = talk.answers(&offers(&[("a", 2), ("b", 1), ("absent", 1)]));
        assert_eq!(healed.len(), 1);
    }

    #[test]
    fn who_asks_anew_is_answered() {
        let mut talk = Talk::default();
        let held = offers(&[("a", 1)]);
        talk.hear(request(&["a"], ""));
        let [first] = &talk.answers(&held)[..] else {
            panic!("one answer")
        };
        talk.hear(request(&["a"], &first.nonce));
        assert!(talk.answers(&held).is_empty());
        // A second cluster that wants the same secret asks with a nonce that was confirmed already.
        talk.hear(request(&["a"], &first.nonce));
        assert_eq!(talk.answers(&held).len(), 1);
    }

    #[test]
    fn a_refusal_is_told_by_name() {
        let mut talk = Talk::default();
        talk.hear(request(&["a"], ""));
        let [answer] = &talk.answers(&offers(&[("a", 1)]))[..] else {
            panic!("one answer")
        };
        let mut refusal = request(&["a"], &answer.nonce);
        refusal.error_detail = Some(proto::ErrorDetail {
            message: "no good".to_owned(),
        });
        assert_eq!(
            talk.hear(refusal).as_deref(),
            Some("warning: Envoy did not take the secret `a`: no good")
        );
        // It is not sent over and over.
        assert!(talk.answers(&offers(&[("a", 1)])).is_empty());
    }

    #[test]
    fn nothing_prints_what_a_secret_holds() {
        let material = Material::Validation {
            ca: b"SECRET".to_vec(),
            crl: None,
        };
        assert!(!format!("{:?}", proto::Secret::of("a", &material)).contains("SECRET"));
    }
}
