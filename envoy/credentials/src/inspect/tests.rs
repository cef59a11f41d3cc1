//! What is reported about certificates that Envoy would take.

use egress_policy::CompileOptions;
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd};
use tempfile::TempDir;

use super::super::tests::{Authority, Pair, write};
use super::*;
use egress_rules as rules;
use egress_rules::Documents;
use egress_rules::Source;

const RULES: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.example.com]
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 443}
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api.example.com
  workloadSelector: {matchLabels: {}}
  trafficPolicy:
    portLevelSettings:
    - port: {number: 80}
      tls:
        mode: MUTUAL
";

/// The day of all these tests, 2026-06-01.
fn today() -> SystemTime {
    UNIX_EPOCH + std::time::Duration::from_secs(1_780_272_000)
}

struct Stage {
    folder: TempDir,
    fields: String,
    more: String,
    folders: bool,
}

impl Stage {
    /// A rule that names files.
    fn files() -> Stage {
        Stage::of(
            "clientCertificate: [DIR]/c/tls.crt\n        privateKey: [DIR]/c/tls.key\n        caCertificates: [DIR]/c/ca.crt",
        )
    }

    /// A rule that names a credential.
    fn credential() -> Stage {
        Stage::of("credentialName: c")
    }

    fn of(fields: &str) -> Stage {
        Stage {
            folder: TempDir::new().unwrap(),
            fields: format!("        {fields}\n"),
            more: String::new(),
            folders: true,
        }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> &Stage {
        use std::os::unix::fs::PermissionsExt;
        write(self.folder.path(), name, text);
        let path = self.folder.path().join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        self
    }

    fn pair(&self, pair: &Pair) -> &Stage {
        self.write("c/tls.crt", &pair.certificate)
            .write("c/tls.key", &pair.key)
    }

    fn report(&self) -> Vec<String> {
        self.diagnostics().iter().map(ToString::to_string).collect()
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        let folder = self.folder.path().display().to_string();
        let text = format!("{RULES}{}{}", self.fields, self.more).replace("[DIR]", &folder);
        let source = Source {
            name: "rules.yaml".to_owned(),
            text,
            mesh: false,
        };
        let mut rules = rules::compile(&[source], &CompileOptions::default()).unwrap();
        let documents: Documents = std::mem::take(&mut rules.credentials);
        let folders = if self.folders {
            vec![self.folder.path().to_owned()]
        } else {
            Vec::new()
        };
        let store = Store::new(folders, documents, "default");
        let mut found = inspect(&rules, &store, &CompileOptions::default(), today());
        for diagnostic in &mut found {
            diagnostic.what = diagnostic.what.replace(&folder, "[DIR]");
            if let Some(hint) = &mut diagnostic.hint {
                *hint = hint.replace(&folder, "[DIR]");
            }
        }
        found
    }
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

#[test]
fn good_ones_are_passed_over_in_silence() {
    let ca = Authority::new("ca");
    let pair = ca.sign_with("client", key(), |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    for stage in [Stage::files(), Stage::credential()] {
        // One authority for both sides, as in Istio's task, and another one for the server.
        for trusted in [&ca.pem, &Authority::new("other").pem] {
            stage.pair(&pair).write("c/ca.crt", trusted);
            assert_eq!(stage.report(), [""; 0]);
        }
    }
    let stage = Stage::credential();
    stage
        .pair(&pair)
        .write("c/ca.crt", &ca.pem)
        .write("c/ca.crl", ca.revoke(2030));
    assert_eq!(stage.report(), [""; 0]);
}

#[test]
fn what_is_missing_is_told_at_its_field() {
    let stage = Stage::files();
    let ca = Authority::new("ca");
    stage.write("c/ca.crt", &ca.pem);
    assert_eq!(
        stage.report(),
        ["\
error: spec.trafficPolicy.portLevelSettings[0].tls.clientCertificate: `[DIR]/c/tls.crt` is not there
  --> rules.yaml:21:28   (DestinationRule default/api)
hint: paths are relative to the folder that egressctl is started in
"]
    );
    stage.pair(&Pair {
        certificate: ca.sign("one").certificate,
        key: ca.sign("two").key,
    });
    assert_eq!(
        stage.report(),
        ["\
error: spec.trafficPolicy.portLevelSettings[0].tls.privateKey: `[DIR]/c/tls.key` is not the key of `[DIR]/c/tls.crt`
  --> rules.yaml:22:21   (DestinationRule default/api)
hint: were both replaced, and are the two files the right way round?
"]
    );
    let mut stage = Stage::credential();
    let report = stage.report();
    assert_eq!(report.len(), 1, "{report:?}");
    assert!(
        report[0].starts_with("error: spec.trafficPolicy.portLevelSettings[0].tls.credentialName: credential `c` is missing: no Secret default/c stands among the rules, no folder `[DIR]/c`"),
        "{report:?}"
    );
    // Without any place to look in, nothing is known to be wrong.
    stage.folders = false;
    let report = stage.report();
    assert_eq!(report.len(), 1, "{report:?}");
    assert!(report[0].starts_with("warning: spec.trafficPolicy.portLevelSettings[0].tls.credentialName: what `credentialName` names was not looked at"), "{report:?}");
}

/// Returns the severities and messages, without where and how.
fn told(stage: &Stage) -> Vec<String> {
    let line =
        |diagnostic: Diagnostic| format!("{}: {}", diagnostic.severity.as_str(), diagnostic.what);
    stage.diagnostics().into_iter().map(line).collect()
}

#[test]
fn dates_and_usages_of_the_client_certificate() {
    let ca = Authority::new("ca");
    let valid = |from: i32, until: (i32, u8, u8)| {
        ca.sign_with("client", key(), |params| {
            params.not_before = date_time_ymd(from, 1, 1);
            params.not_after = date_time_ymd(until.0, until.1, until.2);
        })
    };
    let stage = Stage::credential();
    stage.write("c/ca.crt", &ca.pem);
    for (pair, expected) in [
        (
            valid(2020, (2026, 5, 31)),
            "error: `[DIR]/c/tls.crt` has expired on 2026-05-31",
        ),
        (
            valid(2027, (2028, 1, 1)),
            "error: `[DIR]/c/tls.crt` is not valid before 2027-01-01",
        ),
        (
            valid(2020, (2026, 6, 30)),
            "warning: `[DIR]/c/tls.crt` expires on 2026-06-30, in less than 30 days",
        ),
    ] {
        stage.pair(&pair);
        assert_eq!(told(&stage), [expected]);
    }
    stage.pair(&valid(2020, (2026, 7, 2)));
    assert_eq!(told(&stage), [""; 0]);
    stage.pair(&ca.sign_with("client", key(), |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    }));
    assert_eq!(
        told(&stage),
        ["error: `[DIR]/c/tls.crt` is not for clients: its extended key usage has no clientAuth"]
    );
    let pair = ca.sign("client");
    let other = Authority::new("other");
    stage.pair(&Pair {
        certificate: format!("{}{}", pair.certificate, other.pem),
        key: pair.key.clone(),
    });
    assert_eq!(
        told(&stage),
        ["warning: `[DIR]/c/tls.crt` has a gap: certificate number 2 did not sign number 1"]
    );
    // Of the same name, but another key.
    let twin = Authority::new("ca");
    stage.pair(&Pair {
        certificate: format!("{}{}", pair.certificate, twin.pem),
        key: pair.key,
    });
    assert_eq!(told(&stage).len(), 1);
}

#[test]
fn a_key_that_all_can_read_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let ca = Authority::new("ca");
    let stage = Stage::credential();
    stage.pair(&ca.sign("client")).write("c/ca.crt", &ca.pem);
    let path = stage.folder.path().join("c/tls.key");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        told(&stage),
        ["warning: `[DIR]/c/tls.key` can be read by every user of this machine"]
    );
}

#[test]
fn authorities_that_would_verify_nothing() {
    let (ca, old) = (
        Authority::new("ca"),
        Authority::with("old", |params| params.not_after = date_time_ymd(2025, 1, 1)),
    );
    let stage = Stage::credential();
    stage.pair(&ca.sign("client"));
    stage.write("c/ca.crt", &old.pem);
    assert_eq!(
        told(&stage),
        ["error: `[DIR]/c/ca.crt` has an authority that expired on 2025-01-01: `CN=old`"]
    );
    // While they change, the old one may stand beside the new.
    stage.write("c/ca.crt", format!("{}{}", old.pem, ca.pem));
    assert_eq!(
        told(&stage),
        ["warning: `[DIR]/c/ca.crt` has an authority that expired on 2025-01-01: `CN=old`"]
    );
    stage.write("c/ca.crt", ca.sign("server").certificate);
    assert_eq!(
        told(&stage),
        [
            "warning: `[DIR]/c/ca.crt` has a certificate that is no authority's: `CN=server`, signed by `CN=ca`"
        ]
    );
    // A server's own, which nobody else signed, is all there is to trust.
    let own = Authority::with("own", |params| params.is_ca = IsCa::ExplicitNoCa);
    stage.write("c/ca.crt", &own.pem);
    assert_eq!(told(&stage), [""; 0]);
}

#[test]
fn lists_that_would_refuse_every_server() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let stage = Stage::credential();
    stage.pair(&ca.sign("client"));
    stage
        .write("c/ca.crt", &ca.pem)
        .write("c/ca.crl", ca.revoke(2025));
    assert_eq!(
        told(&stage),
        ["error: `[DIR]/c/ca.crl` has a revocation list that ran out on 2025-01-01: by `CN=ca`"]
    );
    stage.write("c/ca.crl", other.revoke(2030));
    assert_eq!(
        told(&stage),
        [
            "error: `[DIR]/c/ca.crl` has no revocation list by any of the authorities: every server would be refused"
        ]
    );
    stage.write("c/ca.crt", format!("{}{}", ca.pem, other.pem));
    assert_eq!(
        told(&stage),
        [
            "warning: `[DIR]/c/ca.crl` has no revocation list by `CN=ca`: servers that it signed are refused"
        ]
    );
    stage.write(
        "c/ca.crl",
        format!("{}{}", other.revoke(2030), ca.revoke(2030)),
    );
    assert_eq!(told(&stage), [""; 0]);
    let twin = Authority::new("ca");
    stage
        .write("c/ca.crt", &ca.pem)
        .write("c/ca.crl", twin.revoke(2030));
    assert_eq!(
        told(&stage),
        [
            "error: `[DIR]/c/ca.crl` has a revocation list that `CN=ca` did not sign, though it names it"
        ]
    );
    let mute = ca.again("ca", |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign]
    });
    stage
        .write("c/ca.crt", mute)
        .write("c/ca.crl", ca.revoke(2030));
    assert_eq!(
        told(&stage),
        [
            "error: `[DIR]/c/ca.crl` has a revocation list by `CN=ca`, whose key usage has no cRLSign"
        ]
    );
}

