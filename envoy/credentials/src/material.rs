//! What Envoy is given of a secret.

use std::fmt;

use zeroize::Zeroizing;

use super::judge::Decoded;
use super::pair;
use super::pem::{self, Der};

/// What Envoy is given: PEM that it takes.
///
/// It is written anew from what was read, so that nothing else that stood in a file, such as a key beside its
/// certificate, gets to where Envoy shows its configuration.
#[derive(Clone, PartialEq, Eq)]
pub enum Material {
    /// A certificate to show.
    Certificate {
        /// The certificate, then those that lead to its authority.
        chain: Vec<u8>,
        /// Its key.
        key: Key,
    },
    /// Who is trusted.
    Validation {
        /// The authorities.
        ca: Vec<u8>,
        /// What they revoked.
        crl: Option<Vec<u8>>,
    },
}

/// A private key as PEM. It is not shown by `Debug`, and wiped when it is dropped; copies that parsers made of its
/// text on the way are not.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// Returns the PEM.
    pub fn pem(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl fmt::Debug for Material {
    /// Returns which of the two it is, and how long its parts are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Material::Certificate { chain, key } => f
                .debug_struct("Certificate")
                .field("chain_bytes", &chain.len())
                .field("key", key)
                .finish(),
            Material::Validation { ca, crl } => f
                .debug_struct("Validation")
                .field("ca_bytes", &ca.len())
                .field("crl_bytes", &crl.as_ref().map(Vec::len))
                .finish(),
        }
    }
}

impl From<Decoded> for Material {
    fn from(judged: Decoded) -> Self {
        match judged {
            Decoded::Pair { chain, key } => {
                let mut pem = Zeroizing::new(Vec::with_capacity(key.der.len() * 2 + 100));
                pem::write(pem::key_label(key.kind), &pair::for_envoy(&key), &mut pem);
                Material::Certificate {
                    chain: written("CERTIFICATE", &chain),
                    key: Key(pem),
                }
            }
            Decoded::Trust {
                authorities,
                revoked,
            } => Material::Validation {
                ca: written("CERTIFICATE", &authorities),
                crl: (!revoked.is_empty()).then(|| written("X509 CRL", &revoked)),
            },
        }
    }
}

fn written(label: &str, all: &[Der]) -> Vec<u8> {
    let mut out = Vec::new();
    for der in all {
        pem::write(label, der, &mut out);
    }
    out
}
