//! Which effects the facts of a connection have.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect should stop"
)]

use egress_filter::{
    Act, ConnectionEnd, ConnectionFacts, Effect, Failure, FilterKind, HostError, Loaded, Scratch,
    connection_failed, load, plan_connection_failure, plan_tcp, wanted,
};
use egress_policy::PortNumber;
use serde_json::{Value, json};

/// A cache by TLS, two services of one port by address, one by SNI.
fn loaded(listener: &Value) -> Loaded {
    let kind = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let entry = |name: &str, port: u16, protocol: &str, more: Value| {
        let mut spec = json!({"hosts": [format!("{name}.example")], "resolution": "DNS",
            "ports": [{"number": port, "name": "p", "protocol": protocol}]});
        let fields = spec.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        kind("ServiceEntry", name, spec)
    };
    let mut config = json!({
        "filter": "NETWORK",
        "resources": [
            entry("cache", 6379, "REDIS", json!({})),
            kind("DestinationRule", "cache", json!({"host": "cache.example", "trafficPolicy": {"tls": {"mode": "SIMPLE", "sni": "sni.example"}}})),
            entry("one", 27017, "MONGO", json!({"addresses": ["192.0.2.1"]})),
            entry("other", 27017, "MONGO", json!({"addresses": ["192.0.2.2"]})),
            entry("fixed", 5000, "TCP", json!({"resolution": "STATIC", "endpoints": [{"address": "198.51.100.1"}]})),
            entry("web", 443, "TLS", json!({})),
            entry("behind", 5001, "TCP", json!({})),
            entry("shared", 6000, "TCP", json!({})),
            kind("VirtualService", "shared", json!({"hosts": ["shared.example"], "tcp": [
                {"match": [{"destinationSubnets": ["192.0.2.0/24"]}], "route": [{"destination": {"host": "nowhere.example"}}]},
                {"route": [{"destination": {"host": "cache.example"}, "weight": 1}, {"destination": {"host": "fixed.example"}, "weight": 3}]},
            ]})),
            entry("names", 6001, "TLS", json!({})),
            kind("VirtualService", "names", json!({"hosts": ["names.example"], "tls": [
                {"match": [{"sniHosts": ["names.example"]}], "route": [{"destination": {"host": "names.example"}, "weight": 1}, {"destination": {"host": "web.example"}, "weight": 1}]},
            ]})),
            kind("DestinationRule", "behind", json!({"host": "behind.example", "trafficPolicy": {"tunnel": {"targetHost": "db.example", "targetPort": 5432}}})),
        ],
        "connectTo": [{"host": "web.example", "port": 443, "address": "127.0.0.1", "addressPort": 8443}],
    });
    let fields = config.as_object_mut().unwrap();
    fields.extend(listener.as_object().unwrap().clone());
    load(config.to_string().as_bytes()).unwrap()
}

fn at(port: u16) -> Loaded {
    loaded(&json!({"listener": {"port": port}}))
}

const NOTHING: ConnectionFacts<'static> = ConnectionFacts {
    port: None,
    address: None,
    server_name: None,
    drawn: 0,
};

fn to(address: &str, port: u16) -> ConnectionFacts<'static> {
    ConnectionFacts {
        port: PortNumber::new(port),
        address: Some(address.parse().unwrap()),
        server_name: None,
        drawn: 0,
    }
}

fn shown(plan: impl FnOnce(Act<'_>) -> Result<(), HostError>) -> Vec<String> {
    let word = |effect: Effect<'_>| match effect {
        Effect::FilterState(key, value) => format!("{} = {value}", key.rsplit('.').next().unwrap()),
        Effect::Metadata(bytes) => std::str::from_utf8(bytes).unwrap().to_owned(),
        Effect::Login => "login".to_owned(),
        Effect::Tunnel(target) => format!("tunnel to {target}"),
        Effect::Within(target) => format!("requests within {target}"),
        other => format!("{other:?}"),
    };
    let mut words = Vec::new();
    plan(&mut |effect| {
        words.push(word(effect));
        Ok(())
    })
    .unwrap();
    words
}

