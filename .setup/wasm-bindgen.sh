#!/usr/bin/env bash
# Prints the path of wasm-bindgen-test-runner, after building it if need be.
# The runner reads what the library wrote into the test, so its version is the library's in Cargo.lock.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(awk '$0 == "name = \"wasm-bindgen\"" { getline; gsub(/[^0-9.]/, ""); print }' Cargo.lock)
if [[ ! $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]]; then
  echo "error: Cargo.lock should name one wasm-bindgen (wasm-bindgen-test brings it), and names: ${version:-none}" >&2
  exit 1
fi

root=$PWD/.tools/wasm-bindgen-$version
runner=$root/bin/wasm-bindgen-test-runner
if [ ! -x "$runner" ]; then
  echo "building wasm-bindgen-test-runner $version (a few minutes, once)" >&2
  # Without --locked: its lock file may name versions that are gone. Its build folder is kept until
  # it is done, so that an interrupted build resumes. It runs for seconds: compiling fast matters more.
  build=.tools/build-wasm-bindgen
  CARGO_TARGET_DIR=$build CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
    cargo install wasm-bindgen-cli --version "=$version" --bin wasm-bindgen-test-runner --root "$root" >&2
  rm -rf "$build"
fi
echo "$runner"
