//! Where a `tunnel` can be honoured: connections that a proxy is asked to carry.
//!
//! The endpoints of the service are the proxy's, whether the ServiceEntry has the proxy's name as its host or the
//! proxy's address in `endpoints`. What cannot go into its tunnel is refused, so nothing goes around it.

use crate::compile::compiler::{Compiler, Wanted};
use crate::merge::{Merged, Settings};
use crate::policy_source::PolicySource;
use crate::problem::{FieldPath, ProblemKind, Segment, Severity};
use crate::query::DownstreamProtocol;
use crate::resource::{Subset, Tunnel};

impl<'r> Compiler<'r> {
    /// Whether a service can go through a tunnel, and tells what is against it; `tls` is that to the proxy.
    pub(super) fn check_tunnel(
        &mut self,
        service: &Wanted<'_>,
        tunnel: &Tunnel,
        tls: bool,
        settings: &Settings<'r>,
        subset: Option<&Subset>,
    ) -> bool {
        let own = |subset: &&Subset| {
            let policy = subset.policy.as_ref();
            policy.is_some_and(|policy| policy.tunnel.is_some())
        };
        let source = match subset.filter(own) {
            Some(subset) => PolicySource::Subset(subset.index),
            None => PolicySource::Rule,
        };
        // What a subset has from its rule has been told of the rule.
        let told = subset.is_some() && source == PolicySource::Rule;
        let meta = &settings.rule.meta;
        let (host, port) = (service.host, service.port.number);
        let refused = if service.downstream == DownstreamProtocol::Http {
            Some((
                format!(
                    "port {port} of `{host}` speaks HTTP, and a tunnel takes connections only: requests would go around it"
                ),
                "use `--upstream-proxy` for HTTP, or protocol TCP or TLS for the port; an entry for it in `portLevelSettings` keeps it out of the tunnel",
            ))
        } else if host.exact().is_none() && !service.entry.has_own_endpoints() {
            Some((
                format!(
                    "`{host}` is no one host, so nothing says where the proxy of the tunnel is"
                ),
                "give the ServiceEntry the proxy's address in `endpoints`",
            ))
        } else if settings.proxy_protocol.is_some() {
            Some((
                "tunnel and proxyProtocol must not be set together".to_owned(),
                "remove one of the two",
            ))
        } else {
            None
        };
        if let Some((text, hint)) = refused {
            if !told {
                let kind = ProblemKind::Conflict(text);
                self.report(Severity::Error, meta, tunnel_of(source), kind, hint);
            }
            return false;
        }
        if service.downstream == DownstreamProtocol::Tcp && tls && !told {
            let text = format!(
                "TLS ends at the proxy: what the application sends goes on to `{}` as it is",
                tunnel.authority()
            );
            let hint = "let the application speak TLS itself, or use `--upstream-proxy`, with which TLS goes on to the server";
            let kind = ProblemKind::Conflict(text);
            self.report(Severity::Warning, meta, tunnel_of(source), kind, hint);
        }
        true
    }

    /// Reports a port that has settings of its own and so, as in Istio, not the tunnel of its rule.
    pub(super) fn check_dropped_tunnel(
        &mut self,
        service: &Wanted<'_>,
        merged: &Merged<'r>,
        settings: Settings<'r>,
    ) {
        let tunnel = merged
            .policy
            .and_then(|(_, policy)| policy.tunnel.as_deref());
        let entry = matches!(settings.source, PolicySource::Port(_));
        if tunnel.is_none() || !entry || service.downstream == DownstreamProtocol::Http {
            return;
        }
        let text = format!(
            "port {} of `{}` goes around the `tunnel`, for its settings replace those of the rule as a whole",
            service.port.number, service.host
        );
        let hint = "remove the entry, and say for all ports what it says";
        let path = settings.source.path();
        let kind = ProblemKind::Conflict(text);
        self.report(Severity::Warning, &settings.rule.meta, path, kind, hint);
    }
}

/// Returns the way to a tunnel. Only a rule or a subset as a whole can have one.
fn tunnel_of(source: PolicySource) -> FieldPath {
    let mut path = source.path();
    path.0.push(Segment::Key("tunnel".to_owned()));
    path
}
