//! Rules from files: read, parsed and compiled, with every problem at its line.

use std::collections::BTreeSet;
use std::sync::Arc;

use egress_filter::config::compact;
use egress_policy::{
    CompileOptions, Compiled, DEFAULT_NAMESPACE, FieldPath, HostPattern, Origin, OutboundMode,
    Parser, PolicyTable, PortNumber, Problem, ProblemKind, Problems, Proxy, ResourceId, Resources,
    Role, Segment, ServiceEntry, Severity, Unread,
};
use serde_json::Value;

use crate::annotations;
use crate::delegates;
use crate::diagnostic::{Diagnostic, Report, diagnostic, located};
use crate::document::{
    self, as_given, bare, into_ours, is_backend_tls_policy, is_ours, is_service, is_unread,
    known_kind, name_generated, ours,
};
use crate::gateway_api::{self, Made};
use crate::legacy;
use crate::mesh::{self, MeshConfig};
use crate::others::{self, Around};
use crate::policy::{check_authorities, policies};
use crate::routes::{self, Routes};
use crate::secrets::{Documents, Extracted};
use crate::source::Source;
use crate::strict;
use crate::virtual_service::{self, VirtualService};
use crate::yaml::{self, AlreadyRead, Document, Each, Location};

/// Rules that compile.
#[derive(Debug)]
pub struct Rules {
    /// What they say.
    pub table: PolicyTable,
    /// What was read.
    pub parsed: Resources,
    /// What was noticed and prevents nothing.
    pub warnings: Report,
    /// The Secrets and ConfigMaps that stood among the rules.
    pub credentials: Documents,
    /// The configuration of the mesh that was given with them.
    pub mesh: MeshConfig,
    /// The VirtualServices that concern hosts of the rules, read whole.
    pub virtual_services: Arc<[VirtualService]>,
    documents: Documented,
    /// What was made of the routes of the Gateway API among them.
    made: Made,
}

/// Documents, each with the name of its file.
type Documented = Vec<(Arc<str>, Document)>;

impl Rules {
    /// Returns the documents of our kinds as JSON, `List`s taken apart, in the compact form: what the filter
    /// is given.
    pub fn resources(&self) -> Vec<Value> {
        let whole = self
            .documents
            .iter()
            .flat_map(|(_, document)| ours(&document.value))
            .chain(&self.made.documents)
            .cloned();
        compact::encode(bare(self.for_the_filter(whole)))
    }

    /// Leaves out what is not carried out and concerns no host of the rules: the filter would read it in vain.
    fn for_the_filter(&self, resources: impl Iterator<Item = Value>) -> Vec<Value> {
        let entries = &self.parsed.service_entries;
        let unread = self.parsed.unread.iter();
        let concern: BTreeSet<(&str, &str, &str)> = unread
            .filter(|unread| unread.concerns(entries))
            .map(|unread| &unread.id)
            .chain(policies(&self.parsed))
            .chain(self.parsed.services.iter().map(|service| &service.meta.id))
            .map(|id| (id.kind, &*id.namespace, &*id.name))
            .collect();
        let services = self.parsed.virtual_services.iter();
        let concerned = self.parsed.concerned();
        let unconcerned: BTreeSet<(&str, &str, &str)> = services
            .zip(&concerned)
            .filter(|(_, concerned)| !**concerned)
            .map(|(service, _)| {
                let id = &service.meta.id;
                (id.kind, &*id.namespace, &*id.name)
            })
            .collect();
        let selecting = entries.iter().filter(|it| it.workload_selector.is_some());
        let selecting: BTreeSet<&str> = selecting.map(|it| &*it.meta.id.namespace).collect();
        let wanted = |resource: &Value| {
            let text = |pointer| resource.pointer(pointer).and_then(Value::as_str);
            let namespace = text("/metadata/namespace").unwrap_or(egress_policy::DEFAULT_NAMESPACE);
            let kind = known_kind(resource).unwrap_or_default();
            let name = text("/metadata/name");
            if kind == "WorkloadEntry" {
                return selecting.contains(namespace);
            }
            let id = (kind, namespace, name.unwrap_or_default());
            match is_unread(resource) || is_backend_tls_policy(resource) || is_service(resource) {
                true => concern.contains(&id),
                false => !unconcerned.contains(&id),
            }
        };
        resources.filter(wanted).collect()
    }

