//! What a route of a VirtualService does to requests, beside where it leads them.

use std::time::Duration;

use egress_policy::ShareOf;
use serde_json::{Map, Value, json};

use crate::virtual_service::{
    Abort, Fault, HeaderChanges, Headers, HttpRoute, PathRewrite, Percent, Redirect, RedirectPort,
    Retries, RouteAction, Share,
};

/// Adds what a route says; nothing of what it leaves out. Without `timeout` there is none.
pub(super) fn add(route: &HttpRoute, fields: &mut Map<String, Value>) {
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    add("timeout", route.timeout.map(|it| json!(time(it))));
    add("retries", route.retries.as_ref().map(retries));
    add("rewrite", route.rewrite.as_ref().map(rewrite));
    add("fault", fault(&route.fault));
    // A single destination's changes come behind those of the route; of several, each has its own.
    let alone = match &route.shares()[..] {
        [share] => Some(&share.headers),
        _ => None,
    };
    let all: Vec<&Headers> = [Some(&route.headers), alone]
        .into_iter()
        .flatten()
        .collect();
    add("headers", headers(&all));
    if let RouteAction::Redirect(redirect) = &route.action {
        add("redirect", Some(redirected(redirect)));
    }
}

/// Returns a destination of a route, with its part of the requests and what is changed in their headers.
pub(super) fn share(share: &ShareOf<'_>, written: Option<&Share>) -> Value {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    set("weight", json!(share.weight));
    match share.leads_to {
        Ok(cluster) => {
            set("cluster", json!(cluster.name.as_str()));
            set("port", json!(share.target.get()));
        }
        Err(reason) => {
            set("reason", json!(reason.as_str()));
        }
    }
    if let Some(rule) = share.rule {
        set("destinationRule", json!(rule.qualified()));
    }
    if let Some(name) = share.name {
        set("authority", json!(name.as_str()));
    }
    if let Some(changes) = written.and_then(|share| headers(&[&share.headers])) {
        set("headers", changes);
    }
    Value::Object(fields)
}

fn time(time: Duration) -> String {
    format!("{time:?}")
}

fn retries(retries: &Retries) -> Value {
    let mut fields = Map::from_iter([("attempts".to_owned(), json!(retries.attempts))]);
    if retries.attempts == 0 {
        return Value::Object(fields);
    }
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    set("on", json!(retries.conditions()));
    if !retries.statuses.is_empty() {
        set("statuses", json!(retries.statuses));
    }
    if let Some(limit) = retries.per_try_timeout {
        set("perTryTimeout", json!(time(limit)));
    }
    if let Some(backoff) = retries.backoff {
        set("backoff", json!(time(backoff)));
    }
    if retries.other_hosts == Some(false) {
        set("sameHosts", json!(true));
    }
    Value::Object(fields)
}

fn rewrite(rewrite: &PathRewrite) -> Value {
    match rewrite {
        PathRewrite::Prefix(to) => json!({"prefix": to}),
        PathRewrite::Regex(pattern, to) => json!({"regex": pattern.as_str(), "substitution": to}),
    }
}

fn fault(fault: &Fault) -> Option<Value> {
    let mut fields = Map::new();
    let percent = |percent: Percent| f64::from(percent.0) / 10_000.0;
    if let Some((abort, share)) = &fault.abort {
        let (kind, status) = match abort {
            Abort::Http(status) => ("httpStatus", *status),
            Abort::Grpc(status) => ("grpcStatus", u16::from(*status)),
        };
        let abort = json!({kind: status, "percent": percent(*share)});
        fields.insert("abort".to_owned(), abort);
    }
    if let Some((delay, share)) = &fault.delay {
        let delay = json!({"time": time(*delay), "percent": percent(*share)});
        fields.insert("delay".to_owned(), delay);
    }
    (!fields.is_empty()).then_some(Value::Object(fields))
}

/// Returns what is changed in headers, in the order in which Envoy does it; nothing where nothing is.
fn headers(all: &[&Headers]) -> Option<Value> {
    let of = |which: fn(&Headers) -> &HeaderChanges| {
        let each = || all.iter().map(|headers| which(headers));
        let pairs = |list: fn(&HeaderChanges) -> &[(String, String)]| {
            let pair = |(name, value): &(String, String)| json!([name, value]);
            let pairs: Vec<Value> = each().flat_map(list).map(pair).collect();
            (!pairs.is_empty()).then(|| json!(pairs))
        };
        let removed: Vec<&String> = each().flat_map(|changes| &changes.remove).collect();
        let removed = (!removed.is_empty()).then(|| json!(removed));
        let lists = [
            ("set", pairs(|changes| &changes.set)),
            ("add", pairs(|changes| &changes.add)),
            ("remove", removed),
        ];
        let given = lists.into_iter();
        let given = given.filter_map(|(name, list)| Some((name.to_owned(), list?)));
        let given: Map<String, Value> = given.collect();
        (!given.is_empty()).then_some(Value::Object(given))
    };
    let both = [
        ("request", of(|headers| &headers.request)),
        ("response", of(|headers| &headers.response)),
    ];
    let given = both.into_iter();
    let given = given.filter_map(|(name, changes)| Some((name.to_owned(), changes?)));
    let given: Map<String, Value> = given.collect();
    (!given.is_empty()).then_some(Value::Object(given))
}

