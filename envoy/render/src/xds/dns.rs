//! Which server looks names up, and which cache keeps the addresses.

use egress_policy::Cluster;
use serde_json::{Map, Value, json};

use super::guard;
use super::message::{extension, set, set_some};
use super::options::Options;
use super::rendering::Rendering;

const DNS_FAMILY: &str = "V4_PREFERRED";

/// Who chooses the names that a DNS cache holds. Names that clients choose never take the place of those that rules
/// list: each kind has a cache of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cached {
    /// The rules list them.
    Listed,
    /// Clients, below a wildcard of the mesh.
    Internal,
    /// Clients, below any other wildcard or with `ALLOW_ANY`; they may not have private addresses.
    Public,
}

impl Cached {
    /// Returns whose names a cluster's are.
    pub(super) fn of(cluster: &Cluster) -> Self {
        match (cluster.any_name, cluster.public_only) {
            (_, true) => Cached::Public,
            (true, false) => Cached::Internal,
            (false, false) => Cached::Listed,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Cached::Listed => "listed",
            Cached::Internal => "internal",
            Cached::Public => "public",
        }
    }
}

/// How many names that clients choose are kept. One that nobody asks for is forgotten after five minutes.
const NAMES_OF_CLIENTS: usize = 4096;

/// Renders a DNS cache, which all dynamic forward proxies with names of one kind share.
///
/// Its settings are in its name: Envoy wants a name to mean the same everywhere, and refuses other settings under it.
pub(super) fn cache(names: Cached, rendering: &Rendering<'_>) -> Value {
    let (table, options) = (rendering.table, rendering.options);
    let hosts = match names {
        Cached::Internal | Cached::Public => NAMES_OF_CLIENTS,
        Cached::Listed => {
            // Room for every host twice, as a name may be called on two ports.
            let hosts = (table.len() * 2 + 1024).min(200_000);
            match options.reloads {
                // Most changes of rules fit into the size that there is.
                true => hosts.next_power_of_two().max(4096),
                false => hosts,
            }
        }
    };
    let mut cache = Map::new();
    set(&mut cache, "dns_lookup_family", json!(DNS_FAMILY));
    set(&mut cache, "max_hosts", json!(hosts));
    if names == Cached::Public && guard::drops_addresses(options) {
        set(&mut cache, "resolved_address_filter", guard::dropped());
    }
    set_some(
        &mut cache,
        "typed_dns_resolver_config",
        resolver(names, options),
    );
    let settings = Value::Object(cache.clone()).to_string();
    let name = format!(
        "egress_{}_{:016x}",
        names.as_str(),
        egress_policy::fnv(settings.bytes())
    );
    set(&mut cache, "name", json!(name));
    Value::Object(cache)
}

/// Renders the type of a cluster whose names are looked up.
pub(super) fn cluster(one_at_a_time: bool, options: &Options) -> Value {
    let mut config = Map::new();
    set(&mut config, "dns_lookup_family", json!(DNS_FAMILY));
    set(&mut config, "respect_dns_ttl", json!(true));
    set(
        &mut config,
        "all_addresses_in_single_endpoint",
        json!(one_at_a_time),
    );
    set_some(
        &mut config,
        "typed_dns_resolver_config",
        resolver(Cached::Listed, options),
    );
    extension(
        "envoy.cluster.dns",
        "envoy.extensions.clusters.dns.v3.DnsCluster",
        Value::Object(config),
    )
}

fn resolver(names: Cached, options: &Options) -> Option<Value> {
    let ours = options
        .guarded_dns
        .filter(|_| names == Cached::Public)
        .map(|address| (address.ip().to_string(), address.port()));
    if options.dns.is_empty() && ours.is_none() {
        return None;
    }
    let servers: Vec<Value> = match &ours {
        Some(ours) => std::slice::from_ref(ours),
        None => &options.dns[..],
    }
    .iter()
    .map(|(address, port)| json!({"socket_address": {"address": address, "port_value": port}}))
    .collect();
    // Where the servers are the system's, so is the search list.
    let own = !options.dns.is_empty();
    Some(extension(
        "envoy.network.dns_resolver.cares",
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        json!({"resolvers": servers, "dns_resolver_options": {"no_default_search_domain": own}}),
    ))
}
