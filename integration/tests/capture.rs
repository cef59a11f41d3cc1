//! Programs that know nothing of a proxy: the kernel redirects their connections, in a network of the test's own.

mod common;

use std::{
    fs::Permissions,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context, Result, ensure};
use tokio::{process::Command, time::timeout};

use egress_integration::{
    dns::{DnsServer, Zone},
    egressctl::{self, Builder, Egressctl, Running},
    netns::{self, APPLICATION, as_application},
    pki::Leaf,
    stand_in::{Listener, StandIn, StandInConfig},
    tls_server::{TlsServer, TlsServerConfig},
};

use common::{
    LogLine, SIMPLE, SOON, Trusted, assert_originated, entry_with, eventually, only, rule,
};

const EDITION: &str = "edition.example";
const CACHE: &str = "cache.example";
const OTHER: &str = "other.example";
/// Where [`EDITION`] is.
const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Where [`CACHE`] is.
const CACHE_AT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 12);
/// Where [`OTHER`] is.
const OTHER_AT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 13);
/// Where nobody is, but for what a test puts there.
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
/// An address of a private network.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 20, 30, 40);
/// Where nobody is at all.
const NOBODY_AT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 99);
/// Where applications that prefer IPv6 believe [`EDITION`] to be.
const SITE_6: &str = "2001:db8::10";

/// Runs a test where these addresses are.
fn alone<F: Future<Output = Result<()>>>(test: impl FnOnce() -> F + Send) -> Result<()> {
    let six: IpAddr = SITE_6.parse()?;
    let addresses = [SITE, CACHE_AT, OTHER_AT, UNKNOWN, PRIVATE].map(IpAddr::V4);
    let addresses: Vec<IpAddr> = addresses.into_iter().chain([six]).collect();
    let names = [
        (EDITION, SITE.into()),
        (EDITION, six),
        ("unknown.example", SITE.into()),
    ];
    netns::run(&addresses, &names, test)
}

/// HTTP on port 80, which is originated, and the application's own TLS on port 443.
fn edition() -> String {
    entry_with(
        EDITION,
        "resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}, {number: 443, name: https, protocol: HTTPS}]",
    ) + &rule(
        EDITION,
        "{portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}",
    )
}

fn tcp(host: &str, at: Ipv4Addr) -> String {
    let spec = format!(
        "addresses: [{at}], resolution: DNS, ports: [{{number: 6379, name: tcp, protocol: TCP}}]"
    );
    entry_with(host, &spec) + &rule(host, SIMPLE)
}

async fn site(trusted: &Trusted) -> Result<StandIn> {
    let certificate = trusted.ca.issue(&Leaf::for_names([EDITION]))?;
    StandIn::start_at(StandInConfig::new(certificate), SITE).await
}

async fn dns() -> Result<DnsServer> {
    let zone = Zone::new()
        .name(EDITION, [SITE])
        .name(CACHE, [CACHE_AT])
        .name(OTHER, [OTHER_AT])
        .name("private.wild.example", [PRIVATE])
        .name("both.wild.example", [NOBODY_AT, PRIVATE])
        .name("first.wild.example", [PRIVATE, UNKNOWN]);
    DnsServer::start(zone).await
}

fn capturing(builder: Builder, dns: &DnsServer) -> Builder {
    let builder = builder.arg("--resolver").arg(dns.addr().to_string());
    builder.arg("--capture").arg("15001")
}

/// `egressctl capture` with these arguments.
async fn capture(trusted: &Trusted, args: &str) -> Result<Output> {
    let words = std::iter::once("capture").chain(args.split_whitespace());
    common::egressctl(trusted, words).await
}

/// The same, which must succeed; returns what it printed.
async fn captured(trusted: &Trusted, args: &str) -> Result<String> {
    let output = capture(trusted, args).await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args}: {stderr}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The same, which must be refused; returns what it said.
