//! The discovery server that hands secrets, and our filter's configuration, to the Envoy we run, on a private socket.
//!
//! Envoy can read secrets from files and watch them by itself, but each file takes one of the user's inotify
//! instances, of which Linux allows 128 unless told otherwise, and Envoy aborts when they run out. One connection
//! carries any number, and what it carries was looked at before. Not the aggregated service: Envoy 1.40 crashes when
//! a cluster of the bootstrap asks that for a secret. The filter's configuration comes the same way, as each listener's
//! would take an instance too, and Envoy says at once whether the filter took it.

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
use egress_render::xds::Plugin;
use proto::{Any, DiscoveryRequest, DiscoveryResponse};

/// What is served.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Secrets,
    Plugins,
}

impl Kind {
    fn of(method: &str) -> Option<Kind> {
        match method {
            "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets" => Some(Kind::Secrets),
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs" => {
                Some(Kind::Plugins)
            }
            _ => None,
        }
    }

    fn type_url(self) -> &'static str {
        match self {
            Kind::Secrets => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Kind::Plugins => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        }
    }
}

/// Streams of one connection: Envoy opens one for each resource.
const STREAMS: u32 = 1_000_000;

/// How many answers may wait for Envoy to read them.
const QUEUE: usize = 4;

/// A resource as Envoy is given it.
#[derive(Clone)]
pub(super) struct Offer {
    version: u64,
    resource: Bytes,
}

impl Offer {
    /// Writes a secret under its name; `version` tells it from those of the same name before it.
    pub(super) fn new(name: &str, material: &Material, version: u64) -> Self {
        let secret = proto::Secret::of(name, material).encode_to_vec();
        Offer {
            version,
            resource: secret.into(),
        }
    }

    /// Writes our filter in the same way.
    pub(super) fn plugin(name: &str, plugin: &Plugin, version: u64) -> Self {
        let config = proto::TypedExtensionConfig::of(name, plugin).encode_to_vec();
        Offer {
            version,
            resource: config.into(),
        }
    }
}

impl Offer {
    /// The version that it was written as.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Says whether two are the same but for their version.
    pub(super) fn says_as(&self, other: &Offer) -> bool {
        self.resource == other.resource
    }
}

/// All of one kind that there are, by name.
pub(super) type Offers = Arc<BTreeMap<String, Offer>>;

/// What Envoy said last of each plugin: the version, and why it did not take it if it did not.
pub(super) type Verdicts = BTreeMap<String, (u64, Result<(), String>)>;

