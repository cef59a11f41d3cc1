#!/usr/bin/env bash
# Prints where binaryen's wasm-opt is, wasm-metadce beside it: those already unpacked under .tools/, else the machine's
# own, else Debian's, which are unpacked there. WASM_OPT=/path/to/wasm-opt stands in for it.
set -euo pipefail
cd "$(dirname "$0")/.."
. .setup/debian.sh

good() { [ -x "$1" ] && "$1" --version >/dev/null 2>&1 && [ -x "${1%opt}metadce" ]; }
debian binaryen WASM_OPT "no wasm-opt with wasm-metadce beside it" usr/bin/wasm-opt \
  "$(command -v wasm-opt || true)" -- binaryen
