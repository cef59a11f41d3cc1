//! The second half of the task: a server that wants to know its clients.
//!
//! The server is a real nginx with the page's configuration. The page's own commands make the certificates, and the
//! rules are the page's YAML. Its Secret is a folder here.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use egress_integration::{
    egressctl::{Egressctl, Running},
    nginx::{self, Nginx, NginxConfig},
    openssl,
    pki::Ca,
    probe,
    silent_port::SilentPort,
};

use crate::both_halves::{
    BOLD, NotAsExpected, Rules, Signals, WATCH_INTERVAL, block, find_egressctl, log_after,
    log_block, past_proxies, run_here, say, stop,
};

const HOST: &str = "my-nginx.mesh-external.svc.cluster.local";
const URL: &str = "http://my-nginx.mesh-external.svc.cluster.local";
const CURL: &str = "curl -sS";
const RULES: Rules = Rules {
    file: "integration/scenarios/my-nginx.yaml",
    text: include_str!("../../../scenarios/my-nginx.yaml"),
};
const CONF: &str = "integration/scenarios/my-nginx.conf";

/// What the page's `kubectl create secret generic client-credential` takes, as files in a folder.
const CREDENTIAL: &[&str] = &[
    "mkdir credentials/client-credential",
    "cp client.example.com.key credentials/client-credential/tls.key",
    "cp client.example.com.crt credentials/client-credential/tls.crt",
    "cp example.com.crt credentials/client-credential/ca.crt",
];
/// What `egressctl secrets` has to say of it: the words that each line has.
const SECRETS: [&[&str]; 2] = [
    &[
        "kubernetes://client-credential ",
        "Cert Chain",
        "ACTIVE",
        "true",
    ],
    &["kubernetes://client-credential-cacert ", "ACTIVE", "true"],
];
/// How long Envoy may take to hold a credential that was put down.
const SECRETS_LIMIT: Duration = Duration::from_secs(20);
/// How long nginx may take to write down what it has answered.
const NGINX_LIMIT: Duration = Duration::from_secs(5);
/// How many lines of a page are shown, as the task does.
const BODY_LINES: usize = 4;

const PORT_80_SILENT: &str = "port 80: nothing, not even a connection";
const NO_REQUEST: &str = "no request";

/// A request of the page, and what has to come of it. Texts are how lines begin.
struct Scene {
    title: &'static str,
    application: &'static [&'static str],
    nginx: &'static [&'static str],
    log: &'static [&'static str],
}

const MISSING: Scene = Scene {
    title: "Before: the rule names a credential, and nobody has put it down",
    application: &["egress_secret_missing: "],
    nginx: &[NO_REQUEST, PORT_80_SILENT],
    log: &[
        "\"GET / HTTP/1.1\" 503",
        "action=originate",
        "reason=secret_missing",
    ],
};

const WELCOME: Scene = Scene {
    title: "After: the credential is there; nothing was restarted",
    application: &[
        "<!DOCTYPE html>",
        "<html>",
        "<head>",
        "<title>Welcome to nginx!</title>",
        "...",
    ],
    nginx: &[
        "SUCCESS \"O=client organization,CN=client.example.com\" TLSv1.x \
         SNI my-nginx.mesh-external.svc.cluster.local Host my-nginx.mesh-external.svc.cluster.local \
         \"GET / HTTP/1.1\" 200",
        PORT_80_SILENT,
    ],
    log: &[
        "\"GET / HTTP/1.1\" 200 - via_upstream - \"-\" 0 ",
        "\"my-nginx.mesh-external.svc.cluster.local\"",
        "action=originate",
        "reason=- ",
        "rule=default/originate-mtls-for-nginx",
        "tls_mode=MUTUAL",
        "sni=my-nginx.mesh-external.svc.cluster.local",
        "verify=my-nginx.mesh-external.svc.cluster.local",
        "target=my-nginx.mesh-external.svc.cluster.local:443",
    ],
};

const UNNAMED: Scene = Scene {
    title: "The page's plain form of the server's certificate: it names the host in CN only",
    application: &["egress_name_mismatch: "],
    nginx: &[NO_REQUEST, PORT_80_SILENT],
    log: &[
        "\"GET / HTTP/1.1\" 503",
        "action=originate",
        "reason=name_mismatch",
    ],
};

