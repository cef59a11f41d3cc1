//! `Service` of Kubernetes: it may have the host of a ServiceEntry, or be another name for it.
//!
//! Source: istio/istio `pkg/kube/services.go` and `pilot/pkg/serviceregistry/kube/conversion.go`, `ConvertService`.

use crate::host::HostPattern;
use crate::node::Node;
use crate::problem::Origin;
use crate::resource::Meta;
use crate::resource::loose::{at, meta, pattern, text};

/// A Service of Kubernetes. Its pods are known to a cluster only.
#[derive(Debug, Clone, PartialEq)]
pub struct KubernetesService {
    /// Name, namespace, origin.
    pub meta: Meta,
    /// Its own host.
    pub(crate) host: HostPattern,
    /// The host that it is another name for: its type is ExternalName.
    pub(crate) external: Option<HostPattern>,
    /// The namespaces that see it; empty means as the mesh has it.
    pub(crate) export_to: Vec<String>,
}

impl KubernetesService {
    pub(crate) const KIND: &'static str = "Service";

    pub(crate) fn read(
        origin: Origin,
        metadata: Option<&Node<'_>>,
        spec: Option<&Node<'_>>,
    ) -> Option<KubernetesService> {
        let meta = meta(Self::KIND, origin, metadata);
        let id = &meta.id;
        let host = pattern(&format!("{}.{}.svc.cluster.local", id.name, id.namespace))?;
        let spec = spec.unwrap_or(&Node::Null);
        let external = text(spec, "externalName").filter(|name| !name.is_empty());
        let is_external = text(spec, "type") == Some("ExternalName");
        let annotations = metadata.and_then(|metadata| at(metadata, "annotations"));
        let export_to = annotations.and_then(|it| text(it, "networking.istio.io/exportTo"));
        let names = export_to.into_iter().flat_map(|names| names.split(','));
        Some(KubernetesService {
            host,
            external: external.filter(|_| is_external).and_then(pattern),
            export_to: names.map(|name| name.trim().to_owned()).collect(),
            meta,
        })
    }

    /// Returns the names by which a namespace knows it, the longest first.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/httproute.go`, `GenerateAltVirtualHosts`.
    pub(crate) fn names(&self, namespace: &str) -> Vec<String> {
        let id = &self.meta.id;
        let mut names = vec![
            format!("{}.{}.svc.cluster.local", id.name, id.namespace),
            format!("{}.{}.svc", id.name, id.namespace),
            format!("{}.{}", id.name, id.namespace),
        ];
        if *id.namespace == *namespace {
            names.push(id.name.to_string());
        }
        names
    }
}
