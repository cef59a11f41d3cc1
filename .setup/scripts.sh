#!/usr/bin/env bash
# Prints every shell script here, known by its name or its first line.
set -euo pipefail
cd "$(dirname "$0")/.."

ours=(--exclude-dir=.git --exclude-dir=.tools --exclude-dir=target)
{
  grep -rl "${ours[@]}" --include='*.sh' '' .
  grep -rlIE "${ours[@]}" --exclude='*.sh' '^#!.*[/ ](ba)?sh$' . | while read -r file; do
    read -r first <"$file"
    [[ $first != '#!'* ]] || echo "$file"
  done
} | LC_ALL=C sort
