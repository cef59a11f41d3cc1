//! Old servers: what they need of TLS, the annotation that says so, and what it never changes. The numbers are those
//! of the cases that were asked for: S suites and versions, G renegotiation.

mod common;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

use egress_integration::{
    egressctl::{Builder, Running},
    envoy::{self, EnvoyProcess},
    old_server::{OldServer, Served},
    pki::{Ca, Issued, Key, Leaf, Usage, Validity},
    probe::{self, Answer},
    silent_port::SilentPort,
};

use common::{
    SHARED, SIMPLE, SOON, Trusted, egressctl, entry, log_of, mutual, request, route, rule, site,
};

/// All words at once.
const ALL: &str = "rsa-key-exchange,cbc,tls1.0,tls1.1,sha1-signatures,small-hello,renegotiation";

/// Rules for a host whose server needs these words.
fn legacy(host: &str, words: &str, policy: &str) -> String {
    let annotated = format!("metadata: {{annotations: {{egressctl/tls-legacy: \"{words}\"}}, ");
    let rule = match words {
        "" => rule(host, policy),
        _ => rule(host, policy).replace("metadata: {", &annotated),
    };
    entry(host, 443) + &rule
}

/// A certificate as old servers have them, good for either use of its key.
fn certificate(ca: &Ca, hosts: &[String], key: Key) -> Result<Issued> {
    let leaf = Leaf::for_names(hosts.iter().cloned());
    ca.issue(&leaf.key(key).usage(Usage::OldServer))
}

/// Servers behind an `egressctl`, each with several hosts, and a port where their plaintext would arrive.
struct Stage {
    proxy: Running,
    silent: SilentPort,
}

impl Stage {
    /// `hosts` are led to these servers.
    async fn start(builder: Builder, hosts: &[(String, SocketAddr)]) -> Result<Self> {
        let silent = SilentPort::start().await?;
        let mut builder = builder.port(80, 0);
        for (host, server) in hosts {
            builder = builder
                .connect_to(&route(host, 443, *server))
                .connect_to(&route(host, 80, silent.addr()));
        }
        let proxy = builder.start().await?;
        Ok(Self { proxy, silent })
    }

    async fn get(&self, host: &str) -> Result<Answer> {
        probe::get(self.proxy.listener(80)?, host, &format!("/{host}")).await
    }

    /// Asks, and proves that the server's page shows this version and suite.
    async fn speaks(&self, host: &str, version: &str, suite: &str) -> Result<()> {
        let answer = self.get(host).await?;
        let reason = log_of(&self.proxy, &format!("/{host}")).await?;
        ensure!(answer.status == 200, "{host}: {answer:?} {reason:#?}");
        for (name, value) in [("Protocol", version), ("Cipher", suite)] {
            let line = format!("    {name:<10}: ");
            let found = answer.body.lines().find_map(|it| it.strip_prefix(&line));
            // A page about TLS 1.3 has it elsewhere.
            let new = answer.body.lines().find(|it| it.starts_with("New, "));
            let within = new.is_some_and(|line| line.contains(value));
            let told = found.map_or(within, |found| value.is_empty() || found == value);
            ensure!(told, "{host}: {name} is not {value}: {}", answer.body);
        }
        Ok(())
    }

    /// Asks, and proves that there was no answer, for this reason.
    async fn fails(&self, host: &str, reason: &str) -> Result<()> {
        let answer = self.get(host).await?;
        let log = log_of(&self.proxy, &format!("/{host}")).await?;
        let told = (answer.status, log.egress("reason"));
        ensure!(told == (503, reason), "{host}: {answer:?} {log:#?}");
        Ok(())
    }
}

/// What a server speaks, the words that it needs, and what is spoken with them. Without them the failure has this reason.
struct Case {
    server: &'static str,
    key: Key,
    words: &'static str,
    version: &'static str,
    suite: &'static str,
    reason: &'static str,
}

const fn case(
    server: &'static str,
    words: &'static str,
    version: &'static str,
    suite: &'static str,
    reason: &'static str,
) -> Case {
    let key = Key::Rsa(2048);
    Case {
        server,
        key,
        words,
        version,
        suite,
        reason,
    }
}

