//! `tls` of a DestinationRule: the settings of TLS towards a server.

use std::fmt;

use crate::fields::{Field, Fields};
use crate::host::HostName;
use crate::problem::ProblemKind;
use crate::resource::meta::text_of;

/// `tls.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// The server proves who it is.
    Simple,
    /// Both sides do, we with a certificate that the rule names.
    Mutual,
    /// Both sides do, we with the certificate of an Istio workload.
    IstioMutual,
}

crate::words! {
    /// The words that the configuration uses.
    TlsMode {
        Disable "DISABLE",
        Simple "SIMPLE",
        Mutual "MUTUAL",
        IstioMutual "ISTIO_MUTUAL",
    }
}

/// TLS settings towards a server.
///
/// Source: istio/api `networking/v1alpha3/destination_rule.proto`, `ClientTLSSettings`.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// Whether there is TLS, and who proves who they are.
    pub mode: TlsMode,
    /// The file with the client's certificate.
    pub client_certificate: Option<String>,
    /// The file with its key.
    pub private_key: Option<String>,
    /// The file with the trusted authorities; `None` is the system's.
    pub ca_certificates: Option<String>,
    /// The file with revoked certificates.
    pub ca_crl: Option<String>,
    /// The secret with certificate, key and authorities.
    pub credential_name: Option<String>,
    /// The names of which the certificate must have one.
    pub subject_alt_names: Vec<String>,
    /// The name sent in the ClientHello, when it is not the host's.
    pub sni: Option<String>,
    /// Takes any certificate. Unsafe, and named so.
    pub insecure_skip_verify: bool,
}

impl fmt::Debug for ClientTls {
    /// Leaves out where files are and what secrets are called.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("mode", &self.mode)
            .field("sni", &self.sni)
            .field("subject_alt_names", &self.subject_alt_names)
            .field("insecure_skip_verify", &self.insecure_skip_verify)
            .finish_non_exhaustive()
    }
}

/// Reads and validates the block.
///
/// Source: istio/istio `pkg/config/validation/agent/validation.go`, `ValidateTLS`.
pub(super) fn read_tls(field: Field<'_>, namespace: &str) -> Option<ClientTls> {
    let fields = field.fields()?;
    let mode = fields.read("mode", |field| {
        field.word("mode", &TlsMode::NAMES, TlsMode::parse)
    });
    let path = |field: Field<'_>| {
        let text = field.text().filter(|text| !text.is_empty())?;
        if text.contains(['\n', '\r']) || text.starts_with("-----BEGIN ") {
            let kind = ProblemKind::Invalid("this is no path of a file".to_owned());
            let hint = "name the file that holds the PEM; what is in it does not belong here";
            field.error_with_hint(kind, hint);
            return None;
        }
        Some(text.to_owned())
    };
    let client_certificate = fields.read("clientCertificate", path);
    let private_key = fields.read("privateKey", path);
    let ca_certificates = fields.read("caCertificates", path);
    let ca_crl = fields.read("caCrl", path);
    let credential_name = fields.read("credentialName", |field| {
        let name = path(field)?;
        check_config_map(&name, namespace, field);
        Some(name)
    });
    let mut subject_alt_names = Vec::new();
    fields.read("subjectAltNames", |list| {
        list.items(|item| subject_alt_names.extend(text_of(item)));
        Some(())
    });
    let sni = fields.read("sni", |field| {
        let text = field.text().filter(|text| !text.is_empty())?;
        match HostName::dns(text) {
            Ok(name) => Some(name.as_str().to_owned()),
            Err(problem) => {
                let hint = "the SNI is one DNS name, without a wildcard";
                field.error_with_hint(ProblemKind::Invalid(problem.to_string()), hint);
                None
            }
        }
    });
    let insecure_skip_verify = fields
        .read("insecureSkipVerify", |field| field.bool())
        .unwrap_or(false);
    if !fields.has("mode") {
        // Istio reads a missing mode as DISABLE: plaintext, though the author wrote a `tls` block.
        let hint = "write `mode: SIMPLE`, or `mode: DISABLE` to send plaintext";
        fields.error_at("mode", ProblemKind::Missing, Some(hint));
    }
    let mode = mode?;
    check_together(&fields, mode, insecure_skip_verify);
    let ca_certificates = ca_certificates.filter(|path| path != "system");
    Some(ClientTls {
        mode,
        client_certificate,
        private_key,
        ca_certificates,
        ca_crl,
        credential_name,
        subject_alt_names,
        sni,
        insecure_skip_verify,
    })
}

/// Reports fields that cannot stand together, or miss each other.
fn check_together(fields: &Fields<'_>, mode: TlsMode, skip: bool) {
    let conflict = |name: &str, text: &str, hint: &str| {
        fields.error_at(name, ProblemKind::Conflict(text.to_owned()), Some(hint));
    };
    let present = |names: &[&'static str]| names.iter().copied().find(|name| fields.given(name));
    if skip {
        let found = match mode {
            TlsMode::Simple => present(&["caCertificates", "credentialName", "subjectAltNames"]),
            TlsMode::Mutual => present(&["caCertificates", "subjectAltNames"]),
            TlsMode::Disable | TlsMode::IstioMutual => None,
        };
        if let Some(name) = found {
            let text = match mode {
                TlsMode::Simple => {
                    "cannot specify CaCertificates or CredentialName or SubjectAltNames when InsecureSkipVerify is set true"
                }
                _ => {
                    "cannot specify CaCertificates or SubjectAltNames when InsecureSkipVerify is set true"
                }
            };
            conflict(name, text, "remove one of the two");
        }
    }
    if !matches!(mode, TlsMode::Simple | TlsMode::Mutual) {
        return;
    }
    if fields.given("credentialName") {
        if let Some(name) = present(&["clientCertificate", "privateKey", "caCertificates", "caCrl"])
        {
            let text = "cannot specify client certificates or CA certificate or CA CRL If credentialName is set";
            conflict(name, text, "the secret holds all of them; remove the path");
        }
        return;
    }
    if mode == TlsMode::Mutual {
        for (name, text) in [
            (
                "clientCertificate",
                "client certificate required for mutual tls",
            ),
            ("privateKey", "private key required for mutual tls"),
        ] {
            if !fields.given(name) {
                let hint = "give `clientCertificate` and `privateKey`, or `credentialName`";
                fields.error_at(name, ProblemKind::Invalid(text.to_owned()), Some(hint));
            }
        }
    }
}

/// Checks `configmap://namespace/name`, which must lie in the rule's own namespace.
fn check_config_map(name: &str, namespace: &str, field: Field<'_>) {
    let Some(rest) = name.strip_prefix("configmap://") else {
        return;
    };
    let problem = match rest.split_once('/') {
        Some((owner, name)) if !owner.is_empty() && !name.is_empty() => (owner != namespace).then(|| {
            format!("invalid configmap:// credentialName: namespace must match the configuration namespace \"{namespace}\"")
        }),
        _ => Some("invalid configmap:// credentialName: it is configmap://namespace/name".to_owned()),
    };
    if let Some(text) = problem {
        field.error(ProblemKind::Invalid(text));
    }
}
