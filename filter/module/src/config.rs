//! A configuration, loaded once for all workers; and what each worker keeps of it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use egress_filter::{Failure, FilterKind, HostError, Loaded, MetadataFormat, Worker, contract};
use egress_policy::PolicyTable;

use crate::host::{ConfigHost, Level, log};

/// A configuration of one listener.
pub(crate) struct Config {
    loaded: Arc<Loaded>,
    counters: Counters,
    /// Envoy has no use for it any more; streams that began with it may.
    retired: AtomicBool,
}

impl Config {
    /// Loads a configuration. What is wrong with it is in Envoy's log, and Envoy goes on with what it had.
    pub(crate) fn load(text: Vec<u8>, kind: FilterKind, host: ConfigHost<'_>) -> Option<Config> {
        // Nothing tells a module the labels of Envoy's node: only a configuration that has them applies selectors.
        let mut loaded = match egress_filter::load_for(text, None) {
            Ok(loaded) => loaded,
            Err(problem) => {
                for line in problem.to_string().lines() {
                    log(Level::Error, &format!("egress: {line}"));
                }
                return None;
            }
        };
        let network = loaded.filter != FilterKind::Http;
        if network != (kind == FilterKind::Network) {
            log(
                Level::Error,
                "egress: the configuration is for the other kind of filter: `filter` must be HTTP for an HTTP filter, and NETWORK or TUNNEL for a network filter",
            );
            return None;
        }
        for warning in &loaded.warnings.0 {
            log(Level::Warning, &format!("egress: {warning}"));
        }
        loaded.table = shared(loaded.table);
        log(
            Level::Info,
            &format!(
                "egress: {} hosts, digest {}",
                loaded.table.len(),
                loaded.digest
            ),
        );
        Some(Config {
            loaded: Arc::new(loaded),
            counters: Counters::define(host),
            retired: AtomicBool::new(false),
        })
    }

    /// How the metadata is written.
    pub(crate) fn metadata(&self) -> MetadataFormat {
        self.loaded.metadata
    }

    /// The numbers of the counters.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Says that no stream begins with it any more.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Returns what this thread keeps for the configuration.
    pub(crate) fn worker(self: &Arc<Self>) -> Rc<Worker> {
        thread_local! {
            static WORKERS: RefCell<Vec<(Arc<Config>, Rc<Worker>)>> = const { RefCell::new(Vec::new()) };
        }
        WORKERS.with_borrow_mut(|workers| {
            let found = workers
                .iter()
                .find(|(config, _)| Arc::ptr_eq(config, self))
                .map(|(_, worker)| Rc::clone(worker));
            found.unwrap_or_else(|| {
                // Where one is new, another may have gone.
                workers.retain(|(config, _)| !config.retired.load(Ordering::Relaxed));
                let worker = Rc::new(Worker::new(Arc::clone(&self.loaded)));
                workers.push((Arc::clone(self), Rc::clone(&worker)));
                worker
            })
        })
    }
}

/// Returns the table that other configurations of this process use already, if it is the same.
fn shared(table: Arc<PolicyTable>) -> Arc<PolicyTable> {
    static TABLES: Mutex<Vec<Weak<PolicyTable>>> = Mutex::new(Vec::new());
    // Nothing in here can panic half way.
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    tables.retain(|table| table.strong_count() > 0);
    let digest = table.digest();
    let mut live = tables.iter().filter_map(Weak::upgrade);
    if let Some(same) = live.find(|other| other.digest() == digest) {
        return same;
    }
    tables.push(Arc::downgrade(&table));
    table
}

/// The numbers that Envoy gave the counters.
pub(crate) struct Counters {
    failures: [Option<usize>; Failure::ALL.len()],
    allowed: Option<usize>,
    leaving: Option<usize>,
    panics: Option<usize>,
}

impl Counters {
    /// Defines all counters, so that all of them show as zero from the start. A host that does not count takes
    /// nothing else from the filter.
    fn define(host: ConfigHost<'_>) -> Self {
        let counters = Counters {
            failures: Failure::ALL.map(|failure| host.counter(failure.counter())),
            allowed: host.counter(contract::PLAINTEXT_ALLOWED),
            leaving: host.counter(contract::REDIRECTS_LEAVING),
            panics: host.counter(contract::PANICS),
        };
        if counters.failures.contains(&None) {
            log(
                Level::Error,
                "egress: the host did not define the counters; failures are logged, not counted",
            );
        }
        counters
    }

    /// Counts a failure.
    pub(crate) fn count(
        &self,
        failure: Failure,
        increment: impl FnOnce(usize) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        let counter = self.failures.get(failure.index()).copied().flatten();
        counter.map_or(Ok(()), increment)
    }

    /// Counts what is plaintext because somebody allowed it.
    pub(crate) fn count_allowed(
        &self,
        increment: impl FnOnce(usize) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        self.allowed.map_or(Ok(()), increment)
    }

    /// Counts an answer that leads to a server that no rule has.
    pub(crate) fn count_leaving(
        &self,
        increment: impl FnOnce(usize) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        self.leaving.map_or(Ok(()), increment)
    }

    /// Counts a panic of ours.
    pub(crate) fn count_panic(&self, increment: impl FnOnce(usize) -> Result<(), HostError>) {
        // There is nobody to tell that it was not counted.
        let _ = self.panics.map_or(Ok(()), increment);
    }
}
