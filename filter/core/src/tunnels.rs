//! What the upstream proxy said, told to the requests that wait for it.
//!
//! A connection of a cluster leads to the listener within Envoy, and the connection there asks the proxy. If the proxy
//! refuses, Envoy closes both, and the request learns only that its connection was closed. But both are handled by one
//! thread, and the one within is closed first. So it leaves word here, and the request finds it by its target.
//!
//! A proxy that never answers closes nothing: it is the connection of the cluster that ends, and then the one within is
//! still there and can be asked whether it has a tunnel.

use std::cell::RefCell;

use crate::facts::ConnectionEnd;
use crate::failure::Failure;

/// How many may be kept beyond those that are open. Clients choose targets below wildcards, so there must be an end; and
/// word is read at once or not at all.
const MOST: usize = 64;

thread_local! {
    static TUNNELS: RefCell<Vec<Asked>> = const { RefCell::new(Vec::new()) };
}

/// What the proxy is or was asked for.
struct Asked {
    /// Nothing once it is closed.
    number: Option<usize>,
    target: String,
    /// Why there was no tunnel; nothing where there was one, or where nobody knows.
    refusal: Option<Refusal>,
}

/// Why there was no tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) failure: Failure,
    /// What the access log gives as the response's detail: what the proxy said, and its address.
    pub(crate) details: String,
}

/// A connection within Envoy for which the upstream proxy is asked.
pub(crate) struct Tunnel(usize);

impl Tunnel {
    /// Begins to ask for a target: a host and port. `number` is what the host knows the connection by as long as it
    /// lives.
    pub(crate) fn new(number: usize, target: &[u8]) -> Self {
        let new = Asked {
            number: Some(number),
            target: text(target).to_owned(),
            refusal: None,
        };
        TUNNELS.with_borrow_mut(|all| {
            let many = all.len() >= MOST;
            let mut free = None;
            for asked in all.iter_mut().filter(|asked| asked.number.is_none()) {
                // What was said of it before counts no more.
                if asked.target == new.target {
                    asked.refusal = None;
                }
                let may = many || asked.refusal.is_none();
                if may && free.is_none() {
                    free = Some(asked);
                }
            }
            match free {
                Some(free) => *free = new,
                None => all.push(new),
            }
        });
        Tunnel(number)
    }

    /// Leaves word of why there was no tunnel, if there was none.
    ///
    /// `transport` is Envoy's `%UPSTREAM_TRANSPORT_FAILURE_REASON%`, `proxy` the proxy's address; each empty where the
    /// host does not know it.
    pub(crate) fn close(&self, end: &ConnectionEnd<'_>, proxy: &[u8]) {
        // There was no host, or no connection: `UH`, `UF`.
        if end.flags & 0x22 == 0 {
            return;
        }
        let mut details = String::from("upstream_proxy{");
        let transport = end.transport.replace(' ', "_");
        details.push_str(&transport);
        details.push('|');
        details.push_str(text(proxy));
        details.push('}');
        self.end(Some(Refusal {
            failure: Failure::of_proxy(&transport),
            details,
        }));
    }

