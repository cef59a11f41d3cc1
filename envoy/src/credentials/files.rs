//! Which files a need is made of, for an Envoy that reads them itself.

use std::path::PathBuf;

use egress_policy::{Identity, Trust};

use super::{Missing, Need, Part, PartOrigin, Parts, Store};
use crate::fs;

/// The files of a need. Keys stay in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
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

impl Store {
    /// Returns the files that a need is read from; `None` when it stands among the rules. Files that a rule
    /// names need not be there: Envoy may run elsewhere.
    ///
    /// # Errors
    /// When a credential is in no folder, or is not whole.
    pub fn files(&self, need: &Need) -> Result<Option<Files>, Missing> {
        Ok(match need {
            Need::Certificate(Identity::Files { certificate, key }) => Some(Files::Certificate {
                chain: certificate.into(),
                key: key.into(),
            }),
            Need::Certificate(Identity::Credential(name)) => match self.pair(name)? {
                Parts::Pair { certificate, key } => certificate
                    .path()
                    .zip(key.path())
                    .map(|(chain, key)| Files::Certificate { chain, key }),
                Parts::Trust { .. } => None,
            },
            Need::Validation { trust, crl } => {
                let own = crl.as_ref().map(PathBuf::from);
                match trust {
                    Trust::File(path) => Some(Files::Validation {
                        ca: path.into(),
                        crl: own,
                    }),
                    Trust::System | Trust::InsecureSkipVerify => {
                        fs::trust_store().ok().map(|path| Files::Validation {
                            ca: path.into(),
                            crl: own,
                        })
                    }
                    Trust::Credential(name) => match self.trust(name)? {
                        Parts::Trust { ca, crl } => ca.path().map(|ca| Files::Validation {
                            ca,
                            crl: own.or(crl.and_then(|crl| crl.path())),
                        }),
                        Parts::Pair { .. } => None,
                    },
                }
            }
        })
    }
}

impl Part {
    /// Returns the file that it stood in; `None` when it stood among the rules.
    fn path(&self) -> Option<PathBuf> {
        match &self.origin {
            PartOrigin::File(_, path) => Some(path.clone()),
            PartOrigin::Document(_) => None,
        }
    }
}
