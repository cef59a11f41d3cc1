//! The way out through a proxy: CONNECT to the proxy, then TLS to the server inside.
//!
//! Every cluster leads to one listener within Envoy, `upstream-proxy`, which asks the proxy for a tunnel to the host
//! and port that the filter named, and carries bytes. So the TLS of a cluster is the server's: its SNI, its names,
//! its client certificate. The proxy sees the host, the port and what is encrypted. Names are not looked up here;
//! the proxy does that.
//!
//! ```text
//! cluster ── TLS ──► internal listener ── CONNECT host:port ──► proxy ──► server
//! ```
//!
//! Nothing goes around the proxy, requests without TLS included: they take CONNECT too, which many proxies allow
//! to port 443 only.
//!
//! Where TLS to the proxy itself is asked for, the proxy's name is sent and verified there, by the system's
//! authorities, and has nothing to do with the server's.
//!
//! Source: envoyproxy/envoy `docs/root/configuration/other_features/internal_listener.rst`, and
//! `api/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto`, `TunnelingConfig`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use egress_filter::contract;
use egress_policy::HostName;
use hyper::Uri;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::access_log::{Metadata, access_log};
use super::{Options, Version, cluster, extension};

/// The name of the listener, of the proxy's cluster and of statistics.
pub const NAME: &str = "upstream-proxy";

/// The version from which connections can be told apart by what the filter named, so that no host gets the tunnel
/// of another: before it, there is no `envoy.hashable_string`.
pub const OLDEST_WITH_PROXY: Version = Version {
    major: 1,
    minor: 38,
};

/// A proxy as its URL names it: `http://user:password@proxy.example.com:3128`.
#[derive(Clone, PartialEq, Eq)]
pub struct UpstreamProxy {
    tls: bool,
    host: String,
    port: u16,
    /// What stands in `Proxy-Authorization`.
    authorization: Option<String>,
}

/// Who reads it in a log reads no password.
impl fmt::Debug for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// Why a text names no proxy. It never shows the text, which may have a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProxy {
    /// Not of the form.
    #[error("write it as http://HOST:PORT, http://USER:PASSWORD@HOST:PORT or https://HOST:PORT")]
    Form,
    /// A URL that says more than where a proxy is.
    #[error("a proxy's URL has no path and no query")]
    Path,
    /// The host is no host.
    #[error("its host is not a host name or address")]
    Host,
}

impl FromStr for UpstreamProxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        let uri: Uri = text.parse().map_err(|_| InvalidProxy::Form)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(InvalidProxy::Form),
        };
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(InvalidProxy::Path);
        }
        let authority = uri.authority().ok_or(InvalidProxy::Form)?;
        let port = authority.port_u16().filter(|port| *port != 0);
        let host = authority.host();
        let address = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        let host = match address.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => HostName::dns(host)
                .map_err(|_| InvalidProxy::Host)?
                .as_str()
                .to_owned(),
        };
        let user = authority.as_str().rsplit_once('@').map(|(user, _)| user);
        Ok(UpstreamProxy {
            tls,
            host,
            port: port.ok_or(InvalidProxy::Form)?,
            authorization: user.map(basic),
        })
    }
}

/// Writes the value of `Proxy-Authorization` for `user:password` as a URL has it.
///
/// Source: RFC 7617, 2.
fn basic(user: &str) -> String {
    let mut plain: Vec<u8> = percent_decode_str(user).collect();
    if !user.contains(':') {
        plain.push(b':');
    }
    format!("Basic {}", BASE64_STANDARD.encode(plain))
}

/// Renders what lets Envoy have listeners within itself.
pub(super) fn bootstrap_extension(options: &Options) -> Option<Value> {
    options.upstream_proxy.as_ref()?;
    Some(extension(
        "envoy.bootstrap.internal_listener",
        "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
        json!({}),
    ))
}

/// Renders the endpoint that every cluster has: the listener within.
pub(super) fn endpoints(name: &str) -> Map<String, Value> {
    let address =
        json!({"envoy_internal_address": {"server_listener_name": NAME, "endpoint_id": name}});
    let endpoint = json!({"endpoint": {"address": address}});
    let mut fields = Map::new();
    fields.insert("type".to_owned(), json!("STATIC"));
    fields.insert(
        "load_assignment".to_owned(),
        json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}),
    );
    fields
}

/// Renders a transport socket that tells the listener within what the filter named.
pub(super) fn through(socket: Value) -> Value {
    extension(
        "envoy.transport_sockets.internal_upstream",
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        json!({"transport_socket": socket}),
    )
}

/// Renders the HTTP filter that lets upstream connections see the target, and be one target's alone.
pub(super) fn http_filter() -> Value {
    extension(
        "envoy.filters.http.set_filter_state",
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        json!({"on_request_headers": [target(&named_by_the_filter())]}),
    )
}

/// Renders the same for connections that the filter leads.
pub(super) fn tcp_filter() -> Value {
    on_connection(&named_by_the_filter())
}

/// Renders the same for a connection that is passed through by its SNI, or to an address given by hand.
pub(super) fn network_filter(port: u16, pinned: Option<(&str, u16)>) -> Value {
    let text = match pinned {
        None => format!("%REQUESTED_SERVER_NAME%:{port}"),
        Some((address, port)) if address.contains(':') => format!("[{address}]:{port}"),
        Some((address, port)) => format!("{address}:{port}"),
    };
    on_connection(&text)
}

