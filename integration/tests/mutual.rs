//! The second half of the Istio task (mutual TLS), on a real nginx.

mod common;

use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use tempfile::TempDir;

use egress_integration::{
    egressctl::{Egressctl, Running},
    nginx::{self, Nginx, NginxConfig},
    openssl,
    pki::{Ca, Key, Leaf},
    probe::{self, Answer},
    silent_port::SilentPort,
    stand_in::{Clients, Listener, StandIn, StandInConfig},
};

use common::{
    LogLine, SOON, Stage, Trusted, assert_originated, entry, log_of, mutual, only, route, rule,
};

/// The host of the page's second half.
const HOST: &str = "my-nginx.mesh-external.svc.cluster.local";
/// The subject that the page's command gives its client, as nginx writes it.
const SUBJECT: &str = "O=client organization,CN=client.example.com";

/// The page's nginx behind a running `egressctl`, with the page's certificates.
struct Page {
    nginx: Nginx,
    /// Where port 80 of the host would be.
    silent: SilentPort,
    proxy: Running,
    folder: TempDir,
}

impl Page {
    /// `server` are the commands that make the server's certificate; `tls` says what the rule
    /// says, of a folder with the page's files.
    async fn set(
        server: &[&str],
        config: impl FnOnce(NginxConfig) -> NginxConfig,
        tls: impl FnOnce(&Path) -> String,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path();
        for commands in [openssl::ROOT, server, openssl::CLIENT] {
            openssl::run_all(commands, path).await?;
        }
        let nginx = Nginx::start(&config(NginxConfig::page(path)?)).await?;
        let silent = SilentPort::start().await?;
        let proxy = Egressctl::builder()
            .rules_text(entry(HOST, 443) + &rule(HOST, &tls(path)))
            .port(80, 0)
            .connect_to(&route(HOST, 443, nginx.addr()))
            .connect_to(&route(HOST, 80, silent.addr()))
            .start()
            .await?;
        Ok(Self {
            nginx,
            silent,
            proxy,
            folder,
        })
    }

    async fn get(&self, path: &str) -> Result<(Answer, LogLine)> {
        let answer = probe::get(self.proxy.listener(80)?, HOST, path).await?;
        Ok((answer, log_of(&self.proxy, path).await?))
    }

    /// The one request that nginx has seen.
    async fn only(&self) -> Result<nginx::Seen> {
        let [seen] = <[nginx::Seen; 1]>::try_from(self.nginx.wait_for(1, SOON).await?)
            .map_err(|seen| anyhow!("one request was expected: {seen:#?}"))?;
        Ok(seen)
    }
}

/// What the page's rule asks for, with files in place of the credential.
fn page_tls(folder: &Path) -> String {
    mutual(
        &folder.join("client.example.com.crt"),
        &folder.join("client.example.com.key"),
        &folder.join("example.com.crt"),
        &format!("sni: {HOST}"),
    )
}

/// The same without a client certificate.
fn without_client(folder: &Path) -> String {
    let ca = folder.join("example.com.crt");
    format!(
        "{{tls: {{mode: SIMPLE, caCertificates: \"{}\"}}}}",
        ca.display()
    )
}

