//! Certificates and keys under names, which clusters refer to and share.

use std::collections::BTreeMap;
use std::path::Path;

use egress_filter::contract;
use egress_policy::{Identity, TlsIntent, Trust};
use serde_json::{Value, json};

use super::options::Options;
use super::secret::{SecretFiles, SecretRequest, Secrets};

/// The name of the cluster that leads to the discovery server.
const SERVER: &str = "egressctl";

/// How long a cluster waits for a secret before it goes on without and answers 503. It comes from the same machine.
const FIRST: &str = "2s";

/// Renders how a cluster refers to its client certificate.
pub(super) fn certificate(identity: &Identity, options: &Options) -> Value {
    reference(contract::identity_secret(identity).to_string(), options)
}

/// Renders how a cluster refers to those it trusts; `None` where it verifies nothing.
pub(super) fn validation(tls: &TlsIntent, options: &Options) -> Option<Value> {
    if options.secrets == Secrets::Istio {
        // The agent has no name for what is revoked: see `revoked`.
        let name = contract::trust_name(&tls.trust, None)?;
        return Some(reference(name.to_string(), options));
    }
    let name = contract::trust_secret(tls)?.to_string();
    Some(match is_the_systems(tls) {
        true => json!({"name": name}),
        false => reference(name, options),
    })
}

/// Renders the list of what is revoked, where it does not come with those who are trusted.
pub(super) fn revoked(tls: &TlsIntent, options: &Options) -> Option<Value> {
    let path = tls.crl.as_ref()?;
    (options.secrets == Secrets::Istio).then(|| json!({"filename": path}))
}

/// Whether a cluster trusts whom the system trusts, and nothing more: that is always in the bootstrap.
fn is_the_systems(tls: &TlsIntent) -> bool {
    tls.trust == Trust::System && tls.crl.is_none()
}

fn reference(name: String, options: &Options) -> Value {
    let source = match &options.secrets {
        Secrets::AtStart(_) => return json!({"name": name}),
        Secrets::Served(_) => source(FIRST),
        Secrets::Watched(folder) => json!({
            "path_config_source": {"path": format!("{folder}/{}.json", file_name(&name))},
            "resource_api_version": "V3",
            "initial_fetch_timeout": FIRST,
        }),
        Secrets::Istio => return json!({"sds_config": of_istio(&name), "name": name}),
    };
    json!({"name": name, "sds_config": source})
}

/// Renders whom Istio's own clusters ask for a secret.
///
/// Source: istio/istio `pilot/pkg/security/model/authentication.go`, `SDSAdsConfig` and `ConstructSdsSecretConfig`.
fn of_istio(name: &str) -> Value {
    if !name.starts_with("file-") {
        return json!({"ads": {}, "resource_api_version": "V3"});
    }
    let agent = json!({
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": true,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
    });
    json!({"api_config_source": agent, "resource_api_version": "V3"})
}

/// Renders the way in which anything is asked of the discovery server, and how long its first answer is waited for; zero
/// is for ever.
pub(super) fn source(first: &str) -> Value {
    let server = json!({
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": SERVER}}],
    });
    json!({
        "api_config_source": server,
        "resource_api_version": "V3",
        "initial_fetch_timeout": first,
    })
}

/// Renders the way in which clusters and listeners are asked of the discovery server: by REST, for they are JSON. The
/// server answers a question when there is something new, however long that takes.
pub(super) fn lists() -> Value {
    let server = json!({
        "api_type": "REST",
        "transport_api_version": "V3",
        "cluster_names": [SERVER],
        "refresh_delay": "0.010s",
        "request_timeout": "31536000s",
    });
    json!({
        "api_config_source": server,
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0s",
    })
}

/// Renders whom the system trusts.
pub(super) fn system(options: &Options) -> Value {
    let name = contract::trust_name(&Trust::System, None).map(|name| name.to_string());
    json!({
        "name": name,
        "validation_context": {"trusted_ca": {"filename": options.trust_store}},
    })
}

/// Renders the secrets that stand in the bootstrap.
pub(super) fn statics<'t>(
    all: impl Iterator<Item = &'t TlsIntent>,
    options: &Options,
) -> Vec<Value> {
    let mut secrets = BTreeMap::new();
    for tls in all {
        if let (true, Some(name)) = (is_the_systems(tls), contract::trust_secret(tls)) {
            secrets.insert(name.to_string(), system(options));
        }
    }
    if let Secrets::AtStart(files) = &options.secrets {
        secrets.extend(
            files
                .iter()
                .map(|(name, files)| (name.clone(), secret(name, files, None))),
        );
    }
    secrets.into_values().collect()
}

