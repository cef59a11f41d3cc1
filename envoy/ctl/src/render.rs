//! `egressctl render`: configuration for an Envoy that somebody else starts.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::args::{Format, RenderEnvoy};
use super::locate;
use super::output::{Done, Output};
use super::settings;
use egress_credentials::{Material, Missing};
use egress_render::xds::watched_documents;
use egress_render::xds::{self, SecretFiles, SecretRequest, Secrets, Vip};
use egress_rules::{Blame, Complaint};
use egress_run::{Deployment, atomic};

mod istio;

pub(super) use istio::istio;

/// The folders beside the bootstrap.
const SECRETS: &str = "secrets";
const CREDENTIALS: &str = "credentials";

/// Returns the bootstrap that `run` would use, or writes it with the secrets that it refers to.
pub(super) fn envoy(args: &RenderEnvoy) -> Done {
    let mut deployment = settings::settle(&args.rules, args.envoy_version.as_deref())?;
    let mut notes = deployment.rules.warned();
    for vip in xds::vips(&deployment.rules.table) {
        let Vip { host, address, .. } = &vip;
        notes.push(format!("note: for /etc/hosts: {address} {host}"));
    }
    if xds::looks_at_one_address(&deployment.rules.table, &deployment.options) {
        notes.push(one_address(&deployment.version));
    }
    let rendered = match &args.output_folder {
        Some(folder) => written(folder, &mut deployment, args.output).map(Output::lines),
        None => files(&deployment).and_then(|files| {
            if !files.is_empty() {
                notes.push("note: Envoy reads these certificates when it starts and not again; with `--output-folder DIR` it watches them".to_owned());
            }
            deployment.options.secrets = Secrets::AtStart(files);
            text(&deployment, args.output).map(Output::verbatim)
        }),
    };
    match rendered {
        Ok(output) => Ok(output.with_notes(notes)),
        Err(complaint) => Err(complaint.behind(notes)),
    }
}

/// Returns what an old Envoy cannot refuse, and what can.
fn one_address(version: &str) -> String {
    let ranges = |is_wanted: fn(&std::net::IpAddr) -> bool| {
        let all = xds::refused().filter(|(address, _)| is_wanted(address));
        let all: Vec<String> = all
            .map(|(address, bits)| format!("{address}/{bits}"))
            .collect();
        all.join(", ")
    };
    format!(
        "warning: Envoy {version} looks at the first address of a name alone: below a wildcard, and with `ALLOW_ANY`, a name with a public and a private address may lead to the private one\n\
         hint: Envoy {} and `egressctl run` refuse each such address; else let a firewall do so, with Envoy's own user for ENVOY (hosts that rules list are not reached there either):\n\
         nft 'table inet egress_guard {{ chain output {{ type filter hook output priority 0; \
         meta skuid ENVOY meta l4proto tcp ct state new ip daddr {{ {} }} reject; \
         meta skuid ENVOY meta l4proto tcp ct state new ip6 daddr {{ {} }} reject; }}; }}'",
        xds::DROPS_ADDRESSES,
        ranges(std::net::IpAddr::is_ipv4),
        ranges(std::net::IpAddr::is_ipv6),
    )
}

/// Finds the files of all secrets, for a bootstrap that stands alone.
fn files(deployment: &Deployment) -> Result<BTreeMap<String, SecretFiles>, Complaint> {
    let mut all = BTreeMap::new();
    for need in deployment.needs() {
        match deployment.store.files(&need).map_err(told)? {
            Some(files) => all.insert(need.name(), files),
            None => {
                return Err(Complaint::input(format!(
                    "the secret `{}` stands among the rules, and a bootstrap is no place for keys\nhint: `--output-folder DIR` writes it to a file that only you can read",
                    need.name()
                )));
            }
        };
    }
    Ok(all)
}

fn told(missing: Missing) -> Complaint {
    Complaint {
        message: missing.what,
        hint: missing.hint,
        blame: Blame::Input,
    }
}

