//! Load: the plugin configuration, in whatever envelope the host had it, becomes a table and settings.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use egress_policy::fields::{Cursor, Field, Report};
use egress_policy::node::{Key, Node, Object};
use egress_policy::{
    AllowPlaintext, Cluster, CompileOptions, ConnectTo, Digest, Divided, DownstreamProtocol,
    FieldPath, HostName, Mesh, Origin, OutboundMode, Parser, PolicyTable, PortNumber, Problem,
    ProblemKind, Problems, Proxy, Resources, Role, Segment, Severity, map_of,
};
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::answer::{Repair, Repairs};
use crate::config::compact;
use crate::config::{
    ALWAYS, AuthorityMode, FORWARD_PROXY, FilterKind, MetadataFormat, SCHEMA, Variants,
};
use crate::contract;

/// A configuration that was read and compiled whole.
#[derive(Debug)]
pub struct Loaded {
    /// What to do with each host and port.
    pub table: Arc<PolicyTable>,
    /// The fingerprint of the table.
    pub digest: Digest,
    /// The service port of the listener, if one configuration serves one listener.
    pub listener_port: Option<PortNumber>,
    /// The listener is a forward proxy: requests name the port, and the facts tell of CONNECT. Never with
    /// `ALLOW_ANY`, which would let anybody go anywhere.
    pub forward_proxy: bool,
    /// All clusters lead through a proxy, which is told where to. Never with `ALLOW_ANY`: the way of what is left
    /// alone is not known.
    pub upstream_proxy: bool,
    /// What upstream is told.
    pub authority: AuthorityMode,
    /// The cluster that needs no header.
    pub default_cluster: Option<String>,
    /// Requests have lost `x-egress-*` before they come here.
    pub headers_stripped: bool,
    /// Hosts of the listener have branches, and Envoy's routes choose among them.
    pub branches: bool,
    /// What divides connections of the listener among several destinations.
    pub divided: Divided,
    /// What Envoy hands over.
    pub filter: FilterKind,
    /// What is repaired in answers of hosts whose rules say nothing about it.
    pub repair: Repair,
    /// Answers of some host may need the filter's repair.
    pub looks_at_answers: bool,
    /// The ports that applications dial in place of service ports.
    pub mapped_ports: Vec<(PortNumber, PortNumber)>,
    /// How metadata is written.
    pub metadata: MetadataFormat,
    /// The names by which Envoy tells clusters of one name apart, by [`Cluster::name`]; empty where none needs it.
    variants: BTreeMap<Box<str>, String>,
    /// Whether they name transport sockets, or clusters.
    variant_kind: Variants,
    /// What was noticed and does not prevent anything.
    pub warnings: Problems,
}

/// Why a configuration does not load.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// It is not JSON.
    #[error("the plugin configuration is not JSON: {0}")]
    Json(String),
    /// It is, and this is wrong with it.
    #[error("{0}")]
    Problems(Problems),
    /// The labels that would decide cannot be read.
    #[error(
        "the rules select workloads, and `proxy.labels` is not given: the labels of Envoy's node are not a map of texts (`node.metadata.LABELS`), or this is a native module, which is not told them"
    )]
    NodeLabels,
    /// It was made for another table than this filter compiles.
    #[error(
        "the rules compile to digest {found}, the configuration was made for {wanted}: use the egressctl and the filter of one version"
    )]
    Skew {
        /// What this filter makes of the rules.
        found: String,
        /// What the renderer made of them.
        wanted: String,
    },
}

/// Reads a plugin configuration, for a node without labels.
///
/// # Errors
/// With everything that is wrong; then nothing of the configuration is in use.
pub fn load(json: &[u8]) -> Result<Loaded, InvalidConfig> {
    load_for(json.to_vec(), Some(BTreeMap::new()))
}

