//! Rules that change while Envoy runs: applied live, without a failed request, and only when they are right.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use egress_integration::{
    egressctl::{Builder, Egressctl, Running},
    pki::Leaf,
    probe,
    stand_in::{Clients, Listener, StandIn, StandInConfig},
};

use common::{
    HOST, LogLine, SIMPLE, SOON, Trusted, assert_originated, by_credential, crowd, entry,
    entry_with, eventually, only, originated, route, rule,
};

/// A file of rules that are put in place as careful editors do it.
struct Rules(PathBuf);

impl Rules {
    fn new(trusted: &Trusted, text: &str) -> Result<Self> {
        Ok(Self(trusted.file("watched.yaml", text)?))
    }

    fn write(&self, text: &str) -> Result<()> {
        let new = self.0.with_extension("new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, &self.0)?)
    }
}

fn watching(trusted: &Trusted, rules: &Path) -> Builder {
    Egressctl::builder()
        .rules(rules)
        .env("SSL_CERT_FILE", trusted.bundle())
        .port(80, 0)
        .port(443, 0)
        .port(8080, 0)
}

fn reloads(proxy: &Running) -> Vec<String> {
    let mut lines = proxy.stdout();
    lines.retain(|line| line.starts_with("reloaded"));
    lines
}

/// Waits until rules have been applied this many times; returns the last line.
async fn reloaded(proxy: &Running, times: usize) -> Result<String> {
    let done = eventually("rules are applied", async || {
        Ok(reloads(proxy).len() >= times)
    });
    done.await.with_context(|| proxy.stderr().join("\n"))?;
    let lines = reloads(proxy);
    ensure!(lines.len() == times, "{lines:#?}");
    lines.into_iter().next_back().context("no line")
}

/// The address of a service port in a line.
fn address(line: &str, port: u16) -> Result<SocketAddr> {
    let prefix = format!("{port}=");
    let mut words = line.split(' ');
    let word = words.find_map(|word| word.strip_prefix(&prefix));
    Ok(word.with_context(|| line.to_owned())?.parse()?)
}

async fn stat(proxy: &Running, name: &str) -> Result<u64> {
    let answer = proxy
        .admin_get(&format!("/stats?format=json&filter=^{name}$"))
        .await?;
    let body: Value = serde_json::from_str(&answer.body)?;
    let value = body.pointer("/stats/0/value").and_then(Value::as_u64);
    value.with_context(|| format!("no {name}: {}", answer.body))
}

/// The page's rules of the second step and of the first, which are the same but for the DestinationRule and the port
/// that goes with it.
#[tokio::test]
async fn without_the_destination_rule_the_page_is_back_at_its_first_step_live() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let page = fs::read_to_string(common::scenario("cnn-origination.yaml"))?;
    let first = fs::read_to_string(common::scenario("cnn-access.yaml"))?;
    let rules = Rules::new(&trusted, &page)?;
    let proxy = watching(&trusted, &rules.0)
        .connect_to(&route(HOST, 80, site.plain_addr()))
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;
    for round in 0..3 {
        let answer = probe::get(http, HOST, "/politics").await?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_originated(&only(&site)?, HOST, HOST);

        rules.write(&first)?;
        let line = reloaded(&proxy, 2 * round + 1).await?;
        assert_eq!(address(&line, 80)?, http, "{line}");
        assert_eq!(address(&line, 443)?, proxy.listener(443)?, "{line}");
        let answer = probe::get(http, HOST, "/politics").await?;
        assert_eq!(answer.status, 301, "{}", answer.body);
        assert_eq!(only(&site)?.listener, Listener::Plain);

        rules.write(&page)?;
        reloaded(&proxy, 2 * round + 2).await?;
    }
    assert!(proxy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn files_come_and_go_in_a_folder_and_are_written_in_place() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let folder = trusted.path("rules");
    fs::create_dir(&folder)?;
    fs::write(folder.join("entry.yaml"), entry(HOST, 80))?;
    let proxy = watching(&trusted, &folder)
        .connect_to(&route(HOST, 80, site.plain_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;
    // Nobody asks for TLS yet.
    assert_eq!(probe::get(http, HOST, "/").await?.status, 301);
    fs::write(folder.join("rule.yaml"), rule(HOST, SIMPLE))?;
    reloaded(&proxy, 1).await?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 503);
    fs::write(
        folder.join("rule.yaml"),
        rule(HOST, "{tls: {mode: DISABLE}}"),
    )?;
    reloaded(&proxy, 2).await?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 301);
    fs::write(folder.join("rule.yaml"), rule(HOST, SIMPLE))?;
    reloaded(&proxy, 3).await?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 503);
    fs::remove_file(folder.join("rule.yaml"))?;
    reloaded(&proxy, 4).await?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 301);
    Ok(())
}

