//! What is wrong with certificates that Envoy would take: dates, usages, revocation lists. Nothing here opens a
//! connection.
//!
//! It does not check whether the authorities of a credential also signed its client certificate. Istio's own task uses
//! one authority for both sides. A public server may have another one for its clients. Neither is a mistake, and only
//! the server knows which it has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use egress_policy::{
    ClientTls, CompileOptions, FieldPath, Identity, Origin, PolicyTable, Segment, Severity,
    TlsMode, TrafficPolicy, Trust,
};
use x509_parser::prelude::{
    ASN1Time, CertificateRevocationList, FromDer as _, X509Certificate, X509Error, X509Version,
};
use x509_parser::x509::X509Name;

use super::judge::{Decoded, judge};
use super::pair::{self, KeyKind};
use super::part::{At, Missing, Part, PartOrigin, Parts, Role};
use super::store::Store;
use egress_render::xds::SecretRequest;
use egress_rules::yaml::Location;
use egress_rules::{Diagnostic, Rules};
use egress_rules::{Reference, names_of};

/// How long before a certificate expires that is told.
const SOON_SECONDS: i64 = 30 * 24 * 60 * 60;

/// How many authorities are told of one by one. Of a distribution's bundle, some have always expired.
const MAX_TOLD: usize = 5;

/// Permission to read, for everybody.
const OTHERS_READ: u32 = 0o004;

/// Permission to write, for everybody.
const OTHERS_WRITE: u32 = 0o002;

/// Looks at all that the rules need, as it is at `now`, and tells what Envoy or the server will not take, each at
/// the field that asks for it; in a Secret among the rules, at the Secret's.
///
/// What `credentialName` names cannot be looked at when no place for it was given: then that is one warning.
pub fn inspect(
    rules: &Rules,
    store: &Store,
    options: &CompileOptions,
    now: SystemTime,
) -> Vec<Diagnostic> {
    let mut inspection = Inspection::new(rules, now);
    let needs = of_all_workloads(rules, options);
    let mut unknown = None;
    for need in &needs {
        match store.read(need) {
            Err(missing) if missing.absent && store.is_empty() => {
                unknown = unknown.or(Some((need, missing)));
            }
            Err(missing) => inspection.missing(need, missing),
            Ok(parts) => inspection.parts(need, &parts),
        }
    }
    if let Some((need, missing)) = unknown {
        let what = "what `credentialName` names was not looked at: there is neither `--credentials` nor a Secret among the rules";
        inspection.add(
            Severity::Warning,
            need,
            Role::Whole,
            None,
            what.to_owned(),
            missing.hint,
        );
    }
    inspection.unneeded(&needs, store);
    inspection.told()
}

/// Returns what the rules need for any workload of the namespace, whatever labels it has.
fn of_all_workloads(rules: &Rules, options: &CompileOptions) -> Vec<SecretRequest> {
    let mut needs: BTreeMap<String, SecretRequest> = BTreeMap::new();
    let mut add = |table: &PolicyTable| {
        needs.extend(
            SecretRequest::of(table)
                .into_iter()
                .map(|need| (need.name(), need)),
        );
    };
    add(&rules.table);
    for proxy in rules.workloads(&options.proxy.namespace) {
        // What is wrong with rules for others is theirs to check.
        if let Ok(table) = rules.compile_for(proxy, options) {
            add(&table);
        }
    }
    needs.into_values().collect()
}

/// A `tls` block of a rule.
struct Block<'r> {
    origin: Origin,
    way: Vec<Segment>,
    resource: String,
    /// It was made of a BackendTLSPolicy, and so are its fields.
    policy: bool,
    needs: Vec<String>,
    tls: &'r ClientTls,
}

/// What is being found.
pub(super) struct Inspection<'r> {
    rules: &'r Rules,
    blocks: Vec<Block<'r>>,
    /// In seconds, as certificates have it.
    pub(super) now: i64,
    found: Vec<Diagnostic>,
}

