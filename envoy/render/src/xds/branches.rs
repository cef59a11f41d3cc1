//! Hosts of which Envoy's routes choose what becomes of a request: each has a virtual host of its own.
//!
//! ```text
//! virtual host (the host's names) ──► the branches, in order ──► 404, `no_route`
//! ```
//!
//! A branch is a route of a VirtualService. Its match, timeout, retries, headers, rewrites and faults are Envoy's to carry
//! out. Only its cluster is not: the route takes it from a header that our filter sets. So a request is refused where the
//! filter is not, and the filter's table says which branch leads where. What names the branch to the filter is the
//! route's name.
//!
//! The host that a server is told is written by the route. The filter must not: another virtual host would be chosen.
//!
//! Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `translateRoute`.

use std::collections::BTreeMap;

use egress_filter::{AuthorityMode, Repairs, contract};
use egress_policy::{BranchOf, Branching, Cluster, HostName, HostPattern, PortNumber, ShareOf};
use egress_rules::{
    DEFAULT_BODY, HttpMatch, HttpRoute, RouteAction, Share, StringMatch, virtual_service,
};
use serde_json::{Map, Value, json};

use super::message::{set, set_some};
use super::rendering::Rendering;
use super::{guard, login, route_action, upgrade};

/// The name of the route that takes what no branch does, and of the reason that our filter gives for it.
const NO_ROUTE: &str = "no_route";

/// What a listener has for the branches of its hosts.
#[derive(Default)]
pub(super) struct Branches {
    /// The virtual hosts.
    pub(super) hosts: Vec<Value>,
    /// The names of the other hosts, where a virtual host of a wildcard would take their requests.
    pub(super) others: Vec<String>,
    /// One of the virtual hosts is for all names.
    pub(super) takes_all: bool,
    /// Paths are compared, so they must be written in one way.
    pub(super) paths: bool,
    /// Some requests are answered or delayed on purpose.
    pub(super) faults: bool,
    /// The largest body of an answer, where it is larger than Envoy allows by itself.
    pub(super) largest_body: Option<usize>,
}

impl Branches {
    /// Renders those of a port.
    pub(super) fn of(port: PortNumber, rendering: &Rendering<'_>) -> Self {
        let mut all = Branches::default();
        let branching = rendering.table.branching();
        let here: Vec<Branching<'_>> = branching.filter(|it| it.port == port).collect();
        if here.is_empty() {
            return all;
        }
        let mut addresses = BTreeMap::<&HostPattern, Vec<&HostName>>::new();
        for (address, host) in rendering.table.aliases() {
            addresses.entry(host).or_default().push(address);
        }
        for branching in &here {
            all.takes_all |= *branching.host == HostPattern::Any;
            for branch in &branching.branches {
                all.note(route_of(branch, rendering));
                all.note(route_before(branch, rendering));
            }
            let addresses = addresses.get(branching.host).map_or(&[][..], Vec::as_slice);
            all.hosts
                .push(virtual_host(branching, addresses, rendering));
        }
        let wild: Vec<&HostPattern> = here
            .iter()
            .map(|branching| branching.host)
            .filter(|host| host.exact().is_none())
            .collect();
        let covered = |host: &HostPattern| {
            wild.iter().any(|wild| *wild != host && wild.covers(host))
                && !here.iter().any(|branching| branching.host == host)
        };
        let table = rendering.table;
        let served = table.services().map(|it| (it.host, it.port));
        let refused = table.refused().map(|it| (it.host, it.port));
        for (host, number) in served.chain(refused) {
            if number == port && covered(host) {
                all.others.extend(names(host));
            }
        }
        all.others.sort();
        all.others.dedup();
        all
    }

    fn note(&mut self, route: Option<&HttpRoute>) {
        let Some(route) = route else { return };
        let mut matches = route.matches.iter();
        self.paths |= matches.any(|asked| asked.uri.is_some()) || route.rewrite.is_some();
        self.faults |= route.fault.abort.is_some() || route.fault.delay.is_some();
        if let RouteAction::Respond(answer) = &route.action {
            let size = answer.body.as_ref().map_or(0, Vec::len);
            let largest = self.largest_body.unwrap_or(DEFAULT_BODY);
            self.largest_body = Some(largest.max(size)).filter(|size| *size > DEFAULT_BODY);
        }
    }
}

/// Returns the route of a VirtualService that a branch is.
fn route_of<'r>(branch: &BranchOf<'_>, rendering: &Rendering<'r>) -> Option<&'r HttpRoute> {
    let id = branch.virtual_service?;
    let service = virtual_service(&rendering.options.virtual_services, id)?;
    service.http.get(branch.route)
}

