//! The suites, groups and signatures of TLS, by the names that Envoy knows them by.
//!
//! Source: envoyproxy/envoy `source/common/tls/context_config_impl.cc`, `DEFAULT_CIPHER_SUITES`, and BoringSSL
//! `ssl/extensions.cc`, `kVerifySignatureAlgorithms`.

/// What Envoy offers by itself.
pub(crate) const MODERN_SUITES: [&str; 4] = [
    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
];

/// Suites that encrypt by CBC and have forward secrecy.
pub(crate) const CBC_SUITES: [&str; 6] = [
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
];

/// Suites without forward secrecy.
pub(crate) const RSA_SUITES: [&str; 4] = [
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
];

/// Groups of today; the first protects against quantum computers. Envoy offers the same by itself from 1.40 on.
pub(crate) const GROUPS: [&str; 3] = [POST_QUANTUM, "X25519", "P-256"];

/// All groups that every supported Envoy takes: it does not start with another one.
pub(crate) const ALL_GROUPS: [&str; 5] = [POST_QUANTUM, "X25519", "P-256", "P-384", "P-521"];

/// Those of [`MODERN_SUITES`], one by one.
pub(crate) const MODERN_NAMES: [&str; 6] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
];

/// The suite with 3DES, which has no word and which the mesh may name.
pub(crate) const TRIPLE_DES: &str = "DES-CBC3-SHA";

/// The group whose share has 1,216 bytes.
pub(crate) const POST_QUANTUM: &str = "X25519MLKEM768";

/// The signatures that Envoy takes by itself.
pub(crate) const SIGNATURES: [&str; 9] = [
    "ecdsa_secp256r1_sha256",
    "rsa_pss_rsae_sha256",
    "rsa_pkcs1_sha256",
    "ecdsa_secp384r1_sha384",
    "rsa_pss_rsae_sha384",
    "rsa_pkcs1_sha384",
    "rsa_pss_rsae_sha512",
    "rsa_pkcs1_sha512",
    "rsa_pkcs1_sha1",
];
