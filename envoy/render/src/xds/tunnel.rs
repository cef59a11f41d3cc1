//! `tunnel` of a DestinationRule: `tcp_proxy` asks the proxy that the cluster leads to for another host.
//!
//! ```text
//! application ── bytes, or TLS of its own ──► tcp_proxy ── CONNECT host:port ──► proxy ──► host
//! ```
//!
//! Envoy speaks HTTP/1.1 to the proxy, or HTTP/2 if `h2UpgradePolicy` says so. If the rule has `tls`, that is TLS to
//! the proxy, which is verified like every server. Envoy sends nothing of the application's before the proxy has
//! agreed.
//!
//! With POST, Envoy sends a request for `/` whose `Host` is the target. Its chunked body is what the application sends.
//! The body of the proxy's answer is what comes back.
//!
//! Source: istio/istio `pilot/pkg/networking/core/networkfilter.go`; envoyproxy/envoy
//! `api/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto`, `TunnelingConfig`.

use egress_filter::Failure;
use egress_policy::Cluster;
use serde_json::{Value, json};

/// Renders for a `tcp_proxy` that its connections go through the tunnel of their cluster, if it has one.
pub(super) fn field(cluster: &Cluster) -> Option<(String, Value)> {
    let tunnel = cluster.tunnel.as_ref()?;
    let config = match tunnel.post {
        true => json!({"hostname": tunnel.authority(), "use_post": true}),
        false => json!({"hostname": tunnel.authority()}),
    };
    Some(("tunneling_config".to_owned(), config))
}

/// Why a tunnel could not be opened, in the words of [`Failure`] and by the same texts of Envoy. The filter, which
/// knows all of them, does not see TLS that is passed through.
pub(super) fn reason() -> String {
    let cases: String = Failure::TRANSPORT_TEXTS
        .into_iter()
        .map(|(text, failure)| {
            format!("upstream.transport_failure_reason.contains('{text}') ? '{failure}' : ")
        })
        .collect();
    // `UF`, and `UH`, in the bits of `CoreResponseFlag`.
    let (reset, dns) = (Failure::Reset, Failure::Dns);
    format!(
        "%CEL({cases}response.flags / 32 % 2 == 1 ? '{reset}' : response.flags / 2 % 2 == 1 ? '{dns}' : '-')%"
    )
}
