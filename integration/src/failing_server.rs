//! A server of HTTPS that fails by the order of the path: `/503/reset/200` is answered with 503 first, then not at all,
//! and then well.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use crate::{pki::Issued, tls::provider};

/// A server that answers each request for a path as the next part of the path says: with a status, `reset` to close the
/// connection without a word, or `hang` to say nothing. Behind the last part it goes on as that says.
///
/// Dropping it closes the port and all connections.
pub struct FailingServer {
    addr: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    accepting: JoinHandle<()>,
}

impl FailingServer {
    /// Listens on a port of 127.0.0.1 that the kernel chooses.
    ///
    /// # Errors
    ///
    /// When no port can be bound, or the certificate is none.
    pub async fn start(certificate: &Issued) -> Result<Self> {
        let tls = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(certificate.chain().to_vec(), certificate.key().clone_key())?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&heard);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, notes) = (acceptor.clone(), Arc::clone(&notes));
                // A client that goes away in between is no failure of the server.
                connections.spawn(async move { serve(stream, acceptor, &notes).await });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            addr,
            heard,
            accepting,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many requests for a path came over TLS.
    pub fn heard(&self, path: &str) -> usize {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().filter(|other| *other == path).count()
    }
}

impl Drop for FailingServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    heard: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let before = {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let before = heard.iter().filter(|other| **other == path).count();
        heard.push(path.clone());
        before
    };
    let acts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match acts.get(before).or(acts.last()).copied() {
        Some("reset") | None => Ok(()),
        Some("hang") => std::future::pending().await,
        Some(status) => {
            let answer = format!(
                "HTTP/1.1 {status} As Told\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await
        }
    }
}
