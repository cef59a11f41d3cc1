//! Runs that end, and requests that do not end with them.

mod common;

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use egress_integration::{
    egressctl::{Builder, Egressctl, EndedEarly, Running},
    probe::{self, Answer},
};

use common::{
    HOST, SOON, Trusted, entry_with, eventually, load::Load, log_of, originated, route, rule,
};

/// How many pieces a slow answer has: four seconds of them.
const PIECES: usize = 16;

/// Rules that let a host be reached in plaintext.
fn plain() -> String {
    let spec = "resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]";
    entry_with(HOST, spec) + &rule(HOST, "{tls: {mode: DISABLE}}")
}

/// A run whose host takes this many pieces of time for an answer.
async fn slowly(trusted: &Trusted, pieces: usize, drain: &str) -> Result<Builder> {
    let server = common::slow(pieces).await?;
    let builder = trusted.egressctl(&plain()).port(80, 0);
    Ok(builder
        .connect_to(&route(HOST, 80, server))
        .arg(format!("--drain={drain}")))
}

async fn stat(proxy: &Running, name: &str) -> Result<u64> {
    let stats = proxy.admin_get(&format!("/stats?filter=^{name}$")).await?;
    let value = stats.body.rsplit_once(": ").map(|(_, value)| value.trim());
    Ok(value.map_or(Ok(0), str::parse)?)
}

/// Asks for a slow answer, and waits until the request is at the server.
async fn in_flight(proxy: &Running) -> Result<JoinHandle<Result<Answer>>> {
    let http = proxy.listener(80)?;
    let request = tokio::spawn(async move { probe::get(http, HOST, "/slow").await });
    eventually("the request is at the server", async || {
        Ok(stat(proxy, "http.outbound_80.downstream_rq_active").await? == 1)
    })
    .await?;
    Ok(request)
}

async fn told(proxy: &Running, text: &str) -> Result<String> {
    proxy
        .wait_for_stderr(|line| line.contains(text), SOON)
        .await
}

async fn draining(proxy: &Running) -> Result<()> {
    proxy.signal(Signal::SIGTERM)?;
    told(proxy, "draining: ").await?;
    Ok(())
}

#[tokio::test]
async fn requests_in_flight_finish_after_the_signal_to_end() -> Result<()> {
    let trusted = Trusted::new()?;
    let proxy = slowly(&trusted, PIECES, "0s,60s").await?.start().await?;
    let request = in_flight(&proxy).await?;
    draining(&proxy).await?;
    eventually("health checks fail", async || {
        Ok(proxy.admin_get("/ready").await?.status == 503)
    })
    .await?;
    ensure!(
        !request.is_finished(),
        "the answer came too early for this test"
    );
    // Whoever still comes is served, and told to come no more.
    let late = probe::raw(
        proxy.listener(80)?,
        b"GET / HTTP/1.1\r\nhost: unknown.example\r\n\r\n",
        SOON,
    );
    let late = String::from_utf8(late.await?)?.to_lowercase();
    ensure!(late.starts_with("http/1.1 502"), "{late}");
    ensure!(late.contains("connection: close"), "{late}");
    let answer = request.await??;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, "piece".repeat(PIECES));
    assert!(proxy.ended().await?.success());
    Ok(())
}