const NO_CIPHER: &str = "no_shared_cipher";

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(
            "-tls1_2 -cipher AES256-GCM-SHA384",
            "rsa-key-exchange",
            "TLSv1.2",
            "AES256-GCM-SHA384",
            NO_CIPHER,
        ),
        case(
            "-tls1_2 -cipher AES128-SHA",
            "rsa-key-exchange",
            "TLSv1.2",
            "AES128-SHA",
            NO_CIPHER,
        ),
        case(
            "-tls1_2 -cipher ECDHE-RSA-AES128-SHA",
            "cbc",
            "TLSv1.2",
            "ECDHE-RSA-AES128-SHA",
            NO_CIPHER,
        ),
        case(
            "-tls1_2 -cipher ECDHE-RSA-AES128-SHA256",
            "cbc",
            "TLSv1.2",
            "ECDHE-RSA-AES128-SHA256",
            NO_CIPHER,
        ),
        case(
            "-tls1 -cipher ALL:@SECLEVEL=0",
            "tls1.0,cbc",
            "TLSv1",
            "ECDHE-RSA-AES128-SHA",
            "protocol_version",
        ),
        case(
            "-tls1 -cipher AES256-SHA:@SECLEVEL=0",
            "tls1.0, cbc, rsa-key-exchange",
            "TLSv1",
            "AES256-SHA",
            "protocol_version",
        ),
        case(
            "-tls1_1 -cipher ALL:@SECLEVEL=0",
            "tls1.1,cbc",
            "TLSv1.1",
            "ECDHE-RSA-AES128-SHA",
            "protocol_version",
        ),
    ];
    for (server, words, suite) in [
        (
            "-tls1_2 -cipher ECDHE-ECDSA-AES256-SHA",
            "cbc",
            "ECDHE-ECDSA-AES256-SHA",
        ),
        (
            "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256:@SECLEVEL=0 -sigalgs ECDSA+SHA1",
            "sha1-signatures",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
        ),
    ] {
        cases.push(Case {
            key: Key::EcdsaP256,
            ..case(server, words, "TLSv1.2", suite, NO_CIPHER)
        });
    }
    cases
}

/// S1: each server answers with its words, and without them it does not.
#[tokio::test]
async fn a_server_that_needs_a_word_answers_with_it_alone() -> Result<()> {
    let trusted = Trusted::new()?;
    let cases = cases();
    let names = |at: usize| ["plain", "old"].map(|kind| format!("s{at}.{kind}.example"));
    let all: Vec<String> = (0..cases.len()).flat_map(names).collect();
    let certificates = [
        certificate(&trusted.ca, &all, Key::Rsa(2048))?,
        certificate(&trusted.ca, &all, Key::EcdsaP256)?,
    ];
    let (mut servers, mut rules, mut hosts) = (Vec::new(), String::new(), Vec::new());
    for (at, case) in cases.iter().enumerate() {
        let [modern, old] = names(at);
        rules += &legacy(&modern, "", SIMPLE);
        rules += &legacy(&old, case.words, SIMPLE);
        let certificate = &certificates[usize::from(case.key == Key::EcdsaP256)];
        let server = OldServer::pages(certificate, case.server).await?;
        hosts.extend([modern, old].map(|host| (host, server.addr())));
        servers.push(server);
    }
    let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
    for (at, case) in cases.iter().enumerate() {
        let [modern, old] = names(at);
        stage.fails(&modern, case.reason).await?;
        let spoken = stage.speaks(&old, case.version, case.suite).await;
        spoken.with_context(|| format!("{} with {}", case.server, case.words))?;
        // Whatever it is, it is for this host.
        let hellos = servers[at].hellos();
        let last = hellos.last().context("no ClientHello came")?;
        assert!(last.has(&old) && !last.has(&modern), "{old}");
    }
    stage.silent.assert_silent().await
}

