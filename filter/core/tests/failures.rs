//! The page `failures.md` and the code say the same, and texts that prove nothing get no reason.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect should stop"
)]

use std::collections::BTreeSet;

use egress_filter::{Failure, FailureFacts};
use egress_policy::Reason;

const PAGE: &str = include_str!("../failures.md");

/// The rows of the table: reason, and the texts quoted for it.
fn rows() -> Vec<(&'static str, Vec<String>)> {
    let rows = PAGE.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        // A bar within a cell is written `\|`.
        let row = row.replace("\\|", "\u{0}");
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, reason, quoted, _, _, _] = <[&str; 6]>::try_from(cells).unwrap();
        let reason = reason.trim_matches('`');
        let reason = Failure::ALL.into_iter().find(|f| f.as_str() == reason);
        let quoted = quoted.split('`').skip(1).step_by(2);
        let texts = quoted.map(|text| text.replace('\u{0}', "|")).collect();
        (reason.unwrap().as_str(), texts)
    })
    .collect()
}

/// Puts the frame around a quoted text that Envoy has around it.
fn framed(text: &str) -> String {
    let reset = |inner: &str| format!("upstream_reset_before_response_started{{{inner}}}");
    let transport = |reason: &str| reset(&format!("remote_connection_failure|{reason}"));
    let whole = ["TLS_error:", "tunnel_response:"];
    if whole.iter().any(|start| text.starts_with(start)) || text.contains("connect_error") {
        transport(text)
    } else if text.starts_with(|c: char| c.is_ascii_uppercase()) {
        let error = format!("|268435581:SSL_routines:OPENSSL_internal:{text}");
        transport(&format!("TLS_error:{error}:TLS_error_end"))
    } else if ["dns_", "no_", "rbac_"]
        .iter()
        .any(|start| text.starts_with(start))
    {
        text.to_owned()
    } else {
        reset(text)
    }
}

fn of(details: &str, shows_certificate: bool) -> Option<&'static str> {
    let facts = FailureFacts {
        details,
        shows_certificate,
        found_by_name: true,
    };
    Failure::of(&facts).map(Failure::as_str)
}

#[test]
fn the_page_has_exactly_the_reasons_of_the_code() {
    let mut rows: Vec<_> = rows().into_iter().map(|(reason, _)| reason).collect();
    rows.dedup();
    assert_eq!(rows, Failure::ALL.map(Failure::as_str));
}

#[test]
fn the_page_has_each_reason_of_the_rules() {
    use Reason::*;
    let all = [
        NoHost,
        InvalidHost,
        UnknownHost,
        UnknownPort,
        OtherProtocol,
        OtherHost,
        UnknownSubset,
        LeftOut,
        NoRoute,
        UnknownDestination,
        TlsInTls,
        NotRead,
        InvalidRule,
    ];
    let (_, page) = PAGE
        .split_once("\n## Requests that the rules refuse")
        .unwrap();
    let (part, _) = page.split_once("\n## ").unwrap();
    let rows = part
        .lines()
        .filter_map(|row| row.strip_prefix("| ")?.split(' ').next());
    let rows: Vec<&str> = rows.filter(|reason| *reason != "reason").collect();
    assert_eq!(rows, all.map(Reason::as_str));
    // One that is new does not compile here.
    for reason in all {
        match reason {
            NoHost | InvalidHost | UnknownHost | UnknownPort | OtherProtocol | OtherHost
            | UnknownSubset | LeftOut | NoRoute | UnknownDestination | TlsInTls | NotRead
            | InvalidRule => {}
        }
    }
}

#[test]
fn what_the_page_quotes_has_the_reason_of_its_row() {
    for (reason, texts) in rows() {
        assert!(!texts.is_empty(), "{reason}");
        // What the upstream proxy said is not in Envoy's details: see the tests of `tunnels`.
        for text in texts.iter().filter(|_| !reason.starts_with("proxy_")) {
            let shows = reason == Failure::ClientCertificateRejected.as_str();
            assert_eq!(of(&framed(text), shows), Some(reason), "{text}");
        }
    }
}

