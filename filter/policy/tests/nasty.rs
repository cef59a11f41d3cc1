//! Input that nobody writes on purpose, or only on purpose: an error or an answer, never a panic.

use egress_policy::{
    Action, Authority, CompileOptions, DownstreamProtocol, HostPattern, InvalidAuthority,
    MAX_HOST_BYTES, Parser, PolicyTable, PortNumber, Problems, Query,
};
use serde_json::{Value, json};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// Longer than a message may become by quoting it once.
const MEGABYTE: usize = 1 << 20;

fn entry(spec: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "e"}, "spec": spec})
}

fn rule(spec: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "r"}, "spec": spec})
}

fn with_host(host: &str) -> Value {
    entry(json!({
        "hosts": [host],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": "DNS",
    }))
}

fn compile(documents: &[Value]) -> Result<PolicyTable, Problems> {
    let mut parser = Parser::new();
    documents
        .iter()
        .for_each(|document| parser.document(document));
    let (resources, problems) = parser.finish();
    // Messages are written, too: what cannot be shown would panic there.
    let _ = problems.to_string();
    if problems.has_errors() {
        return Err(problems);
    }
    PolicyTable::compile(&resources, &CompileOptions::default()).map(|(table, _)| table)
}

fn is_forwarded(table: &PolicyTable, authority: &str) -> bool {
    let Ok(authority) = Authority::parse(authority) else {
        return false;
    };
    let query = Query {
        host: &authority.host,
        port: PortNumber::HTTP,
        downstream: DownstreamProtocol::Http,
        branch: None,
        subset: None,
    };
    matches!(table.decide(&query).action, Action::Forward(_))
}

/// A name of so many bytes, in labels of at most 63.
fn name_of(bytes: usize) -> String {
    let mut name = "a.".repeat(bytes / 2 - 1);
    name.push_str(&"b".repeat(bytes - name.len()));
    assert_eq!(name.len(), bytes);
    name
}

#[test]
fn deep_nesting_is_an_error_wherever_it_stands() {
    // Made by hand: `json!` copies what is put into it, level by level.
    let around =
        |key: &str, value: Value| Value::Object([(key.to_owned(), value)].into_iter().collect());
    let mut deep = json!("x");
    for level in 0..500 {
        deep = match level % 2 {
            0 => Value::Array(vec![deep]),
            _ => around("tls", deep),
        };
    }
    for document in [
        deep.clone(),
        entry(deep.clone()),
        entry(json!({"hosts": deep})),
        entry(json!({"hosts": ["a.com"], "ports": [deep]})),
        rule(json!({"host": "a.com", "trafficPolicy": {"tls": deep}})),
        rule(json!({"host": "a.com", "trafficPolicy": {"portLevelSettings": [deep]}})),
        rule(json!({"host": "a.com", "workloadSelector": {"matchLabels": {"a": deep}}})),
        json!({"apiVersion": "v1", "kind": "List", "items": [deep]}),
        json!({"apiVersion": deep, "kind": "ServiceEntry"}),
    ] {
        assert!(compile(&[document]).is_err());
    }
    // A list in a list is not looked into, so none can be deep.
    let mut list = with_host("a.com");
    for _ in 0..500 {
        let kind = around("kind", json!("List"));
        let Value::Object(mut map) = kind else {
            continue;
        };
        map.insert("apiVersion".to_owned(), json!("v1"));
        map.insert("items".to_owned(), Value::Array(vec![list]));
        list = Value::Object(map);
    }
    let _ = compile(&[list]);
}

