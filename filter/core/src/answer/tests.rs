use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::load::{Loaded, load};

/// Returns a ServiceEntry and, with `tls`, the DestinationRule that originates its requests.
fn host(name: &str, host: &str, port: Value, tls: bool) -> Vec<Value> {
    let entry = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": name},
        "spec": {"hosts": [host], "resolution": if host.starts_with('*') { "NONE" } else { "DNS" }, "ports": [port]},
    });
    let rule = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": name},
        "spec": {"host": host, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}},
    });
    let mut all = vec![entry];
    all.extend(tls.then_some(rule));
    all
}

fn http(number: u16, target: u16) -> Value {
    json!({"number": number, "name": format!("http-{number}"), "protocol": "HTTP", "targetPort": target})
}

fn table(more: Vec<Value>) -> Arc<Loaded> {
    let mut resources = host("api", "api.example.com", http(80, 443), true);
    resources.extend(host("b", "b.example.com", http(8080, 443), true));
    resources.extend(host("c", "c.example.com", http(80, 8443), true));
    resources.extend(host("w", "*.w.example.com", http(80, 443), true));
    let tls = json!({"number": 443, "name": "tls", "protocol": "TLS"});
    resources.extend(host("own", "own.example.com", tls, false));
    resources.extend(more);
    let config = json!({"resources": resources});
    Arc::new(load(config.to_string().as_bytes()).unwrap())
}

const ALL: Repairs = Repairs {
    urls: true,
    links: true,
    cookies: true,
    prefixed: true,
    hints: true,
    csp: true,
};

fn default() -> Repairs {
    Repairs::of(Repair::Default, Notes::default())
}

fn arrival(written: Option<u16>) -> Arrival<'static> {
    Arrival {
        host: "api.example.com",
        port: PortNumber::HTTP,
        written: written.and_then(PortNumber::new),
        mapped: &[],
    }
}

/// Repairs the lines of a header, and returns them with what was noted.
fn repaired(
    loaded: &Loaded,
    repairs: Repairs,
    arrival: Arrival<'_>,
    header: Repairable,
    lines: &[&str],
) -> (Vec<String>, Noted) {
    let mut answer = Answer::new(&loaded.table, repairs, arrival, false);
    let bytes: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
    let repaired = answer.repair(header, &bytes).map(|lines| {
        let text = |line: &Cow<'_, [u8]>| String::from_utf8(line.to_vec()).unwrap();
        lines.iter().map(text).collect()
    });
    let as_it_was = || lines.iter().map(|line| (*line).to_owned()).collect();
    (repaired.unwrap_or_else(as_it_was), answer.noted())
}

fn location(url: &str) -> (String, Option<Redirect>) {
    let table = table(vec![]);
    let header = Repairable::Location;
    let (lines, noted) = repaired(&table, default(), arrival(None), header, &[url]);
    assert_eq!(noted.repaired.is_empty(), lines == [url], "{url}");
    (lines.concat(), noted.redirect)
}

#[test]
fn a_url_that_the_table_would_originate_becomes_the_one_by_which_it_is_reached() {
    for (server, client) in [
        (
            "https://api.example.com/n?x=1#f",
            "http://api.example.com/n?x=1#f",
        ),
        ("https://api.example.com:443/n", "http://api.example.com/n"),
        ("HTTPS://API.Example.Com./n", "http://API.Example.Com./n"),
        ("https://api.example.com:/n", "http://api.example.com/n"),
        ("https://api.example.com", "http://api.example.com"),
        ("https://b.example.com/", "http://b.example.com:8080/"),
        ("https://c.example.com:8443/x", "http://c.example.com/x"),
        ("https://x.w.example.com?y", "http://x.w.example.com?y"),
        ("//b.example.com/x", "//b.example.com:8080/x"),
        ("//c.example.com:8443/x", "//c.example.com/x"),
    ] {
        assert_eq!(location(server), (client.to_owned(), None));
    }
}

