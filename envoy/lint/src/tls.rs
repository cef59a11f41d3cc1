//! Rules about blocks of TLS settings.

use std::collections::BTreeSet;

use egress_policy::{
    HostPattern, PolicySource, PortNumber, ProtocolClass, Resolution, ServiceEntry, TlsMode,
};
use serde_json::{Map, Value};

use crate::catalogue::{
    CLIENT_CERTIFICATE_IGNORED, CREDENTIAL_WITHOUT_SELECTOR, CRL_WITHOUT_CA, DOUBLE_TLS,
    INSECURE_SKIP_VERIFY, ISTIO_MUTUAL_EXTERNAL, MODE_MISSING_IS_DISABLE,
    MUTUAL_WITHOUT_CREDENTIALS, PORT_SETTINGS_DROP_TLS, SNI_WITHOUT_SAN, TCP_WITHOUT_SNI,
    TLS_TO_PORT_80, WILDCARD_SAN,
};
use crate::edit::{Added, Change};
use crate::findings::Findings;
use crate::input::{Bare, Subject};
use crate::severity::Severity;
use crate::world::{Block, Reach, World, originates};

pub(crate) fn lint(world: &World<'_>, findings: &mut Findings<'_>) {
    for bare in &world.input.bare {
        for (path, tls) in bare_blocks(&bare.spec) {
            lint_bare(world, bare, &path, tls, findings);
        }
    }
    let mut plaintext: BTreeSet<(usize, usize)> = BTreeSet::new();
    for block in world.blocks() {
        if !originates(block.tls) {
            continue;
        }
        let reach = world.reach(&block);
        sni_without_san(world, &block, findings);
        tcp_without_sni(&block, &reach, findings);
        double_tls(world, &block, &reach, findings);
        istio_mutual_external(world, &block, &reach, findings);
        for reach in &reach {
            if plaintext.insert((reach.service.0, reach.port.index)) {
                tls_to_port_80(world, &block, reach, findings);
            }
        }
    }
    port_settings_drop_tls(world, findings);
}

/// Returns every `tls` of a rule as it was written, with its path.
fn bare_blocks(spec: &Map<String, Value>) -> Vec<(String, &Map<String, Value>)> {
    let mut policies = Vec::new();
    policies.extend(
        spec.get("trafficPolicy")
            .map(|policy| ("spec.trafficPolicy".to_owned(), policy)),
    );
    let subsets = spec.get("subsets").and_then(Value::as_array);
    for (at, subset) in subsets.into_iter().flatten().enumerate() {
        let policy = subset.get("trafficPolicy");
        policies.extend(policy.map(|policy| (format!("spec.subsets[{at}].trafficPolicy"), policy)));
    }
    let mut blocks = Vec::new();
    for (path, policy) in policies {
        let own = policy.get("tls").and_then(Value::as_object);
        blocks.extend(own.map(|tls| (format!("{path}.tls"), tls)));
        let ports = policy.get("portLevelSettings").and_then(Value::as_array);
        for (at, port) in ports.into_iter().flatten().enumerate() {
            let tls = port.get("tls").and_then(Value::as_object);
            blocks.extend(tls.map(|tls| (format!("{path}.portLevelSettings[{at}].tls"), tls)));
        }
    }
    blocks
}

