//! What holds a credential: a folder, or a document among the rules.

use std::path::PathBuf;

use super::file::is_there;
use super::part::{At, Missing, Part, PartOrigin, Role, file};
use egress_rules::SecretDocument;

/// What holds a credential.
pub(super) enum Holder<'d> {
    Folder(PathBuf),
    Document(&'d SecretDocument),
}

impl Holder<'_> {
    pub(super) fn described(&self) -> String {
        match self {
            Holder::Folder(path) => format!("the folder `{}`", path.display()),
            Holder::Document(secret) => {
                format!("{} ({}:{})", secret.id(), secret.file, secret.at.line)
            }
        }
    }

    /// Reads one of its texts; `None` when it has none of that name.
    pub(super) fn part(&self, key: &str, role: Role) -> Result<Option<Part>, Missing> {
        match self {
            Holder::Folder(folder) => {
                let path = folder.join(key);
                if !is_there(&path) {
                    return Ok(None);
                }
                file(&path, role).map(Some)
            }
            Holder::Document(secret) => Ok(secret.parts.get(key).map(|part| Part {
                role,
                name: format!("`{key}` of {}", secret.id()),
                bytes: part.bytes.clone(),
                origin: PartOrigin::Document(At {
                    file: secret.file.clone(),
                    place: part.at,
                    path: part.path.clone(),
                    resource: secret.id(),
                }),
            })),
        }
    }

    pub(super) fn lacks(&self, what: &str, hint: &str) -> Missing {
        match self {
            Holder::Folder(path) => {
                Missing::new(format!("the folder `{}` {what}", path.display()), hint)
            }
            Holder::Document(secret) => Missing {
                at: Some(Box::new(At {
                    file: secret.file.clone(),
                    place: secret.data.1,
                    path: secret.data.0.clone(),
                    resource: secret.id(),
                })),
                ..Missing::new(format!("{} {what}", secret.id()), hint)
            },
        }
    }
}

/// Finds the documents of this name.
pub(super) fn named<'d>(
    all: &'d [SecretDocument],
    namespace: &str,
    name: &str,
) -> impl Iterator<Item = Holder<'d>> {
    all.iter()
        .filter(move |secret| secret.namespace == namespace && secret.name == name)
        .map(Holder::Document)
}
