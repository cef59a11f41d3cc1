use egress_policy::{CompileOptions, Origin, Severity};
use serde_json::{Value, json};

use super::*;
use crate::compile::compile;
use crate::source::Source;

fn document(spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "v"}, "spec": spec,
    })
}

/// Returns what is said of a spec, without what stands in every line.
fn said(spec: Value) -> Vec<String> {
    let (_, problems) = VirtualService::read(&document(spec), Origin::default());
    let lines = problems.iter().map(|problem| {
        let hint = if problem.hint.is_some() { "" } else { " !" };
        let severity = match problem.severity {
            Severity::Warning => "warning: ",
            Severity::Error => "",
        };
        format!("{severity}{}: {}{hint}", problem.path, problem.kind)
    });
    lines.collect()
}

fn of_route(route: Value) -> Vec<String> {
    said(json!({"hosts": ["api.example.com"], "http": [route]}))
}

fn to() -> Value {
    json!([{"destination": {"host": "api.example.com"}}])
}

/// Returns the spec's only route.
fn read(route: Value) -> HttpRoute {
    let spec = json!({"hosts": ["api.example.com"], "http": [route]});
    let (read, problems) = VirtualService::read(&document(spec), Origin::default());
    assert_eq!(problems, []);
    read.unwrap().http.remove(0)
}

#[test]
fn everything_that_istio_has_is_known() {
    let matches = json!({
        "name": "m", "statPrefix": "s", "port": 80, "gateways": ["mesh", "a/b"], "sourceLabels": {"app": "a"},
        "sourceNamespace": "n", "uri": {"prefix": ""}, "ignoreUriCase": true, "method": {"exact": "GET"},
        "authority": {"regex": "a.*"}, "scheme": {"exact": "http"}, "headers": {"x-user": {"prefix": "a"}, "x-b": {}},
        "withoutHeaders": {"x-c": {"regex": "*"}, "x-d": null}, "queryParams": {"q": {"exact": "1"}},
    });
    let headers = json!({
        "request": {"set": {"a": "b", "host": "c.example.com"}, "add": {"d": "%PROTOCOL%"}, "remove": ["e"]},
        "response": {"set": {"a": "b"}, "add": {"d": "e"}, "remove": ["f"]},
    });
    let route = json!({
        "name": "r", "match": [matches], "headers": headers,
        "route": [
            {"destination": {"host": "a.example.com", "port": {"number": 443}, "subset": "v1"}, "weight": 1,
             "headers": {"request": {"remove": ["x"]}}},
            {"destination": {"host": "b"}, "weight": 99},
        ],
        "rewrite": {"uriRegexRewrite": {"match": "/a(.*)", "rewrite": "\\1"}},
        "timeout": "3s",
        "retries": {"attempts": 3, "perTryTimeout": "1s", "retryOn": "5xx,503,reset", "backoff": "10ms",
            "retryRemoteLocalities": false, "retryIgnorePreviousHosts": false},
        "fault": {"abort": {"httpStatus": 418, "percentage": {"value": 0.1}},
            "delay": {"fixedDelay": "1s", "percent": 5, "percentage": {"value": 100}}},
    });
    let spec = json!({
        "hosts": ["api.example.com", "*.example.org", "10.0.0.1", "reviews"], "gateways": ["mesh", "istio-system/gw"],
        "exportTo": ["."], "http": [route],
        "tls": [{"match": [{"sniHosts": ["api.example.com", "x.example.org"], "port": 443, "gateways": ["mesh"],
            "sourceLabels": {"a": "b"}, "sourceNamespace": "n", "destinationSubnets": ["10.0.0.0/8"]}], "route": to()}],
        "tcp": [{"match": [{"port": 5432, "destinationSubnets": ["10.0.0.1"]}], "route": to()}, {"route": to()}],
    });
    let (read, problems) = VirtualService::read(&document(spec), Origin::default());
    assert_eq!(problems, []);
    let service = read.unwrap();
    let route = &service.http[0];
    assert_eq!(route.authority.as_deref(), Some("c.example.com"));
    assert_eq!(route.retries.as_ref().unwrap().statuses, [503]);
    assert_eq!(route.fault.abort, Some((Abort::Http(418), Percent(1000))));
    assert_eq!(route.shares().len(), 2);
    assert_eq!(service.destinations().last(), Some("api.example.com"));
}

#[test]
fn answers_are_read() {
    let redirect = read(
        json!({"redirect": {"authority": "b.com", "redirectCode": 302, "derivePort": "FROM_REQUEST_PORT"}}),
    );
    let RouteAction::Redirect(redirect) = redirect.action else {
        unreachable!()
    };
    assert_eq!(
        (redirect.status, redirect.port),
        (302, RedirectPort::OfTheRequest)
    );
    let answer = read(json!({"directResponse": {"status": 503, "body": {"bytes": "aGk="}}}));
    let RouteAction::Respond(answer) = answer.action else {
        unreachable!()
    };
    assert_eq!(answer.body.as_deref(), Some(&b"hi"[..]));
}

