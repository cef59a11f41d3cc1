//! `egressctl render istio`: resources for a cluster, to be applied or kept in a folder.

use std::collections::BTreeMap;
use std::path::Path;

use crate::threads::at_once;
use egress_policy::{Proxy, Role};
use serde_json::{Value, json};

use super::super::args::{
    Format, ImagePullPolicy, Input, IstioApi, IstioPlace, Outbound, Phase, RenderIstio,
};
use super::super::output::{Done, Output};
use super::super::{locate, settings, sources};
use egress_render::istio::{self, Api, MARK, Manifest, Module, ProxyKind, PullPolicy, Wanted};
use egress_render::xds::{OLDEST, Options, Secrets};
use egress_rules::{Complaint, Refusal};
use egress_rules::{How, Rules, compile_as};
use egress_run::atomic;

/// What a stream of resources begins with, below the line of every file.
const EXPLANATION: &str = "\
# The filter originates by the rules in `pluginConfig`. The DestinationRules keep Istio from doing it too: their `tls` asks
# for a certificate that nobody has, so that nothing goes out around the filter. Apply them in place of the rules' own.
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

/// Returns how the rules are compiled. Hosts that they do not name are Istio's.
fn input(args: &RenderIstio) -> Input {
    Input {
        files: args.files.clone(),
        namespace: args.namespace.clone(),
        labels: args.labels.clone(),
        outbound_traffic_policy: Outbound::AllowAny,
        connect_to: args.connect_to.clone(),
        loopback_vips: false,
        allow_plaintext: args.allow_plaintext.clone(),
        authority: args.authority,
        mesh_config: args.mesh_config.clone(),
    }
}

/// Returns how clusters and the filter's configuration are rendered. What only a bootstrap has is not looked at.
fn options(input: &Input, proxy: Proxy) -> Options {
    Options {
        authority: settings::authority(input),
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
    let sha256 = match &args.sha256 {
        Some(sum) => Some(sum.clone()),
        None if args.url.is_of_module() => {
            let sum = locate::wasm(args.wasm.as_deref()).and_then(|path| locate::sha256(&path));
            Some(sum.map_err(Complaint::input)?)
        }
        None => None,
    };
    Ok(Wanted {
        name: args.name.clone(),
        proxies: match args.place {
            IstioPlace::Sidecar => ProxyKind::Sidecar,
            IstioPlace::Gateway => ProxyKind::Gateway,
        },
        gateway: args.target_ref.clone(),
        module: Module {
            url: args.url.clone(),
            sha256,
            pull_secret: args.image_pull_secret.clone(),
            pull_policy: args.image_pull_policy.map(|policy| match policy {
                ImagePullPolicy::IfNotPresent => PullPolicy::IfNotPresent,
                ImagePullPolicy::Always => PullPolicy::Always,
            }),
        },
        api: match args.api {
            IstioApi::WasmPlugin => Api::WasmPlugin,
            IstioApi::TrafficExtension => Api::TrafficExtension,
        },
        phase: args.phase.map(|phase| match phase {
            Phase::Authn => "AUTHN",
            Phase::Authz => "AUTHZ",
            Phase::Stats => "STATS",
        }),
        service_accounts: args.service_accounts.clone(),
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
        let texts: Vec<&str> = documents.iter().map(|(_, text)| text.as_str()).collect();
        return Ok(Output::verbatim(format!(
            "{mark}{EXPLANATION}{}",
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
