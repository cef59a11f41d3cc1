use egress_filter::AuthorityMode;
use egress_policy::{CompileOptions, MADE_OF, Proxy};
use serde_json::{Value, json};

use super::*;
use crate::compile::{Answers, compile};
use crate::document::is_ours;
use crate::explain::Question;
use crate::repairs::Answered;
use crate::source::Source;
use crate::yaml;

/// A site with HTTP and HTTPS, and TLS by a rule for the latter.
fn site(name: &str, namespace: &str) -> String {
    let meta = format!("metadata: {{name: {name}, namespace: {namespace}}}");
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
{meta}
spec:
  hosts: [{name}.example.com]
  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: https, protocol: HTTPS}}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
{meta}
spec:
  host: {name}.example.com
  trafficPolicy: {{portLevelSettings: [{{port: {{number: 443}}, tls: {{mode: SIMPLE}}}}]}}
"
    )
}

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{{name}}}\nspec: {{{spec}}}\n"
    )
}

const PARENT: &str = "{group: networking.istio.io, kind: ServiceEntry, name: api}";

/// A route of `api`, with the rest of its spec in YAML's flow style.
fn route(kind: &str, name: &str, more: &str) -> String {
    document(
        kind,
        &format!("name: {name}"),
        &format!("parentRefs: [{PARENT}], {more}"),
    )
}

/// A destination, with more of its fields.
fn to(host: &str, more: &str) -> String {
    format!(
        "{{group: networking.istio.io, kind: Hostname, name: {host}.example.com, port: 443{more}}}"
    )
}

fn sites() -> String {
    // Nobody speaks TLS to the second by himself.
    let other = site("other", "default").replace("protocol: HTTPS", "protocol: HTTP");
    site("api", "default") + &other
}

/// Returns what is made of documents.
fn made(text: &str) -> Vec<Value> {
    let documents = yaml::read(text, is_ours).unwrap();
    let made = convert(documents.iter().map(|document| &document.value));
    assert_eq!(made.problems, []);
    made.documents
}

/// Returns the only route of requests that is made of a rule.
fn rule(rule: &str) -> Value {
    let text = sites() + &route("HTTPRoute", "r", &format!("rules: [{{{rule}}}]"));
    let mut rule = made(&text).remove(0)["spec"]["http"][0].take();
    let fields = rule.as_object_mut().unwrap();
    assert_eq!(fields.remove("name"), Some(json!("default/r/rules[0]")));
    rule
}

fn sources(text: &str) -> [Source; 1] {
    [Source {
        name: "rules.yaml".to_owned(),
        text: text.to_owned(),
        mesh: false,
    }]
}

fn of(namespace: &str) -> CompileOptions {
    CompileOptions {
        proxy: Proxy {
            namespace: namespace.to_owned(),
            ..Proxy::default()
        },
        ..CompileOptions::default()
    }
}

/// Returns what is said of rules, without what is said of the DestinationRules.
fn said(text: &str) -> Vec<String> {
    let all = match compile(&sources(text), &CompileOptions::default()) {
        Ok(rules) => rules.warnings,
        Err(report) => report,
    };
    let own = all.0.iter().filter(|it| !it.path.contains("trafficPolicy"));
    let line = |it: &crate::diagnostic::Diagnostic| {
        let resource = it.resource.as_deref().unwrap_or_default();
        format!(
            "{} {}: {} ({resource})",
            it.severity.as_str(),
            it.path,
            it.what
        )
    };
    own.map(line).collect()
}

/// Returns what is said of rules with one more route, if it is the only thing and has a hint.
fn said_of(kind: &str, more: &str) -> String {
    let text = sites() + &route(kind, "r", more);
    let found = said(&text);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().unwrap()
}

