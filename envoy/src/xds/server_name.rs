//! Many server names matched by one table.
//!
//! Envoy's `filter_chain_match` takes 1.6 kB for each of `server_names`, its matching API a third of that. Both lead
//! alike: the exact name first, then the longest of the wildcards, and nobody else. Few names stay where
//! people look for them.
//!
//! Source: envoyproxy/envoy `source/common/network/filter_chain_manager_impl.cc`, `findFilterChainForServerName`, and
//! `source/common/matcher/exact_map_matcher.h`.

use std::cmp::Reverse;

use egress_policy::Digest;
use serde_json::{Map, Value, json};

use super::extension;

/// From this many names on they are matched by a table.
const MANY: usize = 500;

/// Takes what the chains of a listener match from them and returns it as `filter_chain_matcher`, where they have many
/// server names; each chain has some, or it is the only one for what is no TLS.
pub(super) fn matcher(chains: &mut [Value]) -> Option<Value> {
    let names = |chain: &Value| match chain.pointer("/filter_chain_match/server_names") {
        Some(Value::Array(names)) => names.len(),
        _ => 0,
    };
    if chains.iter().map(names).sum::<usize>() < MANY {
        return None;
    }
    let mut protocols = Map::new();
    let (mut exact, mut wildcards) = (Map::new(), Vec::new());
    for chain in chains.iter_mut().filter_map(Value::as_object_mut) {
        let matches = chain.remove("filter_chain_match")?;
        let name = chain.get_mut("name")?;
        let Some(Value::Array(server_names)) = matches.get("server_names") else {
            protocols.insert("raw_buffer".to_owned(), lead_to(name));
            continue;
        };
        // A chain that lost a host is another one: what went through it must come to an end.
        let digest = Digest::of_text(&matches.to_string());
        *name = json!(format!("{}_{digest}", name.as_str()?));
        for server_name in server_names.iter().filter_map(Value::as_str) {
            match server_name.strip_prefix('*') {
                Some(suffix) => wildcards.push((suffix.to_owned(), lead_to(name))),
                None => {
                    exact.insert(server_name.to_owned(), lead_to(name));
                }
            }
        }
    }
    wildcards.sort_by_key(|(suffix, _)| Reverse(suffix.len()));
    protocols.insert(
        "tls".to_owned(),
        json!({"matcher": server_names(exact, wildcards)}),
    );
    Some(json!({"matcher_tree": {
        "input": input("transport_protocol", "TransportProtocolInput"),
        "exact_match_map": {"map": protocols},
    }}))
}

fn server_names(exact: Map<String, Value>, wildcards: Vec<(String, Value)>) -> Value {
    let input = input("server_name", "ServerNameInput");
    let matchers: Vec<Value> = wildcards
        .into_iter()
        .map(|(suffix, chain)| {
            let predicate = json!({"input": input, "value_match": {"suffix": suffix}});
            json!({"predicate": {"single_predicate": predicate}, "on_match": chain})
        })
        .collect();
    let wildcards = json!({"matcher_list": {"matchers": matchers}});
    if exact.is_empty() {
        return wildcards;
    }
    let mut all = json!({"matcher_tree": {"input": input, "exact_match_map": {"map": exact}}});
    if let (false, Some(fields)) = (matchers.is_empty(), all.as_object_mut()) {
        fields.insert("on_no_match".to_owned(), json!({"matcher": wildcards}));
    }
    all
}

fn input(name: &str, kind: &str) -> Value {
    extension(
        &format!("envoy.matching.inputs.{name}"),
        &format!("envoy.extensions.matching.common_inputs.network.v3.{kind}"),
        json!({}),
    )
}

fn lead_to(chain: &Value) -> Value {
    let name = extension(
        "chain",
        "google.protobuf.StringValue",
        json!({"value": chain}),
    );
    json!({"action": name})
}
