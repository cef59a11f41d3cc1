//! Parse: documents in any of serde's formats become [`Resources`]; each problem knows its document and field.

use serde_json::Value;

use crate::aliases::resolve;
use crate::attach::attach;
use crate::fields::{Cursor, Field, Fields, Report, listed};
use crate::node::Node;
use crate::order::sort_by;
use crate::problem::{FieldPath, Origin, Problem, ProblemKind, Problems, Severity, did_you_mean};
use crate::resource::{
    BackendTlsPolicy, DestinationRule, Gateway, KubernetesService, Meta, Resources, ServiceEntry,
    Sidecar, UNREAD_KINDS, Unread, VirtualService, WorkloadEntry,
};
use crate::workloads::select;

/// The versions of `networking.istio.io` that are read.
pub const API_VERSIONS: [&str; 3] = [
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
];

/// The kinds that are read.
pub const KINDS: [&str; 6] = [
    ServiceEntry::KIND,
    DestinationRule::KIND,
    VirtualService::KIND,
    Gateway::KIND,
    Sidecar::KIND,
    WorkloadEntry::KIND,
];

/// Whether a kind is a list of resources, where it has `items`: `List`, or `ServiceEntryList` as the API server has
/// it.
pub fn is_list(kind: &str) -> bool {
    kind.ends_with("List")
}

/// Turns documents into resources, and remembers all that is wrong with them.
#[derive(Debug, Default)]
pub struct Parser {
    documents: usize,
    resources: Resources,
    policies: Vec<BackendTlsPolicy>,
    workloads: Vec<WorkloadEntry>,
    services: Vec<KubernetesService>,
    problems: Vec<Problem>,
}

impl Parser {
    /// Returns a parser that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads one document: a resource, or a Kubernetes `List` of them. `null`, an empty document, is none.
    pub fn document(&mut self, value: &Value) {
        self.node(&Node::from(value));
    }

    /// As [`Parser::document`], from what was read for this alone.
    pub fn node(&mut self, value: &Node<'_>) {
        let document = self.documents;
        self.documents += 1;
        let Node::Object(map) = value else {
            if *value != Node::Null {
                self.lone(
                    document,
                    FieldPath::default(),
                    ProblemKind::WrongType {
                        expected: "an object",
                        found: "something else".to_owned(),
                    },
                );
            }
            return;
        };
        let is_list = matches!(map.get("kind"), Some(Node::Text(kind)) if is_list(kind));
        match map.get("items") {
            Some(Node::List(items)) if is_list => {
                let list = Cursor::Key(&Cursor::Root, "items");
                for (index, item) in items.iter().enumerate() {
                    self.resource(
                        Origin {
                            document,
                            item: Some(index),
                        },
                        Cursor::Index(&list, index),
                        item,
                    );
                }
            }
            _ => self.resource(
                Origin {
                    document,
                    item: None,
                },
                Cursor::Root,
                value,
            ),
        }
    }

    /// Returns what was read, and what was wrong. Resources with an error are left out.
    pub fn finish(mut self) -> (Resources, Problems) {
        self.twice();
        let services = std::mem::take(&mut self.services);
        let mut problems = resolve(services, &mut self.resources);
        self.problems.append(&mut problems);
        let workloads = std::mem::take(&mut self.workloads);
        let mut problems = select(workloads, &mut self.resources.service_entries);
        self.problems.append(&mut problems);
        let policies = std::mem::take(&mut self.policies);
        let mut problems = attach(policies, &mut self.resources);
        self.problems.append(&mut problems);
        (self.resources, Problems(self.problems))
    }

