//! The page's nginx with the page's certificates, proven without a proxy.

use std::time::Duration;

use anyhow::Result;

use egress_integration::{
    nginx::{Nginx, NginxConfig, VerifyClient},
    openssl, probe,
};

const HOST: &str = "my-nginx.mesh-external.svc.cluster.local";
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_pages_nginx_wants_a_certificate() -> Result<()> {
    let folder = tempfile::tempdir()?;
    openssl::run_all(openssl::ROOT, folder.path()).await?;
    openssl::run_all(openssl::SERVER_WITH_NAME, folder.path()).await?;
    let ca = std::fs::read_to_string(folder.path().join("example.com.crt"))?;
    // Which versions are the default depends on nginx's own.
    let config = NginxConfig::page(folder.path())?.directive("ssl_protocols TLSv1.3;");

    let nginx = Nginx::start(&config).await?;
    let got = probe::get_tls(nginx.addr(), HOST, HOST, "/", &ca).await?;
    assert_eq!(got.answer.status, 400);
    let wanted = "No required SSL certificate was sent";
    assert!(got.answer.body.contains(wanted), "{}", got.answer.body);
    let seen = nginx.wait_for(1, SOON).await?;
    let [seen] = &seen[..] else {
        panic!("one request was expected: {seen:?}");
    };
    assert_eq!(
        seen.to_string(),
        format!("NONE \"\" TLSv1.3 SNI {HOST} Host {HOST} \"GET / HTTP/1.1\" 400")
    );
    assert_eq!(
        (seen.https.as_str(), seen.x_forwarded_proto.as_str()),
        ("on", "")
    );
    assert_eq!(nginx.access_log()?.len(), 1);
    nginx.stop().await?;

    let open = Nginx::start(&config.verify_client(VerifyClient::Off)).await?;
    let got = probe::get_tls(open.addr(), HOST, HOST, "/", &ca).await?;
    assert_eq!(got.answer.status, 200);
    assert!(got.answer.body.contains("<title>Welcome to nginx!</title>"));
    assert!(open.error_log()?.is_empty(), "{:?}", open.error_log()?);
    Ok(())
}

#[tokio::test]
async fn a_command_that_fails_tells_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // The root is missing.
    let result = openssl::run_all(openssl::CLIENT, folder.path()).await;
    let error = result.err().map(|error| error.to_string());
    let told =
        |text: &String| text.contains("openssl x509 -req") && text.contains("example.com.crt");
    assert!(error.as_ref().is_some_and(told), "{error:?}");
    Ok(())
}