/// Returns what becomes of a request of a namespace: what it does, by which route, and where it goes.
fn becomes(text: &str, namespace: &str, url: &str, headers: &[(&str, &str)]) -> String {
    let options = of(namespace);
    let answers = Answers::compile(&sources(text), &options, yaml::in_turn).unwrap();
    let headers: Vec<(String, String)> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let question = Question {
        url,
        sni: None,
        subset: None,
        authority: AuthorityMode::Rewrite,
        method: "GET",
        headers: &headers,
        answered: Answered::default(),
    };
    let found = answers.explain(&question, &options).unwrap();
    let text = |name: &str| match &found.to_json()[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(all) => {
            let all = all.iter().filter_map(Value::as_str);
            all.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    let all = [
        text("action"),
        text("reason"),
        text("gatewayRoute"),
        text("endpoints"),
        text("shares"),
    ];
    let all: Vec<String> = all.into_iter().filter(|text| !text.is_empty()).collect();
    all.join(" ")
}

#[test]
fn what_a_rule_says_a_virtual_service_says() {
    let lead = json!([{"destination": {"host": "api.example.com", "port": {"number": 443}}}]);
    let backend = format!("backendRefs: [{}]", to("api", ""));
    let with = |more: &str, mut wanted: Value| {
        if wanted.get("redirect").is_none() && wanted.get("route").is_none() {
            wanted["route"] = lead.clone();
        }
        let rest = if more.contains("RequestRedirect") {
            ""
        } else {
            &backend
        };
        assert_eq!(rule(&format!("{more}, {rest}")), wanted, "{more}");
    };
    with("name: any", json!({}));
    with(
        "matches: [{path: {type: Exact, value: /a/}}]",
        json!({"match": [{"uri": {"exact": "/a/"}}]}),
    );
    with(
        "matches: [{path: {value: /a/}}]",
        json!({"match": [{"uri": {"prefix": "/a"}}]}),
    );
    with("matches: [{path: {type: PathPrefix, value: /}}]", json!({}));
    with(
        "matches: [{path: {type: RegularExpression, value: '/v[0-9]+'}, method: POST}]",
        json!({"match": [{"uri": {"regex": "/v[0-9]+"}, "method": {"exact": "POST"}}]}),
    );
    with(
        "matches: [{headers: [{name: X-A, value: b}, {name: c, type: RegularExpression, value: 'd.*'}], queryParams: [{name: q, value: '1'}]}]",
        json!({"match": [{"headers": {"X-A": {"exact": "b"}, "c": {"regex": "d.*"}}, "queryParams": {"q": {"exact": "1"}}}]}),
    );
    with(
        "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}, {name: a, value: later}], add: [{name: c, value: d}], remove: [e]}},
                   {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [f]}}]",
        json!({"headers": {"request": {"set": {"a": "b"}, "add": {"c": "d"}, "remove": ["e"]}, "response": {"remove": ["f"]}}}),
    );
    let rewrite = |more: &str| format!("filters: [{{type: URLRewrite, urlRewrite: {{{more}}}}}]");
    with(
        &rewrite("hostname: told.example.com"),
        json!({"rewrite": {"authority": "told.example.com"}}),
    );
    with(
        &rewrite("path: {type: ReplaceFullPath, replaceFullPath: /x}"),
        json!({"rewrite": {"uriRegexRewrite": {"match": "/.*", "rewrite": "/x"}}}),
    );
    for (path, prefix, wanted) in [
        ("/a.b", "/c", json!({"uri": "/c"})),
        ("/a.b", "/c/", json!({"uri": "/c"})),
        ("/", "/c", json!({"uri": "/c/"})),
        (
            "/a.b",
            "/",
            json!({"uriRegexRewrite": {"match": "^/a\\.b(/?)(.*)", "rewrite": "/\\2"}}),
        ),
        (
            "/",
            "/",
            json!({"uriRegexRewrite": {"match": "^(/?)(.*)", "rewrite": "/\\2"}}),
        ),
    ] {
        let rewrite = rewrite(&format!(
            "path: {{type: ReplacePrefixMatch, replacePrefixMatch: {prefix}}}"
        ));
        let found = rule(&format!(
            "matches: [{{path: {{value: {path}}}}}], {rewrite}, {backend}"
        ));
        assert_eq!(found["rewrite"], wanted, "{path} {prefix}");
    }
    let redirect =
        |more: &str| format!("filters: [{{type: RequestRedirect, requestRedirect: {{{more}}}}}]");
    with(
        &redirect("scheme: https"),
        json!({"redirect": {"scheme": "https", "derivePort": "FROM_PROTOCOL_DEFAULT", "redirectCode": 302}}),
    );
    with(
        &redirect(
            "hostname: www.example.com, statusCode: 308, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}",
        ),
        json!({"redirect": {"authority": "www.example.com", "derivePort": "FROM_REQUEST_PORT", "redirectCode": 308, "prefixRewrite": "/new/"}}),
    );
    with(
        &redirect("port: 8443, path: {type: ReplaceFullPath, replaceFullPath: /x}"),
        json!({"redirect": {"port": 8443, "redirectCode": 302, "uri": "/x"}}),
    );
    with(
        "timeouts: {request: 1m500ms}",
        json!({"timeout": "60500ms"}),
    );
    with(
        "timeouts: {request: 10s, backendRequest: 2s}",
        json!({"timeout": "2000ms"}),
    );
    with("timeouts: {request: 0s}", json!({}));
    let on = "connect-failure,refused-stream,unavailable,cancelled";
    with(
        "retry: {codes: [503], backoff: 25ms}, timeouts: {request: 10s, backendRequest: 2s}",
        json!({"timeout": "10000ms", "retries": {"attempts": 2, "retryOn": format!("{on},503"), "backoff": "25ms", "perTryTimeout": "2000ms"}}),
    );
    with(
        "retry: {attempts: 0, codes: [503]}",
        json!({"retries": {"attempts": 0}}),
    );
}

