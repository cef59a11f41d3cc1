//! The arguments as typed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args as ClapArgs, Parser, Subcommand, ValueEnum};
use egress_policy::{Address, AllowPlaintext, ConnectTo, HostName, HostPattern, PortNumber};

use egress_render::istio::Url;
use egress_render::xds::{Admin, Version};

pub(crate) mod run;

/// TLS origination for plain HTTP, from Istio's ServiceEntry and DestinationRule, in any Envoy.
#[derive(Debug, Parser)]
#[command(
    name = "egressctl",
    version,
    disable_help_subcommand = true,
    after_help = "Examples:\n  egressctl check -f rules.yaml\n  egressctl run -f rules.yaml --port 80=10080"
)]
pub(crate) struct Args {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start Envoy with the rules; stop it on Ctrl-C, drain it on SIGTERM
    #[command(
        after_help = "Example:\n  egressctl run -f rules.yaml --port 80=10080 --port 443=10443\n  \
                            curl -H 'Host: edition.cnn.com' http://127.0.0.1:10080/politics\n\n\
                      Signals:\n  SIGTERM  let open requests finish, see --drain; a second one ends at once\n  \
                            SIGINT   end at once\n  \
                            SIGHUP   read the rules again and apply them\n  \
                            SIGUSR1  open the access log again"
    )]
    Run(Run),
    /// Print configuration without starting anything
    #[command(
        after_help = "Example:\n  egressctl render envoy -f rules.yaml --envoy-version 1.38.2"
    )]
    Render(Render),
    /// Report everything that is wrong with rules: 0 good, 1 wrong
    #[command(
        after_help = "Example:\n  egressctl check -f rules/ --credentials secrets/ --connect"
    )]
    Check(Check),
    /// Find rules whose effect in Istio differs from what the author meant: 0 none, 1 some
    #[command(
        after_help = "Examples:\n  egressctl lint -f rules/\n  egressctl lint --explain sni-without-san"
    )]
    Lint(Lint),
    /// Say what happens to a request, and why
    #[command(
        after_help = "Example:\n  egressctl explain -f rules.yaml http://edition.cnn.com/politics --label app=sleep"
    )]
    Explain(Explain),
    /// Show the certificates that a running Envoy holds: 0 good, 1 missing or expired
    #[command(after_help = "Example:\n  egressctl secrets --within 30d")]
    Secrets(Secrets),
    /// Redirect the connections of other programs to `egressctl run --capture`
    #[command(after_help = "Example:\n  egressctl capture up --to 15001 --uid app")]
    Capture(Capture),
    /// Check whether this machine has all that `run` needs: 0 good, 1 not
    #[command(
        after_help = "Examples:\n  egressctl doctor\n  egressctl doctor --envoy /usr/bin/envoy -f rules/ --credentials secrets/"
    )]
    Doctor(Doctor),
    /// Print the completions of these commands for a shell
    #[command(
        after_help = "Examples:\n  egressctl completions bash > ~/.local/share/bash-completion/completions/egressctl\n  \
                      egressctl completions zsh > ~/.zfunc/_egressctl\n  \
                      egressctl completions fish > ~/.config/fish/completions/egressctl.fish"
    )]
    Completions(Completions),
    /// Print the manual page of a command
    #[command(
        after_help = "Examples:\n  egressctl man run | man -l -\n  egressctl man --output-folder ~/.local/share/man/man1"
    )]
    Man(Man),
}

/// `egressctl render`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Render {
    /// For what.
    #[command(subcommand)]
    pub(crate) target: RenderTarget,
}

/// What configuration can be rendered for.
#[derive(Debug, Subcommand)]
pub(crate) enum RenderTarget {
    /// The bootstrap that `egressctl run` would start Envoy with
    #[command(
        after_help = "Example:\n  egressctl render envoy -f rules.yaml > bootstrap.yaml && envoy -c bootstrap.yaml"
    )]
    Envoy(RenderEnvoy),
    /// The resources with which Istio originates verified TLS, in sidecars or at an egress gateway
    #[command(
        after_help = "Examples:\n  egressctl render istio -f rules.yaml --label app=sleep | kubectl apply -f -\n  egressctl render istio -f rules.yaml --way filter --url oci://registry.example.com/egress:1.0 --label app=sleep | kubectl apply -f -"
    )]
    Istio(RenderIstio),
}

