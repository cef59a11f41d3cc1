//! `egressctl secrets`: what certificates a running Envoy holds.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::pem::Pem;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use super::args::{Report as Format, Secrets};
use super::output::{Done, Output};
use egress_render::xds::Admin;
use egress_rules::Complaint;
use egress_run::admin;
use egress_run::folder;

/// What the columns are called, as `istioctl proxy-config secret` has them.
///
/// Source: istio/istio `istioctl/pkg/writer/compare/sds/writer.go`, `secretItemColumns`.
const COLUMNS: [&str; 7] = [
    "RESOURCE NAME",
    "TYPE",
    "STATUS",
    "VALID CERT",
    "SERIAL NUMBER",
    "NOT AFTER",
    "NOT BEFORE",
];

/// The name of the system's bundle.
const SYSTEM: &str = "file-root:system";

/// Asks Envoy and prints what it holds.
pub(super) fn main(args: &Secrets) -> Done {
    let admin = args.admin.clone().map_or_else(only_run, Ok);
    let admin = admin.map_err(Complaint::input)?;
    let Some(dump) = admin::get_once(&admin, "/config_dump") else {
        let text = format!(
            "no Envoy answers at {}\nhint: `egressctl run` prints where its admin interface is, behind `admin=`",
            place(&admin)
        );
        return Err(Complaint::us(text).into());
    };
    let Ok(dump) = serde_json::from_slice::<Value>(&dump) else {
        return Err(Complaint::us("Envoy's configuration is not JSON").into());
    };
    if dump
        .get("configs")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        let text = format!("what answers at {} is no Envoy", place(&admin));
        return Err(Complaint::us(text).into());
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let rows = rows(&dump, now, args.within.unwrap_or_default());
    let text = match args.output {
        Format::Text => table(&rows),
        Format::Json => {
            let rows: Vec<Value> = rows.iter().map(Row::to_json).collect();
            serde_json::to_string_pretty(&rows)
                .map(|text| text + "\n")
                .map_err(|error| Complaint::us(format!("cannot write the report: {error}")))?
        }
    };
    let problems = rows.iter().filter_map(|row| {
        let problem = row.problem.as_deref()?;
        Some(format!("`{}` {problem}", row.name))
    });
    let problems: Vec<String> = problems.collect();
    Ok(Output {
        complaint: (!problems.is_empty()).then(|| Complaint::input(problems.join("\n"))),
        ..Output::lines(text)
    })
}

fn place(admin: &Admin) -> String {
    match admin {
        Admin::Pipe(path) => path.clone(),
        Admin::Tcp(address, port) => format!("{address}:{port}"),
    }
}

/// Finds the one Envoy that `egressctl run` has started here.
fn only_run() -> Result<Admin, String> {
    let mut running: Vec<Admin> = folder::runs()
        .into_iter()
        .filter(|admin| admin::get_once(admin, "/ready").is_some())
        .collect();
    match (running.pop(), running.len()) {
        (Some(admin), 0) => Ok(admin),
        (None, _) => Err(
            "no running Envoy was found\nhint: name its admin interface: --admin SOCKET or --admin ADDRESS:PORT"
                .to_owned(),
        ),
        (Some(last), _) => {
            running.push(last);
            let places: Vec<String> = running
                .iter()
                .map(|admin| format!("--admin {}", place(admin)))
                .collect();
            Err(format!(
                "more than one Envoy runs here; choose one:\n{}",
                places.join("\n")
            ))
        }
    }
}

/// One certificate of one secret, or a secret without any.
#[derive(Debug)]
struct Row {
    name: String,
    kind: &'static str,
    status: &'static str,
    certificate: Option<Certificate>,
    valid: bool,
    problem: Option<String>,
}

