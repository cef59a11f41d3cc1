//! PEM as Envoy reads it: certificates, keys and revocation lists, each as the DER in it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{Error, PemObject as _, SectionKind};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
use zeroize::Zeroizing;

/// What is wrong with a text, in words that stand behind its name: `PATH is empty`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) what: String,
    pub(crate) hint: Option<String>,
}

impl Flaw {
    pub(crate) fn new(what: impl Into<String>) -> Flaw {
        Flaw {
            what: what.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Flaw {
        Flaw {
            hint: Some(hint.into()),
            ..self
        }
    }
}

/// The DER in a PEM section.
pub(crate) type Der = Vec<u8>;

/// A private key. It is wiped when it is dropped; copies that parsers made of its text on the way are not.
pub(crate) struct PrivateKey {
    pub(crate) kind: SectionKind,
    pub(crate) der: Zeroizing<Der>,
}

/// Reads the certificates of a text, in their order.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<Der>, Flaw> {
    let sections = sections(text)?;
    let found: Vec<Der> = sections
        .into_iter()
        .filter(|(kind, _)| *kind == SectionKind::Certificate)
        .map(|(_, der)| der.to_vec())
        .collect();
    if found.is_empty() {
        return Err(Flaw::new("holds no certificate")
            .hint("it must have a section `-----BEGIN CERTIFICATE-----`"));
    }
    for (at, der) in found.iter().enumerate() {
        match X509Certificate::from_der(der) {
            Ok(([], _)) => {}
            _ => {
                return Err(Flaw::new(format!(
                    "has a section CERTIFICATE, number {}, that is no certificate",
                    at + 1
                )));
            }
        }
    }
    Ok(found)
}

/// Reads the revocation lists of a text, in their order; there may be none.
pub(crate) fn revocation_lists(text: &[u8]) -> Result<Vec<Der>, Flaw> {
    let sections = sections(text)?;
    let found: Vec<Der> = sections
        .into_iter()
        .filter(|(kind, _)| *kind == SectionKind::Crl)
        .map(|(_, der)| der.to_vec())
        .collect();
    for (at, der) in found.iter().enumerate() {
        match CertificateRevocationList::from_der(der) {
            Ok(([], _)) => {}
            _ => {
                return Err(Flaw::new(format!(
                    "has a section X509 CRL, number {}, that is no revocation list",
                    at + 1
                )));
            }
        }
    }
    Ok(found)
}

/// Reads the first private key of a text.
pub(crate) fn private_key(text: &[u8]) -> Result<PrivateKey, Flaw> {
    let is_key = |kind: SectionKind| {
        matches!(
            kind,
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey
        )
    };
    if is_encrypted(text) {
        return Err(
            Flaw::new("holds an encrypted key, and Envoy has no password for it").hint(
                "decrypt it: `openssl pkey -in ENCRYPTED -out KEY`, and let nobody else read KEY",
            ),
        );
    }
    let found = sections(text)?.into_iter().find(|(kind, _)| is_key(*kind));
    found
        .map(|(kind, der)| PrivateKey { kind, der })
        .ok_or_else(|| {
            Flaw::new("holds no private key")
                .hint("it must have a section `-----BEGIN PRIVATE KEY-----`")
        })
}

/// Whether the first key of a text needs a password.
fn is_encrypted(text: &[u8]) -> bool {
    let Some(label) = labels(text).find(|label| label.ends_with("PRIVATE KEY")) else {
        return false;
    };
    label == "ENCRYPTED PRIVATE KEY"
        || lines(text).any(|line| line.starts_with(b"Proc-Type:") && contains(line, b"ENCRYPTED"))
}

/// Writes DER as a PEM section.
pub(crate) fn write(label: &str, der: &[u8], out: &mut Vec<u8>) {
    let body = Zeroizing::new(STANDARD.encode(der));
    out.extend_from_slice(format!("-----BEGIN {label}-----\n").as_bytes());
    for line in body.as_bytes().chunks(64) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.extend_from_slice(format!("-----END {label}-----\n").as_bytes());
}

/// Returns the label of a key's section.
pub(crate) fn key_label(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::RsaPrivateKey => "RSA PRIVATE KEY",
        SectionKind::EcPrivateKey => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    }
}

