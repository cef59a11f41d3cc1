//! What a live istiod answered to rule sets, against what the engine decides.
//!
//! `istio/oracle.jsonl` has a set a line: 250 random ones of ServiceEntries and DestinationRules over four namespaces
//! (`two-*`), and some made by hand. `istio/oracle-routes.jsonl` has 250 with VirtualServices and Sidecars (`routes-*`),
//! 100 with Gateways, asked of the sidecar and of the router (`gateway-*`), and others made by hand. It is the largest
//! file of the tests, and whole: its shares are the proof that routes are followed as Istio does. Istio's own discovery server was given each of them, and what it then sent to the
//! proxies of `from` was walked as Envoy does, for each host and port. An item of `asks` is such a question, whose
//! answers it holds for (places in `from`), and the answer.
//!
//! `istio/oracle-ledger.txt` says where we differ on purpose.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use egress_policy::{
    Action, AllowPlaintext, Answer as Given, Authority, BranchOf, CompileOptions, Decision,
    DownstreamProtocol, Identity, Parser, PolicyTable, PortNumber, Proxy, Query, Reason, Role, Sni,
    Trust,
};
use serde_json::{Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

const SETS: [&str; 2] = [
    include_str!("istio/oracle.jsonl"),
    include_str!("istio/oracle-routes.jsonl"),
];
/// What `$HOP` stands for.
const HOP: &str = "istio-egressgateway.istio-system.svc.cluster.local";
const LEDGER: &str = include_str!("istio/oracle-ledger.txt");

/// What became of a question, whosoever answered it.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    /// `forward`, `originate`, `passthrough`, `reject`, and what else Istio may do.
    does: String,
    /// Istio's word for how endpoints are found; `-` for none.
    discovery: String,
    endpoints: Option<BTreeSet<String>>,
    sni: Option<String>,
    names: BTreeSet<String>,
    trust: Option<String>,
    certificate: bool,
    /// Of an answer without any server.
    status: Option<u16>,
}

/// A line of the ledger.
struct Line {
    what: String,
    discovery: String,
    scheme: String,
    used: u32,
}

impl Line {
    fn is_for(&self, what: &str, istio: &Answer, scheme: &str) -> bool {
        let any = |text: &str, word: &str| text == "*" || text == word;
        self.what == what && any(&self.discovery, &istio.discovery) && any(&self.scheme, scheme)
    }
}

impl Answer {
    /// Reads Istio's, as it is written in the sets.
    fn read(text: &str) -> Answer {
        let mut answer = Answer::default();
        for (at, word) in text.split(' ').enumerate() {
            let list = |text: &str| text.split(',').map(str::to_owned).collect();
            match word.split_once('=') {
                None if at == 0 => answer.does = word.replace('_', " "),
                None => answer.discovery = word.to_owned(),
                Some(("to", all)) => answer.endpoints = Some(list(all)),
                Some(("names", all)) => answer.names = list(all),
                Some(("sni", name)) => answer.sni = Some(name.to_owned()),
                Some(("trust", name)) => answer.trust = Some(name.to_owned()),
                Some(("certificate", _)) => answer.certificate = true,
                Some(_) => panic!("{text}"),
            }
        }
        if answer.discovery.is_empty() {
            answer.discovery = "-".to_owned();
        }
        answer
    }

    fn of(decision: &Decision<'_, '_>) -> Answer {
        let mut answer = Answer {
            does: decision.action.as_str().to_owned(),
            ..Answer::default()
        };
        answer.status = match decision.action {
            Action::Respond(Given::Status(status) | Given::Redirect(status)) => Some(status),
            Action::Reject(Reason::NoRoute) => Some(404),
            _ => None,
        };
        if decision.reason() == Some(Reason::InvalidRule) {
            answer.does = "refused".to_owned();
            return answer;
        }
        let dialled = decision
            .connect_to
            .map(|(host, port)| format!("{host}:{port}"));
        answer.endpoints = match decision.endpoints() {
            _ if dialled.is_some() => Some(dialled.into_iter().collect()),
            Some(endpoints) => Some(endpoints.iter().map(ToString::to_string).collect()),
            None => decision
                .target
                .map(|target| BTreeSet::from([format!("{}:{}", target.host, target.port)])),
        };
        let (Action::Originate(cluster), Some(target)) = (decision.action, decision.target) else {
            return answer;
        };
        let tls = cluster.tls.as_ref().unwrap();
        answer.sni = Some(match &tls.sni {
            Sni::Authority => target.host.to_owned(),
            Sni::Rule(name) | Sni::Host(name) => name.clone(),
        });
        answer.names.extend(tls.names.any_of.iter().cloned());
        if tls.names.authority {
            answer.names.insert(target.host.to_owned());
        }
        answer.trust = match &tls.trust {
            Trust::System => None,
            Trust::File(name) => Some(name.clone()),
            Trust::Credential(name) => Some(match name.contains("://") {
                true => name.clone(),
                false => format!("kubernetes://{name}"),
            }),
            Trust::InsecureSkipVerify => panic!("no set has it"),
        };
        answer.certificate = matches!(
            tls.identity,
            Some(Identity::Files { .. } | Identity::Credential(_))
        );
        answer
    }
}