/// What the server hands out, and where it says what became of it.
#[derive(Clone)]
pub(super) struct Served {
    /// The secrets.
    pub(super) secrets: watch::Receiver<Offers>,
    /// Our filter's configuration.
    pub(super) plugins: watch::Receiver<Offers>,
    /// What Envoy says of it.
    pub(super) verdicts: Arc<watch::Sender<Verdicts>>,
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
                async move {
                    Ok::<_, Infallible>(match Kind::of(request.uri().path()) {
                        Some(kind) => {
                            let mut grpc = Grpc::new(ProstCodec::default());
                            grpc.streaming(Discovery(kind, served), request).await
                        }
                        None => {
                            Status::unimplemented("only secrets and plugins are served").into_http()
                        }
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

struct Discovery(Kind, Served);

impl StreamingService<DiscoveryRequest> for Discovery {
    type Response = DiscoveryResponse;
    type ResponseStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let (sender, answers) = mpsc::channel(QUEUE);
        let talk = Talk::new(self.0);
        tokio::spawn(converse(talk, request.into_inner(), sender, self.1.clone()));
        Box::pin(async move { Ok(Response::new(ReceiverStream::new(answers))) })
    }
}

/// Answers Envoy until either side ends.
async fn converse(
    mut talk: Talk,
    mut requests: Streaming<DiscoveryRequest>,
    answers: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    served: Served,
) {
    let mut offers = match talk.kind {
        Kind::Secrets => served.secrets,
        Kind::Plugins => served.plugins,
    };
    loop {
        tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => {
                    match (talk.hear(request), talk.kind) {
                        (Some((name, _, Err(why))), Kind::Secrets) => {
                            tell(&format!("warning: Envoy did not take the secret `{name}`: {why}"));
                        }
                        (Some((name, version, verdict)), Kind::Plugins) => {
                            served.verdicts.send_modify(|all| {
                                all.insert(name, (version, verdict));
                            });
                        }
                        _ => {}
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
struct Talk {
    kind: Kind,
    wanted: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
    unconfirmed: BTreeMap<String, (String, u64)>,
    nonce: u64,
}

/// The name and version of what was sent, and whether Envoy took it.
type Heard = (String, u64, Result<(), String>);

impl Talk {
    fn new(kind: Kind) -> Self {
        Talk {
            kind,
            wanted: BTreeSet::new(),
            sent: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            nonce: 0,
        }
    }

    /// Takes a request in; returns what it says of an answer.
    fn hear(&mut self, request: DiscoveryRequest) -> Option<Heard> {
        if request.type_url != self.kind.type_url() {
            return None;
        }
        let answered = self.unconfirmed.remove(&request.response_nonce);
        if answered.is_none() {
            // Neither yes nor no to anything: it asks anew, and must be answered even if nothing changed.
            self.sent.clear();
        }
        self.wanted = request.resource_names.into_iter().collect();
        self.sent.retain(|name, _| self.wanted.contains(name));
        let (name, version) = answered?;
        // Envoy's words name files and libraries, never what they hold.
        let verdict = request.error_detail.map_or(Ok(()), |error| {
            Err(error.message.chars().take(300).collect())
        });
        Some((name, version, verdict))
    }

    /// Returns what Envoy wants and has not got, one resource an answer, so that one that Envoy refuses holds
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
            self.unconfirmed
                .insert(nonce.clone(), (name.clone(), offer.version));
            answers.push(DiscoveryResponse {
                version_info: offer.version.to_string(),
                resources: vec![Any {
                    type_url: self.kind.type_url().to_owned(),
                    value: offer.resource.clone(),
                }],
                type_url: self.kind.type_url().to_owned(),
                nonce,
            });
        }
        answers
    }
}

/// The messages, as far as they are used. Their numbers are Envoy's.
///
/// Source: envoyproxy/envoy `api/envoy/service/discovery/v3/discovery.proto`,
/// `api/envoy/extensions/transport_sockets/tls/v3/{secret,common}.proto`, `api/envoy/extensions/wasm/v3/wasm.proto`,
/// `api/envoy/config/core/v3/{base,extension}.proto`.
mod proto {
    use prost::bytes::Bytes;
    use prost::{Message, Oneof};

    use egress_filter::contract;

    use crate::credentials::Material;
    use egress_render::xds::{Plugin, WASM_RUNTIME};

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

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct TypedExtensionConfig {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, optional, tag = "2")]
        typed_config: Option<Any>,
    }

    impl TypedExtensionConfig {
        pub(super) fn of(name: &str, plugin: &Plugin) -> Self {
            TypedExtensionConfig {
                name: name.to_owned(),
                typed_config: Some(Wasm::any(plugin)),
            }
        }
    }

    /// Our filter, as an HTTP filter or as a network filter, which are the same on the wire. As JSON in a `TypedStruct`
    /// Envoy would take long to read it when there are many rules.
    #[derive(Clone, PartialEq, Message)]
    struct Wasm {
        #[prost(message, optional, tag = "1")]
        config: Option<PluginConfig>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct PluginConfig {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        root_id: String,
        #[prost(message, optional, tag = "3")]
        vm_config: Option<VmConfig>,
        #[prost(message, optional, tag = "4")]
        configuration: Option<Any>,
        #[prost(int32, tag = "7")]
        failure_policy: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    struct VmConfig {
        #[prost(string, tag = "1")]
        vm_id: String,
        #[prost(string, tag = "2")]
        runtime: String,
        #[prost(message, optional, tag = "3")]
        code: Option<Code>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Code {
        #[prost(message, optional, tag = "1")]
        local: Option<File>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct File {
        #[prost(string, tag = "1")]
        filename: String,
    }

    /// Envoy's number for a filter that refuses requests when it has crashed, until it is back.
    const FAIL_RELOAD: i32 = 1;

    /// The message around the text that our filter reads.
    const STRING: &str = "type.googleapis.com/google.protobuf.StringValue";

    impl Wasm {
        /// Returns what [`Plugin::inline`] says.
        fn any(plugin: &Plugin) -> Any {
            let ours = || contract::FILTER_NAME.to_owned();
            let message = Wasm {
                config: Some(PluginConfig {
                    name: ours(),
                    root_id: ours(),
                    vm_config: Some(VmConfig {
                        vm_id: ours(),
                        runtime: WASM_RUNTIME.to_owned(),
                        code: Some(Code {
                            local: Some(File {
                                filename: plugin.module.clone(),
                            }),
                        }),
                    }),
                    configuration: Some(Any {
                        type_url: STRING.to_owned(),
                        value: plugin.config.encode_to_vec().into(),
                    }),
                    failure_policy: FAIL_RELOAD,
                }),
            };
            Any {
                type_url: format!("type.googleapis.com/{}", plugin.message()),
                value: message.encode_to_vec().into(),
            }
        }
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
    use egress_filter::FilterKind;
    use serde_json::Value;

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
            type_url: Kind::Secrets.type_url().to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail: None,
        }
    }

    #[test]
    fn each_secret_is_sent_once_and_again_when_it_changes() {
        let mut talk = Talk::new(Kind::Secrets);
        talk.hear(request(&["a", "b", "absent"], ""));
        let answers = talk.answers(&offers(&[("a", 1), ("b", 1), ("unasked", 1)]));
        assert_eq!(answers.len(), 2);
        for answer in &answers {
            assert_eq!(
                answer.resources.len(),
                1,
                "one that is refused holds up no other"
            );
            let heard = talk.hear(request(&["a", "b", "absent"], &answer.nonce));
            assert!(matches!(heard, Some((_, 1, Ok(())))));
        }
        assert!(talk.answers(&offers(&[("a", 1), ("b", 1)])).is_empty());
        assert_eq!(talk.answers(&offers(&[("a", 2), ("b", 1)])).len(), 1);
        let healed = talk.answers(&offers(&[("a", 2), ("b", 1), ("absent", 1)]));
        assert_eq!(healed.len(), 1);
    }

    #[test]
    fn who_asks_anew_is_answered() {
        let mut talk = Talk::new(Kind::Secrets);
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
        let mut talk = Talk::new(Kind::Secrets);
        talk.hear(request(&["a"], ""));
        let [answer] = &talk.answers(&offers(&[("a", 1)]))[..] else {
            panic!("one answer")
        };
        let mut refusal = request(&["a"], &answer.nonce);
        refusal.error_detail = Some(proto::ErrorDetail {
            message: "no good".to_owned(),
        });
        assert_eq!(
            talk.hear(refusal),
            Some(("a".to_owned(), 1, Err("no good".to_owned())))
        );
        // It is not sent over and over.
        assert!(talk.answers(&offers(&[("a", 1)])).is_empty());
    }

    /// What stands in the bytes of a plugin, by the numbers of the fields on the way to it.
    fn part<'b>(mut bytes: &'b [u8], way: &[u32]) -> Option<&'b [u8]> {
        use prost::encoding::{WireType, decode_key, decode_varint, skip_field};
        let Some((wanted, rest)) = way.split_first() else {
            return Some(bytes);
        };
        while !bytes.is_empty() {
            let (number, kind) = decode_key(&mut bytes).unwrap();
            match kind {
                WireType::LengthDelimited if number == *wanted => {
                    let length = decode_varint(&mut bytes).unwrap();
                    return part(&bytes[..usize::try_from(length).unwrap()], rest);
                }
                WireType::Varint if number == *wanted => return Some(&bytes[..1]),
                _ => skip_field(kind, number, &mut bytes, Default::default()).unwrap(),
            }
        }
        None
    }

    #[test]
    fn a_plugin_is_the_message_that_the_bootstrap_has() {
        for kind in [FilterKind::Http, FilterKind::Network] {
            let plugin = Plugin {
                kind,
                module: "/filter.wasm".to_owned(),
                config: "rules".to_owned(),
            };
            let inline = plugin.inline();
            let written = Offer::plugin("one", &plugin, 1).resource;
            assert_eq!(part(&written, &[1]), Some(&b"one"[..]));
            for (way, pointer) in [
                (&[2, 1][..], "/@type"),
                (&[2, 2, 1, 1], "/config/name"),
                (&[2, 2, 1, 2], "/config/root_id"),
                (&[2, 2, 1, 3, 1], "/config/vm_config/vm_id"),
                (&[2, 2, 1, 3, 2], "/config/vm_config/runtime"),
                (
                    &[2, 2, 1, 3, 3, 1, 1],
                    "/config/vm_config/code/local/filename",
                ),
                (&[2, 2, 1, 4, 1], "/config/configuration/@type"),
                (&[2, 2, 1, 4, 2, 1], "/config/configuration/value"),
            ] {
                let said = inline.pointer(&format!("/typed_config{pointer}"));
                let said = said.and_then(Value::as_str).map(str::as_bytes);
                assert!(said.is_some(), "{pointer}");
                assert_eq!(part(&written, way), said, "{pointer}");
            }
            let policy = inline.pointer("/typed_config/config/failure_policy");
            assert_eq!(policy, Some(&Value::from("FAIL_RELOAD")));
            assert_eq!(part(&written, &[2, 2, 1, 7]), Some(&[1][..]));
        }
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