#[test]
fn any_other_url_stays_byte_for_byte() {
    for (url, why) in [
        ("https://c.example.com/x", Some(Redirect::OtherPort)),
        ("https://own.example.com/", Some(Redirect::Passthrough)),
        ("https://unknown.example/", Some(Redirect::Leaves)),
        ("https://api.example.com.evil.test/", Some(Redirect::Leaves)),
        ("https://evil.test#api.example.com", Some(Redirect::Leaves)),
        (
            "https://api.example.com@evil.test/",
            Some(Redirect::UserInfo),
        ),
        ("https://me@api.example.com/", Some(Redirect::UserInfo)),
        (
            r"https://evil.test\@api.example.com/",
            Some(Redirect::UserInfo),
        ),
        (
            r"https://evil.test\.api.example.com/",
            Some(Redirect::Malformed),
        ),
        ("https://%61pi.example.com/", Some(Redirect::Malformed)),
        ("https://api.exämple.com/", Some(Redirect::Malformed)),
        ("https://api.example.com:0/", Some(Redirect::Malformed)),
        ("https://api.example.com:99999/", Some(Redirect::Malformed)),
        ("https://api.example.com:+443/", Some(Redirect::Malformed)),
        ("https://api.example.com:4 43/", Some(Redirect::Malformed)),
        ("https://api.example.com:000443/", Some(Redirect::Malformed)),
        ("https:/api.example.com/", Some(Redirect::Malformed)),
        ("https:///api.example.com/", Some(Redirect::Malformed)),
        ("https://[::1]:8443/", Some(Redirect::Leaves)),
        ("https://[fe80::1%25eth0]/", Some(Redirect::Malformed)),
        ("/rel", None),
        ("?q", None),
        ("../x", None),
        ("", None),
        ("http://api.example.com/", None),
        ("mailto:a@b", None),
        ("javascript:https://api.example.com/", None),
        ("//api.example.com/x", None),
        ("//evil.test/x", None),
        (" https://api.example.com/", None),
    ] {
        assert_eq!(location(url), (url.to_owned(), why));
    }
    let long = format!("https://api.example.com/{}", "x".repeat(8192));
    assert_eq!(location(&long), (long, Some(Redirect::Malformed)));
}

#[test]
fn several_lines_are_no_one_url() {
    let lines = ["https://api.example.com/a", "https://api.example.com/b"];
    let (table, header) = (table(vec![]), Repairable::Location);
    let (same, noted) = repaired(&table, default(), arrival(None), header, &lines);
    assert_eq!(
        (same, noted),
        (lines.map(str::to_owned).to_vec(), Noted::default())
    );
}

#[test]
fn the_port_is_written_as_the_application_writes_it() {
    let port = |number| PortNumber::new(number).unwrap();
    let mapped = [(port(80), port(10080)), (port(8080), port(18080))];
    for (written, url, client) in [
        (
            Some(10080),
            "https://api.example.com/",
            "http://api.example.com:10080/",
        ),
        (
            Some(10080),
            "https://b.example.com/",
            "http://b.example.com:18080/",
        ),
        // Whoever writes none dials the service ports.
        (None, "https://api.example.com/", "http://api.example.com/"),
        (None, "https://b.example.com/", "http://b.example.com:8080/"),
        (
            Some(80),
            "https://api.example.com/",
            "http://api.example.com:80/",
        ),
    ] {
        let arrival = Arrival {
            mapped: &mapped,
            ..arrival(written)
        };
        let (table, header) = (table(vec![]), Repairable::Location);
        let (lines, _) = repaired(&table, default(), arrival, header, &[url]);
        assert_eq!(lines, [client]);
    }
}

#[test]
fn the_listener_of_the_request_counts_before_port_80_and_that_before_others() {
    let mut more = host("two", "two.example.com", http(8081, 443), true);
    let ports = json!([http(8082, 443), http(8081, 443)]);
    more[0]["spec"]["ports"] = ports;
    let table = table(more);
    for (own, port) in [(8082, 8082), (8081, 8081), (80, 8081), (9999, 8081)] {
        let arrival = Arrival {
            port: PortNumber::new(own).unwrap(),
            written: PortNumber::new(own),
            ..arrival(None)
        };
        let url = ["https://two.example.com/"];
        let (lines, _) = repaired(&table, default(), arrival, Repairable::Location, &url);
        assert_eq!(lines, [format!("http://two.example.com:{port}/")]);
    }
}

