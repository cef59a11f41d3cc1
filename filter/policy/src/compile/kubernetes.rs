//! Services of Kubernetes beside ServiceEntries: aliases of their hosts, and owners of them.

use crate::compile::compiler::Compiler;
use crate::host::HostPattern;
use crate::problem::{FieldPath, ProblemKind, Severity};
use crate::proxy::Role;
use crate::reason::Reason;
use crate::resource::{KubernetesService, exported};
use crate::table::verdict::Verdict;

impl<'r> Compiler<'r> {
    /// Lets aliases stand for their hosts, and refuses hosts that are a Service's.
    pub(super) fn kubernetes(&mut self) {
        for service in &self.resources.services {
            if !self.sees(service) {
                continue;
            }
            match &service.external {
                Some(external) => self.alias(service, external),
                None => self.owned(service),
            }
        }
    }

    fn sees(&self, service: &KubernetesService) -> bool {
        let (owner, caller) = (
            &*service.meta.id.namespace,
            self.options.proxy.namespace.as_str(),
        );
        match &service.export_to[..] {
            [] => self.options.mesh.entries.has(owner, caller),
            to => exported(to, owner, caller),
        }
    }

    /// Lets the names of an ExternalName Service mean the host that it leads to.
    fn alias(&mut self, service: &KubernetesService, external: &HostPattern) {
        let Some(index) = self.hosts.index(external) else {
            return;
        };
        for name in service.names(&self.options.proxy.namespace) {
            if let Ok(HostPattern::Exact(name)) = HostPattern::parse(&name) {
                self.hosts.alias(name, index);
            }
        }
    }

    /// Settles whose the host of a Service is. The caller's own namespace comes first, then a Service; in one namespace
    /// it is the Service's. Its pods are known to a cluster only, so what is the Service's is refused.
    ///
    /// Source: istio/istio `pilot/pkg/model/sidecar.go`, `selectServices` and `appendSidecarServices`.
    fn owned(&mut self, service: &KubernetesService) {
        let Some(index) = self.hosts.index(&service.host) else {
            return;
        };
        let owner = self.owners.get(index).copied().flatten();
        let Some(entry) = owner.map(|owner| owner.entry) else {
            return;
        };
        let proxy = &self.options.proxy;
        let own = |namespace: &str| *namespace == *proxy.namespace;
        let entrys = proxy.role == Role::Sidecar
            && own(&entry.meta.id.namespace)
            && !own(&service.meta.id.namespace);
        let (host, id) = (&service.host, &entry.meta.id);
        let (text, hint) = match entrys {
            true => (
                format!("`{host}` is the host of {id} too, which counts here"),
                format!(
                    "Istio uses the Service and its pods, but for callers in namespace `{}`",
                    id.namespace
                ),
            ),
            false => (
                format!(
                    "`{host}` is the host of {id} too, and Istio uses the Service for this caller. Its pods are known to a cluster only, so the host is refused (`not_read`)"
                ),
                "remove the Service, or give the ServiceEntry another host".to_owned(),
            ),
        };
        if !entrys {
            let ports = self.hosts.get(index).map(|host| {
                let ports = self.hosts.ports(host).map(|port| port.number);
                ports.collect::<Vec<_>>()
            });
            for number in ports.into_iter().flatten() {
                if let Some(port) = self.hosts.port_mut(index, number) {
                    port.verdict = Verdict::refused(Reason::NotRead, port.verdict.rule());
                }
            }
        }
        let path = FieldPath::keys("metadata.name");
        let kind = ProblemKind::Conflict(text);
        self.report(Severity::Warning, &service.meta, path, kind, &hint);
    }
}
