#!/usr/bin/env bash
# Prints where cargo-cyclonedx is, after building it if need be.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.5.9
root=$PWD/.tools/cyclonedx-$version
if [ ! -x "$root/bin/cargo-cyclonedx" ]; then
  echo "building cargo-cyclonedx $version (a minute or two, once)" >&2
  build=.tools/build-cyclonedx
  CARGO_TARGET_DIR=$build CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
    cargo install cargo-cyclonedx --locked --version "=$version" --root "$root" >&2
  rm -rf "$build"
fi
echo "$root/bin/cargo-cyclonedx"
