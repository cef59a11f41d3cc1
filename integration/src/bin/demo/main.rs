//! Istio's task "Egress TLS Origination", played on this machine: the first half here, the second
//! half in [`mutual`].
//!
//! It starts a stand-in for `edition.cnn.com`, gives the page's own YAML to `egressctl run`, and is the application
//! that sends the page's requests. It prints what happened, and compares each line with what the page promises. A
//! difference ends the demo with exit code 1.

use std::{fmt, io::Write, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context, Error, Result, anyhow, bail};
use clap::Parser;
use hyper::{StatusCode, Uri};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::time::sleep;

use egress_integration::{
    egressctl::{Egressctl, EndedEarly, Running},
    pki::{Ca, Leaf},
    probe::{self, Answer},
    silent_port::SilentPort,
    stand_in::{Listener, Seen, StandIn, StandInConfig},
};

mod both_halves;
mod mutual;

use both_halves::{
    BOLD, NotAsExpected, Rules, Signals, WATCH_INTERVAL, block, find_egressctl, log_after,
    log_block, past_proxies, run_here, say, stop,
};

const HOST: &str = "edition.cnn.com";
const HTTP_URL: &str = "http://edition.cnn.com/politics";
const HTTPS_URL: &str = "https://edition.cnn.com/politics";
/// The page's own command, without the address.
const CURL: &str = "curl -sSL -o /dev/null -D -";

/// How many redirects are followed, which is more than any site should need.
const MOST_REDIRECTS: usize = 5;
const PORT_80_SILENT: &str = "port 80        nothing, not even a connection";
const OWN_CERTIFICATE: &str =
    "(verified: the certificate is the one that edition.cnn.com presented)";
const OTHER_CERTIFICATE: &str = "(the certificate is NOT the one that edition.cnn.com presented)";

const ACCESS: Rules = Rules {
    file: "integration/scenarios/cnn-access.yaml",
    text: include_str!("../../../scenarios/cnn-access.yaml"),
};
const ORIGINATION: Rules = Rules {
    file: "integration/scenarios/cnn-origination.yaml",
    text: include_str!("../../../scenarios/cnn-origination.yaml"),
};

/// A request of the page, and what has to come of it.
struct Step {
    title: &'static str,
    rules: &'static Rules,
    url: &'static str,
    /// What the application gets, line by line.
    application: &'static [&'static str],
    /// What the site sees, line by line.
    site: &'static [&'static str],
    /// For each access-log line, where its request went and the words that it has.
    log: &'static [(Listener, &'static [&'static str])],
}

const BEFORE: Step = Step {
    title: "Before: the ServiceEntry alone",
    rules: &ACCESS,
    url: HTTP_URL,
    application: &[
        "HTTP/1.1 301 Moved Permanently",
        "location: https://edition.cnn.com/politics",
        "",
        "HTTP/2 200",
        OWN_CERTIFICATE,
    ],
    site: &[
        "in plain text  GET /politics, Host edition.cnn.com",
        "TLSv1.3        GET /politics, Host edition.cnn.com, SNI edition.cnn.com, :scheme https",
    ],
    log: &[
        (
            Listener::Plain,
            &["\"GET /politics HTTP/1.1\" 301", "action=forward"],
        ),
        PASSED_THROUGH,
    ],
};

const AFTER: Step = Step {
    title: "After: targetPort 443, and a DestinationRule with TLS mode SIMPLE",
    rules: &ORIGINATION,
    url: HTTP_URL,
    application: &["HTTP/1.1 200 OK"],
    site: &[
        "TLSv1.3        GET /politics, Host edition.cnn.com, SNI edition.cnn.com, :scheme https",
        PORT_80_SILENT,
    ],
    log: &[(
        Listener::Tls,
        &[
            "\"GET /politics HTTP/1.1\" 200",
            "action=originate",
            "rule=default/edition-cnn-com",
            "tls_mode=SIMPLE",
            "sni=edition.cnn.com",
            "verify=edition.cnn.com",
            "target=edition.cnn.com:443",
        ],
    )],
};

