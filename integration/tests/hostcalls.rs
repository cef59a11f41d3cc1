//! How often the filter calls Envoy for a request. Each call costs microseconds, so they are counted.

mod common;

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use egress_integration::{
    dns::{DnsServer, Zone},
    envoy::{self, EnvoyProcess},
    pki::Leaf,
    probe,
    stand_in::StandIn,
    tls_server::{TlsServer, TlsServerConfig},
};

use common::{
    HOST, SIMPLE, Trusted, assert_originated, dns, entry_with, originated, rendered, route, rule,
};

/// What issue 2 allows a typical request.
const ALLOWED: usize = 4;
const READ: &str = "proxy_get_header_map_value";
const LINES: &str = "proxy_get_header_map_pairs";
const WRITE: &str = "proxy_replace_header_map_value";
const FOREIGN: &str = "proxy_call_foreign_function";
const METADATA: &str = "proxy_set_property";
const PROPERTY: &str = "proxy_get_property";
const COUNT: &str = "proxy_increment_metric";
const ANSWER: &str = "proxy_send_local_response";

/// What the filter called for one request.
#[derive(Debug, Default)]
struct Calls {
    /// Before the request went on.
    request: Vec<String>,
    /// When the answer came.
    response: Vec<String>,
}

/// What the filter called for each request, by Envoy's own trace.
///
/// Source: proxy-wasm-cpp-host `src/v8/v8.cc`, which writes `[host->vm] f(..)`, `[vm->host] env.g(..)`
/// and the returns of both.
fn calls_of_requests(log: &[String]) -> Vec<Calls> {
    let mut requests: Vec<Calls> = Vec::new();
    let mut running = "";
    for line in log {
        // What else the host calls is room for what a call of ours returns, in its midst.
        if let Some((_, callback)) = line.split_once("[host->vm] proxy_on_") {
            running = callback.split_once('(').map_or(callback, |(name, _)| name);
            if running == "request_headers" {
                requests.push(Calls::default());
            }
        } else if let (Some(current), Some((_, call))) =
            (requests.last_mut(), line.split_once("[vm->host] env."))
        {
            let call = call.split_once('(').map_or(call, |(name, _)| name);
            match running {
                "request_headers" => current.request.push(call.to_owned()),
                _ => current.response.push(call.to_owned()),
            }
        }
    }
    requests
}

/// Asks twice by these rules, and returns what the second request called and how it was answered.
async fn calls(
    trusted: &Trusted,
    dns: &DnsServer,
    rules: &str,
    authority: &str,
) -> Result<(Calls, u16)> {
    let resolver = dns.addr().to_string();
    let bootstrap = rendered(trusted, rules, &["--resolver", &resolver]).await?;
    let trace = ["--component-log-level", "wasm:trace", "--concurrency", "1"];
    let envoy = EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), trace).await?;
    let http = envoy.listener("outbound_80")?;
    probe::get(http, authority, "/").await?;
    let answer = probe::get(http, authority, "/").await?;

    // Stopped, so that its log is whole.
    let log = envoy.stop_for_log().await?;
    let requests = calls_of_requests(&log);
    assert_eq!(requests.len(), 2, "{log:#?}");
    let calls = requests.into_iter().nth(1).unwrap_or_default();
    let made = calls.request.len();
    ensure!(
        made <= ALLOWED,
        "{made} calls, {ALLOWED} are allowed: {calls:#?}"
    );
    let mut all = calls.request.iter().chain(&calls.response);
    ensure!(!all.any(|call| call == "proxy_log"), "{calls:#?}");
    Ok((calls, answer.status))
}

/// As [`calls`], for requests that `site` answered.
async fn calls_of_answered(
    trusted: &Trusted,
    site: &StandIn,
    rules: &str,
    authority: &str,
    host: &str,
) -> Result<Vec<String>> {
    let dns = dns().await?;
    let (calls, status) = calls(trusted, &dns, rules, authority).await?;
    assert_eq!(status, 200);
    // An answer is looked at once, for what may need repair.
    assert_eq!(calls.response, [LINES]);
    let seen = site.take_seen();
    assert_eq!(seen.len(), 2, "{seen:#?}");
    for seen in &seen {
        assert_originated(seen, host, HOST);
    }
    Ok(calls.request)
}

