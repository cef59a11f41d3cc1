//! `egressctl run` and `egressctl render` as people meet them: good rules, bad rules, and the end.

mod common;

use std::{os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command, time::timeout};

use egress_integration::{
    egressctl::{Builder, Egressctl, EndedEarly},
    envoy,
    pki::Leaf,
    probe,
    silent_port::SilentPort,
};

use common::{
    HOST, SIMPLE, SOON, Stage, Trusted, assert_originated, egressctl, entry, entry_with, only,
    originated, rendered, route, rule, scenario,
};

/// What `egressctl run` says when it does not come up.
async fn refusal(builder: Builder) -> Result<EndedEarly> {
    match builder.start().await {
        Ok(running) => bail!("it started: {:?}", running.stdout()),
        Err(error) => error.downcast(),
    }
}

/// `run` refuses this file as the input's fault, and says these things of it.
async fn assert_mistake(rules: &str, says: &[&str]) -> Result<()> {
    let trusted = Trusted::new()?;
    let file = trusted.file("rules.yaml", rules)?;
    let name = file.display().to_string();
    let builder = trusted
        .egressctl(&originated("good.example", 443))
        .rules(file);
    let refused = refusal(builder.port(80, 0)).await?;
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    for text in says {
        let text = text.replace("FILE", &name);
        ensure!(
            refused.stderr.contains(&text),
            "`{text}` is not in:\n{}",
            refused.stderr
        );
    }
    Ok(())
}

/// The page's rules with one thing written otherwise.
fn page_with(good: &str, bad: &str) -> Result<String> {
    let text = std::fs::read_to_string(scenario("cnn-origination.yaml"))?;
    ensure!(
        text.matches(good).count() == 1,
        "`{good}` is not there once"
    );
    Ok(text.replace(good, bad))
}

/// The line that has `text`, counted from one.
fn line_of(rules: &str, text: &str) -> Result<usize> {
    let line = rules.lines().position(|line| line.contains(text));
    Ok(line.with_context(|| format!("`{text}` is not there"))? + 1)
}

/// Where a message points for `text`.
fn place(rules: &str, text: &str) -> Result<String> {
    let line = line_of(rules, text)?;
    let column = rules.lines().nth(line - 1).and_then(|line| line.find(text));
    Ok(format!(
        "--> FILE:{line}:{}",
        column.context("no column")? + 1
    ))
}

#[tokio::test]
async fn an_unknown_field_is_shown_where_it_stands() -> Result<()> {
    let rules = page_with("targetPort: 443", "target_port: 443")?;
    let says = [
        "error: spec.ports[0].target_port: unknown field `target_port`",
        &place(&rules, "target_port")?,
        "(ServiceEntry default/edition-cnn-com)",
        "hint: did you mean `targetPort`?",
    ];
    assert_mistake(&rules, &says).await
}

#[tokio::test]
async fn an_unknown_mode_is_shown_where_it_stands() -> Result<()> {
    let rules = page_with("mode: SIMPLE", "mode: SIMPEL")?;
    let says = [
        "error: spec.trafficPolicy.portLevelSettings[0].tls.mode: unknown mode `SIMPEL`",
        &place(&rules, "SIMPEL")?,
        "(DestinationRule default/edition-cnn-com)",
        "hint: did you mean `SIMPLE`?",
    ];
    assert_mistake(&rules, &says).await
}

#[tokio::test]
async fn a_bad_port_is_shown_where_it_stands() -> Result<()> {
    let rules = page_with("targetPort: 443", "targetPort: 70000")?;
    let says = [
        "error: spec.ports[0].targetPort: 70000 is out of range 1..65535",
        &place(&rules, "70000")?,
        "(ServiceEntry default/edition-cnn-com)",
    ];
    assert_mistake(&rules, &says).await?;
    let rules = page_with("targetPort: 443", "targetPort: \"443\"")?;
    let says = [
        "error: spec.ports[0].targetPort: expected a number",
        &place(&rules, "\"443\"")?,
        "hint: write 443 without quotes",
    ];
    assert_mistake(&rules, &says).await
}

#[tokio::test]
async fn what_is_not_yaml_is_shown_where_it_breaks() -> Result<()> {
    let rules = page_with("  hosts:", "\thosts:")?;
    let line = line_of(&rules, "\thosts:")?;
    let says = [
        "error: not valid YAML",
        &format!("--> FILE:{line}:"),
        "hint: indent with spaces",
    ];
    assert_mistake(&rules, &says).await?;

    let rules = page_with("resolution: DNS", "resolution: DNS\n  resolution: NONE")?;
    let line = line_of(&rules, "resolution: NONE")?;
    let says = [
        "error: `resolution` is given twice",
        &format!("--> FILE:{line}:3"),
        "hint: ",
    ];
    assert_mistake(&rules, &says).await
}

