//! `Gateway` of the Gateway API: the listeners of a router that Istio makes for it.

use egress_policy::fields::{Field, Fields};
use egress_policy::{
    DEFAULT_NAMESPACE, FieldPath, GATEWAY_SERVICES, HostPattern, Meta, PortNumber, Problem,
    ProblemKind, ResourceId, Severity,
};
use serde_json::{Map, Value, json};

use crate::document;

use super::kind::Kind;
use super::known::{Known, name_of, service_host};
use super::made::{Made, path_of, problem};
use super::place::{Place, Places};
use super::route::{Parent, Route};

/// The label that Istio gives the pods of such a router.
///
/// Source: istio/istio `pilot/pkg/config/kube/gatewaycommon/deploymentcontroller.go`.
const LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// The GatewayClass that Istio has without anybody's saying so, and its controller.
const ISTIO_CLASS: (&str, &str) = ("istio", "istio.io/gateway-controller");

/// A Gateway, with the names of Istio's Gateways that are made of it.
pub(super) struct Router {
    meta: Meta,
    services: Vec<String>,
    pub(super) listeners: Vec<Listener>,
}

/// One of its listeners.
pub(super) struct Listener {
    section: String,
    /// The namespace and name of the Gateway that is made of it.
    pub(super) name: (String, String),
    hostname: Option<String>,
    port: PortNumber,
    protocol: String,
    /// `tls.mode` of a server.
    mode: Option<&'static str>,
    /// Whose routes it takes; `*` is everybody's.
    namespaces: Vec<String>,
    kinds: Vec<Kind>,
    place: FieldPath,
}

impl Router {
    /// Finds and reads a Gateway that a route is attached to; nothing where it is none of Istio's.
    pub(super) fn find(
        known: &Known<'_>,
        key: &(String, String),
        made: &mut Made,
    ) -> Option<Router> {
        let (origin, resource) = known.gateways.get(key).copied()?;
        let (namespace, name) = name_of(resource);
        let id = ResourceId {
            kind: "Gateway",
            namespace: namespace.into(),
            name: name.into(),
        };
        let class = resource
            .pointer("/spec/gatewayClassName")
            .and_then(Value::as_str);
        let class = class.unwrap_or_default();
        let controller = known.classes.get(class).map(String::as_str);
        let builtin = (class == ISTIO_CLASS.0).then_some(ISTIO_CLASS.1);
        if controller.or(builtin) != Some(ISTIO_CLASS.1) {
            let text = format!("the class `{class}` is none of Istio's: its routes are left alone");
            let hint = "only Gateways of the class `istio` lead requests here".to_owned();
            let path = path_of(origin, "spec.gatewayClassName");
            made.problems
                .push(problem(Severity::Warning, (&id, origin), path, text, hint));
            return None;
        }
        let services = services(resource, namespace, name, class);
        let (read, problems) = document::read_spec(resource, origin, "Gateway", |field, meta| {
            Some((read_listeners(field, &meta.id.namespace)?, meta))
        });
        let wrong = problems
            .iter()
            .any(|it: &Problem| it.severity == Severity::Error);
        made.problems.extend(problems);
        let (listeners, meta) = read.filter(|_| !wrong)?;
        Some(Router {
            meta,
            services,
            listeners,
        })
    }

    /// Adds a Gateway of Istio's for each listener.
    pub(super) fn add(&mut self, known: &mut Known<'_>, made: &mut Made) {
        let id = &self.meta.id;
        for listener in &mut self.listeners {
            let name = free_name(&id.name, &listener.section, &id.namespace, known);
            listener.name = (id.namespace.to_string(), name);
            let host = listener.hostname.as_deref().unwrap_or("*");
            let hosts = listener.namespaces.iter();
            let hosts: Vec<String> = hosts.map(|whose| format!("{whose}/{host}")).collect();
            let port = json!({
                "number": listener.port.get(), "name": "default", "protocol": listener.protocol,
            });
            let mut server = Map::new();
            server.insert("port".to_owned(), port);
            server.insert("hosts".to_owned(), json!(hosts));
            if let Some(mode) = listener.mode {
                server.insert("tls".to_owned(), json!({"mode": mode}));
            }
            let mut metadata = Map::new();
            metadata.insert("name".to_owned(), json!(listener.name.1));
            metadata.insert("namespace".to_owned(), json!(listener.name.0));
            if !self.meta.created.is_empty() {
                metadata.insert("creationTimestamp".to_owned(), json!(self.meta.created));
            }
            let services = self.services.join(",");
            metadata.insert(
                "annotations".to_owned(),
                json!({GATEWAY_SERVICES: services}),
            );
            let document = json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": "Gateway",
                "metadata": metadata,
                "spec": {"selector": {LABEL: &*id.name}, "servers": [server]},
            });
            let place = Place {
                id: id.clone(),
                origin: self.meta.origin,
                rule: listener.place.clone(),
                matched: None,
                backends: Vec::new(),
            };
            let made_id = ResourceId {
                kind: "Gateway",
                namespace: id.namespace.clone(),
                name: listener.name.1.as_str().into(),
            };
            let places = Places {
                list: "servers",
                items: vec![place],
            };
            made.add(made_id, document, places);
        }
    }

    /// Returns the listeners that a route is bound to by a reference.
    ///
    /// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `referenceAllowed`.
    pub(super) fn bound<'r>(
        &'r self,
        route: &'r Route,
        parent: &'r Parent,
    ) -> impl Iterator<Item = &'r Listener> {
        let namespace = &*route.meta.id.namespace;
        self.listeners.iter().filter(move |listener| {
            let mut whose = listener.namespaces.iter();
            parent.port.is_none_or(|port| port == listener.port)
                && (parent.section.as_ref()).is_none_or(|name| *name == listener.section)
                && whose.any(|whose| whose == "*" || whose == namespace)
                && listener.kinds.contains(&route.kind)
                && !listener.hosts(route, &self.listeners).is_empty()
        })
    }
}

