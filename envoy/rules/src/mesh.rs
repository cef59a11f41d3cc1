//! The configuration of the mesh: `--mesh-config FILE`, or the ConfigMap `istio` among the rules.
//!
//! The engine reads the settings that decide about rules, and the filter gets them too. This file reads the settings
//! that only clusters need. A warning names every other setting that could change where a request goes, or how.

use std::sync::Arc;
use std::time::Duration;

use egress_policy::fields::{Cursor, Field, Fields, Report as Problems, listed};
use egress_policy::node::Node;
use egress_policy::{
    FieldPath, MESH_FIELDS, Mesh, Origin, OutboundMode, Problem, ProblemKind, Segment, Severity,
    TcpKeepalive, did_you_mean,
};
use serde_json::{Map, Value};

use crate::diagnostic::Diagnostic;
use crate::document::is_ours;
use crate::tls_names;
use crate::yaml::{self, Document, Location};

/// The mesh's configuration, as far as it is honoured.
#[derive(Debug, Clone, Default)]
pub struct MeshConfig {
    /// What decides.
    pub decides: Mesh,
    /// The same as the filter is told; nothing where nothing was given.
    pub told: Option<Value>,
    /// What clusters have where a rule says nothing of it.
    pub clusters: ClusterDefaults,
}

/// What clusters have where a rule says nothing of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterDefaults {
    /// `connectTimeout`.
    pub connect_timeout: Option<Duration>,
    /// `tcpKeepalive`; a rule's counts field by field.
    pub keepalive: Option<TcpKeepalive>,
    /// `tlsDefaults.ecdhCurves`.
    pub curves: Vec<String>,
    /// `tlsDefaults.cipherSuites`.
    pub ciphers: Vec<String>,
    /// `tlsDefaults.minProtocolVersion` is TLS 1.3.
    pub tls13: bool,
}

/// A text that holds the mesh's configuration, and where it stands.
pub(crate) struct Given {
    pub(crate) file: Arc<str>,
    /// The document, if it is one by itself.
    document: Option<Document>,
    /// Where it begins, and the path to it.
    at: Location,
    within: String,
    value: Value,
    /// The ConfigMap's place among the rules.
    pub(crate) origin: Option<Origin>,
}

/// Fields of the mesh's configuration that change nothing here, or nothing that is sent.
const SILENT: [&str; 35] = [
    "accessLogEncoding",
    "accessLogFile",
    "accessLogFormat",
    "ca",
    "caCertificates",
    "certificates",
    "configSources",
    "defaultProviders",
    "disableEnvoyListenerLog",
    "discoverySelectors",
    "enableAutoMtls",
    "enableEnvoyAccessLogService",
    "enablePrometheusMerge",
    "enableTracing",
    "extensionProviders",
    "inboundClusterStatName",
    "inboundTrafficPolicy",
    "ingressClass",
    "ingressControllerMode",
    "ingressSelector",
    "ingressService",
    "meshMTLS",
    "mixerCheckServer",
    "mixerReportServer",
    "outboundClusterStatName",
    "pathNormalization",
    "protocolDetectionTimeout",
    "proxyInboundListenPort",
    "proxyListenPort",
    "sdsUdsPath",
    "serviceScopeConfigs",
    "serviceSettings",
    "thriftConfig",
    "trustDomainAliases",
    "verifyCertificateAtClient",
];

/// Fields that are honoured here.
const FOR_CLUSTERS: [&str; 5] = [
    "connectTimeout",
    "tcpKeepalive",
    "tlsDefaults",
    "outboundTrafficPolicy",
    "h2UpgradePolicy",
];

/// Fields that Istio honours and this does not, with what happens instead.
const NOT_HONOURED: [(&str, &str); 8] = [
    (
        "defaultVirtualServiceExportTo",
        "VirtualServices are not read",
    ),
    (
        "defaultHttpRetryPolicy",
        "requests are not sent again, whatever it says",
    ),
    (
        "dnsRefreshRate",
        "names are looked up again when DNS says that an answer has expired",
    ),
    (
        "localityLbSetting",
        "the load is spread over all localities",
    ),
    (
        "zoneAwareLbSetting",
        "the load is spread over all localities",
    ),
    (
        "proxyHttpPort",
        "use `--forward-proxy` for programs that know a proxy",
    ),
    ("defaultConfig", "proxies of the mesh are configured by it"),
    (
        "serviceEntryVisibility",
        "who sees a ServiceEntry is settled by `exportTo` alone",
    ),
];

