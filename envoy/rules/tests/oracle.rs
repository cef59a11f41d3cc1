//! What a live istiod answered to rule sets, against what `explain` says: each fact that both tell.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop"
)]

use std::collections::BTreeSet;

use egress_filter::AuthorityMode;
use egress_policy::{AllowPlaintext, Authority, CompileOptions, Proxy};
use egress_rules::{Answered, Answers, How, Question, Source};
use serde_json::Value;

#[path = "../../../filter/policy/tests/asked/mod.rs"]
mod asked;

use asked::{Answer, ENGINE, Effort, NOBODY, Set, Tally, scheme};

/// The sets made by hand that need more than the engine.
const SETS: &str = include_str!("../../../filter/policy/tests/istio/oracle-sets.jsonl");

/// Reads what `explain` says.
fn read(said: &Value) -> Answer {
    let text = |pointer: &str| said.pointer(pointer).and_then(Value::as_str);
    let list = |pointer: &str| -> BTreeSet<String> {
        let list = said.pointer(pointer).and_then(Value::as_array);
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    let status = said.pointer("/status").and_then(Value::as_u64);
    let host = text("/authority").map(|it| Authority::parse(it).unwrap().host.into_owned());
    let retries = said.get("retries").map(|retries| {
        let on = retries["on"].as_str().unwrap_or_default();
        format!("{}:{on}", retries["attempts"])
    });
    let originates = text("/action") == Some("originate");
    Answer {
        does: text("/action").unwrap().to_owned(),
        discovery: String::new(),
        endpoints: Some(list("/endpoints")),
        sni: text("/tls/sni").filter(|_| originates).map(str::to_owned),
        names: list("/tls/subjectAltNames"),
        trust: match text("/tls/trust") {
            Some("insecureSkipVerify") => Some(NOBODY.to_owned()),
            trust => trust.filter(|trust| *trust != "system").map(str::to_owned),
        },
        certificate: text("/tls/clientCertificate").is_some(),
        status: status.map(|status| u16::try_from(status).unwrap()),
        host,
        effort: Some(Effort {
            timeout: text("/timeout").map(str::to_owned),
            retries,
        }),
    }
}

fn ask(answers: &Answers, options: &CompileOptions, url: &str) -> Answer {
    let url = match scheme(url) {
        "mesh" => url.replacen("mesh", "http", 1),
        _ => url.to_owned(),
    };
    let question = Question {
        url: &url,
        sni: None,
        subset: None,
        authority: AuthorityMode::Rewrite,
        method: "GET",
        headers: &[],
        answered: Answered::default(),
    };
    match answers.explain(&question, options) {
        Ok(explanation) => read(explanation.to_json()),
        Err(_) => Answer {
            does: "refused".to_owned(),
            ..Answer::default()
        },
    }
}

fn source(set: &Set, name: &str, documents: &[Value], mesh: bool) -> Source {
    let texts: Vec<String> = documents.iter().map(Value::to_string).collect();
    Source {
        name: format!("{}{name}.yaml", set.name),
        text: texts.join("\n---\n"),
        mesh,
    }
}

#[test]
fn explain_says_what_istio_does() {
    let [two, routes] = ENGINE;
    let tally = Tally::of(&[two, routes, SETS], |set, documents, proxy: Proxy| {
        let mut sources = vec![source(set, "", documents, false)];
        let mesh = set.mesh.iter();
        sources.extend(mesh.map(|mesh| source(set, "-mesh", std::slice::from_ref(mesh), true)));
        let options = CompileOptions {
            proxy,
            // Istio has no gate against plaintext.
            allow_plaintext: vec![AllowPlaintext::everywhere()],
            ..CompileOptions::default()
        };
        let answers = Answers::compile(&sources, &options, How::default().each);
        move |url: &str| match &answers {
            Ok(answers) => ask(answers, &options, url),
            Err(_) => Answer {
                does: "refused".to_owned(),
                ..Answer::default()
            },
        }
    });
    tally.check("explain", true);
}
