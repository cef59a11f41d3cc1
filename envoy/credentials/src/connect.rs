//! Asks the servers: would the rules trust the certificates that they show, and would Envoy come to terms with them?
//!
//! It sends each server a ClientHello with the rule's SNI, reads the server's certificates, and closes the connection.
//! It shows no certificate of ours and sends no request. To a server that does not answer what Envoy offers, it sends more
//! of them, each with other words of `egressctl/tls-legacy`, until the server answers.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use egress_policy::{Endpoints, Note, Notes, Severity, TlsIntent, Trust, UpstreamProtocol};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::X509Certificate;

use super::inspect::{Inspection, day, name, parsed, signed};
use super::judge::{Decoded, judge};
use super::store::Store;
use egress_render::xds::SecretRequest;
use egress_rules::{ClusterDefaults, Diagnostic, Offer, Rules, TlsVersion, legacy_words};

mod hello;

use hello::{Answer, Taken, offer};

/// How long a server may take for each step.
const STEP_LIMIT: Duration = Duration::from_secs(5);

/// How many servers are asked at once.
const AT_ONCE: usize = 16;

/// One server, and what the rules want of it.
struct Target<'t> {
    /// What messages call it.
    shown: String,
    address: (String, u16),
    host: String,
    tls: &'t TlsIntent,
    rule: Option<String>,
}

/// What came of asking a server.
struct Asked {
    shown: Shown,
    /// The words that it needs and the version that it then speaks, if anything was answered.
    needs: Option<(Notes, TlsVersion)>,
}

/// What a server showed.
enum Shown {
    Chain(Vec<CertificateDer<'static>>),
    Unreachable(String),
    NoTls(String),
}

/// Connects to every server that the rules name and want TLS of, and tells whose certificates Envoy would refuse.
///
/// Hosts below a wildcard have no server to ask. A server that cannot be reached from here is a warning: Envoy may
/// run elsewhere.
pub fn connect(rules: &Rules, store: &Store, now: SystemTime) -> Vec<Diagnostic> {
    let targets = targets(rules);
    let (next, answers) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(targets.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(target) = targets.get(at) else {
                        return;
                    };
                    let answer = ask(target, &rules.mesh.clusters);
                    if let Ok(mut answers) = answers.lock() {
                        answers.insert(at, answer);
                    }
                }
            });
        }
    });
    let answers = answers.into_inner().unwrap_or_default();
    let mut inspection = Inspection::new(rules, now);
    for (target, answer) in targets.iter().zip(answers.into_values()) {
        judge_needs(&mut inspection, rules.mesh.clusters.tls13, target, &answer);
        judge_answer(&mut inspection, store, target, &answer.shown);
    }
    inspection.told()
}

fn targets(rules: &Rules) -> Vec<Target<'_>> {
    let mut found = BTreeMap::new();
    for service in rules.table.services() {
        let (Some(tls), Some(host)) = (&service.cluster.tls, service.host.exact()) else {
            continue;
        };
        // PostgreSQL's servers take no handshake without the ALPN that we do not offer here.
        let refuses = service.cluster.upstream == UpstreamProtocol::PostgreSql;
        if refuses || tls.trust == Trust::InsecureSkipVerify {
            continue;
        }
        let host = host.as_str().to_owned();
        let listed = match &service.cluster.endpoints {
            Endpoints::Listed { endpoints, .. } => endpoints.first(),
            Endpoints::OfTheRequest => None,
        };
        let (address, port) = match (service.connect_to, listed) {
            (Some((address, port)), _) => (address.to_owned(), port),
            (None, Some(endpoint)) => (endpoint.address.clone(), endpoint.port),
            (None, None) => (host.clone(), service.target),
        };
        if address.starts_with("unix://") {
            continue;
        }
        let shown = format!("{host}:{}", service.target);
        let key = (
            shown.clone(),
            address.clone(),
            service.cluster.name.as_str(),
        );
        found.entry(key).or_insert(Target {
            shown,
            address: (address, port.get()),
            host,
            tls,
            rule: service.rule.map(ToString::to_string),
        });
    }
    found.into_values().collect()
}