/// Reads a plugin configuration; `node_labels` count where it does not say the labels of the workload. `None`
/// are labels that cannot be read: then no resource may select workloads by them.
///
/// What is not needed any more is given back as soon as may be, the text first: the memory of a VM never shrinks, so
/// what loading takes at its height is taken for good.
///
/// # Errors
/// As [`load`].
pub fn load_for(
    json: Vec<u8>,
    node_labels: Option<BTreeMap<String, String>>,
) -> Result<Loaded, InvalidConfig> {
    let (settings, resources, problems) = read(&json)?;
    drop(json);
    let Some(settings) = settings.filter(|_| !problems.has_errors()) else {
        return Err(InvalidConfig::Problems(problems));
    };

    let compile = |resources: &Resources, options: &CompileOptions| {
        PolicyTable::compile(resources, options).map_err(|mut more| {
            more.0.splice(0..0, problems.0.iter().cloned());
            InvalidConfig::Problems(more)
        })
    };
    let (mut table, mut warnings) = compile(&resources, &settings.options)?;
    let again = settings.labels_of_the_node.then_some(resources);
    let mut digest = table.digest();
    if let Some(wanted) = settings
        .digest
        .filter(|wanted| *wanted != digest.to_string())
    {
        let found = digest.to_string();
        return Err(InvalidConfig::Skew { found, wanted });
    }
    if let Some(resources) = again {
        // The renderer knew of no labels, so the digest is that of none.
        let mut options = settings.options;
        options.proxy.labels = match node_labels {
            Some(labels) => labels,
            None if resources.select_workloads() => return Err(InvalidConfig::NodeLabels),
            None => BTreeMap::new(),
        };
        if !options.proxy.labels.is_empty() {
            (table, warnings) = compile(&resources, &options)?;
            digest = table.digest();
        } else if resources
            .destination_rules
            .iter()
            .any(|rule| rule.selector.is_some())
        {
            let text = "is not given, and Envoy's node has no labels: no rule with a `workloadSelector` applies";
            warnings.0.push(Problem {
                severity: Severity::Warning,
                resource: None,
                origin: Origin::default(),
                path: FieldPath(
                    ["proxy", "labels"]
                        .map(|key| Segment::Key(key.to_owned()))
                        .to_vec(),
                ),
                kind: ProblemKind::Invalid(text.to_owned()),
                hint: Some("give `LABELS` in the metadata of the node".to_owned()),
                id: None,
            });
        }
    }
    warnings.0.splice(0..0, problems.0);
    let variants = match settings.variants {
        Variants::None => BTreeMap::new(),
        kind => map_of(
            table
                .services()
                .filter(|service| service.downstream != DownstreamProtocol::Tls)
                .map(|service| service.cluster)
                .chain(table.branch_clusters().map(|(_, _, cluster)| cluster))
                .filter(|cluster| cluster.own.is_some())
                .filter(|cluster| kind == Variants::Clusters || cluster.tls.is_some())
                .map(|cluster| (cluster.name.as_str().into(), contract::variant(cluster))),
        ),
    };
    let looks_at_answers = table
        .clusters()
        .any(|cluster| cluster.tls.is_some() && Repairs::of(settings.repair, cluster.notes).look());
    // Elsewhere routes are not ours, and have other names.
    let ours = settings.headers_stripped && settings.listener_port.is_some();
    Ok(Loaded {
        branches: ours && table.has_branches(settings.listener_port),
        divided: table.divided(settings.listener_port),
        variants,
        variant_kind: settings.variants,
        table: Arc::new(table),
        digest,
        listener_port: settings.listener_port,
        forward_proxy: settings.forward_proxy,
        upstream_proxy: settings.upstream_proxy,
        authority: settings.authority,
        default_cluster: settings.default_cluster,
        headers_stripped: settings.headers_stripped,
        filter: settings.filter,
        repair: settings.repair,
        looks_at_answers,
        mapped_ports: settings.mapped_ports,
        metadata: settings.metadata,
        warnings,
    })
}

