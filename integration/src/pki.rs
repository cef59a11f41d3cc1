//! A certification authority that lives as long as a test.

use std::{
    fmt,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, OtherNameValue, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::tls;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The serial number of the next certificate, so that no two of a process have the same.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

/// A throw-away certification authority with an ECDSA P-256 key, valid from a year ago for two years.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    serial: u64,
    /// What a server sends below its own certificate: this authority, and those above it but the root.
    intermediates: Vec<(CertificateDer<'static>, String)>,
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
        let serial = next_serial();
        let params = ca_params(common_name, serial);
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(params, new_key(Key::EcdsaP256)?)?,
            serial,
            intermediates: Vec::new(),
        })
    }

    /// Makes an authority that this one certifies. What it issues comes with its certificate, as a
    /// server should send it; [`Issued::alone`] leaves that out.
    ///
    /// # Errors
    ///
    /// When the key cannot be made.
    pub fn intermediate(&self, common_name: &str) -> Result<Self> {
        self.intermediate_with(common_name, None, Key::EcdsaP256)
    }

    /// Makes an authority that this one certifies, and that may not do everything.
    ///
    /// # Errors
    ///
    /// When the key cannot be made.
    pub fn limited(&self, common_name: &str, limit: Limit<'_>) -> Result<Self> {
        self.intermediate_with(common_name, Some(limit), Key::EcdsaP256)
    }

    fn intermediate_with(
        &self,
        common_name: &str,
        limit: Option<Limit<'_>>,
        key: Key,
    ) -> Result<Self> {
        let serial = next_serial();
        let mut params = ca_params(common_name, serial);
        let below = |name: &str| vec![GeneralSubtree::DnsName(name.to_owned())];
        match limit {
            None => {}
            Some(Limit::NoAuthority) => params.is_ca = IsCa::ExplicitNoCa,
            Some(Limit::ClientsOnly) => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
            Some(Limit::OnlyBelow(name)) => {
                params.name_constraints = Some(NameConstraints {
                    permitted_subtrees: below(name),
                    excluded_subtrees: Vec::new(),
                });
            }
            Some(Limit::NotBelow(name)) => {
                params.name_constraints = Some(NameConstraints {
                    permitted_subtrees: Vec::new(),
                    excluded_subtrees: below(name),
                });
            }
        }
        params.use_authority_key_identifier_extension = true;
        let issuer = CertifiedIssuer::signed_by(params, new_key(key)?, &self.issuer)?;
        let mut intermediates = vec![(issuer.der().clone(), issuer.pem())];
        intermediates.extend(self.intermediates.iter().cloned());
        Ok(Self {
            issuer,
            serial,
            intermediates,
        })
    }

    /// The authority's own certificate, as a trust store file holds it.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        self.issuer.der()
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
        let mut params = leaf.params()?;
        params.use_authority_key_identifier_extension = true;
        let key = new_key(leaf.key)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Issued::new(leaf, &params, &certificate, &key, &self.intermediates)
    }

    /// Issues a certificate that an authority below this one signs with MD5 and RSA, by the `openssl` command: `ring`
    /// signs with nothing that weak.
    ///
    /// # Errors
    ///
    /// As [`Ca::issue`], and when there is no `openssl`.
    pub fn issue_by_md5(&self, leaf: &Leaf) -> Result<Issued> {
        let authority = self.intermediate_with("weak", None, Key::Rsa(2048))?;
        let mut issued = authority.issue(leaf)?;
        let folder = tempfile::tempdir()?;
        let (_, key) = issued.write(folder.path(), "leaf")?;
        std::fs::write(folder.path().join("ca.crt"), authority.pem())?;
        std::fs::write(
            folder.path().join("ca.key"),
            authority.issuer.key().serialize_pem(),
        )?;
        let names: Vec<String> = leaf
            .names
            .iter()
            .map(|name| format!("DNS:{name}"))
            .collect();
        let names = format!("subjectAltName={}", names.join(","));
        std::fs::write(folder.path().join("names"), names)?;
        let openssl = |args: &[&str]| -> Result<()> {
            let mut command = Command::new("openssl");
            let command = command.args(args).current_dir(folder.path());
            let made = command.env_remove("OPENSSL_CONF").output();
            let made = made.context("cannot start `openssl`; type `make nginx`")?;
            let said = String::from_utf8_lossy(&made.stderr);
            ensure!(
                made.status.success(),
                "no certificate from `openssl`: {said}"
            );
            Ok(())
        };
        let key = key.display().to_string();
        openssl(&[
            "req", "-new", "-subj", "/CN=md5", "-key", &key, "-out", "leaf.csr",
        ])?;
        openssl(&[
            "x509",
            "-req",
            "-md5",
            "-days",
            "2",
            "-set_serial",
            "77",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-in",
            "leaf.csr",
            "-extfile",
            "names",
            "-out",
            "md5.crt",
        ])?;
        let weak = std::fs::read_to_string(folder.path().join("md5.crt"))?;
        if let Some(first) = issued.chain.first_mut() {
            *first = CertificateDer::from_pem_slice(weak.as_bytes())?;
        }
        issued.chain_pem = weak + &authority.pem();
        Ok(issued)
    }

    /// The serial number of the authority's own certificate.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// The list of certificates that this authority has revoked, by their serial numbers, as PEM.
    ///
    /// An [`Expired`](Validity::Expired) list should have been followed by another yesterday.
    ///
    /// # Errors
    ///
    /// When the list cannot be signed.
    pub fn crl(&self, revoked: &[u64], validity: Validity) -> Result<String> {
        let (this_update, next_update) = validity.window(SystemTime::now());
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: this_update.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: this_update.into(),
            next_update: next_update.into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }
}

