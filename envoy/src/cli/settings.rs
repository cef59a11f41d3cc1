//! The settings as meant: files read, rules compiled, places found.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use egress_filter::{AuthorityMode, MetadataFormat};
use egress_policy::{
    Arrival, Endpoints, HostName, Mesh, OutboundMode, Place, PolicyTable, Proxy, ResourceId, Role,
    Service, Settling,
};

use super::args::{Authority, Credentials, Input, LogFormat, Outbound, Rules as Args};
use super::{ExitStatus, fail, refuse, tell};
use crate::credentials::Store;
use crate::fs::Source;
use crate::rules::{self, Nothing, Report, Rules};
use crate::xds::{
    AccessLog, Admin, Capture, OLDEST, OLDEST_WITH_PROXY, Options, SecretRequest, Secrets,
    UpstreamProxy, Version, service_ports,
};
use crate::yaml::AlreadyRead;
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
    /// Where the certificates come from that they need.
    pub store: Store,
}

impl Settled {
    /// Returns all secrets that Envoy will ask for, one for each name, in the order of the names.
    pub fn needs(&self) -> Vec<SecretRequest> {
        let tables = std::iter::once(&self.rules.table).chain(&self.options.workloads);
        let needs: BTreeMap<String, SecretRequest> = tables
            .flat_map(SecretRequest::of)
            .map(|need| (need.name(), need))
            .collect();
        needs.into_values().collect()
    }
}

/// Why rules are not settled.
#[derive(Debug)]
pub(crate) enum Unsettled {
    /// It has been told; the status to exit with.
    Told(ExitStatus),
    /// The rules are wrong.
    Rules(Report),
}

impl Unsettled {
    /// Tells it, and returns the status to exit with.
    pub(crate) fn tell(self) -> ExitStatus {
        match self {
            Unsettled::Told(status) => status,
            Unsettled::Rules(report) => {
                tell(report.to_string().trim_end());
                ExitStatus::Input
            }
        }
    }
}

impl From<ExitStatus> for Unsettled {
    fn from(status: ExitStatus) -> Self {
        Unsettled::Told(status)
    }
}

/// Says where credentials come from; the Secrets among the rules move to the store.
///
/// # Errors
/// With the status to exit with, when a folder that was named is none.
pub fn store(args: &Credentials, rules: &mut Rules, namespace: &str) -> Result<Store, ExitStatus> {
    for folder in &args.folders {
        if !folder.is_dir() {
            return Err(refuse(&format!("`{}` is not a folder", folder.display())));
        }
    }
    let documents = std::mem::take(&mut rules.credentials);
    Ok(Store::new(args.folders.clone(), documents, namespace))
}

/// Reads the files and says how to compile what is in them.
///
/// # Errors
/// With the status to exit with, when it has been told which file cannot be read.
pub fn read(input: &Input) -> Result<(Vec<Source>, Settling), ExitStatus> {
    let sources = sources(input).map_err(|error| refuse(&error.to_string()))?;
    Ok((sources, settling(input)))
}

/// Reads the files.
pub(crate) fn sources(input: &Input) -> Result<Vec<Source>, fs::FileError> {
    let mut sources = Vec::new();
    for name in &input.files {
        sources.extend(fs::sources(name)?);
    }
    if let Some(name) = &input.mesh_config {
        let mesh = |source| Source {
            mesh: true,
            ..source
        };
        sources.extend(fs::sources(name)?.into_iter().map(mesh));
    }
    Ok(sources)
}

