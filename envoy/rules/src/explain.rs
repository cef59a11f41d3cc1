//! What happens to a request, and why.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use egress_filter::{AuthorityMode, contract};
use egress_policy::{
    Action, Answer, Authority, Branch, BranchOf, Branching, Candidate, Cluster, CompileOptions,
    Connection, Decision, DownstreamProtocol, Endpoints, Identity, NameSource, Notes, PolicyTable,
    PortNumber, Proxy, Query, Reason, ResourceId, Service, Sni, Spoken, TlsIntent, Trust,
    UpstreamProtocol, candidates,
};
use serde_json::{Value, json};

use crate::compile::{Answers, Rules};
use crate::complaint::{Complaint, Refusal};
use crate::legacy;
use crate::offer::{Offer, TlsVersion};
use crate::repairs::{self, Answered, Came};
use crate::virtual_service::{HttpRoute, Request, normalized, virtual_service};

mod settings;

/// What somebody asks about the rules.
#[derive(Debug, Clone, Copy)]
pub struct Question<'q> {
    /// A URL, or a host and a port.
    pub url: &'q str,
    /// The server name that the application's own TLS would ask for, where it is not the host.
    pub sni: Option<&'q str>,
    /// The subset that is asked for.
    pub subset: Option<&'q str>,
    /// What upstream is told in `:authority`.
    pub authority: AuthorityMode,
    /// The method of the request.
    pub method: &'q str,
    /// The headers of the request.
    pub headers: &'q [(String, String)],
    /// What is asked about the answer.
    pub answered: Answered<'q>,
}

/// The decision about one host and port, with all that led to it.
#[derive(Debug)]
pub struct Explanation {
    answer: Value,
    reason: Option<String>,
}

impl Explanation {
    /// Returns the answer for programs.
    pub fn to_json(&self) -> &Value {
        &self.answer
    }
}

/// Writes the same answer for people, so that the two cannot differ.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&for_people(&self.answer, self.reason.clone()))
    }
}