#[tokio::test]
async fn all_is_as_before_but_health_until_the_delay_is_over() -> Result<()> {
    let trusted = Trusted::new()?;
    let proxy = slowly(&trusted, 1, "1h,1s").await?.start().await?;
    draining(&proxy).await?;
    told(&proxy, "draining: in 1h ").await?;
    eventually("health checks fail", async || {
        Ok(proxy.admin_get("/ready").await?.status == 503)
    })
    .await?;
    let answer = probe::get(proxy.listener(80)?, HOST, "/").await?;
    assert_eq!(answer.status, 200);
    let state = proxy.admin_get("/server_info").await?;
    ensure!(state.body.contains("\"DRAINING\""), "{}", state.body);
    // A second signal ends it, though an hour would be left.
    proxy.signal(Signal::SIGTERM)?;
    assert!(proxy.ended().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_request_that_does_not_finish_in_time_is_cut_off_and_told_of() -> Result<()> {
    let trusted = Trusted::new()?;
    let proxy = slowly(&trusted, 100_000, "0s,1s").await?.start().await?;
    let request = in_flight(&proxy).await?;
    draining(&proxy).await?;
    let line = told(&proxy, " cut off").await?;
    assert_eq!(
        line,
        "warning: 1 requests or connections are cut off, for they did not finish within 1 s"
    );
    assert!(proxy.ended().await?.success());
    ensure!(request.await?.is_err());
    Ok(())
}

#[tokio::test]
async fn a_second_signal_or_ctrl_c_ends_at_once() -> Result<()> {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let trusted = Trusted::new()?;
        let proxy = slowly(&trusted, 100_000, "0s,1h").await?.start().await?;
        let request = in_flight(&proxy).await?;
        draining(&proxy).await?;
        ensure!(!request.is_finished());
        proxy.signal(second)?;
        assert!(proxy.ended().await?.success());
        ensure!(request.await?.is_err());
    }
    let trusted = Trusted::new()?;
    let proxy = slowly(&trusted, 100_000, "0s,1h").await?.start().await?;
    let request = in_flight(&proxy).await?;
    assert!(proxy.stop().await?.success());
    ensure!(request.await?.is_err());
    Ok(())
}

/// A server that sends back what it gets.
async fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    Ok(address)
}

