//! Rules that change while Envoy runs.
//!
//! ```text
//! files ──watch──► rules ──compile──► secrets, then clusters, then filter and listeners
//! ```
//!
//! New clusters exist before anything names them. First Envoy gets the clusters of both the previous and the new rules,
//! and then the filter and the listeners. Old clusters are removed when nothing can name them any more. If Envoy
//! refuses anything on the way, it gets back what it had.
//!
//! In-flight requests keep the filter that they began with. Connections keep their listener's filter chain
//! where a listener changes shape; see [`Dynamic`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use egress_policy::{Cluster, DownstreamProtocol, PortNumber};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::deployment::{Deployment, Recompile};
use super::discovery::{Acks, List, Resource, Resources};
use super::event::{Event, Events, Reloaded, send};
use super::ports::{Known, check_ports, places, reserve};
use super::secrets::SecretsHandle;
use super::watch::Watch;
use super::{admin, folder, trial};
use egress_credentials::Store;
use egress_render::xds::{self, Admin, Dynamic, FilterFile, Options, Plugin, SecretRequest};
use egress_rules::Source;
use egress_rules::yaml::AlreadyRead;
use egress_rules::{Complaint, Refusal};
use egress_rules::{Nothing, Report};

/// How long connections may go on under a listener that was replaced or removed. Then Envoy closes them; until then it
/// keeps what they need.
pub(super) const DRAIN: Duration = Duration::from_secs(3600);

/// How long clusters stay when only the filter has changed: a request that it has decided may wait for DNS.
const LINGER: Duration = Duration::from_secs(30);

/// How long Envoy may take to have new clusters ready. Those that look up names may wait for DNS servers; the rest of
/// the rules then waits no longer.
const CLUSTERS_LIMIT: Duration = Duration::from_secs(20);

/// How long Envoy may take with everything else.
const LIMIT: Duration = Duration::from_secs(60);

/// How often in a row Envoy may leave a question unanswered, each for five seconds, before it counts as hung.
const SILENCES: u32 = 2;

/// Why rules that Envoy has not answered to are not applied.
const HUNG: &str = "it does not answer";

/// How often it is asked whether it answers while the filter reads its configuration.
const STILL_THERE: Duration = Duration::from_secs(5);

/// How often Envoy is asked whether it is through.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long rules that lack something are waited for: what else is applied or deleted may be on its way.
const INCOMPLETE: Duration = Duration::from_secs(3);

/// How often it is told that rules lack something, for as long as they do.
const REPEATED: Duration = Duration::from_secs(30);

/// How soon rules are tried again when something around them stands in their way.
const RETRY: Duration = Duration::from_secs(1);

/// How long that may become, when it stands there for long.
const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// How long a file that cannot be read is waited for: it may be on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "envoy.config.listener.v3.Listener";

/// What Envoy has of the rules, and the ways to give it others.
pub(super) struct Reloader {
    folder: PathBuf,
    admin: Admin,
    guarded_dns: Option<SocketAddr>,
    plugins: watch::Sender<Resources>,
    lists: Lists,
    watch: Watch,
    acks: watch::Receiver<Acks>,
    /// Envoy's last word of what it refused.
    refusals: watch::Receiver<String>,
    secrets: SecretsHandle,
    needs: Vec<SecretRequest>,
    store: Store,
    services: BTreeSet<PortNumber>,
    /// The hosts and ports that are originated.
    secure: BTreeSet<(String, PortNumber)>,
    places: Known,
    /// Whether own clusters are called by what they are; once that was needed it stays so.
    by_content: bool,
    ports: BTreeMap<PortNumber, u16>,
    recompile: Arc<dyn Recompile>,
    /// What was read last.
    known: AlreadyRead,
    events: Events,
    now: Dynamic,
    /// The clusters that Envoy has, and until when those that are not needed any more.
    clusters: BTreeMap<String, (Value, Option<Instant>)>,
    envoy: PathBuf,
    /// The filter that it has.
    filter: FilterFile,
    /// Until when connections may use what was replaced.
    draining: Option<Instant>,
    version: u64,
}

