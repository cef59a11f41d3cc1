//! The metadata of a request for the access log: sixteen entries, in one property.

use std::fmt::Write;
use std::io::Write as _;

use egress_policy::{Decision, ResourceId, TlsIntent, Trust};

use crate::config::MetadataFormat;
use crate::contract;
use crate::protobuf::{self, tag_and_len, varint_len};
use crate::text::itoa;

/// One entry of the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// `originate`, `forward`, `passthrough` or `reject`.
    Action,
    /// Why it was rejected or left alone, or why its connection failed.
    Reason,
    /// The DestinationRule that decided, `namespace/name`.
    Rule,
    /// The ServiceEntry that has the host, `namespace/name`.
    ServiceEntry,
    /// The cluster.
    Cluster,
    /// The transport socket.
    TransportSocket,
    /// `SIMPLE`.
    TlsMode,
    /// The name in the ClientHello.
    Sni,
    /// The names that were verified, separated by commas; both kinds where both hold.
    Verify,
    /// The names of the secrets that the connection uses: the client certificate's, then the trust
    /// store's unless it is the system's, separated by a comma.
    Secrets,
    /// Host and port that are dialled, or the endpoints: behind a tunnel, those that the proxy was asked for.
    Target,
    /// The authority as the client sent it; behind `https://` where a forward proxy was given such a URL.
    Authority,
    /// `allowed`, where it is plaintext only because somebody allowed it.
    Plaintext,
    /// What of the answer was repaired, separated by commas.
    Repaired,
    /// What became of the URL of the answer, where it was not simply repaired.
    Redirect,
    /// Why a cookie of the answer was not repaired.
    Cookies,
}

/// All entries with their keys, in the order of the log.
pub const FIELDS: [(Entry, &str); 16] = [
    (Entry::Action, "action"),
    (Entry::Reason, "reason"),
    (Entry::Rule, "rule"),
    (Entry::ServiceEntry, "service_entry"),
    (Entry::Cluster, "cluster"),
    (Entry::TransportSocket, "transport_socket"),
    (Entry::TlsMode, "tls_mode"),
    (Entry::Sni, "sni"),
    (Entry::Verify, "verify"),
    (Entry::Secrets, "secrets"),
    (Entry::Target, "target"),
    (Entry::Authority, "authority"),
    (Entry::Plaintext, "plaintext"),
    (Entry::Repaired, "repaired"),
    (Entry::Redirect, "redirect"),
    (Entry::Cookies, "cookies"),
];

impl Entry {
    /// Whether a line of text says nothing where there is none of it: few answers have it.
    pub fn is_rare(self) -> bool {
        matches!(self, Entry::Repaired | Entry::Redirect | Entry::Cookies)
    }
}

/// So many endpoints are named in a line of the log.
const SHOWN: usize = 4;

/// Writes entries in the order of [`FIELDS`], each once.
pub(crate) struct Writer<'o> {
    format: MetadataFormat,
    out: &'o mut Vec<u8>,
    next: usize,
}

impl<'o> Writer<'o> {
    pub(crate) fn new(format: MetadataFormat, out: &'o mut Vec<u8>) -> Self {
        Writer {
            format,
            out,
            next: 0,
        }
    }

    pub(crate) fn text(&mut self, entry: Entry, value: Option<&str>) {
        self.parts(entry, value.as_slice());
    }

    pub(crate) fn resource(&mut self, entry: Entry, id: Option<&ResourceId>) {
        match id {
            Some(id) => self.parts(entry, &[&id.namespace, "/", &id.name]),
            None => self.parts(entry, &[]),
        }
    }

    /// Writes what is dialled: the target, or the endpoints that the entries list in its place.
    pub(crate) fn target(&mut self, decision: &Decision<'_, '_>) {
        match decision.endpoints() {
            Some([endpoint]) if endpoint.path().is_none() => {
                return self.parts(
                    Entry::Target,
                    &[
                        &endpoint.address,
                        ":",
                        itoa(endpoint.port.get(), &mut [0; 5]),
                    ],
                );
            }
            // Rare, so it may allocate. Of many the first few say enough.
            Some(endpoints) => {
                let mut shown = String::new();
                for endpoint in endpoints.iter().take(SHOWN) {
                    let comma = if shown.is_empty() { "" } else { "," };
                    let _ = write!(shown, "{comma}{endpoint}");
                }
                if endpoints.len() > SHOWN {
                    let _ = write!(shown, ",+{}", endpoints.len() - SHOWN);
                }
                return self.text(Entry::Target, Some(&shown));
            }
            None => {}
        }
        match &decision.target {
            Some(target) => {
                self.parts(
                    Entry::Target,
                    &[target.host, ":", itoa(target.port.get(), &mut [0; 5])],
                );
            }
            None => self.parts(Entry::Target, &[]),
        }
    }

    pub(crate) fn verify(&mut self, tls: Option<&TlsIntent>, host: Option<&str>) {
        let Some(tls) = tls else {
            return self.parts(Entry::Verify, &[]);
        };
        if tls.trust == Trust::InsecureSkipVerify {
            return self.parts(Entry::Verify, &["insecureSkipVerify"]);
        }
        match (tls.names.authority, &tls.names.any_of[..]) {
            (true, []) => self.text(Entry::Verify, host),
            (false, [name]) => self.text(Entry::Verify, Some(name)),
            (authority, names) => {
                // Rare, so it may allocate.
                let mut all = names.join(",");
                if let (true, Some(host)) = (authority, host) {
                    all.insert(0, '+');
                    all.insert_str(0, host);
                }
                self.text(Entry::Verify, Some(&all));
            }
        }
    }

