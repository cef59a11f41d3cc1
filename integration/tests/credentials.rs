//! `egressctl check` and Envoy say the same of certificates, keys and revocation lists.

mod common;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

use egress_integration::{
    envoy,
    pki::{Ca, Leaf, Usage, Validity},
    silent_port::SilentPort,
};

use common::{HOST, SIMPLE, SOON, Stage, Trusted, egressctl, entry, route, rule, site};

/// What `check` calls an error in these rules.
async fn errors(trusted: &Trusted, rules: &str) -> Result<Vec<String>> {
    found(trusted, rules, &[], "error").await
}

/// What `check` says of these rules, with one severity.
async fn found(
    trusted: &Trusted,
    rules: &str,
    args: &[&str],
    severity: &str,
) -> Result<Vec<String>> {
    let file = trusted.file("checked.yaml", rules)?;
    let mut all = ["check", "-o", "json", "-f"].map(Path::new).to_vec();
    all.push(&file);
    all.extend(args.iter().map(Path::new));
    let output = egressctl(trusted, all).await?;
    let found: Vec<Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let of = |severity: &str| -> Vec<String> {
        let found = found
            .iter()
            .filter(|finding| finding["severity"] == severity);
        found
            .filter_map(|finding| finding["message"].as_str().map(str::to_owned))
            .collect()
    };
    ensure!(
        output.status.code() == Some(i32::from(!of("error").is_empty())),
        "{}: {found:?}",
        output.status
    );
    Ok(of(severity))
}

/// What an Envoy says that is given these files, or nothing when it takes them.
async fn envoys_word(trusted: &Trusted, secrets: Value, context: Value) -> Result<Option<String>> {
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let bootstrap = json!({"static_resources": {
        "secrets": secrets,
        "clusters": [{"name": "site", "type": "STATIC", "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": kind, "common_tls_context": context},
        }}],
    }});
    let file = trusted.file("bootstrap.json", &bootstrap.to_string())?;
    let mut command = Command::new(envoy::binary()?);
    command
        .args(["--mode", "validate", "-l", "error", "-c"])
        .arg(file)
        .kill_on_drop(true);
    let output = timeout(SOON, command.output()).await??;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((!output.status.success()).then_some(log))
}

