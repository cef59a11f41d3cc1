//! Secrets kept as their files are: read, watched, and offered to Envoy when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::discovery::{self, Offer, Offers};
use crate::cli::tell;
use crate::credentials::{Material, Need, Store};

/// How long files must have been left alone before they are read.
const QUIET: Duration = Duration::from_millis(50);

/// How long files that never come to rest are waited for.
const RESTLESS: Duration = Duration::from_millis(500);

/// How often files are looked at though nothing was heard of them: file systems over a network tell nothing.
const ANYWAY: Duration = Duration::from_secs(30);

/// Reads what `needs` are, serves it on `socket`, and goes on for as long as the runtime does.
///
/// What cannot be read is told, and read when it can be: nothing waits for it.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn keep(store: Store, needs: Vec<Need>, socket: &Path) -> std::io::Result<()> {
    let mut keeper = Keeper {
        store,
        needs,
        held: BTreeMap::new(),
        missing: BTreeMap::new(),
        version: 0,
    };
    let offers = keeper.read().unwrap_or_default();
    let (sender, receiver) = watch::channel(offers);
    discovery::serve(socket, receiver)?;
    tokio::spawn(follow(keeper, sender));
    Ok(())
}

/// Reads again whenever a file may have changed.
async fn follow(mut keeper: Keeper, offers: watch::Sender<Offers>) {
    let (sender, mut events) = mpsc::channel(1);
    // Held, so that nothing heard is no end: a watcher that cannot be had drops its own.
    let _held = sender.clone();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is no change; it is what we do ourselves. One message that waits is enough.
        if !matches!(&event, Ok(event) if event.kind.is_access()) {
            let _ = sender.try_send(());
        }
    });
    let mut watched = match watcher {
        Ok(watcher) => Some(Watched {
            watcher,
            folders: BTreeSet::new(),
            unwatched: BTreeSet::new(),
        }),
        Err(error) => {
            tell(&format!(
                "warning: changed certificates are seen every {} s only: {error}",
                ANYWAY.as_secs()
            ));
            None
        }
    };
    loop {
        if let Some(watched) = &mut watched {
            watched.follow(&keeper);
        }
        // Between the reading and the watching a file may have changed; so the first look is at once.
        let Ok((back, changed)) = tokio::task::spawn_blocking(move || {
            let changed = keeper.read();
            (keeper, changed)
        })
        .await
        else {
            return;
        };
        keeper = back;
        if let Some(changed) = changed {
            offers.send_replace(changed);
        }
        let heard = timeout(ANYWAY, events.recv()).await;
        if matches!(heard, Ok(Some(()))) {
            let rest = async { while timeout(QUIET, events.recv()).await.is_ok() {} };
            let _ = timeout(RESTLESS, rest).await;
        }
    }
}

/// The folders that are watched, each once however many files of it are needed.
struct Watched {
    watcher: RecommendedWatcher,
    folders: BTreeSet<PathBuf>,
    /// Those that could not be watched, which was told.
    unwatched: BTreeSet<PathBuf>,
}

impl Watched {
    /// Watches where the needs of `keeper` are now; a folder that was replaced is another one.
    fn follow(&mut self, keeper: &Keeper) {
        let wanted: BTreeSet<PathBuf> = keeper
            .needs
            .iter()
            .flat_map(|need| keeper.store.watched(need))
            .collect();
        for folder in self.folders.difference(&wanted) {
            // It may be gone, and its watch with it.
            let _ = self.watcher.unwatch(folder);
        }
        // Those that are watched already are named again: behind the same path there may be another folder.
        self.folders.clear();
        for folder in wanted {
            match self.watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.unwatched.remove(&folder);
                    self.folders.insert(folder);
                }
                Err(error) => {
                    if self.unwatched.insert(folder.clone()) {
                        tell(&format!(
                            "warning: changed certificates in `{}` are seen every {} s only: {error}",
                            folder.display(),
                            ANYWAY.as_secs()
                        ));
                    }
                }
            }
        }
    }
}

/// What was read last.
struct Keeper {
    store: Store,
    needs: Vec<Need>,
    held: BTreeMap<String, (Material, Offer)>,
    missing: BTreeMap<String, String>,
    version: u64,
}

impl Keeper {
    /// Reads all needs and tells what is missing now and what is there again; returns the offers if any
    /// changed. What was good once stays offered when it is not any more.
    fn read(&mut self) -> Option<Offers> {
        let mut changed = false;
        for need in &self.needs {
            let name = need.name();
            let held = self.held.get(&name).map(|(held, _)| held);
            let loaded = self.store.load(need).map_err(|missing| missing.to_string());
            match loaded.and_then(|material| keeps_its_list(&name, held, material)) {
                Ok(material) => {
                    if self.missing.remove(&name).is_some() {
                        tell(&format!("the secret `{name}` is there now"));
                    }
                    if self
                        .held
                        .get(&name)
                        .is_some_and(|(held, _)| *held == material)
                    {
                        continue;
                    }
                    changed = true;
                    self.version += 1;
                    let offer = Offer::new(&name, &material, self.version);
                    self.held.insert(name, (material, offer));
                }
                Err(text) => {
                    if self.missing.get(&name) == Some(&text) {
                        continue;
                    }
                    let meanwhile = if self.held.contains_key(&name) {
                        "the one before it stays in use"
                    } else {
                        "requests that need it are answered 503 until it is there"
                    };
                    // A credential of which all is missing is told once, though certificate and authorities both are.
                    if !self.missing.values().any(|told| *told == text) {
                        tell(&format!("warning: {text}; {meanwhile}"));
                    }
                    self.missing.insert(name, text);
                }
            }
        }
        changed.then(|| {
            Arc::new(
                self.held
                    .iter()
                    .map(|(name, (_, offer))| (name.clone(), offer.clone()))
                    .collect(),
            )
        })
    }
}

/// Refuses authorities that have lost their revocation list. While a list is replaced by writing into it, or by
/// removing it first, there is none for a moment; and a list that is taken away by mistake revokes nobody.
fn keeps_its_list(name: &str, held: Option<&Material>, now: Material) -> Result<Material, String> {
    match (held, &now) {
        (
            Some(Material::Validation { crl: Some(_), .. }),
            Material::Validation { crl: None, .. },
        ) => Err(format!(
            "the secret `{name}` had a revocation list and has none now: put a list there, an empty one if nobody is revoked, or start again"
        )),
        _ => Ok(now),
    }
}
