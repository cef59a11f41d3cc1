//! Which facts give which effects.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect should stop"
)]

use std::collections::BTreeMap;

use egress_filter::{
    Act, AuthorityMode, Effect, FIELDS, Facts, Failure, FilterKind, HostError, InvalidConfig,
    Loaded, MetadataFormat, PluginConfig, Repair, Scratch, Variants, contract, failed, load,
    load_for, plan_failure, plan_http,
};
use egress_policy::{
    CompileOptions, ConnectTo, HostName, Identity, Mesh, NameSource, Notes, OutboundMode, Parser,
    PolicyTable, PortNumber, Proxy, Sni, TlsIntent, TlsMode, Trust, VerifiedNames,
};
use serde_json::{Value, json};

const SHARED: &str = "shared|SIMPLE|system|auto";

fn resources() -> Vec<Value> {
    let entry = |name: &str, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": name}, "spec": spec});
    let rule = |name: &str, host: &str, policy: Value| {
        let spec = json!({"host": host, "trafficPolicy": policy});
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": name}, "spec": spec})
    };
    let port = |target: u16| json!([{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": target}]);
    vec![
        entry(
            "cnn",
            json!({"hosts": ["edition.cnn.com"], "resolution": "DNS", "ports": port(443)}),
        ),
        rule("cnn", "edition.cnn.com", json!({"tls": {"mode": "SIMPLE"}})),
        entry(
            "odd",
            json!({"hosts": ["odd.example.com"], "resolution": "DNS", "ports": port(8443)}),
        ),
        rule("odd", "odd.example.com", json!({"tls": {"mode": "SIMPLE"}})),
        entry(
            "own",
            json!({"hosts": ["own.example.com"], "resolution": "DNS", "ports": port(443)}),
        ),
        rule(
            "own",
            "own.example.com",
            json!({"tls": {"mode": "SIMPLE", "sni": "sni.example.com"}}),
        ),
        entry(
            "files",
            json!({"hosts": ["files.example.com"], "resolution": "DNS", "ports": port(443)}),
        ),
        rule(
            "files",
            "files.example.com",
            json!({"tls": {
                "mode": "MUTUAL", "clientCertificate": "/c.pem", "privateKey": "/k.pem",
                "caCertificates": "/ca.pem",
            }}),
        ),
        entry(
            "named",
            json!({"hosts": ["named.example.com"], "resolution": "DNS", "ports": port(8080),
                "endpoints": [{"address": "a.example.com"}]}),
        ),
        entry(
            "numbered",
            json!({"hosts": ["numbered.example.com"], "resolution": "STATIC", "ports": port(8080),
                "endpoints": [{"address": "192.0.2.1"}]}),
        ),
        entry(
            "ejected",
            json!({"hosts": ["ejected.example.com"], "resolution": "DNS", "ports": port(8080),
                "endpoints": [{"address": "a.example.com"}]}),
        ),
        rule(
            "ejected",
            "ejected.example.com",
            json!({"outlierDetection": {"consecutive5xxErrors": 1}}),
        ),
        entry(
            "crl",
            json!({"hosts": ["crl.example.com"], "resolution": "DNS", "ports": port(443)}),
        ),
        rule(
            "crl",
            "crl.example.com",
            json!({"tls": {"mode": "SIMPLE", "caCrl": "/crl.pem"}}),
        ),
        entry(
            "plain",
            json!({"hosts": ["plain.example.com"], "resolution": "DNS", "ports": port(80)}),
        ),
        entry(
            "moved",
            json!({"hosts": ["moved.example.com"], "resolution": "DNS", "ports": port(8080)}),
        ),
        entry(
            "both",
            json!({"hosts": ["both.example.com"], "resolution": "DNS", "ports": port(443),
                "subjectAltNames": ["spare.example.com", "spiffe://a/ns/b/sa/c"]}),
        ),
        rule(
            "both",
            "both.example.com",
            json!({"tls": {"mode": "SIMPLE"}}),
        ),
        entry(
            "wild",
            json!({"hosts": ["*.wild.example.com"], "resolution": "DYNAMIC_DNS", "ports": port(443)}),
        ),
        rule(
            "wild",
            "*.wild.example.com",
            json!({"tls": {"mode": "SIMPLE", "subjectAltNames": ["front.example.com"]}}),
        ),
        entry(
            "alias",
            json!({"hosts": ["alias.example.com"], "resolution": "DNS", "ports": port(80)}),
        ),
        renamed("alias.example.com"),
        entry(
            "veiled",
            json!({"hosts": ["veiled.example.com"], "resolution": "DNS", "ports": port(8443)}),
        ),
        rule(
            "veiled",
            "veiled.example.com",
            json!({"tls": {"mode": "SIMPLE"}}),
        ),
        renamed("veiled.example.com"),
    ]
}

/// A VirtualService that gives all requests for a host another one.
fn renamed(host: &str) -> Value {
    let destination = json!({"host": host, "port": {"number": 80}});
    let route = json!({"route": [{"destination": destination}], "rewrite": {"authority": "told.example.com"}});
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": host},
        "spec": {"hosts": [host], "http": [route]}})
}

#[derive(Default)]
struct With {
    authority: AuthorityMode,
    outbound: OutboundMode,
    connect_to: Vec<ConnectTo>,
    untrusted: bool,
}

/// Writes a configuration as the renderer does, and loads it as the filter does.
fn loaded(with: &With) -> Loaded {
    let resources = resources();
    let proxy = Proxy {
        namespace: "default".to_owned(),
        labels: BTreeMap::new(),
        ..Proxy::default()
    };
    let mut parser = Parser::new();
    resources
        .iter()
        .for_each(|resource| parser.document(resource));
    let connect_to = with.connect_to.clone();
    let options = CompileOptions {
        proxy: proxy.clone(),
        outbound: with.outbound,
        connect_to,
        loopback_vips: false,
        allow_plaintext: Vec::new(),
        foreign: with.untrusted,
        mesh: Mesh::default(),
    };
    let (table, _) = PolicyTable::compile(&parser.finish().0, &options).unwrap();
    let config = PluginConfig {
        digest: table.digest().to_string(),
        namespace: &proxy.namespace,
        labels: Some(&proxy.labels),
        role: proxy.role,
        variants: Variants::None,
        outbound: with.outbound,
        authority: with.authority,
        listener_port: Some(PortNumber::HTTP),
        forward_proxy: false,
        upstream_proxy: false,
        default_cluster: (!with.untrusted).then_some(SHARED),
        headers_stripped: !with.untrusted,
        connect_to: &with.connect_to,
        loopback_vips: false,
        allow_plaintext: &[],
        mesh: None,
        filter: FilterKind::Http,
        repair: Repair::Default,
        listen_ports: Vec::new(),
        metadata: MetadataFormat::Text,
        resources: &resources,
    };
    load(config.to_json().as_bytes()).unwrap()
}

/// Returns the effects as short words, and the metadata by key.
fn planned(config: &Loaded, authority: &str) -> (Vec<String>, BTreeMap<String, String>) {
    let mut scratch = Scratch::default();
    let facts = Facts {
        authority,
        port: None,
        connect: false,
        within: None,
        route: None,
    };
    shown(|act| plan_http(config, &facts, &mut scratch, act))
}

/// Shows what is planned, as [`planned`] does.
fn shown(
    plan: impl FnOnce(Act<'_>) -> Result<(), HostError>,
) -> (Vec<String>, BTreeMap<String, String>) {
    let mut words = Vec::new();
    let mut metadata = BTreeMap::new();
    plan(&mut |effect| {
        words.push(match effect {
            Effect::Authority(value) => format!("authority {value}"),
            Effect::Header(name, value) => format!("{name}: {value}"),
            Effect::RemoveHeader(name) => format!("remove {name}"),
            Effect::ChooseRouteAgain => "choose route".to_owned(),
            Effect::FilterState(key, value) => {
                format!("{} = {value}", key.rsplit('.').next().unwrap())
            }
            Effect::Login => "login".to_owned(),
            Effect::Tunnel(target) => format!("tunnel to {target}"),
            Effect::Within(target) => format!("requests within {target}"),
            Effect::TransportSocket(name) => format!("socket {name}"),
            Effect::Answer {
                status, details, ..
            } => format!("answer {status} {details}"),
            Effect::Close => "close".to_owned(),
            Effect::CloseRequest => "close the request".to_owned(),
            Effect::Count(failure) => format!("count {failure}"),
            Effect::CountAllowed => "count allowed plaintext".to_owned(),
            Effect::CountLeaving => "count leaving".to_owned(),
            Effect::ResponseLines(name, lines) => format!("{} lines of {name}", lines.len()),
            Effect::ResponseHeader(name, value) => format!("answer with {name}: {value}"),
            Effect::AnswerInstead {
                status: None,
                details,
                body,
            } => format!("answer {details} with {body}"),
            Effect::AnswerInstead {
                status: Some(status),
                details,
                body,
            } => format!("answer {status} {details} with {body}"),
            Effect::Metadata(bytes) => {
                for entry in std::str::from_utf8(bytes).unwrap().split(' ') {
                    let (key, value) = entry.split_once('=').unwrap();
                    metadata.insert(key.to_owned(), value.to_owned());
                }
                return Ok(());
            }
        });
        Ok(())
    })
    .unwrap();
    (words, metadata)
}

fn words(config: &Loaded, authority: &str) -> Vec<String> {
    planned(config, authority).0
}

#[test]
fn a_host_that_a_virtual_service_gives_is_told_whatever_the_mode() {
    for (authority, port) in [
        (AuthorityMode::Rewrite, ":8443"),
        (AuthorityMode::Preserve, ""),
    ] {
        let config = loaded(&With {
            authority,
            ..With::default()
        });
        let told = |host: &str| {
            let words = words(&config, host);
            let told = words.iter().filter(|word| word.starts_with("authority "));
            told.cloned().collect::<Vec<_>>()
        };
        assert_eq!(told("alias.example.com"), ["authority told.example.com"]);
        let veiled = format!("authority told.example.com{port}");
        assert_eq!(told("veiled.example.com:80"), [veiled]);
        // The log has what the application wrote.
        let (_, metadata) = planned(&config, "veiled.example.com:80");
        assert_eq!(metadata["authority"], "veiled.example.com:80");
        assert_eq!(metadata["sni"], "told.example.com");
        assert_eq!(told("plain.example.com"), [""; 0]);
    }
}

#[test]
fn a_host_of_the_shared_cluster_needs_nothing_but_its_metadata() {
    let config = loaded(&With::default());
    let (words, metadata) = planned(&config, "edition.cnn.com");
    assert!(words.is_empty(), "{words:?}");
    let expected = [
        ("action", "originate"),
        ("reason", "-"),
        ("rule", "default/cnn"),
        ("service_entry", "default/cnn"),
        ("cluster", SHARED),
        ("transport_socket", "envoy.transport_sockets.tls"),
        ("tls_mode", "SIMPLE"),
        ("sni", "edition.cnn.com"),
        ("verify", "edition.cnn.com"),
        ("secrets", "-"),
        ("target", "edition.cnn.com:443"),
        ("authority", "edition.cnn.com"),
        ("plaintext", "-"),
    ];
    assert_eq!(
        metadata,
        expected
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    );
    let rare = ["repaired", "redirect", "cookies"];
    let keys = expected.into_iter().map(|(key, _)| key).chain(rare);
    assert!(FIELDS.iter().map(|(_, key)| *key).eq(keys));
}

#[test]
fn the_metadata_names_the_secrets_of_a_connection() {
    let config = loaded(&With::default());
    for (authority, secrets) in [
        ("plain.example.com", "-"),
        (
            "files.example.com",
            "file-cert:/c.pem~/k.pem,file-root:/ca.pem",
        ),
        ("crl.example.com", "file-root:system;crl:/crl.pem"),
    ] {
        let (_, metadata) = planned(&config, authority);
        assert_eq!(metadata["secrets"], secrets, "{authority}");
    }
}

#[test]
fn a_credential_that_says_where_it_is_keeps_its_beginning() {
    for (credential, identity) in [
        ("cnn", "kubernetes://cnn"),
        ("kubernetes://shop/cnn", "kubernetes://shop/cnn"),
        ("configmap://shop/cnn", "configmap://shop/cnn"),
    ] {
        let tls = TlsIntent {
            mode: TlsMode::Mutual,
            sni: Sni::Authority,
            names: VerifiedNames {
                authority: true,
                any_of: Vec::new(),
                source: NameSource::Host,
            },
            trust: Trust::Credential(credential.to_owned()),
            crl: None,
            identity: Some(Identity::Credential(credential.to_owned())),
            legacy: Notes::default(),
        };
        let name = contract::identity_secret(tls.identity.as_ref().unwrap());
        assert_eq!(name.to_string(), identity);
        let name = contract::trust_secret(&tls).unwrap();
        assert_eq!(name.to_string(), format!("{identity}-cacert"));
    }
}

#[test]
fn the_authority_names_the_origin_really_dialled() {
    let config = loaded(&With::default());
    for spelling in [
        "edition.cnn.com:80",
        "EDITION.cnn.com",
        "edition.cnn.com.",
        "edition.cnn.com:443",
    ] {
        let (words, metadata) = planned(&config, spelling);
        assert_eq!(words, ["authority edition.cnn.com"], "{spelling}");
        assert_eq!(metadata["authority"], spelling);
    }
    assert_eq!(
        words(&config, "odd.example.com"),
        ["authority odd.example.com:8443"]
    );
    assert!(words(&config, "odd.example.com:8443").is_empty());
}

#[test]
fn a_preserved_authority_still_leads_to_the_target_and_its_name() {
    let config = loaded(&With {
        authority: AuthorityMode::Preserve,
        ..With::default()
    });
    assert!(words(&config, "edition.cnn.com").is_empty());
    let kept = |host: &str, port: &str| {
        vec![
            format!("dynamic_host = {host}"),
            format!("dynamic_port = {port}"),
            // What is verified is the SNI; a list of names would be compared with names of any type.
            format!("upstream_server_name = {host}"),
        ]
    };
    assert_eq!(
        words(&config, "Edition.CNN.com.:80"),
        kept("edition.cnn.com", "443")
    );
    assert_eq!(
        words(&config, "odd.example.com"),
        kept("odd.example.com", "8443")
    );
}

#[test]
fn names_beside_the_hosts_are_told_where_the_cluster_verifies_the_host() {
    for authority in [AuthorityMode::Rewrite, AuthorityMode::Preserve] {
        let config = loaded(&With {
            authority,
            ..With::default()
        });
        let names = "upstream_subject_alt_names = spare.example.com,spiffe://a/ns/b/sa/c";
        let (words, metadata) = planned(&config, "both.example.com");
        let header = "x-egress-originate: outbound|80||both.example.com";
        assert_eq!(words, [header, "choose route", names]);
        assert_eq!(
            metadata["verify"],
            "both.example.com+spare.example.com,spiffe://a/ns/b/sa/c"
        );
    }
}

/// Below a wildcard Envoy takes the host from the authority, unless the authority is written otherwise.
#[test]
fn the_host_beside_a_rules_names_is_told_where_the_authority_does_not_say_it() {
    let config = loaded(&With {
        authority: AuthorityMode::Preserve,
        ..With::default()
    });
    let header = "x-egress-originate: outbound|80||*.wild.example.com";
    assert_eq!(
        words(&config, "a.wild.example.com"),
        [header, "choose route"]
    );
    let host = "a.wild.example.com";
    assert_eq!(
        words(&config, "A.wild.example.com")[2..],
        [
            format!("dynamic_host = {host}"),
            "dynamic_port = 443".to_owned(),
            format!("upstream_server_name = {host}"),
            format!("upstream_subject_alt_names = {host}"),
        ]
    );
}

#[test]
fn a_cluster_of_its_own_is_named_in_a_header() {
    let config = loaded(&With::default());
    let (words, metadata) = planned(&config, "own.example.com");
    assert_eq!(
        words,
        [
            "x-egress-originate: outbound|80||own.example.com",
            "choose route"
        ]
    );
    assert_eq!(
        (metadata["sni"].as_str(), metadata["verify"].as_str()),
        ("sni.example.com", "sni.example.com")
    );
}

#[test]
fn what_is_forwarded_keeps_its_authority() {
    let config = loaded(&With::default());
    let forward = ["x-egress-forward: shared|DISABLE||http1", "choose route"];
    assert_eq!(words(&config, "plain.example.com"), forward);
    assert_eq!(words(&config, "plain.example.com:80"), forward);
    let detour = |port: &str, host: &str| {
        let mut all = forward.map(str::to_owned).to_vec();
        all.extend([
            format!("dynamic_host = {host}"),
            format!("dynamic_port = {port}"),
        ]);
        all
    };
    assert_eq!(
        words(&config, "Plain.example.com"),
        detour("80", "plain.example.com")
    );
    assert_eq!(
        words(&config, "moved.example.com"),
        detour("8080", "moved.example.com")
    );
    assert_eq!(words(&config, "moved.example.com:8080"), forward);
}

#[test]
fn connect_to_is_a_detour_with_the_same_names() {
    let host = HostName::dns("edition.cnn.com").unwrap();
    let address_port = PortNumber::new(8443).unwrap();
    let to = ConnectTo {
        host,
        port: PortNumber::HTTPS,
        address: "127.0.0.1".to_owned(),
        address_port,
    };
    let config = loaded(&With {
        connect_to: vec![to],
        ..With::default()
    });
    let (words, metadata) = planned(&config, "edition.cnn.com");
    assert_eq!(words, ["dynamic_host = 127.0.0.1", "dynamic_port = 8443"]);
    assert_eq!(metadata["target"], "edition.cnn.com:443");
}

#[test]
fn what_has_no_way_is_answered_here() {
    let config = loaded(&With::default());
    for (authority, answer) in [
        ("unknown.example.com", "answer 502 egress_unknown_host"),
        ("[::1]:80", "answer 502 egress_unknown_host"),
        ("", "answer 400 egress_no_host"),
        ("user@edition.cnn.com", "answer 400 egress_invalid_host"),
        (
            "edition.cnn.com,other.example.com",
            "answer 400 egress_invalid_host",
        ),
        ("edition.cnn.com:abc", "answer 400 egress_invalid_host"),
    ] {
        let (words, metadata) = planned(&config, authority);
        assert_eq!(words, [answer], "{authority}");
        assert_eq!(metadata["action"], "reject");
    }
}

#[test]
fn unknown_hosts_are_left_alone_only_when_asked() {
    let config = loaded(&With {
        outbound: OutboundMode::AllowAny,
        ..With::default()
    });
    let (words, metadata) = planned(&config, "unknown.example.com");
    assert_eq!(
        words,
        ["x-egress-forward: PassthroughCluster", "choose route"]
    );
    assert_eq!(
        (metadata["action"].as_str(), metadata["reason"].as_str()),
        ("forward", "unknown_host")
    );
    assert!(
        self::words(&config, "edition.cnn.com").is_empty(),
        "what the rules originate is originated"
    );
}

#[test]
fn where_headers_are_not_stripped_every_one_of_ours_is_settled() {
    let config = loaded(&With {
        untrusted: true,
        ..With::default()
    });
    let expected = [
        "remove x-egress-forward",
        &format!("x-egress-originate: {SHARED}"),
        "choose route",
        ":scheme: https",
    ];
    assert_eq!(words(&config, "edition.cnn.com"), expected);
    let forward = [
        "remove x-egress-originate",
        "x-egress-forward: shared|DISABLE||http1",
        "choose route",
    ];
    assert_eq!(words(&config, "plain.example.com"), forward);
    let open = loaded(&With {
        untrusted: true,
        outbound: OutboundMode::AllowAny,
        ..With::default()
    });
    let alone = [
        "remove x-egress-originate",
        "remove x-egress-forward",
        "choose route",
    ];
    assert_eq!(words(&open, "unknown.example.com"), alone);
}

#[test]
fn the_port_of_the_listener_or_else_of_the_connection_decides() {
    let config = json!({"resources": resources()}).to_string();
    let config = load(config.as_bytes()).unwrap();
    let mut scratch = Scratch::default();
    let mut first = |port: Option<u16>| {
        let facts = Facts {
            authority: "edition.cnn.com:80",
            port: port.and_then(PortNumber::new),
            connect: false,
            within: None,
            route: None,
        };
        let mut first = None;
        plan_http(&config, &facts, &mut scratch, &mut |effect| {
            let text = match effect {
                Effect::Answer { details, .. } => Some(details.to_owned()),
                Effect::Header(_, value) => Some(value.to_owned()),
                _ => None,
            };
            first = first.take().or(text);
            Ok(())
        })
        .unwrap();
        first
    };
    assert_eq!(first(Some(80)).as_deref(), Some(SHARED));
    assert_eq!(first(Some(81)).as_deref(), Some("egress_unknown_port"));
    assert_eq!(first(None).as_deref(), Some("egress_unknown_port"));
}

/// A forward proxy by the same rules, and a host that is passed through; what it does with one request.
fn asked_of_a_proxy(authority: &str, port: Option<PortNumber>, connect: bool) -> Vec<String> {
    let mut resources = resources();
    let ports = json!([{"number": 443, "name": "tls", "protocol": "TLS", "targetPort": 8443}]);
    let spec = json!({"hosts": ["tls.example.com"], "resolution": "DNS", "ports": ports});
    resources.push(json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "tls"}, "spec": spec}));
    let config = json!({
        "listener": {"mode": "FORWARD_PROXY"},
        "controlHeaders": "STRIPPED",
        "resources": resources,
    });
    let config = load(config.to_string().as_bytes()).unwrap();
    let facts = Facts {
        authority,
        port,
        connect,
        within: None,
        route: None,
    };
    shown(|act| plan_http(&config, &facts, &mut Scratch::default(), act)).0
}

