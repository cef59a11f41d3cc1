//! What Envoy says when it does not start, in one line that can be read.

/// The longest line of Envoy's that is shown, in characters. It prints whole configurations.
const LONGEST: usize = 500;

/// What the line that says why Envoy refused clusters or listeners has before their kind, and before the reason.
///
/// Source: envoyproxy/envoy `source/extensions/config_subscription/rest/http_subscription_impl.cc`,
/// `handleFailure`.
const REFUSED: [&str; 2] = [" REST config for /v3/discovery:", " rejected: "];

/// Returns Envoy's reason, where a line of its log says why it refused clusters or listeners.
pub(super) fn refusal(line: &str) -> Option<String> {
    refused(line).map(|reason| shortened(reason.trim()))
}

/// What Envoy warns of whenever it is told so, though what it says is all there: which bytes a method may have.
const MEANT: &str = "Http1ProtocolOptions.allow_custom_methods' is marked as work-in-progress";

/// Whether a line warns of what we have asked for and know of.
pub(super) fn is_meant(line: &str) -> bool {
    line.contains(MEANT)
}

fn refused(line: &str) -> Option<&str> {
    let [config, rejected] = REFUSED;
    let (_, rest) = line.split_once(config)?;
    Some(rest.split_once(rejected)?.1)
}

/// Finds the reason among the lines that Envoy wrote before it ended with `status`.
pub fn reason<'l>(lines: impl Iterator<Item = &'l str>, status: &str) -> String {
    let lines: Vec<&str> = lines.collect();
    let with = |word: &str| lines.iter().rev().find(|line| line.contains(word));
    // The last critical line is the reason; errors of the filter say more than Envoy's summary of them.
    let filter: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split_once("egress: error: "))
        .map(|(_, problem)| problem)
        .collect();
    let line = with("[critical]")
        .or_else(|| with("[error]"))
        // Listeners are refused when their clusters were: the first one is the reason.
        .or_else(|| lines.iter().find(|line| refused(line).is_some()))
        .or_else(|| lines.last());
    let Some(line) = line else {
        return format!("Envoy did not start and said nothing ({status})");
    };
    let mut text = refused(line).unwrap_or(body(line));
    // `…: {"static_resources":` begins a dump of the bootstrap.
    for dump in [
        ": {\"",
        "): {",
        ": {\\n",
        ": node {",
        ": static_resources {",
    ] {
        if let Some((before, _)) = text.split_once(dump) {
            text = before;
        }
    }
    let text = text
        .strip_prefix("error initializing config ")
        .and_then(|rest| rest.split_once(": "))
        .map_or(text, |(_, reason)| reason);
    let text = text
        .strip_prefix("error `")
        .and_then(|rest| rest.split_once("` initializing config"))
        .map_or(text, |(reason, _)| reason);
    let mut reason = format!("Envoy did not start: {}", shortened(text));
    if let Some(problem) = filter.first() {
        reason = format!(
            "Envoy did not start: the filter refused its configuration: {}",
            shortened(problem)
        );
    }
    // The line that says so is not always the one that Envoy ends with.
    let says = |words: &str| lines.iter().any(|line| line.contains(words));
    if says("compiled without support for it") || reason.contains("envoy.wasm.runtime.v8") {
        reason += "\nhint: this Envoy has no V8 and cannot load the filter; use a release that has, such as the pinned one (`make envoy`)";
    }
    reason
}

/// Cuts a line that is too long for people.
pub fn shortened(line: &str) -> String {
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or(line)),
        None => line.to_owned(),
    }
}

/// Drops `[2026-01-02 03:04:05.678][12][critical][main] [source/server/server.cc:416] `.
fn body(line: &str) -> &str {
    let mut rest = line.trim();
    while let Some((_, after)) = rest
        .strip_prefix('[')
        .and_then(|inside| inside.split_once(']'))
    {
        rest = after.trim_start();
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_cut_and_the_reason_kept() {
        let line = format!(
            "[2026-01-02 03:04:05.678][12][critical][main] [source/server/server.cc:416] error initializing config \
             '  /tmp/x/bootstrap.json': Protobuf message (type envoy.config.bootstrap.v3.Bootstrap reason INVALID_ARGUMENT: \
             invalid name nod: Cannot find field.) has unknown fields: {{\"node\":{}",
            "x".repeat(10_000)
        );
        let reason = reason([line.as_str()].into_iter(), "exit status: 1");
        assert!(
            reason.starts_with("Envoy did not start: Protobuf message"),
            "{reason}"
        );
        assert!(reason.ends_with("has unknown fields"), "{reason}");
    }

    /// As Envoy 1.38.3 ends, whose wheel on PyPI has no V8.
    #[test]
    fn an_envoy_without_v8_is_told_of() {
        let lines = [
            "[a][1][warning][wasm] [b] Failed to create Wasm VM using envoy.wasm.runtime.v8 runtime. Envoy was compiled without support for it",
            "[a][1][critical][wasm] [b] Plugin configured to fail closed failed to load",
            "[a][1][critical][main] [b] error initializing configuration '/tmp/b.json': Unable to create Wasm plugin egress",
        ];
        let reason = reason(lines.into_iter(), "exit status: 1");
        assert!(reason.contains("\nhint: this Envoy has no V8"), "{reason}");
    }

    #[test]
    fn a_refused_update_is_known_by_its_line() {
        let line = "[a][1][warning][config] [b.cc:132] REST config for /v3/discovery:clusters rejected: Error adding/updating cluster(s) x: bad";
        let reason = refusal(line);
        assert_eq!(
            reason.as_deref(),
            Some("Error adding/updating cluster(s) x: bad")
        );
        assert_eq!(
            refusal("[a][1][warning][upstream] [b] cds: cluster 'x' config rejected: bad"),
            None
        );
    }

    #[test]
    fn silence_is_told_too() {
        assert_eq!(
            reason([].into_iter(), "exit status: 1"),
            "Envoy did not start and said nothing (exit status: 1)"
        );
    }
}