    /// Returns what [`Rules::resources`] does, but takes it out of the documents: of these only the places are left.
    pub fn take_resources(&mut self) -> Vec<Value> {
        let mut documents = std::mem::take(&mut self.documents);
        let whole = documents
            .iter_mut()
            .flat_map(|(_, document)| into_ours(document.value.take()))
            .chain(std::mem::take(&mut self.made.documents));
        let resources = self.for_the_filter(whole);
        self.documents = documents;
        compact::encode(bare(resources))
    }

    /// Returns the documents of our kinds as they were given, `List`s taken apart, without what a cluster noted down
    /// on them.
    pub fn given(&self) -> Vec<Value> {
        self.documents
            .iter()
            .flat_map(|(_, document)| ours(&document.value))
            .filter(|resource| !is_unread(resource))
            .map(as_given)
            .collect()
    }

    /// Returns the first resource among the rules that does more to the HTTP requests for a host of an entry than to lead
    /// them to a port of it, as `kind namespace/name`.
    pub fn decides(&self, entry: &ServiceEntry, host: &HostPattern, role: Role) -> Option<String> {
        let documents = self.documents.iter();
        let all = documents.flat_map(|(_, document)| document::resources(&document.value));
        let mut all = all.map(|(_, found)| found).chain(&self.made.documents);
        let found = all.find(|found| routes::decides(found, entry, host, role))?;
        let text = |pointer| found.pointer(pointer).and_then(Value::as_str);
        let namespace = text("/metadata/namespace").unwrap_or(DEFAULT_NAMESPACE);
        let name = text("/metadata/name").unwrap_or_default();
        let id = ResourceId {
            kind: crate::document::made_of(found).unwrap_or("VirtualService"),
            namespace: namespace.into(),
            name: name.into(),
        };
        Some(self.written(&id, 0).to_string())
    }

    /// Returns the resource of which a VirtualService or a rule of it was made: itself, unless it is of the Gateway API.
    pub(crate) fn written<'r>(&'r self, id: &'r ResourceId, rule: usize) -> &'r ResourceId {
        self.made.route_of(id, rule).unwrap_or(id)
    }

    /// Returns what people are told of the rules though they compile.
    pub fn warned(&self) -> Vec<String> {
        self.warnings.told()
    }

    /// Returns a workload of each kind that the rules tell apart in a namespace.
    pub fn workloads(&self, namespace: &str) -> Vec<Proxy> {
        Proxy::kinds(namespace, &self.parsed.destination_rules)
    }

    /// Returns how the rules were compiled: with the configuration of the mesh that was given with them.
    pub fn options(&self, options: &CompileOptions) -> CompileOptions {
        CompileOptions {
            mesh: self.mesh.decides.clone(),
            ..options.clone()
        }
    }

    /// Compiles the same rules for another workload.
    ///
    /// # Errors
    /// With every problem that this workload has with them.
    pub fn compile_for(
        &self,
        proxy: Proxy,
        options: &CompileOptions,
    ) -> Result<PolicyTable, Report> {
        let options = CompileOptions {
            proxy,
            ..self.options(options)
        };
        PolicyTable::compile(&self.parsed, &options)
            .map(|(table, _)| table)
            .map_err(|mut problems| {
                self.made.tell_all(&mut problems);
                Report(located(&problems, &self.documents))
            })
    }

    /// Returns the file and the line at which a resource begins.
    pub fn place(&self, origin: Origin) -> Option<(&str, Location)> {
        let (file, document) = self.documents.get(origin.document)?;
        let path = match origin.item {
            Some(item) => FieldPath(vec![Segment::Key("items".to_owned()), Segment::Index(item)]),
            None => FieldPath::default(),
        };
        Some((file, document.place(&path, false)))
    }