#[tokio::test]
async fn yaml_that_ends_too_early_is_told_with_a_hint() -> Result<()> {
    let says = ["error: not valid YAML", "--> FILE:", "hint: "];
    assert_mistake("spec:\n  hosts: [a.example\n", &says).await
}

#[tokio::test]
async fn all_mistakes_are_told_at_once() -> Result<()> {
    let rules = page_with("targetPort: 443", "targetPort: 0")?
        .replace("resolution: DNS", "resolution: DSN")
        .replace("mode: SIMPLE", "mode: MUTUAL");
    let says = [
        "spec.ports[0].targetPort: 0 is out of range",
        "spec.resolution: unknown resolution `DSN`",
        "portLevelSettings[0].tls.clientCertificate: client certificate required for mutual tls",
    ];
    assert_mistake(&rules, &says).await
}

#[tokio::test]
async fn a_port_in_use_is_told_with_the_flag_that_helps() -> Result<()> {
    let trusted = Trusted::new()?;
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let port = taken.local_addr()?.port();
    let builder = trusted.egressctl(&originated(HOST, 443)).port(80, port);
    let refused = refusal(builder).await?;
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    for text in [
        &port.to_string(),
        "service port 80",
        "something else listens there",
        "--port 80=",
    ] {
        ensure!(
            refused.stderr.contains(text),
            "`{text}` is not in:\n{}",
            refused.stderr
        );
    }
    Ok(())
}

/// `run` ends by this status with one line for people, which has `text`.
async fn assert_failure(builder: Builder, status: i32, text: &str) -> Result<()> {
    let refused = refusal(builder.port(80, 0).port(443, 0)).await?;
    assert_eq!(refused.status.code(), Some(status), "{refused}");
    let mut lines = refused
        .stderr
        .lines()
        .filter(|line| !line.starts_with("hint: "));
    let line = lines.next().context("it said nothing")?;
    assert_eq!(lines.next(), None, "more than a line:\n{}", refused.stderr);
    ensure!(line.starts_with("error: "), "{line}");
    ensure!(line.contains(text), "`{text}` is not in: {line}");
    ensure!(line.len() < 1000, "{} bytes: {line}", line.len());
    ensure!(!line.contains("[critical]"), "{line}");
    Ok(())
}

fn program(path: &Path) -> Result<()> {
    Ok(std::fs::set_permissions(
        path,
        PermissionsExt::from_mode(0o755),
    )?)
}

#[tokio::test]
async fn what_is_no_envoy_is_told_by_name() -> Result<()> {
    let trusted = Trusted::new()?;
    let builder = |path: &Path| {
        trusted
            .egressctl(&originated(HOST, 443))
            .arg("--envoy")
            .arg(path)
    };

    let other = trusted.file("other", "#!/bin/sh\necho other 1.0\n")?;
    program(&other)?;
    assert_failure(builder(&other), 2, "other` is not an Envoy").await?;
    let silent = trusted.file("silent", "#!/bin/sh\nexit 3\n")?;
    program(&silent)?;
    assert_failure(builder(&silent), 2, "silent` is not an Envoy").await?;
    let text = trusted.file("text", "no program\n")?;
    assert_failure(builder(&text), 2, "text` is not an Envoy").await?;
    assert_failure(
        builder(&trusted.path("nothing")),
        1,
        "nothing` is not a file",
    )
    .await
}

#[tokio::test]
async fn envoys_own_failure_to_start_is_one_readable_line() -> Result<()> {
    let trusted = Trusted::new()?;
    let builder = || trusted.egressctl(&originated(HOST, 443));

    let text = trusted.file("filter.wasm", "this is no module\n")?;
    assert_failure(builder().arg("--wasm").arg(text), 2, "Envoy did not start").await?;

    let garbage = trusted.file("garbage.pem", "this is no certificate\n")?;
    assert_failure(builder().env("SSL_CERT_FILE", &garbage), 2, "garbage.pem").await?;

    let missing = trusted.path("missing.pem");
    assert_failure(builder().env("SSL_CERT_FILE", &missing), 1, "missing.pem").await
}

