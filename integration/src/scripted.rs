//! An HTTPS server whose test decides what becomes of each request: an answer, an end or a reset.

use std::{
    net::SocketAddr,
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

/// A request, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The number of its connection, from zero on.
    pub connection: usize,
    /// Its number on the connection, from zero on.
    pub nth: usize,
    /// Its first line and its headers.
    pub head: String,
    /// Its body, as long as `content-length` says. It is not there yet when the test decides.
    pub body: Vec<u8>,
}

impl Asked {
    /// Its method.
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// The path that it asks for.
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// The value of a header, whose name is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A status and a text.
    Answer(u16, String),
    /// The same with a text, and then the connection ends.
    Last(String),
    /// These bytes and no others.
    Whole(String),
    /// 200 with these bytes.
    File(Vec<u8>),
    /// These bytes before the body is read, and then that.
    First(String, Box<Reply>),
    /// These bytes while the body is still to come, and then the connection ends.
    Early(String),
    /// No answer; the connection is reset.
    Reset,
    /// No answer; the connection stays.
    Silence,
}

/// The server. Dropping it closes the port and all connections.
pub struct Scripted {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    accepting: JoinHandle<()>,
}

impl Scripted {
    /// Listens at an address; port 0 lets the kernel choose.
    ///
    /// # Errors
    ///
    /// When the port cannot be bound, or the certificate is none.
    pub async fn start(
        certificate: &Issued,
        at: SocketAddr,
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        let chain = certificate.chain().to_vec();
        let tls = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, certificate.key().clone_key())?;
        let tls = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind(at).await?;
        let addr = listener.local_addr()?;
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let (noted, script) = (asked.clone(), Arc::new(script));
        let accepting = tokio::spawn(async move {
            let mut open = JoinSet::new();
            let mut connection = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, noted, script) = (tls.clone(), noted.clone(), script.clone());
                open.spawn(async move {
                    // Whoever goes away has seen what there was to see.
                    let _ended = serve(stream, tls, connection, &noted, &*script).await;
                });
                connection += 1;
            }
        });
        Ok(Self {
            addr,
            asked,
            accepting,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    stream: TcpStream,
    tls: TlsAcceptor,
    connection: usize,
    noted: &Mutex<Vec<Asked>>,
    script: &(impl Fn(&Asked) -> Reply + Sync),
) -> Result<()> {
    let mut stream = tls.accept(stream).await?;
    for nth in 0.. {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let mut asked = Asked {
            connection,
            nth,
            head: String::from_utf8_lossy(&head).into_owned(),
            body: Vec::new(),
        };
        let mut reply = script(&asked);
        while let Reply::First(bytes, then) = reply {
            stream.write_all(bytes.as_bytes()).await?;
            stream.flush().await?;
            reply = *then;
        }
        let length = asked.header("content-length").unwrap_or("0").parse()?;
        let mut body = vec![0; length];
        if !matches!(reply, Reply::Early(_)) {
            stream.read_exact(&mut body).await?;
            asked.body = body;
        }
        let head_only = asked.head.starts_with("HEAD ");
        note(noted, asked);
        let (status, text, last) = match reply {
            Reply::Answer(status, text) => (status, text.into_bytes(), false),
            Reply::Last(text) => (200, text.into_bytes(), true),
            Reply::File(bytes) => (200, bytes, false),
            Reply::Early(bytes) => {
                stream.write_all(bytes.as_bytes()).await?;
                return Ok(stream.shutdown().await?);
            }
            Reply::First(..) => return Ok(()),
            Reply::Whole(bytes) => {
                stream.write_all(bytes.as_bytes()).await?;
                stream.flush().await?;
                continue;
            }
            Reply::Silence => std::future::pending().await,
            Reply::Reset => {
                let (tcp, _) = stream.into_inner();
                tcp.set_zero_linger()?;
                return Ok(());
            }
        };
        let end = if last { "connection: close\r\n" } else { "" };
        let mut answer = format!(
            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n{end}\r\n",
            text.len()
        )
        .into_bytes();
        if !head_only {
            answer.extend(text);
        }
        stream.write_all(&answer).await?;
        stream.flush().await?;
        if last {
            stream.shutdown().await?;
            return Ok(());
        }
    }
    Ok(())
}

fn note(noted: &Mutex<Vec<Asked>>, asked: Asked) {
    let mut all = noted.lock().unwrap_or_else(PoisonError::into_inner);
    all.push(asked);
}
