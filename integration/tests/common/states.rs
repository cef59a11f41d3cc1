//! A page about states of the filter. Each row of its table is the test of the same name; what a request gets, and by what
//! one sees the state, is read from the row.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use egress_integration::envoy::EnvoyProcess;

use super::{SOON, eventually};

/// A page, and the program whose tests are its rows.
pub(crate) struct States {
    pub(crate) page: &'static str,
    pub(crate) program: &'static str,
}

/// A row of the page's table.
pub(crate) struct Fact {
    /// What a request for a host of the rules gets.
    pub(crate) gets: String,
    /// Parts of log lines, and counters.
    pub(crate) tells: Vec<String>,
}

impl States {
    /// The rows: the state, what a request gets, what tells it, what ends it.
    fn rows(&self) -> Vec<[String; 4]> {
        let cells = |line: &str| -> Option<[String; 4]> {
            let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
            let cells: Vec<_> = inner.split(" | ").map(str::to_owned).collect();
            cells.try_into().ok()
        };
        self.page.lines().filter_map(cells).skip(1).collect()
    }

    pub(crate) fn fact(&self, state: &str) -> Result<Fact> {
        let row = self.rows().into_iter().find(|[name, ..]| *name == state);
        let [_, gets, tells, _] = row.with_context(|| format!("no row for `{state}`"))?;
        let tells = tells.split('`').skip(1).step_by(2);
        Ok(Fact {
            gets,
            tells: tells.map(str::to_owned).collect(),
        })
    }

    /// Each row has its test, each test its row, and they are more than `few`.
    pub(crate) fn assert_are_tests(&self, few: usize) {
        let tests: BTreeSet<_> = self
            .program
            .split("#[tokio::test]\nasync fn ")
            .skip(1)
            .filter_map(|text| text.split_once('('))
            .map(|(name, _)| name.replace('_', " "))
            .collect();
        let states: BTreeSet<_> = self.rows().into_iter().map(|[state, ..]| state).collect();
        assert_eq!(states, tests);
        assert!(states.len() > few);
    }
}

impl Fact {
    /// Waits for each part of a log line, and for each counter to be no longer zero.
    pub(crate) async fn is_told(&self, envoy: &EnvoyProcess) -> Result<()> {
        let counters = ["wasm.", "extension_config_discovery."];
        for told in &self.tells {
            if counters.iter().any(|counter| told.starts_with(counter)) {
                eventually(told, async || Ok(counter(envoy, told).await? != 0)).await?;
            } else {
                envoy
                    .wait_for_stderr(|line| line.contains(told), SOON)
                    .await?;
            }
        }
        Ok(())
    }
}

/// Reads a counter of Envoy's.
pub(crate) async fn counter(envoy: &EnvoyProcess, name: &str) -> Result<u64> {
    let stats = envoy.admin_get("/stats").await?.body;
    let mut lines = stats.lines();
    let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Ok(found.with_context(|| name.to_owned())?.parse()?)
}
