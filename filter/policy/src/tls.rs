//! What TLS to a server must prove, and where each part of it comes from.

use std::fmt::{self, Write as _};

use crate::host::HostPattern;
use crate::proxy::Role;
use crate::query::DownstreamProtocol;
use crate::resource::{ClientTls, DestinationRule, Notes, ServiceEntry, TlsMode};

/// The settings of TLS towards a server, settled once.
///
/// There is no default and no way from here to plaintext: where a rule asks for TLS, either an intent
/// is made of it or the configuration is refused.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TlsIntent {
    /// What the rule calls it.
    pub mode: TlsMode,
    /// The name in the ClientHello.
    pub sni: Sni,
    /// The names of which the certificate must have one.
    pub names: VerifiedNames,
    /// Who may have signed it.
    pub trust: Trust,
    /// The file that says which certificates are revoked.
    pub crl: Option<String>,
    /// The certificate that we show.
    pub identity: Option<Identity>,
    /// What the server is offered beside modern TLS.
    pub legacy: Notes,
}

/// Where the name in the ClientHello comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sni {
    /// The host of the request as it is sent upstream.
    Authority,
    /// The rule's `sni`.
    Rule(String),
    /// The host of the ServiceEntry, where there is no request to read one from.
    Host(String),
}

impl Sni {
    /// Returns the name, where it does not depend on the request.
    pub fn fixed(&self) -> Option<&str> {
        match self {
            Sni::Authority => None,
            Sni::Rule(name) | Sni::Host(name) => Some(name),
        }
    }
}

/// The names that the certificate is checked against. Both parts hold where both are given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VerifiedNames {
    /// The certificate must be for the request's host.
    pub authority: bool,
    /// The certificate must have one of these; empty asks for nothing.
    pub any_of: Vec<String>,
    /// Where `any_of` comes from.
    pub source: NameSource,
}

/// Where verified names come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameSource {
    /// The host: the request's, or the ServiceEntry's where there is no request.
    Host,
    /// `sni`, because no names were given. Istio would verify none.
    Sni,
    /// `subjectAltNames` of the DestinationRule.
    DestinationRule,
    /// `subjectAltNames` of the ServiceEntry.
    ServiceEntry,
    /// Nowhere: the rule says `insecureSkipVerify`.
    Nowhere,
}

/// Who may have signed the server's certificate.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// The authorities that the operating system trusts.
    System,
    /// The authorities in a PEM file.
    File(String),
    /// The authorities of a credential.
    Credential(String),
    /// Anyone: `insecureSkipVerify`.
    InsecureSkipVerify,
}

/// The certificate that we show to the server.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// From files.
    Files {
        /// The certificate and what signed it.
        certificate: String,
        /// Its key.
        key: String,
    },
    /// From a credential.
    Credential(String),
}

/// Why no intent can be made of a `tls` block. Each of them would be plaintext, or nothing verified, in Istio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTls {
    /// There is no mesh whose certificate could be shown.
    #[error(
        "mode `ISTIO_MUTUAL` needs the certificate of an Istio workload, and there is none here"
    )]
    IstioMutual,
    /// Istio ignores such a block and sends plaintext.
    #[error(
        "`credentialName` needs a `workloadSelector`: without one, Istio's sidecars ignore `tls` and send plaintext"
    )]
    CredentialWithoutSelector,
    /// There is neither a request nor a host to take a name from.
    #[error(
        "`sni` is required for a wildcard host on a port that does not speak HTTP: no name would be sent or verified"
    )]
    NoName,
    /// Envoy takes names that must be there beside the host's as a list, with commas between them.
    #[error(
        "a name of `subjectAltNames` has a comma, and Envoy would verify its parts in its place"
    )]
    NameWithComma,
}

