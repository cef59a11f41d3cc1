//! What happens in a run, as people, programs and the service manager are told of it.

use std::fmt::Write as _;

use egress_render::xds;
use egress_rules::Complaint;
use egress_run::admin::Addresses;
use egress_run::{Drain, Event, LogLevel, Reloaded, envoy_log};
use serde_json::{Map, Value, json};

use super::args::{Report as Format, run};
use super::notify::Manager;
use super::output::{print, tell, tell_event};

/// How a run is reported.
pub(super) struct Report {
    format: Format,
    level: LogLevel,
    manager: Manager,
}

impl Report {
    pub(super) fn new(format: Format, level: run::LogLevel) -> Self {
        Report {
            format,
            level: level.into(),
            manager: Manager::find(),
        }
    }

    /// Shows one event.
    ///
    /// # Errors
    /// When the line that says that it is ready cannot be written: nobody would know.
    pub(super) fn show(&self, event: Event) -> Result<(), Complaint> {
        self.manager.tell(&event);
        let level = level(&event);
        // What programs wait for is always written.
        let waited_for = matches!(event, Event::Ready(_) | Event::Reloaded(_));
        if level > self.level && !waited_for || is_known(&event) {
            return Ok(());
        }
        match self.format {
            Format::Text => shown(event),
            Format::Json => {
                let (name, fields) = fields(&event);
                tell_event(word(&event, level), name, fields);
                Ok(())
            }
        }
    }

    /// Tells the service manager that this is the end.
    pub(super) fn ends(&self) {
        self.manager.stopping();
    }
}

/// How much an event matters. What a run does is told as long as warnings are.
fn level(event: &Event) -> LogLevel {
    match event {
        Event::Refused(_) => LogLevel::Error,
        Event::EnvoySaid(line) => of_envoy(line),
        Event::Reloading => LogLevel::Info,
        _ => LogLevel::Warning,
    }
}

/// The level of a line of Envoy's log, such as `[2026-01-02 03:04:05.678][12][warning][main] …`. What has none is the
/// rest of a line before it.
fn of_envoy(line: &str) -> LogLevel {
    let level = line.split(['[', ']']).nth(5);
    match level {
        Some("error" | "critical") => LogLevel::Error,
        Some("info") => LogLevel::Info,
        Some("debug") => LogLevel::Debug,
        Some("trace") => LogLevel::Trace,
        _ => LogLevel::Warning,
    }
}

/// What the level of an event is called in JSON.
fn word(event: &Event, level: LogLevel) -> &'static str {
    match (event, level) {
        (Event::EnvoySaid(_) | Event::Refused(_), LogLevel::Error) => "error",
        (Event::EnvoySaid(_), LogLevel::Debug) => "debug",
        (Event::EnvoySaid(_), LogLevel::Trace) => "trace",
        (Event::EnvoySaid(_), LogLevel::Warning) => "warning",
        (Event::Warning(_) | Event::Note(_) | Event::SecretMissing { .. }, _) => "warning",
        _ => "info",
    }
}

/// Whether Envoy says what we have said already: the filter finds the same warnings in the rules, once in each of its
/// VMs, and of secrets that do not come we know why. That Envoy may change how a range of addresses is written is known
/// too; it says so of each.
fn is_known(event: &Event) -> bool {
    let Event::EnvoySaid(line) = event else {
        return false;
    };
    line.contains(": egress: warning: ")
        || line.contains("message 'xds.core.v3.CidrRange' is contained in proto file")
        || line.contains("initial fetch timed out for type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret")
}

/// Returns the name of an event and what there is to say of it, for programs.
fn fields(event: &Event) -> (&'static str, Value) {
    match event {
        Event::Ready(addresses) => {
            let mut fields = places(addresses);
            fields.insert("filter".to_owned(), json!(addresses.filter));
            ("ready", Value::Object(fields))
        }
        Event::Reloading => ("reloading", json!({})),
        Event::Reloaded(reloaded) => {
            let mut fields = reloaded.addresses.as_ref().map(places).unwrap_or_default();
            let ports = |ports: &[egress_policy::PortNumber]| -> Value {
                ports.iter().map(|port| json!(port.get())).collect()
            };
            fields.insert("added".to_owned(), ports(&reloaded.added));
            fields.insert("removed".to_owned(), ports(&reloaded.removed));
            fields.insert("digest".to_owned(), json!(reloaded.digest));
            ("reloaded", Value::Object(fields))
        }
        Event::Refused(refusal) => ("refused", json!({"message": refusal.to_string()})),
        Event::Note(note) => ("note", json!({"message": note})),
        Event::SecretMissing { why, stays } => (
            "secretMissing",
            json!({"message": why, "previousStays": stays}),
        ),
        Event::SecretBack(name) => ("secretBack", json!({"secret": name})),
        Event::EnvoySaid(line) => (
            "envoy",
            json!({"message": envoy_log::shortened(line).trim_end()}),
        ),
        Event::Draining(how) => (
            "draining",
            json!({"delaySeconds": how.delay.as_secs_f64(), "limitSeconds": how.limit.as_secs_f64()}),
        ),
        Event::Replaced(by) => ("replaced", json!({"pid": by})),
        Event::Reopened => ("reopened", json!({})),
        Event::Warning(text) => ("warning", json!({"message": text})),
    }
}