#[test]
fn fields_and_types_are_checked_with_their_path() {
    assert_eq!(
        said(json!({"host": ["a.com"], "hosts": ["a.com"], "http": [{
            "match": [{"url": {"prefix": "/"}, "method": "GET"}], "route": [{"destination": {"host": 7}}],
            "timeout": 3, "retries": {"attempts": -1},
        }]})),
        [
            "spec.http[0].match[0].method: expected an object, found the string `GET` !",
            "spec.http[0].match[0].url: unknown field `url`",
            "spec.http[0].route[0].destination.host: expected a string, found `7`",
            "spec.http[0].timeout: expected a string, found `3`",
            "spec.http[0].retries.attempts: -1 is out of range 0..2147483647 !",
            "spec.host: unknown field `host`",
        ]
    );
}

#[test]
fn a_list_item_is_named() {
    let origin = Origin {
        document: 0,
        item: Some(2),
    };
    let (_, problems) = VirtualService::read(&document(json!({"hosts": ["a.com"]})), origin);
    assert_eq!(problems[0].path.to_string(), "items[2].spec");
}

#[test]
fn a_route_does_one_thing() {
    let one = |route: Value| of_route(route).join("; ");
    for (route, told) in [
        (
            json!({}),
            "spec.http[0]: HTTP route, redirect or direct_response is required",
        ),
        (
            json!({"route": to(), "redirect": {"uri": "/"}}),
            "spec.http[0].route: HTTP route cannot contain both route and redirect",
        ),
        (
            json!({"redirect": {"uri": "/"}, "directResponse": {"status": 200}}),
            "spec.http[0].directResponse: HTTP route cannot contain both directResponse and redirect",
        ),
        (
            json!({"directResponse": {"status": 200}, "fault": {"abort": {"httpStatus": 400, "percentage": {"value": 1}}}}),
            "spec.http[0].fault: HTTP route cannot contain both fault and directResponse",
        ),
        (
            json!({"delegate": {"name": "a"}, "route": to()}),
            "spec.http[0].route: root HTTP route must not specify route",
        ),
        (
            json!({"delegate": {"name": "a"}, "redirect": {"uri": "/"}}),
            "spec.http[0].redirect: root HTTP route must not specify redirect",
        ),
        (
            json!({"delegate": {"namespace": "a"}}),
            "spec.http[0].delegate.name: is required !",
        ),
    ] {
        assert_eq!(one(route), told);
    }
}

