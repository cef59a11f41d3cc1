//! A first message of TLS as Envoy sends it, and what a server answers to it.
//!
//! `rustls` speaks none of what old servers need, and no handshake has to be finished here: before TLS 1.3 the server's
//! certificate comes unencrypted. Nothing of it is trusted by this file. It reads four messages, by their lengths alone; the
//! crates that read all of TLS bring twenty others.

use std::io::{self, Read, Write};
use std::net::IpAddr;

use egress_rules::{Offer, TlsVersion};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::CertificateDer;

/// How long a first message is that has a post-quantum share.
const WITH_SHARE: usize = 1500;

/// The most that is read of an answer.
const LONGEST_ANSWER: usize = 256 * 1024;

/// What a server answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// It took the offer.
    Taken(Taken),
    /// It did not, or chose what was not offered.
    Refused,
}

/// What a server took of an offer.
#[derive(Debug)]
pub(super) struct Taken {
    /// The certificates that it showed; none in TLS 1.3, where they are encrypted.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The version that it chose.
    pub(super) version: TlsVersion,
}

/// The suites of TLS 1.2 and before, by Envoy's names.
const SUITES: [(&str, u16); 18] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", 0xc02b),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", 0xcca9),
    ("ECDHE-RSA-AES128-GCM-SHA256", 0xc02f),
    ("ECDHE-RSA-CHACHA20-POLY1305", 0xcca8),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", 0xc02c),
    ("ECDHE-RSA-AES256-GCM-SHA384", 0xc030),
    ("ECDHE-ECDSA-AES128-SHA256", 0xc023),
    ("ECDHE-RSA-AES128-SHA256", 0xc027),
    ("ECDHE-ECDSA-AES128-SHA", 0xc009),
    ("ECDHE-RSA-AES128-SHA", 0xc013),
    ("ECDHE-ECDSA-AES256-SHA", 0xc00a),
    ("ECDHE-RSA-AES256-SHA", 0xc014),
    ("AES128-GCM-SHA256", 0x009c),
    ("AES256-GCM-SHA384", 0x009d),
    ("AES128-SHA", 0x002f),
    ("AES256-SHA", 0x0035),
    ("DES-CBC3-SHA", 0x000a),
    // Not Envoy's: the one that says that renegotiation would be secure, in place of an extension.
    ("TLS_EMPTY_RENEGOTIATION_INFO_SCSV", 0x00ff),
];

/// The extension that names versions.
const SUPPORTED_VERSIONS: u16 = 43;

/// The suites of TLS 1.3.
const SUITES_13: [u16; 3] = [0x1301, 0x1302, 0x1303];

/// The groups, by Envoy's names.
const GROUPS: [(&str, u16); 5] = [
    ("X25519MLKEM768", 0x11ec),
    ("X25519", 0x001d),
    ("P-256", 0x0017),
    ("P-384", 0x0018),
    ("P-521", 0x0019),
];

/// The signatures, by Envoy's names.
const SIGNATURES: [(&str, u16); 10] = [
    ("ecdsa_secp256r1_sha256", 0x0403),
    ("rsa_pss_rsae_sha256", 0x0804),
    ("rsa_pkcs1_sha256", 0x0401),
    ("ecdsa_secp384r1_sha384", 0x0503),
    ("rsa_pss_rsae_sha384", 0x0805),
    ("rsa_pkcs1_sha384", 0x0501),
    ("rsa_pss_rsae_sha512", 0x0806),
    ("rsa_pkcs1_sha512", 0x0601),
    ("rsa_pkcs1_sha1", 0x0201),
    ("ecdsa_sha1", 0x0203),
];

fn codes<'n>(names: impl IntoIterator<Item = &'n str>, known: &[(&str, u16)]) -> Vec<u16> {
    let code = |name: &str| known.iter().find(|(other, _)| *other == name);
    let found = names.into_iter().filter_map(code);
    found.map(|(_, code)| *code).collect()
}

/// Returns the suites of an offer. Groups of equal ones are written in brackets.
fn suites(offer: &Offer) -> Vec<u16> {
    let written = offer.all_suites();
    let names = written.iter().flat_map(|text| text.split(['[', '|', ']']));
    codes(names, &SUITES)
}

