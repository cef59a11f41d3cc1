//! Every way in which a server's certificate, a client's and the versions of TLS can go together:
//! what the application is told, and that no server saw a request that it should not have seen.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep},
};

use egress_integration::{
    egressctl::Running,
    nginx::{Nginx, NginxConfig},
    openssl,
    pki::{self, Ca, Issued, Leaf, Validity},
    probe,
    silent_port::SilentPort,
    stand_in::{Clients, Listener, StandIn, StandInConfig, TlsVersions},
};

use common::{LogLine, SOON, Trusted, assert_originated, entry, mutual, route, rule};

/// What the server shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Server {
    Valid,
    Expired,
    NotYetValid,
    OtherName,
    OtherCa,
    SelfSigned,
    Revoked,
    IntermediateMissing,
}

/// What the client shows where it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    Right,
    WrongCa,
    Expired,
    None,
}

/// What the server wants of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wants {
    Requires,
    Ignores,
}

/// The one version of TLS that the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    Tls12,
    Tls13,
    Tls11,
}

const SERVERS: [Server; 8] = [
    Server::Valid,
    Server::Expired,
    Server::NotYetValid,
    Server::OtherName,
    Server::OtherCa,
    Server::SelfSigned,
    Server::Revoked,
    Server::IntermediateMissing,
];
const CLIENTS: [Client; 4] = [
    Client::Right,
    Client::WrongCa,
    Client::Expired,
    Client::None,
];
const WANTS: [Wants; 2] = [Wants::Requires, Wants::Ignores];
const VERSIONS: [Version; 3] = [Version::Tls12, Version::Tls13, Version::Tls11];

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    server: Server,
    client: Client,
    wants: Wants,
    version: Version,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for server in SERVERS {
        for wants in WANTS {
            for version in VERSIONS {
                rows.extend(CLIENTS.map(|client| Row {
                    server,
                    client,
                    wants,
                    version,
                }));
            }
        }
    }
    rows
}

impl Row {
    fn host(self) -> String {
        format!("{:?}.{}", self.client, self.site()).to_lowercase()
    }

    /// The part of the host that rows with different clients share.
    fn site(self) -> String {
        format!(
            "{:?}.{:?}.{:?}.example",
            self.server, self.wants, self.version
        )
        .to_lowercase()
    }

    fn path(self) -> String {
        format!("/{}", self.host())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host())
    }
}

/// The status, and the reason that the log has to give, which is none where the server answered.
///
/// The first thing that goes wrong in a handshake decides: the version, then what the server shows,
/// then what the client shows. In TLS 1.3 a client is through with the handshake before the server
/// judges its certificate, and Envoy drops the alert that comes later: all that it tells is that the
/// connection broke.
fn expected(row: Row) -> (u16, Option<&'static str>) {
    let reason = match (row.version, row.server, row.wants, row.client) {
        (Version::Tls11, ..) => "protocol_version",
        (_, Server::Expired, ..) => "expired",
        (_, Server::NotYetValid, ..) => "not_yet_valid",
        (_, Server::OtherName, ..) => "name_mismatch",
        (_, Server::OtherCa | Server::SelfSigned | Server::IntermediateMissing, ..) => "unknown_ca",
        (_, Server::Revoked, ..) => "revoked",
        (_, Server::Valid, Wants::Ignores, _) => return (200, None),
        (_, Server::Valid, Wants::Requires, Client::Right) => return (200, None),
        (Version::Tls13, Server::Valid, Wants::Requires, _) => "reset",
        (_, Server::Valid, Wants::Requires, Client::None) => "client_certificate_required",
        (_, Server::Valid, Wants::Requires, Client::WrongCa | Client::Expired) => {
            "client_certificate_rejected"
        }
    };
    (503, Some(reason))
}

/// How many requests are under way at a time.
const AT_A_TIME: usize = 16;
/// How often the access log is read while lines are missing.
const LOG_INTERVAL: Duration = Duration::from_millis(50);