/// Writes the bootstrap, what it refers to, and the keys that stand among the rules, to a folder. Returns the line that
/// says where it is.
fn written(
    folder: &Path,
    deployment: &mut Deployment,
    format: Format,
) -> Result<String, Complaint> {
    let failed = |path: &Path, error: std::io::Error| {
        Complaint::us(format!("cannot write `{}`: {error}", path.display()))
    };
    let folder = locate::absolute(folder).map_err(Complaint::input)?;
    let mut all = BTreeMap::new();
    let mut keys = Vec::new();
    for need in deployment.needs() {
        let found = deployment.store.files(&need);
        let files = match found.map_err(told)? {
            Some(files) => files,
            None => {
                let name = xds::file_name(&need.name());
                let (files, parts) =
                    copied(deployment, &need, &folder.join(CREDENTIALS).join(name))?;
                keys.extend(parts);
                files
            }
        };
        let files = rooted(files).map_err(Complaint::input)?;
        all.insert(need.name(), files);
    }
    let secrets = folder.join(SECRETS);
    deployment.options.secrets = Secrets::Watched(secrets.display().to_string());
    let bootstrap = text(deployment, format)?;

    // Nothing is written before all of it is known to be right.
    atomic::make_private_folder(&folder).map_err(|error| failed(&folder, error))?;
    let name = match format {
        Format::Yaml => "bootstrap.yaml",
        Format::Json => "bootstrap.json",
    };
    for (path, bytes) in keys {
        atomic::replace_private(&path, &bytes).map_err(|error| failed(&path, error))?;
    }
    for (name, document) in watched_documents(&all) {
        let path = secrets.join(format!("{name}.json"));
        let text = document.to_string();
        atomic::replace_private(&path, text.as_bytes()).map_err(|error| failed(&path, error))?;
    }
    let path = folder.join(name);
    atomic::replace_private(&path, bootstrap.as_bytes()).map_err(|error| failed(&path, error))?;
    Ok(format!("{}\n", path.display()))
}

/// What is to be written where.
type Parts = Vec<(std::path::PathBuf, Vec<u8>)>;

/// Lays out a secret that stands among the rules as Kubernetes would mount it.
fn copied(
    deployment: &Deployment,
    need: &SecretRequest,
    folder: &Path,
) -> Result<(SecretFiles, Parts), Complaint> {
    let material = deployment.store.load(need);
    Ok(match material.map_err(told)? {
        Material::Certificate { chain, key } => {
            let files = (folder.join("tls.crt"), folder.join("tls.key"));
            let parts = vec![
                (files.0.clone(), chain),
                (files.1.clone(), key.pem().to_vec()),
            ];
            let (chain, key) = files;
            (SecretFiles::Certificate { chain, key }, parts)
        }
        Material::Validation { ca, crl } => {
            let mut parts = vec![(folder.join("ca.crt"), ca)];
            parts.extend(crl.map(|crl| (folder.join("ca.crl"), crl)));
            let crl = parts.get(1).map(|(path, _)| path.clone());
            let ca = folder.join("ca.crt");
            (SecretFiles::Validation { ca, crl }, parts)
        }
    })
}

/// Makes the paths such that they do not depend on where Envoy is started.
fn rooted(files: SecretFiles) -> Result<SecretFiles, locate::NotFound> {
    Ok(match files {
        SecretFiles::Certificate { chain, key } => SecretFiles::Certificate {
            chain: locate::absolute(&chain)?,
            key: locate::absolute(&key)?,
        },
        SecretFiles::Validation { ca, crl } => SecretFiles::Validation {
            ca: locate::absolute(&ca)?,
            crl: crl.map(|crl| locate::absolute(&crl)).transpose()?,
        },
    })
}

fn text(deployment: &Deployment, format: Format) -> Result<String, Complaint> {
    let bootstrap: Value = xds::bootstrap(
        &deployment.rules.table,
        &deployment.rules.resources(),
        &deployment.options,
    );
    let text = match format {
        Format::Json => serde_json::to_string_pretty(&bootstrap).map_err(|error| error.to_string()),
        Format::Yaml => serde_saphyr::to_string(&bootstrap).map_err(|error| error.to_string()),
    };
    let comment = match format {
        Format::Json => String::new(),
        Format::Yaml => format!(
            "# Rendered by egressctl {} for Envoy {}; rules digest {}\n",
            env!("CARGO_PKG_VERSION"),
            deployment.version,
            deployment.rules.table.digest()
        ),
    };
    text.map(|text| format!("{comment}{}\n", text.trim_end()))
        .map_err(|error| Complaint::us(format!("cannot write the bootstrap: {error}")))
}
