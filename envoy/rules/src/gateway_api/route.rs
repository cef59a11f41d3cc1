//! What all kinds of routes have: what they are attached to, and their rules.

use egress_policy::fields::{Field, Fields};
use egress_policy::{
    FieldPath, HostPattern, Meta, Origin, PortNumber, Problem, ProblemKind, Severity, did_you_mean,
};
use serde_json::Value;

use crate::document;

use super::kind::{GROUP, ISTIO, Kind};
use super::known::{Known, service_host};
use super::made::{path_of, problem};
use super::rule::Rule;
use super::{connections, http};

/// A route.
pub(super) struct Route {
    pub(super) kind: Kind,
    pub(super) meta: Meta,
    pub(super) parents: Vec<Parent>,
    pub(super) hostnames: Vec<String>,
    pub(super) rules: Vec<Rule>,
}

/// What a route is attached to.
pub(super) struct Parent {
    pub(super) to: Target,
    pub(super) port: Option<PortNumber>,
    pub(super) section: Option<String>,
}

pub(super) enum Target {
    /// Hosts of the mesh.
    Hosts(Vec<String>),
    /// A Gateway of the Gateway API.
    Gateway { namespace: String, name: String },
    /// What is no concern of ours.
    Others,
}

/// What is said while a route is read that no field's type says.
#[derive(Default)]
struct Notes {
    /// Parents that are not there.
    missing: Vec<(FieldPath, String, String)>,
}

/// Reads a route, and tells everything that is wrong with it.
pub(super) fn read(
    resource: &Value,
    origin: Origin,
    kind: Kind,
    known: &Known<'_>,
) -> (Option<Route>, Vec<Problem>) {
    let mut notes = Notes::default();
    let mut id = None;
    let (route, mut problems) =
        document::read_spec(resource, origin, kind.name(), |field, meta| {
            id = Some(meta.id.clone());
            read_spec(field, meta, kind, known, &mut notes)
        });
    let Some(id) = id else {
        return (None, problems);
    };
    let missing = notes.missing.into_iter().map(|(path, text, hint)| Problem {
        id: Some("unknown-parent"),
        ..problem(Severity::Error, (&id, origin), path, text, hint)
    });
    problems.extend(missing);
    let version = resource.get("apiVersion").and_then(Value::as_str);
    let version = version.and_then(|text| text.split_once('/'));
    let (_, version) = version.unwrap_or_default();
    if !kind.versions().contains(&version) {
        let path = path_of(origin, "apiVersion");
        let text = format!("a {} of version `{version}` is not known", kind.name());
        let hint = format!("it is one of {}", kind.versions().join(", "));
        problems.push(problem(Severity::Error, (&id, origin), path, text, hint));
    }
    (route, problems)
}

fn read_spec(
    field: Field<'_>,
    meta: Meta,
    kind: Kind,
    known: &Known<'_>,
    notes: &mut Notes,
) -> Option<Route> {
    let fields = field.fields()?;
    let namespace = meta.id.namespace.clone();
    let mut parents = Vec::new();
    fields.read("parentRefs", |list| {
        list.items(|item| parents.extend(read_parent(item, kind, &namespace, known, notes)));
        Some(())
    });
    fields.ignore(&["useDefaultGateways"]);
    let hostnames = match kind {
        Kind::Tcp => Vec::new(),
        _ => read_hostnames(&fields),
    };
    let mesh = |parent: &Parent| matches!(parent.to, Target::Hosts(_));
    if kind.is_of_requests() && fields.given("hostnames") && parents.iter().all(mesh) {
        let text = "`hostnames` says nothing where the parent is a ServiceEntry or a Service";
        let hint = "as in Istio, the rules are for every host of the parent";
        fields.warning_at("hostnames", ProblemKind::Invalid(text.to_owned()), hint);
    }
    if kind == Kind::Tls && parents.iter().any(mesh) {
        check_names(&fields, &parents, &hostnames);
    }
    let rules = match kind {
        Kind::Http | Kind::Grpc => http::read_rules(&fields, kind, &meta.id),
        Kind::Tls | Kind::Tcp => connections::read_rules(&fields, &meta.id, &hostnames),
    };
    Some(Route {
        kind,
        meta,
        parents,
        hostnames,
        rules,
    })
}

fn read_hostnames(fields: &Fields<'_>) -> Vec<String> {
    let mut hostnames = Vec::new();
    fields.read("hostnames", |list| {
        list.items(|item| hostnames.extend(item.host().map(|host| host.to_string())));
        Some(())
    });
    hostnames
}

