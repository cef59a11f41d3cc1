//! What holds a credential: a folder, or a document among the rules.

use std::path::PathBuf;

use super::file::is_there;
use super::part::{At, Missing, Part, PartOrigin, Role, file};
use egress_rules::Held;

/// What holds a credential.
pub(super) enum Holder<'d> {
    Folder(PathBuf),
    Document(&'d Held),
}

impl Holder<'_> {
    pub(super) fn described(&self) -> String {
        match self {
            Holder::Folder(path) => format!("the folder `{}`", path.display()),
            Holder::Document(held) => format!("{} ({}:{})", held.id(), held.file, held.at.line),
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

    pub(super) fn lacks(&self, what: &str, hint: &str) -> Missing {
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

/// Finds the documents of this name.
pub(super) fn held<'d>(
    all: &'d [Held],
    namespace: &str,
    name: &str,
) -> impl Iterator<Item = Holder<'d>> {
    all.iter()
        .filter(move |held| held.namespace == namespace && held.name == name)
        .map(Holder::Document)
}