#[tokio::test]
async fn the_welcome_page_comes_over_plain_http() -> Result<()> {
    for protocols in ["TLSv1.2", "TLSv1.3"] {
        let page = Page::set(
            openssl::SERVER_WITH_NAME,
            |config| config.directive(format!("ssl_protocols {protocols};")),
            page_tls,
        )
        .await?;
        let (answer, log) = page.get("/").await?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.http_version, "HTTP/1.1");
        ensure!(answer.body.contains("<title>Welcome to nginx!</title>"));

        let seen = page.only().await?;
        assert_eq!(
            (seen.verified.as_str(), seen.subject.as_str()),
            ("SUCCESS", SUBJECT)
        );
        assert_eq!(seen.tls_version, protocols);
        assert_eq!((seen.sni.as_str(), seen.host.as_str()), (HOST, HOST));
        assert_eq!(
            (seen.https.as_str(), seen.x_forwarded_proto.as_str()),
            ("on", "https")
        );
        let page_log = page.nginx.access_log()?;
        ensure!(
            page_log.len() == 1 && page_log[0].contains(" 200 \"GET / HTTP/1.1\" "),
            "{page_log:?}"
        );
        page.silent.assert_silent().await?;

        assert_eq!(log.istio("response_code"), "200");
        assert_eq!(log.istio("response_flags"), "-");
        assert_eq!(log.istio("response_code_details"), "via_upstream");
        assert_eq!(log.istio("bytes_sent"), answer.body.len().to_string());
        assert_eq!(log.istio("upstream_host"), page.nginx.addr().to_string());
        for (key, value) in [
            ("action", "originate"),
            ("reason", "-"),
            ("rule", &format!("default/{}", HOST.replace('.', "-"))),
            ("tls_mode", "MUTUAL"),
            ("sni", HOST),
            ("verify", HOST),
            ("target", &format!("{HOST}:443")),
        ] {
            assert_eq!(log.egress(key), value, "{key}");
        }
        assert!(page.proxy.stop().await?.success());
    }
    Ok(())
}