/// Lints what a block says by itself, whether or not the parser takes it.
fn lint_bare(
    world: &World<'_>,
    bare: &Bare,
    path: &str,
    tls: &Map<String, Value>,
    findings: &mut Findings<'_>,
) {
    let subject = &bare.subject;
    let field = |name: &str| format!("{path}.{name}");
    let has = |name: &str| match tls.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    };
    if !has("mode") {
        let message =
            "Istio reads a `tls` without `mode` as DISABLE: plaintext, whatever else stands here";
        findings
            .add(&MODE_MISSING_IS_DISABLE, subject, path, message.to_owned())
            .hint("write `mode: SIMPLE`, or `mode: DISABLE` if plaintext is meant")
            .covers(vec![subject.path(&field("mode"))]);
        return;
    }
    let mode = tls.get("mode").and_then(Value::as_str).unwrap_or_default();
    if !matches!(mode, "SIMPLE" | "MUTUAL") {
        return;
    }
    let credential = tls
        .get("credentialName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if mode == "MUTUAL" && credential.is_empty() {
        mutual_without_credentials(subject, path, &has, findings);
    }
    let ignored = ["clientCertificate", "privateKey"]
        .into_iter()
        .find(|name| has(name));
    if let (Some(name), "SIMPLE") = (ignored, mode) {
        let message = format!("`{name}` is ignored: SIMPLE shows the server no certificate");
        findings
            .add(&CLIENT_CERTIFICATE_IGNORED, subject, &field(name), message)
            .hint("set `mode: MUTUAL` if the server asks for a certificate, else remove it");
    }
    let selected = bare
        .spec
        .get("workloadSelector")
        .is_some_and(|selector| !selector.is_null());
    if !credential.is_empty() && !credential.starts_with("configmap://") && !selected {
        let at = field("credentialName");
        if world.input.gateways.contains(&bare.namespace) {
            let message = "gateways take this credential, and sidecars do not: one that this rule reaches sends plaintext to the port of TLS";
            findings
                .add(&CREDENTIAL_WITHOUT_SELECTOR, subject, &at, message.to_owned())
                .severity(Severity::Info)
                .hint("lead the requests of all sidecars to the gateway with a VirtualService, or add `workloadSelector.matchLabels` with the gateway's labels");
        } else {
            let message = "sidecars take `credentialName` only from a rule with `workloadSelector`; without it they send PLAINTEXT to the port of TLS";
            findings
                .add(&CREDENTIAL_WITHOUT_SELECTOR, subject, &at, message.to_owned())
                .hint("add `workloadSelector.matchLabels` with the labels of the workloads that call the host");
        }
    }
    if tls.get("insecureSkipVerify") == Some(&Value::Bool(true)) {
        let message = "the server's certificate is not verified: whoever is in between can answer, read and change everything";
        findings
            .add(&INSECURE_SKIP_VERIFY, subject, &field("insecureSkipVerify"), message.to_owned())
            .hint("remove it, and give the server's authority in `caCertificates` if it is not a public one");
    }
    if has("caCrl") && !credential.is_empty() {
        let message =
            "`caCrl` cannot stand beside `credentialName`: Istio's web hook refuses the rule";
        findings
            .add(
                &CRL_WITHOUT_CA,
                subject,
                &field("caCrl"),
                message.to_owned(),
            )
            .severity(Severity::Error)
            .hint("put the list into the secret, as `ca.crl` beside `ca.crt`")
            .covers(vec![subject.path(&field("caCrl"))]);
    } else if has("caCrl")
        && (!has("caCertificates") || tls.get("caCertificates") == Some(&"system".into()))
    {
        let message = "Envoy wants a list from every authority in the server's chain, and without `caCertificates` any public authority may be in it";
        findings
            .add(&CRL_WITHOUT_CA, subject, &field("caCrl"), message.to_owned())
            .hint("name the server's authority in `caCertificates`, and put the lists of all its authorities into the file");
    }
    let names = tls.get("subjectAltNames").and_then(Value::as_array);
    for (at, name) in names.into_iter().flatten().enumerate() {
        let Some(name) = name.as_str().filter(|name| name.starts_with('*')) else {
            continue;
        };
        let message =
            format!("`{name}` fits only a certificate that has this very text: it is no pattern");
        findings
            .add(&WILDCARD_SAN, subject, &format!("{path}.subjectAltNames[{at}]"), message)
            .hint("write the name of the host: a certificate for `*.example.com` fits `api.example.com`");
    }
}

fn mutual_without_credentials(
    subject: &Subject,
    path: &str,
    has: &dyn Fn(&str) -> bool,
    findings: &mut Findings<'_>,
) {
    let missing: Vec<&str> = ["clientCertificate", "privateKey"]
        .into_iter()
        .filter(|name| !has(name))
        .collect();
    if missing.is_empty() {
        return;
    }
    let message = format!(
        "MUTUAL without `{}` and without `credentialName`: Istio's web hook refuses it, and where it gets past the hook, PLAINTEXT is sent",
        missing.join("` and `")
    );
    let covered = missing
        .iter()
        .map(|name| subject.path(&format!("{path}.{name}")));
    findings
        .add(&MUTUAL_WITHOUT_CREDENTIALS, subject, &format!("{path}.mode"), message)
        .hint("give `clientCertificate` and `privateKey`, or `credentialName` and a `workloadSelector`")
        .covers(covered.collect());
}

