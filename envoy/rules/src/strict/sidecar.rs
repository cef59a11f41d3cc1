//! `Sidecar`: what workloads see, and what becomes of the rest.
//!
//! Source: istio/istio `pkg/config/validation/validation.go`, `ValidateSidecar`.

use std::collections::BTreeSet;

use egress_policy::fields::{Field, Fields};
use egress_policy::reading::{read_connection_pool, read_labels, text_of};
use egress_policy::{HostPattern, ProblemKind, ProtocolClass};

use super::listener::{
    Port, check_bind, check_namespaced, invalid, read_port, read_server_tls, texts,
};

/// Checks `spec`.
pub(super) fn check(field: Field<'_>) -> Option<()> {
    let fields = field.fields()?;
    let parts = [
        "egress",
        "ingress",
        "outboundTrafficPolicy",
        "inboundConnectionPool",
    ];
    if !parts.iter().any(|name| fields.has(name)) {
        let hint = "give `egress` with the hosts that the workloads see";
        let text = "sidecar: empty configuration provided".to_owned();
        fields.error(ProblemKind::Invalid(text), Some(hint));
    }
    fields.read("workloadSelector", |field| {
        let fields = field.fields()?;
        let labels = fields.read("labels", |field| Some(read_labels(field)));
        if labels.is_none() && !fields.has("labels") {
            let text = "workload selector specified without labels".to_owned();
            let hint = "it is for all workloads of the namespace; give `labels`";
            field.warning(ProblemKind::Invalid(text), hint);
        }
        Some(())
    });
    fields.read("inboundConnectionPool", |field| {
        read_connection_pool(field).map(drop)
    });
    check_egress(&fields);
    check_ingress(&fields);
    fields.read("outboundTrafficPolicy", check_policy);
    Some(())
}

fn check_egress(fields: &Fields<'_>) {
    fields.read("egress", |list| {
        let last = list.count().saturating_sub(1);
        let mut index = 0;
        let mut known = BTreeSet::new();
        list.items(|item| {
            check_listener(item, index == last, &mut known);
            index += 1;
        });
        Some(())
    });
}

fn check_listener(field: Field<'_>, last: bool, known: &mut BTreeSet<u64>) -> Option<()> {
    let fields = field.fields()?;
    check_capture(&fields);
    let port = fields.read("port", |field| {
        let port = read_port(field, false)?;
        check_unique(&field, &port, known, "egress");
        Some(port)
    });
    match port {
        Some(port) => check_bind(&fields, Some(&port)),
        None => {
            if !last && !fields.has("port") {
                let text = "sidecar: the egress listener with empty port should be the last listener in the list";
                invalid(&field, text, "move it to the end");
            }
            check_bind(&fields, None);
        }
    }
    fields.require("hosts", |list| {
        if list.count() == 0 {
            let text = "sidecar: egress listener must contain at least one host";
            invalid(&list, text, "`*/*` is everything");
        }
        list.items(|item| check_namespaced(item, true));
        Some(())
    });
    Some(())
}

fn check_unique(field: &Field<'_>, port: &Port, known: &mut BTreeSet<u64>, what: &str) {
    if port.number != 0 && !known.insert(port.number) {
        let text = format!(
            "sidecar: ports on all {what} listeners must be unique: port {}",
            port.number
        );
        field.error_with_hint(ProblemKind::Conflict(text), "make one listener of the two");
    }
}

fn check_capture(fields: &Fields<'_>) {
    let words = ["DEFAULT", "IPTABLES", "NONE"];
    fields.read("captureMode", |field| {
        let known = |word: &str| words.iter().position(|known| *known == word);
        field.word("mode", &words, known).map(drop)
    });
}

fn check_ingress(fields: &Fields<'_>) {
    let mut known = BTreeSet::new();
    fields.read("ingress", |list| {
        list.items(|item| {
            check_ingress_listener(item, &mut known);
        });
        Some(())
    });
}

fn check_ingress_listener(field: Field<'_>, known: &mut BTreeSet<u64>) -> Option<()> {
    let fields = field.fields()?;
    check_capture(&fields);
    let port = fields.require("port", |field| {
        let port = read_port(field, false)?;
        check_unique(&field, &port, known, "ingress");
        Some(port)
    });
    if let Some(port) = &port {
        check_bind(&fields, Some(port));
    }
    fields.read("defaultEndpoint", |field| {
        let text = field.text()?;
        let hosts = ["127.0.0.1:", "0.0.0.0:", "[::1]:", "[::]:"];
        let port = |host: &&str| {
            let port = text.strip_prefix(host).and_then(|port| port.parse().ok());
            port.is_some_and(|port: u16| port != 0)
        };
        let is_path = text.strip_prefix("unix://").is_some_and(|it| it.starts_with(['/', '@']));
        if !text.is_empty() && !is_path && !hosts.iter().any(port) {
            let text = "sidecar: defaultEndpoint must be of form 127.0.0.1:<port>, 0.0.0.0:<port>, [::1]:<port>, [::]:<port>, unix://filepath or unset";
            invalid(&field, text, "name the port that the application listens on");
        }
        Some(())
    });
    fields.read("connectionPool", |field| {
        read_connection_pool(field).map(drop)
    });
    fields.read("tls", |field| {
        let tls = read_server_tls(field)?;
        if matches!(tls.mode, "ISTIO_MUTUAL" | "AUTO_PASSTHROUGH") {
            let text = format!(
                "configuration is invalid: cannot set mode to {} in sidecar ingress tls",
                tls.mode
            );
            invalid(&field, &text, "use SIMPLE, MUTUAL or OPTIONAL_MUTUAL");
        }
        let protocol = port.as_ref()?.protocol?;
        if protocol.class() != ProtocolClass::Tls {
            let text = "server cannot have TLS settings for non HTTPS/TLS ports";
            invalid(&field, text, "write `protocol: HTTPS` or `TLS`");
        }
        Some(())
    });
    Some(())
}

fn check_policy(field: Field<'_>) -> Option<()> {
    let fields = field.fields()?;
    let words = ["REGISTRY_ONLY", "ALLOW_ANY"];
    let known = |word: &str| words.iter().copied().find(|known| *known == word);
    let mode = fields.read("mode", |field| field.word("mode", &words, known));
    fields.read("egressProxy", |field| {
        let proxy = field.fields()?;
        if mode != Some("ALLOW_ANY") {
            let text = "sidecar: egress_proxy must be set only with ALLOW_ANY outbound_traffic_policy mode";
            invalid(&field, text, "write `mode: ALLOW_ANY`, or remove it");
        }
        proxy.require("host", |field| {
            let text = text_of(field)?;
            if let Err(problem) = HostPattern::parse(&text) {
                invalid(&field, &problem.to_string(), "it is the name of a service");
            }
            Some(())
        });
        texts(&proxy, &["subset"]);
        proxy.require("port", |field| {
            let fields = field.fields()?;
            fields.require("number", |field| field.port()).map(drop)
        });
        Some(())
    });
    // Without a mode it is the zero of the enumeration, and not what the mesh has.
    if !fields.has("mode") {
        let text = "without a mode it is REGISTRY_ONLY, whatever the mesh has".to_owned();
        let hint = "write the mode that is meant";
        fields.warning_at("mode", ProblemKind::Invalid(text), hint);
    }
    Some(())
}
