//! Where VirtualServices lead plain HTTP and TCP, as far as other rules depend on it.
//!
//! Read from the bare values, so that one that the parser refuses still counts.

use egress_policy::{HostPattern, Origin, ProtocolClass};
use serde_json::{Map, Value};

/// A VirtualService.
pub(crate) struct Leads {
    pub(crate) origin: Origin,
    /// For example `VirtualService default/api`.
    pub(crate) name: String,
    /// In full.
    pub(crate) hosts: Vec<HostPattern>,
    /// Whether it is for everybody.
    pub(crate) public: bool,
    /// Whether all it has are routes of `http` that lead somewhere.
    pub(crate) only_http: bool,
    pub(crate) ways: Vec<Way>,
    /// Those of routes of `tls`, which lead no plaintext.
    pub(crate) tls_ways: Vec<Way>,
}

/// A place that a route leads to, for one of its matches.
pub(crate) struct Way {
    /// The class of the ports that the route is for.
    pub(crate) class: ProtocolClass,
    /// Whether applications call it; otherwise a gateway does.
    pub(crate) mesh: bool,
    /// Whether it is for all workloads.
    pub(crate) for_all: bool,
    /// The port that is called. Without one, any.
    pub(crate) from: Option<u64>,
    /// In full, as Istio compares it.
    pub(crate) host: String,
    pub(crate) port: Option<u64>,
    pub(crate) subset: Option<String>,
    /// The Gateways, as `namespace/name`, of a way that is theirs alone; empty for others.
    pub(crate) gateways: Vec<String>,
    /// Where the destination stands.
    pub(crate) path: String,
    /// Where the port that is called stands.
    pub(crate) port_path: Option<String>,
}

impl Way {
    /// Whether it is for calls of a port.
    pub(crate) fn is_from(&self, port: u64) -> bool {
        self.from.is_none_or(|from| from == port)
    }
}

/// Reads a VirtualService of Istio's.
pub(crate) fn read(resource: &Value, namespace: &str, origin: Origin) -> Option<Leads> {
    let text = |name: &str| resource.get(name).and_then(Value::as_str);
    let ours = text("apiVersion")?.starts_with("networking.istio.io/");
    if !ours || text("kind")? != "VirtualService" {
        return None;
    }
    let spec = resource.get("spec")?.as_object()?;
    let hosts = texts(spec, "hosts").map(|host| long(host, namespace));
    let gateways: Vec<&str> = texts(spec, "gateways").collect();
    let (mut ways, mut tls_ways) = (Vec::new(), Vec::new());
    for (key, class) in [
        ("http", ProtocolClass::Http),
        ("tcp", ProtocolClass::Tcp),
        ("tls", ProtocolClass::Tls),
    ] {
        for (at, route) in objects(spec, key).enumerate() {
            let mut added = Vec::new();
            add_ways(route, class, namespace, &gateways, &mut added);
            for way in &mut added {
                way.path = format!("spec.{key}[{at}].{}", way.path);
                let port = way.port_path.as_mut();
                port.into_iter()
                    .for_each(|path| path.insert_str(0, &format!("spec.{key}[{at}].")));
            }
            match class {
                ProtocolClass::Tls => tls_ways.append(&mut added),
                _ => ways.append(&mut added),
            }
        }
    }
    let mut export_to = texts(spec, "exportTo").peekable();
    let named = resource.pointer("/metadata/name").and_then(Value::as_str);
    Some(Leads {
        origin,
        name: format!("VirtualService {namespace}/{}", named.unwrap_or_default()),
        only_http: !spec.contains_key("tls")
            && !spec.contains_key("tcp")
            && objects(spec, "http").all(|route| route.contains_key("route")),
        hosts: hosts
            .filter_map(|host| HostPattern::parse(&host).ok())
            .collect(),
        public: export_to.peek().is_none() || export_to.any(|to| to == "*"),
        ways,
        tls_ways,
    })
}

fn add_ways(
    route: &Map<String, Value>,
    class: ProtocolClass,
    namespace: &str,
    gateways: &[&str],
    ways: &mut Vec<Way>,
) {
    let everything = Map::new();
    let mut matches: Vec<&Map<String, Value>> = objects(route, "match").collect();
    if matches.is_empty() {
        matches.push(&everything);
    }
    for (at, to) in objects(route, "route").enumerate() {
        let Some(to) = to.get("destination").and_then(Value::as_object) else {
            continue;
        };
        let text = |name: &str| to.get(name).and_then(Value::as_str);
        let number = |port: &Value| port.get("number").and_then(Value::as_u64);
        for (asked, of) in matches.iter().enumerate() {
            let own: Vec<&str> = texts(of, "gateways").collect();
            let from = if own.is_empty() { gateways } else { &own };
            let from_mesh = from.is_empty() || from.contains(&"mesh");
            let port = of.get("port").and_then(Value::as_u64);
            let called = |mesh| Way {
                gateways: match mesh || from_mesh {
                    true => Vec::new(),
                    false => from.iter().map(|name| full(name, namespace)).collect(),
                },
                port_path: port.map(|_| format!("match[{asked}].port")),
                class,
                mesh,
                for_all: !of.contains_key("sourceLabels") && !of.contains_key("sourceNamespace"),
                from: port.filter(|port| *port != 0),
                host: long(text("host").unwrap_or_default(), namespace),
                port: to.get("port").and_then(number),
                subset: text("subset").map(str::to_owned),
                path: format!("route[{at}].destination"),
            };
            if from_mesh {
                ways.push(called(true));
            }
            if from.iter().any(|name| *name != "mesh") {
                ways.push(called(false));
            }
        }
    }
}

fn objects<'v>(
    of: &'v Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'v Map<String, Value>> {
    let list = of.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object)
}

fn texts<'v>(of: &'v Map<String, Value>, key: &str) -> impl Iterator<Item = &'v str> {
    let list = of.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str)
}

/// Returns the name of a Gateway as `namespace/name`.
///
/// Source: istio/istio `pilot/pkg/model/config.go`, `resolveGatewayName`.
fn full(name: &str, namespace: &str) -> String {
    match name.split_once('/') {
        Some((".", name)) => format!("{namespace}/{name}"),
        Some(_) => name.to_owned(),
        None => {
            let mut labels = name.split('.');
            let name = labels.next().unwrap_or(name);
            format!("{}/{name}", labels.next().unwrap_or(namespace))
        }
    }
}

/// Source: istio/istio `pkg/config/model` `ResolveShortnameToFQDN`.
fn long(host: &str, namespace: &str) -> String {
    match host.contains(['.', '*']) {
        true => host.to_ascii_lowercase(),
        false => format!("{host}.{namespace}.svc.cluster.local").to_ascii_lowercase(),
    }
}
