//! What a server is offered in the first message of TLS: versions, suites, groups and signatures.
//!
//! Without any setting it is what Envoy offers by itself, so nothing of that is written down but the limits of the
//! versions. A word of `egressctl/tls-legacy` adds to Envoy's own list, at its end: a modern server still chooses modern TLS.
//!
//! Source: envoyproxy/envoy `source/common/tls/context_config_impl.cc`, `DEFAULT_CIPHER_SUITES`, and BoringSSL
//! `ssl/extensions.cc`, `kVerifySignatureAlgorithms`.

use std::fmt;

use egress_policy::{Note, Notes};

use crate::mesh::ClusterDefaults;
use crate::tls_names::{CBC_SUITES, GROUPS, MODERN_SUITES, POST_QUANTUM, RSA_SUITES, SIGNATURES};

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.0.
    Tls10,
    /// TLS 1.1.
    Tls11,
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl TlsVersion {
    /// Returns the word for it in Envoy's configuration.
    pub fn as_envoy(self) -> &'static str {
        match self {
            TlsVersion::Tls10 => "TLSv1_0",
            TlsVersion::Tls11 => "TLSv1_1",
            TlsVersion::Tls12 => "TLSv1_2",
            TlsVersion::Tls13 => "TLSv1_3",
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TlsVersion::Tls10 => "TLSv1.0",
            TlsVersion::Tls11 => "TLSv1.1",
            TlsVersion::Tls12 => "TLSv1.2",
            TlsVersion::Tls13 => "TLSv1.3",
        })
    }
}

/// What a server is offered; an empty list leaves it to Envoy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The lowest version. The highest is always TLS 1.3.
    pub lowest: TlsVersion,
    /// The suites of TLS 1.2 and before.
    pub suites: Vec<String>,
    /// The groups, as Envoy calls them, the preferred one first. Never empty.
    pub groups: Vec<String>,
    /// A rule or the mesh says so of the groups: otherwise they are those of today, whichever Envoy offers them.
    pub groups_said: bool,
    /// The signatures.
    pub signatures: Vec<String>,
}

impl Offer {
    /// Returns the suites of TLS 1.2 and before, also where they are left to Envoy. Equal ones stand in brackets.
    pub fn all_suites(&self) -> Vec<&str> {
        match &self.suites[..] {
            [] => MODERN_SUITES.to_vec(),
            suites => suites.iter().map(String::as_str).collect(),
        }
    }

    /// Returns the signatures, also where they are left to Envoy.
    pub fn all_signatures(&self) -> Vec<&str> {
        match &self.signatures[..] {
            [] => SIGNATURES.to_vec(),
            signatures => signatures.iter().map(String::as_str).collect(),
        }
    }

    /// Whether the first message has a share of more than a kilobyte.
    pub fn has_post_quantum(&self) -> bool {
        self.groups.iter().any(|group| group == POST_QUANTUM)
    }

