//! The hosts and ports of a table, and what each leads to.

use std::rc::Rc;

use crate::compile::cluster::is_postgresql;
use crate::compile::compiler::{Compiler, Wanted};
use crate::compile::owners::{Entry, Leads, Owner, Siblings};
use crate::compile::routing::Routing;
use crate::compile::scope::{Scope, Seen};
use crate::host::{HostName, HostPattern};
use crate::merge::{Merged, Settings, for_port, for_subset};
use crate::options::OutboundMode;
use crate::port::ProtocolClass;
use crate::problem::{FieldPath, ProblemKind, Segment, Severity};
use crate::proxy::Role;
use crate::query::DownstreamProtocol;
use crate::reason::Reason;
use crate::resource::{ServiceEntry, ServicePort, Sidecar, SimpleBalancer, Subset};
use crate::table::hosts::{Port, Subsets};
use crate::table::verdict::Verdict;
use crate::tls::{TlsIntent, Trust};

impl<'r> Compiler<'r> {
    /// Adds the hosts of all entries that the caller sees, and those that VirtualServices add.
    pub(super) fn entries(&mut self) {
        let (proxy, mesh) = (&self.options.proxy, &self.options.mesh);
        let sidecars = &self.resources.sidecars;
        let sidecar = Sidecar::of(sidecars, proxy, &mesh.root_namespace);
        self.check_sidecar(sidecar);
        let resources = self.resources;
        let mut scope = Scope::of(resources, proxy, mesh, sidecar, &mut |seen| match seen {
            Seen::Entry(entry) => {
                let before = self.problems.len();
                self.check_entry(&entry);
                let found = before..self.problems.len();
                if !found.is_empty() {
                    self.entry_problems.insert(entry.index, found);
                }
            }
            Seen::Shadowed(entry, at, owner) => self.shadowed(&entry, at, &owner),
        });
        self.owners = scope.owners.iter().copied().map(Some).collect();
        if proxy.role == Role::Gateway && !self.options.foreign {
            self.routers.push((proxy.clone(), Rc::new(scope)));
            self.owners.clear();
            self.serve_gateways();
            return;
        }
        self.hosts = std::mem::take(&mut scope.hosts);
        self.scope = Rc::new(scope);
        self.routing = Rc::new(Routing::of(resources, proxy, mesh, sidecar));
        let scope = Rc::clone(&self.scope);
        for index in 0..scope.owners.len() {
            self.host(index, scope.families.get(&index), sidecar);
        }
        self.add_names();
        self.add_lone_hosts();
    }

    /// Returns what becomes of hosts that nothing knows: a Sidecar may refuse them, and lets out none that we do not.
    pub(super) fn outbound(&self) -> OutboundMode {
        let (proxy, mesh) = (&self.options.proxy, &self.options.mesh);
        let sidecar = Sidecar::of(&self.resources.sidecars, proxy, &mesh.root_namespace);
        match sidecar.and_then(|sidecar| sidecar.outbound) {
            Some(OutboundMode::RegistryOnly) => OutboundMode::RegistryOnly,
            _ => self.options.outbound,
        }
    }

    /// Reports what a Sidecar asks for and does not get.
    fn check_sidecar(&mut self, sidecar: Option<&Sidecar>) {
        let Some(sidecar) = sidecar else { return };
        let path = |field: &str| FieldPath::keys(&format!("spec.outboundTrafficPolicy.{field}"));
        if sidecar.egress_proxy {
            let kind = ProblemKind::NotSupported("`egressProxy`".to_owned());
            let hint = "hosts that no rule has would go around that proxy; use `--upstream-proxy`, or name the hosts";
            let severity = Severity::Error;
            self.report(severity, &sidecar.meta, path("egressProxy"), kind, hint);
        }
        let closed = self.options.outbound == OutboundMode::RegistryOnly;
        if sidecar.outbound == Some(OutboundMode::AllowAny) && closed && !self.options.foreign {
            let kind = ProblemKind::NotSupported("`ALLOW_ANY` of a Sidecar".to_owned());
            let hint = "hosts that no rule has are refused; `--outbound-traffic-policy ALLOW_ANY` lets them out";
            let severity = Severity::Warning;
            self.report(severity, &sidecar.meta, path("mode"), kind, hint);
        }
    }