/// Whether there is something to discover.
pub(super) fn any_served<'t>(mut all: impl Iterator<Item = &'t TlsIntent>) -> bool {
    all.any(|tls| {
        SecretRequest::certificate(tls).is_some() || SecretRequest::validation(tls).is_some()
    })
}

/// Renders the way to the discovery server.
pub(super) fn server(options: &Options) -> Option<Value> {
    let Secrets::Served(socket) = &options.secrets else {
        return None;
    };
    let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let protocol = json!({kind: {
        "@type": format!("type.googleapis.com/{kind}"),
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    let endpoint = json!({"endpoint": {"address": {"pipe": {"path": socket}}}});
    Some(json!({
        "name": SERVER,
        "type": "STATIC",
        "connect_timeout": "5s",
        // Each secret is a stream that stays; Envoy's default would let 1,024 of them through.
        "circuit_breakers": {"thresholds": [{"max_requests": u32::MAX}]},
        "typed_extension_protocol_options": protocol,
        "load_assignment": {"cluster_name": SERVER, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }))
}

/// Renders the documents of [`Secrets::Watched`]: the name of each file in the folder, `.json` left out, and what it
/// holds.
pub fn watched_documents(files: &BTreeMap<String, SecretFiles>) -> Vec<(String, Value)> {
    files
        .iter()
        .map(|(name, files)| {
            let folder = |path: &Path| path.parent().map(Path::to_path_buf);
            let (first, second) = match files {
                SecretFiles::Certificate { chain, key } => (folder(chain), Some(folder(key))),
                SecretFiles::Validation { ca, crl } => (folder(ca), crl.as_deref().map(folder)),
            };
            // Files of one folder are read together when anything in it is replaced; those of several
            // folders Envoy watches one by one.
            let watched =
                first.filter(|first| second.is_none_or(|second| second.as_ref() == Some(first)));
            let mut secret = secret(name, files, watched.as_deref());
            if let Some(fields) = secret.as_object_mut() {
                let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
                fields.insert("@type".to_owned(), json!(kind));
            }
            (file_name(name), json!({"resources": [secret]}))
        })
        .collect()
}

fn secret(name: &str, files: &SecretFiles, watched: Option<&Path>) -> Value {
    let (kind, mut body) = match files {
        SecretFiles::Certificate { chain, key } => (
            "tls_certificate",
            json!({"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}),
        ),
        SecretFiles::Validation { ca, crl } => {
            let mut body = json!({"trusted_ca": {"filename": ca}});
            if let (Some(crl), Some(fields)) = (crl, body.as_object_mut()) {
                fields.insert("crl".to_owned(), json!({"filename": crl}));
            }
            ("validation_context", body)
        }
    };
    if let (Some(folder), Some(fields)) = (watched, body.as_object_mut()) {
        fields.insert("watched_directory".to_owned(), json!({"path": folder}));
    }
    json!({"name": name, kind: body})
}

/// The longest file name that is written out, in bytes. File systems take 255, with what is put behind it.
const LONGEST_NAME: usize = 200;

/// Returns a file name that no other secret has: letters and digits stay, the rest becomes `%` and its code. Of a
/// long one the beginning stays, with a fingerprint of the whole.
pub fn file_name(secret: &str) -> String {
    let mut name = String::with_capacity(secret.len() + 5);
    for byte in secret.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                name.push(char::from(byte))
            }
            byte => name.push_str(&format!("%{byte:02x}")),
        }
    }
    if name.len() > LONGEST_NAME {
        let print = egress_policy::Digest::of_text(secret);
        name.truncate(LONGEST_NAME);
        name.push_str(&format!("~{print}"));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_differ_and_fit() {
        let long = "file-cert:".to_owned() + &"/very/long".repeat(40);
        let names = [
            file_name("kubernetes://a"),
            file_name("kubernetes://a-cacert"),
            file_name(&(long.clone() + "/a")),
            file_name(&(long + "/b")),
        ];
        for (at, name) in names.iter().enumerate() {
            assert!(name.len() < 240 && !name.contains('/'), "{name}");
            assert!(!names[at + 1..].contains(name), "{name}");
        }
    }
}