/// Words open what they say and nothing beside it.
#[tokio::test]
async fn a_word_opens_nothing_but_its_class() -> Result<()> {
    let trusted = Trusted::new()?;
    let cases = [
        (
            "-tls1 -cipher ALL:@SECLEVEL=0",
            "tls1.1,cbc",
            "protocol_version",
        ),
        (
            "-tls1_2 -cipher AES128-SHA",
            "cbc,sha1-signatures,small-hello,renegotiation",
            NO_CIPHER,
        ),
        (
            "-tls1_2 -cipher ECDHE-RSA-AES128-SHA",
            "rsa-key-exchange,sha1-signatures",
            NO_CIPHER,
        ),
        // S6: what is refused stays so with all of them.
        ("-tls1_2 -cipher NULL-SHA:@SECLEVEL=0", ALL, NO_CIPHER),
        (
            "-tls1_2 -cipher AECDH-AES128-SHA:@SECLEVEL=0",
            ALL,
            NO_CIPHER,
        ),
        (
            "-tls1_2 -cipher ADH-AES128-GCM-SHA256:@SECLEVEL=0",
            ALL,
            NO_CIPHER,
        ),
        ("-tls1_2 -cipher DHE-RSA-AES128-SHA", ALL, NO_CIPHER),
        ("-tls1_2 -cipher AES128-SHA256", ALL, NO_CIPHER),
    ];
    let name = |at: usize| format!("n{at}.example");
    let all: Vec<String> = (0..cases.len()).map(name).collect();
    let certificate = certificate(&trusted.ca, &all, Key::Rsa(2048))?;
    let (mut servers, mut rules, mut hosts) = (Vec::new(), String::new(), Vec::new());
    for (at, (server, words, _)) in cases.iter().enumerate() {
        rules += &legacy(&name(at), words, SIMPLE);
        let server = OldServer::pages(&certificate, server).await?;
        hosts.push((name(at), server.addr()));
        servers.push(server);
    }
    let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
    for (at, (server, words, reason)) in cases.iter().enumerate() {
        let failed = stage.fails(&name(at), reason).await;
        failed.with_context(|| format!("{server} with {words}"))?;
    }
    stage.silent.assert_silent().await
}

/// S2, S3, G5: a modern server is spoken to as without words.
#[tokio::test]
async fn a_modern_server_gets_modern_tls_whatever_the_words() -> Result<()> {
    let trusted = Trusted::new()?;
    let names = ["v13.example", "v12.example"].map(str::to_owned);
    let certificate = certificate(&trusted.ca, &names, Key::Rsa(2048))?;
    let v13 = OldServer::pages(&certificate, "-cipher ALL:@SECLEVEL=0").await?;
    let v12 = OldServer::pages(&certificate, "-tls1_2 -cipher ALL:@SECLEVEL=0").await?;
    let [first, second] = &names;
    let rules = legacy(first, ALL, SIMPLE) + &legacy(second, ALL, SIMPLE);
    let hosts = [(first.clone(), v13.addr()), (second.clone(), v12.addr())];
    let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
    stage
        .speaks(first, "TLSv1.3", "TLS_AES_128_GCM_SHA256")
        .await?;
    stage
        .speaks(second, "TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256")
        .await?;
    stage.silent.assert_silent().await
}

/// S4: whom to trust is no matter of words, of modern handshakes and of old ones.
#[tokio::test]
async fn what_is_verified_does_not_change_by_a_word() -> Result<()> {
    let trusted = Trusted::new()?;
    let stranger = Ca::new("a stranger")?;
    let cases = [
        ("name", "name_mismatch", &trusted.ca, Validity::Valid),
        ("old", "expired", &trusted.ca, Validity::Expired),
        ("ca", "unknown_ca", &stranger, Validity::Valid),
    ];
    let (mut sites, mut servers) = (Vec::new(), Vec::new());
    let (mut rules, mut hosts, mut reasons) = (String::new(), Vec::new(), Vec::new());
    for (kind, reason, ca, validity) in cases {
        let names = ["plain", "words", "rsa"].map(|how| format!("{how}.{kind}.example"));
        let certified = match kind {
            "name" => vec!["other.example".to_owned()],
            _ => names.to_vec(),
        };
        let leaf = Leaf::for_names(certified).validity(validity);
        let modern = site(ca, &leaf).await?;
        let leaf = leaf.key(Key::Rsa(2048)).usage(Usage::OldServer);
        let old = OldServer::pages(&ca.issue(&leaf)?, "-tls1_2 -cipher AES128-SHA").await?;
        let [plain, words, rsa] = names;
        rules += &legacy(&plain, "", SIMPLE);
        rules += &legacy(&words, ALL, SIMPLE);
        rules += &legacy(&rsa, ALL, SIMPLE);
        hosts.push((plain, modern.tls_addr()));
        hosts.push((words, modern.tls_addr()));
        hosts.push((rsa, old.addr()));
        reasons.extend([reason; 3]);
        sites.push(modern);
        servers.push(old);
    }
    let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
    for ((host, _), reason) in hosts.iter().zip(reasons) {
        stage.fails(host, reason).await?;
    }
    for site in &sites {
        assert!(site.seen().is_empty());
    }
    stage.silent.assert_silent().await
}