/// Returns the route by which a sidecar leads to the egress gateway that has the branch.
fn route_before<'r>(branch: &BranchOf<'_>, rendering: &Rendering<'r>) -> Option<&'r HttpRoute> {
    let before = branch.before?;
    let services = &rendering.options.virtual_services;
    let service = virtual_service(services, before.virtual_service?)?;
    service.http.get(before.route)
}

/// Returns the ways to be what a branch takes: what is asked of a request at once.
fn asked<'r>(
    branch: &BranchOf<'_>,
    route: &'r HttpRoute,
    rendering: &Rendering<'r>,
) -> Vec<Vec<&'r HttpMatch>> {
    let of = |route: &'r HttpRoute, place: Option<usize>| {
        place.map(|place| route.matches.get(place).ok_or(()))
    };
    let Some(before) = branch.before else {
        return match branch.matches {
            [] => vec![Vec::new()],
            all => all
                .iter()
                .filter_map(|at| Some(vec![route.matches.get(*at)?]))
                .collect(),
        };
    };
    let Some(first) = route_before(branch, rendering) else {
        return Vec::new();
    };
    let both = before.pairs.iter().map(|(one, two)| {
        let asked = [of(first, *one), of(route, *two)];
        asked.into_iter().flatten().collect::<Result<_, ()>>()
    });
    both.filter_map(Result::ok).collect()
}

/// Returns the names by which Envoy finds a host: with a final dot, too. Ports are left out of what is compared.
fn names(host: &HostPattern) -> Vec<String> {
    match host {
        HostPattern::Any => vec!["*".to_owned()],
        host => {
            let name = host.to_string();
            match name.contains(':') {
                true => vec![format!("[{name}]")],
                false => vec![format!("{name}."), name],
            }
        }
    }
}

fn virtual_host(
    branching: &Branching<'_>,
    addresses: &[&HostName],
    rendering: &Rendering<'_>,
) -> Value {
    let mut domains = names(branching.host);
    let alias = |name: &HostName| names(&HostPattern::Exact(name.clone())).pop();
    domains.extend(addresses.iter().filter_map(|name| alias(name)));
    domains.sort();
    domains.dedup();
    let branches = branching.branches.iter();
    let written = |taken: &'static [Taken]| {
        let branches = branches.clone();
        branches.flat_map(move |branch| routes(branching, branch, taken, rendering))
    };
    let others = written(&[Taken::Repeatable, Taken::All]);
    let mut routes: Vec<Value> = written(&[Taken::Upgrades]).chain(others).collect();
    routes.push(json!({
        "name": NO_ROUTE,
        "match": {"prefix": "/"},
        "direct_response": {"status": 404},
    }));
    let mut fields = Map::new();
    set(&mut fields, "name", json!(branching.host.to_string()));
    set(&mut fields, "domains", json!(domains));
    set(&mut fields, "routes", json!(routes));
    if login::by_route(rendering.options) {
        let filters = Map::from_iter([login::on_route()]);
        set(&mut fields, "typed_per_filter_config", json!(filters));
    }
    Value::Object(fields)
}

/// Which of the requests that a branch is for a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Upgrades,
    /// Those that may be answered twice, where the VirtualService does not say when a request is tried again.
    Repeatable,
    All,
}

/// Renders the routes of a branch: for each match one for each of `taken`.
fn routes(
    branching: &Branching<'_>,
    branch: &BranchOf<'_>,
    taken: &[Taken],
    rendering: &Rendering<'_>,
) -> Vec<Value> {
    let Some(route) = route_of(branch, rendering) else {
        // What is not known is not let out.
        return vec![json!({
            "name": branch.name,
            "match": {"prefix": "/"},
            "direct_response": {"status": 503},
        })];
    };
    let led = matches!(route.action, RouteAction::Forward(_)) && route.retries.is_none();
    let taken = taken.iter().filter(|it| led || **it != Taken::Repeatable);
    let asked = asked(branch, route, rendering);
    let each = asked.iter().flat_map(|asked| {
        let taken = taken.clone();
        taken.map(|taken| write(branching, branch, (route, asked), *taken, rendering))
    });
    each.collect()
}