/// Takes the mesh's configuration out of the documents of a file that was named for it.
pub(crate) fn of_file(file: &Arc<str>, documents: Vec<Document>) -> Vec<Given> {
    let whole = documents
        .into_iter()
        .filter(|document| !document.value.is_null());
    whole.map(|document| of_document(file, document)).collect()
}

/// Finds the part of a document: all of it, or what Helm's values, Istio's operator or a ConfigMap have of it.
fn of_document(file: &Arc<str>, document: Document) -> Given {
    if let Some(given) = of_config_map(file, &document, &[], &document.value, None) {
        return given;
    }
    let ways = ["/meshConfig", "/spec/meshConfig", "/spec/values/meshConfig"];
    let found = ways
        .iter()
        .find_map(|way| Some((*way, document.value.pointer(way)?.clone())));
    let (way, value) = found.unwrap_or(("", document.value.clone()));
    let within = way.trim_start_matches('/').replace('/', ".");
    Given {
        file: file.clone(),
        at: document.place(&path(&within), false),
        document: Some(document),
        within,
        value,
        origin: None,
    }
}

/// Finds the mesh's configuration in a document among the rules: the ConfigMaps `istio` and `istio-REVISION` have it.
pub(crate) fn of_rules(file: &Arc<str>, index: usize, document: &Document) -> Vec<Given> {
    let items = match document.value.get("items") {
        Some(Value::Array(items)) => items.iter().enumerate().collect(),
        _ => Vec::new(),
    };
    let origin = |item| {
        Some(Origin {
            document: index,
            item,
        })
    };
    let own = of_config_map(file, document, &[], &document.value, origin(None));
    let listed = items.into_iter().filter_map(|(at, item)| {
        let way = [Segment::Key("items".to_owned()), Segment::Index(at)];
        of_config_map(file, document, &way, item, origin(Some(at)))
    });
    own.into_iter().chain(listed).collect()
}

fn of_config_map(
    file: &Arc<str>,
    document: &Document,
    way: &[Segment],
    value: &Value,
    origin: Option<Origin>,
) -> Option<Given> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let name = text("/metadata/name")?;
    let named = name == "istio" || name.starts_with("istio-");
    if text("/kind") != Some("ConfigMap") || !named {
        return None;
    }
    let mesh = text("/data/mesh")?;
    let mut place = FieldPath(way.to_vec());
    place
        .0
        .extend(["data", "mesh"].map(|key| Segment::Key(key.to_owned())));
    let value = match yaml::read(mesh, is_ours).ok()?.pop() {
        Some(inner) => inner.value,
        None => Value::Object(Map::new()),
    };
    Some(Given {
        file: file.clone(),
        at: document.place(&place, true),
        document: None,
        within: place.to_string(),
        value,
        origin,
    })
}

fn path(dotted: &str) -> FieldPath {
    match dotted {
        "" => FieldPath::default(),
        dotted => FieldPath::keys(dotted),
    }
}

impl Given {
    fn diagnostic(&self, problem: &Problem) -> Diagnostic {
        let mut full = path(&self.within);
        full.0.extend(problem.path.0.iter().cloned());
        let by_key = matches!(
            problem.kind,
            ProblemKind::UnknownField(_) | ProblemKind::NotSupported(_)
        );
        let place = match &self.document {
            Some(document) => document.place(&full, by_key),
            None => self.at,
        };
        let shown = match (self.within.as_str(), problem.path.to_string()) {
            ("", inner) => inner,
            (within, inner) => format!("{within}.{inner}"),
        };
        Diagnostic {
            id: None,
            severity: problem.severity,
            file: self.file.to_string(),
            place,
            path: shown,
            what: problem.kind.to_string(),
            resource: None,
            hint: problem.hint.clone(),
        }
    }
}

