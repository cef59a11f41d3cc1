//! How long parsing, compiling and deciding take, for tables of 10 to 100,000 hosts.
//!
//! `cargo bench -p egress-policy --bench engine`. Elements a second are resources for `parse` and
//! `compile`, and requests for `decide`, whose time must not grow with the table. What we aim at, at 100,000
//! hosts: a request in 150 ns, and 500,000 resources compiled a second.
#![cfg_attr(
    not(target_arch = "wasm32"),
    expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a benchmark that meets what it did not expect should stop"
    )
)]

#[cfg(target_arch = "wasm32")]
fn main() {}

#[cfg(not(target_arch = "wasm32"))]
criterion::criterion_main!(native::benches);

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::hint::black_box;
    use std::time::Duration;

    use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
    use egress_policy::{
        Authority, CompileOptions, DownstreamProtocol, Parser, PolicyTable, PortNumber, Query,
        Resources,
    };
    use serde_json::{Value, json};

    const SIZES: [usize; 4] = [10, 1_000, 10_000, 100_000];

    /// The requests of one round; a power of two.
    const ROUND: usize = 4096;

    /// Every tenth host is a wildcard. Endings have 5 to 12 labels' worth of lengths, as in a real mesh.
    fn host(n: usize) -> String {
        let depth = ".svc".repeat(n % 7);
        match n % 10 {
            0 => format!("*.tenant-{n}{depth}.example.com"),
            _ => format!("api-{n}{depth}.example.com"),
        }
    }

    /// An entry for each host, and for every tenth a rule of its own; one rule is for all others.
    fn documents(hosts: usize) -> Vec<Value> {
        let document = |kind: &str, name: String, spec: Value| {
            json!({
                "apiVersion": "networking.istio.io/v1", "kind": kind,
                "metadata": {"name": name}, "spec": spec,
            })
        };
        let on_80 = |host: &str, tls: Value| {
            let settings = json!([{"port": {"number": 80}, "tls": tls}]);
            json!({"host": host, "trafficPolicy": {"portLevelSettings": settings}})
        };
        let ports = json!([
            {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
            {"number": 443, "name": "tls", "protocol": "TLS"},
        ]);
        let simple = json!({"mode": "SIMPLE"});
        let mut documents = vec![document(
            "DestinationRule",
            "all".to_owned(),
            on_80("*", simple),
        )];
        for n in 0..hosts {
            let name = host(n);
            let resolution = if name.starts_with('*') {
                "DYNAMIC_DNS"
            } else {
                "DNS"
            };
            let spec = json!({"hosts": [name], "ports": ports, "resolution": resolution});
            documents.push(document("ServiceEntry", format!("entry-{n}"), spec));
            if n % 10 == 1 {
                let tls = json!({"mode": "SIMPLE", "sni": format!("sni-{n}.example.com")});
                let rule = on_80(&name, tls);
                documents.push(document("DestinationRule", format!("rule-{n}"), rule));
            }
        }
        documents
    }

    fn parse(documents: &[Value]) -> Resources {
        let mut parser = Parser::new();
        documents
            .iter()
            .for_each(|document| parser.document(document));
        let (resources, problems) = parser.finish();
        assert!(!problems.has_errors(), "{problems}");
        resources
    }

    /// Hosts of requests: three of four are the table's, spread over it, the rest nobody's.
    fn requests(hosts: usize, which: &str) -> Vec<String> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).unwrap()
        };
        let mut requests = Vec::with_capacity(ROUND);
        while requests.len() < ROUND {
            let n = draw() % hosts;
            let name = host(n);
            let kind = match (which, requests.len() % 4) {
                ("mixed", 3) => "miss",
                ("mixed", _) => "hit",
                (which, _) => which,
            };
            match (kind, name.strip_prefix('*')) {
                ("miss", _) => requests.push(format!("www-{n}.nobody.example.org")),
                ("hit", Some(ending)) => requests.push(format!("www{ending}")),
                ("hit", None) => requests.push(name),
                ("exact", None) => requests.push(name),
                ("wildcard", Some(ending)) => requests.push(format!("www{ending}")),
                _ => {}
            }
        }
        requests
    }

    fn engine(criterion: &mut Criterion) {
        let tables: Vec<(usize, Vec<Value>, Resources, PolicyTable)> = SIZES
            .into_iter()
            .map(|size| {
                let documents = documents(size);
                let resources = parse(&documents);
                let (table, _) =
                    PolicyTable::compile(&resources, &CompileOptions::default()).unwrap();
                assert_eq!(table.len(), size);
                (size, documents, resources, table)
            })
            .collect();

        let mut group = criterion.benchmark_group("parse");
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(3));
        for (size, documents, ..) in &tables {
            group.throughput(Throughput::Elements(documents.len() as u64));
            group.bench_with_input(
                BenchmarkId::from_parameter(size),
                documents,
                |b, documents| {
                    b.iter(|| parse(black_box(documents)));
                },
            );
        }
        group.finish();

        let mut group = criterion.benchmark_group("compile");
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(3));
        for (size, documents, resources, _) in &tables {
            group.throughput(Throughput::Elements(documents.len() as u64));
            group.bench_with_input(
                BenchmarkId::from_parameter(size),
                resources,
                |b, resources| {
                    b.iter(|| {
                        PolicyTable::compile(black_box(resources), &CompileOptions::default())
                    });
                },
            );
        }
        group.finish();

        for which in ["mixed", "exact", "wildcard", "miss"] {
            let mut group = criterion.benchmark_group(format!("decide/{which}"));
            group.throughput(Throughput::Elements(1));
            for (size, _, _, table) in &tables {
                let requests = requests(*size, which);
                let mut next = 0;
                group.bench_function(BenchmarkId::from_parameter(size), |b| {
                    b.iter(|| {
                        next = (next + 1) % ROUND;
                        decide(table, black_box(&requests[next]))
                    });
                });
            }
            group.finish();
        }

        // As a filter does it: the authority is read, then decided.
        let mut group = criterion.benchmark_group("request/mixed");
        group.throughput(Throughput::Elements(1));
        for (size, _, _, table) in &tables {
            let requests = requests(*size, "mixed");
            let mut next = 0;
            group.bench_function(BenchmarkId::from_parameter(size), |b| {
                b.iter(|| {
                    next = (next + 1) % ROUND;
                    let authority = Authority::parse(black_box(&requests[next])).ok()?;
                    Some(decide(table, &authority.host))
                });
            });
        }
        group.finish();
    }

    fn decide(table: &PolicyTable, host: &str) -> &'static str {
        let query = Query {
            host,
            port: PortNumber::HTTP,
            downstream: DownstreamProtocol::Http,
            branch: None,
            subset: None,
        };
        black_box(table.decide(&query).action.as_str())
    }

    criterion_group!(benches, engine);
}
