//! The folder of a run, and the runs on this machine.

use std::env;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use egress_render::xds::Admin;

/// What the folders of runs are called, before the part that tells them apart.
const RUN_PREFIX: &str = "egressctl-";

/// Makes the folder of a run, which only its owner can open whatever the umask is. It goes when it is dropped.
///
/// # Errors
/// When it cannot be made.
pub(super) fn run_folder() -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(RUN_PREFIX)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
}

/// What Envoy and we write into the folder of a run beside the bootstrap, in bytes: addresses and numbers.
const ROOM: usize = 32 << 10;

/// As [`run_folder`], with room for what is written there. Envoy does not say where it lacks some.
///
/// # Errors
/// When it cannot be made, or the disk is full.
pub(super) fn run_folder_with_room() -> io::Result<tempfile::TempDir> {
    let folder = run_folder()?;
    let file = folder.path().join("room");
    fs::write(&file, vec![0; ROOM])?;
    fs::remove_file(&file)?;
    Ok(folder)
}

/// Makes the folder of what an Envoy shares with the one that takes its place, which only its owner can open.
///
/// # Errors
/// When it cannot be made.
pub(super) fn hot_folder() -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("egress-hot-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
}

/// The socket of Envoy's admin interface in the folder of a run.
pub(super) const ADMIN_SOCKET: &str = "admin.sock";

/// The socket of the discovery server in the folder of a run.
pub(super) const DISCOVERY_SOCKET: &str = "discovery.sock";

/// The file of a run into which Envoy writes where its admin interface is.
pub(super) const ADMIN_ADDRESS: &str = "admin.txt";

/// Whether a path is a folder that we own and nobody else can look into: others can make folders of any name
/// where temporary ones are.
fn is_ours_alone(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|meta| {
        meta.is_dir()
            && meta.uid() == rustix::process::geteuid().as_raw()
            && meta.mode() & 0o077 == 0
    })
}

/// Returns the folders of our runs on this machine, those that were killed among them.
pub(super) fn of_runs() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(RUN_PREFIX))
        })
        .filter(|folder| is_ours_alone(folder))
        .collect();
    found.sort();
    found
}

/// Returns the admin interfaces of our runs on this machine, those that were killed among them.
pub fn runs() -> Vec<Admin> {
    of_runs()
        .iter()
        .filter_map(|folder| {
            let socket = folder.join(ADMIN_SOCKET);
            if socket.exists() {
                return Some(Admin::Pipe(socket.display().to_string()));
            }
            let address: SocketAddr = fs::read_to_string(folder.join(ADMIN_ADDRESS))
                .ok()?
                .trim()
                .parse()
                .ok()?;
            Some(Admin::Tcp(address.ip().to_string(), address.port()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_run_is_ours_alone() {
        assert!(is_ours_alone(run_folder().unwrap().path()));
    }
}