#[test]
fn numbers_out_of_all_measure_are_errors() {
    let numbers = [
        "0",
        "-1",
        "65536",
        "4294967296",
        "18446744073709551616",
        "1e308",
        "-0.0",
        "80.5",
        "1e1",
        "80.0",
    ];
    for text in numbers {
        let number: Value = serde_json::from_str(text).unwrap();
        let port = json!({"number": number, "name": "http", "protocol": "HTTP"});
        let spec = json!({"hosts": ["a.com"], "ports": [port], "resolution": "DNS"});
        assert!(compile(&[entry(spec)]).is_err(), "{text}");
        let pool = json!({"tcp": {"maxConnections": number}});
        let policy =
            json!({"connectionPool": pool, "outlierDetection": {"maxEjectionPercent": number}});
        let _ = compile(&[
            with_host("a.com"),
            rule(json!({"host": "a.com", "trafficPolicy": policy})),
        ]);
        let hash =
            json!({"consistentHash": {"maglev": {"tableSize": number}, "minimumRingSize": number}});
        let policy = json!({"loadBalancer": hash, "retryBudget": {"percent": number}});
        let _ = compile(&[
            with_host("a.com"),
            rule(json!({"host": "a.com", "trafficPolicy": policy})),
        ]);
    }
    // The largest number that might be a prime would be tried by division for hours.
    let largest = json!({"loadBalancer": {"consistentHash": {"maglev": {"tableSize": 18_446_744_073_709_551_557_u64}}}});
    assert!(compile(&[rule(json!({"host": "a.com", "trafficPolicy": largest}))]).is_err());
}

#[test]
fn durations_out_of_all_measure_are_errors_or_answers() {
    for text in [
        "",
        "s",
        "-1s",
        "1",
        "1e9s",
        "99999999999999999999h",
        "9223372036854775807s",
        "0.0000000001s",
        "1s1s1s",
        "NaNs",
        "infs",
        ".s",
        "..1s",
        "1.s",
        "١s",
        "1\0s",
        "1 s",
    ] {
        let policy = json!({"connectionPool": {"tcp": {"connectTimeout": text}}});
        let _ = compile(&[
            with_host("a.com"),
            rule(json!({"host": "a.com", "trafficPolicy": policy})),
        ]);
    }
    let long = "1".repeat(MEGABYTE);
    for text in [
        format!("{long}s"),
        "1s".repeat(MEGABYTE / 2),
        format!("0.{long}s"),
    ] {
        let policy = json!({"connectionPool": {"tcp": {"connectTimeout": text}}});
        let _ = compile(&[
            with_host("a.com"),
            rule(json!({"host": "a.com", "trafficPolicy": policy})),
        ]);
    }
}

#[test]
fn a_megabyte_of_text_is_an_error_that_can_be_read() {
    let long = "a".repeat(MEGABYTE);
    let simple = json!({"mode": "SIMPLE"});
    let of_tls = |key: &str| {
        let mut tls = simple.clone();
        tls[key] = json!(long);
        rule(json!({"host": "a.com", "trafficPolicy": {"tls": tls}}))
    };
    let documents = [
        json!({"apiVersion": long, "kind": "ServiceEntry"}),
        with_host(&long),
        with_host(&format!("a.{long}")),
        with_host(&"a.".repeat(MEGABYTE / 2)),
        with_host(&format!("*{long}")),
        of_tls("sni"),
        of_tls("mode"),
        of_tls(&long),
        rule(json!({"host": long})),
        rule(json!({"host": "a.com", "subsets": [{"name": long}]})),
        rule(json!({"host": "a.com", "exportTo": [long]})),
        entry(json!({"hosts": ["a.com"], "ports": [], "resolution": long})),
        entry(json!({"hosts": ["a.com"], "ports": [], "addresses": [long]})),
        entry(
            json!({"hosts": ["a.com"], "ports": [{"number": 80, "name": long, "protocol": long}]}),
        ),
    ];
    for (at, document) in documents.into_iter().enumerate() {
        assert!(compile(&[document]).is_err(), "document {at}");
    }
    // Another kind is let be, whatever it is called.
    assert!(compile(&[json!({"apiVersion": "v1", "kind": long})]).is_ok());
    // As a path or a label it is a value like any other.
    let path = of_tls("caCertificates");
    assert!(compile(&[with_host("a.com"), path]).is_ok());
    assert_eq!(Authority::parse(&long), Err(InvalidAuthority::Malformed));
    assert_eq!(
        Authority::parse(&format!("a:{long}")),
        Err(InvalidAuthority::Malformed)
    );
    assert_eq!(
        Authority::parse(&format!("[{long}]")),
        Err(InvalidAuthority::Malformed)
    );
}

