//! Does a key belong to a certificate?
//!
//! If the key holds its public part (RSA, and P-521, which `ring` lacks), that part is compared. Otherwise it is
//! computed anew, so that a key whose own parts disagree is noticed too.

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair,
};
use rustls_pki_types::pem::SectionKind;
use x509_parser::asn1_rs::{Any, FromDer as _, Oid, Tag, oid};
use x509_parser::prelude::X509Certificate;
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

use super::pem::PrivateKey;

const RSA: Oid<'static> = oid!(1.2.840.113549.1.1.1);
const ELLIPTIC: Oid<'static> = oid!(1.2.840.10045.2.1);
const ED25519: Oid<'static> = oid!(1.3.101.112);
const P256: Oid<'static> = oid!(1.2.840.10045.3.1.7);
const P384: Oid<'static> = oid!(1.3.132.0.34);
const P521: Oid<'static> = oid!(1.3.132.0.35);

/// What kind of key a certificate has, as far as Envoy cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// With the bits of its modulus.
    Rsa(usize),
    P256,
    P384,
    P521,
    Ed25519,
    Other,
}

/// Returns the kind of a certificate's key.
pub(crate) fn kind(certificate: &X509Certificate<'_>) -> KeyKind {
    let info = certificate.public_key();
    let algorithm = &info.algorithm;
    if algorithm.algorithm == RSA {
        return match info.parsed() {
            Ok(PublicKey::RSA(key)) => KeyKind::Rsa(bits(key.modulus)),
            _ => KeyKind::Other,
        };
    }
    if algorithm.algorithm == ED25519 {
        return KeyKind::Ed25519;
    }
    let curve = algorithm
        .parameters
        .as_ref()
        .and_then(|any| any.as_oid().ok());
    match curve {
        Some(curve) if algorithm.algorithm == ELLIPTIC && curve == P256 => KeyKind::P256,
        Some(curve) if algorithm.algorithm == ELLIPTIC && curve == P384 => KeyKind::P384,
        Some(curve) if algorithm.algorithm == ELLIPTIC && curve == P521 => KeyKind::P521,
        _ => KeyKind::Other,
    }
}

fn bits(number: &[u8]) -> usize {
    let number = trimmed(number);
    let first = number
        .first()
        .map_or(8, |byte| byte.leading_zeros() as usize);
    (number.len() * 8).saturating_sub(first)
}