    /// Returns the file and the place of a resource's field; of what is around it when it is not there.
    pub fn field(&self, origin: Origin, path: &FieldPath) -> (String, Location) {
        match self.documents.get(origin.document) {
            Some((file, document)) => (file.to_string(), document.place(path, false)),
            None => (String::new(), Location::START),
        }
    }
}

/// What is said of rules that have no ServiceEntry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nothing {
    /// They are an error: nobody starts a proxy for nothing.
    Refused,
    /// They are let pass with a warning: the last ServiceEntry may be removed while a proxy runs.
    Allowed,
    /// They are let pass, and so is what other files may put right: these are a part of the rules.
    Part,
}

/// The id of the diagnostic that there is no ServiceEntry.
const NO_SERVICE_ENTRY: &str = "no-service-entry";

/// How rules are read and compiled, where it is not as [`compile`] does.
pub struct How<'k> {
    /// What was read before. It is not read again; afterwards these sources are known.
    pub known: Option<&'k mut AlreadyRead>,
    /// How the parts of large files are read: in turn, or at the same time by who has threads.
    pub each: Each,
    /// What is said of rules that have no ServiceEntry.
    pub nothing: Nothing,
    /// Who carries out the routes among them.
    pub routes: Routes,
}

impl Default for How<'_> {
    fn default() -> Self {
        How {
            known: None,
            each: yaml::in_turn,
            nothing: Nothing::Refused,
            routes: Routes::Ours,
        }
    }
}

/// Reads and compiles rules.
///
/// # Errors
/// With every problem of every document, each at its place, in the order of the files.
pub fn compile(sources: &[Source], options: &CompileOptions) -> Result<Rules, Report> {
    compile_as(sources, options, How::default())
}

/// As [`compile`], with a say in how it is done.
///
/// # Errors
/// As [`compile`].
pub fn compile_as(
    sources: &[Source],
    options: &CompileOptions,
    how: How<'_>,
) -> Result<Rules, Report> {
    let mut parsed = parse(sources, options.outbound, how.known, how.each);
    if how.routes == Routes::Istiods {
        let documents = parsed.documents.iter();
        let all = documents.flat_map(|(_, document)| document::resources(&document.value));
        routes::leave(&mut parsed.resources, all.map(|(_, resource)| resource));
    }
    compile_parsed(parsed, sources, options, how.nothing)
}

fn compile_parsed(
    parsed: Parsed,
    sources: &[Source],
    options: &CompileOptions,
    nothing: Nothing,
) -> Result<Rules, Report> {
    let Parsed {
        documents,
        made,
        resources,
        mut problems,
        extracted,
        mesh,
        virtual_services,
        notes,
        mut diagnostics,
    } = parsed;
    if nothing == Nothing::Part {
        milden(&mut problems);
    }
    let unreadable = !diagnostics.is_empty();
    let failed = unreadable || problems.has_errors();
    if failed {
        diagnostics.extend(located(&problems, &documents));
        return Err(Report(diagnostics));
    }
    if resources.service_entries.is_empty() {
        let mut diagnostic = no_entry(sources);
        if nothing != Nothing::Refused {
            diagnostic.severity = Severity::Warning;
        }
        diagnostics.push(diagnostic);
        if nothing == Nothing::Refused {
            diagnostics.splice(0..0, located(&problems, &documents));
            return Err(Report(diagnostics));
        }
    }
    let options = CompileOptions {
        mesh: mesh.decides.clone(),
        ..options.clone()
    };
    let mut compiled = PolicyTable::compile_with_errors(&resources, &options);
    if nothing == Nothing::Part {
        milden(&mut compiled.problems);
    }
    made.tell_all(&mut compiled.problems);
    let (table, mut warnings) = (compiled.table, compiled.problems);
    warnings.0.extend(legacy::impossible(&table, &resources));
    if !options.foreign {
        let proxy = &options.proxy;
        let around = Around {
            sidecar: (proxy.role == Role::Sidecar).then_some(proxy),
            routers: &compiled.gateways,
            root: &options.mesh.root_namespace,
            resources: &resources,
        };
        let values = documents.iter().map(|(_, document)| &document.value);
        warnings.0.extend(others::problems(values, &around));
        warnings.0.extend(annotations::problems(&resources));
    }
    diagnostics.extend(notes);
    diagnostics.extend(located(&problems, &documents));
    diagnostics.extend(located(&warnings, &documents));
    if warnings.has_errors() {
        return Err(Report(diagnostics));
    }
    Ok(Rules {
        table,
        mesh,
        parsed: resources,
        warnings: Report(diagnostics),
        credentials: extracted.documents,
        virtual_services,
        documents,
        made,
    })
}