/// Begins handshakes, and returns what came of them.
fn ask(target: &Target<'_>, defaults: &ClusterDefaults) -> Asked {
    let (address, port) = &target.address;
    let unreachable = |error: io::Error| Asked {
        shown: Shown::Unreachable(error.to_string()),
        needs: None,
    };
    let addresses: Vec<SocketAddr> = match (address.as_str(), *port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return unreachable(error),
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses.iter().take(4) {
        let stream = match TcpStream::connect_timeout(address, STEP_LIMIT) {
            Ok(stream) => stream,
            Err(error) => {
                last = error;
                continue;
            }
        };
        let shown = handshake(stream, target);
        let shown = shown.unwrap_or_else(|error| Shown::NoTls(error.to_string()));
        let found = needs(*address, target, defaults);
        let needs = found.as_ref().map(|(words, taken)| (*words, taken.version));
        let shown = match (shown, found) {
            // Old servers show it too.
            (Shown::NoTls(_), Some((_, taken))) if !taken.chain.is_empty() => {
                Shown::Chain(taken.chain)
            }
            (shown, _) => shown,
        };
        return Asked { shown, needs };
    }
    unreachable(last)
}

/// Finds the words without which a server does not answer: the fewest, and of those the least bad. `None` if it answers
/// nothing of all that Envoy could offer. That the mesh wants TLS 1.3 is left out of account.
fn needs(
    address: SocketAddr,
    target: &Target<'_>,
    defaults: &ClusterDefaults,
) -> Option<(Notes, Taken)> {
    use Note::{Cbc, RsaKeyExchange, Sha1Signatures, Tls10, Tls11};
    let defaults = ClusterDefaults {
        tls13: false,
        ..defaults.clone()
    };
    let sni = target.tls.sni.fixed().unwrap_or(&target.host);
    let taken = |words: Notes| {
        let mut stream = TcpStream::connect_timeout(&address, STEP_LIMIT).ok()?;
        stream.set_read_timeout(Some(STEP_LIMIT)).ok()?;
        stream.set_write_timeout(Some(STEP_LIMIT)).ok()?;
        match offer(&mut stream, sni, &Offer::of(&defaults, words)) {
            Ok(Answer::Taken(taken)) => Some(taken),
            Ok(Answer::Refused) | Err(_) => None,
        }
    };
    let none = Notes::default();
    if let Some(found) = taken(none) {
        return Some((none, found));
    }
    let small = small();
    let all = Notes::from_iter([RsaKeyExchange, Cbc, Tls10, Tls11, Sha1Signatures]);
    let everything = taken(all.and(small))?;
    let size = match taken(all) {
        Some(_) => none,
        None => small,
    };
    let tries: [&[Note]; 11] = [
        &[],
        &[Cbc],
        &[Sha1Signatures],
        &[Cbc, Sha1Signatures],
        &[RsaKeyExchange],
        &[RsaKeyExchange, Cbc],
        &[Tls11, Cbc],
        &[Tls11, Cbc, RsaKeyExchange],
        &[Tls10, Cbc],
        &[Tls10, Cbc, RsaKeyExchange],
        &[Tls10, Cbc, RsaKeyExchange, Sha1Signatures],
    ];
    let tries = tries
        .iter()
        .map(|words| words.iter().copied().collect::<Notes>().and(size));
    let mut tries = tries.filter(|words| *words != none);
    let found = tries.find_map(|words| Some((words, taken(words)?)));
    Some(found.unwrap_or((all.and(size), everything)))
}

/// Tells which words a rule lacks, and which its server does not need.
fn judge_needs(
    inspection: &mut Inspection<'_>,
    mesh_wants_13: bool,
    target: &Target<'_>,
    asked: &Asked,
) {
    let Some((needed, version)) = asked.needs else {
        return;
    };
    let need = validation(target);
    let (shown, rule) = (&target.shown, target.rule.as_deref());
    let given = target.tls.legacy;
    let list = |words: Notes, between: &str| {
        let words = legacy_words(words);
        words.join(between)
    };
    // TLS 1.0 includes 1.1.
    let covered = match given.say(Note::Tls10) {
        true => given.and(Notes::from_iter([Note::Tls11])),
        false => given,
    };
    let lacking = needed.without(covered);
    let unseen = Notes::from_iter([Note::Renegotiation]);
    let needless = given.without(needed).without(unseen);
    if lacking != Notes::default() {
        let what = format!(
            "`{shown}` does not come to terms with Envoy: it needs `{}`",
            list(lacking, "`, `")
        );
        let hint = format!(
            "if the server cannot be renewed, give the DestinationRule the annotation `egressctl/tls-legacy: {}`; whether it needs `renegotiation` shows only behind a request",
            list(given.and(needed), ",")
        );
        inspection.add_of(Severity::Error, &need, rule, what, &hint);
    } else if mesh_wants_13
        && version < TlsVersion::Tls13
        && given.without(small()) == Notes::default()
    {
        let what = format!(
            "`{shown}` speaks {version}, and `tlsDefaults.minProtocolVersion` of the mesh is TLSV1_3"
        );
        let hint = "Envoy refuses it: say TLSV1_2 there";
        inspection.add_of(Severity::Error, &need, rule, what, hint);
    } else if needless != Notes::default() {
        let what = format!("`{shown}` does not need `{}`", list(needless, "`, `"));
        let hint = match list(given.without(needless), ",") {
            rest if rest.is_empty() => "remove the annotation `egressctl/tls-legacy`".to_owned(),
            rest => format!("write `egressctl/tls-legacy: {rest}`"),
        };
        inspection.add_of(Severity::Warning, &need, rule, what, &hint);
    }
}

/// The word that opens no version.
fn small() -> Notes {
    Notes::from_iter([Note::SmallHello])
}

fn validation(target: &Target<'_>) -> SecretRequest {
    SecretRequest::validation(target.tls).unwrap_or(SecretRequest::Validation {
        trust: Trust::System,
        crl: None,
    })
}

fn handshake(mut stream: TcpStream, target: &Target<'_>) -> io::Result<Shown> {
    stream.set_read_timeout(Some(STEP_LIMIT))?;
    stream.set_write_timeout(Some(STEP_LIMIT))?;
    let sni = target.tls.sni.fixed().unwrap_or(&target.host);
    let name = ServerName::try_from(sni.to_owned()).map_err(io::Error::other)?;
    let provider = Arc::new(ring::default_provider());
    let recorder = Arc::new(Recorder {
        chain: Mutex::default(),
        provider: Arc::clone(&provider),
    });
    let verifier: Arc<dyn ServerCertVerifier> = Arc::clone(&recorder) as _;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let result = connection.complete_io(&mut stream);
    connection.send_close_notify();
    // It is over either way.
    let _ = connection.write_tls(&mut stream);
    let chain = recorder
        .chain
        .lock()
        .map(|chain| chain.clone())
        .unwrap_or_default();
    match result {
        // A server that wants a certificate of us has shown its own by then.
        _ if !chain.is_empty() => Ok(Shown::Chain(chain)),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) => Err(error),
    }
}

