//! What servers of a Gateway and listeners of a Sidecar have in common: ports, TLS, and hosts with a namespace.

use std::net::IpAddr;

use egress_policy::fields::{Field, Fields};
use egress_policy::reading::{is_label, text_of};
use egress_policy::{HostPattern, ProblemKind, Protocol};

/// Reports an error at a field.
pub(super) fn invalid(field: &Field<'_>, text: &str, hint: &str) {
    field.error_with_hint(ProblemKind::Invalid(text.to_owned()), hint);
}

/// Reports an error at a field of an object.
pub(super) fn invalid_at(fields: &Fields<'_>, name: &str, text: &str, hint: &str) {
    fields.error_at(name, ProblemKind::Invalid(text.to_owned()), Some(hint));
}

/// Reads texts that need no look.
pub(super) fn texts(fields: &Fields<'_>, names: &[&'static str]) {
    for name in names {
        fields.read(name, |field| field.text().map(drop));
    }
}

/// Reads lists of texts that need no look.
pub(super) fn lists(fields: &Fields<'_>, names: &[&'static str]) {
    for name in names {
        fields.read(name, |field| Some(field.texts()));
    }
}

/// A port on which somebody listens.
pub(super) struct Port {
    /// Zero is none: then it is a socket in the file system.
    pub(super) number: u64,
    pub(super) protocol: Option<Protocol>,
    pub(super) name: Option<String>,
}

/// Reads a port. A Gateway's has a name, a Sidecar's need not have one.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateServerPort` and
/// `validateSidecarEgressPortBindAndCaptureMode`.
pub(super) fn read_port(field: Field<'_>, named: bool) -> Option<Port> {
    let fields = field.fields()?;
    let number = fields.read("number", |field| field.number(0, 65535));
    let protocol = fields.require("protocol", |field| {
        field.word("protocol", &Protocol::NAMES, Protocol::parse)
    });
    let read = |field: Field<'_>| {
        let name = text_of(field)?;
        if !is_label(&name) {
            let text = format!("invalid port name: {name}");
            invalid(&field, &text, "letters, digits and `-`, at most 63");
        }
        Some(name)
    };
    let name = match named {
        true => fields.require("name", read),
        false => fields.read("name", read),
    };
    fields.read("targetPort", |field| {
        let port = field.number(0, 65535);
        let kind = ProblemKind::NotSupported("`targetPort`".to_owned());
        field.warning(kind, "Istio does not read it any more");
        port
    });
    Some(Port {
        number: number.unwrap_or(0),
        protocol,
        name,
    })
}

/// Checks where somebody listens: an address, or with port zero a path.
pub(super) fn check_bind(fields: &Fields<'_>, port: Option<&Port>) {
    let number = port.map(|port| port.number);
    fields.read("bind", |field| {
        let text = field.text()?;
        match text.strip_prefix("unix://") {
            Some(path) if !path.starts_with(['/', '@']) || path.ends_with('/') => {
                let text = format!("{path} is not an absolute path to a file");
                invalid(&field, &text, "begin it with `/`");
            }
            Some(_) if number.is_some_and(|number| number != 0) => {
                let text = "port number must be 0 for unix domain socket";
                invalid(
                    &field,
                    text,
                    "remove the port's `number`, or give an address",
                );
            }
            Some(_) => {}
            None if text.is_empty() || text.parse::<IpAddr>().is_ok() => {}
            None => {
                let text = format!("{text} is not a valid IP");
                invalid(&field, &text, "give an address, or unix:// and a path");
            }
        }
        Some(())
    });
    let is_path = fields.peek("bind").is_some_and(
        |bind| matches!(bind, egress_policy::node::Node::Text(text) if text.starts_with("unix://")),
    );
    if number == Some(0) && !is_path {
        let hint = "give the port's `number`";
        invalid_at(
            fields,
            "port",
            "port number must be between 1 and 65535",
            hint,
        );
    }
}

/// The words of `tls.mode`.
const MODES: [&str; 6] = [
    "PASSTHROUGH",
    "SIMPLE",
    "MUTUAL",
    "AUTO_PASSTHROUGH",
    "ISTIO_MUTUAL",
    "OPTIONAL_MUTUAL",
];

/// The words of the versions of TLS.
const VERSIONS: [&str; 5] = ["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"];

/// TLS as a server has it.
pub(super) struct ServerTls {
    pub(super) mode: &'static str,
    /// Nothing is ended here: plain requests are told to come with HTTPS.
    pub(super) only_redirects: bool,
}

