//! Applies the effects that requests and connections have in common.

use egress_filter::{Effect, HostError, MetadataFormat, contract, struct_entries};

use crate::config::Config;
use crate::host::{HttpHost, NetworkHost};

/// What both a request and a connection of Envoy's can be told.
pub(crate) trait Stream: Copy {
    /// Sets one of Envoy's own filter-state objects, made from a text.
    fn set_object(self, key: &str, value: &str) -> Result<(), HostError>;
    /// Sets a filter-state object that is a text.
    fn set_text(self, key: &str, value: &[u8]) -> Result<(), HostError>;
    /// Sets an entry of the dynamic metadata.
    fn set_metadata(self, namespace: &str, key: &str, value: &str);
    /// Adds one to a counter.
    fn increment(self, counter: usize) -> Result<(), HostError>;
}

macro_rules! streams {
    ($($host:ident),*) => {$(
        impl Stream for $host<'_> {
            fn set_object(self, key: &str, value: &str) -> Result<(), HostError> {
                $host::set_object(&self, key, value)
            }
            fn set_text(self, key: &str, value: &[u8]) -> Result<(), HostError> {
                $host::set_text(&self, key, value)
            }
            fn set_metadata(self, namespace: &str, key: &str, value: &str) {
                $host::set_metadata(&self, namespace, key, value);
            }
            fn increment(self, counter: usize) -> Result<(), HostError> {
                $host::increment(&self, counter)
            }
        }
    )*};
}
streams!(HttpHost, NetworkHost);

/// Does one thing that was planned. What only one of the two can be told is done before it comes here.
pub(crate) fn apply(
    host: impl Stream,
    config: &Config,
    effect: Effect<'_>,
) -> Result<(), HostError> {
    let counters = config.counters();
    match effect {
        Effect::FilterState(key, value) => host.set_object(key, value),
        Effect::TransportSocket(name) => host.set_text(contract::SOCKET_STATE, name.as_bytes()),
        Effect::Tunnel(target) => host.set_text(contract::TUNNEL_STATE, target.as_bytes()),
        Effect::Metadata(value) => match config.metadata() {
            MetadataFormat::Text => host.set_text(contract::METADATA_STATE, value),
            MetadataFormat::Json => {
                for (key, value) in struct_entries(value) {
                    host.set_metadata(contract::METADATA_NAMESPACE, key, value);
                }
                Ok(())
            }
        },
        Effect::Count(failure) => counters.count(failure, |counter| host.increment(counter)),
        Effect::CountAllowed => counters.count_allowed(|counter| host.increment(counter)),
        Effect::CountLeaving => counters.count_leaving(|counter| host.increment(counter)),
        Effect::Authority(_)
        | Effect::Header(..)
        | Effect::RemoveHeader(_)
        | Effect::ChooseRouteAgain
        | Effect::Within(_)
        | Effect::Login
        | Effect::Answer { .. }
        | Effect::Close
        | Effect::CloseRequest
        | Effect::ResponseHeader(..)
        | Effect::ResponseLines(..)
        | Effect::AnswerInstead { .. } => Err(HostError),
    }
}
