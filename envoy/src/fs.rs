//! The only file that reads or writes files, and that looks for those we need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use egress_policy::visible;
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::xds::Admin;

/// A text and the name that messages call it by.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// The path as it was given, or `<stdin>`.
    pub name: String,
    /// What it holds.
    pub text: String,
    /// It holds the configuration of the mesh, and no rules.
    pub mesh: bool,
}

impl fmt::Debug for Source {
    /// Leaves out the text: a Secret may stand in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why something could not be read or found.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
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
    /// None of the usual places has a trust store.
    #[error(
        "no bundle of trusted authorities was found; install ca-certificates, or name the bundle in SSL_CERT_FILE"
    )]
    NoTrustStore,
    /// `SSL_CERT_FILE` leads nowhere.
    #[error("SSL_CERT_FILE names `{0}`, which is not a file")]
    TrustStoreMissing(String),
    /// The wasm module is nowhere.
    #[error(
        "the filter `{WASM_NAME}` is not beside egressctl; build it with `make build`, or name it with --wasm"
    )]
    NoWasm,
    /// A file that was named is not there.
    #[error("`{0}` is not a file")]
    NotAFile(String),
    /// There is no Envoy.
    #[error(
        "Envoy {0} is not on PATH and not in .tools; get it with `make envoy`, or name one with --envoy"
    )]
    NoEnvoy(String),
}

/// How large a file of rules may be, in MiB: ten thousand hosts take five.
const MAX_RULES_MIB: u64 = 64;

/// What messages call the standard input.
pub const STDIN: &str = "<stdin>";

/// The name of the wasm module beside the CLI.
pub const WASM_NAME: &str = "egress-filter.wasm";

/// Where distributions keep their bundle, in the order that Go's `crypto/x509` looks, too.
const TRUST_STORES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Gentoo, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",   // Fedora, RHEL 6
    "/etc/ssl/ca-bundle.pem",             // openSUSE
    "/etc/pki/tls/cacert.pem",            // OpenELEC
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // CentOS, RHEL 7 and later
    "/etc/ssl/cert.pem",                  // Alpine, macOS
];

/// Reads what `-f` names: a file, `-` for the standard input, or a folder's `.yaml`, `.yml` and `.json`
/// files in the order of their names.
///
/// A pipe that was opened for us, as the shell does for `<(helm template .)`, is read as the standard input is.
///
/// # Errors
/// When any of it cannot be read, is no file or is too large, or a folder has no such file.
pub fn sources(name: &str) -> Result<Vec<Source>, FileError> {
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
    let read_error = |error| FileError::Read {
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
        return Err(FileError::EmptyFolder(name.to_owned()));
    }
    names.sort();
    names.iter().map(|name| source(name)).collect()
}

/// Reads what can be read once; whoever asks again means what it held.
fn once<R: Read>(name: &str, open: impl FnOnce() -> io::Result<R>) -> Result<String, FileError> {
    static HELD: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(text) = held.get(name) {
        return Ok(text.clone());
    }
    let failed = |error| FileError::Read {
        name: name.to_owned(),
        error,
    };
    let text = text_of(name, open().map_err(failed)?)?;
    held.insert(name.to_owned(), text.clone());
    Ok(text)
}

/// Says whether a path is a pipe that this process was started with.
fn is_open_pipe(name: &str) -> bool {
    let folders = ["/dev/fd/", "/proc/self/fd/"];
    let is_open = name == "/dev/stdin" || folders.iter().any(|folder| name.starts_with(folder));
    is_open && fs::metadata(name).is_ok_and(|meta| meta.file_type().is_fifo())
}

/// Reads a text that is as large as rules may be.
fn text_of(name: &str, from: impl Read) -> Result<String, FileError> {
    let limit = MAX_RULES_MIB << 20;
    let mut bytes = Vec::new();
    let read = from.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| FileError::Read {
        name: name.to_owned(),
        error,
    })?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge(name.to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| FileError::NotText(name.to_owned()))
}

