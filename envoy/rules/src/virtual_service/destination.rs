//! Where routes lead to: `route[].destination`, and the shares of several.

use std::net::IpAddr;

use egress_filter::contract;
use egress_policy::fields::{Field, Fields};
use egress_policy::reading::is_label;
use egress_policy::{HostName, HostPattern, PortNumber, ProblemKind};

use super::headers::{Headers, read_headers};

/// Where a share of a route's requests or connections goes.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `HTTPRouteDestination`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The host, as it was written.
    pub host: String,
    /// The port, where one is named.
    pub port: Option<PortNumber>,
    /// The subset, where one is named.
    pub subset: Option<String>,
    /// Its part of all; zero gets nothing if there are others.
    pub weight: u32,
    /// What is changed in headers on this way; nothing where bytes are led.
    pub headers: Headers,
}

/// Returns those of a route's shares that get anything: one alone has all, whatever its weight.
///
/// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `applyHTTPRouteDestination`.
pub fn served(shares: &[Share]) -> impl Iterator<Item = &Share> {
    let alone = shares.len() == 1;
    shares.iter().filter(move |share| alone || share.weight > 0)
}

/// Reads `route`; `http` says that headers may be changed.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateHTTPRouteDestinations`.
pub(super) fn read_shares(fields: &Fields<'_>, http: bool) -> Vec<Share> {
    let mut shares = Vec::new();
    let mut read = 0;
    fields.read("route", |list| {
        read = list.count();
        list.items(|item| shares.extend(read_share(item, http)));
        let total: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
        if shares.len() == read && read > 1 && total == 0 {
            let kind = ProblemKind::Invalid("total destination weight = 0".to_owned());
            list.error_with_hint(kind, "give one of them a `weight`");
        }
        if http && served(&shares).count() > contract::SHARE_HEADERS.len() {
            let most = contract::SHARE_HEADERS.len();
            let kind =
                ProblemKind::NotSupported(format!("a route with more than {most} destinations"));
            list.error_with_hint(kind, "divide it into several routes");
        }
        if total > u64::from(u32::MAX) {
            let kind =
                ProblemKind::Invalid(format!("total destination weight {total} is too large"));
            list.error_with_hint(kind, "weights are shares: 1 and 99 say as much");
        }
        Some(())
    });
    shares
}

fn read_share(field: Field<'_>, http: bool) -> Option<Share> {
    let fields = field.fields()?;
    let weight = fields.read("weight", |field| {
        field.number(0, i32::MAX.unsigned_abs().into())
    });
    let headers = match http {
        true => fields.read("headers", read_headers).unwrap_or_default(),
        false => Headers::default(),
    };
    let told = headers.request.authority.as_deref();
    if let Some(Err(error)) = told.map(HostName::dns) {
        let text = format!("the host is none: {error}");
        let hint = "write the host alone, without scheme, port and path";
        fields.error_at("headers", ProblemKind::Invalid(text), Some(hint));
    }
    let destination = fields.require("destination", read_destination);
    let (host, port, subset) = destination?;
    Some(Share {
        host,
        port,
        subset,
        weight: weight
            .and_then(|weight| u32::try_from(weight).ok())
            .unwrap_or(0),
        headers,
    })
}

type Destination = (String, Option<PortNumber>, Option<String>);

/// Source: istio/istio `pkg/config/validation/validation.go`, `validateDestination`.
pub(super) fn read_destination(field: Field<'_>) -> Option<Destination> {
    let fields = field.fields()?;
    let host = fields.require("host", |field| {
        let text = field.text()?;
        if text.parse::<IpAddr>().is_ok() {
            let text = format!("invalid destination host {text}");
            let hint = "a destination is a service: name the host of a ServiceEntry";
            field.error_with_hint(ProblemKind::Invalid(text), hint);
            return None;
        }
        match field.host()? {
            HostPattern::Any => {
                let text = format!("invalid destination host {text}");
                field.error_with_hint(ProblemKind::Invalid(text), "name the host");
                None
            }
            _ => Some(text.to_owned()),
        }
    });
    let port = fields.read("port", |field| {
        let fields = field.fields()?;
        fields.require("number", |field| field.port())
    });
    let subset = fields.read("subset", |field| {
        let text = field.text()?;
        if !text.is_empty() && !is_label(text) {
            let text = format!("subset name is invalid: {text}");
            field.error_with_hint(
                ProblemKind::Invalid(text),
                "letters, digits and `-`, at most 63",
            );
        }
        Some(text.to_owned()).filter(|text| !text.is_empty())
    });
    Some((host?, port, subset))
}
