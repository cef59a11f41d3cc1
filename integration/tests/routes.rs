//! Routes of VirtualServices: what Envoy chooses by path, method, headers and query, and what the server sees of it.

mod common;

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use egress_integration::{
    egressctl::Running,
    envoy::{self, EnvoyProcess},
    pki::{Issued, Leaf},
    probe,
    scripted::{Asked, Reply, Scripted},
    silent_port::SilentPort,
    stand_in::{Listener, StandIn},
};
use serde_json::Value;

use common::{
    SIMPLE, SOON, Trusted, assert_originated, by_dns, dns, egressctl, entry_with, log_of, only,
    originated, rendered, route, rule,
};

const API: &str = "api.example.com";
const OTHER: &str = "other.example.com";
const SLOW: &str = "slow.example.com";
const TOLD: &str = "told.example.com";

/// HTTPS that routes lead to, and TLS by a rule for that port.
fn served(host: &str, more: &str) -> String {
    let ports = format!("ports: [{more}{{number: 443, name: https, protocol: HTTPS}}]");
    let policy = "{portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE}}]}";
    entry_with(host, &format!("resolution: DNS, {ports}")) + &rule(host, policy)
}

fn virtual_service(hosts: &str, routes: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: routes}}
spec:
  hosts: [\"{hosts}\"]
  http:
{routes}
"
    )
}

/// One of `route`'s destinations, in YAML's flow style.
fn to(host: &str, more: &str) -> String {
    format!("{{destination: {{host: {host}, port: {{number: 443}}}}{more}}}")
}

fn rules() -> String {
    let http = "{number: 80, name: http, protocol: HTTP}, ";
    let routes = [
        format!("  - match: [{{uri: {{prefix: /old}}}}]\n    rewrite: {{uri: /new}}\n    route: [{}]", to(API, "")),
        format!("  - match: [{{uri: {{prefix: /item/}}}}]\n    rewrite: {{uriRegexRewrite: {{match: '^/item/([0-9]+)', rewrite: '/things/\\1'}}}}\n    route: [{}]", to(API, "")),
        "  - match: [{method: {exact: DELETE}}]\n    directResponse: {status: 405, body: {string: not here}}".to_owned(),
        format!(
            "  - match: [{{headers: {{x-user: {{prefix: ann}}}}}}]\n    headers:\n      request: {{set: {{x-team: blue}}, add: {{x-user: bob}}, remove: [cookie]}}\n      response: {{set: {{x-by: egress}}}}\n    route: [{}]",
            to(API, "")
        ),
        format!("  - match: [{{queryParams: {{v: {{regex: '[0-9]+'}}}}}}]\n    route: [{}]", to(OTHER, "")),
        format!("  - match: [{{authority: {{exact: 'API.example.com'}}, uri: {{exact: /case}}}}]\n    route: [{}]", to(OTHER, "")),
        format!("  - match: [{{uri: {{exact: /told}}}}]\n    rewrite: {{authority: {TOLD}}}\n    route: [{}]", to(API, "")),
        "  - match: [{uri: {exact: /moved}}]\n    redirect: {authority: www.example.com, redirectCode: 302}".to_owned(),
        format!("  - match: [{{uri: {{exact: /blocked}}}}]\n    fault: {{abort: {{httpStatus: 418, percentage: {{value: 100}}}}}}\n    route: [{}]", to(API, "")),
        format!(
            "  - match: [{{uri: {{exact: /shares}}}}]\n    route: [{}, {}]",
            to(API, ", weight: 1, headers: {request: {set: {x-share: api}}}"),
            to(OTHER, ", weight: 3, headers: {request: {set: {x-share: other, host: told.example.com}}}")
        ),
        format!("  - match: [{{uri: {{exact: /slow}}}}]\n    timeout: 300ms\n    retries: {{attempts: 0}}\n    route: [{}]", to(SLOW, "")),
        "  - match: [{uri: {exact: /lost}}]\n    route: [{destination: {host: nowhere.example.com}}]".to_owned(),
        format!("  - match: [{{uri: {{prefix: /v1}}}}, {{uri: {{exact: /V2}}, ignoreUriCase: true}}]\n    route: [{}]", to(API, "")),
    ];
    let plain = entry_with(
        "plain.example.com",
        &format!("resolution: DNS, ports: [{}]", http.trim_end_matches(", ")),
    );
    served(API, http)
        + &served(OTHER, "")
        + &served(SLOW, "")
        + &plain
        + &virtual_service(API, &routes.join("\n"))
}