#[tokio::test]
async fn check_refuses_the_certificates_that_envoy_refuses() -> Result<()> {
    let trusted = Trusted::new()?;
    let issue = || {
        trusted
            .ca
            .issue(&Leaf::for_names(["client.example"]).usage(Usage::Client))
    };
    let (one, two) = (issue()?, issue()?);
    let (c, k) = (one.chain_pem(), one.key_pem());
    let ca = trusted.ca.pem();
    let unix = |text: &str| text.replace('\r', "");
    let own = |certificate: String| (certificate, k.to_owned());
    for (name, (certificate, key)) in [
        ("as it is", own(c.to_owned())),
        (
            "Windows line ends",
            (unix(c).replace('\n', "\r\n"), unix(k).replace('\n', "\r\n")),
        ),
        ("no line break at the end", own(c.trim_end().to_owned())),
        ("a text before it", own(format!("subject=/CN=client\n{c}"))),
        ("the key beside it", own(format!("{k}{c}"))),
        ("spaces at line ends", own(unix(c).replace('\n', "  \n"))),
        ("empty lines", own(unix(c).replace('\n', "\n\n"))),
        ("its authority behind it", own(format!("{c}{ca}"))),
        ("its authority before it", own(format!("{ca}{c}"))),
        ("half of it", own(c[..c.len() / 2].to_owned())),
        (
            "half of its authority",
            own(format!("{c}{}", &ca[..ca.len() / 2])),
        ),
        (
            "joined without a line break",
            own(format!("{}{ca}", c.trim_end())),
        ),
        ("a byte order mark", own(format!("\u{feff}{c}"))),
        ("indented", own(format!("  {c}"))),
        ("no base64", own(c.replacen("MII", "!!!", 1))),
        (
            "no certificate in it",
            own("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_owned()),
        ),
        ("empty", own(String::new())),
        ("blank", own("\n".to_owned())),
        ("another key", (c.to_owned(), two.key_pem().to_owned())),
        ("two keys", (c.to_owned(), format!("{}{k}", two.key_pem()))),
        ("no key", (c.to_owned(), c.to_owned())),
        ("half a key", (c.to_owned(), k[..k.len() / 2].to_owned())),
        ("an empty key", (c.to_owned(), String::new())),
        (
            "an encrypted key",
            (c.to_owned(), k.replace("PRIVATE", "ENCRYPTED PRIVATE")),
        ),
    ] {
        let certificate = trusted.file("client.pem", &certificate)?;
        let key = trusted.file("client.key", &key)?;
        let tls = json!({"mode": "MUTUAL", "clientCertificate": certificate, "privateKey": key,
                         "caCertificates": trusted.bundle()});
        let rules = entry(HOST, 443) + &rule(HOST, &json!({"tls": tls}).to_string());
        let errors = errors(&trusted, &rules).await?;
        let secret = json!([{"name": "client", "tls_certificate": {
            "certificate_chain": {"filename": certificate}, "private_key": {"filename": key},
        }}]);
        let context = json!({"tls_certificate_sds_secret_configs": [{"name": "client"}]});
        let word = envoys_word(&trusted, secret, context).await?;
        assert_eq!(
            !errors.is_empty(),
            word.is_some(),
            "{name}: {errors:?}\n{word:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn check_calls_a_list_an_error_where_envoy_refuses_the_server() -> Result<()> {
    let trusted = Trusted::new()?;
    let (ca, other) = (Ca::new("the site's CA")?, Ca::new("another CA")?);
    let twin = Ca::new("the site's CA")?;
    let file = |name: &str, text: String| trusted.file(name, &text);
    let authority = file("ca.pem", ca.pem())?;
    for (name, list, reason) in [
        ("good", ca.crl(&[], Validity::Valid)?, None),
        (
            "and another's",
            other.crl(&[], Validity::Valid)? + &ca.crl(&[], Validity::Valid)?,
            None,
        ),
        (
            "out of date",
            ca.crl(&[], Validity::Expired)?,
            Some("CRL_has_expired"),
        ),
        (
            "another's",
            other.crl(&[], Validity::Valid)?,
            Some("unable_to_get_certificate_CRL"),
        ),
        (
            "by another key",
            twin.crl(&[], Validity::Valid)?,
            Some("unable_to_get_certificate_CRL"),
        ),
        ("no list", ca.pem(), Some("unable_to_get_certificate_CRL")),
    ] {
        let list = file("crl.pem", list)?;
        let tls = json!({"mode": "SIMPLE", "caCertificates": authority, "caCrl": list});
        let rules = entry(HOST, 443) + &rule(HOST, &json!({"tls": tls}).to_string());
        let errors = errors(&trusted, &rules).await?;
        assert_eq!(errors.is_empty(), reason.is_none(), "{name}: {errors:?}");

        if name == "no list" {
            // What is no list at all need not get as far as Envoy.
            continue;
        }
        let site = common::site(&ca, &Leaf::for_names([HOST])).await?;
        let stage = Stage::start(trusted.egressctl(&rules), site, [HOST]).await?;
        let answer = stage.get(HOST, "/listed").await?;
        assert_eq!(
            answer.status == 200,
            reason.is_none(),
            "{name}: {}",
            answer.body
        );
        let why = stage.log("/listed").await?;
        let why = why.istio("upstream_transport_failure_reason");
        ensure!(why.contains(reason.unwrap_or("-")), "{name}: `{why}`");
    }
    Ok(())
}

#[tokio::test]
async fn check_asks_the_servers_when_told_to() -> Result<()> {
    let (trusted, stranger) = (Trusted::new()?, Ca::new("stranger")?);
    let leaf = || Leaf::for_names([HOST]);
    let rules = entry(HOST, 443) + &rule(HOST, SIMPLE);
    for (site, expected) in [
        (site(&trusted.ca, &leaf()).await?, None),
        (
            site(&stranger, &leaf()).await?,
            Some(
                "that none of the authorities signed: `CN=edition.cnn.com`, signed by `CN=stranger`",
            ),
        ),
        (
            site(&trusted.ca, &leaf().validity(Validity::Expired)).await?,
            Some("shows a certificate that expired on "),
        ),
        (
            site(&trusted.ca, &Leaf::for_names(["other.example"])).await?,
            Some("shows a certificate that is for other names: `CN=other.example`"),
        ),
    ] {
        let to = route(HOST, 443, site.tls_addr());
        let errors = found(
            &trusted,
            &rules,
            &["--connect", "--connect-to", &to],
            "error",
        )
        .await?;
        match expected {
            None => assert_eq!(errors, [""; 0]),
            Some(text) => ensure!(
                matches!(&errors[..], [error] if error.contains(text) && error.contains("`edition.cnn.com:443` shows")),
                "{text}: {errors:?}"
            ),
        }
        // Nothing is asked of them.
        ensure!(site.seen().is_empty(), "{:?}", site.seen());
        let to = route(HOST, 443, site.plain_addr());
        let errors = found(
            &trusted,
            &rules,
            &["--connect", "--connect-to", &to],
            "error",
        )
        .await?;
        ensure!(
            matches!(&errors[..], [error] if error.starts_with("`edition.cnn.com:443` does not shake hands: ")),
            "{errors:?}"
        );
    }
    // A server of the certificate's own authority, which the system does not trust.
    let authority = trusted.file("ca.pem", &stranger.pem())?;
    let own = json!({"tls": {"mode": "SIMPLE", "caCertificates": authority}}).to_string();
    let rules = entry(HOST, 443) + &rule(HOST, &own);
    let theirs = site(&stranger, &leaf()).await?;
    let to = route(HOST, 443, theirs.tls_addr());
    let args = ["--connect", "--connect-to", &to];
    assert_eq!(found(&trusted, &rules, &args, "error").await?, [""; 0]);

    let gone = {
        let silent = SilentPort::start().await?;
        route(HOST, 443, silent.addr())
    };
    let args = ["--connect", "--connect-to", &gone];
    let warnings = found(&trusted, &rules, &args, "warning").await?;
    ensure!(
        matches!(&warnings[..], [warning] if warning.starts_with("`edition.cnn.com:443` cannot be reached from here: ")),
        "{warnings:?}"
    );
    Ok(())
}