impl<'r> Inspection<'r> {
    pub(super) fn new(rules: &'r Rules, now: SystemTime) -> Self {
        let seconds = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Inspection {
            rules,
            blocks: blocks(rules),
            now: i64::try_from(seconds).unwrap_or(i64::MAX),
            found: Vec::new(),
        }
    }

    /// Returns what was found, in the order of the places, each once.
    pub(super) fn told(self) -> Vec<Diagnostic> {
        let mut found = self.found;
        found.sort_by(|a, b| (&a.file, a.place).cmp(&(&b.file, b.place)));
        let mut told = BTreeSet::new();
        let key = |diagnostic: &Diagnostic| {
            (
                diagnostic.file.clone(),
                diagnostic.place,
                diagnostic.what.clone(),
            )
        };
        found.retain(|diagnostic| told.insert(key(diagnostic)));
        found
    }

    /// Reports something about a secret at the field of the rule that asks for it.
    pub(super) fn add_of(
        &mut self,
        severity: Severity,
        need: &SecretRequest,
        rule: Option<&str>,
        what: String,
        hint: &str,
    ) {
        let (file, place, path, resource) = self.field(need, Role::Authorities, rule);
        self.found.push(Diagnostic {
            severity,
            id: None,
            file,
            place,
            path,
            what,
            resource,
            hint: Some(hint.to_owned()),
        });
    }

    /// Reports that Envoy cannot be given a secret.
    fn missing(&mut self, need: &SecretRequest, missing: Missing) {
        let at = missing.at.as_deref();
        let (severity, role) = (Severity::Error, missing.role);
        self.add(severity, need, role, at, missing.what, missing.hint);
    }

    fn parts(&mut self, need: &SecretRequest, parts: &Parts) {
        for part in parts.all() {
            if let PartOrigin::File(standing, _) = &part.origin
                && standing.mode & OTHERS_WRITE != 0
            {
                let flaw = "can be written by every user of this machine";
                self.warn(need, part, flaw, "`chmod o-w` it");
            }
        }
        if let Parts::Pair { key, .. } = parts
            && let PartOrigin::File(standing, _) = &key.origin
            && standing.mode & OTHERS_READ != 0
        {
            let flaw = "can be read by every user of this machine";
            let hint = "`chmod o-r` it; where a Secret is mounted, `defaultMode: 0440`";
            self.warn(need, key, flaw, hint);
        }
        match (judge(parts), parts) {
            (Err(missing), _) => self.missing(need, missing),
            (Ok(Decoded::Pair { chain, .. }), Parts::Pair { certificate, .. }) => {
                self.chain(need, certificate, &parsed(&chain));
            }
            (
                Ok(Decoded::Trust {
                    authorities,
                    revoked,
                }),
                Parts::Trust { ca, crl },
            ) => {
                let authorities = parsed(&authorities);
                if !matches!(
                    need,
                    SecretRequest::Validation {
                        trust: Trust::System,
                        ..
                    }
                ) {
                    self.authorities(need, ca, &authorities);
                }
                let lists: Vec<CertificateRevocationList<'_>> = revoked
                    .iter()
                    .filter_map(|der| Some(CertificateRevocationList::from_der(der).ok()?.1))
                    .collect();
                if !lists.is_empty() {
                    self.lists(need, crl.as_ref().unwrap_or(ca), &lists, &authorities);
                }
            }
            _ => {}
        }
    }

