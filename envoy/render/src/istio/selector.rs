//! How Istio is told which proxies are meant.

use serde_json::{Value, json};

use super::wanted::Wanted;
use crate::xds::Options;

/// Which proxies are meant.
pub(super) struct ProxySelector {
    /// The labels of their pods, if they tell.
    labels: Option<Value>,
    /// The Gateway, if it tells.
    target_refs: Option<Value>,
}

impl ProxySelector {
    pub(super) fn new(options: &Options, wanted: &Wanted) -> ProxySelector {
        let gateway = |name: &String| json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name}]);
        let target_refs = wanted.gateway.as_ref().map(gateway);
        let labels = &options.proxy.labels;
        let named = target_refs.is_none() && !labels.is_empty();
        ProxySelector {
            labels: named.then(|| json!(labels)),
            target_refs,
        }
    }

    /// Returns the field of a kind that calls it `selector`, or otherwise, and the field `targetRefs`.
    pub(super) fn named(&self, labels: &str) -> [Option<Value>; 2] {
        let selector = self.labels.as_ref().map(|found| json!({labels: found}));
        [selector, self.target_refs.clone()]
    }
}