/// `egressctl render envoy`.
#[derive(Debug, ClapArgs)]
pub(crate) struct RenderEnvoy {
    /// What every command with rules takes.
    #[command(flatten)]
    pub(crate) rules: Rules,
    /// The language to print
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    pub(crate) output: Format,
    /// Render for this version of Envoy, and refuse what it lacks [default: the one that egressctl was made for]
    #[arg(long, value_name = "VERSION", value_parser = envoy_version)]
    pub(crate) envoy_version: Option<String>,
    /// Write the bootstrap to this folder, with the secrets as files that Envoy watches for changes
    #[arg(long, value_name = "DIR")]
    pub(crate) output_folder: Option<PathBuf>,
}

/// Which proxies of a mesh get the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IstioPlace {
    /// The sidecars of workloads.
    Sidecar,
    /// An egress gateway.
    Gateway,
}

/// Who originates TLS in a proxy of Istio's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IstioWay {
    /// Istio's own clusters, with verified names merged into them: routes, weights and timeouts stay as they are.
    Merge,
    /// The filter, before Istio's routes: for callers with other rules in one proxy, reasons and the log.
    Filter,
}

/// The kind of resource that names the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IstioApi {
    /// WasmPlugin.
    WasmPlugin,
    /// TrafficExtension, the successor of WasmPlugin from Istio 1.30 on.
    TrafficExtension,
}

/// When an image is pulled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImagePullPolicy {
    /// When the image is not there yet.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    /// Whenever a proxy loads it.
    #[value(name = "Always")]
    Always,
}

/// Where the filter stands among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Phase {
    /// Before Istio's authentication.
    #[value(name = "AUTHN")]
    Authn,
    /// Before Istio's authorization.
    #[value(name = "AUTHZ")]
    Authz,
    /// Before Istio's statistics.
    #[value(name = "STATS")]
    Stats,
}

/// `egressctl render istio`.
#[derive(Debug, ClapArgs)]
pub(crate) struct RenderIstio {
    /// Rules: a YAML or JSON file, a folder of them, or `-` for the standard input; may be repeated
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub(crate) files: Vec<String>,
    /// The namespace of the proxies and of the rendered resources
    #[arg(short, long, value_name = "NAME", default_value = egress_policy::DEFAULT_NAMESPACE)]
    pub(crate) namespace: String,
    /// A label of the pods that get what is rendered, also for rules with a workloadSelector; may be repeated
    #[arg(
        short,
        long = "label",
        visible_alias = "selector",
        value_name = "KEY=VALUE",
        value_parser = label
    )]
    pub(crate) labels: Vec<(String, String)>,
    /// The Gateway of the Kubernetes Gateway API whose pods get what is rendered
    #[arg(long, value_name = "Gateway/NAME", value_parser = gateway, conflicts_with = "labels")]
    pub(crate) target_ref: Option<String>,
    /// What the filter repairs in answers of servers [default: default]. Istio's own clusters repair nothing
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) repair: Option<Repair>,
    /// The configuration of the mesh, in the form of `istiod --meshConfig`, Helm's values or the ConfigMap `istio`
    #[arg(long, value_name = "FILE")]
    pub(crate) mesh_config: Option<String>,
    /// Which proxies get what is rendered
    #[arg(long = "for", value_enum, value_name = "PROXIES", default_value_t = IstioPlace::Sidecar)]
    pub(crate) place: IstioPlace,
    /// Who originates TLS in them. The options --url to --wasm, --authority and --connect-to are for `filter`
    #[arg(long, value_enum, value_name = "WAY", default_value_t = IstioWay::Merge)]
    pub(crate) way: IstioWay,
    /// Where Istio gets the filter: oci://, https://, http:// or file://
    #[arg(long, value_name = "URL", required_if_eq("way", "filter"))]
    pub(crate) url: Option<Url>,
    /// The SHA-256 that it must have: the image's digest, or the module's sum [default: for a module, that of --wasm]
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub sha256: Option<String>,
    /// The Secret to pull the image with
    #[arg(long, value_name = "NAME")]
    pub(crate) image_pull_secret: Option<String>,
    /// When to pull the image again
    #[arg(long, value_enum, value_name = "POLICY", ignore_case = true)]
    pub(crate) image_pull_policy: Option<ImagePullPolicy>,
    /// The kind of resource that names the filter [default: wasm-plugin]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) api: Option<IstioApi>,
    /// Where the filter stands among the others [default: before the router]
    #[arg(long, value_enum, value_name = "PHASE", ignore_case = true)]
    pub(crate) phase: Option<Phase>,
    /// A service account that may read the credentials that rules name; may be repeated
    #[arg(long = "service-account", value_name = "NAME")]
    pub(crate) service_accounts: Vec<String>,
    /// What our resources are called
    #[arg(long, value_name = "NAME", default_value = "egress", value_parser = resource_name)]
    pub(crate) name: String,
    /// Connect to ADDRESS:PORT instead of HOST:PORT, but send and verify the names of HOST; may be repeated
    #[arg(long, value_name = "HOST:PORT:ADDRESS:PORT", value_parser = connect_to)]
    pub(crate) connect_to: Vec<ConnectTo>,
    /// Allow plaintext to a host for which the rules ask for TLS, or seem to. Write HOST as applications call it, or
    /// `*` for all; may be repeated
    #[arg(long, value_name = "HOST[:PORT]", value_parser = allow_plaintext)]
    pub(crate) allow_plaintext: Vec<AllowPlaintext>,
    /// What requests that the filter originates tell the server in `Host` [default: REWRITE]. Istio's own clusters tell
    /// it what the application wrote
    #[arg(long, value_enum, value_name = "MODE", ignore_case = true)]
    pub(crate) authority: Option<Authority>,
    /// Asked for by those who know it from `render envoy`.
    #[arg(long, value_enum, value_name = "CASE", hide = true)]
    pub(crate) header_case: Option<HeaderCase>,
    /// The filter, to compute its SHA-256 [default: egress-filter.wasm beside this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) wasm: Option<PathBuf>,
    /// The language to print; JSON is one `List`
    #[arg(short, long, value_enum, default_value_t = Format::Yaml, conflicts_with_all = ["output_folder", "diff"])]
    pub(crate) output: Format,
    /// Write a YAML file for each resource to this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) output_folder: Option<PathBuf>,
    /// Show how this folder differs from what --output-folder would write: 0 equal, 1 different
    #[arg(long, value_name = "DIR", conflicts_with = "output_folder")]
    pub(crate) diff: Option<PathBuf>,
}

