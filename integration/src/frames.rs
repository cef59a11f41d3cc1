//! HTTP/2 by hand: frames that no client or server would send, and what comes back.
//!
//! Source: RFC 9113, section 4.1 for frames, section 6 for their kinds; RFC 7541, section 6.2.2 for headers.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{pki::Issued, tls};

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The kinds of frames.
pub const DATA: u8 = 0;
/// Headers; CONTINUATION has what does not fit.
pub const HEADERS: u8 = 1;
/// The end of one stream by an error.
pub const RST_STREAM: u8 = 3;
/// Settings of the connection.
pub const SETTINGS: u8 = 4;
/// The end of the connection.
pub const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The largest frame that everybody takes.
const LARGEST: usize = 16 << 10;

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which kind it is.
    pub kind: u8,
    /// The stream that it is for.
    pub stream: u32,
    /// What it has.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error of the frame that ends a stream or the connection.
    pub fn error(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        let code = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(code.try_into().ok()?))
    }
}

/// Writes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = size.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Writes a whole message without a body: its headers as they are given, whatever they are.
pub fn headers(stream: u32, headers: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        // Literal, not indexed, with a new name.
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend(*text);
        }
    }
    let mut chunks = block.chunks(LARGEST).peekable();
    let (mut bytes, mut kind) = (Vec::new(), HEADERS);
    while let Some(chunk) = chunks.next() {
        let last = if chunks.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        let end = if kind == HEADERS { END_STREAM } else { 0 };
        bytes.extend(frame(kind, last | end, stream, chunk));
        kind = CONTINUATION;
    }
    bytes
}

/// Writes the length of a text, with a prefix of seven bits.
fn length(block: &mut Vec<u8>, length: usize) {
    let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    if length < 127 {
        return block.push(byte(length));
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push(byte(rest % 128 + 128));
        rest /= 128;
    }
    block.push(byte(rest));
}

/// Reads the next frame; `None` where the connection ends first.
///
/// # Errors
///
/// When nothing comes in time.
pub async fn next(stream: &mut (impl AsyncRead + Unpin), limit: Duration) -> Result<Option<Frame>> {
    let read = async {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, _, stream_id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await?;
        std::io::Result::Ok(Frame {
            kind,
            stream: u32::from_be_bytes(stream_id),
            payload,
        })
    };
    Ok(timeout(limit, read).await.context("no frame")?.ok())
}

/// Reads frames until a stream has ended, or the connection has.
///
/// # Errors
///
/// When that does not come in time, or there are very many.
pub async fn until_end(
    stream: &mut (impl AsyncRead + Unpin),
    id: u32,
    limit: Duration,
) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    while let Some(frame) = next(stream, limit).await? {
        let ended = frame.stream == id && (frame.kind == RST_STREAM || frame.kind == DATA);
        frames.push(frame);
        if ended {
            break;
        }
        ensure!(frames.len() < 100, "{frames:?}");
    }
    Ok(frames)
}

/// A server that speaks HTTP/2 over TLS, and answers every request with frames that the test wrote. Dropping it closes
/// the port and all connections.
pub struct FrameServer {
    addr: SocketAddr,
    accepting: JoinHandle<()>,
}

impl FrameServer {
    /// Listens on a port that the kernel chose. `answer` writes the frames for a stream.
    ///
    /// # Errors
    ///
    /// When no port can be bound, or the certificate is none.
    pub async fn start(
        certificate: &Issued,
        answer: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
    ) -> Result<Self> {
        let chain = certificate.chain().to_vec();
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, certificate.key().clone_key())?;
        config.alpn_protocols = vec![tls::H2.to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (addr, answer) = (listener.local_addr()?, Arc::new(answer));
        let accepting = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
                open.spawn(async move {
                    // Whoever goes away has seen what there was to see.
                    let _ended = serve(stream, acceptor, &*answer).await;
                });
            }
        });
        Ok(Self { addr, accepting })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for FrameServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    answer: &(impl Fn(u32) -> Vec<u8> + Sync),
) -> Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut preface = vec![0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    while let Some(frame) = next(&mut stream, Duration::from_secs(60)).await? {
        if frame.kind == HEADERS {
            stream.write_all(&answer(frame.stream)).await?;
            stream.flush().await?;
        }
    }
    Ok(())
}
