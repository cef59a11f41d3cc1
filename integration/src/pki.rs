//! A certification authority that lives as long as a test.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};

use crate::tls;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A throw-away certification authority with an ECDSA P-256 key, valid from a year ago for two years.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    /// Makes an authority with a new key.
    ///
    /// Two authorities of one name are still two authorities: neither verifies what the other issued.
    ///
    /// # Errors
    ///
    /// When the key cannot be made.
    pub fn new(common_name: &str) -> Result<Self> {
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name_only(common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - 365 * DAY).into();
        params.not_after = (now + 365 * DAY).into();
        let issuer = CertifiedIssuer::self_signed(params, new_key()?)?;
        Ok(Self { issuer })
    }

    /// The authority's own certificate, as a trust store file holds it.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Writes [`Ca::pem`] to a file, for `SSL_CERT_FILE` and for `caCertificates`.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_pem(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.pem())
            .with_context(|| format!("cannot write the CA to `{}`", path.display()))
    }

    /// Issues a certificate with a key of its own.
    ///
    /// # Errors
    ///
    /// When a name is neither an IP address nor ASCII, or the key cannot be made.
    pub fn issue(&self, leaf: &Leaf) -> Result<Issued> {
        let (not_before, not_after) = leaf.validity.window(SystemTime::now());
        let mut params = CertificateParams::new(leaf.names.clone())
            .with_context(|| format!("cannot certify the names {:?}", leaf.names))?;
        params.distinguished_name = match leaf.names.first() {
            Some(name) => common_name_only(name),
            None => rcgen::DistinguishedName::new(),
        };
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match leaf.usage {
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        params.not_before = not_before.into();
        params.not_after = not_after.into();

        let key = new_key()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            names: leaf.names.clone(),
            chain_pem: certificate.pem(),
            chain: vec![certificate.into()],
            key_pem: key.serialize_pem(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }
}

/// What a certificate should say.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Subject alternative names, DNS names (`*.example.com` too) or IP addresses. The first one is
    /// the common name as well, which no verifier should look at.
    pub names: Vec<String>,
    /// When the certificate is valid.
    pub validity: Validity,
    /// Which end of a connection may present it.
    pub usage: Usage,
}

impl Leaf {
    /// A server's certificate that is valid now.
    pub fn for_names<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self {
            names: names.into_iter().map(Into::into).collect(),
            validity: Validity::Valid,
            usage: Usage::Server,
        }
    }

    /// The same certificate with another time of validity.
    #[must_use]
    pub fn validity(self, validity: Validity) -> Self {
        Self { validity, ..self }
    }

    /// The same certificate for another end of the connection.
    #[must_use]
    pub fn usage(self, usage: Usage) -> Self {
        Self { usage, ..self }
    }
}

/// When a certificate is valid. Each edge is at least a day away, so that no clock is too wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// From yesterday, for a month.
    Valid,
    /// It was valid for a month and ended yesterday.
    Expired,
    /// It begins tomorrow.
    NotYetValid,
}

impl Validity {
    fn window(self, now: SystemTime) -> (SystemTime, SystemTime) {
        match self {
            Self::Valid => (now - DAY, now + 30 * DAY),
            Self::Expired => (now - 31 * DAY, now - DAY),
            Self::NotYetValid => (now + DAY, now + 31 * DAY),
        }
    }
}

/// The extended key usage of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// `serverAuth`.
    Server,
    /// `clientAuth`.
    Client,
}

/// A certificate with its key.
pub struct Issued {
    names: Vec<String>,
    chain: Vec<CertificateDer<'static>>,
    chain_pem: String,
    key: PrivateKeyDer<'static>,
    key_pem: String,
}

impl Issued {
    /// The names that were asked for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The chain as a server sends it: the certificate without the authority that issued it.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key, PKCS #8.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// The chain as PEM.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The private key as PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Chain and key in the form that rustls signs with.
    ///
    /// # Errors
    ///
    /// When the key does not belong to the chain, which [`Ca::issue`] rules out.
    pub fn certified_key(&self) -> Result<Arc<CertifiedKey>> {
        let key =
            CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &tls::provider())?;
        Ok(Arc::new(key))
    }
}

impl Clone for Issued {
    fn clone(&self) -> Self {
        Self {
            names: self.names.clone(),
            chain: self.chain.clone(),
            chain_pem: self.chain_pem.clone(),
            key: self.key.clone_key(),
            key_pem: self.key_pem.clone(),
        }
    }
}

/// Leaves the key out.
impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")
}

fn common_name_only(name: &str) -> rcgen::DistinguishedName {
    let mut distinguished_name = rcgen::DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_key() -> Result<()> {
        let issued = Ca::new("test")?.issue(&Leaf::for_names(["a.example"]))?;
        let shown = format!("{issued:?}");
        assert!(shown.contains("a.example"), "{shown}");
        assert!(!shown.contains("PRIVATE KEY"), "{shown}");
        Ok(())
    }

    #[test]
    fn only_a_valid_certificate_spans_now() {
        let now = SystemTime::now();
        let spans = |validity: Validity| {
            let (from, to) = validity.window(now);
            from < now && now < to
        };
        assert!(spans(Validity::Valid));
        assert!(!spans(Validity::Expired));
        assert!(!spans(Validity::NotYetValid));
    }
}
