//! Keeps connections whose address DNS chose away from loopback, private and metadata addresses.
//!
//! Behind a wildcard host, and behind `ALLOW_ANY`, the request names the host, and the owner of that name in DNS
//! chooses the address. Without a guard, `http://localhost.example.com` could reach Envoy's own neighbours, and
//! `169.254.169.254` a cloud's credentials.
//!
//! From 1.39 on, Envoy's DNS cache drops refused addresses one by one ([`drops_addresses`]). A name that keeps none
//! of its addresses is not found, and Envoy says `address_denied`. An address in place of a name is treated alike.
//!
//! Before 1.39, the forward proxy filter notes the first address of a name, and a role-based access filter refuses it
//! before anything is dialled. If the first address does not answer, Envoy tries the others and asks no filter again.
//! So `run` puts a DNS server of its own in between ([`Options::guarded_dns`]), which leaves refused addresses out of
//! answers. A rendered configuration has none, and `render` says so.
//!
//! Neither can know the addresses that a network chose for a NAT64 of its own (RFC 6052, section 2.2). Private IPv4
//! addresses may be reached behind these.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_filter::contract;
use egress_policy::{Cluster, OutboundMode, PolicyTable};
use serde_json::{Value, json};

use super::message::extension;
use super::options::{Options, Version};

/// The version from which a DNS cache drops addresses.
pub const DROPS_ADDRESSES: Version = Version {
    major: 1,
    minor: 39,
};

/// The version from which `tcp_proxy` can wait for the client's first bytes before it connects.
const CONNECT_LATER: Version = Version {
    major: 1,
    minor: 37,
};

/// The ranges of IPv4 that are refused. [`refused_6`] has them as IPv6 writes them too.
///
/// Source: the special-purpose registry of RFC 6890. 168.63.129.16 is what Azure gives to its own machines for DNS,
/// health and credentials, a public address that is in no registry. 192.88.99.0/24 was 6to4's relay (RFC 7526).
const REFUSED_4: [(Ipv4Addr, u32); 13] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The ranges of IPv6 that are refused, beside those of IPv4 behind [`NAT64`].
///
/// Source: the special-purpose registry of RFC 6890, and RFC 4193 for `fc00::/7`, in which AWS has its metadata
/// service too. Refused whole are the ranges in which an IPv4 address stands, whichever it is, and which no public
/// server needs: `::/96` (RFC 4291, 2.5.5.1; loopback is in it), `::ffff:0:0/96`, 6to4 (RFC 3056), Teredo (RFC 4380) and
/// the NAT64 that a network makes for itself (RFC 8215), at a place that only it knows. `fe80::/10` is link-local and
/// `fec0::/10` was site-local; `100::/64` is discarded (RFC 6666), `5f00::/16` is for segment routing (RFC 9602).
const REFUSED_6: [(Ipv6Addr, u32); 11] = [
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 96),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// The network in which NAT64 has the whole of IPv4 for those that speak IPv6 only, in the last 32 bits. Public
/// addresses must be reached there.
///
/// Source: RFC 6052, section 2.1.
const NAT64: (Ipv6Addr, u32) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

fn refused_6() -> impl Iterator<Item = (Ipv6Addr, u32)> {
    let (network, before) = NAT64;
    let translated = REFUSED_4.into_iter().map(move |(address, bits)| {
        let inside = Ipv6Addr::from_bits(network.to_bits() | u128::from(address.to_bits()));
        (inside, before + bits)
    });
    REFUSED_6.into_iter().chain(translated)
}

/// Returns the ranges that are refused, those of IPv4 first.
pub fn refused() -> impl Iterator<Item = (IpAddr, u32)> {
    let four = REFUSED_4.into_iter();
    four.map(|(address, bits)| (address.into(), bits))
        .chain(refused_6().map(|(address, bits)| (address.into(), bits)))
}

