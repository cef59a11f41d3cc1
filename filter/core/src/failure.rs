//! Why a connection to a server failed, as one word of a closed set.
//!
//! Envoy says why in the details of its answer, a text of its own that quotes BoringSSL. `filter/core/failures.md`
//! lists the texts recognised here for operators, and a test keeps both in step. A text that is not recognised never
//! gets a specific reason. If the connection failed, the reason is [`Failure::Reset`]. If it did not, there is no
//! reason.

use std::fmt;

use crate::contract;
use crate::facts::ConnectionEnd;

/// Why a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// A certificate of the server's chain is past its time.
    Expired,
    /// A certificate of the server's chain is before its time.
    NotYetValid,
    /// No authority that is trusted vouches for the server.
    UnknownCa,
    /// The server's certificate is for other names.
    NameMismatch,
    /// The server's certificate is revoked, or the list that would tell is missing or too old.
    Revoked,
    /// The server's certificate does not hold for a reason that no other word is for: its purpose, a CA flag, key
    /// usage, name constraints, a weak signature, or one that Envoy does not tell.
    NotVerified,
    /// The server wants a certificate of us, and the rule has none.
    ClientCertificateRequired,
    /// The server does not accept the certificate of the rule.
    ClientCertificateRejected,
    /// The server speaks no version of TLS that we do.
    ProtocolVersion,
    /// The server accepts nothing of what we offer, ciphers, groups and SNI together.
    NoSharedCipher,
    /// What came back is not TLS.
    NotTls,
    /// There was no connection, or no TLS session, in time.
    Timeout,
    /// Nobody listens, or there is no way there.
    Refused,
    /// The connection broke before an answer, or TLS failed in a way that no other word is for.
    Reset,
    /// The name has no address, or nobody said which.
    Dns,
    /// The name leads to addresses only that are not for names which clients choose.
    PrivateAddress,
    /// More names are asked for than the DNS cache for names which clients choose can hold.
    DnsOverflow,
    /// Envoy has not got a certificate that the connection needs.
    SecretMissing,
    /// The proxy of a `tunnel` answered, and not with the way to the server.
    TunnelRefused,
    /// What the server sent is no valid answer, or one that is too large.
    BadAnswer,
    /// More was under way to the servers of a cluster than its limits allow.
    Overflow,
    /// The proxy that all connections go out through wants a login, or another one.
    ProxyAuthRequired,
    /// That proxy answered otherwise than with the way to the server.
    ProxyRefused,
    /// That proxy did not answer in time.
    ProxyTimeout,
    /// That proxy cannot be reached, or hung up.
    ProxyUnreachable,
}

/// What is known of a connection that may have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureFacts<'f> {
    /// Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub details: &'f str,
    /// A client certificate would have been shown to a server that asks.
    pub shows_certificate: bool,
    /// A cluster without a healthy host can only be one whose names were not resolved.
    pub found_by_name: bool,
}

/// One macro for the three texts, so that all of them are known when this is compiled.
macro_rules! failures {
    ($($failure:ident $word:literal $sentence:literal;)*) => {
        impl Failure {
            /// All of them, in the order of their counters.
            pub const ALL: [Failure; [$($word),*].len()] = [$(Failure::$failure),*];

            /// Returns the word that logs, answers and counters share.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Failure::$failure => $word,)*
                }
            }

            /// Returns what the application is told: a line of text that says nothing of names,
            /// addresses and certificates.
            pub fn body(self) -> &'static str {
                match self {
                    $(Failure::$failure => concat!("egress_", $word, ": ", $sentence, "\n"),)*
                }
            }

            /// Returns the counter's name in Envoy's statistics, where `wasmcustom.` stands before it.
            pub fn counter(self) -> &'static str {
                match self {
                    $(Failure::$failure => concat!("egress.failure.", $word),)*
                }
            }
        }
    };
}

