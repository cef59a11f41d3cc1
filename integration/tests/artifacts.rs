//! What `make dist` lays out is what others take: Istio's agent the image, registries its digests, auditors its bill of
//! materials. The module in it is the one that all other tests load.
#![expect(clippy::indexing_slicing, reason = "a test")]

#[path = "common/sha256.rs"]
mod sha256;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use sha256::hex;
use wasmparser::{Parser, Payload};

/// What a module may weigh: each Envoy that is configured anew fetches it. The filter judges plaintext by itself, with
/// whose each host is, where routes lead and what policies add, which is two fifths of it: 508,583 bytes before
/// VirtualServices and four more kinds were carried out.
const LIMIT: usize = 650_000;

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The newest `make dist`.
struct Dist {
    folder: PathBuf,
    version: &'static str,
}

impl Dist {
    fn find() -> Result<Dist> {
        let target = std::env::var_os("CARGO_TARGET_DIR");
        let target = target.map_or_else(|| Path::new(WORKSPACE).join("target"), PathBuf::from);
        let folder = target.join("dist");
        ensure!(
            folder.is_dir(),
            "{} is not there: `make dist` lays it out",
            folder.display()
        );
        let version = env!("CARGO_PKG_VERSION");
        Ok(Dist { folder, version })
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.folder.join(name);
        fs::read(&path).with_context(|| path.display().to_string())
    }

    fn json(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&self.read(name)?)?)
    }

    fn module(&self) -> Result<Vec<u8>> {
        self.read(&format!("egress-filter-{}.wasm", self.version))
    }
}

#[test]
fn the_module_is_small_and_tells_nothing_of_where_it_was_built() -> Result<()> {
    let module = Dist::find()?.module()?;
    let size = module.len();
    ensure!(size < LIMIT, "{size} bytes");
    let home = format!("{}/", std::env::var("HOME")?);
    for word in [home.as_str(), "/home/", ".cargo/registry"] {
        let bytes = word.as_bytes();
        let found = module.windows(bytes.len()).any(|part| part == bytes);
        ensure!(!found, "the module has `{word}` in it");
    }
    Ok(())
}

#[test]
fn the_module_exports_the_callbacks_that_the_source_has_and_nothing_else() -> Result<()> {
    let module = Dist::find()?.module()?;
    let mut exports = BTreeSet::new();
    for payload in Parser::new(0).parse_all(&module) {
        if let Payload::ExportSection(section) = payload? {
            for export in section {
                exports.insert(export?.name.to_owned());
            }
        }
    }
    let folder = Path::new(WORKSPACE).join("filter/wasm");
    let listed: BTreeSet<String> = fs::read_to_string(folder.join("exports.txt"))?
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    ensure!(
        exports == listed,
        "exported: {exports:?}, listed: {listed:?}"
    );

    // Without its export, a callback that somebody adds would never be called.
    let mut callbacks = BTreeSet::new();
    for file in fs::read_dir(folder.join("src"))? {
        let source = fs::read_to_string(file?.path())?;
        let names = source.split("fn on_").skip(1);
        let names = names.filter_map(|rest| rest.split('(').next());
        callbacks.extend(names.map(|name| match name {
            "downstream_close" => "proxy_on_downstream_connection_close".to_owned(),
            name => format!("proxy_on_{}", name.trim_start_matches("http_")),
        }));
    }
    ensure!(
        callbacks.contains("proxy_on_request_headers"),
        "{callbacks:?}"
    );
    let missing: Vec<_> = callbacks.difference(&listed).collect();
    ensure!(missing.is_empty(), "not exported: {missing:?}");
    Ok(())
}

/// The files in a folder and in those below, by their path from there.
fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.file_type()?.is_dir() {
            true => {
                let below = files_below(&entry.path())?.into_iter();
                found.extend(below.map(|below| format!("{name}/{below}")));
            }
            false => found.push(name),
        }
    }
    Ok(found)
}

#[test]
fn checksums_are_those_of_the_files() -> Result<()> {
    let dist = Dist::find()?;
    let sums = String::from_utf8(dist.read("SHA256SUMS")?)?;
    let mut summed = BTreeSet::new();
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").context("a sum and a name")?;
        ensure!(hex(&dist.read(name)?) == sum, "{name}");
        summed.insert(name.to_owned());
    }
    let released = files_below(&dist.folder)?.into_iter();
    let released: BTreeSet<String> = released
        .filter(|name| name != "SHA256SUMS")
        .filter(|name| !name.ends_with(".sha256") && !name.ends_with(".digest"))
        .collect();
    ensure!(summed == released, "summed {summed:?}, there {released:?}");
    let beside = dist.read(&format!("egress-filter-{}.wasm.sha256", dist.version))?;
    ensure!(
        sums.contains(String::from_utf8(beside)?.trim_end()),
        "{sums}"
    );
    let schema = dist.read(&format!("plugin-config-{}.schema.json", dist.version))?;
    let source = Path::new(WORKSPACE).join("filter/core/plugin-config.schema.json");
    ensure!(schema == fs::read(source)?, "another schema");
    Ok(())
}

