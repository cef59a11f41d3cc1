//! What the fuzz targets share: compile documents as a filter would, and hold the table to its word.

use egress_policy::{
    Action, CompileOptions, DownstreamProtocol, HostPattern, OutboundMode, Parser, PolicyTable,
    PortNumber, Query,
};
use serde_json::Value;

/// Hosts that are asked for besides those of the table.
const STRANGERS: [&str; 6] = [
    "",
    "a",
    "a.com",
    "x.y.example.com",
    "192.0.2.1",
    "ü.example",
];

/// Parses and compiles a document, or each item of an array as one, and asks for its hosts and others.
///
/// # Panics
/// When the engine does, or when it breaks a promise: a document with an error is left out, a service
/// is reached by its own query, a decision borrows a cluster of the table, a digest is reproducible.
pub fn run(value: &Value) {
    let mut parser = Parser::new();
    match value {
        Value::Array(documents) => documents.iter().for_each(|one| parser.document(one)),
        one => parser.document(one),
    }
    let (resources, problems) = parser.finish();
    for problem in &problems.0 {
        assert!(!problem.to_string().is_empty());
    }
    for outbound in [OutboundMode::RegistryOnly, OutboundMode::AllowAny] {
        let options = CompileOptions {
            outbound,
            ..CompileOptions::default()
        };
        match PolicyTable::compile(&resources, &options) {
            Ok((table, warnings)) => {
                assert!(!warnings.has_errors());
                hold_to_its_word(&table);
                let again = PolicyTable::compile(&resources, &options).map(|(table, _)| table);
                assert_eq!(again.map(|table| table.digest()), Ok(table.digest()));
            }
            Err(problems) => assert!(problems.has_errors()),
        }
    }
}

/// Asks a table for its own services and for strangers.
fn hold_to_its_word(table: &PolicyTable) {
    // Of several destinations of connections, a query names none.
    for service in table.services().filter(|it| it.share.is_none()) {
        let host = match service.host {
            HostPattern::Exact(name) => name.as_str().to_owned(),
            // No other host can stand in its way: no pattern here names this one.
            HostPattern::Suffix(suffix) => format!("zq0{suffix}"),
            HostPattern::Any => "zq0".to_owned(),
        };
        let query = Query {
            host: &host,
            port: service.port,
            downstream: service.downstream,
            branch: None,
            subset: service.subset,
        };
        let decision = table.decide(&query);
        let cluster = match decision.action {
            Action::Originate(cluster) => {
                assert!(cluster.tls.is_some());
                cluster
            }
            Action::Forward(cluster) | Action::Passthrough(cluster) => {
                assert!(cluster.tls.is_none());
                cluster
            }
            // A narrower wildcard may have the made-up host, without this port.
            _ => continue,
        };
        assert!(table.clusters().any(|one| std::ptr::eq(one, cluster)));
        if decision.service_entry == service.service_entry {
            assert_eq!(cluster.name, service.cluster.name);
        }
    }
    for host in STRANGERS {
        for downstream in [
            DownstreamProtocol::Http,
            DownstreamProtocol::Tls,
            DownstreamProtocol::Tcp,
        ] {
            let query = Query {
                host,
                port: PortNumber::HTTP,
                downstream,
                branch: None,
                subset: None,
            };
            let _ = table.decide(&query);
        }
    }
}