/// A log says nothing else than the page, unless it only knows that the certificate could not be verified.
#[test]
fn a_log_that_searches_the_text_says_what_the_page_says() {
    let mut told = BTreeSet::new();
    for (reason, texts) in rows() {
        for quoted in texts.iter().filter(|_| !reason.starts_with("proxy_")) {
            // In the details that the page quotes, spaces are underscores.
            let mut all = Failure::TRANSPORT_TEXTS.into_iter();
            let first = all.find(|(text, _)| quoted.contains(&text.replace(' ', "_")));
            let Some((text, failure)) = first else {
                continue;
            };
            if failure.as_str() == reason {
                told.insert(text);
            } else {
                assert_eq!(failure, Failure::NotVerified, "{quoted}");
                assert!(text == "CERTIFICATE_VERIFY_FAILED", "{quoted}");
            }
        }
    }
    let all: BTreeSet<_> = Failure::TRANSPORT_TEXTS.map(|(text, _)| text).into();
    assert_eq!(told, all);
}

#[test]
fn the_page_shows_a_body_as_it_is() {
    let body = Failure::Expired.body();
    assert!(PAGE.contains(&format!("content-length: {}\n\n{body}```", body.len())));
}

#[test]
fn bodies_are_one_line_that_names_its_reason() {
    for failure in Failure::ALL {
        let body = failure.body();
        assert!(
            body.starts_with(&format!("egress_{failure}: ")),
            "{failure}: {body}"
        );
        assert_eq!(body.find('\n'), Some(body.len() - 1), "{body}");
        assert_eq!(body, format!("{}\n", failure.message()));
        // In `grpc-message` anything else would need an escape.
        let plain = |c: char| c == ' ' || (c.is_ascii_graphic() && c != '%');
        assert!(failure.message().chars().all(plain), "{body}");
        assert_eq!(failure.counter(), format!("egress.failure.{failure}"));
    }
    let words: BTreeSet<_> = Failure::ALL.map(Failure::as_str).into();
    assert_eq!(words.len(), Failure::ALL.len());
    let places: Vec<_> = Failure::ALL.map(Failure::index).into();
    assert_eq!(places, (0..Failure::ALL.len()).collect::<Vec<_>>());
}

/// `RESPONSE_CODE_DETAILS` as Envoy wrote them, whole.
#[test]
fn what_envoy_wrote_is_read() {
    let verify = "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED";
    let depth = "verify_cert_failed:_X509_verify_cert:_certificate_verification_error_at_depth_";
    let alert = "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|";
    for (details, reason) in [
        (
            format!("{verify}:{depth}0:_certificate_has_expired:TLS_error_end}}"),
            "expired",
        ),
        (
            format!("{verify}:{depth}1:_certificate_has_expired:TLS_error_end}}"),
            "expired",
        ),
        // Envoy 1.36.4, for whatever is wrong with a certificate.
        (format!("{verify}:TLS_error_end}}"), "not_verified"),
        (
            format!("{verify}:something_new:TLS_error_end}}"),
            "not_verified",
        ),
        (
            format!("{verify}:{depth}0:_unsupported_certificate_purpose:TLS_error_end}}"),
            "not_verified",
        ),
        // A certificate that is signed with MD5: BoringSSL says first that it cannot check that.
        (
            format!(
                "{alert}201326703:ASN.1_encoding_routines:OPENSSL_internal:DIGEST_AND_KEY_TYPE_NOT_SUPPORTED|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:{depth}0:_certificate_signature_failure:TLS_error_end}}"
            ),
            "not_verified",
        ),
        // The same, of a certificate that has expired too.
        (
            format!(
                "{alert}201326703:ASN.1_encoding_routines:OPENSSL_internal:DIGEST_AND_KEY_TYPE_NOT_SUPPORTED|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:{depth}0:_certificate_has_expired:TLS_error_end}}"
            ),
            "expired",
        ),
        (
            format!(
                "{alert}268435758:SSL_routines:OPENSSL_internal:KEY_USAGE_BIT_INCORRECT:TLS_error_end}}"
            ),
            "not_verified",
        ),
        (
            format!(
                "{alert}268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end}}"
            ),
            "not_tls",
        ),
        (
            format!(
                "{alert}268435606:SSL_routines:OPENSSL_internal:EXCESSIVE_MESSAGE_SIZE:TLS_error_end}}"
            ),
            "reset",
        ),
        (
            format!(
                "{alert}268435698:SSL_routines:OPENSSL_internal:WRONG_CIPHER_RETURNED:TLS_error_end}}"
            ),
            "reset",
        ),
        (
            format!(
                "{alert}268436568:SSL_routines:OPENSSL_internal:TLSV1_ALERT_UNRECOGNIZED_NAME:TLS_error_end}}"
            ),
            "reset",
        ),
        (
            format!(
                "{alert}268436536:SSL_routines:OPENSSL_internal:TLSV1_ALERT_INTERNAL_ERROR:TLS_error_end}}"
            ),
            "reset",
        ),
        (
            "upstream_reset_before_response_started{remote_connection_failure}".to_owned(),
            "reset",
        ),
        (
            "upstream_reset_before_response_started{connection_timeout}".to_owned(),
            "timeout",
        ),
        (
            "dns_resolution_failure{cares_norecords:Domain_name_not_found}".to_owned(),
            "dns",
        ),
    ] {
        assert_eq!(of(&details, false), Some(reason), "{details}");
        assert_eq!(of(&details, true), Some(reason), "{details}");
    }
}

