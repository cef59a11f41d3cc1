//! A DNS server on loopback that leaves refused addresses out of answers, for an Envoy that cannot do so itself.
//!
//! Envoy asks it for names that clients choose: those below wildcards and, with `ALLOW_ANY`, all others. It asks the
//! DNS servers that Envoy would have asked. What comes back is read, and only what Envoy needs is passed on: addresses
//! that are not refused, and the aliases that lead to them. An answer that cannot be read is none.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use egress_render::xds;

/// How long one DNS server is waited for before the next one is asked. Envoy waits five seconds for us.
const SERVER_LIMIT: Duration = Duration::from_millis(1500);

const DNS_PORT: u16 = 53;

/// How long a TCP connection may say nothing.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// How many questions are carried at once; those beyond it wait.
const AT_ONCE: usize = 1024;

/// How often to look for a port that is free for UDP and TCP alike.
const BIND_ATTEMPTS: usize = 20;

/// What is answered where all addresses of a name are refused. They are refused too, so Envoy tells why it connects
/// to nothing; and nobody can listen at them, so nothing is lost should it try.
const NOBODY_4: Ipv4Addr = Ipv4Addr::BROADCAST;
const NOBODY_6: Ipv6Addr = Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0);

/// Listens on a port of 127.0.0.1 that the kernel chooses, for as long as the runtime lives.
///
/// `servers` are asked in turn; if there are none, those of `/etc/resolv.conf` are, as it is at that moment.
pub(super) async fn serve(servers: Vec<SocketAddr>) -> io::Result<SocketAddr> {
    let (udp, tcp) = bind().await?;
    let address = udp.local_addr()?;
    let servers: Arc<[SocketAddr]> = servers.into();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    tokio::spawn(by_udp(Arc::new(udp), servers.clone(), room.clone()));
    tokio::spawn(by_tcp(tcp, servers, room));
    Ok(address)
}

/// Whether this machine has a way to IPv6 addresses of others. Nothing is sent: only the kernel's routes are asked.
pub(super) fn reaches_ipv6() -> bool {
    // Of the range for documentation (RFC 3849), which is routed like all that is public.
    let public = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let socket = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0));
    socket.is_ok_and(|socket| socket.connect((public, DNS_PORT)).is_ok())
}

/// Returns the DNS servers that `--resolver` names.
pub(super) fn servers(named: &[(String, u16)]) -> Vec<SocketAddr> {
    let server =
        |(address, port): &(String, u16)| Some(SocketAddr::new(address.parse().ok()?, *port));
    named.iter().filter_map(server).collect()
}

/// Returns the DNS servers of this machine, as `/etc/resolv.conf` has them now; without any, the one that listens here.
fn servers_of_the_system() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut all = servers_in(&text);
    if all.is_empty() {
        all.push((Ipv4Addr::LOCALHOST, DNS_PORT).into());
    }
    all
}

fn servers_in(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words
            .next()
            .filter(|word| *word == "nameserver")
            .and(words.next())?;
        Some(SocketAddr::new(address.parse().ok()?, DNS_PORT))
    };
    text.lines().filter_map(server).collect()
}

async fn bind() -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((udp, tcp)),
            Err(error) if attempts == BIND_ATTEMPTS => return Err(error),
            Err(_) => {}
        }
    }
}

async fn by_udp(socket: Arc<UdpSocket>, servers: Arc<[SocketAddr]>, room: Arc<Semaphore>) {
    let mut buffer = vec![0; 65_535];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // The answer to an earlier question did not arrive; the next one may.
            continue;
        };
        let Some(question) = buffer.get(..length).map(<[u8]>::to_vec) else {
            continue;
        };
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let (socket, servers) = (socket.clone(), servers.clone());
        tokio::spawn(async move {
            if let Some(answer) = answer(&question, &servers, Way::Udp).await {
                // Who asked may have gone, and asks again otherwise.
                let _ = socket.send_to(&answer, from).await;
            }
            drop(permit);
        });
    }
}

async fn by_tcp(listener: TcpListener, servers: Arc<[SocketAddr]>, room: Arc<Semaphore>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Files may have run out; they come back.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let servers = servers.clone();
        tokio::spawn(async move {
            while let Ok(Ok(question)) = timeout(IDLE_LIMIT, read(&mut stream)).await {
                let Some(answer) = answer(&question, &servers, Way::Tcp).await else {
                    break;
                };
                if write(&mut stream, &answer).await.is_err() {
                    break;
                }
            }
            drop(permit);
        });
    }
}

/// How a question came, and is asked further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Udp,
    Tcp,
}

