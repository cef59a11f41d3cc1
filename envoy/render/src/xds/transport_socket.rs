//! Transport sockets: TLS or plaintext between a cluster and the server. `variants.rs` lets a cluster have several.

use egress_policy::{Cluster, Note, ProxyProtocol, TlsIntent, UpstreamProtocol};
use egress_rules::{Offer, TlsVersion};
use serde_json::{Map, Value, json};

use super::message::{extension, set, set_some};
use super::names::{HostCheck, Names};
use super::options::{Options, Version};
use super::rendering::Rendering;
use super::{secrets, upstream_proxy};

/// The version from which sessions are kept apart by SNI, so that one TLS context may keep many.
///
/// Before it, a session made with one server is offered to the next, which fails the request. Source:
/// the runtime guard `envoy.reloadable_features.scope_upstream_tls_session_cache_by_sni`, absent before.
const SESSIONS_BY_NAME: Version = Version {
    major: 1,
    minor: 40,
};

/// The version from which Envoy offers a post-quantum group by itself. Those before it do where they are told to.
///
/// Source: the runtime guard `envoy.reloadable_features.pqc_default_ecdh_curves`.
const POST_QUANTUM_BY_ITSELF: Version = Version {
    major: 1,
    minor: 40,
};

/// The version from which Envoy knows the suite. One before it does not start with it.
const ECDSA_CBC_SHA256_SUITE: &str = "ECDHE-ECDSA-AES128-SHA256";
const ECDSA_CBC_SHA256: Version = Version {
    major: 1,
    minor: 38,
};

/// The TLS sessions that one context keeps at most; one is about two kilobytes.
const MAX_SESSIONS: usize = 4096;

/// What Envoy calls the socket of TLS, and its settings towards servers.
pub(super) const TLS: &str = "envoy.transport_sockets.tls";
pub(super) const UPSTREAM_TLS: &str =
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

/// Renders the transport socket of a cluster. `None` means Envoy's default, which sends plaintext.
pub(super) fn transport_socket(cluster: &Cluster, rendering: &Rendering<'_>) -> Option<Value> {
    let socket = server_socket(cluster, rendering);
    match upstream_proxy::carries(cluster, rendering.options) {
        false => socket,
        true => Some(upstream_proxy::through(socket.unwrap_or_else(raw_buffer))),
    }
}

fn raw_buffer() -> Value {
    let kind = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    extension("envoy.transport_sockets.raw_buffer", kind, json!({}))
}

/// Renders the transport socket towards the server, without that of an upstream proxy.
fn server_socket(cluster: &Cluster, rendering: &Rendering<'_>) -> Option<Value> {
    let tls = cluster
        .tls
        .as_ref()
        .map(|tls| tls_socket(cluster, tls, rendering));
    let Some(version) = cluster.proxy_protocol else {
        return tls;
    };
    Some(proxied(version, tls.unwrap_or_else(raw_buffer)))
}

/// Renders a socket that tells the server who is calling, before anything else.
pub(super) fn proxied(version: ProxyProtocol, inner: Value) -> Value {
    let version = match version {
        ProxyProtocol::V1 => "V1",
        ProxyProtocol::V2 => "V2",
    };
    let wrapped = json!({"config": {"version": version}, "transport_socket": inner});
    let kind =
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
    extension(
        "envoy.transport_sockets.upstream_proxy_protocol",
        kind,
        wrapped,
    )
}

