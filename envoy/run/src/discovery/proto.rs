//! The messages, as far as they are used. Their numbers are Envoy's.
//!
//! Source: envoyproxy/envoy `api/envoy/service/discovery/v3/discovery.proto`,
//! `api/envoy/extensions/transport_sockets/tls/v3/{secret,common}.proto`, `api/envoy/extensions/wasm/v3/wasm.proto`,
//! `api/envoy/config/core/v3/{base,extension}.proto`, `api/envoy/extensions/dynamic_modules/v3/dynamic_modules.proto`,
//! `api/envoy/extensions/filters/{http,network}/dynamic_modules/v3/dynamic_modules.proto`.

use prost::bytes::Bytes;
use prost::{Message, Oneof};

use egress_filter::contract;

use egress_credentials::Material;
use egress_render::xds::{FilterFile, Plugin, WASM_RUNTIME};

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
            typed_config: Some(filter(plugin)),
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

/// As [`Wasm`], where it is native.
#[derive(Clone, PartialEq, Message)]
struct DynamicModuleFilter {
    #[prost(message, optional, tag = "1")]
    dynamic_module_config: Option<DynamicModuleConfig>,
    #[prost(string, tag = "2")]
    filter_name: String,
    #[prost(message, optional, tag = "3")]
    filter_config: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct DynamicModuleConfig {
    #[prost(bool, tag = "3")]
    do_not_close: bool,
    #[prost(string, tag = "5")]
    metrics_namespace: String,
    #[prost(message, optional, tag = "6")]
    module: Option<Code>,
}

/// Returns what [`Plugin::inline`] says.
fn filter(plugin: &Plugin) -> Any {
    let ours = || contract::FILTER_NAME.to_owned();
    let told = Any {
        type_url: STRING.to_owned(),
        value: plugin.config.encode_to_vec().into(),
    };
    let code = |path: &String| Code {
        local: Some(File {
            filename: path.clone(),
        }),
    };
    let value = match &plugin.file {
        FilterFile::Wasm(path) => Wasm {
            config: Some(PluginConfig {
                name: ours(),
                root_id: ours(),
                vm_config: Some(VmConfig {
                    vm_id: ours(),
                    runtime: WASM_RUNTIME.to_owned(),
                    code: Some(code(path)),
                }),
                configuration: Some(told),
                failure_policy: FAIL_RELOAD,
            }),
        }
        .encode_to_vec(),
        FilterFile::Module(path) => DynamicModuleFilter {
            dynamic_module_config: Some(DynamicModuleConfig {
                do_not_close: true,
                metrics_namespace: contract::METRICS_NAMESPACE.to_owned(),
                module: Some(code(path)),
            }),
            filter_name: ours(),
            filter_config: Some(told),
        }
        .encode_to_vec(),
    };
    Any {
        type_url: format!("type.googleapis.com/{}", plugin.message()),
        value: value.into(),
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
