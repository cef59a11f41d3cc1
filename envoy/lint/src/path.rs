//! Paths of fields, as they are written.

use egress_policy::Segment;

/// Reads a path such as `spec.ports[0].number`.
pub(crate) fn way(path: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let mut pieces = part.split('[');
        segments.extend(
            pieces
                .next()
                .filter(|key| !key.is_empty())
                .map(|key| Segment::Key(key.to_owned())),
        );
        let index = |piece: &str| piece.trim_end_matches(']').parse().ok();
        segments.extend(pieces.filter_map(index).map(Segment::Index));
    }
    segments
}

#[cfg(test)]
mod tests {
    use egress_policy::FieldPath;

    use super::*;

    #[test]
    fn a_path_is_read_as_it_is_written() {
        let path = "spec.trafficPolicy.portLevelSettings[0].port.number";
        assert_eq!(FieldPath(way(path)).to_string(), path);
        assert!(way("").is_empty());
    }
}
