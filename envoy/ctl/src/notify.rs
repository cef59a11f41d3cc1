//! What the service manager is told that started us, as `sd_notify(3)` has it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use egress_run::Event;
use rustix::time::{ClockId, clock_gettime};

/// The service manager, if there is one that wants to know.
pub(super) struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    /// Finds it by `NOTIFY_SOCKET`.
    pub(super) fn find() -> Self {
        Self::at(env::var_os("NOTIFY_SOCKET"))
    }

    fn at(name: Option<OsString>) -> Self {
        let found = name.and_then(|name| {
            let address = address(&name)?;
            Some((UnixDatagram::unbound().ok()?, address))
        });
        Manager(found)
    }

    /// Tells what an event means to it.
    pub(super) fn tell(&self, event: &Event) {
        match event {
            Event::Ready(_) => self.send("READY=1\nSTATUS=Requests are served"),
            Event::Reloading => {
                // What is newer than the signal to reload is an answer to it.
                let now = clock_gettime(ClockId::Monotonic);
                let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
                self.send(&format!(
                    "RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=Rules are read"
                ));
            }
            Event::Reloaded(_) => self.send("READY=1\nSTATUS=Requests are served"),
            Event::Refused(_) => {
                self.send(
                    "READY=1\nSTATUS=The rules in the files are refused; those before them stay",
                );
            }
            // From here on the other one is what the service is.
            Event::Replaced(by) => self.send(&format!("MAINPID={by}\nREADY=1")),
            Event::Draining(_) => self.send("STOPPING=1\nSTATUS=Open requests finish"),
            _ => {}
        }
    }

    /// Tells it that this is the end.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.0 {
            // Whoever wanted to know may be gone; that is no reason to stop.
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

/// Returns what a name means: a path, or after `@` an abstract one.
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt as _;
            SocketAddr::from_abstract_name(name).ok()
        }
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;

    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut text = [0; 200];
        let length = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    #[test]
    fn a_manager_is_told_at_a_path_and_at_an_abstract_name() {
        let stage = tempfile::tempdir().unwrap();
        let path = stage.path().join("notify");
        let listens = UnixDatagram::bind(&path).unwrap();
        Manager::at(Some(path.into()))
            .tell(&Event::Refused(egress_rules::Complaint::us("x").into()));
        assert!(heard(&listens).starts_with("READY=1\n"));

        let name = format!("egressctl-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listens = UnixDatagram::bind_addr(&address).unwrap();
        let manager = Manager::at(Some(format!("@{name}").into()));
        manager.tell(&Event::Reloading);
        let text = heard(&listens);
        let micros = text
            .split('\n')
            .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        assert!(text.starts_with("RELOADING=1\n"), "{text}");
        assert!(micros.unwrap().parse::<u64>().unwrap() > 0);
        manager.stopping();
        assert_eq!(heard(&listens), "STOPPING=1");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        Manager::at(None).stopping();
        Manager::at(Some("relative".into())).stopping();
        Manager::at(Some("/nobody/listens/here".into())).stopping();
    }
}
