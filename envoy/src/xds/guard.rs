//! Keeps connections whose address DNS chose away from loopback, private and metadata addresses.
//!
//! Behind a wildcard host, and behind `ALLOW_ANY`, a request names the host and whoever answers for that
//! name in DNS names the address. Without a guard, `http://localhost.example.com` could reach Envoy's own
//! neighbours, and `169.254.169.254` a cloud's credentials. So the forward proxy filter notes the address
//! that it found, and a role-based access filter refuses these ranges before anything is dialled.
//!
//! What it cannot do: where a name has several addresses, only the first is looked at, and Envoy tries the
//! others when that one does not answer. An originated request is safe all the same, because a private
//! server has no certificate for the name; a plaintext one is not, so a firewall should stand behind
//! `ALLOW_ANY` and behind wildcard hosts without TLS. Nor can it know the addresses that a network chose for a NAT64 of
//! its own (RFC 6052, section 2.2), behind which private IPv4 addresses may be reached.

use std::net::{IpAddr, Ipv6Addr};

use egress_policy::{Cluster, PolicyTable};
use serde_json::{Value, json};

use super::{Options, Version, cluster, extension};

/// The version from which `tcp_proxy` can wait for the client's first bytes before it connects.
const CONNECT_LATER: Version = Version {
    major: 1,
    minor: 37,
};

/// What an access log gives as the reason: `rbac_access_denied_matched_policy[private_address]`.
const POLICY: &str = "private_address";

/// The ranges that are refused.
///
/// Source: the special-purpose registries of RFC 6890, and RFC 4193 for `fc00::/7`, in which AWS has its
/// metadata service too. 6to4 (RFC 3056) has IPv4 addresses in it, whichever they are, and so has the NAT64 that a
/// network makes for itself (RFC 8215), at a place that only it knows.
const REFUSED: [(&str, u32); 18] = [
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("224.0.0.0", 4),
    ("240.0.0.0", 4),
    ("::", 127),
    ("::ffff:0:0", 96),
    ("64:ff9b:1::", 48),
    ("2002::", 16),
    ("fc00::", 7),
    ("fe80::", 10),
    ("ff00::", 8),
];

/// The network in which NAT64 has the whole of IPv4 for those that speak IPv6 only, in the last 32 bits. Public
/// addresses must be reached there.
///
/// Source: RFC 6052, section 2.1.
const NAT64: (Ipv6Addr, u32) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Returns the ranges that are refused, those of IPv4 also as NAT64 has them.
fn refused() -> impl Iterator<Item = (String, u32)> {
    let (network, before) = NAT64;
    let translated = REFUSED
        .into_iter()
        .filter_map(move |(address, bits)| match address.parse() {
            Ok(IpAddr::V4(address)) => {
                let inside = Ipv6Addr::from_bits(network.to_bits() | u128::from(address.to_bits()));
                Some((inside.to_string(), before + bits))
            }
            _ => None,
        });
    let as_they_are = REFUSED.into_iter();
    as_they_are
        .map(|(address, bits)| (address.to_owned(), bits))
        .chain(translated)
}

/// Says whether a cluster's addresses are looked at. Where a proxy looks names up, we see none.
pub(super) fn is_on(cluster: &Cluster, options: &Options) -> bool {
    cluster.public_only && options.upstream_proxy.is_none()
}

/// Renders the two HTTP filters. Alone they refuse nothing: [`route`] says where they do.
pub(super) fn http_filters(table: &PolicyTable, options: &Options) -> [Value; 2] {
    [
        extension(
            "envoy.filters.http.dynamic_forward_proxy",
            "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
            json!({
                "dns_cache_config": cluster::dns_cache(table, options),
                "allow_dynamic_host_from_filter_state": true,
                "save_upstream_address": true,
            }),
        ),
        extension(
            "envoy.filters.http.rbac",
            "envoy.extensions.filters.http.rbac.v3.RBAC",
            json!({}),
        ),
    ]
}

/// Renders what a route adds, so that the ranges are refused on it.
pub(super) fn route() -> Value {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
    json!({"envoy.filters.http.rbac": {"@type": kind, "rbac": {"rules": rules()}}})
}

/// Renders the network filter for connections that are passed through.
pub(super) fn network_filter() -> Value {
    extension(
        "envoy.filters.network.rbac",
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        json!({"stat_prefix": "egress", "rules": rules()}),
    )
}

/// Adds to a `tcp_proxy` that it connects only when the client has spoken, which is when the guard has too.
pub(super) fn connect_later(proxy: &mut Value, options: &Options) {
    if let Some(fields) = proxy
        .as_object_mut()
        .filter(|_| options.version >= CONNECT_LATER)
    {
        fields.insert(
            "upstream_connect_mode".to_owned(),
            json!("ON_DOWNSTREAM_DATA"),
        );
        fields.insert("max_early_data_bytes".to_owned(), json!(65_536));
    }
}

/// The ranges that are refused, for a filter chain.
pub(super) fn ranges() -> Vec<Value> {
    refused()
        .map(|(address, bits)| prefix(&address, bits))
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
        .map(|(address, bits)| address_in(&address, bits))
        .collect();
    let policy = json!({"permissions": refused, "principals": [{"any": true}]});
    json!({"action": "DENY", "policies": {POLICY: policy}})
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
    use super::refused;

    #[test]
    fn nat64_is_refused_where_ipv4_is_and_open_elsewhere() {
        let all: Vec<(String, u32)> = refused().collect();
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
}