/// Answers a question; `None` for what is none.
async fn answer(question: &[u8], servers: &[SocketAddr], way: Way) -> Option<Vec<u8>> {
    let asked = Message::from_vec(question).ok()?;
    let of_the_system;
    let servers = match servers {
        [] => {
            of_the_system = servers_of_the_system();
            &of_the_system[..]
        }
        servers => servers,
    };
    let mut found = None;
    for server in servers {
        let told = timeout(SERVER_LIMIT, ask(question, *server, way)).await;
        let told = told.ok().and_then(Result::ok);
        let Some(told) = told.and_then(|told| Message::from_vec(&told).ok()) else {
            continue;
        };
        let is_answer = told.metadata.message_type == MessageType::Response
            && told.metadata.id == asked.metadata.id
            && told.queries == asked.queries;
        if !is_answer {
            continue;
        }
        let says = told.metadata.response_code;
        found = Some(told);
        if matches!(says, ResponseCode::NoError | ResponseCode::NXDomain) {
            break;
        }
    }
    let mut answer = found.unwrap_or_else(|| {
        let (id, code) = (asked.metadata.id, asked.metadata.op_code);
        let mut none = Message::error_msg(id, code, ResponseCode::ServFail);
        none.queries.clone_from(&asked.queries);
        none
    });
    leave_out_refused(&mut answer);
    answer.to_vec().ok()
}

async fn ask(question: &[u8], server: SocketAddr, way: Way) -> io::Result<Vec<u8>> {
    if way == Way::Tcp {
        let mut stream = TcpStream::connect(server).await?;
        write(&mut stream, question).await?;
        return read(&mut stream).await;
    }
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel chooses the port by chance, and lets in nobody else's answer.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).await?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Reads a message as TCP carries it, behind its length.
async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut all = length.to_be_bytes().to_vec();
    all.extend_from_slice(message);
    stream.write_all(&all).await
}

/// Keeps of an answer what leads to addresses that may be reached.
fn leave_out_refused(answer: &mut Message) {
    answer.authorities.clear();
    answer.additionals.clear();
    let mut refused = None;
    let mut addresses = false;
    answer.answers.retain(|record| match address_of(record) {
        Some(address) if xds::is_refused(address) => {
            refused.get_or_insert_with(|| record.clone());
            false
        }
        Some(_) => {
            addresses = true;
            true
        }
        None => matches!(record.data, RData::CNAME(_)),
    });
    if let Some(mut record) = refused.filter(|_| !addresses) {
        record.data = match record.data {
            RData::AAAA(_) => RData::AAAA(AAAA(NOBODY_6)),
            _ => RData::A(A(NOBODY_4)),
        };
        answer.answers.push(record);
    }
}

fn address_of(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::rdata::CNAME;
    use hickory_proto::rr::{Name, RecordType};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn filtered(data: impl IntoIterator<Item = RData>) -> Vec<RData> {
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name("a.example."), RecordType::A));
        for data in data {
            message.add_answer(Record::from_rdata(name("a.example."), 5, data));
        }
        leave_out_refused(&mut message);
        let written = Message::from_vec(&message.to_vec().unwrap()).unwrap();
        written.answers.into_iter().map(|it| it.data).collect()
    }

    fn a(text: &str) -> RData {
        RData::A(A(text.parse().unwrap()))
    }

    fn aaaa(text: &str) -> RData {
        RData::AAAA(AAAA(text.parse().unwrap()))
    }

    #[test]
    fn refused_addresses_are_left_out_one_by_one() {
        let alias = RData::CNAME(CNAME(name("b.example.")));
        let all = [
            alias.clone(),
            a("127.0.0.1"),
            a("203.0.113.9"),
            a("10.0.0.1"),
        ];
        assert_eq!(filtered(all), [alias, a("203.0.113.9")]);
        let all = [aaaa("fd00::1"), aaaa("2001:db8::1")];
        assert_eq!(filtered(all), [aaaa("2001:db8::1")]);
    }

    #[test]
    fn the_servers_of_the_system_are_read_as_they_are_written() {
        let text = "# nameserver 192.0.2.1\nsearch example.com\nnameserver 192.0.2.2\nnameserver\t2001:db8::1 # x\nnameserver\n";
        let all: Vec<String> = servers_in(text).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["192.0.2.2:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn where_all_are_refused_one_is_told_that_nobody_has() {
        assert_eq!(
            filtered([a("127.0.0.1"), a("10.0.0.1")]),
            [a("255.255.255.255")]
        );
        assert_eq!(filtered([aaaa("::1")]), [aaaa("ff00::")]);
        assert!(xds::is_refused(NOBODY_4.into()) && xds::is_refused(NOBODY_6.into()));
        assert_eq!(filtered([]), []);
    }
}
