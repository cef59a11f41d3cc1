//! The file of the filter, as one run has it: a copy in its folder, whose name tells the content.
//!
//! Envoy finds the library that it has loaded by its path, and the code of a VM by the configuration around it. So a file
//! that was replaced is another filter for Envoy only under another name. And what Envoy has mapped must never be written
//! to, which a compiler or a package manager may do.

use std::fs;
use std::io;
use std::path::Path;

use egress_render::xds::FilterFile;

use super::atomic;

/// So many native filters a run may load one after another. None is ever unloaded: open streams may be in its code.
const MOST_MODULES: usize = 16;

/// What the copies of native filters are called, before the digest.
const MODULE_STEM: &str = "libegress_filter_";

/// Puts a copy in the folder of the run, and returns it.
///
/// # Errors
/// When the file cannot be read, the copy cannot be written, or there are too many.
pub(super) fn keep(folder: &Path, file: &FilterFile) -> io::Result<FilterFile> {
    let path = file.path();
    let bytes = fs::read(path).map_err(|error| about(path, error))?;
    let digest = sha256(&bytes);
    let name = match file {
        FilterFile::Wasm(_) => format!("egress-filter_{digest}.wasm"),
        FilterFile::Module(_) => format!("{MODULE_STEM}{digest}.so"),
    };
    let copy = folder.join(name);
    if !copy.exists() {
        if let FilterFile::Module(_) = file
            && modules(folder)? >= MOST_MODULES
        {
            return Err(io::Error::other(format!(
                "`{path}` would be the {}th native filter of this Envoy, which keeps all of them in memory; start again to use it",
                MOST_MODULES + 1
            )));
        }
        atomic::replace_private(&copy, &bytes)?;
    }
    let copy = copy.display().to_string();
    Ok(match file {
        FilterFile::Wasm(_) => FilterFile::Wasm(copy),
        FilterFile::Module(_) => FilterFile::Module(copy),
    })
}

/// Returns how many native filters this run has offered to its Envoy.
fn modules(folder: &Path) -> io::Result<usize> {
    let names =
        fs::read_dir(folder)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(MODULE_STEM)).count())
}

fn about(path: &str, error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot read the filter `{path}`: {error}"),
    )
}

/// Returns the SHA-256 of bytes, as `sha256sum` prints it.
pub fn sha256(bytes: &[u8]) -> String {
    let sum = ring::digest::digest(&ring::digest::SHA256, bytes);
    sum.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_content_is_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let (source, run) = (folder.path().join("f.so"), folder.path().join("run"));
        fs::create_dir(&run).unwrap();
        let file = FilterFile::Module(source.display().to_string());
        let kept = |content: &str| {
            fs::write(&source, content).unwrap();
            keep(&run, &file).map(|(FilterFile::Module(path) | FilterFile::Wasm(path))| path)
        };
        let first = kept("one").unwrap();
        assert_eq!(fs::read(&first).unwrap(), b"one");
        assert_eq!(kept("one").unwrap(), first);
        let second = kept("two").unwrap();
        assert_ne!(second, first);
        assert_eq!(fs::read(&first).unwrap(), b"one");
        for more in 2..MOST_MODULES {
            kept(&more.to_string()).unwrap();
        }
        let error = kept("one too many").unwrap_err().to_string();
        assert!(error.contains("17th native filter"), "{error}");
        // What it has it may have again.
        assert_eq!(kept("two").unwrap(), second);
        fs::remove_file(&source).unwrap();
        let error = keep(&run, &file).unwrap_err().to_string();
        assert!(error.contains("cannot read the filter"), "{error}");
    }
}