/// `egressctl run`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Run {
    /// What every command with rules takes.
    #[command(flatten)]
    pub(crate) rules: Rules,
    /// The Envoy to start [default: `envoy` on PATH, or the one that `make envoy` installed]
    #[arg(long, value_name = "PATH")]
    pub(crate) envoy: Option<PathBuf>,
    /// Envoy's worker threads [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) concurrency: Option<u32>,
    /// Keep the first rules, even if their files change
    #[arg(long)]
    pub(crate) once: bool,
    /// On SIGTERM, serve for DELAY while health checks fail, then give open requests LIMIT to finish. A second signal
    /// ends at once. Kubernetes needs 10s,45s
    #[arg(long, value_name = "DELAY,LIMIT", default_value = "0s,30s", value_parser = run::drain)]
    pub(crate) drain: egress_run::Drain,
    /// Take the place of the `egressctl run` of this process without a lost request, with this program, this Envoy and
    /// these rules. It finishes what it has begun within the LIMIT of --drain, and ends
    #[arg(long, value_name = "PID")]
    pub(crate) replace: Option<u32>,
    /// Answer /ready, /live and /metrics here, for probes and Prometheus, and nothing else of the admin interface
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) status: Option<SocketAddr>,
    /// How to report what happens. JSON is one object a line on the standard error, and the standard output is left to
    /// the access log
    #[arg(short, long, value_enum, default_value_t = Report::Text)]
    pub(crate) output: Report,
    /// What to report: `error` is errors alone, `warning` also warnings and what the run does. The others add what Envoy
    /// logs at that level
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = run::LogLevel::Warning)]
    pub(crate) log_level: run::LogLevel,
}

/// Languages for structured output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Yaml,
    /// For programs.
    Json,
}

/// How requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Istio's default text, then `key=value`.
    Text,
    /// Istio's JSON keys, then an `egress` object.
    Json,
}

/// `outboundTrafficPolicy.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Outbound {
    /// Hosts without a ServiceEntry are answered 502.
    #[value(name = "REGISTRY_ONLY")]
    RegistryOnly,
    /// Hosts without a ServiceEntry are passed on as they are, in plaintext.
    #[value(name = "ALLOW_ANY")]
    AllowAny,
}