#[test]
fn a_name_may_have_255_bytes_and_not_256() {
    let longest = name_of(MAX_HOST_BYTES);
    let table = compile(&[with_host(&longest)]).unwrap();
    assert!(is_forwarded(&table, &longest));
    assert!(is_forwarded(&table, &longest.to_uppercase()));
    assert!(is_forwarded(&table, &format!("{longest}.:65535")));
    assert!(!is_forwarded(&table, &format!("a.{longest}")));
    assert!(compile(&[with_host(&name_of(MAX_HOST_BYTES + 1))]).is_err());
    assert_eq!(
        Authority::parse(&name_of(MAX_HOST_BYTES + 1)),
        Err(InvalidAuthority::Malformed)
    );
    let label = "a".repeat(63);
    assert!(compile(&[with_host(&format!("{label}.com"))]).is_ok());
    assert!(compile(&[with_host(&format!("{label}a.com"))]).is_err());
}

#[test]
fn a_name_in_another_script_is_its_punycode_or_an_error() {
    let table = compile(&[with_host("XN--BCHER-KVA.example")]).unwrap();
    assert!(is_forwarded(&table, "xn--bcher-kva.example"));
    assert!(is_forwarded(&table, "xn--BCHER-kva.EXAMPLE."));
    // Nothing is translated, and so no two spellings are taken for one name by one reader alone.
    for strange in [
        "bücher.example",
        "BÜCHER.example",
        "ｂücher.example",
        "xn--bcher-kva。example",
        "xn--bcher-kva.example\u{200b}",
        "\u{feff}xn--bcher-kva.example",
        "ⅹn--bcher-kva.example",
        "xn--bcher\u{2011}kva.example",
        "İ.example",
        "ß.example",
        "\u{212a}.example",
    ] {
        assert!(compile(&[with_host(strange)]).is_err(), "{strange}");
        assert_eq!(
            Authority::parse(strange),
            Err(InvalidAuthority::Malformed),
            "{strange}"
        );
    }
}

#[test]
fn control_bytes_are_in_no_name() {
    let table = compile(&[with_host("a.com")]).unwrap();
    for strange in [
        "a.com\0",
        "\0a.com",
        "a\0.com",
        "a.com\r\nHost: b.com",
        "a.com\t",
        " a.com",
        "a.com ",
        "a.com\u{7f}",
        "a.com#",
        "a.com?",
        "a.com/",
        "a.com\\",
        "a%2ecom",
        "a.com:80\0",
        "a.com:8 0",
        "a.com:080000",
        "a.com@b.com",
        "a.com..",
        ".a.com",
        "a..com",
        "*",
        "*.com",
    ] {
        assert!(!is_forwarded(&table, strange), "{strange:?}");
        assert_eq!(
            Authority::parse(strange),
            Err(InvalidAuthority::Malformed),
            "{strange:?}"
        );
        assert!(
            strange.starts_with('*') || compile(&[with_host(strange)]).is_err(),
            "{strange:?}"
        );
    }
    for strange in ["\0", "a\0b", "\u{1b}[2J"] {
        let tls =
            json!({"mode": strange, "sni": strange, "credentialName": strange, strange: strange});
        let policy = json!({"tls": tls, strange: {}});
        assert!(compile(&[rule(json!({"host": strange, "trafficPolicy": policy}))]).is_err());
    }
}