impl Answers {
    /// Returns the name of the branch that Envoy would choose for a request.
    fn branch(&self, query: &Query<'_>, asked: &Asked, question: &Question<'_>) -> Option<String> {
        let table = &self.rules.table;
        let mut branching: Vec<Branching<'_>> = table
            .branching()
            .filter(|it| it.port == query.port && it.host.matches(query.host))
            .collect();
        branching.sort_by_key(|it| std::cmp::Reverse(it.host.specificity()));
        let written = asked.path.as_str();
        let path = normalized(written).unwrap_or_else(|| written.to_owned());
        let request = Request {
            method: question.method,
            path: &path,
            authority: &asked.written,
            scheme: "http",
            headers: question.headers,
        };
        let holds = |branch: &&BranchOf<'_>| {
            let Some(route) = self.route(branch) else {
                return false;
            };
            let takes = |route: &HttpRoute, index: usize| {
                let asked = route.matches.get(index);
                asked.is_some_and(|asked| request.is_taken_by(asked))
            };
            let Some(before) = branch.before else {
                let mut matches = branch.matches.iter();
                return branch.matches.is_empty() || matches.any(|index| takes(route, *index));
            };
            // Behind an egress gateway a request is what both halves ask for.
            let first = before
                .virtual_service
                .and_then(|id| self.http(id, before.route));
            first.is_some_and(|first| {
                let mut pairs = before.pairs.iter();
                pairs.any(|(one, two)| {
                    one.is_none_or(|one| takes(first, one))
                        && two.is_none_or(|two| takes(route, two))
                })
            })
        };
        let first = branching.first()?;
        let branch = first.branches.iter().find(holds)?;
        Some(branch.name.to_owned())
    }

    /// Returns the route of a VirtualService that a branch is.
    fn route(&self, branch: &BranchOf<'_>) -> Option<&HttpRoute> {
        self.http(branch.virtual_service?, branch.route)
    }

    fn http(&self, id: &ResourceId, route: usize) -> Option<&HttpRoute> {
        let service = virtual_service(&self.rules.virtual_services, id)?;
        service.http.get(route)
    }

    /// Returns what becomes of a request, and why.
    ///
    /// # Errors
    /// When the question names no host and port, or an error in the rules leaves the answer open.
    pub fn explain(
        &self,
        question: &Question<'_>,
        options: &CompileOptions,
    ) -> Result<Explanation, Refusal> {
        let rules = &self.rules;
        let asked = asked(question.url, question.sni, &rules.table).map_err(Complaint::input)?;
        let query = Query {
            host: asked.served_by.as_deref().unwrap_or(&asked.host),
            port: asked.port,
            downstream: asked.downstream,
            branch: None,
            subset: question.subset,
        };
        let branch = (asked.downstream == DownstreamProtocol::Http)
            .then(|| self.branch(&query, &asked, question))
            .flatten();
        let query = Query {
            branch: branch.as_deref(),
            ..query
        };
        let errors = self.errors_of(&asked.host, asked.port);
        if !errors.0.is_empty() {
            return Err(errors.into());
        }
        let mut decision = rules.table.decide_at(&query, asked.address);
        if is_nobodys(&rules.table, &query) {
            decision = Decision {
                action: Action::Reject(Reason::UnknownHost),
                target: None,
                connect_to: None,
                rule: None,
                policy_source: None,
                ..decision
            };
        }
        let options = rules.options(options);
        let found = candidates(&rules.parsed, &options, &rules.table, &query);
        let branch = decision.branch.map(|branch| rules.table.branch(branch));
        let requests = asked.downstream == DownstreamProtocol::Http;
        let route = branch.filter(|_| requests);
        let route = route.and_then(|branch| self.route(&branch));
        let reason = decision.reason();
        let came = Came {
            host: &asked.host,
            port: asked.port,
            written: asked.written_port,
        };
        let repairs = match asked.downstream {
            DownstreamProtocol::Http => {
                repairs::repairs(&question.answered, &decision, &came, &rules.table)?
            }
            DownstreamProtocol::Tls | DownstreamProtocol::Tcp => Default::default(),
        };
        let mut answer = answer(
            &asked,
            &decision,
            route,
            &found,
            rules,
            &options.proxy,
            question.authority,
        );
        if let Some(fields) = answer.as_object_mut() {
            fields.extend(repairs);
        }
        Ok(Explanation {
            answer,
            reason: reason.map(|it| format!("{}: {}", it.as_str(), it.explanation())),
        })
    }
}

/// Whether bytes are asked for that nothing leads to the host: no connection says that it is for a name below a wildcard.
fn is_nobodys(table: &PolicyTable, query: &Query<'_>) -> bool {
    let of_port = |it: &Service<'_>| it.port == query.port && it.host.matches(query.host);
    let services = table.services().filter(of_port);
    let best = services.max_by_key(|it| it.host.specificity());
    query.downstream == DownstreamProtocol::Tcp
        && best.is_some_and(|it| it.downstream == query.downstream && it.host.exact().is_none())
}

/// What was asked.
struct Asked {
    scheme: &'static str,
    /// As it was written, for `authority`.
    written: String,
    /// The path, and behind `?` the query.
    path: String,
    host: String,
    /// The host that has the address, where an address was asked for that is within a service's `addresses`.
    served_by: Option<String>,
    /// That address.
    address: Option<IpAddr>,
    port: PortNumber,
    /// The port, where one was written.
    written_port: Option<PortNumber>,
    downstream: DownstreamProtocol,
}

