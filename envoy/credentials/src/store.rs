//! Where credentials come from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use egress_policy::{Identity, Trust};

use super::file::{folders_on_the_way, is_there};
use super::holder::{Holder, named};
use super::judge::judge;
use super::material::Material;
use super::part::{Missing, Parts, Role, file};
use super::pem::Flaw;
use super::trust_store::trust_store;
use egress_render::xds::SecretRequest;
use egress_rules::{Documents, PAIR_KEYS, Reference, TRUST_KEYS, names_of};

/// The pause between two looks at a file that was just written.
const PAUSE: Duration = Duration::from_millis(5);
/// How often something is read until it stays as it is.
const ATTEMPTS: usize = 10;

/// Where credentials come from.
#[derive(Clone, Default)]
pub struct Store {
    folders: Vec<PathBuf>,
    pub(super) documents: Documents,
    pub(super) namespace: String,
}

impl Store {
    /// Returns a store of folders, in which each credential has a folder of its name, and of the Secrets and
    /// ConfigMaps among the rules, for a proxy of `namespace`.
    pub fn new(folders: Vec<PathBuf>, documents: Documents, namespace: &str) -> Store {
        Store {
            folders,
            documents,
            namespace: namespace.to_owned(),
        }
    }

    /// Whether there is no place in which a `credentialName` could be looked for.
    pub fn is_empty(&self) -> bool {
        self.folders.is_empty()
            && self.documents.secrets.is_empty()
            && self.documents.config_maps.is_empty()
    }

    /// Reads what Envoy is to be given, and makes sure that Envoy takes it: PEM, not empty, the key belongs to
    /// the first certificate and is of a kind and size that Envoy accepts.
    ///
    /// What is being replaced while it is read, is read again: it may sleep for some milliseconds.
    ///
    /// # Errors
    /// When it is not there, or not such that Envoy would take it; then what Envoy has should stay.
    pub fn load(&self, need: &SecretRequest) -> Result<Material, Missing> {
        judge(&self.read(need)?).map(Material::from)
    }