#[test]
fn a_forward_proxy_decides_by_the_port_of_the_url() {
    let originated = [
        format!("x-egress-originate: {SHARED}"),
        "choose route".to_owned(),
    ];
    let http = Some(PortNumber::HTTP);
    for authority in ["edition.cnn.com", "edition.cnn.com:80"] {
        let words = asked_of_a_proxy(authority, http, false);
        assert!(
            originated
                .iter()
                .all(|word| words.iter().any(|it| it == word)),
            "{words:?}"
        );
    }
    // So is a URL of TLS to the port of the server that they are led to.
    let https = Some(PortNumber::HTTPS);
    for authority in [
        "edition.cnn.com",
        "edition.cnn.com:443",
        "odd.example.com:8443",
    ] {
        let words = asked_of_a_proxy(authority, https, false);
        assert!(words.contains(&originated[0]), "{authority}: {words:?}");
    }
    for (authority, port, reason) in [
        ("edition.cnn.com:81", http, "unknown_port"),
        ("edition.cnn.com:444", https, "unknown_port"),
        ("tls.example.com", https, "other_protocol"),
        ("other.example.com", https, "unknown_host"),
        // Who asks for TLS does not get plaintext.
        ("named.example.com:80", https, "other_protocol"),
        ("named.example.com:8080", https, "unknown_port"),
        ("tls.example.com:443", http, "other_protocol"),
        ("other.example.com", http, "unknown_host"),
        ("127.0.0.1:15000", http, "unknown_host"),
        ("169.254.169.254", http, "unknown_host"),
        ("[::1]", http, "unknown_host"),
    ] {
        let words = asked_of_a_proxy(authority, port, false);
        assert_eq!(words.len(), 1, "{authority}: {words:?}");
        assert!(
            words[0].starts_with(&format!("answer 403 egress_{reason}")),
            "{words:?}"
        );
    }
}