/// Reports names of a TLSRoute that none of its hosts has: nothing would take the route.
fn check_names(fields: &Fields<'_>, parents: &[Parent], names: &[String]) {
    let hosts = parents.iter().flat_map(|parent| match &parent.to {
        Target::Hosts(hosts) => &hosts[..],
        _ => &[],
    });
    let hosts: Vec<HostPattern> = hosts
        .filter_map(|host| HostPattern::parse(host).ok())
        .collect();
    let is_one = |name: &String| {
        HostPattern::parse(name).is_ok_and(|name| hosts.iter().any(|host| host.overlaps(&name)))
    };
    if !names.is_empty() && !names.iter().any(is_one) {
        let text = "no host of the parent is among these: no connection would take the route";
        let kind = ProblemKind::Conflict(text.to_owned());
        fields.error_at(
            "hostnames",
            kind,
            Some("name the hosts of the ServiceEntry"),
        );
    }
}

/// Source: istio/istio `pilot/pkg/config/kube/gateway/conversion.go`, `toInternalParentReference` and
/// `referenceAllowed`.
fn read_parent(
    field: Field<'_>,
    of: Kind,
    own: &str,
    known: &Known<'_>,
    notes: &mut Notes,
) -> Option<Parent> {
    let fields = field.fields()?;
    let text = |name| fields.read(name, |field| field.text().map(str::to_owned));
    let group = text("group").unwrap_or_else(|| GROUP.to_owned());
    let kind = text("kind").unwrap_or_else(|| "Gateway".to_owned());
    let namespace = text("namespace").unwrap_or_else(|| own.to_owned());
    let name = fields.require("name", |field| field.text().map(str::to_owned));
    let section = text("sectionName");
    let port = fields.read("port", |field| field.port());
    let name = name?;
    let to = match (group.as_str(), kind.as_str()) {
        (ISTIO, "ServiceEntry") => {
            let Some(entry) = known.entry(&namespace, &name) else {
                notes.missing(&field, known, &namespace, &name);
                return None;
            };
            check_port(&fields, port, &entry.ports);
            check_wildcard(&fields, of, &entry.hosts);
            Target::Hosts(entry.hosts.clone())
        }
        ("", "Service") => Target::Hosts(vec![service_host(&namespace, &name)]),
        (GROUP, "Gateway") => Target::Gateway { namespace, name },
        (ISTIO, _) => {
            let text =
                format!("Istio takes no `{kind}` as a parent, so the route would do nothing");
            let hint = "name the ServiceEntry of the host: `kind: ServiceEntry`";
            fields.error_at("kind", ProblemKind::Invalid(text), Some(hint));
            return None;
        }
        (_, "ServiceEntry" | "Service") => {
            let meant = if kind == "Service" { "\"\"" } else { ISTIO };
            let text = format!(
                "there is no `{kind}` in the group `{group}`, so the route would do nothing"
            );
            let hint = format!("write `group: {meant}`");
            fields.error_at("group", ProblemKind::Invalid(text), Some(&hint));
            return None;
        }
        _ => Target::Others,
    };
    if matches!(to, Target::Hosts(_)) && section.is_some() {
        let text = format!("`sectionName` says nothing for a {kind}: the rules are for every port");
        let hint = "give `port`, the number of the port";
        fields.warning_at("sectionName", ProblemKind::Invalid(text), hint);
    }
    Some(Parent { to, port, section })
}

impl Notes {
    fn missing(&mut self, field: &Field<'_>, known: &Known<'_>, namespace: &str, name: &str) {
        let text = format!("no ServiceEntry `{namespace}/{name}` is here: the route does nothing");
        let names = known.entry_names(namespace);
        let hint = match did_you_mean(name, &names) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "give the ServiceEntry, or its `namespace`".to_owned(),
        };
        self.missing.push((field.cursor.path(), text, hint));
    }
}

/// A port that the entry has not got is never called.
fn check_port(fields: &Fields<'_>, port: Option<PortNumber>, ports: &[u64]) {
    let Some(port) = port.filter(|port| !ports.contains(&u64::from(port.get()))) else {
        return;
    };
    let known: Vec<String> = ports.iter().map(u64::to_string).collect();
    let text = format!("the ServiceEntry has no port {port}: no request would take the route");
    let hint = format!("it has {}", known.join(", "));
    fields.error_at("port", ProblemKind::Conflict(text), Some(&hint));
}

/// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `separateVSHostsAndServices`: a wildcard of such a
/// route is no service, and without a service there is no virtual host.
fn check_wildcard(fields: &Fields<'_>, kind: Kind, hosts: &[String]) {
    let Some(wild) = hosts.iter().find(|host| host.starts_with('*')) else {
        return;
    };
    if kind.is_of_requests() {
        let text = format!(
            "no sidecar of Istio carries out a {} for a wildcard: requests for `{wild}` would go as if it were not there",
            kind.name()
        );
        let hint = "write a VirtualService, or a ServiceEntry that names the hosts";
        fields.error_at("name", ProblemKind::Invalid(text), Some(hint));
    }
}
