//! What servers say to clients of TLS, repaired for applications that speak plain HTTP; and what stays as it is.

mod common;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
};

use egress_integration::{
    egressctl::{Builder, Running},
    pki::Leaf,
    probe,
    scripted::{Asked, Reply, Scripted},
    silent_port::SilentPort,
};

use common::{HOST, SIMPLE, SOON, Trusted, entry, request, route, rule};

/// Another host of the rules, whose plain port is not 80.
const OTHER: &str = "b.example.com";
/// What a site says that takes its clients for clients of TLS.
const MODERN: [&str; 10] = [
    "Location: https://edition.cnn.com/n?x=1#f",
    "Content-Location: https://b.example.com/",
    "Refresh: 5; URL=\"https://edition.cnn.com/r\"",
    "Link: <https://edition.cnn.com/2>; rel=\"next\"",
    "Strict-Transport-Security: max-age=31536000",
    "Alt-Svc: h3=\":443\"",
    "Content-Security-Policy: default-src 'self'; upgrade-insecure-requests",
    "Set-Cookie: sid=1; Path=/; Secure; HttpOnly",
    "Set-Cookie: e=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; SameSite=None; Secure",
    "Set-Cookie: __Host-x=1; Path=/; Secure",
];
/// What the application gets of it by default.
const REPAIRED: [&str; 8] = [
    "location: http://edition.cnn.com/n?x=1#f",
    "content-location: http://b.example.com:8080/",
    "refresh: 5; URL=\"http://edition.cnn.com/r\"",
    "link: <https://edition.cnn.com/2>; rel=\"next\"",
    "content-security-policy: default-src 'self'; upgrade-insecure-requests",
    "set-cookie: sid=1; Path=/; HttpOnly",
    "set-cookie: e=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
    "set-cookie: __Host-x=1; Path=/; Secure",
];
const FORMS: [&str; 2] = ["wasm", "module"];

fn whole(status: &str, headers: &[&str]) -> Reply {
    let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n");
    for header in headers {
        text += &format!("{header}\r\n");
    }
    Reply::Whole(text + "\r\n")
}

async fn server(
    trusted: &Trusted,
    script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
) -> Result<Scripted> {
    let certificate = trusted.ca.issue(&Leaf::for_names([HOST, OTHER]))?;
    Scripted::start(&certificate, ([127, 0, 0, 1], 0).into(), script).await
}

fn rules() -> String {
    let other = entry(OTHER, 443).replace("number: 80", "number: 8080");
    [
        entry(HOST, 443),
        rule(HOST, SIMPLE),
        other,
        rule(OTHER, SIMPLE),
    ]
    .concat()
}

/// The rules with annotations of the first host's.
fn annotated(notes: &str) -> String {
    let rule = "kind: DestinationRule\nmetadata: {";
    let with = format!("{rule}annotations: {{{notes}}}, ");
    rules().replacen(rule, &with, 1)
}

fn run(trusted: &Trusted, server: &Scripted, form: &str, rules: &str) -> Builder {
    let proxy = trusted.egressctl(rules).arg("--filter").arg(form);
    proxy
        .port(8080, 0)
        .connect_to(&route(HOST, 443, server.addr()))
        .connect_to(&route(OTHER, 443, server.addr()))
}

/// Asks, and returns the headers that the application gets, but for those that every answer has.
async fn told(at: SocketAddr, lines: &[&str]) -> Result<Vec<String>> {
    let asked = [lines, &["Connection: close"]].concat();
    let answer = probe::raw(at, request(&asked).as_bytes(), SOON).await?;
    let answer = String::from_utf8(answer)?;
    let (head, _) = answer.split_once("\r\n\r\n").context(answer.clone())?;
    let usual = [
        "HTTP/",
        "date:",
        "server:",
        "connection:",
        "content-length:",
        "x-envoy-upstream-service-time:",
    ];
    let rest = head
        .lines()
        .filter(|line| !usual.iter().any(|it| line.starts_with(it)));
    Ok(rest.map(str::to_owned).collect())
}

