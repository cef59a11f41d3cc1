//! A name in a certificate counts only as what it is: a DNS name as a DNS name, an address as an address, a URI as a URI.

mod common;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use egress_integration::{
    egressctl::{Builder, Running},
    envoy::{self, EnvoyProcess},
    pki::{Leaf, Limit, Name},
    probe::{self, Answer},
    stand_in::{Listener, StandIn},
    tls_server::{TlsServer, TlsServerConfig},
};

use common::{
    HOST, MANAGER, SIMPLE, SOON, Trusted, assert_originated, by_dns, dns, entry, entry_with, only,
    originated, rendered, route, rule, site,
};

/// Makes a name of one type.
type Kind = fn(String) -> Name;

/// The types of names that read like a host and are none, as functions of the host.
const NOT_DNS: [(&str, Kind); 3] = [
    ("uri", Name::Uri),
    ("email", Name::Email),
    ("other", Name::Other),
];

/// A certificate that is good but for the host's name, which it has in another type.
fn odd(host: &str, kind: Kind) -> Leaf {
    Leaf::for_names(["x.good.example"]).and(kind(host.to_owned()))
}

/// The reason for a name that does not fit, which Envoy 1.36 does not tell.
async fn mismatch() -> Result<&'static str> {
    Ok(match envoy::version().await?.starts_with("1.36") {
        true => "not_verified",
        false => "name_mismatch",
    })
}

async fn assert_mismatch(answer: &Answer, what: &str) -> Result<()> {
    let told = format!("egress_{}: ", mismatch().await?);
    ensure!(
        answer.status == 503 && answer.body.starts_with(&told),
        "{what}: {answer:?}"
    );
    Ok(())
}

/// Proves that a site heard TLS with a name, and no request.
async fn assert_no_request(site: &StandIn, what: &str) -> Result<()> {
    site.wait_for_failed_handshakes(1, SOON).await?;
    assert!(site.seen().is_empty(), "{what}: {:?}", site.seen());
    let plain = site.counts(Listener::Plain).connections;
    assert_eq!(plain, 0, "{what}: plaintext arrived");
    let tls = site.counts(Listener::Tls);
    let mut failed = tls.failed_handshakes.iter();
    assert!(failed.all(|failed| failed.sni.is_some()), "{what}: {tls:?}");
    Ok(())
}

/// [`HOST`] with more of its `tls`.
fn with_tls(more: &str) -> String {
    entry(HOST, 443) + &rule(HOST, &format!("{{tls: {{mode: SIMPLE, {more}}}}}"))
}

