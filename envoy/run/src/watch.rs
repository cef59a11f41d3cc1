//! Watches folders, and reports a change once the files have come to rest.

use std::collections::BTreeSet;
use std::path::PathBuf;
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

/// The folders that are watched, each once however many files of it are needed.
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    /// Those that could not be watched, which was told.
    unwatched: BTreeSet<PathBuf>,
    what: String,
    changes: mpsc::Receiver<()>,
    events: Events,
    // Without a watcher nobody would hold it, and there would be no end of hearing that.
    _sender: mpsc::Sender<()>,
}

impl Watch {
    /// Watches nothing yet. `what` is what people are told of when it cannot be watched.
    pub(super) fn new(what: &str, events: Events) -> Self {
        let (sender, changes) = mpsc::channel(1);
        let heard = sender.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is no change; it is what we do ourselves. One message that waits is enough.
            if !matches!(&event, Ok(event) if event.kind.is_access()) {
                let _ = heard.try_send(());
            }
        });
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                let text = format!(
                    "changed {what} are seen every {} s only: {error}",
                    ANYWAY.as_secs()
                );
                send(&events, Event::Warning(text));
                None
            }
        };
        Watch {
            watcher,
            folders: BTreeSet::new(),
            unwatched: BTreeSet::new(),
            what: what.to_owned(),
            changes,
            events,
            _sender: sender,
        }
    }

    /// Watches these folders and no other; a folder that was replaced is another one.
    pub(super) fn follow(&mut self, wanted: BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for folder in self.folders.difference(&wanted) {
            // It may be gone, and its watch with it.
            let _ = watcher.unwatch(folder);
        }
        // Those that are watched already are named again: behind the same path there may be another folder.
        self.folders.clear();
        for folder in wanted {
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.unwatched.remove(&folder);
                    self.folders.insert(folder);
                }
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
