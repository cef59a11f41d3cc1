//! What Envoy must be given under a name, and what a `credentialName` means.

use std::collections::BTreeMap;
use std::fmt;

use egress_filter::contract;
use egress_policy::{Identity, PolicyTable, TlsIntent, Trust};

/// What Istio puts behind a credential's name to ask for its authorities.
///
/// Source: istio/istio `pilot/pkg/security/model/authentication.go`, `SdsCaSuffix`.
const CA_SUFFIX: &str = "-cacert";

/// How long the name of a Secret may be, in bytes.
///
/// Source: kubernetes/kubernetes `staging/src/k8s.io/apimachinery/pkg/util/validation/validation.go`,
/// `DNS1123SubdomainMaxLength`.
const MAX_NAME_BYTES: usize = 253;

/// One thing that Envoy must be given under a name: what SDS calls a secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
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

impl Need {
    /// Returns what `tls` needs to show a certificate.
    pub fn certificate(tls: &TlsIntent) -> Option<Need> {
        tls.identity.clone().map(Need::Certificate)
    }

    /// Returns what `tls` needs to verify the server. The system's bundle alone is no need, for it needs no
    /// watching, and neither is `insecureSkipVerify`.
    pub fn validation(tls: &TlsIntent) -> Option<Need> {
        match (&tls.trust, &tls.crl) {
            (Trust::InsecureSkipVerify, _) | (Trust::System, None) => None,
            (trust, crl) => Some(Need::Validation {
                trust: trust.clone(),
                crl: crl.clone(),
            }),
        }
    }

    /// Returns all needs of a table, one for each name, in the order of the names.
    pub fn of(table: &PolicyTable) -> Vec<Need> {
        let mut needs = BTreeMap::new();
        for tls in table.clusters().filter_map(|cluster| cluster.tls.as_ref()) {
            for need in [Need::certificate(tls), Need::validation(tls)] {
                needs.extend(need.map(|need| (need.name(), need)));
            }
        }
        needs.into_values().collect()
    }

    /// Returns the name in Envoy; no two needs have the same.
    pub fn name(&self) -> String {
        match self {
            Need::Certificate(identity) => contract::identity_secret(identity).to_string(),
            Need::Validation { trust, crl } => contract::trust_name(trust, crl.as_deref())
                .map(|name| name.to_string())
                .unwrap_or_default(),
        }
    }
}

impl fmt::Debug for Need {
    /// Leaves out where files are and what secrets are called.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::Certificate(identity) => f.debug_tuple("Certificate").field(identity).finish(),
            Need::Validation { trust, crl } => f
                .debug_struct("Validation")
                .field("trust", trust)
                .field("crl", &crl.as_ref().map(|_| format_args!("..")))
                .finish(),
        }
    }
}

/// What a `credentialName` leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    /// A Secret of the proxy's own namespace.
    Secret(String),
    /// A ConfigMap, which holds authorities.
    ConfigMap { namespace: String, name: String },
}

/// Why a `credentialName` leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidReference {
    #[error("`{0}` is not a name that a Secret can have")]
    Name(String),
    #[error("`{found}` is in another namespace than the proxy, which is in `{own}`")]
    OtherNamespace { found: String, own: String },
    #[error("`{0}` is of a kind that a proxy is not given")]
    Scheme(String),
    #[error("`{0}` is not `configmap://NAMESPACE/NAME`")]
    ConfigMap(String),
}

impl InvalidReference {
    /// Returns how to mend it.
    pub(crate) fn hint(&self) -> String {
        match self {
            InvalidReference::Name(_) => {
                "give the name alone: letters, digits, `-` and `.`".to_owned()
            }
            InvalidReference::OtherNamespace { own, .. } => {
                format!("copy the Secret to `{own}`: Istio too refuses one of another namespace")
            }
            InvalidReference::Scheme(_) => {
                "give `NAME`, `kubernetes://NAME` or `configmap://NAMESPACE/NAME`".to_owned()
            }
            InvalidReference::ConfigMap(_) => "both are names, without a further `/`".to_owned(),
        }
    }
}

