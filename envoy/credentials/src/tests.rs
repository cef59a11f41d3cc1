//! What a store reads, and what it refuses, with keys made for each test.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use egress_policy::{CompileOptions, Identity, Proxy, Trust};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SerialNumber,
    date_time_ymd,
};
use tempfile::TempDir;

use super::*;
use egress_render::xds::SecretRequest;
use egress_rules as rules;
use egress_rules::{Documents, Source};

/// An authority, and what it signs.
pub(super) struct Authority {
    pub(super) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Authority {
        Authority::with(name, |_| {})
    }

    pub(super) fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Authority {
        let (params, key) = (
            Authority::params(name, change),
            KeyPair::generate().unwrap(),
        );
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// Returns another certificate of the same name and key.
    pub(super) fn again(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
        let params = Authority::params(name, change);
        params.self_signed(self.issuer.key()).unwrap().pem()
    }

    fn params(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params);
        params
    }

    pub(super) fn sign(&self, name: &str) -> Pair {
        self.sign_with(name, KeyPair::generate().unwrap(), |_| {})
    }

    pub(super) fn sign_with(
        &self,
        name: &str,
        key: KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    pub(super) fn revoke(&self, next_update_year: i32) -> String {
        CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(next_update_year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .unwrap()
        .pem()
        .unwrap()
    }
}

pub(super) fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn pair_of(name: &str) -> SecretRequest {
    SecretRequest::Certificate(Identity::Credential(name.to_owned()))
}

fn trust_of(name: &str) -> SecretRequest {
    SecretRequest::Validation {
        trust: Trust::Credential(name.to_owned()),
        crl: None,
    }
}

fn in_folder(stage: &TempDir) -> Store {
    Store::new(
        vec![stage.path().to_owned()],
        Documents::default(),
        "default",
    )
}

fn refused(store: &Store, need: &SecretRequest) -> String {
    match store.load(need) {
        Ok(material) => panic!("{material:?}"),
        Err(missing) => missing.to_string(),
    }
}

/// Returns the documents of a text, for a proxy in `default`.
fn documents(text: &str) -> Documents {
    let entry = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [a.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}\n";
    let source = Source {
        name: "rules.yaml".to_owned(),
        text: format!("{text}\n{entry}"),
        mesh: false,
    };
    let options = CompileOptions {
        proxy: Proxy {
            namespace: "default".to_owned(),
            ..Proxy::default()
        },
        ..CompileOptions::default()
    };
    rules::compile(&[source], &options).unwrap().credentials
}

#[test]
fn a_credential_is_read_from_its_folder() {
    let (stage, ca) = (TempDir::new().unwrap(), Authority::new("ca"));
    let (tls, generic) = (ca.sign("tls"), ca.sign("generic"));
    let at = stage.path();
    write(at, "client/tls.crt", &tls.certificate);
    write(at, "client/tls.key", &tls.key);
    write(at, "client/ca.crt", &ca.pem);
    let store = in_folder(&stage);
    let Material::Certificate { chain, key } = store.load(&pair_of("client")).unwrap() else {
        panic!("not a certificate")
    };
    let same = |pem: &[u8], text: &str| {
        String::from_utf8_lossy(pem).replace('\r', "") == text.replace('\r', "")
    };
    assert!(same(&chain, &tls.certificate) && same(key.pem(), &tls.key));
    let Material::Validation { ca: trusted, crl } = store.load(&trust_of("client")).unwrap() else {
        panic!("no authorities")
    };
    assert!(same(&trusted, &ca.pem) && crl.is_none());

    // The generic names win, but only when both hold something.
    write(at, "client/cert", &generic.certificate);
    write(at, "client/key", "");
    assert!(
        matches!(store.load(&pair_of("client")), Ok(Material::Certificate { chain, .. }) if same(&chain, &tls.certificate))
    );
    write(at, "client/key", &generic.key);
    assert!(
        matches!(store.load(&pair_of("kubernetes://client")), Ok(Material::Certificate { chain, .. }) if same(&chain, &generic.certificate))
    );
}

#[test]
fn authorities_of_their_own_win_and_do_not_fall_back() {
    let (stage, ca, other) = (
        TempDir::new().unwrap(),
        Authority::new("ca"),
        Authority::new("other"),
    );
    let at = stage.path();
    write(at, "client/ca.crt", &ca.pem);
    write(at, "client-cacert/cacert", &other.pem);
    let store = in_folder(&stage);
    assert_eq!(
        store.load(&trust_of("client")),
        Ok(Material::Validation {
            ca: other.pem.replace('\r', "").into_bytes(),
            crl: None
        })
    );
    fs::remove_file(at.join("client-cacert/cacert")).unwrap();
    let text = refused(&store, &trust_of("client"));
    assert!(
        text.contains("client-cacert` has neither `ca.crt` nor `cacert`"),
        "{text}"
    );
}

#[test]
fn a_config_map_holds_authorities_only() {
    let (stage, ca) = (TempDir::new().unwrap(), Authority::new("ca"));
    write(stage.path(), "default/roots/ca.crt", &ca.pem);
    let store = in_folder(&stage);
    assert!(store.load(&trust_of("configmap://default/roots")).is_ok());
    assert!(refused(&store, &pair_of("configmap://default/roots")).contains("holds no key"));
    let indented: String = ca
        .pem
        .lines()
        .map(|line| format!("    {}\n", line.trim_end()))
        .collect();
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: more}}\ndata:\n  cacert: |\n{indented}"
    );
    let store = Store::new(Vec::new(), documents(&text), "default");
    assert!(store.load(&trust_of("configmap://default/more")).is_ok());
    assert!(refused(&store, &trust_of("more")).contains("no Secret default/more"));
}