impl InvalidTls {
    /// Returns how to fix it.
    pub fn hint(self) -> &'static str {
        match self {
            InvalidTls::IstioMutual => {
                "use SIMPLE, or MUTUAL with a certificate that the server knows"
            }
            InvalidTls::CredentialWithoutSelector => {
                "add `workloadSelector.matchLabels` with the labels of the application; egress gateways need none, see `render istio --for gateway`"
            }
            InvalidTls::NoName => "give `sni`, or a ServiceEntry for each host",
            InvalidTls::NameWithComma => {
                "give the names in the DestinationRule's `tls.subjectAltNames`, where they take the host's place"
            }
        }
    }
}

impl TlsIntent {
    /// Settles what `tls`, a block of `rule`, asks for on a port of `host`; `None` when it asks for no TLS.
    /// `entry_names` are the names of the ServiceEntry and of its endpoints.
    ///
    /// Names are verified always: the rule's `subjectAltNames`, or the entry's, or the `sni`, or the
    /// host. Istio verifies none where `sni` is set and no names are given, and none on TCP ports
    /// without both; we verify the `sni`, or the host.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/cluster_tls.go`, `constructUpstreamTLS` and
    /// `setAutoSniAndAutoSanValidation`.
    ///
    /// # Errors
    /// When the block cannot be honoured.
    pub fn of(
        tls: &ClientTls,
        rule: &DestinationRule,
        entry: &ServiceEntry,
        entry_names: &[String],
        host: &HostPattern,
        downstream: DownstreamProtocol,
        role: Role,
    ) -> Result<Option<TlsIntent>, InvalidTls> {
        match tls.mode {
            TlsMode::Disable => return Ok(None),
            TlsMode::IstioMutual => return Err(InvalidTls::IstioMutual),
            TlsMode::Simple | TlsMode::Mutual => {}
        }
        let credential = tls.credential_name.as_deref();
        let from_secret = credential.is_some_and(|name| !name.starts_with("configmap://"));
        if from_secret && rule.selector.is_none() && role == Role::Sidecar {
            return match downstream {
                // It is a gateway's, and here the application speaks TLS itself.
                DownstreamProtocol::Tls => Ok(None),
                _ => Err(InvalidTls::CredentialWithoutSelector),
            };
        }
        let sni = match (&tls.sni, downstream, host.exact()) {
            (Some(name), ..) => Sni::Rule(name.clone()),
            (None, DownstreamProtocol::Http, _) => Sni::Authority,
            (None, _, Some(name)) => Sni::Host(name.as_str().to_owned()),
            (None, _, None) => return Err(InvalidTls::NoName),
        };
        let dynamic = downstream == DownstreamProtocol::Http
            && host.exact().is_none()
            && !entry.has_own_endpoints();
        let identity = match (
            tls.mode,
            credential,
            &tls.client_certificate,
            &tls.private_key,
        ) {
            (TlsMode::Mutual, Some(name), ..) => Some(Identity::Credential(name.to_owned())),
            (TlsMode::Mutual, None, Some(certificate), Some(key)) => Some(Identity::Files {
                certificate: certificate.clone(),
                key: key.clone(),
            }),
            _ => None,
        };
        let intent = |names, trust| TlsIntent {
            mode: tls.mode,
            sni: sni.clone(),
            names,
            trust,
            crl: None,
            identity,
            legacy: Notes::default(),
        };
        if tls.insecure_skip_verify {
            let names = VerifiedNames {
                authority: false,
                any_of: Vec::new(),
                source: NameSource::Nowhere,
            };
            return Ok(Some(intent(names, Trust::InsecureSkipVerify)));
        }
        let (any_of, source) = match (&tls.subject_alt_names[..], entry_names, &sni) {
            ([], [], Sni::Authority) => (Vec::new(), NameSource::Host),
            ([], [], Sni::Host(name)) => (vec![name.clone()], NameSource::Host),
            ([], [], Sni::Rule(name)) => (vec![name.clone()], NameSource::Sni),
            ([], names, _) => (names.to_vec(), NameSource::ServiceEntry),
            (names, _, _) => (names.to_vec(), NameSource::DestinationRule),
        };
        // As in Istio, the entry's names come on top of the host's, and the rule's names in its place. Below a
        // wildcard the requested host is verified beside the rule's names too. The `sni` is verified alone: Envoy
        // cannot compare the host with DNS names while it sends another SNI.
        let named = !(tls.subject_alt_names.is_empty() && entry.subject_alt_names.is_empty());
        let authority =
            (dynamic && named) || (sni == Sni::Authority && tls.subject_alt_names.is_empty());
        let is_list = |name: &String| name.contains(',');
        if authority && host.exact().is_some() && any_of.iter().any(is_list) {
            return Err(InvalidTls::NameWithComma);
        }
        let trust = match (credential, &tls.ca_certificates) {
            (Some(name), _) => Trust::Credential(name.to_owned()),
            (None, Some(path)) => Trust::File(path.clone()),
            (None, None) => Trust::System,
        };
        let mut intent = intent(
            VerifiedNames {
                authority,
                any_of,
                source,
            },
            trust,
        );
        intent.crl.clone_from(&tls.ca_crl);
        Ok(Some(intent))
    }