fn write(
    branching: &Branching<'_>,
    branch: &BranchOf<'_>,
    (route, asked): (&HttpRoute, &[&HttpMatch]),
    taken: Taken,
    rendering: &Rendering<'_>,
) -> Value {
    let mut fields = Map::new();
    set(&mut fields, "name", json!(branch.name));
    set(&mut fields, "match", match_of(asked, taken));
    set(&mut fields, "stat_prefix", json!("branch"));
    let mut filters = Map::new();
    filters.extend(route_action::fault(&route.fault));
    let mut headers = route_action::HeaderFields::of(&route.headers);
    match &route.action {
        RouteAction::Redirect(redirect) => {
            let redirect = route_action::redirect(redirect, branching.port);
            set(&mut fields, "redirect", redirect);
        }
        RouteAction::Respond(answer) => {
            set(
                &mut fields,
                "direct_response",
                route_action::respond(answer),
            );
        }
        RouteAction::Forward(_) => {
            let ways = ways(branching.host, branch, route, rendering);
            let guarded = |way: &Way<'_>| {
                let cluster = way.cluster.as_ref().ok();
                cluster.is_some_and(|cluster| guard::by_filters(cluster, rendering.options))
            };
            if ways.iter().any(guarded) {
                filters.extend([guard::on_route()]);
            }
            if taken == Taken::Upgrades {
                filters.extend([upgrade::on_route()]);
            }
            let repeatable = taken == Taken::Repeatable;
            let hides_hints = |way: &Way<'_>| {
                let cluster = way.cluster.as_ref().ok();
                cluster.is_some_and(|cluster| {
                    let repairs = Repairs::of(rendering.options.repair, cluster.notes);
                    cluster.tls.is_some() && repairs.hints
                })
            };
            if ways.iter().any(hides_hints) {
                headers.hide_hints();
            }
            let forward = forward(&ways, route, repeatable, &mut headers);
            set(&mut fields, "route", forward);
        }
    }
    headers.write(&mut fields);
    if !filters.is_empty() {
        set(
            &mut fields,
            "typed_per_filter_config",
            Value::Object(filters),
        );
    }
    Value::Object(fields)
}

/// One destination of a branch, and what the VirtualService says of it.
struct Way<'w> {
    share: &'w Share,
    weight: u32,
    cluster: Result<&'w Cluster, ()>,
    /// What the server is told in `Host`, where it is not what the application wrote.
    told: Option<String>,
}

fn ways<'w>(
    host: &HostPattern,
    branch: &'w BranchOf<'w>,
    route: &'w HttpRoute,
    rendering: &Rendering<'_>,
) -> Vec<Way<'w>> {
    let shares = route.shares().into_iter().zip(&branch.shares);
    let way = |(share, of): (&'w Share, &ShareOf<'w>)| Way {
        share,
        weight: of.weight,
        cluster: of.leads_to.map_err(drop),
        told: told(host, of, rendering.options.authority),
    };
    shares.map(way).collect()
}

/// Returns what a server is told in `Host`, where it is not what the application wrote. What is sent in plaintext keeps
/// that, unless the VirtualService says otherwise.
fn told(host: &HostPattern, share: &ShareOf<'_>, mode: AuthorityMode) -> Option<String> {
    let tls = share.leads_to.is_ok_and(|cluster| cluster.tls.is_some());
    let own = host
        .exact()
        .filter(|_| tls && mode == AuthorityMode::Rewrite);
    let name = share.name.or(own)?;
    let says_port = tls && mode == AuthorityMode::Rewrite;
    match says_port && share.target != PortNumber::HTTPS {
        true => Some(format!("{name}:{}", share.target)),
        false => Some(name.to_string()),
    }
}