#[test]
fn secrets_are_read_as_kubectl_prints_them() {
    let ca = Authority::new("ca");
    let pair = ca.sign("client");
    let mut wrapped = String::new();
    for line in STANDARD.encode(&pair.key).as_bytes().chunks(50) {
        wrapped += &format!("        {}\n", std::str::from_utf8(line).unwrap());
    }
    let indented: String = ca
        .pem
        .lines()
        .map(|line| format!("      {}\n", line.trim_end()))
        .collect();
    let text = format!(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Secret\n  type: kubernetes.io/tls\n  metadata: {{name: client}}\n  data:\n    tls.crt: {}\n    tls.key: |\n{wrapped}  stringData:\n    ca.crt: |\n{indented}",
        STANDARD.encode(&pair.certificate),
    );
    let store = Store::new(Vec::new(), documents(&text), "default");
    assert!(matches!(
        store.load(&pair_of("client")),
        Ok(Material::Certificate { .. })
    ));
    assert!(matches!(
        store.load(&trust_of("client")),
        Ok(Material::Validation { .. })
    ));
    let elsewhere = Store::new(Vec::new(), documents(&text), "other");
    let text = refused(&elsewhere, &pair_of("client"));
    assert!(
        text.contains("Secret default/client is in another namespace")
            && text.contains("--namespace default"),
        "{text}"
    );
}

#[test]
fn two_places_for_one_credential_are_named() {
    let (stage, ca) = (TempDir::new().unwrap(), Authority::new("ca"));
    write(stage.path(), "client/ca.crt", &ca.pem);
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: client}}\ndata: {{ca.crt: {}}}\n",
        STANDARD.encode(&ca.pem)
    );
    let store = Store::new(vec![stage.path().to_owned()], documents(&text), "default");
    let text = refused(&store, &trust_of("client"));
    let folder = stage.path().join("client");
    assert_eq!(
        text,
        format!(
            "credential `client` is given twice: Secret default/client (rules.yaml:1) and the folder `{}`; remove one of the two",
            folder.display()
        )
    );
}