/// Says how to compile what is in them.
pub(crate) fn settling(input: &Input) -> Settling {
    let proxy = Proxy {
        namespace: input.namespace.clone(),
        labels: input.labels.iter().cloned().collect(),
        role: Role::Sidecar,
    };
    let outbound = match input.outbound_traffic_policy {
        Outbound::RegistryOnly => OutboundMode::RegistryOnly,
        Outbound::AllowAny => OutboundMode::AllowAny,
    };
    Settling {
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
    let version = || Ok(version.unwrap_or(pinned_envoy()).to_owned());
    settle_read(args, version, &sources, settling, None, Nothing::Refused).map_err(Unsettled::tell)
}

/// As [`settle`], with what has been read already, and what is known of it. The `version` is asked for when the rules
/// are compiled, so that who has to find it out may do so meanwhile.
pub(crate) fn settle_read(
    args: &Args,
    version: impl FnOnce() -> Result<String, ExitStatus>,
    sources: &[Source],
    mut settling: Settling,
    known: Option<&mut AlreadyRead>,
    nothing: Nothing,
) -> Result<Settled, Unsettled> {
    if args.forward_proxy.is_some() && settling.outbound == OutboundMode::AllowAny {
        return Err(refuse(
            "`--forward-proxy` and `--outbound-traffic-policy ALLOW_ANY` would be an open proxy: whoever reaches it could reach everything\nhint: name the hosts in ServiceEntries, and leave `ALLOW_ANY` out",
        ).into());
    }
    if let Some(admin) = args
        .admin
        .filter(|admin| !admin.ip().to_canonical().is_loopback())
        && !args.admin_anywhere
    {
        return Err(refuse(&format!(
            "`--admin {admin}` is no loopback address: whoever reaches Envoy's admin interface can read all configuration and stop Envoy\nhint: use `--admin 127.0.0.1:{}`, or add `--admin-anywhere` if a firewall keeps others away",
            admin.port()
        )).into());
    }
    if let Some(message) = mistaken_for_captured(args, settling.outbound) {
        return Err(refuse(&message).into());
    }
    // Read here, because the command line's own reader would repeat the text, password and all.
    let upstream_proxy: Option<UpstreamProxy> = match args.upstream_proxy.as_deref().map(str::parse)
    {
        None => None,
        Some(Ok(proxy)) => Some(proxy),
        Some(Err(error)) => return Err(refuse(&format!("`--upstream-proxy`: {error}")).into()),
    };
    if upstream_proxy.is_some() && settling.outbound == OutboundMode::AllowAny {
        return Err(refuse(
            "with `--outbound-traffic-policy ALLOW_ANY` hosts would be reached around the `--upstream-proxy`\nhint: name the hosts in ServiceEntries, and leave `ALLOW_ANY` out",
        ).into());
    }
    let labels = match args.labels_from_node {
        true => std::mem::take(&mut settling.proxy.labels),
        false => settling.proxy.labels.clone(),
    };
    let mut rules =
        rules::compile_known(sources, &settling, known, nothing).map_err(Unsettled::Rules)?;
    if !rules.warnings.0.is_empty() {
        tell(rules.warnings.to_string().trim_end());
    }
    let capture = args.capture.map(|at| Capture::new(at.address, at.port));
    if let Some(port) = capture.as_ref().map(|capture| capture.port)
        && service_ports(&rules.table)
            .iter()
            .any(|(own, _)| *own == port)
    {
        return Err(refuse(&format!(
            "port {port} of `--capture` is a service port of the rules too, and its connections could not be told from others\nhint: name another port that nothing dials, for example `--capture 15001`"
        )).into());
    }
    let workloads = match args.labels_from_node {
        true => other_workloads(&rules, &settling)?,
        false => Vec::new(),
    };
    if let Some(message) = around_the_tunnel(args, &rules.table, &workloads) {
        return Err(refuse(&message).into());
    }
    if upstream_proxy.is_some()
        && let Some(message) = listed_elsewhere(&rules.table)
    {
        return Err(refuse(&message).into());
    }
    let store = store(&args.credentials, &mut rules, &settling.proxy.namespace)?;
    let version = version()?;
    let found = Version::find(&version)
        .ok_or_else(|| fail(&format!("`{version}` is not a version of Envoy")))?;
    if found < OLDEST {
        return Err(refuse(&format!(
            "what is rendered needs Envoy {OLDEST} or later, and {version} was asked for\n{}",
            another_envoy()
        ))
        .into());
    }
    if upstream_proxy.is_some() && found < OLDEST_WITH_PROXY {
        return Err(refuse(&format!(
            "`--upstream-proxy` needs Envoy {OLDEST_WITH_PROXY} or later, and this is {version}\n{}",
            another_envoy()
        )).into());
    }
    let wasm = fs::wasm(args.wasm.as_deref()).map_err(|error| refuse(&error.to_string()))?;
    let trust_store = fs::trust_store().map_err(|error| refuse(&error.to_string()))?;
    let options = Options {
        listen: args.listen.to_string(),
        ports: args.ports.clone(),
        forward_proxy: args.forward_proxy,
        capture,
        upstream_proxy,
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
        proxy: Proxy {
            labels,
            ..settling.proxy
        },
        admin: match args.admin {
            Some(address) => Admin::Tcp(address.ip().to_string(), address.port()),
            None => Admin::Pipe("admin.sock".to_owned()),
        },
        dns: args
            .resolvers
            .iter()
            .map(|address| (address.ip().to_string(), address.port()))
            .collect(),
        guarded_dns: None,
        loopback_vips: args.input.loopback_vips,
        version: found,
        workloads,
        mesh: rules.mesh.clone(),
        secrets: Secrets::AtStart(BTreeMap::new()),
        reloads: false,
        by_content: false,
    };
    Ok(Settled {
        rules,
        options,
        version,
        store,
    })
}

/// Says how to come by an Envoy that can do what was asked for.
pub(crate) fn another_envoy() -> String {
    format!(
        "hint: `make envoy` gets {}; `--envoy` of `run` and `--envoy-version` of `render` name another",
        pinned_envoy()
    )
}

/// Tells of listeners beside capture that Envoy could take for those of captured connections, and of a place where
/// captured connections never come in.
///
/// Envoy hands a captured connection to the listener that has its address, or else to one that has the wildcard address
/// and its port: those that we do not bind, and each bound one beside them, whatever service it is for.
fn mistaken_for_captured(args: &Args, outbound: OutboundMode) -> Option<String> {
    let capture = args.capture?;
    if let Some(address) = capture.address
        && ![
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ]
        .contains(&address)
    {
        return Some(format!(
            "`--capture {}`: the kernel redirects connections of this machine to 127.0.0.1 and ::1, and no others belong there\nhint: name the port alone: `--capture {}`",
            SocketAddr::new(address, capture.port.get()),
            capture.port
        ));
    }
    let is_wildcard = |address: IpAddr| address.to_canonical().is_unspecified();
    if let Some(at) = args.forward_proxy.filter(|at| is_wildcard(at.ip())) {
        return Some(format!(
            "`--forward-proxy {at}` beside `--capture` would also get what is captured on its way to port {port} of any address\nhint: name one address of this machine, for example `--forward-proxy 127.0.0.1:{port}`",
            port = at.port()
        ));
    }
    if args.ports.is_empty() {
        return None;
    }
    if is_wildcard(args.listen) {
        return Some(format!(
            "`--listen {}` with `--port` beside `--capture` would also get what is captured on its way to these ports of any address\nhint: name one address of this machine, or leave `--listen` or `--port` out: what is captured needs neither",
            args.listen
        ));
    }
    (outbound == OutboundMode::AllowAny && !args.listen.to_canonical().is_loopback()).then(|| {
        format!(
            "with `--outbound-traffic-policy ALLOW_ANY`, what is captured on its way to `--listen {}` would go through Envoy again and again\nhint: leave `--listen` or `--port` out: what is captured needs neither",
            args.listen
        )
    })
}

/// Finds a host whose endpoints are not the host itself: a proxy could not be told which of them to connect to.
fn listed_elsewhere(table: &PolicyTable) -> Option<String> {
    let service = table.services().find(|service| {
        let Endpoints::Listed { places, .. } = &service.cluster.endpoints else {
            return false;
        };
        let host = service.host.exact().map(HostName::as_str);
        let dialled = host.map(|host| (host, service.target));
        let dialled = service.connect_to.or(dialled);
        let itself = |place: &Place| dialled == Some((place.address.as_str(), place.port));
        !places.iter().all(itself)
    })?;
    let entry = service.service_entry.map(ResourceId::qualified);
    Some(format!(
        "`{}` of ServiceEntry {} has endpoints of its own, and `--upstream-proxy` can only be asked for the host\nhint: leave `endpoints` out and use `resolution: DNS`",
        service.host,
        entry.unwrap_or_default(),
    ))
}

/// Compiles the rules for every workload that they may select: which one it is, Envoy's node tells the filter.
fn other_workloads(rules: &Rules, settling: &Settling) -> Result<Vec<PolicyTable>, ExitStatus> {
    let labelled = |proxy: &Proxy| !proxy.labels.is_empty();
    let kinds = rules.workloads(&settling.proxy.namespace);
    let compiled = kinds.into_iter().filter(labelled).map(|proxy| {
        rules.compile_for(proxy, settling).map_err(|report| {
            tell(report.to_string().trim_end());
            ExitStatus::Input
        })
    });
    compiled.collect()
}

/// Tells of a `tunnel` that what was asked for would go around, or go into twice.
fn around_the_tunnel(args: &Args, table: &PolicyTable, others: &[PolicyTable]) -> Option<String> {
    let all = || std::iter::once(table).chain(others);
    let tunnelled = |service: &Service<'_>| service.cluster.tunnel.is_some();
    let rule = |service: &Service<'_>| {
        let rule = service.rule.map(ResourceId::qualified);
        rule.unwrap_or_default()
    };
    let any = |wanted: fn(&Service<'_>) -> bool| {
        let mut services = all().flat_map(PolicyTable::services);
        services.find(|service| tunnelled(service) && wanted(service))
    };
    if args.upstream_proxy.is_some()
        && let Some(service) = any(|_| true)
    {
        return Some(format!(
            "`--upstream-proxy` leads everything to one proxy, and DestinationRule {} has a `tunnel` through another\nhint: remove one of the two",
            rule(&service)
        ));
    }
    if args.forward_proxy.is_some()
        && let Some(service) = any(|service| service.arrival == Arrival::Tls)
    {
        return Some(format!(
            "CONNECT to `{}:{}` of the `--forward-proxy` would go around the `tunnel` of DestinationRule {}\nhint: use `--upstream-proxy` in place of `tunnel`, or leave `--forward-proxy` out",
            service.host,
            service.port,
            rule(&service)
        ));
    }
    // Listeners have the tunnels, and cannot ask which workload they are for. The tables have the same hosts and
    // ports in the same order, and requests choose no subset.
    fn reached(table: &PolicyTable) -> impl Iterator<Item = Service<'_>> {
        table.services().filter(|service| service.subset.is_none())
    }
    for other in others {
        for (one, other) in reached(table).zip(reached(other)) {
            let same = one.cluster.tunnel == other.cluster.tunnel
                && (one.arrival != Arrival::Tls
                    || !tunnelled(&one)
                    || one.cluster == other.cluster);
            if !same {
                let service = if tunnelled(&other) { other } else { one };
                return Some(format!(
                    "the `tunnel` of DestinationRule {} is not the same for all workloads, and with `--labels-from-node` one configuration serves them all\nhint: leave `--labels-from-node` out",
                    rule(&service)
                ));
            }
        }
    }
    None
}
