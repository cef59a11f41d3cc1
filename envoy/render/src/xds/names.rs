//! Which names a server's certificate must have, in Envoy's terms. Every name is compared with the names of its own
//! type: a DNS name with DNS names, an address with addresses, a URI with URIs.
//!
//! Envoy has three ways to say it, and they do not add up as one would think:
//!
//! | setting | compares | beside the others |
//! |---|---|---|
//! | `match_typed_subject_alt_names` | by type; any of the list | holds, unless the next one is used |
//! | `auto_sni_san_validation` | the SNI, with DNS names | takes the place of the list; without an SNI it checks nothing |
//! | `auto_san_validation`, or the filter state [`UPSTREAM_NAMES_STATE`](egress_filter::contract::UPSTREAM_NAMES_STATE) | in any type; any of its list | holds beside the first, and switches the second off |
//!
//! So if the host is known when this is rendered, the list has that one name. If only the request knows the host, the
//! SNI is verified, and the list has one name that nobody has. This list refuses a connection without an SNI. The third
//! way is used only if the certificate must have both the host and another name: see [`egress_filter::plan_http`].
//!
//! Source: envoyproxy/envoy `source/common/tls/cert_validator/default_validator.cc`, `verifyCertAndUpdateStatus`, and
//! `source/common/router/router.cc`, `Filter::decodeHeaders`.

use std::net::IpAddr;

use egress_policy::{Cluster, HostPattern, TlsIntent, VerifiedNames};
use serde_json::{Value, json};

/// The name that no certificate has (RFC 2606): it is asked for where a connection has no SNI to compare.
const NOBODY: &str = "no-server-name.invalid";

/// What a cluster sends as SNI and how it checks the server's certificate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Names<'t> {
    /// The SNI, where it is one for all connections. Else it is the request's host.
    pub(super) sni: Option<&'t str>,
    /// `match_typed_subject_alt_names`.
    pub(super) typed: Vec<Value>,
    /// The request's host is verified, in this way.
    pub(super) host: HostCheck,
}

/// How Envoy is told to verify the host that a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostCheck {
    /// Not by request: the host is among the typed names, or is not asked for.
    No,
    /// `auto_sni_san_validation`: the SNI is the host, and is compared with DNS names.
    BySni,
    /// `auto_san_validation`: the host is compared with names of any type, beside the typed names.
    BesideOthers,
}

impl<'t> Names<'t> {
    /// Settles how Envoy is to verify what `tls`, of `cluster`, asks for.
    pub(super) fn of(cluster: &'t Cluster, tls: &'t TlsIntent) -> Self {
        let exact = cluster.told_host().map(|host| host.as_str());
        let VerifiedNames {
            authority, any_of, ..
        } = &tls.names;
        let listed = || any_of.iter().map(|name| typed(name)).collect();
        let (typed, host) = match (*authority, exact) {
            // The filter has the other names, where there are any.
            (true, Some(host)) => (vec![dns(host)], HostCheck::No),
            (true, None) if any_of.is_empty() => (vec![nobody()], HostCheck::BySni),
            (true, None) => (listed(), HostCheck::BesideOthers),
            (false, _) => (listed(), HostCheck::No),
        };
        Names {
            sni: tls.sni.fixed().or(exact),
            typed,
            host,
        }
    }
}

impl<'t> Names<'t> {
    /// Settles how Envoy is to verify what `tls` asks for on a port of `host`, in a cluster of Istio's. There the SNI is
    /// what a rule says, or else the host that a request is sent to, rewritten or not; so the SNI is verified. `None` if
    /// the certificate must have two names at once, which Istio's cluster would have to say.
    ///
    /// While Istio's cluster is one of the user's own rule, it may have `auto_san_validation`. Then the list counts, and
    /// has the host too.
    pub(super) fn in_istios(host: &'t HostPattern, tls: &'t TlsIntent) -> Option<Self> {
        let VerifiedNames {
            authority, any_of, ..
        } = &tls.names;
        let exact = host.exact().map(|host| host.as_str());
        let (typed, check) = match authority {
            true if any_of.is_empty() => (vec![exact.map_or_else(nobody, dns)], HostCheck::BySni),
            true => return None,
            false => (
                any_of.iter().map(|name| typed(name)).collect(),
                HostCheck::No,
            ),
        };
        Some(Names {
            sni: tls.sni.fixed().or(exact),
            typed,
            host: check,
        })
    }
}

/// Renders the name that no certificate has.
pub(super) fn nobody() -> Value {
    dns(NOBODY)
}

/// Renders a DNS name that a certificate may have; Envoy follows the certificate's wildcards.
fn dns(name: &str) -> Value {
    san("DNS", name)
}

/// Renders a name that a certificate may have, of the type that it reads like. No DNS name has a colon or an `@`.
fn typed(name: &str) -> Value {
    if let Ok(address) = name.parse::<IpAddr>() {
        // As Envoy writes those of a certificate.
        san("IP_ADDRESS", &address.to_string())
    } else if name.contains(':') {
        san("URI", name)
    } else if name.contains('@') {
        san("EMAIL", name)
    } else {
        dns(name)
    }
}

fn san(kind: &str, name: &str) -> Value {
    json!({"san_type": kind, "matcher": {"exact": name}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_type_that_they_read_like() {
        for (name, kind, written) in [
            ("api.example.com", "DNS", "api.example.com"),
            ("*.example.com", "DNS", "*.example.com"),
            ("10.1.2.3", "IP_ADDRESS", "10.1.2.3"),
            ("2001:DB8:0::1", "IP_ADDRESS", "2001:db8::1"),
            (
                "spiffe://cluster.local/ns/a/sa/b",
                "URI",
                "spiffe://cluster.local/ns/a/sa/b",
            ),
            ("urn:example:a", "URI", "urn:example:a"),
            ("ops@example.com", "EMAIL", "ops@example.com"),
        ] {
            assert_eq!(typed(name), san(kind, written), "{name}");
        }
    }
}
