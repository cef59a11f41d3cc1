//! `VirtualService`: which destination a request or connection is led to. Read as far as it decides that.
//!
//! Routes of the Gateway API are VirtualServices too by the time they come here, as in Istio: `egress-rules` makes them.
//! An annotation says of what, and that counts in three ways: who sees them, in which order, and what they are called.
//!
//! Source: istio/api `networking/v1alpha3/virtual_service.proto`.

use std::collections::BTreeMap;

use crate::fields::Fields;
use crate::host::{HostName, HostPattern};
use crate::node::Node;
use crate::port::PortNumber;
use crate::problem::Origin;
use crate::proxy::Proxy;
use crate::resource::loose::{
    as_text, at, has_others, labels, list, long, number, pattern, port, text, texts,
};
use crate::resource::meta::read_meta;
use crate::resource::{Address, Meta};

/// Where requests and connections to hosts are led.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualService {
    /// Name, namespace, origin.
    pub meta: Meta,
    /// The hosts that are called, in full.
    pub hosts: Vec<HostPattern>,
    /// Whose routes they are.
    pub(crate) gateways: Vec<GatewayName>,
    pub(crate) export_to: Vec<String>,
    pub(crate) http: Vec<Route>,
    pub(crate) tls: Vec<Route>,
    pub(crate) tcp: Vec<Route>,
}

impl VirtualService {
    /// Whether a route of it is for callers with certain labels.
    pub(crate) fn selects_callers(&self) -> bool {
        let routes = self.http.iter().chain(&self.tls).chain(&self.tcp);
        let mut matches = routes.flat_map(|route| &route.matches);
        matches.any(|found| !found.labels.is_empty())
    }
}

/// Whose routes they are: those of sidecars, or of a Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GatewayName {
    Mesh,
    Named { namespace: String, name: String },
}

/// The annotation of a VirtualService that was made of a route of the Gateway API: the kind of that.
///
/// Source: istio/istio `pkg/config/constants/constants.go`, `InternalParentNames`; people may not set it.
pub const MADE_OF: &str = "internal.istio.io/parents";

/// The kinds of the Gateway API's routes.
pub const ROUTE_KINDS: [&str; 4] = ["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"];

/// A route, whatever comes in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Route {
    /// What it is called where it is a rule of the Gateway API.
    pub(crate) name: Option<Box<str>>,
    /// Any of them; without one, everything.
    pub(crate) matches: Vec<Match>,
    pub(crate) destinations: Vec<Destination>,
    /// The host that servers are told in place of the client's.
    pub(crate) authority: Option<HostName>,
    /// It answers by itself.
    pub(crate) answer: Option<Answer>,
    /// It says more than where it leads, and Envoy carries that out.
    pub(crate) settings: bool,
    /// It is another resource's to say.
    pub(crate) delegates: bool,
}

/// What a route answers without any server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// With this status.
    Status(u16),
    /// With this status, and another address.
    Redirect(u16),
}

/// What a route is for.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Match {
    pub(crate) port: Option<u64>,
    /// Empty is not given.
    pub(crate) gateways: Vec<GatewayName>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) namespace: Option<String>,
    /// `sniHosts`.
    pub(crate) names: Vec<HostPattern>,
    /// `destinationSubnets`, where they are given.
    pub(crate) subnets: Option<Vec<Address>>,
    /// It asks for more than that of each request.
    pub(crate) asks_more: bool,
    /// Which paths it takes, where not all.
    pub(crate) path: Option<Path>,
}

/// What a match asks of a path.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Path {
    pub(crate) how: PathIs,
    pub(crate) text: String,
    /// The case of letters does not count.
    pub(crate) any_case: bool,
}

/// How a path compares with the text of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathIs {
    Exactly,
    Below,
    /// It is the text, or goes on behind it with a slash: so the Gateway API compares.
    Within,
    /// It fits a regular expression.
    Like,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Destination {
    /// In full; compared with services as a text.
    pub(crate) host: String,
    pub(crate) port: Option<PortNumber>,
    pub(crate) subset: Option<String>,
    pub(crate) weight: u32,
    /// As [`Route::authority`], which comes first.
    pub(crate) authority: Option<HostName>,
}

