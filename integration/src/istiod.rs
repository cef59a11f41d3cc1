//! What istiod makes of DestinationRules and EnvoyFilters, in a configuration that a live one gave a proxy.
//!
//! It does what those need that stand in the tests, and no more. The recorded configurations have it in pairs, and the
//! tests make one of the other. An answer that it does not know is an error.
//!
//! Source: istio/istio `pilot/pkg/networking/core/cluster_tls.go`, `pilot/pkg/networking/core/envoyfilter` and
//! `pkg/proto/merge`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

/// The name and the type of TLS towards a server.
const SOCKET: (&str, &str) = (
    "envoy.transport_sockets.tls",
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
);
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The fields of which a message has one at most: a merge that brings one takes the others away.
const ALTERNATIVES: [&[&str]; 4] = [
    &[
        "validation_context",
        "validation_context_sds_secret_config",
        "combined_validation_context",
    ],
    &["path_config_source", "api_config_source", "ads", "self"],
    &["cluster", "cluster_header", "weighted_clusters"],
    &["route", "redirect", "direct_response"],
];

/// The fields that are maps: what a merge brings under a key takes the place of what is there.
const MAPS: [&str; 3] = [
    "filter_metadata",
    "typed_extension_protocol_options",
    "typed_per_filter_config",
];

/// A proxy, as istiod knows it.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// `SIDECAR_OUTBOUND` or `GATEWAY`.
    pub context: &'static str,
    /// Its labels.
    pub labels: Vec<(String, String)>,
}

/// What a proxy is configured with.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// The clusters, in the order of their names.
    pub clusters: Vec<Value>,
    /// The listeners, in the order of their names.
    pub listeners: Vec<Value>,
    /// The route configurations, in the order of their names.
    pub routes: Vec<Value>,
}

impl Configuration {
    /// Reads one that was recorded.
    ///
    /// # Errors
    ///
    /// When it has not got the lists.
    pub fn read(recorded: &Value) -> Result<Self> {
        let list = |key: &str| {
            let list = recorded.get(key).and_then(Value::as_array);
            list.cloned().with_context(|| format!("no {key}"))
        };
        Ok(Self {
            clusters: list("clusters")?,
            listeners: list("listeners")?,
            routes: list("routes")?,
        })
    }

    /// Gives each cluster of a service the TLS that the DestinationRules have for it, and none where they have none.
    ///
    /// # Errors
    ///
    /// When a rule says what is not known here.
    pub fn originate(&mut self, rules: &[&Value], proxy: &Proxy) -> Result<()> {
        for cluster in &mut self.clusters {
            let name = text(cluster, "/name").to_owned();
            let parts: Vec<&str> = name.split('|').collect();
            let ["outbound", port, subset, host] = parts[..] else {
                continue;
            };
            let rule = rule_for(rules, host, proxy);
            let tls = rule.and_then(|rule| tls_for(rule, port.parse().ok()?, subset));
            let selected =
                rule.is_some_and(|rule| rule.pointer("/spec/workloadSelector").is_some());
            set_tls(cluster, tls, selected, proxy)?;
        }
        Ok(())
    }

    /// Applies the patches of an EnvoyFilter, if it is for the proxy.
    ///
    /// # Errors
    ///
    /// When a patch asks for what is not known here.
    pub fn patch(&mut self, filter: &Value, proxy: &Proxy) -> Result<()> {
        ensure!(filter.get("kind") == Some(&json!("EnvoyFilter")));
        if !selects(filter.pointer("/spec/workloadSelector/labels"), proxy) {
            return Ok(());
        }
        let patches = filter.pointer("/spec/configPatches");
        for patch in patches.and_then(Value::as_array).context("no patches")? {
            let matched = patch.get("match").context("no match")?;
            if text(matched, "/context") != proxy.context {
                continue;
            }
            let value = patch.pointer("/patch/value").context("no value")?;
            match (text(patch, "/applyTo"), text(patch, "/patch/operation")) {
                ("CLUSTER", "ADD") => self.add(value),
                ("CLUSTER", "MERGE") => self.merge_clusters(matched, value)?,
                ("HTTP_ROUTE", operation) => self.patch_routes(matched, operation, value)?,
                ("HTTP_FILTER", "INSERT_BEFORE") => self.insert_filter(matched, value)?,
                other => bail!("istiod is not known to do this: {other:?}"),
            }
        }
        Ok(())
    }