impl Loaded {
    /// Returns the transport socket that a request to a cluster must name, if the cluster has several.
    pub(crate) fn transport_socket(&self, cluster: &Cluster) -> Option<&str> {
        let named = self.variant_kind == Variants::Sockets;
        named
            .then(|| self.variants.get(cluster.name.as_str()))?
            .map(String::as_str)
    }

    /// Returns what Envoy calls a cluster.
    pub(crate) fn cluster_name<'l>(&'l self, cluster: &'l Cluster) -> &'l str {
        let own = match self.variant_kind {
            Variants::Clusters => self.variants.get(cluster.name.as_str()),
            Variants::None | Variants::Sockets => None,
        };
        own.map_or(cluster.name.as_str(), String::as_str)
    }
}

struct Settings {
    variants: Variants,
    labels_of_the_node: bool,
    digest: Option<String>,
    options: CompileOptions,
    listener_port: Option<PortNumber>,
    forward_proxy: bool,
    upstream_proxy: bool,
    authority: AuthorityMode,
    default_cluster: Option<String>,
    headers_stripped: bool,
    filter: FilterKind,
    repair: Repair,
    mapped_ports: Vec<(PortNumber, PortNumber)>,
    metadata: MetadataFormat,
}

fn read_settings(field: Field<'_>) -> Option<Settings> {
    let fields = field.fields()?;
    fields.read("schema", |field| field.number(SCHEMA, SCHEMA));
    let digest = fields.read("digest", |field| field.text().map(str::to_owned));
    let proxy = fields.read("proxy", |field| {
        let fields = field.fields()?;
        let namespace = fields.read("namespace", |field| field.text().map(str::to_owned));
        let labels = fields.read("labels", |field| Some(map_of(field.labels())));
        let namespace = namespace.unwrap_or_else(|| egress_policy::DEFAULT_NAMESPACE.to_owned());
        let role = fields.read("role", |field| {
            field.word("role", &Role::NAMES, Role::parse)
        });
        Some((namespace, labels, role.unwrap_or_default()))
    });
    let (namespace, labels, role) =
        proxy.unwrap_or_else(|| (Proxy::default().namespace, None, Role::default()));
    let labels_of_the_node = labels.is_none();
    let proxy = Proxy {
        namespace,
        labels: labels.unwrap_or_default(),
        role,
    };
    let variants = fields.read("workloadVariants", |field| {
        field.word("word", &Variants::NAMES, Variants::parse)
    });
    let outbound = fields.read("outboundTrafficPolicy", |field| {
        let fields = field.fields()?;
        fields.require("mode", |field| {
            field.word("mode", &OutboundMode::NAMES, OutboundMode::parse)
        })
    });
    let mut forward_proxy = false;
    let listener_port = fields.read("listener", |field| {
        let fields = field.fields()?;
        let mode = fields.read("mode", |field| {
            field.word("mode", &[FORWARD_PROXY], |word| {
                (word == FORWARD_PROXY).then_some(())
            })
        });
        forward_proxy = mode.is_some();
        match forward_proxy {
            true => fields.read("port", |field| field.port()),
            false => fields.require("port", |field| field.port()),
        }
    });
    if forward_proxy {
        let refuse = |name: &'static str, kind: &str, hint: &'static str| {
            fields.error_at(name, ProblemKind::Conflict(kind.to_owned()), Some(hint));
        };
        if listener_port.is_some() {
            refuse(
                "listener",
                "has a port, and a forward proxy none",
                "remove `port`: each request names its own",
            );
        }
        if outbound == Some(OutboundMode::AllowAny) {
            refuse(
                "outboundTrafficPolicy",
                "would make the forward proxy an open one",
                "use `REGISTRY_ONLY`",
            );
        }
    }
    let upstream_proxy = fields.read("upstreamProxy", |field| {
        field.word("word", &[ALWAYS, "NEVER"], |word| match word {
            ALWAYS => Some(true),
            "NEVER" => Some(false),
            _ => None,
        })
    });
    let upstream_proxy = upstream_proxy.unwrap_or(false);
    if upstream_proxy && outbound == Some(OutboundMode::AllowAny) {
        let kind = ProblemKind::Conflict("would lead around the upstream proxy".to_owned());
        fields.error_at("outboundTrafficPolicy", kind, Some("use `REGISTRY_ONLY`"));
    }
    let authority = fields.read("authority", |field| {
        field.word(
            "authority mode",
            &AuthorityMode::NAMES,
            AuthorityMode::parse,
        )
    });
    let metadata = fields.read("metadata", |field| {
        field.word("format", &MetadataFormat::NAMES, MetadataFormat::parse)
    });
    let filter = fields.read("filter", |field| {
        field.word("kind of filter", &FilterKind::NAMES, FilterKind::parse)
    });
    let repair = fields.read("repair", |field| {
        field.word("word", &Repair::NAMES, Repair::parse)
    });
    let mut mapped_ports = Vec::new();
    fields.read("listenPorts", |field| {
        field.entries(|service, dialled| {
            let service = service.parse().ok().and_then(PortNumber::new);
            match service.zip(dialled.port()) {
                Some(ports) => mapped_ports.push(ports),
                None => {
                    let kind = ProblemKind::Invalid("is no pair of ports".to_owned());
                    dialled.error_with_hint(kind, "write the service port, and the one to dial");
                }
            }
        });
        Some(())
    });
    let mesh = fields.read("mesh", Mesh::read);
    let loopback_vips = fields.read("loopbackVips", |field| field.bool());
    let headers_stripped = fields.read("controlHeaders", |field| {
        field.word("word", &["STRIPPED", "UNTRUSTED"], |word| match word {
            "STRIPPED" => Some(true),
            "UNTRUSTED" => Some(false),
            _ => None,
        })
    });
    let default_cluster = fields.read("defaultCluster", |field| field.text().map(str::to_owned));
    if default_cluster.is_some() && headers_stripped != Some(true) {
        let kind =
            ProblemKind::Conflict("is safe only where `controlHeaders` is `STRIPPED`".to_owned());
        let hint = "remove it, or let Envoy remove `x-egress-*` headers before it chooses a route, and say so";
        fields.error_at("defaultCluster", kind, Some(hint));
    }
    let mut connect_to = Vec::new();
    fields.read("connectTo", |list| {
        list.items(|item| connect_to.extend(read_connect_to(item)));
        Some(())
    });
    let mut allow_plaintext = Vec::new();
    fields.read("allowPlaintext", |list| {
        list.items(|item| allow_plaintext.extend(read_allowed(item)));
        Some(())
    });
    let options = CompileOptions {
        proxy,
        outbound: outbound.unwrap_or_default(),
        connect_to,
        loopback_vips: loopback_vips.unwrap_or(false),
        allow_plaintext,
        foreign: !headers_stripped.unwrap_or(false),
        mesh: mesh.unwrap_or_default(),
    };
    Some(Settings {
        variants: variants.unwrap_or_default(),
        labels_of_the_node,
        digest,
        options,
        listener_port,
        forward_proxy,
        upstream_proxy,
        authority: authority.unwrap_or_default(),
        default_cluster,
        headers_stripped: headers_stripped.unwrap_or(false),
        filter: filter.unwrap_or_default(),
        repair: repair.unwrap_or_default(),
        mapped_ports,
        metadata: metadata.unwrap_or_default(),
    })
}

