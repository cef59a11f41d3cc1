//! What annotations of ours say of all connections and requests to the host of a DestinationRule. Istio passes over
//! them.

use std::fmt;

use crate::fields::{Field, listed};
use crate::problem::{ProblemKind, did_you_mean};

/// One thing that an annotation says. Each is a bit of [`Notes`], so there are at most 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Each connection of a client has connections to servers of its own.
    PerClient,
    /// Servers are not told `x-forwarded-for`.
    HidesClients,
    /// URLs in answers are repaired, whatever others are.
    RedirectsRewrite,
    /// URLs in answers stay as they are.
    RedirectsKeep,
    /// URLs in `Link` are repaired too.
    RedirectsLink,
    /// Cookies are repaired, whatever others are.
    CookiesRepair,
    /// Cookies stay as they are.
    CookiesKeep,
    /// Cookies whose names begin with `__Secure-` or `__Host-` are repaired too.
    CookiesPrefixed,
    /// What tells a client to speak TLS itself is removed, whatever is removed of others.
    HintsRemove,
    /// What tells a client to speak TLS itself stays.
    HintsKeep,
    /// The directives of `Content-Security-Policy` that tell so are removed too.
    HintsCsp,
    /// Servers are told that requests came over plain HTTP.
    ForwardedHttp,
    /// Nothing but HTTP/1.1 is spoken with servers.
    OnlyHttp1,
    /// URLs in requests that name the server itself are those of TLS.
    RequestUrls,
    /// The server is offered suites in which its key decrypts the session's: without forward secrecy.
    RsaKeyExchange,
    /// The server is offered suites of TLS 1.2 that encrypt by CBC.
    Cbc,
    /// The server is offered TLS 1.0 and 1.1.
    Tls10,
    /// The server is offered TLS 1.1.
    Tls11,
    /// The server may sign its handshake by ECDSA with SHA-1.
    Sha1Signatures,
    /// The server's first message fits into one packet, because it has no post-quantum share.
    SmallHello,
    /// The server may begin a handshake in a connection that is in use.
    Renegotiation,
}

/// An annotation.
struct Annotation {
    /// Its name, without the prefix.
    name: &'static str,
    /// Its words; those that say no more than is so without the annotation have no note.
    words: &'static [(&'static str, Option<Note>)],
    /// It may say several words, separated by commas. [`KEEP`] is said alone.
    several: bool,
    /// It is about requests, and not about the connections of other protocols.
    requests: bool,
}

/// The word that leaves everything as the server said it.
const KEEP: &str = "keep";

const ANNOTATIONS: &[Annotation] = &[
    Annotation {
        name: "connections",
        words: &[("shared", None), ("per-client", Some(Note::PerClient))],
        several: false,
        requests: false,
    },
    Annotation {
        name: "cookies",
        words: &[
            ("repair", Some(Note::CookiesRepair)),
            (KEEP, Some(Note::CookiesKeep)),
            ("repair-prefixed", Some(Note::CookiesPrefixed)),
        ],
        several: false,
        requests: true,
    },
    Annotation {
        name: "forwarded-proto",
        words: &[("https", None), ("http", Some(Note::ForwardedHttp))],
        several: false,
        requests: true,
    },
    Annotation {
        name: "http",
        words: &[("auto", None), ("http1", Some(Note::OnlyHttp1))],
        several: false,
        requests: true,
    },
    Annotation {
        name: "redirects",
        words: &[
            ("rewrite", Some(Note::RedirectsRewrite)),
            (KEEP, Some(Note::RedirectsKeep)),
            ("link", Some(Note::RedirectsLink)),
        ],
        several: true,
        requests: true,
    },
    Annotation {
        name: "request-urls",
        words: &[(KEEP, None), ("rewrite", Some(Note::RequestUrls))],
        several: false,
        requests: true,
    },
    Annotation {
        name: "tls-legacy",
        words: &[
            ("rsa-key-exchange", Some(Note::RsaKeyExchange)),
            ("cbc", Some(Note::Cbc)),
            ("tls1.0", Some(Note::Tls10)),
            ("tls1.1", Some(Note::Tls11)),
            ("sha1-signatures", Some(Note::Sha1Signatures)),
            ("small-hello", Some(Note::SmallHello)),
            ("renegotiation", Some(Note::Renegotiation)),
        ],
        several: true,
        requests: false,
    },
    Annotation {
        name: "transport-hints",
        words: &[
            ("remove", Some(Note::HintsRemove)),
            (KEEP, Some(Note::HintsKeep)),
            ("csp", Some(Note::HintsCsp)),
        ],
        several: true,
        requests: true,
    },
    Annotation {
        name: "x-forwarded-for",
        words: &[("pass", None), ("remove", Some(Note::HidesClients))],
        several: false,
        requests: true,
    },
];

/// What annotations say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Notes(u32);

/// The notes of `tls-legacy`, the last ones.
const LEGACY: u32 = !0 << Note::RsaKeyExchange as u32;

impl Notes {
    /// What the names of these annotations begin with.
    pub const PREFIX: &'static str = "egressctl/";

    /// What they may begin with as well.
    const OLD_PREFIX: &'static str = "egressctl.io/";