#[test]
fn a_secret_among_the_rules_is_told_of_where_it_stands() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let ca = Authority::new("ca");
    let (one, two) = (ca.sign("one"), ca.sign("two"));
    let mut stage = Stage::credential();
    stage.folders = false;
    stage.more = format!(
        "---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Secret\n  metadata: {{name: c}}\n  data:\n    tls.crt: {}\n    tls.key: {}\n    ca.crt: {}\n- apiVersion: v1\n  kind: Secret\n  metadata: {{name: spare, namespace: other}}\n  stringData: {{ca.crt: hunter2}}\n",
        STANDARD.encode(&one.certificate),
        STANDARD.encode(&two.key),
        STANDARD.encode(&ca.pem)
    );
    assert_eq!(
        stage.report(),
        [
            "\
error: items[0].data.tls.key: `tls.key` of Secret default/c is not the key of `tls.crt` of Secret default/c
  --> rules.yaml:31:14   (Secret default/c)
hint: were both replaced, and are the two files the right way round?
",
            "\
warning: no rule needs this Secret
  --> rules.yaml:33:3   (Secret other/spare)
hint: the proxy is in namespace `default` and reads none of another
"
        ]
    );
    stage.more =
        "---\napiVersion: v1\nkind: Secret\nmetadata: {name: c}\ndata: {token: aGk=}\n".to_owned();
    let report = stage.report();
    assert_eq!(report.len(), 2, "{report:?}");
    assert!(
        report[0].starts_with("error: data: Secret default/c has neither `tls.crt` and `tls.key` nor `cert` and `key`\n  --> rules.yaml:26:7"),
        "{report:?}"
    );
    assert!(
        report[1].contains("neither `ca.crt` nor `cacert`"),
        "{report:?}"
    );
}