#[test]
fn destinations_have_shares_and_headers_of_their_own() {
    let changed = ", weight: 3, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}]";
    let three = [
        to("api", ""),
        to("other", changed),
        to("api", ", weight: 0"),
        "{name: inside, port: 8080, namespace: elsewhere}".to_owned(),
    ];
    let found = rule(&format!("backendRefs: [{}]", three.join(", ")));
    let host = |host: &str, port: u16| json!({"host": host, "port": {"number": port}});
    assert_eq!(
        found["route"],
        json!([
            {"destination": host("api.example.com", 443), "weight": 1},
            {"destination": host("other.example.com", 443), "weight": 3, "headers": {"request": {"set": {"a": "b"}}}},
            {"destination": host("inside.elsewhere.svc.cluster.local", 8080), "weight": 1},
        ])
    );
    for none in ["[]".to_owned(), format!("[{}]", to("api", ", weight: 0"))] {
        let text = sites()
            + &route(
                "HTTPRoute",
                "r",
                &format!("rules: [{{backendRefs: {none}}}]"),
            );
        assert_eq!(
            becomes(&text, "default", "http://api.example.com/", &[]),
            "respond HTTPRoute default/r"
        );
        let found = said(&text);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].contains("rules[0].backendRefs: a rule without a backend"),
            "{found:?}"
        );
    }
}

#[test]
fn the_most_specific_rule_comes_first_whichever_route_has_it() {
    let lead = |name: &str, found: &[&str]| {
        let rules = found
            .iter()
            .map(|found| format!("{{matches: [{found}], backendRefs: [{}]}}", to(name, "")));
        format!("rules: [{}]", rules.collect::<Vec<_>>().join(", "))
    };
    let one = [
        "{path: {type: RegularExpression, value: '/a/b/c/d.*'}}",
        "{}",
        "{path: {value: /a}}, {path: {type: Exact, value: /a}}",
        "{path: {value: /a}, headers: [{name: h, value: v}]}",
        "{path: {value: /a}, method: GET}",
    ];
    let two = [
        "{path: {value: /a}, queryParams: [{name: q, value: v}]}",
        "{path: {value: /a/b}}",
        "{path: {value: /a}, headers: [{name: h, value: v}, {name: i, value: v}]}",
    ];
    let text = sites()
        + &route("HTTPRoute", "one", &lead("api", &one))
        + &route("HTTPRoute", "two", &lead("other", &two))
        + &route(
            "GRPCRoute",
            "calls",
            &format!(
                "rules: [{{matches: [{{method: {{service: s.S, method: M}}}}, {{method: {{service: s.S}}}}], backendRefs: [{}]}}]",
                to("api", "")
            ),
        );
    let made = made(&text);
    assert_eq!(made.len(), 1, "{made:#?}");
    assert_eq!(
        made[0]["metadata"]["annotations"],
        json!({MADE_OF: "GRPCRoute"})
    );
    let rules = made[0]["spec"]["http"].as_array().unwrap().iter();
    let names: Vec<&str> = rules.map(|rule| rule["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "default/calls/grpc/rules[0].matches[0]",
            "default/one/rules[2].matches[1]",
            "default/calls/grpc/rules[0].matches[1]",
            "default/two/rules[1]",
            "default/one/rules[4]",
            "default/two/rules[2]",
            "default/one/rules[3]",
            "default/two/rules[0]",
            "default/one/rules[2].matches[0]",
            "default/one/rules[1]",
            "default/one/rules[0]",
        ]
    );
    let becomes = |path: &str, headers: &[(&str, &str)]| {
        becomes(
            &text,
            "default",
            &format!("http://api.example.com{path}"),
            headers,
        )
    };
    let two = "originate HTTPRoute default/two other.example.com:443";
    let one = "originate HTTPRoute default/one api.example.com:443";
    assert_eq!(becomes("/a/b/c", &[]), two);
    assert_eq!(becomes("/a/bc", &[]), one);
    assert_eq!(becomes("/x", &[]), one);
    assert_eq!(
        becomes("/s.S/M", &[]),
        "originate GRPCRoute default/calls api.example.com:443"
    );
}