#[test]
fn the_bill_of_materials_has_each_crate_of_the_module() -> Result<()> {
    let dist = Dist::find()?;
    let bill = dist.json(&format!("egress-filter-{}.cdx.json", dist.version))?;
    let components = bill["components"].as_array().context("components")?;
    let told: BTreeSet<String> = components
        .iter()
        .filter_map(|one| {
            Some(format!(
                "{} v{}",
                one["name"].as_str()?,
                one["version"].as_str()?
            ))
        })
        .collect();
    let tree = Command::new(env!("CARGO"))
        .current_dir(WORKSPACE)
        .args([
            "tree",
            "--locked",
            "-p",
            "egress-filter-wasm",
            "-e",
            "normal,build",
        ])
        .args([
            "--target",
            "wasm32-unknown-unknown",
            "--prefix",
            "none",
            "-f",
            "{p}",
        ])
        .output()?;
    ensure!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let tree = String::from_utf8(tree.stdout)?;
    let used: BTreeSet<String> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (name, version) = (words.next()?, words.next()?);
            (name != "egress-filter-wasm").then(|| format!("{name} {version}"))
        })
        .collect();
    ensure!(
        used.iter().any(|one| one.starts_with("proxy-wasm ")),
        "{used:?}"
    );
    let missing: Vec<_> = used.difference(&told).collect();
    ensure!(missing.is_empty(), "not in the bill: {missing:?}\n{told:?}");
    Ok(())
}

/// What a registry serves for a tag.
struct Image {
    manifest: Value,
    layers: Vec<Vec<u8>>,
}

impl Image {
    /// Reads the one image of a layout, each blob checked against its digest and size.
    fn of_layout(folder: &Path) -> Result<Image> {
        let read = |name: &str| -> Result<Value> {
            Ok(serde_json::from_slice(&fs::read(folder.join(name))?)?)
        };
        let blob = |entry: &Value| -> Result<Vec<u8>> {
            let digest = entry["digest"].as_str().context("a digest")?;
            let sum = digest.strip_prefix("sha256:").context("of SHA-256")?;
            let content = fs::read(folder.join("blobs/sha256").join(sum))?;
            ensure!(hex(&content) == sum, "{digest} is that of other bytes");
            ensure!(entry["size"] == content.len(), "{digest} has another size");
            Ok(content)
        };
        ensure!(read("oci-layout")? == json!({"imageLayoutVersion": "1.0.0"}));
        let index = read("index.json")?;
        let [entry] = index["manifests"]
            .as_array()
            .context("manifests")?
            .as_slice()
        else {
            bail!("one tag is one image: {index}");
        };
        let manifest: Value = serde_json::from_slice(&blob(entry)?)?;
        ensure!(manifest["mediaType"] == entry["mediaType"], "{manifest}");
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])?)?;
        let layers = manifest["layers"].as_array().context("layers")?;
        let layers: Vec<Vec<u8>> = layers.iter().map(blob).collect::<Result<_>>()?;
        let unpacked: Vec<String> = layers
            .iter()
            .map(|layer| Ok(format!("sha256:{}", hex(&gunzip(layer)?))))
            .collect::<Result<_>>()?;
        ensure!(config["rootfs"]["diff_ids"] == json!(unpacked), "{config}");
        Ok(Image { manifest, layers })
    }

    fn new(manifest_type: &str, layers: &[(&str, &[u8])]) -> Image {
        let entry =
            |(media, content): &(&str, &[u8])| json!({"mediaType": media, "size": content.len()});
        let manifest = json!({
            "mediaType": manifest_type,
            "layers": layers.iter().map(entry).collect::<Vec<_>>(),
        });
        let layers = layers.iter().map(|(_, content)| content.to_vec()).collect();
        Image { manifest, layers }
    }

    /// Fetches the module in the forms and the order of Istio's agent.
    ///
    /// Source: istio/istio `pkg/wasm/imagefetcher.go`, `PrepareFetch`.
    fn fetch(&self) -> Result<Vec<u8>> {
        if self.manifest["mediaType"] == DOCKER_MANIFEST {
            return self.last_layer(DOCKER_LAYER);
        }
        self.last_layer(OCI_LAYER).or_else(|compat| {
            self.artifact()
                .map_err(|artifact| anyhow!("{compat}; {artifact}"))
        })
    }

    fn last_layer(&self, media_type: &str) -> Result<Vec<u8>> {
        let described = self.manifest["layers"]
            .as_array()
            .and_then(|layers| layers.last());
        let found = described.context("no layer")?["mediaType"].clone();
        ensure!(found == media_type, "the last layer is {found}");
        let tar = gunzip(self.layers.last().context("no layer")?)?;
        for entry in tar::Archive::new(tar.as_slice()).entries()? {
            let mut entry = entry?;
            if entry.path()?.file_name() == Some("plugin.wasm".as_ref()) {
                let mut module = Vec::new();
                entry.read_to_end(&mut module)?;
                return Ok(module);
            }
        }
        bail!("no plugin.wasm in the last layer")
    }

    fn artifact(&self) -> Result<Vec<u8>> {
        let described = self.manifest["layers"].as_array().context("no layers")?;
        ensure!(
            described.len() == 2,
            "number of layers must be 2 but got {}",
            described.len()
        );
        let at = described
            .iter()
            .position(|layer| layer["mediaType"] == ARTIFACT_LAYER);
        let at = at.context("no layer is the module")?;
        Ok(self.layers[at].clone())
    }
}

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ARTIFACT_LAYER: &str = "application/vnd.module.wasm.content.layer.v1+wasm";
const ARTIFACT_CONFIG: &str = "application/vnd.module.wasm.config.v1+json";

