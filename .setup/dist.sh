#!/usr/bin/env bash
# .setup/dist.sh RELEASE OUT: lays what is released into the folder OUT: the filter in both forms, the CLI, their checksums, bills of
# materials, the schema of the plugin configuration, and an image that registries and Istio take.
set -euo pipefail
cd "$(dirname "$0")/.."

release=$1 out=$2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
cyclonedx=$(.setup/cyclonedx.sh)
fresh=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$fresh"' EXIT

wasm=egress-filter-$version.wasm
cp "$release/egress-filter.wasm" "$fresh/$wasm"
module=libegress_filter-$version-$(uname -m).so
cp "$release/libegress_filter.so" "$fresh/$module"
cp "$release/egressctl" "$fresh/egressctl-$version-$(uname -m)-linux"
cp filter/core/plugin-config.schema.json "$fresh/plugin-config-$version.schema.json"
image=egress-filter-$version.oci
digest=$(python3 .setup/oci.py "$fresh/$wasm" "$version" "$fresh/$image")

# The tool writes beside each manifest, so it works on a copy: manifests, and empty sources.
copy=$(mktemp -d)
trap 'rm -rf "$fresh" "$copy"' EXIT
git ls-files '*.toml' Cargo.lock '*.rs' | tar -c --files-from - | tar -x -C "$copy"
bill() { # bill PACKAGE-FOLDER TARGET NAME
  (cd "$copy" && SOURCE_DATE_EPOCH=0 "$cyclonedx" cyclonedx -q --manifest-path "$1/Cargo.toml" --format json \
    --spec-version 1.5 --target "$2" --override-filename "$3")
  cp "$copy/$1/$3.json" "$fresh/$3.json"
}
bill filter/wasm wasm32-unknown-unknown "egress-filter-$version.cdx"
bill filter/module "$(rustc -vV | sed -n 's/^host: //p')" "libegress_filter-$version.cdx"
bill envoy/ctl "$(rustc -vV | sed -n 's/^host: //p')" "egressctl-$version.cdx"

(
  cd "$fresh"
  echo "$digest" >"$image.digest"
  sha256sum "$wasm" >"$wasm.sha256"
  sha256sum "$module" >"$module.sha256"
  find . -type f ! -name '*.sha256' ! -name '*.digest' ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum -- >"$copy/sums"
  mv "$copy/sums" SHA256SUMS
)
chmod 755 "$fresh"
rm -rf "$out"
mv -T "$fresh" "$out"
echo "==> dist: $out"
find "$out" -type f -printf '    %s %P\n' | LC_ALL=C sort -k 2
echo "    The image, for \`egressctl render istio --sha256\`: $digest"
