//! Values that only `egressctl run` takes.

use std::time::Duration;

use clap::ValueEnum;

use egress_run::Drain;

/// What is reported at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// What fails.
    Error,
    /// Warnings, and what the run does.
    Warning,
    /// What Envoy does.
    Info,
    /// How Envoy does it.
    Debug,
    /// All that Envoy says.
    Trace,
}

impl From<LogLevel> for egress_run::LogLevel {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warning => Self::Warning,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// The longest time that a drain may take, each part of it.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Reads `10s,45s`.
pub(crate) fn drain(text: &str) -> Result<Drain, String> {
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
