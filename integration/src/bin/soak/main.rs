//! `make soak`: mixed load on `egressctl run` for an hour, while what may go wrong does.
//!
//! Each [fault](faults) comes back until the time is over, and has to show by a count of its own that it happened. The
//! load must not notice. What the servers' own deeds cost, and nobody could have saved, is counted apart.

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Parser;
use tokio::sync::mpsc;

mod faults;
mod load;
mod origin;
mod picture;
mod report;
mod stage;
mod watch;

use stage::Stage;

/// How often each fault comes.
const ROUNDS: u32 = 6;

/// What the command line says.
#[derive(Parser)]
#[command(about = "Mixed load on `egressctl run`, while what may go wrong does")]
struct Args {
    /// How long it takes.
    #[arg(long, default_value_t = 60)]
    minutes: u32,
    /// Where SOAK.md and soak.svg are written; without it nothing is.
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match soak(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("soak: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn soak(args: &Args) -> Result<()> {
    let length = Duration::from_secs(60) * args.minutes;
    let stage = Arc::new(Stage::start().await?);
    say(&format!("==> soak: {} minutes of load", args.minutes));
    let (send, mut sampled) = mpsc::unbounded_channel();
    let watching = tokio::spawn(watch::watch(Arc::clone(&stage), send));
    let load = load::start(&stage);
    let begun = Instant::now();
    let faults = &faults::ALL;
    let slot = length / ROUNDS / u32::try_from(faults.len())?;
    let mut happened = Vec::new();
    for round in 0..ROUNDS {
        for (at, fault) in faults.iter().enumerate() {
            let place = round * u32::try_from(faults.len())? + u32::try_from(at)?;
            tokio::time::sleep_until((begun + slot * place).into()).await;
            let since = begun.elapsed();
            let result = fault.happen(&stage).await;
            say(&format!(
                "{:>5} s  {:<24} {}",
                since.as_secs(),
                fault.name,
                result
                    .as_ref()
                    .map_or_else(|e| format!("FAILED: {e:#}"), ToString::to_string)
            ));
            happened.push(faults::Happened {
                fault: fault.name,
                at: since,
                result,
            });
        }
    }
    tokio::time::sleep_until((begun + length).into()).await;
    watching.abort();
    let samples = std::iter::from_fn(|| sampled.try_recv().ok()).collect();
    let counted = load.end().await;
    for line in stage.failures()? {
        say(&line);
    }
    let report = report::Report {
        length: begun.elapsed(),
        counted,
        happened,
        samples,
        plaintext: stage.heard_in_plaintext(),
        wrong: stage.wrong(),
    };
    let text = report.text();
    say(&text);
    if let Some(folder) = &args.write {
        std::fs::write(folder.join("SOAK.md"), text)?;
        std::fs::write(folder.join("soak.svg"), picture::draw(&report))?;
    }
    let failed = report.failed();
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

/// Writes a line; that nobody reads it is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
