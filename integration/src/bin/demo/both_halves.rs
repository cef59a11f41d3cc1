//! What both halves of the demo need: to run the program, to read its log, and to tell people.

use std::{
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anstyle::Style;
use anyhow::{Result, ensure};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep},
};

use egress_integration::egressctl::{self, Builder, Running};

/// How long Envoy may keep a line of its access log to itself; it writes every 200 ms.
const LOG_LIMIT: Duration = Duration::from_secs(10);
/// How often the access log is read. It is a file that another process appends to, which gives no
/// sign that could be awaited.
const LOG_INTERVAL: Duration = Duration::from_millis(20);
/// As [`LOG_INTERVAL`], where a person waits and not a program.
pub(crate) const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Where the metadata of an access-log line is broken, in characters.
const LINE_WIDTH: usize = 100;

pub(crate) const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// A file of rules, as the page has it.
pub(crate) struct Rules {
    /// From the root of the repository.
    pub(crate) file: &'static str,
    pub(crate) text: &'static str,
}

/// What ends a program from outside.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub(crate) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The page promises something else. Each line that differs is told.
#[derive(Debug, thiserror::Error)]
#[error("this is not what the page promises\n{0}")]
pub(crate) struct NotAsExpected(pub(crate) String);

/// What `curl` has to be told where its environment sends it to a proxy, which cannot know our ports.
pub(crate) fn past_proxies() -> &'static str {
    let names = [
        "http_proxy",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ];
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if names.into_iter().any(set) {
        " --noproxy '*'"
    } else {
        ""
    }
}

/// What every run of the demo has; it leaves nothing outside of `folder`.
pub(crate) fn run_here(run: Builder, folder: &Path) -> Builder {
    let run = run
        // One worker starts fastest, and logs in the order of the requests.
        .arg("--concurrency=1")
        // What it leaves when it is killed goes with our own folder.
        .env("TMPDIR", folder);
    // As in `make run ENVOY=/path/to/envoy`.
    match std::env::var_os("ENVOY").filter(|envoy| !envoy.is_empty()) {
        Some(envoy) => run.arg("--envoy").arg(envoy),
        None => run,
    }
}

/// The program that `make build` left beside this one, or else the one that the tests would take.
pub(crate) fn find_egressctl() -> Result<PathBuf> {
    let chosen = std::env::var_os("EGRESSCTL").is_some_and(|path| !path.is_empty());
    let here = std::env::current_exe()?;
    let beside = here.with_file_name("egressctl");
    // Where only cargo was at work, the filter is missing and the program cannot run.
    let complete = beside.is_file() && beside.with_file_name("egress-filter.wasm").is_file();
    match complete && !chosen {
        true => Ok(beside),
        false => egressctl::binary(),
    }
}

/// Stops a proxy that was started. That anything is left behind is an error.
pub(crate) async fn stop(proxy: Running) -> Result<()> {
    let status = proxy.stop().await?;
    ensure!(
        status.success(),
        "`egressctl run` did not end well: {status}"
    );
    Ok(())
}

/// Waits for `wanted` lines of the access log behind the first `logged`; returns fewer when the
/// time is over.
pub(crate) async fn log_after(
    proxy: &Running,
    logged: usize,
    wanted: usize,
) -> Result<Vec<String>> {
    let deadline = Instant::now() + LOG_LIMIT;
    loop {
        let lines: Vec<_> = proxy.access_log()?.into_iter().skip(logged).collect();
        if lines.len() >= wanted || Instant::now() > deadline {
            return Ok(lines);
        }
        sleep(LOG_INTERVAL).await;
    }
}

/// Indents the lines that are not empty.
pub(crate) fn block<L: AsRef<str>>(lines: &[L]) -> String {
    let lines = lines.iter().map(|line| match line.as_ref() {
        "" => String::new(),
        line => format!("    {line}"),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Writes a line of the access log as it is, and what is ours in it below, in lines that fit.
pub(crate) fn log_block(line: &str) -> String {
    let (istio, ours) = line.split_at(line.find(" action=").unwrap_or(line.len()));
    let mut text = format!("    {DIM}{istio}{DIM:#}");
    let mut width = usize::MAX;
    for word in ours.split_whitespace() {
        let longer = word.chars().count() + 1;
        width = width.saturating_add(longer);
        if width > LINE_WIDTH {
            text.push_str("\n       ");
            width = longer;
        }
        text.push(' ');
        text.push_str(word);
    }
    text
}

/// Prints a text and a line feed; a reader that has gone is not an error.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = anstream::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_stands_below_its_line() {
        let text = log_block("[now] \"GET / HTTP/1.1\" 200 action=originate reason=-");
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(
            plain,
            "    [now] \"GET / HTTP/1.1\" 200\n        action=originate reason=-"
        );
        assert!(!log_block("- action=").contains("action=\n"));
    }
}
