//! One run takes the place of another: Envoy's hot restart.
//!
//! ```text
//! run ──record──► its folder ──find──► next run ──► Envoy takes the listening sockets ──► tells the run before
//! ```
//!
//! The new Envoy gets the very sockets that the old one listens on, so no connection that waits in them is lost. Two
//! Envoys that listen side by side (`SO_REUSEPORT`) do lose those that wait when the old one closes its own. From then
//! on the old one finishes what it has begun, until the new one ends it.
//!
//! Envoy counts generations by an epoch, and finds the one before by a base id and by sockets. Those are in a folder that
//! only we can open; by default they would be open to everybody on the machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use egress_policy::PortNumber;
use egress_rules::Complaint;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::{atomic, folder};

/// What a run leaves in its folder for whoever takes its place.
const RECORD: &str = "run.json";

/// Where a run is told that its place was taken.
const REPLACED: &str = "replaced.sock";

/// Where Linux has memory that processes share.
const SHARED_MEMORY: &str = "/dev/shm";

/// What Envoy's sockets are called, before the part that tells them apart.
const SOCKET: &str = "s";

/// The longest path of a socket that the kernel takes, and what Envoy puts behind ours.
const LONGEST: usize = 107 - "_udp_parent_12345678901".len();

/// One Envoy of a row in which each takes the place of the one before. What they share goes with the last one.
pub(super) struct Generation {
    epoch: u32,
    /// Where the sockets are; `None` where this machine cannot do it.
    sockets: Option<PathBuf>,
    /// What tells this row from others; the first Envoy chooses it and writes it down.
    base: Base,
    passed_on: bool,
}

enum Base {
    Written(PathBuf),
    Known(u64),
}

impl Generation {
    /// The first of a row.
    ///
    /// # Errors
    /// When no folder can be made.
    pub(super) fn first(run: &Path) -> io::Result<Self> {
        let made = folder::hot_folder()?;
        let fits = made.path().join(SOCKET).as_os_str().len() <= LONGEST;
        let sockets = (fits && Path::new(SHARED_MEMORY).is_dir()).then(|| TempDir::keep(made));
        Ok(Generation {
            epoch: 0,
            sockets,
            base: Base::Written(run.join("base-id.txt")),
            passed_on: false,
        })
    }

    /// The one that takes the place of another.
    pub(super) fn after(before: &Predecessor) -> Self {
        Generation {
            epoch: before.epoch + 1,
            sockets: Some(before.sockets.clone()),
            base: Base::Known(before.base),
            // It is not ours before the other one has gone.
            passed_on: true,
        }
    }

    /// What Envoy is to be told of it.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let Some(sockets) = &self.sockets else {
            return vec!["--disable-hot-restart".into()];
        };
        let mut arguments: Vec<OsString> = vec![
            "--socket-path".into(),
            sockets.join(SOCKET).into(),
            "--restart-epoch".into(),
            self.epoch.to_string().into(),
        ];
        match &self.base {
            Base::Written(path) => arguments.extend([
                "--use-dynamic-base-id".into(),
                "--base-id-path".into(),
                path.into(),
            ]),
            Base::Known(base) => {
                arguments.extend(["--base-id".into(), base.to_string().into()]);
            }
        }
        arguments
    }

    /// Leaves what is shared to the next one.
    pub(super) fn pass_on(&mut self) {
        self.passed_on = true;
    }

    /// Takes over what is shared from the one before.
    pub(super) fn take_over(&mut self) {
        self.passed_on = false;
    }

    fn base(&self) -> Option<u64> {
        match &self.base {
            Base::Written(path) => fs::read_to_string(path).ok()?.trim().parse().ok(),
            Base::Known(base) => Some(*base),
        }
    }

    /// Writes down what the next one has to know. `version` is that of Envoy's hot restart.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn record(
        &self,
        run: &Path,
        version: &str,
        concurrency: Option<u32>,
        ports: &BTreeMap<PortNumber, u16>,
    ) -> io::Result<()> {
        let (Some(sockets), Some(base)) = (&self.sockets, self.base()) else {
            return Ok(());
        };
        let ports: BTreeMap<String, u16> = ports
            .iter()
            .map(|(service, port)| (service.to_string(), *port))
            .collect();
        let record = json!({
            "pid": std::process::id(),
            "epoch": self.epoch,
            "base": base,
            "sockets": sockets.to_str(),
            "version": version,
            "concurrency": concurrency,
            "ports": ports,
        });
        atomic::replace_private(&run.join(RECORD), record.to_string().as_bytes())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.passed_on {
            return;
        }
        if let Some(base) = self.base().filter(|_| self.sockets.is_some()) {
            // Source: envoyproxy/envoy `source/server/hot_restart_impl.cc`, `attachSharedMemory`; ids are ten apart.
            let name = format!("envoy_shared_memory_{}", base * 10);
            let _ = fs::remove_file(Path::new(SHARED_MEMORY).join(name));
        }
        if let Some(sockets) = &self.sockets {
            let _ = fs::remove_dir_all(sockets);
        }
    }
}