    /// Of two clusters with one name the first is kept.
    fn add(&mut self, cluster: &Value) {
        let name = text(cluster, "/name");
        let place = self
            .clusters
            .binary_search_by(|own| text(own, "/name").cmp(name));
        if let Err(place) = place {
            self.clusters.insert(place, cluster.clone());
        }
    }

    fn merge_clusters(&mut self, matched: &Value, value: &Value) -> Result<()> {
        let matched = matched.get("cluster").context("every cluster is meant")?;
        for cluster in &mut self.clusters {
            if is_cluster(matched, text(cluster, "/name")) {
                merge_cluster(cluster, value)?;
            }
        }
        Ok(())
    }

    fn patch_routes(&mut self, matched: &Value, operation: &str, value: &Value) -> Result<()> {
        let matched = matched.get("routeConfiguration");
        let of = |pointer| matched.and_then(|matched| matched.pointer(pointer));
        for routes in &mut self.routes {
            let name = text(routes, "/name").rsplit('.').next().unwrap_or_default();
            if of("/portNumber").is_some_and(|port| port.as_u64() != name.parse().ok()) {
                continue;
            }
            for host in items(routes, "virtual_hosts") {
                if of("/vhost/name").is_some_and(|name| host.get("name") != Some(name)) {
                    continue;
                }
                let of_route = of("/vhost/route");
                match (operation, of_route) {
                    ("INSERT_FIRST", None) => {
                        let list = host.get_mut("routes").and_then(Value::as_array_mut);
                        list.context("no routes")?.insert(0, value.clone());
                    }
                    ("MERGE", Some(of_route)) => {
                        ensure!(*of_route == json!({"action": "ROUTE"}), "{of_route}");
                        for route in items(host, "routes") {
                            if route.get("route").is_some() {
                                merge(route, value);
                            }
                        }
                    }
                    other => bail!("istiod is not known to do this to routes: {other:?}"),
                }
            }
        }
        Ok(())
    }

    fn insert_filter(&mut self, matched: &Value, value: &Value) -> Result<()> {
        let of = |pointer| matched.pointer(pointer);
        let manager = of("/listener/filterChain/filter/name").context("no filter")?;
        let before = of("/listener/filterChain/filter/subFilter/name").context("no place")?;
        for listener in &mut self.listeners {
            let port = listener.pointer("/address/socket_address/port_value");
            if of("/listener/portNumber").is_some_and(|meant| Some(meant) != port) {
                continue;
            }
            for chain in items(listener, "filter_chains") {
                for filter in items(chain, "filters") {
                    if filter.get("name") != Some(manager) {
                        continue;
                    }
                    let list = filter.pointer_mut("/typed_config/http_filters");
                    let list = list.and_then(Value::as_array_mut).context("no filters")?;
                    let place = list.iter().position(|own| own.get("name") == Some(before));
                    list.insert(place.context("no such filter")?, value.clone());
                }
            }
        }
        Ok(())
    }
}

/// Of a match by service no part that is left out counts; one by name is for that cluster alone.
fn is_cluster(matched: &Value, name: &str) -> bool {
    if let Some(meant) = matched.get("name") {
        return *meant == name;
    }
    let parts: Vec<&str> = name.split('|').collect();
    let ["outbound", port, subset, host] = parts[..] else {
        return false;
    };
    let is = |key: &str, own: &str| matched.get(key).is_none_or(|meant| *meant == own);
    let number = matched.get("portNumber");
    is("service", host)
        && is("subset", subset)
        && number.is_none_or(|it| it.as_u64() == port.parse().ok())
}

