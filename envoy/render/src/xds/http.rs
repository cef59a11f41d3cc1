//! What reads the requests of a listener, and the routes that they may take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egress_filter::{FilterKind, PluginConfig, Repairs, Variants, contract};
use egress_policy::{
    Cluster, DownstreamProtocol, Notes, OutboundMode, PolicyTable, PortNumber, Service,
};
use serde_json::{Map, Value, json};

use super::access_log::{Metadata, access_log};
use super::branches::Branches;
use super::chain::{HttpManager, listener_name};
use super::dns::{self, Cached};
use super::message::{extension, set, set_some};
use super::options::ExpectContinue;
use super::plugin::{self, Plugin};
use super::rendering::Rendering;
use super::{
    guard, limits, login, old_clients, overload, refusals, route_action, upgrade, upstream_proxy,
    variants,
};

/// What one connection manager has of its own.
pub(super) struct HttpSettings {
    /// The service port; without one, each request names its own, as to a forward proxy.
    pub(super) port: Option<PortNumber>,
    /// What statistics call it.
    pub(super) name: String,
    /// What its routes are called.
    pub(super) routes_name: String,
    /// Which HTTP is spoken, unless the first bytes are to tell.
    pub(super) codec: Option<&'static str>,
    /// The upgrades that it takes beside [`upgrade::TAKEN`].
    pub(super) upgrades: &'static [&'static str],
    /// The routes before all others.
    pub(super) routes_first: Vec<Value>,
    /// The headers that it takes away beside those that every listener does.
    pub(super) headers_removed: &'static [&'static str],
    /// The filters behind ours.
    pub(super) filters_first: Vec<Value>,
    /// The clusters that `routes_first` lead to and whose addresses filters must look at.
    pub(super) guarded: BTreeSet<String>,
}

impl HttpSettings {
    /// Returns those of a service port.
    pub(super) fn of_port(port: PortNumber) -> Self {
        HttpSettings {
            port: Some(port),
            name: listener_name(port),
            routes_name: port.to_string(),
            codec: None,
            upgrades: &[],
            routes_first: Vec::new(),
            headers_removed: &[],
            filters_first: Vec::new(),
            guarded: BTreeSet::new(),
        }
    }
}