/// Reads a URL, or a host and a port.
fn asked(url: &str, sni: Option<&str>, table: &PolicyTable) -> Result<Asked, String> {
    let wrong = |why: &str| {
        format!(
            "`{url}` cannot be explained: {why}\nhint: write http://HOST/, https://HOST/, tcp://HOST:PORT or HOST:PORT"
        )
    };
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
        None => (None, url),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (written, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let path = path.split('#').next().unwrap_or_default();
    let path = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    };
    let authority = Authority::parse(written).map_err(|error| wrong(&error.to_string()))?;
    let (scheme, downstream, default) = match scheme.as_deref() {
        Some("http") => ("http", DownstreamProtocol::Http, Some(PortNumber::HTTP)),
        Some("https") => ("https", DownstreamProtocol::Tls, Some(PortNumber::HTTPS)),
        Some("tls") => ("https", DownstreamProtocol::Tls, None),
        Some("tcp") => ("tcp", DownstreamProtocol::Tcp, None),
        Some(_) => return Err(wrong("the scheme is none of http, https, tls and tcp")),
        // The port's own protocol says how an application would speak to it.
        None => {
            let port = authority.port.unwrap_or(PortNumber::HTTP);
            let service = table
                .services()
                .find(|service| service.host.matches(&authority.host) && service.port == port);
            match service.map(|service| service.downstream) {
                Some(DownstreamProtocol::Tls) => ("https", DownstreamProtocol::Tls, None),
                Some(DownstreamProtocol::Tcp) => ("tcp", DownstreamProtocol::Tcp, None),
                _ => ("http", DownstreamProtocol::Http, Some(PortNumber::HTTP)),
            }
        }
    };
    let port = authority
        .port
        .or(default)
        .ok_or_else(|| wrong("it has no port"))?;
    let served_by = authority
        .address
        .filter(|_| downstream == DownstreamProtocol::Tcp);
    let served_by = served_by.and_then(|address| {
        let connection = Connection {
            port,
            address: Some(address),
            spoken: Spoken::Bytes,
            drawn: 0,
        };
        let target = table.decide_connection(&connection).target?;
        Some(target.host.to_owned())
    });
    let host = match (downstream, sni) {
        (DownstreamProtocol::Tls, Some(name)) => Authority::parse(name)
            .map_err(|error| wrong(&format!("--sni: {error}")))?
            .host
            .into_owned(),
        _ => authority.host.into_owned(),
    };
    Ok(Asked {
        scheme,
        written: written.to_owned(),
        path,
        host,
        served_by,
        address: authority.address,
        port,
        written_port: authority.port,
        downstream,
    })
}