async fn refused(trusted: &Trusted, args: &str) -> Result<String> {
    let output = capture(trusted, args).await?;
    ensure!(output.status.code() == Some(1), "{args}: {output:?}");
    ensure!(output.stdout.is_empty(), "{args}: {output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

fn up(more: &str) -> String {
    format!("up --to 15001 --uid {APPLICATION} {more}")
}

/// Runs curl, and returns the status of the answer; `000` when there is none.
async fn curl(mut command: Command, args: &str) -> Result<String> {
    command.args([
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--max-time",
        "20",
    ]);
    command.args(args.split_whitespace());
    let output = timeout(SOON * 2, command.output()).await??;
    Ok(String::from_utf8(output.stdout)?)
}

/// What the application gets, which knows of no proxy.
async fn get(args: &str) -> Result<String> {
    curl(as_application("curl"), args).await
}

/// What somebody else gets.
async fn get_as_root(args: &str) -> Result<String> {
    curl(Command::new("curl"), args).await
}

/// The first bytes that the application hears, before it says anything.
async fn greeting(to: Ipv4Addr, port: u16, len: usize) -> Result<String> {
    let mut command = as_application("bash");
    let script = format!("exec 3<>/dev/tcp/{to}/{port}; head -c {len} <&3");
    command.args(["-c", &script]);
    let output = timeout(SOON, command.output()).await;
    Ok(String::from_utf8(
        output.context("nothing is heard")??.stdout,
    )?)
}

/// The log line of a connection to this destination.
async fn logged(proxy: &Running, to: &str) -> Result<LogLine> {
    let wanted = format!(" {to} ");
    let line = proxy.wait_for_log(|line| line.contains(&wanted), SOON);
    LogLine::parse(&line.await?)
}

fn assert_rejected(log: &LogLine, reason: &str, target: &str) {
    log.assert_egress([("action", "reject"), ("reason", reason), ("target", target)]);
}

async fn ruleset() -> Result<String> {
    stdout(Command::new("/usr/sbin/nft").args(["list", "ruleset"])).await
}

/// What a command prints, which must succeed.
async fn stdout(command: &mut Command) -> Result<String> {
    let output = command.output().await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {stderr}", command.as_std());
    Ok(String::from_utf8(output.stdout)?)
}

/// What holds however connections are redirected; ends with nothing redirected.
async fn is_captured_until_down(trusted: &Trusted, form: &str) -> Result<()> {
    let site = site(trusted).await?;
    let dns = dns().await?;
    let proxy = capturing(trusted.egressctl(&edition()), &dns)
        .start()
        .await?;
    let said = captured(trusted, &up(form)).await?;
    assert_eq!(
        said,
        format!("captured by port 15001: TCP of uid {APPLICATION}\n")
    );
    // Again, which changes nothing.
    captured(trusted, &up(form)).await?;

    for version in ["-4", "-6"] {
        let status = get(&format!("{version} http://{EDITION}/politics")).await?;
        assert_eq!(status, "200", "{version}");
        assert_originated(&only(&site)?, EDITION, EDITION);
    }
    // As old ones ask.
    for old in [
        "--http1.0",
        "-X FOO",
        "-H Connection:Upgrade -H Upgrade:TLS/1.2",
        "-d hello -H Expect:100-continue",
    ] {
        let status = get(&format!("-4 {old} http://{EDITION}/old")).await?;
        assert_eq!(status, "200", "{old}");
        assert_originated(&only(&site)?, EDITION, EDITION);
    }
    let log = logged(&proxy, &format!("{SITE}:80")).await?;
    assert_eq!(log.egress("action"), "originate");
    assert_eq!(log.istio("upstream_host"), format!("{SITE}:443"));
    logged(&proxy, &format!("[{SITE_6}]:80")).await?;

    let bundle = trusted.bundle();
    let bundle = bundle.display();
    // The application's, too.
    std::fs::set_permissions(trusted.path(""), Permissions::from_mode(0o755))?;
    let status = get(&format!("-4 --cacert {bundle} https://{EDITION}/")).await?;
    assert_eq!(status, "200");
    let log = logged(&proxy, &format!("{SITE}:443")).await?;
    assert_eq!(log.egress("action"), "passthrough");
    assert_eq!(site.take_seen().len(), 1);
    let plain = site.counts(Listener::Plain);
    assert_eq!(plain.connections, 0, "plaintext arrived: {plain:?}");

    let url = format!("http://{SITE}:8088/");
    assert_eq!(get(&url).await?, "000");
    let to = format!("{SITE}:8088");
    assert_rejected(&logged(&proxy, &to).await?, "unknown_port", &to);
    // Somebody else is not captured.
    assert_eq!(get_as_root(&format!("-4 http://{EDITION}/")).await?, "301");
    assert_eq!(site.take_seen().len(), 1);

    let said = captured(trusted, "down").await?;
    assert_eq!(said, "nothing is captured any more\n");
    assert_eq!(get(&format!("-4 http://{EDITION}/")).await?, "301");
    assert_eq!(only(&site)?.listener, Listener::Plain);
    assert_eq!(captured(trusted, "down").await?, "nothing was captured\n");
    assert!(proxy.stop().await?.success());
    Ok(())
}

#[test]
fn a_program_of_another_user_is_originated_and_knows_nothing_of_it() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        is_captured_until_down(&trusted, "").await?;
        assert_eq!(ruleset().await?, "");
        Ok(())
    })
}

