#!/usr/bin/env bash
# .setup/wasm-finish.sh IN OUT: makes the module that cargo built small. It keeps the exports that
# filter/wasm/exports.txt names and what they reach.
set -euo pipefail
cd "$(dirname "$0")/.."

opt=$(.setup/binaryen.sh)
kept=$(mktemp)
trap 'rm -f "$kept" "$2.dce"' EXIT
python3 - filter/wasm/exports.txt >"$kept" <<'PYTHON'
import json, sys

names = [line.strip() for line in open(sys.argv[1]) if not line.startswith("#")]
root = {"name": "Envoy", "root": True, "reaches": names}
print(json.dumps([root] + [{"name": name, "export": name} for name in names]))
PYTHON
# What rustc takes for granted in every engine since 1.87, V8 in the oldest Envoy among them.
features=(--enable-bulk-memory --enable-sign-ext --enable-mutable-globals --enable-nontrapping-float-to-int
  --enable-multivalue --enable-reference-types)
"${opt%opt}metadce" "${features[@]}" --graph-file "$kept" "$1" -o "$2.dce" >/dev/null
"$opt" "${features[@]}" --strip-debug --strip-producers -Oz --converge "$2.dce" -o "$2"