#[test]
fn nothing_of_a_key_gets_into_what_is_said() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let ca = Authority::new("ca");
    let (one, two) = (ca.sign("one"), ca.sign("two"));
    let key_lines: Vec<String> = two
        .key
        .lines()
        .filter(|line| !line.starts_with('-'))
        .map(|line| line.trim().to_owned())
        .collect();
    let whole = STANDARD.encode(&two.key);
    let secret = |certificate: &str, key: &str| {
        let data = format!(
            "data: {{tls.crt: {certificate}, tls.key: {key}, ca.crt: {}}}",
            STANDARD.encode(&ca.pem)
        );
        format!("---\napiVersion: v1\nkind: Secret\nmetadata: {{name: c}}\n{data}\n")
    };
    let certificate = STANDARD.encode(&one.certificate);
    let good = STANDARD.encode(&two.certificate);
    let mut texts: Vec<String> = Vec::new();
    for more in [
        secret(&certificate, &whole),
        secret(&good, &whole),
        // Broken base64, PEM in the wrong place, a key where the certificate should be, half of a key.
        secret(&good, &format!("'{whole}!'")),
        secret(&good, &format!("{:?}", two.key)),
        secret(&whole, &whole),
        secret(&good, &whole[..whole.len() / 2]),
        secret(
            &good,
            &STANDARD.encode(&two.key.as_bytes()[..two.key.len() / 2]),
        ),
        secret(
            &good,
            &STANDARD.encode(two.key.replace("-----\n", "----\n")),
        ),
        secret(
            &good,
            &STANDARD.encode(two.key.replace("-----\r\n", "----\r\n")),
        ),
        secret(&good, &format!("[{whole}]")),
        secret(&good, &whole).replace("kind: Secret", "kind: Secrets"),
        secret(&good, &whole).replace("apiVersion: v1", "apiVersion: v2"),
        secret(&good, &whole).replace("metadata: {name: c}", "metadata: {}"),
        secret(&good, &whole) + &secret(&good, &whole),
        secret(&good, &whole).replace("data:", "stringData:"),
    ] {
        for file in [None, Some(whole.as_str()), Some(two.key.as_str())] {
            let stage = Stage::credential();
            if let Some(file) = file {
                stage
                    .write("c/tls.key", file)
                    .write("c/tls.crt", file)
                    .write("c/ca.crt", file);
            }
            let folder = stage.folder.path().to_owned();
            let source = Source {
                name: "rules.yaml".to_owned(),
                text: format!("{RULES}{}{more}", stage.fields),
                mesh: false,
            };
            texts.push(format!("{source:?}"));
            match rules::compile(&[source], &CompileOptions::default()) {
                Err(report) => texts.push(format!("{report} {report:?}")),
                Ok(mut rules) => {
                    texts.push(format!(
                        "{rules:?} {:?} {}",
                        rules.resources(),
                        rules.warnings
                    ));
                    let documents = std::mem::take(&mut rules.credentials);
                    texts.push(format!("{documents:?}"));
                    let store = Store::new(vec![folder], documents.clone(), "default");
                    texts.push(format!("{store:?}"));
                    for store in [&store, &Store::new(Vec::new(), documents, "default")] {
                        for diagnostic in
                            inspect(&rules, store, &CompileOptions::default(), today())
                        {
                            texts.push(format!(
                                "{diagnostic} {diagnostic:?} {}",
                                diagnostic.to_json()
                            ));
                        }
                        for need in SecretRequest::of(&rules.table) {
                            let loaded = store.load(&need);
                            texts.push(format!("{need:?} {loaded:?}"));
                            texts.extend(loaded.err().map(|missing| missing.to_string()));
                        }
                    }
                }
            }
        }
    }
    assert!(texts.len() > 100, "{}", texts.len());
    for text in &texts {
        for line in &key_lines {
            assert!(!text.contains(line.as_str()), "{text}");
            // Nor the base64 of its base64, wherever it begins.
            for from in 0..3 {
                let inner = STANDARD.encode(&line.as_bytes()[from..]);
                assert!(!text.contains(&inner[..inner.len() - 4]), "{text}");
            }
        }
        assert!(!text.contains("PRIVATE KEY-----\\n"), "{text}");
        for piece in whole.as_bytes().chunks(24) {
            let piece = std::str::from_utf8(piece).unwrap();
            assert!(piece.len() < 24 || !text.contains(piece), "{text}");
        }
    }
}