/// What originated requests carry in `:authority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Authority {
    /// The host and port really dialled; 443 is left out.
    #[value(name = "REWRITE")]
    Rewrite,
    /// What the application wrote; `KEEP` is the same.
    #[value(name = "PRESERVE", alias = "KEEP")]
    Preserve,
}

/// What is repaired in answers of servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Repair {
    /// Nothing.
    None,
    /// What is safe for every client: `Location`, `Content-Location` and `Refresh` that lead to hosts of the rules, cookies
    /// that are for TLS alone, HSTS and `Alt-Svc`.
    Default,
    /// Also `Link`, cookies named `__Secure-` or `__Host-`, and what upgrades requests in `Content-Security-Policy`.
    All,
}

/// What a proxy is, as the first part of an Istio proxy's node id says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProxyType {
    /// Beside an application. Hops through egress gateways are folded: it is the gateway, too.
    Sidecar,
    /// An egress gateway.
    Router,
}

/// The arguments of every command that reads rules.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Input {
    /// Rules: a YAML or JSON file, a folder of them, or `-` for the standard input; may be repeated
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub(crate) files: Vec<String>,
    /// The namespace of the application, which decides what rules it sees
    #[arg(short, long, value_name = "NAME", default_value = egress_policy::DEFAULT_NAMESPACE)]
    pub(crate) namespace: String,
    /// A label of the application, for rules with a workloadSelector; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// What the proxy is. A router serves what the Gateways say that select its labels, and nothing else
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = ProxyType::Sidecar)]
    pub(crate) proxy_type: ProxyType,
    /// What happens to hosts that no ServiceEntry names
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Outbound::RegistryOnly, ignore_case = true)]
    pub(crate) outbound_traffic_policy: Outbound,
    /// Connect to ADDRESS:PORT instead of HOST:PORT, but send and verify the names of HOST; may be repeated
    #[arg(long, value_name = "HOST:PORT:ADDRESS:PORT", value_parser = connect_to)]
    pub(crate) connect_to: Vec<ConnectTo>,
    /// Give each TCP service a loopback address of its own, so that many can have one port number
    #[arg(long)]
    pub(crate) loopback_vips: bool,
    /// Allow plaintext to a host for which the rules ask for TLS, or seem to. Write HOST as applications call it, or
    /// `*` for all; may be repeated
    #[arg(long, value_name = "HOST[:PORT]", value_parser = allow_plaintext)]
    pub(crate) allow_plaintext: Vec<AllowPlaintext>,
    /// What originated requests tell the server in `Host`
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Authority::Rewrite, ignore_case = true)]
    pub(crate) authority: Authority,
    /// What is repaired in answers of servers for applications that speak plain HTTP. Annotations of DestinationRules
    /// say otherwise for their hosts
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Repair::Default)]
    pub(crate) repair: Repair,
    /// The configuration of the mesh, in the form of `istiod --meshConfig`, Helm's values or the ConfigMap `istio`
    #[arg(long, value_name = "FILE")]
    pub(crate) mesh_config: Option<String>,
}

/// Where credentials come from, beside the Secrets among the rules.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Credentials {
    /// A folder with a subfolder for each credentialName (tls.crt, tls.key and ca.crt); may be repeated
    #[arg(long = "credentials", value_name = "DIR")]
    pub(crate) folders: Vec<PathBuf>,
}