#[test]
fn a_forward_proxy_carries_bytes_to_what_is_passed_through_and_nowhere_else() {
    let way = ["x-egress-forward: shared|DISABLE||bytes", "choose route"];
    let to = |port: &str| {
        [
            "dynamic_host = tls.example.com".to_owned(),
            format!("dynamic_port = {port}"),
        ]
    };
    // The port that is dialled is the target's, whatever is written.
    for authority in ["tls.example.com:443", "TLS.example.com.:443"] {
        let words = asked_of_a_proxy(authority, None, true);
        assert_eq!(words[..2], way, "{words:?}");
        assert_eq!(words[2..], to("8443"), "{words:?}");
    }
    // Where the port is one of requests, so is what follows.
    let words = asked_of_a_proxy("EDITION.cnn.com:80", None, true);
    let within = [
        "x-egress-forward: forward-proxy-within",
        "choose route",
        "requests within EDITION.cnn.com:80",
    ];
    assert_eq!(words, within);
    for (authority, reason) in [
        ("tls.example.com", "unknown_port"),
        ("tls.example.com:8443", "unknown_port"),
        ("edition.cnn.com:443", "unknown_port"),
        ("other.example.com:443", "unknown_host"),
        ("127.0.0.1:443", "unknown_host"),
    ] {
        let words = asked_of_a_proxy(authority, None, true);
        assert_eq!(words.len(), 1, "{authority}: {words:?}");
        assert!(
            words[0].starts_with(&format!("answer 403 egress_{reason}")),
            "{words:?}"
        );
    }
}

