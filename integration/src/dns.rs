//! A DNS server that leads the names of a test to this machine, counts who asked, and fails where it is told to.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use hickory_proto::{
    op::{Metadata, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};
use hickory_server::{
    Server,
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tokio::net::{TcpListener, UdpSocket};

/// How long an answer may be kept, in seconds. One second is the least that is not "never".
const TTL_SECONDS: u32 = 1;
/// How long a TCP connection may say nothing.
const TCP_IDLE: Duration = Duration::from_secs(30);
/// Answers that may wait on one TCP connection.
const TCP_BUFFERED_ANSWERS: usize = 32;
/// How often to look for a port that is free for UDP and TCP alike.
const BIND_ATTEMPTS: usize = 20;

/// The names that a [`DnsServer`] knows.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    names: BTreeMap<String, Vec<IpAddr>>,
    otherwise: Option<Vec<IpAddr>>,
}

impl Zone {
    /// A zone in which no name exists.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same zone with a name, whose case and trailing dot do not matter.
    ///
    /// Without an address the name exists and has no record.
    #[must_use]
    pub fn name<A: Into<IpAddr>>(
        mut self,
        name: &str,
        addresses: impl IntoIterator<Item = A>,
    ) -> Self {
        let addresses = addresses.into_iter().map(Into::into).collect();
        self.names.insert(canonical(name), addresses);
        self
    }

    /// The same zone, in which every other name exists and has these addresses.
    #[must_use]
    pub fn every_name(mut self, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        self.otherwise = Some(addresses.into_iter().map(IpAddr::V4).collect());
        self
    }

    fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        let known = self.names.get(name).or(self.otherwise.as_ref());
        known.map(Vec::as_slice)
    }
}

/// What a [`DnsServer`] does to questions about a name in place of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It says that it failed.
    ServFail,
    /// It says that there is no such name.
    NxDomain,
    /// It says nothing, as when the answer is lost.
    Silence,
}

/// A running DNS server, over UDP and TCP on one port. Dropping it closes the port.
pub struct DnsServer {
    addr: SocketAddr,
    asked: Asked,
    state: Arc<Mutex<State>>,
    _server: Server<Answerer>,
}

/// What is answered; a test may change it.
struct State {
    zone: Zone,
    troubles: BTreeMap<String, (Trouble, u64)>,
    /// How many questions were not answered as the zone has it.
    troubled: BTreeMap<String, u64>,
}

impl State {
    /// Returns what to do to a question about this name, and counts it.
    fn trouble(&mut self, name: &str) -> Option<Trouble> {
        let (trouble, left) = self.troubles.get_mut(name).filter(|(_, left)| *left > 0)?;
        *left -= 1;
        *self.troubled.entry(name.to_owned()).or_default() += 1;
        Some(*trouble)
    }
}