/// S7: a rule with words has a cluster of its own, and shares neither connections nor sessions with others.
#[tokio::test]
async fn a_rule_with_words_shares_nothing_with_others() -> Result<()> {
    let trusted = Trusted::new()?;
    let names = ["modern.example", "old.example"].map(str::to_owned);
    let [modern, old] = &names;
    let site = site(&trusted.ca, &Leaf::for_names(names.clone())).await?;
    let rules = legacy(modern, "", SIMPLE) + &legacy(old, "cbc", SIMPLE);
    let hosts = names.clone().map(|host| (host, site.tls_addr()));
    let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
    let mut clusters = BTreeSet::new();
    for host in &names {
        for _ in 0..2 {
            assert_eq!(stage.get(host).await?.status, 200);
        }
        let log = log_of(&stage.proxy, &format!("/{host}")).await?;
        clusters.insert(log.egress("cluster").to_owned());
    }
    assert_eq!(clusters.len(), 2, "{clusters:?}");
    let seen = site.take_seen();
    let connections = |host: &str| -> BTreeSet<u64> {
        let own = seen.iter().filter(|it| it.host == host);
        own.map(|it| it.connection_id).collect()
    };
    assert_eq!(seen.len(), 4);
    assert!(connections(modern).is_disjoint(&connections(old)));
    for one in &seen {
        assert_eq!(one.sni.as_deref(), Some(one.host.as_str()), "{one}");
        assert_eq!(one.x_forwarded_proto.as_deref(), Some("https"), "{one}");
    }
    stage.silent.assert_silent().await
}

/// At every start of `run`, what a word gives up is said.
#[tokio::test]
async fn what_a_word_gives_up_is_said_at_every_start() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site(["old.example"]).await?;
    let hosts = [("old.example".to_owned(), site.tls_addr())];
    let rules = legacy("old.example", "tls1.0,cbc,rsa-key-exchange", SIMPLE);
    for _ in 0..2 {
        let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
        for word in ["`tls1.0`: ", "`rsa-key-exchange`: "] {
            let said = |line: &str| line.starts_with("warning: ") && line.contains(word);
            stage.proxy.wait_for_stderr(said, SOON).await?;
        }
    }
    Ok(())
}

/// The code point of the group X25519MLKEM768.
const POST_QUANTUM: [u8; 2] = [0x11, 0xec];

/// S8: the first message of TLS fits into a packet, or has a post-quantum share.
#[tokio::test]
async fn the_first_message_is_small_where_a_word_says_so() -> Result<()> {
    let trusted = Trusted::new()?;
    let names = ["modern.example", "small.example"].map(str::to_owned);
    let [modern, small] = &names;
    let server = OldServer::pages(&certificate(&trusted.ca, &names, Key::EcdsaP256)?, "").await?;
    let rules = legacy(modern, "", SIMPLE) + &legacy(small, "small-hello", SIMPLE);
    let hosts = names.clone().map(|host| (host, server.addr()));
    let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
    for host in &names {
        stage
            .speaks(host, "TLSv1.3", "TLS_AES_128_GCM_SHA256")
            .await?;
        let hellos = server.hellos();
        let hello = hellos.last().context("no ClientHello came")?;
        assert!(hello.has(host));
        let mut pairs = hello.bytes.windows(2);
        let has_share = pairs.any(|pair| pair == POST_QUANTUM);
        let length = hello.bytes.len();
        match host == small {
            true => ensure!(length <= 517 && !has_share, "{length} bytes"),
            false => ensure!(length > 1200 && has_share, "{length} bytes"),
        }
    }
    stage.silent.assert_silent().await
}

/// The key exchange protects against quantum computers where the server has it, and Envoy's statistics say so.
#[tokio::test]
async fn the_key_exchange_is_post_quantum_with_a_server_that_has_it() -> Result<()> {
    let trusted = Trusted::new()?;
    let names = ["modern.example", "small.example"].map(str::to_owned);
    let [modern, small] = &names;
    let (chain, key) = trusted
        .ca
        .issue(&Leaf::for_names(names.clone()))?
        .write(&trusted.path(""), "server")?;
    let server = tls_envoy(&chain, &key).await?;
    let rules = legacy(modern, "", SIMPLE) + &legacy(small, "small-hello", SIMPLE);
    let hosts = names
        .clone()
        .map(|host| Ok((host, server.listener("tls")?)));
    let hosts: Vec<_> = hosts.into_iter().collect::<Result<_>>()?;
    let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
    for (host, cluster, group) in [
        (modern, SHARED, "X25519MLKEM768"),
        (small, "outbound|80||small.example", "X25519"),
    ] {
        assert_eq!(stage.get(host).await?.status, 200);
        let stats = stage
            .proxy
            .admin_get("/stats?filter=ssl.curves")
            .await?
            .body;
        let line = format!("cluster.{cluster}.ssl.curves.{group}: 1");
        ensure!(stats.lines().any(|it| it == line), "no `{line}` in {stats}");
    }
    stage.silent.assert_silent().await
}

