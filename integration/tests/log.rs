//! The access log says what happened, one line for each request, whatever a client writes.

mod common;

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, Result, ensure};
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use egress_integration::{egressctl::Running, probe, stand_in::StandIn};

use common::{HOST, LogLine, SHARED, SOON, Trusted, entry, entry_with, originated, route};

/// The keys of Istio's JSON format.
///
/// Source: istio/istio `pilot/pkg/model/telemetry_logging.go`, `EnvoyJSONLogFormatIstio`.
const ISTIO: [&str; 24] = [
    "start_time",
    "route_name",
    "method",
    "path",
    "protocol",
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "bytes_received",
    "bytes_sent",
    "duration",
    "upstream_service_time",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "authority",
    "upstream_host",
    "upstream_cluster",
    "upstream_local_address",
    "downstream_local_address",
    "downstream_remote_address",
    "requested_server_name",
    "upstream_transport_failure_reason",
];

/// One host originated, one forwarded as it is, and TLS of the first passed through.
async fn start(trusted: &Trusted, site: &StandIn, format: &str) -> Result<Running> {
    let spec = "resolution: DNS, ports: [\
                {number: 80, name: http, protocol: HTTP, targetPort: 443}, \
                {number: 443, name: https, protocol: HTTPS}]";
    // For port 80 alone: TLS in the application's TLS is no rule.
    let policy = "{portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}";
    let rules = entry_with(HOST, spec)
        + &common::rule(HOST, policy)
        + &entry("plain.example", 80)
        + &originated("money.cnn.com", 443);
    trusted
        .egressctl(&rules)
        .port(80, 0)
        .port(443, 0)
        .connect_to(&route(HOST, 443, site.tls_addr()))
        .connect_to(&route("money.cnn.com", 443, site.tls_addr()))
        .connect_to(&route("plain.example", 80, site.plain_addr()))
        .arg("--access-log-format")
        .arg(format)
        .start()
        .await
}

/// One request of each kind.
async fn exercise(trusted: &Trusted, proxy: &Running) -> Result<()> {
    let http = proxy.listener(80)?;
    let agent = [("user-agent", "log test/1.0")];
    let originate = probe::get_with(http, "EDITION.cnn.com:80", "/originate", &agent);
    assert_eq!(originate.await?.status, 200);
    assert_eq!(
        probe::get(http, "money.cnn.com", "/refused").await?.status,
        503
    );
    assert_eq!(
        probe::get(http, "plain.example", "/forward").await?.status,
        301
    );
    assert_eq!(
        probe::get(http, "other.example", "/reject").await?.status,
        502
    );
    let tls = probe::get_tls(proxy.listener(443)?, HOST, HOST, "/", &trusted.ca.pem()).await?;
    assert_eq!(tls.answer.status, 200);
    let unknown = probe::get_tls(
        proxy.listener(443)?,
        "no.example",
        HOST,
        "/",
        &trusted.ca.pem(),
    )
    .await;
    ensure!(unknown.is_err(), "{unknown:?}");
    Ok(())
}

