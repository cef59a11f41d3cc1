//! The settings as meant: files read, rules compiled, places found.

use egress_filter::{AuthorityMode, MetadataFormat};
use egress_policy::{Identity, OutboundMode, PolicyTable, Proxy, Settling, Trust};

use super::args::{Authority, Input, LogFormat, Outbound, Rules as Args};
use super::{ExitStatus, fail, refuse, tell};
use crate::fs::Source;
use crate::rules::{self, Rules};
use crate::xds::{AccessLog, Admin, Options, Version};
use crate::{fs, pinned_envoy};

/// All that rendering needs.
#[derive(Debug)]
pub struct Settled {
    /// The rules, compiled.
    pub rules: Rules,
    /// How to render them.
    pub options: Options,
    /// The version of Envoy they are rendered for, for people.
    pub version: String,
}

/// Reads the files and says how to compile what is in them.
///
/// # Errors
/// With the status to exit with, when it has been told which file cannot be read.
pub fn read(input: &Input) -> Result<(Vec<Source>, Settling), ExitStatus> {
    let mut sources = Vec::new();
    for name in &input.files {
        sources.extend(fs::sources(name).map_err(|error| refuse(&error.to_string()))?);
    }
    let proxy = Proxy {
        namespace: input.namespace.clone(),
        labels: input.labels.iter().cloned().collect(),
    };
    let outbound = match input.outbound_traffic_policy {
        Outbound::RegistryOnly => OutboundMode::RegistryOnly,
        Outbound::AllowAny => OutboundMode::AllowAny,
    };
    Ok((
        sources,
        Settling {
            proxy,
            outbound,
            connect_to: input.connect_to.clone(),
        },
    ))
}

/// Returns what upstream is to be told.
pub fn authority(input: &Input) -> AuthorityMode {
    match input.authority {
        Authority::Rewrite => AuthorityMode::Rewrite,
        Authority::Preserve => AuthorityMode::Preserve,
    }
}

/// Reads and compiles the rules, and says what is wrong with them.
///
/// `version` is that of the Envoy at hand; without it, the pinned one.
///
/// # Errors
/// With the status to exit with, when everything that is wrong has been told.
pub fn settle(args: &Args, version: Option<&str>) -> Result<Settled, ExitStatus> {
    let (sources, settling) = read(&args.input)?;
    let rules = match rules::compile(&sources, &settling) {
        Ok(rules) => rules,
        Err(report) => {
            tell(report.to_string().trim_end());
            return Err(ExitStatus::Input);
        }
    };
    if !rules.warnings.0.is_empty() {
        tell(rules.warnings.to_string().trim_end());
    }
    if let Some(name) = missing_credential(&rules.table) {
        let text = format!(
            "`credentialName: {name}` is not supported yet, and without it the server would refuse us"
        );
        return Err(refuse(&format!(
            "{text}\nhint: give `clientCertificate`, `privateKey` and `caCertificates` as files"
        )));
    }
    let version = version.unwrap_or(pinned_envoy());
    let found = Version::find(version)
        .ok_or_else(|| fail(&format!("`{version}` is not a version of Envoy")))?;
    let wasm = fs::wasm(args.wasm.as_deref()).map_err(|error| refuse(&error.to_string()))?;
    let trust_store = fs::trust_store().map_err(|error| refuse(&error.to_string()))?;
    let options = Options {
        listen: args.listen.to_string(),
        ports: args.ports.clone(),
        wasm: wasm.display().to_string(),
        trust_store,
        access_log: match args.access_log.as_str() {
            "-" => AccessLog::Stdout,
            path => AccessLog::File(path.to_owned()),
        },
        format: match args.access_log_format {
            LogFormat::Text => MetadataFormat::Text,
            LogFormat::Json => MetadataFormat::Json,
        },
        authority: authority(&args.input),
        proxy: settling.proxy,
        admin: match args.admin {
            Some(address) => Admin::Tcp(address.ip().to_string(), address.port()),
            None => Admin::Pipe("admin.sock".to_owned()),
        },
        dns: args
            .resolvers
            .iter()
            .map(|address| (address.ip().to_string(), address.port()))
            .collect(),
        version: found,
    };
    Ok(Settled {
        rules,
        options,
        version: version.to_owned(),
    })
}

/// Returns the name of a credential that a cluster would need.
fn missing_credential(table: &PolicyTable) -> Option<&str> {
    table
        .clusters()
        .filter_map(|cluster| cluster.tls.as_ref())
        .find_map(|tls| match (&tls.identity, &tls.trust) {
            (Some(Identity::Credential(name)), _) | (_, Trust::Credential(name)) => {
                Some(name.as_str())
            }
            _ => None,
        })
}
