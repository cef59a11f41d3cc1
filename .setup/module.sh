#!/usr/bin/env bash
# .setup/module.sh RELEASE: builds the native module and puts it into the folder RELEASE, whole.
set -euo pipefail
cd "$(dirname "$0")/.."

release=$1
host=$(rustc -vV | sed -n 's/^host: //p')
case $host in
  *-linux-gnu) ;;
  *)
    echo "==> build: no native module for $host: Envoy loads it on Linux with glibc only" >&2
    exit 0
    ;;
esac
variables=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$host")
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
# Messages of panics name files: not where they were on this machine.
env "${variables}_LINKER=$PWD/.setup/module-linker.sh" \
  "${variables}_RUSTFLAGS=--remap-path-prefix=$registry=crates --remap-path-prefix=$PWD=." \
  cargo build --profile module -p egress-filter-module
built=${CARGO_TARGET_DIR:-target}/module/libegress_filter_module.so
beside=$release/libegress_filter.so
if ! cmp -s "$built" "$beside"; then
  mkdir -p "$release"
  cp "$built" "$beside.new"
  mv "$beside.new" "$beside" # an Envoy may have what is there mapped
fi
