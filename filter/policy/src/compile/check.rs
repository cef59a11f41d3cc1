//! Reports what an entry asks for and does not get.

use crate::compile::compiler::Compiler;
use crate::port::{Protocol, ProtocolClass};
use crate::problem::{FieldPath, ProblemKind, Segment, Severity};
use crate::proxy::Role;
use crate::resource::{Resolution, ServiceEntry, ServicePort};

impl<'r> Compiler<'r> {
    /// Reports what an entry asks for and does not get.
    pub(super) fn check_entry(&mut self, entry: &ServiceEntry) {
        self.check_selector(entry);
        let mut told = |severity: Severity, path: FieldPath, text: &str, hint: &str| {
            self.report(
                severity,
                &entry.meta,
                path,
                ProblemKind::NotSupported(text.to_owned()),
                hint,
            );
        };
        if entry.resolution == Resolution::None {
            let hint = "the host is looked up by DNS instead; `resolution: DNS` (or `DYNAMIC_DNS` for wildcards) says so";
            told(
                Severity::Warning,
                FieldPath::keys("spec.resolution"),
                "`resolution: NONE`",
                hint,
            );
        }
        if entry.resolution == Resolution::Static
            && entry.endpoints.is_empty()
            && entry.workload_selector.is_none()
        {
            let hint = "`resolution: STATIC` takes its addresses from `endpoints`, so no request could be answered";
            told(
                Severity::Warning,
                FieldPath::keys("spec.resolution"),
                "`STATIC` without endpoints",
                hint,
            );
        }
        let of_bytes = |port: &ServicePort| {
            port.protocol.class() == ProtocolClass::Tcp && port.protocol != Protocol::Unset
        };
        if entry
            .addresses
            .iter()
            .any(|address| address.prefix.is_some())
            && !entry.ports.iter().all(of_bytes)
        {
            let hint = "but for TCP, services are told apart by host name and by single addresses";
            told(
                Severity::Warning,
                FieldPath::keys("spec.addresses"),
                "a range of addresses",
                hint,
            );
        }
        for port in entry.ports.iter() {
            let path = || {
                let mut path = FieldPath::keys("spec.ports");
                path.0.extend([
                    Segment::Index(port.index),
                    Segment::Key("protocol".to_owned()),
                ]);
                path
            };
            match port.protocol.class() {
                ProtocolClass::Http | ProtocolClass::Tls => {}
                ProtocolClass::Tcp if port.protocol != Protocol::Unset => {
                    if entry.hosts.iter().any(|host| host.exact().is_none()) {
                        let text = "a wildcard host on a port that speaks neither HTTP nor TLS";
                        let hint = "nothing listens on it, for no connection says which host it is for; give a ServiceEntry for each host";
                        told(Severity::Warning, path(), text, hint);
                    }
                }
                ProtocolClass::Tcp | ProtocolClass::None => {
                    let hint = "nothing listens on it; write HTTP, HTTPS, TLS, HTTP2, GRPC or TCP";
                    told(
                        Severity::Warning,
                        path(),
                        "a port without a known protocol",
                        hint,
                    );
                }
            }
        }
    }

    /// Reports a selector that nothing here answers to.
    fn check_selector(&mut self, entry: &ServiceEntry) {
        let labels = entry.workload_selector.as_deref();
        let Some(labels) = labels.filter(|_| entry.endpoints.is_empty()) else {
            return;
        };
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, to)| format!("{key}={to}"))
            .collect();
        let which = match &labels[..] {
            [] => String::new(),
            labels => format!(" with labels {}", labels.join(",")),
        };
        let text = match entry.resolution {
            Resolution::None | Resolution::DynamicDns => format!(
                "`resolution: {}` takes no addresses of workloads: its hosts are refused (`not_read`)",
                entry.resolution.as_str()
            ),
            _ => format!(
                "no WorkloadEntry of namespace `{}` is here{which}, and pods are known to a cluster only: its hosts are refused (`not_read`)",
                entry.meta.id.namespace
            ),
        };
        self.report(
            Severity::Warning,
            &entry.meta,
            FieldPath::keys("spec.workloadSelector"),
            ProblemKind::Invalid(text),
            "give the WorkloadEntries with the rules, or list the addresses in `endpoints`",
        );
    }

    /// Reports a host that is another entry's, and why.
    pub(super) fn shadowed(&mut self, entry: &ServiceEntry, at: usize, owner: &ServiceEntry) {
        let mut path = FieldPath::keys("spec.hosts");
        path.0.push(Segment::Index(at));
        let id = &owner.meta.id;
        let (text, hint) = if id.namespace != entry.meta.id.namespace {
            let proxy = &self.options.proxy;
            let own = proxy.role == Role::Sidecar && *id.namespace == *proxy.namespace;
            let why = match own {
                true => "which is in the caller's own namespace",
                false => "whose namespace is asked first",
            };
            (
                format!("the host is that of {id}, {why}"),
                "one namespace has a host: the caller's own, then one that exports it by name, then the oldest entry's; nothing of this entry is used for it",
            )
        } else {
            let hint = "only its endpoints are used; ports are joined where `resolution`, `exportTo`, `workloadSelector` and `metadata.labels` are the same";
            match owner.meta.created == entry.meta.created {
                true => (
                    format!(
                        "the host is already that of {id}, which is as old, and the two entries do not agree: Istio takes either of them"
                    ),
                    "here the first by name has the host; make the two agree, or remove one",
                ),
                false => (
                    format!("the host is already that of {id}, and the two entries do not agree"),
                    hint,
                ),
            }
        };
        let kind = ProblemKind::Conflict(text);
        self.report(Severity::Warning, &entry.meta, path, kind, hint);
    }
}