#[tokio::test]
async fn without_a_certificate_nginx_answers_400() -> Result<()> {
    let page = Page::set(openssl::SERVER_WITH_NAME, |config| config, without_client).await?;
    let (answer, log) = page.get("/none").await?;
    assert_eq!(answer.status, 400);
    ensure!(
        answer.body.contains("No required SSL certificate was sent"),
        "{}",
        answer.body
    );
    assert_eq!(page.only().await?.verified, "NONE");
    // It is the server's answer, and stays it.
    assert_eq!(log.istio("response_code_details"), "via_upstream");
    assert_eq!(log.egress("reason"), "-");
    page.silent.assert_silent().await
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_told_by_nginx() -> Result<()> {
    let stranger = Ca::new("stranger")?.issue(&Leaf::client("client.example.com"))?;
    let page = Page::set(
        openssl::SERVER_WITH_NAME,
        |config| config,
        |folder| {
            let (chain, key) = stranger.write(folder, "stranger").expect("files");
            mutual(&chain, &key, &folder.join("example.com.crt"), "")
        },
    )
    .await?;
    let (answer, log) = page.get("/stranger").await?;
    assert_eq!(answer.status, 400);
    ensure!(
        answer.body.contains("The SSL certificate error"),
        "{}",
        answer.body
    );
    let seen = page.only().await?;
    ensure!(seen.verified.starts_with("FAILED:"), "{seen}");
    assert_eq!(seen.subject, "CN=client.example.com");
    assert_eq!(log.istio("response_code_details"), "via_upstream");
    page.silent.assert_silent().await
}

#[tokio::test]
async fn the_pages_plain_form_names_nobody_and_is_refused() -> Result<()> {
    let page = Page::set(openssl::SERVER, |config| config, page_tls).await?;
    let (answer, log) = page.get("/plain-form").await?;
    assert_eq!(answer.status, 503);
    let why = log.istio("upstream_transport_failure_reason");
    ensure!(why.contains("SAN_matcher"), "{why}");
    // nginx has learnt that the client hung up, and nothing else.
    let (silent, proxy) = (page.silent, page.proxy);
    silent.assert_silent().await?;
    assert!(proxy.stop().await?.success());
    ensure!(page.nginx.seen()?.is_empty(), "{:?}", page.nginx.seen()?);
    ensure!(page.folder.path().exists());
    Ok(())
}

/// A server and a client with keys of these kinds.
const KEYS: [(&str, Key, Key); 7] = [
    ("p256.example", Key::EcdsaP256, Key::EcdsaP256),
    ("p384.example", Key::EcdsaP384, Key::EcdsaP384),
    ("rsa2048.example", Key::Rsa(2048), Key::Rsa(2048)),
    ("rsa4096.example", Key::Rsa(4096), Key::Rsa(4096)),
    ("mixed.example", Key::Rsa(2048), Key::EcdsaP256),
    ("ed25519-client.example", Key::EcdsaP256, Key::Ed25519),
    ("ed25519.example", Key::Ed25519, Key::EcdsaP256),
];

#[tokio::test]
async fn keys_of_every_kind_shake_hands_but_for_servers_with_ed25519() -> Result<()> {
    let trusted = Trusted::new()?;
    let clients = Ca::new("the clients' CA")?;
    let folder = tempfile::tempdir()?;

    let certificate = trusted.ca.issue(&Leaf::for_names(["other.example"]))?;
    let roots = vec![clients.certificate().clone()];
    let mut site = StandInConfig::new(certificate).clients(Clients::Required(roots));
    let mut rules = String::new();
    let mut serials = Vec::new();
    for (host, server_key, client_key) in KEYS {
        let server = Leaf::for_names([host]).key(server_key);
        site = site.with_certificate(trusted.ca.issue(&server)?);
        let client = clients.issue(&Leaf::client(host).key(client_key))?;
        let (chain, key) = client.write(folder.path(), host)?;
        rules += &entry(host, 443);
        rules += &rule(host, &mutual(&chain, &key, &trusted.bundle(), ""));
        serials.push(format!("{:X}", client.serial()));
    }
    let site = StandIn::start(site).await?;
    let mut proxy = trusted.egressctl(&rules).port(80, 0);
    for (host, _, _) in KEYS {
        proxy = proxy.connect_to(&route(host, 443, site.tls_addr()));
    }
    let proxy = proxy.start().await?;

    for ((host, server_key, _), serial) in KEYS.into_iter().zip(serials) {
        let path = format!("/{host}");
        let answer = probe::get(proxy.listener(80)?, host, &path).await?;
        let log = log_of(&proxy, &path).await?;
        let why = log.istio("upstream_transport_failure_reason");
        if server_key == Key::Ed25519 {
            // Envoy's client does not offer the signature, so the server has none to make.
            assert_eq!(answer.status, 503);
            ensure!(why.contains("SSLV3_ALERT_HANDSHAKE_FAILURE"), "{why}");
            let failed = site.counts(Listener::Tls).failed_handshakes;
            let told = failed.iter().any(|one| {
                one.sni.as_deref() == Some(host) && one.error.contains("NoSignatureSchemesInCommon")
            });
            ensure!(told, "{failed:?}");
            ensure!(site.seen().is_empty(), "{:?}", site.seen());
        } else {
            assert_eq!(answer.status, 200, "{host}: {why}");
            let seen = only(&site)?;
            assert_originated(&seen, host, host);
            let client = seen
                .client
                .map(|client| (client.common_name, client.serial));
            assert_eq!(client, Some((host.to_owned(), serial)));
        }
    }
    Ok(())
}

/// Envoy takes no such key: the host is answered 503, the reason is told with the file's name, and the server
/// hears nothing.
async fn assert_client_refused(folder: &Path, reason: &str) -> Result<()> {
    let (chain, key) = (folder.join("client.crt"), folder.join("client.key"));
    let trusted = Trusted::new()?;
    let tls = mutual(&chain, &key, &trusted.bundle(), "");
    let builder = trusted.egressctl(&(entry(HOST, 443) + &rule(HOST, &tls)));
    let stage = Stage::start(builder, trusted.site([HOST]).await?, [HOST]).await?;
    assert_eq!(stage.get(HOST, "/refused").await?.status, 503);
    let said = stage.proxy.stderr().join("\n");
    ensure!(
        said.contains("client.") && said.contains(reason),
        "`{reason}` is not in: {said}"
    );
    // Envoy opens a connection before it looks for its secret, and closes it without a byte.
    ensure!(stage.site.seen().is_empty(), "{:?}", stage.site.seen());
    stage.silent.assert_silent().await
}

#[tokio::test]
async fn an_rsa_client_of_1024_bits_is_told_and_not_used() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let command = "openssl req -x509 -newkey rsa:1024 -nodes -subj /CN=client -keyout client.key -out client.crt";
    openssl::run(command, folder.path()).await?;
    assert_client_refused(
        folder.path(),
        "RSA key of 1024 bits, and Envoy takes 2048 or more",
    )
    .await
}
