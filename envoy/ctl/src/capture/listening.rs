//! Who listens on a port of this machine, as `/proc` tells.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use egress_policy::PortNumber;

/// A socket that redirected connections could reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listening {
    /// Its address: loopback or the wildcard.
    pub(super) address: IpAddr,
    /// The user that opened it.
    pub(super) uid: u32,
    /// Its number, by which processes that have it open can be found.
    inode: u64,
}

/// Finds the sockets that connections of this machine reach when they are redirected to the port.
pub(super) fn on(port: PortNumber) -> Vec<Listening> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let texts = tables
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok());
    texts.flat_map(|text| listening(&text, port)).collect()
}

/// Returns the cgroup (v2) of the process that has the socket open; `None` when there is none to be seen.
pub(super) fn cgroup(socket: &Listening) -> Option<String> {
    let link = format!("socket:[{}]", socket.inode);
    let holds = |process: &Path| {
        let files = fs::read_dir(process.join("fd")).ok();
        let mut links = files?.flatten().map(|file| fs::read_link(file.path()));
        links
            .any(|target| target.is_ok_and(|target| target.as_os_str() == link.as_str()))
            .then_some(())
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        holds(&process.path())?;
        let text = fs::read_to_string(process.path().join("cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(path.to_owned())
    })
}

/// Reads a table such as `/proc/net/tcp`.
///
/// Source: linux `Documentation/networking/proc_net_tcp.rst`; `0A` is `TCP_LISTEN`.
fn listening(table: &str, port: PortNumber) -> Vec<Listening> {
    let read = |line: &str| {
        let mut words = line.split_whitespace();
        let local = words.nth(1)?;
        let state = words.nth(1)?;
        let uid = words.nth(3)?.parse().ok()?;
        let inode = words.nth(1)?.parse().ok()?;
        let (address, number) = local.split_once(':')?;
        let address = address_of(address)?;
        let is_wanted = state == "0A"
            && u16::from_str_radix(number, 16).ok()? == port.get()
            && (address.is_loopback() || address.is_unspecified());
        is_wanted.then_some(Listening {
            address,
            uid,
            inode,
        })
    };
    table.lines().skip(1).filter_map(read).collect()
}

/// Reads an address, which is written as numbers of 32 bits in this machine's order of bytes.
fn address_of(text: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for at in (0..text.len()).step_by(8) {
        let word = u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_listens_here_is_found() {
        let wanted = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = PortNumber::new(wanted.local_addr().unwrap().port()).unwrap();
        let found = on(port);
        let [one] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(one.address, Ipv4Addr::LOCALHOST);
        assert_eq!(one.uid, nix::unistd::geteuid().as_raw());
        drop(wanted);
        assert!(on(port).is_empty());
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn only_sockets_that_listen_where_redirects_lead_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 637 1 0 100 0 0 10 0
   1: 0100007F:3A99 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     1        0 638 1 0 100 0 0 10 0
   2: 0A643366:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     2        0 639 1 0 100 0 0 10 0
   3: 0100007F:3A9A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     3        0 640 1 0 100 0 0 10 0
   4: 00000000000000000000000001000000:3A99 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     4        0 641 1 0 100 0 0 10 0
";
        let found = listening(table, PortNumber::new(15001).unwrap());
        let found: Vec<_> = found
            .iter()
            .map(|one| (one.address.to_string(), one.uid, one.inode))
            .collect();
        assert_eq!(
            found,
            [
                ("127.0.0.1".to_owned(), 1337, 637),
                ("::1".to_owned(), 4, 641)
            ]
        );
    }
}
