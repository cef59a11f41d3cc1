//! The rules there are.

use crate::severity::Severity;

/// A rule of the linter.
#[derive(Debug)]
pub struct Rule {
    /// Its name, which stays.
    pub id: &'static str,
    /// How much its findings matter.
    pub severity: Severity,
    /// What it finds, in one line.
    pub title: &'static str,
    /// The versions of Istio that it is true of.
    pub versions: &'static str,
    /// Where Istio documents the field.
    pub reference: &'static str,
    /// Its page, in Markdown.
    pub page: &'static str,
}

impl Rule {
    /// Returns the rule of this name.
    pub fn find(id: &str) -> Option<&'static Rule> {
        RULES.iter().find(|rule| rule.id == id).copied()
    }
}

const ALL: &str = "all supported versions";

const TLS: &str =
    "https://istio.io/latest/docs/reference/config/networking/destination-rule/#ClientTLSSettings";
const POLICY: &str =
    "https://istio.io/latest/docs/reference/config/networking/destination-rule/#TrafficPolicy";
const DESTINATION_RULE: &str =
    "https://istio.io/latest/docs/reference/config/networking/destination-rule/#DestinationRule";
const SERVICE_ENTRY: &str =
    "https://istio.io/latest/docs/reference/config/networking/service-entry/#ServiceEntry";
const VIRTUAL_SERVICE: &str =
    "https://istio.io/latest/docs/reference/config/networking/virtual-service/#VirtualService";
const ROUTED: &str =
    "https://istio.io/latest/docs/reference/config/networking/virtual-service/#Destination";

macro_rules! rules {
    ($($name:ident: $id:literal, $severity:ident, $versions:expr, $reference:expr, $title:literal;)*) => {
        $(pub(crate) static $name: Rule = Rule {
            id: $id,
            severity: Severity::$severity,
            title: $title,
            versions: $versions,
            reference: $reference,
            page: include_str!(concat!("../pages/", $id, ".md")),
        };)*

        /// All rules, in the order of their names.
        pub static RULES: &[&Rule] = &[$(&$name),*];
    };
}

rules! {
    CLIENT_CERTIFICATE_IGNORED: "client-certificate-ignored", Warning, ALL, TLS,
        "SIMPLE never shows a client certificate";
    CREDENTIAL_WITHOUT_SELECTOR: "credential-without-selector", Error, ALL, TLS,
        "Sidecars send plaintext if a rule has `credentialName` and no `workloadSelector`";
    CRL_WITHOUT_CA: "crl-without-ca", Warning, "versions that have `caCrl`", TLS,
        "A revocation list is given without the authorities that it is for";
    DOUBLE_TLS: "double-tls", Error, ALL, POLICY,
        "TLS is originated on a port where the application speaks TLS itself";
    DUPLICATE_PORT_SETTINGS: "duplicate-port-settings", Warning, ALL, POLICY,
        "A second entry of `portLevelSettings` for a port is ignored";
    DUPLICATE_RESOURCE: "duplicate-resource", Warning, ALL, DESTINATION_RULE,
        "Two resources have the same kind, namespace and name";
    EXPORTED_TO_NOBODY: "exported-to-nobody", Warning, ALL, SERVICE_ENTRY,
        "A rule asks for TLS to a host that no namespace sees";
    GATEWAY_HALF_HIDDEN: "gateway-half-hidden", Error, ALL, VIRTUAL_SERVICE,
        "Requests are led to a gateway that does not see the VirtualService for them";
    GATEWAY_WRONG_PORT: "gateway-wrong-port", Warning, ALL, ROUTED,
        "A VirtualService is for a port that its Gateway does not listen on";
    HOP_WITHOUT_SNI: "hop-without-sni", Warning, ALL, TLS,
        "The connection to a gateway of ISTIO_MUTUAL has no `sni`, so the gateway closes it";
    HOST_NEVER_MATCHES: "host-never-matches", Warning, ALL, DESTINATION_RULE,
        "A DestinationRule is for a host that no ServiceEntry has";
    INSECURE_SKIP_VERIFY: "insecure-skip-verify", Error, ALL, TLS,
        "Any certificate is accepted, even an attacker's";
    INVALID: "invalid", Error, ALL, SERVICE_ENTRY,
        "Istio refuses the resource, or reads it differently from what is written";
    ISTIO_MUTUAL_EXTERNAL: "istio-mutual-external", Warning, ALL, TLS,
        "A server outside the mesh is expected to have a certificate of the mesh";
    MERGED_RULE_LOST: "merged-rule-lost", Error, "versions that merge by `exportTo` (ENABLE_ENHANCED_DESTINATIONRULE_MERGE, on by default)", DESTINATION_RULE,
        "Istio merges rules of one host, and some workloads get none";
    MODE_MISSING_IS_DISABLE: "mode-missing-is-disable", Error, ALL, TLS,
        "`tls` without `mode` sends plaintext";
    MUTUAL_WITHOUT_CREDENTIALS: "mutual-without-credentials", Error, ALL, TLS,
        "MUTUAL without certificate and key sends plaintext";
    NO_HTTPS_PASSTHROUGH: "no-https-passthrough", Info, ALL, SERVICE_ENTRY,
        "Applications that speak HTTPS to the host have no port for it";
    PLAINTEXT_AFTER_VIRTUAL_SERVICE: "plaintext-after-virtual-service", Warning, ALL, ROUTED,
        "A VirtualService leads requests past the TLS that a rule asks for";
    PLAINTEXT_TO_443: "plaintext-to-443", Warning, ALL, SERVICE_ENTRY,
        "HTTP is sent to port 443, and no rule originates TLS";
    PORT_NEVER_MATCHES: "port-never-matches", Warning, ALL, POLICY,
        "`portLevelSettings` name a port that the host does not have";
    PORT_SETTINGS_DROP_TLS: "port-settings-drop-tls", Error, ALL, POLICY,
        "An entry of `portLevelSettings` without `tls` turns off the rule's TLS";
    SHADOWED_RULE: "shadowed-rule", Warning, ALL, DESTINATION_RULE,
        "Another resource for the same host always wins";
    SHADOWED_VIRTUAL_SERVICE: "shadowed-virtual-service", Warning, ALL, VIRTUAL_SERVICE,
        "Another VirtualService or route of the Gateway API has the same hosts and ports, or the same match, and always wins";
    SNI_WITHOUT_SAN: "sni-without-san", Error, ALL, TLS,
        "With `sni` and without `subjectAltNames`, the server's name is not verified";
    TCP_WITHOUT_SNI: "tcp-without-sni", Error, ALL, TLS,
        "On a TCP port, no SNI is sent and no name is verified unless the rule gives both";
    TLS_TO_PORT_80: "tls-to-port-80", Error, ALL, SERVICE_ENTRY,
        "TLS is originated to port 80, where servers speak plaintext";
    UNKNOWN_DESTINATION: "unknown-destination", Warning, ALL, ROUTED,
        "A VirtualService leads to a host or port that nothing describes";
    UNKNOWN_SUBSET: "unknown-subset", Warning, ALL, ROUTED,
        "A VirtualService leads to a subset that no DestinationRule has";
    WILDCARD_NEEDS_DYNAMIC_DNS: "wildcard-needs-dynamic-dns", Warning, "all supported versions; DYNAMIC_DNS, the remedy, came for waypoints in October 2025 and for sidecars in March 2026", SERVICE_ENTRY,
        "A wildcard host has TLS, but Istio does not look up its addresses";
    WILDCARD_SAN: "wildcard-san", Warning, ALL, TLS,
        "A `*` in `subjectAltNames` matches only a certificate with the same `*`";
}
