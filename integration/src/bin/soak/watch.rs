//! Memory and descriptors of the program and of Envoy, every few seconds.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use tokio::sync::mpsc::UnboundedSender;

use crate::stage::Stage;

const EVERY: Duration = Duration::from_secs(2);

/// What was in use at a time.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sample {
    pub(crate) at: Duration,
    /// Resident memory of the newest Envoy, in bytes.
    pub(crate) envoy: u64,
    /// Of the program that started it.
    pub(crate) program: u64,
    /// Open descriptors of both.
    pub(crate) descriptors: u64,
}

/// One of its numbers.
pub(crate) type Of = fn(&Sample) -> u64;

/// Takes samples until nobody wants them.
pub(crate) async fn watch(stage: Arc<Stage>, samples: UnboundedSender<Sample>) {
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        let pids = stage.pids();
        let Some(program) = pids.last().copied() else {
            continue;
        };
        let Some(envoy) = children(program).first().copied() else {
            continue;
        };
        let sample = Sample {
            at: begun.elapsed(),
            envoy: resident(envoy),
            program: resident(program),
            descriptors: descriptors(envoy) + descriptors(program),
        };
        if samples.send(sample).is_err() {
            return;
        }
    }
}

/// What does not answer has ended since; it counts as nothing.
fn children(pid: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let read = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let all: Vec<String> = read.collect();
    let words = all.iter().flat_map(|text| text.split_ascii_whitespace());
    words
        .filter_map(|word| word.parse().ok().map(Pid::from_raw))
        .collect()
}

fn resident(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn descriptors(pid: Pid) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |all| all.count() as u64)
}