#[test]
fn iptables_does_as_well_and_other_rules_stay() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let saved = async || -> Result<String> {
            let mut all = String::new();
            for program in ["/usr/sbin/iptables", "/usr/sbin/ip6tables"] {
                all += &stdout(Command::new(program).args(["-t", "nat", "-S"])).await?;
            }
            Ok(all)
        };
        let own = "-t nat -A OUTPUT -d 192.0.2.1 -j RETURN";
        stdout(Command::new("/usr/sbin/iptables").args(own.split(' '))).await?;
        let before = saved().await?;
        is_captured_until_down(&trusted, "--iptables").await?;
        assert_eq!(saved().await?, before);
        Ok(())
    })
}

/// A server of redis' port that speaks first, and says its name.
async fn greeter(trusted: &Trusted, name: &str, at: Ipv4Addr) -> Result<TlsServer> {
    let certificate = trusted.ca.issue(&Leaf::for_names([name]))?;
    let config = TlsServerConfig {
        greeting: format!("here is {name}").into(),
        ..TlsServerConfig::default()
    };
    TlsServer::start_at(&certificate, config, (at, 6379).into()).await
}

#[test]
fn tcp_services_are_told_apart_by_address_and_servers_may_speak_first() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let dns = dns().await?;
        let cache = greeter(&trusted, CACHE, CACHE_AT).await?;
        let other = greeter(&trusted, OTHER, OTHER_AT).await?;
        // The one has a port for itself, too.
        let alone = "ports: [{number: 6380, name: more, protocol: TCP}, ";
        let rules = tcp(CACHE, CACHE_AT).replace("ports: [", alone) + &tcp(OTHER, OTHER_AT);
        let proxy = capturing(trusted.egressctl(&rules), &dns).start().await?;
        captured(&trusted, &up("")).await?;
        for (name, at, server) in [(CACHE, CACHE_AT, &cache), (OTHER, OTHER_AT, &other)] {
            let wanted = format!("here is {name}");
            assert_eq!(greeting(at, 6379, wanted.len()).await?, wanted);
            eventually("the server knows", async || Ok(!server.heard().is_empty())).await?;
            let [heard] = &server.heard()[..] else {
                panic!("{:?}", server.heard());
            };
            assert_eq!(heard.sni.as_deref(), Some(name));
        }
        for port in [6379, 6380] {
            assert_eq!(greeting(UNKNOWN, port, 1).await?, "");
            let log = logged(&proxy, &format!("{UNKNOWN}:{port}")).await?;
            log.assert_egress([("action", "reject"), ("reason", "unknown_host")]);
        }
        assert!(proxy.stop().await?.success());
        Ok(())
    })
}

