//! Which server looks names up, and which cache keeps the addresses.

use egress_policy::Cluster;
use serde_json::{Map, Value, json};

use super::guard;
use super::message::{extension, set};
use super::options::Options;
use super::rendering::Rendering;

/// How long one DNS server is waited for before the next one is asked, or the same one again. One lost packet costs a
/// second, and so does a dead first server of two.
const QUERY_TIMEOUT_SECONDS: u32 = 1;

/// How often each DNS server is asked before a name is given up. Envoy gives up after five seconds in any case.
const QUERY_TRIES: u32 = 3;

/// How soon a name is asked for again that exists no more, or not yet.
const AGAIN: &str = "2s";

/// Makes a request whose name has no address ask for it anew, instead of failing until a timer has run out.
///
/// Source: envoyproxy/envoy `source/extensions/common/dynamic_forward_proxy/dns_cache_impl.cc`,
/// `DnsCacheImpl::loadDnsCacheEntryWithForceRefresh`.
pub(super) const ASK_ANEW: &str = "envoy.reloadable_features.reresolve_null_addresses";

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
    set(&mut cache, "dns_lookup_family", json!(family(options)));
    set(&mut cache, "max_hosts", json!(hosts));
    // A request without an address asks anew by itself; these are for names that have one, and may be moving.
    if names == Cached::Listed {
        set(&mut cache, "dns_refresh_rate", json!(AGAIN));
    }
    set(&mut cache, "dns_failure_refresh_rate", after_failure(names));
    if names == Cached::Public && guard::drops_addresses(options) {
        set(&mut cache, "resolved_address_filter", guard::dropped());
    }
    let resolver = resolver(names, options);
    set(&mut cache, "typed_dns_resolver_config", resolver);
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
    set(&mut config, "dns_lookup_family", json!(family(options)));
    set(&mut config, "respect_dns_ttl", json!(true));
    set(&mut config, "dns_refresh_rate", json!(AGAIN));
    let failure = after_failure(Cached::Listed);
    set(&mut config, "dns_failure_refresh_rate", failure);
    set(
        &mut config,
        "all_addresses_in_single_endpoint",
        json!(one_at_a_time),
    );
    let resolver = resolver(Cached::Listed, options);
    set(&mut config, "typed_dns_resolver_config", resolver);
    extension(
        "envoy.cluster.dns",
        "envoy.extensions.clusters.dns.v3.DnsCluster",
        Value::Object(config),
    )
}

/// Returns which addresses are asked for. With both families Envoy tries them in turns, each a moment after the one
/// before (RFC 8305), or as hosts beside each other. On a machine without IPv6 every second attempt would be in vain.
fn family(options: &Options) -> &'static str {
    match options.ipv6 {
        true => "ALL",
        false => "V4_PREFERRED",
    }
}

/// Returns how soon a name is asked for again after DNS has failed. Names that clients choose may be many, and most of
/// them wrong, so they wait longer.
fn after_failure(names: Cached) -> Value {
    let (base, most) = match names {
        Cached::Listed => ("1s", "5s"),
        Cached::Internal | Cached::Public => ("2s", "30s"),
    };
    json!({"base_interval": base, "max_interval": most})
}

fn resolver(names: Cached, options: &Options) -> Value {
    let ours = options
        .guarded_dns
        .filter(|_| names == Cached::Public)
        .map(|address| (address.ip().to_string(), address.port()));
    let servers: Vec<Value> = match &ours {
        Some(ours) => std::slice::from_ref(ours),
        None => &options.dns[..],
    }
    .iter()
    .map(|(address, port)| json!({"socket_address": {"address": address, "port_value": port}}))
    .collect();
    let mut config = Map::new();
    if !servers.is_empty() {
        // Where the servers are the system's, so is the search list.
        let own = !options.dns.is_empty();
        set(&mut config, "resolvers", Value::Array(servers));
        set(
            &mut config,
            "dns_resolver_options",
            json!({"no_default_search_domain": own}),
        );
    }
    set(
        &mut config,
        "query_timeout_seconds",
        json!(QUERY_TIMEOUT_SECONDS),
    );
    set(&mut config, "query_tries", json!(QUERY_TRIES));
    extension(
        "envoy.network.dns_resolver.cares",
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        Value::Object(config),
    )
}
