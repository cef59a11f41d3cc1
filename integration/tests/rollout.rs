//! While the filter comes, changes, is missing or crashes: what is said of it in `filter/wasm/roll-out.md`.
//!
//! Each row of the table there is the test of the same name here; what an application gets, and by what one sees the
//! state, is read from the row.

mod common;
#[path = "common/crashing.rs"]
mod crashing;
#[path = "common/sha256.rs"]
mod sha256;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use egress_integration::{
    egressctl::binary,
    envoy::{self, EnvoyProcess},
    pki::Leaf,
    probe,
    stand_in::Listener,
    tls_server::{TlsServer, TlsServerConfig},
};

use crashing::CRASH;
use sha256::hex;

use common::{
    HOST, SHARED, SIMPLE, SOON, Trusted, assert_originated, dns, entry_with, eventually,
    load::Load,
    only, originated, rendered, rule,
    states::{Fact, States, counter},
    watched::{ADDED, Watched, applied, static_cluster},
};

const STATES: States = States {
    page: include_str!("../../filter/wasm/roll-out.md"),
    program: include_str!("rollout.rs"),
};
const CACHE: &str = "cache.example";
const CODE: &str = "/config/vm_config/code";
/// How long the listener waits for a filter that does not come: longer than Envoy takes to start.
const FETCH_TIMEOUT: Duration = Duration::from_secs(4);
/// What the page says that the request gets at which the filter crashes, whatever is due after it.
const CRASHED: u16 = 503;
/// How long a filter that has crashed stays down after its last start; Envoy's second is too short for slow machines.
const BACKOFF: &str = "5s";
const STILL: &str = "the previous rules";

/// Proves what the row says, three times over; nothing but verified TLS has reached the site then.
async fn holds(fact: &Fact, watched: &Watched, envoy: &EnvoyProcess) -> Result<()> {
    fact.is_told(envoy).await?;
    for _ in 0..3 {
        if fact.gets == STILL {
            watched.assert_originates(envoy).await?;
            let http = envoy.listener("outbound_80")?;
            assert_eq!(probe::get(http, ADDED, "/").await?.status, 502);
        } else {
            // What rendered routes do besides is behind a comma; see `goes_by_tls`.
            let status = fact.gets.split(',').next().unwrap_or_default();
            refused(watched, envoy, status.parse()?).await?;
        }
    }
    assert_eq!(watched.site.counts(Listener::Plain).connections, 0);
    assert_eq!(watched.site.counts(Listener::Tls).failed_handshakes, []);
    Ok(())
}

