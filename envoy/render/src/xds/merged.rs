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

use egress_policy::{Note, Service, TlsIntent, UpstreamProtocol};
use egress_rules::{ClusterDefaults, Offer};
use serde_json::{Map, Value, json};

use super::message::{extension, set, set_some};
use super::names::{Names, nobody};
use super::options::Options;
use super::secrets;
use super::transport_socket::{
    TLS, UPSTREAM_TLS, groups, proxied, renegotiation, show_certificate, tls_params, upstream_tls,
};

/// Why a cluster of Istio's cannot be told to do what a rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotMerged {
    /// The certificate must have two names at once: the host, and one of a list.
    TwoNames,
    /// The mesh names groups, and those of `small-hello` would stand behind them: Envoy refuses one that is there twice.
    Groups,
}

/// Renders the sockets to be merged into the cluster of a service, one after the other.
///
/// # Errors
/// When a cluster of Istio's cannot be told what `tls` asks for.
pub fn sockets(
    service: &Service<'_>,
    tls: &TlsIntent,
    options: &Options,
) -> Result<Vec<Value>, NotMerged> {
    let names = Names::in_istios(service.host, tls).ok_or(NotMerged::TwoNames)?;
    if tls.legacy.say(Note::SmallHello) && !options.mesh.clusters.curves.is_empty() {
        return Err(NotMerged::Groups);
    }
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
    // What the mesh says of lists stands in Istio's cluster already, and a merge adds to it.
    let defaults = ClusterDefaults {
        tls13: options.mesh.clusters.tls13,
        ..ClusterDefaults::default()
    };
    let offer = Offer::of(&defaults, tls.legacy);
    let mut params = tls_params(&offer, options.version);
    if offer.groups_said {
        groups(&offer, &mut params);
    }
    set(&mut common, "tls_params", Value::Object(params));
    // Istio names the protocols of its clusters for HTTP/2 itself; a second list would come behind it.
    match service.cluster.upstream {
        UpstreamProtocol::PostgreSql => set(&mut common, "alpn_protocols", json!(["postgresql"])),
        // Its cluster speaks HTTP/1.1 then, and offers nothing.
        UpstreamProtocol::Http1 if tls.legacy.say(Note::Renegotiation) => {
            set(&mut common, "alpn_protocols", json!(["http/1.1"]));
        }
        _ => {}
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
    let mut context = Map::new();
    renegotiation(tls, &mut context);
    upstream_tls(common, names.sni, names.host, context)
}
