//! Kinds that Istio's proxies carry out and nobody does here: what is said of each.
//!
//! Whatever else stands in the same files, such as a Deployment, is passed over in silence. The filter is given none of
//! it.

use egress_policy::{
    DEFAULT_NAMESPACE, FieldPath, HostPattern, Origin, Problem, ProblemKind, ProtocolClass, Proxy,
    Resolution, ResourceId, Resources, Segment, Severity, did_you_mean,
};

use serde_json::Value;

use crate::document::{self, kind};

/// Kinds of Istio's groups that say nothing of outgoing traffic, or are read elsewhere.
const SILENT: [&str; 2] = ["WorkloadGroup", "IstioOperator"];

/// Kinds that something is said of, each with the group of its `apiVersion`.
const TOLD: [(&str, &str); 8] = [
    ("AuthorizationPolicy", "security.istio.io"),
    ("RequestAuthentication", "security.istio.io"),
    ("PeerAuthentication", "security.istio.io"),
    ("Telemetry", "telemetry.istio.io"),
    ("ProxyConfig", "networking.istio.io"),
    ("EnvoyFilter", "networking.istio.io"),
    ("WasmPlugin", "extensions.istio.io"),
    ("TrafficExtension", "extensions.istio.io"),
];

/// Who would carry out a resource in Istio, and what it would be for.
pub(crate) struct Around<'a> {
    /// The workload whose requests go out, unless the proxy is a gateway.
    pub(crate) sidecar: Option<&'a Proxy>,
    /// The gateways whose part is played here.
    pub(crate) routers: &'a [Proxy],
    /// The namespace whose resources are for everyone.
    pub(crate) root: &'a str,
    pub(crate) resources: &'a Resources,
}

/// A resource, and where it stands.
#[derive(Clone, Copy)]
struct Found<'v> {
    kind: &'static str,
    resource: &'v Value,
    origin: Origin,
}

/// Whether a resource is for a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum For {
    Others,
    /// It asks for labels of which nobody knows whether the proxy has them.
    Perhaps,
    It,
}

/// Returns what is said of resources that are not carried out.
pub(crate) fn problems<'v>(
    documents: impl Iterator<Item = &'v Value>,
    around: &Around<'_>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (document, value) in documents.enumerate() {
        for (item, resource) in document::resources(value) {
            let origin = Origin { document, item };
            problems.extend(Found::read(resource, origin).and_then(|found| around.told(found)));
        }
    }
    problems
}

impl<'v> Found<'v> {
    fn read(resource: &'v Value, origin: Origin) -> Option<Self> {
        let version = resource.get("apiVersion").and_then(Value::as_str)?;
        let (group, kind) = (version.split('/').next()?, kind(resource)?);
        let mut known = TOLD.iter();
        let (kind, _) = known.find(|(known, of)| *known == kind && *of == group)?;
        Some(Found {
            kind,
            resource,
            origin,
        })
    }

    fn text(&self, pointer: &str) -> Option<&'v str> {
        self.resource.pointer(pointer).and_then(Value::as_str)
    }

    fn list(&self, pointer: &str) -> &'v [Value] {
        let list = self.resource.pointer(pointer).and_then(Value::as_array);
        list.map_or(&[], Vec::as_slice)
    }

    fn id(&self) -> ResourceId {
        ResourceId {
            kind: self.kind,
            namespace: self.namespace().into(),
            name: self.text("/metadata/name").unwrap_or_default().into(),
        }
    }

    fn namespace(&self) -> &'v str {
        let namespace = self.text("/metadata/namespace");
        namespace.unwrap_or(DEFAULT_NAMESPACE)
    }

    /// Returns the labels of the workloads that it is for.
    fn labels(&self) -> impl Iterator<Item = (&'v str, &'v str)> {
        let pointer = match self.kind {
            "EnvoyFilter" => "/spec/workloadSelector/labels",
            _ => "/spec/selector/matchLabels",
        };
        let labels = self.resource.pointer(pointer).and_then(Value::as_object);
        let labels = labels.into_iter().flatten();
        labels.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    /// Returns what it is attached to by name.
    fn targets(&self) -> Vec<&'v Value> {
        match self.list("/spec/targetRefs") {
            [] => self
                .resource
                .pointer("/spec/targetRef")
                .into_iter()
                .collect(),
            all => all.iter().collect(),
        }
    }

    /// Whether it is for a sidecar, all of whose labels are known.
    ///
    /// Source: istio/istio `pilot/pkg/model/policyattachment.go`, `ShouldAttachPolicy`.
    fn is_for(&self, sidecar: &Proxy, root: &str) -> bool {
        let namespace = self.namespace();
        (namespace == sidecar.namespace || namespace == root)
            && self.targets().is_empty()
            && (self.labels())
                .all(|(key, value)| sidecar.labels.get(key).is_some_and(|own| own == value))
    }

    /// Whether it is for a gateway, which may have more labels than a Gateway selects it by.
    fn is_for_gateway(&self, router: &Proxy, root: &str) -> For {
        let namespace = self.namespace();
        let targets = self.targets();
        if !targets.is_empty() {
            let named = router.labels.get("gateway.networking.k8s.io/gateway-name");
            let is = |target: &&Value| {
                let text = |key: &str| target.get(key).and_then(Value::as_str);
                text("kind") == Some("Gateway") && text("name") == named.map(String::as_str)
            };
            let is_it = namespace == router.namespace && targets.iter().any(is);
            return if is_it && named.is_some() {
                For::It
            } else {
                For::Others
            };
        }
        if namespace != router.namespace && namespace != root {
            return For::Others;
        }
        let each = self
            .labels()
            .map(|(key, value)| match router.labels.get(key) {
                Some(own) if own == value => For::It,
                Some(_) => For::Others,
                None => For::Perhaps,
            });
        each.min().unwrap_or(For::It)
    }

    fn problem(&self, severity: Severity, field: &str, text: String, hint: &str) -> Problem {
        let path = at(field, self.origin);
        problem(severity, self.origin, Some(self.id()), path, text, hint)
    }
}