/// What [`Reloader::new`] takes.
pub(super) struct Ways {
    /// The folder of this run.
    pub(super) folder: PathBuf,
    /// The program.
    pub(super) envoy: PathBuf,
    /// Where the filter's configuration is offered.
    pub(super) plugins: watch::Sender<Resources>,
    /// Where clusters and listeners are offered.
    pub(super) lists: Lists,
    /// What watches the files of the rules.
    pub(super) watch: Watch,
    /// What Envoy says of it.
    pub(super) acks: watch::Receiver<Acks>,
    /// What Envoy's log says of other things that it refused.
    pub(super) refusals: watch::Receiver<String>,
    /// The watcher of the secrets.
    pub(super) secrets: SecretsHandle,
    /// The ports that were chosen for services whose port was left open.
    pub(super) ports: BTreeMap<PortNumber, u16>,
    /// How the rules are read and compiled again.
    pub(super) recompile: Arc<dyn Recompile>,
    /// What was read.
    pub(super) known: AlreadyRead,
    /// Where people are told of it.
    pub(super) events: Events,
}

/// Where clusters and listeners are offered.
pub(super) struct Lists {
    pub(super) clusters: watch::Sender<List>,
    pub(super) listeners: watch::Sender<List>,
}

impl Reloader {
    /// Offers what Envoy is to start with.
    pub(super) fn new(ways: Ways, deployment: &Deployment, resources: &[Value]) -> Self {
        let mut reloader = Reloader {
            folder: ways.folder,
            admin: deployment.options.admin.clone(),
            guarded_dns: deployment.options.guarded_dns,
            plugins: ways.plugins,
            lists: ways.lists,
            watch: ways.watch,
            acks: ways.acks,
            refusals: ways.refusals,
            secrets: ways.secrets,
            needs: deployment.needs(),
            store: deployment.store.clone(),
            services: services(deployment),
            secure: originated(deployment),
            places: places(deployment),
            by_content: false,
            ports: ways.ports,
            recompile: ways.recompile,
            known: ways.known,
            events: ways.events,
            now: rendered(deployment, resources),
            clusters: BTreeMap::new(),
            envoy: ways.envoy,
            filter: deployment.options.filter.clone(),
            draining: None,
            version: 1,
        };
        let clusters = reloader.now.clusters.clone();
        reloader.clusters = clusters
            .into_iter()
            .map(|(name, one)| (name, (one, None)))
            .collect();
        reloader.offer_clusters();
        reloader.offer_listeners(&reloader.now);
        reloader.offer(&reloader.now.plugins);
        reloader
    }

    /// Whether the filter has taken what it was to start with.
    ///
    /// # Errors
    /// When it refused it.
    pub(super) fn has_started(&self) -> Result<bool, ()> {
        let said = self.acks.borrow();
        match said.values().any(|(_, taken)| taken.is_err()) {
            true => Err(()),
            false => Ok(self.now.plugins.keys().all(|name| said.contains_key(name))),
        }
    }

