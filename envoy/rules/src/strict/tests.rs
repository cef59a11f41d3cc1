use serde_json::json;

use super::*;

/// What is said of one resource of `networking.istio.io/v1`, without its name.
fn said(kind: &str, spec: Value) -> Vec<String> {
    let resource = json!({"apiVersion": "networking.istio.io/v1", "kind": kind,
        "metadata": {"name": "x"}, "spec": spec});
    let (kind, check): (_, fn(Field<'_>) -> Option<()>) = match kind {
        "Gateway" => ("Gateway", gateway::check),
        _ => ("Sidecar", sidecar::check),
    };
    let problems = read(&resource, Origin::default(), kind, check);
    let texts = problems.iter().map(ToString::to_string);
    texts
        .map(|text| text.replace(&format!(" ({kind} default/x, document 1)"), ""))
        .collect()
}

fn server(more: Value) -> Value {
    let mut server = json!({"port": {"number": 443, "name": "https", "protocol": "HTTPS"},
        "hosts": ["api.example.com"], "tls": {"mode": "PASSTHROUGH"}});
    for (key, value) in more.as_object().unwrap() {
        match value {
            Value::Null => drop(server.as_object_mut().unwrap().remove(key)),
            value => server[key] = value.clone(),
        }
    }
    json!({"selector": {"istio": "egressgateway"}, "servers": [server]})
}

#[test]
fn gateways_as_people_have_them_are_taken() {
    for more in [
        json!({}),
        json!({"hosts": ["*", "./api.example.com", "*/*.example.com", "apps/*"]}),
        json!({"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "tls": null}),
        json!({"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "tls": {"httpsRedirect": true}}),
        json!({"port": {"number": 5000, "name": "tcp", "protocol": "TCP"}, "tls": null}),
        json!({"tls": {"mode": "ISTIO_MUTUAL"}}),
        json!({"tls": {"mode": "SIMPLE", "credentialName": "c", "minProtocolVersion": "TLSV1_2"}}),
        json!({"tls": {"mode": "MUTUAL", "serverCertificate": "/c", "privateKey": "/k", "caCertificates": "/a"}}),
        json!({"bind": "192.0.2.1", "name": "n", "defaultEndpoint": "127.0.0.1:80"}),
        json!({"port": {"number": 0, "name": "u", "protocol": "TLS"}, "bind": "unix:///run/x"}),
    ] {
        assert_eq!(said("Gateway", server(more.clone())), [""; 0], "{more}");
    }
}

#[test]
fn what_istio_refuses_of_a_gateway_is_an_error() {
    for (spec, begins) in [
        (
            json!({}),
            "spec.servers: gateway must have at least one server",
        ),
        (
            json!({"servers": []}),
            "spec.servers: gateway must have at least one server",
        ),
        (json!({"server": []}), "spec.servers: gateway must have"),
        (
            server(json!({"port": null})),
            "spec.servers[0].port: is required",
        ),
        (
            server(json!({"hosts": []})),
            "spec.servers[0].hosts: server config must contain at least one host",
        ),
        (
            server(json!({"hosts": ["a b"]})),
            "spec.servers[0].hosts[0]: ",
        ),
        (
            server(json!({"hosts": ["/x"]})),
            "spec.servers[0].hosts[0]: config namespace and dnsName",
        ),
        (
            server(json!({"hosts": ["~/x.com"]})),
            "spec.servers[0].hosts[0]: invalid namespace value \"~\"",
        ),
        (
            server(json!({"port": {"number": 70000, "name": "a", "protocol": "TLS"}})),
            "spec.servers[0].port.number: 70000 is out of range",
        ),
        (
            server(json!({"port": {"name": "a", "protocol": "TLS"}})),
            "spec.servers[0].port: port number must be",
        ),
        (
            server(json!({"port": {"number": 443, "protocol": "TLS"}})),
            "spec.servers[0].port.name: is required",
        ),
        (
            server(json!({"port": {"number": 443, "name": "a", "protocol": "TSL"}})),
            "spec.servers[0].port.protocol: unknown protocol `TSL`",
        ),
        (
            server(json!({"tls": null})),
            "spec.servers[0].tls: server must have TLS settings",
        ),
        (
            server(json!({"tls": {"mode": "SIMPEL"}})),
            "spec.servers[0].tls.mode: unknown mode `SIMPEL`",
        ),
        (
            server(json!({"tls": {"mode": "SIMPLE"}})),
            "spec.servers[0].tls.serverCertificate: SIMPLE TLS requires a server certificate",
        ),
        (
            server(
                json!({"tls": {"mode": "MUTUAL", "serverCertificate": "/c", "privateKey": "/k"}}),
            ),
            "spec.servers[0].tls.caCertificates: MUTUAL TLS requires a client CA bundle",
        ),
        (
            server(json!({"tls": {"mode": "ISTIO_MUTUAL", "credentialName": "c"}})),
            "spec.servers[0].tls.credentialName: ISTIO_MUTUAL TLS cannot have",
        ),
        (
            server(
                json!({"tls": {"mode": "SIMPLE", "credentialName": "c", "credentialNames": ["d"]}}),
            ),
            "spec.servers[0].tls.credentialNames: only one of",
        ),
        (
            server(
                json!({"tls": {"mode": "PASSTHROUGH", "minProtocolVersion": "TLSV1_3", "maxProtocolVersion": "TLSV1_2"}}),
            ),
            "spec.servers[0].tls.minProtocolVersion: the lowest version",
        ),
        (
            server(json!({"port": {"number": 80, "name": "h", "protocol": "HTTP"}})),
            "spec.servers[0].tls: server cannot have TLS settings for plain text HTTP ports",
        ),
        (
            server(json!({"port": {"number": 80, "name": "h", "protocol": "TCP"}})),
            "spec.servers[0].tls: server cannot have TLS settings for non HTTPS/TLS ports",
        ),
        (
            server(json!({"bind": "x"})),
            "spec.servers[0].bind: x is not a valid IP",
        ),
        (
            server(json!({"bind": "unix:///x"})),
            "spec.servers[0].bind: port number must be 0",
        ),
        (
            server(json!({"bnd": "x"})),
            "spec.servers[0].bnd: unknown field `bnd`",
        ),
        (json!({"servers": {}}), "spec.servers: gateway must have"),
    ] {
        let said = said("Gateway", spec);
        let begins = format!("error: {begins}");
        assert!(
            said.first().is_some_and(|it| it.starts_with(&begins)),
            "{said:?}\n{begins}"
        );
    }
    let mut twice = server(json!({}));
    let first = twice["servers"][0].clone();
    twice["servers"].as_array_mut().unwrap().push(first);
    let said = said("Gateway", twice);
    assert!(
        said[0].starts_with("error: spec.servers[1].port: port names in servers must be unique"),
        "{said:?}"
    );
}

#[test]
fn sidecars_as_people_have_them_are_taken() {
    for spec in [
        json!({"egress": [{"hosts": ["./*", "istio-system/*", "~/*", "~default/api.example.com", "*/*.example.com"]}]}),
        json!({"egress": [{"port": {"number": 80, "protocol": "HTTP"}, "hosts": ["*/*"], "captureMode": "NONE", "bind": "127.0.0.1"}, {"hosts": ["./*"]}]}),
        json!({"workloadSelector": {"labels": {"app": "x"}}, "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}),
        json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY", "egressProxy": {"host": "proxy.example.com", "port": {"number": 3128}}}}),
        json!({"ingress": [{"port": {"number": 9080, "protocol": "HTTP", "name": "x"}, "defaultEndpoint": "127.0.0.1:8080", "connectionPool": {"tcp": {"maxConnections": 1}}}]}),
        json!({"inboundConnectionPool": {"http": {"http1MaxPendingRequests": 1}}}),
    ] {
        assert_eq!(said("Sidecar", spec.clone()), [""; 0], "{spec}");
    }
}

#[test]
fn what_istio_refuses_of_a_sidecar_is_an_error() {
    let egress = |more: Value| json!({"egress": [more]});
    for (spec, begins) in [
        (json!({}), "spec: sidecar: empty configuration provided"),
        (egress(json!({})), "spec.egress[0].hosts: is required"),
        (
            egress(json!({"hosts": []})),
            "spec.egress[0].hosts: sidecar: egress listener must contain",
        ),
        (
            egress(json!({"hosts": ["api.example.com"]})),
            "spec.egress[0].hosts[0]: host must be of form namespace/dnsName",
        ),
        (
            egress(json!({"hosts": ["a/"]})),
            "spec.egress[0].hosts[0]: config namespace and dnsName",
        ),
        (
            egress(json!({"hosts": ["a_b/*"]})),
            "spec.egress[0].hosts[0]: invalid namespace value",
        ),
        (
            egress(json!({"hosts": ["*/a b"]})),
            "spec.egress[0].hosts[0]: ",
        ),
        (
            egress(json!({"hosts": ["*/*"], "port": {"number": 80}})),
            "spec.egress[0].port.protocol: is required",
        ),
        (
            egress(json!({"hosts": ["*/*"], "port": {"protocol": "HTTP"}})),
            "spec.egress[0].port: port number must be",
        ),
        (
            egress(json!({"hosts": ["*/*"], "captureMode": "none"})),
            "spec.egress[0].captureMode: unknown mode `none`",
        ),
        (
            json!({"egress": [{"hosts": ["*/*"]}, {"hosts": ["./*"]}]}),
            "spec.egress[0]: sidecar: the egress listener with empty port should be the last",
        ),
        (
            json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY_DYNAMIC_DNS"}}),
            "spec.outboundTrafficPolicy.mode: unknown mode",
        ),
        (
            json!({"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY", "egressProxy": {"host": "a.com", "port": {"number": 1}}}}),
            "spec.outboundTrafficPolicy.egressProxy: sidecar: egress_proxy must be set only",
        ),
        (
            json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY", "egressProxy": {"host": "a.com"}}}),
            "spec.outboundTrafficPolicy.egressProxy.port: is required",
        ),
        (
            json!({"ingress": [{"defaultEndpoint": "127.0.0.1:8080"}]}),
            "spec.ingress[0].port: is required",
        ),
        (
            json!({"ingress": [{"port": {"number": 1, "protocol": "HTTP"}, "defaultEndpoint": "10.0.0.1:80"}]}),
            "spec.ingress[0].defaultEndpoint: sidecar: defaultEndpoint must be",
        ),
        (
            json!({"ingress": [{"port": {"number": 1, "protocol": "HTTPS"}, "tls": {"mode": "ISTIO_MUTUAL"}}]}),
            "spec.ingress[0].tls: configuration is invalid",
        ),
        (
            json!({"egres": []}),
            "spec: sidecar: empty configuration provided",
        ),
        (
            json!({"inboundConnectionPool": {"http": {"maxRetries": "1"}}}),
            "spec.inboundConnectionPool.http.maxRetries: expected a number",
        ),
    ] {
        let said = said("Sidecar", spec);
        let begins = format!("error: {begins}");
        assert!(
            said.first().is_some_and(|it| it.starts_with(&begins)),
            "{said:?}\n{begins}"
        );
    }
    let port = json!({"hosts": ["*/*"], "port": {"number": 80, "protocol": "HTTP"}});
    let found = said("Sidecar", json!({"egress": [port, port]}));
    assert!(
        found[0].starts_with(
            "error: spec.egress[1].port: sidecar: ports on all egress listeners must be unique"
        ),
        "{found:?}"
    );
    let found = said("Sidecar", json!({"outboundTrafficPolicy": {}}));
    assert!(
        found[0].starts_with(
            "warning: spec.outboundTrafficPolicy.mode: without a mode it is REGISTRY_ONLY"
        ),
        "{found:?}"
    );
}

#[test]
fn a_gateway_that_no_route_of_ours_is_for_says_nothing() {
    let gateway = |name: &str| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
            "metadata": {"name": name, "namespace": "istio-system"}, "spec": {}})
    };
    let service = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "v"}, "spec": {"hosts": ["a.com"], "gateways": ["mesh", "istio-system/egress"],
        "http": [{"route": [{"destination": {"host": "a.com"}}]}]}});
    let (service, _) = VirtualService::read(&service, Origin::default());
    let documents = [gateway("ingress"), gateway("egress")];
    let found = problems(documents.iter(), &[service.unwrap()]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        found[0].resource.as_ref().unwrap().to_string(),
        "Gateway istio-system/egress"
    );
}
