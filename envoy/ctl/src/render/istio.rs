//! `egressctl render istio`: resources for a cluster, to be applied or kept in a folder.

use std::collections::BTreeMap;
use std::path::Path;

use crate::threads::at_once;
use egress_policy::{Proxy, Role};
use serde_json::{Value, json};

use super::super::args::{
    Authority, Format, ImagePullPolicy, Input, IstioApi, IstioPlace, IstioWay, Outbound, Phase,
    ProxyType, RenderIstio, Repair,
};
use super::super::output::{Done, Output};
use super::super::{locate, settings, sources};
use egress_render::istio::{
    self, Api, Filter, MARK, Manifest, Module, ProxyKind, PullPolicy, Url, Wanted, Way,
};
use egress_render::xds::{OLDEST, Options, Secrets};
use egress_rules::{Complaint, Refusal};
use egress_rules::{How, Routes, Rules, compile_as};
use egress_run::atomic;

/// What a stream of resources begins with, below the line of every file.
const OF_THE_FILTER: &str = "\
# The filter originates by the rules in `pluginConfig`. The DestinationRules keep Istio from doing it too: their `tls` asks
# for a certificate that nobody has, so that nothing goes out around the filter. Apply them in place of the rules' own.
";

/// The same, where there is no filter.
const OF_PATCHES: &str = "\
# Istio's own clusters originate, and its routes stay. The EnvoyFilter tells these clusters whom to verify. Without it the
# DestinationRules refuse every server. Apply them in place of the rules' own, in this order. To remove it all, delete the
# DestinationRules first, then the ServiceEntries, and the EnvoyFilter last.
";

/// Returns what a cluster needs, writes it, or shows how it differs.
pub(in super::super) fn istio(args: &RenderIstio) -> Done {
    let (rules, manifests) = rendered(args)?;
    let mark = format!(
        "{MARK}{} for Istio; rules digest {}\n",
        env!("CARGO_PKG_VERSION"),
        rules.table.digest()
    );
    let mut output =
        delivered(args, &mark, &manifests).map_err(|complaint| complaint.behind(rules.warned()))?;
    output.notes.splice(0..0, rules.warned());
    Ok(output)
}

fn rendered(args: &RenderIstio) -> Result<(Rules, Vec<Manifest>), Refusal> {
    if args.place == IstioPlace::Gateway && args.labels.is_empty() && args.target_ref.is_none() {
        return Err(Complaint::input(
            "`--for gateway` does not say which\nhint: name the labels of its pods, for example `--label istio=egressgateway`, or `--target-ref Gateway/NAME`",
        ).into());
    }
    if args.place == IstioPlace::Sidecar && args.target_ref.is_some() {
        return Err(Complaint::input(
            "`--target-ref` names a gateway, and sidecars are named by labels\nhint: add `--for gateway`, or use `--label` instead",
        ).into());
    }
    if args.header_case.is_some() {
        return Err(Complaint::input(
            "`--header-case` is the mesh's to set: the listeners are Istio's\nhint: set `proxyHeaders.preserveHttp1HeaderCase: true` in `meshConfig.defaultConfig`, or in the annotation `proxy.istio.io/config` of the pods",
        ).into());
    }
    if args.way == IstioWay::Merge {
        refuse_what_is_the_filters(args)?;
    }
    let input = input(args);
    let (sources, mut compile_options) = settings::read(&input)?;
    if args.place == IstioPlace::Gateway {
        compile_options.proxy.role = Role::Gateway;
    }
    compile_options.foreign = true;
    let rules = compile_as(
        &sources,
        &compile_options,
        How {
            each: at_once,
            routes: match args.way {
                IstioWay::Merge => Routes::Istiods,
                IstioWay::Filter => Routes::Ours,
            },
            ..How::default()
        },
    )?;
    let options = Options {
        mesh: rules.mesh.clone(),
        ..options(&input, compile_options.proxy)
    };
    let manifests = wanted(args).and_then(|wanted| {
        istio::manifests(&rules, &options, &wanted)
            .map_err(|error| Complaint::input(format!("{error}\nhint: {}", error.hint())))
    });
    let manifests = manifests.map_err(|complaint| complaint.behind(rules.warned()))?;
    Ok((rules, manifests))
}

