//! Certificates, keys and revocation lists: where they come from, and whether Envoy would take them.
//!
//! ```text
//! PolicyTable ──SecretRequest::of──► SecretRequest ──Store::load──► Material, or what is Missing
//! ```
//!
//! A [`SecretRequest`] is what a rule asks for under a name. A [`Store`] has the places where it may be: the files
//! that rules name, folders in which each credential has a folder of its own, and the Secrets that stand
//! among the rules. What [`Store::load`] returns is PEM that Envoy takes; a pair of which only one half
//! has been replaced is not.
//!
//! What [`Store::load`] does not do: it judges no dates and no signers, as a certificate may expire while it is
//! in use. [`inspect()`] does, by the same reading, for `egressctl check`, and
//! [`connect()`] asks the servers.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use egress_policy::{Identity, Trust};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::xds::SecretRequest;
use egress_rules::yaml::Place;
use egress_rules::{Documents, Held, PAIR_KEYS, Reference, TRUST_KEYS, names_of};

mod connect;
pub(crate) mod file;
mod files;
mod inspect;
mod pair;
mod pem;
pub mod trust_store;

pub use connect::connect;
pub use inspect::inspect;

use file::{Standing, Unreadable, folders_on_the_way, is_there, read_private};
use pair::KeyKind;
use pem::{Der, Flaw, PrivateKey};
use trust_store::trust_store;

/// How long after a file was written it is looked at twice with a pause between: its neighbour may follow.
const FRESH: Duration = Duration::from_millis(200);
/// That pause.
const PAUSE: Duration = Duration::from_millis(5);
/// How often something is read until it stays as it is.
const ATTEMPTS: usize = 10;

/// Where credentials come from.
#[derive(Clone, Default)]
pub struct Store {
    folders: Vec<PathBuf>,
    documents: Documents,
    namespace: String,
}

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
    /// Says which of the two it is, and how long its parts are.
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

/// Why Envoy cannot be given something: one line that names the credential, the file and the fix, and nothing of
/// what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// Where it stands, for a Secret among the rules.
    pub(crate) at: Option<Box<At>>,
    /// Whether it is only that a credential's place is unknown here.
    pub(crate) absent: bool,
    /// Which part it is about.
    pub(crate) role: Role,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(at) = &self.at {
            write!(f, " ({}:{})", at.file, at.place.line)?;
        }
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Missing {}

impl Missing {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Missing {
        Missing {
            what: what.into(),
            hint: Some(hint.into()),
            at: None,
            absent: false,
            role: Role::Whole,
        }
    }
}

/// A place in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) file: String,
    pub(crate) place: Place,
    /// The field.
    pub(crate) path: String,
    /// The Secret.
    pub(crate) resource: String,
}

/// Which part of a credential a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Certificate,
    Key,
    Authorities,
    Crl,
    /// None of them alone.
    Whole,
}

impl Role {
    /// Returns how large it may be, in MiB. A Secret of Kubernetes is no larger than one, a distribution's
    /// bundle has less than half of that; public authorities have revocation lists of ten.
    fn max_mib(self) -> u64 {
        match self {
            Role::Certificate | Role::Key | Role::Whole => 1,
            Role::Authorities => 8,
            Role::Crl => 64,
        }
    }
}

/// A text that was read, and where it stood.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) role: Role,
    /// What messages call it.
    pub(crate) name: String,
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    pub(crate) origin: PartOrigin,
}

/// Where a text stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PartOrigin {
    /// With its path.
    File(Standing, PathBuf),
    Document(At),
}

impl Part {
    pub(crate) fn missing(&self, flaw: Flaw) -> Missing {
        Missing {
            what: format!("{} {}", self.name, flaw.what),
            hint: flaw.hint,
            at: match &self.origin {
                PartOrigin::File(..) => None,
                PartOrigin::Document(at) => Some(Box::new(at.clone())),
            },
            absent: false,
            role: self.role,
        }
    }
}

/// What was read for a need, before it is judged.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Parts {
    Pair { certificate: Part, key: Part },
    Trust { ca: Part, crl: Option<Part> },
}

/// What was read for a need, as DER, each with the text that it stood in.
pub(crate) enum Judged {
    Pair {
        chain: Vec<Der>,
        key: PrivateKey,
    },
    Trust {
        authorities: Vec<Der>,
        revoked: Vec<Der>,
    },
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