#[tokio::test]
async fn connections_that_are_not_http_are_waited_for_too() -> Result<()> {
    let trusted = Trusted::new()?;
    let spec = "resolution: DNS, ports: [{number: 6379, name: tcp, protocol: TCP}]";
    let rules = entry_with(HOST, spec) + &rule(HOST, "{tls: {mode: DISABLE}}");
    let proxy = trusted
        .egressctl(&rules)
        .port(6379, 0)
        .connect_to(&route(HOST, 6379, echo().await?))
        .arg("--drain=0s,60s")
        .start()
        .await?;
    let mut client = TcpStream::connect(proxy.listener(6379)?).await?;
    let mut says = async |text: &[u8; 4]| -> Result<()> {
        client.write_all(text).await?;
        let mut heard = [0; 4];
        timeout(SOON, client.read_exact(&mut heard)).await??;
        ensure!(heard == *text);
        Ok(())
    };
    says(b"ping").await?;
    draining(&proxy).await?;
    eventually("health checks fail", async || {
        Ok(proxy.admin_get("/ready").await?.status == 503)
    })
    .await?;
    for _ in 0..10 {
        says(b"more").await?;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    drop(client);
    assert!(proxy.ended().await?.success());
    Ok(())
}

#[tokio::test]
async fn the_access_log_is_opened_again_by_a_signal() -> Result<()> {
    let trusted = Trusted::new()?;
    let proxy = slowly(&trusted, 1, "0s,1s").await?.start().await?;
    let http = proxy.listener(80)?;
    assert_eq!(probe::get(http, HOST, "/before").await?.status, 200);
    log_of(&proxy, "/before").await?;
    let kept = trusted.path("access.log.1");
    fs::rename(proxy.access_log_path(), &kept).or_else(|_| {
        // The folder may be on another file system, where only a copy can go.
        fs::copy(proxy.access_log_path(), &kept)?;
        fs::remove_file(proxy.access_log_path())
    })?;
    proxy.signal(Signal::SIGUSR1)?;
    told(&proxy, "the access log is opened again").await?;
    assert_eq!(probe::get(http, HOST, "/after").await?.status, 200);
    log_of(&proxy, "/after").await?;
    ensure!(
        proxy
            .access_log()?
            .iter()
            .all(|line| !line.contains("/before"))
    );
    ensure!(fs::read_to_string(kept)?.contains("/before"));
    assert!(proxy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_run_that_keeps_its_rules_outlives_the_signal_to_read_them() -> Result<()> {
    let trusted = Trusted::new()?;
    let builder = slowly(&trusted, 1, "0s,1s").await?;
    let proxy = builder.arg("--once").start().await?;
    proxy.signal(Signal::SIGHUP)?;
    told(&proxy, "warning: SIGHUP: ").await?;
    assert_eq!(
        probe::get(proxy.listener(80)?, HOST, "/").await?.status,
        200
    );
    assert!(proxy.stop().await?.success());
    Ok(())
}

/// A run that waits for slow requests, and may be replaced.
fn replaceable(trusted: &Trusted, rules: &Path, routes: &[String]) -> Builder {
    let builder = Egressctl::builder()
        .rules(rules)
        .env("SSL_CERT_FILE", trusted.bundle())
        .env("TMPDIR", trusted.path("tmp"))
        .arg("--concurrency=2")
        .arg("--drain=0s,8s")
        .arg("--status=127.0.0.1:0")
        .port(80, 0);
    routes
        .iter()
        .fold(builder, |builder, to| builder.connect_to(to))
}

#[tokio::test]
async fn runs_take_each_others_place_under_load_without_a_lost_request() -> Result<()> {
    let trusted = Trusted::new()?;
    fs::create_dir(trusted.path("tmp"))?;
    let site = trusted.site([HOST]).await?;
    let slow = "slow.example.com";
    let server = common::slow(PIECES).await?;
    let spec = "resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]";
    let rules =
        originated(HOST, 443) + &entry_with(slow, spec) + &rule(slow, "{tls: {mode: DISABLE}}");
    let rules = trusted.file("rules.yaml", &rules)?;
    let routes = [route(HOST, 443, site.tls_addr()), route(slow, 80, server)];
    let mut proxy = replaceable(&trusted, &rules, &routes).start().await?;
    let http = proxy.listener(80)?;
    let load = Load::start(http, 8);
    for epoch in 1..=2 {
        load.goes_on().await?;
        let request = tokio::spawn(async move { probe::get(http, slow, "/slow").await });
        eventually("the request is at the server", async || {
            // The load is on a cluster with TLS.
            let stats = proxy.admin_get("/stats?filter=upstream_rq_active$").await?;
            let mut slow = stats.body.lines().filter(|line| !line.contains("SIMPLE"));
            Ok(slow.any(|line| line.contains("|") && line.ends_with(": 1")))
        })
        .await?;
        let next = replaceable(&trusted, &rules, &routes)
            .arg(format!("--replace={}", proxy.pid()))
            .start()
            .await?;
        assert_eq!(next.listener(80)?, http);
        told(&proxy, "has taken the place of this one").await?;
        load.goes_on().await?;
        let answer = request.await??;
        assert_eq!(answer.body, "piece".repeat(PIECES));
        assert!(proxy.ended().await?.success());
        load.goes_on().await?;
        assert_eq!(stat(&next, "server.hot_restart_epoch").await?, epoch);
        proxy = next;
    }
    ensure!(load.end().await? > 0);
    assert!(proxy.stop().await?.success());
    let left: Vec<_> = fs::read_dir(trusted.path("tmp"))?.collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn an_envoy_of_another_hot_restart_version_does_not_take_over() -> Result<()> {
    let trusted = Trusted::new()?;
    fs::create_dir(trusted.path("tmp"))?;
    let site = trusted.site([HOST]).await?;
    let rules = trusted.file("rules.yaml", &originated(HOST, 443))?;
    let routes = [route(HOST, 443, site.tls_addr())];
    let proxy = replaceable(&trusted, &rules, &routes).start().await?;
    let real = egress_integration::envoy::binary()?;
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --hot-restart-version ] && {{ echo 99.1; exit; }}\nexec {} \"$@\"\n",
        real.display()
    );
    let other = trusted.file("envoy", &script)?;
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755))?;
    let next = replaceable(&trusted, &rules, &routes)
        .arg("--envoy")
        .arg(&other)
        .arg(format!("--replace={}", proxy.pid()));
    let error = next.start().await.err().context("it started")?;
    let ended = error.downcast::<EndedEarly>()?;
    assert_eq!(ended.status.code(), Some(1));
    ensure!(
        ended
            .stderr
            .contains("their versions of hot restart are 99.1 and "),
        "{}",
        ended.stderr
    );
    ensure!(
        ended
            .stderr
            .contains("by SIGTERM, which lets requests finish"),
        "{}",
        ended.stderr
    );
    assert_eq!(
        probe::get(proxy.listener(80)?, HOST, "/").await?.status,
        200
    );

    let nobody = replaceable(&trusted, &rules, &routes).arg("--replace=1");
    let error = nobody.start().await.err().context("it started")?;
    ensure!(
        error
            .to_string()
            .contains("process 1 is no `egressctl run`"),
        "{error}"
    );
    assert!(proxy.stop().await?.success());
    Ok(())
}