fn planned(config: &Loaded, facts: &ConnectionFacts<'_>) -> Vec<String> {
    shown(|act| plan_tcp(config, facts, &mut Scratch::default(), act))
}

#[test]
fn an_originated_connection_gets_metadata_and_then_a_cluster() {
    assert_eq!(
        planned(&at(6379), &NOTHING),
        [
            "action=originate reason=- rule=default/cache service_entry=default/cache cluster=outbound|6379||cache.example \
             transport_socket=envoy.transport_sockets.tls tls_mode=SIMPLE sni=sni.example verify=sni.example secrets=- \
             target=cache.example:6379 authority=- plaintext=-",
            "cluster = outbound|6379||cache.example",
        ]
    );
}

#[test]
fn a_listener_of_one_service_asks_for_nothing() {
    let asked = |config: &Loaded| {
        let wanted = wanted(config);
        (wanted.destination, wanted.server_name)
    };
    assert_eq!(asked(&at(6379)), (false, false));
    assert_eq!(asked(&at(27017)), (true, false));
    assert_eq!(asked(&loaded(&json!({}))), (true, true));
    assert_eq!(at(6379).filter, FilterKind::Network);
}

#[test]
fn a_connection_goes_to_the_share_that_is_drawn() {
    let config = at(6000);
    let wanted_here = wanted(&config);
    assert!(wanted_here.destination && wanted_here.time && !wanted_here.server_name);
    let last = |address: &str, drawn: u64| {
        let facts = ConnectionFacts {
            drawn,
            ..to(address, 40_000)
        };
        planned(&config, &facts).pop().unwrap()
    };
    assert_eq!(
        last("198.51.100.1", 4),
        "cluster = outbound|6379||cache.example"
    );
    assert_eq!(
        last("198.51.100.1", 5),
        "cluster = outbound|5000||fixed.example"
    );
    assert_eq!(last("192.0.2.1", 4), "Close");

    let config = at(6001);
    let wanted_here = wanted(&config);
    assert!(!wanted_here.destination && wanted_here.time && wanted_here.server_name);
    let facts = ConnectionFacts {
        server_name: Some("names.example"),
        drawn: 1,
        ..NOTHING
    };
    assert_eq!(
        planned(&config, &facts).pop().unwrap(),
        "cluster = outbound|443||web.example"
    );
    assert!(!wanted(&at(6379)).time);
}

#[test]
fn services_of_one_port_are_told_apart_by_address() {
    let config = at(27017);
    for (address, last) in [
        ("192.0.2.1", "cluster = outbound|27017||one.example"),
        ("192.0.2.2", "cluster = outbound|27017||other.example"),
        ("192.0.2.3", "Close"),
        ("2001:db8::1", "Close"),
    ] {
        // The port is the listener's, whatever it is bound to.
        assert_eq!(
            planned(&config, &to(address, 40_000)).last().unwrap(),
            last,
            "{address}"
        );
    }
}

#[test]
fn an_upstream_proxy_is_told_the_target_before_a_cluster_is_named() {
    let proxied = |connect_to: Value| {
        let mut more = json!({"listener": {"port": 6379}, "upstreamProxy": "ALWAYS"});
        if connect_to != json!([]) {
            more["connectTo"] = connect_to;
        }
        planned(&loaded(&more), &NOTHING)
    };
    let words = proxied(json!([]));
    assert_eq!(words[0], "tunnel to cache.example:6379");
    assert_eq!(words[2..], ["cluster = outbound|6379||cache.example"]);
    let to =
        json!([{"host": "cache.example", "port": 6379, "address": "::1", "addressPort": 6380}]);
    assert_eq!(proxied(to)[0], "tunnel to [::1]:6380");
}