impl VirtualService {
    pub(crate) const KIND: &'static str = "VirtualService";

    pub(crate) fn read(root: &Fields<'_>, origin: Origin) -> VirtualService {
        let annotations = root.peek("metadata").and_then(|it| at(it, "annotations"));
        let made_of = annotations.and_then(|it| text(it, MADE_OF));
        let kind = ROUTE_KINDS.into_iter().find(|kind| Some(*kind) == made_of);
        let meta = read_meta(root, kind.unwrap_or(Self::KIND), origin, false);
        root.allow_unknown();
        let spec = root.peek("spec");
        let spec = spec.unwrap_or(&Node::Null);
        let namespace = &*meta.id.namespace;
        let hosts = list(spec, "hosts").iter();
        let hosts = hosts.filter_map(|host| pattern(&long(as_text(host)?, namespace)));
        let mut gateways = gateways(spec, namespace);
        if gateways.is_empty() {
            gateways.push(GatewayName::Mesh);
        }
        let routes = |key| {
            let all = list(spec, key).iter();
            let named = |it| {
                let mut route = route(it, namespace);
                if kind.is_some() {
                    route.name = text(it, "name").map(Box::from);
                    let paths = route.matches.iter_mut();
                    paths.filter_map(|it| it.path.as_mut()).for_each(divide);
                }
                route
            };
            all.map(named).collect()
        };
        VirtualService {
            hosts: hosts.collect(),
            gateways,
            export_to: texts(spec, "exportTo"),
            http: routes("http"),
            tls: routes("tls"),
            tcp: routes("tcp"),
            meta,
        }
    }

    /// Whether it was made of a route of the Gateway API.
    pub(crate) fn is_of_gateway_api(&self) -> bool {
        self.meta.id.kind != Self::KIND
    }

    /// Leads to other hosts where it leads to these.
    pub(crate) fn lead_elsewhere(&mut self, instead: &BTreeMap<String, String>) {
        let routes = self
            .http
            .iter_mut()
            .chain(&mut self.tls)
            .chain(&mut self.tcp);
        for to in routes.flat_map(|route| &mut route.destinations) {
            if let Some(host) = instead.get(&to.host) {
                to.host.clone_from(host);
            }
        }
    }

    /// Returns everywhere that it leads, in sidecars or in gateways.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let routes = self.http.iter().chain(&self.tls).chain(&self.tcp);
        routes.flat_map(|route| &route.destinations)
    }
}

impl Route {
    /// Returns the destinations that have a share: one alone has all.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `applyHTTPRouteDestination`.
    pub(crate) fn shares(&self) -> Vec<&Destination> {
        match &self.destinations[..] {
            [only] => vec![only],
            all => all.iter().filter(|to| to.weight > 0).collect(),
        }
    }
}

/// Whether two matches ask for paths that no request has at once, or for such as cannot be asked for in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Both {
    Holds,
    Never,
    Unknown,
}

impl Match {
    /// Returns whether a request can be what this match and another ask for, and one route of Envoy can ask for both.
    pub(crate) fn and(&self, other: &Match) -> Both {
        let (Some(one), Some(two)) = (&self.path, &other.path) else {
            return Both::Holds;
        };
        if one == two {
            return Both::Holds;
        }
        if one.any_case != two.any_case || [one.how, two.how].contains(&PathIs::Like) {
            return Both::Unknown;
        }
        match one.covers(two) || two.covers(one) {
            true => Both::Holds,
            false => Both::Never,
        }
    }

    /// Whether its static part holds for requests.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `sourceMatchHTTP`.
    pub(crate) fn is_for_requests(
        &self,
        port: PortNumber,
        proxy: &Proxy,
        gateway: &GatewayName,
    ) -> bool {
        // Requests are not asked for their source where `gateways` is given.
        let from = match &self.gateways[..] {
            [] => self.is_from(proxy),
            all => all.contains(gateway),
        };
        from && self.has_port(port)
    }

