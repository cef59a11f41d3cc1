//! One connection that is not HTTP: read facts, hand them to its stream, apply effects.

use std::net::SocketAddr;
use std::rc::Rc;

use egress_filter::{Connection as Stream, Dialled, HostError, Next, Worker, contract};
use log::error;
use proxy_wasm::traits::StreamContext;
use proxy_wasm::types::{Action, PeerType};

use crate::apply::{action, apply};
use crate::host;
use crate::sdk::bare_context;

/// A connection.
pub struct Connection {
    /// What the host knows it by.
    context: usize,
    /// `None` where the plugin has no configuration.
    stream: Option<Stream>,
}

impl Connection {
    pub(crate) fn new(context: usize, worker: Option<Rc<Worker>>) -> Self {
        let stream = worker.map(Stream::new);
        Connection { context, stream }
    }

    fn handle(&mut self) -> Result<Next, HostError> {
        let stream = self.stream.as_mut().ok_or(HostError)?;
        let wanted = stream.wanted();
        let mut dialled = Dialled::default();
        if wanted.destination {
            dialled.destination = destination()?;
        }
        if wanted.server_name {
            dialled.server_name = host::property(&contract::SERVER_NAME)?;
        }
        if wanted.tunnel {
            let target = host::property(&contract::TUNNEL_TARGET)?;
            dialled.tunnel = target.map(|target| (self.context, target));
        }
        if wanted.time {
            dialled.time_ns = host::time_ns()?;
        }
        stream.on_new(dialled, &mut apply)
    }
}

bare_context!(Connection);

impl StreamContext for Connection {
    fn on_new_connection(&mut self) -> Action {
        match self.handle() {
            Ok(next) => action(next),
            Err(HostError) => {
                error!("egress: the host refused a call; the connection is closed");
                // Whatever this returns, the connection is not let go.
                let _ = host::close_downstream();
                Action::Pause
            }
        }
    }

    fn on_downstream_close(&mut self, _peer: PeerType) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let flags = || Ok(host::number(&contract::RESPONSE_FLAGS)?.unwrap_or(0));
        let transport = || Ok(host::property(&contract::TRANSPORT_FAILURE)?.unwrap_or_default());
        let server = || Ok(host::property(&contract::UPSTREAM_ADDRESS)?.unwrap_or_default());
        let told = stream.on_close(flags, transport, server, host::has_tunnel, &mut apply);
        if let Err(HostError) = told {
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
