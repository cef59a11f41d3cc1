//! The EnvoyFilter: clusters and routes that the WasmPlugin's filter leads requests to.
//!
//! How istiod applies each patch, and what happens when none of its objects match:
//!
//! - `CLUSTER ADD`: always. Of two clusters with one name Istio's is kept, so none of ours has a name of Istio's.
//! - `HTTP_ROUTE INSERT_FIRST` without a route to match: each patch puts its route before all others of every virtual
//!   host of the port. So the last patch is the first route, and the patches are rendered in reverse order. A proxy
//!   that has no such route configuration is left as it is: no request of the port is led by us there.
//! - `HTTP_FILTER INSERT_BEFORE` the router: on every HTTP connection manager of the port. The filter is disabled
//!   and runs on our own routes alone.
//!
//! Source: istio/istio `pilot/pkg/networking/core/envoyfilter/rc_patch.go`, `patchHTTPRoutes`, and `cluster_patch.go`.

use serde_json::{Value, json};

use super::manifest::{Manifest, fields, manifest};
use super::selector::ProxySelector;
use super::wanted::{ProxyKind, Wanted};
use crate::xds::{Additions, Options};

pub(super) fn envoy_filter(
    additions: &Additions,
    selector: &ProxySelector,
    options: &Options,
    wanted: &Wanted,
) -> Manifest {
    let context = context(wanted.proxies);
    let mut patches: Vec<Value> = additions
        .clusters
        .iter()
        .map(|cluster| {
            json!({
                "applyTo": "CLUSTER",
                "match": {"context": context},
                "patch": {"operation": "ADD", "value": with_own_alpn(cluster)},
            })
        })
        .collect();
    for (port, routes) in &additions.routes {
        patches.push(json!({
            "applyTo": "HTTP_FILTER",
            "match": {"context": context, "listener": listener(port.get(), wanted.proxies)},
            "patch": {"operation": "INSERT_BEFORE", "value": additions.upgrade},
        }));
        patches.extend(routes.iter().rev().map(|route| {
            json!({
                "applyTo": "HTTP_ROUTE",
                "match": route_match(context, port.get(), wanted.proxies),
                "patch": {"operation": "INSERT_FIRST", "value": route},
            })
        }));
    }
    of_patches(patches, &wanted.name, selector, options)
}

/// Returns which of a proxy's configurations are patched.
pub(super) fn context(proxies: ProxyKind) -> &'static str {
    match proxies {
        ProxyKind::Sidecar => "SIDECAR_OUTBOUND",
        ProxyKind::Gateway => "GATEWAY",
    }
}

/// Makes an EnvoyFilter for the proxies that are meant.
pub(super) fn of_patches(
    patches: Vec<Value>,
    name: &str,
    selector: &ProxySelector,
    options: &Options,
) -> Manifest {
    let [selector, target_refs] = selector.named("labels");
    let spec = fields([
        ("workloadSelector", selector),
        ("targetRefs", target_refs),
        ("configPatches", Some(json!(patches))),
    ]);
    let kind = ("networking.istio.io/v1alpha3", "EnvoyFilter");
    let body = fields([("spec", Some(json!(spec)))]);
    manifest(kind, name, options, body)
}

/// Names the router of a port's listener. A gateway's listener may have another port than its service.
fn listener(port: u16, proxies: ProxyKind) -> Value {
    let manager = "envoy.filters.network.http_connection_manager";
    let router =
        json!({"filter": {"name": manager, "subFilter": {"name": "envoy.filters.http.router"}}});
    match proxies {
        ProxyKind::Sidecar => json!({"portNumber": port, "filterChain": router}),
        ProxyKind::Gateway => json!({"filterChain": router}),
    }
}

/// Names the routes of a port, or all of a gateway, for the same reason: its routes are called by the listener's port.
///
/// Source: istio/istio `pilot/pkg/networking/core/envoyfilter/rc_patch.go`, `routeConfigurationMatch`.
fn route_match(context: &str, port: u16, proxies: ProxyKind) -> Value {
    match proxies {
        ProxyKind::Sidecar => {
            json!({"context": context, "routeConfiguration": {"portNumber": port}})
        }
        ProxyKind::Gateway => json!({"context": context}),
    }
}

/// Keeps Istio from offering the protocols of its mesh to servers outside.
///
/// Source: istio/istio `pilot/pkg/networking/util/util.go`, `AddALPNOverrideToMetadata`.
fn with_own_alpn(cluster: &Value) -> Value {
    let mut cluster = cluster.clone();
    if let Some(fields) = cluster.as_object_mut() {
        let metadata = json!({"filter_metadata": {"istio": {"alpn_override": "false"}}});
        fields.insert("metadata".to_owned(), metadata);
    }
    cluster
}