/// Renders what reads the requests of a listener.
pub(super) fn connection_manager(settings: HttpSettings, rendering: &Rendering<'_>) -> HttpManager {
    let options = rendering.options;
    let port = settings.port;
    let default = default_cluster(port, rendering);
    let config = PluginConfig {
        forward_proxy: port.is_none(),
        upstream_proxy: options.upstream_proxy.is_some(),
        default_cluster: default.map(|cluster| cluster.name.as_str()),
        // Whoever asks a forward proxy names the service port.
        listen_ports: port.map_or(Vec::new(), |_| options.mapped_ports()),
        ..plugin::config(port, FilterKind::Http, rendering)
    };
    let mut filters = settings.filters_first;
    if rendering.variants == Variants::Sockets {
        filters.push(variants::http_filter());
    }
    if options.upstream_proxy.is_some() {
        filters.push(upstream_proxy::http_filter());
    }
    filters.extend(login::http_filter(options));
    let mut guarded = guarded(port, rendering);
    guarded.extend(settings.guarded);
    if !guarded.is_empty() {
        let cache = dns::cache(Cached::Public, rendering);
        filters.extend(guard::http_filters(&guarded, &cache));
    }
    let branches = port.map(|port| Branches::of(port, rendering));
    let branches = branches.unwrap_or_default();
    if branches.faults {
        filters.push(route_action::fault_filter());
    }
    filters.push(upgrade::http_filter());
    filters.extend(overload::answers_filter(options));
    let router = match branches.hosts.is_empty() {
        true => json!({}),
        // Rewrites and timeouts would be told to the server.
        false => json!({"suppress_envoy_headers": true}),
    };
    filters.push(extension(
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
        router,
    ));
    let mut routes = settings.routes_first;
    let logins = login::by_route(options);
    let (named, last) = routes_of(port, default, rendering);
    routes.extend(written(named, last, logins));
    let upgrades = [upgrade::TAKEN]
        .into_iter()
        .chain(settings.upgrades.iter().copied());
    let upgrades: Vec<Value> = upgrades.map(|kind| json!({"upgrade_type": kind})).collect();
    let mut fields = Map::new();
    set_some(&mut fields, "codec_type", settings.codec);
    set(&mut fields, "stat_prefix", json!(settings.name));
    // What clients send to steer us or Envoy is gone before a route is chosen.
    let stripping = json!([stripping(settings.headers_removed)]);
    set(&mut fields, "early_header_mutation_extensions", stripping);
    if branches.paths {
        // What is compared is what the server gets.
        set(&mut fields, "normalize_path", json!(true));
    }
    let routes = route_config(settings.routes_name, routes, branches);
    set(&mut fields, "route_config", routes);
    let log = access_log(&Metadata::Filter, options);
    set(&mut fields, "access_log", json!([log]));
    // The server is told `https` where TLS is what it gets.
    let scheme = json!({"match_upstream": true});
    set(&mut fields, "scheme_header_transformation", scheme);
    let server = json!("PASS_THROUGH");
    set(&mut fields, "server_header_transformation", server);
    // A server that is somebody else's gets the identifier that the application sent, and none of ours.
    set(&mut fields, "preserve_external_request_id", json!(true));
    set(&mut fields, "generate_request_id", json!(false));
    overload::clients(&mut fields);
    refusals::answers(&mut fields, options);
    set(&mut fields, "upgrade_configs", json!(upgrades));
    let continues = options.expect_continue == ExpectContinue::Pass;
    set_some(&mut fields, "proxy_100_continue", continues.then_some(true));
    let http1 = old_clients::http1(options);
    set(&mut fields, "http_protocol_options", http1);
    let kb = json!(limits::HEADERS_KB);
    set(&mut fields, "max_request_headers_kb", kb);
    let common = json!({"max_headers_count": limits::HEADERS});
    set(&mut fields, "common_http_protocol_options", common);
    HttpManager {
        fields,
        plugin: Arc::new(Plugin::new(&config, options)),
        filters,
    }
}

/// Renders the virtual hosts of a listener: one for each host with branches, and one for all others.
fn route_config(name: String, routes: Vec<Value>, branches: Branches) -> Value {
    let mut fields = Map::new();
    set(&mut fields, "name", json!(name));
    if !branches.hosts.is_empty() {
        set(&mut fields, "ignore_port_in_host_matching", json!(true));
    }
    let largest = branches.largest_body;
    set_some(&mut fields, "max_direct_response_body_size_bytes", largest);
    let mut domains = branches.others;
    if !branches.takes_all {
        domains.push("*".to_owned());
    }
    let mut hosts = branches.hosts;
    if !domains.is_empty() {
        hosts.push(json!({"name": "egress", "domains": domains, "routes": routes}));
    }
    set(&mut fields, "virtual_hosts", Value::Array(hosts));
    Value::Object(fields)
}

/// Renders what takes headers away as soon as a request has come, those of `more` too.
fn stripping(more: &[&str]) -> Value {
    let prefix = |prefix: &str| json!({"remove_on_match": {"key_matcher": {"prefix": prefix}}});
    let mut mutations = vec![
        prefix(contract::HEADER_PREFIX),
        prefix(contract::ENVOY_PREFIX),
        // Comes with an offer to upgrade, which is not taken up, and so ends here (RFC 9110, 7.6.1).
        json!({"remove": "http2-settings"}),
    ];
    mutations.extend(more.iter().map(|header| json!({"remove": header})));
    extension(
        "envoy.http.early_header_mutation.header_mutation",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        json!({"mutations": mutations}),
    )
}