impl Around<'_> {
    fn told(&self, found: Found<'_>) -> Option<Problem> {
        match found.kind {
            "AuthorizationPolicy" if decides_nothing(&found) => None,
            "AuthorizationPolicy" => self
                .at_gateway(
                    &found,
                    "decides who may use the egress gateway, and nobody asks it here",
                )
                .or_else(|| self.of_dynamic_names(&found)),
            "RequestAuthentication" => {
                let does =
                    "checks the tokens of requests to the egress gateway, and nobody does so here";
                self.at_gateway(&found, does)
            }
            "PeerAuthentication" => self.of_mesh_entries(&found),
            "Telemetry" | "ProxyConfig" => self.of_the_proxy(&found),
            "EnvoyFilter" => self.of_patches(&found),
            _ => self.of_code(&found),
        }
    }

    fn is_for_sidecar(&self, found: &Found<'_>) -> bool {
        let sidecar = self.sidecar;
        sidecar.is_some_and(|sidecar| found.is_for(sidecar, self.root))
    }

    fn is_for_gateway(&self, found: &Found<'_>) -> For {
        let routers = self.routers.iter();
        let each = routers.map(|router| found.is_for_gateway(router, self.root));
        each.max().unwrap_or(For::Others)
    }

    /// Reports what a gateway would ask before anything goes out.
    fn at_gateway(&self, found: &Found<'_>, does: &str) -> Option<Problem> {
        let id = found.id().qualified();
        let open = "everything that reaches this proxy goes out";
        match self.is_for_gateway(found) {
            For::Others => None,
            For::It => Some(found.problem(
                Severity::Error,
                "spec",
                format!("`{id}` {does}: {open}"),
                "leave it out of these files if that is meant, else let an egress gateway of Istio's send these requests",
            )),
            For::Perhaps => {
                let labels: Vec<String> = found
                    .labels()
                    .map(|(key, value)| format!("`{key}: {value}`"))
                    .collect();
                let text = format!(
                    "if the egress gateway has the labels {}, `{id}` {does}: {open}",
                    labels.join(", ")
                );
                let hint = "leave it out of these files if it is for another workload";
                Some(found.problem(Severity::Warning, "spec.selector.matchLabels", text, hint))
            }
        }
    }

    /// Reports who may open connections by names that are looked up when they are asked for: of all that a sidecar sends,
    /// these alone are asked for a permission.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/networkfilter.go`, `buildCompleteNetworkFilters`.
    fn of_dynamic_names(&self, found: &Found<'_>) -> Option<Problem> {
        let sidecar = self.sidecar?;
        let asked = self.resources.service_entries.iter().find_map(|entry| {
            let owner = &*entry.meta.id.namespace;
            let wild = |host: &&HostPattern| host.exact().is_none();
            let host = entry.hosts.iter().find(wild)?;
            let mut ports = entry.ports.iter();
            let port = ports.find(|port| port.protocol.class() == ProtocolClass::Tls)?;
            let its = found.namespace() == owner && self.is_of_caller(found, sidecar);
            (entry.resolution == Resolution::DynamicDns && (its || self.is_for_sidecar(found)))
                .then_some((host, port.number))
        });
        let (host, port) = asked?;
        let text = format!(
            "`{}` decides who may open TLS connections to `{host}:{port}`, and nobody asks it here: everything that reaches this proxy goes out",
            found.id().qualified()
        );
        let hint = "leave it out of these files if that is meant, else remove the port from the ServiceEntry";
        Some(found.problem(Severity::Error, "spec", text, hint))
    }

    /// Whether a policy beside an entry selects the caller.
    fn is_of_caller(&self, found: &Found<'_>, sidecar: &Proxy) -> bool {
        let beside = Proxy {
            namespace: found.namespace().to_owned(),
            ..sidecar.clone()
        };
        found.is_for(&beside, self.root)
    }

    fn of_mesh_entries(&self, found: &Found<'_>) -> Option<Problem> {
        let namespace = found.namespace();
        let mut entries = self.resources.service_entries.iter();
        let entry = entries.find(|entry| {
            let own = *entry.meta.id.namespace == *namespace || namespace == self.root;
            entry.internal && own
        })?;
        if found.text("/spec/mtls/mode") == Some("DISABLE") {
            return None;
        }
        let host = entry.hosts.first()?;
        let text = format!(
            "`{}` is about mTLS between workloads of the mesh, which is not spoken here: `{host}` (MESH_INTERNAL) is reached without it",
            found.id().qualified()
        );
        let hint = "give the host a DestinationRule with a `tls` that its server takes";
        Some(found.problem(Severity::Warning, "spec", text, hint))
    }

    fn of_the_proxy(&self, found: &Found<'_>) -> Option<Problem> {
        if !self.is_for_sidecar(found) && self.is_for_gateway(found) == For::Others {
            return None;
        }
        let id = found.id().qualified();
        let (what, hint) = match found.kind {
            "Telemetry" => (
                "logs, metrics and tracing are",
                "leave it out of these files; `--access-log-format` chooses the log",
            ),
            _ => (
                "Envoy's threads, image and environment are",
                "leave it out of these files",
            ),
        };
        let text = format!("{what} set by egressctl's own flags, not by `{id}`");
        Some(found.problem(Severity::Warning, "spec", text, hint))
    }

    /// Reports code that Istio's proxies would run.
    fn of_code(&self, found: &Found<'_>) -> Option<Problem> {
        let modes = found.list("/spec/match").iter();
        let mut modes = modes.map(|it| it.get("mode").and_then(Value::as_str));
        // Of what a sidecar runs for requests that come in, nothing is missing here.
        let only_in = modes.len() > 0 && modes.all(|mode| mode == Some("SERVER"));
        let here = !only_in && self.is_for_sidecar(found);
        if !here && self.is_for_gateway(found) == For::Others {
            return None;
        }
        let text = format!(
            "`{}` runs code on requests, and it is not run here: what it adds, such as credentials, will be missing",
            found.id().qualified()
        );
        let hint = "leave it out of these files if requests can do without, else send them through Istio's proxy";
        Some(found.problem(Severity::Error, "spec", text, hint))
    }

    /// Reports patches of Envoy's configuration. Those that may change the way of a host refuse it: see
    /// [`egress_policy::Unread`].
    fn of_patches(&self, found: &Found<'_>) -> Option<Problem> {
        let sidecar = self.is_for_sidecar(found);
        let gateway = self.is_for_gateway(found) != For::Others;
        let id = found.id();
        let mut refuses = self.resources.unread.iter().filter(|it| it.id == id);
        let refuses = sidecar && refuses.any(|unread| unread.patches_any());
        let mut kinds = Vec::new();
        for (at, patch) in found.list("/spec/configPatches").iter().enumerate() {
            let text = |pointer: &str| patch.pointer(pointer).and_then(Value::as_str);
            let (here, there) = match text("/match/context") {
                None | Some("ANY") => (sidecar, gateway),
                Some("SIDECAR_OUTBOUND") => (sidecar, false),
                Some("GATEWAY") => (false, gateway),
                Some(_) => (false, false),
            };
            let apply_to = text("/applyTo").unwrap_or_default();
            let operation = text("/patch/operation").unwrap_or_default();
            let added = apply_to == "CLUSTER" && operation == "ADD";
            if !(here || there) || added {
                continue;
            }
            if let Some(what) = carries(apply_to, operation, patch.pointer("/patch/value"), there) {
                let text = format!(
                    "`{}` changes Envoy's own configuration, which is not read: {what} for outgoing traffic is missing here",
                    id.qualified()
                );
                let hint = "leave it out of these files if outgoing traffic can do without, else send it through Istio's proxy";
                let mut problem = found.problem(Severity::Error, "spec.configPatches", text, hint);
                problem.path.0.push(Segment::Index(at));
                return Some(problem);
            }
            if !kinds.contains(&apply_to) {
                kinds.push(apply_to);
            }
        }
        if kinds.is_empty() || refuses {
            return None;
        }
        let text = format!(
            "`{}` changes Envoy's own configuration ({}), which is not read: what it does to outgoing traffic is missing here",
            id.qualified(),
            kinds.join(", ")
        );
        let hint = "leave it out of these files if outgoing traffic can do without";
        Some(found.problem(Severity::Warning, "spec.configPatches", text, hint))
    }
}