#[test]
fn a_path_is_divided_at_its_slashes() {
    let text = sites()
        + &route(
            "HTTPRoute",
            "r",
            &format!(
                "rules: [{{matches: [{{path: {{value: /foo}}}}], backendRefs: [{}]}}]",
                to("api", "")
            ),
        );
    for (path, found) in [
        ("/foo", true),
        ("/foo/", true),
        ("/foo/a?b", true),
        ("/foo?a", true),
        ("/foobar", false),
        ("/fo", false),
        ("/", false),
    ] {
        let wanted = match found {
            true => "originate HTTPRoute default/r api.example.com:443",
            false => "reject no_route HTTPRoute default/r",
        };
        let url = format!("http://api.example.com{path}");
        assert_eq!(becomes(&text, "default", &url, &[]), wanted, "{path}");
    }
}

/// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `buildSidecarVirtualHostsForVirtualService`.
#[test]
fn who_sees_a_route_depends_on_its_namespace() {
    let sites = site("api", "shared") + &site("other", "shared");
    let of = |namespace: &str, host: &str| {
        let parent =
            "{group: networking.istio.io, kind: ServiceEntry, name: api, namespace: shared}";
        let spec = format!(
            "parentRefs: [{parent}], rules: [{{backendRefs: [{}]}}]",
            to(host, "")
        );
        document(
            "HTTPRoute",
            &format!("name: r, namespace: {namespace}"),
            &spec,
        )
    };
    let asked =
        |text: &str, namespace: &str| becomes(text, namespace, "http://api.example.com/", &[]);
    // For callers of its own namespace, and only for these, a route goes before that of the entry's.
    let text = sites.clone() + &of("shared", "api") + &of("app", "other");
    let own = "originate HTTPRoute app/r other.example.com:443";
    let producers = "originate HTTPRoute shared/r api.example.com:443";
    assert_eq!(asked(&text, "app"), own);
    assert_eq!(asked(&text, "third"), producers);
    // Without another route its own way counts for others.
    let text = sites.clone() + &of("app", "api");
    assert_eq!(
        asked(&text, "app"),
        "originate HTTPRoute app/r api.example.com:443"
    );
    assert_eq!(asked(&text, "third"), "forward api.example.com:80");

    // An older VirtualService goes before a route of another namespace, and not before one of the caller's own.
    let service = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: shared, creationTimestamp: '2024-01-01T00:00:00Z'}
spec: {hosts: [api.example.com], http: [{route: [{destination: {host: other.example.com, port: {number: 443}}}]}]}
";
    let aged = |text: String| {
        text.replace(
            "namespace: shared}\nspec: {parentRefs",
            "namespace: shared, creationTimestamp: '2025-01-01T00:00:00Z'}\nspec: {parentRefs",
        )
    };
    let text = sites.clone() + service + &aged(of("shared", "api"));
    assert_eq!(asked(&text, "third"), "originate other.example.com:443");
    assert_eq!(asked(&text, "shared"), producers);
}

#[test]
fn a_port_of_the_parent_is_the_port_that_is_called() {
    let with = |port: &str, host: &str, name: &str| {
        let parent = PARENT.replace('}', &format!(", port: {port}}}"));
        document(
            "HTTPRoute",
            &format!("name: {name}"),
            &format!(
                "parentRefs: [{parent}], rules: [{{backendRefs: [{}]}}]",
                to(host, "")
            ),
        )
    };
    let made = made(&(sites() + &with("80", "other", "r")));
    assert_eq!(made[0]["metadata"]["name"], "default.80.api.example.com");
    assert_eq!(made[0]["spec"]["http"][0]["match"], json!([{"port": 80}]));
    let found = said(&(sites() + &with("81", "other", "r")));
    assert_eq!(
        found,
        [
            "error spec.parentRefs[0].port: the ServiceEntry has no port 81: no request would take the route (HTTPRoute default/r)"
        ]
    );
    // Of two routes, one for the port and one for all, one alone has the host: they are not merged.
    let text = sites()
        + &route(
            "HTTPRoute",
            "all",
            &format!("rules: [{{backendRefs: [{}]}}]", to("api", "")),
        )
        + &with("80", "other", "one");
    assert_eq!(
        becomes(&text, "default", "http://api.example.com/", &[]),
        "originate HTTPRoute default/one other.example.com:443"
    );
}