/// Returns the names of the clusters whose addresses filters must look at.
fn guarded(port: Option<PortNumber>, rendering: &Rendering<'_>) -> BTreeSet<String> {
    let options = rendering.options;
    let mut all = BTreeSet::new();
    if guard::drops_addresses(options) {
        return all;
    }
    for service in all_http_services(port, rendering) {
        if guard::is_on(service.cluster, options) {
            let name = variants::named(rendering.variants, service.cluster);
            all.insert(name.unwrap_or_else(|| service.cluster.name.to_string()));
        }
    }
    for (_, number, cluster) in rendering.table.branch_clusters() {
        if port == Some(number) && guard::is_on(cluster, options) {
            let name = variants::named(rendering.variants, cluster);
            all.insert(name.unwrap_or_else(|| cluster.name.to_string()));
        }
    }
    if rendering.table.outbound() == OutboundMode::AllowAny {
        all.insert(contract::PASSTHROUGH_CLUSTER.to_owned());
    }
    all
}

/// As [`http_services`], for all workloads that there may be.
fn all_http_services<'r>(
    port: Option<PortNumber>,
    rendering: &Rendering<'r>,
) -> impl Iterator<Item = Service<'r>> {
    variants::tables(rendering.table, rendering.options)
        .flat_map(move |table| http_services(port, table))
}

/// Returns what HTTP requests of a port may reach, or of all ports. Subsets are not among it: no request can
/// name one.
fn http_services(
    port: Option<PortNumber>,
    table: &PolicyTable,
) -> impl Iterator<Item = Service<'_>> {
    let http = move |service: &Service<'_>| {
        port.is_none_or(|port| service.port == port)
            && service.downstream == DownstreamProtocol::Http
    };
    table
        .services()
        .filter(move |service| http(service) && service.subset.is_none())
}

/// Returns the shared cluster with TLS that most hosts of the port need: the one that needs no header.
///
/// Filters that guard a cluster know it by the header, so it is not one of those.
fn default_cluster<'r>(port: Option<PortNumber>, rendering: &Rendering<'r>) -> Option<&'r Cluster> {
    let mut counts = BTreeMap::<&str, (usize, &Cluster)>::new();
    for service in http_services(port, rendering.table) {
        if service.cluster.own.is_none()
            && service.cluster.tls.is_some()
            && !guard::by_filters(service.cluster, rendering.options)
        {
            counts
                .entry(service.cluster.name.as_str())
                .or_insert((0, service.cluster))
                .0 += 1;
        }
    }
    counts
        .into_values()
        .max_by_key(|(count, _)| *count)
        .map(|(_, cluster)| cluster)
}

/// A route, as long as it may become that of some requests.
#[derive(Clone)]
struct Route {
    /// What logs and statistics call it.
    name: &'static str,
    /// What headers it takes requests by; without any it takes all.
    headers: Vec<Value>,
    leads_to: LeadsTo,
    /// Tells the server that the request came over TLS.
    https: bool,
    /// What filter state it takes requests by.
    state: Option<Value>,
    hash_policy: Option<Value>,
    /// `typed_per_filter_config`.
    filters: Map<String, Value>,
    /// It takes requests alone that may be answered twice.
    repeatable: bool,
    /// Applications are not told to speak TLS themselves.
    hides_hints: bool,
}

/// Where a route leads to.
#[derive(Clone)]
enum LeadsTo {
    /// The cluster that this header names.
    Named(&'static str),
    /// This cluster.
    Cluster(String),
    /// No server.
    Nowhere,
}

impl Route {
    fn new(name: &'static str, leads_to: LeadsTo) -> Self {
        Route {
            name,
            headers: Vec::new(),
            leads_to,
            https: false,
            state: None,
            hash_policy: None,
            filters: Map::new(),
            repeatable: false,
            hides_hints: false,
        }
    }