/// Runs it, and with `keep` leaves Envoy and nginx up.
pub(crate) async fn demo(keep: bool, signals: &mut Signals) -> Result<ExitCode> {
    let interrupted = ExitCode::from(130); // as shells report SIGINT
    // Nothing that was started outlives the future that is dropped.
    let (stage, proxy) = tokio::select! {
        played = play() => played?,
        () = signals.any() => return Ok(interrupted),
    };
    if keep {
        say(&stage.invitation(&proxy)?)?;
        tokio::select! {
            watched = stage.watch(&proxy) => watched?,
            () = signals.any() => say("\nStopping.")?,
        }
        stop(proxy).await?;
    } else {
        stop(proxy).await?;
        say(&summary())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn play() -> Result<(Stage, Running)> {
    // First, so that what is missing is told without a story around it.
    find_egressctl()?;
    nginx::binary()?;
    let folder = tempfile::Builder::new().prefix("egress-demo-").tempdir()?;
    let files = folder.path();
    say(&format!(
        "Mutual TLS origination. {HOST} is a real nginx on this machine,\n\
         with the page's nginx.conf: it serves clients that show a certificate of its CA.\n\n\
         {BOLD}Certificates, by the page's own commands{BOLD:#}\n"
    ))?;
    for commands in [openssl::ROOT, openssl::SERVER_WITH_NAME, openssl::CLIENT] {
        run_shown(commands, files).await?;
    }
    std::fs::create_dir(files.join("credentials"))?;
    // Somebody whom Envoy would trust without the credential, and who has signed nothing here.
    Ca::new("nobody's CA")?.write_pem(&files.join("system.pem"))?;

    let stage = Stage::set(folder).await?;
    let proxy = stage.start().await?;
    let played = async {
        stage.play(&MISSING, &proxy).await?;
        say(&format!(
            "\n{BOLD}The credential, as the page's Secret has it{BOLD:#}\n"
        ))?;
        run_shown(CREDENTIAL, stage.folder.path()).await?;
        stage.wait_for_secrets(&proxy).await?;
        stage.play(&WELCOME, &proxy).await
    };
    if let Err(error) = played.await {
        // Why it went wrong matters more than that stopping did, too.
        let _stopped = stop(proxy).await;
        return Err(error);
    }
    let unnamed = unnamed(&stage).await;
    if let Err(error) = unnamed {
        let _stopped = stop(proxy).await;
        return Err(error);
    }
    Ok((stage, proxy))
}

/// Runs the last step, with a certificate that names nobody, on an nginx and an Envoy of its own.
async fn unnamed(main: &Stage) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("egress-demo-").tempdir()?;
    let copy = format!(
        "cp -R '{}/.' '{}'",
        main.folder.path().display(),
        folder.path().display()
    );
    openssl::run(&copy, folder.path()).await?;
    openssl::run_all(openssl::SERVER, folder.path()).await?;
    let stage = Stage::set(folder).await?;
    let proxy = stage.start().await?;
    let played = stage.play(&UNNAMED, &proxy).await;
    let stopped = stop(proxy).await;
    played.and(stopped)
}

fn summary() -> String {
    format!(
        "\n{BOLD}nginx knew its client, and nobody pretended to be nginx. \
         The application did not change.{BOLD:#}"
    )
}

async fn run_shown(commands: &[&str], folder: &Path) -> Result<()> {
    for command in commands {
        say(&format!("  $ {}", command.replace('\n', "\n    ")))?;
        openssl::run(command, folder).await?;
    }
    Ok(())
}

/// The world around the proxy.
struct Stage {
    nginx: Nginx,
    /// Port 80 of the host, where nobody may talk to it.
    silent: SilentPort,
    egressctl: PathBuf,
    folder: TempDir,
}

impl Stage {
    async fn set(folder: TempDir) -> Result<Self> {
        Ok(Self {
            egressctl: find_egressctl()?,
            nginx: Nginx::start(&NginxConfig::page(folder.path())?).await?,
            silent: SilentPort::start().await?,
            folder,
        })
    }

    async fn start(&self) -> Result<Running> {
        let files = self.folder.path();
        let run = Egressctl::builder()
            .binary(&self.egressctl)
            .rules_text(RULES.text)
            .arg("--label=app=sleep")
            .arg("--credentials")
            .arg(files.join("credentials"))
            .port(80, 0)
            .port(443, 0)
            .connect_to(&format!("{HOST}:80:{}", self.silent.addr()))
            .connect_to(&format!("{HOST}:443:{}", self.nginx.addr()))
            .env("SSL_CERT_FILE", files.join("system.pem"));
        run_here(run, files).start().await
    }

    /// Sends the page's request, prints what came of it, and compares it with what should have.
    async fn play(&self, scene: &Scene, proxy: &Running) -> Result<()> {
        say(&format!(
            "\n{BOLD}{}{BOLD:#}\n\n  nginx: {CONF}, rules: {}\n  $ {BOLD}{CURL} {URL}{BOLD:#}",
            scene.title, RULES.file
        ))?;
        let logged = proxy.access_log()?.len();
        let before = self.nginx.seen()?.len();
        let answer = probe::get(proxy.listener(80)?, HOST, "/").await?;
        // All but the line of port 80.
        let requests = match scene.nginx {
            [NO_REQUEST, ..] => before,
            lines => before + lines.len().saturating_sub(1),
        };
        // What does not come is a difference, which is told with the rest.
        let _come = self.nginx.wait_for(requests, NGINX_LIMIT).await;
        let seen = self.nginx.seen()?;
        let mut nginx: Vec<_> = seen.iter().skip(before).map(ToString::to_string).collect();
        if nginx.is_empty() {
            nginx.push(NO_REQUEST.to_owned());
        }
        nginx.push(match self.silent.assert_silent().await {
            Ok(()) => PORT_80_SILENT.to_owned(),
            Err(error) => format!("port 80: {error:#}"),
        });
        let told = Told {
            application: shortened(&answer.body),
            nginx,
            log: log_after(proxy, logged, 1).await?,
        };
        say(&told.to_string())?;
        let mut differences = told.differences(scene);
        if differences.is_empty() {
            return Ok(());
        }
        for (who, lines) in [
            ("Envoy", proxy.stderr()),
            ("nginx's error log", self.nginx.error_log()?),
        ] {
            if !lines.is_empty() {
                differences.push(format!("this is what {who} said\n{}", block(&lines)));
            }
        }
        Err(NotAsExpected(differences.join("\n")).into())
    }

    /// Waits until Envoy holds the credential, and prints it as the page does.
    async fn wait_for_secrets(&self, proxy: &Running) -> Result<()> {
        let admin = proxy.admin()?;
        say(&format!(
            "  $ {BOLD}egressctl secrets --admin {admin} | grep client-credential{BOLD:#}"
        ))?;
        let deadline = Instant::now() + SECRETS_LIMIT;
        loop {
            let output = Command::new(&self.egressctl)
                .args(["secrets", "--admin", &admin.to_string()])
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output()
                .await
                .context("cannot start `egressctl secrets`")?;
            let (table, said) = (text(&output.stdout), text(&output.stderr));
            // 1 says that something is missing or has expired.
            if !matches!(output.status.code(), Some(0 | 1)) {
                bail!("`egressctl secrets`: {}\n{said}", output.status);
            }
            let lines = table.lines().map(str::trim_end);
            let lines: Vec<_> = lines
                .filter(|line| line.contains("client-credential"))
                .collect();
            if are_active(&lines) {
                return say(&block(&lines));
            }
            if Instant::now() > deadline {
                let differences = format!(
                    "`egressctl secrets` should show both parts of client-credential as ACTIVE \
                     within {SECRETS_LIMIT:?}, and shows\n{}\n{said}",
                    block(&lines)
                );
                return Err(NotAsExpected(differences).into());
            }
            sleep(WATCH_INTERVAL).await;
        }
    }

    /// Reports what can be typed while everything is up.
    fn invitation(&self, proxy: &Running) -> Result<String> {
        let (http, admin) = (proxy.listener(80)?, proxy.admin()?);
        Ok(format!(
            "{}\n\n\
             {BOLD}Envoy and nginx are still up.{BOLD:#} In another terminal:\n\n  \
             {CURL}{} --connect-to {HOST}:80:{http} {URL}\n\n  \
             {} secrets --admin {admin}\n\n\
             rules         {}\n\
             credentials   {}\n\
             admin         http://{admin}\n\
             access log    below, with what nginx saw\n\n\
             Ctrl-C stops it.",
            summary(),
            past_proxies(),
            self.egressctl.display(),
            RULES.file,
            self.folder.path().join("credentials").display(),
        ))
    }

    /// Prints what happens, for ever.
    async fn watch(&self, proxy: &Running) -> Result<()> {
        let mut logged = proxy.access_log()?.len();
        let mut seen = self.nginx.seen()?.len();
        loop {
            for request in self.nginx.seen()?.iter().skip(seen) {
                say(&format!("\n  nginx saw\n    {request}"))?;
                seen += 1;
            }
            for line in proxy.access_log()?.iter().skip(logged) {
                say(&format!("\n  Envoy's access log\n{}", log_block(line)))?;
                logged += 1;
            }
            sleep(WATCH_INTERVAL).await;
        }
    }
}

/// What came of a request, as each of the three tells it. `Display` writes it for people.
struct Told {
    application: Vec<String>,
    nginx: Vec<String>,
    log: Vec<String>,
}

impl Told {
    fn differences(&self, scene: &Scene) -> Vec<String> {
        let mut differences = Vec::new();
        if !begin(&self.application, scene.application) {
            let expected = block(scene.application);
            differences.push(format!("the application should have got\n{expected}"));
        }
        // Which version is the newest of both depends on nginx's.
        let versions = ["TLSv1.2", "TLSv1.3"];
        let any_version = |line: &String| {
            let mut line = line.clone();
            for version in versions {
                line = line.replacen(version, "TLSv1.x", 1);
            }
            line
        };
        let nginx: Vec<_> = self.nginx.iter().map(any_version).collect();
        if !begin(&nginx, scene.nginx) {
            let expected = block(scene.nginx);
            differences.push(format!("nginx should have seen\n{expected}"));
        }
        let fits = |line: &String| scene.log.iter().all(|word| line.contains(word));
        if self.log.len() != 1 || !self.log.iter().all(fits) {
            let words = scene.log.join("  ");
            differences.push(format!(
                "the access log should have one line, with\n    {words}"
            ));
        }
        differences
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", block(&self.application))?;
        writeln!(f, "  nginx saw\n{}\n", block(&self.nginx))?;
        write!(f, "  Envoy's access log")?;
        for line in &self.log {
            write!(f, "\n{}", log_block(line))?;
        }
        Ok(())
    }
}

/// Whether each line begins as it should, and there are as many.
fn begin(lines: &[String], expected: &[&str]) -> bool {
    let mut pairs = lines.iter().zip(expected);
    lines.len() == expected.len() && pairs.all(|(line, start)| line.starts_with(start))
}

/// Whether these are the lines of the whole credential.
fn are_active(lines: &[&str]) -> bool {
    let has = |words: &[&str]| {
        let mut lines = lines.iter();
        lines.any(|line| words.iter().all(|word| line.contains(word)))
    };
    lines.len() == SECRETS.len() && SECRETS.iter().all(|words| has(words))
}

/// The first lines of a body.
fn shortened(body: &str) -> Vec<String> {
    let mut lines: Vec<_> = body.lines().map(str::to_owned).collect();
    if lines.len() > BODY_LINES {
        lines.truncate(BODY_LINES);
        lines.push("...".to_owned());
    }
    lines
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a scene expects, as if it had happened.
    fn told(scene: &Scene) -> Told {
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        Told {
            application: owned(scene.application),
            nginx: owned(scene.nginx),
            log: vec![scene.log.join(" ")],
        }
    }

    #[test]
    fn what_the_page_promises_is_no_difference() {
        for scene in [&MISSING, &WELCOME, &UNNAMED] {
            assert_eq!(told(scene).differences(scene), [""; 0]);
        }
    }

    #[test]
    fn each_of_the_three_can_differ() {
        let one = |told: &Told| {
            let differences = told.differences(&WELCOME);
            let [difference] = &differences[..] else {
                panic!("one difference was expected: {differences:?}");
            };
            difference.clone()
        };
        let mut refused = told(&WELCOME);
        refused.application = told(&MISSING).application;
        assert!(one(&refused).starts_with("the application should have got"));
        let mut unknown = told(&WELCOME);
        unknown.nginx = vec![
            unknown.nginx.concat().replace("SUCCESS", "NONE"),
            PORT_80_SILENT.to_owned(),
        ];
        assert!(one(&unknown).starts_with("nginx should have seen"));
        let mut old = told(&WELCOME);
        old.nginx = old
            .nginx
            .iter()
            .map(|line| line.replace("TLSv1.x", "TLSv1.1"))
            .collect();
        assert!(one(&old).starts_with("nginx should have seen"));
        let mut retried = told(&WELCOME);
        retried.log.extend(told(&WELCOME).log);
        assert!(one(&retried).starts_with("the access log should have one line"));
    }

    #[test]
    fn both_parts_of_the_credential_have_to_be_active() {
        let chain = "kubernetes://client-credential         Cert Chain  ACTIVE  true  1";
        let ca = "kubernetes://client-credential-cacert  CA  ACTIVE  true  2";
        assert!(are_active(&[chain, ca]));
        assert!(!are_active(&[chain]));
        assert!(!are_active(&[chain, chain]));
        assert!(!are_active(&[chain, &ca.replace("ACTIVE", "WARMING")]));
        assert!(!are_active(&[&chain.replace("true", "false"), ca]));
    }

    #[test]
    fn a_long_page_is_shortened() {
        assert_eq!(shortened("a\nb\n"), ["a", "b"]);
        assert_eq!(shortened("a\nb\nc\nd\ne\n"), ["a", "b", "c", "d", "..."]);
    }
}