    /// Whether its static part holds for connections; `sidecar` asks for their source too.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/tls.go`, `matchTLS`; `pilot/pkg/networking/core/gateway.go`,
    /// `l4SingleMatch`.
    pub(crate) fn is_for_connections(
        &self,
        port: PortNumber,
        proxy: &Proxy,
        gateway: &GatewayName,
    ) -> bool {
        let gateways = self.gateways.is_empty() || self.gateways.contains(gateway);
        let sidecar = *gateway == GatewayName::Mesh;
        let subnets = self.subnets.as_ref().is_none_or(|all| !all.is_empty());
        gateways && subnets && self.has_port(port) && (!sidecar || self.is_from(proxy))
    }

    fn has_port(&self, port: PortNumber) -> bool {
        self.port.is_none_or(|own| own == u64::from(port.get()))
    }

    fn is_from(&self, proxy: &Proxy) -> bool {
        let has = |(key, value): &(String, String)| proxy.labels.get(key) == Some(value);
        self.labels.iter().all(has)
            && (self.namespace.as_ref()).is_none_or(|namespace| *namespace == proxy.namespace)
    }
}

impl Path {
    /// Whether every path that another match asks for is one of these. Neither is a regular expression.
    fn covers(&self, other: &Path) -> bool {
        let (own, other_text) = (self.text.as_bytes(), other.text.as_bytes());
        let begins = other_text
            .get(..own.len())
            .is_some_and(|begin| match self.any_case {
                true => begin.eq_ignore_ascii_case(own),
                false => begin == own,
            });
        let same = own.len() == other_text.len();
        let covers = match self.how {
            PathIs::Below => true,
            PathIs::Within => {
                let divided = other_text.get(own.len()) == Some(&b'/');
                divided || (same && other.how != PathIs::Below)
            }
            PathIs::Exactly | PathIs::Like => same && other.how == PathIs::Exactly,
        };
        begins && covers
    }
}

/// Reads the beginning of a path as the Gateway API does: by the parts between slashes.
fn divide(path: &mut Path) {
    if path.how == PathIs::Below {
        path.how = PathIs::Within;
        let end = path.text.trim_end_matches('/').len();
        path.text.truncate(end);
    }
}

/// Source: istio/istio `pilot/pkg/model/config.go`, `resolveGatewayName`.
fn gateways(node: &Node<'_>, namespace: &str) -> Vec<GatewayName> {
    let named = |namespace: &str, name: &str| GatewayName::Named {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let names = list(node, "gateways").iter().filter_map(as_text);
    let read = |text: &str| match text.split_once('/') {
        None if text == "mesh" => GatewayName::Mesh,
        Some((".", name)) => named(namespace, name),
        Some((other, name)) => named(other, name),
        None => {
            let mut labels = text.split('.');
            let name = labels.next().unwrap_or(text);
            named(labels.next().unwrap_or(namespace), name)
        }
    };
    names.map(read).collect()
}

/// The fields of a route that say no more than where it leads.
const LEADS: [&str; 5] = ["name", "match", "route", "statPrefix", "mirror"];

fn route(route: &Node<'_>, namespace: &str) -> Route {
    let sends = list(route, "route").iter();
    let destinations = sends.filter_map(|it| {
        let to = at(it, "destination")?;
        let subset = text(to, "subset").filter(|name| !name.is_empty());
        let weight = number(it, "weight").and_then(|weight| u32::try_from(weight).ok());
        Some(Destination {
            host: long(text(to, "host")?, namespace),
            port: at(to, "port").and_then(|to| port(to, "number")),
            subset: subset.map(str::to_owned),
            weight: weight.unwrap_or(0),
            authority: authority(it),
        })
    });
    let rewrite = at(route, "rewrite");
    let rewritten = rewrite.and_then(|it| text(it, "authority"));
    let own = authority(route);
    let more = |node: &Node<'_>| {
        at(node, "headers").is_some_and(|headers| {
            let request = at(headers, "request");
            let only_host = request.is_none_or(|it| {
                !has_others(it, &["set", "add"])
                    && ["set", "add"].iter().all(|key| match at(it, key) {
                        Some(Node::Object(fields)) => fields.iter().all(|(key, _)| is_host(key)),
                        _ => true,
                    })
            });
            !only_host || has_others(headers, &["request"])
        })
    };
    let settings = match route {
        Node::Object(fields) => fields.iter().any(|(key, value)| match key {
            "rewrite" => has_others(value, &["authority"]),
            "headers" => more(route),
            key => !LEADS.contains(&key),
        }),
        _ => true,
    };
    let redirect = at(route, "redirect").map(|it| {
        let code = number(it, "redirectCode").and_then(|code| u16::try_from(code).ok());
        Answer::Redirect(code.filter(|code| *code != 0).unwrap_or(301))
    });
    let direct = at(route, "directResponse").map(|it| Answer::Status(status(it, "status")));
    Route {
        name: None,
        matches: (list(route, "match").iter())
            .map(|it| matching(it, namespace))
            .collect(),
        destinations: destinations.collect(),
        authority: rewritten.and_then(|it| HostName::dns(it).ok()).or(own),
        answer: redirect.or(direct).or(aborts(route)),
        settings: settings || list(route, "route").iter().any(more),
        delegates: at(route, "delegate").is_some(),
    }
}

