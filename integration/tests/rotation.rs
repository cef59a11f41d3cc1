//! Certificates that change while requests come in: renewed, replaced, revoked.

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use egress_integration::{
    pki::{Ca, Issued, Leaf, Validity},
    stand_in::{Clients, StandIn, StandInConfig},
};

use common::{
    HOST, Stage, Trusted, assert_originated, credential, egressctl, entry, eventually, load::Load,
    rule,
};

/// The clients that ask without a pause.
const CLIENTS: usize = 4;

/// A server that wants to know its clients, and a client that is known to it.
struct World {
    ca: Ca,
    server: Issued,
    folder: tempfile::TempDir,
    trusted: Trusted,
}

impl World {
    fn new() -> Result<Self> {
        let ca = Ca::new("example.com")?;
        Ok(Self {
            server: ca.issue(&Leaf::for_names([HOST]))?,
            ca,
            folder: tempfile::tempdir()?,
            trusted: Trusted::new()?,
        })
    }

    fn client(&self, name: &str) -> Result<Issued> {
        self.ca.issue(&Leaf::client(name))
    }

    /// Runs a rule for `app=sleep` with the credential `client`, and more of its policy.
    async fn stage(&self, policy: &str) -> Result<Stage> {
        let roots = vec![self.ca.certificate().clone()];
        let site = StandInConfig::new(self.server.clone()).clients(Clients::Required(roots));
        let site = StandIn::start(site).await?;
        let rule = rule(
            HOST,
            &format!("{{{policy} tls: {{mode: MUTUAL, credentialName: client}}}}"),
        );
        let rule = rule.replace(
            "trafficPolicy:",
            "workloadSelector: {matchLabels: {app: sleep}}, trafficPolicy:",
        );
        let builder = self
            .trusted
            .egressctl(&(entry(HOST, 443) + &rule))
            .arg("--label")
            .arg("app=sleep")
            .arg("--credentials")
            .arg(self.folder.path());
        Stage::start(builder, site, [HOST]).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("client").join(name)
    }
}

/// Each request on a connection of its own, so that each handshake is seen.
const NEW_CONNECTIONS: &str = "connectionPool: {http: {maxRequestsPerConnection: 1}},";

/// The name of the client that the server knew last.
fn last_client(stage: &Stage) -> Option<String> {
    let seen = stage.site.seen();
    Some(seen.last()?.client.as_ref()?.common_name.clone())
}

async fn until_known_as(stage: &Stage, name: &str) -> Result<()> {
    eventually(&format!("the server knows `{name}`"), async || {
        Ok(last_client(stage).as_deref() == Some(name))
    })
    .await
}

/// Puts a file in the place of another, as a whole.
fn renamed(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)?;
    Ok(())
}

#[tokio::test]
async fn a_pair_is_renewed_by_renames_without_a_failed_request() -> Result<()> {
    let world = World::new()?;
    credential(
        world.folder.path(),
        "client",
        &world.client("first")?,
        &world.ca.pem(),
    )?;
    let stage = world.stage(NEW_CONNECTIONS).await?;
    let load = Load::start(stage.proxy.listener(80)?, CLIENTS);
    load.goes_on().await?;
    assert_eq!(last_client(&stage).as_deref(), Some("first"));
    // The certificate first and the key a while after it, then the other way round: halves in between are no pair.
    for (name, order) in [
        ("second", ["tls.crt", "tls.key"]),
        ("third", ["tls.key", "tls.crt"]),
    ] {
        let client = world.client(name)?;
        for (at, file) in order.into_iter().enumerate() {
            let text = match file {
                "tls.crt" => client.chain_pem(),
                _ => client.key_pem(),
            };
            renamed(&world.path(file), text)?;
            if at == 0 {
                load.goes_on().await?;
                let said = stage.proxy.stderr().join("\n");
                ensure!(!said.contains("503"), "{said}");
            }
        }
        until_known_as(&stage, name).await?;
        load.goes_on().await?;
    }
    let answered = load.end().await?;
    let seen = stage.site.seen();
    assert_eq!(
        seen.len() as u64,
        answered,
        "the server saw what was answered"
    );
    for seen in &seen {
        assert_originated(seen, HOST, HOST);
    }
    let said = stage.proxy.stderr().join("\n");
    assert!(said.contains("the one before it stays in use"), "{said}");
    stage.nothing_in_plaintext().await
}

/// Lays a version of a credential out as kubelet does, behind `..data`.
fn mounted(folder: &Path, version: &str, client: &Issued, ca: &str) -> Result<()> {
    let inner = folder.join(version);
    fs::create_dir_all(&inner)?;
    for (name, text) in [
        ("tls.crt", client.chain_pem()),
        ("tls.key", client.key_pem()),
        ("ca.crt", ca),
    ] {
        fs::write(inner.join(name), text)?;
    }
    symlink(version, folder.join("..data_tmp"))?;
    fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
    Ok(())
}