#[test]
fn a_forward_proxy_is_never_an_open_one() {
    let config = json!({
        "listener": {"mode": "FORWARD_PROXY"},
        "outboundTrafficPolicy": {"mode": "ALLOW_ANY"},
        "resources": resources(),
    });
    let lines = load(config.to_string().as_bytes()).unwrap_err().lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].starts_with("error: outboundTrafficPolicy: "),
        "{lines:?}"
    );
    let config =
        json!({"listener": {"mode": "FORWARD_PROXY", "port": 80}, "resources": resources()});
    let lines = load(config.to_string().as_bytes()).unwrap_err().lines();
    assert!(lines[0].starts_with("error: listener: "), "{lines:?}");
}

#[test]
fn an_upstream_proxy_is_told_the_target_by_name() {
    let proxied = |connect_to: Value| {
        let config = json!({
            "listener": {"port": 80},
            "upstreamProxy": "ALWAYS",
            "controlHeaders": "STRIPPED",
            "defaultCluster": SHARED,
            "connectTo": connect_to,
            "resources": resources(),
        });
        load(config.to_string().as_bytes()).unwrap()
    };
    let config = proxied(json!([]));
    assert_eq!(
        words(&config, "edition.cnn.com"),
        ["tunnel to edition.cnn.com:443"]
    );
    let odd = words(&config, "odd.example.com");
    assert_eq!(
        odd.last().map(String::as_str),
        Some("tunnel to odd.example.com:8443")
    );
    let plain = words(&config, "moved.example.com");
    assert_eq!(
        plain.last().map(String::as_str),
        Some("tunnel to moved.example.com:8080")
    );
    let refused = words(&config, "other.example.com");
    assert_eq!(refused, ["answer 502 egress_unknown_host"]);
    let to =
        json!([{"host": "edition.cnn.com", "port": 443, "address": "::1", "addressPort": 8443}]);
    assert_eq!(
        words(&proxied(to), "edition.cnn.com"),
        ["tunnel to [::1]:8443"]
    );

    let config = json!({
        "upstreamProxy": "ALWAYS",
        "outboundTrafficPolicy": {"mode": "ALLOW_ANY"},
        "resources": resources(),
    });
    let lines = load(config.to_string().as_bytes()).unwrap_err().lines();
    assert!(
        lines[0].starts_with("error: outboundTrafficPolicy: "),
        "{lines:?}"
    );
}