    /// Returns the name without the prefix, if it is that of an annotation of ours.
    pub fn ours(name: &str) -> Option<&str> {
        name.strip_prefix(Self::PREFIX)
            .or_else(|| name.strip_prefix(Self::OLD_PREFIX))
    }

    /// Whether an annotation says so.
    pub fn say(self, note: Note) -> bool {
        self.0 & 1 << note as u32 != 0
    }

    /// Returns what it says of TLS to the server: what an old one needs. None of that changes what is verified.
    pub fn legacy(self) -> Notes {
        Notes(self.0 & LEGACY)
    }

    /// Returns all the rest.
    pub(crate) fn without_legacy(self) -> Notes {
        Notes(self.0 & !LEGACY)
    }

    /// Returns what it says and others do not.
    pub fn without(self, others: Notes) -> Notes {
        Notes(self.0 & !others.0)
    }

    /// Returns what either says.
    pub fn and(self, others: Notes) -> Notes {
        Notes(self.0 | others.0)
    }

    /// Returns the annotations, each by its name and its words. With `requests` those too that are about requests alone.
    pub fn written(self, requests: bool) -> impl Iterator<Item = (&'static str, String)> {
        let about = move |it: &&Annotation| requests || !it.requests;
        ANNOTATIONS.iter().filter(about).filter_map(move |it| {
            let said = |note: &Option<Note>| note.is_some_and(|note| self.say(note));
            let words = it.words.iter().filter(|(_, note)| said(note));
            let words: Vec<&str> = words.map(|(word, _)| *word).collect();
            Some((it.name, words.join(","))).filter(|_| !words.is_empty())
        })
    }

    /// Reads an annotation. What would do nothing is an error: its author relies on it.
    pub(super) fn read(&mut self, kind: &str, name: &str, text: &Field<'_>) {
        let Some(name) = Self::ours(name) else {
            return;
        };
        if kind != "DestinationRule" {
            let problem = ProblemKind::Invalid("this annotation does nothing here".to_owned());
            return text.error_with_hint(problem, "it is for DestinationRules");
        }
        let mut all = ANNOTATIONS.iter();
        let Some(annotation) = all.find(|it| it.name == name) else {
            let names: Vec<&str> = ANNOTATIONS.iter().map(|it| it.name).collect();
            let problem = ProblemKind::Invalid("no such annotation".to_owned());
            return text.error_with_hint(problem, meant("there are", name, &names));
        };
        let Some(said) = text.text() else {
            return;
        };
        let mut words: Vec<&str> = vec![said];
        if annotation.several {
            words = said.split(',').map(str::trim).collect();
        }
        for word in &words {
            match annotation.words.iter().find(|(known, _)| known == word) {
                None => {
                    let known: Vec<&str> = annotation.words.iter().map(|(word, _)| *word).collect();
                    let found = word.chars().take(60).collect();
                    let what = "value";
                    let hint = meant("it is one of", word, &known);
                    text.error_with_hint(ProblemKind::UnknownValue { what, found }, hint);
                }
                Some((KEEP, _)) if words.len() > 1 => {
                    let problem = ProblemKind::Invalid("`keep` beside other words".to_owned());
                    text.error_with_hint(problem, "leave out `keep`, or all others");
                }
                Some((_, note)) => {
                    self.0 |= note.map_or(0, |note| 1 << note as u32);
                }
            }
        }
    }
}

/// Returns what somebody may have meant who wrote something else.
fn meant(all: &str, written: &str, known: &[&str]) -> String {
    match did_you_mean(written, known) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("{all} {}", listed(known)),
    }
}

impl FromIterator<Note> for Notes {
    fn from_iter<I: IntoIterator<Item = Note>>(notes: I) -> Self {
        Notes(
            notes
                .into_iter()
                .fold(0, |all, note| all | 1 << note as u32),
        )
    }
}

/// By their words: fingerprints must not depend on which bit is which.
impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.written(true)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_word_is_a_bit_of_its_own_and_each_name_there_once() {
        let words = ANNOTATIONS.iter().flat_map(|it| it.words);
        let notes: Vec<u32> = words
            .filter_map(|(_, note)| note.map(|it| it as u32))
            .collect();
        let distinct: BTreeSet<&u32> = notes.iter().collect();
        assert_eq!(distinct.len(), notes.len());
        assert!(notes.iter().all(|note| *note < 32), "{notes:?}");
        let names: Vec<&str> = ANNOTATIONS.iter().map(|it| it.name).collect();
        assert!(names.is_sorted(), "{names:?}");
        for it in ANNOTATIONS {
            let notes = it.words.iter().filter_map(|(_, note)| *note);
            let mut last = notes.map(|note| note as u32 >= Note::RsaKeyExchange as u32);
            let legacy = it.name == "tls-legacy";
            assert!(last.all(|last| last == legacy), "{}", it.name);
        }
        // Those of TLS are told from the others by their bits.
        for annotation in ANNOTATIONS {
            for (_, note) in annotation.words {
                let legacy = note.is_some_and(|note| Notes::from_iter([note]).legacy().0 != 0);
                assert_eq!(legacy, annotation.name == "tls-legacy");
            }
        }
    }
}