const OWN_HTTPS: Step = Step {
    title: "After, with the application's own HTTPS: its TLS is left alone",
    rules: &ORIGINATION,
    url: HTTPS_URL,
    application: &["HTTP/2 200", OWN_CERTIFICATE],
    site: AFTER.site,
    log: &[PASSED_THROUGH],
};

const PASSED_THROUGH: (Listener, &[&str]) = (
    Listener::Tls,
    &["action=passthrough", "tls_mode=-", "sni=edition.cnn.com"],
);

/// Play the page "Egress TLS Origination" with stand-ins for its servers
#[derive(Parser)]
#[command(name = "demo", version)]
struct Args {
    /// Play the second half, mutual TLS, with a real nginx
    #[arg(long)]
    mutual: bool,
    /// Leave Envoy and the server up, and print what to type
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error.into()),
    };
    match runtime.block_on(demo(&args)) {
        Ok(code) => code,
        Err(error) => complain(&error),
    }
}

async fn demo(args: &Args) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    match args.mutual {
        true => mutual::demo(args.keep, &mut signals).await,
        false => first_half(args.keep, &mut signals).await,
    }
}

async fn first_half(keep: bool, signals: &mut Signals) -> Result<ExitCode> {
    let stage = Stage::set().await?;
    // Nothing that was started outlives the future that is dropped.
    let proxy = tokio::select! {
        played = play(&stage) => played?,
        () = signals.any() => return Ok(ExitCode::from(130)), // as shells report SIGINT
    };
    if keep {
        say(&invitation(&stage, &proxy)?)?;
        tokio::select! {
            watched = watch(&stage, &proxy) => watched?,
            () = signals.any() => say("\nStopping.")?,
        }
        stop(proxy).await?;
    } else {
        stop(proxy).await?;
        say(&summary())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the three steps, and returns the proxy with the page's last rules.
async fn play(stage: &Stage) -> Result<Running> {
    // First, so that what is missing is told without a story around it.
    let proxy = stage.start(&ACCESS, stage.site.plain_addr()).await?;
    say(&format!(
        "Egress TLS origination. {HOST} is a stand-in on this machine: its HTTP answers 301,\n\
         its HTTPS answers 200 with a certificate of a test CA, which Envoy finds in SSL_CERT_FILE.",
    ))?;
    let played = stage.play(&BEFORE, &proxy).await;
    let stopped = stop(proxy).await;
    played.and(stopped)?;

    // From here on, nothing may reach port 80 of the site; what did would be plain text.
    let proxy = stage.start(&ORIGINATION, stage.silent.addr()).await?;
    for step in [&AFTER, &OWN_HTTPS] {
        if let Err(error) = stage.play(step, &proxy).await {
            // Why it went wrong matters more than that stopping did, too.
            let _stopped = stop(proxy).await;
            return Err(error);
        }
    }
    Ok(proxy)
}

fn summary() -> String {
    format!(
        "\n{BOLD}{} request instead of {}, and its path crossed the network encrypted. \
         The application did not change.{BOLD:#}",
        AFTER.log.len(),
        BEFORE.log.len(),
    )
}

/// Reports what can be typed while everything is up.
fn invitation(stage: &Stage, proxy: &Running) -> Result<String> {
    let ca = stage.ca_file();
    let curl = format!("{CURL}{}", past_proxies());
    Ok(format!(
        "{}\n\n\
         {BOLD}Envoy is still up.{BOLD:#} In another terminal:\n\n  \
         {curl} --connect-to {HOST}:80:{} {HTTP_URL}\n\n  \
         {curl} --cacert {} --connect-to {HOST}:443:{} {HTTPS_URL}\n\n\
         rules         {}\n\
         admin         http://{}\n\
         access log    below, with what {HOST} saw\n\n\
         Ctrl-C stops it.",
        summary(),
        proxy.listener(80)?,
        ca.display(),
        proxy.listener(443)?,
        ORIGINATION.file,
        proxy.admin()?,
    ))
}

/// Prints what happens, for ever.
async fn watch(stage: &Stage, proxy: &Running) -> Result<()> {
    let mut told = proxy.access_log()?.len();
    loop {
        for seen in stage.site.take_seen() {
            say(&format!("\n  {HOST} saw\n    {}", site_line(&seen)))?;
        }
        for line in proxy.access_log()?.iter().skip(told) {
            say(&format!("\n  Envoy's access log\n{}", log_block(line)))?;
            told += 1;
        }
        sleep(WATCH_INTERVAL).await;
    }
}

/// The world around the proxy: the site, and a certification authority that everybody trusts.
struct Stage {
    ca: Ca,
    certificate: CertificateDer<'static>,
    site: StandIn,
    /// Port 80 of the site, once nobody may talk to it.
    silent: SilentPort,
    egressctl: PathBuf,
    folder: TempDir,
}

impl Stage {
    async fn set() -> Result<Self> {
        let egressctl = find_egressctl()?;
        let ca = Ca::new("test CA of the demo")?;
        let issued = ca.issue(&Leaf::for_names([HOST]))?;
        let certificate = issued.chain().first().context("no certificate")?.clone();
        let folder = tempfile::Builder::new().prefix("egress-demo-").tempdir()?;
        let stage = Self {
            ca,
            certificate,
            site: StandIn::start(StandInConfig::new(issued)).await?,
            silent: SilentPort::start().await?,
            egressctl,
            folder,
        };
        stage.ca.write_pem(&stage.ca_file())?;
        Ok(stage)
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Starts Envoy with the rules; `port_80` is where port 80 of the site is.
    async fn start(&self, rules: &Rules, port_80: SocketAddr) -> Result<Running> {
        let run = Egressctl::builder()
            .binary(&self.egressctl)
            .rules_text(rules.text)
            .port(80, 0)
            .port(443, 0)
            .connect_to(&format!("{HOST}:80:{port_80}"))
            .connect_to(&format!("{HOST}:443:{}", self.site.tls_addr()))
            .env("SSL_CERT_FILE", self.ca_file());
        run_here(run, self.folder.path()).start().await
    }

    /// Sends the request of a step, prints what came of it, and compares it with what should have.
    async fn play(&self, step: &Step, proxy: &Running) -> Result<()> {
        say(&format!(
            "\n{BOLD}{}{BOLD:#}\n\n  rules: {}\n  $ {BOLD}{CURL} {}{BOLD:#}",
            step.title, step.rules.file, step.url
        ))?;
        let told = self.request(step, proxy).await?;
        say(&told.to_string())?;
        let mut differences = told.differences(step, |listener| match listener {
            Listener::Plain => self.site.plain_addr(),
            Listener::Tls => self.site.tls_addr(),
        });
        if differences.is_empty() {
            return Ok(());
        }
        let envoy = proxy.stderr();
        if !envoy.is_empty() {
            differences.push(format!("this is what Envoy said\n{}", block(&envoy)));
        }
        Err(NotAsExpected(differences.join("\n")).into())
    }

    async fn request(&self, step: &Step, proxy: &Running) -> Result<Told> {
        let logged = proxy.access_log()?.len();
        let (hops, failure) = fetch(step.url, proxy, &self.ca.pem()).await;

        let mut application = Vec::new();
        for hop in &hops {
            if !application.is_empty() {
                application.push(String::new());
            }
            application.push(status_line(&hop.answer)?);
            let location = hop.answer.header("location");
            application.extend(location.map(|location| format!("location: {location}")));
            application.extend(hop.certificate.as_ref().map(|certificate| {
                match *certificate == self.certificate {
                    true => OWN_CERTIFICATE.to_owned(),
                    false => OTHER_CERTIFICATE.to_owned(),
                }
            }));
        }
        application.extend(failure.map(|failure| format!("no answer: {failure:#}")));

        let mut site: Vec<_> = self.site.take_seen().iter().map(site_line).collect();
        let failed = self.site.counts(Listener::Tls).failed_handshakes;
        site.extend(
            failed
                .iter()
                .map(|failed| format!("no TLS         {}", failed.error)),
        );
        if step.rules.file == ORIGINATION.file {
            site.push(match self.silent.assert_silent().await {
                Ok(()) => PORT_80_SILENT.to_owned(),
                Err(error) => format!("port 80        {error:#}"),
            });
        }

        Ok(Told {
            application,
            site,
            log: log_after(proxy, logged, step.log.len()).await?,
        })
    }
}

/// An answer that the application got, and the certificate that it verified before.
struct Hop {
    answer: Answer,
    certificate: Option<CertificateDer<'static>>,
}

/// Fetches `url` as `curl -L` does, where each port of each host is led to the proxy. Returns the
/// answers, and what kept the next one from coming.
async fn fetch(url: &str, proxy: &Running, ca_pem: &str) -> (Vec<Hop>, Option<Error>) {
    let mut hops = Vec::new();
    let mut next = Some(url.to_owned());
    while let Some(url) = next {
        if hops.len() > MOST_REDIRECTS {
            return (hops, Some(anyhow!("too many redirects, to {url} at last")));
        }
        let hop = match fetch_once(&url, proxy, ca_pem).await {
            Ok(hop) => hop,
            Err(error) => return (hops, Some(error)),
        };
        let location = hop.answer.header("location").map(str::to_owned);
        next = location.filter(|_| (300..400).contains(&hop.answer.status));
        hops.push(hop);
    }
    (hops, None)
}

async fn fetch_once(url: &str, proxy: &Running, ca_pem: &str) -> Result<Hop> {
    let uri: Uri = url.parse().with_context(|| format!("no URL: {url}"))?;
    let (host, path) = (uri.host().unwrap_or_default(), uri.path());
    match uri.scheme_str() {
        Some("http") => Ok(Hop {
            answer: probe::get(proxy.listener(80)?, host, path).await?,
            certificate: None,
        }),
        Some("https") => {
            let listener = proxy.listener(443)?;
            let tls = probe::get_tls(listener, host, host, path, ca_pem).await?;
            Ok(Hop {
                answer: tls.answer,
                certificate: Some(tls.peer_certificate),
            })
        }
        _ => bail!("neither http nor https: {url}"),
    }
}

/// What came of a request, as each of the three tells it. `Display` writes it for people.
struct Told {
    application: Vec<String>,
    site: Vec<String>,
    log: Vec<String>,
}

impl Told {
    /// Holds it against what a step expects; `address` is where a listener of the site is.
    fn differences(&self, step: &Step, address: impl Fn(Listener) -> SocketAddr) -> Vec<String> {
        let mut differences = Vec::new();
        if self.application != step.application {
            let expected = block(step.application);
            differences.push(format!("the application should have got\n{expected}"));
        }
        if self.site != step.site {
            let expected = block(step.site);
            differences.push(format!("{HOST} should have seen\n{expected}"));
        }
        if self.log.len() != step.log.len() {
            differences.push(format!(
                "the access log should have as many lines as requests, {}, and has {}",
                step.log.len(),
                self.log.len()
            ));
        }
        for (listener, words) in step.log {
            let address = format!("\"{}\"", address(*listener));
            let fits = |line: &String| {
                let mut all = words.iter().copied().chain([address.as_str()]);
                all.all(|word| line.contains(word))
            };
            if !self.log.iter().any(fits) {
                let words = words.join("  ");
                differences.push(format!(
                    "a line of the access log should have\n    {words}  {address}"
                ));
            }
        }
        differences
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", block(&self.application))?;
        writeln!(f, "  {HOST} saw\n{}\n", block(&self.site))?;
        write!(f, "  Envoy's access log")?;
        for line in &self.log {
            write!(f, "\n{}", log_block(line))?;
        }
        Ok(())
    }
}

/// Writes the first line of an answer as curl does.
fn status_line(answer: &Answer) -> Result<String> {
    let status = StatusCode::from_u16(answer.status)?;
    let (version, code) = (answer.http_version.as_str(), status.as_str());
    Ok(match (version, status.canonical_reason()) {
        // HTTP/2 has neither minor versions nor reasons.
        ("HTTP/2.0", _) => format!("HTTP/2 {code}"),
        (_, Some(reason)) => format!("{version} {code} {reason}"),
        (_, None) => format!("{version} {code}"),
    })
}

/// Writes what the site knows of a request.
fn site_line(seen: &Seen) -> String {
    let how = seen.tls_version.as_deref().unwrap_or("in plain text");
    let mut text = format!(
        "{how:13}  {} {}, Host {}",
        seen.method, seen.path, seen.host
    );
    for (name, value) in [("SNI", &seen.sni), (":scheme", &seen.scheme)] {
        if let Some(value) = value {
            text.push_str(&format!(", {name} {value}"));
        }
    }
    text
}

/// Reports what went wrong, and with which exit code to end: 1 for what differs, 2 for what failed.
fn complain(error: &anyhow::Error) -> ExitCode {
    let text = match error.downcast_ref::<EndedEarly>() {
        Some(ended) => {
            let said = ended.stderr.trim();
            let said = said.strip_prefix("error: ").unwrap_or(said);
            match said.contains("`make envoy`") {
                true => format!("{said} (`make build` gets all that the demo needs)"),
                false => said.to_owned(),
            }
        }
        None => format!("{error:#}"),
    };
    // When nobody can read it, the exit code has to do.
    let _ = writeln!(anstream::stderr(), "error: {text}");
    match error.is::<NotAsExpected>() {
        true => ExitCode::from(1),
        false => ExitCode::from(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 80);
    const TLS: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 443);

    fn address(listener: Listener) -> SocketAddr {
        match listener {
            Listener::Plain => PLAIN,
            Listener::Tls => TLS,
        }
    }

    /// What a step expects, as if it had happened.
    fn told(step: &Step) -> Told {
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let line = |(listener, words): &(Listener, &[&str])| {
            format!("{} \"{}\"", words.join(" "), address(*listener))
        };
        Told {
            application: owned(step.application),
            site: owned(step.site),
            log: step.log.iter().map(line).collect(),
        }
    }

    #[test]
    fn what_the_page_promises_is_no_difference() {
        for step in [&BEFORE, &AFTER, &OWN_HTTPS] {
            assert_eq!(told(step).differences(step, address), [""; 0]);
        }
    }

    #[test]
    fn each_of_the_three_can_differ() {
        let one = |told: Told| {
            let differences = told.differences(&AFTER, address);
            let [difference] = &differences[..] else {
                panic!("one difference was expected: {differences:?}");
            };
            difference.clone()
        };
        let mut redirected = told(&AFTER);
        redirected.application = told(&BEFORE).application;
        assert_eq!(
            one(redirected),
            "the application should have got\n    HTTP/1.1 200 OK"
        );
        let mut leaked = told(&AFTER);
        leaked.site = told(&BEFORE).site;
        assert!(one(leaked).starts_with("edition.cnn.com should have seen\n    TLSv1.3"));
        let mut elsewhere = told(&AFTER);
        elsewhere.log = elsewhere
            .log
            .iter()
            .map(|line| line.replace(":443\"", ":80\""))
            .collect();
        assert!(one(elsewhere).contains("action=originate"));
        let mut retried = told(&AFTER);
        retried.log.extend(told(&AFTER).log);
        assert!(one(retried).ends_with("as many lines as requests, 1, and has 2"));
    }
}
