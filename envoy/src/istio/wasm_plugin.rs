//! The WasmPlugin, or the TrafficExtension that takes its place: the filter, with the rules as they were given.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use super::envoy_filter::Places;
use super::{Manifest, Place, Wanted, fields, manifest};
use crate::xds::{Additions, Options};

/// The kind of resource that names the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `WasmPlugin`.
    WasmPlugin,
    /// `TrafficExtension`, which Istio makes of a WasmPlugin since 1.32.
    TrafficExtension,
}

/// Where Istio gets the filter.
#[derive(Debug, Clone)]
pub struct Module {
    /// The module, or an image that holds it.
    pub url: Url,
    /// What must come from there: the module's SHA-256, or the image's digest.
    pub sha256: Option<String>,
    /// The Secret to pull an image with.
    pub pull_secret: Option<String>,
    /// When to pull it again.
    pub pull_policy: Option<PullPolicy>,
}

/// When an image is pulled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// When it is not there.
    IfNotPresent,
    /// Whenever a proxy loads it.
    Always,
}

/// A URL that Istio fetches modules from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(String);

/// Why a text is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write it as oci://REGISTRY/IMAGE:TAG, https://HOST/PATH, http://HOST/PATH or file:///PATH"
)]
pub struct InvalidUrl;

impl Url {
    /// Says whether the module itself is fetched, and not an image.
    pub fn is_of_module(&self) -> bool {
        !self.0.starts_with("oci://")
    }
}

impl FromStr for Url {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Url, InvalidUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(InvalidUrl)?;
        let place = match scheme {
            "oci" | "https" | "http" => {
                rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            }
            "file" => rest.starts_with('/'),
            _ => false,
        };
        if !place || rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(InvalidUrl);
        }
        Ok(Url(text.to_owned()))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) fn plugin(
    additions: &Additions,
    places: &Places,
    options: &Options,
    wanted: &Wanted,
) -> Manifest {
    let module = &wanted.module;
    let pull_policy = module.pull_policy.map(|policy| match policy {
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Always => "Always",
    });
    // We wrote it, so it is JSON.
    let config: Option<Value> = serde_json::from_str(&additions.plugin).ok();
    let code = fields([
        ("url", Some(json!(module.url.to_string()))),
        ("sha256", module.sha256.as_ref().map(|sum| json!(sum))),
        (
            "imagePullSecret",
            module.pull_secret.as_ref().map(|name| json!(name)),
        ),
        ("imagePullPolicy", pull_policy.map(|policy| json!(policy))),
        (
            "pluginName",
            Some(json!(egress_filter::contract::FILTER_NAME)),
        ),
        ("failStrategy", Some(json!("FAIL_CLOSE"))),
        ("pluginConfig", config),
    ]);
    let [selector, target_refs] = places.named("matchLabels");
    let mut spec = fields([
        ("selector", selector),
        ("targetRefs", target_refs),
        ("phase", wanted.phase.map(|phase| json!(phase))),
        ("match", Some(json!([traffic(additions, wanted.place)]))),
    ]);
    let kind = match wanted.api {
        Api::WasmPlugin => {
            spec.extend(code);
            "WasmPlugin"
        }
        Api::TrafficExtension => {
            spec.insert("wasm".to_owned(), json!(code));
            "TrafficExtension"
        }
    };
    let kind = ("extensions.istio.io/v1alpha1", kind);
    let body = fields([("spec", Some(json!(spec)))]);
    manifest(kind, &wanted.name, options, body)
}

/// Says which requests pass through the filter: those that go out, on the ports of the rules. A gateway's listener may
/// have another port than its service.
fn traffic(additions: &Additions, place: Place) -> Value {
    let ports: Vec<Value> = additions
        .routes
        .iter()
        .map(|(port, _)| json!({"number": port.get()}))
        .collect();
    match place {
        Place::Sidecar => json!({"mode": "CLIENT", "ports": ports}),
        Place::Gateway => json!({"mode": "CLIENT"}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_that_istio_fetches() {
        for good in [
            "oci://registry.example.com/egress:1.0",
            "https://example.com/egress-filter.wasm",
            "http://[::1]:8080/x",
            "file:///etc/egress-filter.wasm",
        ] {
            assert_eq!(
                good.parse::<Url>().map(|url| url.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "",
            "egress",
            "registry/egress:1",
            "ftp://a/b",
            "oci://",
            "file://a",
            "https:///x",
            "https://a b",
        ] {
            assert_eq!(bad.parse::<Url>(), Err(InvalidUrl), "{bad}");
        }
    }
}