    /// Says whether there is no place in which a `credentialName` could be looked for.
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
        let judged = judge(&self.read(need)?)?;
        Ok(match judged {
            Judged::Pair { chain, key } => {
                let mut pem = Zeroizing::new(Vec::with_capacity(key.der.len() * 2 + 100));
                pem::write(pem::key_label(key.kind), &pair::for_envoy(&key), &mut pem);
                Material::Certificate {
                    chain: written("CERTIFICATE", &chain),
                    key: Key(pem),
                }
            }
            Judged::Trust {
                authorities,
                revoked,
            } => Material::Validation {
                ca: written("CERTIFICATE", &authorities),
                crl: (!revoked.is_empty()).then(|| written("X509 CRL", &revoked)),
            },
        })
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
    pub(crate) fn read(&self, need: &SecretRequest) -> Result<Parts, Missing> {
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
    fn pair(&self, credential: &str) -> Result<Parts, Missing> {
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
    fn trust(&self, credential: &str) -> Result<Parts, Missing> {
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
            Reference::Secret(_) => held(&self.documents.secrets, &self.namespace, name).collect(),
            Reference::ConfigMap { namespace, .. } => {
                held(&self.documents.config_maps, namespace, name).collect()
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

    /// Says that a credential is nowhere, and where it was looked for.
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
        let elsewhere = all.iter().find(|held| held.name == *name);
        let hint = match elsewhere {
            Some(held) => format!(
                "{} is in another namespace than the proxy; copy it to `{namespace}`, or give `--namespace {}`",
                held.id(),
                held.namespace
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

fn held<'d>(all: &'d [Held], namespace: &str, name: &str) -> impl Iterator<Item = Holder<'d>> {
    all.iter()
        .filter(move |held| held.namespace == namespace && held.name == name)
        .map(Holder::Document)
}

/// What holds a credential.
enum Holder<'d> {
    Folder(PathBuf),
    Document(&'d Held),
}

impl Holder<'_> {
    fn described(&self) -> String {
        match self {
            Holder::Folder(path) => format!("the folder `{}`", path.display()),
            Holder::Document(held) => format!("{} ({}:{})", held.id(), held.file, held.at.line),
        }
    }

    /// Reads one of its texts; `None` when it has none of that name.
    fn part(&self, key: &str, role: Role) -> Result<Option<Part>, Missing> {
        match self {
            Holder::Folder(folder) => {
                let path = folder.join(key);
                if !is_there(&path) {
                    return Ok(None);
                }
                file(&path, role).map(Some)
            }
            Holder::Document(held) => Ok(held.parts.get(key).map(|part| Part {
                role,
                name: format!("`{key}` of {}", held.id()),
                bytes: part.bytes.clone(),
                origin: PartOrigin::Document(At {
                    file: held.file.clone(),
                    place: part.at,
                    path: part.path.clone(),
                    resource: held.id(),
                }),
            })),
        }
    }

    fn lacks(&self, what: &str, hint: &str) -> Missing {
        match self {
            Holder::Folder(path) => {
                Missing::new(format!("the folder `{}` {what}", path.display()), hint)
            }
            Holder::Document(held) => Missing {
                at: Some(Box::new(At {
                    file: held.file.clone(),
                    place: held.data.1,
                    path: held.data.0.clone(),
                    resource: held.id(),
                })),
                ..Missing::new(format!("{} {what}", held.id()), hint)
            },
        }
    }
}

impl Part {
    fn is_empty(&self) -> bool {
        self.bytes.iter().all(u8::is_ascii_whitespace)
    }
}

impl Parts {
    /// Returns all texts.
    fn all(&self) -> impl Iterator<Item = &Part> {
        let parts = match self {
            Parts::Pair { certificate, key } => [Some(certificate), Some(key)],
            Parts::Trust { ca, crl } => [Some(ca), crl.as_ref()],
        };
        parts.into_iter().flatten()
    }

    /// Says whether any of it was written just now.
    fn is_fresh(&self) -> bool {
        self.all().any(|part| match &part.origin {
            PartOrigin::File(
                Standing {
                    modified: Some(modified),
                    ..
                },
                _,
            ) => SystemTime::now()
                .duration_since(*modified)
                .is_ok_and(|age| age < FRESH),
            _ => false,
        })
    }
}

fn file(path: &Path, role: Role) -> Result<Part, Missing> {
    let name = format!("`{}`", path.display());
    match read_private(path, role.max_mib()) {
        Ok((bytes, standing)) => Ok(Part {
            role,
            name,
            bytes,
            origin: PartOrigin::File(standing, path.to_owned()),
        }),
        Err(error) => {
            let hint = match &error {
                Unreadable::Error(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    "let the user that runs egressctl read it"
                }
                Unreadable::Absent => {
                    "paths are relative to the folder that egressctl is started in"
                }
                Unreadable::TooLarge(_) => "is it what the rule means?",
                _ => "give a file",
            };
            Err(Missing {
                role,
                ..Missing::new(format!("{name} {error}"), hint)
            })
        }
    }
}

/// Makes sure that Envoy takes what was read.
pub(crate) fn judge(parts: &Parts) -> Result<Judged, Missing> {
    match parts {
        Parts::Pair {
            certificate,
            key: key_part,
        } => {
            let chain =
                pem::certificates(&certificate.bytes).map_err(|flaw| certificate.missing(flaw))?;
            let key = pem::private_key(&key_part.bytes).map_err(|flaw| key_part.missing(flaw))?;
            judge_pair(&chain, &key, certificate, key_part)?;
            Ok(Judged::Pair { chain, key })
        }
        Parts::Trust { ca, crl } => {
            let authorities = pem::certificates(&ca.bytes).map_err(|flaw| ca.missing(flaw))?;
            // Envoy goes by the lists that stand among the authorities, too.
            let mut revoked = pem::revocation_lists(&ca.bytes).map_err(|flaw| ca.missing(flaw))?;
            if let Some(crl) = crl {
                let own = pem::revocation_lists(&crl.bytes).map_err(|flaw| crl.missing(flaw))?;
                if own.is_empty() {
                    return Err(crl.missing(
                        Flaw::new("holds no revocation list")
                            .hint("it must have a section `-----BEGIN X509 CRL-----`"),
                    ));
                }
                revoked.extend(own);
            }
            Ok(Judged::Trust {
                authorities,
                revoked,
            })
        }
    }
}

fn judge_pair(
    chain: &[Der],
    key: &PrivateKey,
    certificate: &Part,
    key_part: &Part,
) -> Result<(), Missing> {
    let parsed: Vec<X509Certificate<'_>> = chain
        .iter()
        .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
        .collect();
    let Some(leaf) = parsed.first() else {
        return Err(certificate.missing(Flaw::new("holds no certificate")));
    };
    match pair::kind(leaf) {
        KeyKind::Rsa(bits) if bits < 2048 => {
            return Err(certificate.missing(
                Flaw::new(format!(
                    "has an RSA key of {bits} bits, and Envoy takes 2048 or more"
                ))
                .hint("make a new key and certificate, for example with P-256"),
            ));
        }
        KeyKind::Other => {
            return Err(certificate.missing(
                Flaw::new("has a key of a kind that Envoy does not take")
                    .hint("use RSA of 2048 bits or more, P-256, P-384 or P-521"),
            ));
        }
        _ => {}
    }
    let belongs = |to: &X509Certificate<'_>| pair::belongs(key, to);
    match belongs(leaf) {
        Some(true) => Ok(()),
        Some(false) => {
            let place = parsed.iter().position(|other| belongs(other) == Some(true));
            Err(match place {
                Some(place) => certificate.missing(
                    Flaw::new(format!(
                        "is in the wrong order: certificate number {} is the key's",
                        place + 1
                    ))
                    .hint("it must stand first, then the one that signed it, and so on"),
                ),
                None => key_part.missing(
                    Flaw::new(format!("is not the key of {}", certificate.name))
                        .hint("were both replaced, and are the two files the right way round?"),
                ),
            })
        }
        None => Err(key_part.missing(
            Flaw::new("holds a key that cannot be read, or of a kind that Envoy does not take")
                .hint("use RSA of 2048 bits or more, P-256, P-384 or P-521"),
        )),
    }
}

fn written(label: &str, all: &[Der]) -> Vec<u8> {
    let mut out = Vec::new();
    for der in all {
        pem::write(label, der, &mut out);
    }
    out
}

#[cfg(test)]
mod tests;