/// Its entry has no addresses: what was dialled is known here alone.
#[test]
fn a_route_for_some_addresses_takes_captured_connections_to_them() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let dns = dns().await?;
        let _cache = greeter(&trusted, CACHE, CACHE_AT).await?;
        let _other = greeter(&trusted, OTHER, OTHER_AT).await?;
        let anywhere = |host: &str, port: u16| {
            let spec = format!(
                "resolution: DNS, ports: [{{number: {port}, name: tcp, protocol: TCP, targetPort: 6379}}]"
            );
            entry_with(host, &spec) + &rule(host, SIMPLE)
        };
        let route = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: cache}}\nspec: {{hosts: [{CACHE}], tcp: [{{match: [{{destinationSubnets: [{UNKNOWN}/32]}}], route: [{{destination: {{host: {OTHER}}}}}]}}]}}\n"
        );
        let rules = anywhere(CACHE, 6379) + &anywhere(OTHER, 6380) + &route;
        let proxy = capturing(trusted.egressctl(&rules), &dns).start().await?;
        captured(&trusted, &up("")).await?;
        for (name, at) in [(OTHER, UNKNOWN), (CACHE, CACHE_AT), (CACHE, OTHER_AT)] {
            let wanted = format!("here is {name}");
            assert_eq!(greeting(at, 6379, wanted.len()).await?, wanted, "{at}");
        }
        assert!(proxy.stop().await?.success());
        Ok(())
    })
}

#[test]
fn what_comes_to_the_port_without_a_redirect_is_closed() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let dns = dns().await?;
        for mode in ["REGISTRY_ONLY", "ALLOW_ANY"] {
            let builder = capturing(trusted.egressctl(&edition()), &dns);
            let builder = builder.arg("--outbound-traffic-policy").arg(mode);
            let proxy = builder.start().await?;
            captured(&trusted, &up("")).await?;
            for to in ["127.0.0.1:15001", "[::1]:15001"] {
                assert_eq!(get(&format!("http://{to}/")).await?, "000", "{mode}");
                assert_rejected(&logged(&proxy, to).await?, "no_host", to);
            }
            // With a redirect, but to the same port.
            let to = format!("{UNKNOWN}:15001");
            assert_eq!(get(&format!("http://{to}/")).await?, "000", "{mode}");
            assert_rejected(&logged(&proxy, &to).await?, "no_host", &to);
            assert_eq!(proxy.access_log()?.len(), 3, "{:#?}", proxy.access_log()?);
            assert!(proxy.stop().await?.success());
        }
        Ok(())
    })
}