    /// Adds the ports of a host.
    fn host(&mut self, index: usize, siblings: Option<&Siblings<'r>>, sidecar: Option<&Sidecar>) {
        let Some(Some(Owner { entry, host })) = self.owners.get(index).copied() else {
            return;
        };
        let rule = self
            .rules
            .rule(&self.options.proxy, &entry.meta.id.namespace, host);
        let names = alt_names(entry, siblings, &self.options.mesh.trust_domain);
        let joined = siblings.map_or(&[][..], |siblings| &siblings.joined);
        for from in [entry].into_iter().chain(joined.iter().copied()) {
            for port in from.item.ports.iter() {
                let known = self.hosts.get(index);
                if known.is_some_and(|host| self.hosts.port(host, port.number).is_some()) {
                    continue;
                }
                let number = port.number;
                let (owner, caller) = (&*entry.meta.id.namespace, &*self.options.proxy.namespace);
                let taken_in = |sidecar: &Sidecar| {
                    sidecar.takes_in(caller, owner, host, Some(number.get().into()))
                };
                if !sidecar.is_none_or(taken_in) {
                    continue;
                }
                self.candidate(from.item, host, index, port);
                let routed = self.routed(index, host, port);
                if (routed.as_ref()).is_some_and(|port| !self.hosts.leaves_rest(port)) {
                    continue;
                }
                let found = self.problems.len();
                let leads = Leads::of(entry.item, siblings, (from.item, port));
                let wanted = (from.item, port, &leads, &names[..]);
                if let Some((port, subsets)) = self.port(entry.item, host, wanted, rule.as_ref()) {
                    self.note_plain(index, (from, wanted.1), wanted.2, &port, rule.as_ref());
                    match routed {
                        None => self.hosts.add_port(index, port, subsets),
                        Some(_) => self.add_rest(index, host, &port),
                    }
                    for entry in siblings.map_or(&[entry][..], |siblings| &siblings.all) {
                        self.blame(index, number, self.problems_of(*entry));
                    }
                    self.blame(index, number, found..self.problems.len());
                }
            }
            // As in Istio, whoever names an address of the service in `Host` names the service.
            if let ([_], Some(_)) = (&from.hosts[..], host.exact()) {
                for address in from
                    .addresses
                    .iter()
                    .filter(|address| address.prefix.is_none())
                {
                    self.hosts.alias(HostName::address(address.ip), index);
                }
            }
        }
        // In Istio the ports of entries that did not join have listeners and no clusters: no wider host has them.
        for lost in siblings.iter().flat_map(|siblings| &siblings.lost) {
            for port in lost.ports.iter() {
                let known = self.hosts.get(index);
                let taken = known.is_some_and(|host| self.hosts.port(host, port.number).is_some());
                // VirtualServices lead them all the same.
                let (owner, caller) = (&*lost.meta.id.namespace, &*self.options.proxy.namespace);
                let taken_in = |sidecar: &Sidecar| {
                    sidecar.takes_in(caller, owner, host, Some(port.number.get().into()))
                };
                let bytes = downstream(port) == Some(DownstreamProtocol::Tcp);
                let led = !taken && !bytes && sidecar.is_none_or(taken_in);
                if led && self.routed(index, host, port).is_some() {
                    continue;
                }
                if let Some(downstream) = downstream(port).filter(|_| !taken) {
                    let verdict = Verdict::refused(Reason::UnknownPort, None);
                    let port = Port::new(port.number, port.target, downstream, verdict);
                    self.hosts.add_port(index, port, Subsets::new());
                }
            }
        }
    }