    /// Reports resources of one kind, namespace and name: the order of files must not decide between them.
    fn twice(&mut self) {
        let entries = self
            .resources
            .service_entries
            .iter()
            .map(|entry| &entry.meta);
        let rules = self
            .resources
            .destination_rules
            .iter()
            .map(|rule| &rule.meta);
        let services = self.resources.virtual_services.iter().map(|it| &it.meta);
        let gateways = self.resources.gateways.iter().map(|it| &it.meta);
        let sidecars = self.resources.sidecars.iter().map(|it| &it.meta);
        let policies = self.policies.iter().map(|it| &it.meta);
        let workloads = self.workloads.iter().map(|it| &it.meta);
        let others = services.chain(gateways).chain(sidecars);
        let others = others.chain(policies).chain(workloads);
        let mut metas: Vec<&Meta> = entries.chain(rules).chain(others).collect();
        sort_by(&mut metas, |a, b| (&a.id, a.origin).cmp(&(&b.id, b.origin)));
        let mut problems = Vec::new();
        for pair in metas.windows(2) {
            if let [first, later] = pair
                && first.id == later.id
            {
                let kind = ProblemKind::Duplicate {
                    id: later.id.clone(),
                    first: first.origin.document + 1,
                };
                let hint = Some("remove one of the two, or give it another name".to_owned());
                problems.push(problem_of(
                    Severity::Error,
                    later,
                    FieldPath::keys("metadata.name"),
                    kind,
                    hint,
                ));
            }
        }
        self.problems.append(&mut problems);
    }

    fn lone(&mut self, document: usize, path: FieldPath, kind: ProblemKind) {
        let origin = Origin {
            document,
            item: None,
        };
        self.problems.push(Problem {
            severity: Severity::Error,
            origin,
            resource: None,
            path,
            kind,
            hint: None,
            id: None,
        });
    }

    fn resource(&mut self, origin: Origin, cursor: Cursor<'_>, value: &Node<'_>) {
        let report = Report::new(origin);
        let field = Field {
            report: &report,
            cursor,
            value,
        };
        let read = field
            .fields()
            .and_then(|fields| read_resource(&fields, origin));
        let usable = !report.has_errors();
        let problems = report.into_problems();
        if let Some(Read::BackendTlsPolicy(mut policy)) = read {
            policy.problems = problems;
            return self.policies.push(*policy);
        }
        self.problems.extend(problems);
        match read {
            Some(Read::ServiceEntry(mut entry)) if usable => {
                let entries = &mut self.resources.service_entries;
                if let Some(before) = entries.last()
                    && before.ports == entry.ports
                {
                    entry.ports.clone_from(&before.ports);
                }
                push(entries, *entry);
            }
            Some(Read::DestinationRule(mut rule)) if usable => {
                let rules = &mut self.resources.destination_rules;
                if let Some(before) = rules.last()
                    && before.policy == rule.policy
                {
                    rule.policy.clone_from(&before.policy);
                }
                push(rules, *rule);
            }
            Some(Read::VirtualService(service)) => {
                push(&mut self.resources.virtual_services, *service);
            }
            Some(Read::Gateway(gateway)) => push(&mut self.resources.gateways, *gateway),
            Some(Read::Sidecar(sidecar)) => push(&mut self.resources.sidecars, *sidecar),
            Some(Read::WorkloadEntry(workload)) if usable => self.workloads.push(*workload),
            Some(Read::Service(service)) => self.services.push(*service),
            Some(Read::Unread(unread)) => self.resources.unread.push(*unread),
            _ => {}
        }
    }
}

/// Adds to a list that may become long: where `push` would take room for twice as many, which in a VM is never given
/// back, this takes room for a quarter more.
fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 4 + 4);
    }
    list.push(item);
}

enum Read {
    ServiceEntry(Box<ServiceEntry>),
    DestinationRule(Box<DestinationRule>),
    BackendTlsPolicy(Box<BackendTlsPolicy>),
    WorkloadEntry(Box<WorkloadEntry>),
    Service(Box<KubernetesService>),
    VirtualService(Box<VirtualService>),
    Gateway(Box<Gateway>),
    Sidecar(Box<Sidecar>),
    Unread(Box<Unread>),
}