/// Two sites behind a run, a server that never answers, and a port that must hear nothing.
struct Stage {
    api: StandIn,
    other: StandIn,
    silent: SilentPort,
    _slow: TcpListener,
    proxy: Running,
}

impl Stage {
    async fn start() -> Result<(Trusted, Self)> {
        let trusted = Trusted::new()?;
        let api = trusted.site([API, TOLD]).await?;
        let other = trusted.site([API, TOLD]).await?;
        let slow = TcpListener::bind("127.0.0.1:0")?;
        let silent = SilentPort::start().await?;
        let mut builder = trusted.egressctl(&rules()).port(80, 0).port(443, 0);
        for (host, port, at) in [
            (API, 443, api.tls_addr()),
            (OTHER, 443, other.tls_addr()),
            (SLOW, 443, slow.local_addr()?),
            (API, 80, silent.addr()),
            (OTHER, 80, silent.addr()),
        ] {
            builder = builder.connect_to(&route(host, port, at));
        }
        let proxy = builder.start().await?;
        Ok((
            trusted,
            Stage {
                api,
                other,
                silent,
                _slow: slow,
                proxy,
            },
        ))
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<probe::Answer> {
        probe::get_with(self.proxy.listener(80)?, API, path, headers).await
    }

    async fn nothing_in_plaintext(&self) -> Result<()> {
        self.silent.assert_silent().await?;
        for site in [&self.api, &self.other] {
            ensure!(site.counts(Listener::Plain).connections == 0);
            let failed = site.counts(Listener::Tls).failed_handshakes;
            ensure!(failed.is_empty(), "{failed:?}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn requests_take_the_route_that_matches_them() -> Result<()> {
    let (_trusted, stage) = Stage::start().await?;
    for (path, headers, other, seen) in [
        ("/old/a?b=c", &[][..], false, "/new/a?b=c"),
        ("/item/12/x", &[][..], false, "/things/12/x"),
        ("/x?v=7", &[][..], true, "/x?v=7"),
        ("/v1/a", &[][..], false, "/v1/a"),
        ("/v2", &[][..], false, "/v2"),
        // It is what the server gets that is compared.
        ("/a/../v1/%2e%2E/v1/b", &[][..], false, "/v1/b"),
    ] {
        let answer = stage.get(path, headers).await?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let (site, idle) = match other {
            true => (&stage.other, &stage.api),
            false => (&stage.api, &stage.other),
        };
        let found = only(site)?;
        assert_originated(&found, API, API);
        assert_eq!(found.path, seen);
        ensure!(idle.seen().is_empty(), "{path}: {:?}", idle.seen());
    }
    let line = log_of(&stage.proxy, "/v1/a").await?;
    let name = format!("default/routes/http[12]/{API}:80");
    assert_eq!(line.istio("route_name"), name);
    assert_eq!(line.egress("action"), "originate");
    assert_eq!(line.egress("sni"), API);
    assert_eq!(line.egress("verify"), API);
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn headers_are_changed_on_the_way_there_and_back() -> Result<()> {
    let (_trusted, stage) = Stage::start().await?;
    let sent = [("x-user", "ann"), ("cookie", "secret"), ("x-team", "red")];
    let answer = stage.get("/any", &sent).await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("x-by"), Some("egress"));
    let seen = only(&stage.api)?;
    assert_originated(&seen, API, API);
    assert_eq!(seen.header("x-team"), Some("blue"), "{seen:?}");
    assert_eq!(seen.header("cookie"), None, "{seen:?}");
    let users: Vec<&str> = seen
        .headers
        .iter()
        .filter(|(name, _)| name == "x-user")
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(users.join(","), "ann,bob");
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn another_host_is_sent_and_verified_where_a_route_says_so() -> Result<()> {
    let (_trusted, stage) = Stage::start().await?;
    let answer = stage.get("/told", &[]).await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_originated(&only(&stage.api)?, TOLD, TOLD);
    let line = log_of(&stage.proxy, "/told").await?;
    assert_eq!((line.egress("sni"), line.egress("verify")), (TOLD, TOLD));
    stage.nothing_in_plaintext().await
}

/// One route for all requests needs no choice of Envoy's, so the filter writes the host: also of what is sent in plaintext,
/// and where the application's own is kept. It does not write the host of other routes, which would then choose.
#[tokio::test]
async fn a_host_that_one_route_gives_is_sent_in_each_mode() -> Result<()> {
    const PLAIN: &str = "plain.example.com";
    const ALIAS: &str = "alias.example.com";
    let renamed = |name: &str, host: &str, port: u16, told: &str| {
        let routes = format!(
            "  - route: [{{destination: {{host: {host}, port: {{number: {port}}}}}}}]\n    rewrite: {{authority: {told}}}"
        );
        virtual_service(host, &routes).replace("name: routes", &format!("name: {name}"))
    };
    let http = "{number: 80, name: http, protocol: HTTP}";
    let rules = served(API, &format!("{http}, "))
        + &entry_with(PLAIN, &format!("resolution: DNS, ports: [{http}]"))
        + &entry_with(ALIAS, &format!("resolution: DNS, ports: [{http}]"))
        + &entry_with(TOLD, &format!("resolution: DNS, ports: [{http}]"))
        + &renamed("api", API, 443, TOLD)
        + &renamed("plain", PLAIN, 80, "elsewhere.example.com")
        + &renamed("alias", ALIAS, 80, TOLD)
        + &virtual_service(TOLD, "  - directResponse: {status: 418}");
    for mode in ["REWRITE", "PRESERVE"] {
        let trusted = Trusted::new()?;
        let site = trusted.site([API, TOLD]).await?;
        let mut builder = trusted.egressctl(&rules).port(80, 0);
        builder = builder.arg("--authority").arg(mode);
        for (host, port, at) in [
            (API, 443, site.tls_addr()),
            (TOLD, 443, site.tls_addr()),
            ("elsewhere.example.com", 80, site.plain_addr()),
            (PLAIN, 80, site.plain_addr()),
            (ALIAS, 80, site.plain_addr()),
            (TOLD, 80, site.plain_addr()),
        ] {
            builder = builder.connect_to(&route(host, port, at));
        }
        let proxy = builder.start().await?;
        let listener = proxy.listener(80)?;
        assert_eq!(probe::get(listener, API, "/").await?.status, 200, "{mode}");
        assert_originated(&only(&site)?, TOLD, TOLD);
        for (host, told) in [(PLAIN, "elsewhere.example.com"), (ALIAS, TOLD)] {
            let answer = probe::get(listener, host, "/").await?;
            // The site sends whoever comes in plaintext to its other port.
            assert_eq!(answer.status, 301, "{mode} {host}: {}", answer.body);
            let seen = only(&site)?;
            assert_eq!(
                (seen.listener, &*seen.host),
                (Listener::Plain, told),
                "{seen}"
            );
        }
        assert_eq!(probe::get(listener, TOLD, "/").await?.status, 418, "{mode}");
    }
    Ok(())
}

#[tokio::test]
async fn shares_have_names_and_headers_of_their_own() -> Result<()> {
    let (_trusted, stage) = Stage::start().await?;
    for _ in 0..60 {
        assert_eq!(stage.get("/shares", &[]).await?.status, 200);
    }
    let (api, other) = (stage.api.take_seen(), stage.other.take_seen());
    ensure!(api.len() + other.len() == 60);
    // Three in four: by chance fewer than half once in a million runs.
    ensure!(
        !api.is_empty() && other.len() > 30,
        "{} and {}",
        api.len(),
        other.len()
    );
    for seen in &api {
        assert_originated(seen, API, API);
        assert_eq!(seen.header("x-share"), Some("api"));
    }
    for seen in &other {
        assert_originated(seen, TOLD, TOLD);
        assert_eq!(seen.header("x-share"), Some("other"));
    }
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn answers_of_routes_reach_nobody() -> Result<()> {
    let (_trusted, stage) = Stage::start().await?;
    let answer = stage.get("/moved", &[]).await?;
    assert_eq!(answer.status, 302);
    assert_eq!(
        answer.header("location"),
        Some("http://www.example.com/moved")
    );
    assert_eq!(
        log_of(&stage.proxy, "/moved").await?.egress("action"),
        "redirect"
    );

    assert_eq!(stage.get("/blocked", &[]).await?.status, 418);
    assert_eq!(
        log_of(&stage.proxy, "/blocked").await?.egress("action"),
        "respond"
    );

    let request = format!("DELETE /v1 HTTP/1.1\r\nHost: {API}\r\nConnection: close\r\n\r\n");
    let answer = probe::raw(stage.proxy.listener(80)?, request.as_bytes(), SOON).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    ensure!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    ensure!(answer.ends_with("not here"), "{answer}");

    let begun = std::time::Instant::now();
    let answer = stage.get("/slow", &[]).await?;
    // Envoy's 504, with what it was that took too long.
    assert_eq!(answer.status, 503, "{}", answer.body);
    ensure!(
        answer.body.starts_with("egress_timeout: "),
        "{}",
        answer.body
    );
    ensure!(begun.elapsed() < SOON, "{:?}", begun.elapsed());

    let answer = stage.get("/lost", &[]).await?;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(
        log_of(&stage.proxy, "/lost").await?.egress("reason"),
        "unknown_destination"
    );
    for site in [&stage.api, &stage.other] {
        ensure!(site.seen().is_empty(), "{:?}", site.seen());
    }
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn what_no_route_takes_is_refused() -> Result<()> {
    let (_trusted, stage) = Stage::start().await?;
    let listener = stage.proxy.listener(80)?;
    for (host, path) in [
        (API, "/none"),
        (API, "/v1/../none"),
        ("api.example.com.", "/none"),
        ("API.EXAMPLE.COM:80", "/none"),
        // Nobody steers by our headers.
        (API, "/none?forged"),
    ] {
        let forged = [
            ("x-egress-originate", "outbound|443||api.example.com"),
            ("x-egress-forward", "outbound|443||api.example.com"),
            ("x-egress-share-0", "outbound|443||api.example.com"),
        ];
        let answer = probe::get_with(listener, host, path, &forged).await?;
        assert_eq!(answer.status, 404, "{host}{path}: {}", answer.body);
        ensure!(
            answer.body.starts_with("egress_no_route: "),
            "{}",
            answer.body
        );
    }
    let line = log_of(&stage.proxy, "/none?forged").await?;
    assert_eq!(line.egress("action"), "reject");
    assert_eq!(line.egress("reason"), "no_route");
    assert_eq!(line.istio("route_name"), "no_route");
    for site in [&stage.api, &stage.other] {
        ensure!(site.seen().is_empty(), "{:?}", site.seen());
    }
    stage.nothing_in_plaintext().await
}

#[tokio::test]
async fn a_delegate_says_where_what_its_root_takes_goes() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([API]).await?;
    let silent = SilentPort::start().await?;
    let http = "{number: 80, name: http, protocol: HTTP}, ";
    let root = "  - match: [{uri: {prefix: /v1}}]
    delegate: {name: team, namespace: team}
    rewrite: {uri: /all}
  - delegate: {name: nowhere}
  - directResponse: {status: 403}";
    // The first asks for more than it is given, and is no route at all.
    let team = format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: team, namespace: team}}
spec:
  http:
  - match: [{{uri: {{prefix: /}}}}]
    directResponse: {{status: 418}}
  - match: [{{uri: {{prefix: /v1/users}}}}]
    rewrite: {{uri: /users}}
    route: [{to}]
  - match: [{{uri: {{prefix: /v1/all}}}}]
    route: [{to}]
",
        to = to(API, "")
    );
    let rules = served(API, http) + &virtual_service(API, root) + &team;
    let proxy = trusted
        .egressctl(&rules)
        .port(80, 0)
        .connect_to(&route(API, 443, site.tls_addr()))
        .connect_to(&route(API, 80, silent.addr()))
        .start()
        .await?;
    let listener = proxy.listener(80)?;
    for (path, seen) in [("/v1/users/7", "/users/7"), ("/v1/all/8", "/all/8")] {
        let answer = probe::get(listener, API, path).await?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let found = only(&site)?;
        assert_originated(&found, API, API);
        assert_eq!(found.path, seen);
    }
    for path in ["/v1/other", "/v2"] {
        let answer = probe::get(listener, API, path).await?;
        assert_eq!(answer.status, 403, "{path}: {}", answer.body);
    }
    ensure!(site.seen().is_empty());
    silent.assert_silent().await
}

#[tokio::test]
async fn without_the_filter_no_route_leads_anywhere() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([API, TOLD]).await?;
    let at = route(API, 443, site.tls_addr());
    let mut bootstrap = rendered(&trusted, &rules(), &["--connect-to", &at]).await?;
    remove_filter(&mut bootstrap);
    let envoy = EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), [""; 0]).await?;
    let listener = envoy.listener("outbound_80")?;
    let forged = [("x-egress-originate", "outbound|443||api.example.com")];
    for (path, status) in [
        ("/v1", 503),
        ("/old", 503),
        ("/shares", 503),
        ("/none", 404),
    ] {
        let answer = probe::get_with(listener, API, path, &forged).await?;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
    }
    ensure!(site.counts(Listener::Tls).connections == 0);
    Ok(())
}