#[test]
fn a_failed_connection_is_told_without_envoys_words() {
    let config = loaded(&With::default());
    let facts = Facts {
        authority: "EDITION.cnn.com:80",
        port: None,
        connect: false,
        within: None,
        route: None,
    };
    let (_, before) = planned(&config, facts.authority);
    let mut scratch = Scratch::default();
    let details = "upstream_reset_before_response_started{connection_timeout}";
    let failure = failed(&config, &facts, details).unwrap();
    assert_eq!(failure, Failure::Timeout);

    let failed = (failure, details);
    let (words, metadata) =
        shown(|act| plan_failure(&config, &facts, failed, false, &mut scratch, act));
    let body = "egress_timeout: the connection to the server was not ready in time\n";
    assert_eq!(
        words,
        [
            format!("answer {details} with {body}"),
            "count timeout".to_owned(),
        ]
    );
    // The log says what it said, and why.
    let mut expected = before;
    expected.insert("reason".to_owned(), "timeout".to_owned());
    assert_eq!(metadata, expected);

    let (words, _) = shown(|act| plan_failure(&config, &facts, failed, true, &mut scratch, act));
    assert_eq!(
        words,
        [
            format!("answer with grpc-message: {}", body.trim_end()),
            "count timeout".to_owned(),
        ]
    );
}