failures! {
    Expired "expired" "a certificate in the server's chain has expired";
    NotYetValid "not_yet_valid" "a certificate in the server's chain is not valid yet";
    UnknownCa "unknown_ca" "no authority that the proxy trusts vouches for the server";
    NameMismatch "name_mismatch" "the server's certificate is for another name";
    Revoked "revoked" "the server did not pass the check against the list of revoked certificates";
    NotVerified "not_verified" "the server's certificate could not be verified";
    ClientCertificateRequired "client_certificate_required" "the server asks for a client certificate and there is none";
    ClientCertificateRejected "client_certificate_rejected" "the server does not accept the client certificate";
    ProtocolVersion "protocol_version" "the server does not speak a version of TLS that the proxy speaks";
    NoSharedCipher "no_shared_cipher" "the server accepts none of the TLS settings that the proxy offers";
    NotTls "not_tls" "the server does not speak TLS";
    Timeout "timeout" "the connection to the server was not ready in time";
    Refused "refused" "the server refused the connection or cannot be reached";
    Reset "reset" "the connection to the server failed before there was an answer";
    Dns "dns" "the server's name could not be resolved";
    PrivateAddress "private_address" "the name leads to a private, loopback or metadata address";
    DnsOverflow "dns_overflow" "the proxy remembers as many names as it can, and takes no new one yet";
    SecretMissing "secret_missing" "the proxy lacks a certificate that the connection needs";
    TunnelRefused "tunnel_refused" "the proxy on the way to the server refused the tunnel";
    BadAnswer "bad_answer" "the server's answer is not valid HTTP, or its headers are too large";
    Overflow "overflow" "as much as is allowed is under way to the server already";
    ProxyAuthRequired "proxy_auth_required" "the proxy on the way out wants a user and a password, or others";
    ProxyRefused "proxy_refused" "the proxy on the way out refused the way to the server";
    ProxyTimeout "proxy_timeout" "the proxy on the way out did not answer in time";
    ProxyUnreachable "proxy_unreachable" "there is no connection through the proxy on the way out";
}