#[tokio::test]
async fn a_wildcard_has_branches_and_a_host_below_it_its_own_way() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site(["*.wild.example.com"]).await?;
    let dns = dns().await?;
    let port = site.tls_addr().port();
    let wild = format!(
        "resolution: DYNAMIC_DNS, location: MESH_INTERNAL, \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]"
    );
    let branches = "  - match: [{uri: {prefix: /v1}}]\n    \
                    route: [{destination: {host: \"*.wild.example.com\"}}]";
    let own = virtual_service(
        "own.wild.example.com",
        "  - route: [{destination: {host: own.wild.example.com}}]",
    );
    let rules = entry_with("*.wild.example.com", &wild)
        + &rule("*.wild.example.com", SIMPLE)
        + &originated("own.wild.example.com", port)
        + &virtual_service("*.wild.example.com", branches)
        + &own.replace("name: routes", "name: own");
    let proxy = by_dns(&trusted, &rules, &dns).await?;
    let http = proxy.listener(80)?;
    for (written, host) in [
        ("a.wild.example.com", "a.wild.example.com"),
        ("B.wild.example.com:80", "b.wild.example.com"),
    ] {
        let answer = probe::get(http, written, "/v1").await?;
        assert_eq!(answer.status, 200, "{written}: {}", answer.body);
        // Below a wildcard the application's own words stay, as in Istio.
        assert_originated(&only(&site)?, written, host);
        assert_eq!(probe::get(http, written, "/none").await?.status, 404);
    }
    // It has no branches, so none of the wildcard's is asked for its requests.
    for path in ["/v1", "/none"] {
        let answer = probe::get(http, "own.wild.example.com", path).await?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let told = format!("own.wild.example.com:{port}");
        assert_originated(&only(&site)?, &told, "own.wild.example.com");
    }
    ensure!(site.counts(Listener::Plain).connections == 0);
    Ok(())
}