/// Proves that requests end in Envoy, those too that say where to go.
async fn refused(watched: &Watched, envoy: &EnvoyProcess, status: u16) -> Result<()> {
    let http = envoy.listener("outbound_80")?;
    let before = watched.site.counts(Listener::Tls).connections;
    for headers in [&[][..], &[("x-egress-originate", SHARED)]] {
        let answer = probe::get_with(http, HOST, "/", headers).await?;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
    let site = &watched.site;
    ensure!(site.seen().is_empty(), "{:?}", site.seen());
    assert_eq!(site.counts(Listener::Tls).connections, before);
    Ok(())
}

/// The module that `egressctl` renders.
fn module(watched: &Watched) -> Result<PathBuf> {
    let path = watched.wasm.pointer(&format!("{CODE}/local/filename"));
    Ok(path.and_then(Value::as_str).context("no module")?.into())
}

/// The filter for the previous rules, with other code.
async fn with_code(watched: &Watched, code: Value) -> Result<Value> {
    let mut wasm = watched.configured(&watched.plugin(&[]).await?)?;
    *wasm.pointer_mut(CODE).context("no code")? = code;
    Ok(wasm)
}

fn local(path: &Path) -> Value {
    json!({"local": {"filename": path}})
}

/// An Envoy whose filter has come and works.
async fn working() -> Result<(Watched, EnvoyProcess)> {
    let mut watched = Watched::new().await?;
    let envoy = works(&mut watched).await?;
    Ok((watched, envoy))
}

async fn works(watched: &mut Watched) -> Result<EnvoyProcess> {
    let good = watched.plugin(&[]).await?;
    watched.write(&good)?;
    let envoy = watched.start().await?;
    watched.assert_originates(&envoy).await?;
    Ok(envoy)
}

/// Gives the filter one more host, and waits until it has it.
async fn heals_under(watched: &mut Watched, http: SocketAddr) -> Result<()> {
    let better = watched.plugin(&[ADDED]).await?;
    watched.write(&better)?;
    applied(http, ADDED).await
}

/// Proves that a good filter ends the state.
async fn heals(watched: &mut Watched, envoy: &EnvoyProcess) -> Result<()> {
    heals_under(watched, envoy.listener("outbound_80")?).await?;
    let host = format!("{ADDED}:{}", watched.site.tls_addr().port());
    assert_originated(&only(&watched.site)?, &host, ADDED);
    watched.assert_originates(envoy).await?;
    assert_eq!(watched.site.counts(Listener::Plain).connections, 0);
    Ok(())
}

/// Proves what the row of a state says, and that a good filter ends it.
async fn passes(state: &str, watched: &mut Watched, envoy: &EnvoyProcess) -> Result<()> {
    holds(&STATES.fact(state)?, watched, envoy).await?;
    heals(watched, envoy).await
}

/// Gives a filter that works another module, which changes nothing.
async fn keeps_its_module(state: &str, code: impl FnOnce(&Watched) -> Result<Value>) -> Result<()> {
    let (mut watched, envoy) = working().await?;
    let wasm = with_code(&watched, code(&watched)?).await?;
    watched.write_filter(&wasm)?;
    passes(state, &mut watched, &envoy).await
}

/// Starts an Envoy that has to fetch the first module.
async fn does_not_fetch(
    state: &str,
    mut watched: Watched,
    modules: &Modules,
    sha256: &str,
) -> Result<()> {
    let wasm = with_code(&watched, modules.code(sha256)).await?;
    watched.write_filter(&wasm)?;
    let envoy = watched.start().await?;
    passes(state, &mut watched, &envoy).await
}

/// Waits until requests for [`HOST`] are answered again.
async fn recovers(http: SocketAddr) -> Result<()> {
    eventually("the filter is started anew", async || {
        Ok(probe::get(http, HOST, "/").await?.status == 200)
    })
    .await
}

/// A server of wasm modules.
struct Modules {
    addr: SocketAddr,
    serves: watch::Sender<Option<Vec<u8>>>,
    accepting: JoinHandle<()>,
}

impl Drop for Modules {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Modules {
    /// Answers 404 until it has something.
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let (serves, served) = watch::channel(None::<Vec<u8>>);
        let accepting = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let body = served.borrow().clone();
                let status = if body.is_some() {
                    "200 OK"
                } else {
                    "404 Not Found"
                };
                let body = body.unwrap_or_default();
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                // A client that goes away is its own affair.
                _ = stream.read(&mut [0; 4096]).await;
                _ = stream.write_all(head.as_bytes()).await;
                _ = stream.write_all(&body).await;
            }
        });
        Ok(Self {
            addr,
            serves,
            accepting,
        })
    }

    /// The code, to be fetched; what comes must have this digest.
    fn code(&self, sha256: &str) -> Value {
        json!({"remote": {
            "http_uri": {
                "uri": format!("http://{}/egress-filter.wasm", self.addr),
                "cluster": "modules",
                "timeout": "5s",
            },
            "sha256": sha256,
            "retry_policy": {"num_retries": 1},
        }})
    }
}

/// [`Watched`] with a server of modules.
async fn fetching() -> Result<(Watched, Modules, Vec<u8>, String)> {
    let mut watched = Watched::new().await?;
    let modules = Modules::start().await?;
    watched.add_cluster(static_cluster("modules", modules.addr))?;
    let bytes = std::fs::read(module(&watched)?)?;
    let sha256 = hex(&bytes);
    Ok((watched, modules, bytes, sha256))
}

/// Ends a load; all of it must have been answered by the site, and be so a little longer.
async fn assert_all_answered(load: Load, watched: &Watched) -> Result<()> {
    load.goes_on().await?;
    let answered = load.end().await?;
    ensure!(answered > 20, "too few requests: {answered}");
    for seen in watched.site.take_seen() {
        let name = [HOST, ADDED]
            .into_iter()
            .find(|name| seen.sni.as_deref() == Some(name));
        let name = name.with_context(|| seen.to_string())?;
        let host = format!("{name}:{}", watched.site.tls_addr().port());
        assert_originated(&seen, &host, name);
    }
    assert_eq!(watched.site.counts(Listener::Tls).failed_handshakes, []);
    Ok(())
}

#[test]
fn each_row_has_its_test_and_each_test_its_row() {
    STATES.assert_are_tests(10);
}