/// The arguments of every command that makes configuration of rules.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Rules {
    /// What every command with rules takes.
    #[command(flatten)]
    pub(crate) input: Input,
    /// Where certificates come from.
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) listen: IpAddr,
    /// Listen on another port than the service's: SERVICE=PORT, 0 for any free one; may be repeated
    #[arg(long = "port", value_name = "SERVICE=PORT", value_parser = port_mapping)]
    pub(crate) ports: Vec<(PortNumber, u16)>,
    /// Listen here as the proxy of http_proxy and https_proxy. Envoy then listens only on the service ports that --port
    /// names
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) forward_proxy: Option<SocketAddr>,
    /// Take connections that the kernel redirects here, see `egressctl capture`. Envoy then listens only on the service
    /// ports that --port names. A PORT alone listens on 127.0.0.1 and ::1
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = capture_at)]
    pub(crate) capture: Option<CaptureAt>,
    /// Reach all servers through this proxy: http://HOST:PORT, https:// for TLS to the proxy too, USER:PASSWORD@ before HOST
    #[arg(long, value_name = "URL")]
    pub(crate) upstream_proxy: Option<String>,
    /// A file with USER:PASSWORD for the upstream proxy. `run` follows it when it changes; `render` writes it into what is
    /// rendered
    #[arg(long, value_name = "FILE", requires = "upstream_proxy")]
    pub(crate) upstream_proxy_auth: Option<PathBuf>,
    /// Reach these hosts without the upstream proxy, as NO_PROXY has them: HOST (and all below it), .SUFFIX, ADDRESS,
    /// RANGE/BITS, `*`, each with or without :PORT; separated by commas; may be repeated
    #[arg(long, value_name = "HOSTS", requires = "upstream_proxy")]
    pub(crate) no_proxy: Vec<String>,
    /// How header names are written in HTTP/1: in small letters, or as they came, both ways, with the reason phrase of
    /// answers
    #[arg(long, value_enum, value_name = "CASE", default_value_t = HeaderCase::Lower)]
    pub(crate) header_case: HeaderCase,
    /// Who answers a client that waits for `100 Continue`: the server, or Envoy at once
    #[arg(long, value_enum, value_name = "WHO", default_value_t = ExpectContinue::Pass)]
    pub(crate) expect_continue: ExpectContinue,
    /// Ask this DNS server instead of the system's; may be repeated
    #[arg(long = "resolver", value_name = "ADDRESS:PORT")]
    pub(crate) resolvers: Vec<SocketAddr>,
    /// Close connections beyond so many, all listeners together [default of `run`: what the limit of open files allows;
    /// of `render`: 30000]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections: Option<u32>,
    /// Refuse requests when Envoy has allocated so many MiB [default of `run`: three quarters of the memory; of `render`: no
    /// limit]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..))]
    pub(crate) max_heap: Option<u32>,
    /// Let Envoy's admin interface listen here, on a loopback address [default: a socket that only you can open]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) admin: Option<SocketAddr>,
    /// Let `--admin` be any address: whoever reaches it can read all configuration and stop Envoy
    #[arg(long, requires = "admin")]
    pub(crate) admin_anywhere: bool,
    /// Log requests to a file, or with `-` to the standard output
    #[arg(long, value_name = "PATH", default_value = "-")]
    pub(crate) access_log: String,
    /// How requests are logged
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub(crate) access_log_format: LogFormat,
    /// Let the filter take the labels from Envoy's node (`metadata.LABELS`), so that one configuration serves all
    /// workloads
    #[arg(long)]
    pub(crate) labels_from_node: bool,
    /// The form of the filter: in a VM, or native in Envoy's own process, which costs less [default of `run`: `module` where
    /// Envoy is 1.40 or later, else `wasm`; of `render`: `wasm`]
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) filter: Option<FilterForm>,
    /// The wasm filter [default: egress-filter.wasm beside this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) wasm: Option<PathBuf>,
    /// The native filter [default: libegress_filter.so beside this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) module: Option<PathBuf>,
    /// Without --filter, take the form that costs least.
    #[arg(skip)]
    pub(crate) cheapest: bool,
}

/// How header names are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HeaderCase {
    /// As they came.
    Preserve,
    /// In small letters.
    Lower,
}

/// Who answers `Expect: 100-continue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExpectContinue {
    /// The server, as in Istio.
    Pass,
    /// Envoy; the server is not told.
    Answer,
}