#[tokio::test]
async fn an_upgrade_takes_the_route_of_its_path() -> Result<()> {
    let (_trusted, stage) = Stage::start().await?;
    for (path, status) in [("/v1/socket", "200"), ("/none", "404"), ("/moved", "302")] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {API}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        let answer = probe::raw(stage.proxy.listener(80)?, request.as_bytes(), SOON).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        // The site does not know the upgrade, and answers the request.
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {answer}"
        );
    }
    let seen = only(&stage.api)?;
    assert_originated(&seen, API, API);
    assert_eq!(seen.alpn.as_deref(), Some("http/1.1"));
    stage.nothing_in_plaintext().await
}

/// Takes our filter out of every listener.
fn remove_filter(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.retain(|item| {
                item.get("name") != Some(&Value::from("egress"))
                    || item.get("typed_config").is_none()
            });
            items.iter_mut().for_each(remove_filter);
        }
        Value::Object(fields) => fields.values_mut().for_each(remove_filter),
        _ => {}
    }
}

#[tokio::test]
async fn explain_says_which_route_decides() -> Result<()> {
    let trusted = Trusted::new()?;
    let file = trusted.file("rules.yaml", &rules())?;
    let file = file.to_string_lossy();
    for (args, wanted) in [
        (
            &["http://api.example.com/v1/a"][..],
            ("originate", Some(12), None),
        ),
        (
            &["http://api.example.com/x?v=7"],
            ("originate", Some(4), None),
        ),
        (
            &["http://api.example.com/x", "-H", "x-user: anna"],
            ("originate", Some(3), None),
        ),
        (
            &["http://api.example.com/v1", "--method", "DELETE"],
            ("respond", Some(2), Some(405)),
        ),
        (
            &["http://api.example.com/moved"],
            ("redirect", Some(7), Some(302)),
        ),
        (
            &["http://api.example.com/shares"],
            ("weighted", Some(9), None),
        ),
        (
            &["http://api.example.com/none"],
            ("reject", None, Some(404)),
        ),
    ] {
        let all = ["explain", "-o", "json", "-f", &file];
        let all = all.iter().chain(args);
        let output = egressctl(&trusted, all).await?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let (action, index, status) = wanted;
        let name = index.map(|index| format!("default/routes/http[{index}]/{API}:80"));
        assert_eq!(answer["action"], action, "{args:?}: {answer}");
        assert_eq!(answer["route"].as_str(), name.as_deref(), "{args:?}");
        assert_eq!(answer["status"].as_u64(), status, "{args:?}");
    }
    Ok(())
}

