//! All resources that a cluster needs, or why Istio cannot carry the rules out.

use std::collections::{BTreeMap, BTreeSet};

use egress_policy::{DownstreamProtocol, Service};

use super::manifest::{Manifest, given};
use super::selector::ProxySelector;
use super::services::{originated, secrets};
use super::unsupported::{MAX_BYTES, Unsupported};
use super::wanted::{ProxyKind, Wanted};
use super::{closed, envoy_filter, rbac, wasm_plugin};
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
    check(&services, wanted)?;
    let additions = xds::foreign(&rules.table, &rules.resources(), options);
    let selector = ProxySelector::new(options, wanted);

    let mut all = closed::destination_rules(rules, &services, options, wanted);
    all.extend(rbac::manifests(&services, options, wanted)?);
    all.push(wasm_plugin::plugin(&additions, &selector, options, wanted));
    all.push(envoy_filter::envoy_filter(
        &additions, &selector, options, wanted,
    ));
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

/// Refuses what would be rendered and not work.
fn check(services: &[Service<'_>], wanted: &Wanted) -> Result<(), Unsupported> {
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
    if originated(services).next().is_none() {
        return Err(Unsupported::Nothing);
    }
    if wanted.proxies == ProxyKind::Gateway && ports.len() > 1 {
        let ports: Vec<String> = ports.keys().map(ToString::to_string).collect();
        return Err(Unsupported::Ports(ports.join(" and ")));
    }
    Ok(())
}