#[test]
fn mistakes_are_told_at_the_route() {
    let lead = to("api", "");
    let rule = |rule: &str| format!("rules: [{{{rule}, backendRefs: [{lead}]}}]");
    for (kind, more, wanted) in [
        (
            "HTTPRoute",
            rule("matchs: []"),
            "error spec.rules[0].matchs: unknown field `matchs`",
        ),
        (
            "HTTPRoute",
            rule("matches: [{path: {type: Prefix, value: /}}]"),
            "error spec.rules[0].matches[0].path.type: unknown type `Prefix`",
        ),
        (
            "HTTPRoute",
            rule("matches: [{path: {value: a}}]"),
            "error spec.rules[0].matches[0].path.value: `a` is no path",
        ),
        (
            "HTTPRoute",
            rule("matches: [{path: {type: RegularExpression, value: '('}}]"),
            "error spec.rules[0].matches[0]: ",
        ),
        (
            "HTTPRoute",
            rule("matches: [{headers: [{name: a, value: b}, {name: a, value: c}]}]"),
            "error spec.rules[0].matches[0].headers[1]: header `a` is asked for twice",
        ),
        (
            "HTTPRoute",
            rule("matches: [{method: get}]"),
            "error spec.rules[0].matches[0].method: unknown method `get`",
        ),
        (
            "HTTPRoute",
            rule("filters: [{type: ExtensionRef, extensionRef: {group: g, kind: k, name: n}}]"),
            "error spec.rules[0].filters[0].type: a filter `ExtensionRef` here is not supported yet",
        ),
        (
            "HTTPRoute",
            rule("filters: [{type: URLRewrit}]"),
            "error spec.rules[0].filters[0].type: unknown type of filter `URLRewrit`",
        ),
        (
            "HTTPRoute",
            rule("filters: [{type: URLRewrite, urlRewrite: {hostname: 'a b'}}]"),
            "error spec.rules[0].filters[0].urlRewrite.hostname: ",
        ),
        (
            "HTTPRoute",
            rule(
                "matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
            ),
            "error spec.rules[0].filters: `ReplacePrefixMatch` asks for a match by `PathPrefix`",
        ),
        (
            "HTTPRoute",
            rule(
                "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-egress-originate, value: a}]}}]",
            ),
            "error spec.rules[0].filters: header `x-egress-originate` is one of this proxy's own",
        ),
        (
            "HTTPRoute",
            rule(
                "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}}}]",
            ),
            "warning spec.rules[0].filters[0].requestMirror: `requestMirror` is not supported yet",
        ),
        (
            "HTTPRoute",
            rule("filters: [{type: CORS, cors: {allowOrigins: ['*']}}]"),
            "warning spec.rules[0].filters[0].cors: `cors` is not supported yet",
        ),
        (
            "HTTPRoute",
            rule("filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]"),
            "error spec.rules[0].backendRefs: a rule cannot both redirect",
        ),
        (
            "HTTPRoute",
            rule("timeouts: {request: 1.5s}"),
            "error spec.rules[0].timeouts.request: `1.5s` is no duration of the Gateway API",
        ),
        (
            "HTTPRoute",
            rule("retry: {codes: [599]}"),
            "error spec.rules[0].retry: \"599\" is not a valid retryOn policy",
        ),
        (
            "HTTPRoute",
            "hostnames: [api.example.com], ".to_owned() + &rule("name: a"),
            "warning spec.hostnames: `hostnames` says nothing",
        ),
        (
            "HTTPRoute",
            "rules: [{backendRefs: [{kind: Hostname, name: api.example.com, port: 443}]}]"
                .to_owned(),
            "error spec.rules[0].backendRefs[0].group: there is no `Hostname` in the group ``",
        ),
        (
            "HTTPRoute",
            "rules: [{backendRefs: [{name: api.example.com, port: 443}]}]".to_owned(),
            "error spec.rules[0].backendRefs[0].name: `api.example.com` is no name of a Service",
        ),
        (
            "HTTPRoute",
            "rules: [{backendRefs: [{name: a}]}]".to_owned(),
            "error spec.rules[0].backendRefs[0].port: is required",
        ),
        (
            "HTTPRoute",
            format!(
                "rules: [{{backendRefs: [{}]}}]",
                to("api", ", namespace: a")
            ),
            "error spec.rules[0].backendRefs[0].namespace: a `Hostname` has no namespace",
        ),
        (
            "HTTPRoute",
            "rules: [{backendRefs: [{group: x, kind: Backend, name: a, port: 1}]}]".to_owned(),
            "error spec.rules[0].backendRefs[0].kind: a backend of kind `Backend` is not supported yet",
        ),
        (
            "HTTPRoute",
            "rules: [{backendRefs: [{name: a, port: 443}]}]".to_owned(),
            "warning spec.rules[0]: it leads port 80 of `api.example.com` to `a.default.svc.cluster.local:443`",
        ),
        (
            "GRPCRoute",
            rule("matches: [{method: {}}]"),
            "error spec.rules[0].matches[0].method: a call has a service, a method or both",
        ),
        (
            "GRPCRoute",
            rule("timeouts: {request: 1s}"),
            "error spec.rules[0].timeouts: unknown field `timeouts`",
        ),
        (
            "TLSRoute",
            "hostnames: [b.example.com], ".to_owned() + &rule("name: a"),
            "error spec.hostnames: no host of the parent is among these",
        ),
        (
            "TCPRoute",
            "hostnames: [api.example.com], ".to_owned() + &rule("name: a"),
            "error spec.hostnames: unknown field `hostnames`",
        ),
    ] {
        let found = said_of(kind, &more);
        assert!(found.starts_with(wanted), "{found}\n{wanted}");
        assert!(found.ends_with(&format!("({kind} default/r)")), "{found}");
    }
}