impl Reference {
    /// Reads a `credentialName` as a proxy of `namespace` means it. What comes of it can be joined to a
    /// folder's path and stays in that folder.
    ///
    /// Source: istio/istio `pilot/pkg/model/credentials/resource.go`, `ParseResourceName`.
    pub(crate) fn parse(credential: &str, namespace: &str) -> Result<Reference, InvalidReference> {
        if let Some(rest) = credential.strip_prefix("configmap://") {
            return match rest.split_once('/') {
                Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                    Ok(Reference::ConfigMap {
                        namespace: namespace.to_owned(),
                        name: name.to_owned(),
                    })
                }
                _ => Err(InvalidReference::ConfigMap(shown(credential))),
            };
        }
        let (owner, name) = match credential.strip_prefix("kubernetes://") {
            Some(rest) => match rest.split_once('/') {
                Some((owner, name)) => (Some(owner), name),
                None => (None, rest),
            },
            None if credential.contains("://") => {
                return Err(InvalidReference::Scheme(shown(credential)));
            }
            None => (None, credential),
        };
        if !is_name(name) || owner.is_some_and(|owner| !is_name(owner)) {
            return Err(InvalidReference::Name(shown(credential)));
        }
        match owner {
            Some(owner) if owner != namespace => Err(InvalidReference::OtherNamespace {
                found: shown(credential),
                own: namespace.to_owned(),
            }),
            _ => Ok(Reference::Secret(name.to_owned())),
        }
    }
}

/// Returns the names to look for, the first that is there counts: that of the authorities alone before that of all.
pub(crate) fn names_of(reference: &Reference, is_pair: bool) -> Vec<String> {
    match reference {
        Reference::Secret(name) if is_pair => vec![name.clone()],
        Reference::Secret(name) => vec![format!("{name}{CA_SUFFIX}"), name.clone()],
        Reference::ConfigMap { name, .. } => vec![name.clone()],
    }
}

/// Says whether a text can be the name of a Secret or of a folder for one. Letters of both cases and `_` are
/// let through, which Kubernetes would not: folders have them.
fn is_name(text: &str) -> bool {
    let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !text.is_empty()
        && text.len() <= MAX_NAME_BYTES
        && text.chars().all(usual)
        && !text.starts_with('.')
}

/// Cuts a text to what a message has room for, on one line.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn identity(name: &str) -> Need {
        Need::Certificate(Identity::Credential(name.to_owned()))
    }

    fn files(certificate: &str, key: &str) -> Need {
        Need::Certificate(Identity::Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        })
    }

    fn trust(trust: Trust, crl: Option<&str>) -> Need {
        Need::Validation {
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
        let names: BTreeSet<String> = needs.iter().map(Need::name).collect();
        assert_eq!(names.len(), needs.len());
    }

    #[test]
    fn a_credential_cannot_leave_its_folder() {
        for good in ["client", "kubernetes://client", "kubernetes://own/client"] {
            assert_eq!(
                Reference::parse(good, "own"),
                Ok(Reference::Secret("client".to_owned()))
            );
        }
        let long = "a".repeat(254);
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "/etc/ssl",
            "a/b",
            "a/../b",
            "..data",
            ".hidden",
            "a b",
            "a\0b",
            "a\nb",
            "kubernetes://",
            "kubernetes://../x",
            "kubernetes://own/../x",
            "kubernetes://own/",
            "kubernetes:///x",
            "kubernetes://other/x",
            "configmap://x",
            "configmap:///x",
            "configmap://../x",
            "configmap://ns/../../x",
            "configmap://ns/x/y",
            "kubernetes-gateway://ns/x",
            "file:///etc/x",
            "a\\b",
            "ä",
            long.as_str(),
        ] {
            let error = Reference::parse(bad, "own").unwrap_err();
            assert!(!error.to_string().contains('\n'), "{bad}");
        }
    }
}
