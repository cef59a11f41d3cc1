//! `Gateway`: what routers listen for.
//!
//! Source: istio/istio `pkg/config/validation/validation.go`, `ValidateGateway`.

use std::collections::BTreeSet;

use egress_policy::fields::Field;
use egress_policy::{ProblemKind, Protocol, ProtocolClass};

use super::listener::{
    ServerTls, check_bind, check_namespaced, invalid, invalid_at, read_port, read_server_tls, texts,
};

/// Checks `spec`.
pub(super) fn check(field: Field<'_>) -> Option<()> {
    let fields = field.fields()?;
    fields.read("selector", |field| {
        field.labels();
        Some(())
    });
    if !fields.given("servers") {
        let text = "gateway must have at least one server";
        invalid_at(
            &fields,
            "servers",
            text,
            "say for which hosts and ports it is",
        );
    }
    let mut names = BTreeSet::new();
    fields.read("servers", |list| {
        list.items(|item| {
            check_server(item, &mut names);
        });
        Some(())
    })
}

fn check_server(field: Field<'_>, names: &mut BTreeSet<String>) -> Option<()> {
    let fields = field.fields()?;
    texts(&fields, &["name", "defaultEndpoint"]);
    let port = fields.require("port", |field| {
        let port = read_port(field, true)?;
        let name = port.name.clone().unwrap_or_default();
        if !name.is_empty() && !names.insert(name.clone()) {
            let text = format!("port names in servers must be unique: duplicate name {name}");
            field.error_with_hint(ProblemKind::Conflict(text), "give the port another name");
        }
        Some(port)
    });
    check_bind(&fields, port.as_ref());
    fields.require("hosts", |list| {
        if list.count() == 0 {
            invalid(
                &list,
                "server config must contain at least one host",
                "name the hosts, or `*`",
            );
        }
        list.items(|item| check_namespaced(item, false));
        Some(())
    });
    let tls = fields.read("tls", |field| {
        let tls = read_server_tls(field)?;
        check_protocol(&field, &tls, port.as_ref()?.protocol?);
        Some(())
    });
    let protocol = port.and_then(|port| port.protocol);
    if tls.is_none() && !fields.has("tls") && protocol.is_some_and(is_tls) {
        let text = "server must have TLS settings for HTTPS/TLS protocols";
        invalid_at(&fields, "tls", text, "give `tls.mode`");
    }
    Some(())
}

fn is_tls(protocol: Protocol) -> bool {
    protocol.class() == ProtocolClass::Tls
}

fn check_protocol(field: &Field<'_>, tls: &ServerTls, protocol: Protocol) {
    if is_tls(protocol) {
        return;
    }
    let http = protocol.class() == ProtocolClass::Http;
    if http && tls.only_redirects {
        return;
    }
    let text = match http {
        true => "server cannot have TLS settings for plain text HTTP ports",
        false => "server cannot have TLS settings for non HTTPS/TLS ports",
    };
    invalid(
        field,
        text,
        "remove `tls`, or write `protocol: HTTPS` or `TLS`",
    );
}