    /// Looks at the certificate that we show.
    fn chain(&mut self, need: &SecretRequest, part: &Part, chain: &[X509Certificate<'_>]) {
        for (at, certificate) in chain.iter().enumerate() {
            let validity = certificate.validity();
            let (from, until) = (validity.not_before, validity.not_after);
            // The server judges by the first; of the others, one that leads elsewhere may do no harm.
            let (severity, which) = match at {
                0 => (Severity::Error, String::new()),
                _ => (
                    Severity::Warning,
                    format!(", in certificate number {},", at + 1),
                ),
            };
            let hint = "the server would refuse it: renew it";
            if until.timestamp() < self.now {
                let flaw = format!("has expired{which} on {}", day(until));
                self.tell(severity, need, part, &flaw, hint);
            } else if from.timestamp() > self.now {
                let flaw = format!("is not valid{which} before {}", day(from));
                let hint = "the server would refuse it: is this machine's clock right?";
                self.tell(severity, need, part, &flaw, hint);
            } else if until.timestamp() < self.now.saturating_add(SOON_SECONDS) {
                let flaw = format!("expires{which} on {}, in less than 30 days", day(until));
                self.warn(
                    need,
                    part,
                    &flaw,
                    "renew it before; Envoy goes on showing it",
                );
            }
        }
        let Some(leaf) = chain.first() else { return };
        if let Ok(Some(usage)) = leaf.extended_key_usage()
            && !usage.value.client_auth
            && !usage.value.any
        {
            let flaw = "is not for clients: its extended key usage has no clientAuth";
            let hint = "servers refuse it: have one signed with `extendedKeyUsage = clientAuth`";
            self.tell(Severity::Error, need, part, flaw, hint);
        }
        for (at, pair) in chain.windows(2).enumerate() {
            if let [below, above] = pair
                && signed(above, below) == Some(false)
            {
                let flaw = format!(
                    "has a gap: certificate number {} did not sign number {}",
                    at + 2,
                    at + 1
                );
                let hint =
                    "the server may find no way to an authority: each must be signed by the next";
                self.warn(need, part, &flaw, hint);
            }
        }
    }

    /// Looks at the certificates by which servers are verified.
    fn authorities(&mut self, need: &SecretRequest, part: &Part, all: &[X509Certificate<'_>]) {
        let is_usable = |certificate: &&X509Certificate<'_>| {
            let validity = certificate.validity();
            (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&self.now)
        };
        let usable = all.iter().filter(is_usable).count();
        let severity = if usable == 0 {
            Severity::Error
        } else {
            Severity::Warning
        };
        if usable == 0 || all.len() <= MAX_TOLD {
            for certificate in all.iter().take(MAX_TOLD) {
                let validity = certificate.validity();
                let (from, until) = (validity.not_before, validity.not_after);
                let name = name(certificate.subject());
                if until.timestamp() < self.now {
                    let flaw = format!("has an authority that expired on {}: `{name}`", day(until));
                    let hint = "Envoy refuses every server that it signed: get the authority's new certificate";
                    self.tell(severity, need, part, &flaw, hint);
                } else if from.timestamp() > self.now {
                    let flaw = format!(
                        "has an authority that is not valid before {}: `{name}`",
                        day(from)
                    );
                    self.tell(
                        severity,
                        need,
                        part,
                        &flaw,
                        "is this machine's clock right?",
                    );
                } else if until.timestamp() < self.now.saturating_add(SOON_SECONDS) {
                    let flaw = format!(
                        "has an authority that expires on {}, in less than 30 days: `{name}`",
                        day(until)
                    );
                    let hint = "from then on Envoy refuses every server that it signed: add the new one beside it";
                    self.warn(need, part, &flaw, hint);
                }
            }
        }
        // A self-signed one may be all that a server has. One that another has signed is a mix-up: Envoy
        // takes it for that very server, until the server's certificate is renewed.
        let mixed_up = |certificate: &&X509Certificate<'_>| {
            !is_authority(certificate) && certificate.subject() != certificate.issuer()
        };
        for certificate in all.iter().filter(mixed_up).take(MAX_TOLD) {
            let flaw = format!(
                "has a certificate that is no authority's: `{}`, signed by `{}`",
                name(certificate.subject()),
                name(certificate.issuer())
            );
            let hint =
                "it fits one server until that is renewed: put the certificate of its signer there";
            self.warn(need, part, &flaw, hint);
        }
    }