#[tokio::test]
async fn every_combination_ends_as_it_should() -> Result<()> {
    let pki = Pki::new()?;
    let sites = Sites::start(&pki).await?;
    // The system's authority has signed for nobody here.
    let trusted = Trusted::new()?;
    let proxy = start(&trusted, &pki, &sites).await?;
    let outcomes = ask_all(&proxy).await?;
    ensure!(outcomes.len() == 192, "{} rows", outcomes.len());

    let mut wrong = Vec::new();
    for (row, outcome) in &outcomes {
        let log = &outcome.log;
        let (status, reason) = expected(*row);
        let due = (status, reason.unwrap_or("-"));
        let told = (outcome.status, log.egress("reason"));
        if told != due {
            wrong.push(format!(
                "{row}: {told:?}, not {due:?}; {} {}",
                log.istio("response_flags"),
                log.istio("upstream_transport_failure_reason")
            ));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} rows differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );

    for (row, site) in &sites.own {
        assert_seen(*row, site).await?;
    }
    assert!(sites.old.seen()?.is_empty(), "{:#?}", sites.old.seen()?);
    assert_speaks_old_tls(&sites.old, &pki).await?;
    sites.silent.assert_silent().await
}

/// Proves that a server has seen the one request that it should have, or none.
async fn assert_seen(row: Row, site: &StandIn) -> Result<()> {
    let plain = site.counts(Listener::Plain);
    ensure!(plain.connections == 0, "{row}: {plain:?}");
    let counts = site.counts(Listener::Tls);
    let (status, _) = expected(row);
    // Envoy tells a connection that was refused from one that was not verified no more than retries do: both are tried
    // on up to three addresses, and a name with one address has it three times.
    let most = if status == 200 { 1 } else { 3 };
    ensure!(
        (1..=most).contains(&counts.connections),
        "{row} was tried again: {counts:?}"
    );
    if status != 200 {
        let failed = site.wait_for_failed_handshakes(1, SOON).await?;
        let host = row.host();
        let named = |sni: &Option<String>| sni.as_deref() == Some(&host);
        ensure!(
            failed.iter().all(|one| named(&one.sni)),
            "{row}: {failed:?}"
        );
        let counts = site.counts(Listener::Tls);
        ensure!(counts.requests == 0, "{row}: {counts:?}");
        ensure!(site.seen().is_empty(), "{row}: {:?}", site.seen());
        return Ok(());
    }
    let seen = common::only(site)?;
    assert_originated(&seen, &row.host(), &row.host());
    let version = match row.version {
        Version::Tls12 => "TLSv1.2",
        _ => "TLSv1.3",
    };
    assert_eq!(seen.tls_version.as_deref(), Some(version), "{row}");
    let client = seen
        .client
        .as_ref()
        .map(|client| client.common_name.as_str());
    let shown = row.wants == Wants::Requires;
    assert_eq!(client, shown.then_some("client.example.com"), "{row}");
    Ok(())
}

/// Proves that the server of TLS 1.1 would have answered a client of its age.
async fn assert_speaks_old_tls(old: &Nginx, pki: &Pki) -> Result<()> {
    let row = Row {
        server: Server::Valid,
        client: Client::None,
        wants: Wants::Ignores,
        version: Version::Tls11,
    };
    let command = format!(
        "printf 'GET / HTTP/1.0\\r\\nHost: {row}\\r\\n\\r\\n' | openssl s_client -quiet -tls1_1 \
         -cipher DEFAULT@SECLEVEL=0 -servername {row} -connect {}",
        old.addr()
    );
    openssl::run(&command, pki.folder.path()).await?;
    let seen = old.wait_for(1, SOON).await?;
    let told: Vec<_> = seen
        .iter()
        .map(|seen| (seen.tls_version.as_str(), seen.status.as_str()))
        .collect();
    assert_eq!(told, [("TLSv1.1", "200")]);
    Ok(())
}