#[tokio::test]
async fn a_mistake_is_told_with_its_line_and_the_rules_before_it_stay() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST, "money.cnn.com"]).await?;
    let port = site.tls_addr().port();
    let rules = Rules::new(&trusted, &originated(HOST, port))?;
    let dns = common::dns().await?;
    let proxy = watching(&trusted, &rules.0)
        .arg("--resolver")
        .arg(dns.addr().to_string())
        .start()
        .await?;
    let http = proxy.listener(80)?;

    let wrong =
        originated(HOST, port) + &originated("money.cnn.com", port).replace("SIMPLE", "SIMPEL");
    rules.write(&wrong)?;
    let line = wrong.lines().position(|line| line.contains("SIMPEL"));
    let place = format!(
        "--> {}:{}:",
        rules.0.display(),
        line.context("no line")? + 1
    );
    proxy
        .wait_for_stderr(|line| line.contains(&place), SOON)
        .await?;
    proxy
        .wait_for_stderr(|line| line == "the rules before them stay in use", SOON)
        .await?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 200);
    assert_eq!(probe::get(http, "money.cnn.com", "/").await?.status, 502);
    assert_eq!(reloads(&proxy), [""; 0]);

    fs::remove_file(&rules.0)?;
    proxy
        .wait_for_stderr(|line| line.contains("cannot read `"), SOON)
        .await?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 200);

    rules.write(&(originated(HOST, port) + &originated("money.cnn.com", port)))?;
    reloaded(&proxy, 1).await?;
    assert_eq!(probe::get(http, "money.cnn.com", "/").await?.status, 200);
    assert_eq!(probe::get(http, HOST, "/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn what_is_no_file_is_refused_at_once_and_the_rules_before_it_stay() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST, "money.cnn.com"]).await?;
    let rules = Rules::new(&trusted, &originated(HOST, 443))?;
    let proxy = watching(&trusted, &rules.0)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route("money.cnn.com", 443, site.tls_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;
    let other = rules.0.with_extension("other");
    for (what, said) in [
        ("fifo", "is a FIFO"),
        ("device", "is a device"),
        ("large", "has more than 64 MiB"),
    ] {
        match what {
            "fifo" => nix::unistd::mkfifo(&other, nix::sys::stat::Mode::S_IRUSR)?,
            "device" => symlink("/dev/zero", &other)?,
            _ => fs::File::create(&other)?.set_len(1 << 30)?,
        }
        fs::rename(&other, &rules.0)?;
        proxy
            .wait_for_stderr(|line| line.contains(said), SOON)
            .await?;
        assert_eq!(probe::get(http, HOST, "/").await?.status, 200, "{what}");
        assert_originated(&only(&site)?, HOST, HOST);
    }
    let kept = proxy.stderr();
    let kept = kept
        .iter()
        .filter(|line| *line == "the rules before them stay in use");
    assert_eq!(kept.count(), 3);
    assert_eq!(reloads(&proxy), [""; 0]);

    rules.write(&originated("money.cnn.com", 443))?;
    reloaded(&proxy, 1).await?;
    assert_eq!(probe::get(http, "money.cnn.com", "/").await?.status, 200);
    assert_originated(&only(&site)?, "money.cnn.com", "money.cnn.com");
    assert!(proxy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_port_comes_and_goes_and_one_in_use_is_refused() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let spec = |ports: &[u16]| {
        let ports: Vec<String> = ports
            .iter()
            .map(|port| {
                format!("{{number: {port}, name: http-{port}, protocol: HTTP, targetPort: 443}}")
            })
            .collect();
        let spec = format!("resolution: DNS, ports: [{}]", ports.join(", "));
        entry_with(HOST, &spec) + &rule(HOST, SIMPLE)
    };
    let rules = Rules::new(&trusted, &spec(&[80]))?;
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = watching(&trusted, &rules.0)
        .port(9090, taken.local_addr()?.port())
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;

    rules.write(&spec(&[80, 8080]))?;
    let line = reloaded(&proxy, 1).await?;
    ensure!(line.contains(" added=8080 digest="), "{line}");
    let new = address(&line, 8080)?;
    assert_eq!(
        probe::get(new, &format!("{HOST}:8080"), "/").await?.status,
        200
    );
    assert_eq!(probe::get(http, HOST, "/").await?.status, 200);

    rules.write(&spec(&[80, 8080, 9090]))?;
    proxy
        .wait_for_stderr(
            |line| line.contains("for service port 9090: something else listens there"),
            SOON,
        )
        .await?;
    assert_eq!(
        probe::get(new, &format!("{HOST}:8080"), "/").await?.status,
        200
    );

    rules.write(&spec(&[80]))?;
    let line = reloaded(&proxy, 2).await?;
    ensure!(line.contains(" removed=8080 digest="), "{line}");
    eventually("nobody listens", async || {
        Ok(TcpStream::connect(new).await.is_err())
    })
    .await?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 200);

    rules.write(&spec(&[80, 8080]))?;
    let new = address(&reloaded(&proxy, 3).await?, 8080)?;
    assert_eq!(
        probe::get(new, &format!("{HOST}:8080"), "/").await?.status,
        200
    );
    Ok(())
}

#[tokio::test]
async fn rules_that_a_taken_port_refused_are_applied_once_it_is_free() -> Result<()> {
    let trusted = Trusted::new()?;
    let spec = |ports: &str| entry_with(HOST, &format!("resolution: DNS, ports: [{ports}]"));
    let port = |port: u16| format!("{{number: {port}, name: http-{port}, protocol: HTTP}}");
    let rules = Rules::new(&trusted, &spec(&port(80)))?;
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = watching(&trusted, &rules.0)
        .port(9090, taken.local_addr()?.port())
        .start()
        .await?;
    rules.write(&spec(&format!("{}, {}", port(80), port(9090))))?;
    proxy
        .wait_for_stderr(|line| line.contains("something else listens there"), SOON)
        .await?;
    drop(taken);
    reloaded(&proxy, 1).await?;
    let told = proxy.stderr();
    let told = told
        .iter()
        .filter(|line| line.contains("something else listens there"));
    assert_eq!(told.count(), 1);
    assert!(proxy.stop().await?.success());
    Ok(())
}

/// What a process watches files with.
fn inotify_instances(pid: &str) -> Result<usize> {
    let links = fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(links
        .filter(|link| link.to_string_lossy() == "anon_inode:inotify")
        .count())
}

/// A full disk cannot stop what needs no disk.
#[tokio::test]
async fn a_reload_writes_no_file_and_a_run_has_one_inotify_instance() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST, "money.cnn.com"]).await?;
    let rules = Rules::new(&trusted, &originated(HOST, 443))?;
    let temporary = trusted.path("tmp");
    fs::create_dir(&temporary)?;
    let proxy = watching(&trusted, &rules.0)
        .env("TMPDIR", &temporary)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route("money.cnn.com", 443, site.tls_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;
    let files = || -> Result<Vec<(PathBuf, std::time::SystemTime, u64)>> {
        let mut found = Vec::new();
        for run in fs::read_dir(&temporary)? {
            for file in fs::read_dir(run?.path())? {
                let (path, meta) = (
                    file.as_ref().map(fs::DirEntry::path),
                    file.as_ref().map(fs::DirEntry::metadata),
                );
                let (Ok(path), Ok(meta)) = (path, meta) else {
                    continue;
                };
                let meta = meta?;
                found.push((path, meta.modified()?, meta.len()));
            }
        }
        found.sort();
        Ok(found)
    };
    let before = files()?;
    ensure!(!before.is_empty());
    rules.write(&(originated(HOST, 443) + &originated("money.cnn.com", 443)))?;
    reloaded(&proxy, 1).await?;
    // Another listener as well.
    rules.write(
        &(originated("money.cnn.com", 443)
            + &entry(HOST, 80).replace("number: 80", "number: 8080")),
    )?;
    reloaded(&proxy, 2).await?;
    assert_eq!(probe::get(http, "money.cnn.com", "/").await?.status, 200);
    assert_eq!(files()?, before);

    let ours = proxy.pid().to_string();
    let children = fs::read_to_string(format!("/proc/{ours}/task/{ours}/children"))?;
    let mut instances = inotify_instances(&ours)?;
    let mut envoys = 0;
    for child in children.split_whitespace() {
        envoys += 1;
        instances += inotify_instances(child)?;
    }
    assert_eq!((envoys, instances), (1, 1));
    assert!(proxy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn rules_that_come_while_envoy_hangs_are_told_of_and_applied_when_it_answers() -> Result<()> {
    const MONEY: &str = "money.cnn.com";
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST, MONEY]).await?;
    let rules = Rules::new(&trusted, &originated(HOST, 443))?;
    let proxy = watching(&trusted, &rules.0)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route(MONEY, 443, site.tls_addr()))
        .start()
        .await?;
    let ours = proxy.pid().to_string();
    let children = fs::read_to_string(format!("/proc/{ours}/task/{ours}/children"))?;
    let envoy = nix::unistd::Pid::from_raw(children.trim().parse()?);
    nix::sys::signal::kill(envoy, nix::sys::signal::Signal::SIGSTOP)?;
    let begun = std::time::Instant::now();
    rules.write(&(originated(HOST, 443) + &originated(MONEY, 443)))?;
    let told = proxy
        .wait_for_stderr(
            |line| line.starts_with("error: Envoy does not answer"),
            SOON,
        )
        .await;
    let took = begun.elapsed();
    nix::sys::signal::kill(envoy, nix::sys::signal::Signal::SIGCONT)?;
    told?;
    ensure!(took < std::time::Duration::from_secs(15), "{took:?}");
    // Nobody touches the file again.
    reloaded(&proxy, 1).await?;
    let http = proxy.listener(80)?;
    for host in [HOST, MONEY] {
        assert_eq!(probe::get(http, host, "/").await?.status, 200, "{host}");
    }
    assert!(proxy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn what_envoy_refuses_is_told_and_the_rules_before_it_stay() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let good = originated(HOST, 443);
    let rules = Rules::new(&trusted, &good)?;
    let proxy = watching(&trusted, &rules.0)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;
    // Longer than the kernel lets the path of a socket be, which only Envoy looks at.
    let path = format!("unix:///{}", "long".repeat(40));
    let spec = format!(
        "resolution: STATIC, endpoints: [{{address: \"{path}\"}}], \
         ports: [{{number: 80, name: http, protocol: HTTP}}]"
    );
    rules.write(&(good.clone() + &entry_with("long.example", &spec)))?;
    proxy
        .wait_for_stderr(
            |line| {
                line.starts_with("error: Envoy refused the new rules: ")
                    && line.contains("exceeds maximum")
            },
            SOON,
        )
        .await?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 200);
    assert_eq!(probe::get(http, "long.example", "/").await?.status, 502);
    assert_eq!(reloads(&proxy), [""; 0]);

    // A cookie that lives longer than a duration can tell is a listener's matter.
    let policy = "{tls: {mode: SIMPLE}, \
                   loadBalancer: {consistentHash: {httpCookie: {name: x, ttl: 9223372036s}}}}";
    rules.write(&(entry(HOST, 443) + &rule(HOST, policy)))?;
    let said =
        "error: Envoy refused the new rules: Error adding/updating listener(s) outbound_80: ";
    proxy
        .wait_for_stderr(|line| line.starts_with(said), SOON)
        .await?;
    eventually("Envoy is given back what it had", async || {
        Ok(proxy
            .stderr()
            .iter()
            .filter(|line| *line == "the rules before them stay in use")
            .count()
            == 2)
    })
    .await?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 200);

    rules.write(&(good + &originated("money.cnn.com", 443)))?;
    reloaded(&proxy, 1).await?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 200);
    assert_eq!(probe::get(http, "money.cnn.com", "/").await?.status, 503);
    Ok(())
}