fn redirected(redirect: &Redirect) -> Value {
    let port = match redirect.port {
        RedirectPort::OfTheScheme => None,
        RedirectPort::OfTheRequest => Some(json!("of the request")),
        RedirectPort::Number(number) => Some(json!(number.get())),
    };
    let text = |text: &Option<String>| text.as_ref().map(|text| json!(text));
    let all = [
        ("scheme", text(&redirect.scheme)),
        ("authority", text(&redirect.authority)),
        ("port", port),
        ("uri", text(&redirect.uri)),
        ("prefixRewrite", text(&redirect.prefix)),
    ];
    let given = all.into_iter();
    let given = given.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(given.collect())
}

/// Returns the lines for people: names, and what they say.
pub(super) fn lines(answer: &Value) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let mut line = |name: &'static str, text: Option<String>| {
        lines.extend(text.map(|text| (name, text)));
    };
    let shown = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let text = |pointer: &str| answer.pointer(pointer).map(shown);
    line("timeout", text("/timeout"));
    line("retries", answer.get("retries").map(retries_line));
    let by_prefix = text("/rewrite/prefix").map(|to| format!("what matched to {to}"));
    let by_regex = text("/rewrite/regex").zip(text("/rewrite/substitution"));
    let by_regex = by_regex.map(|(from, to)| format!("{from} to {to}"));
    line("rewrites path", by_prefix.or(by_regex));
    line("fault", answer.get("fault").map(fault_line));
    for (name, pointer) in [
        ("request headers", "/headers/request"),
        ("response headers", "/headers/response"),
    ] {
        line(name, answer.pointer(pointer).map(changes_line));
    }
    let redirect = answer.get("redirect").and_then(Value::as_object);
    let redirect = redirect.map(|fields| {
        let each = fields
            .iter()
            .map(|(name, value)| format!("{name} {}", shown(value)));
        each.collect::<Vec<_>>().join(", ")
    });
    line("redirects to", redirect);
    lines
}

fn retries_line(retries: &Value) -> String {
    let text = |name: &str| retries.get(name).map(|it| it.as_str().unwrap_or_default());
    let attempts = retries.get("attempts").and_then(Value::as_u64);
    let mut line = attempts.unwrap_or_default().to_string();
    if let Some(on) = text("on") {
        line += &format!(", on {on}");
    }
    let statuses = retries.get("statuses").and_then(Value::as_array);
    if let Some(statuses) = statuses {
        let statuses: Vec<String> = statuses.iter().map(Value::to_string).collect();
        line += &format!(" ({})", statuses.join(", "));
    }
    if let Some(time) = text("perTryTimeout") {
        line += &format!(", each at most {time}");
    }
    if let Some(time) = text("backoff") {
        line += &format!(", {time} apart at least");
    }
    if retries.get("sameHosts").is_some() {
        line += ", also on addresses that failed";
    }
    line
}

fn fault_line(fault: &Value) -> String {
    let text = |pointer: &str| {
        fault.pointer(pointer).map(|it| match it {
            Value::String(text) => text.clone(),
            // Without `.0` behind whole ones.
            number => number.as_f64().unwrap_or_default().to_string(),
        })
    };
    let http = text("/abort/httpStatus").map(|status| format!("answers {status}"));
    let grpc = text("/abort/grpcStatus").map(|status| format!("answers gRPC status {status}"));
    let of =
        |what: Option<String>, pointer: &str| Some(format!("{} for {} %", what?, text(pointer)?));
    let late = text("/delay/time").map(|time| format!("waits {time}"));
    let both = [
        of(http.or(grpc), "/abort/percent"),
        of(late, "/delay/percent"),
    ];
    both.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Returns what is changed in the headers of requests or of responses.
fn changes_line(changes: &Value) -> String {
    let list = |name: &str| {
        changes
            .get(name)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let word = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let removed = list("remove").map(|name| format!("remove {}", word(Some(name))));
    let written = ["set", "add"].into_iter().flat_map(|what| {
        list(what).map(move |pair| format!("{what} {}: {}", word(pair.get(0)), word(pair.get(1))))
    });
    removed.chain(written).collect::<Vec<_>>().join(", ")
}

/// Returns a destination in a line.
pub(super) fn share_line(share: &Value) -> String {
    let text = |name: &str| share.get(name).and_then(Value::as_str);
    let weight = share
        .get("weight")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    let way = match (text("cluster"), text("reason")) {
        (Some(cluster), _) => cluster.to_owned(),
        (None, reason) => format!("reject ({})", reason.unwrap_or_default()),
    };
    let mut line = format!("{weight} {way}");
    if let Some(authority) = text("authority") {
        line += &format!(" as {authority}");
    }
    for (whose, pointer) in [
        ("requests", "/headers/request"),
        ("responses", "/headers/response"),
    ] {
        if let Some(changes) = share.pointer(pointer) {
            line += &format!(" ({whose}: {})", changes_line(changes));
        }
    }
    line
}