/// Refuses options that say how the filter is to be, where there is none.
fn refuse_what_is_the_filters(args: &RenderIstio) -> Result<(), Complaint> {
    let given = [
        ("--url", args.url.is_some()),
        ("--sha256", args.sha256.is_some()),
        ("--image-pull-secret", args.image_pull_secret.is_some()),
        ("--image-pull-policy", args.image_pull_policy.is_some()),
        ("--api", args.api.is_some()),
        ("--phase", args.phase.is_some()),
        ("--wasm", args.wasm.is_some()),
        ("--connect-to", !args.connect_to.is_empty()),
        (
            "--authority REWRITE",
            args.authority == Some(Authority::Rewrite),
        ),
        ("--repair", args.repair.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => Err(Complaint::input(format!(
            "`{option}` is for the filter, and by default Istio's own clusters originate\nhint: leave it out, or add `--way filter`"
        ))),
    }
}

/// Returns how the rules are compiled. Hosts that they do not name are Istio's.
fn input(args: &RenderIstio) -> Input {
    Input {
        files: args.files.clone(),
        namespace: args.namespace.clone(),
        labels: args.labels.clone(),
        proxy_type: ProxyType::Sidecar,
        outbound_traffic_policy: Outbound::AllowAny,
        connect_to: args.connect_to.clone(),
        loopback_vips: false,
        allow_plaintext: args.allow_plaintext.clone(),
        authority: args.authority.unwrap_or(Authority::Rewrite),
        repair: args.repair.unwrap_or(Repair::Default),
        mesh_config: args.mesh_config.clone(),
    }
}

/// Returns how clusters and the filter's configuration are rendered. What only a bootstrap has is not looked at.
fn options(input: &Input, proxy: Proxy) -> Options {
    Options {
        authority: settings::authority(input),
        repair: settings::repair(input),
        proxy,
        // Of proxies of several releases the oldest decides.
        version: OLDEST,
        secrets: Secrets::Istio,
        reloads: true,
        by_content: true,
        ..Options::default()
    }
}

fn wanted(args: &RenderIstio) -> Result<Wanted, Complaint> {
    let way = match (args.way, &args.url) {
        (IstioWay::Filter, Some(url)) => Way::Filter(filter(args, url)?),
        _ => Way::Merge,
    };
    Ok(Wanted {
        name: args.name.clone(),
        proxies: match args.place {
            IstioPlace::Sidecar => ProxyKind::Sidecar,
            IstioPlace::Gateway => ProxyKind::Gateway,
        },
        gateway: args.target_ref.clone(),
        way,
        service_accounts: args.service_accounts.clone(),
    })
}

fn filter(args: &RenderIstio, url: &Url) -> Result<Filter, Complaint> {
    let sha256 = match &args.sha256 {
        Some(sum) => Some(sum.clone()),
        None if url.is_of_module() => {
            let sum = locate::wasm(args.wasm.as_deref()).and_then(|path| locate::sha256(&path));
            Some(sum.map_err(Complaint::input)?)
        }
        None => None,
    };
    Ok(Filter {
        module: Module {
            url: url.clone(),
            sha256,
            pull_secret: args.image_pull_secret.clone(),
            pull_policy: args.image_pull_policy.map(|policy| match policy {
                ImagePullPolicy::IfNotPresent => PullPolicy::IfNotPresent,
                ImagePullPolicy::Always => PullPolicy::Always,
            }),
        },
        api: match args.api {
            None | Some(IstioApi::WasmPlugin) => Api::WasmPlugin,
            Some(IstioApi::TrafficExtension) => Api::TrafficExtension,
        },
        phase: args.phase.map(|phase| match phase {
            Phase::Authn => "AUTHN",
            Phase::Authz => "AUTHZ",
            Phase::Stats => "STATS",
        }),
    })
}

fn delivered(args: &RenderIstio, mark: &str, manifests: &[Manifest]) -> Result<Output, Complaint> {
    if args.output == Format::Json {
        let items: Vec<&Value> = manifests.iter().map(|manifest| &manifest.value).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let text = serde_json::to_string_pretty(&list)
            .map_err(|error| Complaint::us(format!("cannot write the list: {error}")))?;
        return Ok(Output::verbatim(format!("{text}\n")));
    }
    let documents = manifests.iter().map(|manifest| {
        let text = serde_saphyr::to_string(&manifest.value)
            .map_err(|error| Complaint::us(format!("cannot write {}: {error}", manifest.kind)))?;
        Ok((istio::file_name(manifest), format!("{}\n", text.trim_end())))
    });
    let documents: Vec<(String, String)> = documents.collect::<Result<_, Complaint>>()?;
    let Some(folder) = args.diff.as_deref().or(args.output_folder.as_deref()) else {
        let explanation = match args.way {
            IstioWay::Merge => OF_PATCHES,
            IstioWay::Filter => OF_THE_FILTER,
        };
        let texts: Vec<&str> = documents.iter().map(|(_, text)| text.as_str()).collect();
        return Ok(Output::verbatim(format!(
            "{mark}{explanation}{}",
            texts.join("---\n")
        )));
    };
    let files: BTreeMap<String, String> = documents
        .into_iter()
        .map(|(name, text)| (name, format!("{mark}{text}")))
        .collect();
    let mut there = sources::yaml_files(folder).map_err(Complaint::input)?;
    // What others keep in the folder is none of ours.
    there.retain(|name, text| files.contains_key(name) || istio::is_ours(text));
    match args.diff {
        Some(_) => {
            let difference = istio::difference(&folder.display().to_string(), &there, &files);
            let differs = !difference.is_empty();
            Ok(Output::lines(difference).bad_if(differs))
        }
        None => write(folder, &files, &there),
    }
}

fn write(
    folder: &Path,
    files: &BTreeMap<String, String>,
    there: &BTreeMap<String, String>,
) -> Result<Output, Complaint> {
    let strange = |name: &&String| there.get(*name).is_some_and(|text| !istio::is_ours(text));
    if let Some(name) = files.keys().find(strange) {
        return Err(Complaint::input(format!(
            "`{}` was not rendered by us, and would be written over\nhint: move it away, or render with another `--name`",
            folder.join(name).display()
        )));
    }
    let mut written = String::new();
    for (name, text) in files {
        let path = folder.join(name);
        atomic::write_shared(folder, name, text).map_err(|error| {
            Complaint::us(format!("cannot write `{}`: {error}", path.display()))
        })?;
        written.push_str(&format!("{}\n", path.display()));
    }
    let mut notes = Vec::new();
    for name in there.keys().filter(|name| !files.contains_key(*name)) {
        let path = folder.join(name);
        notes.push(format!(
            "note: `{}` is from an earlier rendering, and no rule asks for it any more",
            path.display()
        ));
    }
    Ok(Output::lines(written).with_notes(notes))
}