fn answer(
    asked: &Asked,
    decision: &Decision<'_, '_>,
    taken: Option<&HttpRoute>,
    found: &[Candidate<'_>],
    rules: &Rules,
    proxy: &Proxy,
    mode: AuthorityMode,
) -> Value {
    let cluster = decision.cluster();
    let left_alone =
        matches!(decision.action, Action::LeaveAlone(_)).then_some(contract::PASSTHROUGH_CLUSTER);
    let labels: serde_json::Map<String, Value> = proxy
        .labels
        .iter()
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    let tls = match decision.action {
        Action::Originate(cluster) | Action::Passthrough(cluster) => cluster
            .tls
            .as_ref()
            .map(|tls| tls_answer(tls, cluster, decision, rules)),
        _ => None,
    };
    let of_policy = |id: &ResourceId| id.is_backend_tls_policy();
    let source = decision.policy_source.zip(decision.rule);
    let of_api = |id: &ResourceId| egress_policy::ROUTE_KINDS.contains(&id.kind);
    let rule = decision.branch.map_or(0, egress_policy::Branch::route);
    let before = decision.branch.and_then(|it| rules.table.branch(it).before);
    let first = before.map_or(rule, |before| before.route);
    let led_by = decision.virtual_service.map(|id| rules.written(id, first));
    let through = decision.gateway_service.map(|id| rules.written(id, rule));
    let mut answer = json!({
        "query": {
            "scheme": asked.scheme,
            "host": asked.host,
            "port": asked.port.get(),
            "namespace": proxy.namespace,
            "labels": labels,
        },
        "action": decision.action.as_str(),
        "reason": decision.reason().map(|reason| reason.as_str()),
        "plaintext": decision.plaintext_allowed.then_some("allowed"),
        "serviceEntry": decision.service_entry.map(|id| id.qualified()),
        "destinationRule": decision.rule.filter(|id| !of_policy(id)).map(ResourceId::qualified),
        "route": decision.branch.map(Branch::name),
        "status": status(decision),
        "shares": shares_answer(decision, taken, rules),
        "virtualService": led_by.filter(|id| !of_api(id)).map(|id| id.qualified()),
        "gatewayService": through.map(|id| match of_api(id) {
            true => id.to_string(),
            false => id.qualified(),
        }),
        "policySource": source.map(|(source, id)| source.path_in(id).to_string()),
        "cluster": cluster.map(|cluster| cluster.name.as_str()).or(left_alone),
        "transportSocket": cluster.map(contract::transport_socket),
        "target": target_answer(decision),
        "endpoints": endpoints_answer(decision),
        "authority": authority(asked, decision, mode),
        "tls": tls,
        "candidates": found.iter().map(|candidate| candidate_answer(candidate, rules)).collect::<Vec<_>>(),
    });
    let vip = rules.table.services().find_map(|service| {
        let is_asked = asked.downstream == DownstreamProtocol::Tcp && service.port == asked.port;
        let vip = service
            .vip
            .filter(|_| is_asked && service.host.matches(&asked.host))?;
        Some(format!("{vip}:{}", service.port))
    });
    if let (Some(vip), Some(fields)) = (vip, answer.as_object_mut()) {
        fields.insert("vip".to_owned(), json!(vip));
    }
    let policy = decision.rule.filter(|id| of_policy(id));
    if let (Some(policy), Some(fields)) = (policy, answer.as_object_mut()) {
        fields.insert("backendTlsPolicy".to_owned(), json!(policy.qualified()));
    }
    let route = led_by.filter(|id| of_api(id));
    if let (Some(route), Some(fields)) = (route, answer.as_object_mut()) {
        fields.insert("gatewayRoute".to_owned(), json!(route.to_string()));
    }
    if let (Some(route), Some(fields)) = (taken, answer.as_object_mut()) {
        settings::add(route, fields);
    }
    let tunnel = cluster.and_then(tunnel_answer);
    if let (Some(tunnel), Some(fields)) = (tunnel, answer.as_object_mut()) {
        fields.insert("tunnel".to_owned(), tunnel);
    }
    if let (Some(cluster), Some(fields)) = (cluster, answer.as_object_mut()) {
        let annotations = annotations_answer(cluster, asked.downstream);
        if !annotations.is_empty() {
            fields.insert("annotations".to_owned(), Value::Object(annotations));
        }
        let settings = settings_answer(cluster);
        if !settings.is_empty() {
            fields.insert("settings".to_owned(), json!(settings));
        }
    }
    answer
}

/// Returns the annotations of ours that change something for the request, as they are written.
fn annotations_answer(
    cluster: &Cluster,
    downstream: DownstreamProtocol,
) -> serde_json::Map<String, Value> {
    let requests = downstream == DownstreamProtocol::Http;
    let legacy = cluster.tls.as_ref().map(|tls| tls.legacy);
    let legacy = legacy.unwrap_or_default().written(requests);
    let all = cluster.notes.written(requests).chain(legacy);
    all.map(|(name, words)| (format!("{}{name}", Notes::PREFIX), json!(words)))
        .collect()
}

/// Returns the fields of the policy, beside `tls` and `tunnel`, that count for the cluster.
fn settings_answer(cluster: &Cluster) -> Vec<&'static str> {
    let all = [
        ("connectionPool", cluster.connection_pool.is_some()),
        ("loadBalancer", cluster.load_balancer.is_some()),
        ("outlierDetection", cluster.outlier_detection.is_some()),
        ("proxyProtocol", cluster.proxy_protocol.is_some()),
        ("retryBudget", cluster.retry_budget.is_some()),
    ];
    let given = all.into_iter().filter(|(_, given)| *given);
    given.map(|(name, _)| name).collect()
}

/// Returns the status that a route answers by itself, or with which a request that no route takes is refused.
fn status(decision: &Decision<'_, '_>) -> Option<u16> {
    match decision.action {
        Action::Respond(Answer::Status(status) | Answer::Redirect(status)) => Some(status),
        Action::Reject(Reason::NoRoute) => Some(404),
        Action::Reject(Reason::UnknownDestination) => Some(503),
        _ => None,
    }
}