/// Merges a patch into a cluster. One that has a transport socket does nothing else.
fn merge_cluster(cluster: &mut Value, patch: &Value) -> Result<()> {
    let Some(socket) = patch.get("transport_socket") else {
        merge(cluster, patch);
        return Ok(());
    };
    ensure!(
        cluster.get("transport_socket_matches").is_none(),
        "sockets by endpoint"
    );
    let own = cluster.get_mut("transport_socket");
    match own.filter(|own| own.get("name") == socket.get("name")) {
        Some(own) => {
            let own = own.get_mut("typed_config").context("no configuration")?;
            let patch = socket.get("typed_config").context("no configuration")?;
            ensure!(own.get("@type") == patch.get("@type"), "two types");
            if let Some(patch) = patch.as_object() {
                merge_fields(own, patch);
            }
        }
        None => set(cluster, "transport_socket", socket.clone()),
    }
    Ok(())
}

/// Merges as protobuf does: messages field by field, lists by adding, all else by replacing. A message of any type is
/// bytes to it.
fn merge(own: &mut Value, patch: &Value) {
    match (own, patch) {
        (own, Value::Object(fields)) if own.is_object() && !fields.contains_key("@type") => {
            merge_fields(own, fields);
        }
        (Value::Array(own), Value::Array(more)) => own.extend(more.iter().cloned()),
        (own, patch) => *own = patch.clone(),
    }
}

fn merge_fields(own: &mut Value, patch: &Map<String, Value>) {
    let Some(own) = own.as_object_mut() else {
        return;
    };
    for (key, value) in patch {
        let others = ALTERNATIVES.iter().filter(|all| all.contains(&&**key));
        for other in others.flat_map(|all| all.iter()).filter(|it| **it != key) {
            own.remove(*other);
        }
        match (own.get_mut(key), value.as_object()) {
            (Some(Value::Object(map)), Some(entries)) if MAPS.contains(&&**key) => {
                map.extend(entries.clone());
            }
            (Some(found), _) => merge(found, value),
            (None, _) => {
                own.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Returns the rule for a host: one that selects the proxy comes before one for all.
fn rule_for<'r>(rules: &[&'r Value], host: &str, proxy: &Proxy) -> Option<&'r Value> {
    let selector = |rule: &'r Value| rule.pointer("/spec/workloadSelector/matchLabels");
    let of_host = |rule: &&&'r Value| text(rule, "/spec/host") == host;
    let mut here = rules.iter().filter(of_host);
    let selected = |rule: &&&'r Value| selector(rule).is_some() && selects(selector(rule), proxy);
    let chosen = here.clone().find(selected);
    chosen
        .or_else(|| here.find(|rule| selector(rule).is_none()))
        .copied()
}

fn selects(labels: Option<&Value>, proxy: &Proxy) -> bool {
    let labels = labels.and_then(Value::as_object).into_iter().flatten();
    labels.into_iter().all(|(key, value)| {
        let mut own = proxy.labels.iter();
        own.any(|(name, label)| name == key && *value == **label)
    })
}

/// Returns the `tls` of a rule for a port: a subset's comes first, and a port's settings replace those of all ports.
fn tls_for<'r>(rule: &'r Value, port: u64, subset: &str) -> Option<&'r Value> {
    let of_policy = |policy: Option<&'r Value>| {
        let settings = policy?.get("portLevelSettings").and_then(Value::as_array);
        let number = json!(port);
        let own = settings
            .into_iter()
            .flatten()
            .find(|own| own.pointer("/port/number") == Some(&number));
        own.map_or(policy?.get("tls"), |own| own.get("tls"))
    };
    let subsets = rule.pointer("/spec/subsets").and_then(Value::as_array);
    let mut subsets = subsets.into_iter().flatten();
    let found = subsets.find(|found| !subset.is_empty() && text(found, "/name") == subset);
    of_policy(found.and_then(|found| found.get("trafficPolicy")))
        .or_else(|| of_policy(rule.pointer("/spec/trafficPolicy")))
}