/// One Envoy for all rows.
async fn start(trusted: &Trusted, pki: &Pki, sites: &Sites) -> Result<Running> {
    let mut tls = BTreeMap::new();
    for client in CLIENTS {
        tls.insert(client, pki.tls(client)?);
    }
    let rules = rows().into_iter().map(|row| {
        let tls = tls.get(&row.client).map_or("", String::as_str);
        entry(&row.host(), 443) + &rule(&row.host(), tls)
    });
    let mut builder = trusted.egressctl(&rules.collect::<String>()).port(80, 0);
    for row in rows() {
        let site = sites.own.get(&row).map(StandIn::tls_addr);
        let site = site.unwrap_or(sites.old.addr());
        builder = builder
            .connect_to(&route(&row.host(), 443, site))
            .connect_to(&route(&row.host(), 80, sites.silent.addr()));
    }
    builder.start().await
}

/// What became of a row.
struct Outcome {
    status: u16,
    log: LogLine,
}

async fn ask_all(proxy: &Running) -> Result<BTreeMap<Row, Outcome>> {
    let listener = proxy.listener(80)?;
    let turns = Arc::new(Semaphore::new(AT_A_TIME));
    let mut asking = JoinSet::new();
    for row in rows() {
        let turns = Arc::clone(&turns);
        asking.spawn(async move {
            let _turn = turns.acquire().await?;
            let answer = probe::get(listener, &row.host(), &row.path()).await?;
            anyhow::Ok((row, answer.status))
        });
    }
    let mut statuses = BTreeMap::new();
    while let Some(asked) = asking.join_next().await {
        let (row, status) = asked??;
        statuses.insert(row, status);
    }

    let deadline = Instant::now() + SOON;
    let lines = loop {
        let lines = proxy.access_log()?;
        if lines.len() >= statuses.len() {
            break lines;
        }
        ensure!(
            Instant::now() < deadline,
            "{} lines in the access log",
            lines.len()
        );
        sleep(LOG_INTERVAL).await;
    };
    let mut outcomes = BTreeMap::new();
    let mut texts = BTreeSet::new();
    for (row, status) in statuses {
        let path = format!(" {} HTTP/", row.path());
        let line = lines.iter().find(|line| line.contains(&path));
        let log = LogLine::parse(line.with_context(|| format!("{row} is not in the log"))?)?;
        let text = format!(
            "{status} {:?} {} {} {}",
            row.version,
            expected(row).1.unwrap_or("-"),
            log.istio("response_flags"),
            log.istio("upstream_transport_failure_reason")
        );
        texts.insert(text.replace(&row.host(), "HOST"));
        outcomes.insert(row, Outcome { status, log });
    }
    // For those who run it with `--nocapture`: how Envoy says it.
    for text in texts {
        eprintln!("{text}");
    }
    Ok(outcomes)
}

/// The authorities of both sides, and the files that the rules name.
struct Pki {
    root: Ca,
    intermediate: Ca,
    stranger: Ca,
    clients: Ca,
    folder: tempfile::TempDir,
}