#[test]
fn with_allow_any_the_rest_goes_where_it_was_meant_to_but_to_no_private_address() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let site = site(&trusted).await?;
        let dns = dns().await?;
        let start = async |at: Ipv4Addr| {
            let certificate = trusted.ca.issue(&Leaf::for_names(["unknown.example"]))?;
            StandIn::start_at(StandInConfig::new(certificate), at).await
        };
        let (unknown, private) = (start(UNKNOWN).await?, start(PRIVATE).await?);
        // Port 80 has no rule here.
        let rules = entry_with(
            EDITION,
            "resolution: DNS, ports: [{number: 443, name: https, protocol: HTTPS}]",
        ) + &tcp(CACHE, CACHE_AT);
        let builder = capturing(trusted.egressctl(&rules), &dns);
        let builder = builder.arg("--outbound-traffic-policy").arg("ALLOW_ANY");
        let proxy = builder.start().await?;
        captured(&trusted, &up("")).await?;

        assert_eq!(get(&format!("http://{UNKNOWN}/")).await?, "301");
        let log = logged(&proxy, &format!("{UNKNOWN}:80")).await?;
        assert_eq!(log.egress("action"), "forward");
        assert_eq!(log.egress("reason"), "unknown_port");
        assert_eq!(log.istio("upstream_host"), format!("{UNKNOWN}:80"));
        // Not among the names of the port, and then a name of the port.
        let resolved = |name: &str, at| format!("-k --resolve {name}:443:{at} https://{name}/");
        assert_eq!(get(&resolved("unknown.example", UNKNOWN)).await?, "200");
        assert_eq!(unknown.take_seen().len(), 2);
        let log = logged(&proxy, &format!("{UNKNOWN}:443")).await?;
        assert_eq!(log.egress("reason"), "unknown_host");
        for at in [SITE, PRIVATE] {
            // Its address is looked up by us.
            assert_eq!(get(&resolved(EDITION, at)).await?, "200", "{at}");
            assert_eq!(site.take_seen().len(), 1);
        }

        assert_eq!(get(&format!("http://{PRIVATE}/")).await?, "000");
        let to = format!("{PRIVATE}:80");
        assert_rejected(&logged(&proxy, &to).await?, "unknown_port", &to);
        assert_eq!(get(&resolved("unknown.example", PRIVATE)).await?, "000");
        for listener in [Listener::Plain, Listener::Tls] {
            assert_eq!(private.counts(listener).connections, 0);
        }
        assert!(proxy.stop().await?.success());
        Ok(())
    })
}

/// The name goes where DNS says, whatever address was dialled; and DNS may not say just anything.
#[test]
fn a_captured_name_below_a_wildcard_reaches_no_private_address() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let dns = dns().await?;
        let start = async |at: Ipv4Addr| {
            let certificate = trusted.ca.issue(&Leaf::for_names(["*.wild.example"]))?;
            StandIn::start_at(StandInConfig::new(certificate), at).await
        };
        let (public, private) = (start(UNKNOWN).await?, start(PRIVATE).await?);
        let rules = entry_with(
            "*.wild.example",
            "resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP}, \
             {number: 443, name: tls, protocol: TLS}]",
        );
        for outbound in ["REGISTRY_ONLY", "ALLOW_ANY"] {
            let builder = capturing(trusted.egressctl(&rules), &dns);
            let builder = builder.arg("--outbound-traffic-policy").arg(outbound);
            let proxy = builder.start().await?;
            captured(&trusted, &up("")).await?;
            let dialled = |label: &str, scheme: &str, port: u16| {
                let name = format!("{label}.wild.example");
                format!("-k --resolve {name}:{port}:{SITE} {scheme}://{name}/")
            };
            for (label, plain, tls) in [
                ("private", "403", "000"),
                ("both", "503", "000"),
                ("first", "301", "200"),
            ] {
                assert_eq!(get(&dialled(label, "http", 80)).await?, plain, "{label}");
                assert_eq!(get(&dialled(label, "https", 443)).await?, tls, "{label}");
            }
            assert_eq!(public.take_seen().len(), 2, "{outbound}");
            for listener in [Listener::Plain, Listener::Tls] {
                assert_eq!(private.counts(listener).connections, 0, "{outbound}");
            }
            captured(&trusted, "down").await?;
            assert!(proxy.stop().await?.success());
        }
        Ok(())
    })
}