fn read_allowed(field: Field<'_>) -> Option<AllowPlaintext> {
    let fields = field.fields()?;
    let host = fields.require("host", |field| field.host());
    let port = fields.read("port", |field| field.port());
    let bad_port = fields.has("port") && port.is_none();
    let text = |name| fields.read(name, |field| field.text().map(str::to_owned));
    let (reason, date) = (text("reason"), text("date"));
    Some(AllowPlaintext {
        host: host.filter(|_| !bad_port)?,
        port,
        reason,
        date,
    })
}

fn read_connect_to(field: Field<'_>) -> Option<ConnectTo> {
    let fields = field.fields()?;
    let host = fields.require("host", |field| {
        let text = field.text()?;
        HostName::dns(text)
            .map_err(|problem| field.error(ProblemKind::Invalid(problem.to_string())))
            .ok()
    });
    let port = fields.require("port", |field| field.port());
    let address = fields.require("address", |field| field.text().map(str::to_owned));
    let address_port = fields.require("addressPort", |field| field.port());
    Some(ConnectTo {
        host: host?,
        port: port?,
        address: address?,
        address_port: address_port?,
    })
}

/// Reads the text, without what it means for a table.
fn read(json: &[u8]) -> Result<(Option<Settings>, Resources, Problems), InvalidConfig> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let read = reader
        .deserialize_any(Reader)
        .and_then(|read| reader.end().map(|()| read));
    let (settings, parser) = read.map_err(|error| InvalidConfig::Json(error.to_string()))?;
    let (resources, mut problems) = parser.finish();
    let report = Report::new(Origin::default());
    let settings = read_settings(Field {
        report: &report,
        cursor: Cursor::Root,
        value: &Node::Object(settings),
    });
    let mut own = report.into_problems();
    own.append(&mut problems.0);
    Ok((settings, resources, Problems(own)))
}

