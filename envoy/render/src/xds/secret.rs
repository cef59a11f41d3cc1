//! A secret that the configuration asks for by name, and the files that it may be in. Whoever runs Envoy supplies it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use egress_filter::contract;
use egress_policy::{Identity, PolicyTable, TlsIntent, Trust};

/// One thing that Envoy must be given under a name: what SDS calls a secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretRequest {
    /// The certificate that we show, and its key.
    Certificate(Identity),
    /// Who may have signed the server's certificate.
    Validation {
        /// A file or a credential; the system's bundle only where there is a `crl`.
        trust: Trust,
        /// The file that says which certificates are revoked.
        crl: Option<String>,
    },
}

impl SecretRequest {
    /// Returns what `tls` needs to show a certificate.
    pub fn certificate(tls: &TlsIntent) -> Option<SecretRequest> {
        tls.identity.clone().map(SecretRequest::Certificate)
    }

    /// Returns what `tls` needs to verify the server. The system's bundle alone is no need, for it needs no
    /// watching, and neither is `insecureSkipVerify`.
    pub fn validation(tls: &TlsIntent) -> Option<SecretRequest> {
        match (&tls.trust, &tls.crl) {
            (Trust::InsecureSkipVerify, _) | (Trust::System, None) => None,
            (trust, crl) => Some(SecretRequest::Validation {
                trust: trust.clone(),
                crl: crl.clone(),
            }),
        }
    }

    /// Returns all needs of a table, one for each name, in the order of the names.
    pub fn of(table: &PolicyTable) -> Vec<SecretRequest> {
        let mut needs = BTreeMap::new();
        for tls in table.clusters().filter_map(|cluster| cluster.tls.as_ref()) {
            for need in [
                SecretRequest::certificate(tls),
                SecretRequest::validation(tls),
            ] {
                needs.extend(need.map(|need| (need.name(), need)));
            }
        }
        needs.into_values().collect()
    }

    /// Returns the name in Envoy; no two needs have the same.
    pub fn name(&self) -> String {
        match self {
            SecretRequest::Certificate(identity) => contract::identity_secret(identity).to_string(),
            SecretRequest::Validation { trust, crl } => contract::trust_name(trust, crl.as_deref())
                .map(|name| name.to_string())
                .unwrap_or_default(),
        }
    }
}

impl fmt::Debug for SecretRequest {
    /// Leaves out where files are and what secrets are called.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretRequest::Certificate(identity) => {
                f.debug_tuple("Certificate").field(identity).finish()
            }
            SecretRequest::Validation { trust, crl } => f
                .debug_struct("Validation")
                .field("trust", trust)
                .field("crl", &crl.as_ref().map(|_| format_args!("..")))
                .finish(),
        }
    }
}

/// The files of a secret. Keys stay in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFiles {
    /// A certificate to show.
    Certificate {
        /// The certificate, then those that lead to its authority.
        chain: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// Who is trusted.
    Validation {
        /// The authorities.
        ca: PathBuf,
        /// What they revoked.
        crl: Option<PathBuf>,
    },
}

/// How Envoy comes by certificates and keys. No form puts a key into the bootstrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secrets {
    /// From these files, when it starts and never again.
    AtStart(BTreeMap<String, SecretFiles>),
    /// From the discovery server on a socket, again whenever they change.
    Served(String),
    /// From files that the documents in a folder name, again whenever they are replaced.
    Watched(String),
    /// From Istio: credentials from istiod, files from the agent beside the proxy, again whenever they change.
    Istio,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn identity(name: &str) -> SecretRequest {
        SecretRequest::Certificate(Identity::Credential(name.to_owned()))
    }

    fn files(certificate: &str, key: &str) -> SecretRequest {
        SecretRequest::Certificate(Identity::Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        })
    }

    fn trust(trust: Trust, crl: Option<&str>) -> SecretRequest {
        SecretRequest::Validation {
            trust,
            crl: crl.map(str::to_owned),
        }
    }

    #[test]
    fn names_are_istios() {
        let file = |path: &str| Trust::File(path.to_owned());
        let credential = |name: &str| Trust::Credential(name.to_owned());
        for (need, name) in [
            (identity("client"), "kubernetes://client"),
            (identity("kubernetes://client"), "kubernetes://client"),
            (identity("kubernetes://ns/client"), "kubernetes://ns/client"),
            (
                trust(credential("client"), None),
                "kubernetes://client-cacert",
            ),
            (
                trust(credential("configmap://ns/ca"), None),
                "configmap://ns/ca-cacert",
            ),
            (files("/c.pem", "/k.pem"), "file-cert:/c.pem~/k.pem"),
            (trust(file("/ca.pem"), None), "file-root:/ca.pem"),
            (
                trust(file("ca.pem"), Some("crl.pem")),
                "file-root:ca.pem;crl:crl.pem",
            ),
            (
                trust(Trust::System, Some("/crl.pem")),
                "file-root:system;crl:/crl.pem",
            ),
        ] {
            assert_eq!(need.name(), name);
        }
    }

    #[test]
    fn different_needs_never_have_one_name() {
        let words = [
            "a",
            "b",
            "a-cacert",
            "a%2Dcacert",
            "a~b",
            "a;crl:b",
            "a%3Bcrl:b",
            "/a",
            "/a~/b",
            "system",
            "configmap://a/b",
            "configmap://a/b-cacert",
            "kubernetes://a/b",
            "kubernetes://configmap://a/b",
        ];
        let mut needs = Vec::new();
        for a in words {
            needs.push(identity(a));
            for crl in [None, Some("a"), Some("b"), Some("a;crl:b")] {
                needs.push(trust(Trust::File(a.to_owned()), crl));
                needs.push(trust(Trust::Credential(a.to_owned()), crl));
            }
            for b in words {
                needs.push(files(a, b));
            }
        }
        needs.push(trust(Trust::System, Some("a")));
        let names: BTreeSet<String> = needs.iter().map(SecretRequest::name).collect();
        assert_eq!(names.len(), needs.len());
    }
}
