//! One connection that is not HTTP: read facts, hand them to its stream, apply effects.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use egress_filter::{Connection as Stream, Dialled, Effect, HostError, Next, contract};

use crate::apply;
use crate::config::Config;
use crate::host::{Attribute, Level, NetworkHost, has_tunnel, log};

/// A connection.
///
/// Closing it from one hook calls another, which finds the stream taken and has nothing to say.
pub(crate) struct Connection {
    config: Arc<Config>,
    stream: RefCell<Stream>,
}

impl Connection {
    pub(crate) fn new(config: Arc<Config>) -> Self {
        let stream = RefCell::new(Stream::new(config.worker()));
        Connection { config, stream }
    }

    /// Decides about the connection.
    pub(crate) fn on_new_connection(&self, host: NetworkHost<'_>) -> Next {
        let Ok(mut stream) = self.stream.try_borrow_mut() else {
            return Next::Stop;
        };
        #[cfg(feature = "panics")]
        panics();
        let wanted = stream.wanted();
        let mut dialled = Dialled::default();
        if wanted.destination {
            dialled.destination = host.destination();
        }
        if wanted.server_name {
            dialled.server_name = host.server_name();
        }
        if wanted.tunnel {
            let target = host.text(contract::UPSTREAM_TUNNEL_STATE);
            dialled.tunnel = target.map(|target| (host.number_of_connection(), target));
        }
        if wanted.time {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let since = since.unwrap_or_default().as_nanos();
            dialled.time_ns = u64::try_from(since).unwrap_or(u64::MAX);
        }
        let mut close = false;
        let result = stream.on_new(dialled, &mut |effect| self.apply(host, effect, &mut close));
        drop(stream);
        let next = result.unwrap_or_else(|HostError| {
            log(
                Level::Error,
                "egress: the host refused a call; the connection is closed",
            );
            close = true;
            Next::Stop
        });
        if close {
            host.close();
        }
        next
    }

    /// Says why the server was not reached, if it was not.
    pub(crate) fn on_close(&self, host: NetworkHost<'_>) {
        let Ok(mut stream) = self.stream.try_borrow_mut() else {
            return;
        };
        let flags = || Ok(host.number(Attribute::ResponseFlags).unwrap_or(0));
        let text = |attribute| Ok(host.attribute(attribute).unwrap_or_default());
        let transport = || text(Attribute::TransportFailure);
        let server = || text(Attribute::UpstreamAddress);
        let mut close = false;
        let result = stream.on_close(flags, transport, server, has_tunnel, &mut |effect| {
            self.apply(host, effect, &mut close)
        });
        if let Err(HostError) = result {
            log(
                Level::Error,
                "egress: the host refused a call; a failure is not told whole",
            );
        }
    }

    /// Closes the connection after a panic.
    pub(crate) fn on_panic(&self, host: NetworkHost<'_>) {
        self.config
            .counters()
            .count_panic(|counter| host.increment(counter));
        host.close();
    }

    /// Does one thing that was planned. To close is kept for last, for the access log is written then.
    fn apply(
        &self,
        host: NetworkHost<'_>,
        effect: Effect<'_>,
        close: &mut bool,
    ) -> Result<(), HostError> {
        if effect == Effect::Close {
            *close = true;
            return Ok(());
        }
        apply::apply(host, &self.config, effect)
    }
}

/// Panics where whoever started Envoy asks for it.
#[cfg(feature = "panics")]
#[expect(clippy::panic, reason = "it is what is tested")]
fn panics() {
    if std::env::var_os("EGRESS_PANICS").is_some() {
        panic!("as the environment asks for");
    }
}
