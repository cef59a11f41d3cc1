//! Many server names matched by one table.
//!
//! Envoy's `filter_chain_match` takes 1.6 kB for each of `server_names`, its matching API a third of that. Both match
//! alike: the exact name first, then the longest wildcard, and nothing else. Few names stay in `server_names`, where
//! people look for them.
//!
//! Source: envoyproxy/envoy `source/common/network/filter_chain_manager_impl.cc`, `findFilterChainForServerName`, and
//! `source/common/matcher/exact_map_matcher.h`.

use std::cmp::Reverse;

use egress_policy::Digest;
use serde_json::{Map, Value, json};

use super::chain::Chain;
use super::message::extension;

/// From this many names on they are matched by a table.
const MANY: usize = 500;

/// Up to this many wildcards: a table has none, so they are tried one after the other. Some names are exact then.
const FEW_WILDCARDS: usize = 100;

/// Takes what the chains of a listener match from them and returns it as `filter_chain_matcher`, where they have many
/// server names and few wildcards; each chain has some, or it is the only one for what is no TLS.
pub(super) fn matcher(chains: &mut [Chain]) -> Option<Value> {
    let names = || {
        let lists = chains.iter();
        let lists = lists.filter_map(|it| it.matches.as_ref()?.server_names.as_ref());
        lists.flatten()
    };
    let wildcards = names().filter(|name| name.starts_with('*')).count();
    if names().count() < MANY || wildcards > FEW_WILDCARDS {
        return None;
    }
    let mut protocols = Map::new();
    let (mut exact, mut wildcards) = (Map::new(), Vec::new());
    for chain in chains.iter_mut() {
        let matches = chain.matches.take().unwrap_or_default();
        let Some(name) = &mut chain.name else {
            continue; // nothing leads to it
        };
        let Some(server_names) = &matches.server_names else {
            protocols.insert("raw_buffer".to_owned(), lead_to(name));
            continue;
        };
        // A chain that lost a host is another one: what went through it must come to an end.
        let digest = Digest::of_text(&matches.written().to_string());
        *name = format!("{name}_{digest}");
        let chain = lead_to(name);
        for server_name in server_names {
            match server_name.strip_prefix('*') {
                Some(ending) => wildcards.push((ending.to_owned(), chain.clone())),
                None => {
                    exact.insert(server_name.clone(), chain.clone());
                }
            }
        }
    }
    wildcards.sort_by_key(|(ending, _)| Reverse(ending.len()));
    let tls = object([("matcher", by_server_name(exact, wildcards))]);
    protocols.insert("tls".to_owned(), tls);
    let input = input("transport_protocol", "TransportProtocolInput");
    Some(object([("matcher_tree", table(input, protocols))]))
}

fn by_server_name(exact: Map<String, Value>, wildcards: Vec<(String, Value)>) -> Value {
    let input = input("server_name", "ServerNameInput");
    let rest = (!wildcards.is_empty()).then(|| {
        let wildcards = by_ending(&input, wildcards);
        ("on_no_match", object([("matcher", wildcards)]))
    });
    let exact = ("matcher_tree", table(input, exact));
    object([exact].into_iter().chain(rest))
}

fn by_ending(input: &Value, endings: Vec<(String, Value)>) -> Value {
    let matcher = |(ending, chain)| {
        let predicate = json!({"input": input, "value_match": {"suffix": ending}});
        json!({"predicate": {"single_predicate": predicate}, "on_match": chain})
    };
    let matchers = endings.into_iter().map(matcher).collect();
    object([(
        "matcher_list",
        object([("matchers", Value::Array(matchers))]),
    )])
}

fn table(input: Value, map: Map<String, Value>) -> Value {
    let map = object([("map", Value::Object(map))]);
    object([("input", input), ("exact_match_map", map)])
}

/// As `json!`, which would copy what is in it.
fn object<'k>(fields: impl IntoIterator<Item = (&'k str, Value)>) -> Value {
    let fields = fields.into_iter();
    Value::Object(fields.map(|(key, value)| (key.to_owned(), value)).collect())
}

fn input(name: &str, kind: &str) -> Value {
    extension(
        &format!("envoy.matching.inputs.{name}"),
        &format!("envoy.extensions.matching.common_inputs.network.v3.{kind}"),
        json!({}),
    )
}

fn lead_to(chain: &str) -> Value {
    let name = extension(
        "chain",
        "google.protobuf.StringValue",
        json!({"value": chain}),
    );
    json!({"action": name})
}

#[cfg(test)]
mod tests {
    use super::super::chain::ChainMatch;
    use super::*;

    fn chains(exact: usize, wildcards: usize) -> Vec<Chain> {
        let exact = (0..exact).map(|at| format!("host-{at}.example.com"));
        let wildcards = (0..wildcards).map(|at| format!("*.tenant-{at}.example.com"));
        vec![Chain {
            name: Some("tls_0".to_owned()),
            matches: Some(ChainMatch::tls(exact.chain(wildcards).collect())),
            filters: Vec::new(),
        }]
    }

    #[test]
    fn many_names_are_matched_by_a_table_unless_many_are_wildcards() {
        for (exact, wildcards, by_table) in [
            (MANY, 0, true),
            (MANY - 1, 0, false),
            (MANY, FEW_WILDCARDS, true),
            (MANY, FEW_WILDCARDS + 1, false),
        ] {
            let mut chains = chains(exact, wildcards);
            let before = chains.clone();
            let matcher = matcher(&mut chains);
            assert_eq!(matcher.is_some(), by_table, "{exact} and {wildcards}");
            assert_eq!(chains == before, !by_table);
        }
    }
}
