//! All resources that a cluster needs, or why Istio cannot carry the rules out.

use std::collections::{BTreeMap, BTreeSet};

use egress_policy::{DownstreamProtocol, Resolution, Role, Service};

use super::manifest::{Manifest, given};
use super::selector::ProxySelector;
use super::services::{originated, secrets};
use super::unsupported::{MAX_BYTES, Unsupported};
use super::wanted::{ProxyKind, Wanted, Way};
use super::{closed, envoy_filter, merged, rbac, wasm_plugin};
use crate::xds::{self, Options};
use egress_rules::Rules;

/// Renders all that a cluster needs, in the order in which it is to be applied.
///
/// `options` say for whom the rules were compiled, and that secrets come from Istio.
///
/// # Errors
/// When Istio cannot be told to do what the rules ask for; then nothing is rendered.
pub fn manifests(
    rules: &Rules,
    options: &Options,
    wanted: &Wanted,
) -> Result<Vec<Manifest>, Unsupported> {
    let services: Vec<Service<'_>> = rules.table.services().collect();
    let selector = ProxySelector::new(options, wanted);
    let closed = closed::destination_rules(rules, &services, options, wanted);
    let mut all = Vec::new();
    match &wanted.way {
        Way::Merge => {
            check_clusters(rules, &services, wanted)?;
            // The patch alone verifies, and the closed rule alone refuses: so whatever comes first, nothing is open, and
            // nothing is refused either if the patch does.
            all.extend(rbac::manifests(&services, options, wanted)?);
            all.extend(merged::envoy_filters(
                rules, &services, &selector, options, wanted,
            )?);
            all.extend(closed);
        }
        Way::Filter(filter) => {
            check(rules, &services, wanted)?;
            let additions = xds::foreign(&rules.table, &rules.resources(), options);
            all.extend(closed);
            all.extend(rbac::manifests(&services, options, wanted)?);
            let plugin = wasm_plugin::plugin(&additions, &selector, options, wanted, filter);
            all.push(plugin);
            all.push(envoy_filter::envoy_filter(
                &additions, &selector, options, wanted,
            ));
        }
    }
    all.extend(given(rules, "ServiceEntry"));
    let mut names = BTreeSet::new();
    for manifest in &all {
        let called = format!("{} {}/{}", manifest.kind, manifest.namespace, manifest.name);
        if !names.insert(called.clone()) {
            return Err(Unsupported::Twice(called));
        }
        let bytes = manifest.value.to_string().len();
        if bytes > MAX_BYTES {
            let called = format!("{} {}", manifest.kind, manifest.name);
            return Err(Unsupported::TooLarge(called, bytes));
        }
    }
    Ok(all)
}

/// Refuses what a cluster of Istio's cannot be told.
fn check_clusters(
    rules: &Rules,
    services: &[Service<'_>],
    wanted: &Wanted,
) -> Result<(), Unsupported> {
    let dynamic = |service: &Service<'_>| {
        let mut entries = rules.parsed.service_entries.iter();
        let entry = entries.find(|entry| Some(&entry.meta.id) == service.service_entry);
        entry.is_some_and(|entry| entry.resolution == Resolution::DynamicDns)
    };
    let mut any = false;
    for (service, _) in originated(services, &wanted.way) {
        any = true;
        if service.host.exact().is_none() && dynamic(service) {
            return Err(Unsupported::Dynamic(service.host.to_string()));
        }
        if let Some(name) = secrets(service.cluster).find(|name| name.contains('%')) {
            return Err(Unsupported::Secret(name));
        }
    }
    match any {
        true => Ok(()),
        false => Err(Unsupported::NothingToMerge),
    }
}

/// Refuses what would be rendered and not work.
fn check(rules: &Rules, services: &[Service<'_>], wanted: &Wanted) -> Result<(), Unsupported> {
    let mut ports = BTreeMap::new();
    for service in services {
        let tls = service.cluster.tls.as_ref();
        match service.downstream {
            DownstreamProtocol::Tcp if tls.is_some() => {
                return Err(Unsupported::Tcp {
                    host: service.host.to_string(),
                    port: service.port,
                });
            }
            DownstreamProtocol::Tcp | DownstreamProtocol::Tls => continue,
            DownstreamProtocol::Http => {}
        }
        ports.insert(service.port, ());
        if service.cluster.public_only {
            return Err(Unsupported::Wildcard(service.host.to_string()));
        }
        if let Some(name) = secrets(service.cluster).find(|name| name.contains('%')) {
            return Err(Unsupported::Secret(name));
        }
    }
    let role = match wanted.proxies {
        ProxyKind::Sidecar => Role::Sidecar,
        ProxyKind::Gateway => Role::Gateway,
    };
    for entry in &rules.parsed.service_entries {
        for host in &entry.hosts {
            if let Some(route) = rules.decides(entry, host, role) {
                let host = host.to_string();
                return Err(Unsupported::Routed { route, host });
            }
        }
    }
    if originated(services, &wanted.way).next().is_none() {
        return Err(Unsupported::Nothing);
    }
    if wanted.proxies == ProxyKind::Gateway && ports.len() > 1 {
        let ports: Vec<String> = ports.keys().map(ToString::to_string).collect();
        return Err(Unsupported::Ports(ports.join(" and ")));
    }
    Ok(())
}