#[test]
fn a_port_that_rules_get_while_it_runs_is_captured_and_one_that_they_lose_is_not() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let site = site(&trusted).await?;
        let dns = dns().await?;
        let before = edition();
        let file = trusted.file("rules.yaml", &before)?;
        let builder = Egressctl::builder()
            .rules(&file)
            .env("SSL_CERT_FILE", trusted.bundle());
        let proxy = capturing(builder, &dns).start().await?;
        captured(&trusted, &up("")).await?;
        let url = format!("-4 http://{EDITION}:8080/");
        assert_eq!(get(&url).await?, "000");
        let more = before.replace(
            "ports: [",
            "ports: [{number: 8080, name: more, protocol: HTTP, targetPort: 443}, ",
        );
        let more = more.replace(
            "portLevelSettings: [",
            "portLevelSettings: [{port: {number: 8080}, tls: {mode: SIMPLE}}, ",
        );
        for (rules, times, word, status) in [
            (&more, 1, " added=8080 ", "200"),
            (&before, 2, " removed=8080 ", "000"),
        ] {
            std::fs::write(&file, rules)?;
            let lines = || {
                let mut lines = proxy.stdout();
                lines.retain(|line| line.starts_with("reloaded "));
                lines
            };
            eventually("rules are applied", async || Ok(lines().len() == times)).await?;
            assert!(lines()[times - 1].contains(word), "{:?}", lines());
            assert_eq!(get(&url).await?, status);
        }
        assert_originated(&only(&site)?, EDITION, EDITION);
        assert_eq!(site.counts(Listener::Plain).connections, 0);
        assert!(proxy.stop().await?.success());
        Ok(())
    })
}

#[test]
fn only_the_ports_and_addresses_that_were_asked_for_are_captured() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let site = site(&trusted).await?;
        let dns = dns().await?;
        // A port of its own is listened on beside.
        let builder = capturing(trusted.egressctl(&edition()), &dns).port(80, 0);
        let proxy = builder
            .arg("--forward-proxy")
            .arg("127.0.0.1:0")
            .start()
            .await?;
        captured(&trusted, &up("--port 80 --exclude-cidr 198.51.100.20/30")).await?;
        assert_eq!(get(&format!("-4 http://{EDITION}/")).await?, "200");
        assert_originated(&only(&site)?, EDITION, EDITION);
        // Not port 443, and not an address that is left out.
        assert_eq!(get(&format!("-4 -k https://{EDITION}/")).await?, "200");
        assert_eq!(
            proxy
                .access_log()?
                .iter()
                .filter(|line| line.contains(":443 198"))
                .count(),
            0
        );
        let certificate = trusted.ca.issue(&Leaf::for_names([OTHER]))?;
        let unknown = StandIn::start_at(StandInConfig::new(certificate), UNKNOWN).await?;
        assert_eq!(get(&format!("http://{UNKNOWN}/")).await?, "301");
        assert_eq!(only(&unknown)?.listener, Listener::Plain);

        site.take_seen();
        for at in [proxy.listener(80)?, proxy.forward_proxy()?] {
            let status = get(&format!("--proxy http://{at} http://{EDITION}/")).await?;
            assert_eq!(status, "200", "{at}");
            assert_originated(&only(&site)?, EDITION, EDITION);
        }
        assert!(proxy.stop().await?.success());
        Ok(())
    })
}

#[test]
fn what_would_capture_envoy_or_cut_the_application_off_is_refused() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let dns = dns().await?;
        let said = refused(&trusted, &up("")).await?;
        assert!(
            said.starts_with("error: nothing listens on port 15001"),
            "{said}"
        );
        let said = refused(&trusted, "up --to 15001 --uid 0 --envoy-uid root").await?;
        assert!(
            said.starts_with("error: uid 0 is the user that Envoy runs as"),
            "{said}"
        );
        let said = refused(&trusted, "up --to 15001 --uid nobody-has-this-name").await?;
        assert!(said.contains("this machine has no such user"), "{said}");
        assert_eq!(ruleset().await?, "");

        // Before Envoy runs nothing goes around it.
        captured(&trusted, &up("--envoy-uid root")).await?;
        let site = site(&trusted).await?;
        assert_eq!(get(&format!("-4 http://{EDITION}/")).await?, "000");
        assert_eq!(site.counts(Listener::Plain).connections, 0);
        let proxy = capturing(trusted.egressctl(&edition()), &dns)
            .start()
            .await?;
        assert_eq!(get(&format!("-4 http://{EDITION}/")).await?, "200");

        let before = ruleset().await?;
        for iptables in ["", "--iptables"] {
            let args = format!("up --to 15001 --uid {APPLICATION} --uid root {iptables}");
            let said = refused(&trusted, &args).await?;
            assert!(
                said.starts_with("error: uid 0 is the user that Envoy runs as"),
                "{said}"
            );
            assert_eq!(ruleset().await?, before);
        }
        // Whoever may not change the firewall is told so.
        let mut command = as_application("env");
        command.arg(egressctl::binary()?);
        let output = command.args("capture down".split(' ')).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("CAP_NET_ADMIN"), "{said}");
        assert_eq!(output.status.code(), Some(2));
        assert!(proxy.stop().await?.success());
        Ok(())
    })
}