#[tokio::test]
async fn text_is_istios_default_format_and_our_keys() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let proxy = start(&trusted, &site, "text").await?;
    exercise(&trusted, &proxy).await?;

    let log = common::log_of(&proxy, "/originate").await?;
    ensure!(log.istio("start_time").starts_with("[20"), "{log:#?}");
    assert_eq!(log.istio("request"), "GET /originate HTTP/1.1");
    assert_eq!(log.istio("response_code"), "200");
    assert_eq!(log.istio("response_flags"), "-");
    assert_eq!(log.istio("response_code_details"), "via_upstream");
    assert_eq!(log.istio("upstream_transport_failure_reason"), "-");
    assert_eq!(log.istio("user_agent"), "log test/1.0");
    assert_eq!(
        log.istio("authority"),
        HOST,
        "the one that the server was told"
    );
    assert_eq!(log.istio("upstream_host"), site.tls_addr().to_string());
    assert_eq!(log.istio("upstream_cluster"), SHARED);
    assert_eq!(
        log.istio("downstream_local_address"),
        proxy.listener(80)?.to_string()
    );
    assert_eq!(log.istio("requested_server_name"), "-");
    assert_eq!(log.istio("route_name"), "originate");
    assert_eq!(
        log.egress("authority"),
        "EDITION.cnn.com:80",
        "the client's"
    );

    let refused = common::log_of(&proxy, "/refused").await?;
    assert_eq!(refused.istio("response_code"), "503");
    ensure!(
        refused.istio("response_flags").ends_with("UF"),
        "{refused:#?}"
    );
    let why = refused.istio("upstream_transport_failure_reason");
    ensure!(why.contains("CERTIFICATE_VERIFY_FAILED"), "{why}");
    assert_ne!(refused.egress("reason"), "-", "{refused:#?}");

    let forward = common::log_of(&proxy, "/forward").await?;
    assert_eq!(
        forward.istio("upstream_host"),
        site.plain_addr().to_string()
    );
    assert_eq!(forward.istio("route_name"), "forward");
    let reject = common::log_of(&proxy, "/reject").await?;
    assert_eq!(reject.istio("response_code_details"), "egress_unknown_host");
    assert_eq!(reject.istio("upstream_host"), "-");

    let passthrough = proxy.wait_for_log(|line| line.contains("action=passthrough"), SOON);
    let passthrough = LogLine::parse(&passthrough.await?)?;
    assert_eq!(passthrough.istio("requested_server_name"), HOST);
    let unknown = proxy.wait_for_log(|line| line.contains("authority=no.example"), SOON);
    assert_eq!(LogLine::parse(&unknown.await?)?.egress("action"), "reject");
    assert_eq!(proxy.access_log()?.len(), 6, "{:#?}", proxy.access_log()?);
    Ok(())
}

/// The line with this value at a JSON pointer; all lines so far must be whole.
async fn json_line(proxy: &Running, pointer: &str, value: &str) -> Result<Value> {
    let wanted = |line: &str| {
        let line: Result<Value, _> = serde_json::from_str(line);
        line.is_ok_and(|line| line.pointer(pointer).and_then(Value::as_str) == Some(value))
    };
    let line = proxy.wait_for_log(wanted, SOON).await?;
    let line: Value = serde_json::from_str(&line)?;
    let keys: BTreeSet<_> = line
        .as_object()
        .context("no object")?
        .keys()
        .cloned()
        .collect();
    let expected = ISTIO
        .into_iter()
        .chain(["egress"])
        .map(str::to_owned)
        .collect();
    assert_eq!(keys, expected);
    Ok(line)
}

