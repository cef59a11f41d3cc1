//! The state of one stream of the discovery server.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost::bytes::Bytes;

use super::proto::{self, Any, DiscoveryRequest, DiscoveryResponse};
use egress_credentials::Material;
use egress_render::xds::Plugin;

/// What is served.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Secrets,
    Plugins,
}

impl Kind {
    pub(super) fn of(method: &str) -> Option<Kind> {
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

/// A resource as Envoy is given it.
#[derive(Clone)]
pub(crate) struct Resource {
    version: u64,
    bytes: Bytes,
}

impl Resource {
    /// Writes a secret under its name; `version` tells it from those of the same name before it.
    pub(crate) fn new(name: &str, material: &Material, version: u64) -> Self {
        let secret = proto::Secret::of(name, material).encode_to_vec();
        Resource {
            version,
            bytes: secret.into(),
        }
    }

    /// Writes our filter in the same way.
    pub(crate) fn plugin(name: &str, plugin: &Plugin, version: u64) -> Self {
        let config = proto::TypedExtensionConfig::of(name, plugin).encode_to_vec();
        Resource {
            version,
            bytes: config.into(),
        }
    }

    /// The version that it was written as.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether two are the same but for their version.
    pub(crate) fn same_content(&self, other: &Resource) -> bool {
        self.bytes == other.bytes
    }
}

/// What one stream has come to: what Envoy wants, has been sent, and has not confirmed yet.
pub(super) struct Subscription {
    pub(super) kind: Kind,
    wanted: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
    unconfirmed: BTreeMap<String, (String, u64)>,
    nonce: u64,
}

/// The name and version of what was sent, and whether Envoy took it.
pub(super) type Ack = (String, u64, Result<(), String>);

impl Subscription {
    pub(super) fn new(kind: Kind) -> Self {
        Subscription {
            kind,
            wanted: BTreeSet::new(),
            sent: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            nonce: 0,
        }
    }

    /// Takes a request in; returns what it says of an answer.
    pub(super) fn on_request(&mut self, request: DiscoveryRequest) -> Option<Ack> {
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
        let taken = request.error_detail.map_or(Ok(()), |error| {
            Err(error.message.chars().take(300).collect())
        });
        Some((name, version, taken))
    }

    /// Returns what Envoy wants and has not got, one resource an answer, so that one that Envoy refuses holds
    /// up no other.
    pub(super) fn answers(
        &mut self,
        resources: &BTreeMap<String, Resource>,
    ) -> Vec<DiscoveryResponse> {
        let mut answers = Vec::new();
        for name in &self.wanted {
            let Some(resource) = resources.get(name) else {
                continue;
            };
            if self.sent.insert(name.clone(), resource.version) == Some(resource.version) {
                continue;
            }
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            self.unconfirmed
                .insert(nonce.clone(), (name.clone(), resource.version));
            answers.push(DiscoveryResponse {
                version_info: resource.version.to_string(),
                resources: vec![Any {
                    type_url: self.kind.type_url().to_owned(),
                    value: resource.bytes.clone(),
                }],
                type_url: self.kind.type_url().to_owned(),
                nonce,
            });
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use egress_filter::FilterKind;
    use egress_render::xds::FilterFile;
    use serde_json::Value;

    use super::*;

    fn resources(names: &[(&str, u64)]) -> BTreeMap<String, Resource> {
        let material = Material::Validation {
            ca: b"ca".to_vec(),
            crl: None,
        };
        names
            .iter()
            .map(|(name, version)| ((*name).to_owned(), Resource::new(name, &material, *version)))
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
        let mut subscription = Subscription::new(Kind::Secrets);
        subscription.on_request(request(&["a", "b", "absent"], ""));
        let answers = subscription.answers(&resources(&[("a", 1), ("b", 1), ("unasked", 1)]));
        assert_eq!(answers.len(), 2);
        for answer in &answers {
            assert_eq!(
                answer.resources.len(),
                1,
                "one that is refused holds up no other"
            );
            let ack = subscription.on_request(request(&["a", "b", "absent"], &answer.nonce));
            assert!(matches!(ack, Some((_, 1, Ok(())))));
        }
        assert!(
            subscription
                .answers(&resources(&[("a", 1), ("b", 1)]))
                .is_empty()
        );
        assert_eq!(
            subscription
                .answers(&resources(&[("a", 2), ("b", 1)]))
                .len(),
            1
        );
        let healed = subscription.answers(&resources(&[("a", 2), ("b", 1), ("absent", 1)]));
        assert_eq!(healed.len(), 1);
    }

    #[test]
    fn who_asks_anew_is_answered() {
        let mut subscription = Subscription::new(Kind::Secrets);
        let held = resources(&[("a", 1)]);
        subscription.on_request(request(&["a"], ""));
        let [first] = &subscription.answers(&held)[..] else {
            panic!("one answer")
        };
        subscription.on_request(request(&["a"], &first.nonce));
        assert!(subscription.answers(&held).is_empty());
        // A second cluster that wants the same secret asks with a nonce that was confirmed already.
        subscription.on_request(request(&["a"], &first.nonce));
        assert_eq!(subscription.answers(&held).len(), 1);
    }

    #[test]
    fn a_refusal_is_told_by_name() {
        let mut subscription = Subscription::new(Kind::Secrets);
        subscription.on_request(request(&["a"], ""));
        let [answer] = &subscription.answers(&resources(&[("a", 1)]))[..] else {
            panic!("one answer")
        };
        let mut refusal = request(&["a"], &answer.nonce);
        refusal.error_detail = Some(proto::ErrorDetail {
            message: "no good".to_owned(),
        });
        assert_eq!(
            subscription.on_request(refusal),
            Some(("a".to_owned(), 1, Err("no good".to_owned())))
        );
        // It is not sent over and over.
        assert!(subscription.answers(&resources(&[("a", 1)])).is_empty());
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

    /// Compares what is sent of a plugin with what the bootstrap would have of it, at these places.
    fn same(plugin: &Plugin, texts: &[(&[u32], &str)], flag: (&[u32], &str, Value)) {
        let inline = plugin.inline();
        let written = Resource::plugin("one", plugin, 1).bytes;
        assert_eq!(part(&written, &[1]), Some(&b"one"[..]));
        for (way, pointer) in texts {
            let said = inline.pointer(&format!("/typed_config{pointer}"));
            let said = said.and_then(Value::as_str).map(str::as_bytes);
            assert!(said.is_some(), "{pointer}");
            assert_eq!(part(&written, way), said, "{pointer}");
        }
        let (way, pointer, value) = flag;
        assert_eq!(
            inline.pointer(&format!("/typed_config{pointer}")),
            Some(&value)
        );
        assert_eq!(part(&written, way), Some(&[1][..]));
    }

    #[test]
    fn a_plugin_is_the_message_that_the_bootstrap_has() {
        for kind in [FilterKind::Http, FilterKind::Network] {
            let plugin = |file| Plugin {
                kind,
                file,
                config: "rules".to_owned(),
            };
            same(
                &plugin(FilterFile::Wasm("/filter.wasm".to_owned())),
                &[
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
                ],
                (
                    &[2, 2, 1, 7],
                    "/config/failure_policy",
                    Value::from("FAIL_RELOAD"),
                ),
            );
            same(
                &plugin(FilterFile::Module("/filter.so".to_owned())),
                &[
                    (&[2, 1][..], "/@type"),
                    (
                        &[2, 2, 1, 6, 1, 1],
                        "/dynamic_module_config/module/local/filename",
                    ),
                    (&[2, 2, 1, 5], "/dynamic_module_config/metrics_namespace"),
                    (&[2, 2, 2], "/filter_name"),
                    (&[2, 2, 3, 1], "/filter_config/@type"),
                    (&[2, 2, 3, 2, 1], "/filter_config/value"),
                ],
                (
                    &[2, 2, 1, 3],
                    "/dynamic_module_config/do_not_close",
                    Value::from(true),
                ),
            );
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