/// Reads TLS of a server.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateTLSOptions`.
pub(super) fn read_server_tls(field: Field<'_>) -> Option<ServerTls> {
    let fields = field.fields()?;
    let word = |what: &'static str, words: &'static [&'static str]| {
        move |field: Field<'_>| {
            field.word(what, words, |text| {
                words.iter().copied().find(|it| *it == text)
            })
        }
    };
    let redirects = fields.read("httpsRedirect", |field| field.bool());
    let given = fields.has("mode");
    let mode = fields.read("mode", word("mode", &MODES));
    let min = fields.read("minProtocolVersion", word("version", &VERSIONS));
    let max = fields.read("maxProtocolVersion", word("version", &VERSIONS));
    fields.read("insecureSkipVerify", |field| field.bool());
    texts(
        &fields,
        &[
            "caCertCredentialName",
            "caCertificates",
            "caCrl",
            "credentialName",
            "privateKey",
            "serverCertificate",
        ],
    );
    lists(
        &fields,
        &[
            "cipherSuites",
            "credentialNames",
            "ecdhCurves",
            "subjectAltNames",
            "verifyCertificateHash",
            "verifyCertificateSpki",
        ],
    );
    fields.read("tlsCertificates", |list| {
        list.items(|item| {
            if let Some(fields) = item.fields() {
                texts(
                    &fields,
                    &["caCertificates", "privateKey", "serverCertificate"],
                );
            }
        });
        Some(())
    });
    let place = |version: Option<&str>| {
        let version = version.filter(|version| *version != "TLS_AUTO");
        version.and_then(|version| VERSIONS.iter().position(|known| *known == version))
    };
    if let (Some(min), Some(max)) = (place(min), place(max))
        && min > max
    {
        let text = "the lowest version of TLS is above the highest";
        invalid_at(&fields, "minProtocolVersion", text, "swap the two");
    }
    // Of what is not known nothing else is said.
    if given && mode.is_none() {
        return None;
    }
    let tls = ServerTls {
        mode: mode.unwrap_or("PASSTHROUGH"),
        only_redirects: redirects == Some(true) && !given,
    };
    check_certificates(&fields, &tls);
    Some(tls)
}

/// Checks that a server has the certificates that its mode needs.
fn check_certificates(fields: &Fields<'_>, tls: &ServerTls) {
    let own = [
        "serverCertificate",
        "privateKey",
        "caCertificates",
        "credentialName",
        "credentialNames",
        "tlsCertificates",
    ];
    let named = ["credentialName", "credentialNames", "tlsCertificates"];
    let mut given = named.iter().filter(|name| fields.given(name));
    if let (Some(first), Some(second)) = (given.next(), given.next()) {
        let text = format!("only one of `{first}` and `{second}` can be set");
        invalid_at(fields, second, &text, "remove one of the two");
    }
    let mode = tls.mode;
    if mode == "ISTIO_MUTUAL" {
        if let Some(name) = own.iter().find(|name| fields.given(name)) {
            let text = format!("ISTIO_MUTUAL TLS cannot have associated {name}");
            invalid_at(
                fields,
                name,
                &text,
                "remove it: Istio brings the certificates",
            );
        }
        return;
    }
    if !matches!(mode, "SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL") {
        return;
    }
    if named.iter().any(|name| fields.given(name)) {
        return;
    }
    for (name, what) in [
        ("serverCertificate", "a server certificate"),
        ("privateKey", "a private key"),
    ] {
        if !fields.given(name) {
            let text = format!("{mode} TLS requires {what}");
            invalid_at(
                fields,
                name,
                &text,
                "give `credentialName`, or certificate and key",
            );
        }
    }
    if mode != "SIMPLE" && !fields.given("caCertificates") {
        let text = format!("{mode} TLS requires a client CA bundle");
        invalid_at(
            fields,
            "caCertificates",
            &text,
            "name the file with the authorities",
        );
    }
}

/// Checks `namespace/host`. In a Sidecar the namespace must be there, and `~` before it excludes.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validateNamespaceSlashWildcardHostname`.
pub(super) fn check_namespaced(field: Field<'_>, sidecar: bool) {
    let Some(text) = field.text() else { return };
    let form = "write `namespace/host`, with `*` for all and `.` for the own namespace";
    let Some((namespace, host)) = text.split_once('/') else {
        match sidecar {
            true => invalid(&field, "host must be of form namespace/dnsName", form),
            false => check_host(&field, text),
        }
        return;
    };
    if namespace.is_empty() || host.is_empty() {
        let text = "config namespace and dnsName in host entry cannot be empty";
        return invalid(&field, text, form);
    }
    let bare = match sidecar {
        true if namespace != "~" => namespace.strip_prefix('~').unwrap_or(namespace),
        _ => namespace,
    };
    let known = matches!(bare, "*" | ".") || (sidecar && bare == "~");
    if !known && !is_label(bare) {
        let text = format!("invalid namespace value \"{namespace}\"");
        invalid(&field, &text, form);
    }
    check_host(&field, host);
}

fn check_host(field: &Field<'_>, host: &str) {
    if host == "*" || host.parse::<IpAddr>().is_ok() {
        return;
    }
    if let Err(problem) = HostPattern::parse(host) {
        let hint = "it is a name, `*.` and a name, or `*`";
        invalid(field, &problem.to_string(), hint);
    }
}