impl Failure {
    /// What tells a failure by the text that Envoy logs as `%UPSTREAM_TRANSPORT_FAILURE_REASON%`, for a log that can only
    /// search it. The first of these texts that is in it tells; it knows less than [`Failure::of`] does.
    pub const TRANSPORT_TEXTS: [(&'static str, Failure); 10] = [
        // First, for names of the certificate stand behind these two, and they could read like the others.
        ("verify SAN list", Failure::NameMismatch),
        ("SAN matcher", Failure::NameMismatch),
        ("tunnel_response:", Failure::TunnelRefused),
        ("Secret is not supplied", Failure::SecretMissing),
        ("Connection refused", Failure::Refused),
        ("certificate has expired", Failure::Expired),
        ("unable to get local issuer", Failure::UnknownCa),
        ("CERTIFICATE_VERIFY_FAILED", Failure::NotVerified),
        ("KEY_USAGE_BIT_INCORRECT", Failure::NotVerified),
        ("WRONG_VERSION_NUMBER", Failure::NotTls),
    ];

    /// Classifies an answer; `None` when it is the server's, or Envoy's for another reason.
    ///
    /// Source: envoyproxy/envoy `source/common/router/router.cc`, `Filter::onUpstreamReset`, and
    /// `source/common/http/utility.cc`, `resetReasonToString`.
    pub fn of(facts: &FailureFacts<'_>) -> Option<Failure> {
        let details = facts.details;
        // From 1.39 the DNS cache says so, before it the access filter.
        if details.starts_with("dns_resolution_failure{address_denied")
            || details
                .strip_prefix("rbac_access_denied_matched_policy[")
                .is_some_and(|policy| policy.starts_with(contract::PRIVATE_ADDRESS))
        {
            return Some(Failure::PrivateAddress);
        }
        if details.starts_with("dns_cache_overflow") {
            return Some(Failure::DnsOverflow);
        }
        if details.starts_with("dns_resolution_failure") {
            return Some(Failure::Dns);
        }
        if details.starts_with("no_healthy_upstream") {
            return facts.found_by_name.then_some(Failure::Dns);
        }
        let inner = details.strip_prefix("upstream_reset_before_response_started")?;
        let inner = inner.strip_prefix('{').unwrap_or(inner);
        let inner = inner.strip_suffix('}').unwrap_or(inner);
        let (kind, transport) = inner.split_once('|').unwrap_or((inner, ""));
        match kind {
            // A limit of ours.
            "overflow" => Some(Failure::Overflow),
            "protocol_error" => Some(Failure::BadAnswer),
            "connection_timeout" => Some(Failure::Timeout),
            "connection_failure" | "local_connection_failure" | "remote_connection_failure" => {
                Some(of_transport(transport, facts.shows_certificate).unwrap_or(Failure::Reset))
            }
            _ => Some(Failure::Reset),
        }
    }

    /// Classifies how a connection of bytes ended; `None` when the server's connection was established.
    /// Where a proxy is asked first, Envoy has one empty text for a proxy that did not
    /// answer in time and one that hung up.
    ///
    /// Source: envoyproxy/envoy `source/common/tcp_proxy/tcp_proxy.cc`, `Filter::onGenericPoolFailure`, and
    /// `envoy/stream_info/stream_info.h`, `CoreResponseFlag`.
    pub fn of_connection(
        end: &ConnectionEnd<'_>,
        shows_certificate: bool,
        found_by_name: bool,
        tunnelled: bool,
    ) -> Option<Failure> {
        const NO_HEALTHY_UPSTREAM: u64 = 0x2;
        const UPSTREAM_CONNECTION_FAILURE: u64 = 0x20;
        const UPSTREAM_OVERFLOW: u64 = 0x80;
        const DNS_RESOLUTION_FAILED: u64 = 0x800_0000;
        let has = |flag| end.flags & flag != 0;
        if has(DNS_RESOLUTION_FAILED) {
            return Some(Failure::Dns);
        }
        if has(NO_HEALTHY_UPSTREAM) {
            return found_by_name.then_some(Failure::Dns);
        }
        if has(UPSTREAM_OVERFLOW) {
            return Some(Failure::Overflow);
        }
        if !has(UPSTREAM_CONNECTION_FAILURE) {
            return None;
        }
        if end.transport.is_empty() {
            return Some(match tunnelled {
                true => Failure::Reset,
                false => Failure::Timeout,
            });
        }
        // In the details of HTTP spaces are underscores.
        let transport = end.transport.replace(' ', "_");
        Some(of_transport(&transport, shows_certificate).unwrap_or(Failure::Reset))
    }

    /// Classifies why the upstream proxy gave no tunnel, by Envoy's text with underscores for spaces.
    pub(crate) fn of_proxy(transport: &str) -> Failure {
        match transport.strip_prefix("tunnel_response:") {
            Some("407") => Failure::ProxyAuthRequired,
            Some(_) => Failure::ProxyRefused,
            None => Failure::ProxyUnreachable,
        }
    }

    /// Returns the position of the failure in [`Failure::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Returns the status that the application is told, and the one of gRPC, where it is not what Envoy chose.
    ///
    /// An address that is refused is nothing that passes by itself, whichever part of Envoy refused it.
    pub fn status(self) -> Option<(u32, &'static str)> {
        // `PERMISSION_DENIED`.
        (self == Failure::PrivateAddress).then_some((403, "7"))
    }

    /// Returns [`Failure::body`] without the end of the line, as gRPC has it.
    pub fn message(self) -> &'static str {
        self.body().trim_end()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Classifies why a transport socket failed. Spaces are underscores in the details.
fn of_transport(reason: &str, shows_certificate: bool) -> Option<Failure> {
    // Source: envoyproxy/envoy `source/common/tcp_proxy/upstream.cc`, `HttpUpstream`.
    if reason.starts_with("tunnel_response:") {
        return Some(Failure::TunnelRefused);
    }
    let Some(errors) = reason.strip_prefix("TLS_error:") else {
        // Source: envoyproxy/envoy `source/common/network/connection_impl.cc`, "delayed connect error".
        let error = behind(reason, "connect_error:_")?;
        // Without its secret the transport socket would not have sent anything, whoever listens.
        if error.ends_with("TLS_error:_Secret_is_not_supplied_by_SDS") {
            return Some(Failure::SecretMissing);
        }
        return match error {
            "Connection_refused"
            | "No_route_to_host"
            | "Network_is_unreachable"
            | "Host_is_unreachable"
            | "Host_is_down"
            | "No_such_file_or_directory" => Some(Failure::Refused),
            "Connection_timed_out" => Some(Failure::Timeout),
            _ => None,
        };
    };
    // Source: envoyproxy/envoy `source/common/tls/ssl_socket.cc`, `NotReadySslSocket`.
    if errors == "_Secret_is_not_supplied_by_SDS" {
        return Some(Failure::SecretMissing);
    }
    let mut errors = errors
        .split('|')
        .filter_map(|error| behind(error, ":OPENSSL_internal:"));
    // What BoringSSL could not do with a certificate may stand before it. Nothing of that is the server's to choose.
    let verification = errors
        .clone()
        .find_map(|error| error.strip_prefix("CERTIFICATE_VERIFY_FAILED"));
    if let Some(text) = verification {
        let text = text.strip_prefix(':').unwrap_or(text);
        return Some(of_verification(text).unwrap_or(Failure::NotVerified));
    }
    let error = errors.next()?;
    let (name, _) = error.split_once(':').unwrap_or((error, ""));
    match name {
        "KEY_USAGE_BIT_INCORRECT"
        | "BAD_SIGNATURE"
        | "WRONG_SIGNATURE_TYPE"
        | "CANNOT_PARSE_LEAF_CERT" => Some(Failure::NotVerified),
        "TLSV1_ALERT_PROTOCOL_VERSION" | "UNSUPPORTED_PROTOCOL" => Some(Failure::ProtocolVersion),
        "TLSV1_ALERT_INSUFFICIENT_SECURITY" => Some(Failure::NoSharedCipher),
        "WRONG_VERSION_NUMBER" => Some(Failure::NotTls),
        "TLSV1_ALERT_CERTIFICATE_REQUIRED" => Some(Failure::ClientCertificateRequired),
        // BoringSSL adds this to the alert when it answers the first message. Later than that a server
        // has nothing left to refuse but what it was shown.
        "SSLV3_ALERT_HANDSHAKE_FAILURE"
            if errors.any(|error| error.starts_with("HANDSHAKE_FAILURE_ON_CLIENT_HELLO")) =>
        {
            Some(Failure::NoSharedCipher)
        }
        // What servers say that were shown nothing: before TLS 1.3 there was no word for it.
        "SSLV3_ALERT_HANDSHAKE_FAILURE"
        | "SSLV3_ALERT_BAD_CERTIFICATE"
        | "SSLV3_ALERT_NO_CERTIFICATE"
            if !shows_certificate =>
        {
            Some(Failure::ClientCertificateRequired)
        }
        "SSLV3_ALERT_HANDSHAKE_FAILURE"
        | "SSLV3_ALERT_BAD_CERTIFICATE"
        | "SSLV3_ALERT_NO_CERTIFICATE"
        | "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"
        | "SSLV3_ALERT_CERTIFICATE_REVOKED"
        | "SSLV3_ALERT_CERTIFICATE_EXPIRED"
        | "SSLV3_ALERT_CERTIFICATE_UNKNOWN"
        | "TLSV1_ALERT_UNKNOWN_CA"
        | "TLSV1_ALERT_ACCESS_DENIED"
            if shows_certificate =>
        {
            Some(Failure::ClientCertificateRejected)
        }
        _ => None,
    }
}

/// Returns what stands behind a word. `split_once` searches long texts faster, which these are not, and is more of the
/// module than this.
fn behind<'t>(text: &'t str, word: &str) -> Option<&'t str> {
    let mut windows = text.as_bytes().windows(word.len());
    let at = windows.position(|bytes| bytes == word.as_bytes())?;
    text.get(at + word.len()..)
}

