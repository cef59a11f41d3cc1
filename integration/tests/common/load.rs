//! Clients that ask without a pause while something changes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use egress_integration::probe;

use super::{HOST, eventually};

/// Requests for [`HOST`] that come in one after another from each of some clients, and what became of them.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: JoinSet<Result<()>>,
}

impl Load {
    /// So many clients, each with a connection for each request. Every request must be answered 200; the first that is
    /// not ends the load with an error.
    pub(crate) fn start(http: SocketAddr, clients: usize) -> Self {
        let (stop, answered) = (Arc::default(), Arc::default());
        let mut asking = JoinSet::new();
        for _ in 0..clients {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            asking.spawn(async move {
                while !AtomicBool::load(&stop, Ordering::Relaxed) {
                    let answer = probe::get(http, HOST, "/load").await?;
                    ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
                    AtomicU64::fetch_add(&answered, 1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Self {
            stop,
            answered,
            clients: asking,
        }
    }

    /// Waits for some more answers, so that what comes next happens under load.
    pub(crate) async fn goes_on(&self) -> Result<()> {
        let wanted = self.answered.load(Ordering::Relaxed) + 50;
        eventually("more answers", async || {
            Ok(self.answered.load(Ordering::Relaxed) >= wanted)
        })
        .await
    }

    /// Ends it; returns how many requests were answered, all of them well.
    pub(crate) async fn end(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        Ok(self.answered.load(Ordering::Relaxed))
    }
}