#[tokio::test]
async fn a_typical_request_takes_three_calls() -> Result<()> {
    let trusted = Trusted::new()?;
    // Port 443 is root's, so the page's own rules are followed as far as DNS, which knows no host.
    let nowhere = DnsServer::start(Zone::new()).await?;
    let (calls, status) = calls(&trusted, &nowhere, &originated(HOST, 443), HOST).await?;
    assert_eq!(calls.request, [READ, READ, METADATA]);
    assert_eq!(status, 503);
    // Why it failed is told: read, and then written to the answer, the counter and the log.
    assert_eq!(
        calls.response,
        [PROPERTY, READ, READ, ANSWER, COUNT, METADATA]
    );

    // And to the end where the server is on another port, which the client names as well.
    let site = trusted.site([HOST]).await?;
    let port = site.tls_addr().port();
    let named = format!("{HOST}:{port}");
    let rules = originated(HOST, port);
    let calls = calls_of_answered(&trusted, &site, &rules, &named, &named).await?;
    assert_eq!(calls, [READ, READ, METADATA]);
    Ok(())
}

#[tokio::test]
async fn an_authority_that_must_be_rewritten_takes_one_more() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let port = site.tls_addr().port();
    let (rules, host) = (originated(HOST, port), format!("{HOST}:{port}"));
    let calls = calls_of_answered(&trusted, &site, &rules, "edition.cnn.com:80", &host).await?;
    assert_eq!(calls, [READ, READ, WRITE, METADATA]);
    Ok(())
}

#[tokio::test]
async fn a_cluster_of_ones_own_takes_one_more() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let spec = format!(
        "resolution: STATIC, endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}], \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]",
        site.tls_addr().port()
    );
    let rules = entry_with(HOST, &spec) + &rule(HOST, SIMPLE);
    let calls = calls_of_answered(&trusted, &site, &rules, HOST, HOST).await?;
    assert_eq!(calls, [READ, READ, WRITE, METADATA]);
    Ok(())
}

/// A thousand hosts cost a request no call more than one does.
#[tokio::test]
async fn many_hosts_take_no_more_calls() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let port = site.tls_addr().port();
    let mut rules = originated(HOST, port);
    for at in 0..1000 {
        rules += &originated(&format!("host-{at}.example"), 443);
    }
    let host = format!("{HOST}:{port}");
    let calls = calls_of_answered(&trusted, &site, &rules, &host, &host).await?;
    assert_eq!(calls, [READ, READ, METADATA]);
    Ok(())
}

/// What the filter called for the last connection that is not HTTP, by the callback it was called in.
fn calls_of_a_connection(log: &[String]) -> Vec<(String, String)> {
    let mut calls = Vec::new();
    let mut running = "";
    for line in log {
        if let Some((_, callback)) = line.split_once("[host->vm] proxy_on_") {
            running = callback.split_once('(').map_or(callback, |(name, _)| name);
            if running == "new_connection" {
                calls.clear();
            }
        } else if let Some((_, call)) = line.split_once("[vm->host] env.") {
            let call = call.split_once('(').map_or(call, |(name, _)| name);
            calls.push((running.to_owned(), call.to_owned()));
        }
    }
    calls
}

#[tokio::test]
async fn a_connection_that_is_not_http_takes_three_calls() -> Result<()> {
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST]))?;
    let server = TlsServer::start(&certificate, TlsServerConfig::default()).await?;
    let spec = "resolution: DNS, ports: [{number: 7001, name: p, protocol: TCP}]";
    let rules = entry_with(HOST, spec) + &rule(HOST, SIMPLE);
    let to = route(HOST, 7001, server.addr());
    let args = ["--port", "7001=0", "--connect-to", &to];
    let bootstrap = rendered(&trusted, &rules, &args).await?;
    let trace = ["--component-log-level", "wasm:trace", "--concurrency", "1"];
    let envoy = EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), trace).await?;
    let mut stream = TcpStream::connect(envoy.listener("outbound_7001")?).await?;
    stream.write_all(b"hello").await?;
    stream.read_exact(&mut [0; 5]).await?;
    stream.shutdown().await?;
    stream.read_to_end(&mut Vec::new()).await?;
    common::eventually("the connection is done", async || {
        Ok(envoy
            .stdout()
            .iter()
            .any(|line| line.contains("action=originate")))
    })
    .await?;
    let log = envoy.stop_for_log().await?;
    let calls = calls_of_a_connection(&log);
    let calls: Vec<(&str, &str)> = calls
        .iter()
        .map(|(on, call)| (&on[..], &call[..]))
        .collect();
    assert_eq!(
        calls,
        [
            ("new_connection", METADATA),
            ("new_connection", FOREIGN),
            ("downstream_connection_close", PROPERTY),
        ]
    );
    Ok(())
}
