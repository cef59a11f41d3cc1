//! The only file that reads or writes files, and that looks for those we need.

use std::env;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A text and the name that messages call it by.
#[derive(Debug, Clone)]
pub struct Source {
    /// The path as it was given, or `<stdin>`.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// Why something could not be read or found.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be read.
    #[error("cannot read `{name}`: {error}")]
    Read {
        /// The path as it was given.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// It is not UTF-8.
    #[error("`{0}` is not UTF-8 text")]
    NotText(String),
    /// A folder holds no rules.
    #[error("the folder `{0}` holds no .yaml, .yml or .json file")]
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
/// # Errors
/// When any of it cannot be read, or a folder has no such file.
pub fn sources(name: &str) -> Result<Vec<Source>, FileError> {
    if name == "-" {
        let mut bytes = Vec::new();
        let read = io::stdin().lock().read_to_end(&mut bytes);
        read.map_err(|error| FileError::Read {
            name: "<stdin>".to_owned(),
            error,
        })?;
        let text =
            String::from_utf8(bytes).map_err(|_| FileError::NotText("<stdin>".to_owned()))?;
        return Ok(vec![Source {
            name: "<stdin>".to_owned(),
            text,
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
        if matches!(ending, Some("yaml" | "yml" | "json")) && path.is_file() {
            names.push(path.to_string_lossy().into_owned());
        }
    }
    if names.is_empty() {
        return Err(FileError::EmptyFolder(name.to_owned()));
    }
    names.sort();
    names.iter().map(|name| source(name)).collect()
}

fn source(name: &str) -> Result<Source, FileError> {
    let bytes = fs::read(name).map_err(|error| FileError::Read {
        name: name.to_owned(),
        error,
    })?;
    let text = String::from_utf8(bytes).map_err(|_| FileError::NotText(name.to_owned()))?;
    Ok(Source {
        name: name.to_owned(),
        text,
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

fn absolute(path: &Path) -> Result<PathBuf, FileError> {
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

/// Reads a small text that may not be there yet.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}
