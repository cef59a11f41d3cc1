//! What TLS towards a server is to prove, and where each part of it comes from.

use std::fmt;

use crate::resource::{ClientTls, ServiceEntry, TlsMode};

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
}

/// Where the name in the ClientHello comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sni {
    /// The host of the request as it is sent upstream.
    Authority,
    /// The rule's `sni`.
    Fixed(String),
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
    /// The request's host.
    Authority,
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
    /// Anyone: `insecureSkipVerify`.
    InsecureSkipVerify,
}

impl TlsIntent {
    /// Settles what `tls` asks for when it calls a host of `entry`; `None` when it asks for no TLS.
    ///
    /// Names are verified always: the rule's `subjectAltNames`, or the entry's, or the `sni`, or the
    /// host. Istio verifies none where `sni` is set and no names are given; we verify the `sni`.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/cluster_tls.go`, `constructUpstreamTLS` and
    /// `setAutoSniAndAutoSanValidation`.
    pub fn of(tls: &ClientTls, entry: &ServiceEntry) -> Option<TlsIntent> {
        if tls.mode == TlsMode::Disable {
            return None;
        }
        let sni = tls.sni.clone().map_or(Sni::Authority, Sni::Fixed);
        if tls.insecure_skip_verify {
            let names = VerifiedNames {
                authority: false,
                any_of: Vec::new(),
                source: NameSource::Nowhere,
            };
            return Some(TlsIntent {
                mode: tls.mode,
                sni,
                names,
                trust: Trust::InsecureSkipVerify,
            });
        }
        let (any_of, source) = match (
            &tls.subject_alt_names[..],
            &entry.subject_alt_names[..],
            &sni,
        ) {
            ([], [], Sni::Authority) => (Vec::new(), NameSource::Authority),
            ([], [], Sni::Fixed(name)) => (vec![name.clone()], NameSource::Sni),
            ([], names, _) => (names.to_vec(), NameSource::ServiceEntry),
            (names, _, _) => (names.to_vec(), NameSource::DestinationRule),
        };
        // As in Istio, the entry's names come on top of the host's, the rule's names in its place.
        let authority = sni == Sni::Authority && tls.subject_alt_names.is_empty();
        let trust = tls
            .ca_certificates
            .clone()
            .map_or(Trust::System, Trust::File);
        Some(TlsIntent {
            mode: tls.mode,
            sni,
            names: VerifiedNames {
                authority,
                any_of,
                source,
            },
            trust,
        })
    }

    /// Says whether hosts can share the intent, because each name in it follows from the request.
    pub fn follows_the_request(&self) -> bool {
        self.sni == Sni::Authority && self.names.any_of.is_empty()
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

impl Trust {
    /// Returns `system`, `insecureSkipVerify`, or the file's path.
    pub fn as_str(&self) -> &str {
        match self {
            Trust::System => "system",
            Trust::File(path) => path,
            Trust::InsecureSkipVerify => "insecureSkipVerify",
        }
    }
}

impl fmt::Debug for Trust {
    /// Leaves out where the file is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trust::System => "System",
            Trust::File(_) => "File(..)",
            Trust::InsecureSkipVerify => "InsecureSkipVerify",
        })
    }
}