#[test]
fn only_what_was_sent_can_fail() {
    let config = loaded(&With {
        outbound: OutboundMode::AllowAny,
        ..With::default()
    });
    let failure = |config: &Loaded, authority: &str, details: &str| {
        let facts = Facts {
            authority,
            port: None,
            connect: false,
            within: None,
            route: None,
        };
        failed(config, &facts, details)
    };
    let refused = "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}";
    for authority in [
        "edition.cnn.com",
        "plain.example.com",
        "unknown.example.com",
    ] {
        assert_eq!(
            failure(&config, authority, refused),
            Some(Failure::Refused),
            "{authority}"
        );
        assert_eq!(failure(&config, authority, "via_upstream"), None);
    }
    // On a listener of somebody else's, what is left alone is theirs to explain.
    let theirs = loaded(&With {
        untrusted: true,
        outbound: OutboundMode::AllowAny,
        ..With::default()
    });
    assert_eq!(failure(&theirs, "unknown.example.com", refused), None);
    assert_eq!(
        failure(&theirs, "edition.cnn.com", refused),
        Some(Failure::Refused)
    );
    assert_eq!(
        failure(&loaded(&With::default()), "unknown.example.com", refused),
        None
    );
    // The same alert, without and with a certificate that the server could mean.
    let alert = "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268436498:SSL_routines:OPENSSL_internal:SSLV3_ALERT_BAD_CERTIFICATE:TLS_error_end}";
    assert_eq!(
        failure(&config, "edition.cnn.com", alert),
        Some(Failure::ClientCertificateRequired)
    );
    assert_eq!(
        failure(&config, "files.example.com", alert),
        Some(Failure::ClientCertificateRejected)
    );
    // Names that are looked up anew for each request are told otherwise.
    let nobody = "no_healthy_upstream";
    assert_eq!(failure(&config, "edition.cnn.com", nobody), None);
    assert_eq!(
        failure(&config, "named.example.com", nobody),
        Some(Failure::Dns)
    );
    assert_eq!(failure(&config, "numbered.example.com", nobody), None);
    assert_eq!(failure(&config, "ejected.example.com", nobody), None);
}

