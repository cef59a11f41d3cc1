//! A port that nobody should talk to.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

/// How much of what was said is kept, in bytes of each connection.
const KEPT_BYTES: u64 = 256;
/// How long the port's own connection may take to show up; only a stuck machine needs so long.
const MARKER_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection that was heard may take to say something, for the sake of the message.
const FIRST_BYTES_LIMIT: Duration = Duration::from_millis(500);

/// A plain TCP listener that must hear nothing: it accepts, takes notes, and answers nothing.
///
/// It stands where plaintext would arrive if TLS were left out. It hangs up after the first bytes.
/// Dropping it closes the port.
pub struct SilentPort {
    addr: SocketAddr,
    notes: Arc<watch::Sender<Notes>>,
    accepting: JoinHandle<()>,
}

/// A connection that a silent port heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Who connected.
    pub peer: SocketAddr,
    /// What came first, cut at 256 bytes; empty while nothing came.
    pub first_bytes: Vec<u8>,
}

impl SilentPort {
    /// Listens on a port of 127.0.0.1 that the kernel chooses.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let notes = Arc::new(watch::Sender::default());
        Ok(Self {
            addr: listener.local_addr()?,
            accepting: tokio::spawn(accept(listener, Arc::clone(&notes))),
            notes,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The connections noted so far. To prove that there were none, use
    /// [`SilentPort::assert_silent`]: one that was just made may not be noted yet.
    pub fn heard(&self) -> Vec<Heard> {
        self.notes.borrow().strangers()
    }

    /// Proves that nobody connected before this call.
    ///
    /// It connects to the port itself and waits until that is noted. A kernel hands connections out
    /// in the order they came, so every earlier one is noted by then.
    ///
    /// # Errors
    ///
    /// When somebody did; the message tells what was said.
    pub async fn assert_silent(&self) -> Result<()> {
        let marker = TcpSocket::new_v4()?;
        marker.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let own = marker.local_addr()?;
        self.notes.send_modify(|notes| {
            notes.own.insert(own);
        });
        let _open = marker.connect(self.addr).await?;

        let mut changes = self.notes.subscribe();
        timeout(
            MARKER_LIMIT,
            changes.wait_for(|notes| notes.heard.iter().any(|heard| heard.peer == own)),
        )
        .await
        .context("the silent port does not accept its own connection")??;

        if self.heard().is_empty() {
            return Ok(());
        }
        let told = |notes: &Notes| {
            let mut strangers = notes.strangers().into_iter();
            strangers.all(|heard| !heard.first_bytes.is_empty())
        };
        // Whoever connects and says nothing has broken the silence all the same.
        let _told = timeout(FIRST_BYTES_LIMIT, changes.wait_for(told)).await;
        let heard: Vec<_> = self.heard().iter().map(ToString::to_string).collect();
        bail!(
            "{} should be silent but heard {}",
            self.addr,
            heard.join("; ")
        );
    }
}

impl std::fmt::Display for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: \"{}\"", self.peer, self.first_bytes.escape_ascii())
    }
}

impl Drop for SilentPort {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Default)]
struct Notes {
    heard: Vec<Heard>,
    /// Connections of [`SilentPort::assert_silent`], which do not count.
    own: BTreeSet<SocketAddr>,
}

impl Notes {
    fn strangers(&self) -> Vec<Heard> {
        let strangers = self.heard.iter();
        strangers
            .filter(|heard| !self.own.contains(&heard.peer))
            .cloned()
            .collect()
    }
}

async fn accept(listener: TcpListener, notes: Arc<watch::Sender<Notes>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A connection that was gone before it could be accepted has said nothing.
                let Ok((stream, peer)) = accepted else { continue };
                notes.send_modify(|notes| {
                    notes.heard.push(Heard { peer, first_bytes: Vec::new() });
                });
                connections.spawn(listen(stream, peer, Arc::clone(&notes)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Notes what comes first and hangs up, so that whoever waits for an answer learns that there is none.
async fn listen(mut stream: TcpStream, peer: SocketAddr, notes: Arc<watch::Sender<Notes>>) {
    let mut first_bytes = Vec::new();
    // Reading fails when the other side has reset the connection, and then nothing was said.
    let _read = (&mut stream)
        .take(KEPT_BYTES)
        .read_buf(&mut first_bytes)
        .await;
    notes.send_modify(|notes| {
        let mut heard = notes.heard.iter_mut().rev();
        if let Some(heard) = heard.find(|heard| heard.peer == peer) {
            heard.first_bytes = first_bytes;
        }
    });
}