/// Reads what was given, and tells what is wrong with it. `outbound` is what the command line says of unknown hosts.
pub(crate) fn read(given: &[Given], outbound: OutboundMode) -> (MeshConfig, Vec<Diagnostic>) {
    let mut diagnostics = Vec::new();
    let Some((first, others)) = given.split_first() else {
        return (MeshConfig::default(), diagnostics);
    };
    for other in others {
        diagnostics.push(Diagnostic {
            id: None,
            severity: Severity::Error,
            file: other.file.to_string(),
            place: other.at,
            path: other.within.clone(),
            what: format!(
                "the configuration of the mesh is given twice, first in {}:{}",
                first.file, first.at.line
            ),
            resource: None,
            hint: Some(
                "give one: `--mesh-config`, or the ConfigMap `istio` of one revision".to_owned(),
            ),
        });
    }
    let report = Problems::new(Origin::default());
    let mut config = MeshConfig::default();
    let node = Node::from(&first.value);
    let whole = Field {
        report: &report,
        cursor: Cursor::Root,
        value: &node,
    };
    if let Some(fields) = whole.fields() {
        config.clusters = read_clusters(&fields, outbound);
        unknown(&fields, &first.value);
    }
    // The engine's own reader has the rest, and the filter reads the same.
    let told: Map<String, Value> = MESH_FIELDS
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), first.value.get(name)?.clone())))
        .filter(|(_, value)| !value.is_null())
        .collect();
    if !told.is_empty() {
        let told = Value::Object(told);
        let node = Node::from(&told);
        let part = Field {
            report: &report,
            cursor: Cursor::Root,
            value: &node,
        };
        config.decides = Mesh::read(part).unwrap_or_default();
        config.told = Some(told);
    }
    diagnostics.extend(
        report
            .into_problems()
            .iter()
            .map(|problem| first.diagnostic(problem)),
    );
    (config, diagnostics)
}

/// Reads what clusters need, and names what is not honoured.
fn read_clusters(fields: &Fields<'_>, outbound: OutboundMode) -> ClusterDefaults {
    fields.ignore(&MESH_FIELDS);
    fields.ignore(&SILENT);
    let mut clusters = ClusterDefaults {
        connect_timeout: fields
            .read("connectTimeout", |field| field.duration())
            .filter(|time| !time.is_zero()),
        ..ClusterDefaults::default()
    };
    clusters.keepalive = fields.read("tcpKeepalive", |field| {
        let fields = field.fields()?;
        let count = |field: Field<'_>| {
            let count = field.number(0, u32::MAX.into())?;
            u32::try_from(count).ok().filter(|count| *count != 0)
        };
        Some(TcpKeepalive {
            probes: fields.read("probes", count),
            time: fields.read("time", |field| field.duration()),
            interval: fields.read("interval", |field| field.duration()),
        })
    });
    fields.read("tlsDefaults", |field| {
        let fields = field.fields()?;
        clusters.curves = fields.read("ecdhCurves", read_groups).unwrap_or_default();
        clusters.ciphers = fields.read("cipherSuites", read_suites).unwrap_or_default();
        const VERSIONS: [&str; 3] = ["TLS_AUTO", "TLSV1_2", "TLSV1_3"];
        let version = fields.read("minProtocolVersion", |field| {
            let known = |word: &str| VERSIONS.iter().position(|version| *version == word);
            field.word("version", &VERSIONS, known)
        });
        clusters.tls13 = version == Some(2);
        Some(())
    });
    fields.read("outboundTrafficPolicy", |field| {
        let inner = field.fields()?;
        let modes = ["REGISTRY_ONLY", "ALLOW_ANY", "ALLOW_ANY_DYNAMIC_DNS"];
        let known = |word: &str| modes.iter().position(|mode| *mode == word);
        let mode = inner.read("mode", |field| field.word("mode", &modes, known));
        inner.ignore(&["tls"]);
        match (mode, outbound) {
            (Some(1), OutboundMode::RegistryOnly) => field.warning(
                ProblemKind::NotSupported("`ALLOW_ANY` of the mesh's configuration".to_owned()),
                "hosts that no ServiceEntry names are refused; `--outbound-traffic-policy ALLOW_ANY` lets them pass",
            ),
            (Some(2), OutboundMode::RegistryOnly) => field.warning(
                ProblemKind::NotSupported("`ALLOW_ANY_DYNAMIC_DNS`".to_owned()),
                "hosts that no ServiceEntry names are refused; write a ServiceEntry with a wildcard host and `resolution: DYNAMIC_DNS` for them",
            ),
            // The flag would send in plaintext what the mesh sends with TLS.
            (Some(2), OutboundMode::AllowAny) => field.error_with_hint(
                ProblemKind::NotSupported("`ALLOW_ANY_DYNAMIC_DNS`".to_owned()),
                "leave `--outbound-traffic-policy ALLOW_ANY` out, which would send such requests in plaintext",
            ),
            _ => {}
        }
        Some(())
    });
    fields.read("h2UpgradePolicy", |field| {
        let words = ["DO_NOT_UPGRADE", "UPGRADE"];
        let known = |word: &str| words.iter().position(|known| *known == word);
        if field.word("policy", &words, known)? == 1 {
            field.warning(
                ProblemKind::NotSupported("`UPGRADE` of the mesh's configuration".to_owned()),
                "with TLS, HTTP/2 is used where the server offers it; `h2UpgradePolicy` of a DestinationRule settles it for one host",
            );
        }
        Some(())
    });
    for (name, instead) in NOT_HONOURED {
        fields.read(name, |field| {
            field.warning(ProblemKind::NotSupported(format!("`{name}`")), instead);
            Some(())
        });
    }
    clusters
}