/// Whether an address is refused where DNS chose it.
pub fn is_refused(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => REFUSED_4
            .into_iter()
            .any(|(range, bits)| (address.to_bits() ^ range.to_bits()).leading_zeros() >= bits),
        IpAddr::V6(address) => refused_6()
            .any(|(range, bits)| (address.to_bits() ^ range.to_bits()).leading_zeros() >= bits),
    }
}

/// Whether a cluster's addresses are looked at. Where a proxy looks names up, we see none.
pub(super) fn is_on(cluster: &Cluster, options: &Options) -> bool {
    cluster.public_only && options.upstream_proxy.is_none()
}

/// Whether Envoy's DNS cache refuses addresses, and nothing else need.
pub(super) fn drops_addresses(options: &Options) -> bool {
    options.version >= DROPS_ADDRESSES
}

/// Whether filters must look at a cluster's addresses before it connects.
pub(super) fn by_filters(cluster: &Cluster, options: &Options) -> bool {
    is_on(cluster, options) && !drops_addresses(options)
}

/// Whether only the first address of some names is looked at: Envoy's DNS cache drops none, and no DNS server of
/// ours stands before it.
pub fn looks_at_one_address(table: &PolicyTable, options: &Options) -> bool {
    !drops_addresses(options)
        && options.guarded_dns.is_none()
        && options.upstream_proxy.is_none()
        && (table.clusters().any(|cluster| is_on(cluster, options))
            || table.outbound() == OutboundMode::AllowAny)
}

/// Renders what a DNS cache drops.
pub(super) fn dropped() -> Value {
    json!({"ranges": ranges()})
}

/// Renders the two HTTP filters of an Envoy whose DNS cache drops nothing. The first looks up the names of requests
/// that the filter leads to one of `clusters`, and of no other: they have a DNS cache of their own, which may be full.
/// The second refuses nothing by itself: [`on_route`] says where it does.
pub(super) fn http_filters(clusters: &BTreeSet<String>, dns_cache: &Value) -> [Value; 2] {
    let look_up = extension(
        "envoy.filters.http.dynamic_forward_proxy",
        "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
        json!({
            "dns_cache_config": dns_cache,
            "allow_dynamic_host_from_filter_state": true,
            "save_upstream_address": true,
        }),
    );
    let action = extension(
        "look_up",
        "envoy.extensions.filters.http.composite.v3.ExecuteFilterAction",
        json!({"typed_config": look_up}),
    );
    let by_cluster: serde_json::Map<String, Value> = clusters
        .iter()
        .map(|cluster| (cluster.clone(), json!({"action": action})))
        .collect();
    let named_in = |header: &str, otherwise: Option<Value>| {
        let input = extension(
            "request-headers",
            "envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
            json!({"header_name": header}),
        );
        let mut matcher = json!({"matcher_tree": {
            "input": input,
            "exact_match_map": {"map": by_cluster},
        }});
        if let (Some(otherwise), Some(fields)) = (otherwise, matcher.as_object_mut()) {
            fields.insert("on_no_match".to_owned(), json!({"matcher": otherwise}));
        }
        matcher
    };
    let matcher = named_in(
        contract::ORIGINATE_HEADER,
        Some(named_in(contract::FORWARD_HEADER, None)),
    );
    let composite = extension(
        "envoy.filters.http.composite",
        "envoy.extensions.filters.http.composite.v3.Composite",
        json!({}),
    );
    [
        extension(
            "egress.guard",
            "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
            json!({"extension_config": composite, "xds_matcher": matcher}),
        ),
        extension(
            "envoy.filters.http.rbac",
            "envoy.extensions.filters.http.rbac.v3.RBAC",
            json!({}),
        ),
    ]
}

/// Renders for the `typed_per_filter_config` of a route that the ranges are refused on it.
pub(super) fn on_route() -> (String, Value) {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
    let config = json!({"@type": kind, "rbac": {"rules": rules()}});
    ("envoy.filters.http.rbac".to_owned(), config)
}

/// Renders the network filter for connections that are passed through.
pub(super) fn network_filter() -> Value {
    extension(
        "envoy.filters.network.rbac",
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        json!({"stat_prefix": "egress", "rules": rules()}),
    )
}

