//! URLs in requests that name the server itself: what the application knows as plain HTTP, the server knows as TLS.
//!
//! Servers compare `Origin` and `Referer` with their own name and refuse what differs, and WebDAV's `Destination` says where
//! to on the same server. Where a rule asks for it, such a URL gets the scheme and the port of the server. Its host stays as
//! it was written, and any other URL stays as it is: no foreign origin becomes the server's own.

use egress_policy::{Cluster, Endpoints, HostPattern, PortNumber};
use serde_json::{Value, json};

use super::no_proxy::quoted;
use super::rendering::Rendering;
use super::variants;

/// The headers. `If` of WebDAV has URLs within a grammar of its own, and stays.
const HEADERS: [&str; 3] = ["origin", "referer", "destination"];

/// Renders what changes them in requests to the servers of a cluster.
pub(super) fn mutations(cluster: &Cluster, rendering: &Rendering<'_>) -> Vec<Value> {
    let (Some((host, port)), Some(target)) = (&cluster.own, target(cluster, rendering)) else {
        return Vec::new();
    };
    let host = match host {
        HostPattern::Exact(name) => quoted(name.as_str()),
        HostPattern::Suffix(ending) => format!("[a-z0-9._-]+{}", quoted(ending)),
        HostPattern::Any => "[a-z0-9._-]+".to_owned(),
    };
    let mut ports: Vec<String> = [port.get(), rendering.options.listening_port(*port)]
        .map(|port| format!(":{port}"))
        .to_vec();
    ports.dedup();
    if *port == PortNumber::HTTP {
        ports.push(String::new());
    }
    let ports = ports.join("|");
    let port = match target {
        PortNumber::HTTPS => String::new(),
        target => format!(":{target}"),
    };
    let mutation = |name: &str| {
        let url = format!(r"^(?i:http://({host})(?:{ports}))([/?#].*)?$");
        let rewritten = format!(r"https://\1{port}\2");
        let value =
            format!("%CEL(re.extract(request.headers['{name}'], r'{url}', r'{rewritten}'))%");
        json!({"append": {
            "header": {"key": name, "value": value},
            // Where the expression takes no URL there is no value, and the header stays.
            "append_action": "OVERWRITE_IF_EXISTS",
        }})
    };
    HEADERS.map(mutation).to_vec()
}

/// Returns the port of the servers.
fn target(cluster: &Cluster, rendering: &Rendering<'_>) -> Option<PortNumber> {
    let mut services = variants::tables(rendering.table, rendering.options)
        .flat_map(|table| table.services())
        .filter(|service| service.cluster.name == cluster.name);
    let led = || match &cluster.endpoints {
        Endpoints::Listed { endpoints, .. } => Some(endpoints.first()?.port),
        Endpoints::OfTheRequest => None,
    };
    services.next().map(|service| service.target).or_else(led)
}
