//! A server that speaks TLS and, in it, bytes: it greets, it repeats, and it tells what it heard.

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

use crate::{
    pki::Issued,
    tls::{alpn_name, provider},
};

/// What it does with a connection.
#[derive(Clone, Debug, Default)]
pub struct TlsServerConfig {
    /// What it says before anything is heard.
    pub greeting: Vec<u8>,
    /// The only protocol it takes by ALPN; without it, it has none.
    pub alpn: Option<Vec<u8>>,
    /// It ends its half behind the greeting, and listens on.
    pub ends_first: bool,
}

/// A connection whose handshake was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The name in the ClientHello.
    pub sni: Option<String>,
    /// The protocol that was agreed on.
    pub alpn: Option<String>,
    /// How many bytes came.
    pub bytes: u64,
    /// The client ended its half in order, with an alert `close_notify`.
    pub ended: bool,
}

/// A server that repeats what it hears, until the client ends its half; then it says `end` and ends its own.
///
/// Dropping it closes the port and all connections.
pub struct TlsServer {
    addr: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    accepting: JoinHandle<()>,
}

impl TlsServer {
    /// Listens on a port of 127.0.0.1 that the kernel chooses.
    ///
    /// # Errors
    ///
    /// When no port can be bound, or the certificate is none.
    pub async fn start(certificate: &Issued, config: TlsServerConfig) -> Result<Self> {
        Self::start_at(certificate, config, (Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Listens on a port that the test chose; see [`netns`](crate::netns).
    ///
    /// # Errors
    ///
    /// When the port cannot be bound, or the certificate is none.
    pub async fn start_at(
        certificate: &Issued,
        config: TlsServerConfig,
        at: SocketAddr,
    ) -> Result<Self> {
        let chain = certificate.chain().to_vec();
        let mut tls = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, certificate.key().clone_key())?;
        tls.alpn_protocols = config.alpn.iter().cloned().collect();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind(at).await?;
        let addr = listener.local_addr()?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&heard);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, config) = (acceptor.clone(), config.clone());
                let notes = Arc::clone(&notes);
                // A client that goes away in between is no failure of the server.
                connections.spawn(async move { serve(stream, acceptor, &config, &notes).await });
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

    /// The connections so far whose handshake was done.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    config: &TlsServerConfig,
    notes: &Mutex<Vec<Heard>>,
) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let connection = stream.get_ref().1;
    let heard = Heard {
        sni: connection.server_name().map(str::to_owned),
        alpn: connection.alpn_protocol().map(alpn_name),
        bytes: 0,
        ended: false,
    };
    let place = {
        let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push(heard);
        notes.len() - 1
    };
    let note = |change: &dyn Fn(&mut Heard)| {
        let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.get_mut(place).into_iter().for_each(change);
    };
    if !config.greeting.is_empty() {
        stream.write_all(&config.greeting).await?;
        stream.flush().await?;
    }
    if config.ends_first {
        stream.shutdown().await?;
    }
    let mut room = vec![0; 65_536];
    loop {
        let len = stream.read(&mut room).await?;
        if len == 0 {
            note(&|heard| heard.ended = true);
            if config.ends_first {
                return Ok(());
            }
            stream.write_all(b"end").await?;
            return stream.shutdown().await;
        }
        note(&|heard| heard.bytes += len as u64);
        if config.ends_first {
            continue;
        }
        stream
            .write_all(room.get(..len).unwrap_or_default())
            .await?;
        stream.flush().await?;
    }
}