#[test]
fn the_url_of_refresh_and_of_link_is_repaired_in_its_place() {
    let table = table(vec![]);
    for (header, server, client) in [
        (
            Repairable::Refresh,
            "5; URL=\"https://api.example.com/r\"",
            "5; URL=\"http://api.example.com/r\"",
        ),
        (
            Repairable::Refresh,
            "5;url=https://api.example.com/",
            "5;url=http://api.example.com/",
        ),
        (
            Repairable::Refresh,
            "0 , Url = 'https://b.example.com/'",
            "0 , Url = 'http://b.example.com:8080/'",
        ),
        (Repairable::Refresh, "5", "5"),
        (
            Repairable::Refresh,
            "x; url=https://api.example.com/",
            "x; url=https://api.example.com/",
        ),
        (
            Repairable::Refresh,
            "5; foo=https://api.example.com/",
            "5; foo=https://api.example.com/",
        ),
        (
            Repairable::Refresh,
            "5; url=\"https://api.example.com/",
            "5; url=\"https://api.example.com/",
        ),
        (
            Repairable::Link,
            "<https://api.example.com/2>; rel=\"next\", <https://unknown.example/>; title=\"<https://api.example.com/>\", </3>",
            "<http://api.example.com/2>; rel=\"next\", <https://unknown.example/>; title=\"<https://api.example.com/>\", </3>",
        ),
        (
            Repairable::Link,
            "<https://api.example.com/",
            "<https://api.example.com/",
        ),
    ] {
        let (lines, _) = repaired(&table, ALL, arrival(None), header, &[server]);
        assert_eq!(lines, [client]);
    }
}

fn cookie(repairs: Repairs, more: Vec<Value>, line: &str) -> (String, Option<CookieKept>) {
    let header = Repairable::Cookie;
    let (lines, noted) = repaired(&table(more), repairs, arrival(None), header, &[line]);
    (lines.concat(), noted.cookies)
}

#[test]
fn a_cookie_loses_what_makes_it_useless_and_nothing_else() {
    for (server, client) in [
        ("sid=1; Path=/; Secure; HttpOnly", "sid=1; Path=/; HttpOnly"),
        ("a=1;Secure", "a=1"),
        ("a=1 ; SECURE ;Path=/", "a=1 ;Path=/"),
        ("a=1; secure=1", "a=1"),
        ("a=1; Secure; Secure", "a=1"),
        ("n=1; SameSite=None; Secure", "n=1"),
        ("n=1; SameSite=Lax; Secure", "n=1; SameSite=Lax"),
        ("p=1; Secure; Partitioned", "p=1"),
        (
            "e=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Secure",
            "e=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
        ),
        (
            "d=1; Domain=.Example.com; Secure",
            "d=1; Domain=.Example.com",
        ),
        ("q=\"x\"; Secure", "q=\"x\""),
    ] {
        assert_eq!(cookie(default(), vec![], server), (client.to_owned(), None));
    }
    for same in [
        "a=secure; Path=/",
        "secure=1",
        "a=1; Securely=1",
        "a=1; X-Secure",
        "q=\"x; secure; y\"",
        "m=1; Secure, b=2; Secure",
        "n=1; SameSite=None",
        "=; Secure",
        "; Secure",
        "o=\"; Secure",
        // No client takes it.
        "f=1; Domain=other.example; Secure",
    ] {
        assert_eq!(cookie(default(), vec![], same), (same.to_owned(), None));
    }
    let long = format!("a={}; Secure", "x".repeat(4096));
    assert_eq!(cookie(default(), vec![], &long), (long, None));
}

#[test]
fn a_cookie_whose_name_is_for_tls_stays_unless_somebody_asks() {
    for (server, client) in [
        ("__Host-x=1; Secure; Path=/", "__Host-x=1; Path=/"),
        ("__secure-x=1; Secure", "__secure-x=1"),
        ("__Http-x=1; Secure; HttpOnly", "__Http-x=1; HttpOnly"),
    ] {
        let kept = (server.to_owned(), Some(CookieKept::Prefix));
        assert_eq!(cookie(default(), vec![], server), kept);
        assert_eq!(cookie(ALL, vec![], server), (client.to_owned(), None));
    }
}

#[test]
fn a_cookie_that_could_leave_in_plaintext_stays() {
    let forwarded = |host_name: &str| {
        let port = json!({"number": 8081, "name": "http", "protocol": "HTTP"});
        host("plain", host_name, port, false)
    };
    let kept = |line: &str| (line.to_owned(), Some(CookieKept::PlaintextPort));
    let own = "sid=1; Secure";
    // A rule for one port alone leaves the other in plaintext.
    let mut two = host("two", "two.example.com", http(80, 443), true);
    two[0]["spec"]["ports"] = json!([http(80, 443), http(8081, 8081)]);
    two[1]["spec"]["trafficPolicy"] = json!({
        "portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}],
    });
    let at_two = Arrival {
        host: "two.example.com",
        ..arrival(None)
    };
    let header = Repairable::Cookie;
    let (lines, noted) = repaired(&table(two), default(), at_two, header, &[own]);
    assert_eq!((lines.concat(), noted.cookies), kept(own));
    assert_eq!(
        cookie(default(), forwarded("plain.example.com"), own),
        ("sid=1".to_owned(), None)
    );
    let domain = "s=1; Domain=example.com; Secure";
    for host in [
        "plain.example.com",
        "example.com",
        "*.example.com",
        "*.sub.example.com",
        "*.com",
    ] {
        assert_eq!(
            cookie(default(), forwarded(host), domain),
            kept(domain),
            "{host}"
        );
    }
    for host in ["example.org", "notexample.com", "*.notexample.com"] {
        let repaired = ("s=1; Domain=example.com".to_owned(), None);
        assert_eq!(
            cookie(default(), forwarded(host), domain),
            repaired,
            "{host}"
        );
    }
    let foreign = table(vec![]);
    let mut answer = Answer::new(&foreign.table, default(), arrival(None), true);
    assert_eq!(answer.repair(Repairable::Cookie, &[b"sid=1; Secure"]), None);
    assert_eq!(answer.noted().cookies, Some(CookieKept::PlaintextPort));
}

