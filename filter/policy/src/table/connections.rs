//! Tells apart connections that name no host, by port and by dialled address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::host::HostPattern;
use crate::port::PortNumber;
use crate::resource::Address;

/// The TCP services by port, in the order of the hosts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections(pub(crate) BTreeMap<PortNumber, Vec<Known>>);

/// A TCP service.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) host: usize,
    pub(crate) addresses: Vec<Address>,
    pub(crate) vip: Option<Ipv4Addr>,
}

/// What a connection was found to be for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) host: usize,
    /// The address is the service's own.
    pub(crate) by_address: bool,
}

impl Connections {
    /// Finds the service of a connection of bytes. The narrowest range that has the address wins.
    pub(crate) fn find(&self, port: PortNumber, address: Option<IpAddr>) -> Option<Found> {
        let all = self.0.get(&port)?;
        let found = |known: &Known, by_address| Found {
            host: known.host,
            by_address,
        };
        let Some(address) = address else {
            return match &all[..] {
                [only] => Some(found(only, false)),
                _ => None,
            };
        };
        let by_address = all
            .iter()
            .flat_map(|known| known.dialled().map(move |range| (known, range)))
            .filter(|(_, range)| range.has(address))
            .max_by_key(|(_, range)| range.bits());
        match by_address {
            Some((known, _)) => Some(found(known, true)),
            None => all
                .iter()
                .find(|known| known.dialled().next().is_none())
                .map(|known| found(known, false)),
        }
    }

    /// Whether the port has any TCP service.
    pub(crate) fn has(&self, port: PortNumber) -> bool {
        self.0.contains_key(&port)
    }

    /// Whether the port has so many that the address tells which.
    pub(crate) fn needs_address(&self, port: PortNumber) -> bool {
        self.0.get(&port).is_some_and(|all| all.len() > 1)
    }

    /// Returns what is known of a host's port.
    pub(crate) fn of(&self, host: usize, port: PortNumber) -> Option<&Known> {
        let all = self.0.get(&port)?;
        let index = all.binary_search_by_key(&host, |known| known.host).ok()?;
        all.get(index)
    }

    /// Returns all that decides, for fingerprints.
    pub(crate) fn lines<'s>(
        &'s self,
        pattern: impl Fn(usize) -> Option<&'s HostPattern> + 's,
    ) -> impl Iterator<Item = String> + 's {
        self.0.iter().flat_map(move |(port, all)| {
            let line = |known: &Known| {
                let host = pattern(known.host).map(HostPattern::to_string);
                let ranges = known.dialled().map(|range| range.to_string());
                let ranges = ranges.reduce(|all, range| all + " " + &range);
                let (host, ranges) = (host.unwrap_or_default(), ranges.unwrap_or_default());
                format!("tcp {port} {host} {ranges}")
            };
            all.iter().map(line).collect::<Vec<_>>()
        })
    }
}

impl Known {
    /// Returns all addresses that are its own.
    fn dialled(&self) -> impl Iterator<Item = Address> + '_ {
        let vip = self.vip.map(|vip| Address {
            ip: vip.into(),
            prefix: None,
        });
        self.addresses.iter().copied().chain(vip)
    }
}

impl Address {
    /// Whether it is the address, or the range has it.
    pub fn has(&self, address: IpAddr) -> bool {
        let other = Address {
            ip: address,
            prefix: self.prefix,
        };
        self.range() == other.range()
    }

    /// Returns the bits that count, and how many: equal for two that have the same addresses.
    pub(crate) fn range(self) -> (bool, u32, u128) {
        let (bits, longest) = match self.ip {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
            IpAddr::V6(ip) => (ip.to_bits(), 128),
        };
        let free = longest - self.bits().min(longest);
        // Shifting all bits away is not defined, and leaves nothing to compare.
        let kept = bits.checked_shr(free).unwrap_or(0);
        (self.ip.is_ipv4(), self.bits(), kept)
    }

    /// Returns the number of leading bits that count.
    pub fn bits(&self) -> u32 {
        let longest = if self.ip.is_ipv4() { 32 } else { 128 };
        self.prefix.map_or(longest, u32::from)
    }
}