/// Returns what the two have in common, in the words of the ledger.
fn verdict(istio: &Answer, ours: &Answer) -> String {
    if ours.does == "refused" {
        return format!("refused here; Istio: {}", istio.does);
    }
    let nothing = ["unknown host", "no listener", "no such cluster"];
    if ours.does == "reject" && nothing.contains(&istio.does.as_str()) {
        return "same".to_owned();
    }
    let status = istio.does.strip_prefix("status ");
    if status.is_some() && status == ours.status.map(|status| status.to_string()).as_deref() {
        return "same".to_owned();
    }
    if ours.does != istio.does {
        return format!("DIFFERS: Istio {}, here {}", istio.does, ours.does);
    }
    let mut differs = Vec::new();
    if ours.does == "originate" {
        if istio.sni.is_some() && istio.sni != ours.sni {
            differs.push("sni");
        }
        let by_sni: BTreeSet<String> = ours.sni.iter().cloned().collect();
        let wanted = match istio.names.is_empty() {
            true => &by_sni,
            false => &istio.names,
        };
        if ours.names != *wanted {
            differs.push("names");
        }
        if istio.trust != ours.trust {
            differs.push("trust");
        }
        if istio.certificate != ours.certificate {
            differs.push("certificate");
        }
    }
    let listed = ["STRICT_DNS", "LOGICAL_DNS", "EDS"];
    if listed.contains(&istio.discovery.as_str())
        && ours.endpoints.clone().unwrap_or_default() != istio.endpoints.clone().unwrap_or_default()
    {
        differs.push("endpoints");
    }
    match differs.is_empty() {
        true => "same".to_owned(),
        false => format!("differs in {}", differs.join(", ")),
    }
}

fn ask(table: &PolicyTable, documents: &[Value], url: &str) -> Answer {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let authority = Authority::parse(authority).unwrap();
    let downstream = match scheme {
        "http" => DownstreamProtocol::Http,
        "https" => DownstreamProtocol::Tls,
        _ => DownstreamProtocol::Tcp,
    };
    let port = authority.port.unwrap();
    let branch = branch(table, documents, &authority.host, port, &format!("/{path}"));
    Answer::of(&table.decide(&Query {
        host: &authority.host,
        port,
        downstream,
        branch: branch.as_deref(),
        subset: None,
    }))
}

/// Returns the branch that Envoy would choose for a path, as far as the sets ask for more than the path: they do not.
fn branch(
    table: &PolicyTable,
    documents: &[Value],
    host: &str,
    port: PortNumber,
    path: &str,
) -> Option<String> {
    let all = table.branching();
    let of_host = all.filter(|all| all.port == port && all.host.matches(host));
    let branching = of_host.max_by_key(|all| all.host.specificity())?;
    let fits = |branch: &&BranchOf<'_>| {
        let id = branch.virtual_service.unwrap();
        let is_it = |document: &&Value| {
            document["kind"] == "VirtualService"
                && document["metadata"]["name"] == *id.name
                && document["metadata"]["namespace"] == *id.namespace
        };
        let service = documents.iter().find(is_it).unwrap();
        let matches = &service["spec"]["http"][branch.route]["match"];
        let holds = |at: &usize| match &matches[*at]["uri"] {
            Value::Null => true,
            uri => {
                let is = |key: &str, holds: &dyn Fn(&str) -> bool| {
                    uri.get(key).is_some_and(|it| holds(it.as_str().unwrap()))
                };
                is("exact", &|it| it == path) || is("prefix", &|it| path.starts_with(it))
            }
        };
        branch.matches.is_empty() || branch.matches.iter().any(holds)
    };
    let chosen = branching.branches.iter().find(fits)?;
    Some(chosen.name.to_owned())
}

