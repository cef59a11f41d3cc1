//! Whether Envoy would take what was read.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::pair::{self, KeyKind};
use super::part::{Missing, Part, Parts};
use super::pem::{self, Der, Flaw, PrivateKey};

/// What was read for a need, as DER, each with the text that it stood in.
pub(crate) enum Decoded {
    Pair {
        chain: Vec<Der>,
        key: PrivateKey,
    },
    Trust {
        authorities: Vec<Der>,
        revoked: Vec<Der>,
    },
}

/// Makes sure that Envoy takes what was read.
pub(crate) fn judge(parts: &Parts) -> Result<Decoded, Missing> {
    match parts {
        Parts::Pair {
            certificate,
            key: key_part,
        } => {
            let chain =
                pem::certificates(&certificate.bytes).map_err(|flaw| certificate.missing(flaw))?;
            let key = pem::private_key(&key_part.bytes).map_err(|flaw| key_part.missing(flaw))?;
            judge_pair(&chain, &key, certificate, key_part)?;
            Ok(Decoded::Pair { chain, key })
        }
        Parts::Trust { ca, crl } => {
            let authorities = pem::certificates(&ca.bytes).map_err(|flaw| ca.missing(flaw))?;
            // Envoy goes by the lists that stand among the authorities, too.
            let mut revoked = pem::revocation_lists(&ca.bytes).map_err(|flaw| ca.missing(flaw))?;
            if let Some(crl) = crl {
                let own = pem::revocation_lists(&crl.bytes).map_err(|flaw| crl.missing(flaw))?;
                if own.is_empty() {
                    return Err(crl.missing(
                        Flaw::new("holds no revocation list")
                            .hint("it must have a section `-----BEGIN X509 CRL-----`"),
                    ));
                }
                revoked.extend(own);
            }
            Ok(Decoded::Trust {
                authorities,
                revoked,
            })
        }
    }
}

fn judge_pair(
    chain: &[Der],
    key: &PrivateKey,
    certificate: &Part,
    key_part: &Part,
) -> Result<(), Missing> {
    let parsed: Vec<X509Certificate<'_>> = chain
        .iter()
        .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1))
        .collect();
    let Some(leaf) = parsed.first() else {
        return Err(certificate.missing(Flaw::new("holds no certificate")));
    };
    match pair::kind(leaf) {
        KeyKind::Rsa(bits) if bits < 2048 => {
            return Err(certificate.missing(
                Flaw::new(format!(
                    "has an RSA key of {bits} bits, and Envoy takes 2048 or more"
                ))
                .hint("make a new key and certificate, for example with P-256"),
            ));
        }
        KeyKind::Other => {
            return Err(certificate.missing(
                Flaw::new("has a key of a kind that Envoy does not take")
                    .hint("use RSA of 2048 bits or more, P-256, P-384 or P-521"),
            ));
        }
        _ => {}
    }
    let belongs = |to: &X509Certificate<'_>| pair::belongs(key, to);
    match belongs(leaf) {
        Some(true) => Ok(()),
        Some(false) => {
            let place = parsed.iter().position(|other| belongs(other) == Some(true));
            Err(match place {
                Some(place) => certificate.missing(
                    Flaw::new(format!(
                        "is in the wrong order: certificate number {} is the key's",
                        place + 1
                    ))
                    .hint("it must stand first, then the one that signed it, and so on"),
                ),
                None => key_part.missing(
                    Flaw::new(format!("is not the key of {}", certificate.name))
                        .hint("were both replaced, and are the two files the right way round?"),
                ),
            })
        }
        None => Err(key_part.missing(
            Flaw::new("holds a key that cannot be read, or of a kind that Envoy does not take")
                .hint("use RSA of 2048 bits or more, P-256, P-384 or P-521"),
        )),
    }
}
