use serde_json::json;

use super::*;

fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

fn root(http: Value) -> Value {
    service(
        "app",
        "root",
        json!({"hosts": ["api.example.com"], "http": http}),
    )
}

/// Merges documents, and returns the first one's routes and what is said.
fn merged(documents: &mut [Value]) -> (Value, Vec<String>, Delegated) {
    let mut all: Vec<&mut Value> = documents.iter_mut().collect();
    let mut delegated = merge(&mut all, &Mesh::default());
    let told = delegated.problems(|_| true);
    let told = told.iter().map(|problem| {
        let id = problem.resource.as_ref().map(ToString::to_string);
        format!(
            "{} {}: {}",
            id.unwrap_or_default(),
            problem.path,
            problem.kind
        )
    });
    let told = told.collect();
    (documents[0]["spec"]["http"].take(), told, delegated)
}

fn to(host: &str) -> Value {
    json!([{"destination": {"host": host}}])
}

#[test]
fn routes_of_the_delegate_take_the_place_of_the_one_that_delegates() {
    let mut documents = [
        root(json!([
            {"name": "r", "match": [{"uri": {"prefix": "/v1"}, "headers": {"x-a": {"exact": "1"}}}],
             "delegate": {"name": "team", "namespace": "team"}, "timeout": "1s", "rewrite": {"uri": "/"}},
            {"route": to("rest.example.com")},
        ])),
        service(
            "team",
            "team",
            json!({"http": [
                {"name": "d", "match": [{"uri": {"exact": "/v1/users"}, "port": 80}], "timeout": "2s", "route": to("users")},
                {"route": to("api.example.com")},
            ]}),
        ),
    ];
    let (http, told, delegated) = merged(&mut documents);
    assert_eq!(told, Vec::<String>::new());
    assert_eq!(
        http,
        json!([
            {"name": "r-d", "timeout": "2s", "rewrite": {"uri": "/"},
             "match": [{"uri": {"exact": "/v1/users"}, "port": 80, "headers": {"x-a": {"exact": "1"}}}],
             "route": to("users.team.svc.cluster.local")},
            {"name": "r", "timeout": "1s", "rewrite": {"uri": "/"},
             "match": [{"uri": {"prefix": "/v1"}, "headers": {"x-a": {"exact": "1"}}}],
             "route": to("api.example.com")},
            {"route": to("rest.example.com")},
        ])
    );
    // What is wrong is told where it stands.
    let told = |path: &str| {
        let mut problem = Problem {
            severity: Severity::Error,
            origin: Origin::default(),
            resource: None,
            path: FieldPath::default(),
            kind: ProblemKind::Missing,
            hint: None,
            id: None,
        };
        for part in path.split('.') {
            let (key, index) = part.split_once('[').unwrap_or((part, ""));
            problem.path.0.push(Segment::Key(key.to_owned()));
            let index = index.trim_end_matches(']').parse().ok();
            problem.path.0.extend(index.map(Segment::Index));
        }
        delegated.tell(&mut problem);
        format!("{} {}", problem.origin.document, problem.path)
    };
    for (path, is) in [
        (
            "spec.http[0].route[0].weight",
            "1 spec.http[0].route[0].weight",
        ),
        ("spec.http[0].timeout", "1 spec.http[0].timeout"),
        ("spec.http[0].rewrite.uri", "0 spec.http[0].rewrite.uri"),
        ("spec.http[0].match[0].port", "1 spec.http[0].match[0].port"),
        (
            "spec.http[0].match[0].headers",
            "0 spec.http[0].match[0].headers",
        ),
        ("spec.http[1].match[0].uri", "0 spec.http[0].match[0].uri"),
        ("spec.http[1].route", "1 spec.http[1].route"),
        ("spec.http[2].route", "0 spec.http[1].route"),
        ("spec.hosts[0]", "0 spec.hosts[0]"),
    ] {
        assert_eq!(told(path), is, "{path}");
    }
}

