//! Finding what we need beside the rules: the filter and Envoy.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use egress_policy::visible;

/// Why something that we need could not be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotFound {
    /// It could not be read.
    #[error("cannot read `{}`: {error}", visible(name))]
    Read {
        /// The path as it was given.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// The wasm module is nowhere.
    #[error(
        "the filter `{WASM_NAME}` is not beside egressctl; build it with `make build`, or name it with --wasm"
    )]
    NoWasm,
    /// The native module is nowhere.
    #[error(
        "the filter `{MODULE_NAME}` is not beside egressctl; build it with `make build`, or name it with --module"
    )]
    NoModule,
    /// A file that was named is not there.
    #[error("`{0}` is not a file")]
    NotAFile(String),
    /// There is no Envoy.
    #[error(
        "Envoy {0} is not on PATH and not in .tools; get it with `make envoy`, or name one with --envoy"
    )]
    NoEnvoy(String),
}

/// The name of the wasm module beside the CLI.
pub(crate) const WASM_NAME: &str = "egress-filter.wasm";

/// The name of the native module beside the CLI.
pub(crate) const MODULE_NAME: &str = "libegress_filter.so";

/// Finds the wasm module: where `--wasm` says, or beside the program.
///
/// # Errors
/// When it is not there.
pub(crate) fn wasm(named: Option<&Path>) -> Result<PathBuf, NotFound> {
    filter(named, WASM_NAME)?.ok_or(NotFound::NoWasm)
}

/// Finds the native module: where `--module` says, or beside the program.
///
/// # Errors
/// When it is not there.
pub(crate) fn module(named: Option<&Path>) -> Result<PathBuf, NotFound> {
    filter(named, MODULE_NAME)?.ok_or(NotFound::NoModule)
}

fn filter(named: Option<&Path>, name: &str) -> Result<Option<PathBuf>, NotFound> {
    match named {
        Some(path) if path.is_file() => absolute(path).map(Some),
        Some(path) => Err(NotFound::NotAFile(path.display().to_string())),
        None => {
            let program = env::current_exe().ok();
            let beside = program.and_then(|program| Some(program.parent()?.join(name)));
            Ok(beside.filter(|path| path.is_file()))
        }
    }
}

/// Finds Envoy: where `--envoy` says, on `PATH`, or where `make envoy` put the pinned version.
///
/// # Errors
/// When there is none.
pub(crate) fn envoy(named: Option<&Path>, pinned: &str) -> Result<PathBuf, NotFound> {
    if let Some(path) = named {
        return if path.is_file() {
            absolute(path)
        } else {
            Err(NotFound::NotAFile(path.display().to_string()))
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
    found.ok_or_else(|| NotFound::NoEnvoy(pinned.to_owned()))
}

/// Returns a path from the root on; it need not be there.
///
/// # Errors
/// When the folder that we are in cannot be told.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, NotFound> {
    std::path::absolute(path).map_err(|error| NotFound::Read {
        name: path.display().to_string(),
        error,
    })
}

/// Returns the SHA-256 of a file, in hexadecimal digits.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn sha256(path: &Path) -> Result<String, NotFound> {
    let bytes = fs::read(path).map_err(|error| NotFound::Read {
        name: path.display().to_string(),
        error,
    })?;
    Ok(egress_run::sha256(&bytes))
}