#[test]
fn what_envoy_would_not_take_is_refused() {
    let (stage, ca) = (TempDir::new().unwrap(), Authority::new("ca"));
    let (one, two) = (ca.sign("one"), ca.sign("two"));
    let at = stage.path();
    let store = in_folder(&stage);
    let der = STANDARD
        .decode(
            one.certificate
                .lines()
                .filter(|line| !line.starts_with('-'))
                .collect::<String>(),
        )
        .unwrap();
    let half = &one.certificate[..one.certificate.len() / 2];
    let chain = format!("{}{}", ca.pem, one.certificate);
    let bom = format!("\u{feff}{}", one.certificate);
    let joined = format!("{}{}", one.certificate.trim_end(), ca.pem);
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIIB\n-----END RSA PRIVATE KEY-----\n";
    let junk = one.certificate.replace("MII", "!!!");
    let not_der = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let trusted = one
        .certificate
        .replace(" CERTIFICATE", " TRUSTED CERTIFICATE");
    let indented = one.certificate.replace("-----BEGIN", "  -----BEGIN");
    let c = one.certificate.as_bytes();
    let k = one.key.as_bytes();
    for (certificate, key, expected) in [
        (&b""[..], k, "tls.crt` is empty"),
        (b" \n\r\n", k, "tls.crt` is empty"),
        (c, b"", "tls.key` is empty"),
        (c, two.key.as_bytes(), "tls.key` is not the key of"),
        (&der, k, "tls.crt` is binary (DER or PKCS#12)"),
        (&[0, 159, 146, 150], k, "tls.crt` is not PEM"),
        (bom.as_bytes(), k, "without a byte order mark"),
        (indented.as_bytes(), k, "tls.crt` is not PEM"),
        (half.as_bytes(), k, "the last section does not end"),
        (joined.as_bytes(), k, "is broken PEM"),
        (junk.as_bytes(), k, "a section is not base64"),
        (not_der.as_bytes(), k, "number 1, that is no certificate"),
        (trusted.as_bytes(), k, "section `TRUSTED CERTIFICATE`"),
        (k, k, "tls.crt` holds no certificate"),
        (c, c, "tls.key` holds no private key"),
        (c, encrypted.as_bytes(), "decrypt it"),
        (c, legacy.as_bytes(), "decrypt it"),
        (
            chain.as_bytes(),
            k,
            "wrong order: certificate number 2 is the key's",
        ),
    ] {
        write(at, "client/tls.crt", certificate);
        write(at, "client/tls.key", key);
        let text = refused(&store, &pair_of("client"));
        assert!(text.contains(expected), "{expected}: {text}");
        assert!(!text.contains('\n'), "{text}");
    }
    // Each of these Envoy takes: a text before it, the key beside it, line ends of another system.
    for (certificate, key) in [
        (
            format!("subject=/CN=one\n{}", one.certificate),
            one.key.clone(),
        ),
        (format!("{}{}", one.certificate, one.key), one.key.clone()),
        (
            one.certificate.replace('\r', "").replace('\n', "\r\n"),
            one.key.replace('\r', "").replace('\n', "\r\n"),
        ),
        (
            one.certificate.trim_end().to_owned(),
            one.key.trim_end().to_owned(),
        ),
        (format!("{}{}", one.certificate, ca.pem), one.key.clone()),
    ] {
        write(at, "client/tls.crt", &certificate);
        write(at, "client/tls.key", &key);
        let loaded = store.load(&pair_of("client")).unwrap();
        let Material::Certificate { chain, .. } = loaded else {
            panic!("not a certificate")
        };
        assert!(!String::from_utf8(chain).unwrap().contains("PRIVATE"));
    }
}