/// The forms of our filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FilterForm {
    /// A wasm module.
    Wasm,
    /// A native module.
    Module,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Report {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `egressctl check`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Check {
    /// What every command with rules takes.
    #[command(flatten)]
    pub(crate) input: Input,
    /// Where certificates come from.
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    /// Treat the files as a part of the rules: if they have no host to reach, that is only a warning
    #[arg(long)]
    pub(crate) partial: bool,
    /// Also begin TLS with each server, and report whose certificates would be refused; no request is sent
    #[arg(long)]
    pub(crate) connect: bool,
    /// How to print what is found
    #[arg(short, long, value_enum, default_value_t = Report::Text)]
    pub(crate) output: Report,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LintOutput {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For code-scanning services: SARIF 2.1.0.
    Sarif,
}

/// Which findings make `lint` exit with 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// Any finding.
    Info,
    /// Warnings and errors.
    Warning,
    /// Errors alone.
    Error,
}

/// `egressctl lint`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Lint {
    /// Rules: a YAML or JSON file, a folder of them, or `-` for the standard input; may be repeated
    #[arg(
        short,
        long = "filename",
        value_name = "FILE",
        required_unless_present = "explain"
    )]
    pub(crate) files: Vec<String>,
    /// How to print what is found
    #[arg(short, long, value_enum, default_value_t = LintOutput::Text)]
    pub(crate) output: LintOutput,
    /// Exit with 1 if there is a finding of this severity, or a worse one
    #[arg(long, value_enum, value_name = "SEVERITY", default_value_t = FailOn::Warning)]
    pub(crate) fail_on: FailOn,
    /// Fix the files where that is safe; for `-`, print the fixed text
    #[arg(long)]
    pub(crate) fix: bool,
    /// Print the page of a rule
    #[arg(long, value_name = "RULE", value_parser = lint_rules(), conflicts_with_all = ["files", "fix"])]
    pub(crate) explain: Option<String>,
}

fn lint_rules() -> clap::builder::PossibleValuesParser {
    egress_lint::RULES.iter().map(|rule| rule.id).into()
}

/// `egressctl explain`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Explain {
    /// What every command with rules takes.
    #[command(flatten)]
    pub(crate) input: Input,
    /// What the application calls: http://HOST/, https://HOST/, tcp://HOST:PORT or HOST:PORT
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    /// The name in the application's own ClientHello, when it is not the host
    #[arg(long, value_name = "NAME")]
    pub(crate) sni: Option<String>,
    /// A subset of the host, as a VirtualService might choose it
    #[arg(long, value_name = "NAME")]
    pub(crate) subset: Option<String>,
    /// The method of the request, which routes of a VirtualService may ask for
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    pub(crate) method: String,
    /// A header of the request, which routes of a VirtualService may ask for
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = header)]
    pub(crate) headers: Vec<(String, String)>,
    /// A header of the server's answer, such as `Location`: what the application gets of it
    #[arg(long, value_name = "NAME:VALUE", value_parser = header)]
    pub(crate) answer: Option<(String, String)>,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t = Report::Text)]
    pub(crate) output: Report,
}

/// `egressctl secrets`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Secrets {
    /// Envoy's admin interface, as `egressctl run` prints it [default: that of the only `run` on this machine]
    #[arg(long, value_name = "SOCKET|ADDRESS:PORT", value_parser = admin)]
    pub(crate) admin: Option<Admin>,
    /// Also exit with 1 when a certificate expires within this time, for example 30d
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) within: Option<Duration>,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = Report::Text)]
    pub(crate) output: Report,
}

/// `egressctl capture`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Capture {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: CaptureCommand,
}

/// What can be done about the rules of the firewall that capture connections.
#[derive(Debug, Subcommand)]
pub(crate) enum CaptureCommand {
    /// Install the firewall's rules, replacing those of an earlier `up`; needs root
    #[command(after_help = "Example:\n  egressctl capture up --to 15001 --uid app")]
    Up(CaptureUp),
    /// Remove the firewall's rules, those of nftables and those of iptables; needs root
    #[command(after_help = "Example:\n  egressctl capture down")]
    Down,
    /// Print what `up` would install
    #[command(
        after_help = "Example:\n  egressctl capture print --to 15001 --uid 1001 | sudo nft -f -"
    )]
    Print(Redirection),
}

/// `egressctl capture up`.
#[derive(Debug, ClapArgs)]
pub(crate) struct CaptureUp {
    /// What is redirected where.
    #[command(flatten)]
    pub(crate) redirection: Redirection,
    /// The user that Envoy will run as, if it does not run yet; connections are refused until it does
    #[arg(long, value_name = "USER|UID", conflicts_with = "cgroup")]
    pub(crate) envoy_uid: Option<String>,
}

