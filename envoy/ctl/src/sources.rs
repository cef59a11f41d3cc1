//! Reading what `-f` names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use egress_policy::visible;
use rustix::fs::OFlags;

use egress_credentials::folders_on_the_way;
use egress_rules::Source;

/// Why rules could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnreadableSource {
    /// It could not be read.
    #[error("cannot read `{}`: {error}", visible(name))]
    Read {
        /// The path as it was given.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// It is not UTF-8.
    #[error("`{}` is not UTF-8 text", visible(.0))]
    NotText(String),
    /// It is a device, a FIFO or a socket, which may never end.
    #[error(
        "`{}` is {what}, and rules are read from files, folders and the standard input\nhint: name a file, or pipe the rules to `-f -`",
        visible(name)
    )]
    NotRegular {
        /// The path as it was given.
        name: String,
        /// What it is, with its article.
        what: &'static str,
    },
    /// It has more than rules ever do.
    #[error("`{}` has more than {MAX_RULES_MIB} MiB, and no file of rules may\nhint: split the file, or name another one", visible(.0))]
    TooLarge(String),
    /// A folder holds no rules.
    #[error("the folder `{}` holds no .yaml, .yml or .json file", visible(.0))]
    EmptyFolder(String),
}

/// How large a file of rules may be, in MiB: ten thousand hosts take five.
const MAX_RULES_MIB: u64 = 64;

/// What messages call the standard input.
pub(crate) const STDIN: &str = "<stdin>";

/// Reads what `-f` names: a file, `-` for the standard input, or a folder's `.yaml`, `.yml` and `.json`
/// files in the order of their names.
///
/// A pipe that was opened for us, as the shell does for `<(helm template .)`, is read as the standard input is.
///
/// # Errors
/// When any of it cannot be read, is no file or is too large, or a folder has no such file.
pub(crate) fn sources(name: &str) -> Result<Vec<Source>, UnreadableSource> {
    if name == "-" {
        return Ok(vec![Source {
            name: STDIN.to_owned(),
            text: once(STDIN, || Ok(io::stdin().lock()))?,
            mesh: false,
        }]);
    }
    if is_open_pipe(name) {
        return Ok(vec![Source {
            name: name.to_owned(),
            text: once(name, || fs::File::open(name))?,
            mesh: false,
        }]);
    }
    if !Path::new(name).is_dir() {
        return Ok(vec![source(name)?]);
    }
    let mut names = Vec::new();
    let read_error = |error| UnreadableSource::Read {
        name: name.to_owned(),
        error,
    };
    for entry in fs::read_dir(name).map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        // A link that leads nowhere is what some editors keep beside a file that they have open.
        if matches!(ending, Some("yaml" | "yml" | "json")) && path.exists() && !path.is_dir() {
            names.push(path.to_string_lossy().into_owned());
        }
    }
    if names.is_empty() {
        return Err(UnreadableSource::EmptyFolder(name.to_owned()));
    }
    names.sort();
    names.iter().map(|name| source(name)).collect()
}

/// Reads what can be read once; whoever asks again means what it held.
fn once<R: Read>(
    name: &str,
    open: impl FnOnce() -> io::Result<R>,
) -> Result<String, UnreadableSource> {
    static HELD: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(text) = held.get(name) {
        return Ok(text.clone());
    }
    let failed = |error| UnreadableSource::Read {
        name: name.to_owned(),
        error,
    };
    let text = text_of(name, open().map_err(failed)?)?;
    held.insert(name.to_owned(), text.clone());
    Ok(text)
}

/// Whether a path is a pipe that this process was started with.
fn is_open_pipe(name: &str) -> bool {
    let folders = ["/dev/fd/", "/proc/self/fd/"];
    let is_open = name == "/dev/stdin" || folders.iter().any(|folder| name.starts_with(folder));
    is_open && fs::metadata(name).is_ok_and(|meta| meta.file_type().is_fifo())
}