fn set_tls(cluster: &mut Value, tls: Option<&Value>, selected: bool, proxy: &Proxy) -> Result<()> {
    let fields = cluster.as_object_mut().context("no cluster")?;
    fields.remove("transport_socket");
    fields.remove("typed_extension_protocol_options");
    let istio = cluster.pointer_mut("/metadata/filter_metadata/istio");
    let istio = istio
        .and_then(Value::as_object_mut)
        .context("no metadata")?;
    istio.remove("alpn_override");
    let Some(tls) = tls.filter(|tls| text(tls, "/mode") != "DISABLE") else {
        return Ok(());
    };
    istio.insert("alpn_override".to_owned(), json!("false"));
    let credential = tls.get("credentialName").and_then(Value::as_str);
    if credential.is_some() && proxy.context == "SIDECAR_OUTBOUND" && !selected {
        return Ok(());
    }
    let names = tls.get("subjectAltNames").and_then(Value::as_array);
    let names: Vec<&Value> = names.into_iter().flatten().collect();
    let mut common = json!({"tls_params": {
        "tls_minimum_protocol_version": "TLSv1_2",
        "tls_maximum_protocol_version": "TLSv1_3",
    }});
    if text(tls, "/mode") == "MUTUAL" {
        let name = match credential {
            Some(credential) => format!("kubernetes://{credential}"),
            None => format!(
                "file-cert:{}~{}",
                text(tls, "/clientCertificate"),
                text(tls, "/privateKey")
            ),
        };
        let certificate = json!([secret(&name)]);
        set(
            &mut common,
            "tls_certificate_sds_secret_configs",
            certificate,
        );
    }
    if tls.get("insecureSkipVerify") == Some(&json!(true)) {
        set(&mut common, "validation_context", json!({}));
    } else {
        let trusted = match (credential, text(tls, "/caCertificates")) {
            (Some(credential), _) => format!("kubernetes://{credential}-cacert"),
            (None, "") => "file-root:system".to_owned(),
            (None, path) => format!("file-root:{path}"),
        };
        let mut beside = json!({});
        if !names.is_empty() {
            let names: Vec<Value> = names.iter().map(|name| json!({"exact": name})).collect();
            set(&mut beside, "match_subject_alt_names", json!(names));
        }
        let combined = json!({
            "default_validation_context": beside,
            "validation_context_sds_secret_config": secret(&trusted),
        });
        set(&mut common, "combined_validation_context", combined);
    }
    let mut context = json!({"@type": SOCKET.1, "common_tls_context": common});
    let mut options = json!({});
    match tls.get("sni") {
        Some(sni) => set(&mut context, "sni", sni.clone()),
        None => set(&mut options, "auto_sni", json!(true)),
    }
    if tls.get("sni").is_none() && names.is_empty() {
        set(&mut options, "auto_san_validation", json!(true));
    }
    let socket = json!({"name": SOCKET.0, "typed_config": context});
    set(cluster, "transport_socket", socket);
    if options != json!({}) {
        let options = json!({
            "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
            "explicit_http_config": {"http_protocol_options": {}},
            "upstream_http_protocol_options": options,
        });
        let all = json!({HTTP_OPTIONS: options});
        set(cluster, "typed_extension_protocol_options", all);
    }
    Ok(())
}

/// Whom a cluster asks for a secret: the agent for files, istiod for the rest.
fn secret(name: &str) -> Value {
    let source = match name.starts_with("file-") {
        true => json!({"api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": true,
            "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
        }}),
        false => json!({"ads": {}}),
    };
    let mut source = source;
    set(&mut source, "resource_api_version", json!("V3"));
    json!({"name": name, "sds_config": source})
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default()
}

fn items<'v>(value: &'v mut Value, key: &str) -> impl Iterator<Item = &'v mut Value> {
    let list = value.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten()
}

fn set(value: &mut Value, key: &str, field: Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.insert(key.to_owned(), field);
    }
}