#[tokio::test]
async fn a_connection_stays_open_while_hosts_come_and_is_closed_politely_by_a_new_shape()
-> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let rules = Rules::new(&trusted, &originated(HOST, 443))?;
    let proxy = watching(&trusted, &rules.0)
        .connect_to(&route(HOST, 80, site.plain_addr()))
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    let stream = TcpStream::connect(proxy.listener(80)?).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut ask = async |host: &str| -> Result<(u16, bool)> {
        let request = Request::get("/").header("host", host);
        sender.ready().await?;
        let answer = sender
            .send_request(request.body(Empty::<Bytes>::new())?)
            .await?;
        let closes = answer
            .headers()
            .get("connection")
            .is_some_and(|word| word == "close");
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        Ok((status, closes))
    };
    assert_eq!(ask(HOST).await?, (200, false));
    assert_eq!(ask("money.cnn.com").await?, (502, false));
    rules.write(&(originated(HOST, 443) + &originated("money.cnn.com", 443)))?;
    reloaded(&proxy, 1).await?;
    // The same connection, and the new rules: nobody answers for the host, but it may be called.
    assert_eq!(ask(HOST).await?, (200, false));
    assert_eq!(ask("money.cnn.com").await?, (503, false));
    // No TLS at all asks for another default route, and so for another listener.
    rules.write(&entry(HOST, 80))?;
    reloaded(&proxy, 2).await?;
    assert_eq!(ask(HOST).await?, (200, true));
    let answer = probe::get(proxy.listener(80)?, HOST, "/").await?;
    assert_eq!(answer.status, 301);
    Ok(())
}