impl DnsServer {
    /// Starts on a port of 127.0.0.1 that the kernel chooses.
    ///
    /// A name of the zone gets its A or AAAA records, and an answer without records to any other question.
    /// A name outside gets NXDOMAIN.
    ///
    /// # Errors
    ///
    /// When no port is free for UDP and TCP alike.
    pub async fn start(zone: Zone) -> Result<Self> {
        let (tcp, udp) = bind().await?;
        let addr = tcp.local_addr()?;
        let asked = Asked::default();
        let state = Arc::new(Mutex::new(State {
            zone,
            troubles: BTreeMap::new(),
            troubled: BTreeMap::new(),
        }));
        let mut server = Server::new(Answerer {
            state: Arc::clone(&state),
            asked: asked.clone(),
        });
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_BUFFERED_ANSWERS);
        Ok(Self {
            addr,
            asked,
            state,
            _server: server,
        })
    }

    /// Where it listens, for UDP and for TCP.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Leads a name to other addresses from now on.
    pub fn lead<A: Into<IpAddr>>(&self, name: &str, addresses: impl IntoIterator<Item = A>) {
        let addresses = addresses.into_iter().map(Into::into).collect();
        let mut state = lock(&self.state);
        state.zone.names.insert(canonical(name), addresses);
    }

    /// Does this to the next questions of any type about a name, and answers those after them.
    pub fn trouble(&self, name: &str, trouble: Trouble, questions: u64) {
        let mut state = lock(&self.state);
        state.troubles.insert(canonical(name), (trouble, questions));
    }

    /// How many questions about a name met a [`Trouble`].
    pub fn troubled(&self, name: &str) -> u64 {
        let state = lock(&self.state);
        state
            .troubled
            .get(&canonical(name))
            .copied()
            .unwrap_or_default()
    }

    /// How many questions of any type were asked about a name, known or not.
    pub fn queries(&self, name: &str) -> u64 {
        let asked = self.asked.lock();
        asked.get(&canonical(name)).copied().unwrap_or_default()
    }

    /// The names that were asked for and how often, in lower case and without the trailing dot.
    pub fn asked(&self) -> BTreeMap<String, u64> {
        self.asked.lock().clone()
    }
}

#[derive(Clone, Default)]
struct Asked(Arc<Mutex<BTreeMap<String, u64>>>);

impl Asked {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        lock(&self.0)
    }
}

/// What is behind it stays sound whoever panicked while holding it.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Answerer {
    state: Arc<Mutex<State>>,
    asked: Asked,
}

impl Answerer {
    /// Returns the answer, or nothing where there is to be none.
    fn records(&self, name: &Name, asked_for: RecordType) -> Option<(ResponseCode, Vec<Record>)> {
        let key = canonical(&name.to_utf8());
        *self.asked.lock().entry(key.clone()).or_default() += 1;
        let mut state = lock(&self.state);
        match state.trouble(&key) {
            None => {}
            Some(Trouble::ServFail) => return Some((ResponseCode::ServFail, Vec::new())),
            Some(Trouble::NxDomain) => return Some((ResponseCode::NXDomain, Vec::new())),
            Some(Trouble::Silence) => return None,
        }
        let Some(addresses) = state.zone.addresses(&key) else {
            return Some((ResponseCode::NXDomain, Vec::new()));
        };
        let records = addresses.iter().filter_map(|ip| match (ip, asked_for) {
            (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(*ip))),
            (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(*ip))),
            _ => None,
        });
        let records = records
            .map(|data| Record::from_rdata(name.clone(), TTL_SECONDS, data))
            .collect();
        Some((ResponseCode::NoError, records))
    }
}

#[async_trait::async_trait]
impl RequestHandler for Answerer {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        let found = match request.request_info() {
            Ok(info) => self.records(info.query.name(), info.query.query_type()),
            Err(_) => Some((ResponseCode::FormErr, Vec::new())),
        };
        let silent = found.is_none();
        let (code, records) = found.unwrap_or_default();
        metadata.response_code = code;
        if silent {
            return told(metadata);
        }
        let message = MessageResponseBuilder::from_message_request(request).build(
            metadata,
            &records,
            [],
            [],
            [],
        );
        match response.send_response(message).await {
            Ok(info) => info,
            // Whoever asked has gone.
            Err(_) => told(metadata),
        }
    }
}

/// The server wants to know what would have been said.
fn told(metadata: Metadata) -> ResponseInfo {
    hickory_proto::op::Header {
        metadata,
        counts: hickory_proto::op::HeaderCounts::default(),
    }
    .into()
}

async fn bind() -> Result<(TcpListener, UdpSocket)> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = tcp.local_addr()?;
        match UdpSocket::bind(addr).await {
            Ok(udp) => return Ok((tcp, udp)),
            Err(_) if attempts < BIND_ATTEMPTS => {}
            Err(error) => {
                return Err(error).context("no port is free for both UDP and TCP");
            }
        }
    }
}

fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}