    /// Applies rules whenever their files change, and at once when `forced`. When nobody can force it any more, it keeps
    /// what Envoy has, and changes nothing.
    pub(super) async fn follow(mut self, start: Vec<Source>, mut forced: mpsc::Receiver<()>) {
        let mut tried: Result<Vec<Source>, Complaint> = Ok(start);
        let mut filter = self.recompile.filter();
        let mut at_once = false;
        let mut lacking: Option<Lacking> = None;
        let mut failed: Option<Failed> = None;
        loop {
            // Between the reading and the watching a file may have changed; so the first look is at once.
            self.watch.follow(self.recompile.folders());
            let read = read(&self.recompile).await;
            let now = Instant::now();
            let due = lacking.as_ref().is_some_and(|lacking| lacking.next <= now);
            let found = self.recompile.filter();
            let fresh = at_once || due || read != tried || found != filter;
            filter = found;
            if fresh || failed.as_ref().is_some_and(|failed| failed.next <= now) {
                if fresh {
                    send(&self.events, Event::Reloading);
                }
                // The last ServiceEntry may go; but a file that is being written is empty for a moment, too.
                let nothing = match due || at_once {
                    true => Nothing::Allowed,
                    false => Nothing::Refused,
                };
                let outcome = match &read {
                    Ok(sources) => self.try_out(sources.clone(), nothing).await,
                    Err(complaint) => Outcome::Failed(complaint.clone().into()),
                };
                (lacking, failed) = match outcome {
                    Outcome::Settled => (None, None),
                    Outcome::Lacking(report) => {
                        let (lacking, due) = Lacking::after(lacking, at_once);
                        if due {
                            send(&self.events, Event::Refused(report.into()));
                        }
                        (Some(lacking), None)
                    }
                    Outcome::Failed(refusal) => {
                        let before = failed.filter(|_| !fresh);
                        let (failed, news) = Failed::after(before, &refusal);
                        if news {
                            send(&self.events, Event::Refused(refusal));
                        }
                        (None, Some(failed))
                    }
                };
                tried = read;
                at_once = false;
            }
            let again = lacking.as_ref().map(|lacking| lacking.next);
            let again = again.or(failed.as_ref().map(|failed| failed.next));
            let expiry = self.clusters.values().filter_map(|(_, until)| *until).min();
            tokio::select! {
                () = self.watch.changed() => {}
                forced = forced.recv() => match forced {
                    Some(()) => at_once = true,
                    None => std::future::pending().await,
                },
                () = async { match again {
                    Some(again) => sleep_until(again).await,
                    None => std::future::pending().await,
                }} => {}
                () = async { match expiry {
                    Some(expiry) => sleep_until(expiry).await,
                    None => std::future::pending().await,
                }} => self.drop_clusters().await,
            }
        }
    }

    /// Compiles what was read and applies it, or says what is wrong with it.
    async fn try_out(&mut self, sources: Vec<Source>, nothing: Nothing) -> Outcome {
        let (recompile, folder) = (self.recompile.clone(), self.folder.clone());
        let (listened_on, guarded_dns) = (self.places.clone(), self.guarded_dns);
        let mut known = std::mem::take(&mut self.known);
        let compile = move |known: &mut AlreadyRead| {
            let mut deployment = recompile.compile(&sources, nothing, known)?;
            deployment.place(&folder, true, guarded_dns)?;
            let free = check_ports(&deployment, Some(&listened_on));
            free.map_err(|complaint| Refusal::from(complaint).behind(&deployment.rules.warnings))?;
            Ok(deployment)
        };
        let compiled = tokio::task::spawn_blocking(move || (compile(&mut known), known)).await;
        let (deployment, known) = compiled.unwrap_or_else(|error| {
            let failed = Complaint::us(format!("cannot compile the rules: {error}"));
            (Err(Refusal::from(failed)), AlreadyRead::default())
        });
        self.known = known;
        let mut deployment = match deployment {
            Ok(deployment) => deployment,
            Err(Refusal::Rules(report)) if report.may_be_incomplete() => {
                return Outcome::Lacking(report);
            }
            Err(Refusal::Rules(report)) => {
                send(&self.events, Event::Refused(report.into()));
                return Outcome::Settled;
            }
            Err(refusal) => return Outcome::Failed(refusal),
        };
        for note in deployment.rules.warned() {
            send(&self.events, Event::Note(note));
        }
        let _reserved = match reserve(&mut deployment, &mut self.ports) {
            Ok(reserved) => reserved,
            Err(error) => {
                let failed = Complaint::us(format!("cannot choose a port: {error}"));
                return Outcome::Failed(failed.into());
            }
        };
        if let Err(why) = self.try_filter(&deployment).await {
            let refused = Complaint::us(format!("Envoy cannot load the new filter: {why}"));
            send(&self.events, Event::Refused(refused.into()));
            // The rules are not to blame.
            deployment.options.filter = self.filter.clone();
        }
        let (secure, plain) = (originated(&deployment), forwarded(&deployment));
        match self.apply(&mut deployment).await {
            Ok(()) => {
                for (host, port) in plain.intersection(&self.secure) {
                    let text = format!(
                        "port {port} of `{host}` is plaintext now: no rule asks for TLS any more"
                    );
                    send(&self.events, Event::Warning(text));
                }
                self.secure = secure;
                self.filter = deployment.options.filter.clone();
                let listening = services(&deployment);
                let added = listening.difference(&self.services).copied().collect();
                let removed = self.services.difference(&listening).copied().collect();
                self.services = listening;
                self.places = places(&deployment);
                let reloaded = Reloaded {
                    addresses: admin::listening(&self.admin, &self.admin_file()).await,
                    added,
                    removed,
                    digest: deployment.rules.table.digest().to_string(),
                };
                send(&self.events, Event::Reloaded(reloaded));
            }
            Err(why) if why == HUNG => {
                let text = "Envoy does not answer, so the new rules wait for it\nhint: when it stays so, only a restart helps; `--status` then says so at `/live`";
                return Outcome::Failed(Complaint::us(text).into());
            }
            Err(why) => {
                let refused = Complaint::us(format!("Envoy refused the new rules: {why}"));
                send(&self.events, Event::Refused(refused.into()));
            }
        }
        Outcome::Settled
    }