/// What is redirected where.
#[derive(Debug, ClapArgs)]
#[group(skip)]
#[command(group = ArgGroup::new("who").required(true).multiple(true).args(["users", "cgroup"]))]
pub(crate) struct Redirection {
    /// The port of `egressctl run --capture`
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub(crate) to: PortNumber,
    /// Capture the connections of this user; may be repeated
    #[arg(long = "uid", value_name = "USER|UID", conflicts_with = "cgroup")]
    pub(crate) users: Vec<String>,
    /// Capture the connections of this cgroup (v2) and those below it; if it is removed and made anew, run `up` again
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<String>,
    /// Capture only connections to this port; may be repeated
    #[arg(long = "port", value_name = "PORT", value_parser = port)]
    pub(crate) ports: Vec<PortNumber>,
    /// Leave connections to these addresses alone, beside 127.0.0.0/8 and ::1; may be repeated
    #[arg(long = "exclude-cidr", value_name = "CIDR", value_parser = excluded)]
    pub(crate) excluded: Vec<Address>,
    /// Use iptables and ip6tables instead of nftables
    #[arg(long)]
    pub(crate) iptables: bool,
}

fn port(text: &str) -> Result<PortNumber, String> {
    let port = text.parse().ok().and_then(PortNumber::new);
    port.ok_or_else(|| "a port is a number from 1 to 65535".to_owned())
}

fn excluded(text: &str) -> Result<Address, String> {
    let range = Address::parse(text)?;
    if range.bits() == 0 {
        return Err("this is every address, and nothing would be captured".to_owned());
    }
    match range.ip.to_canonical() == range.ip {
        true => Ok(range),
        false => Err("connections to it are of IPv4; write it as an IPv4 address".to_owned()),
    }
}

/// Where redirected connections come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CaptureAt {
    /// The address, where it was named.
    pub(crate) address: Option<IpAddr>,
    /// The port.
    pub(crate) port: PortNumber,
}

fn capture_at(text: &str) -> Result<CaptureAt, String> {
    let wrong = "write it as PORT or ADDRESS:PORT, for example 15001 or 127.0.0.1:15001; the kernel cannot choose the port, because rules of the firewall name it";
    let (address, port) = match text.parse::<SocketAddr>() {
        Ok(at) => (Some(at.ip()), at.port()),
        Err(_) => (None, text.parse().map_err(|_| wrong)?),
    };
    let port = PortNumber::new(port).ok_or(wrong)?;
    Ok(CaptureAt { address, port })
}

/// `egressctl doctor`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Doctor {
    /// The Envoy to look at [default: the one that `run` would start]
    #[arg(long, value_name = "PATH")]
    pub(crate) envoy: Option<PathBuf>,
    /// The filter [default: egress-filter.wasm beside this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) wasm: Option<PathBuf>,
    /// The native filter [default: libegress_filter.so beside this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) module: Option<PathBuf>,
    /// Rules to look at too: a YAML or JSON file, a folder of them, or `-` for the standard input; may be repeated
    #[arg(short, long = "filename", value_name = "FILE")]
    pub(crate) files: Vec<String>,
    /// The namespace of the application, which decides what rules it sees
    #[arg(short, long, value_name = "NAME", default_value = egress_policy::DEFAULT_NAMESPACE)]
    pub(crate) namespace: String,
    /// A label of the application, for rules with a workloadSelector; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Where certificates come from.
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    /// How to print what is found
    #[arg(short, long, value_enum, default_value_t = Report::Text)]
    pub(crate) output: Report,
}

/// `egressctl completions`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Completions {
    /// The shell to complete in
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// The shells that completions are printed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// GNU Bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// Fish.
    Fish,
}

/// `egressctl man`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Man {
    /// The command, for example `render envoy` [default: egressctl itself]
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
    /// Write the pages of all commands to this folder
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub(crate) output_folder: Option<PathBuf>,
}

