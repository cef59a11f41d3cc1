//! A proxy that tells what it was asked: for CONNECT or POST, in plaintext or over TLS.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use rustls::ServerConfig;
use tokio::{
    io::{
        AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
        copy_bidirectional, split,
    },
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{pki::Issued, tls::provider};

/// A running proxy. Dropping it closes the port and all connections.
pub struct ConnectProxy {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _running: JoinSet<()>,
}

impl ConnectProxy {
    /// Leads hosts and ports to addresses, and answers 403 where it knows none; over TLS with a certificate.
    ///
    /// # Errors
    ///
    /// When no port can be bound, or the certificate is none.
    pub async fn start<const N: usize>(
        ways: [(String, SocketAddr); N],
        tls: Option<Issued>,
    ) -> Result<Self> {
        let acceptor = tls.map(|issued| acceptor(&issued)).transpose()?;
        let ways = Arc::new(BTreeMap::from(ways));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let mut running = JoinSet::new();
        let record = Arc::clone(&asked);
        running.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, ways, record) =
                    (acceptor.clone(), Arc::clone(&ways), Arc::clone(&record));
                connections.spawn(async move {
                    let _ended = match acceptor {
                        None => carry(stream, &ways, &record).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => carry(stream, &ways, &record).await,
                            Err(_) => Ok(()),
                        },
                    };
                });
            }
        });
        Ok(Self {
            addr,
            asked,
            _running: running,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it was asked for, in order: host and port, behind `POST ` where that was the method; or the whole of a
    /// request that is neither.
    pub fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn acceptor(issued: &Issued) -> Result<TlsAcceptor> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(issued.chain().to_vec(), issued.key().clone_key())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    ways: &BTreeMap<String, SocketAddr>,
    asked: &Mutex<Vec<String>>,
) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let mut words = head.split(' ');
    let host = head.lines().find_map(|line| line.strip_prefix("host: "));
    let (target, posted) = match (words.next(), words.next(), host) {
        (Some("CONNECT"), Some(target), _) => (target, false),
        (Some("POST"), Some("/"), Some(host)) => (host, true),
        _ => (&*head, false),
    };
    let method = if posted { "POST " } else { "" };
    asked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(format!("{method}{target}"));
    let Some(way) = ways.get(target) else {
        stream
            .write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            .await?;
        return Ok(());
    };
    let mut server = TcpStream::connect(way).await?;
    if posted {
        return carry_chunks(stream, server).await;
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut stream, &mut server).await?;
    Ok(())
}

/// Carries the body of a request to the server, and what it says back as the body of the answer.
///
/// Source: RFC 9112, 7.1, for the chunks.
async fn carry_chunks<S: AsyncRead + AsyncWrite>(stream: S, server: TcpStream) -> Result<()> {
    let (from, mut to) = split(stream);
    let (mut heard, mut said) = server.into_split();
    let mut from = BufReader::new(from);
    let up = async {
        loop {
            let mut line = String::new();
            from.read_line(&mut line).await?;
            let size = usize::from_str_radix(line.trim_end(), 16).context("no size")?;
            let mut chunk = vec![0; size + 2];
            from.read_exact(&mut chunk).await?;
            if size == 0 {
                said.shutdown().await?;
                return anyhow::Ok(());
            }
            chunk.truncate(size);
            said.write_all(&chunk).await?;
        }
    };
    let down = async {
        to.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        let mut room = [0; 4096];
        loop {
            let size = heard.read(&mut room).await?;
            to.write_all(format!("{size:x}\r\n").as_bytes()).await?;
            to.write_all(room.get(..size).unwrap_or_default()).await?;
            to.write_all(b"\r\n").await?;
            if size == 0 {
                return anyhow::Ok(());
            }
        }
    };
    tokio::try_join!(up, down)?;
    Ok(())
}