    fn end(&self, refusal: Option<Refusal>) {
        TUNNELS.with_borrow_mut(|all| {
            let mut open = all.iter();
            if let Some(at) = open.position(|asked| asked.number == Some(self.0)) {
                // Behind those that closed before it, which give way first.
                let asked = all.remove(at);
                all.push(Asked {
                    number: None,
                    refusal,
                    ..asked
                });
            }
        });
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.end(None);
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Returns what the proxy has to do with a connection to a target that failed; `None` if nothing.
///
/// `has_tunnel` asks the host about a connection within, by its number.
pub(crate) fn refusal(
    target: &str,
    failure: Failure,
    details: &str,
    has_tunnel: fn(usize) -> bool,
) -> Option<Refusal> {
    TUNNELS.with_borrow(|all| {
        let mut all = all.iter().filter(|asked| asked.target == target);
        match failure {
            Failure::Reset => all.find_map(|asked| asked.refusal.clone()),
            Failure::Timeout => {
                let waits = |asked: &Asked| asked.number.is_some_and(|number| !has_tunnel(number));
                all.any(waits).then(|| Refusal {
                    failure: Failure::ProxyTimeout,
                    details: details.to_owned(),
                })
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UF: u64 = 0x20;

    fn close(tunnel: &Tunnel, flags: u64, transport: &str) {
        tunnel.close(&ConnectionEnd { flags, transport }, b"192.0.2.1:3128");
    }

    fn told(target: &str) -> Option<(Failure, String)> {
        let refusal = refusal(target, Failure::Reset, "", |_| true)?;
        Some((refusal.failure, refusal.details))
    }

    #[test]
    fn what_the_proxy_said_is_told_of_its_target_alone() {
        for (transport, failure) in [
            ("tunnel_response:407", Failure::ProxyAuthRequired),
            ("tunnel_response:403", Failure::ProxyRefused),
            ("tunnel_response:4070", Failure::ProxyRefused),
            ("tunnel_response:502", Failure::ProxyRefused),
            ("", Failure::ProxyUnreachable),
            (
                "delayed connect error: Connection refused",
                Failure::ProxyUnreachable,
            ),
        ] {
            let tunnel = Tunnel::new(1, b"one.example:443");
            close(&tunnel, UF, transport);
            let text = transport.replace(' ', "_");
            let details = format!("upstream_proxy{{{text}|192.0.2.1:3128}}");
            assert_eq!(told("one.example:443"), Some((failure, details)));
            assert_eq!(told("one.example:80"), None);
        }
    }

    #[test]
    fn the_page_quotes_what_gives_each_reason() {
        let mut reasons = Vec::new();
        let page = include_str!("../failures.md");
        for row in page.lines().filter(|line| line.starts_with("| `proxy_")) {
            let row = row.replace("\\|", "\0");
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let reason = cells[1].trim_matches('`');
            for text in cells[2].split('`').skip(1).step_by(2) {
                let text = text.replace('\0', "|");
                let failure = match text.as_str() {
                    "connection_timeout" => Failure::ProxyTimeout,
                    text => Failure::of_proxy(text),
                };
                assert_eq!(failure.as_str(), reason, "{text}");
            }
            reasons.push(reason.to_owned());
        }
        assert_eq!(reasons.len(), 4, "{reasons:?}");
    }

    #[test]
    fn the_next_that_asks_begins_anew() {
        let first = Tunnel::new(1, b"two.example:443");
        close(&first, UF, "tunnel_response:403");
        assert!(told("two.example:443").is_some());
        let second = Tunnel::new(2, b"two.example:443");
        assert_eq!(told("two.example:443"), None);
        // A tunnel that was there and has ended is none that was refused.
        close(&second, 0, "");
        assert_eq!(told("two.example:443"), None);
    }

    #[test]
    fn one_that_waits_for_the_proxy_is_known_while_it_lives() {
        let late = |has: bool| {
            let has_tunnel: fn(usize) -> bool = if has { |_| true } else { |_| false };
            refusal("three.example:443", Failure::Timeout, "late", has_tunnel)
        };
        assert_eq!(late(false), None);
        let tunnel = Tunnel::new(3, b"three.example:443");
        assert_eq!(late(true), None, "the server is what is late");
        let refusal = late(false).unwrap();
        assert_eq!(refusal.failure, Failure::ProxyTimeout);
        assert_eq!(refusal.details, "late");
        drop(tunnel);
        assert_eq!(late(false), None);
    }

    #[test]
    fn targets_that_clients_choose_fill_no_memory() {
        for at in 0..1000 {
            let target = format!("{at}.wild.example:443");
            close(&Tunnel::new(at, target.as_bytes()), UF, "");
        }
        assert_eq!(told("1.wild.example:443"), None);
        assert!(told("999.wild.example:443").is_some());
        let kept = TUNNELS.with_borrow(Vec::len);
        assert!(kept <= MOST, "{kept}");
    }
}