#[tokio::test]
async fn a_pair_is_renewed_as_kubelet_does_it() -> Result<()> {
    let world = World::new()?;
    let folder = world.folder.path().join("client");
    mounted(
        &folder,
        "..2026_01",
        &world.client("first")?,
        &world.ca.pem(),
    )?;
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(Path::new("..data").join(name), folder.join(name))?;
    }
    let stage = world.stage(NEW_CONNECTIONS).await?;
    let load = Load::start(stage.proxy.listener(80)?, CLIENTS);
    load.goes_on().await?;
    let mut before = "..2026_01".to_owned();
    for round in 2..6 {
        let (version, name) = (format!("..2026_0{round}"), format!("client-{round}"));
        mounted(&folder, &version, &world.client(&name)?, &world.ca.pem())?;
        fs::remove_dir_all(folder.join(&before))?;
        before = version;
        until_known_as(&stage, &name).await?;
    }
    load.end().await?;
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn connections_that_live_long_are_made_anew_with_the_new_certificate() -> Result<()> {
    let world = World::new()?;
    credential(
        world.folder.path(),
        "client",
        &world.client("first")?,
        &world.ca.pem(),
    )?;
    let stage = world
        .stage("connectionPool: {tcp: {maxConnectionDuration: 1s}},")
        .await?;
    let load = Load::start(stage.proxy.listener(80)?, CLIENTS);
    load.goes_on().await?;
    let second = world.client("second")?;
    renamed(&world.path("tls.crt"), second.chain_pem())?;
    renamed(&world.path("tls.key"), second.key_pem())?;
    until_known_as(&stage, "second").await?;
    let answered = load.end().await?;
    let connections = stage
        .site
        .seen()
        .iter()
        .map(|seen| seen.connection_id)
        .max();
    let connections = connections.context("nothing was seen")?;
    ensure!(
        connections * 4 < answered,
        "{connections} connections for {answered} requests: they were not kept"
    );
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn an_authority_is_replaced_under_load() -> Result<()> {
    let world = World::new()?;
    let other = Ca::new("the next authority")?;
    // Beside each other at first, then the old one alone again: the server keeps its certificate.
    let both = other.pem() + &world.ca.pem();
    credential(
        world.folder.path(),
        "client",
        &world.client("client")?,
        &world.ca.pem(),
    )?;
    let stage = world.stage(NEW_CONNECTIONS).await?;
    let load = Load::start(stage.proxy.listener(80)?, CLIENTS);
    let admin = stage.proxy.admin()?.to_string();
    for bundle in [&both, &world.ca.pem(), &both] {
        load.goes_on().await?;
        renamed(&world.path("ca.crt"), bundle)?;
        eventually("Envoy holds the bundle", async || {
            // Envoy's own `/certs` has the first of a bundle only, before 1.40.
            let held = egressctl(&world.trusted, ["secrets", "--admin", &admin, "-o", "json"]);
            let held: Vec<Value> = serde_json::from_slice(&held.await?.stdout)?;
            let authorities = held
                .iter()
                .filter(|one| one["name"] == "kubernetes://client-cacert");
            Ok(authorities.count() == bundle.matches("BEGIN CERTIFICATE").count())
        })
        .await?;
    }
    load.end().await?;

    // Without the authority that signed the server's certificate, nothing is sent any more.
    renamed(&world.path("ca.crt"), &other.pem())?;
    eventually("the server is not trusted", async || {
        Ok(stage.get(HOST, "/untrusted").await?.status == 503)
    })
    .await?;
    stage.site.take_seen();
    let answer = stage.get(HOST, "/refused").await?;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.body,
        "egress_unknown_ca: no authority that the proxy trusts vouches for the server\n"
    );
    assert_eq!(stage.log("/refused").await?.egress("reason"), "unknown_ca");
    ensure!(stage.site.seen().is_empty(), "a request was sent");
    stage.silent.assert_silent().await
}

#[tokio::test]
async fn a_revoked_server_is_refused_and_one_that_is_not_is_not() -> Result<()> {
    let world = World::new()?;
    credential(
        world.folder.path(),
        "client",
        &world.client("client")?,
        &world.ca.pem(),
    )?;
    let list = |serials: &[u64]| world.ca.crl(serials, Validity::Valid);
    fs::write(world.path("ca.crl"), list(&[])?)?;
    let stage = world.stage(NEW_CONNECTIONS).await?;
    let load = Load::start(stage.proxy.listener(80)?, CLIENTS);
    load.goes_on().await?;
    // Others that are revoked do not matter.
    renamed(
        &world.path("ca.crl"),
        &list(&[world.server.serial() + 1000])?,
    )?;
    load.goes_on().await?;
    load.end().await?;

    renamed(&world.path("ca.crl"), &list(&[world.server.serial()])?)?;
    eventually("the server is refused", async || {
        Ok(stage.get(HOST, "/until").await?.status == 503)
    })
    .await?;
    stage.site.take_seen();
    let answer = stage.get(HOST, "/revoked").await?;
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.starts_with("egress_revoked: "),
        "{}",
        answer.body
    );
    assert_eq!(stage.log("/revoked").await?.egress("reason"), "revoked");
    ensure!(stage.site.seen().is_empty(), "a request was sent");

    // A list that is emptied or gone is not a list of nobody: the one before it stays.
    for lost in ["emptied", "removed"] {
        match lost {
            "emptied" => fs::write(world.path("ca.crl"), "")?,
            _ => fs::remove_file(world.path("ca.crl"))?,
        }
        eventually("the loss is told", async || {
            let said = stage.proxy.stderr().join("\n");
            Ok(said.contains("had a revocation list and has none now"))
        })
        .await?;
        let path = format!("/{lost}");
        assert_eq!(stage.get(HOST, &path).await?.status, 503);
        assert_eq!(stage.log(&path).await?.egress("reason"), "revoked");
    }

    // It was a mistake.
    renamed(&world.path("ca.crl"), &list(&[])?)?;
    eventually("the server is good again", async || {
        Ok(stage.get(HOST, "/again").await?.status == 200)
    })
    .await?;
    stage.silent.assert_silent().await
}