/// Makes a certificate that its own key has signed.
///
/// # Errors
///
/// As [`Ca::issue`].
pub fn self_signed(leaf: &Leaf) -> Result<Issued> {
    let params = leaf.params()?;
    let key = new_key(leaf.key)?;
    let certificate = params.self_signed(&key)?;
    Issued::new(leaf, &params, &certificate, &key, &[])
}

/// What an authority below another may not do.
#[derive(Clone, Copy, Debug)]
pub enum Limit<'n> {
    /// Anything: its certificate says that it is no authority.
    NoAuthority,
    /// Certify anybody but clients.
    ClientsOnly,
    /// Certify DNS names that are not this one or below it.
    OnlyBelow(&'n str),
    /// Certify this DNS name and those below it.
    NotBelow(&'n str),
}

/// A subject alternative name by its type, which need not be the one that it reads like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A DNS name.
    Dns(String),
    /// A URI.
    Uri(String),
    /// An e-mail address.
    Email(String),
    /// An otherName of the type that Active Directory writes user names in.
    Other(String),
}

impl Name {
    fn san(&self) -> Result<SanType> {
        Ok(match self {
            Self::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            Self::Uri(name) => SanType::URI(name.as_str().try_into()?),
            Self::Email(name) => SanType::Rfc822Name(name.as_str().try_into()?),
            Self::Other(name) => {
                let kind = vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3];
                SanType::OtherName((kind, OtherNameValue::Utf8String(name.clone())))
            }
        })
    }
}

/// What a certificate should say.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Subject alternative names, DNS names (`*.example.com` too) or IP addresses. The first one is
    /// the common name as well, which no verifier should look at.
    pub names: Vec<String>,
    /// More of them, by type.
    pub typed: Vec<Name>,
    /// When the certificate is valid.
    pub validity: Validity,
    /// Which end of a connection may present it.
    pub usage: Usage,
    /// The common name, where it is not the first name.
    pub common_name: Option<String>,
    /// What kind of key it has.
    pub key: Key,
}

impl Leaf {
    /// A server's certificate that is valid now, with an ECDSA P-256 key.
    pub fn for_names<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self {
            names: names.into_iter().map(Into::into).collect(),
            typed: Vec::new(),
            validity: Validity::Valid,
            usage: Usage::Server,
            common_name: None,
            key: Key::EcdsaP256,
        }
    }

    /// A client's certificate, valid now, with a common name and no subject alternative name.
    pub fn client(common_name: &str) -> Self {
        Self {
            usage: Usage::Client,
            common_name: Some(common_name.to_owned()),
            ..Self::for_names([""; 0])
        }
    }

    /// The same certificate with one more name.
    #[must_use]
    pub fn and(mut self, name: Name) -> Self {
        self.typed.push(name);
        self
    }

    /// The same certificate with another kind of key.
    #[must_use]
    pub fn key(self, key: Key) -> Self {
        Self { key, ..self }
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

    fn params(&self) -> Result<CertificateParams> {
        let (not_before, not_after) = self.validity.window(SystemTime::now());
        let mut params = CertificateParams::new(self.names.clone())
            .with_context(|| format!("cannot certify the names {:?}", self.names))?;
        for name in &self.typed {
            params.subject_alt_names.push(name.san()?);
        }
        params.distinguished_name = match self.common_name.as_ref().or(self.names.first()) {
            Some(name) => common_name_only(name),
            None => rcgen::DistinguishedName::new(),
        };
        params.serial_number = Some(next_serial().into());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = match self.usage {
            Usage::Signing => vec![KeyUsagePurpose::KeyCertSign],
            Usage::OldServer => vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
            ],
            _ => vec![KeyUsagePurpose::DigitalSignature],
        };
        params.extended_key_usages = vec![match self.usage {
            Usage::Server | Usage::OldServer | Usage::Signing => {
                ExtendedKeyUsagePurpose::ServerAuth
            }
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Usage::Code => ExtendedKeyUsagePurpose::CodeSigning,
        }];
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        Ok(params)
    }
}

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// ECDSA on the curve P-256.
    EcdsaP256,
    /// ECDSA on the curve P-384.
    EcdsaP384,
    /// Ed25519.
    Ed25519,
    /// RSA with this many bits, made by the `openssl` command.
    Rsa(u16),
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