/// A server with Envoy's own TLS, which has post-quantum groups.
async fn tls_envoy(chain: &Path, key: &Path) -> Result<EnvoyProcess> {
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "server",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "direct_response": {"status": 200}},
        ]}]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        }}],
    });
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_params": {"ecdh_curves": ["X25519MLKEM768", "X25519"]},
            "tls_certificates": [
                {"certificate_chain": {"filename": chain}, "private_key": {"filename": key}},
            ],
        },
    });
    let listener = json!({
        "name": "tls",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{
            "filters": [{"name": "http", "typed_config": manager}],
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        }],
    });
    let bootstrap = json!({"static_resources": {"listeners": [listener]}});
    EnvoyProcess::start(
        &envoy::binary()?,
        &bootstrap.to_string(),
        ["--concurrency", "1"],
    )
    .await
}

/// Asks a server that gets a command behind the request. Returns the status, and what the server saw.
async fn ask_and_serve(
    stage: &Stage,
    host: &str,
    server: &mut OldServer,
    command: &str,
) -> Result<(u16, Served)> {
    // What is never sent twice, so that the server hears it once.
    let asking = async {
        let (line, host) = (format!("POST /{host} HTTP/1.1"), format!("Host: {host}"));
        let asked = request(&[&line, &host, "Content-Length: 0", "Connection: close"]);
        let answer = probe::raw(stage.proxy.listener(80)?, asked.as_bytes(), SOON).await?;
        let answer = String::from_utf8(answer)?;
        let status = answer.split(' ').nth(1);
        let status = status.with_context(|| format!("no status: {answer}"))?;
        Ok(status.parse()?)
    };
    tokio::try_join!(asking, server.serve(command))
}

/// G1, G4: a server that begins another handshake behind the request, as IIS does to ask for a certificate.
#[tokio::test]
async fn a_server_may_renegotiate_where_a_word_says_so() -> Result<()> {
    let trusted = Trusted::new()?;
    let host = "iis.example";
    let names = [host.to_owned()];
    for (words, alpn) in [("", "http/1.1"), ("renegotiation", "h2,http/1.1")] {
        let issued = certificate(&trusted.ca, &names, Key::EcdsaP256)?;
        let args = format!("-tls1_2 -alpn {alpn}");
        let mut server = OldServer::by_hand(&issued, None, &args).await?;
        let hosts = [(host.to_owned(), server.addr())];
        let stage = Stage::start(trusted.egressctl(&legacy(host, words, SIMPLE)), &hosts).await?;
        let (status, served) = ask_and_serve(&stage, host, &mut server, "r").await?;
        let log = log_of(&stage.proxy, &format!("/{host}")).await?;
        let output = server.output().join("\n");
        assert_eq!(served.answered, !words.is_empty(), "{output}");
        for line in [&format!("host: {host}"), "x-forwarded-proto: https"] {
            assert!(served.head.iter().any(|it| it == line), "{served:?}");
        }
        if words.is_empty() {
            assert_eq!((status, log.egress("reason")), (503, "reset"), "{log:#?}");
            // What `failures.md` tells to look for.
            let details = log.istio("response_code_details");
            ensure!(details.contains("connection_termination"), "{log:#?}");
        } else {
            assert_eq!(status, 200, "{log:#?}");
            let selected = "ALPN protocols selected: http/1.1";
            assert!(server.output().iter().any(|line| line == selected));
            assert_eq!(server.hellos().len(), 2);
        }
        stage.silent.assert_silent().await?;
    }
    Ok(())
}

