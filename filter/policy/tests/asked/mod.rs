//! What a live istiod answered to rule sets, and how answers of ours are compared with it.
//!
//! `istio/oracle.jsonl` has a set a line: 250 random ones of ServiceEntries and DestinationRules over four namespaces
//! (`two-*`), and some made by hand. `istio/oracle-routes.jsonl` has 250 with VirtualServices and Sidecars (`routes-*`),
//! 100 with Gateways, asked of the sidecar and of the router (`gateway-*`), and others made by hand. It is the largest
//! file of the tests, and whole: its shares are the proof that routes are followed as Istio does. `istio/oracle-sets.jsonl`
//! has the others made by hand, some with the configuration of the mesh.
//!
//! Istio's own discovery server was given each of them, and what it then sent to the proxies of `from` was walked as Envoy
//! does, for each host and port. An item of `asks` is such a question, whose answers it holds for (places in `from`),
//! and the answer: what becomes of it, how endpoints are found, and then in any order
//!
//! | word | what |
//! |---|---|
//! | `to=` | the endpoints |
//! | `sni=`, `names=`, `trust=`, `certificate=` | of TLS; without `trust` the system's authorities, `trust=nobody` verifies nothing |
//! | `host=` | the authority that the server is told in place of the request's |
//! | `timeout=`, `retries=` | of the route, where they are not Istio's defaults; `retries` are attempts and conditions |
//!
//! `mesh://` asks a router for a plain request within TLS of the mesh, which its server ends.
//!
//! Shares and rewritten paths are in none of the answers: `integration/tests/istio_merge.rs` compares them with whole
//! configurations of a live istiod. Nor are headers, redirects and faults, which no recording has:
//! `integration/tests/routes.rs` asks a real Envoy.
//!
//! `istio/oracle-ledger.txt` says where we differ on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use egress_policy::{Authority, Proxy, Role};
use serde_json::{Value, json};

/// The sets that the engine can be asked by itself.
pub(crate) const ENGINE: [&str; 2] = [
    include_str!("../istio/oracle.jsonl"),
    include_str!("../istio/oracle-routes.jsonl"),
];
/// What `$HOP` stands for.
const HOP: &str = "istio-egressgateway.istio-system.svc.cluster.local";
const LEDGER: &str = include_str!("../istio/oracle-ledger.txt");
/// What is verified where nothing is.
pub(crate) const NOBODY: &str = "nobody";

/// What became of a question, whosoever answered it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// `forward`, `originate`, `passthrough`, `reject`, and what else Istio may do.
    pub(crate) does: String,
    /// Istio's word for how endpoints are found; `-` for none.
    pub(crate) discovery: String,
    pub(crate) endpoints: Option<BTreeSet<String>>,
    pub(crate) sni: Option<String>,
    pub(crate) names: BTreeSet<String>,
    pub(crate) trust: Option<String>,
    pub(crate) certificate: bool,
    /// Of an answer without any server.
    pub(crate) status: Option<u16>,
    /// What the server is told in `Host`, of requests alone, and without a port.
    pub(crate) host: Option<String>,
    /// What the route says beside; nothing where it is not known.
    pub(crate) effort: Option<Effort>,
}

/// How long a route waits, and how often it tries.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Effort {
    pub(crate) timeout: Option<String>,
    pub(crate) retries: Option<String>,
}

impl Answer {
    /// Reads Istio's, as it is written in the sets.
    fn read(text: &str, url: &str) -> Answer {
        let (mut answer, mut effort) = (Answer::default(), Effort::default());
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
                Some(("host", name)) => answer.host = Some(name.to_owned()),
                Some(("timeout", time)) => effort.timeout = Some(time.to_owned()),
                Some(("retries", how)) => effort.retries = Some(how.to_owned()),
                Some(_) => panic!("{text}"),
            }
        }
        if answer.discovery.is_empty() {
            answer.discovery = "-".to_owned();
        }
        answer.effort = Some(effort);
        let led = ["forward", "originate"].contains(&answer.does.as_str());
        if led && ["http", "mesh"].contains(&scheme(url)) && answer.host.is_none() {
            answer.host = Some(host(url));
        }
        answer
    }
}