#[tokio::test]
async fn tls_that_is_passed_through_goes_on_under_the_rules_it_began_with() -> Result<()> {
    for others in [String::new(), crowd(443)] {
        passed_through(&others).await?;
    }
    Ok(())
}

async fn passed_through(others: &str) -> Result<()> {
    let trusted = Trusted::new()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let tls = |hosts: &[&str]| -> String {
        let spec = "resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]";
        let entries: String = hosts.iter().map(|host| entry_with(host, spec)).collect();
        entries + others
    };
    let rules = Rules::new(&trusted, &tls(&[HOST]))?;
    let proxy = watching(&trusted, &rules.0)
        .connect_to(&route(HOST, 443, listener.local_addr()?))
        .start()
        .await?;
    let https = proxy.listener(443)?;
    let mut client = TcpStream::connect(https).await?;
    client.write_all(&client_hello(HOST)).await?;
    let (mut server, _) = listener.accept().await?;
    let mut seen = vec![0; client_hello(HOST).len()];
    server.read_exact(&mut seen).await?;

    // Another chain for the host's TLS, then none.
    for (times, hosts) in [(1, &[HOST, "money.cnn.com"][..]), (2, &["money.cnn.com"])] {
        rules.write(&tls(hosts))?;
        reloaded(&proxy, times).await?;
        for _ in 0..3 {
            client.write_all(b"ping").await?;
            let mut ping = [0; 4];
            server.read_exact(&mut ping).await?;
            server.write_all(&ping).await?;
            client.read_exact(&mut ping).await?;
            assert_eq!(&ping, b"ping");
        }
    }
    let mut late = TcpStream::connect(https).await?;
    late.write_all(&client_hello(HOST)).await?;
    let read = tokio::time::timeout(SOON, late.read(&mut [0; 1])).await?;
    ensure!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    Ok(())
}