/// Returns what a patch brings that must not be missing.
fn carries(
    apply_to: &str,
    operation: &str,
    value: Option<&Value>,
    at_gateway: bool,
) -> Option<&'static str> {
    let filter = matches!(apply_to, "HTTP_FILTER" | "NETWORK_FILTER");
    if filter && (operation.starts_with("INSERT") || matches!(operation, "ADD" | "REPLACE")) {
        return Some("a filter");
    }
    // Of sidecars the engine knows which hosts a patch is for, and refuses these.
    let mut fields = ["transport_socket", "cluster", "route"].into_iter();
    let found = fields.find(|field| value.is_some_and(|value| has(value, field)));
    found.filter(|_| at_gateway).map(|field| match field {
        "transport_socket" => "a `transport_socket`",
        "cluster" => "a `cluster`",
        _ => "a `route`",
    })
}

fn has(value: &Value, field: &str) -> bool {
    match value {
        Value::Object(fields) => fields
            .iter()
            .any(|(key, value)| key == field || has(value, field)),
        Value::Array(items) => items.iter().any(|item| has(item, field)),
        _ => false,
    }
}

/// Whether a policy lets everything pass.
fn decides_nothing(found: &Found<'_>) -> bool {
    let dry_run = found.resource.pointer("/metadata/annotations");
    let dry_run = dry_run.and_then(|notes| notes.get("istio.io/dry-run"));
    if dry_run.and_then(Value::as_str) == Some("true") {
        return true;
    }
    let rules = found.list("/spec/rules");
    let all = |rule: &Value| {
        let parts = ["from", "to", "when"].map(|part| rule.get(part).and_then(Value::as_array));
        parts.into_iter().flatten().all(Vec::is_empty)
    };
    match found.text("/spec/action").unwrap_or("ALLOW") {
        "AUDIT" => true,
        "ALLOW" => rules.iter().any(all),
        _ => rules.is_empty(),
    }
}

