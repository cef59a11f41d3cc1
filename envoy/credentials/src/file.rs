//! Files that may hold secrets: read whole or not at all, and watched along every link that leads to them.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use zeroize::Zeroizing;

/// Why a certificate, a key or a revocation list cannot be read, in words that stand behind its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("is not there")]
    Absent,
    #[error("is a folder, not a file")]
    Folder,
    #[error("is neither a file nor a link to one")]
    NotAFile,
    #[error("is larger than {0} MiB")]
    TooLarge(u64),
    #[error("cannot be read: {0}")]
    Error(io::Error),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unreadable::Absent,
            _ => Unreadable::Error(error),
        }
    }
}

/// What is known of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// When it was last written, where the file system tells.
    pub(crate) modified: Option<SystemTime>,
    /// Who may do what with it, as `chmod` has it.
    pub(crate) mode: u32,
}

/// Reads what may be secret, at most `limit_mib` of it, and says how the file stands.
pub(crate) fn read_private(
    path: &Path,
    limit_mib: u64,
) -> Result<(Zeroizing<Vec<u8>>, Standing), Unreadable> {
    // Looked at before it is opened: opening a pipe would wait for its other end.
    let meta = fs::metadata(path)?;
    if meta.is_dir() {
        return Err(Unreadable::Folder);
    }
    if !meta.is_file() {
        return Err(Unreadable::NotAFile);
    }
    let limit = limit_mib << 20;
    if meta.len() > limit {
        return Err(Unreadable::TooLarge(limit_mib));
    }
    // Of its whole size at once, so that no copy is left behind when it grows.
    let room = usize::try_from(meta.len()).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    fs::File::open(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(Unreadable::TooLarge(limit_mib));
    }
    let standing = Standing {
        modified: meta.modified().ok(),
        mode: meta.permissions().mode() & 0o7777,
    };
    Ok((bytes, standing))
}

/// Whether there is anything at a path: a file, a folder, a link, even one that leads nowhere.
pub(crate) fn is_there(path: &Path) -> bool {
    let absent = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    // What cannot be looked at is there as far as anyone knows: reading it will tell why.
    path.symlink_metadata()
        .map_or_else(|error| !absent.contains(&error.kind()), |_| true)
}

/// Returns the folders in which something changes when a path comes to lead to another file: that of the
/// path, and that of each link on the way. Where the way ends early, the last folder that exists.
pub fn folders_on_the_way(path: &Path) -> Vec<PathBuf> {
    let Ok(path) = std::path::absolute(path) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut ahead: VecDeque<OsString> = names(&path);
    let mut here = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        match fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                found.push(here.clone());
                if target.is_absolute() {
                    here = PathBuf::from("/");
                }
                let mut rest = names(&target);
                rest.append(&mut ahead);
                ahead = rest;
            }
            Ok(_) => break,
            Err(_) if ahead.is_empty() || !next.is_dir() => {
                found.push(here.clone());
                break;
            }
            Err(_) => here = next,
        }
    }
    found.sort();
    found.dedup();
    found
}

/// How many links a way may have, as in Linux.
const MAX_LINKS: usize = 40;

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_link_on_the_way_is_watched() {
        let stage = tempfile::tempdir().unwrap();
        let root = stage.path().canonicalize().unwrap();
        let folder = |name: &str| root.join(name);
        for name in ["secret/..v1", "other/v1"] {
            fs::create_dir_all(folder(name)).unwrap();
        }
        fs::write(folder("secret/..v1/tls.crt"), "").unwrap();
        symlink("..v1", folder("secret/..data")).unwrap();
        symlink("..data/tls.crt", folder("secret/tls.crt")).unwrap();
        assert_eq!(
            folders_on_the_way(&folder("secret/tls.crt")),
            [folder("secret"), folder("secret/..v1")]
        );
        // A link to a link in another folder: each may be swapped.
        fs::write(folder("other/v1/a.pem"), "").unwrap();
        symlink(folder("other/v1"), folder("other/current")).unwrap();
        symlink("../other/current/a.pem", folder("secret/a.pem")).unwrap();
        assert_eq!(
            folders_on_the_way(&folder("secret/a.pem")),
            [folder("other"), folder("other/v1"), folder("secret")]
        );
        // What is not there yet may come where the way ends.
        assert_eq!(
            folders_on_the_way(&folder("nowhere/at/all")),
            [root.as_path()]
        );
        symlink("missing", folder("secret/dangling")).unwrap();
        assert_eq!(
            folders_on_the_way(&folder("secret/dangling")),
            [folder("secret")]
        );
        symlink("loop", folder("secret/loop")).unwrap();
        assert_eq!(
            folders_on_the_way(&folder("secret/loop")),
            [folder("secret")]
        );
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let stage = tempfile::tempdir().unwrap();
        let path = stage.path().join("large");
        fs::File::create(&path)
            .unwrap()
            .set_len((1 << 20) + 1)
            .unwrap();
        assert!(matches!(
            read_private(&path, 1),
            Err(Unreadable::TooLarge(1))
        ));
        assert!(read_private(&path, 2).is_ok());
        assert!(matches!(
            read_private(stage.path(), 1),
            Err(Unreadable::Folder)
        ));
        assert!(matches!(
            read_private(Path::new("/dev/zero"), 1),
            Err(Unreadable::NotAFile)
        ));
        assert!(matches!(
            read_private(&path.join("below"), 1),
            Err(Unreadable::Absent)
        ));
    }
}