/// What a client says first that wants TLS with this server.
fn client_hello(name: &str) -> Vec<u8> {
    let two = |length: usize| u16::try_from(length).unwrap_or_default().to_be_bytes();
    let mut sni = Vec::from(two(name.len() + 3));
    sni.push(0);
    sni.extend(two(name.len()));
    sni.extend(name.as_bytes());
    let mut extensions = vec![0, 0];
    extensions.extend(two(sni.len()));
    extensions.extend(sni);
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    // No session, one cipher suite, no compression.
    hello.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    hello.extend(two(extensions.len()));
    hello.extend(extensions);
    let mut record = vec![22, 3, 1];
    record.extend(two(hello.len() + 4));
    record.extend([1, 0]);
    record.extend(two(hello.len()));
    record.extend(hello);
    record
}

#[tokio::test]
async fn once_means_once() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let rules = Rules::new(&trusted, &originated(HOST, 443))?;
    let proxy = watching(&trusted, &rules.0)
        .arg("--once")
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    let watched = watching(&trusted, &rules.0)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    rules.write(&originated("money.cnn.com", 443))?;
    // The other one shows that there was time enough.
    reloaded(&watched, 1).await?;
    assert_eq!(
        probe::get(watched.listener(80)?, HOST, "/").await?.status,
        502
    );
    assert_eq!(
        probe::get(proxy.listener(80)?, HOST, "/").await?.status,
        200
    );
    assert_eq!(reloads(&proxy), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn the_hangup_signal_applies_at_once_and_even_what_is_the_same() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = Rules::new(&trusted, &originated(HOST, 443))?;
    let proxy = watching(&trusted, &rules.0).start().await?;
    proxy.signal(Signal::SIGHUP)?;
    let line = reloaded(&proxy, 1).await?;
    assert_eq!(address(&line, 80)?, proxy.listener(80)?);
    assert!(proxy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_mounted_config_map_is_followed() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST, "money.cnn.com"]).await?;
    let folder = trusted.path("mounted");
    let version = |name: &str, text: &str| -> Result<()> {
        let inner = folder.join(name);
        fs::create_dir_all(&inner)?;
        fs::write(inner.join("rules.yaml"), text)?;
        symlink(name, folder.join("..new"))?;
        Ok(fs::rename(folder.join("..new"), folder.join("..data"))?)
    };
    version("..1", &originated(HOST, 443))?;
    symlink("..data/rules.yaml", folder.join("rules.yaml"))?;
    for files in [folder.clone(), folder.join("rules.yaml")] {
        let proxy = watching(&trusted, &files)
            .connect_to(&route(HOST, 443, site.tls_addr()))
            .connect_to(&route("money.cnn.com", 443, site.tls_addr()))
            .start()
            .await?;
        let http = proxy.listener(80)?;
        version("..2", &originated("money.cnn.com", 443))?;
        fs::remove_dir_all(folder.join("..1"))?;
        reloaded(&proxy, 1).await?;
        assert_eq!(probe::get(http, "money.cnn.com", "/").await?.status, 200);
        assert_eq!(probe::get(http, HOST, "/").await?.status, 502);
        version("..1", &originated(HOST, 443))?;
        reloaded(&proxy, 2).await?;
        assert_eq!(probe::get(http, HOST, "/").await?.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_among_the_rules_changes_with_them() -> Result<()> {
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let roots = vec![trusted.ca.certificate().clone()];
    let site = StandInConfig::new(certificate).clients(Clients::Required(roots));
    let site = StandIn::start(site).await?;
    let secret = |name: &str| -> Result<String> {
        let client = trusted.ca.issue(&Leaf::client(name))?;
        let text =
            |text: &str| -> String { text.lines().map(|line| format!("    {line}\n")).collect() };
        Ok(format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: mine}}\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}  ca.crt: |\n{}",
            text(client.chain_pem()),
            text(client.key_pem()),
            text(&trusted.ca.pem())
        ))
    };
    // Nothing needs a secret at first.
    let rules = Rules::new(&trusted, &originated(HOST, 443))?;
    let proxy = watching(&trusted, &rules.0)
        .arg("--label")
        .arg("app=sleep")
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 503);
    for (times, name) in [(1, "first"), (2, "second")] {
        rules.write(&(by_credential(HOST, 443, "mine") + &secret(name)?))?;
        reloaded(&proxy, times).await?;
        eventually("the certificate is shown", async || {
            let answer = probe::get(http, HOST, "/").await?;
            ensure!(answer.status == 200, "{}", answer.body);
            let client = site.take_seen().pop().and_then(|seen| seen.client);
            Ok(client.is_some_and(|client| client.common_name == name))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_began_under_the_old_rules_ends_under_them() -> Result<()> {
    const PIECES: usize = 16;
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let server = common::slow(PIECES).await?;
    let plain = entry_with(
        HOST,
        "resolution: DNS, ports: [{number: 80, name: http-port, protocol: HTTP}]",
    );
    let before =
        plain + &rule(HOST, "{tls: {mode: DISABLE}}").replace("name: edition", "name: old");
    let after = originated(HOST, 443);
    // Once only the filter changes, once the listener too: with hosts of both kinds its shape stays.
    for more in [String::new(), originated("steady.example", 443)] {
        let rules = Rules::new(&trusted, &(before.clone() + &more))?;
        let proxy = watching(&trusted, &rules.0)
            .connect_to(&route(HOST, 80, server))
            .connect_to(&route(HOST, 443, site.tls_addr()))
            .start()
            .await?;
        let http = proxy.listener(80)?;
        let request = tokio::spawn(async move { probe::get(http, HOST, "/slow").await });
        // It is on its way when Envoy counts it.
        eventually("the request is at the server", async || {
            Ok(stat(&proxy, "http.outbound_80.downstream_rq_active").await? == 1)
        })
        .await?;
        rules.write(&(after.clone() + &more))?;
        reloaded(&proxy, 1).await?;
        let answer = probe::get(http, HOST, "/new").await?;
        assert_eq!(
            (answer.status, request.is_finished()),
            (200, false),
            "{}",
            answer.body
        );
        let answer = request.await??;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, "piece".repeat(PIECES));
        let log = common::log_of(&proxy, "/slow").await?;
        assert_eq!(log.egress("rule"), "default/old-cnn-com");
        assert_eq!(log.egress("action"), "forward");
        let log = common::log_of(&proxy, "/new").await?;
        assert_eq!(log.egress("rule"), "default/edition-cnn-com");
        assert_eq!(log.egress("action"), "originate");
    }
    Ok(())
}

const STEADY: &str = "steady.example.com";

/// What the clients under load have come to.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    sent: AtomicU64,
    failed: std::sync::Mutex<Vec<String>>,
}

impl Load {
    fn fail(&self, what: String) {
        let failed = self.failed.lock();
        failed.unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// What may be answered: the rules of one host say TLS always, those of the other sometimes.
    fn judge(&self, host: &str, status: u16, body: &[u8]) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        if !(status == 200 || status == 301 && host == HOST) {
            let body = String::from_utf8_lossy(body);
            self.fail(format!("{host}: {status} {body}"));
        }
    }

    /// One connection after another, each used until it is said to be closed.
    async fn keep_alive(&self, http: SocketAddr) -> Result<()> {
        while !self.over.load(Ordering::Relaxed) {
            let stream = TcpStream::connect(http).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let mut driver = JoinSet::new();
            driver.spawn(connection);
            for host in [HOST, STEADY].into_iter().cycle() {
                if self.over.load(Ordering::Relaxed) {
                    break;
                }
                let request = Request::get("/load").header("host", host);
                let answer = sender
                    .send_request(request.body(Empty::<Bytes>::new())?)
                    .await?;
                let status = answer.status().as_u16();
                let closes = answer
                    .headers()
                    .get("connection")
                    .is_some_and(|word| word == "close");
                let body = answer.into_body().collect().await?.to_bytes();
                self.judge(host, status, &body);
                if closes {
                    break;
                }
                sender.ready().await?;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        Ok(())
    }

    async fn anew(&self, http: SocketAddr) -> Result<()> {
        for host in [HOST, STEADY].into_iter().cycle() {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let answer = probe::get(http, host, "/load").await?;
            self.judge(host, answer.status, answer.body.as_bytes());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

/// Rules of a version: their names tell it, and it changes hosts, clusters and ports.
fn version(number: usize) -> String {
    let named = |text: String| {
        text.replace(
            "metadata: {name: ",
            &format!("metadata: {{name: v{number}-"),
        )
    };
    let plain = "{number: 80, name: http-port, protocol: HTTP}";
    let tls = "{number: 80, name: http-port, protocol: HTTP, targetPort: 443}";
    let other = match number % 4 {
        3 => ", {number: 8080, name: http-more, protocol: HTTP, targetPort: 443}",
        _ => "",
    };
    // Without the rule, with the shared cluster, with one of its own that is another each time.
    let toggled = match number % 3 {
        0 => entry_with(HOST, &format!("resolution: DNS, ports: [{plain}]")),
        1 => entry_with(HOST, &format!("resolution: DNS, ports: [{tls}]")) + &rule(HOST, SIMPLE),
        _ => {
            let policy = format!(
                "{{tls: {{mode: SIMPLE}}, connectionPool: {{tcp: {{maxConnections: {}}}}}}}",
                number + 100
            );
            entry_with(HOST, &format!("resolution: DNS, ports: [{tls}]")) + &rule(HOST, &policy)
        }
    };
    let policy = match number % 2 {
        0 => SIMPLE.to_owned(),
        _ => format!(
            "{{tls: {{mode: SIMPLE, sni: {STEADY}}}, connectionPool: {{tcp: {{maxConnections: {}}}}}}}",
            number + 200
        ),
    };
    let steady = entry_with(STEADY, &format!("resolution: DNS, ports: [{tls}{other}]"))
        + &rule(STEADY, &policy);
    let more: String = (0..number % 5)
        .map(|at| originated(&format!("more-{at}.example.com"), 443))
        .collect();
    // The application's own TLS on the same port makes another listener of it.
    let own = match number % 7 {
        3 | 4 => entry_with(
            "own.example.com",
            "resolution: DNS, ports: [{number: 80, name: tls-port, protocol: TLS}]",
        ),
        _ => String::new(),
    };
    named(toggled + &steady + &more + &own)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_rules_change_under_load() -> Result<()> {
    const RELOADS: usize = 24;
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST, STEADY]).await?;
    let rules = Rules::new(&trusted, &version(1))?;
    let proxy = watching(&trusted, &rules.0)
        .arg("--concurrency")
        .arg("2")
        .connect_to(&route(HOST, 80, site.plain_addr()))
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route(STEADY, 443, site.tls_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;
    let load = Arc::new(Load::default());
    let mut clients = JoinSet::new();
    for client in 0..16 {
        let load = load.clone();
        clients.spawn(async move {
            let ended = match client % 2 {
                0 => load.keep_alive(http).await,
                _ => load.anew(http).await,
            };
            if let Err(error) = ended {
                load.fail(format!("client {client}: {error:#}"));
            }
        });
    }
    let mut slowest = Duration::ZERO;
    for number in 2..RELOADS + 2 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let start = Instant::now();
        rules.write(&version(number))?;
        reloaded(&proxy, number - 1).await?;
        slowest = slowest.max(start.elapsed());
        site.take_seen();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    load.over.store(true, Ordering::Relaxed);
    clients.join_all().await;

    let failed = load.failed.lock().unwrap().clone();
    let sent = load.sent.load(Ordering::Relaxed);
    println!(
        "{sent} requests, {} failed, {RELOADS} reloads, the slowest took {slowest:?}",
        failed.len()
    );
    ensure!(
        failed.is_empty(),
        "{failed:#?}\n{}",
        proxy.stderr().join("\n")
    );

    // What was served by which version: the log names the rule or the entry, whose names tell.
    let served = async || -> Result<BTreeMap<usize, u64>> {
        let mut counts = BTreeMap::new();
        for line in proxy.access_log()? {
            let line = LogLine::parse(&line)?;
            let name = line
                .egress("service_entry")
                .strip_prefix("default/v")
                .context("no version")?;
            let number: usize = name.split('-').next().unwrap_or_default().parse()?;
            *counts.entry(number).or_default() += 1;
        }
        Ok(counts)
    };
    eventually("all is logged", async || {
        Ok(served().await?.values().sum::<u64>() == sent)
    })
    .await?;
    let counts = served().await?;
    for (number, count) in &counts {
        println!("version {number}: {count} requests");
    }
    assert_eq!(
        counts.keys().copied().collect::<BTreeSet<_>>(),
        (1..RELOADS + 2).collect()
    );
    Ok(())
}

#[tokio::test]
async fn fifty_reloads_leave_nothing_behind() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let hosts: String = (0..200)
        .map(|at| originated(&format!("h{at}.example.com"), 443))
        .collect();
    // Only the filter changes, as when hosts come and go.
    let text = |number: usize| {
        originated(HOST, 443) + &hosts + &originated(&format!("n{number}.example.com"), 443)
    };
    let rules = Rules::new(&trusted, &text(0))?;
    let proxy = watching(&trusted, &rules.0)
        .arg("--concurrency")
        .arg("1")
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;
    let mut seen = Vec::new();
    for number in 1..=50 {
        rules.write(&text(number))?;
        reloaded(&proxy, number).await?;
        assert_eq!(probe::get(http, HOST, "/").await?.status, 200);
        if number % 10 == 0 {
            let vms = match proxy.filter()? {
                "wasm" => stat(&proxy, "wasm.envoy.wasm.runtime.v8.active").await?,
                _ => 0,
            };
            let memory = stat(&proxy, "server.memory_allocated").await?;
            println!("after {number}: {vms} VMs, {} kB", memory / 1024);
            seen.push((vms, memory));
        }
    }
    let [first, .., last] = seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(first.0, last.0, "{seen:?}");
    ensure!(last.1 < first.1 + (16 << 20), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn one_host_of_a_thousand_is_changed_quickly() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    // Each has a cluster of its own, the dearest kind.
    let hosts: String = (0..1000)
        .map(|at| {
            let host = format!("h{at}.example.com");
            entry(&host, 443)
                + &rule(
                    &host,
                    &format!("{{tls: {{mode: SIMPLE, sni: s{at}.example.com}}}}"),
                )
        })
        .collect();
    let rules = Rules::new(&trusted, &hosts)?;
    // Each name is looked up.
    let dns = common::dns().await?;
    let proxy = watching(&trusted, &rules.0)
        .arg("--resolver")
        .arg(dns.addr().to_string())
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .start()
        .await?;
    let http = proxy.listener(80)?;
    assert_eq!(probe::get(http, HOST, "/").await?.status, 502);
    let start = Instant::now();
    rules.write(
        &hosts
            .replace("h500.example.com", HOST)
            .replace("s500.example.com", HOST),
    )?;
    eventually("the host is reached", async || {
        Ok(probe::get(http, HOST, "/").await?.status == 200)
    })
    .await?;
    println!("one host of a thousand: {:?}", start.elapsed());
    let before = probe::get(http, "h500.example.com", "/").await?;
    assert_eq!(before.status, 502);
    Ok(())
}

#[tokio::test]
async fn no_cluster_takes_the_place_of_one_that_a_decision_still_means() -> Result<()> {
    const SLOW: &str = "slow.example.com";
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    // Asked for names, and never answering: a cluster that waits for it keeps the new rules waiting.
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
    let endpoint = site.tls_addr();
    let own = entry_with(
        HOST,
        &format!(
            "resolution: STATIC, endpoints: [{{address: 127.0.0.1, ports: {{http-port: {}}}}}], \
             ports: [{{number: 80, name: http-port, protocol: HTTP}}]",
            endpoint.port()
        ),
    );
    let secured = own.clone() + &rule(HOST, &format!("{{tls: {{mode: SIMPLE, sni: {HOST}}}}}"));
    let pool = "{connectionPool: {tcp: {maxConnections: 7}}, tls: {mode: SIMPLE}}";
    let waiting = entry(SLOW, 443) + &rule(SLOW, pool);
    let rules = Rules::new(&trusted, &secured)?;
    let proxy = watching(&trusted, &rules.0)
        .arg("--resolver")
        .arg(silent.local_addr()?.to_string())
        .start()
        .await?;
    let listener = proxy.listener(80)?;
    assert_eq!(probe::get(listener, HOST, "/before").await?.status, 200);

    // The rule for TLS goes, and a host comes that nobody finds: until the new rules apply, the old ones do.
    rules.write(&(own + &waiting))?;
    let until = Instant::now() + Duration::from_secs(4);
    let mut asked = 0;
    while Instant::now() < until {
        assert_eq!(probe::get(listener, HOST, "/meanwhile").await?.status, 200);
        asked += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(reloads(&proxy).is_empty(), "it did not wait");
    let warming = stat(&proxy, "cluster_manager.warming_clusters").await?;
    assert_eq!(warming, 1, "the new clusters had not come");
    let seen = site.take_seen();
    assert_eq!(seen.len(), asked + 1);
    for seen in &seen {
        assert_originated(seen, &format!("{HOST}:80"), HOST);
    }
    let counts = site.counts(Listener::Tls);
    ensure!(counts.failed_handshakes.is_empty(), "{counts:?}");
    Ok(())
}

#[tokio::test]
async fn services_with_loopback_addresses_change_too() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let tcp = |target: u16| {
        entry_with(
            HOST,
            &format!(
                "resolution: DNS, ports: [{{number: 6379, name: redis, protocol: REDIS, targetPort: {target}}}]"
            ),
        ) + &rule(HOST, SIMPLE)
    };
    let rules = Rules::new(&trusted, &tcp(6380))?;
    let proxy = Egressctl::builder()
        .rules(&rules.0)
        .env("SSL_CERT_FILE", trusted.bundle())
        .port(6379, 0)
        .arg("--loopback-vips")
        .connect_to(&route(HOST, 6390, site.tls_addr()))
        .start()
        .await?;
    rules.write(&tcp(6390))?;
    reloaded(&proxy, 1).await?;
    let said = proxy.stdout();
    let vip = said
        .iter()
        .rev()
        .find_map(|line| line.strip_prefix(&format!("vip {HOST}:6379=")));
    let vip: SocketAddr = vip.with_context(|| format!("{said:?}"))?.parse()?;
    let mut stream = TcpStream::connect(vip).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: edition.cnn.com\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(only(&site)?.sni.as_deref(), Some(HOST));
    Ok(())
}

/// A disk of its own, as small as a run can do with.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let (kind, size) = (Some("tmpfs"), Some("size=4m"));
        nix::mount::mount(kind, &at, kind, nix::mount::MsFlags::empty(), size)
            .context("cannot mount a tmpfs, which takes root")?;
        Ok(SmallDisk(at))
    }

    /// Writes until there is no room.
    fn fill(&self) -> Result<()> {
        let full = fs::write(self.0.join("fill"), vec![0; 8 << 20]);
        ensure!(full.is_err(), "there is room left");
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("fill"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_holds_up_a_start_that_says_so_and_no_reload() -> Result<()> {
    const MONEY: &str = "money.cnn.com";
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST, MONEY]).await?;
    let rules = Rules::new(&trusted, &originated(HOST, 443))?;
    let disk = SmallDisk::mount(trusted.path("small"))?;
    disk.fill()?;
    let builder = watching(&trusted, &rules.0)
        .env("TMPDIR", &disk.0)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route(MONEY, 443, site.tls_addr()));
    let starting = tokio::spawn(builder.start());
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    ensure!(!starting.is_finished(), "it started or ended");
    disk.empty()?;
    let proxy = starting.await??;
    let told = |line: &String| line.starts_with("warning: no room in `");
    ensure!(proxy.stderr().iter().any(told), "{:?}", proxy.stderr());

    disk.fill()?;
    rules.write(&(originated(HOST, 443) + &originated(MONEY, 443)))?;
    reloaded(&proxy, 1).await?;
    let answer = probe::get(proxy.listener(80)?, MONEY, "/").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(proxy.stop().await?.success());
    Ok(())
}