/// Makes warnings of what other files may put right.
fn milden(problems: &mut Problems) {
    let missing = (problems.0.iter_mut()).filter(|problem| problem.id.is_some());
    missing.for_each(|problem| problem.severity = Severity::Warning);
}

/// Rules for people who ask about one host: what is wrong with others does not matter to the answer.
#[derive(Debug)]
pub struct Answers {
    /// The rules. A host and port whose rules have an error are refused.
    pub rules: Rules,
    /// What was wrong with resources as they were read, each with the hosts that the resource may be for.
    unread: Vec<(Concerns, Diagnostic)>,
    compiled: Compiled,
}

/// The hosts that a resource with an error may be for.
#[derive(Debug)]
enum Concerns {
    Hosts(Vec<HostPattern>),
    /// Nobody can tell.
    All,
}

impl Answers {
    /// Reads and compiles rules, whatever is wrong with them. `each` is as in [`How`].
    ///
    /// # Errors
    /// When no host can be asked for.
    pub fn compile(
        sources: &[Source],
        options: &CompileOptions,
        each: Each,
    ) -> Result<Answers, Report> {
        let parsed = parse(sources, options.outbound, None, each);
        let errors = parsed.problems.errors();
        let unread = errors.map(|problem| {
            let document = parsed.documents.get(problem.origin.document);
            let value = document.map(|(_, document)| &document.value);
            let hosts = parsed.made.hosts_of(problem.origin);
            let of_route = hosts.map(|hosts| Concerns::Hosts(hosts.to_vec()));
            let of_value = value.map_or(Concerns::All, |value| {
                concerns(problem.origin.item.map_or(Some(value), |item| {
                    value.get("items").and_then(|items| items.get(item))
                }))
            });
            let concerns = of_route.unwrap_or(of_value);
            (concerns, diagnostic(problem, &parsed.documents))
        });
        let mut unread: Vec<(Concerns, Diagnostic)> = unread.collect();
        unread.extend(
            (parsed.diagnostics.iter().cloned()).map(|diagnostic| (Concerns::All, diagnostic)),
        );
        if parsed.resources.service_entries.is_empty() {
            let mut diagnostics: Vec<Diagnostic> = unread.into_iter().map(|(_, it)| it).collect();
            if diagnostics.is_empty() {
                diagnostics.push(no_entry(sources));
            }
            return Err(Report(diagnostics));
        }
        let options = CompileOptions {
            mesh: parsed.mesh.decides.clone(),
            ..options.clone()
        };
        let mut compiled = PolicyTable::compile_with_errors(&parsed.resources, &options);
        for problem in &mut compiled.problems.0 {
            parsed.made.tell(problem);
        }
        let table = std::mem::take(&mut compiled.table);
        Ok(Answers {
            rules: Rules {
                table,
                parsed: parsed.resources,
                warnings: Report::default(),
                credentials: parsed.extracted.documents,
                mesh: parsed.mesh,
                virtual_services: parsed.virtual_services,
                documents: parsed.documents,
                made: parsed.made,
            },
            unread,
            compiled,
        })
    }