async fn told_on(proxy: &Running, port: u16, host: &str) -> Result<Vec<String>> {
    let host = format!("Host: {host}");
    told(proxy.listener(port)?, &["GET /here HTTP/1.1", &host]).await
}

/// The lines as HTTP/1 of Envoy has them: names in lower case.
fn lower(lines: &[&str]) -> Vec<String> {
    let one = |line: &&str| {
        let end = line.find(':').unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        name.to_ascii_lowercase() + rest
    };
    lines.iter().map(one).collect()
}

/// Returns the lines in the order in which lines of one name came, names sorted.
fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort_by_key(|line| line.split(':').next().unwrap_or_default().to_owned());
    lines
}

#[tokio::test]
async fn what_leads_back_to_us_is_repaired_and_the_log_says_what() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, |_| whole("302 Found", &MODERN)).await?;
    for form in FORMS {
        let proxy = run(&trusted, &server, form, &rules()).port(80, 0);
        let proxy = proxy.start().await?;
        let repaired = REPAIRED.map(str::to_owned).to_vec();
        assert_eq!(
            sorted(told_on(&proxy, 80, HOST).await?),
            sorted(repaired),
            "{form}"
        );
        let log = proxy
            .wait_for_log(|line| line.contains("repaired="), SOON)
            .await?;
        ensure!(
            log.contains("repaired=location,content-location,refresh,cookie")
                && log.contains("cookies=kept:prefix")
                && !log.contains("redirect="),
            "{form}: {log}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn everything_is_repaired_where_somebody_asks_for_it() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, |_| whole("201 Created", &MODERN)).await?;
    let mut all = REPAIRED.map(str::to_owned).to_vec();
    all[3] = "link: <http://edition.cnn.com/2>; rel=\"next\"".to_owned();
    all[4] = "content-security-policy: default-src 'self'".to_owned();
    all[7] = "set-cookie: __Host-x=1; Path=/".to_owned();
    let words = "egressctl/redirects: \"rewrite,link\", egressctl/cookies: repair-prefixed, egressctl/transport-hints: \"remove,csp\"";
    for form in FORMS {
        for (notes, flag) in [("", "all"), (words, "default"), (words, "none")] {
            let rules = annotated(notes);
            let proxy = run(&trusted, &server, form, &rules).port(80, 0);
            let proxy = proxy.arg("--repair").arg(flag).start().await?;
            let told = told_on(&proxy, 80, HOST).await?;
            assert_eq!(sorted(told), sorted(all.clone()), "{form} {flag} {notes}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn everything_stays_where_somebody_asks_for_it() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, |_| whole("200 OK", &MODERN)).await?;
    let keep =
        "egressctl/redirects: keep, egressctl/cookies: keep, egressctl/transport-hints: keep";
    for form in FORMS {
        for (notes, flag) in [("", "none"), (keep, "default"), (keep, "all")] {
            let rules = annotated(notes);
            let proxy = run(&trusted, &server, form, &rules).port(80, 0);
            let proxy = proxy.arg("--repair").arg(flag).start().await?;
            let told = told_on(&proxy, 80, HOST).await?;
            assert_eq!(
                sorted(told),
                sorted(lower(&MODERN)),
                "{form} {flag} {notes}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_host_that_keeps_its_answers_keeps_them_from_no_other() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, |_| whole("200 OK", &MODERN)).await?;
    let rules = annotated("egressctl/transport-hints: keep").replace("number: 8080", "number: 80");
    for form in FORMS {
        let proxy = run(&trusted, &server, form, &rules)
            .port(80, 0)
            .start()
            .await?;
        for (host, kept) in [(HOST, true), (OTHER, false)] {
            let told = told_on(&proxy, 80, host).await?;
            let hints = |line: &&String| {
                line.starts_with("strict-transport-security") || line.starts_with("alt-svc")
            };
            let there = told.iter().filter(hints).count();
            assert_eq!(there, if kept { 2 } else { 0 }, "{form} {host}: {told:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_leads_elsewhere_stays_and_is_told() -> Result<()> {
    const CASES: [(&str, &str, &str); 5] = [
        ("/leaves", "https://elsewhere.example/", "redirect=leaves"),
        (
            "/prefix",
            "https://edition.cnn.com.evil.test/",
            "redirect=leaves",
        ),
        (
            "/user",
            "https://edition.cnn.com@evil.test/",
            "redirect=kept:userinfo",
        ),
        (
            "/port",
            "https://edition.cnn.com:8443/",
            "redirect=kept:other_port",
        ),
        (
            "/back",
            r"https://evil.test\.cnn.com/",
            "redirect=kept:malformed",
        ),
    ];
    let trusted = Trusted::new()?;
    let answer = |asked: &Asked| {
        let (_, url, _) = CASES
            .iter()
            .find(|(path, ..)| *path == asked.path())
            .unwrap();
        whole("307 Temporary Redirect", &[&format!("Location: {url}")])
    };
    let server = server(&trusted, answer).await?;
    for form in FORMS {
        let proxy = run(&trusted, &server, form, &rules())
            .port(80, 0)
            .start()
            .await?;
        for (path, url, word) in CASES {
            let lines = [format!("GET {path} HTTP/1.1"), format!("Host: {HOST}")];
            let lines = lines.each_ref().map(String::as_str);
            let told = told(proxy.listener(80)?, &lines).await?;
            assert_eq!(told, [format!("location: {url}")], "{form}");
            let about = format!("\"GET {path} ");
            let log = proxy
                .wait_for_log(|line| line.contains(&about), SOON)
                .await?;
            ensure!(
                log.contains(word) && !log.contains("repaired="),
                "{form}: {log}"
            );
        }
        let stats = proxy.admin_get("/stats?filter=redirects_leaving").await?;
        ensure!(
            stats.body.trim().ends_with("redirects_leaving: 2"),
            "{form}: {}",
            stats.body
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_is_forwarded_in_plaintext_stays_as_it_is() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let at = server.local_addr()?;
    let Reply::Whole(answer) = whole("302 Found", &MODERN) else {
        unreachable!("it is whole");
    };
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            let mut head = vec![0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let plain = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: plain}}\nspec: {{hosts: [plain.example.com], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {}}}], endpoints: [{{address: 127.0.0.1}}]}}\n",
        at.port()
    );
    for form in FORMS {
        let rules = plain.clone() + &rules();
        let proxy = trusted.egressctl(&rules).arg("--filter").arg(form);
        let proxy = proxy.port(80, 0).port(8080, 0).start().await?;
        let told = told_on(&proxy, 80, "plain.example.com").await?;
        assert_eq!(sorted(told), sorted(lower(&MODERN)), "{form}");
    }
    serving.abort();
    Ok(())
}

#[tokio::test]
async fn a_forward_proxy_writes_urls_as_its_clients_do() -> Result<()> {
    let trusted = Trusted::new()?;
    let answer = |_: &Asked| {
        let locations = [
            "Location: https://edition.cnn.com/n",
            "Content-Location: https://b.example.com/",
        ];
        whole("301 Moved Permanently", &locations)
    };
    let server = server(&trusted, answer).await?;
    for form in FORMS {
        let proxy = run(&trusted, &server, form, &rules());
        let proxy = proxy
            .arg("--forward-proxy")
            .arg("127.0.0.1:0")
            .start()
            .await?;
        for (authority, location) in [
            (HOST, "http://edition.cnn.com/n"),
            ("edition.cnn.com:80", "http://edition.cnn.com:80/n"),
        ] {
            let lines = [
                format!("GET http://{authority}/ HTTP/1.1"),
                format!("Host: {authority}"),
            ];
            let lines = lines.each_ref().map(String::as_str);
            let told = told(proxy.forward_proxy()?, &lines).await?;
            let expected = [
                format!("location: {location}"),
                "content-location: http://b.example.com:8080/".to_owned(),
            ];
            assert_eq!(sorted(told), sorted(expected.to_vec()), "{form}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_route_of_a_virtual_service_repairs_too() -> Result<()> {
    let trusted = Trusted::new()?;
    let server = server(&trusted, |_| whole("302 Found", &MODERN)).await?;
    let routes = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: routes}}\nspec:\n  hosts: [{HOST}]\n  http:\n  - match: [{{uri: {{prefix: /here}}}}]\n    route: [{{destination: {{host: {HOST}, port: {{number: 80}}}}}}]\n"
    );
    for form in FORMS {
        let rules = routes.clone() + &rules();
        let proxy = run(&trusted, &server, form, &rules)
            .port(80, 0)
            .start()
            .await?;
        let told = told_on(&proxy, 80, HOST).await?;
        // Which branch another request would take is not known: URLs of a host with branches stay.
        let mut expected = REPAIRED.map(str::to_owned);
        expected[0] = "location: https://edition.cnn.com/n?x=1#f".to_owned();
        expected[2] = "refresh: 5; URL=\"https://edition.cnn.com/r\"".to_owned();
        assert_eq!(sorted(told), sorted(expected.to_vec()), "{form}");
    }
    Ok(())
}

/// A site that wants TLS sends its clients to https, and gives them cookies for that alone. Through us a client ends
/// where it wanted to, and is known when it comes again. What it follows is what curl follows of itself.
#[tokio::test]
async fn a_client_follows_a_modern_site_and_stays_logged_in() -> Result<()> {
    let trusted = Trusted::new()?;
    let answer = |asked: &Asked| match asked.path() {
        "/" => whole(
            "301 Moved Permanently",
            &[
                "Location: https://b.example.com/login",
                "Strict-Transport-Security: max-age=9",
            ],
        ),
        "/login" => whole(
            "302 Found",
            &[
                "Location: https://b.example.com/home",
                "Set-Cookie: sid=1; Path=/; Secure; SameSite=None",
            ],
        ),
        "/loop" => whole(
            "301 Moved Permanently",
            &["Location: https://edition.cnn.com/loop"],
        ),
        _ => Reply::Answer(
            200,
            format!("{}\n", asked.header("cookie").unwrap_or("nobody")),
        ),
    };
    let server = server(&trusted, answer).await?;
    let silent = SilentPort::start().await?;
    for form in FORMS {
        let proxy = run(&trusted, &server, form, &rules())
            .connect_to(&route(HOST, 80, silent.addr()))
            .connect_to(&route(OTHER, 80, silent.addr()))
            .arg("--forward-proxy")
            .arg("127.0.0.1:0");
        let proxy = proxy.start().await?;
        let through = format!("http://{}", proxy.forward_proxy()?);
        let curl = async |url: &str, more: &[&str]| {
            let mut command = Command::new("curl");
            command.args(["-sS", "-L", "-b", "", "-x", &through, "--max-redirs", "5"]);
            let end = tokio::time::timeout(
                Duration::from_secs(60),
                command.args(more).arg(url).output(),
            );
            anyhow::Ok(end.await??)
        };
        let done = curl("http://edition.cnn.com/", &[]).await?;
        ensure!(done.status.success(), "{form}: {done:?}");
        assert_eq!(String::from_utf8(done.stdout)?, "sid=1\n", "{form}");
        // A site that does not know that it was called over TLS: the client gives up, and all of it was over TLS.
        let done = curl("http://edition.cnn.com/loop", &[]).await?;
        assert_eq!(done.status.code(), Some(47), "{form}: {done:?}");
        let log = proxy
            .wait_for_log(|line| line.contains("/loop"), SOON)
            .await?;
        ensure!(log.contains("repaired=location"), "{form}: {log}");
    }
    silent.assert_silent().await
}
