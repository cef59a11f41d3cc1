//! Watches folders, and reports a change once the files have come to rest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::event::{Event, Events, send};

/// How long files must have been left alone before they are read.
const QUIET: Duration = Duration::from_millis(50);

/// How long files that never come to rest are waited for.
const RESTLESS: Duration = Duration::from_millis(500);

/// How often files are looked at though nothing was heard of them: file systems over a network tell nothing.
const ANYWAY: Duration = Duration::from_secs(30);

/// The only inotify instance of a run. Linux allows a user few of them.
pub(super) struct Watcher(Arc<Shared>);

struct Shared {
    /// Asks the kernel; or why it cannot.
    kernel: Mutex<Result<RecommendedWatcher, String>>,
    listeners: Arc<Mutex<Vec<Listener>>>,
}

/// Whoever wants to hear of changes in some folders.
struct Listener {
    folders: BTreeSet<PathBuf>,
    heard: mpsc::Sender<()>,
}

impl Watcher {
    /// Watches nothing yet.
    pub(super) fn new() -> Self {
        let listeners: Arc<Mutex<Vec<Listener>>> = Arc::default();
        let told = listeners.clone();
        let kernel = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is no change; it is what we do ourselves.
            if matches!(&event, Ok(event) if event.kind.is_access()) {
                return;
            }
            let paths = event.map_or_else(|error| error.paths, |event| event.paths);
            for listener in &*locked(&told) {
                if paths.is_empty() || paths.iter().any(|path| listener.hears(path)) {
                    // One message that waits is enough.
                    let _ = listener.heard.try_send(());
                }
            }
        });
        Watcher(Arc::new(Shared {
            kernel: Mutex::new(kernel.map_err(|error| error.to_string())),
            listeners,
        }))
    }

    /// Watches nothing yet for somebody. `what` is what people are told of when it cannot be watched.
    pub(super) fn watch(&self, what: &str, events: &Events) -> Watch {
        let (sender, changes) = mpsc::channel(1);
        if let Err(error) = &*locked(&self.0.kernel) {
            let text = format!(
                "changed {what} are seen every {} s only: {error}",
                ANYWAY.as_secs()
            );
            send(events, Event::Warning(text));
        }
        let mut listeners = locked(&self.0.listeners);
        listeners.push(Listener {
            folders: BTreeSet::new(),
            heard: sender.clone(),
        });
        Watch {
            shared: self.0.clone(),
            number: listeners.len() - 1,
            unwatched: BTreeSet::new(),
            what: what.to_owned(),
            changes,
            events: events.clone(),
            _sender: sender,
        }
    }
}

impl Listener {
    /// Whether a change at this path is one in a folder of its own, or of one.
    fn hears(&self, path: &Path) -> bool {
        self.folders.contains(path)
            || path
                .parent()
                .is_some_and(|above| self.folders.contains(above))
    }
}

/// What panicked elsewhere has left nothing here that would not hold.
fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folders that somebody watches, each once however many files of it are needed.
pub(super) struct Watch {
    shared: Arc<Shared>,
    /// Which listener this is.
    number: usize,
    /// Those that could not be watched, which was told.
    unwatched: BTreeSet<PathBuf>,
    what: String,
    changes: mpsc::Receiver<()>,
    events: Events,
    // The other end must not be told that nobody is left, or there would be no end of hearing that.
    _sender: mpsc::Sender<()>,
}

impl Watch {
    /// Watches these folders and no other; a folder that was replaced is another one.
    pub(super) fn follow(&mut self, wanted: BTreeSet<PathBuf>) {
        let mut kernel = locked(&self.shared.kernel);
        let Ok(kernel) = &mut *kernel else {
            return;
        };
        // Not held while the kernel is asked: the one who answers may be telling listeners of a change.
        let unwanted: Vec<PathBuf> = {
            let mut listeners = locked(&self.shared.listeners);
            let had = listeners
                .get_mut(self.number)
                .map(|mine| std::mem::replace(&mut mine.folders, wanted.clone()))
                .unwrap_or_default();
            let by_nobody =
                |folder: &PathBuf| !listeners.iter().any(|other| other.folders.contains(folder));
            had.into_iter().filter(by_nobody).collect()
        };
        for folder in unwanted {
            // It may be gone, and its watch with it.
            let _ = kernel.unwatch(&folder);
        }
        // Those that are watched already are named again: behind the same path there may be another folder.
        for folder in wanted {
            match kernel.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.unwatched.remove(&folder)),
                Err(error) => {
                    if self.unwatched.insert(folder.clone()) {
                        let text = format!(
                            "changed {} in `{}` are seen every {} s only: {error}",
                            self.what,
                            folder.display(),
                            ANYWAY.as_secs()
                        );
                        send(&self.events, Event::Warning(text));
                    }
                }
            }
        }
    }

    /// Waits until something may have changed. Between the watching and this, a change is not lost.
    pub(super) async fn changed(&mut self) {
        let heard = timeout(ANYWAY, self.changes.recv()).await;
        if matches!(heard, Ok(Some(()))) {
            let rest = async { while timeout(QUIET, self.changes.recv()).await.is_ok() {} };
            let _ = timeout(RESTLESS, rest).await;
        }
    }
}