    /// Returns the errors that leave open what becomes of a host and port.
    pub fn errors_of(&self, host: &str, port: PortNumber) -> Report {
        let read = self.unread.iter().filter(|(concerns, _)| match concerns {
            Concerns::All => true,
            Concerns::Hosts(hosts) => hosts.iter().any(|pattern| pattern.matches(host)),
        });
        let mut diagnostics: Vec<Diagnostic> =
            read.map(|(_, diagnostic)| diagnostic.clone()).collect();
        // A rule that could not be read may be the one that the gate misses.
        let unread = !diagnostics.is_empty();
        let mut compiled = self.compiled.errors_of(&self.rules.table, host, port);
        compiled.retain(|problem| !unread || problem.id.is_none());
        diagnostics.extend(
            (compiled.into_iter()).map(|problem| diagnostic(problem, &self.rules.documents)),
        );
        Report(diagnostics)
    }
}

/// Returns which hosts a resource is for, as far as its text tells.
fn concerns(resource: Option<&Value>) -> Concerns {
    let spec = resource.and_then(|resource| resource.get("spec"));
    let field = |name| spec.and_then(|spec| spec.get(name));
    let texts: Option<Vec<&str>> = match (field("host"), field("hosts")) {
        (Some(host), _) => host.as_str().map(|host| vec![host]),
        (None, Some(Value::Array(hosts))) => hosts.iter().map(Value::as_str).collect(),
        (None, _) => None,
    };
    let patterns = texts.and_then(|texts| {
        let patterns = texts.into_iter().map(|text| HostPattern::parse(text).ok());
        patterns.collect::<Option<Vec<HostPattern>>>()
    });
    patterns.map_or(Concerns::All, Concerns::Hosts)
}

/// What was read, and everything that is wrong with it so far.
struct Parsed {
    documents: Documented,
    made: Made,
    resources: Resources,
    problems: Problems,
    extracted: Extracted,
    mesh: MeshConfig,
    virtual_services: Arc<[VirtualService]>,
    /// What is to be said of the configuration of the mesh and prevents nothing.
    notes: Vec<Diagnostic>,
    /// What cannot be read, and what is wrong with Secrets and with the configuration of the mesh.
    diagnostics: Vec<Diagnostic>,
}

fn no_entry(sources: &[Source]) -> Diagnostic {
    let file = sources
        .first()
        .map(|source| source.name.clone())
        .unwrap_or_default();
    Diagnostic {
        severity: Severity::Error,
 id: Some(NO_SERVICE_ENTRY),
        file,
        place: Location::START,
        path: String::new(),
        what: "no ServiceEntry was found, so there is no host to reach".to_owned(),
        resource: None,
        hint: Some(
            "add a ServiceEntry that names the host and its ports; `egressctl check --partial` checks one file of several"
                .to_owned(),
        ),
    }
}

