//! Nothing leaves in plaintext that somebody asked to be TLS: each form of rules that once did, on the wire.
//!
//! A form is either a mistake, which nothing starts with, or refuses the caller. Then the same rules are forced into the
//! filter: an Envoy is rendered as if all plaintext were allowed, and the permission is taken out of the filter's
//! configuration by hand. Where plaintext would arrive somebody listens, and hears nothing.

mod common;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use egress_integration::{
    egressctl::Running,
    envoy::{self, EnvoyProcess},
    probe,
    silent_port::SilentPort,
    stand_in::Listener,
};
use serde_json::Value;

use common::{
    HOST, SIMPLE, SOON, Trusted, egressctl, entry, entry_with, eventually, only, originated,
    rendered, route, rule,
};

/// What becomes of the rules.
#[derive(Clone, Copy)]
enum Outcome {
    /// An error of this id; nothing starts.
    Mistake(&'static str),
    /// The request is refused for this reason.
    Refused(&'static str),
}

struct Form {
    name: &'static str,
    rules: String,
    outcome: Outcome,
}

fn document(kind: &str, namespace: &str, spec: &str) -> String {
    let group = match kind {
        "BackendTLSPolicy" | "HTTPRoute" | "TLSRoute" => "gateway.networking.k8s.io",
        _ => "networking.istio.io",
    };
    format!(
        "---\napiVersion: {group}/v1\nkind: {kind}\nmetadata: {{name: more, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// All forms, to a server that is dialled on this port.
fn forms(target: u16) -> Vec<Form> {
    let mistake = |name, id, more: String| Form {
        name,
        rules: entry(HOST, target) + &more,
        outcome: Outcome::Mistake(id),
    };
    let refused = |name, reason, more: String| Form {
        name,
        rules: entry(HOST, target) + &more,
        outcome: Outcome::Refused(reason),
    };
    let tls = "trafficPolicy: {tls: {mode: SIMPLE}}";
    let of_host = format!("host: {HOST}, {tls}");
    let secure = rule(HOST, SIMPLE);
    let to =
        |host: &str| format!("route: [{{destination: {{host: {host}, port: {{number: 443}}}}}}]");
    let parent = "group: networking.istio.io, kind: ServiceEntry, name: edition-cnn-com";
    let backend = "backendRefs: [{group: networking.istio.io, kind: Hostname, name: other.example, port: 443}]";
    let mut forms = vec![
        mistake(
            "a slip in the host",
            "host-never-matches",
            rule("editon.cnn.com", SIMPLE),
        ),
        mistake(
            "a port that no entry has",
            "port-never-matches",
            rule(
                HOST,
                "{portLevelSettings: [{port: {number: 8443}, tls: {mode: SIMPLE}}]}",
            ),
        ),
        mistake(
            "settings of the port that drop tls",
            "port-settings-drop-tls",
            rule(
                HOST,
                "{tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 9}}}]}",
            ),
        ),
        mistake(
            "tls of a subset alone",
            "tls-in-unused-subset",
            document(
                "DestinationRule",
                "default",
                &format!("host: {HOST}, subsets: [{{name: v1, {tls}}}]"),
            ),
        ),
        mistake(
            "a rule that another shadows",
            "shadowed-rule",
            rule(HOST, "{connectionPool: {tcp: {maxConnections: 9}}}")
                + &document("DestinationRule", "default", &of_host),
        ),
        refused(
            "a workloadSelector for others",
            "left_out",
            document(
                "DestinationRule",
                "default",
                &format!("{of_host}, workloadSelector: {{matchLabels: {{app: other}}}}"),
            ),
        ),
        refused(
            "a rule in a third namespace",
            "left_out",
            document("DestinationRule", "third", &of_host),
        ),
        refused(
            "a VirtualService to a port that there is not",
            "unknown_destination",
            secure.clone()
                + &document(
                    "VirtualService",
                    "default",
                    &format!("hosts: [{HOST}], http: [{{{}}}]", to(HOST)),
                ),
        ),
        mistake(
            "a BackendTLSPolicy for a port that is not there",
            "port-never-matches",
            document(
                "BackendTLSPolicy",
                "default",
                &format!(
                    "targetRefs: [{{{parent}, sectionName: htpp}}], validation: {{hostname: {HOST}, wellKnownCACertificates: System}}"
                ),
            ),
        ),
        refused(
            "an HTTPRoute to a host that is not there",
            "unknown_destination",
            secure.clone()
                + &document(
                    "HTTPRoute",
                    "default",
                    &format!("parentRefs: [{{{parent}}}], rules: [{{{backend}}}]"),
                ),
        ),
        refused(
            "a Sidecar that does not take the host in",
            "unknown_host",
            // Another host keeps the port open.
            secure.clone()
                + &entry("other.example", 80)
                + &document(
                    "Sidecar",
                    "default",
                    "egress: [{hosts: [\"./other.example\"]}]",
                ),
        ),
        refused(
            "an EnvoyFilter with a transport socket",
            "not_read",
            secure
                + &document(
                    "EnvoyFilter",
                    "default",
                    "configPatches: [{applyTo: CLUSTER, match: {context: SIDECAR_OUTBOUND}, patch: {operation: MERGE, value: {transport_socket: {name: envoy.transport_sockets.raw_buffer}}}}]",
                ),
        ),
    ];
    // Entry and rule in a namespace of their own, which keeps the rule to itself.
    let ports = format!(
        "resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {target}}}]"
    );
    forms.push(Form {
        name: "exportTo that hides the rule",
        rules: document(
            "ServiceEntry",
            "shared",
            &format!("hosts: [{HOST}], {ports}"),
        ) + &document(
            "DestinationRule",
            "shared",
            &format!("{of_host}, exportTo: [\".\"]"),
        ),
        outcome: Outcome::Refused("left_out"),
    });
    forms.push(Form {
        name: "an entry that nobody sees",
        rules: entry_with(HOST, &format!("{ports}, exportTo: [\"~\"]"))
            + &document("DestinationRule", "default", &of_host),
        outcome: Outcome::Mistake("exported-to-nobody"),
    });
    forms.push(Form {
        name: "a short name",
        rules: entry("edition", target) + &rule("edition", SIMPLE),
        outcome: Outcome::Mistake("host-never-matches"),
    });
    if target == 443 {
        forms.push(Form {
            name: "no rule at all",
            rules: entry(HOST, target),
            outcome: Outcome::Mistake("plaintext-to-443"),
        });
    }
    forms
}

/// Where the plaintext of a form would arrive.
async fn silent() -> Result<(SilentPort, Vec<String>)> {
    let silent = SilentPort::start().await?;
    let routes = [(HOST, 80), (HOST, 443), ("edition", 80), ("edition", 443)];
    let routes = routes.map(|(host, port)| route(host, port, silent.addr()));
    Ok((silent, routes.to_vec()))
}

fn host_of(form: &Form) -> &'static str {
    if form.name == "a short name" {
        "edition"
    } else {
        HOST
    }
}

#[tokio::test]
async fn no_form_starts_or_lets_plaintext_out() -> Result<()> {
    let trusted = Trusted::new()?;
    let (silent, routes) = silent().await?;
    for target in [80, 443] {
        for form in forms(target) {
            let name = format!("{} (to {target})", form.name);
            match form.outcome {
                Outcome::Mistake(id) => {
                    let file = trusted.file("rules.yaml", &form.rules)?;
                    let mut args = vec!["run".to_owned(), "--port".to_owned(), "80=0".to_owned()];
                    args.extend(["-f".to_owned(), file.display().to_string()]);
                    let output = egressctl(&trusted, args).await?;
                    let said = String::from_utf8_lossy(&output.stderr);
                    ensure!(
                        output.status.code() == Some(1),
                        "{name}: {}: {said}",
                        output.status
                    );
                    ensure!(said.contains(&format!("error: [{id}] ")), "{name}: {said}");
                    ensure!(said.matches("error:").count() == 1, "{name}: {said}");
                }
                Outcome::Refused(reason) => {
                    let mut builder = trusted.egressctl(&form.rules).port(80, 0);
                    for route in &routes {
                        builder = builder.connect_to(route);
                    }
                    let proxy = builder.start().await.context(name.clone())?;
                    let answer = probe::get(proxy.listener(80)?, host_of(&form), "/").await?;
                    // As where a route names a cluster that there is not.
                    let lost = reason == "unknown_destination";
                    let status = if lost { 503 } else { 502 };
                    ensure!(answer.status == status, "{name}: {answer:?}");
                    let body = &answer.body;
                    ensure!(
                        body.starts_with(&format!("egress_{reason}: ")),
                        "{name}: {body}"
                    );
                    let logged = format!("reason={reason} ");
                    proxy
                        .wait_for_log(|line| line.contains(&logged), SOON)
                        .await?;
                    proxy.stop().await?;
                }
            }
            silent.assert_silent().await.context(name)?;
        }
    }
    Ok(())
}

/// Takes the permission for plaintext, and the digest of the table that had it, out of all configurations of the filter.
fn forbid(value: &mut Value) -> Result<usize> {
    let mut found = 0;
    match value {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                if key == "value"
                    && let Some(text) = value.as_str()
                    && text.contains("allowPlaintext")
                {
                    let mut plugin: Value = serde_json::from_str(text)?;
                    let settings = plugin.as_object_mut().context("no object")?;
                    settings.remove("allowPlaintext").context("no permission")?;
                    settings.remove("digest").context("no digest")?;
                    *value = Value::String(plugin.to_string());
                    found += 1;
                } else {
                    found += forbid(value)?;
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                found += forbid(item)?;
            }
        }
        _ => {}
    }
    Ok(found)
}

#[tokio::test]
async fn a_table_forced_into_the_filter_lets_no_plaintext_out() -> Result<()> {
    let trusted = Trusted::new()?;
    let (silent, routes) = silent().await?;
    let mut args = vec!["--allow-plaintext", "*"];
    for route in &routes {
        args.extend(["--connect-to", route]);
    }
    for target in [80, 443] {
        for form in forms(target) {
            let name = format!("{} (to {target})", form.name);
            // No host is there that could be forced in, or the document itself is refused.
            if form.name == "an entry that nobody sees" || form.name.contains("BackendTLSPolicy") {
                continue;
            }
            let mut bootstrap = rendered(&trusted, &form.rules, &args).await?;
            ensure!(forbid(&mut bootstrap)? > 0, "{name}: nothing to forbid");
            let started =
                EnvoyProcess::start(&envoy::binary()?, &bootstrap.to_string(), [""; 0]).await;
            match (started, form.outcome) {
                // Envoy does not start with a filter that takes no configuration.
                (Err(error), Outcome::Mistake(_)) => {
                    ensure!(
                        error.to_string().contains("would be plaintext")
                            || error.to_string().contains("would go to TLS port"),
                        "{name}: {error}"
                    );
                }
                (Err(error), Outcome::Refused(_)) => return Err(error.context(name)),
                (Ok(envoy), _) => {
                    let answer =
                        probe::get(envoy.listener("outbound_80")?, host_of(&form), "/").await?;
                    ensure!(answer.status >= 500, "{name}: {answer:?}");
                    envoy.stop().await?;
                }
            }
            silent.assert_silent().await.context(name)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn allowed_plaintext_leaves_is_logged_and_counted() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let rules = entry(HOST, 80) + &rule("editon.cnn.com", SIMPLE);
    let builder = trusted.egressctl(&rules).port(80, 0);
    let builder = builder.connect_to(&route(HOST, 80, site.plain_addr()));
    let proxy = builder
        .arg("--allow-plaintext")
        .arg(format!("{HOST}:80"))
        .start()
        .await?;
    for _ in 0..2 {
        let answer = probe::get(proxy.listener(80)?, HOST, "/allowed").await?;
        ensure!(answer.status == 301 || answer.status == 200, "{answer:?}");
    }
    let seen = site.take_seen();
    ensure!(
        seen.len() == 2 && seen.iter().all(|seen| seen.listener == Listener::Plain),
        "{seen:?}"
    );
    let line = proxy
        .wait_for_log(|line| line.contains("/allowed"), SOON)
        .await?;
    ensure!(line.trim_end().ends_with(" plaintext=allowed"), "{line}");
    let counted = async || {
        let stats = proxy.admin_get("/stats?filter=plaintext_allowed").await?;
        Ok(stats
            .body
            .contains("wasmcustom.egress.plaintext_allowed: 2"))
    };
    eventually("two requests are counted", counted).await?;
    proxy.stop().await?;
    Ok(())
}

/// A run whose rules are a file that can be replaced, and which dials one site.
struct Live {
    proxy: Running,
    file: PathBuf,
}

impl Live {
    async fn start(
        trusted: &Trusted,
        rules: &str,
        site: &egress_integration::stand_in::StandIn,
    ) -> Result<Self> {
        let file = trusted.file("live.yaml", rules)?;
        let builder = egress_integration::egressctl::Egressctl::builder()
            .rules(&file)
            .env("SSL_CERT_FILE", trusted.bundle())
            .port(80, 0)
            .connect_to(&route(HOST, 443, site.tls_addr()))
            .connect_to(&route(HOST, 80, site.plain_addr()));
        Ok(Live {
            proxy: builder.start().await?,
            file,
        })
    }

    fn write(&self, rules: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, rules)?;
        Ok(std::fs::rename(&new, &self.file)?)
    }

    async fn said(&self, text: &str) -> Result<()> {
        let said = self.proxy.wait_for_stderr(|line| line.contains(text), SOON);
        said.await.map(|_| ())
    }

    async fn get(&self) -> Result<u16> {
        Ok(probe::get(self.proxy.listener(80)?, HOST, "/")
            .await?
            .status)
    }
}

#[tokio::test]
async fn rules_that_lack_something_are_waited_for_and_then_refused() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let whole = originated(HOST, 443);
    let live = Live::start(&trusted, &whole, &site).await?;
    ensure!(live.get().await? == 200);
    // The rule goes a moment before it comes back: nobody hears of it.
    live.write(&entry(HOST, 443))?;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    ensure!(live.get().await? == 200);
    live.write(&whole)?;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    ensure!(
        !live
            .proxy
            .stderr()
            .iter()
            .any(|line| line.contains("error:")),
        "{:?}",
        live.proxy.stderr()
    );
    // It stays away: the rules before it stay in use, and TLS with them.
    live.write(&entry(HOST, 443))?;
    live.said("[plaintext-to-443]").await?;
    live.said("the rules before them stay in use").await?;
    site.take_seen();
    ensure!(live.get().await? == 200);
    ensure!(only(&site)?.listener == Listener::Tls);
    ensure!(site.counts(Listener::Plain).connections == 0);
    live.proxy.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_last_entry_and_rule_may_be_removed() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let other = entry("other.example.com", 8080);
    let live = Live::start(&trusted, &(originated(HOST, 443) + &other), &site).await?;
    ensure!(live.get().await? == 200);
    // The entry goes before the rule, as `kubectl delete` may have it.
    live.write(&(rule(HOST, SIMPLE) + &other))?;
    eventually("the host is unknown", async || Ok(live.get().await? == 502)).await?;
    live.write(&other)?;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    ensure!(live.get().await? == 502);
    // Everything goes: nothing is listened on any more, and nothing was refused.
    live.write("")?;
    let gone = async || {
        Ok(probe::get(live.proxy.listener(80)?, HOST, "/")
            .await
            .is_err())
    };
    eventually("nobody listens", gone).await?;
    ensure!(
        !live
            .proxy
            .stderr()
            .iter()
            .any(|line| line.contains("error:")),
        "{:?}",
        live.proxy.stderr()
    );
    ensure!(site.counts(Listener::Plain).connections == 0);
    live.proxy.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_host_that_becomes_plaintext_as_its_rules_say_is_told() -> Result<()> {
    let trusted = Trusted::new()?;
    let site = trusted.site([HOST]).await?;
    let live = Live::start(&trusted, &originated(HOST, 443), &site).await?;
    ensure!(live.get().await? == 200);
    live.write(&entry(HOST, 80))?;
    live.said("port 80 of `edition.cnn.com` is plaintext now")
        .await?;
    let plain = async || {
        live.get().await?;
        Ok(site.counts(Listener::Plain).connections > 0)
    };
    eventually("plaintext arrives", plain).await?;
    live.proxy.stop().await?;
    Ok(())
}
