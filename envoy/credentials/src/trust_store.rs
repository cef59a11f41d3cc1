//! The bundle of authorities that the system trusts.

use std::env;
use std::path::Path;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum NoTrustStore {
    /// None of the usual places has one.
    #[error(
        "no bundle of trusted authorities was found; install ca-certificates, or name the bundle in SSL_CERT_FILE"
    )]
    Nowhere,
    /// `SSL_CERT_FILE` leads nowhere.
    #[error("SSL_CERT_FILE names `{0}`, which is not a file")]
    Missing(String),
}

/// Where distributions keep their bundle, in the order that Go's `crypto/x509` looks, too.
const TRUST_STORES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Gentoo, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",   // Fedora, RHEL 6
    "/etc/ssl/ca-bundle.pem",             // openSUSE
    "/etc/pki/tls/cacert.pem",            // OpenELEC
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // CentOS, RHEL 7 and later
    "/etc/ssl/cert.pem",                  // Alpine, macOS
];

/// Finds the bundle of authorities that the system trusts. `SSL_CERT_FILE` wins, as with OpenSSL.
///
/// # Errors
/// When there is none, or `SSL_CERT_FILE` names none: then nothing could be verified.
pub fn trust_store() -> Result<String, NoTrustStore> {
    if let Some(name) = env::var("SSL_CERT_FILE")
        .ok()
        .filter(|name| !name.is_empty())
    {
        return if Path::new(&name).is_file() {
            Ok(name)
        } else {
            Err(NoTrustStore::Missing(name))
        };
    }
    let found = TRUST_STORES.iter().find(|name| Path::new(name).is_file());
    found
        .map(|name| (*name).to_owned())
        .ok_or(NoTrustStore::Nowhere)
}
