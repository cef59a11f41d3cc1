//! The transport socket that takes the place of the one of a cluster that Istio made.
//!
//! Istio merges a patch into the socket of the cluster, if both have one name, and else puts it in its place. A merge
//! adds to lists, replaces single values, and of several alternatives keeps the last. What Istio has there depends on
//! rules that may be on their way, so nothing here counts on it. Two patches in a row leave only what is ours:
//!
//! 1. The first replaces all that Istio verifies by a name that no certificate has, without an authority. Envoy refuses
//!    such a cluster, so the first patch alone opens nothing.
//! 2. The second replaces this by what the rule asks for.
//!
//! The rule that Istio reads names no certificate to show, so that list is ours alone.
//!
//! Source: istio/istio `pilot/pkg/networking/core/envoyfilter/cluster_patch.go`, `mergeTransportSocketCluster`, and
//! `pkg/proto/merge`.

use egress_policy::{Service, TlsIntent, UpstreamProtocol};
use serde_json::{Map, Value, json};

use super::message::{extension, set, set_some};
use super::names::{Names, nobody};
use super::options::Options;
use super::secrets;
use super::transport_socket::{
    TLS, UPSTREAM_TLS, proxied, show_certificate, upstream_tls, versions,
};

/// The certificate must have two names at once: the host, and one of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TwoNames;

/// Renders the sockets to be merged into the cluster of a service, one after the other.
///
/// # Errors
/// When a cluster of Istio's cannot be told to verify what `tls` asks for.
pub fn sockets(
    service: &Service<'_>,
    tls: &TlsIntent,
    options: &Options,
) -> Result<Vec<Value>, TwoNames> {
    let names = Names::in_istios(service.host, tls).ok_or(TwoNames)?;
    let socket = socket(service, tls, names, options);
    Ok(match service.cluster.proxy_protocol {
        // The socket inside is a single value to Istio.
        Some(version) => vec![proxied(version, socket)],
        None => vec![nothing_verified(), socket],
    })
}

/// Renders a socket that Envoy does not take, and that no certificate would satisfy.
fn nothing_verified() -> Value {
    let names = json!({"match_typed_subject_alt_names": [nobody()]});
    let context = json!({"common_tls_context": {"validation_context": names}});
    extension(TLS, UPSTREAM_TLS, context)
}

fn socket(service: &Service<'_>, tls: &TlsIntent, names: Names<'_>, options: &Options) -> Value {
    let mut common = Map::new();
    set(&mut common, "tls_params", Value::Object(versions(options)));
    // Istio names the protocols of its clusters for HTTP/2 itself; a second list would come behind it.
    if service.cluster.upstream == UpstreamProtocol::PostgreSql {
        set(&mut common, "alpn_protocols", json!(["postgresql"]));
    }
    show_certificate(tls, options, &mut common);
    let mut beside = Map::new();
    set(
        &mut beside,
        "match_typed_subject_alt_names",
        json!(names.typed),
    );
    set_some(&mut beside, "crl", secrets::revoked(tls, options));
    let combined = json!({
        "default_validation_context": beside,
        "validation_context_sds_secret_config": secrets::validation(tls, options),
    });
    set(&mut common, "combined_validation_context", combined);
    upstream_tls(common, names.sni, names.host, Map::new())
}