    /// Looks at what is revoked. Envoy wants a list by each authority of a chain, the root's own too, and
    /// refuses the server where one is missing, is out of date or is not by the authority.
    ///
    /// Source: envoyproxy/envoy `source/common/tls/cert_validator/default_validator.cc`,
    /// `X509_V_FLAG_CRL_CHECK_ALL`.
    fn lists(
        &mut self,
        need: &SecretRequest,
        part: &Part,
        lists: &[CertificateRevocationList<'_>],
        all: &[X509Certificate<'_>],
    ) {
        for list in lists {
            let by = name(list.issuer());
            if let Some(next) = list
                .next_update()
                .filter(|next| next.timestamp() < self.now)
            {
                let flaw = format!(
                    "has a revocation list that ran out on {}: by `{by}`",
                    day(next)
                );
                let hint = "Envoy refuses every server that the authority signed: get the new list";
                self.tell(Severity::Error, need, part, &flaw, hint);
            }
            if list.last_update().timestamp() > self.now {
                let flaw = format!(
                    "has a revocation list that is not valid before {}: by `{by}`",
                    day(list.last_update())
                );
                self.tell(
                    Severity::Error,
                    need,
                    part,
                    &flaw,
                    "is this machine's clock right?",
                );
            }
            let issuers: Vec<&X509Certificate<'_>> = all
                .iter()
                .filter(|certificate| certificate.subject().as_raw() == list.issuer().as_raw())
                .collect();
            let forged = |issuer: &&X509Certificate<'_>| {
                verified(issuer, list.verify_signature(issuer.public_key())) == Some(false)
            };
            if !issuers.is_empty() && issuers.iter().all(forged) {
                let flaw =
                    format!("has a revocation list that `{by}` did not sign, though it names it");
                let hint = "is it of an authority's earlier key? get the list that goes with the certificate";
                self.tell(Severity::Error, need, part, &flaw, hint);
            }
            let may_sign = |issuer: &&X509Certificate<'_>| !matches!(issuer.key_usage(), Ok(Some(usage)) if !usage.value.crl_sign());
            if !issuers.is_empty() && !issuers.iter().any(may_sign) {
                let flaw =
                    format!("has a revocation list by `{by}`, whose key usage has no cRLSign");
                let hint = "Envoy refuses every server that it signed: its certificate needs `keyUsage = cRLSign`";
                self.tell(Severity::Error, need, part, &flaw, hint);
            }
        }
        let covered: BTreeSet<&[u8]> = lists.iter().map(|list| list.issuer().as_raw()).collect();
        let bare: Vec<&X509Certificate<'_>> = all
            .iter()
            .filter(|certificate| is_authority(certificate))
            .filter(|certificate| !covered.contains(certificate.subject().as_raw()))
            .collect();
        let authorities = all
            .iter()
            .filter(|certificate| is_authority(certificate))
            .count();
        let hint =
            "Envoy wants a list by each authority of a chain: add theirs, the root's own too";
        if !bare.is_empty() && bare.len() == authorities {
            let flaw =
                "has no revocation list by any of the authorities: every server would be refused";
            self.tell(Severity::Error, need, part, flaw, hint);
        } else if bare.len() > MAX_TOLD {
            let flaw = format!(
                "has no revocation list by {} of the {authorities} authorities: servers that they signed are refused",
                bare.len()
            );
            self.warn(need, part, &flaw, hint);
        } else {
            for certificate in bare {
                let flaw = format!(
                    "has no revocation list by `{}`: servers that it signed are refused",
                    name(certificate.subject())
                );
                self.warn(need, part, &flaw, hint);
            }
        }
    }

    /// Reports Secrets among the rules that no rule asks for.
    fn unneeded(&mut self, needs: &[SecretRequest], store: &Store) {
        let mut names = BTreeSet::new();
        for need in needs {
            let (credential, is_pair) = match need {
                SecretRequest::Certificate(Identity::Credential(name)) => (name, true),
                SecretRequest::Validation {
                    trust: Trust::Credential(name),
                    ..
                } => (name, false),
                _ => continue,
            };
            if let Ok(reference @ Reference::Secret(_)) =
                Reference::parse(credential, &store.namespace)
            {
                names.extend(names_of(&reference, is_pair));
            }
        }
        for held in &store.documents.secrets {
            let is_near = held.namespace == store.namespace;
            // One without any certificate is about something else.
            if held.parts.is_empty() || (is_near && names.contains(&held.name)) {
                continue;
            }
            let hint = if is_near {
                "name it in a rule's `credentialName`, or leave it out".to_owned()
            } else {
                format!(
                    "the proxy is in namespace `{}` and reads none of another",
                    store.namespace
                )
            };
            self.found.push(Diagnostic {
                severity: Severity::Warning,
                id: None,
                file: held.file.clone(),
                place: held.at,
                path: String::new(),
                what: "no rule needs this Secret".to_owned(),
                resource: Some(held.id()),
                hint: Some(hint),
            });
        }
    }

    fn warn(&mut self, need: &SecretRequest, part: &Part, flaw: &str, hint: &str) {
        self.tell(Severity::Warning, need, part, flaw, hint);
    }

    fn tell(
        &mut self,
        severity: Severity,
        need: &SecretRequest,
        part: &Part,
        flaw: &str,
        hint: &str,
    ) {
        let at = match &part.origin {
            PartOrigin::File(..) => None,
            PartOrigin::Document(at) => Some(at.clone()),
        };
        let what = format!("{} {flaw}", part.name);
        self.add(
            severity,
            need,
            part.role,
            at.as_ref(),
            what,
            Some(hint.to_owned()),
        );
    }

    fn add(
        &mut self,
        severity: Severity,
        need: &SecretRequest,
        role: Role,
        at: Option<&At>,
        what: String,
        hint: Option<String>,
    ) {
        let (file, place, path, resource) = match at {
            Some(at) => (
                at.file.clone(),
                at.place,
                at.path.clone(),
                Some(at.resource.clone()),
            ),
            None => self.field(need, role, None),
        };
        self.found.push(Diagnostic {
            severity,
            id: None,
            file,
            place,
            path,
            what,
            resource,
            hint,
        });
    }

    /// Returns the field of the first rule, or of the one that is named, that asks for a need.
    fn field(
        &self,
        need: &SecretRequest,
        role: Role,
        rule: Option<&str>,
    ) -> (String, Location, String, Option<String>) {
        let name = need.name();
        let asks = |block: &&Block<'_>| {
            block.needs.contains(&name) && rule.is_none_or(|rule| block.resource == rule)
        };
        let Some(block) = self.blocks.iter().find(asks) else {
            return (String::new(), Location::START, String::new(), None);
        };
        let field = match (need, role) {
            (_, Role::Crl) if block.tls.ca_crl.is_some() => "caCrl",
            (SecretRequest::Certificate(Identity::Credential(_)), _)
            | (
                SecretRequest::Validation {
                    trust: Trust::Credential(_),
                    ..
                },
                _,
            ) => "credentialName",
            (SecretRequest::Certificate(_), Role::Key) => "privateKey",
            (SecretRequest::Certificate(_), _) => "clientCertificate",
            // Where nothing is said, the system's bundle is trusted.
            (
                SecretRequest::Validation {
                    trust: Trust::System,
                    crl: None,
                },
                _,
            ) => "mode",
            (SecretRequest::Validation { .. }, _) if block.tls.ca_certificates.is_none() => "caCrl",
            (SecretRequest::Validation { .. }, _) => "caCertificates",
        };
        let field = match (block.policy, field) {
            (false, field) => field,
            (true, "credentialName") => "caCertificateRefs",
            (true, _) => "wellKnownCACertificates",
        };
        let mut path = FieldPath(block.way.clone());
        path.0.push(Segment::Key(field.to_owned()));
        let (file, place) = self.rules.field(block.origin, &path);
        (file, place, path.to_string(), Some(block.resource.clone()))
    }
}