/// Returns where a route with several destinations leads, each with its weight.
fn shares_answer(
    decision: &Decision<'_, '_>,
    route: Option<&HttpRoute>,
    rules: &Rules,
) -> Option<Vec<Value>> {
    let branch = decision
        .branch
        .filter(|_| decision.action == Action::Weighted)?;
    let written = route.map_or_else(Vec::new, HttpRoute::shares);
    let shares = rules.table.shares(branch).enumerate();
    let shares = shares.map(|(at, share)| settings::share(&share, written.get(at).copied()));
    Some(shares.collect())
}

/// Returns the one host and port, or path, that the rules lead to; nothing where there are several.
fn target_answer(decision: &Decision<'_, '_>) -> Option<Value> {
    let (host, port) = match decision.endpoints() {
        Some([place]) => (place.path().unwrap_or(&place.address), place.port),
        Some(_) => return None,
        None => decision.target.map(|target| (target.host, target.port))?,
    };
    Some(json!({"host": host, "port": port.get()}))
}

/// Returns everything that may be dialled: `--connect-to` included, and of a tunnel its proxies.
fn endpoints_answer(decision: &Decision<'_, '_>) -> Option<Vec<String>> {
    if let Some((address, port)) = decision.connect_to {
        return Some(vec![format!("{address}:{port}")]);
    }
    match decision.endpoints() {
        Some(endpoints) => Some(endpoints.iter().map(ToString::to_string).collect()),
        None => {
            let target = decision.target?;
            Some(vec![format!("{}:{}", target.host, target.port)])
        }
    }
}

/// Returns what the server reads in `:authority`; nothing where no request of ours reaches one.
fn authority(asked: &Asked, decision: &Decision<'_, '_>, mode: AuthorityMode) -> Option<String> {
    let target = decision.target?;
    let tls = matches!(decision.action, Action::Originate(_));
    let plain = matches!(decision.action, Action::Forward(_));
    if asked.downstream != DownstreamProtocol::Http || !(tls || plain) {
        return None;
    }
    let host = target.host;
    Some(match tls && mode == AuthorityMode::Rewrite {
        true if target.port == PortNumber::HTTPS => host.to_owned(),
        true => format!("{host}:{}", target.port),
        false if decision.renamed => host.to_owned(),
        false => asked.written.clone(),
    })
}

/// Returns what a proxy is asked for, and which.
fn tunnel_answer(cluster: &Cluster) -> Option<Value> {
    let tunnel = cluster.tunnel.as_ref()?;
    let Endpoints::Listed { endpoints, .. } = &cluster.endpoints else {
        return None;
    };
    let proxies = endpoints.iter().map(|place| match &*place.address {
        path if path.starts_with("unix://") => path.to_owned(),
        address if address.contains(':') => format!("[{address}]:{}", place.port),
        address => format!("{address}:{}", place.port),
    });
    Some(json!({
        "method": tunnel.method(),
        "target": tunnel.authority(),
        "proxies": proxies.collect::<Vec<_>>(),
    }))
}

fn tls_answer(
    tls: &TlsIntent,
    cluster: &Cluster,
    decision: &Decision<'_, '_>,
    rules: &Rules,
) -> Value {
    let host = decision.target.map(|target| target.host);
    let (sni, sni_source) = match &tls.sni {
        Sni::Authority => (host, "authority"),
        Sni::Rule(name) => (Some(name.as_str()), "sni"),
        Sni::Host(name) => (Some(name.as_str()), "host"),
    };
    let all_of: Vec<&str> = host.filter(|_| tls.names.authority).into_iter().collect();
    let any_of: Vec<&str> = tls.names.any_of.iter().map(String::as_str).collect();
    let names: Vec<&str> = all_of.iter().chain(&any_of).copied().collect();
    let source = match tls.names.source {
        NameSource::Host if tls.names.authority => "authority",
        NameSource::Host => "host",
        NameSource::Sni => "sni",
        NameSource::DestinationRule => "DestinationRule",
        NameSource::ServiceEntry => "ServiceEntry",
        NameSource::Nowhere => "none",
    };
    let offer = Offer::of(&rules.mesh.clusters, tls.legacy);
    let alpn = match cluster.upstream {
        UpstreamProtocol::Auto => json!(["h2", "http/1.1"]),
        UpstreamProtocol::Http1 => json!(["http/1.1"]),
        UpstreamProtocol::Http2 => json!(["h2"]),
        UpstreamProtocol::PostgreSql => json!(["postgresql"]),
        // What the application speaks; known when it calls.
        UpstreamProtocol::AsReceived | UpstreamProtocol::Bytes => json!([]),
    };
    json!({
        "mode": tls.mode.as_str(),
        "sni": sni,
        "sniSource": sni_source,
        "verify": if tls.trust == Trust::InsecureSkipVerify { "none" } else { "chain-and-name" },
        "subjectAltNames": names,
        "allOf": all_of,
        "anyOf": any_of,
        "sanSource": source,
        "trust": trust_answer(&tls.trust),
        "clientCertificate": tls.identity.as_ref().map(|identity| match identity {
            Identity::Files { certificate, .. } => certificate.as_str(),
            Identity::Credential(name) => name.as_str(),
        }),
        "minVersion": offer.lowest.to_string(),
        "maxVersion": TlsVersion::Tls13.to_string(),
        "legacy": legacy::words(tls.legacy),
        "groups": offer.groups,
        "alpn": alpn,
    })
}

