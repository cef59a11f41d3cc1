//! `Gateway` of networking.istio.io: what a router listens for. Read as far as it decides which routes count.
//!
//! Source: istio/api `networking/v1alpha3/gateway.proto`.

use crate::fields::Fields;
use crate::host::HostPattern;
use crate::node::Node;
use crate::port::PortNumber;
use crate::problem::Origin;
use crate::proxy::Proxy;
use crate::resource::Meta;
use crate::resource::loose::{as_text, at, labels, list, long, pattern, port, text};
use crate::resource::meta::read_meta;

/// The listeners of a router.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// Name, namespace, origin.
    pub meta: Meta,
    /// The labels of the routers it is for.
    pub(crate) selector: Vec<(String, String)>,
    pub(crate) servers: Vec<Server>,
    /// The hosts of the Services of the routers that it is for, where it is one of the Gateway API: its own and no other.
    pub(crate) services: Vec<String>,
}

/// The annotation of a Gateway that was made of one of the Gateway API: the hosts of its Services.
///
/// Source: istio/istio `pilot/pkg/model/gateway.go`, `InternalGatewayServiceAnnotation`.
pub const GATEWAY_SERVICES: &str = "internal.istio.io/gateway-service";

/// One listener.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Server {
    pub(crate) port: PortNumber,
    pub(crate) reads: Reads,
    pub(crate) ends: Ends,
    /// Whose VirtualServices, and for which hosts; `None` is everybody's.
    pub(crate) hosts: Vec<(Option<String>, HostPattern)>,
    /// It answers that requests should come over TLS.
    pub(crate) redirects: bool,
    /// Its protocol is one of plain requests.
    http: bool,
    /// It has `tls`.
    tls: bool,
    /// It is bound to an address of its own, and not to the port on all of them.
    bound: bool,
}

impl Server {
    /// Whether it can stand behind an earlier server of the same routers. On one port are either plain requests, or TLS of
    /// which no two servers have a host in common.
    ///
    /// Source: istio/istio `pilot/pkg/model/gateway.go`, `mergeGateways`.
    pub(crate) fn stands_behind(&self, earlier: &Server) -> bool {
        if self.port != earlier.port || self.bound || earlier.bound {
            return true;
        }
        let known = |host| earlier.hosts.contains(host);
        let twice = self.tls && earlier.tls && self.hosts.iter().any(known);
        match earlier.tls && !earlier.http {
            true => self.tls && !twice,
            false => self.http && earlier.http && !twice,
        }
    }
}

/// What a server reads of what comes in: which list of routes counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Requests.
    Http,
    /// The name in a ClientHello, and no more.
    Sni,
    /// Bytes.
    Bytes,
    /// Nothing that leaves the mesh.
    Nothing,
}

/// Which TLS a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// None.
    Nothing,
    /// That of the mesh.
    Mesh,
    /// That of clients, with a certificate of its own.
    Clients,
}

impl Gateway {
    pub(crate) const KIND: &'static str = "Gateway";

    pub(crate) fn read(root: &Fields<'_>, origin: Origin) -> Gateway {
        let meta = read_meta(root, Self::KIND, origin, false);
        root.allow_unknown();
        let spec = root.peek("spec");
        let spec = spec.unwrap_or(&Node::Null);
        let namespace = &*meta.id.namespace;
        let servers = list(spec, "servers").iter();
        let annotations = root.peek("metadata").and_then(|it| at(it, "annotations"));
        let services = annotations.and_then(|it| text(it, GATEWAY_SERVICES));
        let services = services.into_iter().flat_map(|hosts| hosts.split(','));
        Gateway {
            services: services.map(str::to_owned).collect(),
            selector: labels(spec, "selector"),
            servers: servers.filter_map(|it| server(it, namespace)).collect(),
            meta,
        }
    }

    /// Whether a router with these labels has it; one of the Gateway API is for its own namespace.
    pub(crate) fn selects(&self, router: &Proxy) -> bool {
        let has = |(key, value): &(String, String)| router.labels.get(key) == Some(value);
        let of_api = !self.services.is_empty();
        let foreign = of_api && *router.namespace != *self.meta.id.namespace;
        !foreign && self.selector.iter().all(has)
    }
}

fn server(server: &Node<'_>, namespace: &str) -> Option<Server> {
    let given = at(server, "port")?;
    let protocol = text(given, "protocol").unwrap_or_default();
    let tls = at(server, "tls");
    let mode = tls.map(|tls| text(tls, "mode").unwrap_or("PASSTHROUGH"));
    let http = |word: &str| {
        let words = ["HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY"];
        words.iter().any(|other| other.eq_ignore_ascii_case(word))
    };
    let (reads, ends) = match mode {
        Some("PASSTHROUGH") => (Reads::Sni, Ends::Nothing),
        Some("AUTO_PASSTHROUGH") => (Reads::Nothing, Ends::Nothing),
        _ if http(protocol) && !protocol.eq_ignore_ascii_case("HTTPS") => {
            (Reads::Http, Ends::Nothing)
        }
        Some(mode) => {
            let reads = if http(protocol) {
                Reads::Http
            } else {
                Reads::Bytes
            };
            let ends = if mode == "ISTIO_MUTUAL" {
                Ends::Mesh
            } else {
                Ends::Clients
            };
            (reads, ends)
        }
        None => (Reads::Bytes, Ends::Nothing),
    };
    let hosts = list(server, "hosts").iter().filter_map(as_text);
    let hosts = hosts.filter_map(|text| {
        let (whose, host) = match text.split_once('/') {
            Some(("*", host)) => (None, host),
            Some((".", host)) => (Some(namespace.to_owned()), host),
            Some((other, host)) => (Some(other.to_owned()), host),
            None => (None, text),
        };
        Some((whose, pattern(&long(host, namespace))?))
    });
    Some(Server {
        http: http(protocol) && !protocol.eq_ignore_ascii_case("HTTPS"),
        tls: tls.is_some(),
        bound: text(server, "bind").is_some(),
        port: port(given, "number")?,
        reads,
        ends,
        hosts: hosts.collect(),
        redirects: tls.is_some_and(|tls| at(tls, "httpsRedirect") == Some(&Node::Bool(true))),
    })
}