impl Listener {
    /// Whether it leaves TLS to the applications.
    pub(super) fn passes_tls(&self) -> bool {
        self.mode == Some("PASSTHROUGH")
    }

    /// Returns the hosts of a route that are its own, and of no listener beside it that is closer to them.
    ///
    /// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `hostnameAllowedByIsolation`.
    pub(super) fn hosts(&self, route: &Route, all: &[Listener]) -> Vec<String> {
        let any = ["*".to_owned()];
        let named = match &route.hostnames[..] {
            [] => &any[..],
            named => named,
        };
        let own = self.hostname.as_deref().unwrap_or("*");
        let Ok(own) = HostPattern::parse(own) else {
            return Vec::new();
        };
        let beside = all.iter().filter(|other| {
            other.port == self.port
                && other.protocol == self.protocol
                && other.section != self.section
        });
        let closer: Vec<HostPattern> = beside
            .filter_map(|other| HostPattern::parse(other.hostname.as_deref()?).ok())
            .filter(|other| own.covers(other) && *other != own)
            .collect();
        let shared = named.iter().filter_map(|host| {
            let host = HostPattern::parse(host).ok()?;
            let shared = match (own.covers(&host), host.covers(&own)) {
                (true, _) => host,
                (_, true) => own.clone(),
                _ => return None,
            };
            let taken = closer.iter().any(|other| other.covers(&shared));
            (!taken).then(|| shared.to_string())
        });
        shared.collect()
    }
}

/// Returns the hosts of a Gateway's Services: that of the one that Istio makes for it, or those that it names.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `extractGatewayServices`, and
/// `pilot/pkg/config/kube/gatewaycommon/gateway_utils.go`, `IsManaged`.
fn services(resource: &Value, namespace: &str, name: &str, class: &str) -> Vec<String> {
    let addresses = resource
        .pointer("/spec/addresses")
        .and_then(Value::as_array);
    let addresses = addresses.map_or(&[][..], Vec::as_slice);
    let text = |value: &Value, key: &str| value.get(key)?.as_str().map(str::to_owned);
    let is_host = |address: &Value| text(address, "type").as_deref() == Some("Hostname");
    let managed = match addresses {
        [] => true,
        [one] => !is_host(one),
        _ => false,
    };
    if managed {
        let annotations = resource.pointer("/metadata/annotations");
        let own = annotations.and_then(|it| text(it, "gateway.istio.io/name-override"));
        let own = own.unwrap_or_else(|| format!("{name}-{class}"));
        return vec![service_host(namespace, &own)];
    }
    let named = addresses.iter().filter(|address| is_host(address));
    let named = named.filter_map(|address| text(address, "value"));
    let full = |host: String| match host.contains('.') {
        true => host,
        false => service_host(namespace, &host),
    };
    named.map(full).collect()
}

/// Returns a name for a Gateway of Istio's that no other has, and that is one label.
fn free_name(gateway: &str, section: &str, namespace: &str, known: &mut Known<'_>) -> String {
    let whole = format!("{gateway}-{section}").replace('.', "-");
    let short: String = whole.chars().take(58).collect();
    let short = short.trim_end_matches('-');
    let mut names = std::iter::once(short.to_owned())
        .chain((1..).map(|number: usize| format!("{short}-{number}")));
    let mut free = |name: &String| known.taken.insert((namespace.to_owned(), name.clone()));
    names.find(|name| free(name)).unwrap_or_default()
}

fn read_listeners(field: Field<'_>, own: &str) -> Option<Vec<Listener>> {
    let fields = field.fields()?;
    fields.ignore(&[
        "gatewayClassName",
        "addresses",
        "infrastructure",
        "allowedListeners",
        "tls",
        "defaultScope",
    ]);
    let mut listeners: Vec<Listener> = Vec::new();
    fields.require("listeners", |list| {
        list.items(|item| {
            let Some(listener) = read_listener(item, own) else {
                return;
            };
            if listeners
                .iter()
                .any(|other| other.section == listener.section)
            {
                let text = format!("a second listener `{}`", listener.section);
                item.error_with_hint(ProblemKind::Conflict(text), "give it another name");
            }
            listeners.push(listener);
        });
        Some(())
    });
    Some(listeners)
}