/// G2: a certificate that is asked for in between is the rule's own, and none where the rule has none.
#[tokio::test]
async fn a_server_that_asks_for_a_certificate_in_between_sees_the_rules() -> Result<()> {
    let trusted = Trusted::new()?;
    let host = "iis.example";
    let clients = Ca::new("clients")?;
    let (chain, key) = clients
        .issue(&Leaf::client("the application"))?
        .write(&trusted.path(""), "client")?;
    let mutual = mutual(&chain, &key, &trusted.bundle(), "");
    for (policy, shown) in [(SIMPLE, false), (mutual.as_str(), true)] {
        let issued = certificate(&trusted.ca, &[host.to_owned()], Key::EcdsaP256)?;
        let mut server = OldServer::by_hand(&issued, Some(&clients), "-tls1_2").await?;
        let hosts = [(host.to_owned(), server.addr())];
        let rules = legacy(host, "renegotiation", policy);
        let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
        let (status, served) = ask_and_serve(&stage, host, &mut server, "R").await?;
        let log = log_of(&stage.proxy, &format!("/{host}")).await?;
        ensure!((status, served.answered) == (200, true), "{log:#?}");
        let seen = |line: &String| line.contains("depth=0") && line.contains("the application");
        assert_eq!(
            server.remarks().iter().any(seen),
            shown,
            "{:?}",
            server.remarks()
        );
        stage.silent.assert_silent().await?;
    }
    Ok(())
}

/// G3: whoever shows another certificate in between is refused, whatever it is for.
#[tokio::test]
async fn a_certificate_does_not_change_in_between() -> Result<()> {
    let trusted = Trusted::new()?;
    let (host, other) = ("iis.example", "other.example");
    let write = |name: &str, of: &str| -> Result<[String; 2]> {
        let issued = certificate(&trusted.ca, &[of.to_owned()], Key::EcdsaP256)?;
        let (chain, key) = issued.write(&trusted.path(""), name)?;
        Ok([chain, key].map(|path| path.display().to_string()))
    };
    let (first, second) = (write("first", host)?, write("second", host)?);
    let stranger = write("stranger", other)?;
    for (next, expected) in [(&first, 200), (&second, 503), (&stranger, 503)] {
        let server = Renegotiating::start(&first, next).await?;
        let hosts = [(host.to_owned(), server.addr)];
        let rules = legacy(host, "renegotiation", SIMPLE);
        let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
        assert_eq!(stage.get(host).await?.status, expected, "{next:?}");
        stage.silent.assert_silent().await?;
    }
    Ok(())
}

/// A server that shows a second certificate in a second handshake, which `openssl s_server` cannot.
struct Renegotiating {
    addr: SocketAddr,
    _child: Child,
}

impl Renegotiating {
    async fn start(first: &[String], second: &[String]) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/renegotiate.py");
        let mut command = Command::new("python3");
        command.arg(script).args(first).args(second);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("cannot start python3")?;
        let stdout = child.stdout.take().context("no stdout")?;
        let mut line = String::new();
        timeout(SOON, BufReader::new(stdout).read_line(&mut line)).await??;
        let port: u16 = line.trim().parse().with_context(|| line.clone())?;
        let addr = (Ipv4Addr::LOCALHOST, port).into();
        Ok(Self {
            addr,
            _child: child,
        })
    }
}

/// What `check --connect` says of these hosts: messages of this severity, each with its hint.
async fn connected(
    trusted: &Trusted,
    rules: &str,
    hosts: &[(String, SocketAddr)],
    severity: &str,
) -> Result<Vec<(String, String)>> {
    let file = trusted.file("checked.yaml", rules)?;
    let mut args: Vec<OsString> = ["check", "--connect", "-o", "json", "-f"]
        .map(OsString::from)
        .into();
    args.push(file.into());
    for (host, server) in hosts {
        args.extend(["--connect-to".into(), route(host, 443, *server).into()]);
    }
    let output = egressctl(trusted, args).await?;
    let found: Vec<Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let found = found.iter().filter(|it| it["severity"] == severity);
    let text = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    Ok(found
        .map(|it| (text(it, "message"), text(it, "hint")))
        .collect())
}