#[test]
fn what_istio_refuses_is_refused() {
    for (field, value, told) in [
        (
            "route",
            json!([{"destination": {"host": "a.com"}}, {"destination": {"host": "b.com"}}]),
            "total destination weight = 0",
        ),
        (
            "route",
            json!([{"destination": {"host": "*"}}]),
            "invalid destination host *",
        ),
        (
            "route",
            json!([{"destination": {"host": "a.com", "port": {"number": 0}}}]),
            "0 is out of range 1..65535",
        ),
        (
            "match",
            json!([{"uri": {"regex": "*"}}]),
            "missing argument to repetition operator: `*`",
        ),
        (
            "match",
            json!([{"uri": {"exact": "/", "prefix": "/"}}]),
            "only one of `exact`, `prefix` and `regex` may be given",
        ),
        (
            "match",
            json!([{"method": {"prefix": ""}}]),
            "prefix string match should not be empty",
        ),
        (
            "match",
            json!([{"headers": {"a b": {}}}]),
            "header name `a b` is not a valid header name",
        ),
        (
            "match",
            json!([{"headers": {"@request.auth.claims.a": {}}}]),
            "JWT claim based routing (key: @request.auth.claims.a) is only supported for gateway",
        ),
        (
            "match",
            json!([{"sourceNamespace": "a/b"}]),
            "sourceNamespace match a/b is invalid",
        ),
        (
            "match",
            json!([{"gateways": ["a/b/c"]}]),
            "invalid value for gateway name: \"b/c\"",
        ),
        (
            "rewrite",
            json!({}),
            "rewrite must specify at least one of URI, UriRegexRewrite, or authority",
        ),
        ("rewrite", json!({"authority": "a b"}), "the host is none"),
        (
            "rewrite",
            json!({"uriRegexRewrite": {"match": "(", "rewrite": "a"}}),
            "unclosed group",
        ),
        ("timeout", json!("0s"), "duration must be greater than 1ms"),
        (
            "timeout",
            json!("1500us"),
            "only durations to ms precision are supported",
        ),
        (
            "retries",
            json!({"perTryTimeout": "1s"}),
            "http retry policy configured when attempts are set to 0 (disabled)",
        ),
        (
            "retries",
            json!({"attempts": 1, "retryOn": "5xx, 503"}),
            "\" 503\" is not a valid retryOn policy",
        ),
        (
            "fault",
            json!({}),
            "HTTP fault injection must have an abort and/or a delay",
        ),
        (
            "fault",
            json!({"abort": {"grpcStatus": "NOTFOUND", "percentage": {}}}),
            "unknown gRPC status `NOTFOUND`",
        ),
        (
            "fault",
            json!({"abort": {"httpStatus": 99, "percentage": {}}}),
            "99 is out of range 200..599",
        ),
        (
            "fault",
            json!({"delay": {"fixedDelay": "1s", "percentage": {"value": 101}}}),
            "101 is out of range 0..100",
        ),
        (
            "headers",
            json!({"request": {"set": {"a": "50%"}}}),
            "single % not allowed",
        ),
        (
            "headers",
            json!({"request": {"remove": ["host"]}}),
            "invalid header \"host\": cannot set Host header",
        ),
        (
            "headers",
            json!({"request": {"add": {":path": "/"}}}),
            "invalid header \":path\": header cannot have \":\" prefix",
        ),
        (
            "headers",
            json!({"request": {"set": {"x-egress-originate": "c"}}}),
            "header `x-egress-originate` is one of this proxy's own",
        ),
        (
            "mirrors",
            json!([{"percentage": {"value": 1}}]),
            "is required",
        ),
    ] {
        let mut route = json!({"route": to()});
        route[field] = value;
        let found = of_route(route.clone());
        assert!(
            found.iter().any(|line| line.contains(told)),
            "{route}: {found:?}"
        );
        let path = format!("spec.http[0].{field}");
        assert!(found.iter().all(|line| line.contains(&path)), "{found:?}");
    }
    for (spec, told) in [
        (
            json!({"hosts": ["a.com"]}),
            "spec: http, tcp or tls must be provided in virtual service",
        ),
        (
            json!({"hosts": ["*"], "http": [{"route": to()}]}),
            "spec.hosts[0]: wildcard host * is not allowed for virtual services bound to the mesh gateway",
        ),
        (
            json!({"hosts": ["*.com", "a.com"], "http": [{"route": to()}]}),
            "spec.hosts[1]: duplicate hosts in virtual service: *.com & a.com",
        ),
        (
            json!({"gateways": ["a"], "http": [{"route": to()}]}),
            "spec.gateways: delegate virtual service must have no gateways specified",
        ),
        (
            json!({"hosts": ["a.com"], "tls": [{"match": [{"sniHosts": ["b.com"]}], "route": to()}]}),
            "spec.tls[0].match[0].sniHosts[0]: SNI host \"b.com\" is not a compatible subset of any of the virtual service hosts: [a.com]",
        ),
        (
            json!({"hosts": ["a.com"], "tls": [{"match": [{}], "route": to()}]}),
            "spec.tls[0].match[0].sniHosts: TLS match must have at least one SNI host",
        ),
        (
            json!({"hosts": ["a.com"], "tls": [{"route": to()}]}),
            "spec.tls[0].match: TLS route must have at least one match condition",
        ),
        (
            json!({"hosts": ["a.com"], "tcp": [{}]}),
            "spec.tcp[0].route: TCP route is required",
        ),
        (
            json!({"hosts": ["a.com"], "exportTo": ["~"], "http": [{"route": to()}]}),
            "spec.exportTo[0]: exportTo ~ (none) is not allowed for Istio configuration objects !",
        ),
    ] {
        assert_eq!(said(spec), [told]);
    }
    let two = json!({"route": to(), "rewrite": {"authority": "a.com"}, "headers": {"request": {"set": {"Host": "b.com"}}}});
    assert!(
        of_route(two)[0]
            .starts_with("spec.http[0].headers: authority header cannot be set multiple times")
    );
}

#[test]
fn what_is_left_out_is_told() {
    let route = json!({
        "route": to(), "mirror": {"host": "b.com"}, "corsPolicy": {"allowOrigins": [{"exact": "a"}]},
        "fault": {"abort": {"httpStatus": 400}},
    });
    assert_eq!(
        of_route(route),
        [
            "warning: spec.http[0].fault.abort.percentage: a fault without `percentage` happens to no request",
            "warning: spec.http[0].mirror: `mirror` is not supported yet",
            "warning: spec.http[0].corsPolicy: `corsPolicy` is not supported yet",
        ]
    );
}