/// Returns all `tls` blocks of the rules, with what each needs.
fn blocks(rules: &Rules) -> Vec<Block<'_>> {
    let mut found = Vec::new();
    for rule in &rules.parsed.destination_rules {
        let mut root = Vec::new();
        if let Some(item) = rule.meta.origin.item {
            root.extend([Segment::Key("items".to_owned()), Segment::Index(item)]);
        }
        root.push(Segment::Key("spec".to_owned()));
        let mut policies: Vec<(Vec<Segment>, &TrafficPolicy)> = Vec::new();
        let policy_of = |way: &[Segment]| {
            let mut way = way.to_vec();
            way.push(Segment::Key("trafficPolicy".to_owned()));
            way
        };
        policies.extend(
            rule.policy
                .as_deref()
                .map(|policy| (policy_of(&root), policy)),
        );
        for subset in &rule.subsets {
            let mut way = root.clone();
            way.extend([
                Segment::Key("subsets".to_owned()),
                Segment::Index(subset.index),
            ]);
            policies.extend(
                subset
                    .policy
                    .as_ref()
                    .map(|policy| (policy_of(&way), policy)),
            );
        }
        for (way, policy) in policies {
            let ports = policy.port_level.iter().map(|port| {
                let mut way = way.clone();
                way.extend([
                    Segment::Key("portLevelSettings".to_owned()),
                    Segment::Index(port.index),
                ]);
                (way, &port.policy)
            });
            for (mut way, policy) in std::iter::once((way.clone(), policy)).chain(ports) {
                if let Some(tls) = &policy.tls {
                    let made = rule.meta.id.is_backend_tls_policy();
                    match made {
                        true => {
                            way.clone_from(&root);
                            way.push(Segment::Key("validation".to_owned()));
                        }
                        false => way.push(Segment::Key("tls".to_owned())),
                    }
                    found.push(Block {
                        origin: rule.meta.origin,
                        way,
                        policy: made,
                        resource: rule.meta.id.to_string(),
                        needs: needs(tls),
                        tls,
                    });
                }
            }
        }
    }
    found
}