#[test]
fn a_bad_configuration_is_refused_with_every_problem() {
    let mut resources = resources();
    let slot = resources
        .iter_mut()
        .find_map(|resource| resource.pointer_mut("/spec/trafficPolicy/tls/mode"));
    *slot.unwrap() = json!("SIMPEL");
    let config = json!({"schema": 2, "listener": {"port": 0}, "autority": "REWRITE", "resources": resources});
    let lines = load(config.to_string().as_bytes()).unwrap_err().lines();
    let starts = [
        "error: schema: 2 is out of range 1..1",
        "error: listener.port: 0 is out of range",
        "error: autority: unknown field `autority`",
        "error: spec.trafficPolicy.tls.mode: unknown mode `SIMPEL`",
    ];
    assert_eq!(lines.len(), starts.len(), "{lines:?}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn what_is_not_a_configuration_is_refused() {
    for text in [
        "",
        "[]",
        "{}",
        "{\"resources\": {}}",
        "{\"resources\": []} x",
        "{\"resources\": [], \"resources\": []}",
    ] {
        let error = load(text.as_bytes()).unwrap_err();
        assert!(matches!(error, InvalidConfig::Json(_)), "{text}: {error}");
    }
    let skewed = json!({"digest": "0000000000000000", "resources": resources()}).to_string();
    assert!(matches!(
        load(skewed.as_bytes()),
        Err(InvalidConfig::Skew { .. })
    ));
    let unsafe_default = json!({"defaultCluster": SHARED, "resources": resources()}).to_string();
    assert!(
        load(unsafe_default.as_bytes())
            .unwrap_err()
            .to_string()
            .contains("controlHeaders")
    );
}

/// Two rules for selected workloads and one for the rest, all with a cluster of their own.
fn by_node(variants: &str) -> String {
    let selected = |name: &str, app: Option<&str>| {
        let mut spec = json!({
            "host": "api.example.com",
            "trafficPolicy": {"tls": {
                "mode": "MUTUAL",
                "clientCertificate": format!("/{name}.pem"),
                "privateKey": format!("/{name}.key"),
                "sni": "api.example.com",
            }},
        });
        if let (Some(app), Some(spec)) = (app, spec.as_object_mut()) {
            spec.insert(
                "workloadSelector".to_owned(),
                json!({"matchLabels": {"app": app}}),
            );
        }
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": name}, "spec": spec})
    };
    let ports = json!([{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443}]);
    let spec = json!({"hosts": ["api.example.com"], "resolution": "DNS", "ports": ports});
    json!({
        "proxy": {"namespace": "default"},
        "listener": {"port": 80},
        "controlHeaders": "STRIPPED",
        "workloadVariants": variants,
        "resources": [
            {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "api"}, "spec": spec},
            selected("shop", Some("shop")),
            selected("bank", Some("bank")),
            selected("rest", None),
        ],
    })
    .to_string()
}

fn node(app: &str) -> Option<BTreeMap<String, String>> {
    Some(BTreeMap::from([("app".to_owned(), app.to_owned())]))
}