/// `check --connect` names the words that a server needs, and with them it has nothing more to say.
#[tokio::test]
async fn check_says_which_words_a_server_needs() -> Result<()> {
    let trusted = Trusted::new()?;
    let cases = cases();
    let name = |at: usize| format!("s{at}.example");
    let all: Vec<String> = (0..cases.len()).map(name).collect();
    let certificates = [
        certificate(&trusted.ca, &all, Key::Rsa(2048))?,
        certificate(&trusted.ca, &all, Key::EcdsaP256)?,
    ];
    let (mut servers, mut hosts, mut plain) = (Vec::new(), Vec::new(), String::new());
    for (at, case) in cases.iter().enumerate() {
        let certificate = &certificates[usize::from(case.key == Key::EcdsaP256)];
        let server = OldServer::pages(certificate, case.server).await?;
        hosts.push((name(at), server.addr()));
        servers.push(server);
        plain += &legacy(&name(at), "", SIMPLE);
    }
    let errors = connected(&trusted, &plain, &hosts, "error").await?;
    assert_eq!(errors.len(), cases.len(), "{errors:#?}");
    let mut mended = String::new();
    for (at, case) in cases.iter().enumerate() {
        let begin = format!("`{}:443` does not come to terms with Envoy", name(at));
        let told = errors
            .iter()
            .find(|(message, _)| message.starts_with(&begin));
        let (_, hint) = told.with_context(|| format!("{}: {errors:#?}", case.server))?;
        let (_, words) = hint
            .split_once("egressctl/tls-legacy: ")
            .context(hint.clone())?;
        let (words, _) = words.split_once('`').context(hint.clone())?;
        let said: BTreeSet<&str> = words.split(',').collect();
        let expected: BTreeSet<&str> = case.words.split(',').map(str::trim).collect();
        assert_eq!(said, expected, "{}", case.server);
        assert!(
            hint.contains("`renegotiation` shows only behind a request"),
            "{hint}"
        );
        mended += &legacy(&name(at), words, SIMPLE);
    }
    let errors = connected(&trusted, &mended, &hosts, "error").await?;
    assert_eq!(errors, []);
    Ok(())
}

/// It names words that are not needed, and of old servers too it tells whose certificate would be refused.
#[tokio::test]
async fn check_says_which_words_are_needless_and_judges_old_certificates() -> Result<()> {
    let trusted = Trusted::new()?;
    let names = ["modern.example", "older.example", "dhe.example"].map(str::to_owned);
    let [modern, older, dhe] = &names;
    let certificate = certificate(&trusted.ca, &names, Key::Rsa(2048))?;
    let leaf = Leaf::for_names(["other.example"]);
    let other = trusted
        .ca
        .issue(&leaf.key(Key::Rsa(2048)).usage(Usage::OldServer))?;
    let servers = [
        OldServer::pages(&certificate, "").await?,
        OldServer::pages(&other, "-tls1_2 -cipher AES128-SHA").await?,
        OldServer::pages(&certificate, "-tls1_2 -cipher DHE-RSA-AES128-SHA").await?,
    ];
    let hosts: Vec<_> = names
        .iter()
        .cloned()
        .zip(servers.iter().map(OldServer::addr))
        .collect();
    let rules = legacy(modern, "cbc,renegotiation", SIMPLE)
        + &legacy(older, "rsa-key-exchange", SIMPLE)
        + &legacy(dhe, "", SIMPLE);
    let warnings = connected(&trusted, &rules, &hosts, "warning").await?;
    let told = warnings
        .iter()
        .find(|(message, _)| message == "`modern.example:443` does not need `cbc`");
    let (_, hint) = told.with_context(|| format!("{warnings:#?}"))?;
    assert_eq!(hint, "write `egressctl/tls-legacy: renegotiation`");
    let errors = connected(&trusted, &rules, &hosts, "error").await?;
    let begins = [
        "`dhe.example:443` does not shake hands: ",
        "`older.example:443` shows a certificate that is for other names: ",
    ];
    assert_eq!(errors.len(), begins.len(), "{errors:#?}");
    for begin in begins {
        assert!(
            errors.iter().any(|(it, _)| it.starts_with(begin)),
            "{errors:#?}"
        );
    }
    Ok(())
}

/// Something between here and a server that takes no first message of more than a packet.
struct Middlebox {
    addr: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Middlebox {
    async fn before(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut header = [0; 5];
                    client.read_exact(&mut header).await?;
                    let [.., high, low] = header;
                    if u16::from_be_bytes([high, low]) > 1000 {
                        return Ok(());
                    }
                    let mut upstream = TcpStream::connect(server).await?;
                    upstream.write_all(&header).await?;
                    copy_bidirectional(&mut client, &mut upstream)
                        .await
                        .map(|_| ())
                });
            }
        });
        Ok(Self { addr, accepting })
    }
}