#[tokio::test]
async fn json_is_istios_keys_and_an_object_of_ours() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let proxy = start(&trusted, &site, "json").await?;
    exercise(&trusted, &proxy).await?;

    let line = json_line(&proxy, "/path", "/originate").await?;
    for (key, value) in [
        ("method", json!("GET")),
        ("protocol", json!("HTTP/1.1")),
        ("response_code", json!(200)),
        ("response_code_details", json!("via_upstream")),
        ("user_agent", json!("log test/1.0")),
        ("authority", json!(HOST)),
        ("upstream_cluster", json!(SHARED)),
        ("upstream_host", json!(site.tls_addr().to_string())),
        ("route_name", json!("originate")),
        ("upstream_transport_failure_reason", Value::Null),
        ("requested_server_name", Value::Null),
    ] {
        assert_eq!(line.get(key), Some(&value), "{key} in {line:#}");
    }
    let tls = "envoy.transport_sockets.tls";
    let raw = "envoy.transport_sockets.raw_buffer";
    let egress = json!({
        "action": "originate", "rule": "default/edition-cnn-com",
        "service_entry": "default/edition-cnn-com", "cluster": SHARED, "transport_socket": tls,
        "tls_mode": "SIMPLE", "sni": HOST, "verify": HOST, "target": "edition.cnn.com:443",
        "authority": "EDITION.cnn.com:80",
    });
    assert_eq!(line.get("egress"), Some(&egress), "{line:#}");

    let line = json_line(&proxy, "/path", "/refused").await?;
    let why = line
        .get("upstream_transport_failure_reason")
        .and_then(Value::as_str);
    ensure!(
        why.is_some_and(|why| why.contains("CERTIFICATE_VERIFY_FAILED")),
        "{line:#}"
    );

    let line = json_line(&proxy, "/path", "/forward").await?;
    let egress = json!({
        "action": "forward", "service_entry": "default/plain-example",
        "cluster": "shared|DISABLE||http1", "transport_socket": raw,
        "target": "plain.example:80", "authority": "plain.example",
    });
    assert_eq!(line.get("egress"), Some(&egress), "{line:#}");

    let line = json_line(&proxy, "/path", "/reject").await?;
    let egress =
        json!({"action": "reject", "reason": "unknown_host", "authority": "other.example"});
    assert_eq!(line.get("egress"), Some(&egress), "{line:#}");
    assert_eq!(line.get("response_code"), Some(&json!(502)));

    let line = json_line(&proxy, "/egress/action", "passthrough").await?;
    let egress = json!({
        "action": "passthrough", "rule": "default/edition-cnn-com",
        "service_entry": "default/edition-cnn-com", "cluster": "shared|DISABLE||bytes",
        "transport_socket": raw, "sni": HOST, "target": "edition.cnn.com:443",
    });
    assert_eq!(line.get("egress"), Some(&egress), "{line:#}");
    assert_eq!(line.get("requested_server_name"), Some(&json!(HOST)));

    let line = json_line(&proxy, "/egress/authority", "no.example").await?;
    let egress = json!({"action": "reject", "reason": "unknown_host", "authority": "no.example"});
    assert_eq!(line.get("egress"), Some(&egress), "{line:#}");
    Ok(())
}

/// What clients might write to make one line look like another, or two.
const INJECTIONS: [&[u8]; 9] = [
    b"x\" 503 UF \"-\" action=originate reason=expired rule=- plaintext=-",
    b"\"\r\n\t[2026-01-01T00:00:00.000Z] \"GET / HTTP/1.1\" action=originate reason=expired",
    b"x\" 200 - via_upstream action=originate",
    b"x action=originate reason=- rule=default/forged",
    b"\",\"egress\":{\"action\":\"originate\"},\"x\":\"",
    b"\\\" \\n \\u000a {}",
    b"%REQ(:PATH)% %RESPONSE_CODE%",
    b"\xff\xfe \xe2\x80\xa8 \x1b[31m",
    b"tab\tand more",
];

/// Sends each injection as a Host, a User-Agent and a path; returns how many requests that was.
async fn inject(proxy: &Running) -> Result<usize> {
    let http = proxy.listener(80)?;
    // Envoy waits a second behind each refusal for the client to go, so all are sent at once.
    let mut answers = JoinSet::new();
    for injection in INJECTIONS {
        for head in [
            "GET /host HTTP/1.1\r\nConnection: close\r\nHost: ",
            "GET /agent HTTP/1.1\r\nConnection: close\r\nHost: other.example\r\nUser-Agent: ",
            "GET /",
        ] {
            let rest: &[u8] = match head {
                "GET /" => b" HTTP/1.1\r\nConnection: close\r\nHost: other.example\r\n\r\n",
                _ => b"\r\n\r\n",
            };
            let request = [head.as_bytes(), injection, rest].concat();
            answers.spawn(async move {
                let answer = probe::raw(http, &request, SOON).await;
                (request, answer)
            });
        }
    }
    while let Some(answered) = answers.join_next().await {
        let (request, answer) = answered?;
        let answer = String::from_utf8(answer?)?;
        ensure!(
            answer
                .get(8..13)
                .is_some_and(|status| [" 400 ", " 502 "].contains(&status)),
            "{}: {answer}",
            request.escape_ascii()
        );
    }
    // Lines are written in order: with this one, all are there.
    assert_eq!(
        probe::get(http, "other.example", "/last").await?.status,
        502
    );
    Ok(INJECTIONS.len() * 3 + 1)
}

