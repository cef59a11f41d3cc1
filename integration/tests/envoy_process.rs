//! The harness's way of running Envoy, proven on a real one.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use egress_integration::{
    envoy::{self, EnvoyProcess},
    probe,
};

const SOON: Duration = Duration::from_secs(20);

const DIRECT: &str = r#"
static_resources:
  listeners:
  - name: direct
    address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: direct
          access_log:
          - name: stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format: { text_format_source: { inline_string: "logged %REQ(:PATH)%\n" } }
          http_filters:
          - name: router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: { prefix: "/" }
                direct_response: { status: 418 }
"#;

#[tokio::test]
async fn envoy_answers_logs_and_stops() -> Result<()> {
    let envoy = EnvoyProcess::start(&envoy::binary()?, DIRECT, ["--concurrency", "1"]).await?;
    let answer = probe::get(envoy.listener("direct")?, "any.example", "/tea").await?;
    ensure!(answer.status == 418);
    envoy
        .wait_for_stdout(|line| line == "logged /tea", SOON)
        .await?;
    ensure!(envoy.listener("another").is_err());
    let info = envoy.admin_get("/server_info").await?;
    ensure!(info.body.contains("\"LIVE\""), "{}", info.body);
    ensure!(envoy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn a_bootstrap_that_envoy_refuses_fails_with_its_log() -> Result<()> {
    let none: [&str; 0] = [];
    let started = EnvoyProcess::start(&envoy::binary()?, "no_such_field: 1", none).await;
    let Err(error) = started else {
        bail!("Envoy took a field that it does not know");
    };
    ensure!(error.to_string().contains("no_such_field"), "{error}");
    Ok(())
}