#[tokio::test]
async fn no_filter_has_come_yet() -> Result<()> {
    let mut watched = Watched::new().await?;
    // Somebody who takes connections and says nothing.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    watched.ask(silent.local_addr()?, FETCH_TIMEOUT)?;
    // A port that is free now: what Envoy takes is known only when it is live.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await?
        .local_addr()?;
    let pointer = "/static_resources/listeners/0/address/socket_address/port_value";
    let port = watched.bootstrap.pointer_mut(pointer);
    *port.context("no port")? = json!(free.port());
    let looking = tokio::spawn(async move {
        while TcpStream::connect(free).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Instant::now()
    });
    let begun = Instant::now();
    let envoy = watched.start().await?;
    // Nobody is let in for as long as Envoy waits for the filter.
    let waited = looking.await?.duration_since(begun);
    ensure!(waited >= FETCH_TIMEOUT, "let in after {waited:?}");
    holds(&STATES.fact("no filter has come yet")?, &watched, &envoy).await
}

#[tokio::test]
async fn the_first_filter_is_refused() -> Result<()> {
    let mut watched = Watched::new().await?;
    let mut skewed = watched.plugin(&[]).await?;
    *skewed.get_mut("digest").context("no digest")? = json!("0123456789abcdef");
    watched.write(&skewed)?;
    let envoy = watched.start().await?;
    passes("the first filter is refused", &mut watched, &envoy).await
}

#[tokio::test]
async fn the_module_is_not_there() -> Result<()> {
    keeps_its_module("the module is not there", |watched| {
        Ok(local(&watched.trusted.path("none.wasm")))
    })
    .await
}

#[tokio::test]
async fn the_module_is_broken() -> Result<()> {
    keeps_its_module("the module is broken", |watched| {
        let bytes = std::fs::read(module(watched)?)?;
        let half = watched.trusted.path("half.wasm");
        std::fs::write(&half, bytes.get(..bytes.len() / 2).context("no half")?)?;
        Ok(local(&half))
    })
    .await
}

#[tokio::test]
async fn the_module_crashes_as_it_starts() -> Result<()> {
    keeps_its_module("the module crashes as it starts", |watched| {
        let path = watched.trusted.path("crashing.wasm");
        crashing::at_its_start(&module(watched)?, &path)?;
        Ok(local(&path))
    })
    .await
}

#[tokio::test]
async fn the_module_cannot_be_fetched() -> Result<()> {
    let (watched, modules, _, sha256) = fetching().await?;
    does_not_fetch("the module cannot be fetched", watched, &modules, &sha256).await
}

#[tokio::test]
async fn the_fetched_module_has_another_digest() -> Result<()> {
    let (watched, modules, bytes, _) = fetching().await?;
    modules.serves.send_replace(Some(bytes));
    let state = "the fetched module has another digest";
    does_not_fetch(state, watched, &modules, &hex(b"another")).await
}

/// Proves that rendered routes lead to the host that was asked for by TLS, and to nothing else, when no filter is asked.
async fn goes_by_tls(watched: &Watched, envoy: &EnvoyProcess) -> Result<()> {
    let http = envoy.listener("outbound_80")?;
    let port = watched.site.tls_addr().port();
    let host = format!("{HOST}:{port}");
    let answer = probe::get(http, &host, "/").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_originated(&only(&watched.site)?, &host, HOST);
    // The certificate is not for this one.
    let answer = probe::get(http, &format!("other.example:{port}"), "/").await?;
    assert_eq!(answer.status, 503, "{}", answer.body);
    ensure!(watched.site.seen().is_empty(), "{:?}", watched.site.seen());
    assert_eq!(watched.site.counts(Listener::Plain).connections, 0);
    Ok(())
}

