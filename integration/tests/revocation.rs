//! A list of revoked certificates that does not say that all is well ends in a refusal.

mod common;

use anyhow::{Result, ensure};

use egress_integration::{
    pki::{Leaf, Validity},
    probe,
    stand_in::{StandIn, StandInConfig},
};

use common::{Trusted, assert_originated, entry, log_of, only, route, rule};

/// What can be wrong with a list, and what Envoy says then of the server, whose chain has an
/// intermediate authority; nothing where it is reached.
const CASES: [(&str, Option<&str>); 8] = [
    ("good.example", None),
    ("revoked.example", Some("certificate_revoked")),
    ("revoked-authority.example", Some("certificate_revoked")),
    ("missing.example", Some("unable_to_get_certificate_CRL")),
    (
        "missing-root.example",
        Some("unable_to_get_certificate_CRL"),
    ),
    ("expired.example", Some("CRL_has_expired")),
    ("not-yet-valid.example", Some("CRL_is_not_yet_valid")),
    // An authority of the same name signed it.
    ("forged.example", Some("unable_to_get_certificate_CRL")),
];

#[tokio::test]
async fn a_list_has_to_be_there_and_good_for_each_authority() -> Result<()> {
    let trusted = Trusted::new()?;
    let root = &trusted.ca;
    let ca = root.intermediate("the servers' CA")?;
    let forger = root.intermediate("the servers' CA")?;
    let other = ca.issue(&Leaf::for_names(["other.example"]))?;

    let mut site = StandInConfig::new(other);
    let mut rules = String::new();
    for (host, _) in CASES {
        let issued = ca.issue(&Leaf::for_names([host]))?;
        let good = Validity::Valid;
        let (of_root, of_ca) = (root.crl(&[], good)?, ca.crl(&[], good)?);
        let lists = match host {
            "revoked.example" => of_root + &ca.crl(&[issued.serial()], good)?,
            "revoked-authority.example" => root.crl(&[ca.serial()], good)? + &of_ca,
            "missing.example" => of_root,
            "missing-root.example" => of_ca,
            "expired.example" => of_root + &ca.crl(&[], Validity::Expired)?,
            "not-yet-valid.example" => of_root + &ca.crl(&[], Validity::NotYetValid)?,
            "forged.example" => of_root + &forger.crl(&[], good)?,
            _ => of_root + &of_ca,
        };
        let lists = trusted.file(&format!("{host}.crl"), &lists)?;
        let tls = format!(
            "{{tls: {{mode: SIMPLE, caCertificates: \"{}\", caCrl: \"{}\"}}}}",
            trusted.bundle().display(),
            lists.display()
        );
        rules += &entry(host, 443);
        rules += &rule(host, &tls);
        site = site.with_certificate(issued);
    }
    let site = StandIn::start(site).await?;
    let mut proxy = trusted.egressctl(&rules).port(80, 0);
    for (host, _) in CASES {
        proxy = proxy.connect_to(&route(host, 443, site.tls_addr()));
    }
    let proxy = proxy.start().await?;

    for (host, refused) in CASES {
        let path = format!("/{host}");
        let answer = probe::get(proxy.listener(80)?, host, &path).await?;
        let log = log_of(&proxy, &path).await?;
        let why = log.istio("upstream_transport_failure_reason");
        match refused {
            None => {
                assert_eq!(answer.status, 200, "{host}: {why}");
                assert_originated(&only(&site)?, host, host);
            }
            Some(text) => {
                assert_eq!(answer.status, 503, "{host}");
                ensure!(why.contains(text), "{host}: `{text}` is not in `{why}`");
                ensure!(site.seen().is_empty(), "{host}: {:?}", site.seen());
            }
        }
    }
    Ok(())
}