    /// Lets another Envoy load a filter that is not the one in use: half a library would crash the one that serves.
    async fn try_filter(&self, deployment: &Deployment) -> Result<(), String> {
        let options = &deployment.options;
        if options.filter == self.filter {
            return Ok(());
        }
        let (rules, resources) = (&deployment.rules, deployment.rules.resources());
        let bootstrap = xds::bootstrap(&rules.table, &resources, options);
        let tried = trial::load(&self.envoy, &self.folder, &bootstrap).await;
        if tried.is_err() {
            // It is no filter that this Envoy has in memory.
            let _ = fs::remove_file(options.filter.path());
        }
        tried
    }

    /// Gives Envoy other rules, or back what it had.
    async fn apply(&mut self, deployment: &mut Deployment) -> Result<(), String> {
        // Asked before it is given anything: one that hangs would be waited for at every step.
        if self.taken().await.is_none() && self.taken().await.is_none() {
            return Err(HUNG.to_owned());
        }
        deployment.options.by_content = self.by_content;
        let resources = deployment.rules.take_resources();
        let mut next = rendered(deployment, &resources);
        if !self.by_content && self.replaces(&next, |now, had| now != had) {
            // Envoy goes on with the old cluster of a name until the new one is ready, and a filter that went by the
            // name alone would send what it originates to one that was made for plaintext.
            self.by_content = true;
            deployment.options.by_content = true;
            next = rendered(deployment, &resources);
        }
        let sockets = |cluster: &Value| {
            ["transport_socket", "transport_socket_matches"]
                .map(|field| cluster.get(field).cloned())
        };
        if self.replaces(&next, |now, had| sockets(now) != sockets(had)) {
            return Err(
                "a port changes between HTTP and the application's own TLS; stop, and start again"
                    .to_owned(),
            );
        }
        let needs = deployment.needs();
        self.secrets
            .keep(deployment.store.clone(), needs.clone(), false)
            .await;
        let before = self.clusters.clone();
        match self.give(&next).await {
            Ok(()) => {
                self.now = next;
                self.needs = needs;
                self.store = deployment.store.clone();
                Ok(())
            }
            Err(why) => {
                // What it refuses now, it had; there is nothing to do about it.
                self.version += 1;
                self.offer(&self.now.plugins);
                if next.listeners != self.now.listeners {
                    self.offer_listeners(&self.now);
                    if why != HUNG {
                        let _ = self.listeners_taken(0).await;
                    }
                }
                if self.clusters != before {
                    self.clusters = before;
                    self.version += 1;
                    self.offer_clusters();
                }
                self.secrets
                    .keep(self.store.clone(), self.needs.clone(), false)
                    .await;
                Err(why)
            }
        }
    }