pub(crate) fn scheme(url: &str) -> &str {
    url.split_once("://").unwrap().0
}

/// Returns the authority in a URL, and the path.
pub(crate) fn authority(url: &str) -> (Authority<'_>, String) {
    let (_, rest) = url.split_once("://").unwrap();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    (Authority::parse(authority).unwrap(), format!("/{path}"))
}

fn host(url: &str) -> String {
    authority(url).0.host.into_owned()
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
        let anybody = |answer: &Answer| answer.trust.as_deref() == Some(NOBODY);
        if ours.names != *wanted && !(anybody(istio) && anybody(ours)) {
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
    if istio.host.is_some() && istio.host != ours.host {
        differs.push("host");
    }
    if let (Some(istio), Some(ours)) = (&istio.effort, &ours.effort) {
        if istio.timeout != ours.timeout {
            differs.push("timeout");
        }
        if istio.retries != ours.retries {
            differs.push("retries");
        }
    }
    match differs.is_empty() {
        true => "same".to_owned(),
        false => format!("differs in {}", differs.join(", ")),
    }
}

/// A set of rules.
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) documents: Vec<Value>,
    /// The configuration of the mesh, where it is given.
    pub(crate) mesh: Option<Value>,
    from: Vec<String>,
    /// The places in `from`, the questions, and Istio's answers.
    asks: Vec<(usize, String, Answer)>,
}

impl Set {
    fn read(line: &str) -> Set {
        let set: Value = serde_json::from_str(&line.replace("$HOP", HOP)).unwrap();
        let texts = |key: &str| {
            let list = set[key].as_array().unwrap().iter();
            let texts = list.map(|it| it.as_str().unwrap().to_owned());
            texts.collect::<Vec<_>>()
        };
        let mut asks = Vec::new();
        for asked in texts("asks") {
            let mut words = asked.splitn(3, ' ');
            let (url, places) = (words.next().unwrap(), words.next().unwrap());
            let answer = words.next().unwrap();
            for place in places.split(',') {
                let istio = Answer::read(answer, url);
                asks.push((place.parse().unwrap(), url.to_owned(), istio));
            }
        }
        asks.sort_by_key(|(place, ..)| *place);
        Set {
            name: set["set"].as_str().unwrap().to_owned(),
            documents: set["rules"]
                .as_array()
                .unwrap()
                .iter()
                .map(document)
                .collect(),
            mesh: set.get("mesh").cloned(),
            from: texts("from"),
            asks,
        }
    }

    /// Whether it was drawn.
    fn is_random(&self) -> bool {
        let kinds = ["two-", "routes-", "gateway-"];
        kinds.iter().any(|kind| self.name.starts_with(kind))
    }

    /// Returns the documents in other orders: Istio settles by chance which of two entries of a namespace is the older
    /// one, if both have the same time.
    fn other_orders(&self) -> Vec<Vec<Value>> {
        let mut of_one_age = BTreeMap::<(String, String), Vec<usize>>::new();
        for (at, document) in self.documents.iter().enumerate() {
            let metadata = &document["metadata"];
            let text = |key: &str| metadata[key].as_str().map(str::to_owned);
            if document["kind"] == "ServiceEntry"
                && let Some(created) = text("creationTimestamp")
            {
                let key = (text("namespace").unwrap_or_default(), created);
                of_one_age.entry(key).or_default().push(at);
            }
        }
        let mut orders = vec![self.documents.clone()];
        for places in of_one_age.values().filter(|places| places.len() > 1) {
            orders = (orders.iter())
                .flat_map(|order| permutations(places).into_iter().map(move |it| (order, it)))
                .map(|(order, places)| {
                    let mut order = order.clone();
                    for (second, at) in places.into_iter().enumerate() {
                        let created = &mut order[at]["metadata"]["creationTimestamp"];
                        let day = created.as_str().unwrap().split('T').next().unwrap();
                        *created = json!(format!("{day}T00:00:0{second}Z"));
                    }
                    order
                })
                .collect();
        }
        if orders.len() == 1 {
            Vec::new()
        } else {
            orders
        }
    }
}

