//! The configuration of the plugin: loaded whole, then swapped in.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use egress_filter::{FilterKind, HostError, MetadataFormat, Worker, contract, protobuf};
use log::{error, info, warn};
use proxy_wasm::traits::{HttpContext, RootContext, StreamContext};
use proxy_wasm::types::ContextType;

use crate::http::Request;
use crate::sdk::bare_context;
use crate::tcp::Connection;
use crate::{counters, host, routes};

/// The plugin, once in each VM. Until it has a configuration it refuses every request.
#[derive(Default)]
pub struct Root {
    /// A configuration that is replaced lives on in the streams that began with it.
    worker: Option<Rc<Worker>>,
}

bare_context!(Root);

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let json = match host::plugin_configuration() {
            Ok(json) => json,
            Err(HostError) => {
                error!("egress: the host did not hand over the plugin configuration");
                return false;
            }
        };
        match egress_filter::load_for(json, node_labels()) {
            Ok(loaded) => {
                for warning in &loaded.warnings.0 {
                    warn!("egress: {warning}");
                }
                if loaded.metadata == MetadataFormat::Json && declare_metadata().is_err() {
                    error!("egress: this Envoy cannot log an object; use metadata TEXT");
                    return false;
                }
                if declare_login().is_err() {
                    error!("egress: this Envoy cannot note on a connection who has logged in");
                    return false;
                }
                counters::define();
                routes::learn();
                info!(
                    "egress: {} hosts, digest {}",
                    loaded.table.len(),
                    loaded.digest
                );
                self.worker = Some(Rc::new(Worker::new(Arc::new(loaded))));
                true
            }
            Err(problem) => {
                for line in problem.lines() {
                    error!("egress: {line}");
                }
                false
            }
        }
    }

    fn create_http_context(&self, _context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request::new(self.worker.clone())))
    }

    fn create_stream_context(&self, context_id: u32) -> Option<Box<dyn StreamContext>> {
        let context = usize::try_from(context_id).ok()?;
        Some(Box::new(Connection::new(context, self.worker.clone())))
    }

    // Asked for each request and connection, so what the configuration says of it is kept.
    fn get_type(&self) -> Option<ContextType> {
        Some(
            match self.worker.as_ref().map(|worker| worker.config().filter) {
                Some(FilterKind::Network | FilterKind::Tunnel) => ContextType::StreamContext,
                Some(FilterKind::Http) | None => ContextType::HttpContext,
            },
        )
    }
}

/// Reads the labels that Envoy's node has. `None` where it has some that cannot be read: to take it for a
/// node without labels would pass over the rules that select it.
fn node_labels() -> Option<BTreeMap<String, String>> {
    let Some(bytes) = host::property(&contract::NODE_LABELS).ok()? else {
        return Some(BTreeMap::new());
    };
    let labels = egress_filter::labels(&bytes)?;
    // A list is written like a map; but only in a map is each value found by its key.
    let is_map = labels.iter().all(|(key, value)| {
        let mut path = contract::NODE_LABELS.to_vec();
        path.push(key);
        let found = host::property(&path).ok().flatten();
        found.is_some_and(|found| found == value.as_bytes())
    });
    is_map.then_some(labels)
}

/// Lets a login stay with the client's connection, and not with the request alone.
///
/// The message is as in [`declare_metadata`], with `LifeSpan span = 5`, of which 2 is the connection.
fn declare_login() -> Result<(), HostError> {
    let mut message = Vec::new();
    protobuf::field(&mut message, 0x0a, contract::LOGIN_PROPERTY.as_bytes());
    message.extend_from_slice(&[0x28, 2]);
    host::call(contract::DECLARE_PROPERTY, &message)
}

/// Marks the metadata as an object, so that a JSON access log shows it as one.
///
/// The message is `{string name = 1; bool readonly = 2; WasmType type = 3; string schema = 4}`, the type
/// 3 for protobuf.
///
/// Source: envoyproxy/envoy `source/extensions/common/wasm/ext/declare_property.proto`.
fn declare_metadata() -> Result<(), HostError> {
    let mut message = Vec::new();
    for (tag, text) in [
        (0x0a, contract::METADATA_PROPERTY),
        (0x22, contract::METADATA_TYPE),
    ] {
        protobuf::field(&mut message, tag, text.as_bytes());
    }
    message.extend_from_slice(&[0x18, 3]);
    host::call(contract::DECLARE_PROPERTY, &message)
}
