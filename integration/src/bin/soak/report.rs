//! What a soak found, in words; and whether that is good.

use std::{fmt::Write, time::Duration};

use crate::{
    faults::{self, Happened},
    load::Counted,
    watch::{Of, Sample},
};

/// How many requests there are at least in a second.
const RATE: f64 = 500.0;
/// How often each fault has to happen.
const TIMES: usize = 5;

/// All that was counted.
pub(crate) struct Report {
    pub(crate) length: Duration,
    pub(crate) counted: Counted,
    pub(crate) happened: Vec<Happened>,
    pub(crate) samples: Vec<Sample>,
    /// Connections to ports that nobody should dial.
    pub(crate) plaintext: u64,
    /// Requests whose SNI was not their host.
    pub(crate) wrong: Vec<String>,
}

impl Report {
    fn requests(&self) -> u64 {
        let counts = self.counted.values();
        let all = counts.map(|count| count.good + sum(&count.cut) + sum(&count.failed));
        all.sum()
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate has three digits")]
    fn rate(&self) -> f64 {
        self.requests() as f64 / self.length.as_secs_f64()
    }

    /// What is not as it should be.
    pub(crate) fn failed(&self) -> Vec<String> {
        let mut failed = Vec::new();
        let ours: u64 = self.counted.values().map(|count| sum(&count.failed)).sum();
        if ours > 0 {
            failed.push(format!("{ours} requests failed that need not"));
        }
        if self.rate() < RATE {
            failed.push(format!(
                "{:.0} requests in a second, not {RATE}",
                self.rate()
            ));
        }
        for fault in &faults::ALL {
            let times = faults::times(&self.happened, fault);
            if times < TIMES {
                failed.push(format!(
                    "`{}` happened {times} times, not {TIMES}",
                    fault.name
                ));
            }
        }
        if self.plaintext > 0 {
            failed.push(format!("{} connections in plaintext", self.plaintext));
        }
        if let Some(first) = self.wrong.first() {
            failed.push(format!(
                "{} requests by another name, the first: {first}",
                self.wrong.len()
            ));
        }
        failed
    }

    /// The text of SOAK.md.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("# Soak\n\n");
        let minutes = self.length.as_secs() / 60;
        let (requests, rate) = (self.requests(), self.rate());
        let _ = writeln!(
            text,
            "`make soak` sent {requests} requests in {minutes} minutes, {rate:.0} in a second, through one `egressctl run` \
             and its successors, while the faults below happened. The ports that speak no TLS heard {} connections; {} \
             requests came by another name than their host's.\n",
            self.plaintext,
            self.wrong.len()
        );
        text.push_str("| requests | good | cut by the server | failed | on a new connection |\n|---|---|---|---|---|\n");
        for (kind, count) in &self.counted {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                kind.name(),
                count.good,
                sum(&count.cut),
                sum(&count.failed),
                count.again
            );
        }
        text.push_str(
            "\nCut by the server is what had begun to be answered, or must not be sent twice, when its server was killed, \
             and what must not be sent twice and came just as its server closed the idle connection. On a new connection is what the client sent again because the proxy had closed the connection before \
             the request was on it, as each proxy may.\n",
        );
        for (head, of) in [("Cut by the server", true), ("Failed", false)] {
            let causes = self.counted.iter().flat_map(|(kind, count)| {
                let causes = if of { &count.cut } else { &count.failed };
                causes
                    .iter()
                    .map(move |(cause, times)| (kind.name(), cause, times))
            });
            let mut lines = String::new();
            for (kind, cause, times) in causes {
                let _ = writeln!(lines, "- {kind}: {cause}: {times}");
            }
            if !lines.is_empty() {
                let _ = write!(text, "\n{head}:\n\n{lines}");
            }
        }
        text.push_str("\n| fault | times | the last one showed |\n|---|---|---|\n");
        for fault in &faults::ALL {
            let times = faults::times(&self.happened, fault);
            let last = faults::last(&self.happened, fault).unwrap_or("-");
            let _ = writeln!(text, "| {} | {times} | {last} |", fault.name);
        }
        self.memory(&mut text);
        text.push_str("\n![Memory and descriptors over time](soak.svg)\n");
        text
    }

    fn memory(&self, text: &mut String) {
        let rows: [(&str, Of, u64); 3] = [
            (
                "resident memory of Envoy, MB",
                |sample| sample.envoy,
                1_000_000,
            ),
            (
                "resident memory of egressctl, MB",
                |sample| sample.program,
                1_000_000,
            ),
            ("open descriptors of both", |sample| sample.descriptors, 1),
        ];
        text.push_str(
            "\n| | first tenth, median | last tenth, median | most |\n|---|---|---|---|\n",
        );
        for (name, of, unit) in rows {
            let tenth = (self.samples.len() / 10).max(1);
            let first = median(self.samples.iter().take(tenth).map(of));
            let last = median(self.samples.iter().rev().take(tenth).map(of));
            let most = self.samples.iter().map(of).max().unwrap_or(0);
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {} |",
                first / unit,
                last / unit,
                most / unit
            );
        }
    }
}

fn sum(causes: &std::collections::BTreeMap<String, u64>) -> u64 {
    causes.values().sum()
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