fn status(node: &Node<'_>, key: &str) -> u16 {
    let status = number(node, key).and_then(|status| u16::try_from(status).ok());
    status.unwrap_or(503)
}

/// Returns what a fault answers to every request.
fn aborts(route: &Node<'_>) -> Option<Answer> {
    let abort = at(at(route, "fault")?, "abort")?;
    // Without a percentage Istio has Envoy abort nothing.
    let every = match at(abort, "percentage").and_then(|it| at(it, "value")) {
        Some(Node::Number(value)) => value.as_f64().is_some_and(|value| value >= 100.0),
        _ => false,
    };
    let grpc = at(abort, "grpcStatus").is_some();
    let status = if grpc {
        200
    } else {
        status(abort, "httpStatus")
    };
    every.then_some(Answer::Status(status))
}

fn is_host(header: &str) -> bool {
    header.eq_ignore_ascii_case("host") || header == ":authority"
}

/// Returns the host that headers of a route or destination give; `set` comes before `add`.
fn authority(node: &Node<'_>) -> Option<HostName> {
    let request = at(at(node, "headers")?, "request")?;
    let given = |key| match at(request, key) {
        Some(Node::Object(fields)) => {
            let mut hosts = fields.iter().filter(|(key, _)| is_host(key));
            hosts.next().and_then(|(_, value)| as_text(value))
        }
        _ => None,
    };
    HostName::dns(given("set").or_else(|| given("add"))?).ok()
}

fn matching(found: &Node<'_>, namespace: &str) -> Match {
    let known = [
        "name",
        "port",
        "gateways",
        "sourceLabels",
        "sourceNamespace",
        "sniHosts",
        "destinationSubnets",
        "uri",
        "statPrefix",
    ];
    // A plain prefix of every path asks for nothing.
    let uri = at(found, "uri");
    let all = uri.is_none_or(|uri| text(uri, "prefix") == Some("/"));
    let words = [
        ("exact", PathIs::Exactly),
        ("prefix", PathIs::Below),
        ("regex", PathIs::Like),
    ];
    let path = uri.filter(|_| !all).and_then(|uri| {
        let mut words = words.into_iter();
        let (how, text) = words.find_map(|(word, how)| Some((how, text(uri, word)?)))?;
        Some(Path {
            how,
            text: text.to_owned(),
            any_case: at(found, "ignoreUriCase") == Some(&Node::Bool(true)),
        })
    });
    let names = list(found, "sniHosts").iter();
    Match {
        path,
        port: number(found, "port").filter(|port| *port != 0),
        gateways: gateways(found, namespace),
        labels: labels(found, "sourceLabels"),
        namespace: text(found, "sourceNamespace")
            .filter(|it| !it.is_empty())
            .map(str::to_owned),
        names: names.filter_map(|name| pattern(as_text(name)?)).collect(),
        subnets: Some(list(found, "destinationSubnets"))
            .filter(|all| !all.is_empty())
            .map(|all| {
                let read = |it| Address::parse(as_text(it)?).ok();
                all.iter().filter_map(read).collect()
            }),
        asks_more: !all || has_others(found, &known),
    }
}
