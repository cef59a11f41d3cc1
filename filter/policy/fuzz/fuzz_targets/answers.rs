//! Does any answer of a server panic the filter, lead an application to another host, or gain bytes?
#![no_main]

use std::sync::LazyLock;

use egress_filter::Repairs;
use egress_filter::answer::{Answer, Arrival, REPAIRABLE, Repairable};
use egress_filter::{Loaded, load};
use egress_policy::PortNumber;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

static LOADED: LazyLock<Loaded> = LazyLock::new(|| {
    let config = json!({"resources": [
        {
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "a"},
            "spec": {"hosts": ["a.example.com", "*.w.example.com"], "resolution": "NONE", "ports": [
                {"number": 8080, "name": "http", "protocol": "HTTP", "targetPort": 443},
            ]},
        },
        {
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "a"},
            "spec": {"host": "*.example.com", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}},
        },
    ]});
    load(config.to_string().as_bytes()).unwrap_or_else(|error| unreachable!("{error}"))
});

const ALL: Repairs = Repairs {
    urls: true,
    links: true,
    cookies: true,
    prefixed: true,
    hints: true,
    csp: true,
};

/// Returns what stands between `//` and the path.
fn authority(url: &[u8]) -> &[u8] {
    let start = url.windows(2).position(|two| two == b"//").map_or(0, |at| at + 2);
    let rest = &url[start..];
    let end = rest.iter().position(|byte| b"/?#".contains(byte));
    &rest[..end.unwrap_or(rest.len())]
}

fuzz_target!(|bytes: &[u8]| {
    let arrival = Arrival {
        host: "a.example.com",
        port: PortNumber::HTTP,
        written: None,
        mapped: &[],
    };
    for (header, _) in REPAIRABLE {
        let mut answer = Answer::new(&LOADED.table, ALL, arrival, false);
        let Some(lines) = answer.repair(header, &[bytes]) else {
            continue;
        };
        for line in &lines {
            assert!(header == Repairable::Link || line.len() <= bytes.len() + 5);
            if header == Repairable::Location {
                let (before, after) = (authority(bytes), authority(line));
                let host = |it: &[u8]| it.split(|byte| *byte == b':').next().map(<[u8]>::to_vec);
                assert_eq!(host(before), host(after));
            }
        }
    }
});