    /// Returns the route to any cluster that the filter names where it originates TLS, or where it does not.
    fn by_header(tls: bool) -> Self {
        let (name, header) = match tls {
            true => ("originate", contract::ORIGINATE_HEADER),
            false => ("forward", contract::FORWARD_HEADER),
        };
        Route {
            headers: vec![json!({"name": header, "present_match": true})],
            https: tls,
            ..Route::new(name, LeadsTo::Named(header))
        }
    }

    /// Returns the route to one of those clusters alone.
    fn by_cluster(tls: bool, cluster: &str) -> Self {
        let mut route = Route::by_header(tls);
        if let LeadsTo::Named(header) = route.leads_to {
            route.headers = vec![json!({"name": header, "string_match": {"exact": cluster}})];
        }
        route
    }

    /// Returns the same route for upgrades, which differs in nothing but the offer.
    fn of_upgrades(self) -> Self {
        let mut route = self.of(upgrade::header());
        route.filters.extend([upgrade::on_route()]);
        route
    }

    /// Returns the same route for clients that log in, and for those that have.
    fn of_logins(self) -> [Self; 2] {
        let mut route = self;
        route.filters.extend([login::on_route()]);
        let in_ = route.clone().of(login::header());
        route.state = Some(login::state());
        [in_, route]
    }

    /// Returns the same route for requests that may be answered twice; `None` where none is led to a server.
    fn of_repeatable(mut self) -> Option<Self> {
        self.headers.extend(route_action::repeatable());
        self.repeatable = true;
        Some(self).filter(|route| !matches!(route.leads_to, LeadsTo::Nowhere))
    }

    /// Returns the route, and before it the one for requests that may be answered twice.
    fn by_repeatable(self) -> impl Iterator<Item = Self> {
        let first = self.clone().of_repeatable();
        first.into_iter().chain([self])
    }

    fn of(mut self, header: Value) -> Self {
        // First of all, so that other requests are done with the route at once.
        self.headers.insert(0, header);
        self
    }