/// Offers TLS on a stream, and reads the answer as far as it can be read.
///
/// # Errors
/// When the connection fails, or the answer is no TLS.
pub(super) fn offer(
    stream: &mut (impl Read + Write),
    sni: &str,
    offer: &Offer,
) -> io::Result<Answer> {
    stream.write_all(&record(&client_hello(sni, offer)?))?;
    let mut read = Vec::new();
    let mut room = [0; 4096];
    loop {
        if let Some(answer) = answer(&read, offer)? {
            return Ok(answer);
        }
        let count = match stream.read(&mut room) {
            Ok(0) => return Ok(Answer::Refused),
            Ok(count) => count,
            Err(error) => return Err(error),
        };
        read.extend_from_slice(room.get(..count).unwrap_or_default());
        if read.len() > LONGEST_ANSWER {
            return Err(io::Error::other("the answer is too long"));
        }
    }
}

/// Writes a list with its length before it, in so many bytes.
fn within(bytes: usize, inner: &[u8]) -> Vec<u8> {
    let length = inner.len().to_be_bytes();
    let mut whole = length
        .get(length.len() - bytes..)
        .unwrap_or_default()
        .to_vec();
    whole.extend_from_slice(inner);
    whole
}

fn numbers(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|it| it.to_be_bytes()).collect()
}

fn extension(kind: u16, inner: &[u8]) -> Vec<u8> {
    let mut whole = kind.to_be_bytes().to_vec();
    whole.extend(within(2, inner));
    whole
}

/// Source: RFC 8446, 4.1.2, and what Envoy 1.40 was seen to send.
fn client_hello(sni: &str, offer: &Offer) -> io::Result<Vec<u8>> {
    let mut random = [0; 96];
    let filled = SystemRandom::new().fill(&mut random);
    filled.map_err(|_| io::Error::other("no random numbers"))?;
    let (random, share) = random.split_at(64);
    let (random, session) = random.split_at(32);
    let mut all = suites(offer);
    if offer.lowest == TlsVersion::Tls13 {
        all.clear();
    }
    all.splice(0..0, SUITES_13);
    let mut body = vec![3, 3];
    body.extend_from_slice(random);
    body.extend(within(1, session));
    body.extend(within(2, &numbers(&all)));
    body.extend(within(1, &[0]));
    let groups = codes(offer.groups.iter().map(String::as_str), &GROUPS);
    let signatures = codes(offer.all_signatures(), &SIGNATURES);
    let versions = [
        (TlsVersion::Tls13, 0x0304),
        (TlsVersion::Tls12, 0x0303),
        (TlsVersion::Tls11, 0x0302),
        (TlsVersion::Tls10, 0x0301),
    ];
    let versions = versions
        .iter()
        .filter(|(version, _)| *version >= offer.lowest);
    let versions: Vec<u16> = versions.map(|(_, code)| *code).collect();
    let mut extensions = Vec::new();
    if sni.parse::<IpAddr>().is_err() {
        let mut name = vec![0];
        name.extend(within(2, sni.as_bytes()));
        extensions.extend(extension(0, &within(2, &name)));
    }
    extensions.extend(extension(23, &[])); // extended_master_secret
    extensions.extend(extension(65281, &[0])); // renegotiation_info
    extensions.extend(extension(10, &within(2, &numbers(&groups))));
    extensions.extend(extension(11, &within(1, &[0]))); // ec_point_formats
    extensions.extend(extension(35, &[])); // session_ticket
    extensions.extend(extension(13, &within(2, &numbers(&signatures))));
    extensions.extend(extension(51, &within(2, &key_share(offer, share))));
    extensions.extend(extension(45, &within(1, &[1]))); // psk_key_exchange_modes
    extensions.extend(extension(
        SUPPORTED_VERSIONS,
        &within(1, &numbers(&versions)),
    ));
    // No share of ours would be a real one, and what matters is how long the message is.
    let short = WITH_SHARE.checked_sub(body.len() + extensions.len() + 4);
    if let Some(short) = short.filter(|_| offer.has_post_quantum()) {
        extensions.extend(extension(21, &vec![0; short]));
    }
    body.extend(within(2, &extensions));
    let mut message = vec![1];
    message.extend(within(3, &body));
    Ok(message)
}