    /// Whether a host's own cluster would take the place of another of the same name that differs from it so.
    /// Those that hosts share have all of their TLS in their names.
    fn replaces(&self, next: &Dynamic, differ: impl Fn(&Value, &Value) -> bool) -> bool {
        let own = |(name, _): &(&String, &Value)| name.starts_with("outbound|");
        next.clusters.iter().filter(own).any(|(name, now)| {
            let had = self.clusters.get(name);
            had.is_some_and(|(had, _)| differ(now, had))
        })
    }

    async fn give(&mut self, next: &Dynamic) -> Result<(), String> {
        let had = self.clusters.clone();
        for (name, one) in &next.clusters {
            self.clusters.insert(name.clone(), (one.clone(), None));
        }
        if !had
            .iter()
            .map(|(name, (one, _))| (name, one))
            .eq(self.clusters.iter().map(|(name, (one, _))| (name, one)))
        {
            self.give_clusters().await?;
        }
        let listeners = next.listeners != self.now.listeners;
        let refused = match listeners {
            true => self
                .taken()
                .await
                .map_or(0, |(_, listeners)| listeners.refused),
            false => 0,
        };
        self.version += 1;
        let versions = self.offer(&next.plugins);
        if listeners {
            self.offer_listeners(next);
            self.listeners_taken(refused).await?;
        }
        self.plugins_taken(&versions).await?;
        let now = Instant::now();
        if listeners {
            self.draining = Some(now + DRAIN);
        }
        let until = self
            .draining
            .map_or(now + LINGER, |until| until.max(now + LINGER));
        for (name, (_, expiry)) in &mut self.clusters {
            if !next.clusters.contains_key(name) {
                expiry.get_or_insert(until);
            }
        }
        Ok(())
    }

    async fn give_clusters(&mut self) -> Result<(), String> {
        let refused = self
            .taken()
            .await
            .map_or(0, |(clusters, _)| clusters.refused);
        self.version += 1;
        self.offer_clusters();
        let version = self.version.to_string();
        let mut refusals = self.refusals.clone();
        refusals.mark_unchanged();
        let deadline = Instant::now() + CLUSTERS_LIMIT;
        let mut silences = 0;
        loop {
            let asked = Instant::now();
            let taken = self.taken().await;
            silences = heard(taken.is_some(), silences)?;
            if let Some((clusters, _)) = taken {
                if clusters.refused > refused {
                    return Err(reason(refusals).await);
                }
                if clusters.version == version
                    && (clusters.warming == 0 || Instant::now() > deadline)
                {
                    return Ok(());
                }
            }
            if Instant::now() > deadline + CLUSTERS_LIMIT {
                return Err("it does not take the clusters".to_owned());
            }
            pause(asked).await;
        }
    }