impl Drop for Middlebox {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[tokio::test]
async fn a_middlebox_that_chokes_on_a_long_message_is_passed_and_found() -> Result<()> {
    let trusted = Trusted::new()?;
    let names = ["modern.example", "small.example", "old.example"].map(str::to_owned);
    let [modern, small, old] = &names;
    let certificate = certificate(&trusted.ca, &names, Key::Rsa(2048))?;
    let server = OldServer::pages(&certificate, "").await?;
    let cbc = OldServer::pages(&certificate, "-tls1_2 -cipher ECDHE-RSA-AES128-SHA").await?;
    let (between, before_cbc) = (
        Middlebox::before(server.addr()).await?,
        Middlebox::before(cbc.addr()).await?,
    );
    let hosts = [
        (modern.clone(), between.addr),
        (small.clone(), between.addr),
        (old.clone(), before_cbc.addr),
    ];
    let rules = legacy(modern, "", SIMPLE)
        + &legacy(small, "small-hello", SIMPLE)
        + &legacy(old, "", SIMPLE);
    let errors = connected(&trusted, &rules, &hosts, "error").await?;
    assert_eq!(errors.len(), 2, "{errors:#?}");
    for (host, words) in [(modern, "small-hello"), (old, "cbc,small-hello")] {
        let told = errors
            .iter()
            .find(|(message, _)| message.contains(host.as_str()));
        let (_, hint) = told.with_context(|| format!("{errors:#?}"))?;
        assert!(
            hint.contains(&format!("`egressctl/tls-legacy: {words}`")),
            "{hint}"
        );
    }
    let stage = Stage::start(trusted.egressctl(&rules), &hosts).await?;
    stage.fails(modern, "reset").await?;
    stage
        .speaks(small, "TLSv1.3", "TLS_AES_128_GCM_SHA256")
        .await?;
    stage.silent.assert_silent().await
}

/// The names that `check` takes in the mesh's `tlsDefaults` are those that Envoy starts with, and servers are offered them.
#[tokio::test]
async fn what_the_mesh_says_of_tls_is_what_servers_are_offered() -> Result<()> {
    let trusted = Trusted::new()?;
    let names = ["rsa.example", "small.example", "modern.example"].map(str::to_owned);
    let [rsa, small, modern] = &names;
    let certificate = certificate(&trusted.ca, &names, Key::Rsa(2048))?;
    let old = OldServer::pages(&certificate, "-tls1_2 -cipher AES128-SHA").await?;
    let new = OldServer::pages(&certificate, "").await?;
    let hosts = [
        (rsa.clone(), old.addr()),
        (small.clone(), new.addr()),
        (modern.clone(), new.addr()),
    ];
    let rules = legacy(rsa, "", SIMPLE)
        + &legacy(small, "small-hello", SIMPLE)
        + &legacy(modern, "", SIMPLE);
    let mesh = trusted.file(
        "mesh.yaml",
        "tlsDefaults:
  ecdhCurves: [P-521, P-384, X25519MLKEM768, P-256, X25519]
  cipherSuites:
  - '[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]'
  - ECDHE-RSA-AES128-GCM-SHA256
  - ECDHE-RSA-CHACHA20-POLY1305
  - ECDHE-ECDSA-AES256-GCM-SHA384
  - ECDHE-RSA-AES256-GCM-SHA384
  - ECDHE-ECDSA-AES128-SHA256
  - ECDHE-RSA-AES128-SHA256
  - ECDHE-ECDSA-AES128-SHA
  - ECDHE-RSA-AES128-SHA
  - ECDHE-ECDSA-AES256-SHA
  - ECDHE-RSA-AES256-SHA
  - AES128-GCM-SHA256
  - AES256-GCM-SHA384
  - AES128-SHA
  - AES256-SHA
  - DES-CBC3-SHA
",
    )?;
    let builder = trusted.egressctl(&rules).arg("--mesh-config").arg(mesh);
    let stage = Stage::start(builder, &hosts).await?;
    stage.speaks(rsa, "TLSv1.2", "AES128-SHA").await?;
    for (host, groups) in [
        (small, &[0x19, 0x18, 0x17, 0x1d][..]),
        (modern, &[0x19, 0x18, 0x11ec, 0x17, 0x1d]),
    ] {
        stage
            .speaks(host, "TLSv1.3", "TLS_AES_128_GCM_SHA256")
            .await?;
        let hellos = new.hellos();
        let hello = hellos.last().context("no ClientHello came")?;
        let offered: Vec<u8> = groups
            .iter()
            .flat_map(|group: &u16| group.to_be_bytes())
            .collect();
        let mut list = u16::try_from(offered.len())?.to_be_bytes().to_vec();
        list.extend(offered);
        let mut windows = hello.bytes.windows(list.len());
        assert!(windows.any(|it| it == list), "{host}: {:02x?}", hello.bytes);
    }
    stage.silent.assert_silent().await
}
