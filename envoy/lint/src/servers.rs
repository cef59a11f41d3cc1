//! What Gateways listen for.
//!
//! Read from the bare values, as [`leads`](crate::leads) does.

use serde_json::Value;

/// A Gateway of Istio's.
pub(crate) struct Gateway {
    /// `namespace/name`.
    pub(crate) name: String,
    /// The values of the labels that it asks routers for.
    pub(crate) selects: Vec<String>,
    pub(crate) ports: Vec<u64>,
}

/// Reads a Gateway of Istio's; nothing where its servers cannot be read.
pub(crate) fn read(resource: &Value, namespace: &str) -> Option<Gateway> {
    let text = |pointer: &str| resource.pointer(pointer).and_then(Value::as_str);
    let ours = text("/apiVersion")?.starts_with("networking.istio.io/");
    if !ours || text("/kind")? != "Gateway" {
        return None;
    }
    let selector = resource
        .pointer("/spec/selector")
        .and_then(Value::as_object);
    let values = selector.into_iter().flatten();
    let servers = resource.pointer("/spec/servers")?.as_array()?;
    let ports = servers
        .iter()
        .map(|server| server.pointer("/port/number")?.as_u64());
    Some(Gateway {
        name: format!("{namespace}/{}", text("/metadata/name")?),
        selects: values
            .filter_map(|(_, value)| value.as_str().map(str::to_owned))
            .collect(),
        ports: ports.collect::<Option<_>>()?,
    })
}

impl Gateway {
    /// Whether what is sent to a port of its Service may come to a server: the Service may map the port to another.
    pub(crate) fn takes(&self, port: u64) -> bool {
        let mapped = match port {
            80 => 8080,
            443 => 8443,
            other => other,
        };
        self.ports.contains(&port) || self.ports.contains(&mapped)
    }
}