/// Returns where Envoy listens, for programs.
fn places(addresses: &Addresses) -> Map<String, Value> {
    let listeners: Map<String, Value> = addresses
        .listeners
        .iter()
        .map(|(service, address)| (service.to_string(), json!(address)))
        .collect();
    let vips: Vec<Value> = addresses
        .vips
        .iter()
        .map(|(host, port, address)| json!({"host": host, "port": port, "address": address.to_string()}))
        .collect();
    let mut fields = Map::new();
    fields.insert("listeners".to_owned(), Value::Object(listeners));
    for (name, place) in [
        ("forwardProxy", &addresses.forward_proxy),
        ("capture", &addresses.capture),
        (
            "status",
            &addresses.status.map(|address| address.to_string()),
        ),
    ] {
        if let Some(place) = place {
            fields.insert(name.to_owned(), json!(place));
        }
    }
    if !vips.is_empty() {
        fields.insert("vips".to_owned(), json!(vips));
    }
    fields.insert("admin".to_owned(), json!(addresses.admin));
    fields
}

/// Shows one event, in lines that programs and people read.
fn shown(event: Event) -> Result<(), Complaint> {
    match event {
        Event::Ready(addresses) => return print(&ready_line(&addresses)),
        Event::Reloaded(reloaded) => {
            // That nobody can read it is no reason to stop.
            if let Err(complaint) = print(&reloaded_line(&reloaded)) {
                tell(&complaint.to_string());
            }
        }
        Event::Refused(refusal) => {
            tell(&format!("{refusal}\nthe rules before them stay in use"));
        }
        Event::Reloading => {}
        Event::Note(note) => tell(&note),
        Event::SecretMissing { why, stays } => {
            let meanwhile = match stays {
                true => "the one before it stays in use",
                false => "requests that need it are answered 503 until it is there",
            };
            tell(&format!("warning: {why}; {meanwhile}"));
        }
        Event::SecretBack(name) => tell(&format!("the secret `{name}` is there now")),
        Event::EnvoySaid(line) => tell(envoy_log::shortened(&line).trim_end()),
        Event::Draining(how) => tell(&draining_line(how)),
        Event::Replaced(by) => tell(&format!(
            "process {by} has taken the place of this one; open requests finish here"
        )),
        Event::Reopened => tell("the access log is opened again"),
        Event::Warning(text) => tell(&format!("warning: {text}")),
    }
    Ok(())
}

/// Writes `ready 80=127.0.0.1:10080 443=127.0.0.1:10443 filter=module admin=127.0.0.1:9901`; and for each service that has an
/// address of its own a line `vip HOST:PORT=ADDRESS:PORT`, then for each such host one `hosts ADDRESS HOST`, whose
/// last two words are a line for `/etc/hosts`.
fn ready_line(addresses: &Addresses) -> String {
    let mut line = String::from("ready");
    for (service, address) in &addresses.listeners {
        let _ = write!(line, " {service}={address}");
    }
    if let Some(address) = &addresses.forward_proxy {
        let _ = write!(line, " {}={address}", xds::FORWARD_PROXY);
    }
    if let Some(address) = &addresses.capture {
        let _ = write!(line, " {}={address}", xds::CAPTURE);
    }
    if let Some(address) = &addresses.status {
        let _ = write!(line, " status={address}");
    }
    let _ = writeln!(
        line,
        " filter={} admin={}",
        addresses.filter, addresses.admin
    );
    line + &vip_lines(addresses)
}

/// Writes `reloaded 80=127.0.0.1:10080 added=80 removed=443 digest=…`, then the lines on addresses as [`ready_line`].
fn reloaded_line(reloaded: &Reloaded) -> String {
    let mut line = String::from("reloaded");
    let mut vips = String::new();
    if let Some(addresses) = &reloaded.addresses {
        for (service, address) in &addresses.listeners {
            let _ = write!(line, " {service}={address}");
        }
        vips = vip_lines(addresses);
    }
    for (word, ports) in [("added", &reloaded.added), ("removed", &reloaded.removed)] {
        if !ports.is_empty() {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let _ = write!(line, " {word}={}", ports.join(","));
        }
    }
    let _ = writeln!(line, " digest={}", reloaded.digest);
    line + &vips
}

/// Writes what SIGTERM leads to.
fn draining_line(how: Drain) -> String {
    let time = |time| humantime::format_duration(time).to_string();
    let delay = match how.delay.is_zero() {
        true => String::new(),
        false => format!("in {} ", time(how.delay)),
    };
    format!(
        "draining: {delay}open requests get {} to finish; another signal ends them at once",
        time(how.limit)
    )
}

/// Writes the loopback addresses that TCP services have, and what would stand in /etc/hosts for them.
fn vip_lines(addresses: &Addresses) -> String {
    let mut line = String::new();
    for (host, service, address) in &addresses.vips {
        let _ = writeln!(line, "vip {host}:{service}={address}");
    }
    let mut names: Vec<_> = addresses
        .vips
        .iter()
        .map(|(host, _, address)| (address.ip(), host))
        .collect();
    names.dedup();
    for (ip, host) in names {
        let _ = writeln!(line, "hosts {ip} {host}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_envoys_has_its_level() {
        let line =
            |level: &str| format!("[2026-01-02 03:04:05.678][12][{level}][main] [a.cc:1] text");
        assert_eq!(of_envoy(&line("critical")), LogLevel::Error);
        assert_eq!(of_envoy(&line("warning")), LogLevel::Warning);
        assert_eq!(of_envoy(&line("debug")), LogLevel::Debug);
        assert_eq!(of_envoy("  the rest of a line"), LogLevel::Warning);
    }
}