/// Reads groups by their names. Envoy does not start with one that it does not know, or with one that is there twice.
fn read_groups(field: Field<'_>) -> Option<Vec<String>> {
    let mut groups: Vec<String> = Vec::new();
    field.items(|item| {
        let known = |word: &str| {
            tls_names::ALL_GROUPS
                .contains(&word)
                .then(|| word.to_owned())
        };
        let Some(group) = item.word("group", &tls_names::ALL_GROUPS, known) else {
            return;
        };
        match groups.contains(&group) {
            true => {
                let text = format!("`{group}` is there twice, and Envoy would not start");
                item.error_with_hint(ProblemKind::Conflict(text), "name it once");
            }
            false => groups.push(group),
        }
    });
    Some(groups)
}

/// Reads suites by their names; equal ones may stand in brackets, `[A|B]`. Envoy does not start with one that it does
/// not know.
fn read_suites(field: Field<'_>) -> Option<Vec<String>> {
    let mut suites = Vec::new();
    field.items(|item| {
        let Some(text) = item.text() else { return };
        let inner = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        let names = inner.unwrap_or(text).split('|');
        let good = names.filter(|name| !is_suite(&item, name)).count() == 0;
        if good && (inner.is_some() || !text.contains('|')) {
            suites.push(text.to_owned());
        } else if good {
            let text = format!("`{text}` is no list of equal suites");
            let hint = "write it in brackets, `[A|B]`";
            item.error_with_hint(ProblemKind::Invalid(text), hint);
        }
    });
    Some(suites)
}

/// Reports what a name of a suite is not, and what one gives up.
fn is_suite(item: &Field<'_>, name: &str) -> bool {
    let good = [&tls_names::MODERN_NAMES[..], &tls_names::CBC_SUITES].concat();
    if good.contains(&name) {
        return true;
    }
    if tls_names::RSA_SUITES.contains(&name) || name == tls_names::TRIPLE_DES {
        let text = format!(
            "`{name}` has no forward secrecy: whoever gets a server's key can read all that was recorded"
        );
        let hint = "this is for all hosts; `egressctl/tls-legacy` of a DestinationRule is for one";
        item.warning(ProblemKind::Invalid(text), hint);
        return true;
    }
    let shown: String = name.chars().take(60).collect();
    let all = [&good[..], &tls_names::RSA_SUITES].concat();
    let hint = match did_you_mean(name, &all) {
        _ if name.starts_with("TLS_AES") || name.starts_with("TLS_CHACHA") => {
            "leave it out: the suites of TLS 1.3 are offered always, and cannot be chosen"
                .to_owned()
        }
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("it is one of {}", listed(&all)),
    };
    let (what, found) = ("suite", shown);
    item.error_with_hint(ProblemKind::UnknownValue { what, found }, hint);
    false
}