    /// Uses `room` for the names, so that a request takes no memory for them.
    pub(crate) fn secrets(&mut self, tls: Option<&TlsIntent>, room: &mut String) {
        room.clear();
        let identity = tls.and_then(|tls| tls.identity.as_ref());
        if let Some(identity) = identity {
            // A `String` takes whatever is written.
            let _ = write!(room, "{}", contract::identity_secret(identity));
        }
        let trust = tls.filter(|tls| tls.trust != Trust::System || tls.crl.is_some());
        if let Some(trust) = trust.and_then(contract::trust_secret) {
            let comma = if room.is_empty() { "" } else { "," };
            let _ = write!(room, "{comma}{trust}");
        }
        self.text(
            Entry::Secrets,
            Some(room.as_str()).filter(|names| !names.is_empty()),
        );
    }

    pub(crate) fn parts(&mut self, entry: Entry, parts: &[&str]) {
        let Some((expected, key)) = FIELDS.get(self.next) else {
            return;
        };
        debug_assert_eq!(*expected, entry, "entries come in the order of FIELDS");
        self.next += 1;
        match self.format {
            MetadataFormat::Text if parts.is_empty() && entry.is_rare() => {}
            MetadataFormat::Text => self.text_entry(key, parts),
            MetadataFormat::Json => self.struct_entry(key, parts),
        }
    }

    fn text_entry(&mut self, key: &str, parts: &[&str]) {
        if !self.out.is_empty() {
            self.out.push(b' ');
        }
        self.out.extend_from_slice(key.as_bytes());
        self.out.push(b'=');
        if parts.is_empty() {
            self.out.push(b'-');
        }
        for part in parts {
            self.line(part.as_bytes());
        }
    }

    /// One request is one line, and a client cannot write a second entry.
    fn line(&mut self, mut text: &[u8]) {
        let passes = |byte: &u8| matches!(byte, b'!'..=b'~') && *byte != b'"' && *byte != b'\\';
        // Nearly always this is all of it, and copied as a whole.
        while let Some(at) = text.iter().position(|byte| !passes(byte)) {
            let (before, rest) = text.split_at(at);
            self.out.extend_from_slice(before);
            let Some((byte, rest)) = rest.split_first() else {
                return;
            };
            // Writing to a list of bytes does not fail.
            let _ = write!(self.out, "\\x{byte:02x}");
            text = rest;
        }
        self.out.extend_from_slice(text);
    }

    /// Writes one field of a `google.protobuf.Struct`: `fields = 1 {key = 1; value = 2 {string_value = 3}}`.
    /// What there is none of is left out.
    fn struct_entry(&mut self, key: &str, parts: &[&str]) {
        if parts.is_empty() {
            return;
        }
        let text: usize = parts.iter().map(|part| part.len()).sum();
        let value = 1 + varint_len(text) + text;
        let entry = 1 + varint_len(key.len()) + key.len() + 1 + varint_len(value) + value;
        tag_and_len(self.out, 0x0a, entry);
        protobuf::field(self.out, 0x0a, key.as_bytes());
        tag_and_len(self.out, 0x12, value);
        tag_and_len(self.out, 0x1a, text);
        for part in parts {
            self.out.extend_from_slice(part.as_bytes());
        }
    }
}

/// Reads back the entries of metadata that was written as a `google.protobuf.Struct`.
pub fn struct_entries(metadata: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = metadata;
    std::iter::from_fn(move || {
        let entry;
        (entry, rest) = protobuf::split_field(rest)?;
        let (key, value) = protobuf::split_field(entry)?;
        let (value, _) = protobuf::split_field(value)?;
        let (text, _) = protobuf::split_field(value)?;
        Some((
            std::str::from_utf8(key).ok()?,
            std::str::from_utf8(text).ok()?,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_be_broken_out_of() {
        let mut out = Vec::new();
        let mut writer = Writer {
            format: MetadataFormat::Text,
            out: &mut out,
            next: 11,
        };
        writer.text(Entry::Authority, Some("a b\naction=\"x\\"));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r"authority=a\x20b\x0aaction=\x22x\x5c"
        );
    }

    #[test]
    fn a_struct_is_protobuf() {
        let mut out = Vec::new();
        let mut writer = Writer::new(MetadataFormat::Json, &mut out);
        writer.text(Entry::Action, Some("reject"));
        writer.text(Entry::Reason, None);
        assert_eq!(out, b"\x0a\x12\x0a\x06action\x12\x08\x1a\x06reject");
    }

    #[test]
    fn a_struct_is_read_back() {
        let (mut out, long) = (Vec::new(), "x".repeat(300));
        let mut writer = Writer::new(MetadataFormat::Json, &mut out);
        writer.text(Entry::Action, Some("reject"));
        writer.text(Entry::Reason, None);
        writer.text(Entry::Rule, Some(&long));
        let entries: Vec<_> = struct_entries(&out).collect();
        assert_eq!(entries, [("action", "reject"), ("rule", &*long)]);
    }
}