#[tokio::test]
async fn a_host_is_no_name_of_another_type() -> Result<()> {
    let trusted = Trusted::new()?;
    let (balanced, sni) = (
        "{tls: {mode: SIMPLE}, loadBalancer: {simple: ROUND_ROBIN}}",
        "{tls: {mode: SIMPLE, sni: SNI}}",
    );
    for authority in ["REWRITE", "PRESERVE"] {
        let mut rules = String::new();
        let mut builder = trusted.egressctl("").port(80, 0);
        let mut sites = Vec::new();
        for (kind, name) in NOT_DNS {
            for (way, policy) in [("shared", SIMPLE), ("own", balanced), ("sni", sni)] {
                let host = format!("{kind}.{way}.example");
                let leaf = odd(&host, name);
                let site = site(&trusted.ca, &leaf).await?;
                rules += &(entry(&host, 443) + &rule(&host, &policy.replace("SNI", &host)));
                builder = builder.connect_to(&route(&host, 443, site.tls_addr()));
                sites.push((host, site));
            }
        }
        let builder = builder.rules_text(rules).arg("--authority").arg(authority);
        let proxy = builder.start().await?;
        for (host, site) in sites {
            for written in [host.clone(), format!("{}.:80", host.to_uppercase())] {
                let answer = probe::get(proxy.listener(80)?, &written, "/").await?;
                assert_mismatch(&answer, &format!("{written} {authority}")).await?;
            }
            assert_no_request(&site, &host).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_url_of_the_forward_proxy_has_the_same_names() -> Result<()> {
    let trusted = Trusted::new()?;
    for (kind, name) in NOT_DNS {
        let site = site(&trusted.ca, &odd(HOST, name)).await?;
        let builder = trusted.egressctl(&originated(HOST, 443));
        let builder = builder.arg("--forward-proxy").arg("127.0.0.1:0");
        let to = route(HOST, 443, site.tls_addr());
        let proxy = builder.connect_to(&to).start().await?;
        let mut stream = TcpStream::connect(proxy.forward_proxy()?).await?;
        let request = format!("GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let head = common::head(&mut stream).await?;
        ensure!(head.starts_with("HTTP/1.1 503 "), "{kind}: {head}");
        assert_no_request(&site, kind).await?;
    }
    Ok(())
}

#[tokio::test]
async fn bytes_go_to_no_server_whose_name_is_of_another_type() -> Result<()> {
    const PORT: u16 = 6379;
    let trusted = Trusted::new()?;
    let spec = format!("resolution: DNS, ports: [{{number: {PORT}, name: tcp, protocol: TCP}}]");
    let rules = entry_with(HOST, &spec) + &rule(HOST, SIMPLE);
    let leaves = NOT_DNS.map(|(kind, name)| (kind, odd(HOST, name), false));
    for (kind, leaf, right) in leaves
        .into_iter()
        .chain([("dns", Leaf::for_names([HOST]), true)])
    {
        let certificate = trusted.ca.issue(&leaf)?;
        let server = TlsServer::start(&certificate, TlsServerConfig::default()).await?;
        let builder = trusted.egressctl(&rules).port(PORT, 0);
        let to = route(HOST, PORT, server.addr());
        let proxy = builder.connect_to(&to).start().await?;
        let mut stream = TcpStream::connect(proxy.listener(PORT)?).await?;
        stream.write_all(b"PING\r\n").await?;
        stream.shutdown().await?;
        let mut said = Vec::new();
        let _ended = timeout(SOON, stream.read_to_end(&mut said)).await?;
        assert_eq!(!said.is_empty(), right, "{kind}: {said:?}");
        assert_eq!(server.heard().len(), usize::from(right), "{kind}");
        if !right {
            let wanted = format!("reason={} ", mismatch().await?);
            proxy
                .wait_for_log(|line| line.contains(&wanted), SOON)
                .await?;
        }
    }
    Ok(())
}

/// A wildcard whose servers are here, on the site's port.
fn wildcard(domain: &str, policy: &str, site: &StandIn) -> String {
    let host = format!("*.{domain}");
    let spec = format!(
        "resolution: DYNAMIC_DNS, location: MESH_INTERNAL, \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {}}}]",
        site.tls_addr().port()
    );
    entry_with(&host, &spec) + &rule(&host, policy)
}

#[tokio::test]
async fn below_a_wildcard_names_have_their_types_too() -> Result<()> {
    let (trusted, dns) = (Trusted::new()?, dns().await?);
    let named = "{tls: {mode: SIMPLE, subjectAltNames: [front.example, spiffe://a/b]}}";
    let fronted = "{tls: {mode: SIMPLE, sni: front.example}}";
    let uri = |name: &str| Name::Uri(name.to_owned());
    // What the certificate has: names, of which HOST is the host, and one of another type.
    let mut cases = vec![
        (SIMPLE, vec!["HOST"], None, true),
        (SIMPLE, vec!["*.DOMAIN"], None, true),
        // The rule's names are not dropped, and the host is verified beside them.
        (named, vec!["HOST", "front.example"], None, true),
        (named, vec!["HOST"], Some(uri("spiffe://a/b")), true),
        (named, vec!["HOST"], None, false),
        (named, vec!["front.example"], None, false),
        (named, vec!["HOST"], Some(uri("front.example")), false),
        (
            named,
            vec!["HOST"],
            Some(Name::Dns("spiffe://a/b".to_owned())),
            false,
        ),
        (fronted, vec!["front.example"], None, true),
        (fronted, vec!["HOST"], None, false),
        (fronted, vec!["HOST"], Some(uri("front.example")), false),
    ];
    cases.extend(NOT_DNS.map(|(_, name)| {
        let host = "HOST".to_owned();
        (SIMPLE, vec!["x.good.example"], Some(name(host)), false)
    }));
    let mut rules = String::new();
    let mut sites = Vec::new();
    for (at, (policy, names, other, right)) in cases.into_iter().enumerate() {
        let domain = format!("d{at}.example");
        let host = format!("sub.{domain}");
        let names = names
            .into_iter()
            .map(|name| name.replace("HOST", &host).replace("DOMAIN", &domain));
        let mut leaf = Leaf::for_names(names);
        let other = other.map(|name| match name {
            Name::Uri(name) => Name::Uri(name.replace("HOST", &host)),
            Name::Email(name) => Name::Email(name.replace("HOST", &host)),
            Name::Other(name) => Name::Other(name.replace("HOST", &host)),
            name => name,
        });
        leaf.typed.extend(other);
        let site = site(&trusted.ca, &leaf).await?;
        rules += &wildcard(&domain, policy, &site);
        let what = format!("{policy} {:?} {:?}", leaf.names, leaf.typed);
        sites.push((host, site, what, right));
    }
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    for (host, site, what, right) in sites {
        let answer = probe::get(proxy.listener(80)?, &host, "/").await?;
        if right {
            ensure!(answer.status == 200, "{what}: {answer:?}");
            ensure!(only(&site)?.listener == Listener::Tls, "{what}");
        } else {
            assert_mismatch(&answer, &what).await?;
            assert_no_request(&site, &what).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn names_of_a_rule_have_the_types_that_they_read_like() -> Result<()> {
    let trusted = Trusted::new()?;
    let dns = |name: &str| Name::Dns(name.to_owned());
    let uri = |name: &str| Name::Uri(name.to_owned());
    let id = "spiffe://td/ns/x/sa/y";
    let names = format!("['{id}', 10.1.2.3, '2001:db8::0:1', db.internal]");
    let policy = format!("{{tls: {{mode: SIMPLE, subjectAltNames: {names}}}}}");
    let mut rules = String::new();
    let mut builder = trusted.egressctl("").port(80, 0);
    let mut sites = Vec::new();
    let none = || Leaf::for_names(["www.example"]);
    for (at, (mut leaf, right)) in [
        (none().and(uri(id)), true),
        (none().and(dns("db.internal")), true),
        (Leaf::for_names(["10.1.2.3"]), true),
        (Leaf::for_names(["2001:db8::1"]), true),
        (none().and(dns("10.1.2.3")), false),
        (none().and(uri("10.1.2.3")), false),
        (none().and(uri("db.internal")), false),
        (none().and(Name::Email("db.internal".to_owned())), false),
        (none().and(dns(id)), false),
        (none().and(Name::Other(id.to_owned())), false),
        (Leaf::for_names(["HOST"]), false),
    ]
    .into_iter()
    .enumerate()
    {
        let host = format!("h{at}.example");
        leaf.names
            .iter_mut()
            .filter(|name| *name == "HOST")
            .for_each(|name| name.clone_from(&host));
        let site = site(&trusted.ca, &leaf).await?;
        rules += &(entry(&host, 443) + &rule(&host, &policy));
        builder = builder.connect_to(&route(&host, 443, site.tls_addr()));
        sites.push((
            host,
            site,
            format!("{:?} {:?}", leaf.names, leaf.typed),
            right,
        ));
    }
    let proxy = builder.rules_text(rules).start().await?;
    for (host, site, what, right) in sites {
        let answer = probe::get(proxy.listener(80)?, &host, "/").await?;
        if right {
            ensure!(answer.status == 200, "{what}: {answer:?}");
            assert_originated(&only(&site)?, &host, &host);
        } else {
            assert_mismatch(&answer, &what).await?;
            assert_no_request(&site, &what).await?;
        }
    }
    Ok(())
}

/// What comes on top of the host is another name that must be there; it is not the host's.
#[tokio::test]
async fn names_of_the_entry_and_its_accounts_must_be_there_beside_the_host() -> Result<()> {
    let trusted = Trusted::new()?;
    let id = "spiffe://cluster.local/ns/default/sa/foo";
    let ports = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]";
    let spare = format!("resolution: DNS, subjectAltNames: [spare.example], {ports}");
    let account = format!(
        "resolution: STATIC, endpoints: [{{address: 192.0.2.1, serviceAccount: foo}}], {ports}"
    );
    let uri = |name: &str| Name::Uri(name.to_owned());
    let cases = [
        (&spare, Leaf::for_names(["HOST", "spare.example"]), true),
        (&spare, Leaf::for_names(["HOST"]), false),
        (&spare, Leaf::for_names(["spare.example"]), false),
        (
            &spare,
            Leaf::for_names(["spare.example"]).and(uri("HOST")),
            false,
        ),
        (&account, Leaf::for_names(["HOST"]).and(uri(id)), true),
        (&account, Leaf::for_names(["HOST"]), false),
        (
            &account,
            Leaf::for_names(["www.example"]).and(uri(id)),
            false,
        ),
        (
            &account,
            Leaf::for_names(["www.example"])
                .and(uri(id))
                .and(uri("HOST")),
            false,
        ),
    ];
    for authority in ["REWRITE", "PRESERVE"] {
        let mut rules = String::new();
        let mut builder = trusted.egressctl("").port(80, 0);
        let mut sites = Vec::new();
        for (at, (spec, leaf, right)) in cases.iter().enumerate() {
            let host = format!("h{at}.example");
            let mut leaf = leaf.clone();
            for name in &mut leaf.names {
                *name = name.replace("HOST", &host);
            }
            for name in &mut leaf.typed {
                if let Name::Uri(name) = name {
                    *name = name.replace("HOST", &host);
                }
            }
            let site = site(&trusted.ca, &leaf).await?;
            rules += &(entry_with(&host, spec) + &rule(&host, SIMPLE));
            builder = builder.connect_to(&route(&host, 443, site.tls_addr()));
            let what = format!("{authority} {spec} {:?} {:?}", leaf.names, leaf.typed);
            sites.push((host, site, what, *right));
        }
        let builder = builder.rules_text(rules).arg("--authority").arg(authority);
        let proxy = builder.start().await?;
        for (host, site, what, right) in sites {
            let written = host.to_uppercase();
            let answer = probe::get(proxy.listener(80)?, &written, "/").await?;
            if right {
                ensure!(answer.status == 200, "{what}: {answer:?}");
                ensure!(only(&site)?.sni == Some(host), "{what}");
            } else {
                assert_mismatch(&answer, &what).await?;
                assert_no_request(&site, &what).await?;
            }
        }
    }
    Ok(())
}

/// An authority that limits itself to some names must not certify others, whatever their type.
#[tokio::test]
async fn name_constraints_hold() -> Result<()> {
    let trusted = Trusted::new()?;
    let limited = trusted
        .ca
        .limited("limited", Limit::OnlyBelow("good.example"))?;
    let rules = originated(HOST, 443);
    let own = with_tls("sni: edition.cnn.com");
    for rules in [&rules, &own] {
        let mut cases = vec![(Leaf::for_names([HOST]), "not_verified")];
        cases.extend(NOT_DNS.map(|(_, name)| (odd(HOST, name), "name_mismatch")));
        for (leaf, reason) in cases {
            let site = site(&limited, &leaf).await?;
            let builder = trusted.egressctl(rules).port(80, 0);
            let to = route(HOST, 443, site.tls_addr());
            let proxy = builder.connect_to(&to).start().await?;
            let answer = probe::get(proxy.listener(80)?, HOST, "/").await?;
            let reason = match reason {
                "name_mismatch" => mismatch().await?,
                reason => reason,
            };
            let told = format!("egress_{reason}: ");
            ensure!(answer.body.starts_with(&told), "{leaf:?}: {answer:?}");
            assert_no_request(&site, reason).await?;
        }
    }
    // Below the name that it may certify, it is an authority.
    let site = site(&limited, &Leaf::for_names(["x.good.example"])).await?;
    let proxy = trusted
        .egressctl(&originated("x.good.example", 443))
        .port(80, 0)
        .connect_to(&route("x.good.example", 443, site.tls_addr()))
        .start()
        .await?;
    let answer = probe::get(proxy.listener(80)?, "x.good.example", "/").await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    Ok(())
}

/// Whoever names an address of the service names the service: the certificate must be for its name.
#[tokio::test]
async fn a_host_that_is_an_address_passes_with_no_other_certificate() -> Result<()> {
    const ADDRESS: &str = "240.0.0.7";
    let trusted = Trusted::new()?;
    let spec = format!(
        "resolution: DNS, addresses: [{ADDRESS}], \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]"
    );
    let rules = entry_with(HOST, &spec) + &rule(HOST, SIMPLE);
    let started = async |site: &StandIn, authority: &str| -> Result<Running> {
        let builder: Builder = trusted.egressctl(&rules).port(80, 0);
        let builder = builder.arg("--authority").arg(authority);
        let to = route(HOST, 443, site.tls_addr());
        builder.connect_to(&to).start().await
    };
    for authority in ["REWRITE", "PRESERVE"] {
        for (name, right) in [(HOST, true), ("www.example", false), (ADDRESS, false)] {
            let site = trusted.site([name]).await?;
            let proxy = started(&site, authority).await?;
            let answer = probe::get(proxy.listener(80)?, ADDRESS, "/").await?;
            if right {
                ensure!(answer.status == 200, "{authority}: {answer:?}");
                ensure!(only(&site)?.sni.as_deref() == Some(HOST), "{authority}");
            } else {
                assert_mismatch(&answer, &format!("{name} {authority}")).await?;
                assert_no_request(&site, name).await?;
            }
        }
    }
    Ok(())
}

/// The shared cluster itself, without the filter that knows the host: an address sends no SNI, and without one there is
/// no name to compare. Nothing passes.
#[tokio::test]
async fn a_connection_without_an_sni_passes_with_no_certificate() -> Result<()> {
    let (trusted, dns) = (Trusted::new()?, dns().await?);
    let resolver = dns.addr().to_string();
    let args = ["--resolver", &resolver];
    let mut bootstrap = rendered(&trusted, &originated(HOST, 443), &args).await?;
    let filters = bootstrap.pointer_mut(&format!("{MANAGER}/http_filters"));
    let filters = filters
        .and_then(Value::as_array_mut)
        .context("no filters")?;
    let before = filters.len();
    filters.retain(|filter| filter["name"] != "egress");
    assert_eq!(filters.len() + 1, before);
    let binary = envoy::binary()?;
    let one = ["--concurrency", "1"];
    let envoy = EnvoyProcess::start(&binary, &bootstrap.to_string(), one).await?;
    let http = envoy.listener("outbound_80")?;
    for name in ["www.example", "127.0.0.1", HOST] {
        let site = trusted.site([name]).await?;
        let port = site.tls_addr().port();
        let by_address = probe::get(http, &format!("127.0.0.1:{port}"), "/").await?;
        assert_eq!(by_address.status, 503, "{name}: {}", by_address.body);
        ensure!(site.seen().is_empty(), "{name}: {:?}", site.seen());
        let failed = site.counts(Listener::Tls).failed_handshakes;
        ensure!(
            failed.iter().all(|failed| failed.sni.is_none()),
            "{failed:?}"
        );
        ensure!(!failed.is_empty(), "{name}");
        // By a name it passes with that name alone.
        let by_name = probe::get(http, &format!("{HOST}:{port}"), "/").await?;
        assert_eq!(by_name.status == 200, name == HOST, "{name}: {by_name:?}");
    }
    Ok(())
}
