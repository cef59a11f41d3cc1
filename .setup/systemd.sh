#!/usr/bin/env bash
# Sees to the program that checks units of systemd. Nothing of systemd is run.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v systemd-analyze >/dev/null || .setup/apt.sh systemd