#[tokio::test]
async fn an_update_is_being_fetched() -> Result<()> {
    for rendered in [true, false] {
        let (mut watched, modules, _, sha256) = fetching().await?;
        if !rendered {
            watched.lose_default()?;
        }
        let envoy = works(&mut watched).await?;
        let wasm = with_code(&watched, modules.code(&sha256)).await?;
        watched.write_filter(&wasm)?;
        let fact = STATES.fact("an update is being fetched")?;
        fact.is_told(&envoy).await?;
        // The worker hears of it a little later.
        let http = envoy.listener("outbound_80")?;
        eventually("the update", async || {
            Ok(probe::get(http, HOST, "/").await?.status != 200)
        })
        .await?;
        watched.site.take_seen();
        if rendered {
            goes_by_tls(&watched, &envoy).await?;
        } else {
            holds(&fact, &watched, &envoy).await?;
        }
        heals(&mut watched, &envoy).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_update_is_being_fetched_under_nack_on_code_cache_miss() -> Result<()> {
    let (mut watched, modules, _, sha256) = fetching().await?;
    let envoy = works(&mut watched).await?;
    let mut wasm = with_code(&watched, modules.code(&sha256)).await?;
    let vm = wasm
        .pointer_mut("/config/vm_config")
        .and_then(Value::as_object_mut);
    vm.context("no VM")?
        .insert("nack_on_code_cache_miss".to_owned(), json!(true));
    watched.write_filter(&wasm)?;
    passes(
        "an update is being fetched under nack on code cache miss",
        &mut watched,
        &envoy,
    )
    .await
}

#[tokio::test]
async fn an_update_that_the_filter_refuses() -> Result<()> {
    let (mut watched, envoy) = working().await?;
    let load = Load::start(envoy.listener("outbound_80")?, 1);
    let mut skewed = watched.plugin(&[ADDED]).await?;
    *skewed.get_mut("digest").context("no digest")? = json!("0123456789abcdef");
    watched.write(&skewed)?;
    let fact = STATES.fact("an update that the filter refuses")?;
    fact.is_told(&envoy).await?;
    assert_all_answered(load, &watched).await?;
    holds(&fact, &watched, &envoy).await?;
    heals(&mut watched, &envoy).await
}

#[tokio::test]
async fn a_good_update() -> Result<()> {
    let (mut watched, envoy) = working().await?;
    let http = envoy.listener("outbound_80")?;
    let fact = STATES.fact("a good update")?;
    assert_eq!(fact.gets, "200 throughout");
    let [reloaded] = fact.tells.as_slice() else {
        bail!("one counter: {:?}", fact.tells);
    };
    let before = counter(&envoy, reloaded).await?;
    let load = Load::start(http, 1);
    // Other rules, then another module.
    heals_under(&mut watched, http).await?;
    let path = watched.trusted.path("another.wasm");
    crashing::at_a_request(&module(&watched)?, &path)?;
    let wasm = with_code(&watched, local(&path)).await?;
    watched.write_filter(&wasm)?;
    eventually("the previous rules", async || {
        Ok(probe::get(http, ADDED, "/").await?.status == 502)
    })
    .await?;
    assert_eq!(counter(&envoy, reloaded).await?, before + 2);
    assert_all_answered(load, &watched).await?;
    assert_eq!(watched.site.counts(Listener::Plain).connections, 0);
    Ok(())
}

#[tokio::test]
async fn an_update_that_takes_the_filter_away() -> Result<()> {
    let (mut watched, envoy) = working().await?;
    watched.write_resources(&json!([]))?;
    passes("an update that takes the filter away", &mut watched, &envoy).await
}

fn backoff() -> Value {
    json!({"backoff": {"base_interval": BACKOFF}})
}

/// The filter that crashes at a request, under a failure policy.
async fn crashable(watched: &mut Watched, policy: &str) -> Result<EnvoyProcess> {
    let path = watched.trusted.path("crashable.wasm");
    crashing::at_a_request(&module(watched)?, &path)?;
    let mut wasm = with_code(watched, local(&path)).await?;
    let place = wasm.pointer_mut("/config/failure_policy");
    *place.context("no failure policy")? = json!(policy);
    let config = wasm.pointer_mut("/config").and_then(Value::as_object_mut);
    let config = config.context("no configuration")?;
    config.insert("reload_config".to_owned(), backoff());
    watched.write_filter(&wasm)?;
    let envoy = watched.start().await?;
    watched.assert_originates(&envoy).await?;
    Ok(envoy)
}

/// Makes the filter crash; the request at which it does gets what the page says.
async fn crash(watched: &Watched, envoy: &EnvoyProcess) -> Result<()> {
    let http = envoy.listener("outbound_80")?;
    let before = watched.site.counts(Listener::Tls).connections;
    let answer = probe::get_with(http, HOST, "/", &[(CRASH, "now")]).await?;
    assert_eq!(answer.status, CRASHED, "{}", answer.body);
    assert_eq!(watched.site.counts(Listener::Tls).connections, before);
    ensure!(watched.site.seen().is_empty(), "{:?}", watched.site.seen());
    Ok(())
}

#[tokio::test]
async fn the_filter_has_crashed() -> Result<()> {
    let mut watched = Watched::new().await?;
    let envoy = crashable(&mut watched, "FAIL_RELOAD").await?;
    let http = envoy.listener("outbound_80")?;
    crash(&watched, &envoy).await?;
    recovers(http).await?;
    watched.site.take_seen();
    // It was started just now, so it stays down for a while.
    crash(&watched, &envoy).await?;
    holds(&STATES.fact("the filter has crashed")?, &watched, &envoy).await?;
    recovers(http).await?;
    watched.site.take_seen();
    watched.assert_originates(&envoy).await
}

#[tokio::test]
async fn the_filter_has_crashed_under_fail_closed() -> Result<()> {
    let mut watched = Watched::new().await?;
    let envoy = crashable(&mut watched, "FAIL_CLOSED").await?;
    crash(&watched, &envoy).await?;
    let fact = STATES.fact("the filter has crashed under fail closed")?;
    holds(&fact, &watched, &envoy).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    holds(&fact, &watched, &envoy).await?;
    heals(&mut watched, &envoy).await
}

#[tokio::test]
async fn the_filter_has_crashed_under_fail_open() -> Result<()> {
    for rendered in [true, false] {
        let mut watched = Watched::new().await?;
        if !rendered {
            watched.lose_default()?;
        }
        let envoy = crashable(&mut watched, "FAIL_OPEN").await?;
        crash(&watched, &envoy).await?;
        let fact = STATES.fact("the filter has crashed under fail open")?;
        if rendered {
            goes_by_tls(&watched, &envoy).await?;
        } else {
            holds(&fact, &watched, &envoy).await?;
        }
        heals(&mut watched, &envoy).await?;
    }
    Ok(())
}

/// Sends a word to a TCP service, and returns what comes back before the end.
async fn repeated(to: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    let exchange = async {
        // A connection that is reset has ended too.
        let mut answer = Vec::new();
        if stream.write_all(b"word").await.is_ok() && stream.shutdown().await.is_ok() {
            _ = stream.read_to_end(&mut answer).await;
        }
        answer
    };
    let answer = timeout(SOON, exchange).await.context("it was left open")?;
    Ok(String::from_utf8(answer)?)
}

#[tokio::test]
async fn a_tcp_connection_after_a_crash() -> Result<()> {
    let trusted = Trusted::new()?;
    let (site, dns) = (trusted.site([HOST]).await?, dns().await?);
    let certificate = trusted.ca.issue(&Leaf::for_names([CACHE]))?;
    let cache = TlsServer::start(&certificate, TlsServerConfig::default()).await?;
    let port = cache.addr().port();
    let ports = format!("[{{number: 6379, name: p, protocol: TCP, targetPort: {port}}}]");
    let rules = originated(HOST, site.tls_addr().port())
        + &entry_with(CACHE, &format!("resolution: DNS, ports: {ports}"))
        + &rule(CACHE, SIMPLE);
    let resolver = dns.addr().to_string();
    let args = ["--resolver", &resolver, "--port", "6379=0"];
    let bootstrap = rendered(&trusted, &rules, &args).await?.to_string();
    let module = binary()?.with_file_name("egress-filter.wasm");
    let crashable = trusted.path("crashable.wasm");
    crashing::at_a_request(&module, &crashable)?;
    let [from, to] = [&module, &crashable].map(|path| format!("{path:?}"));
    ensure!(bootstrap.matches(&from).count() > 1, "{bootstrap}");
    let policy = "\"failure_policy\":";
    let reload = format!("\"reload_config\":{},{policy}", backoff());
    let bootstrap = bootstrap.replace(&from, &to).replace(policy, &reload);
    let envoy = EnvoyProcess::start(&envoy::binary()?, &bootstrap, ["--concurrency", "1"]).await?;
    let (http, tcp) = (
        envoy.listener("outbound_80")?,
        envoy.listener("outbound_6379")?,
    );
    assert_eq!(repeated(tcp).await?, "wordend");
    let is_up = async || Ok(repeated(tcp).await? == "wordend");

    let crash = async || probe::get_with(http, HOST, "/", &[(CRASH, "now")]).await;
    assert_eq!(crash().await?.status, CRASHED);
    // Both have to find the new virtual machine: who still has the old one cannot make it crash.
    eventually("TCP's filter is started anew", is_up).await?;
    recovers(http).await?;
    site.take_seen();
    let heard = cache.heard();
    // One virtual machine serves both, and it was started just now.
    assert_eq!(crash().await?.status, CRASHED);
    let fact = STATES.fact("a tcp connection after a crash")?;
    assert_eq!(fact.gets, "closed at once");
    fact.is_told(&envoy).await?;
    assert_eq!(repeated(tcp).await?, "");
    assert_eq!(cache.heard(), heard);
    eventually("TCP's filter is started anew again", is_up).await?;
    assert!(
        cache
            .heard()
            .iter()
            .all(|heard| heard.sni.as_deref() == Some(CACHE))
    );
    ensure!(site.seen().is_empty(), "{:?}", site.seen());
    Ok(())
}
