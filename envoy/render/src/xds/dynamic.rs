//! The parts of a rendering that a running Envoy can be given anew: clusters, listeners and, apart from these, the
//! configuration of our filter.
//!
//! Envoy replaces a listener's filter chain as a whole. Connections go on under the old one for a while and are then
//! closed. So a listener is rendered without the rules, and changes only when rules ask for another shape of it. The
//! rules are the plugin's configuration. The plugin is replaced in place, and no connection notices. A plugin's name
//! ties it to one shape of its listener. So routes of one shape never meet a plugin made for another shape, which could
//! name a cluster that they do not guard.

use std::collections::BTreeMap;
use std::sync::Arc;

use egress_policy::{Digest, PolicyTable};
use serde_json::{Value, json};

use super::options::Options;
use super::plugin::Plugin;
use super::{bootstrap, secrets};

/// What rules decide, each part by its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dynamic {
    /// Listeners, which refer to the plugins.
    pub listeners: BTreeMap<String, Value>,
    /// Clusters.
    pub clusters: BTreeMap<String, Value>,
    /// Our filter.
    pub plugins: BTreeMap<String, Arc<Plugin>>,
}

/// Renders what an Envoy that was started with [`reloading`](super::reloading()) is to be given.
pub fn dynamic(table: &PolicyTable, resources: &[Value], options: &Options) -> Dynamic {
    let ruled = bootstrap::ruled(table, resources, options);
    let mut all = Dynamic {
        clusters: by_name(ruled.clusters),
        ..Dynamic::default()
    };
    for listener in ruled.listeners {
        let name = listener.name.clone();
        let bare = listener.clone().written(&mut |plugin| plugin.bare());
        let shape = format!("{name}_{}", Digest::of_text(&bare.to_string()));
        let mut plugins = Vec::new();
        let listener = listener.written(&mut |plugin| {
            let name = format!("{shape}_{}", plugins.len());
            let reference = reference(&name, &plugin);
            plugins.push((name, plugin));
            reference
        });
        all.plugins.extend(plugins);
        all.listeners.insert(name, listener);
    }
    all
}

/// Renders where a listener gets a plugin from.
fn reference(name: &str, plugin: &Plugin) -> Value {
    // Without its plugin a listener would refuse every request; it waits, and the one before it goes on.
    let source = secrets::source("0s");
    let kind = format!("type.googleapis.com/{}", plugin.message());
    json!({
        "name": name,
        "config_discovery": {"config_source": source, "type_urls": [kind]},
    })
}

/// Writes resources of one kind as Envoy reads them from a file.
pub fn discovered<'r>(
    kind: &str,
    resources: impl IntoIterator<Item = &'r Value>,
    version: u64,
) -> Value {
    let resources: Vec<Value> = resources
        .into_iter()
        .map(|resource| {
            let mut resource = resource.clone();
            if let Value::Object(fields) = &mut resource {
                let kind = format!("type.googleapis.com/{kind}");
                fields.insert("@type".to_owned(), json!(kind));
            }
            resource
        })
        .collect();
    json!({"version_info": version.to_string(), "resources": resources})
}

fn by_name(all: Vec<Value>) -> BTreeMap<String, Value> {
    all.into_iter().map(|one| (name_of(&one), one)).collect()
}

fn name_of(resource: &Value) -> String {
    let name = resource.get("name").and_then(Value::as_str);
    name.unwrap_or_default().to_owned()
}