#[test]
fn a_route_that_asks_for_more_is_left_out() {
    // Of each pair, what the root and the delegate ask for; and whether the second is within the first.
    for (of_root, own, within) in [
        (
            json!({"uri": {"prefix": "/a"}}),
            json!({"uri": {"prefix": "/a/b"}}),
            true,
        ),
        (
            json!({"uri": {"prefix": "/a/b"}}),
            json!({"uri": {"prefix": "/a"}}),
            false,
        ),
        (
            json!({"uri": {"prefix": "/a"}}),
            json!({"uri": {"exact": "/a"}}),
            true,
        ),
        (
            json!({"uri": {"exact": "/a"}}),
            json!({"uri": {"prefix": "/a"}}),
            false,
        ),
        (
            json!({"uri": {"exact": "/a"}}),
            json!({"uri": {"exact": "/a"}}),
            true,
        ),
        (
            json!({"uri": {"prefix": "/a"}}),
            json!({"uri": {"regex": "/a/.*"}}),
            false,
        ),
        (
            json!({"uri": {"regex": "/a/.*"}}),
            json!({"port": 80}),
            true,
        ),
        (
            json!({"uri": {"prefix": "/a"}}),
            json!({"uri": {"prefix": "/a"}, "ignoreUriCase": true}),
            false,
        ),
        (json!({"port": 80}), json!({"port": 443}), false),
        (
            json!({"port": 80}),
            json!({"method": {"exact": "GET"}}),
            true,
        ),
        (
            json!({"headers": {"a": {"exact": "1"}}}),
            json!({"headers": {"a": {"exact": "2"}}}),
            false,
        ),
        (
            json!({"headers": {"a": {"exact": "1"}}}),
            json!({"headers": {"b": {"exact": "2"}}}),
            true,
        ),
        (
            json!({"withoutHeaders": {"a": {"exact": "1"}}}),
            json!({"withoutHeaders": {"a": {"exact": "2"}}}),
            false,
        ),
        (
            json!({"queryParams": {"a": {"exact": "1"}}}),
            json!({"queryParams": {"a": {"exact": "2"}}}),
            false,
        ),
        (
            json!({"sourceNamespace": "a"}),
            json!({"sourceNamespace": "b"}),
            false,
        ),
        (
            json!({"sourceLabels": {"a": "1"}}),
            json!({"sourceLabels": {"a": "2"}}),
            false,
        ),
        (
            json!({"gateways": ["mesh"]}),
            json!({"gateways": ["app/g"]}),
            false,
        ),
        (
            json!({"gateways": ["mesh", "g"]}),
            json!({"gateways": ["app/g"]}),
            true,
        ),
    ] {
        let shown = format!("{of_root} {own}");
        let mut documents = [
            root(json!([{"match": [of_root], "delegate": {"name": "d"}}])),
            service(
                "app",
                "d",
                json!({"http": [{"match": [own], "route": to("api.example.com")}]}),
            ),
        ];
        let (http, told, _) = merged(&mut documents);
        assert_eq!(
            http.as_array().unwrap().len(),
            usize::from(within),
            "{shown}"
        );
        let said = [
            "VirtualService app/d spec.http[0].match: its matches are not within those of `spec.http[0]` of VirtualService app/root, which delegates to it: Istio leaves this route out, and so it is here",
        ];
        assert_eq!(told, if within { &said[..0] } else { &said[..] }, "{shown}");
    }
}

#[test]
fn what_is_missing_or_hidden_leaves_one_route_out() {
    for (delegate, said) in [
        (
            service("team", "other", json!({"http": []})),
            "no VirtualService team/d without `hosts` is here: Istio leaves this route out, and so it is here",
        ),
        (
            service("team", "d", json!({"hosts": ["b.example.com"], "http": []})),
            "no VirtualService team/d without `hosts` is here: Istio leaves this route out, and so it is here",
        ),
        (
            service("team", "d", json!({"exportTo": ["."], "http": []})),
            "VirtualService team/d is not exported to `app`: Istio leaves this route out, and so it is here",
        ),
    ] {
        let mut documents = [
            root(
                json!([{"delegate": {"name": "d", "namespace": "team"}}, {"route": to("api.example.com")}]),
            ),
            delegate,
        ];
        let (http, told, _) = merged(&mut documents);
        assert_eq!(http, json!([{"route": to("api.example.com")}]));
        assert_eq!(
            told,
            [format!(
                "VirtualService app/root spec.http[0].delegate: {said}"
            )]
        );
    }
    let shown = service(
        "team",
        "d",
        json!({"exportTo": ["app"], "http": [{"route": to("a.example.com")}]}),
    );
    let mut documents = [
        root(json!([{"delegate": {"name": "d", "namespace": "team"}}])),
        shown,
    ];
    assert_eq!(merged(&mut documents).0.as_array().unwrap().len(), 1);
}