fn parse(
    sources: &[Source],
    outbound: OutboundMode,
    known: Option<&mut AlreadyRead>,
    each: Each,
) -> Parsed {
    let mut diagnostics = Vec::new();
    let mut given = Vec::new();
    let mut documents = Documented::new();
    let texts: Vec<&str> = sources.iter().map(|source| source.text.as_str()).collect();
    for (source, read) in sources
        .iter()
        .zip(yaml::read_all(&texts, is_ours, each, known))
    {
        match read {
            Ok(read) => {
                let file: Arc<str> = source.name.as_str().into();
                if source.mesh {
                    given.extend(mesh::of_file(&file, read));
                    continue;
                }
                documents.extend(read.into_iter().map(|document| (file.clone(), document)));
            }
            Err(error) => diagnostics.push(Diagnostic {
                severity: Severity::Error,
                id: None,
                file: source.name.clone(),
                place: error.at,
                path: String::new(),
                what: error.what,
                resource: None,
                hint: error.hint,
            }),
        }
    }
    let mut extracted = Extracted::default();
    for (index, (file, document)) in documents.iter_mut().enumerate() {
        name_generated(&mut document.value, index);
        given.extend(mesh::of_rules(file, index, document));
        extracted.take(index, file, document);
    }
    extracted.twice();
    let (mesh, told) = mesh::read(&given, outbound);
    let delegated = {
        let all = documents
            .iter_mut()
            .map(|(_, document)| &mut document.value);
        delegates::merge(&mut all.collect::<Vec<_>>(), &mesh.decides)
    };
    let values = || documents.iter().map(|(_, document)| &document.value);
    let mut made = gateway_api::convert(values());
    made.delegated = delegated;
    let mut parser = Parser::new();
    for value in values().chain(&made.documents) {
        parser.document(value);
    }
    let (mut resources, mut problems) = parser.finish();
    let carried_out = |unread: &Unread| made.has_read(unread.origin);
    resources.unread.retain(|unread| !carried_out(unread));
    problems.0.append(&mut made.problems);
    let entries = &resources.service_entries;
    let all = values().chain(&made.documents);
    let (virtual_services, found) = virtual_service::concerning(all, entries);
    let of_roots = made.delegated.problems(|root| root.concerns(entries));
    problems.0.extend(found);
    problems
        .0
        .extend(strict::problems(values(), &virtual_services));
    problems.0.extend(legacy::problems(&resources));
    legacy::explain_refused(&mut problems.0);
    let missing = check_authorities(&resources, &extracted.documents);
    problems.0.extend(missing);
    // Whatever is not read is passed over in silence, unless there is something to say of its kind.
    problems
        .0
        .retain(|problem| !matches!(problem.kind, ProblemKind::IgnoredKind(_)));
    problems.0.extend(others::unknown(values()));
    made.tell_all(&mut problems);
    // They know already where they stand, and some were found once more in what was merged.
    for problem in of_roots {
        if !problems.0.contains(&problem) {
            problems.0.push(problem);
        }
    }
    // Secrets decide nothing, and are read all the same.
    let is_secret = |problem: &Problem| extracted.secrets.contains(&problem.origin);
    let is_mesh = |problem: &Problem| {
        let mut origins = given.iter().filter_map(|given| given.origin);
        origins.any(|origin| origin == problem.origin)
    };
    problems
        .0
        .retain(|problem| !is_secret(problem) && !is_mesh(problem));
    diagnostics.append(&mut extracted.diagnostics);
    let error = |diagnostic: &Diagnostic| diagnostic.severity == Severity::Error;
    let (errors, notes) = told.into_iter().partition(error);
    diagnostics.extend::<Vec<Diagnostic>>(errors);
    Parsed {
        documents,
        made,
        resources,
        problems,
        extracted,
        mesh,
        virtual_services,
        notes,
        diagnostics,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_shown_where_it_stands() {
        let text = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: api
  namespace: payments
spec:
  host: api.example.com
  trafficPolicy:
    tls:
      mode: SIMPEL
";
        let source = Source {
            name: "egress.yaml".to_owned(),
            text: text.to_owned(),
            mesh: false,
        };
        let report = compile(&[source], &CompileOptions::default()).unwrap_err();
        assert_eq!(
            report.to_string(),
            "\
error: spec.trafficPolicy.tls.mode: unknown mode `SIMPEL`
  --> egress.yaml:10:13   (DestinationRule payments/api)
hint: did you mean `SIMPLE`?
"
        );
    }

    #[test]
    fn in_istio_its_own_kinds_need_no_word() {
        let text = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
---
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: token}
";
        let sources = [Source {
            name: "rules.yaml".to_owned(),
            text: text.to_owned(),
            mesh: false,
        }];
        let mut options = CompileOptions::default();
        let report = compile(&sources, &options).unwrap_err().to_string();
        assert!(report.contains("`default/token` runs code"), "{report}");
        options.foreign = true;
        assert!(compile(&sources, &options).unwrap().warnings.0.is_empty());
    }
}