/// What is shown of a certificate.
#[derive(Debug)]
struct Certificate {
    serial: String,
    not_after: i64,
    not_before: i64,
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let certificate = |of: &dyn Fn(&Certificate) -> String| {
            self.certificate.as_ref().map_or_else(String::new, of)
        };
        [
            self.name.clone(),
            self.kind.to_owned(),
            self.status.to_owned(),
            self.valid.to_string(),
            certificate(&|it| it.serial.clone()),
            certificate(&|it| date(it.not_after)),
            certificate(&|it| date(it.not_before)),
        ]
    }

    fn to_json(&self) -> Value {
        let certificate = self.certificate.as_ref();
        json!({
            "name": self.name,
            "type": self.kind,
            "status": self.status,
            "valid": self.valid,
            "serialNumber": certificate.map(|it| it.serial.as_str()),
            "notAfter": certificate.map(|it| date(it.not_after)),
            "notBefore": certificate.map(|it| date(it.not_before)),
            "problem": self.problem,
        })
    }
}

/// Reads the secrets of a configuration dump, in the order of their names.
fn rows(dump: &Value, now: Duration, within: Duration) -> Vec<Row> {
    let mut rows = Vec::new();
    let configs = dump.get("configs").and_then(Value::as_array);
    for config in configs.into_iter().flatten() {
        for (list, status) in [
            ("static_secrets", "ACTIVE"),
            ("dynamic_active_secrets", "ACTIVE"),
            ("dynamic_warming_secrets", "WARMING"),
        ] {
            let secrets = config.get(list).and_then(Value::as_array);
            for secret in secrets.into_iter().flatten() {
                rows.extend(rows_of(secret, status, now, within));
            }
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

fn rows_of(entry: &Value, status: &'static str, now: Duration, within: Duration) -> Vec<Row> {
    let name = entry
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let secret = entry.get("secret").unwrap_or(&Value::Null);
    let (kind, source) = match (
        secret.get("tls_certificate"),
        secret.get("validation_context"),
    ) {
        (Some(certificate), _) => ("Cert Chain", certificate.get("certificate_chain")),
        (None, Some(context)) => ("CA", context.get("trusted_ca")),
        (None, None) if is_trust(&name) => ("CA", None),
        (None, None) => ("Cert Chain", None),
    };
    let certificates = source
        .and_then(bytes)
        .map(|pem| read(&pem))
        .unwrap_or_default();
    let lists = secret
        .get("validation_context")
        .and_then(|context| context.get("crl"))
        .and_then(bytes)
        .map(|pem| next_updates(&pem))
        .unwrap_or_default();
    // The system's bundle is no list that anyone would read, and nobody here renews what is in it.
    if certificates.is_empty() || name == SYSTEM {
        let missing = certificates.is_empty();
        let problem = missing.then(|| "is missing: hosts that need it are answered 503".to_owned());
        return vec![Row {
            name,
            kind,
            status,
            certificate: None,
            valid: !missing,
            problem,
        }];
    }
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let soon = now.saturating_add(i64::try_from(within.as_secs()).unwrap_or(i64::MAX));
    let problem_of = |certificate: &Certificate| {
        if certificate.not_after <= now {
            Some(format!("has expired at {}", date(certificate.not_after)))
        } else if certificate.not_before > now {
            Some(format!(
                "is not valid before {}",
                date(certificate.not_before)
            ))
        } else if certificate.not_after <= soon {
            Some(format!("expires at {}", date(certificate.not_after)))
        } else {
            None
        }
    };
    let ran_out = lists.iter().find(|next| **next <= soon).map(|next| {
        let verb = if *next <= now { "ran out" } else { "runs out" };
        format!("has a revocation list that {verb} at {}", date(*next))
    });
    let is_chain = kind == "Cert Chain";
    // Of a chain every certificate counts. While authorities are replaced, the old one stands beside the new one:
    // one that is good is enough.
    let problems: Vec<Option<String>> = certificates.iter().map(problem_of).collect();
    let one_is_good = !is_chain && problems.iter().any(Option::is_none);
    let mut rows: Vec<Row> = certificates
        .into_iter()
        .zip(problems)
        .map(|(certificate, problem)| Row {
            name: name.clone(),
            kind,
            status,
            valid: certificate.not_before <= now && now < certificate.not_after,
            problem: problem.filter(|_| !one_is_good),
            certificate: Some(certificate),
        })
        .collect();
    if is_chain {
        // The first is the certificate that people know; of the others their troubles are told.
        let troubled = rows.iter().skip(1).find_map(|row| row.problem.clone());
        rows.truncate(1);
        if let (Some(first), Some(trouble)) = (rows.first_mut(), troubled) {
            first.valid = false;
            first.problem = first
                .problem
                .take()
                .or(Some(format!("has one in its chain that {trouble}")));
        }
    }
    if let (Some(first), Some(problem)) = (rows.first_mut(), ran_out) {
        first.problem = first.problem.take().or(Some(problem));
    }
    rows
}

/// Returns what a secret that never came would have been.
fn is_trust(name: &str) -> bool {
    name.starts_with("file-root:") || name.ends_with("-cacert")
}

/// Returns what a data source holds, or the file that it names.
fn bytes(source: &Value) -> Option<Vec<u8>> {
    let text = |key: &str| source.get(key).and_then(Value::as_str);
    match (
        text("inline_bytes"),
        text("inline_string"),
        text("filename"),
    ) {
        (Some(encoded), ..) => BASE64_STANDARD.decode(encoded).ok(),
        (_, Some(text), _) => Some(text.as_bytes().to_owned()),
        (.., Some(path)) => std::fs::read(path).ok(),
        _ => None,
    }
}

fn read(pem: &[u8]) -> Vec<Certificate> {
    Pem::iter_from_buffer(pem)
        .filter_map(Result::ok)
        .filter_map(|block| {
            let certificate = block.parse_x509().ok()?;
            Some(Certificate {
                serial: format!("{:x}", certificate.tbs_certificate.serial),
                not_after: certificate.validity().not_after.timestamp(),
                not_before: certificate.validity().not_before.timestamp(),
            })
        })
        .collect()
}

/// Returns until when each revocation list of a text is good.
fn next_updates(pem: &[u8]) -> Vec<i64> {
    Pem::iter_from_buffer(pem)
        .filter_map(Result::ok)
        .filter_map(|block| {
            let (_, list) = CertificateRevocationList::from_der(&block.contents).ok()?;
            Some(list.next_update()?.timestamp())
        })
        .collect()
}

/// Writes `2026-01-02T03:04:05Z`. A certificate may begin before 1970.
fn date(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| seconds.to_string())
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![COLUMNS.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let mut widths = [0; COLUMNS.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (width, cell) in widths.iter().zip(line) {
            let _ = write!(row, "{cell:width$}     ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_never_came_is_missing() {
        let dump = json!({"configs": [{"dynamic_warming_secrets": [
            {"name": "kubernetes://a", "secret": {"name": "kubernetes://a"}},
            {"name": "kubernetes://a-cacert", "secret": {"name": "kubernetes://a-cacert"}},
        ]}]});
        let rows = rows(&dump, Duration::ZERO, Duration::ZERO);
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (row.kind, row.status, row.valid))
            .collect();
        assert_eq!(
            shown,
            [("Cert Chain", "WARMING", false), ("CA", "WARMING", false)]
        );
        assert!(rows.iter().all(|row| row.problem.is_some()));
    }

    #[test]
    fn dates_are_those_of_istioctl() {
        assert_eq!(date(1_717_503_320), "2024-06-04T12:15:20Z");
        assert_eq!(date(-1), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn the_table_has_a_header_and_no_loose_ends() {
        assert_eq!(
            table(&[]),
            "RESOURCE NAME     TYPE     STATUS     VALID CERT     SERIAL NUMBER     NOT AFTER     NOT BEFORE\n"
        );
    }
}