/// Returns the names of what a block needs.
fn needs(tls: &ClientTls) -> Vec<String> {
    let credential = tls.credential_name.as_ref();
    let identity = match (
        tls.mode,
        credential,
        &tls.client_certificate,
        &tls.private_key,
    ) {
        (TlsMode::Mutual, Some(name), ..) => Some(Identity::Credential(name.clone())),
        (TlsMode::Mutual, None, Some(certificate), Some(key)) => Some(Identity::Files {
            certificate: certificate.clone(),
            key: key.clone(),
        }),
        _ => None,
    };
    let trust = match (credential, &tls.ca_certificates) {
        (Some(name), _) => Trust::Credential(name.clone()),
        (None, Some(path)) => Trust::File(path.clone()),
        (None, None) => Trust::System,
    };
    let validation = SecretRequest::Validation {
        trust,
        crl: tls.ca_crl.clone(),
    };
    let mut needs = vec![validation.name()];
    needs.extend(identity.map(|identity| SecretRequest::Certificate(identity).name()));
    needs
}

pub(super) fn parsed(all: &[Vec<u8>]) -> Vec<X509Certificate<'_>> {
    all.iter()
        .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
        .collect()
}

/// Whether a certificate may sign others. Roots of the first version have no way of saying so.
fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    if certificate.version() == X509Version::V1 {
        return certificate.subject() == certificate.issuer();
    }
    let signs = !matches!(certificate.key_usage(), Ok(Some(usage)) if !usage.value.key_cert_sign());
    certificate.is_ca() && signs
}

/// Whether one certificate signed the other; `None` when that cannot be told.
pub(super) fn signed(above: &X509Certificate<'_>, below: &X509Certificate<'_>) -> Option<bool> {
    if above.subject().as_raw() != below.issuer().as_raw() {
        return Some(false);
    }
    verified(above, below.verify_signature(Some(above.public_key())))
}

/// Verifies a signature by a key; `None` for keys and algorithms that `ring` has not.
fn verified(by: &X509Certificate<'_>, result: Result<(), X509Error>) -> Option<bool> {
    match (result, pair::kind(by)) {
        (Ok(()), _) => Some(true),
        (
            Err(X509Error::SignatureVerificationError),
            KeyKind::P256 | KeyKind::P384 | KeyKind::Ed25519 | KeyKind::Rsa(2048..=8192),
        ) => Some(false),
        _ => None,
    }
}

pub(super) fn day(time: ASN1Time) -> String {
    time.to_datetime().date().to_string()
}

/// Returns a name as messages show it: short, and on one line.
pub(super) fn name(name: &X509Name<'_>) -> String {
    name.to_string()
        .chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}

#[cfg(test)]
mod tests;