/// Asks an Envoy with which others it can share its sockets.
pub(super) fn hot_restart_version(envoy: &Path) -> Option<String> {
    let output = Command::new(envoy)
        .arg("--hot-restart-version")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The run whose place is taken.
pub(super) struct Predecessor {
    folder: PathBuf,
    epoch: u32,
    base: u64,
    sockets: PathBuf,
    version: String,
    /// How many workers its Envoy has, if that was said.
    pub(super) concurrency: Option<u32>,
    /// The ports that the kernel chose for it.
    pub(super) ports: BTreeMap<PortNumber, u16>,
}

impl Predecessor {
    /// Finds the run of a process, for an Envoy that is to take over.
    ///
    /// # Errors
    /// When there is none, or when this Envoy cannot take over from its Envoy.
    pub(super) fn find(pid: u32, envoy: &Path) -> Result<Self, Complaint> {
        let found = folder::of_runs().into_iter().find_map(|folder| {
            let text = fs::read_to_string(folder.join(RECORD)).ok()?;
            let record: Value = serde_json::from_str(&text).ok()?;
            Self::read(folder, &record, pid)
        });
        let found = found.filter(|_| Path::new("/proc").join(pid.to_string()).exists());
        let Some(found) = found else {
            return Err(Complaint::input(format!(
                "process {pid} is no `egressctl run` of yours that is ready and whose place can be taken\nhint: its TMPDIR must be yours, and {SHARED_MEMORY} must be there; else end it by SIGTERM, which lets requests finish, and start the new one"
            )));
        };
        let ours = hot_restart_version(envoy).unwrap_or_else(|| "unknown".to_owned());
        match ours == found.version {
            true => Ok(found),
            false => Err(Complaint::input(format!(
                "`{}` cannot take over from the Envoy of process {pid}: their versions of hot restart are {ours} and {}\nhint: end process {pid} by SIGTERM, which lets requests finish, then start the new one; in between, connections are refused",
                envoy.display(),
                found.version
            ))),
        }
    }

    fn read(folder: PathBuf, record: &Value, pid: u32) -> Option<Self> {
        if record.get("pid")?.as_u64()? != u64::from(pid) {
            return None;
        }
        let ports = record.get("ports")?.as_object()?.iter();
        let ports = ports.filter_map(|(service, port)| {
            let port = u16::try_from(port.as_u64()?).ok()?;
            Some((PortNumber::new(service.parse().ok()?)?, port))
        });
        let concurrency = record.get("concurrency").and_then(Value::as_u64);
        Some(Predecessor {
            epoch: u32::try_from(record.get("epoch")?.as_u64()?).ok()?,
            base: record.get("base")?.as_u64()?,
            sockets: record.get("sockets")?.as_str()?.into(),
            version: record.get("version")?.as_str()?.to_owned(),
            concurrency: concurrency.and_then(|workers| u32::try_from(workers).ok()),
            ports: ports.collect(),
            folder,
        })
    }

    /// Tells it that its place is taken.
    pub(super) async fn tell(&self) -> io::Result<()> {
        let mut stream = UnixStream::connect(self.folder.join(REPLACED)).await?;
        stream.write_u32(std::process::id()).await
    }
}

/// Hears when the place of this run is taken.
pub(super) struct Successor(UnixListener);

impl Successor {
    /// Listens in the folder of this run.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(super) fn listen(run: &Path) -> io::Result<Self> {
        Ok(Successor(UnixListener::bind(run.join(REPLACED))?))
    }

    /// Waits until its place is taken; returns by which process.
    pub(super) async fn came(&self) -> u32 {
        loop {
            if let Ok((mut stream, _)) = self.0.accept().await
                && let Ok(pid) = stream.read_u32().await
            {
                return pid;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_records_is_what_the_next_one_reads() {
        let run = tempfile::tempdir().unwrap();
        let first = Generation::first(run.path()).unwrap();
        fs::write(run.path().join("base-id.txt"), "1234").unwrap();
        let ports = BTreeMap::from([(PortNumber::new(80).unwrap(), 10080)]);
        first.record(run.path(), "11.104", Some(2), &ports).unwrap();
        let text = fs::read_to_string(run.path().join(RECORD)).unwrap();
        let record = serde_json::from_str(&text).unwrap();
        let pid = std::process::id();
        assert!(Predecessor::read(run.path().into(), &record, pid + 1).is_none());
        let found = Predecessor::read(run.path().into(), &record, pid).unwrap();
        assert_eq!(
            (found.epoch, found.base, found.concurrency),
            (0, 1234, Some(2))
        );
        assert_eq!((found.version.as_str(), found.ports), ("11.104", ports));
        let sockets = found.sockets.clone();
        assert!(sockets.is_dir());
        drop(first);
        assert!(!sockets.exists());
    }

    #[test]
    fn a_process_that_is_no_run_is_refused() {
        let error = Predecessor::find(std::process::id(), Path::new("/none"))
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("is no `egressctl run`"),
            "{error}"
        );
    }
}