/// Visits of what is none of a visitor's own. Serde's own error can write any value, and the code for that is larger than
/// ten such lists: numbers with a point take most of it.
macro_rules! refused {
    ($expected:literal: $($visit:ident($kind:ty),)*) => {
        $(fn $visit<E: serde::de::Error>(self, _: $kind) -> Result<Self::Value, E> {
            Err(E::custom(concat!("expected ", $expected)))
        })*

        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Err(E::custom(concat!("expected ", $expected)))
        }
    };
}

/// Reads the outer object, and each resource by itself: ten thousand of them are never in memory at once.
struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = (Object<'de>, Parser);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `resources`")
    }

    refused! {
        "an object with `resources`":
        visit_bool(bool),
        visit_u64(u64),
        visit_i64(i64),
        visit_f64(f64),
        visit_str(&str),
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(serde::de::Error::custom(
            "expected an object with `resources`",
        ))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut settings = Object::default();
        let mut parser = None;
        while let Some(Key(key)) = map.next_key()? {
            if key == "resources" && parser.is_none() {
                parser = Some(map.next_value_seed(ResourceList)?);
            } else if key == "resources" || settings.get(&key).is_some() {
                map.next_value::<IgnoredAny>()?;
                return Err(serde::de::Error::custom(format_args!(
                    "`{key}` is given twice"
                )));
            } else {
                settings.insert(key, map.next_value()?);
            }
        }
        let parser = parser.ok_or_else(|| serde::de::Error::missing_field("resources"))?;
        Ok((settings, parser))
    }
}

struct ResourceList;

impl<'de> serde::de::DeserializeSeed<'de> for ResourceList {
    type Value = Parser;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parser, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ResourceList {
    type Value = Parser;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of resources")
    }

    refused! {
        "a list of resources":
        visit_bool(bool),
        visit_u64(u64),
        visit_i64(i64),
        visit_f64(f64),
        visit_str(&str),
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Parser, A::Error> {
        Err(serde::de::Error::custom("expected a list of resources"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Parser, A::Error> {
        let mut parser = Parser::new();
        let mut resource = Node::Null;
        while let Some(next) = list.next_element::<Node<'de>>()? {
            resource = match next {
                Node::List(list) => compact::decode(resource, list),
                whole => whole,
            };
            parser.node(&resource);
        }
        Ok(parser)
    }
}

impl InvalidConfig {
    /// Returns the problems one by one, each a line for a log.
    pub fn lines(&self) -> Vec<String> {
        match self {
            InvalidConfig::Problems(problems) => {
                problems.0.iter().map(Problem::to_string).collect()
            }
            other => vec![other.to_string()],
        }
    }
}