/// Returns what is said of a kind that nobody knows: a slip, or one that Istio has got since.
pub(crate) fn unknown<'v>(documents: impl Iterator<Item = &'v Value>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (document, value) in documents.enumerate() {
        for (item, resource) in document::resources(value) {
            problems.extend(unknown_kind(resource, Origin { document, item }));
        }
    }
    problems
}

fn unknown_kind(resource: &Value, origin: Origin) -> Option<Problem> {
    let kind = kind(resource)?;
    let version = resource.get("apiVersion").and_then(Value::as_str)?;
    let group = version.split('/').next()?;
    let known = TOLD.iter().any(|(known, _)| *known == kind) || SILENT.contains(&kind);
    // A slip in one of these is an error already.
    let known =
        known || document::is_ours(resource) || did_you_mean(kind, &egress_policy::KINDS).is_some();
    let (text, hint) = if group.ends_with(".istio.io") && !known {
        let text = format!("`{kind}` of `{group}` is not known here, and is not read");
        let hint = "if it decides about outgoing traffic, that is missing here".to_owned();
        (text, hint)
    } else if version == "v1" {
        let meant = did_you_mean(kind, &["Secret", "ConfigMap"]).filter(|meant| *meant != kind)?;
        (
            format!("`{kind}` is not read"),
            format!("did you mean `{meant}`?"),
        )
    } else {
        return None;
    };
    let path = at("kind", origin);
    Some(problem(Severity::Warning, origin, None, path, text, &hint))
}

/// Returns a field's path from the root of the document.
fn at(field: &str, origin: Origin) -> FieldPath {
    let mut path = FieldPath::keys(field);
    if let Some(item) = origin.item {
        let list = [Segment::Key("items".to_owned()), Segment::Index(item)];
        path.0.splice(0..0, list);
    }
    path
}

fn problem(
    severity: Severity,
    origin: Origin,
    resource: Option<ResourceId>,
    path: FieldPath,
    text: String,
    hint: &str,
) -> Problem {
    Problem {
        severity,
        origin,
        resource,
        path,
        kind: ProblemKind::Invalid(text),
        hint: Some(hint.to_owned()),
        id: None,
    }
}