fn verifies(block: &Block<'_>) -> bool {
    !block.tls.insecure_skip_verify && matches!(block.tls.mode, TlsMode::Simple | TlsMode::Mutual)
}

/// Source: istio/istio `pilot/pkg/networking/core/cluster_tls.go`, `setAutoSniAndAutoSanValidation`.
fn sni_without_san(world: &World<'_>, block: &Block<'_>, findings: &mut Findings<'_>) {
    let Some(sni) = block.tls.sni.as_ref().filter(|_| verifies(block)) else {
        return;
    };
    if !block.tls.subject_alt_names.is_empty() {
        return;
    }
    let services = world.services(block);
    let entries = services
        .iter()
        .filter_map(|service| world.service(*service));
    // With DYNAMIC_DNS Istio has the name of the request verified, `sni` or not.
    let unverified = entries.clone().find(|(entry, _)| {
        entry.subject_alt_names.is_empty() && entry.resolution != Resolution::DynamicDns
    });
    let host = match unverified {
        Some((_, host)) => host.to_string(),
        None if services.is_empty() => block.rule.host.to_string(),
        None => return,
    };
    let subject = Subject::of(&block.rule.meta);
    let path = block.path();
    let message = format!(
        "any certificate of a trusted authority is taken, whatever its name: with `sni` Istio verifies no name unless `subjectAltNames` are given, here or in the ServiceEntry of `{host}`"
    );
    let absent = world
        .input
        .value(&subject, &format!("{path}.subjectAltNames"))
        .is_none();
    // The rule's names take the place of an entry's, which may be others.
    let covered = world.covered(block.rule).into_iter();
    let replaces = covered
        .filter_map(|service| world.service(service))
        .any(|(entry, _)| !entry.subject_alt_names.is_empty());
    let made = block.rule.meta.id.is_backend_tls_policy();
    let fix = (absent && !replaces && !made).then(|| Change::Add {
        object: subject.path(&path).0,
        behind: "sni",
        key: "subjectAltNames",
        value: Added::Names(vec![sni.clone()]),
    });
    findings
        .add(&SNI_WITHOUT_SAN, &subject, &format!("{path}.sni"), message)
        .hint(match made {
            true => format!("add `subjectAltNames: [{{type: Hostname, hostname: {sni}}}]`"),
            false => format!("add `subjectAltNames: [{sni}]`"),
        })
        .fix(fix);
}

/// Source: istio/istio `pilot/pkg/networking/core/cluster_tls.go`; Envoy takes SNI and name from a
/// request only in its HTTP router.
fn tcp_without_sni(block: &Block<'_>, reach: &[Reach<'_>], findings: &mut Findings<'_>) {
    if block.tls.sni.is_some() || !matches!(block.tls.mode, TlsMode::Simple | TlsMode::Mutual) {
        return;
    }
    let tcp = |reach: &&Reach<'_>| reach.port.protocol.class() == ProtocolClass::Tcp;
    let Some(reach) = reach.iter().find(tcp) else {
        return;
    };
    let named =
        !block.tls.subject_alt_names.is_empty() || !reach.entry.subject_alt_names.is_empty();
    let (also, hint) = match reach.host {
        HostPattern::Exact(host) if named || !verifies(block) => ("", format!("add `sni: {host}`")),
        HostPattern::Exact(host) => (
            " and no name is verified",
            format!("add `sni: {host}` and `subjectAltNames: [{host}]`"),
        ),
        _ => (
            " and no name is verified",
            "give each host a rule with its `sni` and `subjectAltNames`".to_owned(),
        ),
    };
    let message = format!(
        "no SNI is sent{also} on port {} (TCP) of `{}`: Istio would take them from an HTTP request, and there is none",
        reach.port.number, reach.host
    );
    findings
        .add(
            &TCP_WITHOUT_SNI,
            &Subject::of(&block.rule.meta),
            &block.path(),
            message,
        )
        .hint(hint);
}

