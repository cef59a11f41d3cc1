//! A child process that leaves nobody behind.

use std::{
    collections::BTreeSet,
    fmt,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

/// Lines of output that an error shows.
const TAIL_LINES: usize = 40;
/// How long the output of a dead process may take to be read; only a survivor that holds the pipe
/// open takes longer.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How often to look whether a process that is not our child is still there. The kernel tells nobody
/// but its parent.
const ALIVE_INTERVAL: Duration = Duration::from_millis(10);

/// A child in a process group of its own, whose output is kept.
///
/// Dropping it kills the child, its descendants and its group.
pub(crate) struct OwnedChild {
    child: Child,
    pid: Pid,
    stdout: Lines,
    stderr: Lines,
    reading: [JoinHandle<()>; 2],
}

impl OwnedChild {
    /// Starts `command`, without input.
    pub(crate) fn spawn(command: Command) -> Result<Self> {
        Self::spawn_reading(command, Stdio::null())
    }

    /// Starts `command` with this input.
    pub(crate) fn spawn_reading(mut command: Command, stdin: Stdio) -> Result<Self> {
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| {
                let program = command.as_std().get_program();
                format!("cannot start `{}`", program.display())
            })?;
        let id = child.id().context("the child has no process id")?;
        let (stdout, stderr) = (Lines::default(), Lines::default());
        let stdout_pipe = child.stdout.take().context("no stdout")?;
        let stderr_pipe = child.stderr.take().context("no stderr")?;
        Ok(Self {
            pid: Pid::from_raw(id.try_into()?),
            child,
            reading: [
                tokio::spawn(stdout.clone().read(stdout_pipe)),
                tokio::spawn(stderr.clone().read(stderr_pipe)),
            ],
            stdout,
            stderr,
        })
    }

    pub(crate) fn stdout(&self) -> &Lines {
        &self.stdout
    }

    pub(crate) fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// The process that was started.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends `signal` to the child alone.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid, signal)?)
    }

    /// Waits until the child has exited and what it wrote has been read. Kills what it left behind.
    pub(crate) async fn exited(&mut self) -> Result<ExitStatus> {
        let family = Family::of(self.pid);
        let (status, _) = self.exited_leaving(family).await?;
        Ok(status)
    }

    /// Sends `signal` to the child alone and waits until it has exited.
    ///
    /// That any of its descendants is still there after that is an error: a program that starts
    /// others has to end them, and a user's Ctrl-C must not depend on this harness.
    pub(crate) async fn stop(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            let stderr = self.stderr.tail();
            bail!("it had ended before, {status}; its stderr:\n{stderr}");
        }
        // Before the signal: once the child is dead, nothing but the group tells who was its own.
        let family = Family::of(self.pid);
        kill(self.pid, signal)?;
        self.leaves_nobody(family, limit).await
    }

    /// Waits until the child ends by itself, and takes it for an error when it leaves somebody behind.
    pub(crate) async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let family = Family::of(self.pid);
        self.leaves_nobody(family, limit).await
    }

    async fn leaves_nobody(&mut self, family: Family, limit: Duration) -> Result<ExitStatus> {
        match timeout(limit, self.exited_leaving(family)).await {
            Ok(Ok((status, left))) if left.is_empty() => Ok(status),
            Ok(Ok((status, left))) => {
                let left: Vec<_> = left.iter().map(ToString::to_string).collect();
                bail!("it ended, {status}, and left behind {}", left.join(", "))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let stderr = self.stderr.tail();
                bail!("it did not end within {limit:?}; its stderr:\n{stderr}")
            }
        }
    }

    /// Kills the child alone and at once, and waits until its descendants have gone as well.
    ///
    /// # Errors
    ///
    /// When one of them stays; it is killed then.
    pub(crate) async fn kill_alone(&mut self, limit: Duration) -> Result<()> {
        let mut family = Family::of(self.pid);
        kill(self.pid, Signal::SIGKILL)?;
        self.child.wait().await?;
        let gone = async {
            while !family.alive().is_empty() {
                tokio::time::sleep(ALIVE_INTERVAL).await;
            }
        };
        if timeout(limit, gone).await.is_ok() {
            return Ok(());
        }
        let left: Vec<_> = family.alive().iter().map(ToString::to_string).collect();
        family.kill();
        bail!(
            "{limit:?} after it was killed, there still is {}",
            left.join(", ")
        )
    }

    async fn exited_leaving(&mut self, mut family: Family) -> Result<(ExitStatus, Vec<Process>)> {
        let status = self.child.wait().await?;
        family.look();
        let left = family.alive();
        family.kill();
        for reading in &mut self.reading {
            // A task may be awaited once only, and this function runs again after a cancelled run.
            if !reading.is_finished() {
                // Late output is for messages only: without it they are shorter.
                let _read = timeout(DRAIN_LIMIT, reading).await;
            }
        }
        Ok((status, left))
    }
}

impl Drop for OwnedChild {
    fn drop(&mut self) {
        // Once it was waited for, its family is gone and its id may be somebody else's.
        if self.child.id().is_some() {
            Family::of(self.pid).kill();
            // Where there is no `/proc`, this is what is left to do.
            let _gone = killpg(self.pid, Signal::SIGKILL);
        }
        for reading in &self.reading {
            reading.abort();
        }
    }
}