    /// Returns the same with what the server is offered beside modern TLS.
    pub(crate) fn offered(self, legacy: Notes) -> Self {
        TlsIntent { legacy, ..self }
    }

    /// Whether hosts can share the intent, because each name in it follows from the request. What an old server needs
    /// is for its host alone.
    pub fn follows_the_request(&self) -> bool {
        self.sni == Sni::Authority
            && self.names.any_of.is_empty()
            && self.legacy == Notes::default()
    }

    /// Returns who is trusted and what is revoked, as a word that no other trust has: `system`,
    /// `insecureSkipVerify`, `file:PATH`, `credential:NAME`, and `;crl:PATH` behind it.
    pub fn trust_id(&self) -> String {
        let mut word = match &self.trust {
            Trust::System => "system".to_owned(),
            Trust::InsecureSkipVerify => "insecureSkipVerify".to_owned(),
            Trust::File(path) => format!("file:{}", Escaped(path)),
            Trust::Credential(name) => format!("credential:{}", Escaped(name)),
        };
        if let Some(crl) = &self.crl {
            word = format!("{word};crl:{}", Escaped(crl));
        }
        word
    }

    /// Returns the parts that do not follow from the request, as one word that no other intent has.
    pub(crate) fn common(&self) -> String {
        let mut common = match &self.identity {
            None => self.trust_id(),
            Some(identity @ Identity::Files { .. }) => {
                format!("{}|file:{identity}", self.trust_id())
            }
            Some(Identity::Credential(name)) => {
                format!("{}|credential:{}", self.trust_id(), Escaped(name))
            }
        };
        for (_, words) in self.legacy.written(false) {
            common = format!("{common}|legacy:{words}");
        }
        common
    }
}

/// A part of a word: the characters that separate parts are written as `%` and their code, so that no path can pose
/// as two.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'t>(pub &'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '%' | '|' | ';' | '~' => write!(f, "%{:02X}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TlsIntent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIntent")
            .field("mode", &self.mode)
            .field("sni", &self.sni)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Trust {
    /// Writes `system`, `insecureSkipVerify`, the file's path or the credential's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trust::System => "system",
            Trust::File(path) => path,
            Trust::Credential(name) => name,
            Trust::InsecureSkipVerify => "insecureSkipVerify",
        })
    }
}

impl fmt::Display for Identity {
    /// Writes the credential's name, or the two paths as Istio joins them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Files { certificate, key } => {
                write!(f, "{}~{}", Escaped(certificate), Escaped(key))
            }
            Identity::Credential(name) => f.write_str(name),
        }
    }
}

impl fmt::Debug for Trust {
    /// Leaves out where the file is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trust::System => "System",
            Trust::File(_) => "File(..)",
            Trust::Credential(_) => "Credential(..)",
            Trust::InsecureSkipVerify => "InsecureSkipVerify",
        })
    }
}

impl fmt::Debug for Identity {
    /// Leaves out where files are and what secrets are called.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Identity::Files { .. } => "Files(..)",
            Identity::Credential(_) => "Credential(..)",
        })
    }
}