fn double_tls(
    world: &World<'_>,
    block: &Block<'_>,
    reach: &[Reach<'_>],
    findings: &mut Findings<'_>,
) {
    // Through a tunnel the block's TLS is the proxy's, and the application's goes inside.
    if block.tunnelled() {
        return;
    }
    // The way from a port of plain HTTP to this one is just what is meant.
    let tls = |reach: &&Reach<'_>| {
        reach.port.protocol.class() == ProtocolClass::Tls && !world.led(block, reach)
    };
    let Some(twice) = reach.iter().find(tls) else {
        return;
    };
    let subject = Subject::of(&block.rule.meta);
    let message = format!(
        "these settings reach port {} of `{}`, on which the application speaks TLS itself: the server is sent TLS inside TLS",
        twice.port.number, twice.host
    );
    let http: BTreeSet<PortNumber> = reach
        .iter()
        .filter(|reach| reach.port.protocol.class() == ProtocolClass::Http)
        .map(|reach| reach.port.number)
        .collect();
    let one = http.first().copied().filter(|_| http.len() == 1);
    let hint = match (block.source, one) {
        (PolicySource::Rule, Some(port)) => {
            format!("move `tls` to an entry of `portLevelSettings` for port {port}")
        }
        (PolicySource::Rule, None) => {
            "move `tls` to entries of `portLevelSettings`, one for each port of plain HTTP"
                .to_owned()
        }
        _ => {
            "remove `tls` for this port, or give it the number of the port of plain HTTP".to_owned()
        }
    };
    let led = world.input.may_be_led_unseen(&block.rule.host);
    let fix = one
        .filter(|_| may_move(world, block, reach))
        .map(|port| Change::MoveToPort {
            policy: subject.path("spec.trafficPolicy").0,
            port: port.get(),
        });
    let finding = findings.add(&DOUBLE_TLS, &subject, &block.path(), message);
    match led {
        true => finding.severity(Severity::Warning).hint(
            "this is right where something that is not read here leads plain HTTP to this port, and only there",
        ),
        false => finding.hint(hint).fix(fix),
    };
}

/// Whether moving a rule's `tls` to its one port of HTTP changes nothing but the ports of TLS.
fn may_move(world: &World<'_>, block: &Block<'_>, reach: &[Reach<'_>]) -> bool {
    let only = |reach: &Reach<'_>| {
        matches!(
            reach.port.protocol.class(),
            ProtocolClass::Http | ProtocolClass::Tls
        )
    };
    let policy = world
        .input
        .spec(block.rule.meta.origin)
        .and_then(|spec| spec.get("trafficPolicy"));
    // An entry for a port takes nothing from the rule, so `tls` must be all there is.
    let alone = policy
        .and_then(Value::as_object)
        .is_some_and(|policy| policy.len() == 1);
    let subsets = block
        .rule
        .subsets
        .iter()
        .any(|subset| subset.policy.is_some());
    // Of a wildcard's hosts others may be elsewhere, with other ports.
    let known = block.rule.host.exact().is_some();
    let free = !world.relied_on(&block.rule.host);
    free && block.source == PolicySource::Rule
        && known
        && alone
        && !subsets
        && reach.iter().all(only)
}

