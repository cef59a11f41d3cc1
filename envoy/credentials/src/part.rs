//! What was read for a request, part by part, and why a part is missing.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use super::file::{Standing, Unreadable, read_private};
use super::pem::Flaw;
use egress_rules::yaml::Location;

/// How long after a file was written it is looked at twice with a pause between: its neighbour may follow.
const FRESH: Duration = Duration::from_millis(200);

/// Why Envoy cannot be given something: one line that names the credential, the file and the fix, and nothing of
/// what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is wrong.
    pub what: String,
    /// How to fix it.
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
    pub(super) fn new(what: impl Into<String>, hint: impl Into<String>) -> Missing {
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
    pub(crate) place: Location,
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

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.iter().all(u8::is_ascii_whitespace)
    }
}

/// What was read for a need, before it is judged.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Parts {
    Pair { certificate: Part, key: Part },
    Trust { ca: Part, crl: Option<Part> },
}

impl Parts {
    /// Returns all texts.
    pub(super) fn all(&self) -> impl Iterator<Item = &Part> {
        let parts = match self {
            Parts::Pair { certificate, key } => [Some(certificate), Some(key)],
            Parts::Trust { ca, crl } => [Some(ca), crl.as_ref()],
        };
        parts.into_iter().flatten()
    }

    /// Whether any of it was written just now.
    pub(super) fn is_fresh(&self) -> bool {
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

/// Reads one part from its file.
pub(super) fn file(path: &Path, role: Role) -> Result<Part, Missing> {
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