#[test]
fn all_lines_of_cookies_stay_in_order() {
    let table = table(vec![]);
    let lines: Vec<String> = (0..120).map(|at| format!("c{at}=1; Secure")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let header = Repairable::Cookie;
    let (repaired, _) = repaired(&table, default(), arrival(None), header, &lines);
    let expected: Vec<String> = (0..120).map(|at| format!("c{at}=1")).collect();
    assert_eq!(repaired, expected);
}

#[test]
fn a_policy_loses_what_tells_browsers_to_speak_tls() {
    let table = table(vec![]);
    for (server, client) in [
        (
            "default-src 'self'; Upgrade-Insecure-Requests; img-src *",
            Some("default-src 'self'; img-src *"),
        ),
        ("upgrade-insecure-requests", None),
        (
            "upgrade-insecure-requests, default-src 'self'",
            Some(" default-src 'self'"),
        ),
        (
            "block-all-mixed-content ;default-src *",
            Some("default-src *"),
        ),
        (
            "x-upgrade-insecure-requests",
            Some("x-upgrade-insecure-requests"),
        ),
    ] {
        let (lines, _) = repaired(&table, ALL, arrival(None), Repairable::Csp, &[server]);
        assert_eq!(lines, client.map(str::to_owned).as_slice(), "{server}");
    }
    let (same, _) = repaired(
        &table,
        default(),
        arrival(None),
        Repairable::Csp,
        &["upgrade-insecure-requests"],
    );
    assert_eq!(same, ["upgrade-insecure-requests"]);
}

proptest! {
    /// Whatever a server says: only scheme and port change, and a second repair changes nothing.
    #[test]
    fn only_scheme_and_port_of_a_url_change(
        scheme in "(https|HTTPS|http|ftp)?:?",
        slashes in "/{0,3}",
        host in "(api|b|c|x\\.w|evil)\\.example\\.com|[ -~]{0,12}",
        rest in "(:[0-9]{0,6})?[/?#]?[ -~]{0,20}",
    ) {
        let url = format!("{scheme}{slashes}{host}{rest}");
        let (first, _) = location(&url);
        prop_assert_eq!(&location(&first).0, &first);
        if first != url {
            let host_of = |url: &str| {
                let after = url.split_once("//").unwrap().1.to_owned();
                let authority = after.split(['/', '?', '#']).next().unwrap().to_owned();
                let rest = after[authority.len()..].to_owned();
                (authority.split(':').next().unwrap().to_owned(), rest)
            };
            prop_assert_eq!(host_of(&first), host_of(&url));
            prop_assert!(first.starts_with("http://") || first.starts_with("//"));
        }
    }

    /// Whatever bytes a server sends, nothing panics, and no line gets a byte that it had not.
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..64), at in 0..REPAIRABLE.len()) {
        let table = table(vec![]);
        let mut answer = Answer::new(&table.table, ALL, arrival(None), false);
        let (header, _) = REPAIRABLE[at];
        if let Some(lines) = answer.repair(header, &[&bytes]) {
            for line in lines {
                prop_assert!(line.len() <= bytes.len() + 6);
            }
        }
    }

    /// A cookie that is repaired is the same cookie.
    #[test]
    fn a_repaired_cookie_has_the_same_name_and_value(
        name in "[!-:<-~]{0,8}",
        attributes in prop::collection::vec("(Secure|secure|HttpOnly|Path=/|SameSite=None|Partitioned|[ -:<-~]{0,8})", 0..5),
    ) {
        let line = format!("{name}; {}", attributes.join("; "));
        let (repaired, _) = cookie(ALL, vec![], &line);
        prop_assert_eq!(repaired.split(';').next(), line.split(';').next());
        prop_assert!(repaired.len() <= line.len());
    }
}