fn istio_mutual_external(
    world: &World<'_>,
    block: &Block<'_>,
    reach: &[Reach<'_>],
    findings: &mut Findings<'_>,
) {
    if block.tls.mode != TlsMode::IstioMutual {
        return;
    }
    let Some(reach) = reach.iter().find(|reach| is_external(world, reach.entry)) else {
        return;
    };
    let message = format!(
        "`{}` is outside of the mesh, and with ISTIO_MUTUAL only certificates of the mesh are trusted: the handshake fails",
        reach.host
    );
    findings
        .add(&ISTIO_MUTUAL_EXTERNAL, &Subject::of(&block.rule.meta), &format!("{}.mode", block.path()), message)
        .hint("write SIMPLE, or MUTUAL with a certificate that the server knows; for a service of the mesh set `location: MESH_INTERNAL`");
}

fn is_external(world: &World<'_>, entry: &ServiceEntry) -> bool {
    let location = world
        .input
        .spec(entry.meta.origin)
        .and_then(|spec| spec.get("location"));
    location.and_then(Value::as_str) != Some("MESH_INTERNAL")
}

fn tls_to_port_80(
    world: &World<'_>,
    block: &Block<'_>,
    reach: &Reach<'_>,
    findings: &mut Findings<'_>,
) {
    let port = reach.port;
    let own = |endpoint: &egress_policy::Endpoint| {
        endpoint
            .ports
            .iter()
            .find(|(name, _)| *name == port.name)
            .map(|(_, port)| port.get())
    };
    let endpoints = &reach.entry.endpoints;
    let elsewhere = !endpoints.is_empty()
        && endpoints
            .iter()
            .all(|endpoint| own(endpoint).is_some_and(|port| port != 80));
    let plain =
        port.protocol.class() == ProtocolClass::Http || port.protocol.class() == ProtocolClass::Tcp;
    if port.target.get() != 80 || elsewhere || !plain || world.led_away(reach) {
        return;
    }
    let subject = Subject::of(&reach.entry.meta);
    let path = format!("spec.ports[{}]", port.index);
    let target = format!("{path}.targetPort");
    let explicit = world.input.value(&subject, &target).is_some();
    let message = format!(
        "{} originates TLS for port {} of `{}`, and port 80 of the server is dialled, which speaks plaintext",
        block.rule.meta.id, port.number, reach.host
    );
    // Whoever sends plaintext to this port must go on reaching port 80.
    let hosts = 0..reach.entry.hosts.len();
    let all = hosts
        .map(|host| world.originated((reach.service.0, host), port.number))
        .all(|(_, all)| all);
    let relied_on = reach.entry.hosts.iter().any(|host| world.relied_on(host));
    let safe = all
        && !relied_on
        && !explicit
        && port.number.get() == 80
        && !endpoints.iter().any(|e| own(e).is_some());
    let at = if explicit {
        target
    } else {
        format!("{path}.number")
    };
    let led = world.input.may_be_led_to(reach.host);
    findings
        .add(&TLS_TO_PORT_80, &subject, &at, message)
        // It may be that no request gets here: all are led to another port.
        .severity(if led {
            Severity::Warning
        } else {
            Severity::Error
        })
        .hint(format!(
            "{} `targetPort: 443`: the application goes on calling port {}",
            if explicit { "set" } else { "add" },
            port.number
        ))
        .fix(safe.then(|| Change::Add {
            object: subject.path(&path).0,
            behind: last_field(world, &subject, &path),
            key: "targetPort",
            value: Added::Number(443),
        }));
}

/// Returns the field behind which `targetPort` looks best.
fn last_field(world: &World<'_>, subject: &Subject, port: &str) -> &'static str {
    let has = |name: &&str| {
        world
            .input
            .value(subject, &format!("{port}.{name}"))
            .is_some()
    };
    ["protocol", "name"]
        .into_iter()
        .find(has)
        .unwrap_or("number")
}

/// Source: istio/istio `pilot/pkg/networking/util/util.go`, `GetPortLevelTrafficPolicy`.
fn port_settings_drop_tls(world: &World<'_>, findings: &mut Findings<'_>) {
    for rule in world.rules() {
        let Some(policy) = &rule.policy else { continue };
        if !policy.tls.as_deref().is_some_and(originates) {
            continue;
        }
        let covered = world.covered(rule);
        for entry in policy
            .port_level
            .iter()
            .filter(|entry| entry.policy.tls.is_none())
        {
            // On a port of TLS that is just what one does.
            let dropped = covered.iter().find_map(|service| {
                let (service, host) = world.service(*service)?;
                let port = service
                    .ports
                    .iter()
                    .find(|port| port.number == entry.port)?;
                (port.protocol.class() != ProtocolClass::Tls).then_some(host)
            });
            let Some(host) = dropped else { continue };
            let message = format!(
                "port {} of `{host}` gets PLAINTEXT: an entry for a port takes nothing from `trafficPolicy`, so its `tls` does not count here",
                entry.port
            );
            let path = format!("spec.trafficPolicy.portLevelSettings[{}]", entry.index);
            findings
                .add(&PORT_SETTINGS_DROP_TLS, &Subject::of(&rule.meta), &path, message)
                .hint("repeat `tls` in this entry, or write `tls: {mode: DISABLE}` if plaintext is meant");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_found() {
        let spec = serde_json::json!({
            "trafficPolicy": {"tls": {}, "portLevelSettings": [{"port": {"number": 80}}, {"tls": {}}]},
            "subsets": [{"name": "a"}, {"trafficPolicy": {"tls": {}}}],
        });
        let paths: Vec<String> = bare_blocks(spec.as_object().unwrap())
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        assert_eq!(
            paths,
            [
                "spec.trafficPolicy.tls",
                "spec.trafficPolicy.portLevelSettings[1].tls",
                "spec.subsets[1].trafficPolicy.tls",
            ]
        );
    }
}