/// Reports fields that nobody knows: a slip of one that is honoured is an error, and what a newer Istio has is named.
fn unknown(fields: &Fields<'_>, value: &Value) {
    let honoured: Vec<&str> = MESH_FIELDS.iter().chain(&FOR_CLUSTERS).copied().collect();
    let known = |name: &str| {
        honoured.contains(&name)
            || SILENT.contains(&name)
            || NOT_HONOURED.iter().any(|(other, _)| *other == name)
    };
    let given = value.as_object().into_iter().flatten();
    for (name, _) in given.filter(|(name, _)| !known(name)) {
        match did_you_mean(name, &honoured) {
            Some(meant) => fields.error_at(
                name,
                ProblemKind::UnknownField(name.clone()),
                Some(&format!("did you mean `{meant}`?")),
            ),
            None => fields.warning_at(
                name,
                ProblemKind::NotSupported(format!("`{name}`")),
                "it is left out of account",
            ),
        }
    }
    fields.allow_unknown();
}

#[cfg(test)]
mod tests {
    use egress_policy::Visibility;
    use serde_json::json;

    use super::*;

    fn of(text: &str, outbound: OutboundMode) -> (MeshConfig, Vec<String>) {
        let file: Arc<str> = "mesh.yaml".into();
        let given = of_file(&file, yaml::read(text, is_ours).unwrap());
        let (config, diagnostics) = read(&given, outbound);
        let diagnostics = diagnostics.iter().map(ToString::to_string).collect();
        (config, diagnostics)
    }

    fn quiet(text: &str) -> MeshConfig {
        let (config, diagnostics) = of(text, OutboundMode::RegistryOnly);
        assert_eq!(diagnostics, [""; 0], "{text}");
        config
    }

    #[test]
    fn every_form_that_people_have_it_in_is_read() {
        for text in [
            "rootNamespace: mesh-root\n",
            "{\"rootNamespace\": \"mesh-root\"}",
            "meshConfig: {rootNamespace: mesh-root}\nglobal: {hub: example.com}\n",
            "kind: IstioOperator\nspec: {meshConfig: {rootNamespace: mesh-root}}\n",
            "kind: Istio\nspec: {values: {meshConfig: {rootNamespace: mesh-root}}}\n",
            "kind: ConfigMap\nmetadata: {name: istio-canary}\ndata:\n  mesh: |\n    rootNamespace: mesh-root\n",
        ] {
            let config = quiet(text);
            assert_eq!(config.decides.root_namespace, "mesh-root", "{text}");
            assert_eq!(config.told, Some(json!({"rootNamespace": "mesh-root"})));
        }
        assert_eq!(quiet("").told, None);
    }