#[tokio::test]
async fn ctrl_c_ends_it_well_and_envoy_with_it() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| builder).await?;
    assert_eq!(stage.get(HOST, "/").await?.status, 200);
    let http = stage.proxy.listener(80)?;
    // The harness fails this when a process of it is left.
    assert_eq!(stage.proxy.stop().await?.code(), Some(0));
    ensure!(probe::get(http, HOST, "/").await.is_err());
    Ok(())
}

#[tokio::test]
async fn envoy_does_not_outlive_a_killed_egressctl() -> Result<()> {
    let trusted = Trusted::new()?;
    let stage = Stage::page(&trusted, |builder| builder).await?;
    let http = stage.proxy.listener(80)?;
    stage.proxy.kill().await?;
    ensure!(probe::get(http, HOST, "/").await.is_err());
    Ok(())
}

#[tokio::test]
async fn the_ready_line_comes_when_everything_listens() -> Result<()> {
    let trusted = Trusted::new()?;
    let builder = trusted
        .egressctl("")
        .rules(scenario("cnn-origination.yaml"));
    let proxy = builder.port(80, 0).port(443, 0).start().await?;
    let (http, https, admin) = (proxy.listener(80)?, proxy.listener(443)?, proxy.admin()?);
    let filter = proxy.filter()?;
    ensure!(["wasm", "module"].contains(&filter), "{filter}");
    assert_eq!(
        proxy.stdout(),
        [format!(
            "ready 80={http} 443={https} filter={filter} admin={admin}"
        )]
    );
    for addr in [http, https, admin] {
        ensure!(addr.ip().is_loopback() && addr.port() != 0, "{addr}");
    }
    // No try again: it is ready.
    assert_eq!(probe::get(http, "other.example", "/").await?.status, 502);
    assert_eq!(proxy.admin_get("/ready").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_run_without_mistakes_says_nothing_but_ready() -> Result<()> {
    let trusted = Trusted::new()?;
    let own =
        "{tls: {mode: SIMPLE, sni: front.example}, connectionPool: {tcp: {maxConnections: 9}}}";
    for rules in [
        originated(HOST, 443),
        // A cluster of its own that is looked up, and one with addresses.
        entry(HOST, 443) + &rule(HOST, own),
        entry_with(
            HOST,
            "resolution: STATIC, endpoints: [{address: 127.0.0.1}], \
             ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]",
        ) + &rule(HOST, SIMPLE),
    ] {
        let proxy = trusted.egressctl(&rules).port(80, 0).start().await?;
        assert_eq!(proxy.stderr(), [""; 0]);
        assert_eq!(proxy.stdout().len(), 1, "{:#?}", proxy.stdout());
    }
    Ok(())
}

/// `run` with rules from somewhere originates.
async fn assert_originates(
    trusted: &Trusted,
    rules: impl FnOnce(Builder) -> Builder,
) -> Result<()> {
    let (site, silent) = (trusted.site([HOST]).await?, SilentPort::start().await?);
    let builder = Egressctl::builder()
        .env("SSL_CERT_FILE", trusted.bundle())
        .port(80, 0)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route(HOST, 80, silent.addr()));
    let proxy = rules(builder).start().await?;
    assert_eq!(
        probe::get(proxy.listener(80)?, HOST, "/").await?.status,
        200
    );
    assert_originated(&only(&site)?, HOST, HOST);
    silent.assert_silent().await
}

#[tokio::test]
async fn rules_come_from_the_standard_input() -> Result<()> {
    let trusted = Trusted::new()?;
    assert_originates(&trusted, |run| run.rules_on_stdin(originated(HOST, 443))).await?;

    let refused = refusal(trusted.egressctl("").rules_on_stdin("kind: [")).await?;
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    ensure!(refused.stderr.contains("--> <stdin>:"), "{refused}");
    Ok(())
}

/// The two resources as JSON.
fn resources() -> [Value; 2] {
    let api = "networking.istio.io/v1";
    let port = json!({"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443});
    let spec = json!({"hosts": [HOST], "ports": [port], "resolution": "DNS"});
    let policy = json!({"tls": {"mode": "SIMPLE"}});
    [
        json!({"apiVersion": api, "kind": "ServiceEntry", "metadata": {"name": "a"}, "spec": spec}),
        json!({"apiVersion": api, "kind": "DestinationRule", "metadata": {"name": "a"},
               "spec": {"host": HOST, "trafficPolicy": policy}}),
    ]
}

#[tokio::test]
async fn rules_come_from_json_and_from_a_list() -> Result<()> {
    let trusted = Trusted::new()?;
    let [entry, rule] = resources().map(|resource| resource.to_string());
    let one = trusted.file("entry.json", &entry)?;
    let other = trusted.file("rule.json", &rule)?;
    assert_originates(&trusted, |run| run.rules(one).rules(other)).await?;

    // As `kubectl get -o json` prints it.
    let list = json!({"apiVersion": "v1", "kind": "List", "items": resources(),
                      "metadata": {"resourceVersion": ""}});
    let list = trusted.file("list.json", &format!("{list:#}"))?;
    assert_originates(&trusted, |run| run.rules(list)).await
}

#[tokio::test]
async fn rules_come_from_a_folder() -> Result<()> {
    let trusted = Trusted::new()?;
    let folder = trusted.path("rules");
    std::fs::create_dir(&folder)?;
    // The rule comes before the entry, and what is not rules is let be.
    trusted.file("rules/1.yml", &rule(HOST, SIMPLE))?;
    trusted.file("rules/2.yaml", &entry(HOST, 443))?;
    trusted.file(
        "rules/3.json",
        &resources().map(|other| other.to_string())[0].replace(HOST, "x.example"),
    )?;
    trusted.file("rules/4.yaml", &rule("x.example", SIMPLE))?;
    trusted.file("rules/README.md", "no: [rules")?;
    let path = folder.clone();
    assert_originates(&trusted, |run| run.rules(path)).await?;

    let empty = trusted.path("empty");
    std::fs::create_dir(&empty)?;
    let refused = refusal(trusted.egressctl(&originated(HOST, 443)).rules(empty)).await?;
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    ensure!(
        refused
            .stderr
            .contains("holds no .yaml, .yml or .json file"),
        "{refused}"
    );
    Ok(())
}

#[tokio::test]
async fn envoy_takes_what_is_rendered() -> Result<()> {
    let trusted = Trusted::new()?;
    let own = "{tls: {mode: SIMPLE, sni: front.example}, loadBalancer: {simple: RANDOM}}";
    let rules = originated(HOST, 443)
        + &entry("plain.example", 80)
        + &entry("own.example", 443)
        + &rule("own.example", own);
    let one = trusted.file("rules.yaml", &rules)?;
    for rules in [
        one,
        scenario("cnn-access.yaml"),
        scenario("cnn-origination.yaml"),
    ] {
        for format in ["yaml", "json"] {
            let args = [
                "render",
                "envoy",
                "-o",
                format,
                "--outbound-traffic-policy",
                "ALLOW_ANY",
                "-f",
            ];
            let mut args: Vec<_> = args.map(Path::new).into();
            args.push(&rules);
            let output = egressctl(&trusted, &args).await?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{stderr}");
            let text = String::from_utf8(output.stdout)?;
            let bootstrap = trusted.file(&format!("bootstrap.{format}"), &text)?;

            let mut command = Command::new(envoy::binary()?);
            command
                .args(["--mode", "validate", "-c"])
                .arg(bootstrap)
                .kill_on_drop(true);
            let output = timeout(SOON, command.output()).await??;
            let log = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.success(),
                "{}, {format}: {log}",
                rules.display()
            );
        }
    }
    Ok(())
}

/// The golden case with a value in every field that is honoured, on files that exist.
#[tokio::test]
async fn envoy_accepts_what_is_rendered_of_every_field() -> Result<()> {
    let trusted = Trusted::new()?;
    let client = trusted.ca.issue(&Leaf::for_names(["client.example"]))?;
    let certificate = trusted.file("client.pem", client.chain_pem())?;
    let key = trusted.file("client.key", client.key_pem())?;
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../envoy/ctl/tests/cli/everything.yaml"
    );
    let rules = std::fs::read_to_string(golden)?
        // The test authority revokes nothing.
        .replace(", caCrl: crl.pem", "")
        .replace("ca.pem", &trusted.bundle().display().to_string())
        .replace("client.pem", &certificate.display().to_string())
        .replace("client.key", &key.display().to_string());
    let bootstrap = rendered(&trusted, &rules, &[]).await?;
    ensure!(
        bootstrap.to_string().contains("file-cert:"),
        "no client certificate is rendered"
    );
    let bootstrap = trusted.file("everything.json", &bootstrap.to_string())?;
    let mut command = Command::new(envoy::binary()?);
    command
        .args(["--mode", "validate", "-c"])
        .arg(bootstrap)
        .kill_on_drop(true);
    let output = timeout(SOON, command.output()).await??;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
