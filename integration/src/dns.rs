//! A DNS server that leads the names of a test to this machine, and counts who asked.

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

/// A running DNS server, over UDP and TCP on one port. Dropping it closes the port.
pub struct DnsServer {
    addr: SocketAddr,
    asked: Asked,
    _server: Server<Answerer>,
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
        let mut server = Server::new(Answerer {
            zone,
            asked: asked.clone(),
        });
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_BUFFERED_ANSWERS);
        Ok(Self {
            addr,
            asked,
            _server: server,
        })
    }

    /// Where it listens, for UDP and for TCP.
    pub fn addr(&self) -> SocketAddr {
        self.addr
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
        // Counts stay sound whoever panicked while holding them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Answerer {
    zone: Zone,
    asked: Asked,
}

impl Answerer {
    fn records(&self, name: &Name, asked_for: RecordType) -> (ResponseCode, Vec<Record>) {
        let key = canonical(&name.to_utf8());
        *self.asked.lock().entry(key.clone()).or_default() += 1;
        let Some(addresses) = self.zone.addresses(&key) else {
            return (ResponseCode::NXDomain, Vec::new());
        };
        let records = addresses.iter().filter_map(|ip| match (ip, asked_for) {
            (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(*ip))),
            (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(*ip))),
            _ => None,
        });
        let records = records
            .map(|data| Record::from_rdata(name.clone(), TTL_SECONDS, data))
            .collect();
        (ResponseCode::NoError, records)
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
        let (code, records) = match request.request_info() {
            Ok(info) => self.records(info.query.name(), info.query.query_type()),
            Err(_) => (ResponseCode::FormErr, Vec::new()),
        };
        metadata.response_code = code;
        let message = MessageResponseBuilder::from_message_request(request).build(
            metadata,
            &records,
            [],
            [],
            [],
        );
        match response.send_response(message).await {
            Ok(info) => info,
            // Whoever asked has gone. The server wants to know what would have been said.
            Err(_) => hickory_proto::op::Header {
                metadata,
                counts: hickory_proto::op::HeaderCounts::default(),
            }
            .into(),
        }
    }
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
