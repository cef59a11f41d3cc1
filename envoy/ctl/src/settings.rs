//! The settings as meant: files read, rules compiled, places found.

use std::net::SocketAddr;

use egress_filter::{AuthorityMode, MetadataFormat, Repair};
use egress_policy::{CompileOptions, Mesh, OutboundMode, PolicyTable, Proxy, Role};

use super::args::{
    Authority, Credentials, FilterForm, Input, LogFormat, Outbound, ProxyType, Rules as Args,
};
use super::threads::at_once;
use super::{args, locate, sources};
use egress_credentials::Store;
use egress_render::pinned_envoy;
use egress_render::xds::{
    AccessLog, Admin, Capture, Conflict, ExpectContinue, FilterFile, HeaderCase, Limits,
    MODULE_IS_TOLD_ALL, OLDEST, OLDEST_WITH_EXCEPTIONS, OLDEST_WITH_MODULE, OLDEST_WITH_PROXY,
    Options, UpstreamProxy, Version,
};
use egress_rules::Source;
use egress_rules::{Complaint, Refusal};
use egress_rules::{How, Report, Rules, compile_as};
use egress_run::Deployment;

/// Returns where credentials come from; the Secrets among the rules move to the store.
///
/// # Errors
/// When a folder that was named is none.
pub(crate) fn store(
    args: &Credentials,
    rules: &mut Rules,
    namespace: &str,
) -> Result<Store, Complaint> {
    for folder in &args.folders {
        if !folder.is_dir() {
            let text = format!("`{}` is not a folder", folder.display());
            return Err(Complaint::input(text));
        }
    }
    let documents = std::mem::take(&mut rules.credentials);
    Ok(Store::new(args.folders.clone(), documents, namespace))
}

/// Reads the files and says how to compile what is in them.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn read(input: &Input) -> Result<(Vec<Source>, CompileOptions), Complaint> {
    let sources = sources(input).map_err(Complaint::input)?;
    Ok((sources, compile_options(input)))
}

/// Reads the files.
pub(crate) fn sources(input: &Input) -> Result<Vec<Source>, sources::UnreadableSource> {
    let mut sources = Vec::new();
    for name in &input.files {
        sources.extend(sources::sources(name)?);
    }
    if let Some(name) = &input.mesh_config {
        let mesh = |source| Source {
            mesh: true,
            ..source
        };
        sources.extend(sources::sources(name)?.into_iter().map(mesh));
    }
    Ok(sources)
}

/// Returns how to compile what is in them.
pub(crate) fn compile_options(input: &Input) -> CompileOptions {
    let proxy = Proxy {
        namespace: input.namespace.clone(),
        labels: input.labels.iter().cloned().collect(),
        role: match input.proxy_type {
            ProxyType::Sidecar => Role::Sidecar,
            ProxyType::Router => Role::Gateway,
        },
    };
    let outbound = match input.outbound_traffic_policy {
        Outbound::RegistryOnly => OutboundMode::RegistryOnly,
        Outbound::AllowAny => OutboundMode::AllowAny,
    };
    CompileOptions {
        proxy,
        outbound,
        connect_to: input.connect_to.clone(),
        loopback_vips: input.loopback_vips,
        allow_plaintext: input.allow_plaintext.clone(),
        foreign: false,
        // It is read with the rules, for it may stand among them.
        mesh: Mesh::default(),
    }
}

/// Returns what upstream is to be told.
pub(crate) fn authority(input: &Input) -> AuthorityMode {
    match input.authority {
        Authority::Rewrite => AuthorityMode::Rewrite,
        Authority::Preserve => AuthorityMode::Preserve,
    }
}

/// Returns what is to be repaired in answers.
pub(crate) fn repair(input: &Input) -> Repair {
    match input.repair {
        args::Repair::None => Repair::None,
        args::Repair::Default => Repair::Default,
        args::Repair::All => Repair::All,
    }
}

/// Reads and compiles the rules, and says what is wrong with them.
///
/// `version` is that of the Envoy at hand; without it, the pinned one.
///
/// # Errors
/// With everything that is wrong.
pub(crate) fn settle(args: &Args, version: Option<&str>) -> Result<Deployment, Refusal> {
    let (sources, compile_options) = read(&args.input)?;
    let version = || Ok(version.unwrap_or(pinned_envoy()).to_owned());
    settle_read(
        args,
        version,
        &sources,
        compile_options,
        How {
            each: at_once,
            ..How::default()
        },
    )
}