/// Any 32 bytes are a share of X25519. Where that is not offered, there is no share, and the server asks for one.
fn key_share(offer: &Offer, share: &[u8]) -> Vec<u8> {
    let offered = offer.groups.iter().any(|group| group == "X25519");
    let mut entry = Vec::new();
    if offered {
        entry.extend(numbers(&[0x001d]));
        entry.extend(within(2, share));
    }
    entry
}

fn record(message: &[u8]) -> Vec<u8> {
    let mut record = vec![22, 3, 1];
    record.extend(within(2, message));
    record
}

/// Reads an answer; `None` while more of it must come.
fn answer(read: &[u8], offer: &Offer) -> io::Result<Option<Answer>> {
    const ALERT: usize = 21;
    const HANDSHAKE: usize = 22;
    let no_tls = || io::Error::other("the answer is not TLS");
    let mut rest = Bytes(read);
    let mut messages = Vec::new();
    while let Some(kind) = rest.number(1) {
        let Some(version) = rest.number(2) else { break };
        if version >> 8 != 3 {
            return Err(no_tls());
        }
        let Some(data) = rest.within(2) else { break };
        match kind {
            HANDSHAKE => messages.extend_from_slice(data.0),
            // A warning, such as one about the name, comes before an answer and is none.
            ALERT if data.0.first() == Some(&1) => {}
            ALERT => return Ok(Some(Answer::Refused)),
            _ if messages.is_empty() => return Err(no_tls()),
            _ => break,
        }
    }
    let mut handshake = Handshake::default();
    let mut messages = Bytes(&messages);
    while let Some(kind) = messages.number(1) {
        let Some(message) = messages.within(3) else {
            break;
        };
        let read = handshake.read(kind, message, offer);
        match read.ok_or_else(no_tls)? {
            Some(answer) => return Ok(Some(answer)),
            None => continue,
        }
    }
    Ok(None)
}

/// What a server has said so far.
#[derive(Default)]
struct Handshake {
    version: Option<TlsVersion>,
    chain: Vec<CertificateDer<'static>>,
}

impl Handshake {
    /// Reads a message: `None` if it is not what it says, and nothing within while the answer is still open.
    ///
    /// Source: RFC 5246, 7.4, and RFC 8446, 4.1.3.
    fn read(
        &mut self,
        kind: usize,
        mut message: Bytes<'_>,
        offer: &Offer,
    ) -> Option<Option<Answer>> {
        const SERVER_HELLO: usize = 2;
        const CERTIFICATE: usize = 11;
        const SERVER_KEY_EXCHANGE: usize = 12;
        const SERVER_HELLO_DONE: usize = 14;
        match kind {
            SERVER_HELLO => {
                let mut version = message.number(2)?;
                message.take(32)?;
                message.within(1)?;
                let suite = u16::try_from(message.number(2)?).ok()?;
                message.take(1)?;
                // Without a byte more there are no extensions.
                let mut extensions = message.within(2).unwrap_or_default();
                while let Some(kind) = extensions.number(2) {
                    let mut inner = extensions.within(2)?;
                    if kind == usize::from(SUPPORTED_VERSIONS) {
                        version = inner.number(2)?;
                    }
                }
                let version = match version {
                    0x0304 => TlsVersion::Tls13,
                    0x0303 => TlsVersion::Tls12,
                    0x0302 => TlsVersion::Tls11,
                    0x0301 => TlsVersion::Tls10,
                    _ => return Some(Some(Answer::Refused)),
                };
                let known = match version {
                    TlsVersion::Tls13 => SUITES_13.contains(&suite),
                    _ => suites(offer).contains(&suite),
                };
                if version < offer.lowest || !known {
                    return Some(Some(Answer::Refused));
                }
                self.version = Some(version);
                Some(
                    (version == TlsVersion::Tls13)
                        .then(|| self.taken())
                        .flatten(),
                )
            }
            CERTIFICATE => {
                let mut shown = message.within(3)?;
                while !shown.0.is_empty() {
                    let certificate = shown.within(3)?.0.to_vec();
                    self.chain.push(CertificateDer::from(certificate));
                }
                Some(None)
            }
            SERVER_KEY_EXCHANGE if self.version == Some(TlsVersion::Tls12) => {
                let signed = signature(message);
                let offered = codes(offer.all_signatures(), &SIGNATURES);
                let known = signed.is_none_or(|signed| offered.contains(&signed));
                Some((!known).then_some(Answer::Refused))
            }
            SERVER_HELLO_DONE => Some(self.taken()),
            _ => Some(None),
        }
    }

