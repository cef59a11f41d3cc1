//! Which files a need is made of, for an Envoy that reads them itself.

use std::path::{Path, PathBuf};

use egress_policy::{Identity, Trust};

use super::{Holder, Missing, Need, Store, names_of};
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
    /// When a credential is in no folder.
    pub fn files(&self, need: &Need) -> Result<Option<Files>, Missing> {
        Ok(match need {
            Need::Certificate(Identity::Files { certificate, key }) => Some(Files::Certificate {
                chain: certificate.into(),
                key: key.into(),
            }),
            Need::Certificate(Identity::Credential(name)) => {
                self.folder(name, true)?.map(|folder| {
                    let (chain, key) = either(&folder, [("cert", "key"), ("tls.crt", "tls.key")]);
                    Files::Certificate { chain, key }
                })
            }
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
                    Trust::Credential(name) => self.folder(name, false)?.map(|folder| {
                        let (ca, crl) = either(&folder, [("cacert", "crl"), ("ca.crt", "ca.crl")]);
                        let crl = own.or(Some(crl).filter(|path| fs::is_there(path)));
                        Files::Validation { ca, crl }
                    }),
                }
            }
        })
    }

    /// Finds the folder of a credential; `None` when a document holds it.
    fn folder(&self, credential: &str, is_pair: bool) -> Result<Option<PathBuf>, Missing> {
        let reference = self.reference(credential)?;
        for name in names_of(&reference, is_pair) {
            match self.holder(&reference, &name)? {
                Some(Holder::Folder(folder)) => return Ok(Some(folder)),
                Some(Holder::Document(_)) => return Ok(None),
                None => {}
            }
        }
        Err(self.nowhere(&reference))
    }
}

/// Returns the pair of files whose first one is there, or the last pair.
fn either(folder: &Path, pairs: [(&str, &str); 2]) -> (PathBuf, PathBuf) {
    let [generic, usual] = pairs;
    let (first, second) = match fs::is_there(&folder.join(generic.0)) {
        true => generic,
        false => usual,
    };
    (folder.join(first), folder.join(second))
}
