//! What goes wrong during a soak. Each fault counts something that only it can move, and fails where that stays.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context, Result, ensure};
use egress_integration::{dns::Trouble, probe};
use futures_util::future::{FutureExt, LocalBoxFuture};

use crate::stage::{ADDRESSES, EXTRA, MOVES, Stage, WEB, until, until_within};

/// How long a shared host may take to follow its name: its connections take requests for 30 seconds, and DNS is asked
/// every other second.
const FOLLOWS: Duration = Duration::from_secs(45);

/// How long no request comes to an address that a name has left.
const FOLLOWED: Duration = Duration::from_secs(3);
/// How long a dead address stays dead.
const DEAD: Duration = Duration::from_secs(4);
/// How long servers close idle connections at once.
const RACING: Duration = Duration::from_secs(3);
/// How many questions meet a name server in trouble: of both kinds of addresses, and again.
const QUESTIONS: u64 = 4;

/// One of them.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    happen: for<'s> fn(&'s Stage) -> LocalBoxFuture<'s, Result<String>>,
}

/// All of them, in the order in which they come.
pub(crate) static ALL: [Fault; 10] = [
    Fault {
        name: "rules change",
        happen: |stage| reload(stage).boxed_local(),
    },
    Fault {
        name: "rules with a mistake",
        happen: |stage| bad_rules(stage).boxed_local(),
    },
    Fault {
        name: "client certificate renewed",
        happen: |stage| rotation(stage).boxed_local(),
    },
    Fault {
        name: "DNS: SERVFAIL",
        happen: |stage| trouble(stage, Trouble::ServFail).boxed_local(),
    },
    Fault {
        name: "DNS: answers lost",
        happen: |stage| trouble(stage, Trouble::Silence).boxed_local(),
    },
    Fault {
        name: "DNS: a name moves",
        happen: |stage| moved(stage).boxed_local(),
    },
    Fault {
        name: "one of two addresses dies",
        happen: |stage| death(stage).boxed_local(),
    },
    Fault {
        name: "server closes idle connections",
        happen: |stage| race(stage).boxed_local(),
    },
    Fault {
        name: "filter replaced",
        happen: |stage| filter(stage).boxed_local(),
    },
    Fault {
        name: "program and Envoy replaced",
        happen: |stage| replaced(stage).boxed_local(),
    },
];

impl Fault {
    /// Lets it happen, and returns what shows that it did.
    pub(crate) async fn happen(&self, stage: &Stage) -> Result<String> {
        (self.happen)(stage).await
    }
}

/// One that happened.
pub(crate) struct Happened {
    pub(crate) fault: &'static str,
    pub(crate) at: Duration,
    /// What it counted.
    pub(crate) result: Result<String>,
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
    let before = seen(other);
    stage.dns.lead(MOVES, [other]);
    until_within(FOLLOWS, "requests follow the name", async || {
        seen(other) > before
    })
    .await?;
    stage.dns.lead(MOVES, [one]);
    // Connections of before the move may still be there, so that one comes back says little.
    until_within(FOLLOWS, "all requests follow the name back", async || {
        let at_other = seen(other);
        tokio::time::sleep(FOLLOWED).await;
        seen(other) == at_other
    })
    .await?;
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
    let more = failed_connections(stage).await?.saturating_sub(before);
    ensure!(more > 0, "no connection failed");
    Ok(format!("{more} connections failed"))
}

/// How many connections to servers Envoy could not make.
async fn failed_connections(stage: &Stage) -> Result<u64> {
    sum(stage, "upstream_cx_connect_fail$").await
}

/// How many requests Envoy has sent again.
async fn tried_again(stage: &Stage) -> Result<u64> {
    sum(stage, "^cluster.*upstream_rq_retry$").await
}

/// Adds up a counter of all clusters.
async fn sum(stage: &Stage, filter: &str) -> Result<u64> {
    let path = format!("/stats?filter={filter}");
    let answer = stage.proxy()?.admin_get(&path).await?;
    let counts = answer
        .body
        .lines()
        .filter_map(|line| line.rsplit_once(": ")?.1.trim().parse::<u64>().ok());
    Ok(counts.sum())
}

async fn race(stage: &Stage) -> Result<String> {
    let seen = &stage.servers.seen;
    let before = (
        seen.raced.load(Ordering::Relaxed),
        tried_again(stage).await?,
    );
    stage.race(RACING).await;
    let closed = seen.raced.load(Ordering::Relaxed) - before.0;
    ensure!(closed > 0, "no connection was closed");
    let again = tried_again(stage).await?.saturating_sub(before.1);
    Ok(format!(
        "{closed} connections closed, {again} requests tried again"
    ))
}

async fn filter(stage: &Stage) -> Result<String> {
    let loaded = async || {
        let dump = "/config_dump?resource=ecds_filters";
        let answer = stage.proxy()?.admin_get(dump).await?;
        let mut names = answer.body.lines().filter(|line| line.contains(".so\""));
        let name = names.next().context("Envoy has no native filter")?;
        anyhow::Ok(name.trim().to_owned())
    };
    let before = loaded().await?;
    stage.write_filter()?;
    let taken = async || loaded().await.is_ok_and(|name| name != before);
    until("the new filter is taken over", taken).await?;
    Ok("Envoy has loaded the new one".to_owned())
}

async fn replaced(stage: &Stage) -> Result<String> {
    stage.upgrade().await?;
    Ok("the new one answers, the old one has ended".to_owned())
}

/// How often a fault happened as it should.
pub(crate) fn times(happened: &[Happened], fault: &Fault) -> usize {
    let good = happened
        .iter()
        .filter(|one| one.fault == fault.name && one.result.is_ok());
    good.count()
}

/// What one of them counted last.
pub(crate) fn last<'h>(happened: &'h [Happened], fault: &Fault) -> Result<&'h str> {
    let mut all = happened.iter().rev();
    let found =
        all.find_map(|one| (one.fault == fault.name).then_some(one.result.as_deref().ok()?));
    found.context("it never happened")
}