/// Returns whom a connection trusts, a credential as Envoy's secrets have it.
fn trust_answer(trust: &Trust) -> String {
    match trust {
        Trust::Credential(name) if !name.contains("://") => format!("kubernetes://{name}"),
        trust => trust.to_string(),
    }
}

fn candidate_answer(candidate: &Candidate<'_>, rules: &Rules) -> Value {
    let place = rules.place(candidate.origin);
    json!({
        "kind": candidate.id.kind,
        "name": candidate.id.qualified(),
        "host": candidate.host.to_string(),
        "outcome": candidate.outcome.as_str(),
        "why": candidate.outcome.explanation(),
        "file": place.map(|(file, _)| file),
        "line": place.map(|(_, place)| place.line),
    })
}

/// Returns the names that the certificate must have: all of some, and one of others.
fn verified_names(answer: &Value) -> Option<String> {
    let names = |pointer: &str| -> Option<Vec<&str>> {
        let names = answer.pointer(pointer)?.as_array()?;
        Some(names.iter().filter_map(Value::as_str).collect())
    };
    let any_of = names("/tls/anyOf")?;
    let mut parts = names("/tls/allOf")?.join(" and ");
    let one_of = any_of.join(", ");
    if !any_of.is_empty() {
        parts.push_str(if parts.is_empty() { "" } else { " and " });
        parts.push_str(if any_of.len() > 1 { "one of " } else { "" });
        parts.push_str(&one_of);
    }
    let parts = if parts.is_empty() { "none" } else { &parts };
    let source = answer.pointer("/tls/sanSource")?.as_str()?;
    Some(format!("{parts} (from {source})"))
}