/// What a certificate is for: its extended key usage, and its key usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// `serverAuth`.
    Server,
    /// `serverAuth`, with a key that may also decrypt, as RSA key exchange wants it.
    OldServer,
    /// `clientAuth`.
    Client,
    /// `codeSigning`.
    Code,
    /// `serverAuth`, with a key that may sign certificates and nothing else.
    Signing,
}

/// A certificate with its key.
pub struct Issued {
    names: Vec<String>,
    serial: u64,
    chain: Vec<CertificateDer<'static>>,
    chain_pem: String,
    key: PrivateKeyDer<'static>,
    key_pem: String,
}

impl Issued {
    fn new(
        leaf: &Leaf,
        params: &CertificateParams,
        certificate: &rcgen::Certificate,
        key: &KeyPair,
        intermediates: &[(CertificateDer<'static>, String)],
    ) -> Result<Self> {
        let serial = params.serial_number.as_ref().context("no serial number")?;
        let serial = serial.to_bytes().into_iter();
        let mut chain = vec![certificate.der().clone()];
        let mut chain_pem = certificate.pem();
        for (der, pem) in intermediates {
            chain.push(der.clone());
            chain_pem.push_str(pem);
        }
        Ok(Self {
            names: leaf.names.clone(),
            serial: serial.fold(0, |sum, byte| (sum << 8) | u64::from(byte)),
            chain,
            chain_pem,
            key_pem: key.serialize_pem(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// The same certificate without those of the intermediate authorities.
    ///
    /// # Errors
    ///
    /// When there is no certificate, which [`Ca::issue`] rules out.
    pub fn alone(&self) -> Result<Self> {
        let end = "-----END CERTIFICATE-----";
        let (own, _) = self.chain_pem.split_once(end).context("no certificate")?;
        let mut alone = self.clone();
        alone.chain.truncate(1);
        alone.chain_pem = format!("{own}{end}\n");
        Ok(alone)
    }

    /// The serial number.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Writes chain and key to `NAME.crt` and `NAME.key` in a folder, and returns their paths.
    ///
    /// # Errors
    ///
    /// When one of them cannot be written.
    pub fn write(
        &self,
        folder: &Path,
        name: &str,
    ) -> Result<(std::path::PathBuf, std::path::PathBuf)> {
        let chain = folder.join(format!("{name}.crt"));
        let key = folder.join(format!("{name}.key"));
        std::fs::write(&chain, &self.chain_pem)?;
        std::fs::write(&key, &self.key_pem)?;
        Ok((chain, key))
    }

    /// The names that were asked for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The chain as a server sends it: the certificate, then the intermediate authorities, without
    /// the root.
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
            serial: self.serial,
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

fn ca_params(common_name: &str, serial: u64) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name_only(common_name);
    params.serial_number = Some(serial.into());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - 365 * DAY).into();
    params.not_after = (now + 365 * DAY).into();
    params
}

fn next_serial() -> u64 {
    NEXT_SERIAL.fetch_add(1, Ordering::Relaxed)
}

fn new_key(kind: Key) -> Result<KeyPair> {
    let algorithm = match kind {
        Key::EcdsaP256 => &PKCS_ECDSA_P256_SHA256,
        Key::EcdsaP384 => &PKCS_ECDSA_P384_SHA384,
        Key::Ed25519 => &PKCS_ED25519,
        Key::Rsa(bits) => return new_rsa_key(bits),
    };
    KeyPair::generate_for(algorithm).context("cannot make a key")
}

/// `ring` cannot make RSA keys.
fn new_rsa_key(bits: u16) -> Result<KeyPair> {
    let made = Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt"])
        .arg(format!("rsa_keygen_bits:{bits}"))
        .env_remove("OPENSSL_CONF")
        .output()
        .context("cannot start `openssl`; type `make nginx`")?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "no key from `openssl`: {said}");
    KeyPair::from_pem(&String::from_utf8(made.stdout)?).context("a key that rcgen does not take")
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
    fn an_intermediate_is_sent_unless_it_is_left_out() -> Result<()> {
        let root = Ca::new("root")?;
        let ca = root.intermediate("intermediate")?;
        let issued = ca.issue(&Leaf::for_names(["a.example"]))?;
        assert_eq!(issued.chain().len(), 2);
        assert_eq!(issued.chain().last(), Some(ca.certificate()));
        let alone = issued.alone()?;
        assert_eq!(alone.chain(), issued.chain().split_at(1).0);
        let lines = |pem: &str| pem.matches("BEGIN CERTIFICATE").count();
        assert_eq!(
            (lines(issued.chain_pem()), lines(alone.chain_pem())),
            (2, 1)
        );
        assert!(issued.chain_pem().starts_with(alone.chain_pem()));
        Ok(())
    }

    #[test]
    fn every_kind_of_key_can_be_used() -> Result<()> {
        let ca = Ca::new("test")?;
        for key in [Key::EcdsaP256, Key::EcdsaP384, Key::Ed25519, Key::Rsa(2048)] {
            let issued = ca.issue(&Leaf::client("client").key(key))?;
            issued.certified_key().with_context(|| format!("{key:?}"))?;
        }
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
