//! The kinds of routes.

use serde_json::Value;

use crate::document;

/// The group of the Gateway API.
pub(super) const GROUP: &str = "gateway.networking.k8s.io";

/// The group of ServiceEntries.
pub(super) const ISTIO: &str = "networking.istio.io";

/// A kind of route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Http,
    Grpc,
    Tls,
    Tcp,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Http, Kind::Grpc, Kind::Tls, Kind::Tcp];

    /// Returns the kind of a resource.
    pub(super) fn of(resource: &Value) -> Option<Kind> {
        let name = document::kind(resource)?;
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        found.filter(|_| document::group_of(resource) == Some(GROUP))
    }

    pub(super) fn name(self) -> &'static str {
        let [http, grpc, tls, tcp] = egress_policy::ROUTE_KINDS;
        match self {
            Kind::Http => http,
            Kind::Grpc => grpc,
            Kind::Tls => tls,
            Kind::Tcp => tcp,
        }
    }

    /// Returns the versions that a cluster has it in.
    pub(super) fn versions(self) -> &'static [&'static str] {
        match self {
            Kind::Http => &["v1", "v1beta1"],
            Kind::Grpc => &["v1", "v1alpha2"],
            Kind::Tls => &["v1", "v1alpha3", "v1alpha2"],
            Kind::Tcp => &["v1", "v1alpha2"],
        }
    }

    /// Returns the list of a VirtualService that has its rules.
    pub(super) fn list(self) -> &'static str {
        match self {
            Kind::Http | Kind::Grpc => "http",
            Kind::Tls => "tls",
            Kind::Tcp => "tcp",
        }
    }

    pub(super) fn is_of_requests(self) -> bool {
        self.list() == "http"
    }
}
