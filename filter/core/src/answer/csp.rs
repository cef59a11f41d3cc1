//! What tells browsers to speak TLS, in `Content-Security-Policy`.

/// Returns a line without it, empty where nothing else was said; `None` where it does not tell so.
pub(super) fn without_upgrades(line: &[u8]) -> Option<Vec<u8>> {
    let mut changed = false;
    let mut all = Vec::new();
    for policy in line.split(|byte| *byte == b',') {
        let (mut kept, mut dropped) = (Vec::new(), false);
        for directive in policy.split(|byte| *byte == b';') {
            let mut words = directive.split(u8::is_ascii_whitespace);
            let name = words.find(|word| !word.is_empty()).unwrap_or_default();
            if name.eq_ignore_ascii_case(b"upgrade-insecure-requests")
                || name.eq_ignore_ascii_case(b"block-all-mixed-content")
            {
                dropped = true;
            } else {
                kept.push(directive);
            }
        }
        let empty = kept
            .iter()
            .all(|directive| directive.trim_ascii().is_empty());
        changed |= dropped;
        if !(dropped && empty) {
            all.push(kept.join(&b';'));
        }
    }
    changed.then(|| all.join(&b','))
}