fn gunzip(layer: &[u8]) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    flate2::read::GzDecoder::new(layer).read_to_end(&mut content)?;
    Ok(content)
}

#[test]
fn istio_takes_the_image() -> Result<()> {
    let dist = Dist::find()?;
    let folder = dist
        .folder
        .join(format!("egress-filter-{}.oci", dist.version));
    let image = Image::of_layout(&folder)?;
    ensure!(image.layers.len() == 1, "one layer, for `COPY --from` too");
    ensure!(image.fetch()? == dist.module()?, "another module");
    // What the agent compares `sha256` with is the digest of the manifest.
    let index = dist.json(&format!("egress-filter-{}.oci/index.json", dist.version))?;
    let told = dist.read(&format!("egress-filter-{}.oci.digest", dist.version))?;
    let told = String::from_utf8(told)?;
    let digest = format!("sha256:{}", told.trim_end());
    ensure!(index["manifests"][0]["digest"] == digest, "{digest}");
    Ok(())
}

/// The reader above takes what Istio's agent takes, and refuses what it refuses; else it would prove nothing.
#[test]
fn the_reader_of_images_is_as_strict_as_istios() -> Result<()> {
    let dist = Dist::find()?;
    let folder = dist
        .folder
        .join(format!("egress-filter-{}.oci", dist.version));
    let layer = &Image::of_layout(&folder)?.layers[0];
    let module = dist.module()?;
    let config = b"{}".as_slice();
    for image in [
        Image::new(DOCKER_MANIFEST, &[(DOCKER_LAYER, layer)]),
        Image::new(OCI_MANIFEST, &[(OCI_LAYER, config), (OCI_LAYER, layer)]),
        Image::new(
            OCI_MANIFEST,
            &[(ARTIFACT_CONFIG, config), (ARTIFACT_LAYER, &module)],
        ),
    ] {
        ensure!(image.fetch()? == module, "{}", image.manifest);
    }
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    for image in [
        Image::new(DOCKER_MANIFEST, &[(OCI_LAYER, layer)]),
        Image::new(OCI_MANIFEST, &[(zstd, layer)]),
        Image::new(
            OCI_MANIFEST,
            &[(OCI_LAYER, layer), (ARTIFACT_CONFIG, config), (zstd, layer)],
        ),
        Image::new(OCI_MANIFEST, &[(ARTIFACT_LAYER, &module)]),
    ] {
        ensure!(image.fetch().is_err(), "{}", image.manifest);
    }
    Ok(())
}

#[test]
fn the_image_is_the_same_when_it_is_made_again() -> Result<()> {
    let dist = Dist::find()?;
    let fresh = tempfile::tempdir()?;
    let wasm = dist
        .folder
        .join(format!("egress-filter-{}.wasm", dist.version));
    let made = Command::new("python3")
        .arg(Path::new(WORKSPACE).join(".setup/oci.py"))
        .args([
            wasm.as_os_str(),
            dist.version.as_ref(),
            fresh.path().as_os_str(),
        ])
        .status()?;
    ensure!(made.success(), "{made}");
    let first = dist.read(&format!("egress-filter-{}.oci/index.json", dist.version))?;
    ensure!(
        fs::read(fresh.path().join("index.json"))? == first,
        "another image"
    );
    Ok(())
}