    /// Returns the folders to watch, so that no change of what a need is made of goes unseen: those of the
    /// files, and of each symbolic link on the way to them. Where something is not there yet, the nearest
    /// folder above it that is. They are absolute, exist, and each stands there once.
    pub fn watched(&self, need: &SecretRequest) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for path in self.paths(need) {
            found.extend(folders_on_the_way(&path));
        }
        found.sort();
        found.dedup();
        found
    }

    /// Returns all files that a need may be made of, there or not.
    fn paths(&self, need: &SecretRequest) -> Vec<PathBuf> {
        let (credential, is_pair) = match need {
            SecretRequest::Certificate(Identity::Files { certificate, key }) => {
                return vec![certificate.into(), key.into()];
            }
            SecretRequest::Certificate(Identity::Credential(name)) => (Some(name), true),
            SecretRequest::Validation { trust, .. } => match trust {
                Trust::Credential(name) => (Some(name), false),
                _ => (None, false),
            },
        };
        let mut found: Vec<PathBuf> = Vec::new();
        if let SecretRequest::Validation { trust, crl } = need {
            match trust {
                Trust::File(path) => found.push(path.into()),
                Trust::System => found.extend(trust_store().ok().map(PathBuf::from)),
                _ => {}
            }
            found.extend(crl.as_ref().map(PathBuf::from));
        }
        let Some(Ok(reference)) =
            credential.map(|credential| Reference::parse(credential, &self.namespace))
        else {
            return found;
        };
        let wanted: &[&str] = if is_pair { &PAIR_KEYS } else { &TRUST_KEYS };
        for name in names_of(&reference, is_pair) {
            for folder in self.folders_of(&reference, &name) {
                // The folder too: it may be a link, or not there yet.
                found.push(folder.clone());
                found.extend(wanted.iter().map(|key| folder.join(key)));
            }
        }
        found
    }

    /// Reads the texts of a need, until they stay as they are.
    pub(super) fn read(&self, need: &SecretRequest) -> Result<Parts, Missing> {
        let mut before = self.read_once(need);
        for _ in 0..ATTEMPTS {
            if before.as_ref().is_ok_and(Parts::is_fresh) {
                thread::sleep(PAUSE);
            }
            let now = self.read_once(need);
            if now == before {
                return now;
            }
            before = now;
        }
        before
    }

    fn read_once(&self, need: &SecretRequest) -> Result<Parts, Missing> {
        match need {
            SecretRequest::Certificate(Identity::Files { certificate, key }) => Ok(Parts::Pair {
                certificate: file(Path::new(certificate), Role::Certificate)?,
                key: file(Path::new(key), Role::Key)?,
            }),
            SecretRequest::Certificate(Identity::Credential(name)) => self.pair(name),
            SecretRequest::Validation { trust, crl } => {
                let mut parts = match trust {
                    Trust::Credential(name) => self.trust(name)?,
                    Trust::File(path) => Parts::Trust {
                        ca: file(Path::new(path), Role::Authorities)?,
                        crl: None,
                    },
                    Trust::System | Trust::InsecureSkipVerify => {
                        let path = trust_store().map_err(|error| Missing {
                            what: error.to_string(),
                            hint: None,
                            at: None,
                            absent: false,
                            role: Role::Whole,
                        })?;
                        Parts::Trust {
                            ca: file(Path::new(&path), Role::Authorities)?,
                            crl: None,
                        }
                    }
                };
                if let (Parts::Trust { crl, .. }, Some(path)) = (&mut parts, crl) {
                    *crl = Some(file(Path::new(path), Role::Crl)?);
                }
                Ok(parts)
            }
        }
    }

    /// Reads a credential's certificate and key.
    ///
    /// Source: istio/istio `pilot/pkg/credentials/kube/secrets.go`, `ExtractCertInfo`.
    pub(super) fn pair(&self, credential: &str) -> Result<Parts, Missing> {
        let reference = self.reference(credential)?;
        if let Reference::ConfigMap { .. } = reference {
            return Err(Missing::new(
                format!("credential `{credential}` is a ConfigMap, which holds no key"),
                "give a Secret, or mode SIMPLE",
            ));
        }
        let mut names = names_of(&reference, true).into_iter();
        let name = names.next().unwrap_or_default();
        let Some(holder) = self.holder(&reference, &name)? else {
            return Err(self.nowhere(&reference));
        };
        let mut empty = None;
        let mut half = None;
        for (certificate, key) in [("cert", "key"), ("tls.crt", "tls.key")] {
            let found = (
                holder.part(certificate, Role::Certificate)?,
                holder.part(key, Role::Key)?,
            );
            match found {
                (Some(certificate), Some(key)) => {
                    let hollow = [&certificate, &key]
                        .into_iter()
                        .find(|part| part.is_empty());
                    let hollow = hollow.map(|part| part.missing(Flaw::new("is empty")));
                    if hollow.is_none() {
                        return Ok(Parts::Pair { certificate, key });
                    }
                    empty = empty.or(hollow);
                }
                (Some(_), None) => half = half.or(Some((certificate, key))),
                (None, Some(_)) => half = half.or(Some((key, certificate))),
                (None, None) => {}
            }
        }
        Err(match (empty, half) {
            (Some(missing), _) => missing,
            (None, Some((found, lacking))) => holder.lacks(
                &format!("has `{found}` and no `{lacking}`"),
                &format!("add `{lacking}`"),
            ),
            (None, None) => holder.lacks(
                "has neither `tls.crt` and `tls.key` nor `cert` and `key`",
                "mode MUTUAL shows a certificate: add both, or use mode SIMPLE",
            ),
        })
    }

    /// Reads a credential's authorities and revocation list.
    ///
    /// Source: istio/istio `pilot/pkg/credentials/kube/secrets.go`, `GetCaCert` and `ExtractRoot`.
    pub(super) fn trust(&self, credential: &str) -> Result<Parts, Missing> {
        let reference = self.reference(credential)?;
        for name in names_of(&reference, false) {
            let Some(holder) = self.holder(&reference, &name)? else {
                continue;
            };
            let mut empty = None;
            for (ca, crl) in [("cacert", "crl"), ("ca.crt", "ca.crl")] {
                let Some(ca) = holder.part(ca, Role::Authorities)? else {
                    continue;
                };
                if ca.is_empty() {
                    empty = empty.or_else(|| Some(ca.missing(Flaw::new("is empty"))));
                    continue;
                }
                // An empty list stands for none, as in Istio.
                let list = holder.part(crl, Role::Crl)?.filter(|crl| !crl.is_empty());
                let other = if crl == "crl" { "ca.crl" } else { "crl" };
                if list.is_none()
                    && holder
                        .part(other, Role::Crl)?
                        .is_some_and(|crl| !crl.is_empty())
                {
                    // Nobody would be revoked, and somebody meant it.
                    return Err(holder.lacks(
                        &format!("has a revocation list `{other}`, which does not go with the authorities there"),
                        &format!("call it `{crl}`"),
                    ));
                }
                return Ok(Parts::Trust { ca, crl: list });
            }
            return Err(empty.unwrap_or_else(|| {
                holder.lacks(
                    "has neither `ca.crt` nor `cacert`",
                    "the server is verified by it: add the authority that signed the server's certificate",
                )
            }));
        }
        Err(self.nowhere(&reference))
    }

    fn reference(&self, credential: &str) -> Result<Reference, Missing> {
        Reference::parse(credential, &self.namespace)
            .map_err(|error| Missing::new(format!("credential {error}"), error.hint()))
    }

    /// Finds what holds a name: one folder or one document. More than one is a mistake, for which of them is
    /// meant would depend on the order of arguments.
    fn holder(&self, reference: &Reference, name: &str) -> Result<Option<Holder<'_>>, Missing> {
        let mut found: Vec<Holder<'_>> = match reference {
            Reference::Secret(_) => named(&self.documents.secrets, &self.namespace, name).collect(),
            Reference::ConfigMap { namespace, .. } => {
                named(&self.documents.config_maps, namespace, name).collect()
            }
        };
        let folders = self.folders_of(reference, name);
        found.extend(
            folders
                .into_iter()
                .filter(|folder| is_there(folder))
                .map(Holder::Folder),
        );
        if let Some(Holder::Folder(path)) = found
            .iter()
            .find(|holder| matches!(holder, Holder::Folder(path) if !path.is_dir()))
        {
            return Err(Missing::new(
                format!("`{}` is not a folder", path.display()),
                "a credential is a folder with `tls.crt`, `tls.key` and `ca.crt` in it",
            ));
        }
        if let [first, second, ..] = &found[..] {
            return Err(Missing::new(
                format!(
                    "credential `{name}` is given twice: {} and {}",
                    first.described(),
                    second.described()
                ),
                "remove one of the two",
            ));
        }
        Ok(found.pop())
    }

    /// Returns the folders that a name may have, there or not.
    fn folders_of(&self, reference: &Reference, name: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for folder in &self.folders {
            if let Reference::ConfigMap { namespace, .. } = reference {
                found.push(folder.join(namespace).join(name));
            }
            found.push(folder.join(name));
        }
        found
    }

    /// Reports that a credential is nowhere, and where it was looked for.
    fn nowhere(&self, reference: &Reference) -> Missing {
        let (kind, namespace, name, all) = match reference {
            Reference::Secret(name) => ("Secret", &self.namespace, name, &self.documents.secrets),
            Reference::ConfigMap { namespace, name } => {
                ("ConfigMap", namespace, name, &self.documents.config_maps)
            }
        };
        let mut places = vec![format!(
            "no {kind} {namespace}/{name} stands among the rules"
        )];
        for folder in &self.folders {
            places.push(format!("no folder `{}`", folder.join(name).display()));
        }
        let elsewhere = all.iter().find(|elsewhere| elsewhere.name == *name);
        let hint = match elsewhere {
            Some(named) => format!(
                "{} is in another namespace than the proxy; copy it to `{namespace}`, or give `--namespace {}`",
                named.id(),
                named.namespace
            ),
            None if self.folders.is_empty() => format!(
                "give `--credentials DIR`, with the folder `{name}` in DIR, or the {kind} in a file with `-f`"
            ),
            None => format!("make the folder, or give the {kind} in a file with `-f`"),
        };
        Missing {
            absent: true,
            ..Missing::new(
                format!("credential `{name}` is missing: {}", places.join(", ")),
                hint,
            )
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("folders", &self.folders.len())
            .field("documents", &self.documents)
            .field("namespace", &self.namespace)
            .finish()
    }
}