fn forward(
    ways: &[Way<'_>],
    route: &HttpRoute,
    repeatable: bool,
    headers: &mut route_action::HeaderFields,
) -> Value {
    let is_tls = |way: &Way<'_>| way.cluster.is_ok_and(|cluster| cluster.tls.is_some());
    let mut fields = Map::new();
    match ways {
        [way] => {
            let tls = is_tls(way);
            let header = match tls {
                true => contract::ORIGINATE_HEADER,
                false => contract::FORWARD_HEADER,
            };
            set(&mut fields, "cluster_header", json!(header));
            set_some(&mut fields, "host_rewrite_literal", way.told.as_deref());
            headers.remove_from_requests(header);
            if tls {
                headers.add_to_requests(route_action::https_header());
            }
            headers.extend(&way.share.headers);
            let hash = way.cluster.ok().and_then(route_action::hash_policy);
            set_some(&mut fields, "hash_policy", hash);
        }
        // Where nothing is left, the header is never there.
        [] => set(
            &mut fields,
            "cluster_header",
            json!(contract::ORIGINATE_HEADER),
        ),
        ways => {
            let named = ways.iter().zip(contract::SHARE_HEADERS);
            let clusters: Vec<Value> = named
                .map(|(way, header)| {
                    headers.remove_from_requests(header);
                    weighted(way, header)
                })
                .collect();
            set(
                &mut fields,
                "weighted_clusters",
                json!({"clusters": clusters}),
            );
        }
    }
    route_action::effort(route, ways.iter().any(is_tls), repeatable, &mut fields);
    Value::Object(fields)
}

fn weighted(way: &Way<'_>, header: &str) -> Value {
    let mut fields = Map::new();
    set(&mut fields, "cluster_header", json!(header));
    set(&mut fields, "weight", json!(way.weight));
    set_some(&mut fields, "host_rewrite_literal", way.told.as_deref());
    let mut headers = route_action::HeaderFields::default();
    if way.cluster.is_ok_and(|cluster| cluster.tls.is_some()) {
        headers.add_to_requests(route_action::https_header());
    }
    headers.extend(&way.share.headers);
    headers.write(&mut fields);
    Value::Object(fields)
}

/// Renders what a route asks of a request; where two routes ask, what both do.
///
/// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `TranslateRouteMatch`.
fn match_of(asked: &[&HttpMatch], taken: Taken) -> Value {
    let mut fields = Map::new();
    // Of two paths one has all that the other takes, or the table has no such branch.
    let narrowest = asked.iter().max_by_key(|asked| match &asked.uri {
        Some(StringMatch::Exact(path)) => (2, path.len()),
        Some(StringMatch::Prefix(prefix)) => (1, 2 * prefix.len()),
        Some(StringMatch::PathPrefix(path)) => (1, 2 * path.len() + 1),
        Some(StringMatch::Regex(_)) => (3, 0),
        Some(StringMatch::Present) | None => (0, 0),
    });
    match narrowest.and_then(|asked| asked.uri.as_ref()) {
        Some(StringMatch::Exact(path)) => set(&mut fields, "path", json!(path)),
        Some(StringMatch::Prefix(prefix)) => set(&mut fields, "prefix", json!(prefix)),
        Some(StringMatch::PathPrefix(path)) => {
            set(&mut fields, "path_separated_prefix", json!(path));
        }
        Some(StringMatch::Regex(pattern)) => {
            let regex = json!({"regex": pattern.as_str()});
            set(&mut fields, "safe_regex", regex);
        }
        Some(StringMatch::Present) | None => set(&mut fields, "prefix", json!("/")),
    }
    if narrowest.is_some_and(|asked| asked.ignore_uri_case) {
        set(&mut fields, "case_sensitive", json!(false));
    }
    let mut headers = Vec::new();
    if taken == Taken::Upgrades {
        headers.push(upgrade::header());
    }
    for asked in asked {
        add_headers(asked, &mut headers);
    }
    if taken == Taken::Repeatable {
        headers.extend(route_action::repeatable());
    }
    if !headers.is_empty() {
        set(&mut fields, "headers", json!(headers));
    }
    let query = asked.iter().flat_map(|asked| &asked.query);
    let query: Vec<Value> = query.map(|(name, text)| matcher(name, text)).collect();
    if !query.is_empty() {
        set(&mut fields, "query_parameters", json!(query));
    }
    Value::Object(fields)
}

fn add_headers(asked: &HttpMatch, headers: &mut Vec<Value>) {
    let named = asked.headers.iter();
    headers.extend(named.map(|(name, text)| matcher(name, text)));
    for (name, text) in &asked.without_headers {
        let mut lacks = matcher(name, text);
        if let Value::Object(fields) = &mut lacks {
            set(fields, "invert_match", json!(true));
            if *text != StringMatch::Present {
                set(fields, "treat_missing_header_as_empty", json!(true));
            }
        }
        headers.push(lacks);
    }
    for (name, text) in [
        (":method", &asked.method),
        (":authority", &asked.authority),
        (":scheme", &asked.scheme),
    ] {
        headers.extend(text.as_ref().map(|text| matcher(name, text)));
    }
}

/// Renders what a header or a parameter of the query must be.
fn matcher(name: &str, text: &StringMatch) -> Value {
    let string = match text {
        StringMatch::Exact(exact) => json!({"exact": exact}),
        StringMatch::Prefix(prefix) | StringMatch::PathPrefix(prefix) => json!({"prefix": prefix}),
        StringMatch::Regex(pattern) => json!({"safe_regex": {"regex": pattern.as_str()}}),
        StringMatch::Present => return json!({"name": name, "present_match": true}),
    };
    json!({"name": name, "string_match": string})
}