#[test]
fn parents_are_what_istio_takes() {
    let with = |parent: &str| {
        let spec = format!(
            "parentRefs: [{parent}], rules: [{{backendRefs: [{}]}}]",
            to("api", "")
        );
        said(&(sites() + &document("HTTPRoute", "name: r", &spec)))
    };
    for (parent, wanted) in [
        (
            "{kind: ServiceEntry, name: api}",
            "error spec.parentRefs[0].group: there is no `ServiceEntry` in the group `gateway.networking.k8s.io`",
        ),
        (
            "{group: networking.istio.io, kind: Hostname, name: api.example.com}",
            "error spec.parentRefs[0].kind: Istio takes no `Hostname` as a parent",
        ),
        (
            "{group: networking.istio.io, kind: ServiceEntry, name: apl}",
            "error spec.parentRefs[0]: no ServiceEntry `default/apl` is here",
        ),
        (
            "{group: networking.istio.io, kind: ServiceEntry, name: api, sectionName: http}",
            "warning spec.parentRefs[0].sectionName: `sectionName` says nothing",
        ),
    ] {
        let found = with(parent);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with(wanted), "{found:?}");
    }
    // What is for others is left alone, whatever stands in it.
    for parent in [
        "{group: '', kind: Service, name: shop}",
        "{group: a, kind: B, name: c}",
    ] {
        assert_eq!(with(&format!("{parent}], foo: [")), [""; 0], "{parent}");
    }
    let wild = sites()
        .replace("[api.example.com]", "[\"*.example.com\"]")
        .replace("resolution: DNS", "resolution: DYNAMIC_DNS");
    let found = said(
        &(wild
            + &route(
                "HTTPRoute",
                "r",
                &format!("rules: [{{backendRefs: [{}]}}]", to("api", "")),
            )),
    );
    let told = |it: &String| {
        it.starts_with("error spec.parentRefs[0].name: no sidecar of Istio carries out a HTTPRoute")
    };
    assert!(found.iter().any(told), "{found:?}");
}

#[test]
fn versions_are_those_of_a_cluster() {
    let of = |kind: &str, version: &str| {
        let more = format!("rules: [{{backendRefs: [{}]}}]", to("api", ""));
        let text = sites() + &route(kind, "r", &more);
        said(&text.replace(
            "gateway.networking.k8s.io/v1",
            &format!("gateway.networking.k8s.io/{version}"),
        ))
    };
    for (kind, version) in [
        ("HTTPRoute", "v1beta1"),
        ("GRPCRoute", "v1alpha2"),
        ("TLSRoute", "v1alpha3"),
        ("TCPRoute", "v1alpha2"),
    ] {
        assert_eq!(of(kind, version), [""; 0], "{kind} {version}");
    }
    let found = of("HTTPRoute", "v2");
    assert_eq!(
        found,
        ["error apiVersion: a HTTPRoute of version `v2` is not known (HTTPRoute default/r)"]
    );
}

#[test]
fn routes_of_connections_lead_by_name_and_by_port() {
    let more = |names: &str| format!("{names}rules: [{{backendRefs: [{}]}}]", to("other", ""));
    let found = |kind: &str, names: &str| {
        made(&(sites() + &route(kind, "r", &more(names)))).remove(0)["spec"].take()
    };
    let led = json!([{"destination": {"host": "other.example.com", "port": {"number": 443}}}]);
    assert_eq!(
        found(
            "TLSRoute",
            "hostnames: ['*.example.com', www.example.org], "
        ),
        json!({"hosts": ["api.example.com"], "tls": [{"match": [{"sniHosts": ["api.example.com"]}], "route": led}]})
    );
    assert_eq!(
        found("TLSRoute", "")["tls"][0]["match"],
        json!([{"sniHosts": ["api.example.com"]}])
    );
    assert_eq!(
        found("TCPRoute", ""),
        json!({"hosts": ["api.example.com"], "tcp": [{"route": led}]})
    );
    let text =
        sites().replace("mode: SIMPLE", "mode: DISABLE") + &route("TLSRoute", "r", &more(""));
    assert_eq!(
        becomes(&text, "default", "https://api.example.com/", &[]),
        "passthrough TLSRoute default/r other.example.com:443"
    );
    let both = format!(
        "rules: [{{backendRefs: [{}, {}]}}]",
        to("api", ""),
        to("other", ", weight: 3")
    );
    let text = sites().replace("mode: SIMPLE", "mode: DISABLE") + &route("TLSRoute", "r", &both);
    let answers = Answers::compile(&sources(&text), &of("default"), yaml::in_turn).unwrap();
    let question = Question {
        url: "https://api.example.com/",
        sni: None,
        subset: None,
        authority: AuthorityMode::Rewrite,
        method: "GET",
        headers: &[],
        answered: Answered::default(),
    };
    let found = answers.explain(&question, &of("default")).unwrap();
    assert_eq!(
        found.to_json()["shares"],
        json!([
            {"weight": 1, "cluster": "outbound|443||api.example.com", "port": 443, "destinationRule": "default/api"},
            {"weight": 3, "cluster": "outbound|443||other.example.com", "port": 443, "destinationRule": "default/other"},
        ])
    );
}