    async fn listeners_taken(&self, refused: u64) -> Result<(), String> {
        let version = self.version.to_string();
        let mut refusals = self.refusals.clone();
        refusals.mark_unchanged();
        let deadline = Instant::now() + LIMIT;
        let mut silences = 0;
        loop {
            let asked = Instant::now();
            let taken = self.taken().await;
            silences = heard(taken.is_some(), silences)?;
            if let Some((_, listeners)) = taken {
                if listeners.refused > refused {
                    return Err(reason(refusals).await);
                }
                if listeners.version == version && listeners.warming == 0 {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                return Err("it does not take the listeners".to_owned());
            }
            pause(asked).await;
        }
    }

    /// Waits until the filter has said yes to these versions, or no to one of them.
    async fn plugins_taken(&self, versions: &BTreeMap<String, u64>) -> Result<(), String> {
        let mut acks = self.acks.clone();
        let said = acks.wait_for(|said| {
            let of = |(name, version): (&String, &u64)| {
                said.get(name).filter(|(said, _)| said == version)
            };
            versions.iter().all(|one| of(one).is_some())
                || versions
                    .iter()
                    .filter_map(of)
                    .any(|(_, taken)| taken.is_err())
        });
        let hung = async {
            let mut silences = 0;
            loop {
                sleep(STILL_THERE).await;
                match heard(self.taken().await.is_some(), silences) {
                    Ok(so_far) => silences = so_far,
                    Err(hung) => return hung,
                }
            }
        };
        let said = tokio::select! {
            said = timeout(LIMIT, said) => said,
            hung = hung => return Err(hung),
        };
        let Ok(Ok(said)) = said else {
            return Err("the filter does not answer".to_owned());
        };
        for (name, version) in versions {
            if let Some((said, Err(why))) = said.get(name)
                && said == version
            {
                return Err(format!("the filter refused its configuration: {why}"));
            }
        }
        Ok(())
    }

    /// Takes away the clusters whose time is over, and the secrets that only they needed.
    async fn drop_clusters(&mut self) {
        let now = Instant::now();
        self.clusters
            .retain(|_, (_, until)| until.is_none_or(|until| until > now));
        self.version += 1;
        self.offer_clusters();
        if self.clusters.values().all(|(_, until)| until.is_none()) {
            self.secrets
                .keep(self.store.clone(), self.needs.clone(), true)
                .await;
        }
    }

    /// Offers these plugins; returns the version that each has.
    fn offer(&self, next: &BTreeMap<String, Arc<Plugin>>) -> BTreeMap<String, u64> {
        let resources: BTreeMap<String, Resource> = next
            .iter()
            .map(|(name, plugin)| (name.clone(), Resource::plugin(name, plugin, self.version)))
            .collect();
        let before = self.plugins.borrow().clone();
        let mut versions = BTreeMap::new();
        let resources = resources
            .into_iter()
            .map(|(name, resource)| {
                let same = before
                    .get(&name)
                    .filter(|before| before.same_content(&resource));
                let resource = same.cloned().unwrap_or(resource);
                versions.insert(name.clone(), resource.version());
                (name, resource)
            })
            .collect();
        self.plugins.send_replace(Arc::new(resources));
        versions
    }

    fn offer_clusters(&self) {
        let clusters = self.clusters.values().map(|(one, _)| one);
        self.lists
            .clusters
            .send_replace(self.list(CLUSTER, clusters));
    }

    fn offer_listeners(&self, from: &Dynamic) {
        let listeners = from.listeners.values();
        self.lists
            .listeners
            .send_replace(self.list(LISTENER, listeners));
    }

    fn list<'r>(&self, kind: &str, resources: impl IntoIterator<Item = &'r Value>) -> List {
        let text = xds::discovered(kind, resources, self.version).to_string();
        List {
            version: self.version,
            text: text.into(),
        }
    }

    async fn taken(&self) -> Option<(admin::Taken, admin::Taken)> {
        admin::taken(&self.admin, &self.admin_file()).await
    }

    fn admin_file(&self) -> PathBuf {
        self.folder.join(folder::ADMIN_ADDRESS)
    }
}

/// Counts how often in a row Envoy has not answered.
///
/// # Errors
/// When that is too often.
fn heard(answered: bool, silences: u32) -> Result<u32, String> {
    match (answered, silences + 1) {
        (true, _) => Ok(0),
        (false, SILENCES..) => Err(HUNG.to_owned()),
        (false, so_far) => Ok(so_far),
    }
}