/// Renders for a `tcp_proxy` that it connects only when the client has spoken, which is when the filters have looked.
pub(super) fn connect_later(options: &Options) -> Vec<(String, Value)> {
    if options.version < CONNECT_LATER {
        return Vec::new();
    }
    vec![
        (
            "upstream_connect_mode".to_owned(),
            json!("ON_DOWNSTREAM_DATA"),
        ),
        ("max_early_data_bytes".to_owned(), json!(65_536)),
    ]
}

/// The ranges that are refused, for a filter chain.
pub(super) fn ranges() -> Vec<Value> {
    refused()
        .map(|(address, bits)| prefix(&address.to_string(), bits))
        .collect()
}

/// All addresses, and apart those that are refused: a filter chain with these is looked at for every address, whatever
/// ranges other chains have.
pub(super) fn everywhere() -> Vec<Value> {
    let mut all = everything();
    all.extend(ranges());
    all
}

/// All addresses, for a filter chain. Ranges that are left out would be others to Envoy.
pub(super) fn everything() -> Vec<Value> {
    vec![prefix("0.0.0.0", 0), prefix("::", 0)]
}

fn prefix(address: &str, bits: u32) -> Value {
    json!({"address_prefix": address, "prefix_len": bits})
}

fn rules() -> Value {
    let refused: Vec<Value> = refused()
        .map(|(address, bits)| address_in(&address.to_string(), bits))
        .collect();
    let policy = json!({"permissions": refused, "principals": [{"any": true}]});
    json!({"action": "DENY", "policies": {contract::PRIVATE_ADDRESS: policy}})
}

fn address_in(address: &str, bits: u32) -> Value {
    let matcher = extension(
        "envoy.rbac.matchers.upstream_ip_port",
        "envoy.extensions.rbac.matchers.upstream_ip_port.v3.UpstreamIpPortMatcher",
        json!({"upstream_ip": prefix(address, bits)}),
    );
    json!({"matcher": matcher})
}

#[cfg(test)]
mod tests {
    use super::{is_refused, refused};

    #[test]
    fn nat64_is_refused_where_ipv4_is_and_open_elsewhere() {
        let all: Vec<(String, u32)> = refused()
            .map(|(address, bits)| (address.to_string(), bits))
            .collect();
        let inside: Vec<_> = all
            .iter()
            .filter(|(address, _)| address.starts_with("64:ff9b::"))
            .collect();
        let ipv4 = all.iter().filter(|(address, _)| !address.contains(':'));
        assert_eq!(inside.len(), ipv4.count());
        for (address, bits) in [
            ("64:ff9b::a9fe:0", 112), // 169.254.0.0/16
            ("64:ff9b::a00:0", 104),  // 10.0.0.0/8
            ("64:ff9b::7f00:0", 104), // 127.0.0.0/8
        ] {
            assert!(inside.contains(&&(address.to_owned(), bits)), "{inside:?}");
        }
    }

    #[test]
    fn addresses_of_the_ranges_are_refused_and_their_neighbours_are_not() {
        let said = |text: &str| is_refused(text.parse().unwrap());
        for address in [
            "0.1.2.3",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "168.63.129.16",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.192",
            "192.88.99.1",
            "192.168.0.1",
            "198.19.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b::a83f:8110",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2002:808:808::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "feff::1",
            "ff02::1",
        ] {
            assert!(said(address), "{address}");
        }
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "168.63.129.15",
            "168.63.129.17",
            "172.32.0.0",
            "192.0.1.1",
            "192.88.98.255",
            "198.20.0.0",
            "203.0.113.1",
            "223.255.255.255",
            "::1:0:0:0",
            "64:ff9b::cb00:7101",
            "64:ff9b::808:808",
            "100:0:0:1::",
            "2001:1::",
            "2001:db8::1",
            "2001:4860:4860::8888",
            "2606:4700::1",
            "5eff::1",
            "5f01::",
            "fbff::1",
            "fe00::1",
        ] {
            assert!(!said(address), "{address}");
        }
    }
}