/// A server that answers each request for a path as the next part of the path says: with a status, `reset` to close the
/// connection without a word, or `hang` to say nothing. Behind the last part it goes on as that says.
async fn fails_by_path(certificate: &Issued) -> Result<Scripted> {
    let heard = Mutex::new(Vec::<String>::new());
    let script = move |asked: &Asked| {
        let path = asked.path().to_owned();
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let before = heard.iter().filter(|other| **other == path).count();
        heard.push(path.clone());
        let acts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match acts.get(before).or(acts.last()).copied() {
            Some("reset") | None => Reply::Reset,
            Some("hang") => Reply::Silence,
            Some(status) => Reply::Answer(status.parse().unwrap_or_default(), String::new()),
        }
    };
    Scripted::start(certificate, (Ipv4Addr::LOCALHOST, 0).into(), script).await
}

#[tokio::test]
async fn a_request_is_tried_again_as_its_route_says() -> Result<()> {
    let trusted = Trusted::new()?;
    let certificate = trusted.ca.issue(&Leaf::for_names([API]))?;
    let server = fails_by_path(&certificate).await?;
    let silent = SilentPort::start().await?;
    let routes = [
        format!(
            "  - match: [{{headers: {{x-once: {{exact: \"1\"}}}}}}]\n    route: [{}]",
            to(API, "")
        ),
        format!(
            "  - retries: {{attempts: 3, retryOn: \"reset,503\", perTryTimeout: 2s}}\n    route: [{}]",
            to(API, "")
        ),
    ];
    let rules = served(API, "{number: 80, name: http, protocol: HTTP}, ")
        + &virtual_service(API, &routes.join("\n"));
    let proxy = trusted.egressctl(&rules).port(80, 0).port(443, 0);
    let proxy = proxy.connect_to(&route(API, 443, server.addr()));
    let proxy = proxy.connect_to(&route(API, 80, silent.addr()));
    let proxy = proxy.start().await?;
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let answer = probe::get_with(proxy.listener(80)?, API, path, headers).await?;
        let heard = server.asked();
        let tries = heard.iter().filter(|asked| asked.path() == path).count();
        anyhow::Ok((answer.status, tries))
    };
    let once = [("x-once", "1")];
    // A failure of the server, and a connection that it closes without a word.
    assert_eq!(ask("/503/reset/200", &[]).await?, (200, 3));
    // Three times more, and no further.
    assert_eq!(ask("/503/503/503/503/200", &[]).await?, (503, 4));
    // What `retryOn` does not name is the answer.
    assert_eq!(ask("/500/200", &[]).await?, (500, 1));
    // A try that takes too long is given up, and the request has not failed with it.
    let (status, tries) = ask("/hang/200", &[]).await?;
    assert_eq!(status, 200);
    assert!((2..=4).contains(&tries), "{tries}");
    // A route without `retries` has none for these.
    assert_eq!(ask("/503/200/200", &once).await?, (503, 1));
    silent.assert_silent().await
}