/// Returns the bytes of a number without zeros before it.
fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// Whether a key is the certificate's; `None` when the key cannot be read.
pub(crate) fn belongs(key: &PrivateKey, certificate: &X509Certificate<'_>) -> Option<bool> {
    let public = certificate.public_key();
    let public_bits: &[u8] = &public.subject_public_key.data;
    Some(match taken_apart(key)? {
        Parts::Rsa { modulus, exponent } => match public.parsed() {
            Ok(PublicKey::RSA(of)) => {
                trimmed(of.modulus) == trimmed(modulus) && trimmed(of.exponent) == trimmed(exponent)
            }
            _ => false,
        },
        Parts::Elliptic {
            curve,
            secret,
            public: own,
        } => {
            let (expected, algorithm, bytes): (_, Option<&'static EcdsaSigningAlgorithm>, _) =
                match kind(certificate) {
                    KeyKind::P256 => (P256, Some(&ECDSA_P256_SHA256_ASN1_SIGNING), 32),
                    KeyKind::P384 => (P384, Some(&ECDSA_P384_SHA384_ASN1_SIGNING), 48),
                    KeyKind::P521 => (P521, None, 66),
                    _ => return Some(false),
                };
            if curve.is_some_and(|curve| curve != expected) {
                return Some(false);
            }
            match algorithm {
                Some(algorithm) => {
                    let secret = widened(secret, bytes)?;
                    let random = SystemRandom::new();
                    EcdsaKeyPair::from_private_key_and_public_key(
                        algorithm,
                        &secret,
                        public_bits,
                        &random,
                    )
                    .is_ok()
                }
                // Every tool writes the public part into the key; Envoy checks those that have none.
                None => own.is_none_or(|own| own == public_bits),
            }
        }
        Parts::Ed25519 { seed } => {
            kind(certificate) == KeyKind::Ed25519
                && Ed25519KeyPair::from_seed_and_public_key(seed, public_bits).is_ok()
        }
        Parts::Other => return None,
    })
}

/// Writes a key in the form that Envoy reads. Of Ed25519 keys that is the first version of PKCS#8: a key that
/// names its public part beside the secret one, as some tools write it, is taken for a broken one.
///
/// Source: RFC 8410 section 7; BoringSSL `crypto/evp/evp_asn1.cc`, `EVP_parse_private_key`.
pub(crate) fn for_envoy(key: &PrivateKey) -> Zeroizing<Vec<u8>> {
    const HEAD: [u8; 16] = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    match taken_apart(key) {
        Some(Parts::Ed25519 { seed }) if seed.len() == 32 => {
            Zeroizing::new([&HEAD[..], seed].concat())
        }
        _ => Zeroizing::new(key.der.to_vec()),
    }
}

/// Fills a number up with zeros in front, to the length of its curve.
fn widened(number: &[u8], bytes: usize) -> Option<Zeroizing<Vec<u8>>> {
    let number = trimmed(number);
    let missing = bytes.checked_sub(number.len())?;
    let mut wide = Zeroizing::new(vec![0; missing]);
    wide.extend_from_slice(number);
    Some(wide)
}

/// A key taken apart as far as it takes to compare it.
enum Parts<'k> {
    Rsa {
        modulus: &'k [u8],
        exponent: &'k [u8],
    },
    Elliptic {
        curve: Option<Oid<'k>>,
        secret: &'k [u8],
        public: Option<&'k [u8]>,
    },
    Ed25519 {
        seed: &'k [u8],
    },
    Other,
}

fn taken_apart(key: &PrivateKey) -> Option<Parts<'_>> {
    match key.kind {
        SectionKind::RsaPrivateKey => rsa(&key.der),
        SectionKind::EcPrivateKey => elliptic(&key.der, None),
        _ => pkcs8(&key.der),
    }
}

/// Source: RFC 5958 section 2, `OneAsymmetricKey`.
fn pkcs8(der: &[u8]) -> Option<Parts<'_>> {
    let mut fields = fields(der)?.into_iter();
    let (_version, algorithm, inner) = (fields.next()?, fields.next()?, fields.next()?);
    let mut algorithm = items(algorithm.data)?.into_iter();
    let name = algorithm.next()?.oid().ok()?;
    if name == RSA {
        rsa(inner.data)
    } else if name == ELLIPTIC {
        elliptic(
            inner.data,
            algorithm.next().and_then(|curve| curve.oid().ok()),
        )
    } else if name == ED25519 {
        let (_, seed) = Any::from_der(inner.data).ok()?;
        Some(Parts::Ed25519 { seed: seed.data })
    } else {
        Some(Parts::Other)
    }
}

/// Source: RFC 8017 appendix A.1.2, `RSAPrivateKey`.
fn rsa(der: &[u8]) -> Option<Parts<'_>> {
    let fields = fields(der)?;
    let [_version, modulus, exponent, _, _, _, _, _, _, ..] = &fields[..] else {
        return None;
    };
    Some(Parts::Rsa {
        modulus: modulus.data,
        exponent: exponent.data,
    })
}

/// Source: RFC 5915 section 3, `ECPrivateKey`.
fn elliptic<'k>(der: &'k [u8], curve: Option<Oid<'k>>) -> Option<Parts<'k>> {
    let mut fields = fields(der)?.into_iter();
    let (_version, secret) = (fields.next()?, fields.next()?);
    let (mut named, mut public) = (None, None);
    for field in fields {
        let (_, inner) = Any::from_der(field.data).ok()?;
        match field.tag().0 {
            // Where the curve is spelt out in numbers instead, it is taken to be the certificate's.
            0 if inner.tag() == Tag::Oid => named = inner.oid().ok(),
            // The first byte of a bit string counts the bits that are not used.
            1 => public = inner.data.get(1..),
            _ => {}
        }
    }
    Some(Parts::Elliptic {
        curve: named.or(curve),
        secret: secret.data,
        public,
    })
}

