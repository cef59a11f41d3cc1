//! The harness's way of running `egressctl`, proven on a script that behaves as told.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use egress_integration::egressctl::{Builder, Egressctl, EndedEarly, Running};

const SOON: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn fake(behaviour: &str) -> Builder {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fake/egressctl");
    Egressctl::builder().binary(script).env("FAKE", behaviour)
}

/// The process that the script started, from its stderr.
async fn proxy(running: &Running) -> Result<PathBuf> {
    let told = async {
        loop {
            let stderr = running.stderr();
            let mut ids = stderr.iter().filter_map(|line| line.strip_prefix("proxy "));
            if let Some(process) = ids.next().map(|id| Path::new("/proc").join(id)) {
                // It begins as a shell and becomes what it is for.
                let name = std::fs::read_to_string(process.join("comm"));
                if name.is_ok_and(|name| name == "sleep\n") {
                    return process;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    Ok(tokio::time::timeout(SOON, told).await?)
}

fn lives(process: &Path) -> bool {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|rest| !rest.starts_with(['Z', 'X']))
}

async fn dies(process: &Path) -> Result<()> {
    let gone = async {
        while lives(process) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, gone)
        .await
        .with_context(|| format!("{} lives", process.display()))
}

fn error_of<T>(result: Result<T>) -> Result<anyhow::Error> {
    match result {
        Ok(_) => bail!("this should have failed"),
        Err(error) => Ok(error),
    }
}

#[tokio::test]
async fn a_run_is_ready_and_stops() -> Result<()> {
    let running = fake("ready")
        .rules_text("kind: ServiceEntry\n")
        .port(80, 0)
        .port(443, 0)
        .connect_to("edition.cnn.com:443:127.0.0.1:1")
        .arg("--verbose")
        .start()
        .await?;
    ensure!(running.listener(80)? == "127.0.0.1:41234".parse()?);
    ensure!(running.listener(443)? == "127.0.0.1:41235".parse()?);
    ensure!(running.admin()? == "127.0.0.1:9901".parse()?);
    let unknown = error_of(running.listener(81))?.to_string();
    ensure!(unknown.contains("`81`"), "{unknown}");
    ensure!(running.stdout().first().map(String::as_str) == Some("starting"));

    let arguments = running
        .wait_for_log(|line| line.starts_with("run "), SOON)
        .await?;
    for wanted in [
        "run -f ",
        " --admin 127.0.0.1:0 ",
        " --access-log ",
        " --port 80=0 --port 443=0 --connect-to edition.cnn.com:443:127.0.0.1:1 --verbose",
    ] {
        ensure!(arguments.contains(wanted), "{wanted}: {arguments}");
    }
    running
        .wait_for_log(|line| line == "kind: ServiceEntry", SOON)
        .await?;
    ensure!(running.access_log()?.len() == 2);

    let proxy = proxy(&running).await?;
    ensure!(lives(&proxy));
    ensure!(running.stop().await?.code() == Some(3));
    ensure!(!lives(&proxy));
    Ok(())
}

#[tokio::test]
async fn a_log_line_that_does_not_come_fails_with_log_and_stderr() -> Result<()> {
    let running = fake("ready").rules_text("the rules").start().await?;
    running
        .wait_for_log(|line| line == "the rules", SOON)
        .await?;
    proxy(&running).await?;
    let missing = running.wait_for_log(|line| line == "not there", SHORT);
    let message = error_of(missing.await)?.to_string();
    ensure!(message.contains("the rules"), "{message}");
    ensure!(message.contains("proxy "), "{message}");
    Ok(())
}

#[tokio::test]
async fn dropping_a_run_ends_what_it_started() -> Result<()> {
    let running = fake("ready").start().await?;
    let proxy = proxy(&running).await?;
    ensure!(lives(&proxy));
    drop(running);
    dies(&proxy).await
}

#[tokio::test]
async fn a_run_that_leaves_its_proxy_behind_fails_to_stop() -> Result<()> {
    let running = fake("careless").start().await?;
    let proxy = proxy(&running).await?;
    let message = format!("{:#}", error_of(running.stop().await)?);
    ensure!(message.contains("left behind"), "{message}");
    ensure!(message.contains("sleep"), "{message}");
    dies(&proxy).await
}

#[tokio::test]
async fn a_run_that_refuses_tells_its_exit_code_and_stderr() -> Result<()> {
    let error = error_of(fake("refuses").start().await)?;
    let ended = error.downcast_ref::<EndedEarly>();
    let ended = ended.with_context(|| format!("another error: {error}"))?;
    ensure!(ended.status.code() == Some(1));
    ensure!(ended.stderr == "error: spec.hosts: missing");
    ensure!(error.to_string().contains("spec.hosts"));
    Ok(())
}

#[tokio::test]
async fn a_run_that_is_never_ready_fails_with_its_stderr() -> Result<()> {
    // Long enough for a shell to say two lines on a busy machine.
    let limit = Duration::from_secs(3);
    let started = fake("hangs").ready_limit(limit).start().await;
    let message = error_of(started)?.to_string();
    ensure!(message.contains("not ready within"), "{message}");
    ensure!(message.contains("looking for Envoy"), "{message}");
    let id = message
        .split("proxy ")
        .nth(1)
        .and_then(|rest| rest.lines().next())
        .context("no proxy")?;
    dies(&Path::new("/proc").join(id)).await
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() -> Result<()> {
    let missing = Egressctl::builder().binary("/nowhere/egressctl");
    let message = error_of(missing.start().await)?.to_string();
    ensure!(message.contains("/nowhere/egressctl"), "{message}");
    Ok(())
}