/// The mesh's half, a Gateway and its half, with fields of the listener.
fn through(listener: &str, class: &str) -> String {
    let gateway = format!(
        "gatewayClassName: {class}, listeners: [{{name: http, hostname: api.example.com, port: 80, {listener}}}]"
    );
    let half = format!(
        "parentRefs: [{{name: egress, namespace: gw}}], hostnames: [api.example.com], rules: [{{backendRefs: [{}]}}]",
        to("api", "")
    );
    sites()
        + &route(
            "HTTPRoute",
            "mesh",
            "rules: [{backendRefs: [{name: egress-istio, namespace: gw, port: 80}]}]",
        )
        + &document("Gateway", "name: egress, namespace: gw", &gateway)
        + &document("HTTPRoute", "name: half", &half)
}

#[test]
fn the_way_through_a_gateway_is_followed() {
    let asked = |text: &str| becomes(text, "default", "http://api.example.com/", &[]);
    let all = "protocol: HTTP, allowedRoutes: {namespaces: {from: All}}";
    let text = through(all, "istio");
    assert_eq!(
        asked(&text),
        "originate HTTPRoute default/mesh api.example.com:443"
    );
    assert_eq!(said(&text), [""; 0]);
    let made = made(&text);
    let gateway = made.iter().find(|made| made["kind"] == "Gateway").unwrap();
    assert_eq!(
        gateway["metadata"],
        json!({"name": "egress-http", "namespace": "gw", "annotations": {"internal.istio.io/gateway-service": "egress-istio.gw.svc.cluster.local"}})
    );
    assert_eq!(
        gateway["spec"],
        json!({"selector": {"gateway.networking.k8s.io/gateway-name": "egress"},
            "servers": [{"port": {"number": 80, "name": "default", "protocol": "HTTP"}, "hosts": ["*/api.example.com"]}]})
    );
    let mutual = "protocol: HTTPS, allowedRoutes: {namespaces: {from: All}}, tls: {mode: Terminate, options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}";
    assert_eq!(
        asked(&through(mutual, "istio")),
        "originate HTTPRoute default/mesh api.example.com:443"
    );
    // A class of somebody else's that Istio carries out.
    let class = document(
        "GatewayClass",
        "name: ours",
        "controllerName: istio.io/gateway-controller",
    );
    let text = (through(all, "ours") + &class).replace("egress-istio", "egress-ours");
    assert_eq!(
        asked(&text),
        "originate HTTPRoute default/mesh api.example.com:443"
    );
}

#[test]
fn what_a_gateway_does_not_let_through_goes_nowhere() {
    let asked = |text: &str| becomes(text, "default", "http://api.example.com/", &[]);
    let all = "protocol: HTTP, allowedRoutes: {namespaces: {from: All}}";
    // The listener takes routes of its own namespace only, of other kinds, or for another host.
    for listener in [
        "protocol: HTTP",
        "protocol: HTTP, allowedRoutes: {namespaces: {from: All}, kinds: [{kind: GRPCRoute}]}",
        "protocol: TCP, allowedRoutes: {namespaces: {from: All}}",
        "protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: else}}}}",
    ] {
        let found = asked(&through(listener, "istio"));
        assert!(found.starts_with("reject "), "{listener}: {found}");
    }
    let found = asked(&through(all, "istio").replace("port: 80, protocol", "port: 81, protocol"));
    assert!(found.starts_with("reject "), "{found}");
    // The Service of another Gateway is not this one's.
    let text = through(all, "istio").replace("egress-istio", "ingress-istio");
    assert_eq!(
        asked(&text),
        "reject unknown_destination HTTPRoute default/mesh"
    );
    let found = said(&through(all, "nginx"));
    assert!(
        found.iter().any(|it| it
            .starts_with("warning spec.gatewayClassName: the class `nginx` is none of Istio's")
            && it.ends_with("(Gateway gw/egress)")),
        "{found:#?}"
    );
    let tls = "protocol: HTTPS, allowedRoutes: {namespaces: {from: All}}, tls: {certificateRefs: [{name: a}]}";
    let found = said(&through(tls, "istio"));
    assert!(
        found
            .iter()
            .any(|it| it.starts_with("error spec.rules[0]: it leads port 80")
                && it.ends_with("(HTTPRoute default/mesh)")),
        "{found:#?}"
    );
    let found = said(&through("protocol: HTPP", "istio"));
    assert_eq!(
        found,
        ["error spec.listeners[0].protocol: unknown protocol `HTPP` (Gateway gw/egress)"]
    );
}