/// Writes out a resource: `{"ServiceEntry": "namespace/name", "spec": {…}}`, a port as `number name protocol target`.
fn document(short: &Value) -> Value {
    let kinds = [
        "ServiceEntry",
        "DestinationRule",
        "VirtualService",
        "Gateway",
        "Sidecar",
    ];
    let id = |kind: &'static str| Some((kind, short.get(kind)?.as_str().unwrap()));
    let (kind, id) = kinds.into_iter().find_map(id).unwrap();
    let (namespace, name) = id.split_once('/').unwrap();
    let mut spec = short["spec"].clone();
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        let text = port.as_str().unwrap().to_owned();
        let words: Vec<&str> = text.split(' ').collect();
        let number = |at: usize| words.get(at).map(|word| word.parse::<u16>().unwrap());
        *port = json!({"number": number(0), "name": words[1], "protocol": words[2]});
        if let Some(target) = number(3) {
            port["targetPort"] = json!(target);
        }
    }
    let mut metadata = json!({"namespace": namespace, "name": name});
    if let Some(created) = short.get("created") {
        let created = created.as_str().unwrap();
        let time = if created.contains('T') {
            ""
        } else {
            "T00:00:00Z"
        };
        metadata["creationTimestamp"] = json!(format!("{created}{time}"));
    }
    if let Some(labels) = short.get("labels") {
        metadata["labels"] = labels.clone();
    }
    json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec})
}

/// Reads `namespace` or `namespace;label=value`, of a router with `router:` before it.
fn proxy(text: &str) -> Proxy {
    let (text, role) = match text.strip_prefix("router:") {
        Some(text) => (text, Role::Gateway),
        None => (text, Role::Sidecar),
    };
    let (namespace, labels) = text.split_once(';').unwrap_or((text, ""));
    let labels = labels.split(',').filter_map(|label| label.split_once('='));
    Proxy {
        namespace: namespace.to_owned(),
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        role,
    }
}

/// Asks everything of the sets whose name fits, and tells each question that came out otherwise.
fn compare(fits: impl Fn(&str) -> bool, mut each: impl FnMut(&str, &str, &Answer, &Answer)) {
    for line in SETS.iter().flat_map(|sets| sets.lines()) {
        let set: Value = serde_json::from_str(&line.replace("$HOP", HOP)).unwrap();
        if !fits(set["set"].as_str().unwrap()) {
            continue;
        }
        let mut parser = Parser::new();
        let rules = set["rules"].as_array().unwrap().iter();
        let documents: Vec<Value> = rules.map(document).collect();
        documents.iter().for_each(|it| parser.document(it));
        let (resources, problems) = parser.finish();
        assert!(!problems.has_errors(), "{}: {problems}", set["set"]);
        for (at, from) in set["from"].as_array().unwrap().iter().enumerate() {
            let options = CompileOptions {
                proxy: proxy(from.as_str().unwrap()),
                // Istio has no gate against plaintext.
                allow_plaintext: vec![AllowPlaintext::everywhere()],
                ..CompileOptions::default()
            };
            let table = PolicyTable::compile_with_errors(&resources, &options).table;
            for asked in set["asks"].as_array().unwrap() {
                let mut words = asked.as_str().unwrap().splitn(3, ' ');
                let (url, places) = (words.next().unwrap(), words.next().unwrap());
                if !places.split(',').any(|place| place == at.to_string()) {
                    continue;
                }
                let istio = Answer::read(words.next().unwrap());
                let ours = ask(&table, &documents, url);
                let place = format!("{} {from}", set["set"]);
                each(&place, url, &istio, &ours);
            }
        }
    }
}

