//! One connection that is not HTTP: read facts, plan, apply; and when the server was not reached, say why.

use std::net::SocketAddr;

use egress_filter::{
    ConnectionEnd, ConnectionFacts, Remembered, connection_failed, contract,
    plan_connection_failure, plan_tcp, wanted,
};
use egress_policy::PortNumber;
use log::error;
use proxy_wasm::traits::StreamContext;
use proxy_wasm::types::{Action, PeerType};

use crate::Shared;
use crate::host::{self, HostError};
use crate::http::{SCRATCH, apply};

/// A connection and the configuration it began with.
pub struct Connection {
    loaded: Option<Shared>,
    /// What it was planned by, once it was let go.
    sent: Option<Sent>,
}

/// The facts of a connection, kept for its end.
#[derive(Default)]
struct Sent {
    destination: Option<SocketAddr>,
    server_name: Option<Vec<u8>>,
}

impl Sent {
    fn facts(&self) -> ConnectionFacts<'_> {
        ConnectionFacts {
            port: self.destination.and_then(|to| PortNumber::new(to.port())),
            address: self.destination.map(|to| to.ip()),
            // What is not text names no host that could be in the table.
            server_name: self
                .server_name
                .as_deref()
                .map(|name| std::str::from_utf8(name).unwrap_or("\u{fffd}")),
        }
    }
}

impl Connection {
    pub(crate) fn new(loaded: Option<Shared>) -> Self {
        Connection { loaded, sent: None }
    }

    /// Says whether the connection goes on; `Ok(false)` when it is closed here.
    fn handle(&mut self) -> Result<bool, HostError> {
        let Some(loaded) = self.loaded.as_deref().map(Remembered::config) else {
            return Err(HostError);
        };
        let wanted = wanted(loaded);
        let mut sent = Sent::default();
        if wanted.destination {
            sent.destination = destination()?;
        }
        if wanted.server_name {
            let name = host::property(&contract::SERVER_NAME)?;
            sent.server_name = name.filter(|name| !name.is_empty());
        }
        let mut goes_on = true;
        SCRATCH.with_borrow_mut(|scratch| {
            plan_tcp(loaded, &sent.facts(), scratch, &mut |effect| {
                goes_on &= !effect.ends();
                apply(effect)
            })
        })?;
        self.sent = goes_on.then_some(sent);
        Ok(goes_on)
    }

    /// Says why the server was not reached, if it was not.
    fn explain(&mut self) -> Result<(), HostError> {
        let (Some(loaded), Some(sent)) = (self.loaded.as_deref(), self.sent.take()) else {
            return Ok(());
        };
        let loaded = loaded.config();
        let flags = host::number(&contract::RESPONSE_FLAGS)?.unwrap_or(0);
        if flags == 0 {
            return Ok(());
        }
        let transport = host::property(&contract::TRANSPORT_FAILURE)?.unwrap_or_default();
        let end = ConnectionEnd {
            flags,
            transport: std::str::from_utf8(&transport).unwrap_or_default(),
        };
        let facts = sent.facts();
        let Some(failure) = connection_failed(loaded, &facts, &end) else {
            return Ok(());
        };
        SCRATCH.with(|scratch| {
            let mut scratch = scratch.try_borrow_mut().map_err(|_| HostError)?;
            plan_connection_failure(loaded, &facts, failure, &mut scratch, &mut apply)
        })
    }
}

impl StreamContext for Connection {
    fn on_new_connection(&mut self) -> Action {
        match self.handle() {
            Ok(true) => Action::Continue,
            Ok(false) => Action::Pause,
            Err(HostError) => {
                error!("egress: the host refused a call; the connection is closed");
                // Whatever this returns, the connection is not let go.
                let _ = host::close_downstream();
                Action::Pause
            }
        }
    }

    fn on_downstream_close(&mut self, _peer: PeerType) {
        if self.explain().is_err() {
            error!("egress: the host refused a call; a failure is not told whole");
        }
    }
}

/// Reads the address and port that the application dialled.
fn destination() -> Result<Option<SocketAddr>, HostError> {
    let text = host::property(&contract::DESTINATION_ADDRESS)?.unwrap_or_default();
    Ok(std::str::from_utf8(&text)
        .ok()
        .and_then(|text| text.parse().ok()))
}