#[test]
fn who_listens_beside_envoy_gets_nothing() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let site = site(&trusted).await?;
        let dns = dns().await?;
        let builder = trusted.egressctl(&edition());
        let builder = builder.arg("--resolver").arg(dns.addr().to_string());
        let proxy = builder.arg("--capture").arg("127.0.0.1:15001");
        let proxy = proxy.start().await?;
        let six = "[::1]:15001";
        // Sockets are of the user that opens them.
        let own = nix::unistd::setfsuid(nix::unistd::Uid::from_raw(APPLICATION));
        let others = std::net::TcpListener::bind(six)?;
        nix::unistd::setfsuid(own);
        let said = refused(&trusted, &up("")).await?;
        assert!(
            said.contains(&format!("::1 of uid {APPLICATION}")),
            "{said}"
        );
        let said = refused(&trusted, &up("--envoy-uid 77")).await?;
        assert!(said.contains("is of uid 77 of `--envoy-uid`"), "{said}");
        drop(others);

        for form in ["", "--iptables"] {
            captured(&trusted, &up(form)).await?;
            let later = std::net::TcpListener::bind(six)?;
            later.set_nonblocking(true)?;
            assert_eq!(
                get(&format!("-6 http://{EDITION}/")).await?,
                "000",
                "{form}"
            );
            assert!(later.accept().is_err(), "{form}");
            assert_eq!(
                get(&format!("-4 http://{EDITION}/")).await?,
                "200",
                "{form}"
            );
            assert_originated(&only(&site)?, EDITION, EDITION);
            assert_eq!(site.counts(Listener::Plain).connections, 0);
        }
        assert!(proxy.stop().await?.success());
        Ok(())
    })
}

/// All rules of iptables.
async fn saved() -> Result<String> {
    let mut all = String::new();
    for program in ["/usr/sbin/iptables-save", "/usr/sbin/ip6tables-save"] {
        all += &stdout(&mut Command::new(program)).await?;
    }
    let rules = all.lines().filter(|line| line.starts_with("-A"));
    Ok(rules.map(|line| format!("{line}\n")).collect())
}

#[test]
fn rules_of_iptables_lead_to_us_first_and_once() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        let up = |more: &str| up(&format!("--envoy-uid root {more}"));
        let iptables = async |args: &str| {
            stdout(Command::new("/usr/sbin/iptables").args(args.split(' '))).await
        };
        captured(&trusted, &up("--iptables")).await?;
        let first = saved().await?;
        iptables("-t nat -I OUTPUT 1 -d 192.0.2.1 -j RETURN").await?;
        iptables("-t nat -A OUTPUT -p tcp -j EGRESSCTL").await?;
        captured(&trusted, &up("--iptables")).await?;
        iptables("-t nat -C OUTPUT -d 192.0.2.1 -j RETURN").await?;
        iptables("-t nat -D OUTPUT -d 192.0.2.1 -j RETURN").await?;
        assert_eq!(saved().await?, first);
        Ok(())
    })
}