fn named_by_the_filter() -> String {
    format!("%FILTER_STATE({}:PLAIN)%", contract::TUNNEL_STATE)
}

fn on_connection(format: &str) -> Value {
    extension(
        "envoy.filters.network.set_filter_state",
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        json!({"on_new_connection": [target(format)]}),
    )
}

fn target(format: &str) -> Value {
    json!({
        "object_key": contract::UPSTREAM_TUNNEL_STATE,
        "factory_key": "envoy.hashable_string",
        "format_string": {"text_format_source": {"inline_string": format}},
        "shared_with_upstream": "ONCE",
    })
}

/// Renders the listener within, which asks for the tunnels.
pub(super) fn listener(options: &Options) -> Option<Value> {
    let proxy = options.upstream_proxy.as_ref()?;
    let headers: Vec<Value> = proxy
        .authorization
        .iter()
        .map(|value| json!({"header": {"key": "proxy-authorization", "value": value}}))
        .collect();
    let tunnel = extension(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({
            "stat_prefix": NAME,
            "cluster": NAME,
            // How long a connection may be idle is its cluster's to say.
            "idle_timeout": "0s",
            "access_log": [failures(options)],
            "tunneling_config": {
                "hostname": format!("%FILTER_STATE({}:PLAIN)%", contract::UPSTREAM_TUNNEL_STATE),
                "headers_to_add": headers,
            },
        }),
    );
    Some(json!({
        "name": NAME,
        "internal_listener": {},
        "filter_chains": [{"filters": [tunnel]}],
    }))
}

/// Renders the log of tunnels that did not come about: to the connection of a cluster they are all alike.
fn failures(options: &Options) -> Value {
    let state = contract::UPSTREAM_TUNNEL_STATE;
    let entries = [
        ("reason", "upstream_proxy".to_owned()),
        ("cluster", NAME.to_owned()),
        ("target", format!("%FILTER_STATE({state}:PLAIN)%")),
    ];
    let mut log = access_log(&Metadata::Known(&entries), options);
    if let Some(fields) = log.as_object_mut() {
        let flags = json!({"response_flag_filter": {"flags": ["UF", "UH", "UC", "URX"]}});
        fields.insert("filter".to_owned(), flags);
    }
    log
}

/// Renders the cluster of the proxy.
pub(super) fn cluster(options: &Options) -> Option<Value> {
    let proxy = options.upstream_proxy.as_ref()?;
    let address = json!({"socket_address": {"address": proxy.host, "port_value": proxy.port}});
    let mut fields = json!({
        "name": NAME,
        "connect_timeout": cluster::CONNECT_TIMEOUT,
        "load_assignment": {
            "cluster_name": NAME,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "circuit_breakers": {"thresholds": [{
            "max_connections": u32::MAX, "max_pending_requests": u32::MAX, "max_requests": u32::MAX,
        }]},
    });
    let map = fields.as_object_mut()?;
    let ip = proxy.host.parse::<IpAddr>().is_ok();
    match ip {
        true => map.insert("type".to_owned(), json!("STATIC")),
        false => map.insert("cluster_type".to_owned(), cluster::dns(false, options)),
    };
    if proxy.tls {
        map.insert("transport_socket".to_owned(), tls(proxy, ip, options));
    }
    Some(fields)
}

fn tls(proxy: &UpstreamProxy, ip: bool, options: &Options) -> Value {
    let kind = if ip { "IP_ADDRESS" } else { "DNS" };
    let mut context = json!({"common_tls_context": {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["http/1.1"],
        "validation_context": {
            "trusted_ca": {"filename": options.trust_store},
            "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": proxy.host}}],
        },
    }});
    if let (false, Some(fields)) = (ip, context.as_object_mut()) {
        fields.insert("sni".to_owned(), json!(proxy.host));
    }
    extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        context,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_from_its_url() {
        let proxy: UpstreamProxy = "http://us%40er:p%3Aw@Proxy.example.com:3128/"
            .parse()
            .unwrap();
        assert_eq!(proxy.host, "proxy.example.com");
        assert_eq!((proxy.port, proxy.tls), (3128, false));
        // `us@er:p:w`
        let authorization = proxy.authorization.as_deref();
        assert_eq!(authorization, Some("Basic dXNAZXI6cDp3"));
        assert_eq!(format!("{proxy:?}"), "http://proxy.example.com:3128");

        let proxy: UpstreamProxy = "https://[::1]:3129".parse().unwrap();
        assert_eq!(
            (proxy.host.as_str(), proxy.port, proxy.tls),
            ("::1", 3129, true)
        );
        assert_eq!(proxy.authorization, None);
    }

    #[test]
    fn what_names_no_proxy_is_refused_without_its_password() {
        for text in [
            "",
            "proxy:3128",
            "http://proxy",
            "http://proxy:0",
            "socks5://proxy:1080",
            "http://user:secret@pro xy:1",
            "http://user:secret@:3128",
            "http://user:secret@proxy:3128/path",
            "http://user:secret@-:3128",
        ] {
            let error = text.parse::<UpstreamProxy>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{text}: {error}");
        }
    }
}
