//! The certificates of the task page, made by its own `openssl` commands.
//!
//! A command is a line of shell, letter for letter as the page has it, and works on the files of
//! one folder. The page is Istio's "Egress TLS Origination", section "Generate client and server
//! certificates and keys". Source: istio/istio.io
//! `content/en/docs/tasks/traffic-management/egress/egress-tls-origination/index.md`.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{process::Command, time::timeout};

/// The root certificate: `example.com.crt` and `.key`.
pub const ROOT: &[&str] = &[
    "openssl req -x509 -sha256 -nodes -days 365 -newkey rsa:2048 -subj '/O=example Inc./CN=example.com' -keyout example.com.key -out example.com.crt",
];

/// The server's certificate in the page's plain form, which names the host in the common name only:
/// `my-nginx.mesh-external.svc.cluster.local.crt` and `.key`. It needs [`ROOT`].
pub const SERVER: &[&str] = &[
    r#"openssl req -out my-nginx.mesh-external.svc.cluster.local.csr -newkey rsa:2048 -nodes -keyout my-nginx.mesh-external.svc.cluster.local.key -subj "/CN=my-nginx.mesh-external.svc.cluster.local/O=some organization""#,
    "openssl x509 -req -sha256 -days 365 -CA example.com.crt -CAkey example.com.key -set_serial 0 -in my-nginx.mesh-external.svc.cluster.local.csr -out my-nginx.mesh-external.svc.cluster.local.crt",
];

/// The server's certificate in the page's optional form, with a subject alternative name. It takes
/// the place of what [`SERVER`] makes.
pub const SERVER_WITH_NAME: &[&str] = &[
    "cat > san.conf <<EOF
[req]
distinguished_name = req_distinguished_name
req_extensions = v3_req
x509_extensions = v3_req
prompt = no
[req_distinguished_name]
countryName = US
[v3_req]
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth, clientAuth
basicConstraints = critical, CA:FALSE
subjectAltName = critical, @alt_names
[alt_names]
DNS = my-nginx.mesh-external.svc.cluster.local
EOF",
    r#"openssl req -out my-nginx.mesh-external.svc.cluster.local.csr -newkey rsa:4096 -nodes -keyout my-nginx.mesh-external.svc.cluster.local.key -subj "/CN=my-nginx.mesh-external.svc.cluster.local/O=some organization" -config san.conf"#,
    "openssl x509 -req -sha256 -days 365 -CA example.com.crt -CAkey example.com.key -set_serial 0 -in my-nginx.mesh-external.svc.cluster.local.csr -out my-nginx.mesh-external.svc.cluster.local.crt -extfile san.conf -extensions v3_req",
];

/// The client's certificate: `client.example.com.crt` and `.key`. It needs [`ROOT`].
pub const CLIENT: &[&str] = &[
    r#"openssl req -out client.example.com.csr -newkey rsa:2048 -nodes -keyout client.example.com.key -subj "/CN=client.example.com/O=client organization""#,
    "openssl x509 -req -sha256 -days 365 -CA example.com.crt -CAkey example.com.key -set_serial 1 -in client.example.com.csr -out client.example.com.crt",
];

/// How long a command may take; RSA keys of 4096 bits have bad luck at times.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs one command in `folder`.
///
/// # Errors
///
/// When it fails; the message tells what it said.
pub async fn run(command: &str, folder: &Path) -> Result<()> {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(folder)
        // Defaults of somebody's own would be others than the page's.
        .env_remove("OPENSSL_CONF")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(LIMIT, shell.output())
        .await
        .with_context(|| format!("this does not end: {command}"))?
        .with_context(|| format!("this cannot be started: {command}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {command}\n{said}", output.status);
    }
    Ok(())
}

/// Runs commands in `folder`, one after the other.
///
/// # Errors
///
/// As [`run`], at the first one that fails.
pub async fn run_all(commands: &[&str], folder: &Path) -> Result<()> {
    for command in commands {
        run(command, folder).await?;
    }
    Ok(())
}