#[test]
fn what_iptables_refuses_half_way_is_taken_back() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        captured(&trusted, &up("--envoy-uid root --iptables --port 80")).await?;
        let before = saved().await?;
        assert!(before.contains("EGRESSCTL"), "{before}");
        // Asked whether it would take the rules, it agrees; then it fails.
        let folder = trusted.path("firewall");
        std::fs::create_dir(&folder)?;
        let broken = folder.join("ip6tables-restore");
        let script = "#!/bin/sh\nfor word; do [ \"$word\" != --test ] || exit 0; done\n\
                      cat >/dev/null; echo out of memory >&2; exit 1\n";
        std::fs::write(&broken, script)?;
        std::fs::set_permissions(&broken, Permissions::from_mode(0o755))?;
        let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);

        let args = up("--envoy-uid root --iptables --port 443");
        let mut command = Command::new(egressctl::binary()?);
        let command = command.arg("capture").args(args.split_whitespace());
        let output = command.env("PATH", path).output().await?;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(
            String::from_utf8(output.stderr)?,
            "error: `ip6tables-restore` refused: out of memory; the previous rules stay\n"
        );
        assert_eq!(saved().await?, before);
        Ok(())
    })
}

#[test]
fn one_form_takes_the_place_of_the_other() -> Result<()> {
    alone(async || {
        let trusted = Trusted::new()?;
        for (form, has_table) in [("", true), ("--iptables", false), ("", true)] {
            captured(&trusted, &up(&format!("--envoy-uid root {form}"))).await?;
            assert_eq!(ruleset().await?.contains("table inet egressctl"), has_table);
            assert_eq!(saved().await?.contains("EGRESSCTL"), !has_table);
        }
        Ok(())
    })
}

#[test]
fn a_cgroup_is_captured_but_not_one_that_envoy_is_in() -> Result<()> {
    alone(async || {
        netns::mount_cgroups()?;
        let trusted = Trusted::new()?;
        let site = site(&trusted).await?;
        let dns = dns().await?;
        let group = Group::new()?;
        let proxy = capturing(trusted.egressctl(&edition()), &dns)
            .start()
            .await?;
        let inside = group.wrapped(&trusted, Path::new("/usr/bin/curl"))?;
        for form in ["", "--iptables"] {
            captured(
                &trusted,
                &format!("up --to 15001 --cgroup {} {form}", group.0),
            )
            .await?;
            let url = format!("-4 http://{EDITION}/");
            assert_eq!(curl(Command::new(&inside), &url).await?, "200", "{form}");
            assert_originated(&only(&site)?, EDITION, EDITION);
            assert_eq!(get(&url).await?, "301", "{form}");
            site.take_seen();
            captured(&trusted, "down").await?;
        }

        let before = ruleset().await?;
        let missing = format!("up --to 15001 --cgroup {}-no", group.0);
        let said = refused(&trusted, &missing).await?;
        assert!(said.starts_with("error: there is no cgroup"), "{said}");
        assert!(proxy.stop().await?.success());
        let inside = group.wrapped(&trusted, &egressctl::binary()?)?;
        let builder = trusted.egressctl(&edition()).binary(inside);
        let proxy = capturing(builder, &dns).start().await?;
        let said = refused(&trusted, &format!("up --to 15001 --cgroup {}", group.0)).await?;
        assert!(said.contains("is in the cgroup /"), "{said}");
        assert_eq!(ruleset().await?, before);
        assert!(proxy.stop().await?.success());
        Ok(())
    })
}

/// A cgroup of the test's own; dropping it removes it.
struct Group(String);

impl Group {
    fn new() -> Result<Self> {
        let path = format!("/sys/fs/cgroup/egress-capture-{}", std::process::id());
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// A script that runs a program in the group.
    fn wrapped(&self, trusted: &Trusted, program: &Path) -> Result<PathBuf> {
        let program = program.display();
        let text = format!(
            "#!/bin/sh -e\necho $$ > {}/cgroup.procs\nexec {program} \"$@\"\n",
            self.0
        );
        let file = trusted.file("wrapped", &text)?;
        std::fs::set_permissions(&file, Permissions::from_mode(0o755))?;
        Ok(file)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
