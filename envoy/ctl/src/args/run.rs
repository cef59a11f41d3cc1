//! The arguments of `egressctl run`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;

use super::Rules;
use egress_run::Drain;

/// `egressctl run`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Run {
    /// What every command with rules takes.
    #[command(flatten)]
    pub(crate) rules: Rules,
    /// The Envoy to start [default: `envoy` on PATH, or the one that `make envoy` installed]
    #[arg(long, value_name = "PATH")]
    pub(crate) envoy: Option<PathBuf>,
    /// Envoy's worker threads [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) concurrency: Option<u32>,
    /// Keep the first rules, even if their files change
    #[arg(long)]
    pub(crate) once: bool,
    /// On SIGTERM, serve for DELAY while health checks fail, then give open requests LIMIT to finish. A second signal
    /// ends at once. Kubernetes needs 10s,45s
    #[arg(long, value_name = "DELAY,LIMIT", default_value = "0s,30s", value_parser = drain)]
    pub(crate) drain: Drain,
}

/// The longest time that a drain may take, each part of it.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Reads `10s,45s`.
fn drain(text: &str) -> Result<Drain, String> {
    let (delay, limit) = text
        .split_once(',')
        .ok_or("must be DELAY,LIMIT, for example 10s,45s")?;
    let time = |text: &str| match humantime::parse_duration(text) {
        Ok(time) if time <= LONGEST => Ok(time),
        Ok(_) => Err(format!("`{text}` is more than a day")),
        Err(error) => Err(format!("`{text}`: {error}")),
    };
    Ok(Drain {
        delay: time(delay)?,
        limit: time(limit)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_is_two_times() {
        let read = |delay, limit| {
            Ok(Drain {
                delay: Duration::from_millis(delay),
                limit: Duration::from_millis(limit),
            })
        };
        assert_eq!(drain("0s,30s"), read(0, 30_000));
        assert_eq!(drain("500ms,1m"), read(500, 60_000));
        assert_eq!(drain("0s,0s"), read(0, 0));
        for (text, said) in [
            ("30s", "must be DELAY,LIMIT"),
            ("1s,", "``: "),
            ("1s,-3s", "`-3s`: "),
            ("1,2", "`1`: "),
            ("1s,2days", "`2days` is more than a day"),
        ] {
            let error = drain(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
