//! Routes that somebody else carries out: in Istio it is istiod who reads VirtualServices, and only its clusters count.
//!
//! A cluster stands for a host, port and subset, whatever leads to it. So of a route only its destinations matter here:
//! plain requests may reach a port on which applications speak TLS, and a subset that no request names.

use std::collections::BTreeMap;
use std::sync::Arc;

use egress_policy::{
    DestinationRule, HostPattern, PortNumber, PortPolicy, Protocol, ProtocolClass, Resources, Role,
    ServiceEntry,
};
use serde_json::Value;

/// The kinds that say where requests go, and nothing of the TLS to the server.
const KINDS: [&str; 5] = [
    "VirtualService",
    "HTTPRoute",
    "GRPCRoute",
    "TLSRoute",
    "TCPRoute",
];

/// Who carries out the routes among the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Routes {
    /// Whoever reads the rules: see `egress-policy`.
    #[default]
    Ours,
    /// Istiod, whose clusters the rules are for. Routes to a host refuse nothing. A port that they lead plain requests
    /// to is read as one that speaks HTTP. A port that they lead to by subsets alone is to have the TLS of a subset.
    Istiods,
}

/// Where a route leads.
#[derive(Debug, PartialEq)]
struct Destination<'v> {
    host: &'v str,
    /// Without one it is the only port of the host, or the one that was dialled.
    port: Option<u64>,
    subset: Option<&'v str>,
}

/// Takes the routes out of what was read, and their destinations into account.
///
/// A Sidecar hides services, but not from routes. A patch for a cluster that a proxy has not got does nothing, so
/// Sidecars are taken out too, unless they choose between services of one host.
pub(crate) fn leave<'v>(resources: &mut Resources, all: impl Iterator<Item = &'v Value>) {
    let destinations: Vec<Destination<'v>> = all.flat_map(destinations).collect();
    let is_route = |kind: &str| KINDS.contains(&kind);
    resources.unread.retain(|unread| !is_route(unread.id.kind));
    resources.virtual_services.clear();
    resources.gateways.clear();
    if !any_host_twice(&resources.service_entries) {
        resources.sidecars.clear();
    }
    lead_to_tls_ports(resources, &destinations);
    for rule in &mut resources.destination_rules {
        lead_to_subsets(rule, &destinations);
    }
}

/// Whether entries of several namespaces have one host.
fn any_host_twice(entries: &[ServiceEntry]) -> bool {
    let mut owners = BTreeMap::new();
    let mut all = entries.iter().flat_map(|entry| {
        entry
            .hosts
            .iter()
            .map(move |host| (host.to_string(), entry))
    });
    all.any(|(host, entry)| {
        let namespace = &entry.meta.id.namespace;
        owners.entry(host).or_insert(namespace) != &namespace
    })
}

/// Whether a resource does more to the HTTP requests for a host of an entry than to lead them to a port of it.
pub(crate) fn decides(
    resource: &Value,
    entry: &ServiceEntry,
    host: &HostPattern,
    role: Role,
) -> bool {
    let text = |value: &Value, key: &str| value.get(key)?.as_str().map(str::to_owned);
    match text(resource, "kind").as_deref() {
        Some("VirtualService") => {
            list(resource, "/spec/hosts")
                .filter_map(|text| HostPattern::parse(text.as_str()?).ok())
                .any(|pattern| pattern.covers(host) || host.covers(&pattern))
                && list(resource, "/spec/http")
                    .filter(|route| is_for(route, resource, role))
                    .any(|route| !only_leads(route, entry, host))
        }
        _ => false,
    }
}

/// Whether a route of a VirtualService is for proxies of a role: `mesh` stands for all sidecars.
fn is_for(route: &Value, resource: &Value, role: Role) -> bool {
    let of_all: Vec<&Value> = list(resource, "/spec/gateways").collect();
    let meant = |gateways: &[&Value]| match role {
        Role::Sidecar => gateways.is_empty() || gateways.iter().any(|name| **name == "mesh"),
        Role::Gateway => gateways.iter().any(|name| **name != "mesh"),
    };
    let mut matches = list(route, "/match").peekable();
    if matches.peek().is_none() {
        return meant(&of_all);
    }
    matches.any(|found| {
        let own: Vec<&Value> = list(found, "/gateways").collect();
        meant(if own.is_empty() { &of_all } else { &own })
    })
}