/// What became of rules that were tried out.
enum Outcome {
    /// They are applied, or it was told why they never will be.
    Settled,
    /// They may only lack something, which was not told.
    Lacking(Report),
    /// Something around them stands in the way, which was not told.
    Failed(Refusal),
}

/// Something around the rules that stands in their way: a file that cannot be read, a port that is taken. Nothing tells
/// when it is gone, so the rules are tried again and again.
struct Failed {
    told: String,
    next: Instant,
    pause: Duration,
}

impl Failed {
    /// Waits a moment, and longer each time; whether it is news is returned, too.
    fn after(before: Option<Failed>, refusal: &Refusal) -> (Self, bool) {
        let text = refusal.to_string();
        let news = before.as_ref().is_none_or(|before| before.told != text);
        let pause = before.map_or(RETRY, |before| LONGEST_RETRY.min(before.pause * 2));
        let failed = Failed {
            told: text,
            next: Instant::now() + pause,
            pause,
        };
        (failed, news)
    }
}

/// Rules that lack something, for the time being or for good.
struct Lacking {
    since: Instant,
    /// When to look at them again, or to tell it again.
    next: Instant,
}

impl Lacking {
    /// Waits for the rest of the rules, up to a limit; from then on what is missing is told, again and again: whether
    /// that is due is returned, too.
    fn after(before: Option<Lacking>, at_once: bool) -> (Self, bool) {
        let now = Instant::now();
        let since = before.map_or(now, |before| before.since);
        let limit = since + INCOMPLETE;
        if !at_once && now < limit {
            return (Lacking { since, next: limit }, false);
        }
        let next = now + REPEATED;
        (Lacking { since, next }, true)
    }
}

/// Waits before Envoy is asked again: it answers in the thread that has the work to do, and with thousands of clusters
/// an answer is work too.
async fn pause(asked: Instant) {
    sleep(INTERVAL.max(asked.elapsed() * 2)).await;
}

/// Reads the rules; what cannot be read is tried once more.
async fn read(rules: &Arc<dyn Recompile>) -> Result<Vec<Source>, Complaint> {
    let once = || async {
        let rules = rules.clone();
        tokio::task::spawn_blocking(move || rules.read())
            .await
            .unwrap_or_else(|error| Err(Complaint::us(error)))
    };
    match once().await {
        Ok(sources) => Ok(sources),
        Err(_) => {
            sleep(ON_ITS_WAY).await;
            once().await
        }
    }
}

/// Returns why Envoy refused an update, from its log. Envoy writes the line when the counter goes up.
async fn reason(mut refusals: watch::Receiver<String>) -> String {
    let _ = timeout(Duration::from_secs(1), refusals.changed()).await;
    refusals.borrow_and_update().clone()
}

fn rendered(deployment: &Deployment, resources: &[Value]) -> Dynamic {
    let options: &Options = &deployment.options;
    xds::dynamic(&deployment.rules.table, resources, options)
}

/// Returns the hosts and ports whose plaintext becomes TLS.
fn originated(deployment: &Deployment) -> BTreeSet<(String, PortNumber)> {
    called(deployment, |cluster| cluster.tls.is_some())
}

/// Returns the hosts and ports whose plaintext stays plaintext.
fn forwarded(deployment: &Deployment) -> BTreeSet<(String, PortNumber)> {
    called(deployment, |cluster| cluster.tls.is_none())
}

fn called(
    deployment: &Deployment,
    are: impl Fn(&Cluster) -> bool,
) -> BTreeSet<(String, PortNumber)> {
    let services = deployment.rules.table.services().filter(|service| {
        service.subset.is_none()
            && service.downstream != DownstreamProtocol::Tls
            && are(service.cluster)
    });
    services
        .map(|service| (service.host.to_string(), service.port))
        .collect()
}

fn services(deployment: &Deployment) -> BTreeSet<PortNumber> {
    let ports = xds::service_ports(&deployment.rules.table);
    ports.into_iter().map(|(port, _)| port).collect()
}