    fn port(
        &mut self,
        entry: &'r ServiceEntry,
        host: &HostPattern,
        (from, port, leads, names): (&ServiceEntry, &ServicePort, &Leads<'r>, &[String]),
        merged: Option<&Merged<'r>>,
    ) -> Option<(Port, Subsets)> {
        let downstream = downstream(port)?;
        if downstream == DownstreamProtocol::Tls
            && matches!(host, HostPattern::Suffix(suffix) if !suffix.starts_with('.'))
        {
            let kind = ProblemKind::NotSupported(format!("`{host}` on a port that speaks TLS"));
            let hint = "a ClientHello is matched by whole labels; use `*.` and a domain";
            self.report(
                Severity::Error,
                &from.meta,
                FieldPath::keys("spec.hosts"),
                kind,
                hint,
            );
            let verdict = Verdict::refused(Reason::InvalidRule, None);
            let port = Port::new(port.number, port.target, downstream, verdict);
            return Some((port, Subsets::new()));
        }
        if entry.workload_selector.is_some() && entry.endpoints.is_empty() {
            let verdict = Verdict::refused(Reason::NotRead, None);
            let port = Port::new(port.number, port.target, downstream, verdict);
            return Some((port, Subsets::new()));
        }
        let service = Wanted {
            entry,
            host,
            port,
            leads,
            names,
            downstream,
            role: self.options.proxy.role,
            alone: false,
            told: None,
        };
        let settings = merged.map(|merged| for_port(merged, port.number));
        if let (Some(merged), Some(settings)) = (merged, settings) {
            self.check_dropped_tunnel(&service, merged, settings);
        }
        let verdict = self.verdict(&service, settings, None).unwrap_or_else(|| {
            let rule = settings.map(|settings| (self.rule_index(settings.rule), settings.source));
            let tls = downstream == DownstreamProtocol::Tls;
            let reason = match tls && self.routing.leads_to(host, port.number) {
                true => Reason::TlsInTls,
                false => Reason::InvalidRule,
            };
            Verdict::refused(reason, rule)
        });
        let mut subsets = Vec::new();
        if let (Some(merged), Some(parent)) = (merged, settings) {
            for (rule, subset) in &merged.subsets {
                let settings = for_subset(parent, *rule, subset, port.number);
                let found = self.problems.len();
                if let Some(verdict) = self.verdict(&service, Some(settings), Some(subset)) {
                    subsets.push((subset.name.as_str().into(), verdict));
                }
                // No request names a subset, so what is wrong with one refuses no request.
                for problem in self.problems.iter_mut().skip(found) {
                    problem.severity = Severity::Warning;
                }
            }
        }
        let port = Port::new(port.number, port.target, downstream, verdict);
        Some((port, subsets))
    }

    /// Settles where a service, or a subset of it, goes. `None` when that cannot be honoured, which has been
    /// told, and for a subset that has no endpoint.
    pub(super) fn verdict(
        &mut self,
        service: &Wanted<'_>,
        settings: Option<Settings<'r>>,
        subset: Option<&Subset>,
    ) -> Option<Verdict> {
        let mut tls = None;
        if let Some(settings) = settings {
            let under = |field: &str| {
                let mut path = settings.source.path();
                path.0.push(Segment::Key(field.to_owned()));
                path
            };
            let meta = &settings.rule.meta;
            if let Some(block) = settings.tls {
                match TlsIntent::of(
                    block,
                    &settings.rule,
                    service.entry,
                    service.names,
                    service.host,
                    service.downstream,
                    service.role,
                ) {
                    Ok(intent) => {
                        tls = intent.map(|intent| intent.offered(settings.notes.legacy()));
                    }
                    Err(problem) => {
                        let kind = ProblemKind::Conflict(problem.to_string());
                        self.report(Severity::Error, meta, under("tls"), kind, problem.hint());
                        return None;
                    }
                }
            }
            if tls
                .as_ref()
                .is_some_and(|tls| tls.trust == Trust::InsecureSkipVerify)
            {
                let text = "anyone between here and the server can read and change what is sent"
                    .to_owned();
                let hint = "remove it, and give the server's authority in `caCertificates`";
                let mut path = under("tls");
                path.0.push(Segment::Key("insecureSkipVerify".to_owned()));
                self.report(
                    Severity::Warning,
                    meta,
                    path,
                    ProblemKind::Invalid(text),
                    hint,
                );
            }
            if service.downstream == DownstreamProtocol::Tls
                && tls.is_some()
                && settings.tunnel.is_none()
            {
                let (port, host) = (service.port.number, service.host);
                // Where something leads requests here, it is they who get TLS, and once.
                let (severity, text, hint) = match self.routing.leads_to(host, port) {
                    true => (
                        Severity::Warning,
                        format!(
                            "applications that speak TLS on port {port} of `{host}` themselves are refused (`tls_in_tls`): theirs would go inside this one, which is for what VirtualServices lead there"
                        ),
                        "let applications call the HTTP port; those that must speak TLS need a rule without `tls` for a port of their own",
                    ),
                    false => (
                        Severity::Error,
                        format!(
                            "TLS inside TLS: applications already speak TLS on port {port} of `{host}`"
                        ),
                        match meta.id.is_backend_tls_policy() {
                            true => "give the name of the HTTP port in `sectionName`",
                            false => "give `tls` under `portLevelSettings` for the HTTP port alone",
                        },
                    ),
                };
                self.report(
                    severity,
                    meta,
                    under("tls"),
                    ProblemKind::Conflict(text),
                    hint,
                );
                return None;
            }
            if service.downstream == DownstreamProtocol::Tcp
                && tls.is_some()
                && settings.tunnel.is_none()
                && is_postgresql(service.port)
            {
                let text = "PostgreSQL agrees on TLS inside its protocol, by an SSLRequest, and a connection here is TLS from its first byte"
                    .to_owned();
                let hint = "servers from 17 on take it, and clients must say `sslmode=disable`; with older servers remove `tls` and let the application speak TLS (`sslmode=verify-full`)";
                self.report(
                    Severity::Warning,
                    meta,
                    under("tls"),
                    ProblemKind::Conflict(text),
                    hint,
                );
            }
            if let Some(tunnel) = settings.tunnel
                && !self.check_tunnel(service, tunnel, tls.is_some(), &settings, subset)
            {
                return None;
            }
            if settings
                .load_balancer
                .is_some_and(|balancer| balancer.simple == SimpleBalancer::Passthrough)
            {
                let hint = "the host is looked up by DNS instead";
                let kind = ProblemKind::NotSupported("`PASSTHROUGH`".to_owned());
                self.report(Severity::Warning, meta, under("loadBalancer"), kind, hint);
            }
        }
        let cluster = self.cluster(service, tls, settings, subset)?;
        let rule = settings.map(|settings| (self.rule_index(settings.rule), settings.source));
        Some(Verdict::new(cluster, rule))
    }
}

/// Returns the names that the certificate of a service may have where its rule gives none: `subjectAltNames` of its
/// entry, and the accounts that its endpoints run as.
///
/// Of several entries the youngest one's names count, as in Istio. There they count even where it has none, and so
/// take away those of the others; here they do not.
///
/// Source: istio/istio `pilot/pkg/model/push_context.go`, `initServiceAccounts` and `addServiceAccounts`.
pub(super) fn alt_names(
    entry: Entry<'_>,
    siblings: Option<&Siblings<'_>>,
    trust_domain: &str,
) -> Vec<String> {
    let alone = [entry];
    let all = siblings.map_or(&alone[..], |siblings| &siblings.all);
    let given = |entry: &&Entry<'_>| !entry.subject_alt_names.is_empty();
    let mut names = match all.iter().rev().find(given) {
        Some(entry) => entry.subject_alt_names.clone(),
        None => Vec::new(),
    };
    for entry in all {
        let accounts = entry.endpoints.iter();
        for account in accounts.filter_map(|endpoint| endpoint.service_account.as_deref()) {
            let namespace = &entry.meta.id.namespace;
            let name = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}");
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// Returns what comes in on a port; nothing does on one of datagrams.
pub(super) fn downstream(port: &ServicePort) -> Option<DownstreamProtocol> {
    match port.protocol.class() {
        ProtocolClass::Http => Some(DownstreamProtocol::Http),
        ProtocolClass::Tls => Some(DownstreamProtocol::Tls),
        ProtocolClass::Tcp => Some(DownstreamProtocol::Tcp),
        ProtocolClass::None => None,
    }
}
