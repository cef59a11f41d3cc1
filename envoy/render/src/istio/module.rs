//! Where Istio gets the filter, and by which resource.

use std::fmt;
use std::str::FromStr;

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

/// The kind of resource that names the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `WasmPlugin`.
    WasmPlugin,
    /// `TrafficExtension`, its successor, from Istio 1.30 on.
    TrafficExtension,
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
    /// Whether the module itself is fetched, and not an image.
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