/// Reads a text that is as large as rules may be.
fn text_of(name: &str, from: impl Read) -> Result<String, UnreadableSource> {
    let limit = MAX_RULES_MIB << 20;
    let mut bytes = Vec::new();
    let read = from.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| UnreadableSource::Read {
        name: name.to_owned(),
        error,
    })?;
    if bytes.len() as u64 > limit {
        return Err(UnreadableSource::TooLarge(name.to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| UnreadableSource::NotText(name.to_owned()))
}

/// Returns the folders in which something changes when [`sources`] would read something else.
pub(crate) fn watched_sources(path: &Path) -> BTreeSet<PathBuf> {
    let mut folders: BTreeSet<PathBuf> = folders_on_the_way(path).into_iter().collect();
    if path.is_dir() {
        folders.extend(std::path::absolute(path));
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            // A mounted ConfigMap has links in it, to what is swapped behind them.
            folders.extend(folders_on_the_way(&entry.path()));
        }
    }
    folders
}

fn source(name: &str) -> Result<Source, UnreadableSource> {
    let failed = |error| UnreadableSource::Read {
        name: name.to_owned(),
        error,
    };
    // Looked at before it is opened, for opening a device may do something; and afterwards, for another may have come
    // in its place, and opening a FIFO would wait for its other end.
    regular(name, &fs::metadata(name).map_err(failed)?)?;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(name)
        .map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    regular(name, &meta)?;
    if meta.len() > MAX_RULES_MIB << 20 {
        return Err(UnreadableSource::TooLarge(name.to_owned()));
    }
    Ok(Source {
        name: name.to_owned(),
        text: text_of(name, file)?,
        mesh: false,
    })
}

/// Reads a file of one line that is nobody's business.
///
/// # Errors
/// When it cannot be read, or is none.
pub(crate) fn secret_line(path: &Path) -> Result<String, UnreadableSource> {
    let text = source(&path.to_string_lossy())?.text;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Refuses what is no file.
fn regular(name: &str, meta: &fs::Metadata) -> Result<(), UnreadableSource> {
    let kind = meta.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => "no file",
    };
    Err(UnreadableSource::NotRegular {
        name: name.to_owned(),
        what,
    })
}

/// Returns the YAML files of a folder by name, and their texts; not those of folders in it. A folder that is not there
/// has none.
///
/// # Errors
/// When one of them cannot be read.
pub(crate) fn yaml_files(folder: &Path) -> Result<BTreeMap<String, String>, UnreadableSource> {
    let failed = |path: &Path, error| UnreadableSource::Read {
        name: path.display().to_string(),
        error,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        other => other.map_err(|error| failed(folder, error))?,
    };
    let mut texts = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if name.ends_with(".yaml") && path.is_file() {
            let text = fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
            texts.insert(name.to_owned(), text);
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn rules_are_read_from_files_that_end() {
        let stage = tempfile::tempdir().unwrap();
        let path = |name: &str| stage.path().join(name);
        let read = |name: &str| sources(path(name).to_str().unwrap());
        let refused = |name: &str| read(name).unwrap_err().to_string();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo.yaml"), rustix::fs::Mode::RUSR).unwrap();
        assert!(refused("fifo.yaml").contains("is a FIFO"));
        let folder = stage.path().to_str().unwrap();
        let error = sources(folder).unwrap_err().to_string();
        assert!(error.contains("fifo.yaml` is a FIFO"), "{error}");
        symlink("/dev/zero", path("zero.yaml")).unwrap();
        assert!(refused("zero.yaml").contains("is a device"));
        let _socket = std::os::unix::net::UnixListener::bind(path("socket.yaml")).unwrap();
        assert!(refused("socket.yaml").contains("is a socket"));
        let large = fs::File::create(path("large.yaml")).unwrap();
        large.set_len((MAX_RULES_MIB << 20) + 1).unwrap();
        assert!(refused("large.yaml").contains("more than 64 MiB"));
        large.set_len(3).unwrap();
        assert_eq!(read("large.yaml").unwrap()[0].text, "\0\0\0");
        assert!(
            text_of("endless", io::repeat(b'a'))
                .unwrap_err()
                .to_string()
                .contains("64 MiB")
        );
    }

    #[test]
    fn a_link_that_leads_nowhere_is_no_rule_of_a_folder() {
        let stage = tempfile::tempdir().unwrap();
        fs::write(stage.path().join("a.yaml"), "a: 1").unwrap();
        symlink("gone", stage.path().join(".#a.yaml")).unwrap();
        fs::create_dir(stage.path().join("b.yaml")).unwrap();
        assert_eq!(sources(stage.path().to_str().unwrap()).unwrap().len(), 1);
    }
}
