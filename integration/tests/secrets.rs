//! Credentials as people hold them: where they may be, what happens while they are not there, what Envoy holds.

mod common;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use egress_integration::{
    dns::{DnsServer, Zone},
    envoy::{self, EnvoyProcess},
    pki::{Ca, Issued, Leaf, Validity},
    probe,
    stand_in::{Clients, StandIn, StandInConfig},
};

use common::{
    HOST, Stage, Trusted, assert_originated, by_credential, credential, egressctl, entry,
    eventually, mutual, only, rule, selected,
};

/// A site that wants a client certificate of `clients`, and has one of `servers` itself.
async fn strict_site(servers: &Ca, clients: &Ca, host: &str) -> Result<StandIn> {
    let certificate = servers.issue(&Leaf::for_names([host]))?;
    let roots = vec![clients.certificate().clone()];
    StandIn::start(StandInConfig::new(certificate).clients(Clients::Required(roots))).await
}

/// All that a credential is made of, of one authority.
struct Held {
    ca: Ca,
    client: Issued,
}

impl Held {
    fn new() -> Result<Self> {
        let ca = Ca::new("example.com")?;
        let client = ca.issue(&Leaf::client("client.example.com"))?;
        Ok(Self { ca, client })
    }

    async fn site(&self) -> Result<StandIn> {
        strict_site(&self.ca, &self.ca, HOST).await
    }

