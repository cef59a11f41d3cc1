//! The compact form of many resources that differ only in name and hosts.
//!
//! Most of ten thousand hosts are alike, and Envoy keeps the filter's configuration three times. So the first of
//! several alike resources is written whole, and each other one as a list of its name and its hosts. Writer and reader
//! are both here, and a test proves that both mean the same table.

use std::collections::BTreeMap;

use egress_policy::node::Node;
use serde_json::Value;

/// Fewer resources than this are written whole, as they were given: people read them.
const MANY: usize = 100;

/// Returns the same resources, those that are alike behind one another: the first whole, of each other a list of its
/// name and its hosts. The order of resources decides nothing.
pub fn encode(resources: Vec<Value>) -> Vec<Value> {
    if resources.len() < MANY {
        return resources;
    }
    let mut groups: Vec<Vec<Value>> = Vec::new();
    let mut known = BTreeMap::<String, usize>::new();
    for mut resource in resources {
        let Some(own) = Own::take(&mut resource) else {
            groups.push(vec![resource]);
            continue;
        };
        let shape = resource.to_string();
        match known.get(&shape).and_then(|at| groups.get_mut(*at)) {
            Some(group) => group.push(own.encoded()),
            None => {
                known.insert(shape, groups.len());
                own.put(&mut resource);
                groups.push(vec![resource]);
            }
        }
    }
    groups.into_iter().flatten().collect()
}

/// Makes a resource the next one, which differs from it in name and hosts alone: a list of the name and each host. A
/// list that does not fit leaves what is no resource.
#[must_use]
pub fn decode<'n>(mut resource: Node<'n>, list: Vec<Node<'n>>) -> Node<'n> {
    match replace(&mut resource, list) {
        Some(()) => resource,
        None => Node::List(Vec::new()),
    }
}

fn replace<'n>(resource: &mut Node<'n>, mut hosts: Vec<Node<'n>>) -> Option<()> {
    if hosts.is_empty() {
        return None;
    }
    *resource.field_mut("metadata")?.field_mut("name")? = hosts.remove(0);
    let spec = resource.field_mut("spec")?;
    if let Some(Node::List(list)) = spec.field_mut("hosts") {
        list.clear();
        list.append(&mut hosts);
        return Some(());
    }
    *spec.field_mut("host")? = hosts.pop()?;
    hosts.is_empty().then_some(())
}

/// What alike resources do not share.
struct Own {
    name: Value,
    /// A list, or the one host of a DestinationRule.
    hosts: Value,
}

impl Own {
    fn take(resource: &mut Value) -> Option<Self> {
        own_fields(resource).map(|(name, hosts)| Own {
            name: name.take(),
            hosts: hosts.take(),
        })
    }

    fn put(self, resource: &mut Value) {
        if let Some((name, hosts)) = own_fields(resource) {
            (*name, *hosts) = (self.name, self.hosts);
        }
    }

    fn encoded(self) -> Value {
        let hosts = match self.hosts {
            Value::Array(hosts) => hosts,
            host => vec![host],
        };
        Value::Array([self.name].into_iter().chain(hosts).collect())
    }
}

/// Where a resource has its name and its hosts.
fn own_fields(resource: &mut Value) -> Option<(&mut Value, &mut Value)> {
    let (mut name, mut hosts) = (None, None);
    for (key, value) in resource.as_object_mut()? {
        match key.as_str() {
            "metadata" => name = value.get_mut("name"),
            "spec" => {
                let key = match value.get("host") {
                    Some(_) => "host",
                    None => "hosts",
                };
                hosts = value.get_mut(key);
            }
            _ => {}
        }
    }
    name.zip(hosts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use egress_policy::Service;
    use serde_json::json;

    use super::*;
    use crate::load::{Loaded, load};

    fn entry(name: &str, host: &str, port: u16) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": {"name": name},
            "spec": {"hosts": [host, format!("www.{host}")], "resolution": "DNS",
                     "ports": [{"number": port, "name": "http", "protocol": "HTTP", "targetPort": 8443}]},
        })
    }

    fn rule(name: &str, host: &str) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "DestinationRule",
            "metadata": {"name": name},
            "spec": {"host": host, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}},
        })
    }

    fn many() -> Vec<Value> {
        (0..MANY)
            .flat_map(|at| {
                let (name, host) = (format!("host-{at}"), format!("{at}.example.com"));
                let port = if at % 10 == 0 { 8080 } else { 80 };
                [entry(&name, &host, port), rule(&name, &host)]
            })
            .collect()
    }

    fn loaded(resources: &[Value]) -> Loaded {
        load(json!({"resources": resources}).to_string().as_bytes()).unwrap()
    }

    /// Who says what of each host.
    fn said(loaded: &Loaded) -> BTreeSet<String> {
        let of = |service: Service<'_>| {
            let Service {
                host,
                port,
                service_entry,
                rule,
                ..
            } = service;
            format!("{host} {port} {service_entry:?} {rule:?}")
        };
        loaded.table.services().map(of).collect()
    }

    #[test]
    fn what_is_compact_is_the_same_table() {
        let (whole, compact) = (many(), encode(many()));
        assert_eq!(compact.len(), whole.len());
        assert_eq!(
            compact
                .iter()
                .filter(|resource| resource.is_object())
                .count(),
            3
        );
        assert_eq!(
            compact[1],
            json!(["host-10", "10.example.com", "www.10.example.com"])
        );
        let (whole, compact) = (loaded(&whole), loaded(&compact));
        assert_eq!(compact.digest, whole.digest);
        assert_eq!(said(&compact), said(&whole));
    }

    #[test]
    fn few_stay_as_they_were_written() {
        let few: Vec<Value> = many().into_iter().take(MANY - 1).collect();
        assert_eq!(encode(few.clone()), few);
    }

    #[test]
    fn a_list_stands_for_a_resource_with_another_name_and_other_hosts() {
        let rule = json!({"metadata": {"name": "a"}, "spec": {"host": "a.com", "subsets": []}});
        let entry = json!({"metadata": {"name": "a"}, "spec": {"hosts": ["a.com"], "ports": [1]}});
        let decoded = |resource: &Value, list: Value| {
            let list = list.as_array().unwrap().clone();
            let nodes = list.iter().map(Node::from).collect();
            format!("{:?}", decode(Node::from(resource), nodes))
        };
        let is = |resource: Value| format!("{:?}", Node::from(&resource));
        assert_eq!(
            decoded(&rule, json!(["b", "b.com"])),
            is(json!({"metadata": {"name": "b"}, "spec": {"host": "b.com", "subsets": []}}))
        );
        assert_eq!(
            decoded(&entry, json!(["b", "b.com", "c.com"])),
            is(
                json!({"metadata": {"name": "b"}, "spec": {"hosts": ["b.com", "c.com"], "ports": [1]}})
            )
        );
        for unfit in [json!([]), json!(["b"]), json!(["b", "b.com", "c.com"])] {
            assert_eq!(decoded(&rule, unfit), "List([])");
        }
        for nothing in [json!(null), json!([]), json!({"kind": "List", "items": []})] {
            assert_eq!(decoded(&nothing, json!(["b", "b.com"])), "List([])");
        }
    }
}