/// Renders TLS to a server. By default Envoy verifies nothing and speaks at most TLS 1.2. So both settings are always
/// written.
fn tls_socket(cluster: &Cluster, tls: &TlsIntent, rendering: &Rendering<'_>) -> Value {
    let options = rendering.options;
    let mut common = Map::new();
    let offer = Offer::of(&options.mesh.clusters, tls.legacy);
    let mut params = tls_params(&offer, options.version);
    if offer.groups_said || options.version < POST_QUANTUM_BY_ITSELF {
        groups(&offer, &mut params);
    }
    set(&mut common, "tls_params", Value::Object(params));
    match cluster.upstream {
        // Envoy offers what the connection will speak, and TCP offers none.
        UpstreamProtocol::Auto | UpstreamProtocol::AsReceived | UpstreamProtocol::Bytes => {}
        // Source: postgres/postgres `src/include/libpq/pqcomm.h`, `PG_ALPN_PROTOCOL`.
        UpstreamProtocol::PostgreSql => set(&mut common, "alpn_protocols", json!(["postgresql"])),
        UpstreamProtocol::Http1 => set(&mut common, "alpn_protocols", json!(["http/1.1"])),
        UpstreamProtocol::Http2 => set(&mut common, "alpn_protocols", json!(["h2"])),
    }
    show_certificate(tls, options, &mut common);
    let mut beside = Map::new();
    let names = Names::of(cluster, tls);
    let typed = Some(names.typed).filter(|typed| !typed.is_empty());
    set_some(&mut beside, "match_typed_subject_alt_names", typed);
    set_some(&mut beside, "crl", secrets::revoked(tls, options));
    match secrets::validation(tls, options) {
        None => {}
        Some(reference) if beside.is_empty() => {
            set(
                &mut common,
                "validation_context_sds_secret_config",
                reference,
            );
        }
        Some(reference) => {
            let combined = json!({
                "default_validation_context": beside,
                "validation_context_sds_secret_config": reference,
            });
            set(&mut common, "combined_validation_context", combined);
        }
    }
    let sessions = if options.version < SESSIONS_BY_NAME {
        0
    } else {
        match options.reloads {
            // A number that follows the table would change every cluster with each host.
            true => MAX_SESSIONS,
            false => (rendering.table.len() * 2).clamp(16, MAX_SESSIONS),
        }
    };
    let mut context = Map::new();
    set(&mut context, "max_session_keys", json!(sessions));
    renegotiation(tls, &mut context);
    upstream_tls(common, names.sni, names.host, context)
}

/// Adds the certificate that the server is shown, if a rule has one.
pub(super) fn show_certificate(
    tls: &TlsIntent,
    options: &Options,
    common: &mut Map<String, Value>,
) {
    if let Some(identity) = &tls.identity {
        let reference = json!([secrets::certificate(identity, options)]);
        set(common, "tls_certificate_sds_secret_configs", reference);
    }
}

/// Lets a server begin another handshake in a connection, if the rule says so.
pub(super) fn renegotiation(tls: &TlsIntent, context: &mut Map<String, Value>) {
    let allowed = tls.legacy.say(Note::Renegotiation);
    set_some(context, "allow_renegotiation", allowed.then_some(true));
}

/// Renders a socket of TLS to a server: `context` with what all of its contexts have.
pub(super) fn upstream_tls(
    common: Map<String, Value>,
    sni: Option<&str>,
    host: HostCheck,
    mut context: Map<String, Value>,
) -> Value {
    set(&mut context, "common_tls_context", Value::Object(common));
    set_some(&mut context, "sni", sni);
    let by_sni = host == HostCheck::BySni;
    set_some(
        &mut context,
        "auto_sni_san_validation",
        by_sni.then_some(true),
    );
    extension(TLS, UPSTREAM_TLS, Value::Object(context))
}

/// Renders versions, suites and signatures, as far as they are not left to Envoy.
pub(super) fn tls_params(offer: &Offer, version: Version) -> Map<String, Value> {
    let mut params = Map::new();
    set(
        &mut params,
        "tls_minimum_protocol_version",
        json!(offer.lowest.as_envoy()),
    );
    set(
        &mut params,
        "tls_maximum_protocol_version",
        json!(TlsVersion::Tls13.as_envoy()),
    );
    let known = |suite: &&String| version >= ECDSA_CBC_SHA256 || *suite != ECDSA_CBC_SHA256_SUITE;
    let suites: Vec<&String> = offer.suites.iter().filter(known).collect();
    if !suites.is_empty() {
        set(&mut params, "cipher_suites", json!(suites));
    }
    if !offer.signatures.is_empty() {
        set(&mut params, "signature_algorithms", json!(offer.signatures));
    }
    params
}

/// Adds the groups.
pub(super) fn groups(offer: &Offer, params: &mut Map<String, Value>) {
    set(params, "ecdh_curves", json!(offer.groups));
}
