//! What is remembered is what would be planned, and takes no memory again.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect should stop"
)]

#[path = "../../policy/tests/counting/mod.rs"]
mod counting;

use std::sync::Arc;

use egress_filter::{Act, Facts, HostError, Scratch, Worker, load, plan_http};
use egress_policy::PortNumber;
use serde_json::{Value, json};

const HTTP: Option<PortNumber> = Some(PortNumber::HTTP);

/// Hosts with a cluster of their own, below a wildcard, forwarded, and more of them than plans are kept.
fn config() -> Vec<u8> {
    config_with(&json!({}))
}

/// The same with more settings.
fn config_with(more: &Value) -> Vec<u8> {
    let document = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let port = |target: u16| json!([{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": target}]);
    let mut resources = Vec::new();
    let mut entry = |name: &str, host: &str, target: u16, tls: Option<Value>| {
        let resolution = if host.starts_with('*') {
            "DYNAMIC_DNS"
        } else {
            "DNS"
        };
        let spec = json!({"hosts": [host], "resolution": resolution, "ports": port(target)});
        resources.push(document("ServiceEntry", name, spec));
        resources.extend(tls.map(|tls| {
            let spec = json!({"host": host, "trafficPolicy": {"tls": tls}});
            document("DestinationRule", name, spec)
        }));
    };
    entry(
        "own",
        "own.example",
        443,
        Some(json!({"mode": "SIMPLE", "sni": "s.example"})),
    );
    entry("odd", "odd.example", 8443, Some(json!({"mode": "SIMPLE"})));
    entry("plain", "plain.example", 8080, None);
    entry(
        "any",
        "*.wild.example",
        443,
        Some(json!({"mode": "SIMPLE"})),
    );
    let mut config = json!({"schema": 1, "resources": resources});
    let fields = config.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    serde_json::to_vec(&config).unwrap()
}

fn shown(plan: impl FnOnce(Act<'_>) -> Result<(), HostError>) -> Vec<String> {
    let mut seen = Vec::new();
    plan(&mut |effect| {
        seen.push(format!("{effect:?}"));
        Ok(())
    })
    .unwrap();
    seen
}

fn remembered(all: &Worker, facts: &Facts<'_>) -> Vec<String> {
    shown(|act| all.plan_http(facts, act))
}

/// Requests of all kinds: known and unknown hosts, other spellings, other ports, CONNECT, nonsense.
fn requests() -> Vec<(String, Option<PortNumber>, bool)> {
    let mut hosts: Vec<String> = [
        "own.example",
        "OWN.example:80",
        "own.example.",
        "odd.example",
        "odd.example:8443",
        "plain.example",
        "nobody.example",
        "",
        "a b",
        "\u{fffd}",
        "own.example\"",
    ]
    .map(str::to_owned)
    .into();
    hosts.extend((0..600).map(|at| format!("h{at}.wild.example")));
    hosts.push(format!("{}.wild.example", "a".repeat(300)));
    let ways = [
        (HTTP, false),
        (Some(PortNumber::HTTPS), false),
        (None, false),
        (HTTP, true),
    ];
    let with = |host: String| ways.map(|(port, connect)| (host.clone(), port, connect));
    hosts.into_iter().flat_map(with).collect()
}

#[test]
fn what_is_remembered_is_what_would_be_planned() {
    let kinds: Vec<usize> = [
        json!({}),
        json!({"listener": {"port": 80}}),
        json!({"listener": {"port": 80}, "controlHeaders": "STRIPPED", "authority": "PRESERVE"}),
        json!({"listener": {"port": 80}, "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}),
        json!({"listener": {"port": 80}, "upstreamProxy": "ALWAYS"}),
        json!({"listener": {"mode": "FORWARD_PROXY"}}),
        json!({"listener": {"port": 80}, "metadata": "JSON"}),
    ]
    .iter()
    .map(|more| remembers_all_of(&config_with(more)))
    .collect();
    assert!(kinds.iter().all(|kinds| *kinds > 2), "{kinds:?}");
}

/// Returns how many kinds of plans there were, by their effects.
fn remembers_all_of(json: &[u8]) -> usize {
    let (config, all) = (
        load(json).unwrap(),
        Worker::new(Arc::new(load(json).unwrap())),
    );
    let mut scratch = Scratch::default();
    let mut kinds = std::collections::BTreeSet::new();
    for (authority, port, connect) in requests() {
        let facts = Facts {
            authority: &authority,
            port,
            connect,
            within: None,
            route: None,
        };
        let planned = shown(|act| plan_http(&config, &facts, &mut scratch, act));
        let names = planned.iter().map(|effect| effect.split('(').next());
        kinds.insert(
            names
                .map(|name| name.map(str::to_owned))
                .collect::<Vec<_>>(),
        );
        // New, remembered, and once more when others have been asked for.
        for _ in 0..2 {
            assert_eq!(remembered(&all, &facts), planned, "{facts:?}");
        }
    }
    for (authority, port, connect) in requests().into_iter().rev() {
        let facts = Facts {
            authority: &authority,
            port,
            connect,
            within: None,
            route: None,
        };
        let planned = shown(|act| plan_http(&config, &facts, &mut scratch, act));
        assert_eq!(remembered(&all, &facts), planned, "{facts:?}");
    }
    kinds.len()
}

#[test]
fn a_request_like_one_before_it_allocates_nothing() {
    let all = Worker::new(Arc::new(load(&config()).unwrap()));
    let ask = |authority: &str| {
        let facts = Facts {
            authority,
            port: HTTP,
            connect: false,
            within: None,
            route: None,
        };
        let before = counting::allocations();
        let mut count = 0;
        all.plan_http(&facts, &mut |_| {
            count += 1;
            Ok::<_, HostError>(())
        })
        .unwrap();
        assert!(count > 0);
        counting::allocations() - before
    };
    let hosts: Vec<String> = (0..600)
        .map(|at| format!("h{at:03}.wild.example"))
        .collect();
    // More hosts than plans: each takes another's place, and its room.
    for _ in 0..2 {
        for host in &hosts {
            ask(host);
        }
    }
    let taken: u64 = hosts.iter().map(|host| ask(host)).sum();
    assert_eq!(taken, 0, "allocations of {} requests", hosts.len());
    ask("own.example");
    assert_eq!(ask("own.example"), 0);
    ask("nobody.example");
    assert_eq!(ask("nobody.example"), 0);
}

#[test]
fn the_first_error_ends_a_plan() {
    let all = Worker::new(Arc::new(load(&config()).unwrap()));
    let facts = Facts {
        authority: "own.example",
        port: HTTP,
        connect: false,
        within: None,
        route: None,
    };
    for _ in 0..2 {
        let mut asked = 0;
        let refused = all.plan_http(&facts, &mut |_| {
            asked += 1;
            Err(HostError)
        });
        assert_eq!((refused, asked), (Err(HostError), 1));
    }
}

#[test]
fn a_plan_that_was_cut_short_is_not_remembered() {
    let (config, all) = (
        load(&config()).unwrap(),
        Worker::new(Arc::new(load(&config()).unwrap())),
    );
    let facts = Facts {
        authority: "odd.example",
        port: HTTP,
        connect: false,
        within: None,
        route: None,
    };
    let whole = shown(|act| plan_http(&config, &facts, &mut Scratch::default(), act));
    assert!(whole.len() > 2, "{whole:?}");
    for asked in 1..whole.len() {
        let mut left = asked;
        let refused = all.plan_http(&facts, &mut |_| {
            left -= 1;
            if left == 0 { Err(HostError) } else { Ok(()) }
        });
        assert_eq!(refused, Err(HostError));
    }
    assert_eq!(remembered(&all, &facts), whole);
    assert_eq!(remembered(&all, &facts), whole);
}