#[test]
fn what_is_no_failed_connection_has_no_reason() {
    for details in [
        "",
        "via_upstream",
        "direct_response",
        "route_not_found",
        "cluster_not_found",
        "egress_unknown_host",
        "response_timeout",
        "rbac_access_denied_matched_policy[private]",
        "upstream_reset_after_response_started{connection_termination}",
        "via_upstream{upstream_reset_before_response_started{connection_timeout}}",
    ] {
        assert_eq!(of(details, true), None, "{details}");
    }
    let found_by_address = FailureFacts {
        details: "no_healthy_upstream",
        shows_certificate: false,
        found_by_name: false,
    };
    assert_eq!(Failure::of(&found_by_address), None);
}

/// A server chooses the names in its certificate, and they stand in Envoy's text.
#[test]
fn a_server_cannot_choose_its_reason() {
    let mismatch = "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_SAN_matcher,_certificate_SANs_are_[";
    for name in [
        "certificate_has_expired",
        "|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER",
        "|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED",
        "x]:TLS_error_end}",
        "}connection_timeout|{",
        "TLS_error:_Secret_is_not_supplied_by_SDS",
        "delayed_connect_error:_Connection_refused",
        "connect_error:_Connection_refused",
    ] {
        let details = format!("{mismatch}{name}]:TLS_error_end}}");
        assert_eq!(of(&details, false), Some("name_mismatch"), "{details}");
        // What ends where the server wants proves no more.
        let details = format!("{mismatch}{name}");
        assert_eq!(of(&details, false), Some("name_mismatch"), "{details}");
    }
}

#[test]
fn alerts_about_certificates_depend_on_what_was_shown() {
    let of = |alert: &str, shows| {
        let details = framed(alert);
        of(&details, shows)
    };
    let (required, rejected) = ("client_certificate_required", "client_certificate_rejected");
    for (alert, without, with) in [
        ("TLSV1_ALERT_CERTIFICATE_REQUIRED", required, required),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", required, rejected),
        ("SSLV3_ALERT_BAD_CERTIFICATE", required, rejected),
        ("SSLV3_ALERT_NO_CERTIFICATE", required, rejected),
        ("TLSV1_ALERT_UNKNOWN_CA", "reset", rejected),
        ("TLSV1_ALERT_ACCESS_DENIED", "reset", rejected),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "reset", rejected),
    ] {
        assert_eq!(of(alert, false), Some(without), "{alert}");
        assert_eq!(of(alert, true), Some(with), "{alert}");
    }
}
