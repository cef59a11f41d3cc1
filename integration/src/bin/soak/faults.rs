//! What goes wrong during a soak. Each fault counts something that only it can move, and fails where that stays.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context, Result, ensure};
use egress_integration::{dns::Trouble, probe};

use crate::stage::{ADDRESSES, EXTRA, MOVES, Stage, WEB, until};

/// How long a dead address stays dead.
const DEAD: Duration = Duration::from_secs(4);
/// How long servers close their connections right behind an answer.
const RACING: Duration = Duration::from_secs(3);
/// How many questions meet a name server in trouble: of both kinds of addresses, and again.
const QUESTIONS: u64 = 4;

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Reload,
    BadRules,
    Rotation,
    ServFail,
    LostAnswer,
    Move,
    Death,
    KeepAliveRace,
    Upgrade,
}

/// One that happened.
pub(crate) struct Happened {
    pub(crate) fault: Fault,
    pub(crate) at: Duration,
    /// What it counted.
    pub(crate) result: Result<String>,
}

pub(crate) fn all() -> [Fault; 9] {
    use Fault::*;
    [
        Reload,
        BadRules,
        Rotation,
        ServFail,
        LostAnswer,
        Move,
        Death,
        KeepAliveRace,
        Upgrade,
    ]
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::Reload => "rules change",
            Fault::BadRules => "rules with a mistake",
            Fault::Rotation => "client certificate renewed",
            Fault::ServFail => "DNS: SERVFAIL",
            Fault::LostAnswer => "DNS: answers lost",
            Fault::Move => "DNS: a name moves",
            Fault::Death => "one of two addresses dies",
            Fault::KeepAliveRace => "server closes idle connections",
            Fault::Upgrade => "program and Envoy replaced",
        }
    }

    /// Lets it happen, and returns what shows that it did.
    pub(crate) async fn happen(self, stage: &Stage) -> Result<String> {
        match self {
            Fault::Reload => reload(stage).await,
            Fault::BadRules => bad_rules(stage).await,
            Fault::Rotation => rotation(stage).await,
            Fault::ServFail => trouble(stage, Trouble::ServFail).await,
            Fault::LostAnswer => trouble(stage, Trouble::Silence).await,
            Fault::Move => moved(stage).await,
            Fault::Death => death(stage).await,
            Fault::KeepAliveRace => race(stage).await,
            Fault::Upgrade => {
                stage.upgrade().await?;
                Ok("the new one answers, the old one has ended".to_owned())
            }
        }
    }
}

/// A host comes, is served, and goes.
async fn reload(stage: &Stage) -> Result<String> {
    let status = async || {
        let answer = probe::get(stage.listens.http, EXTRA, "/").await;
        answer.map(|answer| answer.status).ok()
    };
    for (extra, wanted) in [(true, true), (false, false)] {
        stage.write_rules(&stage.rules(extra))?;
        let is_so = async || (status().await == Some(200)) == wanted;
        until("the new rules are served", is_so).await?;
    }
    Ok("a host came, was served, and went".to_owned())
}

async fn bad_rules(stage: &Stage) -> Result<String> {
    let proxy = stage.proxy()?;
    let refusals = || {
        let said = proxy.stderr();
        let refused = said
            .iter()
            .filter(|line| line.contains("the rules before them stay in use"));
        refused.count()
    };
    let before = refusals();
    stage.write_rules(&stage.rules(false).replace("mode: SIMPLE", "mode: SIMPEL"))?;
    until("the mistake is told", async || refusals() > before).await?;
    stage.write_rules(&stage.rules(false))?;
    Ok("it was told, and nothing changed".to_owned())
}

async fn rotation(stage: &Stage) -> Result<String> {
    let serial = stage.renew_client().await?;
    let shown = async || stage.servers.seen.client(&serial);
    until("the server sees the new certificate", shown).await?;
    Ok("the server saw the new certificate".to_owned())
}

async fn trouble(stage: &Stage, trouble: Trouble) -> Result<String> {
    let before = stage.dns.troubled(WEB);
    stage.dns.trouble(WEB, trouble, QUESTIONS);
    let met = async || stage.dns.troubled(WEB) >= before + QUESTIONS;
    until("Envoy asks the name server in trouble", met).await?;
    Ok(format!("{QUESTIONS} questions met it"))
}

async fn moved(stage: &Stage) -> Result<String> {
    let seen = |address| stage.servers.seen.requests(MOVES, address);
    let [one, other] = ADDRESSES;
    let (before, _) = (seen(other), seen(one));
    stage.dns.lead(MOVES, [other]);
    until("requests follow the name", async || seen(other) > before).await?;
    let at_old = seen(one);
    stage.dns.lead(MOVES, [one]);
    until("requests follow the name back", async || seen(one) > at_old).await?;
    Ok(format!(
        "{} requests at the other address",
        seen(other) - before
    ))
}

async fn death(stage: &Stage) -> Result<String> {
    let before = failed_connections(stage).await?;
    stage
        .death(async {
            tokio::time::sleep(DEAD).await;
            Ok(())
        })
        .await?;
    let more = failed_connections(stage).await? - before;
    ensure!(more > 0, "no connection failed");
    Ok(format!("{more} connections failed"))
}

/// How many connections to servers Envoy could not make.
async fn failed_connections(stage: &Stage) -> Result<u64> {
    let answer = stage
        .proxy()?
        .admin_get("/stats?filter=upstream_cx_connect_fail$")
        .await?;
    let counts = answer
        .body
        .lines()
        .filter_map(|line| line.rsplit_once(": ")?.1.trim().parse::<u64>().ok());
    Ok(counts.sum())
}

async fn race(stage: &Stage) -> Result<String> {
    let seen = &stage.servers.seen;
    let before = seen.raced.load(Ordering::Relaxed);
    seen.races.store(true, Ordering::Relaxed);
    tokio::time::sleep(RACING).await;
    seen.races.store(false, Ordering::Relaxed);
    let closed = seen.raced.load(Ordering::Relaxed) - before;
    ensure!(closed > 0, "no connection was closed");
    Ok(format!("{closed} connections closed"))
}

/// How often a fault happened as it should.
pub(crate) fn times(happened: &[Happened], fault: Fault) -> usize {
    let good = happened
        .iter()
        .filter(|one| one.fault == fault && one.result.is_ok());
    good.count()
}

/// What one of them counted last.
pub(crate) fn last(happened: &[Happened], fault: Fault) -> Result<&str> {
    let mut all = happened.iter().rev();
    let found = all.find_map(|one| (one.fault == fault).then_some(one.result.as_deref().ok()?));
    found.context("it never happened")
}