fn sections(text: &[u8]) -> Result<Vec<(SectionKind, Zeroizing<Der>)>, Flaw> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(Flaw::new("is empty"));
    }
    // DER begins with a SEQUENCE whose length takes two or three bytes.
    if matches!(text, [0x30, 0x81..=0x83, ..]) {
        return Err(Flaw::new("is binary (DER or PKCS#12), and Envoy reads PEM here").hint(
            "convert it with `openssl x509 -inform der`, `openssl pkey -inform der`, `openssl crl -inform der` or `openssl pkcs12`",
        ));
    }
    let mut known = 0;
    for label in labels(text) {
        match label.as_str() {
            "TRUSTED CERTIFICATE" | "X509 CERTIFICATE" => {
                return Err(Flaw::new(format!("has a section `{label}`"))
                    .hint("rewrite it with `openssl x509`: the section is called CERTIFICATE"));
            }
            "CERTIFICATE" | "X509 CRL" | "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => {
                known += 1;
            }
            _ => {}
        }
    }
    // Two files that were joined without a line break between them.
    let is_whole = |rest: &[u8]| {
        let label = rest.trim_ascii_end().strip_suffix(b"-----");
        label.is_some_and(|label| !contains(label, b"-----"))
    };
    if lines(text)
        .filter_map(|line| line.strip_prefix(b"-----END "))
        .any(|rest| !is_whole(rest))
    {
        return Err(
            Flaw::new("is broken PEM: something follows in the line of `-----END`")
                .hint("put a line break between what was joined"),
        );
    }
    let mut found = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
        let (kind, der) = section.map_err(|error| broken(&error))?;
        let der = Zeroizing::new(der);
        if matches!(
            kind,
            SectionKind::Certificate
                | SectionKind::Crl
                | SectionKind::PrivateKey
                | SectionKind::RsaPrivateKey
                | SectionKind::EcPrivateKey
        ) {
            found.push((kind, der));
        }
    }
    if found.len() != known {
        return Err(
            Flaw::new("is broken PEM: a section begins before the last one has ended")
                .hint("is it whole, and does each file that was joined end with a line break?"),
        );
    }
    if found.is_empty() && known == 0 && labels(text).next().is_none() {
        let flaw = Flaw::new("is not PEM");
        return Err(if text.starts_with(b"\xef\xbb\xbf") {
            flaw.hint("save it as UTF-8 without a byte order mark")
        } else {
            flaw.hint(
                "a section begins with a line like `-----BEGIN CERTIFICATE-----`, not indented",
            )
        });
    }
    Ok(found)
}

/// Returns what is wrong with PEM, and nothing of what is in it.
fn broken(error: &Error) -> Flaw {
    let what = match error {
        Error::MissingSectionEnd { .. } => "is broken PEM: the last section does not end",
        Error::IllegalSectionStart { .. } => {
            "is broken PEM: a line `-----BEGIN` does not end with `-----`"
        }
        Error::Base64Decode(_) => "is broken PEM: a section is not base64",
        _ => "is broken PEM",
    };
    Flaw::new(what).hint("is it whole?")
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| matches!(byte, b'\n' | b'\r'))
}

/// Returns the labels of the lines at which sections begin.
fn labels(text: &[u8]) -> impl Iterator<Item = String> {
    lines(text)
        .filter_map(|line| line.strip_prefix(b"-----BEGIN "))
        .filter_map(|rest| rest.trim_ascii_end().strip_suffix(b"-----"))
        .map(|label| String::from_utf8_lossy(label.get(..40).unwrap_or(label)).into_owned())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