fn ledger() -> Vec<Line> {
    let lines = LEDGER
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let parts: Vec<&str> = line.split('|').map(str::trim).collect();
            let [what, discovery, scheme, why] = parts[..] else {
                panic!("what | discovery | scheme | why: {line}");
            };
            assert!(!why.is_empty(), "a reason is missing: {line}");
            let out = |word: &str| what.starts_with("DIFFERS: Istio ") && what.ends_with(word);
            let kept = ["forward", "passthrough", "TLS in TLS"];
            let sent = kept
                .iter()
                .any(|does| what.starts_with(&format!("DIFFERS: Istio {does},")));
            assert!(
                what != "*" && (sent || !out(", here forward")),
                "it would let plaintext out: {line}"
            );
            Line {
                what: what.to_owned(),
                discovery: discovery.to_owned(),
                scheme: scheme.to_owned(),
                used: 0,
            }
        })
        .collect()
}

/// At least 97 of 100 questions are answered as by Istio or differ as the ledger says, and at most 10 are refused or
/// on the ledger.
#[test]
fn random_sets_are_answered_as_by_istio() {
    let mut ledger = ledger();
    let mut counts = BTreeMap::<String, u32>::new();
    let mut of_kind = BTreeMap::<String, (u32, u32)>::new();
    let mut differences = Vec::new();
    compare(is_random, |place, url, istio, ours| {
        let mut what = verdict(istio, ours);
        let scheme = url.split_once(':').unwrap().0;
        let meant = |line: &&mut Line| line.is_for(&what, istio, scheme);
        if what != "same"
            && let Some(line) = ledger.iter_mut().find(meant)
        {
            line.used += 1;
            what = "on the ledger".to_owned();
        }
        if what != "same" && what != "on the ledger" {
            differences.push(format!(
                "{place} {url} | {what} | Istio {istio:?} | here {ours:?}"
            ));
        }
        let kind = place.split('-').next().unwrap();
        let same = of_kind.entry(kind.to_owned()).or_default();
        same.1 += 1;
        same.0 += u32::from(what == "same" || what == "on the ledger");
        *counts.entry(what).or_default() += 1;
    });
    let total: u32 = counts.values().sum();
    let all = |begins: &str| -> u32 {
        let found = counts.iter().filter(|(what, _)| what.starts_with(begins));
        found.map(|(_, count)| count).sum()
    };
    let told = all("same") + all("on the ledger");
    let apart = all("refused") + all("on the ledger");
    let mut out = format!("{total} questions of random sets\n");
    for (what, count) in &counts {
        let share = f64::from(*count) * 100.0 / f64::from(total);
        out += &format!("{count:>6} {share:>5.1} %  {what}\n");
    }
    for (kind, (told, all)) in &of_kind {
        let share = f64::from(*told) * 100.0 / f64::from(*all);
        out += &format!("{kind}: {told} of {all}, {share:.1} %, same or on the ledger\n");
    }
    // Not through the macros, which the harness would keep to itself.
    let _ = std::io::stderr().write_all(out.as_bytes());
    let differences = differences.join("\n");
    for line in &ledger {
        let (what, discovery, scheme) = (&line.what, &line.discovery, &line.scheme);
        assert!(
            line.used > 0,
            "matches nothing: {what} | {discovery} | {scheme}"
        );
    }
    assert!(total > 4500, "{total}");
    assert!(told * 100 >= total * 97, "{out}{differences}");
    assert!(apart * 10 <= total, "{out}{differences}");
}

/// Whether a set was drawn.
fn is_random(set: &str) -> bool {
    ["two-", "routes-", "gateway-"]
        .iter()
        .any(|kind| set.starts_with(kind))
}

#[test]
fn sets_made_by_hand_are_answered_as_by_istio() {
    let ledger = ledger();
    let (mut asked, mut differences) = (BTreeSet::new(), Vec::new());
    compare(
        |set| !is_random(set),
        |place, url, istio, ours| {
            let what = verdict(istio, ours);
            let scheme = url.split_once(':').unwrap().0;
            let meant = |line: &Line| line.is_for(&what, istio, scheme);
            if what != "same" && !ledger.iter().any(meant) {
                differences.push(format!("{place} {url} | {what} | {istio:?} | {ours:?}"));
            }
            asked.insert(place.to_owned());
        },
    );
    let differences = differences.join("\n");
    assert!(differences.is_empty(), "{differences}");
    assert!(asked.len() >= 35, "{asked:?}");
}