#[test]
fn the_log_tells_what_the_proxy_of_a_tunnel_is_asked_for() {
    let words = planned(&at(5001), &NOTHING);
    assert!(
        words[0].ends_with(" target=db.example:5432 authority=- plaintext=-"),
        "{words:?}"
    );
    assert_eq!(words[1], "cluster = outbound|5001||behind.example");
}

#[test]
fn what_is_led_nowhere_is_closed_and_the_log_says_why() {
    let open = loaded(&json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}));
    let server_name = |name| ConnectionFacts {
        server_name: Some(name),
        ..to("192.0.2.9", 443)
    };
    for (config, facts, reason) in [
        (&at(1), NOTHING, "unknown_port"),
        (&at(27017), to("192.0.2.3", 1), "unknown_host"),
        (&open, NOTHING, "unknown_port"),
        (&open, to("192.0.2.9", 1), "unknown_port"),
        (&open, server_name("no.example"), "unknown_host"),
        (&open, server_name("no host"), "invalid_host"),
        (&open, server_name("web.example:1"), "invalid_host"),
    ] {
        let words = planned(config, &facts);
        let [metadata, close] = &words[..] else {
            unreachable!("{words:?}")
        };
        assert!(
            metadata.starts_with(&format!("action=reject reason={reason} ")),
            "{metadata}"
        );
        assert_eq!(close, "Close");
    }
}

#[test]
fn a_shared_cluster_is_told_where_to_go() {
    let facts = ConnectionFacts {
        server_name: Some("WEB.example"),
        ..to("192.0.2.9", 443)
    };
    let config = loaded(&json!({}));
    let words = planned(&config, &facts);
    assert_eq!(
        words[..2],
        ["dynamic_host = 127.0.0.1", "dynamic_port = 8443"]
    );
    assert!(
        words[2].starts_with("action=passthrough reason=- "),
        "{words:?}"
    );
    assert!(
        words[2].ends_with(" target=web.example:443 authority=WEB.example plaintext=-"),
        "{words:?}"
    );
    assert_eq!(words[3..], ["cluster = shared|DISABLE||bytes"]);
}

#[test]
fn a_failed_connection_is_counted_and_its_reason_logged() {
    const UF: u64 = 0x20;
    let failed = |port, flags, transport| {
        connection_failed(&at(port), &NOTHING, &ConnectionEnd { flags, transport })
    };
    let san = "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify cert failed: SAN matcher, certificate SANs are [a]:TLS_error_end";
    for (port, flags, transport, expected) in [
        (6379, 0, "", None),
        (6379, 0x40, "", None),
        (6379, 0x80 | UF, "", Some(Failure::Overflow)),
        (6379, 0x80, "", Some(Failure::Overflow)),
        (6379, UF, "", Some(Failure::Timeout)),
        (
            6379,
            UF | 0x1000,
            "delayed connect error: Connection refused",
            Some(Failure::Refused),
        ),
        (6379, UF, san, Some(Failure::NameMismatch)),
        (6379, UF, "something new", Some(Failure::Reset)),
        (
            5001,
            UF,
            "tunnel_response:403",
            Some(Failure::TunnelRefused),
        ),
        // The proxy hung up, or was not there in time.
        (5001, UF, "", Some(Failure::Reset)),
        (6379, 0x2, "", Some(Failure::Dns)),
        (6379, 0x800_0000, "", Some(Failure::Dns)),
        // It needs no name looked up, so nothing is known of why it has no healthy host.
        (5000, 0x2, "", None),
    ] {
        assert_eq!(
            failed(port, flags, transport),
            expected,
            "{flags:x} {transport}"
        );
    }

    let config = at(6379);
    let mut scratch = Scratch::default();
    let refused = Failure::Refused;
    let words = shown(|act| plan_connection_failure(&config, &NOTHING, refused, &mut scratch, act));
    assert_eq!(words[0], "Count(Refused)");
    assert!(
        words[1].starts_with("action=originate reason=refused rule=default/cache "),
        "{words:?}"
    );
}