/// Writes the same answer for people, so that the two cannot differ.
fn for_people(answer: &Value, reason: Option<String>) -> String {
    let texts = |pointer: &str| -> Vec<&str> {
        let items = answer.pointer(pointer).and_then(Value::as_array);
        let items = items.into_iter().flatten();
        items.filter_map(Value::as_str).collect()
    };
    let text = |pointer: &str| match answer.pointer(pointer) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(items)) => {
            let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            Some(if items.is_empty() {
                "none".to_owned()
            } else {
                items.join(", ")
            })
        }
        Some(other) => Some(other.to_string()),
    };
    let mut out = String::new();
    let query = |pointer: &str| text(pointer).unwrap_or_default();
    let _ = writeln!(
        out,
        "{}://{}:{}",
        query("/query/scheme"),
        query("/query/host"),
        query("/query/port")
    );
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(out, "  {name:<17} {value}");
        }
    };
    line("action", text("/action"));
    line("reason", reason);
    line(
        "plaintext",
        text("/plaintext").map(|word| format!("{word} by --allow-plaintext")),
    );
    line("route", text("/route"));
    line("status", text("/status"));
    let shares = answer.get("shares").and_then(Value::as_array);
    let shares = shares.map(|shares| {
        let each = shares.iter().map(settings::share_line);
        each.collect::<Vec<_>>().join(", ")
    });
    line("destinations", shares);
    for (name, text) in settings::lines(answer) {
        line(name, Some(text));
    }
    line("service entry", text("/serviceEntry"));
    let (label, by) = match text("/gatewayRoute") {
        Some(route) => ("led by", Some(route)),
        None => ("virtual service", text("/virtualService")),
    };
    let led = by.map(|service| {
        let gateway = text("/gatewayService").map_or(String::new(), |gateway| {
            format!(", through an egress gateway by {gateway}")
        });
        match text("/endpoints") {
            Some(to) => format!(
                "{service} leads port {} to {to}{gateway}",
                query("/query/port")
            ),
            None => format!("{service}{gateway}"),
        }
    });
    line(label, led);
    let source = text("/policySource")
        .map(|source| format!(" ({source})"))
        .unwrap_or_default();
    line(
        "destination rule",
        text("/destinationRule").map(|rule| format!("{rule}{source}")),
    );
    line(
        "backend policy",
        text("/backendTlsPolicy").map(|policy| format!("{policy}{source}")),
    );
    let annotations = answer.get("annotations").and_then(Value::as_object);
    let annotations = annotations.map(|all| {
        let one = |(name, value): (&String, &Value)| {
            format!("{name}: {}", value.as_str().unwrap_or_default())
        };
        all.iter().map(one).collect::<Vec<_>>().join(", ")
    });
    line("annotations", annotations);
    line("settings", text("/settings"));
    for (name, text) in repairs::for_people(answer) {
        line(name, Some(text));
    }
    line("cluster", text("/cluster"));
    line("transport socket", text("/transportSocket"));
    let tunnel = text("/tunnel/method").zip(text("/tunnel/target"));
    match tunnel.zip(text("/tunnel/proxies")) {
        None => line("dials", text("/endpoints")),
        Some(((method, target), proxies)) => {
            line("dials", Some(proxies));
            line("tunnel", Some(format!("{method} {target}")));
        }
    }
    line("listens on", text("/vip"));
    line("authority", text("/authority"));
    if answer.get("tls").is_some_and(|tls| !tls.is_null()) {
        let with = |name: &str, source: &str| {
            text(name)
                .zip(text(source))
                .map(|(value, source)| format!("{value} (from {source})"))
        };
        let legacy = texts("/tls/legacy").join(",");
        let legacy = match legacy.as_str() {
            "" => legacy,
            words => format!(", legacy {words}"),
        };
        line(
            "tls",
            text("/tls/mode")
                .zip(text("/tls/minVersion"))
                .zip(text("/tls/maxVersion"))
                .map(|((mode, min), max)| format!("{mode}, {min} to {max}{legacy}")),
        );
        line("key exchange", text("/tls/groups"));
        line("sni", with("/tls/sni", "/tls/sniSource"));
        line("verifies", text("/tls/verify"));
        line("verified names", verified_names(answer));
        line("trust", text("/tls/trust"));
        line(
            "client cert",
            text("/tls/clientCertificate").or_else(|| Some("none".to_owned())),
        );
        line("alpn", text("/tls/alpn"));
        let http = matches!(query("/query/scheme").as_str(), "http");
        let name = format!("{}forwarded-proto", Notes::PREFIX);
        let annotations = answer.get("annotations");
        let told = annotations
            .and_then(|all| all.get(&name)?.as_str())
            .unwrap_or("https");
        line("headers changed", http.then(|| format!(":scheme https, x-forwarded-proto {told}, host as above; x-egress-* and x-envoy-* removed")));
    }
    let empty = Vec::new();
    let found = answer
        .get("candidates")
        .and_then(Value::as_array)
        .unwrap_or(&empty);
    if !found.is_empty() {
        out.push_str("candidates\n");
    }
    for candidate in found {
        let field = |name: &str| candidate.get(name).and_then(Value::as_str).unwrap_or("-");
        let line = candidate.get("line").and_then(Value::as_u64).unwrap_or(0);
        let (kind, name, host, why, file) = (
            field("kind"),
            field("name"),
            field("host"),
            field("why"),
            field("file"),
        );
        let _ = writeln!(out, "  {kind} {name} ({host}) {why}\n    --> {file}:{line}");
    }
    out
}