/// Classifies why a certificate does not hold; `None` where there is no better word than that. The text is read from its beginning only, for the names in
/// the certificate stand behind it, and those are the server's to choose.
///
/// Source: envoyproxy/envoy `source/common/tls/cert_validator/default_validator.cc`, and BoringSSL
/// `crypto/x509/x509_txt.cc`, `X509_verify_cert_error_string`.
fn of_verification(text: &str) -> Option<Failure> {
    // Envoy 1.36 says nothing here.
    let text = text.strip_prefix("verify_cert_failed:_")?;
    if text.starts_with("verify_SAN_list") || text.starts_with("SAN_matcher") {
        return Some(Failure::NameMismatch);
    }
    let text = text.strip_prefix("X509_verify_cert:_certificate_verification_error_at_depth_")?;
    let error = behind(text, ":_")?;
    if error.starts_with("certificate_revocation_check_against_provided_CRLs_failed") {
        return Some(Failure::Revoked);
    }
    match error.split_once(':').map_or(error, |(error, _)| error) {
        "certificate_has_expired" => Some(Failure::Expired),
        "certificate_is_not_yet_valid" => Some(Failure::NotYetValid),
        "unable_to_get_issuer_certificate"
        | "unable_to_get_local_issuer_certificate"
        | "unable_to_verify_the_first_certificate"
        | "self_signed_certificate"
        | "self-signed_certificate"
        | "self_signed_certificate_in_certificate_chain"
        | "self-signed_certificate_in_certificate_chain" => Some(Failure::UnknownCa),
        // Envoy 1.37 does not say what they are about, as later ones do.
        "certificate_revoked"
        | "unable_to_get_certificate_CRL"
        | "unable_to_get_CRL_issuer_certificate"
        | "CRL_has_expired"
        | "CRL_is_not_yet_valid"
        | "CRL_signature_failure" => Some(Failure::Revoked),
        _ => None,
    }
}