fn envoy_version(text: &str) -> Result<String, String> {
    let plain = text.split('.').all(|part| part.parse::<u32>().is_ok());
    match Version::find(text) {
        Some(_) if plain => Ok(text.to_owned()),
        _ => Err("write it as MAJOR.MINOR.PATCH, for example 1.38.2".to_owned()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME:VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn admin(text: &str) -> Result<Admin, String> {
    if text.contains('/') {
        return Ok(Admin::Pipe(text.to_owned()));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) => Ok(Admin::Tcp(address.ip().to_string(), address.port())),
        Err(_) => Err(
            "write it as the path of a socket or as ADDRESS:PORT, for example 127.0.0.1:9901"
                .to_owned(),
        ),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("write it as KEY=VALUE, for example app=sleep")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn gateway(text: &str) -> Result<String, String> {
    let wrong = "write it as Gateway/NAME: other kinds have no proxies of their own";
    let (kind, name) = text.split_once('/').ok_or(wrong)?;
    if !kind.eq_ignore_ascii_case("gateway") {
        return Err(wrong.to_owned());
    }
    resource_name(name)
}

fn resource_name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = |c: char| c.is_ascii_alphanumeric();
    if text.len() <= 63 && text.chars().all(good) && text.starts_with(ends) && text.ends_with(ends)
    {
        Ok(text.to_owned())
    } else {
        Err("a name has at most 63 letters in lower case, digits and `-`".to_owned())
    }
}

fn sha256(text: &str) -> Result<String, String> {
    let sum = text.strip_prefix("sha256:").unwrap_or(text);
    let hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    if sum.len() == 64 && sum.chars().all(hex) {
        Ok(sum.to_owned())
    } else {
        Err("write it as 64 digits and letters from a to f, as sha256sum prints it".to_owned())
    }
}

fn port_mapping(text: &str) -> Result<(PortNumber, u16), String> {
    let wrong = || "write it as SERVICE=PORT, for example 80=10080".to_owned();
    let (service, port) = text.split_once('=').ok_or_else(wrong)?;
    let service = service
        .parse()
        .ok()
        .and_then(PortNumber::new)
        .ok_or_else(wrong)?;
    Ok((service, port.parse().map_err(|_| wrong())?))
}

fn allow_plaintext(text: &str) -> Result<AllowPlaintext, String> {
    let wrong = || "write it as HOST or HOST:PORT, for example legacy.example.com:80".to_owned();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => {
            let number = u16::from_str(port).ok().and_then(PortNumber::new);
            (host, Some(number.ok_or_else(wrong)?))
        }
        None => (text, None),
    };
    Ok(AllowPlaintext {
        host: HostPattern::parse(host).map_err(|error| format!("{error}; {}", wrong()))?,
        port,
        reason: None,
        date: None,
    })
}

fn connect_to(text: &str) -> Result<ConnectTo, String> {
    let wrong = || {
        "write it as HOST:PORT:ADDRESS:PORT, for example example.com:443:127.0.0.1:8443".to_owned()
    };
    let (host, rest) = text.split_once(':').ok_or_else(wrong)?;
    let (port, rest) = rest.split_once(':').ok_or_else(wrong)?;
    let (address, address_port) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let number = |text: &str| {
        u16::from_str(text)
            .ok()
            .and_then(PortNumber::new)
            .ok_or_else(wrong)
    };
    // As in curl, an IPv6 address may stand in brackets.
    let address = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(address);
    if address.parse::<std::net::IpAddr>().is_err() {
        HostName::dns(address).map_err(|error| error.to_string())?;
    }
    Ok(ConnectTo {
        host: HostName::dns(host).map_err(|error| error.to_string())?,
        port: number(port)?,
        address: address.to_owned(),
        address_port: number(address_port)?,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn capture_takes_a_port_with_or_without_an_address() {
        let read = |text| capture_at(text).map(|at| (at.address, at.port.get()));
        assert_eq!(read("15001"), Ok((None, 15001)));
        let local = "127.0.0.1".parse().ok();
        assert_eq!(read("127.0.0.1:15001"), Ok((local, 15001)));
        assert_eq!(read("[::1]:15001"), Ok(("::1".parse().ok(), 15001)));
        for bad in ["", "0", "127.0.0.1:0", "127.0.0.1", "::1:15001:", "65536"] {
            assert!(capture_at(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn connect_to_reads_as_in_curl() {
        let to = connect_to("Edition.cnn.com:443:127.0.0.1:8443").unwrap();
        assert_eq!(
            (
                to.host.as_str(),
                to.port.get(),
                to.address.as_str(),
                to.address_port.get()
            ),
            ("edition.cnn.com", 443, "127.0.0.1", 8443)
        );
        assert_eq!(connect_to("a.com:443:[::1]:8443").unwrap().address, "::1");
        for bad in [
            "",
            "a.com",
            "a.com:443",
            "a.com:443:127.0.0.1",
            "a.com:0:127.0.0.1:1",
            "a com:443:b:1",
            "a.com:443::1",
        ] {
            assert!(connect_to(bad).is_err(), "{bad}");
        }
    }
}