/// The lines that a process has written to one pipe so far. A clone sees what is still to come.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<watch::Sender<Vec<String>>>);

impl Lines {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    /// The last lines, for an error message.
    pub(crate) fn tail(&self) -> String {
        let lines = self.0.borrow();
        let skipped = lines.len().saturating_sub(TAIL_LINES);
        let last: Vec<_> = lines.iter().skip(skipped).map(String::as_str).collect();
        last.join("\n")
    }

    /// Waits for a line, which may have been written already. Without one, it waits for ever.
    pub(crate) async fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> String {
        let mut changes = self.0.subscribe();
        let mut found = None;
        let waited = changes.wait_for(|lines| {
            found = lines.iter().find(|line| wanted(line)).cloned();
            found.is_some()
        });
        // The sender lives in `self`, so waiting does not fail.
        let _lines = waited.await;
        found.unwrap_or_default()
    }

    async fn read(self, pipe: impl AsyncRead + Send + Unpin) {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while let Ok(read) = pipe.read_until(b'\n', &mut line).await {
            if read == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']).to_owned();
            self.0.send_modify(|lines| lines.push(text));
            line.clear();
        }
    }
}

/// A process, its descendants, and the process groups that any of them leads.
///
/// The group alone is not enough: a program may well put what it starts into another one, so that
/// a Ctrl-C in a terminal reaches it only once. Without `/proc` it is the empty set.
struct Family {
    root: Pid,
    /// Everyone ever seen, so that a process is known after its parent has died.
    members: Vec<Process>,
}

#[derive(Debug)]
struct Process {
    pid: Pid,
    name: String,
    parent: Pid,
    group: Pid,
    /// In clock ticks since boot; tells a process from a later one with the same id.
    started: u64,
    dead: bool,
}

impl Process {
    fn is(&self, other: &Self) -> bool {
        self.pid == other.pid && self.started == other.started
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

impl Family {
    fn of(root: Pid) -> Self {
        let members = Vec::new();
        let mut family = Self { root, members };
        family.look();
        family
    }

    /// Takes in those who have come since, and tells whether there are any.
    fn look(&mut self) -> bool {
        let before = self.members.len();
        let mut outside = processes();
        outside.retain(|process| !self.members.iter().any(|member| member.is(process)));
        let mut known: BTreeSet<_> = self.members.iter().map(|member| member.pid).collect();
        known.insert(self.root);
        loop {
            let (found, rest): (Vec<_>, Vec<_>) = outside.into_iter().partition(|process| {
                let ties = [process.pid, process.parent, process.group];
                ties.iter().any(|id| known.contains(id))
            });
            if found.is_empty() {
                return self.members.len() > before;
            }
            known.extend(found.iter().map(|process| process.pid));
            self.members.extend(found);
            outside = rest;
        }
    }

    fn alive(&self) -> Vec<Process> {
        let mut now = processes();
        now.retain(|process| !process.dead && self.members.iter().any(|was| was.is(process)));
        now
    }

    /// Kills everyone, those included who are being started meanwhile.
    fn kill(&mut self) {
        // A stopped process starts no other, so this comes to an end.
        loop {
            self.signal(Signal::SIGSTOP);
            if !self.look() {
                break;
            }
        }
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        for process in self.alive() {
            // It may have ended since, which is as good.
            let _gone = kill(process.pid, signal);
        }
    }
}

fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            parse_stat(&stat)
        })
        .collect()
}

/// Reads `/proc/PID/stat`. Source: proc_pid_stat(5), fields 1 to 5 and 22.
fn parse_stat(stat: &str) -> Option<Process> {
    // The name is in parentheses and may contain any of them.
    let (head, rest) = stat.rsplit_once(')')?;
    let (pid, name) = head.split_once('(')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some(Process {
        pid: Pid::from_raw(pid.trim().parse().ok()?),
        name: name.to_owned(),
        parent: Pid::from_raw(parent),
        group: Pid::from_raw(group),
        started: fields.nth(16)?.parse().ok()?,
        dead: matches!(state, "Z" | "X"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_an_odd_name() -> Result<()> {
        let line = "42 (a (b) c) S 7 40 40 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 9876 1 2";
        let process = parse_stat(line).context("not read")?;
        assert_eq!(process.pid, Pid::from_raw(42));
        assert_eq!(process.name, "a (b) c");
        assert_eq!(process.parent, Pid::from_raw(7));
        assert_eq!(process.group, Pid::from_raw(40));
        assert_eq!(process.started, 9876);
        assert!(!process.dead);
        Ok(())
    }

    #[tokio::test]
    async fn a_grandchild_in_another_group_is_family() -> Result<()> {
        let mut command = Command::new("setsid");
        command.args(["--wait", "sh", "-c", "echo up; sleep 300; true"]);
        // `setsid` forks only when it leads its group, as a child of ours does.
        let child = OwnedChild::spawn(command)?;
        let up = child.stdout().wait_for(|line| line == "up");
        timeout(Duration::from_secs(10), up).await?;
        let family = Family::of(child.pid);
        assert!(
            family.members.iter().any(|one| one.group != child.pid),
            "{:?}",
            family.members
        );

        drop(child);
        let gone = async {
            while !family.alive().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), gone).await?;
        Ok(())
    }
}
