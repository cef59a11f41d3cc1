//! Which files make up a secret, for an Envoy that reads them itself.

use std::path::PathBuf;

use egress_policy::{Identity, Trust};

use super::part::{Missing, Part, PartOrigin, Parts};
use super::store::Store;
use super::trust_store::trust_store;
use egress_render::xds::{SecretFiles, SecretRequest};

impl Store {
    /// Returns the files that a need is read from; `None` when it stands among the rules. Files that a rule
    /// names need not be there: Envoy may run elsewhere.
    ///
    /// # Errors
    /// When a credential is in no folder, or is not whole.
    pub fn files(&self, need: &SecretRequest) -> Result<Option<SecretFiles>, Missing> {
        Ok(match need {
            SecretRequest::Certificate(Identity::Files { certificate, key }) => {
                Some(SecretFiles::Certificate {
                    chain: certificate.into(),
                    key: key.into(),
                })
            }
            SecretRequest::Certificate(Identity::Credential(name)) => match self.pair(name)? {
                Parts::Pair { certificate, key } => certificate
                    .path()
                    .zip(key.path())
                    .map(|(chain, key)| SecretFiles::Certificate { chain, key }),
                Parts::Trust { .. } => None,
            },
            SecretRequest::Validation { trust, crl } => {
                let own = crl.as_ref().map(PathBuf::from);
                match trust {
                    Trust::File(path) => Some(SecretFiles::Validation {
                        ca: path.into(),
                        crl: own,
                    }),
                    Trust::System | Trust::InsecureSkipVerify => {
                        trust_store().ok().map(|path| SecretFiles::Validation {
                            ca: path.into(),
                            crl: own,
                        })
                    }
                    Trust::Credential(name) => match self.trust(name)? {
                        Parts::Trust { ca, crl } => ca.path().map(|ca| SecretFiles::Validation {
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