fn judge_answer(
    inspection: &mut Inspection<'_>,
    store: &Store,
    target: &Target<'_>,
    answer: &Shown,
) {
    let need = validation(target);
    let shown = &target.shown;
    let rule = target.rule.as_deref();
    let mut tell = |severity, what: String, hint: &str| {
        inspection.add_of(severity, &need, rule, what, hint);
    };
    let chain = match answer {
        Shown::Chain(chain) => chain,
        Shown::Unreachable(error) => {
            let what = format!("`{shown}` cannot be reached from here: {error}");
            tell(
                Severity::Warning,
                what,
                "Envoy may reach it from where it runs; `--connect-to` names another address",
            );
            return;
        }
        Shown::NoTls(error) => {
            let what = format!("`{shown}` does not shake hands: {error}");
            tell(
                Severity::Error,
                what,
                "does it speak TLS on that port? see `targetPort`; a server that wants DHE, 3DES or older than TLS 1.0 needs stunnel or nginx between",
            );
            return;
        }
    };
    let ders: Vec<Vec<u8>> = chain.iter().map(|der| der.to_vec()).collect();
    let certificates = parsed(&ders);
    let (Some(leaf), Some(leaf_der)) = (certificates.first(), chain.first()) else {
        let what = format!("`{shown}` shows what is no certificate");
        tell(Severity::Error, what, "does it speak TLS on that port?");
        return;
    };
    let subject = name(leaf.subject());
    let until = leaf.validity().not_after;
    if until.timestamp() < inspection.now {
        let what = format!(
            "`{shown}` shows a certificate that expired on {}: `{subject}`",
            day(until)
        );
        let hint = "Envoy refuses it, and only the server's people can renew it";
        inspection.add_of(Severity::Error, &need, rule, what, hint);
    }
    // What is wrong with the authorities themselves is told without asking anybody.
    if let Ok(parts) = store.read(&need)
        && let Ok(Decoded::Trust { authorities, .. }) = judge(&parts)
        && !is_signed(&certificates, &parsed(&authorities))
    {
        let what = format!(
            "`{shown}` shows a certificate that none of the authorities signed: `{subject}`, signed by `{}`",
            name(leaf.issuer())
        );
        let hint = "Envoy refuses it: trust the authority that signed the server, which need not be the one that signed the client";
        inspection.add_of(Severity::Error, &need, rule, what, hint);
    }
    if !is_named(leaf_der, target) {
        let what = format!("`{shown}` shows a certificate that is for other names: `{subject}`");
        let hint = "Envoy refuses it: give the name that the certificate has in `subjectAltNames`";
        inspection.add_of(Severity::Error, &need, rule, what, hint);
    }
}

/// Whether a chain comes to an authority, or is one.
fn is_signed(chain: &[X509Certificate<'_>], authorities: &[X509Certificate<'_>]) -> bool {
    chain.iter().any(|certificate| {
        authorities.iter().any(|authority| {
            let same = authority.public_key() == certificate.public_key()
                && authority.subject() == certificate.subject();
            same || signed(authority, certificate) != Some(false)
        })
    })
}

/// Whether a certificate has the names that the rule wants; those that are no hosts are not looked at.
fn is_named(leaf: &CertificateDer<'_>, target: &Target<'_>) -> bool {
    let Ok(leaf) = ParsedCertificate::try_from(leaf) else {
        return true;
    };
    let has = |name: &str| {
        ServerName::try_from(name).is_ok_and(|name| verify_server_name(&leaf, &name).is_ok())
    };
    let names = &target.tls.names;
    let is_host = |name: &String| ServerName::try_from(name.as_str()).is_ok();
    (!names.authority || has(&target.host))
        && (names.any_of.is_empty()
            || !names.any_of.iter().all(is_host)
            || names.any_of.iter().any(|name| has(name)))
}

/// Takes any certificate and remembers it: what it is worth is judged afterwards.
#[derive(Debug)]
struct Recorder {
    chain: Mutex<Vec<CertificateDer<'static>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Ok(mut chain) = self.chain.lock() {
            *chain = std::iter::once(end_entity)
                .chain(intermediates)
                .map(|certificate| certificate.clone().into_owned())
                .collect();
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