    #[test]
    fn what_clusters_need_is_read() {
        let config = quiet(
            "connectTimeout: 3s
tcpKeepalive: {probes: 3, time: 10s}
tlsDefaults: {ecdhCurves: [X25519MLKEM768], cipherSuites: [ECDHE-ECDSA-AES128-GCM-SHA256], minProtocolVersion: TLSV1_3}
defaultServiceExportTo: [\".\"]
accessLogFile: /dev/stdout
",
        );
        let ClusterDefaults {
            connect_timeout,
            keepalive,
            curves,
            ciphers,
            tls13,
        } = config.clusters;
        assert_eq!(connect_timeout, Some(Duration::from_secs(3)));
        let keepalive = keepalive.unwrap();
        assert_eq!(keepalive.probes, Some(3));
        assert_eq!(keepalive.time, Some(Duration::from_secs(10)));
        assert_eq!(curves, ["X25519MLKEM768"]);
        assert_eq!(ciphers, ["ECDHE-ECDSA-AES128-GCM-SHA256"]);
        assert!(tls13);
        assert_eq!(config.decides.entries, Visibility::Own);
    }

    #[test]
    fn what_is_not_honoured_is_named() {
        let text = "outboundTrafficPolicy: {mode: ALLOW_ANY}
h2UpgradePolicy: UPGRADE
defaultHttpRetryPolicy: {attempts: 1}
defaultVirtualServiceExportTo: [\".\"]
dnsRefreshRate: 5s
somethingNew: {a: b}
";
        let (_, diagnostics) = of(text, OutboundMode::RegistryOnly);
        assert_eq!(diagnostics.len(), 6, "{diagnostics:?}");
        for (line, name) in [
            (1, "outboundTrafficPolicy"),
            (2, "h2UpgradePolicy"),
            (3, "defaultHttpRetryPolicy"),
            (4, "defaultVirtualServiceExportTo"),
            (5, "dnsRefreshRate"),
            (6, "somethingNew"),
        ] {
            let begin = format!("warning: {name}: ");
            let place = format!("mesh.yaml:{line}:");
            let told = |diagnostic: &&String| {
                diagnostic.starts_with(&begin) && diagnostic.contains(&place)
            };
            assert_eq!(
                diagnostics.iter().filter(told).count(),
                1,
                "{diagnostics:?}"
            );
        }
        // The flag says the same.
        let (_, diagnostics) = of(
            "outboundTrafficPolicy: {mode: ALLOW_ANY}",
            OutboundMode::AllowAny,
        );
        assert_eq!(diagnostics, [""; 0]);
    }

    #[test]
    fn a_slip_is_an_error() {
        for (text, begin) in [
            ("rootNamspace: x", "error: rootNamspace: unknown field"),
            (
                "meshConfig: {conectTimeout: 3s}",
                "error: meshConfig.conectTimeout: unknown field",
            ),
            ("connectTimeout: 3", "error: connectTimeout: "),
            (
                "tlsDefaults: {curves: [a]}",
                "error: tlsDefaults.curves: unknown field",
            ),
            (
                "tlsDefaults: {ecdhCurves: [X25519, p-256]}",
                "error: tlsDefaults.ecdhCurves[1]: unknown group `p-256`",
            ),
            (
                "tlsDefaults: {ecdhCurves: [X25519, X25519]}",
                "error: tlsDefaults.ecdhCurves[1]: `X25519` is there twice",
            ),
            (
                "tlsDefaults: {cipherSuites: [AES128-SHA256]}",
                "error: tlsDefaults.cipherSuites[0]: unknown suite `AES128-SHA256`",
            ),
            (
                "tlsDefaults: {cipherSuites: ['[ECDHE-RSA-AES128-GCM-SHA256|HIGH]']}",
                "error: tlsDefaults.cipherSuites[0]: unknown suite `HIGH`",
            ),
            (
                "tlsDefaults: {cipherSuites: ['']}",
                "error: tlsDefaults.cipherSuites[0]: unknown suite ``",
            ),
            (
                "tlsDefaults: {cipherSuites: [TLS_AES_128_GCM_SHA256]}",
                "error: tlsDefaults.cipherSuites[0]: unknown suite `TLS_AES_128_GCM_SHA256`",
            ),
            (
                "tlsDefaults: {minProtocolVersion: TLSV1_1}",
                "error: tlsDefaults.minProtocolVersion: unknown version `TLSV1_1`",
            ),
            (
                "a: b\n---\na: b",
                "error: the configuration of the mesh is given twice",
            ),
        ] {
            let (_, diagnostics) = of(text, OutboundMode::RegistryOnly);
            let told = diagnostics
                .iter()
                .any(|diagnostic| diagnostic.starts_with(begin));
            assert!(told, "{text}: {diagnostics:?}");
        }
    }

    /// The mesh sends such requests with TLS, and the flag would send them in plaintext.
    #[test]
    fn hosts_that_the_mesh_looks_up_with_tls_are_not_let_pass_in_plaintext() {
        let text = "outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS, tls: {mode: SIMPLE}}";
        let (_, diagnostics) = of(text, OutboundMode::AllowAny);
        assert!(
            diagnostics[0].starts_with("error: outboundTrafficPolicy: "),
            "{diagnostics:?}"
        );
        let (_, diagnostics) = of(text, OutboundMode::RegistryOnly);
        assert!(
            diagnostics[0].starts_with("warning: outboundTrafficPolicy: "),
            "{diagnostics:?}"
        );
    }
}
