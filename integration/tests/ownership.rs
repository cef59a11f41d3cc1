//! Whose ServiceEntry a host is: the servers tell which of them was reached.

mod common;

use anyhow::{Context as _, Result, ensure};

use egress_integration::{
    egressctl::{Builder, Running},
    probe,
    stand_in::{Listener, StandIn},
};

use common::{HOST, Trusted, assert_originated, eventually, log_of, only};

/// An entry of a namespace whose one server is a stand-in, on its TLS port.
fn entry(id: &str, created: u8, site: &StandIn, more: &str) -> String {
    let (namespace, name) = id.split_once('/').unwrap_or(("default", id));
    let port = site.tls_addr().port();
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: \"2025-01-{created:02}T00:00:00Z\"}}
spec:
  hosts: [{HOST}]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}{more}}}]
"
    )
}

fn rule(namespace: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: tls, namespace: {namespace}}}
spec: {{host: {HOST}, trafficPolicy: {{tls: {{mode: SIMPLE}}}}}}
"
    )
}

async fn start(builder: Builder, namespace: &str) -> Result<Running> {
    let builder = builder.port(80, 0).arg("--namespace").arg(namespace);
    builder.start().await
}

async fn status(proxy: &Running, path: &str) -> Result<u16> {
    Ok(probe::get(proxy.listener(80)?, HOST, path).await?.status)
}

#[tokio::test]
async fn a_request_goes_to_the_callers_own_namespace() -> Result<()> {
    let trusted = Trusted::new()?;
    let (other, mine) = (trusted.site([HOST]).await?, trusted.site([HOST]).await?);
    let rules = entry("other/api", 1, &other, "")
        + &entry("mine/api", 2, &mine, "")
        + &rule("istio-system");
    for (namespace, reached, left_alone) in [
        ("mine", &mine, &other),
        ("other", &other, &mine),
        ("third", &other, &mine),
    ] {
        let proxy = start(trusted.egressctl(&rules), namespace).await?;
        assert_eq!(status(&proxy, "/own").await?, 200, "{namespace}");
        let port = reached.tls_addr().port();
        assert_originated(&only(reached)?, HOST, HOST);
        ensure!(left_alone.take_seen().is_empty(), "{namespace}");
        // What the log says was dialled is what was dialled.
        let log = log_of(&proxy, "/own").await?;
        assert_eq!(log.egress("target"), format!("127.0.0.1:{port}"));
        proxy.stop().await?;
    }
    for site in [&other, &mine] {
        assert_eq!(site.counts(Listener::Plain).connections, 0);
    }
    Ok(())
}

#[tokio::test]
async fn endpoints_of_one_namespace_are_all_reached() -> Result<()> {
    let trusted = Trusted::new()?;
    let (one, two) = (trusted.site([HOST]).await?, trusted.site([HOST]).await?);
    // The second is seen by nobody, and its endpoints count all the same.
    let hidden = entry("svc/two", 2, &two, "") + "  exportTo: [\"~\"]\n";
    let rules = entry("svc/one", 1, &one, "") + &hidden + &rule("svc");
    let proxy = start(trusted.egressctl(&rules), "default").await?;
    for _ in 0..40 {
        assert_eq!(status(&proxy, "/").await?, 200);
    }
    let counts = [one.take_seen().len(), two.take_seen().len()];
    assert_eq!(counts.iter().sum::<usize>(), 40);
    ensure!(counts.iter().all(|count| *count > 0), "{counts:?}");
    Ok(())
}

/// A certificate for the host alone is not enough where an endpoint has an account.
#[tokio::test]
async fn the_account_of_an_endpoint_must_be_in_the_certificate() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let rules = entry("svc/api", 1, &site, ", serviceAccount: sa") + &rule("svc");
    let proxy = start(trusted.egressctl(&rules), "default").await?;
    assert_eq!(status(&proxy, "/account").await?, 503);
    ensure!(site.take_seen().is_empty());
    let log = log_of(&proxy, "/account").await?;
    assert_eq!(log.egress("reason"), "name_mismatch");
    assert_eq!(
        log.egress("verify"),
        format!("{HOST}+spiffe://cluster.local/ns/svc/sa/sa")
    );
    Ok(())
}

/// The rule with `tls` is that of a root namespace which only the mesh's configuration names. Before it does, nothing
/// leaves; when the file changes, the rule counts.
#[tokio::test]
async fn the_configuration_of_the_mesh_is_read_again() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let rules = entry("svc/api", 1, &site, "") + &rule("mesh-root");
    let mesh = trusted.file("mesh.yaml", "accessLogFile: /dev/stdout\n")?;
    let builder = trusted
        .egressctl(&rules)
        .arg("--mesh-config")
        .arg(mesh.as_os_str());
    let proxy = start(builder, "default").await?;
    assert_eq!(status(&proxy, "/before").await?, 502);
    let log = log_of(&proxy, "/before").await?;
    assert_eq!(log.egress("action"), "reject");
    assert_eq!(log.egress("reason"), "left_out");

    trusted.file("mesh.yaml", "rootNamespace: mesh-root\n")?;
    let applied = eventually("the rule of the root namespace counts", async || {
        Ok(status(&proxy, "/after").await? == 200)
    });
    applied.await.with_context(|| proxy.stderr().join("\n"))?;
    let seen = site.take_seen().pop().context("nobody came")?;
    assert_originated(&seen, HOST, HOST);
    assert_eq!(site.counts(Listener::Plain).connections, 0);
    Ok(())
}