    /// Proves that the server knew the client by this certificate.
    fn assert_known(&self, site: &StandIn) -> Result<()> {
        let seen = only(site)?;
        assert_originated(&seen, HOST, HOST);
        let client = seen.client.context("no client certificate")?;
        assert_eq!(client.common_name, "client.example.com");
        assert_eq!(client.serial, format!("{:X}", self.client.serial()));
        Ok(())
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// Runs the page's kind of rule with these arguments and documents, and asks once.
async fn serves(held: &Held, args: &[&str], documents: &str) -> Result<()> {
    let trusted = Trusted::new()?;
    let mut builder = trusted
        .egressctl(&(entry(HOST, 443) + &selected(HOST, "client-credential") + documents))
        .arg("--label")
        .arg("app=sleep");
    for arg in args {
        builder = builder.arg(*arg);
    }
    let stage = Stage::start(builder, held.site().await?, [HOST]).await?;
    let answer = stage.get(HOST, "/served").await?;
    let said = stage.proxy.stderr().join("\n");
    assert_eq!(answer.status, 200, "{args:?}: {said}");
    held.assert_known(&stage.site)?;
    let secrets = "kubernetes://client-credential,kubernetes://client-credential-cacert";
    assert_eq!(stage.log("/served").await?.egress("secrets"), secrets);
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn a_folder_of_either_layout_is_a_credential() -> Result<()> {
    let held = Held::new()?;
    for names in [["tls.crt", "tls.key", "ca.crt"], ["cert", "key", "cacert"]] {
        let folder = tempfile::tempdir()?;
        let inner = folder.path().join("client-credential");
        fs::create_dir(&inner)?;
        let texts = [
            held.client.chain_pem(),
            held.client.key_pem(),
            &held.ca.pem(),
        ];
        for (name, text) in names.into_iter().zip(texts) {
            fs::write(inner.join(name), text)?;
        }
        let path = folder.path().display().to_string();
        serves(&held, &["--credentials", &path], "").await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_authorities_may_have_a_folder_of_their_own() -> Result<()> {
    let held = Held::new()?;
    let folder = tempfile::tempdir()?;
    // The one beside the key would verify nobody: it must not count.
    let other = Ca::new("another")?;
    credential(
        folder.path(),
        "client-credential",
        &held.client,
        &other.pem(),
    )?;
    let own = folder.path().join("client-credential-cacert");
    fs::create_dir(&own)?;
    fs::write(own.join("ca.crt"), held.ca.pem())?;
    let path = folder.path().display().to_string();
    serves(&held, &["--credentials", &path], "").await
}

#[tokio::test]
async fn a_secret_may_stand_among_the_rules() -> Result<()> {
    let held = Held::new()?;
    let secret = format!(
        "---
apiVersion: v1
kind: Secret
type: Opaque
metadata: {{name: client-credential, namespace: default}}
stringData:
  tls.crt: |
{}  tls.key: |
{}  ca.crt: |
{}",
        indented(held.client.chain_pem()),
        indented(held.client.key_pem()),
        indented(&held.ca.pem())
    );
    serves(&held, &[], &secret).await
}

#[tokio::test]
async fn no_key_gets_to_where_anyone_could_read_it() -> Result<()> {
    let held = Held::new()?;
    let folder = tempfile::tempdir()?;
    credential(
        folder.path(),
        "client-credential",
        &held.client,
        &held.ca.pem(),
    )?;
    let trusted = Trusted::new()?;
    let builder = trusted
        .egressctl(&(entry(HOST, 443) + &selected(HOST, "client-credential")))
        .arg("--label")
        .arg("app=sleep")
        .arg("--credentials")
        .arg(folder.path());
    let stage = Stage::start(builder, held.site().await?, [HOST]).await?;
    assert_eq!(stage.get(HOST, "/key").await?.status, 200);
    // A line of the key's own, and the same within base64.
    let key = held.client.key_pem();
    let line = key.lines().nth(1).context("a key has lines")?;
    for path in [
        "/config_dump",
        "/certs",
        "/stats",
        "/clusters",
        "/server_info",
    ] {
        let shown = stage.proxy.admin_get(path).await?.body;
        ensure!(
            !shown.contains(line) && !shown.contains("PRIVATE KEY"),
            "{path} shows the key"
        );
        // `-----BEGIN PRIVATE KEY` in base64, at its beginning as at other places.
        ensure!(
            !shown.contains("LS0tLS1CRUdJTiBQUklWQVRF"),
            "{path} shows the key"
        );
    }
    let said = stage.proxy.stderr().join("\n") + &stage.proxy.stdout().join("\n");
    ensure!(!said.contains(line), "it was printed");
    ensure!(
        !stage.proxy.access_log()?.join("\n").contains(line),
        "it was logged"
    );
    Ok(())
}

#[tokio::test]
async fn a_missing_credential_fails_its_hosts_alone_and_heals_by_itself() -> Result<()> {
    const OTHER: &str = "other.example.com";
    let held = Held::new()?;
    let folder = tempfile::tempdir()?;
    let trusted = Trusted::new()?;
    let rules =
        entry(HOST, 443) + &selected(HOST, "client-credential") + &common::originated(OTHER, 443);
    let other = trusted.site([OTHER]).await?;
    let builder = trusted
        .egressctl(&rules)
        .arg("--label")
        .arg("app=sleep")
        .arg("--credentials")
        .arg(folder.path())
        .connect_to(&common::route(OTHER, 443, other.tls_addr()));
    let stage = Stage::start(builder, held.site().await?, [HOST]).await?;

    let answer = stage.get(HOST, "/before").await?;
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.starts_with("egress_secret_missing: "),
        "{}",
        answer.body
    );
    let log = stage.log("/before").await?;
    assert_eq!(log.egress("action"), "originate");
    assert_eq!(log.egress("reason"), "secret_missing");
    let secrets = "kubernetes://client-credential,kubernetes://client-credential-cacert";
    assert_eq!(log.egress("secrets"), secrets);
    assert_eq!(stage.get(OTHER, "/other").await?.status, 200);
    let said = stage.proxy.stderr().join("\n");
    assert!(
        said.contains("credential `client-credential` is missing"),
        "{said}"
    );

    // Half of it does not help.
    let inner = folder.path().join("client-credential");
    fs::create_dir(&inner)?;
    fs::write(inner.join("tls.crt"), held.client.chain_pem())?;
    fs::write(inner.join("ca.crt"), held.ca.pem())?;
    eventually("the half is told", async || {
        Ok(stage
            .proxy
            .stderr()
            .join("\n")
            .contains("has `tls.crt` and no `tls.key`"))
    })
    .await?;
    assert_eq!(stage.get(HOST, "/half").await?.status, 503);

    fs::write(inner.join("tls.key"), held.client.key_pem())?;
    eventually("the host works", async || {
        Ok(stage.get(HOST, "/after").await?.status == 200)
    })
    .await?;
    held.assert_known(&stage.site)?;
    stage.silent.assert_silent().await
}

#[tokio::test]
async fn a_folder_that_appears_later_is_seen_too() -> Result<()> {
    let held = Held::new()?;
    let folder = tempfile::tempdir()?;
    let files = folder.path().join("not/there/yet");
    let trusted = Trusted::new()?;
    let tls = mutual(
        &files.join("c.crt"),
        &files.join("c.key"),
        &files.join("ca.crt"),
        "",
    );
    let builder = trusted.egressctl(&(entry(HOST, 443) + &rule(HOST, &tls)));
    let stage = Stage::start(builder, held.site().await?, [HOST]).await?;
    assert_eq!(stage.get(HOST, "/before").await?.status, 503);
    assert_eq!(
        stage.log("/before").await?.egress("reason"),
        "secret_missing"
    );

    fs::create_dir_all(&files)?;
    held.client.write(&files, "c")?;
    fs::write(files.join("ca.crt"), held.ca.pem())?;
    eventually("the host works", async || {
        Ok(stage.get(HOST, "/after").await?.status == 200)
    })
    .await?;
    held.assert_known(&stage.site)?;
    stage.silent.assert_silent().await
}

/// Runs `egressctl secrets`; returns its exit code, its rows and what it said.
async fn held_by_envoy(stage: &Stage, args: &[&str]) -> Result<(i32, Vec<Value>, String)> {
    let admin = stage.proxy.admin()?.to_string();
    let mut all = vec!["secrets", "--admin", admin.as_str(), "-o", "json"];
    all.extend(args);
    let output = egressctl(&Trusted::new()?, all).await?;
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code().context("no code")?, rows, said))
}

#[tokio::test]
async fn envoy_is_asked_what_it_holds() -> Result<()> {
    let held = Held::new()?;
    let folder = tempfile::tempdir()?;
    let trusted = Trusted::new()?;
    credential(
        folder.path(),
        "client-credential",
        &held.client,
        &held.ca.pem(),
    )?;
    let expired = held
        .ca
        .issue(&Leaf::client("late").validity(Validity::Expired))?;
    let builder = |name: &str| {
        trusted
            .egressctl(&(entry(HOST, 443) + &selected(HOST, name)))
            .arg("--label")
            .arg("app=sleep")
            .arg("--credentials")
            .arg(folder.path())
    };
    let stage = Stage::start(builder("client-credential"), held.site().await?, [HOST]).await?;
    let (code, rows, said) = held_by_envoy(&stage, &[]).await?;
    assert_eq!(code, 0, "{said}");
    let shown: Vec<[&str; 4]> = rows
        .iter()
        .map(|row| {
            ["name", "type", "status", "serialNumber"]
                .map(|key| row.get(key).and_then(Value::as_str).unwrap_or("-"))
        })
        .collect();
    let serial = format!("{:x}", held.client.serial());
    // Whom the system trusts is always held, for rules to come.
    let [["file-root:system", "CA", "ACTIVE", _], client, ca] = shown[..] else {
        panic!("{shown:?}")
    };
    assert_eq!(
        client,
        [
            "kubernetes://client-credential",
            "Cert Chain",
            "ACTIVE",
            &serial
        ]
    );
    assert_eq!(
        ca[..3],
        ["kubernetes://client-credential-cacert", "CA", "ACTIVE"]
    );

    // The test's certificates are good for a month.
    assert_eq!(held_by_envoy(&stage, &["--within", "7d"]).await?.0, 0);
    let (code, _, said) = held_by_envoy(&stage, &["--within", "60d"]).await?;
    assert_eq!(code, 1);
    assert!(
        said.contains("`kubernetes://client-credential` expires at "),
        "{said}"
    );

    credential(folder.path(), "late", &expired, &held.ca.pem())?;
    let stage = Stage::start(builder("late"), held.site().await?, [HOST]).await?;
    let (code, _, said) = held_by_envoy(&stage, &[]).await?;
    assert_eq!(code, 1);
    assert!(
        said.contains("`kubernetes://late` has expired at "),
        "{said}"
    );

    // What is good for years does not help beside a revocation list that has run out.
    credential(folder.path(), "listed", &held.client, &held.ca.pem())?;
    let list = held.ca.crl(&[], Validity::Expired)?;
    fs::write(folder.path().join("listed/ca.crl"), list)?;
    let stage = Stage::start(builder("listed"), held.site().await?, [HOST]).await?;
    let (code, _, said) = held_by_envoy(&stage, &[]).await?;
    assert_eq!(code, 1);
    assert!(
        said.contains("`kubernetes://listed-cacert` has a revocation list that ran out at "),
        "{said}"
    );

    let stage = Stage::start(builder("absent"), held.site().await?, [HOST]).await?;
    let (code, rows, said) = held_by_envoy(&stage, &[]).await?;
    assert_eq!(code, 1);
    assert!(said.contains("`kubernetes://absent` is missing"), "{said}");
    let status = |row: &Value| row.get("status").and_then(Value::as_str).map(str::to_owned);
    let shown: Vec<_> = rows.iter().filter_map(status).collect();
    assert_eq!(shown, ["ACTIVE", "WARMING", "WARMING"], "{rows:?}");
    Ok(())
}

/// With two secrets each, more than the kernel lets one user watch files with, and more than Envoy lets through to
/// one server at a time unless told.
const MANY: usize = 600;

#[tokio::test]
async fn six_hundred_credentials_load() -> Result<()> {
    let trusted = Trusted::new()?;
    let ca = Ca::new("example.com")?;
    let folder = tempfile::tempdir()?;
    let roots = vec![ca.certificate().clone()];
    let host = |number: usize| format!("h{number}.example.com");
    let certificate = ca.issue(&Leaf::for_names(["*.example.com"]))?;
    let site = StandInConfig::new(certificate).clients(Clients::Required(roots));
    let site = StandIn::start(site).await?;
    let dns = DnsServer::start(Zone::new().every_name([std::net::Ipv4Addr::LOCALHOST])).await?;

    let mut rules = String::new();
    for number in 0..MANY {
        let client = ca.issue(&Leaf::client(&host(number)))?;
        let name = format!("c{number}");
        credential(folder.path(), &name, &client, &ca.pem())?;
        rules += &entry(&host(number), site.tls_addr().port());
        rules += &selected(&host(number), &name);
    }
    let builder = trusted
        .egressctl(&rules)
        .port(80, 0)
        .arg("--label")
        .arg("app=sleep")
        .arg("--credentials")
        .arg(folder.path())
        .arg("--resolver")
        .arg(dns.addr().to_string());
    let proxy = builder.start().await?;
    // On a busy machine `ready` may come before the last of them.
    let admin = proxy.admin()?.to_string();
    let held = async || {
        let output = egressctl(&trusted, ["secrets", "--admin", &admin, "-o", "json"]).await?;
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout)?;
        // And whom the system trusts.
        ensure!(rows.len() == 2 * MANY + 1, "{} rows", rows.len());
        Ok(output.status.success())
    };
    eventually("Envoy holds all of them", held).await?;
    for number in (0..MANY).step_by(37).chain([MANY - 1]) {
        let host = host(number);
        let answer = probe::get(proxy.listener(80)?, &host, "/").await?;
        assert_eq!(answer.status, 200, "{host}: {}", answer.body);
        let client = only(&site)?.client.context("no client certificate")?;
        assert_eq!(client.common_name, host);
    }
    Ok(())
}

#[tokio::test]
async fn a_rendered_folder_serves_an_envoy_of_ones_own_and_keeps_up_with_its_files() -> Result<()> {
    let trusted = Trusted::new()?;
    let held = Held::new()?;
    let folder = tempfile::tempdir()?;
    let credentials = folder.path().join("credentials");
    fs::create_dir(&credentials)?;
    credential(
        &credentials,
        "client-credential",
        &held.client,
        &held.ca.pem(),
    )?;
    let site = held.site().await?;
    // A connection that is kept goes on with the certificate that it began with, and each of Envoy's workers may keep one.
    let rules = by_credential(HOST, 443, "client-credential").replace(
        "trafficPolicy: {",
        "trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}, ",
    );
    let rules = trusted.file("rules.yaml", &rules)?;
    let out = folder.path().join("out");
    let to = common::route(HOST, 443, site.tls_addr());
    let output = egressctl(
        &trusted,
        [
            Path::new("render"),
            Path::new("envoy"),
            Path::new("-o"),
            Path::new("json"),
            Path::new("-f"),
            &rules,
            Path::new("--label"),
            Path::new("app=sleep"),
            Path::new("--credentials"),
            &credentials,
            Path::new("--output-folder"),
            &out,
            Path::new("--port"),
            Path::new("80=0"),
            Path::new("--connect-to"),
            Path::new(&to),
        ],
    )
    .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut bootstrap: Value = serde_json::from_slice(&fs::read(out.join("bootstrap.json"))?)?;
    bootstrap
        .as_object_mut()
        .context("no object")?
        .remove("admin");
    ensure!(!bootstrap.to_string().contains("PRIVATE KEY"));
    let proxy = EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), [""; 0]).await?;
    let listener = proxy.listener("outbound_80")?;
    assert_eq!(probe::get(listener, HOST, "/").await?.status, 200);
    held.assert_known(&site)?;

    // By rename, as it should be done: Envoy does not look at files that are written into.
    let renewed = held.ca.issue(&Leaf::client("renewed"))?;
    let inner = credentials.join("client-credential");
    for (name, text) in [
        ("tls.crt", renewed.chain_pem()),
        ("tls.key", renewed.key_pem()),
    ] {
        let new = inner.join(format!("{name}.new"));
        fs::write(&new, text)?;
        fs::rename(new, inner.join(name))?;
    }
    eventually("the new certificate is shown", async || {
        assert_eq!(probe::get(listener, HOST, "/").await?.status, 200);
        let seen = only(&site)?;
        Ok(seen
            .client
            .is_some_and(|client| client.common_name == "renewed"))
    })
    .await?;
    proxy.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_bootstrap_alone_never_takes_a_key_along() -> Result<()> {
    let trusted = Trusted::new()?;
    let held = Held::new()?;
    let secret = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: client-credential}}\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}  ca.crt: |\n{}",
        indented(held.client.chain_pem()),
        indented(held.client.key_pem()),
        indented(&held.ca.pem())
    );
    let rules = trusted.file(
        "rules.yaml",
        &(by_credential(HOST, 443, "client-credential") + &secret),
    )?;
    let rules = rules.display().to_string();
    let common = ["render", "envoy", "-f", &rules, "--label", "app=sleep"];
    let output = egressctl(&trusted, common).await?;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--output-folder DIR"), "{said}");
    assert!(output.stdout.is_empty());

    let out = trusted.path("out");
    let folder = out.display().to_string();
    let output = egressctl(
        &trusted,
        common.into_iter().chain(["--output-folder", &folder]),
    )
    .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let key = held
        .client
        .key_pem()
        .lines()
        .nth(1)
        .context("a key has lines")?;
    let mut files = vec![out.clone()];
    let mut keys = 0;
    while let Some(path) = files.pop() {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
        if path.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            for entry in fs::read_dir(&path)? {
                files.push(entry?.path());
            }
        } else {
            assert_eq!(mode, 0o600, "{}", path.display());
            if fs::read_to_string(&path)?.contains(key) {
                keys += 1;
                assert!(path.ends_with("tls.key"), "{}", path.display());
            }
        }
    }
    assert_eq!(keys, 1);
    Ok(())
}