/// As [`settle`], with what has been read already, and a say in how it is compiled. The `version` is asked for when the rules
/// are compiled, so that who has to find it out may do so meanwhile.
pub(crate) fn settle_read(
    args: &Args,
    version: impl FnOnce() -> Result<String, Complaint>,
    sources: &[Source],
    compile_options: CompileOptions,
    how: How<'_>,
) -> Result<Deployment, Refusal> {
    check_admin(args)?;
    let asked = asked(args, compile_options.proxy.clone())?;
    asked
        .check_flags(compile_options.outbound == OutboundMode::AllowAny)
        .map_err(told)?;
    let mut compiled = compile_options.clone();
    if args.labels_from_node {
        compiled.proxy.labels.clear();
    }
    let mut rules = compile_as(sources, &compiled, how)?;
    let namespace = &compile_options.proxy.namespace;
    let deployed = deployed(args, version, &mut rules, &compiled, asked, namespace);
    let (options, version, store) = deployed.map_err(|refusal| refusal.behind(&rules.warnings))?;
    Ok(Deployment {
        rules,
        options,
        version,
        store,
    })
}

/// Returns what a deployment has besides its rules, which compiled as `compiled` says.
fn deployed(
    args: &Args,
    version: impl FnOnce() -> Result<String, Complaint>,
    rules: &mut Rules,
    compiled: &CompileOptions,
    asked: Options,
    namespace: &str,
) -> Result<(Options, String, Store), Refusal> {
    let workloads = match args.labels_from_node {
        true => other_workloads(rules, compiled)?,
        false => Vec::new(),
    };
    let options = Options {
        workloads,
        mesh: rules.mesh.clone(),
        virtual_services: rules.virtual_services.clone(),
        ..asked
    };
    options.check(&rules.table).map_err(told)?;
    let store = store(&args.credentials, rules, namespace)?;
    let version = version()?;
    let found = found(&version, &options)?;
    let options = Options {
        version: found,
        filter: filter(args, found)?,
        trust_store: egress_credentials::trust_store().map_err(Complaint::input)?,
        ..options
    };
    Ok((options, version, store))
}

/// Returns the form of a filter.
pub(crate) fn form(file: &FilterFile) -> FilterForm {
    match file {
        FilterFile::Wasm(_) => FilterForm::Wasm,
        FilterFile::Module(_) => FilterForm::Module,
    }
}

/// Finds the filter, in the form that was asked for or that suits this Envoy.
fn filter(args: &Args, version: Version) -> Result<FilterFile, Complaint> {
    let module = || locate::module(args.module.as_deref());
    let cheapest = || {
        let told_all = version >= MODULE_IS_TOLD_ALL && !args.labels_from_node;
        let named = args.module.is_some() || module().is_ok();
        match args.cheapest && args.wasm.is_none() && told_all && named {
            true => FilterForm::Module,
            false => FilterForm::Wasm,
        }
    };
    let form = match args.filter {
        Some(form) => form,
        // Whoever names the file has named the form.
        None if args.module.is_some() && args.wasm.is_none() => FilterForm::Module,
        None => cheapest(),
    };
    let path = match form {
        FilterForm::Wasm => locate::wasm(args.wasm.as_deref()),
        FilterForm::Module => module(),
    };
    let path = path.map_err(Complaint::input)?.display().to_string();
    match form {
        FilterForm::Wasm => Ok(FilterFile::Wasm(path)),
        FilterForm::Module if version < OLDEST_WITH_MODULE => Err(Complaint::input(format!(
            "the native filter needs Envoy {OLDEST_WITH_MODULE} or later, and {version} was asked for\nhint: use `--filter wasm`, or {}",
            another_envoy()
        ))),
        FilterForm::Module if args.labels_from_node => Err(Complaint::input(
            "`--labels-from-node` is for the wasm filter: Envoy does not tell a native one the labels of its node\nhint: use `--filter wasm`, or give `--labels` and leave `--labels-from-node` out",
        )),
        FilterForm::Module => Ok(FilterFile::Module(path)),
    }
}

fn told(conflict: Conflict) -> Complaint {
    Complaint::input(format!("{conflict}\nhint: {}", conflict.hint()))
}

/// Reads a version of Envoy, and refuses one that cannot do what is asked for.
fn found(version: &str, options: &Options) -> Result<Version, Complaint> {
    let found = Version::find(version)
        .ok_or_else(|| Complaint::us(format!("`{version}` is not a version of Envoy")))?;
    if found < OLDEST {
        return Err(Complaint::input(format!(
            "what is rendered needs Envoy {OLDEST} or later, and {version} was asked for\nhint: {}",
            another_envoy()
        )));
    }
    if !options.no_proxy.is_empty() && found < OLDEST_WITH_EXCEPTIONS {
        return Err(Complaint::input(format!(
            "`--no-proxy` needs Envoy {OLDEST_WITH_EXCEPTIONS} or later, and this is {version}\nhint: {}",
            another_envoy()
        )));
    }
    if options.upstream_proxy.is_some() && found < OLDEST_WITH_PROXY {
        return Err(Complaint::input(format!(
            "`--upstream-proxy` needs Envoy {OLDEST_WITH_PROXY} or later, and this is {version}\nhint: {}",
            another_envoy()
        )));
    }
    Ok(found)
}