fn read_resource(root: &Fields<'_>, origin: Origin) -> Option<Read> {
    let api_version = root.require("apiVersion", |field| field.text().map(str::to_owned));
    let kind = root.require("kind", |field| field.text().map(str::to_owned));
    let (Some(api_version), Some(kind)) = (api_version, kind) else {
        root.allow_unknown();
        return None;
    };
    let known = API_VERSIONS.contains(&api_version.as_str());
    match kind.as_str() {
        ServiceEntry::KIND if known => ServiceEntry::read(root, origin)
            .map(Box::new)
            .map(Read::ServiceEntry),
        DestinationRule::KIND if known => DestinationRule::read(root, origin)
            .map(Box::new)
            .map(Read::DestinationRule),
        WorkloadEntry::KIND if known => WorkloadEntry::read(root, origin)
            .map(Box::new)
            .map(Read::WorkloadEntry),
        VirtualService::KIND | Gateway::KIND | Sidecar::KIND if known => {
            Some(match kind.as_str() {
                VirtualService::KIND => {
                    Read::VirtualService(Box::new(VirtualService::read(root, origin)))
                }
                Gateway::KIND => Read::Gateway(Box::new(Gateway::read(root, origin))),
                _ => Read::Sidecar(Box::new(Sidecar::read(root, origin))),
            })
        }
        KubernetesService::KIND if api_version == "v1" => {
            root.allow_unknown();
            let (metadata, spec) = (root.peek("metadata"), root.peek("spec"));
            KubernetesService::read(origin, metadata, spec)
                .map(Box::new)
                .map(Read::Service)
        }
        kind if BackendTlsPolicy::is(&api_version, kind) => {
            BackendTlsPolicy::read(root, &api_version, origin)
                .map(Box::new)
                .map(Read::BackendTlsPolicy)
        }
        _ => {
            root.allow_unknown();
            let group = api_version.split('/').next();
            let unread = |(known, of): &&(&str, &str)| *known == kind && group == Some(*of);
            if let Some((kind, _)) = UNREAD_KINDS.iter().find(unread) {
                let (metadata, spec) = (root.peek("metadata"), root.peek("spec"));
                let unread = Unread::read(kind, origin, metadata, spec);
                return Some(Read::Unread(Box::new(unread)));
            }
            other_kind(root, &api_version, kind);
            None
        }
    }
}

/// Reports a resource that is not one of ours: a slip is an error, another kind a warning.
fn other_kind(root: &Fields<'_>, api_version: &str, kind: String) {
    // There is a Gateway in another group, too.
    let other = kind == Gateway::KIND && !api_version.starts_with("networking.istio.io/");
    let known = KINDS.contains(&kind.as_str()) && !other;
    if known {
        let kind = ProblemKind::UnknownValue {
            what: "version",
            found: api_version.chars().take(60).collect(),
        };
        root.error_at(
            "apiVersion",
            kind,
            Some(&format!("it is one of {}", listed(&API_VERSIONS))),
        );
        return;
    }
    if let Some(meant) = did_you_mean(&kind, &KINDS).filter(|_| !other) {
        let kind = ProblemKind::UnknownResource {
            api_version: api_version.to_owned(),
            found: kind,
        };
        root.error_at("kind", kind, Some(&format!("did you mean `{meant}`?")));
        return;
    }
    root.read("kind", |field| {
        field.warning(
            ProblemKind::IgnoredKind(kind),
            "it does not decide about outgoing traffic",
        );
        Some(())
    });
}