    fn written(self) -> Value {
        let mut fields = Map::new();
        set(&mut fields, "name", json!(self.name));
        let mut matches = Map::new();
        set(&mut matches, "prefix", json!("/"));
        if !self.headers.is_empty() {
            set(&mut matches, "headers", Value::Array(self.headers));
        }
        let state = self.state.map(|state| json!([state]));
        set_some(&mut matches, "filter_state", state);
        set(&mut fields, "match", Value::Object(matches));
        let cluster = match self.leads_to {
            LeadsTo::Named(header) => {
                set(&mut fields, "request_headers_to_remove", json!([header]));
                Some(("cluster_header", json!(header)))
            }
            LeadsTo::Cluster(cluster) => Some(("cluster", json!(cluster))),
            LeadsTo::Nowhere => None,
        };
        match cluster {
            Some((field, cluster)) => {
                let mut route = Map::new();
                set(&mut route, field, cluster);
                set(&mut route, "timeout", json!("0s"));
                set(
                    &mut route,
                    "retry_policy",
                    route_action::default_retries(self.https, self.repeatable),
                );
                set_some(&mut route, "hash_policy", self.hash_policy);
                set(&mut fields, "route", Value::Object(route));
                set(&mut fields, "stat_prefix", json!(self.name));
            }
            None => set(&mut fields, "direct_response", json!({"status": 502})),
        }
        if self.https {
            let added = json!([route_action::https_header()]);
            set(&mut fields, "request_headers_to_add", added);
        }
        if self.hides_hints {
            let removed = json!(route_action::HINTS);
            set(&mut fields, "response_headers_to_remove", removed);
        }
        if !self.filters.is_empty() {
            let filters = Value::Object(self.filters);
            set(&mut fields, "typed_per_filter_config", filters);
        }
        Value::Object(fields)
    }
}

/// Writes the routes of a listener of ours. `last` is where every request is before our filter has named a cluster.
///
/// Envoy makes a request's filters by that first route. So what turns one on is written beside `last` alone: for upgrades,
/// and for logins where there is a filter for them. It stands behind the routes of what our filter names, which must
/// take the request afterwards.
fn written(named: Vec<Route>, last: Route, logins: bool) -> Vec<Value> {
    let mut all: Vec<Route> = named.into_iter().flat_map(Route::by_repeatable).collect();
    all.push(last.clone().of_upgrades());
    let last: Vec<Route> = last.by_repeatable().collect();
    if logins {
        all.extend(last.iter().cloned().flat_map(Route::of_logins));
    }
    all.extend(last);
    all.into_iter().map(Route::written).collect()
}

/// Returns the routes of a port, or of all ports: those of what our filter names, and the last one.
fn routes_of(
    port: Option<PortNumber>,
    default: Option<&Cluster>,
    rendering: &Rendering<'_>,
) -> (Vec<Route>, Route) {
    let mut routes = particular(port, rendering.table.outbound(), false, rendering);
    let hides_hints = Repairs::of(rendering.options.repair, Notes::default()).hints;
    routes.push(Route {
        hides_hints,
        ..Route::by_header(true)
    });
    routes.push(Route::by_header(false));
    let last = match default {
        Some(cluster) => Route {
            https: true,
            hides_hints,
            ..Route::new("originate", LeadsTo::Cluster(cluster.name.to_string()))
        },
        // Nothing is reached without a word of the filter.
        None => Route::new("block_all", LeadsTo::Nowhere),
    };
    (routes, last)
}

/// Renders a route for each cluster of a port that is ours, where Envoy may let in headers from clients: none of them
/// leads anywhere else.
pub(super) fn routes_of_ours(port: PortNumber, rendering: &Rendering<'_>) -> Vec<Value> {
    // Hosts that are left alone are led by the listeners' owner.
    let outbound = OutboundMode::RegistryOnly;
    let routes = particular(Some(port), outbound, true, rendering);
    // Which route of theirs a request is on before, we do not know.
    let upgrades: Vec<Route> = routes.iter().cloned().map(Route::of_upgrades).collect();
    let others = routes.into_iter().flat_map(Route::by_repeatable);
    upgrades
        .into_iter()
        .chain(others)
        .map(Route::written)
        .collect()
}

/// Returns a route for each cluster whose requests are hashed, whose addresses are guarded, or whose answers keep or lose
/// other headers than usual: all of it is for a route to say. With `every` each cluster has one.
fn particular(
    port: Option<PortNumber>,
    outbound: OutboundMode,
    every: bool,
    rendering: &Rendering<'_>,
) -> Vec<Route> {
    let options = rendering.options;
    let mut routes = BTreeMap::new();
    let repair = options.repair;
    let usual = Repairs::of(repair, Notes::default()).hints;
    let mut add = |name: &str, route: Route, guarded: bool| {
        let filters = guarded.then(guard::on_route);
        let route = Route {
            filters: filters.into_iter().collect(),
            ..route
        };
        routes.insert(name.to_owned(), route);
    };
    for service in all_http_services(port, rendering) {
        let (cluster, hash) = (service.cluster, route_action::hash_policy(service.cluster));
        let guarded = guard::by_filters(cluster, options);
        let tls = cluster.tls.is_some();
        let hides_hints = tls && Repairs::of(repair, cluster.notes).hints;
        if every || hash.is_some() || guarded || hides_hints != (tls && usual) {
            let name = variants::named(rendering.variants, cluster);
            let name = name.as_deref().unwrap_or(cluster.name.as_str());
            let route = Route {
                hash_policy: hash,
                hides_hints,
                ..Route::by_cluster(tls, name)
            };
            add(name, route, guarded);
        }
    }
    if outbound == OutboundMode::AllowAny {
        let guarded = !guard::drops_addresses(options);
        let name = contract::PASSTHROUGH_CLUSTER;
        add(name, Route::by_cluster(false, name), guarded);
    }
    routes.into_values().collect()
}