/// Returns the folders in which something changes when [`sources`] would read something else.
pub(crate) fn watched_sources(name: &str) -> BTreeSet<PathBuf> {
    let path = Path::new(name);
    let mut folders: BTreeSet<PathBuf> = folders_on_the_way(path).into_iter().collect();
    if path.is_dir() {
        folders.extend(absolute(path));
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            // A mounted ConfigMap has links in it, to what is swapped behind them.
            folders.extend(folders_on_the_way(&entry.path()));
        }
    }
    folders
}

fn source(name: &str) -> Result<Source, FileError> {
    let failed = |error| FileError::Read {
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
        return Err(FileError::TooLarge(name.to_owned()));
    }
    Ok(Source {
        name: name.to_owned(),
        text: text_of(name, file)?,
        mesh: false,
    })
}

/// Refuses what is no file.
fn regular(name: &str, meta: &fs::Metadata) -> Result<(), FileError> {
    let kind = meta.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => "no file",
    };
    Err(FileError::NotRegular {
        name: name.to_owned(),
        what,
    })
}

/// Finds the bundle of authorities that the system trusts. `SSL_CERT_FILE` wins, as with OpenSSL.
///
/// # Errors
/// When there is none, or `SSL_CERT_FILE` names none: then nothing could be verified.
pub fn trust_store() -> Result<String, FileError> {
    if let Some(name) = env::var("SSL_CERT_FILE")
        .ok()
        .filter(|name| !name.is_empty())
    {
        return if Path::new(&name).is_file() {
            Ok(name)
        } else {
            Err(FileError::TrustStoreMissing(name))
        };
    }
    let found = TRUST_STORES.iter().find(|name| Path::new(name).is_file());
    found
        .map(|name| (*name).to_owned())
        .ok_or(FileError::NoTrustStore)
}

/// Finds the wasm module: where `--wasm` says, or beside the program.
///
/// # Errors
/// When it is not there.
pub fn wasm(named: Option<&Path>) -> Result<PathBuf, FileError> {
    match named {
        Some(path) if path.is_file() => absolute(path),
        Some(path) => Err(FileError::NotAFile(path.display().to_string())),
        None => {
            let beside = env::current_exe()
                .ok()
                .and_then(|program| Some(program.parent()?.join(WASM_NAME)));
            beside
                .filter(|path| path.is_file())
                .ok_or(FileError::NoWasm)
        }
    }
}

/// Finds Envoy: where `--envoy` says, on `PATH`, or where `make envoy` put the pinned version.
///
/// # Errors
/// When there is none.
pub fn envoy(named: Option<&Path>, pinned: &str) -> Result<PathBuf, FileError> {
    if let Some(path) = named {
        return if path.is_file() {
            absolute(path)
        } else {
            Err(FileError::NotAFile(path.display().to_string()))
        };
    }
    let on_path = env::var_os("PATH").and_then(|folders| {
        env::split_paths(&folders)
            .map(|folder| folder.join("envoy"))
            .find(|path| path.is_file())
    });
    if let Some(path) = on_path {
        return Ok(path);
    }
    let program = env::current_exe().unwrap_or_default();
    let unpacked = format!(".tools/envoy-{pinned}/envoy/_bin/envoy");
    let found = program
        .ancestors()
        .map(|folder| folder.join(&unpacked))
        .find(|path| path.is_file());
    found.ok_or_else(|| FileError::NoEnvoy(pinned.to_owned()))
}

/// Returns a path from the root on; it need not be there.
///
/// # Errors
/// When the folder that we are in cannot be told.
pub fn absolute(path: &Path) -> Result<PathBuf, FileError> {
    std::path::absolute(path).map_err(|error| FileError::Read {
        name: path.display().to_string(),
        error,
    })
}

/// Writes a file that only its owner can read.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// Makes a folder that only its owner can open, with all above it; one that is there stays as it is.
///
/// # Errors
/// When it cannot be made.
pub fn make_private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Writes a file that only its owner can read, as a whole: who reads it meanwhile reads what was there, and who
/// watches its folder sees a file come in. The folder is made if it is not there.
///
/// # Errors
/// When it cannot be written.
pub fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let folder = path.parent().unwrap_or(Path::new("."));
    make_private_folder(folder)?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(bytes)?;
    new.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Returns the YAML files of a folder by name, and their texts; not those of folders in it. A folder that is not there