/// As [`Meta::problem`].
pub(crate) fn problem_of(
    severity: Severity,
    meta: &Meta,
    path: FieldPath,
    kind: ProblemKind,
    hint: Option<String>,
) -> Problem {
    meta.problem(severity, path, kind, hint)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn problems(value: Value) -> Vec<String> {
        let mut parser = Parser::new();
        parser.document(&value);
        parser.finish().1.0.iter().map(Problem::to_string).collect()
    }

    fn entry(spec: Value) -> Value {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "a"}, "spec": spec})
    }

    fn rule(policy: Value) -> Value {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "a"},
               "spec": {"host": "a.com", "trafficPolicy": policy}})
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let found = problems(entry(json!({
            "hosts": ["http://a.com", "b.com"],
            "ports": [{"number": 0, "name": "p", "protocol": "HTP"}, {"number": "80", "name": "q", "target_port": 443}],
            "resolution": "dns",
        })));
        assert_eq!(
            found,
            [
                "error: spec.hosts[0]: domain name `http://a.com` invalid (label `http://a` invalid) (ServiceEntry default/a, document 1); give the host alone, without scheme and path",
                "error: spec.ports[0].number: 0 is out of range 1..65535 (ServiceEntry default/a, document 1)",
                "error: spec.ports[0].protocol: unknown protocol `HTP` (ServiceEntry default/a, document 1); did you mean `HTTP`?",
                "error: spec.ports[1].number: expected a number, found the string `80` (ServiceEntry default/a, document 1); write 80 without quotes",
                "error: spec.ports[1].target_port: unknown field `target_port` (ServiceEntry default/a, document 1); did you mean `targetPort`?",
                "error: spec.resolution: unknown resolution `dns` (ServiceEntry default/a, document 1); did you mean `DNS`?",
            ]
        );
    }

    #[test]
    fn names_are_those_that_kubernetes_takes() {
        let named = |metadata: Value| {
            let mut rule = rule(json!({"tls": {"mode": "SIMPLE"}}));
            rule["metadata"] = metadata;
            problems(rule)
        };
        assert!(named(json!({"name": "a.b-1", "namespace": "n-1"})).is_empty());
        for bad in ["../a", "a/b", "A", "a..b", "-a", "a-", &"a".repeat(254)] {
            let found = named(json!({"name": bad}));
            assert!(found[0].starts_with("error: metadata.name: "), "{found:?}");
        }
        for bad in ["a.b", "x/../y", &"a".repeat(64)] {
            let found = named(json!({"name": "a", "namespace": bad}));
            assert!(
                found[0].starts_with("error: metadata.namespace: "),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_tls_block_without_a_mode_is_not_plaintext() {
        let found = problems(rule(json!({"tls": {"sni": "a.com"}})));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("error: spec.trafficPolicy.tls.mode: is required"),
            "{found:?}"
        );
    }

    #[test]
    fn a_list_is_its_items() {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            entry(json!({"hosts": ["a.com"], "ports": [{"number": 80, "name": "p", "protocol": "HTTP"}], "resolution": "DNS"})),
            entry(json!({"hosts": ["a.com"], "ports": [{"number": 80, "name": "p", "protocol": "HTTP"}], "resolution": "D"})),
        ]});
        let mut parser = Parser::new();
        parser.document(&list);
        let (resources, problems) = parser.finish();
        assert_eq!(resources.service_entries.len(), 1);
        assert_eq!(problems.0[0].path.to_string(), "items[1].spec.resolution");
    }

    #[test]
    fn other_kinds_are_told_and_let_be() {
        let found = problems(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {}}),
        );
        assert_eq!(
            found,
            [
                "warning: kind: `Secret` is not read (document 1); it does not decide about outgoing traffic"
            ]
        );
        let found =
            problems(json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntri"}));
        assert!(found[0].starts_with("error: kind:"), "{found:?}");
        let found =
            problems(json!({"apiVersion": "networking.istio.io/v2", "kind": "ServiceEntry"}));
        assert!(
            found[0].starts_with("error: apiVersion: unknown version"),
            "{found:?}"
        );
        assert!(problems(json!([])).len() == 1 && problems(json!(null)).is_empty());
    }
}