fn permutations(places: &[usize]) -> Vec<Vec<usize>> {
    let [first, rest @ ..] = places else {
        return vec![Vec::new()];
    };
    let mut all = Vec::new();
    for shorter in permutations(rest) {
        for at in 0..=shorter.len() {
            let mut longer = shorter.clone();
            longer.insert(at, *first);
            all.push(longer);
        }
    }
    all
}

/// Writes out a resource: `{"ServiceEntry": "namespace/name", "spec": {…}}`, a port as `number name protocol target`.
/// One that has a `kind` is written out already.
fn document(short: &Value) -> Value {
    if short.get("kind").is_some() {
        return short.clone();
    }
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

/// A line of the ledger.
struct Line {
    text: String,
    what: String,
    discovery: String,
    scheme: String,
    used: u32,
}

impl Line {
    fn is_for(&self, what: &str, istio: &Answer, scheme: &str, set: &str) -> bool {
        let any = |text: &str, word: &str| text == "*" || text == word;
        let asked = any(&self.scheme, scheme) || self.scheme == set;
        self.what == what && any(&self.discovery, &istio.discovery) && asked
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
                text: line.to_owned(),
                what: what.to_owned(),
                discovery: discovery.to_owned(),
                scheme: scheme.to_owned(),
                used: 0,
            }
        })
        .collect()
}

/// A kind of result that is neither same nor on the ledger, and no difference.
const BY_CHANCE: &str = "same, with entries of equal age in another order";
const ON_THE_LEDGER: &str = "on the ledger";

/// What came of all questions.
pub(crate) struct Tally {
    ledger: Vec<Line>,
    /// Of random sets, how often what was the result.
    counts: BTreeMap<String, u32>,
    /// Of each kind of random sets, the questions that came out as they should, and all.
    of_kind: BTreeMap<String, (u32, u32)>,
    /// What should have come out otherwise, of random sets and of those made by hand.
    random: Vec<String>,
    by_hand: Vec<String>,
    /// How many callers were asked for in sets made by hand.
    callers: usize,
}

impl Tally {
    /// Asks everything: `ours` compiles documents for a caller and answers questions.
    pub(crate) fn of<A: Fn(&str) -> Answer>(
        sets: &[&str],
        ours: impl Fn(&Set, &[Value], Proxy) -> A,
    ) -> Tally {
        let mut tally = Tally {
            ledger: ledger(),
            counts: BTreeMap::new(),
            of_kind: BTreeMap::new(),
            random: Vec::new(),
            by_hand: Vec::new(),
            callers: 0,
        };
        for line in sets.iter().flat_map(|sets| sets.lines()) {
            tally.add(&Set::read(line), &ours);
        }
        tally
    }

