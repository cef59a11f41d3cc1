//! What a live istiod answered to rule sets, against what the engine decides. What `explain` tells of the same sets is
//! compared in `envoy/rules/tests/oracle.rs`, and more of it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should stop"
)]

use std::collections::BTreeSet;

use egress_policy::{
    Action, AllowPlaintext, Answer as Given, BranchOf, CompileOptions, Decision,
    DownstreamProtocol, Identity, Parser, PolicyTable, PortNumber, Proxy, Query, Reason, Sni,
    Trust,
};
use serde_json::Value;
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

mod asked;

use asked::{Answer, ENGINE, NOBODY, Tally, authority, scheme};

fn of(decision: &Decision<'_, '_>, downstream: DownstreamProtocol) -> Answer {
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
    if let Some(target) = decision.target
        && downstream == DownstreamProtocol::Http
    {
        answer.host = Some(target.host.to_owned());
    }
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
        Trust::InsecureSkipVerify => Some(NOBODY.to_owned()),
    };
    answer.certificate = matches!(
        tls.identity,
        Some(Identity::Files { .. } | Identity::Credential(_))
    );
    answer
}

fn ask(table: &PolicyTable, documents: &[Value], url: &str) -> Answer {
    let (authority, path) = authority(url);
    let downstream = match scheme(url) {
        "http" | "mesh" => DownstreamProtocol::Http,
        "https" => DownstreamProtocol::Tls,
        _ => DownstreamProtocol::Tcp,
    };
    let port = authority.port.unwrap();
    let branch = branch(table, documents, &authority.host, port, &path);
    let query = Query {
        host: &authority.host,
        port,
        downstream,
        branch: branch.as_deref(),
        subset: None,
    };
    of(&table.decide(&query), downstream)
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

#[test]
fn the_engine_decides_as_istio_does() {
    let tally = Tally::of(&ENGINE, |set, documents, proxy: Proxy| {
        assert!(set.mesh.is_none(), "{}", set.name);
        let mut parser = Parser::new();
        documents.iter().for_each(|it| parser.document(it));
        let (resources, problems) = parser.finish();
        assert!(!problems.has_errors(), "{}: {problems}", set.name);
        let options = CompileOptions {
            proxy,
            // Istio has no gate against plaintext.
            allow_plaintext: vec![AllowPlaintext::everywhere()],
            ..CompileOptions::default()
        };
        let table = PolicyTable::compile_with_errors(&resources, &options).table;
        let documents = documents.to_vec();
        move |url: &str| ask(&table, &documents, url)
    });
    tally.check("the engine", false);
}