/// has none.
///
/// # Errors
/// When one of them cannot be read.
pub fn yaml_files(folder: &Path) -> Result<std::collections::BTreeMap<String, String>, FileError> {
    let failed = |path: &Path, error| FileError::Read {
        name: path.display().to_string(),
        error,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        other => other.map_err(|error| failed(folder, error))?,
    };
    let mut texts = std::collections::BTreeMap::new();
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

/// Writes a file of a folder that others may read, as a whole or not at all. The folder is made if it is not there; a
/// symbolic link in the file's place is replaced, not followed.
///
/// # Errors
/// When it cannot be written.
pub fn write_shared(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(folder.join(name))?;
    Ok(())
}

/// Returns the SHA-256 of a file, in hexadecimal digits.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> Result<String, FileError> {
    let bytes = fs::read(path).map_err(|error| FileError::Read {
        name: path.display().to_string(),
        error,
    })?;
    let sum = ring::digest::digest(&ring::digest::SHA256, &bytes);
    Ok(sum
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Puts a text in place of a file's, as a whole or not at all. The file keeps its permissions, and a
/// symbolic link to it stays one.
///
/// # Errors
/// When it cannot be written, or is marked read-only; then it is as it was.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    let path = fs::canonicalize(path)?;
    let permissions = fs::metadata(&path)?.permissions();
    if permissions.readonly() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(permissions)?;
    new.as_file().sync_all()?;
    new.persist(&path).map_err(|error| error.error)?;
    Ok(())
}

/// Reads a file that may not be there.
pub(crate) fn read_bytes(path: &Path) -> Option<Vec<u8>> {
    fs::read(path).ok()
}

/// What the folders of runs are called, before the part that tells them apart.
const RUN_PREFIX: &str = "egressctl-";

/// Makes the folder of a run, which only its owner can open whatever the umask is. It goes when it is dropped.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn run_folder() -> io::Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix(RUN_PREFIX)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
}

/// The socket of Envoy's admin interface in the folder of a run.
pub(crate) const ADMIN_SOCKET: &str = "admin.sock";

/// The file of a run into which Envoy writes where its admin interface is.
pub(crate) const ADMIN_ADDRESS: &str = "admin.txt";

/// Says whether a path is a folder that we own and nobody else can look into: others can make folders of any name
/// where temporary ones are.
fn is_ours_alone(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(folder).is_ok_and(|meta| {
        meta.is_dir()
            && meta.uid() == rustix::process::geteuid().as_raw()
            && meta.mode() & 0o077 == 0
    })
}

/// Returns the admin interfaces of our runs on this machine, those that were killed among them.
pub(crate) fn runs() -> Vec<Admin> {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(RUN_PREFIX))
        })
        .collect();
    found.sort();
    found
        .iter()
        .filter(|folder| is_ours_alone(folder))
        .filter_map(|folder| {
            let socket = folder.join(ADMIN_SOCKET);
            if socket.exists() {
                return Some(Admin::Pipe(socket.display().to_string()));
            }
            let address: SocketAddr = read_text(&folder.join(ADMIN_ADDRESS))?
                .trim()
                .parse()
                .ok()?;
            Some(Admin::Tcp(address.ip().to_string(), address.port()))
        })
        .collect()
}

/// Reads a small text that may not be there yet.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

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
    use std::os::unix::fs::PermissionsExt;
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

/// Says whether there is anything at a path: a file, a folder, a link, even one that leads nowhere.
pub(crate) fn is_there(path: &Path) -> bool {
    let absent = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    // What cannot be looked at is there as far as anyone knows: reading it will tell why.
    path.symlink_metadata()
        .map_or_else(|error| !absent.contains(&error.kind()), |_| true)
}

/// Returns the folders in which something changes when a path comes to lead to another file: that of the
/// path, and that of each link on the way. Where the way ends early, the last folder that exists.
pub(crate) fn folders_on_the_way(path: &Path) -> Vec<PathBuf> {
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
    fn the_folder_of_a_run_is_ours_alone() {
        assert!(is_ours_alone(run_folder().unwrap().path()));
    }

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