/// Refuses an admin interface that others reach, unless that was asked for in so many words.
fn check_admin(args: &Args) -> Result<(), Complaint> {
    let reachable = |admin: &SocketAddr| !admin.ip().to_canonical().is_loopback();
    match args.admin.filter(reachable) {
        Some(admin) if !args.admin_anywhere => Err(Complaint::input(format!(
            "`--admin {admin}` is no loopback address: whoever reaches Envoy's admin interface can read all configuration and stop Envoy\nhint: use `--admin 127.0.0.1:{}`, or add `--admin-anywhere` if a firewall keeps others away",
            admin.port()
        ))),
        _ => Ok(()),
    }
}

/// Returns how to render, as the arguments alone have it. What files and rules add comes later.
fn asked(args: &Args, proxy: Proxy) -> Result<Options, Complaint> {
    // Read here, because the command line's own reader would repeat the text, password and all.
    let mut upstream_proxy: Option<UpstreamProxy> =
        match args.upstream_proxy.as_deref().map(str::parse) {
            None => None,
            Some(Ok(proxy)) => Some(proxy),
            Some(Err(error)) => {
                return Err(Complaint::input(format!("`--upstream-proxy`: {error}")));
            }
        };
    if let (Some(proxy), Some(file)) = (&mut upstream_proxy, &args.upstream_proxy_auth) {
        let refused = |what: &str| {
            Complaint::input(format!(
                "`--upstream-proxy-auth {}`: {what}",
                file.display()
            ))
        };
        let text = sources::secret_line(file).map_err(|error| refused(&error.to_string()))?;
        let known = proxy.log_in(&text);
        known.map_err(|error| refused(&error.to_string()))?;
    }
    let no_proxy = args.no_proxy.join(",").parse();
    let no_proxy = no_proxy.map_err(|error| Complaint::input(format!("`--no-proxy`: {error}")))?;
    Ok(Options {
        listen: args.listen.to_string(),
        ports: args.ports.clone(),
        forward_proxy: args.forward_proxy,
        capture: args.capture.map(|at| Capture::new(at.address, at.port)),
        upstream_proxy,
        no_proxy,
        access_log: match args.access_log.as_str() {
            "-" => AccessLog::Stdout,
            path => AccessLog::File(path.to_owned()),
        },
        format: match args.access_log_format {
            LogFormat::Text => MetadataFormat::Text,
            LogFormat::Json => MetadataFormat::Json,
        },
        authority: authority(&args.input),
        header_case: match args.header_case {
            args::HeaderCase::Preserve => HeaderCase::Preserve,
            args::HeaderCase::Lower => HeaderCase::Lower,
        },
        expect_continue: match args.expect_continue {
            args::ExpectContinue::Pass => ExpectContinue::Pass,
            args::ExpectContinue::Answer => ExpectContinue::Answer,
        },
        repair: repair(&args.input),
        proxy,
        admin: match args.admin {
            Some(address) => Admin::Tcp(address.ip().to_string(), address.port()),
            None => Admin::Pipe("admin.sock".to_owned()),
        },
        dns: args
            .resolvers
            .iter()
            .map(|address| (address.ip().to_string(), address.port()))
            .collect(),
        limits: limits(args, Limits::default()),
        loopback_vips: args.input.loopback_vips,
        ..Options::default()
    })
}

/// Returns how much Envoy takes on: what was asked for, and else what there is.
pub(crate) fn limits(args: &Args, otherwise: Limits) -> Limits {
    let heap = args.max_heap.map(|mib| u64::from(mib) << 20);
    Limits {
        connections: args.max_connections.unwrap_or(otherwise.connections),
        heap: heap.or(otherwise.heap),
    }
}

/// Returns how to come by an Envoy that can do what was asked for.
pub(crate) fn another_envoy() -> String {
    format!(
        "`make envoy` gets {}; `--envoy` of `run` and `--envoy-version` of `render` name another",
        pinned_envoy()
    )
}

/// Compiles the rules for every workload that they may select: which one it is, Envoy's node tells the filter.
fn other_workloads(
    rules: &Rules,
    compile_options: &CompileOptions,
) -> Result<Vec<PolicyTable>, Report> {
    let labelled = |proxy: &Proxy| !proxy.labels.is_empty();
    let kinds = rules.workloads(&compile_options.proxy.namespace);
    let kinds = kinds.into_iter().filter(labelled);
    kinds
        .map(|proxy| rules.compile_for(proxy, compile_options))
        .collect()
}
