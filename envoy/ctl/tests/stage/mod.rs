//! The certificates that golden cases name, made anew for each run: their dates and names are always the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber,
    date_time_ymd,
};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str, until: i32) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// Returns a certificate and its key.
    fn sign(&self, until: i32, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec!["client.example.com".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "client");
        params.extended_key_usages = vec![usage];
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        (pem, key.serialize_pem())
    }

    fn revoke(&self, until: i32) -> String {
        CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
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

/// Writes a system's bundle, `trusted.pem`, and folders of credentials, `creds` and `more`.
pub(crate) fn set(stage: &Path) {
    let far = 2090;
    let (ca, old) = (Authority::new("ca", far), Authority::new("old", 2021));
    let client = || ca.sign(far, ExtendedKeyUsagePurpose::ClientAuth);
    let write = |name: &str, text: &str| {
        let path = stage.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let credential = |name: &str, (certificate, key): (String, String), ca: &str| {
        write(&format!("creds/{name}/tls.crt"), &certificate);
        write(&format!("creds/{name}/tls.key"), &key);
        write(&format!("creds/{name}/ca.crt"), ca);
    };
    write("trusted.pem", &ca.pem);
    credential("good", client(), &ca.pem);
    write("creds/roots/cacert", &ca.pem);
    credential("list", client(), &ca.pem);
    write("creds/list/ca.crl", &ca.revoke(far));

    fs::create_dir_all(stage.join("creds/empty")).unwrap();
    let expired = ca.sign(2021, ExtendedKeyUsagePurpose::ClientAuth);
    credential("expired", expired, &ca.pem);
    credential("mismatch", (client().0, client().1), &ca.pem);
    let encrypted = client().1.replace("PRIVATE", "ENCRYPTED PRIVATE");
    credential("encrypted", (client().0, encrypted), &ca.pem);
    let (certificate, key) = client();
    credential("der", (certificate, "0\u{1}".to_owned()), &ca.pem);
    fs::write(stage.join("creds/der/tls.key"), [0x30, 0x82, 1, 2]).unwrap();
    let (certificate, own) = client();
    credential(
        "wrong-order",
        (format!("{}{certificate}", ca.pem), own),
        &ca.pem,
    );
    let server = ca.sign(far, ExtendedKeyUsagePurpose::ServerAuth);
    let leaf = server.0.clone();
    credential("server-usage", server, &ca.pem);
    write("creds/no-key/tls.crt", &client().0);
    write("creds/no-key/ca.crt", &ca.pem);
    write("creds/leaf/ca.crt", &leaf);
    write("creds/old-authority/ca.crt", &old.pem);
    write("creds/old-list/ca.crt", &ca.pem);
    write("creds/old-list/ca.crl", &ca.revoke(2021));
    write("creds/no-list/ca.crt", &ca.pem);
    write("creds/no-list/ca.crl", &old.revoke(far));
    credential("twice", client(), &ca.pem);
    write("more/twice/tls.key", &key);
}