#[test]
fn the_labels_of_the_node_choose_the_transport_socket() {
    const CLUSTER: &str = "outbound|80||api.example.com";
    let mut sockets = Vec::new();
    for (app, rule) in [
        ("shop", "default/shop"),
        ("bank", "default/bank"),
        ("none", "default/rest"),
    ] {
        let config = load_for(by_node("SOCKETS").into_bytes(), node(app)).unwrap();
        let (words, metadata) = planned(&config, "api.example.com");
        assert_eq!(metadata["rule"], rule);
        assert_eq!(metadata["cluster"], CLUSTER);
        let socket = metadata["transport_socket"].clone();
        assert!(
            socket.starts_with("outbound|80||api.example.com~"),
            "{socket}"
        );
        assert_eq!(
            words,
            [
                format!("x-egress-originate: {CLUSTER}"),
                "choose route".to_owned(),
                format!("socket {socket}")
            ]
        );
        sockets.push(socket);
    }
    sockets.sort();
    sockets.dedup();
    assert_eq!(sockets.len(), 3, "one for each certificate: {sockets:?}");
}

#[test]
fn where_sockets_cannot_be_chosen_clusters_are() {
    let config = load_for(by_node("CLUSTERS").into_bytes(), node("shop")).unwrap();
    let (words, metadata) = planned(&config, "api.example.com");
    let cluster = &metadata["cluster"];
    assert!(
        cluster.starts_with("outbound|80||api.example.com~"),
        "{cluster}"
    );
    assert_eq!(
        words,
        [
            format!("x-egress-originate: {cluster}"),
            "choose route".to_owned()
        ]
    );
}

#[test]
fn labels_that_cannot_be_read_load_nothing() {
    let error = load_for(by_node("SOCKETS").into_bytes(), None).unwrap_err();
    assert!(
        error.to_string().contains("node.metadata.LABELS"),
        "{error}"
    );
    // Where the configuration says the labels, those of the node do not matter.
    let said = by_node("NONE").replace(
        r#""namespace":"default""#,
        r#""namespace":"default","labels":{"app":"bank"}"#,
    );
    let config = load_for(said.clone().into_bytes(), None).unwrap();
    assert_eq!(
        planned(&config, "api.example.com").1["rule"],
        "default/bank"
    );
    let config = load_for(said.into_bytes(), node("shop")).unwrap();
    assert_eq!(
        planned(&config, "api.example.com").1["rule"],
        "default/bank"
    );
}

/// Rules with branches: a path with TLS, shares of which one is told another host, an answer, and a lost destination.
fn branching() -> Loaded {
    let entry = |name: &str, ports: serde_json::Value| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": name},
            "spec": {"hosts": [format!("{name}.example")], "resolution": "DNS", "ports": ports},
        })
    };
    let rule = |name: &str| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": name},
            "spec": {"host": format!("{name}.example"), "trafficPolicy": {"portLevelSettings": [
                {"port": {"number": 443}, "tls": {"mode": "SIMPLE"}},
            ]}},
        })
    };
    let http = json!({"number": 80, "name": "http", "protocol": "HTTP"});
    let https = json!({"number": 443, "name": "https", "protocol": "HTTPS"});
    let to = |host: &str| json!({"destination": {"host": host, "port": {"number": 443}}});
    let weighted = |host: &str| {
        let destination = json!({"host": host, "port": {"number": 443}});
        json!({"destination": destination, "weight": 1})
    };
    let config = json!({
        "listener": {"port": 80}, "controlHeaders": "STRIPPED",
        "resources": [
            entry("api", json!([http, https])), rule("api"),
            entry("other", json!([https])), rule("other"),
            {
                "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "v"},
                "spec": {"hosts": ["api.example"], "http": [
                    {"match": [{"uri": {"prefix": "/a"}}], "route": [to("other.example")]},
                    {"match": [{"uri": {"prefix": "/b"}}],
                     "route": [weighted("api.example"), weighted("other.example")]},
                    {"match": [{"uri": {"prefix": "/c"}}], "directResponse": {"status": 410}},
                    {"match": [{"uri": {"prefix": "/d"}}], "route": [to("nowhere.example")]},
                ]},
            },
        ],
    });
    load(config.to_string().as_bytes()).unwrap()
}

#[test]
fn a_branch_names_its_clusters_and_leaves_the_request_as_it_is() {
    let config = branching();
    let planned = |route: Option<&str>| {
        let mut scratch = Scratch::default();
        let facts = Facts {
            authority: "Api.example:80",
            port: None,
            connect: false,
            within: None,
            route,
        };
        shown(|act| plan_http(&config, &facts, &mut scratch, act)).0
    };
    let branch = |index: usize| planned(Some(&format!("default/v/http[{index}]/api.example:80")));
    assert_eq!(
        branch(0),
        [
            "x-egress-originate: outbound|443||other.example",
            "choose route"
        ]
    );
    assert_eq!(
        branch(1),
        [
            "x-egress-share-0: outbound|443||api.example",
            "x-egress-share-1: outbound|443||other.example",
            "choose route"
        ]
    );
    assert!(branch(2).is_empty());
    assert_eq!(branch(3), ["answer 503 egress_unknown_destination"]);
    for unknown in [None, Some(""), Some("no_route"), Some("originate")] {
        assert_eq!(
            planned(unknown),
            ["answer 404 egress_no_route"],
            "{unknown:?}"
        );
    }
}