    fn taken(&mut self) -> Option<Answer> {
        let chain = std::mem::take(&mut self.chain);
        let version = self.version?;
        Some(Answer::Taken(Taken { chain, version }))
    }
}

/// Returns how a key exchange of TLS 1.2 over a named curve is signed.
///
/// Source: RFC 8422, 5.4.
fn signature(mut exchange: Bytes<'_>) -> Option<u16> {
    const NAMED_CURVE: usize = 3;
    if exchange.number(1)? != NAMED_CURVE {
        return None;
    }
    exchange.take(2)?;
    exchange.within(1)?;
    u16::try_from(exchange.number(2)?).ok()
}

/// Bytes that are still to be read.
#[derive(Clone, Copy, Default)]
struct Bytes<'b>(&'b [u8]);

impl<'b> Bytes<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Reads a number of so many bytes.
    fn number(&mut self, bytes: usize) -> Option<usize> {
        let taken = self.take(bytes)?.iter();
        Some(taken.fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// Reads what has its length before it, in so many bytes.
    fn within(&mut self, bytes: usize) -> Option<Bytes<'b>> {
        let length = self.number(bytes)?;
        self.take(length).map(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use egress_rules::ClusterDefaults;

    use super::*;

    fn modern() -> Offer {
        Offer::of(&ClusterDefaults::default(), egress_policy::Notes::default())
    }

    #[test]
    fn every_name_has_a_code() {
        use egress_policy::Note::{Cbc, RsaKeyExchange, Sha1Signatures, Tls10};
        let all = [Cbc, RsaKeyExchange, Sha1Signatures, Tls10]
            .into_iter()
            .collect();
        let offer = Offer::of(&ClusterDefaults::default(), all);
        assert_eq!(suites(&offer).len(), 16);
        assert_eq!(codes(offer.all_signatures(), &SIGNATURES).len(), 10);
        let groups = offer.groups.iter().map(String::as_str);
        assert_eq!(codes(groups, &GROUPS).len(), offer.groups.len());
    }

    #[test]
    fn the_first_message_is_as_long_as_envoys() {
        let hello = client_hello("api.example.com", &modern()).unwrap();
        assert_eq!(hello.len(), WITH_SHARE + 6);
        let small = [egress_policy::Note::SmallHello].into_iter().collect();
        let offer = Offer::of(&ClusterDefaults::default(), small);
        assert!(client_hello("api.example.com", &offer).unwrap().len() < 300);
    }

    #[test]
    fn whatever_a_server_sends_is_read_without_a_panic() {
        let offer = modern();
        // A ServerHello of TLS 1.2, cut and bent everywhere.
        let mut hello = vec![22, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3];
        hello.extend([7; 32]);
        hello.extend([0, 0xc0, 0x2f, 0]);
        for end in 0..hello.len() {
            assert!(matches!(answer(&hello[..end], &offer), Ok(None)));
            for bit in 0..8 {
                let mut bent = hello.clone();
                bent[end] ^= 1 << bit;
                let _any = answer(&bent, &offer);
            }
        }
        assert!(matches!(answer(&hello, &offer), Ok(None)));
        hello[45] = 0x13;
        // A suite that was not offered, and the alert `handshake_failure`.
        for refused in [&hello[..], &[21, 3, 3, 0, 2, 2, 40]] {
            assert!(matches!(answer(refused, &offer), Ok(Some(Answer::Refused))));
        }
        assert!(answer(b"HTTP/1.1 400 Bad Request\r\n", &offer).is_err());
    }
}
