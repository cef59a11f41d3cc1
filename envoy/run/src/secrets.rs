//! Secrets that follow their files: read, watched, and offered to Envoy when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::discovery::{Resource, Resources};
use super::event::{Event, Events, send};
use super::watch::Watch;
use egress_credentials::{Material, Store};
use egress_render::xds::SecretRequest;

/// Reads what `needs` are, offers it, and goes on for as long as the runtime does.
///
/// What cannot be read is told, and read when it can be: nothing waits for it.
pub(super) fn keep(
    store: Store,
    needs: Vec<SecretRequest>,
    mut watch: Watch,
    events: Events,
) -> (SecretsHandle, watch::Receiver<Resources>) {
    let mut watcher = SecretWatcher {
        store,
        needs,
        held: BTreeMap::new(),
        missing: BTreeMap::new(),
        version: 0,
        events,
    };
    // Watched before it is read: what changes in between is heard of.
    watch.follow(watcher.folders());
    let resources = watcher.read().unwrap_or_default();
    let (sender, receiver) = watch::channel(resources);
    let (orders, ordered) = mpsc::channel(1);
    tokio::spawn(follow(watcher, watch, sender, ordered));
    (SecretsHandle(orders), receiver)
}

/// The way to the watcher of the secrets.
pub(super) struct SecretsHandle(mpsc::Sender<Order>);

struct Order {
    store: Store,
    needs: Vec<SecretRequest>,
    forget: bool,
    done: oneshot::Sender<()>,
}

impl SecretsHandle {
    /// Has it keep other secrets, and waits until they are offered. Those that were offered before stay so, unless
    /// they are to be forgotten.
    pub(super) async fn keep(&self, store: Store, needs: Vec<SecretRequest>, forget: bool) {
        let (done, waiting) = oneshot::channel();
        let order = Order {
            store,
            needs,
            forget,
            done,
        };
        if self.0.send(order).await.is_ok() {
            let _ = waiting.await;
        }
    }
}

/// Reads again whenever a file may have changed, or other secrets are needed.
async fn follow(
    mut watcher: SecretWatcher,
    mut watch: Watch,
    resources: watch::Sender<Resources>,
    mut orders: mpsc::Receiver<Order>,
) {
    loop {
        let done = tokio::select! {
            () = watch.changed() => None,
            Some(order) = orders.recv() => {
                watcher.store = order.store;
                watcher.needs = order.needs;
                if order.forget {
                    watcher.forget();
                }
                Some(order.done)
            }
        };
        watch.follow(watcher.folders());
        let Ok((back, changed)) = tokio::task::spawn_blocking(move || {
            let changed = watcher.read();
            (watcher, changed)
        })
        .await
        else {
            return;
        };
        watcher = back;
        if let Some(changed) = changed {
            resources.send_replace(changed);
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }
}

/// What was read last.
struct SecretWatcher {
    store: Store,
    needs: Vec<SecretRequest>,
    held: BTreeMap<String, (Material, Resource)>,
    missing: BTreeMap<String, String>,
    version: u64,
    events: Events,
}

impl SecretWatcher {
    /// Returns the folders in which something may change.
    fn folders(&self) -> BTreeSet<PathBuf> {
        let needs = self.needs.iter();
        needs.flat_map(|need| self.store.watched(need)).collect()
    }

    /// Lets go of what is not needed.
    fn forget(&mut self) {
        let needed: BTreeSet<String> = self.needs.iter().map(SecretRequest::name).collect();
        self.held.retain(|name, _| needed.contains(name));
        self.missing.retain(|name, _| needed.contains(name));
    }

    /// Reads all needs and tells what is missing now and what is there again; returns the resources if any
    /// changed. What was good once stays offered when it is not any more.
    fn read(&mut self) -> Option<Resources> {
        let mut changed = false;
        for need in &self.needs {
            let name = need.name();
            let held = self.held.get(&name).map(|(held, _)| held);
            let loaded = self.store.load(need).map_err(|missing| missing.to_string());
            match loaded.and_then(|material| keeps_its_list(&name, held, material)) {
                Ok(material) => {
                    if self.missing.remove(&name).is_some() {
                        send(&self.events, Event::SecretBack(name.clone()));
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
                    let resource = Resource::new(&name, &material, self.version);
                    self.held.insert(name, (material, resource));
                }
                Err(text) => {
                    if self.missing.get(&name) == Some(&text) {
                        continue;
                    }
                    // A credential of which all is missing is told once, though certificate and authorities both are.
                    if !self.missing.values().any(|told| *told == text) {
                        let (why, stays) = (text.clone(), self.held.contains_key(&name));
                        send(&self.events, Event::SecretMissing { why, stays });
                    }
                    self.missing.insert(name, text);
                }
            }
        }
        changed.then(|| {
            Arc::new(
                self.held
                    .iter()
                    .map(|(name, (_, resource))| (name.clone(), resource.clone()))
                    .collect(),
            )
        })
    }
}

/// Refuses authorities that have lost their revocation list. While a list is replaced by writing into it, or by
/// removing it first, there is none for a moment; and without a list nobody is revoked, even if it was removed by mistake.
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