#[test]
fn a_gateways_route_leads_to_other_namespaces_by_a_grant() {
    let all = "protocol: HTTP, allowedRoutes: {namespaces: {from: All}}";
    let text = through(all, "istio").replace(
        &format!(
            "hostnames: [api.example.com], rules: [{{backendRefs: [{}]}}]",
            to("api", "")
        ),
        &format!(
            "rules: [{{backendRefs: [{}, {{name: s, namespace: b, port: 80}}]}}]",
            to("api", "")
        ),
    );
    let found = said(&text);
    assert!(found[0].starts_with("error spec.rules[0].backendRefs[1]: no ReferenceGrant of `b` lets a HTTPRoute of `default`"), "{found:#?}");
    let grant = document(
        "ReferenceGrant",
        "name: g, namespace: b",
        "from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}], to: [{group: '', kind: Service, name: s}]",
    );
    let found = said(&(text + &grant));
    assert!(
        !found.iter().any(|it| it.contains("ReferenceGrant")),
        "{found:#?}"
    );
}

#[test]
fn the_filter_is_given_what_was_made() {
    let text = sites()
        + &route(
            "HTTPRoute",
            "r",
            &format!("rules: [{{backendRefs: [{}]}}]", to("api", "")),
        )
        + &document(
            "HTTPRoute",
            "name: ingress",
            "parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}]}]",
        );
    let mut rules = compile(&sources(&text), &CompileOptions::default()).unwrap();
    let given = rules.resources();
    let kinds: Vec<&str> = given.iter().filter_map(|it| it["kind"].as_str()).collect();
    assert_eq!(
        kinds.iter().filter(|kind| kind.ends_with("Route")).count(),
        0,
        "{kinds:?}"
    );
    assert_eq!(
        kinds
            .iter()
            .filter(|kind| **kind == "VirtualService")
            .count(),
        1,
        "{kinds:?}"
    );
    let mut parser = egress_policy::Parser::new();
    for resource in &given {
        parser.document(resource);
    }
    let (resources, problems) = parser.finish();
    assert_eq!(problems.0, []);
    let (table, _) =
        egress_policy::PolicyTable::compile(&resources, &CompileOptions::default()).unwrap();
    assert_eq!(table.digest(), rules.table.digest());
    assert_eq!(rules.take_resources(), given);
}

#[test]
fn both_halves_of_a_way_divide_paths_at_slashes() {
    let all = "protocol: HTTP, allowedRoutes: {namespaces: {from: All}}";
    let with = |first: &str, second: &str| {
        let text = through(all, "istio");
        let text = text.replace(
            "rules: [{backendRefs: [{name: egress",
            &format!(
                "rules: [{{matches: [{{path: {{value: {first}}}}}], backendRefs: [{{name: egress"
            ),
        );
        let half = format!("rules: [{{backendRefs: [{}", to("api", ""));
        text.replace(
            &half,
            &format!(
                "rules: [{{matches: [{{path: {{value: {second}}}}}], backendRefs: [{}",
                to("api", "")
            ),
        )
    };
    for (first, second, path, taken) in [
        ("/foo", "/foo", "/foo/x", true),
        ("/foo", "/foo/x", "/foo/x", true),
        ("/foo", "/foo/x", "/foo/y", false),
        ("/foo/x", "/foo", "/foo/x/y", true),
        ("/foo", "/foobar", "/foobar", false),
        ("/foo", "/foobar", "/foo", false),
    ] {
        let url = format!("http://api.example.com{path}");
        let found = becomes(&with(first, second), "default", &url, &[]);
        assert_eq!(
            found.starts_with("originate "),
            taken,
            "{first} {second} {path}: {found}"
        );
    }
}