/// Returns the fields of a SEQUENCE.
fn fields(der: &[u8]) -> Option<Vec<Any<'_>>> {
    let (rest, sequence) = Any::from_der(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    items(sequence.data)
}

fn items(mut der: &[u8]) -> Option<Vec<Any<'_>>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, item) = Any::from_der(der).ok()?;
        found.push(item);
        der = rest;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, Issuer, KeyPair, PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm,
    };
    use x509_parser::prelude::FromDer as _;

    use super::*;

    /// An RSA key that nobody could sign with: only its public numbers matter here, and `ring` makes none.
    struct Rsa(Vec<u8>);

    impl PublicKeyData for Rsa {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }

        fn algorithm(&self) -> &'static SignatureAlgorithm {
            &PKCS_RSA_SHA256
        }
    }

    fn tagged(tag: u8, data: &[u8]) -> Vec<u8> {
        let mut out = vec![tag, 0x82];
        out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        out.extend(data);
        out
    }

    /// Returns a certificate for an RSA key of so many bits, and the key in each of its two forms.
    fn rsa_of(bits: usize, last: u8) -> (Vec<u8>, [PrivateKey; 2]) {
        let mut modulus = vec![0x5a; bits.div_ceil(8)];
        let spare = modulus.len() * 8 - bits;
        modulus[0] = 0xff >> spare;
        *modulus.last_mut().unwrap() = last;
        if spare == 0 {
            modulus.insert(0, 0);
        }
        let numbers = [tagged(2, &modulus), tagged(2, &[1, 0, 1])].concat();
        let inner = tagged(
            0x30,
            &[&[2, 1, 0], &numbers[..], &[2, 1, 7].repeat(6)].concat(),
        );
        // The algorithm is rsaEncryption, without parameters worth the name.
        let name = [0x30, 13, 6, 9, 42, 134, 72, 134, 247, 13, 1, 1, 1, 5, 0];
        let outer = tagged(0x30, &[&[2, 1, 0], &name[..], &tagged(4, &inner)].concat());
        let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
        let certificate = CertificateParams::default()
            .signed_by(&Rsa(tagged(0x30, &numbers)), &issuer)
            .unwrap();
        let key = |kind, der| PrivateKey {
            kind,
            der: Zeroizing::new(der),
        };
        let keys = [
            key(SectionKind::RsaPrivateKey, inner),
            key(SectionKind::PrivateKey, outer),
        ];
        (certificate.der().to_vec(), keys)
    }

    #[test]
    fn rsa_keys_are_told_apart_by_their_numbers() {
        for bits in [1024, 2047, 2048, 3072, 4096, 8192] {
            let ((one, own), (_, other)) = (rsa_of(bits, 1), rsa_of(bits, 3));
            let (_, certificate) = X509Certificate::from_der(&one).unwrap();
            assert_eq!(kind(&certificate), KeyKind::Rsa(bits));
            for (own, other) in own.iter().zip(&other) {
                assert_eq!(belongs(own, &certificate), Some(true), "{bits}");
                assert_eq!(belongs(other, &certificate), Some(false), "{bits}");
            }
        }
    }

    #[test]
    fn a_broken_key_is_no_key() {
        let (certificate, [key, _]) = rsa_of(2048, 1);
        let (_, certificate) = X509Certificate::from_der(&certificate).unwrap();
        for kind in [
            SectionKind::RsaPrivateKey,
            SectionKind::EcPrivateKey,
            SectionKind::PrivateKey,
        ] {
            for length in [0, 1, 4, 20, key.der.len() - 1] {
                let der = Zeroizing::new(key.der[..length].to_vec());
                assert_ne!(belongs(&PrivateKey { kind, der }, &certificate), Some(true));
            }
        }
    }
}
