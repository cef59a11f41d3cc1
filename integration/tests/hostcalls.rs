//! How often the filter calls Envoy for a request. Each call costs microseconds, so they are counted.

mod common;

use anyhow::{Result, ensure};

use egress_integration::{
    dns::{DnsServer, Zone},
    envoy::{self, EnvoyProcess},
    probe,
    stand_in::StandIn,
};

use common::{
    HOST, SIMPLE, Trusted, assert_originated, dns, entry_with, originated, rendered, rule,
};

/// What issue 2 allows a typical request.
const ALLOWED: usize = 4;
const READ: &str = "proxy_get_header_map_value";
const WRITE: &str = "proxy_replace_header_map_value";
const FOREIGN: &str = "proxy_call_foreign_function";
const METADATA: &str = "proxy_set_property";

/// What the filter called while it handled each request, by Envoy's own trace.
///
/// Source: proxy-wasm-cpp-host `src/v8/v8.cc`, which writes `[host->vm] f(..)`, `[vm->host] env.g(..)`
/// and the returns of both.
fn calls_of_requests(log: &[String]) -> Vec<Vec<String>> {
    let mut requests = Vec::new();
    let mut current: Option<Vec<String>> = None;
    for line in log {
        if line.contains("[host->vm] proxy_on_request_headers(") {
            current = Some(Vec::new());
        } else if line.contains("[host<-vm] proxy_on_request_headers return") {
            requests.extend(current.take());
        } else if let (Some(calls), Some((_, call))) =
            (&mut current, line.split_once("[vm->host] env."))
        {
            calls.push(
                call.split_once('(')
                    .map_or(call, |(name, _)| name)
                    .to_owned(),
            );
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
) -> Result<(Vec<String>, u16)> {
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
    ensure!(
        calls.len() <= ALLOWED,
        "{} calls, {ALLOWED} are allowed: {calls:#?}",
        calls.len()
    );
    ensure!(!calls.iter().any(|call| call == "proxy_log"), "{calls:#?}");
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
    let seen = site.take_seen();
    assert_eq!(seen.len(), 2, "{seen:#?}");
    for seen in &seen {
        assert_originated(seen, host, HOST);
    }
    Ok(calls)
}

#[tokio::test]
async fn a_typical_request_takes_two_calls() -> Result<()> {
    let trusted = Trusted::new()?;
    // Port 443 is root's, so the page's own rules are followed as far as DNS, which knows no host.
    let nowhere = DnsServer::start(Zone::new()).await?;
    let (calls, status) = calls(&trusted, &nowhere, &originated(HOST, 443), HOST).await?;
    assert_eq!(calls, [READ, METADATA]);
    assert_eq!(status, 503);

    // And to the end where the server is on another port, which the client names as well.
    let site = trusted.site([HOST]).await?;
    let port = site.tls_addr().port();
    let named = format!("{HOST}:{port}");
    let rules = originated(HOST, port);
    let calls = calls_of_answered(&trusted, &site, &rules, &named, &named).await?;
    assert_eq!(calls, [READ, METADATA]);
    Ok(())
}

#[tokio::test]
async fn an_authority_that_must_be_rewritten_takes_one_more() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let port = site.tls_addr().port();
    let (rules, host) = (originated(HOST, port), format!("{HOST}:{port}"));
    let calls = calls_of_answered(&trusted, &site, &rules, "edition.cnn.com:80", &host).await?;
    assert_eq!(calls, [READ, WRITE, METADATA]);
    Ok(())
}

#[tokio::test]
async fn a_cluster_of_ones_own_takes_two_more() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let spec = format!(
        "resolution: STATIC, endpoints: [{{address: 127.0.0.1, ports: {{http: {}}}}}], \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]",
        site.tls_addr().port()
    );
    let rules = entry_with(HOST, &spec) + &rule(HOST, SIMPLE);
    let calls = calls_of_answered(&trusted, &site, &rules, HOST, HOST).await?;
    assert_eq!(calls, [READ, WRITE, FOREIGN, METADATA]);
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
    assert_eq!(calls, [READ, METADATA]);
    Ok(())
}
