//! What is wrong with `egressctl/tls-legacy`, and what its words give up.
//!
//! The engine reads the words, in the filter too. What it leads to is told here, before a filter sees it.

use egress_policy::{
    DestinationRule, FieldPath, Note, Notes, PolicyTable, Problem, ProblemKind, Resources, Segment,
    Severity, TlsMode, TrafficPolicy, UpstreamProtocol,
};

/// The annotation.
pub(crate) const ANNOTATION: &str = "egressctl/tls-legacy";

/// Words that people try and that stand for nothing Envoy could offer, with what they are.
const REFUSED: [(&str, &str); 9] = [
    ("3des", "3DES is too weak to be offered at all (Sweet32)"),
    (
        "dhe",
        "Envoy's TLS engine lacks DHE, the exchange over finite fields",
    ),
    (
        "dh",
        "Envoy's TLS engine lacks DHE, the exchange over finite fields",
    ),
    ("rc4", "Envoy's TLS engine lacks RC4"),
    ("md5", "Envoy's TLS engine lacks suites with MD5"),
    ("null", "without encryption anybody on the way reads along"),
    ("export", "Envoy's TLS engine lacks suites for export"),
    ("ssl3", "Envoy's TLS engine lacks SSL 3.0"),
    (
        "cbc-sha384",
        "Envoy's TLS engine lacks the suites with SHA384 and CBC, and those with SHA256 and RSA",
    ),
];

/// Says more of words that the engine refused.
pub(crate) fn explain_refused(problems: &mut [Problem]) {
    for problem in problems {
        let last = problem.path.0.last();
        if !matches!(last, Some(Segment::Key(key)) if key.ends_with("/tls-legacy")) {
            continue;
        }
        let ProblemKind::UnknownValue { found, .. } = &problem.kind else {
            continue;
        };
        let asked = found.to_ascii_lowercase();
        let plain = asked.replace(['_', '.'], "");
        let Some((word, why)) = REFUSED.iter().find(|(word, _)| plain == *word) else {
            continue;
        };
        problem.kind = ProblemKind::Invalid(format!("`{word}`: {why}"));
        problem.hint = Some(format!(
            "put stunnel or nginx between, where what they speak is enough for the server; {}",
            problem.hint.as_deref().unwrap_or_default()
        ));
    }
}

/// Reports annotations that do nothing, words that lack another, and what words give up.
pub(crate) fn problems(resources: &Resources) -> Vec<Problem> {
    let rules = &resources.destination_rules;
    let mut problems = Vec::new();
    for rule in rules {
        let legacy = rule.meta.notes.legacy();
        if legacy == Notes::default() {
            continue;
        }
        let mut tell = |severity, kind, hint: &str| {
            problems.push(problem(rule, severity, kind, hint));
        };
        // Rules of one host are one to Istio, and to us.
        let same = |other: &&DestinationRule| {
            other.host == rule.host && other.meta.id.namespace == rule.meta.id.namespace
        };
        if !rules.iter().filter(same).any(asks_for_tls) {
            let text = "this annotation does nothing here: the rule has no `tls`".to_owned();
            let hint = "give the rule `tls`, or remove the annotation";
            tell(Severity::Warning, ProblemKind::Invalid(text), hint);
            continue;
        }
        for (class, word) in [(Note::Tls10, "tls1.0"), (Note::Tls11, "tls1.1")] {
            if legacy.say(class) && !legacy.say(Note::Cbc) {
                let text =
                    format!("`{word}` needs `cbc`: every suite of that version encrypts by CBC");
                let hint = format!("write `{ANNOTATION}: {},cbc`", words(legacy).join(","));
                tell(Severity::Error, ProblemKind::Conflict(text), &hint);
            }
        }
        for (word, given_up) in given_up(legacy) {
            let hint = "keep it for as long as the server needs it; `egressctl check --connect` says whether it does";
            let text = format!("`{word}`: {given_up}");
            tell(Severity::Warning, ProblemKind::Invalid(text), hint);
        }
    }
    problems
}

/// Reports rules whose word takes HTTP/1.1, on ports that are HTTP/2.
pub(crate) fn impossible(table: &PolicyTable, resources: &Resources) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    for service in table.services() {
        let tls = service.cluster.tls.as_ref();
        let renegotiates = tls.is_some_and(|tls| tls.legacy.say(Note::Renegotiation));
        if !renegotiates || service.cluster.upstream != UpstreamProtocol::Http2 {
            continue;
        }
        let mut rules = resources.destination_rules.iter();
        let rule = rules.find(|rule| service.rule == Some(&rule.meta.id));
        let Some(rule) = rule else { continue };
        let text = format!(
            "`renegotiation` needs HTTP/1.1, and port {} of `{}` is HTTP/2 to its server",
            service.port, service.host
        );
        let hint = "give the port the protocol HTTP and leave `h2UpgradePolicy: UPGRADE` out, or remove the word";
        let found = problem(rule, Severity::Error, ProblemKind::Conflict(text), hint);
        if !problems.contains(&found) {
            problems.push(found);
        }
    }
    problems
}

/// Returns the words of the annotation.
pub fn words(legacy: Notes) -> Vec<String> {
    let said = legacy.legacy().written(false);
    let words = said.flat_map(|(_, words)| words.split(',').map(str::to_owned).collect::<Vec<_>>());
    words.collect()
}

/// What words give up that somebody should know of at every start.
const GIVEN_UP: [(Note, &str); 5] = [
    (
        Note::RsaKeyExchange,
        "whoever gets the server's key can read all that was recorded before (no forward secrecy)",
    ),
    (
        Note::Tls10,
        "TLS 1.0 and 1.1 are allowed to this host; both are withdrawn (RFC 8996)",
    ),
    (
        Note::Tls11,
        "TLS 1.1 is allowed to this host; it is withdrawn (RFC 8996)",
    ),
    (
        Note::Sha1Signatures,
        "the server may prove its identity with SHA-1, which can be forged",
    ),
    (
        Note::Renegotiation,
        "the server may begin another handshake in a connection, so HTTP/1.1 is spoken; it must show the same certificate again",
    ),
];

/// Returns the words that give something up, each with what.
fn given_up(legacy: Notes) -> impl Iterator<Item = (String, &'static str)> {
    let said = GIVEN_UP
        .into_iter()
        .filter(move |(note, _)| legacy.say(*note));
    said.map(|(note, given_up)| (words(Notes::from_iter([note])).concat(), given_up))
}

fn asks_for_tls(rule: &DestinationRule) -> bool {
    let asks = |policy: &TrafficPolicy| {
        let ports = policy.port_level.iter().map(|port| &port.policy.tls);
        let mut all = ports.chain([&policy.tls]).flatten();
        all.any(|tls| tls.mode != TlsMode::Disable)
    };
    let subsets = rule.subsets.iter().filter_map(|it| it.policy.as_ref());
    let mut policies = rule.policy.as_deref().into_iter().chain(subsets);
    policies.any(asks)
}

fn problem(rule: &DestinationRule, severity: Severity, kind: ProblemKind, hint: &str) -> Problem {
    let key = |key: &str| Segment::Key(key.to_owned());
    let mut path = FieldPath(vec![key("metadata"), key("annotations"), key(ANNOTATION)]);
    if let Some(item) = rule.meta.origin.item {
        path.0.splice(0..0, [key("items"), Segment::Index(item)]);
    }
    Problem {
        severity,
        origin: rule.meta.origin,
        resource: Some(rule.meta.id.clone()),
        path,
        kind,
        hint: Some(hint.to_owned()),
        id: None,
    }
}
