//! Resources that differ in name and hosts alone, told briefly.
//!
//! Of ten thousand hosts most are alike, and Envoy keeps what the filter is given three times.

use std::collections::BTreeMap;

use serde_json::Value;

/// Fewer resources than this are told whole, as they were written: people read them.
const MANY: usize = 100;

/// Returns the same resources, those that are alike behind one another: the first whole, of each other a list of its
/// name and its hosts. The order of resources decides nothing.
pub(super) fn briefly(resources: Vec<Value>) -> Vec<Value> {
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
            Some(group) => group.push(own.told()),
            None => {
                known.insert(shape, groups.len());
                own.put(&mut resource);
                groups.push(vec![resource]);
            }
        }
    }
    groups.into_iter().flatten().collect()
}

/// What alike resources do not share.
struct Own {
    name: Value,
    /// A list, or the one host of a DestinationRule.
    hosts: Value,
}

impl Own {
    fn take(resource: &mut Value) -> Option<Self> {
        places(resource).map(|(name, hosts)| Own {
            name: name.take(),
            hosts: hosts.take(),
        })
    }

    fn put(self, resource: &mut Value) {
        if let Some((name, hosts)) = places(resource) {
            (*name, *hosts) = (self.name, self.hosts);
        }
    }

    fn told(self) -> Value {
        let hosts = match self.hosts {
            Value::Array(hosts) => hosts,
            host => vec![host],
        };
        Value::Array([self.name].into_iter().chain(hosts).collect())
    }
}

/// Where a resource has its name and its hosts.
fn places(resource: &mut Value) -> Option<(&mut Value, &mut Value)> {
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

    use egress_filter::{Loaded, load};
    use egress_policy::Service;
    use serde_json::json;

    use super::*;

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
    fn what_is_told_briefly_is_the_same_table() {
        let (whole, brief) = (many(), briefly(many()));
        assert_eq!(brief.len(), whole.len());
        assert_eq!(
            brief.iter().filter(|resource| resource.is_object()).count(),
            3
        );
        assert_eq!(
            brief[1],
            json!(["host-10", "10.example.com", "www.10.example.com"])
        );
        let (whole, brief) = (loaded(&whole), loaded(&brief));
        assert_eq!(brief.digest, whole.digest);
        assert_eq!(said(&brief), said(&whole));
    }

    #[test]
    fn few_stay_as_they_were_written() {
        let few: Vec<Value> = many().into_iter().take(MANY - 1).collect();
        assert_eq!(briefly(few.clone()), few);
    }
}