impl Pki {
    fn new() -> Result<Self> {
        let root = Ca::new("the servers' root")?;
        Ok(Self {
            intermediate: root.intermediate("the servers' CA")?,
            root,
            stranger: Ca::new("stranger")?,
            clients: Ca::new("the clients' CA")?,
            folder: tempfile::tempdir()?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a server of this kind shows for `name`.
    fn server(&self, kind: Server, name: &str) -> Result<Issued> {
        let leaf = Leaf::for_names([name]);
        let ca = &self.intermediate;
        match kind {
            Server::Valid | Server::Revoked => ca.issue(&leaf),
            Server::Expired => ca.issue(&leaf.validity(Validity::Expired)),
            Server::NotYetValid => ca.issue(&leaf.validity(Validity::NotYetValid)),
            Server::OtherName => ca.issue(&Leaf::for_names(["other.example"])),
            Server::OtherCa => self.stranger.issue(&leaf),
            Server::SelfSigned => pki::self_signed(&leaf),
            Server::IntermediateMissing => ca.issue(&leaf)?.alone(),
        }
    }

    /// Writes what all rules verify servers by: the root, and a list of each authority's.
    fn write_trust(&self, revoked: &[u64]) -> Result<()> {
        self.root.write_pem(&self.path("root.pem"))?;
        let lists = [
            self.root.crl(&[], Validity::Valid)?,
            self.intermediate.crl(revoked, Validity::Valid)?,
        ];
        std::fs::write(self.path("crl.pem"), lists.concat())?;
        Ok(())
    }

    /// Writes what clients of this kind show, and returns their `tls` block.
    fn tls(&self, kind: Client) -> Result<String> {
        let (root, crl) = (self.path("root.pem"), self.path("crl.pem"));
        let crl = format!("caCrl: \"{}\"", crl.display());
        let leaf = Leaf::client("client.example.com");
        let issued = match kind {
            Client::Right => self.clients.issue(&leaf)?,
            Client::WrongCa => self.stranger.issue(&leaf)?,
            Client::Expired => self.clients.issue(&leaf.validity(Validity::Expired))?,
            Client::None => {
                let root = root.display();
                return Ok(format!(
                    "{{tls: {{mode: SIMPLE, caCertificates: \"{root}\", {crl}}}}}"
                ));
            }
        };
        let (chain, key) = issued.write(self.folder.path(), &format!("{kind:?}"))?;
        Ok(mutual(&chain, &key, &root, &crl))
    }
}

/// The servers of all rows.
struct Sites {
    /// One for each row of TLS 1.2 and 1.3.
    own: BTreeMap<Row, StandIn>,
    /// One for all rows of TLS 1.1, which rustls does not speak.
    old: Nginx,
    /// Where port 80 of every host would be.
    silent: SilentPort,
}

impl Sites {
    async fn start(pki: &Pki) -> Result<Self> {
        let mut own = BTreeMap::new();
        let mut revoked = Vec::new();
        let mut blocks = Vec::new();
        for row in rows() {
            let tls = match row.version {
                Version::Tls12 => TlsVersions::OnlyTls12,
                Version::Tls13 => TlsVersions::OnlyTls13,
                Version::Tls11 => {
                    blocks.push(nginx_block(pki, row)?);
                    continue;
                }
            };
            let issued = pki.server(row.server, &row.host())?;
            if row.server == Server::Revoked {
                revoked.push(issued.serial());
            }
            let clients = match row.wants {
                Wants::Requires => Clients::Required(vec![pki.clients.certificate().clone()]),
                Wants::Ignores => Clients::Ignored,
            };
            let site = StandInConfig::new(issued).tls(tls).clients(clients);
            own.insert(row, StandIn::start(site).await?);
        }
        pki.write_trust(&revoked)?;

        let page = pki.server(Server::Valid, "page.example")?;
        let mut old = NginxConfig::new(page.chain_pem(), page.key_pem(), pki.clients.pem())
            .directive(OLD_TLS)
            .block("server_names_hash_bucket_size 128;");
        for block in blocks {
            old = old.block(block);
        }
        Ok(Self {
            own,
            old: Nginx::start(&old).await?,
            silent: SilentPort::start().await?,
        })
    }
}

/// What makes a current OpenSSL speak TLS 1.1, whose signatures are of SHA-1.
const OLD_TLS: &str = "ssl_protocols TLSv1.1; ssl_ciphers DEFAULT@SECLEVEL=0;";

fn nginx_block(pki: &Pki, row: Row) -> Result<String> {
    let issued = pki.server(row.server, &row.host())?;
    let (chain, key) = issued.write(pki.folder.path(), &row.host())?;
    let verify = match row.wants {
        Wants::Requires => "on",
        Wants::Ignores => "off",
    };
    Ok(format!(
        "server {{ listen 443 ssl; server_name {row}; root /usr/share/nginx/html; {OLD_TLS}
         ssl_certificate {}; ssl_certificate_key {};
         ssl_client_certificate /etc/nginx-ca-certs/example.com.crt; ssl_verify_client {verify}; }}",
        chain.display(),
        key.display(),
    ))
}