/// Whether a route takes whatever comes, and leads it to one port for HTTP of the same host.
fn only_leads(route: &Value, entry: &ServiceEntry, host: &HostPattern) -> bool {
    let only = |value: &Value, known: &[&str]| {
        let fields = value.as_object();
        fields.is_some_and(|fields| fields.keys().all(|key| known.contains(&&**key)))
    };
    let mut to = of_route(route);
    let (Some(first), None) = (to.next(), to.next()) else {
        return false;
    };
    let mut ports = entry.ports.iter();
    let known = ports.any(|port| {
        let led_to = first
            .port
            .is_none_or(|number| number == u64::from(port.number.get()));
        led_to && port.protocol.class() == ProtocolClass::Http
    });
    only(route, &["name", "match", "route"])
        && list(route, "/match").all(|found| only(found, &["name", "gateways", "port"]))
        && list(route, "/route").all(|share| only(share, &["destination", "weight"]))
        && is_host(first.host, host)
        && first.subset.is_none()
        && known
}

/// Returns where the routes of a resource lead what is no TLS.
fn destinations(resource: &Value) -> Vec<Destination<'_>> {
    let Some(kind) = resource.get("kind").and_then(Value::as_str) else {
        return Vec::new();
    };
    match kind {
        "VirtualService" => {
            let routes = list(resource, "/spec/http").chain(list(resource, "/spec/tcp"));
            routes.flat_map(of_route).collect()
        }
        "HTTPRoute" | "GRPCRoute" | "TCPRoute" => list(resource, "/spec/rules")
            .flat_map(|rule| list(rule, "/backendRefs"))
            .filter(|backend| backend.get("kind").and_then(Value::as_str) == Some("Hostname"))
            .filter_map(|backend| {
                Some(Destination {
                    host: backend.get("name")?.as_str()?,
                    port: backend.get("port").and_then(Value::as_u64),
                    subset: None,
                })
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Returns the destinations of a VirtualService's route, those of its copies too.
fn of_route(route: &Value) -> impl Iterator<Item = Destination<'_>> {
    let shares = list(route, "/route").filter_map(|share| share.get("destination"));
    let copies = list(route, "/mirrors").filter_map(|copy| copy.get("destination"));
    let all = shares.chain(copies).chain(route.get("mirror"));
    all.filter_map(|destination| {
        Some(Destination {
            host: destination.get("host")?.as_str()?,
            port: destination.pointer("/port/number").and_then(Value::as_u64),
            subset: destination.get("subset").and_then(Value::as_str),
        })
    })
}

fn list<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten()
}

/// Reads ports for the application's own TLS as ports for HTTP, where plain requests are led to them: Istio's cluster
/// begins TLS for these, once.
fn lead_to_tls_ports(resources: &mut Resources, destinations: &[Destination<'_>]) {
    let mut split = Vec::new();
    for entry in &mut resources.service_entries {
        let alone = entry.ports.len() == 1;
        let mut led: Vec<PortNumber> = Vec::new();
        let mut is_led = |host: &HostPattern| {
            let to = destinations.iter().filter(|to| is_host(to.host, host));
            let mut any = false;
            for to in to {
                let ports = entry.ports.iter();
                let ports = ports
                    .filter(|port| port.protocol.class() == ProtocolClass::Tls)
                    .filter(|port| match to.port {
                        Some(number) => u64::from(port.number.get()) == number,
                        None => alone,
                    });
                for port in ports {
                    led.push(port.number);
                    any = true;
                }
            }
            any
        };
        let (hosts, others): (Vec<_>, Vec<_>) =
            entry.hosts.iter().cloned().partition(|host| is_led(host));
        if hosts.is_empty() {
            continue;
        }
        if !others.is_empty() {
            // The other hosts of the entry are called with TLS only.
            let mut rest = entry.clone();
            rest.hosts = others;
            split.push(rest);
            entry.hosts = hosts;
        }
        let ports = Arc::make_mut(&mut entry.ports).iter_mut();
        for port in ports.filter(|port| led.contains(&port.number)) {
            port.protocol = Protocol::Http;
        }
    }
    resources.service_entries.extend(split);
}

/// Gives a port the TLS of a subset, where all that leads to the port names subsets: nothing is to go out beside them.
fn lead_to_subsets(rule: &mut DestinationRule, destinations: &[Destination<'_>]) {
    let led: Vec<&Destination<'_>> = destinations
        .iter()
        .filter(|to| is_host(to.host, &rule.host))
        .collect();
    let mut ports: Vec<PortNumber> = Vec::new();
    for to in &led {
        let number = to.port.and_then(|number| u16::try_from(number).ok());
        ports.extend(number.and_then(PortNumber::new));
    }
    ports.sort_unstable();
    ports.dedup();
    for port in ports {
        let number = u64::from(port.get());
        let mut here = led
            .iter()
            .filter(|to| to.port.is_none_or(|own| own == number));
        if !here.clone().all(|to| to.subset.is_some()) {
            continue;
        }
        let policy = Arc::make_mut(rule.policy.get_or_insert_default());
        let own = policy.port_level.iter().find(|own| own.port == port);
        if own.map_or(&policy.tls, |own| &own.policy.tls).is_some() {
            continue;
        }
        let asks = here.find_map(|to| {
            let mut subsets = rule.subsets.iter();
            let subset = subsets.find(|subset| Some(&*subset.name) == to.subset)?;
            let policy = subset.policy.as_ref()?;
            let own = policy.port_level.iter().find(|own| own.port == port);
            own.map_or(&policy.tls, |own| &own.policy.tls).clone()
        });
        let Some(tls) = asks else { continue };
        let own = policy.port_level.iter_mut().find(|own| own.port == port);
        match own {
            Some(own) => own.policy.tls = Some(tls),
            None => {
                let mut settings = policy.clone();
                settings.port_level = Vec::new();
                settings.tls = Some(tls);
                policy.port_level.push(PortPolicy {
                    port,
                    index: policy.port_level.len(),
                    policy: settings,
                });
            }
        }
    }
}

/// Whether a destination is a host. Short names are Kubernetes Services, and no entry's.
fn is_host(destination: &str, host: &HostPattern) -> bool {
    HostPattern::parse(destination).is_ok_and(|found| found == *host)
}

#[cfg(test)]
mod tests {
    use egress_policy::Parser;
    use serde_json::json;

    use super::*;

    fn virtual_service(gateways: Value, route: Value) -> Value {
        json!({"kind": "VirtualService", "spec":
            {"hosts": ["*.example.com"], "gateways": gateways, "http": [route]}})
    }

    fn api() -> Resources {
        let mut parser = Parser::new();
        parser.document(&json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": "api"},
            "spec": {"hosts": ["api.example.com", "www.example.com"], "resolution": "DNS", "ports": [
                {"number": 80, "name": "http", "protocol": "HTTP"},
                {"number": 443, "name": "https", "protocol": "HTTPS"}]},
        }));
        parser.document(&json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "api"},
            "spec": {"host": "api.example.com", "subsets": [
                {"name": "v1", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}, {"name": "v2"}]},
        }));
        parser.finish().0
    }

    fn to(host: &str, port: u16, subset: &str) -> Value {
        let mut destination = json!({"host": host, "port": {"number": port}});
        if !subset.is_empty() {
            destination["subset"] = json!(subset);
        }
        json!({"route": [{"destination": destination}]})
    }

    #[test]
    fn only_what_does_no_more_than_lead_to_the_host_decides_nothing() {
        let resources = api();
        let entry = &resources.service_entries[0];
        let here = || to("api.example.com", 80, "");
        let with = |key: &str, value: Value| {
            let mut route = here();
            route[key] = value;
            route
        };
        let mesh = json!(["mesh"]);
        let both = json!([{"gateways": ["mesh"]}, {"gateways": ["ns/egress"]}]);
        let decided = |gateways: &Value, route: Value, role: Role| {
            let resource = virtual_service(gateways.clone(), route);
            decides(&resource, entry, &entry.hosts[0], role)
        };
        let (sidecar, gateway) = (Role::Sidecar, Role::Gateway);
        assert!(!decided(&mesh, here(), sidecar));
        assert!(!decided(
            &mesh,
            with("match", json!([{"port": 80}])),
            sidecar
        ));
        for route in [
            with("timeout", json!("7s")),
            with("match", json!([{"uri": {"prefix": "/v1"}}])),
            with("rewrite", json!({"uri": "/"})),
            with("mirror", json!({"host": "b.example.com"})),
            json!({"directResponse": {"status": 403}}),
            to("b.example.com", 80, ""),
            to("api.example.com", 443, ""),
            to("api.example.com", 80, "v1"),
        ] {
            assert!(decided(&mesh, route.clone(), sidecar), "{route}");
            assert!(decided(&Value::Null, route.clone(), sidecar), "{route}");
            assert!(!decided(&mesh, route.clone(), gateway), "{route}");
            assert!(decided(&json!(["egress"]), route, gateway));
        }
        let timed = || {
            let mut route = with("timeout", json!("7s"));
            route["match"] = both.clone();
            route
        };
        assert!(decided(&mesh, timed(), gateway) && decided(&mesh, timed(), sidecar));
        let elsewhere = json!({"kind": "VirtualService", "spec":
            {"hosts": ["other.test"], "http": [with("timeout", json!("7s"))]}});
        assert!(!decides(&elsewhere, entry, &entry.hosts[0], sidecar));
    }

    #[test]
    fn a_port_that_plain_requests_are_led_to_speaks_http() {
        let mut resources = api();
        let route = virtual_service(Value::Null, to("api.example.com", 443, ""));
        leave(&mut resources, [&route].into_iter());
        let [led, other] = &resources.service_entries[..] else {
            panic!("{:?}", resources.service_entries);
        };
        let protocols = |entry: &ServiceEntry| -> Vec<Protocol> {
            entry.ports.iter().map(|port| port.protocol).collect()
        };
        assert_eq!(led.hosts[0].to_string(), "api.example.com");
        assert_eq!(protocols(led), [Protocol::Http, Protocol::Http]);
        assert_eq!(other.hosts[0].to_string(), "www.example.com");
        assert_eq!(protocols(other), [Protocol::Http, Protocol::Https]);

        // With its own TLS it is led there as before.
        let mut resources = api();
        let mut route = virtual_service(Value::Null, json!({}));
        route["spec"]["tls"] = json!([to("api.example.com", 443, "")]);
        leave(&mut resources, [&route].into_iter());
        assert_eq!(protocols(&resources.service_entries[0])[1], Protocol::Https);
    }

    #[test]
    fn beside_subsets_nothing_goes_out_in_plaintext() {
        for (destinations, closed) in [
            (vec![to("api.example.com", 80, "v1")], true),
            (
                vec![
                    to("api.example.com", 80, "v1"),
                    to("api.example.com", 80, "v2"),
                ],
                true,
            ),
            (vec![to("api.example.com", 80, "v2")], false),
            (
                vec![
                    to("api.example.com", 80, "v1"),
                    to("api.example.com", 80, ""),
                ],
                false,
            ),
        ] {
            let mut resources = api();
            let routes: Vec<Value> = destinations
                .into_iter()
                .map(|route| virtual_service(Value::Null, route))
                .collect();
            leave(&mut resources, routes.iter());
            let policy = resources.destination_rules[0].policy.as_deref();
            let port = policy.and_then(|policy| policy.port_level.first());
            let tls = port.is_some_and(|port| port.policy.tls.is_some());
            assert_eq!(tls, closed, "{routes:?}");
        }
    }
}