    /// Settles what a server is offered by the mesh's `tlsDefaults` and what it needs besides.
    ///
    /// What belongs to TLS 1.2 or before opens TLS 1.2 where the mesh's lowest version is 1.3: the rule is for the one
    /// host that needs it.
    pub fn of(defaults: &ClusterDefaults, legacy: Notes) -> Self {
        let before_13 = [
            Note::RsaKeyExchange,
            Note::Cbc,
            Note::Sha1Signatures,
            Note::Renegotiation,
        ];
        let lowest = if legacy.say(Note::Tls10) {
            TlsVersion::Tls10
        } else if legacy.say(Note::Tls11) {
            TlsVersion::Tls11
        } else if defaults.tls13 && !before_13.iter().any(|class| legacy.say(*class)) {
            TlsVersion::Tls13
        } else {
            TlsVersion::Tls12
        };
        let mut added: Vec<&str> = Vec::new();
        if legacy.say(Note::Cbc) {
            added.extend(CBC_SUITES);
        }
        if legacy.say(Note::RsaKeyExchange) {
            added.extend(RSA_SUITES);
        }
        let mut suites = defaults.ciphers.clone();
        if !added.is_empty() && suites.is_empty() {
            suites.extend(MODERN_SUITES.map(str::to_owned));
        }
        for suite in added {
            if !suites.iter().any(|known| known == suite) {
                suites.push(suite.to_owned());
            }
        }
        let small = legacy.say(Note::SmallHello);
        let wanted = |group: &String| !(small && group.as_str() == POST_QUANTUM);
        let mut groups: Vec<String> = defaults
            .curves
            .iter()
            .filter(|it| wanted(it))
            .cloned()
            .collect();
        if groups.is_empty() {
            groups.extend(GROUPS.map(str::to_owned).into_iter().filter(wanted));
        }
        let mut signatures = Vec::new();
        if legacy.say(Note::Sha1Signatures) {
            signatures.extend(SIGNATURES.map(str::to_owned));
            signatures.push("ecdsa_sha1".to_owned());
        }
        Offer {
            lowest,
            suites,
            groups,
            groups_said: small || !defaults.curves.is_empty(),
            signatures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legacy(classes: &[Note]) -> Notes {
        classes.iter().copied().collect()
    }

    #[test]
    fn without_a_word_everything_but_the_version_is_envoys() {
        let offer = Offer::of(&ClusterDefaults::default(), Notes::default());
        assert_eq!(offer.lowest, TlsVersion::Tls12);
        assert!(offer.suites.is_empty() && offer.signatures.is_empty() && !offer.groups_said);
        assert_eq!(offer.groups, GROUPS);
    }

    #[test]
    fn words_add_to_the_end_of_the_list() {
        use Note::{Cbc, RsaKeyExchange, Sha1Signatures};
        let mut mesh = ClusterDefaults::default();
        let offer = Offer::of(&mesh, legacy(&[Cbc, RsaKeyExchange]));
        let expected: Vec<&str> = [&MODERN_SUITES[..], &CBC_SUITES, &RSA_SUITES].concat();
        assert_eq!(offer.suites, expected);
        mesh.ciphers = vec!["AES128-SHA".to_owned(), MODERN_SUITES[3].to_owned()];
        let offer = Offer::of(&mesh, legacy(&[RsaKeyExchange]));
        let expected = [
            "AES128-SHA",
            MODERN_SUITES[3],
            "AES128-GCM-SHA256",
            "AES256-GCM-SHA384",
            "AES256-SHA",
        ];
        assert_eq!(offer.suites, expected);
        let offer = Offer::of(&mesh, legacy(&[Sha1Signatures]));
        assert_eq!(
            offer.signatures.first().map(String::as_str),
            Some(SIGNATURES[0])
        );
        assert_eq!(
            offer.signatures.last().map(String::as_str),
            Some("ecdsa_sha1")
        );
        assert_eq!(offer.suites, mesh.ciphers);
    }

    #[test]
    fn versions_below_1_2_need_their_own_word() {
        use Note::{Cbc, Renegotiation, RsaKeyExchange, Sha1Signatures, SmallHello, Tls10, Tls11};
        for tls13 in [false, true] {
            let mesh = ClusterDefaults {
                tls13,
                ..ClusterDefaults::default()
            };
            let lowest = |classes: &[Note]| Offer::of(&mesh, legacy(classes)).lowest;
            let modern = [TlsVersion::Tls12, TlsVersion::Tls13][usize::from(tls13)];
            assert_eq!(lowest(&[SmallHello]), modern);
            let all = [
                Cbc,
                RsaKeyExchange,
                Renegotiation,
                Sha1Signatures,
                SmallHello,
            ];
            assert_eq!(lowest(&all), TlsVersion::Tls12);
            for class in &all[..4] {
                assert_eq!(lowest(&[*class]), TlsVersion::Tls12);
            }
            assert_eq!(lowest(&[Cbc, Tls11]), TlsVersion::Tls11);
            assert_eq!(lowest(&[Cbc, Tls11, Tls10]), TlsVersion::Tls10);
        }
    }

    #[test]
    fn a_small_hello_has_no_post_quantum_group() {
        let mut mesh = ClusterDefaults::default();
        let small = legacy(&[Note::SmallHello]);
        assert_eq!(Offer::of(&mesh, small).groups, ["X25519", "P-256"]);
        mesh.curves = vec!["P-384".to_owned(), POST_QUANTUM.to_owned()];
        assert_eq!(Offer::of(&mesh, small).groups, ["P-384"]);
        mesh.curves = vec![POST_QUANTUM.to_owned()];
        assert_eq!(Offer::of(&mesh, small).groups, ["X25519", "P-256"]);
        assert!(Offer::of(&mesh, Notes::default()).groups_said);
        assert_eq!(Offer::of(&mesh, Notes::default()).groups, [POST_QUANTUM]);
    }
}
