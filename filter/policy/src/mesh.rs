//! Mesh settings that decide about rules: whose rules apply to everyone, who sees resources without `exportTo`, and
//! which limits hold if a rule gives none.

use crate::fields::Field;
use crate::proxy::ROOT_NAMESPACE;
use crate::resource::{ConnectionPool, OutlierDetection, ServiceEntry, exported, read_limits};

/// The part of the mesh's configuration that decides.
///
/// Source: istio/api `mesh/v1alpha1/config.proto`, `MeshConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    /// `rootNamespace`: rules of this namespace are for everyone, and asked last.
    pub root_namespace: String,
    /// `defaultServiceExportTo`: who sees a ServiceEntry without `exportTo`.
    pub entries: Visibility,
    /// `defaultDestinationRuleExportTo`: who sees a DestinationRule without `exportTo`.
    pub rules: Visibility,
    /// `defaultVirtualServiceExportTo`: who sees a VirtualService without `exportTo`.
    pub routes: Visibility,
    /// `trustDomain`: what the names of accounts begin with.
    pub trust_domain: String,
    /// `defaultTrafficPolicy.connectionPool`: limits where a rule gives none.
    pub connection_pool: Option<ConnectionPool>,
    /// `defaultTrafficPolicy.outlierDetection`: likewise.
    pub outlier_detection: Option<OutlierDetection>,
}

/// Who sees what names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Every namespace.
    #[default]
    Everybody,
    /// Its own namespace.
    Own,
    /// No namespace.
    Nobody,
}

impl Default for Mesh {
    fn default() -> Self {
        Mesh {
            root_namespace: ROOT_NAMESPACE.to_owned(),
            entries: Visibility::default(),
            rules: Visibility::default(),
            routes: Visibility::default(),
            trust_domain: "cluster.local".to_owned(),
            connection_pool: None,
            outlier_detection: None,
        }
    }
}

impl Visibility {
    /// Whether a resource of `owner` without `exportTo` is seen from `namespace`.
    pub fn has(self, owner: &str, namespace: &str) -> bool {
        match self {
            Visibility::Everybody => true,
            Visibility::Own => owner == namespace,
            Visibility::Nobody => false,
        }
    }
}

/// The fields that [`Mesh::read`] knows, as a mesh's configuration has them.
pub const MESH_FIELDS: [&str; 6] = [
    "rootNamespace",
    "defaultServiceExportTo",
    "defaultDestinationRuleExportTo",
    "defaultVirtualServiceExportTo",
    "defaultTrafficPolicy",
    "trustDomain",
];

impl Mesh {
    /// Reads the fields of [`MESH_FIELDS`], and reports all others.
    pub fn read(field: Field<'_>) -> Option<Mesh> {
        let fields = field.fields()?;
        let mut mesh = Mesh::default();
        let text = |name| {
            let text = fields.read(name, |field| field.text().map(str::to_owned));
            text.filter(|text: &String| !text.is_empty())
        };
        if let Some(root) = text("rootNamespace") {
            mesh.root_namespace = root;
        }
        if let Some(domain) = text("trustDomain") {
            mesh.trust_domain = domain;
        }
        let words = |field: Field<'_>| Some(field.texts());
        let has = |words: &[String], word: &str| words.iter().any(|other| other == word);
        // Source: istio/istio `pilot/pkg/model/push_context.go`, `initServiceRegistry`.
        if let Some(words) = fields.read("defaultServiceExportTo", words)
            && !words.is_empty()
        {
            mesh.entries = match (has(&words, "."), has(&words, "*")) {
                (true, _) => Visibility::Own,
                (false, true) => Visibility::Everybody,
                (false, false) => Visibility::Nobody,
            };
        }
        // Source: istio/istio `pilot/pkg/model/push_context.go`, `setDestinationRules`.
        if let Some(words) = fields.read("defaultDestinationRuleExportTo", words)
            && has(&words, ".")
        {
            mesh.rules = Visibility::Own;
        }
        // Source: istio/istio `pilot/pkg/model/push_context.go`, `initDefaultExportMaps` and `initVirtualServices`.
        if let Some(words) = fields.read("defaultVirtualServiceExportTo", words)
            && !words.is_empty()
        {
            mesh.routes = match (has(&words, "*"), has(&words, ".")) {
                (true, _) => Visibility::Everybody,
                (false, true) => Visibility::Own,
                (false, false) => Visibility::Nobody,
            };
        }
        let limits = fields.read("defaultTrafficPolicy", |field| {
            Some(read_limits(&field.fields()?))
        });
        (mesh.connection_pool, mesh.outlier_detection) = limits.unwrap_or_default();
        Some(mesh)
    }

    /// Whether an entry is seen from a namespace.
    pub(crate) fn shows(&self, entry: &ServiceEntry, namespace: &str) -> bool {
        let owner = &*entry.meta.id.namespace;
        match &entry.export_to[..] {
            [] => self.entries.has(owner, namespace),
            to => exported(to, owner, namespace),
        }
    }

    /// Whether every namespace sees an entry.
    pub(crate) fn is_public(&self, entry: &ServiceEntry) -> bool {
        match &entry.export_to[..] {
            [] => self.entries == Visibility::Everybody,
            to => to.iter().any(|to| to == "*"),
        }
    }
}