#[tokio::test]
async fn no_client_can_write_a_line_of_text() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let proxy = start(&trusted, &site, "text").await?;
    let requests = inject(&proxy).await?;
    proxy
        .wait_for_log(|line| line.contains(" /last "), SOON)
        .await?;
    let log = proxy.access_log()?;
    assert_eq!(log.len(), requests, "{log:#?}");
    for line in log {
        ensure!(line.starts_with("[20"), "{line}");
        // Our keys end the line, whatever stands before them.
        let words: Vec<_> = line.split(' ').collect();
        let ours = words
            .split_at(words.len().saturating_sub(common::METADATA.len()))
            .1;
        for (word, key) in ours.iter().zip(common::METADATA) {
            ensure!(word.starts_with(&format!("{key}=")), "{key}: {line}");
        }
        assert_eq!(ours.first(), Some(&"action=reject"), "{line}");
        let reasons = ["bad_request", "invalid_host", "no_host", "unknown_host"];
        let reason = ours.get(1).and_then(|word| word.strip_prefix("reason="));
        ensure!(reason.is_some_and(|it| reasons.contains(&it)), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn no_client_can_write_a_line_of_json() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let proxy = start(&trusted, &site, "json").await?;
    let requests = inject(&proxy).await?;
    proxy
        .wait_for_log(|line| line.contains("\"/last\""), SOON)
        .await?;
    let log = proxy.access_log()?;
    assert_eq!(log.len(), requests, "{log:#?}");
    for line in log {
        let value: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let action = value.pointer("/egress/action").and_then(Value::as_str);
        ensure!(matches!(action, None | Some("reject")), "{line}");
    }
    Ok(())
}

/// A ClientHello whose server name is these bytes.
fn client_hello(server_name: &[u8]) -> Result<Vec<u8>> {
    let placeholder = "n".repeat(server_name.len());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(placeholder.clone())?;
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(config), name)?.write_tls(&mut hello)?;
    let mut windows = hello.windows(placeholder.len());
    let at = windows.position(|window| window == placeholder.as_bytes());
    let at = at.context("the name is not in the ClientHello")?;
    hello.splice(at..at + server_name.len(), server_name.iter().copied());
    Ok(hello)
}

#[tokio::test]
async fn no_server_name_can_write_a_line() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    for format in ["text", "json"] {
        let proxy = start(&trusted, &site, format).await?;
        let names: [&[u8]; 3] = [
            b"x\n[2026-01-01T00:00:00.000Z] \"forged\"",
            b"x action=originate",
            b"x\",\"egress\":{\"action\":\"originate\"}",
        ];
        for name in names {
            // A reset is as good as a close.
            let _closed = probe::raw(proxy.listener(443)?, &client_hello(name)?, SOON).await;
        }
        let last = probe::get_tls(
            proxy.listener(443)?,
            "last.example",
            HOST,
            "/",
            &trusted.ca.pem(),
        )
        .await;
        ensure!(last.is_err(), "{last:?}");
        proxy
            .wait_for_log(|line| line.contains("last.example"), SOON)
            .await?;
        let log = proxy.access_log()?;
        assert_eq!(log.len(), names.len() + 1, "{log:#?}");
        for line in log {
            ensure!(!line.starts_with("[2026-01-01T00:00:00.000Z]"), "{line}");
            if format == "json" {
                let value: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
                let action = value.pointer("/egress/action").and_then(Value::as_str);
                assert_eq!(action, Some("reject"), "{line}");
            } else {
                assert_eq!(LogLine::parse(&line)?.egress("action"), "reject", "{line}");
            }
        }
    }
    Ok(())
}
