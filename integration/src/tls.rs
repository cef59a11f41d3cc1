//! What both ends of a TLS connection share here.

use std::sync::Arc;

use rustls::{ProtocolVersion, crypto::CryptoProvider};

pub(crate) const H2: &[u8] = b"h2";
pub(crate) const HTTP_1_1: &[u8] = b"http/1.1";

/// The one crypto provider, named at each use: a process-wide default would have to be installed
/// by every test first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A version as Envoy spells it in its access log, such as `TLSv1.3`.
pub(crate) fn version_name(version: ProtocolVersion) -> String {
    match version {
        ProtocolVersion::TLSv1_2 => "TLSv1.2".into(),
        ProtocolVersion::TLSv1_3 => "TLSv1.3".into(),
        other => format!("{other:?}"),
    }
}

/// A protocol name from ALPN as text; it is ASCII in every registered case.
pub(crate) fn alpn_name(protocol: &[u8]) -> String {
    String::from_utf8_lossy(protocol).into_owned()
}
