//! What of a rendering an Envoy that runs can be given anew: its clusters, its listeners, and in the listeners the
//! configuration of our filter, apart.
//!
//! Envoy replaces a listener's filter chain as a whole: connections go on under the old one for a while and are then
//! closed. So a listener is rendered without the rules, which are the plugin's configuration, and changes only when
//! rules ask for another shape of it; the plugin is replaced in place, and no connection notices. A plugin belongs
//! to one shape of its listener, by its name: routes of one shape never meet a plugin that was made for those of
//! another, which could name a cluster that they do not guard.

use std::collections::BTreeMap;

use egress_policy::{Digest, PolicyTable};
use serde_json::{Value, json};

use super::options::Options;
use super::{bootstrap, secrets};

/// The filters whose configuration is the rules.
const PLUGINS: [&str; 2] = [
    "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
    "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm",
];

/// What rules decide, each part by its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dynamic {
    /// Listeners, which refer to the plugins.
    pub listeners: BTreeMap<String, Value>,
    /// Clusters.
    pub clusters: BTreeMap<String, Value>,
    /// The configuration of our filter: messages with their `@type`.
    pub plugins: BTreeMap<String, Value>,
}

/// Renders what an Envoy that was started with [`reloading`](super::reloading()) is to be given.
pub fn dynamic(table: &PolicyTable, resources: &[Value], options: &Options) -> Dynamic {
    let ruled = bootstrap::ruled(table, resources, options);
    let mut all = Dynamic {
        clusters: by_name(ruled.clusters),
        ..Dynamic::default()
    };
    for mut listener in ruled.listeners {
        let mut plugins = Vec::new();
        take_plugins(&mut listener, &mut plugins);
        let name = name_of(&listener);
        let shape = format!("{name}_{}", Digest::of_text(&listener.to_string()));
        let mut names = Vec::new();
        for (at, plugin) in plugins.into_iter().enumerate() {
            let name = format!("{shape}_{at}");
            names.push((name.clone(), plugin.get("@type").cloned()));
            all.plugins.insert(name, plugin);
        }
        refer(&mut listener, &mut names.into_iter());
        all.listeners.insert(name, listener);
    }
    all
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

/// The plugin of a filter, where it has one.
fn plugin(filter: &mut Value) -> Option<&mut Value> {
    let config = filter.get_mut("typed_config")?;
    let kind = config.get("@type")?.as_str()?;
    PLUGINS.contains(&kind).then_some(config)
}

/// Takes the plugins out, in the order in which [`refer`] finds their places again.
fn take_plugins(value: &mut Value, taken: &mut Vec<Value>) {
    if let Some(config) = plugin(value) {
        let kind = config.get("@type").cloned().unwrap_or_default();
        taken.push(std::mem::replace(config, json!({"@type": kind})));
        return;
    }
    children(value, &mut |child| take_plugins(child, taken));
}

fn refer(value: &mut Value, names: &mut dyn Iterator<Item = (String, Option<Value>)>) {
    if plugin(value).is_some() {
        if let Some((name, kind)) = names.next() {
            let mut source = secrets::source();
            if let Value::Object(fields) = &mut source {
                // Without its plugin a listener would refuse every request; it waits, and the one before it goes on.
                fields.insert("initial_fetch_timeout".to_owned(), json!("0s"));
            }
            *value = json!({
                "name": name,
                "config_discovery": {"config_source": source, "type_urls": [kind]},
            });
        }
        return;
    }
    children(value, &mut |child| refer(child, names));
}

fn children(value: &mut Value, see: &mut dyn FnMut(&mut Value)) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(see),
        Value::Object(fields) => fields.values_mut().for_each(see),
        _ => {}
    }
}
