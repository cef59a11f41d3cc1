//! What a `credentialName` means.

/// What Istio puts behind a credential's name to ask for its authorities.
///
/// Source: istio/istio `pilot/pkg/security/model/authentication.go`, `SdsCaSuffix`.
const CA_SUFFIX: &str = "-cacert";

/// How long the name of a Secret may be, in bytes.
///
/// Source: kubernetes/kubernetes `staging/src/k8s.io/apimachinery/pkg/util/validation/validation.go`,
/// `DNS1123SubdomainMaxLength`.
const MAX_NAME_BYTES: usize = 253;

/// What a `credentialName` leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A Secret of the proxy's own namespace.
    Secret(String),
    /// A ConfigMap, which holds authorities.
    ConfigMap {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// Why a `credentialName` leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// It is no name of a Secret.
    #[error("`{0}` is not a name that a Secret can have")]
    Name(String),
    /// It is of another namespace than the proxy's.
    #[error("`{found}` is in another namespace than the proxy, which is in `{own}`")]
    OtherNamespace {
        /// The credential as it was written.
        found: String,
        /// The proxy's namespace.
        own: String,
    },
    /// It has a scheme that is none of ours.
    #[error("`{0}` is of a kind that a proxy is not given")]
    Scheme(String),
    /// It names no ConfigMap, though it begins so.
    #[error("`{0}` is not `configmap://NAMESPACE/NAME`")]
    ConfigMap(String),
}

impl InvalidReference {
    /// Returns how to fix it.
    pub fn hint(&self) -> String {
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
    /// # Errors
    /// When it leads nowhere.
    ///
    /// Source: istio/istio `pilot/pkg/model/credentials/resource.go`, `ParseResourceName`.
    pub fn parse(credential: &str, namespace: &str) -> Result<Reference, InvalidReference> {
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
pub fn names_of(reference: &Reference, is_pair: bool) -> Vec<String> {
    match reference {
        Reference::Secret(name) if is_pair => vec![name.clone()],
        Reference::Secret(name) => vec![format!("{name}{CA_SUFFIX}"), name.clone()],
        Reference::ConfigMap { name, .. } => vec![name.clone()],
    }
}

/// Whether a text can be the name of a Secret or of a folder for one. Letters of both cases and `_` are
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
    use super::*;

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