fn takes(asked: Value, request: Request<'_>) -> bool {
    let route = read(json!({"match": [asked], "route": to()}));
    request.is_taken_by(&route.matches[0])
}

fn request(path: &'static str) -> Request<'static> {
    Request {
        method: "GET",
        path,
        authority: "Api.example.com:80",
        scheme: "http",
        headers: &[],
    }
}

#[test]
fn paths_are_matched_without_the_query() {
    for (uri, path, holds) in [
        (json!({"exact": "/a"}), "/a?b=c", true),
        (json!({"exact": "/a"}), "/A", false),
        (json!({"exact": "/a"}), "/a/", false),
        (json!({"prefix": "/v1"}), "/v10/x", true),
        (json!({"prefix": "/v1"}), "/v2", false),
        (json!({"prefix": ""}), "/v2", true),
        (json!({"regex": "/v[0-9]"}), "/v1?x", true),
        (json!({"regex": "/v[0-9]"}), "/v1/x", false),
        (json!({}), "/x", true),
    ] {
        assert_eq!(
            takes(json!({"uri": uri}), request(path)),
            holds,
            "{uri} {path}"
        );
    }
    let any_case = |uri: Value| json!({"uri": uri, "ignoreUriCase": true});
    assert!(takes(any_case(json!({"exact": "/a"})), request("/A?b")));
    assert!(takes(any_case(json!({"prefix": "/aB"})), request("/AbC")));
    // As Envoy has it, whose regular expressions say themselves whether case counts.
    assert!(!takes(any_case(json!({"regex": "/a"})), request("/A")));
}

#[test]
fn the_rest_of_a_request_is_matched_as_it_was_sent() {
    let headers = ["x-user", "X-User", "empty"].map(str::to_owned).into_iter();
    let values = ["ann", "bob", ""].map(str::to_owned);
    let headers: Vec<(String, String)> = headers.zip(values).collect();
    let request = Request {
        method: "POST",
        headers: &headers,
        ..request("/?q=1&q=2&flag&%71=3")
    };
    for (asked, holds) in [
        (json!({"method": {"exact": "POST"}}), true),
        (json!({"method": {"exact": "post"}}), false),
        (json!({"authority": {"exact": "Api.example.com:80"}}), true),
        (json!({"authority": {"exact": "api.example.com"}}), false),
        (json!({"scheme": {"exact": "https"}}), false),
        (json!({"headers": {"X-USER": {"exact": "ann,bob"}}}), true),
        (json!({"headers": {"x-user": {"exact": "ann"}}}), false),
        (json!({"headers": {"x-user": {}}}), true),
        (json!({"headers": {"x-other": {}}}), false),
        (json!({"headers": {"x-other": {"regex": ".*"}}}), false),
        (json!({"withoutHeaders": {"x-other": {}}}), true),
        (json!({"withoutHeaders": {"x-user": {}}}), false),
        (json!({"withoutHeaders": {"empty": {}}}), false),
        (
            json!({"withoutHeaders": {"x-other": {"regex": ".*"}}}),
            false,
        ),
        (json!({"withoutHeaders": {"x-other": {"exact": "a"}}}), true),
        (
            json!({"withoutHeaders": {"x-user": {"prefix": "ann"}}}),
            false,
        ),
        (json!({"queryParams": {"q": {"exact": "1"}}}), true),
        (json!({"queryParams": {"q": {"exact": "2"}}}), false),
        (json!({"queryParams": {"flag": {}}}), true),
        (json!({"queryParams": {"flag": {"exact": ""}}}), true),
        (json!({"queryParams": {"none": {}}}), false),
        // All that one match says must hold.
        (
            json!({"method": {"exact": "POST"}, "queryParams": {"none": {}}}),
            false,
        ),
    ] {
        assert_eq!(takes(asked.clone(), request), holds, "{asked}");
    }
}

#[test]
fn a_virtual_service_is_read_whole_where_it_concerns_hosts_of_the_rules() {
    let text = |host: &str| {
        format!(
            "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api}}
spec:
  hosts: [api.example.com]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: v}}
spec:
  hosts: [{host}]
  http:
  - route: [{{destination: {{host: {host}}}}}]
    timeout: 0s
"
        )
    };
    let compiled = |host: &str| {
        let source = Source {
            name: "rules.yaml".to_owned(),
            text: text(host),
            mesh: false,
        };
        compile(&[source], &CompileOptions::default())
    };
    let report = compiled("api.example.com").unwrap_err();
    assert_eq!(
        report.to_string(),
        "\
error: spec.http[0].timeout: duration must be greater than 1ms
  --> rules.yaml:16:14   (VirtualService default/v)
hint: leave it out: without it there is none
"
    );
    let other = compiled("other.example.com").unwrap();
    assert!(other.virtual_services.is_empty());
}