/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `buildListener`.
fn read_listener(field: Field<'_>, own: &str) -> Option<Listener> {
    let fields = field.fields()?;
    let section = fields.require("name", |field| field.text().map(str::to_owned));
    let hostname = fields.read("hostname", |field| {
        let text = field.text()?;
        match text.is_empty() {
            true => None,
            false => field.host().map(|host| host.to_string()),
        }
    });
    let port = fields.require("port", |field| field.port());
    let words = ["HTTP", "HTTPS", "TLS", "TCP"];
    let protocol = fields.require("protocol", |field| {
        field.word("protocol", &words, |word| {
            words.contains(&word).then(|| word.to_owned())
        })
    });
    let mode = fields.read("tls", read_tls);
    let (namespaces, kinds) = read_allowed(&fields, own);
    let (section, port, protocol) = (section?, port?, protocol?);
    if mode.is_none() && matches!(protocol.as_str(), "HTTPS" | "TLS") {
        let text = format!("a listener for {protocol} says what becomes of TLS");
        fields.error_at("tls", ProblemKind::Invalid(text), Some("give `tls.mode`"));
    }
    let serves: &[Kind] = match (protocol.as_str(), mode) {
        ("HTTP" | "HTTPS", _) => &[Kind::Http, Kind::Grpc],
        ("TLS", Some("PASSTHROUGH")) => &[Kind::Tls],
        ("TLS", _) => &[Kind::Tls, Kind::Tcp],
        _ => &[Kind::Tcp],
    };
    let kinds = serves.iter().filter(|kind| {
        let named = kinds.iter().any(|name| name == kind.name());
        kinds.is_empty() || named
    });
    Some(Listener {
        name: (DEFAULT_NAMESPACE.to_owned(), String::new()),
        hostname,
        port,
        mode,
        namespaces,
        kinds: kinds.copied().collect(),
        place: field.cursor.path(),
        section,
        protocol,
    })
}

/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `buildTLS`.
fn read_tls(field: Field<'_>) -> Option<&'static str> {
    let fields = field.fields()?;
    fields.ignore(&["certificateRefs", "frontendValidation"]);
    let words = ["Terminate", "Passthrough"];
    let passes = fields.read("mode", |field| {
        field.word("mode", &words, |word| match word {
            "Terminate" => Some(false),
            "Passthrough" => Some(true),
            _ => None,
        })
    });
    let options = fields.read("options", |field| Some(field.labels()));
    let options = options.unwrap_or_default();
    let terminate = options
        .iter()
        .find(|(key, _)| key == "gateway.istio.io/tls-terminate-mode");
    Some(match (passes, terminate.map(|(_, value)| value.as_str())) {
        (Some(true), _) => "PASSTHROUGH",
        (_, Some("ISTIO_MUTUAL")) => "ISTIO_MUTUAL",
        (_, Some("MUTUAL" | "OPTIONAL_MUTUAL")) => "MUTUAL",
        _ => "SIMPLE",
    })
}

/// Reads whose routes a listener takes, and of which kinds; no kind is all that its protocol has.
///
/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `namespacesFromSelector`.
fn read_allowed(fields: &Fields<'_>, own: &str) -> (Vec<String>, Vec<String>) {
    let mut namespaces = vec![own.to_owned()];
    let mut kinds = Vec::new();
    fields.read("allowedRoutes", |field| {
        let fields = field.fields()?;
        fields.read("kinds", |list| {
            list.items(|item| {
                let Some(fields) = item.fields() else { return };
                fields.read("group", |field| field.text().map(drop));
                kinds.extend(fields.require("kind", |field| field.text().map(str::to_owned)));
            });
            Some(())
        });
        fields.read("namespaces", |field| {
            let fields = field.fields()?;
            let words = ["Same", "All", "Selector"];
            let from = fields.read("from", |field| {
                field.word("word", &words, |word| {
                    words.contains(&word).then(|| word.to_owned())
                })
            });
            match from.as_deref() {
                Some("All") => {
                    fields.ignore(&["selector"]);
                    namespaces = vec!["*".to_owned()];
                }
                Some("Selector") => {
                    namespaces = fields
                        .require("selector", read_selector)
                        .into_iter()
                        .collect();
                }
                _ => fields.ignore(&["selector"]),
            }
            Some(())
        })
    });
    (namespaces, kinds)
}

/// Reads the one namespace that a selector names. What labels namespaces have is known to a cluster only.
fn read_selector(field: Field<'_>) -> Option<String> {
    const NAME: &str = "kubernetes.io/metadata.name";
    let fields = field.fields()?;
    let labels = fields.read("matchLabels", |field| Some(field.labels()));
    fields.ignore(&["matchExpressions"]);
    match labels.unwrap_or_default().as_slice() {
        [(key, value)] if key == NAME && !fields.given("matchExpressions") => Some(value.clone()),
        _ => {
            let kind =
                ProblemKind::NotSupported("a selector of namespaces by other labels".to_owned());
            let hint = format!("select by `{NAME}`, or let `from` be `Same` or `All`");
            field.error_with_hint(kind, hint);
            None
        }
    }
}