#[test]
fn files_that_are_none_are_refused() {
    let (stage, ca) = (TempDir::new().unwrap(), Authority::new("ca"));
    let at = stage.path();
    let store = in_folder(&stage);
    assert!(refused(&store, &pair_of("client")).starts_with("credential `client` is missing: no Secret default/client stands among the rules, no folder `"));
    write(at, "client/tls.crt", vec![b'a'; 10 << 20]);
    write(at, "client/tls.key", "");
    assert!(refused(&store, &pair_of("client")).contains("is larger than 1 MiB"));
    fs::remove_file(at.join("client/tls.crt")).unwrap();
    assert!(refused(&store, &pair_of("client")).contains("has `tls.key` and no `tls.crt`"));
    fs::create_dir(at.join("client/tls.crt")).unwrap();
    assert!(refused(&store, &pair_of("client")).contains("tls.crt` is a folder, not a file"));
    write(at, "file", "");
    assert!(refused(&store, &pair_of("file")).contains("file` is not a folder"));
    symlink("nowhere", at.join("client/ca.crt")).unwrap();
    assert!(refused(&store, &trust_of("client")).contains("ca.crt` is not there"));
    for name in ["../x", "/etc/ssl", "..", "a/b", "kubernetes://other/client"] {
        assert!(
            refused(&store, &pair_of(name)).starts_with("credential `"),
            "{name}"
        );
    }
    let need = SecretRequest::Validation {
        trust: Trust::File(at.join("ca.pem").display().to_string()),
        crl: Some(at.join("crl.pem").display().to_string()),
    };
    write(at, "ca.pem", &ca.pem);
    write(at, "crl.pem", &ca.pem);
    assert!(refused(&store, &need).contains("crl.pem` holds no revocation list"));
    write(at, "crl.pem", ca.revoke(2040));
    assert!(matches!(
        store.load(&need),
        Ok(Material::Validation { crl: Some(_), .. })
    ));
}

#[test]
fn keys_of_each_kind_belong_to_their_certificates() {
    let (stage, ca) = (TempDir::new().unwrap(), Authority::new("ca"));
    let store = in_folder(&stage);
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = || KeyPair::generate_for(algorithm).unwrap();
        let (one, two) = (
            ca.sign_with("one", key(), |_| {}),
            ca.sign_with("two", key(), |_| {}),
        );
        write(stage.path(), "client/tls.crt", &one.certificate);
        write(stage.path(), "client/tls.key", &one.key);
        assert!(store.load(&pair_of("client")).is_ok(), "{algorithm:?}");
        write(stage.path(), "client/tls.key", &two.key);
        assert!(refused(&store, &pair_of("client")).contains("is not the key of"));
    }
}

#[test]
fn a_swap_of_links_is_watched_and_read_whole() {
    let (stage, ca) = (TempDir::new().unwrap(), Authority::new("ca"));
    let at = stage.path().canonicalize().unwrap();
    let store = Store::new(vec![at.clone()], Documents::default(), "default");
    // Not there yet: the folder in which it would appear.
    assert_eq!(store.watched(&pair_of("client")), std::slice::from_ref(&at));
    for version in ["..v1", "..v2"] {
        let pair = ca.sign(version);
        write(&at, &format!("client/{version}/tls.crt"), &pair.certificate);
        write(&at, &format!("client/{version}/tls.key"), &pair.key);
    }
    symlink("..v1", at.join("client/..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), at.join("client").join(name)).unwrap();
    }
    let watched = store.watched(&pair_of("client"));
    assert_eq!(
        watched,
        [at.clone(), at.join("client"), at.join("client/..v1")]
    );
    let before = store.load(&pair_of("client")).unwrap();
    symlink("..v2", at.join("client/..next")).unwrap();
    fs::rename(at.join("client/..next"), at.join("client/..data")).unwrap();
    assert_ne!(store.load(&pair_of("client")).unwrap(), before);
}

#[test]
fn a_pair_that_is_swapped_all_the_time_is_never_mixed() {
    let (stage, ca) = (TempDir::new().unwrap(), Authority::new("ca"));
    let at = stage.path().to_owned();
    for version in ["..v0", "..v1"] {
        let pair = ca.sign(version);
        write(&at, &format!("client/{version}/tls.crt"), &pair.certificate);
        write(&at, &format!("client/{version}/tls.key"), &pair.key);
    }
    symlink("..v0", at.join("client/..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), at.join("client").join(name)).unwrap();
    }
    let swaps = thread::spawn({
        let client = at.join("client");
        move || {
            for turn in 1..2000 {
                symlink(format!("..v{}", turn % 2), client.join("..next")).unwrap();
                fs::rename(client.join("..next"), client.join("..data")).unwrap();
            }
        }
    });
    let store = in_folder(&stage);
    let mut loaded = 0;
    while !swaps.is_finished() {
        // Mixed pairs are refused, for the caller to keep what it has.
        loaded += usize::from(store.load(&pair_of("client")).is_ok());
    }
    swaps.join().unwrap();
    assert!(store.load(&pair_of("client")).is_ok(), "{loaded}");
}