#[test]
fn addresses_have_one_spelling() {
    for (text, host) in [
        ("[::ffff:192.0.2.1]", "::ffff:192.0.2.1"),
        ("[0:0:0:0:0:0:0:1]:80", "::1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("192.0.2.1", "192.0.2.1"),
    ] {
        assert_eq!(&*Authority::parse(text).unwrap().host, host);
    }
    // What some resolvers would still take for an address is no name either.
    for text in [
        "192.0.2",
        "192.0.2.01",
        "192.0.2.256",
        "127.1",
        "2130706433",
        "1.2.3.4.",
        "[fe80::1%eth0]",
        "[::1].",
        "[1.2.3.4]",
    ] {
        let read = Authority::parse(text);
        assert_eq!(read, Err(InvalidAuthority::Malformed), "{text}");
    }
}

#[test]
fn of_a_key_that_stands_twice_serde_json_keeps_the_last() {
    // Whoever reads YAML or JSON for the engine has to refuse this; a value cannot show it any more.
    let text = r#"{"apiVersion": "networking.istio.io/v1", "kind": "Secret", "kind": "ServiceEntry",
        "metadata": {"name": "e"}, "spec": {"hosts": ["a.com"], "hosts": ["b.com"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "resolution": "DNS"}}"#;
    let table = compile(&[serde_json::from_str(text).unwrap()]).unwrap();
    assert!(is_forwarded(&table, "b.com") && !is_forwarded(&table, "a.com"));
}

#[test]
fn every_type_in_every_place_is_an_error_or_an_answer() {
    let good = [
        entry(json!({
            "hosts": ["*.a.com"], "addresses": ["192.0.2.1"],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443}],
            "resolution": "STATIC", "exportTo": ["."], "subjectAltNames": ["n"],
            "endpoints": [{"address": "192.0.2.1", "ports": {"http": 1}, "labels": {"v": "1"}, "weight": 1}],
        })),
        rule(json!({
            "host": "*.a.com", "exportTo": ["."],
            "trafficPolicy": {
                "tls": {"mode": "SIMPLE", "sni": "a.com", "subjectAltNames": ["n"]},
                "loadBalancer": {"consistentHash": {"httpCookie": {"name": "n", "ttl": "1s"}}},
                "connectionPool": {"tcp": {"connectTimeout": "1s", "tcpKeepalive": {"probes": 1}}, "http": {"http2KeepAlive": {"interval": "1s", "timeout": "1s"}}},
                "outlierDetection": {"interval": "1s"},
                "portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "DISABLE"}}],
            },
            "subsets": [{"name": "v1", "labels": {"v": "1"}, "trafficPolicy": {"retryBudget": {}}}],
        })),
    ];
    assert!(compile(&good).is_ok());
    let others = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1.5),
        json!(""),
        json!([]),
        json!({}),
        json!([null]),
        json!({"": null}),
    ];
    let mut tried = 0;
    for (at, document) in good.iter().enumerate() {
        for place in pointers(document) {
            for other in &others {
                let mut documents = good.clone();
                let Some(value) = documents
                    .get_mut(at)
                    .and_then(|one| one.pointer_mut(&place))
                else {
                    panic!("{place}");
                };
                *value = other.clone();
                let _ = compile(&documents);
                tried += 1;
            }
        }
    }
    assert!(tried > 500, "{tried}");
}

/// The way to every value below a value.
fn pointers(value: &Value) -> Vec<String> {
    let mut ways = vec![String::new()];
    let below: Vec<(String, &Value)> = match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(at, one)| (at.to_string(), one))
            .collect(),
        Value::Object(map) => map.iter().map(|(key, one)| (key.clone(), one)).collect(),
        _ => Vec::new(),
    };
    for (key, one) in below {
        ways.extend(pointers(one).into_iter().map(|way| format!("/{key}{way}")));
    }
    ways
}

#[test]
fn many_of_anything_take_no_more_than_their_share() {
    // Ten thousand unknown fields, each compared with the known ones for a hint.
    let mut fields = serde_json::Map::new();
    fields.extend((0..10_000).map(|n| (format!("field{n}"), json!(n))));
    let Err(problems) = compile(&[entry(Value::Object(fields))]) else {
        panic!("unknown fields are errors")
    };
    assert!(problems.0.len() > 10_000);
    // Endings of every length there is: a look-up tries each once.
    let endings: Vec<Value> = (1..=120)
        .map(|labels| {
            let mut one = with_host(&format!("*{}", ".a".repeat(labels)));
            one["metadata"]["name"] = json!(format!("e{labels}"));
            one["spec"]["resolution"] = json!("NONE");
            one
        })
        .collect();
    let table = compile(&endings).unwrap();
    assert!(is_forwarded(&table, &format!("{}a", "a.".repeat(127))));
    assert!(!is_forwarded(&table, &name_of(MAX_HOST_BYTES)));
    assert!(HostPattern::parse(&format!("*{}", ".a".repeat(127))).is_ok());
}
