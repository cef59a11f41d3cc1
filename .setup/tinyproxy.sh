#!/usr/bin/env bash
# Prints where a tinyproxy is, the proxy of a company that tests go through: the one already unpacked under
# .tools/, else the machine's own, else Debian's, which is unpacked there. TINYPROXY=/path/to/tinyproxy stands in.
set -euo pipefail
cd "$(dirname "$0")/.."
. .setup/debian.sh

# Also the order in integration/src/tinyproxy.rs, which finds it again.
good() { [ -x "$1" ] && [[ "$("$1" -v 2>&1)" == "tinyproxy "* ]]; }
debian tinyproxy TINYPROXY "no tinyproxy" usr/bin/tinyproxy \
  "$(command -v tinyproxy || true)" /usr/bin/tinyproxy -- tinyproxy-bin