    fn add<A: Fn(&str) -> Answer>(&mut self, set: &Set, ours: impl Fn(&Set, &[Value], Proxy) -> A) {
        let all = |documents: &[Value]| -> Vec<Answer> {
            let mut answers = Vec::new();
            for (at, from) in set.from.iter().enumerate() {
                let asked = set.asks.iter().filter(|(place, ..)| *place == at);
                let answer = ours(set, documents, proxy(from));
                answers.extend(asked.map(|(_, url, _)| answer(url)));
            }
            answers
        };
        let judged = |answers: &[Answer]| -> Vec<(String, Option<usize>)> {
            let pairs = set.asks.iter().zip(answers);
            let judged = pairs.map(|((_, url, istio), ours)| {
                let what = verdict(istio, ours);
                let meant = |line: &Line| line.is_for(&what, istio, scheme(url), &set.name);
                let line = self.ledger.iter().position(meant);
                (what, line)
            });
            judged.collect()
        };
        let settled = |(what, line): &(String, Option<usize>)| what == "same" || line.is_some();
        let answers = all(&set.documents);
        let found = judged(&answers);
        let mut by_chance = vec![false; found.len()];
        if !found.iter().all(settled) {
            // Istio settles it anew in each of several places.
            for order in set.other_orders() {
                for (at, found) in judged(&all(&order)).iter().enumerate() {
                    by_chance[at] |= settled(found);
                }
            }
        }
        let kind = set.name.split('-').next().unwrap().to_owned();
        for (at, (what, line)) in found.into_iter().enumerate() {
            let (place, url, istio) = &set.asks[at];
            let result = match line {
                _ if what == "same" => what,
                Some(line) => {
                    self.ledger[line].used += 1;
                    ON_THE_LEDGER.to_owned()
                }
                None if by_chance[at] => BY_CHANCE.to_owned(),
                None => {
                    let (name, from) = (&set.name, &set.from[*place]);
                    let ours = &answers[at];
                    let difference =
                        format!("{name} {from} {url} | {what} | Istio {istio:?} | here {ours:?}");
                    match set.is_random() {
                        true => self.random.push(difference),
                        false => self.by_hand.push(difference),
                    }
                    what
                }
            };
            if set.is_random() {
                let told = ["same", ON_THE_LEDGER, BY_CHANCE].contains(&&*result);
                let of_kind = self.of_kind.entry(kind.clone()).or_default();
                of_kind.0 += u32::from(told);
                of_kind.1 += 1;
                *self.counts.entry(result).or_default() += 1;
            }
        }
        self.callers += if set.is_random() { 0 } else { set.from.len() };
    }

    /// Returns how many questions of random sets begin with a word, and how many there are.
    fn of_random(&self, begins: &str) -> u32 {
        let found = self.counts.iter();
        let found = found.filter(|(what, _)| what.starts_with(begins));
        found.map(|(_, count)| count).sum()
    }

    /// Checks that of random sets at least 97 of 100 questions are answered as by Istio or differ as the ledger says, that
    /// at most 10 are refused or on the ledger, and that no set made by hand differs. `whose` answers they are is printed
    /// with the counts. Where `all` was asked, nothing may differ, and the ledger may have no line too many.
    pub(crate) fn check(&self, whose: &str, all: bool) {
        let total = self.of_random("");
        let mut out = format!("{whose}: {total} questions of random sets\n");
        for (what, count) in &self.counts {
            let share = f64::from(*count) * 100.0 / f64::from(total);
            out += &format!("{count:>6} {share:>5.1} %  {what}\n");
        }
        for (kind, (told, all)) in &self.of_kind {
            let share = f64::from(*told) * 100.0 / f64::from(*all);
            out += &format!("{kind}: {told} of {all}, {share:.1} %, same or on the ledger\n");
        }
        // Not through the macros, which the harness would keep to itself.
        let _ = std::io::stderr().write_all(out.as_bytes());
        let differences = self.random.join("\n");
        let told = self.of_random("same") + self.of_random(ON_THE_LEDGER);
        let apart = self.of_random("refused") + self.of_random(ON_THE_LEDGER);
        assert!(total > 4500, "{total}");
        assert!(told * 100 >= total * 97, "{out}{differences}");
        assert!(apart * 10 <= total, "{out}{differences}");
        assert!(self.by_hand.is_empty(), "{}", self.by_hand.join("\n"));
        assert!(
            self.callers >= if all { 75 } else { 35 },
            "{}",
            self.callers
        );
        if all {
            assert!(self.random.is_empty(), "{differences}");
            let unused = self.ledger.iter().filter(|line| line.used == 0);
            let unused: Vec<&str> = unused.map(|line| line.text.as_str()).collect();
            assert!(
                unused.is_empty(),
                "no question needs:\n{}",
                unused.join("\n")
            );
        }
    }
}
